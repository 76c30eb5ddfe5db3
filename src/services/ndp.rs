//! Neighbour discovery: the guest's router and, for all addresses but its own, its neighbour (RFC 4861).
//!
//! Solicitations for a neighbour are answered as ARP requests are, from the neighbour itself, with one difference: a probe for
//! duplicates (unspecified source) is not, because here silence means "take it" and the guest may give
//! itself whatever address it likes.
//!
//! Router advertisements say what DHCPv6 says, for guests that only listen to those: prefix for
//! address configuration, MTU, resolvers, search list (RFC 8106). Every option is padded to its unit of
//! eight bytes and no further: a receiver that finds a length of zero drops the whole message.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::frame::{self, ICMPV6_MESSAGE, Link};
use super::{Stations, names, our_link_local};
use crate::addr::Mac;
use crate::config::{Config, V6};
use crate::wire::ipv6;
use crate::wire::ndp::{HOP_LIMIT, OptionWriter, Options, PrefixInfo, Repr};

/// Where an advertisement goes that nobody asked for: all nodes on the link.
pub const ALL_NODES: (Mac, Ipv6Addr) = (
    Mac([0x33, 0x33, 0, 0, 0, 1]),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
);

/// `ff02::1:ff00:0`: with the last 24 bits of an address, the group of those who have it (RFC 4291 2.7.1).
const SOLICITED_NODE: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
/// What every IPv6 link carries, in bytes.
const MIN_MTU: u16 = 1280;
/// A router advertisement without options, in bytes.
const ADVERT_LEN: usize = 16;
/// Length of the prefix we advertise, in bits: SLAAC knows no other on Ethernet.
const PREFIX_LEN: u8 = 64;
/// A lifetime without end.
const INFINITY: u32 = u32::MAX;
/// What a search list option adds to its names: its header and up to seven bytes of padding.
const DNSSL_EXTRA: usize = 8 + 7;
/// Longest search list: an option of 255 units less its header, in bytes.
const MAX_SEARCH: usize = 255 * 8 - 8;
/// Shortest and longest time between two unsolicited advertisements, in milliseconds.
const INTERVAL_MS: (u64, u64) = (200_000, 600_000);

/// The frame with the reply to a message that the guest sent, from this link-layer and this address; its length.
/// `None` when there is nothing to reply.
#[must_use]
pub fn answer(
    cfg: &Config,
    stations: Stations<'_>,
    guest: (Mac, Ipv6Addr),
    message: &Repr<'_>,
    out: &mut [u8],
) -> Option<usize> {
    let (_, src) = guest;
    match message {
        Repr::NeighborSolicit { target, .. } => {
            let v6 = cfg.v6.as_ref().filter(|_| cfg.services.ndp)?;
            let own = v6.addr == Some(*target) || *target == src;
            let impossible =
                target.is_unspecified() || target.is_loopback() || target.is_multicast();
            if own || impossible || src.is_unspecified() {
                return None;
            }
            neighbor_advertisement((stations((*target).into()), *target), guest, true, out)
        }
        Repr::RouterSolicit { .. } => {
            // Who has no address yet cannot be answered at it.
            let dst = if src.is_unspecified() {
                ALL_NODES
            } else {
                guest
            };
            router_advertisement(cfg, stations, dst, out)
        }
        _ => None,
    }
}

/// The frame that tells all nodes, unasked: `address` is at `station` (RFC 4861 7.2.6); its length. `None` when
/// neighbour discovery is off.
#[must_use]
pub fn announce(cfg: &Config, station: Mac, address: Ipv6Addr, out: &mut [u8]) -> Option<usize> {
    (cfg.v6.is_some() && cfg.services.ndp).then_some(())?;
    neighbor_advertisement((station, address), ALL_NODES, false, out)
}

/// The frame that says where `from` is; it comes from there, as the real one's would.
fn neighbor_advertisement(
    from: (Mac, Ipv6Addr),
    to: (Mac, Ipv6Addr),
    solicited: bool,
    out: &mut [u8],
) -> Option<usize> {
    let (station, target) = from;
    let message = Repr::NeighborAdvert {
        // The same for all, or a guest that has one of them as its router would give it up.
        router: true,
        solicited,
        overrides: true,
        target,
        options: Options::EMPTY,
    };
    let body = out.get_mut(ICMPV6_MESSAGE..)?;
    let start = message.emit(body)?;
    let mut options = OptionWriter::new(body.get_mut(start..)?);
    if !options.target_link_layer(station) {
        return None;
    }
    let len = start.checked_add(options.len())?;
    let (dst, address) = to;
    let src = station;
    frame::icmpv6(out, Link { src, dst }, target, address, len)
}

/// The frame that asks for the guest's assigned address: whoever answers is the guest, and its link-layer address is
/// known before it has anything to say. Its length; `None` also when IPv6 or neighbour discovery is off or the guest is
/// assigned no address.
///
/// To the address's group (RFC 4861 7.2.2): a guest that does not have it yet hears nothing.
#[must_use]
pub fn solicit(cfg: &Config, out: &mut [u8]) -> Option<usize> {
    let v6 = cfg.v6.as_ref().filter(|_| cfg.services.ndp)?;
    let target = v6.addr?;
    let message = Repr::NeighborSolicit {
        target,
        options: Options::EMPTY,
    };
    let body = out.get_mut(ICMPV6_MESSAGE..)?;
    let start = message.emit(body)?;
    let mut options = OptionWriter::new(body.get_mut(start..)?);
    options.source_link_layer(cfg.our_mac).then_some(())?;
    let len = start.checked_add(options.len())?;
    let [.., a, b, c] = target.octets();
    let group = SOLICITED_NODE | u128::from(u32::from_be_bytes([0, a, b, c]));
    let (src, dst) = (cfg.our_mac, Mac([0x33, 0x33, 0xff, a, b, c]));
    let from = our_link_local(v6);
    frame::icmpv6(
        out,
        Link { src, dst },
        from,
        Ipv6Addr::from_bits(group),
        len,
    )
}

/// The frame with a router advertisement for `dst`, or for everybody ([`ALL_NODES`]); its length. `None` when
/// IPv6, neighbour discovery or advertisements are off, or `out` is too small for the least of it.
#[must_use]
pub fn router_advertisement(
    cfg: &Config,
    stations: Stations<'_>,
    dst: (Mac, Ipv6Addr),
    out: &mut [u8],
) -> Option<usize> {
    let v6 = cfg
        .v6
        .as_ref()
        .filter(|_| cfg.services.ndp && cfg.services.ra)?;
    let message = Repr::RouterAdvert {
        hop_limit: HOP_LIMIT,
        managed: cfg.services.dhcpv6 && v6.addr.is_some(),
        other_config: false,
        lifetime: u16::MAX,
        reachable_time: 0,
        retransmit_time: 0,
        options: Options::EMPTY,
    };
    let (_, body) = out.split_at_mut_checked(ICMPV6_MESSAGE)?;
    let room = usize::from(cfg.mtu.max(MIN_MTU))
        .saturating_sub(ipv6::HEADER_LEN)
        .min(body.len());
    let (head, rest) = body.get_mut(..room)?.split_at_mut_checked(ADVERT_LEN)?;
    message.emit(head)?;
    let us = our_link_local(v6);
    let station = stations(us.into());
    let options_len = advertise(cfg, v6, station, rest)?;
    let len = ADVERT_LEN.checked_add(options_len)?;
    let (mac, address) = dst;
    frame::icmpv6(
        out,
        Link {
            src: station,
            dst: mac,
        },
        us,
        address,
        len,
    )
}

/// Write the options of a router advertisement; their length.
fn advertise(cfg: &Config, v6: &V6, station: Mac, out: &mut [u8]) -> Option<usize> {
    let room = out.len();
    let mut options = OptionWriter::new(out);
    if let Some(address) = v6.addr {
        let info = PrefixInfo {
            prefix: network(address),
            prefix_len: PREFIX_LEN,
            on_link: true,
            autonomous: true,
            valid_lifetime: INFINITY,
            preferred_lifetime: INFINITY,
        };
        options.prefix(&info).then_some(())?;
    }
    options.source_link_layer(station).then_some(())?;
    if cfg.mtu >= MIN_MTU {
        options.mtu(u32::from(cfg.mtu)).then_some(())?;
    }
    // As many resolvers and domains as there is room for; nobody depends on the last one.
    if cfg.dhcp_dns {
        options.rdnss(INFINITY, &v6.dns);
    }
    if cfg.dhcp_search {
        let mut list = [0; MAX_SEARCH];
        let room = room
            .saturating_sub(options.len())
            .saturating_sub(DNSSL_EXTRA)
            .min(MAX_SEARCH);
        let filled = names::fill(&cfg.search, list.get_mut(..room)?, false);
        options.dnssl(INFINITY, list.get(..filled.len)?);
    }
    Some(options.len())
}

/// The /64 an address is in.
fn network(address: Ipv6Addr) -> Ipv6Addr {
    let host_bits = 128_u32.saturating_sub(u32::from(PREFIX_LEN));
    Ipv6Addr::from_bits(address.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0))
}

/// How long after one unsolicited advertisement the next is due: 200 to 600 s, spread evenly over the values
/// of `seed` (any that differ: a counter, a clock). Not the same for all, or the guests of one host would
/// all be advertised to at once (RFC 4861 6.2.4).
#[must_use]
pub fn next_interval(seed: u64) -> Duration {
    // The finisher of SplitMix64: neighbouring seeds give unrelated values.
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    let (min, max) = INTERVAL_MS;
    let span = max.saturating_sub(min).saturating_add(1);
    Duration::from_millis(min.saturating_add(x.checked_rem(span).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::services::decode;
    use crate::services::samples::{self, GUEST};

    fn ip(s: &str) -> Ipv6Addr {
        s.parse().unwrap()
    }

    fn solicit(cfg: &Config, src: &str, target: &str) -> Option<decode::Icmpv6> {
        let mut out = [0x55; 200];
        let message = Repr::NeighborSolicit {
            target: ip(target),
            options: Options::EMPTY,
        };
        let n = answer(cfg, &samples::ours, (GUEST, ip(src)), &message, &mut out)?;
        Some(decode::icmpv6(&out[..n]))
    }

    fn advert(cfg: &Config, src: &str) -> Option<decode::Icmpv6> {
        let mut out = [0x55; 70_000];
        let n = answer(
            cfg,
            &samples::ours,
            (GUEST, ip(src)),
            &Repr::RouterSolicit {
                options: Options::EMPTY,
            },
            &mut out,
        )?;
        assert!(n - 14 <= usize::from(cfg.mtu.max(1280)));
        Some(decode::icmpv6(&out[..n]))
    }

    #[test]
    fn who_is_answered_for() {
        let cfg = samples::config();
        for (src, target, answered) in [
            ("fe80::ad", "fe80::99", true),
            ("fe80::ad", "fe80::1", true),
            ("2001:db8:5::5", "fe80::99", true),
            ("2001:db8:5::5", "2001:db8:5::77", true),
            ("fe80::ad", "2001:db8:ffff::1", true),
            ("fe80::ad", "2001:db8:5::5", false),
            ("fe80::ad", "fe80::ad", false),
            ("fe80::ad", "::", false),
            ("fe80::ad", "::1", false),
            ("fe80::ad", "ff02::1", false),
            ("::", "2001:db8:5::77", false),
            ("::", "fe80::99", false),
            ("::", "2001:db8:5::5", false),
        ] {
            let got = solicit(&cfg, src, target);
            assert_eq!(got.is_some(), answered, "{src} asks for {target}");
            let Some(got) = got else { continue };
            assert_eq!((got.link.src, got.link.dst), (Mac::OURS, GUEST));
            assert_eq!((got.src, got.dst), (ip(target), ip(src)));
            assert_eq!(
                (got.message[0], &got.message[4..8]),
                (136, &[0xe0, 0, 0, 0][..])
            );
            assert_eq!(got.message[8..24], ip(target).octets());
            assert_eq!(
                decode::ndp_options(&got.message[24..]),
                [(2, Mac::OURS.0.to_vec())]
            );
        }
    }

    /// A neighbour of the host's answers, and announces itself, from its own station; so does a router that is one.
    #[test]
    fn neighbours_have_their_own_station() {
        let cfg = samples::config();
        let neighbour = Mac([2, 0, 0, 0, 0, 9]);
        let stations = |_: std::net::IpAddr| neighbour;
        let mut out = [0; 1514];
        let message = Repr::NeighborSolicit {
            target: ip("fe80::9"),
            options: Options::EMPTY,
        };
        let to = (GUEST, ip("fe80::ad"));
        let n = answer(&cfg, &stations, to, &message, &mut out).unwrap();
        let got = decode::icmpv6(&out[..n]);
        let option = [(2, neighbour.0.to_vec())];
        assert_eq!((got.link.src, got.src), (neighbour, ip("fe80::9")));
        assert_eq!(decode::ndp_options(&got.message[24..]), option);

        let n = announce(&cfg, neighbour, ip("fe80::9"), &mut out).unwrap();
        let got = decode::icmpv6(&out[..n]);
        assert_eq!((got.link.src, got.link.dst), (neighbour, ALL_NODES.0));
        assert_eq!((got.src, got.dst), (ip("fe80::9"), ALL_NODES.1));
        // Router and override; nobody has solicited it.
        assert_eq!(got.message[4], 0xa0);
        assert_eq!(got.message[8..24], ip("fe80::9").octets());
        assert_eq!(decode::ndp_options(&got.message[24..]), option);

        let n = router_advertisement(&cfg, &stations, ALL_NODES, &mut out).unwrap();
        let got = decode::icmpv6(&out[..n]);
        let source = (1, neighbour.0.to_vec());
        assert_eq!(got.link.src, neighbour);
        assert!(decode::ndp_options(&got.message[16..]).contains(&source));

        let mut off = cfg.clone();
        off.services.ndp = false;
        assert_eq!(announce(&off, neighbour, ip("fe80::9"), &mut out), None);
        off.v6 = None;
        assert_eq!(announce(&off, neighbour, ip("fe80::9"), &mut out), None);
    }

    #[test]
    fn the_guest_is_asked_for() {
        let mut cfg = samples::config();
        let mut out = [0x55; 200];
        let n = super::solicit(&cfg, &mut out).unwrap();
        let got = decode::icmpv6(&out[..n]);
        let group = Mac([0x33, 0x33, 0xff, 0, 0, 5]);
        assert_eq!((got.link.src, got.link.dst), (Mac::OURS, group));
        assert_eq!((got.src, got.dst), (ip("fe80::99"), ip("ff02::1:ff00:5")));
        assert_eq!((got.message[0], &got.message[4..8]), (135, &[0; 4][..]));
        assert_eq!(got.message[8..24], ip("2001:db8:5::5").octets());
        assert_eq!(
            decode::ndp_options(&got.message[24..]),
            [(1, Mac::OURS.0.to_vec())]
        );
        for short in 0..n {
            assert_eq!(super::solicit(&cfg, &mut out[..short]), None, "{short}");
        }
        cfg.v6.as_mut().unwrap().addr = None;
        assert_eq!(super::solicit(&cfg, &mut out), None);
        cfg.v6 = None;
        assert_eq!(super::solicit(&cfg, &mut out), None);
    }

    #[test]
    fn advertisement_with_everything() {
        let r = advert(&samples::config(), "fe80::ad").unwrap();
        assert_eq!(
            (r.link.dst, r.src, r.dst),
            (GUEST, ip("fe80::99"), ip("fe80::ad"))
        );
        assert_eq!(r.message[0], 134);
        assert_eq!(
            r.message[4..16],
            [255, 0x80, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        let options = decode::ndp_options(&r.message[16..]);
        assert_eq!(
            options.iter().map(|(c, _)| *c).collect::<Vec<_>>(),
            [3, 1, 5, 25, 31]
        );
        let mut prefix = vec![64, 0xc0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0];
        prefix.extend(ip("2001:db8:5::").octets());
        assert_eq!(options[0].1, prefix);
        assert_eq!(options[1].1, Mac::OURS.0);
        assert_eq!(options[2].1, [0, 0, 0, 0, 255, 240]);
        let dns = [
            &[0, 0, 255, 255, 255, 255][..],
            &ip("2001:db8:53::53").octets(),
            &ip("2001:db8:53::54").octets(),
        ];
        assert_eq!(options[3].1, dns.concat());
        assert_eq!(
            options[4].1,
            b"\0\0\xff\xff\xff\xff\x07example\x03org\0\x04corp\x07example\x03org\0\0".to_vec()
        );
    }

    #[test]
    fn where_advertisements_go() {
        let mut cfg = samples::config();
        let r = advert(&cfg, "::").unwrap();
        assert_eq!(
            (r.link.dst, r.dst),
            (Mac([0x33, 0x33, 0, 0, 0, 1]), ip("ff02::1"))
        );
        // A gateway that is not link-local is not what the guest sees; our own link-local address is.
        cfg.v6.as_mut().unwrap().gateway = Some(ip("2001:db8:5::1"));
        assert_eq!(advert(&cfg, "fe80::ad").unwrap().src, ip("fe80::1"));
        assert_eq!(
            solicit(&cfg, "fe80::ad", "fe80::1").unwrap().src,
            ip("fe80::1")
        );
    }

    #[test]
    fn what_is_off_is_not_sent() {
        let codes = |cfg: &Config| {
            let r = advert(cfg, "fe80::ad").unwrap();
            let codes: Vec<_> = decode::ndp_options(&r.message[16..])
                .iter()
                .map(|(c, _)| *c)
                .collect();
            (r.message[5], codes)
        };
        let mut cfg = samples::config();
        cfg.dhcp_dns = false;
        cfg.dhcp_search = false;
        cfg.mtu = 0;
        cfg.services.dhcpv6 = false;
        assert_eq!(
            codes(&cfg),
            (0, vec![3, 1]),
            "nobody is sent to a DHCPv6 server that is off"
        );
        cfg.services.dhcpv6 = true;
        cfg.v6.as_mut().unwrap().addr = None;
        assert_eq!(codes(&cfg), (0, vec![1]));
        cfg.dhcp_dns = true;
        cfg.dhcp_search = true;
        cfg.v6.as_mut().unwrap().dns.clear();
        cfg.search.clear();
        cfg.mtu = 1279;
        assert_eq!(codes(&cfg), (0, vec![1]));

        cfg.services.ra = false;
        assert!(advert(&cfg, "fe80::ad").is_none());
        assert!(solicit(&cfg, "fe80::ad", "fe80::1").is_some());
        cfg.services.ra = true;
        cfg.services.ndp = false;
        assert!(advert(&cfg, "fe80::ad").is_none());
        assert!(solicit(&cfg, "fe80::ad", "fe80::1").is_none());
        cfg.services.ndp = true;
        cfg.v6 = None;
        assert!(advert(&cfg, "fe80::ad").is_none());
        assert!(solicit(&cfg, "fe80::ad", "fe80::1").is_none());
    }

    /// Every length of search list, and so every padding: the established implementation adds eight bytes too
    /// many when none is needed, and Linux drops the advertisement.
    #[test]
    fn padding_is_exact() {
        let mut cfg = samples::config();
        for len in 1..=63 {
            cfg.search = vec!["x".repeat(len)];
            let r = advert(&cfg, "fe80::ad").unwrap();
            let (code, value) = decode::ndp_options(&r.message[16..]).pop().unwrap();
            let names_len = len + 2;
            assert_eq!(
                (code, value.len() + 2),
                (31, (8 + names_len).next_multiple_of(8)),
                "{len}"
            );
            assert_eq!(
                decode::names(&value[6..6 + names_len]),
                [format!("{}.", "x".repeat(len))]
            );
            assert!(value[6 + names_len..].iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn long_lists_fill_the_mtu_and_no_more() {
        let mut cfg = samples::config();
        cfg.search = (0..200)
            .map(|i| format!("a-rather-long-label-{i}.example{i}.org"))
            .collect();
        for mtu in [0, 1280, 1287, 1500, 65520] {
            cfg.mtu = mtu;
            let options = decode::ndp_options(&advert(&cfg, "fe80::ad").unwrap().message[16..]);
            let (code, value) = options.last().unwrap();
            assert_eq!(*code, 31);
            let end = value.iter().rposition(|b| *b != 0).unwrap() + 2;
            assert!(decode::names(&value[6..end]).len() > 20, "{mtu}");
        }
        cfg.mtu = 1280;
        cfg.v6.as_mut().unwrap().dns = vec![Ipv6Addr::LOCALHOST; 300];
        let options = decode::ndp_options(&advert(&cfg, "fe80::ad").unwrap().message[16..]);
        assert!(options.iter().any(|(c, v)| *c == 25 && v.len() > 1000));
    }

    #[test]
    fn answers_to_advertisements_there_are_none() {
        let cfg = samples::config();
        let target = ip("fe80::77");
        let options = Options::EMPTY;
        let na = Repr::NeighborAdvert {
            router: false,
            solicited: true,
            overrides: true,
            target,
            options,
        };
        let ra = Repr::RouterAdvert {
            hop_limit: 0,
            managed: false,
            other_config: false,
            lifetime: 0,
            reachable_time: 0,
            retransmit_time: 0,
            options,
        };
        for message in [na, ra] {
            assert_eq!(
                answer(
                    &cfg,
                    &samples::ours,
                    (GUEST, ip("fe80::ad")),
                    &message,
                    &mut [0; 200]
                ),
                None
            );
        }
    }

    #[test]
    fn short_buffers() {
        let cfg = samples::config();
        let messages = [
            Repr::RouterSolicit {
                options: Options::EMPTY,
            },
            Repr::NeighborSolicit {
                target: ip("fe80::1"),
                options: Options::EMPTY,
            },
        ];
        for message in messages {
            for n in 0..300 {
                let mut out = vec![0; n];
                if let Some(used) = answer(
                    &cfg,
                    &samples::ours,
                    (GUEST, ip("fe80::ad")),
                    &message,
                    &mut out,
                ) {
                    decode::icmpv6(&out[..used]);
                }
            }
        }
    }

    #[test]
    fn intervals() {
        let all: Vec<_> = (0..4000).map(next_interval).collect();
        let (min, max) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(*min >= Duration::from_secs(200) && *min < Duration::from_secs(202));
        assert!(*max <= Duration::from_secs(600) && *max > Duration::from_secs(598));
        let mean = all.iter().sum::<Duration>() / 4000;
        assert!(mean > Duration::from_secs(390) && mean < Duration::from_secs(410));
    }

    proptest! {
        #[test]
        fn advertisements_are_valid(domains in prop::collection::vec(".{0,70}", 0..40), resolvers in 0usize..150, mtu: u16, addr: Option<u128>) {
            let mut cfg = samples::config();
            cfg.search = domains;
            cfg.mtu = mtu;
            let v6 = cfg.v6.as_mut().unwrap();
            v6.dns = vec![Ipv6Addr::LOCALHOST; resolvers];
            v6.addr = addr.map(Ipv6Addr::from);
            let r = advert(&cfg, "fe80::ad").unwrap();
            decode::ndp_options(&r.message[16..]);
        }

        #[test]
        fn any_interval(seed: u64) {
            prop_assert!((200..=600).contains(&next_interval(seed).as_secs()));
        }
    }
}
