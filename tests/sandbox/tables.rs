//! What the tables themselves must be like.

use std::collections::BTreeSet;

use crate::policy::{ARCHITECTURES, Filter, filters, processes};

fn names(filter: &Filter) -> BTreeSet<&str> {
    filter.filter.iter().map(|r| r.syscall.as_str()).collect()
}

#[test]
fn every_entry_has_a_reason_and_the_default_kills() {
    for arch in ARCHITECTURES {
        for (name, filter) in filters(arch) {
            assert_eq!(filter.mismatch_action, "kill_process", "{arch} {name}");
            assert_eq!(filter.match_action, "allow", "{arch} {name}");
            for rule in &filter.filter {
                assert!(!rule.comment.trim().is_empty(), "{arch} {name}: {rule:?}");
                for condition in &rule.args {
                    assert!(
                        !condition.comment.trim().is_empty(),
                        "{arch} {name}: {rule:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn filters_are_as_small_as_promised() {
    for arch in ARCHITECTURES {
        let filters = filters(arch);
        for (name, most) in [
            ("forwarder", 32),
            ("forwarder_stream", 30),
            ("forwarder_vhost_user", 34),
            ("monitor", 26),
            ("ns_agent", 22),
        ] {
            let allowed = names(&filters[name]);
            assert!(
                allowed.len() <= most,
                "{arch} {name}: {} calls",
                allowed.len()
            );
        }
        let filtered: BTreeSet<_> = filters["forwarder"]
            .filter
            .iter()
            .filter(|r| !r.args.is_empty())
            .map(|r| r.syscall.as_str())
            .collect();
        assert!(
            filtered.len() >= 6,
            "{arch}: only {filtered:?} look at arguments"
        );
    }
}

#[test]
fn what_must_never_be_allowed_is_not() {
    const NEVER: &[&str] = &[
        "accept",
        "open",
        "openat",
        "openat2",
        "creat",
        "fork",
        "vfork",
        "clone",
        "clone3",
        "execve",
        "execveat",
        "setns",
        "unshare",
        "mount",
        "mmap",
        "mprotect",
        "mremap",
        "brk",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "io_uring_setup",
        "io_uring_enter",
        "bpf",
        "kill",
        "tkill",
        "tgkill",
        "prctl",
        "capset",
        "keyctl",
        "dup",
        "dup2",
        "dup3",
        "memfd_create",
        "chdir",
        "chroot",
        "pivot_root",
        "setuid",
        "setresuid",
    ];
    for arch in ARCHITECTURES {
        for (name, filter) in filters(arch) {
            let allowed = names(&filter);
            for never in NEVER {
                if (name.as_str(), *never) == ("forwarder_vhost_user", "mmap") {
                    continue;
                }
                assert!(!allowed.contains(never), "{arch} {name} allows {never}");
            }
            // Who sees traffic does not listen; who listens sees no traffic, and takes no connection of anybody's
            // but of the control socket's clients.
            let others: &[&str] = match name.as_str() {
                "forwarder" => &["listen"],
                "forwarder_stream" => &["listen", "ioctl", "splice", "pipe2"],
                // Memory it shares with the guest is mapped, never made: every condition is about that.
                "forwarder_vhost_user" => {
                    let maps = filter.filter.iter().filter(|r| r.syscall == "mmap");
                    let conditions: Vec<_> = maps.map(|r| r.args.len()).collect();
                    assert_eq!(conditions, [3], "{arch}");
                    &["listen", "ioctl", "splice", "pipe2"]
                }
                "monitor" => &["connect", "ioctl", "splice", "pipe2"],
                _ => &["connect", "ioctl", "splice", "pipe2", "accept4"],
            };
            for never in others {
                assert!(!allowed.contains(never), "{arch} {name} allows {never}");
            }
        }
    }
}

#[test]
fn no_entry_is_there_twice() {
    for arch in ARCHITECTURES {
        for (name, filter) in filters(arch) {
            let mut seen = BTreeSet::new();
            for rule in &filter.filter {
                let conditions: Vec<_> = rule
                    .args
                    .iter()
                    .map(|c| format!("{} {} {}", c.index, c.op, c.val))
                    .collect();
                let key = format!("{} {}", rule.syscall, conditions.join(", "));
                assert!(seen.insert(key), "{arch} {name}: {rule:?}");
            }
        }
    }
}

/// The numbers of the generic table are the same on the newer architectures; x86-64 has in addition
/// what those never got.
#[test]
fn architectures_differ_only_where_they_must() {
    let x86 = filters("x86_64");
    for arch in ["aarch64", "riscv64"] {
        let other = filters(arch);
        assert!(x86.keys().eq(other.keys()));
        for (name, filter) in &other {
            let extra: Vec<_> = names(&x86[name])
                .difference(&names(filter))
                .copied()
                .collect();
            let missing: Vec<_> = names(filter)
                .difference(&names(&x86[name]))
                .copied()
                .collect();
            assert!(missing.is_empty(), "{arch} {name}: {missing:?}");
            assert!(
                extra.iter().all(|e| *e == "epoll_wait"),
                "{arch} {name}: {extra:?}"
            );
        }
    }
}

#[test]
fn no_process_keeps_a_capability_but_for_low_ports() {
    for (name, process) in processes() {
        assert_eq!(process.capabilities.len(), 6, "{name}");
        for (set, kept) in process.capabilities {
            let allowed = if set == "on_demand" && !name.starts_with("forwarder") {
                vec!["net_bind_service".to_owned()]
            } else {
                Vec::new()
            };
            assert_eq!(kept, allowed, "{name} {set}");
        }
    }
}

/// An option that nothing sets any more must not stay settable.
#[test]
fn every_socket_option_allowed_is_set_somewhere() {
    let read = |files: &[&str]| -> String {
        let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        files
            .iter()
            .map(|file| std::fs::read_to_string(source.join(file)).expect("source"))
            .collect()
    };
    let forwarder = read(&[
        "sys/stream.rs",
        "sys/datagram.rs",
        "forwarder/tcp_io.rs",
        "forwarder/host.rs",
    ]);
    let helper = read(&[
        "sys/stream.rs",
        "sys/datagram.rs",
        "sys/listen.rs",
        "monitor/pool.rs",
    ]);
    for arch in ARCHITECTURES {
        for (name, filter) in filters(arch) {
            let code = if name.starts_with("forwarder") {
                &forwarder
            } else {
                &helper
            };
            for rule in &filter.filter {
                if rule.syscall == "setsockopt" {
                    let option = rule.comment.split([':', ' ']).next().unwrap_or_default();
                    assert!(
                        code.contains(option),
                        "{arch} {name}: nothing sets {option}"
                    );
                }
            }
        }
    }
}
