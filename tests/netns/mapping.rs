//! Which host address a destination inside stands for: the host's loopback and the guest's own address outside.

use std::io::{ErrorKind, Read, Write};

use crate::harness::tests;
use crate::servers::{echo, udp_echo};
use crate::world::{GATEWAY4, GATEWAY6, Guest, HOST4, HOST6, World, accept};

tests![
    gateway_is_host_loopback,
    no_map_gw,
    map_host_loopback,
    map_host_loopback_none,
    map_guest_addr,
    own_address_is_the_guest_itself,
    no_tcp,
    no_udp,
    no_icmp,
];

/// Does the server at the other end of (address, port) answer `who`?
#[track_caller]
fn reaches(g: &Guest, addr: &str, port: u16) -> Result<String, ErrorKind> {
    let mut stream = g.try_connect((addr, port)).map_err(|e| e.kind())?;
    let mut name = String::new();
    stream.read_to_string(&mut name).map_err(|e| e.kind())?;
    Ok(name)
}

/// A server that says its name to everybody.
fn named(ns: &crate::world::Netns, addr: &str, port: u16, name: &'static str) {
    crate::servers::serve(ns.listen((addr, port)), move |mut s| {
        s.write_all(name.as_bytes()).ok();
    });
}

fn gateway_is_host_loopback() {
    let w = World::direct();
    named(&w.host, "127.0.0.1", 1000, "host loopback");
    named(&w.host, "::1", 1000, "host loopback 6");
    named(&w.peer, GATEWAY4, 1000, "gateway");
    udp_echo(&w.host, ("127.0.0.1", 1001));
    let g = w.guest(&[]);
    assert_eq!(reaches(&g, GATEWAY4, 1000).as_deref(), Ok("host loopback"));
    assert_eq!(
        reaches(&g, GATEWAY6, 1000).as_deref(),
        Ok("host loopback 6")
    );
    let socket = g.udp("0.0.0.0:0");
    socket.send_to(b"x", (GATEWAY4, 1001)).expect("send");
    let (_, from) = socket.recv_from(&mut [0; 10]).expect("an answer");
    assert_eq!(from.to_string(), format!("{GATEWAY4}:1001"));
    g.sh(&format!("ping -n -c 1 -W 30 {GATEWAY4}"));
}

fn no_map_gw() {
    let w = World::direct();
    named(&w.host, "127.0.0.1", 1000, "host loopback");
    named(&w.peer, GATEWAY4, 1000, "gateway");
    named(&w.peer, GATEWAY6, 1000, "gateway 6");
    named(&w.host, "127.0.0.1", 1001, "host loopback");
    let g = w.guest(&["--no-map-gw"]);
    assert_eq!(reaches(&g, GATEWAY4, 1000).as_deref(), Ok("gateway"));
    assert_eq!(reaches(&g, GATEWAY6, 1000).as_deref(), Ok("gateway 6"));
    assert_eq!(
        reaches(&g, GATEWAY4, 1001),
        Err(ErrorKind::ConnectionRefused)
    );
}

fn map_host_loopback() {
    let w = World::direct();
    named(&w.host, "127.0.0.1", 1000, "host loopback");
    named(&w.host, "::1", 1000, "host loopback 6");
    named(&w.peer, GATEWAY4, 1000, "gateway");
    let g = w.guest(&[
        "--map-host-loopback",
        "192.0.2.200",
        "--map-host-loopback",
        "2001:db8:51::200",
    ]);
    assert_eq!(
        reaches(&g, "192.0.2.200", 1000).as_deref(),
        Ok("host loopback")
    );
    assert_eq!(
        reaches(&g, "2001:db8:51::200", 1000).as_deref(),
        Ok("host loopback 6")
    );
    assert_eq!(reaches(&g, GATEWAY4, 1000).as_deref(), Ok("gateway"));
}

fn map_host_loopback_none() {
    let w = World::direct();
    named(&w.host, "127.0.0.1", 1000, "host loopback");
    named(&w.peer, GATEWAY4, 1000, "gateway");
    let g = w.guest(&["--map-host-loopback", "none"]);
    assert_eq!(reaches(&g, GATEWAY4, 1000).as_deref(), Ok("gateway"));
}

/// host.containers.internal: the host by its own address, not its loopback.
fn map_guest_addr() {
    let w = World::direct();
    let own = w.host.listen((HOST4, 1000));
    named(&w.host, "127.0.0.1", 1001, "host loopback");
    named(&w.host, HOST6, 1000, "host 6");
    udp_echo(&w.host, (HOST4, 1002));
    let g = w.guest(&[
        "--no-map-gw",
        "--map-guest-addr",
        "169.254.1.2",
        "--map-guest-addr",
        "2001:db8:51::201",
    ]);
    let near = g.connect(("169.254.1.2", 1000));
    let (_far, from) = accept(&own);
    assert_eq!(
        from.ip().to_string(),
        HOST4,
        "where the host sees it come from"
    );
    drop(near);
    assert_eq!(
        reaches(&g, "2001:db8:51::201", 1000).as_deref(),
        Ok("host 6")
    );
    assert_eq!(
        reaches(&g, "169.254.1.2", 1001),
        Err(ErrorKind::ConnectionRefused),
        "the host's loopback stays private"
    );
    let socket = g.udp("0.0.0.0:0");
    socket.send_to(b"x", ("169.254.1.2", 1002)).expect("send");
    let (_, from) = socket.recv_from(&mut [0; 10]).expect("an answer");
    assert_eq!(from.to_string(), "169.254.1.2:1002");
}

fn own_address_is_the_guest_itself() {
    let w = World::direct();
    echo(&w.host, (HOST4, 1000));
    let g = w.guest(&[]);
    assert_eq!(reaches(&g, HOST4, 1000), Err(ErrorKind::ConnectionRefused));
}

fn no_tcp() {
    let w = World::direct();
    named(&w.peer, GATEWAY4, 1000, "gateway");
    udp_echo(&w.peer, (GATEWAY4, 1000));
    let g = w.guest(&["--no-tcp", "--no-map-gw"]);
    let socket = g.udp("0.0.0.0:0");
    socket.send_to(b"x", (GATEWAY4, 1000)).expect("send");
    socket.recv_from(&mut [0; 10]).expect("UDP works");
    let output = g.try_sh(&format!(
        "curl -sS --connect-timeout 1 http://{GATEWAY4}:1000"
    ));
    assert_ne!(output.code, 0, "TCP is off");
}

fn no_udp() {
    let w = World::direct();
    named(&w.peer, GATEWAY4, 1000, "gateway");
    udp_echo(&w.peer, (GATEWAY4, 1000));
    let g = w.guest(&["--no-udp", "--no-map-gw"]);
    assert_eq!(reaches(&g, GATEWAY4, 1000).as_deref(), Ok("gateway"));
    let socket = g.udp("0.0.0.0:0");
    socket
        .set_read_timeout(Some(std::time::Duration::from_millis(500)))
        .expect("a socket option");
    socket.send_to(b"x", (GATEWAY4, 1000)).expect("send");
    socket.recv_from(&mut [0; 10]).expect_err("UDP is off");
}

fn no_icmp() {
    let w = World::direct();
    named(&w.peer, GATEWAY4, 1000, "gateway");
    let g = w.guest(&["--no-icmp", "--no-map-gw"]);
    assert_eq!(reaches(&g, GATEWAY4, 1000).as_deref(), Ok("gateway"));
    assert_eq!(g.try_sh(&format!("ping -n -c 1 -W 1 {GATEWAY4}")).code, 1);
}
