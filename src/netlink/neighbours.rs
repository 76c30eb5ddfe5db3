//! The neighbour table of the network namespace the socket was opened in, and every change of it, as it happens
//! (rtnetlink(7): `RTM_GETNEIGH`, and the multicast group `RTNLGRP_NEIGH`).
//!
//! The kernel tells changes by itself; what was there before is asked for with [`Neighbours::ask`], and the answer
//! comes between the changes on the same socket. When the kernel has lost messages for want of room it says so, once
//! ([`Heard::Lost`]): only asking again helps then.
//!
//! Unlike most of this room, this serves a confined process: sendto and recvfrom are all it needs, nothing is
//! allocated after [`Neighbours::open`], and no call waits.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{Emitable, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::message::{self, DONE, ERROR, Message, Messages, u16_at, u32_at};
use crate::addr::Mac;

/// `RTM_NEWNEIGH`, `RTM_DELNEIGH`, `RTM_GETNEIGH` (linux/rtnetlink.h).
const NEW: u16 = 28;
const DELETED: u16 = 29;
const GET: u16 = 30;
/// `RTNLGRP_NEIGH` as a bit of `nl_groups` (linux/rtnetlink.h: `RTMGRP_NEIGH`).
const GROUP: u32 = 4;
/// `NLM_F_REQUEST | NLM_F_DUMP`, `NLM_F_DUMP_INTR` of netlink(7).
const REQUEST_DUMP: u16 = 0x301;
const DUMP_INTERRUPTED: u16 = 0x10;
/// Length of `struct ndmsg` (linux/neighbour.h): family and padding 4 bytes, index 4, state 2, flags 1, type 1.
const HEADER_LEN: usize = 12;
/// `NDA_DST`, `NDA_LLADDR`.
const ATTRIBUTE_ADDRESS: u16 = 1;
const ATTRIBUTE_LINK_LAYER: u16 = 2;
/// `NTF_PROXY`: not a neighbour, but an address the host answers for.
const PROXY: u8 = 0x08;
/// The states in which the link-layer address is good: `NUD_REACHABLE`, `NUD_STALE`, `NUD_DELAY`, `NUD_PROBE`,
/// `NUD_NOARP`, `NUD_PERMANENT`.
const VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
/// The kernel makes its answers at most this large, if it has seen us read that much.
const BUFFER: usize = 32 * 1024;

/// What is known about one neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Index of the interface it is behind.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address, a single station's; `None`: not, or no longer, known.
    pub mac: Option<Mac>,
}

/// What one datagram was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// There is none now.
    Nothing,
    /// Changes, or a part of the answer.
    Some,
    /// The last part of the answer. `complete`: nothing changed in a way that could have hidden an entry from it.
    Answered {
        /// See there.
        complete: bool,
    },
    /// Some are missing: what was known before must be asked for again.
    Lost,
}

/// `struct ndmsg` that asks for all.
struct Everything;

impl Emitable for Everything {
    fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    fn emit(&self, _: &mut [u8]) {
        // Zeroes: any family, any interface.
    }
}

/// A socket of the namespace the process was in when it was opened.
#[derive(Debug)]
pub struct Neighbours {
    socket: Socket,
    sequence: u32,
    interrupted: bool,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Neighbours {
    /// Open in the current network namespace: changes are told from now on.
    ///
    /// # Errors
    /// As socket(2) and bind(2).
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, GROUP))?;
        Ok(Self {
            socket,
            sequence: 0,
            interrupted: false,
            request: Vec::with_capacity(64),
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Ask for the whole table: the answer ends with [`Heard::Answered`]. One question at a time.
    ///
    /// # Errors
    /// As sendto(2).
    pub fn ask(&mut self) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.interrupted = false;
        self.request.clear();
        message::push(
            &mut self.request,
            GET,
            REQUEST_DUMP,
            self.sequence,
            &Everything,
        );
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(&self.request, &kernel, 0).map(drop)
    }

    /// Read one datagram, if there is one, and show what it says: an entry, and whether it is part of an answer rather
    /// than a change.
    ///
    /// # Errors
    /// As recvfrom(2): the socket is of no use any more.
    pub fn receive(&mut self, mut each: impl FnMut(Neighbour, bool)) -> io::Result<Heard> {
        self.buffer.clear();
        let from = match self.socket.recv_from(&mut self.buffer, libc::MSG_DONTWAIT) {
            Ok((_, from)) => from,
            Err(e) => {
                return match e.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => Ok(Heard::Nothing),
                    Some(libc::ENOBUFS) => Ok(Heard::Lost),
                    _ => Err(e),
                };
            }
        };
        // Anybody in the namespace may write to our port; only number 0 is the kernel.
        if from.port_number() != 0 {
            return Ok(Heard::Some);
        }
        let mut heard = Heard::Some;
        for m in Messages(&self.buffer) {
            let answer = m.sequence == self.sequence;
            self.interrupted |= answer && m.flags & DUMP_INTERRUPTED != 0;
            match m.kind {
                // Since Linux 6.9 the end may come with the last part.
                DONE | ERROR if answer => {
                    heard = Heard::Answered {
                        complete: m.kind == DONE && !self.interrupted,
                    };
                }
                _ => parse(&m).into_iter().for_each(|n| each(n, answer)),
            }
        }
        Ok(heard)
    }
}

impl AsFd for Neighbours {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An entry, or its end; `None` for what is no neighbour of ours to know.
fn parse(m: &Message<'_>) -> Option<Neighbour> {
    if !matches!(m.kind, NEW | DELETED) {
        return None;
    }
    let [family, ..] = *m.body else { return None };
    let (link, state) = (u32_at(m.body, 4)?, u16_at(m.body, 8)?);
    if m.body.get(10)? & PROXY != 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    let attributes = NlasIterator::new(m.body.get(HEADER_LEN..)?);
    for a in attributes.filter_map(Result::ok) {
        match a.kind() {
            ATTRIBUTE_ADDRESS => address = address_of(family, a.value()),
            ATTRIBUTE_LINK_LAYER => mac = a.value().try_into().ok().map(Mac),
            _ => {}
        }
    }
    let known = m.kind == NEW && state & VALID != 0;
    Some(Neighbour {
        link,
        address: address?,
        // Tunnels and the like have zeroes, or something that is not six bytes long.
        mac: mac.filter(|mac| known && mac.is_unicast()),
    })
}

/// Entries of bridges, of other families, have link-layer addresses in the place of these.
fn address_of(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        libc::AF_INET6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn body(family: u8, state: u16, flags: u8, address: &[u8], mac: &[u8]) -> Vec<u8> {
        let mut out = vec![family, 0, 0, 0];
        out.extend(7_u32.to_ne_bytes());
        out.extend(state.to_ne_bytes());
        out.extend([flags, 1]);
        for (kind, value) in [(1_u16, address), (2, mac), (77, b"else")] {
            let length = u16::try_from(4 + value.len()).unwrap();
            out.extend(length.to_ne_bytes());
            out.extend(kind.to_ne_bytes());
            out.extend(value);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    fn told(kind: u16, body: &[u8]) -> Option<Neighbour> {
        parse(&Message {
            kind,
            flags: 0,
            sequence: 0,
            body,
        })
    }

    #[test]
    fn entries() {
        let v4 = [192, 0, 2, 9];
        let v6: [u8; 16] = "fe80::9"
            .parse::<std::net::Ipv6Addr>()
            .map(|a| a.octets())
            .unwrap();
        let some = |address: &str, mac: Option<[u8; 6]>| {
            Some(Neighbour {
                link: 7,
                address: address.parse().unwrap(),
                mac: mac.map(Mac),
            })
        };
        for (why, kind, body, want) in [
            (
                "reachable",
                28,
                body(2, 2, 0, &v4, &MAC),
                some("192.0.2.9", Some(MAC)),
            ),
            (
                "stale",
                28,
                body(10, 4, 0x80, &v6, &MAC),
                some("fe80::9", Some(MAC)),
            ),
            (
                "permanent",
                28,
                body(2, 0x80, 0, &v4, &MAC),
                some("192.0.2.9", Some(MAC)),
            ),
            (
                "failed",
                28,
                body(2, 0x20, 0, &v4, &MAC),
                some("192.0.2.9", None),
            ),
            (
                "incomplete",
                28,
                body(2, 1, 0, &v4, &[]),
                some("192.0.2.9", None),
            ),
            (
                "deleted",
                29,
                body(2, 2, 0, &v4, &MAC),
                some("192.0.2.9", None),
            ),
            (
                "no station",
                28,
                body(2, 0x40, 0, &v4, &[0; 6]),
                some("192.0.2.9", None),
            ),
            (
                "a group",
                28,
                body(2, 0x40, 0, &v4, &[1, 0, 0x5e, 0, 0, 1]),
                some("192.0.2.9", None),
            ),
            (
                "a tunnel's",
                28,
                body(2, 0x40, 0, &v4, &[10, 0, 0, 1]),
                some("192.0.2.9", None),
            ),
            ("proxy", 28, body(2, 0x80, 8, &v4, &MAC), None),
            ("bridge", 28, body(7, 0x80, 0, &MAC, &MAC), None),
            ("wrong length", 28, body(2, 2, 0, &v6, &MAC), None),
            ("another message", 24, body(2, 2, 0, &v4, &MAC), None),
        ] {
            assert_eq!(told(kind, &body), want, "{why}");
        }
    }

    /// Our own namespace may have no neighbour; the answer has an end all the same.
    #[test]
    fn the_answer_ends() {
        let mut neighbours = Neighbours::open().expect("a netlink socket");
        neighbours.ask().expect("asked");
        let answered = (0..10_000).any(|_| {
            let heard = neighbours.receive(|n, _| assert_ne!(n.link, 0));
            matches!(heard.expect("received"), Heard::Answered { .. })
        });
        assert!(answered);
        let capacity = neighbours.buffer.capacity();
        assert_eq!(capacity, BUFFER, "no memory was asked for");
    }

    proptest! {
        #[test]
        fn no_message_panics(kind in 28_u16..30, body in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = told(kind, &body);
        }
    }
}
