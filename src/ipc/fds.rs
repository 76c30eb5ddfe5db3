//! Descriptors beside messages: exactly as many as the message says, or an error.
//!
//! A receiver that is out of descriptors sees `MSG_CTRUNC` and fewer of them than were sent. There is no way
//! to know which are missing, so those that came are closed, and the type of the message decides what it means
//! without any: the forwarder may ask again for listeners and sockets ([`IpcError::Lost`]); anything else ends
//! the channel.

use std::os::fd::BorrowedFd;

use super::codec::{self, MAX_MESSAGE};
use super::message::{Lost, Parcel};
use super::{Descriptors, IpcError};
use crate::sys::scm;

/// Receive one message, its descriptors into `fds`. Without `wait`, `None` if there is nothing now.
/// [`IpcError::Closed`] is end of file.
pub(super) fn receive<M: Parcel>(
    socket: BorrowedFd<'_>,
    fds: &mut Descriptors,
    wait: bool,
) -> Result<Option<M>, IpcError> {
    let mut buf = [0; MAX_MESSAGE];
    let received = match scm::recv(socket, &mut buf, fds, wait) {
        Err(e) if !wait && e.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
        // It has gone without having read everything.
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Err(IpcError::Closed),
        other => other?,
    };
    let result = judge(buf.get(..received.len), &received, fds);
    if result.is_err() {
        fds.clear();
    }
    result.map(Some)
}

fn judge<M: Parcel>(
    bytes: Option<&[u8]>,
    received: &scm::Received,
    fds: &mut Descriptors,
) -> Result<M, IpcError> {
    if received.truncated_data {
        return Err(IpcError::Malformed);
    }
    if received.len == 0 && fds.is_empty() && !received.truncated_fds {
        return Err(IpcError::Closed);
    }
    let message: M = codec::decode(bytes.unwrap_or_default()).map_err(|_| IpcError::Malformed)?;
    let expected = message.descriptors().ok_or(IpcError::Malformed)?;
    if !received.truncated_fds {
        return match fds.len() {
            n if n == expected => Ok(message),
            _ => Err(IpcError::Descriptors),
        };
    }
    fds.clear();
    match message.lost() {
        // Too many were sent, and that is not our doing.
        _ if expected == 0 => Err(IpcError::Descriptors),
        None => Err(IpcError::Descriptors),
        Some(Lost::Still(message)) => Ok(message),
        Some(Lost::Supply(supply)) => Err(IpcError::Lost(supply)),
    }
}
