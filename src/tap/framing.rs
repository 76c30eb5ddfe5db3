//! Frames on a byte stream, as qemu's stream socket has them: a length of 32 bits in network byte order, then the
//! frame, over and over (net/stream.c of qemu; libkrun and others do the same).
//!
//! Frames are not copied out of what was read: a [`Reader`] says where in the buffer they lie. A frame that came in
//! part only stays where it is, and the next read goes on behind it; it is moved to the front only when there is not
//! enough room left for the largest frame. A length is believed only if it is one that a frame can have, so no
//! length a guest sends can make us wait for more than fits, or read beyond what came.

use std::ops::Range;

/// Bytes in front of each frame.
pub const PREFIX: usize = 4;
/// Least length of a frame in bytes: an Ethernet header.
pub const MIN_LEN: usize = 14;
/// Greatest length of a frame in bytes: what an IPv4 packet can be, behind an Ethernet header. No MTU we offer leads
/// to that, but a guest may choose its own, and losing the frame is better than losing the machine.
pub const MAX_LEN: usize = 65_549;

/// What goes in front of a frame of `len` bytes.
#[must_use]
pub fn prefix(len: usize) -> [u8; PREFIX] {
    // No frame is longer than a few 64 KiB.
    u32::try_from(len).unwrap_or_default().to_be_bytes()
}

/// No frame can have such a length; where the next one begins is anybody's guess.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// What has been read into a buffer, and not been handed on: the bytes from `start` to `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reader {
    start: usize,
    end: usize,
}

impl Reader {
    /// Nothing is there.
    #[must_use]
    pub const fn new() -> Self {
        Self { start: 0, end: 0 }
    }

    /// Where the next whole frame lies in `buf`. `None`: it is not all there yet.
    ///
    /// # Errors
    /// [`Malformed`] for a length that no frame has; it will be the same for ever.
    pub fn peek(&self, buf: &[u8]) -> Result<Option<Range<usize>>, Malformed> {
        let unread = buf.get(self.start..self.end).unwrap_or_default();
        let Some((prefix, rest)) = unread.split_first_chunk() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).map_err(|_| Malformed)?;
        if !(MIN_LEN..=MAX_LEN).contains(&len) {
            return Err(Malformed);
        }
        let start = self.start.saturating_add(PREFIX);
        Ok((rest.len() >= len).then_some(start..start.saturating_add(len)))
    }

    /// Go behind the frame that [`Self::peek`] has found.
    pub fn skip(&mut self, frame: &Range<usize>) {
        self.start = frame.end.min(self.end);
    }

    /// Where to read on, of `buf`, which has to be the same as ever and larger than the largest frame. Never empty as
    /// long as all whole frames have been skipped. What [`Self::peek`] has found earlier may be moved by this.
    pub fn room<'b>(&mut self, buf: &'b mut [u8]) -> &'b mut [u8] {
        if self.start == self.end {
            *self = Self::new();
        }
        let left = buf.len().saturating_sub(self.start);
        if left < PREFIX.saturating_add(MAX_LEN) && self.end <= buf.len() {
            buf.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        buf.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were read to the start of [`Self::room`].
    pub fn filled(&mut self, n: usize) {
        self.end = self.end.saturating_add(n);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUF: usize = 1 << 17;

    /// Feed `stream` in pieces of at most `at_most` bytes (taken in turn): the frames, and whether it ended badly.
    fn read(stream: &[u8], at_most: &[usize]) -> (Vec<Vec<u8>>, bool) {
        let mut buf = vec![0; BUF];
        let (mut reader, mut frames, mut rest) = (Reader::new(), Vec::new(), stream);
        let mut sizes = at_most.iter().cycle();
        loop {
            loop {
                match reader.peek(&buf) {
                    Ok(Some(at)) => {
                        frames.push(buf[at.clone()].to_vec());
                        reader.skip(&at);
                    }
                    Ok(None) => break,
                    Err(Malformed) => {
                        assert_eq!(reader.peek(&buf), Err(Malformed));
                        return (frames, true);
                    }
                }
            }
            if rest.is_empty() {
                return (frames, false);
            }
            let room = reader.room(&mut buf);
            assert!(!room.is_empty());
            let n = rest
                .len()
                .min(room.len())
                .min(*sizes.next().unwrap())
                .max(1);
            room[..n].copy_from_slice(&rest[..n]);
            reader.filled(n);
            rest = &rest[n..];
        }
    }

    fn stream(lens: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let frames: Vec<Vec<u8>> = (0_u8..)
            .zip(lens)
            .map(|(i, len)| (i..=255).cycle().take(*len).collect())
            .collect();
        let bytes = frames
            .iter()
            .flat_map(|f| [&prefix(f.len())[..], f].concat())
            .collect();
        (bytes, frames)
    }

    #[test]
    fn every_split_gives_the_same_frames() {
        let (bytes, frames) = stream(&[14, 60, 1514, 15, 61]);
        for at in 1..bytes.len() {
            assert_eq!(read(&bytes, &[at, usize::MAX]), (frames.clone(), false));
            assert_eq!(read(&bytes, &[at]), (frames.clone(), false));
        }
        // What is not there in full is not handed out.
        for cut in 0..bytes.len() {
            let (got, malformed) = read(&bytes[..cut], &[usize::MAX]);
            assert!(!malformed && frames.starts_with(&got) && got.len() < frames.len());
        }
    }

    #[test]
    fn only_lengths_of_frames_are_taken() {
        for (len, good) in [
            (0, false),
            (1, false),
            (13, false),
            (14, true),
            (65_535, true),
            (65_549, true),
            (65_550, false),
            (0x7fff_ffff, false),
            (0x8000_000e, false),
            (u32::MAX, false),
        ] {
            let (mut bytes, mut frames) = stream(&[60]);
            bytes.extend(len.to_be_bytes());
            if good {
                frames.push(vec![9; len as usize]);
            }
            bytes.extend(vec![9; 70_000.min(len as usize)]);
            for size in [1, 63, 64, 65, 66, 67, 68, usize::MAX] {
                assert_eq!(read(&bytes, &[size]), (frames.clone(), !good), "{len}");
            }
        }
    }

    #[test]
    fn a_partial_frame_is_moved_only_when_room_is_short() {
        const WHOLE: usize = PREFIX + MAX_LEN;
        let mut buf = vec![0; BUF];
        let mut reader = Reader::new();
        let (bytes, _) = stream(&[65_000, 60_000]);
        assert_eq!(reader.room(&mut buf).len(), BUF);
        buf[..bytes.len() - 1].copy_from_slice(&bytes[..bytes.len() - 1]);
        reader.filled(bytes.len() - 1);
        let first = reader.peek(&buf).unwrap().unwrap();
        assert_eq!(first, 4..65_004);
        reader.skip(&first);
        assert_eq!(reader.peek(&buf), Ok(None));
        assert_eq!(reader.room(&mut buf).len(), BUF - bytes.len() + 1);
        assert_eq!(reader.start, 65_004);

        // The same, but so far to the back that a larger frame would not fit.
        let mut reader = Reader {
            start: BUF - WHOLE,
            end: BUF - WHOLE + 4,
        };
        assert_eq!(reader.room(&mut buf).len(), MAX_LEN);
        let mut reader = Reader {
            start: BUF - WHOLE + 1,
            end: BUF - WHOLE + 5,
        };
        assert_eq!(reader.room(&mut buf).len(), BUF - 4);
        // Nothing left: to the front.
        let mut reader = Reader { start: 5, end: 5 };
        assert_eq!(reader.room(&mut buf).len(), BUF);
    }

    proptest! {
        #[test]
        fn random_splits(lens in proptest::collection::vec(prop_oneof![14_usize..2000, 60_000_usize..65_536], 1..12),
                         sizes in proptest::collection::vec(prop_oneof![1_usize..100, 1000_usize..200_000], 1..20)) {
            let (bytes, frames) = stream(&lens);
            prop_assert_eq!(read(&bytes, &sizes), (frames, false));
        }
    }
}
