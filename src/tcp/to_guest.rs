//! Data from the host's socket to the guest: new, and again.
//!
//! The socket's receive queue holds every byte until the guest has acknowledged it; sending is peeking at the
//! right offset straight into frames. New data goes out as far as the guest's window and our congestion window reach.
//! The way to the guest is a memory copy, so the congestion window starts large and is there for the case that
//! the guest cannot keep up and drops.
//!
//! Loss: what the guest reports by SACK, or by three duplicate acknowledgements, is sent again at once (RFC 6675:
//! as much as the window allows, holes first); if the last segments of a flight are lost and nothing reports it,
//! a probe after two round trips provokes a report (RFC 8985 section 7); only when that is lost as well the
//! retransmission timer (RFC 6298) decides. A FIN alone in flight is repeated by timer only.
//!
//! Consuming what was acknowledged is put off a little, because a request and its answer need not cost a
//! system call each for bookkeeping; a large amount, or one that matters to the peer's window, is consumed at once.

use std::time::Duration;

use super::conn::{Conn, Ctx, Facts};
use super::io::{Io, Outgoing, SocketError};
use super::moment::Moment;
use crate::clock::Instant;
use crate::wire::tcp::{Flags, Seq};

/// Congestion window to begin with, bytes.
pub(super) const FIRST_CWND: u32 = 1 << 20;
/// It does not grow beyond this.
const MAX_CWND: u32 = 1 << 25;
/// Loss does not cut it below this.
const CWND_FLOOR: u32 = 64 << 10;
/// Most bytes of one connection in one turn, so that others get theirs.
const TURN: u32 = 1 << 20;
/// A gap this small in the window is not worth a segment while others are in flight.
const CRUMB: u32 = 2048;
/// How long consuming (or trying a full tap again) is put off.
const CHORE: Duration = Duration::from_millis(10);
const TAP_RETRY: Duration = Duration::from_millis(1);
/// The same where the link says when it has room again; a guest may be gone, or stopped, for days.
const TOLD_RETRY: Duration = Duration::from_secs(1);
/// The least time a segment may be overtaken by before it counts as lost.
const REORDERING: Duration = Duration::from_millis(1);
/// The least time to a tail loss probe, and what is added when the guest may be delaying its acknowledgement.
const PROBE_MIN: u64 = 10_000;
const PROBE_DELAYED: u64 = 60_000;

impl<S> Conn<S> {
    /// Bytes assumed to be on their way: in flight, not reported received, not deemed lost.
    fn pipe(&self) -> u32 {
        let mut pipe = self.in_flight().saturating_sub(self.board.bytes());
        if self.is(Facts::RECOVERY) {
            pipe = pipe.saturating_sub(
                self.board
                    .missing(self.rexmit.max(self.snd_una), self.lost_to),
            );
        }
        pipe
    }

    /// Send what can be sent.
    pub fn pump<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        if !self.is_open() {
            return;
        }
        let before = self.snd_nxt;
        self.refresh_window(ctx);
        self.retransmit(ctx);
        if !self.is(Facts::HOST_EOF) {
            self.send_new(ctx);
        }
        if self.is(Facts::HOST_EOF) && !self.is(Facts::FIN_SENT) {
            let seq = self.snd_nxt;
            self.snd_nxt = seq.add(1);
            self.set(Facts::FIN_SENT);
            self.emit_fin(ctx, seq);
        }
        if self.snd_nxt != before || self.rtx_at == Moment::NEVER || self.in_flight() == 0 {
            self.arm_retransmit(ctx.now);
        }
    }

    fn emit_fin<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, seq: Seq) {
        let repr = self.header(&ctx.key, seq, Flags::FIN);
        ctx.io.emit(&ctx.key, &repr);
    }

    fn send_new<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        let mut budget = TURN;
        loop {
            let window_end = self.snd_una.add(self.snd_wnd);
            let window = if window_end.gt(self.snd_nxt) {
                window_end.distance(self.snd_nxt)
            } else {
                0
            };
            let room = window.min(self.cwnd.saturating_sub(self.pipe()));
            let crumb = u32::from(self.mss).min(CRUMB);
            if room == 0 || room < crumb && self.in_flight() > 0 {
                self.set(Facts::MORE);
                return;
            }
            if budget == 0 {
                self.set(Facts::MORE.union(Facts::BACKLOG));
                return;
            }
            let max = room.min(budget);
            let Some(sent) = self.relay(ctx, self.snd_nxt, max) else {
                return;
            };
            if sent.peeked == 0 && !sent.refused {
                self.set(Facts::HOST_EOF);
                self.clear(Facts::MORE);
                return;
            }
            self.snd_nxt = self.snd_nxt.add(sent.sent);
            if sent.sent > 0 {
                self.traffic.add_in(sent.sent as usize);
            }
            self.set(Facts::TALK);
            if !self.is(Facts::RECOVERY) {
                self.rtt.start(self.snd_nxt, ctx.now);
            }
            budget = budget.saturating_sub(sent.peeked);
            if sent.refused {
                self.set(Facts::MORE);
                return;
            }
            // A FIN that was there along with the data has no edge of its own: it has to be looked for.
            if sent.peeked < max && !self.is(Facts::EAGER) {
                self.clear(Facts::MORE);
                return;
            }
        }
    }

    /// Put bytes from `seq` on into frames. `None`: there is nothing, or the socket is dead.
    fn relay<I: Io<Socket = S>>(
        &mut self,
        ctx: &mut Ctx<'_, I>,
        seq: Seq,
        max: u32,
    ) -> Option<super::io::Relayed> {
        let (frames, ack_at, acked, facts) = (self.frames, self.ack_at, self.rcv_acked, self.facts);
        let repr = self.header(&ctx.key, seq, Flags::PSH);
        let socket = self.socket.as_ref()?;
        let offset = seq.distance(self.head);
        if self.peek != seq {
            ctx.io.seek(socket, offset);
            self.peek = seq;
        }
        let frame = Outgoing {
            key: &ctx.key,
            repr,
            mss: self.mss,
        };
        let result = ctx.io.relay(socket, &frame, offset, max);
        if !matches!(result, Ok(relayed) if relayed.sent > 0) {
            // No frame has carried the acknowledgement.
            (self.frames, self.ack_at, self.rcv_acked, self.facts) = (frames, ack_at, acked, facts);
        }
        match result {
            Ok(relayed) => {
                self.peek = self.peek.add(relayed.peeked);
                if relayed.refused {
                    self.set(Facts::REFUSED);
                    let pause = if ctx.io.tells_of_room() {
                        TOLD_RETRY
                    } else {
                        TAP_RETRY
                    };
                    self.chore_at = self.chore_at.min(Moment::after(ctx.now, pause));
                }
                Some(relayed)
            }
            Err(error) => {
                self.clear(Facts::MORE);
                if error != SocketError::WouldBlock {
                    self.set(Facts::DEAD);
                }
                None
            }
        }
    }

    /// Send again what is taken for lost, as far as the congestion window allows.
    fn retransmit<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        while self.is(Facts::RECOVERY) {
            let room = self.cwnd.saturating_sub(self.pipe());
            let Some((start, end)) = self.board.hole(self.rexmit.max(self.snd_una), self.lost_to)
            else {
                return;
            };
            if room == 0 {
                return;
            }
            self.rtt.abandon();
            if start == self.data_end() {
                self.rexmit = end;
                self.emit_fin(ctx, start);
                return;
            }
            let length = end
                .min(self.data_end())
                .distance(start)
                .min(room.max(u32::from(self.mss)));
            let Some(sent) = self.relay(ctx, start, length) else {
                return;
            };
            self.rexmit = start.add(sent.sent);
            if sent.sent < length {
                return;
            }
        }
    }

    /// The guest has everything before `ack`.
    pub fn progress(&mut self, ack: Seq, now: Instant) {
        let acked = ack.distance(self.snd_una);
        // Grow only if the window was what limited us.
        if self.in_flight() >= self.cwnd / 2 || self.is(Facts::TIMEOUT) {
            let step = if self.cwnd < self.ssthresh {
                acked
            } else {
                let product = u64::from(self.mss).saturating_mul(u64::from(acked));
                u32::try_from(product.checked_div(u64::from(self.cwnd)).unwrap_or(0))
                    .unwrap_or(0)
                    .max(1)
            };
            self.cwnd = self.cwnd.saturating_add(step).min(MAX_CWND);
        }
        self.snd_una = ack;
        self.board.advance(ack);
        self.rtt.acked(ack, now);
        self.dup_acks = 0;
        self.backoff = 0;
        self.clear(Facts::PROBED);
        if self.is(Facts::FIN_SENT) && ack == self.snd_nxt {
            self.set(Facts::FIN_ACKED);
        }
        if self.is(Facts::RECOVERY) {
            if ack.ge(self.recover) {
                self.end_recovery();
            } else if !self.is(Facts::TIMEOUT) && self.board.ranges().is_empty() {
                // A partial acknowledgement: the next one is lost as well (RFC 6582).
                self.rexmit = ack;
                self.lost_to = ack.add(u32::from(self.mss)).min(self.recover);
            }
        }
        self.arm_retransmit(now);
    }

    fn end_recovery(&mut self) {
        self.clear(Facts::RECOVERY.union(Facts::TIMEOUT));
        self.cwnd = self.cwnd.max(self.ssthresh.min(MAX_CWND));
    }

    /// The guest reported something beyond a gap, or repeated itself.
    pub fn consider_loss(&mut self, now: Instant) {
        if self.data_end().le(self.snd_una) {
            return;
        }
        let reported = self.board.last_start();
        if self.is(Facts::RECOVERY) {
            if let Some(start) = reported {
                self.lost_to = self.lost_to.max(start);
            }
            return;
        }
        let overtaken = self
            .board
            .last_end()
            .map_or(0, |end| end.distance(self.snd_una));
        let enough = self.dup_acks >= 3 || overtaken > u32::from(self.mss).saturating_mul(3);
        match reported {
            // What a probe provoked is no reordering.
            Some(start) if enough || self.is(Facts::PROBED) => self.recover_fast(start),
            // Wait a little for what may merely have been overtaken (RFC 8985 section 6.2).
            Some(_) => {
                let patience = self.rtt.eighth().max(REORDERING);
                self.rtx_at = self.rtx_at.min(Moment::after(now, patience));
            }
            None if self.dup_acks >= 3 && !self.is(Facts::SACK) => {
                self.recover_fast(self.snd_una.add(u32::from(self.mss)).min(self.data_end()));
            }
            None => {}
        }
    }

    fn recover_fast(&mut self, lost_to: Seq) {
        self.begin_recovery(lost_to);
        self.ssthresh = (self.in_flight() / 10)
            .saturating_mul(7)
            .max(CWND_FLOOR.max(u32::from(self.mss).saturating_mul(2)));
        self.cwnd = self.ssthresh;
    }

    fn begin_recovery(&mut self, lost_to: Seq) {
        self.set(Facts::RECOVERY);
        self.rtt.abandon();
        self.recover = self.snd_nxt;
        self.rexmit = self.snd_una;
        self.lost_to = lost_to;
    }

    /// Everything in flight that the guest has not reported is to be sent again.
    pub fn lose_all(&mut self) {
        self.begin_recovery(self.snd_nxt);
        self.set(Facts::TIMEOUT);
    }

    /// What is in flight may not arrive: when to do something about it.
    pub fn arm_retransmit(&mut self, now: Instant) {
        let flight = self.in_flight();
        let closed = self.is(Facts::MORE) && self.snd_wnd == 0;
        self.rtx_at = if flight > 0 {
            let timeout = self.rtt.timeout(self.backoff);
            if self.any(Facts::PROBED.union(Facts::TIMEOUT)) || self.rtt.twice() == 0 {
                Moment::after(now, timeout)
            } else {
                let delayed = if flight > u32::from(self.mss) {
                    0
                } else {
                    PROBE_DELAYED
                };
                let probe = self.rtt.twice().max(PROBE_MIN).saturating_add(delayed);
                Moment::after(now, Duration::from_micros(probe).min(timeout))
            }
        } else if closed {
            Moment::after(now, self.rtt.timeout(self.backoff))
        } else {
            Moment::NEVER
        };
    }

    /// Nothing was heard for too long about what is in flight. `false`: give up.
    pub fn retransmit_timer<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) -> bool {
        if self.in_flight() == 0 {
            if !self.is(Facts::MORE) || self.snd_wnd > 0 {
                return true;
            }
            // The guest's window is closed: ask whether it still is.
            let repr = self.header(&ctx.key, self.snd_una.sub(1), Flags::ACK);
            ctx.io.emit(&ctx.key, &repr);
            return self.back_off(ctx.now, ctx.limits.retries);
        }
        let early = !self.any(Facts::PROBED.union(Facts::TIMEOUT)) && self.rtt.twice() > 0;
        if let Some(start) = self
            .board
            .last_start()
            .filter(|_| early && !self.is(Facts::RECOVERY))
        {
            // Overtaken, and still not there.
            self.recover_fast(start);
            self.retransmit(ctx);
            self.arm_retransmit(ctx.now);
            return true;
        }
        if early {
            self.set(Facts::PROBED);
            self.probe(ctx);
            self.arm_retransmit(ctx.now);
            return true;
        }
        if self.backoff > 0 {
            // The guest may have thrown away what it reported (RFC 2018 section 8).
            self.board = super::recovery::Scoreboard::EMPTY;
        }
        if !self.is(Facts::TIMEOUT) {
            self.ssthresh = (self.in_flight() / 2).max(CWND_FLOOR);
        }
        self.lose_all();
        self.cwnd = u32::from(self.mss);
        let alive = self.back_off(ctx.now, ctx.limits.retries);
        self.retransmit(ctx);
        alive
    }

    fn back_off(&mut self, now: Instant, retries: u8) -> bool {
        self.backoff = self.backoff.saturating_add(1);
        self.unheard = self.unheard.saturating_add(1);
        self.arm_retransmit(now);
        self.unheard <= retries
    }

    /// Provoke a report about the tail of the flight.
    fn probe<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        self.rtt.abandon();
        if self.is(Facts::RECOVERY) {
            // What was sent again is lost again.
            self.rexmit = self.snd_una;
            self.retransmit(ctx);
            return;
        }
        let end = self.data_end();
        if end.le(self.snd_una) {
            self.emit_fin(ctx, end);
            return;
        }
        let length = end.distance(self.snd_una).min(u32::from(self.mss));
        self.relay(ctx, end.sub(length), length);
    }

    /// Consume what the guest has acknowledged; `all` of it, or only an amount that is worth it.
    pub fn consume<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, all: bool) {
        let have = self.snd_una.min(self.data_end());
        if have.le(self.head) {
            return;
        }
        let amount = have.distance(self.head);
        if !all && amount > u32::from(self.consume_over) {
            self.know_peer(ctx);
        }
        if !all && amount <= u32::from(self.consume_over) {
            self.chore_at = self.chore_at.min(Moment::after(ctx.now, CHORE));
            return;
        }
        if let Some(socket) = &self.socket {
            ctx.io.consume(socket, amount);
        }
        self.head = have;
        self.peek = self.peek.max(have);
    }

    /// `chore_at` has come.
    pub fn chores<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        self.chore_at = Moment::NEVER;
        self.consume(ctx, true);
        self.on_writable(ctx);
        if self.any(Facts::MORE.union(Facts::RECOVERY)) {
            self.pump(ctx);
        }
    }
}
