//! An empty root: a read-only tmpfs with room for nothing, and the old root gone.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

/// Somewhere to put the new root for a moment; the first that exists will do.
const MOUNT_POINTS: [&str; 5] = ["/tmp", "/proc", "/dev", "/run", "/"];

/// Make the root of this process's own mount namespace an empty directory.
///
/// Mounts are made unbindable, and so private, first: nothing done here may reach the namespace this
/// one was copied from.
pub(super) fn empty_root() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(
        NONE,
        "/",
        NONE,
        MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
        NONE,
    )?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_RDONLY;
    let mut last = nix::errno::Errno::ENOENT;
    for place in MOUNT_POINTS {
        match mount(
            Some("none"),
            place,
            Some("tmpfs"),
            flags,
            Some("nr_inodes=2,nr_blocks=0,mode=555"),
        ) {
            Ok(()) => return enter(place),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn enter(place: &str) -> nix::Result<()> {
    chdir(place)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}
