//! Datagrams of the guest: find or make the flow, and send in as few system calls as the batch allows.
//!
//! A batch is first sorted by flow without moving anything: each datagram is linked to the next of its flow, and
//! a run of the same pair of end points costs one lookup. Then each flow's datagrams leave, in order: two or more
//! of equal size (the last may be shorter) by UDP_SEGMENT, the rest by sendmmsg(2). Order between flows is
//! nobody's business, order within one is kept.

use std::io::IoSlice;

use arrayvec::ArrayVec;

use super::Engine;
use super::flow::{Carrier, NO_RUN, NONE};
use super::io::{Datagram, Fault, Io, MAX_BURST_BYTES, MAX_SEGMENTS, Send};
use crate::clock::Instant;
use crate::flow::id::{FlowId, Key};
use crate::icmp::oversize::Packet;
use crate::icmp::report::Kind;
use crate::stats::Drop;
use crate::wire::{DEFAULT_HOP_LIMIT, ipv4, ipv6, udp};

/// Datagrams handled at once.
const CHUNK: usize = 64;

/// The datagrams of one flow in a chunk: a list by position.
#[derive(Clone, Copy)]
struct Run {
    flow: FlowId,
    head: u8,
    tail: u8,
}

/// A datagram to be sent: a part of a super-frame, or a whole [`Datagram`].
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    payload: &'a [u8],
    of: &'a Datagram<'a>,
    dont_fragment: bool,
}

type Pieces<'a> = ArrayVec<Piece<'a>, MAX_SEGMENTS>;

impl<S> Engine<S> {
    /// Carry a batch of datagrams of the guest.
    pub fn from_guest<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        batch: &[Datagram<'_>],
    ) {
        for chunk in batch.chunks(CHUNK) {
            self.chunk(io, now, chunk);
        }
    }

    fn chunk<I: Io<Socket = S>>(&mut self, io: &mut I, now: Instant, chunk: &[Datagram<'_>]) {
        let mut next = [NO_RUN; CHUNK];
        let mut runs = ArrayVec::<Run, CHUNK>::new();
        let mut last: Option<(&Datagram<'_>, u8)> = None;
        for (datagram, at) in chunk.iter().zip(0_u8..) {
            let known = last.filter(|(d, _)| d.src == datagram.src && d.dst == datagram.dst);
            let number = match known {
                Some((_, number)) => number,
                None => match self.run_of(io, now, datagram, &mut runs) {
                    Ok(number) => number,
                    Err(why) => {
                        io.drop(why);
                        continue;
                    }
                },
            };
            last = Some((datagram, number));
            if let Some(run) = runs.get_mut(usize::from(number)) {
                match next.get_mut(usize::from(run.tail)) {
                    Some(link) => *link = at,
                    None => run.head = at,
                }
                run.tail = at;
            }
        }
        for run in &runs {
            self.send_run(io, chunk, run, &next);
        }
    }

    /// The number of the run a datagram belongs to; makes it, and the flow, if need be.
    fn run_of<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        datagram: &Datagram<'_>,
        runs: &mut ArrayVec<Run, CHUNK>,
    ) -> Result<u8, Drop> {
        let id = match self.state.find(&Key::new(datagram.src, datagram.dst)) {
            Some(id) => id,
            None => self.create(io, now, datagram)?,
        };
        let flow = self.state.flows.get_mut(id).ok_or(Drop::NoFlow)?;
        if flow.run == NO_RUN {
            let number = u8::try_from(runs.len()).map_err(|_| Drop::NoBuffer)?;
            let run = Run {
                flow: id,
                head: NO_RUN,
                tail: NO_RUN,
            };
            runs.try_push(run).map_err(|_| Drop::NoBuffer)?;
            flow.run = number;
            flow.used = now;
            // To one that began outside this is an answer.
            flow.replied |= flow.listener != NONE;
            let socket = flow.socket;
            // Also protects the flow from being evicted for another one of this batch.
            self.state.touch(socket, now);
            return Ok(number);
        }
        Ok(flow.run)
    }

    /// Send what one flow has in a chunk.
    fn send_run<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        chunk: &[Datagram<'_>],
        run: &Run,
        next: &[u8; CHUNK],
    ) {
        if let Some(flow) = self.state.flows.get_mut(run.flow) {
            flow.run = NO_RUN;
            let mut at = usize::from(run.head);
            while let Some(datagram) = chunk.get(at) {
                flow.traffic.add_out(datagram.payload.len());
                at = next.get(at).map_or(CHUNK, |n| usize::from(*n));
            }
        }
        let mut pieces = Pieces::new();
        let mut at = usize::from(run.head);
        while let Some(datagram) = chunk.get(at) {
            at = next.get(at).map_or(CHUNK, |n| usize::from(*n));
            let size = datagram.gso_size.map_or(0, usize::from);
            let size = if size == 0 {
                datagram.payload.len()
            } else {
                size
            };
            let dont_fragment = datagram.dont_fragment && !self.fragments(run.flow, datagram, size);
            let alike = pieces.last().is_none_or(|p| {
                p.of.hop_limit == datagram.hop_limit
                    && p.of.tos == datagram.tos
                    && p.dont_fragment == dont_fragment
            });
            if !alike {
                self.send_pieces(io, run.flow, &pieces);
                pieces.clear();
            }
            let mut rest = Some(datagram.payload);
            while let Some(payload) = rest {
                let (payload, behind) = payload.split_at_checked(size).unwrap_or((payload, &[]));
                rest = Some(behind).filter(|rest| !rest.is_empty());
                if pieces.is_full() {
                    self.send_pieces(io, run.flow, &pieces);
                    pieces.clear();
                }
                // There is room now.
                let _ = pieces.try_push(Piece {
                    payload,
                    of: datagram,
                    dont_fragment,
                });
            }
        }
        self.send_pieces(io, run.flow, &pieces);
    }

    /// Is this one of the large datagrams of a flow whose path does not take them?
    fn fragments(&self, id: FlowId, datagram: &Datagram<'_>, len: usize) -> bool {
        as_packet(datagram, len).may_be_careless()
            && self
                .state
                .flows
                .get(id)
                .is_some_and(|flow| flow.fragment_large)
    }

    /// Send datagrams of one flow that agree in their header fields.
    fn send_pieces<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId, pieces: &[Piece<'_>]) {
        let Some(how) = pieces.first().and_then(|p| self.prepare(io, id, p)) else {
            for _ in pieces {
                io.drop(Drop::NoFlow);
            }
            return;
        };
        let mut singles = pieces;
        let mut ahead = 0_usize;
        while let Some(rest) = singles.get(ahead..).filter(|rest| !rest.is_empty()) {
            let gso_max = self
                .state
                .flows
                .get(id)
                .map_or(0, |f| usize::from(f.gso_max));
            let count = equal_sized(rest, gso_max);
            if count < 2 {
                ahead = ahead.saturating_add(1);
                continue;
            }
            let (before, _) = singles.split_at_checked(ahead).unwrap_or_default();
            let (group, after) = rest.split_at_checked(count).unwrap_or_default();
            self.send_singles(io, id, &how, before);
            self.send_group(io, id, &how, group);
            (singles, ahead) = (after, 0);
        }
        self.send_singles(io, id, &how, singles);
    }

    /// Bring the socket into the state a datagram wants; what is left for control messages and the address.
    fn prepare<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        id: FlowId,
        piece: &Piece<'_>,
    ) -> Option<Send> {
        let datagram = piece.of;
        let flow = self.state.flows.get(id)?;
        let ipv6 = flow.peer.end.is_ipv6();
        let (inner, known, connected) = match flow.carrier() {
            Carrier::Socket(id) => {
                let socket = self.state.sockets.get_mut(id)?;
                let inner = socket.io.as_ref()?;
                (inner, &mut socket.dont_fragment, socket.connected.is_some())
            }
            Carrier::Listener(id) => {
                let post = self.state.listeners.get_mut(id)?;
                let known = post.dont_fragment.get_mut(usize::from(ipv6))?;
                (&post.listener.socket, known, false)
            }
        };
        if *known != Some(piece.dont_fragment) {
            io.set_dont_fragment(inner, ipv6, piece.dont_fragment);
            *known = Some(piece.dont_fragment);
        }
        // The default for multicast is 1 hop, whatever the guest wanted.
        // What sockets send with anyway needs no control message.
        let plain = datagram.hop_limit == DEFAULT_HOP_LIMIT && !flow.group;
        Some(Send {
            to: if connected { None } else { Some(flow.peer) },
            hop_limit: if plain {
                None
            } else {
                Some(datagram.hop_limit)
            },
            tos: datagram.tos,
            source: flow.local,
            ipv6,
        })
    }

    /// Send two or more datagrams of equal size at once.
    fn send_group<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        id: FlowId,
        how: &Send,
        group: &[Piece<'_>],
    ) {
        let size = group.first().map_or(0, |p| p.payload.len());
        let segment = u16::try_from(size).unwrap_or(u16::MAX);
        for retried in [false, true] {
            let Some(inner) = self.inner(id) else {
                return;
            };
            match io.send_segments(inner, how, &slices(group), segment) {
                Ok(()) => return,
                Err(Fault::WouldBlock | Fault::NoDescriptor) => {
                    for _ in group {
                        io.drop(Drop::QueueFull);
                    }
                    return;
                }
                Err(Fault::TooBig | Fault::Errno(libc::EINVAL)) => {
                    self.limit_gso(id, segment.saturating_sub(1));
                    break;
                }
                Err(Fault::Errno(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT)) => {
                    self.limit_gso(id, 0);
                    break;
                }
                // Most likely the fate of an earlier datagram.
                Err(Fault::Errno(_)) if !retried => {
                    self.read_errors_of_flow(io, id);
                }
                Err(Fault::Errno(_)) => {}
            }
        }
        self.send_singles(io, id, how, group);
    }

    fn limit_gso(&mut self, id: FlowId, max: u16) {
        if let Some(flow) = self.state.flows.get_mut(id) {
            flow.gso_max = flow.gso_max.min(max);
        }
    }

    /// Send datagrams one by one. An error may be about an earlier datagram: the report is read, and the same
    /// datagram tried once more; if it fails again the error is its own.
    fn send_singles<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        id: FlowId,
        how: &Send,
        pieces: &[Piece<'_>],
    ) {
        let mut rest = pieces;
        let mut retried = false;
        while let (Some(inner), false) = (self.inner(id), rest.is_empty()) {
            let (sent, fault) = io.send_each(inner, how, &slices(rest));
            rest = rest.get(sent..).unwrap_or_default();
            retried &= sent == 0;
            let (Some(fault), Some((piece, behind))) = (fault, rest.split_first()) else {
                if sent == 0 {
                    return;
                }
                continue;
            };
            match fault {
                Fault::WouldBlock | Fault::NoDescriptor => {
                    for _ in rest {
                        io.drop(Drop::QueueFull);
                    }
                    return;
                }
                Fault::Errno(_) if !retried => {
                    self.read_errors_of_flow(io, id);
                    retried = true;
                    continue;
                }
                Fault::Errno(errno) => {
                    io.drop(Drop::SocketError);
                    if let Some(kind) = Kind::from_errno(how.ipv6, errno) {
                        self.report_own(io, piece.of, kind);
                    }
                }
                Fault::TooBig => self.too_big(io, id, how, piece),
            }
            (rest, retried) = (behind, false);
        }
    }

    /// A datagram that must not be fragmented does not fit. See [`crate::icmp::oversize`].
    fn too_big<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        id: FlowId,
        how: &Send,
        piece: &Piece<'_>,
    ) {
        let queued = self.read_errors_of_flow(io, id);
        if piece.dont_fragment && as_packet(piece.of, piece.payload.len()).is_careless() {
            if let Some(flow) = self.state.flows.get_mut(id) {
                flow.fragment_large = true;
            }
            if let Some(inner) = self.inner(id) {
                io.set_dont_fragment(inner, how.ipv6, false);
                let (sent, _) = io.send_each(inner, how, &[IoSlice::new(piece.payload)]);
                io.set_dont_fragment(inner, how.ipv6, true);
                if sent == 1 {
                    return;
                }
            }
        } else {
            let connected = self.inner(id).filter(|_| how.to.is_none());
            let least = if how.ipv6 { 1280 } else { 68 };
            let mtu = queued
                .or_else(|| connected.and_then(|inner| io.path_mtu(inner, how.ipv6)))
                .unwrap_or(least);
            self.report_own(io, piece.of, Kind::too_big(how.ipv6, mtu.max(least)));
        }
        io.drop(Drop::SocketError);
    }

    /// The socket of a flow.
    fn inner(&self, id: FlowId) -> Option<&S> {
        self.state.inner(self.state.flows.get(id)?.carrier())
    }
}

/// A datagram with `len` bytes of payload, as far as it matters to whether it may be fragmented.
fn as_packet<'a>(datagram: &'a Datagram<'_>, len: usize) -> Packet<'a> {
    let ipv6 = datagram.src.is_ipv6();
    let header = if ipv6 {
        ipv6::HEADER_LEN
    } else {
        ipv4::HEADER_LEN
    };
    Packet {
        ipv6,
        echo: false,
        len: len.saturating_add(header).saturating_add(udp::HEADER_LEN),
        hop_limit: datagram.hop_limit,
        l3: datagram.l3,
    }
}

fn slices<'a>(pieces: &[Piece<'a>]) -> ArrayVec<IoSlice<'a>, MAX_SEGMENTS> {
    pieces
        .iter()
        .take(MAX_SEGMENTS)
        .map(|p| IoSlice::new(p.payload))
        .collect()
}

/// How many datagrams from the first on can leave in one segmented send: all of the first one's size, but the last,
/// which may be smaller. UDP_SEGMENT cannot express empty ones.
fn equal_sized(pieces: &[Piece<'_>], gso_max: usize) -> usize {
    let Some(size) = pieces
        .first()
        .map(|p| p.payload.len())
        .filter(|n| (1..=gso_max).contains(n))
    else {
        return 0;
    };
    let (mut count, mut bytes) = (0_usize, 0_usize);
    for piece in pieces.iter().take(MAX_SEGMENTS) {
        let len = piece.payload.len();
        let total = bytes.saturating_add(len);
        if len == 0 || len > size || total > MAX_BURST_BYTES {
            break;
        }
        (count, bytes) = (count.saturating_add(1), total);
        if len < size {
            break;
        }
    }
    count
}
