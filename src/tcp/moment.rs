//! A time in 32 bits, because a connection has several and there may be a hundred thousand connections.
//!
//! Units of the timer wheel ([`TICK`]), rounded up, so that what a wheel would round is rounded here already and
//! nothing is ever due early. Only the low bits are kept: a moment must lie within six days of the time it is compared
//! at. Deadlines do (none is farther away than the keep-alive time, and none stays unhandled), and so does what is noted
//! about the past (a guest not heard for more than keep-alive allows is gone).

use std::time::Duration;

use crate::clock::Instant;
use crate::flow::timers::TICK;

/// See the module text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment(u32);

impl Moment {
    /// No time at all: later than all others.
    pub const NEVER: Self = Self(u32::MAX);

    /// The first moment that is not before `at`.
    pub fn at(at: Instant) -> Self {
        let low = u32::try_from(at.0.div_ceil(TICK) & 0xffff_ffff).unwrap_or(0);
        // Once in twelve days a moment has the name of "never": it is the next one then.
        if low == u32::MAX { Self(0) } else { Self(low) }
    }

    /// The moment `d` after `now`.
    pub fn after(now: Instant, d: Duration) -> Self {
        Self::at(now.after(d))
    }

    /// In full, as seen from `now`.
    pub fn instant(self, now: Instant) -> Instant {
        if self == Self::NEVER {
            return Instant::NEVER;
        }
        let tick = now.0 / TICK;
        let low = u32::try_from(tick & 0xffff_ffff).unwrap_or(0);
        let away = i64::from(ahead(self.0, low));
        Instant(tick.saturating_add_signed(away).saturating_mul(TICK))
    }

    /// Has it come?
    pub fn due(self, now: Instant) -> bool {
        self.instant(now) <= now
    }

    /// The earlier of two.
    pub fn min(self, other: Self) -> Self {
        let later = ahead(self.0, other.0) > 0;
        if other != Self::NEVER && (self == Self::NEVER || later) {
            other
        } else {
            self
        }
    }
}

/// How far `a` is ahead of `b`, modulo 2^32.
const fn ahead(a: u32, b: u32) -> i32 {
    i32::from_ne_bytes(a.wrapping_sub(b).to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGE: u64 = TICK << 31;

    proptest! {
        /// Whatever the time: nothing is due early, nor more than two ticks late, and order is order.
        #[test]
        fn is_as_good_as_the_real_thing(now in RANGE..1 << 52, a in 0..RANGE - TICK, b in 0..RANGE - TICK, past in 0..RANGE - TICK) {
            let now = Instant(now);
            let (at, bt) = (now.after(Duration::from_micros(a)), now.after(Duration::from_micros(b)));
            let (m, n) = (Moment::at(at), Moment::at(bt));
            prop_assert!(m.instant(now) >= at && m.instant(now).0 <= at.0 + 2 * TICK);
            prop_assert_eq!(m.min(n).instant(now), m.instant(now).min(n.instant(now)));
            prop_assert_eq!(m.min(Moment::NEVER), m);
            prop_assert_eq!(Moment::NEVER.min(m), m);
            let then = Instant(now.0 - past);
            prop_assert!(Moment::at(then).instant(now) >= then);
            prop_assert!(Moment::at(then).instant(now).0 <= then.0 + 2 * TICK);
            prop_assert!(past < 2 * TICK || Moment::at(then).due(now));
        }
    }

    #[test]
    fn never_is_never_and_no_time_is_called_so() {
        let now = Instant(u64::from(u32::MAX) * TICK - 5);
        assert!(!Moment::NEVER.due(now));
        assert_eq!(Moment::NEVER.instant(now), Instant::NEVER);
        let m = Moment::at(now);
        assert!(m != Moment::NEVER && !m.due(now));
        assert!(m.due(now.after(Duration::from_millis(1))));
    }
}
