//! What a client may say to our server: the established update, or one of our queries.
//!
//! The established protocol leaves a client without an answer. A server that sets
//! [`Capabilities::QUERIES`](super::wire::Capabilities::QUERIES) in its greeting also takes queries: a byte that
//! is no table's number, a magic text, a version, and what is asked. Every query is answered by an [`Outcome`] of
//! fixed size; [`Request::Report`] then by records (see [`super::report`]).

use super::report::VERSION;
use super::wire::{Input, Update, WireError, parse_update};

/// A query begins like this; the first byte is no table's number.
const OPENING: [u8; 9] = *b"\xffpasst-rs";
/// Size of an encoded [`Outcome`] in bytes.
pub const OUTCOME: usize = 256;
/// Longest message of an outcome in bytes.
const MAX_MESSAGE: usize = 240;

/// What a client wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// These tables; it will not hear what came of it.
    Established(Update),
    /// These tables, and an answer.
    Apply(Update),
    /// A report.
    Report,
    /// A query of another version.
    Unknown,
}

const REPORT: u8 = 1;
const APPLY: u8 = 2;

/// Append the query for a report.
pub fn put_report(out: &mut Vec<u8>) {
    put_query(out, REPORT);
}

/// Append the query that an update must follow.
pub fn put_apply(out: &mut Vec<u8>) {
    put_query(out, APPLY);
}

fn put_query(out: &mut Vec<u8>, what: u8) {
    out.extend_from_slice(&OPENING);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.push(what);
}

/// Read what a client wants; `None`: it has not arrived completely.
///
/// # Errors
///
/// The first thing wrong with it.
pub fn parse_request(bytes: &[u8]) -> Result<Option<Request>, WireError> {
    let ours = bytes.first() == OPENING.first();
    if !ours {
        return Ok(parse_update(bytes)?.map(Request::Established));
    }
    let mut input = Input(bytes);
    let seen = bytes.len().min(OPENING.len());
    if bytes.get(..seen) != OPENING.get(..seen) {
        return Err(WireError::Query);
    }
    let (Some(_), Some(version), Some(what)) =
        (input.bytes(OPENING.len()), input.u32(), input.u8())
    else {
        return Ok(None);
    };
    match (version, what) {
        (VERSION, REPORT) => Ok(Some(Request::Report)),
        (VERSION, APPLY) => Ok(parse_update(input.0)?.map(Request::Apply)),
        _ => Ok(Some(Request::Unknown)),
    }
}

/// What came of a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// It was done.
    pub ok: bool,
    /// Why not; cut at 240 bytes.
    pub message: String,
}

impl Outcome {
    /// It was done, and there is nothing to say about it.
    #[must_use]
    pub const fn done() -> Self {
        Self {
            ok: true,
            message: String::new(),
        }
    }

    /// It was not done.
    #[must_use]
    pub fn refused(why: impl Into<String>) -> Self {
        Self {
            ok: false,
            message: why.into(),
        }
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; OUTCOME] {
        let mut bytes = [0; OUTCOME];
        let mut end = self.message.len().min(MAX_MESSAGE);
        while !self.message.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let text = self.message.as_bytes().get(..end).unwrap_or_default();
        let head = [u8::from(self.ok), u8::try_from(end).unwrap_or_default()];
        for (to, from) in bytes.iter_mut().zip(head.iter().chain(text)) {
            *to = *from;
        }
        bytes
    }

    /// From bytes; `None`: not made by [`Outcome::encode`].
    #[must_use]
    pub fn decode(bytes: &[u8; OUTCOME]) -> Option<Self> {
        let [ok, length, rest @ ..] = bytes;
        let (text, zeroes) = rest.split_at_checked(usize::from(*length))?;
        let valid = *ok <= 1 && text.len() <= MAX_MESSAGE && zeroes.iter().all(|byte| *byte == 0);
        valid.then_some(Self {
            ok: *ok == 1,
            message: String::from_utf8(text.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queries_and_updates_are_told_apart() {
        let mut report = Vec::new();
        put_report(&mut report);
        assert_eq!(parse_request(&report), Ok(Some(Request::Report)));
        let mut apply = Vec::new();
        put_apply(&mut apply);
        for bytes in [&report, &apply] {
            for cut in 0..bytes.len() {
                assert_eq!(parse_request(&bytes[..cut]), Ok(None));
            }
        }
        assert_eq!(parse_request(&apply), Ok(None), "the update is to follow");
        apply.push(0);
        assert_eq!(
            parse_request(&apply),
            Ok(Some(Request::Apply(Update::default())))
        );
        assert_eq!(
            parse_request(&[0]),
            Ok(Some(Request::Established(Update::default())))
        );
        report[12] += 1;
        assert_eq!(parse_request(&report), Ok(Some(Request::Unknown)));
        assert_eq!(parse_request(b"\xffp*"), Err(WireError::Query));
    }

    #[test]
    fn outcomes_survive_and_long_ones_are_cut() {
        for outcome in [
            Outcome::done(),
            Outcome::refused("Port 80: Permission denied"),
        ] {
            assert_eq!(Outcome::decode(&outcome.encode()), Some(outcome));
        }
        let long = Outcome::refused("é".repeat(200));
        let cut = Outcome::decode(&long.encode()).expect("decodes");
        assert_eq!(cut.message, "é".repeat(120));
    }

    proptest! {
        #[test]
        fn any_outcome_encodes_to_what_it_was_read_from(
            ok in 0_u8..3, length in any::<u8>(), text in "[ -~é]{0,240}"
        ) {
            let mut bytes = [0; OUTCOME];
            bytes[0] = ok;
            bytes[1] = length;
            for (to, from) in bytes[2..].iter_mut().zip(text.as_bytes()) {
                *to = *from;
            }
            if let Some(outcome) = Outcome::decode(&bytes) {
                prop_assert_eq!(outcome.encode(), bytes);
            }
        }
    }
}
