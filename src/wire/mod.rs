//! Packet formats: bytes in, values out, and back. Pure: no I/O, no clock, no allocation, no `unsafe`.
//!
//! One file per format. Each offers a `Repr` (or `Header`), a value in which every field has been
//! looked at once, with
//! * `parse(&[u8]) -> Result<(Repr, &[u8]), Drop>`: the value and what follows it. The slice is whatever
//!   arrived; a length found *inside* it is believed only as far as the slice reaches, and always
//!   towards the shorter: data beyond the inner length is cut off, an inner length beyond the data is
//!   [`Drop::Truncated`];
//! * `emit(&self, &mut [u8]) -> Option<usize>`: writes the header at the start of the buffer and returns
//!   its length; `None` if the buffer is too short, or a length does not fit its field. Nothing is
//!   promised about the buffer's contents in that case.
//!
//! What `emit` writes, `parse` reads back to the same value; that is a property test in each file.
//! Checksums over payload are not verified by `parse` (the tap says whether there is anything to
//! verify) and left zero by `emit` where the payload is not at hand; [`frame`] and [`dissect`] deal
//! with them. The IPv4 header checksum covers its header only and is checked and written here.
//!
//! What must never happen: a panic, an unbounded loop, or a read past a slice, for any input bytes.
//! The lints below make the compiler refuse the expressions that could.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use crate::stats::Drop;

pub mod arp;
pub mod checksum;
pub mod dhcp;
pub mod dhcpv6;
pub mod dissect;
pub mod ethernet;
pub mod frame;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod quote;
pub mod tcp;
pub mod udp;
pub mod virtio_net;

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// The hop limit, or time to live, of packets unless somebody asks for another (RFC 1700; what Linux uses).
pub const DEFAULT_HOP_LIMIT: u8 = 64;

/// Overwrite the 16-bit field at `offset`, in network byte order; `None` if it is outside.
pub fn put_u16(out: &mut [u8], offset: usize, value: u16) -> Option<()> {
    *out.get_mut(offset..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}

/// Split off the first `N` bytes, or say that they are not there.
pub(crate) fn take<const N: usize>(data: &[u8]) -> Result<(&[u8; N], &[u8]), Drop> {
    data.split_first_chunk().ok_or(Drop::Truncated)
}
