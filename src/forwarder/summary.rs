//! One line about a packet of the guest, for `--trace`.
//!
//! Headers only: a line is cut at a kilobyte anyway, putting 64 KiB of payload into words would take longer than
//! carrying it, and what people send to each other does not belong into a log (`--pcap` records it).

use std::fmt;

use crate::wire::dissect::{Body, IpPacket, Packet, Upper};

/// See the module text. Writing it does not allocate.
pub(super) struct Summary<'a>(pub(super) &'a Packet<'a>);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.body {
            Body::Arp(arp) => write!(f, "{arp:?}"),
            Body::Ip(ip) => packet(f, ip),
        }
    }
}

fn packet(f: &mut fmt::Formatter<'_>, ip: &IpPacket<'_>) -> fmt::Result {
    let (src, dst, len) = (ip.src, ip.dst, ip.l3.len());
    write!(f, "{src} > {dst}, {len} bytes: ")?;
    match &ip.upper {
        Upper::Tcp { repr, .. } => write!(f, "{repr:?}"),
        Upper::Udp { repr, .. } => write!(f, "{repr:?}"),
        Upper::Icmpv4(_) => f.write_str("ICMP"),
        Upper::Icmpv6(_) => f.write_str("ICMPv6"),
        Upper::Fragment { protocol, .. } => {
            write!(f, "fragment, protocol {protocol}, {:?}", ip.fragment)
        }
        Upper::Other { protocol, .. } => write!(f, "protocol {protocol}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Endpoint, Mac};
    use crate::wire::dissect;
    use crate::wire::frame::{Checksum, MAX_HEADER, Template};

    #[test]
    fn a_line_is_as_short_for_much_payload_as_for_none() {
        let end = |text: &str| Endpoint::from(text.parse::<std::net::SocketAddr>().unwrap());
        let (src, dst) = (end("192.0.2.5:1000"), end("198.51.100.1:53"));
        let mut frame = vec![0; MAX_HEADER + 9000];
        let len = Template::new(Mac::OURS, Mac::OURS, src, dst)
            .emit_udp(&mut frame, 9000, Checksum::Partial)
            .unwrap();
        let packet = dissect::dissect(&frame[..len + 9000]).unwrap();
        let text = Summary(&packet).to_string();
        assert!(
            text.starts_with("192.0.2.5 > 198.51.100.1, 9028 bytes: "),
            "{text}"
        );
        assert!(text.len() < 200, "{text}");
    }
}
