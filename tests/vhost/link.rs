//! What happens on the link itself: ARP, DHCP, single datagrams, frames of every shape.

use std::time::Duration;

use crate::exec::SOON;
use crate::frames::{arp_reply, arp_request, dhcp, dhcp_answer, udp, udp_to, v4};
use crate::harness::tests;
use crate::header::Header;
use crate::nic::{
    Cut, EVENT_IDX, EVERYTHING, GUEST_CSUM, INDIRECT_DESC, MRG_RXBUF, Nic, PROTOCOL, Shape,
    VERSION_1,
};
use crate::passt::Passt;
use crate::world::{HOST4, PEER4, World};

tests![
    arp_and_dhcp,
    features_on_offer,
    frames_of_every_length,
    layouts_of_frames,
    ring_sizes,
    rings_go_round,
    stream_arp_and_dhcp,
];

/// The MAC address behind the gateway: the card is served.
#[track_caller]
pub fn gateway(nic: &mut Nic) -> [u8; 6] {
    nic.send(&arp_request());
    nic.receive(arp_reply)
}

fn arp_and_dhcp() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let mut nic = Nic::connect(&passt, Shape::USUAL);
    gateway(&mut nic);
    nic.send(&dhcp(None));
    assert_eq!(nic.receive(dhcp_answer), (2, v4(HOST4)));
    nic.send(&dhcp(Some(v4(HOST4))));
    assert_eq!(nic.receive(dhcp_answer), (5, v4(HOST4)));
    passt.stop();
}

fn features_on_offer() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let nic = Nic::connect(&passt, Shape::USUAL);
    let least = VERSION_1 | PROTOCOL | MRG_RXBUF | GUEST_CSUM;
    assert_eq!(nic.offered & least, least, "{:#x}", nic.offered);
    if !crate::differences::established() {
        let left = EVERYTHING & !nic.offered & !crate::nic::MQ;
        assert_eq!(left, 0, "not on offer: {left:#x} of {:#x}", nic.offered);
    }
    passt.stop();
}

/// Datagrams of many lengths go out and come back unharmed.
#[track_caller]
pub fn echoes(nic: &mut Nic, world: &World, lengths: &[usize]) {
    let mac = gateway(nic);
    let echo = world.peer.udp((PEER4, 7007));
    for (i, len) in lengths.iter().enumerate() {
        let payload: Vec<u8> = (0..*len).map(|b| b.to_le_bytes()[0] ^ 0x5a).collect();
        nic.send(&udp(mac, (PEER4, 7007), 7000, &payload));
        let mut buffer = vec![0; 70_000];
        let (n, from) = echo
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("datagram {i} of {len} bytes: {e}"));
        assert_eq!(buffer[..n], payload, "datagram of {len} bytes");
        echo.send_to(&payload, from).expect("sent");
        let back = nic.receive(|f| udp_to(f, 7000));
        assert!(back == payload, "echo of {len} bytes: {} came", back.len());
    }
}

fn frames_of_every_length() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let mut nic = Nic::connect(&passt, Shape::USUAL);
    let mut lengths: Vec<usize> = (0..130).chain(1440..1560).collect();
    // Around one, two and three receive buffers of 1536 bytes, and the longest.
    lengths.extend((3000..3090).chain(4530..4620).step_by(3));
    lengths.extend([8191, 16_384, 32_768, 65_000, 65_478]);
    echoes(&mut nic, &world, &lengths);
    passt.stop();
}

fn layouts_of_frames() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    for cut in [
        Cut::Whole,
        Cut::HeaderApart,
        Cut::Pieces(1),
        Cut::Pieces(100),
    ] {
        for features in [EVERYTHING, EVERYTHING & !INDIRECT_DESC, MRG_RXBUF, 0] {
            let shape = Shape {
                cut,
                // Without merging, each buffer must be able to take the longest frame.
                room: if features & MRG_RXBUF == 0 {
                    66_000
                } else {
                    256
                },
                ..Shape::USUAL.with(features)
            };
            println!("{shape:x?}");
            let mut nic = Nic::connect(&passt, shape);
            echoes(
                &mut nic,
                &world,
                &[0, 1, 17, 18, 19, 100, 1472, 9000, 30_000],
            );
        }
    }
    passt.stop();
}

fn ring_sizes() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let mut size = 2_u16;
    loop {
        for features in [EVERYTHING, EVERYTHING & !EVENT_IDX & !INDIRECT_DESC] {
            let shape = Shape {
                ring: size,
                room: 2048,
                posted: 1024,
                ..Shape::USUAL.with(features)
            };
            let mut nic = Nic::connect(&passt, shape);
            // Two receive buffers take 4 KiB.
            echoes(&mut nic, &world, &[10, 1400, 1472, 100, 0, 700]);
        }
        if size == 32_768 {
            break;
        }
        size *= 2;
    }
    passt.stop();
}

/// More frames than the indices of a ring can count.
fn rings_go_round() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let mut nic = Nic::connect(
        &passt,
        Shape {
            ring: 64,
            ..Shape::USUAL
        },
    );
    let mac = gateway(&mut nic);
    // To a port that passt does not forward into a group that nobody is in: taken and gone.
    let frame = udp(mac, ("203.0.113.77", 9), 7000, b"x");
    for _ in 0..70_000 {
        while !nic.try_send(0, &Header::default(), &frame) {
            nic.reclaim(0);
        }
    }
    let end = std::time::Instant::now() + SOON;
    while !nic.all_taken() {
        assert!(std::time::Instant::now() < end, "not all are taken");
        std::thread::sleep(Duration::from_millis(1));
    }
    echoes(&mut nic, &world, &[100]);
    passt.stop();
}

fn stream_arp_and_dhcp() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let mut client = crate::stream::Client::connect(&passt);
    client.send(&arp_request());
    client.receive(arp_reply);
    client.send(&dhcp(None));
    assert_eq!(client.receive(dhcp_answer), (2, v4(HOST4)));
    passt.stop();
}
