//! What the distribution's passt is known not to do as this suite demands, with the reason.
//!
//! Used only with `PASST_UNDER_TEST=distribution`: such a test is reported as skipped.

use crate::prepare::{DISTRIBUTION, UNDER_TEST};

/// Test name, and why it is not asked of the distribution's program.
const TABLE: &[(&str, &str)] = &[
    ("podman::pod_restart", PREDECESSOR),
    ("lifecycle::restart_under_load", PREDECESSOR),
    ("lifecycle::restart_policy", PREDECESSOR),
    ("lifecycle::wide_ranges", PREDECESSOR),
    ("lifecycle::without_inotify", PREDECESSOR),
    ("crowd::restart_all", PREDECESSOR),
    (
        "errors::user_namespaces_forbidden",
        "root of a container that may not make a namespace of users gets along without one",
    ),
    (
        "hosts::several_addresses",
        "a client that uses the host's second IPv6 address is shown to the container by that address, its own",
    ),
];

const PREDECESSOR: &str =
    "at a restart it may find its own predecessor still at the port, and gives up";

/// Is the program under test the distribution's?
pub fn established() -> bool {
    std::env::var(UNDER_TEST).is_ok_and(|v| v == DISTRIBUTION)
}

/// Why a test is not run against the program under test, if so.
pub fn skip_reason(name: &str) -> Option<String> {
    let (_, why) = TABLE.iter().find(|(n, _)| *n == name)?;
    established().then(|| format!("the distribution's program differs: {why}"))
}
