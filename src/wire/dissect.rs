//! One pass over a frame from the guest: which protocol, from whom, to whom, carrying what.
//!
//! [`dissect`] looks at every header once and returns views into the frame; nothing is copied and nothing
//! is allocated. Every slice in the result lies inside the frame, inside the IP packet and inside the
//! length the layer above states, whichever is the shortest: whatever the guest writes into a length
//! field, nobody behind this point reads a byte that does not belong to the packet.
//!
//! Fragments stop at the IP layer: [`Upper::Fragment`] carries what a reassembler needs, and
//! [`reassembled`] reads the result. Checksums over payload are left alone, because a tap with offloads
//! hands over frames that never had one: see [`IpPacket::verify_upper_checksum`].
//!
//! The result is some 200 bytes; the functions on the way are inlined so that it is built where it is to
//! stay instead of being handed up layer by layer (measured: a quarter of the time).
//!
//! No policy here: whether a source or a destination is acceptable is decided elsewhere.

use std::net::IpAddr;

use super::checksum::{self, Sum};
use super::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use super::{arp, ethernet, icmpv4, icmpv6, ipv4, ipv6, ndp, tcp, udp};
use crate::stats::Drop;

/// A frame, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// The Ethernet header.
    pub eth: ethernet::Header,
    /// What it carries.
    pub body: Body<'a>,
}

/// What an Ethernet frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body<'a> {
    /// ARP.
    Arp(arp::Repr),
    /// IPv4 or IPv6.
    Ip(IpPacket<'a>),
}

/// Where a fragment belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentInfo {
    /// Equal in all fragments of a packet; 16 bits in IPv4.
    pub ident: u32,
    /// Where the payload belongs in the whole packet's, in bytes: a multiple of 8. Offset and length of
    /// the payload together are at most 65535.
    pub offset: usize,
    /// Not the last fragment. Its payload is then a multiple of 8 bytes long.
    pub more: bool,
}

/// An IP packet of either version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpPacket<'a> {
    /// Source address, of the same family as the destination.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Hops left: TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// The IP header with its options or extension headers.
    pub header: &'a [u8],
    /// The whole packet, from the IP header on, without link-layer padding.
    pub l3: &'a [u8],
    /// Set if this is only a part of a packet.
    pub fragment: Option<FragmentInfo>,
    /// Bytes of the packet that are not in `l3` because they are elsewhere ([`dissect_head`]).
    pub missing: usize,
    /// What it carries.
    pub upper: Upper<'a>,
}

/// What an IP packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upper<'a> {
    /// A TCP segment.
    Tcp {
        /// Its header.
        repr: tcp::Repr,
        /// Its data.
        payload: &'a [u8],
    },
    /// A UDP datagram.
    Udp {
        /// Its header.
        repr: udp::Repr,
        /// Its data, as long as its header says.
        payload: &'a [u8],
    },
    /// An ICMP message, in IPv4.
    Icmpv4(icmpv4::Message<'a>),
    /// An ICMPv6 message, in IPv6.
    Icmpv6(icmpv6::Message<'a>),
    /// A part of something.
    Fragment {
        /// What the whole is; in IPv6 possibly an extension header.
        protocol: u8,
        /// The part; never empty.
        payload: &'a [u8],
    },
    /// Another protocol.
    Other {
        /// Its number.
        protocol: u8,
        /// All of it.
        payload: &'a [u8],
    },
}

/// Take `frame`, which starts with its Ethernet header, apart.
///
/// # Errors
/// [`Drop::Unsupported`] for another EtherType, otherwise what the layers' parsers find.
pub fn dissect(frame: &[u8]) -> Result<Packet<'_>, Drop> {
    dissect_head(frame, 0)
}

/// The same for a frame of which `missing` bytes at the end are elsewhere. Slices in the result end where the head does;
/// how long the packet is, [`IpPacket::missing`] and they say together.
///
/// # Errors
/// As [`dissect`].
pub fn dissect_head(head: &[u8], missing: usize) -> Result<Packet<'_>, Drop> {
    let (eth, rest) = ethernet::Header::parse(head)?;
    let body = match eth.ethertype {
        ethernet::ETHERTYPE_IPV4 => Body::Ip(ip_v4(rest, missing)?),
        ethernet::ETHERTYPE_IPV6 => Body::Ip(ip_v6(rest, missing)?),
        ethernet::ETHERTYPE_ARP => Body::Arp(arp::Repr::parse(rest)?.0),
        _ => return Err(Drop::Unsupported),
    };
    Ok(Packet { eth, body })
}

/// Take an IPv4 packet apart.
#[inline(always)]
fn ip_v4(data: &[u8], missing: usize) -> Result<IpPacket<'_>, Drop> {
    let (repr, payload) = ipv4::Repr::parse_head(data, missing)?;
    let (header, l3) = split(data, repr.header_len, payload)?;
    let fragment = repr.is_fragment().then(|| FragmentInfo {
        ident: u32::from(repr.ident),
        offset: usize::from(repr.fragment_offset),
        more: repr.more_fragments,
    });
    let upper = match fragment {
        Some(info) => part(info, repr.protocol, payload)?,
        None => upper(false, repr.protocol, payload)?,
    };
    Ok(IpPacket {
        src: repr.src.into(),
        dst: repr.dst.into(),
        hop_limit: repr.ttl,
        tos: repr.tos,
        header,
        l3,
        fragment,
        missing: repr.payload_len.saturating_sub(payload.len()),
        upper,
    })
}

/// Take an IPv6 packet apart.
#[inline(always)]
fn ip_v6(data: &[u8], missing: usize) -> Result<IpPacket<'_>, Drop> {
    let (repr, payload) = ipv6::Repr::parse_head(data, missing)?;
    let (header, l3) = split(data, repr.header_len, payload)?;
    let fragment = repr
        .fragment
        .filter(|fragment| !fragment.is_atomic())
        .map(|fragment| FragmentInfo {
            ident: fragment.ident,
            offset: usize::from(fragment.offset),
            more: fragment.more,
        });
    let upper = match fragment {
        Some(info) => part(info, repr.next_header, payload)?,
        None => upper(true, repr.next_header, payload)?,
    };
    // A neighbour discovery message that came through a router, or in a fragment header, is forged
    // (RFC 4861 section 6.1, RFC 6980).
    if let Upper::Icmpv6(icmpv6::Message::Ndp(_)) = upper {
        if repr.hop_limit != ndp::HOP_LIMIT || repr.fragment.is_some() {
            return Err(Drop::Malformed);
        }
    }
    Ok(IpPacket {
        src: repr.src.into(),
        dst: repr.dst.into(),
        hop_limit: repr.hop_limit,
        tos: repr.traffic_class,
        header,
        l3,
        fragment,
        missing: repr.payload_len.saturating_sub(payload.len()),
        upper,
    })
}

/// The header and the whole of the packet at the start of `data`.
fn split<'a>(
    data: &'a [u8],
    header_len: usize,
    payload: &[u8],
) -> Result<(&'a [u8], &'a [u8]), Drop> {
    let l3 = data
        .get(..header_len.saturating_add(payload.len()))
        .ok_or(Drop::Truncated)?;
    Ok((l3.get(..header_len).ok_or(Drop::Truncated)?, l3))
}

/// A fragment, if it can be part of anything.
fn part(info: FragmentInfo, protocol: u8, payload: &[u8]) -> Result<Upper<'_>, Drop> {
    if payload.is_empty() || (info.more && payload.len() % 8 != 0) {
        return Err(Drop::Fragment);
    }
    Ok(Upper::Fragment { protocol, payload })
}

/// Read what an unfragmented packet carries.
#[inline(always)]
fn upper(is_v6: bool, protocol: u8, data: &[u8]) -> Result<Upper<'_>, Drop> {
    match (protocol, is_v6) {
        (PROTOCOL_TCP, _) => {
            tcp::Repr::parse(data).map(|(repr, payload)| Upper::Tcp { repr, payload })
        }
        (PROTOCOL_UDP, _) => {
            udp::Repr::parse(data).map(|(repr, payload)| Upper::Udp { repr, payload })
        }
        (PROTOCOL_ICMP, false) => icmpv4::Message::parse(data).map(Upper::Icmpv4),
        (PROTOCOL_ICMPV6, true) => icmpv6::Message::parse(data).map(Upper::Icmpv6),
        _ => Ok(Upper::Other {
            protocol,
            payload: data,
        }),
    }
}

/// Read what a packet carried, once its fragments have been put together: `payload` is all of it, and
/// `protocol` what the first fragment called it. The checksum is verified: the sender computes it before
/// it cuts, so it is always there.
///
/// # Errors
/// [`Drop::Checksum`], and what the layers' parsers find. Neighbour discovery in fragments is
/// [`Drop::Malformed`] (RFC 6980).
pub fn reassembled(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Result<Upper<'_>, Drop> {
    let (protocol, payload) = if src.is_ipv6() {
        let chain = ipv6::follow(protocol, payload, false)?;
        if chain.fragment.is_some() {
            return Err(Drop::Malformed);
        }
        (chain.protocol, chain.payload)
    } else {
        (protocol, payload)
    };
    let upper = upper(src.is_ipv6(), protocol, payload)?;
    if matches!(upper, Upper::Icmpv6(icmpv6::Message::Ndp(_))) {
        return Err(Drop::Malformed);
    }
    if !verify(src, dst, &upper, payload) {
        return Err(Drop::Checksum);
    }
    Ok(upper)
}

/// Does the checksum of `upper`, whose bytes from its header on are `data`, match?
fn verify(src: IpAddr, dst: IpAddr, upper: &Upper<'_>, data: &[u8]) -> bool {
    let pseudo = |protocol, len: usize| match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Some(checksum::pseudo_v4(
            src,
            dst,
            protocol,
            u16::try_from(len).ok()?,
        )),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Some(checksum::pseudo_v6(
            src,
            dst,
            protocol,
            u32::try_from(len).ok()?,
        )),
        _ => None,
    };
    let (data, start) = match upper {
        Upper::Tcp { .. } => (data, pseudo(PROTOCOL_TCP, data.len())),
        Upper::Udp { repr, .. } => {
            let Some(data) = data.get(..usize::from(repr.len)) else {
                return false;
            };
            // Zero means "no checksum", and is allowed in IPv4 only.
            if data.get(udp::CHECKSUM_OFFSET..udp::HEADER_LEN) == Some(&[0, 0]) {
                return src.is_ipv4();
            }
            (data, pseudo(PROTOCOL_UDP, data.len()))
        }
        Upper::Icmpv4(_) => (data, Some(Sum::ZERO)),
        Upper::Icmpv6(_) => (data, pseudo(PROTOCOL_ICMPV6, data.len())),
        Upper::Fragment { .. } | Upper::Other { .. } => return true,
    };
    start.is_some_and(|start| checksum::verify(data, start))
}

impl IpPacket<'_> {
    /// Does the checksum of the TCP, UDP or ICMP in this packet match? To be asked only if the frame did not
    /// come with an offload header that says otherwise
    /// ([`super::virtio_net::Header::checksum_settled`]). True for fragments, whose sum is verified when
    /// they are whole, and for protocols that are not read.
    #[must_use]
    pub fn verify_upper_checksum(&self) -> bool {
        let data = self.l3.get(self.header.len()..).unwrap_or_default();
        verify(self.src, self.dst, &self.upper, data)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::addr::{Endpoint, Mac};
    use crate::wire::frame::{Checksum, MAX_HEADER, Template};

    const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const V4: (IpAddr, IpAddr) = (
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)),
    );
    const V6: (IpAddr, IpAddr) = (
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
    );

    fn template((src, dst): (IpAddr, IpAddr), ports: (u16, u16)) -> Template {
        Template::new(
            Mac::OURS,
            GUEST,
            Endpoint::new(src, ports.0),
            Endpoint::new(dst, ports.1),
        )
    }

    fn udp_frame(addresses: (IpAddr, IpAddr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; MAX_HEADER];
        let template = template(addresses, ports);
        let len = template
            .emit_udp(&mut out, payload.len(), Checksum::Full(payload))
            .unwrap();
        out.truncate(len);
        out.extend(payload);
        out
    }

    fn tcp_frame(addresses: (IpAddr, IpAddr), port: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; MAX_HEADER];
        let repr = tcp::Repr {
            src_port: 40_000,
            dst_port: port,
            seq: tcp::Seq(1),
            ack: tcp::Seq(2),
            flags: tcp::Flags::ACK,
            window: 3,
            urgent: 0,
            options: tcp::Options {
                timestamps: Some((1, 2)),
                ..tcp::Options::NONE
            },
        };
        let len = template(addresses, (40_000, port))
            .emit_tcp(&mut out, &repr, payload.len(), Checksum::Full(payload))
            .unwrap();
        out.truncate(len);
        out.extend(payload);
        out
    }

    /// A frame with `payload` of `protocol`, in IPv6 behind no extension header.
    fn ip_frame(addresses: (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; MAX_HEADER];
        let len = template(addresses, (0, 0))
            .emit_ip(&mut out, protocol, payload.len())
            .unwrap();
        out.truncate(len);
        out.extend(payload);
        out
    }

    fn ip(frame: &[u8]) -> IpPacket<'_> {
        match dissect(frame).unwrap().body {
            Body::Ip(ip) => ip,
            Body::Arp(arp) => panic!("{arp:?}"),
        }
    }

    /// Make a frame with a changed IPv4 header acceptable again.
    fn fix_v4(frame: &mut [u8]) {
        let end = 14 + usize::from(frame[14] & 15) * 4;
        frame[24..26].fill(0);
        let sum = checksum::sum(&frame[14..end]).finish();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }

    /// One frame of every kind that is read.
    fn samples() -> Vec<Vec<u8>> {
        let mut arp = vec![0; 14 + arp::LEN];
        let eth = ethernet::Header {
            dst: Mac::BROADCAST,
            src: GUEST,
            ethertype: ethernet::ETHERTYPE_ARP,
        };
        eth.emit(&mut arp).unwrap();
        arp[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        let mut samples = vec![arp];
        for addresses in [V4, V6] {
            samples.push(tcp_frame(addresses, 80, b"GET / HTTP/1.0\r\n\r\n"));
            samples.push(udp_frame(addresses, (5353, 53), &[7; 20]));
            let mut out = vec![0; MAX_HEADER];
            let len = template(addresses, (7, 7))
                .emit_echo(&mut out, true, 1, &[9; 56])
                .unwrap();
            out.truncate(len);
            out.extend([9; 56]);
            samples.push(out);
            samples.push(ip_frame(addresses, 132, &[1; 40]));
        }
        let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
        solicitation.extend([
            0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 0, 0, 0, 0, 1,
        ]);
        let mut frame = ip_frame(V6, 58, &solicitation);
        frame[21] = 255;
        samples.push(frame);
        // Hop-by-hop options, destination options, then UDP.
        let udp = udp_frame(V6, (1, 2), &[3; 10])[54..].to_vec();
        let chain = [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
        samples.push(ip_frame(V6, 0, &[&chain[..], &udp].concat()));
        // Fragments.
        samples.push(ip_frame(
            V6,
            44,
            &[&[17, 0, 0, 1, 0, 0, 0, 5][..], &[1; 16]].concat(),
        ));
        let mut first = ip_frame(V4, 17, &[1; 16]);
        first[20] = 0x20;
        fix_v4(&mut first);
        samples.push(first);
        samples
    }

    /// Does `inner` lie inside `outer`, as memory?
    fn inside(outer: &[u8], inner: &[u8]) -> bool {
        inner.is_empty()
            || (outer.as_ptr_range().start <= inner.as_ptr_range().start
                && inner.as_ptr_range().end <= outer.as_ptr_range().end)
    }

    /// What holds for every frame that is accepted.
    fn check(frame: &[u8]) {
        let Ok(Packet {
            body: Body::Ip(packet),
            ..
        }) = dissect(frame)
        else {
            return;
        };
        assert!(inside(&frame[14..], packet.l3));
        assert!(packet.l3.starts_with(packet.header));
        assert!(packet.header.len() >= if packet.src.is_ipv4() { 20 } else { 40 });
        assert_eq!(packet.src.is_ipv4(), packet.dst.is_ipv4());
        let payload = match packet.upper {
            Upper::Tcp { payload, .. } | Upper::Udp { payload, .. } => payload,
            Upper::Fragment { payload, .. } | Upper::Other { payload, .. } => payload,
            Upper::Icmpv4(
                icmpv4::Message::EchoRequest(echo) | icmpv4::Message::EchoReply(echo),
            ) => echo.payload,
            Upper::Icmpv6(
                icmpv6::Message::EchoRequest(echo) | icmpv6::Message::EchoReply(echo),
            ) => echo.payload,
            Upper::Icmpv4(icmpv4::Message::Other { payload, .. })
            | Upper::Icmpv6(icmpv6::Message::Other { payload, .. }) => payload,
            Upper::Icmpv6(icmpv6::Message::Ndp(_)) => &[],
        };
        assert!(inside(&packet.l3[packet.header.len()..], payload));
        assert_eq!(
            packet.fragment.is_some(),
            matches!(packet.upper, Upper::Fragment { .. })
        );
        if let Some(info) = packet.fragment {
            assert!(!payload.is_empty() && info.offset + payload.len() <= 65_535);
            assert!(!info.more || payload.len() % 8 == 0);
        }
        let _ = packet.verify_upper_checksum();
    }

    #[test]
    fn samples_are_what_they_seem() {
        let kinds: Vec<_> = samples()
            .iter()
            .map(|frame| match dissect(frame).unwrap().body {
                Body::Arp(_) => "arp",
                Body::Ip(ip) => {
                    check(frame);
                    match ip.upper {
                        Upper::Tcp { .. } => "tcp",
                        Upper::Udp { .. } => "udp",
                        Upper::Icmpv4(_) => "icmp",
                        Upper::Icmpv6(icmpv6::Message::Ndp(_)) => "ndp",
                        Upper::Icmpv6(_) => "icmp6",
                        Upper::Fragment { .. } => "fragment",
                        Upper::Other { .. } => "other",
                    }
                }
            })
            .collect();
        let expected = [
            "arp", "tcp", "udp", "icmp", "other", "tcp", "udp", "icmp6", "other", "ndp", "udp",
            "fragment", "fragment",
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn truncation_at_every_byte() {
        for frame in samples() {
            for cut in 0..frame.len() {
                assert_eq!(
                    dissect(&frame[..cut]),
                    Err(Drop::Truncated),
                    "{cut} of {frame:02x?}"
                );
            }
        }
    }

    #[test]
    fn padding_is_cut_off() {
        for addresses in [V4, V6] {
            let frame = udp_frame(addresses, (1, 2), b"x");
            let mut padded = frame.clone();
            padded.extend([0xee; 100]);
            assert_eq!(ip(&padded), ip(&frame));
            assert_eq!(ip(&padded).l3, &frame[14..]);
            assert!(ip(&padded).verify_upper_checksum());
        }
    }

    #[test]
    fn every_changed_byte() {
        for frame in samples() {
            for at in 0..frame.len() {
                for value in [
                    0,
                    1,
                    2,
                    0x3b,
                    0x7f,
                    0x80,
                    0xff,
                    frame[at] ^ 1,
                    frame[at].wrapping_add(1),
                ] {
                    let mut bad = frame.clone();
                    bad[at] = value;
                    check(&bad);
                    if bad[12..14] == [8, 0] && bad.len() >= 14 + 60 {
                        bad[14] |= 0x45;
                        fix_v4(&mut bad);
                        check(&bad);
                    }
                }
            }
        }
    }

    #[test]
    fn flipped_bits_fail_the_checksum() {
        for addresses in [V4, V6] {
            for frame in [
                tcp_frame(addresses, 80, b"payload"),
                udp_frame(addresses, (1, 2), b"payload"),
            ] {
                let start = ip(&frame).header.len() + 14;
                for bit in start * 8..frame.len() * 8 {
                    let mut bad = frame.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    if let Ok(Packet {
                        body: Body::Ip(packet),
                        ..
                    }) = dissect(&bad)
                    {
                        assert!(!packet.verify_upper_checksum(), "bit {bit}");
                    }
                }
            }
        }
    }

    #[test]
    fn udp_without_checksum() {
        for (addresses, allowed) in [(V4, true), (V6, false)] {
            let mut frame = udp_frame(addresses, (1, 2), b"payload");
            let at = frame.len() - 9;
            frame[at..at + 2].fill(0);
            assert_eq!(ip(&frame).verify_upper_checksum(), allowed);
        }
    }

    #[test]
    fn super_frames_up_to_the_limit() {
        for (addresses, most) in [(V4, 65_515), (V6, 65_535)] {
            let payload = vec![0x5a; most - 32];
            let frame = tcp_frame(addresses, 80, &payload);
            let packet = ip(&frame);
            assert!(matches!(packet.upper, Upper::Tcp { payload: read, .. } if read == payload));
            assert!(packet.verify_upper_checksum());
        }
    }

    #[test]
    fn total_length_zero_is_refused() {
        let mut frame = tcp_frame(V4, 80, b"payload");
        frame[16..18].fill(0);
        fix_v4(&mut frame);
        assert_eq!(dissect(&frame), Err(Drop::Malformed));
    }

    #[test]
    fn cve_2020_29129_short_frames_of_every_type() {
        for ethertype in [0x0800_u16, 0x0806, 0x86dd, 0x88f8, 0x8100, 0] {
            for len in 0..=60 {
                for fill in [0, 0x45, 0x60, 0xff] {
                    let mut frame = vec![fill; len];
                    if let Some(field) = frame.get_mut(12..14) {
                        field.copy_from_slice(&ethertype.to_be_bytes());
                    }
                    assert!(dissect(&frame).is_err());
                }
            }
        }
    }

    #[test]
    fn cve_2020_10756_echo_with_lying_length() {
        let mut out = vec![0; MAX_HEADER];
        let len = template(V6, (7, 7))
            .emit_echo(&mut out, true, 1, &[])
            .unwrap();
        out.truncate(len);
        for claimed in 0..=u16::MAX {
            out[18..20].copy_from_slice(&claimed.to_be_bytes());
            if claimed > 8 {
                assert_eq!(dissect(&out), Err(Drop::Truncated));
            } else {
                check(&out);
                assert_eq!(dissect(&out).is_ok(), claimed == 8);
            }
        }
    }

    #[test]
    fn cve_2021_3593_udp_over_ipv6_length_lies() {
        let frame = udp_frame(V6, (1, 2), &[5; 12]);
        for claimed in 0..=u16::MAX {
            let mut frame = frame.clone();
            frame[58..60].copy_from_slice(&claimed.to_be_bytes());
            frame.extend([0xee; 64]);
            check(&frame);
            assert_eq!(dissect(&frame).is_ok(), (8..=20).contains(&claimed));
        }
    }

    #[test]
    fn cve_2020_7039_payloads_are_opaque() {
        let lines: [(u16, &[u8]); 5] = [
            (113, b"40000 , 6193 : USERID : UNIX : root\r\n"),
            (
                6667,
                b":a PRIVMSG b :\x01DCC SEND f 3232235777 99999 1\x01\r\n",
            ),
            (21, b"PORT 192,0,2,1,255,255\r\n"),
            (21, b"227 Entering Passive Mode (1,2,3,4,5,6)\r\n"),
            (514, b"1023\0root\0"),
        ];
        for (port, line) in lines {
            let frame = tcp_frame(V4, port, line);
            assert!(matches!(ip(&frame).upper, Upper::Tcp { payload, .. } if payload == line));
        }
    }

    #[test]
    fn cve_2020_7211_tftp_is_plain_udp() {
        let frame = udp_frame(V4, (2000, 69), b"\0\x01..\\..\\etc\\passwd\0octet\0");
        let Upper::Udp { repr, payload } = ip(&frame).upper else {
            panic!()
        };
        assert_eq!(
            (repr.dst_port, payload),
            (69, &b"\0\x01..\\..\\etc\\passwd\0octet\0"[..])
        );
    }

    #[test]
    fn cve_2018_11806_port_zero_and_giant_fragments() {
        let frame = udp_frame(V4, (0, 53), b"x");
        assert!(matches!(ip(&frame).upper, Upper::Udp { repr, .. } if repr.src_port == 0));
        let mut frame = ip_frame(V4, 17, &vec![1; 65_512]);
        frame[20..22].copy_from_slice(&0x2001_u16.to_be_bytes());
        fix_v4(&mut frame);
        check(&frame);
        frame[20..22].copy_from_slice(&0x3fff_u16.to_be_bytes());
        fix_v4(&mut frame);
        assert_eq!(dissect(&frame), Err(Drop::Malformed));
    }

    #[test]
    fn cve_2020_1983_zero_length_and_odd_fragments() {
        for (len, more, ok) in [
            (0, true, false),
            (0, false, false),
            (7, true, false),
            (7, false, true),
            (8, true, true),
        ] {
            let mut frame = ip_frame(V4, 17, &vec![1; len]);
            frame[20..22].copy_from_slice(&(1 | u16::from(more) << 13).to_be_bytes());
            fix_v4(&mut frame);
            let result = dissect(&frame);
            assert!(if ok {
                result.is_ok()
            } else {
                result == Err(Drop::Fragment)
            });
            check(&frame);
            let header = [17, 0, 0, 8 | u8::from(more), 0, 0, 0, 5];
            let frame = ip_frame(V6, 44, &[&header[..], &vec![1; len]].concat());
            let result = dissect(&frame);
            assert!(if ok {
                result.is_ok()
            } else {
                result == Err(Drop::Fragment)
            });
        }
    }

    #[test]
    fn ndp_from_afar_or_in_fragments_is_refused() {
        let frame = samples().into_iter().nth(9).unwrap();
        for hop_limit in 0..255 {
            let mut frame = frame.clone();
            frame[21] = hop_limit;
            assert_eq!(dissect(&frame), Err(Drop::Malformed));
        }
        let message = &frame[54..];
        let mut atomic = ip_frame(V6, 44, &[&[58, 0, 0, 0, 0, 0, 0, 1], message].concat());
        atomic[21] = 255;
        assert_eq!(dissect(&atomic), Err(Drop::Malformed));
        assert_eq!(reassembled(V6.0, V6.1, 58, message), Err(Drop::Malformed));
    }

    #[test]
    fn reassembled_packets_are_read_and_verified() {
        for addresses in [V4, V6] {
            let frame = udp_frame(addresses, (7, 8), &[1; 3000]);
            let datagram = &frame[ip(&frame).header.len() + 14..];
            let upper = reassembled(addresses.0, addresses.1, 17, datagram).unwrap();
            assert_eq!(upper, ip(&frame).upper);
            let mut bad = datagram.to_vec();
            bad[2999] ^= 1;
            assert_eq!(
                reassembled(addresses.0, addresses.1, 17, &bad),
                Err(Drop::Checksum)
            );
            if addresses == V6 {
                let chain = [&[17, 0, 1, 4, 0, 0, 0, 0][..], datagram].concat();
                assert_eq!(
                    reassembled(addresses.0, addresses.1, 60, &chain),
                    Ok(reassembled(V6.0, V6.1, 17, &chain[8..]).unwrap())
                );
                assert_eq!(
                    reassembled(addresses.0, addresses.1, 44, &chain),
                    Err(Drop::Malformed)
                );
            }
        }
    }

    #[test]
    fn icmp_of_the_other_version_is_another_protocol() {
        assert!(matches!(
            ip(&ip_frame(V6, 1, &[8; 8])).upper,
            Upper::Other { protocol: 1, .. }
        ));
        assert!(matches!(
            ip(&ip_frame(V4, 58, &[135; 8])).upper,
            Upper::Other { protocol: 58, .. }
        ));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if bytes.len() >= 14 {
                check(&bytes);
            } else {
                prop_assert!(dissect(&bytes).is_err());
            }
        }

        #[test]
        fn mutated_samples(which in 0_usize..13, edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
                           cut in any::<prop::sample::Index>(), extra in 0_usize..80) {
            let mut frame = samples().swap_remove(which);
            for (at, value) in edits {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            if frame[12..14] == [8, 0] && usize::from(frame[14] & 15) * 4 + 14 <= frame.len() {
                fix_v4(&mut frame);
            }
            check(&frame);
            frame.truncate(14 + cut.index(frame.len() - 13));
            check(&frame);
            frame.resize(frame.len() + extra, 0xee);
            check(&frame);
        }
    }
}
