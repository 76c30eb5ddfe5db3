//! What can go wrong before everything runs: one line each, in words callers may match on.

use std::io;
use std::path::PathBuf;

use crate::cli::CliError;
use crate::config::ConfigError;
use crate::config::socket::{SOCKETS, default_socket};
use crate::ipc::IpcError;
use crate::netlink::NetlinkError;
use crate::sandbox::SandboxError;
pub use crate::sys::reason::Reason;

/// Why there is no network. The program exits with status 1 after printing it.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Not in this version.
    #[error(transparent)]
    Cli(#[from] CliError),
    /// Neither a namespace nor a socket: not with a command line that was parsed.
    #[error("There is nothing to connect")]
    NoMachine,
    /// `-P`.
    #[error("Couldn't open PID file {}: {reason}", path.display())]
    PidFile {
        /// As given.
        path: PathBuf,
        /// The kernel's.
        reason: Reason,
    },
    /// `-c`.
    #[error("Couldn't listen at control socket {}: {reason}", path.display())]
    ControlSocket {
        /// As given.
        path: PathBuf,
        /// The kernel's.
        reason: Reason,
    },
    /// `-s`.
    #[error("Failed to bind UNIX domain socket {}: {reason}", path.display())]
    GuestSocket {
        /// As given.
        path: PathBuf,
        /// The kernel's.
        reason: Reason,
    },
    /// Neither `-s` nor `-F`, and nothing is left.
    #[error(
        "Failed to bind UNIX domain socket: {} to {} are all in use (choose another path with --socket)",
        default_socket(*SOCKETS.start()).display(), default_socket(*SOCKETS.end()).display()
    )]
    NoFreeSocket,
    /// `-F`.
    #[error("Couldn't use --fd descriptor {number}: {reason}")]
    GuestDescriptor {
        /// As given.
        number: i32,
        /// The kernel's.
        reason: Reason,
    },
    /// `-c` or `-s`, and somebody or something is there.
    #[error("Socket path {} already in use", .0.display())]
    SocketInUse(PathBuf),
    /// `-l`.
    #[error("Couldn't open log file {}: {reason}", path.display())]
    LogFile {
        /// As given.
        path: PathBuf,
        /// The kernel's.
        reason: Reason,
    },
    /// `-p`.
    #[error("Couldn't open capture file {}: {reason}", path.display())]
    CaptureFile {
        /// As given.
        path: PathBuf,
        /// The kernel's.
        reason: Reason,
    },
    /// The target's network namespace.
    #[error("Couldn't open network namespace {}: {reason}", path.display())]
    OpenNetns {
        /// As given, or made from the PID.
        path: PathBuf,
        /// The kernel's.
        reason: Reason,
    },
    /// The target's user namespace.
    #[error("Couldn't open user namespace {}: {reason}", path.display())]
    OpenUserns {
        /// As given, or made from the PID.
        path: PathBuf,
        /// The kernel's.
        reason: Reason,
    },
    /// What was opened is no namespace, or gone.
    #[error("Couldn't switch to pasta namespaces: {0}")]
    Join(Reason),
    /// What was opened is no namespace: the words that setns(2) would lead to, and which file it is.
    #[error("Couldn't switch to pasta namespaces: Invalid argument ({} is not a {kind} namespace)", path.display())]
    NotNamespace {
        /// As given.
        path: PathBuf,
        /// "network" or "user".
        kind: &'static str,
    },
    /// New namespaces for a command.
    #[error(
        "Couldn't create namespaces for the command: {0} (are user namespaces allowed? see sysctl user.max_user_namespaces, and kernel.apparmor_restrict_unprivileged_userns where AppArmor is used)"
    )]
    CreateNamespaces(Reason),
    /// The new user namespace's id maps.
    #[error("Couldn't map user and group ids of the new user namespace: {0}")]
    MapIds(Reason),
    /// `--runas`.
    #[error("Invalid --runas option: {0}: {1}")]
    RunAs(String, &'static str),
    /// Changing to an unprivileged user.
    #[error("Couldn't change to user {uid}, group {gid}: {reason}")]
    ChangeIds {
        /// Target.
        uid: u32,
        /// Target.
        gid: u32,
        /// The kernel's.
        reason: Reason,
    },
    /// Between root and somebody else.
    #[error("Couldn't keep capabilities across the change of user: {0}")]
    KeepCaps(String),
    /// Another process of ours could not do its part, and what it said about that is printed already.
    #[error("Couldn't start")]
    Reported,
    /// A system call that does not fail on a working system.
    #[error("Couldn't {0}: {1}")]
    System(&'static str, Reason),
    /// The host's network could not be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The host's network does not allow what the command line asks for.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Between our processes.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// Confinement of the monitor.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// `map_err` with a step's name.
pub(super) fn cannot<E: Into<Reason>>(what: &'static str) -> impl FnOnce(E) -> LaunchError {
    move |e| LaunchError::System(what, e.into())
}

/// One line for an error and everything that led to it: "what failed: why: why".
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        match cause.downcast_ref::<io::Error>() {
            Some(e) => text.push_str(&Reason::from(e).to_string()),
            None => text.push_str(&cause.to_string()),
        }
        source = cause.source();
    }
    // One error, one line: callers show the last one, or match on the first.
    // And no terminal obeys what a path or an interface is called.
    text.replace('\n', "; ").replace(char::is_control, "?")
}
