//! A forwarder that is out of descriptors: it learns what it has lost, keeps nothing of it, and can go on.

use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use passt::config::rules::RuleId;
use passt::ipc::{self, Descriptors, IpcError, SocketKind, SupplierEnd, Supply, SupplyLink};

/// Run `act` in a child with room for `room` more descriptors; its result is the exit status.
fn with_room(room: u64, act: impl FnOnce() -> i32) -> i32 {
    // SAFETY: glibc keeps its allocator usable in the child of a fork; the child makes system calls and ends.
    match unsafe { libc::fork() } {
        0 => {
            // Its number is the lowest that is free.
            let null = std::fs::File::open("/dev/null").expect("/dev/null");
            let open = u64::try_from(null.as_raw_fd()).expect("number");
            drop(null);
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
            setrlimit(Resource::RLIMIT_NOFILE, open + room, hard).expect("limit");
            passt::sys::process::exit_now(act())
        }
        child => match waitpid(Pid::from_raw(child), None).expect("child") {
            WaitStatus::Exited(_, status) => status,
            other => panic!("unexpected end: {other:?}"),
        },
    }
}

#[test]
fn what_finds_no_descriptor_is_named_and_closed() {
    let (agent, forwarder) = ipc::supply_pair().expect("pair");
    let (agent, forwarder) = (SupplierEnd::new(agent), SupplyLink::new(forwarder));
    let rule = RuleId(NonZeroU16::MIN);
    let supplies = [
        Supply::Listeners {
            rule,
            offset: 7,
            count: 32,
        },
        Supply::Sockets {
            kind: SocketKind::Udp6,
            count: 32,
        },
    ];
    let status = with_room(3, || {
        let fd: BorrowedFd<'_> = forwarder.as_fd();
        let mut fds = Descriptors::new();
        for supply in supplies {
            agent.send(supply, &[fd; 32]).expect("send");
            match forwarder.try_receive(&mut fds) {
                Err(IpcError::Lost(lost)) if lost == supply && fds.is_empty() => {}
                _ => return 1,
            }
            // Those that had come are closed: there is room for as many again.
            let one = Supply::Listeners {
                rule,
                offset: 0,
                count: 1,
            };
            agent.send(one, &[fd]).expect("send");
            match forwarder.try_receive(&mut fds) {
                Ok(Some(message)) if message == one && fds.len() == 1 => fds.clear(),
                _ => return 2,
            }
        }
        0
    });
    assert_eq!(status, 0);
}
