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
