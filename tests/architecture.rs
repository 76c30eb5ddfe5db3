//! What the layout promises, read from the source: which room may use which, where `unsafe` is and how
//! much of it, how long a file may get, and which crate is named in one file only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms it may use. An arrow that is not here is a design change: argue for it.
const ARROWS: &[(&str, &[&str])] = &[
    // Values.
    ("addr", &[]),
    ("clock", &[]),
    ("stats", &["clock"]),
    // Pure: no system calls, no I/O, no clock of their own.
    ("wire", &["addr", "stats", "sys"]),
    ("flow", &["addr", "clock", "config", "stats", "wire"]),
    ("services", &["addr", "config", "stats", "wire"]),
    ("config", &["addr"]),
    ("cli", &["addr", "config"]),
    // The kernel.
    ("sys", &[]),
    ("ipc", &["config", "sys"]),
    ("control", &["addr", "config", "flow", "ipc", "stats"]),
    ("log", &["clock", "config", "sys"]),
    ("sandbox", &["sys"]),
    ("netlink", &["addr", "config", "sys"]),
    ("pcap", &[]),
    ("tap", &["addr", "stats", "sys", "wire"]),
    // Translation, against traits.
    // Of the kernel only what a piece of memory is.
    (
        "tcp",
        &["addr", "clock", "config", "flow", "stats", "sys", "wire"],
    ),
    (
        "udp",
        &[
            "addr", "clock", "config", "flow", "icmp", "stats", "sys", "wire",
        ],
    ),
    (
        "icmp",
        &[
            "addr", "clock", "config", "flow", "stats", "sys", "udp", "wire",
        ],
    ),
    // Processes. The monitor knows nothing of packets.
    (
        "monitor",
        &[
            "clock", "config", "control", "ipc", "log", "netlink", "sandbox", "sys",
        ],
    ),
    (
        "forwarder",
        &[
            "addr", "clock", "config", "control", "flow", "icmp", "ipc", "log", "pcap", "sandbox",
            "services", "stats", "sys", "tap", "tcp", "udp", "wire",
        ],
    ),
    (
        "launcher",
        &[
            "addr",
            "cli",
            "config",
            "forwarder",
            "ipc",
            "log",
            "monitor",
            "netlink",
            "sandbox",
            "sys",
            "tap",
        ],
    ),
    (
        "pesto",
        &["addr", "cli", "config", "control", "flow", "sandbox", "sys"],
    ),
    ("qrap", &["addr", "config", "sys", "wire"]),
    ("program", &["cli", "launcher", "pesto", "qrap"]),
];

/// `unsafe` blocks, functions and impls outside tests. A change here is reviewed like a change of policy.
const UNSAFE_BUDGET: &[(&str, usize)] = &[
    ("sys/datagram.rs", 1),
    ("sys/errqueue.rs", 2),
    ("sys/fd.rs", 4),
    ("sys/mmsg.rs", 6),
    ("sys/piece.rs", 2),
    ("sys/process.rs", 11),
    ("sys/random.rs", 1),
    ("sys/scm.rs", 5),
    ("sys/shared.rs", 6),
    ("sys/sigsys.rs", 4),
    ("sys/stream.rs", 20),
    ("sys/tun.rs", 5),
    ("sys/unix.rs", 1),
    ("sys/vector.rs", 2),
    ("tap/vhost_user/memory.rs", 3),
];

/// Lines of a file, its tests not counted.
const MAX_FILE_LINES: usize = 600;

/// Crates that one file hides from all others.
const HIDDEN: &[(&str, &str)] = &[
    ("bincode::", "ipc/codec.rs"),
    ("syslog::", "log/syslog.rs"),
    ("seccompiler::", "sandbox/"),
    ("landlock::", "sandbox/landlock.rs"),
    ("vhost::", "tap/vhost_user/"),
    ("virtio_queue::", "tap/vhost_user/ring.rs"),
    ("vm_memory::", "tap/vhost_user/"),
];

struct Source {
    /// Relative to `src`.
    path: String,
    /// Without the tests at the end.
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files
        .into_iter()
        .filter_map(|path| {
            let text = fs::read_to_string(&path).expect("readable source");
            let relative = path.strip_prefix(&root).expect("below src");
            let name = relative.file_name()?.to_str()?;
            // Files that are declared under cfg(test).
            if matches!(name, "tests.rs" | "testing.rs") || declared_for_tests(&path) {
                return None;
            }
            let code = match text.find("\n#[cfg(test)]\nmod ") {
                Some(at) if text[at..].contains(" {\n") && ends_with_tests(&text[at..]) => {
                    text[..=at].to_owned()
                }
                _ => text,
            };
            Some(Source {
                path: relative.to_str()?.to_owned(),
                text: code,
            })
        })
        .collect()
}

/// The inline test module is the last item of the file.
fn ends_with_tests(tail: &str) -> bool {
    tail.trim_start()
        .lines()
        .nth(1)
        .is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
}

/// The parent module declares this file with `#[cfg(test)]` before `mod`.
fn declared_for_tests(path: &Path) -> bool {
    let stem = path
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    let parent = path.with_file_name("mod.rs");
    let Ok(text) = fs::read_to_string(parent) else {
        return false;
    };
    let mut previous = "";
    for line in text.lines() {
        let declares = line
            .trim_start_matches("pub(crate) ")
            .trim_start_matches("pub ")
            == format!("mod {stem};");
        if declares && previous == "#[cfg(test)]" {
            return true;
        }
        previous = line;
    }
    false
}

fn collect(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn room(path: &str) -> &str {
    path.split('/')
        .next()
        .unwrap_or(path)
        .trim_end_matches(".rs")
}

fn used_rooms(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for line in text.lines().filter(|l| !l.trim_start().starts_with("//")) {
        for after in line.split("crate::").skip(1) {
            let name: String = after
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            if !name.is_empty() {
                rooms.insert(name);
            }
        }
    }
    rooms
}

#[test]
fn no_room_uses_one_it_must_not_know() {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let from = room(&source.path);
        if matches!(from, "lib" | "main" | "bin") {
            continue;
        }
        let Some(allowed) = arrows.get(from) else {
            wrong.push(format!(
                "{}: a room without a place in the design",
                source.path
            ));
            continue;
        };
        for to in used_rooms(&source.text) {
            if to != from && !allowed.contains(&to.as_str()) {
                wrong.push(format!("{}: uses crate::{to}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_is_where_it_was_agreed_and_not_more_of_it() {
    let budget: BTreeMap<_, _> = UNSAFE_BUDGET.iter().copied().collect();
    let mut found = BTreeMap::new();
    for source in sources() {
        let count = source
            .text
            .lines()
            .filter(|l| !l.trim_start().starts_with("//"))
            .map(|l| {
                ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                    .iter()
                    .map(|what| l.matches(what).count())
                    .sum::<usize>()
            })
            .sum::<usize>();
        if count > 0 {
            found.insert(source.path, count);
        }
    }
    let mut wrong = Vec::new();
    for (path, count) in &found {
        let allowed = budget.get(path.as_str()).copied().unwrap_or(0);
        if *count > allowed {
            wrong.push(format!("{path}: {count} unsafe, {allowed} agreed"));
        }
        if !path.starts_with("sys/") && path != "tap/vhost_user/memory.rs" {
            wrong.push(format!("{path}: unsafe outside of sys"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_short() {
    let long: Vec<_> = sources()
        .iter()
        .map(|s| (s.text.lines().count(), &s.path))
        .filter(|(lines, _)| *lines > MAX_FILE_LINES)
        .map(|(lines, path)| format!("{path}: {lines} lines, at most {MAX_FILE_LINES}"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|s| !s.text.starts_with("//!"))
        .map(|s| s.path)
        .collect();
    assert!(silent.is_empty(), "no essay at the head of {silent:?}");
}

#[test]
fn replaceable_crates_are_named_in_one_place() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (name, home) in HIDDEN {
            // A module of ours may have the crate's name.
            let module = format!("mod {};", name.trim_end_matches("::"));
            if source.text.lines().any(|l| l == module) {
                continue;
            }
            let used = source
                .text
                .lines()
                .filter(|l| !l.trim_start().starts_with("//"))
                .any(|l| uses(l, name));
            if used && !source.path.starts_with(home) {
                wrong.push(format!("{}: names {name}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `name` occurs as the start of a path.
fn uses(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    })
}
