//! Descriptors beside messages: exactly the expected number or an error.
//!
//! A receiver that is out of descriptors sees `MSG_CTRUNC` and fewer of them than were sent. There is no way
//! to know which are missing, so that is an error and never a guess.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::IpcError;
use super::codec::MAX_MESSAGE;
use crate::sys::scm;

/// Receive one message into `buf` together with exactly one descriptor if `expect` says so, or none.
/// `Ok(None)` is end of file.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buf: &mut [u8; MAX_MESSAGE],
) -> Result<Option<(usize, Option<OwnedFd>)>, IpcError> {
    let mut received = scm::recv(socket, buf)?;
    if received.truncated_data {
        return Err(IpcError::Malformed);
    }
    if received.truncated_fds || received.fds.len() > 1 {
        return Err(IpcError::Descriptors);
    }
    match (received.len, received.fds.pop()) {
        (0, None) => Ok(None),
        (0, Some(_)) => Err(IpcError::Malformed),
        (len, fd) => Ok(Some((len, fd))),
    }
}
