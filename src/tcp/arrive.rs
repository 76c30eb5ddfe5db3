//! Connections that begin outside: a peer has connected to a listener, the guest hears of it.
//!
//! The peer's connection exists already, its bytes may be waiting, it may even be over. Towards the guest we are the
//! side that calls (RFC 9293 SYN-SENT): our SYN offers MSS, window scale and SACK, is repeated as the kernel would repeat
//! it ([`Limits::syn_retries`]), always with the same sequence number, and whatever the peer does meanwhile waits in
//! its socket. Data that waits when the guest's SYN,ACK comes goes out with our acknowledgement of it.
//!
//! What must never happen: a peer that is told "closed in good order" about a connection that never reached an
//! application. If the guest refuses, an ICMP error says it cannot, or nothing ever answers, the peer is *reset*. The
//! other way round a peer that gives up before the guest has answered takes the attempt with it, and one that merely
//! finishes sending does not.
//!
//! A connection of a short request costs few calls: nothing is asked of the kernel (TCP_INFO) until there is an
//! amount of data for which the answer matters.

use std::time::Duration;

use super::conn::{Conn, Ctx, Facts, WINDOW_SHIFT};
use super::from_guest::Verdict;
use super::handshake::{FIRST_WINDOW, initial_seq, refuse};
use super::io::{Io, Segment};
use super::moment::Moment;
use super::{Engine, Limits};
use crate::clock::Instant;
use crate::config::rules::RuleId;
use crate::flow::id::Key;
use crate::stats::Drop;
use crate::wire::tcp::{Flags, Options, Repr, Seq};

/// The time to the first repetition of a SYN (RFC 6298 section 2.1; the kernel's TCP_TIMEOUT_INIT).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// An old connection of the guest's has answered and been reset: when to try again.
const SOON: Duration = Duration::from_millis(2);

/// A connection that was accepted on the host and is to reach the guest.
#[derive(Debug)]
pub struct Arrival<S> {
    /// Both ends as the guest is to see them.
    pub key: Key,
    /// The forwarding rule it came by.
    pub rule: Option<RuleId>,
    /// The connected socket, not registered anywhere yet.
    pub socket: S,
}

impl Limits {
    /// How long to wait for an answer to a SYN that was repeated `repeated` times. `None`: not at all, give up.
    ///
    /// As the kernel does it: `syn_linear` repetitions a second apart, then `syn_retries` more, each after twice the time.
    fn patience(&self, repeated: u8) -> Option<Duration> {
        let doublings = repeated.saturating_sub(self.syn_linear);
        if doublings > self.syn_retries {
            return None;
        }
        let factor = 1_u32.checked_shl(u32::from(doublings)).unwrap_or(u32::MAX);
        Some(FIRST_TIMEOUT.saturating_mul(factor).min(self.rto_max))
    }
}

impl<I: Io> Engine<I> {
    /// Take over a connection that a peer has opened, and call the guest. `false`: it was reset, and why is counted.
    ///
    /// An entry that only lingers makes way for it; a connection that is alive on the same ports does not.
    pub fn accept(&mut self, io: &mut I, now: Instant, arrival: Arrival<I::Socket>) -> bool {
        let Arrival { key, rule, socket } = arrival;
        let old = self.table.lookup(&key);
        if let Some(id) = old {
            if !self.lingers(id) {
                io.drop(Drop::KeyTaken);
                io.reset(socket);
                return false;
            }
            self.remove(io, id);
        }
        let isn = initial_seq(&self.secret, &key, now);
        let conn = Conn::arrived(rule, isn, self.limits.mss(&key), now);
        let Some(id) = self.table.insert(key, conn) else {
            io.drop(Drop::TableFull);
            io.reset(socket);
            return false;
        };
        if !io.adopt(id, &socket) {
            io.drop(Drop::SocketError);
            io.reset(socket);
            self.remove(io, id);
            return false;
        }
        self.with(io, now, id, |conn, ctx| {
            conn.socket = Some(socket);
            conn.call(ctx);
        });
        true
    }

    /// The network says (ICMP) that the SYN with sequence number `seq` cannot reach the guest's end of `key`. Anything
    /// but an unanswered call takes no notice, as errors can be forged and connections survive them (RFC 5927).
    pub fn on_unreachable(&mut self, io: &mut I, now: Instant, key: &Key, seq: Seq) {
        let Some(id) = self.table.lookup(key) else {
            return;
        };
        let meant = self.with(io, now, id, |conn, ctx| {
            let meant = conn.is(Facts::CALLING) && seq == conn.snd_una;
            if meant {
                conn.close_socket(ctx, true);
            }
            meant
        });
        if meant == Some(true) {
            self.remove(io, id);
        }
    }
}

impl<S> Conn<S> {
    /// Send the first SYN.
    fn call<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        self.snd_nxt = self.snd_una.add(1);
        self.rtt.start(self.snd_nxt, ctx.now);
        self.emit_syn(ctx);
        self.rtx_at = Moment::after(ctx.now, FIRST_TIMEOUT);
    }

    fn emit_syn<I: Io<Socket = S>>(&self, ctx: &mut Ctx<'_, I>) {
        let repr = Repr {
            src_port: ctx.key.remote.port,
            dst_port: ctx.key.guest.port,
            seq: self.snd_una,
            ack: Seq(0),
            flags: Flags::SYN,
            window: u16::try_from(FIRST_WINDOW).unwrap_or(u16::MAX),
            urgent: 0,
            options: Options {
                mss: Some(ctx.limits.mss(&ctx.key)),
                window_scale: Some(WINDOW_SHIFT),
                sack_permitted: true,
                ..Options::NONE
            },
        };
        ctx.io.emit(&ctx.key, &repr);
    }

    /// The guest has not answered our SYN. `false`: it never will; the peer is reset.
    pub fn syn_timer<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) -> bool {
        self.backoff = self.backoff.saturating_add(1);
        let Some(patience) = ctx.limits.patience(self.backoff) else {
            return false;
        };
        self.rtt.abandon();
        self.emit_syn(ctx);
        self.rtx_at = Moment::after(ctx.now, patience);
        true
    }

    /// A segment while our SYN is unanswered (RFC 9293 section 3.10.7.3).
    pub fn on_answer<I: Io<Socket = S>>(
        &mut self,
        ctx: &mut Ctx<'_, I>,
        segment: &Segment<'_>,
    ) -> Verdict {
        let repr = &segment.repr;
        let acks = repr.flags.contains(Flags::ACK);
        if acks && repr.ack != self.snd_nxt {
            ctx.io.drop(Drop::OutOfWindow);
            if !repr.flags.contains(Flags::RST) {
                // Of an older connection of these ports: end that one, and then do not wait a second.
                refuse(ctx.io, &ctx.key, repr.ack, None);
                if self.backoff == 0 {
                    self.rtx_at = self.rtx_at.min(Moment::after(ctx.now, SOON));
                }
            }
            return Verdict::Carry;
        }
        if repr.flags.contains(Flags::RST) {
            if !acks {
                ctx.io.drop(Drop::OutOfWindow);
                return Verdict::Carry;
            }
            self.close_socket(ctx, true);
            return Verdict::Gone;
        }
        if !repr.flags.contains(Flags::SYN) {
            ctx.io.drop(Drop::OutOfWindow);
            return Verdict::Carry;
        }
        self.clear(Facts::CALLING);
        self.meet(repr);
        self.edge = self.rcv_nxt.add(FIRST_WINDOW);
        self.peer_base = self.rcv_nxt.0;
        if acks {
            self.established(ctx.now, repr);
            // Unless data carries it: who connects usually speaks first, and has by now. No edge has said so yet.
            self.set(Facts::ACK_NOW.union(Facts::MORE));
        } else {
            // The guest calls the peer at the same time: both SYNs have crossed.
            self.set(Facts::SYN_SENT);
            self.rtt.abandon();
            self.emit_syn_ack(ctx);
            self.rtx_at = Moment::after(ctx.now, FIRST_TIMEOUT);
            self.backoff = 0;
        }
        Verdict::Carry
    }
}
