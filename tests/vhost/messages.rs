//! A hostile machine monitor: messages that lie about their size, their contents or their descriptors.
//!
//! Each attack is sent on a connection of its own. Afterwards the connection is either still served or closed, soon;
//! the program has not ended; and the next machine that connects is served. In one-off mode the end of the connection
//! is the end of the program, with status 0.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::differences::established;
use crate::exec::{SOON, cpu_ticks, poll_until};
use crate::harness::tests;
use crate::link::gateway;
use crate::memory::{Memory, PHYSICAL, USER};
use crate::nic::{Nic, Shape};
use crate::passt::Passt;
use crate::raw::{self, answers, bytes, closes, message, send, state, table};
use crate::ring::event;
use crate::world::World;

tests![
    descriptors_on_every_message,
    flags,
    flood,
    half_messages,
    kick_and_call_of_every_kind,
    memory_tables,
    one_off_ends_in_order,
    order,
    ring_addresses,
    ring_numbers,
    sizes,
    too_many_descriptors,
    unknown_requests,
    vring_indices,
];

/// When in the conversation an attack comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// As the first message.
    First,
    /// With features negotiated, without memory.
    Greeted,
    /// While frames flow.
    Running,
}

const STAGES: [Stage; 3] = [Stage::First, Stage::Greeted, Stage::Running];

/// The program, and another one if the established one has ended.
struct Victim<'a> {
    world: &'a World,
    passt: Option<Passt>,
    ends: usize,
}

impl<'a> Victim<'a> {
    fn new(world: &'a World) -> Victim<'a> {
        Victim {
            world,
            passt: Some(Passt::start(world, &["--vhost-user"])),
            ends: 0,
        }
    }

    fn passt(&mut self) -> &mut Passt {
        let world = self.world;
        self.passt
            .get_or_insert_with(|| Passt::start(world, &["--vhost-user"]))
    }

    /// One attack at one stage. What it returns must stay open while the program looks at it.
    #[track_caller]
    fn attack<T>(&mut self, what: &str, stage: Stage, f: impl FnOnce(&UnixStream) -> T) {
        let passt = self.passt();
        let memory = Memory::new(64 << 20);
        let mut card = None;
        let socket = match stage {
            Stage::First => served(passt),
            Stage::Greeted => {
                let nic = Nic::greet(passt, small(), &memory);
                let socket = nic.socket.try_clone().expect("a descriptor");
                card = Some(nic);
                socket
            }
            Stage::Running => {
                let mut nic = Nic::greet(passt, small(), &memory);
                nic.start();
                gateway(&mut nic);
                let socket = nic.socket.try_clone().expect("a descriptor");
                card = Some(nic);
                socket
            }
        };
        let kept = f(&socket);
        let alive = answers(&socket);
        let gone = alive || established() || closes(&socket, SOON);
        assert!(gone, "{what}, {stage:?}: neither served nor let go");
        drop(socket);
        drop(card);
        drop(kept);
        if established() {
            // What it dies of is its own business.
            let mut passt = self.passt.take().expect("there");
            poll_until(Duration::from_millis(20), || passt.ended().is_some());
            self.ends += usize::from(passt.ended().is_some());
            return passt.forget();
        }
        self.passt().lives();
        let mut again = Nic::connect(self.passt(), small());
        gateway(&mut again);
    }

    fn done(mut self) {
        if established() {
            println!("the program ended {} times", self.ends);
            if let Some(passt) = self.passt {
                passt.forget();
            }
            return;
        }
        self.passt.take().expect("there").stop();
    }
}

fn small() -> Shape {
    Shape {
        ring: 64,
        posted: 64,
        ..Shape::USUAL
    }
}

/// A connection on which nothing has been said yet and that will be listened to.
#[track_caller]
fn served(passt: &Passt) -> UnixStream {
    let end = Instant::now() + SOON;
    loop {
        let socket = passt.dial();
        if answers(&socket) {
            return socket;
        }
        assert!(Instant::now() < end, "not served; {}", passt.said());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn unknown_requests() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for stage in STAGES {
        for request in [0, 44, 45, 99, 255, 256, 0x7fff_ffff, 0x8000_0001, u32::MAX] {
            for payload in [&[][..], &[0; 8], &[0xff; 40]] {
                victim.attack(&format!("request {request:#x}"), stage, |s| {
                    send(s, &message(request, payload), &[]).ok();
                });
            }
        }
    }
    // Known ones, of features that have not been negotiated.
    for request in [
        raw::GET_CONFIG,
        raw::POSTCOPY_ADVISE,
        raw::GET_INFLIGHT_FD,
        raw::ADD_MEM_REG,
        raw::SET_DEVICE_STATE_FD,
        raw::SET_LOG_BASE,
        raw::SET_LOG_FD,
        raw::SEND_RARP,
        4,
        20,
        21,
        22,
        23,
        25,
        26,
        27,
        29,
        30,
        32,
        33,
        34,
        35,
        36,
        38,
        39,
        40,
        41,
        43,
    ] {
        for payload in [&[][..], &[0; 8], &[0x41; 40]] {
            victim.attack(&format!("request {request}"), Stage::Running, |s| {
                let log = memfd_create(c"log", MFdFlags::empty()).expect("a memfd");
                send(s, &message(request, payload), &[log.as_raw_fd()]).ok();
                send(s, &message(request, payload), &[]).ok();
            });
        }
    }
    victim.done();
}

/// Every request with a payload that is not what it should be, and sizes that are no sizes.
fn sizes() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for request in 1..=43 {
        for len in [0_usize, 1, 4, 7, 8, 9, 16, 39, 40, 41, 300] {
            victim.attack(
                &format!("request {request}, {len} bytes"),
                Stage::First,
                |s| {
                    send(s, &message(request, &vec![0; len]), &[]).ok();
                },
            );
        }
    }
    for stage in STAGES {
        for size in [
            4097,
            65_536,
            0x7fff_ffff,
            0x8000_0000,
            u32::MAX - 11,
            u32::MAX,
        ] {
            victim.attack(&format!("{size:#x} bytes"), stage, |s| {
                send(s, &bytes(raw::SET_FEATURES, raw::V1, size, &[0; 64]), &[]).ok();
                // As much as is claimed, within reason.
                let more = vec![0; usize::try_from(size).expect("a size").min(200_000)];
                s.set_write_timeout(Some(Duration::from_millis(200)))
                    .expect("a timeout");
                send(s, &more, &[]).ok();
            });
        }
    }
    victim.done();
}

fn flags() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for stage in STAGES {
        for flags in [0, 2, 3, 5, 0xd, 0x11, 0xffff_fff1, u32::MAX] {
            victim.attack(&format!("flags {flags:#x}"), stage, |s| {
                send(s, &bytes(raw::GET_FEATURES, flags, 0, &[]), &[]).ok();
                send(s, &bytes(raw::SET_OWNER, flags, 0, &[]), &[]).ok();
                send(s, &bytes(raw::SET_FEATURES, flags, 8, &[0xff; 8]), &[]).ok();
            });
        }
        // Features that nobody offered.
        for features in [u64::MAX, 1 << 63, 1 << 26, 1 << 34, 0] {
            let set = [raw::SET_FEATURES, raw::SET_PROTOCOL_FEATURES];
            for request in set {
                victim.attack(&format!("{request}: {features:#x}"), stage, |s| {
                    send(s, &message(request, &features.to_ne_bytes()), &[]).ok();
                });
            }
        }
    }
    victim.done();
}

/// Messages about rings that do not exist.
fn vring_indices() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for index in [
        2,
        3,
        255,
        256,
        512,
        0xffff,
        0x1_0000,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX,
    ] {
        for request in [
            raw::SET_VRING_NUM,
            raw::SET_VRING_BASE,
            raw::GET_VRING_BASE,
            raw::SET_VRING_ENABLE,
        ] {
            for stage in STAGES {
                victim.attack(&format!("request {request} about {index:#x}"), stage, |s| {
                    send(s, &message(request, &state(index, 1)), &[]).ok();
                });
            }
        }
        victim.attack(&format!("addresses of {index:#x}"), Stage::Running, |s| {
            let body = raw::addresses(index, 0, USER, USER + 4096, USER + 8192);
            send(s, &message(raw::SET_VRING_ADDR, &body), &[]).ok();
        });
        for request in [raw::SET_VRING_KICK, raw::SET_VRING_CALL, raw::SET_VRING_ERR] {
            victim.attack(
                &format!("request {request} about {index:#x}"),
                Stage::Running,
                |s| {
                    let e = event();
                    let body = (u64::from(index) << 9 | u64::from(index & 0xff)).to_ne_bytes();
                    send(s, &message(request, &body), &[e.as_raw_fd()]).ok();
                    let body = u64::from(index).to_ne_bytes();
                    send(s, &message(request, &body), &[e.as_raw_fd()]).ok();
                    e
                },
            );
        }
    }
    victim.done();
}

fn ring_numbers() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for stage in [Stage::Greeted, Stage::Running] {
        for number in [
            0,
            1,
            3,
            63,
            65,
            32_767,
            32_769,
            65_535,
            65_536,
            0x1_0040,
            u32::MAX,
        ] {
            for ring in [0, 1] {
                victim.attack(&format!("{number:#x} entries"), stage, |s| {
                    send(s, &message(raw::SET_VRING_NUM, &state(ring, number)), &[]).ok();
                    kick(s, ring);
                });
            }
        }
        for base in [1, 63, 64, 65, 0x7fff, 0xffff, 0x1_0000, u32::MAX] {
            for ring in [0, 1] {
                victim.attack(&format!("base {base:#x}"), stage, |s| {
                    send(s, &message(raw::GET_VRING_BASE, &state(ring, 0)), &[]).ok();
                    send(s, &message(raw::SET_VRING_BASE, &state(ring, base)), &[]).ok();
                    kick(s, ring);
                });
            }
        }
        for value in [2, 0xffff_fffe, u32::MAX] {
            victim.attack(&format!("enable {value:#x}"), stage, |s| {
                send(s, &message(raw::SET_VRING_ENABLE, &state(0, value)), &[]).ok();
            });
        }
    }
    victim.done();
}

/// A kick descriptor for a ring that has already been kicked.
fn kick(socket: &UnixStream, ring: u32) {
    let e = event();
    e.write(1).expect("an eventfd");
    let body = u64::from(ring).to_ne_bytes();
    send(
        socket,
        &message(raw::SET_VRING_KICK, &body),
        &[e.as_raw_fd()],
    )
    .ok();
    send(
        socket,
        &message(raw::SET_VRING_ENABLE, &state(ring, 1)),
        &[],
    )
    .ok();
}

/// Rings outside memory, across its end, misaligned, and on top of each other.
fn ring_addresses() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let end = USER + (64 << 20);
    let good = [USER, USER + 0x1000, USER + 0x2000];
    let bad = [
        0,
        1,
        PHYSICAL,
        USER - 1,
        USER - 4096,
        end - 1,
        end - 16,
        end - 16 * 64 + 16,
        end,
        end + 1,
        1 << 63,
        u64::MAX - 1023,
        u64::MAX,
        USER + 1,
        USER + 2,
        USER + 3,
        USER + 8,
        USER,
    ];
    for stage in [Stage::Greeted, Stage::Running] {
        for ring in [0, 1] {
            for which in 0..3 {
                for address in bad {
                    let mut at = good;
                    at[which] = address;
                    victim.attack(&format!("{which} at {address:#x}"), stage, |s| {
                        let [desc, used, avail] = at;
                        let body = raw::addresses(ring, 0, desc, used, avail);
                        send(s, &message(raw::SET_VRING_NUM, &state(ring, 64)), &[]).ok();
                        send(s, &message(raw::SET_VRING_ADDR, &body), &[]).ok();
                        kick(s, ring);
                    });
                }
            }
        }
    }
    // Logging that nobody negotiated.
    victim.attack("a log", Stage::Running, |s| {
        let body = raw::addresses(0, 1, good[0], good[1], good[2]);
        send(s, &message(raw::SET_VRING_ADDR, &body), &[]).ok();
    });
    victim.done();
}

fn file_of(len: u64) -> File {
    let file = File::from(memfd_create(c"other", MFdFlags::empty()).expect("a memfd"));
    file.set_len(len).expect("a sparse file");
    file
}

fn memory_tables() {
    const M: u64 = 1 << 20;
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let ok = |i: u64| [PHYSICAL + i * M, M, USER + i * M, i * M];
    let many = |n: u64| (0..n).map(ok).collect::<Vec<_>>();
    let file = file_of(16 * M);
    let fd = file.as_raw_fd();
    let cases: Vec<(&str, Vec<[u64; 4]>, usize)> = vec![
        ("no region", vec![], 0),
        ("no region, but a descriptor", vec![], 1),
        ("8 regions, 7 descriptors", many(8), 7),
        ("1 region, no descriptor", many(1), 0),
        ("1 region, 2 descriptors", many(1), 2),
        ("9 regions", many(9), 8),
        ("9 regions, 9 descriptors", many(9), 9),
        ("16 regions", many(16), 16),
        ("an empty region", vec![[PHYSICAL, 0, USER, 0]], 1),
        ("longer than its file", vec![[PHYSICAL, 17 * M, USER, 0]], 1),
        ("behind its file", vec![[PHYSICAL, M, USER, 16 * M]], 1),
        (
            "across the end of its file",
            vec![[PHYSICAL, M, USER, 15 * M + 4096]],
            1,
        ),
        (
            "offset wraps",
            vec![[PHYSICAL, 2 * M, USER, u64::MAX - M + 1]],
            1,
        ),
        ("offset is negative", vec![[PHYSICAL, M, USER, 1 << 63]], 1),
        ("size wraps", vec![[PHYSICAL, u64::MAX, USER, 0]], 1),
        ("size is negative", vec![[PHYSICAL, 1 << 63, USER, 0]], 1),
        (
            "physical address wraps",
            vec![[u64::MAX - 4095, M, USER, 0]],
            1,
        ),
        (
            "physical address ends at the top",
            vec![[0_u64.wrapping_sub(M), M, USER, 0]],
            1,
        ),
        (
            "user address wraps",
            vec![[PHYSICAL, M, u64::MAX - 4095, 0]],
            1,
        ),
        ("odd size", vec![[PHYSICAL, 4097, USER, 0]], 1),
        ("odd offset", vec![[PHYSICAL, M, USER, 1]], 1),
        ("odd addresses", vec![[PHYSICAL + 1, M, USER + 3, 0]], 1),
        (
            "overlapping regions",
            vec![
                [PHYSICAL, 2 * M, USER, 0],
                [PHYSICAL + M, 2 * M, USER + M, 0],
            ],
            2,
        ),
        ("the same region twice", vec![ok(0), ok(0)], 2),
        (
            "overlapping user addresses",
            vec![[PHYSICAL, M, USER, 0], [PHYSICAL + M, M, USER, 0]],
            2,
        ),
        ("1 byte", vec![[PHYSICAL, 1, USER, 0]], 1),
    ];
    for stage in STAGES {
        for (what, regions, fds) in &cases {
            victim.attack(what, stage, |s| {
                let fds = vec![fd; *fds];
                send(s, &message(raw::SET_MEM_TABLE, &table(regions)), &fds).ok();
                kick(s, 1);
            });
        }
        // A count that is not that of the regions.
        for count in [0, 2, 8, 9, 255, u32::MAX] {
            victim.attack(&format!("a count of {count}"), stage, |s| {
                let mut body = table(&[ok(0)]);
                body[..4].copy_from_slice(&count.to_ne_bytes());
                send(s, &message(raw::SET_MEM_TABLE, &body), &[fd]).ok();
            });
        }
        for (what, fd) in strange() {
            victim.attack(&format!("memory: {what}"), stage, |s| {
                let body = table(&[[PHYSICAL, 4096, USER, 0]]);
                send(s, &message(raw::SET_MEM_TABLE, &body), &[fd.as_raw_fd()]).ok();
                kick(s, 1);
                fd
            });
        }
    }
    victim.done();
}

/// Descriptors that are neither memory nor events.
fn strange() -> Vec<(&'static str, OwnedFd)> {
    let (pipe, _) = nix::unistd::pipe().expect("a pipe");
    let (a, _) = UnixStream::pair().expect("sockets");
    let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty());
    let mut all = vec![
        ("a pipe", pipe),
        ("a socket", a.into()),
        (
            "a listener",
            TcpListener::bind(("127.0.0.1", 0))
                .expect("a socket")
                .into(),
        ),
        ("an epoll", epoll.expect("an epoll").0),
        ("a short file", file_of(100).into()),
        ("an empty file", file_of(0).into()),
    ];
    for path in [
        "/",
        "/dev/null",
        "/dev/zero",
        "/proc/self/status",
        "/etc/passwd",
    ] {
        if let Ok(file) = File::open(path) {
            all.push((path, file.into()));
        }
    }
    let seconds = nix::sys::timerfd::TimerFd::new(
        nix::sys::timerfd::ClockId::CLOCK_MONOTONIC,
        nix::sys::timerfd::TimerFlags::empty(),
    );
    all.push(("a timer", seconds.expect("a timer").into()));
    all
}

fn kick_and_call_of_every_kind() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    for request in [raw::SET_VRING_KICK, raw::SET_VRING_CALL, raw::SET_VRING_ERR] {
        for (what, fd) in strange() {
            victim.attack(&format!("{request}: {what}"), Stage::Running, |s| {
                for ring in [0_u64, 1] {
                    let body = message(request, &ring.to_ne_bytes());
                    send(s, &body, &[fd.as_raw_fd()]).ok();
                }
                std::thread::sleep(Duration::from_millis(1));
                fd
            });
        }
        for (what, body, fds) in [
            ("no descriptor", 0_u64, 0),
            ("none is announced, one comes", 0x100, 1),
            ("two descriptors", 0, 2),
            ("eight descriptors", 1, 8),
            ("bits nobody knows", 0xffff_ffff_ffff_fe00, 1),
            ("all bits", u64::MAX, 0),
        ] {
            victim.attack(&format!("{request}: {what}"), Stage::Running, |s| {
                let e = event();
                let fds = vec![e.as_raw_fd(); fds];
                send(s, &message(request, &body.to_ne_bytes()), &fds).ok();
                e
            });
        }
    }
    victim.done();
}

/// Rings before memory, memory away under running rings, and everything twice.
fn order() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let addresses = raw::addresses(1, 0, USER, USER + 4096, USER + 8192);
    victim.attack("rings before memory", Stage::First, |s| {
        send(s, &message(raw::SET_VRING_NUM, &state(1, 64)), &[]).ok();
        send(s, &message(raw::SET_VRING_BASE, &state(1, 0)), &[]).ok();
        send(s, &message(raw::SET_VRING_ADDR, &addresses), &[]).ok();
        kick(s, 1);
    });
    victim.attack("kick before anything", Stage::First, |s| {
        kick(s, 0);
        kick(s, 1);
    });
    victim.attack("the base of a ring that never was", Stage::First, |s| {
        send(s, &message(raw::GET_VRING_BASE, &state(0, 0)), &[]).ok();
    });
    victim.attack("the base, again and again", Stage::Running, |s| {
        for _ in 0..50 {
            for ring in [0, 1] {
                send(s, &message(raw::GET_VRING_BASE, &state(ring, 0)), &[]).ok();
            }
        }
        kick(s, 0);
        kick(s, 1);
    });
    victim.attack("owner, again and again", Stage::Running, |s| {
        for _ in 0..50 {
            send(s, &message(raw::SET_OWNER, &[]), &[]).ok();
            send(s, &message(4, &[]), &[]).ok();
        }
    });
    victim.attack("other features under running rings", Stage::Running, |s| {
        for features in [0_u64, 1 << 32, 1 << 29, 1 << 28, 0x1_4000_8002] {
            send(s, &message(raw::SET_FEATURES, &features.to_ne_bytes()), &[]).ok();
            kick(s, 1);
        }
    });
    victim.attack(
        "memory moves away under running rings",
        Stage::Running,
        |s| {
            let file = file_of(1 << 20);
            let body = table(&[[1 << 40, 1 << 20, 1 << 44, 0]]);
            send(s, &message(raw::SET_MEM_TABLE, &body), &[file.as_raw_fd()]).ok();
            kick(s, 1);
            kick(s, 0);
        },
    );
    victim.attack(
        "memory becomes smaller than the rings",
        Stage::Running,
        |s| {
            let file = file_of(4096);
            let body = table(&[[PHYSICAL, 4096, USER, 0]]);
            send(s, &message(raw::SET_MEM_TABLE, &body), &[file.as_raw_fd()]).ok();
            kick(s, 1);
            kick(s, 0);
        },
    );
    victim.done();
}

/// A client that stalls in the middle of a message holds up nobody; the next byte finds it where it was.
fn half_messages() {
    let world = World::direct();
    let passt = Passt::start(&world, &["--vhost-user"]);
    let whole = message(raw::GET_FEATURES, &[]);
    for at in 0..whole.len() {
        let socket = served(&passt);
        send(&socket, &whole[..at], &[]).expect("sent");
        if !established() {
            // Somebody looks after other things meanwhile.
            assert!(closes(&passt.dial(), SOON), "blocked by half a message");
        }
        send(&socket, &whole[at..], &[]).expect("sent");
        let mut reply = [0; 20];
        std::io::Read::read_exact(&mut &socket, &mut reply).expect("an answer");
    }
    // With descriptors on the first half, and never a second.
    if !established() {
        let before = passt.descriptors();
        let e = event();
        let body = message(raw::SET_VRING_KICK, &0_u64.to_ne_bytes());
        for at in [1, 11, 12, 13, 19] {
            let socket = served(&passt);
            send(&socket, &body[..at], &[e.as_raw_fd()]).expect("sent");
            assert!(closes(&passt.dial(), SOON), "blocked by half a message");
        }
        drop(served(&passt));
        assert!(
            poll_until(SOON, || passt.descriptors() <= before),
            "half messages leave descriptors behind"
        );
    }
    passt.stop();
}

fn descriptors_on_every_message() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    drop(served(victim.passt()));
    let file = file_of(4096);
    let before = victim.passt().descriptors();
    for request in 0..=44 {
        for stage in [Stage::First, Stage::Running] {
            for count in [1, 8] {
                victim.attack(&format!("{count} on {request}"), stage, |s| {
                    let fds = vec![file.as_raw_fd(); count];
                    send(s, &message(request, &[0; 8]), &fds).ok();
                    send(s, &message(request, &[]), &fds).ok();
                });
            }
        }
    }
    if !established() {
        drop(served(victim.passt()));
        let passt = victim.passt();
        assert!(
            poll_until(SOON, || passt.descriptors() <= before + 1),
            "{} descriptors, there were {before}",
            passt.descriptors()
        );
    }
    // All on one connection, as long as it lasts.
    victim.attack("on each of many messages", Stage::Running, |s| {
        for _ in 0..3000 {
            let sent = send(s, &message(raw::SET_OWNER, &[]), &[file.as_raw_fd(); 4]);
            if sent.is_err() {
                break;
            }
        }
    });
    victim.done();
}

fn too_many_descriptors() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let file = file_of(4096);
    for count in [9, 16, 32, 100, 253] {
        for request in [raw::SET_MEM_TABLE, raw::SET_VRING_KICK, raw::GET_FEATURES] {
            victim.attack(&format!("{count} on {request}"), Stage::Running, |s| {
                let fds: Vec<RawFd> = vec![file.as_raw_fd(); count];
                send(s, &message(request, &[0; 8]), &fds).ok();
            });
        }
    }
    victim.done();
}

/// Requests without end, whose answers nobody reads.
fn flood() {
    let world = World::direct();
    let mut victim = Victim::new(&world);
    let many = message(raw::GET_FEATURES, &[]).repeat(1000);
    let socket = served(victim.passt());
    socket
        .set_write_timeout(Some(Duration::from_millis(300)))
        .expect("a timeout");
    let mut sent = 0;
    while sent < 200 && send(&socket, &many, &[]).is_ok() {
        sent += 1;
    }
    if established() {
        return victim.done();
    }
    {
        // Whether it has been let go or is waited for, others do not wait.
        let other = victim.passt().dial();
        let prompt = answers(&other) || closes(&other, SOON);
        assert!(prompt, "a flood of requests blocks everything");
        let before = cpu_ticks();
        std::thread::sleep(Duration::from_millis(300));
        let spent = cpu_ticks() - before;
        assert!(
            spent < 20,
            "{spent} ticks of 10 ms in 300 ms, waiting for a reader"
        );
    }
    drop(socket);
    victim.attack("after the flood", Stage::Running, |_| ());
    victim.done();
}

/// In one-off mode, the end of a connection that was let go is the end of the program, with status 0.
fn one_off_ends_in_order() {
    let world = World::direct();
    let file = file_of(4096);
    let nine = [file.as_raw_fd(); 9];
    let bad: [(Vec<u8>, &[RawFd]); 6] = [
        (message(99, &[]), &[]),
        (bytes(raw::SET_FEATURES, raw::V1, u32::MAX, &[0; 8]), &[]),
        (message(raw::SET_VRING_NUM, &state(77, 1)), &[]),
        (message(raw::SET_VRING_NUM, &state(0, 3)), &[]),
        (
            message(raw::SET_MEM_TABLE, &table(&[[PHYSICAL, 1 << 30, USER, 0]])),
            &nine[..1],
        ),
        (
            message(raw::SET_MEM_TABLE, &table(&[[PHYSICAL, 4096, USER, 0]])),
            &nine,
        ),
    ];
    for (message, fds) in bad {
        let passt = Passt::start(&world, &["--vhost-user", "--one-off"]);
        let socket = served(&passt);
        send(&socket, &message, fds).expect("sent");
        if answers(&socket) {
            drop(socket); // refused, but not let go
        }
        if established() {
            passt.forget();
        } else {
            passt.ends(&[0]);
        }
    }
}
