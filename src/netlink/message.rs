//! Framing: netlink headers around bodies, and walking over the messages of one datagram.
//!
//! netlink-packet-core can do both, but only for a closed enum of parsed messages, and it refuses a whole
//! message for one attribute it cannot read. Sixteen bytes of header are no reason to give up control.

use netlink_packet_core::Emitable;

/// `NLMSG_ERROR` and `NLMSG_DONE` of netlink(7).
pub(super) const ERROR: u16 = 2;
pub(super) const DONE: u16 = 3;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER_LEN: usize = 16;

/// `struct nlmsghdr`, as received, with what follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages of one datagram; stops at the first that does not fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(u32_at(self.0, 0)?).ok()?;
        let message = Message {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            sequence: u32_at(self.0, 8)?,
            body: self.0.get(HEADER_LEN..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

/// Append a message to `out`.
pub(super) fn push(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: &impl Emitable) {
    let start = out.len();
    let length = HEADER_LEN + body.buffer_len();
    // Nothing we send comes near 4 GiB; a length that did would be refused by the kernel as malformed.
    let length_field = u32::try_from(length).unwrap_or(u32::MAX);
    out.extend_from_slice(&length_field.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.resize(start + length.next_multiple_of(4), 0);
    if let Some(room) = out.get_mut(start + HEADER_LEN..start + length) {
        body.emit(room);
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u16::from_ne_bytes(*b))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u32::from_ne_bytes(*b))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| i32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Body(Vec<u8>);

    impl Emitable for Body {
        fn buffer_len(&self) -> usize {
            self.0.len()
        }
        fn emit(&self, out: &mut [u8]) {
            out.copy_from_slice(&self.0);
        }
    }

    #[test]
    fn what_is_pushed_is_walked_over_again() {
        let mut out = Vec::new();
        push(&mut out, 18, 0x301, 7, &Body(vec![1, 2, 3, 4, 5]));
        push(&mut out, 22, 5, 8, &Body(vec![]));
        assert_eq!(out.len(), 16 + 8 + 16);
        let all: Vec<_> = Messages(&out).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].kind, all[0].flags, all[0].sequence), (18, 0x301, 7));
        assert_eq!(all[0].body, [1, 2, 3, 4, 5]);
        assert_eq!(
            (all[1].kind, all[1].sequence, all[1].body.len()),
            (22, 8, 0)
        );
    }

    #[test]
    fn truncation_ends_the_walk_and_nothing_else() {
        let mut out = Vec::new();
        push(&mut out, 18, 0, 1, &Body(vec![9; 20]));
        push(&mut out, 18, 0, 2, &Body(vec![9; 20]));
        for cut in 0..out.len() {
            let n = Messages(&out[..cut]).count();
            assert_eq!(n, usize::from(cut >= 36), "{cut}");
        }
        // A length below the header's own, and one of zero, must not loop.
        assert_eq!(Messages(&[0; 64]).count(), 0);
        let mut short = vec![0; 64];
        short[0] = 8;
        assert_eq!(Messages(&short).count(), 0);
    }
}
