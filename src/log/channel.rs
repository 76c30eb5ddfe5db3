//! Log lines of a process that has no sink: one message each, a level byte and the text.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use log::Level;

use super::line::{CAPACITY, Line};
use crate::sys::scm;

/// Longest message on the channel, in bytes.
pub const MAX_LINE: usize = CAPACITY + 1;

pub(super) struct Channel {
    socket: OwnedFd,
    lost: u32,
}

impl Channel {
    pub(super) const fn new(socket: OwnedFd) -> Self {
        Self { socket, lost: 0 }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Send without waiting; what does not fit is counted and the count sent when there is room again.
    pub(super) fn send(&mut self, level: Level, text: &str) {
        if self.lost > 0 {
            let mut note = Line::default();
            note.push(&[level_byte(Level::Warn)]);
            let _ = write!(note, "{} log lines lost", self.lost);
            if scm::try_send(self.socket.as_fd(), note.as_bytes()).is_err() {
                self.lost = self.lost.saturating_add(1);
                return;
            }
            self.lost = 0;
        }
        let mut message = Line::default();
        message.push(&[level_byte(level)]);
        message.push(text.as_bytes());
        if scm::try_send(self.socket.as_fd(), message.as_bytes()).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
    }
}

const fn level_byte(level: Level) -> u8 {
    match level {
        Level::Error => 1,
        Level::Warn => 2,
        Level::Info => 3,
        Level::Debug => 4,
        Level::Trace => 5,
    }
}

/// Level and text of a message, unless it is none.
pub(super) fn parse(message: &[u8]) -> Option<(Level, &[u8])> {
    let (level, text) = message.split_first()?;
    let level = match level {
        1 => Level::Error,
        2 => Level::Warn,
        3 => Level::Info,
        4 => Level::Debug,
        5 => Level::Trace,
        _ => return None,
    };
    Some((level, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_survive_and_others_are_refused() {
        for level in Level::iter() {
            assert_eq!(parse(&[level_byte(level), b'x']), Some((level, &b"x"[..])));
        }
        assert_eq!(parse(&[0, b'x']), None);
        assert_eq!(parse(&[6]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn a_full_channel_counts_what_it_loses_and_says_so_later() {
        let (ours, theirs) = scm::seqpacket_pair().expect("pair");
        let mut channel = Channel::new(ours);
        let mut sent = 0;
        while channel.lost == 0 {
            channel.send(Level::Info, "line");
            sent += 1;
        }
        channel.send(Level::Info, "line");
        assert_eq!(channel.lost, 2);
        let mut buf = [0; MAX_LINE];
        for _ in 1..sent {
            scm::try_recv(theirs.as_fd(), &mut buf).expect("line");
        }
        channel.send(Level::Info, "after");
        let n = scm::try_recv(theirs.as_fd(), &mut buf).expect("note");
        assert_eq!(
            parse(&buf[..n]),
            Some((Level::Warn, &b"2 log lines lost"[..]))
        );
        let n = scm::try_recv(theirs.as_fd(), &mut buf).expect("line");
        assert_eq!(parse(&buf[..n]), Some((Level::Info, &b"after"[..])));
    }
}
