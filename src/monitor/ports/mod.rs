//! The keeper of a table: binds what its rules say and hands it to the forwarder.
//!
//! There is one for the host's network, in the monitor, and one for the namespace's, in the ns-agent. A keeper knows
//! its rules, what is open of each, and what the other side listens on; it keeps no copy of a socket it has handed
//! over, so a port closes when the forwarder closes it. A listening socket is known by protocol, address, interface and
//! port; what a new table has in common with the old one keeps its socket, and so its waiting connections.
//!
//! *Explicit* ports must be had, or the table is refused. Ports of `all`, of exclusions and of `auto` are had where
//! possible; what is missing is tried again, a little at a time. An `auto` port is open only while something listens
//! on its target on the other side: [`Keeper::other_side`] says what does, [`Keeper::follow`] opens and closes.
//! What we listen on ourselves must not be followed by the other keeper, or two networks would open ports for
//! each other for ever: [`Keeper::own_ports`] is to be taken out of every scan of the keeper's own network, and a port
//! stays in it for some time after it was closed, as the forwarder may be slower than the scan.
//!
//! What must never happen: a socket for a port that no rule grants; a table that is half in force; work
//! without bound because somebody opens and closes many ports; an allocation after the start.

mod change;
mod live;
mod plan;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;

use crate::config::ports::{Block, MAX_LISTENERS, PortSets, Ports};
use crate::config::rules::{Protocol, Rule, RuleId, Table};
use crate::ipc::{IpcError, Supply};
use crate::sys::listen::{self, Listen};

pub use change::Change;
pub use live::{Misbehaved, ServeError};

use plan::{Book, Kept};

/// Where what the forwarder is to know goes: one message, with its sockets. An error is the end.
pub type Out<'a> = dyn FnMut(Supply, &[BorrowedFd<'_>]) -> Result<(), IpcError> + 'a;

/// What holds for all rules of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeeperContext {
    /// IPv4 is on.
    pub ipv4: bool,
    /// IPv6 is on.
    pub ipv6: bool,
    /// `--freebind`.
    pub freebind: bool,
    /// Most listeners of this table: what the forwarder can take without starving its connections. More than
    /// [`MAX_LISTENERS`] there never are.
    pub budget: usize,
}

/// A table that cannot be put into force.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PortError {
    /// A port cannot be listened on.
    #[error("{0}\nCouldn't listen on requested ports")]
    Listen(Failure),
    /// More explicit ports than there can be listeners.
    #[error(
        "{wanted} {table} ports to listen on, but descriptors for {budget} (RLIMIT_NOFILE, see prlimit(1))\n\
         Couldn't listen on requested ports"
    )]
    TooMany {
        /// Of this table.
        table: Table,
        /// That many are asked for.
        wanted: usize,
        /// That many can be had.
        budget: usize,
    },
    /// The table itself is wrong: no command line makes such a one.
    #[error("Forwarding table not usable")]
    Table,
}

/// A port that must be had and cannot be, or the last one of a best-effort rule of which none could.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Of this table.
    pub table: Table,
    /// For this rule.
    pub rule: RuleId,
    protocol: Protocol,
    listen: Option<IpAddr>,
    interface: Option<arrayvec::ArrayString<{ crate::config::rules::MAX_INTERFACE_NAME }>>,
    /// The range of a best-effort rule.
    range: Option<(u16, u16)>,
    /// This port.
    pub port: u16,
    /// The kernel's reason (errno(3)).
    pub errno: i32,
}

impl Failure {
    /// What another process says has failed for it, in words.
    #[must_use]
    pub fn new(table: Table, id: RuleId, rule: &Rule, port: u16, errno: i32) -> Self {
        Self {
            table,
            rule: id,
            protocol: rule.protocol,
            listen: rule.listen,
            interface: rule
                .interface
                .as_deref()
                .and_then(|name| name.try_into().ok()),
            range: rule.best_effort.then_some((rule.first, rule.last)),
            port,
            errno,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, protocol) = (self.table, self.protocol);
        match self.range {
            None => write!(f, "Listen failed for {table} {protocol} port ")?,
            Some(_) => write!(f, "All listens failed for {table} {protocol} ")?,
        }
        match self.listen {
            None => f.write_str("*")?,
            Some(address) => write!(f, "{address}")?,
        }
        if let Some(interface) = &self.interface {
            write!(f, "%{interface}")?;
        }
        match self.range {
            None => {
                let reason = Errno::from_raw(self.errno).desc();
                write!(f, "/{}: {reason}", self.port)
            }
            Some((first, last)) => write!(f, "/{first}-{last}"),
        }
    }
}

/// How a rule is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// This one.
    pub rule: RuleId,
    /// Ports listened on.
    pub open: u32,
    /// Ports that should be and cannot be, now.
    pub missing: u32,
}

/// Makes listening sockets: the kernel, or a test.
pub trait Binder {
    /// A listening socket.
    type Socket: AsFd + fmt::Debug;

    /// A new one.
    ///
    /// # Errors
    /// As `sys::listen`.
    fn bind(&mut self, protocol: Protocol, listen: &Listen<'_>) -> io::Result<Self::Socket>;

    /// Wait a moment before trying again; false: enough of that. Only ever called at the start.
    fn wait(&mut self) -> bool;
}

/// The network this process is in.
#[derive(Debug, Default)]
pub struct Kernel {
    patience: Option<Instant>,
}

impl Binder for Kernel {
    type Socket = OwnedFd;

    fn bind(&mut self, protocol: Protocol, listen: &Listen<'_>) -> io::Result<OwnedFd> {
        match protocol {
            Protocol::Tcp => listen::tcp(listen),
            Protocol::Udp => listen::udp(listen),
        }
    }

    fn wait(&mut self) -> bool {
        let now = Instant::now();
        let end = *self
            .patience
            .get_or_insert_with(|| now.checked_add(change::PATIENCE).unwrap_or(now));
        if now >= end {
            return false;
        }
        std::thread::sleep(change::PAUSE);
        true
    }
}

/// A table in force.
#[derive(Debug)]
pub struct Keeper<B: Binder = Kernel> {
    table: Table,
    context: KeeperContext,
    binder: B,
    book: Book,
    /// Every rule there ever was: its number is the "port".
    known: Ports,
    /// What the other side listens on.
    other: PortSets,
    /// That has changed since it was last followed, or following it was not finished.
    changed: bool,
    own: live::Own,
    /// How many are open.
    open: usize,
    pace: live::Pace,
    /// For the next table; taken while one is prepared.
    spare: Option<Change<B::Socket>>,
    /// The first table has been put into force.
    started: bool,
}

impl Keeper {
    /// A table without rules, in the network this process is in. Everything it will ever need is allocated here.
    #[must_use]
    pub fn new(table: Table, context: KeeperContext) -> Self {
        Self::with_binder(table, context, Kernel::default())
    }
}

impl<B: Binder> Keeper<B> {
    fn with_binder(table: Table, context: KeeperContext, binder: B) -> Self {
        let context = KeeperContext {
            budget: context.budget.min(MAX_LISTENERS),
            ..context
        };
        Self {
            table,
            context,
            binder,
            book: Book::reserve(),
            known: Ports::default(),
            other: PortSets::default(),
            changed: false,
            own: live::Own::default(),
            open: 0,
            pace: live::Pace::default(),
            spare: Some(Change::reserve(context.budget)),
            started: false,
        }
    }

    /// Does any rule follow the other side? Else nobody has to look there.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.book.rules().iter().any(|r| r.auto_scan)
    }

    /// What the other side listens on has changed in one block of 256 ports.
    pub fn other_side(&mut self, protocol: Protocol, block: u8, bits: &Block) {
        self.changed |= self.other.of_mut(protocol).set_block(block, bits);
    }

    /// What we listen on in our network, and did until about a second ago.
    #[must_use]
    pub const fn own_ports(&self) -> &PortSets {
        self.own.ports()
    }

    /// How each rule is doing, in the order of the table.
    pub fn status(&self) -> impl Iterator<Item = Status> + '_ {
        self.book.rules().iter().map(|rule| {
            let (open, missing) = self.book.count(rule, &self.other);
            Status {
                rule: rule.id,
                open,
                missing,
            }
        })
    }

    fn bind(&mut self, rule: &Kept, port: u16) -> io::Result<B::Socket> {
        let listen = Listen {
            address: rule.place.listen,
            ipv4: self.context.ipv4,
            ipv6: self.context.ipv6,
            interface: rule.place.interface.as_deref(),
            port,
            freebind: self.context.freebind,
        };
        self.binder.bind(rule.place.protocol, &listen)
    }
}
