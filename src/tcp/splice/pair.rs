//! A connection that was accepted in one network, the one made for it in the other, and how they end.
//!
//! Each direction ends by itself: the FIN of one side is passed on when everything before it has been, and the other
//! direction goes on for as long as both kernels consider it alive. Anything but a FIN (a RST, a time-out, a
//! target that refuses) is an end of both connections by RST, so that nobody takes half a stream for a whole one.
//!
//! A target that is not connected yet counts as a full sink: nothing is read from the origin before. A FIN is
//! not passed on to it either, whatever a stale event said: shutting a connecting socket down would cancel the attempt.

use std::net::IpAddr;

use super::io::{Arrival, Connecting, End, Io, Readiness, SocketError, Way};
use super::lane::{Lane, Turn};
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::rules::RuleId;
use crate::flow::id::{FlowId, Key};
use crate::flow::traffic::{FlowView, Traffic};

/// Whether a pair goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// There will be events.
    Goes,
    /// Both have finished.
    Over,
    /// The target could not be reached.
    Refused,
    /// An end by RST.
    Broken,
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Pair<S, P> {
    origin: S,
    /// `None` while there is no socket of the other network to be had.
    target: Option<S>,
    /// From the origin to the target.
    forth: Lane<P>,
    /// From the target to the origin.
    back: Lane<P>,
    /// The target has been seen to be connected, not only reported so.
    proven: bool,
    /// In the engine's list of those that wait for a turn.
    pub(super) queued: bool,
    way: Way,
    peer: Endpoint,
    to: Endpoint,
    source: Option<IpAddr>,
    rule: Option<RuleId>,
    traffic: Traffic,
    /// When something was last carried.
    active: Instant,
}

impl<S, P> Pair<S, P> {
    pub(super) fn new(arrival: Arrival<S>, now: Instant) -> Self {
        let Arrival {
            socket,
            way,
            peer,
            to,
            source,
            rule,
        } = arrival;
        Self {
            origin: socket,
            target: None,
            forth: Lane::new(false),
            back: Lane::new(true),
            proven: false,
            queued: false,
            way,
            peer,
            to,
            source,
            rule,
            traffic: Traffic::default(),
            active: now,
        }
    }

    /// Still without a target?
    pub(super) const fn waits_for_socket(&self) -> bool {
        self.target.is_none()
    }

    /// What a connection to the target needs.
    pub(super) const fn dial(&self) -> (Way, Endpoint, Option<IpAddr>) {
        (self.way, self.to, self.source)
    }

    /// The target is being connected.
    pub(super) fn set_target(&mut self, socket: S) -> &S {
        self.target = Some(socket);
        &self.origin
    }

    /// More to do than one turn allowed?
    pub(super) const fn wants_turn(&self) -> bool {
        self.forth.wants_turn() || self.back.wants_turn()
    }

    /// In the middle of a bulk transfer?
    pub(super) const fn is_bulk(&self) -> bool {
        self.forth.is_bulk() || self.back.is_bulk()
    }

    pub(super) fn view(&self, id: FlowId, now: Instant) -> FlowView {
        let inbound = self.way == Way::In;
        let key = if inbound {
            Key::new(self.to, self.peer)
        } else {
            Key::new(self.peer, self.to)
        };
        FlowView {
            id,
            key,
            rule: self.rule,
            inbound,
            traffic: self.traffic,
            idle: now.since(self.active),
        }
    }

    /// An event on one of the sockets.
    pub(super) fn on_socket<I: Io<Socket = S, Pipe = P>>(
        &mut self,
        io: &mut I,
        scratch: &mut [u8],
        now: Instant,
        id: FlowId,
        event: (End, Readiness),
    ) -> Life {
        let (end, ready) = event;
        let Some(target) = &self.target else {
            // Neither is registered yet: an event of whoever had this number before.
            return Life::Goes;
        };
        let (from, into, socket) = match end {
            End::Origin => (&mut self.forth, &mut self.back, &self.origin),
            End::Target => (&mut self.back, &mut self.forth, target),
        };
        if ready.writable {
            into.sink_ready();
        }
        if ready.readable || ready.hup || ready.urgent || ready.error {
            from.source_ready(ready.hup || ready.urgent || ready.error);
            if from.mutes() {
                io.mute(id, end, socket, true);
            }
        }
        let life = self.pump(io, scratch, now, id);
        if life != Life::Goes || !ready.error {
            return life;
        }
        // Not shown by a read: nothing is read any more, or not now.
        let socket = match end {
            End::Origin => Some(&self.origin),
            End::Target => self.target.as_ref(),
        };
        match socket.and_then(|s| io.take_error(s)) {
            Some(e) if e != SocketError::WouldBlock => Life::Broken,
            _ => Life::Goes,
        }
    }

    /// A turn for each direction.
    pub(super) fn pump<I: Io<Socket = S, Pipe = P>>(
        &mut self,
        io: &mut I,
        scratch: &mut [u8],
        now: Instant,
        id: FlowId,
    ) -> Life {
        let Some(target) = &self.target else {
            return Life::Goes;
        };
        let mut turn = Turn::new(io, scratch);
        let sent = self.forth.pump(&mut turn, &self.origin, target);
        let forth = (turn.moved, turn.pieces);
        let mut turn = Turn::new(io, scratch);
        let received = self.back.pump(&mut turn, target, &self.origin);
        let back = (turn.moved, turn.pieces);
        if self.forth.unmutes() {
            io.mute(id, End::Origin, &self.origin, false);
        }
        if self.back.unmutes() {
            io.mute(id, End::Target, target, false);
        }
        self.count(forth, back, now);
        if sent.is_err() || received.is_err() {
            return if self.proven {
                Life::Broken
            } else {
                self.verdict(io)
            };
        }
        self.pass_on_fins(io)
    }

    fn count(&mut self, forth: (usize, u32), back: (usize, u32), now: Instant) {
        if forth.0 == 0 && back.0 == 0 {
            return;
        }
        // Bytes have gone to the target or come from it.
        self.proven = true;
        self.active = now;
        let (inwards, outwards) = match self.way {
            Way::In => (forth, back),
            Way::Out => (back, forth),
        };
        let t = &mut self.traffic;
        t.bytes_in = t.bytes_in.saturating_add(inwards.0 as u64);
        t.packets_in = t.packets_in.saturating_add(inwards.1);
        t.bytes_out = t.bytes_out.saturating_add(outwards.0 as u64);
        t.packets_out = t.packets_out.saturating_add(outwards.1);
    }

    /// The end before anything was carried: whose?
    fn verdict<I: Io<Socket = S, Pipe = P>>(&mut self, io: &mut I) -> Life {
        match self.ask(io) {
            Connecting::Failed(_) => Life::Refused,
            _ => Life::Broken,
        }
    }

    fn ask<I: Io<Socket = S, Pipe = P>>(&mut self, io: &mut I) -> Connecting {
        let Some(target) = &self.target else {
            return Connecting::Pending;
        };
        let answer = io.connected(target);
        match answer {
            Connecting::Done => self.proven = true,
            // Whatever an event claimed: its edge is still to come.
            Connecting::Pending => self.forth.block(),
            Connecting::Failed(_) => {}
        }
        answer
    }

    fn pass_on_fins<I: Io<Socket = S, Pipe = P>>(&mut self, io: &mut I) -> Life {
        let (forth, back) = (self.forth.owes_fin(), self.back.owes_fin());
        if !forth && !back {
            return Life::Goes;
        }
        if forth && !self.proven {
            match self.ask(io) {
                Connecting::Pending => return Life::Goes,
                Connecting::Failed(_) => return Life::Refused,
                Connecting::Done => {}
            }
        }
        self.forth.finished |= forth;
        self.back.finished |= back;
        // Closing is a FIN as well: the last one needs no call of its own.
        if self.forth.finished && self.back.finished {
            return Life::Over;
        }
        if let Some(target) = self.target.as_ref().filter(|_| forth) {
            io.shutdown_write(target);
        }
        if back {
            io.shutdown_write(&self.origin);
        }
        Life::Goes
    }

    /// Close everything, and say what it has carried.
    pub(super) fn close<I: Io<Socket = S, Pipe = P>>(mut self, io: &mut I, life: Life) {
        for lane in [&mut self.forth, &mut self.back] {
            match lane.dismantle() {
                Some((pipe, true)) => io.give_back(pipe),
                Some((pipe, false)) => io.discard_pipe(pipe),
                None => {}
            }
        }
        for socket in [Some(self.origin), self.target].into_iter().flatten() {
            if life == Life::Over {
                io.close(socket);
            } else {
                io.reset(socket);
            }
        }
        io.finished(self.rule, &self.traffic);
    }
}
