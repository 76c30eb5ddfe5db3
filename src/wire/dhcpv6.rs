//! DHCPv6 messages between client and server (RFC 8415), options nested in options.
//!
//! Unlike DHCP for IPv4, option lengths here leave no room for doubt: a message whose options do not
//! exactly fill it is malformed, and [`Message::parse`] says so before anybody looks at one of them. The
//! options inside an IA are checked when they are asked for.
//!
//! [`Writer`] appends to a caller's buffer. An option that does not fit is not begun, or is taken back
//! whole: a reply is never longer than its buffer and never ends inside an option.

use std::net::Ipv6Addr;

use crate::stats::Drop;

/// Port servers listen on.
pub const SERVER_PORT: u16 = 547;
/// Port clients listen on.
pub const CLIENT_PORT: u16 = 546;
/// All relay agents and servers on the link.
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Message type and transaction, in bytes.
pub const HEADER_LEN: usize = 4;
/// Code and length in front of each option, in bytes.
pub const OPTION_HEADER_LEN: usize = 4;
/// Longest DUID, type code included, in bytes (RFC 8415 11.1).
pub const MAX_DUID_LEN: usize = 130;
/// A lifetime without end.
pub const INFINITY: u32 = u32::MAX;

/// Message types (RFC 8415 7.3).
pub mod message {
    /// Who is there?
    pub const SOLICIT: u8 = 1;
    /// This is what you could have.
    pub const ADVERTISE: u8 = 2;
    /// I take this.
    pub const REQUEST: u8 = 3;
    /// Is this address still right for this link?
    pub const CONFIRM: u8 = 4;
    /// May I keep this, server that gave it?
    pub const RENEW: u8 = 5;
    /// May I keep this, anybody?
    pub const REBIND: u8 = 6;
    /// What a server answers all but a Solicit with.
    pub const REPLY: u8 = 7;
    /// I am done with it.
    pub const RELEASE: u8 = 8;
    /// The address is in use by somebody else.
    pub const DECLINE: u8 = 9;
    /// No address, just tell me the rest.
    pub const INFORMATION_REQUEST: u8 = 11;
}

/// Option codes (RFC 8415 21 unless noted).
pub mod option {
    /// Client DUID.
    pub const CLIENT_ID: u16 = 1;
    /// Server DUID.
    pub const SERVER_ID: u16 = 2;
    /// Identity association: addresses.
    pub const IA_NA: u16 = 3;
    /// Identity association: temporary addresses.
    pub const IA_TA: u16 = 4;
    /// One address of an IA.
    pub const IA_ADDR: u16 = 5;
    /// Codes the client wants.
    pub const OPTION_REQUEST: u16 = 6;
    /// How it went.
    pub const STATUS_CODE: u16 = 13;
    /// Two messages instead of four.
    pub const RAPID_COMMIT: u16 = 14;
    /// Resolvers (RFC 3646).
    pub const DNS_SERVERS: u16 = 23;
    /// Search list (RFC 3646).
    pub const DOMAIN_LIST: u16 = 24;
    /// Identity association: prefixes.
    pub const IA_PD: u16 = 25;
    /// Fully qualified domain name (RFC 4704).
    pub const CLIENT_FQDN: u16 = 39;
}

/// Status codes (RFC 8415 21.13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// As asked.
    Success,
    /// There is no address to give.
    NoAddrsAvail,
    /// The server does not know this IA.
    NoBinding,
    /// The address does not belong on this link.
    NotOnLink,
    /// There is no prefix to give.
    NoPrefixAvail,
}

impl Status {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Success => 0,
            Self::NoAddrsAvail => 2,
            Self::NoBinding => 3,
            Self::NotOnLink => 4,
            Self::NoPrefixAvail => 6,
        }
    }
}

/// A message between client and server.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// One of [`message`], or something else.
    pub message_type: u8,
    /// Transaction, opaque.
    pub transaction: [u8; 3],
    /// Its options; they fill the message exactly.
    pub options: Options<'a>,
}

impl<'a> Message<'a> {
    /// Read a message.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when it, or one of its options, is shorter than it says.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Drop> {
        let (&[message_type, a, b, c], rest) = bytes
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(Drop::Truncated)?;
        Ok(Self {
            message_type,
            transaction: [a, b, c],
            options: Options::parse(rest)?,
        })
    }
}

/// A sequence of options, in order. Iterating yields code and value.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// Check that the options in `bytes` fill it exactly.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the last one is cut short.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Drop> {
        let mut walk = Self(bytes);
        while walk.next().is_some() {}
        if walk.0.is_empty() {
            Ok(Self(bytes))
        } else {
            Err(Drop::Truncated)
        }
    }

    /// Value of the first option with this code.
    #[must_use]
    pub fn get(self, code: u16) -> Option<&'a [u8]> {
        { self }.find_map(|(c, value)| (c == code).then_some(value))
    }

    /// Values of all options with this code.
    pub fn all(self, code: u16) -> impl Iterator<Item = &'a [u8]> {
        self.filter_map(move |(c, value)| (c == code).then_some(value))
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    /// The next option; `None` at the end and at one that is cut short (which stays unread).
    fn next(&mut self) -> Option<Self::Item> {
        let (&[c, d, l, m], rest) = self.0.split_first_chunk::<OPTION_HEADER_LEN>()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([l, m])))?;
        self.0 = rest;
        Some((u16::from_be_bytes([c, d]), value))
    }
}

/// Value of an IA_NA, IA_TA or IA_PD option.
#[derive(Clone, Copy, Debug)]
pub struct IdentityAssociation<'a> {
    /// The client's name for it, opaque.
    pub id: [u8; 4],
    /// Addresses and status.
    pub options: Options<'a>,
}

impl<'a> IdentityAssociation<'a> {
    /// Read the value of an option with this `code`.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when it is too short, [`Drop::Unsupported`] when `code` is not that of an IA.
    pub fn parse(code: u16, value: &'a [u8]) -> Result<Self, Drop> {
        let timers = match code {
            option::IA_NA | option::IA_PD => 8,
            option::IA_TA => 0,
            _ => return Err(Drop::Unsupported),
        };
        let (id, rest) = value.split_first_chunk::<4>().ok_or(Drop::Truncated)?;
        let (_, options) = rest.split_at_checked(timers).ok_or(Drop::Truncated)?;
        Ok(Self {
            id: *id,
            options: Options::parse(options)?,
        })
    }

    /// The addresses the client names; one too short for an address is left out.
    pub fn addresses(self) -> impl Iterator<Item = Ipv6Addr> + 'a {
        self.options
            .all(option::IA_ADDR)
            .filter_map(|value| Some(Ipv6Addr::from(*value.first_chunk::<16>()?)))
    }
}

/// Appends a message to a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// Begin a message in `out`; `None` when not even the header fits.
    #[must_use]
    pub fn new(out: &'a mut [u8], message_type: u8, transaction: [u8; 3]) -> Option<Self> {
        let [a, b, c] = transaction;
        *out.first_chunk_mut::<HEADER_LEN>()? = [message_type, a, b, c];
        Some(Self {
            out,
            len: HEADER_LEN,
        })
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Bytes that can still be written.
    #[must_use]
    pub fn room(&self) -> usize {
        self.out.len().saturating_sub(self.len)
    }

    /// Never: there is always the header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Append one option made of `parts`; `None`, and nothing written, when it does not fit.
    pub fn option(&mut self, code: u16, parts: &[&[u8]]) -> Option<()> {
        self.nested(code, |w| parts.iter().try_for_each(|part| w.bytes(part)))
    }

    /// Append one option whose value `body` writes; when `body` says `None` or the value outgrows the
    /// buffer or 65535 bytes, the option is taken back and `None` returned.
    pub fn nested(&mut self, code: u16, body: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        let start = self.len;
        let done = self
            .bytes(&[0; OPTION_HEADER_LEN])
            .and_then(|()| body(self))
            .and_then(|()| {
                let value_len = self
                    .len
                    .checked_sub(start)?
                    .checked_sub(OPTION_HEADER_LEN)?;
                let [l, m] = u16::try_from(value_len).ok()?.to_be_bytes();
                let [c, d] = code.to_be_bytes();
                *self.out.get_mut(start..)?.first_chunk_mut()? = [c, d, l, m];
                Some(())
            });
        if done.is_none() {
            self.len = start;
        }
        done
    }

    /// Append bytes to the value of the option being written; `None`, and nothing written, when they do
    /// not fit.
    pub fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.out.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// SOLICIT: client id (DUID-LL), IA_NA 01020304 naming 2001:db8::5, ORO 23 24 39, elapsed time 0.
    fn solicit() -> Vec<u8> {
        let mut m = vec![1, 0xaa, 0xbb, 0xcc];
        m.extend([0, 1, 0, 10, 0, 3, 0, 1, 2, 0xad, 0xb8, 0x46, 0x81, 0x7a]);
        m.extend([0, 3, 0, 40, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        m.extend([0, 5, 0, 24]);
        m.extend("2001:db8::5".parse::<Ipv6Addr>().unwrap().octets());
        m.extend([0; 8]);
        m.extend([0, 6, 0, 6, 0, 23, 0, 24, 0, 39, 0, 8, 0, 2, 0, 0]);
        m
    }

    #[test]
    fn reads_a_solicit() {
        let m = solicit();
        let s = Message::parse(&m).unwrap();
        assert_eq!(
            (s.message_type, s.transaction),
            (message::SOLICIT, [0xaa, 0xbb, 0xcc])
        );
        assert_eq!(s.options.map(|(c, _)| c).collect::<Vec<_>>(), [1, 3, 6, 8]);
        assert_eq!(s.options.get(8), Some(&[0, 0][..]));
        assert_eq!(s.options.get(9), None);
        let ia = IdentityAssociation::parse(option::IA_NA, s.options.get(option::IA_NA).unwrap())
            .unwrap();
        assert_eq!(ia.id, [1, 2, 3, 4]);
        assert_eq!(
            ia.addresses().collect::<Vec<_>>(),
            ["2001:db8::5".parse::<Ipv6Addr>().unwrap()]
        );
    }

    #[test]
    fn truncation_at_every_byte() {
        let m = solicit();
        let boundaries = [4, 18, 62, 72, 78];
        assert_eq!(m.len(), 78);
        for n in 0..=m.len() {
            assert_eq!(
                Message::parse(&m[..n]).is_ok(),
                boundaries.contains(&n),
                "{n}"
            );
        }
        let value = &m[22..62];
        for n in 0..=value.len() {
            let ia = IdentityAssociation::parse(option::IA_NA, &value[..n]);
            assert_eq!(ia.is_ok(), n == 12 || n == 40, "{n}");
        }
        // An IA_TA has no timers, an IA_ADDR may be too short for an address.
        let ia =
            IdentityAssociation::parse(option::IA_TA, &[9, 9, 9, 9, 0, 5, 0, 2, 1, 1]).unwrap();
        assert_eq!(ia.addresses().count(), 0);
        assert_eq!(
            IdentityAssociation::parse(option::CLIENT_ID, value).unwrap_err(),
            Drop::Unsupported
        );
    }

    #[test]
    fn writer_takes_back_what_does_not_fit() {
        let mut buf = [0xaa; 20];
        let mut w = Writer::new(&mut buf, message::REPLY, [1, 2, 3]).unwrap();
        assert!(w.option(1, &[&[7, 8], &[9]]).is_some());
        assert!(w.nested(3, |w| w.option(5, &[&[0; 9]])).is_none());
        assert_eq!(w.len(), 11);
        assert!(w.nested(3, |w| w.bytes(&[4]).and(None)).is_none());
        assert!(w.nested(3, |w| w.option(5, &[&[6]])).is_some());
        let n = w.len();
        assert_eq!(
            &buf[..n],
            [7, 1, 2, 3, 0, 1, 0, 3, 7, 8, 9, 0, 3, 0, 5, 0, 5, 0, 1, 6]
        );
        assert!(Writer::new(&mut [0; 3], 7, [0; 3]).is_none());
        assert!(
            Writer::new(&mut vec![0; 80_000], 7, [0; 3])
                .unwrap()
                .option(1, &[&[0; 65_536]])
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn parse_undoes_write(options in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..50)), 0..8)) {
            let mut buf = [0; 600];
            let mut w = Writer::new(&mut buf, 7, [1, 2, 3]).unwrap();
            for (code, value) in &options {
                prop_assert!(w.option(*code, &[value]).is_some());
            }
            let n = w.len();
            let back = Message::parse(&buf[..n]).unwrap();
            prop_assert_eq!((back.message_type, back.transaction), (7, [1, 2, 3]));
            let read: Vec<_> = back.options.map(|(c, v)| (c, v.to_vec())).collect();
            prop_assert_eq!(read, options);
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(m) = Message::parse(&bytes) {
                prop_assert_eq!(m.options.map(|(_, v)| v.len() + 4).sum::<usize>() + 4, bytes.len());
            }
            for code in [option::IA_NA, option::IA_TA, option::IA_PD] {
                if let Ok(ia) = IdentityAssociation::parse(code, &bytes) {
                    let _ = ia.addresses().count();
                }
            }
        }
    }
}
