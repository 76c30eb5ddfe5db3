//! The command lines of rootlesskit, word for word: up to 2.2 a tap of its own and a process in the foreground; from
//! 2.3.2 on a daemon that configures the interface.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{SOON, nothing_left, poll_until, processes, spawn};
use crate::harness::{PASTA, need, need_tap_for_users, tests};
use crate::reach::{Protocol, Server, reachable_within};
use crate::servers::http;
use crate::world::{Netns, PEER4, World, shell};

tests![
    generation_2,
    generation_3,
    implicit_ports,
    detached_netns;
    root: as_user,
];

/// A child of rootlesskit: own user, network and mount namespaces; the words to run something in it.
fn child(ns: &Netns, prepare: &str) -> (crate::exec::Running, String) {
    let running = ns.start_command(shell(&format!(
        "exec unshare -Urnm sh -c '{prepare}; echo ok >up; exec sleep 1000'"
    )));
    assert!(
        poll_until(SOON, || fs::exists("/run/t/up").unwrap_or(false)),
        "unshare does not start"
    );
    let inside = format!(
        "nsenter -t {} -U -n -m --preserve-credentials",
        running.id()
    );
    (running, inside)
}

/// Up to 2.2: foreground, a tap that exists, no --config-net; the child configures it by itself.
fn generation_2() {
    need("curl");
    let w = World::direct();
    http(&w.peer, (PEER4, 80));
    let (running, inside) = child(
        &w.host,
        "ip link set lo up; ip tuntap add name tap0 mode tap; ip link set tap0 up",
    );
    let pid = running.id().to_string();
    let pasta = w.start_pasta(&[
        "--foreground",
        "--stderr",
        "--ns-ifname=tap0",
        "--mtu=65520",
        "--no-dhcp",
        "--no-ra",
        "--address=10.0.2.100",
        "--netmask=24",
        "--gateway=10.0.2.2",
        "--dns-forward=10.0.2.3",
        "--no-map-gw",
        "--ipv4-only",
        "--tcp-ports=none",
        "--udp-ports=none",
        &pid,
    ]);
    w.host.sh(&format!("{inside} sh -c 'ip addr add 10.0.2.100/24 dev tap0; ip link set tap0 mtu 65520; ip route add default via 10.0.2.2'"));
    let fetch = || {
        w.host
            .try_sh(&format!(
                "{inside} curl -sS -m 60 http://{PEER4}/3000 | wc -c"
            ))
            .out
    };
    assert!(poll_until(SOON, || fetch() == "3000\n"), "not connected");
    kill(Pid::from_raw(pasta.id()), Signal::SIGKILL).expect("it runs");
    pasta.finish(SOON);
    assert!(w.host.sh(&format!("{inside} ip link")).contains("tap0"));
    assert!(
        poll_until(SOON, || processes() == [running.id()]),
        "left behind: {:?}",
        processes()
    );
    kill(Pid::from_raw(running.id()), Signal::SIGKILL).expect("it runs");
    running.finish(SOON);
}

const GENERATION_3: &str = "pasta --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=none --udp-ports=none --host-lo-to-ns-lo";

#[track_caller]
fn start_3(w: &World, target: &str) {
    let line = GENERATION_3.replace("pasta ", &format!("{PASTA} "));
    w.host.sh(&format!("{PASTA} --version >/dev/null; {PASTA} --host-lo-to-ns-lo --version >/dev/null; {line} {target} >out 2>&1"));
}

fn generation_3() {
    need("curl");
    let w = World::direct();
    http(&w.peer, (PEER4, 80));
    let (running, inside) = child(&w.host, "true");
    start_3(&w, &running.id().to_string());
    let seen = w.host.sh(&format!("{inside} sh -c 'ip link set lo up; ip addr; ip route; curl -sS -m 60 http://{PEER4}/3000 | wc -c'"));
    for part in [
        "tap0: ",
        "inet 10.0.2.100/24",
        "default via 10.0.2.2",
        "mtu 65520",
        "\n3000\n",
    ] {
        assert!(seen.contains(part), "`{part}` is not in:\n{seen}");
    }
    kill(Pid::from_raw(running.id()), Signal::SIGKILL).expect("it runs");
    running.finish(SOON);
    nothing_left();
}

/// --port-driver=implicit: what listens inside, on loopback or not, is found on the host's loopback.
fn implicit_ports() {
    let w = World::direct();
    let (running, _) = child(&w.host, "true");
    let line = GENERATION_3
        .replace("pasta ", &format!("{PASTA} "))
        .replace("ports=none", "ports=auto");
    w.host.sh(&format!("{line} {} >out 2>&1", running.id()));
    let ns = Netns::of(running.id());
    let servers = [
        Server::tcp(&ns, ("127.0.0.1", 8080)),
        Server::udp(&ns, ("127.0.0.1", 8080)),
    ];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        reachable_within(SOON, protocol, &w.host, ("127.0.0.1", 8080));
    }
    drop((servers, ns));
    kill(Pid::from_raw(running.id()), Signal::SIGKILL).expect("it runs");
    running.finish(SOON);
}

/// --detach-netns: a namespace on a path in the child's mount namespace.
fn detached_netns() {
    need("curl");
    let w = World::direct();
    http(&w.peer, (PEER4, 80));
    let (running, inside) = child(
        &w.host,
        "mount -t tmpfs none /tmp; touch /tmp/netns; unshare -n mount --bind /proc/self/ns/net /tmp/netns",
    );
    let root = format!("/proc/{}", running.id());
    start_3(
        &w,
        &format!("--userns={root}/ns/user --netns={root}/root/tmp/netns"),
    );
    let seen = w.host.sh(&format!(
        "{inside} nsenter --net=/tmp/netns curl -sS -m 60 http://{PEER4}/3000 | wc -c"
    ));
    assert_eq!(seen, "3000\n");
    w.host.sh(&format!(
        "{inside} sh -c 'umount -l /tmp/netns && rm /tmp/netns'"
    ));
    kill(Pid::from_raw(running.id()), Signal::SIGKILL).expect("it runs");
    running.finish(SOON);
    nothing_left();
}

/// The real thing: caller and child without any privilege outside.
fn as_user() {
    use std::os::unix::process::CommandExt;
    need("curl");
    need_tap_for_users();
    let w = World::direct();
    http(&w.peer, (PEER4, 80));
    fs::create_dir("/run/t/user").expect("tmpfs");
    std::os::unix::fs::chown("/run/t/user", Some(4242), Some(4242)).expect("chown");
    let user = |script: &str| {
        let mut command = shell(script);
        command.uid(4242).gid(4242).current_dir("/run/t/user");
        spawn(command)
    };
    let running = user("exec unshare -Urnm sh -c 'echo ok >up; exec sleep 1000'");
    assert!(
        poll_until(SOON, || fs::exists("/run/t/user/up").unwrap_or(false)),
        "unshare does not start"
    );
    let line = GENERATION_3.replace("pasta ", &format!("{PASTA} "));
    user(&format!("{line} {} >out 2>&1", running.id()))
        .finish(SOON)
        .ok();
    let inside = format!("nsenter -t {} -U -n --preserve-credentials", running.id());
    assert_eq!(
        user(&format!(
            "{inside} curl -sS -m 60 http://{PEER4}/3000 | wc -c"
        ))
        .finish(SOON)
        .ok(),
        "3000\n"
    );
    kill(Pid::from_raw(running.id()), Signal::SIGKILL).expect("it runs");
    running.finish(SOON);
    nothing_left();
}
