//! That the machine is one: each client runs, and each finds the program under test.

use crate::differences;
use crate::harness::tests;
use crate::machine::Machine;
use crate::servers::PAGE;
use crate::service::{WEB4, WEB6};
use crate::world::{HOST4, HOST6};

tests![; root: machine, podman];

/// Users, groups, name service and the way out.
fn machine() {
    let m = Machine::new();
    assert_eq!(
        m.user("id -un; stat -c %u ~ $XDG_RUNTIME_DIR"),
        "user\n1000\n1000\n"
    );
    for address in [WEB4, &format!("[{WEB6}]"), "a.name"] {
        assert_eq!(m.user(&format!("curl -sS http://{address}/")), PAGE);
    }
    let version = m.user("pasta --version");
    assert_eq!(
        version.contains("Red Hat"),
        differences::established(),
        "{version}"
    );
    m.clean();
}

/// A container with everything by default.
fn podman() {
    let m = Machine::with_image();
    let addresses = m.user("podman run --rm $IMAGE ip addr");
    for address in [format!("inet {HOST4}/24"), format!("inet6 {HOST6}/64")] {
        assert!(addresses.contains(&address), "{addresses}");
    }
    m.user("podman run -d --name c $IMAGE sleep 1000");
    assert!(
        !m.pastas().is_empty(),
        "pasta runs as long as the container"
    );
    assert_eq!(m.user("podman exec c curl -sS http://a.name/"), PAGE);
    m.user("podman rm -f -t 0 c");
    m.clean();
}
