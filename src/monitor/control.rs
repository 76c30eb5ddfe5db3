//! The control socket: one client at a time, in the monitor's own loop.
//!
//! A client is greeted with the tables, may send new ones or a query, and is answered if it speaks our protocol
//! (see [`crate::control`]). Everything is a small state machine over a non-blocking socket: [`Control::step`] does
//! what can be done now and returns. While the monitor carries out a change nothing is read, and the next client
//! waits in the listener's queue: two changes are never under way at once, and what a client was greeted with is
//! what it changes.
//!
//! The rules a client sends pass the same gate as those of the command line, so it can have nothing that a
//! caller could not have asked for; only the user we run as, and root, get that far.
//!
//! What must never happen: waiting for a client; memory that grows with what it sends; a table half-changed.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::forwarding::Outcome as Progress;
use crate::config::rules::{Context, MAX_RULES, Rule, Rules, Table};
use crate::control::exchange::{Outcome, Request, parse_request};
use crate::control::report::{RECORD, Record};
use crate::control::wire::{Capabilities, RULE, Update, put_greeting};
use crate::sys::reason::Reason;
use crate::sys::{process, scm, unix};

/// Time a client has for everything it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time until the next client is tried, when one could not be taken: the kernel goes on saying that it is there.
const PAUSE: Duration = Duration::from_secs(1);
/// Most bytes a client sends, and most of ours that wait for it: two full tables and what surrounds them.
const BUFFER: usize = 2 * (MAX_RULES * RULE + 256) + 512;
/// Memory kept at hand, so that a full table fits without a system call later; the filter has none to offer.
const RESERVE: usize = 8 * (64 << 10);

/// What a client may see of the instance, and have done by it.
pub trait Instance {
    /// The rules of a table.
    fn rules(&self, table: Table) -> &Rules;

    /// What rules of a table may ask for, and whether there is another side whose listeners they may follow (pasta).
    fn context(&self, table: Table) -> (Context, bool);

    /// Replace both tables. If that is [`Progress::Pending`], [`Control::finished`] is to be told the end.
    fn change(&mut self, host: &Rules, splice: &Rules) -> Progress;

    /// Our part of a report, piece by piece; `None` after the last.
    fn record(&self, index: usize) -> Option<Record>;

    /// Give the connection to the forwarder, which finishes the report.
    fn hand_over(&mut self, client: BorrowedFd<'_>);
}

/// Where we are with a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The greeting is on its way, then we listen.
    Greeting,
    /// It is its turn to speak.
    Listening,
    /// The monitor carries out a change; is there to be an answer?
    Changing { answer: bool },
    /// The last bytes are on their way.
    Answering,
    /// Our part of a report is on its way; the next record to put into the buffer.
    Reporting { next: usize },
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    /// For the log.
    pid: i32,
    stage: Stage,
    deadline: Instant,
}

/// The end of a client: why is for the log, `None` if all is as it should be.
struct Done(Option<&'static str>);

/// The control socket and its client.
#[derive(Debug)]
pub struct Control {
    listener: OwnedFd,
    /// Whom we serve besides root.
    owner: u32,
    client: Option<Client>,
    /// Nobody is taken before.
    deaf_until: Option<Instant>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` already sent.
    sent: usize,
}

impl Control {
    /// Serve clients of `listener` (non-blocking) that run as `owner` or root. Before confinement: reserves memory.
    #[must_use]
    pub fn new(listener: OwnedFd, owner: u32) -> Self {
        process::reserve_heap(RESERVE);
        Self {
            listener,
            owner,
            client: None,
            deaf_until: None,
            input: Vec::with_capacity(BUFFER),
            output: Vec::with_capacity(BUFFER),
            sent: 0,
        }
    }

    /// What to wait for: the next client, or room or words from the present one.
    #[must_use]
    pub fn awaited(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let Some(client) = &self.client else {
            let listener = (self.listener.as_fd(), PollFlags::POLLIN);
            return self.deaf_until.is_none().then_some(listener);
        };
        match client.stage {
            Stage::Listening => Some((client.socket.as_fd(), PollFlags::POLLIN)),
            Stage::Changing { .. } => None,
            _ => Some((client.socket.as_fd(), PollFlags::POLLOUT)),
        }
    }

    /// When [`Control::step`] has to be called even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.client {
            None => self.deaf_until,
            Some(client) => {
                (!matches!(client.stage, Stage::Changing { .. })).then_some(client.deadline)
            }
        }
    }

    /// Do what can be done now.
    pub fn step(&mut self, now: Instant, instance: &mut dyn Instance) {
        if self.client.is_none() {
            self.accept(now, instance);
        }
        loop {
            match self.advance(now, instance) {
                Ok(true) => {}
                Ok(false) => return,
                Err(done) => {
                    self.dismiss(&done);
                    return;
                }
            }
        }
    }

    /// How the change that [`Instance::change`] has begun is getting on.
    pub fn finished(&mut self, progress: Progress) {
        let pid = self.client.as_ref().map_or(0, |client| client.pid);
        let outcome = match progress {
            Progress::Pending => return,
            Progress::Done => {
                log::info!("Forwarding rules changed by PID {pid}");
                Outcome::done()
            }
            Progress::Refused(why) => {
                let line = why.replace('\n', "; ");
                log::warn!("Forwarding rules not changed for PID {pid}: {line}");
                Outcome::refused(why)
            }
        };
        let stage = self.client.as_ref().map(|client| client.stage);
        match stage {
            Some(Stage::Changing { answer: true }) => self.answer(&outcome),
            Some(Stage::Changing { answer: false }) => self.dismiss(&Done(None)),
            _ => {}
        }
    }

    fn accept(&mut self, now: Instant, instance: &dyn Instance) {
        if self.deaf_until.is_some_and(|until| now < until) {
            return;
        }
        self.deaf_until = None;
        let socket = match unix::accept(self.listener.as_fd()) {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(e) => {
                log::warn!("Can't accept a control client: {}", Reason::from(e));
                self.deaf_until = now.checked_add(PAUSE);
                return;
            }
        };
        let pid = match unix::peer(socket.as_fd()) {
            Ok(peer) if peer.uid == self.owner || peer.uid == 0 => peer.pid,
            Ok(peer) => {
                log::warn!("Refused a control client of user {}", peer.uid);
                return;
            }
            Err(e) => {
                log::warn!("Can't tell who a control client is: {}", Reason::from(e));
                return;
            }
        };
        // Whoever only looks may come every second.
        log::debug!("Accepted configuration client, PID {pid}");
        self.input.clear();
        self.output.clear();
        self.sent = 0;
        put_greeting(
            &mut self.output,
            Self::tables(instance).map(|table| {
                (
                    table,
                    capabilities(instance.context(table)),
                    instance.rules(table).as_slice(),
                )
            }),
        );
        self.client = Some(Client {
            socket,
            pid,
            stage: Stage::Greeting,
            deadline: now.checked_add(PATIENCE).unwrap_or(now),
        });
    }

    /// Those it has: without another side to follow there is no way out of it either.
    fn tables(instance: &dyn Instance) -> impl Iterator<Item = Table> {
        [Table::Host, Table::Splice]
            .into_iter()
            .filter(|table| *table == Table::Host || instance.context(*table).1)
    }

    fn dismiss(&mut self, done: &Done) {
        if let Some(why) = done.0 {
            log::warn!("Control client dismissed: {why}");
        }
        self.client = None;
    }

    /// One step; true: there may be another right away.
    fn advance(&mut self, now: Instant, instance: &mut dyn Instance) -> Result<bool, Done> {
        let Some(client) = &self.client else {
            return Ok(false);
        };
        let (stage, late) = (client.stage, now >= client.deadline);
        let more = match stage {
            Stage::Changing { .. } => return Ok(false),
            Stage::Listening => self.listen(instance)?,
            Stage::Greeting | Stage::Answering | Stage::Reporting { .. } => {
                self.write()? && self.written(stage, instance)?
            }
        };
        // Only who keeps us waiting is late: an answer that took long is still given.
        if late && !more {
            return Err(Done(Some("it took too long")));
        }
        Ok(more)
    }

    /// Write what waits; true: nothing waits any more.
    fn write(&mut self) -> Result<bool, Done> {
        let Some(client) = &self.client else {
            return Ok(false);
        };
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match unix::send_some(client.socket.as_fd(), rest) {
                Ok(n) => self.sent = self.sent.saturating_add(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                // It need not wait for what we have to say.
                Err(_) => return Err(Done(None)),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }

    fn enter(&mut self, stage: Stage) {
        if let Some(client) = &mut self.client {
            client.stage = stage;
        }
    }

    fn written(&mut self, stage: Stage, instance: &mut dyn Instance) -> Result<bool, Done> {
        let Stage::Reporting { mut next } = stage else {
            if stage == Stage::Greeting {
                self.enter(Stage::Listening);
                return Ok(true);
            }
            return Err(Done(None));
        };
        while self.output.len().saturating_add(RECORD) <= BUFFER {
            let Some(record) = instance.record(next) else {
                break;
            };
            let mut bytes = [0; RECORD];
            if record.encode(&mut bytes).is_ok() {
                self.output.extend_from_slice(&bytes);
            }
            next = next.saturating_add(1);
        }
        if !self.output.is_empty() {
            self.enter(Stage::Reporting { next });
            return Ok(true);
        }
        if let Some(client) = &self.client {
            instance.hand_over(client.socket.as_fd());
        }
        Err(Done(None))
    }

    /// Read what has come, and act when it is complete.
    fn listen(&mut self, instance: &mut dyn Instance) -> Result<bool, Done> {
        let Some(client) = &self.client else {
            return Ok(false);
        };
        let mut chunk = [0; 4096];
        match scm::try_recv(client.socket.as_fd(), &mut chunk) {
            Ok(0) if self.input.is_empty() => return Err(Done(None)),
            Ok(0) => return Err(Done(Some("it hung up in the middle of a message"))),
            Ok(n) => {
                let new = chunk.get(..n).unwrap_or_default();
                if self.input.len().saturating_add(new.len()) > BUFFER {
                    return Err(Done(Some("it sent too much")));
                }
                self.input.extend_from_slice(new);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(_) => return Err(Done(None)),
        }
        let request = parse_request(&self.input).map_err(|e| {
            log::warn!("Control client: {e}");
            Done(Some("it sent what cannot be understood"))
        })?;
        match request {
            None => {}
            Some(Request::Established(update)) => self.begin(&update, false, instance),
            Some(Request::Apply(update)) => self.begin(&update, true, instance),
            Some(Request::Report) => {
                self.output.extend_from_slice(&Outcome::done().encode());
                self.enter(Stage::Reporting { next: 0 });
            }
            Some(Request::Unknown) => self.answer(&Outcome::refused(concat!(
                "The instance has another version (",
                env!("CARGO_PKG_VERSION"),
                ")"
            ))),
        }
        Ok(true)
    }

    /// New tables have arrived.
    fn begin(&mut self, update: &Update, answer: bool, instance: &mut dyn Instance) {
        self.enter(Stage::Changing { answer });
        let progress = match tables(update, instance) {
            Err(why) => Progress::Refused(why),
            Ok((host, splice)) => {
                let same = *instance.rules(Table::Host) == host
                    && *instance.rules(Table::Splice) == splice;
                if same {
                    Progress::Done
                } else {
                    instance.change(&host, &splice)
                }
            }
        };
        self.finished(progress);
    }

    fn answer(&mut self, outcome: &Outcome) {
        self.output.clear();
        self.sent = 0;
        self.output.extend_from_slice(&outcome.encode());
        self.enter(Stage::Answering);
    }
}

/// Both tables, every rule through the gate.
fn tables(update: &Update, instance: &dyn Instance) -> Result<(Rules, Rules), String> {
    let table = |table: Table, rules: &[Rule]| {
        let (context, scan) = instance.context(table);
        if table == Table::Splice && !scan && !rules.is_empty() {
            return Err(format!("There is no {table} table in passt mode"));
        }
        let mut checked = Rules::default();
        for rule in rules {
            if rule.auto_scan && !scan {
                return Err(crate::config::rules::RuleError::AutoInPasst.to_string());
            }
            if table == Table::Splice && !on_loopback(rule) {
                return Err(format!("{table} rules listen on the loopback only: {rule}"));
            }
            checked
                .add(rule.clone(), &context)
                .map_err(|e| e.to_string())?;
        }
        Ok(checked)
    };
    Ok((
        table(Table::Host, &update.host)?,
        table(Table::Splice, &update.splice)?,
    ))
}

/// What may be listened on in the namespace: its loopback interface or address.
fn on_loopback(rule: &Rule) -> bool {
    rule.interface.as_deref() == Some("lo")
        || rule.listen.is_some_and(|address| address.is_loopback())
}

fn capabilities((context, scan): (Context, bool)) -> Capabilities {
    let bit = |set, bit| if set { bit } else { 0 };
    Capabilities(
        bit(context.ipv4, Capabilities::IPV4)
            | bit(context.ipv6, Capabilities::IPV6)
            | bit(context.tcp, Capabilities::TCP)
            | bit(context.udp, Capabilities::UDP)
            | bit(scan, Capabilities::SCAN)
            | Capabilities::INTERFACE
            | Capabilities::QUERIES,
    )
}

#[cfg(test)]
mod tests;
