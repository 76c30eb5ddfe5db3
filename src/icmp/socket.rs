//! The kernel's half of [`super::io::Io`]: everything but the epoll set and the frames.

use std::io::{IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::io::Reply;
use crate::sys::datagram;
use crate::sys::errqueue::{self, Record};
use crate::sys::mmsg::{self, Scratch};
use crate::sys::stream;
use crate::udp::io::{Fault, Open, Peer, Send};
use crate::udp::socket::{fault, options, send_options};

/// A ping socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// See [`super::io::Io::open`]; registering is left to the caller.
    ///
    /// # Errors
    /// As there.
    pub fn open(open: &Open<'_>) -> Result<(Self, u16), Fault> {
        let (fd, ident) = datagram::open_ping(&options(open)).map_err(|e| fault(&e))?;
        Ok((Self(fd), ident))
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

    /// See [`super::io::Io::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&self, to: Peer, how: &Send, message: &[u8]) -> Result<(), Fault> {
        let how = Send {
            to: Some(to),
            ..*how
        };
        let parts = [IoSlice::new(message)];
        mmsg::send(self.as_fd(), &send_options(&how), &parts, None).map_err(|e| fault(&e))
    }

    /// See [`super::io::Io::receive`].
    ///
    /// # Errors
    /// As there; a message that did not fit comes with the length of what did.
    pub fn receive(&self, scratch: &mut Scratch, buf: &mut [u8]) -> Result<Reply, Fault> {
        let mut reply = None;
        let received = scratch.receive(self.as_fd(), &mut [IoSliceMut::new(buf)], |_, message| {
            let from: IpAddr = message.from.ip();
            reply = Some(Reply {
                from,
                len: message.len,
                tos: message.tos,
            });
        });
        received.map_err(|e| fault(&e))?;
        reply.ok_or(Fault::WouldBlock)
    }

    /// See [`super::io::Io::next_error`].
    pub fn next_error(&self, payload: &mut [u8]) -> Option<Record> {
        errqueue::next(self.as_fd(), payload).ok().flatten()
    }

    /// See [`super::io::Io::clear_error`].
    pub fn clear_error(&self) {
        let _ = stream::take_error(self.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::addr::Endpoint;

    fn echo(seq: u8) -> Vec<u8> {
        let mut message = vec![8, 0, 0, 0, 0, 0, 0, seq];
        message.extend([0x55; 3000]);
        message
    }

    /// Needs a ping_group_range that includes the tester: where it does not, the kernel must say so.
    #[test]
    fn loopback_answers_with_our_identifier() {
        for (address, ipv6) in [("127.0.0.1", false), ("::1", true)] {
            let open = Open {
                ipv6,
                source: None,
                device: None,
                scope: 0,
                port: 54_321,
            };
            let (socket, ident) = match Socket::open(&open) {
                Err(fault) => {
                    assert_eq!(fault, Fault::Errno(libc::EACCES));
                    continue;
                }
                Ok(opened) => opened,
            };
            assert_eq!(ident, 54_321);
            let (_second, other) = Socket::open(&open).unwrap();
            assert_ne!(other, ident);
            let to = Peer {
                end: Endpoint::new(address.parse().unwrap(), 0),
                scope: 0,
            };
            let how = Send {
                to: None,
                hop_limit: Some(3),
                tos: 0,
                ipv6,
            };
            let mut request = echo(7);
            request[0] = if ipv6 { 128 } else { 8 };
            socket.set_dont_fragment(ipv6, false);
            socket.send(to, &how, &request).unwrap();
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(), 1);
            let mut buf = vec![0; 65_536];
            let reply = socket.receive(&mut Scratch::new(), &mut buf).unwrap();
            assert_eq!((reply.from, reply.len), (to.end.ip, request.len()));
            assert_eq!(buf[0], if ipv6 { 129 } else { 0 });
            assert_eq!(buf[4..6], 54_321_u16.to_be_bytes());
            assert_eq!(buf[6..reply.len], request[6..]);
        }
    }
}
