//! The package: over the distribution's passt and back again, upgraded, removed, purged; manuals and completions.
//!
//! The suite's root directory has the distribution's passt installed before ours (`tests/clients/root`), so that all
//! tests of this suite run in what that leaves. Debian's package itself is not there any more to go back to: a package
//! made here has its name, its version and the names of its files, and that is what dpkg looks at.

use crate::harness::{skip, tests};
use crate::machine::{Machine, PACKAGE};
use crate::servers::PAGE;

tests![;
    root: versions_grow, in_place_of_the_distributions, manuals, completions, profiles, upgrade_below_a_container,
        an_edited_profile_stays, remove_and_purge,
        found_where_podman_is_told_to_look, back_to_the_distributions,
];

const NAMES: [&str; 5] = ["passt", "pasta", "passt4netns", "pesto", "qrap"];
const STATUS: &str = "dpkg-query -W -f '${db:Status-Status}\n'";

/// A machine with our package, or none of this can be asked.
fn machine() -> Machine {
    packaged(Machine::new())
}

fn packaged(machine: Machine) -> Machine {
    if !std::path::Path::new(PACKAGE).exists() {
        skip("the package is not what is under test");
    }
    machine
}

/// The same package, of this version.
fn repack(m: &Machine, version: &str) -> String {
    let made = format!("/root/passt-rs_{version}.deb");
    m.root(&format!(
        "set -e; rm -rf tree; dpkg-deb -R {PACKAGE} tree; sed -i 's/^Version: .*/Version: {version}/' tree/DEBIAN/control
         dpkg-deb --root-owner-group -b tree {made} >/dev/null"
    ));
    made
}

/// A build is newer than the distribution's, and than the release it comes after.
fn versions_grow() {
    let m = machine();
    let version = m.root("dpkg-query -W -f '${Version}' passt-rs");
    let release = concat!(env!("CARGO_PKG_VERSION"), "+");
    assert!(version.starts_with(release), "{version}");
    for older in ["0.0~git20261002", env!("CARGO_PKG_VERSION")] {
        m.root(&format!("dpkg --compare-versions {version} gt {older}"));
    }
    assert!(
        m.root("dpkg-query -W -f '${Provides}' passt-rs")
            .contains(&version)
    );
    m.root(&format!(
        "test $(dpkg-deb -f {PACKAGE} Version) = {version}"
    ));
}

/// dpkg has replaced the one by the other, and nothing is broken or missing.
fn in_place_of_the_distributions() {
    let m = machine();
    assert_eq!(
        m.root(&format!("{STATUS} passt-rs podman buildah")),
        "installed\n".repeat(3)
    );
    let theirs = m.root(&format!("{STATUS} passt || true"));
    assert_ne!(theirs, "installed\n", "two packages with the same files");
    assert_eq!(m.root("dpkg --audit; dpkg --verify passt-rs"), "");
    m.root("apt-get check");
    for name in NAMES {
        assert_eq!(
            m.user(&format!("command -v {name}")),
            format!("/usr/bin/{name}\n")
        );
    }
    for name in &NAMES[..4] {
        let version = concat!(env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(
            m.user(&format!("{name} --version")),
            format!("{name} {version}")
        );
    }
    assert_eq!(
        m.root("ls /usr/bin | grep -E '^(passt|pasta|pesto|qrap)' | sort"),
        "passt\npasst4netns\npasta\npesto\nqrap\n",
        "nothing of the other one is left"
    );
    m.clean();
}

fn manuals() {
    let m = machine();
    for name in NAMES {
        let page = m.user(&format!("man --pager=cat {name} | col -b"));
        for section in ["NAME", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
            assert!(
                page.lines().any(|line| line == section),
                "{name}: {section}: {page}"
            );
        }
    }
    let warnings = m.user(
        "for page in passt pesto qrap; do zcat /usr/share/man/man1/$page.1.gz >$page.1
         LC_ALL=C.UTF-8 MANROFFSEQ= man --warnings -E UTF-8 -l -Tutf8 -Z $page.1 2>&1 >/dev/null; done",
    );
    assert_eq!(warnings, "");
    m.clean();
}

/// What a shell offers. zsh and fish are not here; their files come from the same definitions.
fn completions() {
    let m = machine();
    let offered = |name: &str, words: &str| {
        m.user(&format!(
            ". /usr/share/bash-completion/completions/{name}
             COMP_WORDS=({name} {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
             _{name} {name} \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\" 2>/dev/null
             echo ${{COMPREPLY[*]}}"
        ))
    };
    assert_eq!(offered("pasta", "--config"), "--config-net\n");
    assert_eq!(offered("passt4netns", "-q --ns-m"), "--ns-mac-addr\n");
    assert_eq!(offered("passt", "--vhost"), "--vhost-user\n");
    assert_eq!(offered("passt", "--config"), "\n");
    assert_eq!(offered("pesto", "--watch"), "--watch\n");
    assert_eq!(offered("pesto", "-C H"), "HOST\n");
    for name in NAMES {
        m.root(&format!(
            "test -s /usr/share/zsh/vendor-completions/_{name}"
        ));
        // qrap has no options.
        let file = format!("/usr/share/fish/vendor_completions.d/{name}.fish");
        assert_eq!(std::path::Path::new(&file).exists(), name != "qrap");
    }
    m.clean();
}

/// No rule made for another program confines ours, and those that are there can be loaded.
fn profiles() {
    let m = machine();
    let check = "apparmor_parser --skip-kernel-load --skip-cache";
    m.root(&format!("{check} /etc/apparmor.d/usr.bin.passt"));
    assert_eq!(
        m.root("apparmor_parser --names /etc/apparmor.d/usr.bin.passt"),
        "passt\n"
    );
    // As libvirt's profile of a guest has it.
    m.root(
        "printf '%s\\n' 'include <tunables/global>' 'profile guest {' '/usr/bin/passt Cx -> passt,' 'profile passt {' \
         'include if exists <abstractions/passt>' '}' '}' >guest",
    );
    m.root(&format!("{check} guest"));
    assert_eq!(
        m.root("dpkg -S /etc/apparmor.d/usr.bin.passt /etc/apparmor.d/abstractions/passt | cut -d: -f1 | sort -u"),
        "passt-rs\n"
    );
    m.clean();
}

/// A container goes on while the package is replaced, and can be ended and made anew after.
fn upgrade_below_a_container() {
    let m = packaged(Machine::with_image());
    m.user("podman run -d --name old $IMAGE sleep 1000");
    let running = m.pastas();
    let newer = repack(&m, "9.0");
    m.root("echo '# mine' >>/etc/apparmor.d/usr.bin.passt");
    let said = m.root(&format!("dpkg --install {newer}"));
    assert!(!said.contains("confines this one"), "{said}");
    assert_eq!(m.root("dpkg-query -W -f '${Version}' passt-rs"), "9.0");
    m.root("grep -q '# mine' /etc/apparmor.d/usr.bin.passt");
    assert_eq!(m.pastas(), running);
    assert_eq!(m.user("podman exec old curl -sS http://a.name/"), PAGE);
    assert_eq!(
        m.user("podman run --rm $IMAGE curl -sS http://a.name/"),
        PAGE
    );
    m.user("podman restart -t 0 old");
    assert_eq!(m.user("podman exec old curl -sS http://a.name/"), PAGE);
    m.user("podman rm -f -t 0 old");
    m.clean();
}

/// A profile that somebody edited is theirs, but they hear of it.
fn an_edited_profile_stays() {
    let m = machine();
    m.root("echo 'profile passt /usr/bin/passt { }' >/etc/apparmor.d/usr.bin.passt");
    let newer = repack(&m, "9.0");
    let said = m.root(&format!("dpkg --install {newer} </dev/null"));
    assert!(
        said.contains("usr.bin.passt has been edited for another passt"),
        "{said}"
    );
    m.root("grep -qx 'profile passt /usr/bin/passt { }' /etc/apparmor.d/usr.bin.passt");
}

/// A user's own copy, without a package: what README says under "Install".
fn found_where_podman_is_told_to_look() {
    let m = packaged(Machine::with_image());
    m.user("install -D /usr/bin/passt ~/.local/lib/passt/pasta");
    m.root("chmod 000 /usr/bin/passt");
    let there = "export CONTAINERS_HELPER_BINARY_DIR=~/.local/lib/passt";
    let version = m.user(&format!(
        "{there}; podman info --format '{{{{.Host.Pasta.Version}}}}'"
    ));
    assert_eq!(version.trim(), concat!("pasta ", env!("CARGO_PKG_VERSION")));
    let run = "podman run --rm $IMAGE curl -sS http://a.name/";
    assert_eq!(m.user(&format!("{there}; {run}")), PAGE);
    // The other way to tell it.
    assert_ne!(m.try_user(run).code, 0, "not told where");
    m.user(
        "mkdir -p .config/containers && printf '[engine]\\nhelper_binaries_dir = [\"%s\", \"/usr/libexec/podman\", \
         \"/usr/lib/podman\"]\\n' $HOME/.local/lib/passt >.config/containers/containers.conf",
    );
    assert_eq!(m.user(run), PAGE);
    m.clean();
}

fn remove_and_purge() {
    let m = machine();
    let files = m.root("dpkg -L passt-rs");
    m.root("dpkg --force-depends --remove passt-rs");
    assert_eq!(
        m.root("command -v passt pasta passt4netns pesto qrap || true"),
        ""
    );
    m.root("test -e /etc/apparmor.d/usr.bin.passt");
    m.root(&format!("dpkg --install {PACKAGE}"));
    assert_eq!(m.root("dpkg --verify passt-rs"), "");
    m.root("dpkg --force-depends --purge passt-rs");
    let left: Vec<&str> = files
        .lines()
        .filter(|path| std::fs::symlink_metadata(path).is_ok_and(|m| !m.is_dir()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(
        m.root("ls -d /var/lib/dpkg/info/passt-rs.* /usr/share/doc/passt-rs || true"),
        ""
    );
    assert_eq!(m.root("dpkg --audit"), "");
}

/// As apt does it: ours is removed first, its configuration files stay until it is purged. Those of the distribution's
/// stayed too, when ours came.
fn back_to_the_distributions() {
    let m = machine();
    m.root(
        "set -e
         mkdir -p theirs/DEBIAN theirs/usr/bin theirs/etc/apparmor.d/abstractions
         printf '%s\\n' 'Package: passt' 'Version: 0.0~git20261002' 'Architecture: all' 'Maintainer: nobody <x@invalid>' \
             'Description: a stand-in' >theirs/DEBIAN/control
         for file in usr.bin.passt usr.bin.pasta abstractions/passt abstractions/pasta; do
             echo '# theirs' >theirs/etc/apparmor.d/$file; echo /etc/apparmor.d/$file >>theirs/DEBIAN/conffiles; done
         printf '#!/bin/sh\\necho theirs\\n' >theirs/usr/bin/passt; chmod 755 theirs/usr/bin/passt; ln theirs/usr/bin/pas{st,ta}
         dpkg-deb --root-owner-group -b theirs theirs.deb >/dev/null
         dpkg --force-depends --purge passt passt-rs
         dpkg --install theirs.deb",
    );
    m.root(&format!("dpkg --install {PACKAGE} </dev/null"));
    assert_eq!(m.root(&format!("{STATUS} passt")), "config-files\n");
    m.root("dpkg --force-depends --remove passt-rs");
    m.root("dpkg --install theirs.deb </dev/null");
    assert_eq!(
        m.user("pasta --version; passt --version"),
        "theirs\ntheirs\n"
    );
    m.root("dpkg --purge passt-rs");
    assert_eq!(
        m.root("dpkg --verify passt; cat /etc/apparmor.d/usr.bin.passt"),
        "# theirs\n"
    );
    // And over it once more: ours, without a question, and theirs can be purged below it.
    m.root(&format!("dpkg --install {PACKAGE} </dev/null"));
    assert_ne!(m.root(&format!("{STATUS} passt || true")), "installed\n");
    assert!(m.user("pasta --version").starts_with("pasta "));
    m.root("dpkg --purge passt");
    assert_eq!(
        m.root("dpkg --verify passt-rs; ls /etc/apparmor.d/*/pasta || true"),
        ""
    );
    m.root("grep -q 'profile passt /usr/bin/passt' /etc/apparmor.d/usr.bin.passt");
    m.clean();
}
