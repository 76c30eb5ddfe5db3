//! The offload header of a frame, and whether a frame keeps what it promises.
//!
//! The checksums here are computed by this file's own few lines, not by those of the program under test.

use crate::differences::established;
use crate::nic::{
    GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, MRG_RXBUF,
};

/// `struct virtio_net_hdr_v1`: virtio 1.2, 5.1.6.
pub const HEADER: usize = 12;

pub const NEEDS_CSUM: u8 = 1;
pub const DATA_VALID: u8 = 2;

const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub flags: u8,
    pub gso: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
    pub buffers: u16,
}

impl Header {
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0] = self.flags;
        out[1] = self.gso;
        for (i, field) in [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.buffers,
        ]
        .into_iter()
        .enumerate()
        {
            out[2 + 2 * i..4 + 2 * i].copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    pub fn parse(bytes: &[u8]) -> Header {
        let field = |i: usize| u16::from_le_bytes([bytes[2 + 2 * i], bytes[3 + 2 * i]]);
        Header {
            flags: bytes[0],
            gso: bytes[1],
            hdr_len: field(0),
            gso_size: field(1),
            csum_start: field(2),
            csum_offset: field(3),
            buffers: field(4),
        }
    }
}

/// Ones' complement sum of 16-bit words, folded.
pub fn sum(start: u64, bytes: &[u8]) -> u64 {
    let mut sum = start;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes(word.try_into().expect("4 bytes")));
    }
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    sum += u64::from(u32::from_be_bytes(last));
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum
}

/// Where the transport header of an IP packet starts, its protocol, and the sum of the pseudo-header.
pub struct Transport {
    pub v6: bool,
    pub at: usize,
    pub protocol: u8,
    pub pseudo: u64,
    pub end: usize,
}

/// The TCP or UDP packet in an Ethernet frame, if it is one.
pub fn transport(frame: &[u8]) -> Option<Transport> {
    let word = |i: usize| usize::from(u16::from_be_bytes([frame[i], frame[i + 1]]));
    let (v6, at, protocol, addresses, end) = match word(12) {
        0x0800 => {
            let len = 4 * usize::from(frame[14] & 15);
            assert_eq!(
                sum(0, &frame[14..14 + len]),
                0xffff,
                "checksum of an IPv4 header"
            );
            (false, 14 + len, frame[23], &frame[26..34], 14 + word(16))
        }
        0x86dd => (true, 54, frame[20], &frame[22..54], 54 + word(18)),
        _ => return None,
    };
    assert!(
        end <= frame.len(),
        "a packet of {end} bytes in a frame of {}",
        frame.len()
    );
    let len = (end - at) as u64;
    let pseudo = sum(sum(0, addresses) + u64::from(protocol) + len, &[]);
    matches!(protocol, 6 | 17).then_some(Transport {
        v6,
        at,
        protocol,
        pseudo,
        end,
    })
}

/// What a driver does with a checksum that is said to be valid: it does not look. A tap has no such flag, so the
/// checksum is written down instead.
pub fn believe(header: &mut Header, frame: &mut [u8]) {
    if header.flags & (NEEDS_CSUM | DATA_VALID) != DATA_VALID {
        return;
    }
    header.flags = 0;
    if let Some(t) = transport(frame) {
        let at = t.at + if t.protocol == 6 { 16 } else { 6 };
        frame[at..at + 2].fill(0);
        let sum = u16::try_from(sum(t.pseudo, &frame[t.at..t.end])).expect("folded");
        let stored = if sum == 0xffff { 0xffff } else { !sum };
        frame[at..at + 2].copy_from_slice(&stored.to_be_bytes());
    }
}

/// Is a received frame one that the negotiated features allow, with the checksums they ask for?
pub fn check(header: &Header, frame: &[u8], features: u64) {
    let has = |bit| features & bit != 0;
    let say = || format!("{header:?}, {} bytes", frame.len());
    assert!(frame.len() >= 60, "a runt: {}", say());
    assert_eq!(header.flags & !(NEEDS_CSUM | DATA_VALID), 0, "{}", say());
    assert!(
        header.flags == 0 || has(GUEST_CSUM) || established(),
        "checksum left undone for a guest that wants them: {}",
        say()
    );
    assert!(has(MRG_RXBUF) || header.buffers == 1, "{}", say());
    let inside = transport(frame);
    if header.gso == 0 {
        assert!(frame.len() <= 14 + 65_535, "{}", say());
    } else {
        check_gso(header, frame, inside.as_ref(), features);
    }
    let Some(t) = inside else {
        assert_eq!(header.flags & NEEDS_CSUM, 0, "{}", say());
        return;
    };
    let field = if t.protocol == 6 { 16 } else { 6 };
    let stored = u16::from_be_bytes([frame[t.at + field], frame[t.at + field + 1]]);
    if header.flags & NEEDS_CSUM != 0 {
        assert_eq!(usize::from(header.csum_start), t.at, "{}", say());
        assert_eq!(usize::from(header.csum_offset), field, "{}", say());
        let pseudo = t.pseudo;
        assert!(
            u64::from(stored) == pseudo || (stored == 0 && pseudo == 0xffff),
            "sum of the pseudo-header: {stored:#x}, not {pseudo:#x}: {}",
            say()
        );
    } else if header.flags & DATA_VALID == 0 && !(t.protocol == 17 && !t.v6 && stored == 0) {
        let right = sum(t.pseudo, &frame[t.at..t.end]);
        assert_eq!(right, 0xffff, "checksum of the transport: {}", say());
    }
}

fn check_gso(header: &Header, frame: &[u8], t: Option<&Transport>, features: u64) {
    let say = || format!("{header:?}, {} bytes", frame.len());
    let t = t.expect("segments of something that has none");
    let (needed, protocol) = match (header.gso & !ECN, t.v6) {
        (TCPV4, false) => (GUEST_TSO4, 6),
        (TCPV6, true) => (GUEST_TSO6, 6),
        (UDP_L4, false) => (GUEST_USO4, 17),
        (UDP_L4, true) => (GUEST_USO6, 17),
        _ => panic!("{}", say()),
    };
    assert_ne!(features & needed, 0, "not negotiated: {}", say());
    assert!(
        header.gso & ECN == 0 || features & GUEST_ECN != 0,
        "{}",
        say()
    );
    assert_eq!(t.protocol, protocol, "{}", say());
    assert_ne!(header.flags & NEEDS_CSUM, 0, "{}", say());
    let headers = t.at
        + if protocol == 6 {
            4 * usize::from(frame[t.at + 12] >> 4)
        } else {
            8
        };
    assert!(
        header.hdr_len == 0 || usize::from(header.hdr_len) == headers,
        "headers are {headers} bytes: {}",
        say()
    );
    assert_ne!(header.gso_size, 0, "{}", say());
    assert!(
        t.end - headers > usize::from(header.gso_size),
        "one segment only: {}",
        say()
    );
}
