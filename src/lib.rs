//! User-mode networking for virtual machines (`passt`) and network namespaces (`pasta`).
//!
//! Ethernet frames on one side, the *guest*; ordinary sockets of the host on the other. Between them there is no TCP/IP
//! stack: the guest's kernel and the host's both have one, and what lies between only translates.
//!
//! ```text
//!   program    pesto                argv in, exit status out; pesto is the client of the control socket
//!   launcher   cli netlink          the start: everything that needs a path or a privilege
//!      | clones, then becomes
//!   monitor    ipc log control      listens on the host, decides when all ends; sees no traffic
//!   ns-agent   (monitor::ns_agent)  made the tap in the target namespace; listens there
//!   forwarder  sandbox              event loop; no privilege; built only from a proof of confinement
//!   ------------------------------  the guest's bytes are seen from here down
//!   tcp  udp  icmp  services        protocol engines: events in, actions out, no system call, no clock
//!   flow  tap                       who talks to whom; frames in and out, with offloads
//!   wire                            packet formats: bytes in, values out, and back
//!   ------------------------------
//!   pesto                           a program of its own: shows and changes what an instance forwards
//!   qrap                            a program of its own: connects an old qemu to an instance
//!   config  addr  clock  stats      values everybody shares
//!   control                         what goes over the control socket
//!   pcap                            the capture file
//!   control                         what `pesto` and a running instance say to each other
//!   sys                             system calls: the only `unsafe`
//! ```
//!
//! A module uses what stands below it, not what stands above it (`tests/architecture.rs` has the list of arrows).
//! `wire`, `flow` and `services` are pure.
//! Everything from `tap` and `flow` up to the engines allocates at start only; and nothing that a guest or a peer
//! sends may panic, block or grow: the lints at the head of those modules make the compiler see to that.
//!
//! Where to start reading: [`launcher::run`] for the processes, [`forwarder`] for the way of a packet, [`tcp`]
//! for the part that is hard.

pub mod addr;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod flow;
pub mod forwarder;
pub mod icmp;
pub mod ipc;
pub mod launcher;
pub mod log;
pub mod monitor;
pub mod netlink;
pub mod pcap;
pub mod pesto;
pub mod program;
pub mod qrap;
pub mod sandbox;
pub mod services;
pub mod stats;
pub mod sys;
pub mod tap;
pub mod tcp;
pub mod udp;
pub mod wire;
