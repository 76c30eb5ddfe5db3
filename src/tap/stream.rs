//! A virtual machine on a UNIX stream socket (`-netdev stream` of qemu, and what speaks the same).
//!
//! The socket carries complete frames and nothing else, so what a kernel tap would do is done here: see `segment`.
//!
//! From the guest: one read takes all there is, straight into the arena of the batch; `framing` finds the frames
//! in it. A batch that is full leaves the others where they are, for the next call. The arena belongs to this link as
//! long as it exists: what is left over in it must not be overwritten by anything else.
//!
//! To the guest: small frames are gathered and leave at the end of the round, or in front of the next large one. A
//! large frame leaves at once, as headers from here and payload from where it is, with as few calls as possible. If
//! the socket takes a frame in part, the rest is kept (whoever reads at the other end has no other way to
//! find the next frame) and goes first as soon as there is room; until then the link is *blocked*: frames are refused,
//! but for crumbs like acknowledgements, which the other direction waits for. What is kept is bounded by the
//! buffer. Whether the client is gone is found out by reading.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use libc::{ECONNRESET, ENOBUFS, ENOMEM, EPIPE, SO_SNDBUF, SOL_SOCKET};
use nix::errno::Errno;

use super::batch::{Inbound, Meta};
use super::frame::FrameBuf;
use super::framing::{self, Malformed, PREFIX, Reader};
use super::segment::{self, HEAD_ROOM, Segment, Segments};
use super::{Gone, Offloads, Received};
use crate::sys::piece::Piece;
use crate::sys::stream;
use crate::wire::virtio_net::{Gso, Header};

/// Most bytes read at once. The kernel has about that much for us at most, and it fits into the caches.
const READ: usize = 1 << 18;
/// Frames up to this length are gathered, in bytes: copying costs less than a call, or than more pieces.
const SMALL: usize = 2048;
/// So much is gathered before it is sent, in bytes.
const GATHER: usize = 1 << 16;
/// Frames up to this length are kept even if the link is blocked, in bytes: anything without data.
const CRUMB: usize = 128;
/// What can be kept: what was gathered, and a super-frame in the smallest segments TCP allows (88 bytes); the
/// remainder is for crumbs.
const KEEP: usize = 1 << 18;
/// Segments handed over at once.
const SEGMENTS: usize = 64;
/// Length prefix and headers of a segment.
const SLOT: usize = (PREFIX + HEAD_ROOM).next_multiple_of(64);
/// The send buffer to ask for, in bytes; the kernel gives what net.core.wmem_max allows.
const SEND_BUFFER: i32 = 1 << 20;

/// Bytes on their way to the guest.
#[derive(Debug)]
struct Queue {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Queue {
    fn new() -> Self {
        Self {
            buf: vec![0; KEEP].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    const fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for `n` more bytes, which count as written; `None` if there is not so much.
    fn extend(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.buf.len().saturating_sub(self.end) {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        }
        let end = self.end.saturating_add(n);
        let room = self.buf.get_mut(self.end..end)?;
        self.end = end;
        Some(room)
    }
}

/// The connection to the guest, or the place for one.
#[derive(Debug)]
pub struct Stream {
    client: Option<OwnedFd>,
    reader: Reader,
    /// The last read took all there was.
    drained: bool,
    queue: Queue,
    blocked: bool,
    heads: Box<[[u8; SLOT]]>,
}

impl Stream {
    /// Nobody is connected; everything is allocated.
    #[must_use]
    pub fn new() -> Self {
        Self {
            client: None,
            reader: Reader::new(),
            drained: true,
            queue: Queue::new(),
            blocked: false,
            heads: vec![[0; SLOT]; SEGMENTS].into_boxed_slice(),
        }
    }

    /// All offloads: done here.
    #[must_use]
    pub const fn offloads() -> Offloads {
        Offloads {
            tso: true,
            uso: true,
        }
    }

    /// A client has come.
    pub fn connect(&mut self, client: OwnedFd) {
        self.disconnect();
        // The more fits, the fewer times a bulk transfer has to wait; it works with less, too.
        let _ = stream::set_int(&client, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER);
        self.client = Some(client);
    }

    /// Let the client go, with everything that was meant for it.
    pub fn disconnect(&mut self) {
        self.client = None;
        self.reader = Reader::new();
        self.drained = true;
        self.blocked = false;
        self.queue.consume(usize::MAX);
    }

    /// The connection.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.client.as_ref().map(AsFd::as_fd)
    }

    /// Part of a frame waits for room: call [`Self::on_writable`] when there is some.
    #[must_use]
    pub const fn blocked(&self) -> bool {
        self.blocked
    }

    /// Read what the guest has sent, with one call at most.
    ///
    /// # Errors
    /// The client is gone, or what it sends are no frames.
    pub fn receive(&mut self, batch: &mut Inbound) -> Result<Received, Gone> {
        self.collect(batch)?;
        if batch.is_empty() && self.read(batch)? {
            self.collect(batch)?;
        }
        let left = !matches!(self.reader.peek(batch.arena()), Ok(None));
        Ok(Received {
            odd: 0,
            more: left || !self.drained,
        })
    }

    /// Put whole frames into the batch, as far as it has room.
    fn collect(&mut self, batch: &mut Inbound) -> Result<(), Gone> {
        loop {
            match self.reader.peek(batch.arena()) {
                Ok(Some(frame)) => {
                    if !batch.place(&frame, Meta::default()) {
                        return Ok(());
                    }
                    self.reader.skip(&frame);
                }
                Ok(None) => return Ok(()),
                // The frames in front of it are good.
                Err(Malformed) if !batch.is_empty() => return Ok(()),
                Err(Malformed) => return Err(Gone::Malformed("no frame has such a length")),
            }
        }
    }

    /// Read on; `false` if there is nothing.
    fn read(&mut self, batch: &mut Inbound) -> Result<bool, Gone> {
        let Some(client) = &self.client else {
            return Ok(false);
        };
        let room = self.reader.room(batch.arena());
        let want = room.len().min(READ);
        let room = room.get_mut(..want).unwrap_or_default();
        match stream::uninterrupted(|| stream::receive(client, room)) {
            Ok(0) => Err(Gone::Closed),
            Ok(n) => {
                self.reader.filled(n);
                self.drained = n < want;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.drained = true;
                Ok(false)
            }
            Err(e) => Err(match e.raw_os_error() {
                // It went without reading everything.
                Some(ECONNRESET | EPIPE) | None => Gone::Closed,
                Some(errno) => Gone::Failed(Errno::from_raw(errno)),
            }),
        }
    }

    /// Hand one frame to the guest, now or by [`Self::flush`] at the latest.
    ///
    /// # Errors
    /// `WouldBlock` while the link is blocked, `NotConnected` without a client, `InvalidInput` for a frame that
    /// cannot be completed; whatever sendmsg(2) says.
    pub fn send(&mut self, frame: &FrameBuf) -> io::Result<()> {
        if self.client.is_none() {
            return Err(ErrorKind::NotConnected.into());
        }
        let Ok((offload, bytes)) = Header::parse(frame.with_header()) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        if offload.gso == Gso::None && bytes.len() <= SMALL {
            return self.gather(&offload, bytes);
        }
        if self.blocked {
            return Err(ErrorKind::WouldBlock.into());
        }
        let segments = Segments::new(&offload, bytes).ok_or(ErrorKind::InvalidInput)?;
        self.send_segments(segments)
    }

    /// Complete a small frame in the queue.
    fn gather(&mut self, offload: &Header, bytes: &[u8]) -> io::Result<()> {
        if !self.blocked && self.queue.len() >= GATHER {
            self.flush();
        }
        if self.blocked && bytes.len() > CRUMB {
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = PREFIX.saturating_add(bytes.len());
        let room = self.queue.extend(len).ok_or(ErrorKind::WouldBlock)?;
        let (prefix, frame) = room
            .split_first_chunk_mut()
            .ok_or(ErrorKind::InvalidInput)?;
        *prefix = framing::prefix(bytes.len());
        frame.copy_from_slice(bytes);
        // Our own frames always fit their description; one that did not would fail its checksum.
        let _ = segment::complete(offload, frame);
        Ok(())
    }

    /// Hand over what was gathered.
    pub fn flush(&mut self) {
        if self.blocked || self.queue.len() == 0 {
            return;
        }
        if let Some(client) = &self.client {
            let bytes = [Piece::new(self.queue.bytes())];
            match write(client, &bytes) {
                Ok(n) => {
                    self.queue.consume(n);
                    self.blocked = self.queue.len() > 0;
                }
                // Nobody will ever read it.
                Err(_) => self.queue.consume(usize::MAX),
            }
        }
    }

    /// The socket has room again.
    pub fn on_writable(&mut self) {
        self.blocked = false;
        self.flush();
    }

    fn send_segments(&mut self, mut segments: Segments<'_>) -> io::Result<()> {
        let mut begun = false;
        loop {
            let mut batch = Batch::new();
            for slot in &mut self.heads {
                let Some((prefix, head)) = slot.split_first_chunk_mut() else {
                    break;
                };
                let Some(one) = segments.next(head) else {
                    break;
                };
                *prefix = framing::prefix(one.len());
                batch.push(one);
            }
            if batch.is_empty() {
                return Ok(());
            }
            let sent = if self.blocked { 0 } else { self.write(&batch)? };
            if sent == 0 && !begun {
                // Not a byte of it: nothing has to be kept.
                return Err(ErrorKind::WouldBlock.into());
            }
            begun = true;
            if self.blocked {
                self.keep(&batch, sent);
            }
        }
    }

    /// Send what was gathered and these segments, whose headers are in `heads`: how many bytes of the segments went.
    fn write(&mut self, batch: &Batch<'_>) -> io::Result<usize> {
        let Some(client) = &self.client else {
            return Err(ErrorKind::NotConnected.into());
        };
        let mut pieces: ArrayVec<Piece<'_>, { 1 + 2 * SEGMENTS }> = ArrayVec::new();
        if self.queue.len() > 0 {
            pieces.push(Piece::new(self.queue.bytes()));
        }
        for (slot, one) in self.heads.iter().zip(batch) {
            pieces.push(Piece::new(head_of(slot, one)));
            pieces.push(Piece::new(one.rest));
        }
        let all = pieces
            .iter()
            .fold(0_usize, |n, p| n.saturating_add(p.len()));
        let result = write(client, &pieces);
        drop(pieces);
        match result {
            Ok(n) => {
                let kept = self.queue.len();
                self.queue.consume(n);
                self.blocked = n < all;
                Ok(n.saturating_sub(kept))
            }
            Err(e) => {
                // Nobody will ever read it.
                self.queue.consume(usize::MAX);
                Err(e)
            }
        }
    }

    /// Keep these segments but for the first `sent` bytes.
    fn keep(&mut self, batch: &Batch<'_>, mut sent: usize) {
        for (slot, one) in self.heads.iter().zip(batch) {
            let parts = [head_of(slot, one), one.rest].map(|part| {
                let skip = sent.min(part.len());
                sent = sent.saturating_sub(skip);
                part.get(skip..).unwrap_or_default()
            });
            let [head, rest] = parts;
            // The first always fits, for nothing is kept when a socket takes anything of it; and so do all of TCP. Of
            // datagrams of a few bytes each, some may be lost.
            let Some(room) = self.queue.extend(head.len().saturating_add(rest.len())) else {
                return;
            };
            if let Some((a, b)) = room.split_at_mut_checked(head.len()) {
                a.copy_from_slice(head);
                b.copy_from_slice(rest);
            }
        }
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self::new()
    }
}

type Batch<'a> = ArrayVec<Segment<'a>, SEGMENTS>;

/// Length prefix and headers.
fn head_of<'a>(slot: &'a [u8; SLOT], one: &Segment<'_>) -> &'a [u8] {
    slot.get(..PREFIX.saturating_add(one.head))
        .unwrap_or_default()
}

/// As much as the socket takes now, maybe nothing.
fn write(client: &OwnedFd, pieces: &[Piece<'_>]) -> io::Result<usize> {
    taken(stream::uninterrupted(|| {
        stream::send(client, pieces, false)
    }))
}

/// A kernel that is short of memory says so, and that passes: what is thrown away in the middle of a frame would be the
/// end of all frames.
fn taken(sent: io::Result<usize>) -> io::Result<usize> {
    match sent {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | ENOBUFS | ENOMEM)) => Ok(0),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;
    use crate::addr::{Endpoint, Mac};
    use crate::wire::dissect::{Body, Upper, dissect};
    use crate::wire::frame::{Checksum, Template};
    use crate::wire::tcp::{Flags, Options, Repr, Seq};

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut link = Stream::new();
        link.connect(ours.into());
        (link, theirs)
    }

    /// A TCP frame as the engines build it.
    fn tcp(payload: &[u8], mss: u16) -> FrameBuf {
        let end = |n, port| Endpoint::new(Ipv4Addr::new(192, 0, 2, n).into(), port);
        let template = Template::new(Mac([2; 6]), Mac::OURS, end(1, 443), end(2, 40_000));
        let repr = Repr {
            src_port: 443,
            dst_port: 40_000,
            seq: Seq(0),
            ack: Seq(0),
            flags: Flags::ACK,
            window: 1,
            urgent: 0,
            options: Options::NONE,
        };
        let mut frame = FrameBuf::new();
        let space = frame.space();
        let at = template
            .emit_tcp(space, &repr, payload.len(), Checksum::Partial)
            .unwrap();
        space[at..at + payload.len()].copy_from_slice(payload);
        frame.finish(
            at + payload.len(),
            template.tcp_offload(at, payload.len(), mss),
        );
        frame
    }

    /// What has come to the client, up to `most` bytes.
    fn drain(client: &mut UnixStream, most: usize) -> Vec<u8> {
        let mut data = Vec::new();
        let mut buf = vec![0; most.min(1 << 16)];
        while data.len() < most {
            let want = buf.len().min(most - data.len());
            match client.read(&mut buf[..want]) {
                Ok(0) => break,
                Ok(n) => data.extend(&buf[..n]),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        data
    }

    /// The TCP data in a stream of whole frames, whose checksums are right; and how many frames there were.
    fn payload(mut stream: &[u8]) -> (Vec<u8>, usize) {
        let (mut data, mut frames) = (Vec::new(), 0);
        while let Some((prefix, rest)) = stream.split_first_chunk() {
            let (frame, rest) = rest.split_at(u32::from_be_bytes(*prefix) as usize);
            assert!(frame.len() >= 60);
            let Body::Ip(ip) = dissect(frame).unwrap().body else {
                panic!()
            };
            assert!(ip.verify_upper_checksum());
            let Upper::Tcp { payload, .. } = ip.upper else {
                panic!()
            };
            data.extend(payload);
            frames += 1;
            stream = rest;
        }
        (data, frames)
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..=250).cycle().take(n).collect()
    }

    #[test]
    fn frames_of_the_guest_come_in_batches() {
        let (mut link, mut client) = pair();
        let frames: Vec<Vec<u8>> = (0..200_u8).map(|i| vec![i; 14 + usize::from(i)]).collect();
        let stream: Vec<u8> = frames
            .iter()
            .flat_map(|f| [&framing::prefix(f.len())[..], f].concat())
            .collect();
        let mut batch = Inbound::new();
        for at in [1, 3, 4, 5, 17, 18, 100, 5000] {
            let mut got = Vec::new();
            for part in [&stream[..at], &stream[at..]] {
                client.write_all(part).unwrap();
                loop {
                    batch.clear();
                    let received = link.receive(&mut batch).unwrap();
                    got.extend(batch.frames().map(|f| {
                        assert_eq!(f.meta, Meta::default());
                        f.bytes.to_vec()
                    }));
                    if !received.more {
                        break;
                    }
                    assert!(!batch.is_empty());
                }
            }
            assert_eq!(got, frames);
        }
        batch.clear();
        assert_eq!(link.receive(&mut batch), Ok(Received::default()));
    }

    #[test]
    fn the_end_comes_behind_the_last_frame() {
        let (mut link, mut client) = pair();
        client.write_all(&framing::prefix(14)).unwrap();
        client.write_all(&[1; 14]).unwrap();
        drop(client);
        let mut batch = Inbound::new();
        link.receive(&mut batch).unwrap();
        assert_eq!(batch.len(), 1);
        batch.clear();
        assert_eq!(link.receive(&mut batch), Err(Gone::Closed));

        // Malformed: the same; and it stays that way.
        let (mut link, mut client) = pair();
        for len in [14, 13] {
            client.write_all(&framing::prefix(len)).unwrap();
            client.write_all(&[1; 14][..len]).unwrap();
        }
        batch.clear();
        assert!(link.receive(&mut batch).unwrap().more);
        assert_eq!(batch.len(), 1);
        for _ in 0..2 {
            batch.clear();
            assert!(matches!(link.receive(&mut batch), Err(Gone::Malformed(_))));
        }
        // A new client starts afresh.
        let (ours, mut client) = UnixStream::pair().unwrap();
        link.connect(ours.into());
        client.write_all(&framing::prefix(14)).unwrap();
        client.write_all(&[1; 14]).unwrap();
        assert_eq!(link.receive(&mut batch), Ok(Received::default()));
        assert_eq!(batch.len(), 1);
        // One that goes without reading what we sent.
        link.send(&tcp(b"", 1448)).unwrap();
        link.flush();
        drop(client);
        batch.clear();
        assert_eq!(link.receive(&mut batch), Err(Gone::Closed));
        assert!(link.send(&tcp(&bytes(5000), 1448)).is_err());
        link.disconnect();
        assert!(link.as_fd().is_none());
        assert!(link.send(&tcp(b"", 1448)).is_err());
        assert_eq!(link.receive(&mut batch), Ok(Received::default()));
    }

    #[test]
    fn small_frames_wait_for_the_end_of_the_round_or_a_large_one() {
        let (mut link, mut client) = pair();
        link.send(&tcp(b"one", 1448)).unwrap();
        link.send(&tcp(b"two", 1448)).unwrap();
        assert!(drain(&mut client, usize::MAX).is_empty());
        let large = bytes(20_000);
        link.send(&tcp(&large, 1448)).unwrap();
        let (data, frames) = payload(&drain(&mut client, usize::MAX));
        assert_eq!(data, [b"onetwo", &large[..]].concat());
        assert_eq!(frames, 2 + 14);
        link.send(&tcp(b"", 1448)).unwrap();
        link.flush();
        assert_eq!(payload(&drain(&mut client, usize::MAX)), (vec![], 1));
        assert!(!link.blocked());
        // More than is gathered.
        for _ in 0..100 {
            link.send(&tcp(&large[..1448], 1448)).unwrap();
        }
        assert!(link.queue.len() < GATHER + SMALL);
        link.flush();
        assert_eq!(payload(&drain(&mut client, usize::MAX)).1, 100);
    }

    #[test]
    fn any_mss_and_a_whole_frame() {
        for mss in [88, 536, 1448, 9000, 65_480] {
            let (mut link, mut client) = pair();
            let large = bytes(65_000);
            let mut got = Vec::new();
            link.send(&tcp(&large, mss)).unwrap();
            loop {
                got.extend(drain(&mut client, usize::MAX));
                if !link.blocked() {
                    break;
                }
                link.on_writable();
            }
            let (data, frames) = payload(&got);
            assert_eq!(data, large);
            assert_eq!(frames, 65_000_usize.div_ceil(usize::from(mss)));
        }
    }

    /// A socket that is full takes nothing more until it is read; nothing of what was taken is lost or out of order.
    #[test]
    fn a_full_socket_blocks_and_goes_on_in_the_middle_of_a_frame() {
        let (mut link, mut client) = pair();
        let mut expected = Vec::new();
        let mut got = Vec::new();
        let mut refused = 0;
        for round in 0..200_usize {
            let large = bytes(10_000 + round * 271);
            if link.send(&tcp(&large, 1448)).is_ok() {
                expected.extend(large);
            } else {
                refused += 1;
                assert!(link.blocked());
                // Crumbs are taken all the same, data is not.
                link.send(&tcp(b"crumb", 1448)).unwrap();
                expected.extend(b"crumb");
                assert!(link.send(&tcp(&bytes(1000), 1448)).is_err());
                link.flush();
            }
            if round % 3 == 0 {
                got.extend(drain(&mut client, 50_001));
                link.on_writable();
            }
        }
        assert!(refused > 10, "{refused}");
        loop {
            got.extend(drain(&mut client, usize::MAX));
            if !link.blocked() {
                break;
            }
            link.on_writable();
        }
        link.flush();
        got.extend(drain(&mut client, usize::MAX));
        assert!(payload(&got).0 == expected);
    }

    #[test]
    fn only_a_client_that_is_gone_is_an_error_of_writing() {
        for (errno, ends) in [
            (libc::EAGAIN, false),
            (ENOBUFS, false),
            (ENOMEM, false),
            (EPIPE, true),
            (ECONNRESET, true),
        ] {
            let taken = taken(Err(io::Error::from_raw_os_error(errno)));
            assert_eq!(taken.is_err(), ends, "{errno}");
        }
    }

    /// What is kept for a client that never reads is bounded.
    #[test]
    fn crumbs_for_a_client_that_never_reads_end() {
        let (mut link, _client) = pair();
        let large = bytes(60_000);
        while link.send(&tcp(&large, 88)).is_ok() {}
        let mut crumbs = 0;
        while link.send(&tcp(b"", 1448)).is_ok() {
            crumbs += 1;
            assert!(crumbs < KEEP);
        }
        link.on_writable();
        assert!(link.blocked());
    }

    /// The rest of a segment is kept from any byte on.
    #[test]
    fn every_partial_write_is_completed() {
        let (mut link, mut client) = pair();
        let frame = tcp(&bytes(170), 88);
        let (offload, raw) = Header::parse(frame.with_header()).unwrap();
        link.send(&frame).unwrap();
        let whole = drain(&mut client, usize::MAX);
        for sent in 0..=whole.len() {
            let mut segments = Segments::new(&offload, raw).unwrap();
            let mut batch = Batch::new();
            for slot in &mut link.heads {
                let (prefix, head) = slot.split_first_chunk_mut().unwrap();
                let Some(one) = segments.next(head) else {
                    break;
                };
                *prefix = framing::prefix(one.len());
                batch.push(one);
            }
            link.keep(&batch, sent);
            assert_eq!(link.queue.bytes(), &whole[sent..]);
            link.queue.consume(usize::MAX);
        }
    }

    proptest! {
        #[test]
        fn the_queue_keeps_order(steps in proptest::collection::vec((0_usize..90_000, 0_usize..120_000), 1..60)) {
            let (mut queue, mut model) = (Queue::new(), Vec::new());
            for (step, (add, take)) in steps.into_iter().enumerate() {
                if let Some(room) = queue.extend(add) {
                    room.fill(u8::try_from(step).unwrap());
                    model.extend(vec![u8::try_from(step).unwrap(); add]);
                } else {
                    prop_assert!(model.len() + add > KEEP);
                }
                prop_assert!(queue.bytes() == &model[..]);
                queue.consume(take);
                model.drain(..take.min(model.len()));
                prop_assert!(queue.bytes() == &model[..]);
            }
        }
    }
}
