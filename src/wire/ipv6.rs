//! IPv6 (RFC 8200) with its chain of extension headers.
//!
//! Hop-by-hop options, routing and destination options are skipped; the chain ends at the first header
//! that is none of them, which is the upper layer. A fragment header ends it too, unless it belongs to
//! an "atomic fragment", a whole packet that carries the header for nothing (RFC 6946): behind the
//! header of a real fragment comes a piece of something, to be read once all pieces are there.
//!
//! The chain is bounded by [`MAX_EXTENSIONS`], hop-by-hop options may only come first, and at most one
//! fragment header may occur; everything else is malformed. Payload length 0 with hop-by-hop options
//! announces a jumbogram (RFC 2675), which is refused.

use std::net::Ipv6Addr;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{DEFAULT_HOP_LIMIT, take};
use crate::stats::Drop;

/// Length of the fixed header, in bytes.
pub const HEADER_LEN: usize = 40;
/// Length of the fragment header, in bytes.
pub const FRAGMENT_LEN: usize = 8;
/// More extension headers than this in one packet are refused: no sender has a use for them.
pub const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    version_class_flow: U32,
    payload_len: U16,
    next_header: u8,
    hop_limit: u8,
    src: [u8; 16],
    dst: [u8; 16],
}

/// What a fragment header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Identification, equal in all fragments of a packet.
    pub ident: u32,
    /// Where the payload belongs in the whole packet's fragmentable part, in bytes: a multiple of 8.
    pub offset: u16,
    /// Not the last fragment.
    pub more: bool,
}

impl Fragment {
    /// Is the "fragment" the whole packet (RFC 6946)?
    #[must_use]
    pub const fn is_atomic(&self) -> bool {
        self.offset == 0 && !self.more
    }
}

/// An IPv6 header with its extension headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// What the payload is: the upper layer; for a fragment, what its header names as next.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// The fragment header, if there was one.
    pub fragment: Option<Fragment>,
    /// Length of the payload behind all extension headers, in bytes.
    pub payload_len: usize,
    /// Length of the fixed header and the extension headers, in bytes. [`Repr::emit`] writes none but
    /// the fragment header.
    pub header_len: usize,
}

/// The end of a chain of extension headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain<'a> {
    /// What the payload is.
    pub protocol: u8,
    /// The fragment header met on the way; the last header looked at unless it was atomic.
    pub fragment: Option<Fragment>,
    /// What follows the last extension header.
    pub payload: &'a [u8],
}

/// Follow the chain that begins in `data` with a header of type `first`. Use this also for the payload of a
/// reassembled packet, which may begin with destination options.
///
/// # Errors
/// [`Drop::Truncated`] if a header is not all there; [`Drop::Malformed`] for more than
/// [`MAX_EXTENSIONS`], headers out of order, or a route that is not finished.
pub fn follow(first: u8, data: &[u8], at_start: bool) -> Result<Chain<'_>, Drop> {
    let mut chain = Chain {
        protocol: first,
        fragment: None,
        payload: data,
    };
    for index in 0..=MAX_EXTENSIONS {
        match chain.protocol {
            HOP_BY_HOP if index == 0 && at_start => {}
            DESTINATION => {}
            // A route with segments left asks us to be a router (and type 0 to be an amplifier, RFC 5095).
            ROUTING if chain.payload.get(3) == Some(&0) => {}
            FRAGMENT if chain.fragment.is_none() => {
                let ([next, _, o1, o0, ident @ ..], rest) = take::<FRAGMENT_LEN>(chain.payload)?;
                let field = u16::from_be_bytes([*o1, *o0]);
                let fragment = Fragment {
                    ident: u32::from_be_bytes(*ident),
                    offset: field & !7,
                    more: field & 1 != 0,
                };
                chain = Chain {
                    protocol: *next,
                    fragment: Some(fragment),
                    payload: rest,
                };
                if fragment.is_atomic() {
                    continue;
                }
                return Ok(chain);
            }
            HOP_BY_HOP | FRAGMENT => return Err(Drop::Malformed),
            ROUTING if chain.payload.len() < 8 => return Err(Drop::Truncated),
            ROUTING => return Err(Drop::Malformed),
            _ => return Ok(chain),
        }
        let ([next, len], _) = take::<2>(chain.payload)?;
        let len = usize::from(*len).saturating_add(1).saturating_mul(8);
        chain.protocol = *next;
        chain.payload = chain.payload.get(len..).ok_or(Drop::Truncated)?;
    }
    Err(Drop::Malformed)
}

impl Repr {
    /// A whole packet without extension headers.
    #[must_use]
    pub const fn new(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, payload_len: usize) -> Self {
        Self {
            src,
            dst,
            next_header,
            hop_limit: DEFAULT_HOP_LIMIT,
            traffic_class: 0,
            flow_label: 0,
            fragment: None,
            payload_len,
            header_len: HEADER_LEN,
        }
    }

    /// The headers, and the payload cut to the length that the fixed header gives.
    ///
    /// # Errors
    /// [`Drop::Truncated`] if data is missing, [`Drop::Malformed`] for another version, a jumbogram, a
    /// fragment that ends beyond 65535 bytes, and what [`follow`] refuses.
    pub fn parse(data: &[u8]) -> Result<(Self, &[u8]), Drop> {
        Self::parse_head(data, 0)
    }

    /// The same where `data` is followed by `missing` bytes that are elsewhere; the payload is what is here of it.
    ///
    /// # Errors
    /// As [`Repr::parse`].
    pub fn parse_head(data: &[u8], missing: usize) -> Result<(Self, &[u8]), Drop> {
        let (raw, rest) = Raw::ref_from_prefix(data).map_err(|_| Drop::Truncated)?;
        let first = raw.version_class_flow.get();
        if first >> 28 != 6 {
            return Err(Drop::Malformed);
        }
        let stated = usize::from(raw.payload_len.get());
        if stated > rest.len().saturating_add(missing) {
            return Err(Drop::Truncated);
        }
        let payload = rest.get(..stated).unwrap_or(rest);
        let elsewhere = stated.saturating_sub(payload.len());
        let mut chain = Chain {
            protocol: raw.next_header,
            fragment: None,
            payload,
        };
        if matches!(
            raw.next_header,
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION
        ) {
            if payload.is_empty() {
                return Err(Drop::Malformed);
            }
            chain = follow(raw.next_header, payload, true)?;
        }
        if let Some(fragment) = chain.fragment {
            if usize::from(fragment.offset).saturating_add(chain.payload.len())
                > usize::from(u16::MAX)
            {
                return Err(Drop::Malformed);
            }
        }
        let [traffic_class, ..] = (first << 4).to_be_bytes();
        let repr = Self {
            src: raw.src.into(),
            dst: raw.dst.into(),
            next_header: chain.protocol,
            hop_limit: raw.hop_limit,
            traffic_class,
            flow_label: first & 0x000f_ffff,
            fragment: chain.fragment,
            payload_len: chain.payload.len().saturating_add(elsewhere),
            header_len: HEADER_LEN
                .saturating_add(payload.len().saturating_sub(chain.payload.len())),
        };
        Ok((repr, chain.payload))
    }

    /// Write the fixed header, and a fragment header if there is one, to the start of `out`.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let extra = if self.fragment.is_some() {
            FRAGMENT_LEN
        } else {
            0
        };
        let payload_len = u16::try_from(self.payload_len.checked_add(extra)?).ok()?;
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0x000f_ffff;
        let raw = Raw {
            version_class_flow: U32::new(first),
            payload_len: U16::new(payload_len),
            next_header: if self.fragment.is_some() {
                FRAGMENT
            } else {
                self.next_header
            },
            hop_limit: self.hop_limit,
            src: self.src.octets(),
            dst: self.dst.octets(),
        };
        raw.write_to_prefix(out).ok()?;
        if let Some(fragment) = self.fragment {
            let [o1, o0] = (fragment.offset & !7 | u16::from(fragment.more)).to_be_bytes();
            let [i3, i2, i1, i0] = fragment.ident.to_be_bytes();
            *out.get_mut(HEADER_LEN..)?.first_chunk_mut()? =
                [self.next_header, 0, o1, o0, i3, i2, i1, i0];
        }
        HEADER_LEN.checked_add(extra)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SRC: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const DST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

    /// A packet whose payload is `extensions` (type `first`) and three bytes of upper layer.
    fn packet(first: u8, extensions: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 40];
        let repr = Repr::new(SRC, DST, first, extensions.len() + 3);
        assert_eq!(repr.emit(&mut out), Some(40));
        out.extend(extensions);
        out.extend([7, 8, 9]);
        out
    }

    #[test]
    fn vector() {
        let mut bytes = vec![0x6a, 0xbc, 0xde, 0xf1, 0, 2, 17, 64];
        bytes.extend(SRC.octets());
        bytes.extend(DST.octets());
        bytes.extend([5, 6, 0xff, 0xff]);
        let (repr, payload) = Repr::parse(&bytes).unwrap();
        assert_eq!(payload, [5, 6]);
        assert_eq!((repr.traffic_class, repr.flow_label), (0xab, 0xc_def1));
        assert_eq!(
            (repr.next_header, repr.hop_limit, repr.header_len),
            (17, 64, 40)
        );
        let mut out = [0xff; 40];
        assert_eq!(repr.emit(&mut out), Some(40));
        assert_eq!(out, bytes[..40]);
        assert_eq!(repr.emit(&mut out[..39]), None);
        for cut in 0..42 {
            assert_eq!(Repr::parse(&bytes[..cut]), Err(Drop::Truncated), "{cut}");
        }
        bytes[0] = 0x4a;
        assert_eq!(Repr::parse(&bytes), Err(Drop::Malformed));
    }

    #[test]
    fn extension_headers_are_skipped() {
        // Hop-by-hop (router alert), destination options of 16 bytes, a finished route.
        let mut extensions = vec![DESTINATION, 0, 5, 2, 0, 0, 1, 0];
        extensions.extend([ROUTING, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        extensions.extend([17, 0, 4, 0, 0, 0, 0, 0]);
        let bytes = packet(HOP_BY_HOP, &extensions);
        let (repr, payload) = Repr::parse(&bytes).unwrap();
        assert_eq!(
            (repr.next_header, repr.header_len, repr.payload_len),
            (17, 72, 3)
        );
        assert_eq!(payload, [7, 8, 9]);
        for cut in 0..bytes.len() {
            assert_eq!(Repr::parse(&bytes[..cut]), Err(Drop::Truncated), "{cut}");
        }
        // The same cuts with an honest payload length: the chain itself runs out.
        for cut in 41..72 {
            let mut bytes = bytes[..cut].to_vec();
            bytes[4..6].copy_from_slice(&u16::try_from(cut - 40).unwrap().to_be_bytes());
            assert_eq!(Repr::parse(&bytes), Err(Drop::Truncated), "{cut}");
        }
    }

    #[test]
    fn ripple20_chains_of_1_to_1000_headers() {
        for count in 1..=1000_usize {
            let mut extensions = [DESTINATION, 0, 1, 4, 0, 0, 0, 0].repeat(count);
            extensions[(count - 1) * 8] = 17;
            let result =
                Repr::parse(&packet(DESTINATION, &extensions)).map(|(repr, _)| repr.header_len);
            let expected = if count <= MAX_EXTENSIONS {
                Ok(40 + count * 8)
            } else {
                Err(Drop::Malformed)
            };
            assert_eq!(result, expected, "{count}");
        }
    }

    #[test]
    fn headers_out_of_order() {
        let hop = [17, 0, 1, 4, 0, 0, 0, 0];
        let fragment = |next| [next, 0, 0, 1, 0, 0, 0, 9];
        // Hop-by-hop, then fragment: as RFC 8200 wants it.
        let mut chain = hop;
        chain[0] = FRAGMENT;
        let bytes = packet(HOP_BY_HOP, &[chain, fragment(17)].concat());
        let (repr, _) = Repr::parse(&bytes).unwrap();
        let expected = Fragment {
            ident: 9,
            offset: 0,
            more: true,
        };
        assert_eq!(
            (repr.fragment, repr.next_header, repr.header_len),
            (Some(expected), 17, 56)
        );
        // Hop-by-hop anywhere but first.
        let mut chain = hop;
        chain[0] = HOP_BY_HOP;
        assert_eq!(
            Repr::parse(&packet(HOP_BY_HOP, &[chain, hop].concat())),
            Err(Drop::Malformed)
        );
        assert_eq!(
            Repr::parse(&packet(DESTINATION, &[chain, hop].concat())),
            Err(Drop::Malformed)
        );
        // Behind an atomic fragment header; behind a real one it is opaque.
        let mut atomic = fragment(HOP_BY_HOP);
        atomic[3] = 0;
        assert_eq!(
            Repr::parse(&packet(FRAGMENT, &[atomic, hop].concat())),
            Err(Drop::Malformed)
        );
        let bytes = packet(FRAGMENT, &[fragment(HOP_BY_HOP), hop].concat());
        assert_eq!(Repr::parse(&bytes).unwrap().0.next_header, HOP_BY_HOP);
        assert_eq!(follow(HOP_BY_HOP, &hop, false), Err(Drop::Malformed));
        // Two fragment headers.
        atomic[0] = FRAGMENT;
        assert_eq!(
            Repr::parse(&packet(FRAGMENT, &[atomic, fragment(17)].concat())),
            Err(Drop::Malformed)
        );
    }

    #[test]
    fn atomic_fragments_are_read_through() {
        let bytes = packet(
            FRAGMENT,
            &[DESTINATION, 0, 0, 0, 1, 2, 3, 4, 17, 0, 1, 4, 0, 0, 0, 0],
        );
        let (repr, payload) = Repr::parse(&bytes).unwrap();
        assert!(repr.fragment.unwrap().is_atomic());
        assert_eq!((repr.next_header, payload), (17, &[7, 8, 9][..]));
    }

    #[test]
    fn unfinished_routes_and_jumbograms() {
        assert_eq!(
            Repr::parse(&packet(ROUTING, &[17, 0, 0, 1, 0, 0, 0, 0])),
            Err(Drop::Malformed)
        );
        assert!(Repr::parse(&packet(ROUTING, &[17, 0, 0, 0, 0, 0, 0, 0])).is_ok());
        let mut jumbo = packet(HOP_BY_HOP, &[17, 0, 0xc2, 4, 0, 1, 0, 0]);
        jumbo[4..6].fill(0);
        assert_eq!(Repr::parse(&jumbo), Err(Drop::Malformed));
    }

    #[test]
    fn every_payload_length() {
        let bytes = packet(17, &[]);
        for len in 0..=u16::MAX {
            let mut bytes = bytes.clone();
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
            match Repr::parse(&bytes) {
                Ok((repr, payload)) => {
                    assert!(payload.len() == usize::from(len) && repr.payload_len == payload.len());
                }
                Err(why) => assert!(why == Drop::Truncated && len > 3),
            }
        }
    }

    #[test]
    fn fragment_beyond_the_end_is_refused() {
        let mut header = [17, 0, 0xff, 0xf8, 0, 0, 0, 1];
        assert!(Repr::parse(&packet(FRAGMENT, &header)).is_ok());
        let tail = [header.to_vec(), vec![0; 5]].concat();
        assert_eq!(Repr::parse(&packet(FRAGMENT, &tail)), Err(Drop::Malformed));
        header[2] = 0;
        assert!(Repr::parse(&packet(FRAGMENT, &[header.to_vec(), vec![0; 5]].concat())).is_ok());
    }

    proptest! {
        #[test]
        fn round_trip(src: [u8; 16], dst: [u8; 16], hop_limit: u8, traffic_class: u8, flow_label in 0_u32..1 << 20,
                      fragment: Option<(u32, u8, bool)>, payload_len in 0_usize..300) {
            let fragment = fragment.map(|(ident, offset, more)| Fragment { ident, offset: u16::from(offset) * 8, more });
            let header_len = if fragment.is_some() { 48 } else { 40 };
            let repr = Repr {
                src: src.into(), dst: dst.into(), next_header: 17, hop_limit, traffic_class, flow_label, fragment,
                payload_len, header_len,
            };
            let mut out = [0xa5; 400];
            prop_assert_eq!(repr.emit(&mut out), Some(header_len));
            let (again, payload) = Repr::parse(&out).unwrap();
            prop_assert_eq!(again, repr);
            prop_assert_eq!(payload.len(), payload_len);
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), kinds: [u8; 4]) {
            let mut bytes = bytes;
            if bytes.len() > 60 {
                bytes[0] = 0x60 | bytes[0] & 0xf;
                bytes[4] = 0;
                let index = usize::from(kinds[0]) % 4;
                bytes[6] = [HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION][index];
                bytes[40] = [HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION][usize::from(kinds[1]) % 4];
                bytes[41] &= 3;
                bytes[43] &= kinds[2];
            }
            if let Ok((repr, payload)) = Repr::parse(&bytes) {
                prop_assert_eq!(repr.payload_len, payload.len());
                prop_assert!(repr.header_len + repr.payload_len <= bytes.len());
            }
        }
    }
}
