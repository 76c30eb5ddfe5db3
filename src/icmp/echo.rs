//! Echo requests of the guest: one ping socket per identifier and destination.
//!
//! The kernel gives each ping socket an identifier of its own and sends it the replies that carry it. The guest's
//! identifier is asked for and usually had; where another socket has it (another destination pinged by the
//! same program, another program of the host) the kernel chooses, and replies are given the guest's back. Nothing
//! is answered on anybody's behalf: a reply means that the destination replied.
//!
//! Timers are armed when a flow is made and when one fires; one that comes early looks at when the flow was
//! last used.

use std::net::IpAddr;
use std::time::Duration;

use super::io::{Io, Request};
use super::oversize::{Grace, Packet, Verdict};
use super::quote::{Header, Quote};
use super::report::{Kind, Report};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::Config;
use crate::flow::id::{FlowId, Key};
use crate::flow::table::Table;
use crate::flow::timers::Wheel;
use crate::flow::translate::{self, Outbound, Protocol};
use crate::stats::Drop;
use crate::sys::errqueue::Origin;
use crate::udp::io::{Fault, Open, Peer, Readiness, Send};
use crate::wire::{DEFAULT_HOP_LIMIT, ipv4, ipv6};

/// Timers handled per call: others are to have their turn.
const EXPIRIES: usize = 256;
/// How long an identifier is kept without a request or a reply.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Replies, and entries of the error queue, read per event. Left-over ones raise the event again.
const BUDGET: usize = 64;
/// ICMP header of an echo message.
const HEADER_LEN: usize = 8;

/// One identifier of the guest, and one destination.
#[derive(Debug)]
struct Flow<S> {
    /// `None` only while it is being opened.
    socket: Option<S>,
    peer: Peer,
    group: bool,
    used: Instant,
    dont_fragment: Option<bool>,
    grace: Grace,
}

/// All echo flows of a guest; see the module text.
#[derive(Debug)]
pub struct Engine<S> {
    cfg: Config,
    flows: Table<Flow<S>>,
    timers: Wheel,
    told_why_not: bool,
}

impl<S> Engine<S> {
    /// An engine without flows. Reserves all the memory it will ever use.
    #[must_use]
    pub fn new(cfg: Config, flows: usize, seed: [u8; 16]) -> Self {
        Self {
            cfg,
            flows: Table::with_capacity(flows, seed),
            timers: Wheel::with_capacity(flows),
            told_why_not: false,
        }
    }

    /// Flows, and sockets, at present.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.flows.len()
    }

    /// No flows?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// When [`Self::on_timer`] is to be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Remove flows that have been idle for too long, some of them at a time.
    pub fn on_timer<I: Io<Socket = S>>(&mut self, io: &mut I, now: Instant) {
        for _ in 0..EXPIRIES {
            let Some(number) = self.timers.pop(now) else {
                return;
            };
            let Some(flow) = self.flows.get(FlowId(number)) else {
                continue;
            };
            let end = flow.used + TIMEOUT;
            if end <= now {
                self.remove(io, FlowId(number));
            } else {
                self.timers.arm(number, end);
            }
        }
    }

    fn remove<I: Io<Socket = S>>(&mut self, io: &mut I, id: FlowId) {
        self.timers.cancel(id.0);
        if let Some(socket) = self.flows.remove(id).and_then(|flow| flow.socket) {
            io.close(socket);
        }
    }

    /// Carry echo requests of the guest.
    pub fn from_guest<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        batch: &[Request<'_>],
    ) {
        for request in batch {
            let (guest, remote) = ends(request);
            let id = match self.flows.lookup(&Key::new(guest, remote)) {
                Some(id) => Ok(id),
                None => self.create(io, now, request),
            };
            match id {
                Ok(id) => self.send(io, now, id, request),
                Err(why) => io.drop(why),
            }
        }
    }

    fn create<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        request: &Request<'_>,
    ) -> Result<FlowId, Drop> {
        if request.message.len() < HEADER_LEN {
            return Err(Drop::Truncated);
        }
        let (guest, remote) = ends(request);
        let out = translate::outbound(&self.cfg, Protocol::Icmp, guest, remote)?;
        let peer = Peer {
            end: out.dst,
            scope: out.scope,
        };
        let group = out.group;
        let open = open_as(&out, request.ident);
        let flow = Flow {
            socket: None,
            peer,
            group,
            used: now,
            dont_fragment: None,
            grace: Grace::NEW,
        };
        let id = self
            .flows
            .insert(Key::new(guest, remote), flow)
            .ok_or(Drop::TableFull)?;
        let (why, kind) = match io.open(id, &open) {
            Ok((socket, _)) => {
                if group {
                    io.enable_groups(&socket, open.ipv6);
                }
                if let Some(flow) = self.flows.get_mut(id) {
                    flow.socket = Some(socket);
                }
                self.timers.arm(id.0, now + TIMEOUT);
                return Ok(id);
            }
            Err(Fault::NoDescriptor) => (Drop::NoDescriptor, None),
            Err(Fault::Errno(errno)) => {
                if matches!(errno, libc::EACCES | libc::EPERM) {
                    self.say_why_not();
                }
                (Drop::SocketError, Kind::from_errno(guest.is_ipv6(), errno))
            }
            Err(Fault::WouldBlock | Fault::TooBig) => (Drop::SocketError, None),
        };
        self.flows.remove(id);
        if let Some(kind) = kind {
            self.report_own(io, request, kind);
        }
        Err(why)
    }

    fn say_why_not(&mut self) {
        if !self.told_why_not {
            self.told_why_not = true;
            log::warn!(
                "Cannot forward ping: not permitted by the host; \
                 allow it there with: sysctl -w net.ipv4.ping_group_range=\"0 2147483647\""
            );
        }
    }

    /// Send a request. An error may be about an earlier one: the report is read, and the same request tried once
    /// more; if it fails again the error is its own.
    fn send<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        id: FlowId,
        request: &Request<'_>,
    ) {
        let how = Send {
            to: None,
            hop_limit: None,
            tos: request.tos,
            source: None,
            ipv6: request.src.is_ipv6(),
        };
        for retry in [false, true] {
            let Some(flow) = self.flows.get_mut(id) else {
                return;
            };
            let Some(socket) = &flow.socket else {
                return;
            };
            flow.used = now;
            if flow.dont_fragment != Some(request.dont_fragment) {
                io.set_dont_fragment(socket, how.ipv6, request.dont_fragment);
                flow.dont_fragment = Some(request.dont_fragment);
            }
            // What sockets send with anyway needs no control message.
            let plain = request.hop_limit == DEFAULT_HOP_LIMIT && !flow.group;
            let how = Send {
                hop_limit: if plain { None } else { Some(request.hop_limit) },
                ..how
            };
            match io.send(socket, flow.peer, &how, request.message) {
                Ok(()) => return,
                Err(Fault::WouldBlock | Fault::NoDescriptor) => return io.drop(Drop::QueueFull),
                Err(Fault::TooBig) => return self.too_big(io, now, id, &how, request),
                Err(Fault::Errno(_)) if !retry => {
                    self.read_errors(io, id);
                }
                Err(Fault::Errno(errno)) => {
                    io.drop(Drop::SocketError);
                    if let Some(kind) = Kind::from_errno(how.ipv6, errno) {
                        self.report_own(io, request, kind);
                    }
                }
            }
        }
    }

    /// A request that must not be fragmented does not fit. See [`super::oversize`].
    fn too_big<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        now: Instant,
        id: FlowId,
        how: &Send,
        request: &Request<'_>,
    ) {
        let least = if how.ipv6 { 1280 } else { 68 };
        let mtu = self.read_errors(io, id).unwrap_or(least);
        let header = if how.ipv6 {
            ipv6::HEADER_LEN
        } else {
            ipv4::HEADER_LEN
        };
        let packet = Packet {
            ipv6: how.ipv6,
            echo: true,
            len: request.message.len().saturating_add(header),
            hop_limit: request.hop_limit,
            l3: request.l3,
        };
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let verdict = flow.grace.judge(now, &packet);
        if verdict != Verdict::Fragment {
            self.report_own(io, request, Kind::too_big(how.ipv6, mtu.max(least)));
        }
        let flow = self.flows.get(id).filter(|_| verdict != Verdict::Refuse);
        let Some((flow, socket)) = flow.and_then(|flow| Some((flow, flow.socket.as_ref()?))) else {
            return io.drop(Drop::SocketError);
        };
        io.set_dont_fragment(socket, how.ipv6, false);
        if io.send(socket, flow.peer, how, request.message).is_err() {
            io.drop(Drop::SocketError);
        }
        io.set_dont_fragment(socket, how.ipv6, true);
    }

    /// Report a failure that we noticed ourselves, like a router would.
    fn report_own<I: Io<Socket = S>>(&self, io: &mut I, request: &Request<'_>, kind: Kind) {
        let (guest, remote) = ends(request);
        let out = translate::outbound(&self.cfg, Protocol::Icmp, guest, remote);
        if out.is_ok_and(|out| !out.group) {
            let from = translate::router(&self.cfg, request.src.is_ipv6()).unwrap_or(request.dst);
            io.report(&Report {
                from,
                to: request.src,
                kind,
                quote: request.l3,
            });
        }
    }

    /// A ping socket is readable or has an error.
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
        let Some(&Key { guest, remote }) = self.flows.key(id) else {
            return;
        };
        for _ in 0..BUDGET {
            let Some(flow) = self.flows.get_mut(id) else {
                return;
            };
            let Some(socket) = &flow.socket else {
                return;
            };
            match io.receive(socket) {
                Ok(reply) => {
                    let src = if flow.group {
                        // An IPv6 packet from a mapped address is taken for one of IPv4.
                        translate::visible_source(&self.cfg, reply.from)
                            .filter(|ip| ip.is_ipv6() == guest.is_ipv6())
                    } else {
                        Some(remote.ip).filter(|_| reply.from == flow.peer.end.ip)
                    };
                    match src.filter(|_| reply.len >= HEADER_LEN) {
                        Some(src) => {
                            flow.used = now;
                            io.forward(&reply, src, guest);
                        }
                        None => io.drop(Drop::NoFlow),
                    }
                }
                Err(Fault::Errno(_) | Fault::TooBig) => {
                    self.read_errors(io, id);
                }
                Err(Fault::WouldBlock | Fault::NoDescriptor) => return,
            }
        }
    }

    /// Empty the error queue, telling the guest what there is to tell. Returns the MTU if a request was found too
    /// large when it was sent; whoever sent it tells the guest.
    fn read_errors<I: Io<Socket = S>>(&self, io: &mut I, id: FlowId) -> Option<u32> {
        let Key { guest, remote } = *self.flows.key(id)?;
        let flow = self.flows.get(id)?;
        let socket = flow.socket.as_ref()?;
        let ipv6 = guest.is_ipv6();
        let mut quote = Quote::new();
        let mut mtu = None;
        for count in 0..BUDGET {
            let Some(record) = io.next_error(socket, quote.message(ipv6)) else {
                if count == 0 {
                    // An error without an entry would otherwise be signalled for ever.
                    io.clear_error(socket);
                }
                break;
            };
            if record.origin == Origin::Local {
                mtu = if record.errno == libc::EMSGSIZE {
                    Some(record.info)
                } else {
                    mtu
                };
                continue;
            }
            let Some(kind) = Kind::from_record(&record).filter(|_| !flow.group) else {
                continue;
            };
            let from =
                translate::complainer(&self.cfg, record.offender, flow.peer.end.ip, remote.ip);
            let quote = quote.finish_echo(
                &Header {
                    src: guest,
                    dst: remote,
                },
                record.len,
            );
            io.report(&Report {
                from,
                to: guest.ip,
                kind,
                quote,
            });
        }
        mtu
    }
}

/// Both ends of an echo flow: the identifier stands for the port, on both sides.
fn ends(request: &Request<'_>) -> (Endpoint, Endpoint) {
    let end = |ip: IpAddr| Endpoint::new(ip, request.ident);
    (end(request.src), end(request.dst))
}

const fn open_as<'c>(out: &Outbound<'c>, ident: u16) -> Open<'c> {
    Open {
        ipv6: out.dst.is_ipv6(),
        source: out.source,
        device: out.device,
        scope: out.scope,
        port: ident,
    }
}
