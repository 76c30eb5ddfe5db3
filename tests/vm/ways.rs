//! The other ways a virtual machine gets its connection: a descriptor, qemu that starts the program itself, qrap.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::exec::SOON;
use crate::guest::{Guest, Qemu};
use crate::harness::{Case, DIR, PASTA, skip, under_test};
use crate::lab::{Lab, Link, Passt, Setup, boot, card_of, configure, nothing_left, start_passt};
use crate::world::{PEER4, PEER6};

pub const CASES: &[Case] = &[
    ("newest_stream", newest_stream),
    ("descriptor", descriptor),
    ("started_by_qemu", started_by_qemu),
    ("qrap", qrap),
];

const STABLE: Setup = Setup {
    link: Link::Stream,
    qemu: Qemu::Stable,
    mtu: 65520,
};

/// The guest configures itself and reaches the peer.
#[track_caller]
fn works(g: &Guest) {
    configure(g);
    g.sh(&format!(
        "t get {PEER4} 10000000 && t put {PEER6} 10000000 && ping -n -c 1 -W 5 {PEER4}"
    ));
}

/// The newest qemu on the stream socket, which it hands over to another one: what `passt` does without options.
fn newest_stream(lab: &mut Lab) {
    let setup = Setup::new(Link::Stream);
    setup.qemu.tree();
    let passt = Passt::start(&lab.world, Link::Stream, &[]);
    let guest = boot(&lab.world, &setup, &setup.network(&passt.socket));
    works(&guest);
    drop(guest);
    passt.stop();
}

/// Keeps a descriptor open in the programs we start.
fn inherit(fd: &OwnedFd) -> String {
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor");
    fd.as_raw_fd().to_string()
}

/// `passt -f --fd N`: a connected socket instead of a path, and the end of the program with the end of the guest.
fn descriptor(lab: &mut Lab) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let (ours, theirs) = (OwnedFd::from(ours), OwnedFd::from(theirs));
    let mut passt = start_passt(&lab.world, &["-f", "--fd", &inherit(&ours)]);
    drop(ours);
    let backend = format!("socket,id=net,fd={}", inherit(&theirs));
    let network = ["-netdev", &backend, "-device", &card_of("net")].map(str::to_owned);
    let guest = boot(&lab.world, &STABLE, &network);
    drop(theirs);
    works(&guest);
    assert!(!passt.ended());
    drop(guest);
    let end = passt.finish(SOON);
    assert_eq!(end.code, 0, "{}", end.both());
    nothing_left();
}

/// `-netdev passt`: qemu starts the program, and ends it by its PID file.
fn started_by_qemu(lab: &mut Lab) {
    let setup = Setup::new(Link::Stream);
    let help = setup.qemu.command().args(["-netdev", "help"]).output();
    let help = String::from_utf8_lossy(&help.expect("qemu").stdout).into_owned();
    if !help.lines().any(|l| l.trim() == "passt") {
        skip("this qemu has no -netdev passt");
    }
    for vhost in [false, true] {
        let backend = format!("passt,id=net,path={PASTA},quiet=on,mtu=9000,tcp-ports=8000:7000");
        let (backend, link) = if vhost {
            (
                format!("{backend},vhost-user=on"),
                Link::VhostUser { queues: 1 },
            )
        } else {
            (backend, Link::Stream)
        };
        let network = ["-netdev", &backend, "-device", &card_of("net")].map(str::to_owned);
        let guest = boot(&lab.world, &Setup::new(link), &network);
        works(&guest);
        let mtu = guest.sh("cat /sys/class/net/eth0/mtu");
        assert_eq!(mtu.trim(), "9000");
        guest.quit();
        nothing_left();
    }
}

/// qrap finds the socket of an instance with no options, and gives it to a qemu that knows nothing of it.
fn qrap(lab: &mut Lab) {
    let program = under_test().0.with_file_name("qrap");
    if !program.exists() {
        skip("there is no qrap beside the program under test");
    }
    let passt = Passt::start_at(&lab.world, "/tmp/passt_1.socket", Link::Stream, &[]);
    let mut command = STABLE.qemu.inside(&format!("{DIR}/built/qrap"));
    command.args(["5", "/usr/bin/qemu-system-x86_64"]);
    let network = ["-netdev", "socket,fd=5,id=net", "-device", &card_of("net")].map(str::to_owned);
    let guest = lab
        .world
        .host
        .enter(|| Guest::boot(command, STABLE.machine(), &network));
    works(&guest);
    drop(guest);
    passt.stop();
}
