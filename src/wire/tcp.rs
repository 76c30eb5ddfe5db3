//! TCP (RFC 9293): header, options, and arithmetic on sequence numbers.
//!
//! Options that matter to us: MSS, window scale, SACK permitted, SACK (RFC 2018) and timestamps (RFC
//! 7323). Unknown ones are skipped, known ones of the wrong length too; an option length that is 0, 1 or
//! beyond the header makes everything after it meaningless, and the segment is dropped as malformed.
//!
//! The urgent pointer is handed on as it came: a number, never an index into anything.

use std::fmt;
use std::ops::BitOr;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::take;
use crate::stats::Drop;

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Length of the header with as many options as it can have, in bytes.
pub const MAX_HEADER_LEN: usize = 60;
/// Where the checksum is, from the start of the header.
pub const CHECKSUM_OFFSET: usize = 16;
/// The largest window scale there is (RFC 7323 section 2.3).
pub const MAX_WINDOW_SCALE: u8 = 14;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_WINDOW_SCALE: u8 = 3;
const OPTION_SACK_PERMITTED: u8 = 4;
const OPTION_SACK: u8 = 5;
const OPTION_TIMESTAMPS: u8 = 8;

/// A sequence number: 32 bits, and comparisons that are right across the wrap as long as the two are
/// less than 2 GiB apart, which any window guarantees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(pub u32);

impl Seq {
    /// The number `n` bytes later.
    #[must_use]
    pub const fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// The number `n` bytes earlier.
    #[must_use]
    pub const fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }

    /// Bytes from `earlier` to this, which must not lie before it: otherwise the result is huge.
    #[must_use]
    pub const fn distance(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Bytes from `other` to this: negative if this comes first.
    #[must_use]
    pub const fn offset(self, other: Self) -> i32 {
        i32::from_ne_bytes(self.0.wrapping_sub(other.0).to_ne_bytes())
    }

    /// Does this come before `other`?
    #[must_use]
    pub const fn lt(self, other: Self) -> bool {
        self.offset(other) < 0
    }

    /// Does this come before `other`, or is it the same?
    #[must_use]
    pub const fn le(self, other: Self) -> bool {
        self.offset(other) <= 0
    }

    /// Does this come after `other`?
    #[must_use]
    pub const fn gt(self, other: Self) -> bool {
        self.offset(other) > 0
    }

    /// Does this come after `other`, or is it the same?
    #[must_use]
    pub const fn ge(self, other: Self) -> bool {
        self.offset(other) >= 0
    }

    /// The later of the two.
    #[must_use]
    pub const fn max(self, other: Self) -> Self {
        if self.lt(other) { other } else { self }
    }

    /// The earlier of the two.
    #[must_use]
    pub const fn min(self, other: Self) -> Self {
        if self.lt(other) { self } else { other }
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A set of TCP flags.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// The connection is void.
    pub const RST: Self = Self(0x04);
    /// The data is to be handed over without waiting for more.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// Congestion was experienced (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// The congestion window was reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// Are all of `other` in this set?
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Is any of `other` in this set?
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// This set without those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let mut separator = "";
        for (bit, name) in NAMES.iter().enumerate() {
            if self.0 >> bit & 1 == 1 {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        if separator.is_empty() {
            f.write_str("-")
        } else {
            Ok(())
        }
    }
}

/// Up to four blocks of data received out of order: `[start, end)` each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SackBlocks {
    blocks: [(Seq, Seq); Self::MAX],
    len: u8,
}

impl SackBlocks {
    /// As many as fit in the options.
    pub const MAX: usize = 4;
    /// None.
    pub const EMPTY: Self = Self {
        blocks: [(Seq(0), Seq(0)); Self::MAX],
        len: 0,
    };

    /// Append a block; `false` if there are four already.
    pub fn push(&mut self, start: Seq, end: Seq) -> bool {
        let Some(slot) = self.blocks.get_mut(usize::from(self.len)) else {
            return false;
        };
        *slot = (start, end);
        self.len = self.len.saturating_add(1);
        true
    }

    /// The blocks, in the order they were pushed.
    #[must_use]
    pub fn as_slice(&self) -> &[(Seq, Seq)] {
        self.blocks.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// None?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The options of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Largest segment the sender takes, in payload bytes; only with SYN.
    pub mss: Option<u16>,
    /// Shift of the windows the sender advertises, 0..=14; only with SYN.
    pub window_scale: Option<u8>,
    /// The sender understands SACK; only with SYN.
    pub sack_permitted: bool,
    /// Data received out of order.
    pub sack: SackBlocks,
    /// Timestamp value and echo reply.
    pub timestamps: Option<(u32, u32)>,
}

impl Options {
    /// No option.
    pub const NONE: Self = Self {
        mss: None,
        window_scale: None,
        sack_permitted: false,
        sack: SackBlocks::EMPTY,
        timestamps: None,
    };

    /// Length of all but SACK as [`Repr::emit`] lays them out, in bytes: at most 24.
    const fn len_without_sack(&self) -> usize {
        let mss = if self.mss.is_some() { 4 } else { 0 };
        let scale = if self.window_scale.is_some() {
            4_usize
        } else {
            0
        };
        let stamps = match (self.timestamps, self.sack_permitted) {
            (Some(_), _) => 12_usize,
            (None, true) => 4,
            (None, false) => 0,
        };
        scale.saturating_add(stamps).saturating_add(mss)
    }

    /// The SACK blocks there is room for.
    fn sack_that_fits(&self) -> &[(Seq, Seq)] {
        let room = MAX_HEADER_LEN
            .saturating_sub(HEADER_LEN)
            .saturating_sub(self.len_without_sack())
            .saturating_sub(4);
        let blocks = self.sack.as_slice();
        blocks.get(..room / 8).unwrap_or(blocks)
    }

    /// Length of the options as [`Repr::emit`] lays them out, in bytes: a multiple of 4, at most 40.
    #[must_use]
    pub fn emit_len(&self) -> usize {
        let sack = match self.sack_that_fits().len() {
            0 => 0,
            blocks => blocks.saturating_mul(8).saturating_add(4),
        };
        self.len_without_sack().saturating_add(sack)
    }

    /// Read the options area of a header.
    fn parse(mut data: &[u8]) -> Result<Self, Drop> {
        let mut options = Self::NONE;
        // What nearly every segment of an established connection carries, if anything.
        if let [
            OPTION_NOP,
            OPTION_NOP,
            OPTION_TIMESTAMPS,
            10,
            v3,
            v2,
            v1,
            v0,
            e3,
            e2,
            e1,
            e0,
        ] = data
        {
            let value = u32::from_be_bytes([*v3, *v2, *v1, *v0]);
            options.timestamps = Some((value, u32::from_be_bytes([*e3, *e2, *e1, *e0])));
            return Ok(options);
        }
        // At least one byte goes per turn: at most 40 turns.
        while let Some((kind, rest)) = data.split_first() {
            match *kind {
                OPTION_END => break,
                OPTION_NOP => data = rest,
                kind => {
                    let (len, _) = rest.split_first().ok_or(Drop::Malformed)?;
                    let body = usize::from(*len).checked_sub(2).ok_or(Drop::Malformed)?;
                    let ([_, _], rest) = take::<2>(data)?;
                    let (body, rest) = rest.split_at_checked(body).ok_or(Drop::Malformed)?;
                    options.read(kind, body);
                    data = rest;
                }
            }
        }
        Ok(options)
    }

    /// Take in one option, unless it is unknown or of the wrong length.
    fn read(&mut self, kind: u8, body: &[u8]) {
        match (kind, body) {
            (OPTION_MSS, [high, low]) => self.mss = Some(u16::from_be_bytes([*high, *low])),
            (OPTION_WINDOW_SCALE, [shift]) => {
                self.window_scale = Some((*shift).min(MAX_WINDOW_SCALE));
            }
            (OPTION_SACK_PERMITTED, []) => self.sack_permitted = true,
            (OPTION_TIMESTAMPS, [v3, v2, v1, v0, e3, e2, e1, e0]) => {
                let value = u32::from_be_bytes([*v3, *v2, *v1, *v0]);
                self.timestamps = Some((value, u32::from_be_bytes([*e3, *e2, *e1, *e0])));
            }
            (OPTION_SACK, blocks) if !blocks.is_empty() && blocks.len() % 8 == 0 => {
                self.sack = SackBlocks::EMPTY;
                for block in blocks.chunks_exact(8) {
                    if let [s3, s2, s1, s0, e3, e2, e1, e0] = block {
                        let start = Seq(u32::from_be_bytes([*s3, *s2, *s1, *s0]));
                        self.sack
                            .push(start, Seq(u32::from_be_bytes([*e3, *e2, *e1, *e0])));
                    }
                }
            }
            _ => {}
        }
    }

    /// Write the options, every one aligned to four bytes as common stacks lay them out.
    fn emit(&self, out: &mut [u8]) -> Option<()> {
        let mut out = Writer(out);
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            out.put([OPTION_MSS, 4, high, low])?;
        }
        if let Some((value, echo)) = self.timestamps {
            out.put(if self.sack_permitted {
                [OPTION_SACK_PERMITTED, 2, OPTION_TIMESTAMPS, 10]
            } else {
                [OPTION_NOP, OPTION_NOP, OPTION_TIMESTAMPS, 10]
            })?;
            out.put(value.to_be_bytes())?;
            out.put(echo.to_be_bytes())?;
        } else if self.sack_permitted {
            out.put([OPTION_NOP, OPTION_NOP, OPTION_SACK_PERMITTED, 2])?;
        }
        if let Some(shift) = self.window_scale {
            out.put([OPTION_NOP, OPTION_WINDOW_SCALE, 3, shift])?;
        }
        let blocks = self.sack_that_fits();
        if !blocks.is_empty() {
            let len = u8::try_from(blocks.len())
                .ok()?
                .checked_mul(8)?
                .checked_add(2)?;
            out.put([OPTION_NOP, OPTION_NOP, OPTION_SACK, len])?;
            for (start, end) in blocks {
                out.put(start.0.to_be_bytes())?;
                out.put(end.0.to_be_bytes())?;
            }
        }
        Some(())
    }
}

/// The rest of a buffer that is filled in words of four bytes.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, word: [u8; 4]) -> Option<()> {
        let (head, tail) = std::mem::take(&mut self.0).split_first_chunk_mut()?;
        *head = word;
        self.0 = tail;
        Some(())
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    src_port: U16,
    dst_port: U16,
    seq: U32,
    ack: U32,
    data_offset: u8,
    flags: u8,
    window: U16,
    checksum: U16,
    urgent: U16,
}

/// A TCP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number of the first payload byte (or of SYN or FIN, which count as one).
    pub seq: Seq,
    /// The next sequence number the sender expects; counts only with [`Flags::ACK`].
    pub ack: Seq,
    /// Flags.
    pub flags: Flags,
    /// Advertised window, unscaled.
    pub window: u16,
    /// Urgent pointer; counts only with [`Flags::URG`].
    pub urgent: u16,
    /// Options.
    pub options: Options,
}

impl Repr {
    /// Length of the header as [`Repr::emit`] writes it, 20..=60 bytes.
    #[must_use]
    pub fn header_len(&self) -> usize {
        HEADER_LEN.saturating_add(self.options.emit_len())
    }

    /// The header, and the payload.
    ///
    /// # Errors
    /// [`Drop::Truncated`] if the header is not all there; [`Drop::Malformed`] if its length is below 20
    /// or an option's length is impossible.
    #[inline(always)]
    pub fn parse(data: &[u8]) -> Result<(Self, &[u8]), Drop> {
        let (raw, rest) = Raw::ref_from_prefix(data).map_err(|_| Drop::Truncated)?;
        let options_len = usize::from(raw.data_offset >> 4)
            .saturating_mul(4)
            .checked_sub(HEADER_LEN)
            .ok_or(Drop::Malformed)?;
        let (options, payload) = rest.split_at_checked(options_len).ok_or(Drop::Truncated)?;
        let repr = Self {
            src_port: raw.src_port.get(),
            dst_port: raw.dst_port.get(),
            seq: Seq(raw.seq.get()),
            ack: Seq(raw.ack.get()),
            flags: Flags(raw.flags),
            window: raw.window.get(),
            urgent: raw.urgent.get(),
            options: Options::parse(options)?,
        };
        Ok((repr, payload))
    }

    /// Write the header, with a zero checksum, to the start of `out`. SACK blocks beyond what the header
    /// has room for (three beside timestamps) are left out.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let len = self.header_len();
        let (fixed, rest) = out.split_first_chunk_mut::<HEADER_LEN>()?;
        let raw = Raw {
            src_port: U16::new(self.src_port),
            dst_port: U16::new(self.dst_port),
            seq: U32::new(self.seq.0),
            ack: U32::new(self.ack.0),
            data_offset: u8::try_from(len).ok()?.checked_shl(2)?,
            flags: self.flags.0,
            window: U16::new(self.window),
            checksum: U16::ZERO,
            urgent: U16::new(self.urgent),
        };
        raw.write_to(fixed).ok()?;
        if len > HEADER_LEN {
            self.options.emit(rest)?;
        }
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN of Linux: MSS 1460, SACK permitted, timestamps, window scale 7.
    const SYN: [u8; 40] = [
        0x9c, 0x40, 0x01, 0xbb, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 0xa0, 0x02, 0xfa, 0xf0, 0, 0,
        0, 0, 2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7,
    ];

    fn with_options(options: &[u8]) -> Vec<u8> {
        let padded = options.len().div_ceil(4) * 4;
        let mut out = SYN[..20].to_vec();
        out[12] = u8::try_from((20 + padded) / 4).unwrap() << 4;
        out.extend(options);
        out.resize(20 + padded, 0);
        out
    }

    #[test]
    fn vector() {
        let (repr, payload) = Repr::parse(&SYN).unwrap();
        assert!(payload.is_empty());
        let expected = Repr {
            src_port: 40_000,
            dst_port: 443,
            seq: Seq(0x1234_5678),
            ack: Seq(0),
            flags: Flags::SYN,
            window: 64_240,
            urgent: 0,
            options: Options {
                mss: Some(1460),
                window_scale: Some(7),
                sack_permitted: true,
                sack: SackBlocks::EMPTY,
                timestamps: Some((7, 0)),
            },
        };
        assert_eq!(repr, expected);
        assert_eq!(repr.header_len(), 40);
        let mut out = [0xff; 40];
        assert_eq!(repr.emit(&mut out), Some(40));
        assert_eq!(out, SYN);
        for short in 0..40 {
            assert_eq!(repr.emit(&mut out[..short]), None);
            assert_eq!(Repr::parse(&SYN[..short]), Err(Drop::Truncated));
        }
    }

    #[test]
    fn sack_blocks() {
        let mut options = Options::NONE;
        for i in 0..4 {
            assert!(options.sack.push(Seq(i * 10), Seq(i * 10 + 5)));
        }
        assert!(!options.sack.push(Seq(0), Seq(0)));
        let (mut repr, _) =
            Repr::parse(&SYN[..20].iter().copied().chain([0; 20]).collect::<Vec<_>>()).unwrap();
        repr.options = options;
        let mut out = [0; 60];
        assert_eq!(repr.emit(&mut out), Some(56));
        assert_eq!(Repr::parse(&out).unwrap().0, repr);
        // Beside timestamps there is room for three.
        repr.options.timestamps = Some((1, 2));
        assert_eq!(repr.emit(&mut out), Some(60));
        let (again, _) = Repr::parse(&out).unwrap();
        assert_eq!(again.options.sack.as_slice(), &options.sack.as_slice()[..3]);
        assert_eq!(again.options.sack.len(), 3);
    }

    #[test]
    fn data_offset_lies() {
        for offset in 0..16_u8 {
            let mut data = SYN;
            data[12] = offset << 4;
            let result = Repr::parse(&data).map(|(_, payload)| payload.len());
            match offset {
                0..5 => assert_eq!(result, Err(Drop::Malformed)),
                5..=10 => assert!(
                    result == Ok(40 - usize::from(offset) * 4) || result == Err(Drop::Malformed)
                ),
                _ => assert_eq!(result, Err(Drop::Truncated)),
            }
        }
    }

    #[test]
    fn amnesia33_option_lengths_zero_and_one() {
        for kind in 2..=u8::MAX {
            for len in [0, 1] {
                assert_eq!(
                    Repr::parse(&with_options(&[kind, len])),
                    Err(Drop::Malformed),
                    "{kind} {len}"
                );
                assert_eq!(
                    Repr::parse(&with_options(&[1, 1, kind, len])),
                    Err(Drop::Malformed)
                );
            }
            // The kind is the last byte: there is no length at all.
            assert_eq!(
                Repr::parse(&with_options(&[1, 1, 1, kind])),
                Err(Drop::Malformed)
            );
            // One byte too long.
            assert_eq!(
                Repr::parse(&with_options(&[kind, 5, 0, 0])),
                Err(Drop::Malformed)
            );
        }
        // Behind the end of the list anything goes.
        assert!(Repr::parse(&with_options(&[0, 2, 0, 0])).is_ok());
    }

    #[test]
    fn option_bytes_exhaustively_to_length_3() {
        let mut data = with_options(&[0; 4]);
        for a in 0..=u8::MAX {
            for b in 0..=u8::MAX {
                for c in 0..=u8::MAX {
                    data[20..23].copy_from_slice(&[a, b, c]);
                    if let Ok((repr, payload)) = Repr::parse(&data) {
                        assert!(payload.is_empty());
                        assert!(repr.options.window_scale.is_none_or(|s| s <= 14));
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_of_known_options_are_skipped() {
        let data = with_options(&[
            2, 3, 9, 4, 3, 0, 3, 2, 5, 2, 5, 5, 1, 2, 3, 8, 4, 0, 0, 3, 3, 200,
        ]);
        let (repr, _) = Repr::parse(&data).unwrap();
        let expected = Options {
            window_scale: Some(14),
            ..Options::NONE
        };
        assert_eq!(repr.options, expected);
    }

    #[test]
    fn sack_of_one_and_a_half_blocks_is_skipped() {
        let mut options = vec![5, 14];
        options.extend([1; 12]);
        let (repr, _) = Repr::parse(&with_options(&options)).unwrap();
        assert!(repr.options.sack.is_empty());
        options[1] = 10;
        options[10..].fill(1);
        let (repr, _) = Repr::parse(&with_options(&options)).unwrap();
        let block = (Seq(0x0101_0101), Seq(0x0101_0101));
        assert_eq!(repr.options.sack.as_slice(), [block]);
    }

    #[test]
    fn cve_2026_9539_urgent_pointer_is_only_a_number() {
        for urgent in [0, 1, 0x7fff, 0xffff] {
            let mut data = SYN;
            data[13] |= Flags::URG.0;
            data[18..20].copy_from_slice(&u16::to_be_bytes(urgent));
            let (repr, payload) = Repr::parse(&data).unwrap();
            assert_eq!((repr.urgent, payload.len()), (urgent, 0));
        }
    }

    #[test]
    fn sequence_arithmetic_across_the_wrap() {
        let (a, b) = (Seq(0xffff_fff0), Seq(0x10));
        assert!(a.lt(b) && a.le(b) && b.gt(a) && b.ge(a) && a.le(a) && a.ge(a) && !a.lt(a));
        assert_eq!(a.add(0x20), b);
        assert_eq!(b.sub(0x20), a);
        assert_eq!(b.distance(a), 0x20);
        assert_eq!((b.offset(a), a.offset(b)), (0x20, -0x20));
        assert_eq!((a.max(b), a.min(b)), (b, a));
    }

    #[test]
    fn flags_read_well() {
        assert_eq!(format!("{:?}", Flags::SYN | Flags::ACK), "SYN|ACK");
        assert_eq!(format!("{:?}", Flags::NONE), "-");
        assert!((Flags::FIN | Flags::ACK).contains(Flags::FIN));
        assert!(!Flags::FIN.contains(Flags::FIN | Flags::ACK));
        assert!(Flags::FIN.intersects(Flags::FIN | Flags::ACK));
        assert_eq!((Flags::FIN | Flags::ACK).without(Flags::FIN), Flags::ACK);
    }

    prop_compose! {
        fn any_options()(mss: Option<u16>, scale in proptest::option::of(0_u8..=14), sack_permitted: bool,
                         timestamps: Option<(u32, u32)>,
                         blocks in proptest::collection::vec(any::<(u32, u32)>(), 0..=4)) -> Options {
            let mut options = Options { mss, window_scale: scale, sack_permitted, timestamps, sack: SackBlocks::EMPTY };
            let room = (40 - options.emit_len() - 4) / 8;
            for (start, end) in blocks.into_iter().take(room) {
                options.sack.push(Seq(start), Seq(end));
            }
            options
        }
    }

    proptest! {
        #[test]
        fn round_trip(src_port: u16, dst_port: u16, seq: u32, ack: u32, flags: u8, window: u16, urgent: u16,
                      options in any_options()) {
            let repr = Repr {
                src_port, dst_port, seq: Seq(seq), ack: Seq(ack), flags: Flags(flags), window, urgent, options,
            };
            let mut out = [0xa5; 70];
            let len = repr.emit(&mut out).unwrap();
            prop_assert_eq!(len, repr.header_len());
            let (again, payload) = Repr::parse(&out).unwrap();
            prop_assert_eq!(again, repr);
            prop_assert_eq!(payload.len(), 70 - len);
        }

        #[test]
        fn any_options_bytes(options in proptest::collection::vec(0_u8..12, 0..=40)) {
            if let Ok((repr, _)) = Repr::parse(&with_options(&options)) {
                let mut out = [0; 60];
                let len = repr.emit(&mut out).unwrap();
                let (again, _) = Repr::parse(&out[..len]).unwrap();
                let kept = Options { sack: again.options.sack, ..repr.options };
                prop_assert_eq!(again.options, kept);
            }
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Repr::parse(&bytes);
        }

        #[test]
        fn comparison_is_antisymmetric(a: u32, d in 1_u32..0x8000_0000) {
            let (a, b) = (Seq(a), Seq(a).add(d));
            prop_assert!(a.lt(b) && b.gt(a) && !b.le(a) && !a.ge(b));
            prop_assert_eq!(b.distance(a), d);
        }
    }
}
