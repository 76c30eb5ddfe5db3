//! The stream socket: each frame behind its length, 32 bits, big-endian.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::exec::{SOON, cpu_ticks, poll_until};
use crate::frames::{arp_reply, arp_request, udp};
use crate::harness::tests;
use crate::passt::{Passt, sound};
use crate::raw::closes;
use crate::world::{PEER4, World};

tests![
    bad_lengths,
    bad_lengths_end_one_off,
    connected_descriptor,
    every_split,
    flood_without_reading,
    garbage_in_frames,
    half_a_frame,
    many_frames_at_once,
    one_off,
    random_splits,
    reconnect_often,
    second_client_is_refused,
    shortest_and_longest,
];

/// Shortest and longest frame that the socket takes: an Ethernet header, and 64 KiB less one behind it.
const SHORTEST: u32 = 14;
const LONGEST: u32 = 65_549;

const BAD: [u32; 12] = [
    0,
    1,
    2,
    13,
    65_550,
    65_551,
    70_000,
    1 << 24,
    0x3c00_0000, // 60, in the wrong byte order
    0x7fff_ffff,
    0x8000_0000,
    u32::MAX,
];

/// A client that speaks frames.
#[derive(Debug)]
pub struct Client {
    pub socket: UnixStream,
    bytes: Vec<u8>,
}

impl Client {
    /// Connects until it is served: a predecessor's connection may still be there.
    #[track_caller]
    pub fn connect(passt: &Passt) -> Client {
        let end = Instant::now() + SOON;
        loop {
            let mut client = Client::over(passt.dial());
            client.send_all(&framed(&arp_request())).ok();
            if client
                .next(arp_reply, SOON)
                .is_ok_and(|found| found.is_some())
            {
                return client;
            }
            assert!(Instant::now() < end, "not served; {}", passt.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn over(socket: UnixStream) -> Client {
        Client {
            socket,
            bytes: Vec::new(),
        }
    }

    pub fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        self.send_all(&framed(frame)).expect("the frame is taken");
    }

    /// The next frame that satisfies `wanted`; an error when the connection ends.
    fn next<T>(
        &mut self,
        wanted: impl Fn(&[u8]) -> Option<T>,
        limit: Duration,
    ) -> io::Result<Option<T>> {
        let end = Instant::now() + limit;
        loop {
            while let Some(frame) = self.cut() {
                if let Some(found) = wanted(&frame) {
                    return Ok(Some(found));
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 65_536];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.bytes.extend(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn cut(&mut self) -> Option<Vec<u8>> {
        let len = self.bytes.get(..4)?.try_into().expect("4 bytes");
        let len = usize::try_from(u32::from_be_bytes(len)).expect("a length");
        assert!((60..=65_549).contains(&len), "a frame of {len} bytes");
        let frame = self.bytes.get(4..4 + len)?.to_vec();
        self.bytes.drain(..4 + len);
        Some(frame)
    }

    #[track_caller]
    pub fn receive<T>(&mut self, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        self.next(wanted, SOON)
            .expect("the connection ended")
            .expect("the frame that was expected did not come")
    }
}

/// A frame behind its length.
pub fn framed(frame: &[u8]) -> Vec<u8> {
    let len = u32::try_from(frame.len()).expect("a frame");
    [&len.to_be_bytes()[..], frame].concat()
}

fn every_split() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let mut client = Client::connect(&passt);
    let bytes = [framed(&arp_request()), framed(&arp_request())].concat();
    for at in 1..bytes.len() {
        client.send_all(&bytes[..at]).expect("taken");
        client.send_all(&bytes[at..]).expect("taken");
        client.receive(arp_reply);
        client.receive(arp_reply);
    }
    for byte in &bytes {
        client.send_all(&[*byte]).expect("taken");
    }
    client.receive(arp_reply);
    client.receive(arp_reply);
    assert!(!closes(&client.socket, Duration::from_millis(1)));
    passt.stop();
}

/// Pieces of any length, of frames of any length.
fn random_splits() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let mut client = Client::connect(&passt);
    let echo = world.peer.udp((PEER4, 7070));
    let mac = gateway(&mut client);
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut buffer = vec![0; 70_000];
    for round in 0..150 {
        // As much at a time as the peer's socket holds.
        let (count, most) = if round % 5 == 0 {
            (1, 65_000)
        } else {
            (8, 5000)
        };
        let (mut bytes, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let payload: Vec<u8> = (0..random.below(most))
                .map(|i| i.to_le_bytes()[0])
                .collect();
            bytes.extend(framed(&udp(mac, (PEER4, 7070), 7071, &payload)));
            sent.push(payload);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = if random.below(3) == 0 { 200_000 } else { 1000 };
            let (part, more) = rest.split_at((1 + random.below(len)).min(rest.len()));
            client.send_all(part).expect("taken");
            rest = more;
        }
        for (i, payload) in sent.iter().enumerate() {
            let n = echo
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("round {round}, datagram {i}: {e}"));
            assert!(
                buffer[..n] == payload[..],
                "round {round}, datagram {i} has changed"
            );
        }
    }
    gateway(&mut client);
    passt.stop();
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % n
    }
}

#[track_caller]
fn gateway(client: &mut Client) -> [u8; 6] {
    client.send(&arp_request());
    client.receive(arp_reply)
}

fn many_frames_at_once() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let mut client = Client::connect(&passt);
    const COUNT: usize = 3000;
    let bytes = framed(&arp_request()).repeat(COUNT);
    let writer = client.socket.try_clone().expect("a descriptor");
    std::thread::scope(|s| {
        s.spawn(move || (&writer).write_all(&bytes).expect("taken"));
        for _ in 0..COUNT {
            client.receive(arp_reply);
        }
    });
    passt.stop();
}

fn shortest_and_longest() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let mut client = Client::connect(&passt);
    for len in [
        SHORTEST,
        SHORTEST + 1,
        59,
        60,
        61,
        1514,
        65_535,
        65_536,
        LONGEST - 1,
        LONGEST,
    ] {
        let mut frame = arp_request();
        frame.resize(usize::try_from(len).expect("small"), 0);
        client.send(&frame);
        gateway(&mut client);
    }
    passt.stop();
}

fn bad_lengths() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    for len in BAD {
        // At once, behind a good frame, and in two pieces, with and without something behind it.
        for how in 0..4 {
            let mut client = Client::connect(&passt);
            let word = len.to_be_bytes();
            match how {
                0 => client.send_all(&word).ok(),
                1 => {
                    let all = [&framed(&arp_request())[..], &word, &[0x41; 5000]].concat();
                    client.send_all(&all).ok()
                }
                2 => client.send_all(&[&word[..], &[0xff; 100]].concat()).ok(),
                _ => {
                    client.send_all(&word[..2]).ok();
                    client.send_all(&word[2..]).ok()
                }
            };
            assert!(closes(&client.socket, SOON), "length {len:#x} is taken");
        }
    }
    gateway(&mut Client::connect(&passt));
    sound(&passt.stop());
}

fn bad_lengths_end_one_off() {
    let world = World::direct();
    for len in [0_u32, 13, 65_550, u32::MAX] {
        let passt = Passt::start(&world, &["--one-off"]);
        let mut client = Client::connect(&passt);
        client.send_all(&len.to_be_bytes()).expect("taken");
        assert!(closes(&client.socket, SOON), "length {len:#x} is taken");
        passt.ends(&[0]);
    }
}

/// Frames of honest length and dishonest contents.
fn garbage_in_frames() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let mut client = Client::connect(&passt);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::new();
    for i in 0..5000 {
        let mut frame = arp_request();
        frame.resize(14 + random.below(if i % 50 == 0 { 65_000 } else { 200 }), 0);
        for byte in &mut frame[14..] {
            *byte = random.below(256).to_le_bytes()[0];
        }
        // IPv4, IPv6 and ARP with a likely start, or anything.
        match i % 4 {
            0 => frame[12..14].copy_from_slice(&[0x08, 0x00]),
            1 => frame[12..14].copy_from_slice(&[0x86, 0xdd]),
            2 => frame[12..14].copy_from_slice(&[0x08, 0x06]),
            _ => frame[12] = 0x11,
        }
        if let (0 | 1, Some(first)) = (i % 4, frame.get_mut(14)) {
            *first = if i % 4 == 0 { 0x45 } else { 0x60 };
        }
        bytes.extend(framed(&frame));
    }
    client.send_all(&bytes).expect("taken");
    gateway(&mut client);
    passt.stop();
}

/// Half a frame, and then nothing: others are looked after, and the client may go.
fn half_a_frame() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let bytes = framed(&arp_request());
    for at in 1..bytes.len() {
        let mut client = Client::connect(&passt);
        client.send_all(&bytes[..at]).expect("taken");
        assert!(closes(&passt.dial(), SOON), "blocked by half a frame");
        if at % 2 == 0 {
            // What is left of it is not the start of the next client's frame.
            drop(client);
        } else {
            client.send_all(&bytes[at..]).expect("taken");
            client.receive(arp_reply);
        }
    }
    passt.stop();
}

fn second_client_is_refused() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let mut first = Client::connect(&passt);
    for _ in 0..50 {
        let mut second = Client::over(passt.dial());
        second.send_all(&framed(&arp_request())).ok();
        assert!(
            closes(&second.socket, SOON),
            "the second client is left waiting"
        );
        gateway(&mut first);
    }
    drop(first);
    gateway(&mut Client::connect(&passt));
    passt.stop();
}

/// Ten thousand clients that come and go, with nothing, something, or half of something.
fn reconnect_often() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    drop(Client::connect(&passt));
    let client = Client::connect(&passt);
    let before = passt.descriptors();
    drop(client);
    let bytes = framed(&arp_request());
    for i in 0..10_000_usize {
        let mut client = Client::over(passt.dial());
        client.send_all(&bytes[..i % (bytes.len() + 1)]).ok();
    }
    let client = Client::connect(&passt);
    let settled = poll_until(SOON, || passt.descriptors() <= before);
    assert!(
        settled,
        "{} descriptors, there were {before}",
        passt.descriptors()
    );
    drop(client);
    passt.stop();
}

fn one_off() {
    let world = World::direct();
    for how in 0..3 {
        let passt = Passt::start(&world, &["-1"]);
        match how {
            0 => drop(Client::connect(&passt)),
            1 => Client::over(passt.dial()).send_all(&[0, 0]).expect("taken"),
            _ => drop(passt.dial()),
        }
        passt.ends(&[0]);
    }
}

/// A socket that is connected already, as some machine monitors hand it over.
fn connected_descriptor() {
    let world = World::direct();
    for how in 0..3 {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let passt = Passt::start_with(&world, &[], theirs.into());
        let mut client = Client::over(ours);
        gateway(&mut client);
        match how {
            0 => drop(client),
            1 => client.socket.shutdown(Shutdown::Both).expect("connected"),
            _ => client.send_all(&[0xff; 4]).expect("taken"),
        }
        passt.ends(&[0]);
    }
}

/// A client that asks and asks and never listens: what does not fit is lost, but never half of it.
fn flood_without_reading() {
    let world = World::direct();
    let passt = Passt::start(&world, &[]);
    let mut client = Client::connect(&passt);
    let bytes = framed(&arp_request()).repeat(20_000);
    client.send_all(&bytes).expect("taken");
    assert!(closes(&passt.dial(), SOON), "a flood blocks everything");
    let quiet = || {
        let before = cpu_ticks();
        std::thread::sleep(Duration::from_millis(200));
        cpu_ticks() - before < 10
    };
    assert!(
        poll_until(SOON, quiet),
        "spinning for a client that does not read"
    );
    let mut whole = 0;
    while client
        .next(arp_reply, Duration::from_millis(300))
        .expect("connected")
        .is_some()
    {
        whole += 1;
    }
    assert!(whole > 100, "{whole} answers");
    gateway(&mut client);
    passt.stop();
}
