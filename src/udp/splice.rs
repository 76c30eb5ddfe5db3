//! Datagrams that go round the tap: from a socket of one network to a socket of the other.
//!
//! What arrives at a listener from the host's loopback goes to the guest's namespace, what arrives from the namespace's
//! loopback goes to the host's. Each peer at each of the listener's addresses has a flow with a socket of its own at
//! the far end, connected to where the rule leads: its answers need no look-up. They go back through the listener,
//! from the address the peer used. A whole receive goes on in one send per run of equal sizes, out of the
//! buffers it was received into.
//!
//! Sockets of the namespace come ready-made; what arrives when there is none waits for one ([`super::waiting`]).
//!
//! A target where nobody listens is found out by the error queue; the flow ends, and the next datagram begins afresh, as
//! does one whose target has moved.
//!
//! What must never happen: a loop over an error nobody clears, or a datagram for the peer that the target did not send.

use std::net::IpAddr;

use super::flow::{Carrier, Flow, Name, Socket, State};
use super::from_socket::{Route, Way};
use super::io::{Fault, Io, Open, Peer, Received, Send};
use super::listener::Arrival;
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::rules::Table;
use crate::flow::id::FlowId;
use crate::stats::Drop;

impl<S> State<S> {
    /// The flow of something from one loopback to the other, and the way it takes.
    pub(super) fn arrive_splice<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        arrival: &Arrival,
        to: Endpoint,
        source: Option<IpAddr>,
    ) -> Result<Route, Drop> {
        let name = Name::splice(arrival.listener, arrival.local, arrival.peer.end);
        if let Some(id) = self.flows.lookup(&name) {
            let flow = self.flows.get_mut(id).ok_or(Drop::NoFlow)?;
            flow.used = now;
            let socket = flow.socket;
            if self
                .sockets
                .get(socket)
                .is_some_and(|s| s.target == Some(to))
            {
                self.touch(socket, now);
                if self.inner(Carrier::Socket(socket)).is_none() {
                    if let Err(why) = self.inner_end(io, socket) {
                        self.remove_flow(io, id);
                        return Err(why);
                    }
                }
                return Ok(outbound(id, socket, arrival.table, to));
            }
            self.remove_flow(io, id);
        }
        self.room(io, now)?;
        if self.sockets.is_full() {
            self.evict(io, now).ok_or(Drop::NoDescriptor)?;
        }
        let mut far = Socket::new((source, false));
        far.target = Some(to);
        let socket = self.add_socket(name, far, now).ok_or(Drop::NoDescriptor)?;
        if let Err(why) = self.far_end(io, now, socket, arrival, to) {
            self.remove_socket(io, socket);
            return Err(why);
        }
        let mut flow = Flow::new(socket, arrival.peer, false, now);
        arrival.mark(&mut flow);
        let Some(id) = self.add_flow(name, flow) else {
            self.remove_socket(io, socket);
            return Err(Drop::TableFull);
        };
        self.timers.arm(id.0, now + self.timeouts.unreplied);
        Ok(outbound(id, socket, arrival.table, to))
    }

    /// Get a socket in the other network and connect it. One of the namespace may come later.
    fn far_end<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        id: FlowId,
        arrival: &Arrival,
        to: Endpoint,
    ) -> Result<(), Drop> {
        if arrival.table == Table::Host {
            return self.inner_end(io, id).map(|_| ());
        }
        let inner = self.host_socket(io, now, id, arrival, to)?;
        self.join(io, id, inner)
    }

    /// Get a socket of the namespace and connect it. `false`: there is none at the moment.
    pub(super) fn inner_end<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        id: FlowId,
    ) -> Result<bool, Drop> {
        let socket = self.sockets.get(id).ok_or(Drop::NoFlow)?;
        let to = socket.target.ok_or(Drop::NoFlow)?;
        let (source, _) = socket.binding;
        let Some(inner) = io.namespace_socket(id, to.is_ipv6()) else {
            return Ok(false);
        };
        if let Some(source) = source.filter(|ip| ip.is_ipv6() == to.is_ipv6()) {
            // Without it the kernel chooses; the peer is not told apart then, and no worse off.
            let _ = io.bind(&inner, source);
        }
        self.join(io, id, inner).map(|()| true)
    }

    /// Connect the socket of a far end.
    fn join<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId, inner: S) -> Result<(), Drop> {
        let socket = self.sockets.get_mut(id).ok_or(Drop::NoFlow)?;
        let end = socket.target.ok_or(Drop::NoFlow)?;
        let inner = socket.io.insert(inner);
        io.connect(inner, Some(Peer { end, scope: 0 }))
            .map_err(|_| Drop::SocketError)
    }

    /// A socket of the host that sends from the address and port the peer has in the namespace, if possible.
    fn host_socket<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        id: FlowId,
        arrival: &Arrival,
        to: Endpoint,
    ) -> Result<S, Drop> {
        let peer = arrival.peer.end;
        let alike = to.ip.is_loopback() && to.is_ipv6() == peer.is_ipv6();
        let open = Open {
            ipv6: to.is_ipv6(),
            source: Some(peer.ip).filter(|_| alike),
            device: None,
            scope: 0,
            port: peer.port,
        };
        let mut result = io.open(id, &open);
        if matches!(result, Err(Fault::NoDescriptor)) && self.evict(io, now).is_some() {
            result = io.open(id, &open);
        }
        match result {
            Ok((socket, _)) => Ok(socket),
            Err(Fault::NoDescriptor) => Err(Drop::NoDescriptor),
            Err(_) => Err(Drop::SocketError),
        }
    }

    /// The way back: what a far end has received goes to whoever began.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        socket: FlowId,
        message: &Received,
    ) -> Result<Route, Drop> {
        let socket = self.sockets.get(socket).ok_or(Drop::NoFlow)?;
        let id = socket.connected.ok_or(Drop::NoFlow)?;
        if socket.target != Some(message.from) {
            return Err(Drop::NoFlow);
        }
        let flow = self.flows.get_mut(id).ok_or(Drop::NoFlow)?;
        (flow.replied, flow.used) = (true, now);
        let post = self.listeners.get(flow.listener).ok_or(Drop::NoFlow)?;
        let how = Send {
            to: Some(flow.peer),
            hop_limit: None,
            tos: 0,
            source: flow.local,
            ipv6: flow.peer.end.is_ipv6(),
        };
        Ok(Route {
            flow: id,
            inward: post.listener.table == Table::Splice,
            way: Way::Socket(Carrier::Listener(flow.listener), how),
        })
    }
}

/// The way there.
fn outbound(flow: FlowId, socket: FlowId, table: Table, to: Endpoint) -> Route {
    let how = Send {
        to: None,
        hop_limit: None,
        tos: 0,
        source: None,
        ipv6: to.is_ipv6(),
    };
    Route {
        flow,
        inward: table == Table::Host,
        way: Way::Socket(Carrier::Socket(socket), how),
    }
}
