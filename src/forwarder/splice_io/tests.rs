//! The engine over real sockets and pipes, driven by a real event set.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::epoll::{EpollEvent, EpollTimeout};

use super::*;
use crate::clock::Instant;
use crate::forwarder::testing;
use crate::tcp::splice::{Arrival, Engine, Readiness};

/// Engine and host, and a target to connect to.
struct World {
    host: Host,
    engine: Engine<Host>,
    door: TcpListener,
    target: TcpListener,
    epoch: std::time::Instant,
    /// Wake-ups so far.
    rounds: u64,
}

impl World {
    fn new(listen: &str) -> Self {
        let (host, _guest) = testing::host();
        Self {
            host,
            engine: Engine::new(64, [7; 16]),
            door: TcpListener::bind(listen).unwrap(),
            target: TcpListener::bind(listen).unwrap(),
            epoch: std::time::Instant::now(),
            rounds: 0,
        }
    }

    /// One whose sockets hold little.
    fn tight() -> Self {
        let w = Self::new("127.0.0.1:0");
        for listener in [&w.door, &w.target] {
            for name in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
                stream::set_int(listener, libc::SOL_SOCKET, name, 1 << 16).unwrap();
            }
        }
        w
    }

    /// Send until nothing moves any more: how much that was.
    fn fill(&mut self, from: &mut TcpStream, data: &[u8]) -> usize {
        from.set_nonblocking(true).unwrap();
        let mut sent = 0;
        let mut quiet = 0;
        while quiet < 5 {
            let before = sent;
            while let Ok(n) = from.write(&data[sent..]) {
                assert!(n > 0, "there is no end to the buffers");
                sent += n;
            }
            self.round(20);
            quiet = if sent == before { quiet + 1 } else { 0 };
        }
        from.set_nonblocking(false).unwrap();
        sent
    }

    fn now(&self) -> Instant {
        Instant::default() + self.epoch.elapsed()
    }

    /// A client's connection that has been accepted and handed to the engine.
    fn open(&mut self) -> TcpStream {
        let client = TcpStream::connect(self.door.local_addr().unwrap()).unwrap();
        let (socket, peer) = stream::accept(&self.door).unwrap();
        let _ = stream::set_int(&socket, IPPROTO_TCP, TCP_NODELAY, 1);
        let arrival = Arrival {
            socket,
            way: Way::Out,
            peer: peer.into(),
            to: self.target.local_addr().unwrap().into(),
            source: None,
            rule: None,
        };
        let now = self.now();
        self.engine.accept(&mut self.host, now, arrival);
        client
    }

    /// The same, and the target's end of it.
    fn pair(&mut self) -> (TcpStream, TcpStream) {
        let client = self.open();
        let (server, _) = self.target.accept().unwrap();
        (client, server)
    }

    /// One wake-up of at most `ms`.
    fn round(&mut self, ms: u16) {
        let mut events = [EpollEvent::empty(); 64];
        let busy = self
            .engine
            .next_deadline()
            .is_some_and(|at| at <= self.now());
        let timeout = EpollTimeout::from(if busy { 0 } else { ms });
        let n = self.host.epoll.wait(&mut events, timeout).unwrap();
        let now = self.now();
        self.rounds += u64::from(n > 0);
        for event in &events[..n] {
            let what = event.events();
            let ready = Readiness {
                readable: what.contains(EpollFlags::EPOLLIN),
                writable: what.contains(EpollFlags::EPOLLOUT),
                urgent: what.contains(EpollFlags::EPOLLPRI),
                hup: what.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP),
                error: what.contains(EpollFlags::EPOLLERR),
            };
            let Some(Token::Splice(id, end)) = Token::from_raw(event.data()) else {
                panic!("not ours");
            };
            self.engine.on_socket(&mut self.host, now, id, end, ready);
        }
        self.engine.on_timer(&mut self.host, now);
    }

    /// Carry until `work`, in another thread, is done.
    fn during<R: Send>(&mut self, work: impl FnOnce() -> R + Send) -> R {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                done.store(true, Ordering::Release);
                result
            });
            let begin = std::time::Instant::now();
            while !done.load(Ordering::Acquire) {
                assert!(begin.elapsed() < Duration::from_secs(30), "stuck");
                self.round(5);
            }
            worker.join().unwrap().unwrap()
        })
    }

    /// Carry until there is no connection left.
    fn drain(&mut self) {
        let begin = std::time::Instant::now();
        while !self.engine.is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(10), "still there");
            self.round(5);
        }
        assert_eq!(self.host.pipes.live, self.host.pipes.stock.len());
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect()
}

fn families(test: impl Fn(World)) {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        test(World::new(listen));
    }
}

#[test]
fn requests_and_answers_pass_and_both_ends_close() {
    families(|mut w| {
        let (mut client, mut server) = w.pair();
        w.during(move || {
            for n in [1, 100, 70_000] {
                client.write_all(&pattern(n)).unwrap();
                let mut got = vec![0; n];
                server.read_exact(&mut got).unwrap();
                assert_eq!(got, pattern(n));
                server.write_all(&got).unwrap();
                client.read_exact(&mut got).unwrap();
                assert_eq!(got, pattern(n));
            }
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        });
        w.drain();
    });
}

#[test]
fn bulk_arrives_whole_both_ways_at_once() {
    families(|mut w| {
        let (client, server) = w.pair();
        let data = pattern(20_000_000);
        let both = [(&client, &server), (&server, &client)];
        w.during(|| {
            thread::scope(|scope| {
                for (mut from, mut to) in both {
                    let data = &data;
                    scope.spawn(move || {
                        from.write_all(data).unwrap();
                        from.shutdown(Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || {
                        let mut got = Vec::new();
                        to.read_to_end(&mut got).unwrap();
                        assert!(got == *data);
                    });
                }
            });
        });
        w.drain();
    });
}

#[test]
fn bulk_passes_without_a_single_pipe() {
    let mut w = World::new("127.0.0.1:0");
    w.host.pipes = Pipes::new(0);
    let (mut client, mut server) = w.pair();
    let data = pattern(5_000_000);
    w.during(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(&data).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            server.read_to_end(&mut got).unwrap();
            assert!(got == data);
        });
    });
    drop((client, server));
    w.drain();
}

#[test]
fn many_slow_receivers_do_not_use_up_what_all_programs_share() {
    let mut pipes = Pipes::new(256);
    let taken: Vec<_> = std::iter::from_fn(|| pipes.take()).collect();
    assert_eq!(taken.len(), 32, "a quarter of the descriptors");
    assert!(taken[LARGE..].iter().all(|p| p.size() <= ORDINARY));
    let large = taken.iter().filter(|p| is_large(p)).count();
    for pipe in taken.into_iter().rev() {
        pipes.put(pipe);
    }
    assert_eq!((pipes.live, pipes.stock.len()), (STOCK, STOCK));
    assert_eq!(pipes.large, large, "these are kept, and lent first");
    for n in 0..STOCK {
        assert_eq!(pipes.take().is_some_and(|p| is_large(&p)), n < large);
    }
}

#[test]
fn a_receiver_that_stops_neither_spins_nor_stalls_the_other_direction() {
    let mut w = World::tight();
    let (mut client, mut server) = w.pair();
    let data = pattern(30_000_000);
    // The server does not read.
    let sent = w.fill(&mut client, &data);
    let rounds = w.rounds;
    for _ in 0..5 {
        w.round(20);
    }
    assert!(w.rounds < rounds + 4, "woken up without news");
    w.during(|| {
        for _ in 0..10 {
            server.write_all(b"pong").unwrap();
            let mut got = [0; 4];
            client.read_exact(&mut got).unwrap();
        }
    });
    assert!(w.rounds < rounds + 100, "{} wake-ups", w.rounds - rounds);
    w.during(|| {
        let mut got = vec![0; sent];
        server.read_exact(&mut got).unwrap();
        assert!(got == data[..sent]);
    });
    drop((client, server));
    w.drain();
}

#[test]
fn a_fin_passes_after_what_the_full_receiver_has_still_to_get() {
    for from_client in [true, false] {
        let mut w = World::tight();
        let (client, server) = w.pair();
        let (mut from, mut to) = if from_client {
            (client, server)
        } else {
            (server, client)
        };
        let data = pattern(30_000_000);
        let sent = w.fill(&mut from, &data);
        from.shutdown(Shutdown::Write).unwrap();
        w.round(20);
        w.during(|| {
            let mut got = Vec::new();
            to.read_to_end(&mut got).unwrap();
            assert!(got == data[..sent]);
            // The other direction is still open.
            to.write_all(b"thanks").unwrap();
            let mut got = [0; 6];
            from.read_exact(&mut got).unwrap();
        });
        drop((from, to));
        w.drain();
    }
}

#[test]
fn a_reset_of_either_side_resets_the_other() {
    for from_client in [true, false] {
        let mut w = World::new("127.0.0.1:0");
        let (client, server) = w.pair();
        let (from, mut to) = if from_client {
            (client, server)
        } else {
            (server, client)
        };
        w.round(5);
        stream::linger_zero(&from).unwrap();
        drop(from);
        let e = w.during(|| to.read(&mut [0]).unwrap_err());
        assert_eq!(e.kind(), ErrorKind::ConnectionReset);
        w.drain();
    }
}

#[test]
fn a_reset_after_half_a_close_resets_the_other() {
    for from_client in [true, false] {
        let mut w = World::new("127.0.0.1:0");
        let (client, server) = w.pair();
        let (from, mut to) = if from_client {
            (client, server)
        } else {
            (server, client)
        };
        from.shutdown(Shutdown::Write).unwrap();
        assert_eq!(w.during(|| to.read(&mut [0]).unwrap()), 0);
        stream::linger_zero(&from).unwrap();
        drop(from);
        let e = w.during(|| {
            // Writing is how one side that only sends finds out.
            loop {
                if let Err(e) = to.write_all(&[0; 100]) {
                    break e;
                }
                thread::yield_now();
            }
        });
        assert!(
            matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{e}"
        );
        w.drain();
    }
}

#[test]
fn nobody_listening_there_is_a_reset_here() {
    families(|mut w| {
        // A port that was just free.
        let address = w.target.local_addr().unwrap();
        w.target = TcpListener::bind((address.ip(), 0)).unwrap();
        let refused =
            std::mem::replace(&mut w.target, TcpListener::bind((address.ip(), 0)).unwrap());
        let gone = refused.local_addr().unwrap();
        drop(refused);
        let mut client = TcpStream::connect(w.door.local_addr().unwrap()).unwrap();
        let (socket, peer) = stream::accept(&w.door).unwrap();
        let arrival = Arrival {
            socket,
            way: Way::Out,
            peer: peer.into(),
            to: gone.into(),
            source: None,
            rule: None,
        };
        let now = w.now();
        w.engine.accept(&mut w.host, now, arrival);
        let e = w.during(|| client.read(&mut [0]).unwrap_err());
        assert_eq!(e.kind(), ErrorKind::ConnectionReset);
        assert_eq!(w.host.link.counters.dropped(Drop::SocketError), 1);
        w.drain();
    });
}

#[test]
fn what_follows_urgent_data_does_not_wait_for_more() {
    let mut w = World::new("127.0.0.1:0");
    let (client, mut server) = w.pair();
    w.round(5);
    let fd = client.as_fd();
    let send = |data: &[u8], flags| {
        nix::sys::socket::send(std::os::fd::AsRawFd::as_raw_fd(&fd), data, flags).unwrap()
    };
    send(b"before", nix::sys::socket::MsgFlags::empty());
    send(b"!", nix::sys::socket::MsgFlags::MSG_OOB);
    send(b"after", nix::sys::socket::MsgFlags::empty());
    let got = w.during(|| {
        let mut got = [0; 11];
        server.read_exact(&mut got).unwrap();
        got
    });
    assert_eq!(&got, b"beforeafter");
}

/// ... nor does it get lost: splice(2) stops in front of it, and says so with the same words as at the end.
#[test]
fn urgent_data_in_a_bulk_transfer_is_not_its_end() {
    let mut w = World::new("127.0.0.1:0");
    let (mut client, mut server) = w.pair();
    let data = pattern(4_000_000);
    let limit = Some(Duration::from_secs(4));
    client.set_write_timeout(limit).unwrap();
    server.set_read_timeout(limit).unwrap();
    w.during(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(&data).unwrap();
                let fd = std::os::fd::AsRawFd::as_raw_fd(&client.as_fd());
                let urgent = nix::sys::socket::MsgFlags::MSG_OOB;
                nix::sys::socket::send(fd, b"!", urgent).unwrap();
                client.write_all(b"after").unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            server.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), data.len() + 5);
        });
    });
}

#[test]
fn a_source_address_other_than_the_usual_is_kept() {
    let mut w = World::new("127.0.0.1:0");
    let client = TcpStream::connect(w.door.local_addr().unwrap()).unwrap();
    let (socket, peer) = stream::accept(&w.door).unwrap();
    let arrival = Arrival {
        socket,
        way: Way::Out,
        peer: peer.into(),
        to: w.target.local_addr().unwrap().into(),
        source: Some("127.0.0.2".parse().unwrap()),
        rule: None,
    };
    let now = w.now();
    assert!(w.engine.accept(&mut w.host, now, arrival));
    let (_server, from) = w.target.accept().unwrap();
    assert_eq!(from.ip(), "127.0.0.2".parse::<IpAddr>().unwrap());
    drop(client);
}
