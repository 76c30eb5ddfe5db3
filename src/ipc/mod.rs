//! How the processes talk: direction-typed channels of small messages.
//!
//! One `SOCK_SEQPACKET` pair joins the monitor to each of its two children, and one the two to each other. The
//! kernel keeps message boundaries, so there is no length to trust: a message is decoded from exactly the bytes that
//! arrived, by a codec that refuses trailing bytes, into values without allocations. The two ends of a
//! pair have different types ([`MonitorEnd`], [`ForwarderLink`] …), so a message cannot be sent the
//! wrong way round. Descriptors travel beside a message and their number is part of what is
//! expected: one too many or one too few is an error like any other.
//!
//! Rules and listening sockets go *to* the forwarder ([`Supply`]); from it come numbers of rules and kinds of
//! sockets ([`Request`]), never a descriptor.
//!
//! What must never happen: a message from the forwarder with a string, a length, a path or an address in it; a
//! receiver that goes on after something malformed. End of file means that the other side is
//! dead, and ends the receiver too.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod codec;
mod fds;
mod link;
mod message;

pub use codec::{CodecError, pack, unpack};
pub use link::{
    AgentLink, ForwarderLink, IpcError, MonitorEnd, SupplierEnd, SupplyLink, agent_pair,
    forwarder_pair, supply_pair,
};
pub use message::{
    FromAgent, FromForwarder, MAX_DESCRIPTORS, MAX_NEIGHBOURS, NamedRule, Neighbour, Parcel,
    PortBlock, Request, RuleNotice, SocketKind, Supply, TapReport, ToAgent, ToForwarder,
};

/// Descriptors that came with a message; dropping them closes them.
pub use crate::sys::scm::Fds as Descriptors;
