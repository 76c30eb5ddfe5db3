//! `netlink::query_host` against what `ip` was told.

use std::fmt::Write;
use std::net::IpAddr;
use std::process::Command;

use passt::config::host::{Address, HostNetwork, LinkFlags, Route, RouteKind, Scope};
use passt::netlink::query_host;

use crate::arena::{have_tun, host_with_eth0, ip, ip_all, isolated};

fn query() -> HostNetwork {
    query_host().unwrap()
}

fn route<'a>(host: &'a HostNetwork, destination: &str, prefix_len: u8) -> &'a Route {
    let destination: IpAddr = destination.parse().unwrap();
    host.routes
        .iter()
        .find(|r| r.destination == destination && r.prefix_len == prefix_len)
        .unwrap_or_else(|| panic!("no route to {destination}/{prefix_len} in {host:#?}"))
}

fn gateways(route: &Route) -> Vec<String> {
    let gateway = |g: Option<IpAddr>| g.map_or_else(|| "-".to_owned(), |g| g.to_string());
    route
        .hops
        .iter()
        .map(|h| format!("{}*{}", gateway(h.gateway), h.weight))
        .collect()
}

#[test]
fn empty_namespace() {
    isolated("query::empty_namespace", || {
        let host = query();
        let names: Vec<_> = host.links.iter().map(|l| l.name.as_str()).collect();
        assert!(names.contains(&"lo"), "{names:?}");
        let lo = host.link_named("lo").unwrap();
        assert!(lo.is_loopback() && !lo.is_up());
        assert_eq!((lo.index, lo.mac, lo.mtu), (1, None, 65536));
        assert_eq!(host.addresses, []);
        assert_eq!(host.routes, []);
    });
}

#[test]
fn links_and_addresses() {
    isolated("query::links_and_addresses", || {
        host_with_eth0();
        ip_all(
            "link set eth0 address 02:00:00:00:00:07 mtu 1400
             addr add 192.0.2.2/24 broadcast 192.0.2.255 dev eth0 label eth0:x
             addr add 192.0.2.3/24 dev eth0 noprefixroute
             addr add 10.9.0.2 peer 10.9.0.1/32 dev eth0
             addr add 169.254.7.7/16 scope link dev eth0
             addr add 2001:db8::2/64 dev eth0 nodad valid_lft 1000 preferred_lft 0
             addr add fd00::2/64 dev eth0 nodad metric 77",
        );
        let host = query();
        let eth0 = host.link_named("eth0").unwrap();
        assert_eq!(eth0.mac.unwrap().to_string(), "02:00:00:00:00:07");
        assert_eq!(eth0.mtu, 1400);
        assert!(eth0.flags.has(LinkFlags::UP | LinkFlags::LOWER_UP));
        let find = |text: &str| -> &Address {
            let wanted: IpAddr = text.parse().unwrap();
            host.addresses.iter().find(|a| a.local == wanted).unwrap()
        };
        let a = find("192.0.2.2");
        assert_eq!(
            (a.link, a.prefix_len, a.scope, a.peer),
            (eth0.index, 24, Scope::Universe, None)
        );
        assert_eq!(a.broadcast.unwrap().to_string(), "192.0.2.255");
        assert!(find("192.0.2.3").has(Address::NO_PREFIX_ROUTE | Address::SECONDARY_OR_TEMPORARY));
        assert_eq!(find("10.9.0.2").peer, Some("10.9.0.1".parse().unwrap()));
        assert_eq!(find("169.254.7.7").scope, Scope::Link);
        assert!(find("2001:db8::2").has(Address::DEPRECATED));
        assert_eq!(find("fd00::2").metric, Some(77));
        assert_eq!(find("::1").scope, Scope::Host);
    });
}

#[test]
fn routes_of_every_shape() {
    isolated("query::routes_of_every_shape", || {
        host_with_eth0();
        ip_all(
            "addr add 192.0.2.2/24 dev eth0
             addr add 2001:db8::2/64 dev eth0 nodad
             route add default via 192.0.2.1 src 192.0.2.2 metric 50 proto dhcp
             route add 203.0.113.0/24 nexthop via 192.0.2.7 weight 2 nexthop via 192.0.2.8 weight 250
             route add 10.77.0.0/16 via 192.0.2.1 mtu 1300 advmss 1000
             route add 10.80.0.0/16 via 172.31.1.1 dev eth0 onlink
             route add blackhole 10.81.0.0/16
             route add 10.83.0.0/16 via inet6 fe80::9 dev eth0
             route add 10.84.0.0/16 dev eth0 table 100
             -6 route add default via 2001:db8::1 dev eth0 pref high
             -6 route add 2001:db8:5::/48 metric 9 nexthop via fe80::5 dev eth0 weight 3 nexthop via fe80::6 dev eth0",
        );
        let host = query();
        let default = route(&host, "0.0.0.0", 0);
        assert!(default.is_default());
        assert_eq!((default.metric, default.protocol), (Some(50), 16));
        assert_eq!(default.prefsrc, Some("192.0.2.2".parse().unwrap()));
        assert_eq!(gateways(default), ["192.0.2.1*1"]);
        assert_eq!(
            gateways(route(&host, "203.0.113.0", 24)),
            ["192.0.2.7*2", "192.0.2.8*250"]
        );
        assert_eq!(
            route(&host, "10.77.0.0", 16).metrics,
            [(2, 1300), (8, 1000)]
        );
        assert!(route(&host, "10.80.0.0", 16).hops[0].onlink);
        assert_eq!(route(&host, "10.81.0.0", 16).kind, RouteKind::Other(6));
        assert_eq!(gateways(route(&host, "10.83.0.0", 16)), ["fe80::9*1"]);
        let connected = route(&host, "192.0.2.0", 24);
        assert_eq!((connected.scope, connected.protocol), (Scope::Link, 2));
        assert_eq!(gateways(connected), ["-*1"]);
        assert!(
            !host
                .routes
                .iter()
                .any(|r| r.destination.to_string() == "10.84.0.0")
        );
        let default6 = route(&host, "::", 0);
        assert_eq!(
            (default6.preference, default6.metric),
            (Some(1), Some(1024))
        );
        assert_eq!(
            gateways(route(&host, "2001:db8:5::", 48)),
            ["fe80::5*3", "fe80::6*1"]
        );
    });
}

#[test]
fn nexthop_objects() {
    isolated("query::nexthop_objects", || {
        host_with_eth0();
        ip_all(
            "addr add 192.0.2.2/24 dev eth0
             nexthop add id 10 via 192.0.2.9 dev eth0
             nexthop add id 11 via 192.0.2.8 dev eth0
             nexthop add id 12 group 10,5/11,7
             nexthop add id 13 via 172.31.1.1 dev eth0 onlink
             nexthop add id 14 via fe80::4 dev eth0
             route add default nhid 10
             route add 10.82.0.0/16 nhid 12
             route add 10.83.0.0/16 nhid 13
             -6 route add 2001:db8:9::/48 nhid 14",
        );
        let check = || {
            let host = query();
            assert_eq!(gateways(route(&host, "0.0.0.0", 0)), ["192.0.2.9*1"]);
            assert_eq!(
                gateways(route(&host, "10.82.0.0", 16)),
                ["192.0.2.9*5", "192.0.2.8*7"]
            );
            assert!(route(&host, "10.83.0.0", 16).hops[0].onlink);
            assert_eq!(gateways(route(&host, "2001:db8:9::", 48)), ["fe80::4*1"]);
        };
        check();
        // Without compatibility mode routes name the object and say nothing else.
        std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").unwrap();
        assert!(
            !ip("-d route show 10.82.0.0/16")
                .contains("via 192.0.2.9 dev eth0 weight 5\n\tnexthop via 192")
        );
        check();
    });
}

#[test]
fn a_tun_has_no_mac() {
    const NAME: &str = "query::a_tun_has_no_mac";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        ip_all(
            "tuntap add tun7 mode tun
             link set tun7 up
             addr add 10.8.0.2 peer 10.8.0.1 dev tun7
             route add default dev tun7 scope link",
        );
        let host = query();
        let tun = host.link_named("tun7").unwrap();
        assert_eq!(tun.mac, None);
        assert!(tun.flags.has(LinkFlags::POINT_TO_POINT | LinkFlags::NO_ARP));
        let default = route(&host, "0.0.0.0", 0);
        assert_eq!(
            (default.scope, gateways(default)),
            (Scope::Link, vec!["-*1".to_owned()])
        );
        assert_eq!(default.hops[0].link, tun.index);
    });
}

#[test]
fn ipv6_disabled() {
    isolated("query::ipv6_disabled", || {
        for scope in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
        host_with_eth0();
        ip("addr add 192.0.2.2/24 dev eth0");
        let host = query();
        assert!(host.addresses.iter().all(|a| a.local.is_ipv4()));
        assert_eq!(host.routes_of(true).count(), 0);
        assert_eq!(host.routes_of(false).count(), 1);
    });
}

/// More than fits one datagram, of each kind.
fn crowd(host_routes: usize) {
    host_with_eth0();
    let mut batch =
        "addr add 192.0.2.2/24 dev eth0\naddr add 2001:db8::2/64 dev eth0 nodad\n".to_owned();
    for n in 0..host_routes {
        let (a, b) = (n / 250, n % 250);
        writeln!(batch, "route add 10.{a}.{b}.0/24 via 192.0.2.1").unwrap();
        writeln!(
            batch,
            "route add 2001:db8:{a:x}:{b:x}::/64 via fe80::1 dev eth0"
        )
        .unwrap();
    }
    for n in 1..200 {
        writeln!(batch, "addr add 172.16.{n}.1/24 dev eth0").unwrap();
        writeln!(batch, "addr add fd00:{n:x}::1/64 dev eth0 nodad").unwrap();
    }
    let file = std::env::temp_dir().join(format!("passt-netlink-{}", std::process::id()));
    std::fs::write(&file, batch).unwrap();
    let done = Command::new("ip")
        .arg("-batch")
        .arg(&file)
        .status()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(done.success());
}

#[test]
fn more_than_a_buffer() {
    isolated("query::more_than_a_buffer", || {
        crowd(1000);
        let host = query();
        assert_eq!(
            host.routes_of(false).filter(|r| r.protocol == 3).count(),
            1000
        );
        assert_eq!(
            host.routes_of(true).filter(|r| r.protocol == 3).count(),
            1000
        );
        let index = host.link_named("eth0").unwrap().index;
        assert_eq!(host.addresses_of(index, false).count(), 200);
        assert_eq!(
            host.addresses_of(index, true)
                .filter(|a| a.scope == Scope::Universe)
                .count(),
            200
        );
    });
}

/// While routes come and go, those that stay must all be seen, once each.
#[test]
fn a_table_that_changes_meanwhile() {
    isolated("query::a_table_that_changes_meanwhile", || {
        crowd(600);
        let file = std::env::temp_dir().join(format!("passt-netlink-flap-{}", std::process::id()));
        let mut flap = String::new();
        for _ in 0..50 {
            for n in 0..20 {
                writeln!(flap, "route add 11.0.{n}.0/24 via 192.0.2.1").unwrap();
            }
            for n in 0..20 {
                writeln!(flap, "route del 11.0.{n}.0/24").unwrap();
            }
        }
        std::fs::write(&file, flap).unwrap();
        let mut child = Command::new("ip").arg("-batch").arg(&file).spawn().unwrap();
        let mut rounds = 0;
        while child.try_wait().unwrap().is_none() || rounds == 0 {
            let host = query();
            let stay = host
                .routes_of(false)
                .filter(|r| r.destination.to_string().starts_with("10."));
            assert_eq!(stay.count(), 600);
            rounds += 1;
        }
        std::fs::remove_file(&file).unwrap();
        assert!(child.wait().unwrap().success());
    });
}
