//! The options: names, values and one line of help each, as clap definitions.
//!
//! This is the single list: the getopt pass ([`super::getopt`]) looks names up here, `--help` is printed from
//! here, and a test compares it with the man page. clap never sees a raw command line, only the canonical one
//! the getopt pass makes of it, so its own abbreviation, suggestion and positional rules play no part.
//!
//! Every value arrives as text; [`super::build`] gives it its type, because error messages name what callers
//! of the established tools look for. Additive options are `Vec`s, for the others the last one wins.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are the text of --help, where brackets mean what can be left out"
)]

use std::ffi::OsString;

use clap::{Args, Parser};

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    args_override_self = true,
    disable_help_flag = true,
    disable_version_flag = true,
    disable_help_subcommand = true,
    next_line_help = true
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub process: ProcessArgs,
    #[command(flatten)]
    pub guest: GuestArgs,
    #[command(flatten)]
    pub names: NameArgs,
    #[command(flatten)]
    pub map: MapArgs,
    #[command(flatten)]
    pub services: ServiceArgs,
    #[command(flatten)]
    pub ports: PortArgs,
    #[command(flatten)]
    pub passt: PasstArgs,
    #[command(flatten)]
    pub pasta: PastaArgs,
    /// What follows the options: COMMAND and its arguments, or a PID.
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub rest: Vec<OsString>,
}

/// How the process runs and what it says.
#[derive(Args, Debug)]
#[command(next_help_heading = "Running and logging")]
pub(super) struct ProcessArgs {
    /// Say more, on standard error, not to the system log
    #[arg(short, long, overrides_with = "quiet")]
    pub debug: bool,
    /// Say even more: every packet; implies --debug
    #[arg(long, overrides_with = "quiet")]
    pub trace: bool,
    /// Print event statistics, at most every DELAY seconds (needs --foreground)
    #[arg(long, value_name = "DELAY")]
    pub stats: Option<String>,
    /// Print warnings and errors only
    #[arg(short, long, overrides_with_all = ["debug", "trace"])]
    pub quiet: bool,
    /// Do not run in the background
    #[arg(short, long)]
    pub foreground: bool,
    /// Accepted for compatibility, has no effect
    #[arg(short = 'e', long)]
    pub stderr: bool,
    /// Log to this file instead of the system log
    #[arg(short, long, value_name = "PATH")]
    pub log_file: Option<OsString>,
    /// Largest size of the log file; old lines are dropped [default: 1048576]
    #[arg(long, value_name = "BYTES")]
    pub log_size: Option<String>,
    /// Run as this user and group; needs privilege [default: nobody, when started as root]
    #[arg(long, value_name = "UID|UID:GID|LOGIN|LOGIN:GROUP")]
    pub runas: Option<String>,
    /// Socket for pesto to look at and change port forwarding
    #[arg(short, long, value_name = "PATH")]
    pub conf_path: Option<OsString>,
    /// Record the frames exchanged with guest or namespace, in pcap format
    #[arg(short, long, value_name = "FILE")]
    pub pcap: Option<OsString>,
    /// Write the process identifier to this file once everything is ready
    #[arg(short = 'P', long, value_name = "FILE")]
    pub pid: Option<OsString>,
    /// Accepted for compatibility, has no effect
    #[arg(long)]
    pub chroot_fallback: bool,
    /// Print this help and exit
    #[arg(short, long)]
    pub help: bool,
    /// Print the version and exit
    #[arg(long)]
    pub version: bool,
}

/// The network the guest sees.
#[derive(Args, Debug)]
#[command(next_help_heading = "Addresses and routes")]
pub(super) struct GuestArgs {
    /// MTU told to the guest, 0: none; also set on the interface by --config-net [default: 65520]
    #[arg(short, long, value_name = "MTU")]
    pub mtu: Option<String>,
    /// Address of the guest, once per IP version [default: the host's]
    #[arg(short, long, value_name = "ADDR[/PREFIX_LEN]")]
    pub address: Vec<String>,
    /// IPv4 netmask, dotted or as number of bits [default: what the class of the address says]
    #[arg(short = 'n', long, value_name = "MASK")]
    pub netmask: Option<String>,
    /// MAC address of the host as the guest sees it [default: 9a:55:9a:55:9a:55]
    #[arg(short = 'M', long, value_name = "ADDR")]
    pub mac_addr: Option<String>,
    /// Default gateway, once per IP version [default: the host's]
    #[arg(short, long, value_name = "ADDR")]
    pub gateway: Vec<String>,
    /// Host interface that addresses and routes are taken from [default: that of the default route]
    #[arg(short, long, value_name = "NAME")]
    pub interface: Option<String>,
    /// Source address of outbound traffic, once per IP version
    #[arg(short, long, value_name = "ADDR")]
    pub outbound: Vec<String>,
    /// Bind outbound IPv4 traffic to this host interface
    #[arg(long, value_name = "NAME")]
    pub outbound_if4: Option<String>,
    /// Bind outbound IPv6 traffic to this host interface
    #[arg(long, value_name = "NAME")]
    pub outbound_if6: Option<String>,
    /// IPv4 only
    #[arg(short = '4', long, overrides_with = "ipv6_only")]
    pub ipv4_only: bool,
    /// IPv6 only
    #[arg(short = '6', long, overrides_with = "ipv4_only")]
    pub ipv6_only: bool,
}

/// Names: resolvers, search domains, the guest's own.
#[derive(Args, Debug)]
#[command(next_help_heading = "Names")]
pub(super) struct NameArgs {
    /// Resolver told to the guest, may be repeated; 'none': none [default: from /etc/resolv.conf]
    #[arg(short = 'D', long, value_name = "ADDR")]
    pub dns: Vec<String>,
    /// Send queries for this address (ports 53 and 853) to the host's resolver
    #[arg(long, value_name = "ADDR")]
    pub dns_forward: Vec<String>,
    /// The host's resolver that --dns-forward means [default: first of /etc/resolv.conf]
    #[arg(long, value_name = "ADDR")]
    pub dns_host: Vec<String>,
    /// Search domains, separated by spaces, may be repeated; 'none': none [default: from /etc/resolv.conf]
    #[arg(short = 'S', long, value_name = "LIST")]
    pub search: Vec<String>,
    /// Tell the guest about resolvers by DHCP, DHCPv6 and NDP
    #[arg(long)]
    pub dhcp_dns: bool,
    /// Do not tell the guest about resolvers
    #[arg(long)]
    pub no_dhcp_dns: bool,
    /// Tell the guest about search domains by DHCP, DHCPv6 and NDP
    #[arg(long)]
    pub dhcp_search: bool,
    /// Do not tell the guest about search domains
    #[arg(long)]
    pub no_dhcp_search: bool,
    /// Host name told to the guest (DHCP)
    #[arg(short = 'H', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Fully qualified name told to the guest (DHCP, DHCPv6)
    #[arg(long, value_name = "NAME")]
    pub fqdn: Option<String>,
}

/// How the guest reaches the host.
#[derive(Args, Debug)]
#[command(next_help_heading = "Reaching the host")]
pub(super) struct MapArgs {
    /// Destination that means the host's loopback, or 'none' [default: the gateway's address]
    #[arg(long, value_name = "ADDR")]
    pub map_host_loopback: Vec<String>,
    /// Destination that means the host's address the guest shares, or 'none' [default: none]
    #[arg(long, value_name = "ADDR")]
    pub map_guest_addr: Vec<String>,
    /// The gateway's address does not mean the host
    #[arg(long)]
    pub no_map_gw: bool,
}

/// Protocols and services.
#[derive(Args, Debug)]
#[command(next_help_heading = "Protocols and services")]
#[expect(clippy::struct_excessive_bools, reason = "one per option")]
pub(super) struct ServiceArgs {
    /// Do not carry TCP
    #[arg(long)]
    pub no_tcp: bool,
    /// Do not carry UDP
    #[arg(long)]
    pub no_udp: bool,
    /// Do not carry ICMP and ICMPv6; implies --no-ndp
    #[arg(long)]
    pub no_icmp: bool,
    /// Do not answer DHCP
    #[arg(long)]
    pub no_dhcp: bool,
    /// Do not answer NDP
    #[arg(long)]
    pub no_ndp: bool,
    /// Do not answer DHCPv6
    #[arg(long)]
    pub no_dhcpv6: bool,
    /// Do not send router advertisements
    #[arg(long)]
    pub no_ra: bool,
}

/// Port forwarding.
#[derive(Args, Debug)]
#[command(next_help_heading = "Port forwarding")]
pub(super) struct PortArgs {
    /// Forward TCP ports of the host to the guest [default: auto in pasta, none in passt]
    /// SPEC: none | [ADDR][%IFACE]/LIST | LIST, see passt(1)
    /// LIST: N[-M][:[TOADDR/]T[-U]] | ~N[-M] | all | auto ,...
    #[arg(short, long, value_name = "SPEC", verbatim_doc_comment)]
    pub tcp_ports: Vec<String>,
    /// Forward UDP ports of the host to the guest [default: auto in pasta, none in passt]
    #[arg(short, long, value_name = "SPEC")]
    pub udp_ports: Vec<String>,
    /// Forward TCP ports of the namespace's loopback to the host's [default: auto]
    #[arg(short = 'T', long, value_name = "SPEC")]
    pub tcp_ns: Vec<String>,
    /// Forward UDP ports of the namespace's loopback to the host's [default: auto]
    #[arg(short = 'U', long, value_name = "SPEC")]
    pub udp_ns: Vec<String>,
    /// Allow -t and -u to listen on addresses the host does not have (yet)
    #[arg(long)]
    pub freebind: bool,
    /// Host loopback connections arrive on the namespace's loopback
    #[arg(long)]
    pub host_lo_to_ns_lo: bool,
    /// Loopback connections go through the tap, too
    #[arg(long)]
    pub no_splice: bool,
    /// No tap: forward loopback connections only
    #[arg(long)]
    pub splice_only: bool,
}

/// What only passt has.
#[derive(Args, Debug)]
#[command(next_help_heading = "Virtual machine")]
#[expect(clippy::struct_excessive_bools, reason = "one per option")]
pub(super) struct PasstArgs {
    /// UNIX socket for the hypervisor [default: first free of /tmp/passt_1.socket ... /tmp/passt_64.socket]
    #[arg(short, long, value_name = "PATH", visible_alias = "socket-path")]
    pub socket: Option<OsString>,
    /// Speak vhost-user on the socket
    #[arg(long)]
    pub vhost_user: bool,
    /// Print what the vhost-user back-end can do, as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
    /// UNIX socket for passt-repair, or 'none' (accepted, no effect)
    #[arg(long, value_name = "PATH")]
    pub repair_path: Option<OsString>,
    /// Exit after a migration away from here (accepted, no effect)
    #[arg(long)]
    pub migrate_exit: bool,
    /// Close connections after a migration away from here (accepted, no effect)
    #[arg(long)]
    pub migrate_no_linger: bool,
    /// Use this inherited, connected socket; implies --one-off
    #[arg(short = 'F', long, value_name = "FD")]
    pub fd: Option<String>,
    /// Exit when the hypervisor closes its connection
    #[arg(short = '1', long)]
    pub one_off: bool,
}

/// What only pasta has.
#[derive(Args, Debug)]
#[command(next_help_heading = "Namespace")]
#[expect(clippy::struct_excessive_bools, reason = "one per option")]
pub(super) struct PastaArgs {
    /// Name of the interface in the namespace [default: the host's, or tap0]
    #[arg(short = 'I', long, value_name = "NAME")]
    pub ns_ifname: Option<String>,
    /// User namespace to join
    #[arg(long, value_name = "PATH")]
    pub userns: Option<OsString>,
    /// Network namespace to join; a name means /run/netns/NAME
    #[arg(long, value_name = "PATH|NAME")]
    pub netns: Option<OsString>,
    /// Neither join nor create a user namespace; implied by --netns without --userns
    #[arg(long)]
    pub netns_only: bool,
    /// Stay when the namespace's path or process goes away
    #[arg(long)]
    pub no_netns_quit: bool,
    /// Run COMMAND without a PID namespace of its own
    #[arg(long)]
    pub no_pidns: bool,
    /// Configure the interface in the namespace: addresses, routes, link up
    #[arg(long)]
    pub config_net: bool,
    /// With --config-net, only a default route (deprecated)
    #[arg(long)]
    pub no_copy_routes: bool,
    /// With --config-net, only one address per IP version (deprecated)
    #[arg(long)]
    pub no_copy_addrs: bool,
    /// MAC address of the interface in the namespace [default: random]
    #[arg(long, value_name = "ADDR")]
    pub ns_mac_addr: Option<String>,
}

/// Options that passt refuses.
pub(super) const PASTA_ONLY: &[&str] = &[
    "ns-ifname",
    "tcp-ns",
    "udp-ns",
    "userns",
    "netns",
    "netns-only",
    "no-netns-quit",
    "no-pidns",
    "config-net",
    "no-copy-routes",
    "no-copy-addrs",
    "ns-mac-addr",
    "host-lo-to-ns-lo",
    "splice-only",
    "dhcp-dns",
    "dhcp-search",
];

/// Options that pasta refuses.
pub(super) const PASST_ONLY: &[&str] = &[
    "socket",
    "fd",
    "one-off",
    "vhost-user",
    "repair-path",
    "migrate-exit",
    "migrate-no-linger",
    "no-dhcp-dns",
    "no-dhcp-search",
];
