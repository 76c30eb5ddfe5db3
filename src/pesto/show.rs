//! Tables for people, in the established layout.

use std::io::{self, Write};

use crate::control::wire::Pif;

/// `heading` is the first word, `path` the socket's.
pub(super) fn tables(
    out: &mut dyn Write,
    heading: &str,
    path: &str,
    tables: &[Pif],
) -> io::Result<()> {
    writeln!(out, "{heading} configuration ({path})")?;
    for table in tables {
        writeln!(out, "  {}", table.name)?;
        for rule in &table.rules {
            writeln!(out, "    {rule}")?;
        }
    }
    Ok(())
}

/// What `--debug` adds.
pub(super) fn details(out: &mut dyn Write, tables: &[Pif]) -> io::Result<()> {
    writeln!(out, "Connected to passt/pasta control socket")?;
    for table in tables {
        write!(
            out,
            "PIF {}: {}, {} rules, capabilities {:#x}:",
            table.id,
            table.name,
            table.rules.len(),
            table.capabilities.0
        )?;
        for name in table.capabilities.names() {
            write!(out, " {name}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
