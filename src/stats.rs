//! Why frames and datagrams were not carried, and how many were: plain counters, no locks.
//!
//! Every place that gives up on a packet names a [`Drop`]; nothing is dropped without being counted.
//! Counters are owned by the worker that increments them and only ever grow.

use std::fmt;
use std::time::Duration;

use crate::clock::Instant;

/// Why a packet was not carried any further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Drop {
    /// Shorter than its headers say, or than any valid packet.
    Truncated,
    /// A header field has a value its specification forbids.
    Malformed,
    /// A checksum does not match.
    Checksum,
    /// An EtherType, IP protocol or ICMP type that is not translated.
    Unsupported,
    /// The protocol was turned off on the command line.
    Disabled,
    /// The source address cannot be a guest's (multicast, loopback, unspecified …).
    BadSource,
    /// The destination cannot be reached through us (unspecified, port 0, address family off …).
    BadDestination,
    /// The flow table has no free entry.
    TableFull,
    /// The process is at its descriptor limit.
    NoDescriptor,
    /// The kernel refused the socket operation.
    SocketError,
    /// A socket or tap queue was full.
    QueueFull,
    /// A fragment that could not be reassembled (overlap, timeout, no memory).
    Fragment,
    /// A TCP segment that belongs to no connection.
    NoFlow,
    /// A TCP segment outside the window.
    OutOfWindow,
    /// Memory for kept data is exhausted.
    NoBuffer,
    /// A connection or datagram from outside whose end points a live flow has already.
    KeyTaken,
}

impl Drop {
    /// Every reason, in display order.
    pub const ALL: [Self; 16] = [
        Self::Truncated,
        Self::Malformed,
        Self::Checksum,
        Self::Unsupported,
        Self::Disabled,
        Self::BadSource,
        Self::BadDestination,
        Self::TableFull,
        Self::NoDescriptor,
        Self::SocketError,
        Self::QueueFull,
        Self::Fragment,
        Self::NoFlow,
        Self::OutOfWindow,
        Self::NoBuffer,
        Self::KeyTaken,
    ];

    /// Stable name used in `--stats` and, later, in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::Checksum => "checksum",
            Self::Unsupported => "unsupported",
            Self::Disabled => "disabled",
            Self::BadSource => "bad-source",
            Self::BadDestination => "bad-destination",
            Self::TableFull => "table-full",
            Self::NoDescriptor => "no-descriptor",
            Self::SocketError => "socket-error",
            Self::QueueFull => "queue-full",
            Self::Fragment => "fragment",
            Self::NoFlow => "no-flow",
            Self::OutOfWindow => "out-of-window",
            Self::NoBuffer => "no-buffer",
            Self::KeyTaken => "key-taken",
        }
    }
}

/// Counters of one worker.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Frames read from the guest (a super-frame counts once).
    pub frames_in: u64,
    /// Bytes in them, link-layer header included.
    pub bytes_in: u64,
    /// Frames written to the guest.
    pub frames_out: u64,
    /// Bytes in them, link-layer header included.
    pub bytes_out: u64,
    drops: [u64; Drop::ALL.len()],
}

impl Counters {
    /// Count one dropped packet.
    pub fn drop(&mut self, why: Drop) {
        if let Some(n) = self.drops.get_mut(why as usize) {
            *n = n.saturating_add(1);
        }
    }

    /// Count one frame read from the guest.
    pub fn received(&mut self, len: usize) {
        self.frames_in = self.frames_in.saturating_add(1);
        self.bytes_in = self.bytes_in.saturating_add(len as u64);
    }

    /// Count one frame written to the guest.
    pub fn sent(&mut self, len: usize) {
        self.frames_out = self.frames_out.saturating_add(1);
        self.bytes_out = self.bytes_out.saturating_add(len as u64);
    }

    /// Packets dropped for this reason so far.
    #[must_use]
    pub fn dropped(&self, why: Drop) -> u64 {
        self.drops.get(why as usize).copied().unwrap_or(0)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "from guest: {} frames, {} bytes; to guest: {} frames, {} bytes; dropped:",
            self.frames_in, self.bytes_in, self.frames_out, self.bytes_out
        )?;
        let mut none = true;
        for why in Drop::ALL {
            let n = self.dropped(why);
            if n > 0 {
                none = false;
                write!(f, " {} {n}", why.name())?;
            }
        }
        if none {
            f.write_str(" none")?;
        }
        Ok(())
    }
}

/// `--stats`: says when the counters are to be printed.
///
/// At most once per interval, and only if something was counted since the last time: silence means that
/// nothing happens. It never wakes anybody up.
#[derive(Debug)]
pub struct Reporter {
    interval: Option<Duration>,
    last: Instant,
    seen: u64,
}

impl Reporter {
    /// Print every `seconds` at most; `None`: never.
    #[must_use]
    pub fn new(seconds: Option<u32>) -> Self {
        Self {
            interval: seconds.map(|s| Duration::from_secs(s.into())),
            last: Instant::default(),
            seen: 0,
        }
    }

    /// Is a print due?
    pub fn due(&mut self, now: Instant, counters: &Counters) -> bool {
        let Some(interval) = self.interval else {
            return false;
        };
        let events = counters.frames_in.saturating_add(counters.frames_out);
        if events == self.seen || now.since(self.last) < interval {
            return false;
        }
        self.last = now;
        self.seen = events;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_slot_and_name() {
        let mut c = Counters::default();
        for (i, why) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, i);
            c.drop(why);
            assert_eq!(c.dropped(why), 1);
        }
        let mut names: Vec<_> = Drop::ALL.iter().map(|d| d.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Drop::ALL.len());
    }

    #[test]
    fn reports_come_at_most_once_an_interval_and_only_with_news() {
        let mut c = Counters::default();
        let mut r = Reporter::new(Some(2));
        let at = |s: u64| Instant(s * 1_000_000);
        assert!(!r.due(at(10), &c), "nothing has happened");
        c.received(60);
        assert!(r.due(at(10), &c));
        c.sent(60);
        assert!(!r.due(at(11), &c), "too early");
        assert!(r.due(at(12), &c));
        assert!(!r.due(at(20), &c), "no news");
        assert!(!Reporter::new(None).due(at(30), &c));
        c.drop(Drop::NoFlow);
        let text = c.to_string();
        assert!(text.contains("from guest: 1 frames, 60 bytes"), "{text}");
        assert!(text.ends_with("dropped: no-flow 1"), "{text}");
    }
}
