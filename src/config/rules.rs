//! Port forwarding: what `-t`, `-u`, `-T` and `-U` ask for, and the rules that come of it.
//!
//! A [`PortOption`] is one occurrence of such an option; a [`Rule`] is a contiguous range of ports to listen
//! on and where connections to it go. Everything here is pure: no socket is opened, no file is read.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What can be forwarded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Protocol {
    /// `-t`, `-T`.
    Tcp,
    /// `-u`, `-U`.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Where the listening sockets are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Table {
    /// On the host, towards the guest: `-t`, `-u`.
    Host,
    /// In the namespace, towards the host's loopback: `-T`, `-U`.
    Splice,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "HOST",
            Self::Splice => "SPLICE",
        })
    }
}

/// One occurrence of `-t`, `-u`, `-T` or `-U`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortOption {
    /// Which way.
    pub table: Table,
    /// Which protocol.
    pub protocol: Protocol,
    /// The value as given.
    pub spec: String,
}

/// Listen on some ports, forward to others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address to listen on; `None`: every address, of both families.
    pub listen: Option<IpAddr>,
    /// Interface to listen on; `None`: any.
    pub interface: Option<String>,
    /// First port to listen on, at least 1.
    pub first: u16,
    /// Last port to listen on, at least `first`.
    pub last: u16,
    /// Where to; `None`: the guest's address (or the host's loopback) as it is at the time.
    pub target: Option<IpAddr>,
    /// Target port of `first`; the others follow in order and never exceed 65535.
    pub to_first: u16,
    /// A port that cannot be bound is no error.
    pub best_effort: bool,
    /// Listen only while the target port is bound on the other side.
    pub auto_scan: bool,
}
