//! What the echo core asks of the world: ping sockets on one side, echo replies for the guest on the other.
//!
//! Ping sockets are `socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP)` and its IPv6 twin: they send echo requests and
//! receive the replies to their own identifier, nothing else, and need no privilege where the
//! `net.ipv4.ping_group_range` sysctl includes one of the process's groups.

use std::net::IpAddr;

use crate::addr::Endpoint;
use crate::flow::id::FlowId;
use crate::icmp::report::Report;
use crate::stats::Drop;
use crate::sys::errqueue::Record;
use crate::udp::io::{Fault, Open, Peer, Send};

/// One echo request of the guest, whole, its checksum verified.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The guest's address.
    pub src: IpAddr,
    /// Where the guest sends it.
    pub dst: IpAddr,
    /// The identifier.
    pub ident: u16,
    /// The ICMP message from its type on: the 8-byte header, then the data.
    pub message: &'a [u8],
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS byte or traffic class.
    pub tos: u8,
    /// IPv4: the DF bit. IPv6: true unless it arrived in fragments.
    pub dont_fragment: bool,
    /// The packet from its IP header on (of the first fragment), to be quoted in errors.
    pub l3: &'a [u8],
}

/// One message received from a ping socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Who sent it; the port is meaningless.
    pub from: IpAddr,
    /// Bytes of ICMP message, header included.
    pub len: usize,
    /// TOS or traffic class; 0 if unknown.
    pub tos: u8,
}

/// Ping sockets and frames; see the module text.
pub trait Io {
    /// A ping socket. Given back to [`Io::close`]; dropping one must close it, too.
    type Socket;

    /// Make and bind a ping socket and register it under `id`, level-triggered for readability. [`Open::port`] is the
    /// identifier. Always: non-blocking, IP_RECVERR, IP_RECVTOS (and their IPv6 counterparts). Returns the
    /// identifier it was given.
    ///
    /// # Errors
    /// [`Fault::NoDescriptor`] at a limit; [`Fault::Errno`] with EACCES or EPERM where ping sockets are not permitted.
    fn open(&mut self, id: FlowId, open: &Open<'_>) -> Result<(Self::Socket, u16), Fault>;

    /// Deregister and close.
    fn close(&mut self, socket: Self::Socket);

    /// Permit broadcast and multicast destinations.
    fn enable_groups(&mut self, socket: &Self::Socket, ipv6: bool);

    /// As [`crate::udp::io::Io::set_dont_fragment`].
    fn set_dont_fragment(&mut self, socket: &Self::Socket, ipv6: bool, on: bool);

    /// Send an echo request; the kernel fills in identifier and checksum.
    ///
    /// # Errors
    /// Any [`Fault`] of sending.
    fn send(
        &mut self,
        socket: &Self::Socket,
        to: Peer,
        how: &Send,
        message: &[u8],
    ) -> Result<(), Fault>;

    /// Receive one message into a buffer with room for headers in front.
    ///
    /// # Errors
    /// [`Fault::WouldBlock`] if there is nothing; [`Fault::Errno`] for a pending error, which this clears.
    fn receive(&mut self, socket: &Self::Socket) -> Result<Reply, Fault>;

    /// Give the guest the message last received, if it is an echo reply, as one from `src` with the identifier
    /// `dst.port`: writes identifier and checksum.
    fn forward(&mut self, reply: &Reply, src: IpAddr, dst: Endpoint);

    /// As [`crate::udp::io::Io::next_error`]; the bytes begin with the ICMP header of the request.
    fn next_error(&mut self, socket: &Self::Socket, payload: &mut [u8]) -> Option<Record>;

    /// Read and clear a pending error (SO_ERROR).
    fn clear_error(&mut self, socket: &Self::Socket);

    /// Send the guest an ICMP error.
    fn report(&mut self, report: &Report<'_>);

    /// Count a request that is not carried any further.
    fn drop(&mut self, why: Drop);
}
