//! Reaching into a namespace: families, ways in, and exchanges that prove data and addresses.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::exec::{SOON, poll_until};
use crate::servers::{check_pattern, send_pattern};
use crate::world::{GATEWAY4, GATEWAY6, HOST4, HOST6, Netns, World, bounded};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// From where a connection to the host's ports comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the peer, by frames on the tap.
    Tap,
    /// From the host's own loopback, past the tap.
    Loopback,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub const WAYS: [Way; 2] = [Way::Tap, Way::Loopback];

impl Family {
    pub const fn pick(self, v4: &'static str, v6: &'static str) -> &'static str {
        match self {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// The host's address, which is the guest's too.
    pub const fn host(self) -> &'static str {
        self.pick(HOST4, HOST6)
    }

    /// The peer's address on the link, which is the gateway.
    pub const fn gateway(self) -> &'static str {
        self.pick(GATEWAY4, GATEWAY6)
    }

    pub const fn loopback(self) -> &'static str {
        self.pick("127.0.0.1", "::1")
    }
}

impl Way {
    /// The namespace of the client, and the address it goes to.
    pub fn client(self, w: &World, family: Family) -> (&Netns, &'static str) {
        match self {
            Way::Tap => (&w.peer, family.host()),
            Way::Loopback => (&w.host, family.loopback()),
        }
    }
}

impl Protocol {
    /// The option that forwards ports of the host.
    pub const fn inbound(self) -> &'static str {
        match self {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
        }
    }

    /// The option that forwards ports of the namespace.
    pub const fn outbound(self) -> &'static str {
        match self {
            Protocol::Tcp => "-T",
            Protocol::Udp => "-U",
        }
    }
}

/// One connection or datagram as a server saw it.
#[derive(Debug)]
pub struct Seen {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// How many bytes of the pattern came, or what was wrong.
    pub bytes: Result<u64, String>,
}

impl Seen {
    pub fn peer_ip(&self) -> String {
        self.peer.ip().to_canonical().to_string()
    }

    pub fn local_ip(&self) -> String {
        self.local.ip().to_canonical().to_string()
    }
}

/// A server that returns what it gets and tells what it saw.
#[derive(Debug)]
pub struct Server(Receiver<Seen>);

impl Server {
    /// TCP: takes the pattern up to the end of the stream, sends as much of it back, closes.
    #[track_caller]
    pub fn tcp(ns: &Netns, addr: (&str, u16)) -> Server {
        Server::on(ns.listen(addr))
    }

    pub fn on(listener: TcpListener) -> Server {
        let (tell, seen) = channel();
        thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                let tell = tell.clone();
                thread::spawn(move || {
                    let mut stream = bounded(stream).expect("a timeout");
                    tell.send(returned(&mut stream, peer)).ok();
                });
            }
        });
        Server(seen)
    }

    /// UDP: returns every datagram.
    #[track_caller]
    pub fn udp(ns: &Netns, addr: (&str, u16)) -> Server {
        let socket = ns.udp(addr);
        socket.set_read_timeout(None).expect("a socket option");
        let local = socket.local_addr().expect("bound");
        let (tell, seen) = channel();
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
                let bytes = Ok(n as u64);
                tell.send(Seen { local, peer, bytes }).ok();
                socket.send_to(&buffer[..n], peer).ok();
            }
        });
        Server(seen)
    }

    #[track_caller]
    pub fn new(protocol: Protocol, ns: &Netns, addr: (&str, u16)) -> Server {
        match protocol {
            Protocol::Tcp => Server::tcp(ns, addr),
            Protocol::Udp => Server::udp(ns, addr),
        }
    }

    /// What it saw next.
    #[track_caller]
    pub fn seen(&self) -> Seen {
        self.0.recv_timeout(SOON).expect("the server saw nothing")
    }

    /// What it has seen until now.
    pub fn so_far(&self) -> Vec<Seen> {
        self.0.try_iter().collect()
    }

    /// Forgets what it saw.
    pub fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }
}

/// The caller closes the stream, after what was seen has been told.
fn returned(stream: &mut TcpStream, peer: SocketAddr) -> Seen {
    let local = stream.local_addr().expect("connected");
    let bytes = check_pattern(stream);
    let bytes = bytes.and_then(|n| match send_pattern(stream, n) {
        Ok(()) => Ok(n),
        Err(e) => Err(format!("returning {n} bytes: {e}")),
    });
    Seen { local, peer, bytes }
}

/// Sends `n` bytes of the pattern and the end of the stream; takes them back, and the end.
#[track_caller]
pub fn exchange(mut stream: TcpStream, n: u64) {
    let mut sender = stream.try_clone().expect("dup");
    let sender = thread::spawn(move || {
        send_pattern(&mut sender, n)?;
        sender.flush()?;
        sender.shutdown(Shutdown::Write)
    });
    let back = check_pattern(&mut stream);
    assert_eq!(back, Ok(n), "bytes that came back");
    sender.join().expect("no panic").expect("send");
}

/// What a client is told: `Ok` when a server answered.
pub fn try_reach(
    protocol: Protocol,
    from: &Netns,
    to: (&str, u16),
) -> Result<SocketAddr, ErrorKind> {
    match protocol {
        Protocol::Tcp => {
            let mut stream = from.try_connect(to).map_err(|e| e.kind())?;
            let local = stream.local_addr().map_err(|e| e.kind())?;
            stream.shutdown(Shutdown::Write).ok(); // reset already: reading says so
            stream.read(&mut [0; 10]).map_err(|e| e.kind())?;
            Ok(local)
        }
        Protocol::Udp => {
            let socket = udp_to(from, to);
            let local = socket.local_addr().map_err(|e| e.kind())?;
            socket.send(b"ping").map_err(|e| e.kind())?;
            let limit = Duration::from_millis(500);
            socket.set_read_timeout(Some(limit)).expect("a timeout");
            socket.recv(&mut [0; 10]).map_err(|e| e.kind())?;
            Ok(local)
        }
    }
}

/// A UDP socket of `from`, connected.
#[track_caller]
pub fn udp_to(from: &Netns, to: (&str, u16)) -> UdpSocket {
    let any = if to.0.contains(':') { "::" } else { "0.0.0.0" };
    let socket = from.udp((any, 0));
    from.enter(|| socket.connect(to)).expect("a route");
    socket
}

/// Waits until a server answers there.
#[track_caller]
pub fn reachable_within(limit: Duration, protocol: Protocol, from: &Netns, to: (&str, u16)) {
    let mut last = None;
    let reached = poll_until(limit, || {
        last = try_reach(protocol, from, to).err();
        last.is_none()
    });
    assert!(
        reached,
        "{protocol:?} {to:?} from {} not reachable within {limit:?}: {last:?}",
        from.name
    );
}

/// Nobody listens there.  A busy machine may take longer to say so than one question lasts.
#[track_caller]
pub fn closed(protocol: Protocol, from: &Netns, to: (&str, u16)) {
    let mut told = Err(ErrorKind::TimedOut);
    poll_until(SOON, || {
        told = try_reach(protocol, from, to);
        !matches!(told, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut))
    });
    assert_eq!(
        told,
        Err(ErrorKind::ConnectionRefused),
        "{protocol:?} {to:?} from {}",
        from.name
    );
}

/// Sizes that matter: nothing, one byte, an Ethernet frame and a bit more, several pages, close to the most.
const SIZES: [usize; 7] = [1, 0, 1400, 1472, 1473, 9000, 60_000];

/// Datagrams of all sizes from several clients, each answered to the client that sent it; returns what
/// the server saw of the last one, and that client's address.
#[track_caller]
pub fn datagrams(from: &Netns, to: (&str, u16), server: &Server) -> (Seen, SocketAddr) {
    let clients: Vec<UdpSocket> = (0..3).map(|_| udp_to(from, to)).collect();
    let mut buffer = vec![0; 65536];
    let mut last = None;
    for size in SIZES {
        for (i, client) in clients.iter().enumerate() {
            let mark = u8::try_from(i).expect("few") + 1;
            client.send(&vec![mark; size]).expect("send");
            let seen = server.seen();
            assert_eq!(seen.bytes, Ok(size as u64), "as the server saw it");
            last = Some((seen, client.local_addr().expect("bound")));
        }
        for (i, client) in clients.iter().enumerate() {
            let mark = u8::try_from(i).expect("few") + 1;
            let n = client
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("no answer to {size} bytes of client {i}: {e}"));
            assert_eq!(n, size, "an answer of another size");
            assert!(buffer[..n].iter().all(|b| *b == mark), "another's answer");
        }
    }
    last.expect("there are sizes")
}

/// Is this port open on the namespace's side of the kernel?  `ss` state of listeners and unconnected sockets.
pub fn listening(ns: &Netns, protocol: Protocol) -> Vec<u16> {
    let option = match protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
    };
    let text = ns.sh(&format!("ss -Hln {option}"));
    let port = |line: &str| {
        line.split_whitespace()
            .nth(3)?
            .rsplit_once(':')?
            .1
            .parse()
            .ok()
    };
    let mut all: Vec<u16> = text.lines().filter_map(port).collect();
    all.sort_unstable();
    all.dedup();
    all
}

pub fn clones(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("dup")
}

/// Sends `n` bytes one way and checks them at the other end, which then sees the end of the stream.
#[track_caller]
pub fn transfer(mut from: TcpStream, mut to: TcpStream, n: u64) {
    let sender = thread::spawn(move || {
        send_pattern(&mut from, n).expect("send");
        from.shutdown(Shutdown::Write).expect("shutdown");
        from
    });
    assert_eq!(check_pattern(&mut to), Ok(n));
    sender.join().expect("the sender");
}

/// Closes with a reset.
#[track_caller]
pub fn abort(stream: TcpStream) {
    let now = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &now).expect("SO_LINGER");
    drop(stream);
}

/// Whatever data comes first, the stream must not end in order.
#[track_caller]
pub fn sees_reset(mut stream: TcpStream) {
    let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("an end in order after {total} bytes"),
            Ok(n) => total += n,
            Err(e) => return assert_eq!(e.kind(), ErrorKind::ConnectionReset),
        }
    }
}

/// Waits until exactly these ports are open in a namespace.
#[track_caller]
pub fn opens(ns: &Netns, protocol: Protocol, ports: &[u16]) {
    let mut seen = vec![];
    let right = poll_until(SOON, || {
        seen = listening(ns, protocol);
        seen == ports
    });
    assert!(
        right,
        "{protocol:?} in {}: open are {seen:?}, not {ports:?}",
        ns.name
    );
}
