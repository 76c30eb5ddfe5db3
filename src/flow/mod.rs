//! Who talks to whom: the parts of connection tracking that TCP, UDP and ICMP share.
//!
//! A *flow* is one conversation of the guest with one remote end point. Each protocol keeps its flows in a
//! [`table::Table`] of its own: fixed capacity, keyed by the pair of end points as the guest sees them
//! ([`id::Key`]), addressed by a small dense [`id::FlowId`] which is also what epoll tokens and timers carry.
//! Timers of all flows of a protocol live in one [`timers::Wheel`].
//!
//! Everything here is pure: no system call, no clock, and no allocation after construction. A guest decides
//! how many flows there are and what their keys look like, so nothing here may degrade with chosen keys
//! (keyed hash), grow (fixed capacity), or panic.
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

pub mod fragments;
pub mod hash;
pub mod id;
pub mod table;
pub mod timers;
pub mod traffic;
pub mod translate;
