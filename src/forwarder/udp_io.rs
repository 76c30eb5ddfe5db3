//! UDP's side effects: host sockets, and datagrams for the guest.
//!
//! Each message is received behind room for the headers of the frame it will become, so a datagram, or a run of
//! datagrams the kernel has coalesced (UDP_GRO), goes to the tap without being copied again. Only runs that
//! arrived as separate messages are copied together into one super-frame: that is cheaper than a write each.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use arrayvec::ArrayVec;
use nix::sys::epoll::EpollFlags;

use super::host::Host;
use super::token::Token;
use crate::addr::Endpoint;
use crate::flow::id::FlowId;
use crate::icmp::report::Report;
use crate::stats::Drop;
use crate::sys::datagram::{self, OpenOptions};
use crate::sys::errqueue::{self, Record};
use crate::sys::mmsg::{self, Scratch, SendOptions};
use crate::sys::stream;
use crate::tap::frame::FrameBuf;
use crate::udp::io::{Fault, Frame, Io, MAX_RECEIVE, Open, Peer, Received, Send};
use crate::wire::frame::{Checksum, Template};
use crate::wire::{ethernet, ipv4, ipv6, udp};

/// A UDP socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    ipv6: bool,
}

/// Where messages are received: one frame each.
#[derive(Debug)]
pub struct Buffers {
    frames: Box<[FrameBuf]>,
    pub(super) scratch: Scratch,
    /// Length of each message last received.
    lengths: [usize; MAX_RECEIVE],
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            frames: (0..MAX_RECEIVE).map(|_| FrameBuf::new()).collect(),
            scratch: Scratch::new(),
            lengths: [0; MAX_RECEIVE],
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
        ipv6: how.ipv6,
    }
}

/// The next entry of an error queue; an entry that cannot be read is no entry.
pub(super) fn next_error(fd: &OwnedFd, payload: &mut [u8]) -> Option<Record> {
    errqueue::next(fd, payload).ok().flatten()
}

impl Io for Host {
    type Socket = Socket;

    fn open(&mut self, id: FlowId, open: &Open<'_>) -> Result<(Socket, bool), Fault> {
        let (fd, had_port) = datagram::open_udp(&open_options(open)).map_err(|e| open_fault(&e))?;
        self.watch(&fd, EpollFlags::EPOLLIN, Token::Udp(id))
            .map_err(|e| open_fault(&e.into()))?;
        Ok((
            Socket {
                fd,
                ipv6: open.ipv6,
            },
            had_port,
        ))
    }

    fn connect(&mut self, socket: &Socket, peer: Option<Peer>) -> Result<(), Fault> {
        let fd = socket.fd.as_fd();
        match peer {
            Some(peer) => datagram::connect(fd, sockaddr(peer)),
            None => datagram::disconnect(fd),
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
        mmsg::send(socket.fd.as_fd(), &send_options(how), parts, Some(segment))
            .map_err(|e| fault(&e))
    }

    fn send_each(
        &mut self,
        socket: &Socket,
        how: &Send,
        parts: &[IoSlice<'_>],
    ) -> (usize, Option<Fault>) {
        let (sent, error) = mmsg::send_each(socket.fd.as_fd(), &send_options(how), parts);
        (sent, error.map(|e| fault(&e)))
    }

    fn receive(&mut self, socket: &Socket, out: &mut [Received]) -> Result<usize, Fault> {
        let Buffers {
            frames,
            scratch,
            lengths,
        } = &mut self.datagrams;
        let skip = header_len(socket.ipv6);
        let mut rooms: ArrayVec<IoSliceMut<'_>, MAX_RECEIVE> = frames
            .iter_mut()
            .take(out.len())
            .map(|f| IoSliceMut::new(f.space().get_mut(skip..).unwrap_or_default()))
            .collect();
        scratch
            .receive(socket.fd.as_fd(), &mut rooms, |number, arrival| {
                if let (Some(slot), Some(len)) = (out.get_mut(number), lengths.get_mut(number)) {
                    *len = arrival.len;
                    *slot = Received {
                        from: Endpoint::from(arrival.from),
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
        let skip = header_len(frame.dst.is_ipv6());
        let whole = frame.datagrams == 1 || self.link.tap.offloads().uso;
        if count == 1 && whole {
            let Some(buf) = self.datagrams.frames.get_mut(first) else {
                return;
            };
            let len = self.datagrams.lengths.get(first).copied().unwrap_or(0);
            emit(&mut self.link, &template, buf, len, frame.segment);
            return;
        }
        let messages = self.datagrams.frames.iter_mut().zip(self.datagrams.lengths);
        let mut gathered = 0_usize;
        for (message, len) in messages.skip(first).take(count) {
            let payload = message
                .space()
                .get(skip..skip.saturating_add(len))
                .unwrap_or_default();
            for one in payload.chunks(frame.segment.max(1)) {
                let at = skip.saturating_add(gathered);
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
                gathered,
                frame.segment,
            );
        }
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

/// Write the headers in front of `len` bytes of payload in `buf`, and send.
fn emit(
    link: &mut super::link::Link,
    template: &Template,
    buf: &mut FrameBuf,
    len: usize,
    segment: usize,
) {
    let Some(header) = template.emit_udp(buf.space(), len, Checksum::Partial) else {
        // Longer than an IP packet can be.
        link.counters.drop(Drop::Malformed);
        return;
    };
    let offload = template.udp_offload(len, u16::try_from(segment).unwrap_or(u16::MAX));
    link.send(buf, header.saturating_add(len), offload);
}
