//! What the guest's network carries, both ways, over both families.

use std::time::Duration;

use crate::differences::established;
use crate::exec::poll_until;
use crate::guest::SOON;
use crate::harness::Case;
use crate::lab::{INBOUND, Lab, Link, at, descriptors, wait_for};
use crate::service::{
    HELD, accept_many, connect, datagrams, get, open_many, put, release, several, udp_who, who,
};
use crate::world::{DNS4, GATEWAY4, GATEWAY6, HOST4, HOST6, PEER4, PEER6};

pub const CASES: &[Case] = &[
    ("ping", ping),
    ("names", names),
    ("tcp", tcp),
    ("udp", udp),
    ("gateway_is_the_host", gateway_is_the_host),
    ("observed_address", observed_address),
    ("neighbours", neighbours),
    ("web", web),
    ("bulk_out", bulk_out),
    ("bulk_in", bulk_in),
    ("eight_streams", eight_streams),
    ("iperf", iperf),
    ("refused", refused),
    ("thousands_in_a_row", thousands_in_a_row),
    ("ten_thousand_at_once", ten_thousand_at_once),
];

/// What depends on the size of a frame.
pub const BULK: &[Case] = &[
    ("ping", ping),
    ("udp", udp),
    ("bulk_out", bulk_out),
    ("bulk_in", bulk_in),
    ("eight_streams", eight_streams),
];

pub const QUEUES: &[Case] = &[("queues", queues)];

/// Each peer, and the host's address of that family, which is also the guest's.
const PEERS: [(&str, &str); 2] = [(PEER4, HOST4), (PEER6, HOST6)];

/// Bytes of a bulk transfer.
const BULKY: u64 = 100_000_000;

/// For transfers: an emulated guest on a busy machine moves some megabytes a second.
const LONG: Duration = Duration::from_secs(90);

fn ping(lab: &mut Lab) {
    let mtu = lab.setup.mtu;
    let g = lab.online();
    for (peer, _) in PEERS {
        g.sh(&format!("ping -n -c 2 -i 0.2 -W 5 {peer}"));
    }
    for (peer, headers) in [(PEER4, 28), (PEER6, 48)] {
        g.sh(&format!(
            "ping -n -c 1 -W 5 -M do -s {} {peer}",
            mtu - headers
        ));
    }
}

fn names(lab: &mut Lab) {
    let g = lab.online();
    g.sh(&format!(
        "echo nameserver {DNS4} >/etc/resolv.conf; echo search example.org >>/etc/resolv.conf"
    ));
    for name in ["www.example.org", "www"] {
        let said = g.sh(&format!("nslookup {name}"));
        assert!(said.contains("192.0.2.80"), "{said}");
    }
}

fn tcp(lab: &mut Lab) {
    let g = lab.online();
    for (peer, host) in PEERS {
        assert_eq!(
            g.sh(&format!("t who {peer}")).trim(),
            host,
            "who the peer sees"
        );
    }
    for (host, from) in [(HOST4, GATEWAY4), (HOST6, GATEWAY6)] {
        let stream = lab.world.peer.enter(|| connect(at(host, INBOUND)));
        assert_eq!(
            stream.and_then(who).as_deref(),
            Ok(from),
            "who the guest sees"
        );
    }
}

/// What fits into a datagram of IPv4 and IPv6 whatever the MTU, and without fragments.
fn sizes(mtu: u32) -> Vec<u32> {
    [1, 500, 1452, 9000, 60000]
        .into_iter()
        .filter(|s| s + 48 <= mtu)
        .collect()
}

fn udp(lab: &mut Lab) {
    let sizes = sizes(lab.setup.mtu);
    let g = lab.online();
    for (peer, host) in PEERS {
        for size in &sizes {
            g.sh(&format!("t udp {peer} {size} 20"));
        }
        assert_eq!(g.sh(&format!("t udpwho {peer}")).trim(), host);
    }
    for (host, from, any) in [(HOST4, GATEWAY4, "0.0.0.0"), (HOST6, GATEWAY6, "::")] {
        let socket = lab.world.peer.udp((any, 0));
        assert_eq!(udp_who(&socket, at(host, INBOUND)).as_deref(), Ok(from));
        for size in &sizes {
            let size = usize::try_from(*size).expect("small");
            datagrams(&socket, at(host, INBOUND), size, 20)
                .unwrap_or_else(|e| panic!("{size} bytes to {host}: {e}"));
        }
    }
}

/// What goes to the gateway's address arrives at the host's loopback.
fn gateway_is_the_host(lab: &mut Lab) {
    let g = lab.online();
    assert_eq!(g.sh(&format!("t who {GATEWAY4}")).trim(), "127.0.0.1");
    assert_eq!(g.sh(&format!("t udpwho {GATEWAY4}")).trim(), "127.0.0.1");
    assert_eq!(g.sh(&format!("t who {GATEWAY6}")).trim(), "::1");
    let stream = lab
        .world
        .host
        .enter(|| connect(at("127.0.0.1", INBOUND)))
        .expect("connect");
    assert_eq!(
        who(stream).as_deref(),
        Ok(GATEWAY4),
        "whom the guest sees when the host connects"
    );
}

/// Where a guest uses other addresses than it was assigned, that is where inbound connections go.
fn observed_address(lab: &mut Lab) {
    let g = lab.online();
    g.sh(&format!(
        "ip addr flush dev eth0 scope global; ip addr add 198.51.100.77/24 dev eth0
        ip route replace default via {GATEWAY4} dev eth0; ip -6 addr add 2001:db8:51::77/64 dev eth0 nodad
        t who {PEER4} && t who {PEER6}"
    ));
    lab.offline();
    for (_, host) in PEERS {
        let stream = lab.world.peer.enter(|| connect(at(host, INBOUND)));
        assert_eq!(stream.and_then(|s| get(s, 1000)), Ok(()), "to {host}");
    }
    // A connection that outlives its address would go on to send from it, and that is where the next case would be led.
    wait_for(lab.guest(), "netstat -tn", |seen| {
        let here = |l: &str| l.contains("51::77:") || l.contains("100.77:");
        !seen.lines().any(|l| here(l) && !l.contains("TIME_WAIT"))
    });
}

/// A host of the local network is seen with its own hardware address.
fn neighbours(lab: &mut Lab) {
    lab.online();
    let link = lab.world.peer.sh("ip -o link show peer0");
    let mac = link
        .split_whitespace()
        .skip_while(|w| *w != "link/ether")
        .nth(1);
    let mac = mac.expect("an Ethernet address");
    lab.world.peer.sh(
        "ip addr replace 198.51.100.200/24 dev peer0; ip addr replace 2001:db8:51::200/64 dev peer0 nodad",
    );
    lab.world
        .host
        .sh("ping -n -c 1 -W 5 198.51.100.200; ping -n -c 1 -W 5 2001:db8:51::200");
    let g = lab.guest();
    for address in ["198.51.100.200", "2001:db8:51::200"] {
        let script = format!(
            "ip neigh del {address} dev eth0; ping -n -c 1 -W 5 {address} >/dev/null; ip neigh show {address}"
        );
        wait_for(g, &script, |s| s.contains(mac));
    }
}

/// A real client: pages of 10 MB over both families, stored and fetched.
fn web(lab: &mut Lab) {
    let g = lab.online();
    for server in [PEER4.to_owned(), format!("[{PEER6}]")] {
        g.sh(&format!(
            "curl -sS -m 50 -o /run/t/page http://{server}/10000000"
        ));
        assert_eq!(
            g.sh(&format!(
                "curl -sS -m 50 -T /run/t/page http://{server}/; rm /run/t/page"
            )),
            "stored 10000000\n"
        );
    }
}

fn bulk_out(lab: &mut Lab) {
    let g = lab.online();
    for (peer, _) in PEERS {
        for way in ["put", "get"] {
            let done = g.start(&format!("t {way} {peer} {BULKY}")).finish(LONG);
            assert_eq!(done.code, 0, "{way} {peer}: {}", done.err);
        }
    }
}

fn bulk_in(lab: &mut Lab) {
    // Where connections go is what the guest was last seen to use.
    lab.online().sh(&format!("t who {PEER4} && t who {PEER6}"));
    for (_, host) in PEERS {
        for (word, way) in [("put", put as fn(_, _) -> _), ("get", get)] {
            let stream = lab.world.peer.enter(|| connect(at(host, INBOUND)));
            assert_eq!(
                stream.and_then(|s| way(s, BULKY)),
                Ok(()),
                "{word} from outside to {host}"
            );
        }
    }
}

/// Eight streams at once, each way and then both ways at once, on two processors.
fn eight_streams(lab: &mut Lab) {
    let n = BULKY / 10;
    lab.online();
    let g = lab.guest();
    for way in ["put", "get"] {
        let done = g.start(&format!("t {way} {PEER4} {n} 8")).finish(LONG);
        assert_eq!(done.code, 0, "{way}: {}", done.err);
    }
    let out = g.start(&format!("t put {PEER6} {n} 4 && t get {PEER4} {n} 4"));
    for (host, way) in [(HOST4, put as fn(_, _) -> _), (HOST6, get)] {
        let done = lab
            .world
            .peer
            .enter(|| several(at(host, INBOUND), n, 4, way));
        assert_eq!(done, Ok(()), "{host}");
    }
    let out = out.finish(LONG);
    assert_eq!(out.code, 0, "{}", out.err);
}

fn iperf(lab: &mut Lab) {
    lab.online();
    let (g, peer) = (lab.guest(), &lab.world.peer);
    for more in [
        "-P 8",
        "-P 8 -R",
        "-u -l 1400 -b 20M",
        "-u -l 1400 -b 20M -R",
    ] {
        let server = peer.start(&format!("exec iperf3 -s -1 --forceflush -B {PEER4}"));
        let ready = || peer.try_sh("ss -Hltn sport = 5201").out.contains(":5201");
        assert!(poll_until(SOON, ready), "iperf3 does not listen");
        let said = g.sh(&format!("iperf3 -c {PEER4} -t 1 -f k {more}"));
        let rate = said
            .lines()
            .filter(|l| l.contains("receiver"))
            .filter_map(|l| {
                l.split("Kbits")
                    .next()?
                    .split_whitespace()
                    .last()?
                    .parse::<f64>()
                    .ok()
            });
        assert!(rate.fold(0.0, f64::max) > 1000.0, "{more}:\n{said}");
        server.finish(SOON);
    }
}

fn refused(lab: &mut Lab) {
    lab.online();
    for (peer, host) in PEERS {
        let said = lab.guest().try_sh(&format!("t who {peer}@9"));
        assert!(said.err.contains("refused"), "{peer}: {said:?}");
        // Nobody listens in the guest: seen from outside, that is the end of the connection.
        let stream = lab.world.peer.enter(|| connect(at(host, INBOUND + 9)));
        let said = stream.and_then(who);
        assert!(said.as_ref().map_or(true, String::is_empty), "{said:?}");
    }
}

/// The program's descriptors come back when connections have ended.
#[track_caller]
pub fn settled(before: usize, limit: Duration) {
    // What a pool may keep.
    let slack = if established() { 100 } else { 40 };
    assert!(
        poll_until(limit, || descriptors() <= before + slack),
        "{before} descriptors before, {} after",
        descriptors()
    );
}

fn thousands_in_a_row(lab: &mut Lab) {
    lab.online();
    let before = descriptors();
    assert!(before > 0, "the descriptors cannot be seen");
    let g = lab.guest();
    let jobs = [PEER4, PEER6, PEER4, PEER6].map(|p| g.start(&format!("t repeat {p} 1000")));
    for job in jobs {
        let done = job.finish(LONG);
        assert_eq!(done.code, 0, "{}", done.err);
    }
    settled(before, SOON);
}

/// Connections that are open at the same time, as many as descriptors allow: half from the guest, half to it.
fn ten_thousand_at_once(lab: &mut Lab) {
    use nix::sys::resource::{Resource, getrlimit};
    let link = lab.setup.link;
    lab.online();
    let before = descriptors();
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |l| l.1);
    // One frame at a time, a socket takes several times as long as rings do.
    let most = if link == Link::Stream { 2000 } else { 5000 };
    // We hold one end of each, and the program one descriptor for each.
    let half = usize::try_from(limit / 3).unwrap_or(usize::MAX).min(most);
    let g = lab.guest();
    // A small guest forgets closed connections beyond some two thousand, with no more than a RST that its own queue may
    // drop: nobody could know then that they are over.
    g.sh("echo 100000 >/proc/sys/net/ipv4/tcp_max_orphans");
    let listener = lab.world.peer.listen((PEER4, 7001));
    let out = g.start(&format!("t open {PEER4}@7001 {half}"));
    let held = match accept_many(&listener, half) {
        Ok(held) => held,
        Err(e) => panic!("from the guest: {e}; {:?}", out.finish(HELD)),
    };
    let inside = g.start(&format!("t accept 7002 {half}"));
    wait_for(g, "netstat -ltn", |s| s.contains(":7002 "));
    // Ends when the guest has all of them, and releases them.
    let opened = lab
        .world
        .peer
        .enter(|| open_many(at(HOST4, INBOUND + 2), half));
    let inside = inside.finish(HELD);
    assert_eq!(
        (opened, inside.code),
        (Ok(()), 0),
        "to the guest: {}",
        inside.err
    );
    let released = release(held);
    let out = out.finish(HELD);
    assert_eq!(
        (released, out.code),
        (Ok(()), 0),
        "from the guest: {}",
        out.err
    );
    settled(before, HELD);
}

/// Several queue pairs: all of them are used, and carry what they should.
fn queues(lab: &mut Lab) {
    let g = lab.online();
    let said = g.sh("ethtool -L eth0 combined 2 2>&1; ethtool -l eth0");
    let words: Vec<&str> = said.split_whitespace().collect();
    let pairs = words.windows(2).filter(|w| *w == ["Combined:", "2"]);
    assert_eq!(pairs.count(), 2, "{said}");
    for way in ["put", "get"] {
        let done = g
            .start(&format!("t {way} {PEER4} {} 8", BULKY / 10))
            .finish(LONG);
        assert_eq!(done.code, 0, "{}", done.err);
    }
    let counts = g.sh("ethtool -S eth0 | grep -E '[rt]x_?(queue_)?[01]_packets'");
    assert_eq!(counts.lines().count(), 4, "{counts}");
    assert!(
        !counts.lines().any(|l| l.trim_end().ends_with(": 0")),
        "{counts}"
    );
}
