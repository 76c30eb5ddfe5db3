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
    let (eth, rest) = ethernet::Header::parse(frame)?;
    let body = match eth.ethertype {
        ethernet::ETHERTYPE_IPV4 => Body::Ip(ip_v4(rest)?),
        ethernet::ETHERTYPE_IPV6 => Body::Ip(ip_v6(rest)?),
        ethernet::ETHERTYPE_ARP => Body::Arp(arp::Repr::parse(rest)?.0),
        _ => return Err(Drop::Unsupported),
    };
    Ok(Packet { eth, body })
}

/// Take an IPv4 packet apart.
fn ip_v4(data: &[u8]) -> Result<IpPacket<'_>, Drop> {
    let (repr, payload) = ipv4::Repr::parse(data)?;
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
        upper,
    })
}

/// Take an IPv6 packet apart.
fn ip_v6(data: &[u8]) -> Result<IpPacket<'_>, Drop> {
    let (repr, payload) = ipv6::Repr::parse(data)?;
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
