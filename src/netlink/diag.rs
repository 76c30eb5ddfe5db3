//! Which ports somebody listens on, asked of the kernel itself (sock_diag(7)).
//!
//! A [`Scanner`] belongs to the network namespace it was opened in, wherever the process goes after that, and needs no
//! privilege. One scan is four dumps: both protocols, both families, and of each only the sockets that matter, TCP in
//! LISTEN and UDP without a peer: the kernel does not even look at connections. The answers go through one buffer
//! into bits; nothing is allocated, so it serves confined processes.
//!
//! Where the kernel has no such diagnosis for a protocol (it is a module), `/proc/net` tells the same as text; the file
//! is opened at the start and read again for each scan.
//!
//! What a process must be allowed for a scan: sendto and recvfrom, or pread64 without the modules.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use netlink_packet_core::Emitable;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::errno::Errno;

use super::message::{self, DONE, ERROR, Message, Messages, i32_at};
use crate::config::ports::{PortSets, Ports};
use crate::config::rules::Protocol;

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP` of netlink(7).
const REQUEST_DUMP: u16 = 0x301;
/// `TCP_LISTEN` and `TCP_CLOSE` (net/tcp_states.h); the latter is what UDP sockets without a peer are in.
const LISTEN: u8 = 10;
const CLOSE: u8 = 7;
/// Length of `struct inet_diag_req_v2` (linux/inet_diag.h).
const REQUEST_LEN: usize = 56;
/// The kernel makes its answers at most this large, if it has seen us read that much.
const BUFFER: usize = 32 * 1024;
/// Where the columns of /proc/net/tcp and its like are: local address and state.
const LOCAL_COLUMN: usize = 1;
const STATE_COLUMN: usize = 3;

/// `struct inet_diag_req_v2` for all sockets of a kind.
struct Request {
    ipv6: bool,
    protocol: Protocol,
}

const fn state(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => LISTEN,
        Protocol::Udp => CLOSE,
    }
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        REQUEST_LEN
    }

    fn emit(&self, buffer: &mut [u8]) {
        let family = if self.ipv6 {
            libc::AF_INET6
        } else {
            libc::AF_INET
        };
        let protocol = match self.protocol {
            Protocol::Tcp => libc::IPPROTO_TCP,
            Protocol::Udp => libc::IPPROTO_UDP,
        };
        let states = 1_u32 << state(self.protocol);
        let head = [
            u8::try_from(family).unwrap_or(0),
            u8::try_from(protocol).unwrap_or(0),
            0,
            0,
        ];
        // The rest, addresses and ports, stays zero: all of them.
        for (to, from) in buffer
            .iter_mut()
            .zip(head.iter().chain(&states.to_ne_bytes()))
        {
            *to = *from;
        }
    }
}

/// How one kind of socket is found.
#[derive(Debug)]
enum Source {
    Diag,
    Text(File),
    /// The kernel does not have such sockets.
    Nowhere,
}

#[derive(Debug)]
struct Kind {
    protocol: Protocol,
    ipv6: bool,
    source: Source,
}

/// Finds the ports that are listened on in one network namespace.
#[derive(Debug)]
pub struct Scanner {
    socket: Option<Socket>,
    kinds: [Kind; 4],
    sequence: u32,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Scanner {
    /// For the network namespace that the calling thread is in now. Makes a first scan, to see what works.
    ///
    /// # Errors
    /// There is neither the netlink family nor `/proc/net`.
    pub fn open() -> io::Result<Self> {
        let kind = |protocol, ipv6| Kind {
            protocol,
            ipv6,
            source: Source::Diag,
        };
        let mut scanner = Self {
            socket: Socket::new(NETLINK_SOCK_DIAG).ok(),
            kinds: [
                kind(Protocol::Tcp, false),
                kind(Protocol::Tcp, true),
                kind(Protocol::Udp, false),
                kind(Protocol::Udp, true),
            ],
            sequence: 0,
            request: Vec::with_capacity(128),
            buffer: Vec::with_capacity(BUFFER),
        };
        let mut trial = PortSets::default();
        for index in 0..scanner.kinds.len() {
            if scanner.scan_kind(index, &mut trial).is_err() {
                scanner.fall_back(index)?;
            }
        }
        Ok(scanner)
    }

    fn fall_back(&mut self, index: usize) -> io::Result<()> {
        let Some(kind) = self.kinds.get_mut(index) else {
            return Ok(());
        };
        let path = match (kind.protocol, kind.ipv6) {
            (Protocol::Tcp, false) => "/proc/thread-self/net/tcp",
            (Protocol::Tcp, true) => "/proc/thread-self/net/tcp6",
            (Protocol::Udp, false) => "/proc/thread-self/net/udp",
            (Protocol::Udp, true) => "/proc/thread-self/net/udp6",
        };
        kind.source = match File::open(path) {
            Ok(file) => Source::Text(file),
            Err(e) if kind.ipv6 && e.kind() == io::ErrorKind::NotFound => Source::Nowhere,
            Err(e) => return Err(e),
        };
        Ok(())
    }

    /// Replace `out` by what is listened on now.
    ///
    /// # Errors
    /// As send(2), recv(2) and pread(2), and what the kernel answers: `out` is not to be used then.
    pub fn scan(&mut self, out: &mut PortSets) -> io::Result<()> {
        out.clear();
        (0..self.kinds.len()).try_for_each(|index| self.scan_kind(index, out))
    }

    fn scan_kind(&mut self, index: usize, out: &mut PortSets) -> io::Result<()> {
        let Some(kind) = self.kinds.get(index) else {
            return Ok(());
        };
        let ports = out.of_mut(kind.protocol);
        match &kind.source {
            Source::Nowhere => Ok(()),
            Source::Text(file) => read_text(file, state(kind.protocol), &mut self.buffer, ports),
            Source::Diag => {
                let request = Request {
                    ipv6: kind.ipv6,
                    protocol: kind.protocol,
                };
                self.dump(&request, ports)
            }
        }
    }

    fn dump(&mut self, request: &Request, ports: &mut Ports) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.sequence = self.sequence.wrapping_add(1);
        self.request.clear();
        message::push(
            &mut self.request,
            BY_FAMILY,
            REQUEST_DUMP,
            self.sequence,
            request,
        );
        send(socket, &self.request)?;
        loop {
            receive(socket, &mut self.buffer)?;
            let sequence = self.sequence;
            // What came while a dump was interrupted may miss a socket: the next scan has it.
            for m in Messages(&self.buffer).filter(|m| m.sequence == sequence) {
                match m.kind {
                    DONE | ERROR => return outcome(&m),
                    BY_FAMILY => ports_of(&m, state(request.protocol), ports),
                    _ => {}
                }
            }
        }
    }
}

fn outcome(m: &Message<'_>) -> io::Result<()> {
    match i32_at(m.body, 0) {
        Some(code @ ..=-1) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Ok(()),
    }
}

/// `struct inet_diag_msg`: the state is its second byte, the local port bytes 4 and 5, in network order.
fn ports_of(m: &Message<'_>, state: u8, ports: &mut Ports) {
    if let [_, in_state, _, _, high, low, ..] = *m.body {
        let port = u16::from_be_bytes([high, low]);
        // Port 0: not bound.
        if in_state == state && port != 0 {
            ports.insert(port);
        }
    }
}

fn send(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    let kernel = SocketAddr::new(0, 0);
    loop {
        match socket.send_to(bytes, &kernel, 0) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv_from(buffer, 0) {
            // Anybody in the namespace may write to our port; only number 0 is the kernel.
            Ok((_, from)) if from.port_number() == 0 => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Read a file like /proc/net/tcp (proc(5)) from its start, a buffer at a time.
fn read_text(file: &File, state: u8, buffer: &mut Vec<u8>, ports: &mut Ports) -> io::Result<()> {
    buffer.resize(BUFFER, 0);
    let mut offset = 0_u64;
    let mut kept = 0;
    loop {
        let room = buffer.get_mut(kept..).unwrap_or(&mut []);
        let read = match file.read_at(room, offset) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if read == 0 {
            return Ok(());
        }
        offset = offset.saturating_add(u64::try_from(read).unwrap_or(0));
        let filled = kept.saturating_add(read);
        let text = buffer.get(..filled).unwrap_or(&[]);
        let whole = text
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        for line in text.get(..whole).unwrap_or(&[]).split(|b| *b == b'\n') {
            if let Some(port) = port_of_line(line, state) {
                ports.insert(port);
            }
        }
        if whole == 0 && filled == buffer.len() {
            return Err(Errno::EMSGSIZE.into());
        }
        buffer.copy_within(whole..filled, 0);
        kept = filled.saturating_sub(whole);
    }
}

/// `  0: 0100007F:1F90 00000000:0000 0A …`: the port of a line in the wanted state.
fn port_of_line(line: &[u8], state: u8) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    let mut columns = line.split_ascii_whitespace();
    let local = columns.nth(LOCAL_COLUMN)?;
    let in_state = columns.nth(STATE_COLUMN - LOCAL_COLUMN - 1)?;
    if u8::from_str_radix(in_state, 16).ok()? != state {
        return None;
    }
    let (_, port) = local.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok().filter(|p| *p != 0)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    /// Everything by text instead.
    fn without_netlink(mut scanner: Scanner) -> Scanner {
        for index in 0..scanner.kinds.len() {
            scanner.fall_back(index).unwrap();
        }
        scanner.socket = None;
        scanner
    }

    #[test]
    fn listeners_are_found_and_connections_are_not() {
        for make in [|s| s, without_netlink] {
            let mut scanner: Scanner = make(Scanner::open().unwrap());
            let tcp: Vec<_> = ["127.0.0.1:0", "[::1]:0"]
                .map(|a| TcpListener::bind(a).unwrap())
                .into();
            let udp: Vec<_> = ["127.0.0.1:0", "[::1]:0"]
                .map(|a| UdpSocket::bind(a).unwrap())
                .into();
            let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
            connected.connect(udp[0].local_addr().unwrap()).unwrap();
            let stream = TcpStream::connect(tcp[0].local_addr().unwrap()).unwrap();
            let mut found = PortSets::default();
            scanner.scan(&mut found).unwrap();
            for listener in &tcp {
                assert!(found.tcp.contains(listener.local_addr().unwrap().port()));
            }
            for socket in &udp {
                assert!(found.udp.contains(socket.local_addr().unwrap().port()));
            }
            let own = stream.local_addr().unwrap().port();
            assert!(!found.tcp.contains(own), "a connection is no listener");
            let own = connected.local_addr().unwrap().port();
            assert!(
                !found.udp.contains(own),
                "a connected socket is no listener"
            );
            assert!(!found.tcp.contains(0) && !found.udp.contains(0));

            let gone = tcp[1].local_addr().unwrap().port();
            drop(tcp);
            scanner.scan(&mut found).unwrap();
            assert!(!found.tcp.contains(gone), "a closed listener is forgotten");
        }
    }

    #[test]
    fn text_longer_than_the_buffer_is_read_whole() {
        let listeners: Vec<_> = (0..400)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let mut scanner = without_netlink(Scanner::open().unwrap());
        let mut found = PortSets::default();
        scanner.scan(&mut found).unwrap();
        let missed = listeners
            .iter()
            .filter(|l| !found.tcp.contains(l.local_addr().unwrap().port()))
            .count();
        assert_eq!(missed, 0);
    }

    #[test]
    fn lines_of_other_states_and_other_files_are_skipped() {
        let line = b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000";
        assert_eq!(port_of_line(line, LISTEN), Some(8080));
        assert_eq!(port_of_line(line, CLOSE), None);
        let six = b"  12: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0";
        assert_eq!(port_of_line(six, CLOSE), Some(53));
        for odd in [
            &b"  sl  local_address rem_address   st tx_queue"[..],
            b"",
            b"0: 00:12345 x 0A",
            b"0: 0100007F 0:0 0A",
            b"\xff\xfe 1:2 3 0A",
        ] {
            assert_eq!(port_of_line(odd, LISTEN), None);
        }
    }

    #[test]
    #[ignore = "a measurement: 500 listeners must be found in less than 0.3 ms"]
    fn cost_of_a_scan() {
        let _listeners: Vec<_> = (0..500)
            .map(|i| {
                let address = if i % 2 == 0 { "127.0.0.1:0" } else { "[::1]:0" };
                TcpListener::bind(address).unwrap()
            })
            .collect();
        let mut found = PortSets::default();
        let mut scanner = Scanner::open().unwrap();
        // The best of several: others use the machine too.
        let best = (0..100).map(|_| {
            let start = std::time::Instant::now();
            scanner.scan(&mut found).unwrap();
            start.elapsed()
        });
        let best = best.min().unwrap();
        // A port may be taken in both families.
        assert!(found.tcp.len() >= 400);
        assert!(best < std::time::Duration::from_micros(300), "{best:?}");
    }
}
