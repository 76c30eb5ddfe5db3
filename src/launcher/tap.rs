//! The tap, opened inside the target namespace: created, or taken over if somebody made it before us.
//!
//! Frames carry a legacy virtio-net header of ten bytes, and the namespace's kernel may leave checksums and
//! segmentation to us as far as it and we can. What exactly was agreed is in [`TapDevice::offloads`]; the
//! data path asks it and nothing else. The descriptor stays valid when the process that opened it leaves
//! the namespace or loses its capabilities.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::addr::Mac;
use crate::netlink::{self, NetlinkError, Socket};
use crate::sys::tun::{self, Offloads};

/// Bytes of virtio-net header before each frame.
pub const VNET_HEADER_LEN: u8 = 10;

/// A tap of ours.
#[derive(Debug)]
pub struct TapDevice {
    /// Non-blocking, close-on-exec; frames with a virtio-net header of [`VNET_HEADER_LEN`].
    pub fd: OwnedFd,
    /// Interface name in the namespace.
    pub name: String,
    /// Interface index in the namespace.
    pub index: u32,
    /// The guest's link-layer address: the interface's own.
    pub mac: Mac,
    /// What the namespace's kernel may leave to us.
    pub offloads: Offloads,
}

/// There is no tap. One line: the established tool's words, which callers know, then what helps.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The device cannot be opened.
    #[error("{FAILED}: Failed to open() {}: {}{}", tun::DEVICE, .0.desc(), advice_for_device(*.0))]
    Device(Errno),
    /// The device is not what it should be.
    #[error("{FAILED}: {} does not answer as the tun driver does: {}", tun::DEVICE, .0.desc())]
    Driver(Errno),
    /// The interface cannot be had.
    #[error(
        "{FAILED}: TUNSETIFF ioctl on {} failed: {}{}",
        tun::DEVICE, .errno.desc(), advice_for_interface(*.errno, .name)
    )]
    Attach {
        /// Interface name.
        name: String,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The interface is there, but not to be seen.
    #[error("{FAILED}")]
    Netlink(#[from] NetlinkError),
    /// The interface has no Ethernet address, so it is no tap.
    #[error("{FAILED}: {0} has no Ethernet address")]
    NoAddress(String),
}

const FAILED: &str = "Failed to set up tap device in namespace";

fn advice_for_device(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => {
            " (load the driver with \"modprobe tun\"; in a container, add the device with --device /dev/net/tun)"
        }
        Errno::EACCES | Errno::EPERM => {
            " (users need read and write permission on it, usually mode 0666)"
        }
        _ => "",
    }
}

fn advice_for_interface(errno: Errno, name: &str) -> String {
    match errno {
        Errno::EBUSY => format!(" (another process is attached to {name} in this namespace)"),
        Errno::EINVAL => format!(
            " (is there an interface {name} of another kind? choose a name with --ns-ifname)"
        ),
        Errno::EPERM => {
            " (needs CAP_NET_ADMIN in the user namespace that owns the network namespace)"
                .to_owned()
        }
        _ => String::new(),
    }
}

/// Open the tap called `name` in the current network namespace.
///
/// # Errors
/// [`TapError`]; nothing is left behind, an interface we created goes with its descriptor.
pub fn open(name: &str) -> Result<TapDevice, TapError> {
    let fd = tun::open()
        .map_err(|e| TapError::Device(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
    tun::attach(&fd, name).map_err(|errno| TapError::Attach {
        name: name.to_owned(),
        errno,
    })?;
    tun::set_header_len(&fd, VNET_HEADER_LEN).map_err(TapError::Driver)?;
    let offloads = tun::offload(&fd).map_err(TapError::Driver)?;
    let link = netlink::link_by_name(&mut Socket::open()?, name)?;
    Ok(TapDevice {
        fd,
        mac: link
            .mac
            .ok_or_else(|| TapError::NoAddress(name.to_owned()))?,
        index: link.index,
        name: link.name,
        offloads,
    })
}
