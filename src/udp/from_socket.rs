//! Datagrams for the guest: who sent them decides which flow they belong to, and what one receive brought
//! goes out in as few frames as it can.
//!
//! The kernel filters for connected sockets, but not what came in between bind(2) and connect(2) or after the
//! connection was dissolved: the sender of every message is checked here.

use super::Engine;
use super::flow::{Carrier, NONE, State};
use super::io::{Cut, Fault, Frame, Io, MAX_BURST_BYTES, MAX_SEGMENTS, Readiness, Received, Send};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::Config;
use crate::flow::id::{FlowId, Key};
use crate::flow::translate;
use crate::stats::Drop;

/// Receives per event: others are to have their turn. What is left makes the socket readable again.
const BUDGET: usize = 4;
/// Messages asked for from a socket that never had many: setting up more would be in vain.
const FEW: usize = 4;

/// The ends of a frame for the guest: as it is to see them.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub src: Endpoint,
    pub dst: Endpoint,
}

/// Over the tap, or round it.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Guest(Ends),
    Socket(Carrier, Send),
}

/// Where messages go, and on whose account.
#[derive(Clone, Copy)]
pub(super) struct Route {
    /// [`NONE`]: nobody's (answers to groups).
    pub flow: FlowId,
    /// Towards the guest or its namespace.
    pub inward: bool,
    pub way: Way,
}

impl<S> Engine<S> {
    /// A socket is readable or has an error.
    pub fn on_socket<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        id: FlowId,
        ready: Readiness,
    ) {
        self.on_carrier(io, now, Carrier::Socket(id), ready);
    }

    pub(super) fn on_carrier<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        from: Carrier,
        ready: Readiness,
    ) {
        if ready.error {
            self.read_errors(io, from);
        }
        if ready.readable {
            self.receive(io, now, from);
        }
    }

    fn receive<I: Io<Socket = S>>(&mut self, io: &mut I, now: Instant, from: Carrier) {
        for _ in 0..BUDGET {
            let Some((inner, busy)) = self.state.receiver(from) else {
                return;
            };
            let want = if *busy { self.received.len() } else { FEW };
            let Some(room) = self.received.get_mut(..want) else {
                return;
            };
            match io.receive(inner, room) {
                Ok(count) => {
                    *busy = count >= want;
                    if let Carrier::Socket(id) = from {
                        self.state.touch(id, now);
                    }
                    let messages = self.received.get(..count).unwrap_or_default();
                    self.state.relay(io, now, &self.cfg, from, messages);
                    if count < want {
                        return;
                    }
                }
                Err(Fault::Errno(_) | Fault::TooBig) => {
                    self.read_errors(io, from);
                }
                Err(Fault::WouldBlock | Fault::NoDescriptor) => {
                    *busy = false;
                    return;
                }
            }
        }
    }
}

impl<S> State<S> {
    /// A socket to receive from, and whether it has filled a whole receive before.
    fn receiver(&mut self, from: Carrier) -> Option<(&S, &mut bool)> {
        match from {
            Carrier::Socket(id) => {
                let socket = self.sockets.get_mut(id)?;
                Some((socket.io.as_ref()?, &mut socket.busy))
            }
            Carrier::Listener(id) => {
                let post = self.listeners.get_mut(id)?;
                Some((&post.listener.socket, &mut post.busy))
            }
        }
    }

    /// Forward what was received, in order, runs of the same sender and size together.
    fn relay<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        cfg: &Config,
        from: Carrier,
        messages: &[Received],
    ) {
        let mut known: Option<(&Received, Route)> = None;
        let mut first = 0_usize;
        while let Some((message, behind)) = messages.get(first..).and_then(<[_]>::split_first) {
            let route = match known {
                Some((last, route)) if same_ends(last, message) => Ok(route),
                _ => match from {
                    Carrier::Socket(id) => self.resolve(now, cfg, id, message),
                    Carrier::Listener(id) => self.arrive(io, now, cfg, id, message),
                },
            };
            let mut count = 1;
            match route {
                Err(why) => io.drop(why),
                Ok(_) if message.truncated => io.drop(Drop::Truncated),
                Ok(route) => {
                    known = Some((message, route));
                    let run = Run::new(message, behind);
                    count = run.messages;
                    self.carry(io, now, (first, message), &run, &route);
                }
            }
            first = first.saturating_add(count);
        }
    }

    /// Send a run of messages on its way.
    fn carry<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        (first, message): (usize, &Received),
        run: &Run,
        route: &Route,
    ) {
        if let Some(flow) = self.flows.get_mut(route.flow) {
            if route.inward {
                flow.traffic.add_in(run.bytes);
            } else {
                flow.traffic.add_out(run.bytes);
            }
        }
        match route.way {
            Way::Guest(ends) => {
                let frame = Frame {
                    src: ends.src,
                    dst: ends.dst,
                    tos: message.tos,
                    segment: message.segment,
                    datagrams: run.datagrams,
                };
                io.forward(first, run.messages, &frame);
            }
            Way::Socket(to, how) => {
                let how = Send {
                    tos: message.tos,
                    ..how
                };
                let cut = Cut {
                    segment: message.segment,
                    datagrams: run.datagrams,
                };
                let Some(inner) = self.inner(to) else {
                    return self.keep(io, now, (first, message), run, to);
                };
                let mut result = io.relay(first, run.messages, inner, &how, cut);
                if matches!(result, Err(Fault::Errno(_))) {
                    // Most likely the fate of an earlier datagram, to another peer even; said once, it is gone.
                    result = io.relay(first, run.messages, inner, &how, cut);
                }
                match result {
                    Ok(()) => {}
                    Err(Fault::WouldBlock | Fault::NoDescriptor) => io.drop(Drop::QueueFull),
                    // What became of the flow, its socket's error queue says.
                    Err(Fault::TooBig | Fault::Errno(_)) => io.drop(Drop::SocketError),
                }
            }
        }
    }

    /// Put messages by until their socket is there.
    fn keep<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        (first, message): (usize, &Received),
        run: &Run,
        to: Carrier,
    ) {
        let Carrier::Socket(id) = to else {
            return;
        };
        for _ in 0..self.waiting.weed(now) {
            io.drop(Drop::QueueFull);
        }
        for number in first..first.saturating_add(run.messages) {
            let cut = (message.segment, message.tos);
            if !self.waiting.keep(now, id, io.payload(number), cut) {
                io.drop(Drop::QueueFull);
            }
        }
    }

    /// Which flow a message belongs to; marks that as answered.
    fn resolve(
        &mut self,
        now: Instant,
        cfg: &Config,
        id: FlowId,
        message: &Received,
    ) -> Result<Route, Drop> {
        let socket = self.sockets.get(id).ok_or(Drop::NoFlow)?;
        if socket.target.is_some() {
            return self.answer(now, id, message);
        }
        let guest = self.sockets.key(id).ok_or(Drop::NoFlow)?.key.guest;
        let groups = socket.groups > 0;
        let flow = match socket.connected {
            Some(flow) => Some(flow),
            None => self.flow_to(cfg, id, guest, message.from),
        };
        let route = |flow, src| Route {
            flow,
            inward: true,
            way: Way::Guest(Ends { src, dst: guest }),
        };
        if let Some(flow_id) = flow {
            let src = self.flows.key(flow_id).ok_or(Drop::NoFlow)?.key.remote;
            let flow = self.flows.get_mut(flow_id).ok_or(Drop::NoFlow)?;
            if flow.peer.end == message.from && !flow.group {
                (flow.replied, flow.used) = (true, now);
                return Ok(route(flow_id, src));
            }
        }
        // The answer to something sent to a group: from a single station, to us alone.
        let answer = groups
            && !message.group
            && message.from.port != 0
            && message.from.is_ipv6() == guest.is_ipv6()
            && is_station(message.from);
        if !answer {
            return Err(Drop::NoFlow);
        }
        let ip = translate::visible_source(cfg, message.from.ip).ok_or(Drop::NoFlow)?;
        Ok(route(NONE, Endpoint::new(ip, message.from.port)))
    }

    /// The flow of an end point of the guest, on this socket, whose destination on the host's side is `peer`.
    pub(super) fn flow_to(
        &self,
        cfg: &Config,
        socket: FlowId,
        guest: Endpoint,
        peer: Endpoint,
    ) -> Option<FlowId> {
        let is_it = |ip| {
            let id = self.find(&Key::new(guest, Endpoint::new(ip, peer.port)))?;
            let flow = self.flows.get(id)?;
            (flow.socket == socket && flow.peer.end == peer).then_some(id)
        };
        is_it(peer.ip).or_else(|| {
            translate::aliases(cfg, peer.ip)
                .into_iter()
                .flatten()
                .find_map(is_it)
        })
    }
}

/// From and to the same ends?
fn same_ends(a: &Received, b: &Received) -> bool {
    (a.from, a.scope, a.to, a.group) == (b.from, b.scope, b.to, b.group)
}

/// Can it be the address of a single station?
pub(super) fn is_station(end: Endpoint) -> bool {
    match end.ip {
        std::net::IpAddr::V4(ip) => {
            !ip.is_multicast() && !ip.is_broadcast() && !ip.is_unspecified()
        }
        std::net::IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unspecified(),
    }
}

/// How many messages can go out as one burst.
struct Run {
    messages: usize,
    datagrams: usize,
    bytes: usize,
}

impl Run {
    /// The burst that starts with `message`: every datagram but the last has its size.
    fn new(message: &Received, behind: &[Received]) -> Self {
        let size = message.segment;
        let mut bytes = message.len;
        let mut datagrams = if size == 0 {
            1
        } else {
            message.len.div_ceil(size).max(1)
        };
        let mut messages = 1_usize;
        let mut whole = size > 0 && message.len.checked_rem(size) == Some(0);
        for next in behind {
            let fits = next.segment == size || (next.len == next.segment && next.len < size);
            let alike = same_ends(next, message)
                && next.tos == message.tos
                && !next.truncated
                && next.len > 0;
            let total = bytes.saturating_add(next.len);
            let more = datagrams.saturating_add(next.len.checked_div(size).unwrap_or(0).max(1));
            if !whole || !fits || !alike || total > MAX_BURST_BYTES || more > MAX_SEGMENTS {
                break;
            }
            whole = next.len.checked_rem(size) == Some(0);
            datagrams = datagrams.saturating_add(next.len.div_ceil(size));
            (bytes, messages) = (total, messages.saturating_add(1));
        }
        Self {
            messages,
            datagrams,
            bytes,
        }
    }
}
