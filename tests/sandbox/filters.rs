//! What a confined process can and cannot do, tried.

use std::collections::BTreeSet;
use std::io;

use libc::{c_int, c_long};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use passt::sandbox::{self, Needs, Role};

use crate::policy::{Rule, filters};
use crate::syscalls::number;

const ROLES: [(Role, &str); 5] = [
    (Role::Forwarder, "forwarder"),
    (Role::ForwarderStream, "forwarder_stream"),
    (Role::ForwarderVhostUser, "forwarder_vhost_user"),
    (Role::Monitor, "monitor"),
    (Role::NsAgent, "ns_agent"),
];

/// Highest system call number tried; above it there are none yet on any of our architectures.
const LAST_NUMBER: c_long = 480;

/// uretprobe(2) and uprobe(2): return from a probe the kernel itself set. It exempts them from every
/// filter, and outside of a probe they do nothing but end the caller or fail.
#[cfg(target_arch = "x86_64")]
const EXEMPT: &[c_long] = &[335, 336];
#[cfg(not(target_arch = "x86_64"))]
const EXEMPT: &[c_long] = &[];

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Outcome {
    /// The call returned: errno, or 0.
    Returned(i32),
    /// The filter killed the process.
    Killed,
}

/// Confine a child as `role` and let it act; the value must be small enough for an exit status.
fn confined(role: Role, needs: Needs, act: impl FnOnce() -> i32) -> Outcome {
    // SAFETY: glibc keeps its allocator usable in the child of a fork; the child only confines itself,
    // makes system calls and ends.
    match unsafe { libc::fork() } {
        0 => {
            let status = match sandbox::confine(role, false, needs) {
                Ok(_) => act(),
                Err(_) => 255,
            };
            passt::sys::process::exit_now(status)
        }
        child => match waitpid(Pid::from_raw(child), None).expect("child") {
            WaitStatus::Exited(_, 255) => panic!("confinement failed"),
            WaitStatus::Exited(_, errno) => Outcome::Returned(errno),
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => Outcome::Killed,
            other => panic!("unexpected end: {other:?}"),
        },
    }
}

/// Make one system call; errno or 0.
fn call(nr: c_long, args: [c_long; 6]) -> i32 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the arguments used here are invalid descriptors, null pointers with length 0, or point to
    // live buffers of the caller; the kernel refuses the rest.
    match unsafe { libc::syscall(nr, a, b, c, d, e, f) } {
        -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
        _ => 0,
    }
}

fn tried(role: Role, nr: c_long, args: [c_long; 6]) -> Outcome {
    confined(role, Needs::default(), || call(nr, args))
}

/// Arguments that satisfy a rule's conditions and are invalid otherwise.
fn satisfying(rule: &Rule) -> [c_long; 6] {
    let mut args = [-1, 0, 0, 0, 0, 0];
    for condition in &rule.args {
        args[condition.index] = c_long::try_from(condition.val).expect("small value");
    }
    args
}

#[test]
fn every_call_a_filter_names_passes() {
    for (role, name) in ROLES {
        for rule in &filters(std::env::consts::ARCH)[name].filter {
            // One ends the process, the other is only sensible below a signal frame.
            if matches!(rule.syscall.as_str(), "exit_group" | "rt_sigreturn") {
                continue;
            }
            let nr = number(&rule.syscall).unwrap_or_else(|| panic!("number of {}", rule.syscall));
            let mut args = satisfying(rule);
            if rule.syscall == "ppoll" {
                // No descriptors and a timeout that has passed.
                args = [0; 6];
                let outcome = confined(role, Needs::default(), || {
                    let now = [0_i64; 2];
                    args[2] = now.as_ptr() as c_long;
                    call(nr, args)
                });
                assert_eq!(outcome, Outcome::Returned(0), "{name}: {}", rule.syscall);
                continue;
            }
            assert!(
                matches!(tried(role, nr, args), Outcome::Returned(_)),
                "{name}: {} {:?} was killed",
                rule.syscall,
                rule.args
            );
        }
    }
}

#[test]
fn every_other_call_kills() {
    for (role, name) in ROLES {
        let filters = filters(std::env::consts::ARCH);
        let allowed: BTreeSet<c_long> = filters[name]
            .filter
            .iter()
            .filter_map(|r| number(&r.syscall))
            .collect();
        for nr in 0..LAST_NUMBER {
            if !allowed.contains(&nr) && !EXEMPT.contains(&nr) {
                assert_eq!(
                    tried(role, nr, [-1, 0, 0, 0, 0, 0]),
                    Outcome::Killed,
                    "{name}: system call {nr}"
                );
            }
        }
    }
}

#[test]
fn the_forwarder_makes_internet_sockets_and_no_others() {
    let new = c_long::from(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    let socket = |domain: c_int, kind: c_long, protocol: c_int| {
        let args = [c_long::from(domain), kind, c_long::from(protocol), 0, 0, 0];
        tried(Role::Forwarder, libc::SYS_socket, args)
    };
    let stream = c_long::from(libc::SOCK_STREAM);
    let dgram = c_long::from(libc::SOCK_DGRAM);
    let raw = c_long::from(libc::SOCK_RAW);
    for domain in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in [
            (stream, 0),
            (stream, libc::IPPROTO_TCP),
            (dgram, 0),
            (dgram, 17),
        ] {
            assert_eq!(socket(domain, kind | new, protocol), Outcome::Returned(0));
        }
        let forbidden = [
            // Neither Landlock's TCP rules nor ours would see these.
            (stream | new, libc::IPPROTO_MPTCP),
            (stream | new, libc::IPPROTO_SCTP),
            (dgram | new, libc::IPPROTO_UDPLITE),
            (raw | new, libc::IPPROTO_ICMP),
            (raw | new, libc::IPPROTO_RAW),
            // Blocking or inheritable.
            (stream, 0),
            (dgram | c_long::from(libc::SOCK_NONBLOCK), 0),
        ];
        for (kind, protocol) in forbidden {
            assert_eq!(
                socket(domain, kind, protocol),
                Outcome::Killed,
                "domain {domain} kind {kind} protocol {protocol}"
            );
        }
    }
    for domain in [
        libc::AF_UNIX,
        libc::AF_NETLINK,
        libc::AF_PACKET,
        libc::AF_VSOCK,
        libc::AF_XDP,
        libc::AF_ALG,
        libc::AF_BLUETOOTH,
        libc::AF_UNSPEC,
    ] {
        for kind in [stream | new, dgram | new, raw | new] {
            assert_eq!(socket(domain, kind, 0), Outcome::Killed, "domain {domain}");
        }
    }
}

#[test]
fn arguments_outside_the_rules_kill() {
    let nowhere = -1;
    let attempts: &[(&str, c_long, [c_long; 6])] = &[
        ("bind UNIX", libc::SYS_bind, [nowhere, 0, 110, 0, 0, 0]),
        ("bind netlink", libc::SYS_bind, [nowhere, 0, 12, 0, 0, 0]),
        (
            "connect UNIX",
            libc::SYS_connect,
            [nowhere, 0, 110, 0, 0, 0],
        ),
        (
            "fast open",
            libc::SYS_sendto,
            [nowhere, 0, 0, libc::MSG_FASTOPEN.into(), 0, 16],
        ),
        (
            "out of band",
            libc::SYS_sendto,
            [nowhere, 0, 0, libc::MSG_OOB.into(), 0, 0],
        ),
        (
            "attach a filter",
            libc::SYS_setsockopt,
            [nowhere, 1, libc::SO_ATTACH_FILTER.into(), 0, 0, 0],
        ),
        (
            "mark",
            libc::SYS_setsockopt,
            [nowhere, 1, libc::SO_MARK.into(), 0, 0, 0],
        ),
        (
            "upper layer protocol",
            libc::SYS_setsockopt,
            [nowhere, 6, libc::TCP_ULP.into(), 0, 0, 0],
        ),
        (
            "repair",
            libc::SYS_setsockopt,
            [nowhere, 6, libc::TCP_REPAIR.into(), 0, 0, 0],
        ),
        (
            "transparent",
            libc::SYS_setsockopt,
            [nowhere, 0, libc::IP_TRANSPARENT.into(), 0, 0, 0],
        ),
        (
            "TUNSETIFF",
            libc::SYS_ioctl,
            [nowhere, 0x4004_54ca, 0, 0, 0, 0],
        ),
        (
            "TUNSETPERSIST",
            libc::SYS_ioctl,
            [nowhere, 0x4004_54cb, 0, 0, 0, 0],
        ),
        (
            "TUNSETOFFLOAD",
            libc::SYS_ioctl,
            [nowhere, 0x4004_54d0, 0, 0, 0, 0],
        ),
        ("TIOCSTI", libc::SYS_ioctl, [nowhere, 0x5412, 0, 0, 0, 0]),
        (
            "duplicate",
            libc::SYS_fcntl,
            [nowhere, libc::F_DUPFD.into(), 0, 0, 0, 0],
        ),
        (
            "own signals",
            libc::SYS_fcntl,
            [nowhere, libc::F_SETOWN.into(), 0, 0, 0, 0],
        ),
    ];
    for (what, nr, args) in attempts {
        assert_eq!(
            tried(Role::Forwarder, *nr, *args),
            Outcome::Killed,
            "{what}"
        );
    }
}

#[test]
fn only_a_guests_memory_is_mapped() {
    let (read, write, exec) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let guest = libc::MAP_SHARED | libc::MAP_NORESERVE;
    let map = |address: c_long, prot, flags| {
        let nowhere = -1;
        let args = [
            address,
            4096,
            c_long::from(prot),
            c_long::from(flags),
            nowhere,
            0,
        ];
        tried(Role::ForwarderVhostUser, libc::SYS_mmap, args)
    };
    assert_eq!(map(0, read | write, guest), Outcome::Returned(libc::EBADF));
    for (address, prot, flags) in [
        (0, read | write | exec, guest),
        (0, read | exec, guest),
        (0, read | write, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        (0, read | write, guest | libc::MAP_ANONYMOUS),
        (0, read | write, guest | libc::MAP_FIXED),
        (0x10_0000, read | write, guest),
        (0x1_0000_0000, read | write, guest),
    ] {
        assert_eq!(map(address, prot, flags), Outcome::Killed);
    }
}

#[test]
fn the_monitor_looks_up_names_and_nothing_else_about_files() {
    let stat = |flags: c_int| {
        let args = [-1, 0, 0, c_long::from(flags), 0, 0];
        tried(Role::Monitor, libc::SYS_newfstatat, args)
    };
    assert!(matches!(
        stat(libc::AT_SYMLINK_NOFOLLOW),
        Outcome::Returned(_)
    ));
    assert_eq!(stat(libc::AT_EMPTY_PATH), Outcome::Killed);
}

/// A TCP socket bound by the forwarder, as the kernel numbers the refusal.
fn bind_tcp(needs: Needs, port: u16) -> Outcome {
    confined(Role::Forwarder, needs, || {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: three integers.
        let fd = unsafe { libc::socket(libc::AF_INET, kind, 0) };
        let [high, low] = port.to_be_bytes();
        let mut address = [0_u8; 16];
        address[..2].copy_from_slice(&2_u16.to_ne_bytes());
        address[2..8].copy_from_slice(&[high, low, 127, 0, 0, 1]);
        call(
            libc::SYS_bind,
            [c_long::from(fd), address.as_ptr() as c_long, 16, 0, 0, 0],
        )
    })
}

#[test]
fn the_forwarder_binds_no_tcp_port() {
    let status = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let probe = confined(Role::Forwarder, Needs::default(), || 0);
    assert_eq!(probe, Outcome::Returned(0));
    if bind_tcp(Needs::default(), 0) == Outcome::Returned(0) {
        println!("skipped: Landlock without network rules here (security modules: {status})");
        return;
    }
    for port in [0, 80, 8080, 50_000] {
        assert_eq!(
            bind_tcp(Needs::default(), port),
            Outcome::Returned(libc::EACCES),
            "port {port}"
        );
    }
    let with_source = Needs {
        source_address: true,
        ..Needs::default()
    };
    assert_eq!(bind_tcp(with_source, 0), Outcome::Returned(0));
    assert_eq!(
        bind_tcp(with_source, 50_000),
        Outcome::Returned(libc::EACCES)
    );
}

#[test]
fn a_reported_violation_ends_the_process_too() {
    let needs = Needs {
        report_violations: true,
        ..Needs::default()
    };
    let outcome = confined(Role::Forwarder, needs, || call(libc::SYS_listen, [0; 6]));
    assert_eq!(outcome, Outcome::Returned(128 + libc::SIGSYS));
}
