//! Which pair of rings a flow belongs to.
//!
//! A guest with several pairs sends each flow from the CPU that runs it, and wants the answers there. So the pair a
//! flow last sent on is remembered, by a hash that is the same for both directions; two flows with one hash share
//! a pair, which costs a little time and nothing else. The guest chooses the addresses and may make them collide:
//! that only affects itself.

use crate::wire::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Flows told apart.
const SLOTS: usize = 4096;

/// Where in the frame: IPv4 addresses, protocol; IPv6 addresses, next header.
const V4_ADDRESSES: usize = ethernet::HEADER_LEN + 12;
const V6_ADDRESSES: usize = ethernet::HEADER_LEN + 8;
const V6_PORTS: usize = V6_ADDRESSES + 32;

/// The memory of it.
#[derive(Debug)]
pub struct Steering {
    pairs: [u8; SLOTS],
}

impl Default for Steering {
    fn default() -> Self {
        Self { pairs: [0; SLOTS] }
    }
}

impl Steering {
    /// The guest has sent `frame` (at least its headers) on this pair.
    pub fn learn(&mut self, frame: &[u8], pair: usize) {
        if let Some(slot) = slot(frame).and_then(|slot| self.pairs.get_mut(slot)) {
            *slot = u8::try_from(pair).unwrap_or(0);
        }
    }

    /// The pair for a frame to the guest; the first for what is no flow.
    #[must_use]
    pub fn pair_of(&self, frame: &[u8]) -> usize {
        let pair = slot(frame).and_then(|slot| self.pairs.get(slot));
        pair.map_or(0, |pair| usize::from(*pair))
    }
}

/// The slot of the flow of a frame; `None` if it is not IP.
fn slot(frame: &[u8]) -> Option<usize> {
    let ethertype = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    let (addresses, ports) = match ethertype {
        ETHERTYPE_IPV4 => {
            let words = usize::from(frame.get(ethernet::HEADER_LEN)? & 0x0f);
            let ports = ethernet::HEADER_LEN.checked_add(words.checked_mul(4)?)?;
            (frame.get(V4_ADDRESSES..)?.get(..8)?, ports)
        }
        ETHERTYPE_IPV6 => (frame.get(V6_ADDRESSES..V6_PORTS)?, V6_PORTS),
        _ => return None,
    };
    let ports = frame.get(ports..)?.first_chunk::<4>()?;
    // Exclusive or takes both ends in either order.
    let sum = addresses
        .chunks_exact(4)
        .chain(ports.chunks_exact(2))
        .flatten()
        .enumerate()
        .fold([0_u8; 2], |[even, odd], (i, byte)| {
            if i % 2 == 0 {
                [even ^ byte, odd]
            } else {
                [even, odd ^ byte]
            }
        });
    // Ports that follow each other, as those of a guest's connections often do, have different slots.
    let hash = usize::from(u16::from_be_bytes(sum));
    Some((hash ^ (hash >> 12)) % SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Endpoint, Mac};
    use crate::wire::frame::{Checksum, Template};

    fn frame(src: (&str, u16), dst: (&str, u16)) -> Vec<u8> {
        let end = |(ip, port): (&str, u16)| Endpoint::new(ip.parse().unwrap(), port);
        let template = Template::new(Mac::ZERO, Mac::OURS, end(src), end(dst));
        let mut out = vec![0; 100];
        let len = template.emit_udp(&mut out, 4, Checksum::Partial).unwrap();
        out.truncate(len + 4);
        out
    }

    #[test]
    fn both_directions_of_a_flow_are_on_one_pair() {
        for (a, b) in [
            ("192.0.2.1", "198.51.100.7"),
            ("2001:db8::1", "2001:db8::2"),
        ] {
            let mut steering = Steering::default();
            let out = frame((a, 4000), (b, 53));
            steering.learn(&out, 3);
            assert_eq!(steering.pair_of(&frame((b, 53), (a, 4000))), 3);
            assert_eq!(steering.pair_of(&frame((b, 54), (a, 4000))), 0);
        }
    }

    #[test]
    fn what_is_no_flow_goes_to_the_first() {
        let mut steering = Steering::default();
        for len in 0..70 {
            let short = vec![8; len];
            steering.learn(&short, 5);
            assert_eq!(steering.pair_of(&short), 0, "{len}");
        }
        assert_eq!(slot(&frame(("192.0.2.1", 1), ("192.0.2.2", 2))[..30]), None);
    }
}
