//! `pasta` for `cargo run`; packages install `passt` once and link the other names to it.

fn main() -> std::process::ExitCode {
    passt::program::main()
}
