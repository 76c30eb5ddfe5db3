//! The established protocol: greeting, tables, rules; bytes in, values out, and back.
//!
//! Every parser takes all bytes received so far and answers with a value, "not yet" (`None`) or an error. Nothing
//! is kept between two calls, and what one side may send at all is bounded ([`MAX_GREETING`], [`MAX_UPDATE`]):
//! a table has at most [`MAX_RULES`] rules of [`RULE`] bytes each. A rule that parses is well-formed, no more:
//! whether it may be added is for [`Rules::add`](crate::config::rules::Rules::add) to say.

use std::net::{IpAddr, Ipv6Addr};

use crate::config::rules::{MAX_INTERFACE_NAME, MAX_RULES, Protocol, Rule, Table};

/// First bytes of a greeting.
const MAGIC: [u8; 8] = *b"basil:s\0";
/// The newest version seen, and the one we speak; older ones look the same.
const VERSION: u32 = 2;
/// Size of a table's name in bytes, zeroes included.
const NAME: usize = 128;
/// Size of an interface's name in bytes, zeroes included.
const INTERFACE: usize = 16;
/// Size of a rule in bytes.
pub const RULE: usize = 56;
/// Most tables a greeting may list.
const MAX_TABLES: usize = 8;
/// Longest greeting in bytes.
pub const MAX_GREETING: usize = 20 + MAX_TABLES * (1 + NAME + 8 + MAX_RULES * RULE) + 1;
/// Longest list of tables a client may send, in bytes.
pub const MAX_UPDATE: usize = MAX_TABLES * (1 + 4 + MAX_RULES * RULE) + 1;

/// What a table can hold, as bits of the greeting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities(pub u32);

impl Capabilities {
    /// IPv4 is on.
    pub const IPV4: u32 = 1;
    /// IPv6 is on.
    pub const IPV6: u32 = 1 << 1;
    /// TCP is on.
    pub const TCP: u32 = 1 << 2;
    /// UDP is on.
    pub const UDP: u32 = 1 << 3;
    /// Automatic rules are possible.
    pub const SCAN: u32 = 1 << 4;
    /// Listening can be limited to an interface.
    pub const INTERFACE: u32 = 1 << 5;
    /// The server understands our queries, too ([`super::exchange`]). The established client ignores the bit.
    pub const QUERIES: u32 = 1 << 31;

    /// Names of the established bits, in order.
    const NAMES: [&'static str; 6] = ["IPv4", "IPv6", "TCP", "UDP", "scan", "ifname"];

    /// All of `bits`?
    #[must_use]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// The names of the bits that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .zip(0_u32..)
            .filter(move |(_, bit)| self.0 >> bit & 1 == 1)
            .map(|(name, _)| name)
    }
}

/// Why bytes are not of this protocol.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Something else listens there.
    #[error("Bad magic number from server")]
    Magic,
    /// Newer than we know.
    #[error("Unknown server protocol version {0} > {VERSION}")]
    Version(u32),
    /// Another layout.
    #[error("Server has unexpected pif name size ({0} not {NAME})")]
    NameSize(u32),
    /// Another layout.
    #[error("Server has unexpected IFNAMSIZ ({0} not {INTERFACE})")]
    InterfaceSize(u32),
    /// More than [`MAX_RULES`] in one table.
    #[error("Too many forwarding rules")]
    TooManyRules,
    /// More than anybody has.
    #[error("Too many tables")]
    TooManyTables,
    /// A table that is not there.
    #[error("Unknown table {0}")]
    Table(u8),
    /// A rule that contradicts itself, or says what this version does not know.
    #[error("Malformed forwarding rule: {0}")]
    Rule(&'static str),
    /// A query of ours in another version.
    #[error("Unknown query")]
    Query,
}

/// A table as the greeting shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pif {
    /// Number in later messages; never 0.
    pub id: u8,
    /// Name for people, and for `--clear`.
    pub name: String,
    /// What it can hold.
    pub capabilities: Capabilities,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// The number of a table in messages.
#[must_use]
pub const fn id(table: Table) -> u8 {
    match table {
        Table::Host => 1,
        Table::Splice => 3,
    }
}

/// What is left to read.
pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
}

/// Append a greeting with these tables.
pub fn put_greeting<'a>(
    out: &mut Vec<u8>,
    tables: impl IntoIterator<Item = (Table, Capabilities, &'a [Rule])>,
) {
    out.extend_from_slice(&MAGIC);
    for n in [VERSION, 128, 16] {
        out.extend_from_slice(&n.to_be_bytes());
    }
    for (table, capabilities, rules) in tables {
        out.push(id(table));
        put_name::<NAME>(out, &table.to_string());
        out.extend_from_slice(&capabilities.0.to_be_bytes());
        put_rules(out, rules);
    }
    out.push(0);
}

/// Append the tables a client wants.
pub fn put_update<'a>(out: &mut Vec<u8>, tables: impl IntoIterator<Item = (u8, &'a [Rule])>) {
    for (id, rules) in tables {
        out.push(id);
        put_rules(out, rules);
    }
    out.push(0);
}

fn put_rules(out: &mut Vec<u8>, rules: &[Rule]) {
    let rules = rules.get(..MAX_RULES).unwrap_or(rules);
    let count = u32::try_from(rules.len()).unwrap_or_default();
    out.extend_from_slice(&count.to_be_bytes());
    rules.iter().for_each(|rule| put_rule(out, rule));
}

/// `name`, cut so that at least one zero follows.
fn put_name<const N: usize>(out: &mut Vec<u8>, name: &str) {
    let used = name.len().min(N.saturating_sub(1));
    out.extend_from_slice(name.as_bytes().get(..used).unwrap_or_default());
    out.extend(std::iter::repeat_n(0, N.saturating_sub(used)));
}

const DUAL_STACK: u8 = 1;
const BEST_EFFORT: u8 = 1 << 1;
const AUTO_SCAN: u8 = 1 << 2;

fn put_rule(out: &mut Vec<u8>, rule: &Rule) {
    out.extend_from_slice(&octets(rule.listen));
    out.extend_from_slice(&octets(rule.target));
    put_name::<INTERFACE>(out, rule.interface.as_deref().unwrap_or_default());
    for port in [rule.first, rule.last, rule.to_first] {
        out.extend_from_slice(&port.to_be_bytes());
    }
    out.push(match rule.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    });
    let flag = |set, bit| if set { bit } else { 0 };
    out.push(
        flag(rule.listen.is_none(), DUAL_STACK)
            | flag(rule.best_effort, BEST_EFFORT)
            | flag(rule.auto_scan, AUTO_SCAN),
    );
}

fn octets(address: Option<IpAddr>) -> [u8; 16] {
    match address {
        None => [0; 16],
        Some(IpAddr::V4(a)) => a.to_ipv6_mapped().octets(),
        Some(IpAddr::V6(a)) => a.octets(),
    }
}

/// Read a greeting; `None`: it has not arrived completely.
///
/// # Errors
///
/// The first thing that is not of the established protocol.
pub fn parse_greeting(bytes: &[u8]) -> Result<Option<Vec<Pif>>, WireError> {
    let mut input = Input(bytes);
    let Some(magic) = input.bytes(MAGIC.len()) else {
        return Ok(None);
    };
    if magic != MAGIC {
        return Err(WireError::Magic);
    }
    let (Some(version), Some(name), Some(interface)) = (input.u32(), input.u32(), input.u32())
    else {
        return Ok(None);
    };
    if version > VERSION {
        return Err(WireError::Version(version));
    }
    if name != 128 {
        return Err(WireError::NameSize(name));
    }
    if interface != 16 {
        return Err(WireError::InterfaceSize(interface));
    }
    let mut tables = Vec::new();
    while let Some(id) = input.u8() {
        if id == 0 {
            return Ok(Some(tables));
        }
        if tables.len() == MAX_TABLES {
            return Err(WireError::TooManyTables);
        }
        let (Some(name), Some(capabilities)) = (input.bytes(NAME), input.u32()) else {
            return Ok(None);
        };
        let name = text(name).ok_or(WireError::Rule("name of a table"))?;
        let mut rules = Vec::new();
        if parse_rules(&mut input, &mut rules)?.is_none() {
            return Ok(None);
        }
        tables.push(Pif {
            id,
            name,
            capabilities: Capabilities(capabilities),
            rules,
        });
    }
    Ok(None)
}

/// The tables a client wants: what it does not mention is to be empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Update {
    /// Of [`Table::Host`].
    pub host: Vec<Rule>,
    /// Of [`Table::Splice`].
    pub splice: Vec<Rule>,
}

/// Read what a client wants; `None`: it has not arrived completely.
///
/// # Errors
///
/// The first thing wrong with it.
pub fn parse_update(bytes: &[u8]) -> Result<Option<Update>, WireError> {
    let mut input = Input(bytes);
    let mut update = Update::default();
    while let Some(table) = input.u8() {
        let rules = match table {
            0 => return Ok(Some(update)),
            1 => &mut update.host,
            3 => &mut update.splice,
            _ => return Err(WireError::Table(table)),
        };
        if parse_rules(&mut input, rules)?.is_none() {
            return Ok(None);
        }
    }
    Ok(None)
}

/// A count and that many rules, added to `rules`. The count is refused before anything is made for it.
fn parse_rules(input: &mut Input<'_>, rules: &mut Vec<Rule>) -> Result<Option<()>, WireError> {
    let Some(count) = input.u32() else {
        return Ok(None);
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > MAX_RULES.saturating_sub(rules.len()) {
        return Err(WireError::TooManyRules);
    }
    for _ in 0..count {
        let Some(bytes) = input.bytes(RULE) else {
            return Ok(None);
        };
        rules.push(parse_rule(bytes)?);
    }
    Ok(Some(()))
}

fn parse_rule(bytes: &[u8]) -> Result<Rule, WireError> {
    let mut input = Input(bytes);
    let short = WireError::Rule("too short");
    let mut read = || {
        let (listen, target) = (input.array()?, input.array()?);
        let interface = input.bytes(INTERFACE)?;
        let ports = (input.u16()?, input.u16()?, input.u16()?);
        Some((listen, target, interface, ports, input.u8()?, input.u8()?))
    };
    let (listen, target, interface, (first, last, to_first), protocol, flags) =
        read().ok_or(short)?;
    let protocol = match protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return Err(WireError::Rule("neither TCP nor UDP")),
    };
    if flags & !(DUAL_STACK | BEST_EFFORT | AUTO_SCAN) != 0 {
        return Err(WireError::Rule("unknown flags"));
    }
    let length = last
        .checked_sub(first)
        .ok_or(WireError::Rule("last port before the first"))?;
    if to_first.checked_add(length).is_none() {
        return Err(WireError::Rule("target ports beyond 65535"));
    }
    let listen = match (flags & DUAL_STACK != 0, Ipv6Addr::from(listen)) {
        (true, Ipv6Addr::UNSPECIFIED) => None,
        (true, _) => return Err(WireError::Rule("one address for both families")),
        (false, address) => Some(IpAddr::V6(address).to_canonical()),
    };
    let target = Some(IpAddr::V6(Ipv6Addr::from(target)).to_canonical());
    let interface = text(interface).ok_or(WireError::Rule("name of an interface"))?;
    Ok(Rule {
        protocol,
        listen,
        interface: Some(interface).filter(|name| !name.is_empty()),
        first,
        last,
        target: target.filter(|address| !address.is_unspecified()),
        to_first,
        best_effort: flags & BEST_EFFORT != 0,
        auto_scan: flags & AUTO_SCAN != 0,
    })
}

/// A name up to its zeroes: printable, and terminated.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let printable = !name.contains(|c: char| c.is_control() || c.is_whitespace());
    (printable && (name.len() <= MAX_INTERFACE_NAME || bytes.len() > INTERFACE))
        .then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(line: (&str, Option<&str>, (u16, u16, u16), u8)) -> Rule {
        let (listen, target, (first, last, to_first), flags) = line;
        Rule {
            protocol: if flags & 8 == 0 {
                Protocol::Tcp
            } else {
                Protocol::Udp
            },
            listen: (listen != "*").then(|| listen.parse().expect("address")),
            interface: None,
            first,
            last,
            target: target.map(|t| t.parse().expect("address")),
            to_first,
            best_effort: flags & 2 != 0,
            auto_scan: flags & 4 != 0,
        }
    }

    /// As the established server sent it: one dual-stack TCP rule, one for UDP at an IPv4 address.
    fn captured() -> Vec<u8> {
        let mut bytes = b"basil:s\0\0\0\0\x02\0\0\0\x80\0\0\0\x10\x01HOST".to_vec();
        bytes.resize(20 + 1 + 128, 0);
        bytes.extend_from_slice(b"\0\0\0\x3f\0\0\0\x02");
        bytes.extend_from_slice(&[0; 48]);
        bytes.extend_from_slice(b"\x1f\x90\x1f\x90\x1f\x90\x06\x01");
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(b"\xff\xff\x7f\0\0\x01");
        bytes.extend_from_slice(&[0; 32]);
        bytes.extend_from_slice(b"\x14\xb4\x14\xb4\x14\xe9\x11\0");
        bytes.extend_from_slice(b"\x03SPLICE");
        bytes.resize(bytes.len() + 128 - 6, 0);
        bytes.extend_from_slice(b"\0\0\0\x3f\0\0\0\0\0");
        bytes
    }

    #[test]
    fn the_captured_greeting_reads_and_writes() {
        let bytes = captured();
        assert_eq!(bytes.len(), 407);
        let tables = parse_greeting(&bytes).expect("valid").expect("complete");
        let shown: Vec<_> = tables
            .iter()
            .flat_map(|t| t.rules.iter().map(ToString::to_string))
            .collect();
        assert_eq!(
            shown,
            ["TCP [*]:8080  =>  8080", "UDP [127.0.0.1]:5300  =>  5353"]
        );
        assert_eq!((tables[0].id, tables[0].name.as_str()), (1, "HOST"));
        assert_eq!((tables[1].id, tables[1].name.as_str()), (3, "SPLICE"));
        let mut again = Vec::new();
        put_greeting(
            &mut again,
            [
                (Table::Host, Capabilities(0x3f), &tables[0].rules[..]),
                (Table::Splice, Capabilities(0x3f), &tables[1].rules[..]),
            ],
        );
        assert_eq!(again, bytes);
        for cut in 0..bytes.len() {
            assert_eq!(parse_greeting(&bytes[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn the_capabilities_have_the_established_names() {
        let names = |bits| Capabilities(bits).names().collect::<Vec<_>>();
        assert_eq!(
            names(0x3f),
            ["IPv4", "IPv6", "TCP", "UDP", "scan", "ifname"]
        );
        assert_eq!(names(Capabilities::QUERIES | 8), ["UDP"]);
    }

    #[test]
    fn other_servers_are_named() {
        let with = |at: usize, byte| {
            let mut bytes = captured();
            bytes[at] = byte;
            parse_greeting(&bytes).expect_err("refused").to_string()
        };
        assert_eq!(with(6, b'x'), "Bad magic number from server");
        assert_eq!(with(11, 3), "Unknown server protocol version 3 > 2");
        assert_eq!(
            with(15, 64),
            "Server has unexpected pif name size (64 not 128)"
        );
        assert_eq!(with(19, 32), "Server has unexpected IFNAMSIZ (32 not 16)");
        assert_eq!(with(20 + 129 + 6, 1), "Too many forwarding rules");
        assert!(with(20 + 1, 0x1b).contains("name of a table"));
        let mut old = captured();
        old[11] = 1;
        assert!(parse_greeting(&old).expect("as before").is_some());
    }

    #[test]
    fn an_update_is_whole_or_nothing() {
        let tables = [
            rule(("*", None, (9000, 9000, 9000), 0)),
            rule(("::", None, (1, 32767, 1), 6)),
            rule(("0.0.0.0", Some("10.0.0.1"), (80, 89, 65526), 8)),
        ];
        let mut bytes = Vec::new();
        put_update(&mut bytes, [(1, &tables[..2]), (3, &tables[2..])]);
        assert_eq!(bytes.len(), 2 * 5 + 3 * RULE + 1);
        for cut in 0..bytes.len() {
            assert_eq!(parse_update(&bytes[..cut]), Ok(None));
        }
        let update = parse_update(&bytes).expect("valid").expect("complete");
        assert_eq!(update.host, tables[..2]);
        assert_eq!(update.splice, tables[2..]);
        // What is not mentioned is to be empty; what is mentioned twice adds up.
        assert_eq!(parse_update(&[0]), Ok(Some(Update::default())));
        let mut twice = bytes[..5 + 2 * RULE].to_vec();
        twice.extend_from_slice(&bytes);
        let update = parse_update(&twice).expect("valid").expect("complete");
        assert_eq!(update.host.len(), 4);
    }

    #[test]
    fn malformed_updates_are_refused_before_they_cost_anything() {
        let refused = |bytes: &[u8]| parse_update(bytes).expect_err("refused");
        assert_eq!(refused(&[2]), WireError::Table(2));
        assert_eq!(refused(&[1, 0, 0, 1, 0]), WireError::TooManyRules);
        assert_eq!(refused(&[1, 255, 255, 255, 255]), WireError::TooManyRules);
        let mut bytes = Vec::new();
        put_update(
            &mut bytes,
            [(1, &[rule(("::1", None, (80, 81, 65534), 0))][..])],
        );
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = bytes.clone();
            for (at, byte) in changes {
                bytes[5 + at] = *byte;
            }
            refused(&bytes).to_string()
        };
        let name: Vec<_> = (32..48).map(|at| (at, b'x')).collect();
        assert!(with(&name).contains("interface"));
        assert!(with(&[(32, 0x0a)]).contains("interface"));
        assert!(with(&[(49, 90)]).contains("last port"));
        assert!(with(&[(53, 0xff)]).contains("65535"));
        assert!(with(&[(54, 1)]).contains("TCP"));
        assert!(with(&[(55, 1)]).contains("both families"));
        assert!(with(&[(55, 8)]).contains("flags"));
    }

    proptest! {
        #[test]
        fn rules_survive(
            udp in any::<bool>(), listen in any::<Option<[u8; 16]>>(), target in any::<Option<[u8; 4]>>(),
            interface in proptest::option::of("[a-z0-9.@-]{1,15}"), first in any::<u16>(), length in 0_u16..400,
            to_first in any::<u16>(), best_effort in any::<bool>(), auto_scan in any::<bool>(),
        ) {
            let rule = Rule {
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                listen: listen.map(|a| IpAddr::V6(a.into()).to_canonical()),
                interface,
                first: first.min(u16::MAX - length),
                last: first.min(u16::MAX - length) + length,
                target: target.map(|a| IpAddr::V4(a.into())).filter(|a| !a.is_unspecified()),
                to_first: to_first.min(u16::MAX - length),
                best_effort,
                auto_scan,
            };
            let mut bytes = Vec::new();
            put_rule(&mut bytes, &rule);
            prop_assert_eq!(bytes.len(), RULE);
            prop_assert_eq!(parse_rule(&bytes), Ok(rule));
        }

        #[test]
        fn any_bytes_are_no_reason_to_panic(
            table in 0_u8..4, count in 0_u8..4, bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let mut update = vec![table, 0, 0, 0, count];
            update.extend_from_slice(&bytes);
            let _ = parse_update(&update);
            let _ = parse_update(&bytes);
            let mut greeting = captured()[..20].to_vec();
            greeting.extend_from_slice(&bytes);
            let _ = parse_greeting(&greeting);
            let _ = parse_greeting(&bytes);
        }
    }
}
