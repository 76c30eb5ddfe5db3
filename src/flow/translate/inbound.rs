//! The decision for what comes from outside: to the guest as frames, or round the tap from loopback to loopback.
//!
//! A peer on the host's loopback takes the bypass where there is one, unless the rule names an address that may lie
//! beyond the guest; everybody else reaches the guest through the tap, at the address a rule names, else at the one the
//! guest was last seen to use, else at the one it was assigned. The peer's own address is shown to the guest wherever
//! the guest could answer to it.
//!
//! What must never happen: the guest seeing a loopback address, or its own, as the source of something
//! that came from outside. Programs trust such sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{mapped_v4, mapped_v6};
use crate::addr::{Endpoint, Mac};
use crate::config::Config;
use crate::flow::id::Key;
use crate::stats::Drop;

/// The addresses the guest was last seen to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6, other than link-local.
    pub v6: Option<Ipv6Addr>,
    /// IPv6, link-local.
    pub link_local: Option<Ipv6Addr>,
}

impl Seen {
    /// The guest has sent a packet from this address.
    pub fn learn(&mut self, source: IpAddr) {
        match source {
            IpAddr::V4(ip)
                if ip.is_unspecified()
                    || ip.is_loopback()
                    || ip.is_multicast()
                    || ip.is_broadcast() => {}
            IpAddr::V4(ip) => self.v4 = Some(ip),
            IpAddr::V6(ip) if ip.is_unicast_link_local() => self.link_local = Some(ip),
            IpAddr::V6(ip) if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() => {}
            IpAddr::V6(ip) => self.v6 = Some(ip),
        }
    }
}

/// What a rule says about where its ports lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forward {
    /// The rule's target address; `None`: the guest's, as it is at the time.
    pub target: Option<IpAddr>,
    /// Target port.
    pub port: u16,
}

/// Where something that arrived at a listening socket of the host goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inbound {
    /// To the guest as frames, with these ends as it sees them.
    Tap(Key),
    /// To a socket in the guest's namespace.
    Splice {
        /// Its destination.
        to: Endpoint,
        /// Its source address; `None`: the kernel chooses.
        source: Option<IpAddr>,
    },
}

/// Decide where a connection or datagram from `peer`, that reached the host at address `local`, goes.
///
/// # Errors
/// [`Drop::Disabled`] if the family is off, [`Drop::BadSource`] if there is no address the guest could answer to,
/// [`Drop::BadDestination`] if the guest has no address of the family.
pub fn inbound(
    cfg: &Config,
    seen: &Seen,
    forward: Forward,
    peer: Endpoint,
    local: IpAddr,
) -> Result<Inbound, Drop> {
    let bypass = cfg.splice.only || forward.target.is_none_or(|target| target.is_loopback());
    if cfg.splice.inbound && peer.ip.is_loopback() && bypass {
        return splice_in(cfg, seen, forward, peer.ip, local);
    }
    if cfg.splice.only {
        return Err(Drop::Disabled);
    }
    if forward.target.is_some_and(|target| target.is_loopback()) {
        // No kernel takes that from an interface.
        return Err(Drop::BadDestination);
    }
    let remote = inbound_source(cfg, seen, peer.ip)?;
    let guest = match forward.target {
        Some(target) => target,
        None => guest_address(cfg, seen, remote)?,
    };
    Ok(Inbound::Tap(Key::new(
        Endpoint::new(guest, forward.port),
        Endpoint::new(remote, peer.port),
    )))
}

/// The same for the bypass: from the host's loopback to the namespace's public address, or to its loopback.
fn splice_in(
    cfg: &Config,
    seen: &Seen,
    forward: Forward,
    peer: IpAddr,
    local: IpAddr,
) -> Result<Inbound, Drop> {
    let to = match forward.target {
        Some(target) => target,
        // Without a tap the namespace need not have any other address.
        None if cfg.splice.to_loopback || cfg.splice.only => {
            if local.is_loopback() {
                local
            } else {
                loopback_like(peer)
            }
        }
        None => public_address(cfg, seen, peer)?,
    };
    // Somebody who uses 127.0.0.2 wants to be told apart.
    let source = Some(peer).filter(|ip| to.is_loopback() && *ip != IpAddr::V4(Ipv4Addr::LOCALHOST));
    Ok(Inbound::Splice {
        to: Endpoint::new(to, forward.port),
        source,
    })
}

/// Where the bypass ends without a target: the guest's public address, of the other family if it has none of the peer's.
///
/// "localhost" is ::1 first on hosts that have no other IPv6 address, and then neither has the guest.
fn public_address(cfg: &Config, seen: &Seen, peer: IpAddr) -> Result<IpAddr, Drop> {
    // A link-local address is none that a socket could connect to without saying where.
    let public = |like| {
        guest_address(cfg, seen, like)
            .ok()
            .filter(|found| match found {
                IpAddr::V4(_) => true,
                IpAddr::V6(ip) => !ip.is_unicast_link_local(),
            })
    };
    let other = match peer {
        IpAddr::V4(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    public(peer)
        .or_else(|| public(other))
        .ok_or(Drop::BadDestination)
}

const fn loopback_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Where something that arrived at a listening socket of the namespace's loopback goes: the host's loopback.
#[must_use]
pub fn splice_out(forward: Forward, local: IpAddr) -> Endpoint {
    let to = forward.target.unwrap_or_else(|| {
        if local.is_loopback() {
            local
        } else {
            loopback_like(local)
        }
    });
    Endpoint::new(to, forward.port)
}

/// Who the guest sees behind an inbound connection.
fn inbound_source(cfg: &Config, seen: &Seen, peer: IpAddr) -> Result<IpAddr, Drop> {
    match peer {
        IpAddr::V4(ip) => {
            let v4 = cfg.v4.as_ref().ok_or(Drop::Disabled)?;
            let own = ip == v4.addr || seen.v4 == Some(ip) || cfg.given.contains(&peer);
            let mapped = mapped_v4(v4, ip);
            if ip.is_loopback() || ip.is_unspecified() || own {
                let shown = mapped.or(v4.our_addr).or(v4.gateway);
                shown.map(IpAddr::V4).ok_or(Drop::BadSource)
            } else {
                Ok(peer)
            }
        }
        IpAddr::V6(ip) => {
            let v6 = cfg.v6.as_ref().ok_or(Drop::Disabled)?;
            let learnt = seen.v6 == Some(ip) || seen.link_local == Some(ip);
            let own = Some(ip) == v6.addr || learnt || cfg.given.contains(&peer);
            let mapped = mapped_v6(v6, ip);
            if ip.is_loopback() || ip.is_unspecified() || own {
                Ok(mapped.or(v6.gateway).unwrap_or(v6.our_link_local).into())
            } else {
                Ok(peer)
            }
        }
    }
}

/// The guest's own address for something from `remote`: as last seen, else as assigned.
fn guest_address(cfg: &Config, seen: &Seen, remote: IpAddr) -> Result<IpAddr, Drop> {
    match remote {
        IpAddr::V4(_) => {
            let v4 = cfg.v4.as_ref().ok_or(Drop::Disabled)?;
            Ok(seen.v4.unwrap_or(v4.addr).into())
        }
        IpAddr::V6(remote) => {
            let v6 = cfg.v6.as_ref().ok_or(Drop::Disabled)?;
            let own = if remote.is_unicast_link_local() {
                let derived = cfg.guest_mac.map(link_local);
                seen.link_local.or(derived).or(seen.v6).or(v6.addr)
            } else {
                seen.v6.or(v6.addr).or(seen.link_local)
            };
            own.map(IpAddr::V6).ok_or(Drop::BadDestination)
        }
    }
}

/// The address a kernel gives an interface from its link-layer address (RFC 4291 appendix A).
const fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from_bits(
        0xfe80_u128 << 112 | (u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]) as u128),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::translate::tests::config;

    const GUEST: &str = "192.0.2.10";

    fn ip(s: &str) -> IpAddr {
        s.parse().expect("an address")
    }

    fn forward(target: Option<&str>) -> Forward {
        Forward {
            target: target.map(ip),
            port: 80,
        }
    }

    /// Destination and source the guest sees, from the tap.
    fn tap(
        cfg: &Config,
        seen: &Seen,
        target: Option<&str>,
        peer: &str,
    ) -> Result<(String, String), Drop> {
        let peer = Endpoint::new(ip(peer), 4000);
        match inbound(cfg, seen, forward(target), peer, ip("192.0.2.10"))? {
            Inbound::Tap(key) => {
                assert_eq!((key.guest.port, key.remote.port), (80, 4000));
                Ok((key.guest.ip.to_string(), key.remote.ip.to_string()))
            }
            Inbound::Splice { .. } => panic!("spliced"),
        }
    }

    fn no_splice() -> Config {
        let mut cfg = config();
        cfg.splice.inbound = false;
        cfg
    }

    #[test]
    fn the_guest_sees_the_peer_or_somebody_it_can_answer() {
        let cfg = no_splice();
        let seen = Seen::default();
        let sees = |peer| tap(&cfg, &seen, None, peer).map(|(_, source)| source);
        assert_eq!(sees("198.51.100.7").as_deref(), Ok("198.51.100.7"));
        assert_eq!(sees("127.0.0.1").as_deref(), Ok("192.0.2.1"));
        assert_eq!(sees("127.0.0.2").as_deref(), Ok("192.0.2.1"));
        assert_eq!(sees(GUEST).as_deref(), Ok("169.254.1.2"));
        assert_eq!(sees("2001:db8:9::1").as_deref(), Ok("2001:db8:9::1"));
        assert_eq!(sees("::1").as_deref(), Ok("fe80::1"));
        assert_eq!(sees("2001:db8::10").as_deref(), Ok("2001:db8:1::2"));
    }

    #[test]
    fn a_copy_of_any_of_the_hosts_addresses_is_no_source() {
        let mut cfg = no_splice();
        cfg.given = ["192.0.2.77", "2001:db8::77"].map(ip).into();
        let sees = |peer| tap(&cfg, &Seen::default(), None, peer).map(|(_, source)| source);
        assert_eq!(sees("192.0.2.77").as_deref(), Ok("192.0.2.1"));
        assert_eq!(sees("2001:db8::77").as_deref(), Ok("fe80::1"));
        assert_eq!(sees("192.0.2.78").as_deref(), Ok("192.0.2.78"));
    }

    #[test]
    fn without_mappings_what_is_ours_comes_from_the_gateway_or_is_refused() {
        let mut cfg = no_splice();
        if let (Some(v4), Some(v6)) = (&mut cfg.v4, &mut cfg.v6) {
            (v4.map_host_loopback, v4.map_guest_addr) = (None, None);
            (v6.map_host_loopback, v6.map_guest_addr) = (None, None);
            v6.gateway = Some("2001:db8::1".parse().expect("address"));
        }
        let seen = Seen::default();
        for peer in ["127.0.0.1", GUEST] {
            assert_eq!(
                tap(&cfg, &seen, None, peer).expect("carried").1,
                "192.0.2.1"
            );
        }
        for peer in ["::1", "2001:db8::10"] {
            assert_eq!(
                tap(&cfg, &seen, None, peer).expect("carried").1,
                "2001:db8::1"
            );
        }
        if let Some(v4) = &mut cfg.v4 {
            (v4.our_addr, v4.gateway) = (None, None);
        }
        assert_eq!(tap(&cfg, &seen, None, "127.0.0.1"), Err(Drop::BadSource));
        cfg.v4 = None;
        assert_eq!(tap(&cfg, &seen, None, "198.51.100.7"), Err(Drop::Disabled));
    }

    #[test]
    fn the_destination_is_the_rules_then_the_one_seen_then_the_one_assigned() {
        let cfg = no_splice();
        let mut seen = Seen::default();
        let goes = |seen: &Seen, target, peer| tap(&cfg, seen, target, peer).expect("carried").0;
        assert_eq!(goes(&seen, None, "198.51.100.7"), GUEST);
        assert_eq!(goes(&seen, None, "2001:db8:9::1"), "2001:db8::10");
        for source in [
            "192.0.2.77",
            "2001:db8::77",
            "fe80::77",
            "0.0.0.0",
            "::",
            "127.0.0.1",
        ] {
            seen.learn(ip(source));
        }
        assert_eq!(goes(&seen, None, "198.51.100.7"), "192.0.2.77");
        assert_eq!(goes(&seen, None, "2001:db8:9::1"), "2001:db8::77");
        assert_eq!(goes(&seen, None, "fe80::9"), "fe80::77");
        assert_eq!(
            goes(&seen, Some("192.0.2.99"), "198.51.100.7"),
            "192.0.2.99"
        );
        // The guest's own address, wherever it was learnt from, is no source.
        assert_eq!(
            tap(&cfg, &seen, None, "192.0.2.77").expect("carried").1,
            "192.0.2.1"
        );
    }

    #[test]
    fn a_guest_that_never_spoke_has_the_link_local_address_of_its_mac() {
        let mut cfg = no_splice();
        cfg.guest_mac = Some(Mac([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]));
        let to = tap(&cfg, &Seen::default(), None, "fe80::9")
            .expect("carried")
            .0;
        assert_eq!(to, "fe80::11:22ff:fe33:4455");
    }

    #[test]
    fn loopback_takes_the_bypass() {
        let mut cfg = config();
        let go = |cfg: &Config, peer, local| {
            let peer = Endpoint::new(ip(peer), 4000);
            inbound(cfg, &Seen::default(), forward(None), peer, ip(local))
        };
        let splice = |to, source: Option<&str>| {
            Ok(Inbound::Splice {
                to: Endpoint::new(ip(to), 80),
                source: source.map(ip),
            })
        };
        assert_eq!(go(&cfg, "127.0.0.1", "127.0.0.1"), splice(GUEST, None));
        assert_eq!(go(&cfg, "::1", "::1"), splice("2001:db8::10", None));
        // Without an IPv6 address, and without IPv6, ::1 is still a way to somebody who listens at IPv4.
        cfg.v6.as_mut().expect("IPv6").addr = None;
        assert_eq!(go(&cfg, "::1", "::1"), splice(GUEST, None));
        let v6 = cfg.v6.take();
        assert_eq!(go(&cfg, "::1", "::1"), splice(GUEST, None));
        cfg.v6 = v6;
        cfg.splice.to_loopback = true;
        assert_eq!(
            go(&cfg, "127.0.0.1", "127.0.0.1"),
            splice("127.0.0.1", None)
        );
        assert_eq!(
            go(&cfg, "127.0.0.2", "127.0.0.3"),
            splice("127.0.0.3", Some("127.0.0.2"))
        );
        cfg.splice.only = true;
        assert_eq!(go(&cfg, "198.51.100.7", GUEST), Err(Drop::Disabled));
        cfg.splice.inbound = false;
        cfg.splice.only = false;
        assert!(matches!(
            go(&cfg, "127.0.0.1", "127.0.0.1"),
            Ok(Inbound::Tap(_))
        ));
    }

    #[test]
    fn a_target_is_reached_over_the_tap_unless_only_the_bypass_leads_there() {
        let mut cfg = config();
        let go = |cfg: &Config, peer, target| {
            let peer = Endpoint::new(ip(peer), 4000);
            inbound(
                cfg,
                &Seen::default(),
                forward(Some(target)),
                peer,
                ip("127.0.0.1"),
            )
        };
        let over_tap = |way: Result<Inbound, Drop>| matches!(way, Ok(Inbound::Tap(_)));
        let round = |way: Result<Inbound, Drop>| matches!(way, Ok(Inbound::Splice { .. }));
        assert!(over_tap(go(&cfg, "127.0.0.1", "192.0.2.99")));
        assert!(round(go(&cfg, "127.0.0.1", "127.0.0.5")));
        assert_eq!(
            go(&cfg, "198.51.100.7", "127.0.0.5"),
            Err(Drop::BadDestination)
        );
        cfg.splice.only = true;
        assert!(round(go(&cfg, "127.0.0.1", "192.0.2.99")));
    }

    #[test]
    fn the_way_out_leads_to_the_hosts_loopback() {
        let to = |target, local| splice_out(forward(target), ip(local)).ip;
        assert_eq!(to(None, "127.0.0.1"), ip("127.0.0.1"));
        assert_eq!(to(None, "127.0.0.9"), ip("127.0.0.9"));
        assert_eq!(to(None, "::1"), ip("::1"));
        assert_eq!(to(None, GUEST), ip("127.0.0.1"));
        assert_eq!(to(Some("192.0.2.5"), "127.0.0.1"), ip("192.0.2.5"));
    }
}
