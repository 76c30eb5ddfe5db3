//! The command line: from `argv` to [`Options`], with the habits of `getopt_long` that callers rely on.
//!
//! Four steps, one file each. `getopt` turns the words into a canonical list and reports unknown,
//! ambiguous and incomplete options in the C library's words (podman matches on them). clap collects that list
//! into the structures of `args`, which are also what `--help` prints. `build` gives every value its type and
//! checks combinations. [`Options`] is the result: what the user said, nothing about the host.
//!
//! A command line that parses is honoured or refused. What is accepted for compatibility only says so in
//! [`Options::notices`].

mod args;
mod build;
pub(crate) mod getopt;
mod values;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Arg, CommandFactory, FromArgMatches};

use self::getopt::{Definition, Immediate, Scanned};
use crate::config::Mode;

pub use crate::config::options::{
    Address4, Disabled, IdOrName, List, Mapping, Options, PerFamily, RunAs, SocketOptions, Target,
};

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Start.
    Run(Box<Options>),
    /// Print this on standard output, exit 0.
    Help(String),
    /// Print this on standard output, exit 0.
    Version(String),
    /// Print the vhost-user back-end capabilities, exit 0.
    PrintCapabilities,
}

/// Why a command line was refused: what to print on standard error before exiting with status 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// One line naming option and value (a hint may follow on lines of its own).
    pub message: String,
}

impl CliError {
    /// An error with this text.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

/// Parse a whole command line, `argv[0]` included: its last component says which program this is.
///
/// # Errors
///
/// The first thing wrong with it.
pub fn parse(argv: &[OsString]) -> Result<Invocation, CliError> {
    let (name, words) = argv
        .split_first()
        .ok_or_else(|| CliError::new("No program name given: start this as passt or pasta"))?;
    let (mode, program) = mode_of(name)?;
    let command = args::Arguments::command();
    let scanned = getopt::scan(&program, &definitions(&command), words)?;
    let (options, rest) = match scanned {
        Scanned::Immediate(Immediate::Help) => return Ok(Invocation::Help(help(mode, &program))),
        Scanned::Immediate(Immediate::Version) => {
            return Ok(Invocation::Version(version(&program)));
        }
        Scanned::Immediate(Immediate::PrintCapabilities) => {
            return Ok(Invocation::PrintCapabilities);
        }
        Scanned::Words { options, rest } => (options, rest),
    };
    check_mode(mode, &options)?;
    let canonical = std::iter::once(OsString::from(&program))
        .chain(options)
        .chain(std::iter::once(OsString::from("--")))
        .chain(rest);
    let arguments = command
        .try_get_matches_from(canonical)
        .and_then(|matches| args::Arguments::from_arg_matches(&matches))
        .map_err(|e| collected(&program, &e))?;
    build::options(mode, &program, arguments).map(|options| Invocation::Run(Box::new(options)))
}

/// passt or pasta? By name alone, as there is one binary.
fn mode_of(argv0: &OsStr) -> Result<(Mode, String), CliError> {
    let base = Path::new(argv0)
        .file_name()
        .unwrap_or(argv0)
        .to_string_lossy()
        .into_owned();
    // The alias contains "passt", too.
    let mode = if base.contains("pasta") || base.contains("passt4netns") {
        Mode::Pasta
    } else if base.contains("passt") {
        Mode::Passt
    } else {
        return Err(CliError::new(format!(
            "Cannot determine mode of operation from '{base}': start this as passt or pasta"
        )));
    };
    Ok((mode, base))
}

fn definitions(command: &clap::Command) -> Vec<Definition> {
    command
        .get_arguments()
        .filter_map(|arg| {
            Some(Definition {
                long: arg.get_long()?.to_owned(),
                aliases: arg
                    .get_all_aliases()
                    .unwrap_or_default()
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                short: arg.get_short().and_then(|c| u8::try_from(c).ok()),
                takes_value: arg.get_action().takes_values(),
            })
        })
        .collect()
}

/// What is left for clap to complain about: a value that is not UTF-8 where text is needed.
fn collected(program: &str, error: &clap::Error) -> CliError {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    CliError::new(format!(
        "{program}: {}",
        line.strip_prefix("error: ").unwrap_or(line)
    ))
}

fn version(program: &str) -> String {
    format!("{program} {}\n", env!("CARGO_PKG_VERSION"))
}

fn help(mode: Mode, program: &str) -> String {
    let usage = match mode {
        Mode::Passt => format!("{program} [OPTION]..."),
        Mode::Pasta => format!(
            "{program} [OPTION]... [COMMAND [ARG]...]\n       {program} [OPTION]... PID\n       \
             {program} [OPTION]... --netns PATH|NAME"
        ),
    };
    let about = match mode {
        Mode::Passt => "Connect a virtual machine to the network, without privileges.",
        Mode::Pasta => {
            "Connect a network namespace to the network, without privileges. With neither PID nor\n\
             --netns, run COMMAND (a shell by default) in new user and network namespaces."
        }
    };
    args::Arguments::command()
        .mut_args(|arg| {
            if applies(mode, &arg) {
                arg
            } else {
                arg.hide(true)
            }
        })
        .override_usage(usage)
        .about(about)
        .help_template("Usage: {usage}\n\n{about}\n\n{options}\n")
        .render_help()
        .to_string()
}

/// Refuse what only the other program has.
fn check_mode(mode: Mode, options: &[OsString]) -> Result<(), CliError> {
    let (other, its) = foreign(mode);
    let name_of = |word: &OsString| {
        let text = word.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        name.trim_start_matches('-').to_owned()
    };
    match options
        .iter()
        // Asking for no repair socket is true of pasta, and accepted by the established one.
        .filter(|word| *word != "--repair-path=none")
        .map(name_of)
        .find(|name| its.contains(&name.as_str()))
    {
        Some(name) => Err(CliError::new(format!("--{name} is for {other} mode only"))),
        None => Ok(()),
    }
}

/// The other program, and what only it has.
const fn foreign(mode: Mode) -> (&'static str, &'static [&'static str]) {
    match mode {
        Mode::Passt => ("pasta", args::PASTA_ONLY),
        Mode::Pasta => ("passt", args::PASST_ONLY),
    }
}

/// Is the option for this mode?
fn applies(mode: Mode, arg: &Arg) -> bool {
    let (_, its) = foreign(mode);
    !arg.is_hide_set() && !arg.get_long().is_some_and(|long| its.contains(&long))
}

#[cfg(test)]
pub(crate) mod completions;
#[cfg(test)]
mod tests;
