//! Beginning and end of a connection.
//!
//! The guest's SYN starts a connection on the host; only when that is established does the guest get its SYN,ACK, so
//! what the guest's application sees is what the peer does: refused is a RST, unreachable an ICMP error, and
//! a peer that stays silent is silence. The end is reached when both FINs have passed through and the guest has
//! acknowledged ours. If the guest's FIN was the last, the entry stays for a moment (without a socket) in case our
//! acknowledgement of it was lost; a SYN on the same ports ends that at once.

use std::hash::Hash;
use std::time::Duration;

use super::conn::{Conn, Ctx, Facts, WINDOW_SHIFT};
use super::io::{Connecting, Info, Io, SocketError};
use super::moment::Moment;
use crate::clock::Instant;
use crate::flow::hash::Keyed;
use crate::flow::id::Key;
use crate::wire::tcp::{Flags, Options, Repr, Seq};

/// How long an entry answers repeated FINs: three of the kernel's retransmissions.
const LINGER: Duration = Duration::from_millis(1500);
/// The window in the SYN,ACK, which is never scaled (RFC 7323 section 2.2): a socket takes or we keep as much.
pub(super) const FIRST_WINDOW: u32 = 0xffff;
/// Times a SYN,ACK is sent again before the guest counts as gone (tcp_synack_retries).
const SYN_ACK_RETRIES: u8 = 5;

/// Our initial sequence number for a connection (RFC 6528): a clock of 4 µs plus a keyed hash.
pub(super) fn initial_seq(secret: &Keyed, key: &Key, now: Instant) -> Seq {
    #[derive(Hash)]
    struct Isn<'a>(&'a Key, u8);
    let hash = secret.hash(&Isn(key, 1));
    let mixed = hash.wrapping_add(now.0 / 4);
    Seq(u32::try_from(mixed & 0xffff_ffff).unwrap_or(0))
}

impl<S> Conn<S> {
    /// An event on a connecting socket. `false`: it failed, the guest knows, everything is closed.
    pub fn on_connecting<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        match ctx.io.connected(socket) {
            Connecting::Pending => true,
            Connecting::Done(info) => {
                self.begin(ctx, &info);
                true
            }
            Connecting::Failed(error) => {
                report_failure(ctx.io, &ctx.key, self.rcv_nxt, error);
                self.close_socket(ctx, false);
                false
            }
        }
    }

    fn begin<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, info: &Info) {
        self.clear(Facts::CONNECTING);
        self.set(Facts::SYN_SENT);
        let low = u32::try_from(info.bytes_acked & 0xffff_ffff).unwrap_or(0);
        self.peer_base = self.rcv_nxt.0.wrapping_sub(low);
        self.learn(info, ctx.now);
        self.edge = self.rcv_nxt.add(FIRST_WINDOW);
        self.snd_nxt = self.snd_una.add(1);
        self.rtt.start(self.snd_nxt, ctx.now);
        self.emit_syn_ack(ctx);
        self.rtx_at = Moment::after(ctx.now, self.rtt.timeout(0));
    }

    /// (Again) answer the guest's SYN.
    pub fn emit_syn_ack<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        let mut repr = self.header(&ctx.key, self.snd_una, Flags::SYN);
        repr.options = Options {
            mss: Some(ctx.limits.mss(&ctx.key)),
            window_scale: self.is(Facts::SCALED).then_some(WINDOW_SHIFT),
            sack_permitted: self.is(Facts::SACK),
            ..Options::NONE
        };
        ctx.io.emit(&ctx.key, &repr);
    }

    /// The guest has not answered our SYN,ACK. `false`: give up.
    pub fn syn_ack_timer<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) -> bool {
        self.backoff = self.backoff.saturating_add(1);
        if self.backoff > SYN_ACK_RETRIES {
            return false;
        }
        self.rtt.abandon();
        self.emit_syn_ack(ctx);
        self.rtx_at = Moment::after(ctx.now, self.rtt.timeout(self.backoff));
        true
    }

    /// If everything is over, close. `false`: the entry is to be removed.
    pub fn finish<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) -> bool {
        if self.is(Facts::DEAD) {
            self.abort(ctx, false);
            return false;
        }
        if !self.is(Facts::SHUT.union(Facts::FIN_ACKED)) || self.is(Facts::LINGER) {
            return true;
        }
        if self.rcv_acked != self.rcv_nxt || self.is(Facts::ACK_NOW) {
            self.emit_ack(ctx);
        }
        // What is left unread in a socket when it is closed makes the kernel send a RST.
        self.consume(ctx, true);
        self.close_socket(ctx, false);
        if !self.is(Facts::GUEST_LAST) {
            return false;
        }
        self.set(Facts::LINGER);
        ctx.io.finished(self.rule, &self.traffic);
        (self.rtx_at, self.ack_at) = (Moment::NEVER, Moment::NEVER);
        self.chore_at = Moment::after(ctx.now, LINGER);
        true
    }

    /// Close the socket, if there is one, and keep nothing.
    pub fn close_socket<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, reset: bool) {
        ctx.pool.clear(&mut self.kept);
        if let Some(socket) = self.socket.take() {
            if reset {
                ctx.io.reset(socket);
            } else {
                ctx.io.close(socket);
            }
        }
    }

    /// The connection is over before its time: tell the guest, and the peer with `reset`.
    pub fn abort<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>, reset: bool) {
        if self.is(Facts::CALLING) {
            // Nothing is known to acknowledge.
            refuse(ctx.io, &ctx.key, self.snd_nxt, None);
        } else {
            let repr = self.header(&ctx.key, self.snd_nxt, Flags::RST);
            ctx.io.emit(&ctx.key, &repr);
        }
        self.close_socket(ctx, reset);
    }
}

/// Tell the guest what became of its SYN. `next` is the sequence number after it.
pub(super) fn report_failure<I: Io>(io: &mut I, key: &Key, next: Seq, error: SocketError) {
    match error {
        // The guest's own timer runs as long as the one that just ran out.
        SocketError::TimedOut | SocketError::WouldBlock => {}
        SocketError::Unreachable(why) => io.unreachable(key, next.sub(1), why),
        SocketError::Refused | SocketError::Reset | SocketError::Other => {
            refuse(io, key, Seq(0), Some(next));
        }
    }
}

/// A RST with sequence number `seq`, acknowledging `ack` if there is something to acknowledge.
pub(super) fn refuse<I: Io>(io: &mut I, key: &Key, seq: Seq, ack: Option<Seq>) {
    let flags = if ack.is_some() {
        Flags::RST | Flags::ACK
    } else {
        Flags::RST
    };
    let repr = Repr {
        src_port: key.remote.port,
        dst_port: key.guest.port,
        seq,
        ack: ack.unwrap_or(Seq(0)),
        flags,
        window: 0,
        urgent: 0,
        options: Options::NONE,
    };
    io.emit(key, &repr);
}
