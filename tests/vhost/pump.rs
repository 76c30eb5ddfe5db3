//! A guest with a real kernel: a network namespace whose only interface is a tap that this suite's driver feeds.
//!
//! What the guest's kernel sends, with offloads as far as they were negotiated, goes into the transmit queues; what
//! arrives in the receive queues goes into the tap. So TCP, and who verifies whose checksums, is the kernel's, and
//! between it and the program under test there are only rings, or a socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::harness::skip;
use crate::header::{self, HEADER, Header};
use crate::nic::{
    AsBorrowed, CSUM, FRAME_MAX, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO, Nic, steer, wait,
};
use crate::ring::event;
use crate::world::{GATEWAY4, GATEWAY6, HOST4, HOST6, Netns};

/// Name of the interface inside the guest.
pub const LINK: &str = "eth0";

/// Something to be done by the thread that owns the card, between two frames.
type Errand = Box<dyn FnOnce(&mut Nic) + Send>;

/// A guest namespace whose frames go through a card.
#[derive(Debug)]
pub struct Guest {
    pub ns: Netns,
    errands: Sender<Errand>,
    bell: EventFd,
    thread: Option<JoinHandle<Nic>>,
}

impl std::ops::Deref for Guest {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

mod ioctl {
    #![allow(unsafe_code, reason = "ioctl(2) on a tun descriptor")]
    nix::ioctl_write_int_bad!(
        set_offload,
        nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
    );
}

/// A tap in `ns` with the interface up and configured; frames carry a header of 12 bytes.
#[allow(unsafe_code, reason = "ioctl(2) on a tun descriptor")]
fn tap(ns: &Netns, features: u64, mtu: u32) -> File {
    use std::os::fd::AsRawFd;
    let fd: OwnedFd = ns.enter(|| {
        let fd = passt::sys::tun::open().unwrap_or_else(|e| skip(&format!("no tap here: {e}")));
        passt::sys::tun::attach(&fd, LINK).expect("a tap");
        fd
    });
    passt::sys::tun::set_header_len(&fd, 12).expect("a header of 12 bytes");
    let has = |bit| features & bit == bit;
    let mut bits = 0;
    for (feature, bit) in [
        (CSUM, 0x01),
        (HOST_TSO4, 0x02),
        (HOST_TSO6, 0x04),
        (HOST_ECN, 0x08),
        (HOST_USO, 0x60),
    ] {
        // The kernel, as virtio, has no segments without checksums.
        if has(feature) && has(CSUM) {
            bits |= bit;
        }
    }
    if has(HOST_ECN) && !has(HOST_TSO4) {
        bits &= !0x08;
    }
    // SAFETY: the argument is a number, and the descriptor is open.
    let set = |bits| unsafe { ioctl::set_offload(fd.as_raw_fd(), bits) };
    set(bits)
        .or_else(|_| set(bits & !0x60)) // Linux before 6.2
        .expect("offloads");
    let script = format!(
        "ip link set lo up
         ip link set {LINK} address 52:54:00:12:34:56 mtu {mtu} up
         ip addr add {HOST4}/24 dev {LINK}
         ip route add default via {GATEWAY4}
         ip addr add {HOST6}/64 dev {LINK} nodad
         ip route add default via {GATEWAY6}"
    );
    ns.set("ipv6/conf/all/accept_dad", "0");
    ns.set("ipv6/conf/default/accept_dad", "0");
    ns.set("ipv6/conf/default/accept_ra", "0");
    ns.sh(&format!("set -e\n{script}"));
    File::from(fd)
}

impl Guest {
    /// A guest with this card.
    #[track_caller]
    pub fn new(nic: Nic, mtu: u32) -> Guest {
        let ns = Netns::new("guest");
        let tap = tap(&ns, nic.features, mtu);
        let (errands, incoming) = channel();
        let bell = event();
        let stop = bell.try_clone().expect("a descriptor");
        let thread = std::thread::spawn(move || Pump { nic, tap }.run(&incoming, &stop));
        Guest {
            ns,
            errands,
            bell,
            thread: Some(thread),
        }
    }

    /// Does something with the card between two frames, and waits until it is done.
    #[track_caller]
    pub fn with_card<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Nic) -> T + Send + 'static,
    ) -> T {
        let (done, answer) = channel();
        self.errands
            .send(Box::new(move |nic| {
                done.send(f(nic)).ok();
            }))
            .expect("the card's thread has ended");
        self.bell.write(1).expect("an eventfd");
        answer.recv().expect("the card's thread has failed")
    }

    /// Takes the card out.
    #[track_caller]
    pub fn unplug(mut self) -> Nic {
        let (errands, _) = channel();
        self.errands = errands; // the last sender goes, the thread ends
        self.bell.write(1).expect("an eventfd");
        let thread = self.thread.take().expect("it runs");
        thread
            .join()
            .unwrap_or_else(|e| std::panic::resume_unwind(e))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
            && !std::thread::panicking()
        {
            assert!(thread.join().is_ok(), "the card's thread failed");
        }
    }
}

struct Pump {
    nic: Nic,
    tap: File,
}

impl Pump {
    fn run(mut self, errands: &Receiver<Errand>, bell: &EventFd) -> Nic {
        let mut buffer = vec![0; HEADER + FRAME_MAX];
        let mut held: Option<(Header, Vec<u8>)> = None;
        loop {
            match errands.try_recv() {
                Ok(errand) => errand(&mut self.nic),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return self.nic,
                Err(std::sync::mpsc::TryRecvError::Empty) => {}
            }
            let sent = self.transmit(&mut buffer, &mut held);
            let received = self.receive();
            if sent || received {
                continue;
            }
            self.sleep(bell, held.is_some());
        }
    }

    /// From the tap into a transmit queue; the flow chooses which.
    fn transmit(&mut self, buffer: &mut [u8], held: &mut Option<(Header, Vec<u8>)>) -> bool {
        let mut any = false;
        for _ in 0..32 {
            if held.is_none() {
                let Ok(n) = self.tap.read(buffer) else {
                    break;
                };
                let header = Header {
                    buffers: 0,
                    ..Header::parse(&buffer[..HEADER])
                };
                *held = Some((header, buffer[HEADER..n].to_vec()));
            }
            let Some((header, frame)) = held.as_ref() else {
                break;
            };
            let pair = steer(frame) % self.nic.pairs.len();
            if !self.nic.try_send(pair, header, frame) {
                break;
            }
            *held = None;
            any = true;
        }
        any
    }

    /// From the receive queues into the tap.
    fn receive(&mut self) -> bool {
        let mut any = false;
        for pair in 0..self.nic.pairs.len() {
            for _ in 0..32 {
                let Some((mut header, mut frame)) = self.nic.try_receive(pair) else {
                    self.nic.post(pair);
                    break;
                };
                any = true;
                header.buffers = 0;
                header::believe(&mut header, &mut frame);
                let bytes = [&header.bytes()[..], &frame].concat();
                // The kernel's answer to a frame it does not like; the interface may be down, too.
                self.tap
                    .write_all(&bytes)
                    .unwrap_or_else(|e| panic!("{e}: {header:?}, {} bytes", frame.len()));
            }
        }
        any
    }

    fn sleep(&self, bell: &EventFd, full: bool) {
        let mut fds = vec![bell.as_fd_()];
        let mut ready = false;
        for pair in &self.nic.pairs {
            ready |= pair.rx.arm();
            fds.push(pair.rx.call.as_fd_());
            if full {
                ready |= pair.tx.arm();
                fds.push(pair.tx.call.as_fd_());
            }
        }
        if !full {
            fds.push(self.tap.as_fd());
        }
        if !ready {
            wait(&fds, Duration::from_secs(1));
        }
        bell.read().ok();
        for pair in &self.nic.pairs {
            pair.rx.call.read().ok();
            pair.tx.call.read().ok();
        }
    }
}

/// A guest namespace whose frames go through a stream socket, each behind its length.
#[derive(Debug)]
pub struct StreamGuest {
    pub ns: Netns,
    socket: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

impl std::ops::Deref for StreamGuest {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

impl StreamGuest {
    /// `piece`: the most bytes that are written to the socket, or read from it, at a time.
    pub fn new(socket: UnixStream, mtu: u32, piece: usize) -> StreamGuest {
        let ns = Netns::new("guest");
        let tap = tap(&ns, 0, mtu);
        socket.set_read_timeout(None).expect("a timeout");
        socket.set_write_timeout(None).expect("a timeout");
        let (from, to) = (
            tap.try_clone().expect("a descriptor"),
            socket.try_clone().expect("a descriptor"),
        );
        let out = std::thread::spawn(move || {
            from_tap(&from, &to, piece);
        });
        let (from, to) = (socket.try_clone().expect("a descriptor"), tap);
        let back = std::thread::spawn(move || {
            from_socket(from, &to, piece);
        });
        StreamGuest {
            ns,
            socket,
            threads: vec![out, back],
        }
    }

    /// Like a machine that is switched off.
    pub fn unplug(self) {
        self.socket.shutdown(std::net::Shutdown::Both).ok();
    }
}

impl Drop for StreamGuest {
    fn drop(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.is_finished() && !std::thread::panicking() {
                assert!(thread.join().is_ok(), "the card's thread failed");
            }
        }
    }
}

fn from_tap(mut tap: &File, mut socket: &UnixStream, piece: usize) {
    let mut buffer = vec![0; HEADER + FRAME_MAX];
    let mut out = Vec::new();
    loop {
        out.clear();
        match tap.read(&mut buffer) {
            Ok(n) => {
                let frame = &buffer[HEADER..n];
                let len = u32::try_from(frame.len()).expect("a frame");
                out.extend(len.to_be_bytes());
                out.extend(frame);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait(&[tap.as_fd()], Duration::from_secs(1));
                continue;
            }
            Err(_) => return,
        }
        for part in out.chunks(piece) {
            if socket.write_all(part).is_err() {
                return;
            }
        }
    }
}

fn from_socket(mut socket: UnixStream, mut tap: &File, piece: usize) {
    let mut bytes = vec![0; HEADER];
    loop {
        let mut len = [0; 4];
        if socket.read_exact(&mut len).is_err() {
            return;
        }
        let len = usize::try_from(u32::from_be_bytes(len)).expect("a length");
        assert!((60..=14 + 65_535).contains(&len), "a frame of {len} bytes");
        bytes.resize(HEADER + len, 0);
        for part in bytes[HEADER..].chunks_mut(piece) {
            if socket.read_exact(part).is_err() {
                return;
            }
        }
        header::check(
            &Header {
                buffers: 1,
                ..Header::default()
            },
            &bytes[HEADER..],
            0,
        );
        tap.write_all(&bytes).expect("the guest takes the frame");
    }
}
