//! What may be said, by direction. No message is longer than 96 bytes.
//!
//! What the forwarder asks for names a rule and an offset into its ports, or a kind of socket: it can never name an
//! address, a path or a length. Addresses travel only towards it, and from the monitor to the ns-agent.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::rules::{MAX_INTERFACE_NAME, Protocol, Rule, RuleId, Table};
use crate::sys::scm::MAX_FDS;

/// Most descriptors beside one message.
pub const MAX_DESCRIPTORS: usize = MAX_FDS;

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
    /// Unconnected sockets of the namespace, `count` descriptors, at most 32; 0: there are none to be had now.
    Sockets {
        /// All of this kind.
        kind: SocketKind,
        /// How many.
        count: u8,
    },
    /// Everything that belongs to the start has been sent.
    Complete,
    /// To be answered by [`Request::Settled`] when everything sent before has been done: what was to be closed is closed.
    Settle,
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
    Sockets {
        /// All of this kind.
        kind: SocketKind,
        /// How many at most, 1..=32.
        count: u8,
    },
    /// Nothing more: the answer to [`Supply::Settle`].
    Settled,
}

/// Neighbours told at any time. The kernel keeps as many per family, unless told otherwise (`gc_thresh3`, arp(7)).
pub const MAX_NEIGHBOURS: usize = 1024;

/// A station on the network of the host's interface that the guest's network is modelled on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address; `None`: it is not known any more.
    pub mac: Option<[u8; 6]>,
    /// It has just turned up there, or moved: the guest should hear of it.
    pub news: bool,
}

/// Monitor to forwarder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToForwarder {
    /// Everything is in place: the first guest byte may be read.
    Go,
    /// Listeners of the host's network, and what they are for.
    Supply(Supply),
    /// Where an address of the host's network is, or no longer is.
    Neighbour(Neighbour),
    /// Write a report to the stream socket that comes with this. There is none beside it if the forwarder was out
    /// of descriptors: whoever asked has seen the end of the stream then.
    Report,
}

/// Forwarder to monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromForwarder {
    /// Confined, with everything allocated; waiting for [`ToForwarder::Go`].
    Ready {
        /// What was achieved: the bits of `sandbox::Achieved`.
        confinement: u32,
    },
    /// Something is missing.
    Request(Request),
}

/// Which ports of 256 consecutive ones are listened on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortBlock {
    /// Whose ports.
    pub protocol: Protocol,
    /// Ports from 256 times this.
    pub block: u8,
    /// Bit `p % 8` of byte `p / 8` is port `p` of the block.
    pub bits: [u8; 32],
}

/// A rule under its name, as fixed-size text-free data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NamedRule {
    /// Its name.
    pub id: RuleId,
    protocol: Protocol,
    listen: Option<IpAddr>,
    interface: [u8; INTERFACE],
    first: u16,
    last: u16,
    target: Option<IpAddr>,
    to_first: u16,
    best_effort: bool,
    auto_scan: bool,
}

/// An interface name with at least one zero after it (`IFNAMSIZ`).
const INTERFACE: usize = MAX_INTERFACE_NAME + 1;

impl NamedRule {
    /// `None` if the interface's name is longer than any interface's.
    #[must_use]
    pub fn new(id: RuleId, rule: &Rule) -> Option<Self> {
        let name = rule.interface.as_deref().unwrap_or_default().as_bytes();
        let mut interface = [0; INTERFACE];
        interface
            .get_mut(..name.len())
            .filter(|room| room.len() < INTERFACE)?
            .copy_from_slice(name);
        Some(Self {
            id,
            protocol: rule.protocol,
            listen: rule.listen,
            interface,
            first: rule.first,
            last: rule.last,
            target: rule.target,
            to_first: rule.to_first,
            best_effort: rule.best_effort,
            auto_scan: rule.auto_scan,
        })
    }

    /// The rule. `None` if its interface is no text.
    #[must_use]
    pub fn rule(&self) -> Option<Rule> {
        let name = self.interface.split(|b| *b == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).ok()?;
        Some(Rule {
            protocol: self.protocol,
            listen: self.listen,
            interface: (!name.is_empty()).then(|| name.to_owned()),
            first: self.first,
            last: self.last,
            target: self.target,
            to_first: self.to_first,
            best_effort: self.best_effort,
            auto_scan: self.auto_scan,
        })
    }
}

/// Monitor to ns-agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToAgent {
    /// What the host listens on, where it has changed.
    Ports(PortBlock),
    /// Somebody follows what the namespace listens on, or nobody does any more.
    Watch(bool),
    /// A new table follows, rule by rule.
    Begin,
    /// One of its rules.
    Rule(NamedRule),
    /// That was all: bind what is new, change nothing else, and answer.
    Prepare,
    /// The host's side is prepared too: put the new table into force.
    Commit,
}

/// ns-agent to monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromAgent {
    /// The tap is open and the namespace configured; the tap's descriptor comes with it.
    Tap(TapReport),
    /// The namespace is configured; there is no tap in it.
    NoTap,
    /// What the namespace listens on, where it has changed.
    Ports(PortBlock),
    /// Confined.
    Ready {
        /// What was achieved: the bits of `sandbox::Achieved`.
        confinement: u32,
    },
    /// Everything a new table needs is there.
    Prepared,
    /// The new table is in force, and the forwarder has let go of what was removed.
    Settled,
    /// It is not.
    Failed {
        /// The rule.
        rule: RuleId,
        /// Its port.
        port: u16,
        /// Why.
        errno: i32,
    },
    /// How many ports of a rule are open now.
    Status {
        /// The rule.
        rule: RuleId,
        /// Open ones.
        open: u32,
        /// Ones that should be open and cannot be.
        missing: u32,
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

/// A message whose type says how many descriptors come with it.
pub trait Parcel: DeserializeOwned {
    /// How many; `None`: the message contradicts itself.
    fn descriptors(&self) -> Option<usize>;

    /// What becomes of the message if they could not be taken, all of them closed: `None` ends the channel.
    fn lost(self) -> Option<Lost<Self>> {
        None
    }
}

/// What a receiver makes of a message without its descriptors.
#[derive(Debug)]
pub enum Lost<M> {
    /// It means something as it is.
    Still(M),
    /// Worth asking for again.
    Supply(Supply),
}

impl Parcel for Supply {
    fn descriptors(&self) -> Option<usize> {
        match self {
            Self::Listeners { count: 0, .. } => None,
            Self::Listeners { count, .. } | Self::Sockets { count, .. } => {
                Some(usize::from(*count)).filter(|n| *n <= MAX_DESCRIPTORS)
            }
            Self::Rule(_)
            | Self::Move { .. }
            | Self::Close { .. }
            | Self::Forget { .. }
            | Self::Complete
            | Self::Settle => Some(0),
        }
    }

    fn lost(self) -> Option<Lost<Self>> {
        Some(Lost::Supply(self))
    }
}

impl Parcel for ToForwarder {
    fn descriptors(&self) -> Option<usize> {
        match self {
            Self::Go | Self::Neighbour(_) => Some(0),
            Self::Supply(supply) => supply.descriptors(),
            Self::Report => Some(1),
        }
    }

    fn lost(self) -> Option<Lost<Self>> {
        match self {
            Self::Go | Self::Neighbour(_) => None,
            Self::Supply(supply) => Some(Lost::Supply(supply)),
            Self::Report => Some(Lost::Still(self)),
        }
    }
}

impl Parcel for FromAgent {
    fn descriptors(&self) -> Option<usize> {
        Some(usize::from(matches!(self, Self::Tap(_))))
    }
}

impl Parcel for FromForwarder {
    fn descriptors(&self) -> Option<usize> {
        Some(0)
    }
}

impl Parcel for Request {
    fn descriptors(&self) -> Option<usize> {
        Some(0)
    }
}

impl Parcel for ToAgent {
    fn descriptors(&self) -> Option<usize> {
        Some(0)
    }
}
