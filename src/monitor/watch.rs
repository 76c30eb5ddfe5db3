//! Noticing that the target namespace is gone.
//!
//! The tap cannot tell: it keeps the namespace alive and stays writable. So the watch is on what names
//! the namespace. A path in an ordinary file system is watched through its directory by inotify; a path in
//! procfs, and a PID, through the process's pidfd. Where neither can be had, the name is looked
//! up ten times a second through a descriptor of its directory.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::AtFlags;
use nix::sys::inotify::{AddWatchFlags, Inotify};
use nix::sys::stat::fstatat;

/// What to wait for.
#[derive(Debug)]
pub enum Watch {
    /// Nothing: `--no-netns-quit`, or a command of our own.
    Nothing,
    /// The end of a process.
    Process(OwnedFd),
    /// Removal of `name` from the watched directory, or of the directory.
    Directory {
        /// With one watch, on the directory.
        inotify: Inotify,
        /// Last component of the path.
        name: OsString,
    },
    /// As `Directory`, where no notification can be had.
    Lookup {
        /// `O_PATH` descriptor of the directory.
        directory: OwnedFd,
        /// Last component of the path.
        name: OsString,
    },
}

/// How often a name is looked up. A user with many containers has no inotify instance left (the kernel's limit is 128, and
/// conmon has some of them too), and `podman restart` wants our ports back well within the time that a start waits for
/// ports.
const INTERVAL: Duration = Duration::from_millis(100);

impl Watch {
    /// Events a [`Watch::Directory`] needs.
    #[must_use]
    pub fn events() -> AddWatchFlags {
        AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Nothing | Self::Lookup { .. } => None,
            Self::Process(pidfd) => Some(pidfd.as_fd()),
            Self::Directory { inotify, .. } => Some(inotify.as_fd()),
        }
    }

    /// Longest wait between two calls of [`Watch::gone`], if there is one.
    pub(super) const fn interval(&self) -> Option<Duration> {
        match self {
            Self::Lookup { .. } => Some(INTERVAL),
            _ => None,
        }
    }

    /// The namespace is gone. `ready`: our descriptor, if we have one, is readable.
    pub(super) fn gone(&self, ready: bool) -> bool {
        match self {
            Self::Nothing => false,
            Self::Process(_) => ready,
            Self::Directory { inotify, name } => ready && removed(inotify, name),
            Self::Lookup { directory, name } => {
                fstatat(directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_err()
            }
        }
    }
}

fn removed(inotify: &Inotify, name: &OsString) -> bool {
    let about_directory = AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_IGNORED
        | AddWatchFlags::IN_UNMOUNT;
    let Ok(events) = inotify.read_events() else {
        return false;
    };
    // An overflow may have hidden the event we wait for; erring towards the end would cut a live network.
    events
        .iter()
        .any(|event| event.mask.intersects(about_directory) || event.name.as_ref() == Some(name))
}

#[cfg(test)]
mod tests {
    use nix::sys::inotify::InitFlags;

    use super::*;

    fn watch(directory: &std::path::Path, name: &str) -> Watch {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        inotify
            .add_watch(directory, Watch::events())
            .expect("watch");
        Watch::Directory {
            inotify,
            name: name.into(),
        }
    }

    #[test]
    fn only_the_watched_name_and_its_directory_matter() {
        let base = std::env::temp_dir().join(format!("passt-watch-test-{}", std::process::id()));
        std::fs::create_dir(&base).expect("mkdir");
        for name in ["ours", "other", "moved"] {
            std::fs::write(base.join(name), "").expect("create");
        }
        let ours = watch(&base, "ours");
        let moved = watch(&base, "moved");
        let last = watch(&base, "last");
        std::fs::remove_file(base.join("other")).expect("remove");
        assert!(!ours.gone(true));
        std::fs::remove_file(base.join("ours")).expect("remove");
        assert!(ours.gone(true));
        std::fs::rename(base.join("moved"), base.join("elsewhere")).expect("rename");
        assert!(moved.gone(true));
        std::fs::remove_file(base.join("elsewhere")).expect("remove");
        std::fs::remove_dir(&base).expect("rmdir");
        assert!(last.gone(true));
    }
}
