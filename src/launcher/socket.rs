//! Listening sockets in the file system: made before any change of user, with the caller's rights.
//!
//! What an instance that was killed has left behind is replaced; what somebody has bound, or what is no socket,
//! stays. The question is asked with a socket of another kind, so that nobody has to answer it: a client of a moment
//! would be the only one of an instance that serves one. The process that listens later cannot open or remove files:
//! the socket stays behind at the end, refuses connections, and the next instance replaces it. A start that fails
//! removes it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};

use super::error::Reason;

/// Why there is no socket.
#[derive(Debug)]
pub(super) enum SocketError {
    /// Somebody or something is there.
    InUse,
    /// As the kernel says.
    Kernel(Reason),
}

impl From<io::Error> for SocketError {
    fn from(e: io::Error) -> Self {
        Self::Kernel(e.into())
    }
}

/// The file of a listening socket, removed again unless the start succeeds.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// By the time of a removal the path may be somebody else's.
    identity: Option<Identity>,
}

impl SocketFile {
    /// Listen at `path`, without waiting for clients: the file, and the socket. Its mode lacks the bits of `mask` from
    /// the first moment; `None`: those of our caller's umask.
    pub(super) fn listen(path: &Path, mask: Option<Mode>) -> Result<(Self, OwnedFd), SocketError> {
        let listener = match bind(path, mask) {
            Err(e) if e.raw_os_error() == Some(Errno::EADDRINUSE as i32) => {
                if !stale(path) {
                    return Err(SocketError::InUse);
                }
                std::fs::remove_file(path)?;
                bind(path, mask)?
            }
            other => other?,
        };
        listener.set_nonblocking(true)?;
        let identity = identity(path);
        // The removal may happen in another directory than the start.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok((Self { path, identity }, listener.into()))
    }

    /// The start has failed: leave nothing behind.
    pub(super) fn remove(&self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode, and since when it has been that: inodes are used again.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> Option<Identity> {
    let m = path.symlink_metadata().ok()?;
    Some((m.dev(), m.ino(), m.ctime(), m.ctime_nsec()))
}

fn bind(path: &Path, mask: Option<Mode>) -> io::Result<UnixListener> {
    let before = mask.map(umask);
    let listener = UnixListener::bind(path);
    if let Some(before) = before {
        umask(before);
    }
    listener
}

/// A socket, itself and not by way of a symbolic link, that nobody has bound any more: of a live one of another kind
/// the kernel says EPROTOTYPE.
fn stale(path: &Path) -> bool {
    let socket = path
        .symlink_metadata()
        .is_ok_and(|m| m.file_type().is_socket());
    let asked = || UnixDatagram::unbound()?.connect(path);
    socket && asked().is_err_and(|e| e.raw_os_error() == Some(Errno::ECONNREFUSED as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_has_bound_is_replaced_and_nobody_notices_the_question() {
        let base = std::env::temp_dir().join(format!("passt-socket-{}", std::process::id()));
        std::fs::create_dir(&base).expect("mkdir");
        let path = base.join("socket");
        let private = Some(Mode::from_bits_truncate(0o177));
        let (file, listener) = SocketFile::listen(&path, private).expect("made");
        let metadata = path.symlink_metadata().expect("there");
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        let e = SocketFile::listen(&path, private).expect_err("somebody listens");
        assert!(matches!(e, SocketError::InUse));
        let nobody = crate::sys::unix::accept(std::os::fd::AsFd::as_fd(&listener));
        assert!(nobody.expect("accept").is_none());
        drop(listener);
        let (again, _listener) = SocketFile::listen(&path, None).expect("stale");
        file.remove();
        assert!(path.exists(), "it is another's now");
        again.remove();
        assert!(!path.exists());

        let link = base.join("link");
        std::os::unix::fs::symlink(&path, &link).expect("symlink");
        assert!(SocketFile::listen(&link, None).is_err());
        std::fs::write(&path, "kept").expect("file");
        assert!(SocketFile::listen(&path, None).is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"kept");
        let e = SocketFile::listen(&base.join("no/socket"), None).expect_err("no directory");
        let SocketError::Kernel(reason) = e else {
            panic!("{e:?}");
        };
        assert_eq!(reason.to_string(), "No such file or directory");
        std::fs::remove_dir_all(&base).expect("clean up");
    }
}
