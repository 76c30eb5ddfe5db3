//! Sockets and pipes for tests: what the kernel promises of edges and partial calls, and nothing more.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::VecDeque;
use std::net::IpAddr;

use super::io::{ConnectError, Connecting, End, Io, Readiness, SocketError, Way};
use super::{Arrival, Engine};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::rules::RuleId;
use crate::flow::id::FlowId;
use crate::flow::traffic::Traffic;
use crate::stats::Drop;

/// A handle; the state is in the [`World`].
#[derive(Debug)]
pub(super) struct Handle(pub usize);

/// A handle of a pipe.
#[derive(Debug)]
pub(super) struct Pipe(usize);

/// How a socket was given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Open,
    Closed,
    Reset,
}

#[derive(Debug)]
pub(super) struct Sock {
    pub registered: Option<(FlowId, End)>,
    pub connecting: bool,
    pub rx: VecDeque<u8>,
    pub fin: bool,
    pub error: Option<SocketError>,
    /// No connection any more, whether somebody has asked why or not.
    dead: bool,
    /// Bytes the send buffer still takes.
    pub room: usize,
    /// No edges for input.
    muted: bool,
    pub mutes: usize,
    /// A call took less than it was offered.
    short: bool,
    pub sent: Vec<u8>,
    /// Part of it may still wait for more.
    pub corked: bool,
    pub shut: bool,
    pub fate: Fate,
    pub source: Option<IpAddr>,
    pending: Readiness,
}

#[derive(Debug)]
pub(super) struct World {
    pub socks: Vec<Sock>,
    pipes: Vec<VecDeque<u8>>,
    stock: Vec<usize>,
    /// Pipes that may be lent at a time.
    pub pipes_left: usize,
    /// Bytes of a pipe, and most bytes of one piece.
    pub size: usize,
    pub piece: usize,
    /// IPv4 sockets of the namespace.
    pub supply: usize,
    pub refuse: Option<ConnectError>,
    /// Targets connect at once.
    pub prompt: bool,
    pub adopts: bool,
    pub finished: Vec<Traffic>,
    pub drops: Vec<Drop>,
    /// Calls that move bytes, or try to.
    pub calls: usize,
    pub splices: usize,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            socks: Vec::new(),
            pipes: Vec::new(),
            stock: Vec::new(),
            pipes_left: 8,
            size: 1 << 16,
            piece: 1 << 15,
            supply: usize::MAX,
            refuse: None,
            prompt: true,
            adopts: true,
            finished: Vec::new(),
            drops: Vec::new(),
            calls: 0,
            splices: 0,
        }
    }

    pub(super) fn socket(&mut self) -> Handle {
        self.socks.push(Sock {
            registered: None,
            connecting: false,
            rx: VecDeque::new(),
            fin: false,
            error: None,
            dead: false,
            room: usize::MAX / 2,
            muted: false,
            mutes: 0,
            short: false,
            sent: Vec::new(),
            corked: false,
            shut: false,
            fate: Fate::Open,
            source: None,
            pending: Readiness::default(),
        });
        Handle(self.socks.len() - 1)
    }

    pub(super) fn arrive(&mut self, at: usize, data: &[u8]) {
        let sock = &mut self.socks[at];
        sock.rx.extend(data);
        sock.pending.readable |= !sock.muted;
    }

    pub(super) fn fin(&mut self, at: usize) {
        let sock = &mut self.socks[at];
        sock.fin = true;
        sock.pending.readable |= !sock.muted;
        sock.pending.hup = true;
    }

    pub(super) fn fail(&mut self, at: usize, error: SocketError) {
        let sock = &mut self.socks[at];
        sock.error = Some(error);
        sock.dead = true;
        sock.connecting = false;
        sock.pending = Readiness {
            readable: true,
            writable: true,
            urgent: false,
            hup: true,
            error: true,
        };
    }

    pub(super) fn connect_done(&mut self, at: usize) {
        self.socks[at].connecting = false;
        self.socks[at].pending.writable = true;
    }

    /// The peer has read: there is room for so many bytes more.
    pub(super) fn drain(&mut self, at: usize, n: usize) {
        let sock = &mut self.socks[at];
        sock.room = sock.room.saturating_add(n);
        if sock.short && sock.room > 0 {
            sock.short = false;
            sock.pending.writable = true;
        }
    }

    /// Deliver edges and turns until nothing is left to do.
    pub(super) fn run(&mut self, engine: &mut Engine<Self>, now: Instant) {
        for _ in 0..10_000 {
            let next = self
                .socks
                .iter_mut()
                .filter(|s| s.fate == Fate::Open && s.registered.is_some())
                .find(|s| s.pending != Readiness::default());
            if let Some(sock) = next {
                let ready = std::mem::take(&mut sock.pending);
                let (id, end) = sock.registered.unwrap();
                engine.on_socket(self, now, id, end, ready);
            } else if engine.next_deadline().is_some_and(|at| at <= now) {
                engine.on_timer(self, now);
            } else {
                let stuck = self.socks.iter().find(|s| s.corked && !s.short);
                assert!(stuck.is_none_or(|s| s.fate != Fate::Open), "held back");
                return;
            }
        }
        panic!("it never comes to rest");
    }

    pub(super) fn lent(&self) -> usize {
        self.pipes.len() - self.stock.len()
    }

    fn take(&mut self, at: usize, max: usize, keep: bool) -> Result<Vec<u8>, SocketError> {
        self.calls += 1;
        let sock = &mut self.socks[at];
        assert_eq!(sock.fate, Fate::Open);
        if sock.rx.is_empty() {
            if let Some(e) = sock.error.take() {
                return Err(e);
            }
            return if sock.fin {
                Ok(Vec::new())
            } else {
                Err(SocketError::WouldBlock)
            };
        }
        let n = max.min(sock.rx.len());
        if keep {
            Ok(sock.rx.iter().take(n).copied().collect())
        } else {
            Ok(sock.rx.drain(..n).collect())
        }
    }

    fn send(&mut self, at: usize, data: &[u8]) -> Result<usize, SocketError> {
        self.calls += 1;
        let sock = &mut self.socks[at];
        assert_eq!(sock.fate, Fate::Open);
        assert!(!sock.shut, "sent after FIN");
        if let Some(e) = sock.error.take() {
            return Err(e);
        }
        let room = if sock.connecting { 0 } else { sock.room };
        let n = room.min(data.len());
        sock.room -= if sock.connecting { 0 } else { n };
        sock.short |= n < data.len();
        sock.corked = false;
        sock.sent.extend(&data[..n]);
        if n == 0 && !data.is_empty() {
            return Err(SocketError::WouldBlock);
        }
        Ok(n)
    }
}

impl Io for World {
    type Socket = Handle;
    type Pipe = Pipe;

    fn connect(
        &mut self,
        id: FlowId,
        way: Way,
        to: Endpoint,
        source: Option<IpAddr>,
    ) -> Result<Handle, ConnectError> {
        if let Some(e) = self.refuse {
            return Err(e);
        }
        if way == Way::In && !to.is_ipv6() {
            if self.supply == 0 {
                return Err(ConnectError::NoSocket);
            }
            self.supply -= 1;
        }
        let handle = self.socket();
        let sock = &mut self.socks[handle.0];
        sock.registered = Some((id, End::Target));
        sock.source = source;
        sock.connecting = !self.prompt;
        sock.pending.writable = self.prompt;
        Ok(handle)
    }

    fn adopt(&mut self, id: FlowId, socket: &Handle) -> bool {
        let sock = &mut self.socks[socket.0];
        sock.registered = Some((id, End::Origin));
        sock.pending.writable = true;
        self.adopts
    }

    fn mute(&mut self, id: FlowId, end: End, socket: &Handle, mute: bool) {
        let sock = &mut self.socks[socket.0];
        assert_eq!(sock.registered, Some((id, end)));
        assert_ne!(sock.muted, mute);
        sock.muted = mute;
        sock.mutes += 1;
        sock.pending.readable |= !mute && (sock.fin || !sock.rx.is_empty());
    }

    fn connected(&mut self, socket: &Handle) -> Connecting {
        let sock = &mut self.socks[socket.0];
        match sock.error.take() {
            Some(e) => Connecting::Failed(e),
            None if sock.dead => Connecting::Failed(SocketError::Reset),
            None if sock.connecting => Connecting::Pending,
            None => Connecting::Done,
        }
    }

    fn read(&mut self, socket: &Handle, buf: &mut [u8]) -> Result<usize, SocketError> {
        let data = self.take(socket.0, buf.len(), false)?;
        buf[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    fn peek(&mut self, socket: &Handle, buf: &mut [u8]) -> Result<usize, SocketError> {
        let data = self.take(socket.0, buf.len(), true)?;
        buf[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    fn discard(&mut self, socket: &Handle, n: usize) {
        self.socks[socket.0].rx.drain(..n);
    }

    fn write(&mut self, socket: &Handle, data: &[u8]) -> Result<usize, SocketError> {
        self.send(socket.0, data)
    }

    fn pipe(&mut self) -> Option<Pipe> {
        if self.lent() >= self.pipes_left {
            return None;
        }
        let number = self.stock.pop().unwrap_or_else(|| {
            self.pipes.push(VecDeque::new());
            self.pipes.len() - 1
        });
        Some(Pipe(number))
    }

    fn give_back(&mut self, pipe: Pipe) {
        assert!(self.pipes[pipe.0].is_empty(), "given back full");
        self.stock.push(pipe.0);
    }

    fn discard_pipe(&mut self, pipe: Pipe) {
        self.pipes[pipe.0].clear();
        self.stock.push(pipe.0);
    }

    fn pipe_size(&self, _pipe: &Pipe) -> usize {
        self.size
    }

    fn put(&mut self, pipe: &Pipe, data: &[u8]) -> usize {
        let pipe = &mut self.pipes[pipe.0];
        let n = data.len().min(self.size - pipe.len());
        pipe.extend(&data[..n]);
        n
    }

    fn splice_in(
        &mut self,
        socket: &Handle,
        pipe: &Pipe,
        max: usize,
    ) -> Result<usize, SocketError> {
        self.splices += 1;
        let room = self.size.saturating_sub(self.pipes[pipe.0].len());
        if room == 0 {
            return Err(SocketError::WouldBlock);
        }
        let data = self.take(socket.0, max.min(room).min(self.piece), false)?;
        self.pipes[pipe.0].extend(&data);
        Ok(data.len())
    }

    fn splice_out(
        &mut self,
        pipe: &Pipe,
        socket: &Handle,
        max: usize,
        more: bool,
    ) -> Result<usize, SocketError> {
        assert_eq!(
            max,
            self.pipes[pipe.0].len(),
            "the kernel would wait for the rest"
        );
        let data: Vec<u8> = self.pipes[pipe.0].iter().copied().collect();
        let n = self.send(socket.0, &data)?;
        self.pipes[pipe.0].drain(..n);
        self.socks[socket.0].corked = more;
        Ok(n)
    }

    fn flush(&mut self, socket: &Handle) {
        self.socks[socket.0].corked = false;
    }

    fn shutdown_write(&mut self, socket: &Handle) {
        let sock = &mut self.socks[socket.0];
        assert!(!sock.connecting, "that would cancel the attempt");
        sock.shut = true;
    }

    fn take_error(&mut self, socket: &Handle) -> Option<SocketError> {
        self.socks[socket.0].error.take()
    }

    fn close(&mut self, socket: Handle) {
        self.socks[socket.0].fate = Fate::Closed;
        self.socks[socket.0].shut = true;
    }

    fn reset(&mut self, socket: Handle) {
        self.socks[socket.0].fate = Fate::Reset;
    }

    fn finished(&mut self, _rule: Option<RuleId>, traffic: &Traffic) {
        self.finished.push(*traffic);
    }

    fn drop(&mut self, why: Drop) {
        self.drops.push(why);
    }
}

pub(super) fn end(s: &str) -> Endpoint {
    s.parse::<std::net::SocketAddr>().unwrap().into()
}

pub(super) fn arrival(socket: Handle, way: Way) -> Arrival<Handle> {
    Arrival {
        socket,
        way,
        peer: end("127.0.0.1:40000"),
        to: end("192.0.2.5:80"),
        source: None,
        rule: None,
    }
}
