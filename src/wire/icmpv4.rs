//! ICMP (RFC 792): echo messages, and the errors we send the guest on behalf of the network.
//!
//! An error quotes the packet it is about, so that the sender finds the socket: as much as fits in 576
//! bytes (RFC 1812 section 4.3.2.3). It is never about another error, a later fragment, or anything to
//! or from a group of hosts (RFC 1122 section 3.2.2): [`error`] returns `None` for those.

use std::net::Ipv4Addr;

use super::{PROTOCOL_ICMP, checksum, ipv4, put_u16, take};
use crate::stats::Drop;

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is, from the start of the header.
pub const CHECKSUM_OFFSET: usize = 2;
/// No error is longer than this, IPv4 header included, in bytes.
pub const MAX_ERROR_LEN: usize = 576;

/// Type: echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Type: destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Type: source quench (deprecated, RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Type: redirect.
pub const REDIRECT: u8 = 5;
/// Type: echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Type: time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Type: parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// Codes of [`UNREACHABLE`]. The others (RFC 1122, RFC 1812: up to 15) need no name here.
pub mod unreachable {
    /// No route to the network.
    pub const NETWORK: u8 = 0;
    /// The host does not answer.
    pub const HOST: u8 = 1;
    /// The host does not know the protocol.
    pub const PROTOCOL: u8 = 2;
    /// Nobody listens on the port.
    pub const PORT: u8 = 3;
    /// Too large for a link, and not to be fragmented.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Forbidden by an administrator.
    pub const PROHIBITED: u8 = 13;
    /// The highest code assigned.
    pub const LAST: u8 = 15;
}

/// The variable part of an echo request or reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo<'a> {
    /// Identifier: which conversation.
    pub ident: u16,
    /// Sequence number in it.
    pub sequence: u16,
    /// Bytes to be returned.
    pub payload: &'a [u8],
}

/// An ICMP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// "Are you there?"
    EchoRequest(Echo<'a>),
    /// "I am."
    EchoReply(Echo<'a>),
    /// Anything else, among it errors.
    Other {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The second half of the header.
        rest: [u8; 4],
        /// What follows the header.
        payload: &'a [u8],
    },
}

impl<'a> Message<'a> {
    /// The message that fills `data`. Its checksum is not looked at.
    ///
    /// # Errors
    /// [`Drop::Truncated`] below 8 bytes.
    pub fn parse(data: &'a [u8]) -> Result<Self, Drop> {
        let ([kind, code, _, _, rest @ ..], payload) = take::<HEADER_LEN>(data)?;
        Ok(match (*kind, *code) {
            (ECHO_REQUEST, 0) => Self::EchoRequest(Echo::new(*rest, payload)),
            (ECHO_REPLY, 0) => Self::EchoReply(Echo::new(*rest, payload)),
            (kind, code) => Self::Other {
                kind,
                code,
                rest: *rest,
                payload,
            },
        })
    }

    /// Write the message, payload and checksum included, to the start of `out`; its length.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let (kind, code, rest, payload) = match self {
            Self::EchoRequest(echo) => (ECHO_REQUEST, 0, echo.rest(), echo.payload),
            Self::EchoReply(echo) => (ECHO_REPLY, 0, echo.rest(), echo.payload),
            Self::Other {
                kind,
                code,
                rest,
                payload,
            } => (*kind, *code, *rest, *payload),
        };
        let len = emit_parts(kind, code, rest, payload, out)?;
        fill_checksum(out.get_mut(..len)?)?;
        Some(len)
    }
}

impl<'a> Echo<'a> {
    /// From the second half of the header, and what follows.
    pub(crate) const fn new(rest: [u8; 4], payload: &'a [u8]) -> Self {
        let [i1, i0, s1, s0] = rest;
        Self {
            ident: u16::from_be_bytes([i1, i0]),
            sequence: u16::from_be_bytes([s1, s0]),
            payload,
        }
    }

    /// The second half of the header.
    pub(crate) const fn rest(&self) -> [u8; 4] {
        let ([i1, i0], [s1, s0]) = (self.ident.to_be_bytes(), self.sequence.to_be_bytes());
        [i1, i0, s1, s0]
    }
}

/// Write a header with zero checksum, and what follows it.
pub(crate) fn emit_parts(
    kind: u8,
    code: u8,
    rest: [u8; 4],
    payload: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let [r0, r1, r2, r3] = rest;
    let (header, body) = out.split_first_chunk_mut()?;
    *header = [kind, code, 0, 0, r0, r1, r2, r3];
    body.get_mut(..payload.len())?.copy_from_slice(payload);
    payload.len().checked_add(HEADER_LEN)
}

/// Compute and store the checksum of the message that fills `message`.
#[must_use]
pub fn fill_checksum(message: &mut [u8]) -> Option<()> {
    put_u16(message, CHECKSUM_OFFSET, 0)?;
    let checksum = checksum::sum(message).finish();
    put_u16(message, CHECKSUM_OFFSET, checksum)
}

/// What is wrong with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    kind: u8,
    code: u8,
    rest: [u8; 4],
}

impl Error {
    /// Time to live ran out on the way.
    pub const TIME_EXCEEDED: Self = Self {
        kind: TIME_EXCEEDED,
        code: 0,
        rest: [0; 4],
    };

    /// The destination cannot be reached; `code` is one of [`mod@unreachable`], 0..=15.
    #[must_use]
    pub const fn unreachable(code: u8) -> Self {
        Self {
            kind: UNREACHABLE,
            code,
            rest: [0; 4],
        }
    }

    /// The packet is larger than `mtu` bytes and not to be fragmented (RFC 1191).
    #[must_use]
    pub const fn fragmentation_needed(mtu: u16) -> Self {
        let [high, low] = mtu.to_be_bytes();
        Self {
            kind: UNREACHABLE,
            code: unreachable::FRAGMENTATION_NEEDED,
            rest: [0, 0, high, low],
        }
    }

    /// The byte at `pointer` of the packet makes no sense.
    #[must_use]
    pub const fn parameter_problem(pointer: u8) -> Self {
        Self {
            kind: PARAMETER_PROBLEM,
            code: 0,
            rest: [pointer, 0, 0, 0],
        }
    }

    /// An error that somebody else reported, as an error queue gives it (`ee_type`, `ee_code` and
    /// `ee_info` of linux/errqueue.h: the MTU for "fragmentation needed"); `None` if it is not one to
    /// be passed on.
    #[must_use]
    pub fn reported(kind: u8, code: u8, info: u32) -> Option<Self> {
        match (kind, code) {
            (UNREACHABLE, unreachable::FRAGMENTATION_NEEDED) => Some(Self::fragmentation_needed(
                u16::try_from(info).unwrap_or(u16::MAX),
            )),
            (UNREACHABLE, 0..=unreachable::LAST) => Some(Self::unreachable(code)),
            (TIME_EXCEEDED, 0..=1) => Some(Self {
                kind,
                code,
                rest: [0; 4],
            }),
            (PARAMETER_PROBLEM, 0..=2) => Some(Self {
                kind,
                code,
                rest: [0; 4],
            }),
            _ => None,
        }
    }

    /// Type and code.
    #[must_use]
    pub const fn kind_and_code(&self) -> (u8, u8) {
        (self.kind, self.code)
    }
}

/// May an error be sent about this packet?
fn may_be_answered(repr: &ipv4::Repr, payload: &[u8]) -> bool {
    let about_error = repr.protocol == PROTOCOL_ICMP
        && matches!(
            payload.first(),
            Some(&(UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM))
        );
    let single = |ip: Ipv4Addr| !ip.is_multicast() && !ip.is_broadcast() && !ip.is_unspecified();
    !about_error && repr.fragment_offset == 0 && single(repr.src) && single(repr.dst)
}

/// Write a complete IPv4 packet from `src` to the sender of `offending` (a complete IPv4 packet, from its
/// header on), telling it what is wrong; its length. `out` needs up to [`MAX_ERROR_LEN`] bytes.
/// `None`: no error may be sent about that packet, or `out` is too short.
#[must_use]
pub fn error(error: Error, src: Ipv4Addr, offending: &[u8], out: &mut [u8]) -> Option<usize> {
    let (about, payload) = ipv4::Repr::parse(offending).ok()?;
    if !may_be_answered(&about, payload) {
        return None;
    }
    let whole = about.header_len.checked_add(about.payload_len)?;
    let room = MAX_ERROR_LEN
        .saturating_sub(ipv4::HEADER_LEN)
        .saturating_sub(HEADER_LEN);
    let quoted = offending.get(..whole.min(room))?;
    let ip = ipv4::Repr {
        tos: 0xc0,
        ..ipv4::Repr::new(
            src,
            about.src,
            PROTOCOL_ICMP,
            HEADER_LEN.checked_add(quoted.len())?,
        )
    };
    let (header, body) = out.split_at_mut_checked(ipv4::HEADER_LEN)?;
    ip.emit(header)?;
    let len = emit_parts(error.kind, error.code, error.rest, quoted, body)?;
    fill_checksum(body.get_mut(..len)?)?;
    len.checked_add(ipv4::HEADER_LEN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    fn packet(repr: ipv4::Repr, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 20];
        let repr = ipv4::Repr {
            payload_len: payload.len(),
            ..repr
        };
        assert_eq!(repr.emit(&mut out), Some(20));
        out.extend(payload);
        out
    }

    #[test]
    fn echo_vector() {
        // `ping` of 4 bytes, ident 0x1234, sequence 1.
        let data = [8, 0, 0xe1, 0xc4, 0x12, 0x34, 0, 1, 1, 2, 3, 4];
        assert!(checksum::verify(&data, checksum::Sum::ZERO));
        let echo = Echo {
            ident: 0x1234,
            sequence: 1,
            payload: &[1, 2, 3, 4],
        };
        assert_eq!(Message::parse(&data), Ok(Message::EchoRequest(echo)));
        let mut out = [0xff; 12];
        assert_eq!(Message::EchoRequest(echo).emit(&mut out), Some(12));
        assert_eq!(out, data);
        assert_eq!(Message::EchoReply(echo).emit(&mut out), Some(12));
        assert_eq!(Message::parse(&out), Ok(Message::EchoReply(echo)));
        assert_eq!(Message::EchoReply(echo).emit(&mut out[..11]), None);
        for cut in 0..8 {
            assert_eq!(Message::parse(&data[..cut]), Err(Drop::Truncated));
        }
    }

    #[test]
    fn error_quotes_the_packet_it_is_about() {
        let offending = packet(ipv4::Repr::new(GUEST, SERVER, 17, 0), &[9; 30]);
        let mut out = [0; 600];
        let len = error(
            Error::unreachable(unreachable::PORT),
            SERVER,
            &offending,
            &mut out,
        )
        .unwrap();
        let (ip, body) = ipv4::Repr::parse(&out[..len]).unwrap();
        assert_eq!(
            (ip.src, ip.dst, ip.protocol),
            (SERVER, GUEST, PROTOCOL_ICMP)
        );
        assert!(checksum::verify(body, checksum::Sum::ZERO));
        assert_eq!(
            Message::parse(body),
            Ok(Message::Other {
                kind: 3,
                code: 3,
                rest: [0; 4],
                payload: &offending
            })
        );
        for short in 0..len {
            assert_eq!(
                error(Error::TIME_EXCEEDED, SERVER, &offending, &mut out[..short]),
                None
            );
        }
    }

    #[test]
    fn quotes_are_bounded_and_exclude_padding() {
        let mut out = [0; 2000];
        let offending = packet(ipv4::Repr::new(GUEST, SERVER, 17, 0), &[9; 1400]);
        assert_eq!(
            error(
                Error::fragmentation_needed(1280),
                ROUTER,
                &offending,
                &mut out
            ),
            Some(576)
        );
        assert_eq!(out[20..28][..2], [3, 4]);
        assert_eq!(out[24..28], [0, 0, 5, 0]);
        let mut padded = packet(ipv4::Repr::new(GUEST, SERVER, 17, 0), &[9; 8]);
        padded.extend([0; 18]);
        assert_eq!(
            error(Error::TIME_EXCEEDED, ROUTER, &padded, &mut out),
            Some(20 + 8 + 28)
        );
    }

    #[test]
    fn no_errors_about_errors_fragments_or_groups() {
        let mut out = [0; 600];
        let mut about = |repr: ipv4::Repr, payload: &[u8]| {
            error(
                Error::TIME_EXCEEDED,
                ROUTER,
                &packet(repr, payload),
                &mut out,
            )
            .is_some()
        };
        let udp = ipv4::Repr::new(GUEST, SERVER, 17, 0);
        let icmp = ipv4::Repr::new(GUEST, SERVER, 1, 0);
        assert!(about(udp, &[0; 8]));
        for kind in 0..=u8::MAX {
            let expected = !matches!(kind, 3 | 4 | 5 | 11 | 12);
            assert_eq!(
                about(icmp, &[kind, 0, 0, 0, 0, 0, 0, 0]),
                expected,
                "{kind}"
            );
        }
        assert!(about(
            ipv4::Repr {
                more_fragments: true,
                ..udp
            },
            &[0; 8]
        ));
        assert!(!about(
            ipv4::Repr {
                fragment_offset: 8,
                ..udp
            },
            &[0; 8]
        ));
        for dst in [
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(224, 0, 0, 251),
            Ipv4Addr::UNSPECIFIED,
        ] {
            assert!(!about(ipv4::Repr { dst, ..udp }, &[0; 8]));
            assert!(!about(ipv4::Repr { src: dst, ..udp }, &[0; 8]));
        }
        assert_eq!(
            error(Error::TIME_EXCEEDED, ROUTER, &[0x45; 10], &mut out),
            None
        );
    }

    #[test]
    fn reported_errors() {
        assert_eq!(
            Error::reported(3, 4, 1400),
            Some(Error::fragmentation_needed(1400))
        );
        assert_eq!(
            Error::reported(3, 4, 1 << 20),
            Some(Error::fragmentation_needed(65_535))
        );
        assert_eq!(Error::reported(11, 0, 99), Some(Error::TIME_EXCEEDED));
        for code in 0..=15 {
            assert_eq!(
                Error::reported(3, code, 0).unwrap().kind_and_code(),
                (3, code)
            );
        }
        for (kind, code) in [(3, 16), (11, 2), (12, 3), (5, 0), (4, 0), (8, 0), (0, 0)] {
            assert_eq!(Error::reported(kind, code, 0), None);
        }
        assert_eq!(Error::parameter_problem(9).kind_and_code(), (12, 0));
    }

    proptest! {
        #[test]
        fn round_trip(bytes in proptest::collection::vec(any::<u8>(), 8..100)) {
            let mut bytes = bytes;
            fill_checksum(&mut bytes).unwrap();
            let mut out = [0; 100];
            prop_assert_eq!(Message::parse(&bytes).unwrap().emit(&mut out), Some(bytes.len()));
            prop_assert_eq!(&out[..bytes.len()], &bytes[..]);
        }

        #[test]
        fn errors_about_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100), room in 0_usize..700) {
            let mut out = vec![0; room];
            let _ = error(Error::TIME_EXCEEDED, ROUTER, &bytes, &mut out);
        }

        #[test]
        fn errors_are_valid_packets(payload in proptest::collection::vec(any::<u8>(), 0..1000), protocol: u8) {
            let offending = packet(ipv4::Repr::new(GUEST, SERVER, protocol, 0), &payload);
            let mut out = [0; MAX_ERROR_LEN];
            if let Some(len) = error(Error::unreachable(1), ROUTER, &offending, &mut out) {
                let (_, body) = ipv4::Repr::parse(&out[..len]).unwrap();
                prop_assert!(checksum::verify(body, checksum::Sum::ZERO));
                prop_assert!(offending.starts_with(&body[8..]));
                prop_assert!(body.len() - 8 == offending.len() || len == MAX_ERROR_LEN);
            }
        }
    }
}
