//! `qrap`: qemu with a connection to passt as one of its descriptors.

fn main() -> std::process::ExitCode {
    passt::program::qrap()
}
