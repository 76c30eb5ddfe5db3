//! The control socket's protocols, shared by the server (`monitor::control`) and the client (`pesto`).
//!
//! [`report`] is what a running instance says of itself, to our own client.

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

pub mod report;
