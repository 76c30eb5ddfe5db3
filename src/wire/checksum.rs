//! The Internet checksum (RFC 1071): the ones' complement sum of 16-bit words.
//!
//! Two facts make it fast. The sum may be taken over wider words and folded at the end, and it may be
//! taken in the machine's byte order and swapped at the end. So the loop (`sys::vector`) adds native 32-bit words
//! into 64-bit lanes, with no carry to look after: vector code on every target.
//!
//! A [`Sum`] is the running, uninverted sum. Sums of consecutive pieces may be added only if every piece
//! but the last has an even number of bytes; all headers do.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::sys::vector;

/// A running ones' complement sum, not yet inverted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(u16);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// This and another sum together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        let (total, carry) = self.0.overflowing_add(other.0);
        // With a carry the total is at most 0xfffe.
        Self(if carry { total.wrapping_add(1) } else { total })
    }

    /// This sum and one 16-bit word.
    #[must_use]
    pub const fn plus_u16(self, word: u16) -> Self {
        self.plus(Self(word))
    }

    /// This sum and a 32-bit word.
    #[must_use]
    pub fn plus_u32(self, word: u32) -> Self {
        self.plus(fold(u64::from(word)))
    }

    /// The sum itself: what goes into the checksum field when somebody else is to add the rest
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    #[must_use]
    pub const fn partial(self) -> u16 {
        self.0
    }

    /// The checksum: the inverted sum.
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.0
    }

    /// The checksum for UDP, where zero means "none" and the other zero is sent instead (RFC 768).
    #[must_use]
    pub const fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }

    /// Is this the sum of data together with its own correct checksum?
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 == 0xffff
    }
}

/// Fold a sum of aligned words of any width to 16 bits.
const fn fold(wide: u64) -> Sum {
    const LOW: u64 = 0xffff;
    // Each step leaves a sum of the halves: at most 33, then 18, then 17, then 16 bits.
    let wide = (wide & 0xffff_ffff).wrapping_add(wide >> 32);
    let wide = (wide & LOW)
        .wrapping_add((wide >> 16) & LOW)
        .wrapping_add(wide >> 32);
    let wide = (wide & LOW).wrapping_add(wide >> 16);
    let wide = (wide & LOW).wrapping_add(wide >> 16);
    let [.., high, low] = wide.to_be_bytes();
    Sum(u16::from_be_bytes([high, low]))
}

/// The sum of `data` as big-endian 16-bit words; an odd last byte counts as the high half of a word.
#[must_use]
pub fn sum(data: &[u8]) -> Sum {
    let native = fold(vector::add_words(data));
    Sum(u16::from_be(native.0))
}

/// The pseudo-header of RFC 793/768 for IPv4. `len` is the length of the upper-layer header and payload.
#[must_use]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> Sum {
    Sum::ZERO
        .plus_u32(src.to_bits())
        .plus_u32(dst.to_bits())
        .plus_u16(u16::from(protocol))
        .plus_u16(len)
}

/// The pseudo-header of RFC 8200 section 8.1. `len` is the length of the upper-layer header and payload.
#[must_use]
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, len: u32) -> Sum {
    sum(&src.octets())
        .plus(sum(&dst.octets()))
        .plus_u16(u16::from(next_header))
        .plus_u32(len)
}

/// Does `data`, which includes its checksum field, match the checksum, given the sum of its
/// pseudo-header ([`Sum::ZERO`] if it has none)?
#[must_use]
pub fn verify(data: &[u8], pseudo: Sum) -> bool {
    pseudo.plus(sum(data)).is_valid()
}

/// The checksum after one 16-bit word it covers changed from `old` to `new` (RFC 1624, equation 3).
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    Sum(!checksum).plus(Sum(!old)).plus(Sum(new)).finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 section 4.1, transliterated: big-endian words, carries folded at the end.
    fn naive(data: &[u8]) -> u16 {
        let mut total = 0_u64;
        for pair in data.chunks(2) {
            total += u64::from(pair[0]) << 8;
            total += u64::from(pair.get(1).copied().unwrap_or(0));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        u16::try_from(total).unwrap()
    }

    #[test]
    fn rfc_1071_example() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&data).partial(), 0xddf2);
        assert_eq!(sum(&data).finish(), !0xddf2);
    }

    #[test]
    fn every_length_and_extreme_bytes() {
        for fill in [0_u8, 1, 0x7f, 0x80, 0xff] {
            for len in 0..300 {
                let data = vec![fill; len];
                assert_eq!(sum(&data).partial(), naive(&data), "{len} × {fill}");
            }
        }
        let data = vec![0xff; 65_551];
        assert_eq!(sum(&data).partial(), naive(&data));
    }

    #[test]
    fn udp_zero_is_sent_as_ones() {
        assert_eq!(Sum(0xffff).finish(), 0);
        assert_eq!(Sum(0xffff).finish_udp(), 0xffff);
        assert_eq!(Sum(0x1234).finish_udp(), !0x1234);
    }

    #[test]
    fn pseudo_headers_agree_with_their_bytes() {
        let (a, b) = (
            Ipv4Addr::new(192, 0, 2, 1),
            Ipv4Addr::new(198, 51, 100, 200),
        );
        let mut bytes = [a.octets(), b.octets()].concat();
        bytes.extend([0, 6, 0x12, 0x34]);
        assert_eq!(pseudo_v4(a, b, 6, 0x1234).partial(), naive(&bytes));

        let (a, b): (Ipv6Addr, Ipv6Addr) = (
            "2001:db8::ff00".parse().unwrap(),
            "fe80::1".parse().unwrap(),
        );
        let mut bytes = [a.octets(), b.octets()].concat();
        bytes.extend([0, 1, 0x23, 0x45, 0, 0, 0, 58]);
        assert_eq!(pseudo_v6(a, b, 58, 0x1_2345).partial(), naive(&bytes));
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(sum(&data).partial(), naive(&data));
        }

        #[test]
        fn pieces_add_up(data in proptest::collection::vec(any::<u8>(), 0..600), at in 0_usize..300) {
            let at = (at * 2).min(data.len() & !1);
            let (a, b) = data.split_at(at);
            prop_assert_eq!(sum(a).plus(sum(b)), sum(&data));
        }

        #[test]
        fn update_equals_recomputing(mut data in proptest::collection::vec(any::<u8>(), 4..80), new: u16, at in 0_usize..40) {
            // Words 0 and up may change; the data is never all zeroes, where both zeroes would be right.
            data[0] |= 1;
            let at = (2 + at * 2).min((data.len() & !1) - 2);
            prop_assume!(at >= 2);
            let before = sum(&data).finish();
            let old = u16::from_be_bytes([data[at], data[at + 1]]);
            data[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), sum(&data).finish());
        }

        #[test]
        fn verify_accepts_the_checksum_and_refuses_a_flipped_bit(
            mut data in proptest::collection::vec(any::<u8>(), 2..200), bit: proptest::sample::Index, start: u16,
        ) {
            let start = Sum(start);
            data[0] = 0;
            data[1] = 0;
            let check = start.plus(sum(&data)).finish();
            data[..2].copy_from_slice(&check.to_be_bytes());
            prop_assert!(verify(&data, start) || (check == 0xffff && start == Sum::ZERO));
            let bit = bit.index(data.len() * 8);
            let good = verify(&data, start);
            data[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!(good && verify(&data, start)));
        }
    }
}
