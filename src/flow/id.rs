//! Names of flows: the dense index everything carries around, and the key a packet is looked up by.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use crate::addr::Endpoint;

/// Index of a flow in its protocol's table. Dense (the lowest free index is used first), so arrays indexed by
/// it stay short.
///
/// An identifier is reused as soon as its flow is removed: whoever keeps one across a removal (an epoll batch
/// already fetched, say) must treat what it leads to as a hint to be checked, never as a fact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowId(pub u32);

impl FlowId {
    /// As an array index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// The two ends of a flow as the guest sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The guest's own end.
    pub guest: Endpoint,
    /// The end the guest talks to, before translation.
    pub remote: Endpoint,
}

impl Key {
    /// A key from its ends.
    #[must_use]
    pub const fn new(guest: Endpoint, remote: Endpoint) -> Self {
        Self { guest, remote }
    }
}

impl Hash for Key {
    /// One write of fixed size: both addresses in IPv6 form and both ports. Hashing field by field would cost
    /// several short writes, each of which the hasher has to buffer.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 36];
        let parts = [(&self.guest, 0), (&self.remote, 18)];
        for (end, at) in parts {
            let ip = match end.ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let port = end.port.to_be_bytes();
            for (slot, byte) in bytes.iter_mut().skip(at).zip(ip.iter().chain(&port)) {
                *slot = *byte;
            }
        }
        state.write(&bytes);
    }
}
