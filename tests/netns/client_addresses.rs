//! Who reaches whom by which address, and as whom: the two tables that podman's own tests rely on.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use crate::clients::{PODMAN, call, podman_namespace, usable};
use crate::exec::SOON;
use crate::harness::{need, tests};
use crate::reach::{
    FAMILIES, Family, Protocol, Server, datagrams, exchange, reachable_within, try_reach,
};
use crate::servers::{dns, echo};
use crate::world::{DNS4, DNS6, GATEWAY4, GATEWAY6, HOST4, HOST6, Netns, World, accept};

tests![
    names,
    names_by_another_address,
    the_host_by_its_second_name,
    the_host_s_loopback_is_closed,
    the_host_s_own_address_is_the_container,
    map_gw,
    inbound,
    inbound_udp,
    nobody_listens,
    nobody_listens_any_more,
];

/// A container with ports published the same way for both protocols.
#[track_caller]
fn container(w: &World, options: &str) -> Netns {
    let ns = podman_namespace();
    let none = if options.contains("-t ") {
        " -t none -u none"
    } else {
        ""
    };
    let line = PODMAN
        .replace(none, "")
        .replace("--config-net", format!("--config-net {options}").trim_end());
    call(w, &line, &ns.path());
    usable(&ns);
    ns
}

/// "169.254.1.1: queries to it, UDP and TCP, go to the host's resolver"; big answers too.
fn names() {
    need("dig");
    let w = World::direct();
    dns(&w.peer, DNS4);
    let ns = container(&w, "");
    for (query, answer) in [
        ("www.example.org A", "192.0.2.80"),
        ("www.example.org AAAA", "2001:db8::80"),
        ("+tcp www.example.org A", "192.0.2.80"),
        ("www.example.org TXT", "xxxxxxxx"),
    ] {
        let seen = ns.sh(&format!("dig +short @169.254.1.1 {query}"));
        assert!(seen.contains(answer), "{query}: {seen}");
    }
    // It is the resolver and nothing else.
    ns.connect_within(("169.254.1.1", 80), Duration::from_secs(1))
        .expect_err("not for HTTP");
}

/// "The same rule, by family, for any other --dns-forward."
fn names_by_another_address() {
    need("dig");
    let w = World::direct();
    dns(&w.peer, DNS4);
    dns(&w.peer, DNS6);
    for address in ["198.51.100.77", "2001:db8:77::53"] {
        let ns = podman_namespace();
        let line = PODMAN.replace("169.254.1.1", address);
        call(&w, &line, &ns.path());
        for tcp in ["+notcp", "+tcp"] {
            let seen = ns.sh(&format!("dig +short {tcp} @{address} www.example.org"));
            assert_eq!(seen, "192.0.2.80\n", "{address} {tcp}");
        }
        // It takes the place of podman's own.
        let other = ns.try_sh("dig +short +time=1 +tries=1 @169.254.1.1 www.example.org");
        assert_ne!(other.code, 0, "{}", other.both());
        Netns::retire(&ns.name);
        crate::exec::nothing_left();
    }
}

/// "169.254.1.2:P reaches a server bound to 10.200.1.2, which sees the connection come from 10.200.1.2."
fn the_host_by_its_second_name() {
    let w = World::direct();
    let listener = w.host.listen((HOST4, 1000));
    let datagrams_server = Server::udp(&w.host, (HOST4, 1000));
    let ns = container(&w, "");
    let _near = ns.connect(("169.254.1.2", 1000));
    assert_eq!(accept(&listener).1.ip().to_string(), HOST4);
    let (seen, _) = datagrams(&ns, ("169.254.1.2", 1000), &datagrams_server);
    assert_eq!(seen.peer_ip(), HOST4);
}

/// "A server bound to 127.0.0.1 is not reachable: not by 169.254.1.2 (connection refused), not by 10.200.1.1."
fn the_host_s_loopback_is_closed() {
    let w = World::direct();
    echo(&w.host, ("127.0.0.1", 1000));
    echo(&w.host, ("::1", 1000));
    let ns = container(&w, "");
    for to in ["169.254.1.2", GATEWAY4, GATEWAY6, "127.0.0.1", "::1"] {
        let told = try_reach(Protocol::Tcp, &ns, (to, 1000));
        assert_eq!(told, Err(ErrorKind::ConnectionRefused), "{to}");
    }
}

/// "10.200.1.2:P is the container itself."
fn the_host_s_own_address_is_the_container() {
    let w = World::direct();
    let outside = Server::tcp(&w.host, ("::", 1000));
    let ns = container(&w, "");
    for family in FAMILIES {
        let told = try_reach(Protocol::Tcp, &ns, (family.host(), 1000));
        assert_eq!(told, Err(ErrorKind::ConnectionRefused), "{family:?}");
        let inside = Server::tcp(&ns, (family.host(), 1000));
        exchange(ns.connect((family.host(), 1000)), 1000);
        assert_eq!(inside.seen().bytes, Ok(1000));
    }
    assert!(outside.so_far().is_empty());
}

/// "With pasta:--map-gw 10.200.1.1:P reaches the host's 127.0.0.1:P": podman drops the option and its own --no-map-gw.
fn map_gw() {
    let w = World::direct();
    let ns = podman_namespace();
    call(&w, &PODMAN.replace("--no-map-gw ", ""), &ns.path());
    for family in FAMILIES {
        let server = Server::tcp(&w.host, (family.loopback(), 1000));
        exchange(ns.connect((family.gateway(), 1000)), 1000);
        assert_eq!(server.seen().peer_ip(), family.loopback());
    }
}

/// Host client connects to; server's local address; peer address.
const INBOUND: [(&str, &str, &str); 4] = [
    ("127.0.0.1", HOST4, HOST4),
    (HOST4, HOST4, "169.254.1.2"),
    ("::1", HOST6, HOST6),
    (HOST6, HOST6, GATEWAY6),
];

fn inbound() {
    let w = World::direct();
    let ns = container(&w, "-t 8080-8080:80-80 -u 8080-8080:80-80");
    let server = Server::tcp(&ns, ("::", 80));
    for (to, local, peer) in INBOUND {
        exchange(w.host.connect((to, 8080)), 1000);
        let seen = server.seen();
        assert_eq!(
            (seen.local_ip().as_str(), seen.peer_ip().as_str()),
            (local, peer),
            "{to}"
        );
    }
    // From elsewhere: who it really is.
    for family in FAMILIES {
        exchange(w.peer.connect((family.host(), 8080)), 1000);
        let seen = server.seen();
        assert_eq!(seen.local_ip(), family.host());
        assert_eq!(seen.peer_ip(), family.gateway());
    }
}

fn inbound_udp() {
    let w = World::direct();
    let ns = container(&w, "-t 8080-8080:80-80 -u 8080-8080:80-80");
    let servers = FAMILIES.map(|f| (f.host(), Server::udp(&ns, (f.host(), 80))));
    for (to, local, peer) in INBOUND {
        let (_, server) = servers.iter().find(|(l, _)| *l == local).expect("both");
        let (seen, _) = datagrams(&w.host, (to, 8080), server);
        assert_eq!(seen.peer_ip(), peer, "{to}");
    }
}

/// "A connection to a published port nobody listens on inside is accepted on the host and then reset, not closed in
/// order (loopback and not, IPv4 and IPv6)."
fn nobody_listens() {
    let w = World::direct();
    let ns = container(&w, "-t 8210-8214:9210-9214 -u 8210-8214:9210-9214");
    for (client, to) in [
        (&w.host, "127.0.0.1"),
        (&w.host, "::1"),
        (&w.host, HOST4),
        (&w.host, HOST6),
        (&w.peer, HOST4),
        (&w.peer, HOST6),
    ] {
        for port in 8210..8215 {
            // connect() succeeds, and what comes next says it; or the reset is quicker than its return.
            let told = client.try_connect((to, port)).and_then(|mut stream| {
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                stream.read(&mut [0; 10])
            });
            let told = told.map_err(|e| e.kind());
            assert_eq!(told, Err(ErrorKind::ConnectionReset), "{to} {port}");
        }
    }
    // A client that retries finds the server that comes later.
    let _server = Server::tcp(&ns, ("::", 9212));
    for family in [Family::V4, Family::V6] {
        reachable_within(SOON, Protocol::Tcp, &w.host, (family.loopback(), 8212));
    }
}

/// The same after there was one.
fn nobody_listens_any_more() {
    let w = World::direct();
    let ns = container(&w, "-t 8080-8080:80-80 -u 8080-8080:80-80");
    let listener = ns.listen(("::", 80));
    let near = w.host.connect(("127.0.0.1", 8080));
    accept(&listener);
    drop((listener, near));
    for to in ["127.0.0.1", "::1", HOST4, HOST6] {
        let told = try_reach(Protocol::Tcp, &w.host, (to, 8080));
        assert_eq!(told, Err(ErrorKind::ConnectionReset), "{to}");
    }
}
