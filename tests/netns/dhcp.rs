//! Configuration by protocol, as a container's own DHCP client or its kernel would do it: ARP, NDP, DHCP, DHCPv6.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::differences::established;
use crate::exec::{SOON, poll_until};
use crate::harness::{need, tests};
use crate::servers::dns;
use crate::world::{DNS4, GATEWAY4, GATEWAY6, HOST4, HOST6, Netns, PEER4, PEER6, Pasta, World};

tests![
    dhclient,
    udhcpc,
    udhcpc_many_options,
    lease_of_chosen_address,
    no_dhcp,
    dhclient6,
    dhclient6_stateless,
    no_dhcpv6,
    router_advertisement,
    router_advertisement_content,
    no_ra,
    neighbour_solicitation,
    address_resolution,
    own_address_is_not_claimed,
    no_ndp,
    classless_static_route,
];

/// A script in place of the client's own: it saves what was offered and sets the address, no more.
const CLIENT_SCRIPT: &str = r#"#!/bin/sh
env | sort >"/run/t/env.${reason:-$1}"
case "${reason:-$1}" in
BOUND|RENEW|REBIND) ip addr replace "$new_ip_address/$new_subnet_mask" dev "$interface"
    ip route replace default via "$new_routers" dev "$interface" onlink
    ip link set "$interface" mtu "${new_interface_mtu:-1500}";;
bound) ip addr replace "$ip/$mask" dev "$interface"
    ip route replace default via "$router" dev "$interface" onlink
    ip link set "$interface" mtu "${mtu:-1500}";;
BOUND6|RENEW6|REBIND6) ip -6 addr replace "$new_ip6_address/${new_ip6_prefixlen:-64}" dev "$interface" nodad;;
esac
exit 0
"#;

/// A namespace with a bare tap (tap0, up, nothing configured), and pasta behind it.
fn bare(w: &World, args: &[&str]) -> (Netns, Pasta) {
    fs::write("/run/t/client", CLIENT_SCRIPT).expect("tmpfs");
    fs::write("/run/t/leases", "").expect("tmpfs");
    fs::set_permissions("/run/t/client", fs::Permissions::from_mode(0o755)).expect("tmpfs");
    let ns = Netns::new("guest");
    ns.sh("ip link set lo up");
    ns.set("ipv6/conf/default/accept_dad", "0");
    ns.set("ipv6/conf/all/accept_dad", "0");
    ns.set("ipv6/conf/default/router_solicitation_delay", "0");
    let pasta = w.attach(&ns, &[&["-I", "tap0"], args].concat());
    ns.sh("ip link set tap0 up");
    (ns, pasta)
}

fn offered(reason: &str) -> String {
    fs::read_to_string(format!("/run/t/env.{reason}"))
        .unwrap_or_else(|e| panic!("the client never got to {reason}: {e}"))
}

#[track_caller]
fn has(text: &str, part: &str) {
    assert!(text.contains(part), "`{part}` is not in:\n{text}");
}

const DHCLIENT: &str = "timeout 20 dhclient -1 -sf ./client -lf /run/t/leases -pf pid -cf conf";

fn dhclient() {
    need("dhclient");
    let w = World::direct();
    dns(&w.peer, DNS4);
    fs::write(
        "/run/t/conf",
        "request subnet-mask, routers, domain-name-servers, domain-search, host-name, interface-mtu, dhcp-lease-time;\n",
    )
    .expect("tmpfs");
    let (ns, _pasta) = bare(
        &w,
        &["--dhcp-dns", "--dhcp-search", "-H", "inner", "-m", "9000"],
    );
    ns.sh(&format!("{DHCLIENT} -4 tap0"));
    let got = offered("BOUND");
    has(&got, &format!("new_ip_address={HOST4}"));
    has(&got, "new_subnet_mask=255.255.255.0");
    has(&got, &format!("new_routers={GATEWAY4}"));
    has(&got, &format!("new_domain_name_servers={DNS4}"));
    has(&got, "new_domain_search=example.org. test.example.");
    has(&got, "new_host_name=inner");
    has(&got, "new_interface_mtu=9000");
    has(&got, "new_dhcp_lease_time=4294967295");
    ns.sh(&format!(
        "ping -n -c 1 -W 30 {PEER4}; dig +short @{DNS4} www.example.org"
    ));
}

fn udhcpc() {
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &[]);
    ns.sh("busybox udhcpc -i tap0 -n -q -t 5 -T 1 -s ./client");
    let got = offered("bound");
    has(&got, &format!("ip={HOST4}"));
    has(&got, &format!("router={GATEWAY4}"));
    has(&got, "mtu=65520");
    assert!(
        !got.contains("dns="),
        "not told unless asked to tell (--dhcp-dns): {got}"
    );
    ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

fn udhcpc_many_options() {
    let w = World::direct();
    let (ns, _pasta) = bare(
        &w,
        &[
            "--dhcp-dns",
            "--dhcp-search",
            "-D",
            "192.0.2.53",
            "-D",
            "192.0.2.54",
            "-S",
            "one.example two.one.example",
            "-H",
            "inner",
            "--fqdn",
            "inner.example.org",
        ],
    );
    ns.sh("busybox udhcpc -i tap0 -n -q -t 5 -T 1 -O search -O hostname -O mtu -O 81 -s ./client");
    let got = offered("bound");
    has(&got, "dns=192.0.2.53 192.0.2.54");
    has(&got, "search=one.example two.one.example");
    has(&got, "hostname=inner");
    has(&got, "opt81=");
}

fn lease_of_chosen_address() {
    let w = World::direct();
    let (ns, _pasta) = bare(
        &w,
        &[
            "-a",
            "10.0.2.100",
            "-n",
            "24",
            "-g",
            "10.0.2.2",
            "-m",
            "1400",
        ],
    );
    ns.sh("busybox udhcpc -i tap0 -n -q -t 5 -T 1 -s ./client");
    let got = offered("bound");
    for part in [
        "ip=10.0.2.100",
        "router=10.0.2.2",
        "mask=24",
        "mtu=1400",
        "mtu=1400",
    ] {
        has(&got, part);
    }
    ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

fn no_dhcp() {
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &["--no-dhcp"]);
    assert_ne!(
        ns.try_sh("busybox udhcpc -i tap0 -n -q -t 2 -T 1 -A 1 -s ./client")
            .code,
        0
    );
}

/// A gateway outside the prefix needs option 121 (or a client told to use it on-link).
fn classless_static_route() {
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &["-a", "10.0.2.100/32", "-g", "10.0.3.2"]);
    ns.sh("busybox udhcpc -i tap0 -n -q -t 5 -T 1 -O staticroutes -s ./client");
    let got = offered("bound");
    has(&got, "staticroutes=");
    has(&got, "10.0.3.2");
}

/// Wait for the link-local address, without which a DHCPv6 client cannot start.
fn link_local(ns: &Netns) {
    let ready = || {
        let text = ns.sh("ip -6 addr show dev tap0 scope link");
        text.contains("fe80::") && !text.contains("tentative")
    };
    assert!(poll_until(SOON, ready), "no link-local address");
}

fn dhclient6() {
    need("dhclient");
    let w = World::direct();
    fs::write(
        "/run/t/conf",
        "request dhcp6.name-servers, dhcp6.domain-search, dhcp6.fqdn;\n",
    )
    .expect("tmpfs");
    let (ns, _pasta) = bare(&w, &["--dhcp-dns", "--dhcp-search", "--no-ra"]);
    link_local(&ns);
    ns.sh(&format!("{DHCLIENT} -6 tap0"));
    let got = offered("BOUND6");
    has(&got, &format!("new_ip6_address={HOST6}"));
    has(&got, "new_dhcp6_name_servers=2001:db8:99::53");
    has(&got, "new_dhcp6_domain_search=example.org. test.example.");
    ns.sh(&format!(
        "ip -6 route add default via {GATEWAY6} dev tap0 onlink; ping -6 -n -c 1 -W 30 {PEER6}"
    ));
}

/// Only information, no address.
fn dhclient6_stateless() {
    need("dhclient");
    let w = World::direct();
    fs::write(
        "/run/t/conf",
        "request dhcp6.name-servers, dhcp6.domain-search;\n",
    )
    .expect("tmpfs");
    let (ns, _pasta) = bare(
        &w,
        &["--dhcp-dns", "-D", "2001:db8::1", "-D", "2001:db8::2"],
    );
    link_local(&ns);
    ns.sh(&format!("{DHCLIENT} -6 -S tap0"));
    has(
        &offered("RENEW6"),
        "new_dhcp6_name_servers=2001:db8::1 2001:db8::2",
    );
}

fn no_dhcpv6() {
    need("dhclient");
    let w = World::direct();
    fs::write("/run/t/conf", "request dhcp6.name-servers;\n").expect("tmpfs");
    let (ns, _pasta) = bare(&w, &["--no-dhcpv6"]);
    link_local(&ns);
    assert_ne!(
        ns.try_sh(&DHCLIENT.replace("20", "3").replace("-1", "-6 -1 tap0"))
            .code,
        0
    );
}

/// The guest's kernel configures itself: address in the prefix, default route, MTU.
fn router_advertisement() {
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &["-m", "1400"]);
    let seen = || {
        format!(
            "{}{}",
            ns.sh("ip -6 addr show dev tap0"),
            ns.sh("ip -6 route")
        )
    };
    let ready = || {
        let seen = seen();
        seen.contains("2001:db8:51:")
            && seen.contains("default via fe80::")
            && !seen.contains("tentative")
    };
    assert!(poll_until(SOON, ready), "{}", seen());
    ns.sh(&format!("ping -6 -n -c 1 -W 30 {PEER6}"));
    let route = ns.sh(&format!(
        "cat /proc/sys/net/ipv6/conf/tap0/mtu; ip -6 route get {PEER6}"
    ));
    has(&route, "1400");
}

fn router_advertisement_content() {
    need("rdisc6");
    let w = World::direct();
    let (ns, _pasta) = bare(
        &w,
        &[
            "--dhcp-dns",
            "--dhcp-search",
            "-m",
            "1400",
            "-M",
            "02:aa:bb:cc:dd:01",
        ],
    );
    link_local(&ns);
    let text = ns.sh("rdisc6 -1 -w 3000 tap0");
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        squeezed.contains("Prefix : 2001:db8:51::/64") || established(),
        "{squeezed}"
    );
    has(&squeezed, "MTU : 1400 bytes");
    has(
        &squeezed.to_lowercase(),
        "source link-layer address: 02:aa:bb:cc:dd:01",
    );
    has(&squeezed, "Recursive DNS server : 2001:db8:99::53");
    has(&squeezed, "DNS search list : example.org test.example");
    has(&squeezed, "On-link : Yes");
    has(&squeezed, "Autonomous address conf.: Yes");
}

fn no_ra() {
    need("rdisc6");
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &["--no-ra"]);
    link_local(&ns);
    assert_ne!(ns.try_sh("rdisc6 -1 -r 2 -w 500 tap0").code, 0);
}

/// Everything but the guest itself is at our hardware address.
fn neighbour_solicitation() {
    need("ndisc6");
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &["-M", "02:aa:bb:cc:dd:01"]);
    link_local(&ns);
    for target in [GATEWAY6, "2001:db8:51::1234", "fe80::1"] {
        has(
            &ns.sh(&format!("ndisc6 -1 -w 3000 {target} tap0"))
                .to_lowercase(),
            "02:aa:bb:cc:dd:01",
        );
    }
}

fn address_resolution() {
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &["-M", "02:aa:bb:cc:dd:01"]);
    ns.sh(&format!("ip addr add {HOST4}/24 dev tap0"));
    for target in ["198.51.100.3", "198.51.100.200"] {
        let text = ns.sh(&format!("busybox arping -I tap0 -c 1 -w 3 {target}"));
        has(&text.to_lowercase(), "02:aa:bb:cc:dd:01");
    }
}

/// Duplicate address detection of the guest finds its own address free, in both families.
fn own_address_is_not_claimed() {
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &["--no-ra"]);
    ns.sh(&format!("busybox arping -D -I tap0 -c 2 -w 2 {HOST4}"));
    ns.set("ipv6/conf/all/accept_dad", "1");
    ns.set("ipv6/conf/tap0/accept_dad", "1");
    ns.sh(&format!("ip addr add {HOST6}/64 dev tap0"));
    let state = || ns.sh("ip -6 addr show dev tap0 scope global");
    assert!(
        poll_until(SOON, || !state().contains("tentative")),
        "{}",
        state()
    );
    assert!(!state().contains("dadfailed"), "{}", state());
}

fn no_ndp() {
    need("ndisc6");
    let w = World::direct();
    let (ns, _pasta) = bare(&w, &["--no-ndp"]);
    link_local(&ns);
    assert_ne!(
        ns.try_sh(&format!("ndisc6 -1 -r 2 -w 500 {GATEWAY6} tap0"))
            .code,
        0
    );
    assert_ne!(ns.try_sh("rdisc6 -1 -r 2 -w 500 tap0").code, 0);
}
