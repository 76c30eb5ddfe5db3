//! Ethernet II (IEEE 802.3 clause 3): destination, source, type. No VLAN tags, no LLC: the other end is a
//! single virtual interface that we configured, and what it sends with another type is not for us.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addr::Mac;
use crate::stats::Drop;

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 14;
/// Shortest frame without its check sequence: shorter ones are padded with zeroes.
pub const MIN_FRAME: usize = 60;
/// Type of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Type of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Type of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    dst: [u8; 6],
    src: [u8; 6],
    ethertype: U16,
}

/// An Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// Type of the payload, e.g. [`ETHERTYPE_IPV4`].
    pub ethertype: u16,
}

impl Header {
    /// The header, and the rest of the frame (with its padding, if any).
    ///
    /// # Errors
    /// [`Drop::Truncated`] below 14 bytes.
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), Drop> {
        let (raw, rest) = Raw::ref_from_prefix(frame).map_err(|_| Drop::Truncated)?;
        let header = Self {
            dst: Mac(raw.dst),
            src: Mac(raw.src),
            ethertype: raw.ethertype.get(),
        };
        Ok((header, rest))
    }

    /// Write the header to the start of `out`.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let raw = Raw {
            dst: self.dst.0,
            src: self.src.0,
            ethertype: U16::new(self.ethertype),
        };
        raw.write_to_prefix(out).ok()?;
        Some(HEADER_LEN)
    }
}

/// Pad the frame of `len` bytes at the start of `out` with zeroes to [`MIN_FRAME`]; its length then.
#[must_use]
pub fn pad(out: &mut [u8], len: usize) -> Option<usize> {
    if len >= MIN_FRAME {
        return Some(len);
    }
    out.get_mut(len..MIN_FRAME)?.fill(0);
    Some(MIN_FRAME)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAME: [u8; 16] = [
        0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0xaa, 0xbb,
    ];

    #[test]
    fn vector() {
        let (header, rest) = Header::parse(&FRAME).unwrap();
        assert_eq!(header.dst, Mac::OURS);
        assert_eq!(header.src, Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(header.ethertype, ETHERTYPE_IPV6);
        assert_eq!(rest, [0xaa, 0xbb]);
        let mut out = [0; 14];
        assert_eq!(header.emit(&mut out), Some(14));
        assert_eq!(out, FRAME[..14]);
        assert_eq!(header.emit(&mut out[..13]), None);
        for cut in 0..14 {
            assert_eq!(Header::parse(&FRAME[..cut]), Err(Drop::Truncated));
        }
    }

    #[test]
    fn padding() {
        let mut out = [0xff; 64];
        assert_eq!(pad(&mut out, 42), Some(60));
        assert!(out[42..60].iter().all(|b| *b == 0));
        assert_eq!((out[41], out[60]), (0xff, 0xff));
        assert_eq!(pad(&mut out, 60), Some(60));
        assert_eq!(pad(&mut out, 1514), Some(1514));
        assert_eq!(pad(&mut out[..59], 42), None);
    }

    proptest! {
        #[test]
        fn round_trip(bytes: [u8; 14]) {
            let (header, _) = Header::parse(&bytes).unwrap();
            let mut out = [0; 14];
            prop_assert_eq!(header.emit(&mut out), Some(14));
            prop_assert_eq!(out, bytes);
        }
    }
}
