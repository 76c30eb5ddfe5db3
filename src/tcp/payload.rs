//! What a segment carries: one piece of memory, or several where a guest's super-frame lies in buffers of its own.
//!
//! The engine cuts payloads and passes them on; it never looks at a byte.

use crate::sys::piece::Piece;

/// Most pieces of a payload: what one send takes. Bytes in more of them are not accepted.
pub const MAX_PIECES: usize = 128;

/// The payload of a segment, in order.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    first: Piece<'a>,
    rest: &'a [Piece<'a>],
    len: usize,
}

impl<'a> Payload<'a> {
    /// None.
    pub const EMPTY: Self = Self {
        first: Piece::EMPTY,
        rest: &[],
        len: 0,
    };

    /// The first `len` bytes of `first` and then `rest`, or all of them if they are fewer.
    #[must_use]
    pub fn new(first: Piece<'a>, rest: &'a [Piece<'a>], len: usize) -> Self {
        let all = rest
            .iter()
            .fold(first.len(), |sum, piece| sum.saturating_add(piece.len()));
        Self {
            first,
            rest,
            len: len.min(all),
        }
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// No bytes?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pieces, at most.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.rest.len().saturating_add(1)
    }

    /// At most `count` bytes from `skip` on, in pieces that are not empty.
    pub fn pieces(&self, skip: usize, count: usize) -> impl Iterator<Item = Piece<'a>> + use<'a> {
        let mut skip = skip;
        let mut left = count.min(self.len.saturating_sub(skip));
        std::iter::once(self.first)
            .chain(self.rest.iter().copied())
            .filter_map(move |piece| {
                let (cut, piece) = piece.split_at(skip);
                skip = skip.saturating_sub(cut.len());
                let (piece, _) = piece.split_at(left);
                left = left.saturating_sub(piece.len());
                (!piece.is_empty()).then_some(piece)
            })
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self {
            first: Piece::new(bytes),
            rest: &[],
            len: bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_any_division_is_what_it_would_be_in_one_piece() {
        let bytes: Vec<u8> = (0..12).collect();
        let rests: Vec<[Piece<'_>; 3]> = (2..10)
            .map(|cut| {
                [
                    Piece::new(&bytes[2..cut]),
                    Piece::EMPTY,
                    Piece::new(&bytes[cut..]),
                ]
            })
            .collect();
        for rest in &rests {
            for len in 0..14 {
                let payload = Payload::new(Piece::new(&bytes[..2]), rest, len);
                assert_eq!(payload.len(), len.min(12));
                for skip in 0..14 {
                    for count in 0..14 {
                        let mut got = Vec::new();
                        for piece in payload.pieces(skip, count) {
                            assert!(!piece.is_empty());
                            let mut part = vec![0; piece.len()];
                            piece.copy_to(&mut part);
                            got.extend(part);
                        }
                        let whole = &bytes[..payload.len()];
                        let part = &whole[skip.min(whole.len())..];
                        assert_eq!(got, part[..count.min(part.len())]);
                    }
                }
            }
        }
    }
}
