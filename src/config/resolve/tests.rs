use std::ffi::OsString;

use super::*;
use crate::cli::{self, Invocation};
use crate::config::host::Scope;
use crate::config::testing::{address, default_via, host, onlink};
use crate::config::{Machine, summary};

fn ordinary() -> HostNetwork {
    let mut h = host(&["eth7"]);
    let mut ll = address(2, "fe80::ff:fe00:7", 64);
    ll.scope = Scope::Link;
    h.addresses = vec![
        address(2, "192.0.2.10", 24),
        address(2, "2001:db8::10", 64),
        ll,
    ];
    h.routes = vec![
        default_via("192.0.2.1", 2, 0),
        onlink("192.0.2.0", 24, 2),
        onlink("2001:db8::", 64, 2),
        default_via("fe80::99", 2, 1024),
    ];
    h
}

fn run_on(h: &HostNetwork, resolv: &str, line: &str) -> Result<Resolved, ConfigError> {
    let argv: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    let Ok(Invocation::Run(options)) = cli::parse(&argv) else {
        panic!("{line}");
    };
    let environment = Environment {
        resolv: ResolvConf::parse(resolv.as_bytes()),
        hostname: "vm".to_owned(),
        ephemeral: DEFAULT_EPHEMERAL,
    };
    resolve(&options, h, &environment)
}

fn run(line: &str) -> Resolved {
    run_on(&ordinary(), "nameserver 198.51.100.53\n", line).unwrap()
}

fn local(line: &str) -> Resolved {
    run_on(&host(&[]), "nameserver 198.51.100.53\n", line).unwrap()
}

fn v4(r: &Resolved) -> &V4 {
    r.config.v4.as_ref().unwrap()
}

fn v6(r: &Resolved) -> &V6 {
    r.config.v6.as_ref().unwrap()
}

fn addresses(r: &Resolved) -> Vec<String> {
    let show = |a: &SetupAddress| format!("{}/{}", a.local, a.prefix_len);
    r.netns.addresses.iter().map(show).collect()
}

fn routes(r: &Resolved) -> Vec<String> {
    let via = |r: &SetupRoute| {
        r.hops[0]
            .gateway
            .map_or_else(|| "link".to_owned(), |g| g.to_string())
    };
    let show = |r: &SetupRoute| format!("{}/{} {}", r.destination, r.prefix_len, via(r));
    r.netns.routes.iter().map(show).collect()
}

#[test]
fn the_guest_looks_like_the_host() {
    let r = run("pasta --config-net");
    assert_eq!(
        (v4(&r).addr.to_string(), v4(&r).prefix_len),
        ("192.0.2.10".to_owned(), 24)
    );
    assert_eq!(v4(&r).map_host_loopback, "192.0.2.1".parse().ok());
    assert_eq!(v6(&r).our_link_local.to_string(), "fe80::99");
    assert_eq!(v6(&r).outbound_scope, 2);
    assert_eq!((r.netns.ifname.as_str(), r.netns.mtu), ("eth7", 65520));
    assert_eq!(addresses(&r), ["192.0.2.10/24", "2001:db8::10/64"]);
    let all = [
        "0.0.0.0/0 192.0.2.1",
        "192.0.2.0/24 link",
        "2001:db8::/64 link",
        "::/0 fe80::99",
    ];
    assert_eq!(routes(&r), all);
    assert_eq!(r.uts_hostname.as_deref(), Some("pasta-vm"));
    for rules in [&r.host_rules, &r.splice_rules] {
        assert!(rules.as_slice().iter().all(|rule| rule.auto_scan));
        assert_eq!(rules.as_slice().len(), 4);
    }
    assert!(r.config.services.dhcp && r.config.services.dhcpv6);
}

#[test]
fn local_mode_is_per_family() {
    let r = local("pasta --config-net");
    assert_eq!(r.netns.ifname, "tap0");
    assert_eq!(addresses(&r), ["169.254.2.1/16"]);
    assert_eq!(routes(&r), ["0.0.0.0/0 169.254.2.2", "::/0 fe80::1"]);
    assert_eq!(
        (v6(&r).addr, v6(&r).our_link_local.to_string()),
        (None, "fe80::1".to_owned())
    );
    assert!(!r.config.services.dhcpv6);
    assert_eq!(r.notices.len(), 2);

    let r = local("pasta --config-net -a 10.0.2.100 -n 24 -g 10.0.2.2 -a 2001:db8::7");
    assert_eq!(addresses(&r), ["10.0.2.100/24", "2001:db8::7/64"]);
    assert_eq!(routes(&r), ["0.0.0.0/0 10.0.2.2", "::/0 fe80::1"]);

    let mut h = ordinary();
    h.addresses.retain(|a| a.local.is_ipv6());
    let r = run_on(&h, "", "pasta").unwrap();
    assert_eq!(
        (r.template4.as_deref(), r.template6.as_deref()),
        (None, Some("eth7"))
    );
    assert_eq!(
        (r.netns.ifname.as_str(), v4(&r).addr),
        ("eth7", LOCAL_ADDRESS)
    );
    assert!(v6(&r).addr.is_some());
}

#[test]
fn addresses_gateways_and_copies() {
    let r = run("pasta --config-net -a 10.1.2.3");
    assert_eq!(addresses(&r), ["10.1.2.3/8", "2001:db8::10/64"]);
    assert_eq!(routes(&r).len(), 4, "routes are copied unless -g");
    let r = run("pasta --config-net -g 192.0.2.7");
    assert_eq!(routes(&r)[0], "0.0.0.0/0 192.0.2.7");
    assert_eq!(routes(&r).len(), 3);
    let r = run("pasta --config-net --no-copy-routes --no-copy-addrs -4");
    assert_eq!(
        (addresses(&r).len(), routes(&r)),
        (1, vec!["0.0.0.0/0 192.0.2.1".to_owned()])
    );
    assert!(r.config.v6.is_none());
    for (address, len) in [
        ("10.0.0.1", 8),
        ("172.16.0.1", 16),
        ("223.1.1.1", 24),
        ("240.0.0.1", 32),
        ("10.0.0.1/0", 8),
        ("10.0.0.1/30", 30),
    ] {
        assert_eq!(
            v4(&run(&format!("pasta -a {address}"))).prefix_len,
            len,
            "{address}"
        );
    }
    assert_eq!(
        v4(&run("pasta -n 16")).prefix_len,
        24,
        "the host's address has the host's mask"
    );
}

#[test]
fn no_gateway_no_dhcp() {
    let mut h = ordinary();
    h.routes.retain(|r| !r.is_default());
    let r = run_on(&h, "", "pasta").unwrap();
    assert_eq!(
        (v4(&r).gateway, v4(&r).map_host_loopback, v6(&r).gateway),
        (None, None, None)
    );
    assert_eq!(v6(&r).our_link_local.to_string(), "fe80::ff:fe00:7");
    assert!(!r.config.services.dhcp);
}

#[test]
fn mapping_the_host() {
    let maps = |line: &str| {
        let r = run(line);
        (
            v4(&r).map_host_loopback.map(|a| a.to_string()),
            v6(&r).map_host_loopback.map(|a| a.to_string()),
        )
    };
    let s = |text: &str| Some(text.to_owned());
    assert_eq!(maps("pasta"), (s("192.0.2.1"), s("fe80::99")));
    assert_eq!(maps("pasta --no-map-gw"), (None, None));
    assert_eq!(maps("pasta --map-host-loopback none"), (None, None));
    assert_eq!(
        maps("pasta --map-host-loopback 192.0.2.77"),
        (s("192.0.2.77"), s("fe80::99"))
    );
    assert_eq!(
        maps("pasta --no-map-gw --map-host-loopback 192.0.2.77"),
        (s("192.0.2.77"), None)
    );
    assert_eq!(
        maps("pasta --map-host-loopback none --map-host-loopback 192.0.2.77"),
        (s("192.0.2.77"), None)
    );
    let r = run("pasta --map-guest-addr 169.254.1.2");
    assert_eq!(
        (v4(&r).map_guest_addr, v6(&r).map_guest_addr),
        ("169.254.1.2".parse().ok(), None)
    );
}

/// `resolv.conf`, options; then for IPv4: told, matched and used addresses.
type ResolverCase = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
    Option<&'static str>,
);

#[test]
fn resolvers() {
    let table: &[ResolverCase] = &[
        ("nameserver 8.8.8.8", "", "8.8.8.8", None, Some("8.8.8.8")),
        (
            "nameserver 8.8.8.8",
            "--dns-forward 169.254.1.1",
            "8.8.8.8",
            Some("169.254.1.1"),
            Some("8.8.8.8"),
        ),
        (
            "nameserver 127.0.0.53",
            "",
            "192.0.2.1",
            Some("192.0.2.1"),
            Some("127.0.0.53"),
        ),
        (
            "nameserver 127.0.0.53",
            "--no-map-gw",
            "",
            None,
            Some("127.0.0.53"),
        ),
        (
            "nameserver 127.0.0.53",
            "--dns-forward 169.254.1.1",
            "169.254.1.1",
            Some("169.254.1.1"),
            Some("127.0.0.53"),
        ),
        (
            "nameserver 127.0.0.53",
            "--no-map-gw --dns-forward 169.254.1.1",
            "169.254.1.1",
            Some("169.254.1.1"),
            Some("127.0.0.53"),
        ),
        (
            "nameserver 192.0.2.1\nnameserver 8.8.8.8",
            "",
            "192.0.2.1 8.8.8.8",
            Some("192.0.2.1"),
            Some("192.0.2.1"),
        ),
        (
            "nameserver 8.8.8.8\nnameserver 192.0.2.1",
            "",
            "8.8.8.8 192.0.2.1",
            Some("192.0.2.1"),
            Some("8.8.8.8"),
        ),
        (
            "nameserver 8.8.8.8\nnameserver 127.0.0.1\nnameserver 9.9.9.9",
            "",
            "8.8.8.8 192.0.2.1 9.9.9.9",
            None,
            Some("8.8.8.8"),
        ),
        (
            "nameserver 127.0.0.1\nnameserver 127.0.0.53",
            "",
            "192.0.2.1",
            Some("192.0.2.1"),
            Some("127.0.0.1"),
        ),
        (
            "nameserver 8.8.8.8",
            "--dns-host 9.9.9.9 --dns-forward 169.254.1.1",
            "8.8.8.8",
            Some("169.254.1.1"),
            Some("9.9.9.9"),
        ),
        (
            "nameserver 8.8.8.8",
            "--dns-host 127.0.0.53",
            "8.8.8.8",
            Some("192.0.2.1"),
            Some("127.0.0.53"),
        ),
        (
            "nameserver 8.8.8.8",
            "-D 127.0.0.1 -D 1.1.1.1",
            "127.0.0.1 1.1.1.1",
            None,
            Some("8.8.8.8"),
        ),
        ("nameserver 8.8.8.8", "-D none", "", None, Some("8.8.8.8")),
        (
            "nameserver 2001:db8::53",
            "--dns-forward 169.254.1.1",
            "",
            None,
            None,
        ),
        ("", "--dns-forward 169.254.1.1", "", None, None),
    ];
    for (conf, line, told, matched, used) in table {
        let r = run_on(&ordinary(), conf, &format!("pasta {line}")).unwrap();
        let shown = v4(&r)
            .dns
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ");
        assert_eq!(shown, *told, "{conf} {line}");
        assert_eq!(
            v4(&r).dns_match.map(|a| a.to_string()).as_deref(),
            *matched,
            "{conf} {line}"
        );
        assert_eq!(
            v4(&r).dns_host.map(|a| a.to_string()).as_deref(),
            *used,
            "{conf} {line}"
        );
    }
    let r = run_on(&ordinary(), "nameserver ::1\n", "pasta").unwrap();
    assert_eq!(
        v6(&r).dns_match.map(|a| a.to_string()).as_deref(),
        Some("fe80::99")
    );
    for (conf, scope) in [
        ("fe80::53%eth7", 2),
        ("fe80::53%9", 9),
        ("fe80::53", 2),
        ("2001:db8::53", 0),
    ] {
        let r = run_on(&ordinary(), &format!("nameserver {conf}\n"), "pasta").unwrap();
        assert_eq!(v6(&r).dns_host_scope, scope, "{conf}");
    }
}

#[test]
fn search_domains() {
    let search = |line: &str| {
        run_on(&ordinary(), "search a.example b\n", line)
            .unwrap()
            .config
            .search
            .join(" ")
    };
    assert_eq!(search("pasta"), "a.example b");
    assert_eq!(search("pasta -S none"), "");
    assert_eq!(search("pasta -S c -S d"), "c d");
}

#[test]
fn a_small_mtu_is_without_ipv6() {
    let r = run("pasta --config-net -m 576");
    assert!(r.config.v6.is_none() && r.netns.addresses.iter().all(|a| a.local.is_ipv4()));
    assert_eq!(r.notices[0].level, log::Level::Warn);
    assert_eq!(
        run_on(&ordinary(), "", "pasta -6 -m 576").unwrap_err(),
        ConfigError::SmallMtu(576)
    );
    assert!(run("pasta -m 0").config.v6.is_some());
}

#[test]
fn named_interfaces() {
    let fails = |line: &str| run_on(&ordinary(), "", line).unwrap_err().to_string();
    assert_eq!(
        fails("pasta -i nope"),
        "Invalid interface name nope: No such device"
    );
    assert!(fails("pasta -i lo").contains("loopback"));
    let r = run("pasta --outbound-if4 later0");
    assert_eq!(
        (v4(&r).outbound_if.as_deref(), r.template4.as_deref()),
        (Some("later0"), Some("eth7"))
    );
    assert_eq!(r.notices[0].text, "No outbound interface later0 (yet)");
    assert_eq!(run("pasta -I foo").netns.ifname, "foo");
}

#[test]
fn host_names() {
    assert_eq!(
        run("pasta -H box.example").uts_hostname.as_deref(),
        Some("box.example")
    );
    assert_eq!(
        run("pasta -H box.example").config.hostname.as_deref(),
        Some("box.example")
    );
    assert_eq!(run("pasta").config.hostname, None);
    assert_eq!(run("pasta 1").uts_hostname, None);
    let long = format!("pasta -H {0}.{0}", "a".repeat(60));
    assert_eq!(run(&long).uts_hostname.map(|n| n.len()), Some(MAX_HOSTNAME));
}

#[test]
fn automatic_ports_are_checked_like_others() {
    let none = run("pasta -t none -u none -T none -U none");
    assert!(none.host_rules.is_empty() && none.splice_rules.is_empty());
    let error = run_on(&ordinary(), "", "pasta -t auto -t auto")
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("Forwarding configuration conflict: "));
}

#[test]
fn explicit_ports_become_rules() {
    let r = run("pasta -t 8080:80 -T none -U 53 -4");
    assert_eq!(
        r.host_rules.as_slice()[0].to_string(),
        "TCP [0.0.0.0]:8080  =>  80"
    );
    assert_eq!(
        r.splice_rules.as_slice()[0].to_string(),
        "UDP [0.0.0.0]%lo:53  =>  53"
    );
    let error = run_on(&ordinary(), "", "pasta -t 80 -t 80")
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("Forwarding configuration conflict: "));
    run("pasta --no-tcp --no-udp");
}

#[test]
fn the_summary_reads_as_users_know_it() {
    let text = summary(
        &run(
            "pasta -S a.example -o 192.0.2.10 --outbound-if4 eth7 -t none -u none -T none -U none",
        ),
        None,
    );
    assert_eq!(
        text,
        "\
Template interface: eth7 (IPv4), eth7 (IPv6)
Outbound interface: eth7 (IPv4)
Outbound IPv4 address: 192.0.2.10
Namespace interface: eth7
MAC:
    host: 9a:55:9a:55:9a:55
    NAT to host 127.0.0.1: 192.0.2.1
DHCP:
    assign: 192.0.2.10
    mask: 255.255.255.0
    router: 192.0.2.1
DNS:
    198.51.100.53
DNS search list:
    a.example
    NAT to host ::1: fe80::99
NDP/DHCPv6:
    assign: 2001:db8::10
    router: fe80::99
    our link-local: fe80::99
DNS search list:
    a.example
"
    );
    let text = summary(&run("pasta -6 --no-ndp --map-host-loopback none"), None);
    assert!(text.contains("\nDHCPv6:\n    assign: 2001:db8::10\n") && !text.contains("NAT to"));
    assert!(!summary(&run("pasta --no-ndp --no-dhcpv6"), None).contains("assign: 2001"));
}

#[test]
fn the_summary_lists_what_is_forwarded() {
    let text = summary(
        &run("pasta -t 8080 -u 127.0.0.1/53:5353 -T none -U 9000"),
        None,
    );
    let both = "\
Inbound forwarding rules (HOST):
    TCP [*]:8080  =>  8080
    UDP [127.0.0.1]:53  =>  5353
Outbound forwarding rules (SPLICE):
    UDP [*]%lo:9000  =>  9000
";
    assert!(text.ends_with(both), "{text}");
    let none = summary(&run("pasta -t none -u none -T none -U none"), None);
    assert!(!none.contains("forwarding"), "{none}");
}

#[test]
fn the_summary_says_how_to_start_the_machine() {
    let passt = run("passt -4");
    let machine = |socket: Option<&str>, vhost_user| Machine {
        socket: socket.map(std::path::PathBuf::from),
        vhost_user,
    };
    let waiting = summary(&passt, Some(&machine(Some("/tmp/a,b"), false)));
    assert!(
        waiting.starts_with("UNIX domain socket bound at /tmp/a,b\nTemplate interface: eth7"),
        "{waiting}"
    );
    assert!(!waiting.contains("Namespace interface"), "{waiting}");
    let arch = std::env::consts::ARCH;
    let command = format!(
        "You can now start qemu (>= 7.2):\n    qemu-system-{arch} ... \\\n        \
         -device virtio-net-pci,netdev=net \\\n        \
         -netdev stream,id=net,server=off,addr.type=unix,addr.path=/tmp/a,,b\n"
    );
    assert!(waiting.ends_with(&command), "{waiting}");
    let vhost = summary(&passt, Some(&machine(Some("/run/x"), true)));
    assert!(vhost.contains("share=on"), "{vhost}");
    assert!(
        vhost.ends_with("-chardev socket,id=passt,path=/run/x\n"),
        "{vhost}"
    );
    let connected = summary(&passt, Some(&machine(None, false)));
    assert!(
        !connected.contains("qemu") && !connected.contains("bound"),
        "{connected}"
    );
}
