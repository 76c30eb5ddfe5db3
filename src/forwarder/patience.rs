//! A moment's patience before going to sleep.
//!
//! In request/response traffic the next event is often some ten microseconds away, while going to sleep and
//! being woken costs both sides about as much, on virtual machines several times that. So a round that handled
//! little is followed by a short look for more before the worker sleeps. On a 2-CPU virtual machine this takes
//! request/response from 11,000 to 20,000 per second at *less* CPU per transaction.
//!
//! It has to pay for itself: looking is given up after it has failed a few times, and then only tried now and
//! then. Many events at once mean that others want the CPU, and no looking is done at all. An idle worker
//! sleeps; no more than [`LIMIT`] is spent after the last event.

use std::time::Duration;

/// Longest look.
pub(super) const LIMIT: Duration = Duration::from_micros(25);
/// Rounds with more events than this are busy ones.
const FEW_EVENTS: usize = 2;
/// Credit is collected up to here: so many successes outlast half as many failures.
const MOST_CREDIT: u8 = 8;
/// What a failure costs; a success earns 1.
const PENALTY: u8 = 2;
/// Without credit, one round in so many is tried.
const TRY_EVERY: u8 = 16;

/// Whether looking has been worth it lately.
#[derive(Debug, Default)]
pub(super) struct Patience {
    credit: u8,
    rounds: u8,
}

impl Patience {
    /// Is a look worth it after a round with so many events?
    pub(super) fn worth_it(&mut self, events: usize) -> bool {
        if events > FEW_EVENTS {
            return false;
        }
        if self.credit > 0 {
            return true;
        }
        self.rounds = self.rounds.wrapping_add(1) % TRY_EVERY;
        self.rounds == 0
    }

    /// A look has ended, with an event or without.
    pub(super) fn learn(&mut self, success: bool) {
        self.credit = if success {
            self.credit.saturating_add(1).min(MOST_CREDIT)
        } else {
            self.credit.saturating_sub(PENALTY)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_is_remembered_and_failure_ends_it() {
        let mut p = Patience::default();
        let tried = (0..32).filter(|_| p.worth_it(1)).count();
        assert_eq!(tried, 2, "one in sixteen");
        for _ in 0..20 {
            p.learn(true);
        }
        assert!(p.worth_it(1));
        assert!(!p.worth_it(3), "a busy round");
        for _ in 0..4 {
            p.learn(false);
        }
        assert!((0..15).all(|_| !p.worth_it(0)));
        assert!(p.worth_it(0));
    }
}
