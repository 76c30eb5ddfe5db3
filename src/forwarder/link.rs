//! The way to the guest: the tap, with the recorder and the counters every frame passes.

use super::pace::{Pace, Pacer};
use crate::clock::Instant;
use crate::pcap::Pcap;
use crate::stats::{Counters, Drop};
use crate::tap::batch::Inbound;
use crate::tap::frame::FrameBuf;
use crate::tap::{Gone, Received, Tap};
use crate::wire::virtio_net;

/// One worker's link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) tap: Tap,
    pub(super) pcap: Pcap,
    pub(super) counters: Counters,
    pub(super) pacer: Pacer,
}

impl Link {
    pub(super) fn new(tap: Tap, pcap: Pcap) -> Self {
        Self {
            tap,
            pcap,
            counters: Counters::default(),
            pacer: Pacer::default(),
        }
    }

    /// The round that began at `now` is over: how soon to look for more. `more`: there is something to do already.
    pub(super) fn end_round(&mut self, now: Instant, more: bool) -> Pace {
        self.pacer.end_round(&self.tap, now, more)
    }

    /// Send the first `len` bytes of a frame buffer to the guest. `false`: the tap refused, counted.
    pub(super) fn send(
        &mut self,
        frame: &mut FrameBuf,
        len: usize,
        offload: virtio_net::Header,
    ) -> bool {
        let sent = self.put(frame, len, offload);
        if sent {
            self.pacer.sent(len);
        }
        sent
    }

    /// The same for a frame that only says what was received.
    pub(super) fn acknowledge(
        &mut self,
        frame: &mut FrameBuf,
        len: usize,
        offload: virtio_net::Header,
    ) {
        if self.put(frame, len, offload) {
            self.pacer.acknowledged(len);
        }
    }

    fn put(&mut self, frame: &mut FrameBuf, len: usize, offload: virtio_net::Header) -> bool {
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
        true
    }

    /// A frame of `len` bytes was put into the guest's memory by other means.
    pub(super) fn sent_in_place(&mut self, len: usize) {
        log::trace!("Frame of {len} bytes to the guest, in place");
        self.counters.sent(len);
        self.pacer.sent(len);
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
            self.pacer.received(&frame);
        }
        Ok(received)
    }
}
