//! ICMP and ICMPv6: echo requests of the guest through ping sockets, and error messages for the guest.
//!
//! The [`Engine`] is a core without system calls, like those of TCP and UDP, and acts through [`io::Io`]. The other
//! files serve UDP as well: [`report`] turns what the host's kernel says about a socket into the message a router would
//! have sent, [`quote`] puts the offending datagram together again, [`oversize`] decides about datagrams that
//! do not fit the path. ICMP errors *from* the guest are not carried: the host's kernel speaks for its sockets.
//!
//! What must never happen: an error about an error or to a group; a reply nobody outside sent.
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
