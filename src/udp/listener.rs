//! Datagrams that arrive at listening sockets: flows that begin outside.
//!
//! A listener receives for everybody who sends to its port. Who sent a datagram, and at which of our addresses it
//! arrived, decides where it goes: to the guest over the tap, or round it (see [`super::splice`]). A flow over
//! the tap has no socket of its own: the guest's answers leave by the listener itself, from the very address the
//! peer used (packet information, RFC 3542 section 6 and ip(7)), which is the only one the peer will take them from
//! on a host with several. A thousand peers therefore cost no descriptor and no system call to set up.
//!
//! The decision is made anew for every run of datagrams from one sender, so a guest that changes its address, or a rule
//! that leads elsewhere, takes effect with the next datagram.
//!
//! Anybody can send from made-up addresses: flows that began outside never take more than three quarters of the table,
//! and when they have it, those nobody has answered make room for new ones.
//!
//! What must never happen: an answer sent to somebody else than the peer the guest was shown (two peers may look
//! the same to it; the second one is then refused), somebody outside taken for the host's loopback or answered there, a
//! conversation the guest began and that works taken over by whoever sends to a listener, or multicast coming in, which
//! could be our own going round in circles.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::Engine;
use super::flow::{Carrier, Flow, NONE, Name, Post, State};
use super::from_socket::{Ends, Route, Way, is_station};
use super::io::{Io, Peer, Readiness, Received};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::Config;
use crate::config::rules::{RuleId, Table};
use crate::flow::id::{FlowId, Key};
use crate::flow::translate::{self, Forward, Inbound, Seen};
use crate::stats::Drop;

/// Flows of a listener that are compared with a peer one by one.
const WALK: usize = 64;
/// Flows looked at to find one that can go.
const SCAN: usize = 64;
/// A flow nobody has answered may go after this time without traffic, when there is no room.
const UNANSWERED: Duration = Duration::from_millis(100);
/// One that has been answered.
const ANSWERED: Duration = Duration::from_secs(1);

/// A listening socket and what it is for.
#[derive(Debug)]
pub struct Listener<S> {
    /// Bound, with packet information on.
    pub socket: S,
    /// The rule it belongs to.
    pub rule: RuleId,
    /// Whose network it is in.
    pub table: Table,
    /// Where its port leads.
    pub forward: Forward,
}

impl<S> Engine<S> {
    /// Take a listener over; it is known by the number returned from then on. `None`: there is no room, and it is
    /// closed. Watching it for readability (level-triggered) is the caller's business.
    pub fn listen(&mut self, listener: Listener<S>) -> Option<FlowId> {
        self.state.posted = self.state.posted.wrapping_add(1);
        let number = self.state.posted;
        self.state.listeners.insert(number, Post::new(listener))
    }

    /// A listener belongs to another rule, or leads elsewhere. Flows that still go to the same place go on.
    pub fn retarget(&mut self, id: FlowId, rule: RuleId, forward: Forward) {
        let Some(post) = self.state.listeners.get_mut(id) else {
            return;
        };
        (post.listener.rule, post.listener.forward) = (rule, forward);
        let mut next = self.state.first_of(id);
        while let Some(at) = next {
            if let Some(flow) = self.state.flows.get_mut(at) {
                flow.rule = Some(rule);
            }
            next = self.state.sibling(at);
        }
    }

    /// Close a listener and end what came by it.
    pub fn unlisten<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId) {
        self.state.remove_listener(io, id);
    }

    /// A listener is readable or has an error.
    pub fn on_listener<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        id: FlowId,
        ready: Readiness,
    ) {
        self.on_carrier(io, now, Carrier::Listener(id), ready);
    }

    /// The flow of a listener with this peer, for what was sent from there.
    pub(super) fn flow_with(&self, seen: &Seen, id: FlowId, peer: Endpoint) -> Option<FlowId> {
        let post = self.state.listeners.get(id)?;
        let local = unspecified(peer.ip);
        let decision = translate::inbound(&self.cfg, seen, post.listener.forward, peer, local).ok();
        if let (Table::Host, Some(Inbound::Tap(key))) = (post.listener.table, decision) {
            let is_it = |flow: &Flow| flow.listener == id && flow.peer.end == peer;
            let found = self.state.find(&key);
            if found.is_some_and(|id| self.state.flows.get(id).is_some_and(is_it)) {
                return found;
            }
        }
        let mut next = self.state.first_of(id);
        for _ in 0..WALK {
            let at = next?;
            if self.state.flows.get(at)?.peer.end == peer {
                return Some(at);
            }
            next = self.state.sibling(at);
        }
        None
    }
}

/// Something arrived at a listener.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub listener: FlowId,
    pub rule: RuleId,
    pub table: Table,
    pub peer: Peer,
    /// The address of ours it was sent to; unspecified if that is not known.
    pub local: IpAddr,
}

impl Arrival {
    /// What an answer has to be sent from.
    pub fn source(&self) -> Option<IpAddr> {
        Some(self.local).filter(|ip| !ip.is_unspecified())
    }

    /// Say in a flow how it began.
    pub fn mark(&self, flow: &mut Flow) {
        flow.listener = self.listener;
        flow.local = self.source();
        flow.rule = Some(self.rule);
    }
}

impl<S> State<S> {
    /// Where a message that arrived at a listener goes; makes the flow if need be.
    pub(super) fn arrive<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        cfg: &Config,
        id: FlowId,
        message: &Received,
    ) -> Result<Route, Drop> {
        let listener = &self.listeners.get(id).ok_or(Drop::NoFlow)?.listener;
        if message.group {
            return Err(Drop::BadDestination);
        }
        if message.from.port == 0 || is_forged(message) {
            return Err(Drop::BadSource);
        }
        let arrival = Arrival {
            listener: id,
            rule: listener.rule,
            table: listener.table,
            peer: Peer {
                end: message.from,
                scope: message.scope,
            },
            local: message.to.unwrap_or_else(|| unspecified(message.from.ip)),
        };
        let local = arrival.local;
        let forward = listener.forward;
        let decision = match listener.table {
            Table::Host => translate::inbound(cfg, &io.seen(), forward, message.from, local)?,
            // What the namespace sends from, or to, another address than loopback is not for the host's.
            Table::Splice if !message.from.ip.is_loopback() || !local.is_loopback() => {
                return Err(Drop::BadSource);
            }
            Table::Splice => Inbound::Splice {
                to: translate::splice_out(forward, local),
                source: None,
            },
        };
        match decision {
            Inbound::Tap(key) => self.arrive_tap(io, now, key, &arrival),
            Inbound::Splice { to, source } => self.arrive_splice(io, now, &arrival, to, source),
        }
    }

    fn arrive_tap<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        key: Key,
        arrival: &Arrival,
    ) -> Result<Route, Drop> {
        if key.guest.is_ipv6() != key.remote.is_ipv6() {
            return Err(Drop::BadDestination);
        }
        let route = |flow| Route {
            flow,
            inward: true,
            way: Way::Guest(Ends {
                src: key.remote,
                dst: key.guest,
            }),
        };
        let found = self.find(&key);
        if let Some((id, flow)) = found.and_then(|id| Some((id, self.flows.get_mut(id)?))) {
            if flow.peer != arrival.peer {
                return Err(Drop::NoFlow);
            }
            if flow.listener == arrival.listener {
                (flow.used, flow.local) = (now, arrival.source());
                return Ok(route(id));
            }
            if flow.listener == NONE && flow.replied {
                return Ok(route(id));
            }
            // The peer answers to, or has turned to, this port: so does the guest from now on.
            self.remove_flow(io, id);
        }
        self.room(io, now)?;
        let mut flow = Flow::new(NONE, arrival.peer, false, now);
        arrival.mark(&mut flow);
        let id = self.add_flow(Name::tap(key), flow).ok_or(Drop::TableFull)?;
        self.timers.arm(id.0, now + self.timeouts.unreplied);
        Ok(route(id))
    }

    /// Make sure that one more flow can begin outside.
    pub(super) fn room<I: Io<Socket = S>>(&mut self, io: &mut I, now: Instant) -> Result<(), Drop> {
        let most = self.flows.capacity().div_ceil(4).saturating_mul(3);
        if self.inbound >= most {
            self.give_up(io, now).ok_or(Drop::TableFull)?;
        }
        if self.flows.is_full() {
            self.evict(io, now)
                .or_else(|| self.give_up(io, now))
                .ok_or(Drop::TableFull)?;
        }
        Ok(())
    }

    /// Remove a flow that came by a listener and is the least loss among some.
    pub(super) fn give_up<I: Io<Socket = S>>(&mut self, io: &mut I, now: Instant) -> Option<()> {
        for _ in 0..SCAN {
            let id = self
                .flows
                .first_from(self.cursor)
                .or_else(|| self.flows.first_from(FlowId(0)))?;
            self.cursor = FlowId(id.0.wrapping_add(1));
            let flow = self.flows.get(id)?;
            let least = if flow.replied { ANSWERED } else { UNANSWERED };
            if flow.listener != NONE && now.since(flow.used) >= least {
                self.remove_flow(io, id);
                return Some(());
            }
        }
        None
    }
}

/// Nobody can have sent it from there, and answering would be a mistake: sending to the unspecified address reaches our
/// own loopback. Nor is an IPv6 packet from an IPv4-mapped address what it looks like on a dual-stack socket:
/// Linux takes `::ffff:127.0.0.1` from any network.
fn is_forged(message: &Received) -> bool {
    let mapped = (message.to).is_some_and(|to| to.is_ipv6() != message.from.is_ipv6());
    mapped || !is_station(message.from)
}

const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}
