//! A hostile guest: rings and headers that lie.
//!
//! The guest may write whatever it likes into its memory whenever it likes, so nothing here is an error of the
//! monitor. Expected: the frame is dropped, or the machine is let go; whoever connects next is served; and nothing
//! crashes, spins or reads where it should not. What may be read is checked from the other end: the memory behind a
//! buffer is filled with a mark, which must never arrive at the peer.
//!
//! What others have got wrong, and where it is tried: headers across descriptors, chains in circles, indices beyond
//! the ring and lengths of nothing or 4 GiB (DPDK, CVE-2020-10722 to 10726, 2022-2132): [`chains`],
//! [`indirect_tables`]; more requests than a ring can hold (QEMU, CVE-2016-5403): [`available_index`]; a descriptor
//! that changes between two looks (OpenBSD's vmd): [`rewritten_while_read`], [`rings_rewritten`]; accesses across the
//! edge of a region (vm-memory, CVE-2023-41051): [`chains`], [`receive_buffers`]. The messages of the same advisories,
//! with descriptors that are never closed (CVE-2022-0669) and rings of sizes nobody checked (CVE-2021-3839), are in
//! [`crate::messages`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vhost::VhostBackend;

use crate::differences::established;
use crate::exec::{Ending, SOON, cpu_ticks, poll_until};
use crate::frames::{GUEST_MAC, arp_request, udp};
use crate::harness::tests;
use crate::header::{HEADER, Header};
use crate::link::gateway;
use crate::memory::{Memory, PHYSICAL};
use crate::nic::{Cut, EVERYTHING, INDIRECT_DESC, MRG_RXBUF, Nic, Shape};
use crate::passt::Passt;
use crate::raw::{answers, closes};
use crate::ring::{Descriptor, INDIRECT, NEXT, WRITE};
use crate::world::{HOST4, PEER4, World};

tests![
    available_index,
    chains,
    headers,
    indirect_tables,
    lengths_of_frames,
    memory_truncated,
    memory_truncated_one_off,
    receive_buffers,
    receive_buffers_of_a_silent_machine,
    rewritten_while_read,
    rings_rewritten,
];

const SIZE: u16 = 64;

/// What becomes of a good descriptor.
type Change = Box<dyn Fn(Descriptor) -> Descriptor>;

/// The contents of an indirect table, given a good descriptor and the table's address.
type Table = Box<dyn Fn(Descriptor, u64) -> Vec<Descriptor>>;

fn shape() -> Shape {
    Shape {
        ring: SIZE,
        posted: 48,
        room: 2048,
        cut: Cut::Whole,
        ..Shape::USUAL
    }
}

/// The program; the established one is replaced after each attack, for it may have ended.
struct Victim<'a> {
    world: &'a World,
    passt: Option<Passt>,
    ends: usize,
    /// Forwarded ports, so that the outside can send something into the receive rings.
    knock: std::net::UdpSocket,
}

impl<'a> Victim<'a> {
    fn new(world: &'a World) -> Victim<'a> {
        let knock = world.peer.udp(("0.0.0.0", 0));
        knock.connect((HOST4, 7060)).expect("an address");
        Victim {
            world,
            passt: None,
            ends: 0,
            knock,
        }
    }

    fn passt(&mut self) -> &mut Passt {
        let world = self.world;
        self.passt
            .get_or_insert_with(|| Passt::start(world, &["--vhost-user", "-u", "7060"]))
    }

    /// One attack by a machine that was served until then.
    #[track_caller]
    fn attack(&mut self, what: &str, features: u64, f: impl FnOnce(&mut Nic, [u8; 6])) {
        let memory = Memory::new(64 << 20);
        let mut nic = Nic::greet(self.passt(), shape().with(features), &memory);
        nic.start();
        let mac = gateway(&mut nic);
        f(&mut nic, mac);
        nic.pairs[0].tx.kick.write(1).expect("an eventfd");
        nic.pairs[0].rx.kick.write(1).expect("an eventfd");
        for _ in 0..5 {
            self.knock.send(&[0x55; 1000]).ok();
        }
        let socket = nic.socket.try_clone().expect("a descriptor");
        let over = answers(&socket) || established() || closes(&socket, SOON);
        assert!(over, "{what}: neither served nor let go");
        if established() {
            let mut passt = self.passt.take().expect("there");
            poll_until(Duration::from_millis(20), || passt.ended().is_some());
            self.ends += usize::from(passt.ended().is_some());
            return passt.forget();
        }
        self.passt().lives();
        drop(nic);
        drop(socket);
        gateway(&mut Nic::connect(self.passt(), shape()));
    }

    fn done(mut self) {
        if established() {
            println!("the program ended {} times", self.ends);
            if let Some(passt) = self.passt {
                passt.forget();
            }
            return;
        }
        let before = cpu_ticks();
        std::thread::sleep(Duration::from_millis(200));
        let spent = cpu_ticks() - before;
        assert!(
            spent < 10,
            "{spent} ticks of 10 ms in 200 ms with nothing to do"
        );
        self.passt.take().expect("there").stop();
    }
}

/// Readable descriptors of a frame that would be an ARP request, if they were right.
fn lay(nic: &Nic) -> Descriptor {
    let at = nic.memory.take(HEADER + 2048, 64);
    nic.memory.write(at, &Header::default().bytes());
    nic.memory.write(at + HEADER, &arp_request());
    Descriptor {
        addr: nic.memory.physical(at),
        len: 72,
        flags: 0,
        next: 0,
    }
}

/// Puts descriptors at their places and offers `head`.
fn offer(nic: &mut Nic, descriptors: &[(u16, Descriptor)], head: u16) {
    let tx = &mut nic.pairs[0].tx;
    for (index, descriptor) in descriptors {
        tx.describe(*index, *descriptor);
    }
    tx.line_up(head);
    tx.publish();
}

/// The same for a single buffer from the guest.
fn offer_one(nic: &mut Nic, addr: u64, len: u32) {
    let descriptor = Descriptor {
        addr,
        len,
        flags: 0,
        next: 0,
    };
    offer(nic, &[(60, descriptor)], 60);
}

fn available_index() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for ahead in [65, 66, 100, 127, 128, 1000, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        for index in [0, 1] {
            victim.attack(
                &format!("ring {index}, {ahead} ahead"),
                EVERYTHING,
                |nic, _| {
                    let pair = &nic.pairs[0];
                    let ring = if index == 0 { &pair.rx } else { &pair.tx };
                    ring.set_available(ring.offered.wrapping_add(ahead));
                },
            );
        }
    }
    // Exactly full of the same frame is allowed.
    victim.attack("full", EVERYTHING, |nic, _| {
        let d = lay(nic);
        let tx = &mut nic.pairs[0].tx;
        tx.describe(3, d);
        for _ in 0..SIZE {
            tx.line_up(3);
        }
        tx.publish();
    });
    for head in [64, 65, 127, 128, 0x7fff, 0x8000, 0xffff] {
        victim.attack(&format!("head {head}"), EVERYTHING, |nic, _| {
            offer(nic, &[], head);
        });
        victim.attack(&format!("receive head {head}"), EVERYTHING, |nic, _| {
            let rx = &mut nic.pairs[0].rx;
            rx.line_up(head);
            rx.publish();
        });
    }
    victim.done();
}

fn chains() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let end = PHYSICAL + (64 << 20);
    // (what, changes to the good descriptor)
    let single: Vec<(&str, Change)> = vec![
        ("nowhere", Box::new(|d| Descriptor { addr: 0, ..d })),
        (
            "below memory",
            Box::new(|d| Descriptor {
                addr: PHYSICAL - 1,
                ..d
            }),
        ),
        (
            "below memory, into it",
            Box::new(|d| Descriptor {
                addr: PHYSICAL - 71,
                ..d
            }),
        ),
        (
            "at the end",
            Box::new(move |d| Descriptor { addr: end, ..d }),
        ),
        (
            "across the end",
            Box::new(move |d| Descriptor {
                addr: end - 71,
                ..d
            }),
        ),
        (
            "up to the end",
            Box::new(move |d| Descriptor {
                addr: end - 72,
                ..d
            }),
        ),
        (
            "wraps",
            Box::new(|d| Descriptor {
                addr: u64::MAX - 70,
                ..d
            }),
        ),
        (
            "wraps to 0",
            Box::new(|d| Descriptor {
                addr: u64::MAX - 71,
                ..d
            }),
        ),
        (
            "the user's address",
            Box::new(|d| Descriptor {
                addr: crate::memory::USER,
                ..d
            }),
        ),
        ("no length", Box::new(|d| Descriptor { len: 0, ..d })),
        ("4 GiB", Box::new(|d| Descriptor { len: u32::MAX, ..d })),
        ("2 GiB", Box::new(|d| Descriptor { len: 1 << 31, ..d })),
        ("64 MiB", Box::new(|d| Descriptor { len: 64 << 20, ..d })),
        ("writable", Box::new(|d| Descriptor { flags: WRITE, ..d })),
        (
            "unknown flags",
            Box::new(|d| Descriptor { flags: 0xfff8, ..d }),
        ),
        (
            "follows itself",
            Box::new(|d| Descriptor {
                flags: NEXT,
                next: 5,
                ..d
            }),
        ),
        (
            "followed by nothing there is",
            Box::new(|d| Descriptor {
                flags: NEXT,
                next: 64,
                ..d
            }),
        ),
        (
            "followed by 65535",
            Box::new(|d| Descriptor {
                flags: NEXT,
                next: 0xffff,
                ..d
            }),
        ),
        (
            "indirect and more",
            Box::new(|d| Descriptor {
                flags: NEXT | INDIRECT,
                next: 6,
                ..d
            }),
        ),
    ];
    for (what, change) in &single {
        for features in [EVERYTHING, EVERYTHING & !INDIRECT_DESC] {
            victim.attack(what, features, |nic, _| {
                let d = change(lay(nic));
                offer(nic, &[(5, d)], 5);
                // And as the second one, behind a good header.
                let header = Descriptor {
                    len: 12,
                    flags: NEXT,
                    next: 5,
                    ..lay(nic)
                };
                offer(nic, &[(7, header)], 7);
            });
        }
    }
    victim.attack("a loop of two", EVERYTHING, |nic, _| {
        let d = lay(nic);
        let (a, b) = (
            Descriptor {
                flags: NEXT,
                next: 6,
                ..d
            },
            Descriptor {
                flags: NEXT,
                next: 5,
                ..d
            },
        );
        offer(nic, &[(5, a), (6, b)], 5);
    });
    victim.attack("a loop of all", EVERYTHING, |nic, _| {
        let d = lay(nic);
        let all: Vec<_> = (0..SIZE)
            .map(|i| {
                (
                    i,
                    Descriptor {
                        flags: NEXT,
                        len: 1,
                        next: (i + 1) % SIZE,
                        ..d
                    },
                )
            })
            .collect();
        offer(nic, &all, 0);
    });
    victim.attack("as long as the ring", EVERYTHING, |nic, _| {
        let d = lay(nic);
        let all: Vec<_> = (0..SIZE)
            .map(|i| {
                let flags = if i + 1 < SIZE { NEXT } else { 0 };
                (
                    i,
                    Descriptor {
                        flags,
                        len: 2,
                        addr: d.addr + 2 * u64::from(i),
                        next: i + 1,
                    },
                )
            })
            .collect();
        offer(nic, &all, 0);
    });
    victim.attack("as much as there is, often", EVERYTHING, |nic, _| {
        let d = Descriptor {
            addr: PHYSICAL,
            len: 64 << 20,
            flags: NEXT,
            next: 0,
        };
        let all: Vec<_> = (0..SIZE)
            .map(|i| {
                let flags = if i + 1 < SIZE { NEXT } else { 0 };
                (
                    i,
                    Descriptor {
                        flags,
                        next: i + 1,
                        ..d
                    },
                )
            })
            .collect();
        offer(nic, &all, 0);
    });
    victim.attack("readable after writable", EVERYTHING, |nic, _| {
        let d = lay(nic);
        let (a, b) = (
            Descriptor {
                flags: NEXT | WRITE,
                next: 6,
                ..d
            },
            Descriptor { flags: 0, ..d },
        );
        offer(nic, &[(5, a), (6, b)], 5);
    });
    victim.attack("the same chain twice", EVERYTHING, |nic, _| {
        let d = lay(nic);
        offer(nic, &[(5, d)], 5);
        offer(nic, &[(5, d)], 5);
    });
    victim.attack("two chains into each other", EVERYTHING, |nic, _| {
        let d = lay(nic);
        let head = Descriptor {
            flags: NEXT,
            next: 9,
            len: 12,
            ..d
        };
        offer(nic, &[(5, head), (6, head), (9, d)], 5);
        offer(nic, &[], 6);
    });
    victim.done();
}

fn indirect_tables() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let end = PHYSICAL + (64 << 20);
    for (what, addr, len) in [
        ("no table", 0, 32),
        ("nowhere", PHYSICAL - 32, 32),
        ("across the end", end - 16, 32),
        ("up to the end", end - 16, 16),
        ("wraps", u64::MAX - 15, 32),
        ("empty", PHYSICAL, 0),
        ("1 byte", PHYSICAL, 1),
        ("15 bytes", PHYSICAL, 15),
        ("17 bytes", PHYSICAL, 17),
        ("all of memory", PHYSICAL, 64 << 20),
        ("4 GiB", PHYSICAL, u32::MAX),
        ("4 GiB less 15", PHYSICAL, u32::MAX - 15),
    ] {
        for flags in [INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE] {
            for features in [EVERYTHING, EVERYTHING & !INDIRECT_DESC] {
                victim.attack(what, features, |nic, _| {
                    let d = Descriptor {
                        addr,
                        len,
                        flags,
                        next: 6,
                    };
                    let good = lay(nic);
                    offer(nic, &[(5, d), (6, good)], 5);
                });
            }
        }
    }
    // Contents of tables: what each of its descriptors says, given the table's own address.
    let tables: Vec<(&str, Table)> = vec![
        (
            "a table in a table",
            Box::new(|_, at| {
                vec![Descriptor {
                    addr: at,
                    len: 16,
                    flags: INDIRECT,
                    next: 0,
                }]
            }),
        ),
        (
            "a loop",
            Box::new(|d, _| {
                vec![
                    Descriptor {
                        flags: NEXT,
                        next: 1,
                        ..d
                    },
                    Descriptor {
                        flags: NEXT,
                        next: 0,
                        ..d
                    },
                ]
            }),
        ),
        (
            "follows itself",
            Box::new(|d, _| {
                vec![Descriptor {
                    flags: NEXT,
                    next: 0,
                    ..d
                }]
            }),
        ),
        (
            "leaves the table",
            Box::new(|d, _| {
                vec![Descriptor {
                    flags: NEXT,
                    next: 1,
                    ..d
                }]
            }),
        ),
        (
            "leaves it far",
            Box::new(|d, _| {
                vec![Descriptor {
                    flags: NEXT,
                    next: 0xffff,
                    ..d
                }]
            }),
        ),
        (
            "long lists",
            Box::new(|d, _| {
                (1..=5000)
                    .map(|i| Descriptor {
                        flags: if i < 5000 { NEXT } else { 0 },
                        len: 1,
                        next: i,
                        ..d
                    })
                    .collect()
            }),
        ),
        (
            "4 GiB each",
            Box::new(|d, _| {
                (1..=30)
                    .map(|i| Descriptor {
                        flags: if i < 30 { NEXT } else { 0 },
                        len: u32::MAX,
                        next: i,
                        ..d
                    })
                    .collect()
            }),
        ),
        (
            "nothing in them",
            Box::new(|d, _| {
                (1..=30)
                    .map(|i| Descriptor {
                        flags: if i < 30 { NEXT } else { 0 },
                        len: 0,
                        next: i,
                        ..d
                    })
                    .collect()
            }),
        ),
        (
            "outside",
            Box::new(|d, _| vec![Descriptor { addr: 1 << 60, ..d }]),
        ),
        (
            "writable",
            Box::new(|d, _| vec![Descriptor { flags: WRITE, ..d }]),
        ),
    ];
    for (what, make) in &tables {
        victim.attack(what, EVERYTHING, |nic, _| {
            let at = nic.memory.take(16 * 5000, 16);
            let all = make(lay(nic), nic.memory.physical(at));
            let bytes: Vec<u8> = all.iter().flat_map(|d| d.bytes()).collect();
            nic.memory.write(at, &bytes);
            let len = u32::try_from(bytes.len()).expect("small");
            let d = Descriptor {
                addr: nic.memory.physical(at),
                len,
                flags: INDIRECT,
                next: 0,
            };
            offer(nic, &[(5, d)], 5);
            // The same for receiving.
            let rx = &mut nic.pairs[0].rx;
            rx.describe(63, d);
            rx.line_up(63);
            rx.publish();
        });
    }
    victim.done();
}

/// Frames that are too short, too long, or end inside their headers.
fn lengths_of_frames() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for features in [EVERYTHING, MRG_RXBUF] {
        victim.attack("short frames", features, |nic, mac| {
            let frame = udp(mac, (PEER4, 9), 7000, &[0; 100]);
            for len in 0..frame.len() {
                nic.send(&frame[..len]);
            }
            // Less than the header, in one descriptor and in two.
            for len in 1..HEADER {
                let len = u32::try_from(len).expect("small");
                let d = Descriptor { len, ..lay(nic) };
                offer(nic, &[(60, d)], 60);
                let half = Descriptor {
                    len: 1,
                    flags: NEXT,
                    next: 61,
                    ..d
                };
                offer(
                    nic,
                    &[(62, half), (61, Descriptor { len: len - 1, ..d })],
                    62,
                );
            }
        });
        victim.attack("long frames", features, |nic, _| {
            let at = nic.memory.take(1 << 20, 64);
            nic.memory.write(at + HEADER, &arp_request());
            for len in [
                65_535 + HEADER,
                65_549 + HEADER,
                65_550 + HEADER,
                70_000,
                131_072,
                1 << 20,
            ] {
                let len = u32::try_from(len).expect("small");
                let addr = nic.memory.physical(at);
                offer_one(nic, addr, len);
            }
        });
    }
    victim.done();
}

/// Offload headers that lie about what is behind them.
fn headers() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let mark = [0xa5; 64];
    for features in [EVERYTHING, MRG_RXBUF] {
        victim.attack("headers", features, |nic, mac| {
            let plain = udp(mac, (PEER4, 9), 7000, &[0; 500]);
            for flags in [0, 1, 2, 3, 4, 0xff] {
                for gso in [0, 1, 2, 3, 4, 5, 6, 0x7f, 0x80, 0x81, 0xff] {
                    for (gso_size, hdr_len) in [
                        (0, 0),
                        (1, 42),
                        (1, 0xffff),
                        (0xffff, 0),
                        (100, 41),
                        (499, 1),
                    ] {
                        for (csum_start, csum_offset) in [
                            (34, 6),
                            (0, 0),
                            (0xffff, 0xffff),
                            (542, 0),
                            (541, 1),
                            (34, 0xfff0),
                            (13, 6),
                        ] {
                            let header = Header {
                                flags,
                                gso,
                                hdr_len,
                                gso_size,
                                csum_start,
                                csum_offset,
                                buffers: 0xffff,
                            };
                            send(nic, &header, &plain);
                        }
                    }
                }
            }
        });
        victim.attack(
            "segments of a TCP packet that is none",
            features,
            |nic, mac| {
                let mut frame = udp(mac, (PEER4, 9), 7000, &[0; 3000]);
                frame[23] = 6; // TCP, of which the header is nonsense
                for offset in [0, 0x40, 0x50, 0xf0] {
                    frame[46] = offset;
                    for gso_size in [1, 2, 100, 2999, 3000, 0xffff] {
                        for gso in [1, 4] {
                            let header = Header {
                                flags: 1,
                                gso,
                                gso_size,
                                hdr_len: 54,
                                csum_start: 34,
                                csum_offset: 16,
                                buffers: 0,
                            };
                            send(nic, &header, &frame);
                        }
                    }
                }
            },
        );
    }
    // What lies behind a frame does not get out: a datagram that claims to be longer than its frame.
    let peer = world.peer.udp((PEER4, 7061));
    peer.set_nonblocking(true).expect("a socket option");
    victim.attack(
        "datagrams longer than their frame",
        EVERYTHING,
        |nic, mac| {
            let at = nic.memory.take(4096, 64);
            nic.memory.write(at, &mark.repeat(64));
            let mut frame = udp(mac, (PEER4, 7061), 7000, &[1; 30]);
            for claim in [100_u16, 1000, 0xffff] {
                frame[16..18].copy_from_slice(&claim.to_be_bytes());
                frame[38..40].copy_from_slice(&(claim - 20).to_be_bytes());
                frame[24..26].fill(0);
                let check = !u16::try_from(crate::header::sum(0, &frame[14..34])).expect("folded");
                frame[24..26].copy_from_slice(&check.to_be_bytes());
                nic.memory.write(at, &Header::default().bytes());
                nic.memory.write(at + HEADER, &frame);
                let len = u32::try_from(HEADER + frame.len()).expect("small");
                let addr = nic.memory.physical(at);
                offer_one(nic, addr, len);
            }
        },
    );
    let mut buffer = [0; 2000];
    while let Ok(n) = peer.recv(&mut buffer) {
        assert!(
            !buffer[..n].windows(8).any(|w| w == [0xa5; 8]),
            "memory of the guest got out"
        );
    }
    victim.done();
}

#[track_caller]
fn send(nic: &mut Nic, header: &Header, frame: &[u8]) {
    let end = Instant::now() + SOON;
    while !nic.try_send(0, header, frame) {
        if established() && Instant::now() > end - SOON + Duration::from_millis(50) {
            return;
        }
        assert!(
            Instant::now() < end,
            "nobody takes what is sent: {header:?}"
        );
        std::thread::yield_now();
    }
}

/// Buffers to receive into that are none.
fn receive_buffers() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let end = PHYSICAL + (64 << 20);
    for (what, addr, len, flags) in [
        ("not writable", PHYSICAL, 2048, 0),
        ("nowhere", 0, 2048, WRITE),
        ("across the end", end - 2047, 2048, WRITE),
        ("up to the end", end - 2048, 2048, WRITE),
        ("wraps", u64::MAX - 100, 2048, WRITE),
        ("nothing", end - 4096, 0, WRITE),
        ("1 byte", end - 4096, 1, WRITE),
        ("less than a header", end - 4096, 11, WRITE),
        ("a header only", end - 4096, 12, WRITE),
        ("a header and a byte", end - 4096, 13, WRITE),
        ("4 GiB", PHYSICAL, u32::MAX, WRITE),
        ("a loop", end - 4096, 100, WRITE | NEXT),
    ] {
        for features in [EVERYTHING, EVERYTHING & !MRG_RXBUF, 0] {
            victim.attack(what, features, |nic, _| {
                nothing_but(nic, addr, len, flags);
                // An answer to be put there.
                let request = arp_request();
                let at = nic.memory.take(HEADER + request.len(), 64);
                nic.memory.write(at, &Header::default().bytes());
                nic.memory.write(at + HEADER, &request);
                let d = Descriptor {
                    addr: nic.memory.physical(at),
                    len: u32::try_from(HEADER + request.len()).expect("small"),
                    flags: 0,
                    next: 0,
                };
                offer(nic, &[(0, d)], 0);
            });
        }
    }
    victim.done();
}

/// A new ring with nothing but such buffers, which begin again at themselves.
fn nothing_but(nic: &mut Nic, addr: u64, len: u32, flags: u16) {
    nic.stop_ring(0);
    nic.pairs[0].reset();
    nic.stop_ring(1);
    nic.start_ring(1, 0);
    nic.start_ring(0, 0);
    let rx = &mut nic.pairs[0].rx;
    for i in 0..SIZE {
        let one = Descriptor {
            addr,
            len,
            flags,
            next: i,
        };
        rx.describe(i, one);
        rx.line_up(i);
    }
    rx.publish();
    rx.kick.write(1).expect("an eventfd");
}

/// A machine that says nothing itself is let go of all the same, as soon as there is something for it.
fn receive_buffers_of_a_silent_machine() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let memory = Memory::new(64 << 20);
    let mut nic = Nic::greet(victim.passt(), shape().with(EVERYTHING), &memory);
    nic.start();
    gateway(&mut nic);
    nothing_but(&mut nic, 0, 2048, WRITE);
    assert!(answers(&nic.socket), "nobody has used them yet");
    victim.knock.send(&[0x55; 1000]).expect("sent");
    assert!(closes(&nic.socket, SOON), "it is still served");
    drop(nic);
    gateway(&mut Nic::connect(victim.passt(), shape()));
    victim.done();
}

/// Somebody rewrites descriptors, tables and headers while they are being read.
fn rewritten_while_read() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for features in [EVERYTHING, EVERYTHING & !INDIRECT_DESC & !MRG_RXBUF] {
        victim.attack("rewritten while read", features, |nic, mac| {
            let stop = AtomicBool::new(false);
            let frame = udp(mac, (PEER4, 9), 7000, &[0; 1400]);
            let at = nic.memory.take(HEADER + frame.len(), 64);
            nic.memory.write(at, &Header::default().bytes());
            nic.memory.write(at + HEADER, &frame);
            let memory = nic.memory.clone();
            let (table, good) = (nic.pairs[0].tx.desc, nic.memory.physical(at));
            std::thread::scope(|s| {
                let stop = &stop;
                s.spawn(move || rewrite(&memory, table, at, good, stop));
                let _end = Ending(stop);
                let until = Instant::now() + Duration::from_millis(400);
                let tx = &mut nic.pairs[0].tx;
                while Instant::now() < until {
                    for i in 0..SIZE / 2 {
                        tx.line_up(i);
                    }
                    tx.publish();
                    tx.kick.write(1).expect("an eventfd");
                    std::thread::yield_now();
                }
            });
        });
    }
    victim.done();
}

fn rewrite(memory: &Arc<Memory>, table: usize, frame: usize, good: u64, stop: &AtomicBool) {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    while !stop.load(Ordering::Relaxed) {
        let random = next();
        let index = usize::try_from(random % u64::from(SIZE)).expect("small");
        let len = [72, 1426 + 28, u32::MAX, 0, 12, 1 << 20];
        let d = Descriptor {
            addr: if random & 0x100 == 0 { good } else { next() },
            len: len[usize::try_from((random >> 16) % 6).expect("small")],
            flags: (random >> 32).to_le_bytes()[0].into(),
            next: u16::from((random >> 40).to_le_bytes()[0] & 0x7f),
        };
        let d = if random & 0x600 == 0 {
            d
        } else {
            Descriptor {
                flags: d.flags & NEXT,
                ..d
            }
        };
        memory.write(table + 16 * index, &d.bytes());
        // Lengths inside the frame: IP header length, total length, protocol, UDP length; the offload header.
        for offset in [HEADER + 14, HEADER + 16, HEADER + 23, HEADER + 38, 1, 2, 4] {
            memory.write(frame + offset, &next().to_le_bytes()[..1]);
        }
        memory.write(frame + HEADER, &[2; 6]);
        memory.write(frame + HEADER + 6, &GUEST_MAC);
    }
}

/// The rings themselves become noise.
fn rings_rewritten() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for round in 0..10_u8 {
        victim.attack("noise in the rings", EVERYTHING, |nic, _| {
            let n = usize::from(SIZE);
            for index in [0, 1] {
                let ring = nic.ring(index);
                let noise: Vec<u8> = (0..16 * n)
                    .map(|i| (i * 31 + i / 7).to_le_bytes()[0].wrapping_mul(round | 1))
                    .collect();
                nic.memory.write(ring.desc, &noise);
                nic.memory.write(ring.avail, &noise[..6 + 2 * n]);
                nic.memory.write(ring.used, &noise[..6 + 8 * n]);
                ring.kick.write(1).expect("an eventfd");
            }
        });
    }
    victim.done();
}

/// Takes the memory away under the device's feet, which the kernel tells it by SIGBUS.
#[track_caller]
fn truncate(passt: &Passt) {
    let memory = Memory::new(64 << 20);
    let mut nic = Nic::greet(passt, shape(), &memory);
    nic.start();
    gateway(&mut nic);
    memory.file.set_len(0).expect("a memfd");
    for index in [0, 1] {
        nic.ring(index).kick.write(1).expect("an eventfd");
    }
    // The device looks into the rings when asked for their state, too.
    nic.frontend.get_vring_base(1).ok();
}

fn memory_truncated() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    truncate(&passt);
    if established() {
        return passt.forget();
    }
    // It may end, in order, or live and serve the next.
    let mut passt = passt;
    if poll_until(Duration::from_secs(1), || passt.ended().is_some()) {
        passt.ends(&[0, 1]);
    } else {
        gateway(&mut Nic::connect(&passt, shape()));
        passt.stop();
    }
}

fn memory_truncated_one_off() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user", "--one-off"]);
    truncate(&passt);
    if established() {
        return passt.forget();
    }
    passt.ends(&[0, 1]);
}
