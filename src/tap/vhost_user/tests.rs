//! The link against a frontend and a driver written here, over a real socket and real shared memory.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::sys::{scm, shared};
use crate::tap::Source;
use crate::tap::batch::MAX_FRAMES;
use crate::wire::dissect;
use crate::wire::frame::{Checksum, Template};
use crate::wire::tcp::{Flags, Options, Repr, Seq};

/// Guest memory: so many bytes, at this address of the guest, and at this one of the frontend.
const SIZE: u64 = 1 << 24;
const GUEST: u64 = 0x10_0000;
const FRONTEND: u64 = 0x7f00_0000_0000;
/// Where rings begin, one after another, in the guest's memory; then indirect tables; then buffers.
const RING: u64 = 0x4000;
const BUFFERS: u64 = GUEST + 0x10_0000;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;

const ALL: u64 = Features::offered(1);
const MRG_RXBUF: u64 = 1 << 15;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

use super::features::Features;

/// Remembers what is watched.
#[derive(Default)]
struct Watched(RefCell<Vec<(i32, Source)>>);

impl Watch for Watched {
    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        self.0.borrow_mut().push((fd.as_raw_fd(), source));
        Ok(())
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        let mut all = self.0.borrow_mut();
        let before = all.len();
        all.retain(|(number, _)| *number != fd.as_raw_fd());
        assert_eq!(all.len() + 1, before, "was not watched");
    }
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
}

fn memory_file(size: u64) -> OwnedFd {
    let fd = memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, i64::try_from(size).unwrap()).unwrap();
    fd
}

/// The driver's side of a ring.
struct Driver {
    base: u64,
    size: u16,
    next: u16,
    seen: u16,
}

impl Driver {
    fn available(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        (self.available() + 2 * u64::from(self.size) + 6).next_multiple_of(4)
    }
}

/// Both sides.
struct Bench {
    link: VhostUser,
    watched: Watched,
    socket: UnixStream,
    memory: GuestMemoryMmap<()>,
    file: OwnedFd,
    rings: Vec<Driver>,
    calls: Vec<EventFd>,
    kicks: Vec<EventFd>,
    batch: Inbound,
    frame: FrameBuf,
}

impl Bench {
    fn connected(pairs: u16) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = memory_file(SIZE);
        let mapped = FileOffset::new(file.try_clone().unwrap().into(), 0);
        let size = usize::try_from(SIZE).unwrap();
        let ranges = [(GuestAddress(GUEST), size, Some(mapped))];
        let mut link = VhostUser::new(pairs);
        link.connect(ours.into());
        Self {
            link,
            watched: Watched::default(),
            socket: theirs,
            memory: GuestMemoryMmap::from_ranges_with_files(ranges).unwrap(),
            file,
            rings: Vec::new(),
            calls: Vec::new(),
            kicks: Vec::new(),
            batch: Inbound::new(),
            frame: FrameBuf::new(),
        }
    }

    /// With rings of `size`, ready for use.
    fn new(features: u64, pairs: u16, size: u16) -> Self {
        let mut b = Self::connected(pairs);
        b.number(SET_FEATURES, features);
        b.table();
        for index in 0..u32::from(pairs) * 2 {
            b.start(index, size);
        }
        assert!(b.link.is_usable());
        b
    }

    fn request(&mut self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut message = Vec::new();
        let size = u32::try_from(body.len()).unwrap();
        for word in [code, flags, size] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(body);
        scm::send_with_fds(self.socket.as_fd(), &message, fds).unwrap();
    }

    fn handle(&mut self) -> Result<bool, Gone> {
        let news = self.link.on_message(&self.watched)?;
        Ok(news == Connection::Frames)
    }

    fn say(&mut self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.request(code, 1, body, fds);
        self.handle().unwrap();
    }

    fn refused(&mut self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Gone {
        self.request(code, 1, body, fds);
        self.handle().unwrap_err()
    }

    fn number(&mut self, code: u32, value: u64) {
        self.say(code, &value.to_ne_bytes(), &[]);
    }

    fn state(&mut self, code: u32, index: u32, num: u32) {
        self.say(code, &pair(index, num), &[]);
    }

    fn answer(&mut self) -> (u32, Vec<u8>) {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(word(4), 5, "version 1, reply");
        let mut body = vec![0; word(8) as usize];
        self.socket.read_exact(&mut body).unwrap();
        (word(0), body)
    }

    fn ask(&mut self, code: u32, body: &[u8]) -> u64 {
        self.say(code, body, &[]);
        let (to, body) = self.answer();
        assert_eq!(to, code);
        u64::from_ne_bytes(body.try_into().unwrap())
    }

    fn table(&mut self) {
        let file = self.file.try_clone().unwrap();
        let body = table(&[[GUEST, SIZE, FRONTEND, 0]]);
        self.say(SET_MEM_TABLE, &body, &[file.as_fd()]);
    }

    fn start(&mut self, index: u32, size: u16) {
        let base = GUEST + u64::from(index) * RING;
        let driver = Driver {
            base,
            size,
            next: 0,
            seen: 0,
        };
        let at = |guest: u64| FRONTEND + guest - GUEST;
        let (available, used) = (at(driver.available()), at(driver.used()));
        self.rings.push(driver);
        self.state(SET_VRING_NUM, index, u32::from(size));
        self.state(SET_VRING_BASE, index, 0);
        self.say(
            SET_VRING_ADDR,
            &addresses(index, at(base), used, available),
            &[],
        );
        let (kick, call) = (eventfd(), eventfd());
        self.say(
            SET_VRING_KICK,
            &u64::from(index).to_ne_bytes(),
            &[kick.as_fd()],
        );
        self.say(
            SET_VRING_CALL,
            &u64::from(index).to_ne_bytes(),
            &[call.as_fd()],
        );
        self.kicks.push(kick);
        self.calls.push(call);
        self.state(SET_VRING_ENABLE, index, 1);
    }

    fn descriptor(&self, table: u64, slot: u16, (at, len): (u64, u32), flags: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&at.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&slot.wrapping_add(1).to_le_bytes());
        let at = GuestAddress(table + 16 * u64::from(slot));
        self.memory.write_slice(&raw, at).unwrap();
    }

    /// Make a chain available that begins at descriptor `head`.
    fn offer(&mut self, index: usize, head: u16) {
        let ring = &mut self.rings[index];
        let slot = u64::from(ring.next % ring.size);
        ring.next = ring.next.wrapping_add(1);
        let (available, next) = (ring.available(), ring.next);
        let put = |value: u16, at| {
            self.memory
                .write_obj(value.to_le(), GuestAddress(at))
                .unwrap();
        };
        put(head, available + 4 + 2 * slot);
        put(next, available + 2);
    }

    /// Buffers of `len` bytes for frames to the guest, one descriptor each, from descriptor `first` on.
    fn supply(&mut self, index: usize, first: u16, count: u16, len: u32) {
        for slot in first..first + count {
            let at = BUFFERS + 0x40_0000 + u64::from(slot) * 0x1_0000;
            self.descriptor(self.rings[index].base, slot, (at, len), WRITE);
            self.offer(index, slot);
        }
    }

    /// Send a frame from the guest, cut into buffers of `cut` bytes.
    fn transmit(&mut self, frame: &[u8], cut: usize, indirect: bool) {
        let parts: Vec<_> = frame.chunks(cut).collect();
        let table = if indirect {
            GUEST + 0x8_0000
        } else {
            self.rings[1].base
        };
        let mut at = BUFFERS;
        for (i, part) in parts.iter().enumerate() {
            // A gap, so that nothing is in one piece by chance.
            self.memory.write_slice(part, GuestAddress(at)).unwrap();
            let flags = if i + 1 < parts.len() { NEXT } else { 0 };
            let len = u32::try_from(part.len()).unwrap();
            self.descriptor(table, u16::try_from(i).unwrap(), (at, len), flags);
            at += u64::from(len) + 64;
        }
        if indirect {
            let len = u32::try_from(parts.len() * 16).unwrap();
            self.descriptor(self.rings[1].base, 0, (table, len), INDIRECT);
        }
        self.offer(1, 0);
    }

    /// Everything the guest has sent, each frame in one piece.
    fn received(&mut self) -> Vec<Vec<u8>> {
        let mut batch = std::mem::take(&mut self.batch);
        self.link.receive(&mut batch).unwrap();
        let frames = batch
            .frames()
            .map(|frame| {
                let mut all = frame.bytes.to_vec();
                for piece in frame.rest {
                    let mut part = vec![0; piece.len()];
                    piece.copy_to(&mut part);
                    all.extend(part);
                }
                all
            })
            .collect();
        self.link.release(&mut batch);
        self.link.flush();
        self.batch = batch;
        frames
    }

    /// Chains given back since last asked: head and length.
    fn used(&mut self, index: usize) -> Vec<(u32, u32)> {
        let ring = &self.rings[index];
        let (base, size) = (ring.used(), ring.size);
        let end: u16 = self.memory.read_obj(GuestAddress(base + 2)).unwrap();
        let mut all = Vec::new();
        let mut seen = ring.seen;
        while seen != end {
            let at = GuestAddress(base + 4 + 8 * u64::from(seen % size));
            let element: [u32; 2] = self.memory.read_obj(at).unwrap();
            all.push((element[0], element[1]));
            seen = seen.wrapping_add(1);
        }
        self.rings[index].seen = seen;
        all
    }

    /// The bytes written to the chains given back, in buffers as `supply` makes them.
    fn arrived(&mut self) -> Vec<Vec<u8>> {
        self.used(0)
            .iter()
            .map(|(head, len)| {
                let mut bytes = vec![0; *len as usize];
                let at = BUFFERS + 0x40_0000 + u64::from(*head) * 0x1_0000;
                self.memory
                    .read_slice(&mut bytes, GuestAddress(at))
                    .unwrap();
                bytes
            })
            .collect()
    }

    fn send_tcp(&mut self, payload: &[u8], mss: u16) -> io::Result<()> {
        let (template, repr) = flow();
        let space = self.frame.space();
        let len = template
            .emit_tcp(space, &repr, payload.len(), Checksum::Partial)
            .unwrap();
        space[len..len + payload.len()].copy_from_slice(payload);
        let offload = template.tcp_offload(len, payload.len(), mss);
        self.frame.finish(len + payload.len(), offload);
        self.link.send(&self.frame)
    }

    fn called(&self, index: usize) -> bool {
        self.calls[index].read().is_ok()
    }
}

fn pair(a: u32, b: u32) -> Vec<u8> {
    [a.to_ne_bytes(), b.to_ne_bytes()].concat()
}

fn addresses(index: u32, descriptors: u64, used: u64, available: u64) -> Vec<u8> {
    let mut body = pair(index, 0);
    for address in [descriptors, used, available, 0] {
        body.extend(address.to_ne_bytes());
    }
    body
}

/// Regions: guest address, size, frontend address, offset in the file.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = pair(u32::try_from(regions.len()).unwrap(), 0);
    for value in regions.iter().flatten() {
        body.extend(value.to_ne_bytes());
    }
    body
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// Headers of a connection, to the guest.
fn flow() -> (Template, Repr) {
    let end = |ip: &str, port| crate::addr::Endpoint::new(ip.parse().unwrap(), port);
    let (from, to) = (end("198.51.100.1", 80), end("192.0.2.2", 40_000));
    let template = Template::new(crate::addr::Mac::ZERO, crate::addr::Mac::OURS, from, to);
    let repr = Repr {
        src_port: 80,
        dst_port: 40_000,
        seq: Seq(1000),
        ack: Seq(1),
        flags: Flags::ACK,
        window: 100,
        urgent: 0,
        options: Options::NONE,
    };
    (template, repr)
}

/// A virtio-net header of `len` bytes and a TCP frame.
fn from_guest(payload: &[u8], vnet: usize) -> Vec<u8> {
    let (template, repr) = flow();
    let mut frame = vec![0; 100 + payload.len()];
    let len = template
        .emit_tcp(&mut frame, &repr, payload.len(), Checksum::Partial)
        .unwrap();
    frame.truncate(len);
    frame.extend(payload);
    let mut out = vec![0; vnet];
    let offload = template.tcp_offload(len, payload.len(), 1400);
    assert!(offload.emit(&mut out).is_some());
    out.extend(frame);
    out
}

#[test]
fn a_frontend_finds_out_what_there_is() {
    let mut b = Bench::connected(4);
    assert_eq!(b.ask(GET_FEATURES, &[]), Features::offered(4));
    let protocol = b.ask(GET_PROTOCOL_FEATURES, &[]);
    assert_eq!(protocol, 0b1101, "MQ, RARP, REPLY_ACK");
    assert_eq!(b.ask(GET_QUEUE_NUM, &[]), 4);
    // Asked for before it was agreed on, an answer does not come.
    b.request(SET_OWNER, 1 | 8, &[], &[]);
    b.handle().unwrap();
    b.number(SET_PROTOCOL_FEATURES, protocol);
    b.request(SET_OWNER, 1 | 8, &[], &[]);
    b.handle().unwrap();
    assert_eq!(b.answer(), (SET_OWNER, 0_u64.to_ne_bytes().to_vec()));
}

/// However a message is cut, it is one message; and half of one does not make anybody wait.
#[test]
fn messages_may_come_in_pieces() {
    let mut message = Vec::new();
    for word in [SET_FEATURES, 1, 8] {
        message.extend(word.to_ne_bytes());
    }
    message.extend(ALL.to_ne_bytes());
    for cut in 1..message.len() {
        let mut b = Bench::connected(1);
        for part in [&message[..cut], &message[cut..]] {
            assert_ne!(b.link.session.features, Features::chosen(ALL, 1).unwrap());
            scm::send(b.socket.as_fd(), part).unwrap();
            b.handle().unwrap();
        }
        assert_eq!(b.link.session.features, Features::chosen(ALL, 1).unwrap());
    }
}

#[test]
fn what_is_no_request_ends_the_connection() {
    for (code, flags, len) in [
        (0, 1, 0),
        (45, 1, 0),
        (u32::MAX, 1, 0),
        (GET_FEATURES, 0, 0),
        (GET_FEATURES, 2, 0),
        (GET_FEATURES, 1 | 4, 0),
        (GET_FEATURES, 1 | 16, 0),
        (GET_FEATURES, 1, 8),
        (SET_FEATURES, 1, 0),
        (SET_FEATURES, 1, 7),
        (SET_FEATURES, 1, 9),
        (SET_VRING_NUM, 1, 4),
        (SET_VRING_ADDR, 1, 39),
        (SET_MEM_TABLE, 1, 0),
        (SET_MEM_TABLE, 1, 8),
        (SET_OWNER, 1, 513),
        (SET_OWNER, 1, 5000),
        // SET_LOG_BASE, RESET_DEVICE, SET_DEVICE_STATE_FD.
        (6, 1, 16),
        (34, 1, 0),
        (42, 1, 8),
    ] {
        let mut b = Bench::connected(1);
        b.request(code, flags, &vec![0; len], &[]);
        let gone = b.handle();
        assert!(
            matches!(gone, Err(Gone::Malformed(_))),
            "{code} {flags} {len}"
        );
    }
    let mut b = Bench::connected(1);
    let other = UnixStream::pair().unwrap().0;
    drop(std::mem::replace(&mut b.socket, other));
    assert_eq!(b.handle(), Err(Gone::Closed));
}

#[test]
fn rings_that_do_not_exist_and_impossible_values_are_refused() {
    let state = [
        SET_VRING_NUM,
        SET_VRING_BASE,
        GET_VRING_BASE,
        SET_VRING_ENABLE,
    ];
    for (code, index, num) in state
        .map(|code| (code, 2, 0))
        .into_iter()
        .chain(state.map(|code| (code, u32::MAX, 0)))
        .chain([0, 3, 65_536, u32::MAX].map(|size| (SET_VRING_NUM, 0, size)))
        .chain([(SET_VRING_BASE, 0, 65_536), (SET_VRING_ENABLE, 0, 2)])
    {
        let mut b = Bench::connected(1);
        let gone = b.refused(code, &pair(index, num), &[]);
        assert!(matches!(gone, Gone::Malformed(_)), "{code} {index} {num}");
    }
    let mut b = Bench::connected(1);
    b.refused(SET_VRING_ADDR, &addresses(2, 0, 0, 0), &[]);
    for code in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        let event = eventfd();
        let mut b = Bench::connected(1);
        b.refused(code, &2_u64.to_ne_bytes(), &[event.as_fd()]);
    }
}

#[test]
fn descriptors_must_be_as_many_as_said_and_of_the_right_kind() {
    let (event, file) = (eventfd(), memory_file(4096));
    let (event, file) = (event.as_fd(), file.as_fd());
    for (body, fds) in [
        (0_u64, &[][..]),
        (0, &[event, event]),
        (0x100, &[event]),
        (0, &[file]),
    ] {
        for code in [SET_VRING_KICK, SET_VRING_CALL] {
            let mut b = Bench::connected(1);
            b.refused(code, &body.to_ne_bytes(), fds);
        }
    }
    let mut b = Bench::connected(1);
    b.refused(GET_FEATURES, &[], &[event; 9]);
}

/// Descriptors that nobody wants are closed, and so is everything at the end.
#[test]
fn nothing_stays_open() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut b = Bench::connected(1);
    let before = open();
    let event = eventfd();
    for _ in 0..200 {
        b.request(SET_OWNER, 1, &[], &[event.as_fd(); 8]);
        b.handle().unwrap();
    }
    // Other tests open and close things meanwhile.
    assert!(open() < before + 100);

    let before = open();
    for _ in 0..100 {
        let mut b = Bench::new(ALL, 2, 16);
        b.request(SET_MEM_TABLE, 1, &[0; 8], &[event.as_fd(); 8]);
        b.handle().unwrap_err();
        b.link.disconnect(&b.watched);
        assert!(b.watched.0.borrow().is_empty());
        assert!(b.link.as_fd().is_none() && !b.link.is_usable());
    }
    assert!(open() < before + 100);
}

#[test]
fn memory_has_to_be_there() {
    let wrong: &[&[[u64; 4]]] = &[
        &[],
        &[[GUEST, 0, FRONTEND, 0]],
        &[[GUEST, SIZE + 1, FRONTEND, 0]],
        &[[GUEST, SIZE, FRONTEND, 4096]],
        &[[GUEST, u64::MAX, FRONTEND, 0]],
        &[[u64::MAX - 4095, 8192, FRONTEND, 0]],
        &[[GUEST, 8192, u64::MAX - 4095, 0]],
        &[[GUEST, 8192, FRONTEND, u64::MAX - 4095]],
        &[[GUEST, 8192, FRONTEND, 0], [GUEST + 4096, 4096, 0, 0]],
        &[[GUEST, 4096, FRONTEND, 100]],
    ];
    for regions in wrong {
        let mut b = Bench::connected(1);
        let file = b.file.try_clone().unwrap();
        let fds = vec![file.as_fd(); regions.len()];
        b.request(SET_MEM_TABLE, 1, &table(regions), &fds);
        assert!(b.handle().is_err(), "{regions:x?}");
    }
    // One descriptor too few, one too many, and none that is a file.
    let good = table(&[[GUEST, 4096, FRONTEND, 0]]);
    let file = memory_file(4096);
    let pipe = nix::unistd::pipe().unwrap().0;
    for fds in [&[][..], &[file.as_fd(); 2], &[pipe.as_fd()]] {
        Bench::connected(1).refused(SET_MEM_TABLE, &good, fds);
    }
}

#[test]
fn a_ring_outside_of_memory_is_refused() {
    for (descriptors, used, available) in [
        (FRONTEND - 16, FRONTEND, FRONTEND),
        (FRONTEND + SIZE - 16, FRONTEND, FRONTEND),
        (FRONTEND, FRONTEND + SIZE - 4, FRONTEND),
        (FRONTEND, FRONTEND, FRONTEND + SIZE - 2),
        (GUEST, GUEST, GUEST),
        (u64::MAX - 15, FRONTEND, FRONTEND),
    ] {
        let mut b = Bench::connected(1);
        b.table();
        b.state(SET_VRING_NUM, 0, 8);
        let event = eventfd();
        b.say(
            SET_VRING_ADDR,
            &addresses(0, descriptors, used, available),
            &[],
        );
        let gone = b.refused(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[event.as_fd()]);
        assert!(matches!(gone, Gone::Malformed(_)));
        b.link.disconnect(&b.watched);
        assert!(b.watched.0.borrow().is_empty());
    }
    // Not aligned.
    let mut b = Bench::connected(1);
    b.refused(
        SET_VRING_ADDR,
        &addresses(0, FRONTEND + 8, FRONTEND, FRONTEND),
        &[],
    );
}

#[test]
fn frames_from_the_guest_come_out_however_they_are_cut() {
    for (features, vnet) in [(ALL, 12), (0, 10)] {
        for len in [0, 1, 1000, 1988, 1990, 5000, 60_000] {
            let payload = pattern(len);
            let message = from_guest(&payload, vnet);
            for cut in [1, 7, 11, 12, 13, 26, 66, 67, 1500, 4096, 65_536] {
                for indirect in [false, true] {
                    let mut b = Bench::new(features, 1, 256);
                    if message.len().div_ceil(cut) > 250 {
                        continue;
                    }
                    b.transmit(&message, cut, indirect);
                    let got = b.received();
                    assert_eq!(got, [&message[vnet..]], "{len} {cut} {indirect}");
                    assert_eq!(b.used(1), [(0, 0)]);
                    assert!(b.called(1));
                    assert_eq!(b.received(), Vec::<Vec<u8>>::new());
                }
            }
        }
    }
}

/// A large frame stays where it is but for its headers, unless its checksum is still to be looked at.
#[test]
fn payload_is_lent_not_copied() {
    let message = from_guest(&pattern(30_000), 12);
    let mut b = Bench::new(ALL, 1, 64);
    b.transmit(&message, 4096, true);
    b.link.receive(&mut b.batch).unwrap();
    let frame = b.batch.frames().next().unwrap();
    assert_eq!((frame.bytes.len(), frame.len()), (54, 30_054));
    assert!(frame.meta.checksum_settled);
    assert_eq!(frame.meta.gso_size, Some(1400));

    let mut unsettled = message.clone();
    unsettled[0] = 0;
    let mut b = Bench::new(ALL, 1, 64);
    b.transmit(&unsettled, 4096, true);
    b.link.receive(&mut b.batch).unwrap();
    assert_eq!(b.batch.frames().next().unwrap().bytes.len(), 30_054);

    let mut b = Bench::new(ALL, 1, 64);
    b.link.keep_whole();
    b.transmit(&message, 4096, true);
    b.link.receive(&mut b.batch).unwrap();
    assert_eq!(b.batch.frames().next().unwrap().bytes.len(), 30_054);
}

/// The batch keeps the memory it refers to, whatever the frontend does meanwhile.
#[test]
fn lent_memory_outlives_the_connection() {
    let message = from_guest(&pattern(30_000), 12);
    let mut b = Bench::new(ALL, 1, 64);
    b.transmit(&message, 4096, true);
    b.link.receive(&mut b.batch).unwrap();
    b.link.disconnect(&b.watched);
    let frame = b.batch.frames().next().unwrap();
    let mut part = vec![0; frame.rest[0].len()];
    frame.rest[0].copy_to(&mut part);
    assert_eq!(part, message[12 + 54..][..part.len()]);
}

/// Of a guest that is let go of, nothing is kept.
#[test]
fn a_breach_leaves_nothing_in_the_batch() {
    let mut b = Bench::new(Features::offered(2), 2, 64);
    b.transmit(&from_guest(&pattern(30_000), 12), 4096, true);
    let at = GuestAddress(b.rings[3].available() + 2);
    b.memory.write_obj(65_u16, at).unwrap();
    assert!(b.link.receive(&mut b.batch).is_err());
    assert!(b.batch.is_empty());
}

/// Huge pages are unmapped whole or not at all.
#[test]
fn a_part_of_a_huge_page_does_not_stay_mapped() {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB;
    let Ok(file) = memfd_create("part-of-huge", flags) else {
        return;
    };
    let page = nix::sys::stat::fstat(&file).unwrap().st_blksize;
    nix::unistd::ftruncate(&file, page).unwrap();
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.matches("/memfd:part-of-huge").count()
    };
    let mut b = Bench::connected(1);
    let body = table(&[[GUEST, 4096, FRONTEND, 0]]);
    b.say(SET_MEM_TABLE, &body, &[file.as_fd()]);
    assert_eq!(mapped(), 1);
    b.link.disconnect(&b.watched);
    assert_eq!(mapped(), 0);
}

/// Tables may be long and empty; nobody goes through all of them.
#[test]
fn descriptors_are_looked_at_up_to_a_limit() {
    const TABLE: u64 = GUEST + 0x8_0000;
    let lay = |b: &mut Bench, ring: usize, empty: u16, len: u32, flags: u16| {
        for slot in 0..empty {
            b.descriptor(TABLE, slot, (BUFFERS, 0), NEXT | flags);
        }
        b.descriptor(TABLE, empty, (BUFFERS, len), flags);
        let table = (TABLE, 16 * (u32::from(empty) + 1));
        b.descriptor(b.rings[ring].base, 0, table, INDIRECT);
        b.offer(ring, 0);
    };
    let frame = from_guest(&pattern(10), 12);
    let len = u32::try_from(frame.len()).unwrap();
    for (empty, frames) in [(1000, 1), (1100, 0)] {
        let mut b = Bench::new(ALL, 1, 16);
        b.memory.write_slice(&frame, GuestAddress(BUFFERS)).unwrap();
        lay(&mut b, 1, empty, len, 0);
        assert_eq!(b.received().len(), frames, "{empty}");
    }
    for (empty, fits) in [(500, true), (600, false)] {
        let mut b = Bench::new(ALL, 1, 16);
        lay(&mut b, 0, empty, 2048, WRITE);
        assert_eq!(b.send_tcp(&pattern(10), 1400).is_ok(), fits, "{empty}");
    }
}

#[test]
fn chains_that_make_no_sense_are_given_back_or_end_it() {
    // Too short, too long, all writable, in memory that is not there: odd.
    let mut b = Bench::new(ALL, 1, 64);
    let base = b.rings[1].base;
    let odd: &[&[(u64, u32, u16)]] = &[
        &[(BUFFERS, 0, 0)],
        &[(BUFFERS, 12, 0)],
        &[(BUFFERS, 25, 0)],
        &[(BUFFERS, 1 << 20, 0)],
        &[(BUFFERS, u32::MAX, NEXT), (BUFFERS, u32::MAX, 0)],
        &[(BUFFERS, 100, WRITE)],
        &[(0, 100, 0)],
        &[(GUEST + SIZE - 50, 100, 0)],
        &[(u64::MAX - 50, 100, 0)],
        &[(BUFFERS, 16, INDIRECT), (BUFFERS, 100, 0)],
        &[(BUFFERS, 17, INDIRECT)],
    ];
    for chain in odd {
        for (slot, (at, len, flags)) in chain.iter().enumerate() {
            b.descriptor(base, u16::try_from(slot).unwrap(), (*at, *len), *flags);
        }
        b.offer(1, 0);
        let mut batch = Inbound::new();
        let received = b.link.receive(&mut batch).unwrap();
        assert_eq!((received.odd, batch.len()), (1, 0), "{chain:x?}");
        b.link.release(&mut batch);
        b.link.flush();
        assert_eq!(b.used(1), [(0, 0)]);
    }
    // A chain that bites its tail ends somewhere.
    b.descriptor(base, 63, (BUFFERS, 1), NEXT);
    let mut raw = [0; 16];
    b.memory
        .read_slice(&mut raw, GuestAddress(base + 63 * 16))
        .unwrap();
    raw[14..].copy_from_slice(&63_u16.to_le_bytes());
    b.memory
        .write_slice(&raw, GuestAddress(base + 63 * 16))
        .unwrap();
    b.offer(1, 63);
    assert!(b.received().len() <= 1);
    assert_eq!(b.used(1), [(63, 0)]);
}

#[test]
fn a_ring_that_breaks_the_rules_ends_the_connection() {
    // A head beyond the ring.
    let mut b = Bench::new(ALL, 1, 64);
    b.offer(1, 64);
    let mut batch = Inbound::new();
    b.link.receive(&mut batch).unwrap();
    b.link.release(&mut batch);
    assert!(matches!(
        b.link.receive(&mut batch),
        Err(Gone::Malformed(_))
    ));
    // An index that jumps.
    let mut b = Bench::new(ALL, 1, 64);
    let at = GuestAddress(b.rings[1].available() + 2);
    b.memory.write_obj(65_u16, at).unwrap();
    assert!(matches!(
        b.link.receive(&mut batch),
        Err(Gone::Malformed(_))
    ));
    // ... behind a frame whose payload was lent: the memory is not kept for that.
    let mut b = Bench::new(Features::offered(2), 2, 64);
    b.transmit(&from_guest(&pattern(30_000), 12), 4096, true);
    let at = GuestAddress(b.rings[3].available() + 2);
    b.memory.write_obj(65_u16, at).unwrap();
    assert!(matches!(
        b.link.receive(&mut batch),
        Err(Gone::Malformed(_))
    ));
    assert!(batch.is_empty());
    // The same in the other direction is told at the next occasion.
    let mut b = Bench::new(ALL, 1, 64);
    let at = GuestAddress(b.rings[0].available() + 2);
    b.memory.write_obj(65_u16, at).unwrap();
    assert!(!b.link.is_broken());
    assert!(b.send_tcp(&pattern(10), 1400).is_err());
    assert!(b.link.is_broken());
    assert!(matches!(
        b.link.receive(&mut batch),
        Err(Gone::Malformed(_))
    ));
    // A buffer for the guest that is not in its memory.
    let mut b = Bench::new(ALL, 1, 64);
    b.descriptor(b.rings[0].base, 0, (GUEST + SIZE - 10, 2000), WRITE);
    b.offer(0, 0);
    assert!(b.send_tcp(&pattern(10), 1400).is_err());
    assert!(matches!(
        b.link.receive(&mut batch),
        Err(Gone::Malformed(_))
    ));
}

#[test]
fn a_frame_spans_as_many_buffers_as_it_needs() {
    let mut b = Bench::new(ALL, 1, 256);
    b.supply(0, 0, 100, 1536);
    let payload = pattern(20_000);
    b.send_tcp(&payload, 1400).unwrap();
    assert_eq!(b.used(0), [], "not before the end of the round");
    b.link.flush();
    assert!(b.called(0));
    let parts = b.arrived();
    assert_eq!(parts.len(), (12 + 54 + 20_000_usize).div_ceil(1536));
    let all = parts.concat();
    assert_eq!(
        all[10..12],
        u16::try_from(parts.len()).unwrap().to_le_bytes()
    );
    let (header, _) = Header::parse(&all).unwrap();
    assert_eq!((header.gso, header.gso_size), (Gso::TcpV4, 1400));
    assert_eq!(all[12 + 54..], payload);
    // What was not needed is still there.
    b.send_tcp(&pattern(10), 1400).unwrap();
    b.link.flush();
    let next = b.arrived();
    assert_eq!(next.len(), 1);
    assert_eq!(next[0][10..12], [1, 0]);
    assert_eq!(next[0].len(), 12 + 64);
}

/// Whatever the driver does not do itself is done for it.
#[test]
fn guests_without_offloads_get_finished_frames() {
    for (features, vnet) in [(0, 10), (VERSION_1, 12), (VERSION_1 | MRG_RXBUF, 12)] {
        let mut b = Bench::new(features, 1, 256);
        b.supply(0, 0, 100, 2048);
        let payload = pattern(20_000);
        b.send_tcp(&payload, 1400).unwrap();
        b.link.flush();
        let mut all = Vec::<u8>::new();
        for frame in b.arrived() {
            assert_eq!(frame[..2], [0, 0]);
            let packet = dissect::dissect(&frame[vnet..]).unwrap();
            let dissect::Body::Ip(ip) = packet.body else {
                panic!("{packet:?}")
            };
            assert!(ip.verify_upper_checksum());
            let dissect::Upper::Tcp { repr, payload } = ip.upper else {
                panic!("{ip:?}")
            };
            assert_eq!(repr.seq, Seq(1000).add(u32::try_from(all.len()).unwrap()));
            assert!(payload.len() <= 1400);
            all.extend(payload);
        }
        assert_eq!(all, payload);
    }
}

#[test]
fn a_full_ring_refuses_and_loses_nothing() {
    let mut b = Bench::new(ALL, 1, 16);
    assert!(b.send_tcp(&pattern(10), 1400).is_err(), "no buffers at all");
    b.supply(0, 0, 2, 1536);
    // Does not fit at once, but its first segment does.
    assert!(b.send_tcp(&pattern(20_000), 1400).is_err());
    b.link.flush();
    assert_eq!(b.arrived().len(), 2);
    b.supply(0, 2, 1, 1536);
    b.send_tcp(&pattern(10), 1400).unwrap();
    b.link.flush();
    assert_eq!(b.arrived().len(), 1);
}

/// From a socket straight into the guest's buffers.
#[test]
fn payload_is_received_in_place() {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    let payload = pattern(9000);
    peer.write_all(&payload).unwrap();
    let mut all = vec![0; 9000];
    while socket.peek(&mut all).unwrap() < 9000 {}

    let mut b = Bench::new(ALL, 1, 256);
    let (template, repr) = flow();
    let mut headers = [0; 54];
    assert!(
        template
            .emit_tcp(&mut headers, &repr, 9000, Checksum::Partial)
            .is_some()
    );
    let lane = b.link.lane(&headers).unwrap();
    let peek = |rooms: &[Room<'_>]| shared::peek(&socket, rooms);
    assert_eq!(b.link.fill(lane, (54, 60_000), peek).unwrap(), Filled::Full);
    b.supply(0, 0, 100, 700);
    let error = b
        .link
        .fill(lane, (54, 60_000), |_| Err(ErrorKind::WouldBlock.into()));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::WouldBlock);
    let filled = b.link.fill(lane, (54, 60_000), peek).unwrap();
    assert_eq!(
        filled,
        Filled::Bytes {
            room: 60_000,
            got: 9000
        }
    );
    let offload = template.tcp_offload(54, 9000, 1400);
    assert!(b.link.finish(lane, &headers, 9000, &offload));
    b.link.flush();
    let parts = b.arrived();
    assert_eq!(parts.len(), (12 + 54 + 9000_usize).div_ceil(700));
    assert_eq!(parts.concat()[12 + 54..], payload);
}

#[test]
fn a_new_call_is_told_what_the_old_one_may_have_been() {
    let mut b = Bench::new(ALL, 1, 16);
    b.supply(0, 0, 8, 1536);
    assert!(b.called(0), "the ring was running before it had a call");
    b.send_tcp(&pattern(10), 1400).unwrap();
    b.link.flush();
    let new = eventfd();
    b.say(SET_VRING_CALL, &0_u64.to_ne_bytes(), &[new.as_fd()]);
    b.calls[0] = new;
    assert!(b.called(0));
    b.link.flush();
    assert!(!b.called(0), "once");
}

#[test]
fn the_driver_is_interrupted_when_it_wants_to_be() {
    // By flag.
    let mut b = Bench::new(ALL & !EVENT_IDX, 1, 16);
    assert!(b.called(0), "at the start");
    b.supply(0, 0, 8, 1536);
    for wanted in [true, false, true] {
        let flags = u16::from(!wanted);
        b.memory
            .write_obj(flags, GuestAddress(b.rings[0].available()))
            .unwrap();
        b.send_tcp(&pattern(10), 1400).unwrap();
        assert!(!b.called(0));
        b.link.flush();
        assert_eq!(b.called(0), wanted);
        b.link.flush();
        assert!(!b.called(0), "nothing new");
    }
    // By index: only when it goes past what the driver has named.
    let mut b = Bench::new(ALL, 1, 16);
    assert!(b.called(0), "at the start");
    b.supply(0, 0, 8, 1536);
    let event = GuestAddress(b.rings[0].available() + 4 + 32);
    b.memory.write_obj(2_u16, event).unwrap();
    for (sent, wanted) in [(1, false), (2, false), (3, true), (4, false)] {
        b.send_tcp(&pattern(10), 1400).unwrap();
        b.link.flush();
        assert_eq!(b.called(0), wanted, "{sent}");
    }
}

#[test]
fn we_ask_for_kicks_only_when_we_stop_looking() {
    let mut b = Bench::new(ALL & !EVENT_IDX, 1, 16);
    let flags = |b: &Bench, ring: usize| -> u16 {
        b.memory
            .read_obj(GuestAddress(b.rings[ring].used()))
            .unwrap()
    };
    assert_eq!((flags(&b, 0), flags(&b, 1)), (1, 0));
    b.transmit(&from_guest(&pattern(10), 12), 4096, false);
    b.received();
    assert_eq!(flags(&b, 1), 0);
    // With an index: behind what was taken.
    let mut b = Bench::new(ALL, 1, 16);
    b.transmit(&from_guest(&pattern(10), 12), 4096, false);
    b.received();
    let event = GuestAddress(b.rings[1].used() + 4 + 8 * 16);
    assert_eq!(b.memory.read_obj::<u16>(event).unwrap(), 1);
}

#[test]
fn a_stopped_ring_goes_on_where_it_was() {
    let mut b = Bench::new(ALL, 1, 16);
    for _ in 0..3 {
        b.transmit(&from_guest(&pattern(10), 12), 4096, false);
        assert_eq!(b.received().len(), 1);
    }
    assert_eq!(b.watched.0.borrow().len(), 2);
    b.say(GET_VRING_BASE, &pair(1, 0), &[]);
    assert_eq!(b.answer(), (GET_VRING_BASE, pair(1, 3)));
    assert_eq!(b.watched.0.borrow().len(), 1);
    b.transmit(&from_guest(&pattern(10), 12), 4096, false);
    assert_eq!(b.received().len(), 0);
    b.state(SET_VRING_BASE, 1, 3);
    let kick = eventfd();
    b.request(SET_VRING_KICK, 1, &1_u64.to_ne_bytes(), &[kick.as_fd()]);
    assert!(b.handle().unwrap(), "there may be frames");
    assert_eq!(b.received().len(), 1);
    b.used(1);
    // Disabled, it is left alone.
    b.state(SET_VRING_ENABLE, 1, 0);
    b.transmit(&from_guest(&pattern(10), 12), 4096, false);
    assert_eq!(b.received().len(), 0);
    b.request(SET_VRING_ENABLE, 1, &pair(1, 1), &[]);
    assert!(b.handle().unwrap());
    assert_eq!(b.received().len(), 1);
}

#[test]
fn memory_may_be_mapped_anew_under_running_rings() {
    let mut b = Bench::new(ALL, 1, 16);
    b.transmit(&from_guest(&pattern(10), 12), 4096, false);
    assert_eq!(b.received().len(), 1);
    b.table();
    b.transmit(&from_guest(&pattern(20), 12), 4096, false);
    assert_eq!(b.received().len(), 1);
    // Without the rings in it, it is no use.
    let file = File::from(memory_file(4096));
    let gone = b.refused(SET_MEM_TABLE, &table(&[[0, 4096, 0, 0]]), &[file.as_fd()]);
    assert!(matches!(gone, Gone::Malformed(_)));
}

#[test]
fn frames_go_to_the_pair_their_flow_came_from() {
    let mut b = Bench::new(Features::offered(2), 2, 16);
    b.supply(0, 0, 4, 2048);
    b.supply(2, 0, 4, 2048);
    b.send_tcp(&pattern(10), 1400).unwrap();
    // The flow is sent on the second pair.
    b.rings.swap(1, 3);
    b.transmit(&from_guest(&pattern(10), 12), 4096, false);
    assert_eq!(b.received().len(), 1);
    b.send_tcp(&pattern(10), 1400).unwrap();
    b.link.flush();
    assert_eq!((b.used(0).len(), b.used(2).len()), (1, 1));
    // If that is switched off, on the first.
    b.state(SET_VRING_ENABLE, 2, 0);
    b.send_tcp(&pattern(10), 1400).unwrap();
    b.link.flush();
    assert_eq!(b.used(0).len(), 1);
}

#[test]
fn a_batch_that_is_full_leaves_the_rest_for_later() {
    let mut b = Bench::new(ALL, 1, 256);
    b.transmit(&from_guest(&pattern(10), 12), 4096, false);
    for _ in 1..MAX_FRAMES + 36 {
        b.offer(1, 0);
    }
    let mut batch = Inbound::new();
    let mut sizes = Vec::new();
    loop {
        let received = b.link.receive(&mut batch).unwrap();
        sizes.push(batch.len());
        b.link.release(&mut batch);
        if !received.more {
            break;
        }
    }
    b.link.flush();
    assert_eq!(sizes, [MAX_FRAMES, 36]);
    assert_eq!(b.used(1).len(), MAX_FRAMES + 36);
}

/// Without a kick the ring is looked into all the time; that is what the frontend has asked for.
#[test]
fn a_ring_without_a_kick_is_polled() {
    let mut b = Bench::new(ALL, 1, 16);
    let mut batch = Inbound::new();
    // Buffers for us are looked for when there is a frame for them.
    b.say(SET_VRING_KICK, &0x100_u64.to_ne_bytes(), &[]);
    assert!(!b.link.receive(&mut batch).unwrap().more);
    b.request(SET_VRING_KICK, 1, &0x101_u64.to_ne_bytes(), &[]);
    assert!(b.handle().unwrap(), "or nobody would begin");
    assert!(b.link.receive(&mut batch).unwrap().more);
}

#[test]
fn a_frontend_that_reads_no_answers_is_let_go() {
    let mut b = Bench::connected(1);
    let gone = loop {
        b.request(GET_FEATURES, 1, &[], &[]);
        if let Err(gone) = b.handle() {
            break gone;
        }
    };
    assert!(matches!(gone, Gone::Malformed(_)));
}
