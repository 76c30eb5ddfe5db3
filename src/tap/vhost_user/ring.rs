//! One ring: what the frontend has said about it, and the way through it (virtio 1.2 section 2.7, split virtqueues).
//!
//! The half that the driver writes, the available ring and the descriptors, is read by the `virtio-queue` crate, which
//! checks every index and every address. The half that we write is done here, because of one rule the crate's
//! `add_used` cannot keep: the buffers of a frame that spans several must become visible *together* (5.1.6.4: the
//! driver takes `num_buffers` of them at once), and it is cheaper to show a whole round at once anyway. So
//! [`Ring::done`] writes elements, [`Ring::publish`] moves the index, [`Ring::notify`] raises the interrupt if the
//! driver wants one.
//!
//! A ring is *usable* when it has been started (it has a kick, or none on purpose), is enabled, and lies wholly in
//! memory that is mapped. Anything that is changed puts it through [`Ring::bind`] again. A driver that breaks the rules
//! (an index that jumps, a head beyond the ring) only loses its own connection: [`Gone::Malformed`].

use std::num::Wrapping;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use nix::errno::Errno;
use vhost::vhost_user::message::VhostUserVringAddr;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::features::Features;
use super::memory::{Memory, Outside};
use crate::sys::shared::{self, Kind};
use crate::tap::Gone;

/// Most entries of a ring (virtio 1.2 section 2.7).
pub const MAX_SIZE: u16 = 32_768;

/// Available ring, flags: the driver wants no interrupts (without event index).
const NO_INTERRUPT: u16 = 1;
/// Ring headers: flags and index, 16 bits each.
const HEADER: u64 = 4;

/// One buffer of a chain: guest address and length in bytes.
pub type Segment = (GuestAddress, u32);

/// A chain the driver has made available, its segments unread.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap<()>>;

/// How we hear of new buffers.
#[derive(Debug)]
enum Kick {
    /// The ring has not been started.
    Stopped,
    /// Not at all: the frontend expects us to look.
    Polled,
    /// By this descriptor.
    By(OwnedFd),
}

/// Where the frontend says the three parts are, in its own space.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    descriptors: u64,
    available: u64,
    used: u64,
}

/// One vring.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    size: u16,
    addresses: Option<Addresses>,
    kick: Kick,
    call: Option<OwnedFd>,
    enabled: bool,
    /// It was found in memory.
    bound: bool,
    /// It was usable when last looked at.
    running: bool,
    features: Features,
    available: GuestAddress,
    used: GuestAddress,
    /// Where the next used element goes; what the driver can see of it; what it was last told about.
    next_used: Wrapping<u16>,
    shown: Wrapping<u16>,
    told: Wrapping<u16>,
}

/// Add one to an eventfd. It cannot be full but by somebody's tricks, and then it is readable anyway.
fn raise(fd: &OwnedFd) {
    while nix::unistd::write(fd, &1_u64.to_ne_bytes()) == Err(Errno::EINTR) {}
}

/// What is to be written to must be nothing but an eventfd: anything else might make us wait.
fn eventfd(fd: OwnedFd) -> Result<OwnedFd, Gone> {
    let known = shared::kind(&fd).is_ok_and(|kind| kind == Kind::Anonymous);
    if known && shared::never_wait(&fd).is_ok() {
        Ok(fd)
    } else {
        Err(Gone::Malformed("kick or call that is no eventfd"))
    }
}

/// `offset` bytes on; inside a ring that was found in memory this cannot wrap.
const fn behind(start: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(start.0.wrapping_add(offset))
}

impl Ring {
    /// A ring of which nothing is known yet.
    ///
    /// # Errors
    /// None in practice: the largest size is a valid one.
    pub fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(MAX_SIZE)?,
            size: 0,
            addresses: None,
            kick: Kick::Stopped,
            call: None,
            enabled: false,
            bound: false,
            running: false,
            features: Features::default(),
            available: GuestAddress(0),
            used: GuestAddress(0),
            next_used: Wrapping(0),
            shown: Wrapping(0),
            told: Wrapping(0),
        })
    }

    /// SET_VRING_NUM.
    ///
    /// # Errors
    /// [`Gone::Malformed`] unless it is a power of two up to [`MAX_SIZE`].
    pub fn set_size(&mut self, size: u32) -> Result<(), Gone> {
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= MAX_SIZE => {
                self.size = size;
                self.unbind();
                Ok(())
            }
            _ => Err(Gone::Malformed("ring of an impossible size")),
        }
    }

    /// SET_VRING_ADDR.
    pub fn set_addresses(&mut self, message: &VhostUserVringAddr) {
        self.addresses = Some(Addresses {
            descriptors: message.descriptor,
            available: message.available,
            used: message.used,
        });
        self.unbind();
    }

    /// SET_VRING_BASE: where to go on.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if it is no index of a split ring.
    pub fn set_base(&mut self, base: u32) -> Result<(), Gone> {
        let base = u16::try_from(base).map_err(|_| Gone::Malformed("invalid index of a ring"))?;
        self.queue.set_next_avail(base);
        self.unbind();
        Ok(())
    }

    /// SET_VRING_KICK: this starts the ring. The one before must no longer be watched.
    ///
    /// # Errors
    /// As [`Self::set_call`].
    pub fn set_kick(&mut self, kick: Option<OwnedFd>) -> Result<(), Gone> {
        self.kick = match kick {
            Some(fd) => Kick::By(eventfd(fd)?),
            None => Kick::Polled,
        };
        // What came before is to be looked for.
        self.running = false;
        Ok(())
    }

    /// SET_VRING_CALL. What was used before may have been told to the descriptor that is replaced here, when the driver
    /// did not listen to that one yet; it would wait for ever for an index that has been passed. So the
    /// new one is told at once, which costs a driver that knows already a look at the ring.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if it is nothing that can be an eventfd: writing to anything else might wait.
    pub fn set_call(&mut self, call: Option<OwnedFd>) -> Result<(), Gone> {
        self.call = call.map(eventfd).transpose()?;
        if let Some(call) = self.call.as_ref().filter(|_| self.bound) {
            raise(call);
            self.told = self.shown;
        }
        Ok(())
    }

    /// SET_VRING_ENABLE.
    pub fn enable(&mut self, on: bool) {
        self.enabled = on;
    }

    /// Stop: where we are in the available ring. The kick must no longer be watched.
    pub fn stop(&mut self) -> u16 {
        self.kick = Kick::Stopped;
        self.unbind();
        self.queue.next_avail()
    }

    /// The kick to watch.
    #[must_use]
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        match &self.kick {
            Kick::By(fd) => Some(fd.as_fd()),
            Kick::Stopped | Kick::Polled => None,
        }
    }

    /// Nobody will tell us of new buffers.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.is_usable() && matches!(self.kick, Kick::Polled)
    }

    /// May frames go through it?
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.bound && (self.enabled || !self.features.rings_begin_disabled())
    }

    /// Whatever has changed, see whether the ring can be used. `true`: now it can, and could not before.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn settle(&mut self, memory: &Memory, features: Features) -> Result<bool, Gone> {
        self.bind(memory, features)?;
        let now = self.is_usable();
        let before = std::mem::replace(&mut self.running, now);
        Ok(now && !before)
    }

    /// Something has changed: find the ring again before it is used, and look into it then.
    pub fn unbind(&mut self) {
        self.bound = false;
        self.running = false;
    }

    /// If all of it is known and it has been started, find it in `memory`.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if it is not there, or not aligned.
    fn bind(&mut self, memory: &Memory, features: Features) -> Result<(), Gone> {
        let Some(at) = self.addresses else {
            return Ok(());
        };
        if self.bound || self.size == 0 || matches!(self.kick, Kick::Stopped) {
            return Ok(());
        }
        let size = u64::from(self.size);
        let descriptors = memory.locate(at.descriptors, size.saturating_mul(16))?;
        // Either ring ends with the event index of the other side.
        let length = |element: u64| size.saturating_mul(element).saturating_add(HEADER + 2);
        self.available = memory.locate(at.available, length(2))?;
        self.used = memory.locate(at.used, length(8))?;
        let placed = self
            .queue
            .try_set_size(self.size)
            .and_then(|()| self.queue.try_set_desc_table_address(descriptors))
            .and_then(|()| self.queue.try_set_avail_ring_address(self.available))
            .and_then(|()| self.queue.try_set_used_ring_address(self.used));
        placed.map_err(|_| Gone::Malformed("ring that is not aligned"))?;
        self.queue.set_event_idx(features.event_index());
        self.queue.set_ready(true);
        self.features = features;
        let index = memory
            .guest()
            .load(behind(self.used, 2), Ordering::Acquire)
            .map(u16::from_le)
            .map_err(|_| Outside)?;
        self.next_used = Wrapping(index);
        self.shown = self.next_used;
        self.told = self.next_used;
        self.bound = true;
        Ok(())
    }

    /// The chains that are available, the oldest first; taking one out of the iterator takes it.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if there are more than the ring can hold.
    pub fn chains<'a>(
        &mut self,
        memory: &'a Memory,
    ) -> Result<impl Iterator<Item = Chain<'a>>, Gone> {
        (self.queue.iter(memory.guest())).map_err(|_| Gone::Malformed("available index that jumps"))
    }

    /// Give back the last `n` chains taken: they are available again.
    pub fn give_back(&mut self, n: u16) {
        let next = Wrapping(self.queue.next_avail());
        // Wraps around like the index itself.
        let before = next.0.wrapping_sub(n);
        self.queue.set_next_avail(before);
    }

    /// We are done with the chain that begins at `head`, and have written `len` bytes to it. The driver does not
    /// see that yet.
    ///
    /// # Errors
    /// [`Gone::Malformed`] if the ring has no such descriptor, or is gone.
    pub fn done(&mut self, memory: &Memory, head: u16, len: u32) -> Result<(), Gone> {
        if head >= self.size {
            return Err(Gone::Malformed("descriptor beyond the end of a ring"));
        }
        let slot = u64::from(self.next_used.0.checked_rem(self.size).unwrap_or(0));
        let at = behind(self.used, slot.saturating_mul(8).saturating_add(HEADER));
        let [i0, i1] = head.to_le_bytes();
        let [l0, l1, l2, l3] = len.to_le_bytes();
        memory.write(at, &[i0, i1, 0, 0, l0, l1, l2, l3])?;
        self.next_used = Wrapping(self.next_used.0.wrapping_add(1));
        Ok(())
    }

    /// Let the driver see what is done.
    ///
    /// # Errors
    /// [`Outside`] if the ring is gone.
    pub fn publish(&mut self, memory: &Memory) -> Result<(), Outside> {
        if self.shown == self.next_used {
            return Ok(());
        }
        self.shown = self.next_used;
        let index = self.shown.0.to_le();
        memory
            .guest()
            .store(index, behind(self.used, 2), Ordering::Release)
            .map_err(|_| Outside)
    }

    /// Interrupt the driver if it has not seen what was published, and wants to know.
    ///
    /// # Errors
    /// [`Outside`] if the ring is gone.
    pub fn notify(&mut self, memory: &Memory) -> Result<(), Outside> {
        if self.told == self.shown {
            return Ok(());
        }
        // The index must be visible before we look at what the driver wants.
        fence(Ordering::SeqCst);
        let wanted = if self.features.event_index() {
            let end = u64::from(self.size)
                .saturating_mul(2)
                .saturating_add(HEADER);
            let event = self.load(memory, behind(self.available, end))?;
            // virtio 1.2 section 2.7.7.2, and include/uapi/linux/virtio_ring.h: has the index gone past the event?
            self.shown.0.wrapping_sub(event).wrapping_sub(1)
                < self.shown.0.wrapping_sub(self.told.0)
        } else {
            self.load(memory, self.available)? & NO_INTERRUPT == 0
        };
        self.told = self.shown;
        if let Some(call) = self.call.as_ref().filter(|_| wanted) {
            raise(call);
        }
        Ok(())
    }

    fn load(&self, memory: &Memory, at: GuestAddress) -> Result<u16, Outside> {
        memory
            .guest()
            .load(at, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|_| Outside)
    }

    /// We are going to look by ourselves: no kicks, please. With an event index there is nothing to do for it.
    ///
    /// # Errors
    /// [`Outside`] if the ring is gone.
    pub fn attend(&mut self, memory: &Memory) -> Result<(), Outside> {
        self.queue
            .disable_notification(memory.guest())
            .map_err(|_| Outside)
    }

    /// We stop looking and want to be kicked. `true`: something has come in the meantime, so look again.
    ///
    /// # Errors
    /// [`Outside`] if the ring is gone.
    pub fn leave(&mut self, memory: &Memory) -> Result<bool, Outside> {
        self.queue
            .enable_notification(memory.guest())
            .map_err(|_| Outside)
    }
}
