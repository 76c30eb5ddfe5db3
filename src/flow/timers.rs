//! One timer per flow, all flows of a protocol in one hierarchical wheel.
//!
//! Five levels of 64 slots; a slot of the lowest level is [`TICK`] µs wide, each level above is 64 times
//! coarser, so 3 days fit. Slots are doubly linked lists threaded through an array indexed by the timer's
//! number: arming, cancelling and expiring are O(1), and no memory is allocated after construction.
//!
//! The common operation is *pushing a deadline back* (every packet moves the retransmission timer). That only
//! stores the new deadline and leaves the entry where it is linked: when the old slot comes round the entry is
//! found not to be due and is linked anew. An entry is therefore never linked *later* than its deadline;
//! that is the invariant everything rests on. [`Wheel::next`] is a lower bound for the same reason: waking up
//! at that time may fire nothing, but sleeping until then never misses anything.

use crate::clock::Instant;

/// Width of the finest slot in microseconds: timers fire up to this much late, never early.
pub const TICK: u64 = 256;

const LEVELS: usize = 5;
const SLOTS: usize = 64;
/// Pseudo-level of the list of timers that are due and not yet handed out.
const READY: usize = LEVELS;
const NONE: u32 = u32::MAX;
const UNLINKED: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: Instant,
    next: u32,
    previous: u32,
    /// `level * 64 + slot`, or [`UNLINKED`].
    place: u16,
}

const IDLE: Entry = Entry {
    deadline: Instant::NEVER,
    next: NONE,
    previous: NONE,
    place: UNLINKED,
};

/// See the module text.
#[derive(Debug)]
pub struct Wheel {
    entries: Vec<Entry>,
    capacity: usize,
    /// List heads, per level and slot; the row after the last level is the ready list.
    heads: [[u32; SLOTS]; READY + 1],
    /// A bit per slot that has something in it.
    occupied: [u64; READY + 1],
    /// Every tick before this one has been dealt with.
    tick: u64,
}

impl Wheel {
    /// Timers numbered `0..capacity`, none armed.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
            capacity,
            heads: [[NONE; SLOTS]; READY + 1],
            occupied: [0; READY + 1],
            tick: 0,
        }
    }

    /// Let timer `id` fire at `at` instead of whenever it was to fire before. [`Instant::NEVER`] cancels.
    pub fn arm(&mut self, id: u32, at: Instant) {
        if at == Instant::NEVER {
            self.cancel(id);
            return;
        }
        if index(id) >= self.entries.len() {
            if index(id) >= self.capacity {
                return;
            }
            self.entries.resize(index(id).saturating_add(1), IDLE);
        }
        let Some(entry) = self.entries.get_mut(index(id)) else {
            return;
        };
        let linked = usize::from(entry.place) < LEVELS * SLOTS;
        let keep = linked && at >= entry.deadline;
        entry.deadline = at;
        if !keep {
            self.unlink(id);
            self.link(id, self.tick);
        }
    }

    /// Timer `id` does not fire.
    pub fn cancel(&mut self, id: u32) {
        self.unlink(id);
        if let Some(entry) = self.entries.get_mut(index(id)) {
            entry.deadline = Instant::NEVER;
        }
    }

    /// When timer `id` fires, if it is armed.
    #[must_use]
    pub fn deadline(&self, id: u32) -> Option<Instant> {
        self.entries
            .get(index(id))
            .map(|e| e.deadline)
            .filter(|at| *at != Instant::NEVER)
    }

    /// Disarm one timer that is due by `now` and return its number; `None` when there are no more. A timer armed
    /// between two calls, for whatever time, does not come up again before the next tick.
    pub fn pop(&mut self, now: Instant) -> Option<u32> {
        let target = now.0 / TICK;
        while self.tick <= target {
            // Skip ahead over empty ticks: nothing happens before the next occupied slot is opened.
            match self.next_tick().filter(|next| *next <= target) {
                Some(next) => self.turn(self.tick.max(next)),
                None => self.tick = target.wrapping_add(1),
            }
        }
        let id = self
            .heads
            .get(READY)?
            .first()
            .copied()
            .filter(|id| *id != NONE)?;
        self.cancel(id);
        Some(id)
    }

    /// Disarm every timer due by `now` and call `fire` with its number. The order among them is unspecified.
    pub fn expire(&mut self, now: Instant, mut fire: impl FnMut(u32)) {
        while let Some(id) = self.pop(now) {
            fire(id);
        }
    }

    /// Nothing fires before this; `None` if nothing is armed.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let ready = self.heads.get(READY).and_then(|row| row.first());
        if ready.is_some_and(|id| *id != NONE) {
            return Some(Instant::default());
        }
        self.next_tick()
            .map(|tick| Instant(tick.saturating_mul(TICK)))
    }

    /// Open the slots that begin at `tick`, coarse to fine: what is due goes to the ready list, what is not is
    /// linked anew (possibly into a finer slot that is opened in this same turn).
    fn turn(&mut self, tick: u64) {
        self.tick = tick.wrapping_add(1);
        for level in (0..LEVELS).rev() {
            if tick & width(level).wrapping_sub(1) != 0 {
                continue;
            }
            let mut id = self.take_slot(level, slot_of(tick, level));
            while let Some(entry) = self.entries.get_mut(index(id)) {
                let this = std::mem::replace(&mut id, entry.next);
                if entry.deadline.0.div_ceil(TICK) <= tick {
                    self.insert(this, READY, 0);
                } else {
                    self.link(this, tick);
                }
            }
        }
    }

    fn take_slot(&mut self, level: usize, slot: usize) -> u32 {
        if let Some(word) = self.occupied.get_mut(level) {
            *word &= !bit(slot);
        }
        match self.heads.get_mut(level).and_then(|l| l.get_mut(slot)) {
            Some(head) => std::mem::replace(head, NONE),
            None => NONE,
        }
    }

    /// Link `id` into the slot for its deadline. Slots that begin before tick `first` are taken as opened.
    fn link(&mut self, id: u32, first: u64) {
        let Some(entry) = self.entries.get(index(id)) else {
            return;
        };
        let mut due = entry.deadline.0.div_ceil(TICK).max(first);
        // The finest level at which the deadline is less than one revolution away. That makes the slot begin
        // after `first` on every level but the lowest.
        let ahead = |level| units(due, level).saturating_sub(units(first, level));
        let level = (0..LEVELS)
            .find(|level| ahead(*level) < 64)
            .unwrap_or_else(|| {
                // Beyond the horizon: as far out as there is, and linked anew from there.
                let coarsest = LEVELS.wrapping_sub(1);
                due = units(first, coarsest)
                    .saturating_add(63)
                    .saturating_mul(width(coarsest));
                coarsest
            });
        self.insert(id, level, slot_of(due, level));
    }

    fn insert(&mut self, id: u32, level: usize, slot: usize) {
        let Some(head) = self.heads.get_mut(level).and_then(|l| l.get_mut(slot)) else {
            return;
        };
        let next = std::mem::replace(head, id);
        if let Some(word) = self.occupied.get_mut(level) {
            *word |= bit(slot);
        }
        if let Some(follower) = self.entries.get_mut(index(next)) {
            follower.previous = id;
        }
        if let Some(entry) = self.entries.get_mut(index(id)) {
            entry.next = next;
            entry.previous = NONE;
            entry.place =
                u16::try_from(level.saturating_mul(SLOTS).saturating_add(slot)).unwrap_or(UNLINKED);
        }
    }

    fn unlink(&mut self, id: u32) {
        let Some(entry) = self.entries.get_mut(index(id)) else {
            return;
        };
        if entry.place == UNLINKED {
            return;
        }
        let (next, previous, place) = (entry.next, entry.previous, usize::from(entry.place));
        entry.place = UNLINKED;
        if let Some(follower) = self.entries.get_mut(index(next)) {
            follower.previous = previous;
        }
        if let Some(leader) = self.entries.get_mut(index(previous)) {
            leader.next = next;
            return;
        }
        let (level, slot) = (place / SLOTS, place % SLOTS);
        if let Some(head) = self.heads.get_mut(level).and_then(|l| l.get_mut(slot)) {
            *head = next;
            if next == NONE {
                if let Some(word) = self.occupied.get_mut(level) {
                    *word &= !bit(slot);
                }
            }
        }
    }

    /// The first tick at which a slot with something in it is opened.
    fn next_tick(&self) -> Option<u64> {
        let mut best = None;
        for (level, word) in self.occupied.iter().enumerate().take(LEVELS) {
            if *word == 0 {
                continue;
            }
            // Slots of this level still to be opened begin with the one whose start is not before `tick`.
            let first = self.tick.div_ceil(width(level));
            let turned = word.rotate_right(u32::try_from(first % 64).unwrap_or(0));
            let ahead = u64::from(turned.trailing_zeros());
            let at = first.saturating_add(ahead).saturating_mul(width(level));
            best = Some(best.map_or(at, |b: u64| b.min(at)));
        }
        best
    }
}

fn index(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

/// How many slots of a level have begun by `tick`.
fn units(tick: u64, level: usize) -> u64 {
    tick.wrapping_shr(u32::try_from(level).unwrap_or(0).wrapping_mul(6))
}

/// Ticks per slot of a level.
fn width(level: usize) -> u64 {
    1_u64.rotate_left(u32::try_from(level).unwrap_or(0).wrapping_mul(6))
}

fn slot_of(tick: u64, level: usize) -> usize {
    usize::try_from(units(tick, level) % 64).unwrap_or(0)
}

fn bit(slot: usize) -> u64 {
    1_u64.rotate_left(u32::try_from(slot).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pushing_back_is_lazy_and_still_exact_to_a_tick() {
        let mut w = Wheel::with_capacity(4);
        w.arm(0, Instant(10_000));
        w.arm(0, Instant(900_000));
        assert!(w.next().unwrap() <= Instant(10_000 + TICK));
        w.expire(Instant(899_999), |_| panic!("early"));
        assert_eq!(w.deadline(0), Some(Instant(900_000)));
        assert_eq!(w.pop(Instant(900_000 + TICK)), Some(0));
        assert_eq!(w.next(), None);
        w.arm(9, Instant(1));
        assert_eq!(w.next(), None, "beyond the capacity");
    }

    #[test]
    fn re_arming_while_popping_ends() {
        let mut w = Wheel::with_capacity(1);
        w.arm(0, Instant(0));
        assert_eq!(w.pop(Instant(5000)), Some(0));
        w.arm(0, Instant(0));
        assert_eq!(w.pop(Instant(5000)), None);
        assert_eq!(w.pop(Instant(5000 + TICK)), Some(0));
    }

    #[test]
    fn a_long_timer_costs_few_wake_ups() {
        let mut w = Wheel::with_capacity(1);
        let at = Instant(7_200_000_000);
        w.arm(0, at);
        let mut wakes = 0;
        loop {
            wakes += 1;
            if let Some(id) = w.pop(w.next().unwrap()) {
                assert_eq!(id, 0);
                break;
            }
        }
        assert!(wakes <= LEVELS, "{wakes}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arm(u32, u64),
        Cancel(u32),
        Pass(u64),
        Sleep,
    }

    fn step() -> impl Strategy<Value = Step> {
        let span = prop_oneof![
            0_u64..2_000,
            0_u64..200_000,
            0_u64..100_000_000,
            0_u64..2_000_000_000_000
        ];
        prop_oneof![
            4 => (0_u32..32, span.clone()).prop_map(|(id, d)| Step::Arm(id, d)),
            1 => (0_u32..32).prop_map(Step::Cancel),
            2 => span.prop_map(Step::Pass),
            2 => Just(Step::Sleep),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(steps in proptest::collection::vec(step(), 0..400)) {
            let mut wheel = Wheel::with_capacity(32);
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = 0_u64;
            for step in steps {
                match step {
                    Step::Arm(id, delay) => {
                        wheel.arm(id, Instant(now + delay));
                        model.insert(id, now + delay);
                    }
                    Step::Cancel(id) => {
                        wheel.cancel(id);
                        model.remove(&id);
                    }
                    Step::Pass(time) => now += time,
                    Step::Sleep => {
                        if let Some(next) = wheel.next() {
                            now = now.max(next.0);
                        }
                    }
                }
                let mut fired = Vec::new();
                wheel.expire(Instant(now), |id| fired.push(id));
                for id in fired {
                    prop_assert!(model.remove(&id).unwrap() <= now, "early");
                }
                for (id, at) in &model {
                    // Armed for a time already over: due at the next tick.
                    prop_assert!(now < at + 2 * TICK, "late");
                    prop_assert_eq!(wheel.deadline(*id), Some(Instant(*at)));
                }
                let soonest = model.values().min();
                prop_assert_eq!(wheel.next().is_some(), soonest.is_some());
                if let (Some(next), Some(soonest)) = (wheel.next(), soonest) {
                    prop_assert!(next.0 <= soonest.div_ceil(TICK).max(now / TICK + 1) * TICK, "oversleeps");
                }
            }
        }
    }
}
