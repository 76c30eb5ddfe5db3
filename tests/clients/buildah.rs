//! buildah: commands in the network of a working container, and builds.
//!
//! buildah has pasta join the namespace of a process that it has made (`/proc/PID/ns/net`) and never says goodbye:
//! pasta has to notice the end of that process, which leaves nothing to be unlinked, and the next command may want
//! the same ports at once. With `--isolation oci` and networks of its own it asks for the namespace that all bridges
//! share, which has a PID file.

use crate::container::{FORWARDER, INTERNAL, contains, tcp, tell};
use crate::differences::established;
use crate::exec::{Running, SOON, poll_until};
use crate::harness::tests;
use crate::machine::{Machine, PATIENCE};
use crate::servers::{PAGE, http};
use crate::service::{WEB4, WEB6};
use crate::world::{HOST4, HOST6, Netns};

tests![; root: run, host, options, refused, published, killed, builds, other_networks];

/// A machine with a working container `c`.
fn machine() -> Machine {
    let m = Machine::with_image();
    m.user("buildah from --name c $IMAGE");
    m
}

/// `buildah run OPTIONS`: what a script in `c` prints.
#[track_caller]
fn run_in(m: &Machine, options: &str, script: &str) -> String {
    m.user(&format!("buildah run {options} c sh -c '{script}'"))
}

/// Addresses, routes, names, and the way out, in each isolation that has a network of its own.
fn run() {
    let m = machine();
    for isolation in ["rootless", "oci"] {
        let seen = run_in(
            &m,
            &format!("--isolation {isolation} --network pasta"),
            &format!(
                "ip -o addr show scope global; ip route; ip -6 route; cat /etc/resolv.conf /etc/hosts; \
                 curl -sS http://{WEB4}/; curl -gsS http://[{WEB6}]/; curl -sS http://a.name/; \
                 dig +short +tcp a.name @{FORWARDER}; dig +short aaaa a.name @{FORWARDER}"
            ),
        );
        contains(
            &seen,
            &[
                &format!("inet {HOST4}/24 "),
                &format!("inet6 {HOST6}/64 "),
                "default via 198.51.100.2 dev host0",
                "default via 2001:db8:51::2 dev host0",
                &format!("nameserver {FORWARDER}\n"),
                &format!("{INTERNAL}\thost.containers.internal"),
                &format!("\n{WEB4}\n"),
                &format!("\n{WEB6}\n"),
            ],
        );
        assert_eq!(seen.matches(PAGE).count(), 3, "{isolation}:\n{seen}");
    }
    m.clean();
}

/// The host itself, by the name that buildah gives it, and its loopback only on demand.
fn host() {
    let m = machine();
    http(&m.world.host, (HOST4, 8000));
    http(&m.world.host, ("127.0.0.1", 8001));
    let get = |options: &str, place: &str| {
        m.try_user(&format!(
            "buildah run --network {options} c curl -sS -m 30 http://{place}/"
        ))
    };
    assert_eq!(get("pasta", "host.containers.internal:8000").ok(), PAGE);
    for (options, place) in [
        ("pasta", "host.containers.internal:8001"),
        ("pasta", "127.0.0.1:8001"),
    ] {
        let output = get(options, place);
        assert_eq!(output.code, 7, "{options} {place}: {}", output.both());
    }
    assert_eq!(get("pasta:--map-gw", "$GATEWAY4:8001").ok(), PAGE);
    assert_eq!(get("pasta:-T,8001", "127.0.0.1:8001").ok(), PAGE);
    m.clean();
}

/// Options of pasta, as they are in buildah's manual or as anybody may give them.
fn options() {
    let m = machine();
    for (options, wanted) in [
        ("--mtu,2000", "mtu 2000 "),
        ("--ns-mac-addr,9a:dd:31:ea:92:98", "9a:dd:31:ea:92:98 "),
        ("-I,tap7", "tap7"),
        ("-4,-a,10.1.1.2,-n,24,-g,10.1.1.1", "inet 10.1.1.2/24 "),
        ("--dns-forward,10.1.1.3", "nameserver 10.1.1.3\n"),
        ("-a,2001:db8::7,-g,2001:db8::1", "inet6 2001:db8::7/64 "),
    ] {
        let seen = run_in(
            &m,
            &format!("--network pasta:{options}"),
            "ip -o addr; ip -o link; cat /etc/resolv.conf",
        );
        contains(&seen, &[wanted]);
    }
    m.clean();
}

/// pasta's own words reach the user, and nothing is left.
fn refused() {
    let m = machine();
    for (options, words) in [
        (
            "--no-such-option",
            "pasta: unrecognized option '--no-such-option'",
        ),
        ("-t,1/2/3/4", "Invalid port specifier '1/2/3/4'"),
        ("-t,80:80", "Permission denied"),
    ] {
        let output = m.try_user(&format!("buildah run --network pasta:{options} c true"));
        assert_eq!(output.code, 125, "{options}: {}", output.both());
        contains(&output.both(), &["pasta failed with exit code 1:\n", words]);
    }
    let output = m.try_user("buildah run --isolation chroot --network pasta c true");
    contains(
        &output.both(),
        &["cannot set --network other than host with --isolation chroot"],
    );
    m.root("rm -rf /tmp/buildah* /var/tmp/buildah*");
    m.clean();
}

/// A command in the background that does nothing, and its process.
#[track_caller]
fn idle(m: &Machine, options: &str) -> (Running, i32) {
    let running = m.start(&format!(
        "exec buildah run {options} c sleep 1000000 >run.log 2>&1"
    ));
    let mut pid = None;
    let up = poll_until(PATIENCE, || {
        let found = m.world.host.try_sh("pgrep -fx '(/bin/)?sleep 1000000'").out;
        pid = found.trim().parse().ok();
        pid.is_some()
    });
    assert!(up, "{options}:\n{}", m.user("cat run.log"));
    (running, pid.expect("just found"))
}

/// The end of its process is the end of pasta, and the port is free for the next one at once.
fn published() {
    let m = machine();
    for _ in 0..3 {
        let (running, pid) = idle(&m, "--network pasta:-t,8201:80");
        let ns = Netns::of(pid);
        tell(&ns, ("0.0.0.0", 80));
        for (client, address) in [(&m.world.peer, HOST4), (&m.world.host, "127.0.0.1")] {
            let seen = tcp(client, (address, 8201)).expect("a published port");
            assert_eq!(seen.to.to_string(), format!("{HOST4}:80"));
        }
        m.root(&format!("kill -9 {pid}"));
        running.finish(PATIENCE);
        if established() {
            // It asks once a second whether the process is there, and says that the port is in use until then.
            assert!(poll_until(SOON, || m.pastas().is_empty()), "still there");
        }
    }
    let gone = poll_until(SOON, || m.pastas().is_empty());
    assert!(gone, "pasta outlives its process: {:?}", m.pastas());
    m.clean();
}

/// buildah killed: the command goes on, with its network, and takes pasta with it when it ends.
fn killed() {
    let m = machine();
    let (running, pid) = idle(&m, "--network pasta:-t,8202:80");
    let ns = Netns::of(pid);
    m.root(&format!("kill -9 {}", running.id()));
    running.finish(PATIENCE);
    tell(&ns, ("0.0.0.0", 80));
    tcp(&m.world.peer, (HOST4, 8202)).expect("a published port");
    m.root(&format!(
        "kill -9 {pid}; rm -rf /tmp/buildah* /var/tmp/buildah*"
    ));
    m.clean();
}

/// A build of two stages whose commands fetch, in each isolation, and no trace of its networks afterwards.
fn builds() {
    let m = Machine::with_image();
    m.user(
        "mkdir b && printf '%s\\n' \"FROM $IMAGE\" 'RUN cat /etc/resolv.conf; ip -o -4 addr show scope global' \
         'RUN curl -sS -m 60 http://a.name/ >/page' 'RUN curl -sS -m 60 http://a.name/big?3000000 | wc -c >>/page' \
         'FROM scratch' 'COPY --from=0 /page /' >b/Containerfile",
    );
    for (options, wanted) in [
        ("--isolation rootless", HOST4),
        ("--isolation rootless --network pasta", FORWARDER),
        ("--isolation rootless --network private", FORWARDER),
        ("--isolation oci --network private", "inet 10.88.0."),
        ("--isolation chroot", HOST4),
    ] {
        let said = m.user(&format!("buildah build --no-cache -t out {options} b 2>&1"));
        contains(&said, &[wanted]);
        let page = m.user(
            "c=$(buildah from out) && buildah unshare sh -c 'cat $(buildah mount '$c')/page' && buildah rm $c >&2",
        );
        assert_eq!(page, format!("{PAGE}3000000\n"), "{options}");
        m.clean();
    }
}

/// A bridge of its own in the shared namespace, the host's network, and none.
fn other_networks() {
    let m = machine();
    let script = format!("ip -o -4 addr show scope global; curl -sS -m 30 http://{WEB4}/");
    let seen = run_in(&m, "--isolation oci --network private", &script);
    contains(&seen, &["inet 10.88.0.", PAGE]);
    m.clean();
    let seen = run_in(&m, "--network host", &script);
    contains(&seen, &[HOST4, PAGE]);
    let seen = run_in(&m, "--network none", "ip -o link | wc -l");
    assert_eq!(seen, "1\n");
    assert!(m.pastas().is_empty());
    m.clean();
}
