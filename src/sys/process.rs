//! Processes: cloning into namespaces, pidfds, process attributes nix does not wrap.
#![allow(
    unsafe_code,
    reason = "clone, pidfd_open and prctl have no safe wrapper"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// A child of ours.
#[derive(Debug)]
pub struct Child {
    /// Its process id in our pid namespace.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Killed(u8),
}

impl Child {
    /// How it ended, if it has; the process is reaped then, so this answers once.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        wait(self.pidfd.as_fd(), WaitPidFlag::WNOHANG)
    }

    /// Wait until it ends.
    #[must_use]
    pub fn wait(&self) -> Option<Ended> {
        wait(self.pidfd.as_fd(), WaitPidFlag::empty())
    }
}

fn wait(pidfd: BorrowedFd<'_>, flags: WaitPidFlag) -> Option<Ended> {
    loop {
        return match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED | flags) {
            Err(Errno::EINTR) => continue,
            Ok(WaitStatus::Exited(_, status)) => Some(Ended::Exited(
                u8::try_from(status & 0xff).unwrap_or(u8::MAX),
            )),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Some(Ended::Killed(u8::try_from(signal as i32).unwrap_or(0)))
            }
            // A real-time signal, which nix cannot name.
            Err(Errno::EINVAL) => Some(Ended::Killed(0)),
            _ => None,
        };
    }
}

/// Reap what has ended, children and adopted ones; how `main` ended, if it was among them.
#[must_use]
pub fn reap(main: Pid) -> Option<Ended> {
    loop {
        let mut status = 0;
        // Not nix's: it has no name for a real-time signal, and answers with an error instead of the process.
        // SAFETY: `status` is valid for the kernel to write to.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            0 => return None,
            -1 if Errno::last() == Errno::ECHILD => return Some(Ended::Killed(0)),
            _ if pid != main.as_raw() => {}
            _ if libc::WIFEXITED(status) => {
                let status = libc::WEXITSTATUS(status) & 0xff;
                return Some(Ended::Exited(u8::try_from(status).unwrap_or(u8::MAX)));
            }
            _ => {
                let signal = u8::try_from(libc::WTERMSIG(status)).unwrap_or(0);
                return Some(Ended::Killed(signal));
            }
        }
    }
}

/// Which side of a [`clone()`] we are on.
#[derive(Debug)]
pub enum Side {
    /// The child: no other thread exists and every descriptor is a duplicate.
    Child,
    /// The parent.
    Parent(Child),
}

/// clone(2) as fork with `namespaces`, and a pidfd for the parent. The process must have one thread.
pub fn clone(namespaces: CloneFlags) -> io::Result<Side> {
    let flags = namespaces.bits() | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: libc::c_int = -1;
    // The order of the last two arguments differs between architectures; both are zero. A null stack is
    // the parent's stack, copied on write, as in fork.
    // SAFETY: without CLONE_VM the child has its own copy of all memory; `pidfd` outlives the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            0 as libc::c_long,
            &raw mut pidfd,
            0 as libc::c_long,
            0 as libc::c_long,
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(Side::Child),
        Ok(pid) if pid > 0 => Ok(Side::Parent(Child {
            pid: Pid::from_raw(pid),
            // SAFETY: the kernel has just installed this descriptor in our table for us alone.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// pidfd_open(2): a descriptor that is readable when `pid` has ended.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: two integers in, one descriptor or an error out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just installed this descriptor in our table for us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// End now: no destructors, no exit handlers (they belong to the process we were forked from).
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Die with `signal` when the parent dies. Cleared by a change of ids, so call it after.
pub fn die_with_parent(signal: Signal) -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(signal)?)
}

/// Name of this process in ps(1), at most 15 bytes; whoever looks at a system sees who does what.
pub fn set_name(name: &CStr) {
    // Only fails for a bad pointer.
    let _ = nix::sys::prctl::set_name(name);
}

/// Drop every capability the kernel knows from the bounding set. Needs CAP_SETPCAP.
pub fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // Past the last capability of this kernel.
            Err(e) if capability > 0 && e.raw_os_error() == Some(libc::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// No special treatment of uid 0, ids changes keep no capability, no ambient capability, for ever.
pub fn lock_securebits() -> io::Result<()> {
    let bits = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    prctl(libc::PR_SET_SECUREBITS, libc::c_long::from(bits))
}

/// PR_SET_MDWE (Linux 6.3): no memory that is writable becomes executable.
pub fn refuse_exec_gain() -> io::Result<()> {
    prctl(
        libc::PR_SET_MDWE,
        libc::c_long::from(libc::PR_MDWE_REFUSE_EXEC_GAIN),
    )
}

fn prctl(option: libc::c_int, argument: libc::c_long) -> io::Result<()> {
    let zero: libc::c_long = 0;
    // SAFETY: the options used in this file take integers only.
    match unsafe { libc::prctl(option, argument, zero, zero, zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whoever ignores SIGCHLD has no children to wait for, and that is inherited: our caller must not decide it.
pub fn restore_sigchld() {
    // SAFETY: SIG_DFL installs no handler, so nothing can run in a bad moment.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// The standard library ignores SIGPIPE; programs we execute expect the default.
pub fn restore_sigpipe() {
    // SAFETY: SIG_DFL installs no handler, so nothing can run in a bad moment.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Unmap the pages of program text this process has touched. Those still needed come back, one by one and from
/// memory; what only the start needed no longer counts as resident.
pub fn forget_text() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps.lines().filter_map(text_range) {
        let at = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a mapping of file contents that nothing can have written to, being
        // executable; the kernel reads the same contents again when they are next needed.
        unsafe { libc::madvise(at, end.saturating_sub(start), libc::MADV_DONTNEED) };
    }
}

/// Address range of a line of `/proc/PID/maps`, if it is program text of a file.
fn text_range(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let text = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let number = |digits| usize::from_str_radix(digits, 16).ok();
    Some((number(start)?, number(end)?)).filter(|_| text)
}

/// Tell the allocator never to give memory back: that would be a system call the filters forbid.
pub fn keep_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers; a refused setting changes nothing.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Have the allocator keep so many bytes at hand, for what is allocated when the filters forbid to ask for more.
/// [`keep_heap`] comes first.
pub fn reserve_heap(bytes: usize) {
    /// Larger ones are mappings of their own, and given back at once: mallopt(3), M_MMAP_THRESHOLD.
    const BLOCK: usize = 64 << 10;
    let blocks: Vec<Vec<u8>> = (0..bytes.div_ceil(BLOCK))
        .map(|_| Vec::with_capacity(BLOCK))
        .collect();
    drop(std::hint::black_box(blocks));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_program_text_of_files_is_forgotten() {
        let range = |line| text_range(line);
        assert_eq!(
            range("1000-3000 r-xp 00001000 08:01 42      /usr/bin/pasta"),
            Some((0x1000, 0x3000))
        );
        assert_eq!(
            range("1000-3000 r--p 00001000 08:01 42 /usr/bin/pasta"),
            None
        );
        assert_eq!(
            range("1000-3000 rwxp 00001000 08:01 42 /usr/bin/pasta"),
            None
        );
        assert_eq!(range("1000-3000 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!(range("1000-3000 r-xp 00000000 00:00 0"), None);
        assert_eq!(range("nonsense"), None);
        forget_text();
        assert_eq!(range(""), None);
    }
}
