//! Running programs with a bound on their time, and waiting for conditions.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long to wait for what works: enough for a machine that is busy with anything but this test.  How long it
/// may take is another question, and has tests of its own (`prompt.rs`).
pub const SOON: Duration = Duration::from_secs(120);

/// What a finished program left.
#[derive(Debug)]
pub struct Output {
    /// Exit status; 128 + n when signal n ended it, as a shell says it.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Output {
    /// Exit status 0, or the test fails with all output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "unexpected exit status; stdout:\n{}\nstderr:\n{}",
            self.out, self.err
        );
        self.out
    }

    /// Standard output and error together.
    pub fn both(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// A running program whose output is collected.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: JoinHandle<Vec<u8>>,
    err: JoinHandle<Vec<u8>>,
    what: String,
}

/// Starts a program with collected output and without input.
#[track_caller]
pub fn spawn(mut command: Command) -> Running {
    let what = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
    let out = collect(child.stdout.take().expect("piped"));
    let err = collect(child.stderr.take().expect("piped"));
    Running {
        child,
        out,
        err,
        what,
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).ok();
        bytes
    })
}

impl Running {
    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    pub fn ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|s| s.is_some())
    }

    /// Waits for the end of the process *and* of its output: a daemon that kept a descriptor is a failure.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Output {
        let end = Instant::now() + limit;
        if !poll_until(limit, || self.ended()) {
            self.child.kill().ok();
            self.child.wait().ok();
            let (out, err) = (joined(self.out), joined(self.err));
            panic!(
                "{} did not end within {limit:?}; stdout:\n{out}\nstderr:\n{err}",
                self.what
            );
        }
        let status = self.child.wait().expect("it has ended");
        let left = end
            .saturating_duration_since(Instant::now())
            .max(Duration::from_secs(10));
        if !poll_until(left, || self.out.is_finished() && self.err.is_finished()) {
            panic!(
                "{} ended ({status}), but something still holds its output open",
                self.what
            );
        }
        let code = status
            .code()
            .or(status.signal().map(|s| 128 + s))
            .expect("exited or killed");
        Output {
            code,
            out: joined(self.out),
            err: joined(self.err),
        }
    }
}

fn joined(reader: JoinHandle<Vec<u8>>) -> String {
    if !poll_until(Duration::from_millis(500), || reader.is_finished()) {
        return "(still open)".to_owned();
    }
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

/// Runs a program to its end.
#[track_caller]
pub fn run(command: Command, limit: Duration) -> Output {
    spawn(command).finish(limit)
}

/// Polls `condition` until it holds; false when it did not within `limit`.
pub fn poll_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Is there a living (not merely unreaped) process of this id?
pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|fields| !matches!(fields[0].as_str(), "Z" | "X"))
}

/// The words of /proc/PID/stat from the state on: state, parent, group, session; those after are proc_pid_stat(5)'s,
/// where the state is number 3.
pub fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // A process names itself, also with spaces.
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// All living processes of the test's process namespace except the test itself.
pub fn processes() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).expect("a process id");
    let mut all: Vec<i32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|p| *p != own && alive(*p))
        .collect();
    all.sort_unstable();
    all
}

/// Nothing but the test itself is running any more.
#[track_caller]
pub fn nothing_left() {
    let gone = poll_until(SOON, || processes().is_empty());
    assert!(gone, "left behind: {:?}", named(&processes()));
}

fn named(pids: &[i32]) -> Vec<String> {
    let comm = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.iter()
        .map(|pid| format!("{pid} {}", comm(*pid).trim_end()))
        .collect()
}

/// A number of each living process except the test itself, added up.
pub fn sum_over_processes(of: impl Fn(i32) -> Option<u64>) -> u64 {
    processes().into_iter().filter_map(of).sum()
}

/// A line of /proc/PID/status, as a number.
pub fn status_number(pid: i32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Time that all processes but the test itself have spent, in clock ticks (10 ms).
pub fn cpu_ticks() -> u64 {
    sum_over_processes(|pid| {
        let fields = stat(pid)?;
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    })
}

/// Ends what watches it, also when the test fails.
#[derive(Debug)]
pub struct Ending<'a>(pub &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
