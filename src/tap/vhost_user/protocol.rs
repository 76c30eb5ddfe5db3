//! Messages of the frontend, read and answered without ever waiting (vhost-user specification, "Message
//! specification").
//!
//! What a message looks like is taken from the `vhost` crate; how it comes in is not. The crate's own reader goes on
//! until it has a whole message and its writer until all is written: with a frontend that sends half a message, or
//! never reads an answer, the worker would wait or spin for as long as that frontend likes. Here a [`Reader`] keeps
//! what has come so far, descriptors included, and an answer that does not fit in the socket's buffer ends the
//! connection.
//!
//! Nothing of a message is believed: lengths are checked against what the request takes, and a request that takes
//! no descriptor has those that came with it closed by being dropped.

use std::os::fd::{AsFd, OwnedFd};

use arrayvec::ArrayVec;
use nix::errno::Errno;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserMemory, VhostUserMemoryRegion, VhostUserMsgValidator,
};
use vm_memory::ByteValued;

use crate::sys::scm;
use crate::tap::Gone;

/// Most regions of guest memory, and so most descriptors, in one message.
pub const MAX_REGIONS: usize = 8;
/// `struct vhost_user_header`: request, flags, size of what follows; each 32 bits in native order.
const HEADER: usize = 12;
/// The longest body of a request that is answered here (SET_MEM_TABLE of [`MAX_REGIONS`]), with some room.
const MAX_BODY: usize = 512;

/// Bits of the header's flags.
const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// Bit 8 of the body of SET_VRING_KICK, _CALL and _ERR: no descriptor comes with it.
const NO_FD: u64 = 0x100;

/// One request, complete.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub code: FrontendReq,
    /// The frontend wants to hear that it was done, if it negotiated that.
    pub need_reply: bool,
    body: ArrayVec<u8, MAX_BODY>,
    fds: ArrayVec<OwnedFd, MAX_REGIONS>,
}

/// A table of guest memory: what is where, and the file each region is in.
pub type Table = ArrayVec<(VhostUserMemoryRegion, OwnedFd), MAX_REGIONS>;

impl Request {
    /// The body as `T`.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if it is not exactly as long as `T`, or `T` finds it invalid.
    pub fn body<T: VhostUserMsgValidator + Copy>(&self) -> Result<T, Gone> {
        let body = read::<T>(&self.body).ok_or(Gone::Malformed("request of a wrong length"))?;
        if body.is_valid() {
            Ok(body)
        } else {
            Err(Gone::Malformed("request with an invalid body"))
        }
    }

    /// There must be no body.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if there is one.
    pub fn empty(&self) -> Result<(), Gone> {
        if self.body.is_empty() {
            Ok(())
        } else {
            Err(Gone::Malformed("request of a wrong length"))
        }
    }

    /// The body of SET_VRING_KICK, _CALL or _ERR: index of the ring, and the descriptor if there is one.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if the body and the number of descriptors do not agree.
    pub fn ring_fd(mut self) -> Result<(u32, Option<OwnedFd>), Gone> {
        let value: vhost::vhost_user::message::VhostUserU64 = self.body()?;
        let wanted = usize::from(value.value & NO_FD == 0);
        if self.fds.len() != wanted {
            return Err(Gone::Malformed(
                "request with too many or too few descriptors",
            ));
        }
        let [index, ..] = value.value.to_le_bytes();
        Ok((u32::from(index), self.fds.pop()))
    }

    /// The body of SET_MEM_TABLE.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if count, length and descriptors do not agree, or a region is empty or wraps around.
    pub fn table(self) -> Result<Table, Gone> {
        const WRONG: Gone = Gone::Malformed("invalid memory table");
        let (head, mut rest) = self
            .body
            .split_at_checked(size_of::<VhostUserMemory>())
            .ok_or(WRONG)?;
        let count = read::<VhostUserMemory>(head).ok_or(WRONG)?.num_regions;
        if usize::try_from(count) != Ok(self.fds.len()) || self.fds.is_empty() {
            return Err(WRONG);
        }
        let mut table = Table::new();
        for fd in self.fds {
            let (one, after) = rest
                .split_at_checked(size_of::<VhostUserMemoryRegion>())
                .ok_or(WRONG)?;
            let region = read::<VhostUserMemoryRegion>(one).ok_or(WRONG)?;
            if !VhostUserMsgValidator::is_valid(&region) {
                return Err(WRONG);
            }
            table.try_push((region, fd)).map_err(|_| WRONG)?;
            rest = after;
        }
        if rest.is_empty() {
            Ok(table)
        } else {
            Err(WRONG)
        }
    }
}

/// A value of `T` from bytes of its length, wherever they lie.
fn read<T: ByteValued>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    let mut value = T::zeroed();
    value.as_mut_slice().copy_from_slice(bytes);
    Some(value)
}

/// What has come of the next request.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: ArrayVec<u8, { HEADER + MAX_BODY }>,
    fds: ArrayVec<OwnedFd, MAX_REGIONS>,
}

impl Reader {
    /// Forget what has come, and close it.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fds.clear();
    }

    /// The next request, if all of it is there.
    ///
    /// # Errors
    /// [`Gone::Closed`] at the end of the stream, [`Gone::Malformed`] for what is no request, or not one we know.
    pub fn next(&mut self, socket: impl AsFd) -> Result<Option<Request>, Gone> {
        loop {
            let missing = match self.header()? {
                None => HEADER.saturating_sub(self.bytes.len()),
                Some((code, need_reply, size)) => {
                    let all = HEADER.saturating_add(size);
                    if self.bytes.len() >= all {
                        return Ok(Some(self.take(code, need_reply)));
                    }
                    all.saturating_sub(self.bytes.len())
                }
            };
            if !self.more(&socket, missing)? {
                return Ok(None);
            }
        }
    }

    /// The header, once it is there: request, whether an answer is wanted, length of the body.
    fn header(&self) -> Result<Option<(FrontendReq, bool, usize)>, Gone> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = *header;
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | NEED_REPLY) != 0 {
            return Err(Gone::Malformed("request with invalid flags"));
        }
        let code = FrontendReq::try_from(u32::from_ne_bytes([r0, r1, r2, r3]))
            .map_err(|_| Gone::Malformed("unknown request"))?;
        match usize::try_from(u32::from_ne_bytes([s0, s1, s2, s3])) {
            Ok(size) if size <= MAX_BODY => Ok(Some((code, flags & NEED_REPLY != 0, size))),
            _ => Err(Gone::Malformed("request that is too long")),
        }
    }

    /// Read up to `missing` bytes; `false` if there is nothing now. Never beyond a request: descriptors belong to the
    /// bytes they were sent with.
    fn more(&mut self, socket: impl AsFd, missing: usize) -> Result<bool, Gone> {
        let mut space = [0; HEADER + MAX_BODY];
        let room = space.get_mut(..missing).unwrap_or_default();
        let mut fds = scm::Fds::new();
        let got = match scm::recv(socket.as_fd(), room, &mut fds, false) {
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Err(Gone::Closed),
            Err(e) => return Err(Gone::Failed(errno(&e))),
        };
        if got.truncated_fds {
            return Err(Gone::Malformed("descriptors that could not be received"));
        }
        for fd in fds {
            if self.fds.try_push(fd).is_err() {
                return Err(Gone::Malformed("too many descriptors"));
            }
        }
        if got.len == 0 {
            return Err(Gone::Closed);
        }
        let new = room.get(..got.len).unwrap_or_default();
        // No more was asked for than there is room for.
        let _ = self.bytes.try_extend_from_slice(new);
        Ok(true)
    }

    fn take(&mut self, code: FrontendReq, need_reply: bool) -> Request {
        let mut body = ArrayVec::new();
        // The header has said that it is no longer.
        let _ = body.try_extend_from_slice(self.bytes.get(HEADER..).unwrap_or_default());
        self.bytes.clear();
        Request {
            code,
            need_reply,
            body,
            fds: std::mem::take(&mut self.fds),
        }
    }
}

/// Answer a request of kind `code`.
///
/// # Errors
/// [`Gone`] also if the answer does not fit: a frontend that does not read has to go.
pub fn reply(socket: impl AsFd, code: FrontendReq, body: &impl ByteValued) -> Result<(), Gone> {
    let body = body.as_slice();
    let size = u32::try_from(body.len()).unwrap_or(0);
    let mut message = ArrayVec::<u8, { HEADER + 64 }>::new();
    for word in [u32::from(code), VERSION | REPLY, size] {
        let _ = message.try_extend_from_slice(&word.to_ne_bytes());
    }
    // Answers are numbers and states of rings.
    let _ = message.try_extend_from_slice(body);
    match scm::try_send(socket.as_fd(), &message) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            Err(Gone::Malformed("frontend that reads no answers"))
        }
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Gone::Closed),
        Err(e) => Err(Gone::Failed(errno(&e))),
    }
}

fn errno(e: &std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(0))
}
