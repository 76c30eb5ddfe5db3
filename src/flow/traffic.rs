//! What a flow has carried: bytes and packets, each way.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{FlowId, Key};
use crate::config::rules::RuleId;

/// Counters of one flow. Payload only; a super-frame or one read counts as one packet. Packets stop at 4294967295:
/// every connection has these, and the next larger number would cost each eight bytes.
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
}

/// What several flows have carried together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes towards the guest.
    pub bytes_in: u64,
    /// Bytes from the guest.
    pub bytes_out: u64,
    /// Packets towards the guest.
    pub packets_in: u64,
    /// Packets from the guest.
    pub packets_out: u64,
}

impl Totals {
    /// Add another's.
    pub fn add(&mut self, other: &Self) {
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
        self.packets_in = self.packets_in.saturating_add(other.packets_in);
        self.packets_out = self.packets_out.saturating_add(other.packets_out);
    }
}

impl From<&Traffic> for Totals {
    fn from(one: &Traffic) -> Self {
        Self {
            bytes_in: one.bytes_in,
            bytes_out: one.bytes_out,
            packets_in: one.packets_in.into(),
            packets_out: one.packets_out.into(),
        }
    }
}

/// A flow as reports show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowView {
    /// Its number, by which a report that was interrupted goes on.
    pub id: FlowId,
    /// Both ends, as the guest sees them.
    pub key: Key,
    /// The forwarding rule it came by.
    pub rule: Option<RuleId>,
    /// The remote end began.
    pub inbound: bool,
    /// What it has carried so far.
    pub traffic: Traffic,
    /// How long ago the guest was last heard on it.
    pub idle: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_go_on_where_a_single_flow_stops() {
        let one = Traffic {
            bytes_in: 1,
            bytes_out: 2,
            packets_in: u32::MAX,
            packets_out: 3,
        };
        let mut all = Totals::default();
        all.add(&(&one).into());
        all.add(&(&one).into());
        assert_eq!((all.bytes_in, all.bytes_out), (2, 4));
        assert_eq!(all.packets_in, 2 * u64::from(u32::MAX));
        assert_eq!(all.packets_out, 6);
    }
}
