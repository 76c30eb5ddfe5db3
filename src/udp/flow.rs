//! Flows and sockets, and the lists that tie them together.
//!
//! Each socket heads a list of its flows, so that closing it finds them all; all sockets form one list
//! in order of last use, so that the one to give up when descriptors run out is found at its end. Both lists are
//! threaded through the tables by number.

use std::net::IpAddr;

use super::io::{Io, Peer};
use crate::clock::Instant;
use crate::flow::id::{FlowId, Key};
use crate::flow::table::Table;
use crate::flow::timers::Wheel;

/// The end of a list.
const NONE: FlowId = FlowId(u32::MAX);
/// Not part of the batch being handled.
pub(super) const NO_RUN: u8 = u8::MAX;

/// A conversation of one end point of the guest with one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// The socket that carries it.
    pub socket: FlowId,
    /// Where its datagrams go on the host.
    pub peer: Peer,
    /// The destination is a group: answers come from elsewhere.
    pub group: bool,
    /// The peer has sent something, too.
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
            peer,
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
}

/// A socket of the host, for one end point of the guest.
#[derive(Debug)]
pub(super) struct Socket<S> {
    /// `None` only while it is being opened.
    pub io: Option<S>,
    /// The one flow of a connected socket; `None`: not connected.
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
            used: Instant(0),
            flows: NONE,
            older: NONE,
            newer: NONE,
        }
    }
}

/// All flows and sockets.
#[derive(Debug)]
pub(super) struct State<S> {
    pub flows: Table<Flow>,
    /// By the guest's end point and an unspecified remote one; sockets of a single flow by that flow's key.
    pub sockets: Table<Socket<S>>,
    /// By flow.
    pub timers: Wheel,
    oldest: FlowId,
    newest: FlowId,
}

impl<S> State<S> {
    pub fn new(flows: usize, sockets: usize, seed: [u8; 16]) -> Self {
        Self {
            flows: Table::with_capacity(flows, seed),
            sockets: Table::with_capacity(sockets, seed),
            timers: Wheel::with_capacity(flows),
            oldest: NONE,
            newest: NONE,
        }
    }

    /// Add a socket, as the most recently used. `None`: the table is full, or the key is taken.
    pub fn add_socket(&mut self, key: Key, socket: Socket<S>, now: Instant) -> Option<FlowId> {
        let id = self.sockets.insert(key, socket)?;
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

    /// Add a flow to the socket it names. `None`: the table is full, the key is taken, or there is no such socket.
    pub fn add_flow(&mut self, key: Key, flow: Flow) -> Option<FlowId> {
        let (socket_id, group) = (flow.socket, flow.group);
        let first = self.sockets.get(socket_id)?.flows;
        let id = self.flows.insert(
            key,
            Flow {
                next: first,
                ..flow
            },
        )?;
        if let Some(first) = self.flows.get_mut(first) {
            first.previous = id;
        }
        let socket = self.sockets.get_mut(socket_id)?;
        socket.flows = id;
        if group {
            socket.groups = socket.groups.saturating_add(1);
        }
        Some(id)
    }

    /// Remove a flow, and its socket with the last of them.
    pub fn remove_flow<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId) {
        self.timers.cancel(id.0);
        let Some(flow) = self.flows.remove(id) else {
            return;
        };
        if let Some(next) = self.flows.get_mut(flow.next) {
            next.previous = flow.previous;
        }
        if let Some(previous) = self.flows.get_mut(flow.previous) {
            previous.next = flow.next;
        }
        let Some(socket) = self.sockets.get_mut(flow.socket) else {
            return;
        };
        if socket.flows == id {
            socket.flows = flow.next;
        }
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
            next = flow.next;
        }
        if let Some(inner) = socket.io {
            io.close(inner);
        }
    }

    /// Are tables and lists consistent? For tests.
    #[cfg(test)]
    pub fn check(&self) {
        let mut seen = 0;
        let (mut at, mut previous, mut time) = (self.oldest, NONE, Instant(0));
        while let Some(socket) = self.sockets.get(at) {
            assert_eq!(socket.older, previous);
            assert!(socket.used >= time && socket.io.is_some() && socket.flows != NONE);
            (previous, time, seen) = (at, socket.used, seen + 1);
            let (mut flow_at, mut before, mut groups, mut count) = (socket.flows, NONE, 0, 0);
            while let Some(flow) = self.flows.get(flow_at) {
                assert_eq!((flow.socket, flow.previous, flow.run), (at, before, NO_RUN));
                groups += u32::from(flow.group);
                count += 1;
                (before, flow_at) = (flow_at, flow.next);
            }
            assert_eq!(socket.groups, groups);
            if let Some(id) = socket.connected {
                assert_eq!((id, count), (socket.flows, 1));
            }
            at = socket.newer;
        }
        assert_eq!((previous, seen), (self.newest, self.sockets.len()));
        for (id, _, flow) in self.flows.iter() {
            assert!(self.sockets.get(flow.socket).is_some());
            assert!(self.timers.deadline(id.0).is_some());
        }
    }
}
