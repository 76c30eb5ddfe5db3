//! From outside into the namespace: who is seen there, what happens when nobody listens, how connections end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};

use crate::differences::established;
use crate::exec::{SOON, nothing_left, poll_until};
use crate::harness::tests;
use crate::reach::{
    FAMILIES, Family, Protocol, Server, WAYS, Way, abort, clones, closed, datagrams, exchange,
    reachable_within, sees_reset, transfer, try_reach, udp_to,
};
use crate::servers::{check_pattern, echo, send_pattern, udp_echo};
use crate::world::{Guest, HOST4, HOST6, Netns, PEER4, PEER6, World, accept, bounded};
use Protocol::{Tcp, Udp};
use Way::{Loopback, Tap};

tests![
    sources_for_podman,
    sources_by_default,
    sources_without_splice,
    sources_behind_the_host,
    never_from_loopback,
    forged_sources,
    link_local,
    follows_the_guest,
    nobody_listens,
    nobody_listens_udp,
    server_comes_and_goes,
    half_close_by_the_client,
    half_close_by_the_server,
    reset_by_the_client,
    reset_by_the_server,
    server_does_not_read,
    client_does_not_read,
    many_at_once,
    many_in_a_row,
    one_family_only,
    family_off_on_the_host,
    udp_many_clients,
    udp_answers_from_the_address_asked,
    udp_bursts,
    udp_both_ways_on_one_port,
    udp_client_gone,
    udp_churn,
    end_in_the_middle,
    syn_is_retried,
    client_gives_up,
    short_accept_queue,
    nonlocal_bind,
];

const MIB: u64 = 1 << 20;

/// Connects and exchanges; the client as the server saw it.
#[track_caller]
fn source(protocol: Protocol, way: &World, from: Way, to: &str, server: &Server) -> String {
    let client = match from {
        Tap => &way.peer,
        Loopback => &way.host,
    };
    match protocol {
        Tcp => {
            exchange(client.connect((to, 8080)), 1000);
            server.seen().peer_ip()
        }
        Udp => datagrams(client, (to, 8080), server).0.peer_ip(),
    }
}

/// Asks from everywhere, with both protocols: way, destination, expected source.
#[track_caller]
fn sources(options: &[&str], expected: &[(Way, &str, &str)]) {
    let w = World::direct();
    let g = w.guest(&[&["-t", "8080", "-u", "8080"], options].concat());
    for protocol in [Tcp, Udp] {
        let v4 = Server::new(protocol, &g, (HOST4, 8080));
        let v6 = Server::new(protocol, &g, (HOST6, 8080));
        for (from, to, source_inside) in expected {
            let server = if to.contains(':') { &v6 } else { &v4 };
            assert_eq!(
                source(protocol, &w, *from, to, server),
                *source_inside,
                "{protocol:?} {from:?} to {to} with {options:?}"
            );
        }
    }
}

fn sources_for_podman() {
    sources(
        &["--no-map-gw", "--map-guest-addr", "169.254.1.2"],
        &[
            (Loopback, "127.0.0.1", HOST4),
            (Loopback, HOST4, "169.254.1.2"),
            (Loopback, "::1", HOST6),
            (Loopback, HOST6, "2001:db8:51::2"),
            (Tap, HOST4, "198.51.100.2"),
            (Tap, HOST6, "2001:db8:51::2"),
        ],
    );
}

fn sources_by_default() {
    sources(
        &[],
        &[
            (Loopback, "127.0.0.1", HOST4),
            (Loopback, "127.9.9.9", HOST4),
            (Loopback, "::1", HOST6),
            (Loopback, HOST4, "198.51.100.2"),
            (Loopback, HOST6, "2001:db8:51::2"),
            (Tap, HOST4, "198.51.100.2"),
            (Tap, HOST6, "2001:db8:51::2"),
        ],
    );
}

/// What loopback looks like when it has to use the tap: the address that leads to it.
fn sources_without_splice() {
    sources(
        &["--no-splice", "--map-host-loopback", "192.0.2.77"],
        &[
            (Loopback, "127.0.0.1", "192.0.2.77"),
            (Loopback, "::1", "2001:db8:51::2"),
            (Tap, HOST4, "198.51.100.2"),
        ],
    );
}

/// Addresses far away arrive unchanged.
fn sources_behind_the_host() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    for (far, host) in [(PEER4, HOST4), (PEER6, HOST6)] {
        let server = Server::tcp(&g, (host, 8080));
        let client = w.peer.start(&format!(
            "exec curl -s --interface {far} -m 60 http://{}:8080/",
            if far.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            }
        ));
        assert_eq!(server.seen().peer_ip(), far);
        client.finish(SOON);
    }
}

/// Nothing from outside may look like loopback inside, and nothing reaches what listens on loopback only.
fn never_from_loopback() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080", "-u", "8080"]);
    for family in FAMILIES {
        let _private = g.listen((family.loopback(), 8080));
        for way in [Tap, Loopback] {
            let (client, to) = way.client(&w, family);
            let told = try_reach(Tcp, client, (to, 8080));
            assert_eq!(told, Err(ErrorKind::ConnectionReset), "{family:?} {way:?}");
        }
    }
}

/// Linux takes UDP packets from these IPv6 addresses off the wire. One looks like the host's loopback on a dual-stack
/// socket, answers to the other go to the host's loopback.
fn forged_sources() {
    let w = World::direct();
    let g = w.guest(&["-u", "8080", "--host-lo-to-ns-lo"]);
    let servers = [
        Server::udp(&g.ns, ("127.0.0.1", 8080)),
        Server::udp(&g.ns, ("::1", 8080)),
        Server::udp(&g.ns, (HOST4, 8080)),
        Server::udp(&g.ns, (HOST6, 8080)),
    ];
    for source in ["::ffff:127.0.0.1", "::"] {
        let packet = udp6(source.parse().expect("an address"), 8080, b"forged");
        let to = format!("[{HOST6}]:0").parse().expect("an address");
        w.peer
            .enter(|| send_raw6(&packet, to))
            .expect("a raw socket");
    }
    // The last server gets nothing but this, the others nothing at all.
    let client = udp_to(&w.peer, (HOST6, 8080));
    client.send(b"genuine").expect("send");
    client.recv(&mut [0; 10]).expect("an answer");
    for (i, server) in servers.iter().enumerate() {
        let seen = server.so_far();
        assert_eq!(seen.len(), usize::from(i == 3), "{i}: {seen:?}");
    }
}

/// A UDP packet to the host, from its IPv6 header on.
fn udp6(source: Ipv6Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let to: Ipv6Addr = HOST6.parse().expect("an address");
    let len = u16::try_from(8 + payload.len()).expect("short");
    let mut datagram = [7777_u16, port, len, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    let addresses = [source.octets(), to.octets()].concat();
    let words = |bytes: &[u8]| -> u32 {
        let word = |w: &[u8]| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0));
        bytes.chunks(2).map(word).sum()
    };
    let mut sum = words(&addresses) + words(&datagram) + u32::from(len) + 17;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    datagram[6..8].copy_from_slice(&(!u16::try_from(sum).expect("folded")).to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet.extend(addresses);
    packet.extend(datagram);
    packet
}

/// Sends a packet with an IPv6 header of its own.
fn send_raw6(packet: &[u8], to: SocketAddrV6) -> nix::Result<usize> {
    let raw = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )?;
    let to = SockaddrIn6::from(to);
    sendto(raw.as_raw_fd(), packet, &to, MsgFlags::empty())
}

/// A client on the link, by link-local addresses, reaches the guest at its own.
fn link_local() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    let address = |ns: &Netns, device: &str| {
        let text = ns.sh(&format!("ip -6 -o addr show dev {device} scope link"));
        let address = text.split_whitespace().nth(3).expect("an address");
        address.split('/').next().expect("an address").to_owned()
    };
    let (host, peer, guest) = (
        address(&w.host, "host0"),
        address(&w.peer, "peer0"),
        address(&g, "host0"),
    );
    // The guest's own address of this kind is known once it has been used.
    g.sh("ping -6 -n -c 1 -W 0.1 ff02::2%host0 || true");
    let server = Server::tcp(&g, ("::", 8080));
    let client = w
        .peer
        .start(&format!("exec curl -s -m 60 'http://[{host}%peer0]:8080/'"));
    let seen = server.seen();
    assert_eq!((seen.peer_ip(), seen.local_ip()), (peer, guest));
    client.finish(SOON);
}

/// The guest takes another address: what arrives goes there.
fn follows_the_guest() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080", "-4"]);
    g.sh(&format!(
        "ip addr del {HOST4}/24 dev host0 && ip addr add 198.51.100.7/24 dev host0
         ip route replace default via 198.51.100.2 dev host0
         ping -n -c 1 -W 30 {PEER4}"
    ));
    let server = Server::tcp(&g, ("198.51.100.7", 8080));
    exchange(w.peer.connect((HOST4, 8080)), 1000);
    assert_eq!(server.seen().local_ip(), "198.51.100.7");
}

/// A published port with nobody behind it is reset, so that clients try again; never closed in order.
fn nobody_listens() {
    let w = World::direct();
    let _g = w.guest(&["-t", "8080:9000"]);
    for family in FAMILIES {
        for way in [Tap, Loopback] {
            let (client, to) = way.client(&w, family);
            for _ in 0..3 {
                let told = try_reach(Tcp, client, (to, 8080));
                assert_eq!(told, Err(ErrorKind::ConnectionReset), "{family:?} {way:?}");
            }
        }
    }
}

/// Datagrams to nobody are lost; a server that comes later gets the next ones, from the same client.
fn nobody_listens_udp() {
    let w = World::direct();
    let g = w.guest(&["-u", "8080:9000"]);
    for family in FAMILIES {
        for way in [Tap, Loopback] {
            let (from, to) = way.client(&w, family);
            let client = udp_to(from, (to, 8080));
            for _ in 0..3 {
                client.send(b"anybody?").expect("send");
            }
            let server = g.udp((family.host(), 9000));
            let mut buffer = [0; 100];
            client
                .set_read_timeout(Some(Duration::from_millis(100)))
                .expect("a timeout");
            let answered = poll_until(SOON, || {
                client.send(b"now").ok();
                client
                    .recv(&mut buffer)
                    .is_ok_and(|n| &buffer[..n] == b"me")
                    || {
                        server
                            .set_read_timeout(Some(Duration::from_millis(50)))
                            .expect("a timeout");
                        if let Ok((_, from)) = server.recv_from(&mut buffer) {
                            server.send_to(b"me", from).ok();
                        }
                        false
                    }
            });
            assert!(answered, "{family:?} {way:?}");
        }
    }
}

fn server_comes_and_goes() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    for _ in 0..3 {
        for way in [Tap, Loopback] {
            let (client, to) = way.client(&w, Family::V4);
            let listener = g.listen((HOST4, 8080));
            let near = client.connect((to, 8080));
            let (far, _) = accept(&listener);
            drop(listener);
            let told = try_reach(Tcp, client, (to, 8080));
            assert_eq!(told, Err(ErrorKind::ConnectionReset), "{way:?}");
            // What was there goes on.
            transfer(near, far, 10_000);
        }
    }
}

/// For both families and ways: a client's connection and the server's end of it.
#[track_caller]
fn each_pair(test: impl Fn(TcpStream, TcpStream)) {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    for family in FAMILIES {
        let listener = g.listen((family.host(), 8080));
        for way in [Tap, Loopback] {
            let (client, to) = way.client(&w, family);
            let near = client.connect((to, 8080));
            test(near, accept(&listener).0);
        }
    }
}

fn volume() -> u64 {
    if established() { 10_000 } else { 3 * MIB }
}

fn half_close_by_the_client() {
    each_pair(|near, far| {
        transfer(clones(&near), clones(&far), volume());
        transfer(far, near, volume());
    });
}

fn half_close_by_the_server() {
    each_pair(|near, far| {
        transfer(clones(&far), clones(&near), volume());
        transfer(near, far, volume());
    });
}

fn reset_by_the_client() {
    each_pair(|near, far| {
        abort(near);
        sees_reset(far);
    });
}

fn reset_by_the_server() {
    each_pair(|near, far| {
        abort(far);
        sees_reset(near);
    });
}

/// The sender is held back, nothing is lost, and it goes on where it stopped.
#[track_caller]
fn held_back(mut from: TcpStream, to: TcpStream) {
    from.set_nonblocking(true).expect("a socket option");
    let block = vec![b'y'; 1 << 16];
    let (mut sent, mut idle) = (0_usize, std::time::Instant::now());
    let full = poll_until(SOON, || {
        while let Ok(n) = from.write(&block) {
            sent += n;
            idle = std::time::Instant::now();
        }
        idle.elapsed() > Duration::from_millis(300)
    });
    assert!(full, "{sent} bytes and still more fit");
    let reader = thread::spawn(move || {
        let (mut to, mut total, mut buffer) = (to, 0, vec![0; 1 << 16]);
        loop {
            match to.read(&mut buffer) {
                Ok(0) => return total,
                Ok(n) => total += n,
                Err(e) => panic!("after {total} bytes: {e}"),
            }
        }
    });
    from.set_nonblocking(false).expect("a socket option");
    let mut from = bounded(from).expect("a timeout");
    from.write_all(&block).expect("it goes on");
    from.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(reader.join().expect("the reader"), sent + block.len());
}

fn server_does_not_read() {
    each_pair(held_back);
}

fn client_does_not_read() {
    each_pair(|near, far| held_back(far, near));
}

fn many_at_once() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    echo(&g, ("::", 8080));
    for way in [Tap, Loopback] {
        let (client, to) = way.client(&w, Family::V4);
        let mut all: Vec<TcpStream> = (0..300).map(|_| client.connect((to, 8080))).collect();
        for (i, stream) in all.iter_mut().enumerate() {
            writeln!(stream, "hello {i}").expect("send");
        }
        for (i, stream) in all.iter_mut().enumerate() {
            let expected = format!("hello {i}\n");
            let mut buffer = vec![0; expected.len()];
            stream
                .read_exact(&mut buffer)
                .unwrap_or_else(|e| panic!("{way:?} {i}: {e}"));
            assert_eq!(buffer, expected.as_bytes());
        }
    }
}

/// Connect, request, answer, close: five hundred times, ports and descriptors suffice.
fn many_in_a_row() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    let server = Server::tcp(&g, ("::", 8080));
    for way in [Tap, Loopback] {
        let (client, to) = way.client(&w, Family::V4);
        for _ in 0..500 {
            let mut stream = client.connect((to, 8080));
            send_pattern(&mut stream, 100).expect("send");
            stream.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(check_pattern(&mut stream), Ok(100));
            assert_eq!(server.seen().bytes, Ok(100));
        }
    }
}

/// A rule for every address is fine where only one family is on.
fn one_family_only() {
    for family in FAMILIES {
        let w = World::direct();
        let g = w.guest(&["-t", "8080", "-u", "8080", family.pick("-4", "-6")]);
        for protocol in [Tcp, Udp] {
            let _server = Server::new(protocol, &g, (family.host(), 8080));
            for way in [Tap, Loopback] {
                let (client, to) = way.client(&w, family);
                reachable_within(SOON, protocol, client, (to, 8080));
            }
            let other = family.pick(HOST6, HOST4);
            closed(protocol, &w.peer, (other, 8080));
        }
        return_world(&w, g);
    }
}

/// Two worlds in one test: the first one's parts go, above all what is bound to the ports that the second one
/// wants.
#[track_caller]
fn return_world(w: &World, guest: Guest) {
    guest.pasta.stop(Signal::SIGTERM);
    nothing_left();
    w.host.sh("ip link del host0");
    for name in ["guest", "peer", "host"] {
        Netns::retire(name);
    }
}

/// A kernel without IPv6 addresses serves IPv4.
fn family_off_on_the_host() {
    let w = World::direct();
    w.host.set("ipv6/conf/all/disable_ipv6", "1");
    w.host.set("ipv6/conf/lo/disable_ipv6", "1");
    let g = w.guest(&["-t", "8080", "-u", "8080"]);
    for protocol in [Tcp, Udp] {
        let _server = Server::new(protocol, &g, (HOST4, 8080));
        for way in [Tap, Loopback] {
            let (client, to) = way.client(&w, Family::V4);
            reachable_within(SOON, protocol, client, (to, 8080));
        }
    }
}

fn udp_many_clients() {
    let w = World::direct();
    let g = w.guest(&["-u", "8080"]);
    for family in FAMILIES {
        udp_echo(&g, (family.host(), 8080));
        for way in [Tap, Loopback] {
            let (client, to) = way.client(&w, family);
            let all: Vec<UdpSocket> = (0..200).map(|_| udp_to(client, (to, 8080))).collect();
            for round in 0..2 {
                for (i, socket) in all.iter().enumerate() {
                    socket
                        .send(format!("{round} {i}").as_bytes())
                        .expect("send");
                }
                for (i, socket) in all.iter().enumerate() {
                    let mut buffer = [0; 100];
                    let n = socket.recv(&mut buffer).unwrap_or_else(|e| {
                        panic!("{family:?} {way:?} client {i}, round {round}: {e}")
                    });
                    assert_eq!(&buffer[..n], format!("{round} {i}").as_bytes());
                }
            }
        }
    }
}

/// A host of several addresses answers from the one that was asked.
fn udp_answers_from_the_address_asked() {
    let w = World::direct();
    w.host
        .sh("ip addr add 198.51.100.5/24 dev host0; ip addr add 2001:db8:51::5/64 dev host0 nodad");
    let g = w.guest(&["-a", HOST4, "-a", HOST6, "-u", "8080"]);
    udp_echo(&g, (HOST4, 8080));
    udp_echo(&g, (HOST6, 8080));
    for addr in [HOST4, "198.51.100.5", HOST6, "2001:db8:51::5"] {
        let client = udp_to(&w.peer, (addr, 8080));
        for size in [1, 30_000] {
            client.send(&vec![1; size]).expect("send");
            let mut buffer = vec![0; 65536];
            let n = client.recv(&mut buffer);
            assert_eq!(
                n.ok(),
                Some(size),
                "asked {addr}; connected sockets take no other's answer"
            );
        }
    }
}

/// A burst handed to the kernel as one arrives as the datagrams it is, in order.
fn udp_bursts() {
    let w = World::direct();
    let g = w.guest(&["-u", "8080"]);
    for family in FAMILIES {
        let server = g.udp((family.host(), 8080));
        for way in [Tap, Loopback] {
            let (from, to) = way.client(&w, family);
            let client = udp_to(from, (to, 8080));
            setsockopt(&client, sockopt::UdpGsoSegment, &1200).expect("UDP_SEGMENT");
            let data: Vec<u8> = (0..1200 * 20 + 7)
                .map(|i: usize| u8::try_from(i / 1200).expect("small"))
                .collect();
            client.send(&data).expect("send");
            let mut buffer = [0; 2000];
            for i in 0..=20_usize {
                let (n, _) = server
                    .recv_from(&mut buffer)
                    .unwrap_or_else(|e| panic!("datagram {i}, {family:?} {way:?}: {e}"));
                assert_eq!(n, if i == 20 { 7 } else { 1200 }, "datagram {i}");
                assert!(
                    buffer[..n].iter().all(|b| usize::from(*b) == i),
                    "datagram {i}"
                );
            }
        }
    }
}

/// The server's port is also a port the guest sends from: both directions keep their addresses.
fn udp_both_ways_on_one_port() {
    let w = World::direct();
    udp_echo(&w.peer, (PEER4, 1000));
    let g = w.guest(&["-u", "8080"]);
    let socket = g.udp((HOST4, 8080));
    let client = udp_to(&w.peer, (HOST4, 8080));
    let mut buffer = [0; 100];
    for _ in 0..3 {
        client.send(b"in").expect("send");
        let (n, from) = socket.recv_from(&mut buffer).expect("the question");
        assert_eq!(&buffer[..n], b"in");
        socket.send_to(b"back", from).expect("send");
        let n = client.recv(&mut buffer).expect("the answer");
        assert_eq!(&buffer[..n], b"back");
        socket.send_to(b"out", (PEER4, 1000)).expect("send");
        let (n, from) = socket.recv_from(&mut buffer).expect("the echo");
        assert_eq!(
            (&buffer[..n], from.ip().to_string().as_str()),
            (&b"out"[..], PEER4)
        );
    }
}

/// The end of the namespace's connection to the world is the end of its clients' connections.
fn end_in_the_middle() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    let listener = g.listen((HOST4, 8080));
    let clients: Vec<TcpStream> = [Tap, Loopback]
        .map(|way| {
            let (client, to) = way.client(&w, Family::V4);
            client.connect((to, 8080))
        })
        .into();
    let servers: Vec<TcpStream> = clients.iter().map(|_| accept(&listener).0).collect();
    g.pasta.stop(Signal::SIGTERM);
    for mut client in clients {
        let told = client.read(&mut [0; 10]);
        assert!(
            matches!(&told, Ok(0))
                || told
                    .as_ref()
                    .is_err_and(|e| e.kind() == ErrorKind::ConnectionReset),
            "{told:?}"
        );
    }
    drop(servers);
    nothing_left();
}

/// A server that answers somebody who has gone: errors come back, and are nobody else's business.
fn udp_client_gone() {
    let w = World::direct();
    let g = w.guest(&["-u", "8080"]);
    for way in WAYS {
        let (from, to) = way.client(&w, Family::V4);
        let server = g.udp((HOST4, 8080));
        let client = udp_to(from, (to, 8080));
        client.send(b"hello").expect("send");
        let mut buffer = [0; 100];
        let (_, who) = server.recv_from(&mut buffer).expect("the question");
        drop(client);
        for _ in 0..50 {
            server.send_to(b"hello?", who).ok();
        }
        let before = crate::exec::cpu_ticks();
        thread::sleep(Duration::from_millis(500));
        let spent = crate::exec::cpu_ticks() - before;
        assert!(spent <= 5, "{spent} ticks in half a second, {way:?}");
        let other = udp_to(from, (to, 8080));
        other.send(b"me").expect("send");
        let (n, who) = server.recv_from(&mut buffer).expect("the next question");
        assert_eq!(&buffer[..n], b"me");
        server.send_to(b"you", who).expect("send");
        assert_eq!(other.recv(&mut buffer).ok(), Some(3));
    }
}

/// Two thousand clients, one after the other, one question each.
fn udp_churn() {
    let w = World::direct();
    let g = w.guest(&["-u", "8080"]);
    udp_echo(&g, ("0.0.0.0", 8080));
    for way in WAYS {
        let (from, to) = way.client(&w, Family::V4);
        from.enter(|| {
            for i in 0..1000 {
                let client = UdpSocket::bind("0.0.0.0:0").expect("bind");
                client.set_read_timeout(Some(SOON)).expect("a timeout");
                client.connect((to, 8080)).expect("a route");
                client.send(b"one").expect("send");
                let told = client.recv(&mut [0; 10]);
                assert!(matches!(told, Ok(3)), "client {i}, {way:?}: {told:?}");
            }
        });
    }
}

/// A guest that does not answer yet is asked again.
fn syn_is_retried() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    g.sh("ip route add blackhole 198.51.100.2/32");
    let listener = g.listen((HOST4, 8080));
    let near = w.peer.connect((HOST4, 8080));
    thread::sleep(Duration::from_millis(300));
    g.sh("ip route del blackhole 198.51.100.2/32");
    let (far, _) = accept(&listener);
    transfer(near, far, 10_000);
}

/// Clients that go before the guest has answered leave nothing behind; it is reachable later.
fn client_gives_up() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    g.sh("ip route add blackhole 198.51.100.2/32");
    let server = Server::tcp(&g, (HOST4, 8080));
    for i in 0..20 {
        let stream = w.peer.connect((HOST4, 8080));
        if i % 2 == 0 {
            abort(stream);
        }
    }
    g.sh("ip route del blackhole 198.51.100.2/32");
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8080));
    drop(server);
}

/// A server that is slow to accept: connections beyond its queue wait for their turn.
fn short_accept_queue() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080"]);
    let listener = g.enter(|| {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
        };
        let socket = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("socket");
        let raw = socket.as_raw_fd();
        bind(raw, &SockaddrIn::new(0, 0, 0, 0, 8080)).expect("bind");
        listen(&socket, Backlog::new(1).expect("small")).expect("listen");
        std::net::TcpListener::from(socket)
    });
    let all: Vec<TcpStream> = (0..5).map(|_| w.peer.connect((HOST4, 8080))).collect();
    // Nobody says that it is over: the answer of a kernel that remembers nothing (SYN cookies) is a reset.
    let clients: Vec<_> = all
        .into_iter()
        .map(|mut stream| {
            thread::spawn(move || {
                stream.write_all(b"question").expect("send");
                stream.read_exact(&mut [0; 8]).expect("the answer");
            })
        })
        .collect();
    for _ in 0..5 {
        let (mut stream, _) = accept(&listener);
        stream.read_exact(&mut [0; 8]).expect("the question");
        stream.write_all(b"answered").expect("send");
    }
    clients
        .into_iter()
        .for_each(|c| c.join().expect("a client"));
}

/// Where every address may be bound, none is taken for local.
fn nonlocal_bind() {
    let w = World::direct();
    echo(&w.peer, (PEER4, 1000));
    if !w.host.set("ipv4/ip_nonlocal_bind", "1") {
        crate::harness::skip("no net.ipv4.ip_nonlocal_bind here");
    }
    let g = w.guest(&["-t", "8080", "-T", "8081"]);
    let _server = Server::tcp(&g, (HOST4, 8080));
    let _outside = Server::tcp(&w.host, ("127.0.0.1", 8081));
    for way in WAYS {
        let (client, to) = way.client(&w, Family::V4);
        reachable_within(SOON, Tcp, client, (to, 8080));
    }
    reachable_within(SOON, Tcp, &g, ("127.0.0.1", 8081));
    let mut out = g.connect((PEER4, 1000));
    out.write_all(b"x").expect("send");
    out.read_exact(&mut [0]).expect("the echo");
}
