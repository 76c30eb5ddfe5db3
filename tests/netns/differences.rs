//! What the established pasta is known not to do as this suite demands; reasons in tests/DIFFERENCES.md.
//!
//! Used only when the program under test is the established one: such a test is reported as skipped.

use std::process::Command;
use std::sync::OnceLock;

use crate::harness::under_test;

/// Test name, and the paragraph of DIFFERENCES.md that says why it is not asked of the established program.
const TABLE: &[(&str, &str)] = &[
    ("auto::idle", "idle"),
    ("auto::remapped", "automatic and remapped"),
    ("config::many_routes", "number of routes"),
    ("control::busy_port_changes_nothing", "changes that fail"),
    ("control::busy_port_in_the_namespace", "changes that fail"),
    ("control::changes_under_load", "changes under load"),
    ("control::json", "reports"),
    ("control::json_of_many_flows", "reports"),
    ("control::others_are_refused", "control socket"),
    ("control::retarget", "delete and add"),
    ("control::silent_client", "control socket"),
    ("control::socket_is_private", "control socket"),
    ("control::symbolic_link", "control socket"),
    (
        "control::unchanged_rules_keep_connections",
        "delete and add",
    ),
    ("control::watch", "reports"),
    ("dhcp::neighbour_solicitation", "source of advertisements"),
    ("dns::odd_resolv_conf", "blanks in resolv.conf"),
    ("icmp::ping_fragments", "fragments"),
    ("icmp::ping_too_big", "errors for echo requests"),
    ("icmp::ping_unreachable", "errors for echo requests"),
    ("icmp::traceroute_icmp", "errors for echo requests"),
    ("modes::as_root", "started as root"),
    ("modes::as_root_attached", "started as root"),
    ("modes::as_root_drops_to_runas", "started as root"),
    (
        "modes::attach_to_pid",
        "a process of the same user namespace",
    ),
    ("modes::sigterm_ends_the_command", "end of the command"),
    ("neighbours::many", "neighbours"),
    ("neighbours::moves", "neighbours"),
    ("neighbours::turns_up_later", "neighbours"),
    ("observe::idle_is_idle", "idle"),
    ("splice::more_than_descriptors_allow", "descriptors"),
    ("ports::all_under_a_small_limit", "descriptors"),
    ("tcp::both_directions_at_once", "stalls"),
    ("tcp::large_buffers", "stalls"),
    ("tcp::mtu_1280", "stalls"),
    ("tcp::mtu_1500", "stalls"),
    ("tcp::mtu_65520", "stalls"),
    ("tcp::small_buffers", "stalls"),
    ("udp::broadcast", "broadcast"),
    ("udp::busy_source_port", "busy source ports"),
    ("udp::fragments_of_the_guest", "fragments"),
    ("tcp::out_of_descriptors", "descriptors"),
    ("udp::out_of_descriptors", "descriptors"),
    ("udp::multicast_query", "answers to multicast"),
    ("udp::multicast_query6", "answers to multicast"),
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

/// The established program gives up on `all` when the descriptors do not suffice for every port.
pub fn all_ports_fail() -> bool {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    established() && limit.is_ok_and(|(_, hard)| hard < 70_000)
}
