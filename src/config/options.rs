//! What the user said, as plain data: one field per option, no decision taken yet.
//!
//! [`Options`] comes out of the parser with every value checked for itself (an address is an address) and every
//! combination of options checked against the others. What depends on the host (its interfaces, its
//! `resolv.conf`) is decided later by `config::resolve`.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::rules::PortOption;
use super::{Mode, Verbosity};
use crate::addr::Mac;

/// One setting per address family, each given at most once (the last one wins).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerFamily {
    /// The IPv4 value.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 value.
    pub v6: Option<Ipv6Addr>,
}

impl PerFamily {
    /// Store `addr` in the slot of its family.
    pub const fn set(&mut self, addr: IpAddr) {
        match addr {
            IpAddr::V4(a) => self.v4 = Some(a),
            IpAddr::V6(a) => self.v6 = Some(a),
        }
    }
}

/// An address that may be mapped to something on the host, or switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mapping {
    /// `none` was the last word.
    pub none: bool,
    /// The addresses given.
    pub addr: PerFamily,
}

/// A list that the user may give, switch off, or leave to `resolv.conf`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum List<T> {
    /// Not mentioned on the command line.
    Default,
    /// `none`.
    None,
    /// These, in this order.
    Given(Vec<T>),
}

/// A user or a group, by number or by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IdOrName {
    /// A number.
    Id(u32),
    /// A name the launcher looks up.
    Name(String),
}

/// `--runas`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunAs {
    /// The option's value as given, for messages.
    pub text: String,
    /// `UID` or `LOGIN`.
    pub user: IdOrName,
    /// `GID` or `GROUP`; `None`: for a number the same number's primary group, for a login its primary group.
    pub group: Option<IdOrName>,
}

/// What pasta connects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// passt: a socket, nothing to join.
    Socket,
    /// Run this command in new namespaces; empty: the user's shell, as a login shell.
    Spawn(Vec<OsString>),
    /// Join the namespaces of a process.
    Pid(i32),
    /// Join the network namespace this path names (a bare name was already put under `/run/netns`).
    Netns(PathBuf),
}

/// What passt's socket options ask for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SocketOptions {
    /// `-s`.
    pub path: Option<PathBuf>,
    /// `--vhost-user`.
    pub vhost_user: bool,
    /// `-F`: an inherited descriptor.
    pub fd: Option<i32>,
    /// `-1`, or implied by `-F`.
    pub one_off: bool,
    /// `--repair-path`; `none` is `Some(None)`.
    pub repair_path: Option<Option<PathBuf>>,
    /// `--migrate-exit`.
    pub migrate_exit: bool,
    /// `--migrate-no-linger`.
    pub migrate_no_linger: bool,
}

/// Protocols and services switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Disabled {
    /// `--no-tcp`.
    pub tcp: bool,
    /// `--no-udp`.
    pub udp: bool,
    /// `--no-icmp`.
    pub icmp: bool,
    /// `--no-dhcp`.
    pub dhcp: bool,
    /// `--no-ndp`, or implied by `--no-icmp`.
    pub ndp: bool,
    /// `--no-dhcpv6`.
    pub dhcpv6: bool,
    /// `--no-ra`.
    pub ra: bool,
}

/// `-a` for IPv4: the address, and the prefix length if `/LEN` was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address4 {
    /// The address.
    pub addr: Ipv4Addr,
    /// From `/LEN` or `-n`, 0..=32; `None`: by address class.
    pub prefix_len: Option<u8>,
}

/// The parsed command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// passt or pasta, from `argv[0]`.
    pub mode: Mode,
    /// Last component of `argv[0]`, for messages and syslog.
    pub program: String,
    /// What to connect.
    pub target: Target,
    /// `--userns`: the user namespace to join.
    pub userns: Option<PathBuf>,
    /// `--netns-only`, or implied by `--netns` without `--userns`: neither join nor create a user namespace.
    pub netns_only: bool,
    /// `--no-netns-quit`.
    pub no_netns_quit: bool,
    /// `--no-pidns`.
    pub no_pidns: bool,

    /// `-f`.
    pub foreground: bool,
    /// `-q`, `-d`, `--trace`.
    pub verbosity: Verbosity,
    /// `--stats`: seconds.
    pub stats: Option<u32>,
    /// `-l`.
    pub log_file: Option<PathBuf>,
    /// `--log-size`, bytes.
    pub log_size: u64,
    /// `-P`.
    pub pid_file: Option<PathBuf>,
    /// `-p`.
    pub pcap: Option<PathBuf>,
    /// `-c`.
    pub conf_path: Option<PathBuf>,
    /// `--runas`.
    pub runas: Option<RunAs>,
    /// `--chroot-fallback`.
    pub chroot_fallback: bool,
    /// Things to tell the user once logging works (deprecated options and the like).
    pub notices: Vec<String>,

    /// `-s`, `--vhost-user`, `-F`, `-1` and migration options.
    pub socket: SocketOptions,

    /// `-I`.
    pub ns_ifname: Option<String>,
    /// `--ns-mac-addr`.
    pub ns_mac: Option<Mac>,
    /// `--config-net`.
    pub config_net: bool,
    /// `--no-copy-routes`.
    pub no_copy_routes: bool,
    /// `--no-copy-addrs`.
    pub no_copy_addrs: bool,
    /// `--splice-only`: no tap.
    pub splice_only: bool,
    /// `--no-splice`.
    pub no_splice: bool,
    /// `--host-lo-to-ns-lo`.
    pub host_lo_to_ns_lo: bool,

    /// `-4` not excluded: false with `-6`.
    pub ipv4: bool,
    /// False with `-4`.
    pub ipv6: bool,
    /// `-m`; `None`: the default.
    pub mtu: Option<u16>,
    /// `-M`.
    pub our_mac: Option<Mac>,
    /// `-a`, IPv4.
    pub addr4: Option<Address4>,
    /// `-a`, IPv6.
    pub addr6: Option<Ipv6Addr>,
    /// `-n`: prefix length.
    pub netmask: Option<u8>,
    /// `-g`.
    pub gateway: PerFamily,
    /// `-i`.
    pub interface: Option<String>,
    /// `-o`.
    pub outbound: PerFamily,
    /// `--outbound-if4`.
    pub outbound_if4: Option<String>,
    /// `--outbound-if6`.
    pub outbound_if6: Option<String>,

    /// `-D`.
    pub dns: List<IpAddr>,
    /// `--dns-forward`.
    pub dns_forward: PerFamily,
    /// `--dns-host`.
    pub dns_host: PerFamily,
    /// `-S`.
    pub search: List<String>,
    /// `--dhcp-dns` / `--no-dhcp-dns`, with the mode's default.
    pub dhcp_dns: bool,
    /// `--dhcp-search` / `--no-dhcp-search`, with the mode's default.
    pub dhcp_search: bool,
    /// `-H`.
    pub hostname: Option<String>,
    /// `--fqdn`.
    pub fqdn: Option<String>,

    /// `--map-host-loopback`.
    pub map_host_loopback: Mapping,
    /// `--map-guest-addr`.
    pub map_guest_addr: Mapping,
    /// `--no-map-gw`.
    pub no_map_gw: bool,
    /// `--no-tcp` and its like.
    pub disabled: Disabled,

    /// `-t`, `-u`, `-T`, `-U` in the order given.
    pub ports: Vec<PortOption>,
    /// `--freebind`.
    pub freebind: bool,
}
