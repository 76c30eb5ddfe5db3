//! What the forwarder is attached to: a namespace, in which an agent of ours makes a tap, or a virtual machine's socket.
//!
//! Both are opened first, while everything can still fail; [`Attachment::begin`] starts the agent, and
//! [`Attached::link`] is the way to the guest, once there is one.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::agent;
use super::command::{self, Command};
use super::error::LaunchError;
use super::guest::Guest;
use super::ports::Ports;
use super::target::{self, Namespaces};
use crate::addr::Mac;
use crate::cli::{Options, Target};
use crate::config::Resolved;
use crate::forwarder::{From, LinkPlan};
use crate::ipc::{FromAgent, IpcError, TapReport};
use crate::monitor::{self, Watch};
use crate::sandbox::Needs;
use crate::sys::ids::Ids;
use crate::sys::process::Child;

/// What we connect, opened.
#[derive(Debug)]
pub(super) enum Attachment {
    /// pasta's.
    Namespace {
        namespaces: Namespaces,
        watch: Watch,
        command: Option<Command>,
    },
    /// passt's.
    Machine { link: LinkPlan },
}

/// What has been made of it.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) agent: Option<monitor::Agent>,
    /// Its other socket, for the forwarder.
    pub(super) supplied: Option<OwnedFd>,
    pub(super) command: Option<Child>,
    pub(super) leash: Option<File>,
    pub(super) watch: Watch,
    machine: Option<LinkPlan>,
}

/// Open what the command line names; a machine's socket is open already.
pub(super) fn open(
    options: &Options,
    identity: Option<Ids>,
    guest: Option<Guest>,
) -> Result<Attachment, LaunchError> {
    let userns = options.userns.as_deref();
    let watched = |(namespaces, watch)| Attachment::Namespace {
        namespaces,
        watch: if options.no_netns_quit {
            Watch::Nothing
        } else {
            watch
        },
        command: None,
    };
    match (&options.target, guest) {
        (_, Some(guest)) => Ok(Attachment::Machine {
            link: machine(options, guest),
        }),
        (Target::Socket, None) => Err(LaunchError::NoMachine),
        (Target::Pid(pid), None) => {
            target::of_process(*pid, userns, options.netns_only).map(watched)
        }
        (Target::Netns(path), None) => target::at_path(path, userns).map(watched),
        (Target::Spawn(arguments), None) => {
            let root = nix::unistd::geteuid().is_root();
            // The command runs as the caller, unless --runas names somebody.
            let ids = match (identity, &options.runas) {
                (Some(ids), Some(_)) => ids,
                _ => Ids::current(),
            };
            let command = Command::start(&command::Plan {
                command: arguments,
                no_pidns: options.no_pidns,
                netns_only: options.netns_only,
                ids,
                privileged: root,
            })?;
            Ok(Attachment::Namespace {
                namespaces: target::of_child(command.pid(), options.netns_only)?,
                watch: Watch::Nothing,
                command: Some(command),
            })
        }
    }
}

fn machine(options: &Options, guest: Guest) -> LinkPlan {
    LinkPlan::Socket {
        vhost_user: options.socket.vhost_user,
        one_off: options.socket.one_off,
        from: match guest {
            Guest::Listener { socket, .. } => From::Listener(socket),
            Guest::Connected(socket) => From::Connected(socket),
        },
    }
}

impl Attachment {
    /// Start the agent, if there is a namespace for one, and let a command of ours know its host's name.
    pub(super) fn begin(
        self,
        resolved: &Resolved,
        ports: &Ports,
        (identity, needs): (Option<Ids>, Needs),
    ) -> Result<Attached, LaunchError> {
        let (namespaces, watch, command) = match self {
            Self::Machine { link } => {
                return Ok(Attached {
                    agent: None,
                    supplied: None,
                    command: None,
                    leash: None,
                    watch: Watch::Nothing,
                    machine: Some(link),
                });
            }
            Self::Namespace {
                namespaces,
                watch,
                command,
            } => (namespaces, watch, command),
        };
        let (agent, supplied) = agent::start(&agent::Plan {
            namespaces: &namespaces,
            private: command.is_some(),
            setup: &resolved.netns,
            tap: !resolved.config.splice.only,
            ports,
            identity,
            needs,
        })?;
        let (command, leash) = command
            .map(|command| command.name_host(resolved.uts_hostname.as_deref()))
            .transpose()?
            .unzip();
        target::check_alive(&watch)?;
        Ok(Attached {
            agent: Some(agent),
            supplied: Some(supplied),
            command,
            leash,
            watch,
            machine: None,
        })
    }
}

impl Attached {
    /// The way to the guest, and the guest's link-layer address if we know it. Waits for the agent to have made the tap,
    /// or to have found that it is to make none.
    pub(super) fn link(&mut self) -> Result<(LinkPlan, Option<Mac>), LaunchError> {
        if let Some(link) = self.machine.take() {
            return Ok((link, None));
        }
        let agent = self.agent.as_mut().ok_or(LaunchError::NoMachine)?;
        let received = match &agent.link {
            Some(link) => link.receive(),
            None => Err(IpcError::Closed),
        };
        match received {
            Ok((FromAgent::Tap(TapReport { mac, offloads, .. }), Some(tap))) => {
                agent.relay_log();
                let offloads = agent::decode_offloads(offloads);
                Ok((LinkPlan::Tun(tap, offloads), Some(Mac(mac))))
            }
            Ok((FromAgent::NoTap, None)) => Ok((LinkPlan::Off, None)),
            Ok(_) => Err(IpcError::Malformed.into()),
            Err(IpcError::Closed) => {
                agent.ended();
                Err(LaunchError::Reported)
            }
            Err(e) => Err(e.into()),
        }
    }
}
