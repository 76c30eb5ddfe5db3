//! The guest side: whole Ethernet frames in and out, with the offloads the link has.
//!
//! [`Tap`] is matched once per batch or frame, never per byte, and the protocol engines do not know
//! which kind it is: they ask how large a frame may be and whether checksums can stay partial.
//! Frames move between the kernel and two buffers allocated at start: [`batch::Inbound`] holds what one
//! wake-up read, [`frame::FrameBuf`] the one frame being built. A frame that the link does not take is
//! dropped and counted; nothing is ever queued here, because every queue that matters is in a kernel.

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
pub mod segment;
pub mod tun;

use std::io;
use std::os::fd::BorrowedFd;

use self::batch::Inbound;
use self::frame::FrameBuf;
use self::tun::Tun;

/// Frames the link keeps for us between two reads: what `launcher::confignet` sets the tap to.
pub const QUEUE_LENGTH: u32 = 4096;

/// What the link does for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// TCP super-frames over IPv4 and IPv6, and partial checksums.
    pub tso: bool,
    /// UDP super-frames.
    pub uso: bool,
}

/// A link to the guest.
#[derive(Debug)]
pub enum Tap {
    /// A kernel tap device with virtio-net headers.
    Tun(Tun),
    /// None at all (`--splice-only`): nothing comes from it, and it takes nothing.
    Off,
}

impl Tap {
    /// What the link does for us.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        match self {
            Self::Tun(t) => t.offloads(),
            Self::Off => Offloads::default(),
        }
    }

    /// Read frames until there are none, the batch is full, or its byte budget is spent; how many frames the
    /// link lost because it could not describe them.
    ///
    /// # Errors
    /// Whatever read(2) says other than "try again": the device is gone.
    pub fn receive(&mut self, batch: &mut Inbound) -> io::Result<usize> {
        match self {
            Self::Tun(t) => t.receive(batch),
            Self::Off => Ok(0),
        }
    }

    /// Hand one frame to the guest. The caller counts a refusal as a drop.
    ///
    /// # Errors
    /// The link's queue is full ([`io::ErrorKind::WouldBlock`]) or it refuses the frame.
    pub fn send(&mut self, frame: &FrameBuf) -> io::Result<()> {
        match self {
            Self::Tun(t) => t.send(frame),
            Self::Off => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The descriptor to wait on.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tun(t) => Some(t.as_fd()),
            Self::Off => None,
        }
    }
}
