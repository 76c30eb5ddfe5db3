//! passt's processes: two, and what they hold while a machine is connected.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::hijack::{ATTACKS, alone, channels, listening};
use crate::live::{
    check_credentials, check_descriptors, check_limits, check_namespaces, check_root, check_user,
    comm, descendants, ended, skipped, wait_gone, with_power,
};
use crate::policy::processes;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Forwarded in the hijacking test and in no other.
const PORT: u16 = 18_082;

/// passt in the foreground with a client.
struct Passt {
    monitor: Child,
    forwarder: u32,
    directory: PathBuf,
    client: Option<UnixStream>,
}

impl Passt {
    fn start(options: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("passt-sandbox-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).expect("mkdir");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("chmod");
        let socket = directory.join("socket");
        let monitor = Command::new(env!("CARGO_BIN_EXE_passt"))
            .arg0("passt")
            .args(["-f", "-q", "-s"])
            .arg(&socket)
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("passt");
        // From here on a failure ends it.
        let mut passt = Self {
            monitor,
            forwarder: 0,
            directory,
            client: None,
        };
        let mut client = passt.until("socket", |_| UnixStream::connect(&socket).ok());
        // Nobody is answered before both processes are confined.
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        if options.contains(&"--vhost-user") {
            let get_features = [1_u32, 1, 0].map(u32::to_ne_bytes);
            client.write_all(get_features.as_flattened()).expect("room");
        }
        // Others are asked where they are.
        client.read_exact(&mut [0; 4]).expect("a word");
        passt.client = Some(client);
        passt.forwarder = passt.until("forwarder", |passt| {
            descendants(passt.monitor.id())
                .into_iter()
                .find(|pid| comm(*pid) == "passt:forwarder")
        });
        passt
    }

    #[track_caller]
    fn until<T>(&self, what: &str, attempt: impl Fn(&Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(done) = attempt(self) {
                return done;
            }
            assert!(start.elapsed() < PATIENCE, "no {what}");
            std::thread::yield_now();
        }
    }

    fn all(&self) -> [(&'static str, u32); 2] {
        [
            ("monitor", self.monitor.id()),
            ("forwarder", self.forwarder),
        ]
    }

    /// Wait for the monitor; status and standard error.
    fn end(mut self) -> (ExitStatus, String) {
        ended(&mut self.monitor)
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn processes_are_what_the_policy_says() {
    with_power("machine::processes_are_what_the_policy_says", || {
        for (options, forwarder) in [
            (&[][..], "forwarder_stream"),
            (&["--vhost-user"], "forwarder_vhost_user"),
        ] {
            let passt = Passt::start(options);
            let family = passt.all();
            assert_eq!(descendants(passt.monitor.id()).len(), family.len());
            let policy = processes();
            for ((name, pid), row) in family.into_iter().zip(["monitor", forwarder]) {
                let policy = &policy[row];
                check_credentials(name, pid, policy);
                check_namespaces((name, pid), policy, &family, None);
                check_limits(name, pid, policy);
                check_descriptors(name, pid, policy);
                check_root(name, pid);
                check_user(pid);
            }
        }
    });
}

#[test]
fn neither_process_outlives_the_other() {
    with_power("machine::neither_process_outlives_the_other", || {
        for victim in 0..2 {
            let passt = Passt::start(&[]);
            let everybody = descendants(passt.monitor.id());
            let (name, pid) = passt.all()[victim];
            let pid = Pid::from_raw(i32::try_from(pid).expect("pid"));
            kill(pid, Signal::SIGKILL).expect("kill");
            wait_gone(&everybody);
            let (status, said) = passt.end();
            if name == "monitor" {
                assert_eq!(status.signal(), Some(9));
            } else {
                assert_eq!(status.code(), Some(1), "{said}");
                assert!(said.contains("forwarder was killed by signal 9"), "{said}");
            }
        }
    });
}

#[test]
fn a_hijacked_forwarder_obtains_nothing() {
    let _alone = alone();
    with_power("machine::a_hijacked_forwarder_obtains_nothing", || {
        let port = PORT.to_string();
        let before = listening("self");
        for (what, attack) in ATTACKS {
            let passt = Passt::start(&["-t", &port]);
            let sockets = match channels(passt.forwarder) {
                Ok(sockets) => sockets,
                Err(e) => {
                    skipped(&format!("no descriptors of another process: {e}"));
                    return;
                }
            };
            assert_eq!(sockets.len(), 1, "pairs of the forwarder");
            sockets.into_iter().for_each(attack);
            let (status, said) = passt.end();
            assert_eq!(status.code(), Some(1), "{what}: {said}");
            assert!(
                said.contains("nvalid message") || said.contains("between our processes"),
                "{what}: {said}"
            );
            for open in listening("self") {
                assert!(
                    before.contains(&open) || open == PORT,
                    "{what}: port {open} is open"
                );
            }
        }
    });
}
