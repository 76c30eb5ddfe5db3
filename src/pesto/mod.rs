//! `pesto`: shows and changes what a running instance forwards, and reports what it does.
//!
//! One connection, three answers. The tables come with the server's greeting: they are printed, or edited by the
//! command line ([`edit`], pure) and sent back whole. Reports ([`report`]) are asked of our own server only, and
//! printed as JSON or as a table that is drawn again every second. With the established server
//! everything but reports works, except that it never says whether it could do what was asked.
//!
//! What must never happen: success reported for a change that our server has refused; bytes of the other side
//! obeyed by the terminal; a wait without a limit.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod args;
mod connection;
mod edit;
mod json;
mod report;
mod show;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use self::args::{Invocation, Output, Plan};
use self::connection::Connection;
use crate::config::rules::RuleError;
use crate::control::wire::WireError;
use crate::sys::reason::Reason;

/// Why `pesto` failed: what to print before exiting with status 1.
#[derive(Debug, thiserror::Error)]
pub enum PestoError {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// Nobody listens there, or not to us.
    #[error("Failed to connect to {0}: {1}")]
    Connect(String, Reason),
    /// The server said nothing, or not all.
    #[error("Couldn't read server greeting: {0}")]
    Greeting(String),
    /// The server is something else.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Our words did not arrive.
    #[error("Error writing to control socket: {0}")]
    Write(Reason),
    /// The server's words did not arrive.
    #[error("Error reading from control socket: {0}")]
    Read(String),
    /// A specifier that cannot be honoured.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// `--clear` of a table the instance does not have.
    #[error("Unsupported pif name {0}")]
    Table(String),
    /// Something the instance has to be able to do.
    #[error("{0}")]
    Capability(String),
    /// The instance refused: everything is as it was.
    #[error("{0}\nNothing was changed")]
    Refused(String),
    /// The established program has no reports.
    #[error(
        "The instance at {0} gives no reports: --json and --watch need this implementation's own server"
    )]
    NoReports(String),
    /// A report that is none.
    #[error("The instance sent a report that cannot be read; is it another version?")]
    Report,
    /// Standard output.
    #[error("Can't write output: {}", Reason::from(.0))]
    Output(#[from] io::Error),
}

/// Do what `argv` (its first word is the program's name) says; what there is to print goes to `out`.
///
/// # Errors
///
/// The first thing that went wrong; the instance is as it was, unless only the output failed.
pub fn run(argv: &[OsString], out: &mut dyn Write) -> Result<(), PestoError> {
    match args::parse(argv)? {
        Invocation::Help(text) | Invocation::Version(text) => out.write_all(text.as_bytes())?,
        Invocation::Run(plan) => carry_out(&plan, out)?,
    }
    out.flush()?;
    Ok(())
}

fn carry_out(plan: &Plan, out: &mut dyn Write) -> Result<(), PestoError> {
    let ephemeral = crate::config::ephemeral_ports();
    // The last file we need: what the other side sends is not to open another.
    let _ = crate::sandbox::forbid_files();
    match plan.output {
        Output::Tables => tables(plan, ephemeral, out),
        Output::Json => Ok(json::write(&report::fetch(&plan.path)?, out)?),
        Output::Watch => watch::run(&plan.path, out),
    }
}

/// Show the tables, or change them.
fn tables(plan: &Plan, ephemeral: (u16, u16), out: &mut dyn Write) -> Result<(), PestoError> {
    let path = shown(&plan.path);
    let mut connection = Connection::open(&plan.path)?;
    if plan.debug {
        show::details(out, connection.tables())?;
    }
    if plan.commands.is_empty() {
        show::tables(out, "passt/pasta", &path, connection.tables())?;
        return Ok(());
    }
    let changed = edit::apply(connection.tables(), &plan.commands, ephemeral)?;
    for warning in &changed.warnings {
        let _ = writeln!(io::stderr(), "{warning}");
    }
    if plan.show {
        show::tables(out, "Previous", &path, connection.tables())?;
    }
    connection.send(&changed.tables)?;
    if plan.show {
        show::tables(out, "Updated", &path, &changed.tables)?;
    }
    Ok(())
}

/// A path for messages.
fn shown(path: &Path) -> String {
    path.to_string_lossy().replace(char::is_control, "?")
}
