//! Messages to bytes and back: the only file that names bincode.
//!
//! Fixed-width little-endian integers, a hard limit on what may be read, and no byte left over: a
//! message that decodes but is longer than its encoding was not made by us. Records of one common size
//! ([`pack`]) are filled with zeroes, and with nothing else.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest encoded message in bytes; a constant of the protocol, both for buffers and as decoder limit.
pub(super) const MAX_MESSAGE: usize = 96;

/// Why bytes are not a message (or a message no bytes, which would be a bug).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value needs more bytes than its kind of message has.
    #[error("message does not fit its fixed size")]
    TooLarge,
    /// Too short, an unknown variant, or an invalid value.
    #[error("malformed message")]
    Malformed,
    /// A valid message followed by something else.
    #[error("trailing bytes after a message")]
    Trailing,
}

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<MAX_MESSAGE>,
> = bincode::config::standard()
    .with_fixed_int_encoding()
    .with_limit::<MAX_MESSAGE>();

/// Encode `message` into `buf`; returns the number of bytes used.
pub(super) fn encode<M: Serialize>(
    message: &M,
    buf: &mut [u8; MAX_MESSAGE],
) -> Result<usize, CodecError> {
    bincode::serde::encode_into_slice(message, buf, CONFIG).map_err(|_| CodecError::TooLarge)
}

/// Decode exactly `bytes`.
pub(super) fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, CodecError> {
    let (message, used) =
        bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|_| CodecError::Malformed)?;
    if used == bytes.len() {
        Ok(message)
    } else {
        Err(CodecError::Trailing)
    }
}

/// Encode `record` into all of `buf`, which is as large as the largest of its kind; zeroes fill what is left.
pub fn pack<M: Serialize, const N: usize>(record: &M, buf: &mut [u8; N]) -> Result<(), CodecError> {
    let used = bincode::serde::encode_into_slice(record, &mut buf[..], CONFIG.with_limit::<N>())
        .map_err(|_| CodecError::TooLarge)?;
    buf.iter_mut().skip(used).for_each(|byte| *byte = 0);
    Ok(())
}

/// Decode what [`pack`] has made of a record: anything but zeroes after it is an error.
pub fn unpack<M: DeserializeOwned, const N: usize>(buf: &[u8; N]) -> Result<M, CodecError> {
    let (record, used) = bincode::serde::decode_from_slice(&buf[..], CONFIG.with_limit::<N>())
        .map_err(|_| CodecError::Malformed)?;
    if buf.iter().skip(used).all(|byte| *byte == 0) {
        Ok(record)
    } else {
        Err(CodecError::Trailing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::rules::{Protocol, Rule, RuleId, Table};
    use crate::ipc::message::{
        FromAgent, FromForwarder, NamedRule, Neighbour, PortBlock, Request, RuleNotice, SocketKind,
        Supply, TapReport, ToAgent, ToForwarder,
    };

    fn round_trip<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: &M) {
        let mut buf = [0; MAX_MESSAGE];
        let n = encode(message, &mut buf).expect("fits");
        assert_eq!(&decode::<M>(&buf[..n]).expect("decodes"), message);
        for cut in 0..n {
            assert_eq!(decode::<M>(&buf[..cut]), Err(CodecError::Malformed));
        }
        if n < MAX_MESSAGE {
            assert_eq!(decode::<M>(&buf[..=n]), Err(CodecError::Trailing));
        }
    }

    #[test]
    fn every_message_survives_and_every_other_length_is_refused() {
        round_trip(&ToForwarder::Go);
        round_trip(&FromForwarder::Ready {
            confinement: u32::MAX,
        });
        round_trip(&FromAgent::Ready { confinement: 7 });
        round_trip(&FromAgent::Tap(TapReport {
            mac: [1, 2, 3, 4, 5, 6],
            index: 77,
            offloads: u32::MAX,
        }));
        round_trip(&FromAgent::Failed {
            rule: id(3),
            port: 80,
            errno: 98,
        });
        round_trip(&FromForwarder::Request(Request::Sockets {
            kind: SocketKind::Udp6,
            count: 32,
        }));
        round_trip(&ToForwarder::Supply(Supply::Rule(RuleNotice {
            rule: id(9),
            table: Table::Host,
            protocol: Protocol::Udp,
            target: Some("::1".parse().expect("address")),
            first: 1,
            last: 2,
            to_first: 3,
        })));
        for mac in [None, Some([2, 0, 0, 0, 0, 1])] {
            round_trip(&ToForwarder::Neighbour(Neighbour {
                address: "fe80::1".parse().expect("address"),
                mac,
                news: mac.is_some(),
            }));
        }
        round_trip(&ToAgent::Ports(PortBlock {
            protocol: Protocol::Tcp,
            block: 255,
            bits: [0xa5; 32],
        }));
    }

    fn id(n: u16) -> RuleId {
        RuleId(std::num::NonZeroU16::new(n).expect("not zero"))
    }

    #[test]
    fn the_largest_rule_fits_and_comes_back() {
        let rule = Rule {
            protocol: Protocol::Udp,
            listen: Some("2001:db8::1".parse().expect("address")),
            interface: Some("fifteen-letters".to_owned()),
            first: 1,
            last: u16::MAX,
            target: Some("2001:db8::2".parse().expect("address")),
            to_first: 1,
            best_effort: true,
            auto_scan: true,
        };
        let named = NamedRule::new(id(u16::MAX), &rule).expect("short enough");
        round_trip(&ToAgent::Rule(named));
        assert_eq!(named.rule().as_ref(), Some(&rule));
        let long = Rule {
            interface: Some("sixteen--letters".to_owned()),
            ..rule
        };
        assert!(NamedRule::new(id(1), &long).is_none());
    }

    #[test]
    fn unknown_variants_are_refused() {
        assert_eq!(
            decode::<ToForwarder>(&[9, 0, 0, 0]),
            Err(CodecError::Malformed)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_what_encodes_to_them_or_not_at_all(
            bytes in proptest::collection::vec(any::<u8>(), 0..48)
        ) {
            if let Ok(message) = decode::<FromAgent>(&bytes) {
                let mut buf = [0; MAX_MESSAGE];
                let n = encode(&message, &mut buf).expect("fits");
                prop_assert_eq!(&buf[..n], &bytes[..]);
            }
        }
    }
}
