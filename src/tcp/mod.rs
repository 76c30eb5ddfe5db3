//! TCP between a guest's kernel and sockets of the host's kernel.
//!
//! There is no TCP stack here. The guest's kernel speaks TCP to us in segments; the peer's kernel speaks TCP to the
//! host's kernel, behind a socket. We pass bytes from one to the other and *reflect*: what was acknowledged, how
//! much room there is, that a side is done, that it is gone. Congestion control, pacing, retransmission on
//! the real network are the two kernels' business.
//!
//! The idea, by direction:
//! * guest → host ([`from_guest`], [`ack`], [`keep`]): in-order payloads of a batch leave in one vectored send from the
//!   frames they came in. What the socket does not take and what arrives out of order is kept, in bounded memory, and
//!   acknowledged or SACKed. **Nothing the guest sent within the window is thrown away** (unless all of the
//!   memory is in use, and then recovery does not depend on a timeout either).
//! * host → guest ([`to_guest`], [`recovery`]): the socket's receive queue is the send buffer towards the guest.
//!   Bytes are peeked straight into frames and consumed when the guest has acknowledged them.
//!
//! What must never happen, whatever loss, reordering, buffer size or peer: a connection that waits for something no
//! event and no timer will report. Each wait has exactly one of these ends: a segment from the guest, an
//! edge on the socket (which edges exist is in [`Io`]), or a deadline of the connection. And no event costs more
//! than its share: one turn per connection ([`Engine::next_deadline`] is *now* while some wait for their next).
//!
//! The engine makes no system call and reads no clock: events come in through its methods, and it acts through [`Io`].
//! It allocates nothing after construction. The state of a connection is in [`conn`], deadlines in [`timer`],
//! beginning and end in [`handshake`], connections that begin outside in [`arrive`].
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod ack;
mod arrive;
mod conn;
mod from_guest;
mod handshake;
pub mod io;
mod keep;
mod moment;
pub mod payload;
mod recovery;
pub mod splice;
mod timer;
mod to_guest;

pub use arrive::Arrival;
pub use io::{Io, Readiness, Segment};

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;
use crate::flow::hash::Keyed;
use crate::flow::id::{FlowId, Key};
use crate::flow::table::Table;
use crate::flow::timers::Wheel;
use crate::flow::traffic::FlowView;
use crate::stats::Drop;
use crate::wire::tcp::{Flags, Seq};
use conn::{Conn, Ctx, Facts};
use from_guest::{Run, Verdict};
use io::{ConnectError, SocketError};
use keep::Pool;
use moment::Moment;

/// Most segments [`Engine::from_guest`] takes at a time; more are handled in several goes.
pub const BATCH: usize = 256;

/// Sizes and secrets, fixed at construction.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most connections, those that linger after their end included. About twice the descriptor limit is right.
    pub capacity: usize,
    /// IP MTU of the guest's interface, bytes.
    pub mtu: u16,
    /// Frames the tap's queue towards us holds (the interface's txqueuelen).
    pub tap_queue: u32,
    /// Bytes that may be kept for full sockets and out-of-order data, over all connections.
    pub pool: usize,
    /// Unanswered retransmissions before a guest is given up (tcp_retries2).
    pub retries: u8,
    /// Repetitions of a SYN after doubling times before a guest that does not answer is given up (tcp_syn_retries).
    pub syn_retries: u8,
    /// Repetitions before those, a second apart (tcp_syn_linear_timeouts; 0 on kernels without it).
    pub syn_linear: u8,
    /// Most time between repetitions of a SYN (tcp_rto_max_ms).
    pub rto_max: Duration,
    /// Secret for lookup and initial sequence numbers: random.
    pub seed: [u8; 16],
}

impl Limits {
    /// What suits a namespace with this MTU and descriptor limit.
    #[must_use]
    pub fn new(mtu: u16, descriptors: usize, seed: [u8; 16]) -> Self {
        Self {
            capacity: descriptors.saturating_mul(2).clamp(1024, 1 << 17),
            mtu,
            tap_queue: 1000,
            pool: 32 << 20,
            retries: 15,
            syn_retries: 6,
            syn_linear: 4,
            rto_max: Duration::from_secs(120),
            seed,
        }
    }

    /// Largest segment the guest's interface carries on this flow.
    fn mss(&self, key: &Key) -> u16 {
        let headers = if key.guest.is_ipv6() { 60 } else { 40 };
        self.mtu.saturating_sub(headers).max(88)
    }
}

/// All TCP connections of a guest. See the module text.
#[derive(Debug)]
pub struct Engine<I: Io> {
    table: Table<Conn<I::Socket>>,
    wheel: Wheel,
    pool: Pool,
    limits: Limits,
    secret: Keyed,
    /// Connections with an acknowledgement due at the end of the round.
    to_acknowledge: Vec<FlowId>,
    /// Connections whose socket has more than one turn's worth.
    backlog: VecDeque<FlowId>,
    /// Connections with data for which the link had no room.
    parked: Vec<FlowId>,
    /// Per segment of the current batch: whose it is. Entries handled are [`DONE`].
    owners: Vec<u32>,
}

/// In `owners`: belongs to no connection (yet).
const UNKNOWN: u32 = u32::MAX;
/// In `owners`: has been handled.
const DONE: u32 = u32::MAX - 1;

impl<I: Io> Engine<I> {
    /// An engine with all its memory reserved.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            table: Table::with_capacity(limits.capacity, limits.seed),
            wheel: Wheel::with_capacity(limits.capacity),
            pool: Pool::new(limits.pool),
            secret: Keyed::new(limits.seed),
            to_acknowledge: Vec::with_capacity(limits.capacity),
            backlog: VecDeque::with_capacity(limits.capacity),
            parked: Vec::with_capacity(limits.capacity),
            owners: Vec::with_capacity(BATCH),
            limits,
        }
    }

    /// Connections, those that linger after their end included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.table.len()
    }

    /// No connection at all?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Bytes of the memory for kept data that are in use.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.limits
            .pool
            .saturating_sub(usize::try_from(self.pool.available()).unwrap_or(0))
    }

    /// Handle segments of one read of the tap, in order. The socket of a flow sees one send for all of them.
    pub fn from_guest(&mut self, io: &mut I, now: Instant, batch: &[Segment<'_>]) {
        for part in batch.chunks(BATCH) {
            let mut owners = std::mem::take(&mut self.owners);
            owners.clear();
            let mut last: Option<(Key, u32)> = None;
            owners.extend(part.iter().map(|segment| {
                let key = Key::new(segment.src, segment.dst);
                match last {
                    Some((of, owner)) if of == key => owner,
                    _ => {
                        let owner = self.table.lookup(&key).map_or(UNKNOWN, |id| id.0);
                        last = Some((key, owner));
                        owner
                    }
                }
            }));
            self.dispatch(io, now, part, &mut owners);
            self.owners = owners;
        }
    }

    fn dispatch(&mut self, io: &mut I, now: Instant, batch: &[Segment<'_>], owners: &mut [u32]) {
        for start in 0..batch.len() {
            let owner = owners.get(start).copied().unwrap_or(DONE);
            if owner == DONE {
                continue;
            }
            let Some((segments, owners)) = batch.get(start..).zip(owners.get_mut(start..)) else {
                return;
            };
            if owner == UNKNOWN {
                if let Some(segment) = segments.first() {
                    self.single(io, now, segment);
                }
            } else {
                self.group(io, now, FlowId(owner), segments, owners);
            }
        }
    }

    /// All segments of the batch that belong to connection `id`.
    fn group(
        &mut self,
        io: &mut I,
        now: Instant,
        id: FlowId,
        batch: &[Segment<'_>],
        owners: &mut [u32],
    ) {
        let mut run = Run::new();
        let verdict = self.with(io, now, id, |conn, ctx| {
            for (segment, owner) in batch
                .iter()
                .zip(owners.iter_mut())
                .filter(|(_, owner)| **owner == id.0)
            {
                *owner = DONE;
                let verdict = conn.segment(ctx, segment, &mut run);
                if verdict != Verdict::Carry {
                    return Some((verdict, *segment));
                }
            }
            conn.after_batch(ctx, &mut run);
            if conn.finish(ctx) {
                None
            } else {
                batch.first().map(|segment| (Verdict::Gone, *segment))
            }
        });
        let Some(Some((verdict, segment))) = verdict else {
            return;
        };
        self.remove(io, id);
        if verdict == Verdict::Restart {
            self.open(io, now, &segment);
        }
        // What follows belongs to whatever has these ports now.
        for (segment, owner) in batch
            .iter()
            .zip(owners.iter_mut())
            .filter(|(_, owner)| **owner == id.0)
        {
            *owner = DONE;
            self.single(io, now, segment);
        }
    }

    /// A segment on its own: of a connection that began within this batch, or of none.
    fn single(&mut self, io: &mut I, now: Instant, segment: &Segment<'_>) {
        let key = Key::new(segment.src, segment.dst);
        if let Some(id) = self.table.lookup(&key) {
            self.group(io, now, id, std::slice::from_ref(segment), &mut [id.0]);
            return;
        }
        let repr = &segment.repr;
        if repr.flags.contains(Flags::RST) {
            io.drop(Drop::NoFlow);
        } else if repr.flags.contains(Flags::SYN) && !repr.flags.contains(Flags::ACK) {
            self.open(io, now, segment);
        } else {
            io.drop(Drop::NoFlow);
            let syn = u32::from(repr.flags.contains(Flags::SYN));
            let fin = u32::from(repr.flags.contains(Flags::FIN));
            let length = u32::try_from(segment.payload.len())
                .unwrap_or(0)
                .saturating_add(syn)
                .saturating_add(fin);
            if repr.flags.contains(Flags::ACK) {
                handshake::refuse(io, &key, repr.ack, None);
            } else {
                handshake::refuse(io, &key, Seq(0), Some(repr.seq.add(length)));
            }
        }
    }

    /// A SYN for a connection that does not exist yet.
    fn open(&mut self, io: &mut I, now: Instant, segment: &Segment<'_>) {
        let key = Key::new(segment.src, segment.dst);
        let next = segment.repr.seq.add(1);
        if key.remote.port == 0 || key.guest.port == 0 {
            io.drop(Drop::BadDestination);
            handshake::refuse(io, &key, Seq(0), Some(next));
            return;
        }
        let isn = handshake::initial_seq(&self.secret, &key, now);
        let conn = Conn::asked_for(&segment.repr, isn, self.limits.mss(&key), now);
        let Some(id) = self.table.insert(key, conn) else {
            io.drop(Drop::TableFull);
            handshake::refuse(io, &key, Seq(0), Some(next));
            return;
        };
        match io.connect(id, &key) {
            Ok(socket) => {
                if let Some(conn) = self.table.get_mut(id) {
                    conn.socket = Some(socket);
                    self.wheel.arm(id.0, conn.deadline(now));
                }
                return;
            }
            Err(ConnectError::Failed(error)) => handshake::report_failure(io, &key, next, error),
            Err(ConnectError::NoDescriptor) => {
                io.drop(Drop::NoDescriptor);
                handshake::refuse(io, &key, Seq(0), Some(next));
            }
            Err(ConnectError::Refused(why)) => {
                io.drop(why);
                handshake::refuse(io, &key, Seq(0), Some(next));
            }
        }
        self.remove(io, id);
    }

    /// Something happened on the socket of connection `id`.
    pub fn on_socket(&mut self, io: &mut I, now: Instant, id: FlowId, ready: Readiness) {
        let alive = self.with(io, now, id, |conn, ctx| conn.on_socket(ctx, ready));
        if alive == Some(false) {
            self.remove(io, id);
        }
    }

    /// Deadlines that have passed, and connections waiting for their next turn.
    pub fn on_timer(&mut self, io: &mut I, now: Instant) {
        while let Some(number) = self.wheel.pop(now) {
            let id = FlowId(number);
            if self.with(io, now, id, |conn, ctx| {
                conn.on_timer(ctx) && conn.finish(ctx)
            }) == Some(false)
            {
                self.remove(io, id);
            }
        }
        // Those that are still not through queue up again behind the others.
        for _ in 0..self.backlog.len() {
            let Some(id) = self.backlog.pop_front() else {
                break;
            };
            let alive = self.with(io, now, id, |conn, ctx| {
                if conn.is(Facts::QUEUED) {
                    conn.clear(Facts::BACKLOG.union(Facts::QUEUED));
                    conn.pump(ctx);
                }
                conn.finish(ctx)
            });
            if alive == Some(false) {
                self.remove(io, id);
            }
        }
    }

    /// The link has room again: whoever it had none for goes on in the next [`Engine::on_timer`]. Without being told, they
    /// try again after a millisecond.
    pub fn on_room(&mut self, io: &mut I, now: Instant) {
        let mut parked = std::mem::take(&mut self.parked);
        for id in parked.drain(..) {
            self.with(io, now, id, |conn, _| {
                if conn.is(Facts::PARKED) {
                    conn.clear(Facts::PARKED);
                    conn.set(Facts::BACKLOG);
                }
            });
        }
        self.parked = parked;
    }

    /// When [`Engine::on_timer`] is to be called next; in the past while connections wait for their turn.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.backlog.is_empty() {
            self.wheel.next()
        } else {
            Some(Instant(0))
        }
    }

    /// The end of a round of the event loop: send the acknowledgements nothing else has carried.
    pub fn flush(&mut self, io: &mut I, now: Instant) {
        let mut list = std::mem::take(&mut self.to_acknowledge);
        for id in list.drain(..) {
            self.with(io, now, id, |conn, ctx| {
                conn.clear(Facts::LISTED);
                conn.flush_ack(ctx);
            });
        }
        self.to_acknowledge = list;
    }

    /// Run `f` on a connection, then see to its timer and lists.
    fn with<R>(
        &mut self,
        io: &mut I,
        now: Instant,
        id: FlowId,
        f: impl FnOnce(&mut Conn<I::Socket>, &mut Ctx<'_, I>) -> R,
    ) -> Option<R> {
        let key = *self.table.key(id)?;
        let conn = self.table.get_mut(id)?;
        let mut ctx = Ctx {
            io,
            pool: &mut self.pool,
            limits: &self.limits,
            now,
            key,
        };
        let result = f(conn, &mut ctx);
        if conn.is(Facts::ACK_NOW) && !conn.is(Facts::LISTED) {
            // The lists never grow: entries of connections long gone may fill them for the rest of a round.
            if self.to_acknowledge.len() < self.to_acknowledge.capacity() {
                conn.set(Facts::LISTED);
                self.to_acknowledge.push(id);
            } else {
                conn.flush_ack(&mut ctx);
            }
        }
        if conn.is(Facts::REFUSED) {
            conn.clear(Facts::REFUSED);
            if !conn.is(Facts::PARKED) && self.parked.len() < self.parked.capacity() {
                conn.set(Facts::PARKED);
                self.parked.push(id);
            }
        }
        if conn.is(Facts::BACKLOG) && !conn.is(Facts::QUEUED) {
            if self.backlog.len() < self.backlog.capacity() {
                conn.set(Facts::QUEUED);
                self.backlog.push_back(id);
            } else {
                conn.chore_at = Moment::at(now);
            }
        }
        if conn.is(Facts::BLOCKED) {
            conn.chore_at = conn.chore_at.min(Moment::after(now, ack::RETRY));
        }
        self.wheel.arm(id.0, conn.deadline(now));
        Some(result)
    }

    /// The socket of connection `id` is closed, or never was: forget it.
    fn remove(&mut self, io: &mut I, id: FlowId) {
        self.wheel.cancel(id.0);
        if let Some(conn) = self.table.remove(id).filter(|c| !c.is(Facts::LINGER)) {
            io.finished(conn.rule, &conn.traffic);
        }
    }

    /// Is connection `id` over but for repeated FINs?
    fn lingers(&self, id: FlowId) -> bool {
        self.table.get(id).is_some_and(|c| c.is(Facts::LINGER))
    }

    /// Connections numbered `from` and higher, in order: what is asked for report after report can go on where it
    /// stopped. Those that only linger are not among them.
    pub fn flows(&self, now: Instant, from: FlowId) -> impl Iterator<Item = FlowView> {
        self.table
            .iter_from(from)
            .filter(|(_, _, conn)| !conn.is(Facts::LINGER))
            .map(move |(id, key, conn)| FlowView {
                id,
                key: *key,
                rule: conn.rule,
                inbound: conn.is(Facts::INBOUND),
                traffic: conn.traffic,
                idle: now.since(conn.heard.instant(now)),
            })
    }
}

impl<S> Conn<S> {
    /// All segments of a batch have been seen.
    fn after_batch<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, run: &mut Run<'_>) {
        if self.is(Facts::LINGER) {
            return;
        }
        self.flush_run(ctx, run);
        self.shut_when_drained(ctx);
        self.schedule_ack(ctx);
        // A guest without SACK counts duplicates: one for each segment beyond a gap, as far as it matters.
        if !self.is(Facts::SACK) {
            for _ in 1..run.gaps.min(3) {
                self.emit_ack(ctx);
                self.set(Facts::ACK_NOW);
            }
        }
        if self.any(Facts::MORE.union(Facts::RECOVERY)) {
            self.pump(ctx);
        }
        self.consume(ctx, false);
    }

    /// An event on the socket. `false`: the connection is over, everything is closed.
    fn on_socket<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, ready: Readiness) -> bool {
        if self.socket.is_none() {
            return true;
        }
        if ready.rdhup || ready.hup || ready.urgent {
            self.set(Facts::EAGER);
        }
        if self.is(Facts::CONNECTING) {
            if ready.readable || ready.rdhup {
                self.set(Facts::MORE);
            }
            return self.on_connecting(ctx);
        }
        if ready.writable {
            self.on_writable(ctx);
        }
        if ready.readable || ready.rdhup || ready.hup {
            self.ask_peer(ctx);
            self.set(Facts::MORE);
            self.pump(ctx);
        }
        if ready.error {
            if let Some(socket) = &self.socket {
                if ctx
                    .io
                    .take_error(socket)
                    .is_some_and(|e| e != SocketError::WouldBlock)
                {
                    self.set(Facts::DEAD);
                }
            }
        }
        self.finish(ctx)
    }
}
