//! Automatic forwarding: ports open while somebody listens on the other side, and only then.

use std::io::Read;
use std::time::Duration;

use crate::differences::established;
use crate::exec::{SOON, cpu_ticks, poll_until, status_number, sum_over_processes};
use crate::harness::tests;
use crate::reach::{
    FAMILIES, Family, Protocol, Server, WAYS, Way, closed, datagrams, exchange, listening, opens,
    reachable_within, try_reach,
};
use crate::servers::echo;
use crate::world::{HOST4, Netns, PEER4, World, accept};
use Protocol::{Tcp, Udp};
use Way::{Loopback, Tap};

tests![
    into_the_namespace,
    out_of_the_namespace,
    udp_follows_tcp,
    already_there_at_start,
    already_there_on_the_host,
    defaults,
    closes_again,
    comes_and_goes,
    connections_outlive_their_listener,
    never_our_own,
    never_in_a_circle,
    ranges,
    exclusions,
    bound_address,
    remapped,
    not_for_ephemeral_ports,
    busy_outside,
    busy_until_later,
    loopback_listeners,
    one_family_inside,
    connected_sockets_do_not_count,
    many_listeners,
    idle,
];

/// Lets the watching go on for a few rounds: what must not happen had its chance.
fn rounds() {
    std::thread::sleep(Duration::from_millis(if established() {
        2200
    } else {
        1200
    }));
}

fn into_the_namespace() {
    let w = World::direct();
    let g = w.guest(&["-t", "auto", "-u", "auto"]);
    for (protocol, port) in [(Tcp, 8080), (Udp, 8081)] {
        for family in FAMILIES {
            let server = Server::new(protocol, &g, (family.host(), port));
            for way in WAYS {
                let (client, to) = way.client(&w, family);
                reachable_within(SOON, protocol, client, (to, port));
            }
            drop(server);
        }
    }
}

fn out_of_the_namespace() {
    let w = World::direct();
    let g = w.guest(&["-T", "auto", "-U", "auto"]);
    for (protocol, port) in [(Tcp, 8080), (Udp, 8081)] {
        for family in FAMILIES {
            let server = Server::new(protocol, &w.host, (family.loopback(), port));
            reachable_within(SOON, protocol, &g, (family.loopback(), port));
            server.forget();
            let to = (family.loopback(), port);
            match protocol {
                Tcp => exchange(g.connect(to), 100_000),
                Udp => drop(datagrams(&g, to, &server)),
            }
        }
    }
}

/// Where TCP listens, UDP is forwarded as well: some services use both and bind the second one late.
fn udp_follows_tcp() {
    let w = World::direct();
    let g = w.guest(&["-u", "auto", "-U", "auto"]);
    let _inside = g.listen(("::", 8080));
    opens(&w.host, Udp, &[8080]);
    let _outside = w.host.listen(("::", 8090));
    opens(&g, Udp, &[8090]);
}

/// What listened before is forwarded when it says that it is ready, and not some time later.
fn already_there_at_start() {
    let w = World::direct();
    let ns = Netns::new("guest");
    ns.sh("ip link set lo up");
    let _tcp = Server::tcp(&ns, ("::", 8080));
    let _udp = Server::udp(&ns, ("::", 8080));
    let _pasta = w.attach(&ns, &["--config-net", "-t", "auto", "-u", "auto"]);
    for protocol in [Tcp, Udp] {
        let told = try_reach(protocol, &w.host, ("127.0.0.1", 8080));
        assert!(told.is_ok(), "{protocol:?}: {told:?}");
    }
}

fn already_there_on_the_host() {
    let w = World::direct();
    let _tcp = Server::tcp(&w.host, ("::", 8080));
    let _udp = Server::udp(&w.host, ("::", 8080));
    let g = w.guest(&["-T", "auto", "-U", "auto"]);
    for protocol in [Tcp, Udp] {
        let told = try_reach(protocol, &g, ("127.0.0.1", 8080));
        assert!(told.is_ok(), "{protocol:?}: {told:?}");
    }
}

/// Without any option all four are automatic.
fn defaults() {
    let w = World::direct();
    let ns = Netns::new("guest");
    let _pasta = w.attach_bare(&ns, &["--config-net"]);
    let _inside = [
        Server::tcp(&ns, ("::", 8080)),
        Server::udp(&ns, ("::", 8081)),
    ];
    let _outside = [
        Server::tcp(&w.host, ("::", 8090)),
        Server::udp(&w.host, ("::", 8091)),
    ];
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8080));
    reachable_within(SOON, Udp, &w.peer, (HOST4, 8081));
    reachable_within(SOON, Tcp, &ns, ("127.0.0.1", 8090));
    reachable_within(SOON, Udp, &ns, ("127.0.0.1", 8091));
}

fn closes_again() {
    let w = World::direct();
    let g = w.guest(&["-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto"]);
    for (inside, outside) in [(&g.ns, &w.host), (&w.host, &g.ns)] {
        let tcp = inside.listen(("::", 8080));
        opens(outside, Tcp, &[8080]);
        drop(tcp);
        opens(outside, Tcp, &[]);
        opens(outside, Udp, &[]);
        let udp = inside.udp(("::", 8081));
        opens(outside, Udp, &[8081]);
        drop(udp);
        opens(outside, Udp, &[]);
    }
}

fn comes_and_goes() {
    let w = World::direct();
    let g = w.guest(&["-t", "auto"]);
    for _ in 0..3 {
        let listener = g.listen((HOST4, 8080));
        opens(&w.host, Tcp, &[8080]);
        let near = w.peer.connect((HOST4, 8080));
        let far = accept(&listener).0;
        drop((near, far, listener));
        opens(&w.host, Tcp, &[]);
        closed(Tcp, &w.peer, (HOST4, 8080));
    }
}

fn connections_outlive_their_listener() {
    let w = World::direct();
    let g = w.guest(&["-t", "auto"]);
    for way in WAYS {
        let listener = g.listen((HOST4, 8080));
        let (client, to) = way.client(&w, Family::V4);
        opens(&w.host, Tcp, &[8080]);
        let near = client.connect((to, 8080));
        let (mut far, _) = accept(&listener);
        drop(listener);
        opens(&w.host, Tcp, &[]);
        let back = std::thread::spawn(move || {
            let n = crate::servers::check_pattern(&mut far);
            crate::servers::send_pattern(&mut far, *n.as_ref().expect("data")).expect("send");
        });
        exchange(near, 10_000);
        back.join().expect("the server");
    }
}

/// Ports we ourselves listen on are not somebody's servers.
fn never_our_own() {
    let w = World::direct();
    let g = w.guest(&[
        "-t",
        "8080:80",
        "-u",
        "8081:80",
        "-T",
        "auto,~9000",
        "-T",
        "9000",
        "-U",
        "auto",
    ]);
    rounds();
    assert_eq!(listening(&g, Tcp), [9000]);
    if !established() {
        assert_eq!(listening(&g, Udp), Vec::<u16>::new());
    }
    assert_eq!(listening(&w.host, Tcp), [8080]);
}

/// Everything automatic on both sides: what is opened for one side must not be taken for the other's.
fn never_in_a_circle() {
    let w = World::direct();
    let g = w.guest(&["-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto"]);
    let server = g.listen(("::", 8080));
    opens(&w.host, Tcp, &[8080]);
    let outside = w.host.listen(("::", 8090));
    opens(&g, Tcp, &[8080, 8090]);
    rounds();
    assert_eq!(listening(&w.host, Tcp), [8080, 8090]);
    assert_eq!(listening(&g, Tcp), [8080, 8090]);
    drop((server, outside));
    opens(&w.host, Tcp, &[]);
    opens(&g, Tcp, &[]);
    opens(&w.host, Udp, &[]);
    opens(&g, Udp, &[]);
}

/// Listens inside on some ports; those expected must be open outside, and no others.
#[track_caller]
fn follows(spec: &str, inside: &[u16], outside: &[u16]) {
    let w = World::direct();
    let g = w.guest(&["-t", spec]);
    let _all: Vec<_> = inside.iter().map(|port| g.listen(("::", *port))).collect();
    opens(&w.host, Tcp, outside);
    rounds();
    assert_eq!(listening(&w.host, Tcp), outside, "{spec}");
}

fn ranges() {
    follows("8000-8010,auto", &[7999, 8000, 8010, 8011], &[8000, 8010]);
}

fn exclusions() {
    follows(
        "auto,~8001-8005,~9000",
        &[8000, 8001, 8005, 8006, 9000],
        &[8000, 8006],
    );
}

fn bound_address() {
    let w = World::direct();
    let g = w.guest(&["-t", "127.0.0.1/auto"]);
    let _server = Server::tcp(&g, ("::", 8080));
    reachable_within(SOON, Tcp, &w.host, ("127.0.0.1", 8080));
    closed(Tcp, &w.host, ("::1", 8080));
    closed(Tcp, &w.peer, (HOST4, 8080));
}

/// It is the port inside that is watched.
fn remapped() {
    let w = World::direct();
    let g = w.guest(&["-t", "8000-8010:9000-9010,auto"]);
    let _server = Server::tcp(&g, ("::", 9003));
    let _other = g.listen(("::", 8001));
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8003));
    assert_eq!(listening(&w.host, Tcp), [8003]);
}

fn not_for_ephemeral_ports() {
    follows(
        "auto",
        &[32_767, 32_768, 45_000, 60_999, 61_000],
        &[32_767, 61_000],
    );
}

/// A port that is taken outside is left alone; the others do not suffer.
fn busy_outside() {
    let w = World::direct();
    let own = Server::tcp(&w.host, ("::", 8080));
    let g = w.guest(&["-t", "auto"]);
    let _inside = [g.listen((HOST4, 8080)), g.listen((HOST4, 8081))];
    opens(&w.host, Tcp, &[8080, 8081]);
    exchange(w.peer.connect((HOST4, 8080)), 100);
    assert_eq!(own.seen().bytes, Ok(100), "the host's own server");
}

/// It is tried again.
fn busy_until_later() {
    let w = World::direct();
    let own = w.host.listen(("::", 8080));
    let g = w.guest(&["-t", "auto"]);
    let _inside = Server::tcp(&g, (HOST4, 8080));
    let _second = g.listen((HOST4, 8081));
    opens(&w.host, Tcp, &[8080, 8081]);
    drop(own);
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8080));
}

/// A listener on the other side's loopback only is a listener.  Out of the namespace it is what it is for.
fn loopback_listeners() {
    let w = World::direct();
    let g = w.guest(&["-T", "auto", "-t", "auto", "--host-lo-to-ns-lo"]);
    let _outside = Server::tcp(&w.host, ("127.0.0.1", 8090));
    reachable_within(SOON, Tcp, &g, ("127.0.0.1", 8090));
    let _inside = Server::tcp(&g, ("127.0.0.1", 8080));
    reachable_within(SOON, Tcp, &w.host, ("127.0.0.1", 8080));
}

/// A listener of one family: the other one is reset, not left hanging.
fn one_family_inside() {
    let w = World::direct();
    let g = w.guest(&["-t", "auto"]);
    let _inside = Server::tcp(&g, ("0.0.0.0", 8080));
    for way in [Tap, Loopback] {
        let (client, to) = way.client(&w, Family::V4);
        reachable_within(SOON, Tcp, client, (to, 8080));
        let (client, to) = way.client(&w, Family::V6);
        assert!(try_reach(Tcp, client, (to, 8080)).is_err());
    }
}

/// Clients' sockets are nobody's servers.
fn connected_sockets_do_not_count() {
    let w = World::direct();
    echo(&w.peer, (PEER4, 1000));
    let g = w.guest(&["-t", "auto", "-u", "auto"]);
    let connected = g.udp(("0.0.0.0", 9000));
    g.enter(|| connected.connect((PEER4, 1000)))
        .expect("a route");
    let mut stream = g.connect((PEER4, 1000));
    std::io::Write::write_all(&mut stream, b"x").expect("send");
    stream.read_exact(&mut [0]).expect("the echo");
    rounds();
    assert_eq!(listening(&w.host, Tcp), Vec::<u16>::new());
    assert_eq!(listening(&w.host, Udp), Vec::<u16>::new());
}

fn many_listeners() {
    let w = World::direct();
    let g = w.guest(&["-t", "auto"]);
    let ports: Vec<u16> = (5000..5500).collect();
    let all: Vec<_> = ports
        .iter()
        .map(|port| g.listen(("0.0.0.0", *port)))
        .collect();
    opens(&w.host, Tcp, &ports);
    drop(all);
    opens(&w.host, Tcp, &[]);
}

/// Watching costs next to nothing: a few wake-ups a second, and hardly any time.
fn idle() {
    let w = World::direct();
    let ns = Netns::new("guest");
    let _pasta = w.attach_bare(&ns, &["--config-net"]);
    let _some: Vec<_> = (5000..5100)
        .map(|port| ns.listen(("127.0.0.1", port)))
        .collect();
    opens(&w.host, Tcp, &(5000..5100).collect::<Vec<u16>>());
    let wakeups = || sum_over_processes(|p| status_number(p, "voluntary_ctxt_switches:"));
    let mut rate = u64::MAX;
    let calm = poll_until(SOON, || {
        let before = (wakeups(), cpu_ticks());
        std::thread::sleep(Duration::from_secs(2));
        rate = wakeups().saturating_sub(before.0);
        rate <= 20 && cpu_ticks() <= before.1 + 1
    });
    assert!(calm, "{rate} wake-ups in two seconds");
}
