//! Echo's side effects: ping sockets of the host, and replies for the guest.

use std::io::{IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::EpollFlags;

use super::host::Host;
use super::token::Token;
use super::udp_io::{fault, next_error, open_fault, open_options, send_options};
use crate::addr::Endpoint;
use crate::flow::id::FlowId;
use crate::icmp::io::{Io, Reply};
use crate::icmp::report::Report;
use crate::stats::Drop;
use crate::sys::errqueue::Record;
use crate::sys::{datagram, mmsg, stream};
use crate::udp::io::{Fault, Open, Peer, Send};
use crate::wire::{
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, ethernet, icmpv4, icmpv6, ipv4, ipv6, virtio_net,
};

/// A ping socket.
#[derive(Debug)]
pub struct PingSocket {
    fd: OwnedFd,
    ipv6: bool,
}

/// Where the ICMP message begins in a frame.
const fn message_at(ipv6: bool) -> usize {
    let network = if ipv6 {
        ipv6::HEADER_LEN
    } else {
        ipv4::HEADER_LEN
    };
    ethernet::HEADER_LEN.saturating_add(network)
}

impl Io for Host {
    type Socket = PingSocket;

    fn open(&mut self, id: FlowId, open: &Open<'_>) -> Result<(PingSocket, u16), Fault> {
        let (fd, ident) = datagram::open_ping(&open_options(open)).map_err(|e| open_fault(&e))?;
        self.watch(&fd, EpollFlags::EPOLLIN, Token::Icmp(id))
            .map_err(|e| open_fault(&e.into()))?;
        Ok((
            PingSocket {
                fd,
                ipv6: open.ipv6,
            },
            ident,
        ))
    }

    fn close(&mut self, socket: PingSocket) {
        drop(socket);
    }

    fn enable_groups(&mut self, socket: &PingSocket, ipv6: bool) {
        // Without it, group destinations fail with an error of their own, which is reported.
        let _ = datagram::enable_groups(socket.fd.as_fd(), ipv6);
    }

    fn set_dont_fragment(&mut self, socket: &PingSocket, ipv6: bool, on: bool) {
        // Cannot fail on an open socket.
        let _ = datagram::set_dont_fragment(socket.fd.as_fd(), ipv6, on);
    }

    fn send(
        &mut self,
        socket: &PingSocket,
        to: Peer,
        how: &Send,
        message: &[u8],
    ) -> Result<(), Fault> {
        let how = Send {
            to: Some(to),
            ..*how
        };
        mmsg::send(
            socket.fd.as_fd(),
            &send_options(&how),
            &[IoSlice::new(message)],
            None,
        )
        .map_err(|e| fault(&e))
    }

    fn receive(&mut self, socket: &PingSocket) -> Result<Reply, Fault> {
        let skip = message_at(socket.ipv6);
        let mut room = [IoSliceMut::new(
            self.frame.space().get_mut(skip..).unwrap_or_default(),
        )];
        let mut reply = Err(Fault::WouldBlock);
        self.datagrams
            .scratch
            .receive(socket.fd.as_fd(), &mut room, |_, arrival| {
                reply = Ok(Reply {
                    from: Endpoint::from(arrival.from).ip,
                    len: arrival.len,
                    tos: arrival.tos,
                });
            })
            .map_err(|e| fault(&e))?;
        reply
    }

    fn forward(&mut self, reply: &Reply, src: IpAddr, dst: Endpoint) {
        let template = self
            .template(Endpoint::new(src, 0), dst)
            .with_tos(reply.tos);
        let at = template.ip_end();
        let space = self.frame.space();
        let Some(message) = space.get_mut(at..at.saturating_add(reply.len)) else {
            return;
        };
        let expected = if dst.is_ipv6() {
            icmpv6::ECHO_REPLY
        } else {
            icmpv4::ECHO_REPLY
        };
        if message.first() != Some(&expected) {
            return;
        }
        let Some(ident) = message.get_mut(4..6) else {
            return;
        };
        ident.copy_from_slice(&dst.port.to_be_bytes());
        let (filled, protocol) = match (src, dst.ip) {
            (IpAddr::V6(src), IpAddr::V6(to)) => {
                (icmpv6::fill_checksum(src, to, message), PROTOCOL_ICMPV6)
            }
            _ => (icmpv4::fill_checksum(message), PROTOCOL_ICMP),
        };
        if filled
            .and(template.emit_ip(space, protocol, reply.len))
            .is_some()
        {
            self.transmit(at.saturating_add(reply.len), virtio_net::Header::PLAIN);
        }
    }

    fn next_error(&mut self, socket: &PingSocket, payload: &mut [u8]) -> Option<Record> {
        next_error(&socket.fd, payload)
    }

    fn clear_error(&mut self, socket: &PingSocket) {
        // Asking is clearing.
        let _ = stream::take_error(&socket.fd);
    }

    fn report(&mut self, report: &Report<'_>) {
        self.report_to_guest(report);
    }

    fn drop(&mut self, why: Drop) {
        self.link.counters.drop(why);
    }
}
