//! The processes of passt with a machine connected, seen through /proc, against `policy/processes.json`.
//!
//! The forwarder is looked at when it holds all it will ever hold: the guest's memory, the descriptors of its
//! queues, a TCP connection and a UDP flow.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use passt::config::rules::RuleId;
use passt::ipc::{ForwarderLink, Request};
use passt::sys::process::pidfd_open;
use passt::sys::scm;

use crate::exec::{SOON, alive, poll_until, processes};
use crate::harness::{skip, tests};
use crate::nic::{Nic, Shape};
use crate::passt::Passt;
use crate::policy::{self, Process};
use crate::pump::{Guest, StreamGuest};
use crate::traffic::ping_pong;
use crate::world::{Netns, PEER4, World, accept};

tests![
    hijacked_forwarder,
    memory_is_not_executable,
    no_process_outlives_another,
    stream,
    vhost_user,
];

/// The process of this name, or that starts with it.
#[track_caller]
fn named(name: &str) -> i32 {
    let mut found = None;
    poll_until(SOON, || {
        found = processes()
            .into_iter()
            .find(|pid| comm(*pid).starts_with(name));
        found.is_some()
    });
    let all: Vec<String> = processes().into_iter().map(comm).collect();
    found.unwrap_or_else(|| panic!("no {name} among {all:?}"))
}

fn comm(pid: i32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}

const FORWARDER: &str = "passt:forwarder";

/// Everybody but the forwarder: who was started is the monitor.
#[track_caller]
fn monitor() -> i32 {
    let forwarder = named(FORWARDER);
    let others: Vec<i32> = processes()
        .into_iter()
        .filter(|pid| *pid != forwarder && comm(*pid).starts_with("passt"))
        .collect();
    assert_eq!(others.len(), 1, "{others:?}");
    others[0]
}

fn field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    status
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[track_caller]
fn check(name: &str, pid: i32) {
    let policy = policy::processes();
    let policy = &policy[name];
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
        assert_eq!(field(pid, set), "0000000000000000", "{name} {set}");
    }
    for (line, value) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Seccomp_filters", "1"),
        ("Threads", "1"),
    ] {
        assert_eq!(field(pid, line), value, "{name} {line}");
    }
    check_namespaces(name, pid, policy);
    check_descriptors(name, pid, policy);
    let inside = fs::read_dir(format!("/proc/{pid}/root")).expect("a directory");
    assert_eq!(inside.count(), 0, "{name}: files in its root directory");
}

fn namespace(pid: &str, kind: &str) -> u64 {
    let path = format!("/proc/{pid}/ns/{kind}");
    fs::metadata(&path)
        .unwrap_or_else(|e| panic!("{path}: {e}"))
        .ino()
}

#[track_caller]
fn check_namespaces(name: &str, pid: i32, policy: &Process) {
    let pid = pid.to_string();
    for kind in &policy.namespaces.own {
        assert_ne!(
            namespace(&pid, kind),
            namespace("self", kind),
            "{name} {kind}"
        );
    }
    for kind in &policy.namespaces.host {
        assert_eq!(
            namespace(&pid, kind),
            namespace("self", kind),
            "{name} {kind}"
        );
    }
    assert!(policy.namespaces.target.is_empty(), "{name}");
}

#[track_caller]
fn check_descriptors(name: &str, pid: i32, policy: &Process) {
    let allowed: BTreeSet<&str> = policy.descriptors.iter().map(String::as_str).collect();
    let stderr = fs::read_link(format!("/proc/{pid}/fd/2")).expect("descriptor 2");
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("descriptors")
        .flatten()
    {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let text = target.to_string_lossy();
        let device = fs::metadata(entry.path()).map_or(0, |m| m.rdev());
        let kind = if device == libc::makedev(1, 3) {
            "/dev/null"
        } else if text.starts_with("socket:") {
            "socket"
        } else if text.starts_with("/memfd:") {
            "memory"
        } else if name == "monitor" && target == stderr {
            "stderr"
        } else {
            &text
        };
        assert!(allowed.contains(kind), "{name} holds {text}");
    }
}

#[track_caller]
fn connected(world: &World, guest: &Netns) {
    let listener = world.peer.listen((PEER4, 7080));
    let mut client = guest.connect((PEER4, 7080));
    let (mut server, _) = accept(&listener);
    ping_pong(&mut client, &mut server, "confined");
    let udp = guest.udp(("0.0.0.0", 0));
    udp.send_to(b"x", (PEER4, 9)).expect("sent");
}

fn stream() {
    let world = World::direct();
    let passt = Passt::start(&world, &["-t", "7081"]);
    let guest = StreamGuest::new(passt.dial(), 1500, usize::MAX);
    connected(&world, &guest);
    check("forwarder_stream", named(FORWARDER));
    check("monitor", monitor());
    guest.unplug();
    passt.stop();
}

fn vhost_user() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user", "-t", "7081"]);
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), 1500);
    connected(&world, &guest);
    check("forwarder_vhost_user", named(FORWARDER));
    check("monitor", monitor());
    guest.unplug();
    passt.stop();
}

/// Nothing that the machine hands over, and nothing else that can be written, can be executed.
fn memory_is_not_executable() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let guest = Guest::new(Nic::connect(&passt, Shape::USUAL), 1500);
    connected(&world, &guest);
    let maps = fs::read_to_string(format!("/proc/{}/maps", named(FORWARDER))).expect("a process");
    let mut shared = 0;
    for line in maps.lines() {
        let rights = line.split(' ').nth(1).expect("rights");
        assert!(!rights.contains("wx"), "{line}");
        if line.contains("/memfd:") {
            shared += 1;
            assert_eq!(rights, "rw-s", "{line}");
        }
    }
    assert_ne!(shared, 0, "the guest's memory is not mapped:\n{maps}");
    drop(guest.unplug());
    // And it goes with the machine.
    let gone = poll_until(SOON, || {
        let maps = fs::read_to_string(format!("/proc/{}/maps", named(FORWARDER)));
        !maps.expect("a process").contains("/memfd:")
    });
    assert!(gone, "the memory of a guest that has gone is still mapped");
    passt.stop();
}

fn no_process_outlives_another() {
    let world = World::direct();
    for mode in [&["--vhost-user"][..], &[]] {
        let passt = Passt::start(&world, mode);
        drop(passt.dial());
        let (forwarder, other) = (named(FORWARDER), monitor());
        kill(Pid::from_raw(forwarder), Signal::SIGKILL).expect("running");
        assert!(poll_until(SOON, || !alive(other)), "the monitor lives on");
        passt.forget();
        let passt = Passt::start(&world, mode);
        drop(passt.dial());
        let (forwarder, other) = (named(FORWARDER), monitor());
        kill(Pid::from_raw(other), Signal::SIGKILL).expect("running");
        assert!(
            poll_until(SOON, || !alive(forwarder)),
            "the forwarder lives on"
        );
        passt.forget();
    }
}

/// What is tried, and how, with the forwarder's end of its channel.
type Attack = (&'static str, fn(OwnedFd));

/// What somebody who runs code in the forwarder can say to the monitor: nothing is obtained, and everything ends.
fn hijacked_forwarder() {
    let world = World::direct();
    let attacks: [Attack; 6] = [
        ("a rule there is not", |s| ask(s, 999, 0)),
        ("a port the rule has not", |s| ask(s, 1, 1)),
        ("the last offset", |s| ask(s, 1, u16::MAX)),
        ("one byte", |s| say(&s, &[0])),
        ("a variant there is not", |s| say(&s, &[9, 0, 0, 0])),
        ("sixty kilobytes", |s| say(&s, &[1; 60_000])),
    ];
    for (what, attack) in attacks {
        let passt = Passt::start(&world, &["--vhost-user", "-t", "7081"]);
        drop(passt.dial());
        let mut channels = channels(named(FORWARDER));
        assert_eq!(channels.len(), 1, "channels of the forwarder");
        attack(channels.remove(0));
        let said = passt.ends(&[1]);
        assert!(
            said.contains("nvalid message") || said.contains("between our processes"),
            "{what}: {said}"
        );
    }
}

fn ask(socket: OwnedFd, rule: u16, offset: u16) {
    let rule = RuleId(std::num::NonZeroU16::new(rule).expect("not zero"));
    let link = ForwarderLink::new(socket);
    link.request(Request::Listener { rule, offset }).ok();
}

fn say(socket: &OwnedFd, bytes: &[u8]) {
    scm::send(socket.as_fd(), bytes).ok();
}

/// Duplicates of the forwarder's ends of the channels on which it asks for something.
fn channels(forwarder: i32) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{forwarder}/fd"))
        .expect("descriptors")
        .flatten()
    {
        let number = entry.file_name().to_string_lossy().parse().expect("number");
        let fd = match duplicate(forwarder, number) {
            Ok(fd) => fd,
            // The client of a moment ago: closed since it was listed.
            Err(e) if e.raw_os_error() == Some(libc::EBADF) => continue,
            Err(e) => skip(&format!("no descriptors of another process here: {e}")),
        };
        let packets = getsockopt(&fd, sockopt::SockType) == Ok(SockType::SeqPacket);
        // The pair for log lines is never waited for.
        if packets && getsockopt(&fd, sockopt::SendTimeout).is_ok_and(|t| t.num_seconds() > 0) {
            found.push(fd);
        }
    }
    found
}

#[allow(unsafe_code, reason = "pidfd_getfd(2) has no safe wrapper")]
fn duplicate(pid: i32, fd: i32) -> std::io::Result<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)).expect("a process");
    // SAFETY: three integers in, a new descriptor or an error out.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    match i32::try_from(taken) {
        // SAFETY: the kernel has just installed this descriptor in our table for us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}
