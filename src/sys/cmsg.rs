//! Control messages and socket addresses as bytes: what sendmsg(2) and recvmsg(2) carry beside the payload.
//!
//! The layout (cmsg(3): a header of length, level and type, then data, everything aligned to the size of a
//! `size_t`) is simple enough to be read and written as byte slices, so nothing here is unsafe and a short or odd
//! answer of the kernel can only lead to a message being ignored.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::c_int;

const WORD: usize = size_of::<usize>();
/// `struct cmsghdr`: size_t, int, int; a multiple of the alignment on every Linux ABI.
const HEADER: usize = WORD + 8;

/// A control buffer of `N` bytes with the alignment the kernel asks for.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Control<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Control<N> {
    /// No messages.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// Add a message. False, and nothing added, if it does not fit.
    pub fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) -> bool {
        let total = HEADER + data.len();
        let end = self.len + total.next_multiple_of(WORD);
        let Some(room) = self.bytes.get_mut(self.len..end) else {
            return false;
        };
        let (header, body) = room.split_at_mut(HEADER);
        header[..WORD].copy_from_slice(&total.to_ne_bytes());
        header[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        header[WORD + 4..].copy_from_slice(&kind.to_ne_bytes());
        body[..data.len()].copy_from_slice(data);
        self.len = end;
        true
    }

    /// Bytes in use.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// No messages?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The messages that have been added.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The whole buffer, for the kernel to fill.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The messages in the first `len` bytes, which the kernel has filled.
    pub fn received(&self, len: usize) -> Messages<'_> {
        Messages(self.bytes.get(..len.min(N)).unwrap_or_default())
    }
}

impl<const N: usize> Default for Control<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// One control message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// Protocol level: SOL_SOCKET, SOL_UDP, IPPROTO_IP …
    pub level: c_int,
    /// Type within the level.
    pub kind: c_int,
    /// The data.
    pub data: &'a [u8],
}

impl Message<'_> {
    /// The first 32 bits of the data as an integer in native order; a single byte counts as one, too (IP_TOS).
    #[must_use]
    pub fn int(&self) -> Option<c_int> {
        match self.data {
            [one] => Some(c_int::from(*one)),
            data => Some(c_int::from_ne_bytes(*data.first_chunk()?)),
        }
    }
}

/// Iterator over received control messages. Stops at the first that is not well-formed.
#[derive(Clone, Debug)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (len, rest) = self.0.split_first_chunk::<WORD>()?;
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let total = usize::from_ne_bytes(*len);
        let data = rest.get(..total.checked_sub(HEADER)?)?;
        let next = total.checked_next_multiple_of(WORD)?;
        self.0 = self.0.get(next..).unwrap_or_default();
        Some(Message {
            level: c_int::from_ne_bytes(*level),
            kind: c_int::from_ne_bytes(*kind),
            data,
        })
    }
}

/// Large enough for a socket address of either family.
pub const ADDR_LEN: usize = size_of::<libc::sockaddr_in6>();

/// A `sockaddr_in` or `sockaddr_in6` in the kernel's layout; `None` for anything else or too short. What a dual-stack
/// socket shows as an IPv4-mapped address (RFC 4291 section 2.5.5.2) is the IPv4 address.
#[must_use]
pub fn parse_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match c_int::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let ip: [u8; 4] = *rest.first_chunk()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let (_flow, rest) = rest.split_first_chunk::<4>()?;
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let scope = u32::from_ne_bytes(*rest.first_chunk()?);
            let ip = Ipv6Addr::from(*ip);
            Some(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddrV4::new(v4, port).into(),
                None => SocketAddrV6::new(ip, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

/// `addr` in the kernel's layout, and how many bytes of it count.
#[must_use]
pub fn emit_sockaddr(addr: SocketAddr) -> ([u8; ADDR_LEN], usize) {
    let mut out = [0; ADDR_LEN];
    out[2..4].copy_from_slice(&addr.port().to_be_bytes());
    let (family, len) = match addr {
        SocketAddr::V4(a) => {
            out[4..8].copy_from_slice(&a.ip().octets());
            (libc::AF_INET, size_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(a) => {
            out[8..24].copy_from_slice(&a.ip().octets());
            out[24..28].copy_from_slice(&a.scope_id().to_ne_bytes());
            (libc::AF_INET6, ADDR_LEN)
        }
    };
    // AF_INET and AF_INET6 are 2 and 10.
    out[..2].copy_from_slice(&u16::try_from(family).unwrap_or_default().to_ne_bytes());
    (out, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut c = Control::<128>::new();
        assert!(c.push(17, 103, &1400_u16.to_ne_bytes()));
        assert!(c.push(0, 2, &7_i32.to_ne_bytes()));
        assert!(c.push(41, 67, &[9]));
        let all: Vec<_> = c.received(c.len()).collect();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].level, all[0].kind, all[0].data.len()), (17, 103, 2));
        assert_eq!(all[1].int(), Some(7));
        assert_eq!(all[2].int(), Some(9));
        let mut small = Control::<16>::new();
        assert!(!small.push(0, 0, &[0; 4]));
        assert!(small.is_empty());
    }

    #[test]
    fn every_truncation_ends_quietly() {
        let mut c = Control::<64>::new();
        assert!(c.push(0, 2, &[1; 4]));
        assert!(c.push(0, 3, &[1; 4]));
        for n in 0..c.len() - 4 {
            assert!(c.received(n).count() < 2, "{n}");
        }
        let huge = usize::MAX.to_ne_bytes();
        let mut bytes = [0; 32];
        bytes[..WORD].copy_from_slice(&huge);
        assert_eq!(Messages(&bytes).count(), 0);
        bytes[..WORD].fill(0);
        assert_eq!(Messages(&bytes).count(), 0);
    }

    #[test]
    fn addresses_round_trip() {
        for text in ["192.0.2.1:53", "[2001:db8::1]:65535", "[fe80::1%3]:7"] {
            let addr: SocketAddr = text.parse().unwrap();
            let (raw, len) = emit_sockaddr(addr);
            assert_eq!(parse_sockaddr(&raw[..len]), Some(addr));
            for n in 0..len.min(8) {
                assert_eq!(parse_sockaddr(&raw[..n]), None);
            }
        }
        assert_eq!(parse_sockaddr(&[0; ADDR_LEN]), None);
        let (mapped, len) = emit_sockaddr("[::ffff:192.0.2.1]:53".parse().unwrap());
        let plain = "192.0.2.1:53".parse().unwrap();
        assert_eq!(parse_sockaddr(&mapped[..len]), Some(plain));
    }
}
