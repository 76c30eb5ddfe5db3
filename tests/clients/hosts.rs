//! podman on hosts that are not like the one of the other tests: one family, none, several addresses, other routes.
//!
//! What a container gets is a copy of what its host has, so each of these hosts is another container. What a user
//! expects of all of them is the same: it starts, a published port is reached at "localhost" and at every address
//! of the host, and who is reachable from the host is reachable from the container.

use crate::container::{Container, FORWARDER, tcp, udp};
use crate::harness::tests;
use crate::machine::Machine;
use crate::servers::PAGE;
use crate::service::{WEB4, WEB6};
use crate::world::{DNS6, HOST4, HOST6};

tests![; root: ipv4_only, ipv6_only, link_local_only, nothing, several_addresses, several_interfaces,
       gateway_outside, local_resolver, small_mtu, address_changes];

const SECOND4: &str = "198.51.100.77";
const SECOND6: &str = "2001:db8:51::77";

/// The container's server, TCP and UDP, is reached by the user at each of these addresses.
#[track_caller]
fn published(m: &Machine, c: &Container<'_>, addresses: &[&str]) {
    c.tell(("::", 80));
    for address in addresses {
        for way in [tcp, udp] {
            let seen = way(&m.world.host, (address, 8080));
            assert_eq!(seen.map(|s| s.to.port()), Ok(80), "{address}");
        }
    }
}

#[track_caller]
fn with_ports(m: &Machine) -> Container<'_> {
    Container::run(m, "c", "-p 8080:80 -p 8080:80/udp")
}

#[track_caller]
fn page(c: &Container<'_>, url: &str) {
    assert_eq!(c.exec(&format!("curl -sS -m 30 {url}")), PAGE, "{url}");
}

/// Such a host still calls ::1 "localhost", and a client tries that first.
fn ipv4_only() {
    let m = Machine::with_image();
    m.root("ip -6 addr flush dev host0; ip -6 route flush dev host0");
    let c = with_ports(&m);
    published(&m, &c, &["127.0.0.1", "::1", HOST4]);
    page(&c, &format!("http://{WEB4}/"));
    page(&c, "http://a.name/");
    let resolv = c.exec("cat /etc/resolv.conf");
    assert!(!resolv.contains(DNS6), "{resolv}");
    c.remove();
    m.clean();
}

fn ipv6_only() {
    let m = Machine::with_image();
    m.root("ip -4 addr flush dev host0");
    let c = with_ports(&m);
    published(&m, &c, &["127.0.0.1", "::1", HOST6]);
    page(&c, &format!("http://[{WEB6}]/"));
    c.remove();
    m.clean();
}

/// IPv6 is on, but nobody has advertised a prefix: the usual state of a home network without IPv6.
fn link_local_only() {
    let m = Machine::with_image();
    m.root("ip -6 route del default; ip -6 addr flush dev host0 scope global");
    let c = with_ports(&m);
    published(&m, &c, &["127.0.0.1", "::1", HOST4]);
    page(&c, "http://a.name/");
    c.remove();
    m.clean();
}

/// A laptop in a train: containers start, and are reached from their host.
fn nothing() {
    let m = Machine::with_image();
    m.root("ip link set host0 down");
    let c = with_ports(&m);
    published(&m, &c, &["127.0.0.1", "::1"]);
    c.remove();
    m.clean();
}

/// All of the host's addresses are the container's too, so a client on the host that uses one of them has to be shown
/// as somebody else, whichever it is.
fn several_addresses() {
    let m = Machine::with_image();
    m.root(&format!(
        "ip addr add {SECOND4}/24 dev host0; ip addr add {SECOND6}/64 dev host0 nodad"
    ));
    let c = with_ports(&m);
    let seen = c.exec("ip -o addr show scope global");
    for address in [HOST4, SECOND4, HOST6, SECOND6] {
        assert!(seen.contains(address), "{address}: {seen}");
    }
    published(
        &m,
        &c,
        &["127.0.0.1", "::1", HOST4, SECOND4, HOST6, SECOND6],
    );
    page(&c, "http://a.name/");
    page(&c, &format!("http://[{WEB6}]/"));
    c.remove();
    m.clean();
}

/// The container gets the interface of the default route; it reaches what is behind the others all the same.
fn several_interfaces() {
    let m = Machine::with_image();
    m.root(
        "ip link add other type veth peer name behind netns /run/netns/peer && ip addr add 10.55.0.1/24 dev other && \
         ip link set other up && ip route add default via 10.55.0.9 metric 500",
    );
    m.world
        .peer
        .sh("ip addr add 10.55.0.9/24 dev behind && ip link set behind up");
    crate::servers::http(&m.world.peer, ("10.55.0.9", 80));
    let c = with_ports(&m);
    let seen = c.exec("ip -o -4 addr show scope global; ip route");
    assert!(seen.contains(HOST4) && !seen.contains("10.55."), "{seen}");
    published(&m, &c, &["127.0.0.1", "::1", HOST4, HOST6, "10.55.0.1"]);
    page(&c, "http://10.55.0.9/");
    page(&c, "http://a.name/");
    c.remove();
    m.clean();
}

/// A single address, the gateway not in its network: what large hosters give a virtual machine.
fn gateway_outside() {
    let m = Machine::with_image();
    m.root(&format!(
        "ip -4 addr flush dev host0 && ip addr add {HOST4}/32 dev host0 && ip route add 198.51.100.2 dev host0 && \
         ip route add default via 198.51.100.2 dev host0"
    ));
    let c = with_ports(&m);
    let seen = c.exec("ip -o -4 addr show scope global; ip -4 route show default");
    assert!(seen.contains(&format!("{HOST4}/32")), "{seen}");
    assert!(seen.contains("default via 198.51.100.2"), "{seen}");
    published(&m, &c, &["127.0.0.1", HOST4]);
    page(&c, "http://a.name/");
    c.remove();
    m.clean();
}

/// A resolver on the host's loopback, as systemd-resolved is one: nobody in a container reaches it but by pasta.
fn local_resolver() {
    let m = Machine::with_image();
    crate::servers::dns(&m.world.host, "127.0.0.53");
    m.root("echo nameserver 127.0.0.53 >/etc/resolv.conf");
    let c = with_ports(&m);
    let resolv = c.exec("cat /etc/resolv.conf");
    assert!(
        resolv.contains(FORWARDER) && !resolv.contains("127."),
        "{resolv}"
    );
    page(&c, "http://a.name/");
    let short = c.exec("dig +short +tcp a.name A");
    assert_eq!(short, format!("{WEB4}\n"));
    let long = c.exec("dig +short a.name TXT");
    assert!(long.len() > 1500, "{long}");
    c.remove();
    m.user(&format!(
        "podman run --rm --network bridge $IMAGE curl -sS -m 30 http://a.name/ | grep '{}'",
        PAGE.trim_end()
    ));
    m.clean();
}

/// The container's MTU is pasta's own matter; what is larger than the host's gets through.
fn small_mtu() {
    let m = Machine::with_image();
    m.root("ip link set host0 mtu 1400");
    m.world.peer.sh("ip link set peer0 mtu 1400");
    let c = with_ports(&m);
    let bytes = c.exec(&format!("curl -sS -m 60 http://{WEB4}/big?3000000 | wc -c"));
    assert_eq!(bytes, "3000000\n");
    let bytes = c.exec(&format!(
        "curl -sS -m 60 http://[{WEB6}]/big?3000000 | wc -c"
    ));
    assert_eq!(bytes, "3000000\n");
    assert!(c.exec("dig +short a.name TXT").len() > 1500);
    published(&m, &c, &["127.0.0.1", HOST4, HOST6]);
    c.remove();
    m.clean();
}

/// The host moves to another address; the container keeps the one it was given, and goes on.
fn address_changes() {
    let m = Machine::with_image();
    let c = with_ports(&m);
    page(&c, "http://a.name/");
    m.root(&format!(
        "ip addr add {SECOND4}/24 dev host0 && ip addr del {HOST4}/24 dev host0 && \
         ip addr add {SECOND4}/24 dev host0 || true; ip route replace default via 198.51.100.2"
    ));
    page(&c, &format!("http://{WEB4}/"));
    page(&c, "http://a.name/");
    published(&m, &c, &["127.0.0.1", "::1", SECOND4]);
    c.remove();
    m.clean();
}
