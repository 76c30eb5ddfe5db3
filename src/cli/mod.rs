//! The command line: from `argv` to [`Options`], with the habits of `getopt_long` that callers rely on.

mod options;

pub use options::{
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
    /// One line naming option and value (a usage hint may follow on its own lines).
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
