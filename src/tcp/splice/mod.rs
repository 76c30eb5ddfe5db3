//! TCP between loopback and loopback: connections that need not become segments.
//!
//! What comes from the host's own loopback, or leaves by the namespace's, has a kernel's socket on both sides that
//! we may have: one we accepted (the *origin*) and one we connect in the other network (the *target*). Bytes go from
//! one to the other, each way for itself ([`lane`]); ends are reflected as what they are ([`pair`]).
//!
//! Both sockets are registered once, edge-triggered; only a bulk transfer whose receiver is slow touches that again. What must never happen: a connection that waits for something
//! no edge will report; one that spins on a full receiver, or lets it hold up its other direction or other
//! connections (one turn per event, then the back of the queue); a byte lost or doubled between a partial read and
//! a partial write; half a stream ending like a whole one.
//!
//! Sockets of the namespace come in batches from a process in there. While there is none, accepted connections wait,
//! in order, and are reset when that takes too long. Each family has its own line: a namespace may lack one.
//!
//! The engine makes no system call and reads no clock: events come in through its methods, and it acts through [`Io`].
//! It allocates nothing after construction.

#[cfg(test)]
mod fake;
pub mod io;
mod lane;
mod pair;
#[cfg(test)]
mod tests;

pub use io::{Arrival, ConnectError, Connecting, End, Io, Readiness, SocketError, Way};

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;
use crate::flow::id::FlowId;
use crate::flow::table::Table;
use crate::flow::traffic::FlowView;
use crate::stats::Drop;
use pair::{Life, Pair};

/// Size of the buffer for plain copies: what an ordinary pipe can keep.
const SCRATCH: usize = 1 << 16;
/// How long an accepted connection waits for a socket of the other network.
const PATIENCE: Duration = Duration::from_secs(10);

/// All connections between the loopbacks. See the module text.
#[derive(Debug)]
pub struct Engine<I: Io> {
    table: Table<Pair<I::Socket, I::Pipe>, u64>,
    /// The next connection's key: nobody looks connections up by their addresses.
    serial: u64,
    scratch: Box<[u8]>,
    /// See [`Engine::take_bulk`].
    bulk: bool,
    /// Connections that have used up their turn, each once.
    backlog: VecDeque<FlowId>,
    /// Connections without a target, in order, and when each is given up: IPv4, IPv6.
    waiting: [VecDeque<(FlowId, Instant)>; 2],
}

impl<I: Io> Engine<I> {
    /// An engine for at most `capacity` connections, with all its memory reserved.
    #[must_use]
    pub fn new(capacity: usize, seed: [u8; 16]) -> Self {
        let table = Table::with_capacity(capacity, seed);
        let capacity = table.capacity();
        Self {
            table,
            serial: 0,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            bulk: false,
            backlog: VecDeque::with_capacity(capacity),
            waiting: [
                VecDeque::with_capacity(capacity),
                VecDeque::with_capacity(capacity),
            ],
        }
    }

    /// Connections.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.table.len()
    }

    /// No connection at all?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Take an accepted connection and start the one it needs in the other network. False: it was reset, and counted.
    pub fn accept(&mut self, io: &mut I, now: Instant, arrival: Arrival<I::Socket>) -> bool {
        if self.table.is_full() {
            io.drop(Drop::TableFull);
            io.reset(arrival.socket);
            return false;
        }
        self.serial = self.serial.wrapping_add(1);
        let family = usize::from(arrival.to.is_ipv6());
        let way = arrival.way;
        let pair = Pair::new(arrival, now);
        let Some(id) = self.table.insert(self.serial, pair) else {
            // There is room, and no serial number comes twice.
            return false;
        };
        // Who came earlier is served earlier.
        let first = self.waiting.get(family).is_none_or(VecDeque::is_empty);
        if (first || way == Way::Out) && self.dial(io, id) {
            return self.table.get(id).is_some();
        }
        if let Some(line) = self.waiting.get_mut(family) {
            line.push_back((id, now.after(PATIENCE)));
        }
        true
    }

    /// There are sockets of the namespace again.
    pub fn supplied(&mut self, io: &mut I) {
        for family in 0..self.waiting.len() {
            while let Some(next) = self.waiting.get_mut(family).and_then(VecDeque::pop_front) {
                if self.dial(io, next.0) {
                    continue;
                }
                if let Some(line) = self.waiting.get_mut(family) {
                    line.push_front(next);
                }
                break;
            }
        }
    }

    /// Connect the target of `id`, or end it. False: there is no socket now.
    fn dial(&mut self, io: &mut I, id: FlowId) -> bool {
        let Some(pair) = self.table.get_mut(id) else {
            return true;
        };
        let (way, to, source) = pair.dial();
        let why = match io.connect(id, way, to, source) {
            Ok(socket) => {
                let origin = pair.set_target(socket);
                if io.adopt(id, origin) {
                    return true;
                }
                Drop::NoDescriptor
            }
            Err(ConnectError::NoSocket) => return false,
            Err(ConnectError::NoDescriptor) => Drop::NoDescriptor,
            Err(ConnectError::Failed(_)) => Drop::SocketError,
        };
        io.drop(why);
        self.settle(io, id, Life::Broken);
        true
    }

    /// Something happened on a socket of connection `id`.
    pub fn on_socket(&mut self, io: &mut I, now: Instant, id: FlowId, end: End, ready: Readiness) {
        let Some(pair) = self.table.get_mut(id) else {
            return;
        };
        let life = pair.on_socket(io, &mut self.scratch, now, id, (end, ready));
        self.settle(io, id, life);
    }

    /// Deadlines that have passed, and connections waiting for their next turn.
    pub fn on_timer(&mut self, io: &mut I, now: Instant) {
        // Those that are still not through queue up again behind the others.
        for _ in 0..self.backlog.len() {
            let Some(id) = self.backlog.pop_front() else {
                break;
            };
            if let Some(pair) = self.table.get_mut(id) {
                pair.queued = false;
                let life = pair.pump(io, &mut self.scratch, now, id);
                self.settle(io, id, life);
            }
        }
        while let Some((id, _)) = self.longest_waiting().filter(|(_, until)| *until <= now) {
            io.drop(Drop::SocketError);
            self.settle(io, id, Life::Broken);
        }
    }

    /// When [`Engine::on_timer`] is to be called next; in the past while connections wait for their turn.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.backlog.is_empty() {
            self.longest_waiting().map(|(_, until)| until)
        } else {
            Some(Instant(0))
        }
    }

    fn longest_waiting(&self) -> Option<(FlowId, Instant)> {
        let fronts = self.waiting.iter().filter_map(VecDeque::front);
        fronts.min_by_key(|(_, until)| *until).copied()
    }

    /// Has anything been part of a bulk transfer since this was last asked? Looking out for the next event instead of
    /// sleeping is of no use then: the longer the sleep, the more can be moved at once.
    pub fn take_bulk(&mut self) -> bool {
        std::mem::take(&mut self.bulk)
    }

    /// The connections numbered `from` and higher, in that order.
    pub fn flows(&self, from: FlowId, now: Instant) -> impl Iterator<Item = FlowView> {
        let mut next = self.table.first_from(from);
        std::iter::from_fn(move || {
            let id = next?;
            next =
                id.0.checked_add(1)
                    .and_then(|after| self.table.first_from(FlowId(after)));
            Some(self.table.get(id)?.view(id, now))
        })
    }

    /// Draw the conclusions from what became of a connection.
    fn settle(&mut self, io: &mut I, id: FlowId, life: Life) {
        if life == Life::Goes {
            if let Some(pair) = self.table.get_mut(id) {
                self.bulk |= pair.is_bulk();
                if pair.wants_turn() && !pair.queued {
                    pair.queued = true;
                    self.backlog.push_back(id);
                }
            }
            return;
        }
        let Some(pair) = self.table.remove(id) else {
            return;
        };
        if pair.queued {
            self.backlog.retain(|queued| *queued != id);
        }
        if pair.waits_for_socket() {
            for line in &mut self.waiting {
                line.retain(|(waits, _)| *waits != id);
            }
        }
        if life == Life::Refused {
            io.drop(Drop::SocketError);
        }
        pair.close(io, life);
    }
}
