//! Sockets of the namespace in stock: made here, connected by the forwarder.
//!
//! A socket belongs to the network it was made in, whoever uses it later and from wherever. So connections from the
//! host's loopback to the namespace's need no privilege and no request each: the forwarder asks for a batch when its
//! stock runs low. What it can do with them is connect to addresses of the namespace, which is its job. They
//! are neither bound nor listening, and Landlock and the filter on its side keep it that way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;

use crate::ipc::{MAX_DESCRIPTORS, SocketKind, Supply};
use crate::sys::{datagram, stream};

/// Make a batch of `most` sockets and hand it over. Every question has an answer, be it that not a single socket is to be had: the
/// forwarder asks once at a time.
pub(super) fn supply<E>(
    kind: SocketKind,
    most: u8,
    send: impl FnOnce(Supply, &[BorrowedFd<'_>]) -> Result<(), E>,
) -> Result<(), E> {
    supply_from(make, kind, most, send)
}

fn supply_from<E>(
    make: impl Fn(SocketKind) -> io::Result<OwnedFd>,
    kind: SocketKind,
    most: u8,
    send: impl FnOnce(Supply, &[BorrowedFd<'_>]) -> Result<(), E>,
) -> Result<(), E> {
    let mut sockets = ArrayVec::<OwnedFd, MAX_DESCRIPTORS>::new();
    while !sockets.is_full() && sockets.len() < usize::from(most) {
        match make(kind) {
            Ok(socket) => sockets.push(socket),
            Err(e) => {
                log::debug!("Couldn't make a socket for connections into the namespace: {e}");
                break;
            }
        }
    }
    let count = u8::try_from(sockets.len()).unwrap_or(0);
    let borrowed: ArrayVec<BorrowedFd<'_>, MAX_DESCRIPTORS> =
        sockets.iter().map(AsFd::as_fd).collect();
    send(Supply::Sockets { kind, count }, &borrowed)
}

fn make(kind: SocketKind) -> io::Result<OwnedFd> {
    match kind {
        SocketKind::Tcp4 => tcp(Ipv4Addr::UNSPECIFIED.into()),
        SocketKind::Tcp6 => tcp(Ipv6Addr::UNSPECIFIED.into()),
        SocketKind::Udp4 => datagram::open_unbound_udp(false),
        SocketKind::Udp6 => datagram::open_unbound_udp(true),
    }
}

fn tcp(like: IpAddr) -> io::Result<OwnedFd> {
    let socket = stream::socket(like)?;
    stream::set_int(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    stream::set_int(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_batch_is_full_and_of_one_kind() {
        for kind in SocketKind::ALL {
            // Where a family is missing there is nothing to send.
            if make(kind).is_err() {
                continue;
            }
            // No batch has more, whatever is asked for.
            let sent = supply(kind, u8::MAX, |supply, fds| {
                assert_eq!(supply, Supply::Sockets { kind, count: 32 });
                assert_eq!(fds.len(), 32);
                for fd in fds {
                    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL);
                    assert!(flags.expect("open") & libc::O_NONBLOCK != 0);
                    assert!(fd.as_raw_fd() > 2);
                }
                Err(())
            });
            assert_eq!(sent, Err(()), "an answer");
            let sent = supply(kind, 3, |supply, fds| {
                assert_eq!(supply, Supply::Sockets { kind, count: 3 });
                assert_eq!(fds.len(), 3);
                Err(())
            });
            assert_eq!(sent, Err(()), "an answer");
        }
    }

    #[test]
    fn where_none_is_to_be_had_that_is_the_answer() {
        let kind = SocketKind::Tcp4;
        let none = |_| Err(io::Error::from_raw_os_error(libc::ENFILE));
        let sent = supply_from(none, kind, 32, |supply, fds| {
            assert_eq!(supply, Supply::Sockets { kind, count: 0 });
            assert!(fds.is_empty());
            Err(())
        });
        assert_eq!(sent, Err(()), "an answer");
    }
}
