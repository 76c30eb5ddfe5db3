//! The way to the guest: the tap, with the recorder and the counters every frame passes.

use crate::pcap::Pcap;
use crate::stats::{Counters, Drop};
use crate::tap::batch::Inbound;
use crate::tap::frame::FrameBuf;
use crate::tap::{Gone, Received, Tap};
use crate::wire::virtio_net;

/// A round that moves so much over a socket, in bytes, is part of a bulk transfer: one full frame.
const BULK: usize = 1400;
/// So much at once from the guest, in bytes, is worth a round: a third of what a socket holds.
const GATHERED: usize = 48 << 10;

/// One worker's link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) tap: Tap,
    pub(super) pcap: Pcap,
    pub(super) counters: Counters,
    /// Bytes of frames since [`Link::take_pace`]: all, and those from the guest.
    moved: usize,
    received: usize,
}

/// How soon to look for more, after a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    /// As soon as there is anything.
    Prompt,
    /// Not before we are woken.
    Asleep,
    /// Not at once even if there is something.
    Rest,
}

impl Link {
    pub(super) fn new(tap: Tap, pcap: Pcap) -> Self {
        Self {
            tap,
            pcap,
            counters: Counters::default(),
            moved: 0,
            received: 0,
        }
    }

    /// Asking begins the next round.
    ///
    /// In a bulk transfer over a socket it is better to sleep than to look for more: whoever writes to it needs no
    /// answer for that, and what it writes until we wake is read in one go. If it is even slower than our waking, frames
    /// come one by one; they are left to gather for a moment then.
    pub(super) fn take_pace(&mut self) -> Pace {
        let moved = std::mem::take(&mut self.moved);
        let received = std::mem::take(&mut self.received);
        if moved <= BULK || !matches!(self.tap, Tap::Stream(_)) {
            Pace::Prompt
        } else if received > BULK && received < GATHERED {
            Pace::Rest
        } else {
            Pace::Asleep
        }
    }

    /// Send the first `len` bytes of a frame buffer to the guest. `false`: the tap refused, counted.
    pub(super) fn send(
        &mut self,
        frame: &mut FrameBuf,
        len: usize,
        offload: virtio_net::Header,
    ) -> bool {
        frame.finish(len, offload);
        self.pcap.record(frame.frame());
        if let Err(e) = self.tap.send(frame) {
            // The kind: putting an errno into words allocates.
            log::trace!("Frame of {len} bytes to the guest refused: {}", e.kind());
            self.counters.drop(Drop::QueueFull);
            return false;
        }
        log::trace!("Frame of {len} bytes to the guest");
        self.counters.sent(len);
        self.moved = self.moved.saturating_add(len);
        true
    }

    /// A frame of `len` bytes was put into the guest's memory by other means.
    pub(super) fn sent_in_place(&mut self, len: usize) {
        log::trace!("Frame of {len} bytes to the guest, in place");
        self.counters.sent(len);
    }

    /// Read what the guest has sent.
    pub(super) fn receive(&mut self, batch: &mut Inbound) -> Result<Received, Gone> {
        batch.clear();
        let received = self.tap.receive(batch)?;
        for _ in 0..received.odd {
            self.counters.drop(Drop::Unsupported);
        }
        for frame in batch.frames() {
            // Where frames are recorded, none comes in pieces: see `Worker::new`.
            self.pcap.record(frame.bytes);
            self.counters.received(frame.len());
            self.received = self.received.saturating_add(frame.len());
            self.moved = self.moved.saturating_add(frame.len());
        }
        Ok(received)
    }
}
