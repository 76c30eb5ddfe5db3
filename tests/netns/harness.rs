//! Runner: one process per test, isolated, bounded in time, reported in the words of libtest.
//!
//! The runner starts itself again for each test (stage one), which unshares; the runner writes the id
//! maps and lets it go on; it then starts itself once more (stage two) as the first process of a new
//! process namespace, so that the end of stage two, however it comes, ends everything the test started.

use std::any::Any;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Uid, getgid, getuid};

use crate::differences;
use crate::exec::poll_until;
use crate::options::Options;

/// Who the test, and the program under test, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Root of a new user namespace; works for everybody.
    Nested,
    /// Real root, no user namespace; only where the suite itself runs as root.
    Root,
}

/// How a suite's tests are run, where that is not as those of the namespace suite.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// How long the test of a name may take.
    pub limit: fn(&str) -> Duration,
    /// Process 1 of a test is not the test but one that reaps whatever daemons are left to it. For programs that
    /// wait for others to vanish, not just to end.
    pub reaper: bool,
}

impl Manner {
    const PLAIN: Manner = Manner {
        limit: |_| LIMIT,
        reaper: false,
    };
}

/// One test: its name within its group, who runs it, what it does.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub name: &'static str,
    pub identity: Identity,
    pub run: fn(),
}

/// Declares the tests of a file: `tests![a, b]`, or `tests![a; root: c, d]`.
macro_rules! tests {
    ($($name:ident),* $(,)? $(; root: $($root:ident),* $(,)?)?) => {
        pub const TESTS: &[$crate::harness::Test] = &[
            $($crate::harness::Test { name: stringify!($name), identity: $crate::harness::Identity::Nested, run: $name },)*
            $($($crate::harness::Test { name: stringify!($root), identity: $crate::harness::Identity::Root, run: $root },)*)?
        ];
    };
}
pub(crate) use tests;

/// Scratch directory of a test (a tmpfs of its own), and where the program under test is found.
pub const DIR: &str = "/run/t";
pub const PASTA: &str = "/run/t/bin/pasta";
#[allow(
    dead_code,
    reason = "for the suites of passt mode, which share this file"
)]
pub const PASST: &str = "/run/t/bin/passt";

/// Tests at a time: most of them wait most of the time.
const THREADS: usize = 3;
const STAGE: &str = "NETNS_SUITE_STAGE";
const LIMIT: Duration = Duration::from_secs(400);
const REAPER: &str = "reaper";
const SKIPPED: i32 = 77;
const FAILED: i32 = 101;

struct Skip(String);

/// Ends the test: the machine lacks something it needs.
pub fn skip(why: &str) -> ! {
    std::panic::panic_any(Skip(why.to_owned()))
}

/// What begins a line that is for the report, also when the test passes.
const NOTE: &str = "note: ";

/// Says something that is worth knowing of a test that passes.
#[allow(dead_code, reason = "not every suite measures")]
pub fn note(what: &str) {
    eprintln!("{NOTE}{what}");
}

/// Skips unless the program is installed.
pub fn need(program: &str) {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"]
        .iter()
        .any(|d| Path::new(d).join(program).exists());
    if !found {
        skip(&format!("{program} is not installed"));
    }
}

/// Skips unless ordinary users may open a tap.
pub fn need_tap_for_users() {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata("/dev/net/tun").map_or(0, |m| m.permissions().mode());
    if mode & 0o006 != 0o006 {
        skip("users may not open /dev/net/tun here (udev would make it 0666)");
    }
}

enum Outcome {
    /// With its notes.
    Passed(String),
    Failed(String),
    Skipped(String),
}

/// Runs the suite, or, in a process the suite started, one stage of one test.
pub fn main(groups: &[(&'static str, &'static [Test])]) -> ExitCode {
    main_with(groups, Manner::PLAIN)
}

pub fn main_with(groups: &[(&'static str, &'static [Test])], manner: Manner) -> ExitCode {
    let all: Vec<(String, Test)> = groups
        .iter()
        .flat_map(|(g, tests)| tests.iter().map(move |t| (format!("{g}::{}", t.name), *t)))
        .collect();
    if let Ok(stage) = std::env::var(STAGE) {
        let (stage, name) = stage.split_once(' ').unwrap_or_default();
        let test = all
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, t)| *t)
            .expect("a known test");
        return match stage {
            "1" => isolate(name, test, manner),
            REAPER => reap_until_done(name),
            _ => perform(name, test),
        };
    }
    let options = Options::parse(THREADS);
    let chosen: Vec<(String, Test)> = all
        .iter()
        .filter(|(n, _)| options.wants(n))
        .cloned()
        .collect();
    if options.list {
        chosen.iter().for_each(|(n, _)| println!("{n}: test"));
        return ExitCode::SUCCESS;
    }
    let repeated: Vec<_> = std::iter::repeat_n(chosen, options.repeat)
        .flatten()
        .collect();
    run_all(&repeated, all.len(), options.threads, manner)
}

fn run_all(chosen: &[(String, Test)], known: usize, threads: usize, manner: Manner) -> ExitCode {
    println!("\nrunning {} tests", chosen.len());
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..threads.max(1) {
            s.spawn(|| {
                while let Some((name, test)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let outcome = attempt(name, *test, manner);
                    let word = match &outcome {
                        Outcome::Passed(_) => "ok".to_owned(),
                        Outcome::Failed(_) => "FAILED".to_owned(),
                        Outcome::Skipped(why) => format!("ignored, {why}"),
                    };
                    let mut outcomes = outcomes.lock().expect("no panic while reporting");
                    println!(
                        "test {name} ... {word} ({:.2}s)",
                        begun.elapsed().as_secs_f64()
                    );
                    if let Outcome::Passed(notes) = &outcome {
                        print!("{notes}");
                    }
                    outcomes.push((name.clone(), outcome));
                }
            });
        }
    });
    report(
        &outcomes.into_inner().expect("threads have ended"),
        known,
        chosen.len(),
        start.elapsed(),
    )
}

fn report(outcomes: &[(String, Outcome)], known: usize, chosen: usize, took: Duration) -> ExitCode {
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    for (name, outcome) in outcomes {
        match outcome {
            Outcome::Passed(_) => passed += 1,
            Outcome::Failed(output) => {
                failed += 1;
                println!("\n---- {name} ----\n{output}");
            }
            Outcome::Skipped(why) => {
                ignored += 1;
                println!("skipped: {name}: {why}");
            }
        }
    }
    if failed > 0 {
        println!("\nfailures:");
        outcomes
            .iter()
            .filter(|(_, o)| matches!(o, Outcome::Failed(_)))
            .for_each(|(n, _)| println!("    {n}"));
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        known.saturating_sub(chosen),
        took.as_secs_f64()
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one test in its own process and says how it went.
fn attempt(name: &str, test: Test, manner: Manner) -> Outcome {
    if let Some(why) = differences::skip_reason(name) {
        return Outcome::Skipped(why);
    }
    if test.identity == Identity::Root && !Uid::effective().is_root() {
        return Outcome::Skipped("needs root".to_owned());
    }
    let limit = (manner.limit)(name);
    match supervise(name, test, limit) {
        Err(e) => Outcome::Failed(format!("the test process could not be run: {e}")),
        Ok((status, output)) => match status.and_then(|s| s.code()) {
            Some(0) => Outcome::Passed(notes(&output)),
            Some(SKIPPED) => Outcome::Skipped(output.lines().last().unwrap_or_default().to_owned()),
            _ => Outcome::Failed(format!(
                "{output}\n[{}]",
                status.map_or_else(|| format!("killed after {limit:?}"), |s| s.to_string())
            )),
        },
    }
}

fn notes(output: &str) -> String {
    let notes = output.lines().filter(|l| l.starts_with(NOTE));
    notes.map(|l| format!("    {l}\n")).collect()
}

fn supervise(
    name: &str,
    test: Test,
    limit: Duration,
) -> std::io::Result<(Option<ExitStatus>, String)> {
    let mut output = tempfile()?;
    let mut child = Command::new(std::env::current_exe()?)
        .env(STAGE, format!("1 {name}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(output.try_clone()?)
        .spawn()?;
    let handshake = if test.identity == Identity::Nested {
        map_ids(&mut child)
    } else {
        Ok(())
    };
    let mut status = None;
    poll_until(limit, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let mut bytes = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut bytes)?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if let Err(e) = handshake {
        text.push_str(&format!("\nno user namespace: {e}"));
    }
    Ok((status, text))
}

/// Waits until stage one has unshared, and writes its id maps: everybody when we are root, else ourselves.
fn map_ids(child: &mut Child) -> std::io::Result<()> {
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line)?;
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    if Uid::effective().is_root() {
        fs::write(proc.join("uid_map"), "0 0 65536\n")?;
        fs::write(proc.join("gid_map"), "0 0 65536\n")?;
    } else {
        fs::write(proc.join("setgroups"), "deny")?;
        fs::write(proc.join("uid_map"), format!("0 {} 1\n", getuid()))?;
        fs::write(proc.join("gid_map"), format!("0 {} 1\n", getgid()))?;
    }
    child.stdin.take().expect("piped").write_all(b"go\n")
}

/// Stage one: leave the machine's namespaces, become the parent of a new process namespace.
fn isolate(name: &str, test: Test, manner: Manner) -> ExitCode {
    set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let mut flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if test.identity == Identity::Nested {
        unshare(CloneFlags::CLONE_NEWUSER)
            .unwrap_or_else(|e| skip_now(&format!("no user namespaces here: {e}")));
        println!("unshared");
        let mut line = String::new();
        std::io::stdin()
            .read_line(&mut line)
            .expect("the runner answers");
    }
    flags |= CloneFlags::CLONE_NEWPID;
    unshare(flags).expect("unshare");
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().expect("dup");
    let next = if manner.reaper { REAPER } else { "2" };
    let status = Command::new("/proc/self/exe")
        .env(STAGE, format!("{next} {name}"))
        .stdin(Stdio::null())
        .stdout(stderr)
        .status()
        .expect("start stage two");
    ExitCode::from(
        status
            .code()
            .and_then(|c| u8::try_from(c).ok())
            .unwrap_or(1),
    )
}

/// Process 1 in front of stage two: waits for every child it is given, and ends with its own.
#[allow(
    clippy::zombie_processes,
    reason = "the loop waits for it as for every other child"
)]
fn reap_until_done(name: &str) -> ExitCode {
    set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let test = Command::new("/proc/self/exe")
        .env(STAGE, format!("2 {name}"))
        .spawn()
        .expect("start stage two");
    let test = i32::try_from(test.id()).expect("a process id");
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == test => {
                return ExitCode::from(u8::try_from(code).unwrap_or(1));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == test => {
                eprintln!("the test process was ended by {signal}");
                return ExitCode::FAILURE;
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => panic!("process 1 waits: {e}"),
        }
    }
}

fn skip_now(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(SKIPPED)
}

/// Stage two: the test itself, as process 1.
fn perform(name: &str, test: Test) -> ExitCode {
    set_pdeathsig(Signal::SIGKILL).expect("prctl");
    prepare_files().unwrap_or_else(|e| panic!("preparing the test's mounts: {e}"));
    std::panic::set_hook(Box::new(|info| {
        if info.payload().downcast_ref::<Skip>().is_none() {
            eprintln!("{info}");
        }
    }));
    let Err(payload) = std::panic::catch_unwind(test.run) else {
        return ExitCode::SUCCESS;
    };
    std::process::exit(verdict(name, payload.as_ref()))
}

fn verdict(name: &str, payload: &(dyn Any + Send)) -> i32 {
    if let Some(Skip(why)) = payload.downcast_ref::<Skip>() {
        eprintln!("{why}");
        return SKIPPED;
    }
    eprintln!("{name} failed; logs of the program under test:");
    for entry in fs::read_dir(DIR).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".log") {
            let text = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let tail: Vec<&str> = text.lines().rev().take(25).collect();
            eprintln!("-- {}", entry.path().display());
            tail.iter().rev().for_each(|l| eprintln!("{l}"));
        }
    }
    FAILED
}

/// A private mount tree: /proc of the new process namespace, an empty /run with our scratch directory, the
/// program under test under its name, and a resolv.conf of our own.
fn prepare_files() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        NONE,
    )
    .unwrap_or_else(|e| {
        skip_now(&format!(
            "cannot mount /proc in a new process namespace: {e}"
        ))
    });
    let (tool, _) = under_test();
    // Whatever lies beside it comes along; the path may be below /run, or closed to an unprivileged user.
    let beside = tool.parent().unwrap_or(Path::new("."));
    let beside = File::open(beside).unwrap_or_else(|e| panic!("{}: {e}", beside.display()));
    let name = tool.file_name().expect("a file");
    let resolv = fs::read_link("/etc/resolv.conf").map_or_else(
        |_| PathBuf::from("/etc/resolv.conf"),
        |l| Path::new("/etc").join(l),
    );
    mount(
        Some("run"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )?;
    for dir in [DIR, "/run/t/bin", "/run/t/built", "/run/netns"] {
        fs::create_dir_all(dir).expect("tmpfs");
    }
    let source = format!("/proc/self/fd/{}", beside.as_raw_fd());
    mount(
        Some(source.as_str()),
        "/run/t/built",
        NONE,
        MsFlags::MS_BIND,
        NONE,
    )?;
    for called in [PASTA, PASST] {
        symlink(Path::new("/run/t/built").join(name), called).expect("tmpfs");
    }
    fs::write(
        "/run/t/resolv.conf",
        "nameserver 203.0.113.53\nnameserver 2001:db8:99::53\nsearch example.org test.example\n",
    )
    .expect("tmpfs");
    if resolv.starts_with("/run") {
        fs::create_dir_all(resolv.parent().expect("a file in /run")).expect("tmpfs");
        fs::write(&resolv, "").expect("tmpfs");
    }
    mount(
        Some("/run/t/resolv.conf"),
        "/etc/resolv.conf",
        NONE,
        MsFlags::MS_BIND,
        NONE,
    )
}

/// The program under test, and whether it is not the one cargo built.
pub fn under_test() -> (PathBuf, bool) {
    match std::env::var_os("PASST_UNDER_TEST") {
        Some(path) => (PathBuf::from(path), true),
        None => (PathBuf::from(env!("CARGO_BIN_EXE_passt")), false),
    }
}

fn tempfile() -> std::io::Result<File> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let path = std::env::temp_dir().join(format!(
        "netns-suite-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}
