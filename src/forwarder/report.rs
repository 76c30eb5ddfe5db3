//! The forwarder's part of a report: the guest, counters, live flows, what each rule has carried.
//!
//! The monitor passes the connection of whoever asked. Records are written a few at a time, in rounds of the event
//! loop, so a report of 100,000 flows delays no packet; a reader that is slow makes the report slow. Flows come and go
//! meanwhile: each is shown as it is when its turn comes. One report at a time, the others wait for it; a reader that
//! has taken nothing for seconds loses its place to the next one. Whom there is no room for is turned away by
//! the end of the stream.

use std::os::fd::OwnedFd;
use std::time::Duration;

use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, send};

use super::token::Token;
use super::worker::Worker;
use crate::clock::Instant;
use crate::config::rules::RuleId;
use crate::control::report::{
    Drops, Flow, Frames, Guest, Kind, RECORD, Record, RuleTraffic, Text, Way,
};
use crate::flow::id::FlowId;
use crate::flow::traffic::{FlowView, Totals};
use crate::stats::Drop;

/// Records in one turn.
const TURN: usize = 64;
/// Most readers that wait for their report.
const WAITING: usize = 8;
/// A reader that has taken nothing for so long makes way for the next.
const STALLED: Duration = Duration::from_secs(5);

/// What is to be written next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Guest,
    Frames,
    Drops(usize),
    Tcp(FlowId),
    Splice(FlowId),
    Udp(FlowId),
    /// What the guest opened, for which there is no rule.
    Outbound,
    /// By place in the table of rules.
    Rule(usize),
    End,
    Done,
}

/// Live flows of a rule, as they were shown.
#[derive(Clone, Copy, Default, Debug)]
struct Live {
    flows: u32,
    traffic: Totals,
}

impl Live {
    fn add(&mut self, traffic: &Totals) {
        self.flows = self.flows.saturating_add(1);
        self.traffic.add(traffic);
    }
}

/// A report under way. The memory stays from one to the next.
#[derive(Debug)]
pub(super) struct Report {
    to: Option<OwnedFd>,
    /// Those who have asked meanwhile, in order.
    waiting: ArrayVec<OwnedFd, WAITING>,
    next: Next,
    /// The record being written, and how much of it has been.
    record: [u8; RECORD],
    written: usize,
    /// When the reader last took something.
    moved: Instant,
    live: Vec<(RuleId, Live)>,
    outbound: Live,
}

impl Report {
    /// None under way; room for `rules` of them.
    pub(super) fn new(rules: usize) -> Self {
        Self {
            to: None,
            waiting: ArrayVec::new(),
            next: Next::Done,
            record: [0; RECORD],
            written: RECORD,
            moved: Instant::default(),
            live: Vec::with_capacity(rules),
            outbound: Live::default(),
        }
    }

    /// When the reader has had its time, if somebody else waits.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let contended = self.to.is_some() && !self.waiting.is_empty();
        contended.then(|| self.moved + STALLED)
    }

    fn count(&mut self, view: &FlowView) {
        let traffic = Totals::from(&view.traffic);
        match view.rule {
            None => self.outbound.add(&traffic),
            Some(rule) => {
                if let Ok(at) = self.live.binary_search_by_key(&rule, |(id, _)| *id) {
                    if let Some((_, live)) = self.live.get_mut(at) {
                        live.add(&traffic);
                    }
                }
            }
        }
    }

    /// Write what is left of the current record. `false`: the reader has no room, or is gone.
    fn push(&mut self, now: Instant) -> bool {
        let Some(to) = &self.to else {
            return false;
        };
        while let Some(rest) = self.record.get(self.written..).filter(|r| !r.is_empty()) {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(std::os::fd::AsRawFd::as_raw_fd(to), rest, flags) {
                Ok(n) => {
                    self.written = self.written.saturating_add(n);
                    self.moved = now;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                Err(_) => {
                    self.to = None;
                    return false;
                }
            }
        }
        true
    }
}

fn way(view: &FlowView, tap: bool) -> Way {
    match (tap, view.inbound) {
        (true, true) => Way::TapIn,
        (true, false) => Way::TapOut,
        (false, true) => Way::SpliceIn,
        (false, false) => Way::SpliceOut,
    }
}

fn flow(view: &FlowView, kind: Kind, way: Way) -> Record {
    Record::Flow(Flow {
        kind,
        way,
        rule: view.rule,
        inside: view.key.guest,
        outside: view.key.remote,
        traffic: view.traffic,
        idle_s: u32::try_from(view.idle.as_secs()).unwrap_or(u32::MAX),
    })
}

const fn following(id: FlowId) -> FlowId {
    FlowId(id.0.saturating_add(1))
}

impl Worker {
    /// Somebody wants a report, written to this stream socket.
    pub(super) fn begin_report(&mut self, now: Instant, to: OwnedFd) {
        // Whom there is no room for sees the end of the stream.
        let _ = self.report.waiting.try_push(to);
        self.on_report(now);
    }

    /// Turn to the next who waits. `false`: nobody does.
    fn next_reader(&mut self, now: Instant) -> bool {
        let Some(to) = self.report.waiting.pop_at(0) else {
            return false;
        };
        let what = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        if self.host.watch(&to, what, Token::Report).is_err() {
            return true;
        }
        let report = &mut self.report;
        report.to = Some(to);
        report.next = Next::Guest;
        report.written = RECORD;
        report.moved = now;
        report.live.clear();
        report.outbound = Live::default();
        let ids = self.host.ports.rules().iter().map(|r| r.notice.rule);
        report.live.extend(ids.map(|id| (id, Live::default())));
        true
    }

    /// The reader has room, or it is the report's turn again.
    pub(super) fn on_report(&mut self, now: Instant) {
        for _ in 0..TURN {
            if self.report.to.is_none() && !self.next_reader(now) {
                self.reporting = false;
                return;
            }
            if !self.report.push(now) {
                if self.report.next_deadline().is_some_and(|at| at <= now) {
                    self.report.to = None;
                }
                if self.report.to.is_none() {
                    continue;
                }
                self.reporting = false;
                return;
            }
            if self.report.next == Next::Done {
                self.report.to = None;
                continue;
            }
            if let Some(record) = self.next_record(now) {
                // A record always fits (its module's tests): nothing is lost by not looking.
                let _ = record.encode(&mut self.report.record);
                self.report.written = 0;
            }
        }
        self.reporting = true;
    }

    /// The next record, if this step has one.
    fn next_record(&mut self, now: Instant) -> Option<Record> {
        match self.report.next {
            Next::Guest => {
                self.report.next = Next::Frames;
                let seen = self.host.seen;
                let mac = self.host.guest_mac;
                Some(Record::Guest(Guest {
                    mac: mac.is_unicast().then_some(mac),
                    v4: seen.v4,
                    v6: seen.v6,
                    link_local: seen.link_local,
                }))
            }
            Next::Frames => {
                self.report.next = Next::Drops(0);
                let counters = &self.host.link.counters;
                Some(Record::Frames(Frames {
                    frames_in: counters.frames_in,
                    bytes_in: counters.bytes_in,
                    frames_out: counters.frames_out,
                    bytes_out: counters.bytes_out,
                }))
            }
            Next::Drops(n) => self.drops(n),
            Next::Tcp(_) | Next::Splice(_) | Next::Udp(_) => self.next_flow(now),
            Next::Outbound => {
                self.report.next = Next::Rule(0);
                let past = &self.host.outbound;
                Some(total(
                    None,
                    past.flows,
                    &past.traffic,
                    &self.report.outbound,
                ))
            }
            Next::Rule(n) => self.rule_total(n),
            Next::End => {
                self.report.next = Next::Done;
                Some(Record::End)
            }
            Next::Done => None,
        }
    }

    fn drops(&mut self, n: usize) -> Option<Record> {
        let Some(reason) = Drop::ALL.get(n) else {
            self.report.next = Next::Tcp(FlowId(0));
            return None;
        };
        self.report.next = Next::Drops(n.saturating_add(1));
        let count = self.host.link.counters.dropped(*reason);
        let reason = Text::new(reason.name());
        (count > 0).then_some(Record::Drops(Drops { reason, count }))
    }

    fn next_flow(&mut self, now: Instant) -> Option<Record> {
        let (view, kind, tap) = match self.report.next {
            Next::Tcp(from) => (self.tcp.flows(now, from).next(), Kind::Tcp, true),
            Next::Splice(from) => (self.splice.flows(from, now).next(), Kind::Tcp, false),
            Next::Udp(from) => {
                let next = self.udp.flows(now, from).next();
                let tap = next.as_ref().is_none_or(|(_, tap)| *tap);
                (next.map(|(view, _)| view), Kind::Udp, tap)
            }
            _ => return None,
        };
        self.report.next = match (self.report.next, &view) {
            (Next::Tcp(_), Some(view)) => Next::Tcp(following(view.id)),
            (Next::Tcp(_), None) => Next::Splice(FlowId(0)),
            (Next::Splice(_), Some(view)) => Next::Splice(following(view.id)),
            (Next::Splice(_), None) => Next::Udp(FlowId(0)),
            (_, Some(view)) => Next::Udp(following(view.id)),
            (_, None) => Next::Outbound,
        };
        let view = view?;
        self.report.count(&view);
        Some(flow(&view, kind, way(&view, tap)))
    }

    fn rule_total(&mut self, n: usize) -> Option<Record> {
        let Some((id, live)) = self.report.live.get(n).copied() else {
            self.report.next = Next::End;
            return None;
        };
        self.report.next = Next::Rule(n.saturating_add(1));
        let past = self.host.ports.past(id)?;
        Some(total(Some(id), past.flows, &past.traffic, &live))
    }
}

fn total(rule: Option<RuleId>, past: u64, traffic: &Totals, live: &Live) -> Record {
    let mut sum = *traffic;
    sum.add(&live.traffic);
    Record::RuleTraffic(RuleTraffic {
        rule,
        live: live.flows,
        flows: past.saturating_add(u64::from(live.flows)),
        traffic: sum,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;

    use nix::sys::epoll::{Epoll, EpollCreateFlags};

    use super::*;
    use crate::pcap::Pcap;
    use crate::services::samples;
    use crate::tap::Tap;

    fn worker() -> Worker {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        Worker::new(samples::config(), Tap::Off, epoll, Pcap::off(), [0; 16], 64)
    }

    /// The end a report is written to, and all that its reader gets without waiting.
    fn pair() -> (UnixStream, UnixStream) {
        let (to, reader) = UnixStream::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        reader.set_nonblocking(true).unwrap();
        (to, reader)
    }

    #[test]
    fn a_reader_that_stopped_reading_does_not_keep_others_out() {
        let mut worker = worker();
        let start = Instant::default();
        let (mut stopped, mut first) = pair();
        while stopped.write(&[0; 4096]).is_ok() {}
        worker.begin_report(start, stopped.into());
        // It may still go on, so the next one waits.
        let (to, mut second) = pair();
        worker.begin_report(start + STALLED / 2, to.into());
        let e = second.read(&mut [0; 64]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::WouldBlock);
        assert_eq!(worker.next_deadline(), Some(start + STALLED));
        // It has had its time.
        worker.end_round(start + STALLED);
        let mut all = Vec::new();
        second.read_to_end(&mut all).unwrap();
        assert!(!all.is_empty() && all.len() % RECORD == 0);
        // What was under way for the first ends without an end.
        let ended = first.read_to_end(&mut Vec::new());
        assert!(!matches!(ended, Err(e) if e.kind() == ErrorKind::WouldBlock));
    }

    #[test]
    fn as_many_wait_as_there_is_room_for() {
        let mut worker = worker();
        let now = Instant::default();
        let (mut slow, mut first) = pair();
        let mut filler = 0;
        while let Ok(n) = slow.write(&[0; 4096]) {
            filler += n;
        }
        worker.begin_report(now, slow.into());
        let mut others = Vec::new();
        for _ in 0..WAITING {
            let (to, reader) = pair();
            worker.begin_report(now, to.into());
            others.push(reader);
        }
        let (to, mut last) = pair();
        worker.begin_report(now, to.into());
        assert_eq!(last.read(&mut [0; 64]).unwrap(), 0, "turned away");
        first.read_exact(&mut vec![0; filler]).unwrap();
        worker.on_report(now);
        while worker.reporting {
            worker.end_round(now);
        }
        for reader in [first].iter_mut().chain(&mut others) {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            let end = all.last_chunk().expect("a record");
            assert_eq!(Record::decode(end).unwrap(), Record::End);
        }
    }
}
