//! The control socket's protocols, shared by the server (`monitor::control`) and the client (`pesto`).
//!
//! [`wire`] is the established protocol, so that either side also works with the established other side:
//! found out by watching both through a relay (their manual promises nothing). All integers are big-endian.
//!
//! ```text
//! server: "basil:s\0" version:u32 (2)  size of a table's name:u32 (128)  size of an interface's name:u32 (16)
//!         then for each table   id:u8 (HOST 1, SPLICE 3)  name  capabilities:u32  rules:u32  rule…
//!         then                  0:u8
//! client: nothing, or for each table   id:u8  rules:u32  rule…      then 0:u8
//! rule:   listen:16 target:16 interface:16 first:u16 last:u16 target port:u16 protocol:u8 flags:u8
//! ```
//!
//! Addresses are IPv6 or IPv4-mapped; a target of zeroes is "automatic". Flags: 1 both families (listen is zeroes;
//! without it zeroes are `[::]`), 2 best effort, 4 follows the other side's listeners. Capabilities, from the
//! lowest bit: IPv4, IPv6, TCP, UDP, scan, interface names; the client ignores bits it does not know and takes
//! versions up to its own.
//!
//! The server greets at once and serves one client after the other; the next one's greeting waits. The client
//! sends whole tables or nothing, closes without waiting and exits with status 0: it never learns whether the
//! tables could be had. What it does not mention is to be empty, a table mentioned twice adds up, and
//! without the last zero nothing happens. What the server cannot take (a rule that contradicts another, flags,
//! protocols or counts it does not know) ends the connection and leaves all as it was; but ports that cannot be
//! bound leave the established server with rules that do not listen, which ours does not copy.
//!
//! [`exchange`] adds what is missing there, answers, for our own client with our own server; [`report`] is what a
//! running instance says of itself.

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

pub mod exchange;
pub mod report;
pub mod wire;
