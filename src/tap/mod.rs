//! The guest side: whole Ethernet frames in and out, with the offloads the link has.
//!
//! [`Tap`] is matched once per batch or frame, never per byte, and the protocol engines do not know
//! which kind it is: they ask how large a frame may be and whether checksums can stay partial.
//! Frames move between the kernel and two buffers allocated at start: [`batch::Inbound`] holds what one
//! wake-up read, [`frame::FrameBuf`] the one frame being built. A frame that the link does not take is
//! dropped and counted; no queue is kept here, because every queue that matters is in a kernel: what a stream
//! socket has taken only in part is kept, and what is gathered to save calls leaves before the round is over.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod batch;
pub mod frame;
pub mod framing;
pub mod segment;
pub mod stream;
pub mod tun;
pub mod vhost_user;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

use self::batch::Inbound;
use self::frame::FrameBuf;
use self::stream::Stream;
use self::tun::Tun;
use self::vhost_user::VhostUser;

/// Frames the link keeps for us between two reads: what `launcher::confignet` sets the tap to.
pub const QUEUE_LENGTH: u32 = 4096;

/// Pairs of rings a guest can have.
const MAX_PAIRS: u16 = 8;

/// What the link does for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// TCP super-frames over IPv4 and IPv6, and partial checksums.
    pub tso: bool,
    /// UDP super-frames.
    pub uso: bool,
}

/// What a [`Tap::receive`] did besides filling the batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Received {
    /// Frames the link lost because it could not describe them.
    pub odd: usize,
    /// There may be more, and no event will say so.
    pub more: bool,
}

/// Why there is nobody at the other end any more. The words follow "guest's connection".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Gone {
    /// End of file.
    #[error("closed")]
    Closed,
    /// It sent what it must not.
    #[error("dropped: {0}")]
    Malformed(&'static str),
    /// A call failed.
    #[error("lost: {}", .0.desc())]
    Failed(Errno),
}

impl From<Errno> for Gone {
    fn from(e: Errno) -> Self {
        Self::Failed(e)
    }
}

/// What news from the connection of a link meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connection {
    /// There are frames to [`Tap::receive`].
    Frames,
    /// It has been seen to.
    Quiet,
}

/// What a descriptor of a link, other than its connection, stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The guest has put something into this ring, by its number: even ones lead to the guest, odd ones come from it.
    Kick(u16),
}

/// Who waits for descriptors.
pub trait Watch {
    /// Report whenever `fd` is signalled, once each time; nobody reads it.
    ///
    /// # Errors
    /// epoll_ctl(2).
    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()>;

    /// No longer. To be called before `fd` is closed: others may have the same file open, and then closing alone does
    /// not end the watch.
    fn unwatch(&self, fd: BorrowedFd<'_>);
}

/// A link to the guest.
#[derive(Debug)]
pub enum Tap {
    /// A kernel tap device with virtio-net headers.
    Tun(Tun),
    /// A UNIX stream socket with complete frames on it.
    Stream(Stream),
    /// Rings in memory that is shared with the guest.
    VhostUser(Box<VhostUser>),
    /// None at all (`--splice-only`): nothing comes from it, and it takes nothing.
    Off,
}

impl Tap {
    /// A link over a UNIX stream socket, with nobody at the other end yet.
    #[must_use]
    pub fn for_socket(vhost_user: bool) -> Self {
        if vhost_user {
            return Self::VhostUser(Box::new(VhostUser::new(MAX_PAIRS)));
        }
        Self::Stream(Stream::new())
    }

    /// Somebody wants to look at all bytes of all frames: none may come in pieces.
    pub fn keep_whole(&mut self) {
        match self {
            Self::VhostUser(v) => v.keep_whole(),
            Self::Tun(_) | Self::Stream(_) | Self::Off => {}
        }
    }

    /// What the link does for us.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        match self {
            Self::Tun(t) => t.offloads(),
            Self::Stream(_) => Stream::offloads(),
            Self::VhostUser(_) => VhostUser::offloads(),
            Self::Off => Offloads::default(),
        }
    }

    /// Read frames until there are none, the batch is full, or its byte budget is spent.
    ///
    /// # Errors
    /// The device, or whoever was connected, is gone.
    pub fn receive(&mut self, batch: &mut Inbound) -> Result<Received, Gone> {
        match self {
            Self::Tun(t) => t.receive(batch),
            Self::Stream(s) => s.receive(batch),
            Self::VhostUser(v) => v.receive(batch),
            Self::Off => Ok(Received::default()),
        }
    }

    /// The engines are done with the frames of a batch: whatever the link lent is given back.
    pub fn release(&mut self, batch: &mut Inbound) {
        match self {
            Self::VhostUser(v) => v.release(batch),
            Self::Tun(_) | Self::Stream(_) | Self::Off => batch.clear(),
        }
    }

    /// Hand one frame to the guest. The caller counts a refusal as a drop.
    ///
    /// # Errors
    /// The link's queue is full ([`io::ErrorKind::WouldBlock`]) or it refuses the frame.
    pub fn send(&mut self, frame: &FrameBuf) -> io::Result<()> {
        match self {
            Self::Tun(t) => t.send(frame),
            Self::Stream(s) => s.send(frame),
            Self::VhostUser(v) => v.send(frame),
            Self::Off => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The descriptor to wait on: the device, or the connection while there is one.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tun(t) => Some(t.as_fd()),
            Self::Stream(s) => s.as_fd(),
            Self::VhostUser(v) => v.as_fd(),
            Self::Off => None,
        }
    }

    /// There is somebody at the other end, ready to be sent frames.
    #[must_use]
    pub fn is_up(&self) -> bool {
        match self {
            Self::VhostUser(v) => v.is_usable(),
            Self::Tun(_) | Self::Stream(_) | Self::Off => self.as_fd().is_some(),
        }
    }

    /// Nothing can be sent now; when something can, the link [`Self::is_up`] again, or the descriptor has room.
    #[must_use]
    pub fn tells_of_room(&self) -> bool {
        match self {
            Self::Stream(_) | Self::VhostUser(_) => self.blocked() || !self.is_up(),
            Self::Tun(_) | Self::Off => false,
        }
    }

    /// [`Self::receive`] has an error to tell, and no event will say so.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        match self {
            Self::VhostUser(v) => v.is_broken(),
            Self::Tun(_) | Self::Stream(_) | Self::Off => false,
        }
    }

    /// Somebody has connected; there is nobody yet.
    ///
    /// # Errors
    /// It cannot be served.
    pub fn connect(&mut self, client: OwnedFd) -> Result<(), Gone> {
        match self {
            Self::Stream(s) => {
                s.connect(client);
                Ok(())
            }
            Self::VhostUser(v) => {
                v.connect(client);
                Ok(())
            }
            // Nobody connects to these.
            Self::Tun(_) | Self::Off => Err(Gone::Closed),
        }
    }

    /// Let go of the connection and of everything that came by it.
    pub fn disconnect(&mut self, watch: &dyn Watch) {
        match self {
            Self::Stream(s) => s.disconnect(),
            Self::VhostUser(v) => v.disconnect(watch),
            Self::Tun(_) | Self::Off => {}
        }
    }

    /// The descriptor has something to read.
    ///
    /// # Errors
    /// Whoever was connected is gone.
    pub fn on_connection(&mut self, watch: &dyn Watch) -> Result<Connection, Gone> {
        match self {
            Self::Tun(_) | Self::Stream(_) => Ok(Connection::Frames),
            Self::VhostUser(v) => v.on_message(watch),
            Self::Off => Ok(Connection::Quiet),
        }
    }

    /// The descriptor has room again, after [`Self::blocked`].
    pub fn on_writable(&mut self) {
        match self {
            Self::Stream(s) => s.on_writable(),
            Self::Tun(_) | Self::VhostUser(_) | Self::Off => {}
        }
    }

    /// Nothing can be sent until the descriptor has room.
    #[must_use]
    pub fn blocked(&self) -> bool {
        match self {
            Self::Stream(s) => s.blocked(),
            Self::Tun(_) | Self::VhostUser(_) | Self::Off => false,
        }
    }

    /// Everything to be said in this round has been: what was gathered goes now, and the guest is told of it.
    pub fn flush(&mut self) {
        match self {
            Self::Stream(s) => s.flush(),
            Self::VhostUser(v) => v.flush(),
            Self::Tun(_) | Self::Off => {}
        }
    }
}
