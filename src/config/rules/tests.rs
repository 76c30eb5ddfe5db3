use proptest::prelude::*;

use super::*;

const BOTH: Context = Context {
    ipv4: true,
    ipv6: true,
    tcp: true,
    udp: true,
    ephemeral: DEFAULT_EPHEMERAL,
};

fn table(specs: &[&str], context: &Context) -> Result<Rules, RuleError> {
    let options: Vec<_> = specs
        .iter()
        .map(|s| {
            Spec::parse(s).map(|spec| PortOption {
                table: Table::Host,
                protocol: Protocol::Tcp,
                spec,
            })
        })
        .collect::<Result<_, _>>()?;
    Rules::from_options(&options, Table::Host, false, context)
}

fn shown(spec: &str) -> Vec<String> {
    table(&[spec], &BOTH)
        .unwrap_or_else(|e| panic!("{spec}: {e}"))
        .as_slice()
        .iter()
        .map(|r| r.to_string().strip_prefix("TCP ").unwrap().to_owned())
        .collect()
}

fn refused(specs: &[&str], context: &Context) -> String {
    match table(specs, context) {
        Err(e) => e.to_string(),
        Ok(rules) => panic!("{specs:?}: accepted: {rules:?}"),
    }
}

#[test]
fn accepted_and_printed() {
    let cases: &[(&str, &[&str])] = &[
        ("none", &[]),
        ("80", &["[*]:80  =>  80"]),
        ("65535", &["[*]:65535  =>  65535"]),
        ("80:81", &["[*]:80  =>  81"]),
        ("8080-8080:80-80", &["[*]:8080  =>  80"]),
        ("80-90:100-110", &["[*]:80-90  =>  100-110"]),
        (
            "80-90:100-110,~85",
            &["[*]:80-84  =>  100-104", "[*]:86-90  =>  106-110"],
        ),
        ("80-90,~85-95", &["[*]:80-84  =>  80-84"]),
        ("80-90,~80-90", &[]),
        ("80, 90", &["[*]:80  =>  80", "[*]:90  =>  90"]),
        ("/80", &["[*]:80  =>  80"]),
        ("192.0.2.1/80", &["[192.0.2.1]:80  =>  80"]),
        ("192.0.2.1%eth0/80", &["[192.0.2.1]%eth0:80  =>  80"]),
        ("%eth0/80", &["[*]%eth0:80  =>  80"]),
        ("::1%lo/5064:5064", &["[::1]%lo:5064  =>  5064"]),
        ("[::]/8080", &["[::]:8080  =>  8080"]),
        ("fd00::2/5064-5064:5064-5064", &["[fd00::2]:5064  =>  5064"]),
        ("[2001:db8::1]%eth0/80", &["[2001:db8::1]%eth0:80  =>  80"]),
        ("::ffff:192.0.2.1/80", &["[192.0.2.1]:80  =>  80"]),
        (
            "0.0.0.0/5000:192.0.2.5/6000",
            &["[0.0.0.0]:5000  =>  192.0.2.5:6000"],
        ),
        ("0.0.0.0/80:192.0.2.5", &["[0.0.0.0]:80  =>  192.0.2.5:80"]),
        (
            "::/80-81:[2001:db8::5]/90-91",
            &["[::]:80-81  =>  [2001:db8::5]:90-91"],
        ),
        ("::/80:2001:db8::5", &["[::]:80  =>  [2001:db8::5]:80"]),
        ("80:0.0.0.0/90", &["[*]:80  =>  90"]),
        // The first slash ends an address if there is one.
        ("80:2001:db8::5/90", &["[80:2001:db8::5]:90  =>  90"]),
        (
            "auto",
            &[
                "[*]:1-32767  =>  1-32767  (best effort) (auto-scan)",
                "[*]:61000-65535  =>  61000-65535  (best effort) (auto-scan)",
            ],
        ),
        (
            "::1/auto,~1-65530",
            &["[::1]:65531-65535  =>  65531-65535  (best effort) (auto-scan)"],
        ),
        ("80-82,auto", &["[*]:80-82  =>  80-82  (auto-scan)"]),
        ("all,~3-65535", &["[*]:1-2  =>  1-2  (best effort)"]),
        ("~3-65535", &["[*]:1-2  =>  1-2  (best effort)"]),
        (
            "0.0.0.0/all:192.0.2.6,~3-65535",
            &["[0.0.0.0]:1-2  =>  192.0.2.6:1-2  (best effort)"],
        ),
        ("all,8080", &["[*]:8080  =>  8080"]),
        ("all,~1-65535", &[]),
    ];
    for (spec, want) in cases {
        assert_eq!(shown(spec), *want, "{spec}");
    }
}

#[test]
fn not_in_the_grammar() {
    for spec in [
        "",
        " ",
        "abc",
        "ALL",
        "-80",
        "80-",
        "80-:90",
        ":80",
        "80:",
        "80,",
        ",80",
        "80,,90",
        "90-80",
        "65536",
        "99999999999999999999",
        "80:90-100",
        "80-90:100",
        "80-90:100-111",
        "1/2",
        "80/",
        "80/tcp",
        "0x50",
        "+80",
        "80 ",
        "192.0.2.10",
        "192.0.2.10:80",
        "%/80",
        "%toolonginterfacename/80",
        "80%eth0",
        "[2001:db8::10%eth7]/80",
        "none,80",
        "80,none",
        "192.0.2.10/none",
        "all-90",
        "all:9",
        "~all",
        "~auto",
        "~",
        "~80:90",
        "~192.0.2.1/80",
        "auto:192.0.2.1",
        "80:x",
        "80:90x",
        "80:192.0.2.5x",
        "80:192.0.2.5:90",
        "80:192.0.2.5/",
        "80:/90",
        "127.0.0.1//80",
        "[::1/80",
        "::1]/80",
    ] {
        match Spec::parse(spec) {
            Err(e) => assert!(
                e.to_string().starts_with("Invalid port specifier '"),
                "{spec}"
            ),
            Ok(parsed) => panic!("{spec}: {parsed:?}"),
        }
    }
    assert_eq!(
        Spec::parse("127.0.0.1/80,192.0.2.10/81"),
        Err(RuleError::Syntax("80,192.0.2.10/81".to_owned()))
    );
}

#[test]
fn impossible_rules_are_named() {
    let v4 = Context {
        ipv6: false,
        ..BOTH
    };
    let v6 = Context {
        ipv4: false,
        ..BOTH
    };
    let no_tcp = Context { tcp: false, ..BOTH };
    for (spec, context, want) in [
        (
            "0",
            &BOTH,
            "Forwarding rule attempts to map from port 0\nUnable to add rule TCP [*]:0  =>  0",
        ),
        (
            "80:0",
            &BOTH,
            "Forwarding rule attempts to map to port 0\nUnable to add rule TCP [*]:80  =>  0",
        ),
        (
            "80:224.0.0.1",
            &BOTH,
            "Multicast target address 224.0.0.1 for forwarding rule\nUnable to add rule TCP [*]:80  =>  224.0.0.1:80",
        ),
        (
            "80:192.0.2.5/90",
            &BOTH,
            "Dual stack forward to IPv4 address 192.0.2.5 unsupported\nDid you mean 0.0.0.0/... instead?\nUnable to add rule TCP [*]:80  =>  192.0.2.5:90",
        ),
        (
            "80:[2001:db8::5]/90",
            &BOTH,
            "Dual stack forward to IPv6 address 2001:db8::5 unsupported\nDid you mean [::]/... instead?\nUnable to add rule TCP [*]:80  =>  [2001:db8::5]:90",
        ),
        (
            "192.0.2.10/80:2001:db8::5/90",
            &BOTH,
            "Forward from IPv4 (192.0.2.10) to IPv6 (2001:db8::5) unsupported\nUnable to add rule TCP [192.0.2.10]:80  =>  [2001:db8::5]:90",
        ),
        (
            "::1/80",
            &v4,
            "IPv6 forward, but IPv6 not enabled\nUnable to add rule TCP [::1]:80  =>  80",
        ),
        (
            "127.0.0.1/80",
            &v6,
            "IPv4 forward, but IPv4 not enabled\nUnable to add rule TCP [127.0.0.1]:80  =>  80",
        ),
        (
            "80",
            &no_tcp,
            "Can't add TCP forwarding rule, TCP not enabled\nUnable to add rule TCP [*]:80  =>  80",
        ),
    ] {
        assert_eq!(refused(&[spec], context), want, "{spec}");
    }
}

#[test]
fn one_family_narrows_the_wildcard() {
    let v4 = Context {
        ipv6: false,
        ..BOTH
    };
    assert_eq!(
        table(&["80"], &v4).unwrap().as_slice()[0].to_string(),
        "TCP [0.0.0.0]:80  =>  80"
    );
    let v6 = Context {
        ipv4: false,
        ..BOTH
    };
    assert_eq!(
        table(&["80"], &v6).unwrap().as_slice()[0].to_string(),
        "TCP [::]:80  =>  80"
    );
}

#[test]
fn conflicts_name_both_rules() {
    assert_eq!(
        refused(&["80-90", "85:95"], &BOTH),
        "Forwarding configuration conflict: TCP [*]:85  =>  95 versus TCP [*]:80-90  =>  80-90\nUnable to add rule TCP [*]:85  =>  95"
    );
    for pair in [
        ["80", "80"],
        ["80-90", "90-95"],
        ["80", "192.0.2.1/80"],
        ["::/80", "80"],
        ["192.0.2.1/80", "192.0.2.1%eth0/80"],
        ["%eth0/80", "%lo/80"],
        ["0.0.0.0/80", "192.0.2.1/80"],
        ["auto", "80"],
        ["80", "auto"],
        ["all", "all"],
    ] {
        assert!(refused(&pair, &BOTH).contains("conflict"), "{pair:?}");
    }
    for pair in [
        ["80", "81"],
        ["192.0.2.1/80", "127.0.0.1/80"],
        ["0.0.0.0/80", "::/80"],
        ["none", "80"],
    ] {
        assert!(table(&pair, &BOTH).is_ok(), "{pair:?}");
    }
}

#[test]
fn a_refused_rule_changes_nothing() {
    let mut rules = table(&["80"], &BOTH).unwrap();
    let before = rules.clone();
    let again = before.as_slice()[0].clone();
    assert!(rules.add(again, &BOTH).is_err());
    assert_eq!(rules, before);
}

#[test]
fn a_rule_is_deleted_by_naming_it_exactly() {
    let mut rules = table(&["80,443:8443", "0.0.0.0/9000"], &BOTH).unwrap();
    let of = |spec: &str| table(&[spec], &BOTH).unwrap().as_slice()[0].clone();
    let before = rules.clone();
    let e = rules.remove(&of("81")).unwrap_err().to_string();
    assert_eq!(
        e,
        "Couldn't find forwarding rule to delete: TCP [*]:81  =>  81\n\
         Unable to delete rule TCP [*]:81  =>  81"
    );
    let e = rules.remove(&of("443")).unwrap_err().to_string();
    assert_eq!(
        e,
        "Specifier TCP [*]:443  =>  443 conflicts with rule TCP [*]:443  =>  8443, but doesn't match it, \
         can't delete\nUnable to delete rule TCP [*]:443  =>  443"
    );
    assert_eq!(rules, before);
    rules.remove(&of("443:8443")).unwrap();
    rules.remove(&of("80")).unwrap();
    assert_eq!(rules.as_slice(), [of("0.0.0.0/9000")]);
}

#[test]
fn tables_are_bounded() {
    let odd = |n: u16| {
        (0..n)
            .map(|i| (2 * i + 1).to_string())
            .collect::<Vec<_>>()
            .join(",")
    };
    assert_eq!(
        table(&[&odd(255)], &BOTH).unwrap().as_slice().len(),
        MAX_RULES
    );
    assert!(
        refused(&[&odd(256)], &BOTH)
            .starts_with("Too many rules (maximum 255)\nUnable to add rule TCP [*]:511")
    );
}

#[test]
fn defaults_skip_what_is_off() {
    let context = Context { tcp: false, ..BOTH };
    let rules = Rules::from_options(&[], Table::Splice, true, &context).unwrap();
    let shown: Vec<_> = rules.as_slice().iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "UDP [*]%lo:1-32767  =>  1-32767  (best effort) (auto-scan)",
            "UDP [*]%lo:61000-65535  =>  61000-65535  (best effort) (auto-scan)",
        ]
    );
}

proptest! {
    /// What a list forwards is what it includes less what it excludes, and never overlaps itself.
    #[test]
    fn expansion_matches_a_model(
        first in 1u16..2000, len in 0u16..300, shift in 1u16..3000,
        holes in proptest::collection::vec((1u16..2500, 0u16..200), 0..6),
    ) {
        let last = first + len;
        let mut spec = format!("{first}-{last}:{}-{}", first + shift, last + shift);
        for (from, n) in &holes {
            spec.push_str(&format!(",~{from}-{}", from + n));
        }
        let rules = table(&[&spec], &BOTH).unwrap();
        for port in 1..3000u16 {
            let wanted = (first..=last).contains(&port)
                && !holes.iter().any(|(from, n)| (*from..=from + n).contains(&port));
            let found: Vec<_> = rules.as_slice().iter().filter(|r| (r.first..=r.last).contains(&port)).collect();
            prop_assert_eq!(found.len(), usize::from(wanted));
            if let Some(rule) = found.first() {
                prop_assert_eq!(rule.to_first + (port - rule.first), port + shift);
            }
        }
    }
}
