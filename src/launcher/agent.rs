//! The ns-agent: enters the target namespaces, makes the tap, configures it, gives up everything and stays.
//!
//! It is a process of its own because one process cannot be in two network namespaces, and it stays because
//! a process that has entered a namespace needs no privilege to make further sockets there, while
//! entering again would.

use std::convert::Infallible;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use super::confignet::{self, ConfigNetError};
use super::error::{LaunchError, Reason, chain};
use super::identity;
use super::ports::Ports;
use super::tap::{self, TapError};
use super::target::Namespaces;
use crate::config::namespace::NamespaceSetup;
use crate::config::ports::PortSets;
use crate::config::rules::Table;
use crate::ipc::{self, AgentLink, FromAgent, IpcError, SupplierEnd, Supply, TapReport};
use crate::monitor::ports::{Keeper, PortError};
use crate::monitor::{self, Network, NsAgent};
use crate::sandbox::{self, Needs, Role, SandboxError};
use crate::sys::fd::{Standard, keep_only, redirect_to_null};
use crate::sys::ids::Ids;
use crate::sys::process::{self, Side, clone, exit_now};
use crate::sys::scm;
use crate::sys::tun::{self, Offloads};

/// What it needs to know, decided before the fork.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Where to go.
    pub(super) namespaces: &'a Namespaces,
    /// They are a command's of ours and go with it.
    pub(super) private: bool,
    /// What to make there.
    pub(super) setup: &'a NamespaceSetup,
    /// With a tap; without one only loopback is brought up.
    pub(super) tap: bool,
    /// What to listen on there.
    pub(super) ports: &'a Ports,
    /// Whom to become once that is done.
    pub(super) identity: Option<Ids>,
    /// For the last stage.
    pub(super) needs: Needs,
}

/// Why there is no tap. Printed by the launcher, so the texts are the user's.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Configure(#[from] ConfigNetError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Ports(#[from] PortError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Ipc(#[from] IpcError),
    #[error("Couldn't set the parent-death signal: {0}")]
    ParentDeath(Reason),
    #[error("Couldn't put /dev/null in the place of standard descriptors: {0}")]
    Descriptors(Reason),
}

/// Its ends of its pairs.
struct Ends {
    monitor: OwnedFd,
    forwarder: OwnedFd,
    log: OwnedFd,
}

/// Start it. The socket is for the forwarder: the other end of their pair.
pub(super) fn start(plan: &Plan<'_>) -> Result<(monitor::Agent, OwnedFd), LaunchError> {
    let (link, socket) = ipc::agent_pair()?;
    let (supplier, supplied) = ipc::supply_pair()?;
    let (log, log_socket) =
        scm::seqpacket_pair().map_err(super::error::cannot("create a socket pair"))?;
    match clone(CloneFlags::empty()).map_err(super::error::cannot("fork"))? {
        Side::Child => run(
            plan,
            Ends {
                monitor: socket,
                forwarder: supplier,
                log: log_socket,
            },
        ),
        Side::Parent(child) => {
            let agent = monitor::Agent::new(Role::NsAgent, child, link, log);
            Ok((agent, supplied))
        }
    }
}

fn run(plan: &Plan<'_>, ends: Ends) -> ! {
    let Ends {
        monitor,
        forwarder,
        log,
    } = ends;
    let mut keep = vec![
        monitor.as_fd(),
        forwarder.as_fd(),
        log.as_fd(),
        plan.namespaces.net.as_fd(),
    ];
    keep.extend(plan.namespaces.user.as_ref().map(AsFd::as_fd));
    let tidy = keep_only(&keep).and_then(|()| redirect_to_null(Standard::All));
    crate::log::use_channel(log);
    let ended = match tidy {
        Err(e) => Err(AgentError::Descriptors(e.into())),
        Ok(()) => serve(plan, AgentLink::new(monitor), SupplierEnd::new(forwarder)),
    };
    match ended {
        Ok(never) => match never {},
        Err(AgentError::Ipc(IpcError::Closed)) => exit_now(0),
        // Of two lines, which callers know.
        Err(AgentError::Ports(e)) => {
            log::error!("{e}");
            exit_now(1)
        }
        Err(e) => {
            log::error!("{}", chain(&e));
            exit_now(1)
        }
    }
}

/// Do everything; ends by an error, of which the closed channel is the expected one.
fn serve(
    plan: &Plan<'_>,
    link: AgentLink,
    forwarder: SupplierEnd,
) -> Result<Infallible, AgentError> {
    process::set_name(c"pasta:ns-agent");
    die_with_parent()?;
    // Out of the terminal's reach; only fails for a group leader, which a fresh fork is not.
    let _ = setsid();
    let pending = join(plan.namespaces).map_err(|e| LaunchError::Join(e.into()))?;
    if plan.tap {
        make_tap(plan, &link)?;
    } else {
        confignet::loopback_up()?;
        link.send(FromAgent::NoTap, None)?;
    }
    let network = listen(plan.ports, &link, &forwarder)?;
    if let Some(ids) = plan.identity {
        identity::become_ids_for_now(ids)?;
    }
    if pending {
        join_user(plan.namespaces).map_err(|e| LaunchError::Join(e.into()))?;
    }
    close_namespaces(plan.namespaces);
    // Changes of credentials have cleared the first one.
    die_with_parent()?;
    let needs = Needs {
        low_ports: identity::low_ports_later(
            plan.ports.tables.rules(Table::Splice),
            plan.ports.open,
        ),
        ..plan.needs
    };
    // Never dropped: giving memory back is a system call the filter forbids.
    let mut agent = ManuallyDrop::new(NsAgent::new(link, forwarder, network));
    let own_mounts = sandbox::unshare(Role::NsAgent, needs);
    let confined = sandbox::confine(Role::NsAgent, own_mounts, needs)?;
    Ok(agent.run(&confined)?)
}

fn die_with_parent() -> Result<(), AgentError> {
    process::die_with_parent(Signal::SIGKILL).map_err(|e| AgentError::ParentDeath(e.into()))
}

/// Look at what is listened on in the namespace, then listen there ourselves, and give it to the forwarder. By then
/// it has been started, or will be.
fn listen(ports: &Ports, link: &AgentLink, forwarder: &SupplierEnd) -> Result<Network, AgentError> {
    let scanner = ports.scanner_for(Table::Host)?;
    let keeper = Keeper::new(Table::Splice, ports.splice);
    let mut network = Network::new(keeper, scanner, PortSets::default());
    if ports.tables.follows(Table::Host) {
        network.watch(Instant::now(), true);
        network.scan(&mut |block| link.send(FromAgent::Ports(block), None))?;
    }
    let out = &mut |supply: Supply, fds: &[BorrowedFd<'_>]| forwarder.send(supply, fds);
    for (protocol, block, bits) in ports.seen.changes(&PortSets::default()) {
        network.keeper.other_side(protocol, block, &bits);
    }
    let change = network.keeper.prepare(ports.tables.named(Table::Splice))?;
    network.keeper.commit(change, out)?;
    network.keeper.follow(out)?;
    forwarder.send(Supply::Complete, &[])?;
    Ok(network)
}

/// Enter the network namespace, directly if our capabilities reach it, else through the user
/// namespace. True: the user namespace is still to be entered, after what needs the outside's capabilities.
fn join(namespaces: &Namespaces) -> Result<bool, Errno> {
    match (
        setns(&namespaces.net, CloneFlags::CLONE_NEWNET),
        &namespaces.user,
    ) {
        (Ok(()), user) => Ok(user.is_some()),
        (Err(Errno::EPERM), Some(user)) => {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
            setns(&namespaces.net, CloneFlags::CLONE_NEWNET)?;
            Ok(false)
        }
        (Err(e), _) => Err(e),
    }
}

fn join_user(namespaces: &Namespaces) -> Result<(), Errno> {
    let Some(user) = &namespaces.user else {
        return Ok(());
    };
    match setns(user, CloneFlags::CLONE_NEWUSER) {
        // It is the one we are in already.
        Err(Errno::EINVAL) => Ok(()),
        other => other,
    }
}

fn make_tap(plan: &Plan<'_>, link: &AgentLink) -> Result<(), AgentError> {
    let mut tap = tap::open(&plan.setup.ifname)?;
    confignet::apply(plan.setup, &mut tap)?;
    if plan.private {
        // Taking the interface down when its last descriptor is closed costs the process that closes it
        // some 20 ms. The end of the namespace does it too, and nobody waits for that.
        let _ = tun::set_persistent(&tap.fd);
    }
    let report = TapReport {
        mac: tap.mac.0,
        index: tap.index,
        offloads: encode_offloads(tap.offloads),
    };
    link.send(FromAgent::Tap(report), Some(tap.fd.as_fd()))?;
    Ok(())
}

/// Close the descriptors of the namespaces: all that stays is the channels, and what looks for listeners.
fn close_namespaces(namespaces: &Namespaces) {
    for fd in std::iter::once(&namespaces.net).chain(&namespaces.user) {
        // Their owner is the launcher's memory of which this is a copy; it is never dropped here.
        let _ = nix::unistd::close(fd.as_raw_fd());
    }
}

/// Offloads as bits of a message.
fn encode_offloads(o: Offloads) -> u32 {
    [o.csum, o.tso4, o.tso6, o.tso_ecn, o.uso]
        .into_iter()
        .rev()
        .fold(0, |bits, on| (bits << 1) | u32::from(on))
}

/// The reverse of what the ns-agent sends.
pub(super) fn decode_offloads(bits: u32) -> Offloads {
    let on = |n: u32| bits & (1 << n) != 0;
    Offloads {
        csum: on(0),
        tso4: on(1),
        tso6: on(2),
        tso_ecn: on(3),
        uso: on(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_survive_the_message() {
        for bits in 0..32 {
            assert_eq!(encode_offloads(decode_offloads(bits)), bits);
        }
        assert_eq!(decode_offloads(31), Offloads::ALL);
    }
}
