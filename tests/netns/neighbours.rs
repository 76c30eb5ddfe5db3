//! Who the guest sees on its network: the host's neighbours, at their own link-layer addresses, and us.

use crate::differences::established;
use crate::exec::{SOON, poll_until};
use crate::harness::{need, tests};
use crate::servers::echo;
use crate::world::{GATEWAY4, GATEWAY6, Guest, HOST4, HOST6, Netns, PEER4, World, accept};

tests![
    known_at_the_start,
    turns_up_later,
    moves,
    is_forgotten,
    static_entries,
    other_networks,
    mapped_addresses_are_ours,
    gateway_that_is_not_mapped,
    sender_of_frames,
    connections_from_a_neighbour,
    many,
];

/// Another station of the host's network, and its address there.
const NEAR4: &str = "198.51.100.7";
const NEAR6: &str = "2001:db8:51::7";
const FIRST: &str = "02:00:00:00:00:07";
const SECOND: &str = "02:00:00:00:00:08";
const OURS: &str = "9a:55:9a:55:9a:55";

/// Host and peer, the latter with the addresses of a neighbour as well; nobody has talked to it yet.
fn world() -> World {
    let w = World::direct();
    w.peer.sh(&format!(
        "ip link set peer0 down; ip link set peer0 address {FIRST}; ip link set peer0 up
         ip addr add {NEAR4}/24 dev peer0; ip addr replace {GATEWAY6}/64 dev peer0 nodad
         ip addr add {NEAR6}/64 dev peer0 nodad"
    ));
    let up = || w.host.sh("ip -o link show host0").contains("state UP");
    assert!(poll_until(SOON, up), "host0 has no carrier");
    w.host.sh("ip neigh flush dev host0");
    w
}

/// Make the host look for its neighbour.
fn meet(w: &World) {
    w.host.sh(&format!(
        "ping -n -c 1 -w 30 {NEAR4}; ping -6 -n -c 1 -w 30 {NEAR6}"
    ));
}

/// Where the guest finds an address when it asks now: its own memory is not asked.
fn asks(g: &Guest, address: &str) -> String {
    g.sh(&format!(
        "ip neigh del {address} dev host0 2>/dev/null; true"
    ));
    let ping = if address.contains(':') {
        "ping -6"
    } else {
        "ping"
    };
    let mut found = String::new();
    let answered = poll_until(SOON, || {
        g.try_sh(&format!("{ping} -n -c 1 -W 0.2 {address}"));
        found = remembers(g, address);
        !found.is_empty()
    });
    assert!(answered, "nobody says where {address} is");
    found
}

/// Where the guest thinks an address is; empty: it has no idea.
fn remembers(g: &Guest, address: &str) -> String {
    let text = g.sh(&format!("ip neigh show {address} dev host0"));
    let mut words = text.split_whitespace();
    words.find(|word| *word == "lladdr");
    words.next().unwrap_or_default().to_owned()
}

/// The guest asks until it hears this.
#[track_caller]
fn finds(g: &Guest, address: &str, mac: &str) {
    let mut found = String::new();
    let right = poll_until(SOON, || {
        found = asks(g, address);
        found == mac
    });
    assert!(right, "{address} is at {found}, not {mac}");
}

/// The guest is told this, without asking.
#[track_caller]
fn is_told(g: &Guest, address: &str, mac: &str) {
    let mut found = String::new();
    let right = poll_until(SOON, || {
        found = remembers(g, address);
        found == mac
    });
    assert!(right, "the guest thinks {address} is at {found}, not {mac}");
}

fn known_at_the_start() {
    let w = world();
    meet(&w);
    let g = w.guest(&[]);
    for near in [NEAR4, NEAR6] {
        finds(&g, near, FIRST);
    }
    // Who the host does not know is where we are, and so is the guest's router.
    for other in ["198.51.100.8", "2001:db8:51::8", GATEWAY4] {
        finds(&g, other, OURS);
    }
}

fn turns_up_later() {
    let w = world();
    let g = w.guest(&[]);
    for near in [NEAR4, NEAR6] {
        // The question makes the host look for it; the answer comes too late for this one.
        asks(&g, near);
        is_told(&g, near, FIRST);
    }
}

fn moves() {
    let w = world();
    meet(&w);
    let g = w.guest(&[]);
    for near in [NEAR4, NEAR6] {
        finds(&g, near, FIRST);
    }
    w.peer.sh(&format!("ip link set peer0 address {SECOND}"));
    w.host.sh("ip neigh flush dev host0");
    meet(&w);
    for near in [NEAR4, NEAR6] {
        is_told(&g, near, SECOND);
        finds(&g, near, SECOND);
    }
}

fn is_forgotten() {
    let w = world();
    meet(&w);
    let g = w.guest(&[]);
    finds(&g, NEAR4, FIRST);
    // Somebody else answers there no more, and nobody asks the host to look.
    w.peer.sh("ip link set peer0 down");
    w.host.sh("ip neigh flush dev host0");
    finds(&g, NEAR4, OURS);
}

fn static_entries() {
    let w = world();
    let g = w.guest(&[]);
    for (address, mac) in [
        (NEAR4, FIRST),
        (NEAR6, FIRST),
        (NEAR4, SECOND),
        (NEAR6, SECOND),
    ] {
        w.host.sh(&format!(
            "ip neigh replace {address} lladdr {mac} dev host0 nud permanent"
        ));
        finds(&g, address, mac);
    }
    // No station has such an address.
    for mac in ["03:00:00:00:00:01", "00:00:00:00:00:00"] {
        w.host.sh(&format!(
            "ip neigh replace {NEAR4} lladdr {mac} dev host0 nud permanent"
        ));
        if !established() {
            finds(&g, NEAR4, OURS);
        }
    }
}

/// Only what is on the network that the guest's is modelled on.
fn other_networks() {
    let w = world();
    w.host.sh("ip link add other0 type veth peer name other1; ip link set other0 up; ip addr add 10.7.0.1/24 dev other0");
    let g = w.guest(&[]);
    w.host.sh(&format!(
        "ip neigh replace 10.7.0.9 lladdr {FIRST} dev other0
         ip neigh replace {NEAR4} lladdr {FIRST} dev host0"
    ));
    finds(&g, NEAR4, FIRST);
    g.sh("ip addr add 10.7.0.2/24 dev host0");
    finds(&g, "10.7.0.9", OURS);
}

/// What leads somewhere else than to the neighbour is no neighbour.
fn mapped_addresses_are_ours() {
    let w = world();
    w.host.sh(&format!(
        "ip neigh replace {GATEWAY4} lladdr {FIRST} dev host0
         ip neigh replace {GATEWAY6} lladdr {FIRST} dev host0
         ip neigh replace {NEAR4} lladdr {FIRST} dev host0
         ip neigh replace {NEAR6} lladdr {FIRST} dev host0
         ip neigh replace 198.51.100.9 lladdr {SECOND} dev host0"
    ));
    let g = w.guest(&["--map-guest-addr", NEAR4, "--map-guest-addr", NEAR6]);
    finds(&g, "198.51.100.9", SECOND);
    for address in [GATEWAY4, GATEWAY6, NEAR4, NEAR6] {
        finds(&g, address, OURS);
    }
}

fn gateway_that_is_not_mapped() {
    let w = world();
    w.host.sh(&format!(
        "ip neigh replace {GATEWAY4} lladdr {FIRST} dev host0
         ip neigh replace {GATEWAY6} lladdr {FIRST} dev host0"
    ));
    let g = w.guest(&["--no-map-gw"]);
    for address in [GATEWAY4, GATEWAY6] {
        finds(&g, address, FIRST);
    }
    g.sh(&format!(
        "ping -n -c 1 -w 30 {GATEWAY4}; ping -6 -n -c 1 -w 30 {GATEWAY6}"
    ));
}

/// Frames from a neighbour come from where it is, those from beyond from where the gateway is; unless that is us.
fn sender_of_frames() {
    need("tcpdump");
    for (options, beyond) in [(&["--no-map-gw"][..], FIRST), (&[][..], OURS)] {
        let w = world();
        echo(&w.peer, (NEAR4, 1000));
        echo(&w.peer, (PEER4, 1000));
        meet(&w);
        w.host.sh(&format!("ping -n -c 1 -w 30 {GATEWAY4}"));
        let g = w.guest(options);
        finds(&g, NEAR4, FIRST);
        finds(&g, GATEWAY4, beyond);
        let capture = g.ns.start(
            "exec timeout 20 tcpdump -U -e -n -i host0 -c 2 -Q in \
             'tcp and src port 1000 and tcp[tcpflags] & tcp-syn != 0' 2>started",
        );
        let started =
            || std::fs::read_to_string("/run/t/started").is_ok_and(|t| t.contains("listening"));
        assert!(poll_until(SOON, started), "tcpdump does not start");
        drop(g.connect((NEAR4, 1000)));
        drop(g.connect((PEER4, 1000)));
        let seen = capture.finish(SOON).out;
        let sender = |ip: &str| {
            let line = seen.lines().find(|l| l.contains(&format!(" {ip}.1000 >")));
            let word = line.and_then(|l| l.split_whitespace().nth(1));
            word.unwrap_or_default().to_owned()
        };
        assert_eq!(sender(NEAR4), FIRST, "{seen}");
        assert_eq!(sender(PEER4), beyond, "{seen}");
        take_apart(&w, g);
    }
}

/// Make room for another world.
fn take_apart(w: &World, g: Guest) {
    w.host.sh("ip link del host0");
    drop(g);
    for name in ["guest", "peer", "host"] {
        Netns::retire(name);
    }
    std::fs::remove_file("/run/t/started").expect("tcpdump has made it");
}

/// A neighbour that connects to the guest is found where it is, and its connection works.
fn connections_from_a_neighbour() {
    let w = world();
    meet(&w);
    let g = w.guest(&["-t", "2000"]);
    for (host, near) in [(HOST4, NEAR4), (HOST6, NEAR6)] {
        finds(&g, near, FIRST);
        let listener =
            g.ns.listen((if host == HOST4 { "0.0.0.0" } else { "::" }, 2000));
        w.peer
            .sh(&format!("ip route replace {host} dev peer0 src {near}"));
        let client = w.peer.connect((host, 2000));
        let (_stream, from) = accept(&listener);
        assert_eq!(from.ip().to_canonical().to_string(), near);
        assert_eq!(remembers(&g, near), FIRST);
        drop(client);
    }
}

/// More than anybody keeps: whoever is heard of after that is known, and all goes on.
fn many() {
    let w = world();
    let g = w.guest(&[]);
    let batch: String = (0..1500)
        .map(|n| {
            format!(
                "neigh replace 10.9.{}.{} lladdr {FIRST} dev host0 nud permanent\n",
                n / 250,
                n % 250 + 1
            )
        })
        .collect();
    std::fs::write("/run/t/batch", batch).expect("tmpfs");
    w.host
        .sh("ip addr add 10.9.0.254/16 dev host0; ip -force -b batch 2>/dev/null; true");
    // In a storm the kernel drops messages, and its answer to what was missed then pushes nobody out of a full table.
    let known_when_heard_of = || {
        w.host.sh(&format!(
            "ip neigh del {NEAR4} dev host0 2>/dev/null
             ip neigh replace {NEAR4} lladdr {SECOND} dev host0 nud permanent"
        ));
        asks(&g, NEAR4) == SECOND
    };
    assert!(poll_until(SOON, known_when_heard_of), "nobody new is known");
    g.sh(&format!("ping -n -c 1 -w 30 {PEER4}"));
}
