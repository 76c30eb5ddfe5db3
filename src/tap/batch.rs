//! Frames read from the guest in one wake-up.
//!
//! One arena, filled from the front: small frames lie next to each other instead of 64 KiB apart, so
//! a batch of acknowledgements touches a few cache lines. The payload of a frame is sent to a socket
//! straight from here; nothing refers to the arena once the batch has been handled.

use arrayvec::ArrayVec;

/// Most frames in one batch.
pub const MAX_FRAMES: usize = 64;
/// Largest frame with its virtio-net header: 10 + 14 + 65535, rounded up to cache lines.
pub const SLOT: usize = 65_600;
/// Stop reading once so many bytes are in the batch: what was read should still be in the cache when
/// it is sent.
pub const BYTE_BUDGET: usize = 1 << 20;

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

#[derive(Clone, Copy, Debug)]
struct Slot {
    start: usize,
    len: usize,
    meta: Meta,
}

/// The arena and what is in it.
#[derive(Debug)]
pub struct Inbound {
    arena: Box<[u8]>,
    used: usize,
    frames: ArrayVec<Slot, MAX_FRAMES>,
}

impl Inbound {
    /// An empty batch; its pages are not touched before they are used.
    #[must_use]
    pub fn new() -> Self {
        Self {
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            frames: ArrayVec::new(),
        }
    }

    /// Forget all frames.
    pub fn clear(&mut self) {
        self.used = 0;
        self.frames.clear();
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
        let start = self.used.saturating_add(skip);
        let end = start.saturating_add(len);
        if self.frames.try_push(Slot { start, len, meta }).is_ok() {
            self.used = end.next_multiple_of(ALIGN);
        }
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

    /// The frames, from the Ethernet header on, in the order they were read.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Meta)> {
        self.frames.iter().filter_map(|s| {
            let frame = self.arena.get(s.start..)?.get(..s.len)?;
            Some((frame, s.meta))
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
            .iter()
            .map(|(f, m)| (f.to_vec(), m.checksum_settled))
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
