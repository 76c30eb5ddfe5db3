//! How long the host's kernel would call somebody who does not answer.
//!
//! Read once, before confinement takes /proc away. What cannot be read is what it is by default on a kernel that
//! lacks the setting.

use std::fs;
use std::time::Duration;

use crate::tcp::Limits;

/// Where the settings are (ip-sysctl.rst), of the reader's network namespace.
const DIRECTORY: &str = "/proc/sys/net/ipv4";
/// What tcp_rto_max_ms may be, in milliseconds.
const RTO_MAX: std::ops::RangeInclusive<u64> = 1000..=120_000;
/// What the kernel accepts as a number of repetitions (MAX_TCP_SYNCNT).
const REPETITIONS: u8 = 127;

/// `limits`, with SYNs repeated as this host repeats its own.
pub(super) fn as_the_host(limits: Limits) -> Limits {
    with(limits, |name| {
        fs::read_to_string(format!("{DIRECTORY}/{name}")).ok()
    })
}

fn with(mut limits: Limits, read: impl Fn(&str) -> Option<String>) -> Limits {
    let times = |name: &str| {
        let value: u8 = read(name)?.trim().parse().ok()?;
        (value <= REPETITIONS).then_some(value)
    };
    let longest = || {
        let value = read("tcp_rto_max_ms")?.trim().parse().ok()?;
        RTO_MAX
            .contains(&value)
            .then(|| Duration::from_millis(value))
    };
    if let Some(retries) = times("tcp_syn_retries") {
        limits.syn_retries = retries;
    }
    // Kernels before 6.5 double the time from the beginning.
    limits.syn_linear = times("tcp_syn_linear_timeouts").unwrap_or(0);
    if let Some(longest) = longest() {
        limits.rto_max = longest;
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_used_and_nonsense_is_not() {
        let get =
            |retries: Option<&'static str>, linear: Option<&'static str>, max: &'static str| {
                let limits = with(Limits::new(1500, 10, [0; 16]), |name| {
                    let text = match name {
                        "tcp_syn_retries" => retries,
                        "tcp_syn_linear_timeouts" => linear,
                        _ => Some(max),
                    };
                    text.map(str::to_owned)
                });
                (
                    limits.syn_retries,
                    limits.syn_linear,
                    limits.rto_max.as_millis(),
                )
            };
        assert_eq!(get(Some("3\n"), Some("2\n"), "5000\n"), (3, 2, 5000));
        assert_eq!(get(None, None, ""), (6, 0, 120_000));
        assert_eq!(get(Some("128"), Some("-1"), "999"), (6, 0, 120_000));
    }
}
