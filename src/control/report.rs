//! What a running instance says of itself: a stream of records of one size.
//!
//! The monitor writes the first part (what it knows: versions, processes, rules) and hands the client's
//! connection to the forwarder, which appends what only it knows (guest, counters, flows) and [`Record::End`].
//! A record is [`RECORD`] bytes, whichever it is: nobody has to believe a length, a writer needs one buffer,
//! and a reader always knows where the next record begins. What follows a record's encoding is zero.
//!
//! The records are a versioned protocol between builds of this program ([`VERSION`]); what people and scripts
//! are promised is the JSON that `pesto --json` makes of them. Any change to a type below is a new version.
//!
//! What must never happen: text of unlimited length in a record, or a reader that believes more than the
//! bytes of one record at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::addr::{Endpoint, Mac};
use crate::config::rules::{Protocol, RuleId, Table};
use crate::flow::traffic::{Totals, Traffic};
use crate::ipc::{CodecError, pack, unpack};

/// Version of the records and of the exchange they are part of.
pub const VERSION: u32 = 1;

/// Size of every encoded record in bytes.
pub const RECORD: usize = 128;

/// Text of at most 32 bytes inside a record, cut at a character if it is longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Text([u8; 32]);

impl Text {
    /// `text`, or as much of it as fits.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; 32];
        let mut used = 0_usize;
        for c in text.chars().filter(|c| !c.is_control()) {
            let end = used.saturating_add(c.len_utf8());
            let Some(place) = bytes.get_mut(used..end) else {
                break;
            };
            c.encode_utf8(place);
            used = end;
        }
        Self(bytes)
    }

    /// The text; what is not UTF-8 up to the first zero byte reads as empty, control characters as `?`.
    #[must_use]
    pub fn to_text(self) -> String {
        let text = self.0.split(|b| *b == 0).next().unwrap_or_default();
        std::str::from_utf8(text)
            .unwrap_or_default()
            .replace(char::is_control, "?")
    }
}

/// One of our processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Part {
    /// Waits, and owns this socket.
    Monitor,
    /// Sits in the target namespace.
    Agent,
    /// Carries the traffic.
    Forwarder,
}

impl Part {
    /// As in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Agent => "ns-agent",
            Self::Forwarder => "forwarder",
        }
    }
}

/// Which way a flow was opened, and over what.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Way {
    /// By the guest, over the tap.
    TapOut,
    /// From outside, over the tap.
    TapIn,
    /// From the host's loopback to the namespace, socket to socket.
    SpliceIn,
    /// From the namespace's loopback to the host, socket to socket.
    SpliceOut,
}

impl Way {
    /// Stable name, used in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TapOut => "tap-out",
            Self::TapIn => "tap-in",
            Self::SpliceIn => "splice-in",
            Self::SpliceOut => "splice-out",
        }
    }
}

/// What a flow speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Kind {
    /// Stable name, used in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl From<Protocol> for Kind {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

/// Who reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the program.
    pub program: Text,
    /// Of the monitor, in its own pid namespace.
    pub pid: u32,
    /// Seconds since it was ready.
    pub uptime_s: u64,
}

/// A process and its confinement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Which.
    pub part: Part,
    /// As the monitor sees it.
    pub pid: u32,
    /// The bits of `sandbox::Achieved`.
    pub confinement: u32,
}

/// A forwarding rule and how much of it is listened on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RuleReport {
    /// Its name in this run.
    pub rule: RuleId,
    /// Where it listens.
    pub table: Table,
    /// What.
    pub protocol: Protocol,
    /// Address listened on; `None`: every address of both families.
    pub listen: Option<IpAddr>,
    /// Interface listened on; empty: any.
    pub interface: Text,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// Where to; `None`: the guest's address or the host's loopback.
    pub target: Option<IpAddr>,
    /// Where the first port leads.
    pub to_first: u16,
    /// A port that cannot be bound is no error.
    pub best_effort: bool,
    /// Follows the other side's listeners.
    pub auto_scan: bool,
    /// Ports listened on now.
    pub open: u32,
    /// Ports that should be listened on, but could not be bound.
    pub missing: u32,
}

/// What the guest was seen to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Guest {
    /// Link-layer address.
    pub mac: Option<Mac>,
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address that is not link-local.
    pub v6: Option<Ipv6Addr>,
    /// IPv6 link-local address.
    pub link_local: Option<Ipv6Addr>,
}

/// Frames on the tap so far; a super-frame counts once, bytes with their Ethernet headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Frames {
    /// Frames from the guest.
    pub frames_in: u64,
    /// Bytes in them.
    pub bytes_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Bytes in them.
    pub bytes_out: u64,
}

/// Packets not carried for one reason. Reasons with a count of zero may be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drops {
    /// `stats::Drop::name`.
    pub reason: Text,
    /// So far.
    pub count: u64,
}

/// What a rule has carried, finished and live flows together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RuleTraffic {
    /// Which; `None`: everything no rule was needed for, that is what the guest opened.
    pub rule: Option<RuleId>,
    /// Live flows.
    pub live: u32,
    /// Flows so far, live ones included.
    pub flows: u64,
    /// Their sum.
    pub traffic: Totals,
}

/// One live flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// What.
    pub kind: Kind,
    /// Which way it was opened.
    pub way: Way,
    /// By which rule, if one was needed.
    pub rule: Option<RuleId>,
    /// The end in the guest or namespace.
    pub inside: Endpoint,
    /// The other end, as it is seen from inside.
    pub outside: Endpoint,
    /// So far.
    pub traffic: Traffic,
    /// Seconds since anything was last carried.
    pub idle_s: u32,
}

/// Everything a report is made of, in the order of the variants; [`Record::End`] is always the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// First: who reports.
    Hello(Hello),
    /// One for each process.
    Process(Process),
    /// One for each rule of either table.
    Rule(RuleReport),
    /// The guest. From here on it is the forwarder that writes.
    Guest(Guest),
    /// Frames on the tap.
    Frames(Frames),
    /// One for each reason.
    Drops(Drops),
    /// One for each rule that carried something.
    RuleTraffic(RuleTraffic),
    /// One for each flow.
    Flow(Flow),
    /// Nothing follows.
    End,
}

impl Record {
    /// Write the record, padding with zeroes.
    ///
    /// # Errors
    ///
    /// None for any value that can be made (the tests see to it): a record that does not fit is a bug.
    pub fn encode(&self, buf: &mut [u8; RECORD]) -> Result<(), CodecError> {
        pack(self, buf)
    }

    /// Read a record.
    ///
    /// # Errors
    ///
    /// Bytes that no [`Record::encode`] has written.
    pub fn decode(buf: &[u8; RECORD]) -> Result<Self, CodecError> {
        unpack(buf)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use proptest::prelude::*;

    use super::*;

    /// One of each kind, as large as it gets.
    fn largest() -> Vec<Record> {
        let ip = IpAddr::V6(Ipv6Addr::from([0xff; 16]));
        let end = Endpoint::new(ip, u16::MAX);
        let rule = RuleId(NonZeroU16::MAX);
        let traffic = Traffic {
            bytes_in: u64::MAX,
            bytes_out: u64::MAX,
            packets_in: u32::MAX,
            packets_out: u32::MAX,
        };
        vec![
            Record::Hello(Hello {
                program: Text::new("version"),
                pid: u32::MAX,
                uptime_s: u64::MAX,
            }),
            Record::Process(Process {
                part: Part::Forwarder,
                pid: u32::MAX,
                confinement: u32::MAX,
            }),
            Record::Rule(RuleReport {
                rule,
                table: Table::Splice,
                protocol: Protocol::Udp,
                listen: Some(ip),
                interface: Text::new("fifteen-letters"),
                first: u16::MAX,
                last: u16::MAX,
                target: Some(ip),
                to_first: u16::MAX,
                best_effort: true,
                auto_scan: true,
                open: u32::MAX,
                missing: u32::MAX,
            }),
            Record::Guest(Guest {
                mac: Some(Mac::BROADCAST),
                v4: Some(Ipv4Addr::BROADCAST),
                v6: Some(Ipv6Addr::from([0xff; 16])),
                link_local: Some(Ipv6Addr::from([0xff; 16])),
            }),
            Record::Frames(Frames {
                frames_in: u64::MAX,
                bytes_in: u64::MAX,
                frames_out: u64::MAX,
                bytes_out: u64::MAX,
            }),
            Record::Drops(Drops {
                reason: Text::new("queue-full"),
                count: u64::MAX,
            }),
            Record::RuleTraffic(RuleTraffic {
                rule: Some(rule),
                live: u32::MAX,
                flows: u64::MAX,
                traffic: Totals {
                    bytes_in: u64::MAX,
                    bytes_out: u64::MAX,
                    packets_in: u64::MAX,
                    packets_out: u64::MAX,
                },
            }),
            Record::Flow(Flow {
                kind: Kind::Udp,
                way: Way::SpliceOut,
                rule: Some(rule),
                inside: end,
                outside: end,
                traffic,
                idle_s: u32::MAX,
            }),
            Record::End,
        ]
    }

    #[test]
    fn every_record_fits_its_size_and_comes_back() {
        for record in largest() {
            let mut buf = [0xaa; RECORD];
            record.encode(&mut buf).expect("fits");
            assert_eq!(Record::decode(&buf).expect("decodes"), record);
            if let Some(last) = buf.last_mut() {
                assert_eq!(*last, 0, "{record:?} leaves no room to grow");
                *last = 1;
            }
            assert!(
                Record::decode(&buf).is_err(),
                "{record:?} and something else"
            );
        }
    }

    #[test]
    fn every_drop_reason_has_room_for_its_name() {
        for why in crate::stats::Drop::ALL {
            assert_eq!(Text::new(why.name()).to_text(), why.name());
        }
    }

    #[test]
    fn text_is_cut_at_a_character_and_never_a_command_to_a_terminal() {
        assert_eq!(Text::new(&"é".repeat(20)).to_text(), "é".repeat(16));
        assert_eq!(Text::new("a\u{1b}[2Jb").to_text(), "a[2Jb");
        let mut raw = [0; 32];
        raw[..4].copy_from_slice(b"a\x1bb\n");
        assert_eq!(Text(raw).to_text(), "a?b?");
        assert_eq!(Text([0xff; 32]).to_text(), "");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_that_encodes_to_them_or_none(
            tag in 0_u8..10, bytes in proptest::collection::vec(any::<u8>(), RECORD - 4),
            zeroes in 0..RECORD - 4
        ) {
            let mut buf = [0; RECORD];
            buf[0] = tag;
            buf[4..].copy_from_slice(&bytes);
            buf[RECORD - zeroes..].fill(0);
            if let Ok(record) = Record::decode(&buf) {
                let mut again = [0; RECORD];
                record.encode(&mut again).expect("fits");
                prop_assert_eq!(again, buf);
            }
        }
    }
}
