//! ICMP and ICMPv6: echo requests of the guest through ping sockets, and error messages for the guest.
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

mod echo;
pub mod io;
pub mod oversize;
pub mod quote;
pub mod report;
#[cfg(test)]
mod tests;

pub use echo::Engine;
