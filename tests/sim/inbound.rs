//! Connections that begin outside, segment by segment: one test per situation.

use std::num::NonZeroU16;

use passt::addr::Endpoint;
use passt::clock::Instant;
use passt::config::rules::RuleId;
use passt::flow::id::{FlowId, Key};
use passt::stats::Drop;
use passt::tcp::Arrival;
use passt::tcp::io::SocketError;
use passt::wire::tcp::{Flags, Options, Repr, Seq};

use crate::scripted::{ISN, Test};

const RULE: Option<RuleId> = Some(RuleId(NonZeroU16::MIN));

fn key(port: u16) -> Key {
    let guest = Endpoint::new([10, 0, 0, 2].into(), 1000);
    Key::new(guest, Endpoint::new([192, 0, 2, 1].into(), port))
}

/// A peer connects from `port`; says whether the engine took it.
fn arrives_from(t: &mut Test, port: u16) -> bool {
    let arrival = Arrival {
        key: key(port),
        rule: RULE,
        socket: 7,
    };
    let taken = t.engine.accept(&mut t.io, Instant(t.now), arrival);
    t.engine.flush(&mut t.io, Instant(t.now));
    taken
}

/// A connection whose SYN is out. `t.seq` is the guest's, `t.ack` what it has of ours.
fn called() -> (Test, Repr) {
    let mut t = Test::new();
    assert!(arrives_from(&mut t, 80));
    let syn = t.out();
    t.ack = syn.seq.add(1);
    t.nothing();
    (t, syn)
}

fn syn_ack(t: &mut Test, window: u16) {
    let options = Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        ..Options::NONE
    };
    let repr = Repr {
        flags: Flags::SYN | Flags::ACK,
        window,
        options,
        ..t.repr()
    };
    t.segment(repr, b"");
    t.seq = Seq(ISN + 1);
}

/// A connection after the handshake.
fn open() -> Test {
    let (mut t, _) = called();
    syn_ack(&mut t, 64_240);
    let ack = t.out();
    assert_eq!((ack.flags, ack.seq, ack.ack), (Flags::ACK, t.ack, t.seq));
    t.nothing();
    t
}

#[test]
fn the_guest_is_called_with_everything_on_offer_and_the_socket_watched_first() {
    let (t, syn) = called();
    assert_eq!(syn.flags, Flags::SYN);
    assert_eq!((syn.src_port, syn.dst_port), (80, 1000));
    assert_eq!((syn.ack, syn.window), (Seq(0), 0xffff));
    assert_eq!(syn.options.mss, Some(1460));
    assert!(syn.options.sack_permitted && syn.options.window_scale.is_some());
    assert_eq!(t.io.calls, ["adopt"]);
}

#[test]
fn after_the_handshake_bytes_go_both_ways() {
    let mut t = open();
    t.arrives(100);
    let (data, n) = t.data();
    assert_eq!((data.seq, data.ack, n), (t.ack, t.seq, 100));
    t.ack = t.ack.add(100);
    t.send(Flags::ACK | Flags::PSH, b"answer");
    assert_eq!(t.io.taken, b"answer");
    t.send(Flags::ACK | Flags::FIN, b"");
    assert_eq!(t.io.calls.last(), Some(&"shutdown"));
    assert_eq!(t.out().ack, t.seq);
    t.peer_closes();
    let fin = t.out();
    assert!(fin.flags.contains(Flags::FIN));
    t.ack = fin.seq.add(1);
    t.send(Flags::ACK, b"");
    assert_eq!(t.io.calls.last(), Some(&"close"));
    assert!(t.engine.is_empty());
    assert_eq!(t.io.finished.len(), 1);
    assert_eq!(t.io.finished[0].0, RULE);
}

#[test]
fn a_guest_that_refuses_resets_the_peer() {
    let (mut t, _) = called();
    let repr = Repr {
        flags: Flags::RST | Flags::ACK,
        seq: Seq(0),
        ..t.repr()
    };
    t.segment(repr, b"");
    assert_eq!(t.io.calls, ["adopt", "reset"]);
    t.nothing();
    assert!(t.engine.is_empty());
}
