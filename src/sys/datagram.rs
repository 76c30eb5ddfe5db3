//! UDP and ping sockets of the host: creation and options.
//!
//! Everything is unprivileged: buffers are as large as the sysctls allow, binding to an interface is (since Linux
//! 5.7), ports below 1024 usually are not. Options an old kernel lacks are left out silently where they only
//! cost speed.

#![allow(
    unsafe_code,
    reason = "connect(2) without an address family, which nix does not offer"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::c_int;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType};

use super::stream::{self, bind, bind_to_device, read_option, set_int};

/// More than any rmem_max or wmem_max; the kernel takes what they allow and doubles it.
const HUGE: c_int = 1 << 29;
/// linux/in6.h; not in libc.
const IPV6_MULTICAST_ALL: c_int = 29;

/// How a socket is to be bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenOptions<'a> {
    /// Family.
    pub ipv6: bool,
    /// Bind to this address; `None`: the wildcard.
    pub source: Option<IpAddr>,
    /// Bind to this interface.
    pub device: Option<&'a str>,
    /// Interface index for a link-local `source`; else 0.
    pub scope: u32,
    /// Try to bind to this port (ping sockets: identifier); 0: do not try.
    pub port: u16,
}

impl OpenOptions<'_> {
    fn address(&self, port: u16) -> SocketAddr {
        match self.source {
            Some(IpAddr::V6(ip)) => SocketAddrV6::new(ip, port, 0, self.scope).into(),
            Some(ip) => SocketAddr::new(ip, port),
            None if self.ipv6 => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
            None => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
        }
    }

    const fn family(&self) -> AddressFamily {
        if self.ipv6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        }
    }
}

/// Levels and names of the options that exist for both families.
struct Names {
    level: c_int,
    recverr: c_int,
    recvtos: c_int,
    mtu_discover: c_int,
    multicast_all: c_int,
    pktinfo: c_int,
}

const fn names(ipv6: bool) -> Names {
    if ipv6 {
        Names {
            level: libc::IPPROTO_IPV6,
            recverr: libc::IPV6_RECVERR,
            recvtos: libc::IPV6_RECVTCLASS,
            mtu_discover: libc::IPV6_MTU_DISCOVER,
            multicast_all: IPV6_MULTICAST_ALL,
            pktinfo: libc::IPV6_RECVPKTINFO,
        }
    } else {
        Names {
            level: libc::IPPROTO_IP,
            recverr: libc::IP_RECVERR,
            recvtos: libc::IP_RECVTOS,
            mtu_discover: libc::IP_MTU_DISCOVER,
            multicast_all: libc::IP_MULTICAST_ALL,
            pktinfo: libc::IP_PKTINFO,
        }
    }
}

/// A UDP socket for a flow of the guest, and whether it has the port that was wanted.
///
/// # Errors
/// As socket(2), setsockopt(2) for the interface, and bind(2) for the address.
pub fn open_udp(options: &OpenOptions<'_>) -> io::Result<(OwnedFd, bool)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = nix::sys::socket::socket(
        options.family(),
        SockType::Datagram,
        flags,
        SockProtocol::Udp,
    )?;
    common(&fd, options)?;
    // Older kernels lack it; datagrams then come one by one.
    let _ = set_int(&fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    let had_port = bind_any(&fd, options)?;
    Ok((fd, had_port))
}

/// A ping socket, and its identifier.
///
/// # Errors
/// As [`open_udp`]; EACCES if `net.ipv4.ping_group_range` does not include us.
pub fn open_ping(options: &OpenOptions<'_>) -> io::Result<(OwnedFd, u16)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let protocol = if options.ipv6 {
        SockProtocol::IcmpV6
    } else {
        SockProtocol::Icmp
    };
    let fd = nix::sys::socket::socket(options.family(), SockType::Datagram, flags, protocol)?;
    // The kernel makes ping sockets with it set: two could have one identifier, and replies would all go to one.
    set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 0)?;
    common(&fd, options)?;
    if bind_any(&fd, options)? && options.port != 0 {
        return Ok((fd, options.port));
    }
    let ident = local_port(fd.as_fd())?;
    Ok((fd, ident))
}

fn common(fd: &OwnedFd, options: &OpenOptions<'_>) -> io::Result<()> {
    let names = names(options.ipv6);
    if options.ipv6 {
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    // What can be had is had; the rest is speed.
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, HUGE);
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, HUGE);
    set_int(fd, names.level, names.recverr, 1)?;
    let _ = set_int(fd, names.level, names.recvtos, 1);
    if let Some(device) = options.device {
        bind_to_device(fd, device)?;
    }
    Ok(())
}

/// Bind to the wanted port, else to any. True: it is the wanted one.
fn bind_any(fd: &OwnedFd, options: &OpenOptions<'_>) -> io::Result<bool> {
    if options.port != 0 {
        match bind(fd, options.address(options.port)) {
            Ok(()) => return Ok(true),
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EADDRINUSE | libc::EACCES | libc::EPERM)
                ) => {}
            Err(e) => return Err(e),
        }
    }
    bind(fd, options.address(0))?;
    Ok(false)
}

/// The local port, or identifier of a ping socket.
///
/// # Errors
/// As getsockname(2).
pub fn local_port(fd: BorrowedFd<'_>) -> io::Result<u16> {
    let name: nix::sys::socket::SockaddrStorage = nix::sys::socket::getsockname(fd.as_raw_fd())?;
    let v4 = name
        .as_sockaddr_in()
        .map(nix::sys::socket::SockaddrIn::port);
    v4.or_else(|| {
        name.as_sockaddr_in6()
            .map(nix::sys::socket::SockaddrIn6::port)
    })
    .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Connect a datagram socket: fixes peer and route, and lets only that peer's datagrams in.
///
/// # Errors
/// As connect(2); EACCES for a broadcast address unless that is permitted.
pub fn connect(fd: BorrowedFd<'_>, peer: SocketAddr) -> io::Result<()> {
    stream::connect(fd, peer)
}

/// Undo [`connect`]. The port stays if it was asked for by number (udp(7) is silent; SOCK_BINDPORT_LOCK in the
/// kernel).
///
/// # Errors
/// As connect(2).
pub fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    let unspecified = [0_u8; size_of::<libc::sockaddr_in>()];
    let address = unspecified.as_ptr().cast();
    let len = libc::socklen_t::try_from(unspecified.len()).unwrap_or_default();
    // SAFETY: `address` is readable for `len` bytes; all zeroes is the family AF_UNSPEC.
    let result = unsafe { libc::connect(fd.as_raw_fd(), address, len) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The path MTU a connected socket knows, in bytes of IP packet.
///
/// # Errors
/// As getsockopt(2): ENOTCONN.
pub fn path_mtu(fd: BorrowedFd<'_>, ipv6: bool) -> io::Result<u32> {
    let (level, name) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU)
    };
    read_option(fd, level, name, 0_u32)
}

/// Permit multicast and broadcast destinations; do not receive for groups that others have joined; tell for each
/// message whether it was sent to a group.
///
/// # Errors
/// As setsockopt(2).
pub fn enable_groups(fd: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let names = names(ipv6);
    // Not in IPv6 before Linux 4.20; what is received too much then is recognised by its destination.
    let _ = set_int(fd, names.level, names.multicast_all, 0);
    set_int(fd, names.level, names.pktinfo, 1)?;
    if ipv6 {
        Ok(())
    } else {
        set_int(fd, libc::SOL_SOCKET, libc::SO_BROADCAST, 1)
    }
}

/// True: set DF, and refuse what does not fit the path MTU. False: never set DF, fragment here if need be.
///
/// # Errors
/// As setsockopt(2).
pub fn set_dont_fragment(fd: BorrowedFd<'_>, ipv6: bool, on: bool) -> io::Result<()> {
    // IPv6 has no DF bit to leave out: fragmenting at the source is what WANT does.
    let mode = match (ipv6, on) {
        (false, true) => libc::IP_PMTUDISC_DO,
        (false, false) => libc::IP_PMTUDISC_DONT,
        (true, true) => libc::IPV6_PMTUDISC_DO,
        (true, false) => libc::IPV6_PMTUDISC_WANT,
    };
    let names = names(ipv6);
    set_int(fd, names.level, names.mtu_discover, mode)
}
