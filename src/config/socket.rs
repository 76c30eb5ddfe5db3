//! Where passt listens for a virtual machine if nobody says where, and where `qrap` looks for it.

use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Numbers of the sockets, in the order in which they are taken and looked for (passt(1), `--socket`).
pub const SOCKETS: RangeInclusive<u8> = 1..=64;

/// The socket of this number.
#[must_use]
pub fn default_socket(number: u8) -> PathBuf {
    PathBuf::from(format!("/tmp/passt_{number}.socket"))
}
