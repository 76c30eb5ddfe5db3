//! Frames for the guest: into the buffers its driver has put into a ring.
//!
//! A [`Claim`] is what was taken out of the ring for one frame. What turns out not to be needed, or not to be
//! enough, is given back, and the driver never knew. With mergeable buffers a frame goes into as many as it takes, and
//! its header says how many; without, into one chain, which has to be large enough.
//!
//! Payload may get there without us: [`Claim::rooms`] is a vector for recvmsg(2), with room left in front for the
//! headers, which are written when it is known how much has come. The driver sees nothing of any of it before
//! [`Ring::publish`].

use arrayvec::ArrayVec;

use super::features::Features;
use super::memory::{Memory, Outside};
use super::ring::{Ring, Segment};
use crate::sys::shared::Room;
use crate::tap::Gone;
use crate::wire::ethernet::MIN_FRAME;
use crate::wire::virtio_net::{self, Header};

/// Most chains for one frame: 64 KiB in buffers of 128 bytes.
const MAX_CHAINS: usize = 512;
/// Most buffers for one frame; also within what recvmsg(2) takes (IOV_MAX, 1024).
const MAX_BUFFERS: usize = 512;
/// Longest header in front of a frame.
const MAX_VNET: usize = 12;

/// A chain and how much it holds.
#[derive(Clone, Copy, Debug)]
struct Taken {
    head: u16,
    room: usize,
}

/// What was taken out of a ring.
#[derive(Debug, Default)]
pub struct Claim {
    chains: ArrayVec<Taken, MAX_CHAINS>,
    buffers: ArrayVec<Segment, MAX_BUFFERS>,
    room: usize,
}

impl Claim {
    /// Take buffers for `need` bytes, or as many as there are; whether they are enough. If not, the driver kicks when it
    /// has more.
    ///
    /// # Errors
    /// [`Gone`] if the ring is broken.
    pub fn take(
        &mut self,
        (ring, memory): (&mut Ring, &Memory),
        features: Features,
        need: usize,
    ) -> Result<bool, Gone> {
        let mergeable = features.mergeable();
        loop {
            self.gather((ring, memory), need, mergeable)?;
            if self.room >= need {
                ring.attend(memory)?;
                return Ok(true);
            }
            let one_of_one = !mergeable && !self.chains.is_empty();
            if one_of_one || self.is_full() || !ring.leave(memory)? {
                return Ok(false);
            }
            self.give_back(ring);
        }
    }

    fn is_full(&self) -> bool {
        self.chains.is_full() || self.buffers.is_full()
    }

    fn gather(
        &mut self,
        (ring, memory): (&mut Ring, &Memory),
        need: usize,
        mergeable: bool,
    ) -> Result<(), Gone> {
        self.chains.clear();
        self.buffers.clear();
        self.room = 0;
        for chain in ring.chains(memory)? {
            let head = chain.head_index();
            let mut room = 0_usize;
            // Tables can be long and empty: what is behind so many descriptors is not looked at.
            let looked_at = chain.take(MAX_BUFFERS);
            for buffer in looked_at.filter(|b| b.is_write_only() && b.len() > 0) {
                let one = (buffer.addr(), buffer.len());
                if self.buffers.try_push(one).is_err() {
                    break;
                }
                room = room.saturating_add(usize::try_from(buffer.len()).unwrap_or(usize::MAX));
            }
            if room == 0 && !self.buffers.is_full() {
                return Err(Gone::Malformed("buffer without room"));
            }
            self.chains.push(Taken { head, room });
            self.room = self.room.saturating_add(room);
            if self.room >= need || self.is_full() || !mergeable {
                break;
            }
        }
        Ok(())
    }

    /// Give all of it back.
    pub fn give_back(&mut self, ring: &mut Ring) {
        self.give_back_from(ring, 0);
    }

    fn give_back_from(&mut self, ring: &mut Ring, first: usize) {
        let n = self.chains.len().saturating_sub(first);
        // No more than MAX_CHAINS.
        ring.give_back(u16::try_from(n).unwrap_or(0));
        self.chains.clear();
    }

    /// Room for `len` bytes behind the first `skip`.
    ///
    /// # Errors
    /// [`Outside`] if a buffer is not in the guest's memory.
    pub fn rooms<'a>(
        &self,
        memory: &'a Memory,
        skip: usize,
        len: usize,
    ) -> Result<ArrayVec<Room<'a>, MAX_BUFFERS>, Outside> {
        let mut rooms = ArrayVec::new();
        let (mut skip, mut left) = (skip, len);
        for (address, length) in &self.buffers {
            if left == 0 || rooms.is_full() {
                break;
            }
            let length = usize::try_from(*length).unwrap_or(usize::MAX);
            memory.rooms(*address, length, |room| {
                let part = room.skip(skip).first(left);
                skip = skip.saturating_sub(room.len());
                left = left.saturating_sub(part.len());
                if !part.is_empty() {
                    // The few that a region's edge makes more of are left out, and with them what follows.
                    let _ = rooms.try_push(part);
                }
            })?;
        }
        Ok(rooms)
    }

    /// The frame is `head`, then `payload`, then `there` bytes that are in their places already: write it, with its
    /// virtio-net header, pad it to the length that a frame has at least, as far as there is room, and give back what
    /// it did not need.
    ///
    /// # Errors
    /// [`Gone`] if the ring is broken. There has to be enough room.
    pub fn finish(
        &mut self,
        (ring, memory): (&mut Ring, &Memory),
        features: Features,
        offload: &Header,
        parts: (&[u8], &[u8], usize),
    ) -> Result<(), Gone> {
        let (head, payload, there) = parts;
        let mut vnet = [0; MAX_VNET];
        let vnet_len = features.header_len();
        let frame = [head.len(), payload.len(), there]
            .iter()
            .fold(0_usize, |sum, part| sum.saturating_add(*part));
        let unpadded = vnet_len.saturating_add(frame);
        let pad = MIN_FRAME
            .saturating_sub(frame)
            .min(self.room.saturating_sub(unpadded));
        let total = unpadded.saturating_add(pad);
        let used = self.chains_for(total);
        let _ = offload.emit(&mut vnet);
        if let Some(number) = vnet.get_mut(virtio_net::HEADER_LEN..) {
            number.copy_from_slice(&u16::try_from(used).unwrap_or(1).to_le_bytes());
        }
        let mut at = Cursor::new(&self.buffers);
        at.write(memory, vnet.get(..vnet_len).unwrap_or_default())?;
        at.write(memory, head)?;
        at.write(memory, payload)?;
        if pad > 0 {
            at.skip(there)?;
            at.write(memory, [0; MIN_FRAME].get(..pad).unwrap_or_default())?;
        }
        let mut left = total;
        for chain in self.chains.iter().take(used) {
            let len = left.min(chain.room);
            left = left.saturating_sub(len);
            ring.done(memory, chain.head, u32::try_from(len).unwrap_or(u32::MAX))?;
        }
        self.give_back_from(ring, used);
        Ok(())
    }

    /// How many of the chains `total` bytes fill.
    fn chains_for(&self, total: usize) -> usize {
        let mut room = 0_usize;
        let before = self.chains.iter().take_while(|chain| {
            let more = room < total;
            room = room.saturating_add(chain.room);
            more
        });
        before.count()
    }
}

/// A place in a row of buffers.
struct Cursor<'a> {
    buffers: std::slice::Iter<'a, Segment>,
    current: Segment,
}

impl<'a> Cursor<'a> {
    fn new(buffers: &'a [Segment]) -> Self {
        Self {
            buffers: buffers.iter(),
            current: (vm_memory::GuestAddress(0), 0),
        }
    }

    fn write(&mut self, memory: &Memory, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let (address, n) = self.step(bytes.len())?;
            let (now, later) = bytes.split_at_checked(n).unwrap_or((bytes, &[]));
            memory.write(address, now)?;
            bytes = later;
        }
        Ok(())
    }

    /// Leave so many bytes as they are.
    fn skip(&mut self, mut len: usize) -> Result<(), Gone> {
        while len > 0 {
            let (_, n) = self.step(len)?;
            len = len.saturating_sub(n);
        }
        Ok(())
    }

    /// The next piece of at most `most` bytes, at least one, and its length.
    fn step(&mut self, most: usize) -> Result<(vm_memory::GuestAddress, usize), Gone> {
        if self.current.1 == 0 {
            self.current = *self.buffers.next().ok_or(Outside)?;
        }
        let (address, room) = self.current;
        let n = most.min(usize::try_from(room).unwrap_or(usize::MAX));
        let done = u32::try_from(n).unwrap_or(room);
        self.current = (
            vm_memory::GuestAddress(address.0.wrapping_add(u64::from(done))),
            room.saturating_sub(done),
        );
        Ok((address, n))
    }
}
