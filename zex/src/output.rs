//! How results look: tables for people, a JSON object a line for programs; all of it on stdout.
//!
//! Used by every command. Nothing else writes to stdout.

use std::io::{self, Write as _};

use anyhow::Context as _;
use prost_reflect::DescriptorPool;
use prost_reflect::prost::Message;
use serde::Serialize;
use zex_spec::proto::DESCRIPTORS;

use crate::methods;

/// Space between two columns.
const GAP: &str = "  ";

/// Writes a line and lets it out at once: whoever reads through a pipe waits for it.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Writes one JSON object as a line.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Writes messages of the type `zex.name` of spec/proto, each as a JSON object on a line.
pub(crate) fn json_lines<M: Message>(name: &str, messages: &[M]) -> anyhow::Result<()> {
    let pool = DescriptorPool::decode(DESCRIPTORS).context("the built-in descriptors")?;
    let name = format!("zex.{name}");
    let message = pool.get_message_by_name(&name);
    let message = message.with_context(|| format!("{name} is not in the built-in descriptors"))?;
    for listed in messages {
        json(&methods::decode(&message, &listed.encode_to_vec())?)?;
    }
    Ok(())
}

/// Where a column's text stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings, in columns.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet. A heading that begins with `#` is of a column of numbers.
    pub(crate) fn new<const N: usize>(headings: [&'static str; N]) -> Self {
        let column = |heading: &'static str| match heading.strip_prefix('#') {
            Some(heading) => (heading, Align::Right),
            None => (heading, Align::Left),
        };
        Self { columns: headings.into_iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; a text for each column.
    pub(crate) fn row<const N: usize>(&mut self, texts: [String; N]) {
        self.rows.push(texts.into_iter().collect());
    }

    /// Writes it; without rows, `nothing` for the person who asked, on stderr.
    pub(crate) fn print_or(&self, nothing: &str) -> io::Result<()> {
        if self.rows.is_empty() {
            eprintln!("{nothing}");
            return Ok(());
        }
        self.print()
    }

    /// Writes it.
    pub(crate) fn print(&self) -> io::Result<()> {
        line(self.text().trim_end())
    }

    pub(crate) fn text(&self) -> String {
        let headings: Vec<_> =
            self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let rows = || [&headings].into_iter().chain(&self.rows);
        let width = |column: usize| {
            rows().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max()
        };
        let widths: Vec<_> = (0..self.columns.len()).map(|at| width(at).unwrap_or(0)).collect();
        let cell = |(at, text): (usize, &String)| match self.columns.get(at) {
            Some((_, Align::Right)) => format!("{text:>width$}", width = widths[at]),
            _ => format!("{text:<width$}", width = widths[at]),
        };
        let lines = rows().map(|row| {
            let cells: Vec<_> = row.iter().enumerate().map(cell).collect();
            cells.join(GAP).trim_end().to_owned() + "\n"
        });
        lines.collect()
    }
}

/// A time that has passed, short: `120 ms`, `4.2 s`, `3 min`.
pub(crate) fn passed(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        _ => format!("{:.1} h", ms as f64 / 3_600_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let mut table = Table::new(["NAME", "#TASKS", "HOME"]);
        table.row(["a".into(), "5".into(), "b1".into()]);
        table.row(["longer".into(), "12345678".into(), "".into()]);
        let wanted = "NAME       TASKS  HOME\na              5  b1\nlonger  12345678\n";
        assert_eq!(table.text(), wanted);
    }

    #[test]
    fn times_are_short() {
        let texts = [0, 999, 1_500, 61_000, 7_200_000].map(passed);
        assert_eq!(texts, ["0 ms", "999 ms", "1.5 s", "1 min", "2.0 h"]);
    }
}
