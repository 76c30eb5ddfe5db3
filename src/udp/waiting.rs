//! Datagrams that wait for a socket of the namespace.
//!
//! Such sockets are made elsewhere and kept in stock; a rush of new peers can empty it for a moment. What they send first
//! is copied here until more sockets have come ([`Engine::supplied`]); everything of that flow that follows lines up
//! behind it. The space is small: this bridges a moment, it is no queue to live in. What has waited for too long
//! makes room, and what does not fit is dropped, as any full queue does.
//!
//! Invariants: entries lie one behind the other in the order they came; every entry's socket exists and, between calls,
//! has not been opened yet. What must never happen: an entry sent by another flow that was given the same number.

use std::io::IoSlice;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::Engine;
use super::flow::State;
use super::io::{Io, MAX_BURST_BYTES, MAX_SEGMENTS, Send};
use crate::clock::Instant;
use crate::flow::id::FlowId;
use crate::stats::Drop;

/// Most entries.
const ENTRIES: usize = 256;
/// Most bytes of them all.
const BYTES: usize = 256 * 1024;
/// What has waited for this long is given up when there is no room.
const PATIENCE: Duration = Duration::from_millis(250);

/// A message.
#[derive(Clone, Copy, Debug)]
struct Entry {
    socket: FlowId,
    since: Instant,
    len: usize,
    segment: usize,
    tos: u8,
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Waiting {
    entries: Vec<Entry>,
    bytes: Box<[u8]>,
    used: usize,
}

impl Waiting {
    pub fn new() -> Self {
        Self {
            entries: Vec::with_capacity(ENTRIES),
            bytes: vec![0; BYTES].into(),
            used: 0,
        }
    }

    /// Keep a message for a socket. `false`: there is no room.
    pub fn keep(
        &mut self,
        now: Instant,
        socket: FlowId,
        payload: &[u8],
        (segment, tos): (usize, u8),
    ) -> bool {
        let end = self.used.saturating_add(payload.len());
        let Some(room) = self.bytes.get_mut(self.used..end) else {
            return false;
        };
        if self.entries.len() >= ENTRIES {
            return false;
        }
        room.copy_from_slice(payload);
        self.used = end;
        self.entries.push(Entry {
            socket,
            since: now,
            len: payload.len(),
            segment,
            tos,
        });
        true
    }

    /// Show every entry to `take`, in order, and remove those it takes. Returns how many.
    fn sift(&mut self, mut take: impl FnMut(&Entry, &[u8]) -> bool) -> usize {
        let (mut from, mut to) = (0_usize, 0_usize);
        let bytes = &mut self.bytes;
        let before = self.entries.len();
        self.entries.retain(|entry| {
            let end = from.saturating_add(entry.len);
            let taken = take(entry, bytes.get(from..end).unwrap_or_default());
            if !taken {
                if from != to && end <= bytes.len() {
                    bytes.copy_within(from..end, to);
                }
                to = to.saturating_add(entry.len);
            }
            from = end;
            !taken
        });
        self.used = to;
        before.saturating_sub(self.entries.len())
    }

    /// Give up what has waited for too long. Returns how many messages that were.
    pub fn weed(&mut self, now: Instant) -> usize {
        let old = |entry: &Entry| now.since(entry.since) >= PATIENCE;
        if self.entries.first().is_some_and(old) {
            self.sift(|entry, _| old(entry))
        } else {
            0
        }
    }

    /// Forget what waits for a socket that will not come. Returns how many messages that were.
    pub fn forget(&mut self, socket: FlowId) -> usize {
        self.sift(|entry, _| entry.socket == socket)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<S> Engine<S> {
    /// There are sockets of the namespace again: what waits for one goes on.
    pub fn supplied<I: Io<Socket = S>>(&mut self, io: &mut I) {
        if self.state.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::replace(&mut self.state.waiting, Waiting::none());
        let state = &mut self.state;
        waiting.sift(|entry, payload| state.send_kept(io, entry, payload));
        self.state.waiting = waiting;
    }
}

impl Waiting {
    /// A stand-in without room, for while the real one is being looked through. Costs no memory.
    fn none() -> Self {
        Self {
            entries: Vec::new(),
            bytes: Box::default(),
            used: 0,
        }
    }
}

impl<S> State<S> {
    /// Send a message that has waited, if there is a socket. `false`: not yet.
    fn send_kept<I: Io<Socket = S>>(&mut self, io: &mut I, entry: &Entry, payload: &[u8]) -> bool {
        let Some(socket) = self.sockets.get(entry.socket) else {
            // It was given up a moment ago, for another entry.
            io.drop(Drop::SocketError);
            return true;
        };
        if socket.io.is_none() {
            match self.inner_end(io, entry.socket) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(why) => {
                    io.drop(why);
                    self.remove_socket(io, entry.socket);
                    return true;
                }
            }
        }
        let Some((inner, to)) = self
            .sockets
            .get(entry.socket)
            .and_then(|s| Some((s.io.as_ref()?, s.target?)))
        else {
            return true;
        };
        let how = Send {
            to: None,
            hop_limit: None,
            tos: entry.tos,
            source: None,
            ipv6: to.is_ipv6(),
        };
        let size = entry.segment.max(1);
        let most = MAX_BURST_BYTES
            .checked_div(size)
            .unwrap_or(1)
            .clamp(1, MAX_SEGMENTS);
        let mut rest = Some(payload);
        while let Some(bytes) = rest {
            let (group, behind) = bytes
                .split_at_checked(size.saturating_mul(most))
                .unwrap_or((bytes, &[]));
            rest = Some(behind).filter(|rest| !rest.is_empty());
            let sent = if group.len() <= size {
                io.send_each(inner, &how, &[IoSlice::new(group)]).0 == 1
            } else {
                let parts: ArrayVec<_, MAX_SEGMENTS> =
                    group.chunks(size).map(IoSlice::new).collect();
                let segment = u16::try_from(size).unwrap_or(u16::MAX);
                io.send_segments(inner, &how, &parts, segment).is_ok()
            };
            if !sent {
                io.drop(Drop::QueueFull);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_stays_in_order_and_the_room_is_had_again() {
        let mut waiting = Waiting::new();
        for n in 0..200_u8 {
            let (id, size) = (FlowId(u32::from(n % 3)), usize::from(n));
            assert!(waiting.keep(Instant(0), id, &vec![n; size], (1, 0)));
        }
        assert_eq!(waiting.forget(FlowId(1)), 67);
        let mut seen = Vec::new();
        waiting.sift(|entry, bytes| {
            assert!(bytes.iter().all(|b| usize::from(*b) == entry.len));
            seen.push(entry.len);
            entry.len % 2 == 0
        });
        assert!(seen.is_sorted() && seen.len() == 133);
        assert_eq!(waiting.weed(Instant(0)), 0);
        assert!(waiting.weed(Instant(1_000_000)) > 60);
        assert!(waiting.is_empty() && waiting.used == 0);
        let big = vec![0; 65_507];
        let fits = (0..10).filter(|_| waiting.keep(Instant(0), FlowId(0), &big, (1, 0)));
        assert_eq!(fits.count(), 4);
    }

    #[test]
    fn entries_are_limited() {
        let mut waiting = Waiting::new();
        let fits = (0..1000).filter(|_| waiting.keep(Instant(0), FlowId(0), b"", (1, 0)));
        assert_eq!(fits.count(), ENTRIES);
    }
}
