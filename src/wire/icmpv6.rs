//! ICMPv6 (RFC 4443): echo messages, neighbour discovery ([`ndp`]), and the errors we send the guest.
//!
//! An error quotes as much of the packet it is about as fits in 1280 bytes, the smallest MTU there is.
//! It is never about another error or a redirect, nor about anything from a group or from nobody; about
//! something *to* a group only if it is "packet too big" or "unknown option" (RFC 4443 section 2.4 (e)).

use std::net::Ipv6Addr;

pub use super::icmpv4::Echo;
use super::icmpv4::emit_parts;
use super::{PROTOCOL_ICMPV6, checksum, ipv6, ndp, put_u16, take};
use crate::stats::Drop;

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is, from the start of the header.
pub const CHECKSUM_OFFSET: usize = 2;
/// No error is longer than this, IPv6 header included, in bytes.
pub const MAX_ERROR_LEN: usize = 1280;

/// Type: destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Type: packet too big.
pub const PACKET_TOO_BIG: u8 = 2;
/// Type: time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Type: parameter problem.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Type: echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Type: echo reply.
pub const ECHO_REPLY: u8 = 129;

/// Types up to this are errors.
const LAST_ERROR: u8 = 127;
const REDIRECT: u8 = 137;
const UNKNOWN_OPTION: u8 = 2;

/// Codes of [`UNREACHABLE`]. The others (RFC 4443, up to 8) need no name here.
pub mod unreachable {
    /// No route to the destination.
    pub const NO_ROUTE: u8 = 0;
    /// Forbidden by an administrator.
    pub const PROHIBITED: u8 = 1;
    /// Beyond the scope of the source address.
    pub const BEYOND_SCOPE: u8 = 2;
    /// The host does not answer.
    pub const ADDRESS: u8 = 3;
    /// Nobody listens on the port.
    pub const PORT: u8 = 4;
    /// The highest code assigned.
    pub const LAST: u8 = 8;
}

/// An ICMPv6 message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// "Are you there?"
    EchoRequest(Echo<'a>),
    /// "I am."
    EchoReply(Echo<'a>),
    /// Neighbour discovery.
    Ndp(ndp::Repr<'a>),
    /// Anything else, among it errors and multicast listener reports.
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
    /// [`Drop::Truncated`] below 8 bytes, and what [`ndp::Repr::parse`] refuses.
    pub fn parse(data: &'a [u8]) -> Result<Self, Drop> {
        let ([kind, code, _, _, rest @ ..], payload) = take::<HEADER_LEN>(data)?;
        Ok(match (*kind, *code) {
            (ECHO_REQUEST, 0) => Self::EchoRequest(Echo::new(*rest, payload)),
            (ECHO_REPLY, 0) => Self::EchoReply(Echo::new(*rest, payload)),
            (ndp::FIRST_TYPE..=ndp::LAST_TYPE, _) => Self::Ndp(ndp::Repr::parse(data)?),
            (kind, code) => Self::Other {
                kind,
                code,
                rest: *rest,
                payload,
            },
        })
    }

    /// Write the message, payload and checksum included, to the start of `out`; its length. The two
    /// addresses are those of the packet it will travel in.
    #[must_use]
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr, out: &mut [u8]) -> Option<usize> {
        let len = match self {
            Self::EchoRequest(echo) => emit_parts(ECHO_REQUEST, 0, echo.rest(), echo.payload, out)?,
            Self::EchoReply(echo) => emit_parts(ECHO_REPLY, 0, echo.rest(), echo.payload, out)?,
            Self::Ndp(repr) => repr.emit(out)?,
            Self::Other {
                kind,
                code,
                rest,
                payload,
            } => emit_parts(*kind, *code, *rest, payload, out)?,
        };
        fill_checksum(src, dst, out.get_mut(..len)?)?;
        Some(len)
    }
}

/// Compute and store the checksum of the message that fills `message`.
#[must_use]
pub fn fill_checksum(src: Ipv6Addr, dst: Ipv6Addr, message: &mut [u8]) -> Option<()> {
    put_u16(message, CHECKSUM_OFFSET, 0)?;
    let len = u32::try_from(message.len()).ok()?;
    let pseudo = checksum::pseudo_v6(src, dst, PROTOCOL_ICMPV6, len);
    let checksum = pseudo.plus(checksum::sum(message)).finish();
    put_u16(message, CHECKSUM_OFFSET, checksum)
}

/// What is wrong with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    kind: u8,
    code: u8,
    rest: u32,
}

impl Error {
    /// The hop limit ran out on the way.
    pub const TIME_EXCEEDED: Self = Self {
        kind: TIME_EXCEEDED,
        code: 0,
        rest: 0,
    };

    /// The destination cannot be reached; `code` is one of [`mod@unreachable`], 0..=8.
    #[must_use]
    pub const fn unreachable(code: u8) -> Self {
        Self {
            kind: UNREACHABLE,
            code,
            rest: 0,
        }
    }

    /// The packet is larger than `mtu` bytes.
    #[must_use]
    pub const fn packet_too_big(mtu: u32) -> Self {
        Self {
            kind: PACKET_TOO_BIG,
            code: 0,
            rest: mtu,
        }
    }

    /// The byte at `pointer` of the packet makes no sense; `code` says in what way, 0..=2.
    #[must_use]
    pub const fn parameter_problem(code: u8, pointer: u32) -> Self {
        Self {
            kind: PARAMETER_PROBLEM,
            code,
            rest: pointer,
        }
    }

    /// An error that somebody else reported, as an error queue gives it (`ee_type`, `ee_code` and
    /// `ee_info` of linux/errqueue.h: the MTU for "packet too big"); `None` if it is not one to be
    /// passed on.
    #[must_use]
    pub fn reported(kind: u8, code: u8, info: u32) -> Option<Self> {
        match (kind, code) {
            (UNREACHABLE, 0..=unreachable::LAST) => Some(Self::unreachable(code)),
            (PACKET_TOO_BIG, _) => Some(Self::packet_too_big(info)),
            (TIME_EXCEEDED, 0..=1) => Some(Self {
                kind,
                code,
                rest: 0,
            }),
            (PARAMETER_PROBLEM, 0..=2) => Some(Self::parameter_problem(code, info)),
            _ => None,
        }
    }

    /// Type and code.
    #[must_use]
    pub const fn kind_and_code(&self) -> (u8, u8) {
        (self.kind, self.code)
    }

    /// May it be sent about this packet?
    fn may_be_about(&self, repr: &ipv6::Repr, payload: &[u8]) -> bool {
        let later_fragment = repr.fragment.is_some_and(|fragment| fragment.offset != 0);
        let about_error = repr.next_header == PROTOCOL_ICMPV6
            && !later_fragment
            && matches!(payload.first(), Some(&(0..=LAST_ERROR | REDIRECT)));
        let to_group = matches!(
            self.kind_and_code(),
            (PACKET_TOO_BIG, _) | (PARAMETER_PROBLEM, UNKNOWN_OPTION)
        );
        !about_error
            && !repr.src.is_multicast()
            && !repr.src.is_unspecified()
            && !repr.dst.is_unspecified()
            && (to_group || !repr.dst.is_multicast())
    }
}

/// Write a complete IPv6 packet from `src` to the sender of `offending` (a complete IPv6 packet, from its
/// header on), telling it what is wrong; its length. `out` needs up to [`MAX_ERROR_LEN`] bytes.
/// `None`: no error may be sent about that packet, or `out` is too short.
#[must_use]
pub fn error(error: Error, src: Ipv6Addr, offending: &[u8], out: &mut [u8]) -> Option<usize> {
    let (about, payload) = ipv6::Repr::parse(offending).ok()?;
    if !error.may_be_about(&about, payload) {
        return None;
    }
    let whole = about.header_len.checked_add(about.payload_len)?;
    let room = MAX_ERROR_LEN
        .saturating_sub(ipv6::HEADER_LEN)
        .saturating_sub(HEADER_LEN);
    let quoted = offending.get(..whole.min(room))?;
    let ip = ipv6::Repr::new(
        src,
        about.src,
        PROTOCOL_ICMPV6,
        HEADER_LEN.checked_add(quoted.len())?,
    );
    let (header, body) = out.split_at_mut_checked(ipv6::HEADER_LEN)?;
    ip.emit(header)?;
    let len = emit_parts(
        error.kind,
        error.code,
        error.rest.to_be_bytes(),
        quoted,
        body,
    )?;
    fill_checksum(src, about.src, body.get_mut(..len)?)?;
    len.checked_add(ipv6::HEADER_LEN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
    const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 9);
    const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

    fn packet(repr: ipv6::Repr, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; repr.header_len];
        let repr = ipv6::Repr {
            payload_len: payload.len(),
            ..repr
        };
        assert_eq!(repr.emit(&mut out), Some(repr.header_len));
        out.extend(payload);
        out
    }

    fn valid(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> bool {
        let len = u32::try_from(message.len()).unwrap();
        checksum::verify(message, checksum::pseudo_v6(src, dst, PROTOCOL_ICMPV6, len))
    }

    #[test]
    fn echo_round_trip() {
        let echo = Echo {
            ident: 0x1234,
            sequence: 1,
            payload: &[1, 2, 3],
        };
        let mut out = [0xff; 11];
        assert_eq!(
            Message::EchoRequest(echo).emit(GUEST, SERVER, &mut out),
            Some(11)
        );
        assert_eq!((out[0], &out[4..]), (128, &[0x12, 0x34, 0, 1, 1, 2, 3][..]));
        assert!(valid(GUEST, SERVER, &out));
        assert_eq!(Message::parse(&out), Ok(Message::EchoRequest(echo)));
        assert_eq!(
            Message::EchoReply(echo).emit(GUEST, SERVER, &mut out),
            Some(11)
        );
        assert_eq!(Message::parse(&out), Ok(Message::EchoReply(echo)));
        assert_eq!(
            Message::EchoReply(echo).emit(GUEST, SERVER, &mut out[..10]),
            None
        );
        for cut in 0..8 {
            assert_eq!(Message::parse(&out[..cut]), Err(Drop::Truncated));
        }
    }

    #[test]
    fn error_quotes_the_packet_it_is_about() {
        let offending = packet(ipv6::Repr::new(GUEST, SERVER, 17, 0), &[9; 30]);
        let mut out = [0; 1300];
        let len = error(Error::packet_too_big(1400), ROUTER, &offending, &mut out).unwrap();
        let (ip, body) = ipv6::Repr::parse(&out[..len]).unwrap();
        assert_eq!(
            (ip.src, ip.dst, ip.next_header),
            (ROUTER, GUEST, PROTOCOL_ICMPV6)
        );
        assert!(valid(ROUTER, GUEST, body));
        assert_eq!(
            Message::parse(body),
            Ok(Message::Other {
                kind: 2,
                code: 0,
                rest: [0, 0, 5, 0x78],
                payload: &offending
            })
        );
        for short in 0..len {
            assert_eq!(
                error(Error::TIME_EXCEEDED, ROUTER, &offending, &mut out[..short]),
                None
            );
        }
        let offending = packet(ipv6::Repr::new(GUEST, SERVER, 17, 0), &[9; 3000]);
        assert_eq!(
            error(Error::TIME_EXCEEDED, ROUTER, &offending, &mut out),
            Some(1280)
        );
    }

    #[test]
    fn no_errors_about_errors_or_groups() {
        let mut out = [0; 1300];
        let mut about = |what: Error, repr: ipv6::Repr, payload: &[u8]| {
            error(what, ROUTER, &packet(repr, payload), &mut out).is_some()
        };
        let udp = ipv6::Repr::new(GUEST, SERVER, 17, 0);
        let icmp = ipv6::Repr::new(GUEST, SERVER, 58, 0);
        for kind in 0..=u8::MAX {
            let expected = kind >= 128 && kind != 137;
            assert_eq!(
                about(Error::TIME_EXCEEDED, icmp, &[kind, 0, 0, 0, 0, 0, 0, 0]),
                expected,
                "{kind}"
            );
        }
        let group = ipv6::Repr { dst: GROUP, ..udp };
        assert!(!about(Error::TIME_EXCEEDED, group, &[0; 8]));
        assert!(!about(Error::parameter_problem(0, 0), group, &[0; 8]));
        assert!(about(Error::parameter_problem(2, 0), group, &[0; 8]));
        assert!(about(Error::packet_too_big(1280), group, &[0; 8]));
        for src in [GROUP, Ipv6Addr::UNSPECIFIED] {
            assert!(!about(
                Error::packet_too_big(1280),
                ipv6::Repr { src, ..udp },
                &[0; 8]
            ));
        }
        assert_eq!(
            error(Error::TIME_EXCEEDED, ROUTER, &[0x60; 39], &mut out),
            None
        );
    }

    #[test]
    fn reported_errors() {
        assert_eq!(
            Error::reported(2, 0, 1400),
            Some(Error::packet_too_big(1400))
        );
        assert_eq!(Error::reported(3, 0, 0), Some(Error::TIME_EXCEEDED));
        assert_eq!(
            Error::reported(1, 4, 0),
            Some(Error::unreachable(unreachable::PORT))
        );
        assert_eq!(
            Error::reported(4, 1, 40),
            Some(Error::parameter_problem(1, 40))
        );
        for (kind, code) in [(1, 9), (3, 2), (4, 3), (0, 0), (5, 0), (128, 0), (137, 0)] {
            assert_eq!(Error::reported(kind, code, 0), None);
        }
        assert_eq!(Error::unreachable(3).kind_and_code(), (1, 3));
    }

    proptest! {
        #[test]
        fn round_trip(bytes in proptest::collection::vec(any::<u8>(), 8..100), src: [u8; 16], dst: [u8; 16]) {
            let mut bytes = bytes;
            bytes[0] = bytes[0].saturating_sub(bytes[0] / 133 * 5); // few neighbour discovery messages
            fill_checksum(src.into(), dst.into(), &mut bytes).unwrap();
            if let Ok(message) = Message::parse(&bytes) {
                let mut out = [0; 100];
                prop_assert_eq!(message.emit(src.into(), dst.into(), &mut out), Some(bytes.len()));
                if !matches!(message, Message::Ndp(_)) {
                    prop_assert_eq!(&out[..bytes.len()], &bytes[..]);
                }
                prop_assert_eq!(Message::parse(&out[..bytes.len()]), Ok(message));
            }
        }

        #[test]
        fn errors_about_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100), room in 0_usize..700) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = 0x60;
            }
            let mut out = vec![0; room];
            let _ = error(Error::TIME_EXCEEDED, ROUTER, &bytes, &mut out);
        }
    }
}
