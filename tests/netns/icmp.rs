//! Echo, and the errors that come back for UDP and echo: what ping, traceroute and tracepath see inside.

use crate::harness::{need, tests};
use crate::servers::http;
use crate::world::{GATEWAY4, GATEWAY6, PEER4, PEER6, World};

tests![
    ping4,
    ping6,
    ping_large,
    ping_fragments,
    ping_many,
    ping_as_the_spawned_user,
    no_answer_without_one,
    ping_unreachable,
    ping_too_big,
    traceroute_udp,
    traceroute_icmp,
    traceroute_closed_port,
    path_mtu_by_udp,
    path_mtu_by_tcp,
];

fn ping4() {
    let w = World::direct();
    w.guest(&[])
        .sh(&format!("ping -n -c 3 -i 0.1 -w 30 {PEER4}"));
}

fn ping6() {
    let w = World::direct();
    w.guest(&[])
        .sh(&format!("ping -6 -n -c 3 -i 0.1 -w 30 {PEER6}"));
}

fn ping_large() {
    let w = World::direct();
    let g = w.guest(&[]);
    for size in [0, 1, 17, 1473, 20_001, 60_000] {
        g.sh(&format!(
            "ping -n -c 1 -W 30 -s {size} {PEER4} && ping -6 -n -c 1 -W 30 -s {size} {PEER6}"
        ));
    }
}

/// Requests the guest's kernel has to fragment.
fn ping_fragments() {
    let w = World::direct();
    let g = w.guest(&["-m", "1500"]);
    g.sh(&format!("ping -n -c 1 -W 30 -s 4000 {PEER4}"));
    g.sh(&format!("ping -6 -n -c 1 -W 30 -s 4000 {PEER6}"));
}

/// 20 programs at once, 20 requests each, nothing lost.
fn ping_many() {
    let w = World::direct();
    let g = w.guest(&[]);
    let all: Vec<_> = (0..20)
        .map(|i| {
            g.start(&format!(
                "ping -n -c 20 -i 0.01 -w 30 {}",
                if i % 2 == 0 { PEER4 } else { PEER6 }
            ))
        })
        .collect();
    for one in all {
        // Told to wait for the last answers, it sends more while it waits, and does not wait for theirs.
        let output = one.finish(crate::exec::SOON);
        assert_eq!(output.code, 0, "{}", output.both());
    }
}

fn ping_as_the_spawned_user() {
    let w = World::direct();
    let output = w.inside(
        &[],
        &format!("cat /proc/sys/net/ipv4/ping_group_range; ping -n -c 1 -W 30 {PEER4} >&2"),
    );
    assert_eq!(
        output.out.split_whitespace().collect::<Vec<_>>(),
        ["0", "0"],
        "{}",
        output.err
    );
    assert_eq!(output.code, 0, "{}", output.err);
}

/// Nobody makes up answers: what does not answer outside does not answer inside.
fn no_answer_without_one() {
    let w = World::direct();
    w.peer.sh("ip route add blackhole 203.0.113.66");
    let g = w.guest(&[]);
    assert_eq!(g.try_sh("ping -n -c 2 -i 0.2 -W 1 203.0.113.66").code, 1);
}

fn ping_unreachable() {
    let w = World::routed(65520);
    w.router
        .as_ref()
        .expect("a router")
        .sh("ip route add unreachable 203.0.113.77; ip -6 route add unreachable 2001:db8:99::77");
    let g = w.guest(&[]);
    let text = g.try_sh("ping -n -c 2 -i 0.2 -W 1 203.0.113.77").both();
    assert!(text.contains("Destination Host Unreachable"), "{text}");
    let text = g
        .try_sh("ping -6 -n -c 2 -i 0.2 -W 1 2001:db8:99::77")
        .both();
    assert!(text.contains("Destination unreachable"), "{text}");
}

fn ping_too_big() {
    let w = World::routed(1400);
    let g = w.guest(&[]);
    let text = g
        .try_sh(&format!("ping -n -M do -c 3 -i 0.2 -W 1 -s 3000 {PEER4}"))
        .both();
    assert!(
        text.contains("mtu = 1400") || text.contains("mtu=1400"),
        "{text}"
    );
    let text = g
        .try_sh(&format!(
            "ping -6 -n -M do -c 3 -i 0.2 -W 1 -s 3000 {PEER6}"
        ))
        .both();
    assert!(
        text.contains("mtu=1400") || text.contains("mtu = 1400"),
        "{text}"
    );
}

/// Two hops: the router (time exceeded), then the peer.
fn hops(method: &str) {
    need("traceroute");
    let w = World::routed(65520);
    let g = w.guest(&[]);
    for (peer, gateway) in [(PEER4, GATEWAY4), (PEER6, GATEWAY6)] {
        let text = g.sh(&format!(
            "traceroute {method} -n -q 1 -N 1 -w 30 -m 5 {peer}"
        ));
        let hops: Vec<&str> = text
            .lines()
            .skip(1)
            .filter_map(|l| l.split_whitespace().nth(1))
            .collect();
        assert_eq!(hops, [gateway, peer], "{text}");
    }
}

fn traceroute_udp() {
    hops("");
}

fn traceroute_icmp() {
    hops("-I");
}

/// An ordinary UDP port: the last hop says that it is closed.
fn traceroute_closed_port() {
    hops("-U -p 9999");
}

fn path_mtu_by_udp() {
    need("tracepath");
    let w = World::routed(1400);
    let g = w.guest(&[]);
    for peer in [PEER4, PEER6] {
        let text = g.sh(&format!("tracepath -n -m 60 {peer}"));
        assert!(text.contains("pmtu 1400"), "{text}");
        assert!(text.contains("reached"), "{text}");
    }
}

fn path_mtu_by_tcp() {
    need("curl");
    let w = World::routed(1400);
    http(&w.peer, (PEER4, 80));
    http(&w.peer, (PEER6, 80));
    let g = w.guest(&[]);
    crate::servers::pattern_file("/run/t/data", 5_000_000);
    for server in [PEER4.to_owned(), format!("[{PEER6}]")] {
        g.sh(&format!(
            "curl -sS -m 20 http://{server}/5000000 | cmp - data"
        ));
        assert_eq!(
            g.sh(&format!("curl -sS -m 20 -T data http://{server}/")),
            "stored 5000000\n"
        );
    }
}
