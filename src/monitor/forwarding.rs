//! The monitor's part in forwarding: listeners of the host's network, what the two networks tell each other, and
//! changes of the rules.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::change::{Gate, Names, Tables};
use super::network::Network;
use super::ports::{Change, Failure, ServeError, Status};
use super::{Agent, Forwarder};
use crate::config::rules::{MAX_RULES, RuleId, Rules, Table};
use crate::ipc::{IpcError, NamedRule, PortBlock, Request, Supply, ToAgent};

/// Everything about forwarding that the monitor holds.
#[derive(Debug)]
pub struct Forwarding {
    network: Network,
    tables: Tables,
    names: Names,
    gate: Gate,
    /// The forwarder takes supplies: it has been told to go.
    going: bool,
    /// A change that waits for the ns-agent.
    pending: Option<Pending>,
    /// A change in force of which the forwarder has still to close what was removed.
    settling: Option<Settling>,
    /// What the ns-agent says of its rules.
    splice: Vec<Status>,
}

#[derive(Debug)]
struct Pending {
    tables: Tables,
    /// With those of the new tables given: what is refused has used none up.
    names: Names,
    change: Change<OwnedFd>,
}

/// An answer nobody has asked for.
#[derive(Debug)]
pub(super) struct Unexpected;

/// How long the forwarder is waited for to close what a change has removed. After that whoever asked is told: one
/// that never answers must not keep the control socket from everybody else.
const SETTLE: Duration = Duration::from_secs(10);

/// Whose listeners may still be open.
#[derive(Clone, Copy, Debug)]
struct Settling {
    host: bool,
    splice: bool,
    /// `None`: it has passed.
    deadline: Option<Instant>,
}

/// How a change is getting on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The ns-agent has to answer first.
    Pending,
    /// In force.
    Done,
    /// Nothing has changed, for this reason.
    Refused(String),
}

/// Those the monitor talks to: processes that must not die, so an error is the exit status. Without an ns-agent
/// there is no namespace's table either, so that nothing is ever said to it.
pub(super) struct Peers<'a> {
    pub(super) forwarder: &'a mut Forwarder,
    pub(super) agent: Option<&'a mut Agent>,
}

impl Peers<'_> {
    fn tell(&mut self, message: &ToAgent) -> Result<(), u8> {
        match &mut self.agent {
            Some(agent) if !agent.send(message) => Err(agent.ended()),
            _ => Ok(()),
        }
    }

    /// The ns-agent has said what it may not, or nobody has and there is none. The exit status.
    fn agent_misbehaved(&self) -> u8 {
        self.agent.as_deref().map_or(1, Agent::misbehaved)
    }

    /// Do something that sends to the forwarder.
    fn supply<T>(
        &mut self,
        act: impl FnOnce(&mut super::ports::Out<'_>) -> Result<T, IpcError>,
    ) -> Result<T, u8> {
        let link = self.forwarder.link.as_ref();
        let result = act(&mut |supply: Supply, fds: &[BorrowedFd<'_>]| {
            link.ok_or(IpcError::Closed)?.supply(supply, fds)
        });
        match result {
            Ok(done) => Ok(done),
            Err(IpcError::Closed) => Err(self.forwarder.ended()),
            Err(e) => {
                log::error!("Couldn't reach the forwarder: {e}");
                Err(1)
            }
        }
    }
}

impl Forwarding {
    /// With the tables of the start in force. To be made before confinement: reserves memory.
    #[must_use]
    pub fn new(
        mut network: Network,
        tables: Tables,
        names: Names,
        gate: Gate,
        now: Instant,
    ) -> Self {
        network.watch(now, tables.follows(Table::Splice));
        Self {
            network,
            tables,
            names,
            gate,
            going: false,
            pending: None,
            settling: None,
            splice: Vec::with_capacity(MAX_RULES),
        }
    }

    /// The rules in force.
    #[must_use]
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What new rules have to agree with.
    #[must_use]
    pub const fn gate(&self) -> Gate {
        self.gate
    }

    /// How a rule is doing.
    #[must_use]
    pub fn status(&self, table: Table, rule: RuleId) -> Option<Status> {
        let is = |status: &Status| status.rule == rule;
        match table {
            Table::Host => self.network.keeper.status().find(is),
            Table::Splice => self.splice.iter().copied().find(is),
        }
    }

    /// How long until [`Forwarding::tick`] or [`Forwarding::overdue`] has something to do.
    pub(super) fn timeout(&self, now: Instant) -> Option<Duration> {
        let settling = self.settling.and_then(|settling| settling.deadline);
        let settled = settling.map(|deadline| deadline.saturating_duration_since(now));
        let network = self.network.timeout(now).filter(|_| self.going);
        settled.into_iter().chain(network).min()
    }

    /// Look at the host's network, and for ports that were busy, if it is time.
    pub(super) fn tick(&mut self, now: Instant, peers: &mut Peers<'_>) -> Result<(), u8> {
        if !self.going || self.network.timeout(now) != Some(Duration::ZERO) {
            return Ok(());
        }
        let agent = peers.agent.as_deref();
        let mut gone = false;
        let mut tell = |block: PortBlock| {
            gone |= agent.is_some_and(|agent| !agent.send(&ToAgent::Ports(block)));
            Ok(())
        };
        let forwarder = peers.forwarder.link.as_ref();
        let mut out = |supply: Supply, fds: &[BorrowedFd<'_>]| {
            forwarder.ok_or(IpcError::Closed)?.supply(supply, fds)
        };
        let result = self.network.tick(now, &mut tell, &mut out);
        if let Some(agent) = peers.agent.as_mut().filter(|_| gone) {
            return Err(agent.ended());
        }
        result.map_err(|_| peers.forwarder.ended())
    }

    /// The forwarder wants something.
    pub(super) fn serve(
        &mut self,
        now: Instant,
        request: Request,
        peers: &mut Peers<'_>,
    ) -> Result<(), u8> {
        let link = peers.forwarder.link.as_ref();
        let mut out = |supply: Supply, fds: &[BorrowedFd<'_>]| {
            link.ok_or(IpcError::Closed)?.supply(supply, fds)
        };
        match self.network.serve(request, now, &mut out) {
            Ok(()) => Ok(()),
            Err(ServeError::Misbehaved(_)) => Err(peers.forwarder.misbehaved()),
            Err(ServeError::Ipc(_)) => Err(peers.forwarder.ended()),
        }
    }

    /// The namespace's listeners have changed.
    pub(super) fn namespace_ports(
        &mut self,
        now: Instant,
        block: &PortBlock,
        peers: &mut Peers<'_>,
    ) -> Result<(), u8> {
        self.network.told(block);
        if self.going {
            peers.supply(|out| self.network.keeper.follow(out))?;
            self.network.arrange(now);
        }
        Ok(())
    }

    /// The forwarder has been told to go: listen for what the namespace has listened on since before.
    pub(super) fn go(&mut self, peers: &mut Peers<'_>) -> Result<(), u8> {
        self.going = true;
        peers.supply(|out| self.network.keeper.follow(out))?;
        self.network.arrange(Instant::now());
        Ok(())
    }

    /// The ns-agent says how one of its rules is doing.
    pub(super) fn splice_status(&mut self, status: Status) {
        match self.splice.iter_mut().find(|s| s.rule == status.rule) {
            Some(known) => *known = status,
            None => {
                let tables = &self.tables;
                let pending = self.pending.as_ref().map(|p| &p.tables);
                self.splice.retain(|s| {
                    let named = |t: &Tables| t.has(Table::Splice, s.rule);
                    named(tables) || pending.is_some_and(named)
                });
                if self.splice.len() < MAX_RULES {
                    self.splice.push(status);
                }
            }
        }
    }

    /// Put new tables into force.
    pub(super) fn change(
        &mut self,
        host: &Rules,
        splice: &Rules,
        peers: &mut Peers<'_>,
    ) -> Result<Outcome, u8> {
        if self.pending.is_some() || self.settling.is_some() {
            return Ok(Outcome::Refused("Another change is under way".to_owned()));
        }
        let mut names = self.names.clone();
        let tables = Tables::new(&mut names, &self.tables, host, splice);
        let change = match self.network.keeper.prepare(tables.named(Table::Host)) {
            Ok(change) => change,
            Err(e) => return Ok(Outcome::Refused(e.to_string())),
        };
        let same = tables.named(Table::Splice) == self.tables.named(Table::Splice);
        let pending = Pending {
            tables,
            names,
            change,
        };
        if same {
            self.commit(pending, false, peers)?;
            return Ok(Outcome::Pending);
        }
        peers.tell(&ToAgent::Begin)?;
        for (id, rule) in pending.tables.named(Table::Splice) {
            // The gate has let the rule through: its interface has a name of the proper length.
            if let Some(named) = NamedRule::new(*id, rule) {
                peers.tell(&ToAgent::Rule(named))?;
            }
        }
        peers.tell(&ToAgent::Prepare)?;
        self.pending = Some(pending);
        Ok(Outcome::Pending)
    }

    /// The ns-agent has what its new table needs.
    pub(super) fn prepared(&mut self, peers: &mut Peers<'_>) -> Result<(), u8> {
        let Some(pending) = self.pending.take() else {
            return Err(peers.agent_misbehaved());
        };
        peers.tell(&ToAgent::Commit)?;
        self.commit(pending, true, peers)
    }

    /// The forwarder has closed what was removed of the host's table: now what was in the way of new ports is gone.
    /// The end of the change, if the namespace's is done.
    pub(super) fn settled_here(
        &mut self,
        now: Instant,
        peers: &mut Peers<'_>,
    ) -> Result<Option<Outcome>, u8> {
        let Ok(outcome) = self.settled(Table::Host) else {
            return Err(peers.forwarder.misbehaved());
        };
        peers.supply(|out| self.network.keeper.retry(now, out))?;
        self.network.arrange(now);
        Ok(outcome)
    }

    /// All of this table is done. The end of the change, if the other one is, too.
    pub(super) fn settled(&mut self, table: Table) -> Result<Option<Outcome>, Unexpected> {
        let settling = self.settling.as_mut().ok_or(Unexpected)?;
        let open = match table {
            Table::Host => &mut settling.host,
            Table::Splice => &mut settling.splice,
        };
        if !std::mem::take(open) {
            return Err(Unexpected);
        }
        if settling.host || settling.splice {
            return Ok(None);
        }
        let waiting = settling.deadline.is_some();
        self.settling = None;
        Ok(waiting.then_some(Outcome::Done))
    }

    /// The end of a change that is in force, if the forwarder has been waited for long enough.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Outcome> {
        let deadline = &mut self.settling.as_mut()?.deadline;
        deadline.take_if(|deadline| *deadline <= now)?;
        log::warn!("The forwarder has not said that it closed what was removed");
        Some(Outcome::Done)
    }

    /// The ns-agent has not.
    pub(super) fn failed(
        &mut self,
        (rule, port, errno): (RuleId, u16, i32),
        peers: &mut Peers<'_>,
    ) -> Result<Outcome, u8> {
        let Some(pending) = self.pending.take() else {
            return Err(peers.agent_misbehaved());
        };
        self.network.keeper.abort(pending.change);
        let named = pending.tables.named(Table::Splice);
        let why = match named.iter().find(|(id, _)| *id == rule) {
            Some((id, rule)) => Failure::new(Table::Splice, *id, rule, port, errno).to_string(),
            None => return Err(peers.agent_misbehaved()),
        };
        Ok(Outcome::Refused(why))
    }

    fn commit(&mut self, pending: Pending, splice: bool, peers: &mut Peers<'_>) -> Result<(), u8> {
        let Pending {
            tables,
            names,
            change,
        } = pending;
        peers.supply(|out| {
            self.network.keeper.commit(change, out)?;
            self.network.keeper.follow(out)?;
            out(Supply::Settle, &[])
        })?;
        let now = Instant::now();
        self.settling = Some(Settling {
            host: true,
            splice,
            deadline: now.checked_add(SETTLE),
        });
        self.network.watch(now, tables.follows(Table::Splice));
        let follows = tables.follows(Table::Host);
        if follows != self.tables.follows(Table::Host) {
            peers.tell(&ToAgent::Watch(follows))?;
        }
        self.tables = tables;
        self.names = names;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ports::PortSets;
    use crate::config::rules::{Context, Protocol, Spec};
    use crate::ipc;
    use crate::monitor::ports::{Keeper, KeeperContext};
    use crate::sandbox::Role;
    use crate::sys::process::{Child, pidfd_open};
    use crate::sys::scm;

    fn forwarding() -> Forwarding {
        let context = KeeperContext {
            ipv4: true,
            ipv6: true,
            freebind: false,
            budget: 10,
        };
        let network = Network::new(Keeper::new(Table::Host, context), None, PortSets::default());
        let gate = Gate {
            context: Context {
                ipv4: true,
                ipv6: true,
                tcp: true,
                udp: true,
                ephemeral: (32768, 60999),
            },
            auto: true,
        };
        Forwarding::new(
            network,
            Tables::default(),
            Names::default(),
            gate,
            Instant::now(),
        )
    }

    #[test]
    fn what_is_refused_uses_up_no_name() {
        let mut forwarding = forwarding();
        let somebody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = somebody.local_addr().expect("bound");
        let context = forwarding.gate().context;
        let mut rules = Rules::default();
        let spec = Spec::parse(&format!("{}/{}", address.ip(), address.port())).expect("valid");
        for rule in spec.rules(Table::Host, Protocol::Tcp, &context) {
            rules.add(rule, &context).expect("no conflict");
        }
        let us = || Child {
            pid: nix::unistd::getpid(),
            pidfd: pidfd_open(nix::unistd::getpid()).expect("pidfd"),
        };
        let (log, _lines) = scm::seqpacket_pair().expect("pair");
        let (to_forwarder, _forwarder) = ipc::forwarder_pair().expect("pair");
        let (to_agent, _agent) = ipc::agent_pair().expect("pair");
        let mut peers = Peers {
            forwarder: &mut Forwarder::new(
                Role::Forwarder,
                us(),
                to_forwarder,
                log.try_clone().expect("duplicate"),
            ),
            agent: Some(&mut Agent::new(Role::NsAgent, us(), to_agent, log)),
        };
        let outcome = forwarding.change(&rules, &Rules::default(), &mut peers);
        assert!(matches!(outcome, Ok(Outcome::Refused(_))), "{outcome:?}");
        assert_eq!(forwarding.names, Names::default());
        drop(somebody);
        let outcome = forwarding.change(&rules, &Rules::default(), &mut peers);
        assert_eq!(outcome, Ok(Outcome::Pending));
        assert_ne!(forwarding.names, Names::default());
    }

    #[test]
    fn a_forwarder_that_never_answers_is_not_waited_for_for_ever() {
        let mut forwarding = forwarding();
        let start = Instant::now();
        forwarding.settling = Some(Settling {
            host: true,
            splice: false,
            deadline: start.checked_add(SETTLE),
        });
        assert_eq!(forwarding.timeout(start), Some(SETTLE));
        assert_eq!(forwarding.overdue(start), None);
        let late = start + SETTLE;
        assert_eq!(forwarding.overdue(late), Some(Outcome::Done));
        assert_eq!(forwarding.overdue(late), None);
        assert_eq!(forwarding.timeout(late), None);
        // If it answers after all, nobody is told twice.
        assert!(matches!(forwarding.settled(Table::Host), Ok(None)));
        assert!(forwarding.settled(Table::Host).is_err());
    }
}
