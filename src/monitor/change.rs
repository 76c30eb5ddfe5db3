//! The tables of rules in force, and changing both while everything runs.
//!
//! A change is a transaction over two processes. The host's new listeners are bound here; if that succeeds and the
//! namespace's table changes too, the ns-agent is sent it and binds; when both have what they need, both put it
//! into force, and otherwise neither does. Rules that stay the same keep their name, and with it their listeners and
//! everything counted under it. A name that was given is given again only when all the others have had their turn.
//!
//! One change at a time: the control socket hears of the end of one before it reads the next.

use std::num::NonZeroU16;

use crate::config::rules::{Context, Rule, RuleId, Rules, Table};

/// Rules with their names.
pub type Named = Vec<(RuleId, Rule)>;

/// Gives names to rules: there are far more than both tables of a change and those before it need.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// The last one.
    given: u16,
}

impl Names {
    /// Name all of `new`: as in `old` if the same rule is there.
    fn name(&mut self, old: &Tables, table: Table, new: &Rules) -> Named {
        let mut named = Vec::with_capacity(new.as_slice().len());
        for rule in new.as_slice() {
            let known = old.named(table).iter().find(|(_, known)| known == rule);
            let id = known.map_or_else(|| self.fresh(old), |(id, _)| *id);
            named.push((id, rule.clone()));
        }
        named
    }

    /// The next name that no rule of `old` has.
    fn fresh(&mut self, old: &Tables) -> RuleId {
        loop {
            self.given = self.given.checked_add(1).unwrap_or(1);
            let id = RuleId(NonZeroU16::new(self.given).unwrap_or(NonZeroU16::MIN));
            if ![Table::Host, Table::Splice]
                .into_iter()
                .any(|t| old.has(t, id))
            {
                return id;
            }
        }
    }
}

/// Both tables.
#[derive(Debug, Default, Clone)]
pub struct Tables {
    host: (Rules, Named),
    splice: (Rules, Named),
}

impl Tables {
    /// Name the rules of both, keeping the names in `old`.
    #[must_use]
    pub fn new(names: &mut Names, old: &Self, host: &Rules, splice: &Rules) -> Self {
        Self {
            host: (host.clone(), names.name(old, Table::Host, host)),
            splice: (splice.clone(), names.name(old, Table::Splice, splice)),
        }
    }

    /// One of them.
    #[must_use]
    pub const fn rules(&self, table: Table) -> &Rules {
        match table {
            Table::Host => &self.host.0,
            Table::Splice => &self.splice.0,
        }
    }

    /// One of them, with names.
    #[must_use]
    pub fn named(&self, table: Table) -> &[(RuleId, Rule)] {
        match table {
            Table::Host => &self.host.1,
            Table::Splice => &self.splice.1,
        }
    }

    /// Is there a rule of this name?
    #[must_use]
    pub fn has(&self, table: Table, rule: RuleId) -> bool {
        self.named(table).iter().any(|(id, _)| *id == rule)
    }

    /// Does any rule of the table follow what the other side listens on?
    #[must_use]
    pub fn follows(&self, table: Table) -> bool {
        self.rules(table).as_slice().iter().any(|r| r.auto_scan)
    }
}

/// What rules given later have to agree with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gate {
    /// Families, protocols, ephemeral ports.
    pub context: Context,
    /// There is another side to follow (pasta).
    pub auto: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rules::{Protocol, Spec};

    fn rules(specs: &[&str]) -> Rules {
        let context = Context {
            ipv4: true,
            ipv6: true,
            tcp: true,
            udp: true,
            ephemeral: (32768, 60999),
        };
        let mut rules = Rules::default();
        for spec in specs {
            let spec = Spec::parse(spec).expect("spec");
            for rule in spec.rules(Table::Host, Protocol::Tcp, &context) {
                rules.add(rule, &context).expect("no conflict");
            }
        }
        rules
    }

    #[test]
    fn what_stays_the_same_keeps_its_name_and_what_is_new_has_a_new_one() {
        let mut names = Names::default();
        let empty = Tables::default();
        let first = Tables::new(&mut names, &empty, &rules(&["80", "90"]), &rules(&["80"]));
        let id = |t: &Tables, table, n: usize| t.named(table)[n].0.0.get();
        assert_eq!(id(&first, Table::Host, 0), 1);
        assert_eq!(id(&first, Table::Host, 1), 2);
        assert_eq!(id(&first, Table::Splice, 0), 3);
        let second = Tables::new(&mut names, &first, &rules(&["70", "90"]), &rules(&["80"]));
        assert_eq!(id(&second, Table::Host, 0), 4);
        assert_eq!(id(&second, Table::Host, 1), 2);
        assert_eq!(id(&second, Table::Splice, 0), 3);
        let third = Tables::new(
            &mut names,
            &second,
            &rules(&["80", "90"]),
            &Rules::default(),
        );
        assert_eq!(id(&third, Table::Host, 0), 5);
    }

    #[test]
    fn names_never_run_out_and_none_is_given_to_two() {
        let mut names = Names::default();
        let none = Rules::default();
        let first = Tables::new(
            &mut names,
            &Tables::default(),
            &rules(&["80"]),
            &rules(&["80"]),
        );
        names.given = u16::MAX - 1;
        let second = Tables::new(&mut names, &first, &rules(&["80", "81", "82"]), &none);
        let ids: Vec<u16> = second
            .named(Table::Host)
            .iter()
            .map(|(id, _)| id.0.get())
            .collect();
        assert_eq!(ids, [1, u16::MAX, 3], "2 is still known to everybody");
        let third = Tables::new(&mut names, &second, &rules(&["83"]), &none);
        assert_eq!(third.named(Table::Host)[0].0.0.get(), 4);
    }
}
