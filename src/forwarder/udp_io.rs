//! UDP's side effects: host sockets, and datagrams for the guest.
//!
//! Each message is received behind room for the headers of the frame it will become, so a datagram, or a run of
//! datagrams the kernel has coalesced (UDP_GRO), goes to the tap without being copied again. Only runs that
//! arrived as separate messages are copied together into one super-frame: that is cheaper than a write each.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use arrayvec::ArrayVec;
use nix::sys::epoll::EpollFlags;

use super::host::Host;
use super::token::Token;
use crate::addr::Endpoint;
use crate::config::rules::RuleId;
use crate::flow::id::FlowId;
use crate::flow::traffic::Traffic;
use crate::flow::translate::Seen;
use crate::icmp::report::Report;
use crate::ipc::SocketKind;
use crate::stats::Drop;
use crate::sys::datagram::{self, OpenOptions};
use crate::sys::errqueue::{self, Record};
use crate::sys::mmsg::{self, Scratch, SendOptions};
use crate::sys::stream;
use crate::tap::frame::FrameBuf;
use crate::udp::io::{Cut, Fault, Frame, Io, MAX_RECEIVE, Open, Peer, Received, Send};
use crate::wire::frame::{Checksum, Template};
use crate::wire::{ethernet, ipv4, ipv6, udp};

/// A UDP socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Of the socket: one of IPv6 may carry IPv4, too.
    ipv6: bool,
    /// A listener that is not bound to an address: answers have to name their source.
    anywhere: bool,
    /// Bound to the interface of the configuration.
    on_device: bool,
}

impl Socket {
    /// A socket that was bound elsewhere to listen.
    #[must_use]
    pub fn listener(fd: OwnedFd) -> Self {
        let address = datagram::local_address(fd.as_fd());
        Self {
            ipv6: address.as_ref().is_ok_and(SocketAddr::is_ipv6),
            anywhere: address.is_ok_and(|a| a.ip().is_unspecified()),
            on_device: false,
            fd,
        }
    }

    /// A socket that was made elsewhere, and is neither bound nor connected.
    #[must_use]
    pub const fn unbound(fd: OwnedFd, ipv6: bool) -> Self {
        Self {
            fd,
            ipv6,
            anywhere: false,
            on_device: false,
        }
    }
}

/// Where messages are received: one frame each.
#[derive(Debug)]
pub struct Buffers {
    frames: Box<[FrameBuf]>,
    pub(super) scratch: Scratch,
    /// Length of each message last received.
    lengths: [usize; MAX_RECEIVE],
    /// Where in each frame it begins.
    skip: usize,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            frames: (0..MAX_RECEIVE).map(|_| FrameBuf::new()).collect(),
            scratch: Scratch::new(),
            lengths: [0; MAX_RECEIVE],
            skip: 0,
        }
    }
}

/// Length of the headers of a UDP frame.
const fn header_len(ipv6: bool) -> usize {
    let network = if ipv6 {
        ipv6::HEADER_LEN
    } else {
        ipv4::HEADER_LEN
    };
    ethernet::HEADER_LEN
        .saturating_add(network)
        .saturating_add(udp::HEADER_LEN)
}

/// What an errno means for a datagram socket.
pub(super) fn fault(e: &io::Error) -> Fault {
    match e.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS) => Fault::WouldBlock,
        Some(libc::EMSGSIZE) => Fault::TooBig,
        Some(errno) => Fault::Errno(errno),
        None => Fault::Errno(libc::EIO),
    }
}

/// The same when a socket is being made.
pub(super) fn open_fault(e: &io::Error) -> Fault {
    match e.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => Fault::NoDescriptor,
        _ => fault(e),
    }
}

pub(super) fn open_options<'c>(open: &Open<'c>) -> OpenOptions<'c> {
    OpenOptions {
        ipv6: open.ipv6,
        source: open.source,
        device: open.device,
        scope: open.scope,
        port: open.port,
    }
}

fn sockaddr(peer: Peer) -> SocketAddr {
    match SocketAddr::from(peer.end) {
        SocketAddr::V6(a) => SocketAddrV6::new(*a.ip(), a.port(), 0, peer.scope).into(),
        v4 => v4,
    }
}

pub(super) fn send_options(how: &Send) -> SendOptions {
    SendOptions {
        to: how.to.map(sockaddr),
        hop_limit: how.hop_limit,
        tos: how.tos,
        source: how.source,
        ipv6: how.ipv6,
    }
}

impl Socket {
    fn options(&self, how: &Send) -> SendOptions {
        let options = send_options(how);
        SendOptions {
            source: options.source.filter(|_| self.anywhere),
            ..options
        }
    }
}

/// The next entry of an error queue; an entry that cannot be read is no entry.
pub(super) fn next_error(fd: &OwnedFd, payload: &mut [u8]) -> Option<Record> {
    errqueue::next(fd, payload).ok().flatten()
}

impl Host {
    /// The kernel has forgotten the interface together with the peer (`__udp_disconnect` in net/ipv4/udp.c).
    fn rebind_device(&self, socket: &Socket) -> io::Result<()> {
        let device = if socket.ipv6 {
            self.config
                .v6
                .as_ref()
                .and_then(|v6| v6.outbound_if.as_deref())
        } else {
            self.config
                .v4
                .as_ref()
                .and_then(|v4| v4.outbound_if.as_deref())
        };
        match device.filter(|_| socket.on_device) {
            Some(device) => stream::bind_to_device(&socket.fd, device),
            None => Ok(()),
        }
    }
}

impl Io for Host {
    type Socket = Socket;

    fn open(&mut self, id: FlowId, open: &Open<'_>) -> Result<(Socket, bool), Fault> {
        let (fd, had_port) = datagram::open_udp(&open_options(open)).map_err(|e| open_fault(&e))?;
        self.watch(&fd, EpollFlags::EPOLLIN, Token::Udp(id))
            .map_err(|e| open_fault(&e.into()))?;
        let socket = Socket {
            on_device: open.device.is_some(),
            ..Socket::unbound(fd, open.ipv6)
        };
        Ok((socket, had_port))
    }

    fn connect(&mut self, socket: &Socket, peer: Option<Peer>) -> Result<(), Fault> {
        let fd = socket.fd.as_fd();
        match peer {
            Some(peer) => datagram::connect(fd, sockaddr(peer)),
            None => datagram::disconnect(fd).and_then(|()| self.rebind_device(socket)),
        }
        .map_err(|e| fault(&e))
    }

    fn close(&mut self, socket: Socket) {
        drop(socket);
    }

    fn enable_groups(&mut self, socket: &Socket, ipv6: bool) {
        // Without it, group destinations fail with an error of their own, which is reported.
        let _ = datagram::enable_groups(socket.fd.as_fd(), ipv6);
    }

    fn set_dont_fragment(&mut self, socket: &Socket, ipv6: bool, on: bool) {
        // Cannot fail on an open socket.
        let _ = datagram::set_dont_fragment(socket.fd.as_fd(), ipv6, on);
    }

    fn send_segments(
        &mut self,
        socket: &Socket,
        how: &Send,
        parts: &[IoSlice<'_>],
        segment: u16,
    ) -> Result<(), Fault> {
        mmsg::send(
            socket.fd.as_fd(),
            &socket.options(how),
            parts,
            Some(segment),
        )
        .map_err(|e| fault(&e))
    }

    fn send_each(
        &mut self,
        socket: &Socket,
        how: &Send,
        parts: &[IoSlice<'_>],
    ) -> (usize, Option<Fault>) {
        let (sent, error) = mmsg::send_each(socket.fd.as_fd(), &socket.options(how), parts);
        (sent, error.map(|e| fault(&e)))
    }

    fn receive(&mut self, socket: &Socket, out: &mut [Received]) -> Result<usize, Fault> {
        let Buffers {
            frames,
            scratch,
            lengths,
            skip: at,
        } = &mut self.datagrams;
        let skip = header_len(socket.ipv6);
        *at = skip;
        let mut rooms: ArrayVec<IoSliceMut<'_>, MAX_RECEIVE> = frames
            .iter_mut()
            .take(out.len())
            .map(|f| IoSliceMut::new(f.space().get_mut(skip..).unwrap_or_default()))
            .collect();
        scratch
            .receive(socket.fd.as_fd(), &mut rooms, |number, arrival| {
                if let (Some(slot), Some(len)) = (out.get_mut(number), lengths.get_mut(number)) {
                    *len = arrival.len;
                    let scope = match arrival.from {
                        SocketAddr::V6(from) => from.scope_id(),
                        SocketAddr::V4(_) => 0,
                    };
                    *slot = Received {
                        from: Endpoint::from(arrival.from),
                        scope,
                        to: arrival.to,
                        len: arrival.len,
                        segment: arrival.segment,
                        tos: arrival.tos,
                        group: arrival.group,
                        truncated: arrival.truncated,
                    };
                }
            })
            .map_err(|e| fault(&e))
    }

    fn forward(&mut self, first: usize, count: usize, frame: &Frame) {
        let template = self.template(frame.src, frame.dst).with_tos(frame.tos);
        let header = header_len(frame.dst.is_ipv6());
        // IPv4 on a dual-stack socket: there was room for longer headers.
        let start = self.datagrams.skip.saturating_sub(header);
        let whole = frame.datagrams == 1 || self.link.tap.offloads().uso;
        if count == 1 && whole {
            let Some(buf) = self.datagrams.frames.get_mut(first) else {
                return;
            };
            let len = self.datagrams.lengths.get(first).copied().unwrap_or(0);
            emit(&mut self.link, &template, buf, start, len, frame.segment);
            return;
        }
        let messages = self.datagrams.frames.iter_mut().zip(self.datagrams.lengths);
        let mut gathered = 0_usize;
        for (message, len) in messages.skip(first).take(count) {
            let payload = message
                .space_from(start)
                .get(header..header.saturating_add(len))
                .unwrap_or_default();
            for one in payload.chunks(frame.segment.max(1)) {
                let at = header.saturating_add(gathered);
                let Some(room) = self.frame.space().get_mut(at..at.saturating_add(one.len()))
                else {
                    return;
                };
                room.copy_from_slice(one);
                gathered = gathered.saturating_add(one.len());
                if !whole {
                    emit(
                        &mut self.link,
                        &template,
                        &mut self.frame,
                        0,
                        gathered,
                        frame.segment,
                    );
                    gathered = 0;
                }
            }
        }
        if whole {
            emit(
                &mut self.link,
                &template,
                &mut self.frame,
                0,
                gathered,
                frame.segment,
            );
        }
    }

    fn relay(
        &mut self,
        first: usize,
        count: usize,
        socket: &Socket,
        how: &Send,
        cut: Cut,
    ) -> Result<(), Fault> {
        let Buffers {
            frames,
            lengths,
            skip,
            ..
        } = &mut self.datagrams;
        let parts: ArrayVec<IoSlice<'_>, MAX_RECEIVE> = frames
            .iter_mut()
            .zip(lengths)
            .skip(first)
            .take(count)
            .map(|(frame, len)| {
                let payload = frame.space().get(*skip..skip.saturating_add(*len));
                IoSlice::new(payload.unwrap_or_default())
            })
            .collect();
        pass_on(socket, &socket.options(how), &parts, cut).map_err(|e| fault(&e))
    }

    fn payload(&mut self, number: usize) -> &[u8] {
        let Buffers {
            frames,
            lengths,
            skip,
            ..
        } = &mut self.datagrams;
        let len = lengths.get(number).copied().unwrap_or(0);
        let frame = frames.get_mut(number).map(FrameBuf::space);
        let frame = frame.unwrap_or_default();
        frame
            .get(*skip..skip.saturating_add(len))
            .unwrap_or_default()
    }

    fn namespace_socket(&mut self, id: FlowId, ipv6: bool) -> Option<Socket> {
        let kind = if ipv6 {
            SocketKind::Udp6
        } else {
            SocketKind::Udp4
        };
        let fd = self.pool.take(kind)?;
        self.watch(&fd, EpollFlags::EPOLLIN, Token::Udp(id)).ok()?;
        Some(Socket::unbound(fd, ipv6))
    }

    fn bind(&mut self, socket: &Socket, source: IpAddr) -> Result<(), Fault> {
        datagram::bind_source(socket.fd.as_fd(), source).map_err(|e| fault(&e))
    }

    fn seen(&self) -> Seen {
        self.seen
    }

    fn finished(&mut self, rule: Option<RuleId>, traffic: &Traffic) {
        self.flow_finished(rule, traffic);
    }

    fn next_error(&mut self, socket: &Socket, payload: &mut [u8]) -> Option<Record> {
        next_error(&socket.fd, payload)
    }

    fn clear_error(&mut self, socket: &Socket) {
        // Asking is clearing.
        let _ = stream::take_error(&socket.fd);
    }

    fn path_mtu(&mut self, socket: &Socket, ipv6: bool) -> Option<u32> {
        datagram::path_mtu(socket.fd.as_fd(), ipv6).ok()
    }

    fn report(&mut self, report: &Report<'_>) {
        self.report_to_guest(report);
    }

    fn drop(&mut self, why: Drop) {
        self.link.counters.drop(why);
    }
}

/// Send messages as datagrams of one size: in one call if the kernel segments, else each.
fn pass_on(
    socket: &Socket,
    options: &SendOptions,
    parts: &[IoSlice<'_>],
    cut: Cut,
) -> io::Result<()> {
    let fd = socket.fd.as_fd();
    if cut.datagrams <= 1 {
        return mmsg::send(fd, options, parts, None);
    }
    let segment = u16::try_from(cut.segment).unwrap_or(u16::MAX);
    match mmsg::send(fd, options, parts, Some(segment)) {
        // Too long for the interface, more segments than this kernel takes, or no checksums to be had.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO)
            ) => {}
        result => return result,
    }
    for part in parts {
        for datagram in part.chunks(cut.segment.max(1)) {
            mmsg::send(fd, options, &[IoSlice::new(datagram)], None)?;
        }
    }
    Ok(())
}

/// Write the headers in front of `len` bytes of payload in `buf`, the first at `start`, and send.
fn emit(
    link: &mut super::link::Link,
    template: &Template,
    buf: &mut FrameBuf,
    start: usize,
    len: usize,
    segment: usize,
) {
    let Some(header) = template.emit_udp(buf.space_from(start), len, Checksum::Partial) else {
        // Longer than an IP packet can be.
        link.counters.drop(Drop::Malformed);
        return;
    };
    let offload = template.udp_offload(len, u16::try_from(segment).unwrap_or(u16::MAX));
    link.send(buf, header.saturating_add(len), offload);
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{getsockopt, sockopt};

    use super::*;

    #[test]
    fn a_dissolved_connection_does_not_leave_the_interface() {
        let (mut host, _guest) = super::super::testing::host();
        host.config.v4.as_mut().unwrap().outbound_if = Some("lo".to_owned());
        host.config.v6.as_mut().unwrap().outbound_if = Some("lo".to_owned());
        for (ipv6, peer) in [(false, "127.0.0.1:9"), (true, "[::1]:9")] {
            for device in [Some("lo"), None] {
                let open = Open {
                    ipv6,
                    device,
                    ..Open::default()
                };
                let (socket, _) = Io::open(&mut host, FlowId(0), &open).unwrap();
                let end: SocketAddr = peer.parse().unwrap();
                let end = end.into();
                Io::connect(&mut host, &socket, Some(Peer { end, scope: 0 })).unwrap();
                Io::connect(&mut host, &socket, None).unwrap();
                let bound = getsockopt(&socket.fd, sockopt::BindToDevice).unwrap();
                assert_eq!(bound.to_str(), Some(device.unwrap_or_default()));
            }
        }
    }
}
