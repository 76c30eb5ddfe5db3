//! Whole frames around a payload that is already in place.
//!
//! A service writes its message where it will be in the frame ([`UDP4_PAYLOAD`], [`UDP6_PAYLOAD`] or
//! [`ICMPV6_MESSAGE`] from the start) and then asks for everything before it: nothing is copied, and
//! checksums are always complete, because these frames are few and readable in a capture.

use std::net::Ipv6Addr;

use crate::addr::{Endpoint, Mac};
use crate::wire::frame::{Checksum, Template};
use crate::wire::{PROTOCOL_ICMPV6, checksum, ethernet, ipv4, ipv6, put_u16, udp};

/// Where the payload of a UDP datagram over IPv4 starts in a frame.
pub const UDP4_PAYLOAD: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN;
/// Where the payload of a UDP datagram over IPv6 starts in a frame.
pub const UDP6_PAYLOAD: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + udp::HEADER_LEN;
/// Where an ICMPv6 message starts in a frame.
pub const ICMPV6_MESSAGE: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
/// Where the checksum of an ICMPv6 message is, from its start.
const ICMPV6_CHECKSUM: usize = 2;

/// From which station to which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Sender.
    pub src: Mac,
    /// Receiver.
    pub dst: Mac,
}

/// Wrap `payload_len` bytes of UDP payload, of either family; the frame's length. `None` when the families differ or
/// the buffer or a length field is too small.
#[must_use]
pub fn udp(
    out: &mut [u8],
    link: Link,
    from: Endpoint,
    to: Endpoint,
    payload_len: usize,
) -> Option<usize> {
    if from.is_ipv6() != to.is_ipv6() {
        return None;
    }
    let template = Template::new(link.dst, link.src, from, to);
    let (headers, rest) = out.split_at_mut_checked(template.udp_header_len())?;
    let payload = rest.get(..payload_len)?;
    let len = template.emit_udp(headers, payload_len, Checksum::Full(payload))?;
    ethernet::pad(out, len.checked_add(payload_len)?)
}

/// Wrap an ICMPv6 message of `len` bytes as neighbour discovery wants it: hop limit 255. The frame's length, or
/// `None` when the buffer or a length field is too small.
#[must_use]
pub fn icmpv6(
    out: &mut [u8],
    link: Link,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    len: usize,
) -> Option<usize> {
    let ip = ipv6::Repr {
        hop_limit: 255,
        ..ipv6::Repr::new(src, dst, PROTOCOL_ICMPV6, len)
    };
    ip.emit(out.get_mut(ethernet::HEADER_LEN..)?)?;
    let end = ICMPV6_MESSAGE.checked_add(len)?;
    let message = out.get_mut(ICMPV6_MESSAGE..end)?;
    put_u16(message, ICMPV6_CHECKSUM, 0)?;
    let pseudo = checksum::pseudo_v6(src, dst, PROTOCOL_ICMPV6, u32::try_from(len).ok()?);
    let sum = pseudo.plus(checksum::sum(message)).finish();
    put_u16(message, ICMPV6_CHECKSUM, sum)?;
    finish(out, link, ethernet::ETHERTYPE_IPV6, end)
}

/// Write the Ethernet header before, and padding behind, a packet that ends at `end`; the frame's length.
pub fn finish(out: &mut [u8], link: Link, ethertype: u16, end: usize) -> Option<usize> {
    ethernet::Header {
        dst: link.dst,
        src: link.src,
        ethertype,
    }
    .emit(out)?;
    ethernet::pad(out, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::decode;

    const LINK: Link = Link {
        src: Mac::OURS,
        dst: Mac([2, 0, 0, 0, 0, 1]),
    };

    #[test]
    fn udp_of_both_families() {
        let e = |s: &str| Endpoint::from(s.parse::<std::net::SocketAddr>().unwrap());
        for (from, to, at) in [
            ("192.0.2.1:67", "192.0.2.5:68", UDP4_PAYLOAD),
            ("[fe80::1]:547", "[fe80::2]:546", UDP6_PAYLOAD),
        ] {
            for payload in [&b""[..], b"x", b"an odd number", &[0xff; 600]] {
                let mut out = [0x55; 1500];
                out[at..at + payload.len()].copy_from_slice(payload);
                let n = udp(&mut out, LINK, e(from), e(to), payload.len()).unwrap();
                assert_eq!(n, (at + payload.len()).max(60));
                let d = decode::udp(&out[..n]);
                assert_eq!((d.link.src, d.link.dst), (LINK.src, LINK.dst));
                assert_eq!(
                    (d.from.as_str(), d.to.as_str(), d.payload.as_slice()),
                    (from, to, payload)
                );
                // One byte less and there is no frame.
                assert_eq!(
                    udp(&mut out[..n - 1], LINK, e(from), e(to), payload.len()),
                    None
                );
            }
        }
        assert_eq!(
            udp(&mut [0; 1500], LINK, e("192.0.2.1:1"), e("[fe80::1]:1"), 0),
            None
        );
        assert_eq!(
            udp(
                &mut vec![0; 70_000],
                LINK,
                e("192.0.2.1:1"),
                e("192.0.2.1:1"),
                65_530
            ),
            None
        );
    }

    #[test]
    fn icmpv6_has_hop_limit_255() {
        let mut out = [0x55; 200];
        out[ICMPV6_MESSAGE..ICMPV6_MESSAGE + 8].copy_from_slice(&[133, 0, 7, 7, 0, 0, 0, 0]);
        let (src, dst) = ("fe80::1".parse().unwrap(), "ff02::1".parse().unwrap());
        let n = icmpv6(&mut out, LINK, src, dst, 8).unwrap();
        let d = decode::icmpv6(&out[..n]);
        assert_eq!((d.src, d.dst, d.message[0]), (src, dst, 133));
        for short in 0..n {
            assert_eq!(
                icmpv6(&mut out[..short], LINK, src, dst, 8),
                None,
                "{short}"
            );
        }
    }
}
