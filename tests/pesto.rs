//! `pesto` as built: its words, its exit status, and what it says to a server, byte for byte as the established
//! client does. The server here is scripted; live ones are in the namespace suite.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

fn pesto(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pesto"))
        .args(words)
        .output()
        .expect("runs")
}

fn said(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

fn failure(words: &[&str]) -> String {
    let output = pesto(words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    assert!(output.stdout.is_empty(), "{words:?}");
    said(&output.stderr)
}

/// A rule as it travels: everything automatic except what is given.
fn rule(listen: &[u8; 16], first: u16, to: u16, protocol: u8, flags: u8) -> Vec<u8> {
    let mut bytes = listen.to_vec();
    bytes.extend([0; 32]);
    for port in [first, first, to] {
        bytes.extend(port.to_be_bytes());
    }
    bytes.extend([protocol, flags]);
    bytes
}

const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];

/// What the established server said, as recorded: two rules in HOST, none in SPLICE.
fn greeting() -> Vec<u8> {
    let mut bytes = b"basil:s\0\0\0\0\x02\0\0\0\x80\0\0\0\x10".to_vec();
    let mut table = |id: u8, name: &[u8], rules: &[Vec<u8>]| {
        bytes.push(id);
        bytes.extend(name);
        bytes.extend(vec![0; 128 - name.len()]);
        bytes.extend([0, 0, 0, 0x3f, 0, 0, 0, u8::try_from(rules.len()).unwrap()]);
        bytes.extend(rules.concat());
    };
    let rules = [
        rule(&[0; 16], 8080, 8080, 6, 1),
        rule(&LOOPBACK, 5300, 5353, 17, 0),
    ];
    table(1, b"HOST", &rules);
    table(3, b"SPLICE", &[]);
    bytes.push(0);
    bytes
}

/// Run `pesto` against a server that says `greeting` and hangs up; its output, and what it has sent.
fn against(greeting: Vec<u8>, words: &[&str]) -> (Output, Vec<u8>) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("pesto-test-{}-{n}", std::process::id());
    let path: PathBuf = std::env::temp_dir().join(name);
    let listener = UnixListener::bind(&path).expect("bind");
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        // In two pieces, as it pleases the kernel.
        let (head, tail) = greeting.split_at(greeting.len() / 2);
        client.write_all(head).expect("write");
        // A client that has seen enough may have gone by now.
        let _ = client.write_all(tail);
        let _ = client.shutdown(Shutdown::Write);
        let mut sent = Vec::new();
        let _ = client.read_to_end(&mut sent);
        sent
    });
    let path_word = path.to_str().expect("text");
    let output = pesto(&[words, &[path_word]].concat());
    let sent = server.join().expect("server");
    std::fs::remove_file(&path).expect("remove");
    (output, sent)
}

#[test]
fn help_version_and_mistakes() {
    let output = pesto(&["--help"]);
    assert!(output.status.success());
    assert!(said(&output.stdout).starts_with("Usage: pesto [OPTION]... PATH\n"));
    let output = pesto(&["--version"]);
    assert!(output.status.success());
    assert_eq!(
        said(&output.stdout),
        format!("pesto {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(failure(&[]).contains("no PATH"));
    assert!(failure(&["--bogus", "/s"]).contains("unrecognized option '--bogus'"));
    assert_eq!(
        failure(&["/nonexistent/socket"]),
        "Failed to connect to /nonexistent/socket: No such file or directory\n"
    );
    assert_eq!(
        failure(&["-t", "bogus", "/nonexistent/socket"]),
        "Invalid port specifier 'bogus'\n"
    );
}

#[test]
fn the_tables_are_shown_and_nothing_is_sent() {
    for words in [&[][..], &["-s"]] {
        let (output, sent) = against(greeting(), words);
        assert!(output.status.success(), "{}", said(&output.stderr));
        let text = said(&output.stdout);
        assert!(text.starts_with("passt/pasta configuration (/"), "{text}");
        assert!(text.ends_with(
            "  HOST\n    TCP [*]:8080  =>  8080\n    UDP [127.0.0.1]:5300  =>  5353\n  SPLICE\n"
        ));
        assert!(sent.is_empty());
    }
}

#[test]
fn changes_are_sent_as_the_established_client_sends_them() {
    let old = [
        rule(&[0; 16], 8080, 8080, 6, 1),
        rule(&LOOPBACK, 5300, 5353, 17, 0),
    ]
    .concat();
    let new = rule(&[0; 16], 9000, 9000, 6, 1);
    let lo = {
        let mut rule = rule(&[0; 16], 25, 25, 6, 1);
        rule[32..34].copy_from_slice(b"lo");
        rule
    };
    let sent = |host: &[&[u8]], splice: &[&[u8]]| {
        let mut bytes = Vec::new();
        for (id, rules) in [(1, host), (3, splice)] {
            let rules = rules.concat();
            let count = u32::try_from(rules.len() / 56).unwrap();
            bytes.push(id);
            bytes.extend(count.to_be_bytes());
            bytes.extend(rules);
        }
        bytes.push(0);
        bytes
    };
    for (words, want) in [
        (&["-A", "-t", "9000"][..], sent(&[&old, &new], &[])),
        (&["-C", "HOST"], sent(&[], &[])),
        (&["-A"], sent(&[&old], &[])),
        (&["-t", "9000", "-T", "25"], sent(&[&new], &[&lo])),
        (
            &["-D", "-u", "127.0.0.1/5300:5353", "-t", "8080"],
            sent(&[], &[]),
        ),
    ] {
        let (output, got) = against(greeting(), words);
        assert!(
            output.status.success(),
            "{words:?}: {}",
            said(&output.stderr)
        );
        assert!(output.stdout.is_empty());
        assert_eq!(got, want, "{words:?}");
    }
}

#[test]
fn a_command_that_fails_sends_nothing() {
    for (words, why) in [
        (
            &["-A", "-t", "8080"][..],
            "Forwarding configuration conflict",
        ),
        (&["-D", "-t", "8081"], "Couldn't find forwarding rule"),
        (
            &["-A", "-t", "9", "-C", "host"],
            "Unsupported pif name host",
        ),
        (&["--json"], "gives no reports"),
        (&["--watch"], "gives no reports"),
    ] {
        let (output, sent) = against(greeting(), words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let text = said(&output.stderr);
        assert!(text.starts_with(why) || text.contains(why), "{text}");
        assert!(sent.is_empty(), "{words:?}");
    }
}

#[test]
fn other_servers_are_recognized() {
    let with = |at: usize, byte: u8| {
        let mut bytes = greeting();
        bytes[at] = byte;
        let (output, _) = against(bytes, &[]);
        assert_eq!(output.status.code(), Some(1));
        said(&output.stderr)
    };
    assert_eq!(with(0, b'x'), "Bad magic number from server\n");
    assert_eq!(with(11, 3), "Unknown server protocol version 3 > 2\n");
    let (output, _) = against(Vec::new(), &[]);
    assert!(said(&output.stderr).starts_with("Couldn't read server greeting: No data available"));
    let (output, _) = against(greeting()[..100].to_vec(), &[]);
    assert_eq!(
        said(&output.stderr),
        "Couldn't read server greeting: it breaks off\n"
    );
}
