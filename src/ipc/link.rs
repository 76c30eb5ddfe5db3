//! The two ends of each pair, with types that say who may send what.
//!
//! Monitor and ns-agent send to the forwarder by waiting for room, at most seconds (see `scm::command_pair`): a
//! forwarder that has stopped reading is broken. The forwarder never waits: [`ForwarderLink::request`].

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::Serialize;

use super::Descriptors;
use super::codec::{self, MAX_MESSAGE};
use super::fds;
use super::message::{FromAgent, FromForwarder, Parcel, Request, Supply, ToAgent, ToForwarder};
use crate::sys::scm;

/// Why a channel cannot be used any further. There is no recovery, whoever sees one of these ends; only
/// [`IpcError::Lost`] is an incident.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The kernel refused.
    #[error("Channel between our processes failed")]
    Io(#[from] io::Error),
    /// The other side is gone.
    #[error("Channel between our processes was closed by the other side")]
    Closed,
    /// Bytes that are no message of this direction.
    #[error("Malformed message between our processes")]
    Malformed,
    /// Missing, surplus or lost descriptors.
    #[error("Wrong number of descriptors with a message between our processes")]
    Descriptors,
    /// The receiver was out of descriptors, so this came without its own; all of them are closed. The channel goes
    /// on: ask again later.
    #[error("Out of descriptors")]
    Lost(Supply),
}

/// How often, at most, and how long a sender waits for descriptors on their way to arrive: 10 s in all.
const IN_FLIGHT_TRIES: u32 = 5000;
/// See [`IN_FLIGHT_TRIES`].
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(2);

/// A send to somebody who is gone is the end of the channel and no incident.
fn failed(e: io::Error) -> IpcError {
    match e.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET) => IpcError::Closed,
        _ => e.into(),
    }
}

/// One end: sends `S`, receives `R`.
#[derive(Debug)]
struct Channel<S, R> {
    socket: OwnedFd,
    direction: PhantomData<fn(S) -> R>,
}

impl<S: Serialize, R: Parcel> Channel<S, R> {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            direction: PhantomData,
        }
    }

    fn send(&self, message: &S, fds: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        let mut buf = [0; MAX_MESSAGE];
        let n = codec::encode(message, &mut buf).map_err(|_| IpcError::Malformed)?;
        let bytes = buf.get(..n).ok_or(IpcError::Malformed)?;
        if fds.is_empty() {
            return scm::send(self.socket.as_fd(), bytes).map_err(failed);
        }
        // All processes of a user together may have no more on their way than one may have open (ETOOMANYREFS).
        for _ in 0..IN_FLIGHT_TRIES {
            match scm::send_with_fds(self.socket.as_fd(), bytes, fds) {
                Err(e) if e.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    scm::pause(IN_FLIGHT_PAUSE);
                }
                other => return other.map_err(failed),
            }
        }
        Err(io::Error::from_raw_os_error(libc::ETOOMANYREFS).into())
    }

    /// Send unless there is no room; false then.
    fn try_send(&self, message: &S) -> Result<bool, IpcError> {
        let mut buf = [0; MAX_MESSAGE];
        let n = codec::encode(message, &mut buf).map_err(|_| IpcError::Malformed)?;
        let bytes = buf.get(..n).ok_or(IpcError::Malformed)?;
        match scm::try_send(self.socket.as_fd(), bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    /// Wait for the next message.
    fn receive(&self, fds: &mut Descriptors) -> Result<R, IpcError> {
        fds::receive(self.socket.as_fd(), fds, true)?.ok_or(IpcError::Closed)
    }

    fn try_receive(&self, fds: &mut Descriptors) -> Result<Option<R>, IpcError> {
        fds::receive(self.socket.as_fd(), fds, false)
    }

    /// Wait for the next message of a kind that never comes with a descriptor.
    fn receive_plain(&self) -> Result<R, IpcError> {
        let mut none = Descriptors::new();
        let message = self.receive(&mut none)?;
        if none.is_empty() {
            Ok(message)
        } else {
            Err(IpcError::Descriptors)
        }
    }
}

/// The forwarder's end of its pair with the monitor.
#[derive(Debug)]
pub struct ForwarderLink(Channel<FromForwarder, ToForwarder>);

impl ForwarderLink {
    /// Adopt the inherited socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(Channel::new(socket))
    }

    /// Tell the monitor that we are confined; `confinement` are the bits of `sandbox::Achieved`.
    pub fn ready(&self, confinement: u32) -> Result<(), IpcError> {
        self.0.send(&FromForwarder::Ready { confinement }, &[])
    }

    /// Block until the monitor says go. [`IpcError::Closed`]: it died or gave up.
    pub fn wait_go(&self) -> Result<(), IpcError> {
        match self.0.receive_plain()? {
            ToForwarder::Go => Ok(()),
            ToForwarder::Supply(_) | ToForwarder::Neighbour(_) | ToForwarder::Report => {
                Err(IpcError::Malformed)
            }
        }
    }

    /// Block for the next message of the start, up to [`Supply::Complete`].
    ///
    /// # Errors
    /// [`IpcError::Closed`]: the monitor died or gave up. [`IpcError::Lost`]: go on. Anything but a supply is
    /// malformed.
    pub fn receive_supply_blocking(&self, fds: &mut Descriptors) -> Result<Supply, IpcError> {
        match self.0.receive(fds)? {
            ToForwarder::Supply(supply) => Ok(supply),
            ToForwarder::Go | ToForwarder::Neighbour(_) | ToForwarder::Report => {
                Err(IpcError::Malformed)
            }
        }
    }

    /// The next message, `None` if there is none now. Its descriptors, as many as it says, are in `fds`.
    /// One call is one recvmsg(2); nothing is allocated.
    ///
    /// # Errors
    /// [`IpcError::Closed`]: the orderly end. [`IpcError::Lost`]: go on.
    pub fn try_receive(&self, fds: &mut Descriptors) -> Result<Option<ToForwarder>, IpcError> {
        self.0.try_receive(fds)
    }

    /// Ask for something; false: no room, try later. Never waits.
    ///
    /// # Errors
    /// The monitor is gone.
    pub fn request(&self, request: Request) -> Result<bool, IpcError> {
        self.0.try_send(&FromForwarder::Request(request))
    }
}

impl AsFd for ForwarderLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// The forwarder's end of its pair with the ns-agent.
#[derive(Debug)]
pub struct SupplyLink(Channel<Request, Supply>);

impl SupplyLink {
    /// Adopt the inherited socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(Channel::new(socket))
    }

    /// Block for the next message of the start, up to [`Supply::Complete`].
    ///
    /// # Errors
    /// [`IpcError::Closed`]: the ns-agent is gone. [`IpcError::Lost`]: go on.
    pub fn receive_supply_blocking(&self, fds: &mut Descriptors) -> Result<Supply, IpcError> {
        self.0.receive(fds)
    }

    /// As [`ForwarderLink::try_receive`].
    ///
    /// # Errors
    /// As [`ForwarderLink::try_receive`].
    pub fn try_receive(&self, fds: &mut Descriptors) -> Result<Option<Supply>, IpcError> {
        self.0.try_receive(fds)
    }

    /// As [`ForwarderLink::request`].
    ///
    /// # Errors
    /// The ns-agent is gone.
    pub fn request(&self, request: Request) -> Result<bool, IpcError> {
        self.0.try_send(&request)
    }
}

impl AsFd for SupplyLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// The ns-agent's end of its pair with the forwarder.
#[derive(Debug)]
pub struct SupplierEnd(Channel<Supply, Request>);

impl SupplierEnd {
    /// Adopt the inherited socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(Channel::new(socket))
    }

    /// Send, waiting for room.
    ///
    /// # Errors
    /// The forwarder is gone, or has not read for seconds.
    pub fn send(&self, supply: Supply, fds: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        self.0.send(&supply, fds)
    }

    /// The next request, `None` if there is none now.
    ///
    /// # Errors
    /// [`IpcError::Closed`]: the forwarder is gone. Anything else: it is not to be trusted.
    pub fn try_receive(&self) -> Result<Option<Request>, IpcError> {
        self.0.try_receive(&mut Descriptors::new())
    }
}

impl AsFd for SupplierEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// The ns-agent's end of its pair with the monitor.
#[derive(Debug)]
pub struct AgentLink(Channel<FromAgent, ToAgent>);

impl AgentLink {
    /// Adopt the inherited socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(Channel::new(socket))
    }

    /// Send `message`, and the tap with [`FromAgent::Tap`].
    pub fn send(&self, message: FromAgent, fd: Option<BorrowedFd<'_>>) -> Result<(), IpcError> {
        self.0.send(&message, fd.as_slice())
    }

    /// The next message, `None` if there is none now.
    ///
    /// # Errors
    /// [`IpcError::Closed`] is the orderly end.
    pub fn try_receive(&self) -> Result<Option<ToAgent>, IpcError> {
        self.0.try_receive(&mut Descriptors::new())
    }
}

impl AsFd for AgentLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// The monitor's end of either pair.
#[derive(Debug)]
pub struct MonitorEnd<S, R>(Channel<S, R>);

impl<S: Serialize, R: Parcel> MonitorEnd<S, R> {
    /// Send `message`, waiting for room.
    pub fn send(&self, message: &S) -> Result<(), IpcError> {
        self.0.send(message, &[])
    }

    /// Block for the next message and the descriptor that came with it, if one did.
    pub fn receive(&self) -> Result<(R, Option<OwnedFd>), IpcError> {
        let mut fds = Descriptors::new();
        let message = self.0.receive(&mut fds)?;
        Ok((message, fds.pop()))
    }

    /// The next message, `None` if there is none now; a descriptor with it is an error.
    ///
    /// # Errors
    /// [`IpcError::Closed`]: the other process is gone, or is about to be.
    pub fn try_receive(&self) -> Result<Option<R>, IpcError> {
        let mut fds = Descriptors::new();
        let message = self.0.try_receive(&mut fds)?;
        if fds.is_empty() {
            Ok(message)
        } else {
            Err(IpcError::Descriptors)
        }
    }
}

impl<R: Parcel> MonitorEnd<ToForwarder, R> {
    /// Send a supply and its descriptors, waiting for room.
    ///
    /// # Errors
    /// The forwarder is gone, or has not read for seconds.
    pub fn supply(&self, supply: Supply, fds: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        self.0.send(&ToForwarder::Supply(supply), fds)
    }

    /// Have a report written to `stream`.
    ///
    /// # Errors
    /// As [`MonitorEnd::supply`].
    pub fn report(&self, stream: BorrowedFd<'_>) -> Result<(), IpcError> {
        self.0.send(&ToForwarder::Report, &[stream])
    }
}

impl<S, R> AsFd for MonitorEnd<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// A pair for the forwarder: the monitor's end and the socket the forwarder makes its link of.
pub fn forwarder_pair() -> Result<(MonitorEnd<ToForwarder, FromForwarder>, OwnedFd), IpcError> {
    let (ours, theirs) = scm::command_pair()?;
    Ok((MonitorEnd(Channel::new(ours)), theirs))
}

/// A pair for the ns-agent: the monitor's end and the socket the ns-agent makes its link of.
pub fn agent_pair() -> Result<(MonitorEnd<ToAgent, FromAgent>, OwnedFd), IpcError> {
    let (ours, theirs) = scm::command_pair()?;
    Ok((MonitorEnd(Channel::new(ours)), theirs))
}

/// A pair between the ns-agent and the forwarder: the sockets for [`SupplierEnd`] and [`SupplyLink`].
pub fn supply_pair() -> Result<(OwnedFd, OwnedFd), IpcError> {
    Ok(scm::command_pair()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rules::RuleId;
    use crate::ipc::message::TapReport;

    #[test]
    fn ready_and_go_cross_over() {
        let (monitor, socket) = forwarder_pair().expect("pair");
        let link = ForwarderLink::new(socket);
        link.ready(5).expect("send");
        assert_eq!(
            monitor.0.receive_plain().expect("receive"),
            FromForwarder::Ready { confinement: 5 }
        );
        monitor.send(&ToForwarder::Go).expect("send");
        link.wait_go().expect("go");
        drop(monitor);
        assert!(matches!(link.wait_go(), Err(IpcError::Closed)));
    }

    #[test]
    fn go_is_no_supply_and_a_supply_no_go() {
        let (monitor, socket) = forwarder_pair().expect("pair");
        let link = ForwarderLink::new(socket);
        monitor.send(&ToForwarder::Go).expect("send");
        let received = link.receive_supply_blocking(&mut Descriptors::new());
        assert!(matches!(received, Err(IpcError::Malformed)));
        monitor.supply(Supply::Complete, &[]).expect("send");
        assert!(matches!(link.wait_go(), Err(IpcError::Malformed)));
    }

    #[test]
    fn a_descriptor_arrives_where_it_is_expected_and_only_there() {
        let (monitor, socket) = agent_pair().expect("pair");
        let agent = AgentLink::new(socket);
        let tap = FromAgent::Tap(TapReport {
            mac: [2; 6],
            index: 3,
            offloads: 0,
        });
        let (a, _b) = scm::seqpacket_pair().expect("pair");
        agent.send(tap, Some(a.as_fd())).expect("send");
        let (message, fd) = monitor.receive().expect("receive");
        assert_eq!(message, tap);
        assert!(fd.is_some());
        agent.send(tap, Some(a.as_fd())).expect("send");
        assert!(matches!(
            monitor.0.receive_plain(),
            Err(IpcError::Descriptors)
        ));
        agent.send(tap, None).expect("send");
        assert!(matches!(monitor.receive(), Err(IpcError::Descriptors)));
    }

    fn rule(n: u16) -> RuleId {
        RuleId(std::num::NonZeroU16::new(n).expect("not zero"))
    }

    #[test]
    fn a_supply_has_exactly_the_descriptors_it_names() {
        let (agent, forwarder) = supply_pair().expect("pair");
        let (agent, forwarder) = (SupplierEnd::new(agent), SupplyLink::new(forwarder));
        let listeners = |count| Supply::Listeners {
            rule: rule(7),
            offset: 3,
            count,
        };
        let fd = forwarder.as_fd();
        let mut fds = Descriptors::new();
        assert!(matches!(forwarder.try_receive(&mut fds), Ok(None)));
        for (named, sent) in [
            (1_u8, 1),
            (32, 32),
            (2, 1),
            (1, 2),
            (0, 0),
            (33, 32),
            (0, 1),
        ] {
            agent.send(listeners(named), &vec![fd; sent]).expect("send");
            let received = forwarder.try_receive(&mut fds);
            if usize::from(named) == sent && sent > 0 {
                assert_eq!(received.expect("valid"), Some(listeners(named)));
                assert_eq!(fds.len(), sent);
            } else {
                assert!(received.is_err(), "{named} {sent}");
                assert!(fds.is_empty());
            }
        }
        let none = Supply::Sockets {
            kind: super::super::SocketKind::Tcp6,
            count: 0,
        };
        agent.send(none, &[]).expect("send");
        assert_eq!(forwarder.try_receive(&mut fds).expect("valid"), Some(none));
        agent.send(none, &[fd]).expect("send");
        assert!(forwarder.try_receive(&mut fds).is_err());
        drop(agent);
        assert!(matches!(
            forwarder.try_receive(&mut fds),
            Err(IpcError::Closed)
        ));
    }

    #[test]
    fn a_request_that_finds_no_room_is_refused_and_not_waited_for() {
        let (agent, forwarder) = supply_pair().expect("pair");
        let (agent, forwarder) = (SupplierEnd::new(agent), SupplyLink::new(forwarder));
        let request = Request::Listener {
            rule: rule(1),
            offset: 0,
        };
        let mut sent = 0;
        while forwarder.request(request).expect("not closed") {
            sent += 1;
        }
        let mut received = 0;
        while let Some(r) = agent.try_receive().expect("valid") {
            assert_eq!(r, request);
            received += 1;
        }
        assert_eq!(sent, received);
        assert!(forwarder.request(request).expect("not closed"));
    }

    #[test]
    fn whoever_goes_without_having_read_everything_has_gone_in_order() {
        let (monitor, socket) = forwarder_pair().expect("pair");
        monitor.send(&ToForwarder::Go).expect("send");
        drop(socket);
        assert!(matches!(monitor.try_receive(), Err(IpcError::Closed)));
    }

    #[test]
    fn oversized_and_empty_datagrams_end_the_channel() {
        let (monitor, socket) = forwarder_pair().expect("pair");
        scm::send(socket.as_fd(), &[0; MAX_MESSAGE + 1]).expect("send");
        assert!(matches!(
            monitor.0.receive_plain(),
            Err(IpcError::Malformed)
        ));
        scm::send(socket.as_fd(), &[]).expect("send");
        assert!(matches!(monitor.0.receive_plain(), Err(IpcError::Closed)));
    }
}
