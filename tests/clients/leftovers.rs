//! What a user finds who was interrupted: by a crash, a boot, the end of a session, or podman's own cleaning up.
//!
//! podman keeps what it knows of running containers in files that vanish at a boot, and believes them. Here they are
//! older than what runs, or gone from under it. None of that may leave an instance of pasta that nobody will ever
//! end, nor keep the next one from starting.

use std::fs;

use crate::exec::poll_until;
use crate::harness::tests;
use crate::lifecycle::{ANSWER, answers, expect_instances, run};
use crate::machine::{Machine, RUNTIME_DIR};
use crate::world::HOST4;

tests![; root: crash, boot, logout, migrate, reset];

const PUBLISHED: &str = "--stop-timeout 0 -p 8080:80";

/// A machine with the container c, which answers.
fn serving() -> Machine {
    let m = Machine::with_image();
    run(&m, "c", PUBLISHED);
    reachable(&m);
    m
}

#[track_caller]
fn reachable(m: &Machine) {
    answers(&m.world.peer, (HOST4, 8080), "c");
    expect_instances(m, 1);
}

/// All processes of the user end, without a chance to say anything.
#[track_caller]
fn kill_all(m: &Machine) {
    // All but the shell that does it.
    m.user("kill -9 -1");
    let users = || m.root("pgrep -u user || true");
    let gone = poll_until(ANSWER, || users().is_empty());
    assert!(gone, "still there: {}", users());
    expect_instances(m, 0);
}

/// Files of a boot: all of the runtime directory, and podman's locks.
#[track_caller]
fn wipe(m: &Machine) {
    m.root(&format!("rm -rf {RUNTIME_DIR}/* /dev/shm/libpod*"));
}

/// Everything was killed, and the files say that the container runs.
fn crash() {
    let m = serving();
    kill_all(&m);
    assert!(fs::read_dir(format!("{RUNTIME_DIR}/netns")).is_ok_and(|d| d.count() == 1));
    m.user("podman rm -f -t 0 c");
    m.clean();
    run(&m, "c", PUBLISHED);
    reachable(&m);
    m.user("podman rm -f -t 0 c");
    m.clean();
}

/// The container was not stopped before the machine was switched off.
fn boot() {
    let m = serving();
    kill_all(&m);
    wipe(&m);
    m.user("podman start c");
    reachable(&m);
    m.user("podman restart c");
    reachable(&m);
    m.user("podman rm -f c");
    m.clean();
}

/// The runtime directory goes while the container runs; pasta goes with it, and the next session starts anew.
fn logout() {
    let m = serving();
    m.root(&format!("rm -rf {RUNTIME_DIR}/netns"));
    expect_instances(&m, 0);
    kill_all(&m);
    wipe(&m);
    m.user("podman start c");
    reachable(&m);
    m.user("podman rm -f c");
    m.clean();
}

/// Stops all containers, and ends the namespaces that everything of this user's lives in.
fn migrate() {
    let m = serving();
    m.user("podman system migrate");
    m.clean();
    m.user("podman start c");
    reachable(&m);
    m.user("podman rm -f c");
    m.clean();
}

/// Removes containers and images while they are in use.
fn reset() {
    let m = serving();
    run(&m, "d", "--stop-timeout 0 -p 8081:80");
    expect_instances(&m, 2);
    m.user("podman system reset -f");
    // podman has made a place for its own socket.
    m.user("rm -df $XDG_RUNTIME_DIR/podman");
    m.clean();
}
