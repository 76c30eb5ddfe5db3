//! Reading a host's network and configuring a namespace, on a real kernel.
//!
//! Every test runs once more, alone, as root of a fresh user and network namespace ([`arena::isolated`]); that
//! network namespace plays the host. What the library made of it is checked with `ip`, which shares no code
//! with us.

mod arena;
mod configure;
mod query;
mod tap;
