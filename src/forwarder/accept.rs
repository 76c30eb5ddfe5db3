//! What arrives at the TCP listeners: over the tap to the guest, or round it.
//!
//! Listeners are watched level-triggered and emptied a few connections at a time. Which way a connection goes is
//! [`translate::inbound`]'s decision; whatever cannot be carried is reset, so that the peer learns at once that
//! nobody is there.
//!
//! When the descriptors run out, a connection that cannot be accepted would keep its listener readable and
//! this loop busy: then the spare descriptor is given up for as long as it takes to accept and reset it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::ports::Place;
use super::tcp_io::Socket;
use super::worker::Worker;
use crate::addr::Endpoint;
use crate::clock::Instant;
use crate::config::rules::Table;
use crate::flow::id::Key;
use crate::flow::translate::{self, Inbound};
use crate::stats::Drop;
use crate::sys::stream;
use crate::tcp;
use crate::tcp::splice::{self, Way};

/// Connections taken from one listener in one round.
const AT_ONCE: usize = 16;
/// Where connections come one at a time, asking for a second one is a wasted call: after a visit that found one, so
/// many take one only. The listener will be reported again (it is watched level-triggered) if there are more after all.
const TRUSTED_SINGLES: u8 = 7;

/// What accept4(2) gave.
struct Accepted {
    fd: OwnedFd,
    /// SO_PEEK_OFF came with it, switched on.
    peeks_on: bool,
}

/// The peer gets a RST.
fn reset(fd: &OwnedFd) {
    // If it fails the peer gets FIN instead: nothing better can be done.
    let _ = stream::linger_zero(fd);
}

/// Where a connection goes.
enum Decision {
    Tap(Key),
    Splice {
        way: Way,
        to: Endpoint,
        source: Option<IpAddr>,
    },
}

impl Worker {
    /// A listener has connections.
    pub(super) fn on_listener(&mut self, now: Instant, index: u32) {
        let most = if self.singles > 0 { 1 } else { AT_ONCE };
        self.singles = self.singles.saturating_sub(1);
        for taken in 0..most {
            let Some((listener, place)) = self.host.ports.tcp(index) else {
                return;
            };
            match stream::accept(&listener.fd) {
                Ok((fd, peer)) => {
                    let socket = Accepted {
                        fd,
                        peeks_on: listener.peeks_on,
                    };
                    if let Err(why) = self.arrived(now, place, socket, peer.into()) {
                        self.host.link.counters.drop(why);
                    }
                }
                Err(e) => match e.raw_os_error() {
                    // Gone before we came, or the network said something about it (accept(2)).
                    Some(libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => {}
                    Some(libc::EMFILE | libc::ENFILE) => {
                        self.refuse_one(index);
                        return;
                    }
                    // It does not listen any more: whoever rules its network has ended it (SOCK_DESTROY of
                    // sock_diag(7), as by `ss -K`). Kept, it would be ready for ever.
                    Some(libc::EINVAL) => {
                        self.host.ports.remove(place);
                        self.missed(now, place);
                        return;
                    }
                    _ => {
                        if taken == 1 {
                            self.singles = TRUSTED_SINGLES;
                        }
                        return;
                    }
                },
            }
        }
    }

    /// There is no descriptor for the next connection of this listener: reset it.
    fn refuse_one(&mut self, index: u32) {
        self.spare = None;
        if let Some((listener, _)) = self.host.ports.tcp(index) {
            // The kernel looks for a descriptor before it looks for a connection: there need not be one.
            if let Ok((fd, _)) = stream::accept(&listener.fd) {
                reset(&fd);
                self.host.link.counters.drop(Drop::NoDescriptor);
            }
        }
        self.spare = spare();
    }

    /// A connection: where does it go?
    fn arrived(
        &mut self,
        now: Instant,
        place: Place,
        Accepted { fd, peeks_on }: Accepted,
        peer: Endpoint,
    ) -> Result<(), Drop> {
        let result = self.direct(place, &fd, peer);
        match result {
            Ok(Decision::Tap(key)) => {
                let socket = Socket::accepted(fd, peeks_on);
                let arrival = tcp::Arrival {
                    key,
                    rule: Some(place.rule),
                    socket,
                };
                self.tcp.accept(&mut self.host, now, arrival);
                Ok(())
            }
            Ok(Decision::Splice { way, to, source }) => {
                let arrival = splice::Arrival {
                    socket: fd,
                    way,
                    to,
                    source,
                    rule: Some(place.rule),
                    peer,
                };
                self.splice.accept(&mut self.host, now, arrival);
                Ok(())
            }
            Err(why) => {
                reset(&fd);
                Err(why)
            }
        }
    }

    fn direct(&self, place: Place, fd: &OwnedFd, peer: Endpoint) -> Result<Decision, Drop> {
        let (notice, forward) = self.host.ports.forward(place).ok_or(Drop::NoFlow)?;
        let config = &self.host.config;
        let local =
            || stream::local_addr(fd).map_or(Err(Drop::SocketError), |a| Ok(Endpoint::from(a).ip));
        match notice.table {
            Table::Splice => Ok(Decision::Splice {
                way: Way::Out,
                to: translate::splice_out(forward, local()?),
                source: None,
            }),
            Table::Host => {
                // Which of the host's addresses was meant matters only where it is to be the same inside.
                let same = config.splice.to_loopback || config.splice.only;
                let local = if peer.ip.is_loopback() && same {
                    local()?
                } else {
                    peer.ip
                };
                match translate::inbound(config, &self.host.seen, forward, peer, local)? {
                    Inbound::Tap(key) => Ok(Decision::Tap(key)),
                    Inbound::Splice { to, source } => Ok(Decision::Splice {
                        way: Way::In,
                        to,
                        source,
                    }),
                }
            }
        }
    }
}

/// A descriptor to have one when there are none.
pub(super) fn spare() -> Option<OwnedFd> {
    stream::socket(std::net::Ipv4Addr::UNSPECIFIED.into()).ok()
}
