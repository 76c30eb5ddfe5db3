//! One rtnetlink socket, bound to the network namespace it was opened in.

use std::io;

use netlink_packet_core::Emitable;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use super::NetlinkError;
use super::message::{self, DONE, ERROR, HEADER_LEN, Message, Messages, i32_at, u16_at, u32_at};

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP` of netlink(7).
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: what was listed changed between two parts of the answer.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_CAPPED` and `NLM_F_ACK_TLVS` in an acknowledgement.
const CAPPED: u16 = 0x100;
const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_ATTRIBUTE_TEXT: u16 = 1;

/// The kernel makes its answers at most this large, if it has seen us read that much.
const BUFFER: usize = 32 * 1024;
/// How often an interrupted dump is asked again before its last answer is taken as it is.
const DUMP_ATTEMPTS: usize = 16;
/// Changes per datagram: so that acknowledgements of refusals fit the receive buffer, even all of them.
const BATCH_MESSAGES: usize = 64;

/// A request the kernel refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}{}", .errno.desc(), .text.as_ref().map(|t| format!(" ({t})")).unwrap_or_default())]
pub struct Refusal {
    /// Why.
    pub errno: Errno,
    /// The kernel's own words about it, where it has some (`NETLINK_EXT_ACK`).
    pub text: Option<String>,
}

/// A socket of the namespace the process was in when it was opened.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Open in the current network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        let inner =
            netlink_sys::Socket::new(NETLINK_ROUTE).map_err(|e| NetlinkError::Open(errno(&e)))?;
        // All three came after Linux 4.12 and only refine answers: without them we filter what we get
        // ourselves, skip what is echoed, and have no words from the kernel to quote.
        let _ = inner.set_netlink_get_strict_chk(true);
        let _ = inner.set_cap_ack(true);
        let _ = inner.set_ext_ack(true);
        Ok(Self {
            inner,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// List everything that matches a request; `parse` sees the type and body of each message and leaves
    /// out what it does not want. `Ok(Err(_))` if the kernel refused.
    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        request: &impl Emitable,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Result<Vec<T>, Refusal>, NetlinkError> {
        let mut attempt = 1;
        loop {
            let mut found = Vec::new();
            let (refusal, interrupted) =
                self.dump_once(kind, request, |m| found.extend(parse(m.kind, m.body)))?;
            if let Some(refusal) = refusal {
                return Ok(Err(refusal));
            }
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(Ok(found));
            }
            attempt += 1;
        }
    }

    fn dump_once(
        &mut self,
        kind: u16,
        request: &impl Emitable,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(Option<Refusal>, bool), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut out = Vec::with_capacity(64);
        message::push(&mut out, kind, REQUEST | DUMP, sequence, request);
        self.send(&out)?;
        let mut interrupted = false;
        loop {
            self.receive()?;
            // Since Linux 6.9 the end may come in the same datagram as the last part, before it never did.
            for m in Messages(&self.buffer) {
                if m.sequence != sequence {
                    continue;
                }
                interrupted |= m.flags & DUMP_INTERRUPTED != 0;
                match m.kind {
                    DONE | ERROR => return Ok((refusal(&m), interrupted)),
                    _ => each(m),
                }
            }
        }
    }

    /// Ask for one object. `Ok(Err(_))` if the kernel refused.
    pub(super) fn get<T>(
        &mut self,
        kind: u16,
        request: &impl Emitable,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Result<Option<T>, Refusal>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut out = Vec::with_capacity(64);
        message::push(&mut out, kind, REQUEST, sequence, request);
        self.send(&out)?;
        loop {
            self.receive()?;
            if let Some(m) = Messages(&self.buffer).find(|m| m.sequence == sequence) {
                return Ok(match m.kind {
                    ERROR => Err(refusal(&m).unwrap_or(Refusal {
                        errno: Errno::ENODATA,
                        text: None,
                    })),
                    _ => Ok(parse(m.kind, m.body)),
                });
            }
        }
    }

    /// Carry out a batch. The answer has one entry per message, in order; `None` is success.
    ///
    /// # Errors
    /// Only if the conversation itself fails: what was sent before may have been carried out.
    pub fn commit(&mut self, batch: &Batch) -> Result<Vec<Option<Refusal>>, NetlinkError> {
        let mut answers = vec![None; batch.len()];
        let mut first = 0;
        while first < batch.len() {
            let past = batch.len().min(first + BATCH_MESSAGES);
            let answers = answers.get_mut(first..past).unwrap_or(&mut []);
            self.commit_some(batch.range(first, past), answers)?;
            first = past;
        }
        Ok(answers)
    }

    /// One datagram. Sequence numbers are patched in here: consecutive, and the last asks for an answer.
    fn commit_some(
        &mut self,
        bytes: &[u8],
        answers: &mut [Option<Refusal>],
    ) -> Result<(), NetlinkError> {
        let base = self.sequence.wrapping_add(1);
        let mut out = bytes.to_vec();
        let mut at = 0;
        for i in 0..answers.len() {
            self.sequence = self.sequence.wrapping_add(1);
            if let Some(field) = out.get_mut(at + 8..at + 12) {
                field.copy_from_slice(&self.sequence.to_ne_bytes());
            }
            if i + 1 == answers.len() {
                let flags = u16_at(&out, at + 6).unwrap_or(0) | ACK;
                if let Some(field) = out.get_mut(at + 6..at + 8) {
                    field.copy_from_slice(&flags.to_ne_bytes());
                }
            }
            let length = u32_at(&out, at).and_then(|l| usize::try_from(l).ok());
            at += length.unwrap_or(0).next_multiple_of(4);
        }
        self.send(&out)?;
        loop {
            self.receive()?;
            for m in Messages(&self.buffer).filter(|m| m.kind == ERROR) {
                let index = usize::try_from(m.sequence.wrapping_sub(base)).unwrap_or(usize::MAX);
                let Some(answer) = answers.get_mut(index) else {
                    continue;
                };
                *answer = refusal(&m);
                if m.sequence == self.sequence {
                    return Ok(());
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = SocketAddr::new(0, 0);
        loop {
            match self.inner.send_to(bytes, &kernel, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(NetlinkError::Send(errno(&e))),
            }
        }
    }

    /// The next datagram from the kernel into `self.buffer`.
    fn receive(&mut self) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            match self.inner.recv_from(&mut self.buffer, 0) {
                // Anybody in the namespace may write to our port; only number 0 is the kernel.
                Ok((_, from)) if from.port_number() == 0 => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(NetlinkError::Receive(errno(&e))),
            }
        }
    }
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(0))
}

/// What an `NLMSG_ERROR` or `NLMSG_DONE` says; `None`: all is well.
fn refusal(m: &Message<'_>) -> Option<Refusal> {
    let code = i32_at(m.body, 0).unwrap_or(0);
    if code >= 0 {
        return None;
    }
    let text = (m.kind == ERROR && m.flags & ACK_ATTRIBUTES != 0)
        .then(|| error_text(m))
        .flatten();
    Some(Refusal {
        errno: Errno::from_raw(code.saturating_neg()),
        text,
    })
}

/// The kernel's words, in the attributes after the (possibly cut) copy of our request.
fn error_text(m: &Message<'_>) -> Option<String> {
    let echoed = if m.flags & CAPPED == 0 {
        usize::try_from(u32_at(m.body, 4)?)
            .ok()?
            .next_multiple_of(4)
    } else {
        HEADER_LEN
    };
    let attributes = m.body.get(4 + echoed..)?;
    netlink_packet_core::NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|a| a.kind() == ERROR_ATTRIBUTE_TEXT)
        .map(|a| {
            String::from_utf8_lossy(a.value())
                .trim_end_matches(['\0', '.'])
                .to_owned()
        })
}

/// Changes to be sent together, carried out in order.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where each message starts.
    starts: Vec<usize>,
}

impl Batch {
    /// `NLM_F_REPLACE`: change what exists.
    pub const REPLACE: u16 = 0x100;
    /// `NLM_F_EXCL`: fail with EEXIST if it exists.
    pub const EXCLUSIVE: u16 = 0x200;
    /// `NLM_F_CREATE`.
    pub const CREATE: u16 = 0x400;
    /// `NLM_F_APPEND`: add to what exists.
    pub const APPEND: u16 = 0x800;

    /// Add a message of a type (`RTM_NEW*`, `RTM_SET*`), with flags from above.
    pub fn push(&mut self, kind: u16, flags: u16, body: &impl Emitable) {
        self.starts.push(self.bytes.len());
        message::push(&mut self.bytes, kind, REQUEST | flags, 0, body);
    }

    /// How many messages?
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// None?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    fn range(&self, first: usize, past: usize) -> &[u8] {
        let start = self.starts.get(first).copied().unwrap_or(self.bytes.len());
        let end = self.starts.get(past).copied().unwrap_or(self.bytes.len());
        self.bytes.get(start..end).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32, flags: u16, tail: &[u8]) -> Option<Refusal> {
        let mut body = code.to_ne_bytes().to_vec();
        body.extend_from_slice(tail);
        refusal(&Message {
            kind: ERROR,
            flags,
            sequence: 1,
            body: &body,
        })
    }

    /// Header of the refused request, 20 bytes long, and an attribute with the kernel's words.
    fn words(capped: bool) -> Vec<u8> {
        let mut tail = 20_u32.to_ne_bytes().to_vec();
        tail.extend([0; 12]);
        if !capped {
            tail.extend([0xee; 4]);
        }
        tail.extend([13, 0, 1, 0]);
        tail.extend(b"bad hop.\0\0\0\0");
        tail
    }

    #[test]
    fn refusals_quote_the_kernel() {
        assert_eq!(error(0, 0, &[]), None);
        let plain = error(-libc_errno(Errno::EEXIST), CAPPED, &[0; 16]).unwrap();
        assert_eq!(
            (plain.errno, plain.to_string()),
            (Errno::EEXIST, "File exists".to_owned())
        );
        for (capped, flags) in [(true, CAPPED | ACK_ATTRIBUTES), (false, ACK_ATTRIBUTES)] {
            let quoted = error(-libc_errno(Errno::EINVAL), flags, &words(capped)).unwrap();
            assert_eq!(quoted.to_string(), "Invalid argument (bad hop)");
        }
    }

    #[test]
    fn truncated_refusals_are_still_refusals() {
        let tail = words(true);
        for cut in 0..tail.len() {
            let r = error(
                -libc_errno(Errno::EPERM),
                CAPPED | ACK_ATTRIBUTES,
                &tail[..cut],
            )
            .unwrap();
            assert_eq!(r.errno, Errno::EPERM);
        }
    }

    fn libc_errno(errno: Errno) -> i32 {
        errno as i32
    }
}
