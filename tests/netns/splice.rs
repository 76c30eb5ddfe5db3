//! Loopback to loopback, past the tap: `-t`, `-u` from the host's loopback, `-T`, `-U` from the namespace's.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use crate::differences::established;
use crate::exec::{
    Ending, SOON, cpu_ticks, nothing_left, poll_until, processes, sum_over_processes,
};
use crate::harness::{PASTA, tests};
use crate::reach::{
    FAMILIES, Family, Protocol, Server, Way, abort, clones, closed, datagrams, exchange,
    reachable_within, sees_reset, transfer, try_reach, udp_to,
};
use crate::servers::{check_pattern, echo, http, send_pattern};
use crate::world::{Guest, HOST4, Netns, PEER4, World, accept, bounded};
use Protocol::{Tcp, Udp};

tests![
    out,
    out_bulk,
    out_udp,
    out_remapped,
    out_of_a_foreign_address,
    out_by_an_own_address,
    out_nobody_listens,
    out_without_ipv6,
    out_without_ipv4,
    out_to_ipv4_only,
    out_to_ipv6_only,
    in_to_ipv4_only,
    in_to_ipv6_only,
    other_loopback_addresses,
    host_loopback_to_namespace_loopback,
    no_splice,
    splice_only,
    splice_only_command,
    half_close_of_the_client,
    half_close_of_the_server,
    reset_by_the_client,
    reset_by_the_client_after_data,
    reset_by_the_server,
    reset_by_the_server_after_data,
    server_closes_at_once,
    close_with_data_in_flight,
    server_closes_with_data_in_flight,
    bulk_both_ways,
    interrupted_bulk,
    small_after_bulk,
    small_buffers,
    no_delay,
    full_receiver_does_not_spin,
    full_receiver_leaves_the_other_way,
    many_at_once,
    descriptors_come_back,
    more_than_descriptors_allow,
    udp_clients_apart,
    udp_largest,
    udp_nobody_listens,
];

const MIB: u64 = 1 << 20;

/// The two ways to cross.
#[derive(Clone, Copy, Debug)]
enum Cross {
    In,
    Out,
}

const BOTH: [Cross; 2] = [Cross::In, Cross::Out];

fn crossed() -> (World, Guest) {
    let w = World::direct();
    let g = w.guest(&["-t", "8080", "-u", "8080", "-T", "8081", "-U", "8081"]);
    (w, g)
}

impl Cross {
    /// Where the client is, and where it goes to.
    fn client<'a>(
        self,
        w: &'a World,
        g: &'a Guest,
        family: Family,
    ) -> (&'a Netns, (&'static str, u16)) {
        match self {
            Cross::In => (&w.host, (family.loopback(), 8080)),
            Cross::Out => (&g.ns, (family.loopback(), 8081)),
        }
    }

    /// Where the server is, and what it binds.
    fn server<'a>(
        self,
        w: &'a World,
        g: &'a Guest,
        family: Family,
    ) -> (&'a Netns, (&'static str, u16)) {
        match self {
            Cross::In => (&g.ns, (family.host(), 8080)),
            Cross::Out => (&w.host, (family.loopback(), 8081)),
        }
    }
}

/// In all four combinations: a client's connection and the server's end of it.
#[track_caller]
fn each_pair(test: impl Fn(TcpStream, TcpStream)) {
    let (w, g) = crossed();
    for cross in BOTH {
        for family in FAMILIES {
            let (ns, addr) = cross.server(&w, &g, family);
            let listener = ns.listen(addr);
            let (ns, to) = cross.client(&w, &g, family);
            let near = ns.connect(to);
            test(near, accept(&listener).0);
        }
    }
}

/// Bulk, except where it is known to break.
fn volume(n: u64) -> u64 {
    if established() { n / 100 } else { n }
}

/// A server on the host's loopback sees a client on its own loopback.
fn out() {
    let (w, g) = crossed();
    for family in FAMILIES {
        let server = Server::tcp(&w.host, (family.loopback(), 8081));
        for n in [0, 1, 100_000] {
            exchange(g.connect((family.loopback(), 8081)), n);
            let seen = server.seen();
            assert_eq!(
                (
                    seen.bytes.as_ref(),
                    seen.peer_ip().as_str(),
                    seen.local_ip().as_str()
                ),
                (Ok(&n), family.loopback(), family.loopback())
            );
        }
    }
}

fn out_bulk() {
    let (w, g) = crossed();
    for family in FAMILIES {
        let server = Server::tcp(&w.host, (family.loopback(), 8081));
        let n = volume(100_000_000);
        exchange(g.connect((family.loopback(), 8081)), n);
        assert_eq!(server.seen().bytes, Ok(n));
    }
}

/// UDP keeps its source port, too.
fn out_udp() {
    let (w, g) = crossed();
    for family in FAMILIES {
        let server = Server::udp(&w.host, (family.loopback(), 8081));
        let (seen, from) = datagrams(&g, (family.loopback(), 8081), &server);
        assert_eq!(
            (seen.peer_ip().as_str(), seen.peer.port()),
            (family.loopback(), from.port())
        );
    }
}

fn out_remapped() {
    let w = World::direct();
    let g = w.guest(&["-T", "8000-8003:9000-9003", "-U", "8000:9000"]);
    for protocol in [Tcp, Udp] {
        let server = Server::new(protocol, &w.host, ("::1", 9000));
        reachable_within(SOON, protocol, &g, ("::1", 8000));
        server.forget();
    }
    let _last = Server::tcp(&w.host, ("127.0.0.1", 9003));
    reachable_within(SOON, Tcp, &g, ("127.0.0.1", 8003));
    closed(Tcp, &g, ("127.0.0.1", 8004));
    closed(Tcp, &g, ("127.0.0.1", 9000));
}

/// What listens for the namespace's loopback is not open to anybody else, least of all from outside.
fn out_of_a_foreign_address() {
    let (w, g) = crossed();
    let _server = Server::tcp(&w.host, ("127.0.0.1", 8081));
    closed(Tcp, &w.peer, (HOST4, 8081));
    reachable_within(SOON, Tcp, &g, ("127.0.0.1", 8081));
}

/// The namespace's other addresses are reached over its loopback interface, too, but are not its loopback.
fn out_by_an_own_address() {
    let (w, g) = crossed();
    let servers = [
        Server::tcp(&w.host, ("127.0.0.1", 8081)),
        Server::udp(&w.host, ("127.0.0.1", 8081)),
    ];
    for protocol in [Tcp, Udp] {
        reachable_within(SOON, protocol, &g, ("127.0.0.1", 8081));
        let told = try_reach(protocol, &g, (HOST4, 8081));
        assert!(told.is_err(), "{protocol:?}: {told:?}");
    }
    drop(servers);
}

fn out_nobody_listens() {
    let (w, g) = crossed();
    for family in FAMILIES {
        for _ in 0..3 {
            let told = try_reach(Tcp, &g, (family.loopback(), 8081));
            assert_eq!(told, Err(ErrorKind::ConnectionReset));
        }
    }
    drop(w);
}

/// Where only one IP version is on, its loopback is forwarded all the same.
#[track_caller]
fn out_with(option: &str, family: Family) {
    let w = World::direct();
    let g = w.guest(&[option, "-T", "8081", "-U", "8081"]);
    let lo = family.loopback();
    for protocol in [Tcp, Udp] {
        let _server = Server::new(protocol, &w.host, (lo, 8081));
        let told = try_reach(protocol, &g, (lo, 8081));
        assert!(told.is_ok(), "{protocol:?}: {told:?}");
    }
}

fn out_without_ipv6() {
    out_with("-4", Family::V4);
}

fn out_without_ipv4() {
    out_with("-6", Family::V6);
}

/// A server of one family: it is reached by that family, and the other is reset at once.
#[track_caller]
fn one_family(cross: Cross, family: Family, other: Family) {
    let (w, g) = crossed();
    let (ns, addr) = cross.server(&w, &g, family);
    let server = Server::tcp(ns, addr);
    let (ns, to) = cross.client(&w, &g, family);
    exchange(ns.connect(to), 1000);
    assert_eq!(server.seen().bytes, Ok(1000));
    let (ns, to) = cross.client(&w, &g, other);
    assert_eq!(try_reach(Tcp, ns, to), Err(ErrorKind::ConnectionReset));
}

fn out_to_ipv4_only() {
    one_family(Cross::Out, Family::V4, Family::V6);
}

fn out_to_ipv6_only() {
    one_family(Cross::Out, Family::V6, Family::V4);
}

fn in_to_ipv4_only() {
    one_family(Cross::In, Family::V4, Family::V6);
}

fn in_to_ipv6_only() {
    one_family(Cross::In, Family::V6, Family::V4);
}

/// 127.0.0.2 is loopback as well, and is told apart where the server is on a loopback, too.
fn other_loopback_addresses() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080", "-T", "8081", "--host-lo-to-ns-lo"]);
    for (client, outside, inside) in [(&w.host, 8080, &g.ns), (&g.ns, 8081, &w.host)] {
        let server = Server::tcp(inside, ("0.0.0.0", outside));
        exchange(client.connect(("127.0.0.2", outside)), 1000);
        let seen = server.seen();
        assert!(seen.local_ip().starts_with("127.0.0."), "{seen:?}");
        if !established() {
            assert_eq!(seen.local_ip(), "127.0.0.2", "{seen:?}");
        }
    }
}

fn host_loopback_to_namespace_loopback() {
    let w = World::direct();
    let g = w.guest(&["-t", "8080", "-u", "8080", "--host-lo-to-ns-lo"]);
    for family in FAMILIES {
        let lo = family.loopback();
        for protocol in [Tcp, Udp] {
            let server = Server::new(protocol, &g, (lo, 8080));
            let seen = match protocol {
                Tcp => {
                    exchange(w.host.connect((lo, 8080)), 1000);
                    server.seen()
                }
                Udp => datagrams(&w.host, (lo, 8080), &server).0,
            };
            assert_eq!(
                (seen.peer_ip().as_str(), seen.local_ip().as_str()),
                (lo, lo),
                "{protocol:?}"
            );
        }
        // From outside nothing gets to a loopback.
        let told = try_reach(Tcp, &w.peer, (family.host(), 8080));
        assert_eq!(told, Err(ErrorKind::ConnectionReset));
    }
}

/// Without it, the host's loopback uses the tap, and -T and -U make no sense.
fn no_splice() {
    let w = World::direct();
    let g = w.guest(&["--no-splice", "-t", "8080", "-u", "8080"]);
    for (family, gateway) in FAMILIES.map(|f| (f, f.gateway())) {
        for protocol in [Tcp, Udp] {
            let server = Server::new(protocol, &g, (family.host(), 8080));
            let (ns, to) = Way::Loopback.client(&w, family);
            let seen = match protocol {
                Tcp => {
                    exchange(ns.connect((to, 8080)), 1000);
                    server.seen()
                }
                Udp => datagrams(ns, (to, 8080), &server).0,
            };
            assert_eq!(seen.peer_ip(), gateway, "{family:?} {protocol:?}");
        }
    }
}

/// No tap at all: loopback to loopback works, nothing else exists.
fn splice_only() {
    let w = World::direct();
    let ns = Netns::new("guest");
    let options = [
        "--splice-only",
        "-t",
        "8080",
        "-u",
        "8080",
        "-T",
        "8081",
        "-U",
        "8081",
    ];
    let _pasta = w.attach_bare(&ns, &options);
    let links = ns.sh("ip -o link show");
    assert_eq!(
        links.lines().count(),
        1,
        "only the loopback interface:\n{links}"
    );
    assert!(links.contains("UP"), "{links}");
    for family in FAMILIES {
        let lo = family.loopback();
        for protocol in [Tcp, Udp] {
            let inside = Server::new(protocol, &ns, (lo, 8080));
            let outside = Server::new(protocol, &w.host, (lo, 8081));
            reachable_within(SOON, protocol, &w.host, (lo, 8080));
            reachable_within(SOON, protocol, &ns, (lo, 8081));
            inside.forget();
            outside.forget();
        }
    }
    let told = try_reach(Tcp, &w.peer, (HOST4, 8080));
    assert!(told.is_err(), "{told:?}");
    assert!(ns.try_connect((PEER4, 1000)).is_err());
}

fn splice_only_command() {
    let w = World::direct();
    http(&w.host, ("127.0.0.1", 8081));
    let output = w.pasta(&[
        "--splice-only",
        "-q",
        "-t",
        "none",
        "-u",
        "none",
        "-T",
        "8081",
        "-U",
        "none",
        "--",
        "sh",
        "-c",
        "curl -s -m 60 http://127.0.0.1:8081/3000 | wc -c; ip -o link | wc -l; exit 7",
    ]);
    assert_eq!(
        (output.code, output.out.as_str()),
        (7, "3000\n1\n"),
        "{}",
        output.both()
    );
    nothing_left();
}

fn half_close_of_the_client() {
    each_pair(|near, far| {
        transfer(clones(&near), clones(&far), volume(10 * MIB));
        transfer(far, near, volume(10 * MIB));
    });
}

fn half_close_of_the_server() {
    each_pair(|near, far| {
        transfer(clones(&far), clones(&near), volume(10 * MIB));
        transfer(near, far, volume(10 * MIB));
    });
}

fn reset_by_the_client() {
    each_pair(|near, far| {
        abort(near);
        sees_reset(far);
    });
}

/// With some of it still under way.
fn reset_by_the_client_after_data() {
    each_pair(|mut near, far| {
        send_pattern(&mut near, volume(MIB)).expect("send");
        abort(near);
        sees_reset(far);
    });
}

fn reset_by_the_server() {
    each_pair(|near, far| {
        abort(far);
        sees_reset(near);
    });
}

fn reset_by_the_server_after_data() {
    each_pair(|near, mut far| {
        send_pattern(&mut far, volume(MIB)).expect("send");
        abort(far);
        sees_reset(near);
    });
}

/// A server that hangs up on a client that is sending: the client is told, whatever it does.
fn server_closes_at_once() {
    each_pair(|mut near, far| {
        drop(far);
        let told = poll_until(SOON, || near.write_all(&[b'x'; 10_000]).is_err());
        assert!(told, "the client may write for ever");
    });
}

/// Everything written before close() arrives, however slowly it is read.
fn close_with_data_in_flight() {
    each_pair(|near, far| in_flight(near, far));
}

fn server_closes_with_data_in_flight() {
    each_pair(|near, far| in_flight(far, near));
}

#[track_caller]
fn in_flight(mut from: TcpStream, mut to: TcpStream) {
    let n = volume(5 * MIB);
    let sender = thread::spawn(move || send_pattern(&mut from, n));
    thread::sleep(Duration::from_millis(100)); // let it fill what there is to fill
    assert_eq!(check_pattern(&mut to), Ok(n));
    sender.join().expect("the sender").expect("send");
}

fn bulk_both_ways() {
    each_pair(|near, far| {
        let n = volume(30 * MIB);
        let one = (clones(&near), clones(&far));
        let up = thread::spawn(move || transfer(one.0, one.1, n));
        transfer(far, near, n);
        up.join().expect("up");
    });
}

/// Stopped and continued in the middle of its calls, it loses nothing.
fn interrupted_bulk() {
    each_pair(|near, far| {
        let n = volume(50 * MIB);
        let done = AtomicBool::new(false);
        thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
                        for pid in processes() {
                            kill(Pid::from_raw(pid), signal).ok();
                        }
                        thread::sleep(Duration::from_millis(3));
                    }
                }
            });
            let end = Ending(&done);
            transfer(clones(&near), clones(&far), n);
            transfer(far, near, n);
            drop(end);
        });
    });
}

/// After bulk, one byte is as welcome as before.
fn small_after_bulk() {
    each_pair(|mut near, mut far| {
        let n = usize::try_from(volume(20 * MIB)).expect("fits");
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; n];
            far.read_exact(&mut buffer).expect("bulk");
            far
        });
        near.write_all(&vec![b'b'; n]).expect("send");
        let mut far = reader.join().expect("the reader");
        mostly_within(Duration::from_millis(100), 20, || {
            near.write_all(b"x").expect("send");
            far.read_exact(&mut [0]).expect("one byte");
            far.write_all(b"y").expect("send");
            near.read_exact(&mut [0]).expect("one byte");
        });
    });
}

fn small_buffers() {
    each_pair(|near, far| {
        for stream in [&near, &far] {
            setsockopt(stream, sockopt::SndBuf, &16_384).expect("a socket option");
            setsockopt(stream, sockopt::RcvBuf, &65_536).expect("a socket option");
        }
        transfer(clones(&near), clones(&far), MIB);
        transfer(far, near, MIB);
    });
}

/// A request in two writes, a hundred times: nobody waits for a delayed acknowledgement (40 ms each).
fn no_delay() {
    each_pair(|mut near, mut far| {
        let server = thread::spawn(move || {
            let mut buffer = [0; 20];
            while far.read_exact(&mut buffer).is_ok() {
                far.write_all(&buffer).expect("answer");
            }
        });
        mostly_within(Duration::from_millis(30), 100, || {
            near.write_all(&[1; 10]).expect("send");
            near.set_nodelay(true).expect("a socket option");
            near.write_all(&[2; 10]).expect("send");
            near.read_exact(&mut [0; 20]).expect("the answer");
        });
        drop(near);
        server.join().expect("the server");
    });
}

/// At least half of `times` attempts take no longer than `limit`: the machine may be busy, but not each time.
#[track_caller]
fn mostly_within(limit: Duration, times: usize, mut attempt: impl FnMut()) {
    let mut took: Vec<Duration> = (0..times)
        .map(|_| {
            let begun = Instant::now();
            attempt();
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    assert!(took[times / 2] <= limit, "{took:?}");
}

/// Writes until nothing more fits; how much did.
#[track_caller]
fn fill(stream: &mut TcpStream) -> usize {
    stream.set_nonblocking(true).expect("a socket option");
    let (mut sent, mut last, block) = (0, Instant::now(), vec![b'z'; 1 << 16]);
    let full = poll_until(SOON, || {
        while let Ok(n) = stream.write(&block) {
            sent += n;
            last = Instant::now();
        }
        last.elapsed() > Duration::from_millis(200)
    });
    assert!(full, "{sent} bytes and still more fit");
    stream.set_nonblocking(false).expect("a socket option");
    sent
}

fn full_receiver_does_not_spin() {
    let (w, g) = crossed();
    for cross in BOTH {
        let (ns, addr) = cross.server(&w, &g, Family::V4);
        let listener = ns.listen(addr);
        let (ns, to) = cross.client(&w, &g, Family::V4);
        let mut near = ns.connect(to);
        let (mut far, _) = accept(&listener);
        let sent = fill(&mut near);
        let before = cpu_ticks();
        thread::sleep(Duration::from_secs(1));
        let spent = cpu_ticks() - before;
        assert!(spent <= 5, "{spent} ticks in a second with nothing to do");
        near.shutdown(Shutdown::Write).expect("shutdown");
        let mut total = 0;
        let mut buffer = vec![0; 1 << 16];
        while let n @ 1.. = far.read(&mut buffer).expect("it goes on") {
            total += n;
        }
        assert_eq!(total, sent);
    }
}

fn full_receiver_leaves_the_other_way() {
    each_pair(|mut near, far| {
        fill(&mut near);
        let mut near = bounded(near).expect("a timeout");
        let n = volume(10 * MIB);
        let mut answer = clones(&far);
        let sender = thread::spawn(move || {
            send_pattern(&mut answer, n)?;
            answer.shutdown(Shutdown::Write)
        });
        assert_eq!(check_pattern(&mut near), Ok(n));
        sender.join().expect("no panic").expect("send");
        drop(far);
    });
}

fn many_at_once() {
    let (w, g) = crossed();
    for cross in BOTH {
        let (ns, addr) = cross.server(&w, &g, Family::V6);
        echo(ns, addr);
        let (ns, to) = cross.client(&w, &g, Family::V6);
        let mut all: Vec<TcpStream> = (0..300).map(|_| ns.connect(to)).collect();
        for (i, stream) in all.iter_mut().enumerate() {
            stream.write_all(format!("{i:8}").as_bytes()).expect("send");
        }
        for (i, stream) in all.iter_mut().enumerate() {
            let mut buffer = [0; 8];
            stream
                .read_exact(&mut buffer)
                .unwrap_or_else(|e| panic!("{cross:?} {i}: {e}"));
            assert_eq!(buffer[..], *format!("{i:8}").as_bytes());
        }
    }
}

fn open_files() -> u64 {
    sum_over_processes(|pid| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        u64::try_from(files.count()).ok()
    })
}

/// Connections of all fates leave nothing behind.
fn descriptors_come_back() {
    let (w, g) = crossed();
    let round = || {
        for cross in BOTH {
            let (ns, addr) = cross.server(&w, &g, Family::V4);
            let listener = ns.listen(addr);
            let (ns, to) = cross.client(&w, &g, Family::V4);
            for fate in 0..12 {
                let mut near = ns.connect(to);
                let (far, _) = accept(&listener);
                match fate % 4 {
                    0 => drop(near),
                    1 => drop(far),
                    2 => abort(near),
                    _ => {
                        near.write_all(&[0; 100_000]).ok();
                        abort(far);
                    }
                }
            }
            drop(listener);
            assert!(try_reach(Tcp, ns, to).is_err());
        }
    };
    round();
    let mut before = 0;
    assert!(
        settles(&mut before),
        "the number of descriptors does not settle"
    );
    (0..12).for_each(|_| round());
    let mut after = 0;
    let back = poll_until(SOON, || {
        after = open_files();
        after <= before + 64 // pools, in batches
    });
    assert!(back, "{before} descriptors before, {after} after");
}

fn settles(count: &mut u64) -> bool {
    let mut since = Instant::now();
    poll_until(SOON, || {
        let now = open_files();
        if now != *count {
            (*count, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(300)
    })
}

/// What does not fit is refused or waits; what was there goes on, and when something ends there is room again.
fn more_than_descriptors_allow() {
    let w = World::direct();
    let ns = Netns::new("guest");
    w.host.sh(&format!(
        "ulimit -n 256; exec {PASTA} --config-net -q -t 8080 -u none -T none -U none --netns {}",
        ns.path()
    ));
    echo(&ns, ("::", 8080));
    let mut first = w.host.connect(("127.0.0.1", 8080));
    let talk = |stream: &mut TcpStream| {
        stream
            .write_all(b"x")
            .and_then(|()| stream.read_exact(&mut [0]))
    };
    talk(&mut first).expect("the first one");
    let brief = Duration::from_millis(100);
    let connect = || w.host.connect_within(("127.0.0.1", 8080), brief).ok();
    let mut all: Vec<TcpStream> = (0..300).map_while(|_| connect()).collect();
    all.iter_mut().for_each(|s| {
        s.set_read_timeout(Some(Duration::from_millis(20)))
            .expect("a timeout");
    });
    let served = all.iter_mut().filter_map(|s| talk(s).ok()).count();
    assert!((40..250).contains(&served), "{served} of 300 are served");
    talk(&mut first).expect("the first one goes on");
    drop(all);
    let again = poll_until(SOON, || connect().is_some_and(|mut s| talk(&mut s).is_ok()));
    assert!(again, "no room after all have gone");
}

/// Many clients on one port, their answers never mixed up.
fn udp_clients_apart() {
    let (w, g) = crossed();
    for cross in BOTH {
        let (ns, addr) = cross.server(&w, &g, Family::V4);
        let _server = Server::udp(ns, addr);
        let (ns, to) = cross.client(&w, &g, Family::V4);
        let all: Vec<_> = (0..200).map(|_| udp_to(ns, to)).collect();
        for round in 0..3 {
            for (i, socket) in all.iter().enumerate() {
                socket
                    .send(format!("{round} {i}").as_bytes())
                    .expect("send");
            }
            for (i, socket) in all.iter().enumerate() {
                let mut buffer = [0; 100];
                let n = socket
                    .recv(&mut buffer)
                    .unwrap_or_else(|e| panic!("{cross:?} client {i}, round {round}: {e}"));
                assert_eq!(&buffer[..n], format!("{round} {i}").as_bytes());
            }
        }
    }
}

fn udp_largest() {
    let (w, g) = crossed();
    for cross in BOTH {
        for (family, most) in [(Family::V4, 65_507), (Family::V6, 65_487)] {
            let (ns, addr) = cross.server(&w, &g, family);
            let server = Server::udp(ns, addr);
            let (ns, to) = cross.client(&w, &g, family);
            let client = udp_to(ns, to);
            client.send(&vec![7; most]).expect("send");
            assert_eq!(server.seen().bytes, Ok(most as u64));
            assert_eq!(client.recv(&mut vec![0; 65_536]).ok(), Some(most));
        }
    }
}

/// Nobody listens: nothing breaks, and the server that comes later is found by the same client.
fn udp_nobody_listens() {
    let (w, g) = crossed();
    for cross in BOTH {
        let (ns, to) = cross.client(&w, &g, Family::V4);
        let client = udp_to(ns, to);
        for _ in 0..20 {
            client.send(b"anybody?").ok();
        }
        let (ns, addr) = cross.server(&w, &g, Family::V4);
        let _server = Server::udp(ns, addr);
        client
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a timeout");
        let answered = poll_until(SOON, || {
            client.send(b"now").ok();
            client.recv(&mut [0; 10]).is_ok()
        });
        assert!(answered, "{cross:?}");
    }
}
