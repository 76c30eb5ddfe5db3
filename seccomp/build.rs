//! Turns `seccomp/*.json` and `policy/processes.json` into constants of the crate.
//!
//! Every architecture's file is compiled on every build, so that a name unknown on one of them, or
//! a typing error, fails everywhere. Only the target's programs are embedded, each twice: as
//! written (a violation kills the process) and with `trap` instead (`--trace`: a handler names the call).

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

mod derive;

use seccompiler::{BpfMap, TargetArch};
use serde::Deserialize;

const ARCHITECTURES: [&str; 3] = ["x86_64", "aarch64", "riscv64"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Process {
    #[serde(rename = "reason")]
    _reason: String,
    capabilities: BTreeMap<String, Vec<String>>,
    namespaces: Namespaces,
    landlock: Landlock,
    rlimits: BTreeMap<String, u64>,
    #[serde(rename = "descriptors")]
    _descriptors: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Namespaces {
    own: Vec<String>,
    #[serde(rename = "target")]
    _target: Vec<String>,
    #[serde(rename = "host")]
    _host: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Landlock {
    files: String,
    tcp_bind: String,
    tcp_connect: String,
    scopes: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=seccomp");
    println!("cargo::rerun-if-changed=policy/processes.json");
    let target = env::var("CARGO_CFG_TARGET_ARCH")?;
    if !ARCHITECTURES.contains(&target.as_str()) {
        return Err(format!("no system call filter for {target}; see seccomp/").into());
    }
    let policy = derive::expand(&fs::read_to_string("policy/processes.json")?)?;
    let policy: BTreeMap<String, Process> = serde_json::from_value(policy.into())?;
    let mut out = String::new();
    for arch in ARCHITECTURES {
        let text = fs::read_to_string(Path::new("seccomp").join(format!("{arch}.json")))?;
        let tables = derive::expand(&text).map_err(|e| format!("seccomp/{arch}.json: {e}"))?;
        let text = serde_json::Value::from(tables).to_string();
        let kill = compile(&text, arch)?;
        let trap = compile(&text.replace("\"kill_process\"", "\"trap\""), arch)?;
        if !policy
            .keys()
            .eq(kill.keys().collect::<std::collections::BTreeSet<_>>())
        {
            return Err(format!("seccomp/{arch}.json and policy/processes.json differ").into());
        }
        if arch == target {
            for (name, process) in &policy {
                emit(&mut out, name, process, &kill, &trap)?;
            }
        }
    }
    let path = PathBuf::from(env::var("OUT_DIR")?).join("policy.rs");
    fs::write(path, out)?;
    Ok(())
}

fn compile(text: &str, arch: &str) -> Result<BpfMap, Box<dyn Error>> {
    let target = TargetArch::try_from(arch)?;
    seccompiler::compile_from_json(text.as_bytes(), target)
        .map_err(|e| format!("seccomp/{arch}.json: {e}").into())
}

fn emit(
    out: &mut String,
    name: &str,
    process: &Process,
    kill: &BpfMap,
    trap: &BpfMap,
) -> Result<(), Box<dyn Error>> {
    let sees_traffic = name.starts_with("forwarder");
    let mut low_ports = false;
    for (set, kept) in &process.capabilities {
        match (set.as_str(), kept.as_slice()) {
            (_, []) => {}
            ("on_demand", [one]) if one == "net_bind_service" && !sees_traffic => low_ports = true,
            _ => return Err(format!("{name}: no process keeps {kept:?} ({set})").into()),
        }
    }
    let tcp_bind = process.landlock.tcp_bind == "any";
    if process.landlock.files != "none" || (tcp_bind && sees_traffic) {
        return Err(
            format!("{name}: no process opens files; who sees traffic binds no port").into(),
        );
    }
    let scoped = |scope: &str| process.landlock.scopes.iter().any(|s| s == scope);
    if !scoped("abstract_unix_socket") {
        return Err(format!("{name}: every process is scoped").into());
    }
    let own = |ns: &str| process.namespaces.own.iter().any(|n| n == ns);
    writeln!(out, "/// From policy/processes.json and seccomp/*.json.")?;
    writeln!(
        out,
        "pub(super) static {}: Policy = Policy {{",
        name.to_uppercase()
    )?;
    writeln!(out, "    own: &[")?;
    for (ns, flag) in [
        ("user", "CLONE_NEWUSER"),
        ("mnt", "CLONE_NEWNS"),
        ("ipc", "CLONE_NEWIPC"),
        ("uts", "CLONE_NEWUTS"),
        ("pid", "CLONE_NEWPID"),
        ("cgroup", "CLONE_NEWCGROUP"),
        ("net", "CLONE_NEWNET"),
    ] {
        if own(ns) {
            writeln!(out, "        CloneFlags::{flag},")?;
        }
    }
    writeln!(out, "    ],")?;
    writeln!(out, "    low_ports: {low_ports},")?;
    writeln!(out, "    tcp_bind: {tcp_bind},")?;
    writeln!(
        out,
        "    tcp_connect: {},",
        process.landlock.tcp_connect == "any"
    )?;
    writeln!(out, "    signal_scope: {},", scoped("signal"))?;
    writeln!(out, "    rlimits: &[")?;
    for (limit, value) in &process.rlimits {
        writeln!(
            out,
            "        (Resource::RLIMIT_{}, {value}),",
            limit.to_uppercase()
        )?;
    }
    writeln!(out, "    ],")?;
    for (field, programs) in [("kill", kill), ("trap", trap)] {
        let program = programs.get(name).ok_or("filter vanished")?;
        writeln!(out, "    {field}: &[")?;
        for i in program {
            writeln!(
                out,
                "        sock_filter {{ code: {}, jt: {}, jf: {}, k: {} }},",
                i.code, i.jt, i.jf, i.k
            )?;
        }
        writeln!(out, "    ],")?;
    }
    writeln!(out, "}};")?;
    Ok(())
}
