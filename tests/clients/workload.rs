//! What people do in containers, all day: fetch, resolve, ping, serve, and keep a connection for later.
//!
//! Everything here runs in a container with podman's default network, whose way out is the program under test
//! alone. Every byte is checked; where the kernel may drop (UDP), what is lost is counted and bounded.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::exec::poll_until;
use crate::harness::{note, skip, tests};
use crate::machine::{HOME, Machine, PATIENCE, RUNTIME_DIR, USER};
use crate::servers::{PAGE, check_pattern};
use crate::service::{WEB4, WEB6};
use crate::world::{DNS4, DNS6, HOST4, HOST6, Netns, PEER4, PEER6, accept};

tests![; root: fetch, resolve, ping, datagrams, download, crowd_of_clients, tunnel, idle];

/// A gigabyte, and the SHA-256 of as much of the pattern.
const GIGABYTE: u64 = 1 << 30;
const GIGABYTE_SUM: &str = "d0f0db010870ff62cb985bdc6e7912da6848bb99face87c96b777cc4ba74fa07";
/// Enough of it for a second program.
const THIRD: u64 = 300_000_000;
/// Clients of a published server, at once, and what each fetches.
const CLIENTS: u32 = 200;
const EACH: u64 = 1_000_000;
/// Bit/s of a tunnel's flow: 20,000 datagrams of 1400 bytes.
const TUNNEL: u64 = 20_000 * 1400 * 8;
/// Datagrams that a sender has at least got rid of, of the 60,000 of three seconds.
const TUNNEL_LEAST: f64 = 54_000.0;

/// By address and by name, either family, and from a program that chooses itself.
fn fetch() {
    let m = Machine::with_image();
    let got = m.user(&format!(
        "podman run --rm $IMAGE sh -c '
           for a in {PEER4} [{PEER6}] {WEB4} [{WEB6}]; do curl -sS http://$a/; done
           curl -4sS http://a.name/; curl -6sS http://a.name/; curl -sS http://another.name/
           curl -4sS http://a.name/who; curl -6sS http://a.name/who'"
    ));
    let (pages, who) = got.split_at(PAGE.len() * 7);
    assert_eq!(pages, PAGE.repeat(7));
    // The host's own addresses are what servers see.
    let who: Vec<&str> = who.lines().collect();
    assert!(
        who.first()
            .is_some_and(|l| l.contains(&format!(" {HOST4}:"))),
        "{who:?}"
    );
    assert!(
        who.get(1)
            .is_some_and(|l| l.contains(&format!(" [{HOST6}]:"))),
        "{who:?}"
    );
    m.clean();
}

/// By the name server that podman names, and by those of the network itself; UDP, TCP, and what needs TCP.
fn resolve() {
    let m = Machine::with_image();
    let got = m.user(&format!(
        "podman run --rm $IMAGE sh -c '
           for server in \"\" @169.254.1.1 @{DNS4} @{DNS6}; do
             for how in +notcp +tcp; do
               dig +short $how $server a.name A; dig +short $how $server a.name AAAA
             done
           done
           dig +short a.name TXT | tr -d \" \\n\" | tr -d x | wc -c
           dig +short a.name TXT | tr -cd x | wc -c
           getent ahosts a.name | grep -c STREAM'"
    ));
    let answers = format!("{WEB4}\n{WEB6}\n").repeat(8);
    let (addresses, rest) = got.split_at(answers.len().min(got.len()));
    assert_eq!(addresses, answers);
    let rest: Vec<&str> = rest.lines().collect();
    assert_eq!(
        rest,
        ["20", "2000", "2"],
        "ten strings of 200, in quotes; two addresses"
    );
    m.clean();
}

fn ping() {
    let m = Machine::with_image();
    for address in [PEER4, PEER6, WEB4, WEB6] {
        let got = m.user(&format!(
            "podman run --rm $IMAGE ping -c 3 -i 0.2 -W 30 -s 1000 {address}"
        ));
        assert!(got.contains("3 received, 0% packet loss"), "{got}");
    }
    m.clean();
}

/// Datagrams of all sizes there and back, each family.
fn datagrams() {
    let m = Machine::with_image();
    let got = m.user(&format!(
        "podman run --rm $IMAGE sh -c '
           for to in UDP4:{PEER4}:7 UDP6:[{PEER6}]:7; do
             for size in 1 1400 1500 9000 60000; do
               head -c $size /dev/zero | tr \"\\0\" x | socat -b 65000 -t 30 - $to,shut-null | head -c $size | wc -c
             done
           done'"
    ));
    let got: Vec<&str> = got.split_whitespace().collect();
    assert_eq!(got, ["1", "1400", "1500", "9000", "60000"].repeat(2));
    m.clean();
}

/// A gigabyte comes as it is.
fn download() {
    let m = Machine::with_image();
    let begun = Instant::now();
    for host in [PEER4.to_owned(), format!("[{PEER6}]")] {
        let got = m.user(&format!(
            "podman run --rm $IMAGE sh -c 'curl -sS http://{host}/big?{GIGABYTE} | sha256sum'"
        ));
        assert_eq!(got, format!("{GIGABYTE_SUM}  -\n"), "from {host}");
    }
    note(&format!(
        "two gigabytes in {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    // Another program, which reads another way.
    let sum = format!("http://{PEER4}/big?{THIRD} | sha256sum");
    let got = m.user(&format!("podman run --rm $IMAGE sh -c 'wget -qO- {sum}'"));
    assert_eq!(got, m.world.peer.sh(&format!("curl -sS {sum}")));
    m.clean();
}

/// Two hundred clients of a published server at the same time, from another machine and from the host itself.
fn crowd_of_clients() {
    let m = Machine::with_image();
    // As many may wait to be accepted as there are: otherwise the kernel in there drops them, for seconds.
    m.user(&format!(
        "podman run -d --name c -p 8080:80 $IMAGE sh -c '
           curl -sS http://{PEER4}/big?{EACH} >/srv/file &&
           exec socat -U TCP6-LISTEN:80,ipv6only=0,fork,backlog=1024 OPEN:/srv/file'"
    ));
    let ready = || fetched(&m.world.host, HOST4).is_ok_and(|n| n == EACH);
    assert!(
        poll_until(PATIENCE, ready),
        "the server does not answer: {}",
        m.user("podman logs c")
    );
    let begun = Instant::now();
    let results: Vec<_> = std::thread::scope(|s| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let (from, host) = match n % 4 {
                    0 => (&m.world.peer, HOST4),
                    1 => (&m.world.peer, HOST6),
                    2 => (&m.world.host, "127.0.0.1"),
                    _ => (&m.world.host, HOST4),
                };
                s.spawn(move || {
                    fetched(from, host).map_err(|e| format!("client {n} of {host}: {e}"))
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|c| c.join().expect("no panic"))
            .collect()
    });
    for result in results {
        assert_eq!(result, Ok(EACH));
    }
    note(&format!(
        "{CLIENTS} clients, {} MB in {:.1} s",
        u64::from(CLIENTS) * EACH / 1_000_000,
        begun.elapsed().as_secs_f64()
    ));
    m.user("podman rm -f -t 0 c");
    m.clean();
}

/// All that the published server has to say; how much of the pattern it is.
fn fetched(from: &Netns, host: &str) -> Result<u64, String> {
    let connected = from.connect_within((host, 8080), PATIENCE);
    let mut stream = connected.map_err(|e| e.to_string())?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .map_err(|e| e.to_string())?;
    check_pattern(&mut stream)
}

/// 20,000 datagrams of 1400 bytes a second in each direction, as a tunnel has them.
///
/// The sockets at the ends hold five milliseconds of that. So everything that takes part has priority over whatever
/// else this machine does: what is lost then is lost by the program.
fn tunnel() {
    let m = Machine::with_image();
    if m.world.peer.try_sh("chrt --rr 1 true").code != 0 {
        skip("no program may have real-time priority here");
    }
    let _server = m
        .world
        .peer
        .start(&format!("chrt --rr 1 iperf3 -s -B {PEER4}"));
    let mut said = String::new();
    let carried = (1..=3).any(|attempt| {
        let output = m.root(&format!(
            "cd {HOME}; HOME={HOME} XDG_RUNTIME_DIR={RUNTIME_DIR} \\
             chrt --rr 1 setpriv --reuid {USER} --regid {USER} --clear-groups \\
             podman run --rm $IMAGE iperf3 -c {PEER4} -u -b {TUNNEL} -l 1400 -t 3 --bidir -J || true"
        ));
        let report: serde_json::Value = serde_json::from_str(&output).unwrap_or_default();
        let count = |way: &str, name: &str| report.get("end")?.get(way)?.get(name)?.as_f64();
        let both = ["", "_bidir_reverse"].map(|way| {
            let lost = count(&format!("sum_received{way}"), "lost_packets")?;
            let of = count(&format!("sum_received{way}"), "packets")?;
            Some((lost, of, count(&format!("sum_sent{way}"), "packets")?))
        });
        let [Some(out), Some(back)] = both else {
            said.push_str(&output);
            return false;
        };
        let line = format!(
            "attempt {attempt}: of {} datagrams out {} are lost, of {} back {} ({} and {} were sent)",
            out.1, out.0, back.1, back.0, out.2, back.2
        );
        note(&line);
        said.push_str(&format!("{line}\n"));
        // What never came after the last one that did is not counted as lost by the one who waits for it.
        [out, back].iter().all(|(lost, of, sent)| {
            *sent >= TUNNEL_LEAST && lost / of <= 0.01 && of - lost >= 0.95 * sent
        })
    });
    assert!(carried, "{said}");
    m.clean();
}

/// Connections nobody uses for a while still work, in both directions and whoever speaks first.
fn idle() {
    unused_for(Duration::from_secs(20));
}

/// The same for longer than most things that forget; `tests/run` runs it beside everything else.
pub mod long {
    use std::time::Duration;

    use crate::harness::tests;

    tests![; root: idle];

    fn idle() {
        super::unused_for(Duration::from_secs(600));
    }
}

fn unused_for(time: Duration) {
    let m = Machine::with_image();
    let (host, peer) = (&m.world.host, &m.world.peer);
    let listeners = [(PEER4, 9100), (PEER6, 9100), (PEER4, 9101), (PEER6, 9101)]
        .map(|address| peer.listen(address));
    let seconds = time.as_secs();
    m.user(&format!(
        "podman run -d --name c -p 9200:9200 $IMAGE sh -c '
           socat TCP6-LISTEN:9200,ipv6only=0,fork EXEC:cat &
           for host in {PEER4} [{PEER6}]; do
             socat TCP:$host:9100 EXEC:cat &
             socat TCP:$host:9101 \"SYSTEM:sleep {seconds}; echo speak up; exec cat\" &
           done
           wait'"
    ));
    let mut streams: Vec<TcpStream> = listeners.iter().map(|l| accept(l).0).collect();
    for (from, address) in [
        (peer, HOST4),
        (peer, HOST6),
        (host, "127.0.0.1"),
        (host, "::1"),
    ] {
        let mut stream = None;
        let answered = poll_until(PATIENCE, || {
            stream = from.connect_within((address, 9200), PATIENCE).ok();
            stream.as_mut().is_some_and(|s| echoed(s, b"first").is_ok())
        });
        assert!(answered, "port 9200 at {address}");
        streams.extend(stream);
    }
    for stream in &mut streams[..2] {
        echoed(stream, b"first").expect("an echo");
    }
    // The one place where time itself is what is tested.
    std::thread::sleep(time);
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        if n == 2 || n == 3 {
            let mut line = [0; 9];
            stream
                .read_exact(&mut line)
                .unwrap_or_else(|e| panic!("stream {n}: {e}"));
            assert_eq!(&line, b"speak up\n");
        }
        let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        echoed(stream, &data).unwrap_or_else(|e| panic!("stream {n}: {e}"));
    }
    drop(streams);
    m.user("podman rm -f -t 0 c");
    m.clean();
}

/// Sends data and expects it back.
fn echoed(stream: &mut TcpStream, data: &[u8]) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    std::thread::scope(|s| {
        let sending = s.spawn(move || writer.write_all(data));
        let mut back = vec![0; data.len()];
        stream.read_exact(&mut back)?;
        assert!(back == data, "what comes back is not what was sent");
        sending.join().expect("no panic while sending")
    })
}
