//! One network's share of forwarding: its listeners, and what else is listened on there.
//!
//! The monitor has one for the host's network, the ns-agent one for the namespace's. Both tell each other what their
//! networks listen on, as far as rules on the other side follow it, and open and close their own listeners by what
//! they are told. A timer runs only while there is something to look at: somebody follows this network, or a
//! port that should be open is not.

use std::time::{Duration, Instant};

use super::ports::{Keeper, Out, ServeError};
use crate::config::ports::PortSets;
use crate::ipc::{IpcError, PortBlock, Request};
use crate::netlink::diag::Scanner;

/// Time between two looks at the network: a new listener is followed within that, and a little.
const PERIOD: Duration = Duration::from_millis(500);

/// Where what has changed in this network is told.
pub type Tell<'a> = dyn FnMut(PortBlock) -> Result<(), IpcError> + 'a;

/// One network's side.
#[derive(Debug)]
pub struct Network {
    /// The listeners.
    pub keeper: Keeper,
    scanner: Option<Scanner>,
    found: PortSets,
    /// What the other side knows of this one.
    told: PortSets,
    watched: bool,
    due: Option<Instant>,
}

impl Network {
    /// `told` is what the other side knows already. Without a scanner there is nothing to tell.
    #[must_use]
    pub fn new(keeper: Keeper, scanner: Option<Scanner>, told: PortSets) -> Self {
        Self {
            keeper,
            scanner,
            found: PortSets::default(),
            told,
            watched: false,
            due: None,
        }
    }

    /// From now on the other side follows this network, or does not.
    pub fn watch(&mut self, now: Instant, watched: bool) {
        self.watched = watched;
        self.arrange(now);
    }

    /// Set the timer if there is something to wait for. To be called whenever the listeners may have changed.
    pub fn arrange(&mut self, now: Instant) {
        let needed = self.watched || self.keeper.is_restless();
        self.due = match self.due {
            _ if !needed => None,
            Some(due) => Some(due),
            None => now.checked_add(PERIOD),
        };
    }

    /// How long the timer has to run; `None`: there is none.
    #[must_use]
    pub fn timeout(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// Do what is due, if anything is.
    ///
    /// # Errors
    /// From `tell` and `out`.
    pub fn tick(
        &mut self,
        now: Instant,
        tell: &mut Tell<'_>,
        out: &mut Out<'_>,
    ) -> Result<(), IpcError> {
        if self.due.is_none_or(|due| due > now) {
            return Ok(());
        }
        self.due = None;
        if self.watched {
            self.scan(tell)?;
        }
        self.keeper.retry(now, out)?;
        self.keeper.follow(out)?;
        self.arrange(now);
        Ok(())
    }

    /// Look at the network once and tell what has changed. What we listen on ourselves is not told: the other side
    /// would listen for it, and we for that.
    ///
    /// # Errors
    /// From `tell`.
    pub fn scan(&mut self, tell: &mut Tell<'_>) -> Result<(), IpcError> {
        let Some(scanner) = &mut self.scanner else {
            return Ok(());
        };
        if let Err(e) = scanner.scan(&mut self.found) {
            // The kind: putting an errno into words allocates.
            log::debug!("Couldn't look for listening sockets: {}", e.kind());
            return Ok(());
        }
        self.found.subtract(self.keeper.own_ports());
        for (protocol, block, bits) in self.found.changes(&self.told) {
            tell(PortBlock {
                protocol,
                block,
                bits,
            })?;
        }
        self.told.copy_from(&self.found);
        Ok(())
    }

    /// Answer the forwarder, which has lost a listener. One that cannot be made now is tried again.
    ///
    /// # Errors
    /// As [`Keeper::serve`].
    pub fn serve(
        &mut self,
        request: Request,
        now: Instant,
        out: &mut Out<'_>,
    ) -> Result<(), ServeError> {
        self.keeper.serve(request, now, out)?;
        self.arrange(now);
        Ok(())
    }

    /// The other side has told what has changed there. [`Keeper::follow`] is for after the last such.
    pub fn told(&mut self, change: &PortBlock) {
        self.keeper
            .other_side(change.protocol, change.block, &change.bits);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::num::NonZeroU16;
    use std::os::fd::BorrowedFd;

    use super::*;
    use crate::config::rules::{Protocol, Rule, RuleId, Table};
    use crate::ipc::Supply;
    use crate::monitor::ports::KeeperContext;

    #[test]
    fn a_lost_listener_that_cannot_be_made_again_now_is_later() {
        let context = KeeperContext {
            ipv4: true,
            ipv6: true,
            freebind: false,
            budget: 10,
        };
        let somebody = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = somebody.local_addr().expect("bound");
        drop(somebody);
        let rule = Rule {
            protocol: Protocol::Tcp,
            listen: Some(address.ip()),
            interface: None,
            first: address.port(),
            last: address.port(),
            target: None,
            to_first: 80,
            best_effort: false,
            auto_scan: false,
        };
        let rule_id = RuleId(NonZeroU16::MIN);
        let mut network =
            Network::new(Keeper::new(Table::Host, context), None, PortSets::default());
        let mut supplied = 0;
        // The forwarder's copies are closed at once: all are lost.
        let mut out = |supply: Supply, _: &[BorrowedFd<'_>]| {
            supplied += u32::from(matches!(supply, Supply::Listeners { .. }));
            Ok(())
        };
        let change = network.keeper.prepare(&[(rule_id, rule)]).expect("free");
        network.keeper.commit(change, &mut out).expect("sent");
        let mut now = Instant::now();
        network.watch(now, false);
        assert!(network.timeout(now).is_none(), "nothing to wait for");
        let somebody = TcpListener::bind(address).expect("nobody listens");
        let request = Request::Listener {
            rule: rule_id,
            offset: 0,
        };
        network.serve(request, now, &mut out).expect("granted");
        drop(somebody);
        for _ in 0..3 {
            now += network.timeout(now).unwrap_or_default();
            network.tick(now, &mut |_| Ok(()), &mut out).expect("sent");
        }
        assert_eq!(supplied, 2);
    }
}
