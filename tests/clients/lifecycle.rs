//! What can happen to a container while somebody talks to it: all the ways it ends, and begins again.
//!
//! podman never tells pasta that it is over: the namespace's name vanishes, and with the next breath
//! the next pasta is started with the same ports. So whatever happens here, three things must hold: as soon as the
//! container runs, it is reachable; there is one instance of pasta to a running container and none to any
//! other; and at the end nothing is left. Who talks meanwhile may be cut off, but never gets a wrong answer.
//!
//! A container here is a web server whose one page is its name ([`run`]), and a UDP echo server.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{Ending, SOON, alive, poll_until, stat};
use crate::harness::{skip, tests};
use crate::machine::{Machine, PATIENCE, RUNTIME_DIR};
use crate::world::{HOST4, HOST6, Netns};

tests![; root: restart_under_load, stop_and_start, pause, container_killed, restart_policy, conmon_killed, pasta_killed,
    podman_killed, exits_by_itself, stop_and_start_at_once, exec_and_attach, wide_ranges,
    without_inotify];

/// Until a container answers: a start on a busy machine.
pub const ANSWER: Duration = Duration::from_secs(60);
/// The server: its page is the name of the container.
const SERVER: &str = "socat UDP6-RECVFROM:7,ipv6only=0,fork PIPE & hostname >/srv/index.html; exec httpd -f -p '[::]:80' -h /srv";
const PUBLISHED: &str = "-p 8080:80 -p 8007:7/udp";
const PORT: u16 = 8080;

/// Starts the server as a container of this name.
#[track_caller]
pub fn run(m: &Machine, name: &str, options: &str) {
    m.user(&run_line(name, options));
}

pub fn run_line(name: &str, options: &str) -> String {
    format!("podman run -d --name {name} --hostname {name} {options} $IMAGE sh -c \"{SERVER}\"")
}

/// What the web server answers; an answer that came in full.
pub fn page(from: &Netns, at: (&str, u16)) -> std::io::Result<String> {
    let mut stream = from.connect_within(at, SOON)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let short = || std::io::Error::other(format!("not an answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(short)?;
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("Content-Length: ")?.parse().ok());
    if length != Some(body.len()) || !head.contains(" 200 ") {
        return Err(short());
    }
    Ok(body.trim_end().to_owned())
}

/// The container answers at the address.
#[track_caller]
pub fn answers(from: &Netns, at: (&str, u16), name: &str) {
    let mut last = Err(std::io::Error::other("never asked"));
    let right = poll_until(ANSWER, || {
        last = page(from, at);
        last.as_ref().is_ok_and(|page| page == name)
    });
    assert!(right, "{name} does not answer at {at:?}: {last:?}");
}

/// From outside and from the host, by both families, TCP and UDP.
#[track_caller]
fn reachable(m: &Machine, name: &str) {
    for address in [HOST4, HOST6] {
        answers(&m.world.peer, (address, PORT), name);
    }
    for address in ["127.0.0.1", "::1"] {
        answers(&m.world.host, (address, PORT), name);
    }
    let socket = m.world.peer.udp("[::]:0");
    let back = poll_until(ANSWER, || {
        socket.send_to(b"there?", (HOST6, 8007)).ok();
        let brief = Duration::from_millis(200);
        socket.set_read_timeout(Some(brief)).expect("a timeout");
        socket.recv(&mut [0; 16]).is_ok_and(|n| n == 6)
    });
    assert!(back, "no answer by UDP");
}

/// The namespaces that instances of the program under test are in charge of.
pub fn instances(m: &Machine) -> BTreeSet<String> {
    let namespace = |pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split('\0').skip_while(|w| *w != "--netns");
        words.nth(1).map(str::to_owned)
    };
    m.pastas().into_iter().filter_map(namespace).collect()
}

/// There are this many instances, soon.
#[track_caller]
pub fn expect_instances(m: &Machine, count: usize) {
    let right = poll_until(SOON, || instances(m).len() == count);
    assert!(right, "{count} instances: {:?}", instances(m));
}

/// Removes the container; then nothing is left.
#[track_caller]
fn remove(m: &Machine, name: &str) {
    m.user(&format!("podman rm -f -t 0 {name}"));
    m.clean();
}

/// A number that podman knows of a container.
#[track_caller]
fn inspect(m: &Machine, name: &str, what: &str) -> i32 {
    let printed = m.user(&format!("podman inspect -f '{{{{.{what}}}}}' {name}"));
    printed.trim().parse().expect("a number")
}

#[track_caller]
fn end(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a process");
    assert!(poll_until(SOON, || !alive(pid)), "{pid} survives SIGKILL");
}

/// State of the only container, as `podman ps` shows it.
#[track_caller]
fn state(m: &Machine) -> String {
    m.user("podman ps -a --format '{{.State}}'")
        .trim()
        .to_owned()
}

/// Four clients that never rest while the container is restarted twenty times.
fn restart_under_load() {
    let m = Machine::with_image();
    run(&m, "c", PUBLISHED);
    reachable(&m, "c");
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients = [
        (&m.world.peer, HOST4),
        (&m.world.peer, HOST6),
        (&m.world.host, "127.0.0.1"),
        (&m.world.host, HOST4),
    ];
    std::thread::scope(|s| {
        let _ending = Ending(&over);
        for (from, address) in clients {
            s.spawn(|| hammer(from, address, &over, &answered));
        }
        for round in 0..20 {
            m.user("podman restart -t 0 c");
            let before = answered.load(Ordering::Relaxed);
            reachable(&m, "c");
            let served = poll_until(ANSWER, || answered.load(Ordering::Relaxed) > before);
            assert!(served, "nobody is answered after restart {round}");
            expect_instances(&m, 1);
        }
    });
    remove(&m, "c");
}

fn hammer(from: &Netns, address: &str, over: &AtomicBool, answered: &AtomicUsize) {
    while !over.load(Ordering::Relaxed) {
        match page(from, (address, PORT)) {
            Ok(page) => {
                assert_eq!(page, "c");
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn stop_and_start() {
    let m = Machine::with_image();
    run(&m, "c", PUBLISHED);
    reachable(&m, "c");
    for stop in ["podman stop -t 0 c", "podman kill c"] {
        m.user(stop);
        m.clean();
        assert!(m.world.peer.try_connect((HOST4, PORT)).is_err());
        m.user("podman start c");
        reachable(&m, "c");
        expect_instances(&m, 1);
    }
    remove(&m, "c");
}

/// A paused container keeps its network: who connects waits for it.
fn pause() {
    let m = Machine::with_image();
    if !fs::exists("/sys/fs/cgroup/cgroup.freeze").unwrap_or(false) {
        skip("no control group can be frozen here");
    }
    run(&m, "c", PUBLISHED);
    reachable(&m, "c");
    m.user("podman pause c");
    let waiting = m.world.peer.connect((HOST4, PORT));
    expect_instances(&m, 1);
    m.user("podman unpause c");
    (&waiting)
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .expect("connected");
    let mut answer = String::new();
    (&waiting).read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with("\r\n\r\nc\n"), "{answer}");
    drop(waiting);
    remove(&m, "c");
}

fn container_killed() {
    let m = Machine::with_image();
    run(&m, "c", PUBLISHED);
    for _ in 0..3 {
        reachable(&m, "c");
        end(inspect(&m, "c", "State.Pid"));
        m.clean();
        assert_eq!(state(&m), "exited");
        m.user("podman start c");
    }
    reachable(&m, "c");
    remove(&m, "c");
}

/// Here nobody but podman's own cleanup, in the background, stops and starts.
fn restart_policy() {
    let m = Machine::with_image();
    run(&m, "c", &format!("--restart=always {PUBLISHED}"));
    for round in 1..=5 {
        reachable(&m, "c");
        end(inspect(&m, "c", "State.Pid"));
        let again = || inspect(&m, "c", "RestartCount") >= round;
        assert!(poll_until(ANSWER, again), "not started again ({round})");
        reachable(&m, "c");
        expect_instances(&m, 1);
    }
    remove(&m, "c");
}

/// Without conmon nobody notices the end of the container but who asks for it.
fn conmon_killed() {
    let m = Machine::with_image();
    run(&m, "c", PUBLISHED);
    end(inspect(&m, "c", "State.ConmonPid"));
    reachable(&m, "c");
    expect_instances(&m, 1);
    let output = m.try_user("podman stop -t 0 c");
    assert!(output.err.contains("conmon"), "{}", output.both());
    m.clean();
    m.user("podman start c");
    reachable(&m, "c");
    remove(&m, "c");
}

/// Whichever process of it is killed, all go; the container goes on without a network, and comes back with one.
fn pasta_killed() {
    let m = Machine::with_image();
    run(&m, "c", PUBLISHED);
    for which in 0..m.pastas().len() {
        reachable(&m, "c");
        end(m.pastas()[which]);
        expect_instances(&m, 0);
        // The last thing a process that ends gives up is what it has open.
        let refused = || m.world.peer.try_connect((HOST4, PORT)).is_err();
        assert!(poll_until(SOON, refused), "somebody serves");
        assert_eq!(state(&m), "running");
        let links = m.user("podman exec c ip -o link");
        assert_eq!(links.lines().count(), 1, "{links}");
        m.user("podman stop -t 0 c");
        m.clean();
        m.user("podman start c");
    }
    end(m.pastas()[0]);
    m.user("podman restart -t 0 c");
    reachable(&m, "c");
    expect_instances(&m, 1);
    remove(&m, "c");
}

/// Ends what podman does not know of, and would let stay until the next boot: what runs the container, and its namespace.
const FORGOTTEN: &str = "for p in $(pgrep -x \"conmon|crun\"); do kill -9 $p; done
    for n in $XDG_RUNTIME_DIR/netns/*; do [ ! -e $n ] || { umount -l $n || true; rm -f $n; }; done";

/// podman is killed in the middle of a start. Whatever it had started by then is complete or gone: an instance it does
/// not know of serves, and ends as ever.
fn podman_killed() {
    let m = Machine::with_image();
    let netns = format!("{RUNTIME_DIR}/netns");
    let named = || fs::read_dir(&netns).map_or(0, |d| d.flatten().count());
    type Moment<'a> = (&'a str, &'a dyn Fn() -> bool);
    let listening = || !m.world.host.sh("ss -Htln sport = 8080").is_empty();
    let moments: [Moment<'_>; 5] = [
        ("a namespace", &|| named() > 0),
        ("pasta", &|| !m.pastas().is_empty()),
        ("its ports", &listening),
        ("conmon", &|| !m.root("pgrep -x conmon || true").is_empty()),
        ("a server", &|| page(&m.world.host, ("::1", PORT)).is_ok()),
    ];
    for (what, reached) in moments {
        let started = m.start(&run_line("c", PUBLISHED));
        assert!(poll_until(ANSWER, reached), "{what} never appears");
        m.root("for p in $(pgrep -x podman); do kill -9 $p || true; done");
        started.finish(PATIENCE);
        settle(&m);
        m.try_user("podman rm -f -t 0 c");
        m.user(&format!("podman unshare sh -c '{FORGOTTEN}'"));
        m.clean();
        run(&m, "c", PUBLISHED);
        reachable(&m, "c");
        expect_instances(&m, 1);
        remove(&m, "c");
    }
}

/// A pasta that was being started when podman was killed has come to an end of that: it is in the background.
#[track_caller]
fn settle(m: &Machine) {
    let parent = |pid: &i32| stat(*pid)?[1].parse::<i32>().ok();
    let mut last = Vec::new();
    let settled = poll_until(ANSWER, || {
        let now = m.pastas();
        let ready = now.iter().all(|pid| {
            let parent = parent(pid);
            parent.is_some_and(|p| p == 1 || now.contains(&p))
        });
        let same = ready && now == last && now.is_empty() == instances(m).is_empty();
        last = now;
        std::thread::sleep(Duration::from_millis(50));
        same
    });
    assert!(settled, "{last:?}");
}

/// The end that nobody asked for, and `--rm`.
fn exits_by_itself() {
    let m = Machine::with_image();
    for (code, options) in [(0, "--rm"), (7, "--rm -i"), (3, "--rm --init")] {
        let script =
            format!("podman run {options} {PUBLISHED} $IMAGE sh -c 'ip addr; exit {code}'");
        let output = m.try_user(&script);
        assert_eq!(output.code, code, "{}", output.both());
        assert!(output.out.contains(HOST4), "{}", output.both());
        m.clean();
    }
    m.user(&format!(
        "podman run -d --name c {PUBLISHED} $IMAGE sleep 0.3"
    ));
    assert_eq!(m.user("podman wait c"), "0\n");
    m.clean();
    m.user("podman start c && podman wait c");
    remove(&m, "c");
}

fn stop_and_start_at_once() {
    let m = Machine::with_image();
    run(&m, "c", PUBLISHED);
    for _ in 0..3 {
        // Who comes first is not the question.
        m.try_user("podman stop -t 0 c & podman start c; wait");
        m.try_user("podman restart -t 0 c & podman restart -t 0 c; wait");
        m.user("podman start c");
        reachable(&m, "c");
        expect_instances(&m, 1);
    }
    remove(&m, "c");
}

/// What goes on in the container beside its network.
fn exec_and_attach() {
    let m = Machine::with_image();
    run(&m, "c", PUBLISHED);
    reachable(&m, "c");
    let load = m.start("for j in 1 2 3; do (for i in $(seq 10); do podman exec c ip addr >/dev/null || echo bad; done) & done; wait");
    for _ in 0..100 {
        assert_eq!(page(&m.world.peer, (HOST4, PORT)).expect("an answer"), "c");
    }
    assert_eq!(load.finish(PATIENCE * 2).both(), "");
    remove(&m, "c");

    m.user("podman run -d -i --name c -p 8080:80 $IMAGE sh -c 'while read l; do echo got $l; done; echo end'");
    let attached = m.user("echo one | podman attach c");
    assert_eq!(attached.trim_end(), "got one\nend");
    m.clean();
    let logged = m.user("podman logs c");
    assert_eq!(logged.trim_end(), "got one\nend");
    remove(&m, "c");
}

/// Thousands of listening sockets are gone when the next instance wants them.
fn wide_ranges() {
    let m = Machine::with_image();
    run(
        &m,
        "c",
        &format!("{PUBLISHED} -p 10000-12999:10000-12999 -p 10000-12999:10000-12999/udp"),
    );
    for _ in 0..3 {
        m.user("podman restart -t 0 c");
        reachable(&m, "c");
        expect_instances(&m, 1);
    }
    remove(&m, "c");
}

/// A user with some fifty containers has no inotify instances left; pasta notices the end of one all the same.
fn without_inotify() {
    let m = Machine::with_image();
    m.user("podman unshare sh -c 'echo 0 >/proc/sys/user/max_inotify_instances'");
    run(&m, "c", PUBLISHED);
    for _ in 0..5 {
        reachable(&m, "c");
        m.user("podman restart -t 0 c");
        expect_instances(&m, 1);
    }
    reachable(&m, "c");
    remove(&m, "c");
}
