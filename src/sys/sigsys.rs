//! Reporting a forbidden system call (`--trace`): seccomp's trap action raises SIGSYS, the handler
//! says which call it was and ends the process.
#![allow(
    unsafe_code,
    reason = "a signal handler reads siginfo and calls the kernel directly"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Where the report goes; -1: nowhere.
static REPORT_TO: AtomicI32 = AtomicI32::new(-1);

/// Exit status of a process that reported: 128 + SIGSYS, as a shell would show the kill.
const STATUS: i32 = 128 + libc::SIGSYS;

/// Reports go to `socket`, one message each, in the form of a log line (level byte, then text). The
/// descriptor must stay open until the process ends.
pub fn set_report_socket(socket: BorrowedFd<'_>) {
    REPORT_TO.store(socket.as_raw_fd(), Ordering::Relaxed);
}

/// Install the handler.
pub fn report_and_exit() -> io::Result<()> {
    let action = SigAction::new(
        SigHandler::SigAction(on_sigsys),
        SaFlags::SA_SIGINFO,
        SigSet::empty(),
    );
    // SAFETY: the handler only reads its argument, an atomic and its own stack.
    unsafe { sigaction(Signal::SIGSYS, &action) }?;
    Ok(())
}

extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // For SIGSYS the kernel fills { call address: pointer, syscall: int, arch: uint } behind the three
    // leading integers, aligned to a pointer (sigaction(2)).
    const OFFSET: usize = 16 + size_of::<*const ()>();
    // SAFETY: siginfo_t is 128 bytes, so the offset stays inside it.
    let field = unsafe { info.byte_add(OFFSET) }.cast::<i32>();
    // SAFETY: the kernel has filled the structure in.
    let number = unsafe { field.read_unaligned() };
    let mut line = *b"\x01forbidden system call number 0000";
    let mut rest = number.unsigned_abs();
    for digit in line.iter_mut().rev().take(4) {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    report(&line);
    super::process::exit_now(STATUS);
}

/// Report from a signal handler: a level byte, then text.
pub(super) fn report(line: &[u8]) {
    // SAFETY: the buffer is valid for its length; a bad descriptor is an ignored error.
    unsafe {
        libc::send(
            REPORT_TO.load(Ordering::Relaxed),
            line.as_ptr().cast(),
            line.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        );
    }
}
