//! The network around the program under test: host, peer, router and guest namespaces.
//!
//! ```text
//! guest --tap-- PASTA in host == 198.51.100.1, 2001:db8:51::1
//!                       host0 ==veth== peer    198.51.100.2, 2001:db8:51::2, and on its loopback
//!                                              203.0.113.9, 2001:db8:99::9 (servers), .53, ::53 (resolvers)
//! ```
//! With a router, it has the .2 addresses, and the peer is 192.0.2.2, 2001:db8:52::2 behind it.
//! A socket stays in the namespace it was made in, so tests make it with [`Netns::enter`] and use it anywhere.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{Output, Running, SOON, alive, poll_until, spawn};
use crate::harness::{DIR, PASTA};

pub const HOST4: &str = "198.51.100.1";
pub const HOST6: &str = "2001:db8:51::1";
pub const GATEWAY4: &str = "198.51.100.2";
pub const GATEWAY6: &str = "2001:db8:51::2";
pub const PEER4: &str = "203.0.113.9";
pub const PEER6: &str = "2001:db8:99::9";
pub const DNS4: &str = "203.0.113.53";
pub const DNS6: &str = "2001:db8:99::53";

/// No forwarding into or out of the namespace's loopback: what this suite tests is the tap.
pub const NO_FORWARDS: [&str; 8] = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];

/// A network namespace, also reachable by name (`/run/netns/NAME`).
#[derive(Debug)]
pub struct Netns {
    pub name: String,
    file: File,
}

impl Netns {
    /// The namespace the test was started in: the host.
    pub fn own() -> Netns {
        Netns::keep("host", "/proc/self/ns/net")
    }

    /// A new namespace with its loopback interface down, as a container engine makes one.
    pub fn new(name: &str) -> Netns {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            Netns::keep(name, "/proc/thread-self/ns/net")
        };
        std::thread::scope(|s| s.spawn(make).join().expect("a network namespace"))
    }

    /// The namespace of a process.
    pub fn of(pid: i32) -> Netns {
        Netns::keep(&format!("of-{pid}"), &format!("/proc/{pid}/ns/net"))
    }

    fn keep(name: &str, source: &str) -> Netns {
        let path = format!("/run/netns/{name}");
        fs::write(&path, "").expect("tmpfs");
        mount(
            Some(source),
            path.as_str(),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .expect("bind a namespace");
        Netns {
            name: name.to_owned(),
            file: File::open(path).expect("a namespace"),
        }
    }

    /// Takes the name away, as a container engine does at the end; whoever watches the path should notice.
    pub fn retire(name: &str) {
        let path = format!("/run/netns/{name}");
        umount2(path.as_str(), MntFlags::MNT_DETACH).expect("umount");
        fs::remove_file(path).expect("nothing keeps it busy");
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `f` in this namespace (on a thread of its own) and returns what it returns.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter a network namespace");
            f()
        };
        std::thread::scope(|s| {
            s.spawn(inside)
                .join()
                .unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }

    /// Starts a shell script here.
    #[track_caller]
    pub fn start(&self, script: &str) -> Running {
        self.start_command(shell(script))
    }

    #[track_caller]
    pub fn start_command(&self, command: Command) -> Running {
        self.enter(|| spawn(command))
    }

    /// Runs a shell script here and returns what it did.
    #[track_caller]
    pub fn try_sh(&self, script: &str) -> Output {
        self.start(script).finish(SOON)
    }

    /// Runs a shell script here; it must succeed; returns its output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert_eq!(
            output.code, 0,
            "in {}: {script}\n{}\n{}",
            self.name, output.out, output.err
        );
        output.out
    }

    /// Writes a setting below /proc/sys/net; false where the kernel does not have or allow it.
    pub fn set(&self, key: &str, value: &str) -> bool {
        self.enter(|| fs::write(format!("/proc/sys/net/{key}"), value).is_ok())
    }

    #[track_caller]
    pub fn listen(&self, addr: impl ToSocketAddrs + Send) -> TcpListener {
        self.enter(|| TcpListener::bind(addr)).expect("listen")
    }

    /// A connection from here, with bounded reads and writes.
    #[track_caller]
    pub fn connect(&self, addr: (&str, u16)) -> TcpStream {
        self.try_connect(addr)
            .unwrap_or_else(|e| panic!("connect from {} to {addr:?}: {e}", self.name))
    }

    pub fn try_connect(&self, addr: (&str, u16)) -> std::io::Result<TcpStream> {
        self.connect_within(addr, SOON)
    }

    pub fn connect_within(&self, addr: (&str, u16), limit: Duration) -> std::io::Result<TcpStream> {
        let addr = addr.to_socket_addrs()?.next().expect("a literal address");
        bounded(self.enter(|| TcpStream::connect_timeout(&addr, limit))?)
    }

    #[track_caller]
    pub fn udp(&self, addr: impl ToSocketAddrs + Send) -> UdpSocket {
        let socket = self.enter(|| UdpSocket::bind(addr)).expect("bind");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        socket
    }
}

/// Gives a stream bounded reads and writes.
pub fn bounded(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

/// Accepts one connection within the usual bound.
#[track_caller]
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).expect("a socket option");
    let mut accepted = None;
    assert!(
        poll_until(SOON, || {
            accepted = listener.accept().ok();
            accepted.is_some()
        }),
        "no connection arrived"
    );
    let (stream, from) = accepted.expect("just checked");
    stream.set_nonblocking(false).expect("a socket option");
    (bounded(stream).expect("a timeout"), from)
}

pub fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(DIR);
    command
}

fn ip(ns: &Netns, batch: &str) {
    ns.enter(|| {
        let mut child = Command::new("ip")
            .args(["-b", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("iproute2");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(batch.as_bytes())
            .expect("ip reads its input");
        assert!(
            child.wait().expect("a child").success(),
            "ip -b in {}:\n{batch}",
            ns.name
        );
    });
}

/// Host and peer, wired.
#[derive(Debug)]
pub struct World {
    pub host: Netns,
    pub peer: Netns,
    pub router: Option<Netns>,
}

impl World {
    /// Host and peer on one Ethernet with an MTU of 65520.
    pub fn direct() -> World {
        World::with_mtu(65520)
    }

    pub fn with_mtu(mtu: u32) -> World {
        let w = World {
            host: Netns::own(),
            peer: Netns::new("peer"),
            router: None,
        };
        settle(&[&w.host, &w.peer]);
        ip(
            &w.host,
            &format!("link add host0 mtu {mtu} type veth peer name peer0 mtu {mtu} netns peer\n"),
        );
        ip(
            &w.peer,
            &format!(
                "addr add {GATEWAY4}/24 dev peer0\naddr add {GATEWAY6}/64 dev peer0 nodad\nlink set peer0 up\n"
            ),
        );
        w.finish();
        ip(
            &w.peer,
            &format!("route add default via {HOST4}\nroute add default via {HOST6}\n"),
        );
        w
    }

    /// Host, router, peer; the far link has an MTU of `far`.
    pub fn routed(far: u32) -> World {
        let w = World {
            host: Netns::own(),
            peer: Netns::new("peer"),
            router: Some(Netns::new("router")),
        };
        let router = w.router.as_ref().expect("just made");
        settle(&[&w.host, &w.peer, router]);
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            assert!(router.set(key, "1"), "{key}");
        }
        ip(
            &w.host,
            "link add host0 mtu 65520 type veth peer name near0 mtu 65520 netns router\n",
        );
        ip(
            router,
            &format!("link add far0 mtu {far} type veth peer name peer0 mtu {far} netns peer\n"),
        );
        ip(
            router,
            &format!(
                "addr add {GATEWAY4}/24 dev near0\naddr add {GATEWAY6}/64 dev near0 nodad\nlink set near0 up\n\
                 addr add 192.0.2.1/24 dev far0\naddr add 2001:db8:52::1/64 dev far0 nodad\nlink set far0 up\n\
                 route add 203.0.113.0/24 via 192.0.2.2\nroute add 2001:db8:99::/64 via 2001:db8:52::2\n"
            ),
        );
        ip(
            &w.peer,
            "addr add 192.0.2.2/24 dev peer0\naddr add 2001:db8:52::2/64 dev peer0 nodad\nlink set peer0 up\n",
        );
        w.finish();
        ip(
            &w.peer,
            "route add default via 192.0.2.1\nroute add default via 2001:db8:52::1\n",
        );
        w
    }

    /// A host without any interface but its loopback.
    pub fn lonely() -> World {
        let w = World {
            host: Netns::own(),
            peer: Netns::new("peer"),
            router: None,
        };
        settle(&[&w.host, &w.peer]);
        w
    }

    fn finish(&self) {
        ip(
            &self.host,
            &format!(
                "addr add {HOST4}/24 dev host0\naddr add {HOST6}/64 dev host0 nodad\nlink set host0 up\n\
                 route add default via {GATEWAY4}\nroute add default via {GATEWAY6}\n"
            ),
        );
        let on_lo = [PEER4, DNS4]
            .map(|a| format!("addr add {a}/32 dev lo\n"))
            .concat()
            + &[PEER6, DNS6]
                .map(|a| format!("addr add {a}/128 dev lo nodad\n"))
                .concat();
        ip(&self.peer, &on_lo);
        let up = || self.host.sh("ip -o link show host0").contains("state UP");
        assert!(poll_until(SOON, up), "host0 has no carrier");
    }

    /// A new guest namespace, connected by `pasta --config-net ARGS` in the background.
    #[track_caller]
    pub fn guest(&self, args: &[&str]) -> Guest {
        let ns = Netns::new("guest");
        let pasta = self.attach(&ns, &[&["--config-net"], args].concat());
        Guest { ns, pasta }
    }

    /// Runs `pasta ARGS --netns PATH` in the background, without forwarding but what ARGS say; it must be
    /// ready when its parent exits.
    #[track_caller]
    pub fn attach(&self, ns: &Netns, args: &[&str]) -> Pasta {
        self.attach_bare(ns, &[&NO_FORWARDS, args].concat())
    }

    /// The same with its own defaults for forwarding.
    #[track_caller]
    pub fn attach_bare(&self, ns: &Netns, args: &[&str]) -> Pasta {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let (pid_file, log) = (format!("{DIR}/pasta{n}.pid"), format!("{DIR}/pasta{n}.log"));
        let mut all = args.to_vec();
        all.extend(["-P", &pid_file, "-l", &log, "--netns"]);
        let path = ns.path();
        all.push(&path);
        let output = self.pasta(&all);
        assert_eq!(output.code, 0, "pasta {all:?}\n{}", output.both());
        let pid = fs::read_to_string(&pid_file)
            .expect("a PID file")
            .trim()
            .parse()
            .expect("a PID");
        Pasta { pid, ended: false }
    }

    /// Like [`World::guest`], under a limit of open files.
    #[track_caller]
    pub fn guest_with_files(&self, files: usize) -> Guest {
        let ns = Netns::new("guest");
        let options = NO_FORWARDS.join(" ");
        let script = format!(
            "ulimit -n {files}; exec {PASTA} --config-net {options} -q -P limited.pid -l limited.log --netns {}",
            ns.path()
        );
        self.host.sh(&script);
        let pid = fs::read_to_string(format!("{DIR}/limited.pid")).expect("a PID file");
        let pasta = Pasta {
            pid: pid.trim().parse().expect("a PID"),
            ended: false,
        };
        Guest { ns, pasta }
    }

    /// Runs pasta in the host namespace to the end of the command (the parent, if it goes to the background).
    #[track_caller]
    pub fn pasta(&self, args: &[&str]) -> Output {
        self.start_pasta(args).finish(SOON)
    }

    #[track_caller]
    pub fn start_pasta(&self, args: &[&str]) -> Running {
        let mut command = Command::new(PASTA);
        command.args(args).current_dir(DIR);
        self.host.start_command(command)
    }

    /// `pasta --config-net OPTIONS -- sh -c SCRIPT`, without forwarding; its result.
    #[track_caller]
    pub fn inside(&self, options: &[&str], script: &str) -> Output {
        let mut all = vec!["--config-net", "-q"];
        all.extend(NO_FORWARDS);
        all.extend(options);
        all.extend(["--", "sh", "-c", script]);
        self.pasta(&all)
    }
}

/// Makes namespaces predictable: no duplicate address detection, no limit on ICMP errors, ping for everybody.
fn settle(all: &[&Netns]) {
    for ns in all {
        ip(ns, "link set lo up\n");
        for conf in ["all", "default"] {
            ns.set(&format!("ipv6/conf/{conf}/accept_dad"), "0");
            ns.set(&format!("ipv6/conf/{conf}/disable_ipv6"), "0");
        }
        for key in [
            "ipv4/icmp_ratelimit",
            "ipv6/icmp/ratelimit",
            "ipv4/icmp_msgs_per_sec",
        ] {
            ns.set(key, if key.ends_with("sec") { "100000" } else { "0" });
        }
        let _ = ["0 2147483647", "0 65535", "0 0"]
            .iter()
            .any(|range| ns.set("ipv4/ping_group_range", range));
    }
}

/// A background instance of the program under test.  Dying while a test uses it fails that test.
#[derive(Debug)]
pub struct Pasta {
    pub pid: i32,
    ended: bool,
}

impl Pasta {
    /// Sends a signal and expects the process to go.
    #[track_caller]
    pub fn stop(mut self, signal: Signal) {
        self.ended = true;
        kill(Pid::from_raw(self.pid), signal).expect("it is running");
        assert!(
            poll_until(SOON, || !alive(self.pid)),
            "still there {SOON:?} after {signal}"
        );
    }

    /// Expects the process to go by itself.
    #[track_caller]
    pub fn goes(mut self) {
        self.ended = true;
        assert!(
            poll_until(SOON, || !alive(self.pid)),
            "still there after {SOON:?}"
        );
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        if !self.ended && !std::thread::panicking() {
            assert!(
                alive(self.pid),
                "the program under test died during the test"
            );
        }
    }
}

/// A namespace with its connection.
#[derive(Debug)]
pub struct Guest {
    pub ns: Netns,
    pub pasta: Pasta,
}

impl std::ops::Deref for Guest {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}
