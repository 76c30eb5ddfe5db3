//! TCP through the tap: set-up, data, both ways of ending, and what the other side's troubles look like inside.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::differences::established;
use crate::exec::{SOON, poll_until, sum_over_processes};
use crate::harness::{need, tests};
use crate::servers::{check_pattern, echo, http, pattern_file, send_pattern};
use crate::world::{Netns, PEER4, PEER6, World, accept};

tests![
    download_and_upload,
    iperf,
    half_close_by_the_guest,
    half_close_by_the_peer,
    close_with_data_in_flight,
    reset_by_the_guest,
    reset_by_the_peer,
    refused,
    unreachable,
    connect_timeout_is_reported,
    port_zero,
    keepalive_is_answered,
    zero_window_of_the_peer,
    zero_window_of_the_guest,
    many_at_once,
    many_in_a_row,
    no_descriptor_is_leaked,
    end_in_the_middle,
    out_of_descriptors,
    parallel_downloads,
    both_directions_at_once,
    mtu_1280,
    mtu_1500,
    mtu_65520,
    small_buffers,
    large_buffers,
    urgent_data_does_no_harm,
];

const MIB: u64 = 1 << 20;
const PEERS: [&str; 2] = [PEER4, PEER6];

/// A connection from the guest, and the peer's end of it.
#[track_caller]
fn pair(w: &World, guest: &Netns, addr: &str, port: u16) -> (TcpStream, TcpStream) {
    let listener = w.peer.listen((addr, port));
    let near = guest.connect((addr, port));
    (near, accept(&listener).0)
}

/// Sends `n` bytes one way and checks them at the other end, which then sees the end of the stream.
#[track_caller]
fn transfer(mut from: TcpStream, mut to: TcpStream, n: u64) {
    let sender = thread::spawn(move || {
        send_pattern(&mut from, n).expect("send");
        from.shutdown(Shutdown::Write).expect("shutdown");
        from
    });
    assert_eq!(check_pattern(&mut to), Ok(n));
    sender.join().expect("the sender");
}

fn clones(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("dup")
}

/// 100 MB each way with curl, over both families.
fn download_and_upload() {
    need("curl");
    let w = World::direct();
    PEERS.iter().for_each(|p| http(&w.peer, (p, 80)));
    let g = w.guest(&[]);
    pattern_file("/run/t/data", 100_000_000);
    for server in [PEER4.to_owned(), format!("[{PEER6}]")] {
        g.sh(&format!(
            "curl -sS -m 50 http://{server}/100000000 | cmp - data"
        ));
        assert_eq!(
            g.sh(&format!("curl -sS -m 50 -T data http://{server}/")),
            "stored 100000000\n"
        );
    }
}

fn iperf() {
    need("iperf3");
    let w = World::direct();
    let g = w.guest(&[]);
    for (peer, extra) in [
        (PEER4, ""),
        (PEER6, ""),
        (PEER4, "-R"),
        (PEER6, "-R -P 4"),
        (PEER4, "-P 4"),
    ] {
        let server = w.peer.start("exec iperf3 -s -1 --forceflush");
        assert!(
            poll_until(SOON, || w
                .peer
                .try_sh("ss -Hltn sport = 5201")
                .out
                .contains(":5201")),
            "iperf3 does not listen"
        );
        let report = g.sh(&format!("iperf3 -c {peer} -t 1 -f k {extra}"));
        let rate = report
            .lines()
            .filter(|l| l.contains("receiver"))
            .filter_map(|l| {
                l.split("Kbits")
                    .next()?
                    .split_whitespace()
                    .last()?
                    .parse::<f64>()
                    .ok()
            });
        let rate = rate.fold(0.0, f64::max);
        assert!(rate > 1000.0, "{rate} kbit/s to {peer} {extra}:\n{report}");
        server.finish(SOON);
    }
}

fn half_close_by_the_guest() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in PEERS {
        let (near, far) = pair(&w, &g, addr, 1000);
        transfer(clones(&near), clones(&far), 3 * MIB);
        transfer(far, near, 3 * MIB);
    }
}

fn half_close_by_the_peer() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in PEERS {
        let (near, far) = pair(&w, &g, addr, 1000);
        transfer(clones(&far), clones(&near), 3 * MIB);
        transfer(near, far, 3 * MIB);
    }
}

/// Everything written before close() arrives, whichever side closes.
fn close_with_data_in_flight() {
    let w = World::direct();
    let g = w.guest(&[]);
    for _ in 0..20 {
        for swap in [false, true] {
            let (near, far) = pair(&w, &g, PEER4, 1000);
            let (mut from, mut to) = if swap { (far, near) } else { (near, far) };
            thread::spawn(move || send_pattern(&mut from, 100_000).expect("send"));
            assert_eq!(check_pattern(&mut to), Ok(100_000));
        }
    }
}

#[track_caller]
fn reset(from: TcpStream, mut to: TcpStream) {
    setsockopt(
        &from,
        sockopt::Linger,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .expect("SO_LINGER");
    drop(from);
    let error = to.read(&mut [0; 10]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn reset_by_the_guest() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in PEERS {
        let (near, far) = pair(&w, &g, addr, 1000);
        reset(near, far);
    }
}

fn reset_by_the_peer() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in PEERS {
        let (near, far) = pair(&w, &g, addr, 1000);
        reset(far, near);
    }
}

fn refused() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in PEERS {
        let error = g.try_connect((addr, 999)).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{addr}");
    }
}

fn unreachable() {
    let w = World::direct();
    w.peer.set("ipv4/ip_forward", "1");
    w.peer.set("ipv6/conf/all/forwarding", "1");
    w.peer
        .sh("ip route add unreachable 203.0.113.77; ip -6 route add unreachable 2001:db8:99::77");
    let g = w.guest(&[]);
    for addr in ["203.0.113.77", "2001:db8:99::77"] {
        let begun = Instant::now();
        let error = g.try_connect((addr, 80)).expect_err("no route");
        let said = matches!(
            error.kind(),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
        );
        assert!(
            said || (established() && error.kind() == ErrorKind::ConnectionRefused),
            "{addr}: {error}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "reported only after {:?}",
            begun.elapsed()
        );
    }
    // Here the answer is back before connect(2) is.
    let retransmitted = w.host.sh("nstat -asz TcpRetransSegs");
    assert!(retransmitted.contains(" 0 "), "{retransmitted}");
}

/// Nobody answers: the guest hears nothing, or that the host's kernel gave up, but nothing that is not so.
fn connect_timeout_is_reported() {
    let w = World::direct();
    w.peer.sh("ip route add blackhole 203.0.113.66");
    w.host.set("ipv4/tcp_syn_retries", "1");
    w.host.set("ipv4/tcp_syn_linear_timeouts", "0");
    let g = w.guest(&[]);
    g.set("ipv4/tcp_syn_retries", "1");
    g.set("ipv4/tcp_syn_linear_timeouts", "0");
    let begun = Instant::now();
    let error = g
        .try_connect(("203.0.113.66", 80))
        .expect_err("a black hole");
    assert!(
        error.kind() == ErrorKind::TimedOut || established(),
        "{error}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "reported only after {:?}",
        begun.elapsed()
    );
}

fn port_zero() {
    let w = World::direct();
    let g = w.guest(&[]);
    g.try_connect((PEER4, 0)).expect_err("there is no port 0");
    g.try_connect((PEER6, 0)).expect_err("there is no port 0");
    echo(&w.peer, (PEER4, 1000));
    g.connect((PEER4, 1000));
}

/// Probes of the guest's kernel are answered: the connection outlives more of them than it would unanswered.
fn keepalive_is_answered() {
    let w = World::direct();
    echo(&w.peer, (PEER4, 1000));
    let g = w.guest(&[]);
    let mut near = g.connect((PEER4, 1000));
    setsockopt(&near, sockopt::KeepAlive, &true).expect("SO_KEEPALIVE");
    setsockopt(&near, sockopt::TcpKeepIdle, &1).expect("TCP_KEEPIDLE");
    setsockopt(&near, sockopt::TcpKeepInterval, &1).expect("TCP_KEEPINTVL");
    setsockopt(&near, sockopt::TcpKeepCount, &1).expect("TCP_KEEPCNT");
    let probes = || {
        g.sh("cat /proc/net/netstat")
            .split("TcpExt:")
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let sent = || {
        let lines = probes();
        let at = lines[0]
            .split_whitespace()
            .position(|w| w == "TCPKeepAlive")
            .expect("the counter");
        lines[1]
            .split_whitespace()
            .nth(at)
            .and_then(|v| v.parse::<u32>().ok())
            .expect("a number")
    };
    assert!(poll_until(SOON, || sent() >= 3), "only {} probes", sent());
    near.write_all(b"still there?")
        .expect("the connection lives");
    near.read_exact(&mut [0; 12]).expect("an answer");
}

/// Writes until nothing more is taken for a while; returns how much was.
fn fill(stream: &mut TcpStream) -> u64 {
    let (mut counted, mut total) = (Counting(0), 0);
    stream.set_nonblocking(true).expect("a socket option");
    // The pattern must go on where it stopped, so it is written through a counter in one go.
    struct Counting(u64);
    impl Counting {
        fn more(&mut self, stream: &mut TcpStream, pattern: &[u8]) {
            let at = usize::try_from(self.0).expect("fits");
            while let Ok(n @ 1..) =
                stream.write(&pattern[usize::try_from(self.0).expect("fits").max(at)..])
            {
                self.0 += n as u64;
            }
        }
    }
    let mut pattern = Vec::new();
    send_pattern(&mut pattern, 64 * MIB).expect("memory");
    let mut last = Instant::now();
    poll_until(Duration::from_secs(20), || {
        counted.more(stream, &pattern);
        if counted.0 != total {
            (total, last) = (counted.0, Instant::now());
        }
        last.elapsed() > Duration::from_millis(400)
    });
    stream.set_nonblocking(false).expect("a socket option");
    assert!(total < 64 * MIB, "somebody buffers without bound");
    total
}

/// One side does not read until the other can write no more; then everything arrives, and more after it.
#[track_caller]
fn stall_and_resume(mut from: TcpStream, mut to: TcpStream, mut back: TcpStream) {
    let total = fill(&mut from);
    assert!(total > 0, "nothing was taken");
    from.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(check_pattern(&mut to), Ok(total));
    back.write_all(b"ok").expect("the other direction works");
    from.read_exact(&mut [0; 2])
        .expect("the other direction works");
}

fn zero_window_of_the_peer() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in PEERS {
        let (near, far) = pair(&w, &g, addr, 1000);
        stall_and_resume(near, clones(&far), far);
    }
}

fn zero_window_of_the_guest() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in PEERS {
        let (near, far) = pair(&w, &g, addr, 1000);
        stall_and_resume(far, clones(&near), near);
    }
}

/// 300 connections open together, all of them used at once.
fn many_at_once() {
    let w = World::direct();
    PEERS.iter().for_each(|p| echo(&w.peer, (p, 1000)));
    let g = w.guest(&[]);
    let mut all: Vec<TcpStream> = (0..300).map(|i| g.connect((PEERS[i % 2], 1000))).collect();
    thread::scope(|s| {
        for part in all.chunks_mut(75) {
            s.spawn(move || {
                for (i, stream) in part.iter_mut().enumerate() {
                    stream
                        .write_all(&vec![u8::try_from(i).expect("small"); 20_000])
                        .expect("send");
                }
                for (i, stream) in part.iter_mut().enumerate() {
                    let mut answer = vec![0; 20_000];
                    stream
                        .read_exact(&mut answer)
                        .unwrap_or_else(|e| panic!("connection {i}: {e}"));
                    assert!(
                        answer.iter().all(|b| usize::from(*b) == i),
                        "connection {i} got another's data"
                    );
                }
            });
        }
    });
}

/// Connect, ask, answer, close: 1000 times, so that ports and sequence numbers are reused.
fn many_in_a_row() {
    let w = World::direct();
    echo(&w.peer, (PEER4, 1000));
    let g = w.guest(&[]);
    g.set("ipv4/ip_local_port_range", "40000 40799");
    for i in 0..1000 {
        let mut stream = g
            .try_connect((PEER4, 1000))
            .unwrap_or_else(|e| panic!("connection {i}: {e}"));
        stream.write_all(b"ping").expect("send");
        stream
            .read_exact(&mut [0; 4])
            .unwrap_or_else(|e| panic!("answer {i}: {e}"));
        // Half of them leave no TIME-WAIT behind, so that the port comes back at once.
        if i % 2 == 0 {
            setsockopt(
                &stream,
                sockopt::Linger,
                &libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                },
            )
            .expect("SO_LINGER");
        }
    }
}

/// After connections of every fate, as many descriptors are open as before.
fn no_descriptor_is_leaked() {
    let w = World::direct();
    echo(&w.peer, (PEER4, 1000));
    let g = w.guest(&[]);
    let open = || {
        sum_over_processes(|p| {
            fs::read_dir(format!("/proc/{p}/fd"))
                .ok()
                .map(|d| d.count() as u64)
        })
    };
    drop(g.connect((PEER4, 1000)));
    let before = open();
    assert!(before > 0, "the descriptors cannot be seen");
    let mut all: Vec<TcpStream> = (0..150).map(|_| g.connect((PEER4, 1000))).collect();
    let during = open();
    assert!(
        during >= before + 149,
        "{before} before, {during} with 150 connections"
    );
    for (i, stream) in all.drain(..).enumerate() {
        if i % 3 == 0 {
            setsockopt(
                &stream,
                sockopt::Linger,
                &libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                },
            )
            .expect("SO_LINGER");
        }
    }
    for _ in 0..50 {
        g.try_connect((PEER4, 999)).expect_err("nobody listens");
    }
    let slack = if established() { 100 } else { 2 };
    assert!(
        poll_until(SOON, || open() <= before + slack),
        "{before} before, {} after",
        open()
    );
}

/// At the limit new connections are refused, the others go on; when some end, new ones work again.
fn out_of_descriptors() {
    let w = World::direct();
    echo(&w.peer, (PEER4, 1000));
    let g = w.guest_with_files(256);
    let ping = |mut stream: &TcpStream| {
        stream.write_all(b"ping").expect("send");
        stream.read_exact(&mut [0; 4]).expect("an answer");
    };
    let second = Duration::from_secs(1);
    let mut all = vec![];
    let mut refused = 0;
    while refused < 10 && all.len() < 400 {
        match g.connect_within((PEER4, 1000), second) {
            Ok(stream) => all.push(stream),
            Err(_) => refused += 1,
        }
    }
    assert!(
        refused > 0,
        "{} connections with 256 descriptors",
        all.len()
    );
    assert!(
        all.len() >= 128,
        "only {} connections with 256 descriptors",
        all.len()
    );
    all.iter().for_each(ping);
    // The established program ends instead of saying so.
    let said = || {
        fs::read_to_string("/run/t/limited.log").is_ok_and(|log| log.contains("Out of descriptors"))
    };
    assert!(
        established() || poll_until(SOON, said),
        "nothing was logged"
    );
    all.truncate(50);
    let again = || g.connect_within((PEER4, 1000), second).is_ok();
    assert!(
        poll_until(SOON, again),
        "no connection after others have ended"
    );
    all.iter().for_each(ping);
}

/// What a browser or a package manager does.
fn parallel_downloads() {
    need("curl");
    let w = World::direct();
    PEERS.iter().for_each(|p| http(&w.peer, (p, 80)));
    let g = w.guest(&["-m", "1500"]);
    pattern_file("/run/t/data", 3_000_000);
    let urls: String = (0..40)
        .map(|i| {
            format!(
                "-o got{i} http://{}/3000000 ",
                if i % 2 == 0 {
                    PEER4.to_owned()
                } else {
                    format!("[{PEER6}]")
                }
            )
        })
        .collect();
    g.sh(&format!(
        "curl -g -sS -m 40 --parallel --parallel-immediate --parallel-max 40 {urls}"
    ));
    g.sh("for i in $(seq 0 39); do cmp data got$i || exit 1; done");
}

/// Either side resets while data flows in both directions; the other side sees it, and nothing else suffers.
fn end_in_the_middle() {
    let w = World::direct();
    let g = w.guest(&[]);
    for swap in [false, true] {
        for _ in 0..10 {
            let (near, far) = pair(&w, &g, PEER4, 1000);
            let (mut ends, victim) = if swap { (far, near) } else { (near, far) };
            let (mut writer, mut reader) = (clones(&victim), victim);
            let writing =
                thread::spawn(move || send_pattern(&mut writer, 1 << 40).expect_err("the end"));
            ends.read_exact(&mut vec![0; 1 << 20]).expect("data flows");
            ends.write_all(&[1; 100_000]).expect("data flows");
            setsockopt(
                &ends,
                sockopt::Linger,
                &libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                },
            )
            .expect("SO_LINGER");
            drop(ends);
            let error = writing.join().expect("the writer");
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                ),
                "{error}"
            );
            let rest = check_pattern(&mut reader);
            assert!(
                rest.is_ok()
                    || rest
                        .as_ref()
                        .is_err_and(|e| e.contains("reset") || e.contains("wrong data")),
                "{rest:?}"
            );
        }
    }
    let (near, far) = pair(&w, &g, PEER4, 1000);
    transfer(near, far, MIB);
}

fn both_directions_at_once() {
    let w = World::direct();
    let g = w.guest(&[]);
    for addr in PEERS {
        let (near, far) = pair(&w, &g, addr, 1000);
        let (near2, far2) = (clones(&near), clones(&far));
        thread::scope(|s| {
            s.spawn(|| transfer(near, far2, 40 * MIB));
            s.spawn(|| transfer(far, near2, 40 * MIB));
        });
    }
}

/// 20 MB each way under one MTU (of the guest and of the host's network), over both families.
fn at_mtu(mtu: u32) {
    let w = World::with_mtu(mtu);
    let g = w.guest(&["-m", &mtu.to_string()]);
    assert!(
        g.sh("cat /sys/class/net/*/mtu 2>/dev/null; ip link show host0")
            .contains(&format!("mtu {mtu}"))
    );
    for addr in PEERS {
        let (near, far) = pair(&w, &g, addr, 1000);
        transfer(clones(&near), clones(&far), 20 * MIB);
        transfer(far, near, 20 * MIB);
    }
}

fn mtu_1280() {
    at_mtu(1280);
}

fn mtu_1500() {
    at_mtu(1500);
}

fn mtu_65520() {
    at_mtu(65520);
}

/// Both ends ask for buffers of this size before they connect.
fn with_buffers(size: usize, amount: u64) {
    let w = World::direct();
    let g = w.guest(&[]);
    for (i, mtu_small) in [(0_u16, false), (1, true)] {
        if mtu_small {
            g.sh("ip link set host0 mtu 1500");
        }
        let listener = w.peer.listen((PEER4, 1000 + i));
        buffers(&listener, size);
        let near = g.connect((PEER4, 1000 + i));
        buffers(&near, size);
        let (far, _) = accept(&listener);
        transfer(clones(&near), clones(&far), amount);
        transfer(far, near, amount);
    }
}

fn buffers(socket: &impl std::os::fd::AsFd, size: usize) {
    setsockopt(socket, sockopt::SndBuf, &size).expect("SO_SNDBUF");
    setsockopt(socket, sockopt::RcvBuf, &size).expect("SO_RCVBUF");
}

fn small_buffers() {
    with_buffers(4096, MIB);
}

fn large_buffers() {
    with_buffers(4 << 20, 40 * MIB);
}

fn urgent_data_does_no_harm() {
    let w = World::direct();
    let g = w.guest(&[]);
    let (near, mut far) = pair(&w, &g, PEER4, 1000);
    let send = |data: &[u8], flags| {
        nix::sys::socket::send(std::os::fd::AsRawFd::as_raw_fd(&near), data, flags).expect("send");
    };
    send(b"before", nix::sys::socket::MsgFlags::empty());
    send(b"!", nix::sys::socket::MsgFlags::MSG_OOB);
    send(b"after", nix::sys::socket::MsgFlags::empty());
    near.shutdown(Shutdown::Write).expect("shutdown");
    let mut all = Vec::new();
    far.read_to_end(&mut all).expect("everything");
    let all = String::from_utf8_lossy(&all).replace('!', "");
    assert_eq!(all, "beforeafter");
    drop::<TcpListener>(w.peer.listen((PEER4, 1001)));
}
