//! The command lines of podman and buildah, word for word, and what these callers look at next.
//!
//! `client_life.rs` has how the process behaves towards them, `client_addresses.rs` who reaches whom by which address,
//! `client_errors.rs` what they are told when it fails, `rootlesskit.rs` that caller.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::differences::established;
use crate::exec::{Output, SOON, nothing_left, poll_until, processes};
use crate::harness::{PASTA, need, tests};
use crate::reach::{Protocol, Server, closed, reachable_within};
use crate::servers::dns;
use crate::world::{DNS4, GATEWAY4, GATEWAY6, HOST4, HOST6, Netns, PEER4, PEER6, World, accept};

tests![
    podman_run,
    podman_run_options,
    podman_ports,
    podman_both_protocols,
    ready_at_exit,
    podman_auto_ports,
    ports_accumulate,
    later_one_wins,
    one_address_per_family,
    podman_man_page_example,
    podman_rootless_netns,
    podman_restart,
    podman_info,
    buildah,
];

/// The words of a command line with `N` for the namespace; run as the caller does: stdin, stdout and stderr
/// one pipe, waiting for the exit *and* for the end of the output, which must be empty.
#[track_caller]
pub fn call(w: &World, line: &str, target: &str) {
    let output = try_call(w, line, target);
    assert_eq!((output.code, output.both().as_str()), (0, ""), "{line}");
}

/// The same, whatever comes of it.
#[track_caller]
pub fn try_call(w: &World, line: &str, target: &str) -> Output {
    w.host.try_sh(&format!("{} 2>&1", words(line, target)))
}

/// A command line with the namespace and the program under test in it.
pub fn words(line: &str, target: &str) -> String {
    line.replace(" N ", &format!(" {target} "))
        .replace("pasta ", &format!("{PASTA} "))
}

/// What podman checks in the namespace: an address that is not loopback, usable at once.
#[track_caller]
pub fn usable(ns: &Netns) {
    let addresses = ns.sh("ip -o addr show scope global");
    assert!(
        addresses.contains("inet ") || addresses.contains("inet6 "),
        "no address: {addresses}"
    );
    assert!(!addresses.contains("tentative"), "{addresses}");
}

/// Where podman keeps the namespace of a container.
pub fn podman_namespace() -> Netns {
    fs::create_dir_all("/run/netns/user/1000/netns").expect("tmpfs");
    Netns::new("user/1000/netns/netns-5f0c2f4e-1b6e-0d0a-9d6f-0a1b2c3d4e5f")
}

pub const PODMAN: &str = "pasta --config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns N --map-guest-addr 169.254.1.2";

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

/// An option that podman is given; what is seen with it, and what is not.
const OPTIONS: [(&str, &str, &str); 8] = [
    ("-4", "inet 198.51.100.1/", "inet6 2001:db8"),
    ("-6", "inet6 2001:db8:51::1/", "inet 198.51"),
    ("-m 1280", "mtu 1280", "mtu 65520"),
    ("-a 192.0.2.1", "inet 192.0.2.1/", "inet 198.51"),
    ("-a 2001:db8::1", "2001:db8::1/64", "2001:db8:51::1"),
    (
        "-a 192.0.2.2 -g 192.0.2.1",
        "default via 192.0.2.1",
        GATEWAY4,
    ),
    (
        "-a 2001:db8::2 -g 2001:db8::1",
        "default via 2001:db8::1 ",
        GATEWAY6,
    ),
    (
        "-a 192.168.0.2 -g 192.168.0.1 -n 24",
        "192.168.0.2/24",
        "inet 198.51",
    ),
];

fn podman_run_options() {
    let w = World::direct();
    for (options, expect, not) in OPTIONS {
        let ns = Netns::new("each");
        call(
            &w,
            &PODMAN.replace("--config-net", &format!("--config-net {options}")),
            &ns.path(),
        );
        usable(&ns);
        let seen = ns.sh("ip addr; ip route; ip -6 route");
        assert!(
            seen.contains(expect) && !seen.contains(not),
            "{options}: `{expect}`, not `{not}`:\n{seen}"
        );
        Netns::retire("each");
        assert!(
            poll_until(SOON, || processes().is_empty()),
            "{options}: it does not go"
        );
    }
}

/// A TCP range and a UDP port in one line.
fn podman_both_protocols() {
    let w = World::direct();
    let ns = podman_namespace();
    let line = "pasta --config-net -t 8210-8214:9210-9214 -u 127.0.0.1/8220-8220:53-53 --dns-forward 169.254.1.1 -T none -U none --no-map-gw --quiet --netns N --map-guest-addr 169.254.1.2";
    call(&w, line, &ns.path());
    let _servers: Vec<Server> = (9210..=9214)
        .map(|port| Server::tcp(&ns, ("::", port)))
        .chain([Server::udp(&ns, ("::", 53))])
        .collect();
    for port in 8210..=8214 {
        reachable_within(SOON, Protocol::Tcp, &w.peer, (HOST6, port));
    }
    reachable_within(SOON, Protocol::Udp, &w.host, ("127.0.0.1", 8220));
    closed(Protocol::Udp, &w.peer, (HOST4, 8220));
    closed(Protocol::Tcp, &w.peer, (HOST4, 8215));
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

/// "At exit of the parent the namespace is fully configured": nothing here waits for anything.
fn ready_at_exit() {
    let w = World::direct();
    for _ in 0..5 {
        let ns = podman_namespace();
        let line = PODMAN
            .replace(
                "--config-net",
                "--config-net --pid /run/t/pid -t 8080-8080:80-80 -u 8080-8080:80-80",
            )
            .replace(" -t none -u none", "");
        call(&w, &line, &ns.path());
        assert!(w.host.sh("ss -Hltn").contains(":8080 "), "not bound");
        assert!(w.host.sh("ss -Hlun").contains(":8080 "), "not bound");
        // With IPv6 an address is there before it is the namespace's own.
        let own = ns.sh("ip -6 route show table local type local");
        assert!(own.contains(&format!("local {HOST6} dev host0")), "{own}");
        let seen = ns.sh("ip -o link; ip -o addr; ip route; ip -6 route");
        for part in [
            "lo: <LOOPBACK,UP,LOWER_UP>",
            "host0: <BROADCAST,MULTICAST,UP,LOWER_UP>",
            "mtu 65520",
            &format!("inet {HOST4}/24 "),
            &format!("inet6 {HOST6}/64 scope global"),
            &format!("default via {GATEWAY4} dev host0"),
            &format!("default via {GATEWAY6} dev host0"),
        ] {
            assert!(seen.contains(part), "`{part}` is not in:\n{seen}");
        }
        // The established program leaves the link-local one to the kernel, which takes its time.
        assert!(established() || !seen.contains("tentative"), "{seen}");
        let pid = fs::read_to_string("/run/t/pid").expect("a PID file");
        let pid = Pid::from_raw(pid.trim().parse().expect("a PID"));
        kill(pid, Signal::SIGTERM).expect("it is running");
        nothing_left();
        Netns::retire(&ns.name);
    }
}

/// "`-t`, `-u` accumulate", and the same port may be published for both.
fn ports_accumulate() {
    let w = World::direct();
    let ns = podman_namespace();
    let line = PODMAN
        .replace(
            "--config-net",
            "--config-net -t 8201-8201:80-80 -u 8201-8201:80-80 -t 8210-8214:9210-9214 -t 127.0.0.1/8301-8301:80-80 -t ::1/8302-8302:80-80 -u ::1/8303-8303:80-80",
        )
        .replace(" -t none -u none", "");
    call(&w, &line, &ns.path());
    let _servers = [
        Server::tcp(&ns, ("::", 80)),
        Server::udp(&ns, ("::", 80)),
        Server::tcp(&ns, ("::", 9210)),
        Server::tcp(&ns, ("::", 9214)),
    ];
    for (protocol, client, to) in [
        (Protocol::Tcp, &w.peer, (HOST4, 8201)),
        (Protocol::Tcp, &w.peer, (HOST6, 8201)),
        (Protocol::Udp, &w.peer, (HOST4, 8201)),
        (Protocol::Tcp, &w.peer, (HOST4, 8210)),
        (Protocol::Tcp, &w.host, ("127.0.0.1", 8214)),
        (Protocol::Tcp, &w.host, ("127.0.0.1", 8301)),
        (Protocol::Tcp, &w.host, ("::1", 8302)),
        (Protocol::Udp, &w.host, ("::1", 8303)),
    ] {
        reachable_within(SOON, protocol, client, to);
    }
    // Published on loopback only.
    closed(Protocol::Tcp, &w.peer, (HOST4, 8301));
    closed(Protocol::Tcp, &w.host, ("127.0.0.1", 8302));
    closed(Protocol::Udp, &w.peer, (HOST6, 8303));
}

/// "An option given twice: the later one wins, containers.conf first, command line second."
fn later_one_wins() {
    let w = World::direct();
    let ns = podman_namespace();
    let twice = "--config-net -I first -m 1300 -a 192.0.2.1 --ns-mac-addr 9a:dd:31:ea:92:98 -I myname -m 1400 -a 192.0.2.2 --ns-mac-addr aa:bb:cc:dd:ee:ff";
    call(&w, &PODMAN.replace("--config-net", twice), &ns.path());
    let seen = ns.sh("ip link; ip addr");
    for part in ["myname: ", "aa:bb:cc:dd:ee:ff", "mtu 1400", "192.0.2.2/"] {
        assert!(seen.contains(part), "`{part}` is not in:\n{seen}");
    }
    for part in ["first: ", "9a:dd:31:ea:92:98", "mtu 1300"] {
        assert!(!seen.contains(part), "`{part}` is in:\n{seen}");
    }
}

/// "`-a`, `-g` may be repeated, one per family."
fn one_address_per_family() {
    let w = World::direct();
    let ns = podman_namespace();
    let both = "--config-net -a 192.0.2.2 -a 2001:db8::2 -g 192.0.2.1 -g 2001:db8::1 -n 24";
    call(&w, &PODMAN.replace("--config-net", both), &ns.path());
    let seen = ns.sh("ip addr; ip route; ip -6 route");
    for part in [
        "192.0.2.2/24",
        "2001:db8::2/64",
        "default via 192.0.2.1",
        "default via 2001:db8::1",
    ] {
        assert!(seen.contains(part), "`{part}` is not in:\n{seen}");
    }
    ns.sh(&format!(
        "ping -n -c 1 -W 30 {PEER4} && ping -6 -n -c 1 -W 30 {PEER6}"
    ));
}

/// What podman's manual offers instead of slirp4netns: the same addresses; and `-m 1500` for those who want that.
fn podman_man_page_example() {
    need("dig");
    let w = World::direct();
    dns(&w.peer, DNS4);
    for mtu in ["", "-m 1500 "] {
        let ns = podman_namespace();
        call(
            &w,
            &format!(
                "pasta --config-net -I tap0 --ipv4-only -a 10.0.2.0 -n 24 -g 10.0.2.2 --dns-forward 10.0.2.3 {mtu}--no-ndp --no-dhcpv6 --no-dhcp -t none -u none -T none -U none --no-map-gw --quiet --netns N --map-guest-addr 169.254.1.2"
            ),
            &ns.path(),
        );
        usable(&ns);
        assert!(
            ns.sh("dig +short @10.0.2.3 www.example.org")
                .contains("192.0.2.80")
        );
        let link = ns.sh("ip link show tap0");
        let mtu = if mtu.is_empty() {
            "mtu 65520"
        } else {
            "mtu 1500"
        };
        assert!(link.contains(mtu), "{link}");
        ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
        Netns::retire(&ns.name);
        nothing_left();
    }
}

/// Rootless bridge networks: a PID file, checked with kill(pid, 0); a new pasta in the old namespace when that one is
/// dead; in the end umount, unlink, SIGTERM and `rm -rf`.
fn podman_rootless_netns() {
    let w = World::direct();
    let dir = "/run/netns/containers/networks/rootless-netns";
    fs::create_dir_all(dir).expect("tmpfs");
    let ns = Netns::new("containers/networks/rootless-netns/rootless-netns");
    let file = format!("{dir}/rootless-netns-conn.pid");
    let line = PODMAN.replace("--config-net", &format!("--config-net --pid {file}"));
    let pid = || {
        let text = fs::read_to_string(&file).expect("a PID file");
        Pid::from_raw(text.trim().parse().expect("a PID"))
    };
    for _ in 0..3 {
        call(&w, &line, &ns.path());
        kill(pid(), None).expect("it is running");
        usable(&ns);
        ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
        kill(pid(), Signal::SIGTERM).expect("it is running");
        nothing_left();
    }
    call(&w, &line, &ns.path());
    let pid = pid();
    Netns::retire(&ns.name);
    kill(pid, Signal::SIGTERM).ok(); // it may have gone already
    fs::remove_dir_all(dir).expect("nothing keeps it busy");
    nothing_left();
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
