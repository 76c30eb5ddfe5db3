//! pasta's command: born in new namespaces before the network exists, executed when it is ready.
//!
//! The child is cloned directly into its namespaces, so that it is both our own child (its exit status
//! is ours) and the first process of its pid namespace. It waits twice: for its id maps, and for the
//! network. Then it becomes the command, or, with a pid namespace, the small parent of the command:
//! the kernel shields a first process from signals it has no handler for, so that Ctrl-C would not end an
//! ordinary program; and somebody has to reap orphans. The command inherits nothing of ours but standard
//! input, output and error, stays in our process group, and so keeps the terminal.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Gid, Pid, Uid, execvp, sethostname, setresgid, setresuid};

use super::error::{LaunchError, cannot};
use crate::sys::fd::{Standard, keep_only, redirect_to_null};
use crate::sys::ids::{self, Ids};
use crate::sys::process::{self, Child, Ended, Side, clone, exit_now};

/// What to run, decided before the fork.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Command and arguments; empty: the user's shell.
    pub(super) command: &'a [OsString],
    /// `--no-pidns`.
    pub(super) no_pidns: bool,
    /// `--netns-only`: no user namespace; the command keeps our ids.
    pub(super) netns_only: bool,
    /// Root inside is this user outside.
    pub(super) ids: Ids,
    /// We may leave setgroups(2) working inside.
    pub(super) privileged: bool,
}

/// The child, waiting for the network.
#[derive(Debug)]
pub(super) struct Command {
    /// The process; its exit status is the command's.
    pub(super) child: Child,
    go: File,
}

/// Longest host name of a UTS namespace in bytes (uname(2)).
const HOSTNAME_MAX: usize = 64;

impl Command {
    /// Clone the child into its namespaces and give it its ids.
    pub(super) fn start(plan: &Plan<'_>) -> Result<Self, LaunchError> {
        let mut namespaces = CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNS;
        if !plan.netns_only {
            namespaces |= CloneFlags::CLONE_NEWUSER;
        }
        if !plan.no_pidns {
            namespaces |= CloneFlags::CLONE_NEWPID;
        }
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(cannot("create a socket pair"))?;
        match clone(namespaces).map_err(|e| LaunchError::CreateNamespaces(e.into()))? {
            Side::Child => run(plan, theirs),
            Side::Parent(child) => {
                drop(theirs);
                if !plan.netns_only {
                    ids::map_root_of(child.pid, plan.ids, plan.privileged)
                        .map_err(|e| LaunchError::MapIds(e.into()))?;
                }
                let mut go = File::from(ours);
                go.write_all(&[1]).map_err(cannot("start the command"))?;
                Ok(Self { child, go })
            }
        }
    }

    /// Its process id.
    pub(super) const fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Tell it the host name of its UTS namespace and hand over what makes it go: one more byte.
    pub(super) fn name_host(self, name: Option<&str>) -> Result<(Child, File), LaunchError> {
        let mut go = self.go;
        let name = name.unwrap_or_default().as_bytes();
        let name = name.get(..HOSTNAME_MAX).unwrap_or(name);
        let len = u8::try_from(name.len()).unwrap_or(0);
        go.write_all(&[len])
            .and_then(|()| go.write_all(name))
            .map_err(cannot("start the command"))?;
        Ok((self.child, go))
    }
}

/// The child's life. Ends in the command, or with the command's status.
fn run(plan: &Plan<'_>, socket: OwnedFd) -> ! {
    let status = match prepare(plan, socket) {
        Ok(Some(_)) if plan.no_pidns => execute(plan.command),
        Ok(Some(leash)) => parent_of_command(plan, &leash),
        // We were never released: whoever did not has said why.
        Ok(None) => 1,
        Err(what) => say(&what),
    };
    exit_now(status)
}

/// Everything up to the release; the socket it came by, or `None` if it never comes.
fn prepare(plan: &Plan<'_>, socket: OwnedFd) -> Result<Option<File>, String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("Couldn't {what}: {e}");
    keep_only(&[socket.as_fd()]).map_err(|e| failed("close descriptors", &e))?;
    let mut socket = File::from(socket);
    let mut byte = [0];
    if socket.read_exact(&mut byte).is_err() {
        return Ok(None);
    }
    if !plan.netns_only {
        let root = (Uid::from_raw(0), Gid::from_raw(0));
        setresgid(root.1, root.1, root.1).map_err(|e| failed("become root inside", &e.desc()))?;
        setresuid(root.0, root.0, root.0).map_err(|e| failed("become root inside", &e.desc()))?;
    }
    // Changing ids has cleared an earlier setting. Without a pid namespace of its own the command is
    // asked to end; with one, its first process goes and everything in it.
    let signal = if plan.no_pidns {
        Signal::SIGTERM
    } else {
        Signal::SIGKILL
    };
    process::die_with_parent(signal).map_err(|e| failed("set the parent-death signal", &e))?;
    if !plan.no_pidns {
        mount_proc().map_err(|e| failed("mount /proc in the new pid namespace", &e.desc()))?;
    }
    // Whether groups may use ping sockets is a convenience; where it cannot be set, ping needs privilege.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
    if socket.read_exact(&mut byte).is_err() {
        return Ok(None);
    }
    let mut name = vec![0; usize::from(byte[0])];
    if socket.read_exact(&mut name).is_err() {
        return Ok(None);
    }
    if !name.is_empty() {
        let name = OsString::from_vec(name);
        sethostname(&name).map_err(|e| failed("set the host name", &e.desc()))?;
    }
    Ok(socket.read_exact(&mut byte).is_ok().then_some(socket))
}

fn mount_proc() -> nix::Result<()> {
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
}

/// First process of the pid namespace: run the command, reap everything, end with its status.
///
/// The monitor holds the other end of `leash`. When that closes we end, and with us all of the namespace. The
/// parent-death signal cannot do this: the monitor's Landlock scope keeps signals of its own in, even that one.
fn parent_of_command(plan: &Plan<'_>, leash: &File) -> i32 {
    match clone(CloneFlags::empty()) {
        Err(e) => say(&format!("Couldn't fork: {e}")),
        Ok(Side::Child) => exit_now(execute(plan.command)),
        Ok(Side::Parent(child)) => {
            let Child { pid, pidfd } = child;
            drop(pidfd);
            // Nobody waits for the end of a pipe because of us.
            let _ = redirect_to_null(Standard::All);
            match process::reap_until(pid, leash.as_fd()) {
                Ended::Exited(status) => i32::from(status),
                Ended::Killed(signal) => 128 + i32::from(signal),
            }
        }
    }
}

/// Become the command; returns only if that fails, with the status a shell would give.
fn execute(command: &[OsString]) -> i32 {
    process::restore_sigpipe();
    let (program, arguments) = match command {
        [] => login_shell(),
        [program, ..] => (program.clone(), command.to_vec()),
    };
    let c = |s: &OsStr| CString::new(s.as_bytes());
    let arguments: Result<Vec<_>, _> = arguments.iter().map(|a| c(a)).collect();
    let errno = match (c(&program), arguments) {
        (Ok(program), Ok(arguments)) => match execvp(&program, &arguments) {
            Err(e) => e,
            Ok(never) => match never {},
        },
        // Arguments of a process contain no NUL, and neither does its environment.
        _ => Errno::EINVAL,
    };
    say(&format!(
        "Couldn't run {}: {}",
        Path::new(&program).display(),
        errno.desc()
    ));
    if errno == Errno::ENOENT { 127 } else { 126 }
}

/// `$SHELL`, else /bin/sh, with the leading dash that makes it a login shell.
fn login_shell() -> (OsString, Vec<OsString>) {
    let shell = std::env::var_os("SHELL")
        .filter(|s| !s.is_empty())
        .unwrap_or_else(|| OsString::from("/bin/sh"));
    let mut name = OsString::from("-");
    name.push(Path::new(&shell).file_name().unwrap_or(&shell));
    (shell, vec![name])
}

fn say(text: &str) -> i32 {
    let _ = writeln!(io::stderr(), "{text}");
    1
}
