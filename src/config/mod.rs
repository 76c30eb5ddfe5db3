//! What a run is to do, decided once: the command line, the host's network and resolv.conf, resolved.
//!
//! [`Config`] is immutable after start-up. Every process gets the same value by fork; the data path reads
//! addresses from it and nothing else decides policy. `Option` means "not there", never "ask somebody".

mod dns;
pub mod host;
pub mod namespace;
mod notice;
pub mod options;
pub mod ports;
pub mod resolv;
mod resolve;
pub mod rules;
pub mod socket;
mod summary;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::addr::Mac;

pub use notice::Notice;
pub use resolve::{ConfigError, Environment, Resolved, ephemeral_ports, resolve};
pub use summary::{Machine, summary};

/// The default MTU of the tap, the largest an IPv4 tap interface takes in multiples the peers use.
pub const DEFAULT_MTU: u16 = 65520;

/// Which program the user started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mode {
    /// A virtual machine on a socket.
    Passt,
    /// A network namespace on a kernel tap.
    Pasta,
}

/// Everything the forwarder needs to know. Built by `config::resolve`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// passt or pasta.
    pub mode: Mode,
    /// Our own link-layer address towards the guest (`-M`).
    pub our_mac: Mac,
    /// The guest's link-layer address, if known before it speaks (pasta knows it).
    pub guest_mac: Option<Mac>,
    /// IP MTU advertised to the guest (`-m`); 0: do not advertise.
    pub mtu: u16,
    /// IPv4 side; `None`: the family is off.
    pub v4: Option<V4>,
    /// IPv6 side; `None`: the family is off.
    pub v6: Option<V6>,
    /// Every address the guest has from the beginning (`--config-net`): the two above and copies of the host's others.
    pub given: Vec<IpAddr>,
    /// What to carry and which services to offer.
    pub services: Services,
    /// The way round the tap.
    pub splice: Splice,
    /// `-H`: DHCP option 12.
    pub hostname: Option<String>,
    /// `--fqdn`: DHCP option 81, DHCPv6 option 39.
    pub fqdn: Option<String>,
    /// Domain search list (`-S` or resolv.conf).
    pub search: Vec<String>,
    /// `--dhcp-dns`: resolvers in DHCP, DHCPv6 and RA.
    pub dhcp_dns: bool,
    /// `--dhcp-search`: search list in DHCP, DHCPv6 and RA.
    pub dhcp_search: bool,
    /// `-p`: where to record the tap side (opened by the launcher).
    pub pcap: Option<PathBuf>,
    /// `--stats`: minimum seconds between two prints; `None`: off.
    pub stats: Option<u32>,
    /// Log verbosity.
    pub verbosity: Verbosity,
}

/// How much to say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Verbosity {
    /// `-q`: warnings and errors only.
    Quiet,
    /// The default.
    Normal,
    /// `-d`.
    Debug,
    /// `--trace`: every packet.
    Trace,
}

/// What is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Services {
    /// Carry TCP.
    pub tcp: bool,
    /// Carry UDP.
    pub udp: bool,
    /// Carry ICMP and ICMPv6 echo.
    pub icmp: bool,
    /// Answer DHCP.
    pub dhcp: bool,
    /// Answer neighbour solicitations.
    pub ndp: bool,
    /// Answer DHCPv6.
    pub dhcpv6: bool,
    /// Send router advertisements.
    pub ra: bool,
}

/// Which connections between the two loopbacks go from socket to socket, without the tap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Splice {
    /// Connections from the host's loopback to a forwarded port do (pasta without `--no-splice`).
    pub inbound: bool,
    /// They arrive on the namespace's loopback instead of its public address (`--host-lo-to-ns-lo`).
    pub to_loopback: bool,
    /// There is no tap at all (`--splice-only`).
    pub only: bool,
}

/// The IPv4 side of the guest's network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct V4 {
    /// Address assigned to the guest (normally the host's own).
    pub addr: Ipv4Addr,
    /// Its prefix length, 0..=32.
    pub prefix_len: u8,
    /// Default gateway told to the guest; also the source shown for host-originated traffic.
    pub gateway: Option<Ipv4Addr>,
    /// The address we use as our own towards the guest (gateway, or a stand-in in local mode).
    pub our_addr: Option<Ipv4Addr>,
    /// Guest destination that means the host's 127.0.0.1 (`--map-host-loopback`, else the gateway).
    pub map_host_loopback: Option<Ipv4Addr>,
    /// Guest destination that means the address the guest shares with the host (`--map-guest-addr`).
    pub map_guest_addr: Option<Ipv4Addr>,
    /// Guest destination whose ports 53 and 853 go to `dns_host` (`--dns-forward`, or implied).
    pub dns_match: Option<Ipv4Addr>,
    /// The host's resolver (`--dns-host`, else the first of resolv.conf).
    pub dns_host: Option<Ipv4Addr>,
    /// Resolvers told to the guest (`-D`).
    pub dns: Vec<Ipv4Addr>,
    /// Source address of outbound sockets (`-o`).
    pub outbound: Option<Ipv4Addr>,
    /// Interface outbound sockets are bound to (`--outbound-if4`).
    pub outbound_if: Option<String>,
}

/// The IPv6 side of the guest's network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct V6 {
    /// Global address assigned to the guest; `None` in local mode.
    pub addr: Option<Ipv6Addr>,
    /// Default gateway as the guest sees it.
    pub gateway: Option<Ipv6Addr>,
    /// Our link-local address towards the guest.
    pub our_link_local: Ipv6Addr,
    /// Guest destination that means the host's ::1.
    pub map_host_loopback: Option<Ipv6Addr>,
    /// Guest destination that means the address the guest shares with the host.
    pub map_guest_addr: Option<Ipv6Addr>,
    /// Guest destination whose ports 53 and 853 go to `dns_host`.
    pub dns_match: Option<Ipv6Addr>,
    /// The host's resolver.
    pub dns_host: Option<Ipv6Addr>,
    /// Scope (interface index) of a link-local `dns_host`; 0: none.
    pub dns_host_scope: u32,
    /// Resolvers told to the guest.
    pub dns: Vec<Ipv6Addr>,
    /// Source address of outbound sockets.
    pub outbound: Option<Ipv6Addr>,
    /// Interface outbound sockets are bound to.
    pub outbound_if: Option<String>,
    /// Interface index used as scope for link-local destinations; 0: none.
    pub outbound_scope: u32,
}
