//! Replays the fuzz corpus on stable: every stored frame whole, cut at every byte, with every bit flipped,
//! and mutated at random from fixed seeds.
//!
//! The frames were sent by a Linux kernel through a pair of virtual interfaces with offloads on, so TCP
//! and UDP checksums are partial and `*-super` are super-frames.

#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail"
)]

mod targets;

use std::fs;
use std::path::Path;

use passt::addr::Endpoint;
use passt::wire::dissect::{Body, IpPacket, Upper, dissect, reassembled};
use passt::wire::frame::{Checksum, Template};
use passt::wire::{checksum, icmpv6, put_u16, tcp};

/// Beyond this many bytes a mutation only changes payload.
const INTERESTING: usize = 200;

/// Every frame, by name.
fn frames() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/l2_frame");
    let mut frames: Vec<_> = fs::read_dir(folder)
        .expect("the corpus is in the source tree")
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    frames.sort();
    assert!(frames.len() >= 40, "the corpus is not complete");
    frames
}

/// The frame of this name.
fn frame(name: &str) -> Vec<u8> {
    frames()
        .into_iter()
        .find(|(other, _)| other == name)
        .unwrap()
        .1
}

fn ip(frame: &[u8]) -> IpPacket<'_> {
    match dissect(frame).unwrap().body {
        Body::Ip(packet) => packet,
        Body::Arp(repr) => panic!("{repr:?}"),
    }
}

fn run(frame: &[u8]) {
    targets::l2_frame(frame);
    if let Some(upper) = frame.get(34..) {
        targets::upper_layers(upper);
    }
    if let Some(upper) = frame.get(54..) {
        targets::upper_layers(upper);
    }
}

#[test]
fn frames_are_what_their_names_say() {
    for (name, frame) in frames() {
        let packet = dissect(&frame).unwrap_or_else(|why| panic!("{name}: {why:?}"));
        let Body::Ip(packet) = packet.body else {
            assert!(name.starts_with("arp-"), "{name}");
            continue;
        };
        let family = if packet.src.is_ipv4() { '4' } else { '6' };
        let kind = match packet.upper {
            Upper::Tcp { .. } => format!("tcp{family}"),
            Upper::Udp { .. } => format!("udp{family}"),
            Upper::Icmpv4(_) => "icmp4".to_owned(),
            Upper::Icmpv6(icmpv6::Message::Ndp(_)) => "ndp".to_owned(),
            Upper::Icmpv6(icmpv6::Message::Other { kind: 143, .. }) => "mld".to_owned(),
            Upper::Icmpv6(_) => "icmp6".to_owned(),
            Upper::Fragment { protocol: 17, .. } => format!("udp{family}-fragment"),
            Upper::Fragment { .. } => format!("icmp{family}-fragment"),
            Upper::Other { .. } => format!("other{family}"),
        };
        assert!(name.starts_with(&format!("{kind}-")), "{name} is {kind}");
        run(&frame);
    }
}

/// Completing the kernel's partial checksums our way makes them right, and right ones are accepted.
#[test]
fn checksums_of_the_kernel() {
    for (name, mut frame) in frames() {
        if name.starts_with("arp-") {
            continue;
        }
        let packet = ip(&frame);
        let start = 14 + packet.header.len();
        let end = 14 + packet.l3.len();
        let field = match packet.upper {
            Upper::Tcp { .. } => 16,
            Upper::Udp { .. } => 6,
            _ => {
                assert!(packet.verify_upper_checksum(), "{name}");
                continue;
            }
        };
        if !packet.verify_upper_checksum() {
            let sum = checksum::sum(&frame[start..end]).finish();
            put_u16(&mut frame, start + field, sum).unwrap();
            assert!(ip(&frame).verify_upper_checksum(), "{name}");
        }
    }
}

/// Our headers for the kernel's own segments are the kernel's, to the byte.
#[test]
fn segments_of_the_kernel_are_reproduced() {
    let mut seen = 0;
    for (name, frame) in frames() {
        let packet = dissect(&frame).unwrap();
        let Body::Ip(IpPacket {
            src,
            dst,
            hop_limit,
            tos,
            header,
            upper: Upper::Tcp { repr, payload },
            ..
        }) = packet.body
        else {
            continue;
        };
        let endpoints = (
            Endpoint::new(src, repr.src_port),
            Endpoint::new(dst, repr.dst_port),
        );
        let template = Template::new(packet.eth.dst, packet.eth.src, endpoints.0, endpoints.1)
            .with_hop_limit(hop_limit)
            .with_tos(tos);
        let mut out = vec![0; frame.len()];
        let len = template
            .emit_tcp(&mut out, &repr, payload.len(), Checksum::Partial)
            .unwrap();
        assert_eq!(len, 14 + header.len() + repr.header_len());
        let start = 14 + header.len();
        if name == "tcp4-reset" {
            // This one was complete when it was sent.
            let len = template
                .emit_tcp(&mut out, &repr, 0, Checksum::Full(&[]))
                .unwrap();
            assert_eq!(out[start..len], frame[start..len], "{name}");
        } else {
            assert_eq!(out[start..len], frame[start..len], "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 8);
}

#[test]
fn fragments_of_the_kernel_fit_together() {
    for (family, protocol) in [("icmp4", 1), ("icmp6", 58)] {
        let mut whole = Vec::new();
        let mut addresses = None;
        for part in ["first", "middle", "last"] {
            let frame = frame(&format!("{family}-fragment-{part}"));
            let packet = ip(&frame);
            let info = packet.fragment.unwrap();
            assert_eq!((info.offset, info.more), (whole.len(), part != "last"));
            let Upper::Fragment { payload, .. } = packet.upper else {
                panic!()
            };
            whole.extend(payload);
            addresses = Some((packet.src, packet.dst));
        }
        assert_eq!(whole.len(), 3008);
        let (src, dst) = addresses.unwrap();
        assert!(reassembled(src, dst, protocol, &whole).is_ok());
        whole[100] ^= 1;
        assert!(reassembled(src, dst, protocol, &whole).is_err());
    }
}

#[test]
fn cut_at_every_byte() {
    for (name, frame) in frames() {
        for cut in 0..frame.len() {
            let frame = &frame[..cut];
            run(frame);
            assert!(
                dissect(frame).is_err(),
                "{name} cut to {cut} bytes is no packet"
            );
            targets::offload_frame(&[&[0; 10], frame].concat());
        }
    }
}

#[test]
fn every_bit_flipped() {
    for (_, frame) in frames() {
        for bit in 0..frame.len().min(INTERESTING) * 8 {
            let mut frame = frame.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            run(&frame);
            targets::fix_v4(&mut frame);
            run(&frame);
        }
    }
}

#[test]
fn every_tcp_option_byte_and_length() {
    let frame = frame("tcp4-syn");
    for at in 54..74 {
        for value in 0..=u8::MAX {
            let mut frame = frame.clone();
            frame[at] = value;
            run(&frame);
        }
    }
    // A header that claims more or less than there is.
    for offset in 0..16 {
        let mut frame = frame.clone();
        frame[46] = offset << 4;
        run(&frame);
        let expected = (5..=10).contains(&offset);
        assert!(expected || dissect(&frame).is_err());
    }
    assert_eq!(tcp::MAX_HEADER_LEN, 60);
}

/// A small generator: xorshift64*, so that a failure can be repeated from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(value).unwrap() % below
    }
}

#[test]
fn mutated_at_random() {
    const EDGES: [u8; 12] = [0, 1, 2, 3, 4, 7, 8, 15, 0x7f, 0x80, 0xfe, 0xff];
    let frames = frames();
    for seed in 1..=40_000_u64 {
        let mut random = Random(seed);
        let (_, frame) = &frames[random.next(frames.len())];
        let mut frame = frame.clone();
        for _ in 0..=random.next(6) {
            let at = random.next(frame.len().min(INTERESTING));
            match random.next(5) {
                0 => frame[at] = EDGES[random.next(EDGES.len())],
                1 => frame[at] ^= 1 << random.next(8),
                2 => frame.truncate(at.max(14)),
                3 => {
                    // Splice a piece of another frame in.
                    let (_, other) = &frames[random.next(frames.len())];
                    let from = random.next(other.len());
                    let piece = &other[from..(from + random.next(40)).min(other.len())];
                    frame.splice(at..at, piece.iter().copied());
                }
                _ => {
                    let end = (at + random.next(16)).min(frame.len());
                    frame.drain(at..end);
                }
            }
            if frame.is_empty() {
                frame.push(0);
            }
        }
        targets::fix_v4(&mut frame);
        run(&frame);
        targets::offload_frame(&frame);
    }
}

/// The frames as a stream, with lengths that are wrong now and then, split in many ways.
#[test]
fn streams_of_frames() {
    let frames = frames();
    for seed in 1..=300_u64 {
        let mut random = Random(seed);
        let mut stream = vec![u8::try_from(random.next(256)).unwrap()];
        for _ in 0..random.next(60) {
            let (_, frame) = &frames[random.next(frames.len())];
            let len = match random.next(200) {
                0 => [0, 13, 65_536, 0x7fff_ffff, 0xffff_ffff][random.next(5)],
                1 => random.next(70_000),
                _ => frame.len(),
            };
            stream.extend(u32::try_from(len).unwrap().to_be_bytes());
            stream.extend(frame);
        }
        stream.truncate(stream.len() - random.next(3.min(stream.len())));
        targets::stream(&stream);
    }
}
