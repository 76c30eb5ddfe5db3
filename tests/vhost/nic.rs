//! A virtio network card: the vhost-user frontend of the `vhost` crate, and a driver for its queues.
//!
//! The order of messages is that of a virtual machine monitor: features, owner, call descriptors and *enable* before
//! there are any rings, then memory, then the rings. [`Shape`] says which features are taken of those on offer, and
//! how frames are laid out in buffers.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::differences::established;
use crate::exec::SOON;
use crate::header::{self, HEADER, Header};
use crate::memory::Memory;
use crate::passt::Passt;
use crate::ring::{Buffer, Ring};

pub const CSUM: u64 = 1;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const GUEST_TSO6: u64 = 1 << 8;
pub const GUEST_ECN: u64 = 1 << 9;
pub const HOST_TSO4: u64 = 1 << 11;
pub const HOST_TSO6: u64 = 1 << 12;
pub const HOST_ECN: u64 = 1 << 13;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const MQ: u64 = 1 << 22;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const PROTOCOL: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
pub const GUEST_USO4: u64 = 1 << 54;
pub const GUEST_USO6: u64 = 1 << 55;
pub const HOST_USO: u64 = 1 << 56;

/// All that a guest may want.
pub const EVERYTHING: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | INDIRECT_DESC
    | EVENT_IDX
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO
    | MQ;

/// How a frame to be sent is cut into descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Header and frame in one.
    Whole,
    /// The header in one, the frame in another.
    HeaderApart,
    /// Header in two pieces (1 + 11 bytes), the frame in pieces of this many bytes.
    Pieces(usize),
}

/// What this card is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Wanted features; those that are not offered are left out.
    pub features: u64,
    /// Entries of each ring.
    pub ring: u16,
    /// Queue pairs.
    pub pairs: u16,
    pub cut: Cut,
    /// Room of each receive buffer, in bytes.
    pub room: usize,
    /// Receive buffers on offer at a time, at most.
    pub posted: usize,
}

impl Shape {
    /// As a Linux guest has it.
    pub const USUAL: Shape = Shape {
        features: EVERYTHING,
        ring: 256,
        pairs: 1,
        cut: Cut::HeaderApart,
        room: 1536,
        posted: 256,
    };

    pub const fn with(self, features: u64) -> Shape {
        Shape { features, ..self }
    }

    pub const fn without(self, features: u64) -> Shape {
        Shape {
            features: self.features & !features,
            ..self
        }
    }
}

/// Largest frame: 64 KiB of IP behind an Ethernet header.
pub const FRAME_MAX: usize = 14 + 65_536;
const SLOTS: usize = 64;

/// A pair of queues, and which buffer belongs to which head.
#[derive(Debug)]
pub struct Pair {
    pub rx: Ring,
    pub tx: Ring,
    received: Vec<Option<Buffer>>,
    spare: Vec<Buffer>,
    sent: Vec<Option<usize>>,
    slots: Vec<usize>,
}

/// A connected card.
pub struct Nic {
    pub memory: Arc<Memory>,
    pub frontend: Frontend,
    /// The same connection, for messages the crate would not send.
    pub socket: UnixStream,
    pub offered: u64,
    pub features: u64,
    pub pairs: Vec<Pair>,
    pub shape: Shape,
    /// Frames that came, by pair.
    pub arrived: Vec<u64>,
    /// Frames of flows that this guest sends on another pair.
    pub astray: u64,
}

/// What came: the offload header and the frame.
pub type Received = (Header, Vec<u8>);

impl Nic {
    /// Connects and starts the queues.
    #[track_caller]
    pub fn connect(passt: &Passt, shape: Shape) -> Nic {
        let memory = Memory::new(256 << 20);
        let mut nic = Nic::greet(passt, shape, &memory);
        nic.start();
        nic
    }

    /// The part of the conversation that comes before the guest's driver is there.
    #[track_caller]
    pub fn greet(passt: &Passt, shape: Shape, memory: &Arc<Memory>) -> Nic {
        let (socket, mut frontend, offered) = dial(passt, shape.pairs);
        let protocol = frontend.get_protocol_features().expect("an answer");
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RARP;
        let protocol = protocol & wanted;
        frontend
            .set_protocol_features(protocol)
            .expect("protocol features");
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            let most = frontend.get_queue_num().expect("an answer");
            let range = u64::from(shape.pairs)..=128;
            assert!(range.contains(&most), "{most} pairs of queues");
        }
        frontend.set_owner().expect("an owner");
        assert_eq!(frontend.get_features().expect("an answer"), offered);
        assert_ne!(offered & VERSION_1, 0, "only the old virtio is on offer");
        let features = offered & (shape.features | VERSION_1 | PROTOCOL);
        let has = |bit| features & bit != 0;
        let make = |size| Ring::new(memory, size, has(INDIRECT_DESC), has(EVENT_IDX));
        let pairs = (0..shape.pairs)
            .map(|_| Pair::new(make(shape.ring), make(shape.ring), memory, &shape))
            .collect();
        let mut nic = Nic {
            memory: memory.clone(),
            frontend,
            socket,
            offered,
            features,
            pairs,
            shape,
            arrived: vec![0; usize::from(shape.pairs)],
            astray: 0,
        };
        for index in 0..2 * usize::from(shape.pairs) {
            let call = nic.ring(index).call.try_clone().expect("a descriptor");
            nic.frontend.set_vring_call(index, &call).expect("a call");
            nic.frontend.set_vring_err(index, &call).expect("an error");
        }
        nic.frontend.set_features(features).expect("features");
        for index in 0..2 * usize::from(shape.pairs) {
            nic.frontend
                .set_vring_enable(index, true)
                .expect("enabled before it exists");
        }
        nic
    }

    /// The guest's driver is ready: memory, rings, buffers.
    pub fn start(&mut self) {
        let whole = self.memory.whole();
        self.start_in(&[whole]);
    }

    /// The same with memory in these regions.
    pub fn start_in(&mut self, regions: &[VhostUserMemoryRegionInfo]) {
        self.frontend
            .set_features(self.features)
            .expect("features again");
        self.frontend
            .set_mem_table(regions)
            .expect("a memory table");
        for index in 0..2 * self.pairs.len() {
            self.start_ring(index, 0);
        }
        for pair in 0..self.pairs.len() {
            self.post(pair);
        }
    }

    /// Number, base, addresses, kick and call of a ring.
    pub fn start_ring(&mut self, index: usize, base: u16) {
        let ring = self.ring(index);
        let config = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: ring.memory_user(ring.desc),
            used_ring_addr: ring.memory_user(ring.used),
            avail_ring_addr: ring.memory_user(ring.avail),
            log_addr: None,
        };
        let size = ring.size;
        let kick = ring.kick.try_clone().expect("a descriptor");
        let call = ring.call.try_clone().expect("a descriptor");
        let f = &self.frontend;
        f.set_vring_num(index, size).expect("a number");
        f.set_vring_base(index, base).expect("a base");
        f.set_vring_addr(index, &config).expect("addresses");
        f.set_vring_kick(index, &kick).expect("a kick");
        f.set_vring_call(index, &call).expect("a call");
    }

    /// The ring of a vring index: even ones receive.
    pub fn ring(&self, index: usize) -> &Ring {
        let pair = &self.pairs[index / 2];
        if index % 2 == 0 { &pair.rx } else { &pair.tx }
    }

    /// Offers receive buffers as far as there are any.
    pub fn post(&mut self, pair: usize) {
        let apart = self.features & MRG_RXBUF == 0 && self.shape.cut != Cut::Whole;
        let pair = &mut self.pairs[pair];
        while let Some(buffer) = pair.spare.last().copied() {
            let parts = [
                Buffer {
                    at: buffer.at,
                    len: HEADER,
                },
                Buffer {
                    at: buffer.at + HEADER,
                    len: buffer.len - HEADER,
                },
            ];
            let offered = if apart {
                pair.rx.offer(&[], &parts)
            } else {
                pair.rx.offer(&[], &[buffer])
            };
            if !offered {
                break;
            }
            pair.spare.pop();
            let head = pair.rx.last_head();
            pair.received[usize::from(head)] = Some(buffer);
        }
        pair.rx.notify();
    }

    /// Sends a frame; false if the ring is full.
    pub fn try_send(&mut self, pair: usize, header: &Header, frame: &[u8]) -> bool {
        self.reclaim(pair);
        let cut = self.shape.cut;
        let pair = &mut self.pairs[pair];
        let Some(at) = pair.slots.last().copied() else {
            return false;
        };
        self.memory.write(at, &header.bytes());
        self.memory.write(at + HEADER, frame);
        if !pair.tx.offer(&pieces(cut, at, frame.len()), &[]) {
            return false;
        }
        pair.slots.pop();
        let head = pair.tx.last_head();
        pair.sent[usize::from(head)] = Some(at);
        pair.tx.notify();
        true
    }

    /// Sends a frame, waiting for room.
    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        let end = Instant::now() + SOON;
        while !self.try_send(0, &Header::default(), frame) {
            assert!(Instant::now() < end, "nobody takes what is sent");
            if !self.pairs[0].tx.arm() {
                wait(&[self.pairs[0].tx.call.as_fd_()], Duration::from_millis(50));
            }
        }
    }

    /// Takes back the buffers of what has been sent.
    pub fn reclaim(&mut self, pair: usize) {
        let pair = &mut self.pairs[pair];
        while let Some((head, _, _)) = pair.tx.take() {
            let slot = pair.sent[usize::from(head)].take();
            pair.slots.extend(slot);
        }
    }

    /// Has everything that was sent been taken?
    pub fn all_taken(&mut self) -> bool {
        self.reclaim(0);
        self.pairs[0].slots.len() == SLOTS
    }

    /// The next frame, if there is one; checked against what has been negotiated.
    pub fn try_receive(&mut self, index: usize) -> Option<Received> {
        let features = self.features;
        let pairs = self.pairs.len();
        let pair = &mut self.pairs[index];
        let mut bytes = Vec::new();
        let (mut seen, mut wanted) = (0, 1);
        while seen < wanted {
            let Some((head, len, _)) = pair.rx.take() else {
                assert_eq!(seen, 0, "{seen} of {wanted} buffers are there");
                return None;
            };
            let buffer = pair.received[usize::from(head)].take().expect("offered");
            let start = bytes.len();
            bytes.resize(start + len, 0);
            self.memory.read(buffer.at, &mut bytes[start..]);
            // What stays there from an earlier frame is not to be taken for a new one.
            self.memory.write(buffer.at, &[0xee; HEADER + 64]);
            pair.spare.push(buffer);
            if seen == 0 {
                assert!(len >= HEADER + 14, "{len} bytes are no frame");
                wanted = u16::from_le_bytes([bytes[10], bytes[11]]);
                assert_ne!(wanted, 0, "a frame in 0 buffers");
                assert!(
                    wanted == 1 || features & MRG_RXBUF != 0,
                    "merged without being asked"
                );
            } else {
                assert!(len != 0 || established(), "an empty buffer in a frame");
            }
            seen += 1;
        }
        let frame = bytes.split_off(HEADER);
        let header = Header::parse(&bytes);
        header::check(&header, &frame, features);
        self.arrived[index] += 1;
        self.astray += u64::from(steer(&frame) % pairs != index);
        if pair.rx.room() >= usize::from(pair.rx.size) / 4 || pair.spare.len() > 16 {
            self.post(index);
        }
        Some((header, frame))
    }

    /// The next frame that satisfies `wanted`, on any queue; others are dropped.
    pub fn receive_within<T>(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + limit;
        loop {
            for pair in 0..self.pairs.len() {
                while let Some((_, frame)) = self.try_receive(pair) {
                    if let Some(found) = wanted(&frame) {
                        return Some(found);
                    }
                }
                self.post(pair);
            }
            let left = end.checked_duration_since(Instant::now())?;
            let ready = self.pairs.iter().any(|p| p.rx.arm());
            if !ready {
                let calls: Vec<_> = self.pairs.iter().map(|p| p.rx.call.as_fd_()).collect();
                wait(&calls, left);
            }
            for pair in &self.pairs {
                pair.rx.call.read().ok();
                pair.rx.hush();
            }
        }
    }

    #[track_caller]
    pub fn receive<T>(&mut self, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        self.receive_within(SOON, wanted)
            .expect("the frame that was expected did not come")
    }

    /// Stops a ring; how far the device had got.
    pub fn stop_ring(&mut self, index: usize) -> u16 {
        let base = self.frontend.get_vring_base(index).expect("an answer");
        u16::try_from(base).expect("an index of 16 bits")
    }
}

impl Pair {
    fn new(rx: Ring, tx: Ring, memory: &Memory, shape: &Shape) -> Pair {
        let n = usize::from(shape.ring);
        let count = shape.posted.min(n);
        let buffers = (0..count).map(|_| Buffer {
            at: memory.take(shape.room, 64),
            len: shape.room,
        });
        Pair {
            rx,
            tx,
            received: vec![None; n],
            spare: buffers.collect(),
            sent: vec![None; n],
            slots: (0..SLOTS)
                .map(|_| memory.take(HEADER + FRAME_MAX, 64))
                .collect(),
        }
    }

    /// Everything is the driver's again, as after a reset of the device.
    pub fn reset(&mut self) {
        self.spare
            .extend(self.received.iter_mut().filter_map(Option::take));
        self.slots
            .extend(self.sent.iter_mut().filter_map(Option::take));
        self.rx.reset();
        self.tx.reset();
    }
}

fn pieces(cut: Cut, at: usize, len: usize) -> Vec<Buffer> {
    let body = Buffer {
        at: at + HEADER,
        len,
    };
    match cut {
        Cut::Whole => vec![Buffer {
            at,
            len: HEADER + len,
        }],
        Cut::HeaderApart => vec![Buffer { at, len: HEADER }, body],
        Cut::Pieces(size) => {
            // Never more than a chain may have: the last piece takes the rest.
            let size = size.max(len.div_ceil(28));
            let mut all = vec![
                Buffer { at, len: 1 },
                Buffer {
                    at: at + 1,
                    len: HEADER - 1,
                },
            ];
            all.extend((0..len).step_by(size).map(|o| Buffer {
                at: body.at + o,
                len: size.min(len - o),
            }));
            all
        }
    }
}

/// Connects until somebody talks to us: a predecessor's connection may still be there.
#[track_caller]
fn dial(passt: &Passt, pairs: u16) -> (UnixStream, Frontend, u64) {
    let end = Instant::now() + SOON;
    loop {
        let socket = passt.dial();
        let again = socket.try_clone().expect("a descriptor");
        let frontend = Frontend::from_stream(again, 2 * u64::from(pairs));
        match frontend.get_features() {
            Ok(features) => return (socket, frontend, features),
            Err(e) => assert!(Instant::now() < end, "no answer: {e}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A number for the flow a frame belongs to, the same in both directions.
pub fn steer(frame: &[u8]) -> usize {
    let ports = match frame[12..14] {
        [8, 0] => &frame[34..38],
        [0x86, 0xdd] => &frame[54..58],
        _ => return 0,
    };
    ports.iter().map(|b| usize::from(*b)).sum()
}

/// Waits for one of the descriptors to be readable; says which are.
pub fn wait(fds: &[BorrowedFd<'_>], limit: Duration) -> Vec<bool> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    poll(&mut polled, timeout).ok();
    polled
        .iter()
        .map(|p| p.revents().is_some_and(|r| !r.is_empty()))
        .collect()
}

/// The eventfd of the helper crate knows only its number.
pub trait AsBorrowed {
    fn as_fd_(&self) -> BorrowedFd<'_>;
}

impl AsBorrowed for vmm_sys_util::eventfd::EventFd {
    #[allow(unsafe_code, reason = "only the number is to be had")]
    fn as_fd_(&self) -> BorrowedFd<'_> {
        // SAFETY: the number is that of an open descriptor for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}
