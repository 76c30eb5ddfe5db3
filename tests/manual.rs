//! The manual pages beside the programs: every option is in both, and what one says of a default or a limit is what
//! the other says and what the program does.
//!
//! Options and defaults come from `--help`, which is made from the definitions that command lines are read with; the
//! pages are the mdoc sources. Limits are tried out: the last value that is taken and the first that is not.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, Stdio};

use passt::cli::Invocation;

/// One program's options: each name with what is said of it.
type Said = BTreeMap<String, String>;

/// The page's items whose tag is an option.
fn page(name: &str) -> Said {
    let path = format!("{}/man/{name}.1", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(path).expect("a page");
    let mut said = Said::new();
    let mut current: Vec<String> = Vec::new();
    for line in source.lines() {
        if [".It ", ".El", ".Sh", ".Ss"]
            .iter()
            .any(|m| line.starts_with(m))
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            let flags = words.windows(2).filter(|pair| pair[0].ends_with("Fl"));
            current = flags.map(|pair| dashed(pair[1])).collect();
            for option in &current {
                said.insert(option.clone(), String::new());
            }
            continue;
        }
        for option in &current {
            let text = said.entry(option.clone()).or_default();
            text.push(' ');
            text.push_str(line);
        }
    }
    said
}

/// An option as it is typed, from its name in mdoc.
fn dashed(name: &str) -> String {
    format!("-{name}")
}

/// What `--help` of the program lists: lines that begin with an option, with what follows up to the next one.
fn help(program: &str) -> Said {
    let output = Command::new(binary(program))
        .arg("--help")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{program} --help");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut said = Said::new();
    let mut current: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.starts_with('-') {
            let names = line.split("  ").next().unwrap_or_default();
            current = names
                .split([' ', ','])
                .filter(|word| word.starts_with('-'))
                .map(str::to_owned)
                .collect();
        }
        for option in &current {
            let text = said.entry(option.clone()).or_default();
            text.push(' ');
            text.push_str(line);
        }
    }
    said
}

fn binary(program: &str) -> &'static str {
    match program {
        "passt" => env!("CARGO_BIN_EXE_passt"),
        "pasta" => env!("CARGO_BIN_EXE_pasta"),
        _ => env!("CARGO_BIN_EXE_pesto"),
    }
}

/// Both programs are in one page.
fn both() -> Said {
    let mut said = help("passt");
    for (option, text) in help("pasta") {
        said.entry(option).or_insert(text);
    }
    said
}

fn names(said: &Said) -> Vec<&str> {
    said.keys().map(String::as_str).collect()
}

#[test]
fn every_option_is_in_the_page_and_in_the_help() {
    let mut documented = page("passt");
    // Another name of --socket, shown behind it as an alias.
    assert!(documented.remove("--socket-path").is_some());
    assert_eq!(names(&documented), names(&both()));
    assert_eq!(names(&page("pesto")), names(&help("pesto")));
    assert_eq!(
        names(&page("qrap")),
        [""; 0],
        "qrap's words are those of qemu"
    );
}

#[test]
fn defaults_agree() {
    let pages = page("passt");
    for (option, text) in both() {
        let page = &pages[&option];
        let Some((_, default)) = text.split_once("[default: ") else {
            let claims = page.contains("The default is") || page.contains("The default are");
            assert!(!claims, "--help of {option} has no default: {page}");
            continue;
        };
        assert!(page.contains("default"), "{option} has a default: {page}");
        let (default, _) = default.split_once(']').expect("it ends");
        // Words in which there is no choice.
        for word in default.split([' ', ',', ';']) {
            let literal = word.contains(|c: char| c.is_ascii_digit() || c == '/')
                || ["auto", "none", "nobody", "random", "gateway's"].contains(&word);
            assert!(
                !literal || page.contains(word),
                "{option}: {word} is not in the page: {page}"
            );
        }
    }
}

/// Is the command line refused for what this option says? Values are looked at first; a namespace that does not
/// exist ends the program before it does anything.
fn refused(program: &str, option: &str, value: &str) -> bool {
    let output = Command::new(binary(program))
        .args([option, value, "--netns", "/nonexistent/x"])
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    !text.contains("Couldn't open network namespace")
}

#[test]
fn limits_are_those_of_the_program() {
    let pages = page("passt");
    let socket = |len: usize| format!("/{}", "x".repeat(len - 1));
    for (option, last, first, told) in [
        ("--mtu", "68".to_owned(), "67".to_owned(), "68"),
        ("--mtu", "65521".to_owned(), "65522".to_owned(), "65521"),
        (
            "--log-size",
            "40960".to_owned(),
            "40959".to_owned(),
            "40960",
        ),
        ("--ns-ifname", "x".repeat(15), "x".repeat(16), "15"),
        ("--conf-path", socket(107), socket(108), "107"),
    ] {
        assert!(pages[option].contains(told), "{option}: {told}");
        assert!(!refused("pasta", option, &last), "{option} {last}");
        assert!(refused("pasta", option, &first), "{option} {first}");
    }
    assert!(pages["--socket"].contains("107"));
}

/// The command lines of ours that a text shows: whole words behind a prompt, in the order they are typed.
fn shown(text: &str) -> Vec<Vec<String>> {
    let lines = text.replace("\\e\n", "").replace("\\\n", "");
    lines
        .lines()
        .filter_map(|line| line.trim_start_matches(".Dl ").strip_prefix("$ "))
        .filter_map(|line| line.split('#').next())
        .map(|line| {
            let words = line.split_whitespace().filter(|word| *word != "&");
            words.map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|words| ["passt", "pasta", "pesto"].contains(&words[0].as_str()))
        .collect()
}

#[test]
fn examples_are_accepted() {
    let mut tried = 0;
    for file in ["man/passt.1", "man/pesto.1", "man/qrap.1", "README.md"] {
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).expect("a file of the tree");
        for words in shown(&text) {
            tried += 1;
            if words[0] == "pesto" {
                let output = Command::new(binary("pesto"))
                    .args(&words[1..words.len() - 1])
                    .arg("/nonexistent/socket")
                    .output()
                    .expect("it runs");
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains("/nonexistent/socket"), "{words:?}: {said}");
                continue;
            }
            let line: Vec<OsString> = words.iter().map(OsString::from).collect();
            let parsed = passt::cli::parse(&line);
            assert!(
                matches!(parsed, Ok(Invocation::Run(_))),
                "{words:?}: {parsed:?}"
            );
        }
    }
    assert!(tried > 10, "{tried}");
}

#[test]
fn pages_are_valid_and_complete() {
    let mut linted = true;
    for name in ["passt", "pesto", "qrap"] {
        let path = format!("{}/man/{name}.1", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(&path).expect("a page");
        let mut sections = vec!["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS"];
        sections.extend(["EXAMPLES", "SEE ALSO"]);
        for section in sections {
            assert!(
                source.lines().any(|line| line == format!(".Sh {section}")),
                "{name}.1 has no {section}"
            );
        }
        let Ok(output) = Command::new("mandoc").args(["-Tlint", &path]).output() else {
            linted = false;
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Whether the pages it points to are installed here is not the page's fault.
        let wrong: Vec<&str> = text
            .lines()
            .filter(|line| !line.contains("referenced manual not found"))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
    for name in ["pasta", "passt4netns"] {
        let path = format!("{}/man/{name}.1", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(path).expect("a page");
        assert_eq!(source, ".so man1/passt.1\n");
    }
    if !linted {
        let why = "skipped: form of the manual pages: mandoc is not installed";
        let _ = writeln!(std::io::stderr(), "{why}");
    }
}
