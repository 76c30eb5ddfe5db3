//! ARP (RFC 826) for IPv4 over Ethernet, the only combination there is on a tap.

use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addr::Mac;
use crate::stats::Drop;

/// Length of an ARP packet for IPv4 over Ethernet, in bytes.
pub const LEN: usize = 28;

const HARDWARE_ETHERNET: u16 = 1;
const PROTOCOL_IPV4: u16 = 0x0800;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    hardware: U16,
    protocol: U16,
    hardware_len: u8,
    protocol_len: u8,
    operation: U16,
    sender_mac: [u8; 6],
    sender_ip: [u8; 4],
    target_mac: [u8; 6],
    target_ip: [u8; 4],
}

/// What an ARP packet is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// "Who has the target address?"
    Request,
    /// "The sender has."
    Reply,
}

/// An ARP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Request or reply.
    pub operation: Operation,
    /// Sender's link-layer address.
    pub sender_mac: Mac,
    /// Sender's IPv4 address; unspecified in a probe (RFC 5227).
    pub sender_ip: Ipv4Addr,
    /// Target's link-layer address; meaningless in a request.
    pub target_mac: Mac,
    /// Target's IPv4 address.
    pub target_ip: Ipv4Addr,
}

impl Repr {
    /// The packet, and what follows it (padding).
    ///
    /// # Errors
    /// [`Drop::Truncated`] below 28 bytes, [`Drop::Malformed`] if the address lengths are not 6 and 4,
    /// [`Drop::Unsupported`] for other hardware, protocols or operations (reverse ARP …).
    pub fn parse(data: &[u8]) -> Result<(Self, &[u8]), Drop> {
        let (raw, rest) = Raw::ref_from_prefix(data).map_err(|_| Drop::Truncated)?;
        if raw.hardware.get() != HARDWARE_ETHERNET || raw.protocol.get() != PROTOCOL_IPV4 {
            return Err(Drop::Unsupported);
        }
        if raw.hardware_len != 6 || raw.protocol_len != 4 {
            return Err(Drop::Malformed);
        }
        let operation = match raw.operation.get() {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(Drop::Unsupported),
        };
        let repr = Self {
            operation,
            sender_mac: Mac(raw.sender_mac),
            sender_ip: raw.sender_ip.into(),
            target_mac: Mac(raw.target_mac),
            target_ip: raw.target_ip.into(),
        };
        Ok((repr, rest))
    }

    /// Write the packet to the start of `out`.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let operation = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        let raw = Raw {
            hardware: U16::new(HARDWARE_ETHERNET),
            protocol: U16::new(PROTOCOL_IPV4),
            hardware_len: 6,
            protocol_len: 4,
            operation: U16::new(operation),
            sender_mac: self.sender_mac.0,
            sender_ip: self.sender_ip.octets(),
            target_mac: self.target_mac.0,
            target_ip: self.target_ip.octets(),
        };
        raw.write_to_prefix(out).ok()?;
        Some(LEN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `arping 192.0.2.1` from 192.0.2.2, as captured.
    const REQUEST: [u8; 28] = [
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1,
    ];

    #[test]
    fn vector() {
        let (repr, rest) = Repr::parse(&REQUEST).unwrap();
        assert!(rest.is_empty());
        assert_eq!(
            repr,
            Repr {
                operation: Operation::Request,
                sender_mac: Mac([2, 0, 0, 0, 0, 2]),
                sender_ip: Ipv4Addr::new(192, 0, 2, 2),
                target_mac: Mac::ZERO,
                target_ip: Ipv4Addr::new(192, 0, 2, 1),
            }
        );
        let mut out = [0xff; 28];
        assert_eq!(repr.emit(&mut out), Some(28));
        assert_eq!(out, REQUEST);
        assert_eq!(repr.emit(&mut out[..27]), None);
    }

    #[test]
    fn cve_2020_29130_truncated_and_lying_arp() {
        for cut in 0..REQUEST.len() {
            assert_eq!(Repr::parse(&REQUEST[..cut]), Err(Drop::Truncated), "{cut}");
        }
        for (offset, why) in [
            (0, Drop::Unsupported),
            (2, Drop::Unsupported),
            (4, Drop::Malformed),
            (5, Drop::Malformed),
            (7, Drop::Unsupported),
        ] {
            let mut bad = REQUEST;
            bad[offset] = 0xff;
            assert_eq!(Repr::parse(&bad), Err(why), "byte {offset}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(mut bytes: [u8; 28], reply: bool) {
            bytes[..7].copy_from_slice(&REQUEST[..7]);
            bytes[7] = 1 + u8::from(reply);
            let (repr, _) = Repr::parse(&bytes).unwrap();
            let mut out = [0; 28];
            prop_assert_eq!(repr.emit(&mut out), Some(28));
            prop_assert_eq!(out, bytes);
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Repr::parse(&bytes);
        }
    }
}
