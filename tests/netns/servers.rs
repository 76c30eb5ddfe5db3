//! Small servers and the data they exchange.  Each runs on threads of the test process and ends with it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::OnceLock;

use crate::world::{Netns, bounded};

/// Bytes that repeat only after a prime number of them, so that a lost, doubled or moved block shows.
const PERIOD: usize = 262_147;

fn pattern() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..PERIOD).map(|_| next()).collect()
    })
}

/// Writes the first `n` bytes of the pattern.
pub fn send_pattern(to: &mut impl Write, n: u64) -> std::io::Result<()> {
    let mut left = n;
    while left > 0 {
        let part = usize::try_from(left).map_or(PERIOD, |l| l.min(PERIOD));
        to.write_all(&pattern()[..part])?;
        left -= part as u64;
    }
    Ok(())
}

/// Reads to the end; says how many bytes came, and fails at the first that is not of the pattern.
pub fn check_pattern(from: &mut impl Read) -> Result<u64, String> {
    let (mut buffer, mut total) = (vec![0; 1 << 17], 0_u64);
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => n,
            Err(e) => return Err(format!("after {total} bytes: {e}")),
        };
        let mut seen = &buffer[..n];
        while !seen.is_empty() {
            let at = usize::try_from(total % PERIOD as u64).expect("less than the period");
            let part = seen.len().min(PERIOD - at);
            if seen[..part] != pattern()[at..at + part] {
                return Err(format!("wrong data within {part} bytes after {total}"));
            }
            seen = &seen[part..];
            total += part as u64;
        }
    }
}

/// A file of `n` bytes of the pattern.
pub fn pattern_file(path: &str, n: u64) {
    send_pattern(&mut File::create(path).expect("tmpfs"), n).expect("room for the file");
}

/// Accepts for ever, one thread per connection.
pub fn serve(listener: TcpListener, each: impl Fn(TcpStream) + Clone + Send + 'static) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            std::thread::spawn(move || bounded(stream).map(each));
        }
    });
}

/// What HTTP answers to GET /.
pub const PAGE: &str = "a page of the suite\n";

/// HTTP on `addr`: GET / answers [`PAGE`], /N and /big?N N bytes of the pattern, /who the address that it was asked at
/// and the one it was asked from; PUT checks its body and answers its length.
pub fn http(ns: &Netns, addr: (&str, u16)) {
    serve(ns.listen(addr), |stream| {
        http_once(stream).ok();
    });
}

fn http_once(stream: TcpStream) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let (mut request, mut length, mut expect) = (String::new(), 0_u64, false);
    input.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(n) = line.strip_prefix("content-length: ") {
            length = n.parse().unwrap_or(0);
        }
        expect |= line == "expect: 100-continue";
    }
    let mut output = stream;
    if request.starts_with("PUT") {
        if expect {
            output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let answer = match check_pattern(&mut input.take(length)) {
            Ok(n) => format!("stored {n}\n"),
            Err(e) => format!("bad: {e}\n"),
        };
        return write!(
            output,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
            answer.len()
        );
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let text = match path {
        "/" => Some(PAGE.to_owned()),
        "/who" => Some(format!(
            "{} {}\n",
            output.local_addr()?,
            output.peer_addr()?
        )),
        _ => None,
    };
    if let Some(text) = text {
        return write!(
            output,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
    }
    let number = path.trim_start_matches("/big?").trim_start_matches('/');
    let n: u64 = number.parse().unwrap_or(0);
    write!(
        output,
        "HTTP/1.1 200 OK\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n"
    )?;
    send_pattern(&mut output, n)
}

/// TCP echo.
pub fn echo(ns: &Netns, addr: (&str, u16)) {
    serve(ns.listen(addr), |mut stream| {
        let mut buffer = [0; 65536];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    });
}

/// UDP echo; answers each datagram with itself.
pub fn udp_echo(ns: &Netns, addr: (&str, u16)) {
    let socket = ns.udp(addr);
    socket.set_read_timeout(None).expect("a socket option");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..n], from).ok();
        }
    });
}

/// A name server on port 53 of `addr`, UDP and TCP: every A is 192.0.2.80, every AAAA 2001:db8::80; a TXT is
/// too long for UDP (truncated there, 2000 bytes by TCP).
pub fn dns(ns: &Netns, addr: &str) {
    let socket: UdpSocket = ns.udp((addr, 53));
    socket.set_read_timeout(None).expect("a socket option");
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = dns_answer(&buffer[..n], false) {
                socket.send_to(&answer, from).ok();
            }
        }
    });
    serve(ns.listen((addr, 53)), |mut stream| {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            let Some(answer) = stream
                .read_exact(&mut query)
                .ok()
                .and_then(|()| dns_answer(&query, true))
            else {
                return;
            };
            let length = u16::try_from(answer.len())
                .expect("a short answer")
                .to_be_bytes();
            if stream.write_all(&[&length[..], &answer].concat()).is_err() {
                return;
            }
        }
    });
}

fn dns_answer(query: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let name_end = 12 + query.get(12..)?.iter().position(|b| *b == 0)?;
    let question = query.get(12..name_end + 5)?;
    let data: Vec<u8> = match question[question.len() - 3] {
        1 => vec![192, 0, 2, 80],
        28 => "2001:db8::80"
            .parse::<std::net::Ipv6Addr>()
            .ok()?
            .octets()
            .to_vec(),
        16 if tcp => std::iter::repeat_n([&[200_u8][..], &[b'x'; 200]].concat(), 10)
            .flatten()
            .collect(),
        _ => vec![],
    };
    let truncated = question[question.len() - 3] == 16 && !tcp;
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([
        if truncated { 0x87 } else { 0x85 },
        0x80,
        0,
        1,
        0,
        u8::from(!data.is_empty()),
        0,
        0,
        0,
        0,
    ]);
    answer.extend(question);
    if !data.is_empty() {
        answer.extend([0xc0, 12, 0, question[question.len() - 3], 0, 1, 0, 0, 0, 60]);
        answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}
