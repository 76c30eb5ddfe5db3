//! Sets of ports: what listens on one side, what we listen on ourselves.
//!
//! A set is 8 KiB, allocated once, and never grows: it can be filled and compared by processes that can allocate
//! no more. It travels in *blocks* of 256 ports, 32 bytes each, only those that have changed.

use super::rules::Protocol;

/// Most listeners of one table, whatever addresses they are on: as many as there are ports of both protocols.
pub const MAX_LISTENERS: usize = 1 << 17;

/// Blocks of a set.
pub const BLOCKS: usize = 256;
/// One block: bit `p % 8` of byte `p / 8` is port `p` of the block.
pub type Block = [u8; 32];

const WORDS: usize = 1024;
const WORDS_PER_BLOCK: usize = WORDS / BLOCKS;

/// A set of ports.
#[derive(Clone, PartialEq, Eq)]
pub struct Ports(Box<[u64; WORDS]>);

impl Default for Ports {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

fn place(port: u16) -> (usize, u64) {
    (usize::from(port >> 6), 1 << (port & 63))
}

impl Ports {
    /// Is it in?
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        let (word, bit) = place(port);
        self.0.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Put it in.
    pub fn insert(&mut self, port: u16) {
        let (word, bit) = place(port);
        if let Some(w) = self.0.get_mut(word) {
            *w |= bit;
        }
    }

    /// Take all out.
    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// None in?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|w| *w == 0)
    }

    /// How many, at most 65536.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    /// Become a copy of `other`.
    pub fn copy_from(&mut self, other: &Self) {
        self.0.copy_from_slice(&other.0[..]);
    }

    /// Take out all of `other`.
    pub fn subtract(&mut self, other: &Self) {
        for (w, o) in self.0.iter_mut().zip(other.0.iter()) {
            *w &= !o;
        }
    }

    /// The ports, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).filter(|p| self.contains(*p))
    }

    /// Ports `first` to `first + 63` as bits 0 to 63; what lies beyond 65535 is not in.
    #[must_use]
    pub fn window(&self, first: u32) -> u64 {
        let word = |i: usize| self.0.get(i).copied().unwrap_or(0);
        let at = usize::try_from(first >> 6).unwrap_or(WORDS);
        let shift = first & 63;
        let low = word(at) >> shift;
        // A shift by 64 is none of the machine's.
        let high = word(at.saturating_add(1))
            .checked_shl(64_u32.saturating_sub(shift))
            .unwrap_or(0);
        low | high
    }

    /// Block `number`.
    #[must_use]
    pub fn block(&self, number: u8) -> Block {
        let start = usize::from(number).saturating_mul(WORDS_PER_BLOCK);
        let mut bytes = [0; 32];
        for (to, from) in bytes.chunks_exact_mut(8).zip(self.0.iter().skip(start)) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    /// Replace block `number`; did that change anything?
    pub fn set_block(&mut self, number: u8, block: &Block) -> bool {
        let start = usize::from(number).saturating_mul(WORDS_PER_BLOCK);
        let mut changed = false;
        for (to, from) in self.0.iter_mut().skip(start).zip(block.chunks_exact(8)) {
            let word = from.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            changed |= *to != word;
            *to = word;
        }
        changed
    }

    /// The blocks that differ from `before`'s, as they are here.
    pub fn changes<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = (u8, Block)> + 'a {
        let now = self.0.chunks_exact(WORDS_PER_BLOCK);
        let then = before.0.chunks_exact(WORDS_PER_BLOCK);
        (0..=u8::MAX)
            .zip(now.zip(then))
            .filter(|(_, (now, then))| now != then)
            .map(|(number, _)| (number, self.block(number)))
    }
}

/// One set for each protocol.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortSets {
    /// TCP ports.
    pub tcp: Ports,
    /// UDP ports.
    pub udp: Ports,
}

impl PortSets {
    /// The set of a protocol.
    #[must_use]
    pub const fn of(&self, protocol: Protocol) -> &Ports {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    /// The set of a protocol, to change.
    pub const fn of_mut(&mut self, protocol: Protocol) -> &mut Ports {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        }
    }

    /// Empty both.
    pub fn clear(&mut self) {
        self.tcp.clear();
        self.udp.clear();
    }

    /// Become a copy of `other`.
    pub fn copy_from(&mut self, other: &Self) {
        self.tcp.copy_from(&other.tcp);
        self.udp.copy_from(&other.udp);
    }

    /// Take out all of `other`.
    pub fn subtract(&mut self, other: &Self) {
        self.tcp.subtract(&other.tcp);
        self.udp.subtract(&other.udp);
    }

    /// The blocks of both that differ from `before`'s, as they are here.
    pub fn changes<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (Protocol, u8, Block)> + 'a {
        [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(move |protocol| {
                self.of(protocol)
                    .changes(before.of(protocol))
                    .map(move |(number, block)| (protocol, number, block))
            })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ports: &BTreeSet<u16>) -> Ports {
        let mut set = Ports::default();
        ports.iter().for_each(|p| set.insert(*p));
        set
    }

    fn some_ports() -> impl Strategy<Value = BTreeSet<u16>> {
        proptest::collection::btree_set(
            prop_oneof![any::<u16>(), 0_u16..130, 65400_u16..=65535],
            0..60,
        )
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(a in some_ports(), b in some_ports()) {
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(usize::try_from(x.len()).unwrap(), a.len());
            let mut less = x;
            less.subtract(&y);
            prop_assert_eq!(less.iter().collect::<BTreeSet<_>>(), &a - &b);
        }

        #[test]
        fn travels_by_its_changes(a in some_ports(), b in some_ports()) {
            let (old, new) = (set(&a), set(&b));
            let mut copy = old.clone();
            for (number, block) in new.changes(&old) {
                prop_assert!(copy.set_block(number, &block));
                prop_assert!(!copy.set_block(number, &block));
            }
            prop_assert_eq!(copy, new);
        }

        #[test]
        fn a_window_shows_64_ports(a in some_ports(), first in 0_u32..70_000) {
            let window = set(&a).window(first);
            for i in 0..64 {
                let inside = u16::try_from(first + i).is_ok_and(|p| a.contains(&p));
                prop_assert_eq!(window >> i & 1 == 1, inside, "{}", i);
            }
        }
    }

    #[test]
    fn bits_of_a_block_are_where_they_are_said_to_be() {
        let mut set = Ports::default();
        set.insert(256 + 9);
        let mut expected = [0; 32];
        expected[1] = 2;
        assert_eq!(set.block(1), expected);
        assert_eq!(set.block(0), [0; 32]);
    }
}
