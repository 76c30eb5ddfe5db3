//! DHCP for IPv4, and BOOTP underneath it (RFC 951, 1542, 2131, 2132).
//!
//! A message is a fixed header of 236 bytes, a magic cookie, and options up to the end. [`Header`] is the
//! fixed part; [`Options`] walks the rest without copying and stops, rather than fails, at the first
//! option that claims more than there is: what came before it is still what the client said.
//! [`OptionWriter`] appends to a caller's buffer and refuses an option it cannot write whole, so a reply
//! is never cut in the middle of one.
//!
//! The server name and boot file fields carry nothing here: they are ignored when read (option overload
//! is a way for servers, not clients, to save space) and zero when written.

use std::net::Ipv4Addr;

use crate::stats::Drop;

/// Port clients send to.
pub const SERVER_PORT: u16 = 67;
/// Port clients listen on.
pub const CLIENT_PORT: u16 = 68;
/// Fixed header without the cookie, in bytes.
pub const HEADER_LEN: usize = 236;
/// Fixed header and cookie, in bytes: where options start.
pub const OPTIONS_OFFSET: usize = 240;
/// Shortest message every BOOTP relay and client takes, in bytes (RFC 1542 2.1).
pub const MIN_LEN: usize = 300;
/// IP datagram every client must be able to receive, in bytes (RFC 2131 2).
pub const MIN_MAX_DATAGRAM: u16 = 576;
/// Client to server.
pub const OP_REQUEST: u8 = 1;
/// Server to client.
pub const OP_REPLY: u8 = 2;
/// `flags`: the client cannot receive unicast before it is configured.
pub const FLAG_BROADCAST: u16 = 0x8000;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Server name and boot file, in bytes.
const BOOT_LEN: usize = 64 + 128;
const PAD: u8 = 0;
const END: u8 = 255;

/// Option codes in use (RFC 2132 unless noted).
pub mod option {
    /// Subnet mask.
    pub const SUBNET_MASK: u8 = 1;
    /// Default routers.
    pub const ROUTER: u8 = 3;
    /// Resolvers.
    pub const DNS: u8 = 6;
    /// Host name.
    pub const HOST_NAME: u8 = 12;
    /// Interface MTU.
    pub const MTU: u8 = 26;
    /// Lease time in seconds; all ones: for ever.
    pub const LEASE_TIME: u8 = 51;
    /// Message type: what makes a BOOTP message a DHCP one.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Which server.
    pub const SERVER_ID: u8 = 54;
    /// Codes the client wants, most wanted first.
    pub const PARAMETER_REQUEST: u8 = 55;
    /// Largest datagram the client takes.
    pub const MAX_SIZE: u8 = 57;
    /// Two messages instead of four (RFC 4039).
    pub const RAPID_COMMIT: u8 = 80;
    /// Fully qualified domain name (RFC 4702).
    pub const FQDN: u8 = 81;
    /// Domain search list (RFC 3397).
    pub const DOMAIN_SEARCH: u8 = 119;
    /// Classless static routes (RFC 3442).
    pub const CLASSLESS_ROUTES: u8 = 121;
}

/// Option 53, as far as a server meets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageType {
    /// Who is there?
    Discover,
    /// This is what you could have.
    Offer,
    /// I take (or keep) this.
    Request,
    /// The address is in use by somebody else.
    Decline,
    /// It is yours.
    Ack,
    /// You cannot have that.
    Nak,
    /// I am done with it.
    Release,
    /// I have an address; tell me the rest.
    Inform,
}

impl MessageType {
    /// From the byte on the wire.
    #[must_use]
    pub const fn from_byte(b: u8) -> Option<Self> {
        Some(match b {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
        }
    }
}

/// The fixed part of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// [`OP_REQUEST`] or [`OP_REPLY`].
    pub op: u8,
    /// ARP hardware type of the client.
    pub hardware_type: u8,
    /// Bytes of `client_hardware` in use, 0..=16.
    pub hardware_len: u8,
    /// Relay hops so far.
    pub hops: u8,
    /// Transaction, opaque.
    pub transaction: [u8; 4],
    /// Seconds since the client began.
    pub seconds: u16,
    /// [`FLAG_BROADCAST`], rest reserved.
    pub flags: u16,
    /// The address the client has and answers ARP for; or unspecified.
    pub client: Ipv4Addr,
    /// "Your" address: what the server gives.
    pub your: Ipv4Addr,
    /// Next server in a boot; unspecified here.
    pub next_server: Ipv4Addr,
    /// Relay agent; or unspecified.
    pub relay: Ipv4Addr,
    /// Client hardware address, zero-padded.
    pub client_hardware: [u8; 16],
}

impl Header {
    /// Read a message: the fixed part, and a walk over its options (empty when there is no magic cookie,
    /// which BOOTP clients older than RFC 1048 do not send).
    ///
    /// # Errors
    /// [`Drop::Truncated`] when shorter than the fixed part, [`Drop::Malformed`] when the hardware
    /// address is longer than its field.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Options<'_>), Drop> {
        let (header, rest) = Self::read(bytes).ok_or(Drop::Truncated)?;
        if usize::from(header.hardware_len) > header.client_hardware.len() {
            return Err(Drop::Malformed);
        }
        Ok((
            header,
            Options(rest.strip_prefix(&COOKIE).unwrap_or_default()),
        ))
    }

    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (&[op, hardware_type, hardware_len, hops], rest) = bytes.split_first_chunk()?;
        let (&transaction, rest) = rest.split_first_chunk()?;
        let (&seconds, rest) = rest.split_first_chunk()?;
        let (&flags, rest) = rest.split_first_chunk()?;
        let (client, rest) = rest.split_first_chunk::<4>()?;
        let (your, rest) = rest.split_first_chunk::<4>()?;
        let (next_server, rest) = rest.split_first_chunk::<4>()?;
        let (relay, rest) = rest.split_first_chunk::<4>()?;
        let (&client_hardware, rest) = rest.split_first_chunk()?;
        let (_, rest) = rest.split_at_checked(BOOT_LEN)?;
        let header = Self {
            op,
            hardware_type,
            hardware_len,
            hops,
            transaction,
            seconds: u16::from_be_bytes(seconds),
            flags: u16::from_be_bytes(flags),
            client: (*client).into(),
            your: (*your).into(),
            next_server: (*next_server).into(),
            relay: (*relay).into(),
            client_hardware,
        };
        Some((header, rest))
    }

    /// Write the fixed part and the cookie; options go to `out[OPTIONS_OFFSET..]`.
    /// Returns [`OPTIONS_OFFSET`], or `None` when `out` is shorter than that.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let mut rest = out.get_mut(..OPTIONS_OFFSET)?;
        let mut put = |bytes: &[u8]| {
            let (to, after) = std::mem::take(&mut rest).split_at_mut_checked(bytes.len())?;
            to.copy_from_slice(bytes);
            rest = after;
            Some(())
        };
        put(&[self.op, self.hardware_type, self.hardware_len, self.hops])?;
        put(&self.transaction)?;
        put(&self.seconds.to_be_bytes())?;
        put(&self.flags.to_be_bytes())?;
        for address in [self.client, self.your, self.next_server, self.relay] {
            put(&address.octets())?;
        }
        put(&self.client_hardware)?;
        put(&[0; BOOT_LEN])?;
        put(&COOKIE)?;
        Some(OPTIONS_OFFSET)
    }
}

/// The options of a message, in order, padding left out, up to the end mark or the first one cut short.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// The options in `bytes`, which start behind the cookie.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Value of the first option with this code.
    #[must_use]
    pub fn get(self, code: u8) -> Option<&'a [u8]> {
        { self }.find_map(|(c, value)| (c == code).then_some(value))
    }

    /// Option 53, if it is there and known.
    #[must_use]
    pub fn message_type(self) -> Option<MessageType> {
        match self.get(option::MESSAGE_TYPE)? {
            [b] => MessageType::from_byte(*b),
            _ => None,
        }
    }

    /// Option 57: the largest IP datagram the client takes, in bytes; never below [`MIN_MAX_DATAGRAM`].
    #[must_use]
    pub fn max_datagram(self) -> u16 {
        match self.get(option::MAX_SIZE) {
            Some([hi, lo]) => u16::from_be_bytes([*hi, *lo]).max(MIN_MAX_DATAGRAM),
            _ => MIN_MAX_DATAGRAM,
        }
    }

    /// Option 55, all of its instances one after the other (RFC 3396).
    pub fn parameter_request(self) -> impl Iterator<Item = u8> + 'a {
        self.filter(|(code, _)| *code == option::PARAMETER_REQUEST)
            .flat_map(|(_, value)| value.iter().copied())
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&code, rest) = self.0.split_first()?;
            match code {
                PAD => self.0 = rest,
                END => {
                    self.0 = &[];
                    return None;
                }
                _ => {
                    let (&len, rest) = rest.split_first()?;
                    let Some((value, rest)) = rest.split_at_checked(usize::from(len)) else {
                        self.0 = &[];
                        return None;
                    };
                    self.0 = rest;
                    return Some((code, value));
                }
            }
        }
    }
}

/// Appends options to a buffer.
#[derive(Debug)]
pub struct OptionWriter<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl<'a> OptionWriter<'a> {
    /// Write to `out`, from its start, and never past its end.
    #[must_use]
    pub fn new(out: &'a mut [u8]) -> Self {
        Self { out, len: 0 }
    }

    /// Append one option; `false`, and nothing written, when the value is longer than 255 bytes or there
    /// would be no room left for the end mark.
    pub fn push(&mut self, code: u8, value: &[u8]) -> bool {
        let Ok(value_len) = u8::try_from(value.len()) else {
            return false;
        };
        let end = self.len.saturating_add(value.len()).saturating_add(2);
        let Some([c, l, room @ ..]) = self.out.get_mut(self.len..end) else {
            return false;
        };
        (*c, *l) = (code, value_len);
        room.copy_from_slice(value);
        if end < self.out.len() {
            self.len = end;
            return true;
        }
        false
    }

    /// Append the end mark, then zeroes up to `min_len` bytes (or the end of the buffer); the length of
    /// the options area. `None` when there is no room.
    #[must_use]
    pub fn finish(self, min_len: usize) -> Option<usize> {
        let (mark, rest) = self.out.get_mut(self.len..)?.split_first_mut()?;
        *mark = END;
        let used = self.len.saturating_add(1);
        let padding = min_len.saturating_sub(used).min(rest.len());
        rest.get_mut(..padding)?.fill(PAD);
        Some(used.saturating_add(padding))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A DISCOVER as busybox's udhcpc sends it (header fields, then options 53, 61, 57, 55, end).
    fn discover() -> Vec<u8> {
        let mut m = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 7, 0x80, 0];
        m.extend([0; 16]);
        m.extend([2, 0xad, 0xb8, 0x46, 0x81, 0x7a]);
        m.extend([0; 10 + 64 + 128]);
        m.extend([
            99, 130, 83, 99, 53, 1, 1, 0, 0, 61, 7, 1, 2, 0xad, 0xb8, 0x46, 0x81, 0x7a, 57, 2, 2,
            0x40,
        ]);
        m.extend([55, 4, 1, 3, 6, 12, 55, 2, 119, 121, 255, 53, 1, 3]);
        m
    }

    #[test]
    fn reads_a_discover() {
        let m = discover();
        let (h, o) = Header::parse(&m).unwrap();
        assert_eq!(h.op, OP_REQUEST);
        assert_eq!(h.transaction, [0xde, 0xad, 0xbe, 0xef]);
        assert_eq!((h.seconds, h.flags), (7, FLAG_BROADCAST));
        assert_eq!(&h.client_hardware[..6], &[2, 0xad, 0xb8, 0x46, 0x81, 0x7a]);
        assert_eq!(o.message_type(), Some(MessageType::Discover));
        assert_eq!(o.max_datagram(), 576);
        assert_eq!(
            o.parameter_request().collect::<Vec<_>>(),
            [1, 3, 6, 12, 119, 121]
        );
        // Nothing is read behind the end mark.
        assert_eq!(o.map(|(c, _)| c).collect::<Vec<_>>(), [53, 61, 57, 55, 55]);
    }

    #[test]
    fn truncation_at_every_byte() {
        let m = discover();
        for n in 0..m.len() {
            match Header::parse(&m[..n]) {
                Err(e) => assert!(n < HEADER_LEN && e == Drop::Truncated, "{n}"),
                Ok((_, o)) => {
                    assert!(n >= HEADER_LEN, "{n}");
                    assert!(o.count() <= 5);
                    assert_eq!(o.message_type().is_some(), n >= OPTIONS_OFFSET + 3, "{n}");
                }
            }
        }
    }

    #[test]
    fn no_cookie_no_options() {
        let mut m = discover();
        m[238] ^= 1;
        let (_, mut o) = Header::parse(&m).unwrap();
        assert_eq!(o.next(), None);
    }

    #[test]
    fn hardware_length_beyond_the_field() {
        let mut m = discover();
        m[2] = 17;
        assert_eq!(Header::parse(&m).unwrap_err(), Drop::Malformed);
        m[2] = 16;
        assert!(Header::parse(&m).is_ok());
    }

    #[test]
    fn odd_lengths_of_known_options() {
        for bytes in [
            &[53, 0, 255][..],
            &[53, 2, 1, 1],
            &[53, 1, 0],
            &[53, 1, 99],
            &[53, 1],
            &[53],
        ] {
            assert_eq!(Options::new(bytes).message_type(), None, "{bytes:?}");
        }
        assert_eq!(Options::new(&[57, 2, 0, 100]).max_datagram(), 576);
        assert_eq!(Options::new(&[57, 2, 5, 220]).max_datagram(), 1500);
        assert_eq!(Options::new(&[57, 1, 255]).max_datagram(), 576);
    }

    #[test]
    fn writer_never_cuts_an_option_and_keeps_room_for_the_end() {
        let mut buf = [0xaa; 8];
        let mut w = OptionWriter::new(&mut buf);
        assert!(w.push(1, &[1, 2, 3]));
        assert!(
            !w.push(2, &[9]),
            "that would leave no room for the end mark"
        );
        assert!(w.push(3, &[]));
        assert!(!w.push(3, &[]));
        assert_eq!(w.finish(0), Some(8));
        assert_eq!(buf, [1, 3, 1, 2, 3, 3, 0, 255]);
        assert!(!OptionWriter::new(&mut [0; 600]).push(1, &[0; 256]));
        assert_eq!(OptionWriter::new(&mut []).finish(0), None);
        let mut buf = [0xaa; 6];
        assert_eq!(OptionWriter::new(&mut buf).finish(4), Some(4));
        assert_eq!(buf, [255, 0, 0, 0, 0xaa, 0xaa]);
    }

    prop_compose! {
        fn headers()(
            b in any::<[u8; 4]>(), transaction in any::<[u8; 4]>(), s in any::<(u16, u16)>(),
            a in any::<[u32; 4]>(), client_hardware in any::<[u8; 16]>(),
        ) -> Header {
            Header {
                op: b[0], hardware_type: b[1], hardware_len: b[2] % 17, hops: b[3], transaction, seconds: s.0, flags: s.1,
                client: a[0].into(), your: a[1].into(), next_server: a[2].into(), relay: a[3].into(), client_hardware,
            }
        }
    }

    proptest! {
        #[test]
        fn parse_undoes_emit(h in headers(), options in prop::collection::vec((1u8..255, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut buf = [0xaa; 1000];
            prop_assert_eq!(h.emit(&mut buf), Some(OPTIONS_OFFSET));
            let mut w = OptionWriter::new(&mut buf[OPTIONS_OFFSET..]);
            for (code, value) in &options {
                prop_assert!(w.push(*code, value));
            }
            let n = OPTIONS_OFFSET + w.finish(60).unwrap();
            prop_assert!(n >= MIN_LEN);
            let (back, read) = Header::parse(&buf[..n]).unwrap();
            prop_assert_eq!(back, h);
            let read: Vec<_> = read.map(|(c, v)| (c, v.to_vec())).collect();
            prop_assert_eq!(read, options);
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok((_, o)) = Header::parse(&bytes) {
                let _ = (o.message_type(), o.max_datagram(), o.parameter_request().count());
            }
            let o = Options::new(&bytes);
            prop_assert!(o.map(|(_, v)| v.len() + 2).sum::<usize>() <= bytes.len());
        }

        #[test]
        fn emit_into_any_length(h in headers(), n in 0usize..300) {
            let mut buf = vec![0; n];
            prop_assert_eq!(h.emit(&mut buf).is_some(), n >= OPTIONS_OFFSET);
        }
    }
}
