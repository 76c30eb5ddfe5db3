//! At most so many lines in a second, and a count of the rest.

use crate::clock::Instant;

const SECOND: u64 = 1_000_000;

/// A budget of lines for one kind of event. Plain data, no lock, no allocation.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    per_second: u32,
    window: Instant,
    used: u32,
    suppressed: u32,
}

impl RateLimit {
    /// At most `per_second` lines (at least 1 to ever say anything).
    #[must_use]
    pub const fn new(per_second: u32) -> Self {
        Self {
            per_second,
            window: Instant(0),
            used: 0,
            suppressed: 0,
        }
    }

    /// May a line be written at `now`? `Some(n)`: yes, and `n` were suppressed since the last one.
    pub fn admit(&mut self, now: Instant) -> Option<u32> {
        if now.0.saturating_sub(self.window.0) >= SECOND {
            self.window = now;
            self.used = 0;
        }
        if self.used >= self.per_second {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.used = self.used.saturating_add(1);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_renewed_and_the_rest_counted() {
        let mut limit = RateLimit::new(2);
        let start = Instant(5 * SECOND);
        assert_eq!(limit.admit(start), Some(0));
        assert_eq!(limit.admit(start), Some(0));
        assert_eq!(limit.admit(start), None);
        assert_eq!(limit.admit(Instant(start.0 + SECOND - 1)), None);
        assert_eq!(limit.admit(Instant(start.0 + SECOND)), Some(2));
        assert_eq!(limit.admit(Instant(start.0 + SECOND)), Some(0));
    }
}
