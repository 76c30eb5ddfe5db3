//! The offload header in front of every frame of a tap opened with `IFF_VNET_HDR`
//! (`struct virtio_net_hdr` of linux/virtio_net.h; virtio 1.2 section 5.1.6).
//!
//! It says what has been left undone: a checksum still to be completed, a super-frame still to be cut.
//! The tap uses the machine's byte order. Its lengths come from the guest's kernel, or, on a ring, from
//! the guest itself, so they are as trustworthy as the frame: hints, never bounds.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::stats::Drop;

/// Length of the header without `num_buffers`, in bytes.
pub const HEADER_LEN: usize = 10;

/// Flag: the checksum at `csum_start + csum_offset` holds only the pseudo-header's sum.
pub const F_NEEDS_CSUM: u8 = 1;
/// Flag: the checksum has been verified by whoever handed the frame over.
pub const F_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    flags: u8,
    gso_type: u8,
    hdr_len: [u8; 2],
    gso_size: [u8; 2],
    csum_start: [u8; 2],
    csum_offset: [u8; 2],
}

/// How a super-frame is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gso {
    /// Not a super-frame.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// One UDP datagram, to be cut into IP fragments.
    Udp,
    /// A run of UDP datagrams of equal size (the last may be shorter).
    UdpL4,
}

/// The offload header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// [`F_NEEDS_CSUM`], [`F_DATA_VALID`].
    pub flags: u8,
    /// Kind of super-frame.
    pub gso: Gso,
    /// The super-frame's TCP carries ECN marks.
    pub ecn: bool,
    /// Length of all headers from the start of the frame, in bytes; a hint, 0 if not known.
    pub hdr_len: u16,
    /// Payload bytes per segment of a super-frame.
    pub gso_size: u16,
    /// Where checksumming starts, from the start of the frame, in bytes.
    pub csum_start: u16,
    /// Where the checksum is stored, from `csum_start`, in bytes.
    pub csum_offset: u16,
}

impl Header {
    /// Nothing to be done: a complete frame.
    pub const PLAIN: Self = Self {
        flags: 0,
        gso: Gso::None,
        ecn: false,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Is the upper-layer checksum of this frame not to be verified, because it is not complete yet or
    /// has been verified already?
    #[must_use]
    pub const fn checksum_settled(&self) -> bool {
        self.flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0
    }

    /// The header, and the frame behind it.
    ///
    /// # Errors
    /// [`Drop::Truncated`] below 10 bytes, [`Drop::Unsupported`] for a kind of super-frame we did not
    /// agree to, [`Drop::Malformed`] for a super-frame with segments of 0 bytes.
    pub fn parse(data: &[u8]) -> Result<(Self, &[u8]), Drop> {
        let (raw, rest) = Raw::ref_from_prefix(data).map_err(|_| Drop::Truncated)?;
        let gso = match raw.gso_type & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::TcpV4,
            GSO_TCPV6 => Gso::TcpV6,
            GSO_UDP => Gso::Udp,
            GSO_UDP_L4 => Gso::UdpL4,
            _ => return Err(Drop::Unsupported),
        };
        let gso_size = u16::from_ne_bytes(raw.gso_size);
        if gso != Gso::None && gso_size == 0 {
            return Err(Drop::Malformed);
        }
        let header = Self {
            flags: raw.flags,
            gso,
            ecn: raw.gso_type & GSO_ECN != 0,
            hdr_len: u16::from_ne_bytes(raw.hdr_len),
            gso_size,
            csum_start: u16::from_ne_bytes(raw.csum_start),
            csum_offset: u16::from_ne_bytes(raw.csum_offset),
        };
        Ok((header, rest))
    }

    /// Write the header to the start of `out`.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let gso_type = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP,
            Gso::UdpL4 => GSO_UDP_L4,
        };
        let raw = Raw {
            flags: self.flags,
            gso_type: if self.ecn {
                gso_type | GSO_ECN
            } else {
                gso_type
            },
            hdr_len: self.hdr_len.to_ne_bytes(),
            gso_size: self.gso_size.to_ne_bytes(),
            csum_start: self.csum_start.to_ne_bytes(),
            csum_offset: self.csum_offset.to_ne_bytes(),
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
        let mut bytes = vec![F_NEEDS_CSUM, GSO_TCPV4 | GSO_ECN];
        for field in [54_u16, 1448, 34, 16] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.push(0xaa);
        let (header, frame) = Header::parse(&bytes).unwrap();
        assert_eq!(frame, [0xaa]);
        assert_eq!(
            header,
            Header {
                flags: F_NEEDS_CSUM,
                gso: Gso::TcpV4,
                ecn: true,
                hdr_len: 54,
                gso_size: 1448,
                csum_start: 34,
                csum_offset: 16,
            }
        );
        assert!(header.checksum_settled());
        let mut out = [0; 10];
        assert_eq!(header.emit(&mut out), Some(10));
        assert_eq!(out, bytes[..10]);
        assert_eq!(header.emit(&mut out[..9]), None);
    }

    #[test]
    fn refuses_what_was_not_agreed() {
        for cut in 0..HEADER_LEN {
            assert_eq!(Header::parse(&[0; HEADER_LEN][..cut]), Err(Drop::Truncated));
        }
        assert_eq!(Header::parse(&[0; 10]).unwrap().0, Header::PLAIN);
        assert!(!Header::PLAIN.checksum_settled());
        for kind in 0..=u8::MAX {
            let mut bytes = [0; 10];
            bytes[1] = kind;
            let known = matches!(kind & 0x7f, 0 | 1 | 3 | 4 | 5);
            match Header::parse(&bytes) {
                Ok(_) => assert_eq!(kind & 0x7f, 0),
                Err(why) => assert_eq!(
                    why,
                    if known {
                        Drop::Malformed
                    } else {
                        Drop::Unsupported
                    }
                ),
            }
        }
    }

    proptest! {
        #[test]
        fn round_trip(mut bytes: [u8; 10]) {
            bytes[1] &= 0x85;
            bytes[4] |= 1;
            let (header, _) = Header::parse(&bytes).unwrap();
            let mut out = [0; 10];
            prop_assert_eq!(header.emit(&mut out), Some(10));
            prop_assert_eq!(out, bytes);
        }
    }
}
