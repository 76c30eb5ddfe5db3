//! Listening sockets at the start: of the host's network here, of the namespace's in the ns-agent.
//!
//! The host's are bound while we still have the privilege for low ports, and handed to the forwarder as soon as
//! there is one; what cannot be bound ends the start. Ports that rules follow are known before either side binds
//! anything, so that what is there at the start is forwarded when the start is over.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::error::{LaunchError, cannot};
use crate::config::ports::PortSets;
use crate::config::rules::{Rules, Table};
use crate::config::{Mode, Resolved};
use crate::ipc::Supply;
use crate::monitor::change::{Gate, Names, Tables};
use crate::monitor::ports::{Change, Keeper, KeeperContext};
use crate::monitor::{self, Forwarding, Network};
use crate::netlink::diag::Scanner;

/// Descriptors that stay free for connections whatever is forwarded: a quarter of all, and at least this many, or half
/// where there are very few.
const FREE: usize = 256;

/// The part of all descriptors that listeners of a table with automatic rules only may have on top, as a divisor: nobody
/// listens on many ports at once.
const SMALL_SHARE: usize = 16;

/// Everything about forwarding that is decided before the first fork.
#[derive(Debug)]
pub(super) struct Ports {
    /// Both tables.
    pub(super) tables: Tables,
    names: Names,
    gate: Gate,
    /// What holds for all rules of the host.
    host: KeeperContext,
    /// What holds for all rules of the namespace.
    pub(super) splice: KeeperContext,
    /// What the host listens on, if any rule of the namespace follows that.
    pub(super) seen: PortSets,
    /// Rules may come that nobody has thought of yet: the control socket.
    pub(super) open: bool,
    scanner: Option<Scanner>,
}

impl Ports {
    /// Name the rules and look at the host. `nofile`: how many descriptors a process may have; `open`: there will be a
    /// control socket.
    pub(super) fn new(
        resolved: &Resolved,
        freebind: bool,
        nofile: u64,
        open: bool,
    ) -> Result<Self, LaunchError> {
        let mut names = Names::default();
        let (host, splice) = (&resolved.host_rules, &resolved.splice_rules);
        let budgets = budgets(host, splice, nofile);
        let context = |budget| KeeperContext {
            ipv4: resolved.config.v4.is_some(),
            ipv6: resolved.config.v6.is_some(),
            freebind,
            budget,
        };
        let tables = Tables::new(&mut names, &Tables::default(), host, splice);
        let mut ports = Self {
            tables,
            names,
            gate: Gate {
                context: resolved.context,
                auto: resolved.config.mode == Mode::Pasta,
            },
            host: context(budgets.0),
            splice: context(budgets.1),
            seen: PortSets::default(),
            open,
            scanner: None,
        };
        ports.scanner = ports.scanner_for(Table::Splice)?;
        if let Some(scanner) = ports
            .scanner
            .as_mut()
            .filter(|_| ports.tables.follows(Table::Splice))
        {
            scanner
                .scan(&mut ports.seen)
                .map_err(cannot("look for listening sockets"))?;
        }
        Ok(ports)
    }

    /// A scanner of the network we are in, if rules of `table`, which follow it, are there or may come.
    pub(super) fn scanner_for(&self, table: Table) -> Result<Option<Scanner>, LaunchError> {
        // Nobody follows anybody where there is no other side.
        (self.gate.auto && (self.open || self.tables.follows(table)))
            .then(Scanner::open)
            .transpose()
            .map_err(cannot("look for listening sockets"))
    }

    /// Bind what the host's table asks for.
    pub(super) fn bind(self) -> Result<Bound, LaunchError> {
        let mut keeper = Keeper::new(Table::Host, self.host);
        match keeper.prepare(self.tables.named(Table::Host)) {
            Ok(change) => Ok(Bound {
                ports: self,
                keeper,
                change,
            }),
            Err(e) => {
                log::error!("{e}");
                Err(LaunchError::Reported)
            }
        }
    }
}

/// The host's listeners, bound.
#[derive(Debug)]
pub(super) struct Bound {
    ports: Ports,
    keeper: Keeper,
    change: Change<OwnedFd>,
}

impl Bound {
    /// Give the forwarder everything. What remains is for the monitor.
    pub(super) fn hand_over(
        self,
        forwarder: &mut monitor::Forwarder,
    ) -> Result<Forwarding, LaunchError> {
        let Self {
            ports,
            mut keeper,
            change,
        } = self;
        let result = match &forwarder.link {
            None => Err(crate::ipc::IpcError::Closed),
            Some(link) => keeper
                .commit(change, &mut |supply, fds| link.supply(supply, fds))
                .and_then(|()| link.supply(Supply::Complete, &[])),
        };
        if let Err(e) = result {
            // It has said why; if not, this does.
            forwarder.ended();
            log::debug!("{e}");
            return Err(LaunchError::Reported);
        }
        let network = Network::new(keeper, ports.scanner, ports.seen);
        Ok(Forwarding::new(
            network,
            ports.tables,
            ports.names,
            ports.gate,
            Instant::now(),
        ))
    }
}

/// Most listeners of the host's and of the namespace's table, given how many descriptors there are: the forwarder holds
/// all of them, and needs the rest for connections.
fn budgets(host: &Rules, splice: &Rules, nofile: u64) -> (usize, usize) {
    let nofile = usize::try_from(nofile).unwrap_or(usize::MAX);
    let all = nofile.saturating_sub((nofile / 4).max(FREE.min(nofile / 2)));
    let few = all.min(nofile / SMALL_SHARE);
    match (wanted(host), wanted(splice)) {
        (_, 0) => (all, few),
        (0, _) => (few, all),
        (h, s) => {
            let splice = all.saturating_mul(s) / h.saturating_add(s);
            (all.saturating_sub(splice), splice)
        }
    }
}

/// How many ports a table may listen on, without those that only follow somebody.
fn wanted(rules: &Rules) -> usize {
    rules
        .as_slice()
        .iter()
        .filter(|rule| !rule.auto_scan)
        .map(|rule| usize::from(rule.last.saturating_sub(rule.first)).saturating_add(1))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rules::{Context, Protocol, Spec};

    #[test]
    fn descriptors_stay_free_for_connections() {
        let none = Rules::default();
        assert_eq!(budgets(&none, &none, 100), (50, 6));
        assert_eq!(budgets(&none, &none, 256), (128, 16));
        assert_eq!(budgets(&none, &none, 1024), (768, 64));
        assert_eq!(budgets(&none, &none, 1 << 20), (786_432, 65_536));
        let ports = |spec: &str| {
            let context = Context {
                ipv4: true,
                ipv6: true,
                tcp: true,
                udp: true,
                ephemeral: (32768, 60999),
            };
            let mut rules = Rules::default();
            let spec = Spec::parse(spec).expect("valid");
            for rule in spec.rules(Table::Host, Protocol::Tcp, &context) {
                rules.add(rule, &context).expect("no conflict");
            }
            rules
        };
        let many = ports("10000-24999");
        assert_eq!(budgets(&many, &ports("auto"), 20_000), (15_000, 1250));
        assert_eq!(budgets(&none, &many, 20_000), (1250, 15_000));
        assert_eq!(budgets(&many, &many, 20_000), (7500, 7500));
    }
}
