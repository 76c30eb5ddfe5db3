//! `pesto`: shows and changes what a running instance forwards.

fn main() -> std::process::ExitCode {
    passt::program::pesto()
}
