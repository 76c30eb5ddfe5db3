//! What a group works in: the world, the program under test, a guest.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{self, Output, Running, alive, poll_until};
use crate::guest::{Guest, Machine, Qemu, SOON};
use crate::harness::{DIR, PASTA};
use crate::servers::{dns, http};
use crate::service::{self, PORT};
use crate::world::{DNS4, DNS6, Netns, PEER4, PEER6, World};

/// Hardware address of the guest's card.
pub const MAC: &str = "52:54:00:12:34:56";

/// On the host, this port and the ten behind it lead to the guest's 7000 and following, by TCP and UDP.
pub const INBOUND: u16 = 8000;

/// What every instance of the program under test is told.
const ARGUMENTS: [&str; 8] = [
    "-t",
    "8000-8010:7000-7010",
    "-u",
    "8000-8010:7000-7010",
    "-H",
    "inner",
    "--fqdn",
    "inner.example.org",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// qemu's `-netdev stream`.
    Stream,
    /// Rings in the guest's memory, in so many pairs.
    VhostUser { queues: u32 },
}

/// How a group's guest is connected.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub link: Link,
    pub qemu: Qemu,
    /// Of the guest's interface, as it is told.
    pub mtu: u32,
}

impl Setup {
    pub fn new(link: Link) -> Setup {
        Setup {
            link,
            qemu: Qemu::Newest,
            mtu: 65520,
        }
    }

    pub fn machine(&self) -> Machine {
        Machine {
            processors: 2,
            memory: 384,
            shared: matches!(self.link, Link::VhostUser { .. }),
        }
    }

    /// qemu's arguments for a card behind `socket`, to which it connects again by itself.
    pub fn network(&self, socket: &str) -> Vec<String> {
        let newest = self.qemu == Qemu::Newest;
        // The older one connects once: its `stream` has no such option, its `vhost-user` is not used here.
        let reconnect = if newest { ",reconnect-ms=200" } else { "" };
        let (backend, card) = match self.link {
            Link::Stream => {
                let dev = format!(
                    "stream,id=net,server=off,addr.type=unix,addr.path={socket}{reconnect}"
                );
                (vec!["-netdev".to_owned(), dev], String::new())
            }
            Link::VhostUser { queues } => {
                let chardev = format!("socket,id=vhost,path={socket}{reconnect}");
                let dev = format!("vhost-user,id=net,chardev=vhost,queues={queues}");
                let more = if queues > 1 {
                    format!(",mq=on,vectors={}", 2 * queues + 2)
                } else {
                    String::new()
                };
                (
                    vec!["-chardev".to_owned(), chardev, "-netdev".to_owned(), dev],
                    more,
                )
            }
        };
        [
            backend,
            vec!["-device".to_owned(), format!("{}{card}", card_of("net"))],
        ]
        .concat()
    }
}

/// The card of a guest on a qemu back end of that name. Without a boot ROM: it is booted directly.
pub fn card_of(backend: &str) -> String {
    format!("virtio-net-pci,netdev={backend},mac={MAC},romfile=")
}

/// An instance of the program under test in the background.
#[derive(Debug)]
pub struct Passt {
    pub pid: i32,
    pub socket: String,
}

impl Passt {
    /// Starts one, listening on a socket of its own, with the usual arguments and these.
    #[track_caller]
    pub fn start(w: &World, link: Link, args: &[&str]) -> Passt {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket = format!("{DIR}/socket{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Passt::start_at(w, &socket, link, args)
    }

    #[track_caller]
    pub fn start_at(w: &World, socket: &str, link: Link, args: &[&str]) -> Passt {
        let (pid, log) = (format!("{socket}.pid"), format!("{socket}.log"));
        let mut all = vec!["-s", socket, "-P", &pid, "-l", &log];
        if link != Link::Stream {
            all.push("--vhost-user");
        }
        all.extend(ARGUMENTS);
        all.extend(args);
        run_passt(w, &all).ok();
        let pid = fs::read_to_string(&pid).expect("a PID file");
        Passt {
            pid: pid.trim().parse().expect("a PID"),
            socket: socket.to_owned(),
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(format!("{}.log", self.socket)).unwrap_or_default()
    }

    #[track_caller]
    pub fn stop(&self) {
        kill(Pid::from_raw(self.pid), Signal::SIGTERM).expect("it is running");
        self.gone();
    }

    /// It, and all that belongs to it, goes.
    #[track_caller]
    pub fn gone(&self) {
        let limit = Duration::from_secs(5);
        assert!(
            poll_until(limit, || !alive(self.pid)),
            "still there after {limit:?}: {}",
            self.log()
        );
        nothing_left();
    }
}

/// Runs the program under test in the host namespace until it ends, or goes to the background.
#[track_caller]
pub fn run_passt(w: &World, args: &[&str]) -> Output {
    start_passt(w, args).finish(SOON)
}

#[track_caller]
pub fn start_passt(w: &World, args: &[&str]) -> Running {
    let mut command = Command::new(PASTA);
    command.args(args).current_dir(DIR);
    w.host.start_command(command)
}

/// The processes of all running instances of the program under test.
pub fn processes() -> Vec<i32> {
    let named = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|n| n.starts_with("passt"))
    };
    exec::processes().into_iter().filter(named).collect()
}

/// Everything of the program under test goes.
#[track_caller]
pub fn nothing_left() {
    let gone = poll_until(SOON, || processes().is_empty());
    assert!(gone, "left behind: {:?}", processes());
}

/// Their open descriptors.
pub fn descriptors() -> usize {
    let of = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    processes().into_iter().map(of).sum()
}

#[derive(Debug)]
pub struct Lab {
    pub setup: Setup,
    pub world: World,
    passt: Option<Passt>,
    guest: Option<Guest>,
    online: bool,
    serving: bool,
}

impl Lab {
    /// A world without guest, for cases that bring their own.
    pub fn empty() -> Lab {
        let world = World::direct();
        for peer in [PEER4, PEER6] {
            http(&world.peer, (peer, 80));
            serve(&world.peer, peer);
        }
        dns(&world.peer, DNS4);
        dns(&world.peer, DNS6);
        for local in ["127.0.0.1", "::1"] {
            serve(&world.host, local);
        }
        Lab {
            setup: Setup::new(Link::Stream),
            world,
            passt: None,
            guest: None,
            online: false,
            serving: false,
        }
    }

    /// A guest that has booted, behind the program under test.
    pub fn start(setup: Setup) -> Lab {
        setup.qemu.tree();
        let mut lab = Lab {
            setup,
            ..Lab::empty()
        };
        lab.renew();
        lab
    }

    /// A new instance and a new guest.
    #[track_caller]
    pub fn renew(&mut self) {
        self.guest = None;
        if let Some(passt) = self.passt.take().filter(|p| alive(p.pid)) {
            passt.stop();
        }
        let mtu = self.setup.mtu.to_string();
        self.passt = Some(Passt::start(&self.world, self.setup.link, &["-m", &mtu]));
        self.boot();
    }

    /// A new guest on the same socket.
    #[track_caller]
    pub fn boot(&mut self) {
        self.guest = None;
        let network = self.setup.network(&self.passt().socket);
        self.guest = Some(boot(&self.world, &self.setup, &network));
        self.rebooted();
    }

    /// The guest knows nothing any more.
    pub fn rebooted(&mut self) {
        self.online = false;
        self.serving = false;
    }

    /// Ends the instance under the guest's feet, and starts another one on its socket.
    #[track_caller]
    pub fn replace_passt(&mut self) {
        let socket = self.passt().socket.clone();
        self.passt().stop();
        let mtu = self.setup.mtu.to_string();
        let next = Passt::start_at(&self.world, &socket, self.setup.link, &["-m", &mtu]);
        self.passt = Some(next);
    }

    /// Its network has been changed; the next to need it sets it up again.
    pub fn offline(&mut self) {
        self.online = false;
    }

    pub fn passt(&self) -> &Passt {
        self.passt.as_ref().expect("this group has one")
    }

    pub fn guest(&self) -> &Guest {
        self.guest.as_ref().expect("this group has one")
    }

    pub fn guest_mut(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("this group has one")
    }

    /// The guest, configured by DHCP and router advertisements, its service running.
    #[track_caller]
    pub fn online(&mut self) -> &Guest {
        if !self.online {
            configure(self.guest());
            self.online = true;
        }
        if !self.serving {
            serve_inside(self.guest());
            self.serving = true;
        }
        self.guest()
    }

    /// What must hold after every case.
    #[track_caller]
    pub fn check(&self) {
        if let Some(passt) = &self.passt {
            assert!(
                alive(passt.pid),
                "the program under test died: {}",
                passt.log()
            );
        }
    }

    /// Ends what a failed case has left running.
    pub fn tidy(&self) {
        if self.passt.is_none() {
            for pid in processes() {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }

    /// May another case build on this?
    pub fn usable(&self) -> bool {
        self.passt.as_ref().is_none_or(|p| alive(p.pid))
            && self.guest.as_ref().is_none_or(Guest::answers)
    }
}

/// Starts a guest in the host namespace, where a qemu that starts the program under test itself must be.
#[track_caller]
pub fn boot(w: &World, setup: &Setup, network: &[String]) -> Guest {
    w.host
        .enter(|| Guest::boot(setup.qemu.command(), setup.machine(), network))
}

/// What the guest's address script does: note what was offered, and set it.
const SCRIPT: &str = r#"#!/bin/sh
env | sort >"/run/t/env.$1"
case "$1" in
bound|renew) ip link set "$interface" mtu "${mtu:-1500}"
    ip addr replace "$ip/$mask" dev "$interface"
    ip route replace default via "$router" dev "$interface" onlink
    for d in $search; do echo "search $d"; done >/etc/resolv.conf
    for d in $dns; do echo "nameserver $d"; done >>/etc/resolv.conf;;
esac
exit 0
"#;

/// Puts the script of udhcpc in place, and the interface into the state it is born with, but up: whatever clients
/// have set of its many settings goes with the device, which is taken from its driver and given back.
#[track_caller]
pub fn fresh_interface(g: &Guest) {
    g.sh(&format!(
        "for process in /proc/[0-9]*; do
            read -r name <\"$process/comm\" || continue
            case $name in dhclient|dhcpcd|udhcpc|systemd-*|*udev-worker*) kill -9 \"${{process#/proc/}}\" ;; esac
        done 2>/dev/null
        rm -rf /run/t/* /run/systemd /run/udev /run/dhcpcd* /var/lib/dhcp/* /var/lib/dhcpcd/* /etc/resolv.conf
        device=$(readlink /sys/class/net/eth0/device)
        echo \"${{device##*/}}\" >/sys/bus/virtio/drivers/virtio_net/unbind
        echo \"${{device##*/}}\" >/sys/bus/virtio/drivers/virtio_net/bind
        cat >/run/t/udhcpc <<'END'\n{SCRIPT}END
        chmod +x /run/t/udhcpc; ip link set eth0 up"
    ));
}

/// Brings the guest's interface up by DHCP and router advertisement.
#[track_caller]
pub fn configure(g: &Guest) {
    fresh_interface(g);
    g.sh("udhcpc -i eth0 -n -q -t 20 -T 1 -O search -O mtu -s /run/t/udhcpc");
    wait_for(
        g,
        "ip -6 addr show dev eth0 scope global; ip -6 route",
        |seen| {
            seen.contains("inet6 2001:db8:51:")
                && !seen.contains("tentative")
                && seen.contains("default via fe80::")
        },
    );
}

#[track_caller]
pub fn serve_inside(g: &Guest) {
    g.sh("t serve >/dev/null 2>&1 & true");
    wait_for(g, "netstat -ltun", |seen| {
        seen.matches(":7000 ").count() >= 3
    });
}

/// Waits until what a script prints in the guest is as it should be.
#[track_caller]
pub fn wait_for(g: &Guest, script: &str, good: impl Fn(&str) -> bool) -> String {
    let mut seen = String::new();
    let done = poll_until(SOON, || {
        seen = g.try_sh(script).out;
        good(&seen)
    });
    assert!(done, "in the guest, {script} still says:\n{seen}");
    seen
}

/// The service at an address of a namespace.
pub fn serve(ns: &Netns, at: &str) {
    service::serve(ns.listen((at, PORT)));
    service::serve_udp(ns.udp((at, PORT)));
}

/// An address and a port, as a socket address.
pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}
