//! `-p`: the tap side of the conversation as a pcap file.
//!
//! Classic pcap (not pcapng), microsecond time stamps, LINKTYPE_ETHERNET: the format every tool reads.
//! The file was opened before confinement; a record is one writev(2), so that a reader following the
//! file never sees half a header. The first failed write (disk full) ends the recording with one
//! warning: a capture must never end the connection it captures. Super-frames are recorded as they
//! cross the tap, so a TCP "segment" may be far longer than the MTU.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// Larger than any frame: nothing is cut off.
const SNAPLEN: u32 = 262_144;

/// The 24-byte file header: magic for microseconds in our byte order, version 2.4, LINKTYPE_ETHERNET.
fn file_header() -> [u8; 24] {
    let mut h = [0; 24];
    let fields: [&[u8]; 7] = [
        &0xa1b2_c3d4_u32.to_ne_bytes(),
        &2_u16.to_ne_bytes(),
        &4_u16.to_ne_bytes(),
        &0_u32.to_ne_bytes(),
        &0_u32.to_ne_bytes(),
        &SNAPLEN.to_ne_bytes(),
        &1_u32.to_ne_bytes(),
    ];
    let mut at = h.iter_mut();
    for byte in fields.into_iter().flatten() {
        if let Some(slot) = at.next() {
            *slot = *byte;
        }
    }
    h
}

/// An open recording.
#[derive(Debug)]
pub struct Pcap {
    file: Option<File>,
}

impl Pcap {
    /// Start a recording; writes the file header.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn start(fd: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(fd);
        file.write_all(&file_header())?;
        Ok(Self { file: Some(file) })
    }

    /// No recording.
    #[must_use]
    pub fn off() -> Self {
        Self { file: None }
    }

    /// Is anything recorded?
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.file.is_some()
    }

    /// Record one Ethernet frame, now.
    pub fn record(&mut self, frame: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if let Err(e) = write_record(file, now.as_secs(), now.subsec_micros(), frame) {
            // The kind: putting an errno into words allocates.
            log::warn!(
                "Packet capture stopped: {}; free some space or choose another file with --pcap",
                e.kind()
            );
            self.file = None;
        }
    }
}

fn write_record(file: &mut impl Write, secs: u64, micros: u32, frame: &[u8]) -> io::Result<()> {
    let len = u32::try_from(frame.len()).unwrap_or(u32::MAX).min(SNAPLEN);
    // The format's seconds are 32 bits wide, unsigned: they last until 2106.
    let secs = u32::try_from(secs).unwrap_or(u32::MAX);
    let mut head = [0; 16];
    for (slot, byte) in head.iter_mut().zip(
        [secs, micros, len, len]
            .map(u32::to_ne_bytes)
            .into_iter()
            .flatten(),
    ) {
        *slot = byte;
    }
    let written = file.write_vectored(&[IoSlice::new(&head), IoSlice::new(frame)])?;
    if written != head.len().saturating_add(frame.len()) {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_header_is_what_the_format_says() {
        let h = file_header();
        assert_eq!(u32::from_ne_bytes(h[0..4].try_into().unwrap()), 0xa1b2_c3d4);
        assert_eq!(u16::from_ne_bytes(h[4..6].try_into().unwrap()), 2);
        assert_eq!(u16::from_ne_bytes(h[6..8].try_into().unwrap()), 4);
        assert_eq!(u32::from_ne_bytes(h[16..20].try_into().unwrap()), SNAPLEN);
        assert_eq!(u32::from_ne_bytes(h[20..24].try_into().unwrap()), 1);
    }

    #[test]
    fn records_have_time_and_both_lengths() {
        let mut out = Vec::new();
        write_record(&mut out, 7, 8, &[0xab; 3]).unwrap();
        let words: Vec<u32> = out[..16]
            .chunks(4)
            .map(|c| u32::from_ne_bytes(c.try_into().unwrap()))
            .collect();
        assert_eq!(words, [7, 8, 3, 3]);
        assert_eq!(out[16..], [0xab; 3]);
    }

    #[test]
    fn a_full_disk_ends_the_recording_not_the_process() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut p = Pcap { file: Some(full) };
        p.record(&[0; 60]);
        assert!(p.file.is_none());
    }
}
