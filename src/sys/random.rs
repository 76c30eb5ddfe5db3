//! Secrets from the kernel (getrandom(2)).
#![allow(unsafe_code, reason = "getrandom fills a buffer")]

use std::io;

/// Sixteen unpredictable bytes, for keyed hashes.
pub fn seed() -> io::Result<[u8; 16]> {
    let mut seed = [0_u8; 16];
    // SAFETY: the buffer is valid for its length.
    let n = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    // Up to 256 bytes are never cut short once the kernel's generator is initialised.
    if usize::try_from(n) == Ok(seed.len()) {
        Ok(seed)
    } else {
        Err(io::Error::last_os_error())
    }
}
