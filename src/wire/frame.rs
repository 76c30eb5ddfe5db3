//! Headers of frames for the guest, from templates.
//!
//! Everything a flow's headers have in common (link-layer and IP addresses, hop limit, the sum of the
//! addresses that goes into every checksum) is worked out once, in a [`Template`]; per frame it is copied and
//! the lengths are filled in. The payload is somewhere else while that happens: usually just behind the
//! header in the same buffer, where a socket has put it, which is why [`Checksum::Full`] takes it as
//! a slice of its own (`split_at_mut`).
//!
//! With [`Checksum::Partial`] the frame is fit only for a tap or ring that completes checksums, together
//! with the offload header that [`Template::tcp_offload`] or [`Template::udp_offload`] returns.

use std::net::{IpAddr, Ipv6Addr};

use super::checksum::{self, Sum};
use super::virtio_net::{self, Gso};
use super::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use super::{ethernet, icmpv4, icmpv6, ipv4, ipv6, put_u16, tcp, udp};
use crate::addr::{Endpoint, Mac};

/// Space that always suffices for the headers of a frame, in bytes.
pub const MAX_HEADER: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + tcp::MAX_HEADER_LEN;

const V4_LEN: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;
const V6_LEN: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
const V4_TOS: usize = ethernet::HEADER_LEN + 1;
const V4_TOTAL_LEN: usize = ethernet::HEADER_LEN + 2;
const V4_TTL: usize = ethernet::HEADER_LEN + 8;
const V4_PROTOCOL: usize = ethernet::HEADER_LEN + 9;
const V4_CHECKSUM: usize = ethernet::HEADER_LEN + ipv4::CHECKSUM_OFFSET;
const V6_PAYLOAD_LEN: usize = ethernet::HEADER_LEN + 4;
const V6_NEXT_HEADER: usize = ethernet::HEADER_LEN + 6;
const V6_HOP_LIMIT: usize = ethernet::HEADER_LEN + 7;

/// What to put into the checksum field of TCP or UDP.
#[derive(Clone, Copy, Debug)]
pub enum Checksum<'a> {
    /// The sum of the pseudo-header; the receiver of the frame adds the rest.
    Partial,
    /// The checksum over the headers and this payload.
    Full(&'a [u8]),
}

/// The fixed part of the headers of a flow's frames.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Ethernet and IP header; lengths, protocol and the IPv4 checksum are zero.
    bytes: [u8; V6_LEN],
    is_v6: bool,
    src_port: u16,
    dst_port: u16,
    /// Sum of the two addresses.
    addresses: Sum,
    /// Sum of the IPv4 header in `bytes`.
    header: Sum,
}

/// An IPv6 address for either kind.
const fn to_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

impl Template {
    /// Headers from `src` at `eth_src` to `dst` at `eth_dst`, with hop limit 64 and no DSCP or ECN. The
    /// end points must be of one family; an IPv4 one beside an IPv6 one is written as mapped.
    #[must_use]
    pub fn new(eth_dst: Mac, eth_src: Mac, src: Endpoint, dst: Endpoint) -> Self {
        let mut template = Self {
            bytes: [0; V6_LEN],
            is_v6: true,
            src_port: src.port,
            dst_port: dst.port,
            addresses: Sum::ZERO,
            header: Sum::ZERO,
        };
        let mut eth = ethernet::Header {
            dst: eth_dst,
            src: eth_src,
            ethertype: ethernet::ETHERTYPE_IPV6,
        };
        let (link, network) = template.bytes.split_at_mut(ethernet::HEADER_LEN);
        // Neither can fail: the array is as long as both headers, and the payload is empty.
        let _ = if let (IpAddr::V4(src), IpAddr::V4(dst)) = (src.ip, dst.ip) {
            eth.ethertype = ethernet::ETHERTYPE_IPV4;
            template.is_v6 = false;
            template.addresses = checksum::pseudo_v4(src, dst, 0, 0);
            ipv4::Repr::new(src, dst, 0, 0).emit(network)
        } else {
            let (src, dst) = (to_v6(src.ip), to_v6(dst.ip));
            template.addresses = checksum::pseudo_v6(src, dst, 0, 0);
            ipv6::Repr::new(src, dst, 0, 0).emit(network)
        };
        let _ = eth.emit(link);
        template.settle();
        template
    }

    /// The same with another hop limit or time to live.
    #[must_use]
    pub fn with_hop_limit(mut self, hop_limit: u8) -> Self {
        let offset = if self.is_v6 { V6_HOP_LIMIT } else { V4_TTL };
        let _ = self.set_byte(offset, |_| hop_limit);
        self.settle();
        self
    }

    /// The same with DSCP and ECN.
    #[must_use]
    pub fn with_tos(mut self, tos: u8) -> Self {
        if self.is_v6 {
            let _ = self.set_byte(ethernet::HEADER_LEN, |_| 0x60 | tos >> 4);
            let _ = self.set_byte(V4_TOS, |flow| tos << 4 | flow & 0x0f);
        } else {
            let _ = self.set_byte(V4_TOS, |_| tos);
        }
        self.settle();
        self
    }

    fn set_byte(&mut self, offset: usize, change: impl FnOnce(u8) -> u8) -> Option<()> {
        let byte = self.bytes.get_mut(offset)?;
        *byte = change(*byte);
        Some(())
    }

    /// Work out the sum of an IPv4 header without length and checksum.
    fn settle(&mut self) {
        if self.is_v6 {
            return;
        }
        let _ = put_u16(&mut self.bytes, V4_TOTAL_LEN, 0);
        let _ = put_u16(&mut self.bytes, V4_CHECKSUM, 0);
        self.header = checksum::sum(
            self.bytes
                .get(ethernet::HEADER_LEN..V4_LEN)
                .unwrap_or_default(),
        );
    }

    /// Length of Ethernet and IP header together, in bytes: 34 or 54. This is also where checksumming starts.
    #[must_use]
    pub const fn ip_end(&self) -> usize {
        if self.is_v6 { V6_LEN } else { V4_LEN }
    }

    /// Length of all headers of a TCP frame, in bytes: what [`Template::emit_tcp`] returns.
    #[must_use]
    pub fn tcp_header_len(&self, repr: &tcp::Repr) -> usize {
        self.ip_end().saturating_add(repr.header_len())
    }

    /// Length of all headers of a UDP frame, in bytes: what [`Template::emit_udp`] returns.
    #[must_use]
    pub const fn udp_header_len(&self) -> usize {
        self.ip_end().saturating_add(udp::HEADER_LEN)
    }

    /// Write the Ethernet and IP headers of a packet with `payload_len` bytes of `protocol` behind them;
    /// their length. `None` if `out` is too short or the packet would be too long for IP.
    #[must_use]
    pub fn emit_ip(&self, out: &mut [u8], protocol: u8, payload_len: usize) -> Option<usize> {
        if self.is_v6 {
            out.get_mut(..V6_LEN)?.copy_from_slice(&self.bytes);
            put_u16(out, V6_PAYLOAD_LEN, u16::try_from(payload_len).ok()?)?;
            *out.get_mut(V6_NEXT_HEADER)? = protocol;
        } else {
            let total_len = u16::try_from(payload_len.checked_add(ipv4::HEADER_LEN)?).ok()?;
            out.get_mut(..V4_LEN)?
                .copy_from_slice(self.bytes.get(..V4_LEN)?);
            put_u16(out, V4_TOTAL_LEN, total_len)?;
            *out.get_mut(V4_PROTOCOL)? = protocol;
            let sum = self
                .header
                .plus_u16(total_len)
                .plus_u16(u16::from(protocol));
            put_u16(out, V4_CHECKSUM, sum.finish())?;
        }
        Some(self.ip_end())
    }

    /// Write all headers of a TCP segment with `payload_len` bytes of data behind them; their length. The
    /// ports are those of `repr`. `None` if `out` is too short, the packet would be too long for IP, or
    /// the payload to be summed is not `payload_len` long.
    #[must_use]
    pub fn emit_tcp(
        &self,
        out: &mut [u8],
        repr: &tcp::Repr,
        payload_len: usize,
        checksum: Checksum<'_>,
    ) -> Option<usize> {
        let segment = out.get_mut(self.ip_end()..)?;
        let header_len = repr.emit(segment)?;
        let upper_len = header_len.checked_add(payload_len)?;
        let header = segment.get(..header_len)?;
        let sum = self.sum(PROTOCOL_TCP, header, payload_len, checksum)?;
        put_u16(
            segment,
            tcp::CHECKSUM_OFFSET,
            match checksum {
                Checksum::Partial => sum.partial(),
                Checksum::Full(_) => sum.finish(),
            },
        )?;
        self.emit_ip(out, PROTOCOL_TCP, upper_len)?
            .checked_add(header_len)
    }

    /// Write all headers of a UDP datagram with `payload_len` bytes of data behind them; their length.
    /// `None` as for [`Template::emit_tcp`].
    #[must_use]
    pub fn emit_udp(
        &self,
        out: &mut [u8],
        payload_len: usize,
        checksum: Checksum<'_>,
    ) -> Option<usize> {
        let upper_len = udp::HEADER_LEN.checked_add(payload_len)?;
        let repr = udp::Repr {
            src_port: self.src_port,
            dst_port: self.dst_port,
            len: u16::try_from(upper_len).ok()?,
        };
        let datagram = out.get_mut(self.ip_end()..)?;
        let header_len = repr.emit(datagram)?;
        let header = datagram.get(..header_len)?;
        let sum = self.sum(PROTOCOL_UDP, header, payload_len, checksum)?;
        put_u16(
            datagram,
            udp::CHECKSUM_OFFSET,
            match checksum {
                Checksum::Partial => sum.partial(),
                Checksum::Full(_) => sum.finish_udp(),
            },
        )?;
        self.emit_ip(out, PROTOCOL_UDP, upper_len)?
            .checked_add(header_len)
    }

    /// Write all headers of an ICMP or ICMPv6 echo reply (or, with `request`, a request) in front of
    /// `payload`; their length. The identifier is the source port of a request, the destination port of
    /// a reply.
    #[must_use]
    pub fn emit_echo(
        &self,
        out: &mut [u8],
        request: bool,
        sequence: u16,
        payload: &[u8],
    ) -> Option<usize> {
        let (kind, protocol) = match (self.is_v6, request) {
            (false, false) => (icmpv4::ECHO_REPLY, PROTOCOL_ICMP),
            (false, true) => (icmpv4::ECHO_REQUEST, PROTOCOL_ICMP),
            (true, false) => (icmpv6::ECHO_REPLY, PROTOCOL_ICMPV6),
            (true, true) => (icmpv6::ECHO_REQUEST, PROTOCOL_ICMPV6),
        };
        let ident = if request {
            self.src_port
        } else {
            self.dst_port
        };
        let ([i1, i0], [s1, s0]) = (ident.to_be_bytes(), sequence.to_be_bytes());
        let header = [kind, 0, 0, 0, i1, i0, s1, s0];
        let message = out.get_mut(self.ip_end()..)?;
        *message.first_chunk_mut()? = header;
        let upper_len = header.len().checked_add(payload.len())?;
        let mut sum = checksum::sum(&header).plus(checksum::sum(payload));
        if self.is_v6 {
            sum = sum.plus(self.pseudo(protocol, upper_len)?);
        }
        put_u16(message, icmpv4::CHECKSUM_OFFSET, sum.finish())?;
        self.emit_ip(out, protocol, upper_len)?
            .checked_add(header.len())
    }

    /// The sum of the pseudo-header.
    fn pseudo(&self, protocol: u8, upper_len: usize) -> Option<Sum> {
        let len = u16::try_from(upper_len).ok()?;
        Some(self.addresses.plus_u16(u16::from(protocol)).plus_u16(len))
    }

    /// The sum for the checksum field of an upper layer.
    fn sum(
        &self,
        protocol: u8,
        header: &[u8],
        payload_len: usize,
        checksum: Checksum<'_>,
    ) -> Option<Sum> {
        let pseudo = self.pseudo(protocol, header.len().checked_add(payload_len)?)?;
        match checksum {
            Checksum::Partial => Some(pseudo),
            Checksum::Full(payload) if payload.len() == payload_len => Some(
                pseudo
                    .plus(checksum::sum(header))
                    .plus(checksum::sum(payload)),
            ),
            Checksum::Full(_) => None,
        }
    }

    /// The offload header for a TCP frame whose checksum is partial: to be cut into segments of `mss`
    /// bytes if `payload_len` is more than that. `header_len` is what [`Template::emit_tcp`] returned.
    #[must_use]
    pub fn tcp_offload(
        &self,
        header_len: usize,
        payload_len: usize,
        mss: u16,
    ) -> virtio_net::Header {
        let gso = if self.is_v6 { Gso::TcpV6 } else { Gso::TcpV4 };
        self.offload(tcp::CHECKSUM_OFFSET, header_len, payload_len, (gso, mss))
    }

    /// The offload header for a UDP frame whose checksum is partial: to be cut into datagrams of
    /// `segment` bytes if `payload_len` is more than that.
    #[must_use]
    pub fn udp_offload(&self, payload_len: usize, segment: u16) -> virtio_net::Header {
        self.offload(
            udp::CHECKSUM_OFFSET,
            self.udp_header_len(),
            payload_len,
            (Gso::UdpL4, segment),
        )
    }

    fn offload(
        &self,
        csum_offset: usize,
        header_len: usize,
        payload_len: usize,
        (gso, size): (Gso, u16),
    ) -> virtio_net::Header {
        let field = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        let mut header = virtio_net::Header {
            flags: virtio_net::F_NEEDS_CSUM,
            csum_start: field(self.ip_end()),
            csum_offset: field(csum_offset),
            ..virtio_net::Header::PLAIN
        };
        if size != 0 && payload_len > usize::from(size) {
            header.gso = gso;
            header.gso_size = size;
            header.hdr_len = field(header_len);
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::dissect::{Body, IpPacket, Upper, dissect};
    use crate::wire::tcp::{Flags, Options, Seq};

    const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn endpoints(is_v6: bool) -> (Endpoint, Endpoint) {
        if is_v6 {
            let ip = |last| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
            (Endpoint::new(ip(1), 443), Endpoint::new(ip(2), 40_000))
        } else {
            let ip = |last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
            (Endpoint::new(ip(1), 443), Endpoint::new(ip(2), 40_000))
        }
    }

    fn template(is_v6: bool) -> Template {
        let (src, dst) = endpoints(is_v6);
        Template::new(GUEST, Mac::OURS, src, dst)
    }

    fn segment() -> tcp::Repr {
        tcp::Repr {
            src_port: 443,
            dst_port: 40_000,
            seq: Seq(1000),
            ack: Seq(2000),
            flags: Flags::ACK | Flags::PSH,
            window: 512,
            urgent: 0,
            options: Options::NONE,
        }
    }

    /// The IP packet of a frame for the guest.
    fn ip(frame: &[u8], is_v6: bool) -> IpPacket<'_> {
        let packet = dissect(frame).unwrap();
        assert_eq!((packet.eth.src, packet.eth.dst), (Mac::OURS, GUEST));
        let Body::Ip(ip) = packet.body else { panic!() };
        let (src, dst) = endpoints(is_v6);
        assert_eq!((ip.src, ip.dst), (src.ip, dst.ip));
        ip
    }

    #[test]
    fn tcp_v4_vector() {
        let mut out = [0xff; 58];
        out[54..].copy_from_slice(b"data");
        let (header, payload) = out.split_at_mut(54);
        let len = template(false).emit_tcp(header, &segment(), 4, Checksum::Full(payload));
        assert_eq!(len, Some(54));
        let expected = [
            2, 0, 0, 0, 0, 1, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 8, 0, // Ethernet
            0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0xb6, 0xc8, 192, 0, 2, 1, 192, 0, 2,
            2, // IPv4
            0x01, 0xbb, 0x9c, 0x40, 0, 0, 3, 0xe8, 0, 0, 7, 0xd0, 0x50, 0x18, 2, 0, // TCP
        ];
        assert_eq!(out[..50], expected);
        assert!(ip(&out, false).verify_upper_checksum());
    }

    #[test]
    fn every_flavour_reads_back() {
        for is_v6 in [false, true] {
            for payload in [&b""[..], b"x", b"some data", &[0xff; 1448]] {
                let template = template(is_v6).with_hop_limit(57).with_tos(0xb8);
                let mut out = vec![0xff; MAX_HEADER + payload.len()];

                let mut repr = segment();
                repr.options.timestamps = Some((7, 8));
                let at = template.tcp_header_len(&repr);
                out[at..at + payload.len()].copy_from_slice(payload);
                let (header, rest) = out.split_at_mut(at);
                let full = Checksum::Full(&rest[..payload.len()]);
                assert_eq!(
                    template.emit_tcp(header, &repr, payload.len(), full),
                    Some(at)
                );
                let packet = ip(&out[..at + payload.len()], is_v6);
                assert_eq!((packet.hop_limit, packet.tos), (57, 0xb8));
                assert_eq!(packet.upper, Upper::Tcp { repr, payload });
                assert!(packet.verify_upper_checksum());

                let at = template.udp_header_len();
                out[at..at + payload.len()].copy_from_slice(payload);
                let (header, rest) = out.split_at_mut(at);
                let full = Checksum::Full(&rest[..payload.len()]);
                assert_eq!(template.emit_udp(header, payload.len(), full), Some(at));
                let packet = ip(&out[..at + payload.len()], is_v6);
                let Upper::Udp {
                    repr,
                    payload: read,
                } = packet.upper
                else {
                    panic!()
                };
                assert_eq!((repr.src_port, repr.dst_port, read), (443, 40_000, payload));
                assert!(packet.verify_upper_checksum());

                for request in [false, true] {
                    let at = template.ip_end() + 8;
                    out[at..at + payload.len()].copy_from_slice(payload);
                    let (header, rest) = out.split_at_mut(at);
                    let payload = &rest[..payload.len()];
                    assert_eq!(template.emit_echo(header, request, 9, payload), Some(at));
                    let end = at + payload.len();
                    let packet = ip(&out[..end], is_v6);
                    assert!(packet.verify_upper_checksum());
                    let echo = icmpv4::Echo {
                        ident: if request { 443 } else { 40_000 },
                        sequence: 9,
                        payload: &out[at..end],
                    };
                    let expected = match (is_v6, request) {
                        (false, false) => Upper::Icmpv4(icmpv4::Message::EchoReply(echo)),
                        (false, true) => Upper::Icmpv4(icmpv4::Message::EchoRequest(echo)),
                        (true, false) => Upper::Icmpv6(icmpv6::Message::EchoReply(echo)),
                        (true, true) => Upper::Icmpv6(icmpv6::Message::EchoRequest(echo)),
                    };
                    assert_eq!(packet.upper, expected);
                }
            }
        }
    }

    /// Completing a partial checksum as the receiver of the frame does gives the full one.
    #[test]
    fn partial_checksums_can_be_completed() {
        for is_v6 in [false, true] {
            let template = template(is_v6);
            let payload = [0xa5; 333];
            let mut out = [0; MAX_HEADER + 333];
            let at = template
                .emit_tcp(&mut out, &segment(), 333, Checksum::Partial)
                .unwrap();
            out[at..at + 333].copy_from_slice(&payload);
            let offload = template.tcp_offload(at, 333, 100);
            assert_eq!((offload.gso_size, usize::from(offload.hdr_len)), (100, at));
            assert_eq!(offload.gso, if is_v6 { Gso::TcpV6 } else { Gso::TcpV4 });
            assert_eq!(template.tcp_offload(at, 100, 100).gso, Gso::None);
            assert_eq!(offload.flags, virtio_net::F_NEEDS_CSUM);
            let start = usize::from(offload.csum_start);
            let sum = checksum::sum(&out[start..at + 333]).finish();
            put_u16(&mut out, start + usize::from(offload.csum_offset), sum).unwrap();
            assert!(ip(&out[..at + 333], is_v6).verify_upper_checksum());

            let at = template.emit_udp(&mut out, 333, Checksum::Partial).unwrap();
            out[at..at + 333].copy_from_slice(&payload);
            let offload = template.udp_offload(333, 200);
            assert_eq!((offload.gso, offload.gso_size), (Gso::UdpL4, 200));
            let start = usize::from(offload.csum_start);
            let sum = checksum::sum(&out[start..at + 333]).finish();
            put_u16(&mut out, start + usize::from(offload.csum_offset), sum).unwrap();
            assert!(ip(&out[..at + 333], is_v6).verify_upper_checksum());
        }
    }

    /// Zero in the field would mean "no checksum".
    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        for is_v6 in [false, true] {
            let template = template(is_v6);
            let mut out = [0; MAX_HEADER];
            let mut checksum = |payload: [u8; 2]| {
                let at = template
                    .emit_udp(&mut out, 2, Checksum::Full(&payload))
                    .unwrap();
                [out[at - 2], out[at - 1]]
            };
            // The payload that brings the sum to all ones is the checksum without it.
            let balance = checksum([0, 0]);
            assert_eq!(checksum(balance), [0xff, 0xff]);
        }
    }

    #[test]
    fn nothing_is_written_beyond_the_buffer_or_the_protocol() {
        for is_v6 in [false, true] {
            let template = template(is_v6);
            let mut out = [0; MAX_HEADER];
            let (tcp_len, udp_len) = (
                template.tcp_header_len(&segment()),
                template.udp_header_len(),
            );
            for short in 0..tcp_len {
                assert_eq!(
                    template.emit_tcp(&mut out[..short], &segment(), 0, Checksum::Partial),
                    None
                );
            }
            for short in 0..udp_len {
                assert_eq!(
                    template.emit_udp(&mut out[..short], 0, Checksum::Partial),
                    None
                );
                assert_eq!(template.emit_echo(&mut out[..short], true, 0, &[]), None);
            }
            let most = if is_v6 { 65_535 } else { 65_515 };
            let emit_tcp =
                |len, out: &mut [u8]| template.emit_tcp(out, &segment(), len, Checksum::Partial);
            assert_eq!(emit_tcp(most - 20, &mut out), Some(tcp_len));
            assert_eq!(emit_tcp(most - 19, &mut out), None);
            assert_eq!(emit_tcp(usize::MAX, &mut out), None);
            let emit_udp = |len, out: &mut [u8]| template.emit_udp(out, len, Checksum::Partial);
            assert_eq!(emit_udp(most - 8, &mut out), Some(udp_len));
            assert_eq!(emit_udp(most - 7, &mut out), None);
            assert_eq!(template.emit_udp(&mut out, 1, Checksum::Full(b"xy")), None);
        }
    }

    proptest! {
        #[test]
        fn full_checksums_verify(is_v6: bool, seq: u32, ack: u32, window: u16, tos: u8, hop_limit: u8,
                                 payload in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let template = template(is_v6).with_tos(tos).with_hop_limit(hop_limit);
            let repr = tcp::Repr { seq: Seq(seq), ack: Seq(ack), window, ..segment() };
            let mut out = vec![0; MAX_HEADER];
            let full = Checksum::Full(&payload);
            let at = template.emit_tcp(&mut out, &repr, payload.len(), full).unwrap();
            out.truncate(at);
            out.extend(&payload);
            let packet = ip(&out, is_v6);
            prop_assert_eq!((packet.tos, packet.hop_limit), (tos, hop_limit));
            prop_assert!(packet.verify_upper_checksum());

            let mut out = vec![0; MAX_HEADER];
            let at = template.emit_udp(&mut out, payload.len(), full).unwrap();
            out.truncate(at);
            out.extend(&payload);
            prop_assert!(ip(&out, is_v6).verify_upper_checksum());
            // A zero checksum never leaves: it would mean "none".
            prop_assert_ne!(&out[at - 2..at], &[0, 0]);
        }
    }
}
