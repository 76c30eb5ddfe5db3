//! `--watch`: rules and flows with their rates, drawn again every second.
//!
//! Every drawing is a new connection and a new report, so that watching keeps nobody else from the socket; rates
//! are differences between two reports over the time between them. On a terminal the screen is cleared in
//! between, elsewhere the drawings follow one another, separated by an empty line.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::PestoError;
use super::report::{Report, fetch};
use crate::addr::Endpoint;
use crate::config::rules::RuleId;
use crate::control::report::{Flow, Kind, RuleReport, Way};
use crate::flow::traffic::Totals;

/// Between two drawings.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most flows drawn, the fastest ones.
const FLOWS: usize = 30;
/// Cursor home, clear everything below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Watch until interrupted, or until the instance is gone.
pub(super) fn run(path: &Path, out: &mut dyn Write) -> Result<(), PestoError> {
    let terminal = io::stdout().is_terminal();
    let mut last = Sample::default();
    loop {
        let report = fetch(path)?;
        let now = Sample::of(&report, Instant::now());
        let text = draw(&report, &now.since(&last));
        let between = if terminal { CLEAR } else { "" };
        let after = if terminal { "" } else { "\n" };
        out.write_all(format!("{between}{text}{after}").as_bytes())?;
        out.flush()?;
        last = now;
        std::thread::sleep(INTERVAL);
    }
}

/// What tells flows apart from one report to the next.
type FlowKey = (Kind, Way, Endpoint, Endpoint);

const fn key(flow: &Flow) -> FlowKey {
    (flow.kind, flow.way, flow.inside, flow.outside)
}

/// What was carried until some moment.
#[derive(Default)]
struct Sample {
    at: Option<Instant>,
    rules: HashMap<Option<RuleId>, Totals>,
    flows: HashMap<FlowKey, Totals>,
}

/// Bytes a second, towards the guest and from it.
type Rate = (u64, u64);

#[derive(Default)]
struct Rates {
    rules: HashMap<Option<RuleId>, Rate>,
    flows: HashMap<FlowKey, Rate>,
}

impl Sample {
    fn of(report: &Report, at: Instant) -> Self {
        Self {
            at: Some(at),
            rules: report.traffic.iter().map(|t| (t.rule, t.traffic)).collect(),
            flows: report
                .flows
                .iter()
                .map(|f| (key(f), (&f.traffic).into()))
                .collect(),
        }
    }

    /// The rates since `last`; what was not there then has carried everything since.
    fn since(&self, last: &Self) -> Rates {
        let (Some(now), Some(then)) = (self.at, last.at) else {
            return Rates::default();
        };
        let micros = now.saturating_duration_since(then).as_micros().max(1);
        let rate = |new: u64, old: u64| {
            let grown = u128::from(new.saturating_sub(old)).saturating_mul(1_000_000);
            u64::try_from(grown.checked_div(micros).unwrap_or(0)).unwrap_or(u64::MAX)
        };
        let both = |new: &Totals, old: Option<&Totals>| {
            let old = old.copied().unwrap_or_default();
            (
                rate(new.bytes_in, old.bytes_in),
                rate(new.bytes_out, old.bytes_out),
            )
        };
        Rates {
            rules: self
                .rules
                .iter()
                .map(|(id, t)| (*id, both(t, last.rules.get(id))))
                .collect(),
            flows: self
                .flows
                .iter()
                .map(|(key, t)| (*key, both(t, last.flows.get(key))))
                .collect(),
        }
    }
}

/// One drawing.
fn draw(report: &Report, rates: &Rates) -> String {
    let mut text = String::new();
    let hello = report.hello;
    let _ = writeln!(
        text,
        "passt {}  pid {}  up {}  flows {}  dropped {}",
        hello.map(|h| h.program.to_text()).unwrap_or_default(),
        hello.map_or(0, |h| h.pid),
        Uptime(hello.map_or(0, |h| h.uptime_s)),
        report.flows.len(),
        report
            .drops
            .iter()
            .fold(0_u64, |n, d| n.saturating_add(d.count)),
    );
    draw_rules(&mut text, report, rates);
    draw_flows(&mut text, report, rates);
    text
}

fn draw_rules(text: &mut String, report: &Report, rates: &Rates) {
    let _ = writeln!(
        text,
        "\n{:<6} {:<44} {:>6} {:>6} {:>9} {:>9} {:>9} {:>9}",
        "TABLE", "RULE", "OPEN", "FLOWS", "IN/s", "OUT/s", "IN", "OUT"
    );
    let mut line = |table: &str, rule: &str, open: &str, id: Option<RuleId>| {
        let carried = report.traffic.iter().find(|t| t.rule == id);
        let traffic = carried.map(|t| t.traffic).unwrap_or_default();
        let (inward, outward) = rates.rules.get(&id).copied().unwrap_or_default();
        let _ = writeln!(
            text,
            "{table:<6} {rule:<44} {open:>6} {:>6} {:>9} {:>9} {:>9} {:>9}",
            carried.map_or(0, |t| t.live),
            Bytes(inward),
            Bytes(outward),
            Bytes(traffic.bytes_in),
            Bytes(traffic.bytes_out),
        );
    };
    for rule in &report.rules {
        line(
            &rule.table.to_string(),
            &describe(rule),
            &rule.open.to_string(),
            Some(rule.rule),
        );
    }
    line("-", "outbound", "-", None);
}

fn draw_flows(text: &mut String, report: &Report, rates: &Rates) {
    let rate = |flow: &Flow| rates.flows.get(&key(flow)).copied().unwrap_or_default();
    let speed = |flow: &Flow| {
        let (inward, outward) = rate(flow);
        inward.saturating_add(outward)
    };
    let mut flows: Vec<&Flow> = report.flows.iter().collect();
    flows.sort_by_key(|flow| {
        (
            std::cmp::Reverse(speed(flow)),
            flow.idle_s,
            flow.inside,
            flow.outside,
        )
    });
    let _ = writeln!(
        text,
        "\n{:<5} {:<10} {:>4} {:<30} {:<30} {:>9} {:>9} {:>5}",
        "PROTO", "WAY", "RULE", "INSIDE", "OUTSIDE", "IN/s", "OUT/s", "IDLE"
    );
    for flow in flows.iter().take(FLOWS) {
        let (inward, outward) = rate(flow);
        let _ = writeln!(
            text,
            "{:<5} {:<10} {:>4} {:<30} {:<30} {:>9} {:>9} {:>5}",
            flow.kind.name(),
            flow.way.name(),
            flow.rule
                .map_or_else(|| "-".to_owned(), |id| id.0.to_string()),
            flow.inside.to_string(),
            flow.outside.to_string(),
            Bytes(inward),
            Bytes(outward),
            flow.idle_s,
        );
    }
    let more = flows.len().saturating_sub(FLOWS);
    if more > 0 {
        let _ = writeln!(text, "... and {more} more");
    }
}

/// As in the tables, without the parts that are as usual.
fn describe(rule: &RuleReport) -> String {
    let mut text = rule.protocol.to_string();
    text.push(' ');
    match rule.listen {
        None => text.push('*'),
        Some(address) => {
            let _ = write!(text, "[{address}]");
        }
    }
    let interface = rule.interface.to_text();
    if !interface.is_empty() {
        let _ = write!(text, "%{interface}");
    }
    let length = rule.last.saturating_sub(rule.first);
    let _ = write!(text, ":{}", rule.first);
    if length > 0 {
        let _ = write!(text, "-{}", rule.last);
    }
    if rule.target.is_some() || rule.to_first != rule.first {
        text.push_str(" => ");
        if let Some(address) = rule.target {
            let _ = write!(text, "[{address}]:");
        }
        let _ = write!(text, "{}", rule.to_first);
    }
    if rule.auto_scan {
        text.push_str(" auto");
    }
    text
}

/// A number of bytes in at most seven characters.
struct Bytes(u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut value = self.0;
        let mut tenths = 0_u64;
        let mut unit = "";
        for next in ["k", "M", "G", "T", "P"] {
            if value < 1000 {
                break;
            }
            tenths = value.checked_rem(1000).unwrap_or(0) / 100;
            value /= 1000;
            unit = next;
        }
        let text = if unit.is_empty() {
            value.to_string()
        } else {
            format!("{value}.{tenths}{unit}")
        };
        f.pad(&text)
    }
}

/// Seconds as `d h:mm:ss`.
struct Uptime(u64);

impl std::fmt::Display for Uptime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (days, seconds) = (self.0 / 86400, self.0 % 86400);
        if days > 0 {
            write!(f, "{days}d ")?;
        }
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        write!(f, "{hours}:{minutes:02}:{:02}", seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::config::rules::{Protocol, Table};
    use crate::control::report::{Hello, Record, RuleTraffic, Text};
    use crate::flow::traffic::Traffic;

    fn report(bytes: u64) -> Report {
        let rule = RuleId(NonZeroU16::MIN);
        let traffic = Traffic {
            bytes_in: bytes,
            bytes_out: bytes / 2,
            packets_in: 1,
            packets_out: 1,
        };
        let mut report = Report::default();
        for record in [
            Record::Hello(Hello {
                program: Text::new("1.2.3"),
                pid: 42,
                uptime_s: 90061,
            }),
            Record::Rule(RuleReport {
                rule,
                table: Table::Host,
                protocol: Protocol::Tcp,
                listen: None,
                interface: Text::new("eth0"),
                first: 8080,
                last: 8081,
                target: Some("10.0.0.1".parse().unwrap()),
                to_first: 80,
                best_effort: false,
                auto_scan: false,
                open: 2,
                missing: 0,
            }),
            Record::RuleTraffic(RuleTraffic {
                rule: Some(rule),
                live: 1,
                flows: 3,
                traffic: (&traffic).into(),
            }),
            Record::Flow(Flow {
                kind: Kind::Tcp,
                way: Way::TapIn,
                rule: Some(rule),
                inside: Endpoint::new("10.0.2.15".parse().unwrap(), 80),
                outside: Endpoint::new("192.0.2.7".parse().unwrap(), 40000),
                traffic,
                idle_s: 0,
            }),
        ] {
            assert!(report.take(record));
        }
        assert!(!report.take(Record::End));
        report
    }

    #[test]
    fn rates_are_differences_over_time() {
        let start = Instant::now();
        let first = Sample::of(&report(1_000_000), start);
        let later = report(5_000_000);
        let second = Sample::of(&later, start + Duration::from_secs(2));
        let text = draw(&later, &second.since(&first));
        assert!(
            text.starts_with("passt 1.2.3  pid 42  up 1d 1:01:01  flows 1  dropped 0\n"),
            "{text}"
        );
        let line = |word: &str| {
            text.lines()
                .find(|l| l.contains(word))
                .unwrap_or_else(|| panic!("no {word} in:\n{text}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            line("%eth0"),
            "HOST TCP *%eth0:8080-8081 => [10.0.0.1]:80 2 1 2.0M 1.0M 5.0M 2.5M"
        );
        assert_eq!(
            line("tap-in"),
            "tcp tap-in 1 10.0.2.15:80 192.0.2.7:40000 2.0M 1.0M 0"
        );
        assert_eq!(line("outbound"), "- outbound - 0 0 0 0 0");
        // Nothing to compare with: no rate is made up.
        let text = draw(&later, &second.since(&Sample::default()));
        assert!(
            text.contains("192.0.2.7:40000                        0         0"),
            "{text}"
        );
    }

    #[test]
    fn the_json_has_the_promised_shape() {
        let mut text = Vec::new();
        super::super::json::write(&report(10), &mut text).expect("writes");
        let json: serde_json::Value = serde_json::from_slice(&text).expect("is JSON");
        assert_eq!(json["format"], 1);
        assert_eq!(json["version"], "1.2.3");
        let rule = &json["rules"][0];
        assert_eq!(rule["protocol"], "TCP");
        assert_eq!(rule["listen"], serde_json::Value::Null);
        assert_eq!(rule["interface"], "eth0");
        assert_eq!(rule["to_last"], 81);
        assert_eq!(rule["traffic"]["flows"], 3);
        assert_eq!(rule["traffic"]["bytes_out"], 5);
        assert_eq!(json["outbound"]["bytes_in"], 0);
        let flow = &json["flows"][0];
        assert_eq!(flow["way"], "tap-in");
        assert_eq!(flow["inside"], "10.0.2.15:80");
        assert_eq!(flow["packets_in"], 1);
    }
}
