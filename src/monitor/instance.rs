//! What the control socket sees of the monitor, and may have it do.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::control::Instance;
use super::forwarding::{Forwarding, Outcome, Peers};
use crate::config::rules::{Context, Rule, RuleId, Rules, Table};
use crate::control::report::{Hello, Part, Process, Record, RuleReport, Text};

/// Place of the ns-agent's record in a report: after us, before the forwarder.
const AGENT: usize = 2;

/// What does not change while we run.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Our process id.
    pid: u32,
    /// Since when.
    started: Instant,
    /// The bits of our own `sandbox::Achieved`, once they are known.
    pub(super) confinement: u32,
}

impl Facts {
    /// To be asked before confinement: the filter has no call that tells a process its id.
    #[must_use]
    pub fn now() -> Self {
        Self {
            pid: std::process::id(),
            started: Instant::now(),
            confinement: 0,
        }
    }
}

/// The monitor for the length of one step.
pub(super) struct View<'a> {
    pub(super) facts: Facts,
    pub(super) forwarding: &'a mut Forwarding,
    pub(super) peers: Peers<'a>,
    /// Another process has ended meanwhile: the exit status.
    pub(super) ended: Option<u8>,
}

impl Instance for View<'_> {
    fn rules(&self, table: Table) -> &Rules {
        self.forwarding.tables().rules(table)
    }

    fn context(&self, _: Table) -> (Context, bool) {
        let gate = self.forwarding.gate();
        (gate.context, gate.auto)
    }

    fn change(&mut self, host: &Rules, splice: &Rules) -> Outcome {
        match self.forwarding.change(host, splice, &mut self.peers) {
            Ok(outcome) => outcome,
            Err(status) => {
                self.ended = Some(status);
                Outcome::Pending
            }
        }
    }

    fn record(&self, index: usize) -> Option<Record> {
        // Without an ns-agent its record is left out.
        let left_out = usize::from(index >= AGENT && self.peers.agent.is_none());
        let index = index.checked_add(left_out)?;
        let Some(rest) = index.checked_sub(AGENT + 2) else {
            return Some(self.head(index));
        };
        let tables = self.forwarding.tables();
        let host = tables.named(Table::Host);
        let (table, named) = match rest.checked_sub(host.len()) {
            None => (Table::Host, host.get(rest)?),
            Some(rest) => (Table::Splice, tables.named(Table::Splice).get(rest)?),
        };
        Some(Record::Rule(self.rule(table, named)))
    }

    fn hand_over(&mut self, client: BorrowedFd<'_>) {
        let link = self.peers.forwarder.link.as_ref();
        if link.is_none_or(|link| link.report(client).is_err()) {
            log::warn!("Can't hand a report over to the forwarder");
        }
    }
}

impl View<'_> {
    fn head(&self, index: usize) -> Record {
        let process = |part, pid, confinement| {
            Record::Process(Process {
                part,
                pid,
                confinement,
            })
        };
        let forwarder = &self.peers.forwarder;
        match (index, self.peers.agent.as_deref()) {
            (0, _) => Record::Hello(Hello {
                program: Text::new(env!("CARGO_PKG_VERSION")),
                pid: self.facts.pid,
                uptime_s: self.facts.started.elapsed().as_secs(),
            }),
            (1, _) => process(Part::Monitor, self.facts.pid, self.facts.confinement),
            (AGENT, Some(agent)) => process(Part::Agent, agent.pid(), agent.achieved().bits()),
            _ => process(
                Part::Forwarder,
                forwarder.pid(),
                forwarder.achieved().bits(),
            ),
        }
    }

    fn rule(&self, table: Table, (id, rule): &(RuleId, Rule)) -> RuleReport {
        let status = self.forwarding.status(table, *id);
        RuleReport {
            rule: *id,
            table,
            protocol: rule.protocol,
            listen: rule.listen,
            interface: Text::new(rule.interface.as_deref().unwrap_or_default()),
            first: rule.first,
            last: rule.last,
            target: rule.target,
            to_first: rule.to_first,
            best_effort: rule.best_effort,
            auto_scan: rule.auto_scan,
            open: status.map_or(0, |s| s.open),
            missing: status.map_or(0, |s| s.missing),
        }
    }
}
