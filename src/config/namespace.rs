//! What `--config-net` is to make of the namespace: plain data, and the pure functions that derive it.
//!
//! A copy of the host's addresses and routes is a translation, not a transcript. Interfaces have other
//! numbers in the namespace, so every hop that does not leave by the template interface is dropped and the
//! rest lose their number. Lifetimes are dropped because nobody would renew them. Preferred sources are
//! dropped because they may name an address the guest was not given. Nothing here asks the kernel anything:
//! `launcher::confignet` applies the result, in an order that works.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::host::{Address, HostNetwork, NextHop, Route, RouteKind, Scope};
use crate::addr::Mac;

/// Everything that happens to the namespace's interfaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceSetup {
    /// Name of the tap: `-I`, else the template's name, else `tap0`.
    pub ifname: String,
    /// `--ns-mac-addr`; `None`: the kernel's random choice stays.
    pub mac: Option<Mac>,
    /// `-m`: link MTU in bytes; 0: the driver's default stays.
    pub mtu: u16,
    /// `--config-net`; without it the tap is created and nothing else.
    pub configure: bool,
    /// Addresses to add, IPv4 first, in the order the guest is to list them.
    pub addresses: Vec<SetupAddress>,
    /// Routes to add.
    pub routes: Vec<SetupRoute>,
}

/// An address for the tap. Always permanent, never subject to duplicate address detection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetupAddress {
    /// The address.
    pub local: IpAddr,
    /// Prefix length: of `peer` where there is one, else of `local`.
    pub prefix_len: u8,
    /// The other end of a point-to-point address.
    pub peer: Option<IpAddr>,
    /// IPv4 broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// Do not let the kernel make a route for the prefix.
    pub no_prefix_route: bool,
    /// Metric of the prefix route.
    pub metric: Option<u32>,
}

impl SetupAddress {
    /// A plain address with its prefix, as of `-a`.
    #[must_use]
    pub const fn new(local: IpAddr, prefix_len: u8) -> Self {
        Self {
            local,
            prefix_len,
            peer: None,
            broadcast: None,
            no_prefix_route: false,
            metric: None,
        }
    }
}

/// A unicast route through the tap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetupRoute {
    /// Destination network.
    pub destination: IpAddr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Source network of a source-specific route.
    pub source: Option<(IpAddr, u8)>,
    /// Type of service it is restricted to, 0: none.
    pub tos: u8,
    /// Scope of the destination.
    pub scope: Scope,
    /// `RTPROT_*`.
    pub protocol: u8,
    /// Metric; `None`: the kernel's default.
    pub metric: Option<u32>,
    /// (`RTAX_*`, value).
    pub metrics: Vec<(u16, u32)>,
    /// RFC 4191 router preference, raw value.
    pub preference: Option<u8>,
    /// Never empty.
    pub hops: Vec<SetupHop>,
}

/// One way through the tap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetupHop {
    /// Gateway; `None`: destinations are on the link.
    pub gateway: Option<IpAddr>,
    /// Weight among several, from 1.
    pub weight: u16,
    /// The gateway is on the link whatever the other routes say.
    pub onlink: bool,
}

/// `RTPROT_BOOT`: what `ip route add` marks its routes with.
const PROTOCOL_BOOT: u8 = 3;

/// The addresses of the template interface that mean something elsewhere: no host or link scope, none that DAD refused.
#[must_use]
pub fn copied_addresses(host: &HostNetwork, template: u32, ipv6: bool) -> Vec<SetupAddress> {
    host.addresses_of(template, ipv6)
        .filter(|a| !matches!(a.scope, Scope::Link | Scope::Host | Scope::Nowhere))
        .filter(|a| !a.has(Address::DAD_FAILED))
        .map(|a| SetupAddress {
            local: a.local,
            prefix_len: a.prefix_len,
            peer: a.peer,
            broadcast: a.broadcast,
            no_prefix_route: a.has(Address::NO_PREFIX_ROUTE),
            metric: a.metric,
        })
        .collect()
}

/// The unicast routes that leave by the template interface, reduced to the hops that do.
#[must_use]
pub fn copied_routes(host: &HostNetwork, template: u32, ipv6: bool) -> Vec<SetupRoute> {
    host.routes_of(ipv6)
        .filter(|r| r.kind == RouteKind::Unicast)
        .filter_map(|r| copied_route(r, template))
        .collect()
}

fn copied_route(route: &Route, template: u32) -> Option<SetupRoute> {
    let hops: Vec<_> = route
        .hops
        .iter()
        .filter(|h| h.link == template)
        .map(|h: &NextHop| SetupHop {
            gateway: h.gateway,
            weight: h.weight,
            onlink: h.onlink,
        })
        .collect();
    if hops.is_empty() {
        return None;
    }
    Some(SetupRoute {
        destination: route.destination,
        prefix_len: route.prefix_len,
        source: route.source,
        tos: route.tos,
        scope: route.scope,
        protocol: route.protocol,
        metric: route.metric,
        metrics: route.metrics.clone(),
        preference: route.preference,
        hops,
    })
}

/// The default route of `-g`. A gateway that none of `addresses` has as a neighbour counts as on the link.
#[must_use]
pub fn default_route(gateway: IpAddr, addresses: &[SetupAddress]) -> SetupRoute {
    let unspecified = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let neighbour =
        |a: &SetupAddress| same_network(a.peer.unwrap_or(a.local), gateway, a.prefix_len);
    let link_local = matches!(gateway, IpAddr::V6(g) if g.is_unicast_link_local());
    SetupRoute {
        destination: unspecified,
        prefix_len: 0,
        source: None,
        tos: 0,
        scope: Scope::Universe,
        protocol: PROTOCOL_BOOT,
        metric: None,
        metrics: Vec::new(),
        preference: None,
        hops: vec![SetupHop {
            gateway: Some(gateway),
            weight: 1,
            onlink: !link_local && !addresses.iter().any(neighbour),
        }],
    }
}

/// Do both addresses have the same first `len` bits?
fn same_network(a: IpAddr, b: IpAddr, len: u8) -> bool {
    let difference = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    difference >= u32::from(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, prefix_len: u8) -> SetupAddress {
        SetupAddress::new(text.parse().unwrap(), prefix_len)
    }

    #[test]
    fn a_gateway_outside_every_prefix_is_forced_onto_the_link() {
        let addresses = [address("192.0.2.2", 24), address("2001:db8::2", 64)];
        let onlink = |gw: &str| default_route(gw.parse().unwrap(), &addresses).hops[0].onlink;
        assert!(!onlink("192.0.2.1"));
        assert!(onlink("192.0.3.1"));
        assert!(!onlink("2001:db8::1"));
        assert!(onlink("2001:db8:1::1"));
        assert!(!onlink("fe80::1"));
        assert!(
            default_route("192.0.2.1".parse().unwrap(), &[address("192.0.2.2", 32)]).hops[0].onlink
        );
        assert!(
            !default_route("10.0.0.1".parse().unwrap(), &[address("192.0.2.2", 0)]).hops[0].onlink
        );
    }

    fn route(destination: &str, prefix_len: u8, hops: &[(u32, Option<&str>)]) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            prefix_len,
            source: None,
            tos: 0,
            kind: RouteKind::Unicast,
            scope: Scope::Universe,
            protocol: 4,
            metric: Some(100),
            prefsrc: Some("192.0.2.9".parse().unwrap()),
            metrics: vec![(2, 1400)],
            preference: None,
            hops: hops
                .iter()
                .map(|&(link, gateway)| NextHop {
                    link,
                    gateway: gateway.map(|g| g.parse().unwrap()),
                    weight: 3,
                    onlink: false,
                })
                .collect(),
        }
    }

    #[test]
    fn routes_keep_only_hops_of_the_template() {
        let host = HostNetwork {
            routes: vec![
                route(
                    "0.0.0.0",
                    0,
                    &[(2, Some("192.0.2.1")), (3, Some("198.51.100.1"))],
                ),
                route("198.51.100.0", 24, &[(3, None)]),
                Route {
                    kind: RouteKind::Other(6),
                    hops: vec![],
                    ..route("203.0.113.0", 24, &[])
                },
                route("2001:db8::", 64, &[(2, None)]),
            ],
            ..HostNetwork::default()
        };
        let routes = copied_routes(&host, 2, false);
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].hops.len(), 1);
        assert_eq!(
            routes[0].hops[0].gateway,
            Some("192.0.2.1".parse().unwrap())
        );
        assert_eq!(
            (routes[0].metric, routes[0].metrics.as_slice()),
            (Some(100), &[(2, 1400)][..])
        );
        assert_eq!(copied_routes(&host, 2, true).len(), 1);
    }

    #[test]
    fn addresses_of_local_scope_stay_behind() {
        let one = |link, local: &str, scope, flags| Address {
            link,
            local: local.parse().unwrap(),
            prefix_len: 64,
            peer: None,
            broadcast: None,
            scope,
            flags,
            metric: None,
        };
        let host = HostNetwork {
            addresses: vec![
                one(1, "::1", Scope::Host, 0),
                one(2, "2001:db8::2", Scope::Universe, Address::NO_PREFIX_ROUTE),
                one(2, "2001:db8::bad", Scope::Universe, Address::DAD_FAILED),
                one(2, "fe80::2", Scope::Link, 0),
                one(2, "fd00::2", Scope::Universe, Address::DEPRECATED),
                one(3, "2001:db8:3::2", Scope::Universe, 0),
            ],
            ..HostNetwork::default()
        };
        let copied = copied_addresses(&host, 2, true);
        let local: Vec<_> = copied.iter().map(|a| a.local.to_string()).collect();
        assert_eq!(local, ["2001:db8::2", "fd00::2"]);
        assert!(copied[0].no_prefix_route && !copied[1].no_prefix_route);
        assert!(copied_addresses(&host, 2, false).is_empty());
    }
}
