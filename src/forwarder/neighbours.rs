//! Who on the guest's link is somebody else than us: the host's neighbours, under their own link-layer addresses.
//!
//! To the guest all addresses are at our link-layer address, except those that the host itself has as neighbours: they
//! look as if the guest were on the host's network beside them. Whatever address the guest sends to, it is us who gets
//! the frame; so an entry that is missing or wrong costs nothing but the looks, and none is waited for.
//!
//! The monitor keeps the number of entries within [`MAX_NEIGHBOURS`] and tells changes only. What must never happen:
//! an entry for an address that the guest has itself or that means something else here than on the host's network, or
//! one at the guest's own link-layer address, which would make it see itself as the sender.

use std::net::IpAddr;

use crate::addr::Mac;
use crate::config::Config;
use crate::ipc::{MAX_NEIGHBOURS, Neighbour};

/// The length of the prefix that the guest shares with its neighbours, in bits.
const PREFIX_LEN6: u32 = 64;

/// The table.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// Sorted by address.
    known: Vec<(IpAddr, Mac)>,
}

impl Neighbours {
    pub(super) fn new() -> Self {
        Self {
            known: Vec::with_capacity(MAX_NEIGHBOURS),
        }
    }

    /// Take note of a change; the neighbour's link-layer address, if the guest should hear of it.
    pub(super) fn learn(&mut self, config: &Config, n: &Neighbour) -> Option<Mac> {
        let mac = n.mac.map(Mac).filter(|mac| mac.is_unicast());
        let place = self.known.binary_search_by(|(ip, _)| ip.cmp(&n.address));
        match (place, mac) {
            (Ok(at), Some(mac)) => self.known.get_mut(at)?.1 = mac,
            (Ok(at), None) => drop(self.known.remove(at)),
            (Err(at), Some(mac)) => {
                if is_taken(config, n.address) || self.known.len() >= MAX_NEIGHBOURS {
                    return None;
                }
                self.known.insert(at, (n.address, mac));
            }
            (Err(_), None) => {}
        }
        mac.filter(|_| n.news)
    }

    /// Which station an address is at, as the guest, which is at `guest`, is told: `ours`, unless it is a neighbour's.
    pub(super) fn stations(&self, guest: Mac, ours: Mac) -> impl Fn(IpAddr) -> Mac + '_ {
        move |address| self.station(address, guest).unwrap_or(ours)
    }

    /// The station `address` is at, if it is a neighbour's; `guest` is where the guest is.
    fn station(&self, address: IpAddr, guest: Mac) -> Option<Mac> {
        let at = self
            .known
            .binary_search_by(|(ip, _)| ip.cmp(&address))
            .ok()?;
        let (_, mac) = self.known.get(at)?;
        Some(*mac).filter(|mac| *mac != guest)
    }

    /// The station that a frame from `address` comes from, if that is a neighbour: itself, or the guest's gateway for
    /// what lies beyond the guest's network.
    pub(super) fn sender(&self, config: &Config, address: IpAddr, guest: Mac) -> Option<Mac> {
        if self.known.is_empty() {
            return None;
        }
        let gateway = || self.station(gateway_to(config, address)?, guest);
        self.station(address, guest).or_else(gateway)
    }
}

/// The guest's gateway, if that is the way to `address`.
fn gateway_to(config: &Config, address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => {
            let v4 = config.v4.as_ref()?;
            let differs = ip.to_bits() ^ v4.addr.to_bits();
            let beyond = differs.leading_zeros() < u32::from(v4.prefix_len);
            v4.gateway.filter(|_| beyond).map(IpAddr::V4)
        }
        IpAddr::V6(ip) => {
            let v6 = config.v6.as_ref()?;
            let differs = v6.addr.map(|own| ip.to_bits() ^ own.to_bits());
            let near = differs.is_some_and(|bits| bits.leading_zeros() >= PREFIX_LEN6);
            let beyond = !near && !ip.is_unicast_link_local();
            v6.gateway.filter(|_| beyond).map(IpAddr::V6)
        }
    }
}

/// Does the guest reach somebody else than the host's neighbour at `address`, or nobody but itself?
fn is_taken(config: &Config, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => config.v4.as_ref().is_none_or(|v4| {
            v4.addr == ip
                || [v4.map_host_loopback, v4.map_guest_addr, v4.dns_match].contains(&Some(ip))
        }),
        IpAddr::V6(ip) => config.v6.as_ref().is_none_or(|v6| {
            // Our own, unless it is the router's and the guest reaches that one under it.
            let ours = Some(v6.our_link_local).filter(|own| v6.gateway != Some(*own));
            [
                ours,
                v6.addr,
                v6.map_host_loopback,
                v6.map_guest_addr,
                v6.dns_match,
            ]
            .contains(&Some(ip))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::samples::{self, GUEST};

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

    fn says(address: &str, mac: Option<[u8; 6]>, news: bool) -> Neighbour {
        Neighbour {
            address: address.parse().expect("an address"),
            mac,
            news,
        }
    }

    fn at(table: &Neighbours, address: &str) -> Option<[u8; 6]> {
        let address = address.parse().expect("an address");
        table.station(address, GUEST).map(|mac| mac.0)
    }

    #[test]
    fn neighbours_come_move_and_go() {
        let (cfg, mut t) = (samples::config(), Neighbours::new());
        let (v4, v6) = ("192.0.2.9", "fe80::9");
        assert_eq!(t.learn(&cfg, &says(v4, Some(A), false)), None);
        assert_eq!(t.learn(&cfg, &says(v6, Some(B), true)), Some(Mac(B)));
        assert_eq!((at(&t, v4), at(&t, v6)), (Some(A), Some(B)));
        assert_eq!(t.learn(&cfg, &says(v4, Some(B), true)), Some(Mac(B)));
        assert_eq!(at(&t, v4), Some(B));
        for _ in 0..2 {
            assert_eq!(t.learn(&cfg, &says(v4, None, false)), None);
            assert_eq!((at(&t, v4), at(&t, v6)), (None, Some(B)));
        }
    }

    #[test]
    fn addresses_with_another_meaning_stay_ours() {
        let mut cfg = samples::config();
        if let (Some(v4), Some(v6)) = (&mut cfg.v4, &mut cfg.v6) {
            v4.map_host_loopback = v4.gateway;
            v4.map_guest_addr = Some("192.0.2.60".parse().expect("an address"));
            v4.dns_match = Some("192.0.2.53".parse().expect("an address"));
            v6.map_host_loopback = v6.gateway;
            v6.map_guest_addr = Some("fe80::60".parse().expect("an address"));
        }
        let mut t = Neighbours::new();
        for address in [
            "192.0.2.5",
            "192.0.2.1",
            "192.0.2.60",
            "192.0.2.53",
            "2001:db8:5::5",
            "fe80::1",
            "fe80::99",
            "fe80::60",
        ] {
            assert_eq!(t.learn(&cfg, &says(address, Some(A), true)), None);
            assert_eq!(at(&t, address), None, "{address}");
        }
        let off = Config { v4: None, ..cfg };
        assert_eq!(t.learn(&off, &says("192.0.2.9", Some(A), true)), None);
    }

    #[test]
    fn no_station_is_the_guest_or_a_group() {
        let (cfg, mut t) = (samples::config(), Neighbours::new());
        t.learn(&cfg, &says("192.0.2.9", Some(GUEST.0), true));
        t.learn(&cfg, &says("192.0.2.8", Some([0xff; 6]), true));
        t.learn(&cfg, &says("192.0.2.7", Some([0; 6]), true));
        assert_eq!(at(&t, "192.0.2.9"), None);
        assert_eq!(at(&t, "192.0.2.8"), None);
        assert_eq!(at(&t, "192.0.2.7"), None);
    }

    #[test]
    fn what_lies_beyond_comes_from_the_gateway() {
        let (cfg, mut t) = (samples::config(), Neighbours::new());
        let from = |t: &Neighbours, ip: &str| {
            let mac = t.sender(&cfg, ip.parse().expect("an address"), GUEST);
            mac.map(|mac| mac.0)
        };
        t.learn(&cfg, &says("192.0.2.9", Some(A), false));
        for unknown in ["8.8.8.8", "2001:db8:9::9"] {
            assert_eq!(from(&t, unknown), None);
        }
        t.learn(&cfg, &says("192.0.2.1", Some(B), false));
        t.learn(&cfg, &says("fe80::99", Some(B), false));
        for (ip, sender) in [
            ("192.0.2.9", Some(A)),
            ("192.0.2.8", None),
            ("192.0.2.1", Some(B)),
            ("8.8.8.8", Some(B)),
            ("192.0.3.9", Some(B)),
            ("2001:db8:9::9", Some(B)),
            ("2001:db8:5::9", None),
            ("fe80::9", None),
        ] {
            assert_eq!(from(&t, ip), sender, "{ip}");
        }
        // Nobody asks there.
        assert_eq!(at(&t, "8.8.8.8"), None);
    }

    #[test]
    fn the_table_does_not_grow() {
        let (cfg, mut t) = (samples::config(), Neighbours::new());
        let capacity = t.known.capacity();
        for n in (0..u32::try_from(2 * MAX_NEIGHBOURS).expect("small")).rev() {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 | n).into();
            let n = Neighbour {
                address,
                mac: Some(A),
                news: false,
            };
            t.learn(&cfg, &n);
        }
        assert_eq!(t.known.len(), MAX_NEIGHBOURS);
        assert_eq!(t.known.capacity(), capacity);
        assert!(t.known.is_sorted_by_key(|(ip, _)| *ip));
    }
}
