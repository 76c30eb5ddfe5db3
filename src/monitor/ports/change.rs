//! From one table to the next: everything new is bound first, then all is said to the forwarder at once.
//!
//! Between [`Keeper::prepare`] and [`Keeper::commit`] the old table stands still: nothing is followed or tried again,
//! so that what was found to be common to both still is. A new port that only a listener of the old table
//! obstructs (same port, other address) cannot be bound before that one is gone, and the forwarder closes it after the
//! commit: such a port is left to [`Keeper::retry`], which is called when the forwarder has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use arrayvec::ArrayVec;
use nix::errno::Errno;

use super::plan::{Book, Kept, offsets};
use super::{Binder, Failure, Keeper, Out, PortError};
use crate::config::rules::{Rule, RuleId};
use crate::ipc::{IpcError, MAX_DESCRIPTORS, Supply};

/// How long a port that is taken is waited for at the start, all ports together: an earlier instance may be about
/// to go (`podman restart`).
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// How often it is tried meanwhile.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// A table that is ready to be put into force. [`Keeper::commit`] or [`Keeper::abort`] it: until then the old one
/// stands still.
#[derive(Debug)]
pub struct Change<S> {
    pub(super) book: Book,
    fresh: Vec<Fresh<S>>,
    /// Listeners of the old table that the new one takes over.
    carried: usize,
    /// Ports that no descriptor was left for.
    left_out: u32,
    /// No more sockets, the kernel says.
    starved: bool,
}

#[derive(Debug)]
struct Fresh<S> {
    rule: RuleId,
    offset: u16,
    socket: S,
}

impl<S> Change<S> {
    pub(super) fn reserve(budget: usize) -> Self {
        Self {
            book: Book::reserve(),
            fresh: Vec::with_capacity(budget),
            carried: 0,
            left_out: 0,
            starved: false,
        }
    }

    fn clear(&mut self) {
        self.book.clear();
        self.fresh.clear();
        self.carried = 0;
        self.left_out = 0;
        self.starved = false;
    }

    /// Listeners of the new table so far.
    fn len(&self) -> usize {
        self.fresh.len().saturating_add(self.carried)
    }
}

/// Out of descriptors or memory: the next port will not fare better.
pub(super) fn starved(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

fn in_use(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EADDRINUSE)
}

fn number(e: &io::Error) -> i32 {
    e.raw_os_error().unwrap_or(Errno::EIO as i32)
}

/// What a rule's ports came to.
#[derive(Default)]
struct Outcome {
    had: bool,
    refused: Option<(u16, i32)>,
}

impl<B: Binder> Keeper<B> {
    /// Bind what a new table needs beyond the one in force. Ids that are in force already must name the same rule.
    ///
    /// # Errors
    /// A port that must be had cannot be, or none of a rule: nothing has changed. The very first table waits for taken
    /// ports, up to a quarter of a second.
    pub fn prepare(&mut self, new: &[(RuleId, Rule)]) -> Result<Change<B::Socket>, PortError> {
        let Some(mut change) = self.spare.take() else {
            return Err(PortError::Table);
        };
        match self.fill(&mut change, new) {
            Ok(()) => Ok(change),
            Err(e) => {
                self.abort(change);
                Err(e)
            }
        }
    }

    /// Forget a prepared table; its new sockets close.
    pub fn abort(&mut self, mut change: Change<B::Socket>) {
        for fresh in &change.fresh {
            let rule = change.book.find(fresh.rule);
            if let Some((rule, port)) = rule.and_then(|r| Some((r, r.port(fresh.offset)?))) {
                self.own.closed(rule.place.protocol, port);
            }
        }
        change.clear();
        self.spare = Some(change);
    }

    fn fill(
        &mut self,
        change: &mut Change<B::Socket>,
        new: &[(RuleId, Rule)],
    ) -> Result<(), PortError> {
        let mut explicit = 0_usize;
        for (id, rule) in new {
            if change.book.find(*id).is_some() || !change.book.push(*id, rule) {
                return Err(PortError::Table);
            }
            let Some(kept) = change.book.find(*id) else {
                return Err(PortError::Table);
            };
            if self.book.find(*id).is_some_and(|old| !old.same(kept)) {
                return Err(PortError::Table);
            }
            if kept.must() {
                let ports = usize::try_from(kept.len()).unwrap_or(usize::MAX);
                explicit = explicit.saturating_add(ports);
            }
        }
        if explicit > self.context.budget {
            return Err(PortError::TooMany {
                table: self.table,
                wanted: explicit,
                budget: self.context.budget,
            });
        }
        // What must be had first: the rest gets by with what is left of the budget.
        for must in [true, false] {
            for index in 0..change.book.rules().len() {
                match change.book.rules().get(index).copied() {
                    Some(rule) if rule.must() == must => self.fill_rule(change, &rule)?,
                    _ => {}
                }
            }
        }
        if change.left_out > 0 {
            log::warn!(
                "{} of the {} ports asked for are not forwarded: no descriptors left for them (RLIMIT_NOFILE)",
                change.left_out,
                self.table
            );
        }
        Ok(())
    }

    fn fill_rule(&mut self, change: &mut Change<B::Socket>, rule: &Kept) -> Result<(), PortError> {
        let mut outcome = Outcome::default();
        for word in 0..rule.words() {
            for offset in offsets(word, rule.wanted(word, &self.other)) {
                self.fill_port(change, rule, offset, &mut outcome)?;
            }
        }
        match outcome.refused {
            Some((port, errno)) if !outcome.had && !rule.auto_scan => {
                Err(self.failure(rule, port, errno))
            }
            _ => Ok(()),
        }
    }

    fn fill_port(
        &mut self,
        change: &mut Change<B::Socket>,
        rule: &Kept,
        offset: u16,
        outcome: &mut Outcome,
    ) -> Result<(), PortError> {
        let Some(port) = rule.port(offset) else {
            return Ok(());
        };
        let held = self.book.holder(&rule.place, port).is_some();
        let full = change.len() >= self.context.budget || (change.starved && !held);
        if full && !rule.must() {
            change.left_out = change.left_out.saturating_add(1);
            // The limit is to blame, not the ports.
            outcome.had = true;
            return Ok(());
        }
        if held {
            change.book.set(rule, offset, true);
            change.carried = change.carried.saturating_add(1);
            outcome.had = true;
            return Ok(());
        }
        match self.bind_patiently(rule, port) {
            Ok(socket) => {
                change.book.set(rule, offset, true);
                // From now on a scan finds it.
                self.own.opened(rule.place.protocol, port);
                change.fresh.push(Fresh {
                    rule: rule.id,
                    offset,
                    socket,
                });
                outcome.had = true;
            }
            Err(e) if in_use(&e) && self.book.obstructs(&rule.place, port) => outcome.had = true,
            Err(e) if rule.must() => return Err(self.failure(rule, port, number(&e))),
            Err(e) if starved(&e) => {
                change.starved = true;
                change.left_out = change.left_out.saturating_add(1);
                outcome.had = true;
            }
            Err(e) => {
                self.pace.denied(&e, port);
                outcome.refused = Some((port, number(&e)));
            }
        }
        Ok(())
    }

    fn bind_patiently(&mut self, rule: &Kept, port: u16) -> io::Result<B::Socket> {
        loop {
            match self.bind(rule, port) {
                Err(e) if in_use(&e) && rule.must() && !self.started && self.binder.wait() => {}
                other => return other,
            }
        }
    }

    fn failure(&self, rule: &Kept, port: u16, errno: i32) -> PortError {
        PortError::Listen(Failure {
            table: self.table,
            rule: rule.id,
            protocol: rule.place.protocol,
            listen: rule.place.listen,
            interface: rule.place.interface,
            range: rule.best_effort.then_some((rule.first, rule.last)),
            port,
            errno,
        })
    }

    /// Put a prepared table into force: names of new rules, listeners that go over to another rule, what is
    /// closed, and the new listeners, in this order; then [`Keeper::follow`].
    ///
    /// # Errors
    /// The forwarder cannot be told: the end.
    pub fn commit(
        &mut self,
        mut change: Change<B::Socket>,
        out: &mut Out<'_>,
    ) -> Result<(), IpcError> {
        for rule in change.book.rules() {
            if self.book.find(rule.id).is_none() {
                out(Supply::Rule(rule.notice(self.table)), &[])?;
                self.known.insert(rule.id.0.get());
            }
        }
        self.carry_over(&mut change.book, &change.fresh, out)?;
        self.close_rest(&change.book, out)?;
        let mut batch = Batch::default();
        for fresh in change.fresh.drain(..) {
            batch.push(fresh.rule, fresh.offset, fresh.socket, out)?;
        }
        batch.flush(out)?;
        std::mem::swap(&mut self.book, &mut change.book);
        self.abort(change);
        self.table_changed();
        self.follow(out)
    }

    /// Listeners of both tables move, if their rule has a new name. What the old table has lost meanwhile is missing.
    fn carry_over(
        &mut self,
        book: &mut Book,
        fresh: &[Fresh<B::Socket>],
        out: &mut Out<'_>,
    ) -> Result<(), IpcError> {
        // Sorted like the walk below only within a rule.
        let mut position = 0;
        for index in 0..book.rules().len() {
            let Some(rule) = book.rules().get(index).copied() else {
                continue;
            };
            if let Some(at) = fresh.iter().position(|f| f.rule == rule.id) {
                position = at;
            }
            for word in 0..rule.words() {
                for offset in offsets(word, book.open(&rule, word)) {
                    let is_fresh = fresh
                        .get(position)
                        .is_some_and(|f| (f.rule, f.offset) == (rule.id, offset));
                    if is_fresh {
                        position = position.saturating_add(1);
                        continue;
                    }
                    let port = rule.port(offset).unwrap_or(0);
                    let Some((old, from)) =
                        self.book.holder(&rule.place, port).map(|(r, o)| (*r, o))
                    else {
                        book.set(&rule, offset, false);
                        continue;
                    };
                    // What is left open in the old table after this is to be closed.
                    self.book.set(&old, from, false);
                    if (old.id, from) != (rule.id, offset) {
                        let message = Supply::Move {
                            from: old.id,
                            from_offset: from,
                            to: rule.id,
                            to_offset: offset,
                        };
                        out(message, &[])?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Close what the old table has and the new one does not.
    fn close_rest(&mut self, book: &Book, out: &mut Out<'_>) -> Result<(), IpcError> {
        for rule in self.book.rules() {
            let stays = book.find(rule.id).is_some();
            for word in 0..rule.words() {
                for offset in offsets(word, self.book.open(rule, word)) {
                    if let Some(port) = rule.port(offset) {
                        self.own.closed(rule.place.protocol, port);
                    }
                    if stays {
                        let rule = rule.id;
                        out(Supply::Close { rule, offset }, &[])?;
                    }
                }
            }
            if !stays {
                out(Supply::Forget { rule: rule.id }, &[])?;
            }
        }
        Ok(())
    }
}

/// Listeners of consecutive ports of a rule, sent together and closed here.
pub(super) struct Batch<S> {
    rule: Option<RuleId>,
    offset: u16,
    sockets: ArrayVec<S, MAX_DESCRIPTORS>,
}

impl<S> Default for Batch<S> {
    fn default() -> Self {
        Self {
            rule: None,
            offset: 0,
            sockets: ArrayVec::new(),
        }
    }
}

impl<S: AsFd> Batch<S> {
    pub(super) fn push(
        &mut self,
        rule: RuleId,
        offset: u16,
        socket: S,
        out: &mut Out<'_>,
    ) -> Result<(), IpcError> {
        let next = u16::try_from(self.sockets.len())
            .ok()
            .and_then(|n| self.offset.checked_add(n));
        if self.rule != Some(rule) || next != Some(offset) || self.sockets.is_full() {
            self.flush(out)?;
            self.rule = Some(rule);
            self.offset = offset;
        }
        // There is room: a full one was flushed.
        let _ = self.sockets.try_push(socket);
        Ok(())
    }

    pub(super) fn flush(&mut self, out: &mut Out<'_>) -> Result<(), IpcError> {
        let (Some(rule), Ok(count)) = (self.rule, u8::try_from(self.sockets.len())) else {
            return Ok(());
        };
        if count > 0 {
            let fds: ArrayVec<BorrowedFd<'_>, MAX_DESCRIPTORS> =
                self.sockets.iter().map(AsFd::as_fd).collect();
            let offset = self.offset;
            out(
                Supply::Listeners {
                    rule,
                    offset,
                    count,
                },
                &fds,
            )?;
        }
        self.sockets.clear();
        Ok(())
    }
}
