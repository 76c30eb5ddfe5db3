//! How long the host's kernel itself would remember a UDP conversation.
//!
//! Read once, before confinement takes /proc away. A host without connection tracking has no opinion: then the
//! kernel's defaults hold.

use std::fs;
use std::time::Duration;

use crate::udp::Timeouts;

/// Where the settings are (nf_conntrack-sysctl.rst), in whole seconds, of the reader's network namespace.
const DIRECTORY: &str = "/proc/sys/net/netfilter";
/// What is taken seriously: a flow has to outlive a round trip, and a day is as good as for ever.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=86_400;

/// The timeouts of this host.
pub(super) fn timeouts() -> Timeouts {
    from(|name| fs::read_to_string(format!("{DIRECTORY}/{name}")).ok())
}

fn from(read: impl Fn(&str) -> Option<String>) -> Timeouts {
    let seconds = |name: &str| {
        let value = read(name)?.trim().parse().ok()?;
        SECONDS.contains(&value).then(|| Duration::from_secs(value))
    };
    let default = Timeouts::default();
    Timeouts {
        unreplied: seconds("nf_conntrack_udp_timeout").unwrap_or(default.unreplied),
        stream: seconds("nf_conntrack_udp_timeout_stream").unwrap_or(default.stream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_used_and_nonsense_is_not() {
        let with = |unreplied: Option<&'static str>, stream: Option<&'static str>| {
            let got = from(|name| {
                let text = if name.ends_with("_stream") {
                    stream
                } else {
                    unreplied
                };
                text.map(str::to_owned)
            });
            (got.unreplied.as_secs(), got.stream.as_secs())
        };
        assert_eq!(with(Some("10\n"), Some("600\n")), (10, 600));
        assert_eq!(with(None, Some("180\n")), (30, 180));
        assert_eq!(with(Some("0\n"), Some("99999999999\n")), (30, 120));
        assert_eq!(with(Some("x"), Some("")), (30, 120));
    }
}
