//! The command line as callers see it: a corpus of command lines with the verdict of the established
//! implementation beside ours, and the built program's own words and exit status.
//!
//! Only what is decided before anything is set up is tested here, so that no privilege is needed.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests report to their user"
)]

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use passt::addr::Mac;
use passt::cli::{self, Invocation};
use passt::config::host::{
    Address, HostNetwork, Link, LinkFlags, NextHop, Route, RouteKind, Scope,
};
use passt::config::resolv::ResolvConf;
use passt::config::{self, Environment};

/// The host the corpus was recorded on.
fn host() -> HostNetwork {
    let link = |index, name: &str, flags| Link {
        index,
        name: name.to_owned(),
        mac: Some(Mac([2, 0, 0, 0, 0, 7])),
        mtu: 1500,
        flags: LinkFlags(LinkFlags::UP | flags),
    };
    let address = |local: &str, prefix_len, scope| Address {
        link: 2,
        local: local.parse().unwrap(),
        prefix_len,
        peer: None,
        broadcast: None,
        scope,
        flags: 0,
        metric: None,
    };
    let default = |any: &str, gateway: &str| Route {
        destination: any.parse().unwrap(),
        prefix_len: 0,
        source: None,
        tos: 0,
        kind: RouteKind::Unicast,
        scope: Scope::Universe,
        protocol: 3,
        metric: None,
        prefsrc: None,
        metrics: Vec::new(),
        preference: None,
        hops: vec![NextHop {
            link: 2,
            gateway: Some(gateway.parse().unwrap()),
            weight: 1,
            onlink: false,
        }],
    };
    HostNetwork {
        links: vec![link(1, "lo", LinkFlags::LOOPBACK), link(2, "eth7", 0)],
        addresses: vec![
            address("192.0.2.10", 24, Scope::Universe),
            address("2001:db8::10", 64, Scope::Universe),
            address("fe80::ff:fe00:7", 64, Scope::Link),
        ],
        routes: vec![default("0.0.0.0", "192.0.2.1"), default("::", "fe80::99")],
    }
}

fn environment() -> Environment {
    Environment {
        resolv: ResolvConf::parse(b"nameserver 198.51.100.53\n"),
        hostname: "host".to_owned(),
        ephemeral: (32768, 60999),
    }
}

/// Words of a line in shell quoting: blanks separate, single and double quotes keep together.
fn words(line: &str) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words.into_iter().map(OsString::from).collect()
}

/// Everything that is decided before anything is set up.
fn decide(line: &str) -> Result<(), String> {
    match cli::parse(&words(line)).map_err(|e| e.to_string())? {
        Invocation::Run(options) => config::resolve(&options, &host(), &environment())
            .map(drop)
            .map_err(|e| e.to_string()),
        _ => Ok(()),
    }
}

/// Messages compared as written in the corpus: lines joined, blanks counted once, no hint to read the help.
fn canonical(message: &str) -> String {
    let message = message.split("\nTry '").next().unwrap_or_default();
    let joined = message.replace('\n', " / ");
    joined.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn corpus() {
    let mut lines = 0;
    let mut wrong = Vec::new();
    for row in include_str!("cli_corpus.tsv").lines() {
        if row.starts_with('#') {
            continue;
        }
        let columns: Vec<_> = row
            .split('\t')
            .chain(std::iter::repeat(""))
            .take(6)
            .collect();
        let [theirs, ours, line, their_message, our_message, note] = columns[..] else {
            panic!("{row}");
        };
        lines += 1;
        let (verdict, message) = match decide(line) {
            Ok(()) => ("ok", String::new()),
            Err(message) => ("no", canonical(&message)),
        };
        if verdict != ours || message != canonical(our_message) {
            wrong.push(format!(
                "{line}\n    expected {ours}: {our_message}\n    got {verdict}: {message}"
            ));
        }
        let same = theirs == ours && canonical(their_message) == canonical(our_message);
        if same != note.is_empty() {
            wrong.push(format!(
                "{line}\n    a difference without a reason, or the reverse"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {lines}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(lines > 400, "{lines}");
}

/// Start the built program under `name`.
fn run(name: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_passt"))
        .arg0(name)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn refused(name: &str, args: &[&str], first_line: &str) {
    let output = run(name, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    assert_eq!(text.lines().next(), Some(first_line), "{args:?}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let hint = text.lines().nth(1).unwrap_or_default();
    let unknown = first_line.contains("option ");
    assert_eq!(hint.contains("--help"), unknown, "{args:?}: {text}");
}

#[test]
fn the_program_says_what_callers_match_on() {
    refused(
        "/usr/bin/pasta",
        &["--no-map-gw", "--xyz"],
        "pasta: unrecognized option '--xyz'",
    );
    refused(
        "pasta",
        &["--no-such-option"],
        "pasta: unrecognized option '--no-such-option'",
    );
    refused(
        "pasta",
        &["--bogus", "--version"],
        "pasta: unrecognized option '--bogus'",
    );
    refused("passt4netns", &["-Z"], "passt4netns: invalid option -- 'Z'");
    refused(
        "pasta",
        &["-t", "1/2/3/4", "--netns", "/x"],
        "Invalid port specifier '1/2/3/4'",
    );
    refused("pasta", &["-m", "70000"], "MTU 70000 too large (max 65521)");
    refused(
        "pasta",
        &["--netns", "/x", "1"],
        "Both --netns and PID or command given",
    );
    refused(
        "passt",
        &["--config-net"],
        "--config-net is for pasta mode only",
    );
}

#[test]
fn version_and_help_go_to_standard_output() {
    for args in [
        &["--version"][..],
        &["--host-lo-to-ns-lo", "--version"],
        &["--vers", "--bogus"],
    ] {
        let output = run("/usr/bin/pasta", args);
        assert!(output.status.success(), "{args:?}");
        assert!(output.stdout.starts_with(b"pasta "), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}");
    }
    let output = run("passt", &["-h"]);
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"Usage: passt "));
}

#[test]
fn an_unknown_name_is_refused() {
    let output = run("/usr/bin/other", &["--version"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("'other'"));
}
