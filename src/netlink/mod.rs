//! Conversation with the kernel's routing socket (rtnetlink(7)), synchronous, at start-up; and two that go on after it.
//!
//! Two shapes of conversation exist, and [`socket::Socket`] offers one method for each. A *dump* asks for
//! everything of a kind; it may take many datagrams, and the kernel flags it as interrupted when what it
//! was listing changed meanwhile, in which case it is asked again. A *batch* carries many changes in one
//! datagram and asks for an acknowledgement of the last only: the kernel works through all of them before
//! `send` returns and reports each refusal, so silence means success and the usual cost of a batch is two
//! system calls.
//!
//! What we read is reduced to the plain data of [`crate::config::host`] at once; what we do not understand
//! (a new attribute, a new kind of next hop) is left out, never an error: a machine with an exotic route is
//! still a machine. Only [`diag`] and [`neighbours`] are used after confinement, and written for that.

pub mod diag;
mod host;
mod message;
pub mod neighbours;
mod nexthop;
mod socket;

use nix::errno::Errno;

pub use host::{link_by_name, own_ipv6, query_host};
pub use socket::{Batch, Refusal, Socket};

/// The conversation with the kernel failed as such.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket: unlikely outside a restrictive seccomp filter.
    #[error("Failed to open a netlink socket: {}", .0.desc())]
    Open(Errno),
    /// A request did not go out.
    #[error("Failed to send a netlink request: {}", .0.desc())]
    Send(Errno),
    /// An answer did not come in.
    #[error("Failed to receive a netlink answer: {}", .0.desc())]
    Receive(Errno),
    /// The kernel refused a request for information.
    #[error("The kernel refused to list {what}: {}", .errno.desc())]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// No interface of that name.
    #[error("No interface named {0}")]
    NoSuchLink(String),
}
