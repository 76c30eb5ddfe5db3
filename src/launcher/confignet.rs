//! Interfaces of the namespace: loopback, and with `--config-net` the tap's addresses and routes.
//!
//! When [`apply`] returns, everything is final: what a container reads from its interface in the next
//! instruction is what it keeps. The enemy is duplicate address detection, which leaves an IPv6 address
//! "tentative" for a second. Addresses we add are exempt one by one (`IFA_F_NODAD`), but the link-local one
//! is the kernel's own doing when the link comes up, and detection on it ends in a work queue even where it
//! is off. So the kernel is asked not to generate one, we add the same address, exempt, and give the
//! default back; all in the datagram that also brings the links up.
//!
//! Even so the kernel leaves one step of an IPv6 address to a work queue: the route that makes it the namespace's own.
//! Until then whoever connects to it asks the link for it, in vain, so [`apply`] waits for these routes. Not for those
//! of addresses that were there before (a tap somebody else made): detection may be running on them, for seconds.
//!
//! Routes depend on each other in ways only the kernel knows (a gateway may be reached through another
//! route), so those it refuses are offered again as long as that helps. Behind the tap every neighbour
//! answers, so a gateway no route leads to is, truthfully, on the link: the last resort is to say so.

use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags as RawLinkFlags,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};
use nix::errno::Errno;

use super::tap::TapDevice;
use crate::addr::Mac;
use crate::config::namespace::{NamespaceSetup, SetupAddress, SetupHop, SetupRoute};
use crate::netlink::{self, Batch, NetlinkError, Refusal, Socket};
use crate::tap::QUEUE_LENGTH;

const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
/// `lo` has this index in every network namespace.
const LOOPBACK: u32 = 1;
/// `RTPROT_KERNEL`: a route that came with an address.
const PROTOCOL_KERNEL: u8 = 2;
/// How often, and for how long, to look whether the kernel's work queue has done its part. It takes a few
/// microseconds on an idle machine, and nothing bounds it on a busy one; whoever takes longer gets the container as it is.
const WORK_QUEUE: Duration = Duration::from_micros(500);
const WORK_QUEUE_PATIENCE: Duration = Duration::from_secs(3);
/// Largest MTU of a tap: 65535 less an Ethernet header.
const MTU_MAX: u16 = 65521;

/// The namespace could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigNetError {
    /// The conversation with the kernel failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel refused one step.
    #[error("Couldn't {what}: {refusal}")]
    Refused {
        /// The step, as the sentence goes on.
        what: String,
        /// The kernel's reason.
        refusal: Refusal,
    },
}

/// Bring up loopback, give the tap its link-layer address, and with `--config-net` all the rest. Updates
/// `tap.mac`.
///
/// # Errors
/// [`ConfigNetError`] if something asked for cannot be had. Not errors, but warnings in the log: copied
/// routes other than default ones that the kernel does not take, and IPv6 where the namespace has it
/// switched off.
pub fn apply(setup: &NamespaceSetup, tap: &mut TapDevice) -> Result<(), ConfigNetError> {
    let mut socket = Socket::open()?;
    let mut steps = Steps::default();
    steps.push(
        "bring up loopback interface",
        Kind::Must,
        RTM_SETLINK,
        &up(LOOPBACK),
    );
    if let Some(mac) = setup.mac {
        steps.push(
            "set MAC address in namespace",
            Kind::Must,
            RTM_SETLINK,
            &with_mac(tap.index, mac),
        );
        tap.mac = mac;
    }
    steps.push(
        "enlarge queue of tap device",
        Kind::May,
        RTM_SETLINK,
        &with_queue(tap.index),
    );
    if setup.configure {
        interface(&mut steps, setup, tap);
    }
    let Outcome { ipv6_off, added } = steps.commit(&mut socket)?;
    if ipv6_off && wants_ipv6(setup) {
        log::warn!(
            "IPv6 is disabled in the namespace (or its MTU is below 1280): no IPv6 addresses and routes there"
        );
    }
    if setup.configure {
        routes(&mut socket, setup, tap.index, ipv6_off)?;
        settle(&mut socket, added)?;
    }
    Ok(())
}

/// Wait until these addresses, which have just been added, are the namespace's own.
fn settle(socket: &mut Socket, mut awaited: Vec<Ipv6Addr>) -> Result<(), NetlinkError> {
    let deadline = Instant::now() + WORK_QUEUE_PATIENCE;
    while !awaited.is_empty() {
        let own = netlink::own_ipv6(socket)?;
        awaited.retain(|a| !own.contains(a));
        if awaited.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            log::warn!("The kernel has not made {awaited:?} its own in the namespace yet");
            break;
        }
        thread::sleep(WORK_QUEUE);
    }
    Ok(())
}

/// Bring up loopback, where there is nothing else (`--splice-only`).
///
/// # Errors
/// [`ConfigNetError`]: nothing could reach anything.
pub fn loopback_up() -> Result<(), ConfigNetError> {
    let mut socket = Socket::open()?;
    let mut steps = Steps::default();
    steps.push(
        "bring up loopback interface",
        Kind::Must,
        RTM_SETLINK,
        &up(LOOPBACK),
    );
    steps.commit(&mut socket)?;
    Ok(())
}

fn wants_ipv6(setup: &NamespaceSetup) -> bool {
    setup.addresses.iter().any(|a| a.local.is_ipv6())
        || setup.routes.iter().any(|r| r.destination.is_ipv6())
}

/// MTU, link up, addresses.
fn interface(steps: &mut Steps, setup: &NamespaceSetup, tap: &TapDevice) {
    if setup.mtu != 0 {
        let mtu = with(tap.index, LinkAttribute::Mtu(setup.mtu.min(MTU_MAX).into()));
        steps.push("set MTU in namespace", Kind::Must, RTM_SETLINK, &mtu);
    }
    let generation = |mode| with(tap.index, generation(mode));
    steps.push(
        "",
        Kind::May,
        RTM_SETLINK,
        &generation(In6AddrGenMode::None),
    );
    steps.push(
        "bring up tap device in namespace",
        Kind::Must,
        RTM_SETLINK,
        &up(tap.index),
    );
    let link_local = SetupAddress::new(link_local(tap.mac).into(), 64);
    steps.address(Kind::Ipv6Probe, tap.index, &link_local);
    for address in setup.addresses.iter().filter(|a| a.local.is_ipv4()) {
        steps.address(Kind::Must, tap.index, address);
    }
    // The kernel lists the newest IPv6 address first, and readers take the first for the main one.
    for address in setup.addresses.iter().rev().filter(|a| a.local.is_ipv6()) {
        steps.address(Kind::Ipv6, tap.index, address);
    }
    steps.push(
        "",
        Kind::May,
        RTM_SETLINK,
        &generation(In6AddrGenMode::Eui64),
    );
}

/// How much a step matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Must,
    May,
    /// Fails only where IPv6 is switched off.
    Ipv6Probe,
    /// Must, unless IPv6 is switched off.
    Ipv6,
}

/// A batch whose parts have names.
#[derive(Debug, Default)]
struct Steps {
    batch: Batch,
    names: Vec<(&'static str, Kind)>,
    /// IPv6 addresses, and which step adds them.
    ipv6: Vec<(usize, Ipv6Addr)>,
}

/// What the kernel has made of [`Steps`].
#[derive(Debug)]
struct Outcome {
    /// IPv6 is switched off here.
    ipv6_off: bool,
    /// IPv6 addresses that were not there before.
    added: Vec<Ipv6Addr>,
}

impl Steps {
    fn push(&mut self, name: &'static str, kind: Kind, message: u16, body: &impl Emitable) {
        let flags = if message == RTM_NEWADDR {
            Batch::CREATE | Batch::EXCLUSIVE
        } else {
            0
        };
        self.names.push((name, kind));
        self.batch.push(message, flags, body);
    }

    fn address(&mut self, kind: Kind, index: u32, address: &SetupAddress) {
        let name = match address.local {
            IpAddr::V4(_) => "set IPv4 address(es) in namespace",
            IpAddr::V6(ip) => {
                self.ipv6.push((self.names.len(), ip));
                "set IPv6 address(es) in namespace"
            }
        };
        self.push(name, kind, RTM_NEWADDR, &address_message(index, address));
    }

    /// Carry out all.
    fn commit(&self, socket: &mut Socket) -> Result<Outcome, ConfigNetError> {
        let mut ipv6_off = false;
        let answers = socket.commit(&self.batch)?;
        let added = self
            .ipv6
            .iter()
            .filter(|(step, _)| matches!(answers.get(*step), Some(None)))
            .map(|&(_, address)| address)
            .collect();
        for (&(name, kind), answer) in self.names.iter().zip(answers) {
            let Some(refusal) = answer else { continue };
            match kind {
                _ if refusal.errno == Errno::EEXIST => {}
                Kind::May => {}
                Kind::Ipv6Probe => ipv6_off = true,
                Kind::Ipv6 if ipv6_off => {}
                Kind::Must | Kind::Ipv6 => {
                    return Err(ConfigNetError::Refused {
                        what: name.to_owned(),
                        refusal,
                    });
                }
            }
        }
        Ok(Outcome { ipv6_off, added })
    }
}

/// RFC 4291 appendix A: the interface identifier made of the link-layer address.
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

fn with(index: u32, attribute: LinkAttribute) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(attribute);
    message
}

fn with_mac(index: u32, mac: Mac) -> LinkMessage {
    with(index, LinkAttribute::Address(mac.0.to_vec()))
}

fn with_queue(index: u32) -> LinkMessage {
    with(index, LinkAttribute::TxQueueLen(QUEUE_LENGTH))
}

fn generation(mode: In6AddrGenMode) -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        mode,
    )])])
}

fn up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = RawLinkFlags::Up;
    message.header.change_mask = RawLinkFlags::Up;
    message
}

fn address_message(index: u32, address: &SetupAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.local);
    message.header.prefix_len = address.prefix_len;
    message.header.index = index;
    let mut flags = AddressFlags::Nodad;
    flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
    let a = &mut message.attributes;
    a.push(AddressAttribute::Local(address.local));
    a.push(AddressAttribute::Address(
        address.peer.unwrap_or(address.local),
    ));
    a.push(AddressAttribute::Flags(flags));
    a.extend(address.broadcast.map(AddressAttribute::Broadcast));
    a.extend(address.metric.map(AddressAttribute::RoutePriority));
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Insert all routes, in whatever order works.
fn routes(
    socket: &mut Socket,
    setup: &NamespaceSetup,
    index: u32,
    ipv6_off: bool,
) -> Result<(), ConfigNetError> {
    let mut open: Vec<&SetupRoute> = setup
        .routes
        .iter()
        .filter(|r| !(ipv6_off && r.destination.is_ipv6()))
        .collect();
    // Destinations on the link first: that alone satisfies most dependencies in one round.
    open.sort_by_key(|r| r.hops.iter().any(|h| h.gateway.is_some()));
    let mut onlink = false;
    while !open.is_empty() {
        let refused = offer(socket, &open, index, onlink)?;
        if onlink {
            return give_up(refused);
        }
        onlink = refused.len() == open.len();
        open = refused.into_iter().map(|r| r.0).collect();
    }
    Ok(())
}

/// One round. Returns the routes that were refused, and why.
fn offer<'a>(
    socket: &mut Socket,
    routes: &[&'a SetupRoute],
    index: u32,
    onlink: bool,
) -> Result<Vec<(&'a SetupRoute, Refusal)>, NetlinkError> {
    let mut batch = Batch::default();
    for route in routes {
        // Several routes may differ in their gateway only, hence append; but what an address brought along
        // already is the same route with a better source.
        let flags = if route.protocol == PROTOCOL_KERNEL {
            Batch::EXCLUSIVE
        } else {
            Batch::APPEND
        };
        batch.push(
            RTM_NEWROUTE,
            Batch::CREATE | flags,
            &route_message(index, route, onlink),
        );
    }
    let answers = socket.commit(&batch)?;
    Ok(routes
        .iter()
        .zip(answers)
        .filter_map(|(&route, answer)| Some((route, answer?)))
        .filter(|(_, refusal)| refusal.errno != Errno::EEXIST)
        .collect())
}

/// A default route must be there; of the others a namespace is better off without one than not existing.
fn give_up(refused: Vec<(&SetupRoute, Refusal)>) -> Result<(), ConfigNetError> {
    for (route, refusal) in refused {
        let version = if route.destination.is_ipv6() {
            "IPv6"
        } else {
            "IPv4"
        };
        if route.prefix_len == 0 {
            return Err(ConfigNetError::Refused {
                what: format!("set {version} route(s) in guest"),
                refusal,
            });
        }
        log::warn!(
            "Couldn't copy {version} route to {}/{} into namespace: {refusal}",
            route.destination,
            route.prefix_len
        );
    }
    Ok(())
}

fn route_message(index: u32, route: &SetupRoute, onlink: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination);
    header.destination_prefix_length = route.prefix_len;
    header.source_prefix_length = route.source.map_or(0, |s| s.1);
    header.tos = route.tos;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = route.protocol.into();
    header.scope = u8::from(route.scope).into();
    header.kind = RouteType::Unicast;
    let a = &mut message.attributes;
    if route.prefix_len != 0 {
        a.push(RouteAttribute::Destination(route.destination.into()));
    }
    a.extend(route.source.map(|s| RouteAttribute::Source(s.0.into())));
    a.extend(route.metric.map(RouteAttribute::Priority));
    a.extend(
        route
            .preference
            .map(|p| RouteAttribute::Preference(p.into())),
    );
    if !route.metrics.is_empty() {
        a.push(RouteAttribute::Metrics(
            route.metrics.iter().filter_map(metric).collect(),
        ));
    }
    let hop = |h: &SetupHop| next_hop(index, route.destination, h, onlink);
    match route.hops.as_slice() {
        [only] => {
            let flags = u32::from(hop(only).flags.bits());
            message.header.flags = RouteFlags::from_bits_retain(flags);
            a.push(RouteAttribute::Oif(index));
            a.extend(gateway(route.destination, only));
        }
        several => a.push(RouteAttribute::MultiPath(several.iter().map(hop).collect())),
    }
    message
}

fn next_hop(index: u32, destination: IpAddr, hop: &SetupHop, onlink: bool) -> RouteNextHop {
    let mut next = RouteNextHop::default();
    if hop.onlink || (onlink && hop.gateway.is_some()) {
        next.flags = RouteNextHopFlags::Onlink;
    }
    next.hops = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    next.interface_index = index;
    next.attributes.extend(gateway(destination, hop));
    next
}

/// The attribute for a gateway, which may be of the other family (RFC 8950).
fn gateway(destination: IpAddr, hop: &SetupHop) -> Option<RouteAttribute> {
    let gateway = hop.gateway?;
    Some(match gateway {
        _ if gateway.is_ipv6() == destination.is_ipv6() => RouteAttribute::Gateway(gateway.into()),
        IpAddr::V4(g) => RouteAttribute::Via(RouteVia::Inet(g)),
        IpAddr::V6(g) => RouteAttribute::Via(RouteVia::Inet6(g)),
    })
}

fn metric(&(kind, value): &(u16, u32)) -> Option<RouteMetric> {
    use netlink_packet_core::{NlaBuffer, Parseable};
    let mut bytes = [0; 8];
    let (length, rest) = bytes.split_at_mut(2);
    length.copy_from_slice(&8_u16.to_ne_bytes());
    let (kind_field, value_field) = rest.split_at_mut(2);
    kind_field.copy_from_slice(&kind.to_ne_bytes());
    value_field.copy_from_slice(&value.to_ne_bytes());
    RouteMetric::parse(&NlaBuffer::new(&bytes[..])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_is_the_kernels() {
        let mac: Mac = "9a:55:9a:55:9a:55".parse().unwrap();
        assert_eq!(link_local(mac).to_string(), "fe80::9855:9aff:fe55:9a55");
    }

    #[test]
    fn metrics_survive_the_way_through_the_crate() {
        use netlink_packet_core::Nla;
        for kind in (1..=15).chain([17]) {
            let m = metric(&(kind, 0x0102_0304)).unwrap();
            let mut value = [0; 4];
            m.emit_value(&mut value);
            assert_eq!((m.kind(), u32::from_ne_bytes(value)), (kind, 0x0102_0304));
        }
    }
}
