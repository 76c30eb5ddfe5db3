//! The command lines of podman, buildah and rootlesskit, word for word, and what these callers look at next.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{SOON, nothing_left, poll_until, processes, spawn};
use crate::harness::{PASTA, need, need_tap_for_users, tests};
use crate::reach::{Protocol, Server, reachable_within};
use crate::servers::{dns, echo, http};
use crate::world::{DNS4, HOST4, HOST6, Netns, PEER4, PEER6, World, accept, shell};

tests![
    podman_run,
    podman_run_options,
    podman_ports,
    podman_port_in_use,
    podman_auto_ports,
    podman_map_gw,
    podman_option_twice,
    podman_man_page_example,
    podman_rootless_netns,
    podman_restart,
    podman_info,
    buildah,
    rootlesskit_2,
    rootlesskit_3,
    rootlesskit_implicit_ports,
    rootlesskit_detached_netns;
    root: rootlesskit_as_user,
];

/// The words of a command line with `N` for the namespace; run as the caller does: stdin, stdout and stderr
/// one pipe, waiting for the exit *and* for the end of the output, which must be empty.
#[track_caller]
fn call(w: &World, line: &str, target: &str) {
    let line = line
        .replace(" N ", &format!(" {target} "))
        .replace("pasta ", &format!("{PASTA} "));
    let output = w.host.try_sh(&format!("{line} 2>&1"));
    assert_eq!((output.code, output.both().as_str()), (0, ""), "{line}");
}

/// What podman checks in the namespace: an address that is not loopback, usable at once.
#[track_caller]
fn usable(ns: &Netns) {
    let addresses = ns.sh("ip -o addr show scope global");
    assert!(
        addresses.contains("inet ") || addresses.contains("inet6 "),
        "no address: {addresses}"
    );
    assert!(!addresses.contains("tentative"), "{addresses}");
}

fn podman_namespace() -> Netns {
    fs::create_dir_all("/run/netns/user/1000/netns").expect("tmpfs");
    Netns::new("user/1000/netns/netns-5f0c2f4e-1b6e-0d0a-9d6f-0a1b2c3d4e5f")
}

const PODMAN: &str = "pasta --config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns N --map-guest-addr 169.254.1.2";

fn podman_run() {
    need("dig");
    let w = World::direct();
    dns(&w.peer, DNS4);
    let own = w.host.listen((HOST4, 1000));
    let ns = podman_namespace();
    call(&w, PODMAN, &ns.path());
    usable(&ns);
    ns.sh(&format!(
        "ping -n -c 1 -W 30 {PEER4} && ping -6 -n -c 1 -W 30 {PEER6}"
    ));
    assert!(
        ns.sh("dig +short @169.254.1.1 www.example.org")
            .contains("192.0.2.80")
    );
    let _near = ns.connect(("169.254.1.2", 1000));
    assert_eq!(accept(&own).1.ip().to_string(), HOST4);
    // The end of the container.
    nix::mount::umount2(ns.path().as_str(), nix::mount::MntFlags::MNT_DETACH).expect("umount");
    fs::remove_file(ns.path()).expect("not busy");
    nothing_left();
}

fn podman_run_options() {
    let w = World::direct();
    for (options, expect) in [
        ("-4", HOST4),
        ("-6", "2001:db8:51::1"),
        ("-m 1280", "mtu 1280"),
        ("-a 192.0.2.1", "192.0.2.1/"),
        ("-a 2001:db8::1", "2001:db8::1/64"),
        ("-a 192.0.2.2 -g 192.0.2.1", "192.0.2.2/"),
        ("-a 2001:db8::2 -g 2001:db8::1", "2001:db8::2/64"),
        ("-a 192.168.0.2 -g 192.168.0.1 -n 24", "192.168.0.2/24"),
        ("--dns-forward 198.51.100.1", HOST4),
    ] {
        let ns = Netns::new("each");
        call(
            &w,
            &PODMAN.replace("--config-net", &format!("--config-net {options}")),
            &ns.path(),
        );
        usable(&ns);
        let seen = ns.sh("ip addr");
        assert!(
            seen.contains(expect),
            "{options}: `{expect}` is not in:\n{seen}"
        );
        Netns::retire("each");
        assert!(
            poll_until(SOON, || processes().is_empty()),
            "{options}: it does not go"
        );
    }
}

/// Published ports as podman writes them: what, where a client finds it, what is bound inside.
fn podman_ports() {
    let w = World::direct();
    let own4 = format!("{HOST4}%host0/5064:5064");
    let own6 = format!("{HOST6}/5064-5064:5065-5065");
    for (option, value, port, inside) in [
        ("-t", "8201-8201:80-80", (HOST4, 8201), 80),
        ("-t", "8210-8214:9210-9214", (HOST6, 8214), 9214),
        ("-t", "127.0.0.1/8220-8220:53-53", ("127.0.0.1", 8220), 53),
        ("-u", "127.0.0.1/8220-8220:53-53", ("127.0.0.1", 8220), 53),
        ("-u", "0.0.0.0/8220-8220:53-53", (HOST4, 8220), 53),
        ("-t", &own6, (HOST6, 5064), 5065),
        ("--tcp-ports", &own4, (HOST4, 5064), 5064),
        ("--udp-ports", "::1%lo/5064:5064", ("::1", 5064), 5064),
    ] {
        let ns = Netns::new("each");
        let line = PODMAN.replace("--config-net", &format!("--config-net {option} {value}"));
        // It adds "none" only for protocols without a published port.
        let (protocol, line) = match option.trim_start_matches('-').as_bytes()[0] {
            b't' => (Protocol::Tcp, line.replace(" -t none", "")),
            _ => (Protocol::Udp, line.replace(" -u none", "")),
        };
        call(&w, &line, &ns.path());
        let _server = Server::new(protocol, &ns, ("::", inside));
        let client = if port.0.ends_with(".1") && port.0 != HOST4 || port.0 == "::1" {
            &w.host
        } else {
            &w.peer
        };
        reachable_within(SOON, protocol, client, port);
        Netns::retire("each");
        assert!(
            poll_until(SOON, || processes().is_empty()),
            "{option} {value}: it does not go"
        );
    }
}

/// podman passes on what it says, and callers look for this in it.
fn podman_port_in_use() {
    let w = World::direct();
    let _busy = w.host.listen(("::", 8777));
    let ns = podman_namespace();
    let line = PODMAN
        .replace("pasta ", &format!("{PASTA} "))
        .replace(" -t none", " -t 8777-8777:80-80")
        .replace(" N ", &format!(" {} ", ns.path()));
    let output = w.host.try_sh(&format!("{line} 2>&1"));
    assert_eq!(output.code, 1);
    assert!(
        output.out.contains("port */8777: Address already in use\n"),
        "{}",
        output.out
    );
    nothing_left();
}

/// `--network pasta:-t,auto,-u,auto,-T,auto,-U,auto`
fn podman_auto_ports() {
    let w = World::direct();
    let ns = podman_namespace();
    let line = PODMAN.replace(
        " -t none -u none -T none -U none",
        " -t auto -u auto -T auto -U auto",
    );
    call(&w, &line, &ns.path());
    let _inside = Server::tcp(&ns, (HOST4, 8080));
    reachable_within(SOON, Protocol::Tcp, &w.peer, (HOST4, 8080));
    let _outside = Server::tcp(&w.host, ("127.0.0.1", 9090));
    reachable_within(SOON, Protocol::Tcp, &ns, ("127.0.0.1", 9090));
}

fn podman_map_gw() {
    let w = World::direct();
    echo(&w.host, ("127.0.0.1", 1000));
    let ns = podman_namespace();
    call(&w, &PODMAN.replace("--no-map-gw ", ""), &ns.path());
    ns.connect(("198.51.100.2", 1000));
}

fn podman_option_twice() {
    let w = World::direct();
    let ns = podman_namespace();
    call(&w, &PODMAN.replace("--config-net", "--config-net -I myname --ns-mac-addr 9a:dd:31:ea:92:98 --ns-mac-addr aa:bb:cc:dd:ee:ff"), &ns.path());
    let seen = ns.sh("ip link show myname");
    assert!(seen.contains("aa:bb:cc:dd:ee:ff"), "{seen}");
}

fn podman_man_page_example() {
    need("dig");
    let w = World::direct();
    dns(&w.peer, DNS4);
    let ns = podman_namespace();
    call(
        &w,
        "pasta --config-net -I tap0 --ipv4-only -a 10.0.2.0 -n 24 -g 10.0.2.2 --dns-forward 10.0.2.3 --no-ndp --no-dhcpv6 --no-dhcp -t none -u none -T none -U none --no-map-gw --quiet --netns N --map-guest-addr 169.254.1.2",
        &ns.path(),
    );
    usable(&ns);
    assert!(
        ns.sh("dig +short @10.0.2.3 www.example.org")
            .contains("192.0.2.80")
    );
    ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

/// Rootless bridge networks: a PID file, checked with kill(pid, 0), then SIGTERM.
fn podman_rootless_netns() {
    let w = World::direct();
    let ns = podman_namespace();
    for _ in 0..2 {
        call(
            &w,
            &PODMAN.replace(
                "--config-net",
                "--config-net --pid /run/t/rootless-netns-conn.pid",
            ),
            &ns.path(),
        );
        let pid: i32 = fs::read_to_string("/run/t/rootless-netns-conn.pid")
            .expect("a PID file")
            .trim()
            .parse()
            .expect("a PID");
        kill(Pid::from_raw(pid), None).expect("it is running");
        usable(&ns);
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is running");
        nothing_left();
    }
}

/// `podman restart`: the next one starts while the last one is still noticing.
fn podman_restart() {
    let w = World::direct();
    for _ in 0..5 {
        let ns = Netns::new("each");
        call(&w, PODMAN, &ns.path());
        ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
        Netns::retire("each");
    }
    nothing_left();
}

fn podman_info() {
    let w = World::direct();
    let output = w.pasta(&["--version"]);
    assert_eq!((output.code, output.err.as_str()), (0, ""));
    assert!(output.out.starts_with("pasta "), "{}", output.out);
}

/// The namespace of a process, by its procfs path; pasta goes when that process does.
fn buildah() {
    let w = World::direct();
    let holder = w.host.start("exec unshare -n sleep 1000");
    let path = format!("/proc/{}/ns/net", holder.id());
    let own = fs::read_link("/proc/self/ns/net").expect("procfs");
    assert!(
        poll_until(SOON, || fs::read_link(&path).is_ok_and(|l| l != own)),
        "unshare does not start"
    );
    call(
        &w,
        "pasta --config-net --mtu 2000 --ns-mac-addr 9a:dd:31:ea:92:98 --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns N --map-guest-addr 169.254.1.2",
        &path,
    );
    let seen = w.host.sh(&format!(
        "nsenter -t {} -n sh -c 'ip link; ping -n -c 1 -W 30 {PEER4}'",
        holder.id()
    ));
    assert!(
        seen.contains("mtu 2000") && seen.contains("9a:dd:31:ea:92:98"),
        "{seen}"
    );
    kill(Pid::from_raw(holder.id()), Signal::SIGKILL).expect("it runs");
    holder.finish(SOON);
    nothing_left();
}

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
fn rootlesskit_2() {
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

const ROOTLESSKIT_3: &str = "pasta --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=none --udp-ports=none --host-lo-to-ns-lo";

#[track_caller]
fn start_3(w: &World, target: &str) {
    let line = ROOTLESSKIT_3.replace("pasta ", &format!("{PASTA} "));
    w.host.sh(&format!("{PASTA} --version >/dev/null; {PASTA} --host-lo-to-ns-lo --version >/dev/null; {line} {target} >out 2>&1"));
}

fn rootlesskit_3() {
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
fn rootlesskit_implicit_ports() {
    let w = World::direct();
    let (running, _) = child(&w.host, "true");
    let line = ROOTLESSKIT_3
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
fn rootlesskit_detached_netns() {
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
fn rootlesskit_as_user() {
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
    let line = ROOTLESSKIT_3.replace("pasta ", &format!("{PASTA} "));
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
