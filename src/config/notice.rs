//! What the decisions of start-up have to tell the user, kept until there is a log.

use log::Level;

/// A line for the log, once there is one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// How important.
    pub level: Level,
    /// What.
    pub text: String,
}

impl Notice {
    pub(super) fn warning(text: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            text: text.into(),
        }
    }

    pub(super) fn info(text: impl Into<String>) -> Self {
        Self {
            level: Level::Info,
            text: text.into(),
        }
    }
}
