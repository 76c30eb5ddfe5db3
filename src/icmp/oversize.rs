//! What to do with a datagram that must not be fragmented and does not fit the path.
//!
//! Strictly: refuse it and tell the guest what would fit. But the tap's MTU is far above that of real networks, and
//! Linux sets DF on nearly everything, also for programs that have never heard of path MTUs and would simply
//! have been fragmented at their source without us. Refusing those loses their first datagram, and a connected
//! socket gets an EMSGSIZE that many programs take for the end.
//!
//! So what is larger than any packet of an ordinary network (and hence cannot be a probe for the path MTU of one)
//! is fragmented, unless it shows that its sender cares:
//! - an IPv4 identification of 0 is what Linux gives to packets of sockets that forbid fragmentation
//!   (IP_PMTUDISC_DO and PROBE; RFC 6864 section 4.1), others have a number because they might be fragmented;
//! - an unusual hop limit is that of tracepath and its like.
//!
//! IPv6 has no identification. An echo request of that size is more often a test than not: it is reported,
//! and for as long as the guest's kernel needs to learn also delivered.

use crate::clock::Instant;
use crate::wire::DEFAULT_HOP_LIMIT;

/// No packet of ordinary networks is larger.
const ORDINARY_MTU: usize = 1500;
/// What the guest sent before it can have heard of the error is delivered, too.
const GRACE_US: u64 = 100_000;
/// After so long the guest's kernel may have forgotten (Linux keeps a path MTU for ten minutes).
const MEMORY_US: u64 = 300_000_000;

/// What becomes of the datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Dropped; the guest is told the MTU.
    Refuse,
    /// Fragmented; the guest is told nothing.
    Fragment,
    /// Fragmented, and the guest is told.
    Both,
}

/// The datagram in question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// Its family.
    pub ipv6: bool,
    /// An echo request (else UDP).
    pub echo: bool,
    /// Its length with the IP header, in bytes.
    pub len: usize,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The packet as the guest sent it, from the IP header on.
    pub l3: &'a [u8],
}

impl Packet<'_> {
    /// Larger than packets of ordinary networks, and its sender does not seem to care.
    #[must_use]
    pub fn is_careless(&self) -> bool {
        let forbidden = !self.ipv6 && self.l3.get(4..6) == Some(&[0, 0]);
        self.may_be_careless() && !forbidden
    }

    /// As [`Self::is_careless`], for flows that have had such packets before: identifications are counted, and
    /// every 65,536th is 0.
    #[must_use]
    pub const fn may_be_careless(&self) -> bool {
        self.len > ORDINARY_MTU && self.hop_limit == DEFAULT_HOP_LIMIT
    }
}

/// When IPv6 echo requests of a flow were last reported and delivered, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Grace(Option<Instant>);

impl Grace {
    /// Never yet.
    pub const NEW: Self = Self(None);

    /// Judge a packet that was found too big at `now`.
    pub fn judge(&mut self, now: Instant, packet: &Packet<'_>) -> Verdict {
        if !packet.is_careless() {
            return Verdict::Refuse;
        }
        if !(packet.ipv6 && packet.echo) {
            return Verdict::Fragment;
        }
        let passed = self.0.map(|at| now.micros().saturating_sub(at.micros()));
        if passed.is_none_or(|us| us > MEMORY_US) {
            self.0 = Some(now);
            return Verdict::Both;
        }
        if passed.is_some_and(|us| us <= GRACE_US) {
            Verdict::Both
        } else {
            Verdict::Refuse
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH_IDENT: &[u8] = &[0x45, 0, 0, 0, 0x12, 0x34];
    const WITHOUT: &[u8] = &[0x45, 0, 0, 0, 0, 0];

    fn packet(ipv6: bool, echo: bool, len: usize, hop_limit: u8, l3: &[u8]) -> Packet<'_> {
        Packet {
            ipv6,
            echo,
            len,
            hop_limit,
            l3,
        }
    }

    #[test]
    fn who_cares() {
        use Verdict::{Both, Fragment, Refuse};
        let table = [
            (packet(false, false, 8000, 64, WITH_IDENT), Fragment),
            (packet(false, false, 8000, 64, WITHOUT), Refuse),
            (packet(false, false, 8000, 1, WITH_IDENT), Refuse),
            (packet(false, false, 1500, 64, WITH_IDENT), Refuse),
            (packet(false, false, 1501, 64, WITH_IDENT), Fragment),
            (packet(false, true, 8000, 64, WITH_IDENT), Fragment),
            (packet(false, true, 8000, 64, WITHOUT), Refuse),
            (packet(true, false, 8000, 64, WITHOUT), Fragment),
            (packet(true, false, 8000, 3, WITHOUT), Refuse),
            (packet(true, false, 1500, 64, WITHOUT), Refuse),
            (packet(true, true, 8000, 64, WITHOUT), Both),
        ];
        for (packet, want) in table {
            let mut grace = Grace::NEW;
            assert_eq!(grace.judge(Instant(0), &packet), want, "{packet:?}");
        }
    }

    #[test]
    fn delivered_for_a_moment_only() {
        let mut grace = Grace::NEW;
        let mut at = |ms: u64| grace.judge(Instant(ms * 1000), &packet(true, true, 8000, 64, &[]));
        assert_eq!(at(0), Verdict::Both);
        assert_eq!(at(100), Verdict::Both);
        assert_eq!(at(101), Verdict::Refuse);
        assert_eq!(at(299_000), Verdict::Refuse);
        assert_eq!(at(300_001), Verdict::Both);
        assert_eq!(at(300_102), Verdict::Refuse);
    }
}
