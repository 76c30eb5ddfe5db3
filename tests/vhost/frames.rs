//! The few frames that tests write by hand.

use std::net::Ipv4Addr;

use crate::header::sum;
use crate::world::{GATEWAY4, HOST4};

pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

pub fn v4(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().expect("an address").octets()
}

pub fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &GUEST_MAC, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// "Who has the gateway?"
pub fn arp_request() -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let body = [&fixed[..], &GUEST_MAC, &v4(HOST4), &[0; 6], &v4(GATEWAY4)].concat();
    ethernet([0xff; 6], 0x0806, &body)
}

/// The address that an ARP reply for the gateway names.
pub fn arp_reply(frame: &[u8]) -> Option<[u8; 6]> {
    let right = frame.len() >= 42
        && frame[12..14] == [8, 6]
        && frame[20..22] == [0, 2]
        && frame[28..32] == v4(GATEWAY4);
    right.then(|| frame[22..28].try_into().expect("6 bytes"))
}

/// A UDP packet of the guest over IPv4.
pub fn udp(gateway: [u8; 6], to: (&str, u16), from: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("a datagram");
    let mut packet = vec![0x45, 0];
    packet.extend((20 + len).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(v4(HOST4));
    packet.extend(v4(to.0));
    let check = !u16::try_from(sum(0, &packet)).expect("folded");
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet.extend(from.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0]); // IPv4 may leave it out
    packet.extend(payload);
    ethernet(gateway, 0x0800, &packet)
}

/// The payload of a UDP packet over IPv4 to this port.
pub fn udp_to(frame: &[u8], port: u16) -> Option<Vec<u8>> {
    let right = frame.len() >= 42
        && frame[12..14] == [8, 0]
        && frame[23] == 17
        && frame[36..38] == port.to_be_bytes();
    let len = usize::from(u16::from_be_bytes([*frame.get(38)?, *frame.get(39)?]));
    (right && frame.len() >= 34 + len).then(|| frame[42..34 + len].to_vec())
}

/// A TCP segment of the guest over IPv4, without payload: flags, sequence number and acknowledgement. Its checksum is that
/// of the pseudo-header, as virtio-net wants it where the rest is left to the other side.
pub fn tcp(
    gateway: [u8; 6],
    to: (&str, u16),
    from: u16,
    (flags, seq, ack): (u8, u32, u32),
) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(v4(HOST4));
    packet.extend(v4(to.0));
    let check = !u16::try_from(sum(0, &packet)).expect("folded");
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    let pseudo = [&packet[12..20], &[0, 6, 0, 20]].concat();
    let pseudo = u16::try_from(sum(0, &pseudo)).expect("folded");
    packet.extend(from.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(ack.to_be_bytes());
    packet.extend([0x50, flags, 0xff, 0xff]);
    packet.extend(pseudo.to_be_bytes());
    packet.extend([0, 0]);
    ethernet(gateway, 0x0800, &packet)
}

/// Sequence number and payload of a TCP segment over IPv4 to this port.
pub fn tcp_to(frame: &[u8], port: u16) -> Option<(u32, Vec<u8>)> {
    let right = frame.len() >= 54
        && frame[12..14] == [8, 0]
        && frame[23] == 6
        && frame[36..38] == port.to_be_bytes();
    let end = 14 + usize::from(u16::from_be_bytes([*frame.get(16)?, *frame.get(17)?]));
    let start = 34 + usize::from(*frame.get(46)? >> 4) * 4;
    let seq = u32::from_be_bytes(frame.get(38..42)?.try_into().ok()?);
    right.then(|| Some((seq, frame.get(start..end)?.to_vec())))?
}

/// A DHCP discovery, or a request for `address`.
pub fn dhcp(request: Option<[u8; 4]>) -> Vec<u8> {
    let mut bootp = vec![1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x80, 0];
    bootp.resize(28, 0);
    bootp.extend(GUEST_MAC);
    bootp.resize(236, 0);
    bootp.extend([
        99,
        130,
        83,
        99,
        53,
        1,
        if request.is_some() { 3 } else { 1 },
    ]);
    if let Some(address) = request {
        bootp.extend([50, 4]);
        bootp.extend(address);
    }
    bootp.extend([55, 3, 1, 3, 6, 255]);
    bootp.resize(300, 0);
    let mut frame = udp([0xff; 6], ("255.255.255.255", 67), 68, &bootp);
    frame[26..30].fill(0);
    frame[24..26].fill(0);
    let check = !u16::try_from(sum(0, &frame[14..34])).expect("folded");
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame
}

/// Message type and address of a DHCP answer.
pub fn dhcp_answer(frame: &[u8]) -> Option<(u8, [u8; 4])> {
    let bootp = udp_to(frame, 68)?;
    let address = bootp.get(16..20)?.try_into().expect("4 bytes");
    let at = bootp.windows(3).position(|w| w[..2] == [53, 1])?;
    Some((*bootp.get(at + 2)?, address))
}
