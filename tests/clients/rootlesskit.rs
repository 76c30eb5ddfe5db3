//! rootlesskit: a child with namespaces of its own, whose parent has pasta connect them.
//!
//! rootlesskit runs pasta as the ordinary user, outside, and has it join the child's user namespace. Debian's version
//! (2.0.2) makes a persistent tap, configures it itself and starts pasta in the foreground, without waiting for it:
//! so all that is asked here is asked until it holds. Newer ones ask pasta what it can do, have it configure the
//! interface and go to the background: their calls are made here word for word, as their parent makes them, around a
//! child that is made as theirs is.

use std::time::Duration;

use crate::container::{contains, tcp, tell, udp};
use crate::exec::{Running, SOON, poll_until};
use crate::harness::tests;
use crate::machine::{Machine, PATIENCE};
use crate::servers::{PAGE, http};
use crate::service::{WEB4, WEB6};
use crate::world::{HOST4, Netns, PEER4};

tests![
    ; root: connected, host_loopback, shape, detached, implicit_ports, no_ports, endings, killed_parent, killed_pasta, again,
    newer, newer_ports, newer_detached, containers_below, without_root_inside
];

const KIT: &str = "rootlesskit --net=pasta --copy-up=/etc --copy-up=/run";

/// `rootlesskit OPTIONS sh -c SCRIPT`, whose output is what the script prints.
#[track_caller]
fn inside(m: &Machine, options: &str, script: &str) -> String {
    m.user(&format!("{KIT} {options} sh -c '{script}' 2>kit.log"))
}

/// Everything with the defaults: the child's own configuration, names, and the way out, over IPv4 alone.
fn connected() {
    let m = Machine::new();
    let seen = inside(
        &m,
        "--disable-host-loopback",
        &format!(
            "ip -o -4 addr; ip -o link; ip route; cat /etc/resolv.conf; ping -n -c 1 -w 30 {PEER4}; \
             curl -sS -m 30 http://{WEB4}/; curl -sS -m 60 http://a.name/; curl -sS -m 60 http://a.name/big?3000000 | wc -c; \
             dig +short +tries=9 a.name; dig +short +tcp aaaa a.name; curl -gsS -m 5 http://[{WEB6}]/ || echo no IPv6"
        ),
    );
    contains(
        &seen,
        &[
            "inet 10.0.2.100/24 ",
            "tap0: <",
            "mtu 65520 ",
            "default via 10.0.2.2 dev tap0",
            "nameserver 10.0.2.3\n",
            "1 received",
            "\n3000000\n",
            &format!("\n{WEB4}\n{WEB6}\nno IPv6\n"),
        ],
    );
    assert_eq!(seen.matches(PAGE).count(), 2, "{seen}");
    m.clean();
}

/// The host's loopback is at the gateway, unless that is forbidden; its address is there in any case.
fn host_loopback() {
    let m = Machine::new();
    http(&m.world.host, ("127.0.0.1", 8000));
    http(&m.world.host, (HOST4, 8001));
    let script = |patience| {
        format!(
            "curl -sS -m 30 http://{HOST4}:8001/; echo $?; curl -s -m {patience} http://10.0.2.2:8000/; echo $?"
        )
    };
    let seen = inside(&m, "", &script(30));
    assert_eq!(seen, format!("{PAGE}0\n{PAGE}0\n"));
    let seen = inside(&m, "--disable-host-loopback", &script(1));
    assert!(
        seen.starts_with(&format!("{PAGE}0\n")) && !seen.ends_with("\n0\n"),
        "{seen}"
    );
    m.clean();
}

/// --mtu, --cidr and --ifname, and namespaces of every other kind around it.
fn shape() {
    let m = Machine::new();
    let options = "--disable-host-loopback --mtu=1400 --cidr=10.99.0.0/16 --ifname=eth7 --pidns --cgroupns --utsns --ipcns";
    let seen = inside(
        &m,
        options,
        "ip -o -4 addr; ip -o link; ip route; cat /etc/resolv.conf; curl -sS -m 60 http://a.name/",
    );
    contains(
        &seen,
        &[
            "inet 10.99.0.100/16 ",
            "eth7: <",
            "mtu 1400 ",
            "default via 10.99.0.2 dev eth7",
            "nameserver 10.99.0.3\n",
            PAGE,
        ],
    );
    m.clean();
}

/// --detach-netns: the child stays in the host's network and finds the other by its path.
fn detached() {
    let m = Machine::new();
    let seen = inside(
        &m,
        "--disable-host-loopback --detach-netns",
        &format!(
            "ip -o -4 addr; nsenter -n$ROOTLESSKIT_STATE_DIR/netns sh -c \"ip -o -4 addr; curl -sS -m 60 http://{WEB4}/\""
        ),
    );
    contains(&seen, &[HOST4, "inet 10.0.2.100/24 ", PAGE]);
    m.clean();
}

/// A child in the background that does nothing: its parent, its process, its network namespace.
#[track_caller]
fn idle(m: &Machine, options: &str) -> (Running, i32, Netns) {
    let script =
        format!("exec {KIT} --disable-host-loopback {options} sleep 1000000 >kit.log 2>&1");
    let running = m.start(&script);
    let pid = sleeper(m).unwrap_or_else(|| panic!("{}", m.user("cat kit.log")));
    (running, pid, Netns::of(pid))
}

/// The process that does nothing, when it does so.
fn sleeper(m: &Machine) -> Option<i32> {
    let mut pid = None;
    poll_until(PATIENCE, || {
        let found = m.world.host.try_sh("pgrep -fx 'sleep 1000000'").out;
        pid = found.trim().parse().ok();
        pid.is_some()
    });
    pid
}

#[track_caller]
fn soon(what: &str, condition: impl FnMut() -> bool) {
    assert!(poll_until(PATIENCE, condition), "{what}: not in time");
}

/// The child's interface has a carrier: pasta is there.
#[track_caller]
fn up(ns: &Netns) {
    soon("a carrier", || {
        ns.sh("ip -o link show tap0").contains("LOWER_UP")
    });
}

/// Ports that something inside listens on, and for as long as it does.
fn implicit_ports() {
    let m = Machine::new();
    let (running, pid, ns) = idle(&m, "--port-driver=implicit");
    let (host, peer) = (&m.world.host, &m.world.peer);
    for (address, port) in [("0.0.0.0", 8080), ("10.0.2.100", 8082), ("0.0.0.0", 90)] {
        tell(&ns, (address, port));
    }
    for (client, address) in [(host, "127.0.0.1"), (host, HOST4), (peer, HOST4)] {
        for port in [8080, 8082] {
            let what = format!("{address}:{port}");
            soon(&what, || {
                tcp(client, (address, port))
                    .is_ok_and(|s| s.to.to_string() == format!("10.0.2.100:{port}"))
            });
            soon(&what, || udp(client, (address, port)).is_ok());
        }
        // A user may not bind it.
        tcp(client, (address, 90)).expect_err("a privileged port");
    }
    m.root(&format!("kill -9 {pid}"));
    running.finish(PATIENCE);
    m.clean();
}

/// With --port-driver=none nobody gets in, whatever listens inside.
fn no_ports() {
    let m = Machine::new();
    let (running, pid, ns) = idle(&m, "--port-driver=none");
    up(&ns);
    tell(&ns, ("0.0.0.0", 8080));
    // As long as it takes to find a port where ports are looked for.
    let open = poll_until(Duration::from_secs(3), || {
        tcp(&m.world.host, ("127.0.0.1", 8080)).is_ok()
            || tcp(&m.world.peer, (HOST4, 8080)).is_ok()
            || udp(&m.world.host, ("127.0.0.1", 8080)).is_ok()
    });
    assert!(!open, "port 8080 is open");
    m.root(&format!("kill -9 {pid}"));
    running.finish(PATIENCE);
    m.clean();
}

/// The child's status is the parent's, and whichever way it ends, pasta ends.
fn endings() {
    let m = Machine::new();
    let output = m.try_user(&format!("{KIT} --disable-host-loopback sh -c 'exit 7'"));
    assert_eq!(output.code, 7, "{}", output.both());
    m.clean();
    for (victim, options) in [("child", ""), ("child", "--pidns"), ("parent", "")] {
        let (running, pid, ns) = idle(&m, options);
        up(&ns);
        match victim {
            "child" => m.root(&format!("kill -9 {pid}")),
            _ => m.root(&format!("kill {}", running.id())),
        };
        let output = running.finish(PATIENCE);
        assert_ne!(output.code, 0, "{victim} {options}");
        m.clean();
    }
}

/// With its parent killed, and so never told anything, pasta goes with the child.
fn killed_parent() {
    let m = Machine::new();
    let (running, _, ns) = idle(&m, "--port-driver=implicit");
    up(&ns);
    tell(&ns, ("0.0.0.0", 8080));
    soon("port 8080", || tcp(&m.world.peer, (HOST4, 8080)).is_ok());
    m.root(&format!("kill -9 {}", running.id()));
    running.finish(PATIENCE);
    // What the parent would have removed.
    m.root("rm -rf /tmp/rootlesskit*");
    m.clean();
}

/// With pasta killed, the child goes on without a network; its interface stays.
fn killed_pasta() {
    let m = Machine::new();
    let (running, pid, ns) = idle(&m, "");
    up(&ns);
    let pastas = m.pastas();
    let first = pastas.first().expect("it is connected");
    m.root(&format!("kill -9 {first}"));
    soon("the end of pasta", || m.pastas().is_empty());
    contains(&ns.sh("ip -o -4 addr show tap0"), &["10.0.2.100/24"]);
    m.root(&format!("kill -9 {pid}"));
    running.finish(PATIENCE);
    m.clean();
}

/// One after the other with the same port, and two at a time.
fn again() {
    let m = Machine::new();
    for _ in 0..3 {
        let (running, pid, ns) = idle(&m, "--port-driver=implicit");
        tell(&ns, ("0.0.0.0", 8080));
        soon("port 8080", || tcp(&m.world.peer, (HOST4, 8080)).is_ok());
        m.root(&format!("kill -9 {pid}"));
        running.finish(PATIENCE);
    }
    let each = format!("{KIT} --disable-host-loopback curl -sS -m 60 http://a.name/");
    assert_eq!(
        m.user(&format!(
            "for i in 1 2 3 4; do {each} & done 2>kit.log; wait"
        )),
        PAGE.repeat(4)
    );
    m.clean();
}

// ------------------------------------------------------------------ the newer ones' calls

/// A child as that of 2.3.2 and later: its user namespace, with subordinate ids, owns all others.
#[track_caller]
fn child(m: &Machine, prepare: &str) -> (Running, i32, Netns) {
    let running = m.start(&format!(
        "exec unshare --user --map-root-user --map-auto --net --mount sh -c '{prepare} exec sleep 1000000' >kit.log 2>&1"
    ));
    let pid = sleeper(m).unwrap_or_else(|| panic!("{}", m.user("cat kit.log")));
    (running, pid, Netns::of(pid))
}

/// What its parent does then, in the same words; the output is one pipe and read to its end.
#[track_caller]
fn connect(m: &Machine, ports: &str, target: &str) {
    assert!(m.user("pasta --version 2>&1").starts_with("pasta "));
    m.user("pasta --host-lo-to-ns-lo --version 2>&1");
    let unknown = m.try_user("pasta --bogus --version 2>&1");
    assert_eq!(unknown.code, 1, "{}", unknown.out);
    m.user(&format!(
        "pasta --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 \
         --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports={ports} --udp-ports={ports} --host-lo-to-ns-lo \
         {target} 2>&1"
    ));
}

/// The words to run something in the child.
fn enter(pid: i32) -> String {
    format!("nsenter -t {pid} -U -n -m --preserve-credentials")
}

/// Nothing says goodbye: pasta goes with the last process of the namespace.
#[track_caller]
fn end(m: &Machine, running: Running, pid: i32) {
    m.root(&format!("kill -9 {pid}"));
    running.finish(PATIENCE);
    m.clean();
}

/// The interface is pasta's and ready when its parent has exited.
fn newer() {
    let m = Machine::new();
    let (running, pid, _) = child(&m, "");
    connect(&m, "none", &pid.to_string());
    let seen = m.user(&format!(
        "{} sh -c 'ip link set lo up; ip -o -4 addr; ip -o link; ip route; dig +short a.name @10.0.2.3; \
         curl -sS -m 30 http://{WEB4}/; ping -n -c 1 -w 30 {PEER4}'",
        enter(pid)
    ));
    contains(
        &seen,
        &[
            "inet 10.0.2.100/24 ",
            "mtu 65520 ",
            "default via 10.0.2.2 dev tap0",
            &format!("\n{WEB4}\n"),
            PAGE,
            "1 received",
        ],
    );
    end(&m, running, pid);
}

/// Ports bound inside to loopback are found on the host's loopback and nowhere else; others everywhere.
fn newer_ports() {
    let m = Machine::new();
    let (running, pid, ns) = child(&m, "ip link set lo up;");
    connect(&m, "auto", &pid.to_string());
    tell(&ns, ("127.0.0.1", 8081));
    tell(&ns, ("0.0.0.0", 8080));
    let (host, peer) = (&m.world.host, &m.world.peer);
    for port in [8080, 8081] {
        soon("from loopback", || {
            tcp(host, ("127.0.0.1", port))
                .is_ok_and(|s| s.to.to_string() == format!("127.0.0.1:{port}"))
        });
        soon("UDP from loopback", || {
            udp(host, ("127.0.0.1", port)).is_ok()
        });
    }
    let seen = tcp(peer, (HOST4, 8080)).expect("open to all");
    assert_eq!(seen.to.to_string(), "10.0.2.100:8080");
    tcp(peer, (HOST4, 8081)).expect_err("bound to loopback");
    end(&m, running, pid);
}

/// --detach-netns: a namespace by its path in the child's mount namespace.
fn newer_detached() {
    let m = Machine::new();
    let (running, pid, _) = child(
        &m,
        "mount -t tmpfs none /tmp; touch /tmp/netns; unshare --net mount --bind /proc/self/ns/net /tmp/netns;",
    );
    let proc = format!("/proc/{pid}");
    connect(
        &m,
        "none",
        &format!("--userns={proc}/ns/user --netns={proc}/root/tmp/netns"),
    );
    let page = m.user(&format!(
        "{} nsenter --net=/tmp/netns curl -sS -m 30 http://{WEB4}/",
        enter(pid)
    ));
    assert_eq!(page, PAGE);
    m.user(&format!(
        "{} sh -c 'umount -l /tmp/netns && rm /tmp/netns'",
        enter(pid)
    ));
    end(&m, running, pid);
}

/// A rootless Docker: containers on a bridge below the child's namespace, one of which publishes
/// `-p 127.0.0.1:8081:80` and `-p 8080:80` by a proxy in the child.
fn containers_below() {
    let m = Machine::new();
    let (running, pid, ns) = child(&m, "ip link set lo up;");
    connect(&m, "auto", &pid.to_string());
    let below = m.start(&format!("exec {} unshare --net sleep 2000000", enter(pid)));
    soon("a container", || {
        m.world.host.try_sh("pgrep -fx 'sleep 2000000'").code == 0
    });
    let container = Netns::of(below.id());
    m.user(&format!(
        "{} sh -ec 'ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up; \
         ip link add veth0 type veth peer name eth0 netns {}; ip link set veth0 master docker0 up; \
         echo 1 >/proc/sys/net/ipv4/ip_forward; nft add table ip n; \
         nft add chain ip n post {{ type nat hook postrouting priority 100\\; }}; \
         nft add rule ip n post ip saddr 172.17.0.0/16 oifname tap0 masquerade'",
        enter(pid),
        below.id()
    ));
    m.user(&format!(
        "{} sh -ec 'ip link set lo up; ip addr add 172.17.0.2/16 dev eth0; ip link set eth0 up; \
         ip route add default via 172.17.0.1'",
        enter(below.id())
    ));
    let inner = enter(below.id());
    assert_eq!(
        m.user(&format!("{inner} curl -sS -m 30 http://{WEB4}/")),
        PAGE
    );
    assert_eq!(
        m.user(&format!("{inner} dig +short a.name @10.0.2.3")),
        format!("{WEB4}\n")
    );
    tell(&container, ("172.17.0.2", 80));
    let proxies = ["127.0.0.1", "0.0.0.0"]
        .iter()
        .zip([8081, 8080])
        .map(|(address, port)| {
            m.start(&format!(
                "exec {} socat TCP-LISTEN:{port},bind={address},fork,reuseaddr TCP:172.17.0.2:80",
                enter(pid)
            ))
        });
    let proxies: Vec<Running> = proxies.collect();
    for port in [8080, 8081] {
        soon("a published port", || {
            tcp(&m.world.host, ("127.0.0.1", port))
                .is_ok_and(|s| s.to.to_string() == "172.17.0.2:80")
        });
    }
    soon("a published port", || {
        tcp(&m.world.peer, (HOST4, 8080)).is_ok()
    });
    tcp(&m.world.peer, (HOST4, 8081)).expect_err("published on loopback only");
    for proxy in proxies {
        m.root(&format!("kill {}", proxy.id()));
        proxy.finish(PATIENCE);
    }
    m.root(&format!("kill -9 {}", below.id()));
    below.finish(PATIENCE);
    drop((container, ns));
    end(&m, running, pid);
}

/// A sandbox whose user is nobody special inside (as bubblewrap's is): pasta is given its process and nothing else.
fn without_root_inside() {
    let m = Machine::new();
    let running =
        m.start("exec unshare --user --map-current-user --net --mount sleep 1000000 >kit.log 2>&1");
    let pid = sleeper(&m).unwrap_or_else(|| panic!("{}", m.user("cat kit.log")));
    m.user(&format!("pasta --config-net {pid} 2>&1"));
    let seen = m.user(&format!(
        "{} sh -c 'id -u; ip -o -4 addr; curl -sS -m 30 http://{WEB4}/; curl -gsS -m 30 http://[{WEB6}]/'",
        enter(pid)
    ));
    contains(&seen, &["1000\n", &format!("inet {HOST4}/24 ")]);
    assert_eq!(seen.matches(PAGE).count(), 2, "{seen}");
    let ns = Netns::of(pid);
    tell(&ns, ("0.0.0.0", 8080));
    assert!(
        poll_until(SOON, || tcp(&m.world.host, ("127.0.0.1", 8080)).is_ok()),
        "ports bound inside are forwarded by default"
    );
    end(&m, running, pid);
}
