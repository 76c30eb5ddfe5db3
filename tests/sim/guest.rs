//! A guest's TCP, modelled on Linux: SACK, RACK-like loss detection, tail loss probe, RTO of at least 200 ms, delayed
//! acknowledgements, zero-window probes, super-frames. Data positions are 64-bit; position 0 is the first byte
//! after the SYN.

use std::collections::VecDeque;

use passt::wire::tcp::{Flags, Options, Repr, SackBlocks, Seq};

const MIN_RTO: u64 = 200_000;
const DELAYED_ACK: u64 = 40_000;
const SUPER: u64 = 65_000;

#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Bytes it sends.
    pub sends: u64,
    /// Its FIN follows its data at once; otherwise it waits for the peer's FIN.
    pub closes_first: bool,
    pub mss: u16,
    /// Frames of many segments.
    pub offload: bool,
    pub sack: bool,
    pub scaled: bool,
    pub rcvbuf: u64,
    /// Bytes per ms its application reads; 0: at once.
    pub read_rate: u64,
}

#[derive(Clone, Debug)]
struct Sent {
    start: u64,
    end: u64,
    fin: bool,
    at: u64,
    sacked: bool,
    lost: bool,
    again: bool,
}

/// A frame on its way to the tap.
#[derive(Clone, Debug)]
pub struct Out {
    pub repr: Repr,
    pub at: u64,
    pub len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Listen,
    SynReceived,
    SynSent,
    Open,
    Reset,
}

#[derive(Debug)]
pub struct Guest {
    pub how: Behaviour,
    pub phase: Phase,
    ports: (u16, u16),
    pub out: VecDeque<Out>,
    // Sending.
    iss: u32,
    una: u64,
    nxt: u64,
    window: u64,
    window_seq: u64,
    peer_shift: u8,
    peer_mss: u64,
    cwnd: u64,
    ssthresh: u64,
    segments: VecDeque<Sent>,
    recover: Option<u64>,
    dup_acks: u32,
    srtt: u64,
    rttvar: u64,
    pub rto_at: u64,
    probe_at: u64,
    reorder_at: u64,
    backoff: u32,
    probed: bool,
    fin_sent: bool,
    pub fin_acked: bool,
    /// Timeouts that happened.
    pub timeouts: u32,
    // Receiving.
    irs: u32,
    rcv_nxt: u64,
    gaps: Vec<(u64, u64)>,
    recent: u64,
    read: u64,
    edge: u64,
    unacked_frames: u32,
    pub delack_at: u64,
    pub read_at: u64,
    pub fin_received: bool,
    fin_at: Option<u64>,
    pub last_delivery: u64,
}

pub const NEVER: u64 = u64::MAX;

impl Guest {
    pub fn new(how: Behaviour, ports: (u16, u16), iss: u32, now: u64) -> Self {
        let mut guest = Self {
            phase: Phase::SynSent,
            ports,
            out: VecDeque::new(),
            iss,
            una: 0,
            nxt: 0,
            window: 0,
            window_seq: 0,
            peer_shift: 0,
            peer_mss: 536,
            cwnd: 0,
            ssthresh: u64::MAX,
            segments: VecDeque::new(),
            recover: None,
            dup_acks: 0,
            srtt: 0,
            rttvar: 0,
            rto_at: now + 1_000_000,
            probe_at: NEVER,
            reorder_at: NEVER,
            backoff: 0,
            probed: false,
            fin_sent: false,
            fin_acked: false,
            timeouts: 0,
            irs: 0,
            rcv_nxt: 0,
            gaps: Vec::new(),
            recent: 0,
            read: 0,
            edge: how.rcvbuf,
            unacked_frames: 0,
            delack_at: NEVER,
            read_at: NEVER,
            fin_received: false,
            fin_at: None,
            last_delivery: now,
            how,
        };
        guest.syn();
        guest
    }

    /// A guest that waits to be called.
    pub fn listening(how: Behaviour, ports: (u16, u16), iss: u32, now: u64) -> Self {
        let mut guest = Self::new(how, ports, iss, now);
        guest.out.clear();
        guest.phase = Phase::Listen;
        guest.rto_at = NEVER;
        guest
    }

    /// A SYN without ACK: the first one, or again because the answer was lost.
    fn called(&mut self, now: u64, repr: &Repr) {
        if self.phase == Phase::Listen {
            self.irs = repr.seq.0;
            self.learn_options(repr);
            self.phase = Phase::SynReceived;
        }
        assert_eq!(self.irs, repr.seq.0, "a repeated SYN has another number");
        if self.phase == Phase::SynReceived {
            self.syn();
            self.rto_at = now + 1_000_000;
        } else {
            self.send_ack();
        }
    }

    fn learn_options(&mut self, repr: &Repr) {
        self.peer_shift = repr
            .options
            .window_scale
            .filter(|_| self.how.scaled)
            .unwrap_or(0);
        self.peer_mss = u64::from(repr.options.mss.unwrap_or(536).min(self.how.mss));
        self.window = u64::from(repr.window);
        self.cwnd = 10 * self.peer_mss;
    }

    pub fn received(&self) -> u64 {
        self.rcv_nxt
    }

    pub fn is_done(&self) -> bool {
        self.fin_acked && self.fin_received && self.read == self.data_received()
    }

    fn data_received(&self) -> u64 {
        self.fin_at.map_or(self.rcv_nxt, |at| at.min(self.rcv_nxt))
    }

    pub fn deadline(&self) -> u64 {
        self.rto_at
            .min(self.probe_at)
            .min(self.reorder_at)
            .min(self.delack_at)
            .min(self.read_at)
    }

    fn syn(&mut self) {
        let repr = Repr {
            src_port: self.ports.0,
            dst_port: self.ports.1,
            seq: Seq(self.iss),
            ack: if self.phase == Phase::SynReceived {
                Seq(self.irs).add(1)
            } else {
                Seq(0)
            },
            flags: if self.phase == Phase::SynReceived {
                Flags::SYN | Flags::ACK
            } else {
                Flags::SYN
            },
            window: 64_240,
            urgent: 0,
            options: Options {
                mss: Some(self.how.mss),
                window_scale: self.how.scaled.then_some(7),
                sack_permitted: self.how.sack,
                ..Options::NONE
            },
        };
        self.out.push_back(Out {
            repr,
            at: 0,
            len: 0,
        });
    }

    fn seq(&self, at: u64) -> Seq {
        Seq(self.iss.wrapping_add(1).wrapping_add(at as u32))
    }

    /// The position near `near` that `seq` means, counting from `first`.
    fn position(near: u64, seq: Seq, first: u32) -> i64 {
        let expected = first.wrapping_add(1).wrapping_add(near as u32);
        near as i64 + i64::from(seq.offset(Seq(expected)))
    }

    fn header(&mut self, at: u64, flags: Flags) -> Repr {
        let free = self
            .how
            .rcvbuf
            .saturating_sub(self.data_received() - self.read);
        let shift = if self.how.scaled { 7 } else { 0 };
        let limit = 0xffff << shift;
        self.edge = self.edge.max(self.rcv_nxt + free.min(limit));
        let window = ((self.edge - self.rcv_nxt).div_ceil(1 << shift)).min(0xffff);
        self.edge = self.rcv_nxt + (window << shift);
        self.unacked_frames = 0;
        self.delack_at = NEVER;
        Repr {
            src_port: self.ports.0,
            dst_port: self.ports.1,
            seq: self.seq(at),
            ack: Seq(self.irs.wrapping_add(1).wrapping_add(self.rcv_nxt as u32)),
            flags: flags | Flags::ACK,
            window: window as u16,
            urgent: 0,
            options: Options::NONE,
        }
    }

    fn send_ack(&mut self) {
        let mut repr = self.header(self.nxt, Flags::NONE);
        if self.how.sack && !self.gaps.is_empty() {
            let mut sack = SackBlocks::EMPTY;
            let recent = self.recent;
            let leads = |g: &(u64, u64)| g.0 <= recent && recent < g.1;
            let order: Vec<_> = self
                .gaps
                .iter()
                .filter(|g| leads(g))
                .chain(self.gaps.iter().filter(|g| !leads(g)))
                .collect();
            for (start, end) in order {
                let seq = |p: u64| Seq(self.irs.wrapping_add(1).wrapping_add(p as u32));
                if !sack.push(seq(*start), seq(*end)) {
                    break;
                }
            }
            repr.options.sack = sack;
        }
        self.out.push_back(Out {
            repr,
            at: 0,
            len: 0,
        });
    }

    /// A frame from us. `check` verifies payload at a position.
    pub fn receive(
        &mut self,
        now: u64,
        repr: &Repr,
        payload: &[u8],
        check: impl Fn(u64, &[u8]) -> bool,
    ) {
        if repr.flags.contains(Flags::RST) {
            // In LAST-ACK nobody is left to notice: the acknowledgement of our FIN was lost again and again.
            self.fin_acked |= self.fin_sent && self.fin_received;
            self.phase = Phase::Reset;
            return;
        }
        if repr.flags == Flags::SYN {
            return self.called(now, repr);
        }
        if repr.flags.contains(Flags::SYN) {
            if self.phase == Phase::SynSent {
                assert_eq!(repr.ack, Seq(self.iss.wrapping_add(1)));
                self.irs = repr.seq.0;
                self.phase = Phase::Open;
                self.learn_options(repr);
                self.rto_at = NEVER;
            }
            self.send_ack();
            self.push(now);
            return;
        }
        assert!(
            !matches!(self.phase, Phase::SynSent | Phase::Listen),
            "data before the handshake"
        );
        if self.phase == Phase::SynReceived {
            assert!(repr.ack.ge(Seq(self.iss.wrapping_add(1))));
            self.phase = Phase::Open;
            self.backoff = 0;
            self.rto_at = NEVER;
        }
        self.take_ack(now, repr);
        self.take_data(now, repr, payload, check);
        self.push(now);
    }

    fn take_data(
        &mut self,
        now: u64,
        repr: &Repr,
        payload: &[u8],
        check: impl Fn(u64, &[u8]) -> bool,
    ) {
        let start = Self::position(self.rcv_nxt, repr.seq, self.irs);
        let fin = repr.flags.contains(Flags::FIN);
        if payload.is_empty() && !fin {
            if start < self.rcv_nxt as i64 {
                // A keep-alive or window probe.
                self.send_ack();
            }
            return;
        }
        let end = start + payload.len() as i64;
        if end + i64::from(fin) <= self.rcv_nxt as i64 {
            self.send_ack();
            return;
        }
        assert!(start >= 0, "before the beginning");
        let (start, end) = (start as u64, end as u64);
        assert!(
            check(start, payload),
            "wrong bytes at {start} of the download"
        );
        if end > self.edge {
            // Beyond the window: dropped, as the kernel does.
            self.send_ack();
            return;
        }
        if fin {
            self.fin_at = Some(end);
        }
        if start > self.rcv_nxt {
            if start < end {
                self.recent = start;
                self.gaps.push((start, end));
                self.merge();
            }
            self.send_ack();
            return;
        }
        let gap = !self.gaps.is_empty();
        let before = self.rcv_nxt;
        self.rcv_nxt = self.rcv_nxt.max(end);
        if let Some(first) = self.gaps.first().copied().filter(|g| g.0 <= self.rcv_nxt) {
            self.rcv_nxt = self.rcv_nxt.max(first.1);
            self.gaps.remove(0);
        }
        if self.rcv_nxt > before {
            self.last_delivery = now;
        }
        if self.fin_at == Some(self.rcv_nxt) && !self.fin_received {
            self.fin_received = true;
            self.rcv_nxt += 1;
        }
        self.application(now);
        self.unacked_frames += 1;
        let large = self.rcv_nxt - before >= 2 * self.peer_mss;
        if gap || self.fin_received || self.unacked_frames >= 2 || large {
            self.send_ack();
        } else {
            self.delack_at = self.delack_at.min(now + DELAYED_ACK);
        }
    }

    fn merge(&mut self) {
        self.gaps.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for gap in self.gaps.drain(..) {
            match merged.last_mut() {
                Some(last) if last.1 >= gap.0 => last.1 = last.1.max(gap.1),
                _ => merged.push(gap),
            }
        }
        self.gaps = merged;
    }

    fn application(&mut self, now: u64) {
        if self.how.read_rate == 0 {
            self.read = self.data_received();
        } else if self.read_at == NEVER && self.read < self.data_received() {
            self.read_at = now + 1000;
        }
    }

    fn take_ack(&mut self, now: u64, repr: &Repr) {
        let ack = Self::position(self.una, repr.ack, self.iss);
        let Ok(ack) = u64::try_from(ack) else { return };
        if ack < self.una {
            return;
        }
        assert!(ack <= self.nxt, "acknowledges what was never sent");
        let seq = Self::position(self.rcv_nxt, repr.seq, self.irs).max(0) as u64;
        let before = self.window;
        if seq >= self.window_seq || ack > self.una {
            self.window = u64::from(repr.window) << self.peer_shift;
            self.window_seq = seq;
        }
        let mut newest = 0;
        let mut progress = false;
        for &(s, e) in repr.options.sack.as_slice() {
            let s = Self::position(self.una, s, self.iss);
            let e = Self::position(self.una, e, self.iss);
            let (Ok(s), Ok(e)) = (u64::try_from(s), u64::try_from(e)) else {
                continue;
            };
            assert!(e <= self.nxt, "SACKs what was never sent");
            self.split(s);
            self.split(e);
            for segment in &mut self.segments {
                if segment.start >= s
                    && segment.end + u64::from(segment.fin) <= e
                    && !segment.sacked
                {
                    segment.sacked = true;
                    segment.lost = false;
                    progress = true;
                    newest = newest.max(segment.at);
                }
            }
        }
        if ack > self.una {
            self.split(ack);
            let acked = ack - self.una;
            self.una = ack;
            while let Some(first) = self
                .segments
                .front()
                .filter(|s| s.end + u64::from(s.fin) <= ack)
            {
                newest = newest.max(first.at);
                if !first.again && !first.sacked {
                    let sample = (now - first.at).max(1);
                    if self.srtt == 0 {
                        self.srtt = sample;
                        self.rttvar = sample / 2;
                    } else {
                        self.rttvar = (3 * self.rttvar + self.srtt.abs_diff(sample)) / 4;
                        self.srtt = (7 * self.srtt + sample) / 8;
                    }
                }
                self.segments.pop_front();
            }
            if self.fin_sent && ack == self.nxt {
                self.fin_acked = true;
            }
            self.backoff = 0;
            self.probed = false;
            self.dup_acks = 0;
            self.cwnd += if self.cwnd < self.ssthresh {
                acked
            } else {
                (self.peer_mss * acked / self.cwnd).max(1)
            };
            self.cwnd = self.cwnd.min(16 << 20);
            if self.recover.is_some_and(|r| ack >= r) {
                self.recover = None;
            }
            self.arm(now);
        } else if repr.window != 0 && before == self.window && !self.segments.is_empty() {
            self.dup_acks += 1;
        }
        if ack == self.una && before < self.window && self.segments.is_empty() {
            self.backoff = 0;
        }
        if progress || newest > 0 {
            self.detect(now, newest);
        }
        if !self.how.sack && self.dup_acks >= 3 && self.recover.is_none() {
            if let Some(first) = self.segments.front_mut() {
                first.lost = true;
            }
            self.enter_recovery();
        } else if !self.how.sack && self.recover.is_some() && self.dup_acks == 0 {
            // A partial acknowledgement (NewReno).
            if let Some(first) = self.segments.front_mut().filter(|s| !s.again) {
                first.lost = true;
            }
        }
    }

    /// RACK: whatever was sent sufficiently before something that has arrived is lost.
    fn detect(&mut self, now: u64, newest: u64) {
        let sacked: u64 = self
            .segments
            .iter()
            .filter(|s| s.sacked)
            .map(|s| s.end - s.start)
            .sum();
        let window = if sacked >= 3 * self.peer_mss {
            0
        } else {
            self.srtt / 4 + 1000
        };
        self.reorder_at = NEVER;
        let last_sacked = self.segments.iter().rposition(|s| s.sacked);
        let mut found = false;
        for (n, segment) in self.segments.iter_mut().enumerate() {
            let overtaken = segment.at < newest
                || segment.at == newest && last_sacked.is_some_and(|l| n < l) && !segment.again;
            if segment.sacked || segment.lost || !overtaken {
                continue;
            }
            if segment.at + window < newest || segment.at + self.srtt + window <= now {
                segment.lost = true;
                found = true;
            } else {
                self.reorder_at = self.reorder_at.min(segment.at + self.srtt + window);
            }
        }
        if found {
            self.enter_recovery();
        }
    }

    fn enter_recovery(&mut self) {
        if self.recover.is_none() {
            self.recover = Some(self.nxt);
            self.ssthresh = (self.cwnd * 7 / 10).max(2 * self.peer_mss);
            self.cwnd = self.ssthresh;
        }
    }

    fn split(&mut self, at: u64) {
        if let Some(n) = self
            .segments
            .iter()
            .position(|s| s.start < at && at < s.end)
        {
            let mut tail = self.segments[n].clone();
            tail.start = at;
            self.segments[n].end = at;
            self.segments[n].fin = false;
            self.segments.insert(n + 1, tail);
        }
    }

    fn pipe(&self) -> u64 {
        self.segments
            .iter()
            .filter(|s| !s.sacked && !s.lost)
            .map(|s| s.end - s.start)
            .sum()
    }

    fn frame(&mut self, start: u64, end: u64, fin: bool) {
        let flags = if fin {
            Flags::FIN | Flags::PSH
        } else {
            Flags::PSH
        };
        let repr = self.header(start, flags);
        self.out.push_back(Out {
            repr,
            at: start,
            len: (end - start) as usize,
        });
    }

    fn unit(&self) -> u64 {
        if self.how.offload {
            (SUPER / self.peer_mss).max(1) * self.peer_mss
        } else {
            self.peer_mss
        }
    }

    /// Send what windows allow.
    pub fn push(&mut self, now: u64) {
        if self.phase != Phase::Open {
            return;
        }
        let mut sent = false;
        // Again.
        while let Some(n) = self.segments.iter().position(|s| s.lost && !s.sacked) {
            if self.pipe() >= self.cwnd && self.pipe() > 0 {
                break;
            }
            let unit = self.unit();
            let start = self.segments[n].start;
            self.split(start + unit);
            let segment = &mut self.segments[n];
            segment.lost = false;
            segment.again = true;
            segment.at = now;
            let (start, end, fin) = (segment.start, segment.end, segment.fin);
            self.frame(start, end, fin);
            sent = true;
        }
        // New.
        loop {
            let left = self.how.sends.saturating_sub(self.nxt);
            let room = (self.una + self.window)
                .saturating_sub(self.nxt)
                .min(self.cwnd.saturating_sub(self.pipe()));
            let n = left.min(room).min(self.unit());
            let may_close = self.how.closes_first || self.fin_received;
            if left == 0 {
                if may_close && !self.fin_sent {
                    self.fin_sent = true;
                    let at = self.nxt;
                    self.segments.push_back(Sent {
                        start: at,
                        end: at,
                        fin: true,
                        at: now,
                        sacked: false,
                        lost: false,
                        again: false,
                    });
                    self.nxt += 1;
                    self.frame(at, at, true);
                    sent = true;
                }
                break;
            }
            if n == 0
                || n < left
                    && n < self.peer_mss
                    && !(self.segments.is_empty() && n >= self.window / 2)
            {
                break;
            }
            let at = self.nxt;
            self.segments.push_back(Sent {
                start: at,
                end: at + n,
                fin: false,
                at: now,
                sacked: false,
                lost: false,
                again: false,
            });
            self.nxt += n;
            self.frame(at, at + n, false);
            sent = true;
        }
        if sent || self.segments.is_empty() {
            self.arm(now);
        }
    }

    fn rto(&self) -> u64 {
        let base = if self.srtt == 0 {
            1_000_000
        } else {
            self.srtt + (4 * self.rttvar).max(MIN_RTO)
        };
        (base << self.backoff.min(20)).min(120_000_000)
    }

    fn arm(&mut self, now: u64) {
        self.probe_at = NEVER;
        self.rto_at = if !self.segments.is_empty() {
            if !self.probed && self.recover.is_none() && self.srtt > 0 && self.how.sack {
                let one = if self.segments.len() == 1 {
                    MIN_RTO
                } else {
                    2000
                };
                self.probe_at = now + (2 * self.srtt + one).min(self.rto());
            }
            now + self.rto()
        } else if self.nxt < self.how.sends {
            // Nothing in flight and no room: the persist timer.
            now + self.rto()
        } else {
            NEVER
        };
    }

    pub fn on_timer(&mut self, now: u64) {
        if self.read_at <= now {
            self.read_at = NEVER;
            let n = (self.data_received() - self.read).min(self.how.read_rate);
            self.read += n;
            self.last_delivery = now;
            if self.read < self.data_received() {
                self.read_at = now + 1000;
            }
            let free = self
                .how
                .rcvbuf
                .saturating_sub(self.data_received() - self.read);
            if self.rcv_nxt + free >= self.edge + (self.how.rcvbuf / 2).min(2 * self.peer_mss) {
                self.send_ack();
            }
        }
        if self.delack_at <= now {
            self.send_ack();
        }
        if self.reorder_at <= now {
            self.reorder_at = NEVER;
            let newest = now;
            self.detect(now, newest);
        }
        if self.probe_at <= now {
            self.probe_at = NEVER;
            self.probed = true;
            if let Some(last) = self.segments.back_mut() {
                last.again = true;
                last.at = now;
                let (start, end, fin) = (last.start, last.end, last.fin);
                let start = if fin {
                    start
                } else {
                    start.max(end.saturating_sub(self.peer_mss))
                };
                self.frame(start, end, fin);
            }
            self.rto_at = now + self.rto();
        } else if self.rto_at <= now {
            self.timeout(now);
        }
        self.push(now);
    }

    fn timeout(&mut self, now: u64) {
        self.backoff += 1;
        if matches!(self.phase, Phase::SynSent | Phase::SynReceived) {
            self.syn();
            self.rto_at = now + (1_000_000 << self.backoff);
            return;
        }
        if self.segments.is_empty() {
            let room = (self.una + self.window).saturating_sub(self.nxt);
            if room > 0 {
                let n = room.min(self.how.sends - self.nxt).min(self.peer_mss);
                let at = self.nxt;
                self.segments.push_back(Sent {
                    start: at,
                    end: at + n,
                    fin: false,
                    at: now,
                    sacked: false,
                    lost: false,
                    again: false,
                });
                self.nxt += n;
                self.frame(at, at + n, false);
            } else {
                let repr = self.header(self.una.wrapping_sub(1), Flags::NONE);
                self.out.push_back(Out {
                    repr,
                    at: 0,
                    len: 0,
                });
            }
            self.rto_at = now + self.rto();
            return;
        }
        self.timeouts += 1;
        for segment in &mut self.segments {
            segment.lost = !segment.sacked;
        }
        if self.backoff > 1 {
            for segment in &mut self.segments {
                (segment.sacked, segment.lost) = (false, true);
            }
        }
        self.ssthresh = (self.cwnd / 2).max(2 * self.peer_mss);
        self.cwnd = self.peer_mss;
        self.recover = Some(self.nxt);
        self.probed = true;
        self.rto_at = now + self.rto();
    }
}
