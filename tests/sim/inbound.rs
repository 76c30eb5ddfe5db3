//! Connections that begin outside, segment by segment: one test per situation.

use std::num::NonZeroU16;

use passt::addr::Endpoint;
use passt::clock::Instant;
use passt::config::rules::RuleId;
use passt::flow::id::{FlowId, Key};
use passt::flow::traffic::Traffic;
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

#[test]
fn an_unanswered_syn_is_repeated_as_the_kernel_does_and_the_peer_reset_at_last() {
    let (mut t, syn) = called();
    let (start, mut times) = (t.now, Vec::new());
    while !t.engine.is_empty() {
        t.pass(1);
        if let Some((again, _)) = t.io.emitted.pop_front() {
            if t.engine.is_empty() {
                assert_eq!((again.flags, again.seq), (Flags::RST, syn.seq.add(1)));
                break;
            }
            assert_eq!(again, syn, "the same sequence number and options");
            times.push((t.now - start) / 1000 / 1000);
        }
    }
    // tcp_syn_linear_timeouts and tcp_syn_retries: the last one after 67 seconds, the end after 131.
    assert_eq!(times, [1, 2, 3, 4, 5, 7, 11, 19, 35, 67]);
    assert_eq!((t.now - start) / 1000 / 1000, 131);
    assert_eq!(t.io.calls, ["adopt", "reset"]);
    t.nothing();
    assert_eq!(t.io.finished, [(RULE, Traffic::default())]);
}

#[test]
fn a_late_answer_to_a_repeated_syn_is_as_good_as_a_soon_one() {
    let (mut t, syn) = called();
    t.pass(3500);
    t.io.emitted.clear();
    syn_ack(&mut t, 64_240);
    assert_eq!(t.out().seq, syn.seq.add(1));
    t.pass(5000);
    t.nothing();
    t.arrives(10);
    assert_eq!(t.data().0.seq, syn.seq.add(1));
}

#[test]
fn data_that_waits_goes_out_with_the_acknowledgement_of_the_answer() {
    let (mut t, _) = called();
    t.arrives(700);
    t.nothing();
    syn_ack(&mut t, 64_240);
    let (data, n) = t.data();
    assert_eq!((data.seq, data.ack, n), (t.ack, t.seq, 700));
    t.nothing();
}

#[test]
fn a_peer_that_has_sent_everything_and_closed_is_delivered_all_the_same() {
    let (mut t, _) = called();
    t.io.received = 700;
    t.peer_closes();
    t.nothing();
    syn_ack(&mut t, 64_240);
    let (data, n) = t.data();
    assert_eq!((data.seq, data.ack, n), (t.ack, t.seq, 700));
    let fin = t.out();
    assert_eq!(
        (fin.flags, fin.seq),
        (Flags::FIN | Flags::ACK, t.ack.add(700))
    );
    t.ack = fin.seq.add(1);
    t.send(Flags::ACK | Flags::FIN, b"bye");
    assert_eq!(t.io.taken, b"bye");
    assert_eq!(t.io.calls, ["adopt", "send", "close"]);
    assert_eq!(t.io.consumed, 700);
}

#[test]
fn a_peer_that_closed_without_a_byte_gives_the_guest_a_connection_and_its_end() {
    let (mut t, _) = called();
    t.peer_closes();
    syn_ack(&mut t, 64_240);
    let fin = t.out();
    assert_eq!((fin.flags, fin.ack), (Flags::FIN | Flags::ACK, t.seq));
    t.nothing();
}

#[test]
fn a_peer_that_resets_takes_the_call_with_it() {
    let (mut t, syn) = called();
    t.io.error = Some(SocketError::Reset);
    t.event(|r| (r.readable, r.error, r.hup, r.rdhup) = (true, true, true, true));
    let rst = t.out();
    assert_eq!((rst.flags, rst.seq), (Flags::RST, syn.seq.add(1)));
    assert!(t.engine.is_empty());
    // The guest's answer was on its way already.
    t.io.error = None;
    syn_ack(&mut t, 64_240);
    let rst = t.out();
    assert_eq!((rst.flags, rst.seq), (Flags::RST, syn.seq.add(1)));
    t.nothing();
}

#[test]
fn an_old_connection_s_acknowledgement_is_reset_and_the_call_repeated_without_waiting() {
    let (mut t, syn) = called();
    let stray = Repr {
        seq: Seq(5_000_000),
        ack: syn.seq.sub(100_000),
        ..t.repr()
    };
    t.segment(stray, b"");
    let rst = t.out();
    assert_eq!((rst.flags, rst.seq), (Flags::RST, stray.ack));
    t.nothing();
    t.pass(4);
    assert_eq!(t.out(), syn);
    // Once: a guest that goes on like that is asked at the usual pace.
    t.segment(stray, b"");
    assert_eq!(t.out().flags, Flags::RST);
    t.pass(900);
    t.nothing();
    syn_ack(&mut t, 64_240);
    assert_eq!(t.out().ack, t.seq);
    assert!(!t.io.calls.contains(&"reset"));
}

#[test]
fn resets_that_do_not_acknowledge_the_call_mean_nothing() {
    let (mut t, syn) = called();
    let blind = Repr {
        flags: Flags::RST,
        ..t.repr()
    };
    let stale = Repr {
        flags: Flags::RST | Flags::ACK,
        ack: syn.seq,
        ..t.repr()
    };
    for rst in [blind, stale] {
        t.segment(rst, b"");
        t.nothing();
    }
    assert_eq!(t.io.drops, [Drop::OutOfWindow; 2]);
    syn_ack(&mut t, 64_240);
    assert_eq!(t.out().flags, Flags::ACK);
}

#[test]
fn a_repeated_answer_is_acknowledged_again() {
    let mut t = open();
    t.seq = Seq(ISN);
    syn_ack(&mut t, 64_240);
    let again = t.out();
    assert_eq!(
        (again.flags, again.seq, again.ack),
        (Flags::ACK, t.ack, t.seq)
    );
    t.arrives(10);
    assert_eq!(t.data().1, 10);
}

#[test]
fn answer_data_and_end_in_one_batch_are_all_taken() {
    let (mut t, _) = called();
    let first = t.seq;
    let answer = Repr {
        flags: Flags::SYN | Flags::ACK,
        ..t.repr()
    };
    let data = Repr {
        seq: first.add(1),
        ..t.repr()
    };
    let fin = Repr {
        seq: first.add(6),
        flags: Flags::ACK | Flags::FIN,
        ..t.repr()
    };
    t.batch(&[(answer, b""), (data, b"hello"), (fin, b"")]);
    assert_eq!(t.io.taken, b"hello");
    assert_eq!(t.io.calls, ["adopt", "send", "shutdown"]);
    assert_eq!(t.out().ack, first.add(7));
}

#[test]
fn a_closed_window_in_the_answer_is_respected_probed_and_its_opening_used() {
    let (mut t, _) = called();
    t.arrives(5000);
    syn_ack(&mut t, 0);
    assert_eq!(t.out().flags, Flags::ACK);
    t.nothing();
    t.pass(300);
    let probe = t.out();
    assert_eq!((probe.seq, probe.flags), (t.ack.sub(1), Flags::ACK));
    t.segment(t.repr(), b"");
    let (data, n) = t.data();
    assert_eq!((data.seq, n), (t.ack, 5000));
}

#[test]
fn a_guest_without_options_gets_neither_scaled_windows_nor_large_segments() {
    let (mut t, _) = called();
    let answer = Repr {
        flags: Flags::SYN | Flags::ACK,
        window: 1000,
        ..t.repr()
    };
    t.segment(answer, b"");
    t.seq = t.seq.add(1);
    let ack = t.out();
    assert_eq!(ack.window, 0xffff, "not scaled");
    t.arrives(5000);
    assert_eq!(t.data().1, 1000, "nor is the guest's");
    assert_eq!(t.io.mss, 536);
}

#[test]
fn calls_that_cross_become_one_connection() {
    let (mut t, syn) = called();
    t.arrives(20);
    t.syn(Seq(ISN));
    let answer = t.out();
    assert_eq!(answer.flags, Flags::SYN | Flags::ACK);
    assert_eq!((answer.seq, answer.ack), (syn.seq, Seq(ISN + 1)));
    t.nothing();
    assert_eq!(t.io.calls, ["adopt"], "not a second connection");
    syn_ack(&mut t, 64_240);
    let (data, n) = t.data();
    assert_eq!((data.seq, data.ack, n), (t.ack, t.seq, 20));
    t.send(Flags::ACK | Flags::PSH, b"hello");
    assert_eq!(t.io.taken, b"hello");
    t.nothing();
}

#[test]
fn calls_that_cross_are_completed_by_a_plain_acknowledgement_as_well() {
    let (mut t, _) = called();
    t.syn(Seq(ISN));
    t.out();
    // Ours got lost: it is repeated.
    t.pass(1100);
    assert_eq!(t.out().flags, Flags::SYN | Flags::ACK);
    t.seq = Seq(ISN + 1);
    t.send(Flags::ACK, b"hello");
    assert_eq!(t.io.taken, b"hello");
}

#[test]
fn an_arrival_on_the_ports_of_a_live_connection_is_reset_and_counted() {
    let mut t = open();
    assert!(!arrives_from(&mut t, 80));
    assert_eq!(t.io.calls, ["adopt", "reset"]);
    assert_eq!(t.io.drops, [Drop::KeyTaken]);
    t.send(Flags::ACK | Flags::PSH, b"still here");
    assert_eq!(t.io.taken, b"still here");
    assert!(t.io.finished.is_empty());
}

#[test]
fn an_arrival_replaces_what_only_lingers() {
    let mut t = open();
    t.peer_closes();
    t.ack = t.out().seq.add(1);
    t.send(Flags::ACK | Flags::FIN, b"");
    t.io.emitted.clear();
    assert_eq!(t.engine.len(), 1);
    assert_eq!(t.io.finished.len(), 1, "told when the socket was closed");
    assert_eq!(t.engine.flows(Instant(t.now), FlowId(0)).count(), 0);
    t.io.ended = false;
    assert!(arrives_from(&mut t, 80));
    let syn = t.out();
    assert_eq!(syn.flags, Flags::SYN);
    assert_eq!(t.engine.len(), 1);
    assert_eq!(t.io.finished.len(), 1, "and not again");
}

#[test]
fn a_full_table_and_a_socket_that_cannot_be_watched_reset_the_arrival_only() {
    let mut t = open();
    t.io.adopts = false;
    assert!(!arrives_from(&mut t, 81));
    t.io.adopts = true;
    assert!(arrives_from(&mut t, 82));
    assert!(!arrives_from(&mut t, 83));
    assert_eq!(t.io.drops, [Drop::SocketError, Drop::TableFull]);
    assert_eq!(t.io.calls, ["adopt", "adopt", "reset", "adopt", "reset"]);
    assert_eq!(t.engine.len(), 2);
}

#[test]
fn an_icmp_error_about_the_call_ends_it_and_about_anything_else_does_not() {
    let (mut t, syn) = called();
    let now = Instant(t.now);
    t.engine.on_unreachable(&mut t.io, now, &key(81), syn.seq);
    t.engine
        .on_unreachable(&mut t.io, now, &key(80), syn.seq.add(1));
    assert_eq!(t.engine.len(), 1);
    t.engine.on_unreachable(&mut t.io, now, &key(80), syn.seq);
    assert!(t.engine.is_empty());
    assert_eq!(t.io.calls, ["adopt", "reset"]);
    t.nothing();
    let (mut t, syn) = called();
    syn_ack(&mut t, 64_240);
    t.engine.on_unreachable(&mut t.io, now, &key(80), syn.seq);
    assert_eq!(t.engine.len(), 1);
}

#[test]
fn a_short_exchange_asks_the_kernel_nothing() {
    let mut t = open();
    t.arrives(400);
    t.ack = t.ack.add(t.data().1);
    t.send(Flags::ACK | Flags::PSH, b"answer");
    t.send(Flags::ACK | Flags::FIN, b"");
    t.io.emitted.clear();
    t.peer_closes();
    t.ack = t.out().seq.add(1);
    t.send(Flags::ACK, b"");
    assert!(t.engine.is_empty());
    assert_eq!(t.io.calls, ["adopt", "send", "shutdown", "close"]);
    assert_eq!(t.io.infos, 0);
}

#[test]
fn a_large_answer_to_a_near_peer_is_acknowledged_at_once() {
    let mut t = open();
    t.io.bytes_acked = 0;
    t.send(Flags::ACK, &[0; 1400]);
    t.send(Flags::ACK, &[0; 1400]);
    assert_eq!(t.io.infos, 1);
    assert_eq!(t.out().ack, t.seq);
}

#[test]
fn a_far_peer_s_acknowledgement_of_an_answer_is_passed_on_and_not_invented() {
    let mut t = Test::new();
    t.io.min_rtt = 20_000;
    t.io.bytes_acked = 0;
    assert!(arrives_from(&mut t, 80));
    t.ack = t.out().seq.add(1);
    syn_ack(&mut t, 64_240);
    t.out();
    t.send(Flags::ACK, &[0; 1000]);
    t.pass(60);
    t.nothing();
    t.io.bytes_acked = 600;
    t.pass(15);
    assert_eq!(t.out().ack, t.seq.sub(400));
    t.pass(190);
    assert_eq!(t.out().ack, t.seq);
}

#[test]
fn reports_show_what_each_connection_has_carried_and_go_on_where_they_stopped() {
    let mut t = open();
    t.arrives(300);
    t.ack = t.ack.add(t.data().1);
    t.send(Flags::ACK | Flags::PSH, b"answer");
    t.pass(2000);
    t.port = 81;
    t.seq = Seq(ISN);
    t.syn(Seq(ISN));
    let now = Instant(t.now);
    let all: Vec<_> = t.engine.flows(now, FlowId(0)).collect();
    assert_eq!(all.len(), 2);
    let carried = Traffic {
        bytes_in: 300,
        bytes_out: 6,
        packets_in: 1,
        packets_out: 1,
    };
    assert_eq!(all[0].traffic, carried);
    assert_eq!((all[0].rule, all[0].inbound), (RULE, true));
    assert_eq!((all[0].key, all[0].idle.as_secs()), (key(80), 1));
    assert_eq!((all[1].rule, all[1].inbound), (None, false));
    assert_eq!(t.engine.flows(now, FlowId(1)).next(), Some(all[1]));
    assert_eq!(t.engine.flows(now, FlowId(2)).next(), None);
    assert_eq!(t.engine.flows(now, FlowId(9)).next(), None);
}

#[test]
fn bytes_sent_again_are_not_counted_again() {
    let mut t = open();
    t.arrives(4000);
    t.data();
    t.pass(1500);
    assert!(t.io.emitted.len() > 1, "repeated more than once");
    let first = t.seq;
    for _ in 0..2 {
        let again = Repr {
            seq: first,
            ..t.repr()
        };
        t.segment(again, b"twice");
    }
    let view = t.engine.flows(Instant(t.now), FlowId(0)).next();
    let traffic = view.map(|v| v.traffic).unwrap_or_default();
    assert_eq!((traffic.bytes_in, traffic.bytes_out), (4000, 5));
    assert_eq!((traffic.packets_in, traffic.packets_out), (1, 1));
}
