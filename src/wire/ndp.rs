//! Neighbour discovery (RFC 4861): solicitations and advertisements of routers and neighbours, with the
//! options for link-layer addresses, prefixes, the MTU, and DNS (RFC 8106).
//!
//! The options of a message stay where they are: [`Options`] is a view of bytes whose lengths have been
//! checked once, so that walking them cannot fail. An option of length 0 voids the message, as RFC 4861
//! section 4.6 demands. Writing goes the other way round: emit the message without options, then append
//! them with an [`OptionWriter`].
//!
//! That a message must come with hop limit 255 is checked by [`super::dissect`], which sees the header.

use std::net::Ipv6Addr;

use super::take;
use crate::addr::Mac;
use crate::stats::Drop;

/// The lowest ICMPv6 type that is read here: router solicitation.
pub const FIRST_TYPE: u8 = ROUTER_SOLICIT;
/// The highest ICMPv6 type that is read here: neighbour advertisement.
pub const LAST_TYPE: u8 = NEIGHBOR_ADVERT;
/// Every message is sent with this hop limit, and ignored with another: it cannot come from far away.
pub const HOP_LIMIT: u8 = 255;

const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOR_SOLICIT: u8 = 135;
const NEIGHBOR_ADVERT: u8 = 136;

const MANAGED: u8 = 0x80;
const OTHER_CONFIG: u8 = 0x40;
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;

const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_RDNSS: u8 = 25;
const OPTION_DNSSL: u8 = 31;

/// A neighbour discovery message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repr<'a> {
    /// "Are there routers?"
    RouterSolicit {
        /// Options: source link-layer address.
        options: Options<'a>,
    },
    /// "I am a router."
    RouterAdvert {
        /// Hop limit for hosts to use; 0: no opinion.
        hop_limit: u8,
        /// Addresses are to be had by DHCPv6.
        managed: bool,
        /// Other things are to be had by DHCPv6.
        other_config: bool,
        /// How long this is a default router, in seconds; 0: it is not one.
        lifetime: u16,
        /// How long a neighbour counts as reachable, in milliseconds; 0: no opinion.
        reachable_time: u32,
        /// Time between solicitations, in milliseconds; 0: no opinion.
        retransmit_time: u32,
        /// Options: source link-layer address, prefixes, MTU, DNS.
        options: Options<'a>,
    },
    /// "Who has the target address?"
    NeighborSolicit {
        /// The address asked for; never a group's.
        target: Ipv6Addr,
        /// Options: source link-layer address, unless the sender is looking for duplicates.
        options: Options<'a>,
    },
    /// "I have the target address."
    NeighborAdvert {
        /// The sender is a router.
        router: bool,
        /// It was asked.
        solicited: bool,
        /// What was known before is to be replaced.
        overrides: bool,
        /// The address.
        target: Ipv6Addr,
        /// Options: target link-layer address.
        options: Options<'a>,
    },
}

impl<'a> Repr<'a> {
    /// The message that fills `data`, from its ICMPv6 header on. Its checksum is not looked at.
    ///
    /// # Errors
    /// [`Drop::Truncated`] if data is missing, [`Drop::Unsupported`] for another type,
    /// [`Drop::Malformed`] for a code other than 0, a group as target, or an option of length 0.
    pub fn parse(data: &'a [u8]) -> Result<Self, Drop> {
        let ([kind, code, _, _, rest @ ..], body) = take::<8>(data)?;
        if *code != 0 {
            return Err(Drop::Malformed);
        }
        let [flags, ..] = *rest;
        match *kind {
            ROUTER_SOLICIT => Ok(Self::RouterSolicit {
                options: Options::check(body)?,
            }),
            ROUTER_ADVERT => {
                let [hop_limit, flags, l1, l0] = *rest;
                let ([a3, a2, a1, a0, t3, t2, t1, t0], options) = take::<8>(body)?;
                Ok(Self::RouterAdvert {
                    hop_limit,
                    managed: flags & MANAGED != 0,
                    other_config: flags & OTHER_CONFIG != 0,
                    lifetime: u16::from_be_bytes([l1, l0]),
                    reachable_time: u32::from_be_bytes([*a3, *a2, *a1, *a0]),
                    retransmit_time: u32::from_be_bytes([*t3, *t2, *t1, *t0]),
                    options: Options::check(options)?,
                })
            }
            NEIGHBOR_SOLICIT | NEIGHBOR_ADVERT => {
                let (target, options) = take::<16>(body)?;
                let target = Ipv6Addr::from(*target);
                let options = Options::check(options)?;
                if target.is_multicast() {
                    return Err(Drop::Malformed);
                }
                Ok(if *kind == NEIGHBOR_SOLICIT {
                    Self::NeighborSolicit { target, options }
                } else {
                    Self::NeighborAdvert {
                        router: flags & ROUTER != 0,
                        solicited: flags & SOLICITED != 0,
                        overrides: flags & OVERRIDE != 0,
                        target,
                        options,
                    }
                })
            }
            _ => Err(Drop::Unsupported),
        }
    }

    /// Write the message with its options, and with a zero checksum, to the start of `out`; its length.
    #[must_use]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let mut writer = Writer { out, len: 0 };
        let options = match self {
            Self::RouterSolicit { options } => {
                writer.put(&[ROUTER_SOLICIT, 0, 0, 0, 0, 0, 0, 0])?;
                options
            }
            Self::RouterAdvert {
                hop_limit,
                managed,
                other_config,
                lifetime,
                reachable_time,
                retransmit_time,
                options,
            } => {
                let flags = flag(*managed, MANAGED) | flag(*other_config, OTHER_CONFIG);
                let [l1, l0] = lifetime.to_be_bytes();
                writer.put(&[ROUTER_ADVERT, 0, 0, 0, *hop_limit, flags, l1, l0])?;
                writer.put(&reachable_time.to_be_bytes())?;
                writer.put(&retransmit_time.to_be_bytes())?;
                options
            }
            Self::NeighborSolicit { target, options } => {
                writer.put(&[NEIGHBOR_SOLICIT, 0, 0, 0, 0, 0, 0, 0])?;
                writer.put(&target.octets())?;
                options
            }
            Self::NeighborAdvert {
                router,
                solicited,
                overrides,
                target,
                options,
            } => {
                let flags = flag(*router, ROUTER)
                    | flag(*solicited, SOLICITED)
                    | flag(*overrides, OVERRIDE);
                writer.put(&[NEIGHBOR_ADVERT, 0, 0, 0, flags, 0, 0, 0])?;
                writer.put(&target.octets())?;
                options
            }
        };
        writer.put(options.0)?;
        Some(writer.len)
    }
}

/// The bit, if it is set.
const fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

/// A prefix that a router advertises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefixInfo {
    /// The prefix.
    pub prefix: Ipv6Addr,
    /// Its length, 0..=128 bits.
    pub prefix_len: u8,
    /// Its addresses are neighbours.
    pub on_link: bool,
    /// Hosts may make themselves an address of it (SLAAC).
    pub autonomous: bool,
    /// How long those are valid, in seconds; all ones: for ever.
    pub valid_lifetime: u32,
    /// How long they are preferred, in seconds; all ones: for ever.
    pub preferred_lifetime: u32,
}

/// One option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NdpOption<'a> {
    /// The sender's link-layer address.
    SourceLinkLayer(Mac),
    /// The target's link-layer address.
    TargetLinkLayer(Mac),
    /// A prefix.
    Prefix(PrefixInfo),
    /// The link's MTU, in bytes.
    Mtu(u32),
    /// Resolvers.
    Rdnss {
        /// How long they may be used, in seconds.
        lifetime: u32,
        /// Their addresses, 16 bytes each.
        servers: &'a [u8],
    },
    /// Search list.
    Dnssl {
        /// How long it may be used, in seconds.
        lifetime: u32,
        /// The names, uncompressed as in RFC 1035 section 3.1, and zeroes after the last.
        names: &'a [u8],
    },
    /// Another option, or one of these with the wrong length.
    Unknown {
        /// Type.
        kind: u8,
        /// What follows type and length.
        data: &'a [u8],
    },
}

/// The options of a message: every length has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// No options.
    pub const EMPTY: Self = Self(&[]);

    /// Check that the options fill `data`.
    fn check(data: &'a [u8]) -> Result<Self, Drop> {
        let mut rest = data;
        // At least eight bytes go per turn.
        while !rest.is_empty() {
            let ([_, units], _) = take::<2>(rest)?;
            if *units == 0 {
                return Err(Drop::Malformed);
            }
            rest = rest
                .get(usize::from(*units).saturating_mul(8)..)
                .ok_or(Drop::Truncated)?;
        }
        Ok(Self(data))
    }

    /// The source link-layer address, if there is one.
    #[must_use]
    pub fn source_link_layer(self) -> Option<Mac> {
        self.into_iter().find_map(|option| match option {
            NdpOption::SourceLinkLayer(mac) => Some(mac),
            _ => None,
        })
    }

    /// The target link-layer address, if there is one.
    #[must_use]
    pub fn target_link_layer(self) -> Option<Mac> {
        self.into_iter().find_map(|option| match option {
            NdpOption::TargetLinkLayer(mac) => Some(mac),
            _ => None,
        })
    }
}

impl<'a> IntoIterator for Options<'a> {
    type Item = NdpOption<'a>;
    type IntoIter = OptionsIter<'a>;

    fn into_iter(self) -> OptionsIter<'a> {
        OptionsIter(self.0)
    }
}

/// Walks [`Options`].
#[derive(Clone, Debug)]
pub struct OptionsIter<'a>(&'a [u8]);

impl<'a> Iterator for OptionsIter<'a> {
    type Item = NdpOption<'a>;

    fn next(&mut self) -> Option<NdpOption<'a>> {
        let ([kind, units], _) = self.0.split_first_chunk::<2>()?;
        let (option, rest) = self
            .0
            .split_at_checked(usize::from(*units).saturating_mul(8))?;
        self.0 = rest;
        let data = option.get(2..)?;
        Some(read(*kind, data).unwrap_or(NdpOption::Unknown { kind: *kind, data }))
    }
}

/// The option of type `kind`, unless it is unknown or of the wrong length.
fn read(kind: u8, data: &[u8]) -> Option<NdpOption<'_>> {
    match (kind, data.len()) {
        (OPTION_SOURCE, 6) => Some(NdpOption::SourceLinkLayer(Mac(*data.first_chunk()?))),
        (OPTION_TARGET, 6) => Some(NdpOption::TargetLinkLayer(Mac(*data.first_chunk()?))),
        (OPTION_PREFIX, 30) => {
            let ([prefix_len, flags, times @ .., _, _, _, _], prefix) =
                data.split_first_chunk::<14>()?;
            let [v3, v2, v1, v0, p3, p2, p1, p0] = *times;
            if *prefix_len > 128 {
                return None;
            }
            Some(NdpOption::Prefix(PrefixInfo {
                prefix: Ipv6Addr::from(*prefix.first_chunk::<16>()?),
                prefix_len: *prefix_len,
                on_link: flags & ON_LINK != 0,
                autonomous: flags & AUTONOMOUS != 0,
                valid_lifetime: u32::from_be_bytes([v3, v2, v1, v0]),
                preferred_lifetime: u32::from_be_bytes([p3, p2, p1, p0]),
            }))
        }
        (OPTION_MTU, 6) => {
            let [_, _, m3, m2, m1, m0] = *data.first_chunk()?;
            Some(NdpOption::Mtu(u32::from_be_bytes([m3, m2, m1, m0])))
        }
        (OPTION_RDNSS, len) if len >= 22 && len % 16 == 6 => {
            let ([_, _, l3, l2, l1, l0], servers) = data.split_first_chunk()?;
            let lifetime = u32::from_be_bytes([*l3, *l2, *l1, *l0]);
            Some(NdpOption::Rdnss { lifetime, servers })
        }
        (OPTION_DNSSL, len) if len >= 14 => {
            let ([_, _, l3, l2, l1, l0], names) = data.split_first_chunk()?;
            let lifetime = u32::from_be_bytes([*l3, *l2, *l1, *l0]);
            Some(NdpOption::Dnssl { lifetime, names })
        }
        _ => None,
    }
}

/// Fills a buffer from its start.
struct Writer<'b> {
    out: &'b mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.out.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }
}

/// Appends options to a message. Each is written whole or, if there is no room, not at all: `false`.
#[derive(Debug)]
pub struct OptionWriter<'b> {
    out: &'b mut [u8],
    len: usize,
}

impl<'b> OptionWriter<'b> {
    /// Start at the beginning of `out`, which is what follows the message without options.
    #[must_use]
    pub const fn new(out: &'b mut [u8]) -> Self {
        Self { out, len: 0 }
    }

    /// Length of the options written so far, in bytes: a multiple of 8.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Nothing written yet?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Append the parts as one option, padded with zeroes to a multiple of 8 bytes.
    fn append(&mut self, kind: u8, parts: &[&[u8]]) -> Option<()> {
        let data = parts
            .iter()
            .map(|part| part.len())
            .fold(2_usize, usize::saturating_add);
        let len = data.checked_next_multiple_of(8)?;
        let end = self.len.checked_add(len)?;
        let units = u8::try_from(len / 8).ok()?;
        let mut writer = Writer {
            out: self.out.get_mut(self.len..end)?,
            len: 0,
        };
        writer.put(&[kind, units])?;
        for part in parts {
            writer.put(part)?;
        }
        let written = writer.len;
        writer.out.get_mut(written..)?.fill(0);
        self.len = end;
        Some(())
    }

    /// The sender's link-layer address.
    pub fn source_link_layer(&mut self, mac: Mac) -> bool {
        self.append(OPTION_SOURCE, &[&mac.0]).is_some()
    }

    /// The target's link-layer address.
    pub fn target_link_layer(&mut self, mac: Mac) -> bool {
        self.append(OPTION_TARGET, &[&mac.0]).is_some()
    }

    /// The link's MTU, in bytes.
    pub fn mtu(&mut self, mtu: u32) -> bool {
        self.append(OPTION_MTU, &[&[0, 0], &mtu.to_be_bytes()])
            .is_some()
    }

    /// A prefix.
    pub fn prefix(&mut self, info: &PrefixInfo) -> bool {
        let flags = flag(info.on_link, ON_LINK) | flag(info.autonomous, AUTONOMOUS);
        let parts: [&[u8]; 5] = [
            &[info.prefix_len, flags],
            &info.valid_lifetime.to_be_bytes(),
            &info.preferred_lifetime.to_be_bytes(),
            &[0; 4],
            &info.prefix.octets(),
        ];
        self.append(OPTION_PREFIX, &parts).is_some()
    }

    /// As many of the resolvers as there is room for (127 at most); `false` if that is none.
    pub fn rdnss(&mut self, lifetime: u32, servers: &[Ipv6Addr]) -> bool {
        const MAX: usize = 127;
        let free = self.out.len().saturating_sub(self.len).saturating_sub(8) / 16;
        let count = servers.len().min(free).min(MAX);
        let Some(servers) = servers.get(..count).filter(|servers| !servers.is_empty()) else {
            return false;
        };
        self.write_rdnss(lifetime, servers).is_some()
    }

    fn write_rdnss(&mut self, lifetime: u32, servers: &[Ipv6Addr]) -> Option<()> {
        let len = servers.len().checked_mul(16)?.checked_add(8)?;
        let end = self.len.checked_add(len)?;
        let mut writer = Writer {
            out: self.out.get_mut(self.len..end)?,
            len: 0,
        };
        writer.put(&[OPTION_RDNSS, u8::try_from(len / 8).ok()?, 0, 0])?;
        writer.put(&lifetime.to_be_bytes())?;
        for server in servers {
            writer.put(&server.octets())?;
        }
        self.len = end;
        Some(())
    }

    /// A search list of names, uncompressed as in RFC 1035 section 3.1.
    pub fn dnssl(&mut self, lifetime: u32, names: &[u8]) -> bool {
        !names.is_empty()
            && self
                .append(OPTION_DNSSL, &[&[0, 0], &lifetime.to_be_bytes(), names])
                .is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const RESOLVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);
    const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);

    /// A neighbour solicitation for fe80::1 with source link-layer address.
    fn solicitation() -> Vec<u8> {
        let mut out = vec![135, 0, 0, 0, 0, 0, 0, 0];
        out.extend(LINK_LOCAL.octets());
        out.extend([1, 1, 2, 0, 0, 0, 0, 1]);
        out
    }

    #[test]
    fn neighbor_solicitation_vector() {
        let data = solicitation();
        let repr = Repr::parse(&data).unwrap();
        let Repr::NeighborSolicit { target, options } = repr else {
            panic!("{repr:?}")
        };
        assert_eq!(target, LINK_LOCAL);
        assert_eq!(options.source_link_layer(), Some(GUEST));
        assert_eq!(options.target_link_layer(), None);
        let mut out = [0xff; 32];
        assert_eq!(repr.emit(&mut out), Some(32));
        assert_eq!(out[..], data);
        for short in 0..32 {
            assert_eq!(repr.emit(&mut out[..short]), None);
            // 24 bytes are a message without options.
            assert_eq!(Repr::parse(&data[..short]).is_ok(), short == 24, "{short}");
        }
    }

    #[test]
    fn neighbor_advertisement_flags() {
        for bits in 0..8_u8 {
            let repr = Repr::NeighborAdvert {
                router: bits & 1 != 0,
                solicited: bits & 2 != 0,
                overrides: bits & 4 != 0,
                target: LINK_LOCAL,
                options: Options::EMPTY,
            };
            let mut out = [0xff; 24];
            assert_eq!(repr.emit(&mut out), Some(24));
            assert_eq!(out[..2], [136, 0]);
            assert_eq!(out[4] >> 7 & 1, bits & 1);
            assert_eq!(out[4] >> 6 & 1, bits >> 1 & 1);
            assert_eq!(out[4] >> 5 & 1, bits >> 2 & 1);
            assert_eq!(Repr::parse(&out), Ok(repr));
        }
    }

    #[test]
    fn router_advertisement_with_every_option() {
        let prefix = PrefixInfo {
            prefix: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
            prefix_len: 64,
            on_link: true,
            autonomous: true,
            valid_lifetime: u32::MAX,
            preferred_lifetime: 3600,
        };
        let names = b"\x07example\x03org\x00";
        let mut out = [0xff; 256];
        let fixed = Repr::RouterAdvert {
            hop_limit: 64,
            managed: true,
            other_config: false,
            lifetime: 9000,
            reachable_time: 1,
            retransmit_time: 2,
            options: Options::EMPTY,
        };
        let start = fixed.emit(&mut out).unwrap();
        assert_eq!(start, 16);
        assert_eq!(
            out[..16],
            [134, 0, 0, 0, 64, 0x80, 0x23, 0x28, 0, 0, 0, 1, 0, 0, 0, 2]
        );
        let mut writer = OptionWriter::new(&mut out[start..]);
        assert!(writer.is_empty());
        assert!(writer.prefix(&prefix));
        assert!(writer.mtu(65_520));
        assert!(writer.rdnss(60, &[RESOLVER, LINK_LOCAL]));
        assert!(writer.dnssl(60, names));
        assert!(writer.source_link_layer(GUEST));
        assert!(writer.target_link_layer(GUEST));
        assert_eq!(writer.len(), 32 + 8 + 40 + 24 + 8 + 8);
        let end = start + writer.len();
        assert_eq!(
            out[16..32],
            [
                3, 4, 64, 0xc0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x0e, 0x10, 0, 0, 0, 0
            ]
        );
        assert_eq!(out[48..56], [5, 1, 0, 0, 0, 0, 0xff, 0xf0]);
        assert_eq!(out[56..64], [25, 5, 0, 0, 0, 0, 0, 60]);
        assert_eq!(out[96..104], [31, 3, 0, 0, 0, 0, 0, 60]);

        let Ok(Repr::RouterAdvert { options, .. }) = Repr::parse(&out[..end]) else {
            panic!()
        };
        let mut expected_names = names.to_vec();
        expected_names.resize(16, 0);
        let read: Vec<_> = options.into_iter().collect();
        assert_eq!(
            read,
            [
                NdpOption::Prefix(prefix),
                NdpOption::Mtu(65_520),
                NdpOption::Rdnss {
                    lifetime: 60,
                    servers: &[RESOLVER.octets(), LINK_LOCAL.octets()].concat(),
                },
                NdpOption::Dnssl {
                    lifetime: 60,
                    names: &expected_names
                },
                NdpOption::SourceLinkLayer(GUEST),
                NdpOption::TargetLinkLayer(GUEST),
            ]
        );
        assert_eq!(options.target_link_layer(), Some(GUEST));
    }

    #[test]
    fn options_that_do_not_fit_are_not_written() {
        let mut out = [0xff; 40];
        let mut writer = OptionWriter::new(&mut out[..39]);
        // Room for one resolver, not for two.
        assert!(writer.rdnss(1, &[RESOLVER, LINK_LOCAL]));
        assert_eq!(writer.len(), 24);
        assert!(!writer.rdnss(1, &[RESOLVER]));
        assert!(!writer.rdnss(1, &[]));
        assert!(!writer.dnssl(1, &[]));
        assert!(!writer.dnssl(1, &[0; 9]));
        assert!(writer.mtu(1500));
        assert!(!writer.source_link_layer(GUEST));
        assert_eq!(writer.len(), 32);
        assert_eq!(out[32..], [0xff; 8]);
        let mut big = vec![0; 10_000];
        let mut writer = OptionWriter::new(&mut big);
        assert!(writer.rdnss(1, &[RESOLVER; 500]));
        assert_eq!(writer.len(), 8 + 127 * 16);
        assert!(!writer.dnssl(1, &[1; 3000]));
        assert!(writer.dnssl(1, &[1; 255 * 8 - 8]));
    }

    #[test]
    fn option_lengths_that_lie() {
        let mut data = solicitation();
        for units in 0..=u8::MAX {
            data[25] = units;
            let expected = match units {
                0 => Err(Drop::Malformed),
                1 => Ok(()),
                _ => Err(Drop::Truncated),
            };
            assert_eq!(Repr::parse(&data).map(|_| ()), expected, "{units}");
        }
        // A known option of the wrong length is unknown.
        data[25] = 2;
        data.extend([0; 8]);
        let Ok(Repr::NeighborSolicit { options, .. }) = Repr::parse(&data) else {
            panic!()
        };
        assert!(
            matches!(options.into_iter().next(), Some(NdpOption::Unknown { kind: 1, data }) if data.len() == 14)
        );
        assert_eq!(options.source_link_layer(), None);
    }

    #[test]
    fn more_than_255_options() {
        let mut data = solicitation();
        data.extend([99, 1, 0, 0, 0, 0, 0, 0].repeat(4000));
        let Ok(Repr::NeighborSolicit { options, .. }) = Repr::parse(&data) else {
            panic!()
        };
        assert_eq!(options.into_iter().count(), 4001);
    }

    #[test]
    fn forbidden_fields() {
        let mut data = solicitation();
        data[1] = 1;
        assert_eq!(Repr::parse(&data), Err(Drop::Malformed));
        let mut data = solicitation();
        data[8] = 0xff;
        assert_eq!(Repr::parse(&data), Err(Drop::Malformed));
        for kind in (0..=u8::MAX).filter(|kind| !(133..=136).contains(kind)) {
            let mut data = solicitation();
            data[0] = kind;
            assert_eq!(Repr::parse(&data), Err(Drop::Unsupported));
        }
        let data = [133, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            Repr::parse(&data),
            Ok(Repr::RouterSolicit {
                options: Options::EMPTY
            })
        );
        let mut prefix = vec![134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 129];
        prefix.resize(48, 0);
        let Ok(Repr::RouterAdvert { options, .. }) = Repr::parse(&prefix) else {
            panic!()
        };
        assert!(matches!(
            options.into_iter().next(),
            Some(NdpOption::Unknown { kind: 3, .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes(kind in 130_u8..140, bytes in proptest::collection::vec(any::<u8>(), 0..120), small: bool) {
            let mut data = vec![kind, 0, 0, 0];
            data.extend(bytes.iter().map(|byte| if small { byte % 6 } else { *byte }));
            if let Ok(repr) = Repr::parse(&data) {
                let mut out = [0; 200];
                let len = repr.emit(&mut out).unwrap();
                prop_assert_eq!(len, data.len());
                prop_assert_eq!(Repr::parse(&out[..len]), Ok(repr));
                let (Repr::RouterSolicit { options } | Repr::RouterAdvert { options, .. }
                    | Repr::NeighborSolicit { options, .. } | Repr::NeighborAdvert { options, .. }) = repr;
                prop_assert!(options.into_iter().count() <= data.len() / 8);
            }
        }
    }
}
