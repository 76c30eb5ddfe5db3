//! What monitor and ns-agent send: rules, listeners, sockets of the namespace.
//!
//! Before the start everything is waited for ([`Worker::stock_up`]); afterwards messages are read as they come, a
//! few at a time. The forwarder believes what it is told here (both are less exposed than itself), but it asks
//! for little: a batch of sockets when the pool runs low, and listeners that it had no descriptor for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::EpollFlags;

use super::host::Host;
use super::ports::{Place, Socket, TcpListener};
use super::token::Token;
use super::udp_io;
use super::worker::Worker;
use crate::clock::Instant;
use crate::config::rules::{Protocol, RuleId, Table};
use crate::flow::id::FlowId;
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
    /// Before the start: take everything both have to give, from whom it comes first. Nobody waits for the other:
    /// what the ns-agent has sent may be in the way of what the monitor is about to send, as all processes of a
    /// user share the room for descriptors on their way.
    pub(super) fn stock_up(&mut self, monitor: &ForwarderLink) -> Result<(), IpcError> {
        let mut fds = Descriptors::new();
        let start = Instant::default();
        let (mut from_monitor, mut from_agent) = (true, self.agent.is_some());
        while from_monitor || from_agent {
            let end = self.agent.as_ref().filter(|_| from_agent);
            let (by_agent, received) = match end {
                Some(agent) if !from_monitor || speaks_first(agent.as_fd(), monitor.as_fd())? => {
                    (true, agent.receive_supply_blocking(&mut fds))
                }
                _ => (false, monitor.receive_supply_blocking(&mut fds)),
            };
            match received {
                Ok(Supply::Complete) if by_agent => from_agent = false,
                Ok(Supply::Complete) => from_monitor = false,
                Ok(supply) => self.supplied(start, supply, &mut fds),
                Err(IpcError::Lost(supply)) => self.lost(start, supply),
                // It has said why, and the monitor ends the start.
                Err(IpcError::Closed) if by_agent => {
                    self.agent = None;
                    from_agent = false;
                }
                Err(e) => return Err(e),
            }
        }
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
                    if !self.listen(place, fd) {
                        log::debug!("Couldn't take the listener of port {offset} of a rule");
                        self.missed(now, place);
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
                if let Some(socket) = self.host.ports.remove(Place { rule, offset }) {
                    self.close(socket);
                }
            }
            Supply::Forget { rule } => {
                let mut from = 0;
                while let Some(socket) = self.host.ports.remove_next(rule, &mut from) {
                    self.close(socket);
                }
                self.host.ports.forget(rule);
            }
            // None could be made: asked for again, after a while.
            Supply::Sockets { kind, count: 0 } => self.host.pool.lost(kind, now),
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
        // No connection is refused by that, so it is not counted as such.
        log::debug!("Out of descriptors for what was sent: {supply:?}");
        match supply {
            Supply::Listeners {
                rule,
                offset,
                count,
            } => {
                let end = offset.saturating_add(u16::from(count));
                for offset in offset..end {
                    self.missed(now, Place { rule, offset });
                }
            }
            Supply::Sockets { kind, .. } => self.host.pool.lost(kind, now),
            _ => {}
        }
    }

    /// A listener is not there, and should be: to be asked for again.
    pub(super) fn missed(&mut self, now: Instant, place: Place) {
        self.host.ports.missed(place);
        self.ask_at = self.ask_at.or(Some(now + ASK_AGAIN));
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

    fn retarget(&mut self, id: FlowId, to: Place) {
        if let Some((notice, forward)) = self.host.ports.forward(to) {
            self.udp.retarget(id, notice.rule, forward);
        }
    }

    /// Take a listening socket. `false`: there is no room, or no such rule, and it was closed.
    fn listen(&mut self, place: Place, fd: OwnedFd) -> bool {
        let Some((notice, forward)) = self.host.ports.forward(place) else {
            return false;
        };
        let notice = *notice;
        let Some(index) = self.host.ports.next_index() else {
            return false;
        };
        let token = match notice.protocol {
            Protocol::Tcp => Token::TcpListener(index),
            Protocol::Udp => Token::UdpListener(index),
        };
        if self.host.watch(&fd, EpollFlags::EPOLLIN, token).is_err() {
            return false;
        }
        let socket = match notice.protocol {
            Protocol::Tcp => {
                let peeks_on = stream::has_peek_offset(&fd);
                Socket::Tcp(TcpListener { fd, peeks_on })
            }
            Protocol::Udp => {
                let listener = udp::Listener {
                    socket: udp_io::Socket::listener(fd),
                    rule: notice.rule,
                    table: notice.table,
                    forward,
                };
                let Some(id) = self.udp.listen(listener) else {
                    return false;
                };
                Socket::Udp(id)
            }
        };
        self.host.ports.add(index, place, socket);
        true
    }

    /// Close a listener.
    fn close(&mut self, socket: Socket) {
        match socket {
            Socket::Tcp(listener) => drop(listener),
            Socket::Udp(id) => self.udp.unlisten(&mut self.host, id),
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
                let count = self.host.pool.batch(kind);
                if !ask(agent, Request::Sockets { kind, count })? {
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

/// Wait for either to have something to say; true: the first has.
fn speaks_first(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> Result<bool, IpcError> {
    let mut table = [first, second].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        match poll(&mut table, PollTimeout::NONE) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(std::io::Error::from(e).into()),
        }
    }
    let [first, _] = table;
    Ok(first.revents().is_some_and(|r| !r.is_empty()))
}

/// The end of the pair with the ns-agent, if there is one.
pub(super) fn link(agent: Option<OwnedFd>) -> Option<SupplyLink> {
    agent.map(SupplyLink::new)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use nix::sys::epoll::{Epoll, EpollCreateFlags};

    use super::*;
    use crate::ipc::{self, SupplierEnd};
    use crate::pcap::Pcap;
    use crate::tap::Tap;

    fn worker() -> Worker {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let config = crate::services::samples::config();
        Worker::new(config, Tap::Off, epoll, Pcap::off(), [0; 16], 1024)
    }

    #[test]
    fn the_ns_agent_need_not_wait_until_the_monitor_has_spoken() {
        let (monitor, socket) = ipc::forwarder_pair().unwrap();
        let link = ForwarderLink::new(socket);
        let (supplier, supplied) = ipc::supply_pair().unwrap();
        let mut worker = worker();
        worker.agent = Some(SupplyLink::new(supplied));
        let both = std::thread::spawn(move || {
            let agent = SupplierEnd::new(supplier);
            // More than can be on its way.
            for _ in 0..5000 {
                agent.send(Supply::Settle, &[]).expect("somebody reads");
            }
            agent.send(Supply::Complete, &[]).expect("somebody reads");
            monitor.supply(Supply::Complete, &[]).expect("as here");
            (agent, monitor)
        });
        worker.stock_up(&link).expect("everything");
        both.join().expect("sent");
        assert!(worker.agent.is_some());
    }

    #[test]
    fn what_the_end_of_the_ns_agent_means_is_for_the_monitor_to_say() {
        let (monitor, socket) = ipc::forwarder_pair().unwrap();
        let (supplier, supplied) = ipc::supply_pair().unwrap();
        let mut worker = worker();
        worker.agent = Some(SupplyLink::new(supplied));
        drop(supplier);
        monitor.supply(Supply::Complete, &[]).unwrap();
        worker.stock_up(&ForwarderLink::new(socket)).unwrap();
        assert!(worker.agent.is_none());
    }

    #[test]
    fn where_no_sockets_are_to_be_had_the_next_question_waits() {
        let mut worker = worker();
        let (now, kind) = (Instant(1000), SocketKind::Tcp4);
        worker.host.pool.want(kind);
        worker.host.pool.asked(kind);
        let none = Supply::Sockets { kind, count: 0 };
        worker.supplied(now, none, &mut Descriptors::new());
        assert_eq!(worker.host.pool.lacking(now), None);
        let later = worker.host.pool.next_deadline().expect("a deadline");
        assert_eq!(worker.host.pool.lacking(later), Some(kind));
    }

    fn a_rule(worker: &mut Worker, now: Instant) -> RuleId {
        let rule = RuleId(NonZeroU16::MIN);
        let notice = RuleNotice {
            rule,
            table: Table::Host,
            protocol: Protocol::Tcp,
            target: None,
            first: 80,
            last: 80,
            to_first: 80,
        };
        worker.supplied(now, Supply::Rule(notice), &mut Descriptors::new());
        rule
    }

    fn supply_one(worker: &mut Worker, now: Instant, rule: RuleId, fd: OwnedFd) {
        let mut fds = Descriptors::new();
        fds.push(fd);
        let listeners = Supply::Listeners {
            rule,
            offset: 0,
            count: 1,
        };
        worker.supplied(now, listeners, &mut fds);
    }

    #[test]
    fn a_listener_that_cannot_be_watched_is_asked_for_again() {
        let (monitor, socket) = ipc::forwarder_pair().unwrap();
        let link = ForwarderLink::new(socket);
        let mut worker = worker();
        let now = Instant(1000);
        let rule = a_rule(&mut worker, now);
        // epoll(7) takes no regular file: the same as when it is full.
        let file = std::fs::File::open("Cargo.toml").unwrap();
        supply_one(&mut worker, now, rule, file.into());
        worker.ask(now, &link).unwrap();
        assert!(monitor.try_receive().unwrap().is_none(), "not at once");
        worker.ask(now + ASK_AGAIN, &link).unwrap();
        let request = Request::Listener { rule, offset: 0 };
        let said = monitor.try_receive().unwrap();
        assert_eq!(said, Some(ipc::FromForwarder::Request(request)));
    }

    #[test]
    fn a_listener_that_was_ended_by_others_is_closed_and_asked_for_again() {
        let (monitor, socket) = ipc::forwarder_pair().unwrap();
        let link = ForwarderLink::new(socket);
        let mut worker = worker();
        let now = Instant(1000);
        let rule = a_rule(&mut worker, now);
        // Does not listen, and is always ready: like one that was destroyed.
        let socket = stream::socket(std::net::Ipv4Addr::LOCALHOST.into()).unwrap();
        supply_one(&mut worker, now, rule, socket);
        worker.on_listener(now, 0);
        assert!(worker.host.ports.tcp(0).is_none(), "still watched");
        worker.ask(now + ASK_AGAIN, &link).unwrap();
        let request = Request::Listener { rule, offset: 0 };
        let said = monitor.try_receive().unwrap();
        assert_eq!(said, Some(ipc::FromForwarder::Request(request)));
    }
}
