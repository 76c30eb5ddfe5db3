//! What this version parses but cannot do yet.
//!
//! The whole grammar is checked from the start, so that a caller's command line fails for its own mistakes
//! with the right message. What remains is refused here, in one place, with one line each.

use super::CliError;
use crate::config::options::Options;

impl Options {
    /// Refuse what this version cannot do.
    ///
    /// # Errors
    ///
    /// The first feature asked for that is missing.
    pub fn check_available(&self) -> Result<(), CliError> {
        let missing = [("vhost-user", self.socket.vhost_user)];
        if let Some((what, _)) = missing.iter().find(|(_, asked)| *asked) {
            return Err(CliError::new(format!("{what} is not available yet")));
        }
        Ok(())
    }
}
