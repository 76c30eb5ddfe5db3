//! What a user of podman is told when the network cannot be had: podman's status, our words in its mouth, and a
//! machine on which the next container starts as if nothing had happened.

use crate::exec::Output;
use crate::harness::tests;
use crate::machine::{Machine, RUNTIME_DIR};
use crate::servers::PAGE;
use crate::service::WEB4;

tests![; root:
    port_taken,
    start_and_start_again,
    privileged_port,
    address_of_somebody_else,
    unknown_options,
    bad_values,
    protocol_nobody_forwards,
    no_tun_device,
    namespace_gone,
    second_instance,
    no_more_user_namespaces,
    in_a_container,
    user_namespaces_forbidden,
];

/// What podman says before our words, whatever it was asked for.
const FAILED: &str = "pasta failed with exit code 1:\n";

/// The status and all the texts, on standard error; nothing on standard output.
#[track_caller]
fn ends(output: &Output, code: i32, texts: &[&str]) {
    assert_eq!(output.code, code, "{}", output.both());
    assert_eq!(output.out, "");
    for text in texts {
        let found = output.err.contains(text);
        assert!(found, "`{text}` is not in:\n{}", output.err);
    }
}

/// `podman run OPTIONS` fails for the reason that the texts give, and the next container does not.
#[track_caller]
fn refused(m: &Machine, options: &str, code: i32, texts: &[&str]) {
    ends(
        &m.try_user(&format!("podman run --rm {options} $IMAGE true")),
        code,
        texts,
    );
    m.clean();
    assert_eq!(m.user("podman ps -aq"), "", "{options}: a container stays");
}

/// A container that needs the network gets it.
#[track_caller]
fn works(m: &Machine) {
    let seen = m.user("podman run --rm -p 8123:80 $IMAGE curl -sS http://a.name/");
    assert_eq!(seen, PAGE);
    m.clean();
}

fn port_taken() {
    let m = Machine::with_image();
    let busy = m.world.host.listen(("0.0.0.0", 8777));
    for (options, port) in [
        ("-p 8777:80", "*/8777"),
        ("-p 8770-8780:70-80", "*/8777"),
        ("-p 127.0.0.1:8777:80", "127.0.0.1/8777"),
    ] {
        refused(
            &m,
            options,
            126,
            &[
                FAILED,
                &format!("Listen failed for HOST TCP port {port}: Address already in use\n"),
                "Couldn't listen on requested ports\n",
            ],
        );
    }
    // The same number is free for the other protocol, and for others once it is given back.
    m.user("podman run --rm -p 8777:80/udp $IMAGE true");
    drop(busy);
    m.user("podman run --rm -p 8777:80 $IMAGE true");
    let _busy = m.world.host.udp(("0.0.0.0", 8777));
    refused(
        &m,
        "-p 8777:80/udp",
        126,
        &["Listen failed for HOST UDP port */8777: Address already in use\n"],
    );
}

/// A container that was made earlier: 125, and it can be started when the port is free.
fn start_and_start_again() {
    let m = Machine::with_image();
    m.user("podman create --name late -p 8777:80 $IMAGE echo here");
    let busy = m.world.host.listen(("0.0.0.0", 8777));
    ends(
        &m.try_user("podman start late"),
        125,
        &[FAILED, "port */8777: Address already in use\n"],
    );
    m.clean();
    drop(busy);
    assert_eq!(m.user("podman start -a late"), "here\n");
    m.user("podman rm late");
    m.clean();
}

fn privileged_port() {
    let m = Machine::with_image();
    refused(
        &m,
        "-p 80:80",
        126,
        &[
            FAILED,
            "Listen failed for HOST TCP port */80: Permission denied\n",
            "Couldn't listen on requested ports\n",
        ],
    );
    works(&m);
}

fn address_of_somebody_else() {
    let m = Machine::with_image();
    for (options, port) in [
        ("-p 10.9.9.9:8778:80", "10.9.9.9/8778"),
        ("-p [fd00:9::9]:8778:80", "fd00:9::9/8778"),
    ] {
        let text =
            format!("Listen failed for HOST TCP port {port}: Cannot assign requested address\n");
        refused(&m, options, 126, &[FAILED, &text]);
    }
}

/// Among them one that podman takes for a sign of an old pasta: it tries again without, and says what comes then.
fn unknown_options() {
    let m = Machine::with_image();
    for option in ["--no-such-option", "--map-guest-addresses"] {
        refused(
            &m,
            &format!("--network pasta:{option},192.0.2.1"),
            126,
            &[FAILED, &format!("pasta: unrecognized option '{option}'\n")],
        );
    }
    works(&m);
}

fn bad_values() {
    let m = Machine::with_image();
    for (options, text) in [
        ("-t,1/2/3/4", "Invalid port specifier '1/2/3/4'"),
        ("-a,nonsense", "nonsense"),
        ("-m,nonsense", "nonsense"),
        ("-i,nosuch0", "nosuch0"),
        (
            "--pid,/nonexistent/x",
            "Couldn't open PID file /nonexistent/x: No such file",
        ),
        ("-l,/nonexistent/x", "/nonexistent/x"),
    ] {
        // podman makes 127 of a message that looks like a missing program.
        let code = if text.contains("No such file") || options.starts_with("-l") {
            127
        } else {
            126
        };
        refused(
            &m,
            &format!("--network pasta:{options}"),
            code,
            &[FAILED, text],
        );
    }
}

/// podman's own words; we are not asked.
fn protocol_nobody_forwards() {
    let m = Machine::with_image();
    refused(
        &m,
        "-p 8080:80/sctp",
        126,
        &["can't forward protocol: sctp"],
    );
}

fn no_tun_device() {
    let m = Machine::with_image();
    m.root("mv /dev/net/tun /dev/net/hidden");
    refused(
        &m,
        "",
        127,
        &[
            FAILED,
            "Failed to open() /dev/net/tun: No such file or directory",
            "Failed to set up tap device in namespace",
        ],
    );
    m.root("mv /dev/net/hidden /dev/net/tun; chmod 600 /dev/net/tun");
    refused(
        &m,
        "",
        126,
        &["Failed to open() /dev/net/tun: Permission denied"],
    );
    m.root("chmod 666 /dev/net/tun");
    works(&m);
}

/// The command line of a container whose namespace went while podman was busy.
fn namespace_gone() {
    let m = Machine::with_image();
    m.user("podman run --rm $IMAGE true");
    let path = format!("{RUNTIME_DIR}/netns/netns-gone");
    let line = format!(
        "podman unshare pasta --config-net -t none -u none -T none -U none --no-map-gw --quiet --netns {path} --map-guest-addr 169.254.1.2"
    );
    let text = format!("Couldn't open network namespace {path}: No such file or directory\n");
    ends(&m.try_user(&line), 1, &[&text]);
    // Its file, and no namespace on it.
    let text = "Couldn't switch to pasta namespaces: Invalid argument";
    ends(
        &m.try_user(&format!("touch {path}; {line}; rc=$?; rm {path}; exit $rc")),
        1,
        &[text],
    );
    m.clean();
}

/// Another pasta for a container that has one.
fn second_instance() {
    let m = Machine::with_image();
    m.user("podman run -d --name c $IMAGE sleep 1000");
    let before = m.pastas();
    let output = m.try_user("podman unshare pasta --config-net -t none -u none -T none -U none --quiet --netns $XDG_RUNTIME_DIR/netns/netns-*");
    let busy = "TUNSETIFF ioctl on /dev/net/tun failed: Device or resource busy";
    ends(
        &output,
        1,
        &[busy, "Failed to set up tap device in namespace"],
    );
    assert_eq!(m.pastas(), before);
    assert_eq!(m.user("podman exec c curl -sS http://a.name/"), PAGE);
    m.user("podman rm -f -t 0 c");
    m.clean();
}

/// Within the user namespace that podman keeps there can be no more of them: no container needs one, a command of its
/// own does.
fn no_more_user_namespaces() {
    let m = Machine::with_image();
    let output = m.try_user(
        "podman unshare sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; exec pasta --config-net -- touch ran'",
    );
    ends(&output, 1, &["No space left on device"]);
    m.user("test ! -e ran");
    works(&m);
}

/// The program itself in a container, which has all it needs to work.
#[track_caller]
fn contained(m: &Machine, options: &str, command: &str) -> Output {
    m.try_user(&format!(
        "libraries=$(ldd /usr/bin/pasta | awk '$3 ~ /^\\// {{ printf \" -v %s:%s:ro\", $3, $3 }}')
         exec podman run --rm -v /usr/bin/pasta:/usr/bin/pasta:ro $libraries --device /dev/net/tun {options} $IMAGE pasta -q --config-net -- {command}"
    ))
}

/// It may not have a /proc of its own there, nor another host name; that is no reason not to run.
fn in_a_container() {
    let m = Machine::with_image();
    for (options, complaints) in [
        ("", &["mount", "host"][..]),
        ("--cap-add sys_admin", &["mount"]),
        ("--privileged", &[]),
    ] {
        let output = contained(&m, options, &format!("curl -sS http://{WEB4}/"));
        assert_eq!(output.code, 0, "{options}: {}", output.both());
        assert_eq!(output.out, PAGE, "{options}: {}", output.err);
        for complaint in complaints {
            let said = output.err.to_lowercase().contains(complaint);
            assert!(said, "`{complaint}` is not in:\n{}", output.err);
        }
    }
    m.clean();
}

/// A container whose filter lets nobody make user namespaces.
fn user_namespaces_forbidden() {
    let m = Machine::with_image();
    m.user(&format!(
        "cat >filter.json <<'END'\n{NO_USER_NAMESPACES}\nEND"
    ));
    let output = contained(&m, "--security-opt seccomp=filter.json", "true");
    assert_eq!(output.code, 1, "{}", output.both());
    let why = "Operation not permitted (are user namespaces allowed?";
    assert!(output.err.contains(why), "{}", output.err);
    m.clean();
}

/// CLONE_NEWUSER of clone and unshare; clone3, whose flags a filter does not see, is not there.
const NO_USER_NAMESPACES: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
        {
            "names": ["clone", "unshare"],
            "action": "SCMP_ACT_ERRNO",
            "args": [
                { "index": 0, "value": 268435456, "valueTwo": 268435456, "op": "SCMP_CMP_MASKED_EQ" }
            ]
        }
    ]
}"#;
