//! What the protocol engines act on: the tap, the event set and the counters of one worker.
//!
//! The engines are pure; they decide, and everything they want done is a method of their `Io` trait,
//! implemented for [`Host`] in the files beside this one. `Host` decides nothing: it builds the frame it is
//! told to build, addressed to the guest's link-layer address as last seen, and makes the call it is told
//! to make.

use std::net::IpAddr;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::link::Link;
use super::neighbours::Neighbours;
use super::pool::Pool;
use super::ports::{Past, Ports};
use super::token::Token;
use crate::addr::{Endpoint, Mac};
use crate::config::Config;
use crate::config::rules::RuleId;
use crate::flow::traffic::Traffic;
use crate::flow::translate::Seen;
use crate::icmp::report::Report;
use crate::ipc;
use crate::services::{self, Answer, ndp};
use crate::stats::Drop;
use crate::tap::frame::FrameBuf;
use crate::wire::dissect::{Body, Packet};
use crate::wire::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::wire::frame::Template;
use crate::wire::{icmpv4, icmpv6, virtio_net};

/// What a TCP socket is watched for, all its life.
pub(super) const EDGES: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLPRI)
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

/// An ICMP error in the encoding of its family (RFC 792, RFC 4443).
#[derive(Clone, Copy, Debug)]
pub(super) struct IcmpError {
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) info: u32,
}

/// One worker's side effects.
#[derive(Debug)]
pub struct Host {
    pub(super) config: Config,
    pub(super) link: Link,
    pub(super) epoll: Epoll,
    /// Where frames to the guest go: broadcast until the guest has spoken.
    pub(super) guest_mac: Mac,
    /// Who else is on the guest's link.
    pub(super) neighbours: Neighbours,
    pub(super) frame: FrameBuf,
    /// Which TCP sockets have SO_PEEK_OFF.
    pub(super) peek_offsets: super::tcp_io::PeekOffsets,
    /// Where bytes go that were peeked before, on older kernels.
    pub(super) scratch: Box<[u8]>,
    pub(super) datagrams: super::udp_io::Buffers,
    /// The addresses the guest was last seen to use.
    pub(super) seen: Seen,
    pub(super) ports: Ports,
    /// Sockets of the namespace.
    pub(super) pool: Pool,
    /// What the guest has opened itself.
    pub(super) outbound: Past,
    /// For the bypass.
    pub(super) pipes: super::splice_io::Pipes,
}

impl Host {
    /// Send the first `len` bytes of the frame buffer to the guest. `false`: the tap refused, counted.
    pub(super) fn transmit(&mut self, len: usize, offload: virtio_net::Header) -> bool {
        self.link.send(&mut self.frame, len, offload)
    }

    /// A flow is over.
    pub(super) fn flow_finished(&mut self, rule: Option<RuleId>, traffic: &Traffic) {
        match rule {
            Some(rule) => self.ports.finished(rule, traffic),
            None => self.outbound.add(traffic),
        }
    }

    /// A frame came from this link-layer address: that is where the guest is.
    pub(super) fn learn(&mut self, source: Mac) {
        // Our own address comes back where frames go round in circles.
        if source.is_unicast() && source != self.config.our_mac {
            self.guest_mac = source;
        }
    }

    /// Let the built-in services answer.
    pub(super) fn serve(&mut self, packet: &Packet<'_>) -> Result<bool, Drop> {
        // Who has an address of its own choice and nothing to send yet has announced it, or asked for its gateway.
        if let Body::Arp(arp) = &packet.body {
            self.seen.learn(arp.sender_ip.into());
        }
        let (guest, ours) = (self.guest_mac, self.config.our_mac);
        let answer = services::answer(
            &self.config,
            &self.neighbours.stations(guest, ours),
            packet,
            self.frame.space(),
        );
        match answer {
            Answer::Frame(len) => {
                self.transmit(len, virtio_net::Header::PLAIN);
                Ok(true)
            }
            Answer::Consumed => Ok(true),
            Answer::NotMine => Ok(false),
        }
    }

    /// Tell all nodes that we are their router.
    pub(super) fn advertise_router(&mut self) {
        let (guest, ours) = (self.guest_mac, self.config.our_mac);
        let written = ndp::router_advertisement(
            &self.config,
            &self.neighbours.stations(guest, ours),
            ndp::ALL_NODES,
            self.frame.space(),
        );
        if let Some(len) = written {
            self.transmit(len, virtio_net::Header::PLAIN);
        }
    }

    /// Headers of frames from `src` to the guest's end `dst`.
    pub(super) fn template(&self, src: Endpoint, dst: Endpoint) -> Template {
        Template::new(self.guest_mac, self.sender(src.ip), src, dst)
    }

    /// The link-layer address that frames from `address` come from, as the guest sees it.
    fn sender(&self, address: IpAddr) -> Mac {
        let neighbour = (self.neighbours).sender(&self.config, address, self.guest_mac);
        neighbour.unwrap_or(self.config.our_mac)
    }

    /// Ask for the addresses that the guest was assigned: its answers say where it is.
    pub(super) fn look_for_guest(&mut self) {
        if let Some(len) = services::arp::request(&self.config, self.frame.space()) {
            self.transmit(len, virtio_net::Header::PLAIN);
        }
        if let Some(len) = ndp::solicit(&self.config, self.frame.space()) {
            self.transmit(len, virtio_net::Header::PLAIN);
        }
    }

    /// The monitor has told of one of the host's neighbours.
    pub(super) fn hear_of_neighbour(&mut self, n: &ipc::Neighbour) {
        let Some(mac) = self.neighbours.learn(&self.config, n) else {
            return;
        };
        // Who has not spoken yet remembers no address; and at our own station, or the guest's, nothing is new.
        if [Mac::BROADCAST, mac].contains(&self.guest_mac) || mac == self.config.our_mac {
            return;
        }
        let out = self.frame.space();
        let written = match n.address {
            IpAddr::V4(ip) => services::arp::announce(mac, ip, out),
            IpAddr::V6(ip) => ndp::announce(&self.config, mac, ip, out),
        };
        if let Some(len) = written {
            self.transmit(len, virtio_net::Header::PLAIN);
        }
    }

    /// Register a flow's socket.
    pub(super) fn watch(&self, fd: impl AsFd, what: EpollFlags, token: Token) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(what, token.to_raw()))
    }

    /// Tell the guest that its packet `offending` (from the IP header on) met an error, reported by `from`.
    pub(super) fn send_icmp_error(&mut self, from: IpAddr, error: IcmpError, offending: &[u8]) {
        let IcmpError { kind, code, info } = error;
        let src = self.sender(from);
        let space = self.frame.space();
        let Some((link, network)) = space.split_at_mut_checked(ethernet::HEADER_LEN) else {
            return;
        };
        let (written, ethertype) = match from {
            IpAddr::V4(from) => (
                icmpv4::Error::reported(kind, code, info)
                    .and_then(|e| icmpv4::error(e, from, offending, network)),
                ETHERTYPE_IPV4,
            ),
            IpAddr::V6(from) => (
                icmpv6::Error::reported(kind, code, info)
                    .and_then(|e| icmpv6::error(e, from, offending, network)),
                ETHERTYPE_IPV6,
            ),
        };
        // No error may be sent about some packets (to groups, about errors).
        let Some(len) = written else { return };
        let header = ethernet::Header {
            dst: self.guest_mac,
            src,
            ethertype,
        };
        // The space was split off at the length of this header.
        let _ = header.emit(link);
        self.transmit(
            len.saturating_add(ethernet::HEADER_LEN),
            virtio_net::Header::PLAIN,
        );
    }

    /// The same for what the UDP and echo engines want to say.
    pub(super) fn report_to_guest(&mut self, report: &Report<'_>) {
        let error = IcmpError {
            kind: report.kind.message_type,
            code: report.kind.code,
            info: report.kind.info,
        };
        self.send_icmp_error(report.from, error, report.quote);
    }

    /// The address that stands for us when we report an error of our own side.
    pub(super) fn our_address(&self, ipv6: bool) -> Option<IpAddr> {
        if ipv6 {
            let v6 = self.config.v6.as_ref()?;
            Some(v6.gateway.unwrap_or(v6.our_link_local).into())
        } else {
            let v4 = self.config.v4.as_ref()?;
            v4.gateway.or(v4.our_addr).map(IpAddr::V4)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc;
    use crate::services::samples::GUEST;
    use crate::wire::dissect::dissect;

    const NEAR: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn near(address: &str, news: bool) -> ipc::Neighbour {
        ipc::Neighbour {
            address: address.parse().unwrap(),
            mac: Some(NEAR.0),
            news,
        }
    }

    /// The frames that have arrived at the guest.
    fn arrived(guest: &impl AsFd) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| {
            let mut frame = [0; 2000];
            let n = crate::sys::scm::try_recv(guest.as_fd(), &mut frame).ok()?;
            Some(frame[virtio_net::HEADER_LEN..n].to_vec())
        })
        .collect()
    }

    #[test]
    fn neighbours_are_announced_to_whoever_has_spoken() {
        let (mut host, guest) = super::super::testing::host();
        host.hear_of_neighbour(&near("192.0.2.8", true));
        assert!(arrived(&guest).is_empty(), "nobody remembers anything");
        host.learn(GUEST);
        host.hear_of_neighbour(&near("192.0.2.9", true));
        host.hear_of_neighbour(&near("fe80::9", true));
        host.hear_of_neighbour(&near("192.0.2.10", false));
        // Another meaning, no news, or the guest itself.
        host.hear_of_neighbour(&near("192.0.2.5", true));
        let own = ipc::Neighbour {
            mac: Some(GUEST.0),
            ..near("192.0.2.11", true)
        };
        host.hear_of_neighbour(&own);
        let ours = ipc::Neighbour {
            mac: Some(Mac::OURS.0),
            ..near("192.0.2.12", true)
        };
        host.hear_of_neighbour(&ours);
        let frames = arrived(&guest);
        let ends: Vec<_> = frames
            .iter()
            .map(|f| (f[0], &f[6..12], &f[12..14]))
            .collect();
        assert_eq!(
            ends,
            [
                (0xff, &NEAR.0[..], &[8, 6][..]),
                (0x33, &NEAR.0[..], &[0x86, 0xdd][..])
            ]
        );
        for ip in ["192.0.2.8", "192.0.2.9", "192.0.2.10", "fe80::9"] {
            assert_eq!(host.sender(ip.parse().unwrap()), NEAR, "{ip}");
        }
        for ip in ["192.0.2.5", "192.0.2.11", "192.0.2.12", "8.8.8.8"] {
            assert_eq!(host.sender(ip.parse().unwrap()), Mac::OURS, "{ip}");
        }
    }

    #[test]
    fn a_new_guest_is_asked_where_it_is() {
        let (mut host, guest) = super::super::testing::host();
        host.look_for_guest();
        let frames = arrived(&guest);
        let ends: Vec<_> = frames.iter().map(|f| (&f[..6], &f[12..14])).collect();
        assert_eq!(
            ends,
            [
                (&[0xff; 6][..], &[8, 6][..]),
                (&[0x33, 0x33, 0xff, 0, 0, 5][..], &[0x86, 0xdd][..])
            ]
        );
    }

    #[test]
    fn a_guest_that_only_asks_for_others_is_seen() {
        let (mut host, guest) = super::super::testing::host();
        for (sender, seen) in [
            ([192, 0, 2, 77], Some("192.0.2.77")),
            ([0, 0, 0, 0], Some("192.0.2.77")),
            ([192, 0, 2, 78], Some("192.0.2.78")),
        ] {
            let mut frame = [&[0xff; 6][..], &GUEST.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
            frame.extend([&GUEST.0[..], &sender, &[0; 6], &[192, 0, 2, 1]].concat());
            assert_eq!(host.serve(&dissect(&frame).unwrap()), Ok(true));
            assert_eq!(host.seen.v4, seen.map(|ip| ip.parse().unwrap()));
            assert_eq!(arrived(&guest).len(), 1);
        }
    }
}
