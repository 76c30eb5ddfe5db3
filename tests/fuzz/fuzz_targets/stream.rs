//! A byte stream of frames, as a virtual machine sends them.

#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    targets::stream(data);
});
