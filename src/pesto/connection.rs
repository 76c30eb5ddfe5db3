//! The client's end of the control socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{PestoError, shown};
use crate::control::exchange::{OUTCOME, Outcome, put_apply, put_report};
use crate::control::wire::{Capabilities, MAX_GREETING, Pif, parse_greeting, put_update};

/// Longest wait for bytes of the other side: it serves one client after the other, 10 seconds each.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection whose greeting has been read.
pub(super) struct Connection {
    socket: UnixStream,
    tables: Vec<Pif>,
}

impl Connection {
    /// Connect, and read what the server says at once.
    pub(super) fn open(path: &Path) -> Result<Self, PestoError> {
        let failed = |e: io::Error| PestoError::Connect(shown(path), e.into());
        let mut socket = UnixStream::connect(path).map_err(failed)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let tables = greeting(&mut socket)?;
        Ok(Self { socket, tables })
    }

    /// The tables as they are. Nobody else can change them while we are connected.
    pub(super) fn tables(&self) -> &[Pif] {
        &self.tables
    }

    /// It answers queries.
    pub(super) fn answers(&self) -> bool {
        self.tables
            .iter()
            .any(|pif| pif.capabilities.has(Capabilities::QUERIES))
    }

    /// Replace the tables.
    pub(super) fn send(&mut self, tables: &[Pif]) -> Result<(), PestoError> {
        let mut bytes = Vec::new();
        if self.answers() {
            put_apply(&mut bytes);
        }
        put_update(&mut bytes, tables.iter().map(|t| (t.id, &t.rules[..])));
        self.write(&bytes)?;
        if self.answers() {
            return self.outcome();
        }
        // The established server hangs up when it is done, and says no more.
        let _ = self.socket.shutdown(Shutdown::Write);
        let mut rest = [0; 64];
        while matches!(self.socket.read(&mut rest), Ok(n) if n > 0) {}
        Ok(())
    }

    /// Ask for a report: records follow.
    pub(super) fn ask_report(&mut self) -> Result<(), PestoError> {
        let mut bytes = Vec::new();
        put_report(&mut bytes);
        self.write(&bytes)?;
        self.outcome()
    }

    /// The next `N` bytes.
    pub(super) fn read<const N: usize>(&mut self) -> Result<[u8; N], PestoError> {
        let mut bytes = [0; N];
        self.socket
            .read_exact(&mut bytes)
            .map_err(|e| PestoError::Read(why(&e)))?;
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PestoError> {
        self.socket
            .write_all(bytes)
            .map_err(|e| PestoError::Write(e.into()))
    }

    fn outcome(&mut self) -> Result<(), PestoError> {
        let bytes = self.read::<OUTCOME>()?;
        match Outcome::decode(&bytes) {
            None => Err(PestoError::Report),
            Some(outcome) if outcome.ok => Ok(()),
            Some(outcome) => Err(PestoError::Refused(outcome.message)),
        }
    }
}

fn greeting(socket: &mut UnixStream) -> Result<Vec<Pif>, PestoError> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match socket.read(&mut chunk) {
            Ok(0) => {
                let text = if bytes.is_empty() {
                    "No data available (does the instance run as another user?)"
                } else {
                    "it breaks off"
                };
                return Err(PestoError::Greeting(text.to_owned()));
            }
            Ok(n) => bytes.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(PestoError::Greeting(why(&e))),
        }
        if let Some(tables) = parse_greeting(&bytes)? {
            return Ok(tables);
        }
        if bytes.len() > MAX_GREETING {
            return Err(PestoError::Greeting("it has no end".to_owned()));
        }
    }
}

fn why(e: &io::Error) -> String {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!(
                "nothing came for {} seconds; another client may be connected",
                PATIENCE.as_secs()
            )
        }
        ErrorKind::UnexpectedEof => "the instance hung up".to_owned(),
        _ => crate::sys::reason::Reason::from(e).to_string(),
    }
}
