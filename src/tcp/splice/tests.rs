//! Every way a connection between the loopbacks has been seen to go wrong somewhere, against scripted sockets.

use proptest::prelude::*;

use super::fake::{Fate, World, arrival, end};
use super::*;
use crate::addr::Endpoint;

const NOW: Instant = Instant(1_000_000);
/// The sockets of the first pair.
const ORIGIN: usize = 0;
const TARGET: usize = 1;

fn engine() -> Engine<World> {
    Engine::new(8, [3; 16])
}

/// A connection whose target has connected, unless the world is not prompt.
fn open(world: &mut World) -> Engine<World> {
    let mut engine = engine();
    let socket = world.socket();
    assert!(engine.accept(world, NOW, arrival(socket, Way::In)));
    world.run(&mut engine, NOW);
    engine
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 253).to_le_bytes()[0]).collect()
}

fn fates(world: &World) -> (Fate, Fate) {
    (world.socks[ORIGIN].fate, world.socks[TARGET].fate)
}

#[test]
fn a_request_costs_a_read_and_a_write_and_no_splice() {
    let mut w = World::new();
    let mut e = open(&mut w);
    assert_eq!(w.calls, 0, "nothing to read was announced");
    w.arrive(ORIGIN, b"request");
    w.run(&mut e, NOW);
    assert_eq!(w.socks[TARGET].sent, b"request");
    assert_eq!((w.calls, w.splices), (2, 0));
    w.arrive(TARGET, b"answer");
    w.fin(TARGET);
    w.run(&mut e, NOW);
    assert_eq!(w.socks[ORIGIN].sent, b"answer");
    assert!(w.socks[ORIGIN].shut, "its FIN came with the data");
    assert_eq!(w.calls, 5);
    w.fin(ORIGIN);
    w.run(&mut e, NOW);
    assert_eq!(fates(&w), (Fate::Closed, Fate::Closed));
    assert!(e.is_empty());
    let t = w.finished[0];
    assert_eq!(w.finished.len(), 1);
    assert_eq!(
        (t.bytes_in, t.packets_in, t.bytes_out, t.packets_out),
        (7, 1, 6, 1)
    );
}

#[test]
fn bulk_goes_through_a_pipe_that_is_given_back_when_there_is_no_more() {
    let mut w = World::new();
    let mut e = open(&mut w);
    let data = pattern(1 << 20);
    w.arrive(ORIGIN, &data);
    w.run(&mut e, NOW);
    assert!(w.socks[TARGET].sent == data);
    assert!(w.splices > 10);
    assert_eq!(w.lent(), 0);
    assert!(e.take_bulk());
    assert!(!e.take_bulk(), "asked, and nothing since");
    for _ in 0..40 {
        w.arrive(ORIGIN, b"small again");
        w.run(&mut e, NOW);
    }
    let splices = w.splices;
    e.take_bulk();
    w.arrive(ORIGIN, b"and small");
    w.run(&mut e, NOW);
    assert!(!e.take_bulk());
    assert_eq!(w.splices, splices, "copying is cheaper by now");
}

#[test]
fn a_full_receiver_costs_nothing_while_the_source_goes_on() {
    let mut w = World::new();
    let mut e = open(&mut w);
    w.socks[TARGET].room = 100_000;
    w.arrive(ORIGIN, &pattern(300_000));
    w.run(&mut e, NOW);
    assert_eq!(w.socks[TARGET].sent.len(), 100_000);
    let calls = w.calls;
    for _ in 0..50 {
        w.arrive(ORIGIN, b"more");
        w.run(&mut e, NOW);
    }
    assert_eq!(w.calls, calls);
    assert_eq!(e.next_deadline(), None, "that would be spinning");
    // The other direction does not care.
    w.arrive(TARGET, b"still here");
    w.run(&mut e, NOW);
    assert_eq!(w.socks[ORIGIN].sent, b"still here");
    w.drain(TARGET, usize::MAX / 4);
    w.run(&mut e, NOW);
    assert_eq!(w.socks[TARGET].sent.len(), 300_200);
}

#[test]
fn a_source_is_muted_while_its_sink_is_full_and_heard_again_when_it_is_empty() {
    let mut w = World::new();
    let mut e = open(&mut w);
    w.socks[TARGET].room = 100_000;
    w.arrive(ORIGIN, &pattern(300_000));
    w.run(&mut e, NOW);
    assert_eq!(w.socks[ORIGIN].mutes, 0, "not before there is a reason");
    for n in 0..50 {
        w.arrive(ORIGIN, &pattern(100_000));
        w.run(&mut e, NOW);
        w.drain(TARGET, 100_000);
        w.run(&mut e, NOW);
        assert_eq!(w.socks[ORIGIN].mutes, 1, "{n}");
    }
    w.drain(TARGET, usize::MAX / 4);
    w.run(&mut e, NOW);
    assert_eq!(w.socks[ORIGIN].mutes, 2);
    w.arrive(ORIGIN, b"the end");
    w.fin(ORIGIN);
    w.run(&mut e, NOW);
    assert_eq!(w.socks[TARGET].sent.len(), 5_300_007);
    assert!(w.socks[TARGET].shut);
}

#[test]
fn each_half_ends_after_what_is_still_in_the_pipe() {
    for (from, to) in [(ORIGIN, TARGET), (TARGET, ORIGIN)] {
        let mut w = World::new();
        let mut e = open(&mut w);
        let data = pattern(250_000);
        w.socks[to].room = 70_000;
        w.arrive(from, &data);
        w.fin(from);
        w.run(&mut e, NOW);
        assert!(w.lent() == 1 && !w.socks[to].shut);
        for _ in 0..6 {
            w.drain(to, 30_000);
            w.run(&mut e, NOW);
        }
        assert!(w.socks[to].sent == data);
        assert!(w.socks[to].shut && w.lent() == 0);
        // The other half goes on.
        w.arrive(to, b"late answer");
        w.run(&mut e, NOW);
        assert_eq!(w.socks[from].sent, b"late answer");
        assert_eq!(fates(&w), (Fate::Open, Fate::Open));
        w.fin(to);
        w.run(&mut e, NOW);
        assert_eq!(fates(&w), (Fate::Closed, Fate::Closed));
    }
}

#[test]
fn a_reset_of_either_side_resets_both() {
    for side in [ORIGIN, TARGET] {
        let mut w = World::new();
        let mut e = open(&mut w);
        w.arrive(side, b"last words");
        w.fail(side, SocketError::Reset);
        w.run(&mut e, NOW);
        assert_eq!(w.socks[1 - side].sent, b"last words");
        assert_eq!(fates(&w), (Fate::Reset, Fate::Reset));
        assert!(e.is_empty() && w.lent() == 0);
        assert_eq!(w.finished.len(), 1);
    }
}

#[test]
fn a_reset_after_a_fin_is_noticed_though_nothing_is_read_any_more() {
    for side in [ORIGIN, TARGET] {
        let mut w = World::new();
        let mut e = open(&mut w);
        w.fin(side);
        w.run(&mut e, NOW);
        assert!(w.socks[1 - side].shut);
        w.fail(side, SocketError::Reset);
        w.run(&mut e, NOW);
        assert_eq!(fates(&w), (Fate::Reset, Fate::Reset));
    }
}

#[test]
fn a_reset_with_a_full_receiver_does_not_wait_for_it() {
    let mut w = World::new();
    let mut e = open(&mut w);
    w.socks[TARGET].room = 0;
    w.arrive(ORIGIN, &pattern(200_000));
    w.run(&mut e, NOW);
    assert_eq!(w.lent(), 1);
    w.fail(ORIGIN, SocketError::Reset);
    w.run(&mut e, NOW);
    assert_eq!(fates(&w), (Fate::Reset, Fate::Reset));
    assert_eq!(w.lent(), 0);
}

#[test]
fn a_target_that_refuses_resets_the_origin_and_is_counted() {
    let mut w = World::new();
    w.prompt = false;
    let mut e = open(&mut w);
    w.arrive(ORIGIN, b"hello?");
    w.run(&mut e, NOW);
    w.fail(TARGET, SocketError::Refused);
    w.run(&mut e, NOW);
    assert_eq!(fates(&w), (Fate::Reset, Fate::Reset));
    assert_eq!(w.drops, [Drop::SocketError]);
    assert!(w.socks[TARGET].sent.is_empty() && e.is_empty());
}

#[test]
fn nothing_is_read_before_the_target_answers() {
    let mut w = World::new();
    w.prompt = false;
    let mut e = open(&mut w);
    w.arrive(ORIGIN, b"patience");
    w.run(&mut e, NOW);
    assert_eq!(w.calls, 0);
    w.connect_done(TARGET);
    w.run(&mut e, NOW);
    assert_eq!(w.socks[TARGET].sent, b"patience");
}

#[test]
fn a_fin_before_the_target_answers_does_not_cancel_the_attempt() {
    let mut w = World::new();
    w.prompt = false;
    let mut e = open(&mut w);
    w.fin(ORIGIN);
    w.run(&mut e, NOW);
    // An event of the connection that had this number before.
    let stale = Readiness {
        readable: true,
        writable: true,
        ..Readiness::default()
    };
    e.on_socket(&mut w, NOW, FlowId(0), End::Target, stale);
    w.run(&mut e, NOW);
    assert!(!w.socks[TARGET].shut);
    w.connect_done(TARGET);
    w.run(&mut e, NOW);
    assert!(w.socks[TARGET].shut);
    w.arrive(TARGET, b"answer");
    w.run(&mut e, NOW);
    assert_eq!(w.socks[ORIGIN].sent, b"answer");
}

#[test]
fn stale_events_do_no_harm() {
    let every = Readiness {
        readable: true,
        writable: true,
        urgent: true,
        hup: true,
        error: true,
    };
    let mut w = World::new();
    w.supply = 0;
    let mut e = open(&mut w);
    for which in [End::Origin, End::Target] {
        e.on_socket(&mut w, NOW, FlowId(0), which, every);
        e.on_socket(&mut w, NOW, FlowId(5), which, every);
    }
    assert!(e.next_deadline() > Some(NOW), "there is nothing to do yet");
    w.supply = 1;
    w.prompt = false;
    e.supplied(&mut w);
    w.arrive(ORIGIN, b"data");
    e.on_socket(&mut w, NOW, FlowId(0), End::Target, every);
    w.run(&mut e, NOW);
    assert_eq!(fates(&w), (Fate::Open, Fate::Open));
    w.connect_done(TARGET);
    w.run(&mut e, NOW);
    assert_eq!(w.socks[TARGET].sent, b"data");
}

#[test]
fn without_a_pipe_the_source_keeps_what_the_receiver_has_no_room_for() {
    let mut w = World::new();
    w.pipes_left = 0;
    let mut e = open(&mut w);
    let data = pattern(300_000);
    w.socks[TARGET].room = 100_000;
    w.arrive(ORIGIN, &data);
    w.fin(ORIGIN);
    w.run(&mut e, NOW);
    assert_eq!(w.socks[ORIGIN].rx.len(), 200_000);
    for _ in 0..4 {
        w.drain(TARGET, 50_000);
        w.run(&mut e, NOW);
    }
    assert!(w.socks[TARGET].sent == data && w.socks[TARGET].shut);
    assert_eq!(w.splices, 0);
}

#[test]
fn a_pipe_smaller_than_the_buffer_loses_nothing() {
    let mut w = World::new();
    w.size = 8192;
    let mut e = open(&mut w);
    let data = pattern(100_000);
    w.socks[TARGET].room = 5_000;
    w.arrive(ORIGIN, &data);
    w.run(&mut e, NOW);
    w.drain(TARGET, usize::MAX / 4);
    w.run(&mut e, NOW);
    assert!(w.socks[TARGET].sent == data);
}

#[test]
fn a_connection_costs_little_memory() {
    // As in the forwarder: a descriptor each, and two with a size.
    let size = size_of::<Option<(u64, Pair<u32, (u32, u32, usize)>)>>();
    assert!(size <= 264, "{size}");
}

#[test]
fn one_turn_each() {
    let mut w = World::new();
    w.size = 1 << 20;
    w.piece = 1 << 20;
    let mut e = engine();
    for n in [0, 2] {
        let socket = w.socket();
        assert!(e.accept(&mut w, NOW, arrival(socket, Way::In)));
        w.run(&mut e, NOW);
        w.socks[n].rx.extend(pattern(9 << 20));
    }
    let readable = Readiness {
        readable: true,
        ..Readiness::default()
    };
    e.on_socket(&mut w, NOW, FlowId(0), End::Origin, readable);
    let first = w.socks[1].sent.len();
    assert!((1 << 20..3 << 20).contains(&first), "{first}");
    assert_eq!(e.next_deadline(), Some(Instant(0)));
    e.on_socket(&mut w, NOW, FlowId(1), End::Origin, readable);
    e.on_timer(&mut w, NOW);
    assert!(w.socks[1].sent.len() < 8 << 20);
    assert!(w.socks[3].sent.len() > 1 << 20);
    w.run(&mut e, NOW);
    assert_eq!(w.socks[1].sent.len(), 9 << 20);
    assert_eq!(w.socks[3].sent.len(), 9 << 20);
}

#[test]
fn a_connection_that_ends_while_it_is_queued_is_queued_no_more() {
    let mut w = World::new();
    let mut e = open(&mut w);
    w.arrive(ORIGIN, &pattern(9 << 20));
    let readable = Readiness {
        readable: true,
        ..Readiness::default()
    };
    e.on_socket(&mut w, NOW, FlowId(0), End::Origin, readable);
    assert_eq!(e.next_deadline(), Some(Instant(0)));
    w.socks[TARGET].error = Some(SocketError::Reset);
    e.on_socket(&mut w, NOW, FlowId(0), End::Target, readable);
    assert!(e.is_empty());
    assert_eq!(e.next_deadline(), None);
}

#[test]
fn arrivals_wait_in_order_for_sockets_of_the_other_network() {
    let mut w = World::new();
    w.supply = 1;
    let mut e = engine();
    for _ in 0..4 {
        let socket = w.socket();
        assert!(e.accept(&mut w, NOW, arrival(socket, Way::In)));
    }
    w.run(&mut e, NOW);
    assert_eq!(e.flows(FlowId(0), NOW).count(), 4);
    let connected = |w: &World| {
        w.socks
            .iter()
            .filter(|s| s.registered.is_some_and(|(_, end)| end == End::Target))
            .count()
    };
    assert_eq!(connected(&w), 1);
    w.supply = 2;
    e.supplied(&mut w);
    assert_eq!(connected(&w), 3);
    assert_eq!(w.socks[5].registered, Some((FlowId(1), End::Target)));
    let late = NOW.after(PATIENCE);
    assert_eq!(e.next_deadline(), Some(late));
    e.on_timer(&mut w, late);
    assert_eq!(e.len(), 3);
    assert_eq!(w.drops, [Drop::SocketError]);
    assert_eq!(e.next_deadline(), None);
}

#[test]
fn nobody_waits_in_a_line_that_is_not_theirs() {
    let mut w = World::new();
    w.supply = 0;
    let mut e = engine();
    let socket = w.socket();
    assert!(e.accept(&mut w, NOW, arrival(socket, Way::In)));
    for way in [Way::Out, Way::In] {
        let socket = w.socket();
        let mut next = arrival(socket, way);
        if way == Way::In {
            next.to = end("[2001:db8::5]:80");
        }
        assert!(e.accept(&mut w, NOW, next));
    }
    w.run(&mut e, NOW);
    for origin in [1, 3] {
        w.arrive(origin, b"now");
        w.run(&mut e, NOW);
        assert_eq!(w.socks[origin + 1].sent, b"now");
    }
    assert!(w.socks[0].registered.is_none());
}

#[test]
fn what_cannot_be_taken_is_reset_and_counted() {
    let cases = [
        (ConnectError::NoDescriptor, Drop::NoDescriptor),
        (ConnectError::Failed(SocketError::Other), Drop::SocketError),
    ];
    for (refuse, why) in cases {
        let mut w = World::new();
        w.refuse = Some(refuse);
        let mut e = engine();
        let socket = w.socket();
        assert!(!e.accept(&mut w, NOW, arrival(socket, Way::In)));
        assert_eq!(w.socks[ORIGIN].fate, Fate::Reset);
        assert_eq!(w.drops, [why]);
        assert!(e.is_empty());
    }
    let mut w = World::new();
    w.adopts = false;
    let mut e = engine();
    let socket = w.socket();
    assert!(!e.accept(&mut w, NOW, arrival(socket, Way::In)));
    assert_eq!(fates(&w), (Fate::Reset, Fate::Reset));
    w.adopts = true;
    for n in 0..9 {
        let socket = w.socket();
        assert_eq!(e.accept(&mut w, NOW, arrival(socket, Way::Out)), n < 8);
    }
    assert_eq!(w.drops, [Drop::NoDescriptor, Drop::TableFull]);
}

#[test]
fn reports_name_the_inner_end_first_and_walks_can_be_continued() {
    let mut w = World::new();
    let mut e = engine();
    for way in [Way::In, Way::Out, Way::In] {
        let socket = w.socket();
        assert!(e.accept(&mut w, NOW, arrival(socket, way)));
    }
    w.run(&mut e, NOW);
    w.arrive(2, b"four");
    w.run(&mut e, Instant(3_000_000));
    let peer: Endpoint = end("127.0.0.1:40000");
    let to: Endpoint = end("192.0.2.5:80");
    let all: Vec<_> = e.flows(FlowId(0), Instant(4_000_000)).collect();
    assert_eq!(all.len(), 3);
    assert_eq!((all[0].key.guest, all[0].key.remote), (to, peer));
    assert!(all[0].inbound && !all[1].inbound);
    assert_eq!((all[1].key.guest, all[1].key.remote), (peer, to));
    assert_eq!((all[1].traffic.bytes_out, all[1].traffic.bytes_in), (4, 0));
    assert_eq!(all[1].idle, Duration::from_secs(1));
    assert_eq!(e.flows(FlowId(2), NOW).count(), 1);
    assert_eq!(e.flows(FlowId(3), NOW).count(), 0);
}

/// What a peer or the kernel may do next.
#[derive(Clone, Debug)]
enum Step {
    Send(bool, usize),
    Read(bool, usize),
    Fin(bool),
    Pipes(usize),
    Connect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), 1_usize..120_000).prop_map(|(o, n)| Step::Send(o, n)),
        6 => (any::<bool>(), 1_usize..150_000).prop_map(|(o, n)| Step::Read(o, n)),
        1 => any::<bool>().prop_map(Step::Fin),
        1 => (0_usize..3).prop_map(Step::Pipes),
        1 => Just(Step::Connect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order: every byte arrives once and in order, then the FIN, and nothing
    /// is left behind.
    #[test]
    fn every_byte_arrives_and_then_the_fin(
        steps in proptest::collection::vec(step(), 0..24),
        size in prop_oneof![Just(1_usize << 16), Just(4096), 5000_usize..300_000],
        piece in 1000_usize..200_000,
        room in 0_usize..200_000,
        prompt: bool,
    ) {
        let mut w = World::new();
        (w.size, w.piece, w.prompt) = (size, piece, prompt);
        let mut e = open(&mut w);
        w.socks[ORIGIN].room = room;
        w.socks[TARGET].room = room;
        let mut sent = [0_usize; 2];
        let mut ended = [false; 2];
        for step in steps {
            match step {
                Step::Send(o, n) if !ended[usize::from(o)] => {
                    let side = usize::from(o);
                    let all = pattern(sent[side] + n);
                    w.arrive(side, &all[sent[side]..]);
                    sent[side] += n;
                }
                Step::Send(..) => {}
                Step::Read(o, n) => w.drain(usize::from(o), n),
                Step::Fin(o) => {
                    ended[usize::from(o)] = true;
                    w.fin(usize::from(o));
                }
                Step::Pipes(n) => w.pipes_left = n,
                Step::Connect => w.connect_done(TARGET),
            }
            w.run(&mut e, NOW);
            if e.is_empty() {
                break;
            }
        }
        if !e.is_empty() {
            w.connect_done(TARGET);
            for side in [ORIGIN, TARGET] {
                w.fin(side);
                w.drain(side, usize::MAX / 4);
            }
            w.run(&mut e, NOW);
        }
        prop_assert!(e.is_empty());
        prop_assert_eq!(fates(&w), (Fate::Closed, Fate::Closed));
        prop_assert!(w.socks[TARGET].sent == pattern(sent[ORIGIN]));
        prop_assert!(w.socks[ORIGIN].sent == pattern(sent[TARGET]));
        prop_assert_eq!(w.lent(), 0);
        let t = w.finished[0];
        prop_assert_eq!(t.bytes_in, sent[ORIGIN] as u64);
        prop_assert_eq!(t.bytes_out, sent[TARGET] as u64);
    }
}
