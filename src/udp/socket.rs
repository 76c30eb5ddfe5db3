//! The kernel's half of [`super::io::Io`]: everything but the epoll set and the frames.
//!
//! The event loop adds those two and passes the rest through.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::io::{Fault, Open, Peer, Received, Send};
use crate::addr::Endpoint;
use crate::sys::datagram::{self, OpenOptions};
use crate::sys::errqueue::{self, Record};
use crate::sys::mmsg::{self, Scratch, SendOptions};
use crate::sys::stream;

/// A UDP socket for flows of the guest.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What an error of the kernel means to the core.
#[must_use]
pub fn fault(error: &io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => Fault::WouldBlock,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Fault::NoDescriptor,
        Some(libc::EMSGSIZE) => Fault::TooBig,
        Some(errno) => Fault::Errno(errno),
        None => Fault::Errno(libc::EIO),
    }
}

/// As the kernel wants it: with the scope of link-local addresses.
#[must_use]
pub fn address(peer: Peer) -> SocketAddr {
    match SocketAddr::from(peer.end) {
        SocketAddr::V6(a) => SocketAddrV6::new(*a.ip(), a.port(), 0, peer.scope).into(),
        v4 => v4,
    }
}

/// The options of a new socket, in terms of the system.
#[must_use]
pub const fn options<'a>(open: &Open<'a>) -> OpenOptions<'a> {
    OpenOptions {
        ipv6: open.ipv6,
        source: open.source,
        device: open.device,
        scope: open.scope,
        port: open.port,
    }
}

/// What goes with a send, in terms of the system.
#[must_use]
pub fn send_options(how: &Send) -> SendOptions {
    SendOptions {
        to: how.to.map(address),
        hop_limit: how.hop_limit,
        tos: how.tos,
        ipv6: how.ipv6,
    }
}

impl Socket {
    /// See [`super::io::Io::open`]; registering is left to the caller.
    ///
    /// # Errors
    /// As there.
    pub fn open(open: &Open<'_>) -> Result<(Self, bool), Fault> {
        let (fd, had_port) = datagram::open_udp(&options(open)).map_err(|e| fault(&e))?;
        Ok((Self(fd), had_port))
    }

    /// See [`super::io::Io::connect`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self, peer: Option<Peer>) -> Result<(), Fault> {
        match peer {
            Some(peer) => datagram::connect(self.as_fd(), address(peer)),
            None => datagram::disconnect(self.as_fd()),
        }
        .map_err(|e| fault(&e))
    }

    /// See [`super::io::Io::enable_groups`].
    pub fn enable_groups(&self, ipv6: bool) {
        // If it fails, so does sending, and that is reported.
        let _ = datagram::enable_groups(self.as_fd(), ipv6);
    }

    /// See [`super::io::Io::set_dont_fragment`].
    pub fn set_dont_fragment(&self, ipv6: bool, on: bool) {
        // No kernel refuses this.
        let _ = datagram::set_dont_fragment(self.as_fd(), ipv6, on);
    }

    /// See [`super::io::Io::send_segments`].
    ///
    /// # Errors
    /// As there.
    pub fn send_segments(
        &self,
        how: &Send,
        parts: &[IoSlice<'_>],
        segment: u16,
    ) -> Result<(), Fault> {
        mmsg::send(self.as_fd(), &send_options(how), parts, Some(segment)).map_err(|e| fault(&e))
    }

    /// See [`super::io::Io::send_each`].
    pub fn send_each(&self, how: &Send, parts: &[IoSlice<'_>]) -> (usize, Option<Fault>) {
        let (sent, error) = mmsg::send_each(self.as_fd(), &send_options(how), parts);
        (sent, error.map(|e| fault(&e)))
    }

    /// See [`super::io::Io::receive`]: one message into each of `bufs`, described in `out`, which is as long.
    ///
    /// # Errors
    /// As there.
    pub fn receive(
        &self,
        scratch: &mut Scratch,
        bufs: &mut [IoSliceMut<'_>],
        out: &mut [Received],
    ) -> Result<usize, Fault> {
        let received = scratch.receive(self.as_fd(), bufs, |number, message| {
            if let Some(slot) = out.get_mut(number) {
                *slot = Received {
                    from: Endpoint::from(message.from),
                    len: message.len,
                    segment: message.segment,
                    tos: message.tos,
                    group: message.group,
                    truncated: message.truncated,
                };
            }
        });
        received.map(|n| n.min(out.len())).map_err(|e| fault(&e))
    }

    /// See [`super::io::Io::next_error`].
    pub fn next_error(&self, payload: &mut [u8]) -> Option<Record> {
        errqueue::next(self.as_fd(), payload).ok().flatten()
    }

    /// See [`super::io::Io::clear_error`].
    pub fn clear_error(&self) {
        let _ = stream::take_error(self.as_fd());
    }

    /// See [`super::io::Io::path_mtu`].
    #[must_use]
    pub fn path_mtu(&self, ipv6: bool) -> Option<u32> {
        datagram::path_mtu(self.as_fd(), ipv6).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    const PLAIN: Send = Send {
        to: None,
        hop_limit: None,
        tos: 0,
        ipv6: false,
    };

    fn wait(socket: &Socket, what: PollFlags) -> PollFlags {
        let mut fds = [PollFd::new(socket.as_fd(), what)];
        assert_eq!(
            poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(),
            1,
            "nothing happened"
        );
        fds[0].revents().unwrap()
    }

    fn open(ipv6: bool, port: u16) -> (Socket, bool) {
        Socket::open(&Open {
            ipv6,
            source: None,
            device: None,
            scope: 0,
            port,
        })
        .unwrap()
    }

    fn server(address: &str) -> (UdpSocket, Peer) {
        let server = UdpSocket::bind(address).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let end = Endpoint::from(server.local_addr().unwrap());
        (server, Peer { end, scope: 0 })
    }

    fn receive(socket: &Socket) -> (Vec<Received>, Vec<Vec<u8>>) {
        wait(socket, PollFlags::POLLIN);
        let mut scratch = Scratch::new();
        let mut arena = vec![vec![0; 65536]; 8];
        let mut out = [Received::EMPTY; 8];
        let count = {
            let mut bufs: Vec<_> = arena.iter_mut().map(|b| IoSliceMut::new(b)).collect();
            socket.receive(&mut scratch, &mut bufs, &mut out).unwrap()
        };
        for (buf, message) in arena.iter_mut().zip(&out) {
            buf.truncate(message.len);
        }
        arena.truncate(count);
        (out[..count].to_vec(), arena)
    }

    #[test]
    fn segments_arrive_as_datagrams() {
        for (address, ipv6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let (server, peer) = server(address);
            let (socket, _) = open(ipv6, 0);
            socket.connect(Some(peer)).unwrap();
            socket.set_dont_fragment(ipv6, true);
            let data = [7_u8; 2500];
            let parts = [
                IoSlice::new(&data[..1000]),
                IoSlice::new(&data[..1000]),
                IoSlice::new(&data[..500]),
            ];
            let how = Send {
                ipv6,
                hop_limit: Some(9),
                tos: 0x28,
                ..PLAIN
            };
            socket.send_segments(&how, &parts, 1000).unwrap();
            let mut buf = [0; 3000];
            for want in [1000, 1000, 500] {
                assert_eq!(server.recv(&mut buf).unwrap(), want);
            }
            assert_eq!(socket.send_each(&how, &parts), (3, None));
            for want in [1000, 1000, 500] {
                assert_eq!(server.recv(&mut buf).unwrap(), want);
            }
        }
    }

    #[test]
    fn coalesced_receive_and_traffic_class() {
        for (address, ipv6) in [("127.0.0.1", false), ("::1", true)] {
            let (a, _) = open(ipv6, 0);
            let (b, _) = open(ipv6, 0);
            let end = |s: &Socket| Peer {
                end: Endpoint::new(
                    address.parse().unwrap(),
                    datagram::local_port(s.as_fd()).unwrap(),
                ),
                scope: 0,
            };
            a.connect(Some(end(&b))).unwrap();
            let data = [3_u8; 1200];
            let parts = [
                IoSlice::new(&data),
                IoSlice::new(&data),
                IoSlice::new(&data[..100]),
            ];
            let how = Send {
                ipv6,
                tos: 0x03,
                ..PLAIN
            };
            a.send_segments(&how, &parts, 1200).unwrap();
            let (messages, payloads) = receive(&b);
            let total: usize = messages.iter().map(|m| m.len).sum();
            assert_eq!(total, 2500);
            assert_eq!((messages[0].from, messages[0].tos), (end(&a).end, 3));
            // Loopback hands the segmented send over whole.
            assert_eq!((messages.len(), messages[0].segment), (1, 1200));
            assert!(payloads[0].iter().all(|b| *b == 3));
        }
    }

    #[test]
    fn refusal_is_in_the_error_queue_and_is_reported_once() {
        for (address, ipv6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let (gone, peer) = server(address);
            drop(gone);
            let (socket, _) = open(ipv6, 0);
            let how = Send {
                to: Some(peer),
                ipv6,
                ..PLAIN
            };
            assert_eq!(
                socket.send_each(&how, &[IoSlice::new(b"anybody?")]),
                (1, None)
            );
            assert!(wait(&socket, PollFlags::POLLIN).contains(PollFlags::POLLERR));
            let mut payload = [0; 64];
            let record = socket.next_error(&mut payload).unwrap();
            assert_eq!(record.errno, libc::ECONNREFUSED);
            assert_eq!(record.destination.map(Endpoint::from), Some(peer.end));
            assert_eq!(record.offender, Some(peer.end.ip));
            assert_eq!(&payload[..record.len], b"anybody?");
            let origin = if ipv6 {
                errqueue::Origin::Icmpv6
            } else {
                errqueue::Origin::Icmp
            };
            assert_eq!(record.origin, origin);
            assert_eq!(
                (record.message_type, record.code),
                if ipv6 { (1, 4) } else { (3, 3) }
            );
            assert_eq!(socket.next_error(&mut payload), None);
            socket.clear_error();
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 0);
        }
    }

    #[test]
    fn a_pending_error_is_met_once_and_then_the_datagram_goes() {
        let (gone, peer) = server("127.0.0.1:0");
        drop(gone);
        let (server, good) = server("127.0.0.1:0");
        let (socket, _) = open(false, 0);
        let how = |to| Send {
            to: Some(to),
            ..PLAIN
        };
        assert_eq!(socket.send_each(&how(peer), &[IoSlice::new(b"x")]).0, 1);
        wait(&socket, PollFlags::POLLIN);
        let parts = [IoSlice::new(b"1"), IoSlice::new(b"2")];
        assert_eq!(
            socket.send_each(&how(good), &parts),
            (0, Some(Fault::Errno(libc::ECONNREFUSED)))
        );
        assert_eq!(socket.send_each(&how(good), &parts), (2, None));
        let mut buf = [0; 4];
        assert_eq!(server.recv(&mut buf).unwrap(), 1);
        assert_eq!(buf[0], b'1');
    }

    #[test]
    fn too_big_names_the_mtu() {
        let (_server, peer) = server("127.0.0.1:0");
        let (socket, _) = open(false, 0);
        socket.connect(Some(peer)).unwrap();
        socket.set_dont_fragment(false, true);
        // Loopback's MTU is more than any datagram has: only a payload no packet can hold is refused.
        let huge = vec![0; 65508];
        assert_eq!(
            socket.send_each(&PLAIN, &[IoSlice::new(&huge)]),
            (0, Some(Fault::TooBig))
        );
        assert_eq!(socket.path_mtu(false), Some(65535));
        assert_eq!(
            socket.send_each(&PLAIN, &[IoSlice::new(&huge[..65507])]),
            (1, None)
        );
    }

    #[test]
    fn the_port_is_exclusive_and_survives_a_dissolved_connection() {
        let (first, peer) = server("127.0.0.1:0");
        let (second, other) = server("127.0.0.1:0");
        let port = {
            let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
            probe.local_addr().unwrap().port()
        };
        let (socket, had) = open(false, port);
        assert!(had);
        let (_another, had) = open(false, port);
        assert!(!had, "two sockets share a port");
        socket.connect(Some(peer)).unwrap();
        assert_eq!(socket.send_each(&PLAIN, &[IoSlice::new(b"1")]), (1, None));
        socket.connect(None).unwrap();
        assert_eq!(
            socket.send_each(
                &Send {
                    to: Some(other),
                    ..PLAIN
                },
                &[IoSlice::new(b"2")]
            ),
            (1, None)
        );
        let mut buf = [0; 4];
        let (_, from) = first.recv_from(&mut buf).unwrap();
        assert_eq!(from.port(), port);
        let (_, from) = second.recv_from(&mut buf).unwrap();
        assert_eq!(from.port(), port);
        // And both can answer now.
        first.send_to(b"a", from).unwrap();
        let (messages, _) = receive(&socket);
        assert_eq!(messages[0].from, peer.end);
    }

    #[test]
    fn nothing_to_receive_and_short_buffers() {
        let (socket, _) = open(false, 0);
        let mut scratch = Scratch::new();
        let mut buf = [0; 4];
        let mut out = [Received::EMPTY; 1];
        let got = socket.receive(&mut scratch, &mut [IoSliceMut::new(&mut buf)], &mut out);
        assert_eq!(got, Err(Fault::WouldBlock));
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender
            .send_to(
                b"too long",
                ("127.0.0.1", datagram::local_port(socket.as_fd()).unwrap()),
            )
            .unwrap();
        wait(&socket, PollFlags::POLLIN);
        let got = socket.receive(&mut scratch, &mut [IoSliceMut::new(&mut buf)], &mut out);
        assert_eq!(got, Ok(1));
        assert!(out[0].truncated);
    }

    #[test]
    fn groups_are_recognised() {
        let (socket, _) = open(false, 0);
        socket.enable_groups(false);
        let port = datagram::local_port(socket.as_fd()).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"you", ("127.0.0.1", port)).unwrap();
        let (messages, _) = receive(&socket);
        assert!(!messages[0].group);
        sender.set_broadcast(true).unwrap();
        sender.send_to(b"all", ("127.255.255.255", port)).unwrap();
        let (messages, _) = receive(&socket);
        assert!(messages[0].group);
    }
}
