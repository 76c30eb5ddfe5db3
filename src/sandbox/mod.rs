//! Confinement, in stages: what a process gives up between its last privileged act and its first
//! byte from outside.
//!
//! The tables in `policy/processes.json` and `seccomp/*.json` say what each process keeps; the build turns
//! them into `Policy` values and this module carries them out, one file for each mechanism. The order
//! matters and is fixed: own namespaces first (made by the launcher when it clones, or by
//! [`unshare`]), then [`confine`]: empty root, resource limits, capabilities *while they still allow dropping
//! the bounding set*, core dumps and executable memory off, no new privileges, Landlock, seccomp last.
//!
//! Every step is fatal unless the ladder permits: of {user namespace with an empty root, Landlock
//! without files, seccomp} two must hold, and what was achieved is reported ([`Achieved`]).
//! [`Confined`] can only be had from [`confine`]: a value of that type is the proof the forwarder's loop
//! asks for before it reads a guest's byte.

mod caps;
mod landlock;
mod mounts;
mod policy;
mod seccomp;

use std::io;

use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};

use crate::sys;

pub use landlock::forbid_files;
pub use policy::Role;

/// Why confinement failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A resource limit could not be lowered.
    #[error("Can't lower resource limit {0:?}")]
    Limit(Resource, #[source] io::Error),
    /// Capabilities could not be given up.
    #[error("Can't give up capabilities: {0}")]
    Caps(String),
    /// A prctl(2) failed.
    #[error("Can't set process attribute {0}")]
    Attribute(&'static str, #[source] io::Error),
    /// The filter was not accepted.
    #[error("Can't install the system call filter: {0}")]
    Seccomp(String),
    /// Too little was available.
    #[error(
        "Too little confinement on this system ({0}): at least two of user namespaces, Landlock and seccomp must work"
    )]
    Ladder(Achieved),
}

/// What was achieved, as bits that also travel in messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Achieved(u32);

impl Achieved {
    /// Own mount namespace with an empty read-only root.
    pub const EMPTY_ROOT: Self = Self(1);
    /// Landlock: no file can be opened.
    pub const LANDLOCK_FILES: Self = Self(1 << 1);
    /// Landlock: TCP ports cannot be bound, or (by those who bind them) not connected to.
    pub const LANDLOCK_NET: Self = Self(1 << 2);
    /// Landlock: no abstract UNIX socket and no process outside can be reached.
    pub const LANDLOCK_SCOPES: Self = Self(1 << 3);
    /// The bounding set is empty and the securebits are locked.
    pub const BOUNDING_SET: Self = Self(1 << 4);
    /// Memory cannot become executable.
    pub const NO_EXEC_GAIN: Self = Self(1 << 5);
    /// The system call filter is on.
    pub const SECCOMP: Self = Self(1 << 6);

    const NAMES: [(Self, &'static str); 7] = [
        (Self::EMPTY_ROOT, "empty root"),
        (Self::LANDLOCK_FILES, "Landlock files"),
        (Self::LANDLOCK_NET, "Landlock network"),
        (Self::LANDLOCK_SCOPES, "Landlock scopes"),
        (Self::BOUNDING_SET, "bounding set"),
        (Self::NO_EXEC_GAIN, "no executable memory"),
        (Self::SECCOMP, "seccomp"),
    ];

    /// Bits as sent to the monitor.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Bits as received; unknown ones are dropped.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & 0x7f)
    }

    /// All of `other` was achieved.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of what was achieved.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter(move |(bit, _)| self.contains(*bit))
            .map(|(_, name)| name)
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    fn add_if(&mut self, other: Self, achieved: bool) {
        if achieved {
            self.add(other);
        }
    }

    /// The ladder: two of three walls.
    fn enough(self) -> bool {
        [Self::EMPTY_ROOT, Self::LANDLOCK_FILES, Self::SECCOMP]
            .into_iter()
            .filter(|wall| self.contains(*wall))
            .count()
            >= 2
    }
}

impl std::fmt::Display for Achieved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut first = true;
        for (bit, name) in Self::NAMES {
            if self.contains(bit) {
                if !first {
                    f.write_str(", ")?;
                }
                first = false;
                f.write_str(name)?;
            }
        }
        if first {
            f.write_str("nothing")?;
        }
        Ok(())
    }
}

/// Proof of confinement: only [`confine`] makes one.
#[derive(Debug)]
pub struct Confined {
    achieved: Achieved,
}

impl Confined {
    /// What the proof covers.
    #[must_use]
    pub const fn achieved(&self) -> Achieved {
        self.achieved
    }
}

/// What differs from run to run, decided by the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// Regular files are written (capture, log): no limit on their size.
    pub writes_files: bool,
    /// Outbound TCP sockets are bound to a source address (`-o`), with port 0.
    pub source_address: bool,
    /// Upper bound of open descriptors; `None`: as inherited.
    pub descriptors: Option<u64>,
    /// Ports below `net.ipv4.ip_unprivileged_port_start` may have to be bound later, and this process may do that.
    pub low_ports: bool,
    /// `--trace`: a forbidden call is reported by a handler before the process ends.
    pub report_violations: bool,
}

/// The namespaces `role` is to have for itself, for clone(2) or [`unshare`].
#[must_use]
pub fn namespaces(role: Role) -> CloneFlags {
    role.policy()
        .own
        .iter()
        .fold(CloneFlags::empty(), |all, ns| all | *ns)
}

/// Give the calling process the namespaces of its own that its policy names, but no user namespace if it is to bind
/// low ports; false if this
/// system does not allow it (the ladder decides whether that is enough).
pub fn unshare(role: Role, needs: Needs) -> bool {
    let mut flags = namespaces(role);
    if needs.low_ports {
        // What a capability is worth in a network namespace depends on the user namespace.
        flags -= CloneFlags::CLONE_NEWUSER;
    }
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        let ids = sys::ids::Ids::current();
        if nix::sched::unshare(flags).is_ok() {
            return sys::ids::map_self(ids).is_ok();
        }
        let others = flags - CloneFlags::CLONE_NEWUSER;
        return nix::sched::unshare(others).is_ok();
    }
    nix::sched::unshare(flags).is_ok()
}

/// Give up everything `role` does not keep. Irreversible; seccomp is on when this returns.
///
/// `own_mounts`: the process has a mount namespace of its own, whose root may be emptied.
pub fn confine(role: Role, own_mounts: bool, needs: Needs) -> Result<Confined, SandboxError> {
    let policy = role.policy();
    let mut achieved = Achieved::default();
    achieved.add_if(
        Achieved::EMPTY_ROOT,
        own_mounts && mounts::empty_root().is_ok(),
    );
    for &(resource, value) in policy.rlimits {
        if resource == Resource::RLIMIT_FSIZE && needs.writes_files {
            continue;
        }
        setrlimit(resource, value, value).map_err(|e| SandboxError::Limit(resource, e.into()))?;
    }
    if let Some(n) = needs.descriptors {
        setrlimit(Resource::RLIMIT_NOFILE, n, n)
            .map_err(|e| SandboxError::Limit(Resource::RLIMIT_NOFILE, e.into()))?;
    }
    achieved.add_if(
        Achieved::BOUNDING_SET,
        caps::give_up(needs.low_ports && policy.low_ports)?,
    );
    nix::sys::prctl::set_dumpable(false)
        .map_err(|e| SandboxError::Attribute("dumpable", e.into()))?;
    achieved.add_if(
        Achieved::NO_EXEC_GAIN,
        sys::process::refuse_exec_gain().is_ok(),
    );
    nix::sys::prctl::set_no_new_privs()
        .map_err(|e| SandboxError::Attribute("no_new_privs", e.into()))?;
    landlock::restrict(policy, needs, &mut achieved);
    // Judged before the filter is on, so that the error can still be told.
    let mut expected = achieved;
    expected.add(Achieved::SECCOMP);
    if !expected.enough() {
        return Err(SandboxError::Ladder(achieved));
    }
    match seccomp::install(policy, needs.report_violations) {
        Ok(()) => achieved.add(Achieved::SECCOMP),
        Err(e) if achieved.enough() => log::warn!("{e}; continuing without it"),
        Err(e) => return Err(e),
    }
    Ok(Confined { achieved })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_walls_are_enough_and_one_is_not() {
        let (root, files, filter) = (
            Achieved::EMPTY_ROOT,
            Achieved::LANDLOCK_FILES,
            Achieved::SECCOMP,
        );
        assert!(!Achieved::default().enough());
        for wall in [root, files, filter] {
            let mut one = wall;
            one.add(Achieved::BOUNDING_SET);
            one.add(Achieved::LANDLOCK_NET);
            assert!(!one.enough());
        }
        for (a, b) in [(root, files), (root, filter), (files, filter)] {
            let mut two = a;
            two.add(b);
            assert!(two.enough());
        }
    }

    #[test]
    fn bits_survive_the_journey_and_have_names() {
        let mut all = Achieved::default();
        for (bit, _) in Achieved::NAMES {
            assert!(!all.contains(bit));
            all.add(bit);
        }
        assert_eq!(Achieved::from_bits(all.bits()), all);
        assert_eq!(Achieved::from_bits(u32::MAX), all);
        assert_eq!(Achieved::default().to_string(), "nothing");
    }
}
