//! Completions for bash, zsh and fish: generated from the definitions, kept in packaging/completions.
//!
//! They are files of the tree, because packages are made without the crate that makes them; this test compares
//! them with what it would write, and writes them if `UPDATE_COMPLETIONS` is set:
//!
//! ```text
//! UPDATE_COMPLETIONS=1 cargo test --lib completions
//! ```

use std::fs;
use std::path::Path;

use clap::{Arg, Command, CommandFactory, ValueHint};
use clap_complete::{Generator, Shell};

use super::args::Arguments;
use super::{applies, mode_of};

/// The files for this program are those that its definition makes.
pub(crate) fn check(mut command: Command) {
    let name = command.get_name().to_owned();
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/completions");
    for (shell, file) in [
        (Shell::Bash, format!("bash/{name}")),
        (Shell::Zsh, format!("zsh/_{name}")),
        (Shell::Fish, format!("fish/{name}.fish")),
    ] {
        let mut made = Vec::new();
        command.set_bin_name(&name);
        command.build();
        shell.generate(&command, &mut made);
        let made = String::from_utf8(made).expect("text");
        let path = top.join(&file);
        if made.is_empty() {
            // fish has nothing to be told about a program without options.
            assert!(!path.exists(), "packaging/completions/{file} is empty");
            continue;
        }
        if std::env::var_os("UPDATE_COMPLETIONS").is_some() {
            fs::create_dir_all(path.parent().expect("a directory")).expect("directory made");
            fs::write(&path, &made).expect("written");
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == made,
            "packaging/completions/{file} is not what the options say: UPDATE_COMPLETIONS=1 cargo test --lib completions"
        );
        for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
            // fish has no dashes: `complete -c pasta -l config-net`.
            let long = arg.get_long().expect("every option has a long name");
            assert!(made.contains(long), "{file}: --{long}");
        }
    }
}

/// A command that takes these.
pub(crate) fn command(name: &'static str, args: impl IntoIterator<Item = Arg>) -> Command {
    Command::new(name)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(args.into_iter().map(hinted))
}

/// What follows an option is a file if its name in `--help` says so, and nothing a shell knows otherwise.
fn hinted(mut arg: Arg) -> Arg {
    if arg.get_id() == "runas" {
        // A colon would end the name in zsh.
        arg = arg.value_name("USER");
    }
    if arg.get_value_hint() != ValueHint::Unknown || !arg.get_action().takes_values() {
        return arg;
    }
    let names = arg.get_value_names().unwrap_or_default();
    let is_file = names
        .iter()
        .flat_map(|name| name.split('|'))
        .any(|name| matches!(name, "PATH" | "FILE"));
    arg.value_hint(if is_file {
        ValueHint::AnyPath
    } else {
        ValueHint::Other
    })
}

#[test]
fn completions_of_passt_pasta_and_qrap() {
    for name in ["passt", "pasta", "passt4netns"] {
        let (mode, _) = mode_of(name.as_ref()).expect("a name");
        let definition = Arguments::command();
        let options = definition
            .get_arguments()
            .filter(|arg| applies(mode, arg))
            .cloned();
        let words = (name != "passt").then(|| words("COMMAND"));
        check(command(name, options.chain(words)));
    }
    check(command("qrap", [words("QEMU")]));
}

fn words(name: &'static str) -> Arg {
    Arg::new(name)
        .num_args(0..)
        .trailing_var_arg(true)
        .value_hint(ValueHint::CommandWithArguments)
}
