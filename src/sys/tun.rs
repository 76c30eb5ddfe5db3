//! The tun/tap driver's control calls (Linux Documentation/networking/tuntap.rst, drivers/net/tun.c).
//!
//! A descriptor of `/dev/net/tun` belongs to the network namespace its opener was in, and becomes one queue
//! of an interface by TUNSETIFF: of a new one, which lasts as long as the descriptor, or of an existing
//! persistent one. What the reader can take (checksums left to do, frames larger than the MTU) is told by
//! TUNSETOFFLOAD and may differ from kernel to kernel, hence a ladder from all to none.

#![allow(unsafe_code, reason = "ioctl(2) on a tun descriptor")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;

/// Where the driver lives.
pub const DEVICE: &str = "/dev/net/tun";
/// Longest interface name, in bytes.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

mod ioctl {
    use nix::libc::{c_int, c_uint, ifreq};

    // The driver's header declares TUNSETIFF as taking an int; it takes a struct ifreq.
    nix::ioctl_write_ptr_bad!(
        set_iff,
        nix::request_code_write!(b'T', 202, size_of::<c_int>()),
        ifreq
    );
    nix::ioctl_read!(get_features, b'T', 207, c_uint);
    nix::ioctl_write_int_bad!(
        set_offload,
        nix::request_code_write!(b'T', 208, size_of::<c_uint>())
    );
    nix::ioctl_write_ptr!(set_header_len, b'T', 216, c_int);
    nix::ioctl_write_int_bad!(
        set_persist,
        nix::request_code_write!(b'T', 203, size_of::<c_int>())
    );
}

/// What the reader of the tap accepts, and so what the namespace's kernel leaves undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Packets with only a partial checksum; without it none of the others.
    pub csum: bool,
    /// TCP over IPv4 in super-frames.
    pub tso4: bool,
    /// TCP over IPv6 in super-frames.
    pub tso6: bool,
    /// ... also when they carry ECN marks.
    pub tso_ecn: bool,
    /// UDP in super-frames, both families (Linux 6.2).
    pub uso: bool,
}

impl Offloads {
    /// Everything we can take.
    pub const ALL: Self = Self {
        csum: true,
        tso4: true,
        tso6: true,
        tso_ecn: true,
        uso: true,
    };

    /// `TUN_F_*` of `linux/if_tun.h`.
    fn bits(self) -> u16 {
        const CSUM: u16 = 0x01;
        const TSO4: u16 = 0x02;
        const TSO6: u16 = 0x04;
        const TSO_ECN: u16 = 0x08;
        const USO4: u16 = 0x20;
        const USO6: u16 = 0x40;
        [
            (self.csum, CSUM),
            (self.tso4, TSO4),
            (self.tso6, TSO6),
            (self.tso_ecn, TSO_ECN),
            (self.uso, USO4 | USO6),
        ]
        .into_iter()
        .filter(|o| o.0)
        .fold(0, |bits, o| bits | o.1)
    }
}

/// Open `/dev/net/tun`, non-blocking, for the current network namespace.
///
/// # Errors
/// As open(2): ENOENT without the device node, ENODEV or ENXIO without the driver, EACCES, EPERM.
pub fn open() -> io::Result<OwnedFd> {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)?;
    Ok(file.into())
}

/// The `IFF_*` capabilities of the driver (TUNGETFEATURES).
///
/// # Errors
/// EBADFD or ENOTTY if this is no tun descriptor.
pub fn features(tun: impl AsFd) -> Result<u32, Errno> {
    let mut features: libc::c_uint = 0;
    // SAFETY: the kernel writes one unsigned int, to which the reference is exclusive for the call.
    unsafe { ioctl::get_features(tun.as_fd().as_raw_fd(), &raw mut features) }?;
    Ok(features)
}

/// Make the descriptor a queue of the tap called `name`, created if it does not exist; frames come and go
/// with a virtio-net header and without any other.
///
/// # Errors
/// TUNSETIFF's: EBUSY if somebody else has it, EINVAL if the name is taken by another kind of interface or the
/// driver lacks virtio-net headers (Linux 2.6.27), EPERM without CAP_NET_ADMIN in the namespace.
pub fn attach(tun: impl AsFd, name: &str) -> Result<(), Errno> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    match set_iff(&tun, name, flags) {
        // A persistent tap made with several queues wants to be asked for one of them.
        Err(Errno::EINVAL) => set_iff(&tun, name, flags | libc::IFF_MULTI_QUEUE),
        other => other,
    }
}

fn set_iff(tun: &impl AsFd, name: &str, flags: libc::c_int) -> Result<(), Errno> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
        return Err(Errno::EINVAL);
    }
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut request = libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(flags).map_err(|_| Errno::EINVAL)?,
        },
    };
    // SAFETY: `request` is a whole struct ifreq with a terminated name, exclusively ours during the call; the
    // kernel reads it and writes the final name back.
    unsafe { ioctl::set_iff(tun.as_fd().as_raw_fd(), &raw mut request) }?;
    Ok(())
}

/// Let the interface outlive its last descriptor, until its network namespace goes.
///
/// # Errors
/// TUNSETPERSIST's: EBADFD if this is no attached tap.
pub fn set_persistent(tun: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the call, and the argument is an integer.
    unsafe { ioctl::set_persist(tun.as_fd().as_raw_fd(), 1) }?;
    Ok(())
}

/// Length of the header of each frame: 10 (legacy) or 12 bytes (with `num_buffers`).
///
/// # Errors
/// EINVAL if it is shorter than 10.
pub fn set_header_len(tun: impl AsFd, len: u8) -> Result<(), Errno> {
    let len = libc::c_int::from(len);
    // SAFETY: the kernel reads one int, alive during the call.
    unsafe { ioctl::set_header_len(tun.as_fd().as_raw_fd(), &raw const len) }?;
    Ok(())
}

/// Accept as much as this kernel offers; returns what that is.
///
/// # Errors
/// Only if the kernel refuses to have nothing offloaded, which means this is no attached tap.
pub fn offload(tun: impl AsFd) -> Result<Offloads, Errno> {
    let mut last = Errno::EINVAL;
    for candidate in ladder() {
        // SAFETY: the argument is a number; no memory is involved.
        match unsafe { ioctl::set_offload(tun.as_fd().as_raw_fd(), candidate.bits().into()) } {
            Ok(_) => return Ok(candidate),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// From everything to nothing, in the order in which kernels learned it.
fn ladder() -> [Offloads; 5] {
    let all = Offloads::ALL;
    let no_uso = Offloads { uso: false, ..all };
    let no_ecn = Offloads {
        tso_ecn: false,
        ..no_uso
    };
    let csum = Offloads {
        csum: true,
        ..Offloads::default()
    };
    [all, no_uso, no_ecn, csum, Offloads::default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offload_bits_are_the_drivers() {
        assert_eq!(Offloads::ALL.bits(), 0x6f);
        assert_eq!(ladder().map(Offloads::bits), [0x6f, 0x0f, 0x07, 0x01, 0]);
    }

    #[test]
    fn names_that_do_not_fit_never_reach_the_kernel() {
        let null = File::open("/dev/null").unwrap();
        for name in ["", "0123456789abcdef", "a\0b"] {
            assert_eq!(attach(&null, name), Err(Errno::EINVAL), "{name:?}");
        }
        assert_eq!(attach(&null, "tap0"), Err(Errno::ENOTTY));
        assert_eq!(offload(&null), Err(Errno::ENOTTY));
        assert_eq!(features(&null), Err(Errno::ENOTTY));
        assert_eq!(set_header_len(&null, 10), Err(Errno::ENOTTY));
    }
}
