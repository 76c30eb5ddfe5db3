//! ICMP and ICMPv6 errors for the guest: what happened to a datagram of the guest on its way.
//!
//! The host's kernel tells sockets why a datagram did not arrive, by an errno when it is sent or by an entry in
//! the socket's error queue when a router complained later. Both become the error message the guest's kernel
//! would have had from the network, quoting the datagram as the guest sent it: with the guest's addresses, not
//! with ours. That is what makes traceroute, path MTU discovery and "connection refused" work inside.
//!
//! A [`Report`] is the message before it is put into a packet. An error is never the answer to an error, nor to
//! something sent to a group (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)): callers see to that.

use std::net::IpAddr;

use crate::sys::errqueue::{Origin, Record};

/// What an ICMP error says, in the encoding of its family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// ICMP (RFC 792) or ICMPv6 (RFC 4443) type, according to the family of the report's addresses.
    pub message_type: u8,
    /// The code within the type.
    pub code: u8,
    /// The second word of the message: the next-hop MTU (IPv4: its low 16 bits), the pointer of a parameter
    /// problem, or 0.
    pub info: u32,
}

/// An ICMP error for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report<'a> {
    /// The source of the message: the router or host that reports, as the guest may know it.
    pub from: IpAddr,
    /// The guest's address that the datagram came from.
    pub to: IpAddr,
    /// What it says.
    pub kind: Kind,
    /// The datagram it is about, from its IP header on, as the guest sent it; possibly longer than what may
    /// be quoted (IPv4: 576 bytes in all, IPv6: 1280), possibly cut short.
    pub quote: &'a [u8],
}

impl Kind {
    const fn new(message_type: u8, code: u8, info: u32) -> Self {
        Self {
            message_type,
            code,
            info,
        }
    }

    /// Fragmentation needed (RFC 1191), or packet too big (RFC 4443): the path takes `mtu` bytes.
    #[must_use]
    pub const fn too_big(ipv6: bool, mtu: u32) -> Self {
        if ipv6 {
            Self::new(2, 0, mtu)
        } else {
            Self::new(3, 4, mtu)
        }
    }

    /// What a router between the guest and its destination would have said for this errno of connect(2) or
    /// sendmsg(2); `None`: nothing, the datagram is just lost. EMSGSIZE is [`Self::too_big`], which needs an MTU.
    #[must_use]
    pub const fn from_errno(ipv6: bool, errno: i32) -> Option<Self> {
        Some(match (errno, ipv6) {
            (libc::ENETUNREACH | libc::ENETDOWN, false) => Self::new(3, 0, 0),
            (libc::ENETUNREACH | libc::ENETDOWN, true) => Self::new(1, 0, 0),
            (libc::EHOSTUNREACH | libc::EHOSTDOWN, false) => Self::new(3, 1, 0),
            (libc::EHOSTUNREACH | libc::EHOSTDOWN, true) => Self::new(1, 3, 0),
            (libc::ECONNREFUSED, false) => Self::new(3, 3, 0),
            (libc::ECONNREFUSED, true) => Self::new(1, 4, 0),
            // A "prohibit" route.
            (libc::EACCES, false) => Self::new(3, 13, 0),
            (libc::EACCES, true) => Self::new(1, 1, 0),
            _ => return None,
        })
    }

    /// The error a router or host sent, from the queue entry it left: destination unreachable, too big, time
    /// exceeded, parameter problem. `None` for entries that are no such message (source quench is obsolete:
    /// RFC 6633).
    #[must_use]
    pub const fn from_record(record: &Record) -> Option<Self> {
        let kind = Self::new(record.message_type, record.code, record.info);
        match (record.origin, record.message_type) {
            // Linux passes the MTU on only for this code; elsewhere the word is unused (RFC 792).
            (Origin::Icmp, 3) if record.code == 4 => Some(kind),
            (Origin::Icmp, 3 | 11) => Some(Self::new(record.message_type, record.code, 0)),
            // The pointer is the first byte of the word (RFC 792); what Linux passes is that word.
            (Origin::Icmp, 12) | (Origin::Icmpv6, 2 | 4) => Some(kind),
            (Origin::Icmpv6, 1 | 3) => Some(Self::new(record.message_type, record.code, 0)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_what_the_router_said() {
        let record = |origin, message_type, code, info| Record {
            origin,
            errno: 0,
            message_type,
            code,
            info,
            offender: None,
            destination: None,
            len: 0,
        };
        let kind = |m, c, i| Some(Kind::new(m, c, i));
        let table = [
            (record(Origin::Icmp, 3, 3, 9), kind(3, 3, 0)),
            (record(Origin::Icmp, 3, 4, 1400), kind(3, 4, 1400)),
            (record(Origin::Icmp, 11, 0, 0), kind(11, 0, 0)),
            (record(Origin::Icmp, 4, 0, 0), None),
            (record(Origin::Icmpv6, 1, 4, 0), kind(1, 4, 0)),
            (record(Origin::Icmpv6, 2, 0, 1280), kind(2, 0, 1280)),
            (record(Origin::Icmpv6, 3, 0, 0), kind(3, 0, 0)),
            (record(Origin::Icmpv6, 129, 0, 0), None),
            (record(Origin::Local, 0, 0, 1500), None),
        ];
        for (record, want) in table {
            assert_eq!(Kind::from_record(&record), want, "{record:?}");
        }
    }

    #[test]
    fn errno_of_both_families() {
        assert_eq!(
            Kind::from_errno(false, libc::ENETUNREACH),
            Some(Kind::new(3, 0, 0))
        );
        assert_eq!(
            Kind::from_errno(true, libc::ECONNREFUSED),
            Some(Kind::new(1, 4, 0))
        );
        assert_eq!(Kind::from_errno(false, libc::EPERM), None);
        assert_eq!(Kind::too_big(true, 1280), Kind::new(2, 0, 1280));
    }
}
