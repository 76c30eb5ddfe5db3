//! A network for tests: sockets, ports, peers and a path with an MTU, all in memory.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::net::IpAddr;

use super::io::{Cut, Fault, Frame, Io, MAX_BURST_BYTES, MAX_SEGMENTS, Open, Peer, Received, Send};
use crate::addr::Endpoint;
use crate::config::rules::RuleId;
use crate::flow::id::FlowId;
use crate::flow::traffic::Traffic;
use crate::flow::translate::Seen;
use crate::icmp::report::{Kind, Report};
use crate::stats::Drop;
use crate::sys::errqueue::Record;

pub(crate) fn ep(s: &str) -> Endpoint {
    let a: std::net::SocketAddr = s.parse().unwrap();
    Endpoint::new(a.ip(), a.port())
}

/// A handle; the state is in the [`World`].
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
pub(crate) struct Handle(pub u32);

#[derive(Debug, Default)]
pub(crate) struct Sock {
    pub id: u32,
    pub port: u16,
    pub source: Option<IpAddr>,
    /// It is in the namespace.
    pub inside: bool,
    /// It is a listener, registered elsewhere.
    pub listener: bool,
    pub device: Option<String>,
    pub connected: Option<Endpoint>,
    pub groups: bool,
    pub dont_fragment: Option<bool>,
    /// Something was relayed by it; that needs no setting.
    pub target: bool,
    pub rx: VecDeque<(Received, Vec<u8>)>,
    pub errors: VecDeque<(Record, Vec<u8>)>,
    pub pending: Option<i32>,
}

/// A datagram as it left the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sent {
    pub port: u16,
    pub to: Endpoint,
    /// By packet information.
    pub source: Option<IpAddr>,
    pub payload: Vec<u8>,
    pub hop_limit: Option<u8>,
    pub tos: u8,
    pub dont_fragment: bool,
    /// Number of the system call it left with.
    pub call: usize,
}

/// A datagram as the guest gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Got {
    pub src: Endpoint,
    pub dst: Endpoint,
    pub payload: Vec<u8>,
    pub tos: u8,
    /// Number of the frame it came in.
    pub frame: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Reported {
    pub from: IpAddr,
    pub to: IpAddr,
    pub kind: Kind,
    pub quote: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub socks: BTreeMap<u32, Sock>,
    pub next: u32,
    pub limit: usize,
    pub mtu: usize,
    pub gso: bool,
    pub taken: Vec<u16>,
    pub unreachable: Option<(Endpoint, i32)>,
    /// Faults that the next sends meet.
    pub faults: VecDeque<Fault>,
    pub calls: usize,
    pub sent: Vec<Sent>,
    pub frames: usize,
    pub got: Vec<Got>,
    pub reports: Vec<Reported>,
    pub drops: Vec<Drop>,
    pub cleared: usize,
    pub arrived: Vec<Vec<u8>>,
    pub seen: Seen,
    /// Sockets of the namespace that are ready.
    pub pool: usize,
    pub finished: Vec<(Option<RuleId>, Traffic)>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            socks: BTreeMap::new(),
            next: 0,
            limit: 1000,
            mtu: 1500,
            gso: true,
            taken: Vec::new(),
            unreachable: None,
            faults: VecDeque::new(),
            calls: 0,
            sent: Vec::new(),
            frames: 0,
            got: Vec::new(),
            reports: Vec::new(),
            drops: Vec::new(),
            cleared: 0,
            arrived: Vec::new(),
            seen: Seen::default(),
            pool: 8,
            finished: Vec::new(),
        }
    }
}

impl World {
    /// The only socket.
    pub fn only(&mut self) -> &mut Sock {
        assert_eq!(self.socks.len(), 1);
        self.socks.values_mut().next().unwrap()
    }

    pub fn by_port(&mut self, port: u16) -> &mut Sock {
        self.socks.values_mut().find(|s| s.port == port).unwrap()
    }

    /// A datagram from `from` arrives at a port of the host; true if a socket takes it.
    pub fn arrive(&mut self, port: u16, from: Endpoint, payload: &[u8]) -> bool {
        let message = Received {
            from,
            len: payload.len(),
            segment: payload.len(),
            ..Received::EMPTY
        };
        self.arrive_as(port, message, payload)
    }

    pub fn arrive_as(&mut self, port: u16, message: Received, payload: &[u8]) -> bool {
        let mut takers = self.socks.values_mut().filter(|s| s.port == port);
        let Some(sock) = takers.find(|s| s.connected.is_none_or(|c| c == message.from)) else {
            return false;
        };
        sock.rx.push_back((message, payload.to_vec()));
        true
    }

    /// A listener of the host or of the namespace.
    pub fn listener(&mut self, port: u16) -> Handle {
        self.next += 1;
        let sock = Sock {
            port,
            listener: true,
            ..Sock::default()
        };
        self.socks.insert(self.next, sock);
        Handle(self.next)
    }

    /// A datagram arrives at a listener.
    pub fn knock(&mut self, listener: Handle, from: &str, to: &str, payload: &[u8]) {
        let message = Received {
            from: ep(from),
            to: Some(to.parse().unwrap()),
            len: payload.len(),
            segment: payload.len(),
            ..Received::EMPTY
        };
        let sock = self.socks.get_mut(&listener.0).unwrap();
        sock.rx.push_back((message, payload.to_vec()));
    }

    /// Where sockets are registered that have something to say.
    pub fn ready(&self) -> Vec<(FlowId, super::io::Readiness)> {
        let some = |s: &&Sock| !s.rx.is_empty() || !s.errors.is_empty() || s.pending.is_some();
        let ready = |s: &Sock| super::io::Readiness {
            readable: !s.rx.is_empty(),
            error: !s.errors.is_empty() || s.pending.is_some(),
        };
        self.socks
            .values()
            .filter(|s| !s.listener)
            .filter(some)
            .map(|s| (FlowId(s.id), ready(s)))
            .collect()
    }

    /// The faults any send may meet; otherwise where it goes.
    fn admit(&mut self, socket: &Handle, how: &Send) -> Result<Sent, Fault> {
        self.calls += 1;
        if let Some(fault) = self.faults.pop_front() {
            return Err(fault);
        }
        let sock = self.socks.get_mut(&socket.0).expect("closed");
        if let Some(errno) = sock.pending.take() {
            return Err(Fault::Errno(errno));
        }
        assert!(
            how.to.is_some() != sock.connected.is_some(),
            "address and connection"
        );
        let to = how.to.map(|p| p.end).or(sock.connected).unwrap();
        assert_eq!(to.is_ipv6(), how.ipv6);
        match self.unreachable {
            Some((end, errno)) if end == to => Err(Fault::Errno(errno)),
            _ => Ok(Sent {
                port: sock.port,
                to,
                source: how.source,
                payload: Vec::new(),
                hop_limit: how.hop_limit,
                tos: how.tos,
                dont_fragment: sock
                    .dont_fragment
                    .or(sock.target.then_some(false))
                    .expect("not set before the first send"),
                call: self.calls,
            }),
        }
    }
}

impl Io for World {
    type Socket = Handle;

    fn open(&mut self, id: FlowId, open: &Open<'_>) -> Result<(Handle, bool), Fault> {
        if self.socks.len() >= self.limit {
            return Err(Fault::NoDescriptor);
        }
        let used = |p: u16| self.taken.contains(&p) || self.socks.values().any(|s| s.port == p);
        let had = open.port != 0 && !used(open.port);
        let port = if had {
            open.port
        } else {
            (40_000..).find(|p| !used(*p)).unwrap()
        };
        self.next += 1;
        let sock = Sock {
            id: id.0,
            port,
            source: open.source,
            device: open.device.map(str::to_owned),
            ..Sock::default()
        };
        self.socks.insert(self.next, sock);
        Ok((Handle(self.next), had))
    }

    fn connect(&mut self, socket: &Handle, peer: Option<Peer>) -> Result<(), Fault> {
        match (peer, self.unreachable) {
            (Some(peer), Some((end, errno))) if peer.end == end => return Err(Fault::Errno(errno)),
            _ => {}
        }
        let sock = self.socks.get_mut(&socket.0).expect("closed");
        sock.connected = peer.map(|p| p.end);
        Ok(())
    }

    fn close(&mut self, socket: Handle) {
        self.socks.remove(&socket.0).expect("closed twice");
    }

    fn enable_groups(&mut self, socket: &Handle, _: bool) {
        self.socks.get_mut(&socket.0).expect("closed").groups = true;
    }

    fn set_dont_fragment(&mut self, socket: &Handle, _: bool, on: bool) {
        self.socks.get_mut(&socket.0).expect("closed").dont_fragment = Some(on);
    }

    fn send_segments(
        &mut self,
        socket: &Handle,
        how: &Send,
        parts: &[IoSlice<'_>],
        segment: u16,
    ) -> Result<(), Fault> {
        assert!((1..=MAX_SEGMENTS).contains(&parts.len()));
        let all = parts.iter().map(|p| &p[..]).collect::<Vec<_>>().concat();
        assert!(all.len() <= MAX_BURST_BYTES && segment > 0);
        let template = self.admit(socket, how)?;
        if !self.gso {
            return Err(Fault::Errno(libc::EIO));
        }
        if usize::from(segment) + 28 > self.mtu {
            return Err(Fault::Errno(libc::EINVAL));
        }
        let cut: Vec<_> = all.chunks(usize::from(segment)).collect();
        assert_eq!(
            cut,
            parts.iter().map(|p| &p[..]).collect::<Vec<_>>(),
            "cut differently"
        );
        for payload in cut {
            self.sent.push(Sent {
                payload: payload.to_vec(),
                ..template.clone()
            });
        }
        Ok(())
    }

    fn send_each(
        &mut self,
        socket: &Handle,
        how: &Send,
        parts: &[IoSlice<'_>],
    ) -> (usize, Option<Fault>) {
        assert!((1..=MAX_SEGMENTS).contains(&parts.len()));
        let mut call = None;
        for (done, part) in parts.iter().enumerate() {
            let mut sent = match self.admit(socket, how) {
                Ok(sent) => sent,
                Err(fault) => return (done, Some(fault)),
            };
            if sent.dont_fragment && part.len() + 28 > self.mtu {
                return (done, Some(Fault::TooBig));
            }
            sent.call = *call.get_or_insert(sent.call);
            sent.payload = part.to_vec();
            self.sent.push(sent);
        }
        (parts.len(), None)
    }

    fn receive(&mut self, socket: &Handle, out: &mut [Received]) -> Result<usize, Fault> {
        self.arrived.clear();
        let sock = self.socks.get_mut(&socket.0).expect("closed");
        if let Some(errno) = sock.pending.take() {
            return Err(Fault::Errno(errno));
        }
        for slot in &mut *out {
            let Some((message, payload)) = sock.rx.pop_front() else {
                break;
            };
            *slot = message;
            self.arrived.push(payload);
        }
        if self.arrived.is_empty() {
            Err(Fault::WouldBlock)
        } else {
            Ok(self.arrived.len())
        }
    }

    fn forward(&mut self, first: usize, count: usize, frame: &Frame) {
        self.frames += 1;
        let all = self.arrived[first..first + count].concat();
        assert!(all.len() <= 65_507);
        let cut: Vec<&[u8]> = if all.is_empty() {
            vec![&[]]
        } else {
            all.chunks(frame.segment).collect()
        };
        assert_eq!(cut.len(), frame.datagrams);
        for payload in cut {
            self.got.push(Got {
                src: frame.src,
                dst: frame.dst,
                payload: payload.to_vec(),
                tos: frame.tos,
                frame: self.frames,
            });
        }
    }

    fn relay(
        &mut self,
        first: usize,
        count: usize,
        socket: &Handle,
        how: &Send,
        cut: Cut,
    ) -> Result<(), Fault> {
        self.socks.get_mut(&socket.0).expect("closed").target = true;
        let all = self.arrived[first..first + count].concat();
        let parts: Vec<&[u8]> = if all.is_empty() {
            vec![&[]]
        } else {
            all.chunks(cut.segment).collect()
        };
        assert_eq!(parts.len(), cut.datagrams);
        let template = self.admit(socket, how)?;
        for payload in parts {
            self.sent.push(Sent {
                payload: payload.to_vec(),
                ..template.clone()
            });
        }
        Ok(())
    }

    fn payload(&mut self, number: usize) -> &[u8] {
        &self.arrived[number]
    }

    fn namespace_socket(&mut self, id: FlowId, _: bool) -> Option<Handle> {
        self.pool = self.pool.checked_sub(1)?;
        let (handle, _) = self.open(id, &Open::default()).ok()?;
        let sock = self.socks.get_mut(&handle.0)?;
        (sock.inside, sock.target) = (true, true);
        Some(handle)
    }

    fn bind(&mut self, socket: &Handle, source: IpAddr) -> Result<(), Fault> {
        self.socks.get_mut(&socket.0).expect("closed").source = Some(source);
        Ok(())
    }

    fn seen(&self) -> Seen {
        self.seen
    }

    fn finished(&mut self, rule: Option<RuleId>, traffic: &Traffic) {
        self.finished.push((rule, *traffic));
    }

    fn next_error(&mut self, socket: &Handle, payload: &mut [u8]) -> Option<Record> {
        let (mut record, data) = self
            .socks
            .get_mut(&socket.0)
            .expect("closed")
            .errors
            .pop_front()?;
        record.len = data.len().min(payload.len());
        payload[..record.len].copy_from_slice(&data[..record.len]);
        Some(record)
    }

    fn clear_error(&mut self, socket: &Handle) {
        self.cleared += 1;
        self.socks.get_mut(&socket.0).expect("closed").pending = None;
    }

    fn path_mtu(&mut self, socket: &Handle, _: bool) -> Option<u32> {
        self.socks[&socket.0].connected?;
        u32::try_from(self.mtu).ok()
    }

    fn report(&mut self, report: &Report<'_>) {
        self.reports.push(Reported {
            from: report.from,
            to: report.to,
            kind: report.kind,
            quote: report.quote.to_vec(),
        });
    }

    fn drop(&mut self, why: Drop) {
        self.drops.push(why);
    }
}
