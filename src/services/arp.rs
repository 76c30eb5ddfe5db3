//! ARP: every address but the guest's own is at our link-layer address, or at that of the neighbour the host has there.
//!
//! The guest believes it is on its host's network, and whoever it asks for there is reached through us. So
//! we answer for everybody; probes (RFC 5227: sender address unspecified) as well, because an address
//! somebody else may hold is taken. Only three things are not answered: questions for an address the guest
//! has itself (its own conflict detection would find a conflict with us), announcements, which are not
//! questions, and addresses nobody can have.
//!
//! Two frames go out without being asked for: a request for the guest, which has just been plugged in and may have
//! nothing to say, and the announcement of a neighbour, as the neighbour itself would make it.

use std::net::{IpAddr, Ipv4Addr};

use super::Stations;
use super::frame::{self, Link};
use crate::addr::Mac;
use crate::config::Config;
use crate::wire::arp::{Operation, Repr};
use crate::wire::ethernet;

/// The answer to a request, if it gets one.
#[must_use]
pub fn reply(cfg: &Config, stations: Stations<'_>, request: &Repr) -> Option<Repr> {
    let v4 = cfg.v4.as_ref()?;
    let wanted = request.target_ip;
    let impossible = wanted.is_unspecified() || wanted.is_multicast() || wanted.is_broadcast();
    let announcement = request.sender_ip == wanted;
    if request.operation != Operation::Request || wanted == v4.addr || announcement || impossible {
        return None;
    }
    Some(Repr {
        operation: Operation::Reply,
        sender_mac: stations(IpAddr::V4(wanted)),
        sender_ip: wanted,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
    })
}

/// The frame with the answer to a request that came from `guest`; its length.
#[must_use]
pub fn answer(
    cfg: &Config,
    stations: Stations<'_>,
    guest: Mac,
    request: &Repr,
    out: &mut [u8],
) -> Option<usize> {
    emit(guest, &reply(cfg, stations, request)?, out)
}

/// A broadcast frame that tells the guest: `address` is at `station` (RFC 5227 2.3). Its length.
#[must_use]
pub fn announce(station: Mac, address: Ipv4Addr, out: &mut [u8]) -> Option<usize> {
    let announcement = Repr {
        operation: Operation::Request,
        sender_mac: station,
        sender_ip: address,
        target_mac: Mac::ZERO,
        target_ip: address,
    };
    emit(Mac::BROADCAST, &announcement, out)
}

/// A broadcast frame that asks for the guest's address: whoever answers is the guest, and its link-layer address is
/// known before it has anything to say. Its length; `None` also when IPv4 is off or we have no address to ask with.
#[must_use]
pub fn request(cfg: &Config, out: &mut [u8]) -> Option<usize> {
    let v4 = cfg.v4.as_ref()?;
    let request = Repr {
        operation: Operation::Request,
        sender_mac: cfg.our_mac,
        sender_ip: v4.our_addr.or(v4.gateway)?,
        target_mac: Mac::ZERO,
        target_ip: v4.addr,
    };
    emit(Mac::BROADCAST, &request, out)
}

/// The frame comes from the station it is about.
fn emit(dst: Mac, packet: &Repr, out: &mut [u8]) -> Option<usize> {
    let len = packet.emit(out.get_mut(ethernet::HEADER_LEN..)?)?;
    let end = ethernet::HEADER_LEN.checked_add(len)?;
    let src = packet.sender_mac;
    frame::finish(out, Link { src, dst }, ethernet::ETHERTYPE_ARP, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::samples;

    const GUEST: Mac = Mac([2, 0xad, 0xb8, 0x46, 0x81, 0x7a]);

    fn ask(sender: &str, target: &str) -> Repr {
        Repr {
            operation: Operation::Request,
            sender_mac: GUEST,
            sender_ip: sender.parse().unwrap(),
            target_mac: Mac::ZERO,
            target_ip: target.parse().unwrap(),
        }
    }

    #[test]
    fn who_is_answered_for() {
        let cfg = samples::config();
        for (sender, target, answered) in [
            ("192.0.2.5", "192.0.2.1", true),
            ("192.0.2.5", "192.0.2.77", true),
            ("192.0.2.5", "8.8.8.8", true),
            ("192.0.2.5", "192.0.2.255", true),
            ("10.9.9.9", "192.0.2.1", true),
            ("0.0.0.0", "192.0.2.1", true),
            ("0.0.0.0", "192.0.2.5", false),
            ("10.9.9.9", "192.0.2.5", false),
            ("192.0.2.5", "192.0.2.5", false),
            ("192.0.2.77", "192.0.2.77", false),
            ("192.0.2.5", "0.0.0.0", false),
            ("0.0.0.0", "0.0.0.0", false),
            ("192.0.2.5", "224.0.0.1", false),
            ("192.0.2.5", "255.255.255.255", false),
        ] {
            let got = reply(&cfg, &samples::ours, &ask(sender, target));
            assert_eq!(got.is_some(), answered, "{sender} asks for {target}");
            if let Some(got) = got {
                assert_eq!(got.operation, Operation::Reply);
                assert_eq!(
                    (got.sender_mac, got.sender_ip.to_string().as_str()),
                    (Mac::OURS, target)
                );
                assert_eq!(
                    (got.target_mac, got.target_ip.to_string().as_str()),
                    (GUEST, sender)
                );
            }
        }
        assert_eq!(
            reply(
                &cfg,
                &samples::ours,
                &Repr {
                    operation: Operation::Reply,
                    ..ask("192.0.2.5", "192.0.2.1")
                }
            ),
            None
        );
        let off = Config { v4: None, ..cfg };
        assert_eq!(
            reply(&off, &samples::ours, &ask("192.0.2.5", "192.0.2.1")),
            None
        );
    }

    #[test]
    fn frames() {
        let cfg = samples::config();
        let mut out = [0x55; 64];
        let n = answer(
            &cfg,
            &samples::ours,
            GUEST,
            &ask("192.0.2.5", "192.0.2.1"),
            &mut out,
        )
        .unwrap();
        let mut want = vec![
            2, 0xad, 0xb8, 0x46, 0x81, 0x7a, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 8, 6,
        ];
        want.extend([
            0, 1, 8, 0, 6, 4, 0, 2, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 192, 0, 2, 1,
        ]);
        want.extend([2, 0xad, 0xb8, 0x46, 0x81, 0x7a, 192, 0, 2, 5]);
        want.resize(60, 0);
        assert_eq!(&out[..n], want);
        assert_eq!(
            answer(
                &cfg,
                &samples::ours,
                GUEST,
                &ask("192.0.2.5", "192.0.2.1"),
                &mut out[..59]
            ),
            None
        );

        let n = request(&cfg, &mut out).unwrap();
        let mut want = vec![
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 8, 6,
        ];
        want.extend([
            0, 1, 8, 0, 6, 4, 0, 1, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 192, 0, 2, 1,
        ]);
        want.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 5]);
        want.resize(60, 0);
        assert_eq!(&out[..n], want);

        let n = announce(Mac::OURS, Ipv4Addr::new(192, 0, 2, 9), &mut out).unwrap();
        want[28..42].copy_from_slice(&[192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9]);
        assert_eq!(&out[..n], want);
    }
    /// A neighbour of the host's answers with its own address, and looks like the sender.
    #[test]
    fn neighbours_have_their_own_station() {
        let cfg = samples::config();
        let neighbour = Mac([2, 0, 0, 0, 0, 9]);
        let stations = |ip: IpAddr| match ip.to_string().as_str() {
            "192.0.2.9" => neighbour,
            _ => Mac::OURS,
        };
        let mut out = [0; 64];
        for (target, station) in [("192.0.2.9", neighbour), ("192.0.2.8", Mac::OURS)] {
            answer(&cfg, &stations, GUEST, &ask("192.0.2.5", target), &mut out).unwrap();
            assert_eq!(
                (&out[6..12], &out[22..28]),
                (&station.0[..], &station.0[..])
            );
        }
        announce(neighbour, Ipv4Addr::new(192, 0, 2, 9), &mut out).unwrap();
        assert_eq!((&out[..6], &out[6..12]), (&[0xff; 6][..], &neighbour.0[..]));
    }
}
