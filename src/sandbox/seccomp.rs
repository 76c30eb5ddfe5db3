//! The system call filter: the last stage.

use super::SandboxError;
use super::policy::Policy;
use crate::sys::sigsys;

/// Install the filter. With `report`, a forbidden call raises SIGSYS for a handler that logs its number
/// and ends the process; without, the kernel kills at once. Nothing is allowed in either case.
pub(super) fn install(policy: &Policy, report: bool) -> Result<(), SandboxError> {
    let program = if report {
        sigsys::report_and_exit().map_err(|e| SandboxError::Attribute("SIGSYS handler", e))?;
        policy.trap
    } else {
        policy.kill
    };
    seccompiler::apply_filter(program).map_err(|e| SandboxError::Seccomp(e.to_string()))
}
