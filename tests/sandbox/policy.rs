//! The committed tables, as the tests read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

#[path = "../../seccomp/derive.rs"]
mod derive;

pub const ARCHITECTURES: [&str; 3] = ["x86_64", "aarch64", "riscv64"];

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Condition {
    pub index: usize,
    /// Shown when two entries are compared.
    pub op: serde_json::Value,
    pub val: u64,
    pub comment: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Rule {
    pub syscall: String,
    pub comment: String,
    #[serde(default)]
    pub args: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
pub struct Filter {
    pub mismatch_action: String,
    pub match_action: String,
    pub filter: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
pub struct Namespaces {
    pub own: Vec<String>,
    pub target: Vec<String>,
    pub host: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Process {
    pub capabilities: BTreeMap<String, Vec<String>>,
    pub namespaces: Namespaces,
    pub rlimits: BTreeMap<String, u64>,
    pub descriptors: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read<T: DeserializeOwned>(path: &Path) -> BTreeMap<String, T> {
    let text = fs::read_to_string(path).expect("table");
    let tables = derive::expand(&text).expect("tables");
    serde_json::from_value(tables.into()).expect("tables of the proper form")
}

pub fn filters(arch: &str) -> BTreeMap<String, Filter> {
    let path = root().join("seccomp").join(format!("{arch}.json"));
    read(&path)
}

pub fn processes() -> BTreeMap<String, Process> {
    let path = root().join("policy/processes.json");
    read(&path)
}
