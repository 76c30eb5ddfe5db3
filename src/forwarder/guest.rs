//! Who is at the other end of a socket: one client at a time, and what its coming and going means.
//!
//! A virtual machine monitor connects to a socket we listen on, or is connected from the start (`--fd`). While it is
//! there, a second one is accepted and closed at once. When it goes, connections stay, as they do when a cable is
//! pulled: if the same guest comes back they go on, and another guest resets them. Where the
//! guest is, and which addresses it uses, is forgotten; the next one is to be learned about anew. With `--one-off`, and with
//! `--fd`, its going is the end of everything.
//!
//! What must never happen: an end, a stall or a busy loop because of anything a client sends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::ForwarderError;
use super::accept;
use super::token::Token;
use super::worker::Worker;
use crate::addr::Mac;
use crate::clock::Instant;
use crate::flow::translate::Seen;
use crate::log::RateLimit;
use crate::sys::unix;
use crate::tap::{Connection, Gone, Source, Tap, Watch};

/// Descriptors kept back for those that come with messages of a frontend: as many as one message brings.
const RESERVE: usize = 8;
/// Comings, goings and refusals told in a second.
const LINES: u32 = 10;

/// The socket the guest comes by.
#[derive(Debug)]
pub(super) struct Guest {
    /// Where clients connect; `None`: the only one was there from the start, or there is no socket at all.
    listener: Option<OwnedFd>,
    /// The first client is the last.
    one_off: bool,
    /// The connection is watched for room to write.
    awaits_room: bool,
    /// Somebody has come, and has not been asked yet where it is.
    unasked: bool,
    /// The link was up at the end of the last round.
    up: bool,
    /// See [`Worker::keep_reserve`].
    reserve: ArrayVec<OwnedFd, RESERVE>,
    lines: RateLimit,
}

/// What goes on after an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum After {
    /// Everything.
    Next,
    /// Nothing: the only guest is gone.
    End,
}

impl Guest {
    pub(super) fn new(listener: Option<OwnedFd>, one_off: bool) -> Self {
        Self {
            listener,
            one_off,
            awaits_room: false,
            unasked: false,
            up: false,
            reserve: ArrayVec::new(),
            lines: RateLimit::new(LINES),
        }
    }

    /// Where clients connect.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }
}

impl Watch for Epoll {
    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> std::io::Result<()> {
        let Source::Kick(ring) = source;
        let what = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let event = EpollEvent::new(what, Token::Kick(ring).to_raw());
        self.add(fd, event).map_err(Into::into)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        // Only what was never watched cannot be let go of.
        let _ = self.delete(fd);
    }
}

impl Worker {
    /// Somebody connects.
    pub(super) fn on_caller(&mut self, now: Instant) {
        let Some(listener) = &self.guest.listener else {
            return;
        };
        // Watched level-triggered: more of them are reported again.
        let mut client = unix::accept(listener.as_fd());
        if client.is_err() {
            // Most likely out of descriptors. Leaving it in the queue would be a busy loop.
            self.spare = None;
            client = unix::accept(listener.as_fd());
        }
        if let Ok(Some(client)) = client {
            self.called(now, client);
        }
        if self.spare.is_none() {
            self.spare = accept::spare();
        }
    }

    /// Serve or refuse somebody who has connected.
    fn called(&mut self, now: Instant, client: OwnedFd) {
        let tell = self.guest.lines.admit(now).is_some();
        if self.host.link.tap.as_fd().is_some() {
            if tell {
                log::warn!("Another client was refused: one is connected already");
            }
            return;
        }
        match self.connect(client) {
            Ok(()) if tell => log::info!("Client connected"),
            Ok(()) => {}
            Err(gone) => log::error!("The client's connection was {gone}"),
        }
    }

    /// From now on `client`, which does not block, is the guest.
    pub(super) fn connect(&mut self, client: OwnedFd) -> Result<(), Gone> {
        let tap = &mut self.host.link.tap;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Tap.to_raw());
        self.host.epoll.add(&client, event)?;
        self.guest.awaits_room = false;
        self.guest.unasked = true;
        tap.connect(client)
    }

    /// Ask a new guest where it is, as soon as it can be asked: it may be there for others to connect to, and have nothing
    /// to say itself.
    pub(super) fn greet(&mut self) {
        if self.guest.unasked && self.host.link.tap.is_up() {
            self.guest.unasked = false;
            self.host.look_for_guest();
        }
    }

    /// The link has news.
    pub(super) fn on_link(
        &mut self,
        now: Instant,
        what: EpollFlags,
    ) -> Result<After, ForwarderError> {
        if what.contains(EpollFlags::EPOLLOUT) {
            self.host.link.tap.on_writable();
            if !self.host.link.tap.blocked() {
                self.tcp.on_room(&mut self.host, now);
            }
        }
        if !what.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return Ok(After::Next);
        }
        // Whatever comes with a message has to be taken at once, or it is lost.
        self.guest.reserve.clear();
        let news = self.host.link.tap.on_connection(&self.host.epoll);
        self.keep_reserve();
        let done = match news {
            Ok(Connection::Frames) => self.on_tap(now),
            Ok(Connection::Quiet) => Ok(()),
            Err(gone) => Err(gone),
        };
        self.unless_gone(now, done)
    }

    /// See to it that a frontend can be heard even if connections take all descriptors there are.
    pub(super) fn keep_reserve(&mut self) {
        if !matches!(self.host.link.tap, Tap::VhostUser(_)) {
            return;
        }
        while !self.guest.reserve.is_full() {
            let Some(fd) = accept::spare() else { return };
            self.guest.reserve.push(fd);
        }
    }

    /// The guest has put something into a ring.
    pub(super) fn on_kick(&mut self, now: Instant, ring: u16) -> Result<After, ForwarderError> {
        if ring % 2 == 0 {
            self.tcp.on_room(&mut self.host, now);
            return Ok(After::Next);
        }
        let done = self.on_tap(now);
        self.unless_gone(now, done)
    }

    /// Frames may be there though nothing says so.
    pub(super) fn look_again(&mut self, now: Instant) -> Result<After, ForwarderError> {
        if !self.more {
            return Ok(After::Next);
        }
        let done = self.on_tap(now);
        self.unless_gone(now, done)
    }

    fn unless_gone(
        &mut self,
        now: Instant,
        done: Result<(), Gone>,
    ) -> Result<After, ForwarderError> {
        let Err(gone) = done else {
            return Ok(After::Next);
        };
        if matches!(self.host.link.tap, Tap::Tun(_)) {
            return Err(ForwarderError::Tap(gone));
        }
        if let Some(fd) = self.host.link.tap.as_fd() {
            self.host.epoll.unwatch(fd);
        }
        self.host.link.tap.disconnect(&self.host.epoll);
        self.more = false;
        self.host.seen = Seen::default();
        self.host.guest_mac = Mac::BROADCAST;
        let end = self.guest.one_off;
        if end || self.guest.lines.admit(now).is_some() {
            let next = if end { ", exiting" } else { "" };
            log::info!("The guest's connection was {gone}{next}");
        }
        Ok(if end { After::End } else { After::Next })
    }

    /// Everything for the guest has been said in this round.
    pub(super) fn flush_link(&mut self, now: Instant) {
        self.greet();
        let up = self.host.link.tap.is_up();
        if up && !self.guest.up {
            self.tcp.on_room(&mut self.host, now);
        }
        self.guest.up = up;
        let tap = &mut self.host.link.tap;
        tap.flush();
        // A guest that says nothing would never be told.
        self.more |= tap.is_broken();
        let blocked = tap.blocked();
        if blocked == self.guest.awaits_room {
            return;
        }
        let Some(fd) = tap.as_fd() else { return };
        let mut what = EpollFlags::EPOLLIN;
        if blocked {
            what |= EpollFlags::EPOLLOUT;
        }
        let mut event = EpollEvent::new(what, Token::Tap.to_raw());
        if self.host.epoll.modify(fd, &mut event).is_ok() {
            self.guest.awaits_room = blocked;
        }
    }
}
