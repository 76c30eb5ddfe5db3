//! Bad input and missing things: one clear line on stderr, exit status 1, nothing left behind.

use std::fs;

use nix::mount::{MsFlags, mount};

use crate::differences::established;
use crate::exec::{Output, SOON, nothing_left, poll_until, processes};
use crate::harness::{PASTA, tests};
use crate::world::{Netns, World};

tests![
    unknown_option,
    ambiguous_option,
    missing_argument,
    bad_addresses,
    bad_numbers,
    bad_names,
    bad_port_specs,
    contradictions,
    missing_namespace,
    not_a_namespace,
    missing_process,
    unwritable_pid_file,
    unwritable_log_file,
    unwritable_pcap_file,
    busy_tap,
    tap_without_permission,
    no_tun_device,
    no_user_namespaces,
    last_option_wins,
    getopt_habits;
    root: rootless_errors,
];

/// Status 1, nothing on stdout, exactly one line with all of `words` on stderr, and no process stays.
#[track_caller]
fn one_line(output: &Output, words: &[&str]) {
    assert_eq!(output.code, 1, "{}", output.both());
    let text = output.err.to_lowercase();
    for word in words {
        assert!(
            text.contains(&word.to_lowercase()),
            "`{word}` is not in:\n{}",
            output.err
        );
    }
    let lines: Vec<&str> = output
        .err
        .lines()
        .filter(|l| !l.trim().is_empty())
        .collect();
    assert!(
        established() || lines.len() == 1,
        "more than one line:\n{}",
        output.err
    );
    assert_eq!(output.out, "", "on stdout");
    nothing_left();
}

/// `pasta --config-net ARGS -- true`.
#[track_caller]
fn refused(w: &World, args: &[&str], words: &[&str]) {
    let mut all = vec!["--config-net"];
    all.extend(args);
    all.extend(["--", "touch", "/run/t/ran"]);
    let output = w.pasta(&all);
    assert!(
        !fs::exists("/run/t/ran").unwrap_or(true),
        "{args:?}: the command ran:\n{}",
        output.both()
    );
    eprintln!("{args:?}");
    one_line(&output, words);
}

fn unknown_option() {
    let w = World::direct();
    for option in ["--no-such-option", "--map-guest-addresses"] {
        let output = w.pasta(&["--config-net", option, "--", "true"]);
        assert_eq!(output.code, 1);
        assert!(
            output
                .err
                .contains(&format!("unrecognized option '{option}'")),
            "{}",
            output.err
        );
    }
    let output = w.pasta(&["-Z"]);
    assert_eq!(output.code, 1);
    assert!(
        output.err.contains("invalid option -- 'Z'"),
        "{}",
        output.err
    );
    nothing_left();
}

fn ambiguous_option() {
    let w = World::direct();
    let output = w.pasta(&["--no-", "--", "true"]);
    assert_eq!(output.code, 1);
    assert!(
        output.err.contains("option '--no-' is ambiguous"),
        "{}",
        output.err
    );
}

fn missing_argument() {
    let w = World::direct();
    let output = w.pasta(&["--address"]);
    assert_eq!(output.code, 1);
    assert!(
        output
            .err
            .contains("option '--address' requires an argument"),
        "{}",
        output.err
    );
    let output = w.pasta(&["-a"]);
    assert_eq!(output.code, 1);
    assert!(
        output.err.contains("option requires an argument -- 'a'"),
        "{}",
        output.err
    );
}

fn bad_addresses() {
    let w = World::direct();
    refused(&w, &["-a", "1.2.3"], &["address", "1.2.3"]);
    refused(&w, &["-a", "127.0.0.1"], &["127.0.0.1"]);
    refused(&w, &["-a", "1.2.3.4/33"], &["1.2.3.4/33"]);
    refused(&w, &["-g", "nonsense"], &["nonsense"]);
    refused(&w, &["-D", "nonsense"], &["nonsense"]);
    refused(&w, &["--dns-forward", "nonsense"], &["nonsense"]);
    refused(&w, &["--dns-host", "nonsense"], &["nonsense"]);
    refused(&w, &["-o", "nonsense"], &["nonsense"]);
    refused(&w, &["--map-host-loopback", "nonsense"], &["nonsense"]);
    refused(&w, &["--map-guest-addr", "nonsense"], &["nonsense"]);
    refused(&w, &["-M", "zz:00"], &["MAC", "zz:00"]);
    refused(&w, &["--ns-mac-addr", "zz:00"], &["MAC", "zz:00"]);
}

fn bad_numbers() {
    let w = World::direct();
    refused(&w, &["-n", "33", "-a", "1.2.3.4"], &["33"]);
    refused(
        &w,
        &["-n", "255.0.255.0", "-a", "1.2.3.4"],
        &["255.0.255.0"],
    );
    refused(&w, &["-m", "nonsense"], &["MTU", "nonsense"]);
    refused(&w, &["-m", "70000"], &["MTU", "70000"]);
    refused(
        &w,
        &["--log-size", "1", "-l", "/run/t/x"],
        &["log-size", "1"],
    );
    if !established() {
        refused(&w, &["-f", "--stats", "x"], &["stats", "x"]); // it takes any word for a number
    }
}

fn bad_names() {
    let w = World::direct();
    refused(&w, &["-i", "nosuch0"], &["interface", "nosuch0"]);
    refused(
        &w,
        &["-I", "muchtoolongforaninterface"],
        &["interface", "muchtoolong"],
    );
    refused(
        &w,
        &["--outbound-if4", "muchtoolongforaninterface"],
        &["interface", "muchtoolong"],
    );
    refused(&w, &["--runas", "no-such-login"], &["no-such-login"]);
    if !established() {
        refused(&w, &["-I", "a\x1b[31m"], &["interface", "a?[31m"]);
        refused(&w, &["-i", "a\nb"], &["interface", "a?b"]);
        refused(&w, &["-l", "/nowhere/\x1b[31m"], &["/nowhere/?[31m"]);
    }
}

fn bad_port_specs() {
    let w = World::direct();
    for (spec, word) in [
        ("1/2/3/4", "1/2/3/4"),
        ("99999", "99999"),
        ("5-2", "5-2"),
        ("80:0", "port 0"),
        ("x", "x"),
        ("80-81:90-92", "80-81:90-92"),
        ("1.2.3/80", "1.2.3"),
    ] {
        for option in ["-t", "-u", "-T", "-U"] {
            refused(&w, &[option, spec], &[word]);
        }
    }
}

fn contradictions() {
    let w = World::direct();
    refused(
        &w,
        &["--no-splice", "--splice-only"],
        &["--splice-only", "--no-splice"],
    );
    let output = w.pasta(&["--no-copy-addrs", "--", "true"]);
    assert_eq!(output.code, 1);
    assert!(output.err.contains("config-net"), "{}", output.err);
    refused(
        &w,
        &["--no-dhcp-dns"],
        &["--no-dhcp-dns", "passt mode only"],
    );
    refused(
        &w,
        &["--no-dhcp-search"],
        &["--no-dhcp-search", "passt mode only"],
    );
    one_line(
        &w.pasta(&["-q", "--stats", "1", "--netns", "/run/netns/host"]),
        &["foreground"],
    );
    refused(&w, &["--netns", "/run/netns/host"], &["netns"]);
}

fn missing_namespace() {
    let w = World::direct();
    one_line(
        &w.pasta(&["-q", "--config-net", "--netns", "/run/netns/missing"]),
        &["/run/netns/missing", "No such file or directory"],
    );
    one_line(
        &w.pasta(&["-q", "--config-net", "--netns", "missing"]),
        &["missing", "No such file or directory"],
    );
    one_line(
        &w.pasta(&[
            "-q",
            "--config-net",
            "--userns",
            "/nowhere/user",
            "--netns",
            "/run/netns/host",
        ]),
        &["/nowhere/user", "No such file or directory"],
    );
}

fn not_a_namespace() {
    let w = World::direct();
    one_line(
        &w.pasta(&["-q", "--config-net", "--netns", "/etc/passwd"]),
        if established() {
            &["namespace"]
        } else {
            &[
                "Couldn't switch to pasta namespaces: Invalid argument",
                "/etc/passwd is not a network namespace",
            ]
        },
    );
}

fn missing_process() {
    let w = World::direct();
    one_line(
        &w.pasta(&["-q", "--config-net", "99999"]),
        &["99999", "No such file or directory"],
    );
}

fn unwritable_pid_file() {
    let w = World::direct();
    let ns = Netns::new("guest");
    one_line(
        &w.pasta(&[
            "-q",
            "--config-net",
            "-P",
            "/nonexistent/pid",
            "--netns",
            &ns.path(),
        ]),
        &["PID file", "/nonexistent/pid", "No such file or directory"],
    );
    // It can be opened, and the failure comes when everything else is ready.
    one_line(
        &w.pasta(&[
            "-q",
            "--config-net",
            "-P",
            "/dev/full",
            "--netns",
            &ns.path(),
        ]),
        &["PID file", "No space left on device"],
    );
    assert!(!ns.sh("ip -o link").contains("host0"));
    if established() {
        return;
    }
    // A failed start leaves what was there: it may be another one's.
    fs::write("/run/t/other.pid", "4711\n").expect("tmpfs");
    one_line(
        &w.pasta(&[
            "-q",
            "--config-net",
            "-P",
            "/run/t/other.pid",
            "--netns",
            "missing",
        ]),
        &["missing"],
    );
    assert_eq!(
        fs::read_to_string("/run/t/other.pid").expect("still there"),
        "4711\n"
    );
    // And a successful one leaves nothing of it.
    fs::write("/run/t/other.pid", "1234567890\n".repeat(10)).expect("tmpfs");
    w.pasta(&[
        "-q",
        "-f",
        "--config-net",
        "-P",
        "/run/t/other.pid",
        "--",
        "true",
    ])
    .ok();
    let text = fs::read_to_string("/run/t/other.pid").expect("a PID file");
    assert_eq!(text.lines().count(), 1, "{text}");
}

fn unwritable_log_file() {
    let w = World::direct();
    one_line(
        &w.pasta(&["-q", "--config-net", "-l", "/nonexistent/log", "--", "true"]),
        &["log file", "/nonexistent/log", "No such file"],
    );
}

fn unwritable_pcap_file() {
    let w = World::direct();
    let output = w.pasta(&[
        "-q",
        "--config-net",
        "-p",
        "/nonexistent/pcap",
        "--",
        "true",
    ]);
    if !established() {
        one_line(
            &output,
            &["pcap", "/nonexistent/pcap", "No such file or directory"],
        );
    }
}

/// A second pasta for a namespace that has one: no harm to the first.
fn busy_tap() {
    let w = World::direct();
    let g = w.guest(&[]);
    let before = processes();
    let output = w.pasta(&[
        "-q",
        "--config-net",
        "--netns",
        &g.path(),
        "-P",
        "/run/t/second.pid",
    ]);
    assert_eq!(output.code, 1, "{}", output.both());
    assert!(
        output
            .err
            .to_lowercase()
            .contains("device or resource busy"),
        "{}",
        output.err
    );
    assert!(
        established() || output.err.lines().count() == 1,
        "{}",
        output.err
    );
    assert!(
        poll_until(SOON, || processes().iter().all(|p| before.contains(p))),
        "{:?} before, {:?} after",
        before,
        processes()
    );
    g.sh(&format!("ping -n -c 1 -W 30 {}", crate::world::PEER4));
}

/// An interface of that name exists, and is no tap.
fn tap_without_permission() {
    let w = World::direct();
    let ns = Netns::new("guest");
    ns.sh("ip link add tap0 type veth peer name tap1");
    one_line(
        &w.pasta(&["-q", "--config-net", "-I", "tap0", "--netns", &ns.path()]),
        if established() { &[] } else { &["tap0"] },
    );
    ns.sh("ip link show tap0");
}

fn no_tun_device() {
    let w = World::direct();
    mount(
        Some("none"),
        "/dev/net",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .expect("hide /dev/net/tun");
    one_line(
        &w.pasta(&["-q", "--config-net", "--", "true"]),
        &["/dev/net/tun", "No such file or directory"],
    );
}

fn no_user_namespaces() {
    let w = World::direct();
    fs::write("/proc/sys/user/max_user_namespaces", "0").expect("our own limit");
    one_line(
        &w.pasta(&["-q", "--config-net", "--", "true"]),
        &["user namespace"],
    );
}

fn last_option_wins() {
    let w = World::direct();
    let seen = w
        .inside(
            &["-I", "one", "-m", "1300", "-I", "two", "-m", "1400"],
            "ip link",
        )
        .ok();
    assert!(
        seen.contains("two: ") && !seen.contains("one: ") && seen.contains("mtu 1400"),
        "{seen}"
    );
}

/// Abbreviated long options, `=`, bundled short ones, values glued to their option.
fn getopt_habits() {
    let w = World::direct();
    let seen = w
        .pasta(&[
            "-qf4",
            "--config-n",
            "--ns-if=tap5",
            "-m1400",
            "--tcp-p=none",
            "--",
            "ip",
            "addr",
        ])
        .ok();
    assert!(
        seen.contains("tap5: ") && seen.contains("mtu 1400"),
        "{seen}"
    );
    assert!(!seen.contains("2001:db8"), "{seen}");
    let help = w.pasta(&["-h"]);
    assert_eq!(help.code, 0);
    assert!(help.both().to_lowercase().contains("usage"), "{help:?}");
}

/// The same, for somebody without any privilege.
fn rootless_errors() {
    use std::os::unix::process::CommandExt;
    let w = World::direct();
    let ns = Netns::new("guest");
    let as_user = |args: &[&str]| {
        let mut command = std::process::Command::new(PASTA);
        command.args(args).uid(4242).gid(4242);
        crate::exec::run(command, SOON)
    };
    one_line(
        &as_user(&["-q", "--config-net", "--netns", &ns.path()]),
        &["namespace", "not permitted"],
    );
    one_line(
        &as_user(&["-q", "--config-net", "-P", "/run/t/pid", "--", "true"]),
        &["PID file", "/run/t/pid", "Permission denied"],
    );
    drop(w);
}
