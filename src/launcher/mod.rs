//! The start, in order: everything that needs a path, a privilege or a namespace happens here, once.
//!
//! [`run`] reads top to bottom. Inherited descriptors are closed; in background mode the caller's process
//! stays behind and waits; files are opened; the target is opened, or a command is born in namespaces of its
//! own; the host's network is read and the configuration decided; the ns-agent goes and makes the tap; privilege
//! is dropped; the forwarder is cloned, prepared and confined; and the launcher turns into the monitor. The other
//! processes are forks of this one taken as early as they can be, while it is small.
//!
//! What must never happen: a byte of the guest read here; a success reported before tap, addresses,
//! routes and the confinement of every process are final; a failure that leaves anything behind.

pub mod confignet;
pub mod tap;

mod agent;
mod background;
mod command;
mod control;
mod error;
mod files;
mod identity;
mod ports;
mod target;
mod translator;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use nix::net::if_::if_nametoindex;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::addr::Mac;
use crate::cli::{Options, Target};
use crate::config::{Environment, Resolved, Verbosity, summary};
use crate::ipc::{FromAgent, IpcError, TapReport};
use crate::log::{Sinks, Syslog};
use crate::monitor::{
    self, Control, Facts, Forwarding, Links, Monitor, Neighbours, Signals, Style, Waiting, Watch,
};
use crate::sandbox::{self, Needs, Role};
use crate::sys::fd::{Standard, keep_only, redirect_to_null};
use crate::sys::ids::Ids;
use crate::sys::process::{self, Child};

use control::ControlSocket;
use error::cannot;
pub use error::{LaunchError, chain};
use files::PidFile;
use ports::Ports;
use target::Namespaces;

/// Most descriptors the forwarder asks for, however generous the limit: the flow tables end there too.
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// Start, and stay as the monitor. Returns in the caller's process of a background start, and when the
/// start fails.
///
/// # Errors
/// [`LaunchError`]: to be printed as one line, with exit status 1.
pub fn run(options: Options) -> Result<ExitCode, LaunchError> {
    keep_only(&[]).map_err(cannot("close inherited descriptors"))?;
    process::keep_heap();
    process::restore_sigchld();
    let debug = options.verbosity >= Verbosity::Debug;
    crate::log::init(options.verbosity, Sinks::stderr(debug));
    options.check_available()?;
    let style = match (&options.target, options.foreground) {
        (Target::Spawn(_), _) => Style::Command,
        (_, true) => Style::Foreground,
        (_, false) => Style::Background,
    };
    let mut pid_file = options
        .pid_file
        .as_deref()
        .map(PidFile::create)
        .transpose()?;
    let caller = if style == Style::Background {
        match background::fork(pid_file.as_ref())? {
            background::Fork::Caller(status) => return Ok(status),
            background::Fork::Daemon(pipe) => Some(pipe),
        }
    } else {
        None
    };
    let waiting = Waiting {
        pid_file: pid_file
            .as_mut()
            .and_then(PidFile::take)
            .map(|file| (file, format!("{}\n", std::process::id()))),
        parent: caller,
    };
    let result = start_with_socket(options, style, waiting);
    if let Some(file) = &pid_file {
        file.remove();
    }
    match result {
        Err(LaunchError::Reported) => Ok(ExitCode::FAILURE),
        Err(e) => Err(e),
        Ok(never) => match never {},
    }
}

fn start_with_socket(
    options: Options,
    style: Style,
    waiting: Waiting,
) -> Result<std::convert::Infallible, LaunchError> {
    let Some(path) = &options.conf_path else {
        return start(options, style, waiting, None);
    };
    let (socket, listener) = ControlSocket::create(path)?;
    let result = start(options, style, waiting, Some(listener));
    socket.remove();
    result
}

fn start(
    options: Options,
    style: Style,
    waiting: Waiting,
    control: Option<OwnedFd>,
) -> Result<std::convert::Infallible, LaunchError> {
    let identity = identity::choose(options.runas.as_ref())?;
    let pcap = open_files(&options, style)?;
    let target = open_target(&options, identity)?;
    let resolved = resolve(&options)?;
    let needs = Needs {
        report_violations: options.verbosity == Verbosity::Trace,
        ..Needs::default()
    };
    let nofile = raise_descriptor_limit()?;
    let ports = Ports::new(
        &resolved,
        options.freebind,
        nofile,
        options.conf_path.is_some(),
    )?;
    let (mut agent, supplied) = agent::start(&agent::Plan {
        namespaces: &target.namespaces,
        private: target.command.is_some(),
        setup: &resolved.netns,
        tap: !resolved.config.splice.only,
        ports: &ports,
        identity,
        needs,
    })?;
    let (command, leash) = match target.command {
        None => (None, None),
        Some(command) => {
            let (child, leash) = command.name_host(resolved.uts_hostname.as_deref())?;
            (Some(child), Some(leash))
        }
    };
    target::check_alive(&target.watch)?;
    // Both sides bind at the same time.
    let bound = ports.bind()?;
    let tap = receive_tap(&mut agent)?;
    // What usually goes wrong has, and could be tidied up as whoever we were.
    let low_ports = identity::low_ports_later(&resolved.host_rules, options.conf_path.is_some());
    match identity {
        Some(ids) if low_ports => identity::become_ids_for_now(ids)?,
        Some(ids) => identity::become_ids(ids)?,
        None => {}
    }
    // Only now: if the tap cannot be had, the reason is the only line.
    // And the terminal of a command of ours is the command's.
    let level = match style {
        Style::Command => log::Level::Debug,
        Style::Foreground | Style::Background => log::Level::Info,
    };
    for line in summary(&resolved).lines() {
        log::log!(level, "{line}");
    }
    let inputs = TranslatorInputs {
        tap,
        agent: supplied,
        pcap,
        nofile,
        needs,
    };
    let neighbours = follow_neighbours(&resolved);
    let mut forwarder = translator::start(translator_plan(resolved, inputs))?;
    let forwarding = bound.hand_over(&mut forwarder)?;
    // The monitor is long-lived and holds nothing it does not need.
    drop(target.namespaces);
    drop(options);
    become_monitor(
        Parts {
            forwarder,
            agent,
            command,
            leash,
            watch: target.watch,
            forwarding,
            neighbours,
            waiting,
            control,
            low_ports,
        },
        style,
    )
}

/// Log file, system log, capture file.
fn open_files(options: &Options, style: Style) -> Result<Option<File>, LaunchError> {
    let log_file = files::log_file(options)?;
    let syslog =
        if style == Style::Background && log_file.is_none() && options.verbosity < Verbosity::Debug
        {
            Syslog::connect(&options.program, std::process::id())
        } else {
            None
        };
    crate::log::with_sinks(|sinks| {
        sinks.set_file(log_file);
        sinks.set_syslog(syslog);
    });
    files::capture_file(options)
}

/// What we connect, opened.
struct OpenTarget {
    namespaces: Namespaces,
    watch: Watch,
    command: Option<command::Command>,
}

fn open_target(options: &Options, identity: Option<Ids>) -> Result<OpenTarget, LaunchError> {
    let userns = options.userns.as_deref();
    let watched = |(namespaces, watch)| OpenTarget {
        namespaces,
        watch: if options.no_netns_quit {
            Watch::Nothing
        } else {
            watch
        },
        command: None,
    };
    match &options.target {
        Target::Socket => Err(LaunchError::NoNamespace),
        Target::Pid(pid) => target::of_process(*pid, userns, options.netns_only).map(watched),
        Target::Netns(path) => target::at_path(path, userns).map(watched),
        Target::Spawn(arguments) => {
            let root = nix::unistd::geteuid().is_root();
            // The command runs as the caller, unless --runas names somebody.
            let ids = match (identity, &options.runas) {
                (Some(ids), Some(_)) => ids,
                _ => Ids::current(),
            };
            let command = command::Command::start(&command::Plan {
                command: arguments,
                no_pidns: options.no_pidns,
                netns_only: options.netns_only,
                ids,
                privileged: root,
            })?;
            Ok(OpenTarget {
                namespaces: target::of_child(command.pid(), options.netns_only)?,
                watch: Watch::Nothing,
                command: Some(command),
            })
        }
    }
}

/// Read the host's network and decide everything.
fn resolve(options: &Options) -> Result<Resolved, LaunchError> {
    let host = crate::netlink::query_host()?;
    let resolved = crate::config::resolve(options, &host, &Environment::read())?;
    for notice in &resolved.notices {
        log::log!(notice.level, "{}", notice.text);
    }
    Ok(resolved)
}

/// Wait for the ns-agent to have made the tap, or to have found that it is to make none.
fn receive_tap(agent: &mut monitor::Agent) -> Result<Option<(TapReport, OwnedFd)>, LaunchError> {
    let received = match &agent.link {
        Some(link) => link.receive(),
        None => Err(IpcError::Closed),
    };
    match received {
        Ok((FromAgent::Tap(report), Some(tap))) => {
            agent.relay_log();
            Ok(Some((report, tap)))
        }
        Ok((FromAgent::NoTap, None)) => Ok(None),
        Ok(_) => Err(IpcError::Malformed.into()),
        Err(IpcError::Closed) => {
            agent.ended();
            Err(LaunchError::Reported)
        }
        Err(e) => Err(e.into()),
    }
}

/// As many descriptors as we may have, for us and all we start from here on; a command of ours was born before and keeps
/// what our caller gave it.
fn raise_descriptor_limit() -> Result<u64, LaunchError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(cannot("read limits"))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .map_err(cannot("raise the limit of descriptors"))?;
    Ok(hard.min(MAX_DESCRIPTORS))
}

/// The host's neighbours on the networks the guest's is modelled on, unless it sees none of that.
fn follow_neighbours(resolved: &Resolved) -> Option<Neighbours> {
    if resolved.config.splice.only {
        return None;
    }
    let index = |name: &Option<String>| if_nametoindex(name.as_deref()?).ok();
    Neighbours::open(Links {
        v4: index(&resolved.template4),
        v6: index(&resolved.template6),
    })
}

/// What the forwarder is given besides the configuration.
struct TranslatorInputs {
    tap: Option<(TapReport, OwnedFd)>,
    agent: OwnedFd,
    pcap: Option<File>,
    nofile: u64,
    needs: Needs,
}

fn translator_plan(resolved: Resolved, inputs: TranslatorInputs) -> translator::Plan {
    let mut config = resolved.config;
    if let Some((report, _)) = &inputs.tap {
        config.guest_mac = Some(Mac(report.mac));
    }
    let source_address = config.v4.as_ref().is_some_and(|v4| v4.outbound.is_some())
        || config.v6.as_ref().is_some_and(|v6| v6.outbound.is_some())
        // Who comes from 127.0.0.2 is seen as 127.0.0.2.
        || config.splice.inbound && (config.splice.to_loopback || config.splice.only);
    translator::Plan {
        tap: inputs
            .tap
            .map(|(report, tap)| (tap, agent::decode_offloads(report.offloads))),
        agent: inputs.agent,
        nofile: inputs.nofile,
        needs: Needs {
            writes_files: inputs.pcap.is_some(),
            source_address,
            ..inputs.needs
        },
        pcap: inputs.pcap,
        config,
    }
}

/// What the monitor takes over.
struct Parts {
    forwarder: monitor::Forwarder,
    agent: monitor::Agent,
    command: Option<Child>,
    leash: Option<File>,
    watch: Watch,
    forwarding: Forwarding,
    neighbours: Option<Neighbours>,
    waiting: Waiting,
    control: Option<OwnedFd>,
    low_ports: bool,
}

fn become_monitor(parts: Parts, style: Style) -> Result<std::convert::Infallible, LaunchError> {
    let signals = Signals::take_over().map_err(cannot("take over signals"))?;
    let give_up = if style == Style::Background {
        Standard::All
    } else {
        Standard::InputAndOutput
    };
    redirect_to_null(give_up).map_err(cannot("redirect standard descriptors"))?;
    let needs = Needs {
        writes_files: true,
        low_ports: parts.low_ports,
        ..Needs::default()
    };
    let own_mounts = sandbox::unshare(Role::Monitor, needs);
    let monitor = Monitor {
        signals,
        forwarder: parts.forwarder,
        agent: parts.agent,
        command: parts.command,
        leash: parts.leash,
        watch: parts.watch,
        forwarding: parts.forwarding,
        neighbours: parts.neighbours,
        waiting: Some(parts.waiting),
        control: parts
            .control
            .map(|listener| Control::new(listener, Ids::current().uid.as_raw())),
        style,
        facts: Facts::now(),
    };
    process::forget_text();
    let confined = sandbox::confine(Role::Monitor, own_mounts, needs)?;
    monitor.run(&confined)
}
