//! Name service: queries to the address given to the namespace reach the host's resolver.

use std::io::{Read, Write};

use crate::harness::{need, tests};
use crate::servers::{dns, echo};
use crate::world::{DNS4, DNS6, PEER4, World};

tests![
    forward,
    forward6,
    forward_to_host_loopback,
    forward_to_chosen_host,
    forward_port_853,
    other_ports_are_not_forwarded,
    direct,
    odd_resolv_conf,
    no_name_server,
];

#[track_caller]
fn expect_names(w: &World, args: &[&str], server: &str) {
    need("dig");
    let g = w.guest(args);
    let dig = format!("dig +time=2 +tries=2 +noall +answer @{server}");
    for how in ["", "+tcp"] {
        let a = g.sh(&format!("{dig} {how} www.example.org a"));
        assert!(a.contains("192.0.2.80"), "A {how}: {a}");
        let aaaa = g.sh(&format!("{dig} {how} www.example.org aaaa"));
        assert!(aaaa.contains("2001:db8::80"), "AAAA {how}: {aaaa}");
    }
    let long = g.sh(&format!("{dig} long.example.org txt"));
    assert!(
        long.len() > 2000,
        "truncated answers are asked for again by TCP: {long}"
    );
}

fn forward() {
    let w = World::direct();
    dns(&w.peer, DNS4);
    expect_names(&w, &["--dns-forward", "169.254.1.1"], "169.254.1.1");
}

fn forward6() {
    let w = World::direct();
    dns(&w.peer, DNS6);
    expect_names(&w, &["--dns-forward", "fd00::53"], "fd00::53");
}

/// The host's resolver listens on its loopback, as systemd-resolved does.
fn forward_to_host_loopback() {
    std::fs::write(
        "/run/t/resolv.conf",
        "# stub\noptions edns0 trust-ad\nnameserver 127.0.0.53\nsearch .\n",
    )
    .expect("tmpfs");
    let w = World::direct();
    dns(&w.host, "127.0.0.53");
    expect_names(
        &w,
        &["--dns-forward", "169.254.1.1", "--no-map-gw"],
        "169.254.1.1",
    );
}

fn forward_to_chosen_host() {
    let w = World::direct();
    dns(&w.peer, PEER4);
    expect_names(
        &w,
        &["--dns-forward", "169.254.1.1", "--dns-host", PEER4],
        "169.254.1.1",
    );
}

fn forward_port_853() {
    let w = World::direct();
    echo(&w.peer, (DNS4, 853));
    let g = w.guest(&["--dns-forward", "169.254.1.1"]);
    let mut stream = g.connect(("169.254.1.1", 853));
    stream.write_all(b"hello").expect("send");
    stream.read_exact(&mut [0; 5]).expect("an answer");
}

fn other_ports_are_not_forwarded() {
    let w = World::direct();
    echo(&w.peer, (DNS4, 80));
    let g = w.guest(&["--dns-forward", "169.254.1.1"]);
    g.connect_within(("169.254.1.1", 80), std::time::Duration::from_secs(1))
        .expect_err("only name service is forwarded");
}

fn direct() {
    let w = World::direct();
    dns(&w.peer, DNS4);
    expect_names(&w, &[], DNS4);
}

/// What is found in the wild: tabs, comments, unknown words, junk, scoped and mapped addresses, no last newline.
fn odd_resolv_conf() {
    let text = "; comment\n#another\n\nnameserver\nnameserver not-an-address\nnameserver\tfe80::1%host0\nfoo bar\n\
                options ndots:5\nsortlist 1.2.3.4\nsearch   one.example\ttwo.example   \nnameserver   203.0.113.53  ";
    std::fs::write("/run/t/resolv.conf", text).expect("tmpfs");
    let w = World::direct();
    dns(&w.peer, DNS4);
    let g = w.guest(&["--dns-forward", "169.254.1.1"]);
    std::fs::write("/run/t/resolv.conf", "").expect("tmpfs"); // dig is not as patient
    let answer = g.sh("dig +time=2 +short @169.254.1.1 www.example.org a");
    assert_eq!(answer, "192.0.2.80\n");
}

fn no_name_server() {
    std::fs::write("/run/t/resolv.conf", "").expect("tmpfs");
    let w = World::direct();
    w.guest(&["--dns-forward", "169.254.1.1"])
        .sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}
