//! The start, in order: everything that needs a path, a privilege or a namespace happens here, once.
//!
//! [`run`] reads top to bottom. Inherited descriptors are closed, but for `--fd`; in background mode the caller's process
//! stays behind and waits; sockets and files are opened; the target is opened, or a command is born in namespaces of its
//! own; the host's network is read and the configuration decided; the ns-agent goes and makes the tap; privilege
//! is dropped; the forwarder is cloned, prepared and confined; and the launcher turns into the monitor. The other
//! processes are forks of this one taken as early as they can be, while it is small. passt has a socket for a target, and
//! no ns-agent.
//!
//! What must never happen: a byte of the guest read here; a success reported before tap, addresses,
//! routes and the confinement of every process are final; a failure that leaves anything behind.

pub mod confignet;
pub mod tap;

mod agent;
mod attach;
mod background;
mod command;
mod error;
mod files;
mod guest;
mod identity;
mod ports;
mod socket;
mod target;
mod translator;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::net::if_::if_nametoindex;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat;

use crate::addr::Mac;
use crate::cli::{Options, Target};
use crate::config::{Environment, Machine, Mode, Resolved, Verbosity, summary};
use crate::forwarder::LinkPlan;
use crate::log::{Sinks, Syslog};
use crate::monitor::{
    self, Control, Facts, Forwarding, Links, Monitor, Neighbours, Signals, Style, Waiting, Watch,
};
use crate::sandbox::{self, Needs, Role};
use crate::sys::fd::{Standard, keep_only, redirect_to_null};
use crate::sys::ids::Ids;
use crate::sys::process::{self, Child};

use error::cannot;
pub use error::{LaunchError, chain};
use files::PidFile;
use guest::Guest;
use ports::Ports;
use socket::{SocketError, SocketFile};

/// Most descriptors the forwarder asks for, however generous the limit: the flow tables end there too.
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// Start, and stay as the monitor. Returns in the caller's process of a background start, and when the
/// start fails.
///
/// # Errors
/// [`LaunchError`]: to be printed as one line, with exit status 1.
pub fn run(options: Options) -> Result<ExitCode, LaunchError> {
    let connected = guest::inherited(&options.socket)?;
    let keep: Vec<_> = connected.iter().map(AsFd::as_fd).collect();
    keep_only(&keep).map_err(cannot("close inherited descriptors"))?;
    process::keep_heap();
    process::restore_sigchld();
    let debug = options.verbosity >= Verbosity::Debug;
    crate::log::init(options.verbosity, Sinks::stderr(debug));
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
    let result = start_with_sockets(options, style, waiting, connected);
    if let Some(file) = &pid_file {
        file.remove();
    }
    match result {
        Err(LaunchError::Reported) => Ok(ExitCode::FAILURE),
        Err(e) => Err(e),
        Ok(never) => match never {},
    }
}

/// The sockets in the file system, and those that stand for one.
struct Sockets {
    control: Option<OwnedFd>,
    guest: Option<Guest>,
}

fn start_with_sockets(
    options: Options,
    style: Style,
    waiting: Waiting,
    connected: Option<OwnedFd>,
) -> Result<std::convert::Infallible, LaunchError> {
    let mut files = Vec::new();
    let result = open_sockets(&options, connected, &mut files)
        .and_then(|sockets| start(options, style, waiting, sockets));
    for file in files {
        file.remove();
    }
    result
}

/// Listen wherever somebody is to find us; `files` is what to remove if the start fails.
fn open_sockets(
    options: &Options,
    connected: Option<OwnedFd>,
    files: &mut Vec<SocketFile>,
) -> Result<Sockets, LaunchError> {
    let mut sockets = Sockets {
        control: None,
        guest: connected.map(Guest::Connected),
    };
    if let Some(path) = &options.conf_path {
        let (file, listener) = control_socket(path)?;
        files.push(file);
        sockets.control = Some(listener);
    }
    if options.mode == Mode::Passt && sockets.guest.is_none() {
        let (file, guest) = Guest::listen(options.socket.path.as_deref())?;
        files.push(file);
        sockets.guest = Some(guest);
    }
    Ok(sockets)
}

/// `-c`: only its owner and root can connect, by its mode, 0600 from the first moment.
fn control_socket(path: &Path) -> Result<(SocketFile, OwnedFd), LaunchError> {
    let private = stat::Mode::from_bits_truncate(0o177);
    SocketFile::listen(path, Some(private)).map_err(|e| match e {
        SocketError::InUse => LaunchError::SocketInUse(path.to_owned()),
        SocketError::Kernel(reason) => LaunchError::ControlSocket {
            path: path.to_owned(),
            reason,
        },
    })
}

fn start(
    options: Options,
    style: Style,
    waiting: Waiting,
    sockets: Sockets,
) -> Result<std::convert::Infallible, LaunchError> {
    let identity = identity::choose(options.runas.as_ref())?;
    let pcap = open_files(&options, style)?;
    let machine = sockets.guest.as_ref().map(|guest| Machine {
        socket: guest.path().map(Path::to_owned),
        vhost_user: options.socket.vhost_user,
    });
    let attachment = attach::open(&options, identity, sockets.guest)?;
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
    let mut attached = attachment.begin(&resolved, &ports, (identity, needs))?;
    // Both sides bind at the same time.
    let bound = ports.bind()?;
    let link = attached.link()?;
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
    for line in summary(&resolved, machine.as_ref()).lines() {
        log::log!(level, "{line}");
    }
    let inputs = TranslatorInputs {
        link,
        agent: attached.supplied,
        pcap,
        nofile,
        needs,
    };
    let neighbours = follow_neighbours(&resolved);
    let mut forwarder =
        translator::start(translator_plan(resolved, inputs))?.ending(options.socket.one_off);
    let forwarding = bound.hand_over(&mut forwarder)?;
    // The monitor is long-lived and holds nothing it does not need.
    drop(options);
    become_monitor(
        Parts {
            forwarder,
            agent: attached.agent,
            command: attached.command,
            leash: attached.leash,
            watch: attached.watch,
            forwarding,
            neighbours,
            waiting,
            control: sockets.control,
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

/// Read the host's network and decide everything.
fn resolve(options: &Options) -> Result<Resolved, LaunchError> {
    let host = crate::netlink::query_host()?;
    let resolved = crate::config::resolve(options, &host, &Environment::read())?;
    for notice in &resolved.notices {
        log::log!(notice.level, "{}", notice.text);
    }
    Ok(resolved)
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
    link: (LinkPlan, Option<Mac>),
    agent: Option<OwnedFd>,
    pcap: Option<File>,
    nofile: u64,
    needs: Needs,
}

fn translator_plan(resolved: Resolved, inputs: TranslatorInputs) -> translator::Plan {
    let mut config = resolved.config;
    let (link, guest_mac) = inputs.link;
    config.guest_mac = guest_mac.or(config.guest_mac);
    let source_address = config.v4.as_ref().is_some_and(|v4| v4.outbound.is_some())
        || config.v6.as_ref().is_some_and(|v6| v6.outbound.is_some())
        // Who comes from 127.0.0.2 is seen as 127.0.0.2.
        || config.splice.inbound && (config.splice.to_loopback || config.splice.only);
    translator::Plan {
        link,
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
    agent: Option<monitor::Agent>,
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
