//! Links, addresses and routes of the current namespace, as [`HostNetwork`].
//!
//! Four dumps. With strict checking the kernel applies our filters (main table only); kernels without it, or
//! without IPv6 (where asking for IPv6 routes yields everything there is), return more than was asked for,
//! so every filter is applied here as well.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};
use nix::errno::Errno;

use super::message::u32_at;
use super::nexthop::{self, Objects};
use super::{NetlinkError, Refusal, Socket};
use crate::addr::Mac;
use crate::config::host::{
    Address, HostNetwork, Link, LinkFlags, NextHop, Route, RouteKind, Scope, TABLE_MAIN,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

/// `struct ifinfomsg`: family and padding 1, type 2 bytes, index, flags, change mask 4 bytes each.
const LINK_HEADER_LEN: usize = 16;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// `IFLA_*` of rtnetlink(7).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
/// `RT_TABLE_LOCAL` of rtnetlink(7).
const TABLE_LOCAL: u8 = 255;
/// `RTM_F_CLONED`: a cache entry, not a route.
const CLONED: u32 = 0x200;

/// Read the network of the namespace the process is in.
///
/// # Errors
/// [`NetlinkError`] if there is no socket or the kernel refuses to list; a host without interfaces, without
/// routes or without IPv6 is not an error.
pub fn query_host() -> Result<HostNetwork, NetlinkError> {
    let mut socket = Socket::open()?;
    let links = listed(
        "links",
        socket.dump(RTM_GETLINK, &link_request(), parse_link)?,
    )?;
    let addresses = listed(
        "addresses",
        socket.dump(RTM_GETADDR, &AddressMessage::default(), parse_address)?,
    )?;
    let mut routes = Vec::new();
    let mut objects = None;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let parse = |kind: u16, body: &[u8]| parse_route(kind, body, family);
        let found = match socket.dump(RTM_GETROUTE, &route_request(family), parse)? {
            Ok(found) => found,
            // The table does not exist before its first route.
            Err(r)
                if matches!(
                    r.errno,
                    Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP
                ) =>
            {
                continue;
            }
            Err(r) => return listed("routes", Err(r)),
        };
        for (mut route, object) in found {
            if let (true, Some(id)) = (route.hops.is_empty(), object) {
                if objects.is_none() {
                    objects = Some(nexthop::query(&mut socket)?);
                }
                route.hops = objects
                    .as_ref()
                    .map_or_else(Vec::new, |o: &Objects| o.hops(id));
            }
            routes.push(route);
        }
    }
    Ok(HostNetwork {
        links,
        addresses,
        routes,
    })
}

/// The interface of this name in the namespace of `socket`.
///
/// # Errors
/// [`NetlinkError::NoSuchLink`] if there is none.
pub fn link_by_name(socket: &mut Socket, name: &str) -> Result<Link, NetlinkError> {
    let mut request = link_request();
    request
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    match socket.get(RTM_GETLINK, &request, parse_link)? {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(NetlinkError::NoSuchLink(name.to_owned())),
        Err(r) if r.errno == Errno::ENODEV => Err(NetlinkError::NoSuchLink(name.to_owned())),
        Err(r) => listed("one link", Err(r)),
    }
}

/// The IPv6 addresses that the namespace of `socket` takes for its own when it looks for a way there.
///
/// # Errors
/// [`NetlinkError`] if the kernel refuses to list them.
pub fn own_ipv6(socket: &mut Socket) -> Result<Vec<Ipv6Addr>, NetlinkError> {
    let mut request = route_request(AddressFamily::Inet6);
    request.header.table = TABLE_LOCAL;
    request.header.kind = RouteType::Local;
    listed(
        "local routes",
        socket.dump(RTM_GETROUTE, &request, parse_own)?,
    )
}

fn parse_own(kind: u16, body: &[u8]) -> Option<Ipv6Addr> {
    let message = RouteMessage::parse(body).ok()?;
    let header = &message.header;
    if kind != RTM_NEWROUTE
        || header.address_family != AddressFamily::Inet6
        || header.kind != RouteType::Local
        || header.flags.bits() & CLONED != 0
        || header.destination_prefix_length != 128
    {
        return None;
    }
    message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet6(own)) => Some(*own),
        _ => None,
    })
}

fn listed<T>(what: &'static str, answer: Result<T, Refusal>) -> Result<T, NetlinkError> {
    answer.map_err(|r| NetlinkError::Refused {
        what,
        errno: r.errno,
    })
}

/// Statistics are most of a link's message and nobody reads them.
fn link_request() -> LinkMessage {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    request
}

fn route_request(family: AddressFamily) -> RouteMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request
}

/// By hand: a link's message has some eighty attributes, of which three matter, and the crate's parser fails
/// on the whole message if one of the others is longer or shorter than it knows.
fn parse_link(kind: u16, body: &[u8]) -> Option<Link> {
    let attributes = body.get(LINK_HEADER_LEN..)?;
    if kind != RTM_NEWLINK {
        return None;
    }
    let hardware = u16::from_ne_bytes([*body.get(2)?, *body.get(3)?]);
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        mac: None,
        mtu: 0,
        flags: LinkFlags(u32_at(body, 8)?),
    };
    for a in NlasIterator::new(attributes).filter_map(Result::ok) {
        let value = a.value();
        match a.kind() {
            IFLA_IFNAME => {
                let name = value.split(|&c| c == 0).next().unwrap_or_default();
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            IFLA_ADDRESS if hardware == ETHERNET => {
                link.mac = value.try_into().ok().map(Mac).filter(|m| m.is_unicast());
            }
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(link)
}

fn parse_address(kind: u16, body: &[u8]) -> Option<Address> {
    if kind != RTM_NEWADDR {
        return None;
    }
    let message = AddressMessage::parse(body).ok()?;
    let (mut local, mut other, mut broadcast, mut metric) = (None, None, None, None);
    let mut flags = u32::from(message.header.flags.bits());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::Flags(f) => flags = f.bits(),
            AddressAttribute::RoutePriority(m) => metric = Some(*m),
            _ => {}
        }
    }
    let local_or_only = local.or(other)?;
    Some(Address {
        link: message.header.index,
        local: local_or_only,
        prefix_len: message.header.prefix_len,
        peer: other.filter(|&o| o != local_or_only),
        broadcast,
        scope: Scope::from(u8::from(message.header.scope)),
        flags,
        metric,
    })
}

/// A route, and the nexthop object it names, whose hops the kernel states only in compatibility mode.
fn parse_route(kind: u16, body: &[u8], family: AddressFamily) -> Option<(Route, Option<u32>)> {
    if kind != RTM_NEWROUTE {
        return None;
    }
    let message = RouteMessage::parse(body).ok()?;
    let header = &message.header;
    if header.address_family != family || header.flags.bits() & CLONED != 0 {
        return None;
    }
    let mut route = empty_route(header)?;
    let (mut table, mut object) = (u32::from(header.table), None);
    let mut only = RouteNextHop::default();
    only.flags =
        RouteNextHopFlags::from_bits_retain(u8::try_from(header.flags.bits() & 0xff).unwrap_or(0));
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = t,
            RouteAttribute::Destination(a) => route.destination = ip(&a)?,
            RouteAttribute::Source(a) => {
                route.source = Some((ip(&a)?, header.source_prefix_length));
            }
            RouteAttribute::Priority(m) => route.metric = Some(m),
            RouteAttribute::PrefSource(a) => route.prefsrc = ip(&a),
            RouteAttribute::Metrics(m) => {
                route.metrics = m.iter().filter_map(numeric_metric).collect();
            }
            RouteAttribute::Preference(p) => route.preference = Some(p.into()),
            RouteAttribute::NhId(id) => object = Some(id),
            RouteAttribute::MultiPath(hops) => {
                route.hops = hops.iter().filter_map(next_hop).collect();
            }
            RouteAttribute::Oif(index) => only.interface_index = index,
            a @ (RouteAttribute::Gateway(_) | RouteAttribute::Via(_)) => only.attributes.push(a),
            _ => {}
        }
    }
    if table != TABLE_MAIN {
        return None;
    }
    if route.hops.is_empty() {
        route.hops.extend(next_hop(&only));
    }
    Some((route, object))
}

fn empty_route(header: &RouteHeader) -> Option<Route> {
    Some(Route {
        destination: match header.address_family {
            AddressFamily::Inet => IpAddr::from([0; 4]),
            AddressFamily::Inet6 => IpAddr::from([0; 16]),
            _ => return None,
        },
        prefix_len: header.destination_prefix_length,
        source: None,
        tos: header.tos,
        kind: match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            other => RouteKind::Other(other.into()),
        },
        scope: Scope::from(u8::from(header.scope)),
        protocol: header.protocol.into(),
        metric: None,
        prefsrc: None,
        metrics: Vec::new(),
        preference: None,
        hops: Vec::new(),
    })
}

/// A hop through an interface; encapsulations are dropped with the attributes we do not know.
fn next_hop(hop: &RouteNextHop) -> Option<NextHop> {
    let gateway = hop.attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(a) => ip(a),
        RouteAttribute::Via(RouteVia::Inet(a)) => Some(IpAddr::V4(*a)),
        RouteAttribute::Via(RouteVia::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    });
    (hop.interface_index != 0).then(|| NextHop {
        link: hop.interface_index,
        gateway,
        weight: u16::from(hop.hops) + 1,
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

/// (`RTAX_*`, value) of a metric that is a number: all but the congestion control algorithm.
fn numeric_metric(metric: &RouteMetric) -> Option<(u16, u32)> {
    use netlink_packet_core::Nla;
    let mut value = [0; 4];
    if metric.value_len() != value.len() || matches!(metric, RouteMetric::CcAlgo(_)) {
        return None;
    }
    metric.emit_value(&mut value);
    Some((metric.kind(), u32::from_ne_bytes(value)))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use proptest::prelude::*;

    use super::*;

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut out = vec![0; message.buffer_len()];
        message.emit(&mut out);
        out
    }

    fn default_route(family: AddressFamily) -> RouteMessage {
        let mut message = route_request(family);
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(2));
        message.attributes.push(RouteAttribute::Priority(7));
        message
    }

    #[test]
    fn what_was_not_asked_for_is_left_out() {
        let parse = |m: &RouteMessage, family| parse_route(RTM_NEWROUTE, &bytes(m), family);
        let wanted = default_route(AddressFamily::Inet);
        let (route, object) = parse(&wanted, AddressFamily::Inet).unwrap();
        assert!(route.is_default() && object.is_none());
        assert_eq!((route.metric, route.hops.len()), (Some(7), 1));
        // A kernel without IPv6 answers with the routes of every family it has.
        assert_eq!(parse(&wanted, AddressFamily::Inet6), None);
        // One without strict checking ignores the table asked for.
        let mut other = default_route(AddressFamily::Inet);
        other.attributes.push(RouteAttribute::Table(1000));
        assert_eq!(parse(&other, AddressFamily::Inet), None);
        let mut cached = default_route(AddressFamily::Inet6);
        cached.header.flags = netlink_packet_route::route::RouteFlags::Cloned;
        assert_eq!(parse(&cached, AddressFamily::Inet6), None);
        assert_eq!(
            parse_route(RTM_NEWADDR, &bytes(&wanted), AddressFamily::Inet),
            None
        );
    }

    #[test]
    fn only_ethernet_addresses_are_macs() {
        let mut message = LinkMessage::default();
        message.header.index = 4;
        message.attributes = vec![
            LinkAttribute::IfName("gre0".to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        for (layer, mac) in [(1, Some(Mac([2, 0, 0, 0, 0, 1]))), (778, None)] {
            message.header.link_layer_type = layer.into();
            let link = parse_link(RTM_NEWLINK, &bytes(&message)).unwrap();
            assert_eq!((link.index, link.name.as_str(), link.mac), (4, "gre0", mac));
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(body in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
            let _ = parse_link(RTM_NEWLINK, &body);
            let _ = parse_address(RTM_NEWADDR, &body);
            let _ = parse_route(RTM_NEWROUTE, &body, family);
            let _ = parse_own(RTM_NEWROUTE, &body);
        }

        #[test]
        fn no_truncated_answer_panics(cut in 0..60_usize, at in 0..60_usize, value: u8) {
            let mut body = bytes(&default_route(AddressFamily::Inet));
            if let Some(b) = body.get_mut(at) {
                *b = value;
            }
            body.truncate(cut);
            let _ = parse_route(RTM_NEWROUTE, &body, AddressFamily::Inet);
        }
    }
}
