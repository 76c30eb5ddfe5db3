//! Landlock: the second wall around files, the first around TCP ports, and the scopes.
//!
//! Best effort by kernel version; what was had is reported. Denials stay in the kernel's audit log: they
//! are evidence.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, NetPort, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::policy::Policy;
use super::{Achieved, Needs};

/// Newest rights this file knows how to ask for.
const KNOWN: ABI = ABI::V6;

/// Restrict the calling process; add what took hold to `achieved`.
pub(super) fn restrict(policy: &Policy, needs: Needs, achieved: &mut Achieved) {
    let Ok(status) = apply(policy, needs) else {
        return;
    };
    let LandlockStatus::Available { effective_abi, .. } = status else {
        return;
    };
    achieved.add(Achieved::LANDLOCK_FILES);
    achieved.add_if(Achieved::LANDLOCK_NET, effective_abi >= ABI::V4);
    achieved.add_if(Achieved::LANDLOCK_SCOPES, effective_abi >= ABI::V6);
}

fn apply(policy: &Policy, needs: Needs) -> Result<LandlockStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .scope(Scope::AbstractUnixSocket)?;
    if policy.signal_scope {
        ruleset = ruleset.scope(Scope::Signal)?;
    }
    if !policy.tcp_bind {
        ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
    }
    if !policy.tcp_connect {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut created = ruleset.create()?;
    if needs.source_address && !policy.tcp_bind {
        // Port 0 only: a source address for an outgoing connection. The filter has no listen.
        created = created.add_rule(NetPort::new(0, AccessNet::BindTcp))?;
    }
    Ok(created.restrict_self()?.landlock)
}

/// For a short-lived program with nothing more to open: no file and no TCP port for the calling thread from here
/// on. UNIX sockets can still be connected to by path. Best effort; false if there is no Landlock.
#[must_use]
pub fn forbid_files() -> bool {
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|ruleset| ruleset.scope(Scope::AbstractUnixSocket))
        .and_then(|ruleset| ruleset.scope(Scope::Signal))
        .and_then(Ruleset::create)
        .and_then(RulesetCreated::restrict_self);
    restricted.is_ok_and(|status| matches!(status.landlock, LandlockStatus::Available { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_gave_up_files_opens_none_and_can_still_connect_by_path() {
        let path = std::env::temp_dir().join(format!("passt-landlock-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        let connect = path.clone();
        std::thread::spawn(move || {
            if forbid_files() {
                let e = std::fs::read("/proc/self/status").expect_err("forbidden");
                assert_eq!(e.kind(), std::io::ErrorKind::PermissionDenied);
            }
            std::os::unix::net::UnixStream::connect(&connect).expect("connects");
        })
        .join()
        .expect("thread");
        drop(listener);
        std::fs::remove_file(&path).expect("remove");
    }
}
