//! The system log, by the `syslog` crate over a socket the launcher connects: nothing can be opened later.

use std::os::unix::net::UnixDatagram;

use log::Level;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// Where a system logger listens.
const SOCKET: &str = "/dev/log";

/// A connected system log.
pub struct Syslog(Logger<LoggerBackend, Formatter3164>);

impl std::fmt::Debug for Syslog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Syslog")
    }
}

impl Syslog {
    /// Connect as `program`, process `pid`; `None` where no system logger listens. Never waits later: a
    /// logger that does not keep up loses lines.
    #[must_use]
    pub fn connect(program: &str, pid: u32) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(SOCKET).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self(Logger::new(
            LoggerBackend::Unix(socket),
            Formatter3164 {
                facility: Facility::LOG_DAEMON,
                hostname: None,
                process: program.to_owned(),
                pid,
            },
        )))
    }

    pub(super) fn write(&mut self, level: Level, text: &str) {
        let _ = match level {
            Level::Error => self.0.err(text),
            Level::Warn => self.0.warning(text),
            Level::Info => self.0.info(text),
            Level::Debug | Level::Trace => self.0.debug(text),
        };
    }
}
