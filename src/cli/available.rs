//! What this version parses but cannot do yet.
//!
//! The whole grammar is checked from the start, so that a caller's command line fails for its own mistakes
//! with the right message. What remains is refused here, in one place, with one line each.

use super::CliError;
use crate::config::Mode;
use crate::config::options::Options;

impl Options {
    /// Refuse what this version cannot do. Automatic port forwarding is not refused: it acts as `none`.
    ///
    /// # Errors
    ///
    /// The first feature asked for that is missing.
    pub fn check_available(&self) -> Result<(), CliError> {
        let missing = [
            ("passt mode (virtual machines)", self.mode == Mode::Passt),
            ("--conf-path (the control socket)", self.conf_path.is_some()),
            ("--splice-only", self.splice_only),
        ];
        if let Some((what, _)) = missing.iter().find(|(_, asked)| *asked) {
            return Err(CliError::new(format!("{what} is not available yet")));
        }
        Ok(())
    }

    /// Refuse port forwarding that is not automatic. To be asked once the rules have been found valid: a
    /// mistake in a rule is the more useful thing to hear about.
    ///
    /// # Errors
    ///
    /// The first specification that would forward something.
    pub fn check_ports_available(&self) -> Result<(), CliError> {
        match self
            .ports
            .iter()
            .find(|p| !p.spec.is_none() && !p.spec.is_auto())
        {
            Some(port) => Err(CliError::new(format!(
                "Port forwarding ({}) is not available yet, except 'none' and 'auto'",
                port.table.option(port.protocol)
            ))),
            None => Ok(()),
        }
    }
}
