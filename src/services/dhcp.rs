//! The DHCP server: one lease, for ever, to whoever asks (RFC 2131; BOOTP by RFC 951 and 1542).
//!
//! There is one guest and one address, so there is no state: a DISCOVER is offered it and everything else
//! that asks for an address gets it, also who asks for another one. A NAK would make the client start over
//! to arrive at the same ACK; clients take the address from the ACK, and the established implementation
//! never sends a NAK either. INFORM is answered without an address, DECLINE and RELEASE are taken note of
//! by doing nothing, and a message without option 53 is BOOTP and answered like a request.
//!
//! Options: what matters most is given room first, so that a long search list costs itself and not the
//! netmask; what was granted is then written in the order the client asked for, the message type before
//! everything (some clients look nowhere else), the rest by number. A reply is never larger than what the client
//! says it takes (576 bytes when it says nothing) or the MTU, except that a BOOTP message is never
//! below 300 bytes.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::frame::{self, Link, UDP4_PAYLOAD};
use super::names::{self, Name};
use crate::addr::{Endpoint, Mac};
use crate::config::{Config, V4};
use crate::wire::dhcp::{
    self, CLIENT_PORT, Header, MIN_LEN, MessageType, OP_REPLY, OP_REQUEST, OPTIONS_OFFSET,
    OptionWriter, Options, SERVER_PORT, option,
};
use crate::wire::{ipv4, udp};

/// IP and UDP headers, in bytes.
const HEADERS: usize = ipv4::HEADER_LEN + udp::HEADER_LEN;
/// Distinct options in a reply, a search list of several pieces included.
const MAX_OPTIONS: usize = 20;
/// Longest option value, in bytes.
const MAX_VALUE: usize = 255;
/// Lease time without end.
const FOREVER: [u8; 4] = [0xff; 4];
/// Option 81 (RFC 4702 2.1): the name is in wire form; both deprecated result codes say nothing.
const FQDN_HEAD: [u8; 3] = [0x04, 0xff, 0xff];

/// The frame with the reply to `payload`, which `guest` sent to port 67; its length. `None` when there is
/// nothing to reply, or the service is off.
#[must_use]
pub fn answer(cfg: &Config, guest: Mac, payload: &[u8], out: &mut [u8]) -> Option<usize> {
    let v4 = cfg.v4.as_ref().filter(|_| cfg.services.dhcp)?;
    let server = v4.our_addr.or(v4.gateway)?;
    let (request, options) = Header::parse(payload).ok()?;
    if request.op != OP_REQUEST {
        return None;
    }
    let kind = Kind::of(options)?;
    let your = if kind == Kind::Inform {
        Ipv4Addr::UNSPECIFIED
    } else {
        v4.addr
    };

    let datagram_max = usize::from(options.max_datagram().min(mtu(cfg)));
    let payload_max = datagram_max.saturating_sub(HEADERS).max(MIN_LEN);
    let (_, body) = out.split_at_mut_checked(UDP4_PAYLOAD)?;
    let room = body.len().min(payload_max);
    let mut granted = Granted::new(room.checked_sub(OPTIONS_OFFSET)?);
    grant(&mut granted, cfg, v4, server, kind);

    let header = Header {
        op: OP_REPLY,
        hops: 0,
        seconds: 0,
        your,
        next_server: Ipv4Addr::UNSPECIFIED,
        ..request
    };
    header.emit(body)?;
    let options_len = granted.write(options, body.get_mut(OPTIONS_OFFSET..room)?)?;
    let (dst, to) = destination(&header, guest);
    let from = Endpoint::from(std::net::SocketAddr::from(SocketAddrV4::new(
        server,
        SERVER_PORT,
    )));
    let len = OPTIONS_OFFSET.checked_add(options_len)?;
    frame::udp(
        out,
        Link {
            src: cfg.our_mac,
            dst,
        },
        from,
        to,
        len,
    )
}

/// What to answer with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Offer,
    Ack { rapid_commit: bool },
    Inform,
}

impl Kind {
    fn of(options: Options<'_>) -> Option<Self> {
        if options.get(option::MESSAGE_TYPE).is_none() {
            return Some(Self::Ack {
                rapid_commit: false,
            });
        }
        match options.message_type()? {
            MessageType::Discover if options.get(option::RAPID_COMMIT).is_some() => {
                Some(Self::Ack { rapid_commit: true })
            }
            MessageType::Discover => Some(Self::Offer),
            MessageType::Request => Some(Self::Ack {
                rapid_commit: false,
            }),
            MessageType::Inform => Some(Self::Inform),
            _ => None,
        }
    }

    const fn message_type(self) -> MessageType {
        match self {
            Self::Offer => MessageType::Offer,
            Self::Ack { .. } | Self::Inform => MessageType::Ack,
        }
    }
}

/// The largest datagram the guest's interface takes, as far as we know it.
fn mtu(cfg: &Config) -> u16 {
    if cfg.mtu == 0 { u16::MAX } else { cfg.mtu }
}

/// Who gets the reply (RFC 2131 4.1): the relay, the address the client already has, everybody if it asked
/// for that, or else the address it is just being given.
fn destination(header: &Header, guest: Mac) -> (Mac, Endpoint) {
    let to = |ip: Ipv4Addr, port| Endpoint::new(ip.into(), port);
    if !header.relay.is_unspecified() {
        (guest, to(header.relay, SERVER_PORT))
    } else if !header.client.is_unspecified() {
        (guest, to(header.client, CLIENT_PORT))
    } else if header.flags & dhcp::FLAG_BROADCAST != 0 || header.your.is_unspecified() {
        (Mac::BROADCAST, to(Ipv4Addr::BROADCAST, CLIENT_PORT))
    } else {
        (guest, to(header.your, CLIENT_PORT))
    }
}

/// Grant the options of a reply, most important first.
fn grant(granted: &mut Granted, cfg: &Config, v4: &V4, server: Ipv4Addr, kind: Kind) {
    granted.push(option::MESSAGE_TYPE, &[kind.message_type().byte()]);
    granted.push(option::SERVER_ID, &server.octets());
    if kind != Kind::Inform {
        granted.push(option::LEASE_TIME, &FOREVER);
    }
    if kind == (Kind::Ack { rapid_commit: true }) {
        granted.push(option::RAPID_COMMIT, &[]);
    }
    let mask = netmask(v4.prefix_len);
    granted.push(option::SUBNET_MASK, &mask.octets());
    if let Some(gateway) = v4.gateway {
        if gateway & mask != v4.addr & mask {
            granted.push(option::CLASSLESS_ROUTES, &routes_through(gateway));
        }
        granted.push(option::ROUTER, &gateway.octets());
    }
    if cfg.mtu != 0 {
        granted.push(option::MTU, &cfg.mtu.to_be_bytes());
    }
    if cfg.dhcp_dns {
        granted.push_addresses(option::DNS, &v4.dns);
    }
    if let Some(name) = cfg.hostname.as_deref().filter(|name| !name.is_empty()) {
        granted.push(option::HOST_NAME, name.as_bytes());
    }
    if let Some(name) = cfg.fqdn.as_deref().and_then(Name::new) {
        granted.push_parts(option::FQDN, &[&FQDN_HEAD, name.as_bytes()]);
    }
    if cfg.dhcp_search {
        granted.push_search(&cfg.search);
    }
}

/// The mask of a prefix length; longer than 32 counts as 32.
fn netmask(prefix_len: u8) -> Ipv4Addr {
    let host_bits = 32_u32.saturating_sub(u32::from(prefix_len));
    Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

/// RFC 3442: the gateway is on the link although no prefix says so, and everything else is behind it.
fn routes_through(gateway: Ipv4Addr) -> [u8; 14] {
    let [a, b, c, d] = gateway.octets();
    [32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d]
}

/// An option of a reply.
#[derive(Clone, Copy)]
struct Entry {
    code: u8,
    len: usize,
    value: [u8; MAX_VALUE],
}

/// The options of a reply before they are put in order, never more than there is room for.
struct Granted {
    list: [Entry; MAX_OPTIONS],
    count: usize,
    room: usize,
}

impl Granted {
    /// For an options area of `area` bytes.
    fn new(area: usize) -> Self {
        let empty = Entry {
            code: 0,
            len: 0,
            value: [0; MAX_VALUE],
        };
        // One byte for the end mark.
        Self {
            list: [empty; MAX_OPTIONS],
            count: 0,
            room: area.saturating_sub(1),
        }
    }

    /// Add an option whose value `fill` writes (and says how long it is), if it grants itself one and there is room.
    fn push_with<T>(
        &mut self,
        code: u8,
        fill: impl FnOnce(&mut [u8]) -> Option<(usize, T)>,
    ) -> Option<T> {
        let entry = self.list.get_mut(self.count)?;
        let room = self.room.checked_sub(2)?;
        let (len, more) = fill(entry.value.get_mut(..room.min(MAX_VALUE))?)?;
        (entry.code, entry.len) = (code, len);
        self.room = room.saturating_sub(len);
        self.count = self.count.saturating_add(1);
        Some(more)
    }

    fn push_parts(&mut self, code: u8, parts: &[&[u8]]) {
        self.push_with(code, |value| {
            let mut len = 0_usize;
            for part in parts {
                let end = len.checked_add(part.len())?;
                value.get_mut(len..end)?.copy_from_slice(part);
                len = end;
            }
            Some((len, ()))
        });
    }

    fn push(&mut self, code: u8, value: &[u8]) {
        self.push_parts(code, &[value]);
    }

    /// As many of the addresses as fit; no option for none.
    fn push_addresses(&mut self, code: u8, addresses: &[Ipv4Addr]) {
        self.push_with(code, |value| {
            let mut len = 0_usize;
            for (place, address) in value.chunks_exact_mut(4).zip(addresses) {
                place.copy_from_slice(&address.octets());
                len = len.saturating_add(4);
            }
            (len > 0).then_some((len, ()))
        });
    }

    /// Option 119. The first 255 bytes are compressed. What is left goes to further options of the same
    /// code, which clients put together (RFC 3396), cut between names and not compressed: so clients that
    /// read each option for itself understand them as well.
    fn push_search(&mut self, search: &[String]) {
        let (mut left, mut first) = (search, true);
        while !left.is_empty() {
            let taken = self.push_with(option::DOMAIN_SEARCH, |value| {
                let filled = names::fill(left, value, first);
                (filled.len > 0).then_some((filled.len, filled.taken))
            });
            first = false;
            match taken {
                Some(taken) => left = left.get(taken..).unwrap_or_default(),
                None => break,
            }
        }
    }

    /// Write the options: message type first, then as requested, then the rest; the length of the area.
    fn write(mut self, request: Options<'_>, out: &mut [u8]) -> Option<usize> {
        let rank = |code: u8| {
            let wanted = request.parameter_request().position(|c| c == code);
            (code != option::MESSAGE_TYPE, wanted.is_none(), wanted, code)
        };
        let mut ranked = [(rank(0), 0_usize); MAX_OPTIONS];
        let list = self.list.get_mut(..self.count)?;
        let ranked = ranked.get_mut(..list.len())?;
        for (i, (slot, granted)) in ranked.iter_mut().zip(list.iter()).enumerate() {
            *slot = (rank(granted.code), i);
        }
        ranked.sort_unstable();
        let mut writer = OptionWriter::new(out);
        for (_, i) in ranked.iter() {
            let granted = list.get(*i)?;
            writer.push(granted.code, granted.value.get(..granted.len)?);
        }
        writer.finish(MIN_LEN.saturating_sub(OPTIONS_OFFSET))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::services::decode;
    use crate::services::samples::{self, GUEST};

    /// A request from [`GUEST`] with these options behind the cookie.
    fn request(options: &[u8]) -> Vec<u8> {
        let mut m = vec![1, 1, 6, 3, 0xde, 0xad, 0xbe, 0xef, 0, 9, 0, 0];
        m.extend([0; 16]);
        m.extend(GUEST.0);
        m.extend([0; 10 + 192]);
        m.extend([99, 130, 83, 99]);
        m.extend(options);
        m
    }

    struct Reply {
        link: Link,
        from: String,
        to: String,
        message: Vec<u8>,
        options: Vec<(u8, Vec<u8>)>,
        frame_len: usize,
    }

    impl Reply {
        fn get(&self, code: u8) -> Option<&[u8]> {
            self.options
                .iter()
                .find(|(c, _)| *c == code)
                .map(|(_, v)| v.as_slice())
        }

        fn codes(&self) -> Vec<u8> {
            self.options.iter().map(|(c, _)| *c).collect()
        }

        fn search(&self) -> Vec<String> {
            let joined: Vec<u8> = self
                .options
                .iter()
                .filter(|(c, _)| *c == 119)
                .flat_map(|(_, v)| v.iter().copied())
                .collect();
            decode::names(&joined)
        }
    }

    fn ask(cfg: &Config, message: &[u8]) -> Option<Reply> {
        let mut out = [0x55; 2000];
        let n = answer(cfg, GUEST, message, &mut out)?;
        let udp = decode::udp(&out[..n]);
        let options = decode::dhcp_options(&udp.payload);
        Some(Reply {
            link: udp.link,
            from: udp.from,
            to: udp.to,
            message: udp.payload,
            options,
            frame_len: n,
        })
    }

    const DISCOVER: &[u8] = &[53, 1, 1, 255];

    #[test]
    fn discover_gets_an_offer() {
        let r = ask(
            &samples::config(),
            &request(&[53, 1, 1, 55, 5, 1, 3, 6, 121, 119, 255]),
        )
        .unwrap();
        assert_eq!(
            r.link,
            Link {
                src: Mac::OURS,
                dst: GUEST
            }
        );
        assert_eq!(
            (r.from.as_str(), r.to.as_str()),
            ("192.0.2.1:67", "192.0.2.5:68")
        );
        assert_eq!(
            &r.message[..12],
            &[2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0]
        );
        assert_eq!(
            &r.message[12..28],
            &[0, 0, 0, 0, 192, 0, 2, 5, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&r.message[28..34], &GUEST.0);
        assert!(r.message[34..236].iter().all(|b| *b == 0));
        let want: &[(u8, &[u8])] = &[
            (53, &[2]),
            (1, &[255, 255, 255, 0]),
            (3, &[192, 0, 2, 1]),
            (6, &[203, 0, 113, 53, 203, 0, 113, 54]),
            (119, b"\x07example\x03org\0\x04corp\xc0\0"),
            (12, b"hosty"),
            (26, &[0xff, 0xf0]),
            (51, &[255; 4]),
            (54, &[192, 0, 2, 1]),
            (81, b"\x04\xff\xff\x05hosty\x07example\x03org\0"),
        ];
        let got: Vec<(u8, &[u8])> = r.options.iter().map(|(c, v)| (*c, v.as_slice())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn what_each_message_gets() {
        let cfg = samples::config();
        let cases: &[(&str, &[u8], Option<u8>)] = &[
            ("discover", DISCOVER, Some(2)),
            ("discover, rapid commit", &[53, 1, 1, 80, 0, 255], Some(5)),
            (
                "request",
                &[53, 1, 3, 50, 4, 192, 0, 2, 5, 54, 4, 192, 0, 2, 1, 255],
                Some(5),
            ),
            (
                "request for another address",
                &[53, 1, 3, 50, 4, 10, 9, 9, 9, 255],
                Some(5),
            ),
            (
                "request of another server",
                &[53, 1, 3, 54, 4, 192, 0, 2, 77, 255],
                Some(5),
            ),
            ("request, rapid commit", &[53, 1, 3, 80, 0, 255], Some(5)),
            ("bootp", &[255], Some(5)),
            ("bootp without end", &[], Some(5)),
            ("inform", &[53, 1, 8, 255], Some(5)),
            ("decline", &[53, 1, 4, 50, 4, 192, 0, 2, 5, 255], None),
            ("release", &[53, 1, 7, 255], None),
            ("a server's", &[53, 1, 2, 255], None),
            ("unknown", &[53, 1, 13, 255], None),
            ("no type", &[53, 0, 255], None),
            ("two types", &[53, 2, 1, 1, 255], None),
        ];
        for (name, options, want) in cases {
            let got = ask(&cfg, &request(options));
            assert_eq!(
                got.as_ref().and_then(|r| r.get(53)).map(|v| v[0]),
                *want,
                "{name}"
            );
            let Some(r) = got else { continue };
            assert_eq!(
                r.get(80).is_some(),
                *name == "discover, rapid commit",
                "{name}"
            );
            assert_eq!(r.get(51).is_some(), *name != "inform", "{name}");
            let your = if *name == "inform" {
                [0; 4]
            } else {
                [192, 0, 2, 5]
            };
            assert_eq!(&r.message[16..20], &your, "{name}");
            assert_eq!(r.options[0].0, 53, "{name}");
        }
        let mut reply = request(DISCOVER);
        reply[0] = 2;
        assert!(ask(&cfg, &reply).is_none(), "a reply is not answered");
    }

    #[test]
    fn who_gets_the_reply() {
        let with = |flags: u8, client: [u8; 4], relay: [u8; 4], kind: u8| {
            let mut m = request(&[53, 1, kind, 255]);
            m[10] = flags;
            m[12..16].copy_from_slice(&client);
            m[24..28].copy_from_slice(&relay);
            m
        };
        let (none, mine, other) = ([0; 4], [192, 0, 2, 5], [10, 9, 9, 9]);
        for (flags, client, relay, kind, dst, to) in [
            (0, none, none, 1, GUEST, "192.0.2.5:68"),
            (0x80, none, none, 1, Mac::BROADCAST, "255.255.255.255:68"),
            (0x80, mine, none, 3, GUEST, "192.0.2.5:68"),
            (0, other, none, 3, GUEST, "10.9.9.9:68"),
            (0x80, none, other, 1, GUEST, "10.9.9.9:67"),
            (0, other, none, 8, GUEST, "10.9.9.9:68"),
            (0, none, none, 8, Mac::BROADCAST, "255.255.255.255:68"),
        ] {
            let r = ask(&samples::config(), &with(flags, client, relay, kind)).unwrap();
            assert_eq!((r.link.dst, r.to.as_str()), (dst, to));
            // What the client said is echoed.
            assert_eq!(
                (r.message[10], &r.message[12..16], &r.message[24..28]),
                (flags, &client[..], &relay[..])
            );
        }
    }

    #[test]
    fn hardware_addresses_are_echoed_whatever_they_are() {
        let mut m = request(DISCOVER);
        m[1] = 32;
        m[2] = 16;
        m[28..44].copy_from_slice(&[7; 16]);
        let r = ask(&samples::config(), &m).unwrap();
        assert_eq!(
            (r.message[1], r.message[2], &r.message[28..44]),
            (32, 16, &[7; 16][..])
        );
        assert_eq!(
            r.link.dst, GUEST,
            "the frame goes where the request came from"
        );
        m[2] = 17;
        assert!(ask(&samples::config(), &m).is_none());
    }

    #[test]
    fn order_as_requested_type_first() {
        let codes = |list: &[u8]| {
            let mut options = vec![53, 1, 1, 55, u8::try_from(list.len()).unwrap()];
            options.extend(list);
            ask(&samples::config(), &request(&options)).unwrap().codes()
        };
        let rest = [1, 3, 6, 12, 26, 51, 54, 81, 119];
        assert_eq!(codes(&[]), [&[53][..], &rest].concat());
        assert_eq!(codes(&[26, 6, 1]), [53, 26, 6, 1, 3, 12, 51, 54, 81, 119]);
        assert_eq!(
            codes(&[119, 200, 0, 53, 119, 1]),
            [53, 119, 1, 3, 6, 12, 26, 51, 54, 81]
        );
    }

    #[test]
    fn gateways_and_masks() {
        let mut cfg = samples::config();
        let mut set = |addr: &str, len, gateway: Option<&str>| {
            let v4 = cfg.v4.as_mut().unwrap();
            v4.addr = addr.parse().unwrap();
            v4.prefix_len = len;
            v4.gateway = gateway.map(|g| g.parse().unwrap());
            ask(&cfg, &request(DISCOVER)).unwrap()
        };
        let r = set("192.0.2.5", 24, Some("198.51.100.1"));
        assert_eq!(
            r.get(121).unwrap(),
            &[32, 198, 51, 100, 1, 0, 0, 0, 0, 0, 198, 51, 100, 1]
        );
        assert_eq!(r.get(3).unwrap(), &[198, 51, 100, 1]);
        let r = set("192.0.2.5", 32, Some("192.0.2.1"));
        assert_eq!(r.get(1).unwrap(), &[255; 4]);
        assert!(r.get(121).is_some());
        let r = set("10.1.2.3", 0, Some("192.0.2.1"));
        assert_eq!((r.get(1).unwrap(), r.get(121)), (&[0; 4][..], None));
        let r = set("10.1.2.3", 9, Some("10.127.0.1"));
        assert_eq!(
            (r.get(1).unwrap(), r.get(121)),
            (&[255, 128, 0, 0][..], None)
        );
        let r = set("192.0.2.5", 24, None);
        assert_eq!((r.get(3), r.get(121)), (None, None));
        assert_eq!(r.from, "192.0.2.1:67");
        // Nothing to call ourselves, or no IPv4 at all: no server.
        cfg.v4.as_mut().unwrap().our_addr = None;
        assert!(ask(&cfg, &request(DISCOVER)).is_none());
        cfg.v4 = None;
        assert!(ask(&cfg, &request(DISCOVER)).is_none());
    }

    #[test]
    fn what_is_off_is_not_sent() {
        let mut cfg = samples::config();
        cfg.mtu = 0;
        cfg.dhcp_dns = false;
        cfg.dhcp_search = false;
        cfg.hostname = None;
        cfg.fqdn = None;
        assert_eq!(
            ask(&cfg, &request(DISCOVER)).unwrap().codes(),
            [53, 1, 3, 51, 54]
        );
        cfg.dhcp_dns = true;
        cfg.dhcp_search = true;
        cfg.v4.as_mut().unwrap().dns.clear();
        cfg.search.clear();
        cfg.hostname = Some(String::new());
        cfg.fqdn = Some("a..b".into());
        assert_eq!(
            ask(&cfg, &request(DISCOVER)).unwrap().codes(),
            [53, 1, 3, 51, 54]
        );
        cfg.search = vec![".".into()];
        assert_eq!(
            ask(&cfg, &request(DISCOVER)).unwrap().codes(),
            [53, 1, 3, 51, 54]
        );
    }

    #[test]
    fn overlong_lists_cost_themselves_only() {
        let mut cfg = samples::config();
        cfg.search = (0..100)
            .map(|i| format!("a-rather-long-label-{i}.example{i}.org"))
            .collect();
        let r = ask(&cfg, &request(DISCOVER)).unwrap();
        assert!(r.frame_len - 14 <= 576);
        assert!(
            r.codes()
                .starts_with(&[53, 1, 3, 6, 12, 26, 51, 54, 81, 119])
        );
        let names = r.search();
        assert!(names.len() > 2);
        assert!(
            names
                .iter()
                .zip(&cfg.search)
                .all(|(a, b)| *a == format!("{b}."))
        );

        // A client that takes more gets more, in pieces that can be read one by one as well.
        let r = ask(&cfg, &request(&[53, 1, 1, 57, 2, 5, 220, 255])).unwrap();
        assert!(r.frame_len - 14 <= 1500 && r.frame_len - 14 > 1300);
        let pieces: Vec<_> = r.options.iter().filter(|(c, _)| *c == 119).collect();
        assert!(pieces.len() > 2);
        let one_by_one: Vec<_> = pieces.iter().flat_map(|(_, v)| decode::names(v)).collect();
        assert_eq!(one_by_one, r.search());
        assert!(one_by_one.len() > names.len());

        // The MTU counts too.
        cfg.mtu = 800;
        assert!(
            ask(&cfg, &request(&[53, 1, 1, 57, 2, 5, 220, 255]))
                .unwrap()
                .frame_len
                - 14
                <= 800
        );
        cfg.mtu = 68;
        assert_eq!(ask(&cfg, &request(DISCOVER)).unwrap().message.len(), 300);

        // And resolvers give way to what the guest cannot live without.
        cfg.v4.as_mut().unwrap().dns = vec![Ipv4Addr::new(203, 0, 113, 53); 200];
        let r = ask(&cfg, &request(DISCOVER)).unwrap();
        assert_eq!(r.get(6).unwrap().len() % 4, 0);
        assert!(r.codes().starts_with(&[53, 1, 3, 6]) && r.get(54).is_some());
        cfg.mtu = 1500;
        let r = ask(&cfg, &request(&[53, 1, 1, 57, 2, 5, 220, 255])).unwrap();
        assert_eq!(r.get(6).unwrap().len(), 252);
    }

    #[test]
    fn truncated_requests_and_short_buffers() {
        let cfg = samples::config();
        let m = request(&[53, 1, 1, 61, 7, 1, 2, 3, 4, 5, 6, 7, 55, 3, 1, 3, 6, 255]);
        for n in 0..m.len() {
            let got = ask(&cfg, &m[..n]);
            assert_eq!(got.is_some(), n >= 236, "{n}");
            if let Some(r) = got {
                assert_eq!(r.get(53).unwrap()[0], if n < 243 { 5 } else { 2 }, "{n}");
            }
        }
        let full = ask(&cfg, &m).unwrap().frame_len;
        for n in 0..full + 10 {
            let mut out = vec![0; n];
            if let Some(used) = answer(&cfg, GUEST, &m, &mut out) {
                assert!(used <= n);
                decode::udp(&out[..used]);
            } else {
                assert!(n < full, "{n}");
            }
        }
    }

    proptest! {
        #[test]
        fn replies_are_valid_whatever_is_asked(
            op in 0u8..3, kind in 0u8..10, body in prop::collection::vec(any::<u8>(), 236..236 + 4),
            options in prop::collection::vec(any::<u8>(), 0..120), domains in prop::collection::vec(".{0,70}", 0..12),
            mtu: u16, resolvers in 0usize..80,
        ) {
            let mut cfg = samples::config();
            cfg.search = domains;
            cfg.mtu = mtu;
            cfg.v4.as_mut().unwrap().dns = vec![Ipv4Addr::LOCALHOST; resolvers];
            let mut m = body;
            m[0] = op;
            m.truncate(236);
            m.extend([99, 130, 83, 99, 53, 1, kind]);
            m.extend(options);
            if let Some(r) = ask(&cfg, &m) {
                prop_assert_eq!(r.options[0].0, 53);
                prop_assert!(r.get(54).is_some() && r.get(1).is_some());
                prop_assert_eq!(&r.message[4..8], &m[4..8]);
            }
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), n in 0usize..700) {
            let mut out = vec![0; n];
            if let Some(used) = answer(&samples::config(), GUEST, &bytes, &mut out) {
                prop_assert!(used <= n);
            }
        }
    }
}
