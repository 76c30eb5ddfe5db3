//! When a datagram that must not be fragmented is fragmented nevertheless.
//!
//! The tap's MTU is far above that of real networks, and guests set DF on nearly everything. A guest's first large
//! datagram to a destination would therefore always be lost here, where without us it would have been fragmented
//! at its source. Such datagrams are delivered in fragments *in addition to* the error the guest gets, once, until
//! the guest's kernel has had the time to learn. Anything small enough to be a probe for the path MTU of a real
//! network is refused as it should be.

use crate::clock::Instant;

/// No packet of real networks is larger, so one that is exists only because the tap's MTU is.
const ORDINARY_MTU: usize = 1500;
/// What the guest sent before it can have heard of the error is delivered, too.
const GRACE_US: u64 = 100_000;
/// After so long the guest's kernel may have forgotten (Linux keeps a path MTU for ten minutes).
const MEMORY_US: u64 = 300_000_000;

/// When a flow was last granted it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Grace(Option<Instant>);

impl Grace {
    /// Never yet.
    pub const NEW: Self = Self(None);

    /// Is a packet of `len` bytes (IP header included), which was found too big at `now`, to be delivered anyway?
    pub fn grants(&mut self, now: Instant, len: usize) -> bool {
        let passed = self.0.map(|at| now.micros().saturating_sub(at.micros()));
        if len > ORDINARY_MTU && passed.is_none_or(|us| us > MEMORY_US) {
            self.0 = Some(now);
            return true;
        }
        len > ORDINARY_MTU && passed.is_some_and(|us| us <= GRACE_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granted_once_and_never_to_probes() {
        let mut grace = Grace::NEW;
        let at = |ms: u64| Instant(ms * 1000);
        assert!(!grace.grants(at(0), 1500));
        assert!(grace.grants(at(0), 1501));
        assert!(grace.grants(at(100), 8000));
        assert!(!grace.grants(at(100), 1400));
        assert!(!grace.grants(at(101), 8000));
        assert!(!grace.grants(at(299_000), 8000));
        assert!(grace.grants(at(300_001), 8000));
        assert!(!grace.grants(at(300_102), 8000));
    }
}
