//! What a network of its own would have to offer the guest: ARP, neighbour discovery, DHCP, DHCPv6.
//!
//! Each service is a pure function of the configuration and a request: no I/O, no state, no clock. The reply is a
//! whole Ethernet frame in the caller's buffer. There is nothing to exhaust here and nothing to remember, so a
//! guest that asks a million times costs a million answers and no memory.
//!
//! What must never happen: a panic, an answer longer than the buffer or half an option at its end.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod arp;
pub mod dhcp;
pub mod dhcpv6;
mod frame;
mod names;
pub mod ndp;

#[cfg(test)]
mod decode;
#[cfg(test)]
pub(crate) mod samples;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::Mac;
use crate::config::{Config, V6};
use crate::wire::dissect::{Body, IpPacket, Packet, Upper};
use crate::wire::{dhcp as dhcp4, dhcpv6 as dhcp6, icmpv6, udp};

/// What became of a packet shown to the services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was for a service; the reply is a frame of this many bytes.
    Frame(usize),
    /// It was for a service, and there is nothing to reply.
    Consumed,
    /// It is traffic for somebody else.
    NotMine,
}

impl Answer {
    fn from_reply(reply: Option<usize>) -> Self {
        reply.map_or(Self::Consumed, Self::Frame)
    }
}

/// At which link-layer address an address of the guest's network is: ours, or that of one of the host's neighbours.
pub type Stations<'a> = &'a dyn Fn(IpAddr) -> Mac;

/// Answer `packet` into `out`, if it is for one of the services. The checksum must have been looked at before.
///
/// What is for a service that is off is taken and not answered: none of these protocols makes sense beyond the link, and
/// the host's own DHCP server must not see the guest's requests.
#[must_use]
pub fn answer(cfg: &Config, stations: Stations<'_>, packet: &Packet<'_>, out: &mut [u8]) -> Answer {
    let guest = packet.eth.src;
    match &packet.body {
        Body::Arp(request) => Answer::from_reply(arp::answer(cfg, stations, guest, request, out)),
        Body::Ip(ip) => match (&ip.upper, ip.src) {
            (Upper::Icmpv6(icmpv6::Message::Ndp(message)), IpAddr::V6(src)) => {
                Answer::from_reply(ndp::answer(cfg, stations, (guest, src), message, out))
            }
            (Upper::Udp { repr, payload }, IpAddr::V4(_)) if is_dhcp(cfg, ip, repr) => {
                Answer::from_reply(dhcp::answer(cfg, guest, payload, out))
            }
            (Upper::Udp { repr, payload }, IpAddr::V6(src)) if is_dhcpv6(cfg, ip, repr) => {
                Answer::from_reply(dhcpv6::answer(cfg, guest, src, payload, out))
            }
            _ => Answer::NotMine,
        },
    }
}

/// Is this datagram for the DHCP server? What a client sends is, wherever it sends it, since there is no
/// other server it could have a lease from; what others send to the port, if it is for everybody or for us.
fn is_dhcp(cfg: &Config, ip: &IpPacket<'_>, udp: &udp::Repr) -> bool {
    let ours = |address: IpAddr| {
        let v4 = cfg.v4.as_ref();
        let ours = [
            Some(Ipv4Addr::BROADCAST),
            v4.and_then(|v4| v4.our_addr),
            v4.and_then(|v4| v4.gateway),
        ];
        ours.into_iter().flatten().any(|a| IpAddr::V4(a) == address)
    };
    udp.dst_port == dhcp4::SERVER_PORT && (udp.src_port == dhcp4::CLIENT_PORT || ours(ip.dst))
}

/// Is this datagram for the DHCPv6 server?
fn is_dhcpv6(cfg: &Config, ip: &IpPacket<'_>, udp: &udp::Repr) -> bool {
    let ours = [
        Some(dhcp6::ALL_SERVERS),
        cfg.v6.as_ref().map(our_link_local),
    ];
    udp.dst_port == dhcp6::SERVER_PORT
        && ours.into_iter().flatten().any(|a| IpAddr::V6(a) == ip.dst)
}

/// The address we speak from on the link: the gateway, if that is what the guest takes us for by a
/// link-local address, because a router advertisement names the router by its source.
fn our_link_local(v6: &V6) -> Ipv6Addr {
    v6.gateway
        .filter(Ipv6Addr::is_unicast_link_local)
        .unwrap_or(v6.our_link_local)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Endpoint;
    use crate::wire::dissect::dissect;

    /// A UDP datagram as the guest would send it.
    fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
        let e = |s: &str| Endpoint::from(s.parse::<std::net::SocketAddr>().unwrap());
        let (from, to) = (e(from), e(to));
        let at = if from.is_ipv6() {
            frame::UDP6_PAYLOAD
        } else {
            frame::UDP4_PAYLOAD
        };
        let mut out = vec![0; 1500];
        out[at..at + payload.len()].copy_from_slice(payload);
        let link = frame::Link {
            src: samples::GUEST,
            dst: Mac::BROADCAST,
        };
        let n = frame::udp(&mut out, link, from, to, payload.len()).unwrap();
        out.truncate(n);
        out
    }

    fn icmpv6(src: &str, dst: &str, message: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 200];
        let at = frame::ICMPV6_MESSAGE;
        out[at..at + message.len()].copy_from_slice(message);
        let link = frame::Link {
            src: samples::GUEST,
            dst: Mac::BROADCAST,
        };
        let n = frame::icmpv6(
            &mut out,
            link,
            src.parse().unwrap(),
            dst.parse().unwrap(),
            message.len(),
        )
        .unwrap();
        out.truncate(n);
        out
    }

    fn arp(target: [u8; 4]) -> Vec<u8> {
        let mut f = [
            &[0xff; 6][..],
            &samples::GUEST.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &samples::GUEST.0,
        ]
        .concat();
        f.extend([192, 0, 2, 5, 0, 0, 0, 0, 0, 0]);
        f.extend(target);
        f
    }

    fn show(cfg: &Config, frame: &[u8]) -> Answer {
        let mut out = [0; 1514];
        let answer = answer(cfg, &samples::ours, &dissect(frame).unwrap(), &mut out);
        if let Answer::Frame(n) = answer {
            assert_eq!(
                out[..6],
                if out[0] & 1 == 1 {
                    [out[0]; 6]
                } else {
                    samples::GUEST.0
                }
            );
            assert_eq!(out[6..12], Mac::OURS.0);
            dissect(&out[..n]).unwrap();
        }
        answer
    }

    fn bootp() -> Vec<u8> {
        let mut m = vec![0; 300];
        m[..4].copy_from_slice(&[1, 1, 6, 0]);
        m
    }

    fn solicit() -> Vec<u8> {
        vec![1, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 1]
    }

    fn neighbor_solicit() -> Vec<u8> {
        let mut m = vec![135, 0, 0, 0, 0, 0, 0, 0];
        m.extend("fe80::77".parse::<Ipv6Addr>().unwrap().octets());
        m
    }

    #[test]
    fn each_service_gets_its_own() {
        let cfg = samples::config();
        for (name, frame, answered) in [
            ("arp", arp([192, 0, 2, 1]), true),
            ("arp for the guest", arp([192, 0, 2, 5]), false),
            (
                "dhcp",
                udp("0.0.0.0:68", "255.255.255.255:67", &bootp()),
                true,
            ),
            (
                "dhcp renewal",
                udp("192.0.2.5:68", "192.0.2.1:67", &bootp()),
                true,
            ),
            (
                "dhcp renewal elsewhere",
                udp("192.0.2.5:68", "198.51.100.9:67", &bootp()),
                true,
            ),
            (
                "dhcp from another port",
                udp("192.0.2.5:1000", "192.0.2.1:67", &bootp()),
                true,
            ),
            (
                "dhcp rubbish",
                udp("0.0.0.0:68", "255.255.255.255:67", b"hello"),
                false,
            ),
            (
                "dhcpv6",
                udp("[fe80::ad]:546", "[ff02::1:2]:547", &solicit()),
                true,
            ),
            (
                "dhcpv6 unicast",
                udp("[fe80::ad]:546", "[fe80::99]:547", &solicit()),
                true,
            ),
            (
                "dhcpv6 rubbish",
                udp("[fe80::ad]:546", "[ff02::1:2]:547", b"hello"),
                false,
            ),
            (
                "ns",
                icmpv6("fe80::ad", "ff02::1:ff00:77", &neighbor_solicit()),
                true,
            ),
            (
                "dad",
                icmpv6("::", "ff02::1:ff00:77", &neighbor_solicit()),
                false,
            ),
            (
                "rs",
                icmpv6("fe80::ad", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]),
                true,
            ),
        ] {
            match show(&cfg, &frame) {
                Answer::Frame(_) => assert!(answered, "{name}"),
                Answer::Consumed => assert!(!answered, "{name}"),
                Answer::NotMine => panic!("{name}"),
            }
        }
        for (name, frame) in [
            ("dns", udp("192.0.2.5:5353", "192.0.2.1:53", b"?")),
            (
                "server port elsewhere",
                udp("192.0.2.5:1000", "198.51.100.9:67", &bootp()),
            ),
            (
                "client port",
                udp("192.0.2.5:67", "198.51.100.9:68", &bootp()),
            ),
            (
                "dhcpv6 elsewhere",
                udp("[2001:db8:5::5]:546", "[2001:db8::9]:547", &solicit()),
            ),
            (
                "ports of the other family",
                udp("192.0.2.5:546", "192.0.2.1:547", &solicit()),
            ),
            (
                "echo",
                icmpv6("fe80::ad", "fe80::99", &[128, 0, 0, 0, 0, 1, 0, 1]),
            ),
        ] {
            assert_eq!(show(&cfg, &frame), Answer::NotMine, "{name}");
        }
    }

    #[test]
    fn services_that_are_off_take_and_stay_silent() {
        let mut cfg = samples::config();
        cfg.services.dhcp = false;
        cfg.services.dhcpv6 = false;
        cfg.services.ndp = false;
        cfg.services.ra = false;
        let dhcp = udp("0.0.0.0:68", "255.255.255.255:67", &bootp());
        let dhcpv6 = udp("[fe80::ad]:546", "[ff02::1:2]:547", &solicit());
        let ns = icmpv6("fe80::ad", "ff02::1:ff00:77", &neighbor_solicit());
        let rs = icmpv6("fe80::ad", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(show(&cfg, &dhcp), Answer::Consumed);
        assert_eq!(show(&cfg, &dhcpv6), Answer::Consumed);
        assert_eq!(show(&cfg, &ns), Answer::Consumed);
        assert_eq!(show(&cfg, &rs), Answer::Consumed);
        let mut cfg = samples::config();
        cfg.v4 = None;
        cfg.v6 = None;
        assert_eq!(show(&cfg, &dhcp), Answer::Consumed);
        assert_eq!(show(&cfg, &dhcpv6), Answer::Consumed);
        assert_eq!(show(&cfg, &ns), Answer::Consumed);
        assert_eq!(show(&cfg, &rs), Answer::Consumed);
        assert_eq!(show(&cfg, &arp([192, 0, 2, 1])), Answer::Consumed);
    }

    /// Truncated anywhere, a request is dropped by the dissector or answered by nobody (CVE-2021-3592 to -3595,
    /// CVE-2020-29129 and -29130 class).
    #[test]
    fn truncation_at_every_byte() {
        let cfg = samples::config();
        for frame in [
            arp([192, 0, 2, 1]),
            udp("0.0.0.0:68", "255.255.255.255:67", &bootp()),
            udp("[fe80::ad]:546", "[ff02::1:2]:547", &solicit()),
            icmpv6("fe80::ad", "ff02::1:ff00:77", &neighbor_solicit()),
        ] {
            for n in 0..frame.len() {
                let mut out = [0; 1514];
                if let Ok(packet) = dissect(&frame[..n]) {
                    assert_ne!(
                        answer(&cfg, &samples::ours, &packet, &mut out),
                        Answer::NotMine,
                        "{n}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn damaged_frames(which in 0usize..5, damage in prop::collection::vec((0usize..400, any::<u8>()), 0..6), n in 0usize..1514) {
            let cfg = samples::config();
            let mut frame = [
                arp([192, 0, 2, 1]),
                udp("0.0.0.0:68", "255.255.255.255:67", &bootp()),
                udp("[fe80::ad]:546", "[ff02::1:2]:547", &solicit()),
                icmpv6("fe80::ad", "ff02::1:ff00:77", &neighbor_solicit()),
                icmpv6("fe80::ad", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]),
            ][which].clone();
            let len = frame.len();
            for (at, value) in damage {
                frame[at % len] = value;
            }
            let mut out = vec![0; n];
            if let Ok(packet) = dissect(&frame) {
                if let Answer::Frame(used) = answer(&cfg, &samples::ours, &packet, &mut out) {
                    prop_assert!(used <= n);
                    dissect(&out[..used]).unwrap();
                }
            }
        }
    }
}
