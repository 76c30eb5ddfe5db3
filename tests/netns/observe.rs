//! What a user can see of it: capture file, log file, statistics, verbosity, the summary.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::differences::established;
use crate::exec::{SOON, poll_until, status_number, sum_over_processes};
use crate::harness::tests;
use crate::servers::echo;
use crate::world::{NO_FORWARDS, Netns, PEER4, World};

tests![
    capture,
    capture_of_a_command,
    log_file,
    log_size,
    system_log,
    statistics,
    idle_is_idle,
    summary,
    summary_of_ports,
    quiet,
    debug,
    trace
];

/// A capture file, parsed: the frames in it.
fn frames(path: &str) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).expect("a capture file");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    assert!(
        matches!(word(0), 0xa1b2_c3d4 | 0xa1b2_3c4d),
        "magic number {:#x}",
        word(0)
    );
    assert_eq!((bytes[4], bytes[6]), (2, 4), "version");
    assert_eq!(word(20), 1, "link type Ethernet");
    let (mut at, mut all, mut last) = (24, vec![], 0);
    while at < bytes.len() {
        let (seconds, kept, len) = (
            word(at),
            usize::try_from(word(at + 8)).expect("fits"),
            usize::try_from(word(at + 12)).expect("fits"),
        );
        assert!(
            seconds >= last && kept <= len && len <= 65_600,
            "record at {at}: {seconds} s, {kept} of {len} bytes"
        );
        all.push(bytes[at + 16..at + 16 + kept].to_vec());
        (at, last) = (at + 16 + kept, seconds);
    }
    assert_eq!(at, bytes.len(), "the last record is whole");
    all
}

fn echo_requests(all: &[Vec<u8>], kind: u8) -> usize {
    all.iter()
        .filter(|f| f[12..14] == [8, 0] && f[23] == 1 && f[34] == kind)
        .count()
}

/// Both directions, everything, whole; not overwritten while it grows.
fn capture() {
    let w = World::direct();
    echo(&w.peer, (PEER4, 1000));
    let g = w.guest(&["-p", "/run/t/cap", "-m", "1500"]);
    g.sh(&format!("ping -n -c 5 -i 0.01 -w 30 {PEER4}"));
    let mut stream = g.connect((PEER4, 1000));
    let data = vec![b'x'; 10_000];
    std::io::Write::write_all(&mut stream, &data).expect("send");
    std::io::Read::read_exact(&mut stream, &mut vec![0; 10_000]).expect("the echo");
    drop(stream);
    let payload = |all: &[Vec<u8>]| -> usize {
        let tcp = all.iter().filter(|f| f[12..14] == [8, 0] && f[23] == 6);
        tcp.map(|f| f.iter().filter(|b| **b == b'x').count()).sum()
    };
    let mut all = vec![];
    let complete = poll_until(SOON, || {
        all = frames("/run/t/cap");
        (echo_requests(&all, 8), echo_requests(&all, 0)) == (5, 5) && payload(&all) >= 20_000
    });
    assert!(complete, "{} frames, {} bytes", all.len(), payload(&all));
    assert!(all.iter().any(|f| f[12..14] == [8, 6]), "and ARP");
}

fn capture_of_a_command() {
    let w = World::direct();
    w.inside(
        &["-p", "/run/t/cap"],
        &format!("ping -n -c 2 -i 0.01 -w 30 {PEER4}"),
    )
    .ok();
    assert_eq!(echo_requests(&frames("/run/t/cap"), 0), 2);
}

fn log_file() {
    let w = World::direct();
    let g = w.guest(&[]);
    let text = fs::read_to_string("/run/t/pasta0.log").expect("a log file");
    let header = text.lines().next().expect("a line");
    assert!(
        header.starts_with("pasta ") && header.contains("pas") && header.ends_with(')'),
        "{header}"
    );
    assert!(
        text.contains("host0") && text.contains("198.51.100.1"),
        "the summary is logged:\n{text}"
    );
    g.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

/// The oldest lines go, the size stays bounded.
fn log_size() {
    let w = World::direct();
    let ns = Netns::new("guest");
    let mut all = vec![
        "--config-net",
        "--trace",
        "-l",
        "small",
        "--log-size",
        "65536",
    ];
    all.extend(NO_FORWARDS);
    all.extend(["-f", "--netns", "/run/netns/guest"]);
    let _pasta = w.start_pasta(&all);
    let ping = || {
        ns.try_sh(&format!("ping -n -c 40 -i 0.002 -W 2 {PEER4}"))
            .code
            == 0
    };
    let mut largest = 0;
    let wrapped = poll_until(SOON, || {
        ping();
        let text = fs::read_to_string("/run/t/small").unwrap_or_default();
        largest = largest.max(text.len());
        text.contains("log truncated")
    });
    assert!(wrapped, "never truncated, {largest} bytes");
    for _ in 0..10 {
        ping();
        largest = largest.max(fs::read("/run/t/small").map_or(0, |t| t.len()));
    }
    assert!(largest <= 66_000, "{largest} bytes");
}

/// In the background, without a log file, messages go where the system's logs go.
fn system_log() {
    let w = World::direct();
    w.host.sh(
        "mkdir dev; mount -t tmpfs dev dev; mkdir dev/net
         for f in null zero random urandom net/tun; do touch dev/$f; mount --bind /dev/$f dev/$f; done
         mount --rbind dev /dev",
    );
    let socket = std::os::unix::net::UnixDatagram::bind("/dev/log").expect("a log socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok(n) = socket.recv(&mut buffer) {
            let line = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if line.starts_with('<') && line.contains("pas") && line.contains("host0") {
                return true;
            }
        }
        false
    });
    let _ns = Netns::new("guest");
    let mut all = vec!["--config-net", "--netns", "guest"];
    all.extend(NO_FORWARDS);
    w.pasta(&all).ok();
    let said = reader.join().expect("the log's reader");
    assert!(said, "the summary is not in the system log");
}

fn background_noise(w: &World, options: &[&str], script: &str) -> String {
    let ns = Netns::new("guest");
    let path = ns.path();
    let mut all = vec!["-f", "--config-net", "-P", "fg.pid"];
    all.extend(options);
    all.extend(NO_FORWARDS);
    all.extend(["--netns", &path]);
    let pasta = w.start_pasta(&all);
    assert!(
        poll_until(SOON, || ns
            .try_sh(&format!("ping -n -c 1 -W 1 {PEER4}"))
            .code
            == 0),
        "never connected"
    );
    ns.sh(script);
    kill(Pid::from_raw(pasta.id()), Signal::SIGTERM).expect("it runs");
    pasta.finish(SOON).err
}

fn statistics() {
    let w = World::direct();
    let text = background_noise(
        &w,
        &["--stats", "1"],
        &format!("ping -n -c 15 -i 0.1 -w 30 {PEER4}"),
    );
    assert!(
        text.lines()
            .filter(|l| l.chars().any(|c| c.is_ascii_digit()))
            .count()
            >= 1,
        "no statistics:\n{text}"
    );
    assert!(
        text.lines()
            .any(|l| l.contains("guest") && l.contains("frames"))
            || established(),
        "{text}"
    );
}

/// With nothing to do, nothing is done: no timers, no polling.
fn idle_is_idle() {
    let w = World::direct();
    let ns = Netns::new("guest");
    ns.set("ipv6/conf/default/disable_ipv6", "1"); // or its kernel solicits routers for a while
    ns.set("ipv6/conf/all/disable_ipv6", "1");
    let _pasta = w.attach(&ns, &["--config-net", "-4"]);
    ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
    let wakeups = || sum_over_processes(|p| status_number(p, "voluntary_ctxt_switches:"));
    let mut last = (wakeups(), std::time::Instant::now());
    // Two seconds without a wake-up have to come; ARP and the like of the guest's kernel may come before.
    let quiet = poll_until(SOON, || {
        if wakeups() != last.0 {
            last = (wakeups(), std::time::Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(2)
    });
    assert!(quiet, "{} wake-ups", wakeups());
}

/// With published ports the summary says which, under headings.
fn summary_of_ports() {
    let w = World::direct();
    let _ns = Netns::new("guest");
    let output = w.pasta(&[
        "--config-net",
        "-t",
        "8080",
        "-u",
        "none",
        "-T",
        "none",
        "-U",
        "9000",
        "--netns",
        "guest",
    ]);
    assert_eq!((output.code, output.out.as_str()), (0, ""));
    for heading in [
        "Inbound forwarding rules (HOST):",
        "Outbound forwarding rules (SPLICE):",
    ] {
        let mut after = output.err.lines().skip_while(|l| *l != heading);
        assert_eq!(after.next(), Some(heading), "{}", output.err);
        let rule = after.next().unwrap_or_default();
        let port = if heading.starts_with('I') {
            ":8080"
        } else {
            ":9000"
        };
        assert!(rule.contains(port), "{heading} {rule:?}");
    }
}

/// The start-up summary, as scripts and people know it.
fn summary() {
    let w = World::direct();
    let _ns = Netns::new("guest");
    let mut all = vec![
        "--config-net",
        "-M",
        "02:aa:bb:cc:dd:01",
        "--dhcp-dns",
        "--dhcp-search",
    ];
    all.extend(NO_FORWARDS);
    all.extend(["--netns", "guest"]);
    let output = w.pasta(&all);
    assert_eq!((output.code, output.out.as_str()), (0, ""));
    for line in [
        "Template interface: host0 (IPv4), host0 (IPv6)",
        "Namespace interface: host0",
        "MAC:",
        "    host: 02:aa:bb:cc:dd:01",
        "    NAT to host 127.0.0.1: 198.51.100.2",
        "DHCP:",
        "    assign: 198.51.100.1",
        "    mask: 255.255.255.0",
        "    router: 198.51.100.2",
        "DNS:",
        "    203.0.113.53",
        "DNS search list:",
        "    example.org",
        "    NAT to host ::1: 2001:db8:51::2",
        "NDP/DHCPv6:",
        "    assign: 2001:db8:51::1",
        "    router: 2001:db8:51::2",
        "    our link-local: ",
        "    2001:db8:99::53",
    ] {
        let found = if line.ends_with(": ") {
            output.err.contains(line)
        } else {
            output.err.lines().any(|l| l == line)
        };
        assert!(found, "`{line}` is not in:\n{}", output.err);
    }
}

fn quiet() {
    let w = World::direct();
    let output = w.pasta(&["--config-net", "--quiet", "--", "true"]);
    assert_eq!(output.both(), "");
    let output = w.pasta(&["--config-net", "--", "echo", "hello"]);
    assert_eq!(
        output.both(),
        "hello\n",
        "a command's terminal is its own, even without --quiet"
    );
    let ns = Netns::new("guest");
    let mut all = vec!["--config-net", "--quiet", "--netns", "/run/netns/guest"];
    all.extend(NO_FORWARDS);
    let output = w.pasta(&all);
    assert_eq!(output.both(), "");
    ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

fn debug() {
    let w = World::direct();
    let plain = background_noise(&w, &[], "true").lines().count();
    Netns::retire("guest");
    let text = background_noise(&w, &["-d"], &format!("ping -n -c 3 -i 0.1 -w 30 {PEER4}"));
    assert!(
        text.lines().count() > plain,
        "no more than without -d:\n{text}"
    );
}

fn trace() {
    let w = World::direct();
    let debug = background_noise(&w, &["-d"], &format!("ping -n -c 20 -i 0.01 -w 30 {PEER4}"))
        .lines()
        .count();
    Netns::retire("guest");
    let trace = background_noise(
        &w,
        &["--trace"],
        &format!("ping -n -c 20 -i 0.01 -w 30 {PEER4}"),
    )
    .lines()
    .count();
    assert!(
        trace > debug + 20,
        "one line per packet at least: {trace} lines, {debug} with -d"
    );
}
