//! Why frames and datagrams were not carried, and how many were: plain counters, no locks.
//!
//! Every place that gives up on a packet names a [`Drop`]; nothing is dropped without being counted.
//! Counters are owned by the worker that increments them and only ever grow.

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
}

impl Drop {
    /// Every reason, in display order.
    pub const ALL: [Self; 15] = [
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

    /// Packets dropped for this reason so far.
    #[must_use]
    pub fn dropped(&self, why: Drop) -> u64 {
        self.drops.get(why as usize).copied().unwrap_or(0)
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
}
