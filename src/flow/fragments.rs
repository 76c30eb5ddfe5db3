//! Putting fragmented datagrams of the guest back together (RFC 791, RFC 8200 4.5).
//!
//! A socket takes whole datagrams, so fragments have to be collected before they can be translated. This
//! is where user-mode networking has been attacked most often, so the rules are few and blunt:
//!
//! * Memory is fixed: a number of slots, each with room for the largest datagram, reserved once (untouched
//!   pages cost nothing). When all are taken the one begun first is given up. There is no list to walk,
//!   nothing to free, and nothing a flood can make grow.
//! * Only payload is kept, at its offset. Headers of fragments are not, so they cannot disagree.
//! * A slot knows, by a bitmap of eight-byte blocks (the unit of fragment offsets), what it holds. Any
//!   overlap dooms the whole datagram, including fragments still to come (RFC 5722, applied to IPv4 as
//!   well): between two versions of the same byte there is no right answer. Only an exact repetition
//!   is tolerated, because networks do repeat.
//! * A datagram is handed out when every byte up to its end has arrived exactly once, so nothing is ever
//!   read from a slot that this datagram did not write.
//!
//! Time is only looked at when a fragment arrives: a stale slot does no harm while it waits to be reused.

use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Instant;
use crate::stats::Drop;
use crate::wire::dissect::{IpPacket, Upper};

/// How long after its first fragment a datagram may still be completed: Linux' `ipfrag_time`.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Unit of fragment offsets, in bytes.
const BLOCK: usize = 8;
/// Largest datagram payload, in bytes, rounded up to whole blocks.
const ROOM: usize = 65_536;
/// Words of a slot's bitmap.
const WORDS: usize = ROOM / BLOCK / 64;
/// Largest payload of an IPv4 packet (length field less the shortest header), in bytes.
const MAX_IPV4: usize = 65_515;
/// Largest payload of an IPv6 packet, in bytes.
const MAX_IPV6: usize = 65_535;

/// What fragments of one datagram have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Identification field (16 bits in IPv4).
    pub ident: u32,
    /// Upper-layer protocol. For IPv6 it is not part of the identity (RFC 8200), but the sender has no
    /// reason to use one identification for two, and a mix must not be joined.
    pub protocol: u8,
}

/// One fragment.
#[derive(Clone, Copy, Debug)]
pub struct Fragment<'a> {
    /// Which datagram.
    pub key: Key,
    /// Where in it, in bytes; a multiple of eight.
    pub offset: usize,
    /// Whether more fragments follow.
    pub more: bool,
    /// Its payload, without padding of the link layer.
    pub payload: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// The fragment that a packet is, if it is one.
    #[must_use]
    pub fn of(ip: &IpPacket<'a>) -> Option<Self> {
        let (Some(info), Upper::Fragment { protocol, payload }) = (ip.fragment, ip.upper) else {
            return None;
        };
        let key = Key {
            src: ip.src,
            dst: ip.dst,
            ident: info.ident,
            protocol,
        };
        Some(Self {
            key,
            offset: info.offset,
            more: info.more,
            payload,
        })
    }
}

impl Fragment<'_> {
    /// The byte after the last one, if this is a fragment the standards allow.
    fn end(&self) -> Option<usize> {
        let max = if self.key.src.is_ipv6() {
            MAX_IPV6
        } else {
            MAX_IPV4
        };
        let end = self.offset.checked_add(self.payload.len())?;
        let whole_blocks =
            self.offset % BLOCK == 0 && (!self.more || self.payload.len() % BLOCK == 0);
        (whole_blocks && !self.payload.is_empty() && end <= max).then_some(end)
    }
}

/// What became of a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// Kept; more are needed.
    Incomplete,
    /// The last one needed: the payload of the whole datagram.
    Complete(&'a [u8]),
    /// Not kept.
    Dropped(Drop),
}

/// What a slot is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing.
    Free,
    /// Collecting the fragments of this datagram.
    Collecting(Key),
    /// Refusing the fragments of this datagram: one of them was wrong.
    Doomed(Key),
}

impl State {
    /// Datagrams lost when a slot in this state is given to another.
    fn lost(self) -> u32 {
        u32::from(matches!(self, Self::Collecting(_)))
    }
}

/// Bookkeeping of one datagram.
#[derive(Clone, Debug)]
struct Slot {
    state: State,
    begun: Instant,
    /// Bytes received so far; none of them twice.
    received: usize,
    /// Length of the datagram, once the fragment without successor was seen.
    total: Option<usize>,
    /// The largest end of any fragment so far.
    highest: usize,
    /// Blocks received.
    blocks: [u64; WORDS],
}

impl Slot {
    const FREE: Self = Self {
        state: State::Free,
        begun: Instant(0),
        received: 0,
        total: None,
        highest: 0,
        blocks: [0; WORDS],
    };

    /// Look at one fragment of this slot's datagram, and keep its payload in `room` if it is in order.
    fn keep(&mut self, room: &mut [u8], fragment: &Fragment<'_>) -> Verdict {
        let start = fragment.offset;
        let Some(end) = fragment.end() else {
            return Verdict::Doom;
        };
        let fits = match self.total {
            Some(total) if fragment.more => end < total,
            Some(total) => end == total,
            None => fragment.more || end >= self.highest,
        };
        let Some(place) = room.get_mut(start..end) else {
            return Verdict::Doom;
        };
        if !fits {
            return Verdict::Doom;
        }
        let Range { first, masks } = Range::of(start, end);
        let known = || self.blocks.iter().skip(first).zip(masks.clone());
        if known().any(|(word, mask)| word & mask != 0) {
            let repeated =
                known().all(|(word, mask)| word & mask == mask) && place == fragment.payload;
            return if repeated {
                Verdict::Wait
            } else {
                Verdict::Doom
            };
        }
        for (word, mask) in self.blocks.iter_mut().skip(first).zip(masks) {
            *word |= mask;
        }
        place.copy_from_slice(fragment.payload);
        self.received = self.received.saturating_add(fragment.payload.len());
        self.highest = self.highest.max(end);
        if !fragment.more {
            self.total = Some(end);
        }
        match self.total {
            Some(total) if total == self.received => Verdict::Whole(total),
            _ => Verdict::Wait,
        }
    }
}

/// What a fragment means for its datagram.
enum Verdict {
    /// Not whole yet.
    Wait,
    /// Whole: this many bytes.
    Whole(usize),
    /// Beyond repair.
    Doom,
}

/// A range of bytes as words of a bitmap: the first of them, and a mask for each.
struct Range<I> {
    first: usize,
    masks: I,
}

impl Range<()> {
    /// The blocks that `start..end`, not empty, touches.
    fn of(start: usize, end: usize) -> Range<impl Iterator<Item = u64> + Clone> {
        let (from, to) = (start / BLOCK, end.saturating_sub(1) / BLOCK);
        let (first, last) = (from / 64, to / 64);
        let head = u64::MAX << (from % 64);
        // 63 less the position, without a subtraction that could be asked about.
        let tail = u64::MAX >> ((to % 64) ^ 63);
        let masks = (first..=last).map(move |i| {
            let mask = if i == first { head } else { u64::MAX };
            if i == last { mask & tail } else { mask }
        });
        Range { first, masks }
    }
}

/// Collects fragments until datagrams are whole.
#[derive(Debug)]
pub struct Reassembler {
    slots: Vec<Slot>,
    /// [`ROOM`] bytes for each slot.
    rooms: Vec<u8>,
    lost: u32,
}

impl Reassembler {
    /// Room for `slots` datagrams at a time, 65 KiB of address space each; at least one.
    #[must_use]
    pub fn with_capacity(slots: usize) -> Self {
        let slots = slots.max(1);
        Self {
            slots: vec![Slot::FREE; slots],
            rooms: vec![0; slots.saturating_mul(ROOM)],
            lost: 0,
        }
    }

    /// Take one fragment. The slice of a complete datagram is valid until the next call.
    pub fn insert<'a>(&'a mut self, now: Instant, fragment: &Fragment<'a>) -> Outcome<'a> {
        const REFUSED: Outcome<'_> = Outcome::Dropped(Drop::Fragment);
        // A fragment header on a whole datagram concerns no other fragment (RFC 6946).
        if fragment.offset == 0 && !fragment.more {
            return Outcome::Complete(fragment.payload);
        }
        let index = self.slot_for(now, fragment.key);
        let (Some(slot), Some(room)) = (
            self.slots.get_mut(index),
            self.rooms.chunks_exact_mut(ROOM).nth(index),
        ) else {
            return REFUSED;
        };
        if slot.state != State::Collecting(fragment.key) {
            return REFUSED;
        }
        match slot.keep(room, fragment) {
            Verdict::Wait => Outcome::Incomplete,
            Verdict::Whole(total) => {
                slot.state = State::Free;
                room.get(..total).map_or(REFUSED, Outcome::Complete)
            }
            Verdict::Doom => {
                slot.state = State::Doomed(fragment.key);
                REFUSED
            }
        }
    }

    /// Datagrams given up incomplete since the last call, for lack of time or room.
    pub fn take_lost(&mut self) -> u32 {
        std::mem::take(&mut self.lost)
    }

    /// The slot that works on this datagram; else a free one; else the one begun first, given up.
    fn slot_for(&mut self, now: Instant, key: Key) -> usize {
        for slot in &mut self.slots {
            if slot.state != State::Free && now.since(slot.begun) >= TIMEOUT {
                self.lost = self.lost.saturating_add(slot.state.lost());
                slot.state = State::Free;
            }
        }
        let mine =
            |slot: &Slot| slot.state == State::Collecting(key) || slot.state == State::Doomed(key);
        if let Some(index) = self.slots.iter().position(mine) {
            return index;
        }
        let candidates = self.slots.iter().enumerate();
        let (index, _) = candidates
            .min_by_key(|(_, s)| (s.state != State::Free, s.begun))
            .unzip();
        let index = index.unwrap_or(0);
        if let Some(slot) = self.slots.get_mut(index) {
            self.lost = self.lost.saturating_add(slot.state.lost());
            *slot = Slot {
                state: State::Collecting(key),
                begun: now,
                ..Slot::FREE
            };
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T0: Instant = Instant(1_000_000);

    fn key(ident: u32) -> Key {
        Key {
            src: "192.0.2.5".parse().unwrap(),
            dst: "198.51.100.1".parse().unwrap(),
            ident,
            protocol: 17,
        }
    }

    fn key6(ident: u32) -> Key {
        Key {
            src: "2001:db8::5".parse().unwrap(),
            dst: "2001:db8::1".parse().unwrap(),
            ident,
            protocol: 17,
        }
    }

    /// Bytes that differ from place to place and from their neighbours.
    fn data(len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap())
            .collect()
    }

    fn piece(key: Key, whole: &[u8], start: usize, end: usize) -> Fragment<'_> {
        Fragment {
            key,
            offset: start,
            more: end < whole.len(),
            payload: &whole[start..end],
        }
    }

    const DROPPED: Outcome<'_> = Outcome::Dropped(Drop::Fragment);

    #[test]
    fn any_order() {
        let whole = data(20);
        let cuts = [(0, 8), (8, 16), (16, 20)];
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut r = Reassembler::with_capacity(2);
            for (n, i) in order.into_iter().enumerate() {
                let (start, end) = cuts[i];
                let out = r.insert(T0, &piece(key(1), &whole, start, end));
                let want = if n == 2 {
                    Outcome::Complete(&whole)
                } else {
                    Outcome::Incomplete
                };
                assert_eq!(out, want, "{order:?} {n}");
            }
            // The slot is free again: the same identification starts afresh.
            assert_eq!(
                r.insert(T0, &piece(key(1), &whole, 0, 8)),
                Outcome::Incomplete
            );
            assert_eq!(r.take_lost(), 0);
        }
    }

    #[test]
    fn largest_datagrams() {
        for (key, max) in [(key(1), MAX_IPV4), (key6(1), MAX_IPV6)] {
            let whole = data(max);
            let mut r = Reassembler::with_capacity(1);
            let step = 1480;
            for start in (0..max).step_by(step) {
                let end = (start + step).min(max);
                let out = r.insert(T0, &piece(key, &whole, start, end));
                let want = if end == max {
                    Outcome::Complete(&whole)
                } else {
                    Outcome::Incomplete
                };
                assert_eq!(out, want, "{start}");
            }
        }
    }

    /// "Ping of death": offset and length together pass 65535 (CVE-2019-14378 class).
    #[test]
    fn beyond_the_largest_datagram() {
        for (key, offset, len) in [
            (key(1), 65_528, 8),
            (key(1), 65_512, 8),
            (key(1), 65_528, 60_000),
            (key6(1), 65_528, 8),
            (key6(1), usize::MAX - 7, 8),
            (key6(1), usize::MAX - 7, 64),
        ] {
            for more in [false, true] {
                let mut r = Reassembler::with_capacity(1);
                let payload = vec![1; len];
                assert_eq!(
                    r.insert(
                        T0,
                        &Fragment {
                            key,
                            offset,
                            more,
                            payload: &payload
                        }
                    ),
                    DROPPED,
                    "{offset} {len}"
                );
                assert_eq!(
                    r.insert(T0, &piece(key, &data(16), 0, 8)),
                    DROPPED,
                    "doomed"
                );
            }
        }
        let mut r = Reassembler::with_capacity(1);
        assert_eq!(
            r.insert(
                T0,
                &Fragment {
                    key: key6(1),
                    offset: 65_528,
                    more: false,
                    payload: &[1; 7]
                }
            ),
            Outcome::Incomplete
        );
    }

    /// Teardrop and relatives: every way two fragments can share a byte dooms the datagram for good.
    #[test]
    fn overlaps() {
        let whole = data(64);
        let other = vec![0xee; 64];
        for (a, b) in [
            ((0, 32), (24, 64)),  // tail over head
            ((0, 32), (8, 16)),   // inside (teardrop)
            ((8, 16), (0, 32)),   // around
            ((0, 32), (0, 32)),   // same place, other bytes
            ((32, 64), (24, 40)), // over the last fragment
            ((32, 64), (56, 64)), // two last fragments
            ((24, 64), (0, 32)),
        ] {
            let mut r = Reassembler::with_capacity(4);
            assert_eq!(
                r.insert(T0, &piece(key(1), &whole, a.0, a.1)),
                Outcome::Incomplete
            );
            assert_eq!(
                r.insert(T0, &piece(key(1), &other, b.0, b.1)),
                DROPPED,
                "{a:?} {b:?}"
            );
            for start in (0..64).step_by(8) {
                assert_eq!(
                    r.insert(T0, &piece(key(1), &whole, start, start + 8)),
                    DROPPED,
                    "{a:?} {b:?} then {start}"
                );
            }
            // Others are not concerned, and after the timeout the identification is free again.
            assert_eq!(
                r.insert(T0, &piece(key(2), &whole, 0, 32)),
                Outcome::Incomplete
            );
            assert_eq!(
                r.insert(T0 + TIMEOUT, &piece(key(1), &whole, 0, 32)),
                Outcome::Incomplete
            );
            assert_eq!(
                r.insert(T0 + TIMEOUT, &piece(key(1), &whole, 32, 64)),
                Outcome::Complete(&whole)
            );
        }
    }

    #[test]
    fn exact_repetitions_are_harmless() {
        let whole = data(30);
        let mut r = Reassembler::with_capacity(1);
        for (start, end) in [(0, 16), (0, 16), (24, 30), (24, 30), (0, 16)] {
            assert_eq!(
                r.insert(T0, &piece(key(1), &whole, start, end)),
                Outcome::Incomplete
            );
        }
        assert_eq!(
            r.insert(T0, &piece(key(1), &whole, 16, 24)),
            Outcome::Complete(&whole)
        );
    }

    #[test]
    fn ends_that_disagree() {
        let whole = data(64);
        // A fragment behind the end, an end before a fragment, an end that moves either way, and a
        // "more" fragment that stops where the datagram does.
        for (a, b) in [
            ((8, 16, false), (24, 32, true)),
            ((24, 32, true), (8, 16, false)),
            ((8, 16, false), (16, 24, false)),
            ((24, 32, false), (8, 16, false)),
            ((16, 28, false), (24, 32, true)),
            ((8, 16, false), (8, 16, true)),
        ] {
            let mut r = Reassembler::with_capacity(1);
            let f = |(start, end, more): (usize, usize, bool)| Fragment {
                key: key(1),
                offset: start,
                more,
                payload: &whole[start..end],
            };
            assert_eq!(r.insert(T0, &f(a)), Outcome::Incomplete, "{a:?}");
            assert_eq!(r.insert(T0, &f(b)), DROPPED, "{a:?} {b:?}");
        }
    }

    #[test]
    fn fragments_no_standard_allows() {
        let whole = data(64);
        for (offset, len, more) in [
            (0, 0, true),
            (8, 0, false),
            (8, 0, true),
            (0, 7, true),
            (8, 9, true),
            (4, 8, true),
            (9, 3, false),
        ] {
            let mut r = Reassembler::with_capacity(1);
            let f = Fragment {
                key: key(1),
                offset,
                more,
                payload: &whole[..len],
            };
            assert_eq!(r.insert(T0, &f), DROPPED, "{offset} {len} {more}");
        }
    }

    #[test]
    fn whole_datagrams_pass_untouched_and_leave_others_alone() {
        let whole = data(30);
        let mut r = Reassembler::with_capacity(1);
        assert_eq!(
            r.insert(T0, &piece(key6(1), &whole, 0, 8)),
            Outcome::Incomplete
        );
        assert_eq!(
            r.insert(
                T0,
                &Fragment {
                    key: key6(1),
                    offset: 0,
                    more: false,
                    payload: &whole
                }
            ),
            Outcome::Complete(&whole)
        );
        assert_eq!(
            r.insert(T0, &piece(key6(1), &whole, 8, 30)),
            Outcome::Complete(&whole)
        );
    }

    #[test]
    fn what_differs_is_never_joined() {
        let whole = data(16);
        let mut others = [key(1); 4];
        others[0].ident = 2;
        others[1].protocol = 1;
        others[2].src = "192.0.2.6".parse().unwrap();
        others[3].dst = "198.51.100.2".parse().unwrap();
        for other in others {
            let mut r = Reassembler::with_capacity(2);
            assert_eq!(
                r.insert(T0, &piece(key(1), &whole, 0, 8)),
                Outcome::Incomplete
            );
            assert_eq!(
                r.insert(T0, &piece(other, &whole, 8, 16)),
                Outcome::Incomplete
            );
        }
    }

    /// A slot that held more before must not leak it into a shorter datagram (libslirp 4.9.4 class).
    #[test]
    fn nothing_of_the_previous_datagram_shows() {
        let old = vec![0x55; 4096];
        let mut r = Reassembler::with_capacity(1);
        assert_eq!(
            r.insert(T0, &piece(key(1), &old, 0, 4088)),
            Outcome::Incomplete
        );
        let new = data(21);
        assert_eq!(
            r.insert(T0, &piece(key(2), &new, 16, 21)),
            Outcome::Incomplete
        );
        assert_eq!(
            r.insert(T0, &piece(key(2), &new, 0, 8)),
            Outcome::Incomplete
        );
        assert_eq!(
            r.insert(T0, &piece(key(2), &new, 8, 16)),
            Outcome::Complete(&new)
        );
        assert_eq!(r.take_lost(), 1);
        assert_eq!(r.take_lost(), 0);
    }

    #[test]
    fn timeout_is_counted_from_the_first_fragment() {
        let whole = data(24);
        let late = T0 + (TIMEOUT - Duration::from_micros(1));
        let mut r = Reassembler::with_capacity(2);
        assert_eq!(
            r.insert(T0, &piece(key(1), &whole, 0, 8)),
            Outcome::Incomplete
        );
        assert_eq!(
            r.insert(late, &piece(key(1), &whole, 8, 16)),
            Outcome::Incomplete
        );
        assert_eq!(
            r.insert(T0 + TIMEOUT, &piece(key(1), &whole, 16, 24)),
            Outcome::Incomplete,
            "too late: a new one"
        );
        assert_eq!(r.take_lost(), 1);
        let mut r = Reassembler::with_capacity(2);
        assert_eq!(
            r.insert(T0, &piece(key(1), &whole, 0, 16)),
            Outcome::Incomplete
        );
        assert_eq!(
            r.insert(late, &piece(key(1), &whole, 16, 24)),
            Outcome::Complete(&whole)
        );
    }

    /// 100,000 datagrams begun and never finished: memory stays what it was, the next one still works, and
    /// the ones given up are the oldest.
    #[test]
    fn flood_of_incomplete_datagrams() {
        let whole = data(24);
        let mut r = Reassembler::with_capacity(16);
        let before = (r.slots.capacity(), r.rooms.capacity());
        for i in 0..100_000 {
            let now = T0 + Duration::from_micros(u64::from(i));
            assert_eq!(
                r.insert(now, &piece(key(i), &whole, 0, 8)),
                Outcome::Incomplete
            );
        }
        assert_eq!((r.slots.capacity(), r.rooms.capacity()), before);
        assert_eq!(r.take_lost(), 100_000 - 16);
        let now = T0 + Duration::from_secs(1);
        for i in 100_000 - 16..100_000 {
            assert_eq!(
                r.insert(now, &piece(key(i), &whole, 8, 24)),
                Outcome::Complete(&whole),
                "{i}"
            );
        }
    }

    /// A frame with a piece of a UDP datagram, as the guest's kernel would send it.
    fn frame(v6: bool, whole: &[u8], start: usize, end: usize) -> Vec<u8> {
        use crate::addr::Mac;
        use crate::wire::{PROTOCOL_UDP, ethernet, ipv4, ipv6};
        let more = end < whole.len();
        let (offset, len) = (u16::try_from(start).unwrap(), end - start);
        let ethertype = if v6 {
            ethernet::ETHERTYPE_IPV6
        } else {
            ethernet::ETHERTYPE_IPV4
        };
        let mut out = vec![0; 100];
        let mut at = ethernet::Header {
            dst: Mac::OURS,
            src: Mac([2; 6]),
            ethertype,
        }
        .emit(&mut out)
        .unwrap();
        at += if v6 {
            let fragment = Some(ipv6::Fragment {
                ident: 9,
                offset,
                more,
            });
            let (src, dst) = (
                "2001:db8::5".parse().unwrap(),
                "2001:db8::1".parse().unwrap(),
            );
            ipv6::Repr {
                fragment,
                ..ipv6::Repr::new(src, dst, PROTOCOL_UDP, len)
            }
            .emit(&mut out[at..])
            .unwrap()
        } else {
            let (src, dst) = (
                "192.0.2.5".parse().unwrap(),
                "198.51.100.1".parse().unwrap(),
            );
            let repr = ipv4::Repr::new(src, dst, PROTOCOL_UDP, len);
            ipv4::Repr {
                ident: 9,
                dont_fragment: false,
                more_fragments: more,
                fragment_offset: offset,
                ..repr
            }
            .emit(&mut out[at..])
            .unwrap()
        };
        out.truncate(at);
        out.extend(&whole[start..end]);
        out
    }

    #[test]
    fn from_frames_to_a_datagram() {
        use crate::wire::dissect::{Body, dissect, reassembled};
        // Ports 1000 and 2000, no checksum (allowed in IPv4), 21 bytes of payload.
        let datagram = [&[3, 232, 7, 208, 0, 29, 0, 0][..], b"in three small pieces"].concat();
        for v6 in [false, true] {
            let mut r = Reassembler::with_capacity(1);
            let mut whole = None;
            for (start, end) in [(16, 29), (0, 8), (8, 16)] {
                let frame = frame(v6, &datagram, start, end);
                let Body::Ip(ip) = dissect(&frame).unwrap().body else {
                    panic!()
                };
                let fragment = Fragment::of(&ip).unwrap();
                if let Outcome::Complete(payload) = r.insert(T0, &fragment) {
                    whole = Some(payload.to_vec());
                    if v6 {
                        assert_eq!(
                            reassembled(ip.src, ip.dst, fragment.key.protocol, payload),
                            Err(Drop::Checksum)
                        );
                        continue;
                    }
                    match reassembled(ip.src, ip.dst, fragment.key.protocol, payload).unwrap() {
                        Upper::Udp { repr, payload } => {
                            assert_eq!((repr.src_port, repr.dst_port), (1000, 2000));
                            assert_eq!(payload, b"in three small pieces");
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert_eq!(whole.unwrap(), datagram);
        }
    }

    proptest! {
        /// Any cutting in any order gives the datagram back exactly once, at the last piece.
        #[test]
        fn shuffled_pieces(len in 9usize..5000, cuts in prop::collection::btree_set(1usize..625, 1..40), seed in any::<u64>()) {
            let whole = data(len);
            let mut at: Vec<usize> = cuts.into_iter().map(|c| c * 8).filter(|c| *c < len).collect();
            at.insert(0, 0);
            at.push(len);
            prop_assume!(at.len() > 2);
            let mut pieces: Vec<_> = at.windows(2).map(|w| (w[0], w[1])).collect();
            let mut x = seed | 1;
            for i in (1..pieces.len()).rev() {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                pieces.swap(i, usize::try_from(x >> 33).unwrap() % (i + 1));
            }
            let mut r = Reassembler::with_capacity(3);
            let last = pieces.len() - 1;
            for (n, (start, end)) in pieces.into_iter().enumerate() {
                let out = r.insert(T0, &piece(key6(7), &whole, start, end));
                prop_assert_eq!(out, if n == last { Outcome::Complete(&whole) } else { Outcome::Incomplete });
            }
        }

        /// Whatever arrives, a datagram that is handed out consists of bytes that were sent for its places.
        #[test]
        fn against_a_model(fragments in prop::collection::vec((0u32..3, 0usize..6, 0usize..40, any::<bool>(), 0u8..2), 0..60)) {
            let mut r = Reassembler::with_capacity(2);
            let mut seen: std::collections::HashMap<(u32, usize), Vec<u8>> = std::collections::HashMap::new();
            for (ident, block, len, more, salt) in fragments {
                let payload: Vec<u8> = (0..len).map(|i| u8::try_from(block * 8 + i).unwrap() ^ (salt << 7)).collect();
                for (i, b) in payload.iter().enumerate() {
                    seen.entry((ident, block * 8 + i)).or_default().push(*b);
                }
                let f = Fragment { key: key6(ident), offset: block * 8, more, payload: &payload };
                if let Outcome::Complete(whole) = r.insert(T0, &f) {
                    for (i, b) in whole.iter().enumerate() {
                        prop_assert!(seen[&(ident, i)].contains(b));
                    }
                }
            }
        }
    }
}
