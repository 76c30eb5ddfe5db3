//! Frames from the guest: out of the buffers its driver has filled.
//!
//! A chain is a virtio-net header and a frame, cut anywhere. What is judged is copied first: the header, and the whole frame
//! if it is small, or not TCP, or still to be checked. Of a large TCP frame only the headers are copied; the payload
//! goes from the guest's memory to the socket, and the chain is given back when that has happened.
//!
//! Nothing here depends on the guest leaving a descriptor as it was: each is read once.

use arrayvec::ArrayVec;
use vm_memory::GuestAddress;

use super::features::Features;
use super::memory::{Memory, Outside};
use super::ring::{Chain, Segment};
use crate::tap::batch::{Inbound, Meta, SLOT};
use crate::wire::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::wire::virtio_net::{self, Gso, Header};
use crate::wire::{PROTOCOL_TCP, ipv4, ipv6};

/// Most descriptors of a frame, empty ones included; one of more is dropped. (Linux uses up to 19.)
const MAX_BUFFERS: usize = 1024;
/// Frames up to this length are copied whole, in bytes: naming the pieces costs more.
const COPIED: usize = 2048;
/// Bytes in which the headers of a larger frame are looked for.
const HEAD: usize = 256;

/// What became of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Its frame is in the batch.
    Taken,
    /// It has none that makes sense.
    Odd,
    /// The batch has no room for it.
    Full,
}

/// Put the frame of `chain` into `batch`; with `whole`, all of its bytes.
pub fn take(
    chain: Chain<'_>,
    memory: &Memory,
    features: Features,
    batch: &mut Inbound,
    whole: bool,
) -> Outcome {
    let mut buffers = ArrayVec::<Segment, MAX_BUFFERS>::new();
    let mut total = 0_usize;
    for (n, buffer) in chain.enumerate() {
        if n >= MAX_BUFFERS {
            return Outcome::Odd;
        }
        if buffer.is_write_only() || buffer.len() == 0 {
            continue;
        }
        // There are no more than it takes.
        let _ = buffers.try_push((buffer.addr(), buffer.len()));
        total = total.saturating_add(usize::try_from(buffer.len()).unwrap_or(usize::MAX));
    }
    let frame = Scattered {
        buffers: &buffers,
        memory,
        start: features.header_len(),
    };
    let len = total.saturating_sub(frame.start);
    if !(ethernet::HEADER_LEN..=SLOT).contains(&len) {
        return Outcome::Odd;
    }
    frame.take(len, batch, whole).unwrap_or(Outcome::Odd)
}

/// A frame in buffers of the guest.
struct Scattered<'a> {
    buffers: &'a [Segment],
    memory: &'a Memory,
    /// Where it begins: behind the virtio-net header.
    start: usize,
}

impl Scattered<'_> {
    fn take(&self, len: usize, batch: &mut Inbound, whole: bool) -> Result<Outcome, Outside> {
        let mut vnet = [0; virtio_net::HEADER_LEN];
        self.copy(0, &mut vnet)?;
        let Ok((header, _)) = Header::parse(&vnet) else {
            return Ok(Outcome::Odd);
        };
        let meta = Meta {
            checksum_settled: header.checksum_settled(),
            gso_size: (header.gso != Gso::None).then_some(header.gso_size),
        };
        let Some(room) = batch.room() else {
            return Ok(Outcome::Full);
        };
        if len > COPIED && !whole && meta.checksum_settled {
            let head = room.get_mut(..HEAD).unwrap_or_default();
            self.copy(self.start, head)?;
            if let Some(end) = headers_end(head) {
                let mut lender = self.memory.lender();
                let lent = self.each(
                    self.start.saturating_add(end),
                    len.saturating_sub(end),
                    |at, n| lender.add(at, n),
                );
                // In too many pieces: copy it after all.
                if lent.is_ok() {
                    return Ok(outcome(lender.commit(batch, end, meta)));
                }
            }
        }
        let Some(room) = batch.room().and_then(|room| room.get_mut(..len)) else {
            return Ok(Outcome::Full);
        };
        self.copy(self.start, room)?;
        batch.commit(0, len, meta);
        Ok(Outcome::Taken)
    }

    /// Copy out from `offset` on, as much as there is room for.
    fn copy(&self, offset: usize, into: &mut [u8]) -> Result<(), Outside> {
        let mut done = 0_usize;
        self.each(offset, into.len(), |address, n| {
            let end = done.saturating_add(n);
            let part = into.get_mut(done..end).ok_or(Outside)?;
            done = end;
            self.memory.read(address, part)
        })
    }

    /// Go over the `len` bytes from `offset` on.
    fn each(
        &self,
        offset: usize,
        len: usize,
        mut each: impl FnMut(GuestAddress, usize) -> Result<(), Outside>,
    ) -> Result<(), Outside> {
        let (mut skip, mut left) = (offset, len);
        for (address, length) in self.buffers {
            if left == 0 {
                break;
            }
            let length = usize::try_from(*length).unwrap_or(usize::MAX);
            let skipped = skip.min(length);
            skip = skip.saturating_sub(skipped);
            let n = length.saturating_sub(skipped).min(left);
            if n > 0 {
                let skipped = u64::try_from(skipped).unwrap_or(u64::MAX);
                let at = address.0.checked_add(skipped).ok_or(Outside)?;
                each(GuestAddress(at), n)?;
                left = left.saturating_sub(n);
            }
        }
        if left == 0 { Ok(()) } else { Err(Outside) }
    }
}

fn outcome(took: bool) -> Outcome {
    if took { Outcome::Taken } else { Outcome::Full }
}

/// Where the payload of an unfragmented TCP segment begins, if its headers are usual ones and all in `head`.
fn headers_end(head: &[u8]) -> Option<usize> {
    const IP: usize = ethernet::HEADER_LEN;
    let ethertype = u16::from_be_bytes(*head.get(12..)?.first_chunk()?);
    let (protocol, tcp) = match ethertype {
        ETHERTYPE_IPV4 => {
            let words = usize::from(head.get(IP)? & 0x0f);
            let fragment = u16::from_be_bytes(*head.get(IP.checked_add(6)?..)?.first_chunk()?);
            // More fragments, or an offset.
            if fragment & 0x3fff != 0 || words < ipv4::HEADER_LEN / 4 {
                return None;
            }
            let tcp = IP.checked_add(words.checked_mul(4)?)?;
            (*head.get(IP.checked_add(9)?)?, tcp)
        }
        ETHERTYPE_IPV6 => (
            *head.get(IP.checked_add(6)?)?,
            IP.checked_add(ipv6::HEADER_LEN)?,
        ),
        _ => return None,
    };
    if protocol != PROTOCOL_TCP {
        return None;
    }
    let words = usize::from(head.get(tcp.checked_add(12)?)? >> 4);
    let end = tcp.checked_add(words.checked_mul(4)?)?;
    (words >= 5 && end <= head.len()).then_some(end)
}
