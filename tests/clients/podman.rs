//! podman run: what a container's network looks like from inside, and whom it reaches.
//!
//! podman asks pasta for the host's own addresses, reads the result out of the namespace, and writes resolv.conf and
//! hosts by it. So the files are half of the test: they are right only if the namespace was complete when
//! pasta's parent ended.

use std::fs;
use std::io::ErrorKind;

use crate::container::{Container, FORWARDER, INTERNAL, contains, tcp, tell, udp};
use crate::exec::{SOON, poll_until};
use crate::harness::tests;
use crate::machine::{HOME, Machine};
use crate::servers::{PAGE, http};
use crate::service::{WEB4, WEB6};
use crate::world::{DNS4, DNS6, GATEWAY4, HOST4, HOST6, PEER4};

tests![; root: default_network, ways_out, outbound_addresses, gateway_as_host, host_loopback, name_options,
       address_options, device_options, other_options, configuration_file, other_modes, same_namespace,
       user_namespaces, pods, pod_restart, kube, version];

/// Prints everything that pasta, and podman by what pasta did, decides.
const LOOK: &str = "ip -o addr show scope global; ip -4 route show default; ip -6 route show default; ip -o link; \
                    cat /etc/resolv.conf; grep internal /etc/hosts";

/// What [`LOOK`] prints in a container with these options of podman.
#[track_caller]
fn look(m: &Machine, options: &str) -> String {
    m.user(&format!(
        "podman run --rm {options} $IMAGE sh -c '{LOOK}; true'"
    ))
}

/// Each of these is in what [`LOOK`] printed, and none of those.
#[track_caller]
fn shows(text: &str, wanted: &[&str], unwanted: &[&str]) {
    contains(text, wanted);
    for u in unwanted {
        assert!(!text.contains(u), "{u} in:\n{text}");
    }
}

/// The host's own addresses, as `ip -o` prints them of the container.
const OWN4: &str = "inet 198.51.100.1/24 ";
const OWN6: &str = "inet6 2001:db8:51::1/64 ";

/// The namespace gets the host's interface name, addresses, gateways and an MTU of 65520; name service by pasta.
fn default_network() {
    let m = Machine::with_image();
    let c = Container::run(&m, "c", "");
    let seen = c.exec(LOOK);
    shows(
        &seen,
        &[
            OWN4,
            OWN6,
            "default via 198.51.100.2 dev host0",
            "default via 2001:db8:51::2 dev host0",
            "host0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 65520",
            "lo: <LOOPBACK,UP,LOWER_UP>",
            "169.254.1.2\thost.containers.internal host.docker.internal",
        ],
        &["tentative", "dadfailed"],
    );
    assert_eq!(seen.matches(" inet").count(), 2, "one address each: {seen}");
    assert_eq!(seen.matches("mtu").count(), 2, "lo and host0: {seen}");
    let resolv = c.exec("cat /etc/resolv.conf");
    let servers: Vec<&str> = resolv
        .lines()
        .filter(|l| l.contains("nameserver"))
        .collect();
    let expected = [FORWARDER, DNS4, DNS6].map(|a| format!("nameserver {a}"));
    assert_eq!(servers, expected, "{resolv}");
    let hosts = c.exec("cat /etc/hosts; hostname");
    let own = format!("{HOST4}\t{} c", hosts.lines().last().expect("a name"));
    assert!(hosts.contains(&own), "its own name: {hosts}");
    c.remove();
    m.clean();
}

/// The container's programs reach the world: by address and by name, over both families, TCP, UDP and ping.
fn ways_out() {
    let m = Machine::with_image();
    let c = Container::run(&m, "c", "");
    for url in [WEB4, &format!("[{WEB6}]"), "a.name"] {
        assert_eq!(
            c.exec(&format!("curl -sS -m 30 http://{url}/")),
            PAGE,
            "{url}"
        );
    }
    assert_eq!(c.exec("curl -sS -4 -m 30 http://a.name/"), PAGE);
    assert_eq!(c.exec("curl -sS -6 -m 30 http://a.name/"), PAGE);
    assert_eq!(
        c.exec("getent ahostsv4 a.name | head -n 1 | cut -d\" \" -f1"),
        format!("{WEB4}\n")
    );
    for server in [FORWARDER, DNS4, DNS6] {
        assert_eq!(
            c.exec(&format!("dig +short @{server} a.name A")),
            format!("{WEB4}\n")
        );
        assert_eq!(
            c.exec(&format!("dig +short +tcp @{server} a.name AAAA")),
            format!("{WEB6}\n")
        );
    }
    let long = c.exec("dig +short a.name TXT");
    assert!(long.len() > 1500, "by TCP after a truncated answer: {long}");
    for to in [PEER4, WEB4, GATEWAY4] {
        c.exec(&format!("/usr/bin/ping -n -c 1 -W 10 {to}"));
    }
    c.exec(&format!("/usr/bin/ping -n -6 -c 1 -W 10 {WEB6}"));
    c.remove();
    m.clean();
}

/// "Outbound, from a container with the defaults": the host's own address is there under another name, its loopback
/// is not, and the gateway is the gateway.
fn outbound_addresses() {
    let m = Machine::with_image();
    tell(&m.world.host, (HOST4, 9001));
    tell(&m.world.host, ("127.0.0.1", 9002));
    http(&m.world.host, (HOST4, 9003));
    let c = Container::run(&m, "c", "");
    let from_host = Ok((HOST4.to_owned(), HOST4.to_owned()));
    for way in [tcp, udp] {
        assert_eq!(way(&c, (INTERNAL, 9001)).map(|s| s.pair()), from_host);
        for unreachable in [
            (INTERNAL, 9002),
            (GATEWAY4, 9002),
            (HOST4, 9001),
            ("127.0.0.1", 9002),
        ] {
            let answer = way(&c, unreachable);
            assert_eq!(answer, Err(ErrorKind::ConnectionRefused), "{unreachable:?}");
        }
    }
    for name in ["host.containers.internal", "host.docker.internal"] {
        assert_eq!(c.exec(&format!("curl -sS -m 30 http://{name}:9003/")), PAGE);
    }
    // The host's address is the container's own.
    c.tell((HOST4, 9001));
    assert_eq!(tcp(&c, (HOST4, 9001)).map(|s| s.pair()), from_host);
    c.remove();
    m.clean();
}

/// "pasta:--map-gw: Allow the container to directly reach the host using the gateway address."
fn gateway_as_host() {
    let m = Machine::with_image();
    tell(&m.world.host, (HOST4, 9001));
    tell(&m.world.host, ("127.0.0.1", 9002));
    let c = Container::run(&m, "c", "--network pasta:--map-gw");
    let lo = "127.0.0.1".to_owned();
    for way in [tcp, udp] {
        let answer = way(&c, (GATEWAY4, 9002));
        assert_eq!(answer.map(|s| s.pair()), Ok((lo.clone(), lo.clone())));
        assert_eq!(
            way(&c, (INTERNAL, 9001)).map(|s| s.from.to_string()),
            Ok(HOST4.to_owned())
        );
        assert_eq!(way(&c, (GATEWAY4, 9001)), Err(ErrorKind::ConnectionRefused));
    }
    c.remove();
    let c = Container::run(&m, "c", "--network pasta:--map-host-loopback,192.0.2.8");
    assert_eq!(
        tcp(&c, ("192.0.2.8", 9002)).map(|s| s.pair()),
        Ok((lo.clone(), lo))
    );
    c.remove();
    m.clean();
}

/// "pasta:-T,5201: enable forwarding of TCP port 5201 from container to host, using the loopback interface".
fn host_loopback() {
    let m = Machine::with_image();
    tell(&m.world.host, ("127.0.0.1", 5201));
    let c = Container::run(&m, "c", "--network pasta:-T,5201,-U,5201 -p 8080:80");
    c.tell((HOST4, 80));
    for way in [tcp, udp] {
        let answer = way(&c, ("127.0.0.1", 5201)).map(|s| s.to.to_string());
        assert_eq!(answer, Ok("127.0.0.1:5201".to_owned()));
    }
    assert!(
        tcp(&m.world.host, ("127.0.0.1", 8080)).is_ok(),
        "with a published port"
    );
    c.remove();
    let c = Container::run(&m, "c", "--network pasta:-T,auto");
    let works = || tcp(&c, ("127.0.0.1", 5201)).is_ok();
    assert!(poll_until(SOON, works), "-T auto finds the server");
    c.remove();
    m.clean();
}

/// podman writes the addresses of --dns-forward and --map-guest-addr into the container's files, and they work there.
fn name_options() {
    let m = Machine::with_image();
    http(&m.world.host, (HOST4, 9003));
    let ask = "getent ahostsv4 a.name && cat /etc/resolv.conf && \
               if grep -q internal /etc/hosts; then curl -sS -m 30 http://host.containers.internal:9003/; fi";
    let run = |options: &str| {
        m.user(&format!(
            "podman run --rm --network pasta:{options} $IMAGE sh -c '{ask}'"
        ))
    };
    for (options, wanted, unwanted) in [
        (
            "--dns-forward,198.51.100.77",
            "nameserver 198.51.100.77\n",
            FORWARDER,
        ),
        ("--map-guest-addr,192.0.2.9", PAGE, "no such text"),
        ("--map-guest-addr,none", FORWARDER, PAGE),
        ("-4", FORWARDER, DNS6),
        (
            "-D,192.0.2.3,-S,x.test,--dns-host,203.0.113.53",
            FORWARDER,
            "192.0.2.3",
        ),
    ] {
        shows(&run(options), &[WEB4, wanted], &[unwanted]);
    }
    let seen = look(&m, "--network pasta:--map-guest-addr,192.0.2.9");
    shows(&seen, &["192.0.2.9\thost.containers.internal"], &[INTERNAL]);
    let seen = look(&m, "--network pasta:--map-guest-addr,none");
    shows(&seen, &[OWN4], &["internal"]);
    // Name servers of a family that the container has no address of are not written.
    let seen = look(&m, "--network pasta:-4,--dns-forward,2001:db8:77::53");
    shows(&seen, &[OWN4], &["2001:db8:77::53", "inet6"]);
    let seen = look(&m, "--network pasta:-6");
    shows(
        &seen,
        &[OWN6],
        &[FORWARDER, INTERNAL, " inet ", "default via 198"],
    );
    m.clean();
}

/// Options, what [`LOOK`] shows then, and what not. The last two are podman's man page's, "equivalent to default
/// slirp4netns options".
const ADDRESSES: [(&str, &[&str], &[&str]); 7] = [
    ("-4", &[OWN4, INTERNAL], &["inet6", "default via 2001"]),
    (
        "-a,192.0.2.1",
        &["inet 192.0.2.1/24 ", OWN6, FORWARDER],
        &[OWN4],
    ),
    (
        "-a,2001:db8::1",
        &["inet6 2001:db8::1/64 ", OWN4, INTERNAL],
        &[OWN6],
    ),
    (
        "-a,192.168.0.2,-g,192.168.0.1,-n,24",
        &["inet 192.168.0.2/24 ", "default via 192.168.0.1 dev host0"],
        &[OWN4, GATEWAY4],
    ),
    (
        "-a,2001:db8::2,-g,2001:db8::1",
        &["inet6 2001:db8::2/64 ", "default via 2001:db8::1 dev host0"],
        &[OWN6],
    ),
    (
        "--ipv4-only,-a,10.0.2.0,-n,24,-g,10.0.2.2,--dns-forward,10.0.2.3,-m,1500,--no-ndp,--no-dhcpv6,--no-dhcp",
        &[
            "inet 10.0.2.0/24 ",
            "default via 10.0.2.2 dev host0",
            "nameserver 10.0.2.3\n",
            "mtu 1500",
        ],
        &["inet6", FORWARDER],
    ),
    (
        "-I,tap0,--ipv4-only,-a,10.0.2.0,-n,24,-g,10.0.2.2,--dns-forward,10.0.2.3,--no-ndp,--no-dhcpv6,--no-dhcp",
        &[
            "inet 10.0.2.0/24 ",
            "default via 10.0.2.2 dev tap0",
            "nameserver 10.0.2.3\n",
            "tap0: <",
            "mtu 65520",
        ],
        &["inet6", FORWARDER, "host0"],
    ),
];

/// The addresses a user gives are those that the container has and podman reads.
fn address_options() {
    let m = Machine::with_image();
    for (options, wanted, unwanted) in ADDRESSES {
        let page = if options.starts_with("-a,2001") {
            format!("http://[{WEB6}]/")
        } else {
            format!("http://{WEB4}/")
        };
        let script = format!("{LOOK}; curl -sS -m 30 {page}; curl -sS -m 30 -4 http://a.name/");
        let seen = m.user(&format!(
            "podman run --rm --network pasta:{options} $IMAGE sh -c '{script}'"
        ));
        shows(&seen, wanted, unwanted);
        assert_eq!(seen.matches(PAGE).count(), 2, "{options}: {seen}");
    }
    m.clean();
}

fn device_options() {
    let m = Machine::with_image();
    for (options, wanted) in [
        (
            "--mtu,1500",
            vec!["host0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500"],
        ),
        ("-m,1280", vec!["mtu 1280", "inet6"]),
        // The later one wins.
        (
            "-I,myname,--mtu,1400,--mtu,2000,--ns-mac-addr,9a:dd:31:ea:92:98,--ns-mac-addr,aa:bb:cc:dd:ee:ff",
            vec!["myname: <", "mtu 2000", "link/ether aa:bb:cc:dd:ee:ff"],
        ),
        ("-i,host0,--outbound-if4,host0", vec!["host0: <"]),
    ] {
        let seen = m.user(&format!(
            "podman run --rm --network pasta:{options} $IMAGE sh -c '{LOOK}; curl -sS -m 30 http://a.name/'"
        ));
        shows(&seen, &wanted, &[]);
        assert!(seen.contains(PAGE), "{options}: {seen}");
    }
    // A container with the rights for it may change what pasta set.
    let change = "ip link set dev host0 mtu 1400 && ip link set host0 down && ip link set host0 up && \
                  ip route add default via $GATEWAY4 && curl -sS -m 30 http://$WEB4/";
    let script = change.replace("$GATEWAY4", GATEWAY4).replace("$WEB4", WEB4);
    let page = m.user(&format!(
        "podman run --rm --cap-add NET_ADMIN $IMAGE sh -c '{script}'"
    ));
    assert_eq!(page, PAGE);
    m.clean();
}

/// Options that take something away, or write something.
fn other_options() {
    let m = Machine::with_image();
    let try_run = |options: &str, script: &str| {
        m.try_user(&format!(
            "podman run --rm --network pasta:{options} $IMAGE {script}"
        ))
    };
    // The container starts, and its program fails in its own way.
    for (options, script, codes) in [
        (
            "--no-tcp",
            format!("curl -sS -m 2 http://{WEB4}/"),
            &[7, 28][..],
        ),
        (
            "--no-udp",
            format!("dig +time=1 +tries=1 @{FORWARDER} a.name"),
            &[9],
        ),
        ("--no-icmp", format!("/usr/bin/ping -c 1 -W 1 {WEB4}"), &[1]),
    ] {
        let output = try_run(options, &script);
        let as_it_does = codes.contains(&output.code) && !output.err.contains("pasta failed");
        assert!(as_it_does, "{options}: {}: {}", output.code, output.both());
    }
    for talk in ["-d", "--debug", "--trace"] {
        let output = try_run(talk, "echo container");
        assert_eq!(
            (output.code, output.out.as_str()),
            (0, "container\n"),
            "{talk}: {}",
            output.err
        );
    }
    assert_eq!(
        look(&m, "--network pasta:--splice-only")
            .matches("mtu")
            .count(),
        1,
        "lo alone"
    );
    let page = format!("curl -sS -m 30 http://{WEB4}/");
    assert_eq!(try_run(&format!("--pcap,{HOME}/x.pcap"), &page).ok(), PAGE);
    assert!(
        fs::metadata(format!("{HOME}/x.pcap")).is_ok_and(|f| f.len() > 1000),
        "it saw the page pass"
    );
    assert_eq!(
        try_run(&format!("--log-file,{HOME}/x.log"), &page).ok(),
        PAGE
    );
    assert_eq!(m.user("stat -c %u x.log x.pcap"), "1000\n1000\n");
    assert_eq!(try_run(&format!("-o,{HOST4},-o,{HOST6}"), &page).ok(), PAGE);
    m.clean();
}

/// `pasta_options` of containers.conf come first, the command line's win over them.
fn configuration_file() {
    let m = Machine::with_image();
    m.user(
        "mkdir -p .config/containers && printf '[network]\\npasta_options = [\"-a\", \"10.9.0.2\", \"-n\", \"24\", \
         \"-g\", \"10.9.0.1\", \"--mtu\", \"1400\", \"-I\", \"conf0\", \"--map-gw\"]\\n' >.config/containers/containers.conf",
    );
    tell(&m.world.host, ("127.0.0.1", 9002));
    let seen = look(&m, "");
    let from_file = [
        "inet 10.9.0.2/24 ",
        "default via 10.9.0.1 dev conf0",
        "mtu 1400",
        INTERNAL,
    ];
    shows(&seen, &from_file, &["host0", HOST4]);
    let seen = look(&m, "--network pasta:--mtu,1300,-I,cmd0,-a,10.9.0.7");
    let both = [
        "inet 10.9.0.7/24 ",
        "default via 10.9.0.1 dev cmd0",
        "cmd0: <",
        "mtu 1300",
    ];
    shows(&seen, &both, &["conf0", "mtu 1400"]);
    let c = Container::run(&m, "c", "-p 8080:80");
    c.tell(("10.9.0.2", 80));
    assert!(tcp(&m.world.host, (HOST4, 8080)).is_ok());
    assert!(tcp(&c, ("10.9.0.1", 9002)).is_ok(), "--map-gw of the file");
    c.remove();
    m.clean();
}

/// Modes that need no pasta start none.
fn other_modes() {
    let m = Machine::with_image();
    let links = "sh -c 'ip -o addr show scope global; ip -o link; sleep 2'";
    let running = m.start(&format!("podman run --rm --network none $IMAGE {links}"));
    shows(
        &running.finish(crate::machine::PATIENCE).ok(),
        &["lo: <"],
        &["inet", "host0"],
    );
    m.user("podman run -d --name h --network host $IMAGE sleep 1000000");
    assert_eq!(m.pastas(), Vec::<i32>::new());
    assert_eq!(
        m.user(&format!("podman exec h curl -sS http://{WEB4}/")),
        PAGE
    );
    m.user("podman rm -f -t 0 h");
    m.clean();
}

/// --network=container: is another program in the same network, with its files.
fn same_namespace() {
    let m = Machine::with_image();
    let base = Container::run(&m, "base", "-p 8080:80");
    let pastas = m.pastas();
    let seen = look(&m, "--network container:base");
    shows(&seen, &[OWN4, FORWARDER, INTERNAL], &[]);
    let other = Container::run(&m, "other", "--network container:base");
    assert_eq!(m.pastas(), pastas, "no other instance");
    other.tell((HOST4, 80));
    assert!(
        tcp(&m.world.host, (HOST4, 8080)).is_ok(),
        "the port is that of both"
    );
    assert_eq!(other.exec("curl -sS -m 30 http://a.name/"), PAGE);
    other.remove();
    assert_eq!(base.exec("curl -sS -m 30 http://a.name/"), PAGE);
    base.remove();
    m.clean();
}

/// With a user namespace of its own below podman's, the container's network namespace belongs to that one.
fn user_namespaces() {
    let m = Machine::with_image();
    for (mode, id) in [
        ("auto", "0"),
        ("keep-id", "1000"),
        ("keep-id:uid=200,gid=210", "200"),
        ("nomap", "0"),
        ("host", "0"),
    ] {
        let c = Container::run(&m, "c", &format!("--userns {mode} -p 8320:8080"));
        c.tell((HOST4, 8080));
        assert_eq!(c.exec("id -u"), format!("{id}\n"), "{mode}");
        assert!(tcp(&m.world.host, (HOST4, 8320)).is_ok(), "{mode}");
        assert_eq!(c.exec("curl -sS -m 30 http://a.name/"), PAGE, "{mode}");
        shows(&c.exec(LOOK), &[OWN4, FORWARDER, INTERNAL], &["tentative"]);
        c.remove();
        m.clean();
    }
}

/// A pod is one network: its ports, its loopback, its files.
fn pods() {
    let m = Machine::with_image();
    m.user("podman pod create --name pod -p 8310:80 -p 8311:81/udp");
    assert_eq!(
        m.pastas(),
        Vec::<i32>::new(),
        "nothing runs before its first container"
    );
    let a = Container::run(&m, "a", "--pod pod");
    let b = Container::run(&m, "b", "--pod pod");
    a.tell((HOST4, 80));
    a.tell(("127.0.0.1", 90));
    b.tell((HOST4, 81));
    assert!(tcp(&m.world.host, (HOST4, 8310)).is_ok());
    assert!(udp(&m.world.host, (HOST4, 8311)).is_ok());
    assert!(tcp(&b, ("127.0.0.1", 90)).is_ok(), "one loopback");
    for c in [&a, &b] {
        assert_eq!(c.exec("curl -sS -m 30 http://a.name/"), PAGE);
        let seen = c.exec(LOOK);
        shows(&seen, &[OWN4, FORWARDER, INTERNAL], &[]);
    }
    m.user("podman pod rm -f -t 0 pod");
    m.clean();
}

/// Stopped, started and restarted, a pod has its ports again, by one instance.
fn pod_restart() {
    let m = Machine::with_image();
    m.user("podman pod create --name pod -p 8310:80");
    m.user("podman run -d --name a --pod pod --stop-timeout 0 $IMAGE sleep 1000000");
    let instance = m.pastas().len();
    let serves = || {
        let a = Container::running(&m, "a");
        a.tell((HOST4, 80));
        assert!(tcp(&m.world.host, (HOST4, 8310)).is_ok());
        assert!(
            poll_until(SOON, || m.pastas().len() == instance),
            "{:?}",
            m.pastas()
        );
    };
    serves();
    for _ in 0..3 {
        m.user("podman pod restart pod");
        serves();
    }
    m.user("podman pod stop -t 0 pod");
    m.clean();
    m.user("podman pod start pod");
    serves();
    m.user("podman pod rm -f -t 0 pod");
    m.clean();
}

/// The same written as a file for Kubernetes; such a pod is on a bridge network.
fn kube() {
    let m = Machine::with_image();
    m.user(
        "printf '%s\\n' 'apiVersion: v1' 'kind: Pod' 'metadata: {name: kp}' \
         'spec: {terminationGracePeriodSeconds: 0, containers: [{name: k, image: localhost/image, command: [sleep, \"1000000\"], \
         ports: [{containerPort: 80, hostPort: 8307}]}]}' >kp.yaml && podman kube play kp.yaml",
    );
    let c = Container::running(&m, "kp-k");
    c.tell(("::", 80));
    let reached = || tcp(&m.world.host, (HOST4, 8307)).is_ok();
    assert!(poll_until(SOON, reached), "the port of the file");
    assert_eq!(c.exec("curl -sS -m 30 http://a.name/"), PAGE);
    m.user("podman kube down --force kp.yaml; podman pod rm -a -f -t 0");
    m.clean();
}

/// podman info takes all of `pasta --version`.
fn version() {
    let m = Machine::with_image();
    let version = m.user("pasta --version");
    let info = m.user("podman info -f '{{.Host.Pasta.Version}}'");
    assert_eq!(info.trim_end(), version.trim_end());
    let path = m.user("podman info -f '{{.Host.Pasta.Executable}}'");
    assert_eq!(path, "/usr/bin/pasta\n");
    m.clean();
}
