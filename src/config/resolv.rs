//! `resolv.conf`(5), read once at start: resolvers and search domains.
//!
//! The file belongs to the host's administrator, but its contents come from DHCP servers and VPNs, so nothing
//! in it is trusted: any bytes are accepted, what is not understood is skipped, and lists are bounded. An
//! empty or missing file is an ordinary configuration without resolvers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most nameservers taken from the file.
const MAX_NAMESERVERS: usize = 16;
/// Most search domains taken from the file.
const MAX_SEARCH: usize = 32;
/// Longest name (RFC 1035, section 2.3.4, less the root's length byte).
const MAX_NAME: usize = 253;
/// Longest label (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// One `nameserver` line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nameserver {
    /// Its address. The unspecified address stands for this host, as in the C library, and is stored as loopback.
    pub addr: IpAddr,
    /// Interface (name or index) behind `%`, of a link-local address.
    pub scope: Option<String>,
}

/// What matters of the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResolvConf {
    /// Resolvers in order.
    pub nameservers: Vec<Nameserver>,
    /// Search domains in order, without the final dot.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Read the contents of the file. The last `search` line counts; `domain` only without one.
    #[must_use]
    pub fn parse(contents: &[u8]) -> Self {
        let mut conf = Self::default();
        let mut searched = false;
        for line in contents.split(|&b| b == b'\n' || b == 0) {
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if conf.nameservers.len() < MAX_NAMESERVERS => {
                    conf.nameservers.extend(words.next().and_then(nameserver));
                }
                Some("search") => {
                    searched = true;
                    conf.search = domains(words);
                }
                Some("domain") if !searched => conf.search = domains(words.take(1)),
                _ => {}
            }
        }
        conf
    }
}

fn nameserver(text: &str) -> Option<Nameserver> {
    let (addr, scope) = match text.split_once('%') {
        Some((addr, scope)) => (addr, Some(scope.to_owned())),
        None => (text, None),
    };
    let addr = match addr.parse::<IpAddr>().ok()?.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        addr => addr,
    };
    (!addr.is_multicast()).then_some(Nameserver { addr, scope })
}

fn domains<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    words
        .map(|w| w.strip_suffix('.').unwrap_or(w))
        .filter(|w| is_domain_name(w))
        .take(MAX_SEARCH)
        .map(str::to_owned)
        .collect()
}

/// Can this be sent as a DNS name? Labels of 1 to 63 printable characters, 253 together; names with
/// underscores and the like are in use, so no more is asked.
#[must_use]
pub fn is_domain_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= MAX_LABEL
                && label.bytes().all(|b| b.is_ascii_graphic())
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers(text: &str) -> Vec<String> {
        ResolvConf::parse(text.as_bytes())
            .nameservers
            .into_iter()
            .map(|n| match n.scope {
                Some(scope) => format!("{}%{scope}", n.addr),
                None => n.addr.to_string(),
            })
            .collect()
    }

    #[test]
    fn nameserver_lines() {
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            ("nameserver 192.0.2.1", &["192.0.2.1"]),
            ("  nameserver\t192.0.2.1  # comment\r\n", &["192.0.2.1"]),
            ("#nameserver 192.0.2.1\n;nameserver 192.0.2.2\n", &[]),
            (
                "nameserver 192.0.2.300\nnameserver 192.0.2.4\n",
                &["192.0.2.4"],
            ),
            ("nameserver\nnameserver \n", &[]),
            ("nameserver fe80::53%eth0\n", &["fe80::53%eth0"]),
            ("nameserver 0.0.0.0\nnameserver ::\n", &["127.0.0.1", "::1"]),
            ("nameserver ::ffff:192.0.2.9\n", &["192.0.2.9"]),
            ("nameserver 224.0.0.1\nnameserver ff02::1\n", &[]),
            (
                "nameserver 192.0.2.1\0nameserver 192.0.2.2\0",
                &["192.0.2.1", "192.0.2.2"],
            ),
            ("nameserver 192.0.2.1 192.0.2.2\n", &["192.0.2.1"]),
            ("nameservers 192.0.2.1\n", &[]),
        ];
        for (text, want) in table {
            assert_eq!(servers(text), *want, "{text:?}");
        }
        assert!(
            ResolvConf::parse(b"\xff\xfe\nnameserver \xff\n")
                .nameservers
                .is_empty()
        );
    }

    #[test]
    fn search_lines() {
        let search = |text: &str| ResolvConf::parse(text.as_bytes()).search.join(" ");
        assert_eq!(search("search a.example b\tc.\n"), "a.example b c");
        assert_eq!(search("search a\nsearch b\n"), "b");
        assert_eq!(search("domain x.example\n"), "x.example");
        assert_eq!(search("search a b\ndomain x.example\n"), "a b");
        assert_eq!(search("domain x.example\nsearch a b\n"), "a b");
        assert_eq!(search("search a..b ok .\n"), "ok");
        assert_eq!(search(&format!("search {} ok\n", "a".repeat(64))), "ok");
    }

    #[test]
    fn a_megabyte_is_bounded() {
        let text = "nameserver 192.0.2.1\nsearch a b c d e f\n".repeat(30_000);
        let conf = ResolvConf::parse(text.as_bytes());
        assert_eq!(conf.nameservers.len(), MAX_NAMESERVERS);
        let long = format!("search {}\n", "x ".repeat(500_000));
        assert_eq!(ResolvConf::parse(long.as_bytes()).search.len(), MAX_SEARCH);
        assert!(
            ResolvConf::parse(&vec![b'a'; 1 << 20])
                .nameservers
                .is_empty()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let conf = ResolvConf::parse(&bytes);
            prop_assert!(conf.search.iter().all(|d| is_domain_name(d)));
        }
    }
}
