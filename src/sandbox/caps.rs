//! Capabilities: none, in any set, and no way to get one back.
//!
//! The bounding set can only be dropped while CAP_SETPCAP is effective, so it goes first; where the
//! process never had CAP_SETPCAP (no user namespace of its own, see the ladder) the bounding set stays and
//! no_new_privs has to do.

use caps::{CapSet, Capability};

use super::SandboxError;
use crate::sys::process;

/// Empty every set. True if the bounding set is among them and the securebits are locked.
pub(super) fn give_up() -> Result<bool, SandboxError> {
    let may_drop =
        caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(|e| error(&e))?;
    if may_drop {
        process::drop_bounding_set().map_err(|e| SandboxError::Attribute("bounding set", e))?;
        process::lock_securebits().map_err(|e| SandboxError::Attribute("securebits", e))?;
    }
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).map_err(|e| error(&e))?;
    }
    Ok(may_drop)
}

fn error(e: &caps::errors::CapsError) -> SandboxError {
    SandboxError::Caps(e.to_string())
}
