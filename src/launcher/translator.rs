//! The forwarder: cloned into namespaces of its own, prepared while it may still allocate, confined, run.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use super::error::{LaunchError, Reason, cannot, chain};
use crate::config::{Config, Mode};
use crate::forwarder::{Forwarder, From, Inherited, LinkPlan};
use crate::ipc;
use crate::monitor;
use crate::sandbox::{self, Needs, Role};
use crate::sys::fd::{Standard, keep_only, redirect_to_null};
use crate::sys::ids::{self, Ids};
use crate::sys::process::{self, Child, Side, clone, exit_now};
use crate::sys::random;
use crate::sys::scm;

/// What it is given.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) config: Config,
    /// The way to the guest.
    pub(super) link: LinkPlan,
    /// Its end of the pair with the ns-agent, if there is one.
    pub(super) agent: Option<OwnedFd>,
    pub(super) pcap: Option<File>,
    /// Descriptors it may have open.
    pub(super) nofile: u64,
    pub(super) needs: Needs,
}

impl Plan {
    /// Which of the forwarders this is.
    const fn role(&self) -> Role {
        match self.link {
            LinkPlan::Tun(..) | LinkPlan::Off => Role::Forwarder,
            LinkPlan::Socket {
                vhost_user: false, ..
            } => Role::ForwarderStream,
            LinkPlan::Socket {
                vhost_user: true, ..
            } => Role::ForwarderVhostUser,
        }
    }
}

/// Start it. The launcher keeps nothing of what the plan holds.
pub(super) fn start(plan: Plan) -> Result<monitor::Forwarder, LaunchError> {
    let (link, control) = ipc::forwarder_pair()?;
    let (log, log_socket) = scm::seqpacket_pair().map_err(cannot("create a socket pair"))?;
    let ids = Ids::current();
    let role = plan.role();
    match enter_namespaces(role)? {
        Start::Child(namespaces) => run(plan, ids, namespaces, control, log_socket),
        Start::Parent(child) => Ok(monitor::Forwarder::new(role, child, link, log)),
    }
}

enum Start {
    Child(CloneFlags),
    Parent(Child),
}

/// Clone with as many of the namespaces as this system allows; the ladder judges later.
fn enter_namespaces(role: Role) -> Result<Start, LaunchError> {
    let all = sandbox::namespaces(role);
    let mut last = None;
    for namespaces in [all, all - CloneFlags::CLONE_NEWUSER, CloneFlags::empty()] {
        match clone(namespaces) {
            Ok(Side::Child) => return Ok(Start::Child(namespaces)),
            Ok(Side::Parent(child)) => return Ok(Start::Parent(child)),
            Err(e) => last = Some(e),
        }
    }
    let reason = last.map_or(nix::errno::Errno::EPERM.into(), Into::into);
    Err(LaunchError::System("fork", reason))
}

fn run(plan: Plan, ids: Ids, namespaces: CloneFlags, control: OwnedFd, log: OwnedFd) -> ! {
    let mut keep = vec![control.as_fd(), log.as_fd()];
    keep.extend(plan.agent.as_ref().map(AsFd::as_fd));
    keep.extend(match &plan.link {
        LinkPlan::Off => None,
        LinkPlan::Tun(fd, _)
        | LinkPlan::Socket {
            from: From::Listener(fd) | From::Connected(fd),
            ..
        } => Some(fd.as_fd()),
    });
    keep.extend(plan.pcap.as_ref().map(AsFd::as_fd));
    let tidy = keep_only(&keep).and_then(|()| redirect_to_null(Standard::All));
    crate::log::use_channel(log);
    let result = tidy
        .map_err(plain)
        .and_then(|()| serve(plan, ids, namespaces, control));
    if let Err(e) = result {
        log::error!("{e}");
        exit_now(1);
    }
    exit_now(0)
}

fn plain(e: std::io::Error) -> String {
    Reason::from(e).to_string()
}

fn serve(plan: Plan, ids: Ids, namespaces: CloneFlags, control: OwnedFd) -> Result<(), String> {
    process::set_name(match plan.config.mode {
        Mode::Passt => c"passt:forwarder",
        Mode::Pasta => c"pasta:forwarder",
    });
    process::die_with_parent(Signal::SIGKILL).map_err(plain)?;
    // Out of the terminal's reach.
    let _ = setsid();
    if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        if let Err(e) = ids::map_self(ids) {
            log::debug!(
                "ids of the forwarder's user namespace stay unmapped: {}",
                plain(e)
            );
        }
    }
    // Only the maps needed our own files in /proc; nobody who shares our user looks in from here on.
    nix::sys::prctl::set_dumpable(false).map_err(|e| e.desc().to_owned())?;
    let role = plan.role();
    let inherited = Inherited {
        link: plan.link,
        agent: plan.agent,
        control,
        pcap: plan.pcap.map(OwnedFd::from),
        seed: random::seed().map_err(plain)?,
        nofile: plan.nofile,
    };
    let needs = Needs {
        descriptors: Some(plan.nofile),
        ..plan.needs
    };
    // Never dropped: giving memory back is a system call the filter forbids.
    let mut forwarder =
        ManuallyDrop::new(Forwarder::prepare(plan.config, inherited).map_err(|e| chain(&e))?);
    let own_mounts = namespaces.contains(CloneFlags::CLONE_NEWNS);
    let confined = sandbox::confine(role, own_mounts, needs).map_err(|e| chain(&e))?;
    forwarder.run(&confined).map_err(|e| chain(&e))
}
