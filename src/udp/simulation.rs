//! A guest, its peers, strangers, faults and time, in any order: what must hold after each step.
//!
//! Deterministic: the world is in memory, the clock is a number, and a failing sequence is shrunk and printed.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::fake::{Handle, World, ep};
use super::io::{Datagram, Fault};
use super::{Engine, Limits, Timeouts};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::flow::id::Key;
use crate::flow::translate::{self, Protocol, tests::config};

const GUESTS: [&str; 4] = [
    "192.0.2.10:53",
    "192.0.2.10:4000",
    "192.0.2.11:4000",
    "192.0.2.10:9999",
];
const PEERS: [&str; 8] = [
    "198.51.100.1:53",
    "198.51.100.2:9",
    "198.51.100.2:10",
    "169.254.1.1:53",
    // Means the same as the one before.
    "192.0.2.1:53",
    "169.254.1.2:7",
    "239.1.1.1:9",
    "203.0.113.66:9",
];
/// Cannot be reached, now and then.
const UNREACHABLE: &str = "203.0.113.66:9";
const STRANGER: &str = "198.51.100.250:666";

#[derive(Clone, Debug)]
enum Step {
    /// The guest sends `count` datagrams of `size` bytes, in one batch with what `also` says.
    Send {
        guest: usize,
        peer: usize,
        size: usize,
        count: usize,
        also: Option<(usize, usize)>,
    },
    /// A peer answers the datagram sent as the `pick`th from the end.
    Answer {
        pick: usize,
    },
    /// Somebody sends to a port the guest uses.
    Intrude {
        pick: usize,
    },
    /// The next send fails.
    Fail {
        fault: u8,
    },
    /// The unreachable peer becomes reachable, or the reverse.
    Toggle,
    Wait {
        ms: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4_usize, 0..8_usize, 12..3000_usize, 1..70_usize, prop::option::of((0..4_usize, 0..8_usize)))
            .prop_map(|(guest, peer, size, count, also)| Step::Send { guest, peer, size, count, also }),
        6 => (0..40_usize).prop_map(|pick| Step::Answer { pick }),
        2 => (0..40_usize).prop_map(|pick| Step::Intrude { pick }),
        1 => (0..3_u8).prop_map(|fault| Step::Fail { fault }),
        1 => Just(Step::Toggle),
        3 => prop_oneof![0..2000_u64, 9_000..12_000_u64, 25_000..130_000_u64].prop_map(|ms| Step::Wait { ms }),
    ];
    prop::collection::vec(step, 1..60)
}

struct Sim {
    engine: Engine<Handle>,
    world: World,
    now: Instant,
    /// What the guest wrote, by its number.
    written: Vec<(usize, usize)>,
    checked: usize,
    /// The last datagram that left, by guest and peer.
    last: HashMap<(usize, usize), usize>,
    faults: usize,
}

impl Sim {
    fn new(flows: usize, sockets: usize) -> Self {
        let mut cfg = config();
        cfg.v4.as_mut().unwrap().dns_host = Some("127.0.0.1".parse().unwrap());
        let world = World {
            mtu: 1500,
            taken: vec![9999],
            ..World::default()
        };
        Self {
            engine: Engine::new(cfg, Limits { flows, sockets }, Timeouts::default(), [3; 16]),
            world,
            now: Instant(1_000_000),
            written: Vec::new(),
            checked: 0,
            last: HashMap::new(),
            faults: 0,
        }
    }

    /// Payload: the number of the datagram, then padding.
    fn write(&mut self, guest: usize, peer: usize, size: usize) -> (usize, usize, Vec<u8>) {
        let mut payload = vec![0xee; size];
        payload[..8].copy_from_slice(&self.written.len().to_be_bytes());
        self.written.push((guest, peer));
        (guest, peer, payload)
    }

    fn send(&mut self, step: &Step) {
        let Step::Send {
            guest,
            peer,
            size,
            count,
            also,
        } = *step
        else {
            return;
        };
        let mut data = Vec::new();
        for _ in 0..count {
            data.push(self.write(guest, peer, size));
            if let Some((guest, peer)) = also {
                data.push(self.write(guest, peer, size / 2 + 8));
            }
        }
        let batch: Vec<_> = data
            .iter()
            .map(|(guest, peer, payload)| Datagram {
                src: ep(GUESTS[*guest]),
                dst: ep(PEERS[*peer]),
                payload,
                hop_limit: 64,
                tos: 0,
                dont_fragment: size < 1400,
                gso_size: None,
                l3: &[],
            })
            .collect();
        let drops = self.world.drops.len();
        self.engine.from_guest(&mut self.world, self.now, &batch);
        let dropped = self.world.drops.len() - drops;
        let sent = self.world.sent.len() - self.checked;
        assert_eq!(
            sent + dropped,
            batch.len(),
            "neither sent nor counted, or both"
        );
    }

    fn number(payload: &[u8]) -> usize {
        usize::from_be_bytes(*payload.first_chunk().unwrap())
    }

    /// What has left went where it should, and in order.
    fn check_sent(&mut self) {
        for sent in &self.world.sent[self.checked..] {
            let number = Self::number(&sent.payload);
            let (guest, peer) = self.written[number];
            if let Some(before) = self.last.insert((guest, peer), number) {
                assert!(before < number, "{before} after {number}");
            }
            let (src, dst) = (ep(GUESTS[guest]), ep(PEERS[peer]));
            let out = translate::outbound(&self.engine.cfg, Protocol::Udp, src, dst).unwrap();
            assert_eq!(sent.to, out.dst);
        }
        self.checked = self.world.sent.len();
    }

    fn pick(&self, pick: usize) -> Option<(usize, u16, Endpoint)> {
        let at = self.world.sent.len().checked_sub(pick + 1)?;
        let sent = &self.world.sent[at];
        Some((Self::number(&sent.payload), sent.port, sent.to))
    }

    fn answer(&mut self, pick: usize) {
        let Some((number, port, to)) = self.pick(pick) else {
            return;
        };
        let (guest, peer) = self.written[number];
        let (src, dst) = (ep(GUESTS[guest]), ep(PEERS[peer]));
        let flow = self.engine.state.find(&Key::new(src, dst));
        let flow = flow.and_then(|id| self.engine.state.flows.get(id));
        let socket = flow.and_then(|flow| self.engine.state.sockets.get(flow.socket));
        // Only the socket the datagram left through can know what to do with an answer.
        let handle = socket.and_then(|s| s.io);
        if handle.is_none_or(|h| self.world.socks[&h.0].port != port) {
            return;
        }
        let group = to.ip.is_multicast();
        let from = if group { ep("198.51.100.77:9") } else { to };
        let before = self.world.got.len();
        assert!(
            self.world.arrive(port, from, &number.to_be_bytes()),
            "no socket for an answer"
        );
        self.serve();
        let got = &self.world.got[before..];
        assert_eq!(got.len(), 1, "the answer to {src} from {dst} was lost");
        assert_eq!(
            (got[0].src, got[0].dst),
            (if group { from } else { dst }, src)
        );
        assert_eq!(Self::number(&got[0].payload), number);
    }

    fn intrude(&mut self, pick: usize) {
        let Some((_, port, _)) = self.pick(pick) else {
            return;
        };
        let before = self.world.got.len();
        if !self.world.arrive(port, ep(STRANGER), b"let me in") {
            return;
        }
        let open = self.engine.state.sockets.iter().any(|(_, _, socket)| {
            let handle = socket.io.unwrap();
            self.world.socks[&handle.0].port == port && socket.groups > 0
        });
        self.serve();
        assert_eq!(self.world.got.len() - before, usize::from(open));
    }

    fn serve(&mut self) {
        for _ in 0..10 {
            for (id, ready) in self.world.ready() {
                self.engine.on_socket(&mut self.world, self.now, id, ready);
            }
        }
        assert!(self.world.ready().is_empty());
    }

    fn wait(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        let mut wakes = 0;
        while let Some(next) = self.engine.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(next);
            self.engine.on_timer(&mut self.world, self.now);
            // A deadline that does not move on would be a busy loop.
            self.now = self.now + Duration::from_micros(crate::flow::timers::TICK);
            wakes += 1;
            assert!(wakes < 5000, "does not sleep");
        }
        self.now = self.now.max(end);
        self.engine.on_timer(&mut self.world, self.now);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { .. } => self.send(step),
            Step::Answer { pick } => self.answer(pick),
            Step::Intrude { pick } => self.intrude(pick),
            Step::Fail { fault } => {
                self.faults += 1;
                self.world.faults.push_back(match fault {
                    0 => Fault::WouldBlock,
                    1 => Fault::Errno(libc::ECONNREFUSED),
                    _ => Fault::Errno(libc::EIO),
                });
            }
            Step::Toggle => {
                let was = self.world.unreachable.take();
                self.world.unreachable =
                    was.is_none().then(|| (ep(UNREACHABLE), libc::EHOSTUNREACH));
            }
            Step::Wait { ms } => self.wait(ms),
        }
        self.engine.state.check();
        self.check_sent();
        let (flows, sockets) = self.engine.len();
        assert!(sockets <= flows && self.world.socks.len() == sockets);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_history(steps in steps()) {
        let mut sim = Sim::new(64, 64);
        for step in &steps {
            sim.step(step);
        }
        // With room for everything, only what failed was lost.
        if sim.faults == 0 && !steps.iter().any(|s| matches!(s, Step::Toggle | Step::Intrude { .. })) {
            prop_assert!(sim.world.drops.is_empty(), "{:?}", sim.world.drops);
        }
        sim.wait(300_000);
        prop_assert_eq!(sim.engine.len(), (0, 0));
        prop_assert!(sim.engine.next_deadline().is_none() && sim.world.socks.is_empty());
    }

    /// As little room as makes every step a fight for it.
    #[test]
    fn any_history_in_a_small_house(steps in steps(), flows in 1..6_usize, sockets in 1..4_usize, limit in 1..4_usize) {
        let mut sim = Sim::new(flows, sockets);
        sim.world.limit = limit;
        for step in &steps {
            sim.step(step);
        }
        sim.wait(300_000);
        prop_assert_eq!(sim.engine.len(), (0, 0));
    }
}

/// A long transfer in both directions, with other flows coming and going: nothing is lost or reordered.
#[test]
fn a_long_conversation_is_lossless() {
    let mut sim = Sim::new(16, 16);
    for round in 0..500_usize {
        sim.step(&Step::Send {
            guest: 1,
            peer: 0,
            size: 1200,
            count: 50,
            also: Some((round % 4, round % 6)),
        });
        sim.step(&Step::Answer { pick: round % 17 });
        sim.step(&Step::Wait {
            ms: u64::try_from(round * 37 % 900).unwrap(),
        });
    }
    assert!(sim.world.drops.is_empty(), "{:?}", sim.world.drops);
    assert_eq!(sim.world.sent.len(), 500 * 100);
    // Runs of 50, half of them in one send (65,000 bytes), the others of equal size, too.
    assert!(sim.world.calls < 500 * 6, "{}", sim.world.calls);
}
