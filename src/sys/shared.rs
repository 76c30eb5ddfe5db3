//! Descriptors and memory that another process shares with us: what they are, and what happens when they go away.
//!
//! Memory in a file can vanish under a mapping: whoever owns the file cuts it short, and the next access raises
//! SIGBUS. There is nothing to go on with then, but there is a way to end that says why.
#![allow(
    unsafe_code,
    reason = "fstat by number, a signal handler, recvmsg into memory nobody may refer to"
)]

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// What a descriptor is, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A regular file (also a memfd).
    File {
        /// In bytes.
        length: u64,
        /// Its block size in bytes; for one in huge pages, theirs.
        block: usize,
    },
    /// An anonymous inode: eventfd(2) and the like.
    Anonymous,
    /// Something else.
    Other,
}

/// What `fd` is. By the plain system call: C libraries differ in which one they use for it, and a filter has to name it.
///
/// # Errors
/// As fstat(2).
pub fn kind(fd: impl AsFd) -> io::Result<Kind> {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    let number = fd.as_fd().as_raw_fd();
    // SAFETY: `stat` is valid for the kernel to write to; on 64-bit Linux the C library's layout is the kernel's.
    if unsafe { libc::syscall(libc::SYS_fstat, number, stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zeroes is a valid value, and the kernel has filled it in.
    let stat = unsafe { stat.assume_init() };
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File {
            length: u64::try_from(stat.st_size).unwrap_or(0),
            block: usize::try_from(stat.st_blksize).unwrap_or(0),
        },
        0 => Kind::Anonymous,
        _ => Kind::Other,
    })
}

/// See to it that writing to an eventfd of somebody else's making does not wait.
///
/// # Errors
/// As fcntl(2).
pub fn never_wait(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// Bytes of memory that others may be using at the same time: room for the kernel to write to. No reference to
/// them is ever made.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Room<'a>(libc::iovec, PhantomData<&'a ()>);

impl Room<'_> {
    /// `len` bytes from `start` on.
    ///
    /// # Safety
    /// They must be mapped and writable, and no Rust reference to them exist, for as long as the value lives.
    #[must_use]
    pub const unsafe fn new(start: *mut u8, len: usize) -> Self {
        let iovec = libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        };
        Self(iovec, PhantomData)
    }

    /// How many bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.iov_len
    }

    /// None?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `n` bytes, or all if there are fewer.
    #[must_use]
    pub fn first(mut self, n: usize) -> Self {
        self.0.iov_len = self.len().min(n);
        self
    }

    /// Without the first `n` bytes, or nothing if there are no more.
    #[must_use]
    pub fn skip(mut self, n: usize) -> Self {
        let n = self.len().min(n);
        // Stays inside, or just behind the end.
        self.0.iov_base = self.0.iov_base.cast::<u8>().wrapping_add(n).cast();
        self.0.iov_len -= n;
        self
    }
}

/// Copy received bytes without consuming them into `rooms`, one after the other: [`super::stream::peek`] with many
/// buffers.
///
/// # Errors
/// As recvmsg(2); `WouldBlock` when there are none. `Ok(0)`: the peer has sent FIN and all was seen.
pub fn peek(fd: impl AsFd, rooms: &[Room<'_>]) -> io::Result<usize> {
    // SAFETY: msghdr is plain data for which all-zeroes is valid (no name, no control).
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    // The kernel only reads the vector itself.
    msg.msg_iov = rooms.as_ptr().cast_mut().cast();
    msg.msg_iovlen = rooms.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: a Room is an iovec; each is writable, and nobody refers to it, by the promise of its maker.
    let n = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut msg, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Exit status after the memory of the guest was taken away.
const STATUS: i32 = 1;

/// From now on, an access to mapped memory that has no file behind it any more ends the process with status 1 and a
/// line in the log ([`super::sigsys::set_report_socket`]).
///
/// # Errors
/// As sigaction(2).
pub fn end_when_memory_goes() -> io::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(on_sigbus),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler touches constants, and what the one for SIGSYS does.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

extern "C" fn on_sigbus(_: libc::c_int) {
    super::sigsys::report(b"\x01The guest's memory was taken away");
    super::process::exit_now(STATUS);
}
