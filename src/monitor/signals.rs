//! Signals, as events of the loop, and what each means.
//!
//! SIGTERM and SIGQUIT end the program in order, status 0. What a terminal sends to its foreground group
//! (Ctrl-C, Ctrl-\, hang-up) is meant for the command, if there is one: it decides whether to end, and
//! we follow. In the background SIGINT and SIGHUP mean nothing.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// How this run relates to its terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Daemon.
    Background,
    /// In the foreground, joined to somebody else's namespace.
    Foreground,
    /// In the foreground, around a command of our own.
    Command,
}

/// `si_code` of a signal the kernel itself sent (terminal), as opposed to kill(2).
const SI_KERNEL: i32 = 0x80;

/// The signals the monitor looks at, blocked and readable.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Block them in this process. Children forked later inherit the mask; there are none.
    ///
    /// # Errors
    /// As sigprocmask(2) and signalfd(2).
    pub fn take_over() -> nix::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGQUIT,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGPIPE,
            Signal::SIGALRM,
        ] {
            set.add(signal);
        }
        set.thread_block()?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self)
    }

    /// Read what has arrived; `Some` is the exit status if it means the end.
    pub(super) fn take(&self, style: Style) -> Option<u8> {
        while let Ok(Some(info)) = self.0.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            let Ok(signal) = Signal::try_from(number) else {
                continue;
            };
            if let Some(status) = meaning(signal, info.ssi_code == SI_KERNEL, style) {
                log::debug!("Exiting on {signal}");
                return Some(status);
            }
        }
        None
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Exit status, or `None` for "go on".
fn meaning(signal: Signal, from_terminal: bool, style: Style) -> Option<u8> {
    match (signal, style) {
        (Signal::SIGQUIT, Style::Command) if from_terminal => None,
        (Signal::SIGTERM | Signal::SIGQUIT, _) => Some(0),
        (Signal::SIGINT, Style::Foreground) => Some(128 + 2),
        (Signal::SIGHUP, Style::Foreground) => Some(128 + 1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn termination_is_orderly_in_every_style() {
        for style in [Style::Background, Style::Foreground, Style::Command] {
            assert_eq!(meaning(Signal::SIGTERM, false, style), Some(0));
            assert_eq!(meaning(Signal::SIGQUIT, false, style), Some(0));
            assert_eq!(meaning(Signal::SIGUSR1, false, style), None);
            assert_eq!(meaning(Signal::SIGPIPE, false, style), None);
        }
    }

    #[test]
    fn the_terminal_speaks_to_the_command() {
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
            assert_eq!(meaning(signal, true, Style::Command), None);
        }
        assert_eq!(meaning(Signal::SIGINT, true, Style::Foreground), Some(130));
        assert_eq!(meaning(Signal::SIGHUP, true, Style::Foreground), Some(129));
        assert_eq!(meaning(Signal::SIGINT, false, Style::Background), None);
        assert_eq!(meaning(Signal::SIGHUP, false, Style::Background), None);
    }
}
