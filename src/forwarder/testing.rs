//! A [`Host`] for tests: the tap is a socket pair.

use std::os::fd::OwnedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags};

use super::host::Host;
use super::link::Link;
use super::neighbours::Neighbours;
use super::pool::Pool;
use super::ports::{Past, Ports};
use super::splice_io::Pipes;
use super::tcp_io::PeekOffsets;
use super::udp_io;
use crate::addr::Mac;
use crate::flow::translate::Seen;
use crate::pcap::Pcap;
use crate::sys::scm;
use crate::tap::frame::FrameBuf;
use crate::tap::tun::Tun;
use crate::tap::{Offloads, Tap};

/// A host with sample configuration, and the guest's end of its tap.
pub(super) fn host() -> (Host, OwnedFd) {
    let (tap, guest) = scm::seqpacket_pair().unwrap();
    let offloads = Offloads {
        tso: true,
        uso: true,
    };
    let host = Host {
        seen: Seen::default(),
        ports: Ports::with_capacity(4),
        pool: Pool::new(1 << 20),
        outbound: Past::default(),
        config: crate::services::samples::config(),
        link: Link::new(Tap::Tun(Tun::new(tap, offloads)), Pcap::off()),
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(),
        guest_mac: Mac::BROADCAST,
        neighbours: Neighbours::new(),
        frame: FrameBuf::new(),
        peek_offsets: PeekOffsets::probe(),
        scratch: vec![0; 1000].into_boxed_slice(),
        datagrams: udp_io::Buffers::new(),
        pipes: Pipes::new(1024),
    };
    (host, guest)
}
