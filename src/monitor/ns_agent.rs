//! The ns-agent's life once its namespace is set up: it answers.
//!
//! The forwarder asks for sockets of this network and for listeners it has lost; the monitor says what the host listens
//! on, and how the rules change. All are answered in the order they ask, a few messages at a time, so that neither
//! can keep the other waiting.
//!
//! A new table comes rule by rule. It is prepared (what is new is bound) when it is complete; if it can be, the monitor,
//! which has prepared the host's table before, has it come into force: both tables change, or none.
//!
//! It ends when the monitor does, and when either says something it must not say. The end of the forwarder is not
//! its own: the monitor decides what follows from that.
//!
//! What must never happen: a socket that is bound or listening without a rule for it.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::network::Network;
use super::pool;
use super::ports::{Change, PortError, ServeError, Status};
use crate::config::rules::{MAX_RULES, Rule, RuleId};
use crate::ipc::{
    AgentLink, FromAgent, IpcError, PortBlock, Request, SupplierEnd, Supply, ToAgent,
};
use crate::sandbox::Confined;
use crate::sys::process;

/// Messages taken from one side before the other has its turn.
const AT_ONCE: usize = 16;

/// Memory kept at hand for rules that come later: the filter has no call for more.
const RESERVE: usize = 100 << 10;

/// The ns-agent, everything open.
#[derive(Debug)]
pub struct NsAgent {
    link: AgentLink,
    /// `None` once it is gone.
    forwarder: Option<SupplierEnd>,
    network: Network,
    /// The rules of the table that is on its way.
    coming: Vec<(RuleId, Rule)>,
    prepared: Option<Change<OwnedFd>>,
    /// The forwarder has still to close what the last change has removed.
    settling: bool,
    /// What the monitor knows of how the rules are doing.
    reported: Vec<Status>,
}

impl NsAgent {
    /// To be made before confinement.
    #[must_use]
    pub fn new(link: AgentLink, forwarder: SupplierEnd, network: Network) -> Self {
        process::reserve_heap(RESERVE);
        Self {
            link,
            forwarder: Some(forwarder),
            network,
            coming: Vec::with_capacity(MAX_RULES),
            prepared: None,
            settling: false,
            reported: Vec::with_capacity(MAX_RULES),
        }
    }

    /// Say that we are confined, which the proof shows, then serve until the end; the error is its reason.
    /// [`IpcError::Closed`] is the orderly one.
    ///
    /// # Errors
    /// Always one.
    pub fn run(&mut self, confined: &Confined) -> Result<Infallible, IpcError> {
        let ready = FromAgent::Ready {
            confinement: confined.achieved().bits(),
        };
        self.report()?;
        self.link.send(ready, None)?;
        self.network.arrange(Instant::now());
        loop {
            let (monitor, forwarder) = self.wait()?;
            let now = Instant::now();
            if monitor {
                self.hear_monitor(now)?;
            }
            if forwarder {
                self.hear_forwarder(now)?;
            }
            let (link, end) = (&self.link, &self.forwarder);
            self.network.tick(now, &mut tell(link), &mut out(end))?;
            self.report()?;
        }
    }

    fn wait(&self) -> Result<(bool, bool), IpcError> {
        let link = self.link.as_fd();
        // A forwarder that is not there polls the monitor for nothing: same descriptor, no events.
        let (forwarder, events) = match &self.forwarder {
            Some(end) => (end.as_fd(), PollFlags::POLLIN),
            None => (link, PollFlags::empty()),
        };
        let mut table = [
            PollFd::new(link, PollFlags::POLLIN),
            PollFd::new(forwarder, events),
        ];
        let timeout = self.network.timeout(Instant::now());
        match ppoll(&mut table, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(std::io::Error::from(e).into()),
        }
        let [monitor, forwarder] =
            table.map(|entry| entry.revents().is_some_and(|r| !r.is_empty()));
        Ok((monitor, forwarder && self.forwarder.is_some()))
    }

    fn hear_monitor(&mut self, now: Instant) -> Result<(), IpcError> {
        let mut ports = false;
        for _ in 0..AT_ONCE {
            match self.link.try_receive()? {
                None => break,
                Some(ToAgent::Ports(block)) => {
                    self.network.told(&block);
                    ports = true;
                }
                Some(ToAgent::Watch(watched)) => self.network.watch(now, watched),
                Some(ToAgent::Begin) => self.coming.clear(),
                Some(ToAgent::Rule(named)) => {
                    let rule = named.rule().ok_or(IpcError::Malformed)?;
                    if self.coming.len() >= MAX_RULES {
                        return Err(IpcError::Malformed);
                    }
                    self.coming.push((named.id, rule));
                }
                Some(ToAgent::Prepare) => self.prepare()?,
                Some(ToAgent::Commit) => {
                    let change = self.prepared.take().ok_or(IpcError::Malformed)?;
                    self.network
                        .keeper
                        .commit(change, &mut out(&self.forwarder))?;
                    self.network.keeper.follow(&mut out(&self.forwarder))?;
                    self.network.arrange(now);
                    self.settling = true;
                    out(&self.forwarder)(Supply::Settle, &[])?;
                }
            }
        }
        if ports {
            self.network.keeper.follow(&mut out(&self.forwarder))?;
            self.network.arrange(now);
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<(), IpcError> {
        if self.prepared.is_some() {
            return Err(IpcError::Malformed);
        }
        let answer = match self.network.keeper.prepare(&self.coming) {
            Ok(change) => {
                self.prepared = Some(change);
                FromAgent::Prepared
            }
            Err(PortError::Listen(failure)) => FromAgent::Failed {
                rule: failure.rule,
                port: failure.port,
                errno: failure.errno,
            },
            // Too many: as good a place as any to say so is the last of them.
            Err(_) => match self.coming.last() {
                Some((rule, last)) => FromAgent::Failed {
                    rule: *rule,
                    port: last.last,
                    errno: libc::EMFILE,
                },
                None => return Err(IpcError::Malformed),
            },
        };
        self.link.send(answer, None)
    }

    fn hear_forwarder(&mut self, now: Instant) -> Result<(), IpcError> {
        for _ in 0..AT_ONCE {
            let Some(end) = &self.forwarder else {
                return Ok(());
            };
            let answered = match end.try_receive() {
                Ok(None) => return Ok(()),
                Ok(Some(Request::Sockets { kind, count })) => {
                    pool::supply(kind, count, |supply, fds| end.send(supply, fds))
                }
                Ok(Some(Request::Settled)) => {
                    if !std::mem::take(&mut self.settling) {
                        return Err(IpcError::Malformed);
                    }
                    // What was in the way of new ports is gone.
                    self.network.keeper.retry(now, &mut out(&self.forwarder))?;
                    self.network.arrange(now);
                    self.link.send(FromAgent::Settled, None)
                }
                Ok(Some(request @ Request::Listener { .. })) => {
                    let out = &mut |supply: Supply, fds: &[BorrowedFd<'_>]| end.send(supply, fds);
                    match self.network.serve(request, now, out) {
                        Ok(()) => Ok(()),
                        Err(ServeError::Misbehaved(_)) => Err(IpcError::Malformed),
                        Err(ServeError::Ipc(e)) => Err(e),
                    }
                }
                Err(e) => Err(e),
            };
            match answered {
                Err(IpcError::Closed) => self.forwarder = None,
                other => other?,
            }
        }
        Ok(())
    }

    /// Tell the monitor how the rules are doing, where that has changed.
    fn report(&mut self) -> Result<(), IpcError> {
        for status in self.network.keeper.status() {
            if self.reported.contains(&status) {
                continue;
            }
            let Status {
                rule,
                open,
                missing,
            } = status;
            let message = FromAgent::Status {
                rule,
                open,
                missing,
            };
            self.link.send(message, None)?;
        }
        self.reported.clear();
        self.reported
            .extend(self.network.keeper.status().take(MAX_RULES));
        Ok(())
    }
}

fn tell(link: &AgentLink) -> impl FnMut(PortBlock) -> Result<(), IpcError> + '_ {
    |block| link.send(FromAgent::Ports(block), None)
}

/// To the forwarder; what it is no longer there for is lost, and does not matter.
fn out(
    end: &Option<SupplierEnd>,
) -> impl FnMut(Supply, &[BorrowedFd<'_>]) -> Result<(), IpcError> + '_ {
    |supply, fds| match end.as_ref().map(|end| end.send(supply, fds)) {
        None | Some(Ok(()) | Err(IpcError::Closed)) => Ok(()),
        Some(other) => other,
    }
}
