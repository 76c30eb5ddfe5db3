//! Guests configure themselves: each of the usual clients, and the kernel alone.

use crate::differences::established;
use crate::guest::{Guest, SOON};
use crate::harness::Case;
use crate::lab::{Lab, fresh_interface, wait_for};
use crate::world::{DNS4, DNS6, GATEWAY4, HOST4, HOST6, PEER4, PEER6};

pub const CASES: &[Case] = &[
    ("udhcpc", udhcpc),
    ("dhclient", dhclient),
    ("dhclient6", dhclient6),
    ("dhcpcd", dhcpcd),
    ("networkd", networkd),
    ("slaac", slaac),
    ("own_address_is_free", own_address_is_free),
];

/// The guest with nothing configured.
fn fresh(lab: &mut Lab) -> &Guest {
    lab.offline();
    fresh_interface(lab.guest());
    lab.guest()
}

#[track_caller]
fn has(text: &str, part: &str) {
    assert!(text.contains(part), "`{part}` is not in:\n{text}");
}

#[track_caller]
fn reaches(g: &Guest, peer: &str) {
    g.sh(&format!("ping -n -c 1 -W 5 {peer}"));
}

/// The search list as DHCP has it. The established program takes the end of "test.example" for that of
/// "example.org".
fn searched(dot: &str) -> String {
    let last = if established() {
        "test.example.org"
    } else {
        "test.example"
    };
    format!("example.org{dot} {last}{dot}")
}

fn udhcpc(lab: &mut Lab) {
    let mtu = lab.setup.mtu;
    let g = fresh(lab);
    g.sh("udhcpc -i eth0 -n -q -t 20 -T 1 -O search -O hostname -O mtu -O 81 -s /run/t/udhcpc");
    let got = g.sh("cat /run/t/env.bound");
    for part in [
        format!("ip={HOST4}\n"),
        "mask=24\n".to_owned(),
        format!("router={GATEWAY4}\n"),
        format!("dns={DNS4}\n"),
        format!("search={}\n", searched("")),
        "hostname=inner\n".to_owned(),
        "opt81=".to_owned(),
        format!("mtu={mtu}\n"),
        format!("serverid={GATEWAY4}\n"),
    ] {
        has(&got, &part);
    }
    reaches(g, PEER4);
    has(&g.sh("nslookup www.example.org"), "192.0.2.80");
}

const DHCLIENT_SCRIPT: &str = r#"cat >/run/t/client <<'END'
#!/bin/sh
env | sort >"/run/t/env.$reason"
case "$reason" in
BOUND|RENEW|REBIND) ip link set "$interface" mtu "$new_interface_mtu"
    ip addr replace "$new_ip_address/$new_subnet_mask" dev "$interface"
    ip route replace default via "$new_routers" dev "$interface" onlink;;
BOUND6|RENEW6|REBIND6) ip -6 addr replace "$new_ip6_address/${new_ip6_prefixlen:-64}" dev "$interface" nodad;;
esac
exit 0
END
chmod +x /run/t/client; : >/run/t/leases
cat >/run/t/conf <<'END'
request subnet-mask, routers, domain-name-servers, domain-search, host-name, interface-mtu, dhcp-lease-time,
    dhcp6.name-servers, dhcp6.domain-search, dhcp6.fqdn;
END
"#;
const DHCLIENT: &str =
    "timeout 30 dhclient -1 -sf /run/t/client -lf /run/t/leases -pf /run/t/pid -cf /run/t/conf";

fn dhclient(lab: &mut Lab) {
    let mtu = lab.setup.mtu;
    let g = fresh(lab);
    g.sh(&format!("{DHCLIENT_SCRIPT} {DHCLIENT} -4 eth0"));
    let got = g.sh("cat /run/t/env.BOUND");
    for part in [
        format!("new_ip_address={HOST4}\n"),
        "new_subnet_mask=255.255.255.0\n".to_owned(),
        format!("new_routers={GATEWAY4}\n"),
        format!("new_domain_name_servers={DNS4}\n"),
        format!("new_domain_search={}\n", searched(".")),
        "new_host_name=inner\n".to_owned(),
        format!("new_interface_mtu={mtu}\n"),
        "new_dhcp_lease_time=4294967295\n".to_owned(),
    ] {
        has(&got, &part);
    }
    reaches(g, PEER4);
}

/// A client cannot start before its link-local address is usable.
fn link_local(g: &Guest) {
    wait_for(g, "ip -6 addr show dev eth0 scope link", |s| {
        s.contains("fe80::") && !s.contains("tentative")
    });
}

fn dhclient6(lab: &mut Lab) {
    let g = fresh(lab);
    link_local(g);
    g.sh(&format!("{DHCLIENT_SCRIPT} {DHCLIENT} -6 eth0"));
    let got = g.sh("cat /run/t/env.BOUND6");
    has(&got, &format!("new_ip6_address={HOST6}\n"));
    has(&got, &format!("new_dhcp6_name_servers={DNS6}\n"));
    has(&got, "new_dhcp6_domain_search=example.org. test.example.\n");
    wait_for(g, "ip -6 route", |s| s.contains("default via fe80::"));
    reaches(g, PEER6);
}

/// Waits until what a script prints has all these parts, and no address is still being tried out: a client's
/// hooks run when its addresses are there.
#[track_caller]
fn settles(g: &Guest, script: &str, parts: &[String]) {
    wait_for(g, script, |seen| {
        parts.iter().all(|part| seen.contains(part)) && !seen.contains("tentative")
    });
}

fn dhcpcd(lab: &mut Lab) {
    let g = fresh(lab);
    let output = g
        .start("printf '%s\\n' duid ia_na 'slaac hwaddr' noarp >/run/t/conf
            dhcpcd -f /run/t/conf -w -t 40 -o domain_name_servers -o domain_search -o interface_mtu eth0")
        .finish(SOON * 2);
    assert_eq!(output.code, 0, "{}{}", output.out, output.err);
    settles(
        g,
        "ip addr show dev eth0; ip route; ip -6 route; cat /etc/resolv.conf",
        &[
            format!("inet {HOST4}/24"),
            format!("inet6 {HOST6}/"),
            format!("default via {GATEWAY4}"),
            "default via fe80::".to_owned(),
            format!("nameserver {DNS4}"),
            searched(""),
        ],
    );
    reaches(g, PEER4);
    reaches(g, PEER6);
}

const NETWORKD: &str = "mkdir -p /run/systemd/network /run/systemd/netif /run/udev
cat >/run/systemd/network/eth0.network <<'END'
[Match]
Name=eth0
[Network]
DHCP=yes
IPv6AcceptRA=yes
[DHCPv4]
UseMTU=yes
UseDomains=yes
[IPv6AcceptRA]
UseDomains=yes
END
chown -R systemd-network:systemd-network /run/systemd/netif
systemd-udevd --daemon && udevadm trigger -c add -s net && udevadm settle -t 20
SYSTEMD_LOG_TARGET=console /usr/lib/systemd/systemd-networkd >/run/t/networkd 2>&1 & true";

fn networkd(lab: &mut Lab) {
    let mtu = lab.setup.mtu;
    let g = fresh(lab);
    g.sh(NETWORKD);
    settles(
        g,
        "ip addr show dev eth0; ip route; ip -6 route; cd /run/systemd/netif; cat links/* leases/*; tail -n 20 /run/t/networkd",
        &[
            format!("inet {HOST4}/24"),
            format!("inet6 {HOST6}/"),
            "inet6 2001:db8:51:0:5054:ff:fe12:3456/64".to_owned(),
            "ADMIN_STATE=configured".to_owned(),
            format!("default via {GATEWAY4}"),
            "default via fe80::".to_owned(),
            DNS4.to_owned(),
            DNS6.to_owned(),
            searched(""),
            format!("mtu {mtu} "),
            "HOSTNAME=inner\n".to_owned(),
        ],
    );
    reaches(g, PEER4);
    reaches(g, PEER6);
}

/// The kernel alone: address in the prefix, default route, MTU.
fn slaac(lab: &mut Lab) {
    let mtu = lab.setup.mtu;
    let g = fresh(lab);
    // The kernel takes no more than the link's own MTU.
    g.sh(&format!("ip link set eth0 mtu {mtu}"));
    let seen = wait_for(
        g,
        "ip -6 addr show dev eth0; ip -6 route; cat /proc/sys/net/ipv6/conf/eth0/mtu",
        |s| {
            s.contains("inet6 2001:db8:51:0:5054:ff:fe12:3456/64")
                && s.contains("default via fe80::")
                && !s.contains("tentative")
        },
    );
    has(&seen, &format!("\n{mtu}\n"));
    reaches(g, PEER6);
}

/// Duplicate address detection of the guest's own addresses finds nobody, in both families.
fn own_address_is_free(lab: &mut Lab) {
    let g = fresh(lab);
    g.sh(&format!("arping -D -I eth0 -c 2 -w 2 {HOST4}"));
    g.sh(&format!("ip addr add {HOST6}/64 dev eth0"));
    let seen = wait_for(g, "ip -6 addr show dev eth0 scope global", |s| {
        s.contains(HOST6) && !s.contains("tentative")
    });
    assert!(!seen.contains("dadfailed"), "{seen}");
}
