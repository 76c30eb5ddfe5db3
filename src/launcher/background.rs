//! Going into the background: the caller's process waits until everything is usable.
//!
//! The fork comes first, before anything is opened, so that the process that stays is the one that
//! did the work. The caller's process only waits: one byte means success, end of file means that the
//! other one has ended and has already said why on standard error.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::unistd::{pipe2, setsid};

use super::error::{LaunchError, cannot};
use super::files::PidFile;
use crate::sys::process::{Ended, Side, clone};

/// Which process we are after the fork.
pub(super) enum Fork {
    /// The one the caller waits for; this is its exit status.
    Caller(ExitCode),
    /// The one that stays, in a session of its own, with the end of the pipe to report to.
    Daemon(File),
}

/// Fork and, in the caller's process, wait.
pub(super) fn fork(pid_file: Option<&PidFile>) -> Result<Fork, LaunchError> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(cannot("create a pipe"))?;
    match clone(CloneFlags::empty()).map_err(cannot("fork"))? {
        Side::Child => {
            drop(read);
            setsid().map_err(cannot("create a session"))?;
            Ok(Fork::Daemon(File::from(write)))
        }
        Side::Parent(child) => {
            drop(write);
            if ready(read) {
                return Ok(Fork::Caller(ExitCode::SUCCESS));
            }
            let status = match child.wait() {
                Some(Ended::Exited(status)) if status != 0 => status,
                _ => 1,
            };
            if let Some(file) = pid_file {
                file.remove();
            }
            Ok(Fork::Caller(ExitCode::from(status)))
        }
    }
}

fn ready(pipe: OwnedFd) -> bool {
    let mut byte = [0];
    matches!(File::from(pipe).read(&mut byte), Ok(1))
}
