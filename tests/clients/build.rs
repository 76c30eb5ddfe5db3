//! podman build: commands of a Containerfile that need the network.
//!
//! Each isolation brings pasta another namespace: that of a process (`/proc/PID/ns/net`), which ends without anything
//! being unlinked, or the one that bridge networks share, or none.

use crate::container::{FORWARDER, INTERNAL};
use crate::harness::tests;
use crate::machine::Machine;
use crate::servers::PAGE;
use crate::service::WEB4;
use crate::world::HOST4;

tests![; root: isolations, networks, no_network];

/// What RUN prints of its network, and that it reaches the world by address and by name.
fn context(m: &Machine) {
    m.user(&format!(
        "mkdir -p b && printf '%s\\n' \"FROM $IMAGE\" 'RUN ip -o -4 addr show scope global; cat /etc/resolv.conf; \
         grep internal /etc/hosts; curl -sS -m 30 http://{WEB4}/ && curl -sS -m 30 http://a.name/' >b/Containerfile"
    ));
}

#[track_caller]
fn build(m: &Machine, options: &str, wanted: &[&str]) {
    let text = m.user(&format!("podman build --no-cache {options} b 2>&1"));
    assert_eq!(text.matches(PAGE).count(), 2, "{options}:\n{text}");
    for w in wanted {
        assert!(text.contains(w), "{options}: no {w} in:\n{text}");
    }
    m.clean();
}

/// The default and the three isolations.
fn isolations() {
    let m = Machine::with_image();
    context(&m);
    let own = format!("inet {HOST4}/24 ");
    build(&m, "", &[]);
    build(&m, "--isolation=rootless", &[&own]);
    build(&m, "--isolation=chroot", &[&own]);
    build(&m, "--isolation=oci", &["inet 10.88.0."]);
}

/// --network says what the commands get.
fn networks() {
    let m = Machine::with_image();
    context(&m);
    let own = format!("inet {HOST4}/24 ");
    build(&m, "--network=pasta", &[&own, FORWARDER, INTERNAL]);
    build(&m, "--network=private", &[&own, FORWARDER, INTERNAL]);
    // The host's network is there without us: what podman would call says that it was.
    m.user(
        "mkdir fake && printf '#!/bin/sh\\ntouch asked; exit 1\\n' >fake/pasta && chmod +x fake/pasta",
    );
    let fake = "export CONTAINERS_HELPER_BINARY_DIR=$HOME/fake";
    let text = m.user(&format!(
        "{fake}; podman build --no-cache --network=host b 2>&1"
    ));
    assert!(text.contains(&own), "{text}");
    m.clean();
    m.user("test ! -e asked");
    m.try_user(&format!("{fake}; podman run --rm $IMAGE true"));
    m.user("test -e asked");
    let options = "--network=pasta:-a,10.1.1.2,-n,24,-g,10.1.1.1,--dns-forward,10.1.1.3";
    build(
        &m,
        options,
        &["inet 10.1.1.2/24 ", "nameserver 10.1.1.3\n", INTERNAL],
    );
}

/// A failing command fails the build and leaves nothing; no network is none.
fn no_network() {
    let m = Machine::with_image();
    context(&m);
    fails(&m, "--network=none", "Failed to connect to 192.0.2.80");
    m.user("printf '%s\\n' \"FROM $IMAGE\" 'RUN curl -sS http://192.0.2.80:1/' >b/Containerfile");
    fails(&m, "--network=pasta", "Failed to connect to 192.0.2.80");
}

/// The build fails where its command did, for this reason.
#[track_caller]
fn fails(m: &Machine, options: &str, reason: &str) {
    let output = m.try_user(&format!("podman build --no-cache {options} b"));
    let text = output.both();
    assert_ne!(output.code, 0, "{text}");
    let its_own = text.contains(reason) && text.contains("exit status 7");
    assert!(its_own && !text.contains("pasta failed"), "{text}");
    m.clean();
}
