//! What each process keeps, as generated from `policy/processes.json` and `seccomp/*.json` by the build.

use nix::sched::CloneFlags;
use nix::sys::resource::Resource;
use seccompiler::sock_filter;

/// Which process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Translates; sees the guest's bytes. pasta's.
    Forwarder,
    /// passt's, which has no tap, no ns-agent and nothing to splice.
    ForwarderStream,
    /// passt's with vhost-user, which maps the guest's memory.
    ForwarderVhostUser,
    /// What the launcher becomes.
    Monitor,
    /// Lives in the target network namespace.
    NsAgent,
}

impl Role {
    pub(super) fn policy(self) -> &'static Policy {
        match self {
            Self::Forwarder => &FORWARDER,
            Self::ForwarderStream => &FORWARDER_STREAM,
            Self::ForwarderVhostUser => &FORWARDER_VHOST_USER,
            Self::Monitor => &MONITOR,
            Self::NsAgent => &NS_AGENT,
        }
    }

    /// Name in log lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarder | Self::ForwarderStream | Self::ForwarderVhostUser => "forwarder",
            Self::Monitor => "monitor",
            Self::NsAgent => "ns-agent",
        }
    }
}

/// One process's row. No row opens a file, and only processes that see no traffic bind TCP ports or may keep the
/// capability for low ones: the build refuses anything else.
pub(super) struct Policy {
    /// Namespaces of its own.
    pub(super) own: &'static [CloneFlags],
    /// CAP_NET_BIND_SERVICE may stay where it is needed.
    pub(super) low_ports: bool,
    /// Landlock leaves TCP bind alone.
    pub(super) tcp_bind: bool,
    /// Landlock leaves TCP connect alone.
    pub(super) tcp_connect: bool,
    /// Landlock keeps signals from everybody outside.
    pub(super) signal_scope: bool,
    /// Hard and soft limit.
    pub(super) rlimits: &'static [(Resource, u64)],
    /// Filter whose default action is to kill the process.
    pub(super) kill: &'static [sock_filter],
    /// The same with SIGSYS instead, for a handler that names the call.
    pub(super) trap: &'static [sock_filter],
}

include!(concat!(env!("OUT_DIR"), "/policy.rs"));
