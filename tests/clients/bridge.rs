//! podman's rootless bridge networks: netavark's bridges in a network namespace of their own, and pasta as that
//! namespace's way out, with a PID file.
//!
//! Ports are not pasta's there (rootlessport has them). podman keeps the namespace for as long as a container uses it,
//! asks the PID file whether pasta still runs before each use, and starts a new one in the old namespace when not.

use std::fs;
use std::net::IpAddr;

use crate::container::{Container, tcp, udp};
use crate::exec::{SOON, alive, poll_until};
use crate::harness::tests;
use crate::machine::{Machine, RUNTIME_DIR};
use crate::servers::PAGE;
use crate::service::{WEB4, WEB6};
use crate::world::{HOST4, HOST6};

tests![; root: one_container, names_and_ports, ipv6, unshare, way_out_killed, internal];

fn directory() -> String {
    format!("{RUNTIME_DIR}/containers/networks/rootless-netns")
}

fn pid_file() -> String {
    format!("{}/rootless-netns-conn.pid", directory())
}

/// The process in the PID file.
#[track_caller]
fn pasta() -> i32 {
    let text = fs::read_to_string(pid_file()).expect("a PID file");
    assert!(text.ends_with('\n'), "{text:?}");
    text.trim_end().parse().expect("a process id")
}

/// A container on the default bridge, its way out, and the end of everything with it.
fn one_container() {
    let m = Machine::with_image();
    let c = Container::run(&m, "c", "--network bridge");
    let pid = pasta();
    assert!(m.pastas().contains(&pid), "{pid} of {:?}", m.pastas());
    assert_eq!(
        m.user(&format!("stat -c '%a %u' {}", pid_file())),
        "600 1000\n"
    );
    let seen = c.exec("ip -o -4 addr show scope global; ip route; cat /etc/resolv.conf");
    assert!(seen.contains("inet 10.88.0.2/16 "), "{seen}");
    assert!(seen.contains("default via 10.88.0.1 dev eth0"), "{seen}");
    assert!(seen.contains("nameserver 169.254.1.1\n"), "{seen}");
    assert_eq!(c.exec(&format!("curl -sS -m 30 http://{WEB4}/")), PAGE);
    assert_eq!(c.exec("curl -sS -m 30 http://a.name/"), PAGE);
    c.exec(&format!("/usr/bin/ping -n -c 1 -W 10 {WEB4}"));
    c.remove();
    m.clean();
    assert!(!alive(pid));
}

/// Two containers of a network find each other by name, each other's servers, the host and the world.
fn names_and_ports() {
    let m = Machine::with_image();
    m.user("podman network create net");
    let server = Container::run(&m, "server", "--network net -p 8300:80 -p 8300:80/udp");
    server.tell(("::", 80));
    for address in ["127.0.0.1", HOST4, "::1", HOST6] {
        let reached = || tcp(&m.world.host, (address, 8300)).is_ok();
        assert!(poll_until(SOON, reached), "by rootlessport at {address}");
    }
    assert!(udp(&m.world.host, ("127.0.0.1", 8300)).is_ok());
    assert!(tcp(&m.world.peer, (HOST4, 8300)).is_ok());

    let before = pasta();
    let client = Container::run(&m, "client", "--network net");
    assert_eq!(pasta(), before, "one pasta for all of them");
    let address = client.exec("getent ahostsv4 server | head -n 1 | cut -d\" \" -f1");
    let address: IpAddr = address.trim_end().parse().expect("an address by aardvark");
    let seen = tcp(&client, (&address.to_string(), 80)).expect("the server");
    assert_eq!(seen.to.ip(), address);
    let resolv = client.exec("cat /etc/resolv.conf");
    assert!(resolv.contains("nameserver 10.89.0.1\n"), "{resolv}");
    assert_eq!(client.exec("curl -sS -m 30 http://a.name/"), PAGE);
    let long = client.exec("dig +short +tcp a.name TXT");
    assert!(long.len() > 1500, "aardvark's own queries by TCP: {long}");

    crate::servers::http(&m.world.host, (HOST4, 9003));
    let page = client.exec("curl -sS -m 30 http://host.containers.internal:9003/");
    assert_eq!(page, PAGE);

    m.user("podman network reload server");
    assert_eq!(server.exec("curl -sS -m 30 http://a.name/"), PAGE);
    client.remove();
    assert_eq!(pasta(), before, "the server still uses it");
    assert_eq!(server.exec("curl -sS -m 30 http://a.name/"), PAGE);
    server.remove();
    m.user("podman network rm net");
    m.clean();
}

fn ipv6() {
    let m = Machine::with_image();
    m.user("podman network create --ipv6 net");
    let c = Container::run(&m, "c", "--network net");
    let addresses = c.exec("ip -o -6 addr show scope global");
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    assert_eq!(c.exec(&format!("curl -sS -m 30 http://[{WEB6}]/")), PAGE);
    assert_eq!(c.exec("curl -sS -m 30 -6 http://a.name/"), PAGE);
    c.exec(&format!("/usr/bin/ping -n -6 -c 1 -W 10 {WEB6}"));
    c.remove();
    m.user("podman network rm net");
    m.clean();
}

/// `podman unshare --rootless-netns` is a shell in there: the host's addresses by pasta, name service, way out.
fn unshare() {
    let m = Machine::with_image();
    let seen = m.user(&format!(
        "podman unshare --rootless-netns sh -c 'ip -o addr; ip route; cat /etc/resolv.conf; \
         curl -sS -m 30 http://{WEB4}/; curl -sS -m 30 http://a.name/'"
    ));
    for wanted in [
        format!("inet {HOST4}/24 "),
        format!("inet6 {HOST6}/64 "),
        "default via 198.51.100.2 dev host0".to_owned(),
        "nameserver 169.254.1.1\n".to_owned(),
    ] {
        assert!(seen.contains(&wanted), "no {wanted} in:\n{seen}");
    }
    assert_eq!(seen.matches(PAGE).count(), 2, "{seen}");
    m.clean();
}

/// However pasta ends, podman starts another in the namespace that is there, and everybody has a way out again.
fn way_out_killed() {
    let m = Machine::with_image();
    let c = Container::run(&m, "c", "--network bridge");
    for signal in ["KILL", "TERM"] {
        let pid = pasta();
        m.user(&format!("kill -{signal} {pid}"));
        assert!(
            poll_until(SOON, || m.pastas().is_empty()),
            "{:?}",
            m.pastas()
        );
        let page = m.user(&format!(
            "podman run --rm --network bridge $IMAGE curl -sS -m 30 http://{WEB4}/"
        ));
        assert_eq!(page, PAGE, "after SIG{signal}");
        assert_ne!(pasta(), pid);
        assert_eq!(c.exec("curl -sS -m 30 http://a.name/"), PAGE);
    }
    c.remove();
    m.clean();
}

/// An internal network has no way out, although pasta is there.
fn internal() {
    let m = Machine::with_image();
    m.user("podman network create --internal net");
    let c = Container::run(&m, "c", "--network net");
    let routes = c.exec("ip route");
    assert!(!routes.contains("default"), "{routes}");
    assert!(c.try_connect((WEB4, 80)).is_err());
    c.remove();
    m.user("podman network rm net");
    m.clean();
}
