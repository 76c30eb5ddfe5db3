//! What the engine needs from the world: sockets, pipes, and nothing else.
//!
//! The engine never makes a system call; it calls these methods, and all of them return at once.
//!
//! What an implementation promises:
//! * both sockets of a pair are registered *edge-triggered* for input, output, urgent data and peer shutdown, the
//!   target from [`Io::connect`] on, the origin from [`Io::adopt`] on, until `close` or `reset`; no registration
//!   call per event. Input: an edge whenever data, urgent data or a FIN arrives. Output: an edge when the connection
//!   is established, and when the buffer has room again after a call took less than it was offered. [`Io::mute`] takes
//!   the edges for input away and gives them back;
//! * `WouldBlock` is EAGAIN and only EAGAIN: what a signal interrupted is repeated inside;
//! * TCP_NODELAY is on for all of them: who wrote the bytes has already decided when they leave.

use std::net::IpAddr;

use crate::addr::Endpoint;
use crate::config::rules::RuleId;
use crate::flow::id::FlowId;
use crate::flow::traffic::Traffic;
use crate::stats::Drop;
pub use crate::tcp::io::SocketError;

/// Which network a connection was made in, and where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the host's loopback into the namespace.
    In,
    /// From the namespace's loopback to the host.
    Out,
}

/// One of the two sockets of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The accepted one.
    Origin,
    /// The one we connected.
    Target,
}

/// What epoll said about a socket. Hints: each is verified by the call it leads to, so a stale event does no harm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// EPOLLIN.
    pub readable: bool,
    /// EPOLLOUT.
    pub writable: bool,
    /// EPOLLPRI: urgent data, at which a read stops short.
    pub urgent: bool,
    /// EPOLLRDHUP or EPOLLHUP: the peer has sent FIN, or all is over.
    pub hup: bool,
    /// EPOLLERR.
    pub error: bool,
}

/// A connection accepted on a listener, and where it leads.
#[derive(Debug)]
pub struct Arrival<S> {
    /// The accepted socket, not registered yet.
    pub socket: S,
    /// Between which networks.
    pub way: Way,
    /// Who made it.
    pub peer: Endpoint,
    /// Where it leads, in the other network.
    pub to: Endpoint,
    /// Source address over there; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// By which rule.
    pub rule: Option<RuleId>,
}

/// Why a connection in the other network could not be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectError {
    /// There is no socket of that network just now; [`super::Engine::supplied`] says when there is.
    NoSocket,
    /// EMFILE, ENFILE, ENOBUFS, ENOMEM.
    NoDescriptor,
    /// Anything else.
    Failed(SocketError),
}

/// How a connection attempt stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connecting {
    /// Not decided: an edge will follow.
    Pending,
    /// Established.
    Done,
    /// Failed with this (SO_ERROR).
    Failed(SocketError),
}

/// See the module text.
pub trait Io {
    /// A socket. Given back by `close` or `reset`, never just dropped.
    type Socket;
    /// A pipe. Empty when it is handed out, and when it is given back.
    type Pipe;

    /// Start a non-blocking connection to `to`, in the namespace ([`Way::In`]) or on the host ([`Way::Out`]), and
    /// register it as the [`End::Target`] of `id`. EINPROGRESS is success.
    ///
    /// # Errors
    /// See [`ConnectError`]; nothing is left behind.
    fn connect(
        &mut self,
        id: FlowId,
        way: Way,
        to: Endpoint,
        source: Option<IpAddr>,
    ) -> Result<Self::Socket, ConnectError>;

    /// Register an accepted socket as the [`End::Origin`] of `id`. False if the kernel refuses.
    fn adopt(&mut self, id: FlowId, socket: &Self::Socket) -> bool;

    /// Without input edges (`mute`), or with them again, and then with one at once if there is something.
    fn mute(&mut self, id: FlowId, end: End, socket: &Self::Socket, mute: bool);

    /// Has it connected?
    fn connected(&mut self, socket: &Self::Socket) -> Connecting;

    /// Receive what is there, as far as it fits. 0: FIN.
    ///
    /// # Errors
    /// As the kernel says.
    fn read(&mut self, socket: &Self::Socket, buf: &mut [u8]) -> Result<usize, SocketError>;

    /// The same, but what was received stays there.
    ///
    /// # Errors
    /// As the kernel says.
    fn peek(&mut self, socket: &Self::Socket, buf: &mut [u8]) -> Result<usize, SocketError>;

    /// Throw away the first `n` received bytes, which have been peeked.
    fn discard(&mut self, socket: &Self::Socket, n: usize);

    /// Send without waiting or raising a signal: how many bytes were taken.
    ///
    /// # Errors
    /// As the kernel says.
    fn write(&mut self, socket: &Self::Socket, data: &[u8]) -> Result<usize, SocketError>;

    /// A pipe, if there is one or one can be made.
    fn pipe(&mut self) -> Option<Self::Pipe>;

    /// It is empty again.
    fn give_back(&mut self, pipe: Self::Pipe);

    /// Close a pipe with what is in it.
    fn discard_pipe(&mut self, pipe: Self::Pipe);

    /// How many bytes [`Io::put`] takes for certain while the pipe is empty.
    fn pipe_size(&self, pipe: &Self::Pipe) -> usize;

    /// Copy bytes into a pipe: how many it took.
    fn put(&mut self, pipe: &Self::Pipe, data: &[u8]) -> usize;

    /// Move received bytes into a pipe. 0: FIN.
    ///
    /// # Errors
    /// As the kernel says; [`SocketError::WouldBlock`] also when the pipe has no room.
    fn splice_in(
        &mut self,
        socket: &Self::Socket,
        pipe: &Self::Pipe,
        max: usize,
    ) -> Result<usize, SocketError>;

    /// Move `max` bytes, all there are, from a pipe into a socket's send buffer: how many went. `more`: others
    /// will follow, and what does not fill a segment may wait for them or for [`Io::flush`].
    ///
    /// # Errors
    /// As the kernel says.
    fn splice_out(
        &mut self,
        pipe: &Self::Pipe,
        socket: &Self::Socket,
        max: usize,
        more: bool,
    ) -> Result<usize, SocketError>;

    /// Send what waits to become a whole segment.
    fn flush(&mut self, socket: &Self::Socket);

    /// `shutdown(SHUT_WR)`.
    fn shutdown_write(&mut self, socket: &Self::Socket);

    /// SO_ERROR, cleared.
    fn take_error(&mut self, socket: &Self::Socket) -> Option<SocketError>;

    /// Close: what was sent still goes out.
    fn close(&mut self, socket: Self::Socket);

    /// Close with a RST to the peer (SO_LINGER with 0).
    fn reset(&mut self, socket: Self::Socket);

    /// A connection is over, be it because no target could be had. Called once for each that was in the table.
    fn finished(&mut self, rule: Option<RuleId>, traffic: &Traffic);

    /// Count a connection that was not carried.
    fn drop(&mut self, why: Drop);
}
