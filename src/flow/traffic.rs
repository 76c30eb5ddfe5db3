//! What a flow has carried: bytes and packets, each way.

use serde::{Deserialize, Serialize};

/// Counters of one flow, or the sum over several. Payload only; a super-frame or one read counts as one packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes towards the guest.
    pub bytes_in: u64,
    /// Bytes from the guest.
    pub bytes_out: u64,
    /// Packets towards the guest.
    pub packets_in: u32,
    /// Packets from the guest.
    pub packets_out: u32,
}

impl Traffic {
    /// Count `bytes` towards the guest.
    pub fn add_in(&mut self, bytes: usize) {
        self.bytes_in = self.bytes_in.saturating_add(bytes as u64);
        self.packets_in = self.packets_in.saturating_add(1);
    }

    /// Count `bytes` from the guest.
    pub fn add_out(&mut self, bytes: usize) {
        self.bytes_out = self.bytes_out.saturating_add(bytes as u64);
        self.packets_out = self.packets_out.saturating_add(1);
    }

    /// Add what another flow has carried.
    pub fn add(&mut self, other: &Self) {
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
        self.packets_in = self.packets_in.saturating_add(other.packets_in);
        self.packets_out = self.packets_out.saturating_add(other.packets_out);
    }
}
