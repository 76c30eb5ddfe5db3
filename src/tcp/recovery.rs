//! What the guest has received, and how long it takes to say so: a small SACK scoreboard (RFC 2018, RFC 6675) and
//! round-trip estimation (RFC 6298, with the kernel's bounds).
//!
//! Segments towards the guest go through the tap, where loss is rare and nearly never reordering; a handful of
//! ranges is enough. A range that finds no room is forgotten: that only means sending again what the guest has.

use std::time::Duration;

use crate::clock::Instant;
use crate::wire::tcp::Seq;

const RANGES: usize = 4;

/// Ranges beyond the cumulative acknowledgement which the guest has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scoreboard {
    /// Sorted; behind the last one are empty ones.
    ranges: [(Seq, Seq); RANGES],
}

impl Scoreboard {
    /// Nothing beyond the cumulative acknowledgement.
    pub const EMPTY: Self = Self {
        ranges: [(Seq(0), Seq(0)); RANGES],
    };

    pub fn ranges(&self) -> &[(Seq, Seq)] {
        let len = self.ranges.iter().take_while(|(s, e)| s != e).count();
        self.ranges.get(..len).unwrap_or_default()
    }

    /// Note that the guest has `[start, end)`. Says whether that is news.
    pub fn add(&mut self, start: Seq, end: Seq) -> bool {
        if self.ranges().iter().any(|(s, e)| s.le(start) && e.ge(end)) {
            return false;
        }
        let (mut start, mut end) = (start, end);
        let mut out = Self::EMPTY;
        let mut placed = false;
        for &(s, e) in self.ranges() {
            if s.le(end) && e.ge(start) {
                start = start.min(s);
                end = end.max(e);
            } else if s.gt(end) && !placed {
                placed = true;
                out.push((start, end));
                out.push((s, e));
            } else {
                out.push((s, e));
            }
        }
        if !placed {
            out.push((start, end));
        }
        *self = out;
        true
    }

    fn push(&mut self, range: (Seq, Seq)) {
        if let Some(slot) = self.ranges.iter_mut().find(|(s, e)| s == e) {
            *slot = range;
        }
    }

    /// Everything before `una` is acknowledged.
    pub fn advance(&mut self, una: Seq) {
        if self.ranges().is_empty() {
            return;
        }
        let mut out = Self::EMPTY;
        for &(s, e) in self.ranges() {
            if e.gt(una) {
                out.push((s.max(una), e));
            }
        }
        *self = out;
    }

    /// Bytes in the ranges.
    pub fn bytes(&self) -> u32 {
        self.ranges()
            .iter()
            .fold(0, |sum, (s, e)| sum.saturating_add(e.distance(*s)))
    }

    /// Start of the last range: everything before it that is not in a range was overtaken.
    pub fn last_start(&self) -> Option<Seq> {
        self.ranges().last().map(|r| r.0)
    }

    /// End of the last range.
    pub fn last_end(&self) -> Option<Seq> {
        self.ranges().last().map(|r| r.1)
    }

    /// The first stretch in `[from, to)` the guest does not have.
    pub fn hole(&self, from: Seq, to: Seq) -> Option<(Seq, Seq)> {
        let mut start = from;
        for &(s, e) in self.ranges() {
            if s.gt(start) {
                let end = s.min(to);
                return start.lt(end).then_some((start, end));
            }
            start = start.max(e);
        }
        start.lt(to).then_some((start, to))
    }

    /// Bytes in `[from, to)` the guest does not have.
    pub fn missing(&self, from: Seq, to: Seq) -> u32 {
        let mut sum = 0_u32;
        let mut at = from;
        while let Some((start, end)) = self.hole(at, to) {
            sum = sum.saturating_add(end.distance(start));
            at = end;
        }
        sum
    }
}

/// Round-trip time as the guest's acknowledgements show it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    /// Smoothed, µs; 0: no sample yet.
    smoothed: u32,
    /// Mean deviation, µs.
    deviation: u32,
    /// The sequence number being timed, and since when (low half of the clock); 0: nothing is.
    timed: Seq,
    since: u32,
}

impl Rtt {
    /// Lower bound of the variable part of the timeout, µs: the kernel's TCP_RTO_MIN.
    const SLACK: u32 = 200_000;
    /// Upper bound of the timeout, µs: the kernel's TCP_RTO_MAX.
    const MAX: u64 = 120_000_000;
    /// The timeout before the first sample, µs (RFC 6298 section 2.1).
    const FIRST: u64 = 1_000_000;

    pub const fn new() -> Self {
        Self {
            smoothed: 0,
            deviation: 0,
            timed: Seq(0),
            since: 0,
        }
    }

    /// Data up to `end` leaves now: time it, unless something is being timed already.
    pub fn start(&mut self, end: Seq, now: Instant) {
        if self.since == 0 {
            self.timed = end;
            self.since = low(now).max(1);
        }
    }

    /// What is being timed was sent again: its acknowledgement would not tell which time (Karn).
    pub fn abandon(&mut self) {
        self.since = 0;
    }

    /// Everything before `una` is acknowledged.
    pub fn acked(&mut self, una: Seq, now: Instant) {
        if self.since == 0 || self.timed.gt(una) {
            return;
        }
        let since = std::mem::take(&mut self.since);
        let sample = low(now).wrapping_sub(since).clamp(1, 60_000_000);
        if self.smoothed == 0 {
            self.smoothed = sample;
            self.deviation = sample / 2;
        } else {
            let error = self.smoothed.abs_diff(sample);
            self.deviation = self
                .deviation
                .saturating_sub(self.deviation / 4)
                .saturating_add(error / 4);
            self.smoothed = self
                .smoothed
                .saturating_sub(self.smoothed / 8)
                .saturating_add(sample / 8)
                .max(1);
        }
    }

    /// The retransmission timeout after `backoff` of them in a row.
    pub fn timeout(&self, backoff: u8) -> Duration {
        let first = if self.smoothed == 0 {
            Self::FIRST
        } else {
            let slack = self.deviation.saturating_mul(4).max(Self::SLACK);
            u64::from(self.smoothed).saturating_add(u64::from(slack))
        };
        let factor = 1_u64
            .checked_shl(u32::from(backoff.min(20)))
            .unwrap_or(u64::MAX);
        Duration::from_micros(first.saturating_mul(factor).min(Self::MAX))
    }

    /// An eighth of a round trip.
    pub fn eighth(&self) -> Duration {
        Duration::from_micros(u64::from(self.smoothed / 8))
    }

    /// Two round trips, µs; 0 if not known.
    pub fn twice(&self) -> u64 {
        u64::from(self.smoothed).saturating_mul(2)
    }
}

pub(super) fn low(now: Instant) -> u32 {
    u32::try_from(now.0 & 0xffff_ffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scoreboard_merges_orders_and_finds_holes() {
        let mut b = Scoreboard::EMPTY;
        assert!(b.add(Seq(50), Seq(60)));
        assert!(b.add(Seq(20), Seq(30)));
        assert!(!b.add(Seq(20), Seq(25)));
        assert!(b.add(Seq(30), Seq(40)));
        assert_eq!(b.ranges(), [(Seq(20), Seq(40)), (Seq(50), Seq(60))]);
        assert_eq!(b.hole(Seq(10), Seq(60)), Some((Seq(10), Seq(20))));
        assert_eq!(b.hole(Seq(20), Seq(60)), Some((Seq(40), Seq(50))));
        assert_eq!(b.hole(Seq(50), Seq(60)), None);
        assert_eq!(b.hole(Seq(50), Seq(70)), Some((Seq(60), Seq(70))));
        assert_eq!(b.missing(Seq(10), Seq(70)), 30);
        b.advance(Seq(55));
        assert_eq!(b.ranges(), [(Seq(55), Seq(60))]);
        assert_eq!(b.bytes(), 5);
    }

    #[test]
    fn timeout_has_the_bounds_of_the_kernel() {
        let mut r = Rtt::new();
        assert_eq!(r.timeout(0), Duration::from_secs(1));
        r.start(Seq(10), Instant(1000));
        r.acked(Seq(9), Instant(1050));
        r.acked(Seq(10), Instant(1100));
        assert_eq!(r.timeout(0), Duration::from_micros(200_100));
        assert_eq!(r.timeout(30), Duration::from_secs(120));
    }
}
