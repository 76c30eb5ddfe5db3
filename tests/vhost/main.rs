//! passt against a hostile machine: a vhost-user frontend and a stream client of our own.
//!
//! ```text
//! a test's own frames, or            rings in a memfd, or
//! a namespace's kernel --tap-- driver ---------------- socket --- PASST in host ==veth== peer
//! ```
//!
//! [`ring`] and [`nic`] are a virtio network driver, strict about everything the device does; [`pump`] gives it a
//! real kernel, so that TCP with every combination of offloads is the kernel's. [`raw`] and the ring's plain
//! accessors send what no driver would. The oracle of the hostile tests is the same throughout: the program says
//! what it did not like and lets the client go, or ignores it; it serves the next client; it never panics, dies of a
//! signal, hangs, or keeps a descriptor.
//!
//! Namespaces and the runner are those of `tests/netns`. `PASST_UNDER_TEST=/path/to/passt` points the suite at
//! another implementation; what is known to differ there is listed in `differences.rs`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report of the suite goes to the terminal"
)]
#![allow(
    clippy::exit,
    reason = "a test process hands its verdict to the runner as its exit status"
)]

mod confinement;
mod differences;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/exec.rs"]
mod exec;
mod frames;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/harness.rs"]
mod harness;
mod header;
mod life;
mod link;
mod memory;
mod messages;
mod nic;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/options.rs"]
mod options;
mod passt;
#[allow(dead_code, reason = "shared with the suite of the sandbox")]
#[path = "../sandbox/policy.rs"]
mod policy;
mod pump;
mod raw;
mod ring;
mod rings;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/servers.rs"]
mod servers;
mod starved;
mod stream;
mod traffic;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/world.rs"]
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(&[
        ("confinement", confinement::TESTS),
        ("life", life::TESTS),
        ("link", link::TESTS),
        ("messages", messages::TESTS),
        ("rings", rings::TESTS),
        ("starved", starved::TESTS),
        ("stream", stream::TESTS),
        ("traffic", traffic::TESTS),
    ])
}
