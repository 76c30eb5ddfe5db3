//! The event loop of one worker.
//!
//! One wake-up is one *round*: handle what epoll reported, then expired timers, then whatever the engines put
//! off to the end of the round (one acknowledgement per flow, say). What follows is a look for more, sleep, or a rest in which
//! frames gather (`patience`, `pace`). The clock is read once per round, and once before a wait. Timers
//! need no descriptor: the time until the next deadline is the time-out of epoll_wait(2), so an idle
//! worker makes no system call at all, and a busy one none for its timers.
//!
//! The tap is watched level-triggered and read up to a budget per round, so sockets get their turn however fast
//! the guest is; sockets are read by their engines up to budgets of theirs.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};

use super::guest::After;
use super::pace::Pace;
use super::patience;
use super::token::Token;
use super::worker::Worker;
use super::{Forwarder, ForwarderError};
use crate::clock::Instant;
use crate::ipc::{Descriptors, IpcError, Supply, ToForwarder};
use crate::tcp;
use crate::udp;

/// Most events fetched at once.
const EVENTS: usize = 64;
/// Messages of the monitor read in one go.
const MESSAGES: usize = 16;

/// CLOCK_MONOTONIC, from the start of the process.
#[derive(Debug)]
pub(super) struct Clock(std::time::Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(super) fn now(&self) -> Instant {
        Instant::default() + self.0.elapsed()
    }
}

/// How long epoll may sleep until `deadline`: rounded up, so that it is due on waking.
fn sleep_until(deadline: Option<Instant>, now: Instant) -> EpollTimeout {
    let Some(at) = deadline else {
        return EpollTimeout::NONE;
    };
    let left = at.since(now).saturating_add(Duration::from_micros(999));
    // A deadline farther away than epoll can sleep is looked at again on the way.
    let ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
    EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX)
}

impl Forwarder {
    /// Handle events until the monitor is gone.
    pub(super) fn event_loop(&mut self) -> Result<(), ForwarderError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut handled = 0;
        loop {
            let n = match self.wait(&mut events, handled) {
                Ok(n) => n,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(ForwarderError::Wait(e.into())),
            };
            let now = self.clock.now();
            if self.worker.look_again(now)? == After::End {
                return Ok(());
            }
            let mut after = After::Next;
            for event in events.iter().take(n) {
                match Token::from_raw(event.data()) {
                    Some(Token::Monitor) => match self.monitor_spoke(now)? {
                        true => {}
                        false => return Ok(()),
                    },
                    Some(Token::Agent) => match self.worker.on_agent(now) {
                        Ok(()) => {}
                        Err(e) => return Err(ForwarderError::Agent(e)),
                    },
                    Some(Token::Tap) => after = self.worker.on_link(now, event.events())?,
                    Some(Token::Kick(ring)) => after = self.worker.on_kick(now, ring)?,
                    Some(token) => self.worker.on_socket(now, token, event.events()),
                    None => {}
                }
                if after == After::End {
                    return Ok(());
                }
            }
            self.worker.end_round(now);
            let pace = self.worker.host.link.end_round(now, self.worker.more);
            handled = if self.worker.splice.take_bulk() || pace != Pace::Prompt {
                usize::MAX
            } else {
                n
            };
            match self.worker.ask(now, &self.link) {
                Ok(()) => {}
                Err(IpcError::Closed) => return Ok(()),
                Err(e) => return Err(ForwarderError::Monitor(e)),
            }
            if let Pace::Rest(time) = pace {
                // Nothing depends on how long it takes: a signal may cut it short.
                let flags = ClockNanosleepFlags::empty();
                let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, flags, &time.into());
            }
        }
    }

    /// Wait for events: a moment awake where that has paid off, then asleep until the next deadline.
    fn wait(&mut self, events: &mut [EpollEvent], handled: usize) -> nix::Result<usize> {
        let start = self.clock.now();
        self.worker.host.link.pacer.idle(start);
        let epoll = &self.worker.host.epoll;
        let deadline = self.worker.next_deadline();
        let time = deadline.is_none_or(|at| at > start + patience::LIMIT);
        if handled > 0 && time && self.patience.worth_it(handled) {
            while self.clock.now().since(start) < patience::LIMIT {
                let n = epoll.wait(events, EpollTimeout::ZERO)?;
                if n > 0 {
                    self.patience.learn(true);
                    return Ok(n);
                }
            }
            self.patience.learn(false);
        }
        epoll.wait(events, sleep_until(deadline, start))
    }

    /// The monitor has something to say. `false`: it is closing down, or gone.
    fn monitor_spoke(&mut self, now: Instant) -> Result<bool, ForwarderError> {
        let mut fds = Descriptors::new();
        for _ in 0..MESSAGES {
            match self.link.try_receive(&mut fds) {
                Ok(None) => return Ok(true),
                Ok(Some(ToForwarder::Supply(Supply::Settle))) => self.worker.owes.monitor = true,
                Ok(Some(ToForwarder::Supply(supply))) => {
                    self.worker.supplied(now, supply, &mut fds);
                }
                Ok(Some(ToForwarder::Neighbour(n))) => self.worker.host.hear_of_neighbour(&n),
                Ok(Some(ToForwarder::Report)) => {
                    if let Some(to) = fds.pop() {
                        self.worker.begin_report(now, to);
                    }
                }
                Ok(Some(ToForwarder::Go)) => {
                    return Err(ForwarderError::Monitor(IpcError::Malformed));
                }
                Err(IpcError::Lost(supply)) => self.worker.lost(now, supply),
                Err(IpcError::Closed) => return Ok(false),
                Err(e) => return Err(ForwarderError::Monitor(e)),
            }
        }
        Ok(true)
    }
}

impl Worker {
    /// A flow's socket has news.
    fn on_socket(&mut self, now: Instant, token: Token, what: EpollFlags) {
        let error = what.contains(EpollFlags::EPOLLERR);
        let readable = what.contains(EpollFlags::EPOLLIN);
        match token {
            Token::Tcp(id) => {
                let readiness = tcp::Readiness {
                    readable,
                    writable: what.contains(EpollFlags::EPOLLOUT),
                    error,
                    hup: what.contains(EpollFlags::EPOLLHUP),
                    rdhup: what.contains(EpollFlags::EPOLLRDHUP),
                    urgent: what.contains(EpollFlags::EPOLLPRI),
                };
                self.tcp.on_socket(&mut self.host, now, id, readiness);
            }
            Token::Splice(id, end) => {
                let readiness = tcp::splice::Readiness {
                    readable,
                    writable: what.contains(EpollFlags::EPOLLOUT),
                    urgent: what.contains(EpollFlags::EPOLLPRI),
                    hup: what.intersects(EpollFlags::EPOLLHUP.union(EpollFlags::EPOLLRDHUP)),
                    error,
                };
                self.splice
                    .on_socket(&mut self.host, now, id, end, readiness);
            }
            Token::Udp(id) => {
                self.udp.on_socket(
                    &mut self.host,
                    now,
                    id,
                    udp::io::Readiness { readable, error },
                );
            }
            Token::Icmp(id) => {
                self.icmp.on_socket(
                    &mut self.host,
                    now,
                    id,
                    udp::io::Readiness { readable, error },
                );
            }
            Token::TcpListener(index) => self.on_listener(now, index),
            Token::UdpListener(index) => {
                if let Some(id) = self.host.ports.udp(index) {
                    let readiness = udp::io::Readiness { readable, error };
                    self.udp.on_listener(&mut self.host, now, id, readiness);
                }
            }
            Token::Report => self.on_report(now),
            Token::Caller => self.on_caller(now),
            Token::Tap | Token::Kick(_) | Token::Monitor | Token::Agent => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_never_ends_before_the_deadline() {
        let now = Instant(5_000);
        assert_eq!(sleep_until(None, now), EpollTimeout::NONE);
        for (at, ms) in [
            (0, 0),
            (5_000, 0),
            (5_001, 1),
            (6_000, 1),
            (6_001, 2),
            (u64::MAX, i32::MAX),
        ] {
            assert_eq!(
                sleep_until(Some(Instant(at)), now),
                EpollTimeout::try_from(ms).unwrap(),
                "{at}"
            );
        }
    }
}
