//! Data for a guest that has no buffers at the moment: nothing may be lost by that, and nothing may come twice.

use std::io::Write;
use std::time::Duration;

use crate::frames::{arp_request, tcp, tcp_to};
use crate::harness::tests;
use crate::header::{Header, NEEDS_CSUM};
use crate::link::gateway;
use crate::nic::{Nic, Shape};
use crate::passt::Passt;
use crate::world::{PEER4, World, accept};

tests![probe_without_room];

const OUR_PORT: u16 = 40_000;
const PORT: u16 = 7060;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// Receive buffers.
const BUFFERS: u16 = 8;

/// Sends a segment, its checksum unfinished.
#[track_caller]
fn say(nic: &mut Nic, gateway: [u8; 6], flags: u8, seq: u32, ack: u32) {
    let header = Header {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..Header::default()
    };
    let frame = tcp(gateway, (PEER4, PORT), OUR_PORT, (flags, seq, ack));
    assert!(nic.try_send(0, &header, &frame), "the ring is full");
}

/// A segment to us with payload: where it begins, and what it is.
fn payload(frame: &[u8]) -> Option<(u32, Vec<u8>)> {
    tcp_to(frame, OUR_PORT).filter(|(_, data)| !data.is_empty())
}

/// A byte is in flight when the guest runs out of buffers, and what is sent again to probe for it finds no room. When there
/// is room again, that byte may come again, in its place: not as a new one behind it.
fn probe_without_room() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let shape = Shape {
        ring: BUFFERS,
        posted: usize::from(BUFFERS),
        ..Shape::USUAL
    };
    let mut nic = Nic::connect(&passt, shape);
    let gateway = gateway(&mut nic);
    let listener = world.peer.listen((PEER4, PORT));
    say(&mut nic, gateway, SYN, 1000, 0);
    let (first, _) = nic.receive(|f| tcp_to(f, OUR_PORT));
    let start = first.wrapping_add(1);
    say(&mut nic, gateway, ACK, 1001, start);
    let (mut server, _) = accept(&listener);
    // Two bytes, of which the first is acknowledged: that much is peeked behind what is not consumed.
    for (n, byte) in (0..).zip([b"a", b"b"]) {
        server.write_all(byte).expect("connected");
        let (seq, data) = nic.receive(payload);
        assert_eq!((seq, &data[..]), (start.wrapping_add(n), &byte[..]));
    }
    say(&mut nic, gateway, ACK, 1001, start.wrapping_add(1));
    // Answers that nobody takes out fill the ring.
    for _ in 0..2 * BUFFERS {
        nic.send(&arp_request());
    }
    // The probe comes after some 70 ms, the timeout 200 ms later: a silence between the two.
    std::thread::sleep(Duration::from_millis(170));
    // (On a busy machine the first byte may have come again, too.)
    let again = |f: &[u8]| payload(f).filter(|s| s.0 != start);
    let (seq, data) = nic.receive(again);
    assert_eq!(
        (seq.wrapping_sub(start), &data[..]),
        (1, &b"b"[..]),
        "what is sent again"
    );
    say(&mut nic, gateway, ACK, 1001, start.wrapping_add(2));
    server.write_all(b"c").expect("connected");
    let new = |f: &[u8]| again(f).filter(|s| s.0 != start.wrapping_add(1));
    let (seq, data) = nic.receive(new);
    assert_eq!((seq.wrapping_sub(start), &data[..]), (2, &b"c"[..]));
    passt.stop();
}
