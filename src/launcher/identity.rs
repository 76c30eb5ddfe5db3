//! Whom the lasting processes run as.
//!
//! Root of the initial user namespace becomes nobody, or whom `--runas` names. Everybody else stays: an
//! ordinary user has nothing to give up, and root of a nested user namespace is an ordinary user outside,
//! who as "nobody" could not even open the namespace it was started for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use caps::CapSet;
use nix::unistd::{Gid, Group, Uid, User, setgroups, setresgid, setresuid};

use super::error::{LaunchError, Reason};
use crate::cli::{IdOrName, RunAs};
use crate::config::rules::Rules;
use crate::sys::ids::{Ids, is_initial_root};
use crate::sys::stream;

/// nobody, where the user database does not say.
const NOBODY: u32 = 65534;

/// The kernel's default `net.ipv4.ip_unprivileged_port_start`.
const DEFAULT_UNPRIVILEGED_PORT: u16 = 1024;

/// The ids to change to, `None` to stay.
pub(super) fn choose(runas: Option<&RunAs>) -> Result<Option<Ids>, LaunchError> {
    match runas {
        Some(runas) if nix::unistd::geteuid().is_root() => look_up(runas).map(Some),
        None if is_initial_root() => Ok(Some(nobody())),
        _ => Ok(None),
    }
}

fn nobody() -> Ids {
    match User::from_name("nobody") {
        Ok(Some(user)) if !user.uid.is_root() => Ids {
            uid: user.uid,
            gid: user.gid,
        },
        _ => Ids {
            uid: Uid::from_raw(NOBODY),
            gid: Gid::from_raw(NOBODY),
        },
    }
}

fn look_up(runas: &RunAs) -> Result<Ids, LaunchError> {
    let error = |why| LaunchError::RunAs(runas.text.clone(), why);
    let (uid, primary) = match &runas.user {
        IdOrName::Id(id) => {
            let uid = Uid::from_raw(*id);
            let known = User::from_uid(uid).ok().flatten();
            (uid, known.map_or(Gid::from_raw(*id), |user| user.gid))
        }
        IdOrName::Name(name) => match User::from_name(name) {
            Ok(Some(user)) => (user.uid, user.gid),
            _ => return Err(error("no such user")),
        },
    };
    let gid = match &runas.group {
        None => primary,
        Some(IdOrName::Id(id)) => Gid::from_raw(*id),
        Some(IdOrName::Name(name)) => match Group::from_name(name) {
            Ok(Some(group)) => group.gid,
            _ => return Err(error("no such group")),
        },
    };
    Ok(Ids { uid, gid })
}

/// Become `ids` for good, without supplementary groups.
pub(super) fn become_ids(ids: Ids) -> Result<(), LaunchError> {
    let error = |e: nix::errno::Errno| LaunchError::ChangeIds {
        uid: ids.uid.as_raw(),
        gid: ids.gid.as_raw(),
        reason: Reason::from(e),
    };
    setgroups(&[]).map_err(error)?;
    setresgid(ids.gid, ids.gid, ids.gid).map_err(error)?;
    setresuid(ids.uid, ids.uid, ids.uid).map_err(error)?;
    // The kernel has made us undumpable, and with that our own files in /proc root's: we still need them.
    nix::sys::prctl::set_dumpable(true).map_err(error)
}

/// As [`become_ids`], but keep the capabilities for what is still to be done before confinement: entering a user
/// namespace, making a mount namespace, and whatever `Needs` leaves in force for good.
pub(super) fn become_ids_for_now(ids: Ids) -> Result<(), LaunchError> {
    let keep = |e: caps::errors::CapsError| LaunchError::KeepCaps(e.to_string());
    caps::securebits::set_keepcaps(true).map_err(keep)?;
    become_ids(ids)?;
    let permitted = caps::read(None, CapSet::Permitted).map_err(keep)?;
    caps::set(None, CapSet::Effective, &permitted).map_err(keep)
}

/// May privileged ports of the network we are in have to be bound after the start (`open`: by rules that nobody has
/// thought of yet), and can we? Keeping a capability is not worth it otherwise.
pub(super) fn low_ports_later(rules: &Rules, open: bool) -> bool {
    let start = first_unprivileged_port();
    let later = rules
        .as_slice()
        .iter()
        .any(|rule| (rule.auto_scan || rule.best_effort) && rule.first < start);
    (open || later) && may_bind(start.saturating_sub(1))
}

/// Asked by trying, because only the kernel knows (user namespaces, security modules).
fn may_bind(port: u16) -> bool {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let bound =
        stream::socket(any).and_then(|socket| stream::bind(&socket, SocketAddr::new(any, port)));
    port != 0 && !matches!(bound, Err(e) if e.raw_os_error() == Some(libc::EACCES))
}

/// `net.ipv4.ip_unprivileged_port_start` of the network namespace we are in.
fn first_unprivileged_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(DEFAULT_UNPRIVILEGED_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_need_no_user_database_and_names_must_exist() {
        let runas = |user: IdOrName, group| RunAs {
            text: "text".to_owned(),
            user,
            group,
        };
        let ids = look_up(&runas(IdOrName::Id(4_000_000), None)).expect("numeric");
        assert_eq!((ids.uid.as_raw(), ids.gid.as_raw()), (4_000_000, 4_000_000));
        let ids = look_up(&runas(IdOrName::Id(4_000_000), Some(IdOrName::Id(7)))).expect("numeric");
        assert_eq!(ids.gid.as_raw(), 7);
        let e = look_up(&runas(IdOrName::Name("no such user".to_owned()), None));
        assert!(matches!(e, Err(LaunchError::RunAs(..))));
    }
}
