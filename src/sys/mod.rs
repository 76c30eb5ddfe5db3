//! Safe wrappers over system calls: the only room with `unsafe`, but for one file of `tap` (guest memory).
//!
//! One kernel interface per file. Raw descriptors never leave: functions take [`std::os::fd::AsFd`] or
//! `BorrowedFd` and return `OwnedFd`. What nix already wraps well is used from nix directly; a file here
//! exists because nix lacks the call, allocates on a path that must not, or hides an answer we need.

pub mod cmsg;
pub mod datagram;
pub mod errqueue;
pub mod fd;
pub mod ids;
pub mod listen;
pub mod mmsg;
pub mod piece;
pub mod pipe;
pub mod process;
pub mod random;
pub mod reason;
pub mod scm;
pub mod shared;
pub mod sigsys;
pub mod stream;
pub mod tun;
pub mod unix;
pub mod vector;
