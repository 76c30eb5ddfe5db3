//! What the launcher becomes when everything is open: the parent that waits.
//!
//! One poll loop over signals, the ends of the other processes (pidfds), their channels, their log lines,
//! and the watch on the target namespace. It releases what waits for readiness (the forwarder, the command,
//! the caller's process) once every other process has said that it is confined, and it alone decides
//! when and with which status everything ends: every other process dies with it, by end of file on its
//! channel, and the two that run as the same user also by the kernel's parent-death signal. In passt mode there is
//! no namespace, so no ns-agent and no watch; and a forwarder that serves one client may end in order, with it.
//!
//! It is confined before the others are released ([`Monitor::run`] takes the proof). What must never
//! happen: a message from another process that is obeyed without being checked, anything read from
//! the network, a wait without an event.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod change;
mod control;
mod forwarding;
mod helper;
mod instance;
mod neighbours;
mod network;
mod ns_agent;
mod pool;
pub mod ports;
mod signals;
mod watch;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::config::rules::Table;
use crate::ipc::{FromAgent, FromForwarder, MonitorEnd, Request, ToAgent, ToForwarder};
use crate::log::Sinks;
use crate::sandbox::{Achieved, Confined};
use crate::sys::process::{Child, Ended, exit_now};
use crate::sys::reason::Reason;

pub use control::{Control, Instance};
use forwarding::Peers;
pub use forwarding::{Forwarding, Outcome};
use helper::Heard;
pub use helper::Helper;
pub use instance::Facts;
use instance::View;
pub use neighbours::{Links, Neighbours};
pub use network::Network;
pub use ns_agent::NsAgent;
pub use signals::{Signals, Style};
pub use watch::Watch;

/// What waits for readiness. Consumed when it is reached; dropped, it tells everybody that it never will be.
#[derive(Debug, Default)]
pub struct Waiting {
    /// PID file, already open, and what it is to say.
    pub pid_file: Option<(File, String)>,
    /// The caller's process, in background mode: one byte is success, end of file failure.
    pub parent: Option<File>,
}

/// The forwarder as the monitor sees it.
pub type Forwarder = Helper<ToForwarder, FromForwarder>;
/// The ns-agent as the monitor sees it.
pub type Agent = Helper<ToAgent, FromAgent>;

/// Everything the monitor holds.
#[derive(Debug)]
pub struct Monitor {
    /// Blocked and readable as a descriptor.
    pub signals: Signals,
    /// The forwarder.
    pub forwarder: Forwarder,
    /// The ns-agent; passt has none.
    pub agent: Option<Agent>,
    /// pasta's command, or the first process of its pid namespace.
    pub command: Option<Child>,
    /// To whoever starts and ends the command: one byte is go, end of file is the end.
    pub leash: Option<File>,
    /// On the target namespace.
    pub watch: Watch,
    /// Listeners, and the rules they follow from.
    pub forwarding: Forwarding,
    /// Until ready.
    pub waiting: Option<Waiting>,
    /// The host's neighbours.
    pub neighbours: Option<Neighbours>,
    /// `-c`.
    pub control: Option<Control>,
    /// How signals and the terminal are treated.
    pub style: Style,
    /// About ourselves, for reports.
    pub facts: Facts,
}

/// Only now does what an earlier run has left there go. What is no regular file has no size to set.
fn write_pid(file: &mut File, pid: &str) -> io::Result<()> {
    match file.set_len(0) {
        Err(e) if e.raw_os_error() != Some(Errno::EINVAL as i32) => return Err(e),
        _ => {}
    }
    file.write_all(pid.as_bytes())
}

/// How long the others get to end before the monitor does, with the kernel to finish the job.
const GRACE: Duration = Duration::from_millis(100);

/// Messages taken from one process before others have their turn.
const AT_ONCE: usize = 16;

/// Sources of events, in the order of the poll table.
const SOURCES: usize = 11;

impl Monitor {
    /// Watch until the end, then end this process with the whole program's status. The proof shows that
    /// we are confined. Does not return: the way out through `main` makes calls the filter forbids.
    pub fn run(mut self, confined: &Confined) -> ! {
        log::debug!("monitor confined: {}", confined.achieved());
        self.facts.confinement = confined.achieved().bits();
        let status = loop {
            match self.round() {
                Ok(()) => {}
                Err(status) => break status,
            }
        };
        self.end();
        exit_now(i32::from(status))
    }

    /// One wait and what follows from it; `Err` is the exit status.
    fn round(&mut self) -> Result<(), u8> {
        let ready = self.wait()?;
        let is = |i: usize| ready.get(i).copied().unwrap_or(false);
        // Lines first: what a process said last explains why it ended.
        if is(6) {
            self.forwarder.relay_log();
        }
        if let Some(agent) = self.agent.as_mut().filter(|_| is(7)) {
            agent.relay_log();
        }
        if is(2) {
            if let Some(status) = self.command_ended() {
                return Err(status);
            }
        }
        if is(3) {
            return Err(self.forwarder.ended());
        }
        if let Some(agent) = self.agent.as_mut().filter(|_| is(4)) {
            return Err(agent.ended());
        }
        if is(5) {
            self.hear_forwarder()?;
        }
        if is(8) {
            self.hear_agent()?;
        }
        if is(0) {
            if let Some(status) = self.signals.take(self.style) {
                return Err(status);
            }
        }
        if self.watch.gone(is(1)) {
            log::info!("The namespace is gone, exiting");
            return Err(0);
        }
        if is(10) {
            self.hear_of_neighbours()?;
        }
        let now = Instant::now();
        self.with_forwarding(|forwarding, peers| forwarding.tick(now, peers))?;
        if let Some(outcome) = self.forwarding.overdue(now) {
            self.changed(outcome);
        }
        self.serve_control(is(9))
    }

    /// Let the control socket go on, if something happened there or it is time.
    fn serve_control(&mut self, ready: bool) -> Result<(), u8> {
        // Before everything runs there is nothing to change yet; clients wait in the queue.
        let (Some(control), None) = (&mut self.control, &self.waiting) else {
            return Ok(());
        };
        let now = Instant::now();
        if !ready && control.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        let mut view = View {
            facts: self.facts,
            forwarding: &mut self.forwarding,
            peers: Peers {
                forwarder: &mut self.forwarder,
                agent: self.agent.as_mut(),
            },
            ended: None,
        };
        control.step(now, &mut view);
        view.ended.map_or(Ok(()), Err)
    }

    /// A change has come to an end.
    fn changed(&mut self, outcome: Outcome) {
        if let Some(control) = &mut self.control {
            control.finished(outcome);
        }
    }

    fn with_forwarding<T>(&mut self, act: impl FnOnce(&mut Forwarding, &mut Peers<'_>) -> T) -> T {
        let mut peers = Peers {
            forwarder: &mut self.forwarder,
            agent: self.agent.as_mut(),
        };
        act(&mut self.forwarding, &mut peers)
    }

    fn sources(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; SOURCES] {
        let control = match &self.control {
            Some(control) if self.waiting.is_none() => control.awaited(),
            _ => None,
        };
        let neighbours = match &self.neighbours {
            Some(neighbours) if self.waiting.is_none() => neighbours.awaited(),
            _ => None,
        };
        let agent = self.agent.as_ref();
        let [a, b, c, d, e, f, g, h, i, k] = [
            Some(self.signals.as_fd()),
            self.watch.as_fd(),
            self.command.as_ref().map(|c| c.pidfd.as_fd()),
            Some(self.forwarder.child.pidfd.as_fd()),
            agent.map(|agent| agent.child.pidfd.as_fd()),
            self.forwarder.link.as_ref().map(MonitorEnd::as_fd),
            self.forwarder.log(),
            agent.and_then(Agent::log),
            agent.and_then(|agent| agent.link.as_ref().map(MonitorEnd::as_fd)),
            neighbours,
        ]
        .map(|fd| Some((fd?, PollFlags::POLLIN)));
        [a, b, c, d, e, f, g, h, i, control, k]
    }

    fn wait(&self) -> Result<[bool; SOURCES], u8> {
        let sources = self.sources();
        // A source that is not there polls our signals for nothing: same descriptor, no events.
        let mut table = sources.map(|fd| match fd {
            Some((fd, events)) => PollFd::new(fd, events),
            None => PollFd::new(self.signals.as_fd(), PollFlags::empty()),
        });
        let now = Instant::now();
        let client = self.control.as_ref().and_then(Control::deadline);
        let timeouts = [
            self.watch.interval(),
            self.forwarding.timeout(now),
            client.map(|deadline| deadline.saturating_duration_since(now)),
        ];
        let timeout = timeouts.into_iter().flatten().min();
        match ppoll(&mut table, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => {
                log::error!("Can't wait for events: {}", e.desc());
                return Err(1);
            }
        }
        let mut ready = [false; SOURCES];
        for ((slot, entry), source) in ready.iter_mut().zip(&table).zip(&sources) {
            *slot = source.is_some() && entry.revents().is_some_and(|r| !r.is_empty());
        }
        Ok(ready)
    }

    fn command_ended(&mut self) -> Option<u8> {
        let ended = self.command.as_ref()?.ended()?;
        self.command = None;
        Some(match ended {
            Ended::Exited(status) => status,
            Ended::Killed(signal) => signal.saturating_add(128),
        })
    }

    fn hear_forwarder(&mut self) -> Result<(), u8> {
        for _ in 0..AT_ONCE {
            match self.forwarder.receive()? {
                Heard::Nothing => break,
                Heard::End => return Err(self.forwarder.ended()),
                Heard::Message(FromForwarder::Ready { confinement }) => {
                    self.forwarder.ready(Achieved::from_bits(confinement))?;
                    self.release_if_ready()?;
                }
                Heard::Message(FromForwarder::Request(Request::Settled)) => {
                    let now = Instant::now();
                    let outcome = self
                        .with_forwarding(|forwarding, peers| forwarding.settled_here(now, peers))?;
                    self.settled(outcome);
                }
                Heard::Message(FromForwarder::Request(request)) => {
                    let now = Instant::now();
                    self.with_forwarding(|forwarding, peers| {
                        forwarding.serve(now, request, peers)
                    })?;
                }
            }
        }
        Ok(())
    }

    fn hear_agent(&mut self) -> Result<(), u8> {
        for _ in 0..AT_ONCE {
            let Some(agent) = &mut self.agent else {
                break;
            };
            match agent.receive()? {
                Heard::Nothing => break,
                Heard::End => return Err(agent.ended()),
                // The launcher took the tap before it became the monitor: there is only one.
                Heard::Message(FromAgent::Tap(_) | FromAgent::NoTap) => {
                    return Err(agent.misbehaved());
                }
                Heard::Message(FromAgent::Ready { confinement }) => {
                    agent.ready(Achieved::from_bits(confinement))?;
                    self.release_if_ready()?;
                }
                Heard::Message(FromAgent::Settled) => {
                    match self.forwarding.settled(Table::Splice) {
                        Ok(outcome) => self.settled(outcome),
                        Err(_) => return Err(agent.misbehaved()),
                    }
                }
                Heard::Message(FromAgent::Status {
                    rule,
                    open,
                    missing,
                }) => self.forwarding.splice_status(ports::Status {
                    rule,
                    open,
                    missing,
                }),
                Heard::Message(FromAgent::Ports(block)) => {
                    let now = Instant::now();
                    self.with_forwarding(|forwarding, peers| {
                        forwarding.namespace_ports(now, &block, peers)
                    })?;
                }
                Heard::Message(FromAgent::Prepared) => {
                    self.with_forwarding(Forwarding::prepared)?;
                }
                Heard::Message(FromAgent::Failed { rule, port, errno }) => {
                    let outcome = self.with_forwarding(|forwarding, peers| {
                        forwarding.failed((rule, port, errno), peers)
                    })?;
                    self.changed(outcome);
                }
            }
        }
        Ok(())
    }

    /// The host's neighbours have moved, or it is time to ask for them.
    fn hear_of_neighbours(&mut self) -> Result<(), u8> {
        let (forwarder, mut there) = (&self.forwarder, true);
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.step(&mut |n| there &= forwarder.send(&ToForwarder::Neighbour(n)));
        }
        if there {
            Ok(())
        } else {
            Err(self.forwarder.ended())
        }
    }

    /// The forwarder has let go of what a change has removed; the change is complete with the last of it.
    fn settled(&mut self, outcome: Option<Outcome>) {
        if let Some(outcome) = outcome {
            self.changed(outcome);
        }
    }

    /// All are confined: let everything go that waited for it.
    fn release_if_ready(&mut self) -> Result<(), u8> {
        let agent = self.agent.as_ref();
        if !(self.forwarder.is_ready() && agent.is_none_or(Agent::is_ready)) {
            return Ok(());
        }
        let Some(mut waiting) = self.waiting.take() else {
            return Ok(());
        };
        if let Some((file, pid)) = &mut waiting.pid_file {
            if let Err(e) = write_pid(file, pid) {
                log::error!("Couldn't write PID file: {}", Reason::from(e));
                return Err(1);
            }
        }
        if !self.forwarder.send(&ToForwarder::Go) {
            return Err(self.forwarder.ended());
        }
        self.with_forwarding(Forwarding::go)?;
        self.hear_of_neighbours()?;
        if let Some(leash) = &mut self.leash {
            // If it is gone already, its pidfd says so.
            let _ = leash.write_all(&[1]);
        }
        if let Some(mut parent) = waiting.parent {
            // The caller's terminal or pipe is given up before the caller is told.
            crate::log::with_sinks(Sinks::close_stderr);
            if parent.write_all(&[1]).is_err() {
                // Whoever started us was killed: nobody is waiting for this network.
                return Err(1);
            }
        }
        Ok(())
    }

    /// Tell the others by closing their channels, and see them off.
    fn end(&mut self) {
        self.waiting = None;
        self.leash = None;
        self.forwarder.link = None;
        if let Some(agent) = &mut self.agent {
            agent.link = None;
        }
        let deadline = Instant::now().checked_add(GRACE);
        self.forwarder.see_off(deadline);
        if let Some(agent) = &mut self.agent {
            agent.see_off(deadline);
        }
    }
}
