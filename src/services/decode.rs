//! What a suspicious client makes of a frame we sent: an independent reading for the tests, by plain
//! indexing and without any of the code under test, that panics at the first thing out of order.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::frame::Link;
use crate::addr::Mac;

pub struct Udp {
    pub link: Link,
    pub from: String,
    pub to: String,
    pub payload: Vec<u8>,
}

pub struct Icmpv6 {
    pub link: Link,
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub message: Vec<u8>,
}

fn be16(b: &[u8]) -> u16 {
    u16::from(b[0]) * 256 + u16::from(b[1])
}

/// Ones' complement sum, the slow way; a valid checksum makes it 0xffff.
fn ones_sum(parts: &[&[u8]]) -> u16 {
    let mut bytes: Vec<u8> = parts.concat();
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(be16(pair));
        if sum > 0xffff {
            sum = sum % 0x1_0000 + 1;
        }
    }
    u16::try_from(sum).unwrap()
}

fn link(frame: &[u8]) -> Link {
    assert!(frame.len() >= 60, "a frame of {} bytes", frame.len());
    Link {
        dst: Mac(frame[..6].try_into().unwrap()),
        src: Mac(frame[6..12].try_into().unwrap()),
    }
}

fn padding(frame: &[u8], end: usize) {
    assert!(
        frame.len() == end || frame.len() == 60,
        "{} bytes behind the packet",
        frame.len() - end
    );
    assert!(
        frame[end..].iter().all(|b| *b == 0),
        "padding that is not zero"
    );
}

fn v6(frame: &[u8]) -> (Ipv6Addr, Ipv6Addr, u8, u8, &[u8]) {
    assert_eq!(be16(&frame[12..]), 0x86dd);
    assert_eq!(frame[14] >> 4, 6);
    let end = 54 + usize::from(be16(&frame[18..]));
    padding(frame, end);
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    (
        address(22),
        address(38),
        frame[20],
        frame[21],
        &frame[54..end],
    )
}

fn pseudo6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: usize) -> Vec<u8> {
    let mut p = [src.octets(), dst.octets()].concat();
    p.extend(u32::try_from(len).unwrap().to_be_bytes());
    p.extend([0, 0, 0, protocol]);
    p
}

/// A frame that must be a valid UDP datagram.
pub fn udp(frame: &[u8]) -> Udp {
    let link = link(frame);
    let (src, dst, datagram, pseudo) = if be16(&frame[12..]) == 0x0800 {
        assert_eq!(frame[14], 0x45);
        assert_eq!(ones_sum(&[&frame[14..34]]), 0xffff, "IPv4 header checksum");
        let end = 14 + usize::from(be16(&frame[16..]));
        padding(frame, end);
        assert_eq!(be16(&frame[20..]) & 0xbfff, 0, "a fragment");
        assert!(frame[22] > 0);
        assert_eq!(frame[23], 17);
        let address = |at: usize| {
            Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]).to_string()
        };
        let mut pseudo = frame[26..34].to_vec();
        pseudo.extend([0, 17]);
        pseudo.extend(&frame[38..40]);
        (address(26), address(30), &frame[34..end], pseudo)
    } else {
        let (src, dst, protocol, hops, datagram) = v6(frame);
        assert_eq!(protocol, 17);
        assert!(hops > 0);
        (
            format!("[{src}]"),
            format!("[{dst}]"),
            datagram,
            pseudo6(src, dst, 17, datagram.len()),
        )
    };
    assert_eq!(
        usize::from(be16(&datagram[4..])),
        datagram.len(),
        "UDP length"
    );
    assert_ne!(be16(&datagram[6..]), 0, "no UDP checksum");
    assert_eq!(ones_sum(&[&pseudo, datagram]), 0xffff, "UDP checksum");
    Udp {
        link,
        from: format!("{src}:{}", be16(datagram)),
        to: format!("{dst}:{}", be16(&datagram[2..])),
        payload: datagram[8..].to_vec(),
    }
}

/// A frame that must be a valid message of neighbour discovery.
pub fn icmpv6(frame: &[u8]) -> Icmpv6 {
    let (src, dst, protocol, hops, message) = v6(frame);
    assert_eq!((protocol, hops), (58, 255));
    assert_eq!(
        ones_sum(&[&pseudo6(src, dst, 58, message.len()), message]),
        0xffff,
        "ICMPv6 checksum"
    );
    assert_eq!(message[1], 0, "code");
    Icmpv6 {
        link: link(frame),
        src,
        dst,
        message: message.to_vec(),
    }
}

/// Names in RFC 1035 form, pointers into the same bytes allowed, that must fill `bytes` exactly.
pub fn names(bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (name, next) = name(bytes, at);
        out.push(name);
        at = next;
    }
    assert_eq!(at, bytes.len(), "a name cut short");
    out
}

fn name(bytes: &[u8], start: usize) -> (String, usize) {
    let (mut at, mut next, mut text, mut length) = (start, None, String::new(), 1);
    loop {
        let len = usize::from(bytes[at]);
        if len == 0 {
            break;
        }
        if len >= 0xc0 {
            let target = (len - 0xc0) * 256 + usize::from(bytes[at + 1]);
            assert!(target < at, "a pointer that does not point back");
            next.get_or_insert(at + 2);
            at = target;
            continue;
        }
        assert!(len < 64, "a label of {len} bytes");
        text.push_str(std::str::from_utf8(&bytes[at + 1..=at + len]).unwrap());
        text.push('.');
        at += 1 + len;
        length += 1 + len;
    }
    assert!(length <= 255, "a name of {length} bytes");
    assert!(!text.is_empty(), "the root in a search list");
    (text, next.unwrap_or(at + 1))
}

/// DHCP options: code and value in order, up to the end mark, behind which only padding may follow.
pub fn dhcp_options(message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    assert_eq!(&message[236..240], &[99, 130, 83, 99]);
    let (mut at, mut out) = (240, Vec::new());
    while message[at] != 255 {
        let len = usize::from(message[at + 1]);
        out.push((message[at], message[at + 2..at + 2 + len].to_vec()));
        at += 2 + len;
    }
    assert!(
        message[at + 1..].iter().all(|b| *b == 0),
        "something behind the end mark"
    );
    assert!(message.len() >= 300);
    out
}

/// DHCPv6 options: code and value, which fill `bytes` exactly.
pub fn dhcpv6_options(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let (mut at, mut out) = (0, Vec::new());
    while at < bytes.len() {
        let len = usize::from(be16(&bytes[at + 2..]));
        out.push((be16(&bytes[at..]), bytes[at + 4..at + 4 + len].to_vec()));
        at += 4 + len;
    }
    out
}

/// Options of neighbour discovery: code and value, which fill `bytes` exactly.
pub fn ndp_options(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut at, mut out) = (0, Vec::new());
    while at < bytes.len() {
        let len = 8 * usize::from(bytes[at + 1]);
        assert!(len > 0, "an option of length 0");
        out.push((bytes[at], bytes[at + 2..at + len].to_vec()));
        at += len;
    }
    out
}
