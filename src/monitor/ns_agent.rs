//! The ns-agent's life once its namespace is set up: it answers.
//!
//! The forwarder asks for sockets of this network, the monitor says what has changed on the host. Both are answered in
//! the order they ask, a few messages at a time, so that neither can keep the other waiting.
//!
//! It ends when the monitor does, and when either says something it must not say. The end of the forwarder is not
//! its own: the monitor decides what follows from that.
//!
//! What must never happen: a socket that is bound or listening without a rule for it.

use std::convert::Infallible;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};

use super::pool;
use crate::ipc::{AgentLink, FromAgent, IpcError, Request, SupplierEnd};
use crate::sandbox::Confined;

/// Messages taken from one side before the other has its turn.
const AT_ONCE: usize = 16;

/// The ns-agent, everything open.
#[derive(Debug)]
pub struct NsAgent {
    /// Its end of the pair with the monitor.
    pub link: AgentLink,
    /// Its end of the pair with the forwarder; `None` once that is gone.
    pub forwarder: Option<SupplierEnd>,
}

impl NsAgent {
    /// Say that we are confined, which the proof shows, then serve until the end; the error is its reason.
    /// [`IpcError::Closed`] is the orderly one.
    ///
    /// # Errors
    /// Always one.
    pub fn run(&mut self, confined: &Confined) -> Result<Infallible, IpcError> {
        let ready = FromAgent::Ready {
            confinement: confined.achieved().bits(),
        };
        self.link.send(ready, None)?;
        loop {
            let (monitor, forwarder) = self.wait()?;
            if monitor {
                self.hear_monitor()?;
            }
            if forwarder {
                self.hear_forwarder()?;
            }
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
        match ppoll(&mut table, None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(std::io::Error::from(e).into()),
        }
        let [monitor, forwarder] =
            table.map(|entry| entry.revents().is_some_and(|r| !r.is_empty()));
        Ok((monitor, forwarder && self.forwarder.is_some()))
    }

    fn hear_monitor(&self) -> Result<(), IpcError> {
        match self.link.try_receive()? {
            None => Ok(()),
            Some(_) => Err(IpcError::Malformed),
        }
    }

    fn hear_forwarder(&mut self) -> Result<(), IpcError> {
        for _ in 0..AT_ONCE {
            let Some(end) = &self.forwarder else {
                return Ok(());
            };
            let answered = match end.try_receive() {
                Ok(None) => return Ok(()),
                Ok(Some(Request::Sockets(kind))) => {
                    pool::supply(kind, |supply, fds| end.send(supply, fds))
                }
                Ok(Some(Request::Listener { .. })) => Err(IpcError::Malformed),
                Err(e) => Err(e),
            };
            match answered {
                Ok(()) => {}
                Err(IpcError::Closed) => self.forwarder = None,
                Err(e) if is_gone(&e) => self.forwarder = None,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// It was there a moment ago.
fn is_gone(e: &IpcError) -> bool {
    matches!(e, IpcError::Io(e) if e.raw_os_error() == Some(libc::EPIPE))
}
