//! A hijacked forwarder: what somebody who runs code there can say to the others, said by us.
//!
//! The test takes duplicates of the live forwarder's sockets (pidfd_getfd(2)) and sends what no forwarder of ours
//! would. Whatever it is, nothing is obtained, and everything ends: status 1, no process left, no port bound that
//! the command line did not name.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;
use passt::config::rules::RuleId;
use passt::ipc::{ForwarderLink, Request, SocketKind, SupplyLink};
use passt::sys::process::pidfd_open;
use passt::sys::scm;

use crate::live::{Pasta, skipped, with_power};

/// Inside this and no other test.
const PORT: u16 = 18_080;

/// A duplicate of another process's descriptor.
fn take(pid: u32, fd: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    let pidfd = pidfd_open(pid)?;
    // SAFETY: three integers in, a new descriptor or an error out.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    match i32::try_from(taken) {
        // SAFETY: the kernel has just installed this descriptor in our table for us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_command(fd: BorrowedFd<'_>) -> bool {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    use nix::sys::time::TimeValLike;
    // The pair for log lines is never waited for.
    getsockopt(&fd, sockopt::SockType) == Ok(SockType::SeqPacket)
        && getsockopt(&fd, sockopt::SendTimeout).is_ok_and(|t| t.num_seconds() > 0)
}

/// The forwarder's ends of its pairs with monitor and ns-agent, in no particular order.
pub fn channels(forwarder: u32) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{forwarder}/fd"))?.flatten() {
        let number = entry.file_name().to_string_lossy().parse().expect("number");
        let fd = match take(forwarder, number) {
            // Closed since it was listed.
            Err(e) if e.raw_os_error() == Some(libc::EBADF) => continue,
            taken => taken?,
        };
        if is_command(fd.as_fd()) {
            found.push(fd);
        }
    }
    Ok(found)
}

fn rule(n: u16) -> RuleId {
    RuleId(std::num::NonZeroU16::new(n).expect("not zero"))
}

fn listener(n: u16, offset: u16) -> Request {
    Request::Listener {
        rule: rule(n),
        offset,
    }
}

/// Say the same as the monitor would be asked it and as the ns-agent would: one of them is on the other side, and for
/// the wrong one it is malformed.
fn request(socket: OwnedFd, request: Request) {
    let to_monitor = ForwarderLink::new(socket.try_clone().expect("duplicate"));
    let to_agent = SupplyLink::new(socket);
    let _ = to_monitor.request(request);
    let _ = to_agent.request(request);
}

fn raw(socket: &OwnedFd, bytes: &[u8]) {
    let _ = scm::send(socket.as_fd(), bytes);
}

fn with_descriptors(socket: &OwnedFd, bytes: &[u8]) {
    let null = fs::File::open("/dev/null").expect("/dev/null");
    let _ = scm::send_with_fds(socket.as_fd(), bytes, &[null.as_fd(); 3]);
}

pub type Attack = (&'static str, fn(OwnedFd));

pub const ATTACKS: &[Attack] = &[
    ("a rule there is not", |s| request(s, listener(999, 0))),
    ("the other side's rule", |s| request(s, listener(2, 0))),
    ("a port the rule has not", |s| request(s, listener(1, 1))),
    ("the last offset", |s| request(s, listener(1, u16::MAX))),
    ("sockets of whoever listens", |s| {
        let kind = SocketKind::Tcp4;
        request(s, Request::Sockets { kind, count: 32 });
    }),
    ("ready again", |s| {
        let _ = ForwarderLink::new(s).ready(u32::MAX);
    }),
    ("one byte", |s| raw(&s, &[0])),
    ("a variant there is not", |s| raw(&s, &[9, 0, 0, 0])),
    ("a message and a byte", |s| raw(&s, &[0; 9])),
    ("more than any message", |s| raw(&s, &[0; 97])),
    ("sixty kilobytes", |s| raw(&s, &[1; 60_000])),
    ("descriptors", |s| {
        with_descriptors(&s, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }),
    ("descriptors beside another", |s| {
        with_descriptors(&s, &[0, 0, 0, 0, 1, 0, 0, 0]);
    }),
    ("a flood", |s| {
        let socket = s.try_clone().expect("duplicate");
        for _ in 0..4096 {
            raw(&socket, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
            raw(&socket, &[0, 0, 0, 0, 2, 0, 0, 0]);
        }
    }),
];

/// Held by a test that compares what is listened on with what was before: the ports of the other one would be news.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// TCP ports listened on in the network `pid` is in.
pub fn listening(pid: &str) -> Vec<u16> {
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace();
            let local = fields.nth(1).unwrap_or_default();
            if fields.nth(1) == Some("0A") {
                let port = local.rsplit(':').next().unwrap_or_default();
                ports.push(u16::from_str_radix(port, 16).expect("hex"));
            }
        }
    }
    ports
}

#[test]
fn a_hijacked_forwarder_obtains_nothing() {
    let _alone = alone();
    with_power("hijack::a_hijacked_forwarder_obtains_nothing", || {
        let port = PORT.to_string();
        let options = ["-t", &port, "-u", "none", "-T", "18081", "-U", "none"];
        let before = listening("self");
        for (what, attack) in ATTACKS {
            for which in 0..2 {
                let pasta = Pasta::start(&options);
                let sockets = match channels(pasta.forwarder()) {
                    Ok(sockets) => sockets,
                    Err(e) => {
                        skipped(&format!("no descriptors of another process: {e}"));
                        return;
                    }
                };
                assert_eq!(sockets.len(), 2, "pairs of the forwarder");
                let socket = sockets.into_iter().nth(which).expect("two");
                attack(socket);
                let (status, said) = pasta.end();
                assert_eq!(status.code(), Some(1), "{what}: {said}");
                assert!(
                    said.contains("nvalid message") || said.contains("between our processes"),
                    "{what}: {said}"
                );
                for open in listening("self") {
                    assert!(
                        before.contains(&open) || open == PORT,
                        "{what}: port {open} is open"
                    );
                }
            }
        }
    });
}
