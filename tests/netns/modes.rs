//! Ways to start, what is started, and how it ends.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::differences::established;
use crate::exec::{Running, SOON, alive, nothing_left, poll_until, processes, run, spawn, stat};
use crate::harness::{DIR, PASTA, need, need_tap_for_users, tests};
use crate::servers::http;
use crate::world::{NO_FORWARDS, Netns, PEER4, PEER6, World, shell};

tests![
    command_is_connected,
    exit_status,
    death_by_signal,
    caller_ignores_sigchld,
    shell_from_environment,
    shell_on_a_terminal,
    one_inside_the_other,
    two_at_once,
    namespaces_of_the_command,
    no_pid_namespace,
    netns_only,
    mounts_stay_inside,
    hostname,
    command_not_found,
    sigterm_ends_the_command,
    attach_to_pid,
    attach_to_pid_in_other_userns,
    attach_by_path,
    attach_by_name,
    attach_with_userns_and_netns,
    existing_tap,
    foreground,
    background_lets_go,
    pid_file,
    ends_on_sigterm,
    ends_on_sigquit,
    other_signals_do_not_end_it,
    lives_and_dies_as_one,
    ends_with_the_path,
    ends_with_the_directory,
    ends_with_the_process,
    no_netns_quit,
    starts_again_in_the_same_namespace,
    standard_streams_closed,
    version_and_help,
    name_passt4netns;
    root: as_root,
    as_root_attached,
    as_root_drops_to_runas,
    rootless,
    rootless_attached,
];

fn connected(ns: &Netns) {
    ns.sh(&format!(
        "ping -n -c 1 -W 30 {PEER4} && ping -6 -n -c 1 -W 30 {PEER6}"
    ));
}

/// A process that holds a new network namespace (and user namespace) for us; how to run something in it.
struct Holder {
    running: Running,
    pid: i32,
    enter: String,
}

impl Holder {
    fn new(ns: &Netns, unshare: &str, nsenter: &str) -> Holder {
        let mut command = shell(&format!(
            "exec unshare {unshare} sh -c 'echo $$ >holder; exec sleep 1000'"
        ));
        command.current_dir(DIR);
        let running = ns.start_command(command);
        let read = || {
            fs::read_to_string(format!("{DIR}/holder"))
                .ok()
                .and_then(|t| t.trim().parse::<i32>().ok())
        };
        assert!(
            poll_until(SOON, || read().is_some()),
            "unshare {unshare} does not start"
        );
        let pid = running.id();
        Holder {
            running,
            pid,
            enter: format!("nsenter -t {pid} {nsenter} --preserve-credentials"),
        }
    }

    #[track_caller]
    fn connected(&self, w: &World) {
        let text = w.host.sh(&format!("{} curl -sS -m 60 http://{PEER4}/1000 | wc -c; {0} curl -sS -m 60 'http://[{PEER6}]/1000' | wc -c", self.enter));
        assert_eq!(text, "1000\n1000\n");
    }

    fn end(self) {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).expect("it is running");
        self.running.finish(SOON);
    }
}

fn serve_http(w: &World) {
    need("curl");
    http(&w.peer, (PEER4, 80));
    http(&w.peer, (PEER6, 80));
}

/// The main job, as a user types it.
fn command_is_connected() {
    let w = World::direct();
    serve_http(&w);
    let script = format!(
        "ip addr; curl -sS -m 60 http://{PEER4}/3000 | wc -c; curl -sS -m 60 'http://[{PEER6}]/3000' | wc -c"
    );
    let output = w.pasta(&["--config-net", "--", "sh", "-c", &script]);
    assert!(output.out.ends_with("3000\n3000\n"), "{}", output.both());
    assert!(
        output.out.contains("198.51.100.1/24") && output.out.contains("2001:db8:51::1/64"),
        "{}",
        output.out
    );
    nothing_left();
}

fn exit_status() {
    let w = World::direct();
    for code in [0, 1, 7, 255] {
        assert_eq!(w.inside(&[], &format!("exit {code}")).code, code);
    }
    assert_eq!(
        w.pasta(&["-q", "--config-net", "true"]).code,
        0,
        "without --"
    );
    assert_eq!(w.pasta(&["-q", "true"]).code, 0, "without --config-net");
    nothing_left();
}

fn death_by_signal() {
    let w = World::direct();
    assert_eq!(w.inside(&["--no-pidns"], "kill -TERM $$").code, 128 + 15);
    assert_eq!(w.inside(&["--no-pidns"], "kill -KILL $$").code, 128 + 9);
    assert_eq!(
        w.inside(&[], "sh -c 'kill -SEGV $$'; exit $?").code,
        128 + 11
    );
    // A real-time signal, with an orphan that lives on.
    for options in [&[][..], &["--no-pidns"]] {
        let output = w.inside(options, "(sleep 3 >/dev/null 2>&1 &); kill -34 $$");
        assert_eq!(output.code, 128 + 34, "{}", output.both());
    }
}

/// Ignored signals are inherited, and with SIGCHLD ignored nobody has children to wait for.
fn caller_ignores_sigchld() {
    let w = World::direct();
    for options in ["-q", "-q --no-pidns"] {
        let script = format!("trap '' CHLD; exec {PASTA} --config-net {options} -- sh -c 'exit 7'");
        let mut command = Command::new("bash");
        command.args(["-c", &script]);
        let output = w.host.enter(|| run(command, SOON));
        assert_eq!(output.code, 7, "{options}: {}", output.both());
    }
    nothing_left();
}

fn shell_from_environment() {
    let w = World::direct();
    fs::write(
        "/run/t/shell",
        "#!/bin/sh\necho \"shell $#\" >seen\nip -o addr show host0 >>seen\nexit 5\n",
    )
    .expect("tmpfs");
    fs::set_permissions("/run/t/shell", fs::Permissions::from_mode(0o755)).expect("tmpfs");
    let mut command = Command::new(PASTA);
    command
        .args(["-q", "--config-net"])
        .env("SHELL", "/run/t/shell")
        .current_dir(DIR);
    let output = w.host.enter(|| run(command, SOON));
    assert_eq!(output.code, 5, "{}", output.both());
    let seen = fs::read_to_string("/run/t/seen").expect("the shell ran in our directory");
    assert!(
        seen.starts_with("shell 0\n") && seen.contains("198.51.100.1/24"),
        "{seen}"
    );
}

/// What most people do: an interactive shell on their terminal.
fn shell_on_a_terminal() {
    need("script");
    let w = World::direct();
    let script = format!(
        "printf 'ip -o addr show host0\\nexit 4\\n' |
         SHELL=/bin/bash script -qec '{PASTA} --config-net' typescript"
    );
    let output = w.host.start(&script).finish(SOON);
    let seen = fs::read_to_string("/run/t/typescript").unwrap_or_default();
    assert_eq!(output.code, 4, "{seen}");
    assert!(seen.contains("198.51.100.1/24"), "{seen}");
    assert!(!seen.contains("job control turned off"), "{seen}");
}

/// A container in a container.
fn one_inside_the_other() {
    let w = World::direct();
    serve_http(&w);
    let fetch = format!(
        "curl -sS -m 60 http://{PEER4}/3000 | wc -c; curl -sS -m 60 http://[{PEER6}]/3000 | wc -c"
    );
    let inner = format!("{PASTA} -q --config-net -- sh -c '{fetch}; exit 6'");
    let output = w.inside(&[], &inner);
    assert_eq!((output.code, output.both().as_str()), (6, "3000\n3000\n"));
}

fn two_at_once() {
    let w = World::direct();
    let first = w.guest(&[]);
    let second = Netns::new("second");
    let other = w.attach(&second, &["--config-net"]);
    connected(&first);
    connected(&second);
    other.stop(Signal::SIGTERM);
    connected(&first);
}

const ALL: [&str; 6] = ["user", "net", "ipc", "uts", "mnt", "pid"];

/// Which namespaces of the command are not ours; and what else its first lines say.
fn new_namespaces(w: &World, options: &[&str]) -> (Vec<&'static str>, String) {
    let list = ALL.map(|n| format!("/proc/self/ns/{n}")).join(" ");
    let out = w
        .inside(
            options,
            &format!("readlink {list}; id -u; id -g; echo $$; ls -d /proc/[0-9]* | wc -l"),
        )
        .ok();
    let mut lines = out.lines();
    let differ = |n: &&str| {
        lines.next().map(str::to_owned)
            != fs::read_link(format!("/proc/self/ns/{n}"))
                .ok()
                .map(|l| l.display().to_string())
    };
    let new = ALL.into_iter().filter(differ).collect();
    (
        new,
        out.lines().skip(ALL.len()).collect::<Vec<_>>().join(" "),
    )
}

fn namespaces_of_the_command() {
    let w = World::direct();
    let (new, rest) = new_namespaces(&w, &[]);
    assert_eq!(new, ALL);
    let words: Vec<u32> = rest
        .split(' ')
        .map(|v| v.parse().expect("a number"))
        .collect();
    assert_eq!(words[..2], [0, 0], "root inside");
    assert!(
        words[2] <= 3 && words[3] <= 5,
        "a process namespace with its own /proc: {rest}"
    );
}

fn no_pid_namespace() {
    let w = World::direct();
    let (new, rest) = new_namespaces(&w, &["--no-pidns"]);
    assert_eq!(new, ["user", "net", "ipc", "uts", "mnt"]);
    assert!(rest.starts_with("0 0 "), "{rest}");
}

fn netns_only() {
    let w = World::direct();
    let (new, _) = new_namespaces(&w, &["--netns-only"]);
    assert!(!new.contains(&"user") && new.contains(&"net"), "{new:?}");
}

/// What is mounted for the command, or by it, stays with it, also where the host shares its mounts.
fn mounts_stay_inside() {
    let w = World::direct();
    for options in ["", "--netns-only", "--netns-only --no-pidns"] {
        let output = w.host.try_sh(&format!(
            "unshare -m --propagation shared sh -c '
               before=$(wc -l </proc/self/mountinfo)
               {PASTA} -q {options} -- mount -t tmpfs none /mnt || exit 9
               test $before = $(wc -l </proc/self/mountinfo)'"
        ));
        assert_eq!(output.code, 0, "{options}: {}", output.both());
    }
}

fn hostname() {
    let w = World::direct();
    w.host.sh("hostname box");
    assert_eq!(w.inside(&[], "hostname").ok(), "pasta-box\n");
    assert_eq!(w.inside(&["-H", "inner"], "hostname").ok(), "inner\n");
    assert_eq!(w.host.sh("hostname"), "box\n");
}

fn command_not_found() {
    let w = World::direct();
    let output = w.pasta(&["-q", "--config-net", "--", "no-such-command"]);
    assert_ne!(output.code, 0);
    assert!(
        ["No such file or directory", "Permission denied"]
            .iter()
            .any(|e| output.err.contains(e)),
        "{}",
        output.err
    );
    nothing_left();
}

/// SIGTERM to pasta ends the command too.
fn sigterm_ends_the_command() {
    let w = World::direct();
    let pasta = w.start_pasta(&[
        "-q",
        "--config-net",
        "--",
        "sh",
        "-c",
        "echo ready >started; sleep 1000",
    ]);
    assert!(
        poll_until(SOON, || fs::exists("/run/t/started").unwrap_or(false)),
        "the command starts"
    );
    kill(Pid::from_raw(pasta.id()), Signal::SIGTERM).expect("it runs");
    pasta.finish(SOON);
    nothing_left();
}

#[track_caller]
fn attach_and_use(w: &World, holder: &Holder, target: &[&str]) {
    let mut all = vec!["--config-net", "-q"];
    all.extend(NO_FORWARDS);
    all.extend(target);
    w.pasta(&all).ok();
    holder.connected(w);
}

fn attach_to_pid() {
    let w = World::direct();
    serve_http(&w);
    let holder = Holder::new(&w.host, "-n", "-n");
    attach_and_use(&w, &holder, &[&holder.pid.to_string()]);
    holder.end();
}

fn attach_to_pid_in_other_userns() {
    let w = World::direct();
    serve_http(&w);
    let holder = Holder::new(&w.host, "-Urn", "-U -n");
    attach_and_use(&w, &holder, &[&holder.pid.to_string()]);
    holder.end();
}

fn attach_by_path() {
    let w = World::direct();
    connected(&w.guest(&[]));
}

fn attach_by_name() {
    let w = World::direct();
    let ns = Netns::new("named");
    let mut all = vec!["--config-net", "-q", "-P", "pid", "--netns", "named"];
    all.extend(NO_FORWARDS);
    w.pasta(&all).ok();
    connected(&ns);
}

fn attach_with_userns_and_netns() {
    let w = World::direct();
    serve_http(&w);
    let holder = Holder::new(&w.host, "-Urn", "-U -n");
    let (user, net) = (
        format!("/proc/{}/ns/user", holder.pid),
        format!("/proc/{}/ns/net", holder.pid),
    );
    attach_and_use(&w, &holder, &["--userns", &user, "--netns", &net]);
    holder.end();
}

/// As older rootlesskit does: the tap is made, and configured, by somebody else, and stays when pasta goes.
fn existing_tap() {
    let w = World::direct();
    let ns = Netns::new("guest");
    ns.sh("ip link set lo up; ip tuntap add name tap0 mode tap; ip link set tap0 up; ip addr add 10.0.2.100/24 dev tap0; ip route add default via 10.0.2.2");
    let pasta = w.attach(
        &ns,
        &[
            "--ns-ifname=tap0",
            "--mtu=65520",
            "--address=10.0.2.100",
            "--netmask=24",
            "--gateway=10.0.2.2",
            "-4",
        ],
    );
    ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
    pasta.stop(Signal::SIGTERM);
    ns.sh("ip link show tap0");
    let again = w.attach(
        &ns,
        &[
            "--ns-ifname=tap0",
            "--mtu=65520",
            "--address=10.0.2.100",
            "--netmask=24",
            "--gateway=10.0.2.2",
            "-4",
        ],
    );
    ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
    again.stop(Signal::SIGTERM);
}

fn foreground() {
    let w = World::direct();
    let ns = Netns::new("guest");
    let mut all = vec![
        "-f",
        "-q",
        "--config-net",
        "-P",
        "fg.pid",
        "--netns",
        "/run/netns/guest",
    ];
    all.extend(NO_FORWARDS);
    let pasta = w.start_pasta(&all);
    assert!(
        poll_until(SOON, || ns
            .try_sh(&format!("ping -n -c 1 -W 1 {PEER4}"))
            .code
            == 0),
        "never connected"
    );
    let pid: i32 = fs::read_to_string("/run/t/fg.pid")
        .expect("a PID file")
        .trim()
        .parse()
        .expect("a PID");
    assert_eq!(
        pid,
        pasta.id(),
        "the foreground process is the one of the PID file"
    );
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    pasta.finish(SOON);
    nothing_left();
}

/// The caller waits for the exit of the process and the end of its output; the daemon holds neither.
fn background_lets_go() {
    let w = World::direct();
    let g = w.guest(&[]);
    let pid = g.pasta.pid;
    for fd in 0..3 {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).map(|l| l.display().to_string());
        assert!(
            matches!(link.as_deref(), Err(_) | Ok("/dev/null")),
            "descriptor {fd} is {link:?}"
        );
    }
    let words = stat(pid).expect("it is running");
    assert_eq!(words[1], "1", "its parent is init");
    assert_ne!(words[3], "0", "it has left our session");
    for pid in processes() {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
        assert!(
            cwd.as_ref().is_ok_and(|c| *c != *DIR),
            "process {pid} keeps its caller's directory: {cwd:?}"
        );
    }
}

fn pid_file() {
    let w = World::direct();
    fs::write("/run/t/pasta0.pid", "an old one, and a long one\n").expect("tmpfs");
    fs::remove_file("/run/t/pasta0.pid").expect("tmpfs");
    let g = w.guest(&[]);
    let text = fs::read_to_string("/run/t/pasta0.pid").expect("a PID file");
    assert_eq!(text, format!("{}\n", g.pasta.pid));
    let meta = fs::metadata("/run/t/pasta0.pid").expect("a PID file");
    assert_eq!(meta.mode() & 0o7777, 0o600);
}

fn ends_on(signal: Signal) {
    let w = World::direct();
    let g = w.guest(&[]);
    connected(&g);
    g.pasta.stop(signal);
    nothing_left();
    assert!(
        !g.ns.sh("ip -o link").contains("host0"),
        "its interface goes with it"
    );
}

fn ends_on_sigterm() {
    ends_on(Signal::SIGTERM);
}

fn ends_on_sigquit() {
    ends_on(Signal::SIGQUIT);
}

fn other_signals_do_not_end_it() {
    let w = World::direct();
    let g = w.guest(&[]);
    for signal in [
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGUSR1,
    ] {
        kill(Pid::from_raw(g.pasta.pid), signal).expect("it is running");
        connected(&g);
    }
}

/// Whichever of its processes is killed, none of the others goes on.
fn lives_and_dies_as_one() {
    let w = World::direct();
    let count = {
        let _g = w.guest(&[]);
        let all = processes();
        assert!(!all.is_empty());
        all.len()
    };
    kill_all();
    for victim in 0..count {
        Netns::retire("guest");
        let g = w.guest(&[]);
        connected(&g);
        let all = processes();
        // One that was there at the beginning only has nobody left to kill but the others.
        let victim = all.get(victim).unwrap_or(&all[0]);
        kill(Pid::from_raw(*victim), Signal::SIGKILL).expect("it is running");
        nothing_left();
        g.pasta.goes();
    }
}

fn kill_all() {
    for pid in processes() {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    nothing_left();
}

/// As podman ends a container: lazy umount, unlink, and pasta is expected to notice.
fn ends_with_the_path() {
    let w = World::direct();
    let g = w.guest(&[]);
    Netns::retire(&g.ns.name);
    g.pasta.goes();
    nothing_left();
}

fn ends_with_the_directory() {
    let w = World::direct();
    fs::create_dir("/run/netns/deep").expect("tmpfs");
    let ns = Netns::new("deep/ns");
    let pasta = w.attach(&ns, &["--config-net"]);
    Netns::retire(&ns.name);
    fs::remove_dir("/run/netns/deep").expect("nothing keeps it busy");
    pasta.goes();
}

fn ends_with_the_process() {
    let w = World::direct();
    serve_http(&w);
    let holder = Holder::new(&w.host, "-Urn", "-U -n");
    attach_and_use(&w, &holder, &[&holder.pid.to_string()]);
    holder.end();
    nothing_left();
}

fn no_netns_quit() {
    let w = World::direct();
    let g = w.guest(&["--no-netns-quit"]);
    Netns::retire(&g.ns.name);
    assert!(
        !poll_until(Duration::from_millis(300), || !alive(g.pasta.pid)),
        "it went though it was told to stay"
    );
    connected(&g);
}

fn starts_again_in_the_same_namespace() {
    let w = World::direct();
    let g = w.guest(&[]);
    let Guested { ns } = Guested::stop(g);
    for _ in 0..3 {
        let pasta = w.attach(&ns, &["--config-net"]);
        connected(&ns);
        pasta.stop(Signal::SIGTERM);
    }
}

struct Guested {
    ns: Netns,
}

impl Guested {
    fn stop(g: crate::world::Guest) -> Guested {
        g.pasta.stop(Signal::SIGTERM);
        Guested { ns: g.ns }
    }
}

fn standard_streams_closed() {
    let w = World::direct();
    let ns = Netns::new("guest");
    w.host.sh(&format!(
        "{PASTA} --config-net -t none -u none -T none -U none -P pid --netns {} <&- >&- 2>&-",
        ns.path()
    ));
    connected(&ns);
}

fn version_and_help() {
    let w = World::direct();
    let version = w.pasta(&["--version"]);
    assert!(
        version.out.starts_with("pasta ") && version.err.is_empty(),
        "{version:?}"
    );
    assert_eq!(version.code, 0);
    let probe = w.pasta(&["--host-lo-to-ns-lo", "--version"]);
    assert_eq!((probe.code, probe.out), (0, version.out));
    let bogus = w.pasta(&["--bogus", "--version"]);
    assert_eq!(bogus.code, 1);
    assert!(
        bogus.err.contains("unrecognized option '--bogus'"),
        "{}",
        bogus.err
    );
    let help = w.pasta(&["--help"]);
    assert_eq!(help.code, 0);
    for option in [
        "--config-net",
        "--map-guest-addr",
        "--dns-forward",
        "--netns-only",
    ] {
        assert!(
            help.both().contains(option),
            "{option} is not in the help text"
        );
    }
}

fn name_passt4netns() {
    let w = World::direct();
    std::os::unix::fs::symlink(PASTA, "/run/t/passt4netns").expect("tmpfs");
    let output = w
        .host
        .enter(|| run(Command::new("/run/t/passt4netns"), SOON));
    assert_eq!(output.code, 0, "a shell without input: {}", output.both());
}

/// The user ids of every process of the program under test.
fn uids(of: &[i32]) -> Vec<u32> {
    of.iter()
        .filter_map(|p| fs::metadata(format!("/proc/{p}")).ok().map(|m| m.uid()))
        .collect()
}

fn as_root() {
    let w = World::direct();
    serve_http(&w);
    let output = w.inside(
        &[],
        &format!("id -u; curl -sS -m 60 http://{PEER4}/3000 | wc -c"),
    );
    assert_eq!(output.both(), "0\n3000\n");
}

fn as_root_attached() {
    let w = World::direct();
    let g = w.guest(&[]);
    connected(&g);
    let all = processes();
    for status in all
        .iter()
        .map(|p| fs::read_to_string(format!("/proc/{p}/status")).expect("it is running"))
    {
        let uid = status
            .lines()
            .find(|l| l.starts_with("Uid:"))
            .expect("a line");
        assert!(
            !uid.split_whitespace().skip(1).any(|v| v == "0"),
            "a process still is root:\n{status}"
        );
    }
    Netns::retire(&g.ns.name);
    g.pasta.goes();
}

fn as_root_drops_to_runas() {
    let w = World::direct();
    let g = w.guest(&["--runas", "4243:4244"]);
    connected(&g);
    let status =
        fs::read_to_string(format!("/proc/{}/status", g.pasta.pid)).expect("it is running");
    assert!(status.contains("Uid:\t4243\t4243\t4243\t4243"), "{status}");
    assert!(status.contains("Gid:\t4244\t4244\t4244\t4244"), "{status}");
    assert!(
        !uids(&processes()).contains(&0) || established(),
        "a process still is root"
    );
}

/// An ordinary user: no capabilities at all in the namespace the host's network belongs to.
fn unprivileged(script: &str) -> Command {
    let mut command = shell(script);
    fs::create_dir_all("/run/t/user").expect("tmpfs");
    std::os::unix::fs::chown("/run/t/user", Some(4242), Some(4242)).expect("chown");
    command
        .uid(4242)
        .gid(4242)
        .current_dir("/run/t/user")
        .env("PASTA", PASTA);
    command
}

fn rootless() {
    need_tap_for_users();
    let w = World::direct();
    serve_http(&w);
    let script = format!(
        "$PASTA -q --config-net -- sh -c 'id -u; cat /proc/self/uid_map; curl -sS -m 60 http://{PEER4}/3000 | wc -c; curl -sS -m 60 http://[{PEER6}]/3000 | wc -c; ping -n -c 1 -W 30 {PEER4} >ping; exit 9'"
    );
    let output = spawn(unprivileged(&script)).finish(SOON);
    let words: Vec<&str> = output.out.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "0", "4242", "1", "3000", "3000"],
        "{}",
        output.both()
    );
    assert_eq!(output.code, 9);
    let ping = fs::read_to_string("/run/t/user/ping").expect("ping ran");
    assert!(ping.contains("1 received"), "{ping}");
}

/// As rootlesskit does it: an unprivileged caller, a child with a user and a network namespace.
fn rootless_attached() {
    need_tap_for_users();
    let w = World::direct();
    serve_http(&w);
    let mut child = unprivileged("exec unshare -Urn sh -c 'echo ok >up; exec sleep 1000'");
    child.env_remove("PASTA");
    let child = spawn(child);
    assert!(
        poll_until(SOON, || fs::exists("/run/t/user/up").unwrap_or(false)),
        "unshare does not start"
    );
    let pid = child.id();
    let script = format!("$PASTA -q --config-net -t none -u none -T none -U none -P pid {pid}");
    spawn(unprivileged(&script)).finish(SOON).ok();
    let inside = format!("nsenter -t {pid} -U -n --preserve-credentials");
    assert_eq!(
        spawn(unprivileged(&format!(
            "{inside} curl -sS -m 60 http://{PEER4}/3000 | wc -c"
        )))
        .finish(SOON)
        .ok(),
        "3000\n"
    );
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    child.finish(SOON);
    nothing_left();
}
