//! Port forwarding: the grammar of `-t`, `-u`, `-T` and `-U`, and the rules that come of it.
//!
//! Three steps, all pure. [`Spec::parse`] reads one value and knows only the grammar: it fails on what no host
//! could ever accept. [`Spec::rules`] expands it with what the host says ([`Context`]: which ports are
//! ephemeral, which families and protocols are on) into contiguous ranges. [`Rules::add`] is the gate to the
//! table: every rule, whoever made it, is validated there and compared with those already present, so two
//! listeners can never compete for one port. A refused rule leaves the table as it was.

mod spec;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

pub use spec::{PortList, Spec};

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

/// Which rule of a run: given when the rule is added, used again only after all others, shared by both tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RuleId(pub NonZeroU16);

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
    /// No rule with any of these ports.
    #[error("Couldn't find forwarding rule to delete: {0}")]
    Missing(Box<Rule>),
    /// A rule has some of these ports, but it is not this rule.
    #[error("Specifier {asked} conflicts with rule {old}, but doesn't match it, can't delete")]
    Overlap {
        /// What was to be deleted.
        asked: Box<Rule>,
        /// What is there.
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
    /// A rule cannot be deleted.
    #[error("{problem}\nUnable to delete rule {rule}")]
    Kept {
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

    /// Take away the rule that is exactly `rule`.
    ///
    /// # Errors
    ///
    /// [`RuleError::Kept`] with the reason; the table is unchanged.
    pub fn remove(&mut self, rule: &Rule) -> Result<(), RuleError> {
        if let Some(at) = self.0.iter().position(|old| old == rule) {
            self.0.remove(at);
            return Ok(());
        }
        let problem = match self.0.iter().find(|old| old.conflicts(rule)) {
            Some(old) => RuleProblem::Overlap {
                asked: Box::new(rule.clone()),
                old: Box::new(old.clone()),
            },
            None => RuleProblem::Missing(Box::new(rule.clone())),
        };
        let rule = Box::new(rule.clone());
        Err(RuleError::Kept { problem, rule })
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

#[cfg(test)]
mod tests;
