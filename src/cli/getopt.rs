//! The habits of `getopt_long` that callers rely on, as a pass over `argv`.
//!
//! Long options may be abbreviated while that is unambiguous; a value follows `=` or is the next word; short
//! options are bundled (`-fq`) and take their value from the rest of the word or the next one (`-pFILE`,
//! `-p FILE`). Parsing stops at `--` or at the first word that is not an option: what follows belongs to
//! pasta's COMMAND. `--help` and `--version` take effect where they stand: what precedes them must be right,
//! what follows is not looked at. Messages are those of the C library, which callers match on.
//!
//! The result is the canonical command line (`--name` or `--name=value`, each option by its full name).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::CliError;

/// One option, as the pass needs it.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    /// Canonical long name, without dashes.
    pub long: String,
    /// Other long names.
    pub aliases: Vec<String>,
    /// Single-character name.
    pub short: Option<u8>,
    /// Takes a value?
    pub takes_value: bool,
}

/// A word that ends parsing where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Immediate {
    Help,
    Version,
    PrintCapabilities,
}

/// What the pass makes of a command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    /// Stop and do that.
    Immediate(Immediate),
    /// Canonical options, then the words after them.
    Words {
        options: Vec<OsString>,
        rest: Vec<OsString>,
    },
}

/// Scan `args` (without `argv[0]`); `program` begins every message.
pub(crate) fn scan(
    program: &str,
    definitions: &[Definition],
    args: &[OsString],
) -> Result<Scanned, CliError> {
    let mut scanner = Scanner {
        program,
        definitions,
        options: Vec::new(),
    };
    let mut words = args.iter();
    let mut rest = Vec::new();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        let mut next = || words.next().cloned();
        let immediate = if bytes == b"--" {
            break;
        } else if let Some(name) = bytes.strip_prefix(b"--") {
            scanner.long(name, &mut next)?
        } else if bytes.len() > 1 && bytes.starts_with(b"-") {
            scanner.short(bytes.get(1..).unwrap_or_default(), &mut next)?
        } else {
            rest.push(word.clone());
            break;
        };
        if let Some(immediate) = immediate {
            return Ok(Scanned::Immediate(immediate));
        }
    }
    rest.extend(words.cloned());
    Ok(Scanned::Words {
        options: scanner.options,
        rest,
    })
}

struct Scanner<'a> {
    program: &'a str,
    definitions: &'a [Definition],
    options: Vec<OsString>,
}

impl<'a> Scanner<'a> {
    /// `--name`, `--name=value`, `--name value`.
    fn long(
        &mut self,
        word: &[u8],
        next: &mut dyn FnMut() -> Option<OsString>,
    ) -> Result<Option<Immediate>, CliError> {
        let (name, value) = match word.iter().position(|&b| b == b'=') {
            Some(at) => {
                let (name, value) = word.split_at(at);
                (name, value.get(1..))
            }
            None => (word, None),
        };
        let definition = self.find(word, name)?;
        let full = &definition.long;
        let value = match (definition.takes_value, value) {
            (false, None) => None,
            (false, Some(_)) => {
                return Err(self.error(&format!("option '--{full}' doesn't allow an argument")));
            }
            (true, Some(value)) => Some(OsString::from_vec(value.to_vec())),
            (true, None) => match next() {
                Some(value) => Some(value),
                None => {
                    return Err(self.error(&format!("option '--{full}' requires an argument")));
                }
            },
        };
        Ok(self.take(definition, value))
    }

    /// The option a long name, whole or abbreviated, stands for.
    fn find(&self, word: &[u8], name: &[u8]) -> Result<&'a Definition, CliError> {
        let names = |d: &'_ Definition| {
            std::iter::once(d.long.clone())
                .chain(d.aliases.iter().cloned())
                .collect::<Vec<_>>()
        };
        if let Some(exact) = self
            .definitions
            .iter()
            .find(|d| names(d).iter().any(|n| n.as_bytes() == name))
        {
            return Ok(exact);
        }
        let matches: Vec<_> = self
            .definitions
            .iter()
            .filter_map(|d| {
                let hits: Vec<_> = names(d)
                    .into_iter()
                    .filter(|n| n.as_bytes().starts_with(name))
                    .collect();
                (!hits.is_empty()).then_some((d, hits))
            })
            .collect();
        let shown = String::from_utf8_lossy(word);
        match matches.as_slice() {
            [] => Err(self.error(&format!("unrecognized option '--{shown}'"))),
            [(only, _)] => Ok(only),
            several => {
                let mut text = format!("option '--{shown}' is ambiguous; possibilities:");
                for name in several.iter().flat_map(|(_, hits)| hits) {
                    text.push_str(&format!(" '--{name}'"));
                }
                Err(self.error(&text))
            }
        }
    }

    /// `-fq`, `-pFILE`, `-p FILE`.
    fn short(
        &mut self,
        letters: &[u8],
        next: &mut dyn FnMut() -> Option<OsString>,
    ) -> Result<Option<Immediate>, CliError> {
        let mut letters = letters;
        while let Some((&letter, tail)) = letters.split_first() {
            letters = tail;
            let shown = String::from_utf8_lossy(&[letter]).into_owned();
            let Some(definition) = self.definitions.iter().find(|d| d.short == Some(letter)) else {
                return Err(self.error(&format!("invalid option -- '{shown}'")));
            };
            let value = if !definition.takes_value {
                None
            } else if tail.is_empty() {
                let Some(value) = next() else {
                    return Err(self.error(&format!("option requires an argument -- '{shown}'")));
                };
                Some(value)
            } else {
                letters = &[];
                Some(OsString::from_vec(tail.to_vec()))
            };
            let immediate = self.take(definition, value);
            if immediate.is_some() {
                return Ok(immediate);
            }
        }
        Ok(None)
    }

    fn take(&mut self, definition: &Definition, value: Option<OsString>) -> Option<Immediate> {
        match definition.long.as_str() {
            "help" => return Some(Immediate::Help),
            "version" => return Some(Immediate::Version),
            "print-capabilities" => return Some(Immediate::PrintCapabilities),
            _ => {}
        }
        let mut word = OsString::from(format!("--{}", definition.long));
        if let Some(value) = value {
            word.push("=");
            word.push(AsRef::<OsStr>::as_ref(&value));
        }
        self.options.push(word);
        None
    }

    fn error(&self, what: &str) -> CliError {
        // Two lines, whatever the words.
        let what = what.replace(char::is_control, "?");
        let program = self.program.replace(char::is_control, "?");
        CliError::new(format!(
            "{program}: {what}\nTry '{program} --help' for more information."
        ))
    }
}
