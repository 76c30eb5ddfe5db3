//! Another process of ours, from the monitor's side: its end, its channel, its log lines.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::Serialize;

use crate::clock;
use crate::ipc::{IpcError, MonitorEnd, Parcel};
use crate::log::{MAX_LINE, RateLimit};
use crate::sandbox::{Achieved, Role};
use crate::sys::process::{Child, Ended};
use crate::sys::scm;

/// Lines a second we take from another process unless the user asked for details.
const LINES_PER_SECOND: u32 = 1000;

/// Lines taken in one go, so that a chatterbox cannot keep the monitor from its other duties.
const LINES_AT_ONCE: u32 = 64;

/// How long one that may end by itself has for that once its channel is closed: whatever else it has, thousands of
/// connections, say, is closed meanwhile.
const ORDERLY: Duration = Duration::from_secs(5);

/// What another process has to say.
#[derive(Debug)]
pub(super) enum Heard<R> {
    /// This.
    Message(R),
    /// Nothing now.
    Nothing,
    /// End of file, which is its end or must become it, see [`Helper::ended`].
    End,
}

/// One other process.
#[derive(Debug)]
pub struct Helper<S, R> {
    role: Role,
    /// The process.
    pub child: Child,
    /// Our end of the pair; `None` once it has said its last word.
    pub link: Option<MonitorEnd<S, R>>,
    /// Its log lines; `None` at their end, which polls as readable for ever.
    log: Option<OwnedFd>,
    start: Instant,
    limit: RateLimit,
    explained: bool,
    /// It may end by itself, with status 0.
    may_end: bool,
    /// What it has said of its confinement, once it has.
    ready: Option<Achieved>,
}

impl<S: Serialize, R: Parcel> Helper<S, R> {
    /// A process just started.
    #[must_use]
    pub fn new(role: Role, child: Child, link: MonitorEnd<S, R>, log: OwnedFd) -> Self {
        Self {
            role,
            child,
            link: Some(link),
            log: Some(log),
            start: Instant::now(),
            limit: RateLimit::new(LINES_PER_SECOND),
            explained: false,
            may_end: false,
            ready: None,
        }
    }

    /// It may end by itself: with status 0 that is the end of the program, and in order.
    #[must_use]
    pub fn ending(mut self, may_end: bool) -> Self {
        self.may_end = may_end;
        self
    }

    /// It has said that it is confined.
    pub(super) const fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// What it has said of its confinement.
    pub(super) fn achieved(&self) -> Achieved {
        self.ready.unwrap_or_default()
    }

    /// Its process id, as we see it.
    pub(super) fn pid(&self) -> u32 {
        u32::try_from(self.child.pid.as_raw()).unwrap_or_default()
    }

    /// Its READY message: once only. `Err` is the exit status.
    pub(super) fn ready(&mut self, achieved: Achieved) -> Result<(), u8> {
        if self.ready.replace(achieved).is_some() {
            return Err(self.misbehaved());
        }
        log::debug!("{} confined: {achieved}", self.role.name());
        Ok(())
    }

    /// Where its log lines arrive, while there can be more.
    pub(super) fn log(&self) -> Option<BorrowedFd<'_>> {
        self.log.as_ref().map(AsFd::as_fd)
    }

    /// The next message, without waiting. `Err` is the exit status.
    pub(super) fn receive(&mut self) -> Result<Heard<R>, u8> {
        let Some(link) = &self.link else {
            return Ok(Heard::End);
        };
        match link.try_receive() {
            Ok(Some(message)) => Ok(Heard::Message(message)),
            Ok(None) => Ok(Heard::Nothing),
            Err(IpcError::Closed) => {
                self.link = None;
                Ok(Heard::End)
            }
            Err(
                IpcError::Io(_) | IpcError::Malformed | IpcError::Descriptors | IpcError::Lost(_),
            ) => Err(self.misbehaved()),
        }
    }

    /// Send; false if it is no longer there.
    pub(super) fn send(&self, message: &S) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.send(message).is_ok())
    }

    /// Something arrived that it may not say. The exit status.
    pub(super) fn misbehaved(&self) -> u8 {
        log::error!("{} sent an invalid message, exiting", self.role.name());
        1
    }

    /// It ended, or closed its channel and has a moment to end. Says why unless it did so itself; the
    /// exit status, which is 0 only if it was free to end and did so in order.
    pub fn ended(&mut self) -> u8 {
        // Its channel may have ended a moment before it does.
        let grace = if self.may_end { ORDERLY } else { super::GRACE };
        let how = self.see_off(Instant::now().checked_add(grace));
        if self.may_end && how == Some(Ended::Exited(0)) {
            log::debug!("{} has ended, exiting", self.role.name());
            return 0;
        }
        if !self.explained {
            let name = self.role.name();
            match how {
                Some(Ended::Killed(31)) => log::error!(
                    "{name} was killed by signal 31 (SIGSYS): it made a system call its filter forbids; --trace names the call"
                ),
                Some(Ended::Killed(signal)) => {
                    log::error!("{name} was killed by signal {signal}, exiting");
                }
                Some(Ended::Exited(status)) => {
                    log::error!("{name} ended with status {status}, exiting");
                }
                None => log::error!("{name} closed its channel, exiting"),
            }
        }
        1
    }

    /// Put the lines that have arrived into our sinks.
    pub fn relay_log(&mut self) {
        let mut buf = [0; MAX_LINE];
        for _ in 0..LINES_AT_ONCE {
            let Some(log) = &self.log else {
                return;
            };
            match scm::try_recv(log.as_fd(), &mut buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // End of file. A line is never empty.
                Ok(0) | Err(_) => self.log = None,
                Ok(n) => self.relay(buf.get(..n).unwrap_or_default()),
            }
        }
    }

    fn relay(&mut self, message: &[u8]) {
        if log::max_level() < log::LevelFilter::Debug {
            let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
            match self.limit.admit(clock::Instant(now)) {
                None => return,
                Some(0) => {}
                Some(n) => {
                    let mut note = String::with_capacity(64);
                    let _ = write!(note, "{n} log lines of {} suppressed", self.role.name());
                    log::warn!("{note}");
                }
            }
        }
        if crate::log::relay(self.role.name(), message) == Some(log::Level::Error) {
            self.explained = true;
        }
    }

    /// Wait until it has ended, at most until `deadline`, take its last lines and reap it.
    pub(super) fn see_off(&mut self, deadline: Option<Instant>) -> Option<Ended> {
        let left = deadline.map_or(Duration::ZERO, |d| {
            d.saturating_duration_since(Instant::now())
        });
        let mut table = [PollFd::new(self.child.pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = ppoll(&mut table, Some(TimeSpec::from_duration(left)), None);
        self.relay_log();
        self.child.ended()
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;
    use crate::ipc;
    use crate::sys::process::pidfd_open;

    /// A process that lives on, and what it holds of its log and its channel.
    fn silent() -> (crate::monitor::Agent, OwnedFd, OwnedFd, std::process::Child) {
        let process = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let (helper, socket, log) = of(&process);
        (helper, socket, log, process)
    }

    fn of(process: &std::process::Child) -> (crate::monitor::Agent, OwnedFd, OwnedFd) {
        let pid = Pid::from_raw(i32::try_from(process.id()).expect("a pid"));
        let pidfd = pidfd_open(pid).expect("pidfd");
        let (link, socket) = ipc::agent_pair().expect("pair");
        let (log, log_socket) = scm::seqpacket_pair().expect("pair");
        let helper = Helper::new(Role::NsAgent, Child { pid, pidfd }, link, log);
        (helper, socket, log_socket)
    }

    #[test]
    fn the_end_of_the_log_is_remembered() {
        let (mut helper, _socket, log, mut process) = silent();
        scm::try_send(log.as_fd(), b"\x03line").expect("send");
        helper.relay_log();
        assert!(helper.log().is_some(), "nothing more to read is no end");
        drop(log);
        helper.relay_log();
        assert!(helper.log().is_none());
        process.kill().expect("kill");
        process.wait().expect("wait");
    }

    #[test]
    fn one_that_may_end_is_given_the_time_to() {
        for (may_end, code) in [(true, 0), (false, 1)] {
            let process = std::process::Command::new("sleep").arg("0.4").spawn();
            let (mut helper, socket, _log) = of(&process.expect("sleep"));
            helper = helper.ending(may_end);
            drop(socket);
            assert!(matches!(helper.receive(), Ok(Heard::End)));
            assert_eq!(helper.ended(), code);
        }
    }

    #[test]
    fn a_closed_channel_ends_it_even_if_the_process_lives_on() {
        let (mut helper, socket, _log, mut process) = silent();
        drop(socket);
        assert!(matches!(helper.receive(), Ok(Heard::End)));
        assert!(helper.link.is_none());
        let before = Instant::now();
        assert_eq!(helper.ended(), 1);
        assert!(before.elapsed() >= super::super::GRACE);
        process.kill().expect("kill");
        process.wait().expect("wait");
    }
}
