//! The bypass's side effects: sockets of both networks, and pipes between them.
//!
//! Both sockets of a pair are registered edge-triggered when the pair is made and never touched by epoll_ctl(2) again.
//! Pipes are lent for as long as something is in them; a few wait in stock, more are made when many receivers are
//! slow at once, up to a share of the descriptors: connections matter more than the speed of those that stall.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use libc::{IPPROTO_TCP, TCP_NODELAY};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::host::{EDGES, Host};
use super::tcp_io::{classify, classify_errno, start_error};
use super::token::Token;
use crate::addr::Endpoint;
use crate::config::rules::RuleId;
use crate::flow::id::FlowId;
use crate::flow::traffic::Traffic;
use crate::ipc::SocketKind;
use crate::stats::Drop;
use crate::sys::piece::Piece;
use crate::sys::pipe::Pipe;
use crate::sys::stream::{self, uninterrupted};
use crate::tcp::io::ConnectError as Start;
use crate::tcp::splice::{ConnectError, Connecting, End, Io, SocketError, Way};

/// Bytes of a pipe: the most an ordinary user may have (`fs.pipe-max-size`). Measured on two cores, CPU seconds per
/// gigabyte: 0.14 with 64 KiB, 0.09 with 256 KiB, 0.07 with 1 MiB.
const PIPE: usize = 1 << 20;
/// So many are of that size. More are needed only when so many receivers are slow, and pages for pipes are
/// counted for all programs of a user together (`fs.pipe-user-pages-soft`, 64 MiB).
const LARGE: usize = 8;
/// The others are as they come.
const ORDINARY: usize = 1 << 16;
/// Edges for input: data and urgent data.
const INPUT: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLPRI);
/// Most pipes that wait for use.
const STOCK: usize = 16;
/// Pipes made at start.
const FIRST: usize = 2;

/// The pipes that hold nothing now.
#[derive(Debug)]
pub(super) struct Pipes {
    stock: Vec<Pipe>,
    /// Pipes there are, those with lanes included, and how many of them are large.
    live: usize,
    large: usize,
    most: usize,
}

impl Pipes {
    /// For a process that may have `nofile` descriptors: a quarter of them at most.
    pub(super) fn new(nofile: u64) -> Self {
        let descriptors = usize::try_from(nofile / 4).unwrap_or(usize::MAX);
        let mut pipes = Self {
            stock: Vec::with_capacity(STOCK),
            live: 0,
            large: 0,
            most: descriptors / 2,
        };
        for _ in 0..FIRST {
            let pipe = pipes.make();
            pipes.stock.extend(pipe);
        }
        pipes
    }

    fn take(&mut self) -> Option<Pipe> {
        let last = self.stock.len().checked_sub(1);
        let large = self.stock.iter().rposition(is_large);
        match large.or(last) {
            Some(at) => Some(self.stock.swap_remove(at)),
            None => self.make(),
        }
    }

    fn make(&mut self) -> Option<Pipe> {
        if self.live >= self.most {
            return None;
        }
        let size = if self.large < LARGE { PIPE } else { ORDINARY };
        let pipe = Pipe::new(size).ok()?;
        self.live = self.live.saturating_add(1);
        self.large = self.large.saturating_add(usize::from(is_large(&pipe)));
        Some(pipe)
    }

    fn put(&mut self, mut pipe: Pipe) {
        if self.stock.len() < STOCK {
            self.stock.push(pipe);
            return;
        }
        // Of too many the large ones are kept.
        let small = self.stock.iter_mut().find(|p| !is_large(p));
        if let Some(small) = small.filter(|_| is_large(&pipe)) {
            std::mem::swap(small, &mut pipe);
        }
        self.close(pipe);
    }

    fn close(&mut self, pipe: Pipe) {
        self.live = self.live.saturating_sub(1);
        self.large = self.large.saturating_sub(usize::from(is_large(&pipe)));
        drop(pipe);
    }
}

const fn is_large(pipe: &Pipe) -> bool {
    pipe.size() > ORDINARY
}

/// A source address that has to be asked for: to reach ::1 the kernel takes ::1 anyway.
fn to_bind(to: Endpoint, source: Option<IpAddr>) -> Option<SocketAddr> {
    let source = source.filter(|ip| to.ip != IpAddr::V6(Ipv6Addr::LOCALHOST) || to.ip != *ip)?;
    Some(SocketAddr::new(source, 0))
}

impl Host {
    fn socket_for(&mut self, way: Way, to: Endpoint) -> Result<OwnedFd, ConnectError> {
        match way {
            Way::In => {
                let kind = if to.is_ipv6() {
                    SocketKind::Tcp6
                } else {
                    SocketKind::Tcp4
                };
                self.namespace_socket(kind).ok_or(ConnectError::NoSocket)
            }
            Way::Out => {
                let fd = stream::socket(to.ip).map_err(|e| refusal(&e))?;
                // Cannot fail on a TCP socket.
                let _ = stream::set_int(&fd, IPPROTO_TCP, TCP_NODELAY, 1);
                Ok(fd)
            }
        }
    }

    fn watch_end(&self, id: FlowId, end: End, fd: &OwnedFd) -> nix::Result<()> {
        self.watch(fd, EDGES.union(INPUT), Token::Splice(id, end))
    }
}

/// Why there is no connection.
fn refusal(e: &io::Error) -> ConnectError {
    match start_error(e) {
        Start::NoDescriptor => ConnectError::NoDescriptor,
        Start::Failed(e) => ConnectError::Failed(e),
        Start::Refused(_) => ConnectError::Failed(SocketError::Other),
    }
}

impl Io for Host {
    type Socket = OwnedFd;
    type Pipe = Pipe;

    fn connect(
        &mut self,
        id: FlowId,
        way: Way,
        to: Endpoint,
        source: Option<IpAddr>,
    ) -> Result<OwnedFd, ConnectError> {
        let fd = self.socket_for(way, to)?;
        if let Some(source) = to_bind(to, source) {
            // Without it the target sees another loopback address: a nuisance, no reason to refuse.
            let _ = stream::bind(&fd, source);
        }
        match stream::connect(&fd, to.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(refusal(&e)),
            _ => {}
        }
        self.watch_end(id, End::Target, &fd)
            .map_err(|e| refusal(&e.into()))?;
        Ok(fd)
    }

    fn adopt(&mut self, id: FlowId, socket: &OwnedFd) -> bool {
        self.watch_end(id, End::Origin, socket).is_ok()
    }

    fn mute(&mut self, id: FlowId, end: End, socket: &OwnedFd, mute: bool) {
        let what = if mute {
            EDGES.difference(INPUT)
        } else {
            EDGES.union(INPUT)
        };
        let mut event = EpollEvent::new(what, Token::Splice(id, end).to_raw());
        // Cannot fail: it is registered, and registering allocates.
        let _ = self.epoll.modify(socket, &mut event);
    }

    fn connected(&mut self, socket: &OwnedFd) -> Connecting {
        /// include/net/tcp_states.h
        const TCP_SYN_SENT: u8 = 2;
        const TCP_CLOSE: u8 = 7;
        match stream::info(socket) {
            Ok(i) if i.state == TCP_SYN_SENT => Connecting::Pending,
            Ok(i) if i.state == TCP_CLOSE => {
                Connecting::Failed(self.take_error(socket).unwrap_or(SocketError::Reset))
            }
            Ok(_) => Connecting::Done,
            Err(e) => Connecting::Failed(classify(&e)),
        }
    }

    fn read(&mut self, socket: &OwnedFd, buf: &mut [u8]) -> Result<usize, SocketError> {
        uninterrupted(|| stream::receive(socket, buf)).map_err(|e| classify(&e))
    }

    fn peek(&mut self, socket: &OwnedFd, buf: &mut [u8]) -> Result<usize, SocketError> {
        uninterrupted(|| stream::peek(socket, buf)).map_err(|e| classify(&e))
    }

    fn discard(&mut self, socket: &OwnedFd, n: usize) {
        let mut left = n;
        while left > 0 {
            match uninterrupted(|| stream::discard(socket, left)) {
                Ok(done) if done > 0 => left = left.saturating_sub(done),
                // Cannot be: they are there.
                _ => return,
            }
        }
    }

    fn write(&mut self, socket: &OwnedFd, data: &[u8]) -> Result<usize, SocketError> {
        uninterrupted(|| stream::send(socket, &[Piece::new(data)], false)).map_err(|e| classify(&e))
    }

    fn pipe(&mut self) -> Option<Pipe> {
        self.pipes.take()
    }

    fn give_back(&mut self, pipe: Pipe) {
        self.pipes.put(pipe);
    }

    fn discard_pipe(&mut self, pipe: Pipe) {
        self.pipes.close(pipe);
    }

    fn pipe_size(&self, pipe: &Pipe) -> usize {
        pipe.size()
    }

    fn put(&mut self, pipe: &Pipe, data: &[u8]) -> usize {
        pipe.put(data).unwrap_or(0)
    }

    fn splice_in(
        &mut self,
        socket: &OwnedFd,
        pipe: &Pipe,
        max: usize,
    ) -> Result<usize, SocketError> {
        pipe.fill(socket, max).map_err(|e| classify(&e))
    }

    fn splice_out(
        &mut self,
        pipe: &Pipe,
        socket: &OwnedFd,
        max: usize,
        more: bool,
    ) -> Result<usize, SocketError> {
        pipe.drain(socket, max, more).map_err(|e| classify(&e))
    }

    fn flush(&mut self, socket: &OwnedFd) {
        // Setting it again is what sends (tcp(7)); it cannot fail on a TCP socket.
        let _ = stream::set_int(socket, IPPROTO_TCP, TCP_NODELAY, 1);
    }

    fn shutdown_write(&mut self, socket: &OwnedFd) {
        // Fails only if the connection is gone already, which its error event says.
        let _ = stream::shutdown_write(socket);
    }

    fn take_error(&mut self, socket: &OwnedFd) -> Option<SocketError> {
        match stream::take_error(socket) {
            Ok(0) => None,
            Ok(errno) => Some(classify_errno(errno)),
            Err(e) => Some(classify(&e)),
        }
    }

    fn close(&mut self, socket: OwnedFd) {
        drop(socket);
    }

    fn reset(&mut self, socket: OwnedFd) {
        // If it fails the peer gets FIN instead of RST: nothing better can be done.
        let _ = stream::linger_zero(&socket);
    }

    fn finished(&mut self, rule: Option<RuleId>, traffic: &Traffic) {
        self.flow_finished(rule, traffic);
    }

    fn drop(&mut self, why: Drop) {
        self.link.counters.drop(why);
    }
}

#[cfg(test)]
mod tests;
