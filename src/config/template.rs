//! Which host interface the guest's network is modelled on, per IP version, and what is taken from it.
//!
//! The interface of the best default route; without one, the first interface with any route; without that,
//! none: local mode. An interface counts only if it has an address worth sharing, so a default route over an
//! interface without one never hides a usable interface. The choice is the kernel's own wherever it has one:
//! lowest metric, then its order; of several next hops the heaviest, then its order.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr};

use super::host::{Address, HostNetwork, NextHop, Route, RouteKind, Scope};

/// The choice for one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Template {
    /// Index of the interface.
    pub link: u32,
    /// Gateway of its default route, of the same family.
    pub gateway: Option<IpAddr>,
    /// The address to share, and its prefix length.
    pub address: (IpAddr, u8),
    /// How many interfaces could have been chosen, for a log line when there was a choice.
    pub candidates: usize,
}

/// Choose for one family; `wanted` is the interface the user named.
#[must_use]
pub fn choose(host: &HostNetwork, ipv6: bool, wanted: Option<u32>) -> Option<Template> {
    let eligible = |link: u32| {
        wanted.is_none_or(|w| w == link)
            && host
                .link(link)
                .is_some_and(|l| !l.is_loopback() || wanted.is_some())
    };
    let mut links: Vec<(u32, Option<IpAddr>)> = defaults(host, ipv6)
        .into_iter()
        .filter(|hop| eligible(hop.link))
        .map(|hop| (hop.link, hop.gateway.filter(|g| g.is_ipv6() == ipv6)))
        .filter(|(link, _)| best_address(host, *link, ipv6).is_some())
        .collect();
    if links.is_empty() {
        for hop in host
            .routes_of(ipv6)
            .filter(|r| is_ordinary(r))
            .flat_map(|r| &r.hops)
        {
            let known = links.iter().any(|(link, _)| *link == hop.link);
            if !known && eligible(hop.link) && best_address(host, hop.link, ipv6).is_some() {
                links.push((hop.link, None));
            }
        }
    }
    if let (true, Some(wanted)) = (links.is_empty(), wanted) {
        // Named by the user: addresses are enough.
        links.push((wanted, None));
    }
    let candidates = links.len();
    let (link, gateway) = links.into_iter().next()?;
    let address = best_address(host, link, ipv6)?;
    Some(Template {
        link,
        gateway,
        address: (address.local, address.prefix_len),
        candidates,
    })
}

/// The interface's link-local IPv6 address.
#[must_use]
pub fn link_local(host: &HostNetwork, link: u32) -> Option<Ipv6Addr> {
    host.addresses_of(link, true).find_map(|a| match a.local {
        IpAddr::V6(v6) if v6.is_unicast_link_local() && !a.has(Address::DAD_FAILED) => Some(v6),
        _ => None,
    })
}

/// The preferred hop of each default route, best route first.
fn defaults(host: &HostNetwork, ipv6: bool) -> Vec<NextHop> {
    let mut routes: Vec<_> = host.routes_of(ipv6).filter(|r| r.is_default()).collect();
    routes.sort_by_key(|r| r.metric.unwrap_or(0));
    let heaviest = |r: &&Route| r.hops.iter().min_by_key(|h| Reverse(h.weight)).copied();
    routes.iter().filter_map(heaviest).collect()
}

/// A route that says the interface leads somewhere: not the link-local or multicast ones every interface has.
fn is_ordinary(route: &Route) -> bool {
    let special = match route.destination {
        IpAddr::V4(a) => a.is_multicast(),
        IpAddr::V6(a) => a.is_unicast_link_local() || a.is_multicast(),
    };
    route.kind == RouteKind::Unicast && !special
}

/// The address to share: usable beyond the link; globally routable rather than unique local, lasting rather
/// than deprecated or temporary, then the kernel's order (IPv4), or the longest prefix (IPv6: assigned by
/// DHCPv6 rather than made up).
fn best_address(host: &HostNetwork, link: u32, ipv6: bool) -> Option<&Address> {
    host.addresses_of(link, ipv6)
        .filter(|a| !matches!(a.scope, Scope::Link | Scope::Host | Scope::Nowhere))
        .filter(|a| !a.has(Address::DAD_FAILED))
        .min_by_key(|a| match a.local {
            IpAddr::V4(_) => (false, false, false, Reverse(0)),
            IpAddr::V6(v6) => (
                a.has(Address::DEPRECATED),
                v6.is_unique_local(),
                a.has(Address::SECONDARY_OR_TEMPORARY),
                Reverse(a.prefix_len),
            ),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{address, default_via, host, multipath, onlink};

    fn chosen(host: &HostNetwork, ipv6: bool) -> Option<(u32, String, Option<String>)> {
        choose(host, ipv6, None).map(|t| {
            (
                t.link,
                t.address.0.to_string(),
                t.gateway.map(|g| g.to_string()),
            )
        })
    }

    #[test]
    fn the_lowest_metric_wins() {
        let mut h = host(&["a0", "b0"]);
        h.addresses = vec![
            address(2, "192.0.2.10", 24),
            address(3, "198.51.100.10", 24),
        ];
        h.routes = vec![
            default_via("192.0.2.1", 2, 200),
            default_via("198.51.100.1", 3, 100),
        ];
        let want = (
            3,
            "198.51.100.10".to_owned(),
            Some("198.51.100.1".to_owned()),
        );
        assert_eq!(chosen(&h, false), Some(want));
        assert_eq!(choose(&h, false, None).unwrap().candidates, 2);
        assert_eq!(chosen(&h, true), None);
        assert_eq!(
            choose(&h, false, Some(2)).unwrap().gateway,
            Some("192.0.2.1".parse().unwrap())
        );
    }

    #[test]
    fn the_heaviest_hop_of_a_multipath_route_wins() {
        let mut h = host(&["a0", "b0"]);
        h.addresses = vec![
            address(2, "192.0.2.10", 24),
            address(3, "198.51.100.10", 24),
        ];
        h.routes = vec![multipath(&[
            ("192.0.2.1", 2, 1),
            ("198.51.100.1", 3, 5),
            ("198.51.100.2", 3, 5),
        ])];
        let want = (
            3,
            "198.51.100.10".to_owned(),
            Some("198.51.100.1".to_owned()),
        );
        assert_eq!(chosen(&h, false), Some(want));
    }

    #[test]
    fn without_default_route_the_first_interface_with_a_route() {
        let mut h = host(&["a0", "b0"]);
        h.addresses = vec![
            address(2, "192.0.2.10", 24),
            address(3, "198.51.100.10", 24),
        ];
        h.routes = vec![onlink("192.0.2.0", 24, 2), onlink("198.51.100.0", 24, 3)];
        let t = choose(&h, false, None).unwrap();
        assert_eq!((t.link, t.gateway, t.candidates), (2, None, 2));
        assert_eq!(choose(&h, false, Some(3)).unwrap().link, 3);
    }

    #[test]
    fn an_interface_without_address_is_passed_over() {
        let mut h = host(&["a0", "b0"]);
        h.addresses = vec![address(3, "198.51.100.10", 24)];
        h.routes = vec![default_via("192.0.2.1", 2, 0)];
        assert_eq!(chosen(&h, false), None);
        h.routes.push(onlink("198.51.100.0", 24, 3));
        assert_eq!(choose(&h, false, None).unwrap().link, 3);
    }

    #[test]
    fn link_local_ipv6_alone_is_no_template() {
        let mut h = host(&["a0"]);
        let mut ll = address(2, "fe80::2", 64);
        ll.scope = Scope::Link;
        h.addresses = vec![ll];
        h.routes = vec![onlink("fe80::", 64, 2), default_via("fe80::1", 2, 1024)];
        assert_eq!(choose(&h, true, None), None);
        assert_eq!(choose(&h, true, Some(2)), None);
        assert_eq!(link_local(&h, 2), Some("fe80::2".parse().unwrap()));
    }

    #[test]
    fn loopback_is_never_chosen_by_itself() {
        let mut h = host(&["a0"]);
        h.addresses = vec![address(1, "192.0.2.1", 32)];
        h.routes = vec![onlink("192.0.2.0", 24, 1)];
        assert_eq!(choose(&h, false, None), None);
        assert!(choose(&h, false, Some(1)).is_some());
    }

    #[test]
    fn global_ipv6_before_unique_local_and_lasting_before_temporary() {
        let mut h = host(&["a0"]);
        let mut temporary = address(2, "2001:db8::77", 64);
        temporary.flags = Address::SECONDARY_OR_TEMPORARY;
        let mut old = address(2, "2001:db8::99", 128);
        old.flags = Address::DEPRECATED;
        h.addresses = vec![
            address(2, "fd00::9", 128),
            old,
            temporary,
            address(2, "2001:db8::1", 64),
            address(2, "2001:db8::2", 128),
        ];
        h.routes = vec![default_via("fe80::1", 2, 1024)];
        let order: Vec<_> = std::iter::from_fn(|| {
            let best = choose(&h, true, None)?.address.0;
            h.addresses.retain(|a| a.local != best);
            Some(best.to_string())
        })
        .collect();
        assert_eq!(
            order,
            [
                "2001:db8::2",
                "2001:db8::1",
                "2001:db8::77",
                "fd00::9",
                "2001:db8::99"
            ]
        );
    }
}
