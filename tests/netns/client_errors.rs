//! What callers are told when it fails: the status, the words they and their users look for, and nothing left behind.

use std::fs;

use crate::clients::{PODMAN, call, podman_namespace, try_call, usable};
use crate::differences::established;
use crate::exec::{SOON, nothing_left, poll_until, processes};
use crate::harness::{PASTA, need_tap_for_users, tests};
use crate::world::{Netns, PEER4, World};

tests![
    port_taken,
    udp_port_taken,
    port_taken_on_one_address,
    address_not_local,
    no_such_option,
    bad_port_specs,
    namespace_missing,
    not_a_namespace,
    pid_file,
    second_instance,
    version_probes;
    root: privileged_port,
];

const BUSY: &str = "Address already in use";

/// `--config-net` and then `options`, for a namespace that must be left as it was; what podman gets to see.
#[track_caller]
fn refused(w: &World, options: &str, texts: &[&str]) {
    let ns = podman_namespace();
    let mut line = PODMAN.replace("--config-net", &format!("--config-net {options}"));
    if options.contains("-t ") {
        line = line.replace(" -t none", "");
    } else if options.contains("-u ") {
        line = line.replace(" -u none", "");
    }
    fails(w, &line, &ns.path(), texts);
    assert_eq!(ns.sh("ip -o link").lines().count(), 1, "only lo");
    Netns::retire(&ns.name);
}

/// Exit status 1, the texts in the output, no process left.
#[track_caller]
fn fails(w: &World, line: &str, target: &str, texts: &[&str]) {
    let before = processes();
    let output = try_call(w, line, target);
    assert_eq!(output.code, 1, "{}", output.out);
    for text in texts {
        assert!(
            output.out.contains(text),
            "`{text}` is not in:\n{}",
            output.out
        );
    }
    let no_more = || processes().iter().all(|p| before.contains(p));
    assert!(poll_until(SOON, no_more), "left behind: {:?}", processes());
}

fn port_taken() {
    let w = World::direct();
    let busy = w.host.listen(("::", 8777));
    for (option, port) in [
        ("-t 8777-8777:80-80", "*/8777"),
        ("-t 8770-8780:70-80", "*/8777"),
        ("-t 127.0.0.1/8777-8777:80-80", "127.0.0.1/8777"),
        ("-t ::1/8777-8777:80-80", "::1/8777"),
    ] {
        refused(
            &w,
            option,
            &[
                &format!("Listen failed for HOST TCP port {port}: {BUSY}\n"),
                "Couldn't listen on requested ports\n",
            ],
        );
    }
    drop(busy);
    let ns = podman_namespace();
    let line = PODMAN.replace(" -t none", " -t 8777-8777:80-80");
    call(&w, &line, &ns.path());
}

fn udp_port_taken() {
    let w = World::direct();
    let _busy = w.host.udp(("0.0.0.0", 8777));
    refused(
        &w,
        "-u 8777-8777:53-53",
        &[&format!("Listen failed for HOST UDP port */8777: {BUSY}\n")],
    );
}

/// The other addresses' ports of that number are free.
fn port_taken_on_one_address() {
    let w = World::direct();
    let _busy = w.host.listen(("127.0.0.1", 8777));
    refused(&w, "-t 8777-8777:80-80", &[&format!("8777: {BUSY}\n")]);
    let ns = podman_namespace();
    let line = PODMAN.replace(
        " -t none",
        &format!(" -t {}/8777-8777:80-80", crate::world::HOST4),
    );
    call(&w, &line, &ns.path());
}

fn address_not_local() {
    let w = World::direct();
    refused(
        &w,
        "-t 10.9.9.9/8778-8778:80-80",
        &["Listen failed for HOST TCP port 10.9.9.9/8778: Cannot assign requested address\n"],
    );
    refused(
        &w,
        "-u fd00:9::9/8778-8778:80-80",
        &["Listen failed for HOST UDP port fd00:9::9/8778: Cannot assign requested address\n"],
    );
}

/// "Output containing `unrecognized option '--map-guest-addr` makes podman retry without it": so no other failure may
/// say so, and an unknown option has to be named as getopt does.
fn no_such_option() {
    let w = World::direct();
    refused(
        &w,
        "--no-such-option",
        &["pasta: unrecognized option '--no-such-option'\n"],
    );
    refused(
        &w,
        "--map-guest-addr4 1.2.3.4",
        &["pasta: unrecognized option '--map-guest-addr4'\n"],
    );
    let ns = podman_namespace();
    let line = PODMAN.replace("--config-net", "--config-net -t 1/2/3/4");
    let output = try_call(&w, &line, &ns.path());
    assert!(!output.out.contains("unrecognized"), "{}", output.out);
}

fn bad_port_specs() {
    let w = World::direct();
    for spec in ["1/2/3/4", "8080:80:70", "70000-70000:80-80", "nonsense"] {
        for option in ["-t", "-u"] {
            refused(
                &w,
                &format!("{option} {spec}"),
                &[&if established() {
                    "nvalid port".to_owned()
                } else {
                    format!("Invalid port specifier '{spec}'")
                }],
            );
        }
    }
}

fn namespace_missing() {
    let w = World::direct();
    fails(
        &w,
        PODMAN,
        "/run/netns/gone",
        &["Couldn't open network namespace /run/netns/gone: No such file or directory\n"],
    );
    let dead = w.host.start("exec true");
    let path = format!("/proc/{}/ns/net", dead.id());
    dead.finish(SOON);
    fails(
        &w,
        PODMAN,
        &path,
        &[&format!(
            "Couldn't open network namespace {path}: No such file or directory\n"
        )],
    );
}

/// What a namespace's path is after `umount` without `rm`: an ordinary file.
fn not_a_namespace() {
    let w = World::direct();
    fs::write("/run/t/file", "").expect("tmpfs");
    fails(
        &w,
        PODMAN,
        "/run/t/file",
        &["Couldn't switch to pasta namespaces: Invalid argument"],
    );
}

fn pid_file() {
    let w = World::direct();
    refused(
        &w,
        "--pid /nonexistent/x",
        &["Couldn't open PID file /nonexistent/x: No such file or directory\n"],
    );
}

/// It says who is in the way, and leaves that one alone.
fn second_instance() {
    let w = World::direct();
    let ns = podman_namespace();
    call(&w, PODMAN, &ns.path());
    for port in ["none", "8080-8080:80-80"] {
        fails(
            &w,
            &PODMAN.replace(" -t none", &format!(" -t {port}")),
            &ns.path(),
            &[
                "TUNSETIFF ioctl on /dev/net/tun failed: Device or resource busy",
                "Failed to set up tap device in namespace",
            ],
        );
    }
    assert!(!w.host.sh("ss -Hltn").contains(":8080"));
    usable(&ns);
    ns.sh(&format!("ping -n -c 1 -W 30 {PEER4}"));
}

/// rootlesskit asks for an option with `--version` behind it; podman prints the answer.
fn version_probes() {
    let w = World::direct();
    for (words, code) in [
        ("--version", 0),
        ("--host-lo-to-ns-lo --version", 0),
        ("--map-guest-addr 169.254.1.2 --version", 0),
        ("--bogus --version", 1),
        ("--host-lo-to-ns-lo --bogus --version", 1),
    ] {
        let output = w.host.try_sh(&format!("{PASTA} {words}"));
        assert_eq!(output.code, code, "{words}: {}", output.both());
        assert_eq!(output.out.starts_with("pasta "), code == 0, "{words}");
        assert_eq!(output.err.is_empty(), code == 0, "{words}");
    }
    nothing_left();
}

/// Somebody without privilege outside; inside it does not matter which port it is.
fn privileged_port() {
    use std::os::unix::process::CommandExt;
    need_tap_for_users();
    let w = World::direct();
    let as_user = |words: &str| {
        let mut command = crate::world::shell(&format!("exec {PASTA} {words} 2>&1"));
        command.uid(4242).gid(4242).current_dir("/");
        w.host.enter(|| crate::exec::run(command, SOON))
    };
    let denied = as_user("-q --config-net -t 80-80:80-80 -- true");
    assert_eq!(denied.code, 1, "{}", denied.out);
    assert!(
        denied
            .out
            .contains("Listen failed for HOST TCP port */80: Permission denied\n"),
        "{}",
        denied.out
    );
    nothing_left();
    let allowed = as_user("-q --config-net -t 8080-8080:80-80 -- true");
    assert_eq!(allowed.code, 0, "{}", allowed.out);
}
