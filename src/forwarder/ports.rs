//! The listening sockets, as the forwarder sees them: which rule each belongs to, and where that leads.
//!
//! Monitor and ns-agent make and bind them; they arrive with the name of a rule and an offset into its ports, and
//! nothing else is known about them here. A rule's entry outlives its listeners: it is forgotten when it is said so,
//! and connections made through it do not need it. What could not be taken for want of descriptors is noted
//! and asked for again, now and then, until it arrives or the rule is gone.
//!
//! All memory is reserved at start. There are few rules and up to some ten thousand listeners: an arrival finds
//! its listener by index and its rule by binary search; only changes of the rules look through everything.

use std::os::fd::OwnedFd;

use arrayvec::ArrayVec;

use crate::config::rules::{MAX_RULES, RuleId};
use crate::flow::id::FlowId;
use crate::flow::traffic::{Totals, Traffic};
use crate::flow::translate::Forward;
use crate::ipc::RuleNotice;

/// Both tables, and while a table is being replaced, both versions of it.
pub(super) const RULES: usize = 4 * MAX_RULES;
/// Ranges of ports waiting to be asked for again. Listeners come, and get lost, port by port in order, so that a few
/// ranges hold as many of them as there are.
const MISSING: usize = 256;

/// Flows that are over.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Past {
    pub flows: u64,
    /// Their sum.
    pub traffic: Totals,
}

impl Past {
    pub(super) fn add(&mut self, traffic: &Traffic) {
        self.flows = self.flows.saturating_add(1);
        self.traffic.add(&traffic.into());
    }
}

/// A rule and what went through it.
#[derive(Debug)]
pub(super) struct Rule {
    pub notice: RuleNotice,
    pub past: Past,
}

/// A listening TCP socket.
#[derive(Debug)]
pub(super) struct TcpListener {
    pub fd: OwnedFd,
    /// Its connections have SO_PEEK_OFF switched on, at 0.
    pub peeks_on: bool,
}

/// What listens.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    /// The UDP engine has the socket; this is its name for it.
    Udp(FlowId),
}

/// A listener's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub rule: RuleId,
    /// From the rule's first port.
    pub offset: u16,
}

#[derive(Debug)]
struct Listener {
    place: Place,
    socket: Socket,
}

/// Consecutive ports of a rule.
#[derive(Clone, Copy, Debug)]
struct Span {
    rule: RuleId,
    /// From the rule's first port.
    first: u16,
    last: u16,
}

impl Span {
    fn contains(&self, place: Place) -> bool {
        self.rule == place.rule && (self.first..=self.last).contains(&place.offset)
    }

    /// Take in a port next to it, on either side; false: it is not.
    fn extend(&mut self, place: Place) -> bool {
        if self.rule != place.rule {
            return false;
        }
        if self.last.checked_add(1) == Some(place.offset) {
            self.last = place.offset;
            return true;
        }
        if place.offset.checked_add(1) == Some(self.first) {
            self.first = place.offset;
            return true;
        }
        false
    }
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Ports {
    /// Sorted by id.
    rules: Vec<Rule>,
    listeners: Vec<Option<Listener>>,
    /// No slot below this one is free.
    first_free: usize,
    /// Where the next one to be found may be: changes go through the ports in the order in which they came.
    hint: usize,
    missing: ArrayVec<Span, MISSING>,
}

impl Ports {
    /// Room for `listeners` of them.
    pub(super) fn with_capacity(listeners: usize) -> Self {
        Self {
            rules: Vec::with_capacity(RULES),
            listeners: Vec::with_capacity(listeners),
            first_free: 0,
            hint: 0,
            missing: ArrayVec::new(),
        }
    }

    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn find(&self, rule: RuleId) -> Result<usize, usize> {
        self.rules.binary_search_by_key(&rule, |r| r.notice.rule)
    }

    pub(super) fn rule(&self, rule: RuleId) -> Option<&RuleNotice> {
        let at = self.find(rule).ok()?;
        self.rules.get(at).map(|r| &r.notice)
    }

    /// Learn of a rule, or of its change. `false`: there are more than there can be.
    pub(super) fn set_rule(&mut self, notice: RuleNotice) -> bool {
        match self.find(notice.rule) {
            Ok(at) => {
                if let Some(rule) = self.rules.get_mut(at) {
                    rule.notice = notice;
                }
                true
            }
            Err(at) if self.rules.len() < RULES => {
                let past = Past::default();
                self.rules.insert(at, Rule { notice, past });
                true
            }
            Err(_) => false,
        }
    }

    /// A flow that came through a rule is over.
    pub(super) fn finished(&mut self, rule: RuleId, traffic: &Traffic) {
        if let Some(rule) = self.find(rule).ok().and_then(|at| self.rules.get_mut(at)) {
            rule.past.add(traffic);
        }
    }

    /// What went through a rule and is over.
    pub(super) fn past(&self, rule: RuleId) -> Option<Past> {
        let at = self.find(rule).ok()?;
        self.rules.get(at).map(|r| r.past)
    }

    /// Where a listener's arrivals are to go.
    pub(super) fn forward(&self, place: Place) -> Option<(&RuleNotice, Forward)> {
        let notice = self.rule(place.rule)?;
        let port = notice.to_first.checked_add(place.offset)?;
        let target = notice.target;
        Some((notice, Forward { target, port }))
    }

    /// The index the next listener will have.
    pub(super) fn next_index(&mut self) -> Option<u32> {
        while matches!(self.listeners.get(self.first_free), Some(Some(_))) {
            self.first_free = self.first_free.saturating_add(1);
        }
        if self.first_free >= self.listeners.capacity() {
            return None;
        }
        u32::try_from(self.first_free).ok()
    }

    /// Put a listener where [`Ports::next_index`] said.
    pub(super) fn add(&mut self, index: u32, place: Place, socket: Socket) {
        self.arrived(place);
        let listener = Some(Listener { place, socket });
        match self.listeners.get_mut(index as usize) {
            Some(slot) => *slot = listener,
            None => self.listeners.push(listener),
        }
    }

    /// A TCP listener and its place.
    pub(super) fn tcp(&self, index: u32) -> Option<(&TcpListener, Place)> {
        let listener = self.listeners.get(index as usize)?.as_ref()?;
        match &listener.socket {
            Socket::Tcp(tcp) => Some((tcp, listener.place)),
            Socket::Udp(_) => None,
        }
    }

    /// The UDP engine's name for a listener.
    pub(super) fn udp(&self, index: u32) -> Option<FlowId> {
        match self.listeners.get(index as usize)?.as_ref()?.socket {
            Socket::Udp(id) => Some(id),
            Socket::Tcp(_) => None,
        }
    }

    /// The slot of a listener.
    fn slot(&mut self, place: Place) -> Option<usize> {
        let is = |l: &Option<Listener>| l.as_ref().is_some_and(|l| l.place == place);
        let hint = self.hint.min(self.listeners.len());
        let (before, after) = self.listeners.split_at_checked(hint)?;
        let further = after.iter().position(is);
        let at = match further {
            Some(n) => hint.checked_add(n)?,
            None => before.iter().position(is)?,
        };
        self.hint = at.saturating_add(1);
        Some(at)
    }

    /// A listener is now another rule's; its socket, if it is a UDP one. One that is missing is so there, too.
    pub(super) fn move_to(&mut self, from: Place, to: Place) -> Option<FlowId> {
        if self.arrived(from) {
            self.missed(to);
        }
        let at = self.slot(from)?;
        let listener = self.listeners.get_mut(at)?.as_mut()?;
        listener.place = to;
        match listener.socket {
            Socket::Udp(id) => Some(id),
            Socket::Tcp(_) => None,
        }
    }

    /// Take out the listener of one port.
    pub(super) fn remove(&mut self, place: Place) -> Option<Socket> {
        self.arrived(place);
        let at = self.slot(place)?;
        self.take(at)
    }

    /// Take out the next listener of a rule, from slot `from` on, which moves past it.
    pub(super) fn remove_next(&mut self, rule: RuleId, from: &mut usize) -> Option<Socket> {
        let is = |l: &Option<Listener>| l.as_ref().is_some_and(|l| l.place.rule == rule);
        let at = self.listeners.get(*from..)?.iter().position(is)?;
        let at = from.checked_add(at)?;
        *from = at.saturating_add(1);
        self.take(at)
    }

    fn take(&mut self, at: usize) -> Option<Socket> {
        self.first_free = self.first_free.min(at);
        let listener = self.listeners.get_mut(at)?.take()?;
        Some(listener.socket)
    }

    /// UDP listeners of a rule, with their offsets.
    pub(super) fn udp_of(&self, rule: RuleId) -> impl Iterator<Item = (FlowId, Place)> + '_ {
        self.listeners.iter().flatten().filter_map(move |l| {
            let Socket::Udp(id) = l.socket else {
                return None;
            };
            (l.place.rule == rule).then_some((id, l.place))
        })
    }

    /// Forget a rule, whose listeners are gone.
    pub(super) fn forget(&mut self, rule: RuleId) {
        self.missing.retain(|span| span.rule != rule);
        if let Ok(at) = self.find(rule) {
            self.rules.remove(at);
        }
    }

    /// A listener was on its way and could not be taken.
    pub(super) fn missed(&mut self, place: Place) {
        if self.missing.iter().any(|span| span.contains(place)) {
            return;
        }
        if !self.missing.iter_mut().any(|span| span.extend(place)) {
            // Takes a forwarder that has lost every other port, of hundreds.
            let _ = self.missing.try_push(Span {
                rule: place.rule,
                first: place.offset,
                last: place.offset,
            });
        }
    }

    /// It is no longer missing; was it?
    fn arrived(&mut self, place: Place) -> bool {
        let Some(at) = self.missing.iter().position(|span| span.contains(place)) else {
            return false;
        };
        let span = self.missing.swap_remove(at);
        let before = place
            .offset
            .checked_sub(1)
            .map(|last| Span { last, ..span });
        let after = place
            .offset
            .checked_add(1)
            .map(|first| Span { first, ..span });
        for rest in [before, after].into_iter().flatten() {
            if rest.first <= rest.last {
                let _ = self.missing.try_push(rest);
            }
        }
        true
    }

    /// One that is missing, to be asked for.
    pub(super) fn take_missing(&mut self) -> Option<Place> {
        let span = self.missing.last()?;
        let place = Place {
            rule: span.rule,
            offset: span.first,
        };
        self.arrived(place);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::config::rules::{Protocol, Table};

    fn id(n: u16) -> RuleId {
        RuleId(NonZeroU16::new(n).expect("not zero"))
    }

    fn notice(n: u16) -> RuleNotice {
        RuleNotice {
            rule: id(n),
            table: Table::Host,
            protocol: Protocol::Udp,
            target: None,
            first: 100,
            last: 109,
            to_first: 65_530,
        }
    }

    fn place(rule: u16, offset: u16) -> Place {
        Place {
            rule: id(rule),
            offset,
        }
    }

    fn listen(ports: &mut Ports, at: Place) -> u32 {
        let index = ports.next_index().expect("room");
        ports.add(index, at, Socket::Udp(FlowId(index)));
        index
    }

    #[test]
    fn places_are_used_again_and_never_more_than_there_are() {
        let mut ports = Ports::with_capacity(2);
        assert!(ports.set_rule(notice(2)) && ports.set_rule(notice(1)));
        assert_eq!(listen(&mut ports, place(1, 0)), 0);
        assert_eq!(listen(&mut ports, place(2, 0)), 1);
        assert!(ports.next_index().is_none());
        assert!(ports.remove(place(1, 0)).is_some());
        assert!(ports.remove(place(1, 0)).is_none());
        assert_eq!(listen(&mut ports, place(2, 1)), 0);
        assert_eq!(ports.udp_of(id(2)).count(), 2);
    }

    #[test]
    fn a_port_leads_where_its_rule_says_at_the_time() {
        let mut ports = Ports::with_capacity(4);
        ports.set_rule(notice(7));
        assert_eq!(ports.forward(place(7, 3)).expect("rule").1.port, 65_533);
        assert!(ports.forward(place(7, 6)).is_none(), "beyond the last port");
        ports.set_rule(RuleNotice {
            to_first: 20,
            ..notice(7)
        });
        assert_eq!(ports.forward(place(7, 3)).expect("rule").1.port, 23);
        ports.forget(id(7));
        assert!(ports.forward(place(7, 3)).is_none());
    }

    #[test]
    fn a_listener_can_go_over_to_another_rule() {
        let mut ports = Ports::with_capacity(4);
        ports.set_rule(notice(1));
        ports.set_rule(notice(2));
        listen(&mut ports, place(1, 5));
        assert_eq!(ports.move_to(place(1, 5), place(2, 0)), Some(FlowId(0)));
        assert!(ports.move_to(place(1, 5), place(2, 0)).is_none());
        assert_eq!(ports.udp_of(id(2)).next(), Some((FlowId(0), place(2, 0))));
    }

    #[test]
    fn what_was_missed_is_asked_for_until_it_is_there_or_gone() {
        let mut ports = Ports::with_capacity(4);
        ports.set_rule(notice(1));
        for offset in [0, 1, 1] {
            ports.missed(place(1, offset));
        }
        listen(&mut ports, place(1, 1));
        assert_eq!(ports.take_missing(), Some(place(1, 0)));
        ports.missed(place(1, 0));
        ports.remove(place(1, 0));
        assert!(ports.take_missing().is_none());
        ports.missed(place(1, 0));
        ports.forget(id(1));
        assert!(ports.take_missing().is_none());
    }

    #[test]
    fn however_many_are_missed_none_is_forgotten() {
        let mut ports = Ports::with_capacity(4);
        (1000..11_000).for_each(|offset| ports.missed(place(1, offset)));
        (0..500)
            .rev()
            .for_each(|offset| ports.missed(place(2, offset)));
        listen(&mut ports, place(1, 5000));
        let mut asked = Vec::new();
        while let Some(place) = ports.take_missing() {
            asked.push((place.rule, place.offset));
        }
        asked.sort_unstable();
        let first = (1000..11_000).filter(|o| *o != 5000).map(|o| (id(1), o));
        let all: Vec<_> = first.chain((0..500).map(|o| (id(2), o))).collect();
        assert_eq!(asked, all);
    }

    #[test]
    fn what_is_missing_moves_to_the_other_rule_too() {
        let mut ports = Ports::with_capacity(4);
        ports.missed(place(1, 5));
        assert!(ports.move_to(place(1, 5), place(2, 0)).is_none());
        ports.forget(id(1));
        assert_eq!(ports.take_missing(), Some(place(2, 0)));
        assert!(ports.take_missing().is_none());
    }

    #[test]
    fn a_rule_of_all_ports_is_forgotten_in_one_go() {
        let mut ports = Ports::with_capacity(1 << 17);
        for offset in 0..u16::MAX {
            listen(&mut ports, place(1, offset));
            listen(&mut ports, place(2, offset));
        }
        // In either order each is found without looking through all of them.
        let start = std::time::Instant::now();
        for offset in 0..u16::MAX {
            assert!(ports.move_to(place(2, offset), place(3, offset)).is_some());
        }
        let mut from = 0;
        let mut removed = 0;
        while ports.remove_next(id(1), &mut from).is_some() {
            removed += 1;
        }
        for offset in 0..u16::MAX {
            assert!(ports.remove(place(3, offset)).is_some());
        }
        assert_eq!(removed, u16::MAX);
        // Looking through all takes some ten seconds.
        assert!(start.elapsed() < std::time::Duration::from_secs(2));
    }
}
