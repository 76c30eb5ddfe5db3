//! The server against a fake instance, with real clients on real sockets.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::config::rules::{DEFAULT_EPHEMERAL, Protocol, Spec};
use crate::control::exchange::{OUTCOME, put_apply, put_report};
use crate::control::report::{Hello, Text};
use crate::control::wire::{Pif, parse_greeting, put_update};

const BOTH: Context = Context {
    ipv4: true,
    ipv6: true,
    tcp: true,
    udp: true,
    ephemeral: DEFAULT_EPHEMERAL,
};

struct Fake {
    host: Rules,
    splice: Rules,
    pending: Option<(Rules, Rules)>,
    refuse: bool,
    /// passt: without another side.
    machine: bool,
    records: usize,
    asked: Cell<usize>,
}

impl Instance for Fake {
    fn rules(&self, table: Table) -> &Rules {
        match table {
            Table::Host => &self.host,
            Table::Splice => &self.splice,
        }
    }

    fn context(&self, _: Table) -> (Context, bool) {
        (BOTH, !self.machine)
    }

    fn change(&mut self, host: &Rules, splice: &Rules) -> Progress {
        if self.refuse {
            return Progress::Refused("no".to_owned());
        }
        assert!(self.pending.is_none(), "two changes at once");
        self.pending = Some((host.clone(), splice.clone()));
        Progress::Pending
    }

    fn record(&self, index: usize) -> Option<Record> {
        self.asked.set(self.asked.get().max(index));
        (index < self.records).then(|| {
            Record::Hello(Hello {
                program: Text::new("test"),
                pid: u32::try_from(index).expect("few"),
                uptime_s: 0,
            })
        })
    }

    fn hand_over(&mut self, client: BorrowedFd<'_>) {
        let mut bytes = [0; RECORD];
        Record::End.encode(&mut bytes).expect("fits");
        assert_eq!(unix::send_some(client, &bytes).expect("room"), RECORD);
    }
}

/// Rules as `table` makes them of TCP specifiers.
fn rules(table: Table, specs: &[&str]) -> Rules {
    let mut rules = Rules::default();
    for spec in specs {
        let spec = Spec::parse(spec).expect("spec");
        for rule in spec.rules(table, Protocol::Tcp, &BOTH) {
            rules.add(rule, &BOTH).expect("rule");
        }
    }
    rules
}

struct Bench {
    control: Control,
    instance: Fake,
    address: SocketAddr,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("passt-control-test-{}-{n}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("name");
        let listener = UnixListener::bind_addr(&address).expect("bind");
        listener.set_nonblocking(true).expect("non-blocking");
        let owner = nix::unistd::geteuid().as_raw();
        Self {
            control: Control::new(listener.into(), owner),
            instance: Fake {
                host: rules(Table::Host, &["8080"]),
                splice: rules(Table::Splice, &["25"]),
                pending: None,
                refuse: false,
                machine: false,
                records: 3,
                asked: Cell::new(0),
            },
            address,
            now: Instant::now(),
        }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect_addr(&self.address).expect("connect");
        client.set_nonblocking(true).expect("non-blocking");
        client
    }

    fn step(&mut self) {
        self.control.step(self.now, &mut self.instance);
    }

    /// Connect and read the greeting.
    fn greeted(&mut self) -> (UnixStream, Vec<Pif>) {
        let mut client = self.connect();
        self.step();
        let bytes = read(&mut client);
        let tables = parse_greeting(&bytes).expect("valid").expect("complete");
        (client, tables)
    }

    fn finish(&mut self, result: Result<(), String>) {
        let (host, splice) = self.instance.pending.take().expect("a change");
        if result.is_ok() {
            (self.instance.host, self.instance.splice) = (host, splice);
        }
        self.control
            .finished(result.map_or_else(Progress::Refused, |()| Progress::Done));
        self.step();
    }
}

/// Everything there is to read now.
fn read(client: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n) = client.read(&mut chunk) {
        if n == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..n]);
    }
    bytes
}

/// The other side has hung up, and said nothing before.
fn hung_up(client: &mut UnixStream) -> bool {
    match client.read(&mut [0; 1]) {
        Ok(n) => n == 0,
        // It left something of ours unread.
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

fn update(host: &Rules, splice: &Rules) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_update(&mut bytes, [(1, host.as_slice()), (3, splice.as_slice())]);
    bytes
}

fn outcome(client: &mut UnixStream) -> Outcome {
    let bytes = read(client);
    let bytes: &[u8; OUTCOME] = bytes.as_slice().try_into().expect("an outcome");
    Outcome::decode(bytes).expect("valid")
}

#[test]
fn the_greeting_shows_tables_and_capabilities() {
    let mut bench = Bench::new();
    let (_client, tables) = bench.greeted();
    assert_eq!(tables.len(), 2);
    assert_eq!(tables[0].name, "HOST");
    assert_eq!(tables[0].rules, bench.instance.host.as_slice());
    assert_eq!(tables[1].rules, bench.instance.splice.as_slice());
    assert!(tables[0].capabilities.has(0x3f | Capabilities::QUERIES));
}

#[test]
fn with_a_machine_there_is_one_table_and_nobody_to_follow() {
    let mut bench = Bench::new();
    bench.instance.machine = true;
    bench.instance.splice = Rules::default();
    let (mut client, tables) = bench.greeted();
    assert_eq!(tables.len(), 1);
    assert_eq!(tables[0].name, "HOST");
    assert!(!tables[0].capabilities.has(Capabilities::SCAN));
    for (host, splice, why) in [
        (&["8080"][..], &["26"][..], "There is no SPLICE table"),
        (&["auto"], &[], "only allowed for pasta"),
    ] {
        let mut bytes = Vec::new();
        put_apply(&mut bytes);
        let (host, splice) = (rules(Table::Host, host), rules(Table::Splice, splice));
        bytes.extend(update(&host, &splice));
        client.write_all(&bytes).expect("write");
        bench.step();
        let outcome = outcome(&mut client);
        assert!(!outcome.ok && outcome.message.contains(why), "{outcome:?}");
        assert!(bench.instance.pending.is_none());
        (client, _) = bench.greeted();
    }
}

#[test]
fn an_established_client_changes_tables_and_hears_nothing() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.greeted();
    let host = rules(Table::Host, &["8080", "9000"]);
    let bytes = update(&host, &Rules::default());
    // However it is cut, and even if the client is gone by then.
    for byte in &bytes {
        assert!(bench.instance.pending.is_none());
        client.write_all(&[*byte]).expect("write");
        bench.step();
    }
    bench.step();
    assert!(
        bench.control.awaited().is_none(),
        "nobody is served meanwhile"
    );
    assert!(bench.control.deadline().is_none());
    bench.finish(Ok(()));
    assert_eq!(bench.instance.host, host);
    assert!(hung_up(&mut client));
    let (_next, tables) = bench.greeted();
    assert_eq!(tables[0].rules, host.as_slice());
    assert!(tables[1].rules.is_empty());
}

#[test]
fn our_client_is_told_what_came_of_it() {
    let mut bench = Bench::new();
    let host = rules(Table::Host, &["9000"]);
    for result in [Err("Port 9000 is busy".to_owned()), Ok(())] {
        let (mut client, _) = bench.greeted();
        let mut bytes = Vec::new();
        put_apply(&mut bytes);
        bytes.extend(update(&host, &bench.instance.splice));
        client.write_all(&bytes).expect("write");
        bench.step();
        bench.finish(result.clone());
        let outcome = outcome(&mut client);
        assert_eq!(outcome.ok, result.is_ok());
        assert_eq!(outcome.message, result.err().unwrap_or_default());
        assert!(hung_up(&mut client));
    }
    assert_eq!(bench.instance.host, host);
}

#[test]
fn tables_as_they_are_need_no_change() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.greeted();
    let mut bytes = Vec::new();
    put_apply(&mut bytes);
    bytes.extend(update(&bench.instance.host, &bench.instance.splice));
    client.write_all(&bytes).expect("write");
    bench.step();
    assert!(bench.instance.pending.is_none());
    assert!(outcome(&mut client).ok);
}

#[test]
fn what_the_command_line_could_not_ask_for_is_refused() {
    let conflict = [
        rules(Table::Host, &["80-90"]).as_slice()[0].clone(),
        rules(Table::Host, &["85"]).as_slice()[0].clone(),
    ];
    let outside = rules(Table::Host, &["0.0.0.0/80"]);
    let zero = rules(Table::Host, &["80"]).as_slice()[0].clone();
    let zero = [Rule { first: 0, ..zero }];
    for (table, rules, why) in [
        (1, &conflict[..], "Forwarding configuration conflict"),
        (3, outside.as_slice(), "loopback only"),
        (1, &zero[..], "port 0"),
    ] {
        let mut bench = Bench::new();
        let (mut client, _) = bench.greeted();
        let mut bytes = Vec::new();
        put_apply(&mut bytes);
        put_update(&mut bytes, [(table, rules)]);
        client.write_all(&bytes).expect("write");
        bench.step();
        let outcome = outcome(&mut client);
        assert!(!outcome.ok);
        assert!(outcome.message.contains(why), "{}", outcome.message);
        assert!(bench.instance.pending.is_none());
    }
    let mut bench = Bench::new();
    bench.instance.refuse = true;
    let (mut client, _) = bench.greeted();
    client.write_all(&[0]).expect("write");
    bench.step();
    assert!(
        hung_up(&mut client),
        "an established client has no way to hear it"
    );
}

#[test]
fn malformed_and_endless_clients_are_dismissed() {
    for bytes in [
        &b"\x02\0\0\0\0"[..],
        b"\x01\xff\0\0\0",
        b"\xffpesto",
        &[1, 0, 0, 0, 0].repeat(20_000),
    ] {
        let mut bench = Bench::new();
        let (mut client, _) = bench.greeted();
        for part in bytes.chunks(4096) {
            if client.write_all(part).is_err() {
                break;
            }
            bench.step();
        }
        assert!(hung_up(&mut client), "{:?}", &bytes[..5]);
        assert!(bench.control.input.capacity() <= BUFFER);
        assert!(bench.instance.pending.is_none());
        bench.greeted();
    }
}

#[test]
fn a_version_from_the_future_is_told_so() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.greeted();
    let mut bytes = Vec::new();
    put_report(&mut bytes);
    bytes[9] = 1;
    client.write_all(&bytes).expect("write");
    bench.step();
    let outcome = outcome(&mut client);
    assert!(!outcome.ok && outcome.message.contains("another version"));
}

#[test]
fn a_report_is_ours_first_and_then_the_forwarders() {
    let mut bench = Bench::new();
    bench.instance.records = 600;
    let (mut client, _) = bench.greeted();
    let mut bytes = Vec::new();
    put_report(&mut bytes);
    client.write_all(&bytes).expect("write");
    let mut got = Vec::new();
    for _ in 0..100 {
        bench.step();
        got.extend(read(&mut client));
    }
    assert!(bench.control.output.capacity() <= BUFFER);
    let (head, records) = got.split_at(OUTCOME);
    assert!(
        Outcome::decode(head.try_into().expect("size"))
            .expect("valid")
            .ok
    );
    let records: Vec<Record> = records
        .chunks(RECORD)
        .map(|bytes| Record::decode(bytes.try_into().expect("size")).expect("record"))
        .collect();
    assert_eq!(records.len(), 601);
    assert!(
        matches!(records[599], Record::Hello(Hello { pid: 599, .. })),
        "in order"
    );
    assert_eq!(records[600], Record::End);
    assert!(hung_up(&mut client));
}

#[test]
fn a_client_that_does_not_read_or_speak_keeps_nobody_waiting_for_ever() {
    let mut bench = Bench::new();
    bench.instance.records = 10_000;
    let (mut silent, _) = bench.greeted();
    let mut waiting = bench.connect();
    bench.step();
    assert!(read(&mut waiting).is_empty(), "one after the other");
    let deadline = bench.control.deadline().expect("a deadline");
    bench.now = deadline;
    bench.step();
    assert!(hung_up(&mut silent));
    bench.step();
    assert!(!read(&mut waiting).is_empty());
    // Now one that asks for more than its socket holds and never reads.
    let mut bytes = Vec::new();
    put_report(&mut bytes);
    waiting.write_all(&bytes).expect("write");
    bench.step();
    assert!(bench.instance.asked.get() < 10_000, "it is not full");
    assert_eq!(
        bench.control.awaited().map(|(_, events)| events),
        Some(PollFlags::POLLOUT)
    );
    bench.now = bench.control.deadline().expect("a deadline");
    bench.step();
    assert!(bench.control.client.is_none());
}

#[test]
fn other_users_are_refused_before_they_hear_anything() {
    let mut bench = Bench::new();
    let us = nix::unistd::geteuid().as_raw();
    if us == 0 {
        return; // Root is always served.
    }
    bench.control.owner = us.wrapping_add(1);
    let mut client = bench.connect();
    bench.step();
    assert!(hung_up(&mut client));
}

#[test]
fn leaving_is_no_reason_to_complain() {
    let mut bench = Bench::new();
    let (client, _) = bench.greeted();
    drop(client);
    bench.step();
    assert!(bench.control.client.is_none());
    let gone = bench.connect();
    drop(gone);
    bench.step();
    bench.step();
    assert!(bench.control.client.is_none());
}

#[test]
fn a_listener_that_fails_is_left_alone_for_a_while() {
    let mut bench = Bench::new();
    let (broken, _) = UnixStream::pair().expect("pair");
    let good = std::mem::replace(&mut bench.control.listener, broken.into());
    bench.step();
    assert!(
        bench.control.awaited().is_none(),
        "it may say that somebody is there for ever"
    );
    let again = bench.control.deadline().expect("it is tried again");
    bench.control.listener = good;
    let mut client = bench.connect();
    bench.step();
    assert!(read(&mut client).is_empty());
    bench.now = again;
    bench.step();
    assert!(!read(&mut client).is_empty());
}

#[test]
fn an_answer_that_took_long_is_still_given() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.greeted();
    let mut bytes = Vec::new();
    put_apply(&mut bytes);
    put_update(&mut bytes, []);
    client.write_all(&bytes).expect("write");
    bench.step();
    bench.now += 2 * PATIENCE;
    bench.finish(Ok(()));
    assert!(outcome(&mut client).ok);
}
