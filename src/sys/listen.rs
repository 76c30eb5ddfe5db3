//! Listening sockets: TCP that accept, UDP that are bound and take datagrams of anybody.
//!
//! Everything an accepted connection should have is set on the listener, once: the kernel copies it to each
//! connection (`sk_clone` in net/core/sock.c), which saves the calls. The order of the options matters: the
//! interface comes before bind(2), as a link-local address is refused without one.
//!
//! A dual-stack socket is an IPv6 one that takes IPv4 too: peers and destinations of IPv4 come as
//! `::ffff:a.b.c.d`. IPv4's traffic class and errors then need the options of *both* levels; the destination comes
//! as IPV6_PKTINFO for both families, and for IPv4 as IP_PKTINFO as well, which alone tells a broadcast.
//!
//! What a process must be allowed for this, in calls and their arguments (levels and names as in the headers):
//!
//! | call | arguments |
//! | --- | --- |
//! | socket | (AF_INET 2 or AF_INET6 10, SOCK_STREAM\|NONBLOCK\|CLOEXEC 526337, IPPROTO_TCP 6) |
//! | socket | (AF_INET 2 or AF_INET6 10, SOCK_DGRAM\|NONBLOCK\|CLOEXEC 526338, IPPROTO_UDP 17) |
//! | setsockopt, all | SO_BINDTODEVICE (1, 25), IPV6_V6ONLY (41, 26), IP_FREEBIND (0, 15), IPV6_FREEBIND (41, 78) |
//! | setsockopt, TCP | SO_REUSEADDR (1, 2), SO_KEEPALIVE (1, 9), SO_OOBINLINE (1, 10), SO_PEEK_OFF (1, 42) |
//! | setsockopt, TCP | TCP_NODELAY (6, 1) |
//! | setsockopt, UDP | SO_SNDBUF (1, 7), SO_RCVBUF (1, 8), UDP_GRO (17, 104) |
//! | setsockopt, UDP | IP_PKTINFO (0, 8), IP_RECVERR (0, 11), IP_RECVTOS (0, 13) |
//! | setsockopt, UDP | IPV6_RECVERR (41, 25), IPV6_RECVPKTINFO (41, 49), IPV6_RECVTCLASS (41, 66) |
//! | bind | address of 16 or 28 bytes |
//! | listen | backlog -1: as much as `net.core.somaxconn` allows |

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use libc::c_int;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockProtocol, SockType};

use super::stream::{bind, bind_to_device, set_int, set_peek_offset};

/// More than any rmem_max or wmem_max; the kernel takes what they allow and doubles it. Only what is queued
/// is ever paid for.
const HUGE: c_int = 1 << 29;
/// linux/in6.h; not in libc.
const IPV6_FREEBIND: c_int = 78;
/// The only interface that stands for an address, on kernels where binding to one takes a privilege.
const LOOPBACK: &str = "lo";

/// Where to listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listen<'a> {
    /// On this address; `None`: on all of both families, with one socket.
    pub address: Option<IpAddr>,
    /// IPv4 is on.
    pub ipv4: bool,
    /// IPv6 is on.
    pub ipv6: bool,
    /// On this interface only.
    pub interface: Option<&'a str>,
    /// On this port; 0: the kernel chooses.
    pub port: u16,
    /// The address need not exist (`--freebind`).
    pub freebind: bool,
}

/// The family of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    V4,
    V6,
    /// IPv6 that takes IPv4 too.
    Dual,
}

impl Listen<'_> {
    const fn family(&self) -> Family {
        match self.address {
            Some(IpAddr::V4(_)) => Family::V4,
            Some(IpAddr::V6(_)) => Family::V6,
            None if !self.ipv6 => Family::V4,
            None if !self.ipv4 => Family::V6,
            None => Family::Dual,
        }
    }

    fn socket_address(&self, family: Family) -> SocketAddr {
        let address = self.address.unwrap_or(match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 | Family::Dual => Ipv6Addr::UNSPECIFIED.into(),
        });
        SocketAddr::new(address, self.port)
    }
}

/// A listening TCP socket, with the longest queue the kernel grants. What it accepts is non-blocking only if
/// accept4(2) is told so, has TCP_NODELAY, SO_KEEPALIVE, SO_OOBINLINE and, where the kernel knows it, a peek offset of 0.
///
/// # Errors
/// As socket(2), bind(2) and listen(2); EPERM for an interface on kernels before 5.7.
pub fn tcp(listen: &Listen<'_>) -> io::Result<OwnedFd> {
    with_fallbacks(listen, |listen, family| {
        let fd = open(family, SockType::Stream, SockProtocol::Tcp)?;
        // A port whose connections are still dying can be listened on again.
        set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        set_int(&fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        set_int(&fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
        set_int(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        // Not before Linux 6.9, and there not for both families: set again by whoever relies on it.
        let _ = set_peek_offset(&fd, 0);
        place(&fd, listen, family)?;
        nix::sys::socket::listen(&fd, Backlog::MAXALLOWABLE)?;
        Ok(fd)
    })
}

/// A bound UDP socket that nobody shares: datagrams come with destination and traffic class, bursts in one piece
/// (UDP_GRO), and errors in the error queue.
///
/// # Errors
/// As [`tcp`], without listen(2).
pub fn udp(listen: &Listen<'_>) -> io::Result<OwnedFd> {
    with_fallbacks(listen, |listen, family| {
        let fd = open(family, SockType::Datagram, SockProtocol::Udp)?;
        // What can be had is had; the rest is speed.
        let _ = set_int(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, HUGE);
        let _ = set_int(&fd, libc::SOL_SOCKET, libc::SO_SNDBUF, HUGE);
        let _ = set_int(&fd, libc::SOL_UDP, libc::UDP_GRO, 1);
        if family != Family::V6 {
            set_int(&fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
            let _ = set_int(&fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
        }
        // With both families, too: what IPv6 says of an IPv4 datagram does not tell broadcasts.
        if family != Family::V6 {
            set_int(&fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        if family != Family::V4 {
            set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
            let _ = set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
            set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
        place(&fd, listen, family)?;
        Ok(fd)
    })
}

fn open(family: Family, kind: SockType, protocol: SockProtocol) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 | Family::Dual => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = nix::sys::socket::socket(domain, kind, flags, protocol)?;
    if family != Family::V4 {
        // The system's default (net.ipv6.bindv6only) is no business of ours.
        let only = c_int::from(family == Family::V6);
        set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, only)?;
    }
    Ok(fd)
}

/// Interface and address.
fn place(fd: &OwnedFd, listen: &Listen<'_>, family: Family) -> io::Result<()> {
    if listen.freebind {
        match family {
            Family::V4 => set_int(fd, libc::IPPROTO_IP, libc::IP_FREEBIND, 1)?,
            Family::V6 | Family::Dual => set_int(fd, libc::IPPROTO_IPV6, IPV6_FREEBIND, 1)?,
        }
    }
    if let Some(interface) = listen.interface {
        bind_to_device(fd, interface)?;
    }
    bind(fd, listen.socket_address(family))
}

/// Where both families are wanted but the kernel has no IPv6, IPv4 it is. Where binding to the loopback interface
/// is not allowed (before Linux 5.7), its IPv4 address does, or its IPv6 one if that is the only family: one port,
/// one socket.
fn with_fallbacks(
    listen: &Listen<'_>,
    make: impl Fn(&Listen<'_>, Family) -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    let family = listen.family();
    let error = match make(listen, family) {
        Err(e) => e,
        made => return made,
    };
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) if family == Family::Dual => {
            let narrow = Listen {
                ipv6: false,
                ..*listen
            };
            with_fallbacks(&narrow, make)
        }
        Some(libc::EPERM) if listen.interface == Some(LOOPBACK) => {
            let wildcard = listen.address.is_none_or(|a| a.is_unspecified());
            let (family, loopback) = match family {
                Family::V6 => (Family::V6, IpAddr::V6(Ipv6Addr::LOCALHOST)),
                Family::V4 | Family::Dual => (Family::V4, IpAddr::V4(Ipv4Addr::LOCALHOST)),
            };
            let narrow = Listen {
                address: if wildcard {
                    Some(loopback)
                } else {
                    listen.address
                },
                interface: None,
                ..*listen
            };
            make(&narrow, family)
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::datagram::local_port;
    use crate::sys::stream::read_option;

    const ANY: Listen<'static> = Listen {
        address: None,
        ipv4: true,
        ipv6: true,
        interface: None,
        port: 0,
        freebind: false,
    };

    fn at(address: &str) -> Listen<'static> {
        Listen {
            address: Some(address.parse().unwrap()),
            ..ANY
        }
    }

    fn option(fd: impl AsFd, level: c_int, name: c_int) -> c_int {
        read_option(fd.as_fd(), level, name, 0).unwrap()
    }

    #[test]
    fn a_dual_listener_takes_both_families_and_connections_inherit() {
        let fd = tcp(&ANY).unwrap();
        let port = local_port(fd.as_fd()).unwrap();
        let peek = option(&fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF);
        let listener = TcpListener::from(fd);
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let mut client = TcpStream::connect((address, port)).unwrap();
            listener.set_nonblocking(false).unwrap();
            let (mut server, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip().to_canonical(), address);
            assert_eq!(option(&server, libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
            assert_eq!(option(&server, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
            assert_eq!(option(&server, libc::SOL_SOCKET, libc::SO_OOBINLINE), 1);
            assert_eq!(option(&server, libc::SOL_SOCKET, libc::SO_PEEK_OFF), peek);
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
    }

    #[test]
    fn a_port_is_exclusive() {
        for make in [tcp, udp] {
            for address in ["127.0.0.1", "::1"] {
                let first = make(&at(address)).unwrap();
                let taken = Listen {
                    port: local_port(first.as_fd()).unwrap(),
                    ..at(address)
                };
                let error = make(&taken).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
            }
        }
    }

    #[test]
    fn one_family_leaves_the_other_alone() {
        let only = Listen { ipv4: false, ..ANY };
        let fd = udp(&only).unwrap();
        let port = local_port(fd.as_fd()).unwrap();
        assert!(UdpSocket::bind(("0.0.0.0", port)).is_ok());
        let only = Listen { ipv6: false, ..ANY };
        let fd = udp(&only).unwrap();
        let port = local_port(fd.as_fd()).unwrap();
        let six = Listen {
            ipv4: false,
            port,
            ..ANY
        };
        assert!(udp(&six).is_ok());
    }

    #[test]
    fn addresses_of_others_need_freebind() {
        for address in ["192.0.2.77", "2001:db8::77"] {
            for make in [tcp, udp] {
                let error = make(&at(address)).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
                let free = Listen {
                    freebind: true,
                    ..at(address)
                };
                make(&free).unwrap();
            }
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let listen = Listen {
            interface: Some("nosuchif0"),
            ..ANY
        };
        let error = tcp(&listen).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
