//! What may be said, by direction. Every variant has one encoded size, at most 96 bytes.
//!
//! What the forwarder asks for names a rule and an offset into its ports, or a kind of socket: it can never name an
//! address, a path or a length. Addresses travel only towards it, and from the monitor to the ns-agent.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::rules::{Protocol, RuleId, Table};

/// Most descriptors beside one message.
pub const MAX_DESCRIPTORS: usize = 32;

/// What the monitor (for the host's network) and the ns-agent (for the namespace's) give the forwarder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Supply {
    /// What the listeners named with `rule` from now on are for. Said again, it changes where the rule leads.
    Rule(RuleNotice),
    /// Listening sockets for `count` consecutive ports of the rule, that many descriptors, 1..=32.
    Listeners {
        /// Of this rule.
        rule: RuleId,
        /// First port, from the rule's first.
        offset: u16,
        /// How many.
        count: u8,
    },
    /// A listener goes over to another rule: same port, same address.
    Move {
        /// From this rule.
        from: RuleId,
        /// There.
        from_offset: u16,
        /// To this one.
        to: RuleId,
        /// Here.
        to_offset: u16,
    },
    /// Close the listener of one port.
    Close {
        /// Of this rule.
        rule: RuleId,
        /// The port, from the rule's first.
        offset: u16,
    },
    /// Close all listeners of a rule and forget it. Its connections go on.
    Forget {
        /// This one.
        rule: RuleId,
    },
    /// Unconnected sockets of the namespace, `count` descriptors, 1..=32.
    Sockets {
        /// All of this kind.
        kind: SocketKind,
        /// How many.
        count: u8,
    },
    /// Everything that belongs to the start has been sent.
    Complete,
}

/// A forwarding rule as far as the forwarder has to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RuleNotice {
    /// Its name.
    pub rule: RuleId,
    /// Which way.
    pub table: Table,
    /// What.
    pub protocol: Protocol,
    /// Where to; `None`: the guest, or the host's loopback.
    pub target: Option<IpAddr>,
    /// First port listened on.
    pub first: u16,
    /// Last port listened on.
    pub last: u16,
    /// Where the first port leads.
    pub to_first: u16,
}

/// Sockets of the namespace, for connections from the host's loopback.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SocketKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

impl SocketKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Tcp4, Self::Tcp6, Self::Udp4, Self::Udp6];
}

/// What the forwarder asks of monitor and ns-agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The listener of this port was sent but could not be taken (out of descriptors): again, please.
    Listener {
        /// Of this rule.
        rule: RuleId,
        /// The port, from the rule's first.
        offset: u16,
    },
    /// A batch of sockets (ns-agent only): answered by one [`Supply::Sockets`].
    Sockets(SocketKind),
}

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
