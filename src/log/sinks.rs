//! Where the launcher's and the monitor's lines end: terminal, file, system log.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use log::Level;

use super::file::LogFile;
use super::line::Line;
use super::syslog::Syslog;

/// The sinks that are open, any number of them.
#[derive(Debug)]
pub struct Sinks {
    start: Instant,
    timestamps: bool,
    stderr: Option<File>,
    file: Option<LogFile>,
    syslog: Option<Syslog>,
}

impl Sinks {
    /// Standard error only (a duplicate of it, so that descriptor 2 may be redirected). With
    /// `timestamps`, lines there begin with the seconds since the start.
    #[must_use]
    pub fn stderr(timestamps: bool) -> Self {
        Self {
            start: Instant::now(),
            timestamps,
            stderr: duplicate_stderr().map(File::from),
            file: None,
            syslog: None,
        }
    }

    /// Also, or no more, to this file.
    pub fn set_file(&mut self, file: Option<LogFile>) {
        self.file = file;
    }

    /// Also, or no more, to the system log.
    pub fn set_syslog(&mut self, syslog: Option<Syslog>) {
        self.syslog = syslog;
    }

    /// Stop writing to standard error.
    pub fn close_stderr(&mut self) {
        self.stderr = None;
    }

    /// Write one line everywhere. A sink that fails is left as it is: there is nobody to tell.
    pub(super) fn write(&mut self, level: Level, text: &str) {
        let elapsed = self.start.elapsed();
        let mut clean = Line::default();
        clean.push_text(text);
        let text = clean.as_str();
        if let Some(stderr) = &mut self.stderr {
            let mut line = Line::default();
            if self.timestamps {
                let _ = write!(
                    line,
                    "{:4}.{:04}: ",
                    elapsed.as_secs(),
                    elapsed.subsec_micros() / 100
                );
            }
            line.push(text.as_bytes());
            finish(&mut line);
            let _ = stderr.write_all(line.as_bytes());
        }
        if let Some(file) = &mut self.file {
            let mut line = Line::default();
            let _ = write!(
                line,
                "{:4}.{:04}: {}: ",
                elapsed.as_secs(),
                elapsed.subsec_micros() / 100,
                level.as_str().to_ascii_lowercase()
            );
            line.push(text.as_bytes());
            finish(&mut line);
            file.append(line.as_bytes());
        }
        if let Some(syslog) = &mut self.syslog {
            syslog.write(level, text);
        }
    }
}

/// End the line with a newline, also if it is full.
fn finish(line: &mut Line) {
    line.truncate(super::line::CAPACITY - 1);
    line.push(b"\n");
}

fn duplicate_stderr() -> Option<OwnedFd> {
    std::io::stderr().as_fd().try_clone_to_owned().ok()
}
