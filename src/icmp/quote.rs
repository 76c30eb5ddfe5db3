//! The datagram an ICMP error is about, put together again.
//!
//! What a router sent back to the host quotes the datagram as it left the host: with the host's addresses and port.
//! The guest's kernel finds the socket to blame by addresses and ports, so the quote it gets must have those it
//! used itself. Of the original the error queue only keeps the part behind the transport header; the headers in
//! front are written anew. Fields that nobody can know any more (identification, checksum, length if
//! the quote was cut) are what a packet as long as the quote would have.

use std::net::IpAddr;

use crate::addr::Endpoint;
use crate::wire::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP, checksum, ipv4, ipv6, udp};

/// Where the transport header starts: room for an IPv6 header in front.
const TRANSPORT: usize = ipv6::HEADER_LEN;
/// What an ICMP error may quote (RFC 1812 section 4.3.2.3): 576 bytes without its own headers.
const MAX_V4: usize = 576 - ipv4::HEADER_LEN - 8;
/// What an ICMPv6 error may quote (RFC 4443 section 2.4 (c)): 1280 bytes without its own headers.
const MAX_V6: usize = 1280 - ipv6::HEADER_LEN - 8;
/// A UDP header, and an echo header: both have eight bytes.
const HEADER: usize = 8;

/// Addresses of a datagram as the guest sent it. For echo requests the port of `src` is the identifier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The guest's end.
    pub src: Endpoint,
    /// Where the guest sent it.
    pub dst: Endpoint,
}

/// A buffer for one quote.
#[derive(Debug)]
pub struct Quote {
    buf: [u8; MAX_V6],
}

impl Quote {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { buf: [0; MAX_V6] }
    }

    fn room(&mut self, from: usize, ipv6: bool) -> &mut [u8] {
        let end = if ipv6 {
            MAX_V6
        } else {
            MAX_V4.saturating_add(TRANSPORT - ipv4::HEADER_LEN)
        };
        self.buf.get_mut(from..end).unwrap_or_default()
    }

    /// Where the payload of a UDP datagram is to be put.
    pub fn payload(&mut self, ipv6: bool) -> &mut [u8] {
        self.room(TRANSPORT + HEADER, ipv6)
    }

    /// Where an echo request is to be put, from its ICMP header on.
    pub fn message(&mut self, ipv6: bool) -> &mut [u8] {
        self.room(TRANSPORT, ipv6)
    }

    /// The quote of a UDP datagram of whose payload `len` bytes are in [`Self::payload`].
    pub fn finish_udp(&mut self, header: &Header, len: usize) -> &[u8] {
        let total = len
            .min(self.payload(header.src.is_ipv6()).len())
            .saturating_add(HEADER);
        let repr = udp::Repr {
            src_port: header.src.port,
            dst_port: header.dst.port,
            len: u16::try_from(total).unwrap_or(u16::MAX),
        };
        if let Some(room) = self.buf.get_mut(TRANSPORT..) {
            let _ = repr.emit(room);
        }
        self.finish(header, PROTOCOL_UDP, total)
    }

    /// The quote of an echo request of which `len` bytes are in [`Self::message`]; the identifier becomes the guest's.
    pub fn finish_echo(&mut self, header: &Header, len: usize) -> &[u8] {
        let ipv6 = header.src.is_ipv6();
        let len = len.min(self.message(ipv6).len());
        if let Some([_, _, c0, c1, i0, i1]) = self.buf.get_mut(TRANSPORT..TRANSPORT + 6) {
            let [old, sum] = [[*i0, *i1], [*c0, *c1]].map(u16::from_be_bytes);
            [*c0, *c1] = checksum::update(sum, old, header.src.port).to_be_bytes();
            [*i0, *i1] = header.src.port.to_be_bytes();
        }
        self.finish(
            header,
            if ipv6 { PROTOCOL_ICMPV6 } else { PROTOCOL_ICMP },
            len,
        )
    }

    /// Write the IP header in front of `len` bytes.
    fn finish(&mut self, header: &Header, protocol: u8, len: usize) -> &[u8] {
        let start = match (header.src.ip, header.dst.ip) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let start = TRANSPORT - ipv4::HEADER_LEN;
                if let Some(room) = self.buf.get_mut(start..) {
                    let _ = ipv4::Repr::new(src, dst, protocol, len).emit(room);
                }
                start
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let _ = ipv6::Repr::new(src, dst, protocol, len).emit(&mut self.buf);
                0
            }
            // A flow never has two families.
            _ => return &[],
        };
        self.buf
            .get(start..TRANSPORT.saturating_add(len))
            .unwrap_or_default()
    }
}

impl Default for Quote {
    fn default() -> Self {
        Self::new()
    }
}
