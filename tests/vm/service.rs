//! The service that both ends of a transfer share: run by threads on the peer, and as `t` in the guest.
//!
//! A TCP connection to it begins with a line: `get N` is answered by N bytes of the pattern, `put` takes the
//! pattern to its end and says how much came, `who` says from which address the connection came, `keep` is kept
//! open and echoed. A datagram comes back as it is, except `who`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::servers::{check_pattern, send_pattern};

/// TCP and UDP port of the service.
pub const PORT: u16 = 7000;

/// The bound of one read or write, or of a connection's set-up.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long many connections may be held open.
pub const HELD: Duration = Duration::from_secs(180);

type Result<T> = std::result::Result<T, String>;

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Answers every connection of the listener, one thread each, for ever.
pub fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream).ok());
        }
    });
}

/// Answers every datagram, for ever.
pub fn serve_udp(socket: UdpSocket) {
    socket.set_read_timeout(None).expect("a socket option");
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let said = buffer.get(..n).unwrap_or_default();
            let reply = if said == b"who" {
                plain(from).to_string().into_bytes()
            } else {
                said.to_vec()
            };
            socket.send_to(&reply, from).ok();
        }
    });
}

/// Without the mapping of a dual-stack socket.
fn plain(from: SocketAddr) -> IpAddr {
    from.ip().to_canonical()
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = line(&mut stream)?;
    match line.split_once(' ') {
        Some(("get", n)) => send_pattern(&mut stream, n.parse().unwrap_or(0)),
        _ if line == "put" => {
            let reply = match check_pattern(&mut stream) {
                Ok(n) => format!("stored {n}\n"),
                Err(e) => format!("bad: {e}\n"),
            };
            stream.write_all(reply.as_bytes())
        }
        _ if line == "who" => {
            let from = plain(stream.peer_addr()?);
            writeln!(stream, "{from}")
        }
        _ => {
            stream.set_read_timeout(None)?;
            let mut buffer = [0; 4096];
            loop {
                let n = stream.read(&mut buffer)?;
                if n == 0 {
                    return Ok(());
                }
                stream.write_all(buffer.get(..n).unwrap_or_default())?;
            }
        }
    }
}

/// A line, read byte by byte: what follows it is not ours.
fn line(from: &mut impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            [b] if bytes.len() < 100 => bytes.push(b),
            _ => return Err(io::Error::other("a line without end")),
        }
    }
}

pub fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(text)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(text)?;
    Ok(stream)
}

/// Fetches N bytes over a connection and checks them.
pub fn get(mut stream: TcpStream, n: u64) -> Result<()> {
    writeln!(stream, "get {n}").map_err(text)?;
    let got = check_pattern(&mut stream)?;
    if got == n {
        Ok(())
    } else {
        Err(format!("{got} of {n} bytes came"))
    }
}

/// Stores N bytes over a connection; the other side checks them.
pub fn put(mut stream: TcpStream, n: u64) -> Result<()> {
    writeln!(stream, "put").map_err(text)?;
    send_pattern(&mut stream, n).map_err(text)?;
    stream.shutdown(Shutdown::Write).map_err(text)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).map_err(text)?;
    if reply == format!("stored {n}\n") {
        Ok(())
    } else {
        Err(reply)
    }
}

/// As which address the other side sees us.
pub fn who(mut stream: TcpStream) -> Result<String> {
    writeln!(stream, "who").map_err(text)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).map_err(text)?;
    Ok(reply.trim_end().to_owned())
}

/// Sends `count` datagrams of `size` bytes, each when the one before it has come back; one in ten may get lost.
pub fn datagrams(socket: &UdpSocket, to: SocketAddr, size: usize, count: usize) -> Result<()> {
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .map_err(text)?;
    let (mut lost, mut buffer) = (0, vec![0; 65536]);
    for i in 0..count {
        let mut data = vec![0; size];
        let mut state = i * 31 + 7;
        for byte in &mut data {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
            *byte = state.to_le_bytes()[2];
        }
        socket.send_to(&data, to).map_err(text)?;
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((n, from)) if from == to && buffer.get(..n) == Some(&data) => break,
                Ok((_, from)) if from != to => return Err(format!("an answer from {from}")),
                Ok(_) if Instant::now() < end => {} // late, for one given up
                Ok((n, _)) => return Err(format!("{n} other bytes came back")),
                Err(_) => {
                    lost += 1;
                    break;
                }
            }
        }
    }
    if lost * 10 <= count {
        Ok(())
    } else {
        Err(format!("{lost} of {count} lost"))
    }
}

pub fn udp_who(socket: &UdpSocket, to: SocketAddr) -> Result<String> {
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .map_err(text)?;
    let mut buffer = [0; 100];
    for _ in 0..5 {
        socket.send_to(b"who", to).map_err(text)?;
        if let Ok((n, _)) = socket.recv_from(&mut buffer) {
            return Ok(String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned());
        }
    }
    Err("no answer".to_owned())
}

/// Threads that open, or accept, connections.
const HANDS: usize = 8;

/// Opens `n` connections, each of which must echo a byte, and then waits until each has said one more and ended.
pub fn open_many(to: SocketAddr, n: usize) -> Result<()> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Vec::with_capacity(n));
    let work = || -> Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < n {
            let mut stream = connect(to)?;
            let mut byte = [0];
            stream
                .write_all(b"a")
                .and_then(|()| stream.read_exact(&mut byte))
                .map_err(|e| format!("set-up: {e}"))?;
            if byte != *b"a" {
                return Err(format!("the echo is {byte:?}"));
            }
            all.lock().expect("no panic holds it").push(stream);
        }
        Ok(())
    };
    thread::scope(|s| {
        let hands: Vec<_> = (0..HANDS).map(|_| s.spawn(work)).collect();
        hands
            .into_iter()
            .try_for_each(|h| h.join().expect("no panic"))
    })?;
    let all = all.into_inner().expect("threads have ended");
    for (i, mut stream) in all.iter().enumerate() {
        // The other side may keep them while it does something else.
        stream.set_read_timeout(Some(HELD)).map_err(text)?;
        let mut rest = Vec::new();
        stream
            .read_to_end(&mut rest)
            .map_err(|e| format!("connection {i} of {n}: {e}"))?;
        if rest != b"b" {
            return Err(format!("connection {i} of {n} ended with {rest:?}"));
        }
    }
    Ok(())
}

/// The other side of [`open_many`], until all are open: [`release`] is the rest.
pub fn accept_many(listener: &TcpListener, n: usize) -> Result<Vec<TcpStream>> {
    // Whoever is to connect may have failed; socket(7): this goes for accept(2) too.
    let patience = TimeVal::seconds(i64::try_from(PATIENCE.as_secs()).map_err(text)?);
    setsockopt(listener, sockopt::ReceiveTimeout, &patience).map_err(text)?;
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Vec::with_capacity(n));
    let work = || -> Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < n {
            let (mut stream, _) = listener.accept().map_err(text)?;
            stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .and_then(|()| stream.write_all(&byte))
                .map_err(|e| format!("set-up: {e}"))?;
            all.lock().expect("no panic holds it").push(stream);
        }
        Ok(())
    };
    thread::scope(|s| {
        let hands: Vec<_> = (0..HANDS).map(|_| s.spawn(work)).collect();
        hands
            .into_iter()
            .try_for_each(|h| h.join().expect("no panic"))
    })?;
    Ok(all.into_inner().expect("threads have ended"))
}

/// Ends what [`accept_many`] has accepted, with a last byte on each.
pub fn release(all: Vec<TcpStream>) -> Result<()> {
    for mut stream in all {
        stream
            .write_all(b"b")
            .map_err(|e| format!("second round: {e}"))?;
    }
    Ok(())
}

/// `t WORD ...` in the guest.
pub fn tool(args: &[String]) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{}: {e}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// `ADDRESS` or `ADDRESS@PORT`; an address may have a scope.
fn address(word: &str) -> Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    let (host, port) = word.split_once('@').unwrap_or((word, "7000"));
    let port: u16 = port.parse().map_err(|_| format!("{port}: no port"))?;
    let found = (host, port).to_socket_addrs().map_err(text)?.next();
    found.ok_or_else(|| format!("{host}: no address"))
}

fn count(word: &str) -> Result<u64> {
    word.parse().map_err(|_| format!("{word}: no number"))
}

fn size(word: &str) -> Result<usize> {
    word.parse().map_err(|_| format!("{word}: no number"))
}

fn bind_udp(to: SocketAddr) -> Result<UdpSocket> {
    UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).map_err(text)
}

fn run(words: &[&str]) -> Result<String> {
    let fine = |()| "ok".to_owned();
    match words {
        ["serve"] => {
            serve(TcpListener::bind(("::", PORT)).map_err(text)?);
            for any in ["0.0.0.0", "::"] {
                serve_udp(only(any)?);
            }
            loop {
                thread::park();
            }
        }
        ["get", to, n] => get(connect(address(to)?)?, count(n)?).map(fine),
        ["put", to, n] => put(connect(address(to)?)?, count(n)?).map(fine),
        ["get", to, n, streams] => several(address(to)?, count(n)?, size(streams)?, get).map(fine),
        ["put", to, n, streams] => several(address(to)?, count(n)?, size(streams)?, put).map(fine),
        ["who", to] => who(connect(address(to)?)?),
        ["udp", to, bytes, n] => {
            let to = address(to)?;
            datagrams(&bind_udp(to)?, to, size(bytes)?, size(n)?).map(fine)
        }
        ["udpwho", to] => {
            let to = address(to)?;
            udp_who(&bind_udp(to)?, to)
        }
        ["open", to, n] => open_many(address(to)?, size(n)?).map(fine),
        ["accept", port, n] => {
            let port: u16 = port.parse().map_err(|_| "no port".to_owned())?;
            let listener = TcpListener::bind(("::", port)).map_err(text)?;
            release(accept_many(&listener, size(n)?)?).map(fine)
        }
        ["repeat", to, n] => {
            let to = address(to)?;
            (0..size(n)?)
                .try_for_each(|_| who(connect(to)?).map(drop))
                .map(fine)
        }
        _ => Err("not known here".to_owned()),
    }
}

/// A datagram socket of one family only, as a dual-stack one would also take the other's port.
fn only(any: &str) -> Result<UdpSocket> {
    use nix::sys::socket::SockaddrIn6;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, bind, socket};
    use std::os::fd::AsRawFd;
    if any == "0.0.0.0" {
        return UdpSocket::bind((any, PORT)).map_err(text);
    }
    let fd = socket(
        AddressFamily::Inet6,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(text)?;
    setsockopt(&fd, sockopt::Ipv6V6Only, &true).map_err(text)?;
    let at = std::net::SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, PORT, 0, 0);
    bind(fd.as_raw_fd(), &SockaddrIn6::from(at)).map_err(text)?;
    Ok(UdpSocket::from(fd))
}

/// `streams` connections at once, each with its own `n` bytes.
pub fn several(
    to: SocketAddr,
    n: u64,
    streams: usize,
    each: fn(TcpStream, u64) -> Result<()>,
) -> Result<()> {
    thread::scope(|s| {
        let all: Vec<_> = (0..streams)
            .map(|_| s.spawn(move || each(connect(to)?, n)))
            .collect();
        all.into_iter()
            .try_for_each(|h| h.join().expect("no panic"))
    })
}
