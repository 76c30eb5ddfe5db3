//! The command line of `pesto`: options are commands, carried out in their order.
//!
//! The habits of `getopt_long` are those of `cli::getopt`; unlike there, options may follow PATH. A specifier is
//! parsed here, so that a typing error is found before anybody is asked anything.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::PestoError;
use crate::cli::getopt::{self, Definition, Immediate, Scanned};
use crate::config::rules::{Protocol, RuleError, Spec, Table};

/// What a command line asks for.
#[derive(Debug)]
pub(super) enum Invocation {
    Help(String),
    Version(String),
    Run(Plan),
}

/// What is to be printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Output {
    Tables,
    Json,
    Watch,
}

/// A connection's work.
#[derive(Debug)]
pub(super) struct Plan {
    pub path: PathBuf,
    pub output: Output,
    pub show: bool,
    pub debug: bool,
    /// None: only look. `-A` alone is a change, even if it comes to nothing.
    pub commands: Vec<Command>,
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// `-A`: from here on, specifiers are added.
    Add,
    /// `-D`: from here on, specifiers are deleted.
    Delete,
    /// `-C`: empty this table.
    Clear(String),
    /// `-t`, `-u`, `-T`, `-U`.
    Ports {
        table: Table,
        protocol: Protocol,
        text: String,
        spec: Spec,
    },
}

/// Long name, short name, takes a value?
const OPTIONS: [(&str, Option<u8>, bool); 13] = [
    ("add", Some(b'A'), false),
    ("delete", Some(b'D'), false),
    ("clear", Some(b'C'), true),
    ("tcp-ports", Some(b't'), true),
    ("udp-ports", Some(b'u'), true),
    ("tcp-ns", Some(b'T'), true),
    ("udp-ns", Some(b'U'), true),
    ("show", Some(b's'), false),
    ("debug", Some(b'd'), false),
    ("json", None, false),
    ("watch", None, false),
    ("help", Some(b'h'), false),
    ("version", None, false),
];

const HELP: &str = "
Show or change the ports that a running passt or pasta forwards.

PATH is the socket given to that instance with -c. Without options that
change something, print the current configuration.

  -t, --tcp-ports SPEC  TCP ports of the host, to the guest or namespace
  -u, --udp-ports SPEC  UDP ports of the host, to the guest or namespace
  -T, --tcp-ns SPEC     TCP ports of the namespace, to the host
  -U, --udp-ns SPEC     UDP ports of the namespace, to the host
                        SPEC: none | [ADDR][%IFACE]/LIST | LIST
                        LIST: N[-M][:[TOADDR/]T[-U]] | ~N[-M] | all | auto ,...
  -A, --add             Add what follows, instead of replacing the table
  -D, --delete          Delete what follows; it must match exactly
  -C, --clear TABLE     Empty a table, HOST or SPLICE
  -s, --show            Show the configuration before and after a change
      --json            Print rules, flows, counters and confinement as JSON
      --watch           Print rules and flows with their rates, every second
  -d, --debug           Say more
  -h, --help            Print this help and exit
      --version         Print the version and exit

Options are commands, carried out in order; nothing happens if one of them
fails. Exit status: 0, or 1 after a message.
";

/// Parse a whole command line, program name included.
pub(super) fn parse(argv: &[OsString]) -> Result<Invocation, PestoError> {
    let (name, mut words) = match argv.split_first() {
        Some((name, words)) => (name.as_os_str(), words),
        None => (OsStr::new("pesto"), argv),
    };
    let program = Path::new(name)
        .file_name()
        .unwrap_or(name)
        .to_string_lossy()
        .into_owned();
    let definitions = definitions();
    let mut options = Vec::new();
    let mut positional: Vec<&OsString> = Vec::new();
    // Options may stand behind PATH, too.
    loop {
        match getopt::scan(&program, &definitions, words)
            .map_err(|e| PestoError::Usage(e.message))?
        {
            Scanned::Immediate(Immediate::Version) => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Invocation::Version(format!("{program} {version}\n")));
            }
            Scanned::Immediate(_) => {
                let text = format!("Usage: {program} [OPTION]... PATH\n{HELP}");
                return Ok(Invocation::Help(text));
            }
            Scanned::Words {
                options: more,
                rest,
            } => {
                options.extend(more);
                let (before, left) = words.split_at(words.len().saturating_sub(rest.len()));
                words = left;
                if before.last().is_some_and(|word| word == "--") {
                    positional.extend(words);
                    break;
                }
                let Some((path, after)) = words.split_first() else {
                    break;
                };
                positional.push(path);
                words = after;
            }
        }
    }
    let usage = |what: &str| {
        PestoError::Usage(format!(
            "{program}: {what}\nTry '{program} --help' for more information."
        ))
    };
    let path = match positional.as_slice() {
        [path] => PathBuf::from(path),
        [] => return Err(usage("no PATH of a control socket given")),
        _ => return Err(usage("more than one PATH given")),
    };
    let plan = plan(path, &options)?;
    if plan.output != Output::Tables && (plan.show || !plan.commands.is_empty()) {
        return Err(usage("--json and --watch only look: give them alone"));
    }
    Ok(Invocation::Run(plan))
}

fn definitions() -> Vec<Definition> {
    OPTIONS
        .into_iter()
        .map(|(long, short, takes_value)| Definition {
            long: long.to_owned(),
            aliases: Vec::new(),
            short,
            takes_value,
        })
        .collect()
}

/// From canonical options to commands.
fn plan(path: PathBuf, options: &[OsString]) -> Result<Plan, PestoError> {
    let mut plan = Plan {
        path,
        output: Output::Tables,
        show: false,
        debug: false,
        commands: Vec::new(),
    };
    for option in options {
        let (name, value) = split(option)?;
        let command = match name {
            "show" => {
                plan.show = true;
                continue;
            }
            "debug" => {
                plan.debug = true;
                continue;
            }
            "json" => {
                plan.output = Output::Json;
                continue;
            }
            "watch" => {
                plan.output = Output::Watch;
                continue;
            }
            "add" => Command::Add,
            "delete" => Command::Delete,
            "clear" => Command::Clear(value.to_owned()),
            "tcp-ports" => ports(Table::Host, Protocol::Tcp, value)?,
            "udp-ports" => ports(Table::Host, Protocol::Udp, value)?,
            "tcp-ns" => ports(Table::Splice, Protocol::Tcp, value)?,
            _ => ports(Table::Splice, Protocol::Udp, value)?,
        };
        plan.commands.push(command);
    }
    Ok(plan)
}

/// `--name=value`; the value must be text.
fn split(option: &OsString) -> Result<(&str, &str), PestoError> {
    let Some(text) = option.to_str() else {
        let shown = String::from_utf8_lossy(option.as_bytes()).into_owned();
        return Err(RuleError::Syntax(shown).into());
    };
    let text = text.trim_start_matches("--");
    Ok(text.split_once('=').unwrap_or((text, "")))
}

fn ports(table: Table, protocol: Protocol, text: &str) -> Result<Command, PestoError> {
    let spec = Spec::parse(text)?;
    if table == Table::Splice && spec.has_listen() {
        return Err(RuleError::ListenAddress(table.option(protocol), text.to_owned()).into());
    }
    Ok(Command::Ports {
        table,
        protocol,
        text: text.to_owned(),
        spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::completions;

    fn parsed(line: &str) -> Result<Invocation, String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse(&words).map_err(|e| e.to_string())
    }

    fn planned(line: &str) -> Plan {
        match parsed(line) {
            Ok(Invocation::Run(plan)) => plan,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn options_are_commands_in_order_wherever_path_stands() {
        let long =
            planned("pesto --add --tcp-ports=80 /s --dele -u 53 --clear HOST --tcp-ns none -s");
        let short = planned("/usr/bin/pesto -A -t80 -D -u53 -CHOST -sT none -- /s");
        assert_eq!(long.commands, short.commands);
        assert_eq!(long.commands.len(), 6);
        assert!(long.show && short.show);
        assert_eq!(long.path, Path::new("/s"));
        assert!(planned("pesto -s /s").commands.is_empty());
        assert_eq!(planned("pesto -A /s").commands, [Command::Add]);
        assert_eq!(planned("pesto --json /s").output, Output::Json);
    }

    #[test]
    fn mistakes_are_found_before_anybody_is_asked() {
        for (line, text) in [
            ("pesto", "no PATH of a control socket"),
            ("pesto -t 80", "no PATH"),
            ("pesto /a /b", "more than one PATH"),
            ("pesto --bogus /s", "unrecognized option '--bogus'"),
            ("pesto -X /s", "invalid option -- 'X'"),
            ("pesto /s -t", "option requires an argument -- 't'"),
            ("pesto -t bogus /s", "Invalid port specifier 'bogus'"),
            (
                "pesto -A -T 1.2.3.4/80 /s",
                "Listening address not allowed for -T 1.2.3.4/80",
            ),
            ("pesto --json -t 80 /s", "only look"),
            ("pesto --watch -s /s", "only look"),
        ] {
            let e = parsed(line).expect_err(line);
            assert!(e.contains(text), "{line}: {e}");
        }
    }

    /// The line of `--help` about this option: name of its value, text.
    fn told(long: &str) -> (Option<&str>, &str) {
        let line = HELP
            .lines()
            .find(|line| {
                line.split([' ', ','])
                    .any(|word| word == format!("--{long}"))
            })
            .expect(long);
        let (_, rest) = line.split_once(&format!("--{long}")).expect(long);
        let (value, text) = rest.split_once("  ").expect(long);
        let value = value.trim();
        ((!value.is_empty()).then_some(value), text.trim())
    }

    #[test]
    fn completions_of_pesto() {
        use clap::{Arg, ArgAction};
        let options = OPTIONS.map(|(long, short, takes_value)| {
            let (value, text) = told(long);
            assert_eq!(value.is_some(), takes_value, "--{long}");
            let arg = Arg::new(long)
                .long(long)
                .short(short.map(char::from))
                .help(text);
            match value {
                None => arg.action(ArgAction::SetTrue),
                Some("TABLE") => arg
                    .action(ArgAction::Append)
                    .value_parser(["HOST", "SPLICE"]),
                Some(value) => arg.action(ArgAction::Append).value_name(value),
            }
        });
        let path = Arg::new("PATH").value_name("PATH");
        completions::check(completions::command(
            "pesto",
            options.into_iter().chain([path]),
        ));
    }

    #[test]
    fn help_and_version_take_effect_where_they_stand() {
        assert!(matches!(parsed("pesto -h"), Ok(Invocation::Help(_))));
        assert!(matches!(
            parsed("pesto -t 80 --version --bogus"),
            Ok(Invocation::Version(_))
        ));
        assert!(parsed("pesto --bogus --version").is_err());
    }
}
