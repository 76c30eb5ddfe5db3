//! What has to be there before the first test: the root directory, our package in it, and a control group.
//!
//! The tests have no way to Debian's archive any more, and cannot build anything: they find the places of what was
//! made before in their environment. So this process makes it and starts itself again.
//!
//! A machine that lacks something for it has its tests skipped; a package that does not build or install fails them all.
//!
//! Invariant: the control group that all tests make theirs in is removed at the end; one that a killed run left
//! is removed by the next.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Uid;

use crate::exec::{SOON, poll_until};

/// Directory of root/ and store/, or why there is none.
pub const ROOT: &str = "CLIENTS_SUITE_ROOT";
/// What installing our package changes in the root directory; absent when another program is under test.
pub const LAYER: &str = "CLIENTS_SUITE_LAYER";
/// Our package; absent when another program is under test.
pub const DEB: &str = "CLIENTS_SUITE_DEB";
/// Where a test may make its control group; absent when that is not possible here.
pub const CGROUP: &str = "CLIENTS_SUITE_CGROUP";
/// What is under test: one of the following three.
pub const UNDER_TEST: &str = "CLIENTS_SUITE_UNDER_TEST";
pub const DISTRIBUTION: &str = "distribution";
const PACKAGE: &str = "package";
pub const PROGRAM: &str = "program";

const GIVEN: &str = "PASST_UNDER_TEST";
const CGROUP_NAME: &str = "passt-clients-";

/// Has it been done, or is there nothing to do it for?
pub fn done() -> bool {
    std::env::var_os(ROOT).is_some()
        || !Uid::effective().is_root()
        || std::env::args().any(|a| a == "--list")
}

/// Why there is nothing to run tests in.
enum Lack {
    /// This machine has no program, privilege or archive for it.
    Here(String),
    Broken(String),
}

/// What a script exits with that cannot do its work on this machine.
const NOT_HERE: i32 = 77;

pub fn and_start_again() -> ExitCode {
    let mut again = Command::new("/proc/self/exe");
    again.args(std::env::args().skip(1));
    match make(&mut again) {
        Ok(()) => {}
        Err(Lack::Here(why)) => {
            again.env(ROOT, why);
        }
        Err(Lack::Broken(why)) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    let group = control_group();
    group.as_ref().map(|group| again.env(CGROUP, group));
    let status = again.status().expect("start again");
    group.map(|group| poll_until(SOON, || remove(&group)));
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// Makes the package, the root directory and the layer of the package on it, and says in the environment of `again`
/// where they are.
fn make(again: &mut Command) -> Result<(), Lack> {
    let given = std::env::var(GIVEN).ok();
    let package = match given.as_deref() {
        Some(DISTRIBUTION) => {
            again.env_remove(GIVEN).env(UNDER_TEST, DISTRIBUTION);
            None
        }
        Some(_) => {
            again.env(UNDER_TEST, PROGRAM);
            None
        }
        None => {
            again.env(UNDER_TEST, PACKAGE);
            Some(made_by("packaging/deb", &[])?.trim().to_owned())
        }
    };
    let arguments: Vec<&str> = package.as_deref().into_iter().collect();
    let made = made_by("tests/clients/root", &arguments)?;
    let mut lines = made.lines();
    again.env(ROOT, lines.next().unwrap_or_default());
    lines.next().map(|layer| again.env(LAYER, layer));
    package.map(|package| again.env(DEB, package));
    Ok(())
}

/// What a script of this tree prints. What it says on the way goes to the terminal.
fn made_by(script: &str, arguments: &[&str]) -> Result<String, Lack> {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(script))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Lack::Broken(format!("{script}: {e}")))?;
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Some(NOT_HERE) => Err(Lack::Here(format!("{script} cannot do its work here"))),
        _ => Err(Lack::Broken(format!("{script}: {}", output.status))),
    }
}

/// A control group for this run, in version 2 of control groups, mounted alone or beside version 1.
fn control_group() -> Option<PathBuf> {
    let top = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|d| statfs(*d).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC))?;
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(CGROUP_NAME));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
    let group = Path::new(top).join(format!("{CGROUP_NAME}{}", std::process::id()));
    fs::create_dir(&group).ok()?;
    Some(group)
}

/// Removes a control group and all below it, as soon as no process is in any of them.
fn remove(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok()
}
