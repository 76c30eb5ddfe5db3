//! The process that handles what the guest and the network send: all translation, no privilege.
//!
//! It is born by fork, allocates everything it will ever need ([`Forwarder::prepare`]), is confined by the
//! sandbox stages, and only then ([`Forwarder::run`], which demands the proof of confinement) tells the monitor
//! that it is ready, waits for "go" and reads its first byte from the guest. After that it allocates nothing (but for the
//! tables of a machine's memory, from what was set aside), opens nothing and waits for nobody: connect(2) and socket(2) for INET families are all the reach it has. Listening
//! sockets, and sockets of the namespace, are given to it.
//!
//! | file | question it answers |
//! |---|---|
//! | `run` | what happens in one wake-up? |
//! | `worker` | where does a frame from the guest go? |
//! | `host`, `*_io` | how does a decision of the TCP, UDP or ICMP engine become a system call? |
//! | `summary` | what does `--trace` say about a packet? |
//! | `direct` | how does data get from a socket into the guest's memory? |
//! | `guest` | who is at the other end of a socket? |
//! | `accept` | what happens to a connection from outside? |
//! | `ports` | which listener belongs to which rule, and where does it lead? |
//! | `supply`, `pool` | where do listeners and sockets of the namespace come from? |
//! | `report` | what does `pesto` get to see? |
//! | `neighbours` | which addresses are at another link-layer address than ours? |
//! | `token` | what does an epoll event refer to? |
//! | `patience` | when does the worker stay awake for a moment? |
//! | `pace` | when does it let frames gather instead? |
//!
//! A [`worker::Worker`] owns all it touches: tap queue, event set, flow tables, buffers. Several of them would
//! need no lock between them.
//!
//! It ends when the monitor does (end of file on their socket pair) or when the tap fails; it must never end for
//! anything a guest or a peer sends, nor for want of descriptors or memory.

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

mod accept;
mod advertise;
mod conntrack;
mod direct;
mod guest;
mod host;
mod icmp_io;
mod link;
mod neighbours;
mod pace;
mod patience;
mod pool;
mod ports;
mod report;
mod run;
mod splice_io;
mod summary;
mod supply;
mod syn;
mod tcp_io;
#[cfg(test)]
mod testing;
mod token;
mod udp_io;
mod worker;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use self::guest::Guest;
use self::patience::Patience;
use self::run::Clock;
use self::token::Token;
use self::worker::Worker;
use crate::config::Config;
use crate::ipc::{ForwarderLink, IpcError};
use crate::pcap::Pcap;
use crate::sandbox::Confined;
use crate::sys::shared;
use crate::sys::tun::Offloads;
use crate::tap::tun::Tun;
use crate::tap::{Gone, Tap};

/// Why the forwarder could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    /// epoll could not be set up.
    #[error("Can't set up event polling")]
    Poll(#[source] io::Error),
    /// The capture file could not be written.
    #[error("Can't write to packet capture file")]
    Pcap(#[source] io::Error),
    /// Waiting for events failed.
    #[error("Waiting for events failed")]
    Wait(#[source] io::Error),
    /// There is no way to notice that the guest's memory goes away.
    #[error("Can't set up a signal handler")]
    Memory(#[source] io::Error),
    /// The tap is gone.
    #[error("The tap was {0}")]
    Tap(Gone),
    /// Whoever was to be the guest is gone before the start.
    #[error("The guest's connection was {0}")]
    Guest(Gone),
    /// The monitor said something unexpected, or died before "go".
    #[error("Lost the monitor")]
    Monitor(#[source] IpcError),
    /// The ns-agent said something unexpected.
    #[error("Lost the ns-agent")]
    Agent(#[source] IpcError),
}

/// Where the guest is.
#[derive(Debug)]
pub enum LinkPlan {
    /// Behind a kernel tap, non-blocking, with these offloads set.
    Tun(OwnedFd, Offloads),
    /// Nowhere: there are only the loopbacks (`--splice-only`).
    Off,
    /// At the other end of a UNIX stream socket.
    Socket {
        /// The socket carries vhost-user messages, not frames.
        vhost_user: bool,
        /// The first guest is the last.
        one_off: bool,
        /// How it gets there.
        from: From,
    },
}

/// How a guest on a socket gets there. All descriptors are non-blocking.
#[derive(Debug)]
pub enum From {
    /// It connects to this.
    Listener(OwnedFd),
    /// It is connected.
    Connected(OwnedFd),
}

/// What the forwarder starts with.
#[derive(Debug)]
pub struct Inherited {
    /// Where the guest is.
    pub link: LinkPlan,
    /// Our end of the pair with the monitor.
    pub control: OwnedFd,
    /// Our end of the pair with the ns-agent; `None` in passt mode.
    pub agent: Option<OwnedFd>,
    /// The capture file (`-p`).
    pub pcap: Option<OwnedFd>,
    /// Random bytes for the keyed hash and initial sequence numbers.
    pub seed: [u8; 16],
    /// Most descriptors this process may have open.
    pub nofile: u64,
}

/// The forwarder, ready to run.
#[derive(Debug)]
pub struct Forwarder {
    link: ForwarderLink,
    clock: Clock,
    patience: Patience,
    worker: Worker,
}

impl Forwarder {
    /// Allocate and register everything. To be called before confinement.
    ///
    /// # Errors
    /// epoll or the capture file cannot be set up, or whoever has the listeners is gone.
    pub fn prepare(config: Config, inherited: Inherited) -> Result<Self, ForwarderError> {
        let poll = |e: nix::Error| ForwarderError::Poll(e.into());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(poll)?;
        let link = ForwarderLink::new(inherited.control);
        let (tap, guest, connected) = link_of(inherited.link);
        if matches!(tap, Tap::VhostUser(_)) {
            shared::end_when_memory_goes().map_err(ForwarderError::Memory)?;
        }
        let register = |fd: std::os::fd::BorrowedFd<'_>, token: Token| {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.to_raw()))
        };
        register(link.as_fd(), Token::Monitor).map_err(poll)?;
        if let Some(fd) = tap.as_fd() {
            register(fd, Token::Tap).map_err(poll)?;
        }
        if let Some(fd) = guest.listener() {
            register(fd, Token::Caller).map_err(poll)?;
        }
        let agent = supply::link(inherited.agent);
        if let Some(agent) = &agent {
            register(agent.as_fd(), Token::Agent).map_err(poll)?;
        }
        let pcap = match inherited.pcap {
            Some(fd) => Pcap::start(fd).map_err(ForwarderError::Pcap)?,
            None => Pcap::off(),
        };
        let mut worker = Worker::new(config, tap, epoll, pcap, inherited.seed, inherited.nofile);
        worker.agent = agent;
        worker.guest = guest;
        worker.keep_reserve();
        if let Some(client) = connected {
            worker.connect(client).map_err(ForwarderError::Guest)?;
        }
        worker.stock_up(&link).map_err(ForwarderError::Monitor)?;
        Ok(Self {
            link,
            clock: Clock::start(),
            patience: Patience::default(),
            worker,
        })
    }

    /// Report readiness, wait for the monitor's "go", then carry traffic until the monitor goes away.
    ///
    /// # Errors
    /// See [`ForwarderError`]; end of file from the monitor after "go" is success.
    ///
    /// Takes a reference because nothing may be freed after confinement: giving memory back is a system
    /// call the filter forbids.
    pub fn run(&mut self, confined: &Confined) -> Result<(), ForwarderError> {
        let ready = self.link.ready(confined.achieved().bits());
        match ready.and_then(|()| self.link.wait_go()) {
            // It has given up before anything began, and it has said why.
            Err(IpcError::Closed) => return Ok(()),
            other => other.map_err(ForwarderError::Monitor)?,
        }
        let now = self.clock.now();
        self.worker.begin(now);
        match self.worker.ask(now, &self.link) {
            Err(IpcError::Closed) => return Ok(()),
            other => other.map_err(ForwarderError::Monitor)?,
        }
        self.event_loop()
    }
}

/// The link, who may connect to it, and who is connected already.
fn link_of(plan: LinkPlan) -> (Tap, Guest, Option<OwnedFd>) {
    match plan {
        LinkPlan::Tun(fd, offloads) => {
            let offloads = crate::tap::Offloads {
                tso: offloads.csum && offloads.tso4 && offloads.tso6,
                uso: offloads.csum && offloads.uso,
            };
            let tap = Tap::Tun(Tun::new(fd, offloads));
            (tap, Guest::new(None, false), None)
        }
        LinkPlan::Off => (Tap::Off, Guest::new(None, false), None),
        LinkPlan::Socket {
            vhost_user,
            one_off,
            from,
        } => {
            let (listener, connected) = match from {
                From::Listener(fd) => (Some(fd), None),
                From::Connected(fd) => (None, Some(fd)),
            };
            let tap = Tap::for_socket(vhost_user);
            (tap, Guest::new(listener, one_off), connected)
        }
    }
}
