//! IPv4 (RFC 791). Options are accepted and skipped, never written.
//!
//! Lengths: the header says how long it and the packet are; both must lie inside what arrived, and what
//! arrived beyond the packet (Ethernet padding) is cut off. A total length of 0, which some offloads use
//! for packets beyond 64 KiB, is refused: no tap we open produces them.

use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{DEFAULT_HOP_LIMIT, checksum};
use crate::stats::Drop;

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Where the header checksum is, from the start of the header.
pub const CHECKSUM_OFFSET: usize = 10;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    version_ihl: u8,
    tos: u8,
    total_len: U16,
    ident: U16,
    flags_offset: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    src: [u8; 4],
    dst: [u8; 4],
}

/// An IPv4 header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// What the payload is, e.g. [`super::PROTOCOL_TCP`].
    pub protocol: u8,
    /// Hops left.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification, equal in all fragments of a packet.
    pub ident: u16,
    /// Routers must not fragment the packet.
    pub dont_fragment: bool,
    /// Not the last fragment.
    pub more_fragments: bool,
    /// Where the payload belongs in the whole packet's, in bytes: a multiple of 8.
    pub fragment_offset: u16,
    /// Length of the header with its options, 20..=60 bytes. [`Repr::emit`] writes none: 20.
    pub header_len: usize,
    /// Length of the payload, in bytes.
    pub payload_len: usize,
}

impl Repr {
    /// A whole packet: no fragment, "don't fragment" set, and hence no identification (RFC 6864).
    #[must_use]
    pub const fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload_len: usize) -> Self {
        Self {
            src,
            dst,
            protocol,
            ttl: DEFAULT_HOP_LIMIT,
            tos: 0,
            ident: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            header_len: HEADER_LEN,
            payload_len,
        }
    }

    /// Is this only a part of a packet?
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// The header, and the payload cut to the length that the header gives.
    ///
    /// # Errors
    /// [`Drop::Truncated`] if data is missing, [`Drop::Malformed`] for another version, lengths that
    /// contradict each other or a fragment that ends beyond 65535 bytes, [`Drop::Checksum`] if the
    /// header's checksum is wrong.
    pub fn parse(data: &[u8]) -> Result<(Self, &[u8]), Drop> {
        Self::parse_head(data, 0)
    }

    /// The same where `data` is followed by `missing` bytes that are elsewhere; the payload is what is here of it.
    ///
    /// # Errors
    /// As [`Repr::parse`].
    pub fn parse_head(data: &[u8], missing: usize) -> Result<(Self, &[u8]), Drop> {
        let (raw, _) = Raw::ref_from_prefix(data).map_err(|_| Drop::Truncated)?;
        let header_len = usize::from(raw.version_ihl & 0x0f).saturating_mul(4);
        if raw.version_ihl >> 4 != 4 || header_len < HEADER_LEN {
            return Err(Drop::Malformed);
        }
        let total_len = usize::from(raw.total_len.get());
        let payload_len = total_len.checked_sub(header_len).ok_or(Drop::Malformed)?;
        if total_len > data.len().saturating_add(missing) {
            return Err(Drop::Truncated);
        }
        let packet = data.get(..total_len).unwrap_or(data);
        let (header, payload) = packet.split_at_checked(header_len).ok_or(Drop::Truncated)?;
        if !checksum::verify(header, checksum::Sum::ZERO) {
            return Err(Drop::Checksum);
        }
        let flags_offset = raw.flags_offset.get();
        let fragment_offset = (flags_offset & OFFSET_MASK) << 3;
        if usize::from(fragment_offset).saturating_add(payload_len) > usize::from(u16::MAX) {
            return Err(Drop::Malformed);
        }
        let repr = Self {
            src: raw.src.into(),
            dst: raw.dst.into(),
            protocol: raw.protocol,
            ttl: raw.ttl,
            tos: raw.tos,
            ident: raw.ident.get(),
            dont_fragment: flags_offset & DONT_FRAGMENT != 0,
            more_fragments: flags_offset & MORE_FRAGMENTS != 0,
            fragment_offset,
            header_len,
            payload_len,
        };
        Ok((repr, payload))
    }

    /// Write a header without options, with its checksum, to the start of `out`.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let total_len = u16::try_from(self.payload_len.checked_add(HEADER_LEN)?).ok()?;
        let mut flags_offset = self.fragment_offset >> 3;
        if self.dont_fragment {
            flags_offset |= DONT_FRAGMENT;
        }
        if self.more_fragments {
            flags_offset |= MORE_FRAGMENTS;
        }
        let mut raw = Raw {
            version_ihl: 0x45,
            tos: self.tos,
            total_len: U16::new(total_len),
            ident: U16::new(self.ident),
            flags_offset: U16::new(flags_offset),
            ttl: self.ttl,
            protocol: self.protocol,
            checksum: U16::ZERO,
            src: self.src.octets(),
            dst: self.dst.octets(),
        };
        raw.checksum = U16::new(checksum::sum(raw.as_bytes()).finish());
        raw.write_to_prefix(out).ok()?;
        Some(HEADER_LEN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The worked example of the Wikipedia article on the IPv4 header checksum, with 4 payload bytes.
    const PACKET: [u8; 24] = [
        0x45, 0x00, 0x00, 0x18, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0xbc, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7, 1, 2, 3, 4,
    ];

    fn fix_checksum(packet: &mut [u8]) {
        let len = usize::from(packet[0] & 0xf) * 4;
        packet[10..12].fill(0);
        let sum = checksum::sum(&packet[..len]).finish();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    #[test]
    fn vector() {
        let mut packet = PACKET;
        fix_checksum(&mut packet);
        let (repr, payload) = Repr::parse(&packet).unwrap();
        let expected = Repr::new(
            Ipv4Addr::new(192, 168, 0, 1),
            Ipv4Addr::new(192, 168, 0, 199),
            17,
            4,
        );
        assert_eq!(repr, expected);
        assert_eq!(payload, [1, 2, 3, 4]);
        let mut out = [0xff; 20];
        assert_eq!(repr.emit(&mut out), Some(20));
        assert_eq!(out, packet[..20]);
        assert_eq!(repr.emit(&mut out[..19]), None);
        let huge = Repr {
            payload_len: 65_516,
            ..repr
        };
        assert_eq!(huge.emit(&mut out), None);
    }

    #[test]
    fn known_checksum() {
        // The article's own numbers: length 0x73 gives 0xb861.
        let repr = Repr::new(
            Ipv4Addr::new(192, 168, 0, 1),
            Ipv4Addr::new(192, 168, 0, 199),
            17,
            0x73 - 20,
        );
        let mut out = [0; 20];
        assert_eq!(repr.emit(&mut out), Some(20));
        assert_eq!(out[10..12], [0xb8, 0x61]);
    }

    #[test]
    fn options_are_skipped_and_padding_is_cut() {
        let mut packet = PACKET.to_vec();
        packet[0] = 0x46;
        packet[3] = 28;
        packet.splice(20..20, [0x94, 0x04, 0, 0]);
        packet.extend([0xee; 18]);
        fix_checksum(&mut packet);
        let (repr, payload) = Repr::parse(&packet).unwrap();
        assert_eq!((repr.header_len, repr.payload_len), (24, 4));
        assert_eq!(payload, [1, 2, 3, 4]);
    }

    #[test]
    fn lengths_that_lie() {
        let mut good = PACKET;
        fix_checksum(&mut good);
        for cut in 0..good.len() {
            assert_eq!(Repr::parse(&good[..cut]), Err(Drop::Truncated), "{cut}");
        }
        for total in 0..=u16::MAX {
            let mut packet = good;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            fix_checksum(&mut packet);
            match Repr::parse(&packet) {
                Ok((_, payload)) => assert_eq!(payload.len() + 20, usize::from(total)),
                Err(Drop::Malformed) => assert!(total < 20),
                Err(why) => assert!(why == Drop::Truncated && total > 24),
            }
        }
        for first in 0..=u8::MAX {
            let mut packet = good;
            packet[0] = first;
            packet[10..12].fill(0);
            let result = Repr::parse(&packet);
            assert!(result.is_err() || first == 0x45 || first == 0x46);
        }
    }

    #[test]
    fn every_flipped_header_bit_is_noticed() {
        let mut good = PACKET;
        fix_checksum(&mut good);
        for bit in 0..160 {
            let mut packet = good;
            packet[bit / 8] ^= 1 << (bit % 8);
            assert!(Repr::parse(&packet).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn fragment_beyond_the_end_is_refused() {
        let mut packet = PACKET;
        packet[6..8].copy_from_slice(&0x1fff_u16.to_be_bytes());
        packet[3] = 27;
        let mut packet = packet.to_vec();
        packet.extend([0; 3]);
        fix_checksum(&mut packet);
        // 65528 + 7 is the last byte there is; one more is too many.
        let (repr, _) = Repr::parse(&packet).unwrap();
        assert!(repr.is_fragment());
        assert_eq!(repr.fragment_offset, 65_528);
        packet[3] = 28;
        packet.push(0);
        fix_checksum(&mut packet);
        assert_eq!(Repr::parse(&packet), Err(Drop::Malformed));
    }

    proptest! {
        #[test]
        fn round_trip(src: [u8; 4], dst: [u8; 4], protocol: u8, ttl: u8, tos: u8, ident: u16, flags: [bool; 2],
                      offset in 0_u16..8000, payload_len in 0_usize..300) {
            let repr = Repr {
                src: src.into(), dst: dst.into(), protocol, ttl, tos, ident, dont_fragment: flags[0],
                more_fragments: flags[1], fragment_offset: offset * 8, header_len: HEADER_LEN, payload_len,
            };
            let mut out = [0xa5; 400];
            prop_assert_eq!(repr.emit(&mut out), Some(20));
            let (again, payload) = Repr::parse(&out).unwrap();
            prop_assert_eq!(again, repr);
            prop_assert_eq!(payload.len(), payload_len);
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100), fix: bool) {
            let mut bytes = bytes;
            if fix && bytes.len() >= 60 {
                bytes[0] = 0x40 | (bytes[0] & 0xf).max(5);
                fix_checksum(&mut bytes);
            }
            if let Ok((repr, payload)) = Repr::parse(&bytes) {
                prop_assert_eq!(repr.payload_len, payload.len());
                prop_assert!(repr.header_len + repr.payload_len <= bytes.len());
            }
        }
    }
}
