//! Cases skipped only when the program under test is the established one: such a case is reported as skipped.

use std::process::Command;
use std::sync::OnceLock;

use crate::harness::{PASTA, under_test};

/// Case, or group with `::` behind it, and the paragraph of tests/DIFFERENCES.md that says why it is not asked of
/// the established program.
const TABLE: &[(&str, &str)] = &[
    ("vhost::eight_streams", "stalls of a machine"),
    ("vhost1500::", "queue pairs"),
];

/// Is the program under test the established implementation?
pub fn established() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let (_, other) = under_test();
        other
            && Command::new(PASTA)
                .arg("--version")
                .output()
                .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("Red Hat"))
    })
}

/// Why a case is not run against the program under test, if so.
pub fn skip_reason(name: &str) -> Option<String> {
    let (_, why) = TABLE
        .iter()
        .find(|(n, _)| *n == name || (n.ends_with("::") && name.starts_with(n)))?;
    established().then(|| format!("the established program differs: {why}"))
}
