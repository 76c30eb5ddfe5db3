//! The engine against a network in memory.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::time::Duration;

use super::fake::{World, ep};
use super::io::{Datagram, Fault, Readiness, Received};
use super::{Engine, Limits, Timeouts};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::Config;
use crate::flow::id::FlowId;
use crate::flow::translate::tests::config;
use crate::icmp::report::Kind;
use crate::stats::Drop;
use crate::sys::errqueue::{Origin, Record};
use crate::wire::{ipv4, ipv6, udp};

const GUEST: &str = "192.0.2.10:4000";
const GUEST6: &str = "[2001:db8::10]:4000";
const A: &str = "198.51.100.1:9";
const B: &str = "198.51.100.2:9";
const ERROR: Readiness = Readiness {
    readable: false,
    error: true,
};

fn at(ms: u64) -> Instant {
    Instant(1_000_000 + ms * 1000)
}

pub(super) fn datagram<'a>(src: &str, dst: &str, payload: &'a [u8]) -> Datagram<'a> {
    Datagram {
        src: ep(src),
        dst: ep(dst),
        payload,
        hop_limit: 64,
        tos: 0,
        dont_fragment: true,
        gso_size: None,
        l3: b"the packet",
    }
}

pub(super) struct Bed {
    pub engine: Engine<super::fake::Handle>,
    pub world: World,
    pub now: Instant,
}

impl Bed {
    pub fn with(cfg: Config, limits: Limits) -> Self {
        Self {
            engine: Engine::new(cfg, limits, Timeouts::default(), [7; 16]),
            world: World::default(),
            now: at(0),
        }
    }

    pub fn new() -> Self {
        Self::with(
            config(),
            Limits {
                flows: 64,
                sockets: 64,
            },
        )
    }

    pub fn send(&mut self, batch: &[Datagram<'_>]) {
        self.engine.from_guest(&mut self.world, self.now, batch);
        self.engine.state.check();
    }

    pub fn one(&mut self, src: &str, dst: &str, payload: &[u8]) {
        self.send(&[datagram(src, dst, payload)]);
    }

    /// Serve what is ready until nothing is.
    pub fn run(&mut self) {
        for _ in 0..100 {
            let ready = self.world.ready();
            if ready.is_empty() {
                return;
            }
            for (id, what) in ready {
                self.engine.on_socket(&mut self.world, self.now, id, what);
                self.engine.state.check();
            }
        }
        panic!("never gets quiet");
    }

    pub fn wait(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        while self.engine.next_deadline().is_some_and(|at| at <= self.now) {
            self.engine.on_timer(&mut self.world, self.now);
        }
        self.engine.state.check();
    }

    fn payloads(&self) -> Vec<&[u8]> {
        self.world.sent.iter().map(|s| &s.payload[..]).collect()
    }
}

#[test]
fn equal_datagrams_leave_at_once_and_in_order() {
    let mut bed = Bed::new();
    let data: Vec<Vec<u8>> = (0..41_u8)
        .map(|i| vec![i; if i == 40 { 10 } else { 1400 }])
        .collect();
    let batch: Vec<_> = data.iter().map(|d| datagram(GUEST, A, d)).collect();
    bed.send(&batch);
    assert_eq!(bed.world.calls, 1);
    assert_eq!(
        bed.payloads(),
        data.iter().map(|d| &d[..]).collect::<Vec<_>>()
    );
    let sock = bed.world.only();
    assert_eq!(
        (sock.port, sock.connected, sock.dont_fragment),
        (4000, Some(ep(A)), Some(true))
    );
    assert!(bed.world.drops.is_empty() && bed.world.reports.is_empty());
}

#[test]
fn interleaved_flows_are_sorted() {
    let mut bed = Bed::new();
    let data: Vec<Vec<u8>> = (0..64_u8).map(|i| vec![i; 100]).collect();
    let guests = ["192.0.2.10:1", "192.0.2.10:2", "192.0.2.10:3"];
    let batch: Vec<_> = data
        .iter()
        .enumerate()
        .map(|(i, d)| datagram(guests[i % 3], A, d))
        .collect();
    bed.send(&batch);
    assert_eq!(bed.world.calls, 3);
    for port in [1, 2, 3] {
        let of: Vec<_> = bed
            .world
            .sent
            .iter()
            .filter(|s| s.port == port)
            .map(|s| s.payload[0])
            .collect();
        assert!(of.len() >= 21 && of.is_sorted());
    }
}

#[test]
fn odd_sizes_empty_datagrams_and_large_batches() {
    let mut bed = Bed::new();
    let sizes = [5, 0, 0, 7, 7, 3, 3, 9, 1, 0, 2, 4];
    let data: Vec<Vec<u8>> = sizes.iter().map(|n| vec![*n; usize::from(*n)]).collect();
    let batch: Vec<_> = data.iter().map(|d| datagram(GUEST, A, d)).collect();
    bed.send(&batch);
    assert_eq!(
        bed.payloads(),
        data.iter().map(|d| &d[..]).collect::<Vec<_>>()
    );

    let mut bed = Bed::new();
    let big = vec![1; 1472];
    bed.send(&vec![datagram(GUEST, A, &big); 200]);
    assert_eq!(bed.world.sent.len(), 200);
    // 44 of these fit in a send.
    assert!(bed.world.calls <= 8, "{}", bed.world.calls);
}

#[test]
fn super_frames_of_the_guest_are_cut_where_it_says() {
    let mut bed = Bed::new();
    let data: Vec<u8> = (0..10_001_u16).map(|i| i.to_be_bytes()[1]).collect();
    let frame = Datagram {
        gso_size: Some(1000),
        ..datagram(GUEST, A, &data)
    };
    bed.send(&[frame]);
    assert_eq!(bed.payloads(), data.chunks(1000).collect::<Vec<_>>());
    assert_eq!(bed.world.calls, 1);
    // More segments than one send takes, and a size of nothing.
    let mut bed = Bed::new();
    bed.send(&[Datagram {
        gso_size: Some(100),
        ..datagram(GUEST, A, &data)
    }]);
    assert_eq!(bed.payloads(), data.chunks(100).collect::<Vec<_>>());
    bed.send(&[Datagram {
        gso_size: Some(0),
        ..datagram(GUEST, A, b"x")
    }]);
    assert_eq!(bed.payloads().last(), Some(&&b"x"[..]));
}

#[test]
fn header_fields_are_copied() {
    let mut bed = Bed::new();
    let plain = datagram(GUEST, A, b"abc");
    bed.send(&[
        plain,
        Datagram {
            hop_limit: 1,
            ..plain
        },
        Datagram {
            hop_limit: 2,
            ..plain
        },
        Datagram { tos: 0xb8, ..plain },
        Datagram {
            dont_fragment: false,
            ..plain
        },
        plain,
    ]);
    let fields: Vec<_> = bed
        .world
        .sent
        .iter()
        .map(|s| (s.hop_limit, s.tos, s.dont_fragment))
        .collect();
    let want = [
        (None, 0, true),
        (Some(1), 0, true),
        (Some(2), 0, true),
        (None, 0xb8, true),
        (None, 0, false),
        (None, 0, true),
    ];
    assert_eq!(fields, want);
}

#[test]
fn a_second_peer_shares_the_socket_and_the_port() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    assert_eq!(bed.world.only().connected, Some(ep(A)));
    bed.one(GUEST, B, b"2");
    assert_eq!(bed.world.only().connected, None);
    bed.one(GUEST, A, b"3");
    let to: Vec<_> = bed.world.sent.iter().map(|s| (s.port, s.to)).collect();
    assert_eq!(to, [(4000, ep(A)), (4000, ep(B)), (4000, ep(A))]);
    // Answers of both arrive, those of strangers do not.
    assert!(bed.world.arrive(4000, ep(B), b"from B"));
    assert!(bed.world.arrive(4000, ep("198.51.100.3:9"), b"stranger"));
    assert!(bed.world.arrive(4000, ep("198.51.100.1:10"), b"wrong port"));
    assert!(bed.world.arrive(4000, ep(A), b"from A"));
    bed.run();
    let got: Vec<_> = bed
        .world
        .got
        .iter()
        .map(|g| (g.src, g.dst, &g.payload[..]))
        .collect();
    assert_eq!(
        got,
        [
            (ep(B), ep(GUEST), &b"from B"[..]),
            (ep(A), ep(GUEST), b"from A")
        ]
    );
    assert_eq!(bed.world.drops, [Drop::NoFlow, Drop::NoFlow]);
}

#[test]
fn what_came_in_before_the_connection_is_not_let_through() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    let stranger = Received {
        from: ep(B),
        len: 3,
        segment: 3,
        ..Received::EMPTY
    };
    bed.world.only().rx.push_back((stranger, b"old".to_vec()));
    bed.run();
    assert_eq!(
        (bed.world.got.len(), &bed.world.drops[..]),
        (0, &[Drop::NoFlow][..])
    );
}

#[test]
fn a_taken_port_gives_another_one_for_all_peers() {
    let mut bed = Bed::new();
    bed.world.taken.push(4000);
    bed.one(GUEST, A, b"1");
    bed.one(GUEST, B, b"2");
    let ports: Vec<_> = bed.world.sent.iter().map(|s| s.port).collect();
    assert_eq!((ports[0], bed.world.socks.len()), (ports[1], 1));
    assert_ne!(ports[0], 4000);
    assert!(bed.world.arrive(ports[0], ep(A), b"x"));
    bed.run();
    assert_eq!(
        (bed.world.got[0].src, bed.world.got[0].dst),
        (ep(A), ep(GUEST))
    );
}

#[test]
fn answers_come_from_where_the_guest_sent_to() {
    let mut cfg = config();
    cfg.v4.as_mut().unwrap().dns_host = Some("127.0.0.1".parse().unwrap());
    let mut bed = Bed::with(
        cfg,
        Limits {
            flows: 64,
            sockets: 64,
        },
    );
    // Two names for one resolver: the answers must not be mixed up.
    bed.one(GUEST, "169.254.1.1:53", b"query 1");
    bed.one(GUEST, "192.0.2.1:53", b"query 2");
    bed.one(GUEST, "169.254.1.2:7", b"shared address");
    assert_eq!(bed.world.socks.len(), 2);
    let mut ports = Vec::new();
    for sent in bed.world.sent.clone() {
        let mut answer = b"answer to ".to_vec();
        answer.extend(&sent.payload);
        assert!(bed.world.arrive(sent.port, sent.to, &answer));
        ports.push((sent.port == 4000, sent.to));
    }
    let resolver = ep("127.0.0.1:53");
    assert_eq!(
        ports,
        [
            (true, resolver),
            (false, resolver),
            (true, ep("192.0.2.10:7"))
        ]
    );
    bed.run();
    for got in &bed.world.got {
        let want = match &got.payload[10..] {
            b"query 1" => ep("169.254.1.1:53"),
            b"query 2" => ep("192.0.2.1:53"),
            _ => ep("169.254.1.2:7"),
        };
        assert_eq!((got.src, got.dst), (want, ep(GUEST)));
    }
    assert_eq!(bed.world.got.len(), 3);
}

#[test]
fn bound_differently_means_another_socket() {
    let mut cfg = config();
    let v4 = cfg.v4.as_mut().unwrap();
    v4.outbound = Some("203.0.113.5".parse().unwrap());
    v4.outbound_if = Some("eth1".into());
    let mut bed = Bed::with(
        cfg,
        Limits {
            flows: 64,
            sockets: 64,
        },
    );
    bed.one(GUEST, A, b"1");
    bed.one(GUEST, "192.0.2.1:80", b"2");
    bed.one(GUEST, B, b"3");
    assert_eq!(bed.world.socks.len(), 2);
    let outside = bed.world.by_port(4000);
    assert_eq!(outside.source, Some("203.0.113.5".parse().unwrap()));
    assert_eq!(outside.device.as_deref(), Some("eth1"));
    let inside = bed.world.socks.values().find(|s| s.port != 4000).unwrap();
    assert_eq!((inside.source, inside.device.as_deref()), (None, None));
}

#[test]
fn groups_are_answered_by_anybody_but_themselves() {
    for (guest, group, station) in [
        (GUEST, "239.255.255.250:1900", "198.51.100.77:1900"),
        (GUEST, "255.255.255.255:67", "198.51.100.77:67"),
        (GUEST, "192.0.2.255:67", "192.0.2.77:67"),
        (GUEST6, "[ff02::fb]:5353", "[fe80::7]:5353"),
    ] {
        let mut bed = Bed::new();
        bed.send(&[Datagram {
            hop_limit: 1,
            ..datagram(guest, group, b"who?")
        }]);
        let sock = bed.world.only();
        assert!(sock.groups && sock.connected.is_none());
        assert_eq!(bed.world.sent[0].hop_limit, Some(1));
        bed.world.arrive(4000, ep(station), b"me");
        let echo = Received {
            from: ep(station),
            len: 4,
            segment: 4,
            group: true,
            ..Received::EMPTY
        };
        bed.world.arrive_as(4000, echo, b"who?");
        // An IPv6 packet from a mapped address looks like this.
        let odd = if guest == GUEST6 { A } else { "[fe80::7]:9" };
        bed.world.arrive(4000, ep(odd), b"odd");
        bed.run();
        let got: Vec<_> = bed
            .world
            .got
            .iter()
            .map(|g| (g.src, g.dst, &g.payload[..]))
            .collect();
        assert_eq!(got, [(ep(station), ep(guest), &b"me"[..])]);
        // The same port then talks to that station alone, too.
        bed.one(guest, station, b"hello");
        assert_eq!((bed.world.socks.len(), bed.world.sent[1].port), (1, 4000));
        // After the query has expired strangers are not let in any more.
        bed.wait(31_000);
        assert!(bed.world.socks.is_empty());
    }
}

#[test]
fn a_broadcast_address_found_out_late() {
    let mut bed = Bed::new();
    bed.world.unreachable = Some((ep("198.51.100.255:9"), libc::EACCES));
    bed.one(GUEST, "198.51.100.255:9", b"x");
    assert!(bed.world.only().groups);
    // The kernel still refuses, for its own reasons: nobody is told, as it may be a group.
    assert_eq!((bed.world.drops.len(), bed.world.reports.len()), (1, 0));
}

fn record(origin: Origin, message_type: u8, code: u8, info: u32) -> Record {
    Record {
        origin,
        errno: libc::EHOSTUNREACH,
        message_type,
        code,
        info,
        offender: None,
        destination: None,
        len: 0,
    }
}

#[test]
fn router_errors_reach_the_guest_in_its_own_words() {
    let mut bed = Bed::new();
    bed.one(GUEST, "192.0.2.1:9", b"hello");
    let router = "198.51.100.254".parse().unwrap();
    let time_exceeded = Record {
        offender: Some(router),
        ..record(Origin::Icmp, 11, 0, 0)
    };
    let refused = Record {
        offender: Some("127.0.0.1".parse().unwrap()),
        ..record(Origin::Icmp, 3, 3, 0)
    };
    bed.world
        .only()
        .errors
        .push_back((time_exceeded, b"hello".to_vec()));
    bed.world.only().errors.push_back((refused, vec![9; 4000]));
    bed.world.only().pending = Some(libc::EHOSTUNREACH);
    bed.run();
    let [first, second] = &bed.world.reports[..] else {
        panic!("{:?}", bed.world.reports)
    };
    assert_eq!((first.from, first.to), (router, ep(GUEST).ip));
    assert_eq!(
        first.kind,
        Kind {
            message_type: 11,
            code: 0,
            info: 0
        }
    );
    let (ip, rest) = ipv4::Repr::parse(&first.quote).unwrap();
    let (header, payload) = udp::Repr::parse(rest).unwrap();
    assert_eq!(
        (ip.src.to_string(), ip.dst.to_string(), ip.protocol),
        ("192.0.2.10".into(), "192.0.2.1".into(), 17)
    );
    assert_eq!(
        (header.src_port, header.dst_port, payload),
        (4000, 9, &b"hello"[..])
    );
    // The destination has the name the guest uses, not 127.0.0.1; quotes have a limit.
    assert_eq!(
        (second.from.to_string(), second.quote.len()),
        ("192.0.2.1".into(), 548)
    );
}

#[test]
fn router_errors_on_shared_sockets_find_their_flow() {
    let mut bed = Bed::new();
    bed.one(GUEST6, "[2001:db8:5::1]:9", b"1");
    bed.one(GUEST6, "[2001:db8:5::2]:9", b"2");
    let too_big = Record {
        destination: Some("[2001:db8:5::2]:9".parse().unwrap()),
        offender: Some("2001:db8:9::1".parse().unwrap()),
        ..record(Origin::Icmpv6, 2, 0, 1400)
    };
    let unknown = Record {
        destination: Some("[2001:db8:5::3]:9".parse().unwrap()),
        ..too_big
    };
    bed.world.only().errors.push_back((too_big, vec![1; 2000]));
    bed.world.only().errors.push_back((unknown, vec![]));
    bed.run();
    let [report] = &bed.world.reports[..] else {
        panic!("{:?}", bed.world.reports)
    };
    assert_eq!(report.kind, Kind::too_big(true, 1400));
    assert_eq!(
        (report.from.to_string(), report.quote.len()),
        ("2001:db8:9::1".into(), 1232)
    );
    let (ip, rest) = ipv6::Repr::parse(&report.quote).unwrap();
    assert_eq!(
        (ip.src, ip.dst),
        (
            "2001:db8::10".parse().unwrap(),
            "2001:db8:5::2".parse().unwrap()
        )
    );
    assert_eq!(udp::Repr::parse(rest).unwrap().0.dst_port, 9);
}

#[test]
fn an_error_without_an_entry_is_cleared() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    bed.world.only().pending = Some(libc::ENETDOWN);
    bed.engine
        .on_socket(&mut bed.world, bed.now, FlowId(0), ERROR);
    assert_eq!((bed.world.cleared, bed.world.only().pending), (1, None));
    // For a socket that has gone: nothing happens.
    bed.engine
        .on_socket(&mut bed.world, bed.now, FlowId(5), ERROR);
}

#[test]
fn a_pending_error_costs_no_datagram() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    let refused = Record {
        offender: Some(ep(A).ip),
        ..record(Origin::Icmp, 3, 3, 0)
    };
    for batch in 1..=3 {
        bed.world.only().errors.push_back((refused, b"1".to_vec()));
        bed.world.only().pending = Some(libc::ECONNREFUSED);
        bed.send(&vec![datagram(GUEST, A, b"2"); batch]);
        assert_eq!(bed.world.reports.len(), batch);
    }
    assert_eq!(
        (bed.world.sent.len(), bed.world.drops.len()),
        (1 + 1 + 2 + 3, 0)
    );
}

#[test]
fn unreachable_destinations_are_reported_and_leave_nothing_behind() {
    for (errno, code) in [(libc::ENETUNREACH, 0), (libc::EHOSTUNREACH, 1)] {
        let mut bed = Bed::new();
        bed.world.unreachable = Some((ep(A), errno));
        bed.one(GUEST, A, b"1");
        assert_eq!(bed.engine.len(), (0, 0));
        assert!(bed.world.socks.is_empty());
        assert_eq!(
            bed.world.reports[0].kind,
            Kind {
                message_type: 3,
                code,
                info: 0
            }
        );
        assert_eq!(
            (
                bed.world.reports[0].from.to_string(),
                &bed.world.reports[0].quote[..]
            ),
            ("192.0.2.1".into(), &b"the packet"[..])
        );
        // While sending: the flow stays, each datagram is reported, others pass.
        bed.one(GUEST, B, b"2");
        bed.one(GUEST, "198.51.100.3:9", b"3");
        bed.send(&[
            datagram(GUEST, A, b"4"),
            datagram(GUEST, B, b"5"),
            datagram(GUEST, A, b"6"),
        ]);
        assert_eq!(bed.payloads(), [b"2", b"3", b"5"]);
        assert_eq!(bed.world.reports.len(), 3);
    }
}

#[test]
fn path_mtu_discovery_from_inside() {
    let mut bed = Bed::new();
    bed.world.mtu = 1400;
    let probe = vec![0; 1450];
    bed.one(GUEST, A, &probe);
    assert_eq!(bed.world.reports[0].kind, Kind::too_big(false, 1400));
    assert_eq!((bed.world.sent.len(), bed.world.drops.len()), (0, 1));
    // The guest fragments: the path may, too.
    bed.send(&[Datagram {
        dont_fragment: false,
        ..datagram(GUEST, A, &probe)
    }]);
    assert_eq!((bed.world.sent.len(), bed.world.reports.len()), (1, 1));
    // On a shared socket the kernel's own entry has the figure.
    bed.one(GUEST, B, b"x");
    let local = Record {
        errno: libc::EMSGSIZE,
        ..record(Origin::Local, 0, 0, 1333)
    };
    bed.world.only().errors.push_back((local, vec![]));
    bed.one(GUEST, B, &probe);
    assert_eq!(bed.world.reports[1].kind, Kind::too_big(false, 1333));
    bed.one(GUEST, B, &probe);
    assert_eq!(bed.world.reports[2].kind, Kind::too_big(false, 68));
}

#[test]
fn large_datagrams_of_the_careless_are_fragmented() {
    let mut bed = Bed::new();
    let large = vec![1; 8192];
    bed.send(&vec![datagram(GUEST, A, &large); 3]);
    bed.send(&vec![datagram(GUEST, A, &large); 3]);
    assert_eq!(
        (
            bed.world.reports.len(),
            bed.world.sent.len(),
            bed.world.drops.len()
        ),
        (0, 6, 0)
    );
    assert!(bed.world.sent.iter().all(|s| !s.dont_fragment));
    // The second batch knew from the start.
    assert_eq!(bed.world.sent[3].call, bed.world.sent[5].call);
    // Identifications wrap around.
    let l3 = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64];
    let forbidden = Datagram {
        l3: &l3,
        ..datagram(GUEST, A, &large)
    };
    bed.send(&[forbidden]);
    assert_eq!((bed.world.reports.len(), bed.world.sent.len()), (0, 7));
    // What could be a probe is still refused, and so is what says from the start that it must not be fragmented.
    bed.world.mtu = 1400;
    bed.one(GUEST, A, &large[..1450]);
    bed.send(&[Datagram {
        hop_limit: 1,
        ..datagram(GUEST, A, &large)
    }]);
    bed.send(&[Datagram {
        src: ep("192.0.2.10:4001"),
        ..forbidden
    }]);
    assert_eq!(
        (
            bed.world.reports.len(),
            bed.world.sent.len(),
            bed.world.drops.len()
        ),
        (3, 7, 3)
    );
    assert_eq!(bed.world.reports[1].kind, Kind::too_big(false, 1400));
    // Where the path takes it, nothing of this happens, and it is worth segmenting.
    let mut bed = Bed::new();
    bed.world.mtu = 65_535;
    bed.send(&vec![datagram(GUEST, A, &large); 7]);
    assert_eq!(
        (
            bed.world.calls,
            bed.world.sent.len(),
            bed.world.reports.len()
        ),
        (1, 7, 0)
    );
}

#[test]
fn segmentation_that_does_not_work_is_not_tried_again() {
    let mut bed = Bed::new();
    bed.world.gso = false;
    bed.send(&[datagram(GUEST, A, b"1"), datagram(GUEST, A, b"2")]);
    bed.send(&[datagram(GUEST, A, b"3"), datagram(GUEST, A, b"4")]);
    assert_eq!(bed.payloads(), [b"1", b"2", b"3", b"4"]);
    // Each datagram counts as a call in the fake; one of them was the vain attempt.
    assert_eq!(bed.world.calls, 5);

    let mut bed = Bed::new();
    let large = vec![1; 2000];
    let unfragmented = |payload| Datagram {
        dont_fragment: false,
        ..datagram(GUEST, A, payload)
    };
    bed.send(&[unfragmented(&large), unfragmented(&large)]);
    bed.send(&[unfragmented(&large), unfragmented(&large)]);
    assert_eq!((bed.world.sent.len(), bed.world.calls), (4, 5));
    // Smaller ones still are.
    bed.send(&[unfragmented(&large[..1400]), unfragmented(&large[..1400])]);
    assert_eq!((bed.world.sent.len(), bed.world.calls), (6, 6));
}

#[test]
fn a_full_queue_drops_and_says_so() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    bed.world.faults.push_back(Fault::WouldBlock);
    bed.send(&vec![datagram(GUEST, A, b"2"); 5]);
    bed.world.faults.push_back(Fault::WouldBlock);
    bed.one(GUEST, A, b"3");
    assert_eq!(bed.world.drops, [Drop::QueueFull; 6]);
    bed.one(GUEST, A, b"4");
    assert_eq!(bed.payloads(), [b"1", b"4"]);
}

#[test]
fn bursts_for_the_guest_are_kept_together() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    let sizes: [(usize, usize); 9] = [
        (1200, 1200),
        (2400, 1200),
        (100, 100),
        (50, 50),
        (0, 0),
        (7, 7),
        (7, 7),
        (30, 10),
        (3, 3),
    ];
    let mut number = 0;
    for (len, segment) in sizes {
        number += 1;
        let message = Received {
            from: ep(A),
            len,
            segment,
            tos: 2,
            ..Received::EMPTY
        };
        assert!(bed.world.arrive_as(4000, message, &vec![number; len]));
    }
    // The first receive asks for few, then for many.
    bed.run();
    let got: Vec<_> = bed
        .world
        .got
        .iter()
        .map(|g| (g.payload.len(), g.frame))
        .collect();
    let want = [
        (1200, 1),
        (1200, 1),
        (1200, 1),
        (100, 1), // a short one ends a burst
        (50, 2),  // the end of the first receive
        (0, 3),
        (7, 4),
        (7, 4),
        (10, 5),
        (10, 5),
        (10, 5),
        (3, 5),
    ];
    assert_eq!(got, want);
    assert!(bed.world.got.iter().all(|g| g.tos == 2 && g.src == ep(A)));

    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    for _ in 0..200 {
        assert!(bed.world.arrive(4000, ep(A), &[5; 1400]));
    }
    bed.run();
    assert_eq!(bed.world.got.len(), 200);
    assert!(bed.world.frames < 12, "{}", bed.world.frames);
}

#[test]
fn truncated_messages_are_counted_not_forwarded() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    let message = Received {
        from: ep(A),
        len: 3,
        segment: 3,
        truncated: true,
        ..Received::EMPTY
    };
    bed.world.arrive_as(4000, message, b"cut");
    bed.world.arrive(4000, ep(A), b"whole");
    bed.run();
    assert_eq!(
        (bed.world.got.len(), &bed.world.drops[..]),
        (1, &[Drop::Truncated][..])
    );
}

#[test]
fn flows_end_after_silence_and_not_before() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    bed.wait(29_900);
    assert_eq!(bed.engine.len(), (1, 1));
    bed.wait(200);
    assert_eq!(bed.engine.len(), (0, 0));
    assert!(bed.world.socks.is_empty() && bed.engine.next_deadline().is_none());

    bed.one(GUEST, A, b"1");
    bed.world.arrive(4000, ep(A), b"2");
    bed.run();
    bed.wait(119_000);
    assert_eq!(bed.engine.len(), (1, 1));
    bed.wait(1_100);
    assert_eq!(bed.engine.len(), (0, 0));

    // A stub resolver that asks from one port for a day.
    bed.one(GUEST, "169.254.1.1:53", b"query");
    let first = *bed.world.socks.keys().next().unwrap();
    for _ in 0..3000 {
        bed.wait(28_800);
        bed.one(GUEST, "169.254.1.1:53", b"query");
        bed.world.arrive(4000, ep("127.0.0.53:53"), b"answer");
        bed.run();
    }
    assert_eq!(
        (bed.world.socks.len(), bed.world.socks.keys().next()),
        (1, Some(&first))
    );
    assert_eq!((bed.world.got.len(), bed.world.drops.len()), (3001, 0));
}

#[test]
fn idle_timers_do_not_busy_the_loop() {
    let mut bed = Bed::new();
    bed.one(GUEST, A, b"1");
    let mut wakes = 0;
    while let Some(next) = bed.engine.next_deadline() {
        bed.now = Instant(next.0.max(bed.now.0 + 1));
        bed.engine.on_timer(&mut bed.world, bed.now);
        wakes += 1;
    }
    assert!(wakes < 10, "{wakes}");
}

#[test]
fn limits_refuse_the_new_and_spare_the_busy() {
    for (limits, limit, why) in [
        (
            Limits {
                flows: 4,
                sockets: 4,
            },
            1000,
            Drop::TableFull,
        ),
        (
            Limits {
                flows: 64,
                sockets: 4,
            },
            1000,
            Drop::NoDescriptor,
        ),
        (
            Limits {
                flows: 64,
                sockets: 64,
            },
            4,
            Drop::NoDescriptor,
        ),
    ] {
        let mut bed = Bed::with(config(), limits);
        bed.world.limit = limit;
        let guest = |n: u16| format!("192.0.2.10:{n}");
        for n in 1..=4 {
            bed.one(&guest(n), A, b"x");
            bed.wait(10);
        }
        bed.one(&guest(5), A, b"x");
        assert_eq!(
            (&bed.world.drops[..], bed.world.socks.len()),
            (&[why][..], 4)
        );
        // All but the second are used again: that is the one to go, once it has been idle for long.
        bed.wait(9_000);
        for n in [1, 3, 4] {
            bed.one(&guest(n), A, b"x");
        }
        bed.wait(2_000);
        bed.one(&guest(5), A, b"x");
        assert_eq!(bed.world.drops.len(), 1);
        let ports: Vec<_> = bed.world.socks.values().map(|s| s.port).collect();
        assert_eq!(ports, [1, 3, 4, 5]);
    }
}

#[test]
fn refused_addresses() {
    let mut bed = Bed::new();
    for (src, dst, why) in [
        (GUEST, "127.0.0.1:9", Drop::BadDestination),
        (GUEST, "198.51.100.1:0", Drop::BadDestination),
        ("192.0.2.10:0", A, Drop::BadSource),
        ("0.0.0.0:68", "255.255.255.255:67", Drop::BadSource),
    ] {
        bed.one(src, dst, b"x");
        assert_eq!(bed.world.drops.pop(), Some(why));
    }
    assert_eq!(
        (bed.engine.len(), bed.world.reports.len(), bed.world.next),
        ((0, 0), 0, 0)
    );
}

/// A thousand peers, as peer-to-peer programs have them, cost one descriptor.
#[test]
fn many_peers_one_socket() {
    let mut bed = Bed::with(
        config(),
        Limits {
            flows: 1000,
            sockets: 1000,
        },
    );
    let peer = |n: u16| {
        Endpoint::new(
            std::net::Ipv4Addr::from(0xcb00_7100 + u32::from(n)).into(),
            6881,
        )
    };
    for n in 0..900 {
        let d = Datagram {
            dst: peer(n),
            ..datagram(GUEST, A, b"x")
        };
        bed.engine.from_guest(&mut bed.world, bed.now, &[d]);
    }
    assert_eq!(bed.engine.len(), (900, 1));
    for n in 0..900 {
        assert!(bed.world.arrive(4000, peer(n), b"y"));
    }
    bed.run();
    assert_eq!(bed.world.got.len(), 900);
    bed.engine.state.check();
    bed.wait(121_000);
    assert_eq!(bed.engine.len(), (0, 0));
}
