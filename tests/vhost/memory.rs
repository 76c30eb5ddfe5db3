//! Memory of a guest that exists only as a file: a memfd, mapped here and, once its table has been sent, there.
//!
//! A place in it has three names. *Offset* is where it is in the file, and what this suite computes with. Rings hold
//! *guest physical* addresses, and the messages that say where the rings are hold *user* addresses, those of the
//! frontend's own mapping. The three differ by constants that have nothing in common, so that whoever takes one for
//! another misses the memory altogether.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::bytes::Bytes;
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, VolatileMemory};

/// Guest physical address of offset 0: a hole below it, as below the PCI hole of a real machine.
pub const PHYSICAL: u64 = 0x1_0000_0000;
/// User address of offset 0.
pub const USER: u64 = 0x7f12_3450_0000;

/// The guest's memory, and how much of it is in use.
#[derive(Debug)]
pub struct Memory {
    pub file: File,
    map: MmapRegion,
    len: usize,
    next: AtomicUsize,
}

impl Memory {
    pub fn new(len: usize) -> Arc<Memory> {
        let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        let file = File::from(fd);
        file.set_len(len as u64).expect("a sparse file");
        let again = file.try_clone().expect("a descriptor");
        let map = MmapRegion::from_file(FileOffset::new(again, 0), len).expect("a mapping");
        Arc::new(Memory {
            file,
            map,
            len,
            next: AtomicUsize::new(0),
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// A fresh piece of `len` bytes.
    pub fn take(&self, len: usize, align: usize) -> usize {
        let at = self.next.load(Ordering::Relaxed).next_multiple_of(align);
        assert!(
            at + len <= self.len,
            "the guest of this test needs more memory"
        );
        self.next.store(at + len, Ordering::Relaxed);
        at
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        let all = self.map.as_volatile_slice();
        all.write_slice(bytes, at).expect("inside");
    }

    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let all = self.map.as_volatile_slice();
        all.read_slice(bytes, at).expect("inside");
    }

    pub fn store16(&self, at: usize, value: u16) {
        let all = self.map.as_volatile_slice();
        all.store(value.to_le(), at, Ordering::SeqCst)
            .expect("inside");
    }

    pub fn load16(&self, at: usize) -> u16 {
        let all = self.map.as_volatile_slice();
        u16::from_le(all.load(at, Ordering::SeqCst).expect("inside"))
    }

    pub fn load32(&self, at: usize) -> u32 {
        let all = self.map.as_volatile_slice();
        u32::from_le(all.load(at, Ordering::SeqCst).expect("inside"))
    }

    pub fn physical(&self, at: usize) -> u64 {
        PHYSICAL + at as u64
    }

    pub fn user(&self, at: usize) -> u64 {
        USER + at as u64
    }

    /// The part of the memory from `at` on, as the memory table names it.
    pub fn region(&self, at: usize, len: usize) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.physical(at),
            memory_size: len as u64,
            userspace_addr: self.user(at),
            mmap_offset: at as u64,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn whole(&self) -> VhostUserMemoryRegionInfo {
        self.region(0, self.len)
    }
}
