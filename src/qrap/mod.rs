//! `qrap`: starts a qemu that cannot connect to passt's socket by itself (before 7.2), with the connection made.
//!
//! Two ways: `qrap FDNUM QEMU_CMD ARG...` runs that command with the connection as that descriptor; `qrap ARG...` finds
//! a qemu and also says to it what to do with the connection, in place of what its command line says about networks.
//!
//! The instance is the first of the default sockets ([`SOCKETS`]) that has something to say to a question by ARP:
//! one that has a guest already closes the connection instead. What it says is looked at and left where it is: the
//! connection is the machine's from then on, and the machine's to read from the first frame.

mod line;

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

use crate::addr::Mac;
use crate::config::socket::{SOCKETS, default_socket};
use crate::sys::fd;
use crate::sys::reason::Reason;
use crate::wire::arp::{self, Operation};
use crate::wire::ethernet;

/// How long an instance has to answer, milliseconds.
const PATIENCE: u16 = 500;
/// How often one that closes the connection is asked again: its last guest may have gone this moment.
const TRIES: u32 = 5;
/// Time between that.
const PAUSE: Duration = Duration::from_millis(50);
/// Lengths of frames, bytes: header only, to the longest of IPv4 and IPv6 behind one.
const FRAMES: std::ops::RangeInclusive<u32> = 14..=65549;
/// Nobody's, and what is learned from it is forgotten with the guest's first frame.
const NOBODY: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// An address for documentation (RFC 5737): no guest has it, so that it is answered for.
const SOMEBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Why there is no virtual machine: one line, exit status 1.
#[derive(Debug, thiserror::Error)]
pub enum QrapError {
    /// The first argument is a number that no descriptor of a program just started should have.
    #[error("Invalid file descriptor number: {0}")]
    Number(String),
    /// Nobody answers.
    #[error(
        "No instance of passt without a guest at {} to {}: start one first",
        default_socket(*SOCKETS.start()).display(), default_socket(*SOCKETS.end()).display()
    )]
    NoInstance,
    /// The connection cannot be given the number asked for.
    #[error("Couldn't make descriptor {0}: {1}")]
    Descriptor(i32, Reason),
    /// None of the names qemu is known by.
    #[error("Couldn't find qemu in PATH ({0})")]
    NoQemu(String),
    /// The program could not be started.
    #[error("Couldn't run {0}: {1}")]
    Execute(String, Reason),
}

/// Do it. Returns only if it could not be done.
#[must_use]
pub fn run(argv: &[OsString]) -> QrapError {
    match start(argv.get(1..).unwrap_or_default()) {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

fn start(arguments: &[OsString]) -> Result<std::convert::Infallible, QrapError> {
    let plan = line::plan(arguments)?;
    let connection = SOCKETS
        .map(default_socket)
        .find_map(|path| connect(&path))
        .ok_or(QrapError::NoInstance)?;
    fd::place(connection, plan.number).map_err(|e| QrapError::Descriptor(plan.number, e.into()))?;
    let mut missing = Vec::new();
    for program in plan.programs {
        let name = program.to_string_lossy().into_owned();
        let e = Command::new(&program).args(&plan.arguments).exec();
        if e.kind() != io::ErrorKind::NotFound || plan.explicit {
            return Err(QrapError::Execute(name, e.into()));
        }
        missing.push(name);
    }
    Err(QrapError::NoQemu(missing.join(", ")))
}

/// A connection to the instance at `path`, if there is one that has no guest yet.
fn connect(path: &Path) -> Option<OwnedFd> {
    for _ in 0..TRIES {
        let socket = std::os::unix::net::UnixStream::connect(path).ok()?;
        match probe(&socket) {
            Answer::Guest => return Some(socket.into()),
            Answer::Closed => sleep(PAUSE),
            Answer::None => return None,
        }
    }
    None
}

/// What an instance makes of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// Its guest.
    Guest,
    /// One too many.
    Closed,
    /// Nothing, or nothing that a guest could read.
    None,
}

/// Ask; what the answer says stays to be read.
fn probe(socket: &impl AsFd) -> Answer {
    use std::os::fd::AsRawFd;
    let number = socket.as_fd().as_raw_fd();
    match send(number, &question(), MsgFlags::MSG_NOSIGNAL) {
        Ok(_) => {}
        Err(Errno::EPIPE | Errno::ECONNRESET) => return Answer::Closed,
        Err(_) => return Answer::None,
    }
    let mut table = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    if !matches!(poll(&mut table, PollTimeout::from(PATIENCE)), Ok(1)) {
        return Answer::None;
    }
    let mut length = [0; 4];
    match recv(number, &mut length, MsgFlags::MSG_PEEK) {
        Ok(0) | Err(Errno::ECONNRESET) => Answer::Closed,
        Ok(4) if FRAMES.contains(&u32::from_be_bytes(length)) => Answer::Guest,
        _ => Answer::None,
    }
}

/// A probe (RFC 5227): who has the address, asked by somebody without one. With its length before it.
fn question() -> Vec<u8> {
    let header = ethernet::Header {
        dst: Mac::BROADCAST,
        src: NOBODY,
        ethertype: ethernet::ETHERTYPE_ARP,
    };
    let probe = arp::Repr {
        operation: Operation::Request,
        sender_mac: NOBODY,
        sender_ip: Ipv4Addr::UNSPECIFIED,
        target_mac: Mac::ZERO,
        target_ip: SOMEBODY,
    };
    let mut frame = vec![0; ethernet::HEADER_LEN + arp::LEN];
    let (head, body) = frame.split_at_mut(ethernet::HEADER_LEN);
    // Both have just the room they need.
    let _ = (header.emit(head), probe.emit(body));
    let length = u32::try_from(frame.len()).unwrap_or_default();
    [&length.to_be_bytes(), frame.as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_question_is_a_probe_with_its_length() {
        let question = question();
        assert_eq!(question.len(), 46);
        assert_eq!(question[..4], [0, 0, 0, 42]);
        let (header, rest) = ethernet::Header::parse(&question[4..]).expect("a frame");
        assert_eq!(header.ethertype, ethernet::ETHERTYPE_ARP);
        let (probe, _) = arp::Repr::parse(rest).expect("a packet");
        assert_eq!(probe.operation, Operation::Request);
        assert!(probe.sender_ip.is_unspecified() && !probe.target_ip.is_unspecified());
    }

    #[test]
    fn an_answer_is_left_for_the_machine_to_read() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let answer = [&60_u32.to_be_bytes()[..], &[7; 60]].concat();
        theirs.write_all(&answer).expect("room");
        assert_eq!(probe(&ours), Answer::Guest);
        let mut read = [0; 64];
        let mut socket = ours;
        socket.read_exact(&mut read).expect("all of it");
        assert_eq!(read[..], answer[..]);
    }

    #[test]
    fn what_is_no_frame_is_no_answer() {
        for length in [0_u32, 13, 65550, u32::MAX] {
            let (ours, mut theirs) = UnixStream::pair().expect("pair");
            theirs.write_all(&length.to_be_bytes()).expect("room");
            assert_eq!(probe(&ours), Answer::None, "{length}");
        }
        let (ours, theirs) = UnixStream::pair().expect("pair");
        drop(theirs);
        assert_eq!(probe(&ours), Answer::Closed);
        let (silent, _theirs) = UnixStream::pair().expect("pair");
        assert_eq!(probe(&silent), Answer::None);
    }

    #[test]
    fn an_instance_with_a_guest_is_asked_a_few_times_and_left() {
        let path = std::env::temp_dir().join(format!("passt-qrap-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("bind");
        let instance = std::thread::spawn(move || {
            // Closes what it gets, but takes the last one.
            for _ in 1..TRIES {
                drop(listener.accept().expect("a client"));
            }
            let (mut guest, _) = listener.accept().expect("a client");
            guest.write_all(&[0, 0, 0, 60]).expect("room");
            guest
        });
        assert!(connect(&path).is_some());
        drop(instance.join().expect("instance"));
        assert!(connect(&path).is_none(), "nobody listens");
        std::fs::remove_file(&path).expect("remove");
        assert!(connect(&path).is_none(), "nothing is there");
    }
}
