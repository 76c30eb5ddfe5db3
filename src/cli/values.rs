//! One value at a time: text in, type out, or an error that names it.
//!
//! What is refused here could not work on any host: an address that cannot be a host's, a name the kernel would
//! not take. The words of the errors are those of the established tools.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::CliError;
use crate::addr::Mac;
use crate::config::options::{IdOrName, List, Mapping, PerFamily, RunAs};
use crate::config::resolv::is_domain_name;
use crate::config::rules::MAX_INTERFACE_NAME;

/// Largest `-m`: what fits a 16-bit total length behind an Ethernet header.
const MAX_MTU: u16 = 65521;
const MIN_MTU: u16 = 68;
/// Longest path of a UNIX domain socket, bytes.
const MAX_SOCKET_PATH: usize = 107;

pub(super) type Result<T> = std::result::Result<T, CliError>;

/// A name means what ip-netns(8) made of it.
pub(super) fn netns_path(value: &OsStr) -> Result<PathBuf> {
    if value.is_empty() || value == "." || value == ".." {
        return Err(CliError::new(format!(
            "Invalid network namespace: {}",
            value.to_string_lossy()
        )));
    }
    let path = Path::new(value);
    Ok(if value.as_encoded_bytes().contains(&b'/') {
        path.to_owned()
    } else {
        Path::new("/run/netns").join(path)
    })
}

pub(super) fn is_number(word: &OsStr) -> bool {
    let bytes = word.as_encoded_bytes();
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}

pub(super) fn pid(word: &OsStr) -> Result<i32> {
    let text = word.to_string_lossy();
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(CliError::new(format!("Invalid PID {text}"))),
    }
}

pub(super) fn run_as(text: String) -> Result<RunAs> {
    let one = |part: &str| {
        if part.is_empty() {
            return Err(invalid("--runas option", &text));
        }
        if part.bytes().all(|b| b.is_ascii_digit()) {
            let id = part.parse().map_err(|_| invalid("--runas option", &text))?;
            return Ok(IdOrName::Id(id));
        }
        Ok(IdOrName::Name(part.to_owned()))
    };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (one(user)?, Some(one(group)?)),
        None => (one(&text)?, None),
    };
    Ok(RunAs { user, group, text })
}

pub(super) fn mtu(text: &str) -> Result<u16> {
    let value: u64 = text.parse().map_err(|_| invalid("MTU", text))?;
    match u16::try_from(value) {
        Ok(v) if v > 0 && v < MIN_MTU => Err(CliError::new(format!(
            "MTU {v} is too small for IPv4 (minimum {MIN_MTU})"
        ))),
        Ok(v) if v <= MAX_MTU => Ok(v),
        _ => Err(CliError::new(format!(
            "MTU {value} too large (max {MAX_MTU})"
        ))),
    }
}

pub(super) fn mac(text: &str) -> Result<Mac> {
    text.parse()
        .ok()
        .filter(|m: &Mac| m.is_unicast())
        .ok_or_else(|| invalid("MAC address", text))
}

/// Dotted and contiguous, or a number of bits.
pub(super) fn netmask(text: &str) -> Result<u8> {
    if let Ok(mask) = text.parse::<Ipv4Addr>() {
        let bits = mask.to_bits();
        if bits.leading_ones() + bits.trailing_zeros() >= u32::BITS {
            return u8::try_from(bits.leading_ones()).map_err(|_| invalid("prefix length", text));
        }
    }
    prefix_len(text, 32).ok_or_else(|| invalid("prefix length", text))
}

pub(super) fn prefix_len(text: &str, max: u8) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|len| digits && *len <= max)
}

pub(super) fn parse_addr(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|a| a.to_canonical())
}

pub(super) fn is_broadcast(addr: &IpAddr) -> bool {
    *addr == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// A name the kernel could accept (`dev_valid_name`, net/core/dev.c) and that can be seen on a terminal.
pub(super) fn interface(name: Option<&str>) -> Result<Option<String>> {
    let Some(name) = name else {
        return Ok(None);
    };
    let bad = name.is_empty()
        || name.len() > MAX_INTERFACE_NAME
        || name == "."
        || name == ".."
        || name.contains(['/', ':'])
        || name
            .chars()
            .any(|c| !(c.is_ascii_graphic() || c.is_alphanumeric()));
    if bad {
        return Err(invalid("interface name", name));
    }
    Ok(Some(name.to_owned()))
}

pub(super) fn search_list(list: &mut List<String>, text: &str) -> Result<()> {
    let mut empty = true;
    for domain in text.split_ascii_whitespace() {
        if !is_domain_name(domain.strip_suffix('.').unwrap_or(domain)) {
            return Err(CliError::new(format!(
                "Cannot use DNS search domain {domain}"
            )));
        }
        list.push(domain.to_owned());
        empty = false;
    }
    if empty {
        return Err(CliError::new(format!(
            "Cannot use DNS search domain {text}"
        )));
    }
    Ok(())
}

pub(super) fn host_name(what: &str, name: Option<String>) -> Result<Option<String>> {
    match name {
        Some(n) if n.is_empty() => Ok(None),
        Some(n) if !is_domain_name(n.strip_suffix('.').unwrap_or(&n)) => Err(invalid(what, &n)),
        other => Ok(other),
    }
}

pub(super) fn mapping(option: &str, values: &[String]) -> Result<Mapping> {
    let mut mapping = Mapping::default();
    for text in values {
        if text == "none" {
            mapping = Mapping {
                none: true,
                addr: PerFamily::default(),
            };
            continue;
        }
        let usable = |a: &IpAddr| {
            !a.is_unspecified() && !a.is_loopback() && !a.is_multicast() && !is_broadcast(a)
        };
        let addr = parse_addr(text).filter(usable).ok_or_else(|| {
            let to = if option == "--map-guest-addr" {
                "guest"
            } else {
                "host"
            };
            CliError::new(format!("Invalid address to remap to {to}: {text}"))
        })?;
        mapping.addr.set(addr);
    }
    Ok(mapping)
}

pub(super) fn path(what: &str, value: Option<OsString>) -> Result<Option<PathBuf>> {
    match value {
        Some(v) if v.is_empty() => Err(invalid(what, "")),
        other => Ok(other.map(PathBuf::from)),
    }
}

/// Of a UNIX domain socket: with the zero behind it, what `sun_path` has room for (unix(7)).
pub(super) fn socket_path(what: &str, value: Option<OsString>) -> Result<Option<PathBuf>> {
    match value {
        Some(v) if v.len() > MAX_SOCKET_PATH => Err(invalid(what, &v.to_string_lossy())),
        other => path(what, other),
    }
}

pub(super) fn invalid(what: &str, value: &str) -> CliError {
    // One line, whatever the value.
    let value = value.replace(char::is_control, "?");
    CliError::new(format!("Invalid {what}: {value}"))
}
