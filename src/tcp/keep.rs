//! Guest bytes the host's socket has not taken yet: what a partial send left over, and what arrived out of order.
//!
//! One pool of [`CHUNK`]-sized pieces serves all connections. A connection with something to keep has a
//! [`Kept`] handle on a *store*: a list of chunks in sequence order and a sorted list of the byte ranges in them
//! that are valid. A byte with sequence number `s` lives in the chunk with base `s & !(CHUNK - 1)`, so data can be
//! put anywhere in any order without moving what is there, and becoming "in order" is not a copy but a statement
//! about ranges.
//!
//! Bounds: the pool is reserved at construction (untouched pages cost nothing) and never grows; a store may take at
//! most half of what is free (so many connections share fairly, and the last one still gets something), and at
//! most [`STORE_CHUNKS`]; it tracks at most [`RANGES`] ranges. What does not fit is refused, and the caller leaves
//! it to the guest to send again.
//!
//! Invariants: ranges are sorted, disjoint and not adjacent; every byte of a range has a chunk; chunks that no
//! range touches are free.

use crate::sys::piece::Piece;
use crate::wire::tcp::{SackBlocks, Seq};

/// Bytes in a chunk; a power of two.
pub const CHUNK: u32 = 1 << 16;
/// Most chunks in one store: 4 MiB.
const STORE_CHUNKS: usize = 64;
/// Most ranges in one store. The last one is reserved for data that is in order.
const RANGES: usize = 24;
/// Most connections with a store at a time.
const STORES: usize = 1024;
const NONE: u16 = u16::MAX;

/// A connection's handle on what is kept for it. [`Pool::clear`] must be called before it goes out of scope.
#[derive(Debug)]
pub struct Kept(u16);

impl Kept {
    /// Nothing kept.
    pub const NONE: Self = Self(NONE);

    /// Nothing kept?
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.0 == NONE
    }
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    base: Seq,
    next: u16,
}

#[derive(Debug)]
struct Store {
    first: u16,
    chunks: usize,
    ranges: [(Seq, Seq); RANGES],
    len: usize,
    /// A byte of the range that grew last: it leads the SACK option (RFC 2018 section 4).
    recent: Seq,
}

const EMPTY: Store = Store {
    first: NONE,
    chunks: 0,
    ranges: [(Seq(0), Seq(0)); RANGES],
    len: 0,
    recent: Seq(0),
};

/// See the module text.
#[derive(Debug)]
pub struct Pool {
    memory: Vec<u8>,
    chunks: Vec<Chunk>,
    free: Vec<u16>,
    stores: Vec<Store>,
    free_stores: Vec<u16>,
}

impl Pool {
    /// Room for `bytes` (at most 4 GiB minus one chunk; rounded down to chunks).
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let size = usize::try_from(CHUNK).unwrap_or(usize::MAX);
        let count =
            u16::try_from(bytes.checked_div(size).unwrap_or(0)).unwrap_or(NONE.wrapping_sub(1));
        Self {
            memory: vec![0; usize::from(count).saturating_mul(size)],
            chunks: vec![
                Chunk {
                    base: Seq(0),
                    next: NONE
                };
                usize::from(count)
            ],
            free: (0..count).rev().collect(),
            stores: Vec::with_capacity(STORES),
            free_stores: Vec::with_capacity(STORES),
        }
    }

    /// Bytes that are free.
    #[must_use]
    pub fn available(&self) -> u32 {
        u32::try_from(self.free.len())
            .unwrap_or(u32::MAX)
            .saturating_mul(CHUNK)
    }

    /// Keep `data`, which begins at `seq`. `in_order` data continues what the socket has or what is kept.
    /// Returns how many bytes were kept, from the first.
    pub fn insert(&mut self, kept: &mut Kept, seq: Seq, data: Piece<'_>, in_order: bool) -> u32 {
        if data.is_empty() || !self.open(kept) {
            return 0;
        }
        let limit = if in_order {
            RANGES
        } else {
            RANGES.saturating_sub(1)
        };
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let fits = self
            .store(kept)
            .is_some_and(|s| s.has_room(seq, seq.add(length), limit));
        let mut done = 0;
        let mut rest = data;
        while fits && !rest.is_empty() {
            let at = seq.add(done);
            let offset = at.0 & CHUNK.wrapping_sub(1);
            let Some(chunk) = self.chunk_for(kept, at.sub(offset)) else {
                break;
            };
            let room = usize::try_from(CHUNK.saturating_sub(offset)).unwrap_or(0);
            let (now, later) = rest.split_at(room);
            let start = memory_at(chunk, offset);
            let Some(target) = self.memory.get_mut(start..start.saturating_add(now.len())) else {
                break;
            };
            now.copy_to(target);
            done = done.saturating_add(u32::try_from(now.len()).unwrap_or(0));
            rest = later;
        }
        if let Some(store) = self.store_mut(kept).filter(|_| done > 0) {
            store.add(seq, seq.add(done));
        }
        self.close_if_empty(kept);
        done
    }

    /// Bytes kept from `seq` on without a gap.
    #[must_use]
    pub fn contiguous(&self, kept: &Kept, seq: Seq) -> u32 {
        let Some((start, end)) = self.store(kept).and_then(|s| s.ranges().first().copied()) else {
            return 0;
        };
        if start.le(seq) && end.gt(seq) {
            end.distance(seq)
        } else {
            0
        }
    }

    /// The bytes kept from `seq` on without a gap, as slices. Returns how many of `out` were set.
    pub fn slices<'p>(&'p self, kept: &Kept, seq: Seq, out: &mut [Piece<'p>]) -> usize {
        let mut left = self.contiguous(kept, seq);
        let mut at = seq;
        let mut number = self.store(kept).map_or(NONE, |s| s.first);
        let mut count = 0;
        for slot in out {
            let offset = at.0 & CHUNK.wrapping_sub(1);
            let base = at.sub(offset);
            // Chunks below the first byte wanted can still be there when nothing released them yet.
            while self
                .chunks
                .get(usize::from(number))
                .is_some_and(|c| c.base.lt(base))
            {
                number = self
                    .chunks
                    .get(usize::from(number))
                    .map_or(NONE, |c| c.next);
            }
            if left == 0
                || self
                    .chunks
                    .get(usize::from(number))
                    .is_none_or(|c| c.base != base)
            {
                break;
            }
            let length = left.min(CHUNK.saturating_sub(offset));
            let start = memory_at(number, offset);
            let end = start.saturating_add(usize::try_from(length).unwrap_or(0));
            let Some(bytes) = self.memory.get(start..end) else {
                break;
            };
            *slot = Piece::new(bytes);
            count = usize::saturating_add(count, 1);
            left = left.saturating_sub(length);
            at = at.add(length);
        }
        count
    }

    /// Everything before `seq` is not needed any more.
    pub fn advance(&mut self, kept: &mut Kept, seq: Seq) {
        let Some(store) = self.store_mut(kept) else {
            return;
        };
        store.remove_before(seq);
        // Bytes after `seq` that no range covers do not exist, so chunks before the first range go.
        let keep = store
            .ranges()
            .first()
            .map(|(start, _)| start.sub(start.0 & CHUNK.wrapping_sub(1)));
        self.free_chunks_before(kept, keep);
        self.close_if_empty(kept);
    }

    /// Keep nothing.
    pub fn clear(&mut self, kept: &mut Kept) {
        self.free_chunks_before(kept, None);
        if let Some(store) = self.store_mut(kept) {
            *store = EMPTY;
            self.free_stores.push(kept.0);
        }
        *kept = Kept::NONE;
    }

    /// What is kept beyond a gap after `next`, the range that grew last first.
    #[must_use]
    pub fn sack(&self, kept: &Kept, next: Seq) -> SackBlocks {
        let mut blocks = SackBlocks::EMPTY;
        let Some(store) = self.store(kept) else {
            return blocks;
        };
        let beyond = || {
            store
                .ranges()
                .iter()
                .copied()
                .filter(|(start, _)| start.gt(next))
        };
        let leads = |range: &(Seq, Seq)| range.0.le(store.recent) && range.1.gt(store.recent);
        for (start, end) in beyond().filter(leads).chain(beyond().filter(|r| !leads(r))) {
            if !blocks.push(start, end) {
                break;
            }
        }
        blocks
    }

    fn store(&self, kept: &Kept) -> Option<&Store> {
        self.stores.get(usize::from(kept.0))
    }

    fn store_mut(&mut self, kept: &Kept) -> Option<&mut Store> {
        self.stores.get_mut(usize::from(kept.0))
    }

    /// See to it that there is a store.
    fn open(&mut self, kept: &mut Kept) -> bool {
        if kept.is_none() {
            if let Some(number) = self.free_stores.pop() {
                *kept = Kept(number);
            } else if self.stores.len() < STORES {
                let Ok(number) = u16::try_from(self.stores.len()) else {
                    return false;
                };
                self.stores.push(EMPTY);
                *kept = Kept(number);
            }
        }
        !kept.is_none()
    }

    fn close_if_empty(&mut self, kept: &mut Kept) {
        if self.store(kept).is_some_and(|s| s.len == 0) {
            self.clear(kept);
        }
    }

    /// The chunk with this base, a new one if there is none yet.
    fn chunk_for(&mut self, kept: &Kept, base: Seq) -> Option<u16> {
        let mut before = NONE;
        let mut number = self.store(kept)?.first;
        while let Some(chunk) = self.chunks.get(usize::from(number)) {
            if chunk.base == base {
                return Some(number);
            }
            if chunk.base.gt(base) {
                break;
            }
            before = number;
            number = chunk.next;
        }
        let share = (self.free.len() / 2).clamp(1, STORE_CHUNKS);
        if self.store(kept)?.chunks >= share {
            return None;
        }
        let new = self.free.pop()?;
        *self.chunks.get_mut(usize::from(new))? = Chunk { base, next: number };
        let store = self.stores.get_mut(usize::from(kept.0))?;
        store.chunks = store.chunks.saturating_add(1);
        match self.chunks.get_mut(usize::from(before)) {
            Some(leader) => leader.next = new,
            None => store.first = new,
        }
        Some(new)
    }

    /// Free all chunks with a base before `keep`; all of them without `keep`.
    fn free_chunks_before(&mut self, kept: &Kept, keep: Option<Seq>) {
        let Some(store) = self.stores.get_mut(usize::from(kept.0)) else {
            return;
        };
        while let Some(chunk) = self.chunks.get(usize::from(store.first)) {
            if keep.is_some_and(|keep| chunk.base.ge(keep)) {
                break;
            }
            self.free.push(store.first);
            store.first = chunk.next;
            store.chunks = store.chunks.saturating_sub(1);
        }
    }
}

impl Store {
    fn ranges(&self) -> &[(Seq, Seq)] {
        self.ranges.get(..self.len).unwrap_or_default()
    }

    /// Can this range be added without there being more than `limit`?
    fn has_room(&self, start: Seq, end: Seq, limit: usize) -> bool {
        self.len < limit || self.ranges().iter().any(|(s, e)| s.le(end) && e.ge(start))
    }

    /// Add a range, merging what it touches.
    fn add(&mut self, start: Seq, end: Seq) {
        self.recent = start;
        let (mut start, mut end) = (start, end);
        let mut merged = [(Seq(0), Seq(0)); RANGES];
        let mut len = 0_usize;
        let mut placed = false;
        for &(s, e) in self.ranges() {
            if s.le(end) && e.ge(start) {
                start = start.min(s);
                end = end.max(e);
                continue;
            }
            if s.gt(end) && !placed {
                placed = true;
                len = put(&mut merged, len, (start, end));
            }
            len = put(&mut merged, len, (s, e));
        }
        if !placed {
            len = put(&mut merged, len, (start, end));
        }
        self.ranges = merged;
        self.len = len;
    }

    fn remove_before(&mut self, seq: Seq) {
        let mut len = 0;
        let mut left = [(Seq(0), Seq(0)); RANGES];
        for &(s, e) in self.ranges() {
            if e.gt(seq) {
                len = put(&mut left, len, (s.max(seq), e));
            }
        }
        self.ranges = left;
        self.len = len;
    }
}

fn put(ranges: &mut [(Seq, Seq); RANGES], len: usize, range: (Seq, Seq)) -> usize {
    match ranges.get_mut(len) {
        Some(slot) => {
            *slot = range;
            len.saturating_add(1)
        }
        None => len,
    }
}

fn memory_at(chunk: u16, offset: u32) -> usize {
    let start = u64::from(chunk)
        .saturating_mul(u64::from(CHUNK))
        .saturating_add(u64::from(offset));
    usize::try_from(start).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small numbers"
    )]
    use proptest::prelude::*;

    use super::*;

    fn read(pool: &Pool, kept: &Kept, seq: Seq) -> Vec<u8> {
        let mut out = [Piece::EMPTY; 80];
        let n = pool.slices(kept, seq, &mut out);
        out[..n]
            .iter()
            .flat_map(|piece| {
                let mut bytes = vec![0; piece.len()];
                piece.copy_to(&mut bytes);
                bytes
            })
            .collect()
    }

    #[test]
    fn a_store_takes_half_of_what_is_free_and_gives_it_back() {
        let mut pool = Pool::new(16 << 16);
        let mut a = Kept::NONE;
        let mut b = Kept::NONE;
        let data = vec![7; 1 << 20];
        let first = pool.insert(&mut a, Seq(0), Piece::new(&data), true);
        assert_eq!(
            first,
            5 * CHUNK,
            "one more would be more than half of the rest"
        );
        assert!(pool.insert(&mut b, Seq(0), Piece::new(&data), true) >= CHUNK);
        assert_eq!(pool.contiguous(&a, Seq(0)), first);
        pool.clear(&mut a);
        pool.advance(&mut b, Seq(1 << 22));
        assert!(a.is_none() && b.is_none());
        assert_eq!(pool.available(), 16 * CHUNK);
    }

    #[test]
    fn ranges_beyond_the_limit_are_refused_but_in_order_data_is_not() {
        let mut pool = Pool::new(16 << 16);
        let mut k = Kept::NONE;
        for n in 1..RANGES as u32 {
            assert_eq!(pool.insert(&mut k, Seq(n * 10), Piece::new(&[1]), false), 1);
        }
        assert_eq!(pool.insert(&mut k, Seq(5000), Piece::new(&[1]), false), 0);
        assert_eq!(pool.insert(&mut k, Seq(0), Piece::new(&[1]), true), 1);
        assert_eq!(pool.sack(&k, Seq(1)).as_slice()[0].0, Seq(10));
        assert_eq!(
            pool.insert(&mut k, Seq(51), Piece::new(&[1]), false),
            1,
            "grows a range"
        );
        assert_eq!(pool.sack(&k, Seq(1)).as_slice()[0], (Seq(50), Seq(52)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn keeps_what_it_says(
            base: u32,
            steps in proptest::collection::vec((0_u32..400_000, 1_usize..70_000, 0_u8..4), 1..60),
        ) {
            let mut pool = Pool::new(8 << 16);
            let mut kept = Kept::NONE;
            let start = Seq(base);
            let byte = |s: Seq| (s.distance(start) % 251) as u8;
            let mut have = vec![false; 500_000];
            let mut front = 0_u32;
            for (at, len, action) in steps {
                if action == 0 {
                    front = front.max(at);
                    pool.advance(&mut kept, start.add(front));
                    have[..front as usize].fill(false);
                } else {
                    let at = at.max(front);
                    let data: Vec<u8> = (0..len).map(|i| byte(start.add(at + i as u32))).collect();
                    let n = pool.insert(&mut kept, start.add(at), Piece::new(&data), false) as usize;
                    prop_assert!(n <= len);
                    have[at as usize..at as usize + n].fill(true);
                }
                let mut at = front as usize;
                while at < have.len() && have[at] { at += 1; }
                let expected: Vec<u8> = (front..at as u32).map(|i| byte(start.add(i))).collect();
                prop_assert_eq!(read(&pool, &kept, start.add(front)), expected);
            }
            pool.clear(&mut kept);
            prop_assert_eq!(pool.available(), 8 * CHUNK);
        }
    }
}
