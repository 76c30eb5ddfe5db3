//! What an ICMP error of the guest's is about.
//!
//! An error quotes at least the IP header and eight bytes of the packet that met it (RFC 792, RFC 4443 section 2.4): for
//! TCP both ports and the sequence number, which is enough to find the connection and to know that the quote is not
//! invented. Nothing else of the quote is looked at; lengths in it are those of a packet that may have been cut.

use std::net::IpAddr;

use super::dissect::Upper;
use super::tcp::Seq;
use super::{PROTOCOL_TCP, icmpv4, icmpv6, take};
use crate::addr::Endpoint;

/// A TCP segment that did not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undelivered {
    /// Where it came from.
    pub src: Endpoint,
    /// Where it was to go.
    pub dst: Endpoint,
    /// Its sequence number.
    pub seq: Seq,
}

/// The TCP segment that `upper` says is undeliverable: "unreachable" for any reason but its size.
#[must_use]
pub fn undelivered(upper: &Upper<'_>) -> Option<Undelivered> {
    match upper {
        Upper::Icmpv4(icmpv4::Message::Other {
            kind: icmpv4::UNREACHABLE,
            code,
            payload,
            ..
        }) if *code != icmpv4::unreachable::FRAGMENTATION_NEEDED => quoted_v4(payload),
        Upper::Icmpv6(icmpv6::Message::Other {
            kind: icmpv6::UNREACHABLE,
            payload,
            ..
        }) => quoted_v6(payload),
        _ => None,
    }
}

fn quoted_v4(quote: &[u8]) -> Option<Undelivered> {
    let (
        [
            first,
            _,
            _,
            _,
            _,
            _,
            f1,
            f0,
            _,
            protocol,
            _,
            _,
            addresses @ ..,
        ],
        _,
    ) = take::<20>(quote).ok()?;
    let header_len = usize::from(first & 0x0f).checked_mul(4)?;
    let later_fragment = u16::from_be_bytes([*f1, *f0]) & 0x1fff != 0;
    if first >> 4 != 4 || header_len < 20 || later_fragment || *protocol != PROTOCOL_TCP {
        return None;
    }
    let (src, dst) = halves::<8, 4>(addresses)?;
    segment(src.into(), dst.into(), quote.get(header_len..)?)
}

/// Packets of ours have no extension headers, so neither have their quotes.
fn quoted_v6(quote: &[u8]) -> Option<Undelivered> {
    let ([first, _, _, _, _, _, next_header, _, addresses @ ..], rest) = take::<40>(quote).ok()?;
    if first >> 4 != 6 || *next_header != PROTOCOL_TCP {
        return None;
    }
    let (src, dst) = halves::<32, 16>(addresses)?;
    segment(src.into(), dst.into(), rest)
}

fn halves<const ALL: usize, const HALF: usize>(
    bytes: &[u8; ALL],
) -> Option<([u8; HALF], [u8; HALF])> {
    Some((*bytes.first_chunk()?, *bytes.last_chunk()?))
}

fn segment(src: IpAddr, dst: IpAddr, tcp: &[u8]) -> Option<Undelivered> {
    let ([s1, s0, d1, d0, seq @ ..], _) = take::<8>(tcp).ok()?;
    Some(Undelivered {
        src: Endpoint::new(src, u16::from_be_bytes([*s1, *s0])),
        dst: Endpoint::new(dst, u16::from_be_bytes([*d1, *d0])),
        seq: Seq(u32::from_be_bytes(*seq)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Mac;
    use crate::wire::ethernet;
    use crate::wire::frame::{Checksum, MAX_HEADER, Template};
    use crate::wire::tcp::{Flags, Options, Repr};

    fn ends(ipv6: bool) -> (Endpoint, Endpoint) {
        if ipv6 {
            let at = |s: &str| s.parse::<std::net::Ipv6Addr>().unwrap().into();
            (
                Endpoint::new(at("2001:db8::1"), 4711),
                Endpoint::new(at("2001:db8::2"), 80),
            )
        } else {
            (
                Endpoint::new([192, 0, 2, 1].into(), 4711),
                Endpoint::new([10, 0, 0, 2].into(), 80),
            )
        }
    }

    /// A SYN as it is sent to the guest, from the IP header on.
    fn syn(ipv6: bool) -> Vec<u8> {
        let (src, dst) = ends(ipv6);
        let repr = Repr {
            src_port: src.port,
            dst_port: dst.port,
            seq: Seq(0x0102_0304),
            ack: Seq(0),
            flags: Flags::SYN,
            window: 0xffff,
            urgent: 0,
            options: Options {
                mss: Some(1460),
                ..Options::NONE
            },
        };
        let mut out = [0; MAX_HEADER];
        let template = Template::new(Mac::ZERO, Mac::ZERO, src, dst);
        let len = template
            .emit_tcp(&mut out, &repr, 0, Checksum::Full(&[]))
            .unwrap();
        out[ethernet::HEADER_LEN..len].to_vec()
    }

    fn error(ipv6: bool, kind: u8, code: u8, quote: &[u8]) -> Option<Undelivered> {
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.extend(quote);
        undelivered(&if ipv6 {
            Upper::Icmpv6(icmpv6::Message::parse(&message).unwrap())
        } else {
            Upper::Icmpv4(icmpv4::Message::parse(&message).unwrap())
        })
    }

    #[test]
    fn an_error_names_the_segment_it_is_about_however_short_the_quote() {
        for (ipv6, kind, header) in [(false, 3, 20), (true, 1, 40)] {
            let (src, dst) = ends(ipv6);
            let seq = Seq(0x0102_0304);
            let packet = syn(ipv6);
            for len in [header + 8, packet.len()] {
                for code in [1, 3] {
                    let found = error(ipv6, kind, code, &packet[..len]);
                    assert_eq!(found, Some(Undelivered { src, dst, seq }));
                }
            }
            assert_eq!(error(ipv6, kind, 1, &packet[..header + 7]), None);
            assert_eq!(error(ipv6, 11, 0, &packet), None, "time exceeded");
            let mut udp = packet;
            udp[if ipv6 { 6 } else { 9 }] = 17;
            assert_eq!(error(ipv6, kind, 1, &udp), None);
        }
        assert_eq!(
            error(false, 3, 4, &syn(false)),
            None,
            "too large is not unreachable"
        );
        assert_eq!(error(false, 3, 1, &syn(true)), None, "the other family");
        let mut fragment = syn(false);
        fragment[7] = 5;
        assert_eq!(error(false, 3, 1, &fragment), None);
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..80), ipv6: bool) {
            let _ = error(ipv6, if ipv6 { 1 } else { 3 }, 1, &bytes);
        }
    }
}
