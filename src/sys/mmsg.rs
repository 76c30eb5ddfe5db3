//! Many datagrams in one system call: UDP_SEGMENT, sendmmsg(2), recvmmsg(2) with UDP_GRO.
//!
//! All message headers live on the stack for the duration of the call and point into memory of the caller that is
//! borrowed for as long. Nothing allocates, blocks or raises a signal.

#![allow(
    unsafe_code,
    reason = "vectored calls with control buffers, without allocating"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libc::{c_int, c_uint};

use super::cmsg::{ADDR_LEN, Control, emit_sockaddr, parse_sockaddr};

/// Most messages per call.
pub const MAX_MESSAGES: usize = 64;

/// Room for hop limit, traffic class and segment size, 24 bytes each, and the larger packet-info, 40.
const SEND_CONTROL: usize = 128;
/// Room for UDP_GRO, traffic class, and the packet-info of both families, which a dual-stack socket gives for IPv4:
/// 24 + 24 + 32 + 40 bytes, and some.
const RECEIVE_CONTROL: usize = 160;

/// What goes with every datagram of a send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendOptions {
    /// Destination; `None` for connected sockets.
    pub to: Option<SocketAddr>,
    /// Hop limit; `None`: the socket's default.
    pub hop_limit: Option<u8>,
    /// TOS or traffic class; 0: the socket's default.
    pub tos: u8,
    /// Source address, where the socket is not bound to one; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Family of the datagram; on a dual-stack socket not always that of the socket.
    pub ipv6: bool,
}

/// Name and control buffer of a send.
struct Envelope {
    name: [u8; ADDR_LEN],
    name_len: usize,
    control: Control<SEND_CONTROL>,
}

impl Envelope {
    fn new(options: &SendOptions, segment: Option<u16>) -> Self {
        let (name, name_len) = options.to.map_or(([0; ADDR_LEN], 0), emit_sockaddr);
        let mut control = Control::new();
        let (level, hop_limit, tos) = if options.ipv6 {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS)
        } else {
            (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS)
        };
        if let Some(hops) = options.hop_limit {
            control.push(level, hop_limit, &c_int::from(hops).to_ne_bytes());
        }
        if options.tos != 0 {
            control.push(level, tos, &c_int::from(options.tos).to_ne_bytes());
        }
        match options.source {
            Some(IpAddr::V4(ip)) => {
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &packet_info_v4(ip));
            }
            Some(IpAddr::V6(ip)) => {
                let info = packet_info_v6(ip, options.to);
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if let Some(size) = segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
        Self {
            name,
            name_len,
            control,
        }
    }

    /// A header for `bufs`. Points into `self` and `bufs`, which must outlive its use.
    fn header(&self, bufs: &[IoSlice<'_>]) -> libc::msghdr {
        // SAFETY: msghdr is plain data for which all-zeroes is valid.
        let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        if self.name_len > 0 {
            msg.msg_name = self.name.as_ptr().cast_mut().cast();
            msg.msg_namelen = c_uint::try_from(self.name_len).unwrap_or_default();
        }
        // IoSlice is ABI-compatible with iovec; sending only reads through the pointers.
        msg.msg_iov = bufs.as_ptr().cast_mut().cast();
        msg.msg_iovlen = bufs.len() as _;
        if !self.control.is_empty() {
            let bytes = self.control.as_bytes();
            msg.msg_control = bytes.as_ptr().cast_mut().cast();
            msg.msg_controllen = bytes.len() as _;
        }
        msg
    }
}

/// `struct in_pktinfo` (ip(7)): any interface, this source, and a field that counts only when receiving.
fn packet_info_v4(source: Ipv4Addr) -> [u8; 12] {
    let mut info = [0; 12];
    info[4..8].copy_from_slice(&source.octets());
    info
}

/// `struct in6_pktinfo` (ipv6(7)): this source, and the interface where the address means nothing without one.
fn packet_info_v6(source: Ipv6Addr, to: Option<SocketAddr>) -> [u8; 20] {
    let mut info = [0; 20];
    info[..16].copy_from_slice(&source.octets());
    if let Some(SocketAddr::V6(to)) = to.filter(|_| source.is_unicast_link_local()) {
        info[16..].copy_from_slice(&to.scope_id().to_ne_bytes());
    }
    info
}

const SEND_FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Send the concatenation of `parts` (at most 1024): as one datagram, or cut into datagrams of `segment` bytes.
///
/// # Errors
/// As sendmsg(2). With `segment`, EINVAL or EMSGSIZE if a segment does not fit the path MTU, EIO if the interface
/// cannot checksum and the kernel will not do it instead.
pub fn send(
    fd: BorrowedFd<'_>,
    options: &SendOptions,
    parts: &[IoSlice<'_>],
    segment: Option<u16>,
) -> io::Result<()> {
    let envelope = Envelope::new(options, segment);
    let msg = envelope.header(parts);
    // SAFETY: `msg` and everything it points to outlive the call, which only reads them.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const msg, SEND_FLAGS) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Send each of `parts` as a datagram of its own. Returns how many were taken (in order), and why not more.
pub fn send_each(
    fd: BorrowedFd<'_>,
    options: &SendOptions,
    parts: &[IoSlice<'_>],
) -> (usize, Option<io::Error>) {
    if let [one] = parts {
        let result = send(fd, options, std::slice::from_ref(one), None);
        return (usize::from(result.is_ok()), result.err());
    }
    let envelope = Envelope::new(options, None);
    let mut done = 0;
    while let Some(rest) = parts.get(done..).filter(|rest| !rest.is_empty()) {
        let mut batch = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MAX_MESSAGES];
        let count = rest.len().min(MAX_MESSAGES);
        for (slot, part) in batch.iter_mut().zip(rest) {
            slot.write(libc::mmsghdr {
                msg_hdr: envelope.header(std::slice::from_ref(part)),
                msg_len: 0,
            });
        }
        let (first, len) = (
            batch.as_mut_ptr().cast::<libc::mmsghdr>(),
            c_uint::try_from(count).unwrap_or(1),
        );
        // SAFETY: the first `len` headers are initialised (all of them are at least zeroed), and what they
        // point to outlives the call, which only writes msg_len.
        let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), first, len, SEND_FLAGS as _) };
        match usize::try_from(sent) {
            Ok(sent) if sent > 0 => done += sent,
            // An error is returned only if the first datagram of a call met it.
            _ => return (done, Some(io::Error::last_os_error())),
        }
    }
    (done, None)
}

/// One received message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Who sent it.
    pub from: SocketAddr,
    /// Bytes in its buffer.
    pub len: usize,
    /// Bytes per datagram if the kernel coalesced several (UDP_GRO), the last possibly shorter; else `len`.
    pub segment: usize,
    /// TOS or traffic class, if IP_RECVTOS or IPV6_RECVTCLASS is on; else 0.
    pub tos: u8,
    /// Packet information is on, and the destination was a multicast or broadcast address.
    pub group: bool,
    /// Packet information is on: the address of ours that it was sent to, for broadcast one that can answer.
    pub to: Option<IpAddr>,
    /// There was more than the buffer could take.
    pub truncated: bool,
}

/// Where the kernel puts names and control messages of up to [`MAX_MESSAGES`] messages.
#[derive(Debug)]
pub struct Scratch {
    names: Box<[[u8; ADDR_LEN]]>,
    controls: Box<[Control<RECEIVE_CONTROL>]>,
}

impl Scratch {
    /// Room for [`MAX_MESSAGES`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            names: vec![[0; ADDR_LEN]; MAX_MESSAGES].into(),
            controls: vec![Control::new(); MAX_MESSAGES].into(),
        }
    }

    /// Receive up to one message into each of `bufs` and call `each` with its number and what is known of it.
    /// Returns how many there were; fewer than buffers means the socket was drained.
    ///
    /// # Errors
    /// As recvmmsg(2): `WouldBlock` if there is nothing; a pending error of the socket, which this clears.
    pub fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        bufs: &mut [IoSliceMut<'_>],
        mut each: impl FnMut(usize, Arrival),
    ) -> io::Result<usize> {
        let mut batch = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MAX_MESSAGES];
        let count = bufs.len().min(MAX_MESSAGES);
        let places = self.names.iter_mut().zip(self.controls.iter_mut());
        for ((slot, buf), (name, control)) in batch.iter_mut().zip(bufs.iter_mut()).zip(places) {
            // SAFETY: mmsghdr is plain data for which all-zeroes is valid, and `slot` is zeroed.
            let header = unsafe { slot.assume_init_mut() };
            let space = control.space();
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = c_uint::try_from(ADDR_LEN).unwrap_or_default();
            // IoSliceMut is ABI-compatible with iovec.
            header.msg_hdr.msg_iov = ptr::from_mut(buf).cast();
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = space.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = space.len() as _;
        }
        let (first, len) = (
            batch.as_mut_ptr().cast::<libc::mmsghdr>(),
            c_uint::try_from(count).unwrap_or(0),
        );
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: the first `len` headers are initialised, the buffers, names and control buffers they point to
        // are writable for the lengths given and outlive the call; there is no timeout.
        let got =
            unsafe { libc::recvmmsg(fd.as_raw_fd(), first, len, flags as _, ptr::null_mut()) };
        let Ok(got) = usize::try_from(got) else {
            return Err(io::Error::last_os_error());
        };
        let places = self.names.iter().zip(self.controls.iter());
        for (number, (slot, (name, control))) in
            batch.iter().zip(places).take(got.min(count)).enumerate()
        {
            // SAFETY: mmsghdr is plain data for which all-zeroes is valid, and `slot` was at least zeroed.
            let header = unsafe { slot.assume_init_ref() };
            each(number, arrival(header, name, control));
        }
        Ok(got.min(count))
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

fn arrival(
    header: &libc::mmsghdr,
    name: &[u8; ADDR_LEN],
    control: &Control<RECEIVE_CONTROL>,
) -> Arrival {
    let len = usize::try_from(header.msg_len).unwrap_or(0);
    let named = usize::try_from(header.msg_hdr.msg_namelen)
        .unwrap_or(0)
        .min(ADDR_LEN);
    #[allow(
        clippy::useless_conversion,
        reason = "socklen_t in musl, size_t in glibc"
    )]
    let filled = usize::try_from(header.msg_hdr.msg_controllen).unwrap_or(0);
    let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let mut out = Arrival {
        from: name.get(..named).and_then(parse_sockaddr).unwrap_or(nobody),
        len,
        segment: len,
        tos: 0,
        group: false,
        to: None,
        truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
    };
    for message in control.received(filled) {
        match (message.level, message.kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = message.int().and_then(|n| usize::try_from(n).ok());
                out.segment = size.filter(|n| (1..len).contains(n)).unwrap_or(len);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                out.tos = message
                    .int()
                    .and_then(|n| u8::try_from(n).ok())
                    .unwrap_or(0);
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                out.group = is_group_v4(message.data);
                let local = message.data.get(4..).and_then(<[u8]>::first_chunk::<4>);
                out.to = local.map(|ip| IpAddr::from(*ip)).or(out.to);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let Some(ip) = message.data.first_chunk().copied().map(Ipv6Addr::from) else {
                    continue;
                };
                // Of an IPv4 datagram IP_PKTINFO tells more.
                if let Some(v4) = ip.to_ipv4_mapped() {
                    out.group |= v4.is_multicast() || v4.is_broadcast();
                    out.to = out.to.or(Some(v4.into()));
                } else {
                    out.group = ip.is_multicast();
                    out.to = Some(ip.into());
                }
            }
            _ => {}
        }
    }
    out
}

/// `struct in_pktinfo`: interface, local address, destination of the packet. The latter two are the same if the
/// packet was for one station.
fn is_group_v4(info: &[u8]) -> bool {
    let local = info.get(4..8);
    let destination = info.get(8..12);
    local.is_none() || local != destination
}
