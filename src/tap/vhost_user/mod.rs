//! A guest whose memory and rings are shared with us (`--vhost-user`): virtio-net over the vhost-user protocol.
//!
//! Nothing is copied on the way but headers and small frames: what the guest sends goes from its memory to a socket,
//! and what a socket has goes to the guest's buffers, where the kernel puts it. The guest's driver is told about
//! super-frames and unfinished checksums, so for bulk transfers one call moves up to 64 KiB.
//!
//! ```text
//!   frontend ── messages ──> protocol ──> session ──> features  memory  ring
//!   driver   ── rings ─────> ring ──> inlet  ──> Inbound ──> engines
//!            <── rings ───── ring <── outlet <── FrameBuf, or a socket itself (`fill`)
//! ```
//!
//! Neither of the two is trusted, and neither can make us wait, grow or read outside of what was mapped: see `protocol` for
//! messages, `memory` for addresses, `ring` for indices. Who breaks the rules is let go of ([`Gone`]); what a ring
//! did in the middle of a round is told by the next [`VhostUser::receive`].
//!
//! What the driver sees is done in batches: chains are given back by [`VhostUser::release`], and it is interrupted at
//! most once per ring in a round, by [`VhostUser::flush`].

mod features;
mod inlet;
mod memory;
mod outlet;
mod protocol;
mod ring;
mod session;
mod steering;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;

use self::inlet::Outcome;
use self::outlet::Claim;
use self::protocol::Reader;
use self::session::Session;
use self::steering::Steering;
use super::batch::Inbound;
use super::frame::FrameBuf;
use super::segment::{HEAD_ROOM, Segments};
use super::{Connection, Gone, Offloads, Received, Watch};
use crate::sys::shared::Room;
use crate::wire::ethernet::{ETHERTYPE_IPV6, MIN_FRAME};
use crate::wire::virtio_net::{F_DATA_VALID, F_NEEDS_CSUM, Gso, Header};

/// Requests answered in one wake-up; more of them are reported again.
const REQUESTS: usize = 64;
/// Chains taken in one round, those without a frame included.
const CHAINS: usize = 256;

/// The link.
#[derive(Debug)]
pub struct VhostUser {
    client: Option<OwnedFd>,
    reader: Reader,
    session: Session,
    steering: Steering,
    /// What is being written to.
    claim: Box<Claim>,
    /// Chains in the batch: ring, and head.
    taken: ArrayVec<(usize, u16), CHAINS>,
    /// The ring from the guest to look into first.
    next: usize,
    /// A ring turned out to be broken.
    broken: Option<Gone>,
    /// Frames have to be whole in the batch.
    whole: bool,
}

/// A ring to the guest that takes large TCP frames as they come from a socket.
#[derive(Clone, Copy, Debug)]
pub struct Lane(usize);

/// What [`VhostUser::fill`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The guest has no buffers.
    Full,
    /// There was room for so many bytes of payload, and so many came. Nothing is sent yet.
    Bytes {
        /// Offered to the socket.
        room: usize,
        /// Received from it.
        got: usize,
    },
}

impl VhostUser {
    /// With nobody connected; for guests with up to `pairs` pairs of rings. Allocates all it will need.
    #[must_use]
    pub fn new(pairs: u16) -> Self {
        memory::reserve();
        Self {
            client: None,
            reader: Reader::default(),
            session: Session::new(pairs),
            steering: Steering::default(),
            claim: Box::default(),
            taken: ArrayVec::new(),
            next: 0,
            broken: None,
            whole: false,
        }
    }

    /// Frames are to be whole in a batch: somebody wants to look at them.
    pub fn keep_whole(&mut self) {
        self.whole = true;
    }

    /// What the engines need not do. What the guest does not do is done here.
    #[must_use]
    pub const fn offloads() -> Offloads {
        Offloads {
            tso: true,
            uso: true,
        }
    }

    /// The connection of the frontend.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.client.as_ref().map(AsFd::as_fd)
    }

    /// A frontend has connected; the one before is gone.
    pub fn connect(&mut self, client: OwnedFd) {
        self.client = Some(client);
    }

    /// Let go of the frontend and of everything it gave us.
    pub fn disconnect(&mut self, watch: &dyn Watch) {
        self.session.end(watch);
        self.reader.clear();
        self.taken.clear();
        self.steering = Steering::default();
        self.broken = None;
        self.client = None;
    }

    /// The frontend has something to say.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn on_message(&mut self, watch: &dyn Watch) -> Result<Connection, Gone> {
        // Memory and rings may change now: what is done has to be seen before that.
        self.flush();
        let client = self.client.as_ref().ok_or(Gone::Closed)?;
        let mut look = false;
        for _ in 0..REQUESTS {
            let Some(request) = self.reader.next(client)? else {
                break;
            };
            look |= self.session.handle(request, client, watch)?;
        }
        // Kicks from before the rings were ready are lost.
        Ok(if look {
            Connection::Frames
        } else {
            Connection::Quiet
        })
    }

    /// A ring was found broken: [`Self::receive`] is going to say so.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Is there a ring to the guest?
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.session.is_usable()
    }

    /// Read frames until there are none, or the batch is full.
    ///
    /// # Errors
    /// [`Gone`] if a ring is broken. The batch is empty then.
    pub fn receive(&mut self, batch: &mut Inbound) -> Result<Received, Gone> {
        let received = self.look(batch);
        if received.is_err() {
            // Nobody is going to release it, and memory of a guest that is let go of must not stay mapped.
            batch.clear();
        }
        received
    }

    fn look(&mut self, batch: &mut Inbound) -> Result<Received, Gone> {
        if let Some(gone) = self.broken.take() {
            return Err(gone);
        }
        let mut received = Received::default();
        let pairs = self.session.rings.len() / 2;
        for turn in 0..pairs {
            let pair = self.next.wrapping_add(turn).checked_rem(pairs).unwrap_or(0);
            let drained = self.drain(pair, batch, &mut received);
            // A batch that nobody is going to look at would keep the guest's memory.
            if drained.inspect_err(|_| batch.clear())? {
                // The others come first next time.
                self.next = pair.wrapping_add(1);
                received.more = true;
                break;
            }
        }
        received.more |= self.session.is_polled();
        Ok(received)
    }

    /// Read what one ring has; `true`: the batch was full before it was empty.
    fn drain(
        &mut self,
        pair: usize,
        batch: &mut Inbound,
        received: &mut Received,
    ) -> Result<bool, Gone> {
        let index = pair.saturating_mul(2).saturating_add(1);
        let several = self.session.rings.len() > 2;
        let Some((memory, features, ring)) = self.session.usable(index) else {
            return Ok(false);
        };
        let before = batch.len();
        ring.attend(memory)?;
        let full = loop {
            let mut full = false;
            for chain in ring.chains(memory)? {
                let head = chain.head_index();
                full = self.taken.is_full();
                if !full {
                    let outcome = inlet::take(chain, memory, features, batch, self.whole);
                    full = outcome == Outcome::Full;
                    if outcome == Outcome::Odd {
                        received.odd = received.odd.saturating_add(1);
                    }
                }
                if full {
                    break;
                }
                self.taken.push((index, head));
            }
            if full {
                ring.give_back(1);
                break true;
            }
            if !ring.leave(memory)? {
                break false;
            }
        };
        if several {
            for frame in batch.frames().skip(before) {
                self.steering.learn(frame.bytes, pair);
            }
        }
        Ok(full)
    }

    /// The frames of the batch have been handled: their chains are the driver's again.
    pub fn release(&mut self, batch: &mut Inbound) {
        batch.clear();
        for (index, head) in self.taken.drain(..) {
            let Some((memory, _, ring)) = self.session.usable(index) else {
                continue;
            };
            if let Err(gone) = ring.done(memory, head, 0) {
                self.broken = Some(gone);
            }
        }
    }

    /// Hand one frame to the guest, cut and completed as far as its driver does not do that.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`]: no room, [`ErrorKind::NotConnected`]: no ring, [`ErrorKind::InvalidData`]: not a frame
    /// that can be cut.
    pub fn send(&mut self, frame: &FrameBuf) -> io::Result<()> {
        let (offload, bytes) =
            Header::parse(frame.with_header()).map_err(|_| ErrorKind::InvalidData)?;
        let index = self.ring_for(bytes).ok_or(ErrorKind::NotConnected)?;
        let features = self.session.features;
        let accepted = match offload.gso {
            Gso::None => offload.flags & F_NEEDS_CSUM == 0 || features.checksums(),
            Gso::TcpV4 => features.tso(false),
            Gso::TcpV6 => features.tso(true),
            Gso::UdpL4 => features.uso(is_ipv6(bytes)),
            Gso::Udp => false,
        };
        if accepted && self.put(index, &offload, (bytes, &[])) {
            return Ok(());
        }
        if accepted && offload.gso == Gso::None {
            return Err(ErrorKind::WouldBlock.into());
        }
        // A super-frame that does not fit may still do so in parts.
        let mut segments = Segments::new(&offload, bytes).ok_or(ErrorKind::InvalidData)?;
        let mut done = Header::PLAIN;
        if features.checksums() {
            done.flags = F_DATA_VALID;
        }
        let mut head = [0; HEAD_ROOM];
        while let Some(segment) = segments.next(&mut head) {
            let (head, _) = head.split_at_checked(segment.head).unwrap_or_default();
            if !self.put(index, &done, (head, segment.rest)) {
                return Err(ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    }

    /// The ring to the guest for a frame: the one of its flow, or the first there is.
    fn ring_for(&self, frame: &[u8]) -> Option<usize> {
        let rings = &self.session.rings;
        let usable = |index: &usize| rings.get(*index).is_some_and(ring::Ring::is_usable);
        if rings.len() > 2 {
            let own = self.steering.pair_of(frame).saturating_mul(2);
            if usable(&own) {
                return Some(own);
            }
        }
        (0..rings.len()).step_by(2).find(usable)
    }

    /// Put a frame, in two parts, into a ring. `false`: there is no room.
    fn put(&mut self, index: usize, offload: &Header, (head, rest): (&[u8], &[u8])) -> bool {
        let Some((memory, features, ring)) = self.session.usable(index) else {
            return false;
        };
        let need = features
            .header_len()
            .saturating_add(head.len())
            .saturating_add(rest.len());
        let claim = &mut self.claim;
        let done = claim
            .take((ring, memory), features, need)
            .and_then(|enough| {
                if enough {
                    claim.finish((ring, memory), features, offload, (head, rest, 0))?;
                } else {
                    claim.give_back(ring);
                }
                Ok(enough)
            });
        self.or_broken(done)
    }

    fn or_broken(&mut self, done: Result<bool, Gone>) -> bool {
        done.unwrap_or_else(|gone| {
            self.broken = Some(gone);
            false
        })
    }

    /// The ring into which TCP frames with these headers can be received from a socket, if the guest takes them
    /// uncut and unfinished.
    #[must_use]
    pub fn lane(&self, headers: &[u8]) -> Option<Lane> {
        let takes = self.session.features.tso(is_ipv6(headers));
        if !takes || self.broken.is_some() {
            return None;
        }
        self.ring_for(headers).map(Lane)
    }

    /// Let `receive` put up to `want` bytes of payload into buffers of the guest, behind room for `headers` bytes.
    /// What came is sent by [`Self::finish`], and not at all without it.
    ///
    /// # Errors
    /// Of `receive`.
    pub fn fill(
        &mut self,
        lane: Lane,
        (headers, want): (usize, usize),
        receive: impl FnOnce(&[Room<'_>]) -> io::Result<usize>,
    ) -> io::Result<Filled> {
        let Some((memory, features, ring)) = self.session.usable(lane.0) else {
            return Ok(Filled::Full);
        };
        let claim = &mut self.claim;
        let front = features.header_len().saturating_add(headers);
        let shortest = features.header_len().saturating_add(MIN_FRAME);
        let need = front.saturating_add(want).max(shortest);
        let rooms = claim
            .take((ring, memory), features, need)
            .and_then(|_| Ok(claim.rooms(memory, front, want)?));
        let rooms = match rooms {
            Ok(rooms) if !rooms.is_empty() => rooms,
            Ok(_) => {
                claim.give_back(ring);
                return Ok(Filled::Full);
            }
            Err(gone) => {
                self.broken = Some(gone);
                return Ok(Filled::Full);
            }
        };
        let room = rooms
            .iter()
            .fold(0_usize, |sum, r| sum.saturating_add(r.len()));
        let got = receive(&rooms);
        if !matches!(got, Ok(1..)) {
            claim.give_back(ring);
        }
        Ok(Filled::Bytes { room, got: got? })
    }

    /// Send the `got` bytes that the last [`Self::fill`] received, with `headers` in front. `false`: the ring is broken.
    pub fn finish(&mut self, lane: Lane, headers: &[u8], got: usize, offload: &Header) -> bool {
        let Some((memory, features, ring)) = self.session.usable(lane.0) else {
            return false;
        };
        let done = self
            .claim
            .finish((ring, memory), features, offload, (headers, &[], got))
            .map(|()| true);
        self.or_broken(done)
    }

    /// Show the driver what was done in this round, and wake it if it wants that.
    pub fn flush(&mut self) {
        for index in 0..self.session.rings.len() {
            let Some((memory, _, ring)) = self.session.usable(index) else {
                continue;
            };
            let shown = ring.publish(memory).and_then(|()| ring.notify(memory));
            if let Err(outside) = shown {
                self.broken = Some(outside.into());
            }
        }
    }
}

/// Is a frame of ours one of IPv6?
fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE_IPV6.to_be_bytes())
}
