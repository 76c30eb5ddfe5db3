//! How the process behaves towards podman and buildah: what they wait for, what they look at while it runs, how they
//! end it, and as whom they start it.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clients::{PODMAN, call, podman_namespace, usable, words};
use crate::exec::{Running, SOON, alive, nothing_left, poll_until, processes, spawn, stat};
use crate::harness::{need, need_tap_for_users, tests};
use crate::world::{HOST4, HOST6, Netns, PEER4, World, shell};

tests![
    daemon,
    says_what_it_does,
    pid_file,
    pid_file_in_a_process_namespace,
    umount_alone_does_not_end_it,
    unlink_in_a_shared_directory,
    directory_removed,
    signals,
    confined,
    caller_s_directory;
    root: in_podman_s_namespaces, namespace_of_a_user_namespace_below,
];

/// The line with a PID file; the process it names.
#[track_caller]
fn started(w: &World, ns: &Netns) -> i32 {
    let line = PODMAN.replace("--config-net", "--config-net --pid /run/t/pid");
    call(w, &line, &ns.path());
    let text = fs::read_to_string("/run/t/pid").expect("it exists when the parent exits");
    text.trim().parse().expect("a PID")
}

/// A line of /proc/PID/status.
fn status(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is running");
    let line = text.lines().find(|l| l.starts_with(name)).expect("a line");
    line[name.len()..].trim().to_owned()
}

/// "All three /dev/null, own session, ppid 1": and none of its processes holds anything of the caller's.
fn daemon() {
    let w = World::direct();
    let ns = podman_namespace();
    let pid = started(&w, &ns);
    for fd in 0..3 {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).expect("a descriptor");
        assert_eq!(link.to_str(), Some("/dev/null"), "descriptor {fd}");
    }
    let fields = |pid| stat(pid).expect("it is running");
    assert_eq!(fields(pid)[1], "1", "the parent");
    assert_eq!(fields(pid)[3], pid.to_string(), "a session of its own");
    let ours = fs::read_link("/proc/self/fd/2").expect("a descriptor");
    for pid in processes() {
        for fd in fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("it is running")
            .flatten()
        {
            let link = fs::read_link(fd.path()).unwrap_or_default();
            let standard = matches!(fd.file_name().to_str(), Some("0" | "1" | "2"));
            // Its name depends on whose file system it is seen from.
            let null =
                fs::metadata(fd.path()).is_ok_and(|m| m.rdev() == nix::sys::stat::makedev(1, 3));
            let fine = link != ours && (!standard || null);
            assert!(fine, "{pid} holds {link:?} as {:?}", fd.file_name());
        }
        assert_ne!(fields(pid)[3], fields(1)[3], "{pid} is of our session");
        assert_eq!(fields(pid)[4], "0", "{pid} has a terminal");
    }
}

/// Without --quiet: a summary, on standard error, and the same exit and end of output.
fn says_what_it_does() {
    let w = World::direct();
    let ns = podman_namespace();
    let line = words(&PODMAN.replace(" --quiet", ""), &ns.path());
    let output = w.host.try_sh(&line);
    assert_eq!((output.code, output.out.as_str()), (0, ""));
    for part in ["Template interface: host0", HOST4, HOST6, "DNS:", "NDP"] {
        assert!(output.err.contains(part), "{}", output.err);
    }
}

/// "Decimal pid and newline, mode 0600; not removed at the end."
fn pid_file() {
    let w = World::direct();
    let ns = podman_namespace();
    let pid = started(&w, &ns);
    let text = fs::read_to_string("/run/t/pid").expect("a PID file");
    assert_eq!(text, format!("{pid}\n"));
    let mode = fs::metadata("/run/t/pid").expect("a PID file").mode();
    assert_eq!(mode & 0o7777, 0o600);
    kill(Pid::from_raw(pid), None).expect("it is running");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is running");
    nothing_left();
    assert_eq!(fs::read_to_string("/run/t/pid").ok(), Some(text));
    // The next one replaces it.
    assert_ne!(started(&w, &ns), pid);
}

/// "Valid in the caller's pid namespace."
fn pid_file_in_a_process_namespace() {
    let w = World::direct();
    let ns = podman_namespace();
    let line = PODMAN.replace("--config-net", "--config-net --pid /run/t/pid");
    let line = words(&line, &ns.path());
    let output = w.host.try_sh(&format!(
        "exec unshare -p -f --mount-proc sh -c '{line}; pid=$(cat pid); echo $pid $(cat /proc/$pid/comm); kill -TERM $pid; while test -d /proc/$pid && ! grep -qs Z /proc/$pid/stat; do sleep 0.01; done' 2>&1"
    ));
    let words: Vec<&str> = output.out.split_whitespace().collect();
    assert_eq!(output.code, 0, "{}", output.both());
    assert!(words.len() == 2 && words[1].starts_with("pas"), "{words:?}");
}

/// "umount without unlink does not end it, unlink does."
fn umount_alone_does_not_end_it() {
    let w = World::direct();
    let ns = podman_namespace();
    let pid = started(&w, &ns);
    umount2(ns.path().as_str(), MntFlags::MNT_DETACH).expect("umount");
    for _ in 0..3 {
        ns.sh(&format!("ping -n -c 1 -i 0.2 -W 30 {PEER4}"));
    }
    assert!(alive(pid), "it went before the path did");
    fs::remove_file(ns.path()).expect("not EBUSY");
    nothing_left();
}

/// podman's directory is a shared mount: no copy of it elsewhere keeps the file busy.
fn unlink_in_a_shared_directory() {
    let w = World::direct();
    fs::create_dir_all("/run/netns/user/1000/netns").expect("tmpfs");
    w.host
        .sh("cd /run/netns/user/1000/netns && mount --bind . . && mount --make-shared .");
    for _ in 0..3 {
        let ns = podman_namespace();
        started(&w, &ns);
        usable(&ns);
        Netns::retire(&ns.name);
        nothing_left();
    }
    w.host.sh("umount /run/netns/user/1000/netns");
}

fn directory_removed() {
    let w = World::direct();
    let ns = podman_namespace();
    started(&w, &ns);
    umount2(ns.path().as_str(), MntFlags::MNT_DETACH).expect("umount");
    fs::remove_dir_all("/run/netns/user").expect("not EBUSY");
    nothing_left();
}

/// "SIGTERM, SIGQUIT end it, also from outside its pid namespace; SIGINT, SIGHUP, SIGPIPE, SIGUSR1 do not."
fn signals() {
    let w = World::direct();
    let ns = podman_namespace();
    for last in [Signal::SIGTERM, Signal::SIGQUIT] {
        let pid = started(&w, &ns);
        for signal in [
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGPIPE,
            Signal::SIGUSR1,
        ] {
            kill(Pid::from_raw(pid), signal).expect("it is running");
            ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
        }
        assert!(alive(pid));
        kill(Pid::from_raw(pid), last).expect("it is running");
        nothing_left();
    }
}

/// "CapEff CAP_NET_BIND_SERVICE|CAP_SYS_ADMIN; no_new_privs; seccomp filter": at most that, for each of its processes.
fn confined() {
    const NET_BIND_SERVICE: u64 = 1 << 10;
    const SYS_ADMIN: u64 = 1 << 21;
    let w = World::direct();
    let ns = podman_namespace();
    started(&w, &ns);
    for pid in processes() {
        assert_eq!(status(pid, "NoNewPrivs:"), "1", "{pid}");
        assert_eq!(status(pid, "Seccomp:"), "2", "{pid}");
        let held = u64::from_str_radix(&status(pid, "CapEff:"), 16).expect("a number");
        let more = held & !(NET_BIND_SERVICE | SYS_ADMIN);
        assert_eq!(more, 0, "{pid} holds {held:x}");
        let root = fs::read_dir(format!("/proc/{pid}/root/")).map(Iterator::count);
        assert_eq!(root.ok(), Some(0), "{pid} sees files");
    }
}

/// "cwd arbitrary": one that is gone, and one that is wanted back.
fn caller_s_directory() {
    let w = World::direct();
    let ns = podman_namespace();
    let line = words(PODMAN, &ns.path());
    w.host
        .sh(&format!("mkdir a && cd a && rmdir ../a && {line}"));
    usable(&ns);
    Netns::retire(&ns.name);
    nothing_left();
    let ns = podman_namespace();
    let line = words(PODMAN, &ns.path());
    w.host.sh(&format!(
        "mkdir b && mount -t tmpfs none b && cd b && {line}; cd .. && umount b"
    ));
    usable(&ns);
}

/// podman's own user and mount namespace: uid 0 there is the user outside, others come from his subordinate ids.
struct Podman {
    holder: Running,
}

const USER: u32 = 1000;
const RUN: &str = "/run/t/user/1000";

impl Podman {
    fn new(w: &World) -> Podman {
        need_tap_for_users();
        need("setpriv");
        fs::create_dir_all(format!("{RUN}/netns")).expect("tmpfs");
        for dir in [RUN.to_owned(), format!("{RUN}/netns")] {
            chown(&dir, Some(USER), Some(USER)).expect("chown");
        }
        let holder = w.host.enter(|| {
            spawn(shell(&format!(
                "exec setpriv --reuid {USER} --regid {USER} --clear-groups unshare -U -m --propagation slave sleep 1000"
            )))
        });
        let proc = format!("/proc/{}", holder.id());
        let own = fs::read_link("/proc/self/ns/mnt").expect("procfs");
        let ready = || {
            fs::read_link(format!("{proc}/ns/mnt")).is_ok_and(|l| l != own)
                && fs::read_to_string(format!("{proc}/comm")).is_ok_and(|c| c == "sleep\n")
        };
        assert!(poll_until(SOON, ready), "unshare does not start");
        map(holder.id(), &format!("0 {USER} 1\n1 100000 65536\n"));
        let podman = Podman { holder };
        podman.sh("mount --bind $RUN/netns $RUN/netns; mount --make-shared $RUN/netns");
        podman
    }

    /// Runs a script as podman does: as uid 0 of that user namespace, with all capabilities there and none outside.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        spawn(self.command(script)).finish(SOON).ok()
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.holder.id().to_string(), "-U", "-m", "sh", "-ec"])
            .arg(script)
            .env("RUN", RUN)
            .current_dir("/");
        command
    }

    /// Attaches pasta to `$RUN/netns/ns`, looks at what it did, takes the path away and waits for its end.
    #[track_caller]
    fn connects(&self, before: &[i32], look: &str) {
        let line = words(PODMAN, &format!("{RUN}/netns/ns"));
        assert_eq!(self.sh(&format!("{line} 2>&1")), "");
        let ours = || -> Vec<i32> {
            let new = |p: &i32| !before.contains(p);
            processes().into_iter().filter(new).collect()
        };
        assert!(!ours().is_empty(), "no daemon");
        for pid in ours() {
            let uids = status(pid, "Uid:");
            let of_the_user = uids.split_whitespace().all(|u| u == USER.to_string());
            assert!(of_the_user, "{pid} runs as {uids}");
            assert_eq!(status(pid, "NoNewPrivs:"), "1");
        }
        let seen = self.sh(look);
        for part in [
            &format!("inet {HOST4}/24"),
            "1 received",
            "lo: <LOOPBACK,UP",
        ] {
            assert!(seen.contains(part), "`{part}` is not in:\n{seen}");
        }
        self.sh("umount -l $RUN/netns/ns; rm $RUN/netns/ns");
        assert!(poll_until(SOON, || ours().is_empty()), "{:?}", ours());
    }

    fn end(self) {
        kill(Pid::from_raw(self.holder.id()), Signal::SIGKILL).expect("it runs");
        self.holder.finish(SOON);
        nothing_left();
    }
}

/// Gives a process that has unshared its user namespace the ids of that.
fn map(pid: i32, ids: &str) {
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), ids).expect("root may");
    }
}

/// "pasta starts as uid 0 of that user namespace, the user's real uid outside; its network namespace is the host's."
fn in_podman_s_namespaces() {
    let w = World::direct();
    let podman = Podman::new(&w);
    for _ in 0..2 {
        podman.sh("touch $RUN/netns/ns; unshare -n mount --bind /proc/self/ns/net $RUN/netns/ns");
        podman.connects(
            &[podman.holder.id()],
            &format!("nsenter --net=$RUN/netns/ns sh -c 'ip addr; ping -n -c 1 -W 30 {PEER4}'"),
        );
    }
    podman.end();
}

/// "With --userns the namespace in it belongs to a user namespace below podman's; pasta is given no --userns and must
/// setns() straight into it."
fn namespace_of_a_user_namespace_below() {
    let w = World::direct();
    let podman = Podman::new(&w);
    let container = spawn(podman.command("exec unshare -U -n sleep 1000"));
    let pid = container.id();
    let own = fs::read_link("/proc/self/ns/net").expect("procfs");
    let unshared = || fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|l| l != own);
    assert!(poll_until(SOON, unshared), "unshare does not start");
    podman.sh(&format!("for i in uid gid; do echo 0 1 1000 >/proc/{pid}/${{i}}_map; done; touch $RUN/netns/ns; mount --bind /proc/{pid}/ns/net $RUN/netns/ns"));
    podman.connects(
        &[podman.holder.id(), pid],
        &format!("nsenter -t {pid} -U -n sh -c 'ip addr; ping -n -c 1 -W 30 {PEER4}'"),
    );
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    container.finish(SOON);
    podman.end();
}
