//! `--config-net`: what the namespace's interface looks like when the caller gets its answer.

use crate::exec::{SOON, poll_until};
use crate::harness::tests;
use crate::servers::{http, udp_echo};
use crate::world::{GATEWAY4, Guest, HOST4, HOST6, PEER4, PEER6, World, accept};

tests![
    defaults,
    addresses_are_final,
    without_config_net_nothing_is_set,
    address_and_gateway,
    address_with_prefix,
    address6_and_gateway6,
    podman_man_page_example,
    all_host_addresses,
    all_host_routes,
    many_routes,
    multipath_default_route,
    multipath_route,
    nexthop_objects,
    preferred_source_is_not_copied,
    default_route_with_lower_metric_wins,
    point_to_point_host,
    no_copy_routes,
    no_copy_addresses,
    chosen_interface,
    interface_name,
    mtu,
    mac_addresses,
    ipv4_only,
    ipv6_only,
    host_without_ipv6,
    host_without_ipv4,
    ipv6_disabled_on_the_host,
    only_link_local_ipv6,
    gateway_by_host_route,
    address_without_prefix_route,
    link_without_carrier,
    local_mode,
    outbound_address,
    outbound_interface,
];

/// What `ip` says about the guest: addresses, IPv4 routes, IPv6 routes.
struct Seen {
    addr: String,
    route4: String,
    route6: String,
}

fn look(g: &Guest) -> Seen {
    Seen {
        addr: g.sh("ip addr"),
        route4: g.sh("ip route"),
        route6: g.sh("ip -6 route"),
    }
}

#[track_caller]
fn has(text: &str, part: &str) {
    assert!(text.contains(part), "`{part}` is not in:\n{text}");
}

#[track_caller]
fn lacks(text: &str, part: &str) {
    assert!(!text.contains(part), "`{part}` is in:\n{text}");
}

#[track_caller]
fn connected(g: &Guest) {
    g.sh(&format!(
        "ping -n -c 1 -W 30 {PEER4} && ping -6 -n -c 1 -W 30 {PEER6}"
    ));
}

fn defaults() {
    let w = World::direct();
    let g = w.guest(&[]);
    let seen = look(&g);
    for part in [
        "host0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 65520",
        "inet 198.51.100.1/24",
        "inet6 2001:db8:51::1/64",
        "inet 127.0.0.1/8",
        "inet6 ::1/128",
    ] {
        has(&seen.addr, part);
    }
    has(&seen.route4, &format!("default via {GATEWAY4} dev host0"));
    has(&seen.route4, "198.51.100.0/24 dev host0");
    has(&seen.route6, "default via 2001:db8:51::2 dev host0");
    assert_eq!(seen.route4.matches("default").count(), 1, "{}", seen.route4);
    connected(&g);
}

/// Container engines look at the addresses as soon as pasta's parent has exited.
fn addresses_are_final() {
    let w = World::direct();
    let g = w.guest(&[]);
    let seen = g.sh("ip -6 addr show scope global");
    has(&seen, HOST6);
    lacks(&seen, "tentative");
    lacks(&seen, "dadfailed");
    let local = || g.sh("ip -6 addr show dev host0 scope link");
    assert!(
        local().contains("fe80::") && poll_until(SOON, || !local().contains("tentative")),
        "{}",
        local()
    );
}

fn without_config_net_nothing_is_set() {
    let w = World::direct();
    let ns = crate::world::Netns::new("guest");
    let _pasta = w.attach(&ns, &["-I", "tap9"]);
    let seen = ns.sh("ip addr");
    has(&seen, "tap9:");
    lacks(&seen, "198.51.100.1");
    lacks(&ns.sh("ip route"), "default");
}

fn address_and_gateway() {
    let w = World::direct();
    let g = w.guest(&["-a", "192.0.2.10", "-n", "24", "-g", "192.0.2.1"]);
    let seen = look(&g);
    has(&seen.addr, "inet 192.0.2.10/24");
    lacks(&seen.addr, HOST4);
    has(&seen.route4, "default via 192.0.2.1 dev host0");
    lacks(&seen.route4, "198.51.100");
    has(&seen.addr, &format!("inet6 {HOST6}/64"));
    connected(&g);
}

fn address_with_prefix() {
    let w = World::direct();
    let g = w.guest(&["-a", "192.0.2.10/28", "-g", "192.0.2.1"]);
    has(&look(&g).addr, "inet 192.0.2.10/28");
    connected(&g);
    let output = w.inside(
        &["-a", "10.9.0.10", "-n", "255.255.0.0", "-g", "10.9.0.1"],
        "ip addr; ip route",
    );
    has(&output.out, "inet 10.9.0.10/16");
    has(&output.out, "default via 10.9.0.1");
}

fn address6_and_gateway6() {
    let w = World::direct();
    let g = w.guest(&["-a", "2001:db8:77::5", "-g", "2001:db8:77::1"]);
    let seen = look(&g);
    has(&seen.addr, "inet6 2001:db8:77::5/64");
    lacks(&seen.addr, HOST6);
    has(&seen.route6, "default via 2001:db8:77::1 dev host0");
    has(&seen.route4, &format!("default via {GATEWAY4}"));
    connected(&g);
}

fn podman_man_page_example() {
    let w = World::direct();
    let g = w.guest(&[
        "-I",
        "tap0",
        "--ipv4-only",
        "-a",
        "10.0.2.0",
        "-n",
        "24",
        "-g",
        "10.0.2.2",
        "--dns-forward",
        "10.0.2.3",
        "-m",
        "1500",
        "--no-ndp",
        "--no-dhcpv6",
        "--no-dhcp",
    ]);
    let seen = look(&g);
    has(
        &seen.addr,
        "tap0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500",
    );
    has(&seen.addr, "inet 10.0.2.0/24");
    has(&seen.route4, "default via 10.0.2.2 dev tap0");
    lacks(&seen.route6, "default");
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

fn all_host_addresses() {
    let w = World::direct();
    w.host.sh("ip addr add 198.51.100.77/24 dev host0; ip addr add 10.44.0.1/16 dev host0; ip addr add 2001:db8:51::77/64 dev host0 nodad valid_lft 1000 preferred_lft 500");
    let g = w.guest(&[]);
    let seen = look(&g);
    for part in [
        "198.51.100.1/24",
        "198.51.100.77/24",
        "10.44.0.1/16",
        "2001:db8:51::1/64",
        "2001:db8:51::77/64",
    ] {
        has(&seen.addr, part);
    }
    lacks(&seen.addr, "preferred_lft 499");
    lacks(&g.sh("ip -6 addr show scope global"), "tentative");
    let local = w
        .host
        .sh("ip -6 -o addr show dev host0 scope link")
        .split_whitespace()
        .nth(3)
        .expect("an address")
        .to_owned();
    lacks(&seen.addr, &local);
    connected(&g);
}

fn all_host_routes() {
    let w = World::direct();
    w.host.sh("ip route add 10.9.0.0/16 via 198.51.100.50; ip route add 10.10.0.0/16 dev host0 scope link metric 77; ip -6 route add 2001:db8:10::/48 via 2001:db8:51::50; ip route add 10.11.0.0/16 via 10.9.0.1 onlink dev host0");
    let g = w.guest(&[]);
    let seen = look(&g);
    has(&seen.route4, "10.9.0.0/16 via 198.51.100.50 dev host0");
    has(&seen.route4, "10.10.0.0/16 dev host0");
    has(&seen.route4, "metric 77");
    has(&seen.route4, "10.11.0.0/16 via 10.9.0.1 dev host0");
    has(
        &seen.route6,
        "2001:db8:10::/48 via 2001:db8:51::50 dev host0",
    );
    has(&seen.route4, &format!("default via {GATEWAY4}"));
}

/// More routes than one answer of the kernel holds.
fn many_routes() {
    let w = World::direct();
    w.host.sh("for a in 1 2 3; do for b in $(seq 1 250); do echo route add 10.$a.$b.0/24 via 198.51.100.50; done; done | ip -b -");
    let g = w.guest(&[]);
    assert_eq!(look(&g).route4.matches("via 198.51.100.50").count(), 750);
    connected(&g);
}

fn multipath_default_route() {
    let w = World::direct();
    w.host.sh("ip route replace default nexthop via 198.51.100.2 dev host0 weight 10 nexthop via 198.51.100.3 dev host0 weight 1");
    let g = w.guest(&["--no-map-gw"]);
    let seen = look(&g);
    has(&seen.route4, "default");
    has(&seen.route4, "nexthop via 198.51.100.2 dev host0 weight 10");
    has(&seen.route4, "nexthop via 198.51.100.3 dev host0 weight 1");
    connected(&g);
}

fn multipath_route() {
    let w = World::direct();
    w.host.sh("ip route add 10.9.0.0/16 nexthop via 198.51.100.20 dev host0 nexthop via 198.51.100.21 dev host0");
    let g = w.guest(&[]);
    let seen = look(&g);
    has(&seen.route4, "10.9.0.0/16");
    has(&seen.route4, "nexthop via 198.51.100.20 dev host0");
    connected(&g);
}

/// Routes by nexthop object, as routing daemons make them.
fn nexthop_objects() {
    let w = World::direct();
    w.host.sh(
        "ip nexthop add id 10 via 198.51.100.2 dev host0; ip nexthop add id 11 via 2001:db8:51::2 dev host0
         ip route del default; ip route add default nhid 10; ip -6 route del default; ip -6 route add default nhid 11
         ip route add 10.9.0.0/16 nhid 10",
    );
    let g = w.guest(&[]);
    let seen = look(&g);
    has(&seen.route4, "default via 198.51.100.2 dev host0");
    has(&seen.route4, "10.9.0.0/16 via 198.51.100.2 dev host0");
    has(&seen.route6, "default via 2001:db8:51::2 dev host0");
    connected(&g);
}

/// A route's preferred source may be an address of another interface, which the guest does not have.
fn preferred_source_is_not_copied() {
    let w = World::direct();
    w.host.sh("ip addr add 10.99.0.1/32 dev lo; ip route replace default via 198.51.100.2 dev host0 src 10.99.0.1");
    let g = w.guest(&[]);
    let seen = look(&g);
    has(&seen.route4, "default via 198.51.100.2 dev host0");
    lacks(&seen.route4, "10.99.0.1");
}

/// A second Ethernet of the host, to the same peer.
fn second_interface(w: &World) {
    w.host.sh(
        "ip link add host1 type veth peer name peer1 netns peer
         ip addr add 198.51.101.1/24 dev host1; ip addr add 2001:db8:52::1/64 dev host1 nodad; ip link set host1 up",
    );
    w.peer.sh("ip addr add 198.51.101.2/24 dev peer1; ip addr add 2001:db8:52::2/64 dev peer1 nodad; ip link set peer1 up");
}

fn default_route_with_lower_metric_wins() {
    let w = World::direct();
    second_interface(&w);
    w.host.sh("ip route del default; ip route add default via 198.51.100.2 metric 200; ip route add default via 198.51.101.2 metric 100");
    let g = w.guest(&["-4"]);
    has(&look(&g).addr, "inet 198.51.101.1/24");
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

/// A VPN: no hardware address, a default route without a gateway.
fn point_to_point_host() {
    let w = World::direct();
    w.host.sh("ip link del host0; ip tuntap add tun0 mode tun; ip addr add 10.8.0.2/32 dev tun0; ip link set tun0 up; ip route add default dev tun0");
    let g = w.guest(&["-4"]);
    let seen = look(&g);
    has(&seen.addr, "tun0: <BROADCAST,MULTICAST,UP");
    has(&seen.addr, "inet 10.8.0.2/32");
    has(&seen.route4, "default dev tun0");
}

fn no_copy_routes() {
    let w = World::direct();
    w.host.sh("ip route add 10.9.0.0/16 via 198.51.100.50");
    let g = w.guest(&["--no-copy-routes"]);
    let seen = look(&g);
    lacks(&seen.route4, "10.9.0.0");
    has(&seen.route4, &format!("default via {GATEWAY4}"));
    connected(&g);
}

fn no_copy_addresses() {
    let w = World::direct();
    w.host.sh("ip addr add 198.51.100.77/24 dev host0");
    let g = w.guest(&["--no-copy-addrs"]);
    let seen = look(&g);
    has(&seen.addr, "198.51.100.1/24");
    lacks(&seen.addr, "198.51.100.77");
    connected(&g);
}

fn chosen_interface() {
    let w = World::direct();
    second_interface(&w);
    let g = w.guest(&["-i", "host1"]);
    let seen = look(&g);
    has(&seen.addr, "host1: ");
    has(&seen.addr, "198.51.101.1/24");
    lacks(&seen.addr, HOST4);
}

fn interface_name() {
    let w = World::direct();
    let g = w.guest(&["-I", "myname"]);
    let seen = look(&g);
    has(&seen.addr, "myname: <BROADCAST,MULTICAST,UP,LOWER_UP>");
    has(&seen.route4, "default via 198.51.100.2 dev myname");
    connected(&g);
}

fn mtu() {
    let w = World::direct();
    for mtu in ["1280", "1500", "9000", "65520"] {
        has(
            &w.inside(&["--mtu", mtu], "ip link show host0").ok(),
            &format!("mtu {mtu} "),
        );
    }
    has(&w.inside(&["-m", "0"], "ip link show host0").ok(), "mtu ");
}

/// -M is our side, --ns-mac-addr the namespace's; of two the later wins.
fn mac_addresses() {
    let w = World::direct();
    let g = w.guest(&[
        "-M",
        "02:aa:bb:cc:dd:01",
        "--ns-mac-addr",
        "9a:dd:31:ea:92:98",
        "--ns-mac-addr",
        "aa:bb:cc:dd:ee:f0",
    ]);
    has(&look(&g).addr, "link/ether aa:bb:cc:dd:ee:f0");
    connected(&g);
    has(&g.sh("ip neigh show 198.51.100.2"), "02:aa:bb:cc:dd:01");
    let plain = w.inside(
        &[],
        &format!("ping -n -c 1 -W 30 {PEER4} >/dev/null; ip neigh show 198.51.100.2"),
    );
    has(&plain.out, "lladdr ");
}

fn ipv4_only() {
    let w = World::direct();
    let g = w.guest(&["-4"]);
    let seen = look(&g);
    has(&seen.addr, HOST4);
    lacks(&seen.addr, "2001:db8");
    lacks(&seen.route6, "default");
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

fn ipv6_only() {
    let w = World::direct();
    let g = w.guest(&["-6"]);
    let seen = look(&g);
    has(&seen.addr, HOST6);
    lacks(&seen.addr, "198.51.100");
    lacks(&seen.route4, "default");
    g.sh(&format!("ping -6 -n -c 1 -W 30 {PEER6}"));
}

/// Each family falls back by itself: IPv4 works as ever, IPv6 reaches the host alone.
fn host_without_ipv6() {
    let w = World::direct();
    w.host
        .sh("ip -6 addr flush dev host0; ip -6 route flush dev host0");
    let g = w.guest(&[]);
    let seen = look(&g);
    has(&seen.addr, HOST4);
    lacks(&seen.addr, "2001:db8");
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

fn host_without_ipv4() {
    let w = World::direct();
    w.host.sh("ip -4 addr flush dev host0");
    let g = w.guest(&[]);
    let seen = look(&g);
    has(&seen.addr, HOST6);
    has(&seen.addr, "169.254.2.1/16");
    g.sh(&format!("ping -6 -n -c 1 -W 30 {PEER6}"));
}

fn ipv6_disabled_on_the_host() {
    let w = World::direct();
    for conf in ["all", "default", "lo", "host0"] {
        assert!(w.host.set(&format!("ipv6/conf/{conf}/disable_ipv6"), "1"));
    }
    let g = w.guest(&[]);
    has(&look(&g).addr, HOST4);
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

fn only_link_local_ipv6() {
    let w = World::direct();
    w.host
        .sh("ip -6 addr flush dev host0 scope global; ip -6 route flush dev host0 proto boot");
    let g = w.guest(&[]);
    let seen = look(&g);
    has(&seen.addr, HOST4);
    lacks(&seen.addr, "2001:db8");
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

/// A /32 and a gateway that only a host route reaches, as many hosters set it up.
fn gateway_by_host_route() {
    let w = World::direct();
    w.host.sh(
        "ip addr flush dev host0 scope global; ip addr add 198.51.100.1/32 dev host0
         ip route add 198.51.100.2 dev host0; ip route add default via 198.51.100.2 dev host0",
    );
    let g = w.guest(&["-4"]);
    let seen = look(&g);
    has(&seen.addr, "inet 198.51.100.1/32");
    has(&seen.route4, "default via 198.51.100.2 dev host0");
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

fn address_without_prefix_route() {
    let w = World::direct();
    w.host.sh(
        "ip addr flush dev host0 scope global; ip addr add 198.51.100.1/24 dev host0 noprefixroute
         ip route add 198.51.100.0/24 dev host0 metric 600; ip route add default via 198.51.100.2 dev host0 metric 600",
    );
    let g = w.guest(&["-4"]);
    has(&look(&g).addr, "inet 198.51.100.1/24");
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

/// A cable that is out at the start: the routes are there, marked; later everything works.
fn link_without_carrier() {
    let w = World::direct();
    w.peer.sh("ip link set peer0 down");
    let g = w.guest(&["-4"]);
    has(&look(&g).addr, HOST4);
    w.peer
        .sh("ip link set peer0 up; ip route add default via 198.51.100.1");
    assert!(
        poll_until(SOON, || g
            .try_sh(&format!("ping -n -c 1 -W 1 {PEER4}"))
            .code
            == 0),
        "no connection after the carrier is back"
    );
}

/// No usable interface at all: link-local addresses, and the host's loopback at the gateway.
fn local_mode() {
    crate::harness::need("curl");
    let w = World::lonely();
    http(&w.host, ("127.0.0.1", 80));
    udp_echo(&w.host, ("::1", 1000));
    let g = w.guest(&[]);
    let seen = look(&g);
    has(&seen.addr, "tap0: ");
    has(&seen.addr, "inet 169.254.2.1/16");
    has(&seen.route4, "default via 169.254.2.2 dev tap0");
    assert_eq!(
        g.sh("curl -sS -m 60 http://169.254.2.2/100 | wc -c"),
        "100\n"
    );
}

fn outbound_address() {
    let w = World::direct();
    w.host.sh(
        "ip addr add 198.51.100.77/24 dev host0; ip addr add 2001:db8:51::77/64 dev host0 nodad",
    );
    let g = w.guest(&["-o", "198.51.100.77", "-o", "2001:db8:51::77"]);
    for (peer, source, any) in [
        (PEER4, "198.51.100.77", "0.0.0.0:0"),
        (PEER6, "2001:db8:51::77", "[::]:0"),
    ] {
        let listener = w.peer.listen((peer, 1000));
        let _near = g.connect((peer, 1000));
        assert_eq!(accept(&listener).1.ip().to_string(), source);
        let (server, client) = (w.peer.udp((peer, 1000)), g.udp(any));
        client.send_to(b"x", (peer, 1000)).expect("send");
        assert_eq!(
            server
                .recv_from(&mut [0; 10])
                .expect("a datagram")
                .1
                .ip()
                .to_string(),
            source
        );
    }
}

/// Through the interface that routing would not have chosen.
fn outbound_interface() {
    let w = World::direct();
    second_interface(&w);
    w.host.sh("ip route add default via 198.51.101.2 dev host1 metric 500; ip -6 route add default via 2001:db8:52::2 dev host1 metric 5000");
    w.peer.sh("ip route replace 198.51.101.0/24 dev peer1");
    let g = w.guest(&[
        "-i",
        "host0",
        "--outbound-if4",
        "host1",
        "--outbound-if6",
        "host1",
    ]);
    for (peer, source) in [(PEER4, "198.51.101.1"), (PEER6, "2001:db8:52::1")] {
        let listener = w.peer.listen((peer, 1000));
        let _near = g.connect((peer, 1000));
        assert_eq!(accept(&listener).1.ip().to_string(), source);
    }
}
