//! Clients of a UNIX stream socket: taken without waiting, known by their credentials, never waited for.
#![allow(
    unsafe_code,
    reason = "accept4(2) gives a number, which becomes an owned descriptor here"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, accept4, getsockopt, send, sockopt};

/// Whoever connected, as the kernel knew it at that moment (unix(7), `SO_PEERCRED`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Effective user id, in our user namespace.
    pub uid: u32,
    /// Process id, in our pid namespace; 0 if it is not in there.
    pub pid: i32,
}

/// The next client, non-blocking and close-on-exec; `None`: there is none (any more).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    match accept4(listener.as_raw_fd(), flags) {
        // SAFETY: accept4(2) has just made this descriptor, and nobody else has it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Who is at the other end.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(Peer {
        uid: credentials.uid(),
        pid: credentials.pid(),
    })
}

/// Send what there is room for now; `WouldBlock` if there is none. A peer that is gone is `EPIPE`, never a signal.
pub fn send_some(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    loop {
        match send(socket.as_raw_fd(), bytes, flags) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_client_is_taken_known_and_answered() {
        let name = format!("passt-unix-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("name");
        let listener = UnixListener::bind_addr(&address).expect("bind");
        listener.set_nonblocking(true).expect("non-blocking");
        assert!(accept(listener.as_fd()).expect("nobody").is_none());
        let mut client = UnixStream::connect_addr(&address).expect("connect");
        let ours = accept(listener.as_fd()).expect("accept").expect("somebody");
        let who = peer(ours.as_fd()).expect("credentials");
        assert_eq!(who.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(u32::try_from(who.pid), Ok(std::process::id()));
        assert_eq!(send_some(ours.as_fd(), b"hello").expect("room"), 5);
        let mut buf = [0; 5];
        client.read_exact(&mut buf).expect("read");
        assert_eq!(&buf, b"hello");
        let mut sent = 0;
        let e = loop {
            match send_some(ours.as_fd(), &[0; 65536]) {
                Ok(n) => sent += n,
                Err(e) => break e,
            }
        };
        assert!(sent > 0);
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        drop(client);
        let e = send_some(ours.as_fd(), b"x").expect_err("gone");
        assert_eq!(e.raw_os_error(), Some(libc::EPIPE));
    }
}
