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
    let fd = unbound_udp(options)?;
    let had_port = bind_any(&fd, options)?;
    Ok((fd, had_port))
}

/// The same, not bound to anything yet.
///
/// # Errors
/// As socket(2).
pub fn open_unbound_udp(ipv6: bool) -> io::Result<OwnedFd> {
    unbound_udp(&OpenOptions {
        ipv6,
        source: None,
        device: None,
        scope: 0,
        port: 0,
    })
}

fn unbound_udp(options: &OpenOptions<'_>) -> io::Result<OwnedFd> {
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
    Ok(fd)
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
    Ok(local_address(fd)?.port())
}

/// The local address; IPv4-mapped ones stay mapped, as they tell the socket's family.
///
/// # Errors
/// As getsockname(2).
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let name: nix::sys::socket::SockaddrStorage = nix::sys::socket::getsockname(fd.as_raw_fd())?;
    let v4 = name
        .as_sockaddr_in()
        .map(|a| SocketAddr::new(a.ip().into(), a.port()));
    v4.or_else(|| {
        name.as_sockaddr_in6()
            .map(|a| SocketAddr::new(a.ip().into(), a.port()))
    })
    .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Bind to a source address, any port.
///
/// # Errors
/// As bind(2).
pub fn bind_source(fd: BorrowedFd<'_>, source: IpAddr) -> io::Result<()> {
    bind(fd, SocketAddr::new(source, 0))
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

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, IoSliceMut};
    use std::net::UdpSocket;
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::sys::errqueue;
    use crate::sys::mmsg::{self, Arrival, Scratch, SendOptions};

    const PLAIN: SendOptions = SendOptions {
        to: None,
        hop_limit: None,
        tos: 0,
        source: None,
        ipv6: false,
    };

    fn wait(socket: &Socket, what: PollFlags) -> PollFlags {
        let mut fds = [PollFd::new(socket.0.as_fd(), what)];
        assert_eq!(
            poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(),
            1,
            "nothing happened"
        );
        fds[0].revents().unwrap()
    }

    /// The calls of this file and of `mmsg`, with errors as numbers.
    struct Socket(OwnedFd);

    impl Socket {
        fn send_segments(&self, how: &SendOptions, parts: &[IoSlice<'_>], size: u16) {
            mmsg::send(self.0.as_fd(), how, parts, Some(size)).unwrap();
        }

        fn send_each(&self, how: &SendOptions, parts: &[IoSlice<'_>]) -> (usize, Option<i32>) {
            let (sent, error) = mmsg::send_each(self.0.as_fd(), how, parts);
            (sent, error.map(|e| e.raw_os_error().unwrap()))
        }

        fn next_error(&self, payload: &mut [u8]) -> Option<errqueue::Record> {
            errqueue::next(&self.0, payload).unwrap()
        }

        fn port(&self) -> u16 {
            local_port(self.0.as_fd()).unwrap()
        }
    }

    fn options(ipv6: bool, port: u16) -> OpenOptions<'static> {
        OpenOptions {
            ipv6,
            source: None,
            device: None,
            scope: 0,
            port,
        }
    }

    fn open(ipv6: bool, port: u16) -> (Socket, bool) {
        let (fd, had) = open_udp(&options(ipv6, port)).unwrap();
        (Socket(fd), had)
    }

    fn server(address: &str) -> (UdpSocket, SocketAddr) {
        let server = UdpSocket::bind(address).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let address = server.local_addr().unwrap();
        (server, address)
    }

    fn receive(socket: &Socket) -> (Vec<Arrival>, Vec<Vec<u8>>) {
        wait(socket, PollFlags::POLLIN);
        let mut arena = vec![vec![0; 65536]; 8];
        let mut out = Vec::new();
        let count = {
            let mut bufs: Vec<_> = arena.iter_mut().map(|b| IoSliceMut::new(b)).collect();
            Scratch::new()
                .receive(socket.0.as_fd(), &mut bufs, |_, one| out.push(one))
                .unwrap()
        };
        for (buf, message) in arena.iter_mut().zip(&out) {
            buf.truncate(message.len);
        }
        arena.truncate(count);
        assert_eq!(out.len(), count);
        (out, arena)
    }

    #[test]
    fn segments_arrive_as_datagrams() {
        for (address, ipv6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let (server, peer) = server(address);
            let (socket, _) = open(ipv6, 0);
            connect(socket.0.as_fd(), peer).unwrap();
            set_dont_fragment(socket.0.as_fd(), ipv6, true).unwrap();
            let data = [7_u8; 2500];
            let parts = [
                IoSlice::new(&data[..1000]),
                IoSlice::new(&data[..1000]),
                IoSlice::new(&data[..500]),
            ];
            let how = SendOptions {
                ipv6,
                hop_limit: Some(9),
                tos: 0x28,
                ..PLAIN
            };
            socket.send_segments(&how, &parts, 1000);
            let mut buf = [0; 3000];
            for want in [1000, 1000, 500] {
                assert_eq!(server.recv(&mut buf).unwrap(), want);
            }
            assert_eq!(socket.send_each(&how, &parts), (3, None));
            for want in [1000, 1000, 500] {
                assert_eq!(server.recv(&mut buf).unwrap(), want);
            }
        }
    }

    #[test]
    fn coalesced_receive_and_traffic_class() {
        for (address, ipv6) in [("127.0.0.1", false), ("::1", true)] {
            let (a, _) = open(ipv6, 0);
            let (b, _) = open(ipv6, 0);
            let end = |s: &Socket| SocketAddr::new(address.parse().unwrap(), s.port());
            connect(a.0.as_fd(), end(&b)).unwrap();
            let data = [3_u8; 1200];
            let parts = [
                IoSlice::new(&data),
                IoSlice::new(&data),
                IoSlice::new(&data[..100]),
            ];
            let how = SendOptions {
                ipv6,
                tos: 0x03,
                ..PLAIN
            };
            a.send_segments(&how, &parts, 1200);
            let (messages, payloads) = receive(&b);
            let total: usize = messages.iter().map(|m| m.len).sum();
            assert_eq!(total, 2500);
            assert_eq!((messages[0].from, messages[0].tos), (end(&a), 3));
            // Loopback hands the segmented send over whole.
            assert_eq!((messages.len(), messages[0].segment), (1, 1200));
            assert!(payloads[0].iter().all(|b| *b == 3));
        }
    }

    #[test]
    fn refusal_is_in_the_error_queue_and_is_reported_once() {
        for (address, ipv6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let (gone, peer) = server(address);
            drop(gone);
            let (socket, _) = open(ipv6, 0);
            let how = SendOptions {
                to: Some(peer),
                ipv6,
                ..PLAIN
            };
            assert_eq!(
                socket.send_each(&how, &[IoSlice::new(b"anybody?")]),
                (1, None)
            );
            assert!(wait(&socket, PollFlags::POLLIN).contains(PollFlags::POLLERR));
            let mut payload = [0; 64];
            let record = socket.next_error(&mut payload).unwrap();
            assert_eq!(record.errno, libc::ECONNREFUSED);
            assert_eq!(record.destination, Some(peer));
            assert_eq!(record.offender, Some(peer.ip()));
            assert_eq!(&payload[..record.len], b"anybody?");
            let origin = if ipv6 {
                errqueue::Origin::Icmpv6
            } else {
                errqueue::Origin::Icmp
            };
            assert_eq!(record.origin, origin);
            assert_eq!(
                (record.message_type, record.code),
                if ipv6 { (1, 4) } else { (3, 3) }
            );
            assert_eq!(socket.next_error(&mut payload), None);
            assert_eq!(stream::take_error(&socket.0).unwrap(), 0);
            let mut fds = [PollFd::new(socket.0.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 0);
        }
    }

    #[test]
    fn a_pending_error_is_met_once_and_then_the_datagram_goes() {
        let (gone, peer) = server("127.0.0.1:0");
        drop(gone);
        let (server, good) = server("127.0.0.1:0");
        let (socket, _) = open(false, 0);
        let how = |to| SendOptions {
            to: Some(to),
            ..PLAIN
        };
        assert_eq!(socket.send_each(&how(peer), &[IoSlice::new(b"x")]).0, 1);
        wait(&socket, PollFlags::POLLIN);
        let parts = [IoSlice::new(b"1"), IoSlice::new(b"2")];
        assert_eq!(
            socket.send_each(&how(good), &parts),
            (0, Some(libc::ECONNREFUSED))
        );
        assert_eq!(socket.send_each(&how(good), &parts), (2, None));
        let mut buf = [0; 4];
        assert_eq!(server.recv(&mut buf).unwrap(), 1);
        assert_eq!(buf[0], b'1');
    }

    #[test]
    fn too_big_names_the_mtu() {
        let (_server, peer) = server("127.0.0.1:0");
        let (socket, _) = open(false, 0);
        connect(socket.0.as_fd(), peer).unwrap();
        set_dont_fragment(socket.0.as_fd(), false, true).unwrap();
        // Loopback's MTU is more than any datagram has: only a payload no packet can hold is refused.
        let huge = vec![0; 65508];
        assert_eq!(
            socket.send_each(&PLAIN, &[IoSlice::new(&huge)]),
            (0, Some(libc::EMSGSIZE))
        );
        assert_eq!(path_mtu(socket.0.as_fd(), false).unwrap(), 65535);
        assert_eq!(
            socket.send_each(&PLAIN, &[IoSlice::new(&huge[..65507])]),
            (1, None)
        );
    }

    #[test]
    fn the_port_is_exclusive_and_survives_a_dissolved_connection() {
        let (first, peer) = server("127.0.0.1:0");
        let (second, other) = server("127.0.0.1:0");
        let port = {
            let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
            probe.local_addr().unwrap().port()
        };
        let (socket, had) = open(false, port);
        assert!(had);
        let (_another, had) = open(false, port);
        assert!(!had, "two sockets share a port");
        connect(socket.0.as_fd(), peer).unwrap();
        assert_eq!(socket.send_each(&PLAIN, &[IoSlice::new(b"1")]), (1, None));
        disconnect(socket.0.as_fd()).unwrap();
        assert_eq!(
            socket.send_each(
                &SendOptions {
                    to: Some(other),
                    ..PLAIN
                },
                &[IoSlice::new(b"2")]
            ),
            (1, None)
        );
        let mut buf = [0; 4];
        let (_, from) = first.recv_from(&mut buf).unwrap();
        assert_eq!(from.port(), port);
        let (_, from) = second.recv_from(&mut buf).unwrap();
        assert_eq!(from.port(), port);
        // And both can answer now.
        first.send_to(b"a", from).unwrap();
        let (messages, _) = receive(&socket);
        assert_eq!(messages[0].from, peer);
    }

    #[test]
    fn nothing_to_receive_and_short_buffers() {
        let (socket, _) = open(false, 0);
        let mut buf = [0; 4];
        let mut truncated = false;
        let mut once = || {
            let mut bufs = [IoSliceMut::new(&mut buf)];
            Scratch::new().receive(socket.0.as_fd(), &mut bufs, |_, one| {
                truncated = one.truncated;
            })
        };
        assert_eq!(once().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender
            .send_to(b"too long", ("127.0.0.1", socket.port()))
            .unwrap();
        wait(&socket, PollFlags::POLLIN);
        assert_eq!(once().unwrap(), 1);
        assert!(truncated);
    }

    #[test]
    fn groups_are_recognised() {
        let (socket, _) = open(false, 0);
        enable_groups(socket.0.as_fd(), false).unwrap();
        let port = socket.port();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"you", ("127.0.0.1", port)).unwrap();
        let (messages, _) = receive(&socket);
        assert!(!messages[0].group);
        sender.set_broadcast(true).unwrap();
        sender.send_to(b"all", ("127.255.255.255", port)).unwrap();
        let (messages, _) = receive(&socket);
        assert!(messages[0].group);
    }

    /// Needs a ping_group_range that includes the tester; where it does not, the kernel must say so.
    #[test]
    fn ping_identifiers_are_exclusive() {
        for (address, ipv6) in [("127.0.0.1", false), ("::1", true)] {
            let (socket, ident) = match open_ping(&options(ipv6, 54_321)) {
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::EACCES));
                    continue;
                }
                Ok((fd, ident)) => (Socket(fd), ident),
            };
            assert_eq!(ident, 54_321);
            let (_second, other) = open_ping(&options(ipv6, 54_321)).unwrap();
            assert_ne!(other, ident);
            let to = SocketAddr::new(address.parse().unwrap(), 0);
            let how = SendOptions {
                to: Some(to),
                hop_limit: Some(3),
                ipv6,
                ..PLAIN
            };
            let mut request = vec![if ipv6 { 128 } else { 8 }, 0, 0, 0, 0, 0, 0, 7];
            request.extend([0x55; 3000]);
            assert_eq!(socket.send_each(&how, &[IoSlice::new(&request)]), (1, None));
            let (messages, payloads) = receive(&socket);
            assert_eq!(messages[0].from.ip(), to.ip());
            assert_eq!(payloads[0][0], if ipv6 { 129 } else { 0 });
            assert_eq!(payloads[0][4..6], 54_321_u16.to_be_bytes());
            assert_eq!(payloads[0][6..], request[6..]);
        }
    }

    /// What a listener for both families sees of an IPv4 peer, and how it answers from the address that was asked.
    #[test]
    fn dual_stack_listeners_show_plain_ipv4_and_answer_from_where_they_were_asked() {
        let family = AddressFamily::Inet6;
        let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_NONBLOCK);
        let fd = nix::sys::socket::socket(family, kind, flags, None).unwrap();
        for (level, name) in [
            (libc::IPPROTO_IP, libc::IP_PKTINFO),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            (libc::IPPROTO_IP, libc::IP_RECVTOS),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
            (libc::IPPROTO_IP, libc::IP_RECVERR),
            (libc::SOL_UDP, libc::UDP_GRO),
        ] {
            set_int(&fd, level, name, 1).unwrap();
        }
        set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0).unwrap();
        bind(&fd, "[::]:0".parse().unwrap()).unwrap();
        let listener = Socket(fd);
        let address = local_address(listener.0.as_fd()).unwrap();
        assert!(address.is_ipv6() && address.ip().is_unspecified());
        for (local, ipv6) in [("127.0.0.9", false), ("::1", true)] {
            let local: IpAddr = local.parse().unwrap();
            let (peer, here) = server(if ipv6 { "[::1]:0" } else { "127.0.0.1:0" });
            peer.send_to(b"question", (local, address.port())).unwrap();
            let (messages, _) = receive(&listener);
            let got = messages[0];
            assert_eq!((got.from, got.to, got.group), (here, Some(local), false));
            let how = SendOptions {
                to: Some(got.from),
                source: got.to,
                hop_limit: Some(7),
                tos: 0x20,
                ipv6,
            };
            set_dont_fragment(listener.0.as_fd(), ipv6, true).unwrap();
            let parts = [IoSlice::new(b"1234"), IoSlice::new(b"5678")];
            listener.send_segments(&how, &parts, 4);
            assert_eq!(listener.send_each(&how, &parts), (2, None));
            let mut buf = [0; 16];
            for _ in 0..4 {
                let (len, from) = peer.recv_from(&mut buf).unwrap();
                assert_eq!((len, from), (4, SocketAddr::new(local, address.port())));
            }
            // The peer is gone: the complaint names it as it was named to us.
            drop(peer);
            let (sent, _) = listener.send_each(&how, &[IoSlice::new(b"late")]);
            assert_eq!(sent, 1);
            if !ipv6 {
                wait(&listener, PollFlags::POLLERR);
                let record = listener.next_error(&mut [0; 64]).unwrap();
                assert_eq!(record.destination, Some(here));
                assert_eq!(record.errno, libc::ECONNREFUSED);
            }
        }
    }
}
