//! UDP through the tap: flows, ports, sizes, groups, and errors.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};

use crate::exec::SOON;
use crate::harness::tests;
use crate::servers::udp_echo;
use crate::world::{GATEWAY4, Guest, HOST4, HOST6, PEER4, PEER6, World};

tests![
    source_port_is_preserved,
    all_sizes,
    one_socket_many_peers,
    many_sockets,
    many_in_one_call,
    answer_from_elsewhere_is_not_delivered,
    fragments_of_the_guest,
    multicast_query,
    multicast_query6,
    broadcast,
    port_unreachable,
    host_unreachable,
    busy_source_port,
    out_of_descriptors,
];

const PEERS: [&str; 2] = [PEER4, PEER6];

fn any(addr: &str) -> &'static str {
    if addr.contains(':') { "::" } else { "0.0.0.0" }
}

#[track_caller]
fn round_trip(socket: &UdpSocket, to: (&str, u16), data: &[u8]) {
    let mut buffer = vec![0; 65536];
    socket
        .send_to(data, to)
        .unwrap_or_else(|e| panic!("send {} to {to:?}: {e}", data.len()));
    let (n, from) = socket
        .recv_from(&mut buffer)
        .unwrap_or_else(|e| panic!("no answer to {} bytes to {to:?}: {e}", data.len()));
    assert!(
        buffer[..n] == *data,
        "sent {} bytes, got {n} others",
        data.len()
    );
    assert_eq!((from.ip().to_string().as_str(), from.port()), to);
}

fn source_port_is_preserved() {
    let w = World::direct();
    let g = w.guest(&[]);
    for (peer, host) in [(PEER4, HOST4), (PEER6, HOST6)] {
        let server = w.peer.udp((peer, 1000));
        let client = g.udp((any(peer), 40_000));
        client.send_to(b"hello", (peer, 1000)).expect("send");
        let mut buffer = [0; 100];
        let (n, from) = server.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..n], b"hello");
        assert_eq!(
            (from.ip().to_string().as_str(), from.port()),
            (host, 40_000)
        );
        server.send_to(b"answer", from).expect("send");
        let (n, from) = client.recv_from(&mut buffer).expect("the answer");
        assert_eq!(&buffer[..n], b"answer");
        assert_eq!((from.ip().to_string().as_str(), from.port()), (peer, 1000));
    }
}

fn all_sizes() {
    let w = World::direct();
    PEERS.iter().for_each(|p| udp_echo(&w.peer, (p, 1000)));
    let g = w.guest(&[]);
    for peer in PEERS {
        let client = g.udp((any(peer), 0));
        for size in [
            0, 1, 2, 17, 18, 19, 100, 511, 1231, 1472, 1473, 8192, 9001, 30_000, 65_000,
        ] {
            let data: Vec<u8> = (0..size)
                .map(|i: usize| u8::try_from(i % 251).expect("small"))
                .collect();
            round_trip(&client, (peer, 1000), &data);
        }
    }
}

fn one_socket_many_peers() {
    let w = World::direct();
    (1000..1050).for_each(|port| udp_echo(&w.peer, (PEER4, port)));
    let g = w.guest(&[]);
    let client = g.udp("0.0.0.0:0");
    for round in 0..3 {
        (1000..1050).for_each(|port| {
            round_trip(&client, (PEER4, port), format!("{port} {round}").as_bytes());
        });
    }
}

fn many_sockets() {
    let w = World::direct();
    udp_echo(&w.peer, (PEER4, 1000));
    let g = w.guest(&[]);
    let all: Vec<UdpSocket> = g.enter(|| {
        (0..300)
            .map(|_| UdpSocket::bind("0.0.0.0:0").expect("bind"))
            .collect()
    });
    for (i, socket) in all.iter().enumerate() {
        socket
            .set_read_timeout(Some(SOON))
            .expect("a socket option");
        round_trip(socket, (PEER4, 1000), format!("socket {i}").as_bytes());
    }
}

/// A burst handed to the guest's kernel as one (segmentation offload) arrives as the datagrams it is.
fn many_in_one_call() {
    let w = World::direct();
    let g = w.guest(&[]);
    for (peer, mtu) in [(PEER4, 65520), (PEER6, 1500)] {
        g.sh(&format!("ip link set host0 mtu {mtu}"));
        let server = w.peer.udp((peer, 1000));
        let client = g.udp((any(peer), 0));
        setsockopt(&client, sockopt::UdpGsoSegment, &1200).expect("UDP_SEGMENT");
        let data: Vec<u8> = (0..1200 * 20 + 7)
            .map(|i: usize| u8::try_from(i / 1200).expect("small"))
            .collect();
        client.send_to(&data, (peer, 1000)).expect("send");
        let mut buffer = [0; 2000];
        for i in 0..=20_usize {
            let (n, _) = server
                .recv_from(&mut buffer)
                .unwrap_or_else(|e| panic!("datagram {i} to {peer}: {e}"));
            assert_eq!(n, if i == 20 { 7 } else { 1200 });
            assert!(
                buffer[..n].iter().all(|b| usize::from(*b) == i),
                "datagram {i} to {peer}"
            );
        }
    }
}

/// Only the peer the guest talks to may answer, and only from where it was asked.
fn answer_from_elsewhere_is_not_delivered() {
    let w = World::direct();
    let (server, stranger) = (w.peer.udp((PEER4, 1000)), w.peer.udp((PEER4, 1001)));
    let g = w.guest(&[]);
    let client = g.udp("0.0.0.0:40001");
    client.send_to(b"hello", (PEER4, 1000)).expect("send");
    let mut buffer = [0; 100];
    let (_, from) = server.recv_from(&mut buffer).expect("a datagram");
    stranger.send_to(b"bad", from).ok();
    server.send_to(b"good", from).expect("send");
    let (n, _) = client.recv_from(&mut buffer).expect("the answer");
    assert_eq!(&buffer[..n], b"good");
}

/// 60000 bytes under an MTU of 1500: 41 fragments that must come out as one datagram.
fn fragments_of_the_guest() {
    let w = World::direct();
    let g = w.guest(&["-m", "1500"]);
    for peer in PEERS {
        let server = w.peer.udp((peer, 1000));
        let client = g.udp((any(peer), 0));
        let data: Vec<u8> = (0..60_000)
            .map(|i: usize| u8::try_from(i % 249).expect("small"))
            .collect();
        for _ in 0..3 {
            client.send_to(&data, (peer, 1000)).expect("send");
            let mut buffer = vec![0; 65536];
            let (n, _) = server
                .recv_from(&mut buffer)
                .unwrap_or_else(|e| panic!("to {peer}: {e}"));
            assert!(buffer[..n] == data, "{n} bytes arrived, or others");
        }
    }
}

/// As a DNS-SD or SSDP client does: ask a group, be answered by one of its members from its own address.
fn multicast_query() {
    let w = World::direct();
    let group = Ipv4Addr::new(239, 255, 255, 250);
    let member = w.peer.udp("0.0.0.0:1900");
    w.peer
        .enter(|| member.join_multicast_v4(&group, &GATEWAY4.parse().expect("an address")))
        .expect("join");
    let g = w.guest(&["--no-map-gw"]);
    let client = g.udp("0.0.0.0:0");
    client.send_to(b"who?", (group, 1900)).expect("send");
    let mut buffer = [0; 100];
    let (n, from) = member.recv_from(&mut buffer).expect("the query leaves");
    assert_eq!(
        (&buffer[..n], from.ip().to_string().as_str()),
        (&b"who?"[..], HOST4)
    );
    member.send_to(b"me", from).expect("send");
    let (n, from) = client
        .recv_from(&mut buffer)
        .expect("the answer comes back");
    assert_eq!(
        (&buffer[..n], from.ip().to_string().as_str()),
        (&b"me"[..], GATEWAY4)
    );
}

fn multicast_query6() {
    let w = World::direct();
    let group: Ipv6Addr = "ff05::c".parse().expect("an address");
    let index = w
        .peer
        .sh("cat /proc/net/if_inet6 | awk '$6 == \"peer0\" { print $2; exit }'");
    let index = u32::from_str_radix(index.trim(), 16).expect("an index");
    let member = w.peer.udp("[::]:1900");
    w.peer
        .enter(|| member.join_multicast_v6(&group, index))
        .expect("join");
    let g = w.guest(&["--no-map-gw"]);
    let client = g.udp("[::]:0");
    client.send_to(b"who?", (group, 1900)).expect("send");
    let mut buffer = [0; 100];
    let (n, from) = member.recv_from(&mut buffer).expect("the query leaves");
    assert_eq!(&buffer[..n], b"who?");
    member.send_to(b"me", from).expect("send");
    let (n, _) = client
        .recv_from(&mut buffer)
        .expect("the answer comes back");
    assert_eq!(&buffer[..n], b"me");
}

fn broadcast() {
    let w = World::direct();
    let server = w.peer.udp("0.0.0.0:1000");
    let g = w.guest(&[]);
    for to in ["198.51.100.255", "255.255.255.255"] {
        let client = g.udp("0.0.0.0:0");
        client.set_broadcast(true).expect("a socket option");
        client.send_to(b"all", (to, 1000)).expect("send");
        let mut buffer = [0; 100];
        let (n, from) = server
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("to {to}: {e}"));
        assert_eq!(
            (&buffer[..n], from.ip().to_string().as_str()),
            (&b"all"[..], HOST4)
        );
    }
}

#[track_caller]
fn error_after_sending(g: &Guest, to: (&str, u16)) -> ErrorKind {
    let client = g.udp((any(to.0), 0));
    client.connect(to).expect("a route");
    if to.0.contains(':') {
        setsockopt(&client, sockopt::Ipv6RecvErr, &true).expect("IPV6_RECVERR");
    } else {
        setsockopt(&client, sockopt::Ipv4RecvErr, &true).expect("IP_RECVERR");
    }
    client.send(b"anybody?").expect("send");
    client.recv(&mut [0; 10]).expect_err("an error").kind()
}

fn port_unreachable() {
    let w = World::direct();
    let g = w.guest(&[]);
    for peer in PEERS {
        assert_eq!(
            error_after_sending(&g, (peer, 999)),
            ErrorKind::ConnectionRefused,
            "{peer}"
        );
    }
}

fn host_unreachable() {
    let w = World::routed(65520);
    w.router
        .as_ref()
        .expect("a router")
        .sh("ip route add unreachable 203.0.113.77; ip -6 route add unreachable 2001:db8:99::77");
    let g = w.guest(&[]);
    for to in ["203.0.113.77", "2001:db8:99::77"] {
        let kind = error_after_sending(&g, (to, 1000));
        assert!(
            matches!(
                kind,
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            ),
            "{to}: {kind:?}"
        );
    }
}

/// A source port that somebody on the host uses already is no reason to fail.
fn busy_source_port() {
    let w = World::direct();
    udp_echo(&w.peer, (PEER4, 1000));
    let _busy = w.host.udp("0.0.0.0:40002");
    let g = w.guest(&[]);
    let client = g.udp("0.0.0.0:40002");
    round_trip(&client, (PEER4, 1000), b"hello");
}

/// More flows than descriptors: nothing worse happens than that old flows make room, or new ones wait.
fn out_of_descriptors() {
    let w = World::direct();
    udp_echo(&w.peer, (PEER4, 1000));
    let g = w.guest_with_files(256);
    let all: Vec<UdpSocket> = (0..400).map(|_| g.udp("0.0.0.0:0")).collect();
    for socket in &all {
        socket.send_to(b"hello", (PEER4, 1000)).expect("send");
    }
    let answered = || {
        let mut buffer = [0; 10];
        all.iter()
            .filter(|s| s.set_nonblocking(true).is_ok() && s.recv_from(&mut buffer).is_ok())
            .count()
    };
    let mut total = 0;
    let enough = crate::exec::poll_until(SOON, || {
        total += answered();
        total >= 128
    });
    assert!(enough, "only {total} answers");
}
