//! TCP's side effects: host sockets, and segments for the guest.
//!
//! A host socket is registered edge-triggered when it is made and never touched by epoll_ctl(2) again, unless
//! the engine asks for an edge it might have missed. Data for the guest is received straight behind the header of
//! the outgoing frame and written to the tap from there: one copy by us per direction, none in user space.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::OwnedFd;

use libc::{IPPROTO_TCP, SO_KEEPALIVE, SO_OOBINLINE, SOL_SOCKET, TCP_NODELAY, c_int};

use super::host::{EDGES, Host, IcmpError};
use super::token::Token;
use crate::addr::{Endpoint, Mac};
use crate::config::rules::RuleId;
use crate::flow::id::{FlowId, Key};
use crate::flow::traffic::Traffic;
use crate::flow::translate::{self, Protocol};
use crate::stats::Drop;
use crate::sys::piece::Piece;
use crate::sys::stream;
use crate::tap::frame::MAX_FRAME;
use crate::tcp::io::{
    ConnectError, Connecting, Info, Io, Outgoing, Relayed, SocketError, Space, Unreachable,
};
use crate::wire::frame::{Checksum, MAX_HEADER, Template};
use crate::wire::tcp::{Flags, Options, Repr, Seq};
use crate::wire::{ethernet, icmpv4, icmpv6};

/// A connection's socket.
#[derive(Debug)]
pub struct Socket {
    pub(super) fd: OwnedFd,
    peek_offset: Cell<PeekOffset>,
    /// Found behind data that was relayed; the kernel says it only once.
    failed: Cell<Option<SocketError>>,
    /// How much there was when data was last received in place, in bytes.
    pub(super) lately: Cell<u32>,
}

/// How a socket stands to SO_PEEK_OFF. It is turned on when data has to be peeked that is not the first: a
/// connection with a single short answer never needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PeekOffset {
    /// The kernel has none for it.
    Missing,
    /// Off: peeking begins at the first byte.
    Off,
    /// Accepted: it may have been inherited, switched on, from a listener on kernels that have it. (The address does
    /// not tell: IPv4 on a dual-stack listener is an IPv6 socket.) Peeking began at the first byte all the same, but
    /// may have moved on since.
    Unknown,
    /// On: peeking begins where the last one ended.
    On,
}

impl Socket {
    /// A non-blocking socket of our own. `offsets`: sockets of its family have SO_PEEK_OFF.
    pub(super) const fn new(fd: OwnedFd, offsets: bool) -> Self {
        let state = if offsets {
            PeekOffset::Off
        } else {
            PeekOffset::Missing
        };
        Self {
            fd,
            peek_offset: Cell::new(state),
            failed: Cell::new(None),
            lately: Cell::new(0),
        }
    }

    /// A non-blocking socket from accept4(2). `peeks_on`: it has inherited SO_PEEK_OFF, at 0.
    pub(super) const fn accepted(fd: OwnedFd, peeks_on: bool) -> Self {
        let state = if peeks_on {
            PeekOffset::On
        } else {
            PeekOffset::Unknown
        };
        Self {
            fd,
            peek_offset: Cell::new(state),
            failed: Cell::new(None),
            lately: Cell::new(0),
        }
    }

    /// See to it that peeking begins at `offset`, not 0; there it does if SO_PEEK_OFF is on. `false`: it cannot be done.
    fn peeks_from(&self, offset: u32) -> bool {
        if matches!(
            self.peek_offset.get(),
            PeekOffset::Off | PeekOffset::Unknown
        ) {
            self.turn_on(offset);
        }
        self.peek_offset.get() == PeekOffset::On
    }

    /// The same, if it can be done for all bytes behind that one as well.
    pub(super) fn peeks_on(&self, offset: u32) -> bool {
        // Peeking at the first bytes needs nothing.
        let here = offset == 0 || self.peeks_from(offset);
        here && self.peek_offset.get() != PeekOffset::Missing
    }

    /// An error was found behind data that is still good.
    pub(super) fn fails_later(&self, error: SocketError) {
        self.failed
            .set(Some(error).filter(|e| *e != SocketError::WouldBlock));
    }

    fn turn_on(&self, offset: u32) {
        let on = stream::set_peek_offset(&self.fd, offset).is_ok();
        let state = if on {
            PeekOffset::On
        } else {
            PeekOffset::Missing
        };
        self.peek_offset.set(state);
    }

    /// The next peek is to begin at `offset`.
    fn seek(&self, offset: u32) {
        if matches!(self.peek_offset.get(), PeekOffset::On | PeekOffset::Unknown) {
            self.turn_on(offset);
        }
    }
}

/// Which TCP sockets have SO_PEEK_OFF: those of IPv4 since Linux 6.9, those of IPv6 some versions later.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct PeekOffsets {
    v4: bool,
    v6: bool,
}

impl PeekOffsets {
    /// Ask the kernel.
    pub(super) fn probe() -> Self {
        let works = |any: IpAddr| {
            stream::socket(any).is_ok_and(|fd| stream::set_peek_offset(&fd, 0).is_ok())
        };
        Self {
            v4: works(Ipv4Addr::UNSPECIFIED.into()),
            v6: works(Ipv6Addr::UNSPECIFIED.into()),
        }
    }

    /// Does a connection with this address have it?
    pub(super) const fn of(self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// include/net/tcp_states.h. Both sides have finished (the kernel keeps TIME-WAIT elsewhere), or it has failed.
const TCP_CLOSE: u8 = 7;

/// Will no more data come, by the state of a connection?
const fn has_ended(state: u8) -> bool {
    /// include/net/tcp_states.h
    const TCP_TIME_WAIT: u8 = 6;
    const TCP_CLOSE_WAIT: u8 = 8;
    const TCP_LAST_ACK: u8 = 9;
    const TCP_CLOSING: u8 = 11;
    matches!(
        state,
        TCP_TIME_WAIT | TCP_CLOSE | TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING
    )
}

/// How a connection has ended that is in this state: with a FIN (0), or not.
fn end_of(fd: &OwnedFd, state: u8) -> io::Result<usize> {
    match stream::take_error(fd) {
        Ok(errno) if errno != 0 && state == TCP_CLOSE => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(0),
    }
}

/// What an errno means for a connection.
pub(super) fn classify(e: &io::Error) -> SocketError {
    if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
        return SocketError::WouldBlock;
    }
    e.raw_os_error().map_or(SocketError::Other, classify_errno)
}

pub(super) fn classify_errno(errno: c_int) -> SocketError {
    match errno {
        libc::ECONNREFUSED => SocketError::Refused,
        libc::ECONNRESET | libc::ECONNABORTED | libc::EPIPE => SocketError::Reset,
        libc::ETIMEDOUT => SocketError::TimedOut,
        libc::ENETUNREACH | libc::ENETDOWN => SocketError::Unreachable(Unreachable::Network),
        libc::EHOSTUNREACH | libc::EHOSTDOWN => SocketError::Unreachable(Unreachable::Host),
        libc::EACCES | libc::EPERM => SocketError::Unreachable(Unreachable::Prohibited),
        _ => SocketError::Other,
    }
}

pub(super) fn start_error(e: &io::Error) -> ConnectError {
    match e.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL) => {
            ConnectError::NoDescriptor
        }
        _ => ConnectError::Failed(classify(e)),
    }
}

/// What sockets of our own are given, and accepted ones inherit.
fn set_options(fd: &OwnedFd) -> io::Result<()> {
    stream::set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1)?;
    stream::set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1)?;
    stream::set_int(fd, SOL_SOCKET, SO_OOBINLINE, 1)
}

/// What came back before connect(2) did, as from a router in a namespace of this machine: an ICMP error that finds the
/// socket in use tells nobody, and the kernel goes on trying.
fn early_error(fd: &OwnedFd) -> io::Result<()> {
    match stream::take_error(fd)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// An end point as the kernel takes it, with a scope for link-local addresses.
fn scoped(end: Endpoint, scope: u32) -> SocketAddr {
    match end.ip {
        IpAddr::V6(ip) => SocketAddrV6::new(ip, end.port, 0, scope).into(),
        IpAddr::V4(_) => end.into(),
    }
}

impl Host {
    fn start_connection(&self, id: FlowId, key: &Key) -> Result<Socket, ConnectError> {
        let to = translate::outbound(&self.config, Protocol::Tcp, key.guest, key.remote)
            .map_err(ConnectError::Refused)?;
        let fd = stream::socket(to.dst.ip).map_err(|e| start_error(&e))?;
        let prepare = || -> io::Result<()> {
            set_options(&fd)?;
            if let Some(device) = to.device {
                stream::bind_to_device(&fd, device)?;
            }
            if let Some(source) = to.source {
                stream::bind(&fd, SocketAddr::new(source, 0))?;
            }
            self.watch(&fd, EDGES, Token::Tcp(id))?;
            match stream::connect(&fd, scoped(to.dst, to.scope)) {
                Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => early_error(&fd),
                other => other,
            }
        };
        prepare().map_err(|e| start_error(&e))?;
        let offsets = self.peek_offsets.of(to.dst.ip);
        Ok(Socket::new(fd, offsets))
    }

    /// Peek at `room.len()` bytes that begin `offset` behind the first unconsumed one. 0: there will be no more.
    fn peek(&mut self, socket: &Socket, offset: u32, room: Range<usize>) -> io::Result<usize> {
        let room = self.frame.space().get_mut(room).unwrap_or_default();
        if offset == 0 || socket.peeks_from(offset) {
            return stream::peek(&socket.fd, room);
        }
        let mut ended = None;
        loop {
            match stream::peek_behind(&socket.fd, offset as usize, &mut self.scratch, room) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if let Some(state) = ended {
                        return end_of(&socket.fd, state);
                    }
                    // Whether that is all there will ever be, the bytes in front do not let us see.
                    match stream::info(&socket.fd) {
                        // The last data may have come after the first look.
                        Ok(i) if has_ended(i.state) => ended = Some(i.state),
                        _ => return Err(e),
                    }
                }
                other => return other,
            }
        }
    }

    fn relay_frames(
        &mut self,
        socket: &Socket,
        out: &Outgoing<'_>,
        offset: u32,
        max: u32,
    ) -> Result<Relayed, SocketError> {
        if let Some(error) = socket.failed.take() {
            return Err(error);
        }
        let template = self.template(out.key.remote, out.key.guest);
        if let Some(lane) = self
            .lane(&template, out)
            .filter(|_| socket.peeks_on(offset))
        {
            return self.relay_direct((lane, &template), socket, out, (offset, max));
        }
        let header_len = template.tcp_header_len(&out.repr);
        let most = largest_payload(template.ip_end(), header_len, out.mss);
        let mut done = Relayed::default();
        let mut repr = out.repr;
        while done.peeked < max {
            let want = most.min(max.saturating_sub(done.peeked) as usize);
            let room = header_len..header_len.saturating_add(want);
            let n = match self.peek(socket, offset.saturating_add(done.peeked), room) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if done.peeked == 0 => return Err(classify(&e)),
                Err(e) => {
                    socket.fails_later(classify(&e));
                    break;
                }
            };
            // At most a frame's worth.
            let count = u32::try_from(n).unwrap_or(u32::MAX);
            repr.seq = out.repr.seq.add(done.peeked);
            done.peeked = done.peeked.saturating_add(count);
            let header = template.emit_tcp(self.frame.space(), &repr, n, Checksum::Partial);
            let offload = template.tcp_offload(header_len, n, out.mss);
            if header.is_none() || !self.transmit(header_len.saturating_add(n), offload) {
                done.refused = true;
                break;
            }
            done.sent = done.sent.saturating_add(count);
            if n < want {
                break;
            }
        }
        Ok(done)
    }

    fn emit_segment(&mut self, key: &Key, repr: &Repr) {
        let template = self.template(key.remote, key.guest);
        if let Some(len) = template.emit_tcp(self.frame.space(), repr, 0, Checksum::Partial) {
            let offload = template.tcp_offload(len, 0, 0);
            if repr.flags == Flags::ACK {
                self.link.acknowledge(&mut self.frame, len, offload);
            } else {
                self.transmit(len, offload);
            }
        }
    }

    /// The guest's SYN, as far as an error about it has to quote it, is rebuilt from what is known of it.
    fn report_unreachable(&mut self, key: &Key, seq: Seq, why: Unreachable) {
        let syn = Repr {
            src_port: key.guest.port,
            dst_port: key.remote.port,
            seq,
            ack: Seq(0),
            flags: Flags::SYN,
            window: 0,
            urgent: 0,
            options: Options::NONE,
        };
        let mut quote = [0; MAX_HEADER];
        let template = Template::new(Mac::ZERO, Mac::ZERO, key.guest, key.remote);
        let Some(len) = template.emit_tcp(&mut quote, &syn, 0, Checksum::Full(&[])) else {
            return;
        };
        let ipv6 = key.remote.is_ipv6();
        let (kind, code) = match (why, ipv6) {
            (Unreachable::Network, false) => (icmpv4::UNREACHABLE, icmpv4::unreachable::NETWORK),
            (Unreachable::Host, false) => (icmpv4::UNREACHABLE, icmpv4::unreachable::HOST),
            (Unreachable::Prohibited, false) => {
                (icmpv4::UNREACHABLE, icmpv4::unreachable::PROHIBITED)
            }
            (Unreachable::Network, true) => (icmpv6::UNREACHABLE, icmpv6::unreachable::NO_ROUTE),
            (Unreachable::Host, true) => (icmpv6::UNREACHABLE, icmpv6::unreachable::ADDRESS),
            (Unreachable::Prohibited, true) => {
                (icmpv6::UNREACHABLE, icmpv6::unreachable::PROHIBITED)
            }
        };
        let from = self.our_address(ipv6).unwrap_or(key.remote.ip);
        let packet = quote.get(ethernet::HEADER_LEN..len).unwrap_or_default();
        self.send_icmp_error(
            from,
            IcmpError {
                kind,
                code,
                info: 0,
            },
            packet,
        );
    }
}

/// Most payload in one frame: what IP's 16-bit length leaves, in whole segments where more than one fits.
pub(super) fn largest_payload(ip_end: usize, header_len: usize, mss: u16) -> usize {
    // IPv4 counts its own header, IPv6 does not; 20 bytes less are no loss.
    let most = usize::from(u16::MAX)
        .saturating_sub(header_len)
        .saturating_add(ethernet::HEADER_LEN)
        .min(MAX_FRAME.saturating_sub(ip_end));
    let mss = usize::from(mss).max(1);
    most.checked_div(mss)
        .filter(|n| *n > 0)
        .map_or(most, |n| n.saturating_mul(mss))
}

impl Io for Host {
    type Socket = Socket;

    fn tells_of_room(&self) -> bool {
        self.link.tap.tells_of_room()
    }

    fn connect(&mut self, id: FlowId, key: &Key) -> Result<Socket, ConnectError> {
        self.start_connection(id, key)
    }

    fn adopt(&mut self, id: FlowId, socket: &Socket) -> bool {
        self.watch(&socket.fd, EDGES, Token::Tcp(id)).is_ok()
    }

    fn connected(&mut self, socket: &Socket) -> Connecting {
        /// include/net/tcp_states.h
        const TCP_SYN_SENT: u8 = 2;
        match stream::info(&socket.fd) {
            Ok(i) if i.state == TCP_SYN_SENT => Connecting::Pending,
            Ok(i) if i.state == TCP_CLOSE => {
                Connecting::Failed(self.take_error(socket).unwrap_or(SocketError::Reset))
            }
            Ok(i) => Connecting::Done(engine_info(&i)),
            Err(e) => Connecting::Failed(classify(&e)),
        }
    }

    fn send(&mut self, socket: &Socket, data: &[Piece<'_>]) -> Result<usize, SocketError> {
        stream::send(&socket.fd, data, false).map_err(|e| classify(&e))
    }

    fn shutdown_write(&mut self, socket: &Socket) {
        // Fails only if the connection is gone already, which its error event says.
        let _ = stream::shutdown_write(&socket.fd);
    }

    fn relay(
        &mut self,
        socket: &Socket,
        frame: &Outgoing<'_>,
        offset: u32,
        max: u32,
    ) -> Result<Relayed, SocketError> {
        self.relay_frames(socket, frame, offset, max)
    }

    fn seek(&mut self, socket: &Socket, offset: u32) {
        socket.seek(offset);
    }

    fn consume(&mut self, socket: &Socket, n: u32) {
        let mut left = n as usize;
        while left > 0 {
            match stream::discard(&socket.fd, left) {
                Ok(0) => return,
                Ok(done) => left = left.saturating_sub(done),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn info(&mut self, socket: &Socket) -> Info {
        stream::info(&socket.fd).map_or_else(|_| Info::default(), |i| engine_info(&i))
    }

    fn space(&mut self, socket: &Socket) -> Space {
        let b = stream::send_buffer(&socket.fd).unwrap_or_default();
        Space {
            size: b.size,
            queued: b.queued,
        }
    }

    fn take_error(&mut self, socket: &Socket) -> Option<SocketError> {
        if let Some(error) = socket.failed.take() {
            return Some(error);
        }
        match stream::take_error(&socket.fd) {
            Ok(0) => None,
            Ok(errno) => Some(classify_errno(errno)),
            Err(e) => Some(classify(&e)),
        }
    }

    fn close(&mut self, socket: Socket) {
        drop(socket);
    }

    fn reset(&mut self, socket: Socket) {
        // If it fails the peer gets FIN instead of RST: nothing better can be done.
        let _ = stream::linger_zero(&socket.fd);
    }

    fn emit(&mut self, key: &Key, repr: &Repr) {
        self.emit_segment(key, repr);
    }

    fn unreachable(&mut self, key: &Key, seq: Seq, why: Unreachable) {
        self.report_unreachable(key, seq, why);
    }

    fn drop(&mut self, why: Drop) {
        self.link.counters.drop(why);
    }

    fn finished(&mut self, rule: Option<RuleId>, traffic: &Traffic) {
        self.flow_finished(rule, traffic);
    }
}

fn engine_info(i: &stream::TcpInfo) -> Info {
    Info {
        bytes_acked: i.bytes_acked,
        rtt: i.rtt,
        min_rtt: i.min_rtt,
        receive_window: i.rcv_ssthresh,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

    use super::*;
    use crate::forwarder::testing;
    use crate::sys::scm;
    use crate::wire::dissect::{self, Body, Upper};
    use crate::wire::virtio_net;

    const MSS: u16 = 1400;

    /// A host whose tap is one end of a socket pair, a connection to a peer, and the other end of both.
    struct Bench {
        host: Host,
        guest: OwnedFd,
        socket: Socket,
        peer: TcpStream,
        key: Key,
    }

    impl Bench {
        fn new(listen: &str, offsets: bool) -> Self {
            let (mut host, guest) = testing::host();
            if !offsets {
                host.peek_offsets = PeekOffsets::default();
            }
            let listener = TcpListener::bind(listen).unwrap();
            let at = listener.local_addr().unwrap();
            let fd = stream::socket(at.ip()).unwrap();
            set_options(&fd).unwrap();
            let _ = stream::connect(&fd, at);
            let (peer, from) = listener.accept().unwrap();
            let socket = Socket::new(fd, host.peek_offsets.of(at.ip()));
            Self {
                host,
                guest,
                socket,
                peer,
                key: Key::new(from.into(), at.into()),
            }
        }

        fn wait(&self) {
            let mut fds = [PollFd::new(self.socket.fd.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(), 1);
        }

        /// Wait until the kernel has got the peer's FIN.
        fn wait_fin(&self) {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
            let event = EpollEvent::new(EpollFlags::EPOLLRDHUP, 0);
            epoll.add(&self.socket.fd, event).unwrap();
            let mut events = [EpollEvent::empty()];
            assert_eq!(epoll.wait(&mut events, 5000_u16).unwrap(), 1);
        }

        fn repr(&self, offset: u32) -> Repr {
            Repr {
                src_port: self.key.remote.port,
                dst_port: self.key.guest.port,
                seq: Seq(offset),
                ack: Seq(0),
                flags: Flags::ACK,
                window: 1000,
                urgent: 0,
                options: Options::NONE,
            }
        }

        /// The peer resets; wait until the kernel has got that.
        fn reset(&mut self) {
            stream::linger_zero(&self.peer).unwrap();
            let other = TcpListener::bind("127.0.0.1:0").unwrap();
            let other = TcpStream::connect(other.local_addr().unwrap()).unwrap();
            drop(std::mem::replace(&mut self.peer, other));
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
            let event = EpollEvent::new(EpollFlags::empty(), 0);
            epoll.add(&self.socket.fd, event).unwrap();
            let mut events = [EpollEvent::empty()];
            assert_eq!(epoll.wait(&mut events, 5000_u16).unwrap(), 1);
        }

        /// Wait until the kernel has got `len` bytes.
        fn wait_bytes(&self, len: usize) {
            let mut seen = vec![0; len];
            while stream::peek(&self.socket.fd, &mut seen).ok() != Some(len) {
                self.wait();
            }
        }

        /// Relay from `got` on until there are `len` bytes.
        fn relay_until(&mut self, got: &mut Vec<u8>, len: usize) {
            let begin = std::time::Instant::now();
            while got.len() < len {
                assert!(begin.elapsed().as_secs() < 5, "stuck after {got:?}");
                let at = u32::try_from(got.len()).unwrap();
                if self.relay(at, 60_000).is_ok() {
                    got.extend(self.frame().1);
                }
            }
        }

        fn relay(&mut self, offset: u32, max: u32) -> Result<Relayed, SocketError> {
            let repr = self.repr(offset);
            let out = Outgoing {
                key: &self.key,
                repr,
                mss: MSS,
            };
            self.host.relay(&self.socket, &out, offset, max)
        }

        /// What the guest has got: sequence number and payload of the next frame.
        fn frame(&mut self) -> (u32, Vec<u8>) {
            let mut buf = vec![0; 1 << 17];
            let n = scm::try_recv(self.guest.as_fd(), &mut buf).unwrap();
            let packet = dissect::dissect(&buf[virtio_net::HEADER_LEN..n]).unwrap();
            let Body::Ip(ip) = packet.body else {
                panic!("{packet:?}")
            };
            let Upper::Tcp { repr, payload } = ip.upper else {
                panic!("{packet:?}")
            };
            (repr.seq.0, payload.to_vec())
        }
    }

    fn pattern(from: usize, len: usize) -> Vec<u8> {
        (from..from + len)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect()
    }

    fn each(test: impl Fn(Bench)) {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            for offsets in [true, false] {
                test(Bench::new(listen, offsets));
            }
        }
    }

    /// New data, data once more, and new data again after some was thrown away: with SO_PEEK_OFF and without.
    #[test]
    fn any_part_of_what_waits_can_be_relayed() {
        each(|mut b| {
            b.peer.write_all(&pattern(0, 9000)).unwrap();
            b.wait();
            for (offset, max) in [
                (0, 4000),
                (4000, 3000),
                (0, 1400),
                (2000, 2500),
                (4500, 4500),
            ] {
                b.host.seek(&b.socket, offset);
                let done = b.relay(offset, max).unwrap();
                assert_eq!((done.peeked, done.sent), (max, max), "{offset}");
                let want = pattern(offset as usize, max as usize);
                assert_eq!(b.frame(), (offset, want));
            }
            assert_eq!(b.relay(9000, 100), Err(SocketError::WouldBlock));
            b.host.consume(&b.socket, 8000);
            b.peer.write_all(&pattern(9000, 500)).unwrap();
            // What is waiting already does not end the wait for more.
            let more = loop {
                match b.relay(1000, 5000) {
                    Ok(done) => break done,
                    Err(e) => assert_eq!(e, SocketError::WouldBlock),
                }
            };
            assert_eq!(more.peeked, 500);
            assert_eq!(b.frame(), (1000, pattern(9000, 500)));
        });
    }

    #[test]
    fn a_socket_that_turns_out_to_have_no_peek_offset_is_not_asked_twice() {
        let (fd, _) = nix::unistd::pipe().unwrap();
        let socket = Socket::accepted(fd, false);
        assert!(!socket.peeks_from(5));
        assert_eq!(socket.peek_offset.get(), PeekOffset::Missing);
    }

    /// ... whether the listener it came from has the option switched on, as ours have, or not.
    #[test]
    fn an_accepted_socket_shows_its_first_bytes_again() {
        for on in [true, false] {
            each(|mut b| {
                let listener = TcpListener::bind("[::]:0").unwrap();
                if on {
                    let _ = stream::set_peek_offset(&listener, 0);
                }
                let to = (b.key.remote.ip, listener.local_addr().unwrap().port());
                b.peer = TcpStream::connect(to).unwrap();
                b.socket = Socket::accepted(listener.accept().unwrap().0.into(), false);
                b.peer.write_all(&pattern(0, 9000)).unwrap();
                b.wait();
                for (offset, max) in [(0, 1400), (0, 1400), (1400, 2800), (0, 9000)] {
                    b.host.seek(&b.socket, offset);
                    let done = b.relay(offset, max).unwrap();
                    assert_eq!(done.sent, max);
                    let want = pattern(offset as usize, max as usize);
                    assert_eq!(b.frame(), (offset, want));
                }
            });
        }
    }

    /// An accepted connection begins to count with its first byte: the engine asks late and relies on it.
    #[test]
    fn nothing_counts_as_acknowledged_on_an_accepted_connection() {
        each(|b| {
            assert_eq!(stream::info(&b.peer).unwrap().bytes_acked, 0);
        });
    }

    /// The end of the stream is seen behind data that the guest has not acknowledged yet.
    #[test]
    fn the_end_shows_while_data_still_waits() {
        each(|mut b| {
            b.peer.write_all(&pattern(0, 3000)).unwrap();
            b.peer.shutdown(std::net::Shutdown::Write).unwrap();
            b.wait_fin();
            assert_eq!(b.relay(0, 60_000).unwrap().peeked, 3000);
            let end = Relayed::default();
            assert_eq!(b.relay(3000, 60_000), Ok(end));
            b.host.consume(&b.socket, 3000);
            assert_eq!(b.relay(0, 60_000), Ok(end));
        });
    }

    /// A RST is no end in good order, be the data in front of it less than a frame takes or just as much.
    #[test]
    fn a_reset_behind_data_that_still_waits_is_not_taken_for_the_end() {
        for full in [false, true] {
            each(|mut b| {
                let template = b.host.template(b.key.remote, b.key.guest);
                let header = template.tcp_header_len(&b.repr(0));
                let frame = largest_payload(template.ip_end(), header, MSS);
                let len = if full { frame } else { 3000 };
                b.peer.write_all(&pattern(0, len)).unwrap();
                b.wait_bytes(len);
                b.reset();
                let all = u32::try_from(len).unwrap();
                assert_eq!(b.relay(0, 1 << 18).unwrap().sent, all);
                assert_eq!(b.relay(all, 60_000), Err(SocketError::Reset));
            });
        }
    }

    /// The same if the event is looked at first.
    #[test]
    fn a_reset_found_behind_a_full_frame_is_still_an_error_of_the_socket() {
        each(|mut b| {
            let template = b.host.template(b.key.remote, b.key.guest);
            let header = template.tcp_header_len(&b.repr(0));
            let len = largest_payload(template.ip_end(), header, MSS);
            b.peer.write_all(&pattern(0, len)).unwrap();
            b.wait_bytes(len);
            b.reset();
            b.relay(0, 1 << 18).unwrap();
            let error = b.host.take_error(&b.socket);
            assert_eq!(error, Some(SocketError::Reset));
        });
    }

    /// Urgent data is data: nothing is left out, nothing comes twice, and what follows does not wait. (Without
    /// SO_PEEK_OFF it waits until what is in front of it has been consumed.)
    #[test]
    fn urgent_data_is_carried_in_its_place() {
        use nix::sys::socket::{MsgFlags, send};
        use std::os::fd::AsRawFd;
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let mut b = Bench::new(listen, true);
            if !b.host.peek_offsets.of(b.key.remote.ip) {
                return;
            }
            let fd = b.peer.as_raw_fd();
            send(fd, b"before", MsgFlags::empty()).unwrap();
            send(fd, b"!", MsgFlags::MSG_OOB).unwrap();
            send(fd, b"after", MsgFlags::empty()).unwrap();
            let mut got = Vec::new();
            b.relay_until(&mut got, 12);
            send(fd, b"more", MsgFlags::empty()).unwrap();
            b.relay_until(&mut got, 16);
            assert_eq!(got, b"before!aftermore");
        }
    }

    /// ... also when we had finished first, so that the kernel considers the connection closed.
    #[test]
    fn the_end_shows_when_both_have_finished() {
        each(|mut b| {
            b.host.shutdown_write(&b.socket);
            b.peer.write_all(&pattern(0, 3000)).unwrap();
            b.peer.shutdown(std::net::Shutdown::Write).unwrap();
            b.wait_fin();
            assert_eq!(b.relay(0, 60_000).unwrap().peeked, 3000);
            let end = Relayed::default();
            assert_eq!(b.relay(3000, 60_000), Ok(end));
        });
    }
}
