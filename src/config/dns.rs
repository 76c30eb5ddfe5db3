//! Which resolvers the guest is told about, and which of its queries go to the host's.
//!
//! A resolver of the host that listens on loopback means nothing to the guest, so the guest is told another
//! name for it: the `--dns-forward` address, else the address that means the host's loopback. That address
//! must then lead to the very resolver (127.0.0.53 is not 127.0.0.1), so ports 53 and 853 of it are matched,
//! before the loopback mapping is looked at. The same holds when the gateway, which by default means the host,
//! is itself the resolver. Resolvers the user names with `-D` are told as they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::host::HostNetwork;
use super::notice::Notice;
use super::options::{List, Options};
use super::resolv::{Nameserver, ResolvConf};
use super::{V4, V6};

/// Where resolvers come from.
#[derive(Clone, Copy)]
pub(super) struct Resolvers<'a> {
    pub options: &'a Options,
    pub conf: &'a ResolvConf,
    pub host: &'a HostNetwork,
}

/// The decision for one family.
struct Decision<T> {
    told: Vec<T>,
    matched: Option<T>,
    host: Option<T>,
}

/// Fill in the resolver fields of both families.
pub(super) fn apply(
    from: &Resolvers<'_>,
    v4: Option<&mut V4>,
    v6: Option<&mut V6>,
    notices: &mut Vec<Notice>,
) {
    let Resolvers { options, conf, .. } = *from;
    let wanted = match &options.dns {
        List::None => false,
        List::Default => true,
        // Still needed: where --dns-forward leads to.
        List::Given(_) => options.dns_forward.v4.is_some() || options.dns_forward.v6.is_some(),
    };
    let (on4, on6) = (v4.is_some(), v6.is_some());
    let mut found = false;
    let mut told = (false, false);
    if let Some(v4) = v4 {
        let own = conf.nameservers.iter().filter_map(|n| as_v4(n.addr));
        let given = given(&options.dns, as_v4);
        let forward = (options.dns_forward.v4, options.dns_host.v4);
        let decision = decide(own, given, forward, v4.map_host_loopback);
        found |= decision.host.is_some();
        told.0 = !decision.told.is_empty();
        (v4.dns, v4.dns_match, v4.dns_host) = (decision.told, decision.matched, decision.host);
    }
    if let Some(v6) = v6 {
        let own = conf.nameservers.iter().filter_map(|n| as_v6(n.addr));
        let given = given(&options.dns, as_v6);
        let forward = (options.dns_forward.v6, options.dns_host.v6);
        let decision = decide(own, given, forward, v6.map_host_loopback);
        found |= decision.host.is_some();
        told.1 = !decision.told.is_empty();
        (v6.dns, v6.dns_match, v6.dns_host) = (decision.told, decision.matched, decision.host);
        v6.dns_host_scope = v6
            .dns_host
            .map_or(0, |addr| scope(from, addr, v6.outbound_scope));
    }
    if wanted && !found {
        notices.push(Notice::warning("Couldn't get any nameserver address"));
    } else if options.dhcp_dns && options.dns != List::None {
        if on4 && !told.0 && !options.disabled.dhcp {
            notices.push(Notice::info("No IPv4 nameserver available for DHCP"));
        }
        if on6 && !told.1 && !(options.disabled.ndp && options.disabled.dhcpv6) {
            notices.push(Notice::info("No IPv6 nameserver available for NDP/DHCPv6"));
        }
    }
}

/// The search list: as given, else the host's.
pub(super) fn search(from: &Resolvers<'_>) -> Vec<String> {
    match &from.options.search {
        List::None => Vec::new(),
        List::Default => from.conf.search.clone(),
        List::Given(domains) => domains.clone(),
    }
}

trait Address: Copy + PartialEq {
    fn is_loopback(self) -> bool;
    fn is_first_loopback(self) -> bool;
}

impl Address for Ipv4Addr {
    fn is_loopback(self) -> bool {
        Self::is_loopback(&self)
    }
    fn is_first_loopback(self) -> bool {
        self == Self::LOCALHOST
    }
}

impl Address for Ipv6Addr {
    fn is_loopback(self) -> bool {
        Self::is_loopback(&self)
    }
    fn is_first_loopback(self) -> bool {
        self == Self::LOCALHOST
    }
}

fn as_v4(addr: IpAddr) -> Option<Ipv4Addr> {
    match addr {
        IpAddr::V4(a) => Some(a),
        IpAddr::V6(_) => None,
    }
}

fn as_v6(addr: IpAddr) -> Option<Ipv6Addr> {
    match addr {
        IpAddr::V6(a) => Some(a),
        IpAddr::V4(_) => None,
    }
}

/// The `-D` addresses of a family; `None`: the host's are to be told.
fn given<T>(list: &List<IpAddr>, family: impl Fn(IpAddr) -> Option<T>) -> Option<Vec<T>> {
    match list {
        List::Default => None,
        List::None => Some(Vec::new()),
        List::Given(addresses) => Some(addresses.iter().copied().filter_map(family).collect()),
    }
}

fn decide<T: Address>(
    own: impl Iterator<Item = T>,
    given: Option<Vec<T>>,
    (forward, dns_host): (Option<T>, Option<T>),
    map_loopback: Option<T>,
) -> Decision<T> {
    let own: Vec<T> = own.collect();
    let host = dns_host.or(own.first().copied());
    let shadowed = own
        .iter()
        .copied()
        .any(|a| Some(a) == map_loopback || (a.is_loopback() && !a.is_first_loopback()));
    let implied =
        map_loopback.filter(|m| shadowed || host.is_some_and(|h| h.is_loopback() || h == *m));
    let matched = forward.or(implied).filter(|_| host.is_some());
    let alias = |a: T| {
        if a.is_loopback() {
            forward.or(map_loopback)
        } else {
            Some(a)
        }
    };
    let mut told: Vec<T> = Vec::new();
    for addr in given.unwrap_or_else(|| own.iter().copied().filter_map(alias).collect()) {
        if !told.contains(&addr) {
            told.push(addr);
        }
    }
    Decision {
        told,
        matched,
        host,
    }
}

/// The interface a link-local resolver is behind: named in `resolv.conf`, else the outbound one.
fn scope(from: &Resolvers<'_>, addr: Ipv6Addr, default: u32) -> u32 {
    if !addr.is_unicast_link_local() {
        return 0;
    }
    let is_it = |n: &&Nameserver| n.addr == IpAddr::V6(addr);
    let named = from
        .conf
        .nameservers
        .iter()
        .find(is_it)
        .and_then(|n| n.scope.as_deref());
    named
        .and_then(|s| {
            from.host
                .link_named(s)
                .map(|l| l.index)
                .or_else(|| s.parse().ok())
        })
        .unwrap_or(default)
}
