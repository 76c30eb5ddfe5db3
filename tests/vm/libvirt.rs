//! The libvirt suite: domains that libvirt connects by the program under test.
//!
//! libvirt decides when passt is started, as whom and with which arguments; it waits for it, connects qemu to it, ends it,
//! and shows what it said when it fails. Each of that is an agreement that only libvirt itself can check. So each
//! test makes one of the trees of `tests/vm/libvirt-root` its root directory, with the program under test as
//! /usr/bin/passt, starts libvirtd there, and asks virsh for domains. The network is that of the namespace suite:
//! host and peer (`tests/netns/world.rs`); what the guest serves, see `tests/vm/libvirt-guest`.
//!
//! Invariants: the test process is process 1 of its namespace, so it reaps the daemons that libvirt and passt leave
//! to it (libvirt waits for them to vanish, not just to end). There is no /dev/kvm: a paravirtual one makes libvirt's
//! probing hang for minutes. What libvirt found out about qemu stays in the root directory: it takes it ten
//! seconds, once.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report of the suite goes to the terminal"
)]
#![allow(
    clippy::exit,
    reason = "a test process hands its verdict to the runner as its exit status"
)]

#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/exec.rs"]
mod exec;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/harness.rs"]
mod harness;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/options.rs"]
mod options;
#[allow(dead_code, reason = "shared with the namespace suite")]
#[path = "../netns/world.rs"]
mod world;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, chown, pivot_root};

use exec::{Output, SOON, alive, poll_until, run};
use harness::{DIR, PASTA, skip, tests};
use world::{HOST4, HOST6, Netns, PEER4, PEER6, World, accept};

/// What the namespace suite knows about other programs does not concern this one.
mod differences {
    pub fn skip_reason(_: &str) -> Option<String> {
        None
    }
}

tests![; root: stream, stream_stable, vhost_user, refusals, session];

/// The two libvirts.
const NEWEST: &str = "newest";
const STABLE: &str = "stable";
const ROOT: &str = "LIBVIRT_SUITE_ROOT";
const GUEST: &str = "LIBVIRT_SUITE_GUEST";
/// Emulated guests on a busy machine, and libvirt's first look at qemu.
const PATIENCE: Duration = Duration::from_secs(90);
const NONE: Option<&str> = None;
/// An ordinary user of the root directory.
const USER: u32 = 1000;

/// All there is below /dev. No kvm.
const DEVICES: [&str; 7] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/net/tun",
];
const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/sbin:/usr/bin"), ("LC_ALL", "C")];
/// No helper daemons, and nothing that a container or another security module might forbid.
const CONF: &str = "stdio_handler = \"file\"\nsecurity_driver = \"none\"\ncgroup_controllers = [ ]\nnamespaces = [ ]\n\
                    remember_owner = 0\n";

fn main() -> ExitCode {
    let prepared = std::env::var_os(ROOT).is_some();
    if prepared || std::env::args().any(|a| a == "--list") {
        return harness::main(&[("libvirt", TESTS)]);
    }
    // The tests have no way to the archive any more, and need the place of what was made in their environment.
    let status = Command::new("/proc/self/exe")
        .args(std::env::args().skip(1))
        .env(ROOT, built("libvirt-root"))
        .env(GUEST, built("build"))
        .status()
        .expect("start again");
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// Where one of the scripts beside this file has put its result, or a line that is no path: why it could not.
fn built(script: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vm")
        .join(script);
    if !path.exists() {
        return format!("{} is not there", path.display());
    }
    let output = run(Command::new(path), Duration::from_secs(900));
    match output.code {
        0 => output.out.trim().to_owned(),
        _ => format!(
            "tests/vm/{script}: {}",
            output.err.lines().last().unwrap_or("failed")
        ),
    }
}

fn place(variable: &str) -> String {
    let place = std::env::var(variable).unwrap_or_default();
    if !Path::new(&place).is_dir() {
        skip(&place);
    }
    place
}

// ------------------------------------------------------------------ the daemon

/// libvirtd in its root directory, and the network around it.
struct Libvirt {
    world: World,
    /// Whose connections virsh makes: the system's, or those of the ordinary user.
    uri: &'static str,
    daemon: Option<Child>,
}

impl Libvirt {
    fn system(version: &str) -> Libvirt {
        let mut lv = Libvirt::bare("qemu:///system", version);
        fs::create_dir_all("/var/log/libvirt/qemu").expect("tmpfs");
        fs::write("/etc/libvirt/libvirtd.conf", "log_outputs = \"3:stderr\"\n").expect("tmpfs");
        let log = File::create(format!("{DIR}/libvirtd.log")).expect("tmpfs");
        let daemon = Command::new("/usr/sbin/libvirtd")
            .envs(ENVIRONMENT)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        lv.daemon = Some(daemon.expect("libvirtd"));
        lv.ready();
        lv
    }

    /// The daemon of an ordinary user, which virsh starts when it is asked for it.
    fn session() -> Libvirt {
        let lv = Libvirt::bare("qemu:///session", NEWEST);
        let mut dir = fs::DirBuilder::new();
        let (conf, runtime) = ("/home/.config/libvirt", "/run/user/1000");
        for path in [conf, runtime] {
            dir.recursive(true).mode(0o755).create(path).expect("tmpfs");
        }
        fs::write(format!("{conf}/qemu.conf"), CONF).expect("tmpfs");
        for path in [runtime, conf, "/home/.config", "/home"] {
            chown(path, Some(USER.into()), Some(USER.into())).expect("root");
        }
        lv.ready();
        lv
    }

    /// Everything but a daemon.
    fn bare(uri: &'static str, version: &str) -> Libvirt {
        enter(&place(ROOT), version, &place(GUEST));

        std::thread::spawn(reap);
        let world = World::direct();
        Libvirt {
            world,
            uri,
            daemon: None,
        }
    }

    fn ready(&self) {
        let mut said = String::new();
        let up = poll_until(PATIENCE, || {
            let output = self.virsh(&["version"]);
            said = output.both();
            output.code == 0
        });
        assert!(up, "libvirtd does not answer: {said}");
    }

    fn virsh(&self, args: &[&str]) -> Output {
        let mut command = Command::new("/usr/bin/virsh");
        command
            .args(["-q", "-c", self.uri])
            .args(args)
            .envs(ENVIRONMENT);
        if self.uri.ends_with("session") {
            command
                .uid(USER)
                .gid(USER)
                .env("HOME", "/home")
                .env("XDG_RUNTIME_DIR", "/run/user/1000");
        }
        run(command, PATIENCE)
    }

    /// Asks for a domain with this network interface.
    fn try_create(&self, interface: &str) -> Output {
        let path = "/tmp/domain.xml";
        let console = format!("{DIR}/console.log");
        fs::write(path, domain(interface)).expect("tmpfs");
        fs::write(&console, "").expect("tmpfs");
        fs::set_permissions(&console, fs::Permissions::from_mode(0o666)).expect("tmpfs");
        self.virsh(&["create", path])
    }

    #[track_caller]
    fn create(&self, interface: &str) {
        let output = self.try_create(interface);
        assert_eq!(output.code, 0, "virsh create: {}", output.both());
    }

    /// The only process of that name.
    #[track_caller]
    fn only(&self, program: &str) -> i32 {
        let all = running(program);
        assert_eq!(all.len(), 1, "processes of {program}: {all:?}");
        all.first().map_or(0, |p| p.0)
    }

    /// Nothing is left of a domain: its passt, qemu and the files of both.
    #[track_caller]
    fn clean(&self, files: &str) {
        assert!(
            poll_until(SOON, || running("passt").is_empty()),
            "passt is still there"
        );
        assert!(
            poll_until(SOON, || running("qemu-system").is_empty()),
            "qemu is still there"
        );
        let left = || -> Vec<_> {
            let entries = fs::read_dir(files).into_iter().flatten().flatten();
            entries.map(|e| e.file_name()).collect()
        };
        assert!(
            poll_until(SOON, || left().is_empty()),
            "left in {files}: {:?}",
            left()
        );
        let list = self.virsh(&["list", "--all", "--name"]);
        assert_eq!(list.out.trim(), "", "{}", list.err);
    }

    /// What a shell script says in the guest, asked through the forwarded port 2200.
    fn try_guest(&self, host: &str, script: &str) -> std::io::Result<Vec<u8>> {
        ask(&self.world.peer, (host, 2200), script.as_bytes())
    }

    #[track_caller]
    fn guest(&self, script: &str) -> String {
        let answer = self
            .try_guest(HOST4, script)
            .unwrap_or_else(|e| panic!("guest: {script}: {e}"));
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Waits until the guest runs and is configured in both families: IPv6 comes by a router advertisement, with no
    /// regard to how far DHCP has got, and its link is up only when the kernel's watcher of links has looked.
    #[track_caller]
    fn online(&self) {
        let script = "ip route show default; ip -6 route show default; ip -o -6 addr show dev eth0 scope global";
        let mut seen = String::new();
        let ready = || {
            let answer = self.try_guest(HOST4, script).unwrap_or_default();
            seen = String::from_utf8_lossy(&answer).into_owned();
            seen.starts_with("default via ")
                && seen.contains("default via fe80::")
                && seen.contains("inet6 2001:db8:")
                && !seen.contains("tentative")
        };
        assert!(
            poll_until(PATIENCE, ready),
            "the guest does not come up: {seen}; its console:\n{}",
            fs::read_to_string(format!("{DIR}/console.log")).unwrap_or_default()
        );
    }

    /// Data out and in, through everything that was asked for in [`PORTS`].
    #[track_caller]
    fn traffic(&self) {
        let data: Vec<u8> = (0..500_000_u32)
            .flat_map(|n| n.wrapping_mul(0x9E37_79B1).to_le_bytes())
            .collect();
        for (address, family) in [(PEER4, "TCP4"), (PEER6, "TCP6")] {
            let listener = self.world.peer.listen((address, 9000));
            let sent = data.clone();
            let server = std::thread::spawn(move || accept(&listener).0.write_all(&sent));
            let target = if family == "TCP6" {
                format!("[{address}]")
            } else {
                address.to_owned()
            };
            let script = format!("socat -u {family}:{target}:9000 STDOUT");
            let got = self.try_guest(HOST4, &script).expect("an answer");
            server.join().expect("a server").expect("it sends all");
            assert!(got == data, "{family} out: {} bytes arrive", got.len());
        }
        for host in [HOST4, HOST6] {
            let got = ask(&self.world.peer, (host, 2301), &data)
                .unwrap_or_else(|e| panic!("in at {host}: {e}"));
            assert!(got == data, "in at {host}: {} bytes come back", got.len());
        }
        let closed = self.world.peer.connect_within((HOST4, 2303), SOON);
        assert!(closed.is_err(), "port 2303 was to be left out");
        let udp = self.world.peer.udp((PEER4, 0));
        udp.send_to(b"to and fro", (HOST4, 3200)).expect("send");
        let mut answer = [0; 64];
        let (n, from) = udp.recv_from(&mut answer).expect("an answer by UDP");
        assert_eq!(answer.get(..n), Some(&b"to and fro"[..]));
        assert_eq!(from.to_string(), format!("{HOST4}:3200"));
        let ping = self.guest(&format!("ping -c 1 -W 5 {PEER4} >/dev/null && echo pong"));
        assert_eq!(ping, "pong\n", "ICMP out");
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (pid, arguments) in running("") {
                eprintln!("{pid} {arguments}");
            }
        }
        if let Some(daemon) = &mut self.daemon {
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }
}

/// Forwards of all kinds, as libvirt words them.
const PORTS: &str = "
    <portForward proto='tcp'>
      <range start='2200' to='22'/>
      <range start='2301' end='2305'/>
      <range start='2303' exclude='yes'/>
    </portForward>
    <portForward proto='udp' address='198.51.100.1' dev='host0'><range start='3200' to='3201'/></portForward>";

fn domain(interface: &str) -> String {
    format!(
        "<domain type='qemu'>
  <name>guest</name>
  <memory unit='MiB'>384</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/run/t/guest/vmlinux</kernel><initrd>/run/t/initrd.img</initrd>
    <cmdline>console=ttyS0 quiet panic=1 rdinit=/libvirt-guest mitigations=off nokaslr tsc=reliable no_timer_check net.ifnames=0</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='file'><source path='{DIR}/console.log'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {interface}
  </devices>
</domain>"
    )
}

/// Makes one of the roots the root directory of this process. What the daemons write goes to memory, except what libvirt
/// learns about qemu.
fn enter(roots: &str, version: &str, guest: &str) {
    let root = format!("{roots}/{version}");
    let root = root.as_str();
    let at = |path: &str| format!("{root}{path}");
    let bind = |from: &str, to: &str| {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(from), at(to).as_str(), NONE, flags, NONE)
            .unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
    };
    let program = fs::read_link(PASTA).expect("the harness links it");
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(root), root, NONE, flags, NONE).expect("a mount point");
    for dir in [
        "/tmp",
        "/root",
        "/home",
        "/var/log",
        "/var/lib/libvirt",
        "/etc/libvirt",
        "/dev",
    ] {
        let mode = if dir == "/tmp" {
            "mode=1777"
        } else {
            "mode=755"
        };
        mount(
            Some("tmpfs"),
            at(dir).as_str(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(mode),
        )
        .unwrap_or_else(|e| panic!("{dir}: {e}"));
    }
    fs::create_dir_all(at("/etc/libvirt/qemu")).expect("tmpfs");
    fs::write(at("/etc/libvirt/qemu.conf"), CONF).expect("tmpfs");
    let mut image = fs::read(format!("{guest}/initrd.img")).expect("a guest");
    image.extend(fs::read(format!("{roots}/guest.cpio")).expect("what to add to it"));
    fs::write(format!("{DIR}/initrd.img"), image).expect("tmpfs");
    fs::create_dir(format!("{DIR}/guest")).expect("tmpfs");
    let inside = format!("{DIR}/guest");
    mount(Some(guest), inside.as_str(), NONE, MsFlags::MS_BIND, NONE).expect("bind");
    bind("/proc", "/proc");
    bind("/sys", "/sys");
    for name in DEVICES {
        let path = at(name);
        let parent = Path::new(&path).parent().expect("in /dev");
        fs::create_dir_all(parent).expect("tmpfs");
        fs::write(&path, "").expect("tmpfs");
        bind(name, name);
    }
    bind("/run", "/run");
    bind("/run/t/resolv.conf", "/etc/resolv.conf");
    bind(&program.to_string_lossy(), "/usr/bin/passt");
    std::env::set_current_dir(root).expect("a directory");
    pivot_root(".", ".").expect("pivot_root");
    umount2(".", MntFlags::MNT_DETACH).expect("umount");
    std::env::set_current_dir("/").expect("a directory");
}

/// Reaps what daemons leave to process 1, for ever. The children of this process itself are not touched: whoever
/// started them waits for them.
fn reap() {
    loop {
        for (pid, stat) in stats() {
            let orphan = stat.comm.starts_with("passt") || stat.comm.starts_with("qemu");
            if orphan && stat.parent == 1 && stat.state == 'Z' {
                waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).ok();
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Stat {
    comm: String,
    state: char,
    parent: i32,
}

fn stats() -> Vec<(i32, Stat)> {
    let parse = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = text.rsplit_once(')')?;
        let mut fields = tail.split_whitespace();
        let stat = Stat {
            comm: head.split_once('(')?.1.to_owned(),
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
        };
        Some((pid, stat))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| parse(e.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The processes whose program has a name that begins so, each with its arguments. The processes of one
/// passt count as one: the outermost.
fn running(program: &str) -> Vec<(i32, String)> {
    let all = stats();
    let matches = |s: &Stat| s.comm.starts_with(program) && s.state != 'Z';
    let inner = |s: &Stat| {
        all.iter().any(|(pid, p)| {
            *pid == s.parent && p.comm.starts_with("passt") && s.comm.starts_with("passt")
        })
    };
    all.iter()
        .filter(|(_, s)| matches(s) && !inner(s))
        .map(|(pid, _)| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (*pid, line.trim_end().to_owned())
        })
        .collect()
}

/// Sends a request and the end of it, returns all of the answer.
fn ask(from: &Netns, to: (&str, u16), request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = from.connect_within(to, SOON)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    let mut writer: TcpStream = stream.try_clone()?;
    std::thread::scope(|s| {
        let sending = s.spawn(move || {
            writer.write_all(request)?;
            writer.shutdown(Shutdown::Write)
        });
        stream.read_to_end(&mut answer)?;
        sending.join().expect("no panic while sending")
    })?;
    Ok(answer)
}

// ------------------------------------------------------------------ the tests

/// `<interface type='user'>`: passt's stream socket, with all defaults.
fn stream() {
    user(NEWEST);
}

/// The same with the libvirt and the qemu of Debian 13.
fn stream_stable() {
    user(STABLE);
}

fn user(version: &str) {
    let lv = Libvirt::system(version);
    let interface = format!(
        "<interface type='user'><backend type='passt'/><model type='virtio'/>{PORTS}</interface>"
    );
    lv.create(&interface);
    let files = "/run/libvirt/qemu/passt";
    let pid = lv.only("passt");
    let file = fs::read_to_string(format!("{files}/1-guest-net0-passt.pid")).expect("a PID file");
    assert_eq!(file.trim(), pid.to_string());
    let socket = fs::metadata(format!("{files}/1-guest-net0.socket")).expect("a socket");
    assert_ne!(socket.permissions().mode() & 0o200, 0, "its user connects");

    lv.online();
    let address = lv.guest("ip -o addr show dev eth0 scope global");
    assert!(address.contains(&format!("inet {HOST4}/24")), "{address}");
    let resolver = lv.guest("cat /etc/resolv.conf");
    assert!(resolver.contains("nameserver 203.0.113.53"), "{resolver}");
    lv.traffic();

    lv.virsh(&["destroy", "guest"]).ok();
    assert!(!alive(pid), "libvirt says it is destroyed");
    lv.clean(files);

    // The ports are free again at once. And nobody tells passt that qemu is gone but the socket.
    lv.create(&interface);
    let (pid, qemu) = (lv.only("passt"), lv.only("qemu-system"));
    kill(Pid::from_raw(qemu), Signal::SIGKILL).expect("qemu runs");
    assert!(poll_until(SOON, || !alive(pid)), "passt outlives qemu");
    lv.clean(files);
}

/// `<interface type='vhostuser'>` with passt behind it, and everything that can be set.
fn vhost_user() {
    let lv = Libvirt::system(NEWEST);
    let log = "/tmp/passt.log";
    fs::write(log, "").expect("tmpfs");
    fs::set_permissions(log, fs::Permissions::from_mode(0o666)).expect("tmpfs");
    lv.create(&format!(
        "<interface type='vhostuser'>
           <source dev='host0'/>
           <ip family='ipv4' address='192.0.2.50' prefix='24'/>
           <ip family='ipv6' address='2001:db8:77::50'/>
           <backend type='passt' logFile='{log}'/><model type='virtio'/>{PORTS}
         </interface>"
    ));
    let arguments = running("passt");
    assert!(
        arguments
            .iter()
            .all(|(_, line)| line.contains("--vhost-user")),
        "{arguments:?}"
    );
    lv.online();
    let address = lv.guest("ip -o addr show dev eth0 scope global");
    assert!(address.contains("inet 192.0.2.50/24"), "{address}");
    // The guest has no DHCPv6 client, and an address that is assigned is where connections go.
    let said = lv.guest("ip addr add 2001:db8:77::50/64 dev eth0 nodad 2>&1");
    assert_eq!(said, "", "a second address");
    lv.traffic();

    // The guest ends by itself, and libvirt with it.
    lv.try_guest(HOST4, "poweroff -f").ok();
    lv.clean("/run/libvirt/qemu/passt");
}

/// A start that fails: what passt says is what virsh says, and nothing stays behind.
fn refusals() {
    let lv = Libvirt::system(NEWEST);
    let files = "/run/libvirt/qemu/passt";
    let taken = lv.world.host.listen((HOST4, 2200));
    let ports = "<portForward proto='tcp'><range start='2200' to='22'/></portForward>";
    for kind in ["user", "vhostuser"] {
        let output = lv.try_create(&format!(
            "<interface type='{kind}'><backend type='passt'/><model type='virtio'/>{ports}</interface>"
        ));
        assert_ne!(output.code, 0, "port 2200 is taken");
        for expected in ["HOST TCP port */2200", "Address already in use"] {
            assert!(
                output.err.contains(expected),
                "no {expected}: {}",
                output.err
            );
        }
        lv.clean(files);
    }
    drop(taken);
    let output = lv.try_create(
        "<interface type='user'><source dev='nosuch0'/><backend type='passt'/><model type='virtio'/></interface>",
    );
    assert_ne!(output.code, 0, "there is no such interface");
    assert!(output.err.contains("nosuch0"), "{}", output.err);
    lv.clean(files);
}

/// An ordinary user's own libvirt.
fn session() {
    let lv = Libvirt::session();
    lv.create(&format!(
        "<interface type='user'><backend type='passt'/><model type='virtio'/>{PORTS}</interface>"
    ));
    let pid = lv.only("passt");
    assert_eq!(exec::status_number(pid, "Uid:"), Some(USER.into()));
    lv.online();
    lv.traffic();
    lv.virsh(&["destroy", "guest"]).ok();
    lv.clean("/run/user/1000/libvirt/qemu/run/passt");
}
