//! The guest's memory, mapped here by leave of the frontend.
//!
//! The guest and the frontend write to it whenever they like, so no `&[u8]` over it may ever exist: what is needed is
//! copied out once and judged there, and what only passes through is handed to the kernel as a pointer and a
//! length ([`Piece`], [`Room`]). This file makes those two, and is the only one beside `sys` with `unsafe` in it; reading,
//! writing and bounds are the `vm-memory` crate's.
//!
//! Two sorts of addresses come in. Descriptors name *guest* addresses; the frontend names rings by addresses in
//! its *own* space. Both are looked up in the table of regions for every access; one that is not all inside is refused.
#![allow(
    unsafe_code,
    reason = "pointers into guest memory for the kernel to read from and write to"
)]

use std::sync::Arc;

use arrayvec::ArrayVec;
use nix::errno::Errno;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
    Permissions, VolatileSlice,
};

use super::protocol::{MAX_REGIONS, Table};
use crate::sys::piece::Piece;
use crate::sys::process;
use crate::sys::shared::{self, Kind, Room};
use crate::tap::Gone;
use crate::tap::batch::{Inbound, Meta};

/// Kept at hand for the tables of two mappings, the new one and the one it replaces: some hundred bytes for each of
/// [`MAX_REGIONS`]. The filter has no call to get more from.
const RESERVE: usize = 32 << 10;
/// Most pieces of a frame, besides its head: no payload has more.
const MAX_LENT: usize = 60;

/// The mapping; cheap to clone. Unmapped when the last clone goes.
#[derive(Clone, Debug)]
pub struct Memory {
    mapped: Arc<Mapped>,
    regions: ArrayVec<Region, MAX_REGIONS>,
}

/// What the frontend named, and what was mapped for it: a file in huge pages is mapped by the page whatever was
/// asked for, and munmap(2) refuses to take less away.
#[derive(Debug)]
struct Mapped {
    /// Views of the others, so it is declared, and goes, before them.
    guest: GuestMemoryMmap<()>,
    _pages: ArrayVec<MmapRegion<()>, MAX_REGIONS>,
}

/// Where a region of guest memory is in the frontend's space.
#[derive(Clone, Copy, Debug)]
struct Region {
    frontend: u64,
    guest: u64,
    size: u64,
}

/// An address, or a range from it on, that is not in the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outside;

impl From<Outside> for Gone {
    fn from(_: Outside) -> Self {
        Self::Malformed("address outside of the guest's memory")
    }
}

/// To be called before confinement, where there is going to be a mapping.
pub fn reserve() {
    process::reserve_heap(RESERVE);
}

impl Memory {
    /// Map what the frontend offers.
    ///
    /// # Errors
    /// [`Gone::Malformed`] for what is no file, a file that is shorter than its region, or regions that overlap;
    /// [`Gone::Failed`] as mmap(2).
    pub fn map(mut table: Table) -> Result<Self, Gone> {
        table.sort_unstable_by_key(|(region, _)| region.guest_phys_addr);
        let mut regions = ArrayVec::new();
        let mut pages = ArrayVec::new();
        let mut maps = Vec::with_capacity(table.len());
        for (region, fd) in table {
            let Ok(Kind::File { length, block }) = shared::kind(&fd) else {
                return Err(Gone::Malformed("memory that is not in a file"));
            };
            let end = region.mmap_offset.checked_add(region.memory_size);
            if end.is_none_or(|end| end > length) {
                return Err(Gone::Malformed("region beyond the end of its file"));
            }
            let size = usize::try_from(region.memory_size)
                .ok()
                .and_then(|size| Some((size, size.checked_next_multiple_of(block)?)));
            let (size, whole) = size.ok_or(Gone::Malformed("region larger than memory can be"))?;
            let file = FileOffset::new(fd.into(), region.mmap_offset);
            let map = MmapRegion::<()>::from_file(file, whole)
                .map_err(|_| Gone::Failed(Errno::last()))?;
            // SAFETY: `size` bytes of a mapping that lives longer than this, see `Mapped`.
            let view =
                unsafe { MmapRegion::build_raw(map.as_ptr(), size, map.prot(), map.flags()) }
                    .map_err(|_| Gone::Failed(Errno::EINVAL))?;
            let view = GuestRegionMmap::new(view, GuestAddress(region.guest_phys_addr))
                .ok_or(Gone::Malformed("region that wraps around"))?;
            pages.push(map);
            maps.push(view);
            regions.push(Region {
                frontend: region.user_addr,
                guest: region.guest_phys_addr,
                size: region.memory_size,
            });
        }
        let guest = GuestMemoryMmap::from_regions(maps)
            .map_err(|_| Gone::Malformed("regions that overlap"))?;
        let mapped = Mapped {
            guest,
            _pages: pages,
        };
        Ok(Self {
            mapped: Arc::new(mapped),
            regions,
        })
    }

    /// What the queue of the `virtio-queue` crate works on.
    #[must_use]
    pub fn guest(&self) -> &GuestMemoryMmap<()> {
        &self.mapped.guest
    }

    /// The guest address of what the frontend calls `address`, for `len` bytes in one region.
    ///
    /// # Errors
    /// [`Outside`].
    pub fn locate(&self, address: u64, len: u64) -> Result<GuestAddress, Outside> {
        self.regions
            .iter()
            .find_map(|r| {
                let offset = address.checked_sub(r.frontend)?;
                let inside = offset.checked_add(len)? <= r.size;
                inside.then_some(GuestAddress(r.guest.checked_add(offset)?))
            })
            .ok_or(Outside)
    }

    /// Copy out `into.len()` bytes from `address` on.
    ///
    /// # Errors
    /// [`Outside`].
    pub fn read(&self, address: GuestAddress, into: &mut [u8]) -> Result<(), Outside> {
        self.guest().read_slice(into, address).map_err(|_| Outside)
    }

    /// Copy `bytes` to `address`.
    ///
    /// # Errors
    /// [`Outside`].
    pub fn write(&self, address: GuestAddress, bytes: &[u8]) -> Result<(), Outside> {
        self.guest()
            .write_slice(bytes, address)
            .map_err(|_| Outside)
    }

    /// Begin to lend memory to a batch.
    #[must_use]
    pub fn lender(&self) -> Lender<'_> {
        Lender {
            memory: self,
            pieces: ArrayVec::new(),
        }
    }

    /// `len` bytes from `address` on, for the kernel to write to. Several calls of `each` where regions meet.
    ///
    /// # Errors
    /// [`Outside`], perhaps after `each` has been called.
    pub fn rooms<'a>(
        &'a self,
        address: GuestAddress,
        len: usize,
        mut each: impl FnMut(Room<'a>),
    ) -> Result<(), Outside> {
        self.slices(address, len, Permissions::Write, |slice| {
            let at = slice.ptr_guard_mut();
            // SAFETY: vm-memory has checked that this is inside a mapping, all of which are writable, and which lives as
            // long as `self`; the crate makes no references to it either.
            each(unsafe { Room::new(at.as_ptr(), at.len()) });
        })
    }

    fn slices<'a>(
        &'a self,
        address: GuestAddress,
        len: usize,
        access: Permissions,
        mut each: impl FnMut(VolatileSlice<'a>),
    ) -> Result<(), Outside> {
        let memory: &'a GuestMemoryMmap<()> = self.guest();
        for slice in GuestMemory::get_slices(memory, address, len, access).map_err(|_| Outside)? {
            each(slice.map_err(|_| Outside)?);
        }
        Ok(())
    }
}

/// The rest of a frame, where the guest has it. The pieces leave this file only in a batch that keeps the mapping.
#[derive(Debug)]
pub struct Lender<'a> {
    memory: &'a Memory,
    pieces: ArrayVec<Piece<'static>, MAX_LENT>,
}

impl Lender<'_> {
    /// Add `len` bytes from `address` on.
    ///
    /// # Errors
    /// [`Outside`] of memory, or in more pieces than a payload can have.
    pub fn add(&mut self, address: GuestAddress, len: usize) -> Result<(), Outside> {
        let Self { memory, pieces } = self;
        let mut full = false;
        memory.slices(address, len, Permissions::Read, |slice| {
            let at = slice.ptr_guard();
            // SAFETY: vm-memory has checked that this is inside a mapping. The piece goes nowhere but into a batch that
            // holds the mapping as long as it has the piece.
            let piece = unsafe { Piece::shared(at.as_ptr(), at.len()) };
            full |= pieces.try_push(piece).is_err();
        })?;
        if full { Err(Outside) } else { Ok(()) }
    }

    /// Put a frame into the batch: a head of `len` bytes at the start of its room, then what was added. `false`: there is no
    /// room for it.
    pub fn commit(self, batch: &mut Inbound, len: usize, meta: Meta) -> bool {
        batch.hold(self.memory.mapped.clone());
        batch.commit_head(0, len, &self.pieces, meta)
    }
}
