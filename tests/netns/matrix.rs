//! Every kind of forwarding rule, for both protocols and families, from outside and from the host's loopback.
//!
//! A shape says what the rule is and which ports it opens, and is crossed with the rest: what arrives, unharmed,
//! at which port, from and to which address; for TCP also 100 MB each way; and that the ports beside it stay shut.

use std::net::SocketAddr;

use crate::differences::{all_ports_fail, established};
use crate::exec::{SOON, poll_until};
use crate::harness::{Identity, Test};
use crate::reach::{
    Family, Protocol, Seen, Server, Way, closed, datagrams, exchange, reachable_within,
};
use crate::world::{Netns, World};
use Family::{V4, V6};
use Protocol::{Tcp, Udp};
use Way::{Loopback, Tap};

/// A rule: what to write, with `L` for the address listened on; pairs of ports, outside and inside; ports that
/// stay shut.
#[derive(Clone, Copy, Debug)]
struct Shape {
    spec: fn(Family, Way) -> String,
    open: &'static [(u16, u16)],
    shut: &'static [u16],
    /// Not reachable the other way.
    exclusive: bool,
    /// The address inside, when it is not the guest's own.
    target: Option<fn(Family) -> &'static str>,
    /// Open only while somebody listens inside.
    automatic: bool,
}

const PLAIN: Shape = Shape {
    spec: |_, _| "8080".to_owned(),
    open: &[(8080, 8080)],
    shut: &[8079, 8081],
    exclusive: false,
    target: None,
    automatic: false,
};

const SINGLE: Shape = PLAIN;

const RANGE: Shape = Shape {
    spec: |_, _| "8080-8083".to_owned(),
    open: &[(8080, 8080), (8081, 8081), (8082, 8082), (8083, 8083)],
    shut: &[8079, 8084],
    ..PLAIN
};

const REMAPPED: Shape = Shape {
    spec: |_, _| "8080:80".to_owned(),
    open: &[(8080, 80)],
    shut: &[80, 8081],
    ..PLAIN
};

const REMAPPED_RANGE: Shape = Shape {
    spec: |_, _| "8080-8083:7000-7003".to_owned(),
    open: &[(8080, 7000), (8081, 7001), (8082, 7002), (8083, 7003)],
    shut: &[7000, 7003, 8084],
    ..PLAIN
};

const BOUND_ADDRESS: Shape = Shape {
    spec: |family, way| match way {
        Tap => format!("{}/8080", family.host()),
        Loopback => format!("{}/8080:8080", family.loopback()),
    },
    exclusive: true,
    ..PLAIN
};

const BOUND_INTERFACE: Shape = Shape {
    spec: |family, way| match (way, family) {
        (Tap, V4) => "%host0/8080".to_owned(),
        (Tap, V6) => "[::]%host0/8080".to_owned(),
        (Loopback, V4) => "127.0.0.1%lo/8080:8080".to_owned(),
        (Loopback, V6) => "::1%lo/8080:8080".to_owned(),
    },
    exclusive: true,
    ..PLAIN
};

const TARGET_ADDRESS: Shape = Shape {
    spec: |family, _| {
        format!(
            "{}/8080:{}/80",
            family.pick("0.0.0.0", "[::]"),
            family.pick("192.0.2.9", "[2001:db8:2::9]")
        )
    },
    open: &[(8080, 80)],
    target: Some(|family| family.pick("192.0.2.9", "2001:db8:2::9")),
    ..PLAIN
};

const AUTO: Shape = Shape {
    spec: |_, _| "auto".to_owned(),
    automatic: true,
    ..PLAIN
};

const ALL: Shape = Shape {
    spec: |_, _| "all".to_owned(),
    open: &[(8080, 8080), (1, 1), (9999, 9999)],
    shut: &[],
    ..PLAIN
};

const EXCLUSION: Shape = Shape {
    spec: |_, _| "8000-8090,~8005,~8020-8030".to_owned(),
    open: &[
        (8000, 8000),
        (8004, 8004),
        (8006, 8006),
        (8031, 8031),
        (8090, 8090),
    ],
    shut: &[7999, 8005, 8020, 8025, 8030, 8091],
    ..PLAIN
};

/// The tests: every shape, crossed.
macro_rules! cells {
    ($($name:literal $shape:ident),*; outward: $($out:literal $out_shape:ident),*) => {
        pub const TESTS: &[Test] = &[$(
            cells!(@ $name "_tcp_v4_tap" Tcp V4 Tap $shape),
            cells!(@ $name "_tcp_v6_tap" Tcp V6 Tap $shape),
            cells!(@ $name "_udp_v4_tap" Udp V4 Tap $shape),
            cells!(@ $name "_udp_v6_tap" Udp V6 Tap $shape),
            cells!(@ $name "_tcp_v4_loopback" Tcp V4 Loopback $shape),
            cells!(@ $name "_tcp_v6_loopback" Tcp V6 Loopback $shape),
            cells!(@ $name "_udp_v4_loopback" Udp V4 Loopback $shape),
            cells!(@ $name "_udp_v6_loopback" Udp V6 Loopback $shape),
        )* $(
            cells!(@ $out "_tcp_v4_outward" Tcp V4 $out_shape),
            cells!(@ $out "_tcp_v6_outward" Tcp V6 $out_shape),
            cells!(@ $out "_udp_v4_outward" Udp V4 $out_shape),
            cells!(@ $out "_udp_v6_outward" Udp V6 $out_shape),
        )*];
    };
    (@ $name:literal $cell:literal $protocol:ident $family:ident $shape:ident) => {
        Test {
            name: concat!($name, $cell),
            identity: Identity::Nested,
            run: || outward(&$shape, $protocol, $family),
        }
    };
    (@ $name:literal $cell:literal $protocol:ident $family:ident $way:ident $shape:ident) => {
        Test {
            name: concat!($name, $cell),
            identity: Identity::Nested,
            run: || cell(&$shape, $protocol, $family, $way),
        }
    };
}

cells![
    "single" SINGLE,
    "range" RANGE,
    "remapped" REMAPPED,
    "remapped_range" REMAPPED_RANGE,
    "bound_address" BOUND_ADDRESS,
    "bound_interface" BOUND_INTERFACE,
    "target_address" TARGET_ADDRESS,
    "auto" AUTO,
    "all" ALL,
    "exclusion" EXCLUSION;
    outward:
    "single" SINGLE,
    "range" RANGE,
    "remapped" REMAPPED,
    "remapped_range" REMAPPED_RANGE,
    "auto" AUTO,
    "all" ALL,
    "exclusion" EXCLUSION
];

const SMALL: u64 = 10_000;

/// 100 MB, except where bulk streams are known to stall.
fn large() -> u64 {
    if established() {
        1_000_000
    } else {
        100_000_000
    }
}

fn cell(shape: &Shape, protocol: Protocol, family: Family, way: Way) {
    let w = World::direct();
    let spec = (shape.spec)(family, way);
    if spec == "all" && all_ports_fail() {
        crate::harness::skip("the established program differs: descriptors");
    }
    let g = w.guest(&[protocol.inbound(), &spec]);
    let inside = shape.target.map_or(family.host(), |t| t(family));
    if shape.target.is_some() {
        let flags = family.pick("", "nodad");
        g.sh(&format!("ip addr add {inside} dev host0 {flags}"));
        // Even without duplicate address detection the kernel takes a moment, and drops what comes before.
        let local = || g.sh(&format!("ip route get {inside}")).starts_with("local");
        assert!(poll_until(SOON, local), "{inside} does not become local");
    }
    let (client, outside) = way.client(&w, family);
    exchanges(
        shape,
        protocol,
        (client, outside),
        (&g.ns, inside),
        |seen, from| {
            check_source(shape, family, way, seen, from);
        },
    );
    if shape.exclusive {
        let (client, outside) = match way {
            Tap => Loopback.client(&w, family),
            Loopback => Tap.client(&w, family),
        };
        closed(protocol, client, (outside, 8080));
    }
}

/// From the namespace's loopback to the host's: from a loopback address, and for UDP from the same port.
fn outward(shape: &Shape, protocol: Protocol, family: Family) {
    let w = World::direct();
    let spec = (shape.spec)(family, Loopback);
    if spec == "all" && all_ports_fail() {
        crate::harness::skip("the established program differs: descriptors");
    }
    let g = w.guest(&[protocol.outbound(), &spec]);
    let lo = family.loopback();
    exchanges(shape, protocol, (&g.ns, lo), (&w.host, lo), |seen, from| {
        assert_eq!(seen.peer_ip(), lo, "the client as the server sees it");
        assert!(
            protocol == Tcp || seen.peer.port() == from.port(),
            "its port"
        );
    });
}

/// Every open port with its server, and the shut ones.
#[track_caller]
fn exchanges(
    shape: &Shape,
    protocol: Protocol,
    (client, outside): (&Netns, &str),
    (home, inside): (&Netns, &str),
    check: impl Fn(&Seen, SocketAddr),
) {
    for (i, (port, target)) in shape.open.iter().enumerate() {
        let server = Server::new(protocol, home, (inside, *target));
        let to = (outside, *port);
        if shape.automatic {
            reachable_within(SOON, protocol, client, to);
            server.forget();
        }
        match protocol {
            Tcp => {
                let (seen, from) = stream(client, to, &server, SMALL);
                assert_eq!(seen.local_ip(), inside, "the server's own address");
                check(&seen, from);
                if i == 0 {
                    stream(client, to, &server, large());
                }
            }
            Udp => {
                let (seen, from) = datagrams(client, to, &server);
                check(&seen, from);
            }
        }
    }
    for port in shape.shut {
        closed(protocol, client, (outside, *port));
    }
}

#[track_caller]
fn stream(client: &Netns, to: (&str, u16), server: &Server, n: u64) -> (Seen, SocketAddr) {
    let connection = client.connect(to);
    let from = connection.local_addr().expect("connected");
    exchange(connection, n);
    let seen = server.seen();
    assert_eq!(seen.bytes, Ok(n), "as the server saw it");
    (seen, from)
}

/// From outside, the client itself; from loopback, the guest's own address.
#[track_caller]
fn check_source(shape: &Shape, family: Family, way: Way, seen: &Seen, from: SocketAddr) {
    let ip = seen.peer_ip();
    match (way, shape.target) {
        (Tap, _) => assert_eq!(
            (ip, seen.peer.port()),
            (from.ip().to_canonical().to_string(), from.port()),
            "the client as the server sees it"
        ),
        // A target may be anywhere behind the guest, so that the tap leads there, and the gateway back.
        (Loopback, Some(_)) => assert_eq!(ip, family.gateway()),
        (Loopback, None) => assert_eq!(ip, family.host(), "the client as the server sees it"),
    }
}
