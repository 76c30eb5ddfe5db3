//! The deadlines of a connection, and what happens when one passes.
//!
//! Nothing idles out that both kernels consider alive: an idle guest is asked (keep-alive, with the kernel's default
//! times) and given up only when it does not answer at all. Retransmission, window probes and the handshake follow the
//! kernel's rules; their giving up counts what went *unanswered*, so a guest that keeps saying "window closed" is
//! never given up.

use std::time::Duration;

use super::conn::{Conn, Ctx, Facts};
use super::io::Io;
use super::moment::Moment;
use crate::wire::tcp::Flags;

/// tcp_keepalive_time: silence before the guest is asked.
const KEEPALIVE: Duration = Duration::from_secs(7200);
/// tcp_keepalive_intvl: between two questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
/// tcp_keepalive_probes: unanswered questions before the guest is given up.
const KEEPALIVE_PROBES: u8 = 9;

/// Silence after which something is done about it, with so many probes unanswered.
pub(super) fn idle_limit(unheard: u8) -> Duration {
    KEEPALIVE.saturating_add(KEEPALIVE_INTERVAL.saturating_mul(u32::from(unheard)))
}

impl<S> Conn<S> {
    /// Do what is due. `false`: the connection is over, everything is closed.
    pub fn on_timer<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) -> bool {
        let now = ctx.now;
        if self.is(Facts::LINGER) {
            return !self.chore_at.due(now);
        }
        if self.rtx_at.due(now) {
            self.rtx_at = Moment::NEVER;
            let alive = if self.is(Facts::CALLING) {
                self.syn_timer(ctx)
            } else if self.is(Facts::SYN_SENT) {
                self.syn_ack_timer(ctx)
            } else {
                self.retransmit_timer(ctx)
            };
            if !alive {
                self.abort(ctx, true);
                return false;
            }
        }
        if self.ack_at.due(now) {
            self.ack_timer(ctx);
        }
        if self.chore_at.due(now) {
            self.chores(ctx);
        }
        if self.heard.instant(now).after(idle_limit(self.unheard)) <= now {
            return self.keepalive(ctx);
        }
        true
    }

    fn keepalive<I: Io<Socket = S>>(&mut self, ctx: &mut Ctx<'_, I>) -> bool {
        if !self.is_open() {
            // Connecting: the kernel of the host decides how long that takes, and it never takes this long.
            self.close_socket(ctx, true);
            return false;
        }
        if self.unheard >= KEEPALIVE_PROBES {
            self.abort(ctx, true);
            return false;
        }
        self.unheard = self.unheard.saturating_add(1);
        let repr = self.header(&ctx.key, self.snd_una.sub(1), Flags::ACK);
        ctx.io.emit(&ctx.key, &repr);
        true
    }
}
