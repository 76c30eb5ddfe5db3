//! The control socket in the file system: made before any change of user, with the caller's rights.
//!
//! Only its owner and root can connect: its mode is 0600 from the first moment, by the umask it is made under. What
//! an instance that was killed has left behind is replaced; what somebody listens on, or what is no socket, stays.
//! The monitor, which serves it, cannot open or remove files: the socket stays behind at the end,
//! refuses connections, and the next instance replaces it. A start that fails removes it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};

use super::error::LaunchError;

/// Nothing for group and others, nothing to execute.
const MASK: Mode = Mode::from_bits_truncate(0o177);

/// A control socket, removed again unless the start succeeds.
#[derive(Debug)]
pub(super) struct ControlSocket {
    path: PathBuf,
    /// By the time of a removal the path may be somebody else's.
    identity: Option<Identity>,
}

impl ControlSocket {
    /// Listen at `path`: the socket, and what is needed to remove it again.
    pub(super) fn create(path: &Path) -> Result<(Self, OwnedFd), LaunchError> {
        let failed = |e: io::Error| LaunchError::ControlSocket {
            path: path.to_owned(),
            reason: e.into(),
        };
        let listener = match bind(path) {
            Err(e) if e.raw_os_error() == Some(Errno::EADDRINUSE as i32) => {
                if !stale(path) {
                    return Err(LaunchError::SocketInUse(path.to_owned()));
                }
                std::fs::remove_file(path).map_err(failed)?;
                bind(path).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        listener.set_nonblocking(true).map_err(failed)?;
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

fn bind(path: &Path) -> io::Result<UnixListener> {
    let before = umask(MASK);
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// A socket, itself and not by way of a symbolic link, that nobody listens on.
fn stale(path: &Path) -> bool {
    let socket = path
        .symlink_metadata()
        .is_ok_and(|m| m.file_type().is_socket());
    socket
        && UnixStream::connect(path)
            .is_err_and(|e| e.raw_os_error() == Some(Errno::ECONNREFUSED as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_listens_on_is_replaced() {
        let base = std::env::temp_dir().join(format!("passt-control-{}", std::process::id()));
        std::fs::create_dir(&base).expect("mkdir");
        let path = base.join("socket");
        let (socket, listener) = ControlSocket::create(&path).expect("made");
        let metadata = path.symlink_metadata().expect("there");
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        let e = ControlSocket::create(&path).expect_err("somebody listens");
        assert_eq!(
            e.to_string(),
            format!("Socket path {} already in use", path.display())
        );
        drop(listener);
        let (again, _listener) = ControlSocket::create(&path).expect("stale");
        socket.remove();
        assert!(path.exists(), "it is another's now");
        again.remove();
        assert!(!path.exists());

        let link = base.join("link");
        std::os::unix::fs::symlink(&path, &link).expect("symlink");
        assert!(ControlSocket::create(&link).is_err());
        std::fs::write(&path, "kept").expect("file");
        assert!(ControlSocket::create(&path).is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"kept");
        let e = ControlSocket::create(&base.join("no/socket")).expect_err("no directory");
        assert!(
            e.to_string().ends_with(": No such file or directory"),
            "{e}"
        );
        std::fs::remove_dir_all(&base).expect("clean up");
    }
}
