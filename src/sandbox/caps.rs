//! Capabilities: none, in any set, and no way to get one back. The one exception is CAP_NET_BIND_SERVICE, for a
//! process whose policy allows it and whose rules need it: ports below 1024 that are bound only later.
//!
//! The bounding set can only be dropped while CAP_SETPCAP is effective, so it goes first; where the
//! process never had CAP_SETPCAP (no user namespace of its own, see the ladder) the bounding set stays and
//! no_new_privs has to do.

use caps::{CapSet, Capability, CapsHashSet};

use super::SandboxError;
use crate::sys::process;

/// Empty every set, except that `low_ports` leaves CAP_NET_BIND_SERVICE in force if the process has it. True if the
/// bounding set is among those emptied and the securebits are locked.
pub(super) fn give_up(low_ports: bool) -> Result<bool, SandboxError> {
    let may_drop =
        caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(|e| error(&e))?;
    if may_drop {
        process::drop_bounding_set().map_err(|e| SandboxError::Attribute("bounding set", e))?;
        process::lock_securebits().map_err(|e| SandboxError::Attribute("securebits", e))?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(|e| error(&e))?;
    }
    let bind = Capability::CAP_NET_BIND_SERVICE;
    let has = low_ports && caps::has_cap(None, CapSet::Permitted, bind).map_err(|e| error(&e))?;
    let kept: CapsHashSet = has.then_some(bind).into_iter().collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(|e| error(&e))?;
    }
    Ok(may_drop)
}

fn error(e: &caps::errors::CapsError) -> SandboxError {
    SandboxError::Caps(e.to_string())
}
