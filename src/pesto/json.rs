//! The report as JSON: what scripts are promised.
//!
//! One object, names and meanings as in pesto(1). Members are only ever added; `format` changes if one has to
//! change its meaning.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use super::report::Report;
use crate::control::report::{Flow, Process, RuleReport, RuleTraffic};
use crate::flow::traffic::{Totals, Traffic};
use crate::sandbox::Achieved;

/// Of the object below.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Document {
    format: u32,
    version: Option<String>,
    pid: Option<u32>,
    uptime_s: Option<u64>,
    processes: Vec<ProcessView>,
    rules: Vec<RuleView>,
    /// Opened by the guest, without a rule.
    outbound: TrafficView,
    guest: GuestView,
    frames: FramesView,
    drops: BTreeMap<String, u64>,
    flows: Vec<FlowView>,
}

#[derive(Serialize)]
struct ProcessView {
    name: &'static str,
    pid: u32,
    confinement: Vec<&'static str>,
}

#[derive(Serialize)]
struct RuleView {
    id: u16,
    table: String,
    protocol: String,
    listen: Option<String>,
    interface: Option<String>,
    first: u16,
    last: u16,
    target: Option<String>,
    to_first: u16,
    to_last: u16,
    best_effort: bool,
    auto: bool,
    open: u32,
    missing: u32,
    traffic: TrafficView,
}

#[derive(Serialize, Default)]
struct TrafficView {
    live: u32,
    flows: u64,
    #[serde(flatten)]
    carried: Totals,
}

#[derive(Serialize)]
struct GuestView {
    mac: Option<String>,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    link_local: Option<Ipv6Addr>,
}

#[derive(Serialize)]
struct FramesView {
    frames_in: u64,
    bytes_in: u64,
    frames_out: u64,
    bytes_out: u64,
}

#[derive(Serialize)]
struct FlowView {
    protocol: &'static str,
    way: &'static str,
    rule: Option<u16>,
    inside: String,
    outside: String,
    #[serde(flatten)]
    carried: Traffic,
    idle_s: u32,
}

/// Write `report` as one object.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &document(report))?;
    writeln!(out)
}

fn document(report: &Report) -> Document {
    let of = |id| {
        report
            .traffic
            .iter()
            .find(|t| t.rule == id)
            .map(traffic)
            .unwrap_or_default()
    };
    Document {
        format: FORMAT,
        version: report.hello.map(|h| h.program.to_text()),
        pid: report.hello.map(|h| h.pid),
        uptime_s: report.hello.map(|h| h.uptime_s),
        processes: report.processes.iter().map(process).collect(),
        rules: report
            .rules
            .iter()
            .map(|r| rule(r, of(Some(r.rule))))
            .collect(),
        outbound: of(None),
        guest: GuestView {
            mac: report.guest.mac.map(|mac| mac.to_string()),
            ipv4: report.guest.v4,
            ipv6: report.guest.v6,
            link_local: report.guest.link_local,
        },
        frames: FramesView {
            frames_in: report.frames.frames_in,
            bytes_in: report.frames.bytes_in,
            frames_out: report.frames.frames_out,
            bytes_out: report.frames.bytes_out,
        },
        drops: report
            .drops
            .iter()
            .map(|d| (d.reason.to_text(), d.count))
            .collect(),
        flows: report.flows.iter().map(flow).collect(),
    }
}

fn process(process: &Process) -> ProcessView {
    ProcessView {
        name: process.part.name(),
        pid: process.pid,
        confinement: Achieved::from_bits(process.confinement).names().collect(),
    }
}

fn traffic(of: &RuleTraffic) -> TrafficView {
    TrafficView {
        live: of.live,
        flows: of.flows,
        carried: of.traffic,
    }
}

fn rule(rule: &RuleReport, traffic: TrafficView) -> RuleView {
    let length = rule.last.saturating_sub(rule.first);
    RuleView {
        id: rule.rule.0.get(),
        table: rule.table.to_string(),
        protocol: rule.protocol.to_string(),
        listen: rule.listen.map(|a| a.to_string()),
        interface: Some(rule.interface.to_text()).filter(|name| !name.is_empty()),
        first: rule.first,
        last: rule.last,
        target: rule.target.map(|a| a.to_string()),
        to_first: rule.to_first,
        to_last: rule.to_first.saturating_add(length),
        best_effort: rule.best_effort,
        auto: rule.auto_scan,
        open: rule.open,
        missing: rule.missing,
        traffic,
    }
}

fn flow(flow: &Flow) -> FlowView {
    FlowView {
        protocol: flow.kind.name(),
        way: flow.way.name(),
        rule: flow.rule.map(|id| id.0.get()),
        inside: flow.inside.to_string(),
        outside: flow.outside.to_string(),
        carried: flow.traffic,
        idle_s: flow.idle_s,
    }
}
