//! The clients suite: podman, buildah, rootlesskit and Docker of Debian sid, and what they make of the program under test.
//!
//! Such a client decides when pasta is started, as whom, in which namespaces and with which arguments; it waits for
//! it, reads what it set up, and ends it in a way of its own. Each of that is an agreement that only the client
//! can check. So each test is a machine ([`machine`]): the root directory that `tests/clients/root` made, with our
//! package installed as an administrator installs it, an ordinary user, and the network of the namespace suite
//! (`tests/netns/world.rs`) with servers behind it ([`service`]). A test says what the user types.
//!
//! Invariants: a test is process 2 of a process namespace of its own, and process 1 reaps; what it writes goes to
//! memory; whatever it starts ends with it. Nothing comes from a network: the image is made of Debian's binaries.
//!
//! `PASST_UNDER_TEST=/path/to/pasta` runs the suite with another program in place of the package's, and
//! `PASST_UNDER_TEST=distribution` with Debian's own passt; what is known to differ there, see `differences.rs`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report of the suite goes to the terminal"
)]
#![allow(
    clippy::exit,
    reason = "a test process hands its verdict to the runner as its exit status"
)]

mod bridge;
mod build;
mod buildah;
mod container;
mod crowd;
mod differences;
mod docker;
mod errors;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/exec.rs"]
mod exec;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/harness.rs"]
mod harness;
mod hosts;
mod leftovers;
mod lifecycle;
mod machine;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/options.rs"]
mod options;
mod package;
mod podman;
mod ports;
mod prepare;
mod rootlesskit;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/servers.rs"]
mod servers;
mod service;
mod smoke;
mod workload;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/world.rs"]
mod world;

use std::process::ExitCode;
use std::time::Duration;

use harness::Manner;

/// Podman's starts, thirty at a time, on a busy machine.
const LIMIT: Duration = Duration::from_secs(400);
/// The group of tests that wait for ten minutes, and what has to be in the environment for it to be there.
const LONG: &str = "long";
const LONG_TOO: &str = "CLIENTS_SUITE_LONG";
const LONG_LIMIT: Duration = Duration::from_secs(1200);

fn main() -> ExitCode {
    if !prepare::done() {
        return prepare::and_start_again();
    }
    let mut groups = vec![
        ("smoke", smoke::TESTS),
        ("package", package::TESTS),
        ("podman", podman::TESTS),
        ("ports", ports::TESTS),
        ("bridge", bridge::TESTS),
        ("build", build::TESTS),
        ("buildah", buildah::TESTS),
        ("rootlesskit", rootlesskit::TESTS),
        ("docker", docker::TESTS),
        ("hosts", hosts::TESTS),
        ("lifecycle", lifecycle::TESTS),
        ("leftovers", leftovers::TESTS),
        ("crowd", crowd::TESTS),
        ("errors", errors::TESTS),
        ("workload", workload::TESTS),
    ];
    if std::env::var_os(LONG_TOO).is_some() {
        groups.push((LONG, workload::long::TESTS));
    }
    harness::main_with(
        &groups,
        Manner {
            limit: |name| {
                if name.starts_with(LONG) {
                    LONG_LIMIT
                } else {
                    LIMIT
                }
            },
            reaper: true,
        },
    )
}
