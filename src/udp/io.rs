//! What the UDP core asks of the world: sockets on one side, frames for the guest on the other.
//!
//! The core decides, an [`Io`] does. The event loop implements it with real sockets and the tap, tests with a
//! fake network. Nothing here blocks; a socket is registered for readability once, level-triggered, when it is
//! opened (errors are always reported), and never touched again by epoll_ctl(2). Listening sockets come registered.

use std::io::IoSlice;
use std::net::IpAddr;

use crate::addr::Endpoint;
use crate::config::rules::RuleId;
use crate::flow::id::FlowId;
use crate::flow::traffic::Traffic;
use crate::flow::translate::Seen;
use crate::icmp::report::Report;
use crate::stats::Drop;
use crate::sys::errqueue::Record;

/// Most datagrams in one send: the kernel's UDP_MAX_SEGMENTS before Linux 6.9, and enough.
pub const MAX_SEGMENTS: usize = 64;
/// Most payload bytes in one segmented send or one super-frame: below the 65,535 of an IP packet with room
/// for every header.
pub const MAX_BURST_BYTES: usize = 65_000;
/// Most messages one [`Io::receive`] returns.
pub const MAX_RECEIVE: usize = 32;

/// One UDP datagram of the guest, whole (fragments have been put together), its checksum verified.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The guest's end.
    pub src: Endpoint,
    /// Where the guest sends it.
    pub dst: Endpoint,
    /// The UDP payload.
    pub payload: &'a [u8],
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS byte or traffic class, ECN included.
    pub tos: u8,
    /// IPv4: the DF bit. IPv6: true unless it arrived in fragments, as routers never fragment.
    pub dont_fragment: bool,
    /// A super-frame: the payload is a run of datagrams of this many bytes each, the last possibly shorter.
    pub gso_size: Option<u16>,
    /// The packet from its IP header on (of the first fragment), to be quoted in errors.
    pub l3: &'a [u8],
}

/// What happened to a socket, from epoll.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// There is something to receive (EPOLLIN).
    pub readable: bool,
    /// There is something in the error queue, or an error is pending (EPOLLERR).
    pub error: bool,
}

/// The far end of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Address and port on the host's side.
    pub end: Endpoint,
    /// Interface index for link-local IPv6 addresses, else 0.
    pub scope: u32,
}

/// How a new socket is to be bound. Always: non-blocking; SO_RCVBUF and SO_SNDBUF as large as allowed without
/// privilege; IP_RECVERR; UDP_GRO; IP_RECVTOS (and their IPv6 counterparts); IPV6_V6ONLY; and *no*
/// SO_REUSEADDR and no SO_REUSEPORT (see the module text of [`crate::udp`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Open<'c> {
    /// Family.
    pub ipv6: bool,
    /// Bind to this address; `None`: the wildcard.
    pub source: Option<IpAddr>,
    /// Bind to this interface.
    pub device: Option<&'c str>,
    /// Scope of a link-local `source`; 0: none.
    pub scope: u32,
    /// Try to bind to this port, and to one the kernel chooses if it is taken or not permitted; 0: do not try.
    pub port: u16,
}

/// A failed socket operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing to receive, or no room to send: EAGAIN, ENOBUFS.
    WouldBlock,
    /// The process or the system is out of descriptors or memory for one: EMFILE, ENFILE, ENOMEM (open only).
    NoDescriptor,
    /// Larger than the path takes and not to be fragmented: EMSGSIZE.
    TooBig,
    /// Anything else. On sending and receiving this may be the report of an earlier datagram's fate.
    Errno(i32),
}

/// How a burst of datagrams leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Send {
    /// Destination, for a socket that is not connected to it.
    pub to: Option<Peer>,
    /// Hop limit to set by control message; `None`: the socket's default.
    pub hop_limit: Option<u8>,
    /// TOS or traffic class to set by control message; 0: the socket's default.
    pub tos: u8,
    /// Source address, for a listener, where it is not bound to one; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Family of the datagrams.
    pub ipv6: bool,
}

/// One received message, waiting in the [`Io`]'s buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Who sent it. An IPv4 end point even if a dual-stack socket received it.
    pub from: Endpoint,
    /// Interface index if `from` is a link-local IPv6 address, else 0.
    pub scope: u32,
    /// The address of ours it was sent to, if the socket tells (IP_PKTINFO, IPV6_RECVPKTINFO).
    pub to: Option<IpAddr>,
    /// Bytes of payload.
    pub len: usize,
    /// Bytes per datagram if the kernel coalesced several (UDP_GRO), the last possibly shorter; else `len`.
    pub segment: usize,
    /// TOS or traffic class, ECN included; 0 if unknown.
    pub tos: u8,
    /// It was sent to a group or broadcast address, not to us alone (only known of listeners, and after
    /// [`Io::enable_groups`]).
    pub group: bool,
    /// It did not fit into the buffer and is useless.
    pub truncated: bool,
}

impl Received {
    /// Nothing, from nobody: what an array of these is filled with.
    pub const EMPTY: Self = Self {
        from: Endpoint::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
        scope: 0,
        to: None,
        len: 0,
        segment: 0,
        tos: 0,
        group: false,
        truncated: false,
    };
}

/// The header fields of frames for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Source as the guest is to see it.
    pub src: Endpoint,
    /// The guest's end.
    pub dst: Endpoint,
    /// TOS or traffic class.
    pub tos: u8,
    /// Every datagram of the burst has this many bytes of payload, but the last, which may have fewer.
    pub segment: usize,
    /// How many datagrams there are: at least one, together at most 65,535 bytes.
    pub datagrams: usize,
}

/// How messages that go on to another socket are cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Every datagram has this many bytes, but the last, which may have fewer.
    pub segment: usize,
    /// How many there are.
    pub datagrams: usize,
}

/// Sockets and frames; see the module text.
pub trait Io {
    /// A socket. Given back to [`Io::close`]; dropping one must close it, too.
    type Socket;

    /// Make and bind a socket and register it under `id`. Also returns whether the wanted port was had.
    ///
    /// # Errors
    /// [`Fault::NoDescriptor`] at a limit, [`Fault::Errno`] if the address or interface cannot be bound.
    fn open(&mut self, id: FlowId, open: &Open<'_>) -> Result<(Self::Socket, bool), Fault>;

    /// Connect to a peer, or with `None` dissolve the connection (connect(2) with AF_UNSPEC) keeping the port.
    ///
    /// # Errors
    /// [`Fault::Errno`], with EACCES for an address that turns out to be a broadcast address.
    fn connect(&mut self, socket: &Self::Socket, peer: Option<Peer>) -> Result<(), Fault>;

    /// Deregister and close.
    fn close(&mut self, socket: Self::Socket);

    /// Get ready for multicast and broadcast destinations: SO_BROADCAST; IP_MULTICAST_ALL off; IP_PKTINFO, so that
    /// [`Received::group`] is known.
    fn enable_groups(&mut self, socket: &Self::Socket, ipv6: bool);

    /// IP_MTU_DISCOVER: true: set DF and refuse what does not fit (IP_PMTUDISC_DO); false: never set DF
    /// (IP_PMTUDISC_DONT; IPv6: fragment at the source as needed). Always called before the first send.
    fn set_dont_fragment(&mut self, socket: &Self::Socket, ipv6: bool, on: bool);

    /// Send the concatenation of `parts` as datagrams of `segment` bytes, the last possibly shorter, by one
    /// sendmsg(2) with UDP_SEGMENT. 1..=[`MAX_SEGMENTS`] datagrams, all or nothing.
    ///
    /// # Errors
    /// Any [`Fault`] of sending. [`Fault::TooBig`] or an errno may also mean that this kernel, interface or path
    /// cannot segment: the caller sends one by one.
    fn send_segments(
        &mut self,
        socket: &Self::Socket,
        how: &Send,
        parts: &[IoSlice<'_>],
        segment: u16,
    ) -> Result<(), Fault>;

    /// Send each of `parts` (1..=[`MAX_SEGMENTS`]) as a datagram of its own: sendmsg(2) for one, else sendmmsg(2).
    /// Returns how many were taken, in order; fewer than all means the next one failed as the [`Fault`] says.
    fn send_each(
        &mut self,
        socket: &Self::Socket,
        how: &Send,
        parts: &[IoSlice<'_>],
    ) -> (usize, Option<Fault>);

    /// Receive up to [`MAX_RECEIVE`] messages into buffers that have room for headers in front; what was received
    /// before is forgotten. A count below `out`'s length means the socket is drained.
    ///
    /// # Errors
    /// [`Fault::WouldBlock`] if there is nothing; [`Fault::Errno`] for a pending error, which this clears.
    fn receive(&mut self, socket: &Self::Socket, out: &mut [Received]) -> Result<usize, Fault>;

    /// Give the guest messages `first..first + count` of the last [`Io::receive`], in order: as one super-frame
    /// where the tap takes that, else as one frame per datagram.
    fn forward(&mut self, first: usize, count: usize, frame: &Frame);

    /// Send messages `first..first + count` of the last [`Io::receive`] to another socket, in order, as datagrams cut as
    /// `cut` says: by one sendmsg(2) with UDP_SEGMENT where the kernel takes that, else one by one.
    ///
    /// # Errors
    /// Any [`Fault`] of sending, if not all could be sent.
    fn relay(
        &mut self,
        first: usize,
        count: usize,
        socket: &Self::Socket,
        how: &Send,
        cut: Cut,
    ) -> Result<(), Fault>;

    /// The payload of a message of the last [`Io::receive`].
    fn payload(&mut self, number: usize) -> &[u8];

    /// A ready-made socket of the guest's namespace, registered under `id` as by [`Io::open`] but not bound. `None`:
    /// none is there now; when there are more, [`super::Engine::supplied`] is to be called.
    fn namespace_socket(&mut self, id: FlowId, ipv6: bool) -> Option<Self::Socket>;

    /// Bind such a socket to a source address, any port.
    ///
    /// # Errors
    /// [`Fault::Errno`] if there is no such address.
    fn bind(&mut self, socket: &Self::Socket, source: IpAddr) -> Result<(), Fault>;

    /// The addresses the guest was last seen to use.
    fn seen(&self) -> Seen;

    /// A flow is over: what it has carried, and the rule it came by.
    fn finished(&mut self, rule: Option<RuleId>, traffic: &Traffic);

    /// Take the next entry off the error queue. The bytes that went with it (what was quoted of the payload) go
    /// to `payload`.
    fn next_error(&mut self, socket: &Self::Socket, payload: &mut [u8]) -> Option<Record>;

    /// Read and clear a pending error (SO_ERROR).
    fn clear_error(&mut self, socket: &Self::Socket);

    /// The path MTU a connected socket knows (IP_MTU, IPV6_MTU), in bytes of IP packet.
    fn path_mtu(&mut self, socket: &Self::Socket, ipv6: bool) -> Option<u32>;

    /// Send the guest an ICMP error.
    fn report(&mut self, report: &Report<'_>);

    /// Count a datagram that is not carried any further.
    fn drop(&mut self, why: Drop);
}
