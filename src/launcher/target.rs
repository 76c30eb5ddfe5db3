//! The target namespaces: opened while we still may, and watched from before they are opened.
//!
//! The order makes a reused PID or a path that vanishes in between harmless: the watch is in place first, the
//! namespaces are opened, then the process is checked to be still alive.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::sys::statfs::{NSFS_MAGIC, PROC_SUPER_MAGIC, fstatfs, statfs};
use nix::unistd::Pid;

use super::error::{LaunchError, cannot};
use crate::monitor::Watch;
use crate::sys::process;

/// Namespaces to join.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// Always.
    pub(super) net: OwnedFd,
    /// Unless we are to stay in our own.
    pub(super) user: Option<OwnedFd>,
}

/// Open the namespaces of process `pid`; with `netns_only`, not its user namespace.
pub(super) fn of_process(
    pid: i32,
    userns: Option<&Path>,
    netns_only: bool,
) -> Result<(Namespaces, Watch), LaunchError> {
    let net = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let own = PathBuf::from(format!("/proc/{pid}/ns/user"));
    let watch = process::pidfd_open(Pid::from_raw(pid)).map_err(|e| LaunchError::OpenNetns {
        path: net.clone(),
        // A thread's id, or none: as a user sees it, the file in /proc is missing.
        reason: match e.raw_os_error() {
            Some(libc::ESRCH | libc::EINVAL) => Errno::ENOENT.into(),
            _ => e.into(),
        },
    })?;
    let user = match (userns, netns_only) {
        (Some(path), _) => Some(path),
        (None, false) => Some(own.as_path()),
        (None, true) => None,
    };
    let namespaces = open_both(&net, user)?;
    Ok((namespaces, Watch::Process(watch)))
}

/// Open the network namespace at `path`, and the user namespace at `userns` if given.
pub(super) fn at_path(
    path: &Path,
    userns: Option<&Path>,
) -> Result<(Namespaces, Watch), LaunchError> {
    let watch = watch_path(path);
    let namespaces = open_both(path, userns)?;
    Ok((namespaces, watch))
}

/// Open the namespaces of a child of ours, which stays until told; with `netns_only` it is in our own user
/// namespace.
pub(super) fn of_child(pid: Pid, netns_only: bool) -> Result<Namespaces, LaunchError> {
    let user = PathBuf::from(format!("/proc/{pid}/ns/user"));
    open_both(
        Path::new(&format!("/proc/{pid}/ns/net")),
        (!netns_only).then_some(user.as_path()),
    )
}

fn open_both(net: &Path, user: Option<&Path>) -> Result<Namespaces, LaunchError> {
    let open = |path: &Path| File::open(path).map(OwnedFd::from);
    let namespaces = Namespaces {
        net: open(net).map_err(|e| LaunchError::OpenNetns {
            path: net.to_owned(),
            reason: e.into(),
        })?,
        user: user
            .map(|path| {
                open(path).map_err(|e| LaunchError::OpenUserns {
                    path: path.to_owned(),
                    reason: e.into(),
                })
            })
            .transpose()?,
    };
    check(&namespaces.net, net, "network")?;
    if let (Some(file), Some(path)) = (&namespaces.user, user) {
        check(file, path, "user")?;
    }
    Ok(namespaces)
}

/// setns(2) would refuse it, too, but later and without saying which.
fn check(file: &OwnedFd, path: &Path, kind: &'static str) -> Result<(), LaunchError> {
    if fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC) {
        return Ok(());
    }
    Err(LaunchError::NotNamespace {
        path: path.to_owned(),
        kind,
    })
}

/// The best watch there is for `path`. A path that cannot be watched is not an error here: opening it
/// will tell.
fn watch_path(path: &Path) -> Watch {
    let Some(name) = path.file_name().map(OsString::from) else {
        return Watch::Nothing;
    };
    let directory = match path.parent() {
        None => Path::new("/"),
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
    };
    if statfs(directory).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC) {
        if let Some(pidfd) = process_of(path).and_then(|pid| process::pidfd_open(pid).ok()) {
            return Watch::Process(pidfd);
        }
    } else if let Some(inotify) = inotify(directory) {
        return Watch::Directory { inotify, name };
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match open(directory, flags, Mode::empty()) {
        Ok(directory) => Watch::Lookup { directory, name },
        Err(_) => Watch::Nothing,
    }
}

fn inotify(directory: &Path) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    inotify.add_watch(directory, Watch::events()).ok()?;
    Some(inotify)
}

/// The process whose entry in `/proc` `path` lies in.
fn process_of(path: &Path) -> Option<Pid> {
    let rest = path.strip_prefix("/proc").ok()?;
    let first = rest.components().next()?;
    let digits = std::str::from_utf8(first.as_os_str().as_bytes()).ok()?;
    let pid: i32 = digits.parse().ok()?;
    (pid > 0).then(|| Pid::from_raw(pid))
}

/// Is the namespace still there? Asked once after everything was opened.
pub(super) fn check_alive(watch: &Watch) -> Result<(), LaunchError> {
    if let Watch::Process(pidfd) = watch {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut table = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let n = poll(&mut table, PollTimeout::ZERO).map_err(cannot("poll"))?;
        if n > 0 {
            return Err(LaunchError::Join(Errno::ESRCH.into()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_read_from_procfs_paths_only() {
        let pid = |p: &str| process_of(Path::new(p)).map(Pid::as_raw);
        assert_eq!(pid("/proc/42/ns/net"), Some(42));
        assert_eq!(pid("/proc/42/task/43/ns/net"), Some(42));
        assert_eq!(pid("/proc/self/ns/net"), None);
        assert_eq!(pid("/run/netns/42"), None);
        assert_eq!(pid("/proc/0/ns/net"), None);
    }

    #[test]
    fn what_is_no_namespace_is_named() {
        let e = at_path(Path::new("/etc/passwd"), None).expect_err("a file");
        assert_eq!(
            e.to_string(),
            "Couldn't switch to pasta namespaces: Invalid argument (/etc/passwd is not a network namespace)"
        );
        let user = Some(Path::new("/dev/null"));
        let e = at_path(Path::new("/proc/self/ns/net"), user).expect_err("a device");
        assert!(
            e.to_string()
                .ends_with("(/dev/null is not a user namespace)")
        );
    }

    #[test]
    fn a_missing_process_reads_as_a_missing_file() {
        let e = of_process(i32::MAX, None, false).expect_err("no such process");
        assert_eq!(
            e.to_string(),
            format!(
                "Couldn't open network namespace /proc/{}/ns/net: No such file or directory",
                i32::MAX
            )
        );
    }
}
