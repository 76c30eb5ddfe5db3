//! One test per situation that user-mode TCP has been known to get wrong, segment by segment.

use std::collections::VecDeque;

use passt::addr::Endpoint;
use passt::clock::Instant;
use passt::config::rules::RuleId;
use passt::flow::id::{FlowId, Key};
use passt::flow::traffic::Traffic;
use passt::stats::Drop;
use passt::sys::piece::Piece;
use passt::tcp::io::{
    ConnectError, Connecting, Info, Outgoing, Relayed, SocketError, Space, Unreachable,
};
use passt::tcp::payload::Payload;
use passt::tcp::{Engine, Io, Limits, Readiness, Segment};
use passt::wire::tcp::{Flags, Options, Repr, SackBlocks, Seq};

use crate::{bytes_of, divide};

pub const ISN: u32 = 1_000_000;

/// A host that does what the test says.
pub struct Script {
    pub next_connect: Option<ConnectError>,
    pub connected: Connecting,
    pub takes: usize,
    pub min_rtt: u32,
    pub bytes_acked: u64,
    pub error: Option<SocketError>,
    /// Bytes in the receive queue, where they were peeked and consumed, and whether a FIN follows.
    pub received: u32,
    pub peeked: u32,
    pub consumed: u32,
    pub ended: bool,
    /// A read that begins before this ends here: the place of urgent data.
    pub mark: u32,
    /// Bytes the link has room for.
    pub room: u32,
    /// It has so little that nothing is peeked for it.
    pub full: bool,
    pub taken: Vec<u8>,
    pub emitted: VecDeque<(Repr, u32)>,
    pub calls: Vec<&'static str>,
    pub infos: u32,
    pub mss: u16,
    pub adopts: bool,
    pub drops: Vec<Drop>,
    pub finished: Vec<(Option<RuleId>, Traffic)>,
}

impl Io for Script {
    type Socket = u8;

    fn connect(&mut self, _: FlowId, _: &Key) -> Result<u8, ConnectError> {
        self.calls.push("connect");
        (self.received, self.peeked, self.consumed, self.ended) = (0, 0, 0, false);
        self.taken.clear();
        self.next_connect.map_or(Ok(7), Err)
    }

    fn adopt(&mut self, _: FlowId, _: &u8) -> bool {
        self.calls.push("adopt");
        self.adopts
    }

    fn connected(&mut self, _: &u8) -> Connecting {
        match self.connected {
            Connecting::Done(_) => Connecting::Done(self.info(&7)),
            other => other,
        }
    }

    fn send(&mut self, _: &u8, data: &[Piece<'_>]) -> Result<usize, SocketError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.calls.push("send");
        let bytes: Vec<u8> = data.iter().flat_map(bytes_of).take(self.takes).collect();
        self.taken.extend(&bytes);
        if bytes.is_empty() {
            Err(SocketError::WouldBlock)
        } else {
            Ok(bytes.len())
        }
    }

    fn shutdown_write(&mut self, _: &u8) {
        self.calls.push("shutdown");
    }

    fn relay(
        &mut self,
        _: &u8,
        frame: &Outgoing<'_>,
        _: u32,
        max: u32,
    ) -> Result<Relayed, SocketError> {
        if self.full {
            return Ok(Relayed {
                refused: true,
                ..Relayed::default()
            });
        }
        let mut n = (self.received - self.peeked).min(max);
        if self.peeked < self.mark {
            n = n.min(self.mark - self.peeked);
        }
        if n == 0 {
            return if self.ended {
                Ok(Relayed::default())
            } else {
                Err(SocketError::WouldBlock)
            };
        }
        self.peeked += n;
        self.mss = frame.mss;
        let sent = n.min(self.room);
        self.room -= sent;
        if sent > 0 {
            self.emitted.push_back((frame.repr, sent));
        }
        Ok(Relayed {
            peeked: n,
            sent,
            refused: sent < n,
        })
    }

    fn seek(&mut self, _: &u8, offset: u32) {
        self.peeked = self.consumed + offset;
    }

    fn consume(&mut self, _: &u8, n: u32) {
        self.consumed += n;
        self.peeked = self.peeked.max(self.consumed);
    }

    fn info(&mut self, _: &u8) -> Info {
        self.infos += 1;
        Info {
            bytes_acked: self.bytes_acked,
            rtt: self.min_rtt,
            min_rtt: self.min_rtt,
            receive_window: 65_535,
        }
    }

    fn space(&mut self, _: &u8) -> Space {
        Space {
            size: 1 << 20,
            queued: 0,
        }
    }

    fn take_error(&mut self, _: &u8) -> Option<SocketError> {
        self.error
    }

    fn close(&mut self, _: u8) {
        self.calls.push("close");
    }

    fn reset(&mut self, _: u8) {
        self.calls.push("reset");
    }

    fn emit(&mut self, _: &Key, repr: &Repr) {
        self.emitted.push_back((*repr, 0));
    }

    fn unreachable(&mut self, _: &Key, seq: Seq, why: Unreachable) {
        assert_eq!(seq, Seq(ISN));
        self.calls.push(match why {
            Unreachable::Network => "icmp network",
            Unreachable::Host => "icmp host",
            Unreachable::Prohibited => "icmp prohibited",
        });
    }

    fn drop(&mut self, why: Drop) {
        self.drops.push(why);
    }

    fn finished(&mut self, rule: Option<RuleId>, traffic: &Traffic) {
        self.finished.push((rule, *traffic));
    }
}

pub struct Test {
    pub io: Script,
    pub engine: Engine<Script>,
    pub now: u64,
    pub port: u16,
    /// What the guest sends next and expects next.
    pub seq: Seq,
    pub ack: Seq,
}

impl Test {
    pub fn new() -> Self {
        let done = Connecting::Done(Info::default());
        let io = Script {
            next_connect: None,
            connected: done,
            takes: usize::MAX,
            min_rtt: 50,
            bytes_acked: 1,
            error: None,
            received: 0,
            peeked: 0,
            consumed: 0,
            ended: false,
            mark: 0,
            room: u32::MAX,
            full: false,
            taken: Vec::new(),
            emitted: VecDeque::new(),
            calls: Vec::new(),
            infos: 0,
            mss: 0,
            adopts: true,
            drops: Vec::new(),
            finished: Vec::new(),
        };
        let limits = Limits {
            capacity: 2,
            ..Limits::new(1500, 2, [9; 16])
        };
        Self {
            io,
            engine: Engine::new(limits),
            now: 1000,
            port: 80,
            seq: Seq(ISN),
            ack: Seq(0),
        }
    }

    /// A connection after the handshake.
    pub fn open() -> Self {
        let mut test = Self::new();
        test.handshake();
        test
    }

    pub fn handshake(&mut self) {
        self.syn(self.seq);
        self.event(|r| r.writable = true);
        let (syn_ack, _) = self.io.emitted.pop_front().expect("a SYN,ACK");
        assert_eq!(syn_ack.flags, Flags::SYN | Flags::ACK);
        assert_eq!(syn_ack.ack, self.seq.add(1));
        assert!(syn_ack.options.sack_permitted && syn_ack.options.window_scale.is_some());
        assert_eq!(syn_ack.options.mss, Some(1460));
        self.seq = self.seq.add(1);
        self.ack = syn_ack.seq.add(1);
        self.send(Flags::ACK, b"");
        self.nothing();
    }

    pub fn syn(&mut self, seq: Seq) {
        let options = Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            ..Options::NONE
        };
        self.segment(
            Repr {
                flags: Flags::SYN,
                seq,
                options,
                ..self.repr()
            },
            b"",
        );
    }

    pub fn repr(&self) -> Repr {
        Repr {
            src_port: 1000,
            dst_port: self.port,
            seq: self.seq,
            ack: self.ack,
            flags: Flags::ACK,
            window: 500,
            urgent: 0,
            options: Options::NONE,
        }
    }

    pub fn segment(&mut self, repr: Repr, payload: &[u8]) {
        self.batch(&[(repr, payload)]);
    }

    /// Segments that come in one read.
    pub fn batch(&mut self, segments: &[(Repr, &[u8])]) {
        let pieces: Vec<_> = segments
            .iter()
            .map(|(_, payload)| divide(payload))
            .collect();
        let segments: Vec<_> = segments
            .iter()
            .zip(&pieces)
            .map(|(&(repr, payload), (first, rest))| Segment {
                src: Endpoint::new([10, 0, 0, 2].into(), repr.src_port),
                dst: Endpoint::new([192, 0, 2, 1].into(), repr.dst_port),
                repr,
                payload: Payload::new(*first, rest, payload.len()),
                l3: &[],
                hop_limit: 64,
                tos: 0,
            })
            .collect();
        self.engine
            .from_guest(&mut self.io, Instant(self.now), &segments);
        self.engine.flush(&mut self.io, Instant(self.now));
    }

    /// The guest's next segment.
    pub fn send(&mut self, flags: Flags, payload: &[u8]) {
        self.segment(
            Repr {
                flags,
                ..self.repr()
            },
            payload,
        );
        let fin = u32::from(flags.contains(Flags::FIN));
        self.seq = self.seq.add(payload.len() as u32 + fin);
    }

    pub fn event(&mut self, set: impl FnOnce(&mut Readiness)) {
        let mut ready = Readiness::default();
        set(&mut ready);
        self.engine
            .on_socket(&mut self.io, Instant(self.now), FlowId(0), ready);
        self.engine.flush(&mut self.io, Instant(self.now));
    }

    pub fn arrives(&mut self, bytes: u32) {
        self.io.received += bytes;
        self.event(|r| r.readable = true);
    }

    pub fn peer_closes(&mut self) {
        self.io.ended = true;
        self.event(|r| (r.readable, r.rdhup) = (true, true));
    }

    pub fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += 1000;
            if self
                .engine
                .next_deadline()
                .is_some_and(|at| at.0 <= self.now)
            {
                self.engine.on_timer(&mut self.io, Instant(self.now));
                self.engine.flush(&mut self.io, Instant(self.now));
            }
        }
    }

    pub fn out(&mut self) -> Repr {
        self.io
            .emitted
            .pop_front()
            .expect("a segment for the guest")
            .0
    }

    pub fn data(&mut self) -> (Repr, u32) {
        self.io
            .emitted
            .pop_front()
            .filter(|(_, n)| *n > 0)
            .expect("data for the guest")
    }

    pub fn nothing(&mut self) {
        assert_eq!(self.io.emitted.front(), None);
    }
}

#[test]
fn a_refused_connection_is_a_rst_that_acknowledges_the_syn() {
    let mut t = Test::new();
    t.io.connected = Connecting::Failed(SocketError::Refused);
    t.syn(Seq(ISN));
    t.event(|r| r.error = true);
    let rst = t.out();
    assert_eq!(
        (rst.flags, rst.seq, rst.ack),
        (Flags::RST | Flags::ACK, Seq(0), Seq(ISN + 1))
    );
    assert!(t.engine.is_empty());
}

#[test]
fn unreachable_is_icmp_and_silence_is_silence() {
    for (error, call) in [
        (SocketError::Unreachable(Unreachable::Host), "icmp host"),
        (
            SocketError::Unreachable(Unreachable::Network),
            "icmp network",
        ),
        (SocketError::TimedOut, "close"),
    ] {
        let mut t = Test::new();
        t.io.connected = Connecting::Failed(error);
        t.syn(Seq(ISN));
        t.event(|r| r.error = true);
        t.nothing();
        assert!(t.io.calls.contains(&call));
        assert!(t.engine.is_empty());
        // The same if connect() itself says so.
        let mut t = Test::new();
        t.io.next_connect = Some(ConnectError::Failed(error));
        t.syn(Seq(ISN));
        t.nothing();
        assert!(t.engine.is_empty());
    }
}

#[test]
fn without_a_descriptor_or_a_table_entry_the_new_one_is_refused_and_nothing_else_happens() {
    let mut t = Test::open();
    t.io.next_connect = Some(ConnectError::NoDescriptor);
    for port in [81, 82] {
        t.port = port;
        t.syn(Seq(ISN));
        assert!(t.out().flags.contains(Flags::RST));
    }
    assert_eq!(t.io.drops, [Drop::NoDescriptor, Drop::NoDescriptor]);
    t.io.next_connect = None;
    t.syn(Seq(ISN));
    t.port = 83;
    t.syn(Seq(ISN));
    assert!(t.out().flags.contains(Flags::RST));
    assert_eq!(t.io.drops.last(), Some(&Drop::TableFull));
    assert_eq!(t.engine.len(), 2);
    t.port = 80;
    t.send(Flags::ACK, b"still here");
    assert_eq!(t.io.taken, b"still here");
}

#[test]
fn port_zero_is_refused() {
    let mut t = Test::new();
    t.port = 0;
    t.syn(Seq(ISN));
    assert!(t.out().flags.contains(Flags::RST));
    assert!(t.io.calls.is_empty() && t.engine.is_empty());
}

#[test]
fn a_repeated_syn_does_not_connect_twice() {
    let mut t = Test::new();
    t.syn(Seq(ISN));
    t.syn(Seq(ISN));
    t.nothing();
    t.event(|r| r.writable = true);
    let first = t.out();
    t.syn(Seq(ISN));
    assert_eq!(t.out(), first);
    assert_eq!(t.io.calls, ["connect"]);
    // And the SYN,ACK is repeated until the guest answers.
    t.pass(1100);
    assert_eq!(t.out().flags, first.flags);
}

#[test]
fn data_before_the_handshake_is_over_comes_through_once_it_is_sent_again() {
    let mut t = Test::new();
    t.syn(Seq(ISN));
    t.segment(
        Repr {
            seq: Seq(ISN + 1),
            ..t.repr()
        },
        b"early",
    );
    assert!(t.io.taken.is_empty());
    t.event(|r| r.writable = true);
    let syn_ack = t.out();
    t.seq = Seq(ISN + 1);
    t.ack = syn_ack.seq.add(1);
    // Data completes the handshake, too.
    t.send(Flags::ACK, b"early");
    assert_eq!(t.io.taken, b"early");
}

#[test]
fn segments_of_no_connection_earn_a_rst_with_the_right_numbers() {
    let mut t = Test::new();
    t.ack = Seq(77);
    t.send(Flags::ACK, b"x");
    let rst = t.out();
    assert_eq!((rst.flags, rst.seq), (Flags::RST, Seq(77)));
    t.send(Flags::FIN, b"x");
    let rst = t.out();
    assert_eq!(
        (rst.flags, rst.seq, rst.ack),
        (Flags::RST | Flags::ACK, Seq(0), t.seq)
    );
    t.send(Flags::RST, b"");
    t.nothing();
}

#[test]
fn blind_resets_and_syns_earn_a_challenge_and_exact_ones_count() {
    let mut t = Test::open();
    t.segment(
        Repr {
            flags: Flags::RST,
            seq: t.seq.add(5),
            ..t.repr()
        },
        b"",
    );
    assert_eq!(t.out().ack, t.seq);
    t.segment(
        Repr {
            flags: Flags::SYN,
            seq: t.seq.add(5),
            ..t.repr()
        },
        b"",
    );
    assert_eq!(t.out().ack, t.seq);
    t.segment(
        Repr {
            flags: Flags::RST,
            seq: t.seq.sub(100_000),
            ..t.repr()
        },
        b"",
    );
    t.nothing();
    assert_eq!(t.engine.len(), 1);
    // RST carries no ACK flag, then the ports are used again at once.
    t.segment(
        Repr {
            flags: Flags::RST,
            ..t.repr()
        },
        b"",
    );
    assert_eq!(t.io.calls.last(), Some(&"reset"));
    t.seq = t.seq.add(90_000);
    t.handshake();
    t.send(Flags::ACK, b"new");
    assert_eq!(t.io.taken, b"new");
}

#[test]
fn an_answer_carries_the_acknowledgement_of_the_request() {
    let mut t = Test::open();
    t.send(Flags::ACK | Flags::PSH, b"request");
    t.nothing();
    t.arrives(10);
    let (answer, n) = t.data();
    assert_eq!((answer.ack, n), (t.seq, 10));
    t.pass(20);
    t.nothing();
}

#[test]
fn without_an_answer_the_acknowledgement_comes_soon_and_then_at_once() {
    let mut t = Test::open();
    t.send(Flags::ACK, b"one way");
    t.nothing();
    t.pass(2);
    assert_eq!(t.out().ack, t.seq);
    t.send(Flags::ACK, b"again");
    assert_eq!(t.out().ack, t.seq);
}

#[test]
fn frames_of_a_bulk_transfer_are_acknowledged_together_and_its_end_at_once() {
    let mut t = Test::open();
    let frame = [0; 1460];
    let mut per_hundred = Vec::new();
    for _ in 0..8 {
        for _ in 0..100 {
            t.send(Flags::ACK, &frame);
        }
        per_hundred.push(t.io.emitted.len());
        t.io.emitted.clear();
    }
    assert!(
        per_hundred[0] > 20,
        "a small congestion window: {per_hundred:?}"
    );
    assert!(per_hundred[7] < 10, "a large one: {per_hundred:?}");
    // The guest stops with less outstanding than an acknowledgement takes now, as with a smaller congestion window.
    t.pass(2);
    t.io.emitted.clear();
    for _ in 0..8 {
        t.send(Flags::ACK, &frame);
    }
    t.nothing();
    t.pass(2);
    assert_eq!(t.out().ack, t.seq);
    // It need not stop again.
    for _ in 0..8 {
        t.send(Flags::ACK, &frame);
    }
    assert!(!t.io.emitted.is_empty());
}

#[test]
fn a_far_peer_s_acknowledgement_is_passed_on_and_not_invented() {
    let mut t = Test::new();
    t.io.min_rtt = 20_000;
    t.handshake();
    t.send(Flags::ACK, &[0; 1000]);
    t.pass(60);
    t.nothing();
    t.io.bytes_acked = 601;
    t.pass(15);
    assert_eq!(t.out().ack, t.seq.sub(400));
    // But before the guest takes it for lost, it is told.
    t.pass(190);
    assert_eq!(t.out().ack, t.seq);
}

#[test]
fn what_the_socket_does_not_take_is_kept_and_acknowledged() {
    let mut t = Test::open();
    t.io.takes = 3;
    t.send(Flags::ACK, b"abcdef");
    assert_eq!(t.io.taken, b"abc");
    t.send(Flags::ACK | Flags::FIN, b"ghi");
    assert_eq!(t.out().ack, t.seq);
    assert!(!t.io.calls.contains(&"shutdown"));
    t.io.takes = usize::MAX;
    t.event(|r| r.writable = true);
    assert_eq!(t.io.taken, b"abcdefghi");
    assert_eq!(t.io.calls.last(), Some(&"shutdown"));
    assert_eq!(t.engine.kept(), 0);
}

#[test]
fn a_socket_that_refuses_is_tried_again_even_if_no_event_ever_comes() {
    let mut t = Test::open();
    t.io.takes = 0;
    t.send(Flags::ACK, b"everything");
    t.pass(5);
    assert_eq!(t.out().ack, t.seq, "kept, so acknowledged");
    t.io.takes = usize::MAX;
    t.pass(1100);
    assert_eq!(t.io.taken, b"everything");
    assert_eq!(t.engine.kept(), 0);
}

#[test]
fn what_the_guest_sent_before_its_reset_still_reaches_the_peer() {
    let mut t = Test::open();
    let data = t.repr();
    let reset = Repr {
        seq: data.seq.add(5),
        flags: Flags::RST,
        ..data
    };
    t.batch(&[(data, b"sorry"), (reset, b"")]);
    assert_eq!(t.io.taken, b"sorry");
    assert_eq!(t.io.calls, ["connect", "send", "reset"]);
    assert!(t.engine.is_empty());
}

#[test]
fn what_follows_urgent_data_does_not_wait_for_more() {
    let mut t = Test::open();
    (t.io.received, t.io.mark) = (100, 40);
    t.event(|r| (r.readable, r.urgent) = (true, true));
    assert_eq!([t.data().1, t.data().1], [40, 60]);
}

#[test]
fn out_of_order_data_is_sacked_and_not_asked_for_again() {
    let mut t = Test::open();
    let first = t.seq;
    t.segment(
        Repr {
            seq: first.add(3),
            ..t.repr()
        },
        b"def",
    );
    let dup = t.out();
    assert_eq!(dup.ack, first);
    assert_eq!(dup.options.sack.as_slice(), [(first.add(3), first.add(6))]);
    t.segment(
        Repr {
            seq: first.add(9),
            flags: Flags::ACK | Flags::FIN,
            ..t.repr()
        },
        b"jkl",
    );
    assert_eq!(
        t.out().options.sack.as_slice()[0],
        (first.add(9), first.add(13))
    );
    t.segment(
        Repr {
            seq: first,
            ..t.repr()
        },
        b"abc",
    );
    assert_eq!(t.out().ack, first.add(6));
    t.segment(
        Repr {
            seq: first.add(4),
            ..t.repr()
        },
        b"efghijk",
    );
    assert_eq!(t.io.taken, b"abcdefghijkl");
    assert_eq!(
        t.io.calls.last(),
        Some(&"shutdown"),
        "the FIN beyond the gap was remembered"
    );
}

#[test]
fn keep_alive_and_window_probes_are_answered() {
    let mut t = Test::open();
    t.send(Flags::ACK, b"x");
    t.pass(2);
    t.out();
    for payload in [&b""[..], b"x"] {
        t.segment(
            Repr {
                seq: t.seq.sub(1),
                ..t.repr()
            },
            payload,
        );
        let answer = t.out();
        assert_eq!((answer.ack, answer.flags), (t.seq, Flags::ACK));
    }
    assert_eq!(t.io.taken, b"x");
}

#[test]
fn an_idle_guest_is_asked_and_given_up_only_when_it_does_not_answer() {
    let mut t = Test::open();
    t.pass(7_201_000);
    let probe = t.out();
    assert_eq!((probe.seq, probe.flags), (t.ack.sub(1), Flags::ACK));
    t.send(Flags::ACK, b"");
    t.pass(7_199_000);
    t.nothing();
    t.pass(2000 + 9 * 75_000 + 1000);
    let last = std::iter::from_fn(|| t.io.emitted.pop_front())
        .last()
        .expect("probes")
        .0;
    assert!(last.flags.contains(Flags::RST));
    assert_eq!(t.io.calls.last(), Some(&"reset"));
    assert!(t.engine.is_empty());
}

#[test]
fn half_closed_by_the_guest_data_still_comes_and_both_fins_end_it() {
    let mut t = Test::open();
    t.send(Flags::ACK | Flags::FIN, b"request");
    assert_eq!(t.io.taken, b"request");
    assert_eq!(t.io.calls.last(), Some(&"shutdown"));
    t.arrives(500);
    let (data, n) = t.data();
    assert_eq!((data.ack, n), (t.seq, 500));
    t.peer_closes();
    let fin = t.out();
    assert_eq!(
        (fin.flags, fin.seq, fin.ack),
        (Flags::FIN | Flags::ACK, t.ack.add(500), t.seq)
    );
    t.ack = fin.seq.add(1);
    t.send(Flags::ACK, b"");
    assert_eq!(t.io.calls.last(), Some(&"close"));
    assert_eq!(t.io.consumed, 500, "closing with unread data would reset");
    assert!(t.engine.is_empty());
    t.nothing();
}

#[test]
fn half_closed_by_the_peer_and_the_last_acknowledgement_is_repeated() {
    let mut t = Test::open();
    t.peer_closes();
    t.ack = t.out().seq.add(1);
    t.send(Flags::ACK, b"late data");
    assert_eq!(t.io.taken, b"late data");
    let fin_at = t.seq;
    t.send(Flags::ACK | Flags::FIN, b"");
    assert_eq!(t.out().ack, t.seq);
    assert_eq!(t.io.calls.last(), Some(&"close"), "which is a FIN as well");
    assert!(!t.io.calls.contains(&"shutdown"));
    // Lost: the guest repeats its FIN and must not get a RST.
    t.segment(
        Repr {
            seq: fin_at,
            flags: Flags::ACK | Flags::FIN,
            ..t.repr()
        },
        b"",
    );
    let again = t.out();
    assert_eq!((again.flags, again.ack), (Flags::ACK, t.seq));
    // The ports may be used again meanwhile.
    t.seq = t.seq.add(50_000);
    t.handshake();
    assert_eq!(t.engine.len(), 1);
}

#[test]
fn simultaneous_close_ends_cleanly() {
    let mut t = Test::open();
    t.peer_closes();
    let fin = t.out();
    t.send(Flags::ACK | Flags::FIN, b"");
    t.ack = fin.seq.add(1);
    t.send(Flags::ACK, b"");
    assert_eq!(t.io.calls[t.io.calls.len() - 2..], ["shutdown", "close"]);
    t.pass(3000);
    assert!(t.engine.is_empty());
}

#[test]
fn a_guest_that_has_closed_may_use_its_ports_again() {
    let mut t = Test::open();
    t.send(Flags::ACK | Flags::FIN, b"");
    t.seq = t.seq.add(10_000);
    t.pass(3);
    t.io.emitted.clear();
    t.handshake();
    assert_eq!(t.io.calls.iter().filter(|c| **c == "connect").count(), 2);
    assert!(t.io.calls.contains(&"reset"));
}

#[test]
fn a_lone_fin_is_repeated_by_timer_and_not_by_duplicates() {
    let mut t = Test::open();
    t.peer_closes();
    let fin = t.out();
    for _ in 0..5 {
        t.segment(t.repr(), b"");
    }
    t.nothing();
    t.pass(300);
    let again = t.out();
    assert_eq!((again.flags, again.seq), (fin.flags, fin.seq));
}

#[test]
fn a_link_that_refuses_is_used_again_once_it_has_room_and_by_then_is_tried_anyway() {
    let mut t = Test::open();
    t.io.room = 3000;
    t.arrives(10_000);
    assert_eq!(t.data().1, 3000);
    t.nothing();
    t.io.room = 2000;
    t.engine.on_room(&mut t.io, Instant(t.now));
    t.engine.on_timer(&mut t.io, Instant(t.now));
    let (frame, n) = t.data();
    assert_eq!((frame.seq, n), (t.ack.add(3000), 2000));
    t.io.room = u32::MAX;
    t.pass(2);
    let (frame, n) = t.data();
    assert_eq!((frame.seq, n), (t.ack.add(5000), 5000));
    // Told again, nobody is waiting any more.
    t.engine.on_room(&mut t.io, Instant(t.now));
    t.engine.on_timer(&mut t.io, Instant(t.now));
    t.nothing();
}

/// A probe that the link has no room for is not peeked either: what follows must not be taken from its place.
#[test]
fn what_was_not_peeked_does_not_count_as_peeked() {
    let mut t = Test::open();
    t.arrives(1);
    let (first, _) = t.data();
    t.io.full = true;
    t.pass(150);
    t.nothing();
    assert_eq!(t.io.peeked, 0, "the probe looked for its byte");
    t.io.full = false;
    t.arrives(1);
    let (next, n) = t.data();
    assert_eq!((next.seq, n), (first.seq.add(1), 1));
    assert_eq!(t.io.peeked, 2);
    t.nothing();
}

#[test]
fn three_duplicates_or_sack_bring_back_what_was_lost_at_once() {
    let mut t = Test::open();
    t.arrives(20_000);
    let (first, n) = t.data();
    assert_eq!(n, 20_000);
    let mut sack = SackBlocks::EMPTY;
    sack.push(first.seq.add(1460), first.seq.add(20_000));
    let options = Options {
        sack,
        ..Options::NONE
    };
    t.segment(
        Repr {
            options,
            ..t.repr()
        },
        b"",
    );
    let (again, n) = t.data();
    assert_eq!((again.seq, n), (first.seq, 1460), "exactly what is missing");
    t.ack = first.seq.add(20_000);
    t.send(Flags::ACK, b"");
    t.pass(20);
    assert_eq!(t.io.consumed, 20_000);
    t.nothing();
}

#[test]
fn a_lost_tail_is_probed_for_long_before_the_timeout() {
    let mut t = Test::open();
    t.arrives(4000);
    t.data();
    t.pass(15);
    let (probe, n) = t.data();
    assert_eq!((probe.seq, n), (t.ack.add(2540), 1460));
    t.pass(250);
    let (again, _) = t.data();
    assert_eq!(again.seq, t.ack);
}

#[test]
fn a_closed_window_is_respected_probed_and_its_opening_used() {
    let mut t = Test::open();
    t.segment(
        Repr {
            window: 0,
            ..t.repr()
        },
        b"",
    );
    t.arrives(5000);
    t.nothing();
    t.pass(300);
    let probe = t.out();
    assert_eq!((probe.seq, probe.flags), (t.ack.sub(1), Flags::ACK));
    t.segment(
        Repr {
            window: 10,
            ..t.repr()
        },
        b"",
    );
    let (data, n) = t.data();
    assert_eq!((data.seq, n), (t.ack, 1280));
}

#[test]
fn a_window_that_closes_on_data_in_flight_has_it_sent_again_when_it_opens() {
    let mut t = Test::open();
    t.arrives(5000);
    t.data();
    // The guest drops everything and says so, then makes room.
    t.segment(
        Repr {
            window: 0,
            ..t.repr()
        },
        b"",
    );
    t.pass(1000);
    t.io.emitted.clear();
    t.segment(t.repr(), b"");
    let (again, n) = t.data();
    assert_eq!((again.seq, n), (t.ack, 5000));
}

#[test]
fn a_peer_s_reset_reaches_the_guest_after_the_data_before_it() {
    let mut t = Test::open();
    t.io.received = 100;
    t.io.error = Some(SocketError::Reset);
    t.event(|r| (r.readable, r.error, r.hup) = (true, true, true));
    assert_eq!(t.data().1, 100);
    let rst = t.out();
    assert_eq!(
        (rst.flags, rst.seq),
        (Flags::RST | Flags::ACK, t.ack.add(100))
    );
    assert!(t.engine.is_empty());
}

#[test]
fn urgent_data_is_data() {
    let mut t = Test::open();
    for urgent in [0, 4, 5, 0xffff] {
        t.segment(
            Repr {
                urgent,
                flags: Flags::ACK | Flags::URG,
                ..t.repr()
            },
            b"urge",
        );
        t.seq = t.seq.add(4);
    }
    assert_eq!(t.io.taken, b"urgeurgeurgeurge");
}

#[test]
fn data_beyond_the_window_is_not_taken() {
    let mut t = Test::open();
    t.send(Flags::ACK, b"x");
    t.pass(2);
    let edge = {
        let r = t.out();
        r.ack.add(u32::from(r.window) << 8)
    };
    t.segment(
        Repr {
            seq: edge.add(1),
            ..t.repr()
        },
        b"beyond",
    );
    assert_eq!(t.out().ack, t.seq);
    assert_eq!(t.io.drops.last(), Some(&Drop::OutOfWindow));
    assert_eq!(t.engine.kept(), 0);
}
