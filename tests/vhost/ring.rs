//! The driver's side of a split virtqueue (virtio 1.2, 2.7), strict about what the device does.
//!
//! Whatever the device may not do fails the test at once: a used entry nobody offered, a length beyond the buffers,
//! a used index that jumps. What the *driver* may not do is possible through the plain accessors, for the tests that
//! want to see what happens then.

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::Memory;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A buffer of the guest: where it is in memory, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub at: usize,
    pub len: usize,
}

/// A descriptor, exactly as it is written.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.addr.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..14].copy_from_slice(&self.flags.to_le_bytes());
        out[14..].copy_from_slice(&self.next.to_le_bytes());
        out
    }
}

/// What was offered under a head and has not come back.
#[derive(Clone, Debug, Default)]
struct Offered {
    descriptors: Vec<u16>,
    writable: usize,
}

/// One queue.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    pub size: u16,
    pub desc: usize,
    pub avail: usize,
    pub used: usize,
    tables: usize,
    indirect: bool,
    event_idx: bool,
    /// Counts what was offered, as the index of the available ring does.
    pub offered: u16,
    seen: u16,
    kicked: u16,
    free: Vec<u16>,
    outstanding: Vec<Option<Offered>>,
    pub kick: EventFd,
    pub call: EventFd,
}

/// Longest chain this driver makes.
const LONGEST: usize = 32;

pub fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd")
}

impl Ring {
    pub fn new(memory: &Arc<Memory>, size: u16, indirect: bool, event_idx: bool) -> Ring {
        let n = usize::from(size);
        let mut ring = Ring {
            memory: memory.clone(),
            size,
            desc: memory.take(16 * n, 4096),
            avail: memory.take(6 + 2 * n, 4096),
            used: memory.take(6 + 8 * n, 4096),
            tables: memory.take(if indirect { 16 * LONGEST * n } else { 0 }, 16),
            indirect,
            event_idx,
            offered: 0,
            seen: 0,
            kicked: 0,
            free: Vec::new(),
            outstanding: Vec::new(),
            kick: event(),
            call: event(),
        };
        ring.reset();
        ring
    }

    /// As new: nothing offered, nothing used.
    pub fn reset(&mut self) {
        let n = usize::from(self.size);
        self.memory.write(self.desc, &vec![0; 16 * n]);
        self.memory.write(self.avail, &vec![0; 6 + 2 * n]);
        self.memory.write(self.used, &vec![0; 6 + 8 * n]);
        (self.offered, self.seen, self.kicked) = (0, 0, 0);
        self.free = (0..self.size).rev().collect();
        self.outstanding = vec![None; n];
    }

    /// The head that was offered last.
    pub fn last_head(&self) -> u16 {
        let slot = usize::from(self.offered.wrapping_sub(1) % self.size);
        self.memory.load16(self.avail + 4 + 2 * slot)
    }

    /// The name that messages give to a place of this ring.
    pub fn memory_user(&self, at: usize) -> u64 {
        self.memory.user(at)
    }

    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Writes a descriptor of the table.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        let at = self.desc + 16 * usize::from(index);
        self.memory.write(at, &descriptor.bytes());
    }

    /// Puts `head` into the available ring without saying so yet.
    pub fn line_up(&mut self, head: u16) {
        let slot = usize::from(self.offered % self.size);
        self.memory.store16(self.avail + 4 + 2 * slot, head);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Says how far the available ring is filled.
    pub fn publish(&self) {
        self.memory.store16(self.avail + 2, self.offered);
    }

    pub fn set_available(&self, index: u16) {
        self.memory.store16(self.avail + 2, index);
    }

    /// Offers a chain of buffers; false if the ring has no room.
    pub fn offer(&mut self, readable: &[Buffer], writable: &[Buffer]) -> bool {
        let total = readable.len() + writable.len();
        assert!((1..=LONGEST).contains(&total), "a chain of {total}");
        let flags = |i: usize| {
            let more = if i + 1 < total { NEXT } else { 0 };
            more | if i < readable.len() { 0 } else { WRITE }
        };
        let buffers = readable.iter().chain(writable).enumerate();
        let mut offered = Offered {
            descriptors: Vec::new(),
            writable: writable.iter().map(|b| b.len).sum(),
        };
        if self.indirect && total > 1 {
            let Some(head) = self.free.pop() else {
                return false;
            };
            let table = self.tables + 16 * LONGEST * usize::from(head);
            for (i, buffer) in buffers {
                let d = self.of(*buffer, flags(i), i + 1);
                self.memory.write(table + 16 * i, &d.bytes());
            }
            let whole = Buffer {
                at: table,
                len: 16 * total,
            };
            self.describe(head, self.of(whole, INDIRECT, 0));
            offered.descriptors.push(head);
        } else {
            if self.free.len() < total {
                return false;
            }
            let mine = self.free.split_off(self.free.len() - total);
            for (i, buffer) in buffers {
                let next = mine.get(i + 1).copied().unwrap_or(0);
                let d = self.of(*buffer, flags(i), usize::from(next));
                self.describe(mine[i], d);
            }
            offered.descriptors = mine;
        }
        let head = offered.descriptors[0];
        self.outstanding[usize::from(head)] = Some(offered);
        self.line_up(head);
        self.publish();
        true
    }

    fn of(&self, buffer: Buffer, flags: u16, next: usize) -> Descriptor {
        Descriptor {
            addr: self.memory.physical(buffer.at),
            len: u32::try_from(buffer.len).expect("a buffer"),
            flags,
            next: u16::try_from(next).expect("an index"),
        }
    }

    /// Takes back one chain: the head it was offered under, how many bytes were written, its descriptors.
    pub fn take(&mut self) -> Option<(u16, usize, Vec<u16>)> {
        let index = self.memory.load16(self.used + 2);
        let ahead = index.wrapping_sub(self.seen);
        let out = self.offered.wrapping_sub(self.seen);
        assert!(
            ahead <= out,
            "{out} offered, but the device has used {ahead}"
        );
        if ahead == 0 {
            return None;
        }
        let at = self.used + 4 + 8 * usize::from(self.seen % self.size);
        let (id, len) = (self.memory.load32(at), self.memory.load32(at + 4));
        let offered = usize::try_from(id)
            .ok()
            .and_then(|i| self.outstanding.get_mut(i)?.take())
            .unwrap_or_else(|| panic!("used: {id}, which is not on offer"));
        let len = usize::try_from(len).expect("a length");
        assert!(
            len <= offered.writable,
            "{len} bytes written into room for {}",
            offered.writable
        );
        self.seen = self.seen.wrapping_add(1);
        let head = u16::try_from(id).expect("checked");
        self.free.extend(&offered.descriptors);
        Some((head, len, offered.descriptors))
    }

    /// Asks to be called at the next used chain; true if there already is one.
    pub fn arm(&self) -> bool {
        if self.event_idx {
            let at = self.avail + 4 + 2 * usize::from(self.size);
            self.memory.store16(at, self.seen);
        } else {
            self.memory.store16(self.avail, 0);
        }
        self.memory.load16(self.used + 2) != self.seen
    }

    /// Asks not to be called.
    pub fn hush(&self) {
        if !self.event_idx {
            self.memory.store16(self.avail, 1);
        }
    }

    /// Tells the device about what has been offered, if it wants to be told.
    pub fn notify(&mut self) {
        let (old, new) = (self.kicked, self.offered);
        self.kicked = new;
        let wanted = if self.event_idx {
            let event = self
                .memory
                .load16(self.used + 4 + 8 * usize::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.load16(self.used) & 1 == 0
        };
        if wanted && old != new {
            self.kick.write(1).expect("an eventfd");
        }
    }
}
