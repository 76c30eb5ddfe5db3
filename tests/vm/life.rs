//! Guests and connections come and go: resets, new qemus on the same socket, second clients, a new instance.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::exec::poll_until;
use crate::guest::SOON;
use crate::harness::Case;
use crate::lab::{INBOUND, Lab, at, descriptors};
use crate::service::{connect, get};
use crate::traffic::settled;
use crate::world::{HOST4, HOST6, PEER4, PEER6};

pub const CASES: &[Case] = &[
    ("second_client", second_client),
    ("reset_in_the_middle", reset_in_the_middle),
];

/// With a qemu that connects again.
pub const RESTART: &[Case] = &[(
    "new_instance_on_the_same_socket",
    new_instance_on_the_same_socket,
)];

/// What costs a boot.
pub const KILL: &[Case] = &[("killed_and_started_again", killed_and_started_again)];

/// Bytes of a transfer that does not end by itself within a case.
const ENDLESS: u64 = 1 << 40;

/// How long descriptors of connections that lost their guest may stay: until the other side says something.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Data moves, both ways, and the guest is reached.
#[track_caller]
fn works(lab: &mut Lab) {
    let g = lab.online();
    g.sh(&format!(
        "t get {PEER4} 1000000 && t put {PEER6} 1000000 && t udp {PEER4} 100 5"
    ));
    for host in [HOST4, HOST6] {
        let stream = lab.world.peer.enter(|| connect(at(host, INBOUND)));
        assert_eq!(stream.and_then(|s| get(s, 1_000_000)), Ok(()), "to {host}");
    }
}

/// A second client is let go at once, with a line in the log, and the first is none the worse for it.
fn second_client(lab: &mut Lab) {
    lab.online();
    let before = lab.passt().log().len();
    for _ in 0..3 {
        let mut second = UnixStream::connect(&lab.passt().socket).expect("it listens");
        second.set_read_timeout(Some(SOON)).expect("a timeout");
        let end = second.read(&mut [0]);
        let reset = |e: &std::io::Error| e.raw_os_error() == Some(libc::ECONNRESET);
        assert!(
            matches!(&end, Ok(0)) || end.as_ref().is_err_and(reset),
            "it is not let go: {end:?}"
        );
    }
    works(lab);
    assert!(
        poll_until(SOON, || lab.passt().log().len() > before),
        "the log does not say so"
    );
}

/// The reset button, with transfers both ways under way: the guest that comes up again connects, and is connected
/// to, at once, and nothing stays behind.
fn reset_in_the_middle(lab: &mut Lab) {
    lab.online();
    let before = descriptors();
    let moving = format!("t get {PEER4} {ENDLESS} 8 & t put {PEER6} {ENDLESS} 8 & wait");
    drop(lab.guest().start(&moving));
    let inbound = lab.world.peer.enter(|| connect(at(HOST4, INBOUND)));
    let moving = || descriptors() >= before + 16;
    assert!(
        poll_until(SOON, moving),
        "no connections: {}",
        descriptors()
    );
    lab.guest().reset();
    lab.rebooted();
    works(lab);
    drop(inbound);
    settled(before, FORGOTTEN);
}

/// kill -9 in the middle of a transfer, then a new qemu on the same socket.
fn killed_and_started_again(lab: &mut Lab) {
    lab.online();
    let before = descriptors();
    drop(lab.guest().start(&format!("t get {PEER4} {ENDLESS} 32")));
    let moving = || descriptors() >= before + 16;
    assert!(
        poll_until(SOON, moving),
        "no connections: {}",
        descriptors()
    );
    lab.guest_mut().kill();
    lab.boot();
    works(lab);
    settled(before, FORGOTTEN);
}

/// qemu connects again by itself when the instance it was connected to has gone and another listens.
fn new_instance_on_the_same_socket(lab: &mut Lab) {
    lab.online();
    lab.replace_passt();
    let again = || {
        let ping = format!("ping -n -c 1 -W 1 {PEER4}");
        lab.guest().try_sh(&ping).code == 0
    };
    assert!(poll_until(SOON, again), "the guest is not connected again");
    works(lab);
}
