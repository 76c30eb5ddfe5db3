//! The address translation decision: where a packet of the guest goes on the host, and who the guest sees
//! behind a packet of the host. Pure functions of [`Config`] and addresses; nothing else decides this.
//!
//! There is no NAT by default: the guest's destination is the host's destination. The exceptions, first
//! match wins, destination address only, port never:
//!
//! 1. TCP or UDP to port 53 or 853 of the DNS match address goes to the host's resolver;
//! 2. the loopback-mapping address means the host's own loopback;
//! 3. the guest-address mapping means the address that guest and host share;
//! 4. anything else is left alone.
//!
//! Rules 2 and 3, and a resolver on a loopback address, stay on the host: outbound address and interface
//! (`-o`, `--outbound-if4`, `--outbound-if6`) do not apply there, as nothing of it can leave that way.
//!
//! What must never happen: a guest reaching the host's loopback by *naming* it (127.0.0.0/8, ::1, and the
//! IPv4-mapped forms that an IPv6 socket would turn into IPv4). Those destinations are refused, only the
//! configured mapping leads there.

mod inbound;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::Endpoint;
use crate::config::{Config, V4, V6};
use crate::stats::Drop;

pub use inbound::{Forward, Inbound, Seen, inbound, splice_out};

/// Ports of DNS (RFC 1035) and DNS over TLS, DTLS and QUIC (RFC 7858, RFC 9250).
const DNS_PORTS: [u16; 2] = [53, 853];

/// What is being carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// TCP: never to a group.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo; the "port" of both end points is the identifier.
    Icmp,
}

/// Where a packet of the guest goes, and what its socket must be bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outbound<'c> {
    /// The destination on the host.
    pub dst: Endpoint,
    /// Interface index for a link-local IPv6 destination, else 0.
    pub scope: u32,
    /// Source address to bind to; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Interface to bind to; `None`: the routing table chooses.
    pub device: Option<&'c str>,
    /// The destination is a multicast group or a broadcast address: answers come from other addresses.
    pub group: bool,
}

/// Decide where a packet from `src` to `dst`, as the guest wrote them, goes.
///
/// # Errors
/// [`Drop::BadSource`] and [`Drop::BadDestination`] for addresses and ports that cannot be carried or must not be
/// reached, [`Drop::Disabled`] if the address family is off.
pub fn outbound(
    cfg: &Config,
    proto: Protocol,
    src: Endpoint,
    dst: Endpoint,
) -> Result<Outbound<'_>, Drop> {
    if proto != Protocol::Icmp {
        if src.port == 0 {
            return Err(Drop::BadSource);
        }
        if dst.port == 0 {
            return Err(Drop::BadDestination);
        }
    }
    let dns = proto != Protocol::Icmp && DNS_PORTS.contains(&dst.port);
    let out = match (src.ip, dst.ip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => outbound_v4(
            cfg.v4.as_ref().ok_or(Drop::Disabled)?,
            dns,
            from,
            to,
            dst.port,
        )?,
        (IpAddr::V6(from), IpAddr::V6(to)) => outbound_v6(
            cfg.v6.as_ref().ok_or(Drop::Disabled)?,
            dns,
            from,
            to,
            dst.port,
        )?,
        _ => return Err(Drop::BadDestination),
    };
    if out.group && proto == Protocol::Tcp {
        return Err(Drop::BadDestination);
    }
    Ok(out)
}

fn outbound_v4(
    v4: &V4,
    dns: bool,
    from: Ipv4Addr,
    to: Ipv4Addr,
    port: u16,
) -> Result<Outbound<'_>, Drop> {
    if from.is_unspecified() || from.is_loopback() || from.is_multicast() || from.is_broadcast() {
        return Err(Drop::BadSource);
    }
    let (ip, mapped) =
        if let Some(resolver) = v4.dns_host.filter(|_| dns && v4.dns_match == Some(to)) {
            (resolver, true)
        } else if v4.map_host_loopback == Some(to) {
            (Ipv4Addr::LOCALHOST, true)
        } else if v4.map_guest_addr == Some(to) {
            (v4.addr, true)
        } else {
            (to, false)
        };
    if ip.is_unspecified() || (ip.is_loopback() && !mapped) {
        return Err(Drop::BadDestination);
    }
    let stays = mapped && (ip.is_loopback() || ip == v4.addr);
    Ok(Outbound {
        dst: Endpoint::new(ip.into(), port),
        scope: 0,
        source: v4.outbound.filter(|_| !stays).map(IpAddr::V4),
        device: v4.outbound_if.as_deref().filter(|_| !stays),
        group: ip.is_multicast() || ip.is_broadcast() || is_directed_broadcast(v4, ip),
    })
}

fn outbound_v6(
    v6: &V6,
    dns: bool,
    from: Ipv6Addr,
    to: Ipv6Addr,
    port: u16,
) -> Result<Outbound<'_>, Drop> {
    if from.is_unspecified()
        || from.is_loopback()
        || from.is_multicast()
        || from.to_ipv4_mapped().is_some()
    {
        return Err(Drop::BadSource);
    }
    let mut scope = v6.outbound_scope;
    let (ip, mapped) =
        if let Some(resolver) = v6.dns_host.filter(|_| dns && v6.dns_match == Some(to)) {
            scope = v6.dns_host_scope;
            (resolver, true)
        } else if v6.map_host_loopback == Some(to) {
            (Ipv6Addr::LOCALHOST, true)
        } else if v6.map_guest_addr == Some(to) {
            (v6.addr.ok_or(Drop::BadDestination)?, true)
        } else {
            (to, false)
        };
    if ip.is_unspecified() || ip.to_ipv4_mapped().is_some() || (ip.is_loopback() && !mapped) {
        return Err(Drop::BadDestination);
    }
    if ip.is_unicast_link_local() && scope == 0 {
        return Err(Drop::BadDestination);
    }
    let stays = mapped && (ip.is_loopback() || Some(ip) == v6.addr);
    Ok(Outbound {
        dst: Endpoint::new(ip.into(), port),
        scope: if needs_scope(ip) { scope } else { 0 },
        source: v6.outbound.filter(|_| !stays).map(IpAddr::V6),
        device: v6.outbound_if.as_deref().filter(|_| !stays),
        group: ip.is_multicast(),
    })
}

/// The broadcast address of the network the guest shares with the host.
fn is_directed_broadcast(v4: &V4, ip: Ipv4Addr) -> bool {
    // A /31 has no broadcast address (RFC 3021), a /32 no network.
    if v4.prefix_len >= 31 {
        return false;
    }
    let host_bits = u32::MAX.checked_shr(u32::from(v4.prefix_len)).unwrap_or(0);
    u32::from(ip) == u32::from(v4.addr) | host_bits
}

/// Link-local unicast, and interface-local or link-local multicast (RFC 4291 section 2.7).
fn needs_scope(ip: Ipv6Addr) -> bool {
    let [first, second, ..] = ip.octets();
    ip.is_unicast_link_local() || (first == 0xff && matches!(second & 0x0f, 1 | 2))
}

/// The guest's destinations, other than `peer` itself, that [`outbound`] may have turned into `peer`.
///
/// A socket that serves several flows sees only who sent a datagram. Together with `peer` itself these are all
/// the addresses the guest can have meant; the flow table says which of them it did.
#[must_use]
pub fn aliases(cfg: &Config, peer: IpAddr) -> [Option<IpAddr>; 3] {
    match peer {
        IpAddr::V4(ip) => cfg.v4.as_ref().map_or([None; 3], |v4| {
            [
                v4.dns_match
                    .filter(|_| v4.dns_host == Some(ip))
                    .map(IpAddr::V4),
                v4.map_host_loopback
                    .filter(|_| ip == Ipv4Addr::LOCALHOST)
                    .map(IpAddr::V4),
                v4.map_guest_addr.filter(|_| ip == v4.addr).map(IpAddr::V4),
            ]
        }),
        IpAddr::V6(ip) => cfg.v6.as_ref().map_or([None; 3], |v6| {
            [
                v6.dns_match
                    .filter(|_| v6.dns_host == Some(ip))
                    .map(IpAddr::V6),
                v6.map_host_loopback
                    .filter(|_| ip == Ipv6Addr::LOCALHOST)
                    .map(IpAddr::V6),
                v6.map_guest_addr
                    .filter(|_| Some(ip) == v6.addr)
                    .map(IpAddr::V6),
            ]
        }),
    }
}

/// The source address the guest is shown for something that came from `peer` without the guest having named it:
/// an answer to a multicast query, a router that reports an error.
///
/// Loopback becomes the loopback-mapping address, the shared address becomes the guest-address mapping, and
/// whatever the guest still could not answer (loopback, unspecified, its own address) becomes our own address
/// towards the guest. `None`: there is no address to show, or the family is off.
#[must_use]
pub fn visible_source(cfg: &Config, peer: IpAddr) -> Option<IpAddr> {
    match peer {
        IpAddr::V4(ip) => {
            let v4 = cfg.v4.as_ref()?;
            let mapped = mapped_v4(v4, ip);
            let foreign = ip.is_loopback() || ip.is_unspecified() || ip == v4.addr;
            mapped
                .or(if foreign {
                    v4.our_addr.or(v4.gateway)
                } else {
                    Some(ip)
                })
                .map(IpAddr::V4)
        }
        IpAddr::V6(ip) => {
            let v6 = cfg.v6.as_ref()?;
            let mapped = mapped_v6(v6, ip);
            let foreign = ip.is_loopback() || ip.is_unspecified() || Some(ip) == v6.addr;
            mapped
                .or(if foreign {
                    Some(v6.our_link_local)
                } else {
                    Some(ip)
                })
                .map(IpAddr::V6)
        }
    }
}

/// The address that was given for what comes from the host's loopback, or from the address guest and host share.
fn mapped_v4(v4: &V4, ip: Ipv4Addr) -> Option<Ipv4Addr> {
    if ip == Ipv4Addr::LOCALHOST {
        v4.map_host_loopback
    } else if ip == v4.addr {
        v4.map_guest_addr
    } else {
        None
    }
}

/// The same for IPv6.
fn mapped_v6(v6: &V6, ip: Ipv6Addr) -> Option<Ipv6Addr> {
    if ip == Ipv6Addr::LOCALHOST {
        v6.map_host_loopback
    } else if Some(ip) == v6.addr {
        v6.map_guest_addr
    } else {
        None
    }
}

/// Who reported an error, as the guest may know them: its own destination by the name the guest uses for it, any
/// other router or host by [`visible_source`]. `peer` is the destination on the host's side, `remote` on the guest's.
#[must_use]
pub fn complainer(cfg: &Config, offender: Option<IpAddr>, peer: IpAddr, remote: IpAddr) -> IpAddr {
    let shown = match offender {
        Some(ip) if ip == peer => Some(remote),
        Some(ip) => visible_source(cfg, ip),
        None => router(cfg, remote.is_ipv6()),
    };
    shown.unwrap_or(remote)
}

/// The address the guest knows us by as a router, for errors that we report ourselves.
#[must_use]
pub fn router(cfg: &Config, ipv6: bool) -> Option<IpAddr> {
    if ipv6 {
        cfg.v6.as_ref().map(|v6| v6.our_link_local.into())
    } else {
        cfg.v4
            .as_ref()
            .and_then(|v4| v4.our_addr.or(v4.gateway))
            .map(IpAddr::V4)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::addr::Mac;
    use crate::config::{Mode, Services, Splice, Verbosity};
    use crate::stats::Drop;

    /// Guest 192.0.2.10/24 and 2001:db8::10, gateways mapped to loopback, DNS and guest mapping set.
    pub(crate) fn config() -> Config {
        Config {
            mode: Mode::Pasta,
            our_mac: Mac::OURS,
            guest_mac: None,
            mtu: 65520,
            v4: Some(V4 {
                addr: "192.0.2.10".parse().unwrap(),
                prefix_len: 24,
                gateway: Some("192.0.2.1".parse().unwrap()),
                our_addr: Some("192.0.2.1".parse().unwrap()),
                map_host_loopback: Some("192.0.2.1".parse().unwrap()),
                map_guest_addr: Some("169.254.1.2".parse().unwrap()),
                dns_match: Some("169.254.1.1".parse().unwrap()),
                dns_host: Some("127.0.0.53".parse().unwrap()),
                dns: Vec::new(),
                outbound: None,
                outbound_if: None,
            }),
            v6: Some(V6 {
                addr: Some("2001:db8::10".parse().unwrap()),
                gateway: Some("fe80::1".parse().unwrap()),
                our_link_local: "fe80::1".parse().unwrap(),
                map_host_loopback: Some("fe80::1".parse().unwrap()),
                map_guest_addr: Some("2001:db8:1::2".parse().unwrap()),
                dns_match: Some("2001:db8:1::1".parse().unwrap()),
                dns_host: Some("fe80::53".parse().unwrap()),
                dns_host_scope: 7,
                dns: Vec::new(),
                outbound: None,
                outbound_if: None,
                outbound_scope: 3,
            }),
            given: Vec::new(),
            services: Services {
                tcp: true,
                udp: true,
                icmp: true,
                dhcp: true,
                ndp: true,
                dhcpv6: true,
                ra: true,
            },
            splice: Splice {
                inbound: true,
                to_loopback: false,
                only: false,
            },
            hostname: None,
            fqdn: None,
            search: Vec::new(),
            dhcp_dns: false,
            dhcp_search: false,
            pcap: None,
            stats: None,
            verbosity: Verbosity::Normal,
        }
    }

    fn ep(s: &str) -> Endpoint {
        s.parse::<std::net::SocketAddr>()
            .map_or_else(|e| panic!("{s}: {e}"), |a| Endpoint::new(a.ip(), a.port()))
    }

    /// Protocol, source, destination; where it goes, with which scope, and whether that is a group.
    type Row<'a> = (
        Protocol,
        &'a str,
        &'a str,
        Result<(&'a str, u32, bool), Drop>,
    );

    #[test]
    fn decision_table() {
        use Drop::{BadDestination as D, BadSource as S};
        use Protocol::{Icmp, Tcp, Udp};
        let cfg = config();
        let g4 = "192.0.2.10:4000";
        let g6 = "[2001:db8::10]:4000";
        #[rustfmt::skip]
        let table: &[Row<'_>] = &[
            // Rule 1: the resolver, both protocols, both ports, nothing else.
            (Udp, g4, "169.254.1.1:53", Ok(("127.0.0.53:53", 0, false))),
            (Tcp, g4, "169.254.1.1:853", Ok(("127.0.0.53:853", 0, false))),
            (Tcp, g4, "169.254.1.1:54", Ok(("169.254.1.1:54", 0, false))),
            (Icmp, g4, "169.254.1.1:53", Ok(("169.254.1.1:53", 0, false))),
            (Udp, g6, "[2001:db8:1::1]:53", Ok(("[fe80::53]:53", 7, false))),
            // Rule 2: loopback.
            (Tcp, g4, "192.0.2.1:80", Ok(("127.0.0.1:80", 0, false))),
            (Icmp, g4, "192.0.2.1:9", Ok(("127.0.0.1:9", 0, false))),
            (Udp, g4, "192.0.2.1:53", Ok(("127.0.0.1:53", 0, false))),
            (Tcp, g6, "[fe80::1]:80", Ok(("[::1]:80", 0, false))),
            // Rule 3: the shared address.
            (Tcp, g4, "169.254.1.2:80", Ok(("192.0.2.10:80", 0, false))),
            (Udp, g6, "[2001:db8:1::2]:80", Ok(("[2001:db8::10]:80", 0, false))),
            // Rule 4: unchanged.
            (Tcp, g4, "198.51.100.1:80", Ok(("198.51.100.1:80", 0, false))),
            (Tcp, g4, "192.0.2.10:80", Ok(("192.0.2.10:80", 0, false))),
            (Udp, g6, "[2001:db8:5::1]:80", Ok(("[2001:db8:5::1]:80", 0, false))),
            (Udp, g6, "[fe80::77]:80", Ok(("[fe80::77]:80", 3, false))),
            // Groups: not for TCP.
            (Udp, g4, "224.0.0.251:5353", Ok(("224.0.0.251:5353", 0, true))),
            (Udp, g4, "255.255.255.255:9", Ok(("255.255.255.255:9", 0, true))),
            (Udp, g4, "192.0.2.255:9", Ok(("192.0.2.255:9", 0, true))),
            (Udp, g4, "198.51.100.255:9", Ok(("198.51.100.255:9", 0, false))),
            (Udp, g6, "[ff02::fb]:5353", Ok(("[ff02::fb]:5353", 3, true))),
            (Udp, g6, "[ff05::2]:9", Ok(("[ff05::2]:9", 0, true))),
            (Tcp, g4, "224.0.0.251:80", Err(D)),
            (Tcp, g4, "192.0.2.255:80", Err(D)),
            (Tcp, g6, "[ff02::1]:80", Err(D)),
            // Loopback cannot be named.
            (Tcp, g4, "127.0.0.1:80", Err(D)),
            (Udp, g4, "127.0.0.53:53", Err(D)),
            (Tcp, g6, "[::1]:80", Err(D)),
            (Tcp, g6, "[::ffff:127.0.0.1]:80", Err(D)),
            (Tcp, g6, "[::ffff:198.51.100.1]:80", Err(D)),
            (Tcp, g4, "0.0.0.0:80", Err(D)),
            (Tcp, g6, "[::]:80", Err(D)),
            // Ports.
            (Tcp, g4, "198.51.100.1:0", Err(D)),
            (Udp, "192.0.2.10:0", "198.51.100.1:9", Err(S)),
            (Icmp, "192.0.2.10:0", "198.51.100.1:0", Ok(("198.51.100.1:0", 0, false))),
            // Sources.
            (Udp, "0.0.0.0:9", "198.51.100.1:9", Err(S)),
            (Udp, "127.0.0.1:9", "198.51.100.1:9", Err(S)),
            (Udp, "224.0.0.1:9", "198.51.100.1:9", Err(S)),
            (Udp, "255.255.255.255:9", "198.51.100.1:9", Err(S)),
            (Udp, "[::]:9", "[2001:db8:5::1]:9", Err(S)),
            (Udp, "[::1]:9", "[2001:db8:5::1]:9", Err(S)),
            (Udp, "[ff02::1]:9", "[2001:db8:5::1]:9", Err(S)),
            (Udp, g4, "[2001:db8:5::1]:9", Err(D)),
        ];
        for (proto, src, dst, want) in table {
            let got = outbound(&cfg, *proto, ep(src), ep(dst));
            match (got, want) {
                (Ok(out), Ok((to, scope, group))) => {
                    assert_eq!(
                        (out.dst, out.scope, out.group),
                        (ep(to), *scope, *group),
                        "{proto:?} {src} {dst}"
                    );
                    assert_eq!((out.source, out.device), (None, None));
                    let seen: Vec<IpAddr> =
                        aliases(&cfg, out.dst.ip).into_iter().flatten().collect();
                    assert!(
                        out.dst.ip == ep(dst).ip || seen.contains(&ep(dst).ip),
                        "no way back to {dst}"
                    );
                }
                (got, want) => assert_eq!(got.err(), want.err(), "{proto:?} {src} {dst}"),
            }
        }
    }

    #[test]
    fn outbound_binding_applies_to_what_leaves_the_host() {
        let mut cfg = config();
        let v4 = cfg.v4.as_mut().unwrap();
        v4.outbound = Some("203.0.113.5".parse().unwrap());
        v4.outbound_if = Some("eth1".into());
        v4.dns_host = Some("203.0.113.53".parse().unwrap());
        let bound = (Some("203.0.113.5".parse().unwrap()), Some("eth1"));
        let table = [
            ("198.51.100.1:80", bound),
            ("224.0.0.251:80", bound),
            ("169.254.1.1:53", bound),
            ("192.0.2.1:80", (None, None)),
            ("169.254.1.2:80", (None, None)),
        ];
        for (dst, want) in table {
            let out = outbound(&cfg, Protocol::Udp, ep("192.0.2.10:4"), ep(dst)).unwrap();
            assert_eq!((out.source, out.device), want, "{dst}");
        }
    }

    #[test]
    fn families_that_are_off() {
        let mut cfg = config();
        cfg.v4 = None;
        let got = outbound(
            &cfg,
            Protocol::Udp,
            ep("192.0.2.10:4"),
            ep("198.51.100.1:9"),
        );
        assert_eq!(got.err(), Some(Drop::Disabled));
        assert_eq!(visible_source(&cfg, ep("198.51.100.1:9").ip), None);
        assert_eq!(aliases(&cfg, ep("198.51.100.1:9").ip), [None; 3]);
        assert_eq!(router(&cfg, false), None);
        assert_eq!(router(&cfg, true), Some("fe80::1".parse().unwrap()));
    }

    #[test]
    fn sources_shown_to_the_guest() {
        let mut cfg = config();
        let show =
            |cfg: &Config, s: &str| visible_source(cfg, s.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(show(&cfg, "127.0.0.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(show(&cfg, "127.0.0.2").as_deref(), Some("192.0.2.1"));
        assert_eq!(show(&cfg, "192.0.2.10").as_deref(), Some("169.254.1.2"));
        assert_eq!(show(&cfg, "198.51.100.7").as_deref(), Some("198.51.100.7"));
        assert_eq!(show(&cfg, "::1").as_deref(), Some("fe80::1"));
        assert_eq!(show(&cfg, "2001:db8::10").as_deref(), Some("2001:db8:1::2"));
        assert_eq!(show(&cfg, "fe80::99").as_deref(), Some("fe80::99"));
        let v4 = cfg.v4.as_mut().unwrap();
        v4.map_guest_addr = None;
        v4.map_host_loopback = None;
        v4.our_addr = None;
        v4.gateway = None;
        assert_eq!(show(&cfg, "127.0.0.1"), None);
        assert_eq!(show(&cfg, "192.0.2.10"), None);
    }
}
