//! What a link without offloads leaves to us: cutting super-frames into segments, and checksums.
//!
//! The engines build one frame for a whole burst, with a checksum that holds the pseudo-header's sum only; a kernel
//! tap, or a guest that negotiated it, does the rest. For all others it is done here, as the Linux kernel's software
//! segmentation does it: each segment gets the headers of the super-frame with its own lengths, sequence number and
//! IPv4 identification (counting up, RFC 6864); FIN and PSH go on the last segment only, CWR on the first (RFC 3168).
//!
//! [`Segments`] hands out each segment as new headers and a piece of the old payload, which is read for its checksum
//! and never copied. Everything in a header's sum that does not differ between segments is added up once. [`complete`]
//! is for an ordinary frame that may be written to.
//!
//! The frames are our own, made by `wire::frame`: what does not look like one of those is refused with `None`,
//! not sent with headers that are wrong.

use crate::wire::checksum::{self, Sum};
use crate::wire::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, MIN_FRAME};
use crate::wire::frame::MAX_HEADER;
use crate::wire::tcp::{self, Flags};
use crate::wire::virtio_net::{F_NEEDS_CSUM, Gso, Header};
use crate::wire::{ipv4, ipv6, put_u16, udp};

/// Room that [`Segments::next`] needs for headers, in bytes: those of TCP at their longest, which is also more than
/// a whole frame of the least length.
pub const HEAD_ROOM: usize = MAX_HEADER;

const IP: usize = ethernet::HEADER_LEN;
const ETHERTYPE: usize = 12;
const V4_TOTAL_LEN: usize = IP + 2;
const V4_IDENT: usize = IP + 4;
const V4_CHECKSUM: usize = IP + ipv4::CHECKSUM_OFFSET;
const V4_END: usize = IP + ipv4::HEADER_LEN;
const V6_PAYLOAD_LEN: usize = IP + 4;
const V6_END: usize = IP + ipv6::HEADER_LEN;
/// From the start of the TCP header.
const TCP_SEQ: usize = 4;
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
/// From the start of the UDP header.
const UDP_LEN: usize = 4;

/// Complete the checksum of a frame that is no super-frame. `None`: the header does not fit the frame.
pub fn complete(offload: &Header, frame: &mut [u8]) -> Option<()> {
    if offload.gso != Gso::None {
        return None;
    }
    if offload.flags & F_NEEDS_CSUM == 0 {
        return Some(());
    }
    let upper = frame.get_mut(usize::from(offload.csum_start)..)?;
    // The field holds the sum of the pseudo-header; padding is zero and adds nothing.
    let sum = finish(offload, checksum::sum(upper));
    put_u16(upper, usize::from(offload.csum_offset), sum)
}

/// The checksum, by the rules of the protocol whose field it goes into.
fn finish(offload: &Header, sum: Sum) -> u16 {
    if usize::from(offload.csum_offset) == udp::CHECKSUM_OFFSET {
        sum.finish_udp()
    } else {
        sum.finish()
    }
}

fn get_u16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

fn get_u32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

fn put_u32(out: &mut [u8], at: usize, value: u32) -> Option<()> {
    *out.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}

/// The sum without a word that is in it.
const fn minus(sum: Sum, word: u16) -> Sum {
    sum.plus_u16(!word)
}

/// One frame for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// How many bytes of headers were written; they come first. 0: the whole frame is in `rest`.
    pub head: usize,
    /// What follows them.
    pub rest: &'a [u8],
}

impl Segment<'_> {
    /// Length of the frame in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.head.saturating_add(self.rest.len())
    }

    /// No frame at all?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The segments of one frame, in order.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    rest: &'a [u8],
    form: Form,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    /// Nothing is left to do.
    Finished,
    /// One frame, as it is.
    Complete,
    /// Headers to be repeated.
    Cut(Cut),
}

/// What is known of all segments.
#[derive(Clone, Copy, Debug)]
struct Cut {
    head: [u8; MAX_HEADER],
    head_len: usize,
    /// Where IP's header ends and the upper layer's begins.
    ip_end: usize,
    is_v6: bool,
    is_tcp: bool,
    /// Payload bytes in each segment but the last.
    size: usize,
    /// Sum of the IPv4 header but for length, identification and checksum.
    ip_sum: Sum,
    /// Sum of pseudo-header and upper header but for lengths, and TCP's sequence number and flags.
    upper_sum: Sum,
    ident: u16,
    seq: u32,
    flags: Flags,
}

impl<'a> Segments<'a> {
    /// The segments of `frame`, as `offload` describes it. `None`: it is not one of our frames.
    #[must_use]
    pub fn new(offload: &Header, frame: &'a [u8]) -> Option<Self> {
        if offload.flags & F_NEEDS_CSUM == 0 {
            return (offload.gso == Gso::None).then_some(Self {
                rest: frame,
                form: Form::Complete,
            });
        }
        let (cut, payload_len) = Cut::of(offload, frame)?;
        // Behind the packet there may be padding.
        let rest = frame.get(cut.head_len..)?.get(..payload_len)?;
        Some(Self {
            rest,
            form: Form::Cut(cut),
        })
    }

    /// The next segment: its headers are written to the start of `head`, which needs room for [`HEAD_ROOM`] bytes. One
    /// that is shorter than an Ethernet frame has to be is padded, and lies in `head` as a whole.
    pub fn next(&mut self, head: &mut [u8]) -> Option<Segment<'a>> {
        match &mut self.form {
            Form::Finished => None,
            Form::Complete => {
                self.form = Form::Finished;
                Some(Segment {
                    head: 0,
                    rest: self.rest,
                })
            }
            Form::Cut(cut) => {
                let (part, after) = self.rest.split_at(cut.size.min(self.rest.len()));
                let last = after.is_empty();
                let head_len = cut.emit(head, part, last)?;
                cut.advance(part.len());
                self.rest = after;
                if last {
                    self.form = Form::Finished;
                }
                pad(head, head_len, part)
            }
        }
    }
}

/// The frame of `head_len` bytes of headers and `part`, padded if it is too short.
fn pad<'a>(head: &mut [u8], head_len: usize, part: &'a [u8]) -> Option<Segment<'a>> {
    let len = head_len.saturating_add(part.len());
    if len >= MIN_FRAME {
        return Some(Segment {
            head: head_len,
            rest: part,
        });
    }
    head.get_mut(head_len..len)?.copy_from_slice(part);
    head.get_mut(len..MIN_FRAME)?.fill(0);
    Some(Segment {
        head: MIN_FRAME,
        rest: &[],
    })
}

impl Cut {
    /// What an offload header says about a frame, and how much payload there is.
    fn of(offload: &Header, frame: &[u8]) -> Option<(Self, usize)> {
        let is_v6 = match get_u16(frame, ETHERTYPE)? {
            ETHERTYPE_IPV4 => false,
            ETHERTYPE_IPV6 => true,
            _ => return None,
        };
        let ip_end = if is_v6 { V6_END } else { V4_END };
        let is_tcp = match usize::from(offload.csum_offset) {
            tcp::CHECKSUM_OFFSET => true,
            udp::CHECKSUM_OFFSET => false,
            _ => return None,
        };
        let expected = match offload.gso {
            Gso::None => true,
            Gso::TcpV4 => is_tcp && !is_v6,
            Gso::TcpV6 => is_tcp && is_v6,
            Gso::UdpL4 => !is_tcp,
            Gso::Udp => false,
        };
        if !expected || usize::from(offload.csum_start) != ip_end {
            return None;
        }
        let upper_len = if is_tcp {
            let words = frame.get(ip_end.checked_add(TCP_DATA_OFFSET)?)? >> 4;
            usize::from(words).checked_mul(4)?
        } else {
            udp::HEADER_LEN
        };
        let head_len = ip_end.checked_add(upper_len)?;
        let mut cut = Self {
            head: [0; MAX_HEADER],
            head_len,
            ip_end,
            is_v6,
            is_tcp,
            size: match offload.gso {
                Gso::None => usize::MAX,
                _ => usize::from(offload.gso_size).max(1),
            },
            ip_sum: Sum::ZERO,
            upper_sum: Sum::ZERO,
            ident: 0,
            seq: 0,
            flags: Flags::NONE,
        };
        cut.head
            .get_mut(..head_len)?
            .copy_from_slice(frame.get(..head_len)?);
        let total = cut.upper_total()?;
        cut.settle_upper(total)?;
        cut.settle_ip()?;
        Some((cut, usize::from(total).checked_sub(upper_len)?))
    }

    /// Take what differs between segments out of the upper header, and add up the rest.
    fn settle_upper(&mut self, total: u16) -> Option<()> {
        let upper = self.head.get_mut(self.ip_end..self.head_len)?;
        let field = if self.is_tcp {
            self.seq = get_u32(upper, TCP_SEQ)?;
            put_u32(upper, TCP_SEQ, 0)?;
            let flags = upper.get_mut(TCP_FLAGS)?;
            self.flags = Flags(*flags);
            *flags = 0;
            tcp::CHECKSUM_OFFSET
        } else {
            put_u16(upper, UDP_LEN, 0)?;
            udp::CHECKSUM_OFFSET
        };
        let pseudo = Sum::ZERO.plus_u16(get_u16(upper, field)?);
        put_u16(upper, field, 0)?;
        self.upper_sum = minus(pseudo, total).plus(checksum::sum(upper));
        Some(())
    }

    /// The length that is in the pseudo-header.
    fn upper_total(&self) -> Option<u16> {
        if self.is_v6 {
            get_u16(&self.head, V6_PAYLOAD_LEN)
        } else {
            let ip = u16::try_from(ipv4::HEADER_LEN).ok()?;
            get_u16(&self.head, V4_TOTAL_LEN)?.checked_sub(ip)
        }
    }

    /// The same for the header of IPv4.
    fn settle_ip(&mut self) -> Option<()> {
        if self.is_v6 {
            return Some(());
        }
        self.ident = get_u16(&self.head, V4_IDENT)?;
        for field in [V4_TOTAL_LEN, V4_IDENT, V4_CHECKSUM] {
            put_u16(&mut self.head, field, 0)?;
        }
        self.ip_sum = checksum::sum(self.head.get(IP..V4_END)?);
        Some(())
    }

    /// The segment after this one, with `len` bytes of payload in this one.
    fn advance(&mut self, len: usize) {
        // At most a frame's worth.
        self.seq = self
            .seq
            .wrapping_add(u32::try_from(len).unwrap_or_default());
        self.ident = self.ident.wrapping_add(1);
        self.flags = self.flags.without(Flags::CWR);
    }

    /// Write the headers in front of `payload`; their length.
    fn emit(&self, out: &mut [u8], payload: &[u8], last: bool) -> Option<usize> {
        let out = out.get_mut(..HEAD_ROOM)?;
        // The whole array: a length known beforehand is copied without a call.
        out.copy_from_slice(&self.head);
        let headers = self.head_len.checked_sub(self.ip_end)?;
        let upper_len = u16::try_from(headers.checked_add(payload.len())?).ok()?;
        if self.is_v6 {
            put_u16(out, V6_PAYLOAD_LEN, upper_len)?;
        } else {
            let total = upper_len.checked_add(u16::try_from(ipv4::HEADER_LEN).ok()?)?;
            put_u16(out, V4_TOTAL_LEN, total)?;
            put_u16(out, V4_IDENT, self.ident)?;
            let sum = self.ip_sum.plus_u16(total).plus_u16(self.ident);
            put_u16(out, V4_CHECKSUM, sum.finish())?;
        }
        let upper = out.get_mut(self.ip_end..)?;
        let sum = self
            .upper_sum
            .plus_u16(upper_len)
            .plus(checksum::sum(payload));
        if self.is_tcp {
            let mut flags = self.flags;
            if !last {
                flags = flags.without(Flags::FIN | Flags::PSH);
            }
            put_u32(upper, TCP_SEQ, self.seq)?;
            *upper.get_mut(TCP_FLAGS)? = flags.0;
            let sum = sum.plus_u32(self.seq).plus_u16(u16::from(flags.0));
            put_u16(upper, tcp::CHECKSUM_OFFSET, sum.finish())?;
        } else {
            put_u16(upper, UDP_LEN, upper_len)?;
            let sum = sum.plus_u16(upper_len);
            put_u16(upper, udp::CHECKSUM_OFFSET, sum.finish_udp())?;
        }
        Some(self.head_len)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::addr::{Endpoint, Mac};
    use crate::wire::dissect::{Body, IpPacket, Upper, dissect};
    use crate::wire::frame::{Checksum, Template};
    use crate::wire::tcp::{Options, Repr, Seq};

    fn template(is_v6: bool) -> Template {
        let ip = |last: u8| -> IpAddr {
            if is_v6 {
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)).into()
            } else {
                Ipv4Addr::new(192, 0, 2, last).into()
            }
        };
        let (src, dst) = (Endpoint::new(ip(1), 443), Endpoint::new(ip(2), 40_000));
        Template::new(Mac([2, 0, 0, 0, 0, 1]), Mac::OURS, src, dst)
    }

    fn repr(flags: Flags) -> Repr {
        Repr {
            src_port: 443,
            dst_port: 40_000,
            seq: Seq(0xffff_f000),
            ack: Seq(7),
            flags,
            window: 99,
            urgent: 0,
            options: Options {
                timestamps: Some((1, 2)),
                ..Options::NONE
            },
        }
    }

    fn tcp_frame(is_v6: bool, flags: Flags, payload: &[u8], mss: u16) -> (Header, Vec<u8>) {
        let (template, repr) = (template(is_v6).with_tos(3), repr(flags));
        let mut frame = vec![0; template.tcp_header_len(&repr)];
        let at = template
            .emit_tcp(&mut frame, &repr, payload.len(), Checksum::Partial)
            .unwrap();
        frame.extend(payload);
        frame.resize(frame.len().max(MIN_FRAME), 0);
        (template.tcp_offload(at, payload.len(), mss), frame)
    }

    fn udp_frame(is_v6: bool, payload: &[u8], size: u16) -> (Header, Vec<u8>) {
        let template = template(is_v6);
        let mut frame = vec![0; template.udp_header_len()];
        template
            .emit_udp(&mut frame, payload.len(), Checksum::Partial)
            .unwrap();
        frame.extend(payload);
        frame.resize(frame.len().max(MIN_FRAME), 0);
        (template.udp_offload(payload.len(), size), frame)
    }

    fn cut(offload: &Header, frame: &[u8]) -> Vec<Vec<u8>> {
        let mut segments = Segments::new(offload, frame).unwrap();
        let mut all = Vec::new();
        let mut head = [0xee; HEAD_ROOM];
        while let Some(one) = segments.next(&mut head) {
            let whole = [&head[..one.head], one.rest].concat();
            assert_eq!(whole.len(), one.len());
            assert!(whole.len() >= MIN_FRAME);
            all.push(whole);
        }
        all
    }

    /// The packet, whose checksums (that of IPv4 is checked by the parser) are right.
    fn packet(frame: &[u8]) -> IpPacket<'_> {
        let Body::Ip(ip) = dissect(frame).unwrap().body else {
            panic!()
        };
        assert!(ip.verify_upper_checksum());
        ip
    }

    fn check_tcp(is_v6: bool, flags: Flags, payload: &[u8], mss: u16) {
        let (offload, frame) = tcp_frame(is_v6, flags, payload, mss);
        let segments = cut(&offload, &frame);
        let expected = payload.len().div_ceil(usize::from(mss)).max(1);
        assert_eq!(segments.len(), expected);
        let mut data: Vec<u8> = Vec::new();
        for (i, segment) in segments.iter().enumerate() {
            let ip = packet(segment);
            assert_eq!(ip.tos, 3);
            if !is_v6 {
                assert_eq!(get_u16(ip.header, 4), u16::try_from(i).ok());
            }
            let Upper::Tcp { repr: got, payload } = ip.upper else {
                panic!()
            };
            let mut want = repr(flags);
            want.seq = want.seq.add(u32::try_from(data.len()).unwrap());
            if i > 0 {
                want.flags = want.flags.without(Flags::CWR);
            }
            if i + 1 < expected {
                want.flags = want.flags.without(Flags::FIN | Flags::PSH);
                assert_eq!(payload.len(), usize::from(mss));
            }
            assert_eq!(got, want);
            data.extend(payload);
        }
        assert_eq!(data, payload);
    }

    const FLAGS: Flags = Flags(0x10 | 0x08 | 0x01 | 0x80);

    #[test]
    fn tcp_segments_add_up_to_the_super_frame() {
        let payload: Vec<u8> = (0..=250).cycle().take(65_000).collect();
        for is_v6 in [false, true] {
            for mss in [1, 2, 88, 536, 1448, 1460, 9000, 64_999, 65_000, 65_483] {
                check_tcp(
                    is_v6,
                    FLAGS,
                    &payload[..65_000.min(usize::from(mss) * 700)],
                    mss,
                );
            }
            for len in [0, 1, 2, 5, 6, 7, 1447, 1448, 1449, 2896, 2897] {
                check_tcp(is_v6, Flags::ACK, &payload[..len], 1448);
            }
        }
    }

    #[test]
    fn udp_runs_become_datagrams() {
        let payload: Vec<u8> = (0..=250).cycle().take(20_001).collect();
        for is_v6 in [false, true] {
            for (len, size) in [
                (0, 1),
                (1, 1),
                (5, 1),
                (20_001, 1000),
                (3000, 1000),
                (100, 100),
            ] {
                let (offload, frame) = udp_frame(is_v6, &payload[..len], size);
                let mut data: Vec<u8> = Vec::new();
                for segment in cut(&offload, &frame) {
                    let Upper::Udp { repr, payload } = packet(&segment).upper else {
                        panic!()
                    };
                    assert_eq!((repr.src_port, repr.dst_port), (443, 40_000));
                    assert!(payload.len() <= usize::from(size));
                    data.extend(payload);
                }
                assert_eq!(data, payload[..len]);
            }
        }
    }

    #[test]
    fn ordinary_frames_are_completed_in_place() {
        for is_v6 in [false, true] {
            for len in [0, 1, 17, 1000] {
                let payload = vec![0xa5; len];
                for (offload, mut frame) in [
                    tcp_frame(is_v6, Flags::ACK, &payload, 1448),
                    udp_frame(is_v6, &payload, 1448),
                ] {
                    let cut = cut(&offload, &frame);
                    complete(&offload, &mut frame).unwrap();
                    packet(&frame);
                    assert_eq!(cut, [frame]);
                }
            }
        }
    }

    /// Zero in the field would mean "no checksum".
    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        for is_v6 in [false, true] {
            let at = template(is_v6).ip_end() + udp::CHECKSUM_OFFSET;
            let checksum = |payload: &[u8]| {
                let (offload, mut frame) = udp_frame(is_v6, payload, 100);
                let cut = cut(&offload, &frame);
                complete(&offload, &mut frame).unwrap();
                assert_eq!(cut, [frame.clone()]);
                [frame[at], frame[at + 1]]
            };
            let balance = checksum(&[0, 0]);
            assert_eq!(checksum(&balance), [0xff, 0xff]);
        }
    }

    #[test]
    fn a_complete_frame_is_handed_on_as_it_is() {
        let frame = [7; 1000];
        let mut segments = Segments::new(&Header::PLAIN, &frame).unwrap();
        let one = segments.next(&mut []).unwrap();
        assert_eq!((one.head, one.rest), (0, &frame[..]));
        assert_eq!(segments.next(&mut []), None);
        let mut copy = frame;
        complete(&Header::PLAIN, &mut copy).unwrap();
        assert_eq!(copy, frame);
    }

    #[test]
    fn what_is_not_one_of_our_frames_is_refused() {
        let (good, frame) = tcp_frame(false, FLAGS, &[1; 5000], 1448);
        let refused = |offload: Header, frame: &[u8]| Segments::new(&offload, frame).is_none();
        assert!(!refused(good, &frame));
        for short in 0..frame.len() {
            assert!(refused(good, &frame[..short]), "{short}");
        }
        let gso = |gso| Header { gso, ..good };
        for wrong in [gso(Gso::TcpV6), gso(Gso::UdpL4), gso(Gso::Udp)] {
            assert!(refused(wrong, &frame));
        }
        let flags = Header { flags: 0, ..good };
        assert!(refused(flags, &frame));
        for csum_start in [0, 14, 33, 35, 54, u16::MAX] {
            assert!(refused(Header { csum_start, ..good }, &frame));
        }
        for csum_offset in [0, 2, 15, u16::MAX] {
            assert!(refused(
                Header {
                    csum_offset,
                    ..good
                },
                &frame
            ));
        }
        let mut other = frame.clone();
        other[12] = 9;
        assert!(refused(good, &other));
        // A data offset of 60 bytes that are not there, and one that is less than TCP's header.
        let (good, mut short) = tcp_frame(false, FLAGS, &[], 1448);
        for words in [0x00, 0x10, 0x40, 0xf0] {
            short[46] = words;
            assert!(refused(good, &short));
        }
        assert_eq!(complete(&gso(Gso::TcpV4), &mut other), None);
        let far = Header {
            csum_start: u16::MAX,
            gso: Gso::None,
            ..good
        };
        assert_eq!(complete(&far, &mut other), None);
    }

    proptest! {
        #[test]
        fn any_payload_comes_back(is_v6: bool, flags: u8, mss in 1_u16..3000,
                                  payload in proptest::collection::vec(any::<u8>(), 0..9000)) {
            // SYN and RST carry no data; the parser has no use for the others.
            check_tcp(is_v6, Flags(flags & 0xd9 | 0x10), &payload, mss);
        }

        #[test]
        fn nothing_panics(flags: u8, kind in 0_u8..6, numbers: [u16; 4],
                          frame in proptest::collection::vec(any::<u8>(), 0..300)) {
            let [hdr_len, gso_size, csum_start, csum_offset] = numbers;
            let gso = [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::Udp, Gso::UdpL4, Gso::None][usize::from(kind)];
            let offload = Header { flags, gso, ecn: false, hdr_len, gso_size, csum_start, csum_offset };
            let mut copy = frame.clone();
            let _ = complete(&offload, &mut copy);
            let mut head = [0; HEAD_ROOM];
            for offload in [offload, Header { csum_start: 34, csum_offset: csum_offset & 16, ..offload }] {
                if let Some(mut segments) = Segments::new(&offload, &frame) {
                    let mut total = 0;
                    while let Some(one) = segments.next(&mut head) {
                        total += one.rest.len();
                        prop_assert!(one.head <= HEAD_ROOM && total <= frame.len());
                    }
                }
            }
        }
    }
}
