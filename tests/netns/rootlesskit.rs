//! The command lines of rootlesskit, word for word: up to 2.2 a tap of its own and a process in the foreground; from
//! 2.3.2 on a daemon that configures the interface.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{SOON, nothing_left, poll_until, processes, spawn};
use crate::harness::{PASTA, need, need_tap_for_users, tests};
use crate::reach::{Protocol, Server, exchange, reachable_within};
use crate::servers::http;
use crate::world::{HOST6, Netns, PEER4, PEER6, World, shell};

tests![
    generation_2,
    generation_2_both_families,
    generation_3,
    generation_3_with_host_loopback,
    generation_3_both_families,
    generation_3_without_its_loopback,
    generation_3_refused,
    implicit_ports,
    detached_netns,
    detached_implicit_ports;
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
    attached(&["--ipv4-only"]);
}

/// --ipv6, of which the child makes nothing.
fn generation_2_both_families() {
    attached(&[]);
}

#[track_caller]
fn attached(families: &[&str]) {
    need("curl");
    let w = World::direct();
    http(&w.peer, (PEER4, 80));
    let (running, inside) = child(
        &w.host,
        "ip link set lo up; ip tuntap add name tap0 mode tap; ip link set tap0 up",
    );
    let pid = running.id().to_string();
    let mut line = vec![
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
    ];
    line.extend(families);
    line.extend(["--tcp-ports=none", "--udp-ports=none", &pid]);
    let pasta = w.start_pasta(&line);
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

/// The line for a target, with one word of it as another.
fn line_3(word: &str, other: &str, target: &str) -> String {
    let line = GENERATION_3.replace(word, other);
    format!("{} {target}", line.replace("pasta ", &format!("{PASTA} ")))
}

#[track_caller]
fn start_3(w: &World, target: &str) {
    let line = line_3(" ", " ", target);
    w.host.sh(&format!("{PASTA} --version >/dev/null; {PASTA} --host-lo-to-ns-lo --version >/dev/null; {line} >out 2>&1"));
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
    end(running);
}

/// A child that is connected by the line with one word of it as another, which must say nothing.
#[track_caller]
fn connected_3(w: &World, word: &str, other: &str) -> (crate::exec::Running, String) {
    let (running, inside) = child(&w.host, "ip link set lo up");
    let line = line_3(word, other, &running.id().to_string());
    let output = w.host.try_sh(&format!("{line} 2>&1"));
    assert_eq!(output.code, 0, "{}", output.both());
    (running, inside)
}

/// The child's end is that of everything.
#[track_caller]
fn end(running: crate::exec::Running) {
    kill(Pid::from_raw(running.id()), Signal::SIGKILL).expect("it runs");
    running.finish(SOON);
    nothing_left();
}

/// Without --disable-host-loopback, there is no --no-map-gw: the gateway is the host's loopback.
fn generation_3_with_host_loopback() {
    let w = World::direct();
    let server = Server::tcp(&w.host, ("127.0.0.1", 1000));
    let (running, _) = connected_3(&w, " --no-map-gw", "");
    exchange(Netns::of(running.id()).connect(("10.0.2.2", 1000)), 1000);
    assert_eq!(server.seen().peer_ip(), "127.0.0.1");
    end(running);
    let (running, _) = connected_3(&w, " ", " ");
    Netns::of(running.id())
        .connect_within(("10.0.2.2", 1000), Duration::from_secs(2))
        .expect_err("the host's loopback is closed");
    end(running);
}

/// With --ipv6, there is no --ipv4-only: the host's IPv6 address, and what is reached by it.
fn generation_3_both_families() {
    need("curl");
    let w = World::direct();
    http(&w.peer, (PEER6, 80));
    let (running, inside) = connected_3(&w, " --ipv4-only", "");
    let seen = w.host.sh(&format!(
        "{inside} sh -c 'ip addr; curl -gsS -m 60 http://[{PEER6}]/3000 | wc -c'"
    ));
    for part in ["inet 10.0.2.100/24", &format!("inet6 {HOST6}/"), "\n3000\n"] {
        assert!(seen.contains(part), "`{part}` is not in:\n{seen}");
    }
    end(running);
}

/// Without --host-lo-to-ns-lo what comes by the host's loopback arrives at the child's own address.
fn generation_3_without_its_loopback() {
    let w = World::direct();
    let (running, _) = connected_3(
        &w,
        "--tcp-ports=none --udp-ports=none --host-lo-to-ns-lo",
        "--tcp-ports=auto --udp-ports=auto",
    );
    let ns = Netns::of(running.id());
    let server = Server::tcp(&ns, ("0.0.0.0", 8080));
    reachable_within(SOON, Protocol::Tcp, &w.host, ("127.0.0.1", 8080));
    server.forget();
    exchange(w.host.connect(("127.0.0.1", 8080)), 1000);
    assert_eq!(server.seen().local_ip(), "10.0.2.100");
    drop((server, ns));
    end(running);
}

/// Its caller waits for the end of the output, which is the reason, and nothing stays.
fn generation_3_refused() {
    let w = World::direct();
    let (running, _) = child(&w.host, "true");
    let user = format!("--userns=/proc/{}/ns/user", running.id());
    for (netns, reason) in [
        (
            "/run/t/nope",
            "Couldn't open network namespace /run/t/nope: No such file or directory",
        ),
        ("/run/t/resolv.conf", "Couldn't switch to pasta namespaces"),
    ] {
        let target = format!("{user} --netns={netns}");
        let output = w
            .host
            .try_sh(&format!("{} 2>&1", line_3(" ", " ", &target)));
        assert_eq!(output.code, 1, "{}", output.out);
        assert!(output.out.contains(reason), "{}", output.out);
        let gone = poll_until(SOON, || processes() == [running.id()]);
        assert!(gone, "left behind: {:?}", processes());
    }
    end(running);
}

/// --port-driver=implicit: what listens inside, on loopback or not, is found on the host's loopback.
fn implicit_ports() {
    let w = World::direct();
    let (running, _) = child(&w.host, "true");
    let line = line_3("ports=none", "ports=auto", &running.id().to_string());
    w.host.sh(&format!("{line} >out 2>&1"));
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
    end(running);
}

/// The same with ports: who opens them finds what listens in a namespace that no process of the child is in.
fn detached_implicit_ports() {
    let w = World::direct();
    let (running, inside) = child(
        &w.host,
        "mount -t tmpfs none /tmp; touch /tmp/netns; unshare -n mount --bind /proc/self/ns/net /tmp/netns",
    );
    let root = format!("/proc/{}", running.id());
    let target = format!("--userns={root}/ns/user --netns={root}/root/tmp/netns");
    let line = line_3("ports=none", "ports=auto", &target);
    w.host.sh(&format!("{line} >out 2>&1"));
    let below = w.host.start(&format!(
        "exec {inside} nsenter --net=/tmp/netns sleep 1000"
    ));
    let there =
        || fs::read_to_string(format!("/proc/{}/comm", below.id())).is_ok_and(|c| c == "sleep\n");
    assert!(poll_until(SOON, there), "nsenter does not start");
    let ns = Netns::of(below.id());
    let servers = [
        Server::tcp(&ns, ("0.0.0.0", 8080)),
        Server::udp(&ns, ("0.0.0.0", 8080)),
    ];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        reachable_within(SOON, protocol, &w.host, ("127.0.0.1", 8080));
    }
    drop((servers, ns));
    kill(Pid::from_raw(below.id()), Signal::SIGKILL).expect("it runs");
    below.finish(SOON);
    w.host.sh(&format!(
        "{inside} sh -c 'umount -l /tmp/netns && rm /tmp/netns'"
    ));
    end(running);
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
    let line = line_3(" ", " ", &running.id().to_string());
    user(&format!("{line} >out 2>&1")).finish(SOON).ok();
    let inside = format!("nsenter -t {} -U -n --preserve-credentials", running.id());
    assert_eq!(
        user(&format!(
            "{inside} curl -sS -m 60 http://{PEER4}/3000 | wc -c"
        ))
        .finish(SOON)
        .ok(),
        "3000\n"
    );
    end(running);
}
