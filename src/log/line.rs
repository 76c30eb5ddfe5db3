//! One line in a fixed buffer, so that saying something never allocates.

use std::fmt::{self, Write};

/// Longest line, in bytes; what is longer is cut.
pub(super) const CAPACITY: usize = 1000;

/// Text being put together.
pub(super) struct Line {
    buf: [u8; CAPACITY],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            buf: [0; CAPACITY],
            len: 0,
        }
    }
}

impl Line {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let free = self.buf.get_mut(self.len..).unwrap_or_default();
        let n = bytes.len().min(free.len());
        for (to, from) in free.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.len = self.len.saturating_add(n);
    }

    /// Append what is printable ASCII, and `?` for everything else: nobody's terminal obeys a line of
    /// a process that reads untrusted packets.
    pub(super) fn push_clean(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let clean = if byte == b' ' || byte.is_ascii_graphic() {
                byte
            } else {
                b'?'
            };
            self.push(&[clean]);
        }
    }

    /// Append text of our own, which may name what others have named: `?` for every control character.
    pub(super) fn push_text(&mut self, text: &str) {
        for c in text.chars() {
            let c = if c.is_control() { '?' } else { c };
            self.push(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    /// Keep at most `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }

    /// The text; if a multi-byte character was cut at the end, without it.
    pub(super) fn as_str(&self) -> &str {
        match std::str::from_utf8(self.as_bytes()) {
            Ok(text) => text,
            Err(e) => self
                .as_bytes()
                .get(..e.valid_up_to())
                .and_then(|valid| std::str::from_utf8(valid).ok())
                .unwrap_or_default(),
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Format `args` and hand over each of its lines.
pub(super) fn each(args: &fmt::Arguments<'_>, mut take: impl FnMut(&str)) {
    if let Some(text) = args.as_str() {
        text.lines().for_each(take);
        return;
    }
    let mut line = Line::default();
    // Line never fails; a Display implementation that does has said what it could.
    let _ = line.write_fmt(*args);
    line.as_str().lines().for_each(&mut take);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_at_a_character() {
        let mut line = Line::default();
        for _ in 0..CAPACITY {
            line.push("é".as_bytes());
        }
        assert_eq!(line.as_str().len(), CAPACITY);
        let mut line = Line::default();
        line.push(b"x");
        for _ in 0..CAPACITY {
            line.push("é".as_bytes());
        }
        assert_eq!(line.as_str().len(), CAPACITY - 1);
    }

    #[test]
    fn control_characters_do_not_pass() {
        let mut line = Line::default();
        line.push_clean(b"a\x1b[31m\nb\xff");
        assert_eq!(line.as_str(), "a?[31m?b?");
        let mut line = Line::default();
        line.push_text("é\x1b[31m\u{9b}\tb");
        assert_eq!(line.as_str(), "é?[31m??b");
    }

    #[test]
    fn several_lines_are_several_lines() {
        let mut seen = Vec::new();
        each(&format_args!("one {}\ntwo", 1), |l| seen.push(l.to_owned()));
        assert_eq!(seen, ["one 1", "two"]);
    }
}
