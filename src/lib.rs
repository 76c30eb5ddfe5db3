//! User-mode networking for virtual machines (`passt`) and network namespaces (`pasta`).

pub mod addr;
pub mod cli;
pub mod clock;
pub mod config;
pub mod flow;
pub mod forwarder;
pub mod icmp;
pub mod ipc;
pub mod launcher;
pub mod log;
pub mod monitor;
pub mod netlink;
pub mod pcap;
pub mod program;
pub mod sandbox;
pub mod services;
pub mod stats;
pub mod sys;
pub mod tap;
pub mod tcp;
pub mod udp;
pub mod wire;
