//! A table of flows with a fixed capacity and keyed lookup.
//!
//! Two parts. *Slots* hold the flows; the lowest free slot is always used first, so a process that once had
//! 100,000 flows and now has ten goes back to touching one page, and arrays indexed by [`FlowId`] elsewhere stay
//! dense. The lowest free slot is found by a tree of bitmaps (64-ary: three levels cover 262,144 slots).
//! The *index* maps keys to slots: open addressing with linear probing in an array of at least twice the
//! capacity, so probe sequences stay short; removal shifts followers back instead of leaving tombstones, so
//! lookups never slow down with age.
//!
//! Memory is reserved at construction and pages are touched only when used: slots are filled in order, the
//! index starts as zero pages. Invariants: every occupied slot is reachable from the index through its key;
//! no two slots have the same key; `len` is the number of occupied slots.

use std::hash::Hash;

use super::hash::Keyed;
use super::id::{FlowId, Key};

/// See the module text.
#[derive(Debug)]
pub struct Table<T, K = Key> {
    slots: Vec<Option<(K, T)>>,
    /// Slot number + 1; 0 is empty. The length is a power of two.
    index: Vec<u32>,
    free: FreeMap,
    hash: Keyed,
    len: usize,
    capacity: usize,
}

impl<T, K: Copy + Eq + Hash> Table<T, K> {
    /// Room for `capacity` flows (at most 262,144; more is cut to that), looked up with a hash keyed by `seed`.
    #[must_use]
    pub fn with_capacity(capacity: usize, seed: [u8; 16]) -> Self {
        let capacity = capacity.clamp(1, FreeMap::MAX);
        let index = capacity.saturating_mul(2).next_power_of_two();
        Self {
            slots: Vec::with_capacity(capacity),
            index: vec![0; index],
            free: FreeMap::new(capacity),
            hash: Keyed::new(seed),
            len: 0,
            capacity,
        }
    }

    /// Flows in the table.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// No flows?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most flows it can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// No room for another flow?
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.len >= self.capacity
    }

    /// Add a flow. `None` if the table is full or the key is taken.
    pub fn insert(&mut self, key: K, value: T) -> Option<FlowId> {
        let at = match self.probe(&key) {
            Probe::Found { .. } => return None,
            Probe::Vacant(at) => at,
        };
        let slot = self.free.take()?;
        let number = u32::try_from(slot).ok()?;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot.saturating_add(1), || None);
        }
        *self.slots.get_mut(slot)? = Some((key, value));
        *self.index.get_mut(at)? = number.wrapping_add(1);
        self.len = self.len.saturating_add(1);
        Some(FlowId(number))
    }

    /// The flow with this key.
    #[must_use]
    pub fn lookup(&self, key: &K) -> Option<FlowId> {
        match self.probe(key) {
            Probe::Found { id, .. } => Some(id),
            Probe::Vacant(_) => None,
        }
    }

    /// A flow by its number.
    #[must_use]
    pub fn get(&self, id: FlowId) -> Option<&T> {
        Some(&self.slots.get(id.index())?.as_ref()?.1)
    }

    /// A flow by its number.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        Some(&mut self.slots.get_mut(id.index())?.as_mut()?.1)
    }

    /// The key of a flow.
    #[must_use]
    pub fn key(&self, id: FlowId) -> Option<&K> {
        Some(&self.slots.get(id.index())?.as_ref()?.0)
    }

    /// Remove a flow; its number may be reused by the next `insert`.
    pub fn remove(&mut self, id: FlowId) -> Option<T> {
        let key = *self.key(id)?;
        let Probe::Found { at, .. } = self.probe(&key) else {
            return None;
        };
        self.close_gap(at);
        let (_, value) = self.slots.get_mut(id.index())?.take()?;
        self.free.give(id.index());
        self.len = self.len.saturating_sub(1);
        Some(value)
    }

    /// All flows, in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &K, &T)> {
        self.slots.iter().zip(0_u32..).filter_map(|(slot, number)| {
            let (key, value) = slot.as_ref()?;
            Some((FlowId(number), key, value))
        })
    }

    /// Flows numbered `from` and higher, in order of their numbers.
    pub fn iter_from(&self, from: FlowId) -> impl Iterator<Item = (FlowId, &K, &T)> {
        let rest = self.slots.get(from.index()..).unwrap_or_default();
        rest.iter().zip(from.0..).filter_map(|(slot, number)| {
            let (key, value) = slot.as_ref()?;
            Some((FlowId(number), key, value))
        })
    }

    /// The first flow numbered `from` or higher: for walks that change the table as they go.
    #[must_use]
    pub fn first_from(&self, from: FlowId) -> Option<FlowId> {
        let rest = self.slots.get(from.index()..)?;
        let ahead = rest.iter().position(Option::is_some)?;
        Some(FlowId(
            u32::try_from(from.index().saturating_add(ahead)).ok()?,
        ))
    }

    fn mask(&self) -> usize {
        self.index.len().wrapping_sub(1)
    }

    fn home(&self, key: &K) -> usize {
        // Truncation is the point: any bits of the hash will do.
        usize::try_from(self.hash.hash(key) & 0xffff_ffff).unwrap_or(0) & self.mask()
    }

    fn probe(&self, key: &K) -> Probe {
        let mut at = self.home(key);
        // The index is at least twice the capacity, so an empty place always comes.
        loop {
            let Some(number) = self.index.get(at).copied().and_then(|n| n.checked_sub(1)) else {
                return Probe::Vacant(at);
            };
            let id = FlowId(number);
            if self.key(id) == Some(key) {
                return Probe::Found { at, id };
            }
            at = at.wrapping_add(1) & self.mask();
        }
    }

    /// Empty the place `gap` of the index, moving back whatever probing would no longer find beyond it.
    fn close_gap(&mut self, mut gap: usize) {
        let mut at = gap;
        loop {
            if let Some(place) = self.index.get_mut(gap) {
                *place = 0;
            }
            let moved = loop {
                at = at.wrapping_add(1) & self.mask();
                let Some(number) = self.index.get(at).copied().and_then(|n| n.checked_sub(1))
                else {
                    return;
                };
                let Some(home) = self.key(FlowId(number)).map(|key| self.home(key)) else {
                    continue;
                };
                // It may move back if its home is not cyclically within (gap, at].
                let from_home = at.wrapping_sub(home) & self.mask();
                let from_gap = at.wrapping_sub(gap) & self.mask();
                if from_home >= from_gap {
                    break number;
                }
            };
            if let Some(place) = self.index.get_mut(gap) {
                *place = moved.wrapping_add(1);
            }
            gap = at;
        }
    }
}

enum Probe {
    Found { at: usize, id: FlowId },
    Vacant(usize),
}

/// Which slots are free: a bit per slot, and two levels of summary, so that the lowest is three word look-ups.
#[derive(Debug)]
struct FreeMap {
    leaves: Vec<u64>,
    middle: Vec<u64>,
    root: u64,
}

impl FreeMap {
    const MAX: usize = 64 * 64 * 64;

    fn new(capacity: usize) -> Self {
        let mut map = Self {
            leaves: vec![0; capacity.div_ceil(64)],
            middle: vec![0; capacity.div_ceil(64 * 64)],
            root: 0,
        };
        for slot in 0..capacity {
            map.give(slot);
        }
        map
    }

    fn take(&mut self) -> Option<usize> {
        let top = lowest(self.root)?;
        let middle = self.middle.get_mut(top)?;
        let leaf_at = top.wrapping_mul(64).wrapping_add(lowest(*middle)?);
        let leaf = self.leaves.get_mut(leaf_at)?;
        let slot = leaf_at.wrapping_mul(64).wrapping_add(lowest(*leaf)?);
        *leaf &= leaf.wrapping_sub(1);
        if *leaf == 0 {
            *middle &= middle.wrapping_sub(1);
            if *middle == 0 {
                self.root &= self.root.wrapping_sub(1);
            }
        }
        Some(slot)
    }

    fn give(&mut self, slot: usize) {
        let (leaf, middle) = (slot / 64, slot / (64 * 64));
        if let Some(word) = self.leaves.get_mut(leaf) {
            *word |= bit(slot);
        }
        if let Some(word) = self.middle.get_mut(middle) {
            *word |= bit(leaf);
        }
        self.root |= bit(middle);
    }
}

fn bit(n: usize) -> u64 {
    1_u64.rotate_left(u32::try_from(n & 63).unwrap_or(0))
}

fn lowest(word: u64) -> Option<usize> {
    if word == 0 {
        None
    } else {
        usize::try_from(word.trailing_zeros()).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lowest_number_first_and_full_is_full() {
        let mut t: Table<u32, u32> = Table::with_capacity(200, [7; 16]);
        for n in 0..200 {
            assert_eq!(t.insert(n, n), Some(FlowId(n)));
        }
        assert!(t.is_full());
        assert_eq!(t.insert(1000, 0), None);
        assert_eq!(t.remove(FlowId(130)), Some(130));
        assert_eq!(t.remove(FlowId(3)), Some(3));
        assert_eq!(t.remove(FlowId(3)), None);
        assert_eq!(t.lookup(&3), None);
        assert_eq!(t.insert(5, 0), None, "the key is taken");
        assert_eq!(t.insert(1000, 0), Some(FlowId(3)));
        assert_eq!(t.insert(1001, 0), Some(FlowId(130)));
        assert_eq!(t.first_from(FlowId(199)), Some(FlowId(199)));
        assert_eq!(t.first_from(FlowId(200)), None);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec((any::<bool>(), 0_u16..96), 0..2000), seed: [u8; 16]) {
            let mut table: Table<u16, u16> = Table::with_capacity(64, seed);
            let mut model = HashMap::new();
            for (add, key) in steps {
                if add {
                    let id = table.insert(key, key);
                    prop_assert_eq!(id.is_some(), !model.contains_key(&key) && model.len() < 64);
                    if let Some(id) = id {
                        let lowest = (0..).find(|n| !model.values().any(|used| used == n)).unwrap();
                        prop_assert_eq!(id.0, lowest);
                        model.insert(key, id.0);
                    }
                } else {
                    let id = table.lookup(&key);
                    prop_assert_eq!(id.map(|i| i.0), model.remove(&key));
                    if let Some(id) = id {
                        prop_assert_eq!(table.remove(id), Some(key));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.iter().count(), model.len());
                for (key, id) in &model {
                    prop_assert_eq!(table.lookup(key), Some(FlowId(*id)));
                    prop_assert_eq!(table.get(FlowId(*id)), Some(key));
                }
            }
        }
    }
}
