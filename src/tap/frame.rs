//! The one outgoing frame under construction.
//!
//! Layout: virtio-net header (10 bytes), then the Ethernet frame. A protocol writes its headers at the
//! start and has payload received straight behind them; the buffer is used again for the next frame,
//! so it stays in the cache. Where the length of the headers is only known once the payload is there, the
//! frame starts later in the buffer ([`FrameBuf::space_from`]).

use crate::wire::ethernet::MIN_FRAME;
use crate::wire::virtio_net;

/// Space in front of the Ethernet header.
pub const HEADROOM: usize = virtio_net::HEADER_LEN;
/// Largest Ethernet frame: header, and the largest IP packet there is.
pub const MAX_FRAME: usize = 14 + 65_535 + 40;

/// A frame with room for everything in front of it.
#[derive(Debug)]
pub struct FrameBuf {
    buf: Box<[u8]>,
    start: usize,
    len: usize,
}

impl FrameBuf {
    /// An empty frame.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buf: vec![0; HEADROOM + MAX_FRAME].into_boxed_slice(),
            start: 0,
            len: 0,
        }
    }

    /// All the space for the Ethernet frame.
    pub fn space(&mut self) -> &mut [u8] {
        self.space_from(0)
    }

    /// The same for a frame that starts `start` bytes later.
    pub fn space_from(&mut self, start: usize) -> &mut [u8] {
        self.start = start;
        let at = HEADROOM.saturating_add(start);
        self.buf.get_mut(at..).unwrap_or_default()
    }

    /// The frame is the first `len` bytes of the space last asked for; pads it to the minimum with zeroes.
    pub fn finish(&mut self, len: usize, offload: virtio_net::Header) {
        let mut len = len.min(MAX_FRAME);
        if len < MIN_FRAME {
            if let Some(pad) = self.space_from(self.start).get_mut(len..MIN_FRAME) {
                pad.fill(0);
            }
            len = MIN_FRAME;
        }
        self.len = len;
        if let Some(head) = self
            .buf
            .get_mut(self.start..self.start.saturating_add(HEADROOM))
        {
            // The space is there: HEADROOM is the header's length.
            let _ = offload.emit(head);
        }
    }

    /// The finished frame with the virtio-net header in front.
    #[must_use]
    pub fn with_header(&self) -> &[u8] {
        self.buf
            .get(self.start..)
            .and_then(|frame| frame.get(..HEADROOM.saturating_add(self.len)))
            .unwrap_or_default()
    }

    /// The finished Ethernet frame.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.with_header().get(HEADROOM..).unwrap_or_default()
    }
}

impl Default for FrameBuf {
    fn default() -> Self {
        Self::new()
    }
}
