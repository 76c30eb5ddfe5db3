//! User and group ids, and their maps in user namespaces (user_namespaces(7)).

use std::fs::OpenOptions;
use std::io::{self, Write};

use nix::unistd::{Gid, Pid, Uid, getegid, geteuid};

/// One user and one group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// User.
    pub uid: Uid,
    /// Group.
    pub gid: Gid,
}

impl Ids {
    /// Effective ids of this process. Read them *before* entering a new user namespace: after it they
    /// are the overflow ids until a map exists.
    #[must_use]
    pub fn current() -> Self {
        Self {
            uid: geteuid(),
            gid: getegid(),
        }
    }
}

/// Map `ids` to themselves in the user namespace this process has just made.
pub fn map_self(ids: Ids) -> io::Result<()> {
    let (uid, gid) = (ids.uid.as_raw(), ids.gid.as_raw());
    write_maps("self", (uid, uid), (gid, gid), false)
}

/// Map root inside to `ids` outside, for the user namespace of our child `pid`. With `setgroups`, which
/// needs CAP_SETGID, supplementary groups can be set inside.
pub fn map_root_of(pid: Pid, ids: Ids, setgroups: bool) -> io::Result<()> {
    write_maps(
        &pid.to_string(),
        (0, ids.uid.as_raw()),
        (0, ids.gid.as_raw()),
        setgroups,
    )
}

fn write_maps(process: &str, uid: (u32, u32), gid: (u32, u32), setgroups: bool) -> io::Result<()> {
    if !setgroups {
        // Without CAP_SETGID outside, the kernel wants setgroups denied before a gid map.
        write_proc(process, "setgroups", "deny")?;
    }
    write_proc(process, "uid_map", &format!("{} {} 1\n", uid.0, uid.1))?;
    write_proc(process, "gid_map", &format!("{} {} 1\n", gid.0, gid.1))
}

fn write_proc(process: &str, file: &str, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(format!("/proc/{process}/{file}"))?
        .write_all(text.as_bytes())
}

/// We are root and the user namespace is the initial one: `/proc/self/uid_map` maps everything to
/// itself. Root of a nested namespace is an ordinary user outside and must not change its ids.
#[must_use]
pub fn is_initial_root() -> bool {
    geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| whole_map(&map))
}

fn whole_map(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_map_is_the_initial_namespace() {
        assert!(whole_map("         0          0 4294967295\n"));
        assert!(!whole_map("         0       1000          1\n"));
        assert!(!whole_map("0 1000 1\n1 100000 65536\n"));
        assert!(!whole_map(""));
    }
}
