//! The host's neighbours, for the forwarder: who is at which link-layer address on the networks that the guest's is
//! modelled on.
//!
//! The kernel tells of every change of state of every entry; the forwarder is told only that an address is somewhere,
//! has moved, or is not known any more. So what it has been told is kept here, as much as it keeps itself
//! ([`MAX_NEIGHBOURS`]); who has not been heard of for longest makes room.
//!
//! After the start, and whenever the kernel had to drop messages, its whole table is asked for; what the answer does
//! not mention is gone. It is asked again only when everything it has said has been read, so that a storm of changes
//! costs what it costs to read, and no more.
//!
//! Nothing depends on any of this: an address that is not known is at our own link-layer address.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::ipc::{MAX_NEIGHBOURS, Neighbour};
use crate::netlink::neighbours::{Heard, Neighbours as Source};

/// Datagrams read before others have their turn.
const AT_ONCE: usize = 4;
/// Questions in a row whose answer was incomplete, until one is taken as it is.
const ATTEMPTS: u8 = 4;

/// Where a change is told.
pub type Tell<'a> = dyn FnMut(Neighbour) + 'a;

/// The interfaces that count, by index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Links {
    /// The one that the guest's IPv4 is modelled on.
    pub v4: Option<u32>,
    /// The one that its IPv6 is.
    pub v6: Option<u32>,
}

impl Links {
    fn matter(self, link: u32, address: IpAddr) -> bool {
        let ours = if address.is_ipv6() { self.v6 } else { self.v4 };
        ours == Some(link)
    }
}

/// Follows the host's neighbours.
#[derive(Debug)]
pub struct Neighbours {
    source: Source,
    links: Links,
    table: Table,
    /// An answer is on its way.
    asked: bool,
    /// And then another question.
    again: bool,
    attempts: u8,
    /// The socket has failed: there will be no more.
    over: bool,
}

impl Neighbours {
    /// Open in the current network namespace; `None` if nothing can be known.
    #[must_use]
    pub fn open(links: Links) -> Option<Self> {
        if links == Links::default() {
            return None;
        }
        let source = match Source::open() {
            Ok(source) => source,
            Err(e) => {
                log::debug!("Can't follow the host's neighbours: {}", e.kind());
                return None;
            }
        };
        Some(Self {
            source,
            links,
            table: Table::new(),
            asked: false,
            again: true,
            attempts: 0,
            over: false,
        })
    }

    /// What to wait for, if anything.
    #[must_use]
    pub fn awaited(&self) -> Option<BorrowedFd<'_>> {
        (!self.over).then(|| self.source.as_fd())
    }

    /// Read what there is, tell what has changed, and ask if it is time.
    pub fn step(&mut self, tell: &mut Tell<'_>) {
        if self.over {
            return;
        }
        for _ in 0..AT_ONCE {
            let (links, table) = (self.links, &mut self.table);
            let heard = self.source.receive(|n, answer| {
                if links.matter(n.link, n.address) {
                    let kind = if answer { Kind::Entry } else { Kind::Change };
                    table.update(kind, n.address, n.mac.map(|mac| mac.0), tell);
                }
            });
            match heard {
                Ok(Heard::Some) => {}
                Ok(Heard::Lost) => self.again = true,
                Ok(Heard::Answered { complete }) => self.answered(complete, tell),
                Ok(Heard::Nothing) => return self.ask(),
                Err(e) => return self.fail(&e),
            }
        }
    }

    fn answered(&mut self, complete: bool, tell: &mut Tell<'_>) {
        self.asked = false;
        if complete || self.attempts >= ATTEMPTS {
            self.attempts = 0;
            // What has been missed since the question may be a new entry.
            if complete && !self.again {
                self.table.sweep(tell);
            }
            self.table.settled = true;
        } else {
            self.again = true;
        }
    }

    fn ask(&mut self) {
        if self.asked || !self.again {
            return;
        }
        self.attempts = self.attempts.saturating_add(1);
        self.table.mark();
        match self.source.ask() {
            Ok(()) => (self.asked, self.again) = (true, false),
            Err(e) => self.fail(&e),
        }
    }

    fn fail(&mut self, e: &std::io::Error) {
        log::debug!("Can't follow the host's neighbours any more: {}", e.kind());
        self.over = true;
    }
}

/// What the kernel says it for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// It has just happened: of those who do not fit, it is the latest that count.
    Change,
    /// It was asked. Where there is no room there are others who were heard of of late.
    Entry,
}

/// One that has been told.
#[derive(Clone, Copy, Debug)]
struct Known {
    address: IpAddr,
    mac: [u8; 6],
    /// When it was last heard of, in messages.
    heard: u64,
}

/// What has been told, by address.
#[derive(Debug)]
struct Table {
    known: Vec<Known>,
    /// Messages so far.
    clock: u64,
    /// The same at the time of the question.
    mark: u64,
    /// The first answer is complete: what turns up now is news.
    settled: bool,
}

impl Table {
    fn new() -> Self {
        Self {
            known: Vec::with_capacity(MAX_NEIGHBOURS),
            clock: 0,
            mark: 0,
            settled: false,
        }
    }

    fn update(&mut self, kind: Kind, address: IpAddr, mac: Option<[u8; 6]>, tell: &mut Tell<'_>) {
        self.clock = self.clock.saturating_add(1);
        let place = self.known.binary_search_by(|k| k.address.cmp(&address));
        match (place, mac) {
            (Ok(at), Some(mac)) => {
                let Some(known) = self.known.get_mut(at) else {
                    return;
                };
                known.heard = self.clock;
                if known.mac == mac {
                    return;
                }
                known.mac = mac;
                tell(Neighbour {
                    address,
                    mac: Some(mac),
                    news: true,
                });
            }
            (Ok(at), None) => {
                self.known.remove(at);
                tell(gone(address));
            }
            (Err(_), Some(mac)) => {
                if kind == Kind::Entry && self.known.len() >= MAX_NEIGHBOURS {
                    return;
                }
                let pushed_out = self.make_room(tell);
                // Its place may have moved.
                let at = self.known.partition_point(|k| k.address < address);
                let heard = self.clock;
                self.known.insert(
                    at,
                    Known {
                        address,
                        mac,
                        heard,
                    },
                );
                tell(Neighbour {
                    address,
                    mac: Some(mac),
                    // More than fit come and go all the time; that is no news.
                    news: self.settled && !pushed_out,
                });
            }
            (Err(_), None) => {}
        }
    }

    /// Make sure that one more can be told. `true`: another had to go for that.
    fn make_room(&mut self, tell: &mut Tell<'_>) -> bool {
        if self.known.len() < MAX_NEIGHBOURS {
            return false;
        }
        let oldest = self.known.iter().enumerate().min_by_key(|(_, k)| k.heard);
        if let Some(at) = oldest.map(|(at, _)| at) {
            tell(gone(self.known.remove(at).address));
        }
        true
    }

    /// A question is asked now.
    fn mark(&mut self) {
        self.mark = self.clock;
    }

    /// It has been answered: who was not heard of since is gone.
    fn sweep(&mut self, tell: &mut Tell<'_>) {
        let mark = self.mark;
        self.known.retain(|k| {
            let there = k.heard > mark;
            if !there {
                tell(gone(k.address));
            }
            there
        });
    }
}

const fn gone(address: IpAddr) -> Neighbour {
    Neighbour {
        address,
        mac: None,
        news: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().expect("an address")
    }

    /// What is told when `address` is said to be at station `n` (0: nowhere).
    fn say(table: &mut Table, address: &str, n: u8) -> Vec<(String, Option<u8>, bool)> {
        let mut told = Vec::new();
        let mac = (n > 0).then_some([2, 0, 0, 0, 0, n]);
        table.update(Kind::Change, ip(address), mac, &mut |n| told.push(line(n)));
        told
    }

    fn line(n: Neighbour) -> (String, Option<u8>, bool) {
        (n.address.to_string(), n.mac.map(|mac| mac[5]), n.news)
    }

    fn one(address: &str, mac: Option<u8>, news: bool) -> Vec<(String, Option<u8>, bool)> {
        vec![(address.to_owned(), mac, news)]
    }

    #[test]
    fn only_changes_are_told() {
        let mut t = Table::new();
        let a = "192.0.2.9";
        assert_eq!(say(&mut t, a, 0), []);
        assert_eq!(say(&mut t, a, 1), one(a, Some(1), false));
        t.settled = true;
        assert_eq!(say(&mut t, a, 1), []);
        assert_eq!(say(&mut t, a, 2), one(a, Some(2), true));
        assert_eq!(say(&mut t, "fe80::9", 2), one("fe80::9", Some(2), true));
        assert_eq!(say(&mut t, a, 0), one(a, None, false));
        assert_eq!(say(&mut t, a, 0), []);
        assert_eq!(say(&mut t, a, 2), one(a, Some(2), true));
    }

    #[test]
    fn what_an_answer_does_not_mention_is_gone() {
        let mut t = Table::new();
        say(&mut t, "192.0.2.1", 1);
        say(&mut t, "192.0.2.2", 2);
        say(&mut t, "192.0.2.3", 3);
        t.mark();
        say(&mut t, "192.0.2.1", 1);
        say(&mut t, "192.0.2.3", 4);
        let mut told = Vec::new();
        t.sweep(&mut |n| told.push(line(n)));
        assert_eq!(told, one("192.0.2.2", None, false));
        assert_eq!(t.known.len(), 2);
    }

    #[test]
    fn who_was_silent_for_longest_makes_room() {
        let mut t = Table::new();
        let addresses: Vec<String> = (0..MAX_NEIGHBOURS)
            .map(|n| format!("10.0.{}.{}", n / 256, n % 256))
            .collect();
        for address in &addresses {
            assert_eq!(say(&mut t, address, 1).len(), 1);
        }
        let capacity = t.known.capacity();
        // Who comes in place of another is not announced: on a large network that would never end.
        t.settled = true;
        say(&mut t, "10.0.0.0", 1);
        let mut want = one("10.0.0.1", None, false);
        want.extend(one("fe80::1", Some(7), false));
        assert_eq!(say(&mut t, "fe80::1", 7), want);
        assert_eq!(say(&mut t, "10.0.0.0", 1), []);
        assert_eq!(
            (t.known.len(), t.known.capacity()),
            (MAX_NEIGHBOURS, capacity)
        );
        assert!(t.known.is_sorted_by_key(|k| k.address));
        // An answer pushes nobody out.
        t.update(Kind::Entry, ip("fe80::2"), Some([2; 6]), &mut |n| {
            panic!("{n:?}");
        });
    }

    #[test]
    fn links() {
        let links = Links {
            v4: Some(2),
            v6: Some(3),
        };
        assert!(links.matter(2, ip("192.0.2.1")) && links.matter(3, ip("fe80::1")));
        assert!(!links.matter(3, ip("192.0.2.1")) && !links.matter(2, ip("fe80::1")));
        assert!(!Links::default().matter(0, ip("fe80::1")));
        assert!(Neighbours::open(Links::default()).is_none());
    }

    /// The whole conversation with the kernel, in whatever namespace the test runs in.
    #[test]
    fn the_first_answer_settles() {
        let links = Links {
            v4: Some(1),
            v6: Some(1),
        };
        let mut n = Neighbours::open(links).expect("a netlink socket");
        n.step(&mut |_| ());
        assert!(n.asked && n.awaited().is_some());
        let settled = (0..10_000).any(|_| {
            n.step(&mut |_| ());
            n.table.settled
        });
        assert!(settled && !n.over);
    }
}
