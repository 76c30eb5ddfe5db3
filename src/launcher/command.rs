//! pasta's command: born in new namespaces before the network exists, executed when it is ready.
//!
//! The child is cloned directly into its namespaces, so that it is both our own child (its exit status
//! is ours) and the first process of its pid namespace. It waits twice: for its id maps, and for the
//! network. Then it is the small parent of the command:
//! the kernel shields a first process from signals it has no handler for, so that Ctrl-C would not end an
//! ordinary program; somebody has to reap orphans; and somebody has to notice the end of the monitor, which is
//! the end of the network. (The kernel's parent-death signal would not do: it is sent with the rights of the
//! dying process, and the monitor has none over a command that runs as somebody else.) The command inherits nothing of
//! ours but standard input, output and error, stays in our process group, and so keeps the terminal.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Gid, Pid, Uid, execvp, sethostname, setresgid, setresuid};

use super::error::{LaunchError, Reason, cannot};
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
    leash: File,
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
                let mut leash = File::from(ours);
                leash.write_all(&[1]).map_err(cannot("start the command"))?;
                Ok(Self { child, leash })
            }
        }
    }

    /// Its process id.
    pub(super) const fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Tell it the host name of its UTS namespace and hand over its leash: one more byte makes it go,
    /// end of file makes it end.
    pub(super) fn name_host(self, name: Option<&str>) -> Result<(Child, File), LaunchError> {
        let mut go = self.leash;
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
    let mut socket = File::from(socket);
    let status = match prepare(plan, &mut socket) {
        Ok(true) => attend(plan, &socket),
        // We were never released: whoever did not has said why.
        Ok(false) => 1,
        Err(what) => say(&what),
    };
    exit_now(status)
}

/// Everything up to the release; false if it never comes.
fn prepare(plan: &Plan<'_>, socket: &mut File) -> Result<bool, String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("Couldn't {what}: {e}");
    keep_only(&[socket.as_fd()]).map_err(|e| failed("close descriptors", &Reason::from(e)))?;
    let mut byte = [0];
    if socket.read_exact(&mut byte).is_err() {
        return Ok(false);
    }
    if !plan.netns_only {
        let root = (Uid::from_raw(0), Gid::from_raw(0));
        setresgid(root.1, root.1, root.1).map_err(|e| failed("become root inside", &e.desc()))?;
        setresuid(root.0, root.0, root.0).map_err(|e| failed("become root inside", &e.desc()))?;
    }
    part_mounts().map_err(|e| failed("make mounts private", &e.desc()))?;
    if !plan.no_pidns {
        // In a container parts of /proc are hidden, and a new one, which would show them, is refused.
        let what = "mount /proc in the new pid namespace";
        let _ = mount_proc().map_err(|e| say(&failed(what, &e.desc())));
    }
    // Whether groups may use ping sockets is a convenience; where it cannot be set, ping needs privilege.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
    if socket.read_exact(&mut byte).is_err() {
        return Ok(false);
    }
    let mut name = vec![0; usize::from(byte[0])];
    if socket.read_exact(&mut name).is_err() {
        return Ok(false);
    }
    if !name.is_empty() {
        let name = OsString::from_vec(name);
        // Seccomp filters of containers may forbid that to all but real root.
        let _ = sethostname(&name).map_err(|e| say(&failed("set the host name", &e.desc())));
    }
    Ok(socket.read_exact(&mut byte).is_ok())
}

/// Without a user namespace of its own, what is mounted here, by us or by the command, would appear outside.
fn part_mounts() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    let part = |place| mount(NONE, place, NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE);
    // In a chroot the root need not be a mount. /proc is, and it is the one that matters to us.
    part("/").or_else(|_| part("/proc"))
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

/// Run the command, reap everything, end with its status; or end it when the monitor has ended.
fn attend(plan: &Plan<'_>, leash: &File) -> i32 {
    let command = match clone(CloneFlags::empty()) {
        Err(e) => return say(&format!("Couldn't fork: {}", Reason::from(e))),
        Ok(Side::Child) => exit_now(execute(plan.command)),
        Ok(Side::Parent(Child { pid, pidfd })) => {
            drop(pidfd);
            pid
        }
    };
    // What a terminal sends is for the command.
    let _ = SigSet::all().thread_block();
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let Ok(ended) = SignalFd::with_flags(&ended, flags) else {
        return 1;
    };
    // Nobody waits for the end of a pipe because of us.
    let _ = keep_only(&[leash.as_fd(), ended.as_fd()]);
    let _ = redirect_to_null(Standard::All);
    loop {
        match process::reap(command) {
            Some(Ended::Exited(status)) => return i32::from(status),
            Some(Ended::Killed(signal)) => return 128 + i32::from(signal),
            None => {}
        }
        let mut table = [
            PollFd::new(leash.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut table, PollTimeout::NONE);
        if table[0].any().unwrap_or(false) {
            // Without a pid namespace the end of this process ends nobody else.
            let _ = kill(command, Signal::SIGTERM);
            return 1;
        }
        while let Ok(Some(_)) = ended.read_signal() {}
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
    let _ = writeln!(io::stderr(), "{}", text.replace(char::is_control, "?"));
    1
}
