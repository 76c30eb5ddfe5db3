//! What the established passt is known not to do as this suite demands; reasons in tests/DIFFERENCES.md.

use std::process::Command;
use std::sync::OnceLock;

use crate::harness::under_test;

/// Test name, and the paragraph of DIFFERENCES.md that says why it is not asked of the established program.
const TABLE: &[(&str, &str)] = &[
    ("confinement::hijacked_forwarder", "processes"),
    ("confinement::memory_is_not_executable", "processes"),
    ("confinement::no_process_outlives_another", "processes"),
    ("confinement::stream", "processes"),
    ("confinement::vhost_user", "processes"),
    ("life::enable_and_disable", "rings that are off"),
    ("life::kick_and_call_replaced", "stalls"),
    ("life::memory_table_changes", "stalls"),
    ("life::polling", "bad messages"),
    ("life::reconnect_often", "bad messages"),
    ("life::rings_restart", "stalls"),
    ("link::layouts_of_frames", "headers in pieces"),
    ("messages::half_messages", "bad messages"),
    ("stream::bad_lengths", "half frames"),
    ("stream::half_a_frame", "half frames"),
    ("stream::reconnect_often", "half frames"),
    ("stream::shortest_and_longest", "longest frames"),
    ("traffic::combinations", "stalls"),
    ("traffic::hundred_megabytes_at_mtu_1500", "stalls"),
    ("traffic::queue_pairs", "queue pairs"),
    ("traffic::stream_hundred_megabytes", "stalls"),
    ("traffic::stream_hundred_megabytes_at_mtu_1500", "stalls"),
    ("traffic::stream_in_small_pieces", "half frames"),
];

/// Is the program under test the established implementation?
pub fn established() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let (path, other) = under_test();
        other
            && Command::new(path)
                .arg("--version")
                .output()
                .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("Red Hat"))
    })
}

/// Why a test is not run against the program under test, if so.
pub fn skip_reason(name: &str) -> Option<String> {
    let (_, why) = TABLE.iter().find(|(n, _)| *n == name)?;
    established().then(|| format!("the established program differs: {why}"))
}
