//! Confinement, tested from the inside and from the outside.
//!
//! [`filters`] forks children that go through the real last stage, `sandbox::confine`, and then try things:
//! every call a filter names must pass, everything else must kill. [`tables`] reads the tables themselves.
//! [`live`] starts the real program and compares its processes, as /proc shows them, with
//! `policy/processes.json`, and kills them one by one. [`hijack`] speaks in the name of a live forwarder. [`machine`] does
//! the same with passt.
#![allow(
    unsafe_code,
    reason = "raw system calls with forbidden numbers and fork have no safe wrapper"
)]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod descriptors;
mod filters;
mod hijack;
mod live;
mod machine;
mod policy;
mod syscalls;
mod tables;
