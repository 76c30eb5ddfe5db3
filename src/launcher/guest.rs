//! passt's side of the virtual machine: the socket it connects to, or the connection somebody else has made.
//!
//! With `--fd` the connection is a descriptor of our caller's, the only one that is not closed at the start. Without,
//! we listen at a path: `-s`, or the first of a numbered series that is free, which is where `qrap` looks. Who may
//! connect is for the umask to say, as everywhere: the machine may run as another user than we do.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, SockaddrStorage, getpeername, getsockopt, sockopt};

use super::error::{LaunchError, Reason};
use super::socket::{SocketError, SocketFile};
use crate::config::options::SocketOptions;
use crate::config::socket::{SOCKETS, default_socket};
use crate::sys::fd;

/// Where the machine comes from.
#[derive(Debug)]
pub(super) enum Guest {
    /// It connects here.
    Listener {
        /// As it was asked for.
        path: PathBuf,
        /// Listening and non-blocking.
        socket: OwnedFd,
    },
    /// It is connected.
    Connected(OwnedFd),
}

/// `--fd`: a descriptor of ours in place of our caller's, which can be closed then.
pub(super) fn inherited(options: &SocketOptions) -> Result<Option<OwnedFd>, LaunchError> {
    let Some(number) = options.fd else {
        return Ok(None);
    };
    let refused = |reason: Reason| LaunchError::GuestDescriptor { number, reason };
    let socket = fd::duplicate(number).map_err(|e| refused(e.into()))?;
    check(socket.as_fd()).map_err(|e| refused(e.into()))?;
    no_waiting(socket.as_fd()).map_err(|e| refused(e.into()))?;
    Ok(Some(socket))
}

/// From here on nobody waits for it.
fn no_waiting(socket: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// A stream, and connected.
fn check(socket: BorrowedFd<'_>) -> nix::Result<()> {
    if getsockopt(&socket, sockopt::SockType)? != SockType::Stream {
        return Err(Errno::ESOCKTNOSUPPORT);
    }
    getpeername::<SockaddrStorage>(socket.as_raw_fd()).map(drop)
}

impl Guest {
    /// Listen, at the path asked for or the first that is free.
    pub(super) fn listen(path: Option<&Path>) -> Result<(SocketFile, Self), LaunchError> {
        let at = |path: PathBuf| {
            let (file, socket) = SocketFile::listen(&path, None)?;
            Ok((file, Self::Listener { path, socket }))
        };
        let Some(path) = path else {
            let mut free = SOCKETS.map(default_socket);
            return free
                .find_map(|path| at(path).ok())
                .ok_or(LaunchError::NoFreeSocket);
        };
        at(path.to_owned()).map_err(|e| match e {
            SocketError::InUse => LaunchError::SocketInUse(path.to_owned()),
            SocketError::Kernel(reason) => LaunchError::GuestSocket {
                path: path.to_owned(),
                reason,
            },
        })
    }

    /// Where the machine is to connect to.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Listener { path, .. } => Some(path),
            Self::Connected(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn only_a_connection_is_taken_for_one() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        assert_eq!(check(ours.as_fd()), Ok(()));
        // It may have gone by now; that is no mistake of our caller's.
        drop(theirs);
        assert_eq!(check(ours.as_fd()), Ok(()));
        let (datagrams, _other) = UnixDatagram::pair().expect("pair");
        assert_eq!(check(datagrams.as_fd()), Err(Errno::ESOCKTNOSUPPORT));
        let path = std::env::temp_dir().join(format!("passt-guest-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("bind");
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(check(listener.as_fd()), Err(Errno::ENOTCONN));
        let null = std::fs::File::open("/dev/null").expect("open");
        assert_eq!(check(null.as_fd()), Err(Errno::ENOTSOCK));
    }

    #[test]
    fn what_is_not_open_is_named() {
        let options = SocketOptions {
            fd: Some(i32::MAX),
            ..SocketOptions::default()
        };
        let e = inherited(&options).expect_err("not open");
        assert_eq!(
            e.to_string(),
            format!(
                "Couldn't use --fd descriptor {}: Bad file descriptor",
                i32::MAX
            )
        );
    }
}
