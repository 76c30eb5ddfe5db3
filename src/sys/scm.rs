//! SOCK_SEQPACKET pairs and descriptor passing (unix(7), SCM_RIGHTS).
#![allow(
    unsafe_code,
    reason = "sendmsg(2) and recvmsg(2) with descriptors, without allocating"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use arrayvec::ArrayVec;
use libc::c_int;
use nix::errno::Errno;
use nix::poll::ppoll;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike};

use super::cmsg::Control;

/// A connected pair that keeps message boundaries; both ends are close-on-exec and blocking.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// How long a message may wait for room at its receiver; nobody of ours takes that long.
const SEND_TIMEOUT_S: i64 = 10;

/// Bytes under way in one direction before a sender waits: some 500 messages, as the kernel counts them.
const SEND_BUFFER: usize = 1 << 20;

/// The same for commands with descriptors: deep queues, and a send that finds no room for 10 s fails with
/// `WouldBlock`, so that a receiver that has stopped reading cannot stop the sender.
pub fn command_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = seqpacket_pair()?;
    for end in [&a, &b] {
        // As much of it as net.core.wmem_max allows.
        setsockopt(end, sockopt::SndBuf, &SEND_BUFFER)?;
        setsockopt(end, sockopt::SendTimeout, &TimeVal::seconds(SEND_TIMEOUT_S))?;
    }
    Ok((a, b))
}

/// Send one message; a dead peer is `EPIPE`, never a signal. Allocates nothing.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    retry(|| nix::sys::socket::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL))?;
    Ok(())
}

/// Send one message unless that would block; `WouldBlock` then. Allocates nothing.
pub fn try_send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    retry(|| nix::sys::socket::send(socket.as_raw_fd(), bytes, flags))?;
    Ok(())
}

/// Most descriptors beside one message, either way.
pub const MAX_FDS: usize = 32;

/// Descriptors that came with a message, close-on-exec. Dropping them closes them.
pub type Fds = ArrayVec<OwnedFd, MAX_FDS>;

/// Room for one message of [`MAX_FDS`] descriptors: header and data.
const CONTROL: usize = 16 + MAX_FDS * size_of::<c_int>();

/// Send one message together with duplicates of `fds`, at most [`MAX_FDS`]. Allocates nothing.
///
/// # Errors
/// As sendmsg(2); `ETOOMANYREFS` while more descriptors than our limit are on their way; `EINVAL` for too many at once.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let numbers: ArrayVec<[u8; size_of::<c_int>()], MAX_FDS> = fds
        .iter()
        .take(MAX_FDS)
        .map(|fd| fd.as_raw_fd().to_ne_bytes())
        .collect();
    let mut control = Control::<CONTROL>::new();
    if numbers.len() < fds.len()
        || !control.push(libc::SOL_SOCKET, libc::SCM_RIGHTS, numbers.as_flattened())
    {
        return Err(Errno::EINVAL.into());
    }
    let iov = [IoSlice::new(bytes)];
    // SAFETY: msghdr is plain data for which all-zeroes is valid.
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    // IoSlice is ABI-compatible with iovec; sending only reads through the pointers.
    msg.msg_iov = iov.as_ptr().cast_mut().cast();
    msg.msg_iovlen = 1;
    let rights = control.as_bytes();
    msg.msg_control = rights.as_ptr().cast_mut().cast();
    msg.msg_controllen = rights.len() as _;
    retry(|| {
        // SAFETY: `msg` and everything it points to outlive the call, which only reads them.
        Errno::result(unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL)
        })
    })?;
    Ok(())
}

/// One received message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 with no descriptor means end of file.
    pub len: usize,
    /// The message was longer than the buffer.
    pub truncated_data: bool,
    /// Descriptors were lost (too many for us, or we are out of descriptors).
    pub truncated_fds: bool,
}

/// Receive one message into `buf` and what came with it into `fds`, whose earlier contents are closed; without
/// `wait`, `WouldBlock` if there is none. Allocates nothing.
pub fn recv(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    fds: &mut Fds,
    wait: bool,
) -> io::Result<Received> {
    fds.clear();
    let mut control = Control::<CONTROL>::new();
    let mut iov = [IoSliceMut::new(buf)];
    // SAFETY: msghdr is plain data for which all-zeroes is valid.
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    // IoSliceMut is ABI-compatible with iovec.
    msg.msg_iov = iov.as_mut_ptr().cast();
    msg.msg_iovlen = 1;
    let space = control.space();
    msg.msg_control = space.as_mut_ptr().cast();
    msg.msg_controllen = space.len() as _;
    let waiting = if wait { 0 } else { libc::MSG_DONTWAIT };
    let flags = libc::MSG_CMSG_CLOEXEC | waiting;
    let len = retry(|| {
        // SAFETY: `msg` and everything it points to outlive the call; lengths are those of the buffers.
        Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut msg, flags) })
    })?;
    #[allow(clippy::useless_conversion, reason = "32 bits with some C libraries")]
    let used = usize::try_from(msg.msg_controllen).unwrap_or(0);
    for message in control.received(used) {
        if (message.level, message.kind) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            continue;
        }
        for number in message.data.chunks_exact(size_of::<c_int>()) {
            let fd = number.try_into().map_or(-1, c_int::from_ne_bytes);
            if fd >= 0 {
                // SAFETY: the kernel has just installed this descriptor in our table for us alone. There are no
                // more than the control buffer, and so `fds`, has room for.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok(Received {
        len: usize::try_from(len).unwrap_or(0),
        truncated_data: msg.msg_flags & libc::MSG_TRUNC != 0,
        truncated_fds: msg.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Sleep, by the call that waits for events anyway.
pub fn pause(duration: Duration) {
    let _ = ppoll(&mut [], Some(TimeSpec::from_duration(duration)), None);
}

/// Receive one message without waiting and without descriptors; `WouldBlock` if there is none, 0 at end
/// of file. Allocates nothing.
pub fn try_recv(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    Ok(retry(|| {
        nix::sys::socket::recv(socket.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT)
    })?)
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn every_number_of_descriptors_arrives() {
        let (a, b) = seqpacket_pair().expect("pair");
        let mut fds = Fds::new();
        for n in [1, 2, 31, MAX_FDS] {
            let sent = vec![a.as_fd(); n];
            send_with_fds(a.as_fd(), b"x", &sent).expect("send");
            let mut buf = [0; 4];
            let received = recv(b.as_fd(), &mut buf, &mut fds, true).expect("receive");
            let expected = Received {
                len: 1,
                truncated_data: false,
                truncated_fds: false,
            };
            assert_eq!(received, expected);
            assert_eq!(fds.len(), n);
        }
        let many = vec![a.as_fd(); MAX_FDS + 1];
        assert!(send_with_fds(a.as_fd(), b"x", &many).is_err());
        let mut buf = [0; 4];
        let e = recv(b.as_fd(), &mut buf, &mut fds, false).expect_err("nothing there");
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        assert!(fds.is_empty());
    }
}
