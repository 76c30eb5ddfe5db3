//! Datagrams for the guest: who sent them decides which flow they belong to, and what one receive brought
//! goes out in as few frames as it can.
//!
//! The kernel filters for connected sockets, but not what came in between bind(2) and connect(2) or after the
//! connection was dissolved: the sender of every message is checked here.

use super::Engine;
use super::flow::State;
use super::io::{Fault, Frame, Io, MAX_BURST_BYTES, MAX_SEGMENTS, Readiness, Received};
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
struct Ends {
    src: Endpoint,
    dst: Endpoint,
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
        if ready.error {
            self.read_errors(io, id);
        }
        if ready.readable {
            self.receive(io, now, id);
        }
    }

    fn receive<I: Io<Socket = S>>(&mut self, io: &mut I, now: Instant, id: FlowId) {
        for _ in 0..BUDGET {
            let Some(socket) = self.state.sockets.get_mut(id) else {
                return;
            };
            let Some(inner) = &socket.io else {
                return;
            };
            let want = if socket.busy {
                self.received.len()
            } else {
                FEW
            };
            let Some(room) = self.received.get_mut(..want) else {
                return;
            };
            match io.receive(inner, room) {
                Ok(count) => {
                    socket.busy = count >= want;
                    let messages = self.received.get(..count).unwrap_or_default();
                    self.state.touch(id, now);
                    self.state.relay(io, now, &self.cfg, id, messages);
                    if count < want {
                        return;
                    }
                }
                Err(Fault::Errno(_) | Fault::TooBig) => {
                    self.read_errors(io, id);
                }
                Err(Fault::WouldBlock | Fault::NoDescriptor) => {
                    socket.busy = false;
                    return;
                }
            }
        }
    }
}

impl<S> State<S> {
    /// Forward what was received, in order, runs of the same sender and size together.
    fn relay<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        cfg: &Config,
        id: FlowId,
        messages: &[Received],
    ) {
        let mut known: Option<(Endpoint, bool, Ends)> = None;
        let mut first = 0_usize;
        while let Some((message, behind)) = messages.get(first..).and_then(<[_]>::split_first) {
            let ends = match known {
                Some((from, group, ends)) if from == message.from && group == message.group => {
                    Ok(ends)
                }
                _ => self.resolve(now, cfg, id, message),
            };
            let mut count = 1;
            match ends {
                Err(why) => io.drop(why),
                Ok(_) if message.truncated => io.drop(Drop::Truncated),
                Ok(ends) => {
                    known = Some((message.from, message.group, ends));
                    let run = Run::new(message, behind);
                    count = run.messages;
                    let frame = Frame {
                        src: ends.src,
                        dst: ends.dst,
                        tos: message.tos,
                        segment: message.segment,
                        datagrams: run.datagrams,
                    };
                    io.forward(first, count, &frame);
                }
            }
            first = first.saturating_add(count);
        }
    }

    /// Which flow a message belongs to; marks that as answered.
    fn resolve(
        &mut self,
        now: Instant,
        cfg: &Config,
        id: FlowId,
        message: &Received,
    ) -> Result<Ends, Drop> {
        let socket = self.sockets.get(id).ok_or(Drop::NoFlow)?;
        let guest = self.sockets.key(id).ok_or(Drop::NoFlow)?.guest;
        let groups = socket.groups > 0;
        let flow = match socket.connected {
            Some(flow) => Some(flow),
            None => self.flow_to(cfg, id, guest, message.from),
        };
        if let Some(flow_id) = flow {
            let src = self.flows.key(flow_id).ok_or(Drop::NoFlow)?.remote;
            let flow = self.flows.get_mut(flow_id).ok_or(Drop::NoFlow)?;
            if flow.peer.end == message.from && !flow.group {
                (flow.replied, flow.used) = (true, now);
                return Ok(Ends { src, dst: guest });
            }
        }
        // The answer to something sent to a group: from a single station, to us alone.
        let answer = groups && !message.group && message.from.port != 0 && is_station(message.from);
        if !answer {
            return Err(Drop::NoFlow);
        }
        let ip = translate::visible_source(cfg, message.from.ip).ok_or(Drop::NoFlow)?;
        Ok(Ends {
            src: Endpoint::new(ip, message.from.port),
            dst: guest,
        })
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
            let id = self
                .flows
                .lookup(&Key::new(guest, Endpoint::new(ip, peer.port)))?;
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

fn is_station(end: Endpoint) -> bool {
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
            let alike = next.from == message.from
                && next.group == message.group
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
        }
    }
}
