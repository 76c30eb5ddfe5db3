//! `launcher::confignet::apply`: the namespace a container finds.

use std::time::Instant;

use passt::config::host::HostNetwork;
use passt::config::namespace::{
    NamespaceSetup, SetupAddress, SetupRoute, copied_addresses, copied_routes, default_route,
};
use passt::launcher::confignet::{self, ConfigNetError};
use passt::launcher::tap::{self, TapDevice};
use passt::netlink::query_host;

use crate::arena::{enter_guest, have_tun, host_with_eth0, ip, ip_all, isolated, lines, say};

fn setup(addresses: Vec<SetupAddress>, routes: Vec<SetupRoute>) -> NamespaceSetup {
    NamespaceSetup {
        ifname: "eth0".to_owned(),
        mac: None,
        mtu: 65520,
        configure: true,
        addresses,
        routes,
    }
}

fn copy_of(host: &HostNetwork, template: &str) -> NamespaceSetup {
    let index = host.link_named(template).unwrap().index;
    let mut addresses = copied_addresses(host, index, false);
    addresses.extend(copied_addresses(host, index, true));
    let mut routes = copied_routes(host, index, false);
    routes.extend(copied_routes(host, index, true));
    setup(addresses, routes)
}

/// Copy interface `template` of the host made by `make_host` into a new namespace, where the caller then is.
fn copied(template: &str, make_host: impl FnOnce()) -> TapDevice {
    make_host();
    let host = query_host().unwrap();
    enter_guest();
    applied(&copy_of(&host, template)).unwrap()
}

fn applied(setup: &NamespaceSetup) -> Result<TapDevice, ConfigNetError> {
    let mut tap = tap::open(&setup.ifname).unwrap();
    confignet::apply(setup, &mut tap)?;
    Ok(tap)
}

fn plain(address: &str, prefix_len: u8) -> SetupAddress {
    SetupAddress::new(address.parse().unwrap(), prefix_len)
}

#[test]
fn without_config_net_only_loopback_and_mac() {
    const NAME: &str = "configure::without_config_net_only_loopback_and_mac";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let setup = NamespaceSetup {
            configure: false,
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            ..setup(vec![plain("192.0.2.2", 24)], vec![])
        };
        let tap = applied(&setup).unwrap();
        assert_eq!(Some(tap.mac), setup.mac);
        let link = ip("link show eth0");
        assert!(link.contains("<BROADCAST,MULTICAST> mtu 1500"), "{link}");
        assert!(link.contains("link/ether 02:00:00:00:00:01"), "{link}");
        assert!(ip("link show lo").contains("<LOOPBACK,UP,LOWER_UP>"));
        assert_eq!(ip("addr show eth0 up"), "");
    });
}

#[test]
fn one_address_and_gateway() {
    const NAME: &str = "configure::one_address_and_gateway";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let addresses = vec![plain("10.0.2.100", 24), plain("2001:db8::100", 64)];
        let routes = ["10.0.2.2", "fe80::1"].map(|g| default_route(g.parse().unwrap(), &addresses));
        let _tap = applied(&setup(addresses, routes.to_vec())).unwrap();
        let addr = ip("addr show eth0");
        assert!(addr.contains("mtu 65520"), "{addr}");
        assert!(addr.contains("UP,LOWER_UP"), "{addr}");
        assert!(
            addr.contains("inet 10.0.2.100/24 scope global eth0\n"),
            "{addr}"
        );
        assert!(
            addr.contains("inet6 2001:db8::100/64 scope global nodad"),
            "{addr}"
        );
        assert!(addr.contains("qlen 4096"), "{addr}");
        assert_eq!(
            lines("route"),
            [
                "default via 10.0.2.2 dev eth0",
                "10.0.2.0/24 dev eth0 proto kernel scope link src 10.0.2.100"
            ]
        );
        assert_eq!(
            lines("-6 route"),
            [
                "2001:db8::/64 dev eth0 proto kernel metric 256 pref medium",
                "fe80::/64 dev eth0 proto kernel metric 256 pref medium",
                "default via fe80::1 dev eth0 metric 1024 pref medium",
            ]
        );
    });
}

/// The moment `apply` returns, nothing is tentative, and nothing becomes so.
#[test]
fn addresses_are_final_at_once() {
    const NAME: &str = "configure::addresses_are_final_at_once";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let _tap = applied(&setup(vec![plain("2001:db8::100", 64)], vec![])).unwrap();
        // Column 5 of each line: flags, IFA_F_TENTATIVE is 40, IFA_F_OPTIMISTIC 04 (proc(5)).
        let at_once = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let of_tap: Vec<_> = at_once.lines().filter(|l| l.ends_with("eth0")).collect();
        assert_eq!(of_tap.len(), 2, "{at_once}");
        for line in of_tap {
            let flags = u8::from_str_radix(line.split_whitespace().nth(4).unwrap(), 16).unwrap();
            assert_eq!(flags & 0x44, 0, "{line}");
        }
        let link = ip("-d link show eth0");
        assert!(link.contains("addrgenmode eui64"), "{link}");
        assert_eq!(ip("addr show tentative"), "");
        let all = ip("-6 addr show dev eth0 scope link");
        assert_eq!(all.matches("inet6").count(), 1, "{all}");
    });
}

/// What somebody else has begun on a tap of theirs is not waited for: detection takes a second, or many.
#[test]
fn an_address_in_detection_is_not_waited_for() {
    const NAME: &str = "configure::an_address_in_detection_is_not_waited_for";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        // Detection starts when somebody holds the tap: then it has a carrier.
        ip_all("tuntap add mode tap eth0");
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/dad_transmits", "10").unwrap();
        ip_all(
            "link set eth0 up
             addr add 2001:db8::100/64 dev eth0",
        );
        let started = Instant::now();
        let addresses = vec![plain("2001:db8::100", 64), plain("2001:db8::101", 64)];
        let _tap = applied(&setup(addresses, vec![])).unwrap();
        let took = started.elapsed();
        assert!(took.as_secs() < 4, "{took:?}");
        let tentative = ip("addr show tentative");
        assert!(tentative.contains("2001:db8::100"), "{tentative}");
        assert!(!tentative.contains("2001:db8::101"), "{tentative}");
    });
}

#[test]
fn everything_of_the_template_is_copied() {
    const NAME: &str = "configure::everything_of_the_template_is_copied";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let _tap = copied("eth0", || {
            host_with_eth0();
            ip_all(
                "link add eth1 type veth peer name p1
                 link set p1 up
                 link set eth1 up
                 addr add 192.0.2.2/24 dev eth0 label eth0:x
                 addr add 192.0.2.3/24 dev eth0
                 addr add 10.9.0.2 peer 10.9.0.1/32 dev eth0
                 addr add 169.254.7.7/16 scope link dev eth0
                 addr add 2001:db8::2/64 dev eth0 nodad valid_lft 1000 preferred_lft 500
                 addr add fd00::2/64 dev eth0 nodad
                 addr add 198.51.100.2/24 dev eth1
                 route add default via 192.0.2.1 dev eth0 src 192.0.2.3 metric 50
                 route add default via 198.51.100.1 dev eth1 metric 60
                 route add 203.0.113.0/24 nexthop via 192.0.2.7 weight 2 nexthop via 198.51.100.1 weight 3
                 route add 203.0.114.0/24 nexthop via 192.0.2.7 weight 2 nexthop via 192.0.2.8 weight 3
                 route add 10.77.0.0/16 via 192.0.2.1 mtu 1300
                 route add 10.90.0.1 dev eth0
                 route add 10.79.0.0/16 via 10.90.0.1
                 route add 10.80.0.0/16 via 172.31.1.1 dev eth0 onlink
                 route add blackhole 10.81.0.0/16
                 nexthop add id 10 via 192.0.2.9 dev eth0
                 route add 10.82.0.0/16 nhid 10
                 -6 route add default via 2001:db8::1 dev eth0 pref high
                 -6 route add 2001:db8:5::/48 via fe80::5 dev eth0",
            );
        });
        let addr: Vec<_> = ip("addr show eth0")
            .lines()
            .map(str::trim)
            .filter(|l| l.starts_with("inet") && !l.contains("scope link"))
            .map(str::to_owned)
            .collect();
        assert_eq!(
            addr,
            [
                "inet 192.0.2.2/24 scope global eth0",
                "inet 10.9.0.2 peer 10.9.0.1/32 scope global eth0",
                "inet 192.0.2.3/24 scope global secondary eth0",
                "inet6 fd00::2/64 scope global nodad",
                "inet6 2001:db8::2/64 scope global nodad",
            ]
        );
        assert!(
            !ip("addr show eth0").contains("dynamic"),
            "lifetimes do not come along"
        );
        assert_eq!(
            lines("route"),
            [
                "default via 192.0.2.1 dev eth0 metric 50",
                "10.9.0.1 dev eth0 proto kernel scope link src 10.9.0.2",
                "10.77.0.0/16 via 192.0.2.1 dev eth0 mtu 1300",
                "10.79.0.0/16 via 10.90.0.1 dev eth0",
                "10.80.0.0/16 via 172.31.1.1 dev eth0 onlink",
                "10.82.0.0/16 via 192.0.2.9 dev eth0",
                "10.90.0.1 dev eth0 scope link",
                "169.254.0.0/16 dev eth0 proto kernel scope link",
                "192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.2",
                "203.0.113.0/24 via 192.0.2.7 dev eth0",
                "203.0.114.0/24",
                "\tnexthop via 192.0.2.7 dev eth0 weight 2",
                "\tnexthop via 192.0.2.8 dev eth0 weight 3",
            ]
        );
        assert_eq!(
            lines("-6 route"),
            [
                "2001:db8::/64 dev eth0 proto kernel metric 256 pref medium",
                "2001:db8:5::/48 via fe80::5 dev eth0 metric 1024 pref medium",
                "fd00::/64 dev eth0 proto kernel metric 256 pref medium",
                "fe80::/64 dev eth0 proto kernel metric 256 pref medium",
                "default via 2001:db8::1 dev eth0 metric 1024 pref high",
            ]
        );
    });
}

#[test]
fn noprefixroute_and_multipath_default() {
    const NAME: &str = "configure::noprefixroute_and_multipath_default";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let _tap = copied("eth0", || {
            host_with_eth0();
            ip_all(
                "addr add 192.0.2.2/24 dev eth0 noprefixroute
                 route add 192.0.2.0/24 dev eth0 metric 100
                 route add default via 192.0.2.1 metric 100
                 addr add 2001:db8::2/64 dev eth0 noprefixroute nodad
                 -6 route add 2001:db8::/64 dev eth0 metric 100
                 -6 route add default metric 100 nexthop via 2001:db8::1 weight 2 nexthop via 2001:db8::3",
            );
        });
        assert_eq!(
            lines("route"),
            [
                "default via 192.0.2.1 dev eth0 metric 100",
                "192.0.2.0/24 dev eth0 scope link metric 100"
            ]
        );
        assert_eq!(
            lines("-6 route"),
            [
                "2001:db8::/64 dev eth0 metric 100 pref medium",
                "fe80::/64 dev eth0 proto kernel metric 256 pref medium",
                "default metric 100 pref medium",
                "\tnexthop via 2001:db8::1 dev eth0 weight 2",
                "\tnexthop via 2001:db8::3 dev eth0 weight 1",
            ]
        );
    });
}

#[test]
fn a_tun_template_with_link_scope_default() {
    const NAME: &str = "configure::a_tun_template_with_link_scope_default";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let _tap = copied("tun7", || {
            ip_all(
                "tuntap add tun7 mode tun
                 link set tun7 up
                 addr add 10.8.0.2 peer 10.8.0.1 dev tun7
                 route add default dev tun7 scope link",
            );
        });
        assert_eq!(
            lines("route"),
            [
                "default dev eth0 scope link",
                "10.8.0.1 dev eth0 proto kernel scope link src 10.8.0.2"
            ]
        );
    });
}

#[test]
fn gateways_no_route_leads_to_are_on_the_link() {
    const NAME: &str = "configure::gateways_no_route_leads_to_are_on_the_link";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let _tap = copied("eth0", || {
            host_with_eth0();
            ip_all(
                "addr add 192.0.2.2/32 dev eth0
                 addr add 2001:db8::2/128 dev eth0 nodad
                 link add eth1 type veth peer name p1
                 link set p1 up
                 link set eth1 up
                 route add 172.31.1.1 dev eth1
                 route add default nexthop via 192.0.2.1 dev eth0 onlink nexthop via 172.31.1.1 dev eth1
                 route add 10.1.0.0/16 via 10.2.0.1 dev eth0 onlink
                 -6 route add default via 2001:db8:7::1 dev eth0 onlink",
            );
        });
        assert_eq!(
            lines("route"),
            [
                "default via 192.0.2.1 dev eth0 onlink",
                "10.1.0.0/16 via 10.2.0.1 dev eth0 onlink"
            ]
        );
        assert!(ip("-6 route").contains("default via 2001:db8:7::1 dev eth0 metric 1024 onlink"));
    });
}

/// Nobody said "onlink": the route is refused, offered again, and in the end said to be.
#[test]
fn the_last_resort_is_onlink() {
    const NAME: &str = "configure::the_last_resort_is_onlink";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let mut routes =
            ["10.0.3.2", "2001:db8:7::1"].map(|g| default_route(g.parse().unwrap(), &[]));
        for route in &mut routes {
            route.hops[0].onlink = false;
        }
        let addresses = vec![plain("10.0.2.100", 24), plain("2001:db8::100", 64)];
        let _tap = applied(&setup(addresses, routes.to_vec())).unwrap();
        assert!(ip("route").contains("default via 10.0.3.2 dev eth0 onlink"));
        assert!(ip("-6 route").contains("default via 2001:db8:7::1 dev eth0 metric 1024 onlink"));
    });
}

#[test]
fn only_link_local_ipv6() {
    const NAME: &str = "configure::only_link_local_ipv6";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let _tap = copied("eth0", || {
            host_with_eth0();
            ip("-6 route add default via fe80::1 dev eth0");
        });
        assert!(ip("-6 route").contains("default via fe80::1 dev eth0 metric 1024"));
        assert!(!ip("addr show dev eth0").contains("inet "));
    });
}

#[test]
fn a_namespace_without_ipv6() {
    const NAME: &str = "configure::a_namespace_without_ipv6";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        enter_guest();
        for scope in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
        let addresses = vec![plain("10.0.2.100", 24), plain("2001:db8::100", 64)];
        let routes = ["10.0.2.2", "fe80::1"].map(|g| default_route(g.parse().unwrap(), &addresses));
        let _tap = applied(&setup(addresses, routes.to_vec())).unwrap();
        assert!(ip("route").contains("default via 10.0.2.2"));
        assert!(!ip("addr show eth0").contains("inet6"));
    });
}

#[test]
fn mtu_limits() {
    const NAME: &str = "configure::mtu_limits";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        for (asked, got) in [
            (0, 1500),
            (1280, 1280),
            (1000, 1000),
            (65521, 65521),
            (65535, 65521),
        ] {
            let setup = NamespaceSetup {
                mtu: asked,
                ..setup(
                    vec![plain("10.0.2.100", 24), plain("2001:db8::100", 64)],
                    vec![],
                )
            };
            let _tap = applied(&setup).unwrap();
            let link = ip("addr show eth0");
            assert!(link.contains(&format!("mtu {got} ")), "{asked}: {link}");
            assert_eq!(link.contains("2001:db8::100"), got >= 1280, "{link}");
        }
    });
}

#[test]
fn a_refused_default_route_is_an_error() {
    const NAME: &str = "configure::a_refused_default_route_is_an_error";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        // A group is nobody's gateway.
        let addresses = vec![plain("10.0.2.100", 24)];
        let route = default_route("224.0.0.1".parse().unwrap(), &addresses);
        let e = applied(&setup(addresses.clone(), vec![route]))
            .unwrap_err()
            .to_string();
        assert!(
            e.starts_with("Couldn't set IPv4 route(s) in guest: "),
            "{e}"
        );
        let multicast = vec![plain("ff02::7", 64)];
        let e = applied(&setup(multicast, vec![])).unwrap_err().to_string();
        assert!(
            e.starts_with("Couldn't set IPv6 address(es) in namespace: "),
            "{e}"
        );
    });
}

#[test]
fn a_persistent_tap_that_is_up_already() {
    const NAME: &str = "configure::a_persistent_tap_that_is_up_already";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        ip_all(
            "tuntap add name tap0 mode tap\n link set tap0 up\n addr add 10.0.2.100/24 dev tap0",
        );
        let addresses = vec![plain("10.0.2.100", 24), plain("2001:db8::100", 64)];
        let routes = vec![default_route("10.0.2.2".parse().unwrap(), &addresses)];
        let setup = NamespaceSetup {
            ifname: "tap0".to_owned(),
            ..setup(addresses, routes)
        };
        drop(applied(&setup).unwrap());
        // A second time, after the first pasta has gone: everything is there already.
        let _tap = applied(&setup).unwrap();
        assert!(ip("route").contains("default via 10.0.2.2 dev tap0"));
        assert!(ip("addr show tap0").contains("2001:db8::100/64 scope global nodad"));
    });
}

#[test]
fn three_hundred_routes_arrive_quickly() {
    const NAME: &str = "configure::three_hundred_routes_arrive_quickly";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        host_with_eth0();
        ip_all("addr add 192.0.2.2/24 dev eth0\n addr add 2001:db8::2/64 dev eth0 nodad");
        for n in 0..150 {
            ip(&format!("route add 10.{n}.0.0/16 via 192.0.2.1"));
            ip(&format!(
                "-6 route add 2001:db8:{n:x}::/48 via fe80::1 dev eth0"
            ));
        }
        ip("route add default via 192.0.2.1");
        let began = Instant::now();
        let host = query_host().unwrap();
        let queried = began.elapsed();
        let setup = copy_of(&host, "eth0");
        enter_guest();
        let began = Instant::now();
        let _tap = applied(&setup).unwrap();
        say(&format!(
            "query {queried:?}, tap and 300 routes {:?}",
            began.elapsed()
        ));
        assert_eq!(lines("route").len(), 152);
        assert_eq!(lines("-6 route").len(), 152);
    });
}

/// Encapsulations stay on the host: behind the tap there is nobody to unwrap them. The rest comes along.
#[test]
fn exotic_routes() {
    const NAME: &str = "configure::exotic_routes";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let _tap = copied("eth0", || {
            host_with_eth0();
            ip_all(
                "addr add 192.0.2.2/24 dev eth0
                 addr add 2001:db8::2/64 dev eth0 nodad
                 addr add 2001:db8::3 peer 2001:db8:4::4/128 dev eth0 nodad
                 route add 10.2.0.0/16 encap ip id 5 dst 198.51.100.9 via 192.0.2.1
                 route add 10.3.0.0/16 via 192.0.2.1 congctl reno rto_min 20ms features ecn realm 4
                 route add 10.3.0.0/16 via 192.0.2.1 tos 0x10
                 route add 10.3.0.0/16 via 192.0.2.9 metric 7
                 route add throw 10.4.0.0/16
                 route add local 10.6.0.0/16 dev eth0 table main
                 route add 10.7.0.0/16 via inet6 fe80::9 dev eth0
                 route add 224.0.0.0/4 dev eth0
                 -6 route add 2001:db8:77::/48 encap seg6 mode encap segs fc00::1 dev eth0
                 -6 route add 2001:db8:78::/48 from 2001:db8::/64 via fe80::1 dev eth0
                 -6 route add 2001:db8:79::/48 via fe80::1 dev eth0 proto ra expires 500 hoplimit 7",
            );
        });
        assert_eq!(
            lines("route"),
            [
                "10.2.0.0/16 via 192.0.2.1 dev eth0",
                "10.3.0.0/16 tos 0x10 via 192.0.2.1 dev eth0",
                "10.3.0.0/16 via 192.0.2.1 dev eth0 features ecn rto_min lock 20ms",
                "10.3.0.0/16 via 192.0.2.9 dev eth0 metric 7",
                "10.7.0.0/16 via inet6 fe80::9 dev eth0",
                "192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.2",
                "224.0.0.0/4 dev eth0 scope link",
            ]
        );
        assert_eq!(
            lines("-6 route"),
            [
                "2001:db8::3 dev eth0 proto kernel metric 256 pref medium",
                "2001:db8::/64 dev eth0 proto kernel metric 256 pref medium",
                "2001:db8:4::4 dev eth0 proto kernel metric 256 pref medium",
                "2001:db8:77::/48 dev eth0 metric 1024 pref medium",
                "2001:db8:78::/48 from 2001:db8::/64 via fe80::1 dev eth0 metric 1024 pref medium",
                "2001:db8:79::/48 via fe80::1 dev eth0 proto ra metric 1024 hoplimit 7 pref medium",
                "fe80::/64 dev eth0 proto kernel metric 256 pref medium",
            ]
        );
    });
}

/// Hundreds of refusals at once neither fill the socket nor hide the routes among them that work.
#[test]
fn a_crowd_of_bad_routes() {
    const NAME: &str = "configure::a_crowd_of_bad_routes";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let addresses = vec![plain("10.0.2.100", 24)];
        let routes: Vec<_> = (0..=250)
            .flat_map(|n| {
                let with = |gateway: &str, first: u8| SetupRoute {
                    destination: [first, 1, n, 0].into(),
                    prefix_len: 24,
                    ..default_route(gateway.parse().unwrap(), &addresses)
                };
                [with("224.0.0.1", 20), with("10.0.2.2", 30)]
            })
            .collect();
        let _tap = applied(&setup(addresses.clone(), routes)).unwrap();
        assert_eq!(lines("route").len(), 1 + 251);
    });
}
