//! The program under test in passt mode, in the foreground, and the oracle that it neither crashed nor hung.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{SOON, alive, poll_until, processes};
use crate::harness::{DIR, PASST};
use crate::world::World;

/// Longer than a message takes on a busy machine.
const MOMENT: Duration = Duration::from_millis(20);

/// A running passt. Its end, when a test has not asked for it, fails that test.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    pub socket: String,
    log: String,
    finished: bool,
}

impl Passt {
    /// `passt -f -s SOCKET ARGS` in the host's namespace.
    #[track_caller]
    pub fn start(world: &World, args: &[&str]) -> Passt {
        Passt::launch(world, args, None, None)
    }

    /// The same with at most `files` descriptors in each of its processes.
    #[track_caller]
    pub fn start_limited(world: &World, args: &[&str], files: usize) -> Passt {
        let script = format!("ulimit -n {files}; exec \"$@\"");
        Passt::launch(world, args, None, Some(&script))
    }

    /// The same with a connected socket instead of one to listen on.
    #[track_caller]
    pub fn start_with(world: &World, args: &[&str], fd: OwnedFd) -> Passt {
        let script = "exec \"$@\" --fd 3 3<&0 </dev/null";
        Passt::launch(world, args, Some(fd), Some(script))
    }

    #[track_caller]
    fn launch(world: &World, args: &[&str], fd: Option<OwnedFd>, script: Option<&str>) -> Passt {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let (socket, log) = (
            format!("{DIR}/passt{n}.socket"),
            format!("{DIR}/passt{n}.log"),
        );
        let mut command = Command::new(script.map_or(PASST, |_| "sh"));
        if let Some(script) = script {
            command.args(["-c", script, "sh", PASST]);
        }
        if fd.is_none() {
            command.args(["-s", &socket]);
        }
        command.arg("-f").args(args).current_dir(DIR);
        let output = File::create(&log).expect("tmpfs");
        command
            .stdin(fd.map_or_else(Stdio::null, Stdio::from))
            .stdout(output.try_clone().expect("a descriptor"))
            .stderr(output);
        let child = world
            .host
            .enter(|| command.spawn())
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Passt {
            child,
            socket,
            log,
            finished: false,
        }
    }

    /// A connection; waits for the socket to be there.
    #[track_caller]
    pub fn dial(&self) -> UnixStream {
        let end = Instant::now() + SOON;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(SOON)).expect("a timeout");
                    stream.set_write_timeout(Some(SOON)).expect("a timeout");
                    return stream;
                }
                Err(e) => assert!(
                    Instant::now() < end && alive(self.pid()),
                    "{}: {e}; {}",
                    self.socket,
                    self.said()
                ),
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// All it has written so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// It ends by itself, in order: with this status, without a panic or a signal, leaving no process.
    #[track_caller]
    pub fn ends(mut self, codes: &[i32]) -> String {
        self.finished = true;
        let mut status = None;
        poll_until(SOON, || {
            status = self.ended();
            status.is_some()
        });
        let said = self.said();
        let Some(status) = status else {
            panic!("it does not end; it said:\n{said}");
        };
        assert_eq!(status.signal(), None, "{said}");
        assert!(
            codes.contains(&status.code().expect("no signal")),
            "{status}:\n{said}"
        );
        sound(&said);
        assert!(
            poll_until(SOON, || !processes().iter().any(|p| is_passt(*p))),
            "processes left behind"
        );
        said
    }

    /// Ends it, in whatever state it is.
    pub fn forget(mut self) {
        self.finished = true;
    }

    /// It is still there; ends it.
    #[track_caller]
    pub fn stop(mut self) -> String {
        if let Some(status) = self.ended() {
            self.finished = true;
            panic!("it ended during the test, {status}:\n{}", self.said());
        }
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("it is running");
        self.ends(&[0])
    }

    /// Asserts that it lives.
    #[track_caller]
    pub fn lives(&mut self) {
        if let Some(status) = self.ended() {
            self.finished = true;
            panic!("it ended, {status}:\n{}", self.said());
        }
        sound(&self.said());
    }

    /// Descriptors of all its processes: the most within a moment, because those kept back are away while a message is
    /// being read, its answer included.
    pub fn descriptors(&self) -> usize {
        let look = || -> usize {
            processes()
                .iter()
                .filter(|p| is_passt(**p))
                .filter_map(|p| fs::read_dir(format!("/proc/{p}/fd")).ok())
                .map(Iterator::count)
                .sum()
        };
        let mut most = 0;
        poll_until(MOMENT, || {
            most = most.max(look());
            false
        });
        most
    }
}

/// Nothing in the output tells of a fault in the program itself.
#[track_caller]
pub fn sound(said: &str) {
    for word in [
        "panicked",
        "SIGSYS",
        "killed by",
        "assert",
        "sandbox violation",
    ] {
        assert!(!said.contains(word), "{said}");
    }
}

fn is_passt(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|c| c.starts_with("passt") || c.starts_with("ld-linux"))
}

impl Drop for Passt {
    fn drop(&mut self) {
        if !self.finished && !std::thread::panicking() {
            panic!("a test must say how its passt ends");
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
