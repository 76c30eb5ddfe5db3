//! Where a frame from the guest goes.
//!
//! A batch of frames is taken apart once. TCP segments and UDP datagrams are handed over as two batches, so that
//! the engines can join what belongs together; everything else (ARP, neighbour discovery, DHCP, echo) is
//! answered frame by frame. Fragments are collected until their datagram is whole and then treated like any
//! other datagram. What cannot be carried is counted with its reason and forgotten.

use std::os::fd::OwnedFd;

use arrayvec::ArrayVec;
use nix::sys::epoll::Epoll;

use super::accept;
use super::advertise::Advertiser;
use super::conntrack;
use super::guest::Guest;
use super::host::Host;
use super::icmp_io::PingSocket;
use super::link::Link;
use super::neighbours::Neighbours;
use super::pool::Pool;
use super::ports::{self, Past, Ports};
use super::report::Report;
use super::summary::Summary;
use super::supply::Owes;
use super::syn;
use super::udp_io;
use crate::addr::{Endpoint, Mac};
use crate::clock::Instant;
use crate::config::ports::MAX_LISTENERS;
use crate::config::{Config, DEFAULT_MTU};
use crate::flow;
use crate::flow::fragments::{Fragment, Key, Outcome, Reassembler};
use crate::flow::translate::Seen;
use crate::icmp;
use crate::ipc::SupplyLink;
use crate::log::RateLimit;
use crate::pcap::Pcap;
use crate::stats::{Drop, Reporter};
use crate::sys::piece::Piece;
use crate::tap::batch::{Inbound, MAX_FRAMES};
use crate::tap::frame::FrameBuf;
use crate::tap::{self, Gone, Tap};
use crate::tcp;
use crate::tcp::payload::Payload;
use crate::tcp::splice;
use crate::udp;
use crate::wire::dissect::{self, Body, IpPacket, Packet, Upper};
use crate::wire::quote::{self, Undelivered};
use crate::wire::{icmpv4, icmpv6};

/// Datagrams being put together at any time.
const REASSEMBLIES: usize = 64;
/// Most flows of a kind; more descriptors than this are of no use.
const MAX_FLOWS: usize = 1 << 17;
/// Most echo conversations.
const MAX_PINGS: usize = 1 << 12;
/// Most ICMP errors about TCP taken from one batch.
const MAX_UNDELIVERED: usize = 16;
/// Ports of DHCP and DHCPv6 servers: the only UDP the services look at.
const SERVICE_PORTS: [u16; 2] = [67, 547];

/// One share-nothing worker.
#[derive(Debug)]
pub struct Worker {
    pub(super) host: Host,
    pub(super) tcp: tcp::Engine<Host>,
    pub(super) udp: udp::Engine<udp_io::Socket>,
    pub(super) icmp: icmp::Engine<PingSocket>,
    batch: Inbound,
    fragments: Reassembler,
    advertiser: Advertiser,
    reporter: Reporter,
    /// Flows refused for want of descriptors, as last told.
    refused: u64,
    refusals: RateLimit,
    /// Connections from loopback to loopback.
    pub(super) splice: splice::Engine<Host>,
    /// Our end of the pair with the ns-agent.
    pub(super) agent: Option<SupplyLink>,
    pub(super) owes: Owes,
    /// When to ask for listeners that could not be taken.
    pub(super) ask_at: Option<Instant>,
    pub(super) report: Report,
    /// The link may have more frames, and no event will say so.
    pub(super) more: bool,
    /// The report goes on in the next round.
    pub(super) reporting: bool,
    /// How many more visits to a listener will find one connection.
    pub(super) singles: u8,
    /// Who is at the other end of a socket.
    pub(super) guest: Guest,
    /// See `accept`.
    pub(super) spare: Option<OwnedFd>,
}

/// The segments and datagrams of one batch.
#[derive(Default)]
struct Sorted<'a> {
    tcp: ArrayVec<tcp::Segment<'a>, MAX_FRAMES>,
    udp: ArrayVec<udp::io::Datagram<'a>, MAX_FRAMES>,
    /// Segments of ours that the guest says cannot be delivered.
    undelivered: ArrayVec<Undelivered, MAX_UNDELIVERED>,
}

impl Worker {
    pub(super) fn new(
        config: Config,
        mut tap: Tap,
        epoll: Epoll,
        pcap: Pcap,
        seed: [u8; 16],
        nofile: u64,
    ) -> Self {
        if pcap.is_on() {
            tap.keep_whole();
        }
        let advertiser = Advertiser::new(&config, seed);
        let reporter = Reporter::new(config.stats);
        let limits = Limits::of(nofile);
        let mtu = if config.mtu == 0 {
            DEFAULT_MTU
        } else {
            config.mtu
        };
        let tcp = tcp::Engine::new(tcp::Limits {
            tap_queue: tap::QUEUE_LENGTH,
            ..syn::as_the_host(tcp::Limits::new(mtu, limits.tcp, seed))
        });
        // Only pasta has a loopback to bypass the tap for.
        let pipes = if matches!(tap, Tap::Tun(_) | Tap::Off) {
            nofile
        } else {
            0
        };
        // Two descriptors each.
        let splice = splice::Engine::new(limits.splice, seed);
        let udp = udp::Engine::new(config.clone(), limits.udp, conntrack::timeouts(), seed);
        let icmp = icmp::Engine::new(config.clone(), limits.icmp, seed);
        let host = Host {
            guest_mac: config.guest_mac.unwrap_or(Mac::BROADCAST),
            neighbours: Neighbours::new(),
            config,
            link: Link::new(tap, pcap),
            epoll,
            frame: FrameBuf::new(),
            peek_offsets: super::tcp_io::PeekOffsets::probe(),
            scratch: vec![0; 1 << 16].into_boxed_slice(),
            datagrams: udp_io::Buffers::new(),
            seen: Seen::default(),
            ports: Ports::with_capacity(limits.listeners),
            pool: Pool::new(nofile),
            outbound: Past::default(),
            pipes: super::splice_io::Pipes::new(pipes),
        };
        Self {
            host,
            tcp,
            splice,
            udp,
            icmp,
            batch: Inbound::new(),
            fragments: Reassembler::with_capacity(REASSEMBLIES),
            advertiser,
            reporter,
            refused: 0,
            refusals: RateLimit::new(1),
            agent: None,
            owes: Owes::default(),
            ask_at: None,
            report: Report::new(ports::RULES),
            more: false,
            reporting: false,
            singles: 0,
            guest: Guest::new(None, false),
            spare: accept::spare(),
        }
    }

    /// Traffic may flow from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.advertiser.begin(now);
        self.flush_link(now);
    }

    /// The link has frames.
    pub(super) fn on_tap(&mut self, now: Instant) -> Result<(), Gone> {
        self.more = self.host.link.receive(&mut self.batch)?.more;
        let mut sorted = Sorted::default();
        for frame in self.batch.frames() {
            let missing = frame.len().saturating_sub(frame.bytes.len());
            let result = dissect::dissect_head(frame.bytes, missing).and_then(|packet| {
                log::trace!("From the guest: {}", Summary(&packet));
                self.host.learn(packet.eth.src);
                match packet.body {
                    Body::Arp(_) => self.host.serve(&packet).map(drop),
                    Body::Ip(ip) if ip.fragment.is_some() => {
                        self.host.seen.learn(ip.src);
                        for _ in 0..self.fragments.take_lost() {
                            self.host.link.counters.drop(Drop::Fragment);
                        }
                        let mut one = Sorted::default();
                        if let Some(whole) = collect(&mut self.fragments, now, &ip)? {
                            one.add(&mut self.host, &mut self.icmp, now, &packet, whole)?;
                            one.deliver(&mut self.host, &mut self.tcp, &mut self.udp, now);
                        }
                        Ok(())
                    }
                    Body::Ip(ip) => {
                        if !frame.meta.checksum_settled && !ip.verify_upper_checksum() {
                            return Err(Drop::Checksum);
                        }
                        self.host.seen.learn(ip.src);
                        let data = ip.l3.get(ip.header.len()..).unwrap_or_default();
                        let whole = Whole {
                            ip,
                            data,
                            rest: frame.rest,
                            gso_size: frame.meta.gso_size,
                        };
                        sorted.add(&mut self.host, &mut self.icmp, now, &packet, whole)
                    }
                }
            });
            if let Err(why) = result {
                self.host.link.counters.drop(why);
            }
        }
        sorted.deliver(&mut self.host, &mut self.tcp, &mut self.udp, now);
        drop(sorted);
        self.host.link.tap.release(&mut self.batch);
        Ok(())
    }

    /// Everything that can wait until the events of a round have been handled.
    pub(super) fn end_round(&mut self, now: Instant) {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        if due(self.tcp.next_deadline()) {
            self.tcp.on_timer(&mut self.host, now);
        }
        if due(self.udp.next_deadline()) {
            self.udp.on_timer(&mut self.host, now);
        }
        if due(self.splice.next_deadline()) {
            self.splice.on_timer(&mut self.host, now);
        }
        if self.reporting || due(self.report.next_deadline()) {
            self.on_report(now);
        }
        if due(self.icmp.next_deadline()) {
            self.icmp.on_timer(&mut self.host, now);
        }
        if due(self.advertiser.next_deadline()) {
            self.advertiser.advertise(&mut self.host, now);
        }
        self.tcp.flush(&mut self.host, now);
        self.flush_link(now);
        self.tell_refusals(now);
        if self.reporter.due(now, &self.host.link.counters) {
            log::info!("{}", self.host.link.counters);
        }
    }

    /// Say that the descriptor limit is reached, once a second at most, and what helps.
    fn tell_refusals(&mut self, now: Instant) {
        let refused = self.host.link.counters.dropped(Drop::NoDescriptor);
        if refused == self.refused || self.refusals.admit(now).is_none() {
            return;
        }
        let new = refused.saturating_sub(self.refused);
        self.refused = refused;
        log::warn!(
            "Out of descriptors, {new} new connections refused; raise the limit (ulimit -n, LimitNOFILE=)"
        );
    }

    /// When something has to be done even if nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.reporting || self.more {
            return Some(Instant::default());
        }
        [
            self.tcp.next_deadline(),
            self.splice.next_deadline(),
            self.host.pool.next_deadline(),
            self.ask_at,
            self.udp.next_deadline(),
            self.icmp.next_deadline(),
            self.advertiser.next_deadline(),
            self.report.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// An IP packet that is not, or no longer, in fragments.
#[derive(Clone, Copy)]
struct Whole<'a> {
    ip: IpPacket<'a>,
    /// What the IP header is followed by.
    data: &'a [u8],
    /// What follows that, in memory of the guest.
    rest: &'a [Piece<'a>],
    /// Segment size of a super-frame.
    gso_size: Option<u16>,
}

/// Add a fragment; the packet, once it is whole.
fn collect<'a>(
    fragments: &'a mut Reassembler,
    now: Instant,
    ip: &IpPacket<'a>,
) -> Result<Option<Whole<'a>>, Drop> {
    let (Upper::Fragment { protocol, payload }, Some(info)) = (ip.upper, ip.fragment) else {
        return Err(Drop::Malformed);
    };
    let key = Key {
        src: ip.src,
        dst: ip.dst,
        ident: info.ident,
        protocol,
    };
    let fragment = Fragment {
        key,
        offset: info.offset,
        more: info.more,
        payload,
    };
    match fragments.insert(now, &fragment) {
        Outcome::Incomplete => Ok(None),
        Outcome::Dropped(why) => Err(why),
        Outcome::Complete(data) => {
            let upper = dissect::reassembled(ip.src, ip.dst, protocol, data)?;
            let ip = IpPacket { upper, ..*ip };
            Ok(Some(Whole {
                ip,
                data,
                rest: &[],
                gso_size: None,
            }))
        }
    }
}

/// Is the DF bit set? IPv6 packets always are as if it were, unless they came in fragments.
fn dont_fragment(ip: &IpPacket<'_>) -> bool {
    if ip.src.is_ipv6() {
        return ip.fragment.is_none();
    }
    ip.header.get(6).is_some_and(|flags| flags & 0x40 != 0)
}

impl<'a> Sorted<'a> {
    /// Answer an IP packet that needs no batch, or put it where its engine will find it.
    fn add(
        &mut self,
        host: &mut Host,
        icmp: &mut icmp::Engine<PingSocket>,
        now: Instant,
        packet: &Packet<'a>,
        whole: Whole<'a>,
    ) -> Result<(), Drop> {
        let on = host.config.services;
        let Whole {
            ip,
            data,
            rest,
            gso_size,
        } = whole;
        if let Some(segment) = quote::undelivered(&ip.upper).filter(|_| on.tcp) {
            return (self.undelivered.try_push(segment)).map_err(|_| Drop::QueueFull);
        }
        match ip.upper {
            Upper::Tcp { repr, payload } if on.tcp => {
                let segment = tcp::Segment {
                    src: Endpoint::new(ip.src, repr.src_port),
                    dst: Endpoint::new(ip.dst, repr.dst_port),
                    repr,
                    payload: Payload::new(
                        Piece::new(payload),
                        rest,
                        payload.len().saturating_add(ip.missing),
                    ),
                    l3: ip.l3,
                    hop_limit: ip.hop_limit,
                    tos: ip.tos,
                };
                self.tcp.try_push(segment).map_err(|_| Drop::QueueFull)
            }
            // Only TCP comes in pieces.
            _ if ip.missing > 0 => Err(Drop::Unsupported),
            Upper::Udp { repr, .. }
                if SERVICE_PORTS.contains(&repr.dst_port) && host.serve(packet)? =>
            {
                Ok(())
            }
            Upper::Udp { repr, payload } if on.udp => {
                let datagram = udp::io::Datagram {
                    src: Endpoint::new(ip.src, repr.src_port),
                    dst: Endpoint::new(ip.dst, repr.dst_port),
                    payload,
                    hop_limit: ip.hop_limit,
                    tos: ip.tos,
                    dont_fragment: dont_fragment(&ip),
                    gso_size,
                    l3: ip.l3,
                };
                self.udp.try_push(datagram).map_err(|_| Drop::QueueFull)
            }
            Upper::Icmpv4(icmpv4::Message::EchoRequest(echo))
            | Upper::Icmpv6(icmpv6::Message::EchoRequest(echo))
                if on.icmp =>
            {
                let request = icmp::io::Request {
                    src: ip.src,
                    dst: ip.dst,
                    ident: echo.ident,
                    message: data,
                    hop_limit: ip.hop_limit,
                    tos: ip.tos,
                    dont_fragment: dont_fragment(&ip),
                    l3: ip.l3,
                };
                icmp.from_guest(host, now, &[request]);
                Ok(())
            }
            Upper::Icmpv6(icmpv6::Message::Ndp(_)) => host.serve(packet).map(drop),
            Upper::Tcp { .. } | Upper::Udp { .. } => Err(Drop::Disabled),
            Upper::Icmpv4(_) | Upper::Icmpv6(_) if !on.icmp => Err(Drop::Disabled),
            _ => Err(Drop::Unsupported),
        }
    }

    /// Hand the batches to their engines.
    fn deliver(
        &self,
        host: &mut Host,
        tcp: &mut tcp::Engine<Host>,
        udp: &mut udp::Engine<udp_io::Socket>,
        now: Instant,
    ) {
        if !self.tcp.is_empty() {
            tcp.from_guest(host, now, &self.tcp);
        }
        for segment in &self.undelivered {
            let key = flow::id::Key::new(segment.dst, segment.src);
            tcp.on_unreachable(host, now, &key, segment.seq);
        }
        if !self.udp.is_empty() {
            udp.from_guest(host, now, &self.udp);
        }
    }
}

/// How the descriptors are shared out.
struct Limits {
    tcp: usize,
    udp: udp::Limits,
    icmp: usize,
    /// Connections round the tap: two sockets each.
    splice: usize,
    listeners: usize,
}

impl Limits {
    /// Each protocol may have nearly all of them: what is free goes to whoever asks first, and
    /// running out refuses the new flow only.
    fn of(nofile: u64) -> Self {
        let all = usize::try_from(nofile).unwrap_or(MAX_FLOWS).min(MAX_FLOWS);
        Self {
            tcp: all,
            udp: udp::Limits {
                flows: all,
                sockets: all,
            },
            icmp: all.min(MAX_PINGS),
            splice: all / 2,
            // As many as the others can send.
            listeners: usize::try_from(nofile)
                .unwrap_or(usize::MAX)
                .min(2 * MAX_LISTENERS),
        }
    }
}
