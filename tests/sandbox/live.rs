//! The real processes, seen through /proc, against `policy/processes.json`; and what happens when one dies.
//!
//! Looking into another process's namespaces and descriptors needs privilege over it, so without root the test
//! binary runs itself again inside a user namespace, where it has that over everything it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::policy::{Process, processes};

/// How long processes may outlive one of them.
const GRACE: Duration = Duration::from_millis(200);

/// Long enough for any machine, short enough for a person.
const PATIENCE: Duration = Duration::from_secs(10);

/// The one capability that may stay, as a mask.
const NET_BIND_SERVICE: u64 = 1 << 10;

/// Set in the copy of this program that runs inside a user namespace.
const INSIDE: &str = "PASST_TEST_INSIDE_USERNS";

/// Says why a test did nothing, past the test harness, which keeps what print macros write by a test that passes.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Run `test` where we have power over the processes we start; `name` is the test's full name.
pub fn with_power(name: &str, test: impl FnOnce()) {
    if !fs::exists("/dev/net/tun").unwrap_or(false) {
        skipped("no /dev/net/tun");
        return;
    }
    if nix::unistd::geteuid().is_root() || std::env::var_os(INSIDE).is_some() {
        test();
        return;
    }
    let me = std::env::current_exe().expect("own path");
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--"])
        .arg(me)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("inside a user namespace: {status}"),
        Err(e) => skipped(&format!("no unshare(1): {e}")),
    }
}

/// pasta around `sleep`, in the foreground, up and running.
pub struct Pasta {
    monitor: Child,
    forwarder: u32,
    agent: u32,
    /// The command.
    sleep: u32,
}

impl Pasta {
    pub fn start(options: &[&str]) -> Self {
        let monitor = Command::new(env!("CARGO_BIN_EXE_passt"))
            .arg0("pasta")
            .args(["--config-net", "-q"])
            .args(options)
            .args(["--", "sh", "-c", "echo up; exec sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("pasta");
        // From here on a failure ends it.
        let mut pasta = Self {
            monitor,
            forwarder: 0,
            agent: 0,
            sleep: 0,
        };
        let mut line = String::new();
        let stdout = pasta.monitor.stdout.take().expect("stdout");
        BufReader::new(stdout).read_line(&mut line).expect("line");
        if line != "up\n" {
            let (status, why) = pasta.end();
            panic!("pasta did not start: {status}: {why}");
        }
        pasta.forwarder = pasta.named("pasta:forwarder");
        pasta.agent = pasta.named("pasta:ns-agent");
        pasta.sleep = pasta.named("sleep");
        pasta
    }

    /// The process of this name among ours, as soon as it has it.
    fn named(&self, name: &str) -> u32 {
        let start = Instant::now();
        loop {
            let all = descendants(self.monitor.id());
            if let Some(pid) = all.iter().copied().find(|pid| comm(*pid) == name) {
                return pid;
            }
            assert!(start.elapsed() < PATIENCE, "no {name} among {all:?}");
            std::thread::yield_now();
        }
    }

    pub fn forwarder(&self) -> u32 {
        self.forwarder
    }

    fn all(&self) -> [(&'static str, u32); 3] {
        [
            ("monitor", self.monitor.id()),
            ("forwarder", self.forwarder),
            ("ns_agent", self.agent),
        ]
    }

    /// Wait for the monitor; status and standard error.
    pub fn end(mut self) -> (ExitStatus, String) {
        ended(&mut self.monitor)
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

/// Wait for a monitor; status and standard error.
pub fn ended(monitor: &mut Child) -> (ExitStatus, String) {
    wait_gone(&[monitor.id()]);
    let status = monitor.wait().expect("status");
    let mut text = String::new();
    if let Some(stderr) = &mut monitor.stderr {
        stderr.read_to_string(&mut text).expect("stderr");
    }
    (status, text)
}

pub fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or(String::new(), |s| s.trim_end().to_owned())
}

pub fn descendants(of: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        if let Some(parent) = field(pid, "PPid").and_then(|p| p.parse::<u32>().ok()) {
            parents.insert(pid, parent);
        }
    }
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(
            parents
                .iter()
                .filter(|(_, p)| **p == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found
}

pub fn field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find(|l| l.starts_with(&format!("{name}:")))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Gone, or only waiting for a parent that does not look.
pub fn is_gone(pid: u32) -> bool {
    field(pid, "State").is_none_or(|s| s.starts_with('Z') || s.starts_with('X'))
}

fn namespace(pid: &str, name: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{name}"))
        .unwrap_or_else(|e| panic!("namespace {name} of {pid}: {e}"))
        .ino()
}

/// Wait until all are gone; how long it took.
pub fn wait_gone(pids: &[u32]) -> Duration {
    let start = Instant::now();
    while !pids.iter().all(|pid| is_gone(*pid)) {
        assert!(start.elapsed() < PATIENCE, "still there: {pids:?}");
        std::thread::yield_now();
    }
    start.elapsed()
}

pub fn check_credentials(name: &str, pid: u32, policy: &Process) {
    for (set, line) in [
        ("effective", "CapEff"),
        ("permitted", "CapPrm"),
        ("inheritable", "CapInh"),
        ("ambient", "CapAmb"),
        ("bounding", "CapBnd"),
    ] {
        assert!(policy.capabilities[set].is_empty());
        let held = u64::from_str_radix(&field(pid, line).expect("capabilities"), 16).expect("hex");
        let allowed = match set {
            "effective" | "permitted" if !policy.capabilities["on_demand"].is_empty() => {
                NET_BIND_SERVICE
            }
            _ => 0,
        };
        assert_eq!(held & !allowed, 0, "{name} {line}");
    }
    assert_eq!(field(pid, "NoNewPrivs").as_deref(), Some("1"), "{name}");
    assert_eq!(field(pid, "Seccomp").as_deref(), Some("2"), "{name}");
    assert_eq!(
        field(pid, "Seccomp_filters").as_deref(),
        Some("1"),
        "{name}"
    );
    assert_eq!(field(pid, "Threads").as_deref(), Some("1"), "{name}");
}

/// `family`: all of the instance's processes; `target`: one in the namespaces it was started for.
pub fn check_namespaces(
    (name, pid): (&str, u32),
    policy: &Process,
    family: &[(&str, u32)],
    target: Option<u32>,
) {
    let pid = pid.to_string();
    let target = target.map(|target| target.to_string());
    let keeps = field(pid.parse().expect("pid"), "CapEff").expect("capabilities");
    for ns in &policy.namespaces.own {
        if ns == "user" && keeps != "0000000000000000" {
            // What a capability over the host's network is worth depends on the user namespace.
            assert_eq!(namespace(&pid, ns), namespace("self", ns), "{name} {ns}");
            continue;
        }
        for other in ["self"].into_iter().chain(target.as_deref()) {
            assert_ne!(
                namespace(&pid, ns),
                namespace(other, ns),
                "{name} shares {ns} with {other}"
            );
        }
        for (other_name, other) in family {
            if *other_name != name {
                let theirs = namespace(&other.to_string(), ns);
                assert_ne!(
                    namespace(&pid, ns),
                    theirs,
                    "{name} shares {ns} with {other_name}"
                );
            }
        }
    }
    for ns in &policy.namespaces.target {
        let target = target.as_deref().expect("a target");
        assert_eq!(namespace(&pid, ns), namespace(target, ns), "{name} {ns}");
    }
    for ns in &policy.namespaces.host {
        assert_eq!(namespace(&pid, ns), namespace("self", ns), "{name} {ns}");
    }
    let named: usize = [
        &policy.namespaces.own,
        &policy.namespaces.target,
        &policy.namespaces.host,
    ]
    .iter()
    .map(|list| list.len())
    .sum();
    assert_eq!(
        named, 7,
        "{name}: every namespace has a place in the policy"
    );
}

pub fn check_limits(name: &str, pid: u32, policy: &Process) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    for (limit, value) in &policy.rlimits {
        let title = match limit.as_str() {
            "core" => "Max core file size",
            "nproc" => "Max processes",
            "msgqueue" => "Max msgqueue size",
            "fsize" => "Max file size",
            other => panic!("unknown limit {other}"),
        };
        let line = limits
            .lines()
            .find(|l| l.starts_with(title))
            .expect("limit line");
        let values: Vec<_> = line[title.len()..].split_whitespace().take(2).collect();
        assert_eq!(
            values,
            [value.to_string(), value.to_string()],
            "{name} {limit}"
        );
    }
}

pub fn check_descriptors(name: &str, pid: u32, policy: &Process) {
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
        // Paths are those of a root that is gone; device numbers stay.
        let device = fs::metadata(entry.path()).map_or(0, |m| m.rdev());
        let kind = if device == libc::makedev(1, 3) {
            "/dev/null"
        } else if device == libc::makedev(10, 200) {
            "/dev/net/tun"
        } else if text.starts_with("socket:") {
            "socket"
        } else if name == "monitor" && target == stderr {
            "stderr"
        } else if text.starts_with("pipe:") {
            "pipe"
        } else {
            &text
        };
        assert!(allowed.contains(kind), "{name} holds {text}");
    }
}

pub fn check_root(name: &str, pid: u32) {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let inside = fs::read_dir(&root).expect("root directory").count();
    assert_eq!(inside, 0, "{name}: files in its root directory");
}

#[test]
fn processes_are_what_the_policy_says() {
    with_power("live::processes_are_what_the_policy_says", || {
        let pasta = Pasta::start(&[]);
        let policy = processes();
        for (name, pid) in pasta.all() {
            let policy = &policy[name];
            check_credentials(name, pid, policy);
            check_namespaces((name, pid), policy, &pasta.all(), Some(pasta.sleep));
            check_limits(name, pid, policy);
            check_descriptors(name, pid, policy);
            check_root(name, pid);
        }
        check_user(pasta.forwarder);
    });
}

/// Started as root of the initial user namespace, nothing of ours stays that.
pub fn check_user(pid: u32) {
    let own_user = field(pid, "Uid").expect("uid");
    if nix::unistd::geteuid().is_root() && std::env::var_os(INSIDE).is_none() {
        let map = fs::read_to_string("/proc/self/uid_map").expect("map");
        if map.split_whitespace().eq(["0", "0", "4294967295"]) {
            assert!(
                !own_user.split_whitespace().any(|id| id == "0"),
                "runs as root"
            );
        }
    }
}

#[test]
fn the_command_inherits_nothing_of_ours() {
    with_power("live::the_command_inherits_nothing_of_ours", || {
        let pasta = Pasta::start(&[]);
        let open: BTreeSet<_> = fs::read_dir(format!("/proc/{}/fd", pasta.sleep))
            .expect("descriptors")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(open.len(), 3, "{open:?}");
        let blocked = field(pasta.sleep, "SigBlk").expect("mask");
        assert_eq!(blocked, "0000000000000000");
        let ignored = field(pasta.sleep, "SigIgn").expect("mask");
        // Bit 12: SIGPIPE, which our runtime ignores and programs do not expect.
        assert_eq!(
            u64::from_str_radix(&ignored, 16).expect("hex") & (1 << 12),
            0
        );
    });
}

#[test]
fn no_process_outlives_another() {
    with_power("live::no_process_outlives_another", || {
        for victim in ["monitor", "forwarder", "ns_agent"] {
            // On a machine that does much else, a late wake-up is not ours: the best of three counts.
            let best = (0..3)
                .map(|_| kill_and_time(victim))
                .min()
                .expect("three tries");
            assert!(
                best <= GRACE,
                "after {victim} was killed the others took {best:?}"
            );
        }
    });
}

fn kill_and_time(victim: &str) -> Duration {
    let pasta = Pasta::start(&[]);
    let (_, pid) = pasta
        .all()
        .into_iter()
        .find(|(n, _)| *n == victim)
        .expect("victim");
    let everybody: Vec<u32> = descendants(pasta.monitor.id());
    assert!(everybody.len() >= 4, "{everybody:?}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid).expect("pid")),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("kill");
    let took = wait_gone(&everybody);
    let (status, said) = pasta.end();
    if victim == "monitor" {
        assert_eq!(status.signal(), Some(9));
    } else {
        assert_eq!(status.code(), Some(1), "{said}");
        let name = victim.replace('_', "-");
        assert!(
            said.contains(&format!("{name} was killed by signal 9")),
            "the reason is missing: {said:?}"
        );
    }
    took
}

#[test]
fn termination_is_orderly() {
    with_power("live::termination_is_orderly", || {
        for signal in [
            nix::sys::signal::Signal::SIGTERM,
            nix::sys::signal::Signal::SIGQUIT,
        ] {
            let pasta = Pasta::start(&[]);
            let everybody = descendants(pasta.monitor.id());
            let monitor = i32::try_from(pasta.monitor.id()).expect("pid");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), signal).expect("kill");
            wait_gone(&everybody);
            let (status, said) = pasta.end();
            assert_eq!(status.code(), Some(0), "{signal}: {said}");
            assert_eq!(said, "", "{signal}");
        }
    });
}
