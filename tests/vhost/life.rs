//! The life of a connection: reconnecting, stopping and starting rings, other memory, other descriptors, the end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::exec::{SOON, cpu_ticks, poll_until};
use crate::frames::{arp_reply, arp_request, udp};
use crate::harness::tests;
use crate::link::{echoes, gateway};
use crate::memory::Memory;
use crate::nic::{AsBorrowed, MQ, MRG_RXBUF, Nic, Shape, wait};
use crate::passt::Passt;
use crate::pump::Guest;
use crate::raw::{self, answers, closes};
use crate::ring::event;
use crate::traffic::{exchange, ping_pong};
use crate::world::{HOST4, PEER4, World, accept};

tests![
    buffers_across_regions,
    data_for_a_machine_that_is_gone,
    enable_and_disable,
    flows_survive_a_new_machine,
    kick_and_call_replaced,
    memory_table_changes,
    one_off,
    out_of_descriptors,
    polling,
    reconnect,
    reconnect_often,
    rings_restart,
    second_client_is_refused,
    vanishing,
];

const MIB: u64 = 1 << 20;

/// Does the number of descriptors come back to what it was?
#[track_caller]
fn no_more_descriptors(passt: &Passt, before: usize) {
    let settled = poll_until(SOON, || passt.descriptors() <= before);
    assert!(
        settled,
        "{} descriptors, there were {before}",
        passt.descriptors()
    );
}

fn reconnect() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    gateway(&mut Nic::connect(&passt, Shape::USUAL));
    closed(&passt);
    let before = passt.descriptors();
    assert!(before > 2, "descriptors cannot be seen");
    for i in 0..60 {
        let shape = if i % 2 == 0 {
            Shape::USUAL
        } else {
            Shape::USUAL.with(0)
        };
        gateway(&mut Nic::connect(&passt, shape));
    }
    closed(&passt);
    no_more_descriptors(&passt, before);
    passt.stop();
}

/// Waits until the last client has been noticed to be gone: a new one is served.
#[track_caller]
fn closed(passt: &Passt) {
    assert!(
        poll_until(SOON, || answers(&passt.dial())),
        "nobody is served any more"
    );
}

/// Ten thousand clients that come and go, some in the middle of a message.
fn reconnect_often() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    closed(&passt);
    let before = passt.descriptors();
    let greeting = raw::message(raw::GET_FEATURES, &[]);
    for i in 0..10_000_usize {
        let Ok(client) = UnixStream::connect(&passt.socket) else {
            panic!("client {i}: {}", passt.said());
        };
        let part = &greeting[..i % (greeting.len() + 1)];
        raw::send(&client, part, &[]).ok();
    }
    closed(&passt);
    no_more_descriptors(&passt, before + 1);
    passt.stop();
}

fn flows_survive_a_new_machine() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), 1500);
    let listener = world.peer.listen((PEER4, 7050));
    let mut client = guest.connect((PEER4, 7050));
    let (mut server, _) = accept(&listener);
    ping_pong(&mut client, &mut server, "before");
    for _ in 0..3 {
        std::thread::scope(|s| {
            let passt = &passt;
            s.spawn(|| replace(&guest, passt)).join().expect("no panic");
        });
        ping_pong(&mut client, &mut server, "after");
    }
    guest.unplug();
    passt.stop();
}

/// Connections with data for a machine that is gone wait for the next one, and keep nobody busy.
fn data_for_a_machine_that_is_gone() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), 1500);
    let listener = world.peer.listen((PEER4, 7058));
    let mut pairs: Vec<_> = (0..30)
        .map(|_| {
            let client = guest.connect((PEER4, 7058));
            (client, accept(&listener).0)
        })
        .collect();
    for (client, server) in &mut pairs {
        ping_pong(client, server, "before");
    }
    guest.with_card(|nic| nic.socket.shutdown(Shutdown::Both).expect("connected"));
    for (_, server) in &mut pairs {
        server.write_all(&[7; 1000]).expect("sent");
    }
    let quiet = || {
        let before = cpu_ticks();
        std::thread::sleep(Duration::from_millis(500));
        cpu_ticks() - before < 5
    };
    assert!(poll_until(SOON, quiet), "busy with nobody there");
    let next = Nic::connect(&passt, Shape::USUAL);
    guest.with_card(move |nic| *nic = next);
    for (client, _) in &mut pairs {
        client.read_exact(&mut [0; 1000]).expect("all of it");
    }
    guest.unplug();
    passt.stop();
}

/// The machine is switched off and another connects, with the same guest behind it.
fn replace(guest: &Guest, passt: &Passt) {
    guest.with_card(|nic| nic.socket.shutdown(Shutdown::Both).expect("connected"));
    let next = Nic::connect(passt, Shape::USUAL);
    guest.with_card(move |nic| *nic = next);
}

fn rings_restart() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), 1500);
    let listener = world.peer.listen((PEER4, 7051));
    let client = guest.connect((PEER4, 7051));
    std::thread::scope(|s| {
        s.spawn(|| exchange(client, &listener, 40 * MIB, 40 * MIB, "while rings restart"));
        for round in 0..30 {
            std::thread::sleep(Duration::from_millis(5));
            guest.with_card(move |nic| {
                if round % 2 == 0 {
                    pause(nic);
                } else {
                    reset(nic);
                }
            });
        }
    });
    guest.unplug();
    passt.stop();
}

/// Stopped and started again where they were, as a paused machine does it.
fn pause(nic: &mut Nic) {
    let bases = [0, 1].map(|index| nic.stop_ring(index));
    for (index, base) in bases.into_iter().enumerate() {
        let offered = nic.ring(index).offered;
        let ahead = offered.wrapping_sub(base);
        assert!(
            ahead <= nic.ring(index).size,
            "ring {index} stopped at {base}, {offered} offered"
        );
        nic.start_ring(index, base);
        nic.frontend.set_vring_enable(index, true).expect("enabled");
        // Whoever was kicked while it was stopped may not have seen it.
        nic.ring(index).kick.write(1).expect("an eventfd");
    }
}

/// Stopped, emptied and started from the beginning, as a guest that reboots does it.
fn reset(nic: &mut Nic) {
    for index in [0, 1] {
        nic.stop_ring(index);
    }
    nic.pairs[0].reset();
    for index in [0, 1] {
        nic.start_ring(index, 0);
        nic.frontend.set_vring_enable(index, true).expect("enabled");
    }
    nic.post(0);
}

/// Both ways at once, with 40 changes by the frontend meanwhile; nothing is lost, and no descriptor is left.
#[track_caller]
fn while_data_flows(port: u16, what: &str, change: fn(&mut Nic, usize)) {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    closed(&passt);
    let before = passt.descriptors();
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), 1500);
    let listener = world.peer.listen((PEER4, port));
    let client = guest.connect((PEER4, port));
    std::thread::scope(|s| {
        s.spawn(|| exchange(client, &listener, 40 * MIB, 40 * MIB, what));
        for round in 0..40 {
            std::thread::sleep(Duration::from_millis(3));
            guest.with_card(move |nic| change(nic, round));
        }
    });
    guest.unplug();
    closed(&passt);
    no_more_descriptors(&passt, before + 1);
    passt.stop();
}

fn memory_table_changes() {
    while_data_flows(7052, "while memory changes", |nic, round| {
        let m = &nic.memory;
        // Beyond what this driver has in use, so that no buffer lies across.
        let half = m.take(0, 2 << 20);
        let parts = match round % 3 {
            0 => vec![m.region(0, half), m.region(half, m.len() - half)],
            1 => vec![m.region(half, m.len() - half), m.region(0, half)],
            _ => vec![m.whole()],
        };
        nic.frontend.set_mem_table(&parts).expect("a new table");
    });
}

/// Memory in as many pieces as a table can have, with buffers that begin in one and end in the next.
fn buffers_across_regions() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let memory = Memory::new(32 << 20);
    let shape = Shape {
        room: 66_000,
        ..Shape::USUAL.without(MRG_RXBUF)
    };
    let mut nic = Nic::greet(&passt, shape, &memory);
    let part = memory.len() / 8;
    let regions: Vec<_> = (0..8).map(|i| memory.region(i * part, part)).collect();
    nic.start_in(&regions);
    let lengths: Vec<usize> = (0..600).map(|i| 20_000 + 60 * i).collect();
    echoes(&mut nic, &world, &lengths);
    passt.stop();
}

fn kick_and_call_replaced() {
    while_data_flows(7053, "while descriptors change", |nic, _| {
        for index in [0, 1] {
            let ring = if index == 0 {
                &mut nic.pairs[0].rx
            } else {
                &mut nic.pairs[0].tx
            };
            // What was said on the old ones may not have been heard.
            (ring.kick, ring.call) = (event(), event());
            let f = &nic.frontend;
            f.set_vring_kick(index, &ring.kick).expect("a kick");
            f.set_vring_call(index, &ring.call).expect("a call");
            ring.kick.write(1).expect("an eventfd");
            ring.call.write(1).expect("an eventfd");
        }
    });
}

/// No call descriptor: the driver looks for itself. No kick descriptor: nothing is promised, and nothing breaks.
fn polling() {
    const NONE: u64 = 0x100;
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let mut nic = Nic::connect(&passt, Shape::USUAL);
    gateway(&mut nic);
    for index in [0_u64, 1] {
        let body = (NONE | index).to_ne_bytes();
        let call = raw::message(raw::SET_VRING_CALL, &body);
        raw::send(&nic.socket, &call, &[]).expect("sent");
    }
    assert_eq!(nic.frontend.get_features().expect("served"), nic.offered);
    nic.pairs[0].rx.call.read().ok();
    nic.send(&arp_request());
    let mut found = false;
    let polled = poll_until(SOON, || {
        while let Some((_, frame)) = nic.try_receive(0) {
            found |= arp_reply(&frame).is_some();
        }
        found
    });
    assert!(polled, "no answer for who polls");
    assert!(
        !wait(&[nic.pairs[0].rx.call.as_fd_()], Duration::from_millis(20))[0],
        "called on a descriptor that was taken back"
    );
    for index in [0_u64, 1] {
        let body = (NONE | index).to_ne_bytes();
        let kick = raw::message(raw::SET_VRING_KICK, &body);
        raw::send(&nic.socket, &kick, &[]).expect("sent");
    }
    if answers(&nic.socket) {
        for index in [0, 1] {
            let ring = nic.ring(index);
            nic.frontend
                .set_vring_kick(index, &ring.kick)
                .expect("a kick");
            nic.frontend
                .set_vring_call(index, &ring.call)
                .expect("a call");
        }
        gateway(&mut nic);
    }
    drop(nic);
    gateway(&mut Nic::connect(&passt, Shape::USUAL));
    passt.stop();
}

fn enable_and_disable() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let mut nic = Nic::connect(&passt, Shape::USUAL);
    let mac = gateway(&mut nic);
    // Nothing is received into a ring that is off.
    nic.frontend.set_vring_enable(0, false).expect("disabled");
    nic.send(&arp_request());
    let early = nic.receive_within(Duration::from_millis(100), arp_reply);
    assert_eq!(early, None, "received on a ring that is off");
    nic.frontend.set_vring_enable(0, true).expect("enabled");
    gateway(&mut nic);
    // Nothing is taken from a ring that is off, and all of it afterwards.
    let echo = world.peer.udp((PEER4, 7054));
    nic.frontend.set_vring_enable(1, false).expect("disabled");
    nic.send(&udp(mac, (PEER4, 7054), 7000, b"late"));
    let mut buffer = [0; 10];
    echo.set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a timeout");
    assert!(
        echo.recv(&mut buffer).is_err(),
        "taken from a ring that is off"
    );
    nic.frontend.set_vring_enable(1, true).expect("enabled");
    nic.ring(1).kick.write(1).expect("an eventfd");
    echo.set_read_timeout(Some(SOON)).expect("a timeout");
    assert_eq!(echo.recv(&mut buffer).expect("it arrives"), 4);
    passt.stop();
}

fn one_off() {
    let world = World::direct();
    // Gone in order, in the middle of a message, before a word.
    for how in 0..3 {
        let passt = Passt::start(&world, &["--vhost-user", "--one-off"]);
        match how {
            0 => drop(gateway(&mut Nic::connect(&passt, Shape::USUAL))),
            1 => raw::send(&passt.dial(), &[1, 0, 0], &[]).expect("sent"),
            _ => drop(passt.dial()),
        }
        passt.ends(&[0]);
    }
}

fn second_client_is_refused() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let mut nic = Nic::connect(&passt, Shape::USUAL);
    for _ in 0..20 {
        let second = passt.dial();
        raw::send(&second, &raw::message(raw::GET_FEATURES, &[]), &[]).ok();
        let mut reply = [0; 20];
        assert!(
            (&second).read_exact(&mut reply).is_err(),
            "two clients are served at a time"
        );
        assert!(closes(&second, SOON), "the second client is left waiting");
    }
    gateway(&mut nic);
    passt.stop();
}

/// Connections take all descriptors there are. The machine can start again all the same, and a second one is turned
/// away.
fn out_of_descriptors() {
    let world = World::direct();
    let passt = Passt::start_limited(&world, &["--vhost-user", "-t", "7057"], 128);
    let mut nic = Nic::connect(&passt, Shape::USUAL);
    gateway(&mut nic);
    // The machine answers none of them, so they stay; the last is one too many.
    let crowd = |n: usize| -> Vec<TcpStream> {
        let mut all: Vec<_> = (0..n)
            .map(|_| world.peer.try_connect((HOST4, 7057)))
            .collect();
        let refused = match all.last_mut().expect("some") {
            Ok(last) => matches!(last.read(&mut [0]), Err(_) | Ok(0)),
            Err(_) => true,
        };
        assert!(refused, "the last is left waiting");
        all.into_iter().flatten().collect()
    };
    let mut held = crowd(140);
    for _ in 0..3 {
        let m = &nic.memory;
        let half = m.take(0, 2 << 20);
        let parts = [m.region(0, half), m.region(half, m.len() - half)];
        nic.frontend.set_mem_table(&parts).expect("a new table");
        reset(&mut nic);
        gateway(&mut nic);
        let second = passt.dial();
        assert!(closes(&second, SOON), "the second client is left waiting");
        held.extend(crowd(5));
    }
    passt.stop();
}

/// The machine dies while frames are on their way, with and without its memory being unmapped first.
fn vanishing() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user", "-u", "7055"]);
    let knock = world.peer.udp(("0.0.0.0", 0));
    knock.connect((HOST4, 7055)).expect("an address");
    for round in 0..40 {
        let mut nic = Nic::connect(&passt, Shape::USUAL.without(MQ));
        let mac = gateway(&mut nic);
        for _ in 0..20 {
            let header = crate::header::Header::default();
            nic.try_send(0, &header, &udp(mac, (PEER4, 9), 7000, &[0; 1000]));
            knock.send(&[0; 1000]).ok();
        }
        if round % 2 == 0 {
            nic.socket.shutdown(Shutdown::Both).expect("connected");
        }
    }
    gateway(&mut Nic::connect(&passt, Shape::USUAL));
    // And before its memory is known at all.
    drop(Nic::greet(&passt, Shape::USUAL, &Memory::new(256 << 20)));
    gateway(&mut Nic::connect(&passt, Shape::USUAL));
    passt.stop();
}
