//! The DHCPv6 server: one address, for ever (RFC 8415), resolvers and search list (RFC 3646), name (RFC 4704).
//!
//! As in [`super::dhcp`] there is nothing to remember: the one address is on lease to whoever asks. What
//! differs by message is only what is said about addresses the client believes to have. One that is not
//! ours gets `NotOnLink` when it is requested or to be confirmed, and lifetimes of zero next to the right
//! one when it is to be renewed, which is how a server takes an address back. Temporary addresses and
//! prefixes are never to be had, and only the first IA gets the address.
//!
//! Our identifier is a DUID-LLT of our link-layer address with a *fixed* time. A server is to keep its DUID for
//! ever; this one does, across restarts and migrations, without having to store anything, so a client's
//! Renew still finds the server it was meant for.
//!
//! A reply is never larger than the MTU: identity associations come first, as many as fit; then resolvers,
//! name and search list, each cut between entries.

use std::net::Ipv6Addr;

use super::frame::{self, Link, UDP6_PAYLOAD};
use super::names::{self, Name};
use crate::addr::{Endpoint, Mac};
use crate::config::{Config, V6};
use crate::wire::dhcpv6::{
    CLIENT_PORT, INFINITY, IdentityAssociation, MAX_DUID_LEN, Message, OPTION_HEADER_LEN, Options,
    SERVER_PORT, Status, Writer, message, option,
};
use crate::wire::{ipv6, udp};

/// What every IPv6 link carries, in bytes.
const MIN_MTU: u16 = 1280;
/// IP and UDP headers, in bytes.
const HEADERS: usize = ipv6::HEADER_LEN + udp::HEADER_LEN;
/// Where a DUID-LLT says when it was made, in seconds since 2000: 2026-01-01.
const DUID_TIME: [u8; 4] = 820_540_800_u32.to_be_bytes();
/// Longest search list we send, in bytes.
const MAX_SEARCH: usize = 1024;

/// The frame with the reply to `payload`, which the client at `src` sent to port 547; its length. `None` when
/// there is nothing to reply.
#[must_use]
pub fn answer(
    cfg: &Config,
    guest: Mac,
    src: Ipv6Addr,
    payload: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let v6 = cfg.v6.as_ref().filter(|_| cfg.services.dhcpv6)?;
    let request = Message::parse(payload).ok()?;
    let server = server_id(cfg.our_mac);
    if src.is_unspecified() || src.is_multicast() || !is_for_us(&request, &server) {
        return None;
    }
    let plan = Plan::of(&request, v6.addr)?;

    let room = usize::from(cfg.mtu.max(MIN_MTU)).saturating_sub(HEADERS);
    let body = out.get_mut(UDP6_PAYLOAD..)?;
    let room = room.min(body.len());
    let mut writer = Writer::new(
        body.get_mut(..room)?,
        plan.message_type,
        request.transaction,
    )?;
    writer.option(option::SERVER_ID, &[&server])?;
    if let Some(client) = request.options.get(option::CLIENT_ID) {
        writer.option(option::CLIENT_ID, &[client])?;
    }
    if let Some((status, text)) = plan.status {
        writer.option(
            option::STATUS_CODE,
            &[&status.code().to_be_bytes(), text.as_bytes()],
        )?;
    }
    if plan.rapid_commit {
        writer.option(option::RAPID_COMMIT, &[])?;
    }
    if let Some(on_wrong) = plan.lease {
        associations(&mut writer, request.options, v6.addr, on_wrong);
    }
    information(&mut writer, cfg, v6);

    let len = writer.len();
    let from = Endpoint::new(super::our_link_local(v6).into(), SERVER_PORT);
    let link = Link {
        src: cfg.our_mac,
        dst: guest,
    };
    frame::udp(out, link, from, Endpoint::new(src.into(), CLIENT_PORT), len)
}

/// DUID-LLT (RFC 8415 11.2) of our link-layer address.
fn server_id(mac: Mac) -> [u8; 14] {
    let ([a, b, c, d], [m, n, o, p, q, r]) = (DUID_TIME, mac.0);
    [0, 1, 0, 1, a, b, c, d, m, n, o, p, q, r]
}

/// Does the message carry the identifiers it must (RFC 8415 16), and is the server it names, if any, us?
fn is_for_us(request: &Message<'_>, server: &[u8]) -> bool {
    let client = request.options.get(option::CLIENT_ID);
    let known = client.is_some_and(|id| (1..=MAX_DUID_LEN).contains(&id.len()));
    let named = request.options.get(option::SERVER_ID);
    match request.message_type {
        message::SOLICIT | message::CONFIRM => known && named.is_none(),
        message::REQUEST | message::RENEW | message::RELEASE | message::DECLINE => {
            known && named == Some(server)
        }
        // A Rebind is for anybody; who names us all the same is not turned away for it.
        message::REBIND => known && named.is_none_or(|id| id == server),
        message::INFORMATION_REQUEST => {
            let leases = [option::IA_NA, option::IA_TA, option::IA_PD].iter();
            let addresses = leases.filter_map(|code| request.options.get(*code)).next();
            (known || client.is_none())
                && named.is_none_or(|id| id == server)
                && addresses.is_none()
        }
        _ => false,
    }
}

/// What to say of an address that is not the one to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OnWrong {
    /// Nothing: it was only a wish.
    Ignore,
    /// `NotOnLink`, and no address.
    Refuse,
    /// That its time is over.
    Expire,
}

/// What a reply consists of.
struct Plan {
    message_type: u8,
    status: Option<(Status, &'static str)>,
    rapid_commit: bool,
    /// Whether to answer the client's IAs, and how.
    lease: Option<OnWrong>,
}

impl Plan {
    fn of(request: &Message<'_>, ours: Option<Ipv6Addr>) -> Option<Self> {
        let reply = Self {
            message_type: message::REPLY,
            status: None,
            rapid_commit: false,
            lease: None,
        };
        Some(match request.message_type {
            message::SOLICIT if request.options.get(option::RAPID_COMMIT).is_some() => Self {
                rapid_commit: true,
                lease: Some(OnWrong::Ignore),
                ..reply
            },
            message::SOLICIT => Self {
                message_type: message::ADVERTISE,
                lease: Some(OnWrong::Ignore),
                ..reply
            },
            message::REQUEST => Self {
                lease: Some(OnWrong::Refuse),
                ..reply
            },
            message::RENEW | message::REBIND => Self {
                lease: Some(OnWrong::Expire),
                ..reply
            },
            message::CONFIRM => {
                let mut named = addresses(request.options).peekable();
                named.peek()?;
                let status = if named.all(|address| Some(address) == ours) {
                    (Status::Success, "All addresses still on link")
                } else {
                    (Status::NotOnLink, "Address not on this link")
                };
                Self {
                    status: Some(status),
                    ..reply
                }
            }
            message::RELEASE => Self {
                status: Some((Status::Success, "Released")),
                ..reply
            },
            message::DECLINE => Self {
                status: Some((Status::Success, "Noted")),
                ..reply
            },
            message::INFORMATION_REQUEST => reply,
            _ => return None,
        })
    }
}

/// All addresses named in IA_NA and IA_TA options.
fn addresses(options: Options<'_>) -> impl Iterator<Item = Ipv6Addr> {
    options
        .filter_map(|(code, value)| IdentityAssociation::parse(code, value).ok())
        .flat_map(|ia| ia.addresses())
}

/// Answer the client's IAs, in order, as far as there is room. The first IA_NA gets the address.
fn associations(
    writer: &mut Writer<'_>,
    options: Options<'_>,
    ours: Option<Ipv6Addr>,
    on_wrong: OnWrong,
) {
    let mut free = ours;
    for (code, value) in options {
        let Ok(ia) = IdentityAssociation::parse(code, value) else {
            continue;
        };
        let done = match code {
            option::IA_NA => association(writer, &ia, &mut free, on_wrong),
            option::IA_TA => refusal(
                writer,
                code,
                &ia,
                Status::NoAddrsAvail,
                "No temporary addresses",
            ),
            _ => refusal(
                writer,
                code,
                &ia,
                Status::NoPrefixAvail,
                "No prefixes to delegate",
            ),
        };
        if done.is_none() {
            return;
        }
    }
}

/// Answer one IA_NA; `None` when there is no room.
fn association(
    writer: &mut Writer<'_>,
    ia: &IdentityAssociation<'_>,
    free: &mut Option<Ipv6Addr>,
    on_wrong: OnWrong,
) -> Option<()> {
    let Some(address) = *free else {
        return refusal(
            writer,
            option::IA_NA,
            ia,
            Status::NoAddrsAvail,
            "No address to give",
        );
    };
    if on_wrong == OnWrong::Refuse && ia.addresses().any(|named| named != address) {
        return refusal(
            writer,
            option::IA_NA,
            ia,
            Status::NotOnLink,
            "Address not on this link",
        );
    }
    writer.nested(option::IA_NA, |w| {
        w.bytes(&ia.id)?;
        // When to renew: never.
        w.bytes(&[0xff; 8])?;
        lifetimes(w, address, INFINITY)?;
        if on_wrong == OnWrong::Expire {
            for old in ia.addresses().filter(|named| *named != address) {
                lifetimes(w, old, 0)?;
            }
        }
        Some(())
    })?;
    *free = None;
    Some(())
}

/// One address with its preferred and valid lifetime, in seconds.
fn lifetimes(writer: &mut Writer<'_>, address: Ipv6Addr, seconds: u32) -> Option<()> {
    let seconds = seconds.to_be_bytes();
    writer.option(option::IA_ADDR, &[&address.octets(), &seconds, &seconds])
}

/// An IA with nothing in it but the reason.
fn refusal(
    writer: &mut Writer<'_>,
    code: u16,
    ia: &IdentityAssociation<'_>,
    status: Status,
    text: &str,
) -> Option<()> {
    writer.nested(code, |w| {
        w.bytes(&ia.id)?;
        if code != option::IA_TA {
            w.bytes(&[0; 8])?;
        }
        w.option(
            option::STATUS_CODE,
            &[&status.code().to_be_bytes(), text.as_bytes()],
        )
    })
}

/// What every reply may carry, as far as there is room.
fn information(writer: &mut Writer<'_>, cfg: &Config, v6: &V6) {
    if cfg.dhcp_dns && !v6.dns.is_empty() {
        writer.nested(option::DNS_SERVERS, |w| {
            let mut servers = v6.dns.iter();
            w.bytes(&servers.next()?.octets())?;
            // The first must fit; the others are welcome.
            let _ = servers.try_for_each(|server| w.bytes(&server.octets()));
            Some(())
        });
    }
    if let Some(name) = cfg.fqdn.as_deref().and_then(Name::new) {
        writer.option(option::CLIENT_FQDN, &[&[0], name.as_bytes()]);
    }
    if cfg.dhcp_search {
        let mut list = [0; MAX_SEARCH];
        let room = writer
            .room()
            .saturating_sub(OPTION_HEADER_LEN)
            .min(MAX_SEARCH);
        let filled = names::fill(&cfg.search, list.get_mut(..room).unwrap_or_default(), false);
        if let Some(list) = list.get(..filled.len).filter(|list| !list.is_empty()) {
            writer.option(option::DOMAIN_LIST, &[list]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::services::decode;
    use crate::services::samples::{self, GUEST};

    const CLIENT: [u8; 10] = [0, 3, 0, 1, 2, 0xad, 0xb8, 0x46, 0x81, 0x7a];
    const SERVER: [u8; 14] = [
        0, 1, 0, 1, 0x30, 0xe8, 0x75, 0x80, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55,
    ];
    const OURS: &str = "2001:db8:5::5";
    const WRONG: &str = "2001:db8:9::9";

    fn opt(code: u8, value: &[u8]) -> Vec<u8> {
        let [l, m] = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[0, code, l, m], value].concat()
    }

    fn ia(id: u8, addresses: &[&str]) -> Vec<u8> {
        let mut value = vec![id; 4];
        value.extend([0; 8]);
        for a in addresses {
            value.extend(opt(
                5,
                &[&a.parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 8]].concat(),
            ));
        }
        opt(3, &value)
    }

    fn message(kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
        let mut m = vec![kind, 0xaa, 0xbb, 0xcc];
        m.extend(options.concat());
        m
    }

    type Answer = (u8, Vec<(u16, Vec<u8>)>);

    fn ask(cfg: &Config, message: &[u8]) -> Option<Answer> {
        let mut out = vec![0x55; 70_000];
        let n = answer(cfg, GUEST, "fe80::ad".parse().unwrap(), message, &mut out)?;
        assert!(n - 14 <= usize::from(cfg.mtu.max(1280)));
        let udp = decode::udp(&out[..n]);
        assert_eq!(
            udp.link,
            Link {
                src: Mac::OURS,
                dst: GUEST
            }
        );
        assert_eq!(
            (udp.from.as_str(), udp.to.as_str()),
            ("[fe80::99]:547", "[fe80::ad]:546")
        );
        assert_eq!(udp.payload[1..4], message[1..4]);
        let options = decode::dhcpv6_options(&udp.payload[4..]);
        assert_eq!(options[0], (2, SERVER.to_vec()));
        Some((udp.payload[0], options))
    }

    fn get(answer: &Answer, code: u16) -> Option<&[u8]> {
        answer
            .1
            .iter()
            .find(|(c, _)| *c == code)
            .map(|(_, v)| v.as_slice())
    }

    /// The addresses of an IA_NA value, with their lifetimes, and its status.
    fn read_ia(value: &[u8]) -> (Vec<(String, u32)>, Option<u8>) {
        let (mut addresses, mut status) = (Vec::new(), None);
        for (code, v) in decode::dhcpv6_options(&value[12..]) {
            match code {
                5 => {
                    assert_eq!(v.len(), 24);
                    assert_eq!(v[16..20], v[20..24]);
                    let address =
                        Ipv6Addr::from(<[u8; 16]>::try_from(&v[..16]).unwrap()).to_string();
                    addresses.push((address, u32::from_be_bytes(v[20..24].try_into().unwrap())));
                }
                13 => status = Some(v[1]),
                _ => panic!("option {code} in an IA"),
            }
        }
        (addresses, status)
    }

    #[test]
    fn solicit_gets_an_advertisement_with_everything() {
        let r = ask(
            &samples::config(),
            &message(1, &[opt(1, &CLIENT), ia(7, &[]), opt(6, &[0, 23])]),
        )
        .unwrap();
        assert_eq!(r.0, 2);
        assert_eq!(
            r.1.iter().map(|(c, _)| *c).collect::<Vec<_>>(),
            [2, 1, 3, 23, 39, 24]
        );
        assert_eq!(get(&r, 1).unwrap(), CLIENT);
        let value = get(&r, 3).unwrap();
        assert_eq!(
            value[..12],
            [7, 7, 7, 7, 255, 255, 255, 255, 255, 255, 255, 255]
        );
        assert_eq!(read_ia(value), (vec![(OURS.into(), u32::MAX)], None));
        let dns: Vec<u8> = ["2001:db8:53::53", "2001:db8:53::54"]
            .iter()
            .flat_map(|a| a.parse::<Ipv6Addr>().unwrap().octets())
            .collect();
        assert_eq!(get(&r, 23).unwrap(), dns);
        assert_eq!(
            get(&r, 24).unwrap(),
            b"\x07example\x03org\0\x04corp\x07example\x03org\0"
        );
        assert_eq!(get(&r, 39).unwrap(), b"\0\x05hosty\x07example\x03org\0");
    }

    #[test]
    fn who_must_name_whom() {
        let cfg = samples::config();
        let mut other = SERVER;
        other[13] ^= 1;
        // Message type; then whether it is answered with no, our, another server identifier.
        for (kind, none, ours, another) in [
            (1, true, false, false),
            (3, false, true, false),
            (4, true, false, false),
            (5, false, true, false),
            (6, true, true, false),
            (8, false, true, false),
            (9, false, true, false),
            (11, true, true, false),
            (2, false, false, false),
            (7, false, false, false),
            (10, false, false, false),
            (12, false, false, false),
        ] {
            let lease = if kind == 11 {
                Vec::new()
            } else {
                ia(1, &[OURS])
            };
            let with = |server: Vec<u8>| {
                ask(
                    &cfg,
                    &message(kind, &[opt(1, &CLIENT), server, lease.clone()]),
                )
            };
            assert_eq!(with(Vec::new()).is_some(), none, "{kind}");
            assert_eq!(with(opt(2, &SERVER)).is_some(), ours, "{kind}");
            assert_eq!(with(opt(2, &other)).is_some(), another, "{kind}");
            // Without a client identifier only information is to be had; an absurd one gets nothing.
            let server = if none { Vec::new() } else { opt(2, &SERVER) };
            let r = ask(&cfg, &message(kind, &[server.clone(), lease.clone()]));
            assert_eq!(r.is_some(), kind == 11, "{kind}");
            for absurd in [&[0; 131][..], &[]] {
                assert!(
                    ask(
                        &cfg,
                        &message(kind, &[opt(1, absurd), server.clone(), lease.clone()])
                    )
                    .is_none(),
                    "{kind}"
                );
            }
        }
        assert!(ask(&cfg, &message(11, &[opt(1, &CLIENT), ia(1, &[])])).is_none());
        for src in ["::", "ff02::1"] {
            let m = message(1, &[opt(1, &CLIENT), ia(1, &[])]);
            assert_eq!(
                answer(&cfg, GUEST, src.parse().unwrap(), &m, &mut [0; 1500]),
                None
            );
        }
    }

    #[test]
    fn addresses_that_are_not_ours() {
        let cfg = samples::config();
        let (right, expired) = ((OURS.to_string(), u32::MAX), (WRONG.to_string(), 0));
        for (kind, named, want) in [
            (1, &[WRONG][..], (vec![right.clone()], None)),
            (3, &[], (vec![right.clone()], None)),
            (3, &[OURS], (vec![right.clone()], None)),
            (3, &[WRONG], (vec![], Some(4))),
            (3, &[OURS, WRONG], (vec![], Some(4))),
            (5, &[OURS], (vec![right.clone()], None)),
            (5, &[WRONG], (vec![right.clone(), expired.clone()], None)),
            (
                6,
                &[WRONG, OURS],
                (vec![right.clone(), expired.clone()], None),
            ),
            (6, &[], (vec![right.clone()], None)),
        ] {
            let server = if kind == 1 {
                Vec::new()
            } else {
                opt(2, &SERVER)
            };
            let r = ask(
                &cfg,
                &message(kind, &[opt(1, &CLIENT), server, ia(1, named)]),
            )
            .unwrap();
            assert_eq!(r.0, if kind == 1 { 2 } else { 7 });
            assert_eq!(read_ia(get(&r, 3).unwrap()), want, "{kind} {named:?}");
            assert_eq!(get(&r, 13), None);
        }
        for (named, status) in [
            (&[OURS][..], Some(0)),
            (&[WRONG], Some(4)),
            (&[OURS, WRONG], Some(4)),
            (&[], None),
        ] {
            let r = ask(&cfg, &message(4, &[opt(1, &CLIENT), ia(1, named)]));
            assert_eq!(
                r.as_ref().map(|r| get(r, 13).unwrap()[1]),
                status,
                "confirm {named:?}"
            );
            assert!(r.is_none_or(|r| r.0 == 7 && get(&r, 3).is_none()));
        }
        for kind in [8, 9] {
            let r = ask(
                &cfg,
                &message(kind, &[opt(1, &CLIENT), opt(2, &SERVER), ia(1, &[OURS])]),
            )
            .unwrap();
            assert_eq!((r.0, &get(&r, 13).unwrap()[..2]), (7, &[0, 0][..]));
            assert_eq!(get(&r, 3), None);
        }
    }

    #[test]
    fn other_kinds_of_associations() {
        let cfg = samples::config();
        let ta = opt(4, &[9; 4]);
        let pd = opt(25, &[[8; 4], [0; 4], [0; 4]].concat());
        let broken = opt(3, &[1, 2, 3]);
        let r = ask(
            &cfg,
            &message(
                1,
                &[opt(1, &CLIENT), broken, ta, ia(1, &[]), pd, ia(2, &[])],
            ),
        )
        .unwrap();
        let leases: Vec<_> = r.1.iter().filter(|(c, _)| [3, 4, 25].contains(c)).collect();
        assert_eq!(
            leases.iter().map(|(c, v)| (*c, v[0])).collect::<Vec<_>>(),
            [(4, 9), (3, 1), (25, 8), (3, 2)]
        );
        assert_eq!(leases[0].1[4..10], [0, 13, 0, 24, 0, 2]);
        assert_eq!(read_ia(&leases[1].1).0.len(), 1);
        assert_eq!(leases[2].1[12..14], [0, 13]);
        assert_eq!(leases[2].1[16..18], [0, 6]);
        assert_eq!(read_ia(&leases[3].1), (vec![], Some(2)));
    }

    #[test]
    fn rapid_commit_and_no_address() {
        let mut cfg = samples::config();
        let m = message(1, &[opt(1, &CLIENT), ia(1, &[]), opt(14, &[])]);
        let r = ask(&cfg, &m).unwrap();
        assert_eq!((r.0, get(&r, 14)), (7, Some(&[][..])));
        cfg.v6.as_mut().unwrap().addr = None;
        let r = ask(&cfg, &m).unwrap();
        assert_eq!(read_ia(get(&r, 3).unwrap()), (vec![], Some(2)));
        let r = ask(&cfg, &message(4, &[opt(1, &CLIENT), ia(1, &[OURS])])).unwrap();
        assert_eq!(get(&r, 13).unwrap()[1], 4);
        cfg.v6 = None;
        assert!(ask(&cfg, &m).is_none());
    }

    #[test]
    fn what_is_off_is_not_sent() {
        let mut cfg = samples::config();
        cfg.dhcp_dns = false;
        cfg.dhcp_search = false;
        cfg.fqdn = None;
        let codes = |cfg: &Config| {
            ask(cfg, &message(11, &[]))
                .unwrap()
                .1
                .iter()
                .map(|(c, _)| *c)
                .collect::<Vec<_>>()
        };
        assert_eq!(codes(&cfg), [2]);
        cfg.dhcp_dns = true;
        cfg.dhcp_search = true;
        cfg.v6.as_mut().unwrap().dns.clear();
        cfg.search = vec!["a..b".into()];
        assert_eq!(codes(&cfg), [2]);
    }

    /// CVE-2026-95508 class: the longest identifier, many resolvers and domains, many IAs, smallest MTU.
    #[test]
    fn never_larger_than_the_mtu() {
        let mut cfg = samples::config();
        cfg.search = (0..200)
            .map(|i| format!("a-rather-long-label-{i}.example{i}.org"))
            .collect();
        cfg.v6.as_mut().unwrap().dns = vec![Ipv6Addr::LOCALHOST; 300];
        for mtu in [0, 68, 1280, 1281, 1500, 9000, 65520] {
            cfg.mtu = mtu;
            let r = ask(&cfg, &message(1, &[opt(1, &[7; 130]), ia(1, &[])])).unwrap();
            assert_eq!(get(&r, 1).unwrap(), [7; 130]);
            assert_eq!(read_ia(get(&r, 3).unwrap()).0.len(), 1);
            assert_eq!(get(&r, 23).unwrap().len() % 16, 0);
            if let Some(list) = get(&r, 24) {
                assert!(!decode::names(list).is_empty());
            }
        }
        cfg.mtu = 1280;
        let many: Vec<_> = (0..250).map(|i| ia(i, &[OURS, WRONG])).collect();
        let r = ask(&cfg, &message(1, &[vec![opt(1, &[7; 130])], many].concat())).unwrap();
        assert_eq!(read_ia(get(&r, 3).unwrap()).0.len(), 1);
        // An IA that names more addresses than can be taken back in one reply is left out whole.
        let m = message(6, &[opt(1, &CLIENT), ia(1, &[WRONG; 100])]);
        assert_eq!(get(&ask(&cfg, &m).unwrap(), 3), None);
    }

    #[test]
    fn truncated_requests_and_short_buffers() {
        let cfg = samples::config();
        let m = message(
            1,
            &[opt(1, &CLIENT), ia(1, &[OURS]), opt(6, &[0, 23, 0, 24])],
        );
        for n in 0..m.len() {
            let whole = [18, 18 + 44].contains(&n);
            assert_eq!(ask(&cfg, &m[..n]).is_some(), whole, "{n}");
        }
        for n in 0..300 {
            let mut out = vec![0; n];
            if let Some(used) = answer(&cfg, GUEST, "fe80::ad".parse().unwrap(), &m, &mut out) {
                decode::dhcpv6_options(&decode::udp(&out[..used]).payload[4..]);
            }
        }
    }

    proptest! {
        #[test]
        fn replies_are_valid_whatever_is_asked(
            kind in 0u8..13, client in prop::collection::vec(any::<u8>(), 0..140), mtu: u16,
            options in prop::collection::vec((0u8..40, prop::collection::vec(any::<u8>(), 0..60)), 0..12),
            domains in prop::collection::vec(".{0,70}", 0..30), resolvers in 0usize..90, named: bool,
        ) {
            let mut cfg = samples::config();
            cfg.search = domains;
            cfg.mtu = mtu;
            cfg.v6.as_mut().unwrap().dns = vec![Ipv6Addr::LOCALHOST; resolvers];
            let mut all = vec![opt(1, &client)];
            if named {
                all.push(opt(2, &SERVER));
            }
            all.extend(options.iter().map(|(c, v)| opt(*c, v)));
            let _ = ask(&cfg, &message(kind, &all));
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), n in 0usize..1500) {
            let mut out = vec![0; n];
            if let Some(used) = answer(&samples::config(), GUEST, "fe80::ad".parse().unwrap(), &bytes, &mut out) {
                prop_assert!(used <= n);
            }
        }
    }
}
