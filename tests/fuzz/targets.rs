//! What is fuzzed: each function takes any bytes and panics only if a promise of the library is broken.
//!
//! The ordinary test in `corpus.rs` runs them over the stored inputs and mutations of those; a fuzzer
//! can call the same functions with inputs of its own.

use passt::tap::framing::{MAX_LEN, MIN_LEN, Malformed, PREFIX, Reader};
use passt::tap::segment::{self, HEAD_ROOM, Segments};
use passt::wire::dissect::{Body, IpPacket, Packet, Upper, dissect, reassembled};
use passt::wire::{arp, checksum, ethernet, icmpv4, icmpv6, ipv4, ipv6, ndp, tcp, udp, virtio_net};

/// Does `inner` lie inside `outer`, as memory?
fn inside(outer: &[u8], inner: &[u8]) -> bool {
    let (outer, inner) = (outer.as_ptr_range(), inner.as_ptr_range());
    inner.is_empty() || (outer.start <= inner.start && inner.end <= outer.end)
}

/// Make the checksum of an IPv4 header right, so that mutations reach what is behind it.
pub fn fix_v4(frame: &mut [u8]) {
    if frame.len() < 34 || frame[12..14] != ethernet::ETHERTYPE_IPV4.to_be_bytes() {
        return;
    }
    let end = 14 + usize::from(frame[14] & 15) * 4;
    if end <= frame.len() {
        frame[24..26].fill(0);
        let sum = checksum::sum(&frame[14..end]).finish();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A frame from the guest, as the forwarder reads it: nothing found in it lies outside it, and what is
/// found can be written again and reads the same.
pub fn l2_frame(data: &[u8]) {
    let Ok(Packet { eth, body }) = dissect(data) else {
        return;
    };
    let mut out = [0; 14];
    assert_eq!(eth.emit(&mut out), Some(14));
    assert_eq!(out[..], data[..14]);
    match body {
        Body::Arp(repr) => {
            let mut out = [0; arp::LEN];
            assert_eq!(repr.emit(&mut out), Some(arp::LEN));
            assert_eq!(out[..], data[14..14 + arp::LEN]);
        }
        Body::Ip(packet) => ip_packet(&data[14..], &packet),
    }
}

fn ip_packet(data: &[u8], packet: &IpPacket<'_>) {
    assert!(inside(data, packet.l3));
    assert!(packet.l3.starts_with(packet.header));
    assert_eq!(packet.src.is_ipv4(), packet.dst.is_ipv4());
    let upper = &packet.l3[packet.header.len()..];
    let _ = packet.verify_upper_checksum();
    match packet.upper {
        Upper::Tcp { repr, payload } => {
            assert!(inside(upper, payload));
            tcp_again(&repr);
        }
        Upper::Udp { repr, payload } => {
            assert!(inside(upper, payload));
            assert_eq!(payload.len() + udp::HEADER_LEN, usize::from(repr.len));
        }
        Upper::Icmpv4(message) => {
            let mut out = vec![0; upper.len()];
            assert_eq!(message.emit(&mut out), Some(upper.len()));
            assert_eq!(icmpv4::Message::parse(&out), Ok(message));
        }
        Upper::Icmpv6(message) => icmpv6_again(&message, upper.len()),
        Upper::Fragment { protocol, payload } => {
            assert!(inside(upper, payload) && !payload.is_empty());
            let info = packet.fragment.expect("a fragment says where it belongs");
            assert!(info.offset + payload.len() <= 65_535);
            assert!(!info.more || payload.len() % 8 == 0);
            let _ = reassembled(packet.src, packet.dst, protocol, payload);
        }
        Upper::Other { payload, .. } => assert!(inside(upper, payload)),
    }
    errors(packet.l3);
}

fn tcp_again(repr: &tcp::Repr) {
    let mut out = [0; tcp::MAX_HEADER_LEN];
    let len = repr.emit(&mut out).expect("a header fits in 60 bytes");
    let (again, rest) = tcp::Repr::parse(&out[..len]).expect("what was written can be read");
    assert!(rest.is_empty());
    // A header may carry one more SACK block than our layout has room for.
    let blocks = again.options.sack;
    assert!(repr.options.sack.as_slice().starts_with(blocks.as_slice()));
    let mut expected = *repr;
    expected.options.sack = blocks;
    assert_eq!(again, expected);
}

fn icmpv6_again(message: &icmpv6::Message<'_>, len: usize) {
    let mut out = vec![0; len];
    let any = std::net::Ipv6Addr::LOCALHOST;
    assert_eq!(message.emit(any, any, &mut out), Some(len));
    assert_eq!(icmpv6::Message::parse(&out), Ok(*message));
    if let icmpv6::Message::Ndp(
        ndp::Repr::RouterSolicit { options }
        | ndp::Repr::RouterAdvert { options, .. }
        | ndp::Repr::NeighborSolicit { options, .. }
        | ndp::Repr::NeighborAdvert { options, .. },
    ) = message
    {
        assert!(options.into_iter().count() <= len / 8);
    }
}

/// Errors about a packet are packets themselves, within their bounds, and cause no further errors.
fn errors(l3: &[u8]) {
    let mut out = [0; icmpv6::MAX_ERROR_LEN];
    let mut more = [0; icmpv6::MAX_ERROR_LEN];
    let v4 = std::net::Ipv4Addr::new(192, 0, 2, 1);
    if let Some(len) = icmpv4::error(icmpv4::Error::TIME_EXCEEDED, v4, l3, &mut out) {
        assert!(len <= icmpv4::MAX_ERROR_LEN);
        let (_, payload) = ipv4::Repr::parse(&out[..len]).expect("an error is a packet");
        assert!(l3.starts_with(&payload[icmpv4::HEADER_LEN..]));
        assert_eq!(
            icmpv4::error(icmpv4::Error::TIME_EXCEEDED, v4, &out[..len], &mut more),
            None
        );
    }
    let v6 = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    if let Some(len) = icmpv6::error(icmpv6::Error::packet_too_big(1280), v6, l3, &mut out) {
        let (_, payload) = ipv6::Repr::parse(&out[..len]).expect("an error is a packet");
        assert!(l3.starts_with(&payload[icmpv6::HEADER_LEN..]));
        assert_eq!(
            icmpv6::error(
                icmpv6::Error::packet_too_big(1280),
                v6,
                &out[..len],
                &mut more
            ),
            None
        );
    }
}

/// A frame behind its offload header.
pub fn offload_frame(data: &[u8]) {
    if let Ok((header, frame)) = virtio_net::Header::parse(data) {
        let mut out = [0; virtio_net::HEADER_LEN];
        assert_eq!(header.emit(&mut out), Some(virtio_net::HEADER_LEN));
        assert_eq!(out[..], data[..virtio_net::HEADER_LEN]);
        l2_frame(frame);
        to_segments(&header, frame);
    }
}

/// A frame to be cut into segments: whatever its header claims, what comes out lies in it.
fn to_segments(header: &virtio_net::Header, frame: &[u8]) {
    let mut copy = frame.to_vec();
    let _ = segment::complete(header, &mut copy);
    let mut head = [0; HEAD_ROOM];
    let mut total = 0;
    if let Some(mut segments) = Segments::new(header, frame) {
        while let Some(one) = segments.next(&mut head) {
            assert!(one.head <= HEAD_ROOM && inside(frame, one.rest));
            total += one.rest.len();
        }
    }
    assert!(total <= frame.len());
}

/// A byte stream of frames: the frames are those of a reader that sees all of it at once, however it is split. The
/// first byte says how.
pub fn stream(data: &[u8]) {
    let Some((how, stream)) = data.split_first() else {
        return;
    };
    let mut buf = vec![0; 2 * (PREFIX + MAX_LEN)];
    let mut reader = Reader::new();
    let (mut unread, mut expected) = (stream, stream);
    let mut size = usize::from(*how);
    loop {
        match reader.peek(&buf) {
            Err(Malformed) => {
                let len = u32::from_be_bytes(*expected.first_chunk().expect("a length was read"));
                let len = usize::try_from(len).expect("32 bits fit");
                assert!(!(MIN_LEN..=MAX_LEN).contains(&len));
                return;
            }
            Ok(Some(at)) => {
                assert_eq!(expected[..PREFIX], buf[at.start - PREFIX..at.start]);
                expected = &expected[PREFIX..];
                assert_eq!(expected[..at.len()], buf[at.clone()]);
                expected = &expected[at.len()..];
                reader.skip(&at);
            }
            Ok(None) if unread.is_empty() => break,
            Ok(None) => {
                let room = reader.room(&mut buf);
                size = size % 977 * 5 + 1;
                let n = size.min(room.len()).min(unread.len());
                assert!(n > 0, "there is always room for a whole frame");
                room[..n].copy_from_slice(&unread[..n]);
                reader.filled(n);
                unread = &unread[n..];
            }
        }
    }
    // What is left is less than a frame.
    if let Some((prefix, rest)) = expected.split_first_chunk() {
        assert!(rest.len() < u32::from_be_bytes(*prefix) as usize);
    }
}

/// The upper layers, without the IP header that usually guards them.
pub fn upper_layers(data: &[u8]) {
    if let Ok((repr, payload)) = tcp::Repr::parse(data) {
        assert!(inside(data, payload));
        tcp_again(&repr);
    }
    if let Ok((_, payload)) = udp::Repr::parse(data) {
        assert!(inside(data, payload));
    }
    let _ = icmpv4::Message::parse(data);
    if let Ok(message) = icmpv6::Message::parse(data) {
        icmpv6_again(&message, data.len());
    }
    for protocol in [0, 43, 44, 60] {
        for at_start in [false, true] {
            if let Ok(chain) = ipv6::follow(protocol, data, at_start) {
                assert!(inside(data, chain.payload));
            }
        }
    }
    let _ = ethernet::Header::parse(data);
}
