//! passt as whoever starts it sees it: sockets, descriptors, the background, exit status, what is said. What goes over
//! the socket is for other tests; here a client comes, is answered by ARP, and goes.
//!
//! It runs in the network it finds and listens on no port, so that no privilege is needed.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of one test's, gone with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("passt-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("mkdir");
        // Started as root, it becomes nobody.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("chmod");
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn passt(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_passt"));
    command
        .arg0("passt")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain path")
}

#[track_caller]
fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(start.elapsed() < PATIENCE, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One in the foreground, ended with the test.
struct Instance(Child);

impl Instance {
    fn start(arguments: &[&str]) -> Self {
        Self(passt(arguments).spawn().expect("start"))
    }

    fn end(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().expect("piped");
        let status = until("end", || self.0.try_wait().expect("child"));
        stderr.read_to_string(&mut said).expect("text");
        (status, said)
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("signal");
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One in the background, ended with the test.
struct Daemon(Pid);

impl Daemon {
    fn start(arguments: &[&str], pid_file: &Path) -> (Self, Output) {
        let output = passt(arguments)
            .args(["--pid", text(pid_file)])
            .output()
            .expect("start");
        let pid = fs::read_to_string(pid_file).unwrap_or_default();
        let pid = pid.trim().parse().unwrap_or_else(|_| {
            panic!("no pid: {}", String::from_utf8_lossy(&output.stderr));
        });
        (Self(Pid::from_raw(pid)), output)
    }

    fn alive(&self) -> bool {
        // Whoever adopts it may be slow to reap it.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.alive() {
            let _ = kill(self.0, Signal::SIGTERM);
            until("end", || (!self.alive()).then_some(()));
        }
    }
}

/// An ARP probe for 192.0.2.1, with its length before it.
fn probe() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([
        0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
    ]);
    frame.extend([0x52, 0x54, 0, 0x12, 0x34, 0x56, 0, 0, 0, 0]);
    frame.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    [&42_u32.to_be_bytes()[..], &frame].concat()
}

/// Ask, and read frames until the answer is there. False: the connection ends instead.
fn answered(mut guest: &UnixStream) -> bool {
    guest.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    if guest.write_all(&probe()).is_err() {
        return false;
    }
    loop {
        let mut length = [0; 4];
        if guest.read_exact(&mut length).is_err() {
            return false;
        }
        let length = usize::try_from(u32::from_be_bytes(length)).expect("small");
        assert!((60..=65549).contains(&length), "{length}");
        let mut frame = vec![0; length];
        guest.read_exact(&mut frame).expect("the whole frame");
        // A reply, from 192.0.2.1.
        if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == [192, 0, 2, 1] {
            return true;
        }
    }
}

fn connected(path: &Path) -> UnixStream {
    until("listening socket", || UnixStream::connect(path).ok())
}

/// Leave the descriptor to the program we start, under the number it has.
fn inherited(socket: impl Into<OwnedFd>) -> (OwnedFd, String) {
    let socket = socket.into();
    let flags = nix::fcntl::FdFlag::empty();
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(flags)).expect("fcntl");
    let number = socket.as_raw_fd().to_string();
    (socket, number)
}

#[test]
fn in_the_background_the_socket_is_there_when_the_command_returns() {
    let place = Place::new("background");
    let (socket, pid_file) = (place.at("s"), place.at("pid"));
    let (daemon, output) = Daemon::start(&["-s", text(&socket)], &pid_file);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(
        said.contains(&format!("UNIX domain socket bound at {}\n", text(&socket))),
        "{said}"
    );
    assert!(said.contains("You can now start qemu"), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(pid_file.metadata().expect("there").mode() & 0o7777, 0o600);
    let guest = UnixStream::connect(&socket).expect("listening");
    assert!(answered(&guest));
    for fd in 0..3 {
        let to = fs::read_link(format!("/proc/{}/fd/{fd}", daemon.0)).expect("descriptor");
        assert_eq!(to, Path::new("/dev/null"));
    }
    drop(daemon);
    assert!(socket.exists(), "nobody is left who could remove it");
    // And it is in nobody's way.
    let (_again, output) = Daemon::start(&["-q", "-s", text(&socket)], &pid_file);
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(answered(&UnixStream::connect(&socket).expect("listening")));
}

#[test]
fn what_is_in_use_stays_and_is_not_disturbed() {
    let place = Place::new("in-use");
    let socket = place.at("s");
    let first = Instance::start(&["-f", "-1", "-s", text(&socket)]);
    until("socket", || socket.exists().then_some(()));
    let output = passt(&["-f", "-q", "-s", text(&socket)])
        .output()
        .expect("start");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!("Socket path {} already in use\n", text(&socket))
    );
    // The question has not been taken for its only client.
    let guest = connected(&socket);
    assert!(answered(&guest));
    drop(guest);
    let (status, said) = first.end();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(
        said.lines()
            .last()
            .is_some_and(|line| line.contains("exiting")),
        "{said}"
    );

    let file = place.at("file");
    fs::write(&file, "kept").expect("write");
    let output = passt(&["-f", "-q", "-s", text(&file)])
        .output()
        .expect("start");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(&file).expect("there"), b"kept");
}

#[test]
fn another_client_may_come_unless_there_is_to_be_one_only() {
    let place = Place::new("clients");
    let socket = place.at("s");
    let instance = Instance::start(&["-f", "-q", "-s", text(&socket)]);
    for _ in 0..3 {
        // The one before may not be gone yet; then this one is turned away.
        until("answer", || {
            let guest = UnixStream::connect(&socket).ok()?;
            answered(&guest).then_some(())
        });
    }
    instance.signal(Signal::SIGTERM);
    let (status, said) = instance.end();
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn a_connection_that_is_there_is_used_and_its_end_is_the_end() {
    let place = Place::new("fd");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let (theirs, number) = inherited(theirs);
    let instance = Instance::start(&["-f", "--fd", &number]);
    drop(theirs);
    assert!(answered(&ours));
    drop(ours);
    let (status, said) = instance.end();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!said.contains("qemu"), "it is there already: {said}");

    let pid_file = place.at("pid");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let (theirs, number) = inherited(theirs);
    let (daemon, output) = Daemon::start(&["--quiet", "--fd", &number], &pid_file);
    assert!(output.status.success() && output.stderr.is_empty());
    drop(theirs);
    assert!(answered(&ours));
    drop(ours);
    until("end", || (!daemon.alive()).then_some(()));
}

#[test]
fn what_is_no_connection_is_refused() {
    let place = Place::new("no-fd");
    let refused = |number: &str, why: &str| {
        let output = passt(&["-f", "--fd", number]).output().expect("start");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            format!("Couldn't use --fd descriptor {number}: {why}\n")
        );
    };
    refused("99", "Bad file descriptor");
    refused("0", "Socket operation on non-socket");
    let listener = UnixListener::bind(place.at("listener")).expect("bind");
    let (_listener, number) = inherited(listener);
    refused(&number, "Transport endpoint is not connected");
}

#[test]
fn it_ends_in_order_when_it_is_told_to() {
    for (signal, code) in [
        (Signal::SIGTERM, 0),
        (Signal::SIGQUIT, 0),
        (Signal::SIGINT, 130),
    ] {
        let place = Place::new(signal.as_str());
        let socket = place.at("s");
        let instance = Instance::start(&["-f", "-q", "-s", text(&socket)]);
        let guest = connected(&socket);
        assert!(answered(&guest));
        instance.signal(signal);
        let (status, said) = instance.end();
        assert_eq!(status.code(), Some(code), "{signal}: {said}");
        let mut rest = Vec::new();
        match (&guest).read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let place = Place::new("failure");
    let (socket, pid_file) = (place.at("s"), place.at("pid"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let spec = format!("127.0.0.1/{port}:22");
    for foreground in [&["-f"][..], &[]] {
        let output = passt(&[
            "-q",
            "-s",
            text(&socket),
            "-P",
            text(&pid_file),
            "-t",
            &spec,
        ])
        .args(foreground)
        .output()
        .expect("start");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Address already in use"), "{said}");
        assert!(!socket.exists() && !pid_file.exists());
    }
    let output = passt(&["-q", "-s", "/nonexistent/x"])
        .output()
        .expect("start");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "Failed to bind UNIX domain socket /nonexistent/x: No such file or directory\n"
    );
}

#[test]
fn who_may_connect_is_for_the_umask_to_say() {
    for (umask, mode) in [("022", 0o755), ("077", 0o700), ("000", 0o777)] {
        let place = Place::new(&format!("umask-{umask}"));
        let socket = place.at("s");
        let script = format!("umask {umask}; exec \"$0\" -f -q -s \"$1\"");
        let child = Command::new("/bin/sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_passt"), text(&socket)])
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        let instance = Instance(child);
        drop(connected(&socket));
        assert_eq!(socket.metadata().expect("there").mode() & 0o7777, mode);
        drop(instance);
    }
}

#[test]
fn log_capture_and_pid_files_are_written() {
    let place = Place::new("files");
    let (socket, log, pcap) = (place.at("s"), place.at("log"), place.at("pcap"));
    let (daemon, output) = Daemon::start(
        &["-s", text(&socket), "-l", text(&log), "-p", text(&pcap)],
        &place.at("pid"),
    );
    assert!(output.status.success());
    let guest = UnixStream::connect(&socket).expect("listening");
    assert!(answered(&guest));
    drop(daemon);
    let log = fs::read_to_string(&log).expect("there");
    assert!(log.contains("UNIX domain socket bound at"), "{log}");
    let pcap = fs::read(&pcap).expect("there");
    let probe = probe();
    assert!(
        pcap.windows(42).any(|window| window == &probe[4..]),
        "what the guest has sent"
    );
}

#[test]
fn pesto_sees_two_processes_and_one_table() {
    let place = Place::new("pesto");
    let (socket, control) = (place.at("s"), place.at("c"));
    let (_daemon, output) = Daemon::start(
        &["-q", "-s", text(&socket), "-c", text(&control)],
        &place.at("pid"),
    );
    assert!(output.status.success());
    let pesto = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pesto"))
            .args(arguments)
            .arg(&control)
            .output()
            .expect("pesto");
        let error = String::from_utf8(output.stderr).expect("text");
        (output.stdout, error)
    };
    let (report, error) = pesto(&["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&report).expect(&error);
    let processes = report["processes"].as_array().expect("an array");
    let names: Vec<_> = processes.iter().map(|process| &process["name"]).collect();
    assert_eq!(names, ["monitor", "forwarder"]);
    for (arguments, why) in [
        (["-T", "81"], "Can't use -T, no outbound interface\n"),
        (
            ["-t", "auto"],
            "'auto' port forwarding is only allowed for pasta\n",
        ),
    ] {
        assert_eq!(pesto(&arguments).1, why);
    }
}

#[test]
fn print_capabilities_needs_nothing_and_prints_json() {
    let output = passt(&["--print-capabilities"]).output().expect("start");
    assert!(output.status.success() && output.stderr.is_empty());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["type"], "net");
}

/// A place of its own for the default paths: /tmp is for everybody. Nothing is printed if it cannot be had, and
/// nothing is left behind.
const ELSEWHERE: &str = r#"
mount -t tmpfs -o mode=1777 none /tmp || exit 77
trap 'kill $(cat /tmp/pid /tmp/pid2) 2>/dev/null' EXIT
echo mounted
"$PASST" -q -P /tmp/pid || exit 1
"$PASST" -q -P /tmp/pid2 || exit 2
ls /tmp/passt_1.socket /tmp/passt_2.socket || exit 3
"$QRAP" 7 sh -c 'head -c 4 <&7 | od -An -tx1' || exit 4
ln -s /bin/echo /tmp/qemu-kvm
PATH=/tmp:$PATH "$QRAP" -m 1G -nic user || exit 5
kill "$(cat /tmp/pid)" "$(cat /tmp/pid2)"
tries=0
while "$QRAP" 7 true 2>/tmp/said; do
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || exit 6
done
cat /tmp/said
"#;

#[test]
fn qrap_finds_an_instance_at_a_default_path() {
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            ELSEWHERE,
        ])
        .env("PASST", env!("CARGO_BIN_EXE_passt"))
        .env("QRAP", env!("CARGO_BIN_EXE_qrap"))
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) if output.stdout.starts_with(b"mounted\n") => output,
        other => {
            // Past the test harness, which keeps what print macros write by a test that passes.
            let _ = writeln!(std::io::stderr(), "skipped: no mount namespace: {other:?}");
            return;
        }
    };
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let lines: Vec<_> = stdout.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "mounted",
            "/tmp/passt_1.socket",
            "/tmp/passt_2.socket",
            // A frame's length: the connection is at the start of one.
            "00 00 00 3c",
            "-m 1G -netdev socket,fd=5,id=hostnet0 -device virtio-net-pci,netdev=hostnet0",
            "No instance of passt without a guest at /tmp/passt_1.socket to /tmp/passt_64.socket: start one first",
        ],
        "{stderr}"
    );
}
