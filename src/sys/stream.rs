//! Host TCP sockets as the forwarder uses them: never blocking, never raising a signal, never allocating.
//!
//! nix covers most of these calls but allocates in sendmsg(2) and lacks SO_PEEK_OFF, SO_MEMINFO and the
//! newer fields of TCP_INFO.

#![allow(
    unsafe_code,
    reason = "system calls nix does not wrap, or not without allocating"
)]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_int, c_void, socklen_t};

use super::cmsg::{ADDR_LEN, emit_sockaddr, parse_sockaddr};
use super::piece::Piece;

/// SO_PEEK_OFF (linux/socket.h).
const SO_PEEK_OFF: c_int = 42;
/// SO_MEMINFO (linux/socket.h).
const SO_MEMINFO: c_int = 55;

/// The size of an option as the kernel wants it.
const fn len_of<T>() -> socklen_t {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "every T used here is under a kilobyte"
    )]
    {
        size_of::<T>() as socklen_t
    }
}

fn check(ret: isize) -> io::Result<usize> {
    usize::try_from(ret).map_err(|_| io::Error::last_os_error())
}

fn check_int(ret: c_int) -> io::Result<()> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `addr` in the kernel's layout, and its length.
fn raw_addr(addr: SocketAddr) -> ([u8; ADDR_LEN], socklen_t) {
    let (raw, len) = emit_sockaddr(addr);
    // At most ADDR_LEN.
    (raw, socklen_t::try_from(len).unwrap_or_default())
}

/// A new non-blocking, close-on-exec TCP socket of the family of `like`.
///
/// # Errors
/// socket(2): EMFILE and ENFILE when out of descriptors, EAFNOSUPPORT without the family.
pub fn socket(like: IpAddr) -> io::Result<OwnedFd> {
    let family = if like.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(family, kind, libc::IPPROTO_TCP) };
    check_int(fd)?;
    // SAFETY: the kernel just gave us this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bind(2).
///
/// # Errors
/// As bind(2).
pub fn bind(fd: impl AsFd, addr: SocketAddr) -> io::Result<()> {
    let (raw, len) = raw_addr(addr);
    // SAFETY: `raw` is a valid sockaddr of `len` bytes that outlives the call.
    check_int(unsafe { libc::bind(fd.as_fd().as_raw_fd(), raw.as_ptr().cast(), len) })
}

/// connect(2). On a non-blocking socket EINPROGRESS is the normal answer.
///
/// # Errors
/// As connect(2).
pub fn connect(fd: impl AsFd, addr: SocketAddr) -> io::Result<()> {
    let (raw, len) = raw_addr(addr);
    // SAFETY: `raw` is a valid sockaddr of `len` bytes that outlives the call.
    check_int(unsafe { libc::connect(fd.as_fd().as_raw_fd(), raw.as_ptr().cast(), len) })
}

/// An address the kernel has filled in.
fn address(raw: &[u8; ADDR_LEN], len: socklen_t) -> io::Result<SocketAddr> {
    let used = usize::try_from(len).unwrap_or_default().min(ADDR_LEN);
    parse_sockaddr(&raw[..used]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// accept4(2): the next connection of a listening socket, non-blocking and close-on-exec, and who made it.
/// Options set on the listener before listen(2) (TCP_NODELAY, SO_KEEPALIVE) are set on it, too.
///
/// # Errors
/// `WouldBlock` when there is none (more); a connection that broke while it waited is skipped. EMFILE, ENFILE: out of
/// descriptors, the connection keeps waiting.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let listener = listener.as_fd().as_raw_fd();
    loop {
        let mut raw = [0; ADDR_LEN];
        let mut len = len_of::<[u8; ADDR_LEN]>();
        let to = raw.as_mut_ptr().cast();
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: `to` is writable for `len` bytes; the kernel writes no more and sets `len`.
        let fd = unsafe { libc::accept4(listener, to, &raw mut len, flags) };
        match check_int(fd) {
            Ok(()) => {
                // SAFETY: the kernel just gave us this descriptor, and nothing else owns it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                return Ok((fd, address(&raw, len)?));
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {}
            Err(e) => return Err(e),
        }
    }
}

/// getsockname(2): the end of a connection that is ours.
///
/// # Errors
/// As getsockname(2).
pub fn local_addr(fd: impl AsFd) -> io::Result<SocketAddr> {
    let mut raw = [0; ADDR_LEN];
    let mut len = len_of::<[u8; ADDR_LEN]>();
    let (fd, to) = (fd.as_fd().as_raw_fd(), raw.as_mut_ptr().cast());
    // SAFETY: `to` is writable for `len` bytes; the kernel writes no more and sets `len`.
    check_int(unsafe { libc::getsockname(fd, to, &raw mut len) })?;
    address(&raw, len)
}

/// Set an integer socket option.
///
/// # Errors
/// As setsockopt(2).
pub fn set_int(fd: impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let len = len_of::<c_int>();
    let value = ptr::from_ref(&value).cast();
    // SAFETY: `value` points to a c_int, as `len` says, that outlives the call.
    check_int(unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value, len) })
}

/// Bind to a network interface by name (SO_BINDTODEVICE; unprivileged since Linux 5.7).
///
/// # Errors
/// As setsockopt(2): ENODEV if there is no such interface.
pub fn bind_to_device(fd: impl AsFd, name: &str) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    let len = socklen_t::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let name = name.as_ptr().cast();
    // SAFETY: `name` is readable for `len` bytes; the kernel copies and terminates it itself.
    check_int(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name, len) })
}

/// Closing will send RST instead of FIN (SO_LINGER with a time of zero, socket(7)).
///
/// # Errors
/// As setsockopt(2).
pub fn linger_zero(fd: impl AsFd) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let len = len_of::<libc::linger>();
    let linger = ptr::from_ref(&linger).cast();
    // SAFETY: `linger` points to a struct linger of `len` bytes that outlives the call.
    check_int(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            linger,
            len,
        )
    })
}

/// Does peeking move on by itself (SO_PEEK_OFF, socket(7))? A socket inherits that from its listener.
#[must_use]
pub fn has_peek_offset(fd: impl AsFd) -> bool {
    read_option::<c_int>(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1).is_ok_and(|o| o >= 0)
}

/// Where the next MSG_PEEK starts, in bytes from the first unconsumed one (socket(7)); TCP since Linux 6.9.
///
/// # Errors
/// EOPNOTSUPP on older kernels.
pub fn set_peek_offset(fd: impl AsFd, offset: u32) -> io::Result<()> {
    let offset = c_int::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, offset)
}

pub(super) fn read_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    into: T,
) -> io::Result<T> {
    let mut value = into;
    let mut len = len_of::<T>();
    let (fd, to) = (fd.as_raw_fd(), ptr::from_mut(&mut value).cast::<c_void>());
    // SAFETY: `to` is writable for `len` bytes; callers pass plain integers and arrays of them, for
    // which every bit pattern is valid, and the kernel may fill less than all.
    check_int(unsafe { libc::getsockopt(fd, level, name, to, &raw mut len) })?;
    Ok(value)
}

/// The pending error of a socket, cleared by asking (SO_ERROR); 0 for none.
///
/// # Errors
/// As getsockopt(2).
pub fn take_error(fd: impl AsFd) -> io::Result<c_int> {
    read_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR, 0)
}

/// The size of the send buffer in bytes of the kernel's accounting, and how much is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendBuffer {
    /// sk_sndbuf.
    pub size: u32,
    /// sk_wmem_queued: payload and overhead of everything not yet acknowledged.
    pub queued: u32,
}

/// SO_MEMINFO (socket(7), linux/sock_diag.h: SK_MEMINFO_*), what concerns sending.
///
/// # Errors
/// As getsockopt(2); kernels before 4.12 lack it.
pub fn send_buffer(fd: impl AsFd) -> io::Result<SendBuffer> {
    let m: [u32; 9] = read_option(fd.as_fd(), libc::SOL_SOCKET, SO_MEMINFO, [0; 9])?;
    Ok(SendBuffer {
        size: m[3],
        queued: m[5],
    })
}

/// `struct tcp_info` (linux/tcp.h) up to the last field used here.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    wscale: u8,
    flags: u8,
    before_rcv_ssthresh: [u32; 14],
    rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
    snd_ssthresh: u32,
    snd_cwnd: u32,
    before_pacing: [u32; 5],
    pacing: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs: [u32; 2],
    delivery_rate: u64,
    times: [u64; 3],
    delivered: [u32; 2],
    bytes_sent: u64,
    bytes_retrans: u64,
    dsack_dups: u32,
    reord_seen: u32,
    rcv_ooopack: u32,
    snd_wnd: u32,
}

/// What the kernel knows about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpInfo {
    /// TCP_ESTABLISHED and so on (include/net/tcp_states.h).
    pub state: u8,
    /// Smoothed round-trip time in microseconds.
    pub rtt: u32,
    /// Least round-trip time seen, in microseconds; `u32::MAX` if none was measured.
    pub min_rtt: u32,
    /// Bytes the peer has acknowledged since the connection was set up, SYN and FIN counted by some
    /// kernels: the SYN counts as one.
    pub bytes_acked: u64,
    /// Bytes in the send queue that were never sent.
    pub notsent: u32,
    /// Window the peer offers, in bytes; `None` on kernels before 5.4.
    pub snd_wnd: Option<u32>,
    /// About how much the kernel lets the peer send, in bytes.
    pub rcv_ssthresh: u32,
}

/// TCP_INFO (tcp(7)).
///
/// # Errors
/// As getsockopt(2).
pub fn info(fd: impl AsFd) -> io::Result<TcpInfo> {
    let mut raw = RawInfo::default();
    let mut len = len_of::<RawInfo>();
    let (fd, to) = (
        fd.as_fd().as_raw_fd(),
        ptr::from_mut(&mut raw).cast::<c_void>(),
    );
    // SAFETY: `to` is writable for `len` bytes, and every bit pattern is a valid RawInfo.
    check_int(unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut len)
    })?;
    let complete = len >= len_of::<RawInfo>();
    Ok(TcpInfo {
        state: raw.state,
        rtt: raw.rtt,
        min_rtt: raw.min_rtt,
        bytes_acked: raw.bytes_acked,
        notsent: raw.notsent_bytes,
        snd_wnd: complete.then_some(raw.snd_wnd),
        rcv_ssthresh: raw.rcv_ssthresh,
    })
}

/// Send as much of `bufs` as the socket takes now; `more`: hold back a partial segment (MSG_MORE).
///
/// # Errors
/// As sendmsg(2); `WouldBlock` when the send buffer is full. At most 1024 buffers (IOV_MAX).
pub fn send(fd: impl AsFd, bufs: &[Piece<'_>], more: bool) -> io::Result<usize> {
    // SAFETY: msghdr is plain data for which all-zeroes is valid (no name, no control).
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    // A piece is an iovec; sendmsg only reads through the pointer.
    msg.msg_iov = bufs.as_ptr().cast_mut().cast();
    msg.msg_iovlen = bufs.len();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: `msg` and the buffers it points to outlive the call, which only reads them.
    check(unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const msg, flags) })
}

/// Make a call again for as long as signals interrupt it before it does anything (EINTR).
///
/// # Errors
/// All but that.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Receive what is there, as far as it fits. `Ok(0)`: the peer has sent FIN and all was received.
///
/// # Errors
/// As recv(2); `WouldBlock` when there is nothing.
pub fn receive(fd: impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    let (to, len) = (buf.as_mut_ptr().cast(), buf.len());
    // SAFETY: `to` is writable for `len` bytes.
    check(unsafe { libc::recv(fd.as_fd().as_raw_fd(), to, len, libc::MSG_DONTWAIT) })
}

/// Copy received bytes without consuming them (MSG_PEEK), from the peek offset on if one is set.
///
/// # Errors
/// As recv(2); `WouldBlock` when there are none. `Ok(0)`: the peer has sent FIN and all was seen.
pub fn peek(fd: impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    let (to, len) = (buf.as_mut_ptr().cast(), buf.len());
    // SAFETY: `to` is writable for `len` bytes.
    check(unsafe { libc::recv(fd.as_fd().as_raw_fd(), to, len, flags) })
}

/// Most pieces one message can have, less one for the wanted part (IOV_MAX).
const MAX_SKIPPED_PIECES: usize = 1023;

/// [`peek`] for kernels without SO_PEEK_OFF: receive the first `skip` bytes into `scratch`, over and over,
/// and what follows into `buf`.
///
/// # Errors
/// As [`peek`]; also `InvalidInput` if `skip` is more than 1023 times the size of `scratch`. "Nothing behind what
/// was skipped" is `WouldBlock` even if there is a FIN, which shows when `skip` is 0.
pub fn peek_behind(
    fd: impl AsFd,
    skip: usize,
    scratch: &mut [u8],
    buf: &mut [u8],
) -> io::Result<usize> {
    let mut pieces = [libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    }; MAX_SKIPPED_PIECES + 1];
    let mut used = 0;
    let mut left = skip;
    while left > 0 {
        if used == MAX_SKIPPED_PIECES || scratch.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = left.min(scratch.len());
        pieces[used] = libc::iovec {
            iov_base: scratch.as_mut_ptr().cast(),
            iov_len: len,
        };
        used += 1;
        left -= len;
    }
    pieces[used] = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: msghdr is plain data for which all-zeroes is valid (no name, no control).
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    msg.msg_iov = pieces.as_mut_ptr();
    msg.msg_iovlen = used + 1;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: every piece points into `scratch` or `buf`, which are borrowed mutably and outlive the call;
    // that pieces overlap only means that the kernel overwrites bytes nobody wants.
    let n = check(unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut msg, flags) })?;
    if n <= skip && skip > 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(n - skip)
}

/// Consume up to `len` received bytes without copying them (MSG_TRUNC, tcp(7)).
///
/// # Errors
/// As recv(2); `WouldBlock` when there are none.
pub fn discard(fd: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: with MSG_TRUNC on a TCP socket nothing is written to the (null) buffer.
    check(unsafe { libc::recv(fd.as_fd().as_raw_fd(), ptr::null_mut(), len, flags) })
}

/// Send FIN after what is queued.
///
/// # Errors
/// As shutdown(2).
pub fn shutdown_write(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check_int(unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), libc::SHUT_WR) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn wait(fd: &OwnedFd, what: PollFlags) {
        let n = poll(
            &mut [PollFd::new(fd.as_fd(), what)],
            PollTimeout::from(2000_u16),
        )
        .unwrap();
        assert_eq!(n, 1, "no event in 2 s");
    }

    fn pair() -> (OwnedFd, TcpStream) {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = l.local_addr().unwrap();
        let s = socket(at.ip()).unwrap();
        assert_eq!(
            connect(&s, at).unwrap_err().raw_os_error(),
            Some(libc::EINPROGRESS)
        );
        let (peer, _) = l.accept().unwrap();
        wait(&s, PollFlags::POLLOUT);
        assert_eq!(take_error(&s).unwrap(), 0);
        (s, peer)
    }

    #[test]
    fn peeked_data_stays_until_discarded() {
        let (s, mut peer) = pair();
        peer.write_all(b"hello world").unwrap();
        wait(&s, PollFlags::POLLIN);
        let mut buf = [0; 5];
        assert_eq!(peek(&s, &mut buf).unwrap(), 5);
        assert_eq!(&buf, b"hello");
        assert_eq!(discard(&s, 6).unwrap(), 6);
        assert_eq!(peek(&s, &mut buf).unwrap(), 5);
        assert_eq!(&buf, b"world");
    }

    #[test]
    fn peeking_behind_skips_without_an_offset() {
        let (s, mut peer) = pair();
        peer.write_all(b"abcdefgh").unwrap();
        wait(&s, PollFlags::POLLIN);
        let (mut scratch, mut buf) = ([0; 2], [0; 4]);
        assert_eq!(peek_behind(&s, 5, &mut scratch, &mut buf).unwrap(), 3);
        assert_eq!(&buf[..3], b"fgh");
        let e = peek_behind(&s, 8, &mut scratch, &mut buf).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        let e = peek_behind(&s, 2047, &mut scratch, &mut buf).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn peek_offset_moves_with_peeks_and_discards() {
        let (s, mut peer) = pair();
        if set_peek_offset(&s, 0).is_err() {
            // Linux before 6.9: the caller keeps peeking from the start.
            return;
        }
        peer.write_all(b"abcdef").unwrap();
        wait(&s, PollFlags::POLLIN);
        let mut buf = [0; 2];
        for want in [b"ab", b"cd"] {
            assert_eq!(peek(&s, &mut buf).unwrap(), 2);
            assert_eq!(&buf, want);
        }
        assert_eq!(discard(&s, 3).unwrap(), 3);
        assert_eq!(peek(&s, &mut buf).unwrap(), 2);
        assert_eq!(&buf, b"ef", "discarding moves the offset back");
        set_peek_offset(&s, 0).unwrap();
        assert_eq!(peek(&s, &mut buf).unwrap(), 2);
        assert_eq!(&buf, b"de");
    }

    #[test]
    fn info_counts_what_the_peer_acknowledged() {
        let (s, mut peer) = pair();
        assert_eq!(
            send(&s, &[Piece::new(b"abc"), Piece::new(b"defg")], false).unwrap(),
            7
        );
        let mut got = [0; 7];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abcdefg");
        let i = info(&s).unwrap();
        assert_eq!(i.state, 1, "TCP_ESTABLISHED");
        assert_eq!(i.bytes_acked, 8, "seven bytes and the SYN");
        assert!(i.snd_wnd.is_some_and(|w| w > 0));
        let b = send_buffer(&s).unwrap();
        assert!(b.size > 0 && b.queued < b.size);
        shutdown_write(&s).unwrap();
        assert_eq!(peer.read(&mut got).unwrap(), 0);
    }

    #[test]
    fn refused_connection_is_reported_once() {
        let at = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let s = socket(at.ip()).unwrap();
        let e = match connect(&s, at) {
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
                wait(&s, PollFlags::POLLOUT);
                take_error(&s).unwrap()
            }
            Err(e) => e.raw_os_error().unwrap(),
            Ok(()) => 0,
        };
        assert_eq!(e, libc::ECONNREFUSED);
        assert_eq!(take_error(&s).unwrap(), 0);
    }

    #[test]
    fn accepted_connections_know_both_ends_and_do_not_block() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let e = accept(&listener).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (s, from) = accept(&listener).unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        assert_eq!(local_addr(&s).unwrap(), client.peer_addr().unwrap());
        let mut buf = [0; 8];
        let e = receive(&s, &mut buf).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"abc").unwrap();
        drop(client);
        wait(&s, PollFlags::POLLIN);
        assert_eq!(receive(&s, &mut buf).unwrap(), 3);
        assert_eq!(receive(&s, &mut buf).unwrap(), 0);
    }

    #[test]
    fn what_a_signal_interrupted_is_done_again() {
        let mut answers = [libc::EINTR, libc::EINTR, libc::EAGAIN].into_iter();
        let e = uninterrupted(|| -> io::Result<()> {
            Err(io::Error::from_raw_os_error(answers.next().unwrap()))
        });
        assert_eq!(e.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(answers.next(), None);
    }

    #[test]
    fn lingering_zero_resets() {
        let (s, mut peer) = pair();
        linger_zero(&s).unwrap();
        drop(s);
        let e = peer.read(&mut [0; 1]).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
    }
}
