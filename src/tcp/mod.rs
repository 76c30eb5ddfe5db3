//! TCP between a guest's kernel and sockets of the host's kernel.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod io;

pub use io::{
    ConnectError, Connecting, Info, Io, Outgoing, Readiness, Relayed, Segment, SocketError, Space,
    Unreachable,
};
