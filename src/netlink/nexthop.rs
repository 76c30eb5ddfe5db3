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

#[cfg(test)]
mod tests {
    use super::*;

    fn object(flags: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        body.extend(u32::from(flags).to_ne_bytes());
        for (kind, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }

    #[test]
    fn groups_resolve_to_their_members_hops() {
        let id = |n: u32| n.to_ne_bytes();
        let bodies = [
            object(
                4,
                &[
                    (NHA_ID, &id(1)),
                    (NHA_OIF, &id(7)),
                    (NHA_GATEWAY, &[192, 0, 2, 1]),
                ],
            ),
            object(
                0,
                &[
                    (NHA_ID, &id(2)),
                    (NHA_OIF, &id(8)),
                    (NHA_GATEWAY, &[0xfd; 16]),
                ],
            ),
            // A blackhole, and a group with it, an unknown member, and weights 1 and 300.
            object(0, &[(NHA_ID, &id(3)), (4, &[])]),
            object(
                0,
                &[
                    (NHA_ID, &id(9)),
                    (
                        NHA_GROUP,
                        &[
                            id(1),
                            [0, 0, 0, 0],
                            id(3),
                            [0; 4],
                            id(55),
                            [0; 4],
                            id(2),
                            [43, 1, 0, 0],
                        ]
                        .concat(),
                    ),
                ],
            ),
        ];
        let objects = Objects(
            bodies
                .iter()
                .filter_map(|b| parse(RTM_NEWNEXTHOP, b))
                .collect(),
        );
        assert_eq!(objects.0.len(), 3);
        let hops = objects.hops(9);
        assert_eq!(hops.len(), 2);
        assert_eq!((hops[0].link, hops[0].weight, hops[0].onlink), (7, 1, true));
        assert_eq!(
            (hops[1].link, hops[1].weight, hops[1].onlink),
            (8, 300, false)
        );
        assert!(hops[1].gateway.unwrap().is_ipv6());
        assert_eq!(objects.hops(1).len(), 1);
        assert!(objects.hops(3).is_empty() && objects.hops(77).is_empty());
    }

    #[test]
    fn truncated_objects_are_no_objects() {
        let body = object(0, &[(NHA_ID, &[1, 0, 0, 0]), (NHA_OIF, &[7, 0, 0, 0])]);
        for cut in 0..body.len() {
            assert_eq!(parse(RTM_NEWNEXTHOP, &body[..cut]), None, "{cut}");
        }
        assert!(parse(RTM_NEWNEXTHOP, &body).is_some());
    }
}
