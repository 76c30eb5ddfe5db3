//! Flows, sockets and listeners, and the lists that tie them together.
//!
//! A flow belongs to a socket, or to a listener, or to both: what the guest begins has a socket, what comes in over
//! the tap lives on the listener alone, what goes round the tap comes by a listener and has a socket at its
//! other end. Each socket heads a list of the flows the guest began on it, each listener a list of those that came
//! by it, so that closing one finds them all; all sockets form one list in order of last use, so that the one to
//! give up when descriptors run out is found at its end. The lists are threaded through the tables by number.

use std::net::IpAddr;

use super::Timeouts;
use super::io::{Io, Peer};
use super::listener::Listener;
use super::waiting::Waiting;
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::rules::{RuleId, Table as RuleTable};
use crate::flow::id::{FlowId, Key};
use crate::flow::table::Table;
use crate::flow::timers::Wheel;
use crate::flow::traffic::Traffic;
use crate::stats::Drop;

/// The end of a list.
pub(super) const NONE: FlowId = FlowId(u32::MAX);
/// Not part of the batch being handled.
pub(super) const NO_RUN: u8 = u8::MAX;

/// What a flow is looked up by: its ends, and for one that goes round the tap the listener it came by. There the
/// ends are the address it reached us at (port 0) and its peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Name {
    pub key: Key,
    listener: FlowId,
}

impl Name {
    pub const fn tap(key: Key) -> Self {
        Self {
            key,
            listener: NONE,
        }
    }

    pub const fn splice(listener: FlowId, local: IpAddr, peer: Endpoint) -> Self {
        Self {
            key: Key::new(Endpoint::new(local, 0), peer),
            listener,
        }
    }

    /// Does it name a flow that goes round the tap?
    pub fn is_splice(&self) -> bool {
        self.listener != NONE
    }
}

/// The socket a flow's datagrams leave by, for the host's network or, round the tap, the far end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Carrier {
    Socket(FlowId),
    Listener(FlowId),
}

/// A conversation of one end point of the guest with one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// The socket that carries it; [`NONE`]: its listener does.
    pub socket: FlowId,
    /// The listener it came by; [`NONE`]: the guest began.
    pub listener: FlowId,
    /// Who it is with on the host's network: where what the guest sends goes; round the tap, who began.
    pub peer: Peer,
    /// The address of ours at which the peer reached the listener: its answers come from there.
    pub local: Option<IpAddr>,
    /// The rule it came by.
    pub rule: Option<RuleId>,
    /// What it has carried.
    pub traffic: Traffic,
    /// The destination is a group: answers come from elsewhere.
    pub group: bool,
    /// The other side has sent something, too.
    pub replied: bool,
    /// When a datagram last went either way.
    pub used: Instant,
    /// Largest datagram worth trying UDP_SEGMENT with; 0: it does not work here.
    pub gso_max: u16,
    /// The path does not take its large datagrams, and their sender does not care: they are fragmented.
    pub fragment_large: bool,
    /// Which run of the batch being handled is this flow's; [`NO_RUN`] outside.
    pub run: u8,
    next: FlowId,
    previous: FlowId,
}

impl Flow {
    pub const fn new(socket: FlowId, peer: Peer, group: bool, now: Instant) -> Self {
        Self {
            socket,
            listener: NONE,
            peer,
            local: None,
            rule: None,
            traffic: Traffic {
                bytes_in: 0,
                bytes_out: 0,
                packets_in: 0,
                packets_out: 0,
            },
            group,
            replied: false,
            used: now,
            gso_max: u16::MAX,
            fragment_large: false,
            run: NO_RUN,
            next: NONE,
            previous: NONE,
        }
    }

    pub fn carrier(&self) -> Carrier {
        if self.socket == NONE {
            Carrier::Listener(self.listener)
        } else {
            Carrier::Socket(self.socket)
        }
    }
}

/// A socket of the host, for one end point of the guest; or the far end of a flow that goes round the tap.
#[derive(Debug)]
pub(super) struct Socket<S> {
    /// `None` only while it is being opened; round the tap also while there is none in stock.
    pub io: Option<S>,
    /// The one flow of a connected socket; `None`: not connected. Round the tap all sockets are.
    pub connected: Option<FlowId>,
    /// Source address it is bound to, and whether it is bound to an interface.
    pub binding: (Option<IpAddr>, bool),
    /// How many of its flows go to groups.
    pub groups: u32,
    /// It was prepared for groups.
    pub groups_enabled: bool,
    /// IP_MTU_DISCOVER as last set.
    pub dont_fragment: Option<bool>,
    /// It has filled a whole receive before.
    pub busy: bool,
    /// Round the tap: where it is connected to.
    pub target: Option<Endpoint>,
    used: Instant,
    flows: FlowId,
    older: FlowId,
    newer: FlowId,
}

impl<S> Socket<S> {
    pub const fn new(binding: (Option<IpAddr>, bool)) -> Self {
        Self {
            io: None,
            connected: None,
            binding,
            groups: 0,
            groups_enabled: false,
            dont_fragment: None,
            busy: false,
            target: None,
            used: Instant(0),
            flows: NONE,
            older: NONE,
            newer: NONE,
        }
    }
}

/// A listener at its post.
#[derive(Debug)]
pub(super) struct Post<S> {
    pub listener: Listener<S>,
    /// IP_MTU_DISCOVER as last set, of IPv4 and of IPv6.
    pub dont_fragment: [Option<bool>; 2],
    /// It has filled a whole receive before.
    pub busy: bool,
    flows: FlowId,
}

impl<S> Post<S> {
    pub const fn new(listener: Listener<S>) -> Self {
        Self {
            listener,
            dont_fragment: [None; 2],
            busy: false,
            flows: NONE,
        }
    }
}

/// All flows, sockets and listeners.
#[derive(Debug)]
pub(super) struct State<S> {
    pub flows: Table<Flow, Name>,
    /// By the guest's end point and an unspecified remote one; sockets of a single flow by that flow's name.
    pub sockets: Table<Socket<S>, Name>,
    /// By a number of no meaning.
    pub listeners: Table<Post<S>, u32>,
    /// By flow.
    pub timers: Wheel,
    pub timeouts: Timeouts,
    pub waiting: Waiting,
    /// How many flows came by listeners.
    pub inbound: usize,
    /// How many listeners there ever were.
    pub posted: u32,
    /// Where to look next for a flow to give up.
    pub cursor: FlowId,
    oldest: FlowId,
    newest: FlowId,
}

impl<S> State<S> {
    pub fn new(flows: usize, sockets: usize, timeouts: Timeouts, seed: [u8; 16]) -> Self {
        Self {
            flows: Table::with_capacity(flows, seed),
            sockets: Table::with_capacity(sockets.min(flows), seed),
            listeners: Table::with_capacity(sockets, seed),
            timers: Wheel::with_capacity(flows),
            timeouts,
            waiting: Waiting::new(),
            inbound: 0,
            posted: 0,
            cursor: FlowId(0),
            oldest: NONE,
            newest: NONE,
        }
    }

    /// The flow over the tap with these ends.
    pub fn find(&self, key: &Key) -> Option<FlowId> {
        self.flows.lookup(&Name::tap(*key))
    }

    /// The socket of a carrier.
    pub fn inner(&self, carrier: Carrier) -> Option<&S> {
        match carrier {
            Carrier::Socket(id) => self.sockets.get(id)?.io.as_ref(),
            Carrier::Listener(id) => Some(&self.listeners.get(id)?.listener.socket),
        }
    }

    /// Did somebody outside begin?
    pub fn is_inbound(&self, flow: &Flow) -> bool {
        let post = self.listeners.get(flow.listener);
        post.is_some_and(|p| p.listener.table == RuleTable::Host)
    }

    /// The end on the guest's side and the other one.
    pub fn ends(&self, name: &Name, flow: &Flow) -> Key {
        let target = self.sockets.get(flow.socket).and_then(|s| s.target);
        match target {
            Some(target) if self.is_inbound(flow) => Key::new(target, flow.peer.end),
            Some(target) => Key::new(flow.peer.end, target),
            None => name.key,
        }
    }

    /// The first flow that came by a listener; [`Self::sibling`] has the others.
    pub fn first_of(&self, listener: FlowId) -> Option<FlowId> {
        self.listeners
            .get(listener)
            .map(|post| post.flows)
            .filter(|id| *id != NONE)
    }

    /// The next flow in the list this one is in.
    pub fn sibling(&self, id: FlowId) -> Option<FlowId> {
        self.flows
            .get(id)
            .map(|flow| flow.next)
            .filter(|id| *id != NONE)
    }

    /// The head of the list a flow is in.
    fn head(&mut self, flow: &Flow) -> Option<&mut FlowId> {
        if flow.listener == NONE {
            self.sockets.get_mut(flow.socket).map(|s| &mut s.flows)
        } else {
            self.listeners.get_mut(flow.listener).map(|p| &mut p.flows)
        }
    }

    /// Add a socket, as the most recently used. `None`: the table is full, or the name is taken.
    pub fn add_socket(&mut self, name: Name, socket: Socket<S>, now: Instant) -> Option<FlowId> {
        let id = self.sockets.insert(name, socket)?;
        self.push_newest(id, now);
        Some(id)
    }

    /// A socket is in use.
    pub fn touch(&mut self, id: FlowId, now: Instant) {
        match self.sockets.get_mut(id) {
            Some(socket) if self.newest == id => socket.used = now,
            Some(_) => {
                self.unlink_socket(id);
                self.push_newest(id, now);
            }
            None => {}
        }
    }

    /// The socket that has not been used for the longest time, and when that was.
    pub fn least_recently_used(&self) -> Option<(FlowId, Instant)> {
        let socket = self.sockets.get(self.oldest)?;
        Some((self.oldest, socket.used))
    }

    fn push_newest(&mut self, id: FlowId, now: Instant) {
        let last = self.newest;
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.used = now;
            socket.older = last;
            socket.newer = NONE;
        }
        match self.sockets.get_mut(last) {
            Some(last) => last.newer = id,
            None => self.oldest = id,
        }
        self.newest = id;
    }

    fn unlink_socket(&mut self, id: FlowId) {
        let Some((older, newer)) = self.sockets.get(id).map(|s| (s.older, s.newer)) else {
            return;
        };
        match self.sockets.get_mut(older) {
            Some(s) => s.newer = newer,
            None => self.oldest = newer,
        }
        match self.sockets.get_mut(newer) {
            Some(s) => s.older = older,
            None => self.newest = older,
        }
    }

    /// Add a flow to the listener it names, else to the socket. `None`: the table is full, the name is taken, or there
    /// is no such thing.
    pub fn add_flow(&mut self, name: Name, flow: Flow) -> Option<FlowId> {
        let first = *self.head(&flow)?;
        let id = self.flows.insert(
            name,
            Flow {
                next: first,
                ..flow
            },
        )?;
        if let Some(first) = self.flows.get_mut(first) {
            first.previous = id;
        }
        *self.head(&flow)? = id;
        if let Some(socket) = self.sockets.get_mut(flow.socket) {
            if flow.group {
                socket.groups = socket.groups.saturating_add(1);
            }
            if flow.listener != NONE {
                socket.connected = Some(id);
            }
        }
        if flow.listener != NONE {
            self.inbound = self.inbound.saturating_add(1);
        }
        Some(id)
    }

    /// Remove a flow, and its socket with the last of them.
    pub fn remove_flow<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId) {
        self.timers.cancel(id.0);
        let Some(flow) = self.flows.remove(id) else {
            return;
        };
        io.finished(flow.rule, &flow.traffic);
        if flow.listener != NONE {
            self.inbound = self.inbound.saturating_sub(1);
        }
        if let Some(next) = self.flows.get_mut(flow.next) {
            next.previous = flow.previous;
        }
        if let Some(previous) = self.flows.get_mut(flow.previous) {
            previous.next = flow.next;
        }
        match self.head(&flow) {
            Some(head) if *head == id => *head = flow.next,
            _ => {}
        }
        let Some(socket) = self.sockets.get_mut(flow.socket) else {
            return;
        };
        if socket.connected == Some(id) {
            socket.connected = None;
        }
        if flow.group {
            socket.groups = socket.groups.saturating_sub(1);
        }
        if socket.flows == NONE {
            self.remove_socket(io, flow.socket);
        }
    }

    /// Close a socket, with all its flows.
    pub fn remove_socket<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId) {
        self.unlink_socket(id);
        let Some(socket) = self.sockets.remove(id) else {
            return;
        };
        let mut next = socket.flows;
        while let Some(flow) = self.flows.remove(next) {
            self.timers.cancel(next.0);
            io.finished(flow.rule, &flow.traffic);
            next = flow.next;
        }
        match socket.io {
            Some(inner) => io.close(inner),
            None => {
                for _ in 0..self.waiting.forget(id) {
                    io.drop(Drop::QueueFull);
                }
            }
        }
        // One that goes round the tap is in the list of its listener.
        if let Some(flow) = socket.connected.filter(|_| socket.flows == NONE) {
            self.remove_flow(io, flow);
        }
    }

    /// Close a listener, with all the flows that came by it.
    pub fn remove_listener<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId) {
        while let Some(flow) = self.first_of(id) {
            self.remove_flow(io, flow);
        }
        if let Some(post) = self.listeners.remove(id) {
            io.close(post.listener.socket);
        }
    }

    /// Are tables and lists consistent? For tests.
    #[cfg(test)]
    pub fn check(&self) {
        let mut seen = 0;
        let (mut at, mut previous, mut time) = (self.oldest, NONE, Instant(0));
        while let Some(socket) = self.sockets.get(at) {
            assert_eq!(socket.older, previous);
            assert!(socket.used >= time && (socket.io.is_some() || socket.target.is_some()));
            assert!(socket.flows != NONE || socket.target.is_some());
            (previous, time, seen) = (at, socket.used, seen + 1);
            let (mut flow_at, mut before, mut groups, mut count) = (socket.flows, NONE, 0, 0);
            while let Some(flow) = self.flows.get(flow_at) {
                assert_eq!((flow.socket, flow.previous, flow.run), (at, before, NO_RUN));
                groups += u32::from(flow.group);
                count += 1;
                (before, flow_at) = (flow_at, flow.next);
            }
            assert_eq!(socket.groups, groups);
            match (socket.connected, socket.target) {
                (Some(id), None) => assert_eq!((id, count), (socket.flows, 1)),
                (Some(id), Some(_)) => {
                    assert_eq!((socket.flows, count), (NONE, 0));
                    assert_eq!(self.flows.get(id).map(|f| f.socket), Some(at));
                }
                (None, target) => assert_eq!(target, None),
            }
            at = socket.newer;
        }
        assert_eq!((previous, seen), (self.newest, self.sockets.len()));
        let mut by_listener = 0;
        for (id, _, _) in self.listeners.iter() {
            let (mut at, mut before) = (self.first_of(id), NONE);
            while let Some(flow_id) = at {
                let flow = self.flows.get(flow_id).expect("a flow");
                assert_eq!(
                    (flow.listener, flow.previous, flow.run),
                    (id, before, NO_RUN)
                );
                (before, at, by_listener) = (flow_id, self.sibling(flow_id), by_listener + 1);
            }
        }
        let listed = self.flows.iter().filter(|(_, _, f)| f.listener != NONE);
        assert_eq!(listed.count(), by_listener);
        assert_eq!(self.inbound, by_listener);
        for (id, name, flow) in self.flows.iter() {
            let opened = self.inner(flow.carrier()).is_some();
            assert!(opened || name.is_splice());
            assert_eq!(
                name.is_splice(),
                flow.socket != NONE && flow.listener != NONE
            );
            assert!(self.timers.deadline(id.0).is_some());
        }
    }
}
