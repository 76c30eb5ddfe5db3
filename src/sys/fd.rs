//! The descriptor table as a whole: what a process keeps when it starts and after it forks.
#![allow(
    unsafe_code,
    reason = "close_range, dup2 and --fd act on descriptors by number"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// First descriptor that is not standard input, output or error.
const FIRST: RawFd = 3;

/// Close every descriptor but 0, 1, 2 and those in `keep`.
///
/// For the first moments of the program, when nothing else is open that somebody owns, and of a forked
/// child, which never drops what it inherited: an owner of a closed descriptor must not be dropped.
pub fn keep_only(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = FIRST;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, RawFd::MAX)
}

/// A descriptor of our own, close-on-exec and above the standard ones, for the one our caller has given us as
/// `number`. That one stays open.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is not -1, and nothing closes it before the call below, which refuses a number that is not open.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// Make `fd` the descriptor `number`, which a program that we become inherits.
pub fn place(fd: OwnedFd, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        // Nobody owns it from here on.
        let _ = fd.into_raw_fd();
        return Ok(());
    }
    // SAFETY: `fd` is open; whatever had the number is replaced, and our callers own nothing else.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: the callers above leave no owner behind that would use these descriptors again.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Which of the three standard descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standard {
    /// 0 and 1.
    InputAndOutput,
    /// 0, 1 and 2.
    All,
}

/// Put /dev/null in the place of standard descriptors: they stay taken, so that no socket can ever get
/// number 2 and a stray message with it, and whoever waits for their end gets it.
pub fn redirect_to_null(which: Standard) -> io::Result<()> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let last = match which {
        Standard::InputAndOutput => 1,
        Standard::All => 2,
    };
    for fd in 0..=last {
        // SAFETY: both are open; the standard descriptors have no owner in Rust that would close them.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
