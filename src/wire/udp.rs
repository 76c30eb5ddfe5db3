//! UDP (RFC 768). Eight bytes; the only subtlety is the length, which may be smaller than what IP carried
//! (the rest is not UDP's) and never larger.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::stats::Drop;

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is, from the start of the header.
pub const CHECKSUM_OFFSET: usize = 6;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    src_port: U16,
    dst_port: U16,
    len: U16,
    checksum: U16,
}

/// A UDP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source port; 0 where no answer is wanted.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Length of header and payload, 8..=65535 bytes.
    pub len: u16,
}

impl Repr {
    /// The header, and the payload cut to the length that the header gives.
    ///
    /// # Errors
    /// [`Drop::Truncated`] if there is less data than the header or its length says;
    /// [`Drop::Malformed`] if that length is below 8. (0 would be a jumbogram, which we do not announce.)
    pub fn parse(data: &[u8]) -> Result<(Self, &[u8]), Drop> {
        let (raw, rest) = Raw::ref_from_prefix(data).map_err(|_| Drop::Truncated)?;
        let len = raw.len.get();
        let payload_len = usize::from(len)
            .checked_sub(HEADER_LEN)
            .ok_or(Drop::Malformed)?;
        let payload = rest.get(..payload_len).ok_or(Drop::Truncated)?;
        let repr = Self {
            src_port: raw.src_port.get(),
            dst_port: raw.dst_port.get(),
            len,
        };
        Ok((repr, payload))
    }

    /// Write the header, with a zero checksum, to the start of `out`.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let raw = Raw {
            src_port: U16::new(self.src_port),
            dst_port: U16::new(self.dst_port),
            len: U16::new(self.len),
            checksum: U16::ZERO,
        };
        raw.write_to_prefix(out).ok()?;
        Some(HEADER_LEN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vector() {
        let data = [0x30, 0x39, 0, 53, 0, 11, 0, 0, 1, 2, 3, 9, 9];
        let (repr, payload) = Repr::parse(&data).unwrap();
        assert_eq!((repr.src_port, repr.dst_port, repr.len), (12345, 53, 11));
        assert_eq!(payload, [1, 2, 3]);
        let mut out = [0xff; 8];
        assert_eq!(repr.emit(&mut out), Some(8));
        assert_eq!(out, data[..8]);
        assert_eq!(repr.emit(&mut out[..7]), None);
    }

    #[test]
    fn cve_2021_3592_short_and_lying_headers() {
        let data = [0x30, 0x39, 0, 53, 0, 11, 0, 0, 1, 2, 3];
        for cut in 0..data.len() {
            assert_eq!(Repr::parse(&data[..cut]), Err(Drop::Truncated), "{cut}");
        }
        for len in 0..=u16::MAX {
            let mut data = data;
            data[4..6].copy_from_slice(&len.to_be_bytes());
            match Repr::parse(&data) {
                Ok((_, payload)) => assert_eq!(usize::from(len), payload.len() + 8),
                Err(Drop::Malformed) => assert!(len < 8),
                Err(why) => assert!(why == Drop::Truncated && len > 11),
            }
        }
    }

    proptest! {
        #[test]
        fn round_trip(src_port: u16, dst_port: u16, len in 8_u16..200) {
            let repr = Repr { src_port, dst_port, len };
            let mut out = [0; 200];
            prop_assert_eq!(repr.emit(&mut out), Some(8));
            let (again, payload) = Repr::parse(&out).unwrap();
            prop_assert_eq!(again, repr);
            prop_assert_eq!(payload.len(), usize::from(len) - 8);
        }
    }
}
