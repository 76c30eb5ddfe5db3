//! Guest, tap, engine, sockets and network on one virtual clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

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
use passt::wire::tcp::{Repr, Seq};

use crate::guest::{Behaviour, Guest, NEVER, Out};
use crate::rng::{Pattern, Rng};
use crate::socket::{Net, Peer, Socket};
use crate::{bytes_of, divide};

/// The tap between guest and us.
#[derive(Clone, Debug)]
pub struct Tap {
    /// Frames lost, per 10,000: from the guest, to the guest.
    pub loss: (u32, u32),
    /// The frames lost for certain, by number: from the guest, to the guest.
    pub lost: (u64, u64),
    /// Frames delayed past others, per 10,000, both ways.
    pub reorder: u32,
    /// Frames it holds in each direction.
    pub queue: usize,
    /// IP MTU.
    pub mtu: u16,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    /// The peer begins.
    pub inbound: bool,
    pub tap: Tap,
    pub guest: Behaviour,
    pub peer: Peer,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Virtual µs from SYN to both sides done.
    pub took: u64,
    /// Longest time nothing was delivered to the one that was owed something, µs.
    pub stall: u64,
    /// When that began.
    pub stalled_at: u64,
    pub guest_timeouts: u32,
    pub frames_to_engine: u64,
    pub frames_to_guest: u64,
    pub frames_from_guest: u64,
    pub queue_drops: u64,
    pub most_kept: usize,
    pub sends: u64,
    pub infos: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    Net(usize, Net),
    ToEngine(usize),
    ToGuest(usize),
    Guest,
    Engine,
}

/// What the engine sees.
pub struct Host {
    now: u64,
    sockets: Vec<Socket>,
    of_flow: Vec<(FlowId, usize)>,
    peer: Peer,
    upload: Pattern,
    download: Pattern,
    to_guest: VecDeque<(Repr, Vec<u8>)>,
    in_flight: usize,
    tap_queue: usize,
    unit: usize,
    pub drops: u64,
    pub sends: u64,
    pub infos: u64,
    carried: Option<Traffic>,
}

impl Io for Host {
    type Socket = usize;

    fn connect(&mut self, id: FlowId, _: &Key) -> Result<usize, ConnectError> {
        self.sockets.push(Socket::new(self.peer.clone(), self.now));
        let number = self.sockets.len() - 1;
        self.of_flow.retain(|(flow, _)| *flow != id);
        self.of_flow.push((id, number));
        Ok(number)
    }

    fn adopt(&mut self, id: FlowId, socket: &usize) -> bool {
        self.of_flow.push((id, *socket));
        true
    }

    fn connected(&mut self, socket: &usize) -> Connecting {
        if self.sockets[*socket].connected {
            Connecting::Done(self.info(socket))
        } else {
            Connecting::Pending
        }
    }

    fn send(&mut self, socket: &usize, data: &[Piece<'_>]) -> Result<usize, SocketError> {
        self.sends += 1;
        let pieces: Vec<Vec<u8>> = data.iter().map(bytes_of).collect();
        let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        self.sockets[*socket]
            .send(self.now, &slices, &self.upload)
            .ok_or(SocketError::WouldBlock)
    }

    fn shutdown_write(&mut self, socket: &usize) {
        self.sockets[*socket].shutdown(self.now);
    }

    fn relay(
        &mut self,
        socket: &usize,
        frame: &Outgoing<'_>,
        offset: u32,
        max: u32,
    ) -> Result<Relayed, SocketError> {
        let mut done = Relayed::default();
        let unit = (self.unit / usize::from(frame.mss)).max(1) * usize::from(frame.mss);
        while done.peeked < max {
            let full = self.in_flight + self.to_guest.len() >= self.tap_queue;
            if full && unit > usize::from(frame.mss) {
                // As rings do: without buffers there is nowhere to peek to.
                done.refused = true;
                break;
            }
            let most = u64::from(max - done.peeked).min(unit as u64);
            let Some((at, n)) = self.sockets[*socket].peek(u64::from(offset + done.peeked), most)
            else {
                if done.peeked == 0 {
                    return Err(SocketError::WouldBlock);
                }
                break;
            };
            if n == 0 {
                break;
            }
            let repr = Repr {
                seq: frame.repr.seq.add(done.peeked),
                ..frame.repr
            };
            done.peeked += n as u32;
            if full {
                done.refused = true;
                break;
            }
            let payload = self.download.at(at, n as usize).to_vec();
            self.to_guest.push_back((repr, payload));
            done.sent += n as u32;
            if n < most {
                break;
            }
        }
        Ok(done)
    }

    fn seek(&mut self, socket: &usize, offset: u32) {
        self.sockets[*socket].seek(u64::from(offset));
    }

    fn consume(&mut self, socket: &usize, n: u32) {
        self.sockets[*socket].consume(self.now, u64::from(n));
    }

    fn info(&mut self, socket: &usize) -> Info {
        self.infos += 1;
        let socket = &self.sockets[*socket];
        let rtt = socket.peer.rtt.max(10) as u32;
        Info {
            bytes_acked: socket.bytes_acked(),
            rtt,
            min_rtt: rtt,
            receive_window: (socket.peer.rcvbuf / 2) as u32,
        }
    }

    fn space(&mut self, socket: &usize) -> Space {
        let socket = &self.sockets[*socket];
        Space {
            size: socket.size() as u32,
            queued: socket.queued() as u32,
        }
    }

    fn take_error(&mut self, _: &usize) -> Option<SocketError> {
        None
    }

    fn close(&mut self, socket: usize) {
        self.sockets[socket].close(self.now);
    }

    fn reset(&mut self, socket: usize) {
        panic!("socket {socket} was reset");
    }

    fn emit(&mut self, _: &Key, repr: &Repr) {
        if self.in_flight + self.to_guest.len() < self.tap_queue {
            self.to_guest.push_back((*repr, Vec::new()));
        } else {
            self.drops += 1;
        }
    }

    fn unreachable(&mut self, _: &Key, _: Seq, _: Unreachable) {
        panic!("unreachable");
    }

    fn drop(&mut self, _: Drop) {}

    fn finished(&mut self, _: Option<RuleId>, traffic: &Traffic) {
        assert!(self.carried.is_none(), "finished twice");
        self.carried = Some(*traffic);
    }
}

pub struct World {
    scenario: Scenario,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    rng: Rng,
    guest: Guest,
    guest_timer: u64,
    host: Host,
    engine: Engine<Host>,
    engine_busy: u64,
    engine_wake: u64,
    rx: VecDeque<usize>,
    frames: Vec<Option<(Repr, Vec<u8>)>>,
    outcome: Outcome,
    trace: bool,
}

fn guest_end() -> Endpoint {
    Endpoint::new([10, 0, 0, 2].into(), 40_000)
}

fn remote_end() -> Endpoint {
    Endpoint::new([192, 0, 2, 1].into(), 80)
}

fn is_lost(number: u64, lost: u64) -> bool {
    u32::try_from(number).is_ok_and(|n| lost.checked_shr(n).unwrap_or(0) & 1 > 0)
}

/// Frames the engine gets at a time.
const BATCH: usize = 64;

impl World {
    pub fn new(scenario: &Scenario) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let iss = rng.next() as u32;
        let guest = if scenario.inbound {
            Guest::listening(scenario.guest.clone(), (40_000, 80), iss, 0)
        } else {
            Guest::new(scenario.guest.clone(), (40_000, 80), iss, 0)
        };
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&rng.next().to_le_bytes());
        let mut limits = Limits::new(scenario.tap.mtu, 64, seed);
        limits.tap_queue = scenario.tap.queue as u32;
        limits.pool = 8 << 20;
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            guest,
            guest_timer: NEVER,
            host: Host {
                now: 0,
                sockets: Vec::new(),
                of_flow: Vec::new(),
                peer: scenario.peer.clone(),
                upload: Pattern::new(scenario.seed ^ 1),
                download: Pattern::new(scenario.seed ^ 2),
                to_guest: VecDeque::new(),
                in_flight: 0,
                tap_queue: scenario.tap.queue,
                unit: if scenario.guest.offload { 65_000 } else { 1 },
                drops: 0,
                sends: 0,
                infos: 0,
                carried: None,
            },
            engine: Engine::new(limits),
            engine_busy: 0,
            engine_wake: NEVER,
            rx: VecDeque::new(),
            frames: Vec::new(),
            outcome: Outcome::default(),
            rng,
            scenario: scenario.clone(),
            trace: std::env::var_os("SIM_TRACE").is_some(),
        }
    }

    fn later(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue
            .push(Reverse((at.max(self.now), self.sequence, event)));
    }

    /// Collect what everybody wants to happen later.
    fn collect(&mut self) {
        while let Some(out) = self.guest.out.pop_front() {
            self.leave_guest(&out);
        }
        while let Some((repr, payload)) = self.host.to_guest.pop_front() {
            if self.trace {
                println!(
                    "{:>10} -> guest {:?} seq {:?} +{} ack {:?} win {} sack {:?}",
                    self.now,
                    repr.flags,
                    repr.seq,
                    payload.len(),
                    repr.ack,
                    repr.window,
                    repr.options.sack.as_slice()
                );
            }
            let lost = is_lost(self.outcome.frames_to_guest, self.scenario.tap.lost.1);
            self.outcome.frames_to_guest += 1;
            if self.rng.chance(self.scenario.tap.loss.1) || lost {
                continue;
            }
            let delay = 5 + if self.rng.chance(self.scenario.tap.reorder) {
                self.rng.below(300)
            } else {
                0
            };
            self.host.in_flight += 1;
            let number = self.store(repr, payload);
            self.later(self.now + delay, Event::ToGuest(number));
        }
        for number in 0..self.host.sockets.len() {
            while let Some((at, net)) = self.host.sockets[number].pending.pop_front() {
                self.later(at, Event::Net(number, net));
            }
        }
        let due = self.guest.deadline();
        if due < self.guest_timer {
            self.guest_timer = due;
            self.later(due, Event::Guest);
        }
        let ready = self
            .host
            .of_flow
            .iter()
            .any(|(_, n)| self.host.sockets[*n].edges != Default::default());
        let mut wake = self.engine.next_deadline().map_or(NEVER, |at| at.0);
        if !self.rx.is_empty() || ready {
            wake = 0;
        }
        let wake = wake.max(self.engine_busy).max(self.now);
        if wake < self.engine_wake && wake < NEVER / 2 {
            self.engine_wake = wake;
            self.later(wake, Event::Engine);
        }
    }

    fn store(&mut self, repr: Repr, payload: Vec<u8>) -> usize {
        self.frames.push(Some((repr, payload)));
        self.frames.len() - 1
    }

    fn leave_guest(&mut self, out: &Out) {
        if self.trace {
            println!(
                "{:>10} guest -> {:?} seq {:?} +{} ack {:?} win {} sack {:?}",
                self.now,
                out.repr.flags,
                out.repr.seq,
                out.len,
                out.repr.ack,
                out.repr.window,
                out.repr.options.sack.as_slice()
            );
        }
        let lost = is_lost(self.outcome.frames_from_guest, self.scenario.tap.lost.0);
        self.outcome.frames_from_guest += 1;
        if self.rng.chance(self.scenario.tap.loss.0) || lost {
            return;
        }
        let payload = self.host.upload.at(out.at, out.len).to_vec();
        let delay = 1 + if self.rng.chance(self.scenario.tap.reorder) {
            self.rng.below(300)
        } else {
            0
        };
        let number = self.store(out.repr, payload);
        self.later(self.now + delay, Event::ToEngine(number));
    }

    /// One round of the event loop.
    fn round(&mut self) {
        let now = Instant(self.now);
        let count = self.rx.len().min(BATCH);
        let numbers: Vec<usize> = self.rx.drain(..count).collect();
        let frames: Vec<_> = numbers
            .into_iter()
            .filter_map(|n| self.frames[n].take())
            .collect();
        let pieces: Vec<_> = frames.iter().map(|(_, payload)| divide(payload)).collect();
        let batch: Vec<Segment<'_>> = frames
            .iter()
            .zip(&pieces)
            .map(|((repr, payload), (first, rest))| Segment {
                src: guest_end(),
                dst: remote_end(),
                repr: *repr,
                payload: Payload::new(*first, rest, payload.len()),
                l3: &[],
                hop_limit: 64,
                tos: 0,
            })
            .collect();
        self.outcome.frames_to_engine += batch.len() as u64;
        let bytes: usize = batch.iter().map(|s| s.payload.len()).sum();
        if !batch.is_empty() {
            self.engine.from_guest(&mut self.host, now, &batch);
        }
        for (id, number) in self.host.of_flow.clone() {
            let edges = std::mem::take(&mut self.host.sockets[number].edges);
            if edges != Default::default() && self.host.sockets[number].open {
                let ready = Readiness {
                    readable: edges.readable,
                    writable: edges.writable,
                    error: false,
                    hup: edges.hup,
                    rdhup: edges.rdhup,
                    urgent: false,
                };
                self.engine.on_socket(&mut self.host, now, id, ready);
            }
        }
        if self.engine.next_deadline().is_some_and(|at| at <= now) {
            self.engine.on_timer(&mut self.host, now);
        }
        self.engine.flush(&mut self.host, now);
        self.outcome.most_kept = self.outcome.most_kept.max(self.engine.kept());
        self.engine_busy = self.now + 3 + count as u64 / 2 + bytes as u64 / 20_000;
    }

    fn step(&mut self) -> bool {
        let Some(Reverse((at, _, event))) = self.queue.pop() else {
            return false;
        };
        self.now = at;
        self.host.now = at;
        match event {
            Event::Net(socket, net) => self.host.sockets[socket].on_net(at, net),
            Event::ToEngine(frame) => {
                if self.rx.len() < self.scenario.tap.queue {
                    self.rx.push_back(frame);
                } else {
                    self.outcome.queue_drops += 1;
                }
            }
            Event::ToGuest(frame) => {
                self.host.in_flight -= 1;
                if let Some((repr, payload)) = self.frames[frame].take() {
                    let download = &self.host.download;
                    self.guest
                        .receive(at, &repr, &payload, |pos, data| download.check(pos, data));
                }
            }
            Event::Guest => {
                self.guest_timer = NEVER;
                if self.guest.deadline() <= at {
                    self.guest.on_timer(at);
                }
            }
            Event::Engine => {
                if at == self.engine_wake {
                    self.engine_wake = NEVER;
                    self.round();
                }
            }
        }
        true
    }

    /// Run until both sides are done, then until the engine is empty.
    pub fn run(mut self) -> Outcome {
        let limit = 3_600_000_000;
        let mut progress = (0, 0);
        let mut progress_at = 0;
        if self.scenario.inbound {
            let peer = self.scenario.peer.clone();
            self.host.sockets.push(Socket::of_peer(peer, 0));
            let (key, rule) = (Key::new(guest_end(), remote_end()), None);
            let arrival = Arrival {
                key,
                rule,
                socket: 0,
            };
            assert!(self.engine.accept(&mut self.host, Instant(0), arrival));
        }
        self.collect();
        while self.step() {
            self.collect();
            assert!(self.now < limit, "not done after an hour: {self:?}");
            let peer_read = self.host.sockets.first().map_or(0, |s| s.read);
            let state = (peer_read, self.guest.received());
            let owed = peer_read < self.scenario.guest.sends
                || self.guest.received() < self.scenario.peer.sends;
            if state != progress || !owed {
                progress = state;
                progress_at = self.now;
            }
            if owed && self.now - progress_at > self.outcome.stall && state != (0, 0) {
                self.outcome.stall = self.now - progress_at;
                self.outcome.stalled_at = progress_at;
            }
            let peer_done = self
                .host
                .sockets
                .iter()
                .all(|s| s.peer_eof && s.read == s.arrived && s.peer_fin_sent);
            if self.guest.is_done() && peer_done && self.outcome.took == 0 {
                self.outcome.took = self.now;
            }
            if self.outcome.took > 0 && self.engine.is_empty() {
                break;
            }
        }
        self.verify();
        self.outcome.guest_timeouts = self.guest.timeouts;
        self.outcome.sends = self.host.sends;
        self.outcome.infos = self.host.infos;
        self.outcome
    }

    fn verify(&self) {
        assert!(
            self.outcome.took > 0,
            "stuck: nothing will ever happen again: {self:?}"
        );
        assert!(self.engine.is_empty(), "a connection is left over");
        assert_eq!(self.engine.kept(), 0, "memory is left over");
        assert_eq!(self.host.sockets.len(), 1);
        let carried = self.host.carried.expect("it was said that it is over");
        assert_eq!(
            (carried.bytes_out, carried.bytes_in),
            (self.scenario.guest.sends, self.scenario.peer.sends)
        );
        let socket = &self.host.sockets[0];
        assert!(!socket.open, "the socket is still open");
        assert_eq!(
            socket.read, self.scenario.guest.sends,
            "the peer did not get everything"
        );
        assert_eq!(
            self.guest.received(),
            self.scenario.peer.sends + 1,
            "the guest did not get everything"
        );
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "at {}: {:#?}\n{:#?}\n{:?}",
            self.now, self.guest, self.host.sockets, self.scenario
        )
    }
}
