//! Ready-made sockets of the namespace, for connections that go round the tap.
//!
//! The forwarder lives in the host's network namespace and cannot make sockets of the other; the ns-agent makes
//! them, in batches, and a batch is asked for when half of the last one is used: a connection normally finds one
//! ready and waits for nobody. What arrives on an empty pool waits in line for the next batch.
//!
//! Where there are few descriptors the stock is small: what it holds is lacking elsewhere.
//!
//! A batch that could not be taken, for want of descriptors, is not asked for again before a moment has passed.
//!
//! What must never happen: a wait for the ns-agent, or more than one question at a time that it has not answered.

use std::os::fd::OwnedFd;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::clock::Instant;
use crate::ipc::{MAX_DESCRIPTORS, SocketKind};

/// Below this many the next batch is asked for.
const LOW: usize = MAX_DESCRIPTORS / 2;
/// What a batch can add to what is not quite used up.
const MOST: usize = MAX_DESCRIPTORS + LOW;

/// Of so many descriptors a kind may hold one in stock.
const SHARE: u64 = 32;

/// How long to do without after a batch was lost.
const REST: Duration = Duration::from_millis(100);

/// Sockets of one kind.
#[derive(Debug, Default)]
struct Stock {
    sockets: ArrayVec<OwnedFd, MOST>,
    /// Somebody may come for these.
    wanted: bool,
    asked: bool,
    /// No question before this.
    rest_until: Instant,
}

/// All kinds.
#[derive(Debug)]
pub(super) struct Pool {
    stocks: [Stock; SocketKind::ALL.len()],
    /// Most of each kind, 1 to [`MOST`].
    most: usize,
}

impl Pool {
    /// For a process that may have `nofile` descriptors.
    pub(super) fn new(nofile: u64) -> Self {
        let share = usize::try_from(nofile / SHARE).unwrap_or(MOST);
        Self {
            stocks: Default::default(),
            most: share.clamp(1, MOST),
        }
    }

    fn is_low(&self, stock: &Stock) -> bool {
        let low = (self.most / 2).clamp(1, LOW);
        stock.wanted && !stock.asked && stock.sockets.len() < low
    }

    /// How many to ask for.
    pub(super) fn batch(&self, kind: SocketKind) -> u8 {
        let stock = self.stocks.get(kind as usize);
        let there = stock.map_or(0, |stock| stock.sockets.len());
        let room = self.most.saturating_sub(there).min(MAX_DESCRIPTORS);
        u8::try_from(room).unwrap_or(u8::MAX)
    }

    fn stock(&mut self, kind: SocketKind) -> Option<&mut Stock> {
        self.stocks.get_mut(kind as usize)
    }

    /// Sockets of this kind will be needed.
    pub(super) fn want(&mut self, kind: SocketKind) {
        if let Some(stock) = self.stock(kind) {
            stock.wanted = true;
        }
    }

    /// One, if there is one.
    pub(super) fn take(&mut self, kind: SocketKind) -> Option<OwnedFd> {
        let stock = self.stock(kind)?;
        stock.wanted = true;
        stock.sockets.pop()
    }

    /// A batch has come, or what is left of it.
    pub(super) fn refill(&mut self, kind: SocketKind, sockets: impl Iterator<Item = OwnedFd>) {
        if let Some(stock) = self.stock(kind) {
            stock.asked = false;
            for socket in sockets {
                // More than was asked for is closed.
                let _ = stock.sockets.try_push(socket);
            }
        }
    }

    /// A batch has come and could not be taken.
    pub(super) fn lost(&mut self, kind: SocketKind, now: Instant) {
        if let Some(stock) = self.stock(kind) {
            stock.asked = false;
            stock.rest_until = now + REST;
        }
    }

    /// A kind to ask for now: low, needed, and not asked for yet.
    pub(super) fn lacking(&self, now: Instant) -> Option<SocketKind> {
        SocketKind::ALL.into_iter().find(|kind| {
            let stock = self.stocks.get(*kind as usize);
            stock.is_some_and(|s| self.is_low(s) && s.rest_until <= now)
        })
    }

    /// When to look again at what [`Pool::lost`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let resting = self.stocks.iter().filter(|s| self.is_low(s));
        resting.map(|s| s.rest_until).min()
    }

    /// It was asked for.
    pub(super) fn asked(&mut self, kind: SocketKind) {
        if let Some(stock) = self.stock(kind) {
            stock.asked = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(n: usize) -> impl Iterator<Item = OwnedFd> {
        (0..n).map(|_| {
            std::net::UdpSocket::bind("127.0.0.1:0")
                .expect("socket")
                .into()
        })
    }

    #[test]
    fn one_question_at_a_time_and_only_for_what_is_needed() {
        let mut pool = Pool::new(1 << 20);
        assert_eq!(pool.lacking(Instant(0)), None);
        assert!(pool.take(SocketKind::Tcp6).is_none());
        assert_eq!(pool.lacking(Instant(0)), Some(SocketKind::Tcp6));
        pool.asked(SocketKind::Tcp6);
        assert_eq!(pool.lacking(Instant(0)), None);
        pool.refill(SocketKind::Tcp6, sockets(MAX_DESCRIPTORS));
        assert_eq!(pool.lacking(Instant(0)), None);
        for _ in 0..=LOW {
            assert!(pool.take(SocketKind::Tcp6).is_some());
        }
        assert_eq!(pool.lacking(Instant(0)), Some(SocketKind::Tcp6));
        // A batch that could not be taken is asked for again, but not at once.
        pool.asked(SocketKind::Tcp6);
        assert_eq!(pool.next_deadline(), None);
        pool.lost(SocketKind::Tcp6, Instant(0));
        let again = pool.next_deadline().expect("a deadline");
        assert_eq!(pool.lacking(Instant(0)), None);
        assert_eq!(pool.lacking(again), Some(SocketKind::Tcp6));
    }

    #[test]
    fn a_stock_leaves_most_of_few_descriptors_to_others() {
        for (nofile, batch, most) in [(0, 1, 1), (128, 4, 4), (1024, 32, 32), (4096, 32, MOST)] {
            let mut pool = Pool::new(nofile);
            pool.want(SocketKind::Udp4);
            let mut there = 0;
            while let Some(kind) = pool.lacking(Instant(0)) {
                let count = pool.batch(kind);
                assert_eq!(count, batch);
                pool.asked(kind);
                pool.refill(kind, sockets(usize::from(count)));
                there += usize::from(count);
            }
            assert!(there <= most && there > 0, "{nofile}");
        }
    }

    #[test]
    fn too_many_are_not_kept() {
        let mut pool = Pool::new(1 << 20);
        pool.refill(SocketKind::Udp4, sockets(MOST + 5));
        let mut n = 0;
        while pool.take(SocketKind::Udp4).is_some() {
            n += 1;
        }
        assert_eq!(n, MOST);
    }
}
