//! A machine with container clients, as long as a test: its root directory, its user, and what is left on it.
//!
//! The root directory is an overlay: the one `tests/clients/root` made below, what installing our package changed on
//! top of it, and memory for everything that is written. The test process makes it its own by pivot_root (to
//! processes in a chroot the kernel refuses user namespaces), with file systems of the kernel as a booted machine
//! has them, a control group of its own and an ordinary user who may use it. The network is [`World::direct`], with
//! servers behind it (`service.rs`).
//!
//! Invariants: scripts run as that user unless it says root, in the host's namespaces, with a bound on their time;
//! they keep their files in their home directory, so that [`Machine::clean`] can ask about all other places.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chown, mkdtemp, pivot_root};

use crate::exec::{Output, Running, SOON, alive, poll_until};
use crate::harness::{DIR, PASTA, skip};
use crate::prepare::{CGROUP, DEB, LAYER, PROGRAM, ROOT, UNDER_TEST};
use crate::service;
use crate::world::{DNS4, DNS6, GATEWAY4, GATEWAY6, HOST4, HOST6, PEER4, PEER6, World};

/// The only image: busybox, ip, ss, ping, tracepath, curl, dig, socat, nc, iperf3, sha256sum, getent of Debian.
pub const IMAGE: &str = "localhost/image";
pub const USER: u32 = 1000;
pub const HOME: &str = "/home/user";
pub const RUNTIME_DIR: &str = "/run/user/1000";
/// The bound of a script: podman has thirty of them at a time to start, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Our package, if that is what is under test.
pub const PACKAGE: &str = "/run/t/package.deb";

const NONE: Option<&str> = None;
const STORE: &str = "/run/t/store";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Character devices: name, major and minor number.
const DEVICES: [(&str, u64, u64); 8] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
    ("net/tun", 10, 200),
];
/// Where something may be left by mistake.
const PLACES: [&str; 5] = ["/tmp", "/var/tmp", "/run", "/dev/shm", "/etc"];
/// What podman keeps for as long as the machine is up, and what is ours.
const EXPECTED: [&str; 7] = [
    "/run/t",
    "/run/netns",
    "/run/user/1000/containers",
    "/run/user/1000/libpod",
    "/run/user/1000/crun",
    "/dev/shm/libpod_rootless_lock_1000",
    "/var/tmp/intermediate-mountpoint-1000.0",
];
/// States of connections that no process has any more.
const FADING: [&str; 4] = ["TIME-WAIT", "FIN-WAIT", "LAST-ACK", "CLOSING"];
/// Programs that belong to a container and end with it.
const HELPERS: [&str; 10] = [
    "conmon",
    "rootlessport",
    "aardvark-dns",
    "netavark",
    "crun",
    "slirp4netns",
    "rootlesskit",
    "dockerd",
    "containerd",
    "docker-proxy",
];

/// A machine of this test's own. Its network and servers: [`World`], `service.rs`.
#[derive(Debug)]
pub struct Machine {
    pub world: World,
    before: Traces,
}

impl Machine {
    /// A machine without the image.
    pub fn new() -> Machine {
        let made = place(ROOT).unwrap_or_else(|why| skip(&why));
        enter(&made);
        let world = World::direct();
        service::start(&world);
        let before = Traces::now(&world);
        Machine { world, before }
    }

    /// A machine with [`IMAGE`] in the user's store.
    pub fn with_image() -> Machine {
        let machine = Machine::new();
        let storage = format!("{HOME}/.local/share/containers/storage");
        machine.user(&format!("mkdir -p {storage}"));
        machine.root(&format!("cp -a {STORE}/. {storage}"));
        machine
    }

    /// What a script of the user does.
    #[track_caller]
    pub fn try_user(&self, script: &str) -> Output {
        self.start(script).finish(PATIENCE)
    }

    /// What a script of the user prints; it must succeed.
    #[track_caller]
    pub fn user(&self, script: &str) -> String {
        told(script, self.try_user(script))
    }

    /// Starts a script of the user in the background.
    #[track_caller]
    pub fn start(&self, script: &str) -> Running {
        let mut command = bash(script);
        command
            .uid(USER)
            .gid(USER)
            .current_dir(HOME)
            .env("HOME", HOME)
            .env("USER", "user")
            .env("LOGNAME", "user")
            .env("XDG_RUNTIME_DIR", RUNTIME_DIR);
        self.world.host.start_command(command)
    }

    /// What a script of root prints; it must succeed.
    #[track_caller]
    pub fn root(&self, script: &str) -> String {
        let mut command = bash(script);
        command.current_dir("/root").env("HOME", "/root");
        let output = self.world.host.start_command(command).finish(PATIENCE);
        told(script, output)
    }

    /// Living processes of the program under test, all of every instance.
    pub fn pastas(&self) -> Vec<i32> {
        processes()
            .into_iter()
            .filter(|p| p.is_pasta())
            .map(|p| p.pid)
            .collect()
    }

    /// Nothing is left of any container: its processes and helpers, sockets, namespaces and files.
    #[track_caller]
    pub fn clean(&self) {
        let mut left = Vec::new();
        let gone = poll_until(SOON, || {
            left = self.left();
            left.is_empty()
        });
        assert!(gone, "left behind:\n{}", left.join("\n"));
    }

    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = processes()
            .iter()
            .filter(|p| p.is_pasta() || p.is_helper())
            .map(|p| format!("process {} {}", p.pid, p.line))
            .collect();
        let now = Traces::now(&self.world);
        left.extend(now.sockets.difference(&self.before.sockets).cloned());
        left.extend(now.mounts.difference(&self.before.mounts).cloned());
        let files = now.files.difference(&self.before.files);
        left.extend(files.map(|f| f.display().to_string()));
        // podman makes the second one, empty, whatever the network.
        for directory in ["netns", "containers/networks/rootless-netns"] {
            let directory = format!("{RUNTIME_DIR}/{directory}");
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            left.extend(entries.map(|e| e.path().display().to_string()));
        }
        left
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("processes:");
            for p in processes() {
                let start: String = p.line.chars().take(200).collect();
                eprintln!("{} {}: {start}", p.pid, p.comm);
            }
        }
    }
}

#[track_caller]
fn told(script: &str, output: Output) -> String {
    assert_eq!(
        output.code, 0,
        "{script}\nends with {}; stdout:\n{}\nstderr:\n{}",
        output.code, output.out, output.err
    );
    output.out
}

/// A shell with the environment that a login has, and the addresses of the world by name.
fn bash(script: &str) -> Command {
    let mut command = Command::new("/usr/bin/bash");
    command.args(["-c", script]).env_clear().envs([
        ("PATH", PATH),
        ("SHELL", "/bin/bash"),
        ("LC_ALL", "C.UTF-8"),
        ("TERM", "dumb"),
        ("IMAGE", IMAGE),
        ("HOST4", HOST4),
        ("HOST6", HOST6),
        ("GATEWAY4", GATEWAY4),
        ("GATEWAY6", GATEWAY6),
        ("PEER4", PEER4),
        ("PEER6", PEER6),
        ("DNS4", DNS4),
        ("DNS6", DNS6),
    ]);
    command
}

// ------------------------------------------------------------------ what is there

struct Process {
    pid: i32,
    comm: String,
    line: String,
    program: PathBuf,
}

impl Process {
    fn is_pasta(&self) -> bool {
        let named = |name: &str| name.starts_with("pasta") || name.starts_with("passt");
        let program = self.program.file_name().unwrap_or_default();
        named(&self.comm) || named(&program.to_string_lossy())
    }

    fn is_helper(&self) -> bool {
        // catatonit is also what podman itself leaves to keep its namespaces.
        let init = self.comm == "catatonit" && !self.line.contains(" -P");
        init || HELPERS.iter().any(|h| self.comm.starts_with(h))
    }
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid| alive(*pid))
        .map(|pid| {
            let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = |file| String::from_utf8_lossy(&read(file)).replace('\0', " ");
            Process {
                pid,
                comm: text("comm").trim_end().to_owned(),
                line: text("cmdline").trim_end().to_owned(),
                program: fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default(),
            }
        })
        .collect()
}

/// Sockets, files and mounts that outlive what made them.
#[derive(Debug)]
struct Traces {
    sockets: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
}

impl Traces {
    fn now(world: &World) -> Traces {
        let own = format!("pid={},", std::process::id());
        let all = world.host.sh("ss -Htuanp");
        let mut sockets: BTreeSet<String> = all
            .lines()
            .filter(|l| !l.contains(&own))
            // A connection whose other end does not answer is the kernel's for a minute.
            .filter(|l| l.contains("users:") || !FADING.iter().any(|state| l.contains(state)))
            .filter_map(|l| {
                let fields: Vec<&str> = l.split_whitespace().collect();
                let users = fields.get(6).unwrap_or(&"");
                let (kind, state) = (fields.first()?, fields.get(1)?);
                Some(format!("{kind} {state} {} {users}", fields.get(4)?))
            })
            .collect();
        // Those with a name in a file are among the files.
        let unix = world.host.sh("ss -Hxl");
        let abstracts = unix.split_whitespace().filter(|f| f.starts_with('@'));
        sockets.extend(abstracts.map(|name| format!("listening at {name}")));
        let mut files = BTreeSet::new();
        for place in PLACES {
            walk(Path::new(place), &mut files);
        }
        let table = fs::read_to_string("/proc/self/mountinfo").expect("proc");
        let mounts = table
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|at| !is_expected(Path::new(at)))
            .map(|at| format!("mount at {at}"))
            .collect();
        Traces {
            sockets,
            files,
            mounts,
        }
    }
}

fn is_expected(path: &Path) -> bool {
    EXPECTED.iter().any(|e| path.starts_with(e))
}

fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_expected(&path) || path == Path::new(RUNTIME_DIR).join("netns") {
            continue;
        }
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, found);
        }
        found.insert(path);
    }
}

// ------------------------------------------------------------------ how it is made

/// A directory named in the environment, or the reason it is not there.
fn place(variable: &str) -> Result<String, String> {
    let place = std::env::var(variable).unwrap_or_default();
    if Path::new(&place).is_dir() {
        Ok(place)
    } else {
        Err(place)
    }
}

fn tmpfs(path: &str, options: &str) {
    let flags = MsFlags::MS_NOSUID;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))
        .unwrap_or_else(|e| panic!("tmpfs at {path}: {e}"));
}

fn bind(from: &str, to: &str, flags: MsFlags) {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | flags, NONE)
        .unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
}

/// Makes the overlay the root directory of this process.
fn enter(made: &str) {
    let root = format!("{DIR}/overlay/root");
    let at = |path: &str| format!("{root}{path}");
    let overlay = |name: &str| format!("{DIR}/overlay/{name}");
    fs::create_dir(overlay("")).expect("tmpfs");
    tmpfs(&overlay(""), "mode=700");
    for name in ["upper", "work", "root"] {
        fs::create_dir(overlay(name)).expect("tmpfs");
        fs::set_permissions(overlay(name), fs::Permissions::from_mode(0o755)).expect("tmpfs");
    }
    let lower = place(LAYER).map_or(format!("{made}/root"), |layer| {
        format!("{layer}:{made}/root")
    });
    let (upper, work) = (overlay("upper"), overlay("work"));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let flags = MsFlags::empty();
    mount(
        Some("overlay"),
        root.as_str(),
        Some("overlay"),
        flags,
        Some(options.as_str()),
    )
    .unwrap_or_else(|e| panic!("overlay {options}: {e}"));

    if let Ok(package) = std::env::var(DEB) {
        fs::copy(package, PACKAGE).expect("packaging/deb has printed where it is");
    }
    fs::create_dir(STORE).expect("tmpfs");
    bind(&format!("{made}/store"), STORE, MsFlags::empty());
    kernel(&root);
    tmpfs(&at("/tmp"), "mode=1777");
    tmpfs(&at("/var/tmp"), "mode=1777");
    tmpfs(&at(HOME), &format!("mode=755,uid={USER},gid={USER}"));
    fs::create_dir_all(RUNTIME_DIR).expect("tmpfs");
    chown(RUNTIME_DIR, Some(USER.into()), Some(USER.into())).expect("root");
    fs::set_permissions(RUNTIME_DIR, fs::Permissions::from_mode(0o700)).expect("tmpfs");
    fs::copy("/run/t/resolv.conf", at("/etc/resolv.conf")).expect("tmpfs");
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{HOST4} machine\n");
    fs::write(at("/etc/hosts"), hosts).expect("tmpfs");
    nix::unistd::sethostname("machine").expect("a namespace of names");
    if std::env::var(UNDER_TEST).is_ok_and(|v| v == PROGRAM) {
        let program = fs::read_link(PASTA).expect("the harness links it");
        for called in ["passt", "pasta"] {
            let path = at(&format!("/usr/bin/{called}"));
            bind(&program.to_string_lossy(), &path, MsFlags::empty());
        }
    }

    bind("/run", &at("/run"), MsFlags::MS_REC);
    std::env::set_current_dir(&root).expect("a directory");
    pivot_root(".", ".").expect("pivot_root");
    umount2(".", MntFlags::MNT_DETACH).expect("umount");
    std::env::set_current_dir("/").expect("a directory");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE).expect("shared mounts");
}

/// /proc, /sys, /dev and the control groups, as a booted machine has them.
fn kernel(root: &str) {
    let at = |path: &str| format!("{root}{path}");
    bind("/proc", &at("/proc"), MsFlags::empty());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let grouped = control_group();
    mount(
        Some("sysfs"),
        at("/sys").as_str(),
        Some("sysfs"),
        flags,
        NONE,
    )
    .expect("sysfs");
    if grouped {
        let path = at("/sys/fs/cgroup");
        mount(Some("cgroup2"), path.as_str(), Some("cgroup2"), flags, NONE).expect("cgroup2");
    }
    tmpfs(&at("/dev"), "mode=755");
    for directory in ["net", "pts", "shm"] {
        fs::create_dir(at(&format!("/dev/{directory}"))).expect("tmpfs");
    }
    for (name, major, minor) in DEVICES {
        let path = at(&format!("/dev/{name}"));
        let mode = Mode::from_bits_truncate(0o666);
        mknod(path.as_str(), SFlag::S_IFCHR, mode, makedev(major, minor)).expect("a device");
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("tmpfs");
    }
    tmpfs(&at("/dev/shm"), "mode=1777");
    let options = "newinstance,ptmxmode=0666,mode=620,gid=5";
    mount(
        Some("devpts"),
        at("/dev/pts").as_str(),
        Some("devpts"),
        MsFlags::empty(),
        Some(options),
    )
    .expect("devpts");
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        symlink(target, at(&format!("/dev/{name}"))).expect("tmpfs");
    }
}

/// Moves this process into a control group of its own, which the user may divide, and which is the top one to all
/// that is started here.
fn control_group() -> bool {
    let Ok(parent) = place(CGROUP) else {
        return false;
    };
    let group = mkdtemp(&Path::new(&parent).join("test-XXXXXX")).expect("a control group");
    let join = |group: &Path| fs::write(group.join("cgroup.procs"), "0").expect("a control group");
    join(&group);
    unshare(CloneFlags::CLONE_NEWCGROUP).expect("unshare");
    let own = group.join("machine");
    fs::create_dir(&own).expect("a control group");
    join(&own);
    for group in [&group, &own] {
        for file in [
            "",
            "cgroup.procs",
            "cgroup.threads",
            "cgroup.subtree_control",
        ] {
            let user = Some(USER.into());
            chown(&group.join(file), user, Some(USER.into())).expect("root");
        }
    }
    true
}
