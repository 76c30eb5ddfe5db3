//! Flows that begin outside, against a network in memory: over the tap and round it.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::fake::{Handle, ep};
use super::io::{Readiness, Received};
use super::tests::{Bed, datagram};
use super::{Limits, Listener};
use crate::config::rules::{RuleId, Table};
use crate::flow::id::FlowId;
use crate::flow::translate::Forward;
use crate::flow::translate::tests::config;
use crate::stats::Drop;
use crate::sys::errqueue::{Origin, Record};

/// The guest of the test configuration, and somebody outside.
const GUEST: &str = "192.0.2.10";
const PEER: &str = "198.51.100.7:3333";
/// An address of the host.
const HOST: &str = "203.0.113.5";

const READABLE: Readiness = Readiness {
    readable: true,
    error: false,
};
const ERROR: Readiness = Readiness {
    readable: false,
    error: true,
};

fn rule(n: u16) -> RuleId {
    RuleId(NonZeroU16::new(n).unwrap())
}

fn forward(target: Option<&str>, port: u16) -> Forward {
    Forward {
        target: target.map(|t| t.parse().unwrap()),
        port,
    }
}

impl Bed {
    fn listen(&mut self, port: u16, table: Table, to: Forward) -> (FlowId, Handle) {
        let socket = self.world.listener(port);
        let listener = Listener {
            socket,
            rule: rule(port),
            table,
            forward: to,
        };
        (self.engine.listen(listener).unwrap(), socket)
    }

    /// A datagram arrives at a listener and is handled.
    fn knock(&mut self, (id, socket): (FlowId, Handle), from: &str, to: &str, payload: &[u8]) {
        self.world.knock(socket, from, to, payload);
        self.serve(id);
    }

    fn serve(&mut self, id: FlowId) {
        self.engine
            .on_listener(&mut self.world, self.now, id, READABLE);
        self.engine.state.check();
    }

    fn got(&self) -> Vec<(String, String, &[u8])> {
        let text = |e: crate::addr::Endpoint| std::net::SocketAddr::from(e).to_string();
        let got = self.world.got.iter();
        got.map(|g| (text(g.src), text(g.dst), &g.payload[..]))
            .collect()
    }

    /// Sockets that are no listeners.
    fn sockets(&self) -> usize {
        self.world.socks.values().filter(|s| !s.listener).count()
    }
}

fn complaint(to: &str) -> Record {
    Record {
        origin: Origin::Icmp,
        errno: libc::ECONNREFUSED,
        message_type: 3,
        code: 3,
        info: 0,
        offender: Some(ep(to).ip),
        destination: Some(ep(to).into()),
        len: 0,
    }
}

/// Bug 99: on a host with several addresses an answer comes from the one that was asked.
#[test]
fn an_answer_leaves_by_the_listener_from_the_address_that_was_asked() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    for local in [HOST, "203.0.113.6"] {
        bed.knock(listener, PEER, local, b"question");
        assert_eq!(
            bed.got().last().unwrap(),
            &(PEER.into(), "192.0.2.10:7000".into(), &b"question"[..])
        );
        bed.one("192.0.2.10:7000", PEER, b"answer");
        let sent = bed.world.sent.last().unwrap();
        assert_eq!(
            (sent.port, sent.to, sent.source),
            (5000, ep(PEER), Some(local.parse().unwrap()))
        );
    }
    assert_eq!((bed.engine.len(), bed.sockets()), ((1, 0), 0));
    assert!(bed.world.drops.is_empty());
    bed.wait(121_000);
    assert_eq!(bed.engine.len(), (0, 0));
    let (id, traffic) = bed.world.finished[0];
    assert_eq!(id, Some(rule(5000)));
    assert_eq!((traffic.bytes_in, traffic.packets_in), (16, 2));
    assert_eq!((traffic.bytes_out, traffic.packets_out), (12, 2));
}

#[test]
fn many_peers_at_once_each_get_their_own_answer() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    let peer = |n: u16| format!("198.51.100.7:{}", 1000 + n);
    for n in 0..40 {
        bed.world
            .knock(listener.1, &peer(n), HOST, &n.to_be_bytes());
    }
    for _ in 0..4 {
        bed.serve(listener.0);
    }
    assert_eq!((bed.world.got.len(), bed.engine.len()), (40, (40, 0)));
    for n in (0..40).rev() {
        bed.one("192.0.2.10:5000", &peer(n), &n.to_be_bytes());
    }
    for (n, sent) in (0..40_u16).rev().zip(&bed.world.sent) {
        assert_eq!(
            (sent.to, &sent.payload[..]),
            (ep(&peer(n)), &n.to_be_bytes()[..])
        );
    }
}

#[test]
fn bursts_go_in_as_one_frame_and_out_in_one_call() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    bed.knock(listener, PEER, HOST, b"hello");
    let big = [7; 1400];
    for _ in 0..60 {
        bed.world.knock(listener.1, PEER, HOST, &big);
    }
    let before = bed.world.frames;
    for _ in 0..3 {
        bed.serve(listener.0);
    }
    assert_eq!(bed.world.got.len(), 61);
    assert!(bed.world.frames - before <= 6, "{}", bed.world.frames);
    bed.send(&vec![datagram("192.0.2.10:5000", PEER, &big); 40]);
    assert_eq!((bed.world.sent.len(), bed.world.calls), (40, 1));
}

#[test]
fn a_target_address_and_the_address_last_seen_are_used() {
    let mut bed = Bed::new();
    let fixed = bed.listen(5000, Table::Host, forward(Some("192.0.2.99"), 5001));
    let guest = bed.listen(6000, Table::Host, forward(None, 6000));
    bed.knock(fixed, PEER, HOST, b"a");
    bed.world.seen.learn("192.0.2.77".parse().unwrap());
    bed.knock(guest, PEER, HOST, b"b");
    let to: Vec<_> = bed.got().into_iter().map(|g| g.1).collect();
    assert_eq!(to, ["192.0.2.99:5001", "192.0.2.77:6000"]);
    // A target of the other family cannot be reached.
    let odd = bed.listen(7000, Table::Host, forward(Some("2001:db8::10"), 7000));
    bed.knock(odd, PEER, HOST, b"c");
    assert_eq!(bed.world.drops, [Drop::BadDestination]);
}

#[test]
fn link_local_peers_are_answered_on_their_interface() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    let message = Received {
        from: ep("[fe80::9]:33"),
        scope: 4,
        to: Some("fe80::8".parse().unwrap()),
        len: 1,
        segment: 1,
        ..Received::EMPTY
    };
    let sock = bed.world.socks.get_mut(&listener.1.0).unwrap();
    sock.rx.push_back((message, b"x".to_vec()));
    bed.serve(listener.0);
    let id = bed.engine.state.first_of(listener.0).unwrap();
    let flow = bed.engine.state.flows.get(id).unwrap();
    assert_eq!(flow.peer.scope, 4);
    assert_eq!(flow.local, Some("fe80::8".parse().unwrap()));
}

/// The guest talks to somebody from a port that is also forwarded: both ways work, and neither takes the other's.
#[test]
fn the_guests_own_conversations_go_their_own_way() {
    let mut bed = Bed::new();
    bed.world.taken.push(5000);
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    bed.one("192.0.2.10:5000", PEER, b"mine");
    let port = bed.world.sent[0].port;
    assert_ne!(port, 5000);
    assert!(bed.world.arrive(port, ep(PEER), b"answer"));
    bed.run();
    // An established conversation stays where it is; what comes to the listener is delivered.
    bed.knock(listener, PEER, HOST, b"again");
    bed.one("192.0.2.10:5000", PEER, b"mine");
    assert_eq!(bed.world.sent[1].port, port);
    assert_eq!(bed.world.got.len(), 2);
    // One that was never answered there goes on where the peer answers.
    let other = "198.51.100.8:9";
    bed.one("192.0.2.10:5000", other, b"anybody?");
    bed.knock(listener, other, HOST, b"here");
    bed.one("192.0.2.10:5000", other, b"ah");
    let sent = bed.world.sent.last().unwrap();
    assert_eq!(
        (sent.port, sent.source),
        (5000, Some(HOST.parse().unwrap()))
    );
}

/// Two peers the guest cannot tell apart: its answers must not go to the wrong one.
#[test]
fn a_second_peer_with_the_same_face_is_refused() {
    let mut cfg = config();
    cfg.splice.inbound = false;
    let limits = Limits {
        flows: 8,
        sockets: 8,
    };
    let mut bed = Bed::with(cfg, limits);
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    bed.knock(listener, "127.0.0.1:9", "127.0.0.1", b"1");
    bed.knock(listener, "127.0.0.2:9", "127.0.0.1", b"2");
    assert_eq!(bed.world.drops, [Drop::NoFlow]);
    assert_eq!(bed.got().len(), 1);
    assert_eq!(bed.got()[0].0, "192.0.2.1:9");
    bed.one("192.0.2.10:5000", "192.0.2.1:9", b"3");
    assert_eq!(bed.world.sent[0].to, ep("127.0.0.1:9"));
}

/// To answer there would reach the host's loopback or everybody, or the sender only looks like the host's loopback.
#[test]
fn forged_sources_are_refused() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    let host6 = "2001:db8:5::5";
    for (from, to) in [
        ("0.0.0.0:53", HOST),
        ("255.255.255.255:53", HOST),
        ("[::]:53", host6),
        ("[ff02::1]:53", host6),
        // IPv6 packets from mapped addresses.
        ("127.0.0.1:53", host6),
        ("198.51.100.7:53", host6),
    ] {
        bed.knock(listener, from, to, b"x");
    }
    assert!(bed.world.got.is_empty() && bed.world.sent.is_empty() && bed.engine.is_empty());
    assert_eq!(bed.world.drops, [Drop::BadSource; 6]);
}

/// Bug 209: what comes in from a group could be our own, going round.
#[test]
fn groups_do_not_come_in() {
    let mut bed = Bed::new();
    let listener = bed.listen(5353, Table::Host, forward(None, 5353));
    let message = Received {
        from: ep(PEER),
        to: Some(HOST.parse().unwrap()),
        group: true,
        len: 1,
        segment: 1,
        ..Received::EMPTY
    };
    let sock = bed.world.socks.get_mut(&listener.1.0).unwrap();
    sock.rx.push_back((message, b"x".to_vec()));
    bed.serve(listener.0);
    assert_eq!(bed.world.drops, [Drop::BadDestination]);
    assert!(bed.world.got.is_empty());
}

#[test]
fn errors_on_a_listener_reach_the_flow_and_are_cleared() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    bed.knock(listener, PEER, HOST, b"q");
    bed.knock(listener, "198.51.100.8:3333", HOST, b"q");
    let sock = bed.world.socks.get_mut(&listener.1.0).unwrap();
    sock.errors.push_back((complaint(PEER), b"answer".to_vec()));
    sock.errors
        .push_back((complaint("198.51.100.99:1"), b"nobody's".to_vec()));
    bed.engine
        .on_listener(&mut bed.world, bed.now, listener.0, ERROR);
    assert_eq!(bed.world.reports.len(), 1);
    let report = &bed.world.reports[0];
    assert_eq!(report.to, GUEST.parse::<IpAddr>().unwrap());
    // The quote names the guest's ports: 5000 to 3333.
    assert_eq!(&report.quote[20..24], &[0x13, 0x88, 0x0d, 0x05]);
    // An error without an entry is cleared, or it would be signalled for ever.
    bed.world.socks.get_mut(&listener.1.0).unwrap().pending = Some(libc::ENETDOWN);
    bed.engine
        .on_listener(&mut bed.world, bed.now, listener.0, ERROR);
    assert_eq!(bed.world.cleared, 1);
    bed.knock(listener, PEER, HOST, b"still here");
    assert_eq!(bed.world.got.len(), 3);
}

#[test]
fn closing_a_listener_ends_its_flows_and_no_others() {
    let mut bed = Bed::new();
    let one = bed.listen(5000, Table::Host, forward(None, 5000));
    let two = bed.listen(5001, Table::Host, forward(None, 5001));
    for n in 1..9 {
        bed.knock(one, &format!("198.51.100.7:{n}"), HOST, b"x");
        bed.knock(two, &format!("198.51.100.7:{n}"), HOST, b"x");
    }
    bed.engine.unlisten(&mut bed.world, one.0);
    bed.engine.state.check();
    assert_eq!((bed.engine.len(), bed.world.finished.len()), ((8, 0), 8));
    assert!(!bed.world.socks.contains_key(&one.1.0));
    // Late events are harmless.
    bed.engine
        .on_listener(&mut bed.world, bed.now, one.0, READABLE);
    bed.engine.unlisten(&mut bed.world, one.0);
}

#[test]
fn a_rule_that_leads_elsewhere_takes_effect_with_the_next_datagram() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    bed.knock(listener, PEER, HOST, b"1");
    bed.engine
        .retarget(listener.0, rule(9), forward(None, 5001));
    bed.knock(listener, PEER, HOST, b"2");
    let to: Vec<_> = bed.got().into_iter().map(|g| g.1).collect();
    assert_eq!(to, ["192.0.2.10:5000", "192.0.2.10:5001"]);
    bed.wait(31_000);
    assert!(bed.world.finished.iter().all(|f| f.0 == Some(rule(9))));
}

/// Made-up senders never take the whole table, and do not keep others out for long.
#[test]
fn a_flood_leaves_room() {
    let limits = Limits {
        flows: 64,
        sockets: 64,
    };
    let mut bed = Bed::with(config(), limits);
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    for n in 0..200 {
        bed.knock(listener, &format!("198.51.100.7:{}", 1 + n), HOST, b"x");
    }
    assert_eq!(bed.engine.len().0, 48);
    assert!(bed.world.drops.iter().all(|d| *d == Drop::TableFull));
    for n in 0..16 {
        bed.one(&format!("192.0.2.10:{}", 100 + n), PEER, b"mine");
    }
    assert_eq!(bed.engine.len().0, 64);
    let dropped = bed.world.drops.len();
    bed.wait(200);
    bed.knock(listener, PEER, HOST, b"new");
    bed.one("192.0.2.10:99", PEER, b"mine, too");
    assert_eq!(bed.world.drops.len(), dropped);
}

#[test]
fn expiry_is_done_in_portions() {
    let limits = Limits {
        flows: 2000,
        sockets: 8,
    };
    let mut bed = Bed::with(config(), limits);
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    for n in 0..1000 {
        bed.knock(listener, &format!("198.51.100.7:{}", 1 + n), HOST, b"x");
    }
    bed.now = bed.now + std::time::Duration::from_secs(40);
    bed.engine.on_timer(&mut bed.world, bed.now);
    let left = bed.engine.len().0;
    assert!((700..1000).contains(&left), "{left}");
    assert!(bed.engine.next_deadline().unwrap() <= bed.now);
    bed.wait(0);
    assert_eq!((bed.engine.len().0, bed.world.finished.len()), (0, 1000));
}

#[test]
fn host_loopback_goes_round_the_tap_and_back() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"in");
    assert!(bed.world.got.is_empty());
    let sent = &bed.world.sent[0];
    assert_eq!((sent.to, sent.source), (ep("192.0.2.10:7000"), None));
    let port = sent.port;
    assert!(bed.world.by_port(port).inside);
    // More of it needs no new socket; another address of ours does.
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"in");
    assert_eq!((bed.engine.len(), bed.world.pool), ((1, 1), 7));
    bed.knock(listener, "127.0.0.1:33", "127.0.0.2", b"in");
    assert_eq!((bed.engine.len(), bed.world.pool), ((2, 2), 6));
    assert!(bed.world.arrive(port, ep("192.0.2.10:7000"), b"out"));
    bed.run();
    let back = bed.world.sent.last().unwrap();
    assert_eq!(
        (back.port, back.to, back.source),
        (5000, ep("127.0.0.1:33"), Some("127.0.0.1".parse().unwrap()))
    );
    bed.wait(121_000);
    assert_eq!((bed.engine.len(), bed.sockets()), ((0, 0), 0));
    let finished = &bed.world.finished;
    assert_eq!(finished.iter().map(|f| f.1.bytes_in).sum::<u64>(), 6);
    assert_eq!(finished.iter().map(|f| f.1.bytes_out).sum::<u64>(), 3);
}

#[test]
fn the_far_end_believes_its_target_only() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"in");
    let port = bed.world.sent[0].port;
    let stranger = Received {
        from: ep("192.0.2.10:7001"),
        len: 1,
        segment: 1,
        ..Received::EMPTY
    };
    let sock = bed.world.by_port(port);
    sock.rx.push_back((stranger, b"x".to_vec()));
    bed.run();
    assert_eq!(
        (bed.world.sent.len(), &bed.world.drops[..]),
        (1, &[Drop::NoFlow][..])
    );
}

#[test]
fn other_loopback_addresses_are_kept() {
    let mut cfg = config();
    cfg.splice.to_loopback = true;
    let limits = Limits {
        flows: 8,
        sockets: 8,
    };
    let mut bed = Bed::with(cfg, limits);
    let listener = bed.listen(5000, Table::Host, forward(None, 5000));
    bed.knock(listener, "127.0.0.2:33", "127.0.0.3", b"in");
    assert_eq!(bed.world.sent[0].to, ep("127.0.0.3:5000"));
    let port = bed.world.sent[0].port;
    let source = bed.world.by_port(port).source;
    assert_eq!(source, Some("127.0.0.2".parse().unwrap()));
}

#[test]
fn namespace_loopback_reaches_the_hosts_with_its_port() {
    let mut bed = Bed::new();
    let listener = bed.listen(53, Table::Splice, forward(None, 5353));
    bed.knock(listener, "127.0.0.1:4444", "127.0.0.1", b"q");
    let sent = &bed.world.sent[0];
    assert_eq!((sent.port, sent.to), (4444, ep("127.0.0.1:5353")));
    assert!(!bed.world.by_port(4444).inside);
    assert!(bed.world.arrive(4444, ep("127.0.0.1:5353"), b"a"));
    bed.run();
    assert_eq!(bed.world.sent[1].to, ep("127.0.0.1:4444"));
    bed.wait(121_000);
    let traffic = bed.world.finished[0].1;
    assert_eq!((traffic.bytes_out, traffic.bytes_in), (1, 1));
    // Nothing but loopback.
    bed.knock(listener, "192.0.2.10:4444", "127.0.0.1", b"q");
    bed.knock(listener, "127.0.0.1:4444", "192.0.2.10", b"q");
    assert_eq!(bed.world.drops, [Drop::BadSource; 2]);
    assert_eq!(bed.world.sent.len(), 2);
}

#[test]
fn nobody_listening_inside_ends_the_flow() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"in");
    let port = bed.world.sent[0].port;
    let sock = bed.world.by_port(port);
    sock.errors
        .push_back((complaint("192.0.2.10:7000"), Vec::new()));
    bed.run();
    assert_eq!((bed.engine.len(), bed.sockets()), ((0, 0), 0));
    assert_eq!(bed.world.drops, [Drop::SocketError]);
    assert!(bed.world.reports.is_empty());
    // And the next one starts afresh.
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"in");
    assert_eq!(bed.engine.len(), (1, 1));
}

#[test]
fn a_target_out_of_reach_leaves_nothing_behind() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    bed.world.unreachable = Some((ep("192.0.2.10:7000"), libc::ENETUNREACH));
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"in");
    assert_eq!(bed.world.drops, [Drop::SocketError]);
    assert_eq!((bed.engine.len(), bed.sockets()), ((0, 0), 0));
    // The same for what had to wait.
    bed.world.pool = 0;
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"in");
    bed.world.pool = 1;
    bed.engine.supplied(&mut bed.world);
    assert_eq!(bed.world.drops, [Drop::SocketError; 2]);
    assert_eq!((bed.engine.len(), bed.sockets()), ((0, 0), 0));
}

/// A rush of new peers: what they send first waits for sockets of the namespace, in order, and is not lost.
#[test]
fn a_rush_of_peers_waits_for_sockets() {
    let mut bed = Bed::new();
    bed.world.pool = 2;
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    for round in 0..2_u8 {
        for n in 0..20 {
            let peer = format!("127.0.0.1:{}", 100 + n);
            bed.knock(listener, &peer, "127.0.0.1", &[n, round]);
        }
    }
    assert_eq!((bed.world.sent.len(), bed.engine.len().0), (4, 20));
    // A super-frame, too.
    let message = Received {
        from: ep("127.0.0.1:105"),
        to: Some("127.0.0.1".parse().unwrap()),
        len: 250,
        segment: 100,
        ..Received::EMPTY
    };
    let sock = bed.world.socks.get_mut(&listener.1.0).unwrap();
    sock.rx.push_back((message, vec![5; 250]));
    bed.serve(listener.0);
    for _ in 0..3 {
        bed.world.pool = 6;
        bed.engine.supplied(&mut bed.world);
        bed.engine.state.check();
    }
    assert_eq!((bed.world.sent.len(), bed.sockets()), (43, 20));
    let fifth = bed.world.sent.iter().filter(|s| s.payload[0] == 5);
    let fifth: Vec<_> = fifth.map(|s| s.payload.len()).collect();
    assert_eq!(fifth, [2, 2, 100, 100, 50]);
    assert!(bed.world.drops.is_empty());
}

/// Sockets that never come: what waits is given up, and counted.
#[test]
fn nobody_waits_for_ever() {
    let mut bed = Bed::new();
    bed.world.pool = 0;
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"1");
    bed.wait(300);
    bed.knock(listener, "127.0.0.1:34", "127.0.0.1", b"2");
    // That is no lack of descriptors, of which the user is told what to do about it.
    assert_eq!(bed.world.drops, [Drop::QueueFull]);
    bed.wait(40_000);
    assert_eq!(bed.world.drops, [Drop::QueueFull; 2]);
    assert_eq!(bed.engine.len(), (0, 0));
}

/// There was no room to wait, and when there are sockets again the target is out of reach for a moment.
#[test]
fn a_late_far_end_that_fails_is_made_anew() {
    let mut bed = Bed::new();
    bed.world.pool = 0;
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    let big = vec![0; 65_000];
    for n in 1..=5 {
        bed.knock(listener, &format!("127.0.0.1:{n}"), "127.0.0.1", &big);
    }
    assert_eq!(bed.world.drops, [Drop::QueueFull]);
    bed.world.pool = 8;
    bed.engine.supplied(&mut bed.world);
    bed.world.unreachable = Some((ep("192.0.2.10:7000"), libc::ENETUNREACH));
    bed.knock(listener, "127.0.0.1:5", "127.0.0.1", b"x");
    assert_eq!(bed.world.drops.last(), Some(&Drop::SocketError));
    bed.world.unreachable = None;
    bed.knock(listener, "127.0.0.1:5", "127.0.0.1", b"y");
    assert_eq!(bed.world.sent.last().unwrap().payload, b"y");
    assert_eq!((bed.engine.len(), bed.sockets()), ((5, 5), 5));
}

#[test]
fn a_target_that_moves_takes_the_flow_along() {
    let mut bed = Bed::new();
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"1");
    bed.world.seen.learn("192.0.2.77".parse().unwrap());
    bed.knock(listener, "127.0.0.1:33", "127.0.0.1", b"2");
    let to: Vec<_> = bed.world.sent.iter().map(|s| s.to).collect();
    assert_eq!(to, [ep("192.0.2.10:7000"), ep("192.0.2.77:7000")]);
    assert_eq!((bed.engine.len(), bed.sockets()), ((1, 1), 1));
    bed.engine.unlisten(&mut bed.world, listener.0);
    bed.engine.state.check();
    assert_eq!((bed.engine.len(), bed.world.socks.len()), ((0, 0), 0));
}

/// Descriptors run out: what goes round the tap gives way like everything else.
#[test]
fn the_longest_idle_far_end_is_given_up() {
    let limits = Limits {
        flows: 16,
        sockets: 2,
    };
    let mut bed = Bed::with(config(), limits);
    let listener = bed.listen(5000, Table::Host, forward(None, 7000));
    bed.knock(listener, "127.0.0.1:1", "127.0.0.1", b"x");
    bed.knock(listener, "127.0.0.1:2", "127.0.0.1", b"x");
    bed.knock(listener, "127.0.0.1:3", "127.0.0.1", b"x");
    assert_eq!(bed.world.drops, [Drop::NoDescriptor]);
    bed.wait(11_000);
    bed.knock(listener, "127.0.0.1:2", "127.0.0.1", b"x");
    bed.knock(listener, "127.0.0.1:3", "127.0.0.1", b"x");
    assert_eq!((bed.engine.len(), bed.world.finished.len()), ((2, 2), 1));
}

#[test]
fn reports_say_which_way_each_flow_goes() {
    let mut bed = Bed::new();
    let host = bed.listen(5000, Table::Host, forward(None, 7000));
    let inner = bed.listen(53, Table::Splice, forward(None, 5353));
    bed.one("192.0.2.10:1", "198.51.100.7:2", b"abc");
    bed.knock(host, PEER, HOST, b"x");
    bed.knock(host, "127.0.0.1:33", "127.0.0.1", b"x");
    bed.knock(inner, "127.0.0.1:44", "127.0.0.1", b"x");
    bed.now = bed.now + std::time::Duration::from_secs(3);
    let views: Vec<_> = bed.engine.flows(bed.now, FlowId(0)).collect();
    let ends = |a, b| crate::flow::id::Key::new(ep(a), ep(b));
    let want = [
        (ends("192.0.2.10:1", "198.51.100.7:2"), None, false, true),
        (ends("192.0.2.10:7000", PEER), Some(rule(5000)), true, true),
        (
            ends("192.0.2.10:7000", "127.0.0.1:33"),
            Some(rule(5000)),
            true,
            false,
        ),
        (
            ends("127.0.0.1:44", "127.0.0.1:5353"),
            Some(rule(53)),
            false,
            false,
        ),
    ];
    for ((view, tap), want) in views.iter().zip(want) {
        assert_eq!((view.key, view.rule, view.inbound, *tap), want);
        assert_eq!(view.idle.as_secs(), 3);
    }
    assert_eq!(views[0].0.traffic.bytes_out, 3);
    assert_eq!(bed.engine.flows(bed.now, FlowId(2)).count(), 2);
}

/// Peers outside and on the loopback, an echo in the guest and on every loopback, rules and addresses that change,
/// sockets that run out: what comes back goes to whoever asked, from where they asked.
mod any_history {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Endpoint;

    const PEERS: [&str; 6] = [
        "198.51.100.7:3333",
        "198.51.100.8:3333",
        "127.0.0.1:44",
        "127.0.0.2:44",
        "192.0.2.10:55",
        "127.0.0.1:45",
    ];
    const LOCALS: [&str; 3] = [HOST, "203.0.113.6", "127.0.0.1"];

    #[derive(Clone, Debug)]
    enum Step {
        Ask {
            listener: usize,
            peer: usize,
            local: usize,
            count: usize,
        },
        /// The guest and the far ends answer what they have got.
        Answer,
        Error {
            listener: usize,
            peer: usize,
        },
        Retarget {
            listener: usize,
            port: u16,
        },
        Replace {
            listener: usize,
        },
        Move,
        Pool {
            count: usize,
        },
        Wait {
            ms: u64,
        },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..3_usize, 0..6_usize, 0..3_usize, 1..5_usize)
                .prop_map(|(listener, peer, local, count)| Step::Ask { listener, peer, local, count }),
            8 => Just(Step::Answer),
            1 => (0..3_usize, 0..6_usize).prop_map(|(listener, peer)| Step::Error { listener, peer }),
            1 => (0..3_usize, 7000..7003_u16).prop_map(|(listener, port)| Step::Retarget { listener, port }),
            1 => (0..3_usize).prop_map(|listener| Step::Replace { listener }),
            1 => Just(Step::Move),
            1 => (0..9_usize).prop_map(|count| Step::Pool { count }),
            2 => prop_oneof![0..500_u64, 9_000..12_000_u64, 25_000..130_000_u64].prop_map(|ms| Step::Wait { ms }),
        ];
        prop::collection::vec(step, 1..60)
    }

    struct Sim {
        bed: Bed,
        listeners: Vec<(FlowId, Handle)>,
        /// Who asked, by the number in the payload: listener's port, peer, address.
        asked: Vec<(u16, Endpoint, IpAddr)>,
        answered: usize,
        sent: usize,
        moves: u8,
    }

    const TABLES: [(u16, Table); 3] = [
        (5000, Table::Host),
        (5001, Table::Host),
        (53, Table::Splice),
    ];

    impl Sim {
        fn new(flows: usize, sockets: usize, no_splice: bool) -> Self {
            let mut cfg = config();
            cfg.splice.inbound = !no_splice;
            let mut bed = Bed::with(cfg, Limits { flows, sockets });
            let listeners =
                TABLES.map(|(port, table)| bed.listen(port, table, forward(None, port + 2000)));
            Self {
                bed,
                listeners: listeners.into(),
                asked: Vec::new(),
                answered: 0,
                sent: 0,
                moves: 0,
            }
        }

        fn serve(&mut self) {
            for _ in 0..3 {
                for (id, _) in self.listeners.clone() {
                    let (world, now) = (&mut self.bed.world, self.bed.now);
                    self.bed.engine.on_listener(world, now, id, READABLE);
                }
                self.bed.run();
            }
            // What the far ends were sent they answer; what listeners sent is an answer.
            while let Some(sent) = self.bed.world.sent.get(self.sent).cloned() {
                self.sent += 1;
                let listener = TABLES.iter().any(|(port, _)| *port == sent.port);
                if !listener {
                    self.bed.world.arrive(sent.port, sent.to, &sent.payload);
                    continue;
                }
                let number = usize::from_be_bytes(*sent.payload.first_chunk().unwrap());
                let (port, peer, local) = self.asked[number];
                assert_eq!((sent.to, sent.source), (peer, Some(local)));
                assert_eq!(sent.port, port);
            }
        }

        fn step(&mut self, step: &Step) {
            match *step {
                Step::Ask {
                    listener,
                    peer,
                    local,
                    count,
                } => {
                    let socket = self.listeners[listener].1;
                    for _ in 0..count {
                        let number = self.asked.len().to_be_bytes();
                        self.bed
                            .world
                            .knock(socket, PEERS[peer], LOCALS[local], &number);
                        let local = LOCALS[local].parse().unwrap();
                        self.asked
                            .push((TABLES[listener].0, ep(PEERS[peer]), local));
                    }
                }
                // The guest answers at once, as another datagram of the same peer may come by another way.
                Step::Answer => {}
                Step::Error { listener, peer } => {
                    let (id, socket) = self.listeners[listener];
                    let sock = self.bed.world.socks.get_mut(&socket.0).unwrap();
                    sock.errors.push_back((complaint(PEERS[peer]), Vec::new()));
                    let (world, now) = (&mut self.bed.world, self.bed.now);
                    self.bed.engine.on_listener(world, now, id, ERROR);
                }
                Step::Retarget { listener, port } => {
                    let id = self.listeners[listener].0;
                    self.bed
                        .engine
                        .retarget(id, rule(port), forward(None, port));
                }
                Step::Replace { listener } => {
                    let id = self.listeners[listener].0;
                    self.bed.engine.unlisten(&mut self.bed.world, id);
                    let (port, table) = TABLES[listener];
                    self.listeners[listener] = self.bed.listen(port, table, forward(None, port));
                }
                Step::Move => {
                    self.moves = self.moves % 100 + 1;
                    let seen = IpAddr::from([192, 0, 2, 100 + self.moves]);
                    self.bed.world.seen.learn(seen);
                }
                Step::Pool { count } => {
                    self.bed.world.pool = count;
                    self.bed.engine.supplied(&mut self.bed.world);
                }
                Step::Wait { ms } => self.bed.wait(ms),
            }
            self.serve();
            while let Some(got) = self.bed.world.got.get(self.answered).cloned() {
                self.answered += 1;
                let (src, dst) = (got.dst, got.src);
                let text = |e| std::net::SocketAddr::from(e).to_string();
                let known = self
                    .bed
                    .engine
                    .state
                    .find(&crate::flow::id::Key::new(src, dst));
                // After its listener is gone an answer takes the guest's own way out, to wherever that leads.
                let flow = known.and_then(|id| self.bed.engine.state.flows.get(id));
                if flow.is_some_and(|flow| flow.rule.is_some()) {
                    let last = self
                        .bed
                        .world
                        .got
                        .iter()
                        .rposition(|g| (g.src, g.dst) == (dst, src));
                    // Only the last one surely asked at the address that is answered from.
                    if last == Some(self.answered - 1) {
                        self.bed.one(&text(src), &text(dst), &got.payload);
                    }
                }
            }
            self.serve();
            self.bed.engine.state.check();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn answers_reach_whoever_asked(steps in steps(), flows in prop_oneof![2..8_usize, Just(64)], sockets in prop_oneof![3..5_usize, Just(64)], no_splice: bool) {
            let mut sim = Sim::new(flows, sockets, no_splice);
            for step in &steps {
                sim.step(step);
            }
            sim.bed.wait(300_000);
            prop_assert_eq!(sim.bed.engine.len(), (0, 0));
            prop_assert_eq!(sim.bed.world.socks.len(), 3);
        }
    }
}
