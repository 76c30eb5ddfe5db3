//! TCP and UDP of a real kernel, over every combination of offloads and layouts.

use std::io::{IoSlice, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt::UdpGsoSegment};

use crate::exec::SOON;
use crate::harness::tests;
use crate::nic::{
    CSUM, Cut, EVENT_IDX, EVERYTHING, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6,
    HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO, INDIRECT_DESC, MRG_RXBUF, Nic, Shape,
};
use crate::passt::Passt;
use crate::pump::{Guest, StreamGuest};
use crate::servers::{check_pattern, send_pattern};
use crate::world::{HOST4, HOST6, Netns, PEER4, PEER6, World, accept, bounded};

tests![
    combinations,
    datagram_bursts,
    datagrams,
    hundred_megabytes,
    hundred_megabytes_at_mtu_1500,
    inbound,
    many_connections,
    queue_pairs,
    stream_hundred_megabytes,
    stream_hundred_megabytes_at_mtu_1500,
    stream_in_small_pieces,
    stream_inbound,
];

const MIB: u64 = 1 << 20;

/// `n` bytes through a connection from `from` to `addr` in `to`, and `back` bytes the other way after that.
#[track_caller]
pub fn transfer(from: &Netns, to: &Netns, addr: (&str, u16), n: u64, back: u64) {
    let listener = to.listen(addr);
    let client = from.connect(addr);
    exchange(client, &listener, n, back, &format!("{addr:?}"));
}

/// The same over a connection that `client` has made to `listener`.
#[track_caller]
pub fn exchange(mut client: TcpStream, listener: &TcpListener, n: u64, back: u64, what: &str) {
    let (mut server, _) = accept(listener);
    std::thread::scope(|s| {
        let writer = s.spawn(move || {
            send_pattern(&mut client, n).expect("bytes are taken");
            client.shutdown(Shutdown::Write).expect("connected");
            check_pattern(&mut client)
        });
        assert_eq!(check_pattern(&mut server), Ok(n), "{what}, there");
        send_pattern(&mut server, back).expect("bytes are taken");
        drop(server);
        assert_eq!(
            writer.join().expect("no panic"),
            Ok(back),
            "{what}, and back"
        );
    });
}

fn hundred_megabytes_with(mtu: u32) {
    let world = World::direct();
    let mtu_text = mtu.to_string();
    let passt = Passt::start(&world, &["--vhost-user", "-m", &mtu_text]);
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), mtu);
    transfer(&guest, &world.peer, (PEER4, 7001), 100 * MIB, 100 * MIB);
    transfer(&guest, &world.peer, (PEER6, 7001), 30 * MIB, 30 * MIB);
    guest.unplug();
    passt.stop();
}

fn hundred_megabytes() {
    hundred_megabytes_with(65_520);
}

fn hundred_megabytes_at_mtu_1500() {
    hundred_megabytes_with(1500);
}

/// Everything but each feature, each alone with what it needs, and other layouts of buffers.
fn combinations() {
    let segments = GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;
    let host_segments = HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
    let large = |features| Shape {
        room: 66_000,
        posted: 128,
        ..Shape::USUAL.with(features)
    };
    let shapes = [
        large(0),
        large(EVERYTHING & !MRG_RXBUF),
        large(EVERYTHING & !MRG_RXBUF & !INDIRECT_DESC & !EVENT_IDX),
        large(GUEST_CSUM | GUEST_TSO4),
        large(GUEST_CSUM | GUEST_TSO6 | EVENT_IDX),
        Shape::USUAL.with(MRG_RXBUF),
        Shape::USUAL.with(MRG_RXBUF | CSUM),
        Shape::USUAL.with(MRG_RXBUF | CSUM | HOST_TSO4),
        Shape::USUAL.with(MRG_RXBUF | CSUM | HOST_TSO6 | INDIRECT_DESC),
        Shape::USUAL.without(EVENT_IDX),
        Shape::USUAL.without(INDIRECT_DESC),
        Shape::USUAL.without(segments),
        Shape::USUAL.without(segments | GUEST_CSUM),
        Shape::USUAL.without(host_segments),
        Shape::USUAL.without(host_segments | CSUM),
        Shape {
            cut: Cut::Pieces(1000),
            room: 300,
            ..Shape::USUAL
        },
        Shape {
            cut: Cut::Whole,
            ring: 1024,
            room: 65_562,
            posted: 64,
            ..Shape::USUAL
        },
        // Fewer buffers than a super-frame needs.
        Shape {
            ring: 4,
            posted: 4,
            room: 2048,
            ..Shape::USUAL
        },
        Shape {
            cut: Cut::Pieces(2500),
            ring: 32,
            posted: 32,
            ..Shape::USUAL.without(INDIRECT_DESC)
        },
    ];
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    for (i, shape) in shapes.into_iter().enumerate() {
        // A guest without merging and large receive buffers has an Ethernet's MTU; others take turns.
        let mtu = if i % 2 == 0 { 1500 } else { 65_520 };
        println!("{i}: {shape:x?}, MTU {mtu}");
        let guest = Guest::new(Nic::connect(&passt, shape), mtu);
        for (addr, amount) in [(PEER4, 4 * MIB), (PEER6, 2 * MIB)] {
            let port = 7100 + u16::try_from(i).expect("few");
            transfer(&guest, &world.peer, (addr, port), amount, amount);
        }
        guest.unplug();
        Netns::retire("guest");
    }
    passt.stop();
}

fn echo_datagrams(guest: &Netns, world: &World) {
    for addr in [PEER4, PEER6] {
        let server = world.peer.udp((addr, 7010));
        let client = guest.udp(if addr == PEER4 {
            ("0.0.0.0", 0)
        } else {
            ("::", 0)
        });
        client.connect((addr, 7010)).expect("an address");
        for len in [0_usize, 1, 2, 1471, 1472, 1473, 8000, 30_001, 65_000] {
            let payload: Vec<u8> = (0..len).map(|b| b.to_le_bytes()[0]).collect();
            client.send(&payload).expect("sent");
            let mut buffer = vec![0; 70_000];
            let (n, from) = server
                .recv_from(&mut buffer)
                .unwrap_or_else(|e| panic!("{len} bytes to {addr}: {e}"));
            assert_eq!(buffer[..n], payload);
            server.send_to(&payload, from).expect("sent");
            let n = client
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("{len} bytes from {addr}: {e}"));
            assert_eq!(buffer[..n], payload);
        }
    }
}

fn datagrams() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    for features in [EVERYTHING, MRG_RXBUF, MRG_RXBUF | CSUM | GUEST_CSUM] {
        let nic = Nic::connect(&passt, Shape::USUAL.with(features));
        let guest = Guest::new(nic, 65_520);
        echo_datagrams(&guest, &world);
        guest.unplug();
        Netns::retire("guest");
    }
    passt.stop();
}

/// Bursts that a kernel with UDP segmentation hands over in one piece, either way.
fn datagram_bursts() {
    const SEGMENT: usize = 1200;
    const COUNT: usize = 40;
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    for features in [
        EVERYTHING,
        EVERYTHING & !HOST_USO & !GUEST_USO4 & !GUEST_USO6,
    ] {
        let guest = Guest::new(Nic::connect(&passt, Shape::USUAL.with(features)), 1500);
        let server = world.peer.udp((PEER4, 7011));
        let client = guest.udp(("0.0.0.0", 7012));
        client.connect((PEER4, 7011)).expect("an address");
        setsockopt(
            &client,
            UdpGsoSegment,
            &i32::try_from(SEGMENT).expect("small"),
        )
        .expect("Linux 4.18");
        let burst: Vec<u8> = (0..SEGMENT * COUNT + 77)
            .map(|b| (b / 7).to_le_bytes()[0])
            .collect();
        client.send(&burst).expect("one call");
        let mut from = None;
        collect(&server, &burst, SEGMENT, &mut from);
        let Some(SocketAddr::V4(from)) = from else {
            panic!("no sender");
        };
        setsockopt(
            &server,
            UdpGsoSegment,
            &i32::try_from(SEGMENT).expect("small"),
        )
        .expect("Linux 4.18");
        sendmsg(
            server.as_raw_fd(),
            &[IoSlice::new(&burst)],
            &[],
            MsgFlags::empty(),
            Some(&SockaddrIn::from(from)),
        )
        .expect("one call");
        collect(&client, &burst, SEGMENT, &mut None);
        guest.unplug();
        Netns::retire("guest");
    }
    passt.stop();
}

#[track_caller]
fn collect(
    socket: &std::net::UdpSocket,
    burst: &[u8],
    segment: usize,
    from: &mut Option<SocketAddr>,
) {
    let mut buffer = vec![0; 70_000];
    for (i, wanted) in burst.chunks(segment).enumerate() {
        let (n, sender) = socket
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("datagram {i}: {e}"));
        assert_eq!(n, wanted.len(), "datagram {i}");
        assert!(buffer[..n] == *wanted, "datagram {i} has changed");
        *from = Some(sender);
    }
}

fn inbound() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user", "-t", "7020", "-u", "7021"]);
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), 65_520);
    inbound_into(&guest, &world);
    guest.unplug();
    passt.stop();
}

fn inbound_into(guest: &Netns, world: &World) {
    for addr in [HOST4, HOST6] {
        transfer(&world.peer, guest, (addr, 7020), 10 * MIB, 10 * MIB);
        let server = guest.udp((addr, 7021));
        let client = world.peer.udp(if addr == HOST4 {
            ("0.0.0.0", 0)
        } else {
            ("::", 0)
        });
        client.connect((addr, 7021)).expect("an address");
        client.send(b"knock").expect("sent");
        let mut buffer = [0; 100];
        let (n, from) = server.recv_from(&mut buffer).expect("it arrives");
        assert_eq!(&buffer[..n], b"knock");
        server.send_to(b"who is there?", from).expect("sent");
        let n = client.recv(&mut buffer).expect("an answer");
        assert_eq!(&buffer[..n], b"who is there?");
    }
}

fn many_connections() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), 1500);
    short_connections(&guest, &world, 500);
    guest.unplug();
    passt.stop();
}

fn short_connections(guest: &Netns, world: &World, count: u32) {
    let listener = world.peer.listen((PEER4, 7030));
    crate::servers::serve(listener, |mut stream| {
        if check_pattern(&mut stream) == Ok(3000) {
            stream.write_all(b"y").ok();
        }
    });
    guest.enter(|| {
        for i in 0..count {
            let to = SocketAddr::from((crate::frames::v4(PEER4), 7030));
            let stream =
                TcpStream::connect_timeout(&to, SOON).unwrap_or_else(|e| panic!("{i}: {e}"));
            let mut stream = bounded(stream).expect("a timeout");
            send_pattern(&mut stream, 3000).expect("sent");
            stream.shutdown(Shutdown::Write).expect("connected");
            let mut answer = Vec::new();
            std::io::Read::read_to_end(&mut stream, &mut answer)
                .unwrap_or_else(|e| panic!("{i}: {e}"));
            assert_eq!(answer, b"y", "connection {i}");
        }
    });
}

/// Flows on several pairs of queues; what comes back uses the pair the guest has chosen.
fn queue_pairs() {
    const PAIRS: u16 = 4;
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let nic = Nic::connect(
        &passt,
        Shape {
            pairs: PAIRS,
            ..Shape::USUAL
        },
    );
    let guest = Guest::new(nic, 1500);
    std::thread::scope(|s| {
        let guest = &guest;
        let world = &world;
        for port in 7040..7048 {
            s.spawn(move || {
                transfer(guest, &world.peer, (PEER4, port), 3 * MIB, 3 * MIB);
            });
        }
    });
    let nic = guest.unplug();
    let most: u64 = nic.arrived.iter().sum();
    let used = nic.arrived.iter().filter(|n| **n > most / 100).count();
    assert!(used >= 2, "frames by pair: {:?}", nic.arrived);
    // Two flows that cannot be told apart share a pair.
    assert!(
        nic.astray <= most / 4,
        "{} of {most} frames came on another pair than their flow was sent on",
        nic.astray
    );
    passt.stop();
}

fn stream_hundred_megabytes_with(mtu: u32) {
    let world = World::direct();
    let passt = Passt::start(&world, &["-m", &mtu.to_string()]);
    let guest = StreamGuest::new(passt.dial(), mtu, usize::MAX);
    transfer(&guest, &world.peer, (PEER4, 7001), 100 * MIB, 100 * MIB);
    transfer(&guest, &world.peer, (PEER6, 7001), 10 * MIB, 10 * MIB);
    echo_datagrams(&guest, &world);
    guest.unplug();
    passt.stop();
}

fn stream_hundred_megabytes() {
    stream_hundred_megabytes_with(65_520);
}

fn stream_hundred_megabytes_at_mtu_1500() {
    stream_hundred_megabytes_with(1500);
}

fn stream_in_small_pieces() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    for piece in [1, 3, 1000] {
        let guest = StreamGuest::new(crate::stream::Client::connect(&passt).socket, 1500, piece);
        let amount = if piece < 10 { 200_000 } else { 10 * MIB };
        transfer(&guest, &world.peer, (PEER4, 7002), amount, amount);
        guest.unplug();
        Netns::retire("guest");
    }
    passt.stop();
}

fn stream_inbound() {
    let world = World::direct();
    let passt = Passt::start(&world, &["-t", "7020", "-u", "7021"]);
    let guest = StreamGuest::new(passt.dial(), 65_520, usize::MAX);
    inbound_into(&guest, &world);
    guest.unplug();
    passt.stop();
}

/// Used by the tests of a connection's life: bytes keep flowing, one by one.
#[track_caller]
pub fn ping_pong(a: &mut TcpStream, b: &mut TcpStream, what: &str) {
    use std::io::Read;
    for _ in 0..3 {
        a.write_all(b"a").unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut one = [0];
        b.read_exact(&mut one)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        b.write_all(b"b").unwrap_or_else(|e| panic!("{what}: {e}"));
        a.read_exact(&mut one)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}
