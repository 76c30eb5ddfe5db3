//! Whom the lasting processes run as.
//!
//! Root of the initial user namespace becomes nobody, or whom `--runas` names. Everybody else stays: an
//! ordinary user has nothing to give up, and root of a nested user namespace is an ordinary user outside,
//! who as "nobody" could not even open the namespace it was started for.

use nix::unistd::{Gid, Group, Uid, User, setgroups, setresgid, setresuid};

use super::error::{LaunchError, Reason};
use crate::cli::{IdOrName, RunAs};
use crate::sys::ids::{Ids, is_initial_root};

/// nobody, where the user database does not say.
const NOBODY: u32 = 65534;

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
