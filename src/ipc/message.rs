//! What may be said, by direction. Every variant has one encoded size, at most 32 bytes.
//!
//! Later requests (listeners, ready-made sockets of the namespace) are further variants that name a
//! rule index and an offset; nothing here may ever carry an address, a path, a length or a text.

use serde::{Deserialize, Serialize};

/// Monitor to forwarder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToForwarder {
    /// Everything is in place: the first guest byte may be read.
    Go,
}

/// Forwarder to monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromForwarder {
    /// Confined, with everything allocated; waiting for [`ToForwarder::Go`].
    Ready {
        /// What was achieved: the bits of `sandbox::Achieved`.
        confinement: u32,
    },
}

/// Monitor to ns-agent: nothing. It holds still until end of file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToAgent {}

/// ns-agent to monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromAgent {
    /// The tap is open and the namespace configured; the tap's descriptor comes with it.
    Tap(TapReport),
    /// Confined.
    Ready {
        /// What was achieved: the bits of `sandbox::Achieved`.
        confinement: u32,
    },
}

/// What the launcher has to know about the tap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TapReport {
    /// Link-layer address of the namespace's side.
    pub mac: [u8; 6],
    /// Interface index inside the namespace.
    pub index: u32,
    /// Offloads in force, as bits of `sys::tun::Offloads`.
    pub offloads: u32,
}
