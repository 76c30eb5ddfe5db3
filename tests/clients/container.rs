//! A running container, seen from outside: its network namespace, its servers, and who reaches them.
//!
//! What a container's server sees (to which of its addresses a connection came, and from where) is asked of servers
//! that are threads of the test in the container's network namespace: they are there when the test goes on, they say
//! exactly what they saw, and they need no program in the image. Everything that podman prepared besides (files,
//! name service, the user's rights) is looked at with [`Container::exec`].

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use crate::machine::Machine;
use crate::servers::serve;
use crate::world::Netns;

/// Where podman has pasta answer name queries.
pub const FORWARDER: &str = "169.254.1.1";
/// What podman has pasta translate to the host's own address: host.containers.internal.
pub const INTERNAL: &str = "169.254.1.2";

/// A container in the background that does nothing by itself.
#[derive(Debug)]
pub struct Container<'a> {
    machine: &'a Machine,
    name: String,
    ns: Netns,
}

impl<'a> Container<'a> {
    /// `podman run -d --name NAME OPTIONS`.
    #[track_caller]
    pub fn run(machine: &'a Machine, name: &str, options: &str) -> Container<'a> {
        machine.user(&format!(
            "podman run -d --name {name} {options} $IMAGE sleep 1000000"
        ));
        Container::running(machine, name)
    }

    /// One that runs already.
    #[track_caller]
    pub fn running(machine: &'a Machine, name: &str) -> Container<'a> {
        let pid = machine.user(&format!("podman inspect -f '{{{{.State.Pid}}}}' {name}"));
        Container {
            machine,
            name: name.to_owned(),
            ns: Netns::of(pid.trim().parse().expect("a process id")),
        }
    }

    /// What a script in the container prints; it must succeed.
    #[track_caller]
    pub fn exec(&self, script: &str) -> String {
        let name = &self.name;
        self.machine
            .user(&format!("podman exec {name} sh -c '{script}'"))
    }

    #[track_caller]
    pub fn remove(self) {
        self.machine
            .user(&format!("podman rm -f -t 0 {}", self.name));
    }

    /// A server on `addr`, TCP and UDP, that tells everybody what it sees: see [`Seen`].
    #[track_caller]
    pub fn tell(&self, addr: (&str, u16)) {
        tell(self, addr);
    }
}

impl Deref for Container<'_> {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

/// Each of these is in the text.
#[track_caller]
pub fn contains(text: &str, wanted: &[&str]) {
    for w in wanted {
        assert!(text.contains(w), "no `{w}` in:\n{text}");
    }
}

/// Which address of the server was asked, and which asked, in the server's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub to: SocketAddr,
    pub from: IpAddr,
}

impl Seen {
    /// The addresses alone.
    pub fn pair(self) -> (String, String) {
        (self.to.ip().to_string(), self.from.to_string())
    }

    fn parse(text: &str) -> Option<Seen> {
        let (to, from) = text.trim_end().split_once(' ')?;
        let to: SocketAddr = to.parse().ok()?;
        Some(Seen {
            to: SocketAddr::new(to.ip().to_canonical(), to.port()),
            from: from.parse::<SocketAddr>().ok()?.ip().to_canonical(),
        })
    }
}

/// A server on `addr` of `ns`, TCP and UDP, that answers each client with [`Seen`]. To UDP a socket bound to no
/// address is asked at no address.
#[track_caller]
pub fn tell(ns: &Netns, addr: (&str, u16)) {
    serve(ns.listen(addr), |mut stream| {
        if let (Ok(to), Ok(from)) = (stream.local_addr(), stream.peer_addr()) {
            writeln!(stream, "{to} {from}").ok();
        }
    });
    let socket = ns.udp(addr);
    socket.set_read_timeout(None).expect("a socket option");
    let to = socket.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket
                .send_to(format!("{to} {from}\n").as_bytes(), from)
                .ok();
        }
    });
}

/// What the server that [`tell`]s at `addr` saw of a TCP client in `ns`, or how connecting failed.
pub fn tcp(ns: &Netns, addr: (&str, u16)) -> Result<Seen, ErrorKind> {
    let mut stream = ns.try_connect(addr).map_err(|e| e.kind())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.kind())?;
    Seen::parse(&text).ok_or(ErrorKind::InvalidData)
}

/// The same of a UDP client.
pub fn udp(ns: &Netns, addr: (&str, u16)) -> Result<Seen, ErrorKind> {
    let any = if addr.0.contains(':') {
        "::"
    } else {
        "0.0.0.0"
    };
    let socket = ns.udp((any, 0));
    let mut buffer = [0; 128];
    let n = socket
        .connect(addr)
        .and_then(|()| socket.send(b"who?"))
        .and_then(|_| socket.recv(&mut buffer))
        .map_err(|e| e.kind())?;
    Seen::parse(&String::from_utf8_lossy(&buffer[..n])).ok_or(ErrorKind::InvalidData)
}
