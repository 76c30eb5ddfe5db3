//! How it ends: with its only guest (`--one-off`), or by a signal while a guest is connected.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{SOON, poll_until};
use crate::guest::Qemu;
use crate::harness::{Case, DIR};
use crate::lab::{Lab, Link, Setup, boot, configure, nothing_left, start_passt};
use crate::world::PEER4;

pub const CASES: &[Case] = &[
    ("one_off_stream", one_off_stream),
    ("one_off_vhost", one_off_vhost),
];

const VHOST: Link = Link::VhostUser { queues: 1 };

fn one_off_stream(lab: &mut Lab) {
    let setup = Setup {
        qemu: Qemu::Stable,
        ..Setup::new(Link::Stream)
    };
    one_off(lab, setup, &[]);
}

fn one_off_vhost(lab: &mut Lab) {
    one_off(lab, Setup::new(VHOST), &["--vhost-user"]);
}

/// kill -9 of qemu ends a one-off instance with status 0; a signal to one with a guest leaves the guest without
/// a network, and nothing else behind.
fn one_off(lab: &mut Lab, setup: Setup, args: &[&str]) {
    let socket = format!("{DIR}/once{}", args.len());
    let all = [&["-f", "-s", &socket, "--one-off"], args].concat();
    let passt = start_passt(&lab.world, &all);
    let listens = || fs::metadata(&socket).is_ok();
    assert!(poll_until(SOON, listens), "no socket");
    let mut guest = boot(&lab.world, &setup, &setup.network(&socket));
    configure(&guest);
    guest.sh(&format!("ping -n -c 1 -W 5 {PEER4}"));
    guest.kill();
    let end = passt.finish(SOON);
    assert_eq!(end.code, 0, "{}", end.both());
    nothing_left();

    // It stays behind, and a qemu that connects once would find nobody there.
    fs::remove_file(&socket).expect("the socket");
    let all = [&["-f", "-s", &socket], args].concat();
    let passt = start_passt(&lab.world, &all);
    assert!(poll_until(SOON, listens), "no socket");
    let mut guest = boot(&lab.world, &setup, &setup.network(&socket));
    configure(&guest);
    kill(Pid::from_raw(passt.id()), Signal::SIGTERM).expect("it is running");
    let end = passt.finish(SOON);
    assert_eq!(end.code, 0, "{}", end.both());
    nothing_left();
    assert!(guest.answers() && !guest.ended(), "qemu lives on");
}
