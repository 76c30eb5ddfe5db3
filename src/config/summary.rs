//! The start-up summary: what the guest gets, in the layout users of the established tools know, and how to start it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::{Mode, Resolved, V4, V6};

/// The virtual machine that is to be connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Where we wait for it; `None`: it is connected.
    pub socket: Option<PathBuf>,
    /// How it is spoken to.
    pub vhost_user: bool,
}

/// Several lines, each ended by a newline. `machine`: in passt mode.
#[must_use]
pub fn summary(resolved: &Resolved, machine: Option<&Machine>) -> String {
    let mut out = String::new();
    let waiting = machine.and_then(|m| Some((m.socket.as_deref()?, m.vhost_user)));
    // Writing to a string cannot fail.
    if let Some((path, _)) = waiting {
        let _ = writeln!(out, "UNIX domain socket bound at {}", path.display());
    }
    let _ = write_summary(&mut out, resolved);
    if let Some((path, vhost_user)) = waiting {
        let _ = write_command(&mut out, path, vhost_user);
    }
    out
}

/// What to add to qemu's command line. The words before it are those that scripts wait for.
fn write_command(out: &mut String, path: &Path, vhost_user: bool) -> std::fmt::Result {
    // In the value of an option of qemu's a comma is written twice.
    let path = path.display().to_string().replace(',', ",,");
    let (words, options): (_, &[&str]) = if vhost_user {
        (
            "You can start qemu with:",
            &[
                "-m SIZE -object memory-backend-memfd,id=mem,size=SIZE,share=on",
                "-machine memory-backend=mem",
                "-netdev vhost-user,id=net,chardev=passt -device virtio-net-pci,netdev=net",
                "-chardev socket,id=passt,path=",
            ],
        )
    } else {
        (
            "You can now start qemu (>= 7.2):",
            &[
                "-device virtio-net-pci,netdev=net",
                "-netdev stream,id=net,server=off,addr.type=unix,addr.path=",
            ],
        )
    };
    write!(
        out,
        "{words}\n    qemu-system-{} ...",
        std::env::consts::ARCH
    )?;
    for option in options {
        write!(out, " \\\n        {option}")?;
    }
    writeln!(out, "{path}")
}

fn write_summary(out: &mut String, resolved: &Resolved) -> std::fmt::Result {
    let config = &resolved.config;
    let (v4, v6) = (config.v4.as_ref(), config.v6.as_ref());
    let interfaces = [
        (
            "Template",
            resolved.template4.as_ref(),
            resolved.template6.as_ref(),
        ),
        (
            "Outbound",
            v4.and_then(|v4| v4.outbound_if.as_ref()),
            v6.and_then(|v6| v6.outbound_if.as_ref()),
        ),
    ];
    for (what, name4, name6) in interfaces {
        let names: Vec<_> = [(name4, "IPv4"), (name6, "IPv6")]
            .into_iter()
            .filter_map(|(name, family)| name.map(|n| format!("{n} ({family})")))
            .collect();
        if !names.is_empty() {
            writeln!(out, "{what} interface: {}", names.join(", "))?;
        }
    }
    if let Some(addr) = v4.and_then(|v4| v4.outbound) {
        writeln!(out, "Outbound IPv4 address: {addr}")?;
    }
    if let Some(addr) = v6.and_then(|v6| v6.outbound) {
        writeln!(out, "Outbound IPv6 address: {addr}")?;
    }
    if config.mode == Mode::Pasta {
        writeln!(out, "Namespace interface: {}", resolved.netns.ifname)?;
    }
    writeln!(out, "MAC:\n    host: {}", config.our_mac)?;
    if let Some(v4) = v4 {
        write_v4(out, resolved, v4)?;
    }
    if let Some(v6) = v6 {
        write_v6(out, resolved, v6)?;
    }
    write_list(
        out,
        "Inbound forwarding rules (HOST)",
        resolved.host_rules.as_slice(),
    )?;
    if config.mode == Mode::Pasta {
        write_list(
            out,
            "Outbound forwarding rules (SPLICE)",
            resolved.splice_rules.as_slice(),
        )?;
    }
    Ok(())
}

fn write_v4(out: &mut String, resolved: &Resolved, v4: &V4) -> std::fmt::Result {
    if let Some(addr) = v4.map_host_loopback {
        writeln!(out, "    NAT to host 127.0.0.1: {addr}")?;
    }
    if resolved.config.services.dhcp {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(v4.prefix_len))
            .unwrap_or(0);
        writeln!(
            out,
            "DHCP:\n    assign: {}\n    mask: {}",
            v4.addr,
            Ipv4Addr::from_bits(mask)
        )?;
        if let Some(gateway) = v4.gateway {
            writeln!(out, "    router: {gateway}")?;
        }
    }
    write_list(out, "DNS", &v4.dns)?;
    write_list(out, "DNS search list", &resolved.config.search)
}

fn write_v6(out: &mut String, resolved: &Resolved, v6: &V6) -> std::fmt::Result {
    if let Some(addr) = v6.map_host_loopback {
        writeln!(out, "    NAT to host ::1: {addr}")?;
    }
    let services = resolved.config.services;
    let title = match (services.ndp, services.dhcpv6) {
        (true, true) => "NDP/DHCPv6",
        (true, false) => "NDP",
        (false, true) => "DHCPv6",
        (false, false) => return Ok(()),
    };
    writeln!(out, "{title}:")?;
    if let Some(addr) = v6.addr {
        writeln!(out, "    assign: {addr}")?;
    }
    if let Some(gateway) = v6.gateway {
        writeln!(out, "    router: {gateway}")?;
    }
    writeln!(out, "    our link-local: {}", v6.our_link_local)?;
    write_list(out, "DNS", &v6.dns)?;
    write_list(out, "DNS search list", &resolved.config.search)
}

fn write_list<T: std::fmt::Display>(
    out: &mut String,
    title: &str,
    items: &[T],
) -> std::fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}:")?;
    items
        .iter()
        .try_for_each(|item| writeln!(out, "    {item}"))
}
