//! A table of rules as the keeper works with it, and which of its ports are open: pure.
//!
//! Everything lies in two vectors reserved for the largest table there can be, so that a table can be replaced by
//! a process that cannot allocate any more. A rule's ports are bits, 64 to a word, from `at` in the shared vector: with
//! all ports of both protocols forwarded that is 16 KiB.

use std::net::IpAddr;

use arrayvec::ArrayString;

use crate::config::ports::{PortSets, Ports};
use crate::config::rules::{MAX_INTERFACE_NAME, MAX_RULES, Protocol, Rule, RuleId, Table};
use crate::ipc::RuleNotice;

/// Most words of bits a table needs: every rule with every port.
const MAX_WORDS: usize = MAX_RULES * 1024;

/// What tells one listening socket from another, apart from the port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) protocol: Protocol,
    pub(super) listen: Option<IpAddr>,
    pub(super) interface: Option<ArrayString<MAX_INTERFACE_NAME>>,
}

impl Place {
    /// Could a socket at one keep a socket at the other from the same port? Interfaces are no excuse: what is
    /// bound to none takes the port on all.
    pub(super) fn competes(&self, other: &Self) -> bool {
        let address = match (self.listen, other.listen) {
            (None, _) | (_, None) => true,
            (Some(a), Some(b)) => {
                a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
            }
        };
        self.protocol == other.protocol && address
    }
}

/// A rule of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kept {
    pub(super) id: RuleId,
    pub(super) place: Place,
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) to_first: u16,
    pub(super) target: Option<IpAddr>,
    pub(super) best_effort: bool,
    pub(super) auto_scan: bool,
    /// Its first word of bits.
    at: usize,
}

impl Kept {
    /// The same rule, wherever its bits are?
    pub(super) fn same(&self, other: &Self) -> bool {
        *self
            == Self {
                at: self.at,
                ..*other
            }
    }

    /// Ports, 1 to 65535.
    pub(super) fn len(&self) -> u32 {
        u32::from(self.last.saturating_sub(self.first)).saturating_add(1)
    }

    pub(super) fn words(&self) -> usize {
        usize::try_from(self.len().div_ceil(64)).unwrap_or(0)
    }

    /// A port of the rule that cannot be had is an error.
    pub(super) const fn must(&self) -> bool {
        !self.best_effort && !self.auto_scan
    }

    /// Port `offset` of the rule; `None` if it has none of that number.
    pub(super) fn port(&self, offset: u16) -> Option<u16> {
        self.first.checked_add(offset).filter(|p| *p <= self.last)
    }

    pub(super) fn notice(&self, table: Table) -> RuleNotice {
        RuleNotice {
            rule: self.id,
            table,
            protocol: self.place.protocol,
            target: self.target,
            first: self.first,
            last: self.last,
            to_first: self.to_first,
        }
    }

    /// Which of 64 ports, from the rule's port number `64 * word`, should be open while the other side has `other`.
    pub(super) fn wanted(&self, word: usize, other: &PortSets) -> u64 {
        let from = u32::try_from(word).unwrap_or(u32::MAX).saturating_mul(64);
        let inside = match self.len().saturating_sub(from) {
            n @ 0..64 => (1_u64 << n).wrapping_sub(1),
            _ => u64::MAX,
        };
        if !self.auto_scan {
            return inside;
        }
        let target = u32::from(self.to_first).saturating_add(from);
        let there = match self.place.protocol {
            Protocol::Tcp => other.tcp.window(target),
            // Protocols that run over both announce themselves over TCP only.
            Protocol::Udp => other.udp.window(target) | other.tcp.window(target),
        };
        inside & there
    }
}

/// The offsets of the bits set in word number `word`.
pub(super) fn offsets(word: usize, mut bits: u64) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let bit = usize::try_from(bits.trailing_zeros()).ok()?;
        // Clears the lowest bit; of zero nothing is left to take.
        bits &= bits.checked_sub(1)?;
        u16::try_from(word.checked_mul(64)?.checked_add(bit)?).ok()
    })
}

/// A table and what is open of it.
#[derive(Debug)]
pub(super) struct Book {
    rules: Vec<Kept>,
    open: Vec<u64>,
}

impl Book {
    pub(super) fn reserve() -> Self {
        Self {
            rules: Vec::with_capacity(MAX_RULES),
            open: Vec::with_capacity(MAX_WORDS),
        }
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
        self.open.clear();
    }

    /// Add a rule with nothing open. False: it cannot be added (a table that is full or a name that is too long).
    pub(super) fn push(&mut self, id: RuleId, rule: &Rule) -> bool {
        let Ok(interface) = rule.interface.as_deref().map(ArrayString::from).transpose() else {
            return false;
        };
        let kept = Kept {
            id,
            place: Place {
                protocol: rule.protocol,
                listen: rule.listen,
                interface,
            },
            first: rule.first,
            last: rule.last,
            to_first: rule.to_first,
            target: rule.target,
            best_effort: rule.best_effort,
            auto_scan: rule.auto_scan,
            at: self.open.len(),
        };
        if self.rules.len() >= MAX_RULES || rule.first == 0 || rule.last < rule.first {
            return false;
        }
        let words = self.open.len().saturating_add(kept.words());
        self.open.resize(words, 0);
        self.rules.push(kept);
        true
    }

    pub(super) fn rules(&self) -> &[Kept] {
        &self.rules
    }

    pub(super) fn find(&self, id: RuleId) -> Option<&Kept> {
        self.rules.iter().find(|r| r.id == id)
    }

    /// The bits of the open ports of 64, from the rule's port number `64 * word`.
    pub(super) fn open(&self, rule: &Kept, word: usize) -> u64 {
        let at = rule.at.saturating_add(word);
        self.open.get(at).copied().unwrap_or(0)
    }

    /// How many ports of a rule are open.
    pub(super) fn opened(&self, rule: &Kept) -> usize {
        let ones = |word| usize::try_from(self.open(rule, word).count_ones()).unwrap_or(0);
        (0..rule.words()).map(ones).sum()
    }

    pub(super) fn is_open(&self, rule: &Kept, offset: u16) -> bool {
        self.open(rule, usize::from(offset >> 6)) >> (offset & 63) & 1 == 1
    }

    pub(super) fn set(&mut self, rule: &Kept, offset: u16, open: bool) {
        let at = rule.at.saturating_add(usize::from(offset >> 6));
        if let Some(word) = self.open.get_mut(at) {
            let bit = 1 << (offset & 63);
            *word = if open { *word | bit } else { *word & !bit };
        }
    }

    /// Is the same socket open here, and as which rule and offset? No two rules of a table compete for one port,
    /// so there is at most one.
    pub(super) fn holder(&self, place: &Place, port: u16) -> Option<(&Kept, u16)> {
        self.rules
            .iter()
            .filter(|r| r.place == *place)
            .filter_map(|r| Some((r, port.checked_sub(r.first)?)))
            .find(|(r, offset)| r.port(*offset).is_some() && self.is_open(r, *offset))
    }

    /// Is there an open socket that stands in the way of one at `place`?
    pub(super) fn obstructs(&self, place: &Place, port: u16) -> bool {
        self.rules
            .iter()
            .filter(|r| r.place.competes(place))
            .filter_map(|r| Some((r, port.checked_sub(r.first)?)))
            .any(|(r, offset)| r.port(offset).is_some() && self.is_open(r, offset))
    }

    /// Open ports of a rule, and those that should be and are not.
    pub(super) fn count(&self, rule: &Kept, other: &PortSets) -> (u32, u32) {
        let mut counts = (0_u32, 0_u32);
        for word in 0..rule.words() {
            let open = self.open(rule, word);
            let missing = rule.wanted(word, other) & !open;
            counts.0 = counts.0.saturating_add(open.count_ones());
            counts.1 = counts.1.saturating_add(missing.count_ones());
        }
        counts
    }

    /// Add every open port to `into`.
    pub(super) fn collect(&self, into: &mut PortSets) {
        for rule in &self.rules {
            let set: &mut Ports = into.of_mut(rule.place.protocol);
            for word in 0..rule.words() {
                for port in offsets(word, self.open(rule, word)).filter_map(|o| rule.port(o)) {
                    set.insert(port);
                }
            }
        }
    }
}
