//! UDP: flows of the guest, carried by sockets of the host.
//!
//! A *flow* is a pair of the guest's end point and the end point it sends to. A *socket* serves one end point of
//! the guest: it is bound to the same port where that is free, and while the guest talks to a single peer, as
//! most end points do, it is also connected to that peer, so the kernel routes once and filters for us. When the
//! guest sends from the same end point to somebody else, the connection is dissolved (the port stays) and the
//! socket is shared: datagrams are told apart by who sent them, and those of strangers are dropped. Peers of the
//! guest therefore all see one source port, as they would without us, and a program with a thousand peers
//! costs one descriptor, not a thousand.
//!
//! The alternative, a connected socket per flow all bound to one port, needs SO_REUSEADDR or SO_REUSEPORT. Then
//! any other process that sets it too (another instance of ours, with a guest that sends from the same port to
//! the same server: NTP, DNS, IKE) silently shares the port and takes the answers. Binding exclusively makes
//! that impossible: the second one gets another port.
//!
//! A socket of its own, at a port the kernel chooses, is given to a flow that cannot share: its host-side
//! destination is that of another flow of the same end point (two addresses of the guest's world that mean
//! one on the host), or it must be bound differently (`-o` does not apply to the host's own addresses).
//! Flows to groups (multicast, broadcast) let their socket accept unicast from anybody, because
//! the answers come from addresses the guest has not named.
//!
//! Speed: a batch of the guest's datagrams is sorted by flow, looked up once per run, and each run of equal size
//! leaves in one send with UDP_SEGMENT. Towards the guest, what one receive returned goes out as super-frames.
//!
//! Invariants: a flow belongs to exactly one live socket; a socket without flows is closed; nothing is
//! allocated after construction; a datagram that is not carried is counted, and where the guest's kernel should
//! know why, reported. What must never happen: a datagram given to the guest under a source address the guest
//! did not send to (except answers to groups), or a busy loop on an error that nobody clears.
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

pub mod io;
