//! The namespace suite: real programs, the real kernel, a network of our own.
//!
//! Every test is a process of its own, in fresh user, mount, network and process namespaces (so it needs
//! no root, leaves nothing behind and cannot disturb its neighbours).  The network namespace it starts in
//! plays the *host*; the test adds a *peer* behind a veth pair, sometimes a *router* in between, and a
//! *guest* namespace that the program under test connects.  Programs and threads then run in whichever
//! of these they belong to.
//!
//! The program under test is the one cargo built, started under the name `pasta`.  With
//! `PASST_UNDER_TEST=/path/to/pasta` the same tests run against any other implementation; what is known
//! to differ there is listed in `differences.rs` and explained in `tests/DIFFERENCES.md`.
//!
//! Rules for a test: wait for a condition, never for a time; bound every wait; fail with what was seen.
//! A test that needs something the machine lacks says so (`need`, `skip`), which prints one
//! `skipped:` line.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report of the suite goes to the terminal"
)]
#![allow(
    clippy::exit,
    reason = "a test process hands its verdict to the runner as its exit status"
)]

mod auto;
mod client_addresses;
mod client_errors;
mod client_life;
mod clients;
mod config;
mod control;
mod dhcp;
mod differences;
mod dns;
mod errors;
mod exec;
mod harness;
mod icmp;
mod inbound;
mod mapping;
mod matrix;
mod modes;
mod neighbours;
mod observe;
mod options;
mod ports;
mod prompt;
mod reach;
mod rootlesskit;
mod servers;
mod splice;
mod tcp;
mod udp;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(&[
        ("auto", auto::TESTS),
        ("client_addresses", client_addresses::TESTS),
        ("client_errors", client_errors::TESTS),
        ("client_life", client_life::TESTS),
        ("clients", clients::TESTS),
        ("config", config::TESTS),
        ("control", control::TESTS),
        ("dhcp", dhcp::TESTS),
        ("dns", dns::TESTS),
        ("errors", errors::TESTS),
        ("icmp", icmp::TESTS),
        ("inbound", inbound::TESTS),
        ("mapping", mapping::TESTS),
        ("matrix", matrix::TESTS),
        ("modes", modes::TESTS),
        ("neighbours", neighbours::TESTS),
        ("observe", observe::TESTS),
        ("ports", ports::TESTS),
        ("prompt", prompt::TESTS),
        ("rootlesskit", rootlesskit::TESTS),
        ("splice", splice::TESTS),
        ("tcp", tcp::TESTS),
        ("udp", udp::TESTS),
    ])
}
