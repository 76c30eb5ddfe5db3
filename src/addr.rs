//! Addresses that every layer shares: a MAC address, and an IP address with a port.
//!
//! `std::net` already has the IP types; what it lacks is a transport end point without scope
//! identifiers and flow labels (`SocketAddrV6` has both, and two end points that differ only there
//! would be different hash keys), and link-layer addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IEEE 802 MAC address, in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// All zeroes: "not known".
    pub const ZERO: Self = Self([0; 6]);
    /// The address we use towards the guest unless `--mac-addr` says otherwise.
    pub const OURS: Self = Self([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

    /// Group bit: multicast, or broadcast.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// A single station's address: neither a group address nor all zeroes.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        !self.is_group() && self != Self::ZERO
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not six colon-separated pairs of hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address")]
pub struct MacParseError;

impl FromStr for Mac {
    type Err = MacParseError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut out = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut out {
            let part = parts.next().ok_or(MacParseError)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(MacParseError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacParseError)?;
        }
        if parts.next().is_some() {
            return Err(MacParseError);
        }
        Ok(Self(out))
    }
}

/// One end of a transport conversation: address and port (for ICMP echo, the identifier).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address; never an IPv4-mapped IPv6 one.
    pub ip: IpAddr,
    /// The port, in host byte order.
    pub port: u16,
}

impl Endpoint {
    /// An end point from its parts.
    #[must_use]
    pub const fn new(ip: IpAddr, port: u16) -> Self {
        Self { ip, port }
    }

    /// Same address family?
    #[must_use]
    pub const fn is_ipv6(&self) -> bool {
        self.ip.is_ipv6()
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(e: Endpoint) -> Self {
        Self::new(e.ip, e.port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(s: SocketAddr) -> Self {
        Self::new(s.ip().to_canonical(), s.port())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SocketAddr::from(*self), f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trip_and_rejects() {
        let m: Mac = "9a:55:9A:55:9a:55".parse().unwrap();
        assert_eq!(m, Mac::OURS);
        assert_eq!(m.to_string(), "9a:55:9a:55:9a:55");
        for bad in [
            "",
            "9a:55:9a:55:9a",
            "9a:55:9a:55:9a:55:00",
            "9a:55:9a:55:9a:5",
            "+a:55:9a:55:9a:55",
            "9a-55-9a-55-9a-55",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(MacParseError), "{bad}");
        }
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        let s: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(Endpoint::from(s).to_string(), "192.0.2.1:80");
    }
}
