//! `launcher::tap::open`: a new tap, somebody else's tap, no tap.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use passt::launcher::tap::{self, TapError};

use crate::arena::{have_tun, ip, ip_all, isolated};

#[test]
fn created_with_offloads_and_gone_with_its_descriptor() {
    const NAME: &str = "tap::created_with_offloads_and_gone_with_its_descriptor";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let tap = tap::open("eth0").unwrap();
        let shown = ip("-d link show eth0");
        assert!(shown.contains(&format!("{}: eth0:", tap.index)), "{shown}");
        assert!(
            shown.contains(&format!("link/ether {}", tap.mac)),
            "{shown}"
        );
        assert!(
            shown.contains("type tap") && shown.contains("vnet_hdr on"),
            "{shown}"
        );
        assert!(tap.offloads.csum && tap.offloads.tso4 && tap.offloads.tso6);
        drop(tap);
        assert!(!ip("link").contains("eth0"));
    });
}

#[test]
fn a_persistent_tap_is_taken_over() {
    const NAME: &str = "tap::a_persistent_tap_is_taken_over";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        ip_all(
            "tuntap add name tap0 mode tap
             link set tap0 address 02:00:00:00:00:42 up
             tuntap add name tap1 mode tap multi_queue
             tuntap add name tap2 mode tap vnet_hdr",
        );
        let tap = tap::open("tap0").unwrap();
        assert_eq!(tap.mac.to_string(), "02:00:00:00:00:42");
        assert!(ip("-d link show tap0").contains("vnet_hdr on"));
        assert!(tap::open("tap1").unwrap().offloads.csum);
        assert!(tap::open("tap2").unwrap().offloads.csum);
        drop(tap);
        assert!(
            ip("link show tap0").contains("tap0"),
            "persistent ones stay"
        );
        assert!(tap::open("tap0").is_ok(), "and can be had again");
    });
}

#[test]
fn one_that_cannot_be_had_says_why() {
    const NAME: &str = "tap::one_that_cannot_be_had_says_why";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        let _first = tap::open("tap0").unwrap();
        let busy = tap::open("tap0").unwrap_err().to_string();
        assert!(
            busy.contains("TUNSETIFF ioctl on /dev/net/tun failed: Device or resource busy"),
            "{busy}"
        );
        assert!(
            busy.starts_with("Failed to set up tap device in namespace: "),
            "{busy}"
        );
        ip("link add eth0 type veth peer name p0");
        let other = tap::open("eth0").unwrap_err();
        assert!(matches!(other, TapError::Attach { .. }), "{other:?}");
        assert!(other.to_string().contains("of another kind"), "{other}");
    });
}

#[test]
fn without_the_device_the_user_learns_what_to_do() {
    const NAME: &str = "tap::without_the_device_the_user_learns_what_to_do";
    isolated(NAME, || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let dev = std::path::Path::new("/dev");
        mount(
            None::<&str>,
            dev,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let e = tap::open("tap0").unwrap_err().to_string();
        let words = "Failed to open() /dev/net/tun: No such file or directory (load the driver";
        assert!(e.contains(words), "{e}");
        assert!(e.contains("--device /dev/net/tun"), "{e}");
    });
}

#[test]
fn without_the_capability_too() {
    const NAME: &str = "tap::without_the_capability_too";
    isolated(NAME, || {
        if !have_tun(NAME) {
            return;
        }
        caps::clear(None, caps::CapSet::Effective).unwrap();
        let e = tap::open("tap0").unwrap_err().to_string();
        assert!(
            e.contains("TUNSETIFF ioctl on /dev/net/tun failed: Operation not permitted"),
            "{e}"
        );
        assert!(e.contains("CAP_NET_ADMIN"), "{e}");
    });
}
