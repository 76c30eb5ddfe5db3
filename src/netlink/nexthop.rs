//! Nexthop objects (`ip nexthop`, Linux 5.3): routes may refer to them by number alone.
//!
//! With the sysctl `net.ipv4.nexthop_compat_mode` at its default the kernel spells the hops out in each
//! route, too, and none of this is used. netlink-packet-route does not know these messages; what we need of
//! them is a header and four attributes (`linux/nexthop.h`).

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NlasIterator};
use nix::errno::Errno;

use super::message::{u16_at, u32_at};
use super::{NetlinkError, Socket};
use crate::config::host::NextHop;

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
/// `struct nhmsg`: family, scope, protocol, reserved: 1 byte each; flags 4 bytes.
const HEADER_LEN: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
/// `struct nexthop_grp`: id 4 bytes, weight - 1 low byte, high byte, reserved 2 bytes.
const GROUP_ENTRY_LEN: usize = 8;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;

/// An object: one hop, or a group of (identifier, weight).
#[derive(Clone, PartialEq, Eq, Debug)]
enum Object {
    Hop(NextHop),
    Group(Vec<(u32, u16)>),
}

/// All objects of a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Objects(Vec<(u32, Object)>);

impl Objects {
    /// The hops behind an identifier; none if it is unknown or a blackhole.
    pub(super) fn hops(&self, id: u32) -> Vec<NextHop> {
        match self.find(id) {
            Some(Object::Hop(hop)) => vec![*hop],
            Some(Object::Group(members)) => members
                .iter()
                .filter_map(|&(id, weight)| match self.find(id) {
                    Some(Object::Hop(hop)) => Some(NextHop { weight, ..*hop }),
                    _ => None,
                })
                .collect(),
            None => Vec::new(),
        }
    }

    fn find(&self, id: u32) -> Option<&Object> {
        self.0.iter().find(|o| o.0 == id).map(|o| &o.1)
    }
}

struct Request;

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    fn emit(&self, out: &mut [u8]) {
        out.fill(0);
    }
}

/// List the objects of the current namespace.
pub(super) fn query(socket: &mut Socket) -> Result<Objects, NetlinkError> {
    match socket.dump(RTM_GETNEXTHOP, &Request, parse)? {
        Ok(found) => Ok(Objects(found)),
        Err(r) if r.errno == Errno::EOPNOTSUPP => Ok(Objects::default()),
        Err(r) => Err(NetlinkError::Refused {
            what: "nexthop objects",
            errno: r.errno,
        }),
    }
}

fn parse(kind: u16, body: &[u8]) -> Option<(u32, Object)> {
    let attributes = body.get(HEADER_LEN..)?;
    if kind != RTM_NEWNEXTHOP {
        return None;
    }
    let (mut id, mut group, mut link, mut gateway) = (None, None, None, None);
    for a in NlasIterator::new(attributes).filter_map(Result::ok) {
        match a.kind() {
            NHA_ID => id = u32_at(a.value(), 0),
            NHA_GROUP => group = Some(members(a.value())),
            NHA_OIF => link = u32_at(a.value(), 0),
            NHA_GATEWAY => gateway = ip(a.value()),
            _ => {}
        }
    }
    let object = match (group, link) {
        (Some(members), _) => Object::Group(members),
        (None, Some(link)) => Object::Hop(NextHop {
            link,
            gateway,
            weight: 1,
            onlink: u32_at(body, 4)? & ONLINK != 0,
        }),
        (None, None) => return None,
    };
    Some((id?, object))
}

fn members(value: &[u8]) -> Vec<(u32, u16)> {
    value
        .chunks_exact(GROUP_ENTRY_LEN)
        .filter_map(|entry| {
            let weight = u16::from_le_bytes(u16_at(entry, 4)?.to_ne_bytes());
            Some((u32_at(entry, 0)?, weight.saturating_add(1)))
        })
        .collect()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}
