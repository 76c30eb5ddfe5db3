//! What monitor and ns-agent send: rules, listeners, sockets of the namespace.
//!
//! Before the start everything is waited for ([`Worker::stock_up`]); afterwards messages are read as they come, a
//! few at a time. The forwarder believes what it is told here (both are less exposed than itself), but it asks
//! for little: a batch of sockets when the pool runs low, and listeners that it had no descriptor for.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::host::Host;
use super::ports::{Place, Socket, TcpListener};
use super::token::Token;
use super::udp_io;
use super::worker::Worker;
use crate::clock::Instant;
use crate::config::rules::{Protocol, RuleId, Table};
use crate::ipc::{
    Descriptors, ForwarderLink, IpcError, Request, RuleNotice, SocketKind, Supply, SupplyLink,
};
use crate::sys::stream;
use crate::udp;

/// Messages read in one go.
const MESSAGES: usize = 16;
/// How long after a listener was lost it is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Who is owed [`Request::Settled`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owes {
    pub monitor: bool,
    pub agent: bool,
}

impl Worker {
    /// Before the start: take everything both have to give.
    pub(super) fn stock_up(&mut self, monitor: &ForwarderLink) -> Result<(), IpcError> {
        let mut fds = Descriptors::new();
        let start = Instant::default();
        loop {
            match monitor.receive_supply_blocking(&mut fds)? {
                Supply::Complete => break,
                supply => self.supplied(start, supply, &mut fds),
            }
        }
        let Some(agent) = self.agent.take() else {
            return Ok(());
        };
        loop {
            match agent.receive_supply_blocking(&mut fds)? {
                Supply::Complete => break,
                supply => self.supplied(start, supply, &mut fds),
            }
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// The ns-agent has sent something.
    pub(super) fn on_agent(&mut self, now: Instant) -> Result<(), IpcError> {
        let mut fds = Descriptors::new();
        for _ in 0..MESSAGES {
            let Some(agent) = &self.agent else {
                return Ok(());
            };
            match agent.try_receive(&mut fds) {
                Ok(Some(Supply::Settle)) => self.owes.agent = true,
                Ok(Some(supply)) => self.supplied(now, supply, &mut fds),
                Ok(None) => return Ok(()),
                Err(IpcError::Lost(supply)) => self.lost(now, supply),
                // The monitor decides what follows from its end, and says so.
                Err(IpcError::Closed) => self.agent = None,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Act on one message.
    pub(super) fn supplied(&mut self, now: Instant, supply: Supply, fds: &mut Descriptors) {
        match supply {
            Supply::Rule(notice) => self.new_rule(notice),
            Supply::Listeners { rule, offset, .. } => {
                for (fd, offset) in fds.drain(..).zip(offset..=u16::MAX) {
                    let place = Place { rule, offset };
                    if !self.listen(now, place, fd) {
                        log::debug!("No room for the listener of port {offset} of a rule");
                    }
                }
            }
            Supply::Move {
                from,
                from_offset,
                to,
                to_offset,
            } => {
                let from = Place {
                    rule: from,
                    offset: from_offset,
                };
                let to = Place {
                    rule: to,
                    offset: to_offset,
                };
                if let Some(id) = self.host.ports.move_to(from, to) {
                    self.retarget(id, to);
                }
            }
            Supply::Close { rule, offset } => {
                let place = Place { rule, offset };
                self.unlisten(|p| p == place);
            }
            Supply::Forget { rule } => {
                self.unlisten(|p| p.rule == rule);
                self.host.ports.forget(rule);
            }
            Supply::Sockets { kind, .. } => {
                self.host.pool.refill(kind, fds.drain(..));
                self.splice.supplied(&mut self.host);
                self.udp.supplied(&mut self.host);
            }
            // Whoever it came from has to be answered: see the callers.
            Supply::Settle | Supply::Complete => {}
        }
        fds.clear();
    }

    /// A message whose descriptors could not be taken.
    pub(super) fn lost(&mut self, now: Instant, supply: Supply) {
        self.host
            .link
            .counters
            .drop(crate::stats::Drop::NoDescriptor);
        match supply {
            Supply::Listeners {
                rule,
                offset,
                count,
            } => {
                let end = offset.saturating_add(u16::from(count));
                for offset in offset..end {
                    self.host.ports.missed(Place { rule, offset });
                }
                self.ask_at = self.ask_at.or(Some(now + ASK_AGAIN));
            }
            Supply::Sockets { kind, .. } => self.host.pool.lost(kind, now),
            _ => {}
        }
    }

    fn new_rule(&mut self, notice: RuleNotice) {
        if !self.host.ports.set_rule(notice) {
            log::warn!("More forwarding rules than there can be");
            return;
        }
        if notice.table == Table::Host && self.host.config.splice.inbound {
            let (v4, v6) = match notice.protocol {
                Protocol::Tcp => (SocketKind::Tcp4, SocketKind::Tcp6),
                Protocol::Udp => (SocketKind::Udp4, SocketKind::Udp6),
            };
            if self.host.config.v4.is_some() {
                self.host.pool.want(v4);
            }
            if self.host.config.v6.is_some() {
                self.host.pool.want(v6);
            }
        }
        self.retarget_rule(notice.rule);
    }

    /// The UDP listeners of a rule follow its change; TCP looks the rule up for each connection.
    fn retarget_rule(&mut self, rule: RuleId) {
        let ports = &self.host.ports;
        for (id, place) in ports.udp_of(rule) {
            if let Some((_, forward)) = ports.forward(place) {
                self.udp.retarget(id, rule, forward);
            }
        }
    }

    fn retarget(&mut self, id: crate::flow::id::FlowId, to: Place) {
        if let Some((notice, forward)) = self.host.ports.forward(to) {
            self.udp.retarget(id, notice.rule, forward);
        }
    }

    /// Take a listening socket. `false`: there is no room, or no such rule, and it was closed.
    fn listen(&mut self, now: Instant, place: Place, fd: OwnedFd) -> bool {
        let Some((notice, forward)) = self.host.ports.forward(place) else {
            return false;
        };
        let notice = *notice;
        let Some(index) = self.host.ports.next_index() else {
            return false;
        };
        let socket = match notice.protocol {
            Protocol::Tcp => {
                let token = Token::TcpListener(index);
                if self.host.watch(&fd, EpollFlags::EPOLLIN, token).is_err() {
                    return false;
                }
                let peeks_on = stream::has_peek_offset(&fd);
                Socket::Tcp(TcpListener { fd, peeks_on })
            }
            Protocol::Udp => {
                let token = Token::UdpListener(index);
                if self.host.watch(&fd, EpollFlags::EPOLLIN, token).is_err() {
                    return false;
                }
                let listener = udp::Listener {
                    socket: udp_io::Socket::listener(fd),
                    rule: notice.rule,
                    table: notice.table,
                    forward,
                };
                let Some(id) = self.udp.listen(now, listener) else {
                    return false;
                };
                Socket::Udp(id)
            }
        };
        self.host.ports.add(index, place, socket);
        true
    }

    /// Close listeners.
    fn unlisten(&mut self, which: impl Fn(Place) -> bool) {
        while let Some(socket) = self.host.ports.remove(&which) {
            match socket {
                Socket::Tcp(listener) => drop(listener),
                Socket::Udp(id) => self.udp.unlisten(&mut self.host, id),
            }
        }
    }

    /// Ask for what is lacking. What cannot be sent now is tried again in the next round.
    pub(super) fn ask(&mut self, now: Instant, monitor: &ForwarderLink) -> Result<(), IpcError> {
        if self.owes.monitor {
            self.owes.monitor = !monitor.request(Request::Settled)?;
        }
        if let Some(agent) = self.agent.as_ref().filter(|_| self.owes.agent) {
            self.owes.agent = !agent.request(Request::Settled)?;
        }
        if let Some(agent) = &self.agent {
            while let Some(kind) = self.host.pool.lacking(now) {
                if !ask(agent, Request::Sockets(kind))? {
                    break;
                }
                self.host.pool.asked(kind);
            }
        }
        if self.ask_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        self.ask_at = None;
        while let Some(place) = self.host.ports.take_missing() {
            let Some(notice) = self.host.ports.rule(place.rule) else {
                continue;
            };
            let request = Request::Listener {
                rule: place.rule,
                offset: place.offset,
            };
            let sent = match (notice.table, &self.agent) {
                (Table::Host, _) => monitor.request(request)?,
                (Table::Splice, Some(agent)) => ask(agent, request)?,
                (Table::Splice, None) => true,
            };
            if !sent {
                self.host.ports.missed(place);
                self.ask_at = Some(now + ASK_AGAIN);
                break;
            }
        }
        Ok(())
    }
}

impl Host {
    /// An unconnected socket of the namespace, if there is one.
    pub(super) fn namespace_socket(&mut self, kind: SocketKind) -> Option<OwnedFd> {
        self.pool.take(kind)
    }
}

/// Ask the ns-agent. One that has gone has no room, until its end has been seen.
fn ask(agent: &SupplyLink, request: Request) -> Result<bool, IpcError> {
    match agent.request(request) {
        Err(IpcError::Closed) => Ok(false),
        other => other,
    }
}

/// The end of the pair with the ns-agent, if there is one.
pub(super) fn link(agent: Option<OwnedFd>) -> Option<SupplyLink> {
    agent.map(SupplyLink::new)
}
