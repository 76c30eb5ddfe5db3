//! SOCK_SEQPACKET pairs and descriptor passing (unix(7), SCM_RIGHTS).
#![allow(
    unsafe_code,
    reason = "descriptors arrive as integers and are adopted here"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

/// A connected pair that keeps message boundaries; both ends are close-on-exec and blocking.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
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

/// Send one message together with a duplicate of `fd`.
pub fn send_with_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    let iov = [IoSlice::new(bytes)];
    let rights = [ControlMessage::ScmRights(&fds)];
    retry(|| {
        sendmsg::<()>(
            socket.as_raw_fd(),
            &iov,
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
    })?;
    Ok(())
}

/// One received message.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 with no descriptor means end of file.
    pub len: usize,
    /// Descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The message was longer than the buffer.
    pub truncated_data: bool,
    /// Descriptors were lost (too many for us, or we are out of descriptors).
    pub truncated_fds: bool,
}

/// Receive one message and up to two descriptors, blocking.
pub fn recv(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Received> {
    let mut space = cmsg_space!([i32; 2]);
    let mut iov = [IoSliceMut::new(buf)];
    let message = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut iov,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let truncated_data = message.flags.contains(MsgFlags::MSG_TRUNC);
    let mut truncated_fds = message.flags.contains(MsgFlags::MSG_CTRUNC);
    let mut fds = Vec::new();
    match message.cmsgs() {
        Err(_) => truncated_fds = true,
        Ok(list) => {
            for entry in list {
                if let ControlMessageOwned::ScmRights(raw) = entry {
                    for fd in raw {
                        // SAFETY: the kernel has just installed this descriptor in our table for us alone.
                        fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                    }
                }
            }
        }
    }
    Ok(Received {
        len: message.bytes,
        fds,
        truncated_data,
        truncated_fds,
    })
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
