//! Periodic router advertisements: a guest that has its default route from one loses it when that expires.
//!
//! Every 200 to 600 s, at random, so that the guests of one host do not act in step; the first one an interval
//! after start, because a guest that has just come up asks by itself.

use super::host::Host;
use crate::clock::Instant;
use crate::config::Config;
use crate::services::ndp;

/// When the next advertisement is due.
#[derive(Debug)]
pub(super) struct Advertiser {
    next: Option<Instant>,
    /// Differs from process to process, and from one interval to the next.
    seed: u64,
}

impl Advertiser {
    pub(super) fn new(config: &Config, seed: [u8; 16]) -> Self {
        let on = config.services.ra && config.v6.is_some();
        let (low, _) = seed
            .split_first_chunk()
            .map_or(([0; 8], &[][..]), |(low, rest)| (*low, rest));
        Self {
            next: on.then_some(Instant::NEVER),
            seed: u64::from_ne_bytes(low),
        }
    }

    /// Traffic flows from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.seed = self.seed.wrapping_add(1);
        self.next = self.next.map(|_| now + ndp::next_interval(self.seed));
    }

    pub(super) const fn next_deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Send one to all nodes.
    pub(super) fn advertise(&mut self, host: &mut Host, now: Instant) {
        host.advertise_router();
        self.begin(now);
    }
}
