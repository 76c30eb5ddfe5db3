//! What the host's network looks like, as plain data.
//!
//! `netlink::query_host` fills this in once at start-up; choosing a template interface, guest addresses and
//! the namespace's configuration are pure functions of it, so they can be tested with values written by
//! hand. Everything is already resolved: nexthop objects are expanded into [`NextHop`]s, IPv4-compatible
//! 32-bit table numbers replace the header's byte, attributes nobody uses are gone. The order is the
//! kernel's, which is the order `ip` prints, and matters: of two equal candidates the first one wins.

use std::net::{IpAddr, Ipv4Addr};

use crate::addr::Mac;

/// The table `ip route` shows (rtnetlink(7), `RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;

/// Links, addresses and routes of one network namespace at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostNetwork {
    /// All interfaces, loopback included, by ascending index.
    pub links: Vec<Link>,
    /// All addresses, both families.
    pub addresses: Vec<Address>,
    /// Routes of the main table, both families, IPv4 first.
    pub routes: Vec<Route>,
}

impl HostNetwork {
    /// The interface with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    /// The interface with this name.
    #[must_use]
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }

    /// The addresses of one interface and family, in the kernel's order.
    pub fn addresses_of(&self, index: u32, ipv6: bool) -> impl Iterator<Item = &Address> {
        self.addresses
            .iter()
            .filter(move |a| a.link == index && a.local.is_ipv6() == ipv6)
    }

    /// The routes of one family, in the kernel's order.
    pub fn routes_of(&self, ipv6: bool) -> impl Iterator<Item = &Route> {
        self.routes
            .iter()
            .filter(move |r| r.destination.is_ipv6() == ipv6)
    }
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Interface index, from 1.
    pub index: u32,
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Link-layer address; `None` for interfaces that have none (tun) or another kind (tunnels, InfiniBand).
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// What the interface is and does.
    pub flags: LinkFlags,
}

impl Link {
    /// The loopback interface?
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        self.flags.has(LinkFlags::LOOPBACK)
    }

    /// Administratively up?
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.flags.has(LinkFlags::UP)
    }
}

/// `IFF_*` flags of netdevice(7), as in `ifinfomsg`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkFlags(pub u32);

impl LinkFlags {
    /// `IFF_UP`.
    pub const UP: u32 = 1;
    /// `IFF_LOOPBACK`.
    pub const LOOPBACK: u32 = 1 << 3;
    /// `IFF_POINTOPOINT`.
    pub const POINT_TO_POINT: u32 = 1 << 4;
    /// `IFF_RUNNING`.
    pub const RUNNING: u32 = 1 << 6;
    /// `IFF_NOARP`.
    pub const NO_ARP: u32 = 1 << 7;
    /// `IFF_LOWER_UP`: there is a carrier.
    pub const LOWER_UP: u32 = 1 << 16;

    /// Are all of these bits set?
    #[must_use]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

/// Scope of an address or route (`RT_SCOPE_*`): how far it is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Everywhere ("global").
    Universe,
    /// Deprecated site scope.
    Site,
    /// This link only.
    Link,
    /// This host only.
    Host,
    /// Nowhere: destination does not exist.
    Nowhere,
    /// A user-defined value.
    Other(u8),
}

impl From<u8> for Scope {
    fn from(v: u8) -> Self {
        match v {
            0 => Self::Universe,
            200 => Self::Site,
            253 => Self::Link,
            254 => Self::Host,
            255 => Self::Nowhere,
            v => Self::Other(v),
        }
    }
}

impl From<Scope> for u8 {
    fn from(s: Scope) -> Self {
        match s {
            Scope::Universe => 0,
            Scope::Site => 200,
            Scope::Link => 253,
            Scope::Host => 254,
            Scope::Nowhere => 255,
            Scope::Other(v) => v,
        }
    }
}

/// An address of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Index of its interface.
    pub link: u32,
    /// The interface's own address.
    pub local: IpAddr,
    /// Prefix length: of `peer` where there is one, else of `local`.
    pub prefix_len: u8,
    /// The other end of a point-to-point address.
    pub peer: Option<IpAddr>,
    /// IPv4 broadcast address, if set.
    pub broadcast: Option<Ipv4Addr>,
    /// Scope.
    pub scope: Scope,
    /// `IFA_F_*` bits of rtnetlink(7); the constants are below.
    pub flags: u32,
    /// Metric of its prefix route (`IFA_RT_PRIORITY`).
    pub metric: Option<u32>,
}

impl Address {
    /// `IFA_F_SECONDARY` (IPv4), `IFA_F_TEMPORARY` (IPv6, RFC 8981).
    pub const SECONDARY_OR_TEMPORARY: u32 = 0x01;
    /// `IFA_F_DADFAILED`: a duplicate, unusable.
    pub const DAD_FAILED: u32 = 0x08;
    /// `IFA_F_DEPRECATED`: not to be used as source of new communication.
    pub const DEPRECATED: u32 = 0x20;
    /// `IFA_F_TENTATIVE`: duplicate address detection has not finished.
    pub const TENTATIVE: u32 = 0x40;
    /// `IFA_F_NOPREFIXROUTE`: no route for the prefix comes with it.
    pub const NO_PREFIX_ROUTE: u32 = 0x200;

    /// Are all of these bits set?
    #[must_use]
    pub const fn has(&self, bits: u32) -> bool {
        self.flags & bits == bits
    }
}

/// What a route does with matching packets (`RTN_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteKind {
    /// Forwards them to a next hop.
    Unicast,
    /// Anything else: local, broadcast, multicast, blackhole, unreachable, prohibit, throw.
    Other(u8),
}

/// A route of the main table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destination network; unspecified, with `prefix_len` 0, in a default route.
    pub destination: IpAddr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Source network of a source-specific route (IPv6 subtrees).
    pub source: Option<(IpAddr, u8)>,
    /// Type of service it is restricted to, 0: none.
    pub tos: u8,
    /// What it does.
    pub kind: RouteKind,
    /// Scope of the destination.
    pub scope: Scope,
    /// `RTPROT_*`: who installed it.
    pub protocol: u8,
    /// Metric; `None` is the best, 0, for IPv4 (the kernel always states one for IPv6).
    pub metric: Option<u32>,
    /// Preferred source address.
    pub prefsrc: Option<IpAddr>,
    /// `RTA_METRICS` that are numbers: (`RTAX_*`, value), e.g. the path MTU.
    pub metrics: Vec<(u16, u32)>,
    /// RFC 4191 router preference (IPv6), raw value.
    pub preference: Option<u8>,
    /// Where it leads; several for multipath, none for kinds that lead nowhere.
    pub hops: Vec<NextHop>,
}

impl Route {
    /// A unicast default route?
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.prefix_len == 0 && self.kind == RouteKind::Unicast && self.source.is_none()
    }

    /// IPv6?
    #[must_use]
    pub const fn is_ipv6(&self) -> bool {
        self.destination.is_ipv6()
    }

    /// Does it, or one of its hops, leave by this interface?
    #[must_use]
    pub fn uses(&self, link: u32) -> bool {
        self.hops.iter().any(|h| h.link == link)
    }
}

/// One way a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// Index of the outgoing interface.
    pub link: u32,
    /// Gateway; of the other family for RFC 5549 routes; `None`: destinations are on the link.
    pub gateway: Option<IpAddr>,
    /// Weight among several, from 1.
    pub weight: u16,
    /// The gateway is on the link whatever the other routes say (`RTNH_F_ONLINK`).
    pub onlink: bool,
}
