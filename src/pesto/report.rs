//! A report, collected from its records.

use std::path::Path;

use super::connection::Connection;
use super::{PestoError, shown};
use crate::control::report::{
    Drops, Flow, Frames, Guest, Hello, Process, RECORD, Record, RuleReport, RuleTraffic,
};

/// Most records of one report: more flows than any instance has descriptors for.
const MAX_RECORDS: usize = 4 << 20;

/// What an instance said of itself.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub hello: Option<Hello>,
    pub processes: Vec<Process>,
    pub rules: Vec<RuleReport>,
    pub guest: Guest,
    pub frames: Frames,
    pub drops: Vec<Drops>,
    pub traffic: Vec<RuleTraffic>,
    pub flows: Vec<Flow>,
}

impl Report {
    /// Take one record; false: it was the last.
    pub(super) fn take(&mut self, record: Record) -> bool {
        match record {
            Record::Hello(hello) => self.hello = Some(hello),
            Record::Process(process) => self.processes.push(process),
            Record::Rule(rule) => self.rules.push(rule),
            Record::Guest(guest) => self.guest = guest,
            Record::Frames(frames) => self.frames = frames,
            Record::Drops(drops) => self.drops.push(drops),
            Record::RuleTraffic(traffic) => self.traffic.push(traffic),
            Record::Flow(flow) => self.flows.push(flow),
            Record::End => return false,
        }
        true
    }
}

/// Ask the instance at `path`.
pub(super) fn fetch(path: &Path) -> Result<Report, PestoError> {
    let mut connection = Connection::open(path)?;
    if !connection.answers() {
        return Err(PestoError::NoReports(shown(path)));
    }
    connection.ask_report()?;
    let mut report = Report::default();
    for _ in 0..MAX_RECORDS {
        let bytes = connection.read::<RECORD>()?;
        let record = Record::decode(&bytes).map_err(|_| PestoError::Report)?;
        if !report.take(record) {
            return Ok(report);
        }
    }
    Err(PestoError::Report)
}
