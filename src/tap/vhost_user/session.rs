//! What the frontend has arranged: features, memory, rings (vhost-user specification, "Communication" and
//! "Front-end message types").
//!
//! The order in which things are said is the frontend's: rings may be enabled before they have an address, memory may
//! change under running rings. So each request only notes what it says, and afterwards every ring is looked at
//! again: one that has become usable is looked into at once (a kick that came too early is lost), one that has lost its
//! place in memory is not touched any more. Whatever breaks the specification ends the connection, with one sentence in
//! the log; only what one descriptor says about itself can cost memory here, and there are at most
//! [`MAX_REGIONS`](super::protocol::MAX_REGIONS) of these.

use std::os::fd::{AsFd, OwnedFd};

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};

use super::features::{Features, PROTOCOL};
use super::memory::Memory;
use super::protocol::{Request, reply};
use super::ring::Ring;
use crate::tap::{Gone, Source, Watch};

/// The state of a connection.
#[derive(Debug)]
pub struct Session {
    pub(super) features: Features,
    protocol: VhostUserProtocolFeatures,
    memory: Option<Memory>,
    /// Even ones lead to the guest, odd ones from it.
    pub(super) rings: Vec<Ring>,
}

/// What a request is answered with.
enum Answer {
    Number(u64),
    State(VhostUserVringState),
    /// Nothing, or that it was done.
    Done,
}

impl Session {
    /// For up to `pairs` pairs of rings.
    #[must_use]
    pub fn new(pairs: u16) -> Self {
        let rings = (0..pairs.saturating_mul(2)).filter_map(|_| Ring::new().ok());
        Self {
            features: Features::default(),
            protocol: VhostUserProtocolFeatures::empty(),
            memory: None,
            rings: rings.collect(),
        }
    }

    fn pairs(&self) -> u16 {
        u16::try_from(self.rings.len() / 2).unwrap_or(1)
    }

    /// Forget everything; nothing stays open, mapped or watched. The rings' memory is kept.
    pub fn end(&mut self, watch: &dyn Watch) {
        for ring in &mut self.rings {
            if let Some(kick) = ring.kick() {
                watch.unwatch(kick);
            }
            if let Ok(new) = Ring::new() {
                *ring = new;
            }
        }
        self.features = Features::default();
        self.protocol = VhostUserProtocolFeatures::empty();
        self.memory = None;
    }

    /// Do what is asked, and answer. `true`: a ring can be used now that could not be before.
    ///
    /// # Errors
    /// [`Gone`]: the connection is of no use any more.
    pub fn handle(
        &mut self,
        request: Request,
        socket: impl AsFd,
        watch: &dyn Watch,
    ) -> Result<bool, Gone> {
        let (code, need_reply) = (request.code, request.need_reply);
        let answer = self.obey(request, watch)?;
        let news = self.settle()?;
        match answer {
            Answer::Number(value) => reply(socket, code, &VhostUserU64::new(value)),
            Answer::State(state) => reply(socket, code, &state),
            Answer::Done if need_reply && self.acknowledges() => {
                reply(socket, code, &VhostUserU64::new(0))
            }
            Answer::Done => Ok(()),
        }?;
        Ok(news)
    }

    fn acknowledges(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn obey(&mut self, request: Request, watch: &dyn Watch) -> Result<Answer, Gone> {
        match request.code {
            FrontendReq::GET_FEATURES => {
                request.empty()?;
                return Ok(Answer::Number(Features::offered(self.pairs())));
            }
            FrontendReq::SET_FEATURES => {
                let bits = request.body::<VhostUserU64>()?.value;
                self.features = Features::chosen(bits, self.pairs())
                    .ok_or(Gone::Malformed("features that were not offered"))?;
                self.unbind();
            }
            FrontendReq::GET_PROTOCOL_FEATURES => {
                request.empty()?;
                return Ok(Answer::Number(PROTOCOL.bits()));
            }
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let bits = request.body::<VhostUserU64>()?.value;
                self.protocol = VhostUserProtocolFeatures::from_bits(bits)
                    .filter(|bits| PROTOCOL.contains(*bits))
                    .ok_or(Gone::Malformed("protocol features that were not offered"))?;
            }
            FrontendReq::GET_QUEUE_NUM => {
                request.empty()?;
                return Ok(Answer::Number(u64::from(self.pairs())));
            }
            FrontendReq::SET_OWNER | FrontendReq::RESET_OWNER => request.empty()?,
            FrontendReq::SET_MEM_TABLE => {
                // What was mapped before goes first: the new table may not fit beside it.
                self.memory = None;
                self.unbind();
                self.memory = Some(Memory::map(request.table()?)?);
            }
            // The frontend asks us to tell the network where the guest is now: there is no network to tell.
            FrontendReq::SEND_RARP => {
                request.body::<VhostUserU64>()?;
            }
            _ => return self.arrange_ring(request, watch),
        }
        Ok(Answer::Done)
    }

    /// The requests about one ring.
    fn arrange_ring(&mut self, request: Request, watch: &dyn Watch) -> Result<Answer, Gone> {
        match request.code {
            FrontendReq::SET_VRING_NUM => {
                let state = request.body::<VhostUserVringState>()?;
                self.ring(state.index)?.set_size(state.num)?;
            }
            FrontendReq::SET_VRING_ADDR => {
                let message = request.body::<VhostUserVringAddr>()?;
                self.ring(message.index)?.set_addresses(&message);
            }
            FrontendReq::SET_VRING_BASE => {
                let state = request.body::<VhostUserVringState>()?;
                self.ring(state.index)?.set_base(state.num)?;
            }
            FrontendReq::GET_VRING_BASE => {
                let index = request.body::<VhostUserVringState>()?.index;
                let ring = self.ring(index)?;
                unwatch(ring, watch);
                let base = u32::from(ring.stop());
                return Ok(Answer::State(VhostUserVringState::new(index, base)));
            }
            FrontendReq::SET_VRING_ENABLE => {
                let state = request.body::<VhostUserVringState>()?;
                if state.num > 1 {
                    return Err(Gone::Malformed("ring neither enabled nor disabled"));
                }
                self.ring(state.index)?.enable(state.num == 1);
            }
            FrontendReq::SET_VRING_KICK => {
                let (index, fd) = request.ring_fd()?;
                self.set_kick(index, fd, watch)?;
            }
            FrontendReq::SET_VRING_CALL => {
                let (index, fd) = request.ring_fd()?;
                self.ring(index)?.set_call(fd)?;
            }
            // Nobody listens to errors; the frontend sees the end of the connection.
            FrontendReq::SET_VRING_ERR => {
                let (index, _) = request.ring_fd()?;
                self.ring(index)?;
            }
            _ => return Err(Gone::Malformed("request that is not supported")),
        }
        Ok(Answer::Done)
    }

    fn set_kick(&mut self, index: u32, fd: Option<OwnedFd>, watch: &dyn Watch) -> Result<(), Gone> {
        let source = Source::Kick(u16::try_from(index).unwrap_or(u16::MAX));
        let ring = self.ring(index)?;
        unwatch(ring, watch);
        ring.set_kick(fd)?;
        match ring.kick() {
            Some(kick) => watch
                .watch(kick, source)
                .map_err(|_| Gone::Malformed("kick that cannot be waited for")),
            None => Ok(()),
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring, Gone> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index))
            .ok_or(Gone::Malformed("ring that does not exist"))
    }

    fn unbind(&mut self) {
        for ring in &mut self.rings {
            ring.unbind();
        }
    }

    /// See which rings can be used now.
    fn settle(&mut self) -> Result<bool, Gone> {
        let Some(memory) = &self.memory else {
            return Ok(false);
        };
        let mut news = false;
        for (index, ring) in self.rings.iter_mut().enumerate() {
            if ring.settle(memory, self.features)? {
                if index % 2 == 0 {
                    // Buffers for frames to the guest: we look when we need some.
                    ring.attend(memory)?;
                } else {
                    ring.leave(memory)?;
                }
                news = true;
            }
        }
        Ok(news)
    }

    /// A ring that can be used, and what goes with it.
    pub fn usable(&mut self, index: usize) -> Option<(&Memory, Features, &mut Ring)> {
        let memory = self.memory.as_ref()?;
        let ring = self.rings.get_mut(index)?;
        ring.is_usable().then_some((memory, self.features, ring))
    }

    /// Is there a ring from the guest for which nobody will tell us of frames? (Buffers for frames to the guest are
    /// looked for when there is a frame.)
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.rings.iter().skip(1).step_by(2).any(Ring::is_polled)
    }

    /// Does any ring lead to the guest now?
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.rings.iter().step_by(2).any(Ring::is_usable)
    }
}

fn unwatch(ring: &Ring, watch: &dyn Watch) {
    if let Some(kick) = ring.kick() {
        watch.unwatch(kick);
    }
}
