//! What the engine needs from the world: sockets on one side, frames for the guest on the other.
//!
//! The engine never makes a system call; it calls these methods. The forwarder implements them over real
//! sockets and the tap, the simulator over models of both. All of them return at once.
//!
//! What an implementation promises about sockets:
//! * registered *edge-triggered* for input, urgent data, output and peer shutdown from `connect` until `close` or
//!   `reset`; no registration call per event. The engine relies on these edges and on nothing else: input, whenever new
//!   data, urgent data or a FIN arrives; output, when the send buffer has room again after a `send` took less than it was
//!   given;
//! * TCP_NODELAY is on (the guest's kernel has already decided when to send), and so is SO_KEEPALIVE if the
//!   host is to notice that a silent peer has gone, and SO_OOBINLINE: bytes that are left out would be counted wrong.
//!
//! Guest bytes waiting in a socket are read by peeking ([`Io::relay`]) and thrown away once the guest has them
//! ([`Io::consume`]): the socket's receive queue is the retransmission buffer.

use super::payload::Payload;
use crate::addr::Endpoint;
use crate::config::rules::RuleId;
use crate::flow::id::{FlowId, Key};
use crate::flow::traffic::Traffic;
use crate::stats::Drop;
use crate::sys::piece::Piece;
use crate::wire::tcp::{Repr, Seq};

/// One TCP segment (or super-frame) from the guest.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The guest's end.
    pub src: Endpoint,
    /// The end it talks to, before translation.
    pub dst: Endpoint,
    /// The header.
    pub repr: Repr,
    /// The payload: up to 64 KiB, whatever the MTU.
    pub payload: Payload<'a>,
    /// The IP packet, for quoting in ICMP errors.
    pub l3: &'a [u8],
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS or traffic class.
    pub tos: u8,
}

/// What epoll said about a socket. Hints: each is verified by the call it leads to, so a stale event does no harm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// EPOLLIN.
    pub readable: bool,
    /// EPOLLOUT.
    pub writable: bool,
    /// EPOLLERR.
    pub error: bool,
    /// EPOLLHUP.
    pub hup: bool,
    /// EPOLLRDHUP.
    pub rdhup: bool,
    /// EPOLLPRI: there is urgent data. It is data like any other, but a read ends in front of it.
    pub urgent: bool,
}

/// Why the network could not deliver, as an ICMP error towards the guest says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreachable {
    /// ENETUNREACH.
    Network,
    /// EHOSTUNREACH.
    Host,
    /// EACCES, EPERM: administratively prohibited.
    Prohibited,
}

/// Why a socket call did not do what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketError {
    /// EAGAIN (and EINTR): an edge will follow.
    WouldBlock,
    /// ECONNREFUSED.
    Refused,
    /// ECONNRESET, ECONNABORTED, EPIPE: the connection is gone.
    Reset,
    /// ETIMEDOUT: the peer does not answer any more, or never did.
    TimedOut,
    /// ENETUNREACH, EHOSTUNREACH, EACCES and their like.
    Unreachable(Unreachable),
    /// Anything else.
    Other,
}

/// Why a connection could not be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectError {
    /// EMFILE, ENFILE, ENOBUFS, ENOMEM: the guest gets a RST, others are not affected.
    NoDescriptor,
    /// `connect` failed at once.
    Failed(SocketError),
    /// The destination is nothing we translate: the guest gets a RST.
    Refused(Drop),
}

/// How a connection attempt stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connecting {
    /// Not decided: an edge will follow.
    Pending,
    /// Established.
    Done(Info),
    /// Failed with this (SO_ERROR).
    Failed(SocketError),
}

/// From `getsockopt(TCP_INFO)` (linux/tcp.h, `struct tcp_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Info {
    /// `tcpi_bytes_acked`, whatever it counts from: the engine uses differences only.
    pub bytes_acked: u64,
    /// `tcpi_rtt`, µs.
    pub rtt: u32,
    /// `tcpi_min_rtt`, µs; `u32::MAX` if not known.
    pub min_rtt: u32,
    /// `tcpi_rcv_ssthresh`: about how much the kernel lets the peer send us, bytes.
    pub receive_window: u32,
}

/// Room in a socket's send buffer, from `getsockopt(SO_MEMINFO)`, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// SK_MEMINFO_SNDBUF.
    pub size: u32,
    /// SK_MEMINFO_WMEM_QUEUED.
    pub queued: u32,
}

/// The header of data frames for the guest.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Ends, as the guest sees them: the frame goes from `key.remote` to `key.guest`.
    pub key: &'a Key,
    /// Header for the first payload byte. With several frames, each takes its own sequence number from it.
    pub repr: Repr,
    /// Segment size for the guest's kernel to take the frame as (`gso_size`): 1..=65535.
    pub mss: u16,
}

/// What [`Io::relay`] did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Relayed {
    /// Bytes read from the socket: the peek position has moved on by exactly so many. (If it had not, and were believed to,
    /// bytes would be sent twice.)
    pub peeked: u32,
    /// Bytes of these that went out to the guest, from the first.
    pub sent: u32,
    /// The link takes no more: fewer were sent than peeked, or it was not worth peeking.
    pub refused: bool,
}

/// See the module text.
pub trait Io {
    /// A connected (or connecting) socket. Given back by `close` or `reset`, never just dropped.
    type Socket;

    /// The link to the guest takes nothing at the moment, and [`Engine::on_room`](super::Engine::on_room) is going to be
    /// called when it does: there is no need to try.
    fn tells_of_room(&self) -> bool {
        false
    }

    /// Start a non-blocking connection to where `key.remote` leads after translation and register it under `id`.
    ///
    /// # Errors
    /// See [`ConnectError`]; nothing is left behind. EINPROGRESS is success.
    fn connect(&mut self, id: FlowId, key: &Key) -> Result<Self::Socket, ConnectError>;

    /// Register the socket of a connection that a peer has opened under `id`, as `connect` does with its own. If there
    /// is input already, that is an edge. `false`: it cannot be done; the engine resets the socket.
    fn adopt(&mut self, id: FlowId, socket: &Self::Socket) -> bool;

    /// Has it connected? Asked on the first edges only.
    fn connected(&mut self, socket: &Self::Socket) -> Connecting;

    /// `sendmsg(MSG_DONTWAIT | MSG_NOSIGNAL)`: how many bytes were taken. Taking fewer than offered promises an
    /// output edge, like [`SocketError::WouldBlock`].
    ///
    /// # Errors
    /// As the kernel says.
    fn send(&mut self, socket: &Self::Socket, data: &[Piece<'_>]) -> Result<usize, SocketError>;

    /// `shutdown(SHUT_WR)`.
    fn shutdown_write(&mut self, socket: &Self::Socket);

    /// Peek up to `max` bytes, beginning `offset` bytes after the first one not consumed, straight behind the
    /// header(s) of as many frames as that takes (each as large as the tap carries), and send these to the guest.
    /// `offset` is where the peek position already is (SO_PEEK_OFF): after the last `relay`, `seek` or `consume`.
    /// `Relayed { peeked: 0, refused: false, .. }` is the peer's FIN. Fewer than `max` peeked: there is no more, unless urgent data is
    /// next, and an input edge follows when there is. An error met behind what was peeked is told by the next call.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`]: nothing there; else as the kernel says.
    fn relay(
        &mut self,
        socket: &Self::Socket,
        frame: &Outgoing<'_>,
        offset: u32,
        max: u32,
    ) -> Result<Relayed, SocketError>;

    /// Put the peek position `offset` bytes after the first byte not consumed (SO_PEEK_OFF).
    fn seek(&mut self, socket: &Self::Socket, offset: u32);

    /// Throw away the first `n` bytes not consumed yet (`recv(MSG_TRUNC)`): all of them have been peeked. The peek
    /// position stays at the same byte (the kernel moves SO_PEEK_OFF back by `n`, not below 0).
    fn consume(&mut self, socket: &Self::Socket, n: u32);

    /// TCP_INFO.
    fn info(&mut self, socket: &Self::Socket) -> Info;

    /// SO_MEMINFO.
    fn space(&mut self, socket: &Self::Socket) -> Space;

    /// SO_ERROR, cleared.
    fn take_error(&mut self, socket: &Self::Socket) -> Option<SocketError>;

    /// Close: what was sent still goes out.
    fn close(&mut self, socket: Self::Socket);

    /// Close with a RST to the peer (SO_LINGER with 0).
    fn reset(&mut self, socket: Self::Socket);

    /// Send a segment without payload to the guest, from `key.remote`. Ports are in `repr`.
    fn emit(&mut self, key: &Key, repr: &Repr);

    /// Send an ICMP error to the guest about the SYN it sent with sequence number `seq` on this flow.
    fn unreachable(&mut self, key: &Key, seq: Seq, why: Unreachable);

    /// Count a segment or an arrival that was not carried.
    fn drop(&mut self, why: Drop);

    /// A connection is over, and this is what it has carried. Said once of each; the connection is no longer among
    /// [`super::Engine::flows`].
    fn finished(&mut self, rule: Option<RuleId>, traffic: &Traffic);
}
