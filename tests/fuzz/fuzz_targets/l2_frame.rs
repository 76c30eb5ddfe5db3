//! Frames from the guest, with and without an offload header.

#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    targets::l2_frame(data);
    let mut repaired = data.to_vec();
    targets::fix_v4(&mut repaired);
    targets::l2_frame(&repaired);
    targets::offload_frame(data);
    targets::upper_layers(data);
});
