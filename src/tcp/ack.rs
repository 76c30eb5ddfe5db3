//! When and what to acknowledge to the guest, and how much it may send.
//!
//! **Acknowledging.** For a peer that is *near* (minimum round trip at most 1 ms) an acknowledgement says "the host's
//! kernel has it, or we keep it". For a *far* one it reflects the peer's own: the guest's kernel then sees the real
//! round trip and rate, and nothing is reported delivered that sits in a buffer here. No event tells of the
//! peer's acknowledgements, so while some are due a timer asks (TCP_INFO). The reflection must not make the guest's
//! kernel believe in loss: when nothing was acknowledged for a round trip and 150 ms (a peer with a closed window,
//! or loss on its path, which is the host kernel's business), everything accepted is acknowledged. The guest's own
//! timer, round trip plus 200 ms at least, therefore never fires without loss on the tap.
//!
//! A single small segment is not acknowledged at once, because usually the answer follows and carries the
//! acknowledgement; after [`DELAY`] at most it is (the kernel would wait 40 ms), and from then on, until there is an
//! answer again, at the end of the round: like two frames, or a large one.
//!
//! Of a bulk transfer in frames of the MTU (a guest without super-frames) not every round is acknowledged, because each
//! acknowledgement interrupts the guest and makes it send in smaller bursts, down to one frame at a time. How many
//! bytes are worth one, the *stride*, grows with what was received, which keeps it well below the guest's
//! congestion window, up to [`MAX_STRIDE`]; a guest that has stopped before that many were due is acknowledged after
//! [`DELAY`], and twice as often from then on.
//!
//! **Window.** The edge is what the socket's send buffer has room for *now*, plus an allowance that we can keep
//! ourselves. The allowance is what makes this stall-free and fast: the guest always has a little more in flight than
//! the socket takes, so a full socket has always refused a `send`, which is what makes the kernel
//! report when there is room again *and* what makes it enlarge the buffer (it does neither for a socket that is
//! merely nearly full). So: whenever the window is closed, something is kept; whenever something is kept, an
//! output edge is on its way. The peer's window is not looked at: it shows in the buffer filling up, and tying the
//! guest to it directly would wait for something no event reports.
//! The edge never moves back, and stays below what the tap's queue holds in frames of the size the guest sends.

use std::time::Duration;

use super::conn::{Conn, Ctx, Facts};
use super::io::Io;
use super::keep::Pool;
use super::moment::Moment;
use super::recovery::low;
use crate::wire::tcp::{Flags, SackBlocks};

/// How long a single small segment may wait for its acknowledgement.
const DELAY: Duration = Duration::from_millis(1);
/// A frame this large (bytes) is acknowledged at the end of the round.
const LARGE: u32 = 4096;
/// Most bytes that wait for an acknowledgement of one frame more.
const MAX_STRIDE: u16 = 32 << 10;
/// What the guest may send beyond what the socket has room for: at most this, and at most as much as the socket's
/// buffer again (what is kept adds to the round trip the guest sees).
const ALLOWANCE: u32 = 256 << 10;
/// No window is smaller than this because of the tap's queue.
const QUEUE_FLOOR: u32 = 64 << 10;
/// With less window left than this (bytes), the guest is told more at the end of the round.
const LOW: u32 = 32 << 10;
/// Bounds of the interval at which a far peer's acknowledgements are asked for.
const POLL_MIN: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(10);
/// How long a socket that refused data may stay silent before it is tried again. No event ever comes if the kernel
/// refused for want of memory with nothing in the socket's queue.
pub(super) const RETRY: Duration = Duration::from_secs(1);

impl<S> Conn<S> {
    /// Decide how soon what has arrived is acknowledged. After the batch's data was offered to the socket.
    pub fn schedule_ack<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        let now = ctx.now;
        let due = self.rcv_nxt.distance(self.rcv_acked);
        let at_once = Facts::NEAR.union(Facts::GUEST_FIN).union(Facts::HASTE);
        if due > 0 {
            let large = self.frames > 1 || due >= LARGE.min(u32::from(self.mss));
            if large && !self.any(at_once) {
                self.know_peer(ctx);
            }
            let near = self.any(at_once);
            let enough = if large {
                self.strides(due)
            } else {
                !self.is(Facts::TALK)
            };
            if near && enough {
                self.set(Facts::ACK_NOW);
            } else if self.window_left() < LOW && self.update_window(ctx) {
                // (Not if it did not move: the guest would take that for a duplicate.)
                self.set(Facts::ACK_NOW);
            }
            let wait = if near {
                DELAY
            } else if self.ack_at == Moment::NEVER {
                // Nothing was outstanding: the peer cannot have answered before a round trip is over.
                self.waiting_since = low(now);
                Duration::from_micros(u64::from(self.peer_rtt)).max(POLL_MIN)
            } else {
                self.poll_interval()
            };
            self.ack_at = self.ack_at.min(Moment::after(now, wait));
        }
    }

    /// Are so many bytes worth an acknowledgement? If they are, the next may be a little more.
    fn strides(&mut self, due: u32) -> bool {
        if due < u32::from(self.stride) && !self.is(Facts::GUEST_FIN) {
            return false;
        }
        let more = u16::try_from(due / 16).unwrap_or(MAX_STRIDE);
        self.stride = self.stride.saturating_add(more).min(MAX_STRIDE);
        true
    }

    fn window_left(&self) -> u32 {
        if self.edge.gt(self.rcv_nxt) {
            self.edge.distance(self.rcv_nxt)
        } else {
            0
        }
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_micros(u64::from(self.peer_rtt / 4)).clamp(POLL_MIN, POLL_MAX)
    }

    /// `ack_at` has come.
    pub fn ack_timer<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        self.ack_at = Moment::NEVER;
        if self.rcv_nxt == self.rcv_acked {
            return;
        }
        if self.any(Facts::NEAR.union(Facts::GUEST_FIN)) {
            self.set(Facts::ACK_NOW);
            self.clear(Facts::TALK);
            self.stride /= 2;
            return;
        }
        self.ask_peer(ctx);
        self.ack_at = self
            .ack_at
            .min(Moment::after(ctx.now, self.poll_interval()));
    }

    /// Find out what the far peer has acknowledged, if anything is due.
    pub fn ask_peer<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        if self.rcv_nxt == self.rcv_acked || self.any(Facts::NEAR.union(Facts::GUEST_FIN)) {
            return;
        }
        let Some(socket) = &self.socket else { return };
        let info = ctx.io.info(socket);
        self.learn(&info, ctx.now);
        let waited =
            Duration::from_micros(u64::from(low(ctx.now).wrapping_sub(self.waiting_since)));
        if waited > Self::patience(info.rtt) {
            self.set(Facts::HASTE);
        }
        if self.ack_number() != self.rcv_acked {
            self.set(Facts::ACK_NOW);
        }
    }

    /// The socket has room again.
    pub fn on_writable<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        if !self.is(Facts::BLOCKED) {
            return;
        }
        self.clear(Facts::BLOCKED);
        self.drain(ctx);
        self.shut_when_drained(ctx);
        if self.update_window(ctx) {
            self.set(Facts::ACK_NOW);
        }
    }

    /// Pass the guest's FIN on once everything before it is in the socket.
    pub fn shut_when_drained<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        if self.is(Facts::GUEST_FIN)
            && !self.is(Facts::SHUT)
            && self.host_nxt.add(1) == self.rcv_nxt
        {
            // If the guest has our FIN as well, the socket is closed now, which says the same.
            if let Some(socket) = self.socket.as_ref().filter(|_| !self.is(Facts::FIN_ACKED)) {
                ctx.io.shutdown_write(socket);
            }
            self.set(Facts::SHUT);
        }
    }

    /// Move the edge of the window to what can be taken now. Says whether it moved.
    pub fn update_window<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        if self.is(Facts::GUEST_FIN) {
            return false;
        }
        let space = ctx.io.space(socket);
        let kept = self.rcv_nxt.distance(self.host_nxt);
        let pool = ctx.pool.available();
        let allowance = ALLOWANCE.min(space.size).min(pool / 8);
        let free = space.size.saturating_sub(space.queued);
        let mut want = free.saturating_add(allowance).saturating_sub(kept);
        if kept == 0 && (pool > 0 || !self.is(Facts::BLOCKED)) {
            // A buffer smaller than a segment: still, a segment at a time gets through.
            want = want.max(u32::from(self.mss));
        }
        let frames = ctx.limits.tap_queue / 2;
        let queue = frames
            .saturating_mul(u32::from(self.frame_size))
            .max(QUEUE_FLOOR);
        let scale_limit = if self.is(Facts::SCALED) {
            0xffff << 8
        } else {
            0xffff
        };
        want = want.min(queue).min(scale_limit);
        let edge = self.rcv_nxt.add(want);
        // Crumbs would make the guest send crumbs (RFC 9293 section 3.8.6.2.2).
        let crumb = u32::from(self.mss).min(want / 2).max(1);
        if edge.gt(self.edge) && edge.distance(self.edge) >= crumb {
            self.edge = edge;
            return true;
        }
        false
    }

    /// Tell the guest where we stand, with a segment of its own.
    pub fn emit_ack<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        let mut repr = self.header(&ctx.key, self.snd_nxt, Flags::ACK);
        repr.options.sack = self.sack_blocks(ctx.pool);
        ctx.io.emit(&ctx.key, &repr);
    }

    /// What has arrived beyond a gap. The FIN counts as a byte.
    fn sack_blocks(&self, pool: &Pool) -> SackBlocks {
        let fin = self.is(Facts::FIN_SEEN) && self.fin_at.gt(self.rcv_nxt);
        if !self.is(Facts::SACK) || self.kept.is_none() && !fin {
            return SackBlocks::EMPTY;
        }
        let data = pool.sack(&self.kept, self.rcv_nxt);
        if !fin {
            return data;
        }
        let mut blocks = SackBlocks::EMPTY;
        let fin_end = self.fin_at.add(1);
        if data.as_slice().iter().all(|(_, end)| *end != self.fin_at) {
            blocks.push(self.fin_at, fin_end);
        }
        for &(start, end) in data.as_slice() {
            blocks.push(start, if end == self.fin_at { fin_end } else { end });
        }
        blocks
    }

    /// An acknowledgement is about to go out: let it carry a fresh window, if the guest's is getting low. (Asking
    /// for room costs a system call.)
    pub fn refresh_window<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        let due = self.rcv_nxt.distance(self.rcv_acked);
        if self.is(Facts::ACK_NOW) && self.window_left() < due.saturating_mul(4).max(QUEUE_FLOOR) {
            self.update_window(ctx);
        }
    }

    /// The end of the round: acknowledge if it is due and no data has carried it.
    pub fn flush_ack<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        if self.is(Facts::ACK_NOW) {
            self.refresh_window(ctx);
            self.emit_ack(ctx);
        }
    }
}
