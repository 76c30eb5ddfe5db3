//! The state of one connection, and what every part of the engine needs to look at it.
//!
//! Names: `rcv_*` is about bytes from the guest, `snd_*` about bytes to the guest; sequence numbers are those the
//! guest sees. A connection is at most 200 bytes; what few connections need at a time (data kept for a
//! socket that is full) lives elsewhere.

use std::time::Duration;

use super::Limits;
use super::io::{Info, Io};
use super::keep::{Kept, Pool};
use super::moment::Moment;
use super::recovery::{Rtt, Scoreboard, low};
use crate::clock::Instant;
use crate::config::rules::RuleId;
use crate::flow::id::Key;
use crate::flow::traffic::Traffic;
use crate::wire::tcp::{Flags, Options, Repr, Seq};

/// Our window scale towards guests that offer the option: windows up to 16 MiB, in steps of 256 bytes.
pub(super) const WINDOW_SHIFT: u8 = 8;
/// A peer this near (minimum round trip, µs) gets its data acknowledged to the guest as soon as the host's kernel
/// has it: the difference is below what a timer could resolve.
pub(super) const NEAR_RTT: u32 = 1000;

/// A larger amount than this is consumed at once whatever the receive window, bytes.
const CONSUME_OVER: u32 = 16 << 10;
/// ... and with more than this the kernel is asked how large that is.
const CONSUME_UNASKED: u16 = 2 << 10;

/// A set of facts about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Facts(u32);

impl Facts {
    /// The host's socket is connecting; nothing was sent to the guest yet.
    pub const CONNECTING: Self = Self(1);
    /// SYN,ACK is out and not acknowledged.
    pub const SYN_SENT: Self = Self(1 << 1);
    /// The guest offered window scaling.
    pub const SCALED: Self = Self(1 << 2);
    /// The guest offered SACK.
    pub const SACK: Self = Self(1 << 3);
    /// What `send` accepts is acknowledged at once: the peer is near.
    pub const NEAR: Self = Self(1 << 4);
    /// The last `send` took less than it was given: an output edge will come.
    pub const BLOCKED: Self = Self(1 << 5);
    /// A FIN from the guest is known to be at `fin_at`, possibly beyond a gap.
    pub const FIN_SEEN: Self = Self(1 << 6);
    /// The guest's FIN is in order; `rcv_nxt` counts it.
    pub const GUEST_FIN: Self = Self(1 << 7);
    /// The host's socket was told that no more data comes.
    pub const SHUT: Self = Self(1 << 8);
    /// The peer's FIN was seen: the socket has no more data than `snd_nxt` says.
    pub const HOST_EOF: Self = Self(1 << 9);
    /// Our FIN is out; `snd_nxt` counts it.
    pub const FIN_SENT: Self = Self(1 << 10);
    /// The guest acknowledged our FIN.
    pub const FIN_ACKED: Self = Self(1 << 11);
    /// The socket may have data that was not relayed for lack of window, budget or tap queue.
    pub const MORE: Self = Self(1 << 12);
    /// An acknowledgement (or window update) is to go out by the end of the round.
    pub const ACK_NOW: Self = Self(1 << 13);
    /// Data beyond a gap is being recovered: `lost_to` and `rexmit` are valid.
    pub const RECOVERY: Self = Self(1 << 14);
    /// A tail loss probe was sent since `snd_una` last moved.
    pub const PROBED: Self = Self(1 << 15);
    /// Both sides are done and the socket is closed; the entry only answers repeated FINs.
    pub const LINGER: Self = Self(1 << 16);
    /// Waiting in the engine's list of connections to acknowledge.
    pub const LISTED: Self = Self(1 << 17);
    /// The socket has more than one turn's worth: to be pumped again.
    pub const BACKLOG: Self = Self(1 << 18);
    /// The peer's acknowledgements have not come in time: everything accepted is acknowledged.
    pub const HASTE: Self = Self(1 << 19);
    /// The guest's FIN came after ours: our last acknowledgement may have to be repeated.
    pub const GUEST_LAST: Self = Self(1 << 20);
    /// The socket failed in `send`; the connection is about to be aborted.
    pub const DEAD: Self = Self(1 << 22);
    /// In the engine's list for `BACKLOG`.
    pub const QUEUED: Self = Self(1 << 23);
    /// An event said that the peer's FIN is in the socket, behind whatever data there is, or that there is urgent data,
    /// at which a read stops short: less than asked for does not mean that there is no more.
    pub const EAGER: Self = Self(1 << 24);
    /// The guest gets answers: its acknowledgements usually travel with them.
    pub const TALK: Self = Self(1 << 25);
    /// Recovery began with a timeout.
    pub const TIMEOUT: Self = Self(1 << 21);
    /// Our SYN is out and the guest has not answered: nothing of its side is known.
    pub const CALLING: Self = Self(1 << 26);
    /// The peer began: the socket was accepted.
    pub const INBOUND: Self = Self(1 << 27);
    /// The kernel was asked about the way to the peer.
    pub const ASKED: Self = Self(1 << 28);

    /// The link has just refused a frame with data.
    pub const REFUSED: Self = Self(1 << 29);
    /// In the engine's list of connections that wait for the link to have room.
    pub const PARKED: Self = Self(1 << 30);

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// State of one connection. See the module text for names.
#[derive(Debug)]
pub(super) struct Conn<S> {
    /// `None` only before `connect` returns and while lingering.
    pub socket: Option<S>,
    pub facts: Facts,
    /// The forwarding rule it came by.
    pub rule: Option<RuleId>,
    /// What it has carried: payload, counted when it is new and on its way.
    pub traffic: Traffic,

    /// Next byte expected from the guest: all before it is in the socket or kept.
    pub rcv_nxt: Seq,
    /// What we last acknowledged.
    pub rcv_acked: Seq,
    /// End of the window we advertised. Never moves back.
    pub edge: Seq,
    /// Next byte to hand to the socket; from here to `rcv_nxt` is kept.
    pub host_nxt: Seq,
    /// What the remote peer has acknowledged, as a sequence number of the guest's.
    pub peer_acked: Seq,
    /// `peer_acked` is the low half of `bytes_acked` plus this.
    pub peer_base: u32,
    /// Since when the peer's acknowledgements have made no progress: low half of the clock.
    pub waiting_since: u32,
    /// Round trip to the peer, µs.
    pub peer_rtt: u32,
    /// Where the guest's FIN is, with `FIN_SEEN`.
    pub fin_at: Seq,
    pub kept: Kept,
    /// Running mean of the guest's frames, in payload bytes.
    pub frame_size: u16,
    /// Frames not acknowledged yet.
    pub frames: u8,
    /// Bytes worth an acknowledgement of their own, see `ack`.
    pub stride: u16,
    /// Shift of the windows the guest advertises.
    pub snd_shift: u8,

    /// First byte not consumed from the socket.
    pub head: Seq,
    /// First byte the guest has not acknowledged.
    pub snd_una: Seq,
    /// Next new byte.
    pub snd_nxt: Seq,
    /// Where the socket's peek position is.
    pub peek: Seq,
    /// The guest's window, from `snd_una`.
    pub snd_wnd: u32,
    /// Sequence number of the segment that last set `snd_wnd` (RFC 9293 SND.WL1).
    pub snd_wl1: Seq,
    pub cwnd: u32,
    pub ssthresh: u32,
    pub board: Scoreboard,
    /// Next byte to retransmit, in recovery.
    pub rexmit: Seq,
    /// Everything before this that the guest has not is taken for lost, in recovery.
    pub lost_to: Seq,
    /// Recovery ends when this is acknowledged.
    pub recover: Seq,
    pub rtt: Rtt,
    /// Segment size towards the guest.
    pub mss: u16,
    /// Consume at once what exceeds this.
    pub consume_over: u16,
    pub dup_acks: u8,
    /// Timeouts since the guest last made progress.
    pub backoff: u8,
    /// Probes and timeouts since the guest was last heard.
    pub unheard: u8,

    /// When to acknowledge, or to ask what the peer acknowledged.
    pub ack_at: Moment,
    /// Retransmission, tail loss probe or window probe.
    pub rtx_at: Moment,
    /// When to consume what the guest has acknowledged, try a full tap or socket again, or forget a lingering entry.
    pub chore_at: Moment,
    /// When the guest was last heard.
    pub heard: Moment,
}

/// What a connection's code may touch besides the connection.
pub(super) struct Ctx<'a, I: Io> {
    pub io: &'a mut I,
    pub pool: &'a mut Pool,
    pub limits: &'a Limits,
    pub now: Instant,
    pub key: Key,
}

impl<S> Conn<S> {
    /// A connection the guest asked for with the SYN `syn`.
    pub fn asked_for(syn: &Repr, isn: Seq, mss: u16, now: Instant) -> Self {
        let mut conn = Self::new(Facts::CONNECTING, isn, mss, now);
        conn.meet(syn);
        conn
    }

    /// A connection that a peer opened and that the guest hears of now.
    pub fn arrived(rule: Option<RuleId>, isn: Seq, mss: u16, now: Instant) -> Self {
        let facts = Facts::CALLING.union(Facts::INBOUND);
        Self {
            rule,
            ..Self::new(facts, isn, mss, now)
        }
    }

    /// The guest's SYN (with or without ACK) has come: what it says of its side.
    pub fn meet(&mut self, syn: &Repr) {
        let options = &syn.options;
        if options.window_scale.is_some() {
            self.set(Facts::SCALED);
        }
        if options.sack_permitted {
            self.set(Facts::SACK);
        }
        let first = syn.seq.add(1);
        (self.rcv_nxt, self.rcv_acked, self.edge) = (first, first, first);
        (self.host_nxt, self.peer_acked, self.fin_at) = (first, first, first);
        self.snd_shift = options.window_scale.unwrap_or(0).min(14);
        // A window in a SYN is never scaled (RFC 7323 section 2.2).
        self.snd_wnd = u32::from(syn.window);
        self.snd_wl1 = syn.seq;
        self.mss = options.mss.unwrap_or(536).clamp(88, self.mss);
    }

    fn new(facts: Facts, isn: Seq, mss: u16, now: Instant) -> Self {
        Self {
            socket: None,
            facts: facts.union(Facts::TALK),
            rule: None,
            traffic: Traffic::default(),
            rcv_nxt: Seq(0),
            rcv_acked: Seq(0),
            edge: Seq(0),
            host_nxt: Seq(0),
            peer_acked: Seq(0),
            peer_base: 0,
            peer_rtt: 0,
            fin_at: Seq(0),
            kept: Kept::NONE,
            frame_size: mss,
            frames: 0,
            stride: 0,
            snd_shift: 0,
            head: isn.add(1),
            snd_una: isn,
            snd_nxt: isn,
            peek: isn.add(1),
            snd_wnd: 0,
            snd_wl1: Seq(0),
            cwnd: super::to_guest::FIRST_CWND,
            ssthresh: u32::MAX,
            board: Scoreboard::EMPTY,
            rexmit: isn,
            lost_to: isn,
            recover: isn,
            rtt: Rtt::new(),
            mss,
            consume_over: CONSUME_UNASKED,
            dup_acks: 0,
            backoff: 0,
            unheard: 0,
            ack_at: Moment::NEVER,
            waiting_since: low(now),
            rtx_at: Moment::NEVER,
            chore_at: Moment::NEVER,
            heard: Moment::at(now),
        }
    }

    pub const fn is(&self, fact: Facts) -> bool {
        self.facts.0 & fact.0 == fact.0
    }

    pub const fn any(&self, facts: Facts) -> bool {
        self.facts.0 & facts.0 != 0
    }

    pub fn set(&mut self, fact: Facts) {
        self.facts.0 |= fact.0;
    }

    pub fn clear(&mut self, fact: Facts) {
        self.facts.0 &= !fact.0;
    }

    /// Data flows: the handshake with the guest is over, and the socket is open.
    pub const fn is_open(&self) -> bool {
        !self.any(
            Facts::CONNECTING
                .union(Facts::CALLING)
                .union(Facts::SYN_SENT)
                .union(Facts::LINGER),
        )
    }

    /// Bytes (and FIN) the guest has not acknowledged.
    pub const fn in_flight(&self) -> u32 {
        self.snd_nxt.distance(self.snd_una)
    }

    /// Where the data we sent ends: `snd_nxt` without the FIN.
    pub const fn data_end(&self) -> Seq {
        if self.is(Facts::FIN_SENT) {
            self.snd_nxt.sub(1)
        } else {
            self.snd_nxt
        }
    }

    /// What an acknowledgement sent now says.
    pub fn ack_number(&self) -> Seq {
        if self.any(Facts::NEAR.union(Facts::GUEST_FIN).union(Facts::HASTE)) {
            self.rcv_nxt
        } else {
            self.rcv_acked.max(self.peer_acked.min(self.rcv_nxt))
        }
    }

    /// Header of a segment sent now; recorded as sent, so what it acknowledges is acknowledged.
    pub fn header(&mut self, key: &Key, seq: Seq, flags: Flags) -> Repr {
        let ack = self.ack_number();
        let left = if self.edge.gt(ack) {
            self.edge.distance(ack)
        } else {
            0
        };
        let scaled = self.is(Facts::SCALED) && !flags.contains(Flags::SYN);
        let unit: u32 = if scaled { 1 << WINDOW_SHIFT } else { 1 };
        // Rounded up, so that the edge does not move back by rounding (RFC 7323 section 2.4).
        let window = u16::try_from(left.div_ceil(unit)).unwrap_or(u16::MAX);
        self.acknowledged(ack);
        let told = u32::from(window).saturating_mul(unit);
        self.edge = self.edge.max(ack.add(told));
        Repr {
            src_port: key.remote.port,
            dst_port: key.guest.port,
            seq,
            ack,
            flags: flags | Flags::ACK,
            window,
            urgent: 0,
            options: Options::NONE,
        }
    }

    /// `ack` was just told to the guest.
    fn acknowledged(&mut self, ack: Seq) {
        self.clear(Facts::ACK_NOW);
        self.frames = 0;
        self.rcv_acked = ack;
        if ack == self.rcv_nxt {
            self.ack_at = Moment::NEVER;
            self.clear(Facts::HASTE);
        }
    }

    /// Take in what the kernel says about the way to the peer.
    pub fn learn(&mut self, info: &Info, now: Instant) {
        if info.min_rtt <= NEAR_RTT {
            self.set(Facts::NEAR);
        }
        if !self.is(Facts::ASKED) {
            self.set(Facts::ASKED);
            self.consume_over =
                u16::try_from((info.receive_window / 4).min(CONSUME_OVER)).unwrap_or(u16::MAX);
        }
        self.peer_rtt = info.rtt;
        let count = u32::try_from(info.bytes_acked & 0xffff_ffff).unwrap_or(0);
        let acked = Seq(count.wrapping_add(self.peer_base)).min(self.host_nxt);
        if acked.gt(self.peer_acked) {
            self.peer_acked = acked;
            self.waiting_since = low(now);
        }
    }

    /// An amount of data came for which the way to the peer matters: ask, if that was not done yet.
    pub fn know_peer<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) {
        if let Some(socket) = self.socket.as_ref().filter(|_| !self.is(Facts::ASKED)) {
            let info = ctx.io.info(socket);
            self.learn(&info, ctx.now);
        }
    }

    /// The earliest of all deadlines, as seen from `now`.
    pub fn deadline(&self, now: Instant) -> Instant {
        let heard = self.heard.instant(now);
        let idle = heard.after(super::timer::idle_limit(self.unheard));
        let first = self.ack_at.min(self.rtx_at).min(self.chore_at);
        first.instant(now).min(idle)
    }

    /// Silence after which a peer that should have acknowledged counts as slow: before the guest's kernel would
    /// take its data for lost (its timeout is at least the round trip it sees plus 200 ms).
    pub fn patience(rtt: u32) -> Duration {
        Duration::from_micros(u64::from(rtt)).saturating_add(Duration::from_millis(150))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_small() {
        // As large as the forwarder's: a descriptor and two flags.
        type Socket = (std::os::fd::OwnedFd, bool, bool);
        let size = size_of::<Option<(Key, Conn<Socket>)>>();
        assert!(size <= 240, "{size} bytes with its key");
        assert!(size_of::<Conn<Socket>>() <= 200);
    }
}
