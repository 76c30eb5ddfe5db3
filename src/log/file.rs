//! A log file of bounded size that forgets its oldest lines.
//!
//! The first line says who writes and since when; it stays. When the next line would not fit, roughly the
//! older half of the rest is cut at a line's end, the newer half moves up behind a line that says so, and
//! writing goes on. It is done with positioned reads and writes on the descriptor the launcher opened,
//! through a small buffer: no name, no second file, no allocation.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Smallest limit, in bytes: a header, a note and some lines must fit.
pub const MIN_SIZE: u64 = 4096;

/// Put where lines are missing.
const NOTE: &[u8] = b"-- log truncated here, oldest lines removed --\n";

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    limit: u64,
    header: u64,
    end: u64,
}

impl LogFile {
    /// Create or empty `path` (mode 0600, not through a symbolic link) and write `header` (without newline) as its first line.
    ///
    /// # Errors
    /// As open(2) and write(2).
    pub fn create(path: &Path, limit: u64, header: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let mut log = Self {
            file,
            limit: limit.max(MIN_SIZE),
            header: 0,
            end: 0,
        };
        // It names a path, and paths can contain anything.
        log.write_at_end(header.replace(char::is_control, "?").as_bytes())?;
        log.write_at_end(b"\n")?;
        log.header = log.end;
        Ok(log)
    }

    /// Append `line` (with its newline), at the cost of older ones if need be. A full disk loses lines.
    pub(super) fn append(&mut self, line: &[u8]) {
        let len = line.len() as u64;
        if self.end.saturating_add(len) > self.limit && self.forget_older_half().is_err() {
            return;
        }
        let _ = self.write_at_end(line);
    }

    fn write_at_end(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        self.end = self.end.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn forget_older_half(&mut self) -> io::Result<()> {
        let middle = self
            .header
            .saturating_add(self.end.saturating_sub(self.header) / 2);
        let mut from = self.next_line(middle)?;
        let mut to = self.header;
        self.file.write_all_at(NOTE, to)?;
        to = to.saturating_add(NOTE.len() as u64);
        let mut buf = [0; 4096];
        while from < self.end {
            let n = self.file.read_at(&mut buf, from)?;
            let chunk = buf.get(..n).unwrap_or_default();
            if chunk.is_empty() {
                break;
            }
            self.file.write_all_at(chunk, to)?;
            from = from.saturating_add(n as u64);
            to = to.saturating_add(n as u64);
        }
        self.file.set_len(to)?;
        self.end = to;
        Ok(())
    }

    /// Offset behind the first newline at or after `offset`, or the end.
    fn next_line(&self, mut offset: u64) -> io::Result<u64> {
        let mut buf = [0; 512];
        while offset < self.end {
            let n = self.file.read_at(&mut buf, offset)?;
            let chunk = buf.get(..n).unwrap_or_default();
            if let Some(at) = chunk.iter().position(|b| *b == b'\n') {
                return Ok(offset.saturating_add(at as u64).saturating_add(1));
            }
            if n == 0 {
                break;
            }
            offset = offset.saturating_add(n as u64);
        }
        Ok(self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed() {
        let name = |what| {
            let name = format!("passt-log-{what}-test-{}", std::process::id());
            std::env::temp_dir().join(name)
        };
        let (link, target) = (name("link"), name("target"));
        std::os::unix::fs::symlink(&target, &link).expect("symlink");
        let e = LogFile::create(&link, 0, "header").expect_err("a link");
        std::fs::remove_file(&link).expect("remove");
        assert_eq!(e.raw_os_error(), Some(libc::ELOOP));
        assert!(!target.exists());
    }

    #[test]
    fn the_file_stays_below_its_limit_and_keeps_header_and_newest_lines() {
        let path = std::env::temp_dir().join(format!("passt-log-test-{}", std::process::id()));
        let mut log = LogFile::create(&path, 0, "pasta test").expect("create");
        for i in 0..2000 {
            log.append(format!("line {i}\n").as_bytes());
            assert!(std::fs::metadata(&path).expect("metadata").len() <= MIN_SIZE);
        }
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::remove_file(&path).expect("remove");
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("pasta test"));
        assert_eq!(
            lines.next(),
            Some("-- log truncated here, oldest lines removed --")
        );
        let kept: Vec<u32> = lines
            .map(|l| {
                l.strip_prefix("line ")
                    .expect("whole line")
                    .parse()
                    .expect("number")
            })
            .collect();
        assert!(kept.len() > 100);
        assert_eq!(kept.last(), Some(&1999));
        assert!(kept.windows(2).all(|w| w[1] == w[0] + 1));
    }
}
