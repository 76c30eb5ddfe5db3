//! The keeper against a world in memory: what others listen on, what the forwarder holds, what is on its way.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;

use super::plan::Place;
use super::*;
use crate::config::rules::{Context, Rules};
use crate::ipc::{Request, RuleNotice};

const CONTEXT: Context = Context {
    ipv4: true,
    ipv6: true,
    tcp: true,
    udp: true,
    ephemeral: (32768, 60999),
};

type Key = (Place, u16);

/// Everything that has a port.
#[derive(Default)]
struct World {
    /// Others.
    busy: BTreeSet<(Protocol, u16)>,
    /// Sockets of the keeper.
    live: Vec<Key>,
    /// Sockets of the forwarder.
    held: BTreeMap<(RuleId, u16), Key>,
    /// What it was told of its rules.
    notices: BTreeMap<RuleId, RuleNotice>,
    /// What bind answers for ports up to a number.
    refuse: Option<(u16, i32)>,
    /// How many sockets can be made.
    descriptors: Option<usize>,
    binds: usize,
    /// How often a taken port is waited for, and what becomes free meanwhile.
    patience: Vec<Option<(Protocol, u16)>>,
}

impl World {
    fn is_taken(&self, key: &Key) -> bool {
        let taken = |other: &Key| other.1 == key.1 && other.0.competes(&key.0);
        self.busy.contains(&(key.0.protocol, key.1))
            || self.live.iter().any(taken)
            || self.held.values().any(taken)
    }
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<World>>);

struct Token {
    world: Rc<RefCell<World>>,
    key: Key,
    null: Rc<std::fs::File>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.key)
    }
}

impl AsFd for Token {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let mut world = self.world.borrow_mut();
        let at = world.live.iter().position(|k| *k == self.key).unwrap();
        world.live.remove(at);
    }
}

struct Fake {
    shared: Shared,
    null: Rc<std::fs::File>,
}

impl Binder for Fake {
    type Socket = Token;

    fn bind(&mut self, protocol: Protocol, listen: &Listen<'_>) -> io::Result<Token> {
        let mut world = self.shared.0.borrow_mut();
        world.binds += 1;
        let place = Place {
            protocol,
            listen: listen.address,
            interface: listen.interface.map(|i| i.try_into().unwrap()),
        };
        let key = (place, listen.port);
        let fail = |number| Err(io::Error::from_raw_os_error(number));
        match world.refuse {
            Some((below, errno)) if listen.port < below => return fail(errno),
            _ => {}
        }
        if world.descriptors == Some(world.live.len()) {
            return fail(libc::EMFILE);
        }
        if world.is_taken(&key) {
            return fail(libc::EADDRINUSE);
        }
        world.live.push(key);
        Ok(Token {
            world: Rc::clone(&self.shared.0),
            key,
            null: Rc::clone(&self.null),
        })
    }

    fn wait(&mut self) -> bool {
        let mut world = self.shared.0.borrow_mut();
        if world.patience.is_empty() {
            return false;
        }
        if let Some(free) = world.patience.remove(0) {
            world.busy.remove(&free);
        }
        true
    }
}

/// A keeper, its world, and the rules there ever were.
struct Bench {
    keeper: Keeper<Fake>,
    shared: Shared,
    rules: BTreeMap<RuleId, Rule>,
    current: Vec<(RuleId, Rule)>,
    now: Instant,
    messages: Vec<Supply>,
}

impl Bench {
    fn new(budget: usize) -> Self {
        let shared = Shared::default();
        let fake = Fake {
            shared: shared.clone(),
            null: Rc::new(std::fs::File::open("/dev/null").unwrap()),
        };
        let context = KeeperContext {
            ipv4: true,
            ipv6: true,
            freebind: false,
            budget,
        };
        Self {
            keeper: Keeper::with_binder(Table::Host, context, fake),
            shared,
            rules: BTreeMap::new(),
            current: Vec::new(),
            now: Instant::now(),
            messages: Vec::new(),
        }
    }

    fn world(&self) -> std::cell::RefMut<'_, World> {
        self.shared.0.borrow_mut()
    }

    /// Names as the monitor gives them: the same rule keeps its own, a new one gets the next.
    fn named(&self, rules: &[Rule]) -> Vec<(RuleId, Rule)> {
        let mut next = u16::try_from(self.rules.len()).unwrap() + 1;
        let name = |rule: &Rule| {
            let old = self.current.iter().find(|(_, r)| r == rule);
            let id = old.map_or_else(
                || {
                    next += 1;
                    RuleId(NonZeroU16::new(next - 1).unwrap())
                },
                |(id, _)| *id,
            );
            (id, rule.clone())
        };
        rules.iter().map(name).collect()
    }

    fn apply(&mut self, rules: &[Rule]) -> Result<(), PortError> {
        let named = self.named(rules);
        let before = self.world().held.clone();
        let change = match self.keeper.prepare(&named) {
            Ok(change) => change,
            Err(e) => {
                assert_eq!(self.world().held, before, "a refused table changes nothing");
                assert!(self.world().live.is_empty(), "and leaves nothing open");
                return Err(e);
            }
        };
        self.rules.extend(named.iter().cloned());
        self.current = named;
        self.drive(|keeper, out| keeper.commit(change, out));
        Ok(())
    }

    /// Let the keeper speak to the forwarder.
    fn drive<T>(
        &mut self,
        action: impl FnOnce(&mut Keeper<Fake>, &mut Out<'_>) -> Result<T, IpcError>,
    ) -> T {
        let (shared, rules) = (self.shared.clone(), &self.rules);
        let messages = &mut self.messages;
        messages.clear();
        let mut out = |supply: Supply, fds: &[BorrowedFd<'_>]| {
            messages.push(supply);
            take(&mut shared.0.borrow_mut(), rules, supply, fds.len());
            Ok(())
        };
        action(&mut self.keeper, &mut out).unwrap()
    }

    fn follow(&mut self) {
        self.drive(Keeper::follow);
    }

    fn retry(&mut self, after: Duration) {
        self.now += after;
        let now = self.now;
        self.drive(|k, out| k.retry(now, out));
    }

    fn request(&mut self, rule: RuleId, offset: u16) -> Result<(), Misbehaved> {
        let now = self.now;
        self.drive(
            |k, out| match k.serve(Request::Listener { rule, offset }, now, out) {
                Err(ServeError::Misbehaved(e)) => Ok(Err(e)),
                Err(ServeError::Ipc(e)) => Err(e),
                Ok(()) => Ok(Ok(())),
            },
        )
    }

    fn other(&mut self, protocol: Protocol, ports: &[u16]) {
        let mut set = Ports::default();
        ports.iter().for_each(|p| set.insert(*p));
        for number in 0..=u8::MAX {
            self.keeper.other_side(protocol, number, &set.block(number));
        }
    }

    fn held(&self) -> Vec<(Protocol, u16)> {
        let world = self.world();
        world.held.values().map(|(p, n)| (p.protocol, *n)).collect()
    }

    /// TCP ports the forwarder listens on.
    fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<_> = self.held().iter().map(|(_, n)| *n).collect();
        ports.sort_unstable();
        ports
    }

    fn check(&self) {
        let world = self.world();
        assert!(world.live.is_empty(), "a copy of what was handed over");
        for ((id, offset), (place, port)) in &world.held {
            let rule = self.current.iter().find(|(i, _)| i == id);
            let (_, rule) = rule.expect("a listener of a rule that is in force");
            assert_eq!(*port, rule.first + offset);
            assert!(*port <= rule.last);
            assert_eq!((place.protocol, place.listen), (rule.protocol, rule.listen));
            assert_eq!(place.interface.as_deref(), rule.interface.as_deref());
            assert!(
                self.keeper.own_ports().of(rule.protocol).contains(*port),
                "a port of ours that we could follow"
            );
        }
        let open: u32 = self.keeper.status().map(|s| s.open).sum();
        assert_eq!(usize::try_from(open).unwrap(), world.held.len());
        assert!(world.held.len() <= self.keeper.context.budget);
        let known: BTreeSet<_> = world.notices.keys().collect();
        let current: BTreeSet<_> = self.current.iter().map(|(id, _)| id).collect();
        assert_eq!(known, current);
    }
}

/// The forwarder, as strict as one can be.
fn take(world: &mut World, rules: &BTreeMap<RuleId, Rule>, supply: Supply, fds: usize) {
    match supply {
        Supply::Rule(notice) => {
            let rule = &rules[&notice.rule];
            let said = (notice.first, notice.last, notice.to_first, notice.target);
            assert_eq!(said, (rule.first, rule.last, rule.to_first, rule.target));
            assert!(world.notices.insert(notice.rule, notice).is_none());
        }
        Supply::Listeners {
            rule,
            offset,
            count,
        } => {
            assert!((1..=32).contains(&count));
            assert_eq!(usize::from(count), fds);
            assert!(world.notices.contains_key(&rule));
            for at in offset..offset + u16::from(count) {
                let rules = &rules[&rule];
                let place = Place {
                    protocol: rules.protocol,
                    listen: rules.listen,
                    interface: rules.interface.as_deref().map(|i| i.try_into().unwrap()),
                };
                let old = world.held.insert((rule, at), (place, rules.first + at));
                assert!(old.is_none(), "two sockets for one port");
            }
        }
        Supply::Move {
            from,
            from_offset,
            to,
            to_offset,
        } => {
            assert!(world.notices.contains_key(&to));
            let key = world.held.remove(&(from, from_offset)).unwrap();
            assert!(world.held.insert((to, to_offset), key).is_none());
        }
        Supply::Close { rule, offset } => {
            assert!(world.held.remove(&(rule, offset)).is_some());
        }
        Supply::Forget { rule } => {
            assert!(world.notices.remove(&rule).is_some());
            world.held.retain(|(id, _), _| *id != rule);
        }
        Supply::Sockets { .. } | Supply::Settle | Supply::Complete => panic!("not a keeper's"),
    }
}

fn rule(first: u16, last: u16) -> Rule {
    Rule {
        protocol: Protocol::Tcp,
        listen: None,
        interface: None,
        first,
        last,
        target: None,
        to_first: first,
        best_effort: false,
        auto_scan: false,
    }
}

fn best(first: u16, last: u16) -> Rule {
    Rule {
        best_effort: true,
        ..rule(first, last)
    }
}

fn auto(first: u16, last: u16) -> Rule {
    Rule {
        auto_scan: true,
        ..best(first, last)
    }
}

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;
/// As many as one call of `retry` tries in vain.
const RETRIES: usize = 32;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn explicit_ports_are_sent_in_batches() {
    let mut b = Bench::new(1000);
    b.apply(&[rule(100, 169)]).unwrap();
    let batches: Vec<_> = b
        .messages
        .iter()
        .filter_map(|m| match m {
            Supply::Listeners { offset, count, .. } => Some((*offset, *count)),
            _ => None,
        })
        .collect();
    assert_eq!(batches, [(0, 32), (32, 32), (64, 6)]);
    b.check();
}

#[test]
fn an_explicit_port_that_is_taken_is_an_error_and_named() {
    let mut b = Bench::new(1000);
    b.world().busy.insert((TCP, 8777));
    let error = b.apply(&[rule(8000, 8002), rule(8777, 8777)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Listen failed for HOST TCP port */8777: Address already in use\n\
         Couldn't listen on requested ports"
    );
    let at = Rule {
        listen: Some("fd00::2".parse().unwrap()),
        interface: Some("eth0".to_owned()),
        ..rule(8777, 8777)
    };
    let error = b.apply(&[at]).unwrap_err().to_string();
    assert!(error.starts_with("Listen failed for HOST TCP port fd00::2%eth0/8777: "));
}

#[test]
fn a_port_about_to_be_free_is_waited_for_at_the_start_only() {
    let mut b = Bench::new(1000);
    b.world().busy.extend([(TCP, 80), (TCP, 81)]);
    b.world().patience = vec![None, None, Some((TCP, 80)), Some((TCP, 81))];
    b.apply(&[rule(80, 80)]).unwrap();
    assert_eq!(b.ports(), [80]);
    b.apply(&[rule(80, 80), rule(81, 81)]).unwrap_err();
    assert_eq!(b.world().patience.len(), 1);
}

#[test]
fn best_effort_goes_on_without_what_is_taken_and_gets_it_later() {
    let mut b = Bench::new(1000);
    b.world().busy.extend([(TCP, 11), (TCP, 12)]);
    b.apply(&[best(10, 13)]).unwrap();
    assert_eq!(b.ports(), [10, 13]);
    let status: Vec<_> = b.keeper.status().map(|s| (s.open, s.missing)).collect();
    assert_eq!(status, [(2, 2)]);
    assert!(b.keeper.is_restless());
    b.world().busy.clear();
    b.retry(SECOND);
    assert_eq!(b.ports(), [10, 11, 12, 13]);
    b.check();
    assert!(!b.keeper.is_restless());
}

#[test]
fn best_effort_without_any_port_is_an_error() {
    let mut b = Bench::new(1000);
    b.world().busy.extend([(TCP, 10), (TCP, 11)]);
    assert_eq!(
        b.apply(&[best(10, 11)]).unwrap_err().to_string(),
        "All listens failed for HOST TCP */10-11\nCouldn't listen on requested ports"
    );
    // Nothing listens on the other side: nothing was tried.
    b.apply(&[auto(10, 11)]).unwrap();
    b.other(TCP, &[10, 11]);
    b.follow();
    assert_eq!(b.ports(), [0; 0]);
}

#[test]
fn the_budget_leaves_out_the_highest_and_never_what_is_explicit() {
    let mut b = Bench::new(50);
    b.apply(&[best(1, 100), rule(200, 209)]).unwrap();
    let expected: Vec<u16> = (1..=40).chain(200..=209).collect();
    assert_eq!(b.ports(), expected);
    b.check();
    let error = Bench::new(50).apply(&[rule(1, 51)]).unwrap_err();
    assert!(matches!(
        error,
        PortError::TooMany {
            wanted: 51,
            budget: 50,
            ..
        }
    ));
}

#[test]
fn there_are_never_more_listeners_than_room_was_made_for() {
    let b = Bench::new(usize::MAX);
    let most = MAX_LISTENERS;
    assert_eq!(b.keeper.context.budget, most);
    // All ports at each of three addresses are more than that: what is left out needs no memory.
    let all = |n: u8| Rule {
        listen: Some(IpAddr::from([127, 0, 0, n])),
        ..rule(1, u16::MAX)
    };
    let mut b = b;
    let rules: Vec<_> = (1..4).map(all).collect();
    let e = b.apply(&rules).unwrap_err();
    assert!(matches!(e, PortError::TooMany { budget, .. } if budget == most));
}

#[test]
fn running_out_of_descriptors_is_survived_by_best_effort() {
    let mut b = Bench::new(1000);
    b.world().descriptors = Some(30);
    b.apply(&[best(1, 100)]).unwrap();
    assert_eq!(b.ports(), (1..=30).collect::<Vec<_>>());
    // No further attempt for ports that would fare no better.
    assert_eq!(b.world().binds, 31);
    let mut b = Bench::new(1000);
    b.world().descriptors = Some(30);
    assert!(b.apply(&[rule(1, 100)]).is_err());
}

#[test]
fn forbidden_ports_are_not_tried_for_ever() {
    let mut b = Bench::new(2000);
    b.world().refuse = Some((1024, libc::EACCES));
    b.apply(&[best(1000, 1030)]).unwrap();
    assert_eq!(b.ports(), (1024..=1030).collect::<Vec<_>>());
    assert!(!b.keeper.is_restless(), "nothing to wait for");
    let binds = b.world().binds;
    b.retry(SECOND);
    assert_eq!(b.world().binds, binds);
}

#[test]
fn automatic_ports_come_and_go_with_the_other_side() {
    let mut b = Bench::new(1000);
    let mapped = Rule {
        to_first: 9000,
        ..auto(8000, 8100)
    };
    let udp = Rule {
        protocol: UDP,
        ..auto(1, 300)
    };
    b.apply(&[mapped, udp]).unwrap();
    assert_eq!(b.held(), []);
    b.other(TCP, &[9003, 70, 8005]);
    b.other(UDP, &[80]);
    b.follow();
    // UDP follows what TCP listens on, too.
    let mut held = b.held();
    held.sort_unstable();
    assert_eq!(held, [(TCP, 8003), (UDP, 70), (UDP, 80)]);
    b.check();
    b.other(TCP, &[]);
    b.follow();
    assert_eq!(b.held(), [(UDP, 80)]);
    b.check();
}

#[test]
fn a_port_just_closed_still_counts_as_ours_for_a_while() {
    let mut b = Bench::new(1000);
    b.apply(&[auto(1, 300)]).unwrap();
    b.other(TCP, &[70]);
    b.follow();
    b.retry(Duration::from_millis(500));
    b.other(TCP, &[]);
    b.follow();
    assert_eq!(b.ports(), [0; 0]);
    assert!(b.keeper.own_ports().tcp.contains(70));
    b.retry(Duration::from_millis(499));
    assert!(b.keeper.own_ports().tcp.contains(70));
    assert!(b.keeper.is_restless(), "it must be let go some time");
    b.retry(Duration::from_millis(500));
    b.retry(Duration::from_millis(500));
    assert!(!b.keeper.own_ports().tcp.contains(70));
    assert!(!b.keeper.is_restless());
}

#[test]
fn much_opened_at_once_is_worked_off_in_portions() {
    let mut b = Bench::new(5000);
    b.apply(&[auto(1, 3000)]).unwrap();
    b.other(TCP, &(1..=3000).collect::<Vec<_>>());
    b.follow();
    assert_eq!(b.ports().len(), 1024);
    while b.ports().len() < 3000 {
        assert!(b.keeper.is_restless());
        b.follow();
    }
    let binds = b.world().binds;
    b.follow();
    assert_eq!(b.world().binds, binds);
}

#[test]
fn what_both_tables_have_keeps_its_socket() {
    let mut b = Bench::new(1000);
    b.apply(&[rule(80, 89), rule(100, 100)]).unwrap();
    let binds = b.world().binds;
    // The range is cut, goes elsewhere, and grows at its end: what both have is not bound again.
    let moved = Rule {
        to_first: 1085,
        ..rule(85, 91)
    };
    b.apply(&[rule(100, 100), moved]).unwrap();
    assert_eq!(b.world().binds, binds + 2);
    let moves = |m: &&Supply| matches!(m, Supply::Move { .. });
    assert_eq!(b.messages.iter().filter(moves).count(), 5);
    assert_eq!(b.ports(), [85, 86, 87, 88, 89, 90, 91, 100]);
    b.check();
}

#[test]
fn a_port_obstructed_only_by_what_goes_comes_after_it() {
    let mut b = Bench::new(1000);
    b.apply(&[rule(80, 80)]).unwrap();
    let narrow = Rule {
        listen: Some("127.0.0.1".parse().unwrap()),
        ..rule(80, 80)
    };
    b.apply(&[narrow]).unwrap();
    assert_eq!(b.ports(), [0; 0]);
    assert!(b.keeper.is_restless());
    b.retry(Duration::ZERO);
    assert_eq!(b.ports(), [80]);
    b.check();
}

#[test]
fn nothing_moves_while_a_change_is_prepared() {
    let mut b = Bench::new(1000);
    b.apply(&[auto(1, 300)]).unwrap();
    let change = b.keeper.prepare(&[]).unwrap();
    assert_eq!(b.keeper.prepare(&[]).unwrap_err(), PortError::Table);
    b.other(TCP, &[70]);
    b.follow();
    b.retry(SECOND);
    assert_eq!(b.ports(), [0; 0]);
    b.keeper.abort(change);
    b.follow();
    assert_eq!(b.ports(), [70]);
}

#[test]
fn ports_of_a_change_are_ours_from_the_first_moment() {
    let mut b = Bench::new(1000);
    let change = b.keeper.prepare(&b.named(&[rule(80, 80)])).unwrap();
    assert!(b.keeper.own_ports().tcp.contains(80));
    b.retry(SECOND);
    assert!(b.keeper.own_ports().tcp.contains(80));
    b.keeper.abort(change);
    assert!(b.keeper.is_restless());
    for _ in 0..3 {
        b.retry(SECOND);
    }
    assert!(!b.keeper.own_ports().tcp.contains(80));
}

#[test]
fn many_ports_given_up_by_somebody_are_soon_taken() {
    let mut b = Bench::new(5000);
    b.world().busy.extend((2..=3000).map(|p| (TCP, p)));
    b.apply(&[best(1, 3000)]).unwrap();
    b.retry(SECOND);
    let binds = b.world().binds;
    b.retry(SECOND);
    assert_eq!(b.world().binds, binds + RETRIES, "busy ports cost little");
    b.world().busy.clear();
    b.retry(SECOND);
    for _ in 0..3 {
        b.retry(Duration::from_millis(1));
    }
    assert_eq!(b.ports().len(), 3000);
}

#[test]
fn a_name_stands_for_one_rule_at_a_time() {
    let mut b = Bench::new(1000);
    b.apply(&[rule(80, 80)]).unwrap();
    let id = RuleId(NonZeroU16::MIN);
    let other = [(id, rule(81, 81))];
    assert_eq!(b.keeper.prepare(&other).unwrap_err(), PortError::Table);
    b.apply(&[]).unwrap();
    let change = b.keeper.prepare(&other).unwrap();
    b.keeper.abort(change);
    let twice = [
        (RuleId(NonZeroU16::MAX), rule(1, 1)),
        (RuleId(NonZeroU16::MAX), rule(2, 2)),
    ];
    assert_eq!(b.keeper.prepare(&twice).unwrap_err(), PortError::Table);
}

#[test]
fn a_lost_listener_is_made_again() {
    let mut b = Bench::new(1000);
    b.apply(&[rule(80, 89)]).unwrap();
    let id = RuleId(NonZeroU16::MIN);
    b.world().held.remove(&(id, 3));
    b.request(id, 3).unwrap();
    assert_eq!(b.ports(), (80..=89).collect::<Vec<_>>());
    b.check();
    // Taken by somebody else meanwhile: later.
    b.world().held.remove(&(id, 4));
    b.world().busy.insert((TCP, 84));
    b.request(id, 4).unwrap();
    assert_eq!(b.ports().len(), 9);
    b.world().busy.clear();
    b.retry(SECOND);
    assert_eq!(b.ports().len(), 10);
}

#[test]
fn what_was_never_granted_is_an_offence_and_what_was_taken_back_is_not() {
    let mut b = Bench::new(1000);
    b.apply(&[rule(80, 89), auto(100, 199)]).unwrap();
    let id = |n| RuleId(NonZeroU16::new(n).unwrap());
    assert_eq!(b.request(id(1), 10), Err(Misbehaved));
    assert_eq!(b.request(id(3), 0), Err(Misbehaved));
    assert_eq!(b.request(id(2), u16::MAX), Err(Misbehaved));
    let kind = crate::ipc::SocketKind::Tcp4;
    let now = b.now;
    let wrong = b
        .keeper
        .serve(Request::Sockets { kind, count: 1 }, now, &mut |_, _| Ok(()));
    assert!(matches!(wrong, Err(ServeError::Misbehaved(_))));
    // Granted, but not open now.
    let binds = b.world().binds;
    assert_eq!(b.request(id(2), 5), Ok(()));
    b.apply(&[]).unwrap();
    assert_eq!(b.request(id(1), 5), Ok(()));
    assert_eq!(b.world().binds, binds);
    assert_eq!(b.messages, []);
}

#[test]
fn requests_are_answered_at_a_limited_rate() {
    let mut b = Bench::new(1000);
    b.apply(&[rule(1, 400)]).unwrap();
    let id = RuleId(NonZeroU16::MIN);
    b.world().held.clear();
    for offset in 0..400 {
        b.request(id, offset).unwrap();
    }
    assert_eq!(b.ports().len(), 256);
    // What is over the limit is not lost.
    for _ in 0..5 {
        b.retry(SECOND);
    }
    assert_eq!(b.ports().len(), 400);
    b.check();
}

#[derive(Clone, Debug)]
enum Step {
    Table(Vec<Rule>),
    Other(Protocol, Vec<u16>),
    Busy(Protocol, u16, bool),
    Follow,
    Retry(u64),
    Lose(usize),
    Request(u16, u16),
}

fn a_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(TCP), Just(UDP)]
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let listen = prop_oneof![
        2 => Just(None),
        1 => Just(Some("127.0.0.1".parse().unwrap())),
        1 => Just(Some("127.0.0.2".parse().unwrap())),
    ];
    let interface = prop_oneof![3 => Just(None), 1 => Just(Some("lo".to_owned()))];
    let ports = (1_u16..150, 0_u16..70, 0_u16..3);
    (
        a_protocol(),
        listen,
        interface,
        ports,
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(protocol, listen, interface, (first, more, shift), (best, auto))| Rule {
                protocol,
                listen,
                interface,
                first,
                last: first + more,
                target: None,
                to_first: first + shift,
                best_effort: best,
                auto_scan: auto,
            },
        )
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        proptest::collection::vec(a_rule(), 0..5).prop_map(Step::Table),
        (a_protocol(), proptest::collection::vec(1_u16..230, 0..40))
            .prop_map(|(protocol, ports)| Step::Other(protocol, ports)),
        (a_protocol(), 1_u16..230, any::<bool>()).prop_map(|(p, n, on)| Step::Busy(p, n, on)),
        Just(Step::Follow),
        (0_u64..1500).prop_map(Step::Retry),
        any::<usize>().prop_map(Step::Lose),
        (1_u16..20, 0_u16..80).prop_map(|(rule, offset)| Step::Request(rule, offset)),
    ]
}

impl Bench {
    fn step(&mut self, step: Step) {
        match step {
            Step::Table(rules) => {
                let mut table = Rules::default();
                for rule in rules {
                    // Those in conflict never reach a keeper.
                    let _ = table.add(rule, &CONTEXT);
                }
                let _ = self.apply(table.as_slice());
            }
            Step::Other(protocol, ports) => self.other(protocol, &ports),
            Step::Busy(protocol, port, on) => {
                let taken = self.held().contains(&(protocol, port));
                if on && !taken {
                    self.world().busy.insert((protocol, port));
                } else {
                    self.world().busy.remove(&(protocol, port));
                }
            }
            Step::Follow => self.follow(),
            Step::Retry(ms) => self.retry(Duration::from_millis(ms)),
            Step::Lose(which) => {
                let lost = {
                    let mut world = self.world();
                    let count = world.held.len();
                    let key = world.held.keys().nth(which.checked_rem(count).unwrap_or(0));
                    let key = key.copied();
                    key.inspect(|k| {
                        world.held.remove(k);
                    })
                };
                if let Some((rule, offset)) = lost {
                    self.request(rule, offset).unwrap();
                }
            }
            Step::Request(number, offset) => self.ask(number, offset),
        }
    }

    /// A forwarder that is no longer itself asks for something it has, or should not have.
    fn ask(&mut self, number: u16, offset: u16) {
        let id = RuleId(NonZeroU16::new(number).unwrap());
        if self.world().held.contains_key(&(id, offset)) {
            // It would be told that the port is taken, by itself. Not of interest here.
            return;
        }
        let current = self.current.iter().find(|(i, _)| *i == id).map(|(_, r)| r);
        let allowed = match current {
            Some(rule) => offset <= rule.last - rule.first,
            None => self.rules.contains_key(&id),
        };
        let before = self.held().len();
        assert_eq!(self.request(id, offset).is_ok(), allowed);
        assert_eq!(self.held().len(), before, "something not granted");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_open_is_always_granted(
        budget in 0_usize..300,
        steps in proptest::collection::vec(a_step(), 0..25),
    ) {
        let mut b = Bench::new(budget);
        for step in steps {
            b.step(step);
            b.check();
        }
    }

    #[test]
    fn in_the_end_everything_that_can_be_is_open(
        steps in proptest::collection::vec(a_step(), 0..20),
    ) {
        let mut b = Bench::new(10_000);
        for step in steps {
            b.step(step);
        }
        b.world().busy.clear();
        b.follow();
        for _ in 0..20 {
            b.retry(SECOND);
        }
        b.check();
        let keeper = &b.keeper;
        prop_assert!(keeper.status().all(|s| s.missing == 0));
        let other = &keeper.other;
        let wanted = |rule: &Rule, port: u16| {
            let to = port - rule.first + rule.to_first;
            !rule.auto_scan
                || other.of(rule.protocol).contains(to)
                || rule.protocol == UDP && other.tcp.contains(to)
        };
        let expected: BTreeSet<(Protocol, u16)> = b
            .current
            .iter()
            .flat_map(|(_, r)| (r.first..=r.last).map(move |p| (r, p)))
            .filter(|(r, p)| wanted(r, *p))
            .map(|(r, p)| (r.protocol, p))
            .collect();
        prop_assert_eq!(b.held().into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
#[ignore = "a measurement, in a network namespace of its own: unshare -rn"]
fn cost_of_fifteen_thousand_ports() {
    let context = KeeperContext {
        ipv4: true,
        ipv6: true,
        freebind: false,
        budget: 15_000,
    };
    for protocol in [TCP, UDP] {
        let mut keeper = Keeper::new(Table::Host, context);
        let all = Rule {
            protocol,
            ..best(10_000, 40_000)
        };
        let start = Instant::now();
        let change = keeper.prepare(&[(RuleId(NonZeroU16::MIN), all)]).unwrap();
        let mut sockets = 0;
        let out = &mut |_, fds: &[BorrowedFd<'_>]| {
            sockets += fds.len();
            Ok(())
        };
        keeper.commit(change, out).unwrap();
        let elapsed = start.elapsed();
        assert_eq!(sockets, 15_000);
        assert!(elapsed < Duration::from_millis(200), "{elapsed:?}");
        let start = Instant::now();
        assert!(keeper.is_restless());
        keeper.retry(start, &mut |_, _| Ok(())).unwrap();
        let elapsed = start.elapsed();
        assert!(elapsed < Duration::from_millis(2), "{elapsed:?}");
    }
}
