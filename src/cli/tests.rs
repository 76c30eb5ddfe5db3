use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::config::Verbosity;
use crate::config::rules::{Protocol, Spec, Table};

fn parse_line(line: &str) -> Result<Invocation, CliError> {
    let argv: Vec<OsString> = line
        .split(' ')
        .filter(|w| !w.is_empty())
        .map(OsString::from)
        .collect();
    parse(&argv)
}

fn options(line: &str) -> Options {
    match parse_line(line) {
        Ok(Invocation::Run(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

fn failure(line: &str) -> String {
    match parse_line(line) {
        Err(e) => e.message.lines().next().unwrap_or_default().to_owned(),
        Ok(other) => panic!("{line}: accepted: {other:?}"),
    }
}

#[test]
fn the_name_decides_the_mode() {
    for (name, mode) in [
        ("passt", Mode::Passt),
        ("/usr/bin/passt", Mode::Passt),
        ("passt.avx2", Mode::Passt),
        ("pasta", Mode::Pasta),
        ("/x/passt/pasta", Mode::Pasta),
        ("passt4netns", Mode::Pasta),
    ] {
        let o = options(name);
        assert_eq!(o.mode, mode, "{name}");
        assert_eq!(o.program, name.rsplit('/').next().unwrap());
    }
    assert!(failure("/x/pasta/other").contains("'other'"));
    assert!(parse(&[]).is_err());
}

#[test]
fn getopt_messages() {
    for (line, want) in [
        ("pasta --xyz", "pasta: unrecognized option '--xyz'"),
        ("pasta --xyz=5", "pasta: unrecognized option '--xyz=5'"),
        ("/usr/bin/pasta --xyz", "pasta: unrecognized option '--xyz'"),
        (
            "pasta --bogus --version",
            "pasta: unrecognized option '--bogus'",
        ),
        ("pasta -Z", "pasta: invalid option -- 'Z'"),
        ("pasta -fZ", "pasta: invalid option -- 'Z'"),
        ("pasta --mtu", "pasta: option '--mtu' requires an argument"),
        ("pasta -m", "pasta: option requires an argument -- 'm'"),
        ("pasta -fm", "pasta: option requires an argument -- 'm'"),
        (
            "pasta --quiet=5",
            "pasta: option '--quiet' doesn't allow an argument",
        ),
        (
            "pasta --log",
            "pasta: option '--log' is ambiguous; possibilities: '--log-file' '--log-size'",
        ),
        (
            "pasta --l=x",
            "pasta: option '--l=x' is ambiguous; possibilities: '--log-file' '--log-size'",
        ),
    ] {
        assert_eq!(failure(line), want, "{line}");
    }
    let hint = parse_line("pasta --xyz").unwrap_err().message;
    assert_eq!(
        hint.lines().nth(1),
        Some("Try 'pasta --help' for more information.")
    );
}

#[test]
fn abbreviations_bundles_and_values() {
    let o = options(
        "pasta --config --quie --ns-if=foo -fm1400 --add 192.0.2.1 -p /tmp/a -p/tmp/b -- -f",
    );
    assert!(o.config_net && o.foreground);
    assert_eq!(o.verbosity, Verbosity::Quiet);
    assert_eq!(o.ns_ifname.as_deref(), Some("foo"));
    assert_eq!(o.mtu, Some(1400));
    assert_eq!(o.pcap, Some(PathBuf::from("/tmp/b")));
    assert_eq!(o.target, Target::Spawn(vec!["-f".into()]));
    // An exact name is not an abbreviation of a longer one.
    assert!(options("pasta --no-dhcp").disabled.dhcp);
    assert!(!options("pasta --no-dhcp").disabled.dhcpv6);
    // Two names of one option are not ambiguous.
    assert_eq!(
        options("passt --sock /x").socket.path,
        Some(PathBuf::from("/x"))
    );
    assert_eq!(
        options("passt --socket-path=/y").socket.path,
        Some(PathBuf::from("/y"))
    );
    // A value may look like an option, and may be empty.
    assert_eq!(options("pasta -l -f").log_file, Some(PathBuf::from("-f")));
    assert_eq!(options("pasta --hostname=").hostname, None);
}

#[test]
fn help_and_version_take_effect_where_they_stand() {
    assert!(
        matches!(parse_line("pasta --version"), Ok(Invocation::Version(v)) if v.starts_with("pasta "))
    );
    assert!(matches!(
        parse_line("pasta --version --bogus"),
        Ok(Invocation::Version(_))
    ));
    assert!(matches!(
        parse_line("pasta --host-lo-to-ns-lo --version"),
        Ok(Invocation::Version(_))
    ));
    assert!(matches!(
        parse_line("pasta -m 99999999 -h"),
        Ok(Invocation::Help(_))
    ));
    assert!(matches!(parse_line("passt -fh"), Ok(Invocation::Help(_))));
    assert!(matches!(
        parse_line("passt --print-cap"),
        Ok(Invocation::PrintCapabilities)
    ));
    assert!(matches!(
        parse_line("pasta sh --version"),
        Ok(Invocation::Run(_))
    ));
}

#[test]
fn the_last_one_wins_and_lists_grow() {
    let o = options(
        "pasta -q -d -4 -6 --ns-mac-addr 9a:dd:31:ea:92:98 --ns-mac-addr aa:bb:cc:dd:ee:ff",
    );
    assert_eq!(o.verbosity, Verbosity::Debug);
    assert!(o.ipv6 && !o.ipv4);
    assert_eq!(o.ns_mac.unwrap().to_string(), "aa:bb:cc:dd:ee:ff");
    assert_eq!(options("pasta -d -q").verbosity, Verbosity::Quiet);
    assert_eq!(options("pasta -d --trace").verbosity, Verbosity::Trace);
    let o = options(
        "pasta -6 -4 -a 192.0.2.1 -a 192.0.2.2 -a 2001:db8::1 -D 192.0.2.53 -D none -D 192.0.2.54 -D ::9 -S a -S b",
    );
    assert!(o.ipv4 && !o.ipv6);
    assert_eq!(o.addr4.unwrap().addr, Ipv4Addr::new(192, 0, 2, 2));
    assert!(o.addr6.is_some());
    let List::Given(dns) = o.dns else { panic!() };
    assert_eq!(dns.len(), 2);
    assert_eq!(o.search, List::Given(vec!["a".to_owned(), "b".to_owned()]));
    let o = options("pasta --map-host-loopback none --map-host-loopback 192.0.2.3");
    assert!(o.map_host_loopback.none);
    assert!(o.map_host_loopback.addr.v4.is_some());
    let o = options("pasta --map-guest-addr 192.0.2.3 --map-guest-addr none");
    assert_eq!(
        o.map_guest_addr,
        Mapping {
            none: true,
            addr: PerFamily::default()
        }
    );
}

#[test]
fn interface_names_can_be_seen_and_quoted() {
    for option in ["-I", "-i", "--outbound-if4", "--outbound-if6"] {
        for (name, shown) in [
            ("a\x1b[31m", "a?[31m"),
            ("a\nb", "a?b"),
            ("\u{9b}0", "?0"),
            ("a\u{202e}b", "a\u{202e}b"),
            ("a/b", "a/b"),
            ("sixteen_letters_", "sixteen_letters_"),
        ] {
            let argv = ["pasta", option, name].map(OsString::from);
            let e = parse(&argv).expect_err(name);
            assert_eq!(e.message, format!("Invalid interface name: {shown}"));
        }
        for name in ["br-lan.7@x", "fifteen_letters", "\u{fc}0"] {
            let argv = ["pasta", option, name].map(OsString::from);
            parse(&argv).expect(name);
        }
    }
}

#[test]
fn targets() {
    let target = |line: &str| options(line).target;
    assert_eq!(target("pasta"), Target::Spawn(vec![]));
    assert_eq!(target("pasta 1234"), Target::Pid(1234));
    assert_eq!(target("pasta -- 1234"), Target::Pid(1234));
    assert_eq!(
        target("pasta 1 2"),
        Target::Spawn(vec!["1".into(), "2".into()])
    );
    assert_eq!(target("pasta 1x"), Target::Spawn(vec!["1x".into()]));
    assert_eq!(
        target("pasta sh -c true"),
        Target::Spawn(vec!["sh".into(), "-c".into(), "true".into()])
    );
    assert_eq!(
        target("pasta -- -x --version"),
        Target::Spawn(vec!["-x".into(), "--version".into()])
    );
    assert_eq!(
        target("pasta -- -- true"),
        Target::Spawn(vec!["--".into(), "true".into()])
    );
    assert_eq!(
        target("pasta - x"),
        Target::Spawn(vec!["-".into(), "x".into()])
    );
    assert_eq!(
        target("pasta --netns ab"),
        Target::Netns("/run/netns/ab".into())
    );
    assert_eq!(target("pasta --netns a/b"), Target::Netns("a/b".into()));
    assert!(options("pasta --netns a/b").netns_only);
    assert!(!options("pasta --netns a/b --userns /u").netns_only);
    assert!(!options("pasta 1").netns_only);
    assert_eq!(failure("pasta 0"), "Invalid PID 0");
    assert_eq!(failure("pasta 99999999999"), "Invalid PID 99999999999");
    assert_eq!(
        failure("pasta --netns x 1"),
        "Both --netns and PID or command given"
    );
    assert_eq!(failure("pasta --netns .."), "Invalid network namespace: ..");
    assert_eq!(
        failure("pasta --no-pidns 1"),
        "--no-pidns is incompatible with PID or --netns"
    );
    assert_eq!(failure("passt foo"), "Extra non-option argument: foo");
}

#[test]
fn words_that_are_not_utf8() {
    let odd = || OsString::from_vec(b"/tmp/\xff".to_vec());
    let run = |words: Vec<OsString>| {
        parse(
            &std::iter::once("pasta".into())
                .chain(words)
                .collect::<Vec<_>>(),
        )
    };
    let Ok(Invocation::Run(o)) = run(vec!["-p".into(), odd(), "--".into(), odd()]) else {
        panic!()
    };
    assert_eq!(o.pcap, Some(PathBuf::from(odd())));
    assert_eq!(o.target, Target::Spawn(vec![odd()]));
    assert!(run(vec!["-H".into(), odd()]).is_err());
    assert!(run(vec![OsString::from_vec(b"--\xff".to_vec())]).is_err());
    assert!(run(vec![OsString::from_vec(b"-\xff".to_vec())]).is_err());
}

#[test]
fn ports_in_order() {
    let o = options("pasta -t 80 -u none -t 127.0.0.1/90 -T none -U auto");
    let shown: Vec<_> = o
        .ports
        .iter()
        .map(|p| (p.table.option(p.protocol), p.spec.is_none()))
        .collect();
    assert_eq!(
        shown,
        [
            ("-t", false),
            ("-t", false),
            ("-u", true),
            ("-T", true),
            ("-U", false)
        ]
    );
    assert_eq!(
        (o.ports[0].table, o.ports[0].protocol),
        (Table::Host, Protocol::Tcp)
    );
    assert_eq!(o.ports[4].spec, Spec::auto());
    assert_eq!(
        failure("pasta -t 80 -t none"),
        "-t none conflicts with previous options"
    );
    assert_eq!(options("pasta -t none -t 80").ports.len(), 2);
    assert_eq!(
        failure("pasta -T 127.0.0.1/80"),
        "Listening address not allowed for -T 127.0.0.1/80"
    );
    assert_eq!(
        failure("passt -t auto"),
        "'auto' port forwarding is only allowed for pasta"
    );
    assert_eq!(
        failure("pasta -t 1/2/3/4"),
        "Invalid port specifier '1/2/3/4'"
    );
}

#[test]
fn what_has_no_effect_says_so() {
    let notices = |line: &str| options(line).notices;
    for line in [
        "pasta -c /x",
        "passt",
        "passt -F 3",
        "passt --vhost-user",
        "passt --vhost-user --repair-path none",
    ] {
        assert!(notices(line).is_empty(), "{line}");
    }
    let line = "passt --vhost-user --repair-path /x --migrate-exit --migrate-no-linger";
    let told = notices(line);
    assert_eq!(told.len(), 3, "{told:?}");
    for option in ["--repair-path", "--migrate-exit", "--migrate-no-linger"] {
        let about = |text: &&String| text.starts_with(option) && text.contains("no effect");
        assert_eq!(told.iter().filter(about).count(), 1, "{told:?}");
    }
}

#[test]
fn a_socket_path_is_no_longer_than_an_address() {
    let path = |len: usize| format!("/{}", "x".repeat(len - 1));
    assert_eq!(
        options(&format!("passt -s {}", path(107))).socket.path,
        Some(path(107).into())
    );
    assert_eq!(
        failure(&format!("passt -s {}", path(108))),
        format!("Invalid socket path: {}", path(108))
    );
    assert_eq!(
        failure(&format!("passt -c {}", path(108))),
        format!("Invalid configuration path: {}", path(108))
    );
}

#[test]
fn help_shows_what_the_program_has() {
    let help = |name: &str| match parse_line(&format!("{name} --help")) {
        Ok(Invocation::Help(text)) => text,
        other => panic!("{other:?}"),
    };
    let (passt, pasta) = (help("passt"), help("pasta"));
    assert!(pasta.starts_with("Usage: pasta [OPTION]... [COMMAND"));
    let has = |help: &str, option: &str| help.lines().any(|l| l.trim_start().starts_with(option));
    assert!(has(&pasta, "--config-net") && !has(&passt, "--config-net"));
    assert!(has(&passt, "--vhost-user") && !has(&pasta, "--vhost-user"));
    assert!(!pasta.contains("rest"));
}

#[test]
fn man_page_and_options_agree() {
    let mut documented = Vec::new();
    for line in include_str!("../../man/passt.1")
        .lines()
        .filter(|l| l.starts_with(".It Fl"))
    {
        let words: Vec<_> = line.split_whitespace().collect();
        for pair in words.windows(2).filter(|pair| pair[0].ends_with("Fl")) {
            documented.push(pair[1].trim_start_matches('-').to_owned());
        }
    }
    let mut defined = Vec::new();
    for d in definitions(&args::Arguments::command()) {
        defined.push(d.long);
        defined.extend(d.aliases);
        defined.extend(d.short.map(|s| char::from(s).to_string()));
    }
    documented.sort_unstable();
    defined.sort_unstable();
    assert_eq!(documented, defined);
}

#[test]
fn help_and_options_agree() {
    let help = |name: &str| match parse_line(&format!("{name} --help")) {
        Ok(Invocation::Help(text)) => text,
        other => panic!("{other:?}"),
    };
    let all = help("passt") + &help("pasta");
    for d in definitions(&args::Arguments::command()) {
        assert!(all.contains(&format!("--{}", d.long)), "{}", d.long);
    }
}

#[test]
fn every_option_of_one_program_exists() {
    let names: Vec<_> = definitions(&args::Arguments::command())
        .into_iter()
        .map(|d| d.long)
        .collect();
    for name in args::PASTA_ONLY.iter().chain(args::PASST_ONLY) {
        assert!(names.iter().any(|n| n == name), "{name}");
    }
}

proptest! {
    #[test]
    fn any_words_get_an_answer(words in proptest::collection::vec("[-=a-z0-9./:%~,]{0,12}", 0..6), passt in any::<bool>()) {
        let program = if passt { "passt" } else { "pasta" };
        let argv: Vec<OsString> = std::iter::once(program.into()).chain(words.into_iter().map(OsString::from)).collect();
        if let Err(e) = parse(&argv) {
            prop_assert!(!e.message.is_empty());
        }
    }

    #[test]
    fn any_port_spec_gets_an_answer(spec in "[-0-9:,~/%.a-z\\[\\]]{0,24}") {
        if let Err(e) = Spec::parse(&spec) {
            prop_assert!(e.to_string().starts_with("Invalid port specifier '"));
        }
    }
}
