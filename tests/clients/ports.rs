//! Published ports, in all the forms podman has for them.
//!
//! podman writes each as `-t` or `-u [ADDRESS/]HOST-HOST:CONTAINER-CONTAINER`; an IPv6 address loses its brackets.
//! What a form means is told by two things: the sockets on the host, and who reaches which server.

use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::container::{Container, INTERNAL, Seen, tcp, udp};
use crate::exec::{SOON, poll_until};
use crate::harness::tests;
use crate::machine::Machine;
use crate::world::{GATEWAY4, GATEWAY6, HOST4, HOST6, Netns, PEER4, PEER6};

tests![; root: single, ranges, bound, families, many, chosen, nobody_listens, inbound_addresses, on_the_command_line, one_at_a_time];

const LO4: &str = "127.0.0.1";
const LO6: &str = "::1";

/// Sockets on the host: "tcp 127.0.0.1:80".
fn sockets(m: &Machine) -> Vec<String> {
    let all = m.world.host.sh("ss -Htuln");
    let mut all: Vec<String> = all
        .lines()
        .filter_map(|l| {
            let mut fields = l.split_whitespace();
            let kind = fields.next()?;
            Some(format!("{kind} {}", fields.nth(3)?))
        })
        .collect();
    all.sort_unstable();
    all
}

/// A container with OPTIONS and servers on ports 80 to 82; the host has exactly these sockets for it.
#[track_caller]
fn published<'a>(m: &'a Machine, options: &str, expected: &[&str]) -> Container<'a> {
    // Its predecessor's may still be there, whose container is gone.
    let c = Container::run(m, "c", options);
    let mut seen = Vec::new();
    let right = poll_until(SOON, || {
        seen = sockets(m);
        seen == expected
    });
    assert!(right, "{options}: {seen:?}");
    for port in 80..=82 {
        c.tell(("::", port));
    }
    c
}

type Way = fn(&Netns, (&str, u16)) -> Result<Seen, ErrorKind>;

/// The port of the container's server that answers there.
#[track_caller]
fn reaches(ns: &Netns, way: Way, addr: (&str, u16), expected: u16) {
    let answer = way(ns, addr);
    assert_eq!(answer.map(|s| s.to.port()), Ok(expected), "{addr:?}");
}

#[track_caller]
fn refuses(ns: &Netns, way: Way, addr: (&str, u16)) {
    assert_eq!(way(ns, addr), Err(ErrorKind::ConnectionRefused), "{addr:?}");
}

/// A port is published for everybody, over both families: the user, and another machine.
fn single() {
    let m = Machine::with_image();
    let (host, peer) = (&m.world.host, &m.world.peer);
    let c = published(&m, "-p 8080:80", &["tcp *:8080"]);
    for address in [LO4, LO6, HOST4, HOST6] {
        reaches(host, tcp, (address, 8080), 80);
        refuses(host, udp, (address, 8080));
    }
    for address in [HOST4, HOST6] {
        reaches(peer, tcp, (address, 8080), 80);
    }
    assert_eq!(m.user("podman port c"), "80/tcp -> 0.0.0.0:8080\n");
    c.remove();
    m.clean();

    let c = published(&m, "-p 8080:80/udp", &["udp *:8080"]);
    for address in [LO4, LO6, HOST4, HOST6] {
        reaches(host, udp, (address, 8080), 80);
        refuses(host, tcp, (address, 8080));
    }
    for address in [HOST4, HOST6] {
        reaches(peer, udp, (address, 8080), 80);
    }
    c.remove();
    m.clean();
}

fn ranges() {
    let m = Machine::with_image();
    let host = &m.world.host;
    let expected = [
        "tcp *:8210",
        "tcp *:8211",
        "tcp *:8212",
        "udp 127.0.0.1:8220",
        "udp 127.0.0.1:8221",
    ];
    let options = "-p 8210-8212:80-82 -p 127.0.0.1:8220-8221:81-82/udp";
    let c = published(&m, options, &expected);
    for (port, inside) in [(8210, 80), (8211, 81), (8212, 82)] {
        for address in [LO4, LO6, HOST4, HOST6] {
            reaches(host, tcp, (address, port), inside);
        }
    }
    for (port, inside) in [(8220, 81), (8221, 82)] {
        reaches(host, udp, (LO4, port), inside);
        refuses(host, udp, (HOST4, port));
    }
    refuses(host, tcp, (LO4, 8213));
    c.remove();
    m.clean();
}

/// Where it is published at one address, nobody gets in at another.
fn bound() {
    let m = Machine::with_image();
    let (host, peer) = (&m.world.host, &m.world.peer);
    let all = [LO4, LO6, HOST4, HOST6];
    for (only, written) in [(LO4, LO4), (LO6, "[::1]"), (HOST4, HOST4)] {
        let options = format!("-p {written}:8230:80 -p {written}:8230:81/udp");
        let (t, u) = (format!("tcp {written}:8230"), format!("udp {written}:8230"));
        let c = published(&m, &options, &[&t, &u]);
        for address in all {
            if address == only {
                reaches(host, tcp, (address, 8230), 80);
                reaches(host, udp, (address, 8230), 81);
            } else {
                refuses(host, tcp, (address, 8230));
                refuses(host, udp, (address, 8230));
            }
        }
        let from_outside = peer.try_connect((HOST4, 8230)).is_ok();
        assert_eq!(from_outside, only == HOST4, "{only}");
        c.remove();
    }
    m.clean();
}

/// A family is named by its address of nothing: 0.0.0.0 is podman's word for everything, [::] means IPv6 alone.
fn families() {
    let m = Machine::with_image();
    let host = &m.world.host;
    let c = published(&m, "-p 0.0.0.0:8237:80", &["tcp *:8237"]);
    for address in [LO4, LO6, HOST4, HOST6] {
        reaches(host, tcp, (address, 8237), 80);
    }
    c.remove();
    let c = published(&m, "-p '[::]:8238:80'", &["tcp [::]:8238"]);
    for address in [LO6, HOST6] {
        reaches(host, tcp, (address, 8238), 80);
    }
    refuses(host, tcp, (LO4, 8238));
    c.remove();
    let (t, u) = (format!("tcp [{HOST6}]:8239"), format!("udp [{HOST6}]:8239"));
    let options = format!("-p '[{HOST6}]:8239:80/udp' -p '[{HOST6}]:8239:81'");
    let c = published(&m, &options, &[&t, &u]);
    reaches(host, udp, (HOST6, 8239), 80);
    reaches(&m.world.peer, tcp, (HOST6, 8239), 81);
    refuses(host, tcp, (LO6, 8239));
    c.remove();
    m.clean();
}

/// The same number twice (by protocol, by address), and one server by two numbers.
fn many() {
    let m = Machine::with_image();
    let host = &m.world.host;
    let options =
        format!("-p 8233:80 -p 8233:81/udp -p 8234:80 -p {HOST4}:8236:80 -p 127.0.0.1:8236:82");
    let own = format!("tcp {HOST4}:8236");
    let mut expected = vec![
        "tcp *:8233",
        "tcp *:8234",
        "tcp 127.0.0.1:8236",
        &own,
        "udp *:8233",
    ];
    expected.sort_unstable();
    let c = published(&m, &options, &expected);
    reaches(host, tcp, (LO4, 8233), 80);
    reaches(host, udp, (LO4, 8233), 81);
    reaches(host, tcp, (HOST4, 8234), 80);
    reaches(host, tcp, (HOST4, 8236), 80);
    reaches(host, tcp, (LO4, 8236), 82);
    c.remove();
    m.clean();
}

/// Without a number of the host's, podman chooses one; `-P` publishes all that the image or the command exposes.
fn chosen() {
    let m = Machine::with_image();
    let host = &m.world.host;
    let c = Container::run(&m, "c", "-p 80 -p 127.0.0.1::82 --expose 81/udp -P");
    for port in 80..=82 {
        c.tell(("::", port));
    }
    let port = |inside: &str| -> u16 {
        let text = m.user(&format!("podman port c {inside}"));
        let addr: SocketAddr = text.trim_end().parse().expect("an address");
        addr.port()
    };
    reaches(host, tcp, (HOST6, port("80/tcp")), 80);
    reaches(host, udp, (HOST4, port("81/udp")), 81);
    reaches(host, tcp, (LO4, port("82/tcp")), 82);
    refuses(host, tcp, (HOST4, port("82/tcp")));
    assert_eq!(sockets(&m).len(), 3);
    c.remove();
    m.clean();
}

/// A connection to a published port that nobody listens on in the container is reset, not ended in order: clients
/// that retry on an error depend on it.
fn nobody_listens() {
    let m = Machine::with_image();
    let c = Container::run(&m, "c", "-p 8240:99 -p 8240:99/udp");
    for address in [LO4, LO6, HOST4, HOST6] {
        let answer = tcp(&m.world.host, (address, 8240));
        assert_eq!(answer, Err(ErrorKind::ConnectionReset), "{address}");
    }
    for address in [HOST4, HOST6] {
        let answer = tcp(&m.world.peer, (address, 8240));
        assert_eq!(answer, Err(ErrorKind::ConnectionReset), "{address}");
    }
    // As soon as somebody does, it works.
    c.tell(("::", 99));
    reaches(&m.world.host, tcp, (LO4, 8240), 99);
    reaches(&m.world.host, udp, (LO4, 8240), 99);
    c.remove();
    m.clean();
}

/// "Inbound, published port, what the server in the container sees", all four rows, by TCP and by UDP, and what it
/// sees of another machine.
fn inbound_addresses() {
    let m = Machine::with_image();
    let host = &m.world.host;
    let c = Container::run(&m, "c", "-p 8201:80 -p 8201:80/udp");
    c.tell((HOST4, 80));
    c.tell((HOST6, 80));
    for (client, local, peer) in [
        (LO4, HOST4, HOST4),
        (HOST4, HOST4, INTERNAL),
        (LO6, HOST6, HOST6),
        (HOST6, HOST6, GATEWAY6),
    ] {
        let expected = Ok((local.to_owned(), peer.to_owned()));
        assert_eq!(
            tcp(host, (client, 8201)).map(Seen::pair),
            expected,
            "TCP {client}"
        );
        assert_eq!(
            udp(host, (client, 8201)).map(Seen::pair),
            expected,
            "UDP {client}"
        );
    }
    for (client, local) in [(GATEWAY4, HOST4), (GATEWAY6, HOST6)] {
        let expected = Ok((local.to_owned(), client.to_owned()));
        let there = (local, 8201);
        assert_eq!(tcp(&m.world.peer, there).map(Seen::pair), expected);
        assert_eq!(udp(&m.world.peer, there).map(Seen::pair), expected);
    }
    for (client, target) in [
        (PEER4, HOST4.to_owned()),
        (&format!("[{PEER6}]"), format!("[{HOST6}]")),
    ] {
        let connect = format!("socat -u TCP:{target}:8201,bind={client} -");
        let who = m.world.peer.sh(&connect);
        assert!(who.contains(client), "the client's address is kept: {who}");
    }
    c.remove();
    m.clean();
}

/// Ports as options of pasta: they replace podman's `-t none`, and go together with `-p`.
fn on_the_command_line() {
    let m = Machine::with_image();
    let host = &m.world.host;
    let c = published(
        &m,
        "--network pasta:-t,8300:80 -p 8080:81",
        &["tcp *:8080", "tcp *:8300"],
    );
    reaches(host, tcp, (LO4, 8300), 80);
    reaches(host, tcp, (LO4, 8080), 81);
    c.remove();
    let (t, u) = (format!("tcp {HOST4}%host0:8302"), "udp [::1]%lo:8303");
    let options =
        format!("--network pasta:--tcp-ports,{HOST4}%host0/8302:80,--udp-ports,::1%lo/8303:81");
    let c = published(&m, &options, &[&t, u]);
    reaches(&m.world.peer, tcp, (HOST4, 8302), 80);
    reaches(host, udp, (LO6, 8303), 81);
    c.remove();
    m.clean();

    // "enable automatic port forwarding based on observed bound ports from both host and container sides"
    let c = Container::run(&m, "c", "--network pasta:-t,auto,-u,auto,-T,auto,-U,auto");
    c.tell(("::", 8301));
    crate::container::tell(host, (LO4, 9301));
    for (ns, port) in [(host, 8301), (&*c, 9301)] {
        let works = |way: Way| way(ns, (LO4, port)).is_ok_and(|s| s.to.port() == port);
        assert!(poll_until(SOON, || works(tcp)), "TCP {port}");
        assert!(poll_until(SOON, || works(udp)), "UDP {port}");
    }
    c.remove();
    m.clean();
}

/// A port has one owner; when the first is gone, or replaced, the next has it at once.
fn one_at_a_time() {
    let m = Machine::with_image();
    let first = published(&m, "--stop-timeout 0 -p 8305:80", &["tcp *:8305"]);
    let pastas = m.pastas();
    let second = m.try_user("podman run --name second -p 8305:80 $IMAGE true");
    assert_eq!(second.code, 126, "{}", second.both());
    assert!(
        second.err.contains("pasta failed with exit code 1:")
            && second.err.contains("port */8305: Address already in use"),
        "{}",
        second.err
    );
    assert_eq!(m.pastas(), pastas, "the first one's go on, and no others");
    reaches(&m.world.host, tcp, (LO4, 8305), 80);
    m.user("podman rm second");
    drop(first);
    for _ in 0..3 {
        let c = published(&m, "--replace --stop-timeout 0 -p 8305:80", &["tcp *:8305"]);
        reaches(&m.world.host, tcp, (LO4, 8305), 80);
        drop(c);
    }
    m.user("podman rm -f -t 0 c");
    m.clean();
}
