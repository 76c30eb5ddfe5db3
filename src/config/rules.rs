//! Port forwarding: the grammar of `-t`, `-u`, `-T` and `-U`, and the rules that come of it.
//!
//! Three steps, all pure. [`Spec::parse`] reads one value and knows only the grammar: it fails on what no host
//! could ever accept. [`Spec::rules`] expands it with what the host says ([`Context`]: which ports are
//! ephemeral, which families and protocols are on) into contiguous ranges. [`Rules::add`] is the gate to the
//! table: every rule, whoever made it, is validated there and compared with those already present, so two
//! listeners can never compete for one port. A refused rule leaves the table as it was.
//!
//! ```text
//! none | [ADDR][%IFACE]/LIST | LIST
//! LIST:  ITEM,ITEM…     ITEM:  N[-M][:[TOADDR/]T[-U]] | N[-M]:TOADDR | ~N[-M] | all[:TOADDR] | auto
//! ```
//!
//! Exclusions (`~`) win over everything else in their list. A list without ranges means all ports that are not
//! ephemeral; such rules, like `all`, are best effort: a port that cannot be bound is skipped. Beside explicit
//! ranges `all` has no effect of its own, as in the established implementation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Most rules one table holds.
pub const MAX_RULES: usize = 255;
/// Longest interface name (`IFNAMSIZ` without its terminator, `linux/if.h`).
pub const MAX_INTERFACE_NAME: usize = 15;

/// What can be forwarded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Protocol {
    /// `-t`, `-T`.
    Tcp,
    /// `-u`, `-U`.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Where the listening sockets are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Table {
    /// On the host, towards the guest: `-t`, `-u`.
    Host,
    /// In the namespace, towards the host's loopback: `-T`, `-U`.
    Splice,
}

impl Table {
    /// The option that adds to this table, for messages.
    #[must_use]
    pub const fn option(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Self::Host, Protocol::Tcp) => "-t",
            (Self::Host, Protocol::Udp) => "-u",
            (Self::Splice, Protocol::Tcp) => "-T",
            (Self::Splice, Protocol::Udp) => "-U",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "HOST",
            Self::Splice => "SPLICE",
        })
    }
}

/// One occurrence of `-t`, `-u`, `-T` or `-U`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortOption {
    /// Which way.
    pub table: Table,
    /// Which protocol.
    pub protocol: Protocol,
    /// The value.
    pub spec: Spec,
}

/// Listen on some ports, forward to others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address to listen on; `None`: every address, of both families.
    pub listen: Option<IpAddr>,
    /// Interface to listen on; `None`: any.
    pub interface: Option<String>,
    /// First port to listen on, at least 1.
    pub first: u16,
    /// Last port to listen on, at least `first`.
    pub last: u16,
    /// Where to; `None`: the guest's address (or the host's loopback) as it is at the time.
    pub target: Option<IpAddr>,
    /// Target port of `first`; the others follow in order and never exceed 65535.
    pub to_first: u16,
    /// A port that cannot be bound is no error.
    pub best_effort: bool,
    /// Listen only while the target port is bound on the other side.
    pub auto_scan: bool,
}

impl Rule {
    /// Target port of `last`.
    #[must_use]
    pub const fn to_last(&self) -> u16 {
        self.to_first
            .saturating_add(self.last.saturating_sub(self.first))
    }

    /// Could both want to listen on the same port? Interfaces do not separate rules, as bindings to one can
    /// still be reached by the other's wildcard.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let address = match (self.listen, other.listen) {
            (None, _) | (_, None) => true,
            (Some(a), Some(b)) => {
                a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
            }
        };
        self.protocol == other.protocol
            && address
            && self.first <= other.last
            && other.first <= self.last
    }

    /// What makes a rule impossible on its own.
    fn check(&self, context: &Context) -> Result<(), RuleProblem> {
        let enabled = match self.protocol {
            Protocol::Tcp => context.tcp,
            Protocol::Udp => context.udp,
        };
        if !enabled {
            return Err(RuleProblem::ProtocolOff(self.protocol));
        }
        if self.first == 0 {
            return Err(RuleProblem::PortZero("from"));
        }
        if self.to_first == 0 {
            return Err(RuleProblem::PortZero("to"));
        }
        if let Some(target) = self.target {
            check_target(self.listen, target)?;
        }
        match self.listen {
            Some(IpAddr::V4(_)) if !context.ipv4 => Err(RuleProblem::FamilyOff("IPv4")),
            Some(IpAddr::V6(_)) if !context.ipv6 => Err(RuleProblem::FamilyOff("IPv6")),
            _ => Ok(()),
        }
    }
}

fn check_target(listen: Option<IpAddr>, target: IpAddr) -> Result<(), RuleProblem> {
    if target.is_multicast() || target == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(RuleProblem::Multicast(target));
    }
    match listen {
        None => Err(RuleProblem::DualStack(target)),
        Some(l) if l.is_ipv4() != target.is_ipv4() => Err(RuleProblem::Families(l, target)),
        Some(_) => Ok(()),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.protocol)?;
        match self.listen {
            None => f.write_str("[*]")?,
            Some(a) => write!(f, "[{a}]")?,
        }
        if let Some(interface) = &self.interface {
            write!(f, "%{interface}")?;
        }
        write!(f, ":{}", Ports(self.first, self.last))?;
        f.write_str("  =>  ")?;
        match self.target {
            None => {}
            Some(IpAddr::V4(a)) => write!(f, "{a}:")?,
            Some(IpAddr::V6(a)) => write!(f, "[{a}]:")?,
        }
        write!(f, "{}", Ports(self.to_first, self.to_last()))?;
        if self.best_effort || self.auto_scan {
            f.write_str(" ")?;
        }
        if self.best_effort {
            f.write_str(" (best effort)")?;
        }
        if self.auto_scan {
            f.write_str(" (auto-scan)")?;
        }
        Ok(())
    }
}

struct Ports(u16, u16);

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == self.1 {
            write!(f, "{}", self.0)
        } else {
            write!(f, "{}-{}", self.0, self.1)
        }
    }
}

/// What the host says about forwarding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// IPv4 is on.
    pub ipv4: bool,
    /// IPv6 is on.
    pub ipv6: bool,
    /// TCP is on.
    pub tcp: bool,
    /// UDP is on.
    pub udp: bool,
    /// First and last ephemeral port (`net.ipv4.ip_local_port_range`).
    pub ephemeral: (u16, u16),
}

/// The kernel's default `net.ipv4.ip_local_port_range`.
pub const DEFAULT_EPHEMERAL: (u16, u16) = (32768, 60999);

/// Why a rule is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RuleProblem {
    /// `--no-tcp`, `--no-udp`.
    #[error("Can't add {0} forwarding rule, {0} not enabled")]
    ProtocolOff(Protocol),
    /// Port 0 cannot be listened on or connected to.
    #[error("Forwarding rule attempts to map {0} port 0")]
    PortZero(&'static str),
    /// Only hosts can be targets.
    #[error("Multicast target address {0} for forwarding rule")]
    Multicast(IpAddr),
    /// One target cannot serve both families.
    #[error(
        "Dual stack forward to {fam} address {0} unsupported\nDid you mean {any}/... instead?",
        fam = family(.0), any = wildcard(.0)
    )]
    DualStack(IpAddr),
    /// No translation between families.
    #[error("Forward from {from} ({0}) to {to} ({1}) unsupported", from = family(.0), to = family(.1))]
    Families(IpAddr, IpAddr),
    /// `-4`, `-6`.
    #[error("{0} forward, but {0} not enabled")]
    FamilyOff(&'static str),
    /// Another rule has these ports.
    #[error("Forwarding configuration conflict: {new} versus {old}")]
    Conflict {
        /// The rule refused.
        new: Box<Rule>,
        /// The rule in its way.
        old: Box<Rule>,
    },
    /// The table is full.
    #[error("Too many rules (maximum {MAX_RULES})")]
    TooMany,
}

const fn family(addr: &IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

const fn wildcard(addr: &IpAddr) -> &'static str {
    if addr.is_ipv4() { "0.0.0.0" } else { "[::]" }
}

/// A forwarding specification that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RuleError {
    /// Not in the grammar.
    #[error("Invalid port specifier '{0}'")]
    Syntax(String),
    /// `none` after something else.
    #[error("{0} none conflicts with previous options")]
    NoneAfter(&'static str),
    /// `-T` and `-U` listen on the namespace's loopback only.
    #[error("Listening address not allowed for {0} {1}")]
    ListenAddress(&'static str, String),
    /// Following the other side's listeners needs to see them.
    #[error("'auto' port forwarding is only allowed for pasta")]
    AutoInPasst,
    /// A rule cannot be added.
    #[error("{problem}\nUnable to add rule {rule}")]
    Refused {
        /// Why.
        problem: RuleProblem,
        /// Which.
        rule: Box<Rule>,
    },
}

/// A table of rules that never contradict each other.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Add a rule, if it is possible and does not compete with another.
    ///
    /// # Errors
    ///
    /// [`RuleError::Refused`] with the reason; the table is unchanged.
    pub fn add(&mut self, rule: Rule, context: &Context) -> Result<(), RuleError> {
        let problem = rule.check(context).err().or_else(|| {
            if let Some(old) = self.0.iter().find(|old| old.conflicts(&rule)) {
                return Some(RuleProblem::Conflict {
                    new: Box::new(rule.clone()),
                    old: Box::new(old.clone()),
                });
            }
            (self.0.len() >= MAX_RULES).then_some(RuleProblem::TooMany)
        });
        if let Some(problem) = problem {
            let rule = Box::new(rule);
            return Err(RuleError::Refused { problem, rule });
        }
        self.0.push(rule);
        Ok(())
    }

    /// The rules, in the order they were added.
    #[must_use]
    pub fn as_slice(&self) -> &[Rule] {
        &self.0
    }

    /// No rule?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The table without the rules that follow the other side's listeners.
    #[must_use]
    pub fn without_auto(mut self) -> Self {
        self.0.retain(|rule| !rule.auto_scan);
        self
    }

    /// The table that a command line asks for: the options for `table` in order, and `auto` for every
    /// protocol that is on and no option mentions, if `auto_default`.
    ///
    /// # Errors
    ///
    /// The first option that cannot be honoured.
    pub fn from_options(
        options: &[PortOption],
        table: Table,
        auto_default: bool,
        context: &Context,
    ) -> Result<Self, RuleError> {
        let mut rules = Self::default();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut given = options
                .iter()
                .filter(|o| o.table == table && o.protocol == protocol)
                .peekable();
            let enabled = match protocol {
                Protocol::Tcp => context.tcp,
                Protocol::Udp => context.udp,
            };
            if given.peek().is_none() && auto_default && enabled {
                rules.extend(&Spec::auto(), table, protocol, context)?;
            }
            for option in given {
                rules.extend(&option.spec, table, protocol, context)?;
            }
        }
        Ok(rules)
    }

    fn extend(
        &mut self,
        spec: &Spec,
        table: Table,
        protocol: Protocol,
        context: &Context,
    ) -> Result<(), RuleError> {
        spec.rules(table, protocol, context)
            .into_iter()
            .try_for_each(|rule| self.add(rule, context))
    }
}

/// One parsed value of a forwarding option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Spec {
    /// `none`.
    None,
    /// Anything else.
    Ports(PortList),
}

/// `[ADDR][%IFACE]/LIST`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortList {
    listen: Option<IpAddr>,
    interface: Option<String>,
    ranges: Vec<Range>,
    excluded: Vec<(u16, u16)>,
    all_target: Option<IpAddr>,
    auto: bool,
}

/// `N[-M][:[TOADDR/]T[-U]]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    first: u16,
    last: u16,
    target: Option<IpAddr>,
    to_first: u16,
}

impl Spec {
    /// Read a value.
    ///
    /// # Errors
    ///
    /// [`RuleError::Syntax`] naming the part that is not understood.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        if text == "none" {
            return Ok(Self::None);
        }
        let (listen, interface, list) = split_listen(text)?;
        PortList::parse(listen, interface, list)
            .map(Self::Ports)
            .ok_or_else(|| RuleError::Syntax(list.to_owned()))
    }

    /// `auto`.
    #[must_use]
    pub const fn auto() -> Self {
        Self::Ports(PortList {
            listen: None,
            interface: None,
            ranges: Vec::new(),
            excluded: Vec::new(),
            all_target: None,
            auto: true,
        })
    }

    /// `none`?
    #[must_use]
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Does it follow the other side's listeners?
    #[must_use]
    pub const fn is_auto(&self) -> bool {
        matches!(self, Self::Ports(p) if p.auto)
    }

    /// Does it say where to listen?
    #[must_use]
    pub const fn has_listen(&self) -> bool {
        matches!(self, Self::Ports(p) if p.listen.is_some() || p.interface.is_some())
    }

    /// The rules it stands for on this host.
    #[must_use]
    pub fn rules(&self, table: Table, protocol: Protocol, context: &Context) -> Vec<Rule> {
        match self {
            Self::None => Vec::new(),
            Self::Ports(list) => list.rules(table, protocol, context),
        }
    }
}

impl PortList {
    fn parse(listen: Option<IpAddr>, interface: Option<String>, text: &str) -> Option<Self> {
        let mut list = Self {
            listen,
            interface,
            ranges: Vec::new(),
            excluded: Vec::new(),
            all_target: None,
            auto: false,
        };
        for item in text.split(',') {
            if let Some(range) = item.strip_prefix('~') {
                list.excluded.push(ports(range)?);
            } else if item == "auto" {
                list.auto = true;
            } else if item == "all" {
                list.all_target = None;
            } else if let Some(target) = item.strip_prefix("all:") {
                list.all_target = Some(target_address(target)?);
            } else {
                list.ranges.push(Range::parse(item)?);
            }
        }
        Some(list)
    }

    fn rules(&self, table: Table, protocol: Protocol, context: &Context) -> Vec<Rule> {
        let whole = self.ranges.is_empty();
        let mut excluded = self.excluded.clone();
        let everything = [Range {
            first: 1,
            last: u16::MAX,
            target: self.all_target,
            to_first: 1,
        }];
        let ranges = if whole {
            excluded.push(context.ephemeral);
            &everything[..]
        } else {
            &self.ranges
        };
        excluded.sort_unstable();
        // One family only: a wildcard means that family's.
        let listen = self.listen.or(match (context.ipv4, context.ipv6) {
            (true, false) => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            (false, true) => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            _ => None,
        });
        let interface = match table {
            Table::Host => self.interface.clone(),
            Table::Splice => Some("lo".to_owned()),
        };
        ranges
            .iter()
            .flat_map(|range| range.without(&excluded))
            .map(|range| Rule {
                protocol,
                listen,
                interface: interface.clone(),
                first: range.first,
                last: range.last,
                target: range.target.filter(|t| !t.is_unspecified()),
                to_first: range.to_first,
                best_effort: whole,
                auto_scan: self.auto,
            })
            .collect()
    }
}

impl Range {
    fn parse(item: &str) -> Option<Self> {
        let (from, to) = match item.split_once(':') {
            Some((from, to)) => (from, Some(to)),
            None => (item, None),
        };
        let (first, last) = ports(from)?;
        let same = |target| Self {
            first,
            last,
            target,
            to_first: first,
        };
        let Some(to) = to else {
            return Some(same(None));
        };
        let (target, to_ports) = match to.rsplit_once('/') {
            Some((address, to_ports)) => (Some(target_address(address)?), to_ports),
            None if ports(to).is_none() => return Some(same(Some(target_address(to)?))),
            None => (None, to),
        };
        let (to_first, to_last) = ports(to_ports)?;
        (to_last - to_first == last - first).then_some(Self {
            first,
            last,
            target,
            to_first,
        })
    }

    /// What is left of the range after taking away `excluded` (sorted by first port).
    fn without(&self, excluded: &[(u16, u16)]) -> Vec<Self> {
        let mut pieces = Vec::new();
        let mut next = u32::from(self.first);
        let end = u32::from(self.last) + 1;
        let hole = |&(first, last): &(u16, u16)| (u32::from(first), u32::from(last) + 1);
        for (from, to) in excluded.iter().map(hole).chain([(end, end)]) {
            let stop = from.min(end);
            if next < stop {
                pieces.extend(self.piece(next, stop - 1));
            }
            next = next.max(to);
        }
        pieces
    }

    fn piece(&self, first: u32, last: u32) -> Option<Self> {
        let first = u16::try_from(first).ok()?;
        Some(Self {
            first,
            last: u16::try_from(last).ok()?,
            target: self.target,
            to_first: self.to_first.checked_add(first.checked_sub(self.first)?)?,
        })
    }
}

/// Take `[ADDR][%IFACE]/` off the front. The first slash ends it only if what precedes it is an address or an
/// interface: in `80:192.0.2.1/90` it belongs to the target.
fn split_listen(text: &str) -> Result<(Option<IpAddr>, Option<String>, &str), RuleError> {
    let whole = Ok((None, None, text));
    let Some((front, list)) = text.split_once('/') else {
        return whole;
    };
    let (address, interface) = match front.split_once('%') {
        Some((address, interface)) => (address, Some(interface)),
        None => (front, None),
    };
    if interface.is_some_and(|i| i.is_empty() || i.len() > MAX_INTERFACE_NAME) {
        return Err(RuleError::Syntax(text.to_owned()));
    }
    let listen = if address.is_empty() {
        None
    } else {
        match target_address(address) {
            Some(a) => Some(a),
            None => return whole,
        }
    };
    Ok((listen, interface.map(str::to_owned), list))
}

/// `A`, `[V6]`; an IPv4-mapped address is the IPv4 one.
fn target_address(text: &str) -> Option<IpAddr> {
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']')?;
        return inner
            .parse::<Ipv6Addr>()
            .ok()
            .map(|a| IpAddr::V6(a).to_canonical());
    }
    text.parse::<IpAddr>().ok().map(|a| a.to_canonical())
}

/// `N[-M]`, with blanks before numbers as after a comma.
fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some((first, last))
}

fn port(text: &str) -> Option<u16> {
    let digits = text.trim_start_matches(' ');
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: Context = Context {
        ipv4: true,
        ipv6: true,
        tcp: true,
        udp: true,
        ephemeral: DEFAULT_EPHEMERAL,
    };

    fn table(specs: &[&str], context: &Context) -> Result<Rules, RuleError> {
        let options: Vec<_> = specs
            .iter()
            .map(|s| {
                Spec::parse(s).map(|spec| PortOption {
                    table: Table::Host,
                    protocol: Protocol::Tcp,
                    spec,
                })
            })
            .collect::<Result<_, _>>()?;
        Rules::from_options(&options, Table::Host, false, context)
    }

    fn shown(spec: &str) -> Vec<String> {
        table(&[spec], &BOTH)
            .unwrap_or_else(|e| panic!("{spec}: {e}"))
            .as_slice()
            .iter()
            .map(|r| r.to_string().strip_prefix("TCP ").unwrap().to_owned())
            .collect()
    }

    fn refused(specs: &[&str], context: &Context) -> String {
        match table(specs, context) {
            Err(e) => e.to_string(),
            Ok(rules) => panic!("{specs:?}: accepted: {rules:?}"),
        }
    }

    #[test]
    fn accepted_and_printed() {
        let cases: &[(&str, &[&str])] = &[
            ("none", &[]),
            ("80", &["[*]:80  =>  80"]),
            ("65535", &["[*]:65535  =>  65535"]),
            ("80:81", &["[*]:80  =>  81"]),
            ("8080-8080:80-80", &["[*]:8080  =>  80"]),
            ("80-90:100-110", &["[*]:80-90  =>  100-110"]),
            (
                "80-90:100-110,~85",
                &["[*]:80-84  =>  100-104", "[*]:86-90  =>  106-110"],
            ),
            ("80-90,~85-95", &["[*]:80-84  =>  80-84"]),
            ("80-90,~80-90", &[]),
            ("80, 90", &["[*]:80  =>  80", "[*]:90  =>  90"]),
            ("/80", &["[*]:80  =>  80"]),
            ("192.0.2.1/80", &["[192.0.2.1]:80  =>  80"]),
            ("192.0.2.1%eth0/80", &["[192.0.2.1]%eth0:80  =>  80"]),
            ("%eth0/80", &["[*]%eth0:80  =>  80"]),
            ("::1%lo/5064:5064", &["[::1]%lo:5064  =>  5064"]),
            ("[::]/8080", &["[::]:8080  =>  8080"]),
            ("fd00::2/5064-5064:5064-5064", &["[fd00::2]:5064  =>  5064"]),
            ("[2001:db8::1]%eth0/80", &["[2001:db8::1]%eth0:80  =>  80"]),
            ("::ffff:192.0.2.1/80", &["[192.0.2.1]:80  =>  80"]),
            (
                "0.0.0.0/5000:192.0.2.5/6000",
                &["[0.0.0.0]:5000  =>  192.0.2.5:6000"],
            ),
            ("0.0.0.0/80:192.0.2.5", &["[0.0.0.0]:80  =>  192.0.2.5:80"]),
            (
                "::/80-81:[2001:db8::5]/90-91",
                &["[::]:80-81  =>  [2001:db8::5]:90-91"],
            ),
            ("::/80:2001:db8::5", &["[::]:80  =>  [2001:db8::5]:80"]),
            ("80:0.0.0.0/90", &["[*]:80  =>  90"]),
            // The first slash ends an address if there is one.
            ("80:2001:db8::5/90", &["[80:2001:db8::5]:90  =>  90"]),
            (
                "auto",
                &[
                    "[*]:1-32767  =>  1-32767  (best effort) (auto-scan)",
                    "[*]:61000-65535  =>  61000-65535  (best effort) (auto-scan)",
                ],
            ),
            (
                "::1/auto,~1-65530",
                &["[::1]:65531-65535  =>  65531-65535  (best effort) (auto-scan)"],
            ),
            ("80-82,auto", &["[*]:80-82  =>  80-82  (auto-scan)"]),
            ("all,~3-65535", &["[*]:1-2  =>  1-2  (best effort)"]),
            ("~3-65535", &["[*]:1-2  =>  1-2  (best effort)"]),
            (
                "0.0.0.0/all:192.0.2.6,~3-65535",
                &["[0.0.0.0]:1-2  =>  192.0.2.6:1-2  (best effort)"],
            ),
            ("all,8080", &["[*]:8080  =>  8080"]),
            ("all,~1-65535", &[]),
        ];
        for (spec, want) in cases {
            assert_eq!(shown(spec), *want, "{spec}");
        }
    }

    #[test]
    fn not_in_the_grammar() {
        for spec in [
            "",
            " ",
            "abc",
            "ALL",
            "-80",
            "80-",
            "80-:90",
            ":80",
            "80:",
            "80,",
            ",80",
            "80,,90",
            "90-80",
            "65536",
            "99999999999999999999",
            "80:90-100",
            "80-90:100",
            "80-90:100-111",
            "1/2",
            "80/",
            "80/tcp",
            "0x50",
            "+80",
            "80 ",
            "192.0.2.10",
            "192.0.2.10:80",
            "%/80",
            "%toolonginterfacename/80",
            "80%eth0",
            "[2001:db8::10%eth7]/80",
            "none,80",
            "80,none",
            "192.0.2.10/none",
            "all-90",
            "all:9",
            "~all",
            "~auto",
            "~",
            "~80:90",
            "~192.0.2.1/80",
            "auto:192.0.2.1",
            "80:x",
            "80:90x",
            "80:192.0.2.5x",
            "80:192.0.2.5:90",
            "80:192.0.2.5/",
            "80:/90",
            "127.0.0.1//80",
            "[::1/80",
            "::1]/80",
        ] {
            match Spec::parse(spec) {
                Err(e) => assert!(
                    e.to_string().starts_with("Invalid port specifier '"),
                    "{spec}"
                ),
                Ok(parsed) => panic!("{spec}: {parsed:?}"),
            }
        }
        assert_eq!(
            Spec::parse("127.0.0.1/80,192.0.2.10/81"),
            Err(RuleError::Syntax("80,192.0.2.10/81".to_owned()))
        );
    }

    #[test]
    fn impossible_rules_are_named() {
        let v4 = Context {
            ipv6: false,
            ..BOTH
        };
        let v6 = Context {
            ipv4: false,
            ..BOTH
        };
        let no_tcp = Context { tcp: false, ..BOTH };
        for (spec, context, want) in [
            (
                "0",
                &BOTH,
                "Forwarding rule attempts to map from port 0\nUnable to add rule TCP [*]:0  =>  0",
            ),
            (
                "80:0",
                &BOTH,
                "Forwarding rule attempts to map to port 0\nUnable to add rule TCP [*]:80  =>  0",
            ),
            (
                "80:224.0.0.1",
                &BOTH,
                "Multicast target address 224.0.0.1 for forwarding rule\nUnable to add rule TCP [*]:80  =>  224.0.0.1:80",
            ),
            (
                "80:192.0.2.5/90",
                &BOTH,
                "Dual stack forward to IPv4 address 192.0.2.5 unsupported\nDid you mean 0.0.0.0/... instead?\nUnable to add rule TCP [*]:80  =>  192.0.2.5:90",
            ),
            (
                "80:[2001:db8::5]/90",
                &BOTH,
                "Dual stack forward to IPv6 address 2001:db8::5 unsupported\nDid you mean [::]/... instead?\nUnable to add rule TCP [*]:80  =>  [2001:db8::5]:90",
            ),
            (
                "192.0.2.10/80:2001:db8::5/90",
                &BOTH,
                "Forward from IPv4 (192.0.2.10) to IPv6 (2001:db8::5) unsupported\nUnable to add rule TCP [192.0.2.10]:80  =>  [2001:db8::5]:90",
            ),
            (
                "::1/80",
                &v4,
                "IPv6 forward, but IPv6 not enabled\nUnable to add rule TCP [::1]:80  =>  80",
            ),
            (
                "127.0.0.1/80",
                &v6,
                "IPv4 forward, but IPv4 not enabled\nUnable to add rule TCP [127.0.0.1]:80  =>  80",
            ),
            (
                "80",
                &no_tcp,
                "Can't add TCP forwarding rule, TCP not enabled\nUnable to add rule TCP [*]:80  =>  80",
            ),
        ] {
            assert_eq!(refused(&[spec], context), want, "{spec}");
        }
    }

    #[test]
    fn one_family_narrows_the_wildcard() {
        let v4 = Context {
            ipv6: false,
            ..BOTH
        };
        assert_eq!(
            table(&["80"], &v4).unwrap().as_slice()[0].to_string(),
            "TCP [0.0.0.0]:80  =>  80"
        );
        let v6 = Context {
            ipv4: false,
            ..BOTH
        };
        assert_eq!(
            table(&["80"], &v6).unwrap().as_slice()[0].to_string(),
            "TCP [::]:80  =>  80"
        );
    }

    #[test]
    fn conflicts_name_both_rules() {
        assert_eq!(
            refused(&["80-90", "85:95"], &BOTH),
            "Forwarding configuration conflict: TCP [*]:85  =>  95 versus TCP [*]:80-90  =>  80-90\nUnable to add rule TCP [*]:85  =>  95"
        );
        for pair in [
            ["80", "80"],
            ["80-90", "90-95"],
            ["80", "192.0.2.1/80"],
            ["::/80", "80"],
            ["192.0.2.1/80", "192.0.2.1%eth0/80"],
            ["%eth0/80", "%lo/80"],
            ["0.0.0.0/80", "192.0.2.1/80"],
            ["auto", "80"],
            ["80", "auto"],
            ["all", "all"],
        ] {
            assert!(refused(&pair, &BOTH).contains("conflict"), "{pair:?}");
        }
        for pair in [
            ["80", "81"],
            ["192.0.2.1/80", "127.0.0.1/80"],
            ["0.0.0.0/80", "::/80"],
            ["none", "80"],
        ] {
            assert!(table(&pair, &BOTH).is_ok(), "{pair:?}");
        }
    }

    #[test]
    fn a_refused_rule_changes_nothing() {
        let mut rules = table(&["80"], &BOTH).unwrap();
        let before = rules.clone();
        let again = before.as_slice()[0].clone();
        assert!(rules.add(again, &BOTH).is_err());
        assert_eq!(rules, before);
    }

    #[test]
    fn tables_are_bounded() {
        let odd = |n: u16| {
            (0..n)
                .map(|i| (2 * i + 1).to_string())
                .collect::<Vec<_>>()
                .join(",")
        };
        assert_eq!(
            table(&[&odd(255)], &BOTH).unwrap().as_slice().len(),
            MAX_RULES
        );
        assert!(
            refused(&[&odd(256)], &BOTH)
                .starts_with("Too many rules (maximum 255)\nUnable to add rule TCP [*]:511")
        );
    }

    #[test]
    fn defaults_skip_what_is_off() {
        let context = Context { tcp: false, ..BOTH };
        let rules = Rules::from_options(&[], Table::Splice, true, &context).unwrap();
        let shown: Vec<_> = rules.as_slice().iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "UDP [*]%lo:1-32767  =>  1-32767  (best effort) (auto-scan)",
                "UDP [*]%lo:61000-65535  =>  61000-65535  (best effort) (auto-scan)",
            ]
        );
        assert!(rules.without_auto().is_empty());
    }

    proptest! {
        /// What a list forwards is what it includes less what it excludes, and never overlaps itself.
        #[test]
        fn expansion_matches_a_model(
            first in 1u16..2000, len in 0u16..300, shift in 1u16..3000,
            holes in proptest::collection::vec((1u16..2500, 0u16..200), 0..6),
        ) {
            let last = first + len;
            let mut spec = format!("{first}-{last}:{}-{}", first + shift, last + shift);
            for (from, n) in &holes {
                spec.push_str(&format!(",~{from}-{}", from + n));
            }
            let rules = table(&[&spec], &BOTH).unwrap();
            for port in 1..3000u16 {
                let wanted = (first..=last).contains(&port)
                    && !holes.iter().any(|(from, n)| (*from..=from + n).contains(&port));
                let found: Vec<_> = rules.as_slice().iter().filter(|r| (r.first..=r.last).contains(&port)).collect();
                prop_assert_eq!(found.len(), usize::from(wanted));
                if let Some(rule) = found.first() {
                    prop_assert_eq!(rule.to_first + (port - rule.first), port + shift);
                }
            }
        }
    }
}
