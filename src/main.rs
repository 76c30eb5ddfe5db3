//! `passt`; started as `pasta` or `passt4netns`, the program for namespaces.

fn main() -> std::process::ExitCode {
    passt::program::main()
}
