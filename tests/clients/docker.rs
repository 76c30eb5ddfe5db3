//! A rootless Docker: `dockerd-rootless.sh` in the network that rootlesskit has pasta make, and containers below it.
//!
//! Docker has bridges and address translation of its own in there, and a proxy for each published port; rootlesskit's
//! port driver is "implicit": that a port is bound inside makes pasta open it outside. Of `-p 127.0.0.1:8080:80` the
//! proxy is bound to loopback inside. The rootlesskit that Debian has does not know the option that Docker needs for
//! that, so the test's `pasta` in front of the real one adds what newer ones pass on by themselves.

use crate::container::tcp;
use crate::exec::{SOON, poll_until};
use crate::harness::tests;
use crate::machine::{Machine, PATIENCE};
use crate::servers::PAGE;
use crate::world::HOST4;

tests![; root: docker];

const ENVIRONMENT: &str = "export DOCKER_HOST=unix://$XDG_RUNTIME_DIR/docker.sock DOCKER_BUILDKIT=0 \
                           DOCKERD_ROOTLESS_ROOTLESSKIT_NET=pasta DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=implicit \
                           PATH=$HOME/bin:/usr/share/docker.io/contrib:$PATH";

/// What the user's shell with Docker's environment prints.
#[track_caller]
fn user(m: &Machine, script: &str) -> String {
    m.user(&format!("{ENVIRONMENT}; {script}"))
}

/// What the container's server says at an address, when it is reached.
fn get(m: &Machine, address: &str) -> Option<String> {
    let output = m.try_user(&format!("curl -sS -m 10 http://{address}/"));
    (output.code == 0).then_some(output.out)
}

fn docker() {
    let m = Machine::with_image();
    m.user(
        "mkdir bin && printf '%s\\n' '#!/bin/sh' 'exec /usr/bin/pasta --host-lo-to-ns-lo \"$@\"' >bin/pasta && chmod +x bin/pasta",
    );
    let mut daemon = m.start(&format!(
        "{ENVIRONMENT}; exec dockerd-rootless.sh --storage-driver=overlay2 >docker.log 2>&1"
    ));
    let ready = format!("{ENVIRONMENT}; docker version");
    let mut started = false;
    poll_until(PATIENCE, || {
        started = m.try_user(&ready).code == 0;
        started || daemon.ended()
    });
    assert!(started, "{}", m.user("tail -n 40 docker.log"));
    user(
        &m,
        "podman create --name c $IMAGE >/dev/null && podman export c | docker import - image && podman rm c",
    );

    // Out of a container and out of a build.
    let seen = user(
        &m,
        "docker run --rm image sh -c 'cat /etc/resolv.conf; curl -sS -m 60 http://a.name/; curl -sS -m 60 http://a.name/big?3000000 | wc -c'",
    );
    for wanted in ["nameserver 10.0.2.3\n", PAGE, "\n3000000\n"] {
        assert!(seen.contains(wanted), "no `{wanted}` in:\n{seen}");
    }
    let said = user(
        &m,
        "mkdir b && printf '%s\\n' 'FROM image' 'RUN curl -sS -m 60 http://a.name/' >b/Dockerfile && docker build b 2>&1",
    );
    assert!(said.contains(PAGE), "{said}");

    // Into one: bound to loopback it is found there only, otherwise everywhere.
    user(
        &m,
        "docker run -d --name web -p 127.0.0.1:8080:80 -p 8081:80 image sh -c 'echo inside >/srv/index.html; exec busybox httpd -f -p 80 -h /srv'",
    );
    for address in ["127.0.0.1:8080", "127.0.0.1:8081", "$HOST4:8081"] {
        let reached = poll_until(PATIENCE, || get(&m, address).as_deref() == Some("inside\n"));
        assert!(reached, "{address}");
    }
    assert!(
        tcp(&m.world.peer, (HOST4, 8080)).is_err(),
        "published on loopback only"
    );
    user(&m, "docker rm -f web");
    assert!(
        poll_until(SOON, || get(&m, "127.0.0.1:8081").is_none()),
        "still open"
    );

    m.root(&format!("kill {}", daemon.id()));
    daemon.finish(PATIENCE);
    // What Docker leaves by itself.
    m.root("rm -rf /run/user/1000/docker* /run/user/1000/runc /tmp/rootlesskit* /tmp/docker*");
    m.clean();
}
