//! The echo engine against a network in memory.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::Engine;
use super::io::{Io, Reply, Request};
use super::report::{Kind, Report};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::flow::id::FlowId;
use crate::flow::translate::tests::config;
use crate::stats::Drop;
use crate::sys::errqueue::{Origin, Record};
use crate::udp::io::{Fault, Open, Peer, Readiness, Send};
use crate::wire::{checksum, ipv4};

const GUEST: &str = "192.0.2.10";
const A: &str = "198.51.100.1";

#[derive(Debug)]
struct Handle(u32);

#[derive(Debug, Default)]
struct Sock {
    ident: u16,
    dont_fragment: bool,
    groups: bool,
    rx: VecDeque<IpAddr>,
    errors: VecDeque<(Record, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct World {
    socks: BTreeMap<u32, Sock>,
    next: u32,
    refuse: Option<Fault>,
    faults: VecDeque<Fault>,
    sent: Vec<(u16, IpAddr, Option<u8>, bool)>,
    got: Vec<(IpAddr, Endpoint)>,
    reports: Vec<(IpAddr, Kind, Vec<u8>)>,
    drops: Vec<Drop>,
    cleared: usize,
}

impl Io for World {
    type Socket = Handle;

    fn open(&mut self, _: FlowId, open: &Open<'_>) -> Result<(Handle, u16), Fault> {
        if let Some(fault) = self.refuse {
            return Err(fault);
        }
        let taken = |n: u16| self.socks.values().any(|s| s.ident == n);
        let ident = if taken(open.port) {
            (9000..).find(|n| !taken(*n)).unwrap()
        } else {
            open.port
        };
        self.next += 1;
        self.socks.insert(
            self.next,
            Sock {
                ident,
                ..Sock::default()
            },
        );
        Ok((Handle(self.next), ident))
    }

    fn close(&mut self, socket: Handle) {
        self.socks.remove(&socket.0).expect("closed twice");
    }

    fn enable_groups(&mut self, socket: &Handle, _: bool) {
        self.socks.get_mut(&socket.0).unwrap().groups = true;
    }

    fn set_dont_fragment(&mut self, socket: &Handle, _: bool, on: bool) {
        self.socks.get_mut(&socket.0).unwrap().dont_fragment = on;
    }

    fn send(&mut self, socket: &Handle, to: Peer, how: &Send, _: &[u8]) -> Result<(), Fault> {
        if let Some(fault) = self.faults.pop_front() {
            return Err(fault);
        }
        let sock = &self.socks[&socket.0];
        self.sent
            .push((sock.ident, to.end.ip, how.hop_limit, sock.dont_fragment));
        Ok(())
    }

    fn receive(&mut self, socket: &Handle) -> Result<Reply, Fault> {
        let from = self.socks.get_mut(&socket.0).unwrap().rx.pop_front();
        from.map(|from| Reply {
            from,
            len: 64,
            tos: 0,
        })
        .ok_or(Fault::WouldBlock)
    }

    fn forward(&mut self, _: &Reply, src: IpAddr, dst: Endpoint) {
        self.got.push((src, dst));
    }

    fn next_error(&mut self, socket: &Handle, payload: &mut [u8]) -> Option<Record> {
        let (mut record, data) = self.socks.get_mut(&socket.0).unwrap().errors.pop_front()?;
        record.len = data.len().min(payload.len());
        payload[..record.len].copy_from_slice(&data[..record.len]);
        Some(record)
    }

    fn clear_error(&mut self, _: &Handle) {
        self.cleared += 1;
    }

    fn report(&mut self, report: &Report<'_>) {
        self.reports
            .push((report.from, report.kind, report.quote.to_vec()));
    }

    fn drop(&mut self, why: Drop) {
        self.drops.push(why);
    }
}

struct Bed {
    engine: Engine<Handle>,
    world: World,
    now: Instant,
}

const READY: Readiness = Readiness {
    readable: true,
    error: true,
};

impl Bed {
    fn new() -> Self {
        Self {
            engine: Engine::new(config(), 8, [1; 16]),
            world: World::default(),
            now: Instant(5),
        }
    }

    fn ping(&mut self, dst: &str, ident: u16) {
        self.send(&request(dst, ident));
    }

    fn send(&mut self, request: &Request<'_>) {
        self.engine
            .from_guest(&mut self.world, self.now, &[*request]);
    }

    fn run(&mut self) {
        for id in 0..8 {
            self.engine
                .on_socket(&mut self.world, self.now, FlowId(id), READY);
        }
    }

    fn wait(&mut self, s: u64) {
        self.now = self.now + Duration::from_secs(s);
        self.engine.on_timer(&mut self.world, self.now);
    }
}

fn request(dst: &str, ident: u16) -> Request<'_> {
    Request {
        src: GUEST.parse().unwrap(),
        dst: dst.parse().unwrap(),
        ident,
        message: &[8; 64],
        hop_limit: 64,
        tos: 0,
        dont_fragment: true,
        l3: b"the packet",
    }
}

#[test]
fn identifiers_are_the_guests_whatever_the_host_uses() {
    let mut bed = Bed::new();
    bed.ping(A, 0);
    bed.ping("192.0.2.1", 0);
    bed.ping(A, 0);
    let idents: Vec<_> = bed
        .world
        .sent
        .iter()
        .map(|s| (s.0, s.1.to_string()))
        .collect();
    assert_eq!(
        idents,
        [(0, A.into()), (9000, "127.0.0.1".into()), (0, A.into())]
    );
    for sock in bed.world.socks.values_mut() {
        sock.rx
            .extend(["127.0.0.1".parse::<IpAddr>().unwrap(), A.parse().unwrap()]);
    }
    bed.run();
    let guest = Endpoint::new(GUEST.parse().unwrap(), 0);
    let [a, gateway] = [A, "192.0.2.1"].map(|s| s.parse().unwrap());
    assert_eq!(bed.world.got, [(a, guest), (gateway, guest)]);
    // Replies from elsewhere are not for this flow.
    assert_eq!(bed.world.drops, [Drop::NoFlow; 2]);
}

#[test]
fn flows_end_after_a_minute_of_silence() {
    let mut bed = Bed::new();
    bed.ping(A, 1);
    for _ in 0..5 {
        bed.wait(50);
        bed.ping(A, 1);
    }
    assert_eq!((bed.engine.len(), bed.world.next), (1, 1));
    bed.wait(61);
    assert!(bed.engine.is_empty() && bed.world.socks.is_empty());
    assert_eq!(bed.engine.next_deadline(), None);
}

#[test]
fn limits_and_short_messages() {
    let mut bed = Bed::new();
    for ident in 0..10 {
        bed.ping(A, ident);
    }
    assert_eq!(
        (bed.world.sent.len(), &bed.world.drops[..]),
        (8, &[Drop::TableFull; 2][..])
    );
    let mut bed = Bed::new();
    bed.send(&Request {
        message: &[8; 7],
        ..request(A, 1)
    });
    bed.world.refuse = Some(Fault::NoDescriptor);
    bed.ping(A, 1);
    bed.ping("127.0.0.1", 1);
    assert_eq!(
        bed.world.drops,
        [Drop::Truncated, Drop::NoDescriptor, Drop::BadDestination]
    );
    assert!(bed.engine.is_empty());
}

#[test]
fn not_permitted_is_said_to_the_guest() {
    let mut bed = Bed::new();
    bed.world.refuse = Some(Fault::Errno(libc::EACCES));
    bed.ping(A, 1);
    let (from, kind, quote) = &bed.world.reports[0];
    assert_eq!(
        (from.to_string(), kind.message_type, kind.code),
        ("192.0.2.1".into(), 3, 13)
    );
    assert_eq!(quote, b"the packet");
    assert!(bed.engine.is_empty());
    // Once it is, it works.
    bed.world.refuse = None;
    bed.ping(A, 1);
    assert_eq!(bed.world.sent.len(), 1);
}

#[test]
fn traceroute_by_echo() {
    let mut bed = Bed::new();
    bed.ping(A, 1);
    bed.send(&Request {
        hop_limit: 3,
        ..request("198.51.100.2", 1)
    });
    assert_eq!(
        bed.world.sent[1],
        (9000, "198.51.100.2".parse().unwrap(), Some(3), true)
    );
    let record = Record {
        origin: Origin::Icmp,
        errno: libc::EHOSTUNREACH,
        message_type: 11,
        code: 0,
        info: 0,
        offender: Some("203.0.113.1".parse().unwrap()),
        destination: None,
        len: 0,
    };
    // As the host sent it: identifier 9000, checksum to match.
    let mut message = vec![8, 0, 0, 0, 0x23, 0x28, 0, 1, 0xab];
    let sum = checksum::sum(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let sock = bed
        .world
        .socks
        .values_mut()
        .find(|s| s.ident == 9000)
        .unwrap();
    sock.errors.push_back((record, message));
    bed.run();
    let (from, kind, quote) = &bed.world.reports[0];
    assert_eq!(
        (from.to_string(), kind.message_type),
        ("203.0.113.1".into(), 11)
    );
    let (ip, inner) = ipv4::Repr::parse(quote).unwrap();
    assert_eq!(
        (ip.src.to_string(), ip.dst.to_string(), ip.protocol),
        (GUEST.into(), "198.51.100.2".into(), 1)
    );
    assert_eq!(
        (&inner[..2], &inner[4..]),
        (&[8, 0][..], &[0, 1, 0, 1, 0xab][..])
    );
    assert!(checksum::verify(inner, checksum::Sum::ZERO));
}

#[test]
fn errors_of_sending() {
    let mut bed = Bed::new();
    bed.ping(A, 1);
    // Pending from before: the request goes all the same.
    bed.world.faults.push_back(Fault::Errno(libc::EHOSTUNREACH));
    bed.ping(A, 1);
    assert_eq!((bed.world.sent.len(), bed.world.drops.len()), (2, 0));
    // Its own.
    bed.world
        .faults
        .extend([Fault::Errno(libc::EHOSTUNREACH); 2]);
    bed.ping(A, 1);
    assert_eq!(
        bed.world.reports[0].1,
        Kind {
            message_type: 3,
            code: 1,
            info: 0
        }
    );
    bed.world.faults.push_back(Fault::WouldBlock);
    bed.ping(A, 1);
    assert_eq!(bed.world.drops, [Drop::SocketError, Drop::QueueFull]);
    // Too big: a probe is refused; what is larger than ordinary networks take is fragmented.
    bed.world.faults.push_back(Fault::TooBig);
    let local = Record {
        origin: Origin::Local,
        errno: libc::EMSGSIZE,
        message_type: 0,
        code: 0,
        info: 1400,
        offender: None,
        destination: None,
        len: 0,
    };
    bed.world
        .socks
        .get_mut(&1)
        .unwrap()
        .errors
        .push_back((local, vec![]));
    bed.send(&Request {
        message: &[8; 1450],
        ..request(A, 1)
    });
    assert_eq!(bed.world.reports[1].1, Kind::too_big(false, 1400));
    assert_eq!(bed.world.sent.len(), 2);
    bed.world.faults.push_back(Fault::TooBig);
    bed.send(&Request {
        message: &[8; 8000],
        ..request(A, 1)
    });
    assert_eq!(
        (
            bed.world.sent.len(),
            bed.world.sent[2].3,
            bed.world.reports.len()
        ),
        (3, false, 2)
    );
    assert!(bed.world.socks[&1].dont_fragment);
}

#[test]
fn groups_are_answered_by_stations() {
    let mut bed = Bed::new();
    bed.ping("192.0.2.255", 1);
    assert!(bed.world.socks[&1].groups);
    bed.world
        .socks
        .get_mut(&1)
        .unwrap()
        .rx
        .push_back("192.0.2.77".parse().unwrap());
    bed.run();
    assert_eq!(bed.world.got[0].0.to_string(), "192.0.2.77");
    // An IPv6 packet from a mapped address looks like this.
    bed.send(&Request {
        src: "2001:db8::10".parse().unwrap(),
        ..request("ff02::1", 2)
    });
    let other = bed.world.socks.values_mut().last().unwrap();
    other.rx.push_back("192.0.2.77".parse().unwrap());
    bed.run();
    assert_eq!(bed.world.got.len(), 1);
    // Nothing is reported about groups.
    bed.world
        .faults
        .extend([Fault::Errno(libc::ENETUNREACH); 2]);
    bed.ping("192.0.2.255", 1);
    assert!(bed.world.reports.is_empty());
}
