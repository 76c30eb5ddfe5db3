//! New flows: which socket carries them, and what has to go to make room.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Engine;
use super::flow::{Flow, Name, Socket, State};
use super::io::{Datagram, Fault, Io, Open, Peer};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::Config;
use crate::flow::id::{FlowId, Key};
use crate::flow::translate::{self, Outbound, Protocol};
use crate::icmp::report::Kind;
use crate::stats::Drop;

/// A socket that was used more recently is not given up for a new flow: otherwise a guest that opens flows faster
/// than they can be of use (a port scan) would take all others down.
const EVICT_AFTER_US: u64 = 10_000_000;

/// Why there is no flow.
enum Refusal {
    /// The datagram is dropped.
    Drop(Drop),
    /// The same, and a router would have said so.
    Report(Kind),
}

impl From<Drop> for Refusal {
    fn from(why: Drop) -> Self {
        Self::Drop(why)
    }
}

/// The table key of the socket that is shared by the flows of one end point of the guest.
fn home(guest: Endpoint) -> Name {
    let any = match guest.ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Name::tap(Key::new(guest, Endpoint::new(any, 0)))
}

impl<S> Engine<S> {
    /// Make the flow a datagram needs.
    pub(super) fn create<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        datagram: &Datagram<'_>,
    ) -> Result<FlowId, Drop> {
        let key = Key::new(datagram.src, datagram.dst);
        let out = translate::outbound(&self.cfg, Protocol::Udp, datagram.src, datagram.dst)?;
        if self.state.flows.is_full() {
            self.state
                .evict(io, now)
                .or_else(|| self.state.give_up(io, now))
                .ok_or(Drop::TableFull)?;
        }
        match self.state.assign(io, now, &self.cfg, key, &out) {
            Ok(id) => {
                self.state
                    .timers
                    .arm(id.0, now + self.state.timeouts.unreplied);
                Ok(id)
            }
            Err(Refusal::Drop(why)) => Err(why),
            Err(Refusal::Report(kind)) => {
                self.report_own(io, datagram, kind);
                Err(Drop::SocketError)
            }
        }
    }
}

impl<S> State<S> {
    /// Put a new flow on the socket of its end point, or on one of its own.
    fn assign<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        cfg: &Config,
        key: Key,
        out: &Outbound<'_>,
    ) -> Result<FlowId, Refusal> {
        let peer = Peer {
            end: out.dst,
            scope: out.scope,
        };
        let mut flow = Flow::new(FlowId(0), peer, out.group, now);
        let mut open = Open {
            ipv6: key.guest.is_ipv6(),
            source: out.source,
            device: out.device,
            scope: out.scope,
            port: key.guest.port,
        };
        let home = home(key.guest);
        let existing = self.sockets.lookup(&home);
        let id = match existing {
            Some(id) if self.may_share(cfg, id, key, out) && self.share(io, id) => id,
            Some(_) => {
                open.port = 0;
                self.open(io, now, Name::tap(key), &open)?.0
            }
            None => {
                let (id, had_port) = self.open(io, now, home, &open)?;
                // Linux forgets a port it chose itself when a connection is dissolved: such a socket is
                // never connected, so that it can be shared.
                if !had_port {
                    flow.socket = id;
                    return self.populate(io, key, flow);
                }
                id
            }
        };
        flow.socket = id;
        if self
            .sockets
            .get(id)
            .is_some_and(|s| s.groups_enabled || existing == Some(id))
            || flow.group
        {
            return self.populate(io, key, flow);
        }
        self.connect(io, key, flow)
    }

    /// Add a flow to a socket that stays unconnected.
    fn populate<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        key: Key,
        flow: Flow,
    ) -> Result<FlowId, Refusal> {
        let (id, group) = (flow.socket, flow.group);
        let added = self
            .add_flow(Name::tap(key), flow)
            .ok_or(Refusal::Drop(Drop::TableFull));
        match self.sockets.get_mut(id) {
            Some(socket) if group && !socket.groups_enabled => {
                socket.groups_enabled = true;
                if let Some(inner) = &socket.io {
                    io.enable_groups(inner, key.guest.is_ipv6());
                }
            }
            _ => {}
        }
        added
    }

    /// Connect a fresh socket to the peer of its first flow.
    fn connect<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        key: Key,
        mut flow: Flow,
    ) -> Result<FlowId, Refusal> {
        let socket_id = flow.socket;
        let Some(inner) = self.sockets.get(socket_id).and_then(|s| s.io.as_ref()) else {
            return Err(Drop::SocketError.into());
        };
        match io.connect(inner, Some(flow.peer)) {
            Ok(()) => {
                let id = self.add_flow(Name::tap(key), flow).ok_or(Drop::TableFull)?;
                if let Some(socket) = self.sockets.get_mut(socket_id) {
                    socket.connected = Some(id);
                }
                Ok(id)
            }
            // The broadcast address of a network we do not know the prefix of.
            Err(Fault::Errno(libc::EACCES)) => {
                flow.group = true;
                self.populate(io, key, flow)
            }
            Err(fault) => {
                self.remove_socket(io, socket_id);
                Err(refusal(key.guest.is_ipv6(), fault))
            }
        }
    }

    /// May a flow use the socket of its end point? Not if it must be bound differently, nor if another flow there
    /// has the same destination on the host's side: answers could not be told apart.
    fn may_share(&self, cfg: &Config, socket: FlowId, key: Key, out: &Outbound<'_>) -> bool {
        let binding = (out.source, out.device.is_some());
        if self
            .sockets
            .get(socket)
            .is_none_or(|s| s.binding != binding)
        {
            return false;
        }
        let same = std::iter::once(Some(out.dst.ip)).chain(translate::aliases(cfg, out.dst.ip));
        !same.flatten().any(|ip| {
            let other = Key::new(key.guest, Endpoint::new(ip, out.dst.port));
            let flow = self.find(&other).and_then(|id| self.flows.get(id));
            flow.is_some_and(|flow| flow.socket == socket && flow.peer.end == out.dst)
        })
    }

    /// Make sure that a socket can serve more than one flow.
    fn share<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId) -> bool {
        let Some(socket) = self.sockets.get_mut(id) else {
            return false;
        };
        let (Some(inner), Some(_)) = (&socket.io, socket.connected) else {
            return true;
        };
        let dissolved = io.connect(inner, None).is_ok();
        if dissolved {
            socket.connected = None;
        }
        dissolved
    }

    /// Open a socket, giving up an idle one if there is a limit in the way. Also returns whether it has the port it
    /// should have; not having asked for one counts.
    fn open<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        name: Name,
        open: &Open<'_>,
    ) -> Result<(FlowId, bool), Refusal> {
        if self.sockets.is_full() {
            self.evict(io, now).ok_or(Drop::NoDescriptor)?;
        }
        let socket = Socket::new((open.source, open.device.is_some()));
        let id = self
            .add_socket(name, socket, now)
            .ok_or(Drop::NoDescriptor)?;
        let mut result = io.open(id, open);
        if matches!(result, Err(Fault::NoDescriptor)) && self.evict(io, now).is_some() {
            result = io.open(id, open);
        }
        match result {
            Ok((inner, had_port)) => {
                if let Some(socket) = self.sockets.get_mut(id) {
                    socket.io = Some(inner);
                }
                Ok((id, had_port || open.port == 0))
            }
            Err(fault) => {
                self.remove_socket(io, id);
                Err(refusal(open.ipv6, fault))
            }
        }
    }

    /// Close the socket that has been idle longest, if that is long enough.
    pub(super) fn evict<I: Io<Socket = S>>(&mut self, io: &mut I, now: Instant) -> Option<()> {
        let (id, used) = self.least_recently_used()?;
        if now.micros().saturating_sub(used.micros()) < EVICT_AFTER_US {
            return None;
        }
        self.remove_socket(io, id);
        Some(())
    }
}

fn refusal(ipv6: bool, fault: Fault) -> Refusal {
    match fault {
        Fault::NoDescriptor => Refusal::Drop(Drop::NoDescriptor),
        Fault::Errno(errno) => {
            Kind::from_errno(ipv6, errno).map_or(Refusal::Drop(Drop::SocketError), Refusal::Report)
        }
        Fault::WouldBlock | Fault::TooBig => Refusal::Drop(Drop::SocketError),
    }
}
