//! The two ends of each pair, with types that say who may send what.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{self, MAX_MESSAGE};
use super::fds;
use super::message::{FromAgent, FromForwarder, ToAgent, ToForwarder};
use crate::sys::scm;

/// Why a channel cannot be used any further. There is no recovery: whoever sees one of these ends.
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
}

/// One end: sends `S`, receives `R`.
#[derive(Debug)]
struct Channel<S, R> {
    socket: OwnedFd,
    direction: PhantomData<fn(S) -> R>,
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            direction: PhantomData,
        }
    }

    fn send(&self, message: &S, fd: Option<BorrowedFd<'_>>) -> Result<(), IpcError> {
        let mut buf = [0; MAX_MESSAGE];
        let n = codec::encode(message, &mut buf).map_err(|_| IpcError::Malformed)?;
        let bytes = buf.get(..n).ok_or(IpcError::Malformed)?;
        match fd {
            None => scm::send(self.socket.as_fd(), bytes)?,
            Some(fd) => scm::send_with_fd(self.socket.as_fd(), bytes, fd)?,
        }
        Ok(())
    }

    /// Wait for the next message; `None` at end of file.
    fn receive(&self) -> Result<Option<(R, Option<OwnedFd>)>, IpcError> {
        let mut buf = [0; MAX_MESSAGE];
        let Some((n, fd)) = fds::receive(self.socket.as_fd(), &mut buf)? else {
            return Ok(None);
        };
        let bytes = buf.get(..n).ok_or(IpcError::Malformed)?;
        let message = codec::decode(bytes).map_err(|_| IpcError::Malformed)?;
        Ok(Some((message, fd)))
    }

    /// Wait for the next message of a kind that never comes with a descriptor.
    fn receive_plain(&self) -> Result<R, IpcError> {
        match self.receive()? {
            None => Err(IpcError::Closed),
            Some((_, Some(_))) => Err(IpcError::Descriptors),
            Some((message, None)) => Ok(message),
        }
    }
}

/// The forwarder's end of its pair.
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
        self.0.send(&FromForwarder::Ready { confinement }, None)
    }

    /// Block until the monitor says go. [`IpcError::Closed`]: it died or gave up.
    pub fn wait_go(&self) -> Result<(), IpcError> {
        let ToForwarder::Go = self.0.receive_plain()?;
        Ok(())
    }

    /// The monitor has something to say after go: so far that can only be its end.
    ///
    /// Call it when the socket polls readable; blocks otherwise. The error is the reason to exit:
    /// [`IpcError::Closed`] is the orderly one.
    pub fn closed(&self) -> IpcError {
        match self.0.receive_plain() {
            Ok(ToForwarder::Go) => IpcError::Malformed,
            Err(e) => e,
        }
    }
}

impl AsFd for ForwarderLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// The ns-agent's end of its pair.
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
        self.0.send(&message, fd)
    }

    /// Block until the channel ends; the error says how: [`IpcError::Closed`] is the orderly end.
    pub fn wait_end(&self) -> IpcError {
        match self.0.receive_plain() {
            Ok(nothing) => match nothing {},
            Err(e) => e,
        }
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

impl<S: Serialize, R: DeserializeOwned> MonitorEnd<S, R> {
    /// Send `message`.
    pub fn send(&self, message: &S) -> Result<(), IpcError> {
        self.0.send(message, None)
    }

    /// Block for the next message and the descriptor that came with it, if one did.
    pub fn receive(&self) -> Result<(R, Option<OwnedFd>), IpcError> {
        self.0.receive()?.ok_or(IpcError::Closed)
    }

    /// Block for the next message; a descriptor with it is an error.
    pub fn receive_plain(&self) -> Result<R, IpcError> {
        self.0.receive_plain()
    }
}

impl<S, R> AsFd for MonitorEnd<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// A pair for the forwarder: the monitor's end and the socket the forwarder makes its link of.
pub fn forwarder_pair() -> Result<(MonitorEnd<ToForwarder, FromForwarder>, OwnedFd), IpcError> {
    let (ours, theirs) = scm::seqpacket_pair()?;
    Ok((MonitorEnd(Channel::new(ours)), theirs))
}

/// A pair for the ns-agent: the monitor's end and the socket the ns-agent makes its link of.
pub fn agent_pair() -> Result<(MonitorEnd<ToAgent, FromAgent>, OwnedFd), IpcError> {
    let (ours, theirs) = scm::seqpacket_pair()?;
    Ok((MonitorEnd(Channel::new(ours)), theirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::message::TapReport;

    #[test]
    fn ready_and_go_cross_over() {
        let (monitor, socket) = forwarder_pair().expect("pair");
        let link = ForwarderLink::new(socket);
        link.ready(5).expect("send");
        assert_eq!(
            monitor.receive_plain().expect("receive"),
            FromForwarder::Ready { confinement: 5 }
        );
        monitor.send(&ToForwarder::Go).expect("send");
        link.wait_go().expect("go");
        drop(monitor);
        assert!(matches!(link.closed(), IpcError::Closed));
    }

    #[test]
    fn a_second_go_is_malformed() {
        let (monitor, socket) = forwarder_pair().expect("pair");
        let link = ForwarderLink::new(socket);
        monitor.send(&ToForwarder::Go).expect("send");
        assert!(matches!(link.closed(), IpcError::Malformed));
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
            monitor.receive_plain(),
            Err(IpcError::Descriptors)
        ));
    }

    #[test]
    fn oversized_and_empty_datagrams_end_the_channel() {
        let (monitor, socket) = forwarder_pair().expect("pair");
        scm::send(socket.as_fd(), &[0; MAX_MESSAGE + 1]).expect("send");
        assert!(matches!(monitor.receive_plain(), Err(IpcError::Malformed)));
        scm::send(socket.as_fd(), &[]).expect("send");
        assert!(matches!(monitor.receive_plain(), Err(IpcError::Closed)));
    }
}
