//! A configuration for the tests of the services: everything on, one of each.

use crate::addr::Mac;
use crate::config::{Config, Mode, Services, Splice, V4, V6, Verbosity};

pub const GUEST: Mac = Mac([2, 0xad, 0xb8, 0x46, 0x81, 0x7a]);

/// No neighbours.
pub fn ours(_: std::net::IpAddr) -> Mac {
    Mac::OURS
}

pub fn config() -> Config {
    let v4 = V4 {
        addr: "192.0.2.5".parse().unwrap(),
        prefix_len: 24,
        gateway: Some("192.0.2.1".parse().unwrap()),
        our_addr: Some("192.0.2.1".parse().unwrap()),
        map_host_loopback: None,
        map_guest_addr: None,
        dns_match: None,
        dns_host: None,
        dns: vec![
            "203.0.113.53".parse().unwrap(),
            "203.0.113.54".parse().unwrap(),
        ],
        outbound: None,
        outbound_if: None,
    };
    let v6 = V6 {
        addr: Some("2001:db8:5::5".parse().unwrap()),
        gateway: Some("fe80::99".parse().unwrap()),
        our_link_local: "fe80::1".parse().unwrap(),
        map_host_loopback: None,
        map_guest_addr: None,
        dns_match: None,
        dns_host: None,
        dns_host_scope: 0,
        dns: vec![
            "2001:db8:53::53".parse().unwrap(),
            "2001:db8:53::54".parse().unwrap(),
        ],
        outbound: None,
        outbound_if: None,
        outbound_scope: 0,
    };
    Config {
        mode: Mode::Passt,
        our_mac: Mac::OURS,
        guest_mac: None,
        mtu: 65520,
        v4: Some(v4),
        v6: Some(v6),
        given: Vec::new(),
        services: Services {
            tcp: true,
            udp: true,
            icmp: true,
            dhcp: true,
            ndp: true,
            dhcpv6: true,
            ra: true,
        },
        splice: Splice {
            inbound: true,
            to_loopback: false,
            only: false,
        },
        hostname: Some("hosty".into()),
        fqdn: Some("hosty.example.org".into()),
        search: vec!["example.org".into(), "corp.example.org".into()],
        dhcp_dns: true,
        dhcp_search: true,
        pcap: None,
        stats: None,
        verbosity: Verbosity::Normal,
    }
}
