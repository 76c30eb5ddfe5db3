//! Listening: what must bind, what may fail, what stands in the way, how many, and starting over.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;

use nix::sys::signal::Signal;

use crate::exec::{Output, SOON, nothing_left, poll_until, processes};
use crate::harness::{PASTA, tests};
use crate::reach::{
    FAMILIES, Family, Protocol, Server, WAYS, Way, listening, reachable_within, try_reach,
};
use crate::servers::echo;
use crate::world::{HOST4, HOST6, Netns, World, accept};
use Protocol::{Tcp, Udp};
use Way::{Loopback, Tap};

tests![
    busy_port,
    busy_port_udp,
    busy_in_a_range,
    busy_address,
    busy_beside_best_effort,
    busy_in_the_namespace,
    address_not_local,
    no_such_interface,
    conflicts,
    refused_rules,
    best_effort_leaves_out_what_is_busy,
    best_effort_without_any_port,
    freebind,
    freebind_udp,
    all_under_a_small_limit,
    ranges_over_the_limit,
    limit_leaves_room_for_connections,
    many_rules,
    too_many_rules,
    low_ports,
    restart,
    restart_under_load,
    restart_after_a_kill,
    two_instances,
];

/// Starts it with these options for a namespace; it must refuse.
#[track_caller]
fn refused(w: &World, options: &[&str]) -> String {
    let ns = Netns::new("refused");
    let mut all = vec![
        "--config-net",
        "-q",
        "-t",
        "none",
        "-u",
        "none",
        "-T",
        "none",
        "-U",
        "none",
    ];
    all.extend(options);
    let path = ns.path();
    all.extend(["--netns", &path]);
    let Output { code, out, err } = w.pasta(&all);
    Netns::retire("refused");
    assert_eq!((code, out.as_str()), (1, ""), "{options:?}:\n{err}");
    nothing_left();
    err
}

#[track_caller]
fn refused_with(w: &World, options: &[&str], message: &str) {
    let err = refused(w, options);
    assert!(
        err.contains(message),
        "{options:?}: `{message}` is not in:\n{err}"
    );
}

fn busy_port() {
    let w = World::direct();
    let _busy = w.host.listen(("::", 8777));
    let _v4 = w.host.listen(("127.0.0.1", 8778));
    for (spec, name) in [
        ("8777", "*/8777"),
        ("8777-8777:80-80", "*/8777"),
        ("8778", "*/8778"),
        ("127.0.0.1/8777", "127.0.0.1/8777"),
    ] {
        let said = refused(&w, &["-t", spec]);
        let expected = format!(
            "Listen failed for HOST TCP port {name}: Address already in use\nCouldn't listen on requested ports\n"
        );
        assert_eq!(said, expected, "{spec}");
    }
}

fn busy_port_udp() {
    let w = World::direct();
    let _busy = w.host.udp(("::", 8777));
    refused_with(
        &w,
        &["-u", "8777"],
        "Listen failed for HOST UDP port */8777: Address already in use\nCouldn't listen on requested ports\n",
    );
    // The other protocol's ports are others.
    let _g = w.guest(&["-t", "8777"]);
}

/// Of what was bound before the failure, nothing stays.
fn busy_in_a_range() {
    let w = World::direct();
    let busy = w.host.listen(("::", 8777));
    refused_with(
        &w,
        &["-t", "8770-8780"],
        "HOST TCP port */8777: Address already in use",
    );
    refused_with(
        &w,
        &["-t", "8700,8777"],
        "HOST TCP port */8777: Address already in use",
    );
    assert_eq!(listening(&w.host, Tcp), [8777]);
    drop(busy);
    let _g = w.guest(&["-t", "8770-8780"]);
    assert_eq!(listening(&w.host, Tcp), (8770..=8780).collect::<Vec<u16>>());
}

/// Another address's listener is in nobody's way.
fn busy_address() {
    let w = World::direct();
    let _busy = w.host.listen((HOST4, 8777));
    refused_with(
        &w,
        &["-t", "0.0.0.0/8777"],
        "0.0.0.0/8777: Address already in use",
    );
    let g = w.guest(&["-t", "127.0.0.1/8777", "-t", "::1/8777"]);
    let _servers = FAMILIES.map(|f| Server::tcp(&g, (f.host(), 8777)));
    for family in FAMILIES {
        reachable_within(SOON, Tcp, &w.host, (family.loopback(), 8777));
    }
}

/// A port named in so many words must bind, whatever stands beside it.
fn busy_beside_best_effort() {
    let w = World::direct();
    let _busy = w.host.listen(("::", 8777));
    refused_with(
        &w,
        &["-t", "9000-9010,~9005", "-t", "8777"],
        "*/8777: Address already in use",
    );
}

/// -T listens inside, where somebody may be already.
fn busy_in_the_namespace() {
    let w = World::direct();
    let ns = Netns::new("guest");
    ns.sh("ip link set lo up");
    let busy = ns.listen(("127.0.0.1", 8777));
    let path = ns.path();
    let start = |spec: &str| {
        let options = [
            "--config-net",
            "-q",
            "-t",
            "none",
            "-u",
            "none",
            "-T",
            spec,
            "-U",
            "none",
        ];
        w.pasta(&[&options[..], &["--netns", &path]].concat())
    };
    let output = start("8777");
    assert_eq!(output.code, 1);
    let message = "Listen failed for SPLICE TCP port *%lo/8777: Address already in use";
    assert!(output.err.contains(message), "{}", output.err);
    nothing_left();
    drop(busy);
    assert_eq!(start("8777").both(), "");
    assert_eq!(listening(&ns, Tcp), [8777]);
}

fn address_not_local() {
    let w = World::direct();
    for (spec, name) in [
        ("192.0.2.200/8778", "192.0.2.200/8778"),
        ("2001:db8::77/8778", "2001:db8::77/8778"),
        ("[2001:db8::77]/8778", "2001:db8::77/8778"),
    ] {
        let message = format!(
            "Listen failed for HOST TCP port {name}: Cannot assign requested address\nCouldn't listen on requested ports\n"
        );
        refused_with(&w, &["-t", spec], &message);
    }
}

fn no_such_interface() {
    let w = World::direct();
    refused_with(
        &w,
        &["-t", "%nope/8778"],
        "port *%nope/8778: No such device",
    );
}

/// The message of a conflict shows both rules.
fn conflicts() {
    let w = World::direct();
    for (options, rules) in [
        (
            &["-t", "8000", "-t", "7999-8001"][..],
            ["TCP [*]:8000", "TCP [*]:7999-8001"],
        ),
        (&["-t", "8000,8000:80"], ["=>  8000", "=>  80"]),
        (
            &["-t", "127.0.0.1/8000", "-t", "8000"],
            ["TCP [127.0.0.1]:8000", "TCP [*]:8000"],
        ),
        (
            &["-u", "0.0.0.0/53", "-u", "127.0.0.1/53:54"],
            ["UDP [0.0.0.0]:53", "UDP [127.0.0.1]:53"],
        ),
        (
            &["-T", "8000", "-T", "8000:80"],
            ["TCP [*]%lo:8000  =>  8000", "TCP [*]%lo:8000  =>  80"],
        ),
    ] {
        let said = refused(&w, options);
        assert!(
            said.contains("conflict") && rules.iter().all(|r| said.contains(r)),
            "{options:?}: {rules:?} are not in:\n{said}"
        );
    }
    assert_eq!(listening(&w.host, Tcp), Vec::<u16>::new());
    // These only look alike.
    let _g = w.guest(&[
        "-t",
        "127.0.0.1/8000",
        "-t",
        "127.0.0.2/8000",
        "-t",
        "::1/8000",
        "-u",
        "8000",
    ]);
}

fn refused_rules() {
    let w = World::direct();
    for (options, message) in [
        (&["-t", "0.0.0.0/80:0"][..], "port 0"),
        (&["-t", "0.0.0.0/8080:224.0.0.1/80"], "Multicast"),
        (&["-t", "8080:192.0.2.1/80"], "Did you mean 0.0.0.0/"),
        (&["-T", "127.0.0.1/80"], "Listening address not allowed"),
        (&["-4", "-t", "::1/80"], "IPv6"),
        (&["-6", "-t", "0.0.0.0/80"], "IPv4"),
        (&["-t", "70000"], "Invalid port specifier '70000'"),
        (&["-t", "80", "-t", "none"], "none conflicts"),
        (&["--no-splice", "--splice-only"], "--splice-only"),
        (&["--no-splice", "--host-lo-to-ns-lo"], "--no-splice"),
    ] {
        refused_with(&w, options, message);
    }
}

fn best_effort_leaves_out_what_is_busy() {
    let w = World::direct();
    let _busy = w.host.listen(("::", 8777));
    let _other = w.host.listen(("127.0.0.1", 8778));
    // All ports but these: 8770 to 8780.
    let g = w.guest(&["-t", "~1-8769,~8781-65535"]);
    let expected: Vec<u16> = (8770..=8780).collect();
    assert_eq!(listening(&w.host, Tcp), expected);
    let _server = Server::tcp(&g, (HOST4, 8776));
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 8776));
}

fn best_effort_without_any_port() {
    let w = World::direct();
    let _busy = w.host.listen(("::", 9000));
    let said = refused(&w, &["-t", "~1-8999,~9001-65535"]);
    assert!(
        said.contains("failed for HOST TCP ")
            && said.contains("*/9000")
            && said.ends_with("\nCouldn't listen on requested ports\n"),
        "{said}"
    );
}

/// Addresses that the host does not have yet.
fn freebind() {
    let w = World::direct();
    let g = w.guest(&[
        "--freebind",
        "-t",
        "198.51.100.5/8080",
        "-t",
        "2001:db8:51::5/8080",
    ]);
    let _servers = FAMILIES.map(|f| Server::tcp(&g, (f.host(), 8080)));
    w.host
        .sh("ip addr add 198.51.100.5/24 dev host0; ip addr add 2001:db8:51::5/64 dev host0 nodad");
    for to in ["198.51.100.5", "2001:db8:51::5"] {
        reachable_within(SOON, Tcp, &w.peer, (to, 8080));
    }
}

/// For datagrams the answer has to leave from there, too.
fn freebind_udp() {
    let w = World::direct();
    let g = w.guest(&[
        "--freebind",
        "-u",
        "198.51.100.5/8080",
        "-u",
        "2001:db8:51::5/8080",
    ]);
    let _servers = FAMILIES.map(|f| Server::udp(&g, (f.host(), 8080)));
    w.host
        .sh("ip addr add 198.51.100.5/24 dev host0; ip addr add 2001:db8:51::5/64 dev host0 nodad");
    for to in ["198.51.100.5", "2001:db8:51::5"] {
        reachable_within(SOON, Udp, &w.peer, (to, 8080));
    }
}

/// Starts it under a limit of open files; exit status and messages.
#[track_caller]
fn limited(w: &World, files: usize, options: &str) -> (Netns, Output) {
    let ns = Netns::new("guest");
    let output = w.host.try_sh(&format!(
        "ulimit -n {files}; exec {PASTA} --config-net -q -u none -T none -U none {options} --netns {}",
        ns.path()
    ));
    (ns, output)
}

/// As many ports as the descriptors allow, lowest first, and one line that says how many are missing.
fn all_under_a_small_limit() {
    let w = World::direct();
    let (ns, output) = limited(&w, 1000, "-t all");
    assert_eq!(output.code, 0, "{}", output.both());
    let lines: Vec<&str> = output.err.lines().collect();
    assert_eq!(lines.len(), 1, "one line of warning:\n{}", output.err);
    let open = listening(&w.host, Tcp);
    assert!((300..=950).contains(&open.len()), "{} ports", open.len());
    let last = u16::try_from(open.len()).expect("few");
    assert_eq!(open, (1..=last).collect::<Vec<u16>>(), "the lowest ports");
    // All but the ephemeral ones.
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("procfs");
    let range: Vec<usize> = range
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    let asked = 65_535 - (range[1] + 1 - range[0]);
    let missing: Vec<usize> = lines[0]
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(
        missing.contains(&(asked - open.len())),
        "{} ports are open, but it says: {}",
        open.len(),
        lines[0]
    );
    echo(&ns, (HOST4, 80));
    many_connections(&w, 100);
}

/// What has been asked for in so many words is an error when it does not fit.
fn ranges_over_the_limit() {
    let w = World::direct();
    let (ns, output) = limited(&w, 1000, "-t 1-2000");
    assert_eq!(output.code, 1, "{}", output.both());
    assert!(output.err.contains("HOST"), "{}", output.err);
    nothing_left();
    drop(ns);
}

fn limit_leaves_room_for_connections() {
    let w = World::direct();
    let (ns, output) = limited(&w, 1000, "-t 1-500");
    assert_eq!((output.code, output.both().as_str()), (0, ""));
    echo(&ns, (HOST4, 80));
    many_connections(&w, 150);
}

#[track_caller]
fn many_connections(w: &World, n: usize) {
    use std::io::{Read, Write};
    let mut all: Vec<_> = (0..n).map(|_| w.peer.connect((HOST4, 80))).collect();
    for (i, stream) in all.iter_mut().enumerate() {
        stream.write_all(b"x").expect("send");
        let told = stream.read_exact(&mut [0]);
        assert!(told.is_ok(), "connection {i}: {told:?}");
    }
}

fn many_rules() {
    let w = World::direct();
    let spec = (0..255).fold(String::new(), |mut all, i| {
        let _ = write!(all, "{},", 8000 + 2 * i);
        all
    });
    let g = w.guest(&["-t", spec.trim_end_matches(',')]);
    let _server = Server::tcp(&g, (HOST6, 8508));
    reachable_within(SOON, Tcp, &w.peer, (HOST6, 8508));
    assert_eq!(listening(&w.host, Tcp).len(), 255);
}

fn too_many_rules() {
    let w = World::direct();
    let spec = (0..256).fold(String::new(), |mut all, i| {
        let _ = write!(all, "{},", 8000 + 2 * i);
        all
    });
    refused_with(
        &w,
        &["-t", spec.trim_end_matches(',')],
        "Too many rules (maximum 255)",
    );
}

fn low_ports() {
    let w = World::direct();
    let g = w.guest(&["-t", "80", "-u", "53", "-T", "81"]);
    let _server = Server::tcp(&g, (HOST4, 80));
    reachable_within(SOON, Tcp, &w.peer, (HOST4, 80));
    let _inside = Server::tcp(&w.host, ("127.0.0.1", 81));
    reachable_within(SOON, Tcp, &g, ("127.0.0.1", 81));
}

/// `podman restart`: the next one wants the same ports while the last one is still noticing its end.
fn restart() {
    let w = World::direct();
    for round in 0..5 {
        let ns = Netns::new("each");
        let pasta = w.attach(&ns, &["--config-net", "-t", "8080", "-u", "8080"]);
        let _server = Server::tcp(&ns, (HOST4, 8080));
        for way in WAYS {
            let (client, to) = way.client(&w, Family::V4);
            let told = try_reach(Tcp, client, (to, 8080));
            assert!(told.is_ok(), "round {round} {way:?}: {told:?}");
        }
        Netns::retire("each");
        std::mem::forget(pasta); // goes by itself, when it has noticed
    }
    assert!(
        poll_until(SOON, || processes().is_empty()),
        "left behind: {:?}",
        processes()
    );
    assert_eq!(listening(&w.host, Tcp), Vec::<u16>::new());
}

/// The same with connections that are open, or in TIME-WAIT, on either side.
fn restart_under_load() {
    let w = World::direct();
    let mut open = vec![];
    for _ in 0..3 {
        let ns = Netns::new("each");
        let pasta = w.attach(&ns, &["--config-net", "-t", "8080"]);
        let listener = ns.listen((HOST4, 8080));
        for way in WAYS {
            let (client, to) = way.client(&w, Family::V4);
            for side in 0..3 {
                let near = client.connect((to, 8080));
                let (far, _) = accept(&listener);
                match side {
                    0 => drop(near),
                    1 => drop(far),
                    _ => open.push((near, far)),
                }
            }
        }
        Netns::retire("each");
        std::mem::forget(pasta);
    }
    let ns = Netns::new("each");
    let _pasta = w.attach(&ns, &["--config-net", "-t", "8080"]);
}

fn restart_after_a_kill() {
    let w = World::direct();
    for _ in 0..3 {
        let g = Netns::new("each");
        let pasta = w.attach(&g, &["--config-net", "-t", "8080", "-u", "8080"]);
        let listener = g.listen((HOST4, 8080));
        let _near = w.peer.connect((HOST4, 8080));
        let _far = accept(&listener);
        pasta.stop(Signal::SIGKILL);
        nothing_left();
        Netns::retire("each");
    }
}

/// Each has its own ports; the second's mistakes do not hurt the first.
fn two_instances() {
    let w = World::direct();
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let _first = w.attach(&a, &["--config-net", "-t", "8080"]);
    let output = w.pasta(&[
        "--config-net",
        "-q",
        "-t",
        "8080",
        "-u",
        "none",
        "-T",
        "none",
        "-U",
        "none",
        "--netns",
        &b.path(),
    ]);
    assert_eq!(output.code, 1, "{}", output.both());
    let _second = w.attach(&b, &["--config-net", "-t", "8081:8080"]);
    let (in_a, in_b) = (
        Server::tcp(&a, (HOST4, 8080)),
        Server::tcp(&b, (HOST4, 8080)),
    );
    for way in [Tap, Loopback] {
        let (client, to) = way.client(&w, Family::V4);
        for (port, server) in [(8080, &in_a), (8081, &in_b)] {
            crate::reach::exchange(client.connect((to, port)), 1000);
            assert_eq!(server.seen().bytes, Ok(1000));
        }
    }
    let told = try_reach(Tcp, &w.peer, (HOST4, 8082));
    assert_eq!(told, Err(ErrorKind::ConnectionRefused));
}
