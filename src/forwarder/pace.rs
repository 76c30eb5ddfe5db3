//! How soon to look for more, after a round.
//!
//! To be woken costs more than to handle a frame, and in a bulk transfer nobody waits for an answer to a single
//! frame. So there it pays to let frames gather:
//!
//! - On a *socket*, whoever writes needs no answer for that, and what it writes until we wake is read in one go: the worker
//!   sleeps at once instead of looking for more. If the writer is even slower than our waking, frames come one by
//!   one, and are left to gather for a moment.
//! - In *rings*, a guest that takes some hundred microseconds for a super-frame (an emulated one, or one that its
//!   processor is too slow for) wakes us for each of them. They are left to gather for longer, two or three at a time.
//!
//! What must never happen is that a guest which could go on has to wait for us. A resting worker sends no acknowledgements,
//! so a guest with a small window would stand still, and that would look as if it were slow. So whether it is slow is
//! found out *without* resting first ([`SLOW`]), and again after every [`RESTS`] rests; a fast guest is never rested for. And if
//! anything but acknowledgements goes to the guest, somebody may be waiting for what comes next, on this connection or
//! another: no rest then.

use std::time::Duration;

use crate::clock::Instant;
use crate::tap::Tap;

/// A round that moves so much over a socket, in bytes, is part of a bulk transfer: one full frame.
const BULK: usize = 1400;
/// So much at once from a socket, in bytes, is worth a round: a third of what it holds.
const GATHERED: usize = 48 << 10;
/// How long frames gather in a socket; the kernel makes 50 µs more of it. What a socket holds takes longer to fill.
const SOCKET_REST: Duration = Duration::from_micros(100);

/// A round with so much from rings, in bytes, is part of a bulk transfer: more than any frame without segmentation.
const SUPER: usize = 16 << 10;
/// So much at once from rings, in bytes, is worth a round.
const PLENTY: usize = 256 << 10;
/// How long frames gather in rings.
const RING_REST: Duration = Duration::from_micros(400);
/// A guest whose super-frames are so far apart though we do not rest is slow. Others have sent the next after some ten
/// microseconds, even if they had to wait for an acknowledgement.
const SLOW: Duration = Duration::from_micros(150);
/// Frames farther apart are not one transfer.
const APART: Duration = Duration::from_millis(5);
/// Rests until it is looked again whether the guest is slow.
const RESTS: u8 = 16;

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
    /// Bytes of frames in this round: all, and those from the guest.
    moved: usize,
    received: usize,
    /// More than acknowledgements went to the guest since its last super-frames.
    answered: bool,
    /// When the round with these began, and whether a rest followed.
    last: Option<Instant>,
    rested: bool,
    /// Rests left.
    rests: u8,
}

impl Pacer {
    /// A frame of so many bytes came from the guest.
    pub(super) const fn received(&mut self, len: usize) {
        self.received = self.received.saturating_add(len);
        self.moved = self.moved.saturating_add(len);
    }

    /// A frame of so many bytes went to the guest.
    pub(super) const fn sent(&mut self, len: usize) {
        self.moved = self.moved.saturating_add(len);
        self.answered = true;
    }

    /// The same, and all it says is what was received.
    pub(super) const fn acknowledged(&mut self, len: usize) {
        self.moved = self.moved.saturating_add(len);
    }

    /// The round that began at `now` is over; the next one begins.
    pub(super) fn end_round(&mut self, tap: &Tap, now: Instant) -> Pace {
        let moved = std::mem::take(&mut self.moved);
        let received = std::mem::take(&mut self.received);
        match tap {
            Tap::Stream(_) => socket(moved, received),
            Tap::VhostUser(_) => self.rings(received, now),
            Tap::Tun(_) | Tap::Off => Pace::Prompt,
        }
    }

    fn rings(&mut self, received: usize, now: Instant) -> Pace {
        if received < SUPER {
            return Pace::Prompt;
        }
        let gap = self.last.replace(now).map(|last| now.since(last));
        let rested = std::mem::take(&mut self.rested);
        if std::mem::take(&mut self.answered) || received > PLENTY {
            self.rests = 0;
            return Pace::Prompt;
        }
        let slow = !rested && gap.is_some_and(|gap| (SLOW..APART).contains(&gap));
        if slow {
            self.rests = RESTS;
        }
        if self.rests == 0 {
            return Pace::Prompt;
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

    /// Rounds with a super-frame each, `gap` apart unless a rest makes it longer; how often there was one.
    fn rests(
        pacer: &mut Pacer,
        rounds: u32,
        gap: Duration,
        mut between: impl FnMut(&mut Pacer),
    ) -> u32 {
        let mut now = Instant::default() + Duration::from_secs(1);
        let mut rests = 0;
        for _ in 0..rounds {
            let pace = pacer.rings(FRAME, now);
            rests += u32::from(pace == Pace::Rest(RING_REST));
            now = now
                + gap.max(if let Pace::Rest(rest) = pace {
                    rest
                } else {
                    Duration::ZERO
                });
            between(pacer);
        }
        rests
    }

    #[test]
    fn a_slow_guest_is_left_to_gather() {
        let mut pacer = Pacer::default();
        let n = rests(&mut pacer, 181, Duration::from_micros(200), |p| {
            p.acknowledged(66);
        });
        // The first round says nothing, and each measurement takes one without a rest.
        assert_eq!(n, 180 * u32::from(RESTS) / (u32::from(RESTS) + 1) + 1);
    }

    #[test]
    fn a_fast_guest_is_never_kept_waiting() {
        let n = rests(
            &mut Pacer::default(),
            1000,
            Duration::from_micros(30),
            |_| {},
        );
        assert_eq!(n, 0);
    }

    #[test]
    fn a_guest_that_becomes_fast_is_noticed() {
        let mut pacer = Pacer::default();
        rests(&mut pacer, 10, Duration::from_micros(200), |_| {});
        let n = rests(&mut pacer, 1000, Duration::from_micros(30), |_| {});
        assert!(n <= u32::from(RESTS), "{n}");
        // A rest that brings a lot ends it sooner.
        rests(&mut pacer, 3, Duration::from_micros(200), |_| {});
        assert_eq!(
            pacer.rings(PLENTY + 1, Instant::default() + Duration::from_secs(9)),
            Pace::Prompt
        );
        assert_eq!(pacer.rests, 0);
    }

    #[test]
    fn nobody_waits_for_an_answer() {
        let mut pacer = Pacer::default();
        let n = rests(&mut pacer, 100, Duration::from_micros(200), |p| p.sent(67));
        assert_eq!(n, 0, "large requests and small answers");
        let n = rests(&mut pacer, 100, Duration::from_millis(50), |_| {});
        assert_eq!(n, 0, "large messages now and then");
    }

    #[test]
    fn a_socket_is_read_when_there_is_something_to_gain() {
        assert_eq!(socket(66, 66), Pace::Prompt);
        assert_eq!(socket(3000, 3000), Pace::Rest(SOCKET_REST));
        assert_eq!(socket(GATHERED, GATHERED), Pace::Asleep);
        assert_eq!(socket(FRAME, 66), Pace::Asleep, "to the guest");
    }
}
