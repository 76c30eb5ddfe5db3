//! Data for the guest, from a socket straight into its memory.
//!
//! Where the guest shares its rings and takes super-frames, the kernel can put a socket's data where the guest wants
//! it: behind room for the headers, in buffers its driver has made available. The headers are written when it is known how
//! much came; the driver sees the frame when it is complete. A recording wants to see frames, too, so there is no such
//! way while one is made; nor where a socket has no SO_PEEK_OFF, because what was peeked before would have to go somewhere.
//!
//! To the engine all this is the same as [`Host::relay_frames`].

use std::io::ErrorKind;

use super::host::Host;
use super::tcp_io::{Socket, classify, largest_payload};
use crate::sys::shared;
use crate::tap::Tap;
use crate::tap::vhost_user::{Filled, Lane};
use crate::tcp::io::{Outgoing, Relayed, SocketError};
use crate::wire::frame::{Checksum, MAX_HEADER, Template};

impl Host {
    /// The ring for frames with these headers, if data can go there directly.
    pub(super) fn lane(&self, template: &Template, out: &Outgoing<'_>) -> Option<Lane> {
        let Tap::VhostUser(tap) = &self.link.tap else {
            return None;
        };
        if self.link.pcap.is_on() {
            return None;
        }
        let mut headers = [0; MAX_HEADER];
        let len = template.emit_tcp(&mut headers, &out.repr, 0, Checksum::Partial)?;
        tap.lane(headers.get(..len)?)
    }

    /// [`Host::relay_frames`] through a ring.
    pub(super) fn relay_direct(
        &mut self,
        (lane, template): (Lane, &Template),
        socket: &Socket,
        out: &Outgoing<'_>,
        (offset, max): (u32, u32),
    ) -> Result<Relayed, SocketError> {
        let header_len = template.tcp_header_len(&out.repr);
        let most = largest_payload(template.ip_end(), header_len, out.mss);
        let mut headers = [0; MAX_HEADER];
        let mut done = Relayed::default();
        let mut repr = out.repr;
        while done.peeked < max {
            let Tap::VhostUser(tap) = &mut self.link.tap else {
                break;
            };
            if !socket.peeks_on(offset.saturating_add(done.peeked)) {
                // The engine tries again, and then it goes another way.
                done.refused = true;
                break;
            }
            let most = most.min(expected(socket));
            let want = most.min(max.saturating_sub(done.peeked) as usize);
            let fill = tap.fill(lane, (header_len, want), |rooms| {
                shared::peek(&socket.fd, rooms)
            });
            let (room, n) = match fill {
                Ok(Filled::Full) => {
                    // It tries again when there is room.
                    done.refused = true;
                    break;
                }
                Ok(Filled::Bytes { got: 0, .. }) => break,
                Ok(Filled::Bytes { room, got }) => (room, got),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if done.peeked == 0 => return Err(classify(&e)),
                Err(e) => {
                    socket.fails_later(classify(&e));
                    break;
                }
            };
            let count = u32::try_from(n).unwrap_or(u32::MAX);
            socket.lately.set(count);
            repr.seq = out.repr.seq.add(done.peeked);
            done.peeked = done.peeked.saturating_add(count);
            let offload = template.tcp_offload(header_len, n, out.mss);
            let emitted = template.emit_tcp(&mut headers, &repr, n, Checksum::Partial);
            let headers = headers.get(..header_len).filter(|_| emitted.is_some());
            if !headers.is_some_and(|headers| tap.finish(lane, headers, n, &offload)) {
                done.refused = true;
                break;
            }
            self.link.sent_in_place(header_len.saturating_add(n));
            done.sent = done.sent.saturating_add(count);
            if n < room {
                break;
            }
        }
        Ok(done)
    }
}

/// How much to take buffers for: looking at many of them for a few bytes is a waste. If there is more after
/// all, the next look is for more.
fn expected(socket: &Socket) -> usize {
    /// An ordinary answer, in bytes.
    const LEAST: u32 = 4096;
    socket.lately.get().saturating_mul(4).max(LEAST) as usize
}
