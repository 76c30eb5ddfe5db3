//! The whole program, from argv to the exit status: what each of the thin binaries calls.
//!
//! Which program it is, passt or pasta (`pesto` and `qrap` have entries of their own), is decided by the name it was started
//! under and by nothing else. Errors end here: one line on standard error with everything that led to them, exit
//! status 1.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::cli::{self, Invocation};
use crate::{launcher, pesto as client, qrap as wrapper};

/// Print to standard output; a reader that has gone away is not worth an error message.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What is refused is quoted, and no terminal is to obey it. Hints are on lines of their own.
fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "?")
}

fn fail(text: &str) -> ExitCode {
    // If standard error is closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{}", clean(text));
    ExitCode::FAILURE
}

/// Run the program that `argv[0]` names; the exit status is the one its caller is to see.
#[must_use]
pub fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    match cli::parse(&argv) {
        Ok(Invocation::Help(text) | Invocation::Version(text)) => print(&text),
        Ok(Invocation::PrintCapabilities) => print(r#"{"type": "net"}"#),
        Ok(Invocation::Run(options)) => {
            launcher::run(*options).unwrap_or_else(|e| fail(&launcher::chain(&e)))
        }
        Err(e) => fail(&e.message),
    }
}

/// `pesto`, from argv to the exit status.
#[must_use]
pub fn pesto() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    match client::run(&argv, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough of it.
        Err(client::PestoError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::FAILURE
        }
        Err(e) => fail(&e.to_string()),
    }
}

/// `qrap`: ends here only if it could not become qemu.
#[must_use]
pub fn qrap() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    fail(&wrapper::run(&argv).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_does_not_reach_the_terminal_as_a_command() {
        assert_eq!(clean("\x1b[2Jé\u{9b}\r\nhint"), "?[2Jé??\nhint");
    }
}
