//! From what the user said and what the host has to what the guest gets.

use super::Config;
use super::namespace::NamespaceSetup;
use super::rules::Rule;

/// Everything decided at start-up.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// For the forwarder.
    pub config: Config,
    /// For the namespace agent (pasta).
    pub netns: NamespaceSetup,
    /// Host interface the IPv4 side is modelled on; `None`: local mode, or IPv4 is off.
    pub template4: Option<String>,
    /// Host interface the IPv6 side is modelled on.
    pub template6: Option<String>,
    /// Host name for the UTS namespace of a spawned command.
    pub uts_hostname: Option<String>,
    /// Inbound forwarding.
    pub host_rules: Vec<Rule>,
    /// Outbound forwarding of the namespace's loopback.
    pub splice_rules: Vec<Rule>,
    /// Lines for the log, at informational level, in order.
    pub notices: Vec<String>,
}

/// The host cannot give what the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);
