//! Frames read from the guest in one wake-up.
//!
//! One arena, filled from the front: small frames lie next to each other instead of 64 KiB apart, so
//! a batch of acknowledgements touches a few cache lines. The payload of a frame is sent to a socket
//! straight from here; nothing refers to the arena once the batch has been handled.
//!
//! Of a large frame in the guest's own memory only the head is here, copied once so that it cannot change any more; the
//! rest is named by [`Piece`]s and goes from there to the socket. The batch keeps that memory mapped
//! until it is cleared.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::sys::piece::Piece;

/// Most frames in one batch: more than a stream socket holds of 1500 bytes each, so that what was read at once is sent
/// at once.
pub const MAX_FRAMES: usize = 128;
/// Largest frame with its virtio-net header: 10 + 14 + 65535, rounded up to cache lines.
pub const SLOT: usize = 65_600;
/// Stop reading once so many bytes are in the batch: what was read should still be in the cache when
/// it is sent.
pub const BYTE_BUDGET: usize = 1 << 20;

/// Most pieces of all frames together.
const MAX_PIECES: usize = 2048;
const ARENA: usize = BYTE_BUDGET + SLOT;
const ALIGN: usize = 64;

/// What the virtio-net header said about a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// The transport checksum is not there yet or was verified by the kernel: nothing to check.
    pub checksum_settled: bool,
    /// Payload bytes per segment of a super-frame; `None`: an ordinary frame.
    pub gso_size: Option<u16>,
}

/// A frame of the batch.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// From the Ethernet header on: all of it, or its head.
    pub bytes: &'a [u8],
    /// What follows `bytes`. If there is anything, the frame is TCP, `bytes` has all headers, and the checksum is settled.
    pub rest: &'a [Piece<'a>],
    /// What the link said about it.
    pub meta: Meta,
}

impl Frame<'_> {
    /// Length of the whole frame in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rest.iter().fold(self.bytes.len(), |sum, piece| {
            sum.saturating_add(piece.len())
        })
    }

    /// No bytes?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    start: usize,
    len: usize,
    /// Its pieces: the first, and how many.
    pieces: (usize, usize),
    meta: Meta,
}

/// The arena and what is in it.
#[derive(Debug)]
pub struct Inbound {
    arena: Box<[u8]>,
    used: usize,
    frames: ArrayVec<Slot, MAX_FRAMES>,
    pieces: Vec<Piece<'static>>,
    /// What the pieces are in.
    memory: Option<Arc<dyn Any>>,
}

impl Inbound {
    /// An empty batch; its pages are not touched before they are used.
    #[must_use]
    pub fn new() -> Self {
        Self {
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            frames: ArrayVec::new(),
            pieces: Vec::with_capacity(MAX_PIECES),
            memory: None,
        }
    }

    /// Forget all frames.
    pub fn clear(&mut self) {
        self.used = 0;
        self.frames.clear();
        self.pieces.clear();
        self.memory = None;
    }

    /// Room for one more frame of any size, or `None` when the batch is full.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        if self.frames.is_full() {
            return None;
        }
        self.arena.get_mut(self.used..)?.get_mut(..SLOT)
    }

    /// Take what was just written to [`Self::room`]: the frame is `len` bytes from `skip` on.
    pub fn commit(&mut self, skip: usize, len: usize, meta: Meta) {
        self.commit_head(skip, len, &[], meta);
    }

    /// The same for the head of a frame whose other bytes are `rest`, in memory the batch was told to [`Self::hold`].
    /// `false`: it has no room for them, and does not take the frame.
    pub fn commit_head(
        &mut self,
        skip: usize,
        len: usize,
        rest: &[Piece<'static>],
        meta: Meta,
    ) -> bool {
        let start = self.used.saturating_add(skip);
        let end = start.saturating_add(len);
        let first = self.pieces.len();
        if rest.len() > MAX_PIECES.saturating_sub(first) || self.frames.is_full() {
            return false;
        }
        self.pieces.extend_from_slice(rest);
        self.frames.push(Slot {
            start,
            len,
            pieces: (first, rest.len()),
            meta,
        });
        self.used = end.next_multiple_of(ALIGN);
        true
    }

    /// Keep `memory` until the batch is cleared: pieces of it follow.
    pub fn hold(&mut self, memory: Arc<dyn Any>) {
        self.memory = Some(memory);
    }

    /// All the space there is, for a link that reads many frames at once and knows itself what of it is in use; then
    /// [`Self::place`] says where the frames are. Such a link never calls [`Self::room`].
    pub fn arena(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// A frame lies here in [`Self::arena`], and stays there until the batch is cleared. `false`: the batch is full.
    pub fn place(&mut self, at: &Range<usize>, meta: Meta) -> bool {
        let (start, len) = (at.start, at.len());
        let pieces = (0, 0);
        let slot = Slot {
            start,
            len,
            pieces,
            meta,
        };
        self.frames.try_push(slot).is_ok()
    }

    /// How many frames there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// No frames?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frames, in the order they were read.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.frames.iter().filter_map(|s| {
            let (first, count) = s.pieces;
            Some(Frame {
                bytes: self.arena.get(s.start..)?.get(..s.len)?,
                rest: self.pieces.get(first..)?.get(..count)?,
                meta: s.meta,
            })
        })
    }
}

impl Default for Inbound {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_whole_and_in_order() {
        let mut b = Inbound::new();
        for i in 0..3_u8 {
            let room = b.room().unwrap();
            room[..20].fill(i);
            b.commit(
                10,
                10,
                Meta {
                    checksum_settled: i == 1,
                    gso_size: None,
                },
            );
        }
        let got: Vec<_> = b
            .frames()
            .map(|f| (f.bytes.to_vec(), f.meta.checksum_settled))
            .collect();
        assert_eq!(
            got,
            [
                (vec![0; 10], false),
                (vec![1; 10], true),
                (vec![2; 10], false)
            ]
        );
        b.clear();
        assert!(b.is_empty());
    }

    #[test]
    fn a_full_batch_has_no_room() {
        let mut b = Inbound::new();
        let mut n = 0;
        while b.room().is_some() {
            b.commit(0, 60, Meta::default());
            n += 1;
        }
        assert_eq!(n, MAX_FRAMES);

        b.clear();
        let mut bytes = 0;
        while let Some(room) = b.room() {
            assert_eq!(room.len(), SLOT);
            b.commit(0, SLOT, Meta::default());
            bytes += SLOT;
        }
        assert!(bytes >= BYTE_BUDGET, "{bytes}");
    }
}
