//! A guest and a host that obey no rule: any segments in any order, sockets that take, fail and end as they please.
//!
//! What must hold nevertheless: no panic; the socket gets a prefix of the guest's byte stream, whatever overlaps and gaps
//! were sent; no acknowledgement of what was not sent; no window edge that moves back; memory stays within
//! its bounds; and a RST at the acknowledged sequence number ends a connection and gives everything back.

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
use passt::tcp::{Arrival, Engine, Io, Limits, Readiness, Segment};
use passt::wire::tcp::{Flags, Options, Repr, SackBlocks, Seq};
use proptest::prelude::*;

use crate::rng::{Pattern, Rng};
use crate::{bytes_of, divide};

const FLOWS: usize = 3;

#[derive(Debug, Default, Clone)]
struct Flow {
    id: Option<FlowId>,
    connected: bool,
    open: bool,
    taken: u64,
    received: u64,
    consumed: u64,
    peeked: u64,
    ended: bool,
    shut: bool,
}

struct Wild {
    rng: Rng,
    pattern: Pattern,
    flows: Vec<Flow>,
    sockets: u32,
    last: Vec<Option<Repr>>,
    edges: Vec<Option<Seq>>,
}

impl Wild {
    fn of(key: &Key) -> usize {
        usize::from(key.guest.port) - 1000
    }

    fn note(&mut self, key: &Key, repr: &Repr) {
        let n = Self::of(key);
        if repr.flags.contains(Flags::RST) {
            self.edges[n] = None;
            return;
        }
        if repr.flags.contains(Flags::ACK) && !repr.flags.contains(Flags::SYN) {
            let edge = repr.ack.add(u32::from(repr.window) << 8);
            if let Some(before) = self.edges[n] {
                assert!(edge.ge(before), "the window's edge moved back");
            }
            self.edges[n] = Some(edge);
        }
        self.last[n] = Some(*repr);
    }
}

impl Io for Wild {
    type Socket = usize;

    fn connect(&mut self, id: FlowId, key: &Key) -> Result<usize, ConnectError> {
        let n = Self::of(key);
        assert!(!self.flows[n].open, "two sockets for one flow");
        match self.rng.below(12) {
            0 => Err(ConnectError::NoDescriptor),
            1 => Err(ConnectError::Failed(SocketError::Unreachable(
                Unreachable::Host,
            ))),
            2 => Err(ConnectError::Refused(Drop::BadDestination)),
            _ => {
                self.flows[n] = Flow {
                    id: Some(id),
                    open: true,
                    ..Flow::default()
                };
                self.sockets += 1;
                self.edges[n] = None;
                self.last[n] = None;
                Ok(n)
            }
        }
    }

    fn adopt(&mut self, id: FlowId, n: &usize) -> bool {
        self.flows[*n].id = Some(id);
        self.rng.below(8) > 0
    }

    fn connected(&mut self, n: &usize) -> Connecting {
        match self.rng.below(8) {
            0 => Connecting::Pending,
            1 => Connecting::Failed(SocketError::Refused),
            _ => {
                self.flows[*n].connected = true;
                Connecting::Done(self.info(n))
            }
        }
    }

    fn send(&mut self, n: &usize, data: &[Piece<'_>]) -> Result<usize, SocketError> {
        let total: usize = data.iter().map(|s| s.len()).sum();
        let takes = match self.rng.below(20) {
            0 => return Err(SocketError::Reset),
            1..=6 => return Err(SocketError::WouldBlock),
            7..=12 => self.rng.below(total as u64 + 1) as usize,
            _ => total,
        };
        let flow = &mut self.flows[*n];
        assert!(
            flow.open && flow.connected && !flow.shut,
            "send at the wrong time"
        );
        let bytes: Vec<u8> = data.iter().flat_map(bytes_of).take(takes).collect();
        assert!(
            self.pattern.check(flow.taken, &bytes),
            "not the guest's stream"
        );
        flow.taken += takes as u64;
        Ok(takes)
    }

    fn shutdown_write(&mut self, n: &usize) {
        assert!(!self.flows[*n].shut, "shut down twice");
        self.flows[*n].shut = true;
    }

    fn relay(
        &mut self,
        n: &usize,
        frame: &Outgoing<'_>,
        offset: u32,
        max: u32,
    ) -> Result<Relayed, SocketError> {
        assert!(max > 0 && frame.mss > 0);
        let refuse = self.rng.chance(500);
        let unseen = refuse && self.rng.chance(5000);
        let flow = &mut self.flows[*n];
        assert_eq!(flow.consumed + u64::from(offset), flow.peeked);
        if unseen {
            return Ok(Relayed {
                refused: true,
                ..Relayed::default()
            });
        }
        let peeked = (flow.received - flow.peeked).min(u64::from(max));
        if peeked == 0 {
            return if flow.ended {
                Ok(Relayed::default())
            } else {
                Err(SocketError::WouldBlock)
            };
        }
        flow.peeked += peeked;
        let sent = if refuse { 0 } else { peeked as u32 };
        if sent > 0 {
            self.note(frame.key, &frame.repr);
        }
        Ok(Relayed {
            peeked: peeked as u32,
            sent,
            refused: refuse,
        })
    }

    fn seek(&mut self, n: &usize, offset: u32) {
        let flow = &mut self.flows[*n];
        flow.peeked = flow.consumed + u64::from(offset);
        assert!(flow.peeked <= flow.received);
    }

    fn consume(&mut self, n: &usize, bytes: u32) {
        let flow = &mut self.flows[*n];
        flow.consumed += u64::from(bytes);
        flow.peeked = flow.peeked.max(flow.consumed);
        assert!(flow.consumed <= flow.received);
    }

    fn info(&mut self, n: &usize) -> Info {
        let acked = self.rng.below(self.flows[*n].taken + 1);
        let rtt = self.rng.below(100_000) as u32;
        Info {
            bytes_acked: 1 + acked,
            rtt,
            min_rtt: rtt,
            receive_window: 65_535,
        }
    }

    fn space(&mut self, _: &usize) -> Space {
        Space {
            size: self.rng.below(300_000) as u32,
            queued: self.rng.below(300_000) as u32,
        }
    }

    fn take_error(&mut self, _: &usize) -> Option<SocketError> {
        self.rng.chance(2000).then_some(SocketError::Reset)
    }

    fn close(&mut self, n: usize) {
        assert!(
            std::mem::replace(&mut self.flows[n].open, false),
            "closed twice"
        );
        self.sockets -= 1;
    }

    fn reset(&mut self, n: usize) {
        self.close(n);
    }

    fn emit(&mut self, key: &Key, repr: &Repr) {
        self.note(key, repr);
    }

    fn unreachable(&mut self, _: &Key, _: Seq, _: Unreachable) {}

    fn drop(&mut self, _: Drop) {}

    fn finished(&mut self, _: Option<RuleId>, _: &Traffic) {}
}

/// One thing that happens. Numbers are taken modulo what makes sense.
#[derive(Clone, Debug)]
enum Step {
    /// A segment at `at` bytes from what the engine last acknowledged, of `len` bytes.
    Segment {
        flow: usize,
        at: i32,
        len: usize,
        flags: u8,
        ack: i32,
        window: u16,
        sack: (u32, u32),
    },
    Event {
        flow: usize,
        bits: u8,
        arrives: u64,
        ends: bool,
    },
    Time(u64),
    Flush,
    /// A peer connects.
    Arrive(usize),
    /// The guest answers a call.
    Answer(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let near = prop_oneof![4 => Just(0), 3 => -3000_i32..3000, 1 => -200_000_i32..200_000, 1 => any::<i32>()];
    let flags = prop_oneof![8 => Just(0x10), 2 => Just(0x18), 1 => Just(0x11), 1 => Just(0x02), 1 => any::<u8>()];
    let segment = (
        0..FLOWS,
        near.clone(),
        0_usize..70_000,
        flags,
        near,
        any::<u16>(),
        (any::<u32>(), any::<u32>()),
    )
        .prop_map(|(flow, at, len, flags, ack, window, sack)| Step::Segment {
            flow,
            at,
            len,
            flags,
            ack,
            window,
            sack,
        });
    let event = (0..FLOWS, any::<u8>(), 0_u64..100_000, any::<bool>()).prop_map(
        |(flow, bits, arrives, ends)| Step::Event {
            flow,
            bits,
            arrives,
            ends: ends && bits > 200,
        },
    );
    prop_oneof![6 => segment, 3 => event, 1 => (0_u64..5_000_000).prop_map(Step::Time), 2 => Just(Step::Flush), 1 => (0..FLOWS).prop_map(Step::Arrive), 1 => (0..FLOWS).prop_map(Step::Answer)]
}

const REMOTE: ([u8; 4], u16) = ([192, 0, 2, 1], 80);

fn guest_end(flow: usize) -> Endpoint {
    Endpoint::new([10, 0, 0, 2].into(), 1000 + flow as u16)
}

struct Chaos {
    wild: Wild,
    engine: Engine<Wild>,
    now: u64,
    isn: [u32; FLOWS],
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut limits = Limits::new(1500, 2, [3; 16]);
        limits.pool = 1 << 20;
        let mut rng = Rng::new(seed);
        let isn = [rng.next() as u32, rng.next() as u32, u32::MAX - 70_000];
        let wild = Wild {
            rng,
            pattern: Pattern::new(seed),
            flows: vec![Flow::default(); FLOWS],
            sockets: 0,
            last: vec![None; FLOWS],
            edges: vec![None; FLOWS],
        };
        let mut chaos = Self {
            wild,
            engine: Engine::new(limits),
            now: 0,
            isn,
        };
        for (flow, first) in isn.into_iter().enumerate() {
            if seed >> flow & 1 > 0 {
                chaos.arrive(flow);
                chaos.answer(flow, Flags::SYN | Flags::ACK);
                continue;
            }
            chaos.segment(
                flow,
                Seq(first),
                Flags::SYN,
                Seq(0),
                0,
                0xffff,
                SackBlocks::EMPTY,
            );
        }
        chaos
    }

    fn arrive(&mut self, flow: usize) {
        if self.wild.flows[flow].open {
            return;
        }
        self.wild.flows[flow] = Flow {
            open: true,
            connected: true,
            ..Flow::default()
        };
        self.wild.sockets += 1;
        self.wild.edges[flow] = None;
        self.wild.last[flow] = None;
        let remote = Endpoint::new(REMOTE.0.into(), REMOTE.1);
        let arrival = Arrival {
            key: Key::new(guest_end(flow), remote),
            rule: None,
            socket: flow,
        };
        let now = Instant(self.now);
        let taken = self.engine.accept(&mut self.wild, now, arrival);
        assert_eq!(taken, self.wild.flows[flow].open, "refused and not reset");
    }

    /// What the guest says to our SYN, if that is what it got last.
    fn answer(&mut self, flow: usize, flags: Flags) {
        if let Some(syn) = self.wild.last[flow].filter(|r| r.flags == Flags::SYN) {
            let first = Seq(self.isn[flow]);
            let blocks = SackBlocks::EMPTY;
            self.segment(flow, first, flags, syn.seq.add(1), 0, 0xffff, blocks);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "a segment has many fields")]
    fn segment(
        &mut self,
        flow: usize,
        seq: Seq,
        flags: Flags,
        ack: Seq,
        len: usize,
        window: u16,
        sack: SackBlocks,
    ) {
        let first = Seq(self.isn[flow]).add(1);
        let at = seq.distance(first);
        // What lies before the stream or absurdly far beyond it carries no bytes of the stream.
        let len = if at > 1 << 30 { 0 } else { len };
        let payload = self.wild.pattern.at(u64::from(at), len).to_vec();
        let syn = flags.contains(Flags::SYN);
        let options = Options {
            mss: syn.then_some(1460),
            window_scale: syn.then_some(7),
            sack_permitted: syn,
            sack,
            timestamps: None,
        };
        let end = guest_end(flow);
        let remote = Endpoint::new(REMOTE.0.into(), REMOTE.1);
        let repr = Repr {
            src_port: end.port,
            dst_port: REMOTE.1,
            seq,
            ack,
            flags,
            window,
            urgent: 7,
            options,
        };
        let (first, rest) = divide(&payload);
        let segment = Segment {
            src: end,
            dst: remote,
            repr,
            payload: Payload::new(first, &rest, payload.len()),
            l3: &[],
            hop_limit: 64,
            tos: 0,
        };
        self.engine
            .from_guest(&mut self.wild, Instant(self.now), &[segment]);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Segment {
                flow,
                at,
                len,
                flags,
                ack,
                window,
                sack,
            } => {
                let known = self.wild.last[flow];
                let base = known.map_or(Seq(self.isn[flow]).add(1), |r| r.ack);
                let mine = known.map_or(Seq(0), |r| r.seq);
                let seq = Seq(base.0.wrapping_add_signed(at));
                // A SYN begins the stream where it began: otherwise the bytes would be others.
                let flags = Flags(flags);
                let seq = if flags.contains(Flags::SYN) {
                    Seq(self.isn[flow])
                } else {
                    seq
                };
                let mut blocks = SackBlocks::EMPTY;
                blocks.push(mine.add(sack.0 % 100_000), mine.add(sack.1 % 200_000));
                self.segment(
                    flow,
                    seq,
                    flags,
                    Seq(mine.0.wrapping_add_signed(ack)),
                    len,
                    window,
                    blocks,
                );
            }
            Step::Event {
                flow,
                bits,
                arrives,
                ends,
            } => {
                let state = &mut self.wild.flows[flow];
                let Some(id) = state.id.filter(|_| state.open) else {
                    return;
                };
                if state.connected && !state.ended {
                    state.received += arrives;
                    state.ended = ends;
                }
                let ready = Readiness {
                    readable: true,
                    writable: bits & 1 > 0,
                    error: bits & 6 == 6,
                    hup: bits & 24 == 24,
                    rdhup: state.ended,
                    urgent: bits & 96 == 96,
                };
                self.engine
                    .on_socket(&mut self.wild, Instant(self.now), id, ready);
            }
            Step::Time(passes) => {
                self.now += passes;
                for _ in 0..50 {
                    if self.engine.next_deadline().is_none_or(|at| at.0 > self.now) {
                        break;
                    }
                    self.engine.on_timer(&mut self.wild, Instant(self.now));
                }
            }
            Step::Arrive(flow) => self.arrive(flow),
            Step::Answer(flow) => self.answer(flow, Flags::SYN | Flags::ACK),
            Step::Flush => self.engine.flush(&mut self.wild, Instant(self.now)),
        }
        assert!(self.engine.kept() <= 1 << 20);
        assert!(self.engine.len() <= FLOWS);
    }

    /// RST every flow where the engine expects the next byte.
    fn end(&mut self) {
        for flow in 0..FLOWS {
            self.answer(flow, Flags::RST | Flags::ACK);
            for _ in 0..2 {
                // A segment far outside earns an acknowledgement that says where that is.
                let known = self.wild.last[flow].map_or(Seq(self.isn[flow]).add(1), |r| r.ack);
                self.segment(
                    flow,
                    known.sub(1),
                    Flags::ACK,
                    Seq(0),
                    0,
                    0,
                    SackBlocks::EMPTY,
                );
                self.engine.flush(&mut self.wild, Instant(self.now));
                let known = self.wild.last[flow].map_or(Seq(self.isn[flow]).add(1), |r| r.ack);
                self.segment(flow, known, Flags::RST, Seq(0), 0, 0, SackBlocks::EMPTY);
            }
        }
        assert!(self.engine.is_empty(), "a RST did not end everything");
        assert_eq!(self.wild.sockets, 0, "sockets are left over");
        assert_eq!(self.engine.kept(), 0, "memory is left over");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn anything_goes(seed: u64, steps in proptest::collection::vec(step(), 0..120)) {
        let mut chaos = Chaos::new(seed);
        for step in &steps {
            chaos.apply(step);
        }
        chaos.end();
    }
}
