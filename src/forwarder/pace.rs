//! How soon to look for more, after a round.
//!
//! To be woken costs more than to handle a frame, and in a bulk transfer nobody waits for an answer to a single
//! frame. So there it pays to let frames gather:
//!
//! - On a *socket*, whoever writes needs no answer for that, and what it writes until we wake is read in one go: the worker
//!   sleeps at once instead of looking for more. If the writer is even slower than our waking, frames come one by
//!   one, and are left to gather for a moment.
//! - In *rings*, a guest that takes some hundred microseconds for a super-frame (an emulated one, say) wakes us for each of
//!   them, and is interrupted to acknowledge each. They are left to gather for longer, two or three at a time.
//!
//! What must never happen is that a guest which could go on waits for us. A resting worker sends no acknowledgements, so a
//! guest with a small window would stand still, and that would look as if it were slow. So whether it is slow is found
//! out *without* resting: by how long we had nothing to do although everything was acknowledged, several times in a
//! row, and again after every few rests. And where more than acknowledgements goes to the guest, on whatever connection,
//! somebody may be waiting for what comes next: for a while there are no rests then.

use std::time::Duration;

use crate::clock::Instant;
use crate::tap::Tap;
use crate::tap::batch::Frame;

/// A round that moves so much over a socket, in bytes, is part of a bulk transfer: one full frame.
const BULK: usize = 1400;
/// So much at once from a socket, in bytes, is worth a round: a third of what it holds.
const GATHERED: usize = 48 << 10;
/// How long frames gather in a socket; the kernel makes 50 µs more of it. What a socket holds takes longer to fill.
const SOCKET_REST: Duration = Duration::from_micros(100);

/// A frame in the guest's memory that is longer than this, in bytes, is a super-frame of a bulk transfer.
const SUPER: usize = 16 << 10;
/// With more than this at once, in bytes, a guest is not slow, however long it took for it.
const FEW: usize = 128 << 10;
/// So much after a rest, in bytes, means that it was too long.
const PLENTY: usize = 256 << 10;
/// How long frames gather in rings; the kernel makes 50 µs more of it.
const RING_REST: Duration = Duration::from_micros(400);
/// A guest whose next super-frame comes only so long after we had nothing left to do is slow.
const SLOW: Duration = Duration::from_micros(150);
/// Super-frames farther apart are not one transfer.
const APART: Duration = Duration::from_millis(5);
/// It must be slow so many times in a row: anything may pause once.
const CERTAIN: u8 = 3;
/// Rests until it is looked again whether the guest is slow.
const RESTS: u8 = 16;
/// How long after anything but an acknowledgement there are no rests.
const QUIET: Duration = Duration::from_millis(10);

/// How soon to look for more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    /// As soon as there is anything.
    Prompt,
    /// Not before we are woken.
    Asleep,
    /// Not before so long, even if there is something.
    Rest(Duration),
}

/// What there is to know about the rounds so far.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    /// Bytes in this round: of all frames, of those from the guest, of its super-frames.
    moved: usize,
    received: usize,
    bulk: usize,
    /// What went to the guest in this round: an acknowledgement, anything else.
    acknowledged: bool,
    answered: bool,
    /// The next wait is one for the guest.
    waits: bool,
    /// Since when it could have sent more super-frames.
    free_since: Option<Instant>,
    /// When anything but an acknowledgement last went to the guest.
    answered_at: Option<Instant>,
    /// How many times in a row it was slow.
    slow: u8,
    /// Rests left, and whether there was one after the last super-frames.
    rests: u8,
    rested: bool,
}

impl Pacer {
    /// A frame came from the guest.
    pub(super) fn received(&mut self, frame: &Frame<'_>) {
        let len = frame.len();
        self.received = self.received.saturating_add(len);
        self.moved = self.moved.saturating_add(len);
        if !frame.rest.is_empty() && len > SUPER {
            self.bulk = self.bulk.saturating_add(len);
        }
    }

    /// A frame of so many bytes went to the guest.
    pub(super) const fn sent(&mut self, len: usize) {
        self.moved = self.moved.saturating_add(len);
        self.answered = true;
    }

    /// The same, and all it says is what was received.
    pub(super) const fn acknowledged(&mut self, len: usize) {
        self.moved = self.moved.saturating_add(len);
        self.acknowledged = true;
    }

    /// The round that began at `now` is over, and the next one begins. `more`: it has something to do already.
    pub(super) fn end_round(&mut self, tap: &Tap, now: Instant, more: bool) -> Pace {
        let moved = std::mem::take(&mut self.moved);
        let received = std::mem::take(&mut self.received);
        let pace = match tap {
            Tap::Stream(_) => socket(moved, received),
            Tap::VhostUser(_) => self.rings(now),
            Tap::Tun(_) | Tap::Off => Pace::Prompt,
        };
        if more { Pace::Prompt } else { pace }
    }

    /// From `now` on there is nothing to do.
    pub(super) const fn idle(&mut self, now: Instant) {
        if self.waits {
            self.waits = false;
            self.free_since = Some(now);
        }
    }

    fn rings(&mut self, now: Instant) -> Pace {
        let bulk = std::mem::take(&mut self.bulk);
        self.waits |= std::mem::take(&mut self.acknowledged);
        if std::mem::take(&mut self.answered) {
            self.answered_at = Some(now);
        }
        if bulk == 0 {
            return Pace::Prompt;
        }
        self.waits = true;
        let rested = std::mem::take(&mut self.rested);
        let gap = self.free_since.take().map(|since| now.since(since));
        let together = gap.is_some_and(|gap| gap < APART);
        let quiet = self.answered_at.is_none_or(|at| now.since(at) >= QUIET);
        if !together || !quiet || bulk > PLENTY {
            self.rests = 0;
            self.slow = 0;
            return Pace::Prompt;
        }
        if self.rests == 0 {
            if rested {
                // What came during the rest was not waited for.
                return Pace::Prompt;
            }
            let slow = bulk <= FEW && gap.is_some_and(|gap| gap >= SLOW);
            self.slow = if slow { self.slow.saturating_add(1) } else { 0 };
            if self.slow < CERTAIN {
                return Pace::Prompt;
            }
            // Next time, once is enough.
            self.slow = CERTAIN.saturating_sub(1);
            self.rests = RESTS;
        }
        self.rests = self.rests.saturating_sub(1);
        self.rested = true;
        Pace::Rest(RING_REST)
    }
}

fn socket(moved: usize, received: usize) -> Pace {
    if moved <= BULK {
        Pace::Prompt
    } else if received > BULK && received < GATHERED {
        Pace::Rest(SOCKET_REST)
    } else {
        Pace::Asleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 44 << 10;
    /// What a round takes.
    const WORK: Duration = Duration::from_micros(20);

    /// A worker with a guest that sends super-frames.
    struct Bench {
        pacer: Pacer,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                pacer: Pacer::default(),
                now: Instant::default() + Duration::from_secs(1),
            }
        }

        /// A round with `bulk` bytes of super-frames that are acknowledged at once; the next is ready after `gap`. Was
        /// there a rest?
        fn round(&mut self, bulk: usize, gap: Duration) -> bool {
            self.pacer.bulk = bulk;
            self.pacer.acknowledged(66);
            let pace = self.pacer.rings(self.now);
            self.now = self.now + WORK;
            let ready = self.now + gap;
            if let Pace::Rest(rest) = pace {
                self.now = self.now + rest;
            }
            self.pacer.idle(self.now);
            self.now = self.now.max(ready);
            pace == Pace::Rest(RING_REST)
        }

        fn rests(&mut self, rounds: u32, gap: Duration) -> u32 {
            (0..rounds).map(|_| u32::from(self.round(FRAME, gap))).sum()
        }
    }

    const SLOWLY: Duration = Duration::from_micros(200);
    const QUICKLY: Duration = Duration::from_micros(30);

    #[test]
    fn a_slow_guest_is_left_to_gather() {
        let mut bench = Bench::new();
        // The first round says nothing, and three make it certain.
        assert_eq!(bench.rests(3, SLOWLY), 0);
        // Then one round in so many ends without, to look again.
        let rests = u32::from(RESTS);
        assert_eq!(bench.rests(10 * (rests + 1), SLOWLY), 10 * rests);
    }

    #[test]
    fn a_fast_guest_is_never_kept_waiting() {
        let mut bench = Bench::new();
        assert_eq!(bench.rests(1000, QUICKLY), 0);
        // Not even if it pauses now and then.
        for _ in 0..100 {
            assert_eq!(bench.rests(1, SLOWLY), 0);
            assert_eq!(bench.rests(10, QUICKLY), 0);
        }
        // What we take long for is not the guest's doing.
        for _ in 0..100 {
            assert!(!bench.round(FRAME, QUICKLY));
            bench.now = bench.now + Duration::from_millis(1);
            bench.pacer.waits = true;
            bench.pacer.idle(bench.now);
        }
    }

    #[test]
    fn waiting_for_an_acknowledgement_is_not_being_slow() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            assert!(!bench.round(FRAME, Duration::from_millis(1)));
            // It comes in a round of its own, by a timer, and the guest goes on.
            bench.pacer.acknowledged(66);
            assert_eq!(bench.pacer.rings(bench.now), Pace::Prompt);
            bench.pacer.idle(bench.now);
            bench.now = bench.now + QUICKLY;
        }
    }

    #[test]
    fn a_guest_that_becomes_fast_is_noticed() {
        let mut bench = Bench::new();
        assert!(bench.rests(20, SLOWLY) > 0);
        let rests = bench.rests(1000, QUICKLY);
        assert!(rests <= u32::from(RESTS), "{rests}");
        // A rest that brings a lot ends it at once.
        assert!(bench.rests(10, SLOWLY) > 0);
        assert!(!bench.round(PLENTY + 1, SLOWLY));
        assert_eq!(bench.rests(2, SLOWLY), 0);
    }

    #[test]
    fn what_was_found_out_ends_with_the_transfer() {
        let mut bench = Bench::new();
        assert!(bench.rests(10, SLOWLY) > 0);
        assert!(bench.pacer.rests > 0);
        bench.now = bench.now + APART;
        assert_eq!(bench.rests(3, SLOWLY), 0);
        // Only the first of these came soon enough after the one before.
        assert_eq!(bench.rests(100, Duration::from_millis(50)), 1);
    }

    #[test]
    fn nobody_waits_for_an_answer() {
        let mut bench = Bench::new();
        // Large requests, small answers; and an answer to somebody else now and then.
        for every in [1, 5, 20] {
            for n in 0..200 {
                if n % every == 0 {
                    bench.pacer.sent(67);
                }
                assert!(!bench.round(FRAME, SLOWLY), "{every}");
            }
        }
        bench.now = bench.now + QUIET;
        assert!(bench.rests(20, SLOWLY) > 0, "it is quiet again");
    }

    #[test]
    fn a_socket_is_read_when_there_is_something_to_gain() {
        assert_eq!(socket(66, 66), Pace::Prompt);
        assert_eq!(socket(3000, 3000), Pace::Rest(SOCKET_REST));
        assert_eq!(socket(GATHERED, GATHERED), Pace::Asleep);
        assert_eq!(socket(FRAME, 66), Pace::Asleep, "to the guest");
    }

    #[test]
    fn no_rest_if_there_is_something_to_do() {
        let mut pacer = Pacer {
            moved: 3000,
            received: 3000,
            ..Pacer::default()
        };
        let stream = Tap::for_socket(false);
        let now = Instant::default();
        assert_eq!(pacer.end_round(&stream, now, true), Pace::Prompt);
    }
}
