//! The control socket, and pesto: looking at the rules, changing them, and who may.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::differences::established;
use crate::exec::{Ending, Output, SOON, nothing_left, poll_until, run};
use crate::harness::{DIR, tests};
use crate::reach::{
    Family, Protocol, Server, WAYS, closed, exchange, listening, reachable_within, try_reach,
};
use crate::servers::{echo, http};
use crate::world::{Guest, HOST4, NO_FORWARDS, Netns, World};
use Protocol::{Tcp, Udp};

tests![
    show,
    add,
    add_as_podman_does,
    delete,
    delete_and_add_again,
    delete_has_to_match,
    clear,
    replace,
    sequence,
    show_before_and_after,
    retarget,
    rebind,
    conflict_changes_nothing,
    busy_port_changes_nothing,
    busy_port_in_the_namespace,
    impossible_rules,
    outbound,
    automatic,
    unchanged_rules_keep_connections,
    deleted_rules_keep_connections,
    changes_under_load,
    many_changes,
    most_rules,
    one_after_the_other,
    silent_client,
    client_that_does_not_read,
    nonsense,
    socket_is_private,
    others_are_refused,
    path_in_use,
    stale_path,
    symbolic_link,
    impossible_path,
    ends_with_the_instance,
    without_a_socket,
    usage,
    json,
    json_of_many_flows,
    watch,
];

const SOCKET: &str = "/run/t/control.sock";

fn pesto_command(args: &[&str]) -> Command {
    let program = std::env::var("PESTO_UNDER_TEST");
    let mut command = Command::new(program.as_deref().unwrap_or("/run/t/built/pesto"));
    command.args(args).current_dir(DIR);
    command
}

/// Runs `pesto ARGS SOCKET` on the host.
#[track_caller]
fn pesto(args: &[&str]) -> Output {
    run(
        pesto_command(&[args, &[SOCKET]].concat()),
        Duration::from_secs(30),
    )
}

/// The same; it must succeed and say nothing.
#[track_caller]
fn change(args: &[&str]) {
    let output = pesto(args);
    assert_eq!(
        (output.code, output.both().as_str()),
        (0, ""),
        "pesto {args:?}"
    );
    if established() {
        pesto(&[]); // it says so before it is done; the next client is served after that
    }
}

/// The same; it must fail with a message of all these words.
#[track_caller]
fn refused(args: &[&str], words: &[&str]) {
    let Output { code, out, err } = pesto(args);
    assert_eq!((code, out.as_str()), (1, ""), "pesto {args:?}:\n{err}");
    for word in words {
        assert!(
            err.contains(word),
            "pesto {args:?}: `{word}` is not in:\n{err}"
        );
    }
}

/// What it shows: the tables without the line on top.
#[track_caller]
fn shown() -> String {
    let output = pesto(&[]);
    assert_eq!((output.code, output.err.as_str()), (0, ""));
    let (first, rest) = output.out.split_once('\n').expect("several lines");
    assert_eq!(first, format!("passt/pasta configuration ({SOCKET})"));
    rest.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

fn guest(w: &World, options: &[&str]) -> Guest {
    w.guest(&[options, &["-c", SOCKET]].concat())
}

/// Exactly these ports are open: what pesto says is done is done.
#[track_caller]
fn open_now(ns: &Netns, protocol: Protocol, ports: &[u16]) {
    assert_eq!(
        listening(ns, protocol),
        ports,
        "{protocol:?} in {}",
        ns.name
    );
}

const SHOWN: &str = "  HOST\n    TCP [*]:8080  =>  80\n    UDP [*]:53  =>  53\n  SPLICE\n    TCP [*]%lo:99  =>  99\n";
const OPTIONS: [&str; 6] = ["-t", "8080:80", "-u", "53", "-T", "99"];

fn show() {
    let w = World::direct();
    let _g = guest(
        &w,
        &[
            "-t",
            "8080",
            "-t",
            "9000-9005:80-85,~9003",
            "-t",
            "127.0.0.1/1:99",
            "-t",
            "::1%lo/2:99",
            "-t",
            "0.0.0.0/77:192.0.2.9/99",
            "-u",
            "[::]/78:79",
            "-T",
            "auto,1-5",
            "-U",
            "~6-65535",
        ],
    );
    assert_eq!(
        shown(),
        "  HOST
    TCP [*]:8080  =>  8080
    TCP [*]:9000-9002  =>  80-82
    TCP [*]:9004-9005  =>  84-85
    TCP [127.0.0.1]:1  =>  99
    TCP [::1]%lo:2  =>  99
    TCP [0.0.0.0]:77  =>  192.0.2.9:99
    UDP [::]:78  =>  79
  SPLICE
    TCP [*]%lo:1-5  =>  1-5  (auto-scan)
    UDP [*]%lo:1-5  =>  1-5  (best effort)
"
    );
}

fn add() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080"]);
    let _server = [Server::tcp(&g, ("::", 80)), Server::udp(&g, ("::", 80))];
    change(&["-A", "-t", "8081:80", "-u", "8081:80"]);
    // At once: what has been said to be done is done.
    for protocol in [Tcp, Udp] {
        for way in WAYS {
            let (client, to) = way.client(&w, Family::V4);
            let told = try_reach(protocol, client, (to, 8081));
            assert!(told.is_ok(), "{protocol:?} {way:?}: {told:?}");
        }
    }
    open_now(&w.host, Tcp, &[8080, 8081]);
    change(&["--add", "--tcp-ports", "9000-9003"]);
    assert_eq!(
        listening(&w.host, Tcp),
        [8080, 8081, 9000, 9001, 9002, 9003]
    );
}

fn add_as_podman_does() {
    let w = World::direct();
    let g = guest(&w, &[]);
    let _servers = [
        Server::tcp(&g, ("0.0.0.0", 80)),
        Server::tcp(&g, ("::1", 80)),
    ];
    change(&[
        "--add",
        "-t",
        "0.0.0.0/8080:80",
        "-t",
        "[::]/8080:80",
        "-t",
        "127.0.0.1/8081-8081:80-80",
    ]);
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8080));
    reachable_within(SOON, Tcp, &w.host, ("127.0.0.1", 8081));
    change(&["--delete", "-t", "0.0.0.0/8080:80", "-t", "[::]/8080:80"]);
    open_now(&w.host, Tcp, &[8081]);
}

fn delete() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080-8083:80-83", "-t", "9000", "-u", "9000"]);
    let _server = Server::tcp(&g, (HOST4, 9000));
    change(&["-D", "-t", "8080-8083:80-83", "-u", "9000"]);
    open_now(&w.host, Tcp, &[9000]);
    open_now(&w.host, Udp, &[]);
    closed(Tcp, &w.peer, (HOST4, 8080));
    closed(Udp, &w.peer, (HOST4, 9000));
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 9000));
}

/// What has been taken away can be asked for again at once, by the same instance or by somebody else.
fn delete_and_add_again() {
    let w = World::direct();
    let _g = guest(&w, &[]);
    for _ in 0..20 {
        change(&["--add", "-t", "8000-8200", "-u", "8000-8200"]);
        change(&["--delete", "-t", "8000-8200", "-u", "8000-8200"]);
    }
    change(&["--add", "-t", "8000-8200"]);
    change(&["--delete", "-t", "8000-8200"]);
    let taken = w
        .host
        .enter(|| std::net::TcpListener::bind(("0.0.0.0", 8200)).map(drop));
    assert!(taken.is_ok(), "{taken:?}");
}

fn delete_has_to_match() {
    let w = World::direct();
    let _g = guest(&w, &OPTIONS);
    refused(
        &["-D", "-t", "8080"],
        &["TCP [*]:8080  =>  8080", "rule TCP [*]:8080  =>  80"],
    );
    refused(&["-D", "-t", "8080-8081:80-81"], &["TCP [*]:8080-8081"]);
    refused(
        &["-D", "-t", "127.0.0.1/8080:80"],
        &["TCP [127.0.0.1]:8080"],
    );
    refused(&["-D", "-t", "77"], &["TCP [*]:77"]);
    refused(&["-D", "-u", "8080:80"], &["UDP [*]:8080"]);
    assert_eq!(shown(), SHOWN);
    open_now(&w.host, Tcp, &[8080]);
}

fn clear() {
    let w = World::direct();
    let g = guest(&w, &OPTIONS);
    change(&["-C", "HOST"]);
    assert_eq!(shown(), "  HOST\n  SPLICE\n    TCP [*]%lo:99  =>  99\n");
    open_now(&w.host, Tcp, &[]);
    open_now(&w.host, Udp, &[]);
    change(&["--clear", "SPLICE"]);
    assert_eq!(shown(), "  HOST\n  SPLICE\n");
    open_now(&g, Tcp, &[]);
    refused(&["-C", "NOWHERE"], &["NOWHERE"]);
}

/// Without a verb, a table that is mentioned becomes what is said, and the other stays.
fn replace() {
    let w = World::direct();
    let g = guest(&w, &OPTIONS);
    change(&["-t", "8081", "-t", "8082"]);
    assert_eq!(
        shown(),
        "  HOST\n    TCP [*]:8081  =>  8081\n    TCP [*]:8082  =>  8082\n  SPLICE\n    TCP [*]%lo:99  =>  99\n"
    );
    open_now(&w.host, Tcp, &[8081, 8082]);
    open_now(&w.host, Udp, &[]);
    change(&["-T", "98", "-U", "97"]);
    open_now(&g, Tcp, &[98]);
    open_now(&g, Udp, &[97]);
    open_now(&w.host, Tcp, &[8081, 8082]);
    change(&["-t", "none", "-T", "none"]);
    assert_eq!(shown(), "  HOST\n  SPLICE\n");
}

/// Verbs apply to what follows them, in order.
fn sequence() {
    let w = World::direct();
    let _g = guest(&w, &OPTIONS);
    change(&[
        "-A", "-t", "7000", "-D", "-t", "8080:80", "-A", "-u", "54", "-t", "8080:81", "-D", "-T",
        "99",
    ]);
    assert_eq!(
        sorted(&shown()),
        sorted(
            "  HOST\n    UDP [*]:53  =>  53\n    TCP [*]:7000  =>  7000\n    UDP [*]:54  =>  54\n    TCP [*]:8080  =>  81\n  SPLICE\n"
        )
    );
    open_now(&w.host, Tcp, &[7000, 8080]);
    open_now(&w.host, Udp, &[53, 54]);
    change(&[
        "-C", "HOST", "-A", "-t", "1", "-C", "SPLICE", "-A", "-T", "2",
    ]);
    assert_eq!(
        shown(),
        "  HOST\n    TCP [*]:1  =>  1\n  SPLICE\n    TCP [*]%lo:2  =>  2\n"
    );
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn show_before_and_after() {
    let w = World::direct();
    let _g = guest(&w, &OPTIONS);
    let output = pesto(&["-s", "-A", "-t", "1111"]);
    assert_eq!((output.code, output.err.as_str()), (0, ""));
    let text: String = output
        .out
        .lines()
        .map(|l| format!("{}\n", l.trim_end()))
        .collect();
    let (before, after) = text.split_once("Updated configuration").expect("both");
    assert_eq!(
        before,
        format!("Previous configuration ({SOCKET})\n{SHOWN}")
    );
    assert!(
        after.starts_with(&format!(" ({SOCKET})\n  HOST\n")),
        "{after}"
    );
    assert!(after.contains("    TCP [*]:1111  =>  1111\n"), "{after}");
}

/// The port stays open all the time while it is pointed elsewhere.
fn retarget() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080:80", "-u", "8080:80"]);
    for protocol in [Tcp, Udp] {
        let (old, new) = (
            Server::new(protocol, &g, (HOST4, 80)),
            Server::new(protocol, &g, (HOST4, 81)),
        );
        let option = protocol.inbound();
        try_reach(protocol, &w.peer, (HOST4, 8080)).expect("the old one");
        assert!(old.seen().bytes.is_ok());
        change(&["-D", option, "8080:80", "-A", option, "8080:81"]);
        try_reach(protocol, &w.peer, (HOST4, 8080)).expect("the new one");
        assert!(new.seen().bytes.is_ok());
    }
}

/// What only a listener of the old rules was in the way of is open when it is said to be, too.
fn rebind() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080", "-u", "8080", "-T", "8081"]);
    let _servers = [
        Server::tcp(&g, (HOST4, 8080)),
        Server::udp(&g, (HOST4, 8080)),
    ];
    for place in ["127.0.0.1/8080", "0.0.0.0/8080", "8080"] {
        change(&["-t", place, "-u", place]);
        for protocol in [Tcp, Udp] {
            let told = try_reach(protocol, &w.host, ("127.0.0.1", 8080));
            assert!(told.is_ok(), "{place} {protocol:?}: {told:?}");
        }
    }
}

fn conflict_changes_nothing() {
    let w = World::direct();
    let g = guest(&w, &OPTIONS);
    let _server = Server::tcp(&g, (HOST4, 80));
    refused(
        &["-A", "-t", "8080"],
        &["TCP [*]:8080  =>  8080", "TCP [*]:8080  =>  80"],
    );
    refused(
        &["-A", "-t", "7000", "-t", "8000-8100"],
        &["TCP [*]:8000-8100", "TCP [*]:8080  =>  80"],
    );
    refused(&["-t", "7000", "-t", "7000"], &["TCP [*]:7000"]);
    assert_eq!(shown(), SHOWN);
    open_now(&w.host, Tcp, &[8080]);
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8080));
}

/// What cannot be bound is refused, all of it, and said so.
fn busy_port_changes_nothing() {
    let w = World::direct();
    let g = guest(&w, &OPTIONS);
    let _server = Server::tcp(&g, (HOST4, 80));
    let busy = w.host.listen(("::", 8777));
    refused(
        &["-A", "-t", "7000", "-t", "8777", "-T", "98"],
        &["8777", "Address already in use"],
    );
    refused(&["-t", "7000-9000"], &["8777", "Address already in use"]);
    assert_eq!(shown(), SHOWN);
    open_now(&w.host, Tcp, &[8080, 8777]);
    open_now(&g, Tcp, &[80, 99]);
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8080));
    drop(busy);
    change(&["-A", "-t", "8777"]);
    open_now(&w.host, Tcp, &[8080, 8777]);
}

/// The other side has its say as well.
fn busy_port_in_the_namespace() {
    let w = World::direct();
    let g = guest(&w, &OPTIONS);
    let busy = g.listen(("127.0.0.1", 98));
    refused(
        &["-A", "-t", "7000", "-T", "98"],
        &["98", "Address already in use"],
    );
    assert_eq!(shown(), SHOWN);
    open_now(&w.host, Tcp, &[8080]);
    drop(busy);
    change(&["-A", "-t", "7000", "-T", "98"]);
    assert_eq!(
        (listening(&w.host, Tcp), listening(&g, Tcp)),
        (vec![7000, 8080], vec![98, 99])
    );
}

fn impossible_rules() {
    let w = World::direct();
    let _g = guest(&w, &OPTIONS);
    refused(&["-t", "70000"], &["Invalid port specifier '70000'"]);
    refused(&["-A", "-t", "0.0.0.0/1:0"], &["port 0"]);
    refused(&["-A", "-t", "0.0.0.0/1:224.0.0.1/1"], &["Multicast"]);
    refused(
        &["-A", "-T", "127.0.0.1/80"],
        &["Listening address not allowed"],
    );
    refused(&["-A", "-t", "80:192.0.2.1/80"], &["Did you mean 0.0.0.0/"]);
    refused(&["-A", "-t", "80", "-t", "none"], &["none"]);
    assert_eq!(shown(), SHOWN);
}

fn outbound() {
    let w = World::direct();
    let g = guest(&w, &[]);
    let _servers = [
        Server::tcp(&w.host, ("127.0.0.1", 99)),
        Server::udp(&w.host, ("127.0.0.1", 99)),
    ];
    change(&["-A", "-T", "98:99", "-U", "98:99"]);
    for protocol in [Tcp, Udp] {
        let told = try_reach(protocol, &g, ("127.0.0.1", 98));
        assert!(told.is_ok(), "{protocol:?}: {told:?}");
    }
    change(&["-D", "-T", "98:99", "-U", "98:99"]);
    open_now(&g, Tcp, &[]);
    open_now(&g, Udp, &[]);
    for protocol in [Tcp, Udp] {
        closed(protocol, &g, ("127.0.0.1", 98));
    }
}

/// Automatic rules come and go, too, though nothing was automatic at the start.
fn automatic() {
    let w = World::direct();
    let g = guest(&w, &[]);
    let _server = Server::tcp(&g, (HOST4, 8005));
    let _outside = Server::tcp(&w.host, ("127.0.0.1", 9005));
    change(&["-A", "-t", "8000-8010,auto", "-T", "9000-9010,auto"]);
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8005));
    reachable_within(SOON, Tcp, &g, ("127.0.0.1", 9005));
    open_now(&w.host, Tcp, &[8005, 9005]);
    change(&["-D", "-t", "8000-8010,auto", "-T", "9000-9010,auto"]);
    let gone = poll_until(SOON, || {
        listening(&w.host, Tcp) == [9005] && listening(&g, Tcp) == [8005]
    });
    assert!(
        gone,
        "{:?} {:?}",
        listening(&w.host, Tcp),
        listening(&g, Tcp)
    );
}

/// Connections of a rule that stays do not notice.
fn unchanged_rules_keep_connections() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080", "-u", "8080", "-T", "99"]);
    echo(&g, (HOST4, 8080));
    echo(&w.host, ("127.0.0.1", 99));
    let datagrams = Server::udp(&g, (HOST4, 8080));
    let mut all = [
        w.peer.connect((HOST4, 8080)),
        w.host.connect(("127.0.0.1", 8080)),
        g.connect(("127.0.0.1", 99)),
    ];
    let client = crate::reach::udp_to(&w.peer, (HOST4, 8080));
    client.send(b"first").expect("send");
    let source = datagrams.seen().peer;
    for changes in [
        &["-A", "-t", "8081"][..],
        &["-t", "8080", "-u", "8080"],
        &["-D", "-u", "8080", "-A", "-u", "8080"],
        &["-C", "HOST", "-A", "-t", "8080", "-A", "-u", "8080"],
        &["-C", "SPLICE", "-A", "-T", "99"],
    ] {
        change(changes);
        for (i, stream) in all.iter_mut().enumerate() {
            stream.write_all(b"x").expect("send");
            let told = stream.read_exact(&mut [0]);
            assert!(told.is_ok(), "connection {i} after {changes:?}: {told:?}");
        }
        client.send(b"again").expect("send");
        assert_eq!(datagrams.seen().peer, source);
        client.recv(&mut [0; 10]).expect("the answer");
    }
}

/// Taking away a rule is no reason to cut what came by it.
fn deleted_rules_keep_connections() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080"]);
    let server = Server::tcp(&g, (HOST4, 8080));
    let all = WAYS.map(|way| {
        let (client, to) = way.client(&w, Family::V4);
        client.connect((to, 8080))
    });
    let firmly = poll_until(SOON, || {
        g.sh("ss -Htn state established sport = 8080")
            .lines()
            .count()
            == 2
    });
    assert!(firmly, "established inside, too");
    change(&["-D", "-t", "8080"]);
    open_now(&w.host, Tcp, &[]);
    for stream in all {
        exchange(stream, 100_000);
        assert_eq!(server.seen().bytes, Ok(100_000));
    }
}

/// Rules come and go while requests are served; not one of them fails.
fn changes_under_load() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080"]);
    http(&g, (HOST4, 8080));
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        let load = WAYS.map(|way| {
            let (client, to) = way.client(&w, Family::V4);
            let done = &done;
            s.spawn(move || {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    let mut stream = client.connect((to, 8080));
                    stream
                        .write_all(b"GET /10000 HTTP/1.1\r\n\r\n")
                        .expect("send");
                    let mut answer = vec![];
                    stream
                        .read_to_end(&mut answer)
                        .unwrap_or_else(|e| panic!("{way:?} after {n}: {e}"));
                    assert!(
                        answer.len() > 10_000,
                        "{way:?} after {n}: {} bytes",
                        answer.len()
                    );
                    n += 1;
                }
                n
            })
        });
        let end = Ending(&done);
        for i in 0..20 {
            let port = format!("{}", 9000 + i);
            change(&["-A", "-t", &port, "-u", &port]);
            if i % 2 == 0 {
                change(&["-D", "-t", &port, "-u", &port]);
            }
        }
        drop(end);
        for thread in load {
            assert!(thread.join().expect("no failure") > 0);
        }
    });
}

/// Descriptors and rule numbers do not run out.
fn many_changes() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080"]);
    let files = || {
        crate::exec::sum_over_processes(|pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            u64::try_from(files.count()).ok()
        })
    };
    change(&["-t", "9000-9100", "-u", "9000-9100"]);
    let (mut before, mut since) = (0, Instant::now());
    let settled = poll_until(SOON, || {
        if files() != before {
            (before, since) = (files(), Instant::now());
        }
        since.elapsed() > Duration::from_millis(300)
    });
    assert!(settled, "the number of descriptors does not settle");
    for i in 0..100 {
        change(&[
            "-t",
            &format!("{}-{}", 9000 + i, 9100 + i),
            "-u",
            &format!("{}-{}", 9000 + i, 9100 + i),
        ]);
    }
    let same = poll_until(SOON, || files() <= before + 64); // pools may have filled
    assert!(same, "{before} descriptors before, {} after", files());
    let _server = Server::tcp(&g, (HOST4, 9150));
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 9150));
}

/// Both tables full, one after the other: what was set aside for them at the start suffices.
fn most_rules() {
    let w = World::direct();
    let g = guest(&w, &[]);
    for first in [8000, 8001, 8000] {
        let ports: Vec<String> = (0..255).map(|i| (first + 2 * i).to_string()).collect();
        let ports = ports.join(",");
        change(&["-t", &format!("%host0/{ports}"), "-T", &ports]);
        assert_eq!(listening(&w.host, Tcp).len(), 255);
        assert_eq!(listening(&g, Tcp).len(), 255);
        assert_eq!(shown().lines().count(), 512);
    }
    refused(&["-A", "-t", "7000"], &["Too many rules"]);
    refused(&["-A", "-T", "7000"], &["Too many rules"]);
    change(&["-C", "HOST"]);
    open_now(&w.host, Tcp, &[]);
}

/// Several at the same time wait for each other.
fn one_after_the_other() {
    let w = World::direct();
    let _g = guest(&w, &[]);
    let all: Vec<_> = (0..5)
        .map(|_| w.host.start_command(pesto_command(&[SOCKET])))
        .collect();
    for each in all {
        let output = each.finish(SOON);
        assert_eq!((output.code, output.err.as_str()), (0, ""));
    }
}

/// One who connects and says nothing may not keep the others out for ever, nor anything else.
fn silent_client() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080"]);
    echo(&g, (HOST4, 8080));
    let silent = UnixStream::connect(SOCKET).expect("connect");
    let mut stream = w.peer.connect((HOST4, 8080));
    stream.write_all(b"x").expect("send");
    stream.read_exact(&mut [0]).expect("traffic goes on");
    let output = pesto(&[]);
    assert_eq!(output.code, 0, "{}", output.both());
    drop(silent);
}

/// One who never reads what he asked for fills nobody's memory but the kernel's.
fn client_that_does_not_read() {
    let w = World::direct();
    let _g = guest(&w, &["-t", "8080"]);
    let mut rude = UnixStream::connect(SOCKET).expect("connect");
    rude.set_write_timeout(Some(Duration::from_millis(200)))
        .expect("a timeout");
    while rude.write(&[0; 65_536]).is_ok() {}
    drop(rude);
    change(&["-A", "-t", "8081"]);
}

fn nonsense() {
    let w = World::direct();
    let _g = guest(&w, &OPTIONS);
    // A single zero would be the proper end of an empty table.
    let seeds: [&[u8]; 5] = [
        &[1],
        &[0xff; 3],
        &[0xff; 5000],
        b"GET / HTTP/1.1\r\n\r\n",
        &[1, 0, 0, 255, 255],
    ];
    for bytes in seeds {
        let mut client = UnixStream::connect(SOCKET).expect("connect");
        client.write_all(bytes).ok();
        client.shutdown(std::net::Shutdown::Write).ok();
        client.set_read_timeout(Some(SOON)).expect("a timeout");
        let mut answer = vec![];
        client.read_to_end(&mut answer).ok();
    }
    assert_eq!(shown(), SHOWN);
}

fn socket_is_private() {
    let w = World::direct();
    let _g = guest(&w, &[]);
    let meta = fs::symlink_metadata(SOCKET).expect("the socket");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}

/// Even who gets at the file is asked who he is.
fn others_are_refused() {
    let maps = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if maps.split_whitespace().last() == Some("1") {
        crate::harness::skip("there are no other users here");
    }
    let w = World::direct();
    let _g = guest(&w, &OPTIONS);
    let as_other = |args: &[&str]| {
        let mut command = pesto_command(&[args, &[SOCKET]].concat());
        command.uid(4242).gid(4242);
        run(command, SOON)
    };
    let output = as_other(&[]);
    assert_eq!(
        (output.code, output.out.as_str()),
        (1, ""),
        "closed by its mode"
    );
    fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o777)).expect("chmod");
    for args in [&[][..], &["-A", "-t", "8081"], &["-C", "HOST"]] {
        let output = as_other(args);
        assert_eq!((output.code, output.out.as_str()), (1, ""), "{args:?}");
    }
    assert_eq!(shown(), SHOWN);
}

/// A path that another instance listens on stays that one's.
fn path_in_use() {
    let w = World::direct();
    let _g = guest(&w, &OPTIONS);
    let second = Netns::new("second");
    let options = [
        &["--config-net", "-q"],
        &NO_FORWARDS[..],
        &["-c", SOCKET, "--netns"],
    ]
    .concat();
    let output = w.pasta(&[&options[..], &[&second.path()]].concat());
    assert_eq!(output.code, 1, "{}", output.both());
    assert!(output.err.contains("in use"), "{}", output.err);
    assert_eq!(shown(), SHOWN);
}

/// What a killed instance left behind is replaced.
fn stale_path() {
    let w = World::direct();
    let g = guest(&w, &OPTIONS);
    g.pasta.stop(Signal::SIGKILL);
    nothing_left();
    drop(std::os::unix::net::UnixListener::bind("/run/t/old.sock").expect("bind"));
    let second = Netns::new("second");
    let _second = w.attach(
        &second,
        &[&["--config-net"], &OPTIONS[..], &["-c", SOCKET]].concat(),
    );
    assert_eq!(shown(), SHOWN);
    let third = Netns::new("third");
    let _third = w.attach(&third, &["--config-net", "-c", "old.sock"]);
}

/// It does not follow links, and takes away nothing but sockets.
fn symbolic_link() {
    let w = World::direct();
    let ns = Netns::new("guest");
    fs::write("/run/t/precious", "data").expect("tmpfs");
    symlink("/run/t/elsewhere.sock", "/run/t/link.sock").expect("tmpfs");
    for path in ["/run/t/precious", "/run/t/link.sock"] {
        let options = [
            &["--config-net", "-q"],
            &NO_FORWARDS[..],
            &["-c", path, "--netns"],
        ]
        .concat();
        let output = w.pasta(&[&options[..], &[&ns.path()]].concat());
        assert_eq!(output.code, 1, "{path}: {}", output.both());
        assert!(output.err.contains(path), "{}", output.err);
        nothing_left();
    }
    assert_eq!(
        fs::read_to_string("/run/t/precious").expect("still there"),
        "data"
    );
    assert!(!Path::new("/run/t/elsewhere.sock").exists());
}

fn impossible_path() {
    let w = World::direct();
    let ns = Netns::new("guest");
    let long = format!("/run/t/{}", "x".repeat(150));
    for path in ["/run/t/no/such/dir.sock", &long] {
        let options = [
            &["--config-net", "-q"],
            &NO_FORWARDS[..],
            &["-c", path, "--netns"],
        ]
        .concat();
        let output = w.pasta(&[&options[..], &[&ns.path()]].concat());
        assert_eq!(output.code, 1, "{path}: {}", output.both());
        assert!(!output.err.is_empty());
        nothing_left();
    }
}

/// A client that is connected when it ends is told, and the next one finds nobody.
fn ends_with_the_instance() {
    let w = World::direct();
    let g = guest(&w, &[]);
    let mut client = UnixStream::connect(SOCKET).expect("connect");
    client.set_read_timeout(Some(SOON)).expect("a timeout");
    g.pasta.stop(Signal::SIGTERM);
    // A reset, if it was still waiting for its turn.
    let told = client.read_to_end(&mut vec![]).map_err(|e| e.kind());
    assert!(
        matches!(told, Ok(_) | Err(ErrorKind::ConnectionReset)),
        "{told:?}"
    );
    nothing_left();
    let output = pesto(&[]);
    assert_eq!((output.code, output.out.as_str()), (1, ""));
    assert!(output.err.contains(SOCKET), "{}", output.err);
    assert!(poll_until(SOON, || UnixStream::connect(SOCKET).is_err()));
}

fn without_a_socket() {
    let w = World::direct();
    let _g = w.guest(&[]);
    for path in ["/run/t/nope", "/run/t/resolv.conf", "/run/t"] {
        let output = run(pesto_command(&[path]), SOON);
        assert_eq!((output.code, output.out.as_str()), (1, ""), "{path}");
        assert!(output.err.contains(path), "{}", output.err);
    }
}

fn usage() {
    let run = |args: &[&str]| run(pesto_command(args), SOON);
    let version = run(&["--version"]);
    assert_eq!(
        (version.code, version.out.starts_with("pesto ")),
        (0, true),
        "{}",
        version.both()
    );
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for word in [
        "Usage: ",
        "--add",
        "--delete",
        "--clear",
        "--tcp-ports",
        "--udp-ns",
        "--show",
    ] {
        assert!(
            help.both().contains(word),
            "{word} is not in:\n{}",
            help.both()
        );
    }
    for args in [&["--nonsense", "x"][..], &[], &["a", "b"], &["-C"], &["-t"]] {
        if !args.is_empty() && established() {
            continue; // ends by its own filter, or takes the first
        }
        let output = run(args);
        assert_eq!((output.code, output.out.as_str()), (1, ""), "{args:?}");
        assert!(!output.err.is_empty());
    }
}

/// For programs: one object, with what the manual promises.
fn json() {
    let w = World::direct();
    let g = guest(&w, &OPTIONS);
    let server = Server::tcp(&g, (HOST4, 80));
    exchange(w.peer.connect((HOST4, 8080)), 50_000);
    exchange(w.host.connect(("127.0.0.1", 8080)), 70_000);
    (0..2).for_each(|_| drop(server.seen()));
    let open = w.peer.connect((HOST4, 8080));
    let port = open.local_addr().expect("connected").port();
    let mut all = report();
    // Both have ended, once the last acknowledgement has been exchanged.
    let carried = |all: &Value, what: &str| {
        let rule = &all["rules"][0]["traffic"];
        rule[what].as_u64().unwrap_or(0)
    };
    let counted = poll_until(SOON, || {
        all = report();
        carried(&all, "bytes_in") == 120_000 && carried(&all, "bytes_out") == 120_000
    });
    assert!(counted, "{all:#}");
    assert_eq!(
        (carried(&all, "flows"), carried(&all, "live")),
        (3, 1),
        "{all:#}"
    );
    let rules: Vec<_> = all["rules"]
        .as_array()
        .expect("rules")
        .iter()
        .map(|r| {
            let field = |name: &str| r[name].to_string().replace('"', "");
            format!(
                "{} {} {}-{} {} {}/{}",
                field("table"),
                field("protocol"),
                field("first"),
                field("last"),
                field("to_first"),
                field("open"),
                field("missing")
            )
        })
        .collect();
    assert_eq!(
        rules,
        [
            "HOST TCP 8080-8080 80 1/0",
            "HOST UDP 53-53 53 1/0",
            "SPLICE TCP 99-99 99 1/0"
        ]
    );
    let flows = all["flows"].as_array().expect("flows");
    let flow = flows
        .iter()
        .find(|f| f["outside"].to_string().ends_with(&format!(":{port}\"")));
    let flow = flow.unwrap_or_else(|| panic!("no flow of port {port} in {all:#}"));
    assert_eq!(flow["rule"], all["rules"][0]["id"]);
    assert_eq!(all["guest"]["ipv4"], HOST4);
    assert!(all["frames"]["frames_in"].as_u64() > Some(0), "{all:#}");
    assert!(all["drops"].is_object());
    let processes = all["processes"].as_array().expect("processes");
    assert!(processes.len() >= 3, "{all:#}");
    for process in processes {
        let pid = process["pid"].as_i64().expect("a process id");
        assert!(
            crate::exec::alive(i32::try_from(pid).expect("small")),
            "{process}"
        );
        let confinement = process["confinement"].to_string();
        assert!(confinement.contains("seccomp"), "{process}");
    }
    drop(open);
}

#[track_caller]
fn report() -> Value {
    let output = pesto(&["--json"]);
    assert_eq!((output.code, output.err.as_str()), (0, ""));
    serde_json::from_str(&output.out).unwrap_or_else(|e| panic!("{e}:\n{}", output.out))
}

/// Nine hundred flows are all there, once each.
fn json_of_many_flows() {
    let w = World::direct();
    let g = guest(&w, &["-t", "8080", "-u", "8080"]);
    echo(&g, (HOST4, 8080));
    let _udp = Server::udp(&g, (HOST4, 8080));
    let connections: Vec<_> = (0..300).map(|_| w.peer.connect((HOST4, 8080))).collect();
    let spliced: Vec<_> = (0..300)
        .map(|_| w.host.connect(("127.0.0.1", 8080)))
        .collect();
    let sockets: Vec<_> = (0..300)
        .map(|_| crate::reach::udp_to(&w.peer, (HOST4, 8080)))
        .collect();
    for socket in &sockets {
        socket.send(b"x").expect("send");
    }
    let mut count = 0;
    let all_there = poll_until(SOON, || {
        let all = report();
        let flows = all["flows"].as_array().expect("flows");
        let mut distinct: Vec<String> = flows
            .iter()
            .map(|f| {
                format!(
                    "{} {} {} {}",
                    f["protocol"], f["way"], f["inside"], f["outside"]
                )
            })
            .collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), flows.len(), "no flow twice");
        count = flows.len();
        count >= 900
    });
    assert!(all_there, "{count} flows");
    // Who asks at the same time has to wait; who asked and does not read is not waited for.
    let together = || {
        let all: Vec<_> = (0..6)
            .map(|_| w.host.start_command(pesto_command(&["--json", SOCKET])))
            .collect();
        for each in all {
            let output = each.finish(SOON);
            assert_eq!((output.code, output.err.as_str()), (0, ""));
        }
    };
    together();
    let mut stopped = UnixStream::connect(SOCKET).expect("connect");
    let question = b"\xffpasst-rs\0\0\0\x01\x01";
    stopped.write_all(question).expect("ask for a report");
    together();
    drop((connections, spliced, sockets));
}

/// For people; without a terminal, block after block until it is stopped.
fn watch() {
    let w = World::direct();
    let g = guest(&w, &OPTIONS);
    echo(&g, (HOST4, 80));
    let mut stream = w.peer.connect((HOST4, 8080));
    let watching = w
        .host
        .start("exec timeout 4 /run/t/built/pesto --watch control.sock");
    let done = AtomicBool::new(false);
    let output = thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) && stream.write_all(b"x").is_ok() {
                stream.read_exact(&mut [0]).ok();
                thread::sleep(Duration::from_millis(5));
            }
        });
        let _end = Ending(&done);
        watching.finish(SOON)
    });
    assert!(
        output.out.matches("8080").count() >= 2,
        "at least two blocks:\n{}",
        output.both()
    );
    assert!(
        output.out.bytes().all(|b| b != 0x1b),
        "no control sequences without a terminal"
    );
}
