//! What is offered to the guest's driver and to the frontend, and what comes of it.
//!
//! Offered is everything that spares somebody work: super-frames and unfinished checksums both ways, buffers that
//! frames can span, several pairs of rings, few interrupts. Not offered: packed rings, and logging of dirty memory,
//! without which the frontend will not migrate the guest.

use vhost::vhost_user::VhostUserProtocolFeatures;

/// Feature bits of virtio-net (virtio 1.2 section 5.1.3) and of rings (section 6); GUEST_... is what the driver takes,
/// HOST_... what it sends.
mod bit {
    pub(super) const CSUM: u64 = 1;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    /// The frontend has the control queue; it asks us whether it may.
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const MQ: u64 = 1 << 22;
    pub(super) const INDIRECT_DESC: u64 = 1 << 28;
    pub(super) const EVENT_IDX: u64 = 1 << 29;
    /// Of the vhost-user protocol, not of the device.
    pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub(super) const VERSION_1: u64 = 1 << 32;
    pub(super) const GUEST_USO4: u64 = 1 << 54;
    pub(super) const GUEST_USO6: u64 = 1 << 55;
    pub(super) const HOST_USO: u64 = 1 << 56;
}

const OFFERED: u64 = bit::CSUM
    | bit::GUEST_CSUM
    | bit::GUEST_TSO4
    | bit::GUEST_TSO6
    | bit::GUEST_ECN
    | bit::HOST_TSO4
    | bit::HOST_TSO6
    | bit::HOST_ECN
    | bit::MRG_RXBUF
    | bit::INDIRECT_DESC
    | bit::EVENT_IDX
    | bit::PROTOCOL_FEATURES
    | bit::VERSION_1
    | bit::GUEST_USO4
    | bit::GUEST_USO6
    | bit::HOST_USO;

/// The features of the protocol that are offered.
pub const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::RARP)
    .union(VhostUserProtocolFeatures::REPLY_ACK);

/// Length of the header in front of a frame, with the number of buffers it spans, and without (section 5.1.6).
const HEADER_LEN: usize = 12;
const SHORT_HEADER_LEN: usize = 10;

/// What was agreed on with the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(u64);

impl Features {
    /// What is offered for so many pairs of rings.
    #[must_use]
    pub const fn offered(pairs: u16) -> u64 {
        if pairs > 1 {
            OFFERED | bit::MQ | bit::CTRL_VQ
        } else {
            OFFERED
        }
    }

    /// The driver's choice; `None` if it wants what was not offered.
    #[must_use]
    pub const fn chosen(bits: u64, pairs: u16) -> Option<Self> {
        if bits & !Self::offered(pairs) == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Rings begin disabled, until SET_VRING_ENABLE (vhost-user specification, "Ring states").
    #[must_use]
    pub const fn rings_begin_disabled(self) -> bool {
        self.has(bit::PROTOCOL_FEATURES)
    }

    /// A frame for the guest may span several of its buffers.
    #[must_use]
    pub const fn mergeable(self) -> bool {
        self.has(bit::MRG_RXBUF)
    }

    /// Notifications are asked for by index.
    #[must_use]
    pub const fn event_index(self) -> bool {
        self.has(bit::EVENT_IDX)
    }

    /// Bytes in front of each frame.
    #[must_use]
    pub const fn header_len(self) -> usize {
        if self.has(bit::VERSION_1) || self.has(bit::MRG_RXBUF) {
            HEADER_LEN
        } else {
            SHORT_HEADER_LEN
        }
    }

    /// The guest takes unfinished checksums.
    #[must_use]
    pub const fn checksums(self) -> bool {
        self.has(bit::GUEST_CSUM)
    }

    /// The guest takes TCP super-frames of this family.
    #[must_use]
    pub const fn tso(self, ipv6: bool) -> bool {
        let tso = if ipv6 {
            bit::GUEST_TSO6
        } else {
            bit::GUEST_TSO4
        };
        self.has(bit::GUEST_CSUM | tso)
    }

    /// The guest takes UDP super-frames.
    #[must_use]
    pub const fn uso(self, ipv6: bool) -> bool {
        let uso = if ipv6 {
            bit::GUEST_USO6
        } else {
            bit::GUEST_USO4
        };
        self.has(bit::GUEST_CSUM | uso)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_what_was_offered_can_be_chosen() {
        assert_eq!(Features::chosen(0, 1), Some(Features::default()));
        let all = Features::offered(1);
        assert!(Features::chosen(all, 1).is_some_and(Features::mergeable));
        assert_eq!(Features::chosen(all | bit::MQ, 1), None);
        assert!(Features::chosen(all | bit::MQ, 2).is_some());
        // VIRTIO_F_RING_PACKED, VHOST_F_LOG_ALL.
        for not in [1 << 34, 1 << 26] {
            assert_eq!(Features::chosen(all | not, 8), None);
        }
    }

    #[test]
    fn super_frames_need_checksums() {
        let tso = Features::chosen(bit::GUEST_TSO4, 1).unwrap();
        assert!(!tso.tso(false));
        let both = Features::chosen(bit::GUEST_TSO4 | bit::GUEST_CSUM, 1).unwrap();
        assert!(both.tso(false) && !both.tso(true) && !both.uso(false));
    }

    #[test]
    fn the_header_is_short_for_legacy_drivers_only() {
        assert_eq!(Features::default().header_len(), 10);
        for long in [bit::VERSION_1, bit::MRG_RXBUF] {
            assert_eq!(Features::chosen(long, 1).unwrap().header_len(), 12);
        }
    }
}
