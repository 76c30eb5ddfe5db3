//! The error queue of a socket (IP_RECVERR in ip(7), IPV6_RECVERR in ipv6(7)): what routers and hosts reported
//! about datagrams that were sent.
//!
//! A `recvmsg(MSG_ERRQUEUE)` returns one entry: a `struct sock_extended_err` with the address of whoever
//! complained, where the datagram was going, and as much of its payload as the complaint quoted.

#![allow(
    unsafe_code,
    reason = "recvmsg(2) with a control buffer, without allocating"
)]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use super::cmsg::{ADDR_LEN, Control, parse_sockaddr};

/// Who noticed (`ee_origin`, linux/errqueue.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Our own kernel, when sending.
    Local,
    /// An ICMP message.
    Icmp,
    /// An ICMPv6 message.
    Icmpv6,
    /// Something else (timestamps, zero-copy notices).
    Other,
}

/// One entry of an error queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Who noticed.
    pub origin: Origin,
    /// The errno it stands for.
    pub errno: i32,
    /// ICMP or ICMPv6 type; 0 for local errors.
    pub message_type: u8,
    /// ICMP or ICMPv6 code.
    pub code: u8,
    /// For EMSGSIZE the MTU in bytes of IP packet, for a parameter problem the pointer.
    pub info: u32,
    /// Who sent the ICMP message.
    pub offender: Option<IpAddr>,
    /// Where the datagram was going.
    pub destination: Option<SocketAddr>,
    /// How many bytes of its payload (for ping sockets: of its ICMP message) came along.
    pub len: usize,
}

/// Take the oldest entry off the queue; the payload that came with it, as far as it fits, goes to `payload`.
/// `Ok(None)`: the queue is empty.
///
/// # Errors
/// As recvmsg(2), but never `WouldBlock`.
pub fn next(fd: impl AsFd, payload: &mut [u8]) -> io::Result<Option<Record>> {
    let mut name = [0_u8; ADDR_LEN];
    // sock_extended_err and an IPv6 address take 64 bytes; options such as IP_RECVTOS add messages of their own.
    let mut control = Control::<256>::new();
    let mut iov = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: msghdr is plain data for which all-zeroes is valid.
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    msg.msg_name = name.as_mut_ptr().cast();
    msg.msg_namelen = u32::try_from(ADDR_LEN).unwrap_or_default();
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    let space = control.space();
    msg.msg_control = space.as_mut_ptr().cast();
    msg.msg_controllen = space.len() as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: name, payload and control buffer are writable for the lengths given and outlive the call.
    let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut msg, flags) };
    let Ok(len) = usize::try_from(got) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock {
            Ok(None)
        } else {
            Err(error)
        };
    };
    let named = usize::try_from(msg.msg_namelen).unwrap_or(0).min(ADDR_LEN);
    #[allow(
        clippy::useless_conversion,
        reason = "socklen_t in musl, size_t in glibc"
    )]
    let filled = usize::try_from(msg.msg_controllen).unwrap_or(0);
    let mut record = Record {
        origin: Origin::Other,
        errno: 0,
        message_type: 0,
        code: 0,
        info: 0,
        offender: None,
        destination: parse_sockaddr(&name[..named]),
        len: len.min(payload.len()),
    };
    for message in control.received(filled) {
        if matches!(
            (message.level, message.kind),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        ) {
            fill(&mut record, message.data);
        }
    }
    Ok(Some(record))
}

/// Read a `struct sock_extended_err` and the address behind it.
fn fill(record: &mut Record, data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<16>() else {
        return;
    };
    let [
        e0,
        e1,
        e2,
        e3,
        origin,
        message_type,
        code,
        _pad,
        i0,
        i1,
        i2,
        i3,
        ..,
    ] = *head;
    record.errno = i32::from_ne_bytes([e0, e1, e2, e3]);
    record.origin = match origin {
        libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
        libc::SO_EE_ORIGIN_ICMP => Origin::Icmp,
        libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmpv6,
        _ => Origin::Other,
    };
    record.message_type = message_type;
    record.code = code;
    record.info = u32::from_ne_bytes([i0, i1, i2, i3]);
    record.offender = parse_sockaddr(rest).map(|a| a.ip());
}
