//! Segments from the guest: is it acceptable, what does it acknowledge, where does its payload go.
//!
//! The segments of one batch that belong to one connection are handled together. In-order payloads are only
//! *noted* in a [`Run`], slices of the frames they arrived in, and leave in one vectored send at the end. Nothing
//! is decided about acknowledging before that send has said how much it took.
//!
//! Order of checks as RFC 9293 section 3.10.7.4 with the stricter RFC 5961: a RST must hit the expected sequence
//! number exactly, a SYN in an established connection never kills it, both earn a challenge ACK otherwise.

use super::conn::{Conn, Ctx, Facts};
use super::io::{Io, Segment, SocketError};
use super::moment::Moment;
use super::payload::MAX_PIECES;
use crate::clock::Instant;
use crate::stats::Drop;
use crate::sys::piece::Piece;
use crate::wire::tcp::{Flags, Repr, Seq};

/// Most slices one send takes.
const RUN: usize = MAX_PIECES;
/// How far behind `snd_una` an acknowledgement may be and still count as merely old (RFC 5961 section 5).
const OLD_ACK: u32 = 1 << 24;

/// In-order payload that was noted and not offered to the socket yet.
pub(super) struct Run<'a> {
    slices: [Piece<'a>; RUN],
    count: usize,
    bytes: usize,
    /// Where it begins.
    start: Seq,
    /// Segments that arrived out of order.
    pub gaps: u8,
}

impl<'a> Run<'a> {
    pub fn new() -> Self {
        Self {
            slices: [Piece::EMPTY; RUN],
            count: 0,
            bytes: 0,
            start: Seq(0),
            gaps: 0,
        }
    }

    /// `false`: it is full.
    fn push(&mut self, seq: Seq, data: Piece<'a>) -> bool {
        let Some(slot) = self.slices.get_mut(self.count) else {
            return false;
        };
        *slot = data;
        if self.count == 0 {
            self.start = seq;
        }
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(data.len());
        true
    }

    fn slices(&self) -> &[Piece<'a>] {
        self.slices.get(..self.count).unwrap_or_default()
    }
}

/// What a segment did to its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Carry on with the next one.
    Carry,
    /// The connection is over, the socket is closed.
    Gone,
    /// As `Gone`, and the segment is a SYN that begins a new one.
    Restart,
}

impl<S> Conn<S> {
    /// Handle one segment. The caller flushes `run` after the last.
    pub fn segment<'a, I: Io<Socket = S>>(
        &mut self,
        ctx: &mut Ctx<'_, I>,
        segment: &Segment<'a>,
        run: &mut Run<'a>,
    ) -> Verdict {
        let flags = segment.repr.flags;
        self.heard = Moment::at(ctx.now);
        self.unheard = 0;
        if self.is(Facts::CALLING) {
            return self.on_answer(ctx, segment);
        }
        if flags.contains(Flags::RST) {
            return self.on_rst(ctx, segment, run);
        }
        if flags.contains(Flags::SYN) {
            return self.on_syn(ctx, segment);
        }
        if self.is(Facts::CONNECTING) || !flags.contains(Flags::ACK) {
            ctx.io.drop(Drop::OutOfWindow);
            return Verdict::Carry;
        }
        if self.is(Facts::LINGER) {
            // Only a repeated FIN brings anything here: our last acknowledgement was lost.
            self.emit_ack(ctx);
            return Verdict::Carry;
        }
        if self.is(Facts::SYN_SENT) {
            if segment.repr.ack != self.snd_nxt {
                let mut repr = self.header(&ctx.key, segment.repr.ack, Flags::RST);
                repr.flags = Flags::RST;
                ctx.io.emit(&ctx.key, &repr);
                return Verdict::Carry;
            }
            self.established(ctx.now, &segment.repr);
        }
        let end = segment.repr.seq.add(span(segment));
        if end.lt(self.rcv_acked) || segment.repr.seq.gt(self.edge.max(self.rcv_nxt)) {
            // Also keep-alive and window probes, which are old on purpose.
            self.set(Facts::ACK_NOW);
            ctx.io.drop(Drop::OutOfWindow);
            return Verdict::Carry;
        }
        if self.take_ack(ctx, segment) {
            self.payload(ctx, segment, run);
        }
        Verdict::Carry
    }

    fn on_rst<I: Io<Socket = S>>(
        &mut self,
        ctx: &mut Ctx<'_, I>,
        segment: &Segment<'_>,
        run: &mut Run<'_>,
    ) -> Verdict {
        let seq = segment.repr.seq;
        let exact = seq == self.rcv_nxt || seq == self.rcv_acked;
        let syn_again = self.is(Facts::CONNECTING) && seq.add(1) == self.rcv_nxt;
        if exact || syn_again {
            // What came before it may still reach the peer.
            self.flush_run(ctx, run);
            self.close_socket(ctx, true);
            return Verdict::Gone;
        }
        if seq.ge(self.rcv_acked) && seq.le(self.edge) {
            self.set(Facts::ACK_NOW);
        }
        ctx.io.drop(Drop::OutOfWindow);
        Verdict::Carry
    }

    fn on_syn<I: Io<Socket = S>>(
        &mut self,
        ctx: &mut Ctx<'_, I>,
        segment: &Segment<'_>,
    ) -> Verdict {
        let pure = !segment.repr.flags.contains(Flags::ACK);
        let first = self.rcv_acked.sub(1);
        if self.any(Facts::CONNECTING.union(Facts::SYN_SENT)) {
            if pure && segment.repr.seq != first {
                // The guest gave up on the first attempt and begins anew.
                self.close_socket(ctx, true);
                return Verdict::Restart;
            }
            let crossed = !pure && segment.repr.ack == self.snd_nxt && segment.repr.seq == first;
            if self.is(Facts::SYN_SENT) && crossed {
                // Both sides began, and the guest has got our SYN.
                self.established(ctx.now, &segment.repr);
                self.set(Facts::ACK_NOW);
            } else if self.is(Facts::SYN_SENT) {
                self.rtt.abandon();
                self.emit_syn_ack(ctx);
            }
            return Verdict::Carry;
        }
        // A guest that has sent its FIN may be done with the connection and use its ports again (RFC 6191).
        if pure && self.is(Facts::GUEST_FIN) && segment.repr.seq.gt(self.rcv_nxt) {
            self.close_socket(ctx, !self.is(Facts::HOST_EOF));
            return Verdict::Restart;
        }
        self.set(Facts::ACK_NOW);
        ctx.io.drop(Drop::OutOfWindow);
        Verdict::Carry
    }

    /// The guest has completed the handshake.
    pub fn established(&mut self, now: Instant, repr: &Repr) {
        self.clear(Facts::SYN_SENT);
        self.rtt.acked(repr.ack, now);
        self.snd_una = self.snd_nxt;
        self.backoff = 0;
        self.rtx_at = Moment::NEVER;
        // A window in a SYN is never scaled (RFC 7323 section 2.2).
        let shift = if repr.flags.contains(Flags::SYN) {
            0
        } else {
            self.snd_shift
        };
        self.snd_wnd = u32::from(repr.window) << shift;
        self.snd_wl1 = repr.seq;
    }

    /// Window, SACK and cumulative acknowledgement. `false`: the segment is to be ignored.
    fn take_ack<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, segment: &Segment<'_>) -> bool {
        let repr = &segment.repr;
        let ack = repr.ack;
        if ack.gt(self.snd_nxt) || ack.lt(self.snd_una.sub(OLD_ACK)) {
            self.set(Facts::ACK_NOW);
            ctx.io.drop(Drop::OutOfWindow);
            return false;
        }
        if ack.lt(self.snd_una) {
            return true;
        }
        let mut same_window = true;
        if repr.seq.ge(self.snd_wl1) {
            let window = u32::from(repr.window) << self.snd_shift;
            same_window = ack.add(window) == self.snd_una.add(self.snd_wnd);
            let reopened = self.snd_wnd == 0 && window > 0;
            self.snd_wnd = window;
            self.snd_wl1 = repr.seq;
            if reopened {
                self.backoff = 0;
            }
            if reopened && ack == self.snd_una && self.in_flight() > 0 {
                // What was in flight met a closed window: nothing but sending it again will tell.
                self.lose_all();
                self.cwnd = self
                    .cwnd
                    .max(self.ssthresh.min(super::to_guest::FIRST_CWND));
            }
        }
        let mut news = false;
        if self.is(Facts::SACK) {
            for &(start, end) in repr.options.sack.as_slice() {
                if start.gt(ack) && start.lt(end) && end.le(self.snd_nxt) {
                    news |= self.board.add(start, end);
                }
            }
        }
        if ack.gt(self.snd_una) {
            self.progress(ack, ctx.now);
        } else if segment.payload.is_empty()
            && same_window
            && !repr.flags.contains(Flags::FIN)
            && self.in_flight() > 0
        {
            self.dup_acks = self.dup_acks.saturating_add(1);
            news = true;
        }
        if news {
            self.consider_loss(ctx.now);
        }
        true
    }

    /// Sort the payload: in order, out of order, or known already.
    fn payload<'a, I: Io<Socket = S>>(
        &mut self,
        ctx: &mut Ctx<'_, I>,
        segment: &Segment<'a>,
        run: &mut Run<'a>,
    ) {
        let fin = segment.repr.flags.contains(Flags::FIN);
        if segment.payload.is_empty() && !fin {
            return;
        }
        if run.count.saturating_add(segment.payload.count()) > RUN {
            self.flush_run(ctx, run);
        }
        let mut seq = segment.repr.seq;
        let mut skip = 0;
        if seq.lt(self.rcv_nxt) {
            skip = usize::try_from(self.rcv_nxt.distance(seq)).unwrap_or(usize::MAX);
            seq = self.rcv_nxt;
            self.set(Facts::ACK_NOW);
        }
        let mut length = segment.payload.len().saturating_sub(skip);
        if self.is(Facts::GUEST_FIN) {
            return;
        }
        let room = usize::try_from(self.edge.offset(seq)).unwrap_or(0);
        let cut = length > room;
        if cut {
            length = room;
            self.set(Facts::ACK_NOW);
            ctx.io.drop(Drop::OutOfWindow);
        }
        let end = segment
            .repr
            .seq
            .add(u32::try_from(segment.payload.len()).unwrap_or(0));
        if fin && !cut && end.ge(self.rcv_nxt) {
            self.set(Facts::FIN_SEEN);
            self.fin_at = end;
        }
        self.frames = self.frames.saturating_add(1);
        if !self.kept.is_none() {
            // It may fill a gap (RFC 5681 section 4.2).
            self.set(Facts::ACK_NOW);
        }
        if seq != self.rcv_nxt {
            self.set(Facts::ACK_NOW);
            run.gaps = run.gaps.saturating_add(1);
        }
        if length == 0 {
            return;
        }
        self.traffic.packets_out = self.traffic.packets_out.saturating_add(1);
        let size = u16::try_from(length).unwrap_or(u16::MAX);
        self.frame_size = self
            .frame_size
            .saturating_sub(self.frame_size / 8)
            .saturating_add(size / 8)
            .max(1);
        for data in segment.payload.pieces(skip, length) {
            let count = u32::try_from(data.len()).unwrap_or(0);
            let took = if seq == self.rcv_nxt {
                let took = run.push(seq, data);
                self.rcv_nxt = self.rcv_nxt.add(if took { count } else { 0 });
                took
            } else {
                ctx.pool.insert(&mut self.kept, seq, data, false) == count
            };
            if !took {
                ctx.io.drop(Drop::NoBuffer);
                break;
            }
            seq = seq.add(count);
        }
    }

    /// Offer what was noted to the socket; keep what it does not take. Afterwards `rcv_nxt` is exact.
    pub fn flush_run<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, run: &mut Run<'_>) {
        if run.bytes > 0 {
            let mut skip = 0;
            let behind = ctx.pool.contiguous(&self.kept, self.host_nxt) > 0;
            if !behind && !self.is(Facts::BLOCKED) {
                skip = self.offer(ctx.io, run.slices(), run.bytes);
                self.host_nxt = self.host_nxt.add(u32::try_from(skip).unwrap_or(0));
            }
            if skip < run.bytes {
                self.keep_rest(ctx, run, skip);
            }
            run.count = 0;
            run.bytes = 0;
        }
        if !self.kept.is_none() {
            ctx.pool.advance(&mut self.kept, self.host_nxt);
            self.drain(ctx);
        }
        self.rcv_nxt = if self.is(Facts::GUEST_FIN) {
            self.rcv_nxt
        } else {
            self.host_nxt
                .add(ctx.pool.contiguous(&self.kept, self.host_nxt))
        };
        self.note_fin();
    }

    /// Has everything up to the guest's FIN arrived?
    fn note_fin(&mut self) {
        if self.is(Facts::FIN_SEEN) && !self.is(Facts::GUEST_FIN) && self.rcv_nxt == self.fin_at {
            self.rcv_nxt = self.rcv_nxt.add(1);
            self.edge = self.edge.max(self.rcv_nxt);
            self.set(Facts::GUEST_FIN);
            if self.is(Facts::FIN_SENT) {
                self.set(Facts::GUEST_LAST);
            }
        }
    }

    /// Keep what follows the first `skip` noted bytes.
    fn keep_rest<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, run: &Run<'_>, skip: usize) {
        let mut at = run.start.add(u32::try_from(skip).unwrap_or(0));
        let mut skip = skip;
        for slice in run.slices() {
            let (sent, data) = slice.split_at(skip);
            skip = skip.saturating_sub(sent.len());
            let stored = ctx.pool.insert(&mut self.kept, at, data, true);
            at = at.add(stored);
            if usize::try_from(stored).unwrap_or(0) < data.len() {
                ctx.io.drop(Drop::NoBuffer);
                break;
            }
        }
    }

    /// Hand what is kept in order to the socket, as far as it takes it.
    pub fn drain<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        while !self.is(Facts::BLOCKED) {
            let mut slices = [Piece::EMPTY; RUN];
            let count = ctx.pool.slices(&self.kept, self.host_nxt, &mut slices);
            let Some(slices) = slices.get(..count).filter(|s| !s.is_empty()) else {
                return;
            };
            let bytes = slices
                .iter()
                .fold(0_usize, |sum, s| sum.saturating_add(s.len()));
            let taken = self.offer(ctx.io, slices, bytes);
            self.host_nxt = self.host_nxt.add(u32::try_from(taken).unwrap_or(0));
            ctx.pool.advance(&mut self.kept, self.host_nxt);
        }
    }

    /// Send; notes whether the socket is full or dead. Returns how many bytes it took.
    fn offer<I: Io<Socket = S>>(&mut self, io: &mut I, data: &[Piece<'_>], bytes: usize) -> usize {
        let Some(socket) = &self.socket else { return 0 };
        let taken = match io.send(socket, data) {
            Ok(taken) => taken.min(bytes),
            Err(SocketError::WouldBlock) => 0,
            Err(_) => {
                self.set(Facts::DEAD);
                0
            }
        };
        self.traffic.bytes_out = self.traffic.bytes_out.saturating_add(taken as u64);
        if taken < bytes {
            self.set(Facts::BLOCKED);
        }
        taken
    }
}

/// Sequence numbers a segment takes up.
fn span(segment: &Segment<'_>) -> u32 {
    let fin = u32::from(segment.repr.flags.contains(Flags::FIN));
    u32::try_from(segment.payload.len())
        .unwrap_or(0)
        .saturating_add(fin)
}
