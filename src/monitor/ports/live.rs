//! A table in force: following the other side, trying again, and answering the forwarder.
//!
//! Whoever is on the other side can open and close ports as fast as they like, and a forwarder that has been taken over
//! can ask as often as it likes: each call here does a bounded amount of work, and what is left
//! over waits for the next.

use std::io;
use std::time::{Duration, Instant};

use super::change::{Batch, starved};
use super::plan::{Book, Kept, offsets};
use super::{Binder, Keeper, Out};
use crate::config::ports::{PortSets, Ports};
use crate::config::rules::{Protocol, RuleId};
use crate::ipc::{IpcError, Request};

/// Most ports opened by one [`Keeper::follow`] or [`Keeper::retry`].
const MOST_OPENED: usize = 1024;
/// One call of [`Keeper::retry`] ends after so many refusals, and the next may come after that time; at once if
/// ports were to be had: somebody is giving up many.
const RETRY_REFUSALS: usize = 32;
const RETRY_PERIOD: Duration = Duration::from_secs(1);
/// Requests answered in one [`QUOTA_PERIOD`]; what is asked for beyond that comes with the retries.
const QUOTA: u32 = 256;
const QUOTA_PERIOD: Duration = Duration::from_secs(1);
/// A port we closed counts as ours for one to two of these: the forwarder may be slower than a scan.
const OWN_PERIOD: Duration = Duration::from_millis(500);

/// The forwarder asked for something it was never granted: it is no longer to be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the forwarder asked for what it was not given")]
pub struct Misbehaved;

/// What serving a request may end in.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// See there.
    #[error(transparent)]
    Misbehaved(#[from] Misbehaved),
    /// The answer did not go out.
    #[error(transparent)]
    Ipc(#[from] IpcError),
}

/// How much has been done lately, and where to go on.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The rule (by position) and offset to go on with.
    cursor: (usize, u32),
    retried: Option<Instant>,
    /// Ports below this one need a privilege we do not have.
    denied_below: u16,
    quota: Option<Instant>,
    served: u32,
}

impl Pace {
    /// A port could not be bound: is it hopeless?
    pub(super) fn denied(&mut self, e: &io::Error, port: u16) {
        if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) {
            self.denied_below = self.denied_below.max(port.saturating_add(1));
        }
    }

    /// One more request: is it within the quota?
    fn grant(&mut self, now: Instant) -> bool {
        match self.quota {
            Some(since) if now.saturating_duration_since(since) < QUOTA_PERIOD => {}
            _ => {
                self.quota = Some(now);
                self.served = 0;
            }
        }
        self.served = self.served.saturating_add(1);
        self.served <= QUOTA
    }
}

/// How much one call may still do.
struct Work {
    left: usize,
    /// What a refusal costs; an opened port costs 1.
    refusal: usize,
    opened: usize,
}

impl Work {
    const fn new(refusal: usize) -> Self {
        Self {
            left: MOST_OPENED,
            refusal,
            opened: 0,
        }
    }

    fn spend(&mut self, attempt: &Attempt) {
        self.left = match attempt {
            Attempt::Opened => {
                self.opened = self.opened.saturating_add(1);
                self.left.saturating_sub(1)
            }
            Attempt::Refused => self.left.saturating_sub(self.refusal),
            Attempt::Starved => 0,
        };
    }
}

/// What came of trying to open a port.
enum Attempt {
    Opened,
    /// This one cannot be had.
    Refused,
    /// None can be had now.
    Starved,
}

/// The ports we listen on, and those we did a moment ago.
#[derive(Debug, Default)]
pub(super) struct Own {
    ports: PortSets,
    /// Closed in this period, and in the one before.
    closing: [PortSets; 2],
    stale: bool,
    rotated: Option<Instant>,
}

impl Own {
    pub(super) const fn ports(&self) -> &PortSets {
        &self.ports
    }

    pub(super) fn opened(&mut self, protocol: Protocol, port: u16) {
        self.ports.of_mut(protocol).insert(port);
    }

    pub(super) fn closed(&mut self, protocol: Protocol, port: u16) {
        let [now, _] = &mut self.closing;
        now.of_mut(protocol).insert(port);
        self.stale = true;
    }

    fn rotate(&mut self, now: Instant, book: &Book) {
        if !self.stale {
            self.rotated = Some(now);
            return;
        }
        let due = |since| now.saturating_duration_since(since) >= OWN_PERIOD;
        if !self.rotated.is_none_or(due) {
            return;
        }
        self.rotated = Some(now);
        let [young, old] = &mut self.closing;
        old.copy_from(young);
        young.clear();
        self.ports.copy_from(old);
        book.collect(&mut self.ports);
        self.stale = !(old.tcp.is_empty() && old.udp.is_empty());
    }
}

impl<B: Binder> Keeper<B> {
    /// After a commit: count, and have another look at everything.
    pub(super) fn table_changed(&mut self) {
        self.started = true;
        self.changed = true;
        self.pace.cursor = (0, 0);
        self.pace.retried = None;
        self.book.collect(&mut self.own.ports);
        let open = self.book.rules().iter().map(|r| self.book.opened(r)).sum();
        self.open = open;
    }

    /// Nothing is to move while a new table is prepared.
    const fn is_frozen(&self) -> bool {
        self.spare.is_none()
    }

    /// Close what the other side no longer listens on, open what it does now. Costs nothing if nothing changed.
    ///
    /// # Errors
    /// The forwarder cannot be told: the end.
    pub fn follow(&mut self, out: &mut Out<'_>) -> Result<(), IpcError> {
        if !self.changed || self.is_frozen() {
            return Ok(());
        }
        self.changed = false;
        self.close_surplus(out)?;
        let mut work = Work::new(1);
        let mut batch = Batch::default();
        for index in 0..self.book.rules().len() {
            match self.book.rules().get(index).copied() {
                Some(rule) if rule.auto_scan => {
                    self.open_missing(&rule, 0, &mut work, &mut batch, out)?;
                }
                _ => {}
            }
        }
        self.changed = work.left == 0;
        batch.flush(out)
    }

    fn close_surplus(&mut self, out: &mut Out<'_>) -> Result<(), IpcError> {
        for index in 0..self.book.rules().len() {
            let Some(rule) = self.book.rules().get(index).copied() else {
                continue;
            };
            for word in 0..rule.words() {
                let surplus = self.book.open(&rule, word) & !rule.wanted(word, &self.other);
                for offset in offsets(word, surplus) {
                    self.lost(&rule, offset);
                    let rule = rule.id;
                    out(crate::ipc::Supply::Close { rule, offset }, &[])?;
                }
            }
        }
        Ok(())
    }

    /// Open what is missing of a rule from an offset on, as far as `work` allows; where that was the end, the
    /// offset to go on with.
    fn open_missing(
        &mut self,
        rule: &Kept,
        from: u32,
        work: &mut Work,
        batch: &mut Batch<B::Socket>,
        out: &mut Out<'_>,
    ) -> Result<Option<u32>, IpcError> {
        let first = usize::try_from(from >> 6).unwrap_or(usize::MAX);
        for word in first..rule.words() {
            for offset in offsets(word, self.missing(rule, word)) {
                let hopeless = rule.port(offset).is_none_or(|p| p < self.pace.denied_below);
                if u32::from(offset) < from || hopeless {
                    continue;
                }
                if work.left == 0 {
                    return Ok(Some(u32::from(offset)));
                }
                let attempt = self.open_port(rule, offset, batch, out)?;
                work.spend(&attempt);
            }
        }
        Ok(None)
    }

    fn missing(&self, rule: &Kept, word: usize) -> u64 {
        rule.wanted(word, &self.other) & !self.book.open(rule, word)
    }

    /// Try to open one port.
    fn open_port(
        &mut self,
        rule: &Kept,
        offset: u16,
        batch: &mut Batch<B::Socket>,
        out: &mut Out<'_>,
    ) -> Result<Attempt, IpcError> {
        let Some(port) = rule.port(offset) else {
            return Ok(Attempt::Refused);
        };
        if self.open >= self.context.budget {
            return Ok(Attempt::Starved);
        }
        match self.bind(rule, port) {
            Ok(socket) => {
                self.book.set(rule, offset, true);
                self.own.opened(rule.place.protocol, port);
                self.open = self.open.saturating_add(1);
                batch.push(rule.id, offset, socket, out)?;
                Ok(Attempt::Opened)
            }
            Err(e) => {
                self.pace.denied(&e, port);
                Ok(if starved(&e) {
                    Attempt::Starved
                } else {
                    Attempt::Refused
                })
            }
        }
    }

    /// A port is open no more.
    fn lost(&mut self, rule: &Kept, offset: u16) {
        if self.book.is_open(rule, offset) {
            self.book.set(rule, offset, false);
            self.open = self.open.saturating_sub(1);
        }
        if let Some(port) = rule.port(offset) {
            self.own.closed(rule.place.protocol, port);
        }
    }

    /// Try again to open a few of the ports that are missing. To be called about every half second while
    /// [`Keeper::is_restless`]; it also is what lets go of the ports we used to listen on.
    ///
    /// # Errors
    /// The forwarder cannot be told: the end.
    pub fn retry(&mut self, now: Instant, out: &mut Out<'_>) -> Result<(), IpcError> {
        if self.is_frozen() {
            return Ok(());
        }
        self.own.rotate(now, &self.book);
        let early = |since| now.saturating_duration_since(since) < RETRY_PERIOD;
        if self.pace.retried.is_some_and(early) {
            return Ok(());
        }
        let mut work = Work::new(MOST_OPENED / RETRY_REFUSALS);
        let mut batch = Batch::default();
        let rules = self.book.rules().len();
        // Once round, and the part of the first rule that was left out once more.
        for _ in 0..=rules {
            let (index, from) = self.pace.cursor;
            let Some(rule) = self.book.rules().get(index).copied() else {
                self.pace.cursor = (0, 0);
                continue;
            };
            match self.open_missing(&rule, from, &mut work, &mut batch, out)? {
                Some(next) => {
                    self.pace.cursor = (index, next);
                    break;
                }
                None => self.pace.cursor = (index.saturating_add(1), 0),
            }
        }
        self.pace.retried = (work.opened < RETRY_REFUSALS).then_some(now);
        batch.flush(out)
    }

    /// Is there anything that [`Keeper::retry`] or [`Keeper::follow`] could still do without something new happening?
    #[must_use]
    pub fn is_restless(&self) -> bool {
        self.changed || self.own.stale || self.book.rules().iter().any(|r| self.has_hope(r))
    }

    /// Has the rule ports that are missing and may be had one day?
    fn has_hope(&self, rule: &Kept) -> bool {
        (0..rule.words()).any(|word| {
            offsets(word, self.missing(rule, word))
                .filter_map(|o| rule.port(o))
                .any(|p| p >= self.pace.denied_below)
        })
    }

    /// Answer the forwarder: a listener that got lost on its way is made again.
    ///
    /// # Errors
    /// [`Misbehaved`]: no such rule was ever given out, or it has no such port, or the request is not one for a
    /// keeper. A rule or port taken back meanwhile is no offence.
    pub fn serve(
        &mut self,
        request: Request,
        now: Instant,
        out: &mut Out<'_>,
    ) -> Result<(), ServeError> {
        let Request::Listener { rule: id, offset } = request else {
            return Err(Misbehaved.into());
        };
        let Some(rule) = self.granted(id, offset)? else {
            return Ok(());
        };
        if !self.book.is_open(&rule, offset) {
            return Ok(());
        }
        self.lost(&rule, offset);
        if !self.pace.grant(now) {
            return Ok(());
        }
        let mut batch = Batch::default();
        self.open_port(&rule, offset, &mut batch, out)?;
        Ok(batch.flush(out)?)
    }

    /// The rule, if it is still in force.
    fn granted(&self, id: RuleId, offset: u16) -> Result<Option<Kept>, Misbehaved> {
        match self.book.find(id) {
            Some(rule) if rule.port(offset).is_some() => Ok(Some(*rule)),
            Some(_) => Err(Misbehaved),
            None if knows(&self.known, id) => Ok(None),
            None => Err(Misbehaved),
        }
    }
}

fn knows(known: &Ports, id: RuleId) -> bool {
    known.contains(id.0.get())
}
