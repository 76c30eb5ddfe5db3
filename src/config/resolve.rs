//! From what the user said and what the host has to what the guest gets.
//!
//! One pass, no I/O: [`Options`] and [`HostNetwork`] in, [`Resolved`] out. Each family is decided on its own, so
//! a host with IPv4 through one interface and IPv6 through another, or with one family only, needs no special
//! case. A family without a usable host interface is not off: it runs in local mode, on link-local addresses,
//! so that guest and host can still talk.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::host::HostNetwork;
use super::namespace::{
    NamespaceSetup, SetupAddress, SetupRoute, copied_addresses, copied_routes, default_route,
};
use super::notice::Notice;
use super::options::{Mapping, Options, PerFamily, Target};
use super::resolv::ResolvConf;
use super::rules::{Context, DEFAULT_EPHEMERAL, RuleError, Rules, Table};
use super::template::{self, Template};
use super::{Config, DEFAULT_MTU, Mode, Services, Splice, V4, V6};
use super::{dns, dns::Resolvers};
use crate::addr::Mac;

/// Smallest MTU of a link with IPv6 (RFC 8200, section 5).
const MIN_MTU_IPV6: u16 = 1280;
/// The guest's address in local mode (RFC 3927).
const LOCAL_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
/// Its prefix length.
const LOCAL_PREFIX_LEN: u8 = 16;
/// Our address in local mode.
const LOCAL_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);
/// Our IPv6 address in local mode.
const LOCAL_GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Prefix length of every IPv6 address we assign: SLAAC needs it.
const PREFIX_LEN6: u8 = 64;
/// Name of the tap when there is no host interface to name it after.
const DEFAULT_IFNAME: &str = "tap0";
/// Longest UTS host name (`__NEW_UTS_LEN`, `linux/utsname.h`).
const MAX_HOSTNAME: usize = 64;
/// Most that is read of `resolv.conf`, bytes.
const MAX_RESOLV_CONF: u64 = 1 << 20;

/// What decisions need of the host besides its network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Environment {
    /// Resolvers and search domains.
    pub resolv: ResolvConf,
    /// The host's name.
    pub hostname: String,
    /// First and last ephemeral port.
    pub ephemeral: (u16, u16),
}

/// First and last ephemeral port of this network namespace; the kernel's default if they cannot be read.
#[must_use]
pub fn ephemeral_ports() -> (u16, u16) {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = range.split_ascii_whitespace().map_while(|w| w.parse().ok());
    match (bounds.next(), bounds.next()) {
        (Some(first), Some(last)) if first <= last => (first, last),
        _ => DEFAULT_EPHEMERAL,
    }
}

impl Environment {
    /// Ask the system. What cannot be read has its default: no resolvers, no name, the kernel's port range.
    #[must_use]
    pub fn read() -> Self {
        let mut contents = Vec::new();
        if let Ok(file) = fs::File::open("/etc/resolv.conf") {
            // A file that breaks off while being read is as good as its beginning.
            let _ = file.take(MAX_RESOLV_CONF).read_to_end(&mut contents);
        }
        Self {
            resolv: ResolvConf::parse(&contents),
            hostname: nix::unistd::gethostname()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default(),
            ephemeral: ephemeral_ports(),
        }
    }
}

/// Everything decided at start-up.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// For the forwarder. With `--ns-mac-addr` it knows the guest's MAC address; otherwise the tap does.
    pub config: Config,
    /// For the ns-agent (pasta).
    pub netns: NamespaceSetup,
    /// Host interface the IPv4 side is modelled on; `None`: local mode, or IPv4 is off.
    pub template4: Option<String>,
    /// Host interface the IPv6 side is modelled on.
    pub template6: Option<String>,
    /// Host name for the UTS namespace of a spawned command.
    pub uts_hostname: Option<String>,
    /// Inbound forwarding.
    pub host_rules: Rules,
    /// Outbound forwarding of the namespace's loopback.
    pub splice_rules: Rules,
    /// What rules have to agree with, also later ones.
    pub context: Context,
    /// Lines for the log, in order.
    pub notices: Vec<Notice>,
}

/// The host cannot give what the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `-i` names nothing.
    #[error("Invalid interface name {0}: No such device")]
    NoSuchInterface(String),
    /// `-i lo`.
    #[error("Invalid interface name {0}: the loopback interface cannot be a template")]
    Loopback(String),
    /// `-6` with a small `-m`.
    #[error("MTU {0} is too small for IPv6 (minimum {MIN_MTU_IPV6})")]
    SmallMtu(u16),
    /// A port cannot be forwarded.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

/// Decide everything.
///
/// # Errors
///
/// What the user asked for and this host does not have.
pub fn resolve(
    options: &Options,
    host: &HostNetwork,
    environment: &Environment,
) -> Result<Resolved, ConfigError> {
    let mut notices: Vec<Notice> = options
        .notices
        .iter()
        .cloned()
        .map(Notice::warning)
        .collect();
    let mtu = options.mtu.unwrap_or(DEFAULT_MTU);
    let ipv6 = options.ipv6 && !small_for_ipv6(options, mtu, &mut notices)?;
    let wanted = wanted_links(options, host, &mut notices)?;
    let templates = Templates {
        v4: choose(options.ipv4, host, false, wanted.0, &mut notices),
        v6: choose(ipv6, host, true, wanted.1, &mut notices),
    };
    let mut v4 = options.ipv4.then(|| side4(options, templates.v4.as_ref()));
    let mut v6 = ipv6.then(|| side6(options, host, templates.v6.as_ref()));
    let resolvers = Resolvers {
        options,
        conf: &environment.resolv,
        host,
    };
    dns::apply(&resolvers, v4.as_mut(), v6.as_mut(), &mut notices);
    let services = services(options, v4.as_ref(), v6.as_ref());
    let name = |t: Option<&Template>| t.and_then(|t| host.link(t.link)).map(|l| l.name.clone());
    let (template4, template6) = (name(templates.v4.as_ref()), name(templates.v6.as_ref()));
    let ifname = [&options.ns_ifname, &template4, &template6]
        .into_iter()
        .flatten()
        .next();
    let ifname = ifname.map_or(DEFAULT_IFNAME, String::as_str).to_owned();
    let netns = setup(
        options,
        host,
        &templates,
        (v4.as_ref(), v6.as_ref()),
        (ifname, mtu),
    );
    let context = Context {
        ipv4: options.ipv4,
        ipv6,
        tcp: services.tcp,
        udp: services.udp,
        ephemeral: environment.ephemeral,
    };
    let (host_rules, splice_rules) = rules(options, &context)?;
    Ok(Resolved {
        config: Config {
            search: dns::search(&resolvers),
            given: if netns.configure {
                netns.addresses.iter().map(|a| a.local).collect()
            } else {
                Vec::new()
            },
            ..config(options, mtu, (v4, v6), services)
        },
        netns,
        template4,
        template6,
        uts_hostname: uts_hostname(options, &environment.hostname),
        host_rules,
        splice_rules,
        context,
        notices,
    })
}

fn config(
    options: &Options,
    mtu: u16,
    (v4, v6): (Option<V4>, Option<V6>),
    services: Services,
) -> Config {
    Config {
        mode: options.mode,
        our_mac: options.our_mac.unwrap_or(Mac::OURS),
        guest_mac: options.ns_mac,
        mtu,
        v4,
        v6,
        given: Vec::new(),
        services,
        splice: Splice {
            inbound: options.mode == Mode::Pasta && !options.no_splice,
            to_loopback: options.host_lo_to_ns_lo,
            only: options.splice_only,
        },
        hostname: options.hostname.clone(),
        fqdn: options.fqdn.clone(),
        search: Vec::new(),
        dhcp_dns: options.dhcp_dns,
        dhcp_search: options.dhcp_search,
        pcap: options.pcap.clone(),
        stats: options.stats,
        verbosity: options.verbosity,
    }
}

/// Both forwarding tables. In pasta what no option mentions is forwarded automatically.
fn rules(options: &Options, context: &Context) -> Result<(Rules, Rules), ConfigError> {
    let table = |table| {
        let automatic = options.mode == Mode::Pasta;
        Rules::from_options(&options.ports, table, automatic, context)
    };
    Ok((table(Table::Host)?, table(Table::Splice)?))
}

/// The kernel has no IPv6 on links with an MTU below 1280; neither do we.
fn small_for_ipv6(
    options: &Options,
    mtu: u16,
    notices: &mut Vec<Notice>,
) -> Result<bool, ConfigError> {
    let small = mtu != 0 && mtu < MIN_MTU_IPV6;
    if small && !options.ipv4 {
        return Err(ConfigError::SmallMtu(mtu));
    }
    if small && options.ipv6 {
        notices.push(Notice::warning(format!(
            "MTU {mtu} is too small for IPv6 (minimum {MIN_MTU_IPV6}): IPv6 is off"
        )));
    }
    Ok(small)
}

/// The interfaces the user named for (IPv4, IPv6). Only `-i` has to exist: a VPN may come up later.
fn wanted_links(
    options: &Options,
    host: &HostNetwork,
    notices: &mut Vec<Notice>,
) -> Result<(Option<u32>, Option<u32>), ConfigError> {
    if let Some(name) = &options.interface {
        let link = host
            .link_named(name)
            .ok_or_else(|| ConfigError::NoSuchInterface(name.clone()))?;
        if link.is_loopback() {
            return Err(ConfigError::Loopback(name.clone()));
        }
        return Ok((Some(link.index), Some(link.index)));
    }
    let mut outbound = |name: Option<&String>| {
        let name = name?;
        let link = host.link_named(name);
        if link.is_none() {
            notices.push(Notice::warning(format!(
                "No outbound interface {name} (yet)"
            )));
        }
        link.filter(|l| !l.is_loopback()).map(|l| l.index)
    };
    let v4 = outbound(options.outbound_if4.as_ref());
    Ok((v4, outbound(options.outbound_if6.as_ref())))
}

struct Templates {
    v4: Option<Template>,
    v6: Option<Template>,
}

fn choose(
    enabled: bool,
    host: &HostNetwork,
    ipv6: bool,
    wanted: Option<u32>,
    notices: &mut Vec<Notice>,
) -> Option<Template> {
    if !enabled {
        return None;
    }
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let template = template::choose(host, ipv6, wanted);
    match &template {
        None => notices.push(Notice::info(format!(
            "{family}: no external interface as template, use local mode"
        ))),
        Some(t) if t.candidates > 1 && t.gateway.is_some() => {
            notices.push(Notice::info(format!(
                "Multiple default {family} routes, picked first"
            )));
        }
        Some(t) if t.candidates > 1 => {
            notices.push(Notice::info(format!(
                "Multiple interfaces with {family} routes, picked first"
            )));
        }
        Some(_) => {}
    }
    template
}

fn side4(options: &Options, template: Option<&Template>) -> V4 {
    let copied = template
        .map(|t| t.address)
        .and_then(|(addr, len)| match addr {
            IpAddr::V4(addr) => Some((addr, len)),
            IpAddr::V6(_) => None,
        });
    let (addr, prefix_len) = match (options.addr4, copied) {
        // A prefix of no bits is no prefix: every address would be a neighbour.
        (Some(a), _) => (
            a.addr,
            a.prefix_len
                .filter(|l| *l > 0)
                .unwrap_or(class_prefix_len(a.addr)),
        ),
        (None, Some(copied)) => copied,
        (None, None) => (LOCAL_ADDRESS, LOCAL_PREFIX_LEN),
    };
    let host_gateway = match template {
        None => Some(LOCAL_GATEWAY),
        Some(t) => t.gateway.and_then(|g| match g {
            IpAddr::V4(g) => Some(g),
            IpAddr::V6(_) => None,
        }),
    };
    let gateway = options.gateway.v4.or(host_gateway);
    V4 {
        addr,
        prefix_len,
        gateway,
        our_addr: gateway,
        map_host_loopback: loopback(options, |f| f.v4, gateway),
        map_guest_addr: options.map_guest_addr.addr.v4,
        dns_match: None,
        dns_host: None,
        dns: Vec::new(),
        outbound: options.outbound.v4,
        outbound_if: options.outbound_if4.clone(),
    }
}

fn side6(options: &Options, host: &HostNetwork, template: Option<&Template>) -> V6 {
    let v6 = |addr: IpAddr| match addr {
        IpAddr::V6(addr) => Some(addr),
        IpAddr::V4(_) => None,
    };
    let host_gateway = match template {
        None => Some(LOCAL_GATEWAY6),
        Some(t) => t.gateway.and_then(v6),
    };
    let gateway = options.gateway.v6.or(host_gateway);
    let outbound_link = options
        .outbound_if6
        .as_ref()
        .and_then(|name| host.link_named(name))
        .map(|l| l.index);
    V6 {
        addr: options
            .addr6
            .or_else(|| template.and_then(|t| v6(t.address.0))),
        gateway,
        our_link_local: gateway
            .filter(Ipv6Addr::is_unicast_link_local)
            .or_else(|| template::link_local(host, template?.link))
            .unwrap_or(LOCAL_GATEWAY6),
        map_host_loopback: loopback(options, |f| f.v6, gateway),
        map_guest_addr: options.map_guest_addr.addr.v6,
        dns_match: None,
        dns_host: None,
        dns_host_scope: 0,
        dns: Vec::new(),
        outbound: options.outbound.v6,
        outbound_if: options.outbound_if6.clone(),
        outbound_scope: outbound_link.or(template.map(|t| t.link)).unwrap_or(0),
    }
}

/// What the guest calls the host's loopback: the address given, else the gateway unless that was ruled out.
fn loopback<T>(
    options: &Options,
    family: impl Fn(&PerFamily) -> Option<T>,
    gateway: Option<T>,
) -> Option<T> {
    let Mapping { none, addr } = &options.map_host_loopback;
    match family(addr) {
        Some(given) => Some(given),
        None if *none || options.no_map_gw => None,
        None => gateway,
    }
}

/// Prefix length by address class (RFC 791, section 3.2).
fn class_prefix_len(addr: Ipv4Addr) -> u8 {
    match addr.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        192..=223 => 24,
        _ => 32,
    }
}

/// DHCP needs a gateway to be the server, DHCPv6 an address to give.
fn services(options: &Options, v4: Option<&V4>, v6: Option<&V6>) -> Services {
    let off = &options.disabled;
    Services {
        tcp: !off.tcp,
        udp: !off.udp,
        icmp: !off.icmp,
        dhcp: !off.dhcp && v4.is_some_and(|v4| v4.gateway.is_some()),
        ndp: !off.ndp && v6.is_some(),
        dhcpv6: !off.dhcpv6 && v6.is_some_and(|v6| v6.addr.is_some()),
        // A namespace that --config-net has configured would make a second address from a router
        // advertisement, tentative at first, after its user has read the final list.
        ra: !off.ra && !off.ndp && v6.is_some() && !options.config_net,
    }
}

/// What `--config-net` makes of the namespace.
fn setup(
    options: &Options,
    host: &HostNetwork,
    templates: &Templates,
    (v4, v6): (Option<&V4>, Option<&V6>),
    (ifname, mtu): (String, u16),
) -> NamespaceSetup {
    let mut addresses: Vec<SetupAddress> = Vec::new();
    let mut routes: Vec<SetupRoute> = Vec::new();
    let mut side =
        |single: Option<SetupAddress>, gateway: Option<IpAddr>, ipv6: bool, given: (bool, bool)| {
            let template = if ipv6 { &templates.v6 } else { &templates.v4 };
            let from = addresses.len();
            match template {
                Some(t) if !given.0 && !options.no_copy_addrs => {
                    addresses.extend(copied_addresses(host, t.link, ipv6));
                }
                _ => addresses.extend(single),
            }
            match template {
                Some(t) if !given.1 && !options.no_copy_routes => {
                    routes.extend(copied_routes(host, t.link, ipv6));
                }
                _ => routes.extend(
                    gateway.map(|g| default_route(g, addresses.get(from..).unwrap_or_default())),
                ),
            }
        };
    if let Some(v4) = v4 {
        let given = (options.addr4.is_some(), options.gateway.v4.is_some());
        let single = SetupAddress::new(v4.addr.into(), v4.prefix_len);
        side(Some(single), v4.gateway.map(IpAddr::V4), false, given);
    }
    if let Some(v6) = v6 {
        let given = (options.addr6.is_some(), options.gateway.v6.is_some());
        let single = v6.addr.map(|a| SetupAddress::new(a.into(), PREFIX_LEN6));
        side(single, v6.gateway.map(IpAddr::V6), true, given);
    }
    NamespaceSetup {
        ifname,
        mac: options.ns_mac,
        mtu,
        configure: options.config_net,
        addresses,
        routes,
    }
}

/// `-H`, else the host's name with a prefix that says whose namespace this is.
fn uts_hostname(options: &Options, host: &str) -> Option<String> {
    if !matches!(options.target, Target::Spawn(_)) {
        return None;
    }
    let mut name = match &options.hostname {
        Some(name) => name.clone(),
        None => format!("pasta-{host}"),
    };
    while name.len() > MAX_HOSTNAME {
        name.pop();
    }
    Some(name)
}

#[cfg(test)]
mod tests;
