//! Bytes in memory that somebody else may be writing to.
//!
//! A guest that shares its memory can change a byte at any time, so such memory must never be borrowed as `&[u8]`:
//! the compiler may read a slice twice and take it for granted that it reads the same. A [`Piece`] names bytes without
//! promising anything about them. They can be handed to the kernel, which copies them, or copied out, once; there is
//! no way to look at them where they are. Ordinary memory can be named in the same way, so whoever only passes
//! bytes on need not know which kind they are.

#![allow(
    unsafe_code,
    reason = "memory that others write to can be reached by pointers only"
)]

use std::fmt;
use std::marker::PhantomData;

/// Bytes to be read, as the kernel takes them: an `iovec`, readv(2).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Piece<'a>(libc::iovec, PhantomData<&'a [u8]>);

impl<'a> Piece<'a> {
    /// No bytes.
    pub const EMPTY: Self = Self::new(&[]);

    /// Ordinary memory.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        let base: *const u8 = bytes.as_ptr();
        Self(
            libc::iovec {
                iov_base: base.cast_mut().cast(),
                iov_len: bytes.len(),
            },
            PhantomData,
        )
    }

    /// Memory shared with somebody who may write to it at any time.
    ///
    /// # Safety
    /// `len` bytes from `base` on are mapped and readable during all of `'a`.
    #[must_use]
    pub const unsafe fn shared(base: *const u8, len: usize) -> Self {
        Self(
            libc::iovec {
                iov_base: base.cast_mut().cast(),
                iov_len: len,
            },
            PhantomData,
        )
    }

    /// How many bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.iov_len
    }

    /// None?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// The first `at` bytes, or all there are, and the rest.
    #[must_use]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let at = at.min(self.0.iov_len);
        let base: *mut u8 = self.0.iov_base.cast();
        let part = |base: *mut u8, iov_len| {
            let iov_base = base.cast();
            Self(libc::iovec { iov_base, iov_len }, PhantomData)
        };
        // At most the end of the same bytes; nothing is read here.
        let rest = base.wrapping_add(at);
        (part(base, at), part(rest, self.0.iov_len.wrapping_sub(at)))
    }

    /// Copy the first bytes out, as many as there are or fit; how many. What another writes meanwhile may be there
    /// in part.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let count = self.0.iov_len.min(to.len());
        let base: *const u8 = self.0.iov_base.cast_const().cast();
        // SAFETY: readable for `'a` by construction, `to` is writable for at least `count` bytes and borrowed
        // exclusively, so it is other memory. No reference to the source is made.
        unsafe { std::ptr::copy_nonoverlapping(base, to.as_mut_ptr(), count) };
        count
    }
}

impl fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.iov_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_cut_and_copied_within_its_bounds() {
        let bytes: Vec<u8> = (0..10).collect();
        let piece = Piece::new(&bytes);
        for at in 0..15 {
            let (a, b) = piece.split_at(at);
            assert_eq!((a.len(), a.len() + b.len()), (at.min(10), 10));
            let mut out = [0xff; 12];
            assert_eq!(a.copy_to(&mut out), a.len());
            let n = a.len();
            assert_eq!(b.copy_to(&mut out[n..]), b.len());
            assert_eq!((&out[..10], &out[10..]), (&bytes[..], &[0xff, 0xff][..]));
        }
        let mut short = [0xff; 3];
        assert_eq!(piece.copy_to(&mut short), 3);
        assert_eq!(short, [0, 1, 2]);
        assert!(Piece::EMPTY.is_empty());
    }
}
