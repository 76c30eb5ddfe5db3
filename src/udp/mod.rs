//! UDP: flows of the guest, carried by sockets of the host.
//!
//! Flows begin on either side. What the guest begins is told here; what arrives at a forwarded port in [`listener`], and
//! what goes from loopback to loopback, without the tap, in [`splice`].
//!
//! A *flow* is a pair of the guest's end point and the end point it sends to. A *socket* serves one end point of
//! the guest: it is bound to the same port where that is free, and while the guest talks to a single peer, as
//! most end points do, it is also connected to that peer, so the kernel routes once and filters for us. When the
//! guest sends from the same end point to somebody else, the connection is dissolved (the port stays) and the
//! socket is shared: datagrams are told apart by who sent them, and those of strangers are dropped. Peers of the
//! guest therefore all see one source port, as they would without us, and a program with a thousand peers
//! costs one descriptor, not a thousand.
//!
//! The alternative, a connected socket per flow all bound to one port, needs SO_REUSEADDR or SO_REUSEPORT. Then
//! any other process that sets it too (another instance of ours, with a guest that sends from the same port to
//! the same server: NTP, DNS, IKE) silently shares the port and takes the answers. Binding exclusively makes
//! that impossible: the second one gets another port.
//!
//! A socket of its own, at a port the kernel chooses, is given to a flow that cannot share: its host-side
//! destination is that of another flow of the same end point (two addresses of the guest's world that mean
//! one on the host), or it must be bound differently (`-o` does not apply to the host's own addresses).
//! Flows to groups (multicast, broadcast) let their socket accept unicast from anybody, because
//! the answers come from addresses the guest has not named.
//!
//! Speed: a batch of the guest's datagrams is sorted by flow, looked up once per run, and each run of equal size
//! leaves in one send with UDP_SEGMENT. Towards the guest, what one receive returned goes out as super-frames.
//!
//! Invariants: a flow belongs to a live socket, a live listener, or one of each; a socket without flows is closed, a
//! listener is not; nothing is allocated after construction; a datagram that is not carried is counted, and where
//! the guest's kernel should know why, reported. What must never happen: a datagram given to the guest under a
//! source address the guest did not send to (except answers to groups, and what a rule lets in), or a busy loop
//! on an error that nobody clears.
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

mod create;
mod errors;
#[cfg(test)]
pub(crate) mod fake;
mod flow;
mod from_guest;
mod from_socket;
#[cfg(test)]
mod inbound_tests;
pub mod io;
mod listener;
#[cfg(test)]
mod simulation;
mod splice;
#[cfg(test)]
mod tests;
mod waiting;

use std::time::Duration;

use crate::clock::Instant;
use crate::config::Config;
use crate::flow::id::FlowId;
use crate::flow::traffic::FlowView;
use flow::State;
use io::{Io, MAX_RECEIVE, Received};
pub use listener::Listener;

/// How long flows live without traffic; the kernel's conntrack settings where there are any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// While only the guest has sent (nf_conntrack_udp_timeout).
    pub unreplied: Duration,
    /// Once both sides have sent (nf_conntrack_udp_timeout_stream).
    pub stream: Duration,
}

impl Default for Timeouts {
    /// The kernel's defaults.
    fn default() -> Self {
        Self {
            unreplied: Duration::from_secs(30),
            stream: Duration::from_secs(120),
        }
    }
}

/// Timers handled per call: others are to have their turn.
const EXPIRIES: usize = 256;

/// How much to reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most flows at a time.
    pub flows: usize,
    /// Most sockets at a time, and most listeners: UDP's share of the descriptors.
    pub sockets: usize,
}

/// All UDP flows of a guest; see the module text.
#[derive(Debug)]
pub struct Engine<S> {
    cfg: Config,
    state: State<S>,
    received: [Received; MAX_RECEIVE],
}

impl<S> Engine<S> {
    /// An engine without flows. Reserves all the memory it will ever use.
    #[must_use]
    pub fn new(cfg: Config, limits: Limits, timeouts: Timeouts, seed: [u8; 16]) -> Self {
        Self {
            cfg,
            state: State::new(limits.flows, limits.sockets, timeouts, seed),
            received: [Received::EMPTY; MAX_RECEIVE],
        }
    }

    /// Flows and sockets at present.
    #[must_use]
    pub const fn len(&self) -> (usize, usize) {
        (self.state.flows.len(), self.state.sockets.len())
    }

    /// No flows?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.state.flows.is_empty()
    }

    /// Flows numbered `from` and higher, and of each whether it goes over the tap. The ends of one that goes round it are
    /// the one in the namespace and the one on the host.
    pub fn flows(&self, now: Instant, from: FlowId) -> impl Iterator<Item = (FlowView, bool)> {
        let flows = self.state.flows.iter_from(from);
        flows.map(move |(id, name, flow)| {
            let view = FlowView {
                id,
                key: self.state.ends(name, flow),
                rule: flow.rule,
                inbound: self.state.is_inbound(flow),
                traffic: flow.traffic,
                idle: now.since(flow.used),
            };
            (view, !name.is_splice())
        })
    }

    /// When [`Self::on_timer`] is to be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.state.timers.next()
    }

    /// Remove flows that have been idle for too long.
    ///
    /// Timers are armed when a flow is made and when one fires, never per datagram: one that comes early looks at
    /// when the flow was last used. What is left over makes [`Self::next_deadline`] lie in the past.
    pub fn on_timer<I: Io<Socket = S>>(&mut self, io: &mut I, now: Instant) {
        for _ in 0..EXPIRIES {
            let Some(number) = self.state.timers.pop(now) else {
                return;
            };
            let id = FlowId(number);
            let Some(flow) = self.state.flows.get(id) else {
                continue;
            };
            let timeout = if flow.replied {
                self.state.timeouts.stream
            } else {
                self.state.timeouts.unreplied
            };
            let end = flow.used + timeout;
            if end <= now {
                self.state.remove_flow(io, id);
            } else {
                self.state.timers.arm(number, end);
            }
        }
    }
}
