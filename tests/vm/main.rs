//! The virtual machine suite: a real guest kernel in a real qemu, connected by the program under test.
//!
//! ```text
//! guest (qemu) == socket == PASST in the host namespace == veth == peer
//! ```
//! Host and peer are those of the namespace suite (`tests/netns/world.rs`), as are the rules for a test. What
//! differs is that a guest takes seconds to boot. So tests come in *groups*: a group is one process in
//! namespaces of its own, which starts the program under test and a guest once, and then runs its *cases*
//! one after the other on that guest. A case leaves the guest usable: `Lab::online` brings it back to a known state
//! where one did not.
//!
//! `tests/vm/build` makes guest and qemus (see there); what it cannot have is a skipped group, with the reason.
//! The guest's agent is this very program, started with `--agent PORT` and given shell scripts to run
//! over a virtio serial port; in these, `t` is this program with `--tool` (`service.rs`), so that both ends of a
//! transfer share their code. KVM is used where a stock guest runs under it, emulation otherwise: no case measures
//! speed.
//!
//! With `PASST_UNDER_TEST=/path/to/passt` the same cases run against any other implementation;
//! `differences.rs` lists what is known to differ.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report of the suite goes to the terminal"
)]
#![allow(
    clippy::exit,
    reason = "a test process hands its verdict to the runner as its exit status"
)]

mod agent;
mod config;
mod differences;
mod endings;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/exec.rs"]
mod exec;
mod guest;
mod harness;
mod image;
mod lab;
mod life;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/options.rs"]
mod options;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/servers.rs"]
mod servers;
mod service;
mod traffic;
mod ways;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/world.rs"]
mod world;

use std::process::ExitCode;

use guest::Qemu;
use harness::Group;
use lab::{Lab, Link, Setup};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("--agent") => return agent::main(args.get(2).map_or("", String::as_str)),
        Some("--tool") => return service::tool(args.get(2..).unwrap_or_default()),
        _ => {}
    }
    harness::main(&[
        Group {
            name: "stream",
            cases: &[config::CASES, traffic::CASES, life::CASES],
            start: || {
                Lab::start(Setup {
                    qemu: Qemu::Stable,
                    ..Setup::new(Link::Stream)
                })
            },
        },
        Group {
            name: "vhost",
            cases: &[config::CASES, traffic::CASES, life::RESTART, life::CASES],
            start: || Lab::start(Setup::new(Link::VhostUser { queues: 1 })),
        },
        Group {
            name: "stream1500",
            cases: &[traffic::BULK, life::RESTART, life::KILL],
            start: || {
                Lab::start(Setup {
                    mtu: 1500,
                    ..Setup::new(Link::Stream)
                })
            },
        },
        Group {
            name: "vhost1500",
            cases: &[traffic::BULK, traffic::QUEUES, life::RESTART, life::KILL],
            start: || {
                Lab::start(Setup {
                    mtu: 1500,
                    ..Setup::new(Link::VhostUser { queues: 2 })
                })
            },
        },
        Group {
            name: "ways",
            cases: &[ways::CASES],
            start: Lab::empty,
        },
        Group {
            name: "endings",
            cases: &[endings::CASES],
            start: Lab::empty,
        },
    ])
}
