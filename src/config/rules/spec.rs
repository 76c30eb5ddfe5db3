//! The grammar of one forwarding option, and its expansion into rules.
//!
//! ```text
//! none | [ADDR][%IFACE]/LIST | LIST
//! LIST:  ITEM,ITEM…     ITEM:  N[-M][:[TOADDR/]T[-U]] | N[-M]:TOADDR | ~N[-M] | all[:TOADDR] | auto
//! ```
//!
//! Exclusions (`~`) win over everything else in their list. A list without ranges means all ports that are not
//! ephemeral; such rules, like `all`, are best effort: a port that cannot be bound is skipped. Beside explicit
//! ranges `all` has no effect of its own, as in the established implementation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Context, MAX_INTERFACE_NAME, Protocol, Rule, RuleError, Table};

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
