//! Messages of the vhost-user protocol as bytes: what no well-behaved library would send.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_LOG_FD: u32 = 7;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SEND_RARP: u32 = 19;
pub const GET_CONFIG: u32 = 24;
pub const POSTCOPY_ADVISE: u32 = 28;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const ADD_MEM_REG: u32 = 37;
pub const SET_DEVICE_STATE_FD: u32 = 42;

/// Flags of an ordinary request: version 1.
pub const V1: u32 = 1;

/// Header and payload; `size` may lie.
pub fn bytes(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 + payload.len());
    for word in [request, flags, size] {
        out.extend(word.to_ne_bytes());
    }
    out.extend(payload);
    out
}

/// An honest message.
pub fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("short");
    bytes(request, V1, size, payload)
}

/// The payload of the requests about a ring.
pub fn state(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// The payload of SET_VRING_ADDR.
pub fn addresses(index: u32, flags: u32, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    let mut out = state(index, flags);
    for word in [desc, used, avail, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}

/// A memory table of (physical, size, user, offset).
pub fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).expect("few");
    let mut out = [count.to_ne_bytes(), [0; 4]].concat();
    for word in regions.iter().flatten() {
        out.extend(word.to_ne_bytes());
    }
    out
}

/// Sends all bytes, with descriptors on the first of them.
pub fn send(socket: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let mut done = 0;
    while done < bytes.len() {
        let control = if done == 0 { control } else { &[] };
        done += sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&bytes[done..])],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
    }
    Ok(())
}

/// Reads whatever comes until the other side closes; false if it does not within `limit`.
pub fn closes(socket: &UnixStream, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    let mut buffer = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        socket.set_read_timeout(Some(left)).expect("a timeout");
        match (&*socket).read(&mut buffer) {
            Ok(0) => return true,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return true,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Sends one u64 request and reads the answer: is there somebody who serves this connection?
pub fn answers(socket: &UnixStream) -> bool {
    if send(socket, &message(GET_FEATURES, &[]), &[]).is_err() {
        return false;
    }
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a timeout");
    let mut reply = [0; 20];
    (&*socket).read_exact(&mut reply).is_ok()
}
