//! A host socket, the network behind it, and the peer.
//!
//! The host's kernel and the peer's are reduced to what the engine can notice: a send buffer that fills, drains
//! with the peer's acknowledgements and grows only after it has refused something; a receive queue with a peek
//! position; edges. The network has a round trip and a rate, and loses nothing (that would be the kernels' business).

use std::collections::VecDeque;

use crate::rng::Pattern;

/// Bytes per µs on the network: 40 Gbit/s.
const RATE: u64 = 5000;
/// Largest unit the kernel sends at a time.
const UNIT: u64 = 65_536;

/// How the far side behaves.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Round trip, µs.
    pub rtt: u64,
    /// Send buffer of the host's socket: to begin with, and at most.
    pub sndbuf: (u64, u64),
    /// Receive buffer of the host's socket.
    pub rcvbuf: u64,
    /// The peer's receive buffer.
    pub window: u64,
    /// Bytes per ms the peer's application reads; 0: at once.
    pub read_rate: u64,
    /// Bytes the peer sends.
    pub sends: u64,
    /// It sends them only after the guest's FIN.
    pub after_fin: bool,
    /// Bytes it waits for before it sends.
    pub after_bytes: u64,
}

/// What happens to a socket at a later time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Net {
    /// The handshake is over.
    Connected,
    /// So many bytes (and a FIN) reach the peer.
    AtPeer(u64, bool),
    /// The peer's application reads.
    PeerReads,
    /// The peer's acknowledgement and window reach the host.
    Ack { acked: u64, edge: u64 },
    /// Bytes (and a FIN) of the peer reach the host.
    AtHost(u64, bool),
    /// The host's window reaches the peer: it may have sent up to this.
    Window(u64),
}

/// Edges that epoll would report.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Edges {
    pub readable: bool,
    pub writable: bool,
    pub rdhup: bool,
    pub hup: bool,
}

#[derive(Debug)]
pub struct Socket {
    pub peer: Peer,
    pub connected: bool,
    pub edges: Edges,
    pub open: bool,
    // Guest → peer.
    pub accepted: u64,
    /// What the kernel counts as acknowledged before the first byte: the SYN, if it was ours.
    base: u64,
    sent: u64,
    acked: u64,
    edge: u64,
    sndbuf: u64,
    nospace: bool,
    shut: bool,
    fin_sent: bool,
    busy_until: u64,
    pub arrived: u64,
    pub read: u64,
    pub peer_eof: bool,
    reading: bool,
    advertised: u64,
    // Peer → guest.
    pub emitted: u64,
    emit_edge: u64,
    pub peer_fin_sent: bool,
    peer_busy_until: u64,
    pub received: u64,
    consumed: u64,
    told: u64,
    peeked: u64,
    fin_received: bool,
    pub last_read_at: u64,
    /// To be put into the event queue: at which time, what.
    pub pending: VecDeque<(u64, Net)>,
}

impl Socket {
    pub fn new(peer: Peer, now: u64) -> Self {
        let mut pending = VecDeque::new();
        pending.push_back((now + peer.rtt, Net::Connected));
        Self {
            connected: false,
            edges: Edges::default(),
            open: true,
            accepted: 0,
            base: 1,
            sent: 0,
            acked: 0,
            edge: peer.window,
            sndbuf: peer.sndbuf.0,
            nospace: false,
            shut: false,
            fin_sent: false,
            busy_until: 0,
            arrived: 0,
            read: 0,
            peer_eof: false,
            reading: false,
            advertised: peer.window,
            emitted: 0,
            emit_edge: peer.rcvbuf / 2,
            peer_fin_sent: false,
            peer_busy_until: 0,
            received: 0,
            consumed: 0,
            told: peer.rcvbuf / 2,
            peeked: 0,
            fin_received: false,
            last_read_at: now,
            pending,
            peer,
        }
    }

    /// A connection that the peer has opened.
    pub fn of_peer(peer: Peer, now: u64) -> Self {
        let mut socket = Self::new(peer, now);
        socket.pending.clear();
        socket.base = 0;
        socket.on_net(now, Net::Connected);
        socket
    }

    fn later(&mut self, at: u64, what: Net) {
        self.pending.push_back((at, what));
    }

    pub fn bytes_acked(&self) -> u64 {
        self.acked + self.base
    }

    pub fn queued(&self) -> u64 {
        self.accepted - self.acked
    }

    pub fn size(&self) -> u64 {
        self.sndbuf
    }

    /// `sendmsg`: `None` is EAGAIN.
    pub fn send(&mut self, now: u64, slices: &[&[u8]], pattern: &Pattern) -> Option<usize> {
        assert!(self.open && !self.shut, "send after shutdown or close");
        let mut taken = 0;
        'all: for slice in slices {
            let mut rest = *slice;
            while !rest.is_empty() {
                if self.queued() >= self.sndbuf {
                    self.nospace = true;
                    break 'all;
                }
                let now = rest.len().min(UNIT as usize);
                assert!(
                    pattern.check(self.accepted, &rest[..now]),
                    "wrong bytes at {} of the upload",
                    self.accepted
                );
                self.accepted += now as u64;
                taken += now;
                rest = &rest[now..];
            }
        }
        self.transmit(now);
        (taken > 0 || slices.is_empty()).then_some(taken)
    }

    pub fn shutdown(&mut self, now: u64) {
        assert!(!self.shut, "shut down twice");
        self.shut = true;
        self.transmit(now);
    }

    fn transmit(&mut self, now: u64) {
        while self.sent < self.accepted.min(self.edge) {
            let n = (self.accepted.min(self.edge) - self.sent).min(UNIT);
            self.sent += n;
            self.busy_until = self.busy_until.max(now) + n / RATE;
            self.later(self.busy_until + self.peer.rtt / 2, Net::AtPeer(n, false));
        }
        if self.shut && !self.fin_sent && self.sent == self.accepted {
            self.fin_sent = true;
            self.later(
                self.busy_until.max(now) + self.peer.rtt / 2,
                Net::AtPeer(0, true),
            );
        }
    }

    pub fn on_net(&mut self, now: u64, what: Net) {
        match what {
            Net::Connected => {
                self.connected = true;
                self.edges.writable = true;
                self.peer_sends(now);
            }
            Net::AtPeer(n, fin) => {
                self.arrived += n;
                assert!(self.arrived <= self.advertised, "beyond the peer's window");
                self.peer_eof |= fin;
                if self.peer.read_rate == 0 {
                    self.peer_reads(now, u64::MAX);
                } else if !self.reading {
                    self.reading = true;
                    self.later(now + 1000, Net::PeerReads);
                }
                self.peer_acks(now);
                self.peer_sends(now);
            }
            Net::PeerReads => {
                self.reading = false;
                self.peer_reads(now, self.peer.read_rate);
                if self.read < self.arrived {
                    self.reading = true;
                    self.later(now + 1000, Net::PeerReads);
                }
                // A window update, when it is worth one.
                if self.read + self.peer.window - self.advertised
                    >= (self.peer.window / 2).min(2 * 1460)
                {
                    self.peer_acks(now);
                }
                self.peer_sends(now);
            }
            Net::Ack { acked, edge } => {
                self.acked = self.acked.max(acked);
                self.edge = self.edge.max(edge);
                if self.nospace {
                    // tcp_check_space: grow, then report when a third is free.
                    self.sndbuf = (self.sndbuf * 2).min(self.peer.sndbuf.1.max(self.peer.sndbuf.0));
                    if self.queued() * 3 <= self.sndbuf * 2 {
                        self.nospace = false;
                        self.edges.writable = true;
                    }
                }
                self.transmit(now);
            }
            Net::AtHost(n, fin) => {
                self.received += n;
                self.fin_received |= fin;
                self.edges.readable = true;
                self.edges.rdhup |= fin;
                self.edges.hup |= fin && self.shut;
            }
            Net::Window(edge) => {
                self.emit_edge = self.emit_edge.max(edge);
                self.peer_sends(now);
            }
        }
    }

    fn peer_reads(&mut self, now: u64, most: u64) {
        let n = (self.arrived - self.read).min(most);
        if n > 0 {
            self.read += n;
            self.last_read_at = now;
        }
    }

    fn peer_acks(&mut self, now: u64) {
        self.advertised = self.advertised.max(self.read + self.peer.window);
        let (acked, edge) = (self.arrived, self.advertised);
        self.later(now + self.peer.rtt / 2, Net::Ack { acked, edge });
    }

    fn peer_sends(&mut self, now: u64) {
        if self.peer.after_fin && !(self.peer_eof && self.read == self.arrived)
            || self.read < self.peer.after_bytes
        {
            return;
        }
        while self.emitted < self.peer.sends.min(self.emit_edge) {
            let n = (self.peer.sends.min(self.emit_edge) - self.emitted).min(UNIT);
            self.emitted += n;
            self.peer_busy_until = self.peer_busy_until.max(now) + n / RATE;
            self.later(
                self.peer_busy_until + self.peer.rtt / 2,
                Net::AtHost(n, false),
            );
        }
        // It closes when it has sent everything and, unless it sends until then, seen the guest's FIN.
        let heard = self.peer_eof && self.read == self.arrived;
        if self.emitted == self.peer.sends && !self.peer_fin_sent && (heard || self.peer.sends > 0)
        {
            self.peer_fin_sent = true;
            self.later(
                self.peer_busy_until.max(now) + self.peer.rtt / 2,
                Net::AtHost(0, true),
            );
        }
    }

    /// `recvmsg(MSG_PEEK)`: up to `max` bytes at `offset`; `Some(0)` is the FIN, `None` is EAGAIN.
    pub fn peek(&mut self, offset: u64, max: u64) -> Option<(u64, u64)> {
        assert_eq!(
            self.consumed + offset,
            self.peeked,
            "the peek position is elsewhere"
        );
        let n = (self.received - self.peeked).min(max);
        if n == 0 {
            return self.fin_received.then_some((self.peeked, 0));
        }
        let at = self.peeked;
        self.peeked += n;
        Some((at, n))
    }

    pub fn seek(&mut self, offset: u64) {
        self.peeked = self.consumed + offset;
        assert!(
            self.peeked <= self.received,
            "sought beyond what was received"
        );
    }

    pub fn consume(&mut self, now: u64, n: u64) {
        self.consumed += n;
        assert!(
            self.consumed <= self.received,
            "consumed what was not received"
        );
        self.peeked = self.peeked.max(self.consumed);
        let edge = self.consumed + self.peer.rcvbuf / 2;
        if edge - self.told >= (self.peer.rcvbuf / 8).min(2 * 1460) {
            self.told = edge;
            self.later(now + self.peer.rtt / 2, Net::Window(edge));
        }
    }

    pub fn close(&mut self, now: u64) {
        assert_eq!(
            self.consumed, self.received,
            "closed with unread data: the kernel would send a RST"
        );
        self.shut = true;
        self.open = false;
        self.transmit(now);
    }
}
