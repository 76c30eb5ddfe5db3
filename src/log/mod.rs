//! What is said, and where it ends up.
//!
//! Everybody uses the `log` crate's macros. In the launcher, and the monitor it becomes, a line goes to the
//! [`Sinks`]: the terminal while there is one, a file (`-l`), the system log. The other processes have no
//! sink: their lines are formatted into a fixed buffer on the stack, without allocating, and sent as one
//! message each to the monitor, which cleans them ([`relay`]) before they reach a terminal or a file. A
//! full channel loses lines and says how many; it never makes a process wait.
//!
//! Lines about single packets or flows go through a [`RateLimit`] first.

mod channel;
mod file;
mod line;
mod rate;
mod sinks;
mod syslog;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::Verbosity;

pub use channel::MAX_LINE;
pub use file::{LogFile, MIN_SIZE};
pub use rate::RateLimit;
pub use sinks::Sinks;
pub use syslog::Syslog;

/// Where this process's lines go.
enum Target {
    Nowhere,
    Sinks(Sinks),
    Channel(channel::Channel),
}

struct Logger {
    target: Mutex<Target>,
}

static LOGGER: Logger = Logger {
    target: Mutex::new(Target::Nowhere),
};

impl Logger {
    fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match &mut *self.target() {
            Target::Nowhere => {}
            Target::Sinks(sinks) => line::each(record.args(), |text| {
                sinks.write(record.level(), text);
            }),
            Target::Channel(channel) => line::each(record.args(), |text| {
                channel.send(record.level(), text);
            }),
        }
    }

    fn flush(&self) {}
}

/// Start logging to `sinks`. To be called once, by the launcher, before it forks anything.
pub fn init(verbosity: Verbosity, sinks: Sinks) {
    *LOGGER.target() = Target::Sinks(sinks);
    log::set_max_level(match verbosity {
        Verbosity::Quiet => LevelFilter::Warn,
        Verbosity::Normal => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Debug,
        Verbosity::Trace => LevelFilter::Trace,
    });
    // Only a second call fails, and then the logger is ours already.
    let _ = log::set_logger(&LOGGER);
}

/// Change the sinks: more of them once they are open, fewer once the start is over.
pub fn with_sinks(change: impl FnOnce(&mut Sinks)) {
    if let Target::Sinks(sinks) = &mut *LOGGER.target() {
        change(sinks);
    }
}

/// From here on this process's lines, and what it says when it panics, go to `socket`.
pub fn use_channel(socket: OwnedFd) {
    crate::sys::sigsys::set_report_socket(socket.as_fd());
    // The inherited sinks belong to the launcher: their descriptors are gone already or about to be.
    let inherited = std::mem::replace(
        &mut *LOGGER.target(),
        Target::Channel(channel::Channel::new(socket)),
    );
    std::mem::forget(inherited);
    std::panic::set_hook(Box::new(|panic| {
        log::error!("{panic}");
        crate::sys::process::exit_now(PANIC_STATUS);
    }));
}

/// Do something with the descriptor [`use_channel`] took, if it did.
pub fn with_channel<T>(act: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    match &*LOGGER.target() {
        Target::Channel(channel) => Some(act(channel.as_fd())),
        Target::Nowhere | Target::Sinks(_) => None,
    }
}

/// Exit status of a process that panicked, the one the standard library uses.
pub const PANIC_STATUS: i32 = 101;

/// Take one message another process sent and put it into this process's sinks, cleaned and with the name
/// of its origin where that helps. Returns the line's level, `None` if it was not a line.
pub fn relay(origin: &str, message: &[u8]) -> Option<Level> {
    let (level, text) = channel::parse(message)?;
    if level <= log::max_level() {
        if let Target::Sinks(sinks) = &mut *LOGGER.target() {
            let mut clean = line::Line::default();
            if level >= Level::Debug {
                clean.push(origin.as_bytes());
                clean.push(b": ");
            }
            clean.push_clean(text);
            sinks.write(level, clean.as_str());
        }
    }
    Some(level)
}
