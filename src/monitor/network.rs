//! One network's share of forwarding: its listeners, and what else is listened on there.
//!
//! The monitor has one for the host's network, the ns-agent one for the namespace's. Both tell each other what their
//! networks listen on, as far as rules on the other side follow it, and open and close their own listeners by what
//! they are told. A timer runs only while there is something to look at: somebody follows this network, or a
//! port that should be open is not.

use std::time::{Duration, Instant};

use super::ports::{Keeper, Out};
use crate::config::ports::PortSets;
use crate::ipc::{IpcError, PortBlock};
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
            log::debug!("Couldn't look for listening sockets: {e}");
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

    /// The other side has told what has changed there. [`Keeper::follow`] is for after the last such.
    pub fn told(&mut self, change: &PortBlock) {
        self.keeper
            .other_side(change.protocol, change.block, &change.bits);
    }
}
