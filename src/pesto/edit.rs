//! Commands on tables: pure, and all or nothing.
//!
//! Until `-A` or `-D`, a table is emptied when it is first mentioned: what is given replaces it. `-C` empties a
//! table wherever it stands and changes nothing else. Rules are validated as on the command line of
//! pasta, with what the instance's greeting says it can do.

use super::PestoError;
use super::args::Command;
use crate::config::rules::{Context, Protocol, Rule, RuleError, Rules, Spec, Table};
use crate::control::wire::{Capabilities, Pif, id};

/// What comes of commands.
#[derive(Debug)]
pub(super) struct Changed {
    pub tables: Vec<Pif>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Replace,
    Add,
    Delete,
}

struct Editor<'a> {
    pifs: &'a [Pif],
    /// For each of them.
    rules: Vec<Rules>,
    emptied: Vec<bool>,
    ephemeral: (u16, u16),
    mode: Mode,
    warnings: Vec<String>,
}

/// Carry out `commands` on `pifs`; `ephemeral`: first and last ephemeral port, for lists that name none.
pub(super) fn apply(
    pifs: &[Pif],
    commands: &[Command],
    ephemeral: (u16, u16),
) -> Result<Changed, PestoError> {
    let mut rules = Vec::with_capacity(pifs.len());
    for pif in pifs {
        let mut table = Rules::default();
        for rule in &pif.rules {
            table.add(rule.clone(), &ANY)?;
        }
        rules.push(table);
    }
    let mut editor = Editor {
        pifs,
        rules,
        emptied: vec![false; pifs.len()],
        ephemeral,
        mode: Mode::Replace,
        warnings: Vec::new(),
    };
    for command in commands {
        editor.step(command)?;
    }
    let tables = pifs
        .iter()
        .zip(&editor.rules)
        .map(|(pif, rules)| Pif {
            rules: rules.as_slice().to_vec(),
            ..pif.clone()
        })
        .collect();
    Ok(Changed {
        tables,
        warnings: editor.warnings,
    })
}

/// What is already in a table was possible.
const ANY: Context = Context {
    ipv4: true,
    ipv6: true,
    tcp: true,
    udp: true,
    ephemeral: (0, 0),
};

impl Editor<'_> {
    fn step(&mut self, command: &Command) -> Result<(), PestoError> {
        match command {
            Command::Add => self.mode = Mode::Add,
            Command::Delete => self.mode = Mode::Delete,
            Command::Clear(name) => {
                let at = self.pifs.iter().position(|pif| pif.name == *name);
                let at = at.ok_or_else(|| PestoError::Table(name.clone()))?;
                self.empty(at);
            }
            Command::Ports {
                table,
                protocol,
                text,
                spec,
            } => self.ports(*table, *protocol, text, spec)?,
        }
        Ok(())
    }

    fn empty(&mut self, at: usize) {
        if let (Some(rules), Some(emptied)) = (self.rules.get_mut(at), self.emptied.get_mut(at)) {
            *rules = Rules::default();
            *emptied = true;
        }
    }

    fn ports(
        &mut self,
        table: Table,
        protocol: Protocol,
        text: &str,
        spec: &Spec,
    ) -> Result<(), PestoError> {
        let option = table.option(protocol);
        let side = match table {
            Table::Host => "inbound",
            Table::Splice => "outbound",
        };
        // passt has one table only.
        let missing = || PestoError::Capability(format!("Can't use {option}, no {side} interface"));
        let at = self.pifs.iter().position(|pif| pif.id == id(table));
        let at = at.ok_or_else(missing)?;
        if self.mode == Mode::Replace && self.emptied.get(at) == Some(&false) {
            self.empty(at);
        }
        let capabilities = self.pifs.get(at).ok_or_else(missing)?.capabilities;
        let context = context(capabilities, self.ephemeral);
        if spec.is_auto() && !capabilities.has(Capabilities::SCAN) {
            return Err(RuleError::AutoInPasst.into());
        }
        let mut new = spec.rules(table, protocol, &context);
        if !capabilities.has(Capabilities::INTERFACE) {
            new = without_interface(new, table, &context, option, text, &mut self.warnings)?;
        }
        let rules = self.rules.get_mut(at).ok_or_else(missing)?;
        if spec.is_none() && rules.as_slice().iter().any(|r| r.protocol == protocol) {
            return Err(RuleError::NoneAfter(option).into());
        }
        for rule in new {
            match self.mode {
                Mode::Delete => rules.remove(&rule)?,
                Mode::Add | Mode::Replace => rules.add(rule, &context)?,
            }
        }
        Ok(())
    }
}

const fn context(capabilities: Capabilities, ephemeral: (u16, u16)) -> Context {
    Context {
        ipv4: capabilities.has(Capabilities::IPV4),
        ipv6: capabilities.has(Capabilities::IPV6),
        tcp: capabilities.has(Capabilities::TCP),
        udp: capabilities.has(Capabilities::UDP),
        ephemeral,
    }
}

/// The instance's kernel cannot limit listening to an interface: the loopback has addresses that do as well.
fn without_interface(
    rules: Vec<Rule>,
    table: Table,
    context: &Context,
    option: &str,
    text: &str,
    warnings: &mut Vec<String>,
) -> Result<Vec<Rule>, PestoError> {
    if table == Table::Host {
        if rules.iter().all(|rule| rule.interface.is_none()) {
            return Ok(rules);
        }
        return Err(PestoError::Capability(format!(
            "Device binding for '{option} {text}' unsupported (requires kernel 5.7+)"
        )));
    }
    warnings.push(format!(
        "SO_BINDTODEVICE unavailable, forwarding only 127.0.0.1 and ::1 for '{option} {text}'"
    ));
    let families = [
        (context.ipv4, "127.0.0.1".parse()),
        (context.ipv6, "::1".parse()),
    ];
    Ok(rules
        .iter()
        .flat_map(|rule| {
            families.iter().filter_map(|(on, address)| {
                let listen = address.as_ref().ok().filter(|_| *on)?;
                Some(Rule {
                    listen: Some(*listen),
                    interface: None,
                    ..rule.clone()
                })
            })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pesto::args::{Invocation, parse};

    fn pifs(capabilities: u32, host: &[&str], splice: &[&str]) -> Vec<Pif> {
        let table = |table: Table, specs: &[&str]| {
            let mut rules = Rules::default();
            for spec in specs {
                for rule in Spec::parse(spec)
                    .expect("spec")
                    .rules(table, Protocol::Tcp, &ANY)
                {
                    rules.add(rule, &ANY).expect("rule");
                }
            }
            Pif {
                id: id(table),
                name: table.to_string(),
                capabilities: Capabilities(capabilities),
                rules: rules.as_slice().to_vec(),
            }
        };
        vec![table(Table::Host, host), table(Table::Splice, splice)]
    }

    fn commands(line: &str) -> Vec<Command> {
        let words: Vec<_> = format!("pesto {line} /s")
            .split_whitespace()
            .map(Into::into)
            .collect();
        match parse(&words) {
            Ok(Invocation::Run(plan)) => plan.commands,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// HOST forwards 80 and 90-99, SPLICE 25; then the line.
    fn after(line: &str) -> Result<Vec<String>, String> {
        let before = pifs(0x3f, &["80", "90-99"], &["25"]);
        let changed = apply(&before, &commands(line), (32768, 60999)).map_err(|e| e.to_string())?;
        Ok(changed
            .tables
            .iter()
            .flat_map(|t| {
                t.rules.iter().map(|r| {
                    let text = r.to_string();
                    let (listen, _) = text.split_once("  =>").expect("arrow");
                    listen.replace(" [*]", "")
                })
            })
            .collect())
    }

    #[test]
    fn commands_are_carried_out_in_order() {
        for (line, want) in [
            ("-A", &["TCP:80", "TCP:90-99", "TCP%lo:25"][..]),
            ("-t 22", &["TCP:22", "TCP%lo:25"]),
            ("-u 22", &["UDP:22", "TCP%lo:25"]),
            ("-t none", &["TCP%lo:25"]),
            ("-t none -t 22", &["TCP:22", "TCP%lo:25"]),
            ("-t 22 -t 23 -T 24", &["TCP:22", "TCP:23", "TCP%lo:24"]),
            ("-t 22 -A -t 23", &["TCP:22", "TCP:23", "TCP%lo:25"]),
            ("-A -t 22", &["TCP:80", "TCP:90-99", "TCP:22", "TCP%lo:25"]),
            ("-D -t 80 -T 25", &["TCP:90-99"]),
            (
                "-D -t 80 -A -t 80:81",
                &["TCP:90-99", "TCP:80", "TCP%lo:25"],
            ),
            ("-C HOST", &["TCP%lo:25"]),
            // A table that -C has emptied is not emptied again; the other one is replaced.
            ("-t 22 -C SPLICE", &["TCP:22"]),
            ("-C HOST -t 22 -T 3", &["TCP:22", "TCP%lo:3"]),
            (
                "-A -t 2000 -C HOST -A -T 3000 -t 2001 -D -T 25",
                &["TCP:2001", "TCP%lo:3000"],
            ),
        ] {
            assert_eq!(after(line).expect(line), want, "{line}");
        }
    }

    #[test]
    fn what_a_machine_does_not_have_is_refused() {
        let mut machine = pifs(0x2f, &["80"], &[]);
        machine.truncate(1);
        for (line, want) in [
            ("-T 81", "Can't use -T, no outbound interface"),
            ("-A -U 81", "Can't use -U, no outbound interface"),
            ("-C SPLICE", "Unsupported pif name SPLICE"),
            (
                "-t auto",
                "'auto' port forwarding is only allowed for pasta",
            ),
        ] {
            let changed = apply(&machine, &commands(line), (32768, 60999));
            assert_eq!(changed.unwrap_err().to_string(), want, "{line}");
        }
    }

    #[test]
    fn refused_commands_say_why() {
        for (line, want) in [
            ("-C host", "Unsupported pif name host"),
            ("-A -t none", "-t none conflicts with previous options"),
            ("-D -t none", "-t none conflicts with previous options"),
            (
                "-D -t 81",
                "Couldn't find forwarding rule to delete: TCP [*]:81  =>  81\n\
                          Unable to delete rule TCP [*]:81  =>  81",
            ),
            (
                "-D -t 90-98",
                "Specifier TCP [*]:90-98  =>  90-98 conflicts with rule \
                             TCP [*]:90-99  =>  90-99, but doesn't match it, can't delete\n\
                             Unable to delete rule TCP [*]:90-98  =>  90-98",
            ),
            (
                "-A -t 80",
                "Forwarding configuration conflict: TCP [*]:80  =>  80 versus TCP [*]:80  =>  80\n\
                          Unable to add rule TCP [*]:80  =>  80",
            ),
            (
                "-D -C HOST -t 7",
                "Couldn't find forwarding rule to delete: TCP [*]:7  =>  7\n\
                                 Unable to delete rule TCP [*]:7  =>  7",
            ),
        ] {
            assert_eq!(after(line).expect_err(line), want, "{line}");
        }
    }

    #[test]
    fn the_greeting_says_what_is_possible() {
        let run = |capabilities, line: &str| {
            apply(&pifs(capabilities, &[], &[]), &commands(line), (0, 0))
                .map(|changed| {
                    let rules = changed.tables.iter().flat_map(|t| &t.rules);
                    rules.map(ToString::to_string).collect::<Vec<_>>()
                })
                .map_err(|e| e.to_string())
        };
        let v4 = 0x3f & !Capabilities::IPV6;
        assert_eq!(run(v4, "-u 7").expect("rule"), ["UDP [0.0.0.0]:7  =>  7"]);
        assert!(
            run(v4, "-t ::/7")
                .expect_err("off")
                .starts_with("IPv6 forward")
        );
        let no_scan = 0x3f & !Capabilities::SCAN;
        assert!(
            run(no_scan, "-t auto")
                .expect_err("passt")
                .contains("only allowed for pasta")
        );
        let old = 0x1f;
        assert!(
            run(old, "-t %eth0/6")
                .expect_err("old kernel")
                .starts_with("Device binding")
        );
        assert_eq!(
            run(old, "-T 7").expect("addresses"),
            ["TCP [127.0.0.1]:7  =>  7", "TCP [::1]:7  =>  7"]
        );
    }
}
