//! From text to [`Options`]: every value gets its type, every combination is checked.
//!
//! One function per group of options, in the order of [`super::args`]; each error is one line that names the
//! option's meaning and the value, in the words callers of the established tools know. Nothing here looks at
//! the host.

use std::ffi::OsString;
use std::net::IpAddr;

use super::CliError;
use super::args::{
    Arguments, GuestArgs, MapArgs, NameArgs, PasstArgs, PastaArgs, PortArgs, ProcessArgs,
    ServiceArgs,
};
use super::values::{
    Result, host_name, interface, invalid, is_broadcast, is_number, mac, mapping, mtu, netmask,
    netns_path, parse_addr, path, pid, prefix_len, run_as, search_list, socket_path,
};
use crate::config::options::{
    Address4, Disabled, List, Mapping, Options, PerFamily, SocketOptions, Target,
};
use crate::config::rules::{PortOption, Protocol, RuleError, Spec, Table};
use crate::config::{Mode, Verbosity};

/// `--log-size` when not given, bytes.
const DEFAULT_LOG_SIZE: u64 = 1024 * 1024;
/// Smallest `--log-size`, bytes: as in the established tools, room for what a truncation keeps.
const MIN_LOG_SIZE: u64 = 40960;

/// Build the options of `mode` from what clap collected.
pub(super) fn options(mode: Mode, program: &str, args: Arguments) -> Result<Options> {
    let Arguments {
        process,
        guest,
        names,
        map,
        services,
        ports,
        passt,
        pasta,
        rest,
    } = args;
    let target = target(mode, &pasta, rest)?;
    let mut options = Options {
        netns_only: pasta.netns_only
            || (matches!(target, Target::Netns(_)) && pasta.userns.is_none()),
        mode,
        program: program.to_owned(),
        target,
        userns: path("user namespace", pasta.userns.clone())?,
        no_netns_quit: pasta.no_netns_quit,
        no_pidns: pasta.no_pidns,
        ..Options::new(mode)
    };
    process_options(&mut options, process)?;
    guest_options(&mut options, &guest)?;
    name_options(&mut options, names)?;
    map_options(&mut options, &map)?;
    options.disabled = disabled(&services);
    socket_options(&mut options, passt)?;
    namespace_options(&mut options, &pasta)?;
    port_options(&mut options, &ports)?;
    Ok(options)
}

impl Options {
    /// Nothing said: the defaults of a mode.
    fn new(mode: Mode) -> Self {
        let passt = mode == Mode::Passt;
        Self {
            mode,
            program: String::new(),
            target: Target::Socket,
            userns: None,
            netns_only: false,
            no_netns_quit: false,
            no_pidns: false,
            foreground: false,
            verbosity: Verbosity::Normal,
            stats: None,
            log_file: None,
            log_size: DEFAULT_LOG_SIZE,
            pid_file: None,
            pcap: None,
            conf_path: None,
            runas: None,
            chroot_fallback: false,
            notices: Vec::new(),
            socket: SocketOptions::default(),
            ns_ifname: None,
            ns_mac: None,
            config_net: false,
            no_copy_routes: false,
            no_copy_addrs: false,
            splice_only: false,
            no_splice: false,
            host_lo_to_ns_lo: false,
            ipv4: true,
            ipv6: true,
            mtu: None,
            our_mac: None,
            addr4: None,
            addr6: None,
            netmask: None,
            gateway: PerFamily::default(),
            interface: None,
            outbound: PerFamily::default(),
            outbound_if4: None,
            outbound_if6: None,
            dns: List::Default,
            dns_forward: PerFamily::default(),
            dns_host: PerFamily::default(),
            search: List::Default,
            dhcp_dns: passt,
            dhcp_search: passt,
            hostname: None,
            fqdn: None,
            map_host_loopback: Mapping::default(),
            map_guest_addr: Mapping::default(),
            no_map_gw: false,
            disabled: Disabled::default(),
            ports: Vec::new(),
            freebind: false,
        }
    }
}

fn target(mode: Mode, args: &PastaArgs, rest: Vec<OsString>) -> Result<Target> {
    if mode == Mode::Passt {
        return match rest.first() {
            None => Ok(Target::Socket),
            Some(extra) => Err(CliError::new(format!(
                "Extra non-option argument: {}",
                extra.to_string_lossy()
            ))),
        };
    }
    let target = match (&args.netns, rest.as_slice()) {
        (Some(_), [_, ..]) => return error("Both --netns and PID or command given"),
        (Some(netns), []) => Target::Netns(netns_path(netns)?),
        (None, [only]) if is_number(only) => Target::Pid(pid(only)?),
        (None, _) => Target::Spawn(rest),
    };
    if args.no_pidns && !matches!(target, Target::Spawn(_)) {
        return error("--no-pidns is incompatible with PID or --netns");
    }
    Ok(target)
}

fn process_options(options: &mut Options, args: ProcessArgs) -> Result<()> {
    options.foreground = args.foreground;
    options.verbosity = match (args.trace, args.debug, args.quiet) {
        (true, _, _) => Verbosity::Trace,
        (_, true, _) => Verbosity::Debug,
        (_, _, true) => Verbosity::Quiet,
        _ => Verbosity::Normal,
    };
    if args.stderr {
        options
            .notices
            .push("--stderr has no effect and will be dropped".to_owned());
    }
    if let Some(text) = args.stats {
        let seconds = text.parse().ok().filter(|s| *s > 0);
        options.stats = Some(seconds.ok_or_else(|| invalid("--stats", &text))?);
        if !options.foreground {
            return error("Can't display statistics if not running in foreground");
        }
    }
    if let Some(text) = args.log_size {
        let size = text.parse().ok().filter(|s| *s >= MIN_LOG_SIZE);
        options.log_size = size.ok_or_else(|| invalid("--log-size", &text))?;
    }
    options.log_file = path("log file", args.log_file)?;
    options.conf_path = socket_path("configuration path", args.conf_path)?;
    options.pcap = path("pcap file", args.pcap)?;
    options.pid_file = path("PID file", args.pid)?;
    options.runas = args.runas.map(run_as).transpose()?;
    options.chroot_fallback = args.chroot_fallback;
    Ok(())
}

fn guest_options(options: &mut Options, args: &GuestArgs) -> Result<()> {
    // Each overrides the other, so at most one is left.
    options.ipv4 = !args.ipv6_only;
    options.ipv6 = !args.ipv4_only;
    options.mtu = args.mtu.as_deref().map(mtu).transpose()?;
    options.our_mac = args.mac_addr.as_deref().map(mac).transpose()?;
    options.netmask = args.netmask.as_deref().map(netmask).transpose()?;
    let mut cidr = false;
    for text in &args.address {
        cidr |= address(options, text)?;
    }
    if cidr && options.netmask.is_some() {
        return error("Redundant prefix length specification");
    }
    if let (Some(address), Some(_)) = (&mut options.addr4, options.netmask) {
        address.prefix_len = options.netmask;
    }
    for text in &args.gateway {
        let ok = |a: &IpAddr| {
            !a.is_unspecified() && !a.is_loopback() && !a.is_multicast() && !is_broadcast(a)
        };
        options.gateway.set(
            parse_addr(text)
                .filter(ok)
                .ok_or_else(|| invalid("gateway address", text))?,
        );
    }
    for text in &args.outbound {
        let ok = |a: &IpAddr| !a.is_unspecified() && !a.is_multicast() && !is_broadcast(a);
        options.outbound.set(
            parse_addr(text)
                .filter(ok)
                .ok_or_else(|| invalid("outbound address", text))?,
        );
    }
    options.interface = interface(args.interface.as_deref())?;
    options.outbound_if4 = interface(args.outbound_if4.as_deref())?;
    options.outbound_if6 = interface(args.outbound_if6.as_deref())?;
    Ok(())
}

/// `ADDR[/LEN]`; was there a length?
fn address(options: &mut Options, text: &str) -> Result<bool> {
    let (addr, len) = match text.split_once('/') {
        Some((addr, len)) => (addr, Some(len)),
        None => (text, None),
    };
    let usable = |a: &IpAddr| {
        !a.is_unspecified() && !a.is_loopback() && !a.is_multicast() && !is_broadcast(a)
    };
    let addr = parse_addr(addr)
        .filter(usable)
        .filter(|_| len != Some(""))
        .ok_or_else(|| invalid("guest address", text))?;
    let max = if addr.is_ipv4() { 32 } else { 128 };
    let len = len
        .map(|len| prefix_len(len, max).ok_or_else(|| invalid("prefix length", text)))
        .transpose()?;
    match addr {
        IpAddr::V4(addr) => {
            options.addr4 = Some(Address4 {
                addr,
                prefix_len: len,
            });
        }
        // The prefix of an IPv6 guest is always 64 bits long: SLAAC needs that.
        IpAddr::V6(addr) => options.addr6 = Some(addr),
    }
    Ok(len.is_some())
}

fn name_options(options: &mut Options, args: NameArgs) -> Result<()> {
    for text in &args.dns {
        let bad = || CliError::new(format!("Cannot use DNS address {text}"));
        match text.as_str() {
            "none" => options.dns = List::None,
            _ => options.dns.push(parse_addr(text).ok_or_else(bad)?),
        }
    }
    for text in &args.search {
        match text.as_str() {
            "none" => options.search = List::None,
            _ => search_list(&mut options.search, text)?,
        }
    }
    let usable = |a: &IpAddr| !a.is_unspecified() && !a.is_loopback() && !a.is_multicast();
    for text in &args.dns_forward {
        // One of a family that is off is not used: podman passes an IPv4 one along with -6.
        let addr = parse_addr(text).filter(usable);
        options
            .dns_forward
            .set(addr.ok_or_else(|| invalid("DNS forwarding address", text))?);
    }
    for text in &args.dns_host {
        let ok = |a: &IpAddr| !a.is_unspecified() && !a.is_multicast();
        options.dns_host.set(
            parse_addr(text)
                .filter(ok)
                .ok_or_else(|| invalid("host nameserver address", text))?,
        );
    }
    options.dhcp_dns = (options.dhcp_dns || args.dhcp_dns) && !args.no_dhcp_dns;
    options.dhcp_search = (options.dhcp_search || args.dhcp_search) && !args.no_dhcp_search;
    options.hostname = host_name("hostname", args.hostname)?;
    options.fqdn = host_name("FQDN", args.fqdn)?;
    Ok(())
}

impl<T> List<T> {
    /// Add one the user gave; the defaults, or an earlier `none`, no longer count.
    pub(super) fn push(&mut self, item: T) {
        match self {
            Self::Given(items) => items.push(item),
            _ => *self = Self::Given(vec![item]),
        }
    }
}

fn map_options(options: &mut Options, args: &MapArgs) -> Result<()> {
    options.no_map_gw = args.no_map_gw;
    options.map_host_loopback = mapping("--map-host-loopback", &args.map_host_loopback)?;
    options.map_guest_addr = mapping("--map-guest-addr", &args.map_guest_addr)?;
    Ok(())
}

const fn disabled(args: &ServiceArgs) -> Disabled {
    Disabled {
        tcp: args.no_tcp,
        udp: args.no_udp,
        icmp: args.no_icmp,
        dhcp: args.no_dhcp,
        ndp: args.no_ndp || args.no_icmp,
        dhcpv6: args.no_dhcpv6,
        ra: args.no_ra,
    }
}

fn socket_options(options: &mut Options, args: PasstArgs) -> Result<()> {
    let fd = args
        .fd
        .map(|text| {
            text.parse()
                .ok()
                .filter(|fd| *fd >= 0)
                .ok_or_else(|| invalid("--fd", &text))
        })
        .transpose()?;
    let vhost_only = [
        (
            "--repair-path",
            args.repair_path.as_ref().is_some_and(|p| p != "none"),
        ),
        ("--migrate-exit", args.migrate_exit),
        ("--migrate-no-linger", args.migrate_no_linger),
    ];
    if let Some((option, _)) = vhost_only
        .iter()
        .find(|(_, given)| *given && !args.vhost_user)
    {
        return Err(CliError::new(format!(
            "{option} is for vhost-user mode only"
        )));
    }
    if args.socket.is_some() && fd.is_some() {
        return error("Options --socket and --fd are mutually exclusive");
    }
    for (option, given) in vhost_only {
        if given {
            options.notices.push(format!(
                "{option} has no effect: connections are not moved in a migration"
            ));
        }
    }
    options.socket = SocketOptions {
        path: socket_path("socket path", args.socket)?,
        vhost_user: args.vhost_user,
        fd,
        one_off: args.one_off || fd.is_some(),
        repair_path: match args.repair_path {
            Some(p) if p == "none" => Some(None),
            other => path("repair socket path", other)?.map(Some),
        },
        migrate_exit: args.migrate_exit,
        migrate_no_linger: args.migrate_no_linger,
    };
    Ok(())
}

fn namespace_options(options: &mut Options, args: &PastaArgs) -> Result<()> {
    options.ns_ifname = interface(args.ns_ifname.as_deref())?;
    if options.ns_ifname.as_deref() == Some("lo") {
        return Err(invalid("interface name", "lo"));
    }
    options.ns_mac = args.ns_mac_addr.as_deref().map(mac).transpose()?;
    options.config_net = args.config_net;
    for (option, given) in [
        ("--no-copy-routes", args.no_copy_routes),
        ("--no-copy-addrs", args.no_copy_addrs),
    ] {
        if given && !args.config_net {
            return Err(CliError::new(format!("{option} needs --config-net")));
        }
        if given {
            options.notices.push(format!("{option} is deprecated"));
        }
    }
    options.no_copy_routes = args.no_copy_routes;
    options.no_copy_addrs = args.no_copy_addrs;
    Ok(())
}

fn port_options(options: &mut Options, args: &PortArgs) -> Result<()> {
    options.freebind = args.freebind;
    options.host_lo_to_ns_lo = args.host_lo_to_ns_lo;
    options.no_splice = args.no_splice;
    options.splice_only = args.splice_only;
    for (option, given) in [
        ("--splice-only", args.splice_only),
        ("--host-lo-to-ns-lo", args.host_lo_to_ns_lo),
    ] {
        if given && args.no_splice {
            return Err(CliError::new(format!(
                "{option} is incompatible with --no-splice"
            )));
        }
    }
    for (values, table, protocol) in [
        (&args.tcp_ports, Table::Host, Protocol::Tcp),
        (&args.udp_ports, Table::Host, Protocol::Udp),
        (&args.tcp_ns, Table::Splice, Protocol::Tcp),
        (&args.udp_ns, Table::Splice, Protocol::Udp),
    ] {
        let parsed = port_specs(options.mode, table, protocol, values)
            .map_err(|e| CliError::new(e.to_string()))?;
        options.ports.extend(parsed);
    }
    Ok(())
}

/// The values of one option, in order. `none` may be first, and any number of times; later ports replace it.
fn port_specs(
    mode: Mode,
    table: Table,
    protocol: Protocol,
    values: &[String],
) -> std::result::Result<Vec<PortOption>, RuleError> {
    let option = table.option(protocol);
    let mut specs: Vec<Spec> = Vec::new();
    for text in values {
        let spec = Spec::parse(text)?;
        if spec == Spec::None && specs.iter().any(|s| *s != Spec::None) {
            return Err(RuleError::NoneAfter(option));
        }
        if spec.is_auto() && mode == Mode::Passt {
            return Err(RuleError::AutoInPasst);
        }
        if table == Table::Splice && spec.has_listen() {
            return Err(RuleError::ListenAddress(option, text.clone()));
        }
        specs.push(spec);
    }
    Ok(specs
        .into_iter()
        .map(|spec| PortOption {
            table,
            protocol,
            spec,
        })
        .collect())
}

fn error<T>(message: &str) -> Result<T> {
    Err(CliError::new(message))
}
