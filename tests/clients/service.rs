//! The servers of the world: who answers at which address.
//!
//! On the peer, from the beginning: HTTP on port 80 and echo (TCP and UDP) on port 7 of [`PEER4`], [`PEER6`], [`WEB4`]
//! and [`WEB6`]; a name server on port 53 (UDP and TCP) of [`DNS4`] and [`DNS6`], which the machine's
//! /etc/resolv.conf names. To it every name has the addresses [`WEB4`] and [`WEB6`], and a TXT record that only fits
//! into TCP. HTTP: `/` is [`PAGE`](crate::servers::PAGE), `/big?N` N bytes of the pattern, `/who` the address that was
//! asked and the one that asked.
//!
//! On the host nothing, as any port there may be one that a test publishes: a test starts what it needs with
//! `servers::http(&machine.world.host, (HOST4, 8000))` and the like. They are threads of the test's process.

use crate::servers;
use crate::world::{DNS4, DNS6, PEER4, PEER6, World};

/// The address of every name.
pub const WEB4: &str = "192.0.2.80";
pub const WEB6: &str = "2001:db8::80";

pub fn start(world: &World) {
    let peer = &world.peer;
    peer.sh(&format!("ip addr add {WEB4}/32 dev lo"));
    peer.sh(&format!("ip addr add {WEB6}/128 dev lo nodad"));
    for address in [PEER4, PEER6, WEB4, WEB6] {
        servers::http(peer, (address, 80));
        servers::echo(peer, (address, 7));
        servers::udp_echo(peer, (address, 7));
    }
    for address in [DNS4, DNS6] {
        servers::dns(peer, address);
    }
}
