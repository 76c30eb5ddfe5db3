//! How long things may take that callers wait for.
//!
//! The machine may be busy with anything while this runs, so no single measurement proves slowness.  What is slow
//! each time is slow: a bound holds when one of a few attempts keeps it.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::differences::established;
use crate::exec::{SOON, nothing_left, poll_until, processes};
use crate::harness::tests;
use crate::reach::{Protocol, Server, listening, reachable_within};
use crate::world::{HOST4, Netns, PEER4, PEER6, World};

tests![
    starts,
    fifteen_thousand_ports,
    ends_on_sigterm,
    ends_with_the_path,
    ends_with_the_directory,
    ends_with_the_process,
    ends_as_one,
    refusals,
    automatic_ports,
];

/// What podman waits for, or does not even wait for.
const PROMPT: Duration = Duration::from_millis(200);

/// One of a few attempts takes no longer than `limit`.
#[track_caller]
fn within(limit: Duration, mut attempt: impl FnMut() -> Duration) {
    let mut took = vec![];
    while took.len() < 10 {
        took.push(attempt());
        if took.last() <= Some(&limit) {
            return;
        }
    }
    panic!("not once within {limit:?}: {took:?}");
}

/// How long from now until nothing but the test is running.
#[track_caller]
fn until_nothing_is_left() -> Duration {
    let begun = Instant::now();
    nothing_left();
    begun.elapsed()
}

/// A guest, what ends it, and how long that takes.
#[track_caller]
fn ends(w: &World, end: impl Fn(&Netns, i32)) -> Duration {
    let g = w.guest(&[]);
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
    end(&g, g.pasta.pid);
    let took = until_nothing_is_left();
    g.pasta.goes();
    if fs::exists(g.ns.path()).unwrap_or(false) {
        Netns::retire(&g.ns.name);
    }
    took
}

/// The caller gets its container when the parent exits.
fn starts() {
    let w = World::direct();
    within(PROMPT, || {
        let ns = Netns::new("guest");
        let begun = Instant::now();
        let pasta = w.attach(&ns, &["--config-net", "-t", "8080", "-u", "8080"]);
        let took = begun.elapsed();
        pasta.stop(Signal::SIGTERM);
        Netns::retire("guest");
        took
    });
}

/// 15,000 ports start in no time (the bound is for builds without optimisation).
fn fifteen_thousand_ports() {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    if limit.is_ok_and(|(_, hard)| hard < 20_000) {
        crate::harness::skip("fewer than 20000 descriptors are allowed here");
    }
    let w = World::direct();
    within(Duration::from_secs(4), || {
        let begun = Instant::now();
        let g = w.guest(&["-t", "10001-25000"]);
        let took = begun.elapsed();
        for port in [10_001, 25_000] {
            let _server = Server::tcp(&g, (HOST4, port));
            reachable_within(SOON, Protocol::Tcp, &w.peer, (HOST4, port));
            reachable_within(SOON, Protocol::Tcp, &w.host, ("127.0.0.1", port));
        }
        crate::reach::closed(Protocol::Tcp, &w.peer, (HOST4, 25_001));
        g.pasta.stop(Signal::SIGTERM);
        Netns::retire("guest");
        took
    });
}

fn ends_on_sigterm() {
    let w = World::direct();
    within(PROMPT, || {
        ends(&w, |_, pid| {
            kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is running");
        })
    });
}

/// As podman ends a container: lazy umount, unlink, and pasta is expected to notice.
fn ends_with_the_path() {
    let w = World::direct();
    within(PROMPT, || ends(&w, |ns, _| Netns::retire(&ns.name)));
}

fn ends_with_the_directory() {
    let w = World::direct();
    within(PROMPT, || {
        fs::create_dir("/run/netns/deep").expect("tmpfs");
        let ns = Netns::new("deep/ns");
        let pasta = w.attach(&ns, &["--config-net"]);
        w.host
            .sh("umount -l /run/netns/deep/ns; rm -rf /run/netns/deep");
        let took = until_nothing_is_left();
        pasta.goes();
        took
    });
}

/// Nothing tells the established program that a process is gone: it looks once a second.
fn ends_with_the_process() {
    let w = World::direct();
    let limit = if established() {
        Duration::from_secs(2)
    } else {
        PROMPT
    };
    within(limit, || {
        let holder = w.host.start("exec unshare -n sleep 1000");
        let own = fs::read_link("/proc/self/ns/net").expect("procfs");
        let path = format!("/proc/{}/ns/net", holder.id());
        let unshared = poll_until(SOON, || fs::read_link(&path).is_ok_and(|l| l != own));
        assert!(unshared, "unshare does not start");
        w.pasta(&["-q", "--config-net", "--netns", &path]).ok();
        kill(Pid::from_raw(holder.id()), Signal::SIGKILL).expect("it runs");
        holder.finish(SOON);
        until_nothing_is_left()
    });
}

/// Whichever of its processes is killed, none of the others stays.
fn ends_as_one() {
    let w = World::direct();
    let count = {
        let g = w.guest(&[]);
        let count = processes().len();
        g.pasta.stop(Signal::SIGTERM);
        Netns::retire("guest");
        count
    };
    for victim in 0..count {
        within(PROMPT, || {
            ends(&w, |_, _| {
                // One that was there at the beginning only has nobody left to kill but the others.
                let all = processes();
                let victim = all.get(victim).unwrap_or(&all[0]);
                kill(Pid::from_raw(*victim), Signal::SIGKILL).expect("it is running");
            })
        });
    }
}

/// A connection that is refused outside is refused inside, at once.
fn refusals() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in [PEER4, PEER6] {
        within(PROMPT, || {
            let begun = Instant::now();
            g.try_connect((addr, 999)).expect_err("nobody listens");
            begun.elapsed()
        });
    }
}

/// A socket on port 8080, open until it is dropped.
fn open(ns: &Netns, protocol: Protocol) -> Box<dyn std::any::Any> {
    match protocol {
        Protocol::Tcp => Box::new(ns.listen((HOST4, 8080))),
        Protocol::Udp => Box::new(ns.udp((HOST4, 8080))),
    }
}

/// A port that opens, or closes, inside is seen outside with the next look.
fn automatic_ports() {
    let w = World::direct();
    let g = w.guest(&["-t", "auto", "-u", "auto"]);
    let limit = Duration::from_millis(if established() { 2500 } else { 1300 });
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        within(limit, || {
            let begun = Instant::now();
            let server = open(&g, protocol);
            assert!(poll_until(SOON, || listening(&w.host, protocol) == [8080]));
            let took = begun.elapsed();
            let begun = Instant::now();
            drop(server);
            assert!(poll_until(SOON, || listening(&w.host, protocol).is_empty()));
            took.max(begun.elapsed())
        });
    }
}
