//! Namespaces to make a mess in.

use std::io::Write;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

const INSIDE: &str = "PASST_TEST_INSIDE";

/// Run `body` as root of new user and network namespaces: by running this very test again under unshare(1).
///
/// # Panics
/// If the test fails in there.
pub fn isolated(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|t| t == test) {
        body();
        return;
    }
    if let Some(why) = missing() {
        skip(test, &why);
        return;
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("1 passed"),
        "no test of the name {test}: {text}"
    );
    for line in text.lines().filter(|l| l.starts_with("skipped:")) {
        say(line);
    }
}

/// What keeps these tests from running here, if anything.
fn missing() -> Option<String> {
    let works = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.is_ok_and(|o| o.status.success())
    };
    if !works("ip", &["-V"]) {
        return Some("no ip(8)".to_owned());
    }
    if !works(
        "unshare",
        &["--user", "--map-root-user", "--net", "--", "true"],
    ) {
        return Some("no unprivileged user namespaces".to_owned());
    }
    None
}

/// Say why a test did nothing.
pub fn skip(test: &str, why: &str) {
    say(&format!("skipped: {test}: {why}"));
}

/// Words for the user, past the test harness, which keeps what print macros write by a test that passes.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// May we create interfaces of this kind here? If not, says so.
pub fn have_tun(test: &str) -> bool {
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        Ok(_) => true,
        Err(e) => {
            skip(test, &format!("/dev/net/tun: {e}"));
            false
        }
    }
}

/// Leave the "host" for a network namespace of our own; `ip` started from this thread follows.
pub fn enter_guest() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
}

/// Run `ip` with these words; its output.
///
/// # Panics
/// If it fails.
pub fn ip(words: &str) -> String {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Several `ip` commands, one a line.
pub fn ip_all(lines: &str) {
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        ip(line);
    }
}

/// eth0, up, in a host that has nothing else but its other end.
pub fn host_with_eth0() {
    ip_all(
        "link set lo up
         link add eth0 type veth peer name p0
         link set p0 up
         link set eth0 up",
    );
}

/// The lines of `ip` output, without the blanks at their ends.
pub fn lines(words: &str) -> Vec<String> {
    ip(words).lines().map(|l| l.trim_end().to_owned()).collect()
}
