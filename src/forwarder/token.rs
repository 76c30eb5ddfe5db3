//! What an epoll event refers to, packed into the 64 bits the kernel keeps for us.
//!
//! The kind is in the top byte, a flow index in the low half. An event fetched in the same round in which
//! its flow was closed and the index used again reaches the new flow as a readiness it does not have;
//! engines therefore treat readiness as a hint and let the socket itself answer.

use crate::flow::id::FlowId;
use crate::tcp::splice::End;

/// The source of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    /// The tap, or the connection of the guest.
    Tap,
    /// The socket where guests connect.
    Caller,
    /// A ring of the guest, by its number.
    Kick(u16),
    /// The monitor: listeners, a report to write, its end.
    Monitor,
    /// A TCP connection's socket.
    Tcp(FlowId),
    /// A socket of a connection between the loopbacks.
    Splice(FlowId, End),
    /// A UDP flow's socket.
    Udp(FlowId),
    /// A ping socket.
    Icmp(FlowId),
    /// The ns-agent: sockets of the namespace, listeners there.
    Agent,
    /// A TCP listener, by its place among the listeners.
    TcpListener(u32),
    /// A UDP listener, likewise.
    UdpListener(u32),
    /// Whoever reads a report has room for more.
    Report,
}

const KIND_SHIFT: u32 = 56;

impl Token {
    /// The value to register with.
    #[must_use]
    pub fn to_raw(self) -> u64 {
        let (kind, id): (u64, u32) = match self {
            Self::Tap => (0, 0),
            Self::Monitor => (1, 0),
            Self::Tcp(id) => (2, id.0),
            Self::Udp(id) => (3, id.0),
            Self::Icmp(id) => (4, id.0),
            Self::Agent => (7, 0),
            Self::TcpListener(n) => (8, n),
            Self::UdpListener(n) => (9, n),
            Self::Report => (10, 0),
            Self::Caller => (11, 0),
            Self::Kick(ring) => (12, u32::from(ring)),
            Self::Splice(id, End::Origin) => (5, id.0),
            Self::Splice(id, End::Target) => (6, id.0),
        };
        (kind << KIND_SHIFT) | u64::from(id)
    }

    /// What a value stands for; `None` for one we never registered.
    #[must_use]
    pub fn from_raw(raw: u64) -> Option<Self> {
        let id = FlowId(u32::try_from(raw & u64::from(u32::MAX)).ok()?);
        match raw >> KIND_SHIFT {
            0 => Some(Self::Tap),
            1 => Some(Self::Monitor),
            2 => Some(Self::Tcp(id)),
            3 => Some(Self::Udp(id)),
            4 => Some(Self::Icmp(id)),
            7 => Some(Self::Agent),
            8 => Some(Self::TcpListener(id.0)),
            9 => Some(Self::UdpListener(id.0)),
            10 => Some(Self::Report),
            11 => Some(Self::Caller),
            12 => u16::try_from(id.0).ok().map(Self::Kick),
            5 => Some(Self::Splice(id, End::Origin)),
            6 => Some(Self::Splice(id, End::Target)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_kernel() {
        for id in [0, 1, u32::MAX].map(FlowId) {
            for t in [
                Token::Tap,
                Token::Monitor,
                Token::Tcp(id),
                Token::Udp(id),
                Token::Icmp(id),
                Token::Agent,
                Token::TcpListener(id.0),
                Token::UdpListener(id.0),
                Token::Report,
                Token::Splice(id, End::Origin),
                Token::Splice(id, End::Target),
            ] {
                assert_eq!(Token::from_raw(t.to_raw()), Some(t));
            }
        }
        assert_eq!(Token::from_raw(u64::MAX), None);
    }
}
