//! `spec/configuration.md`: every setting with its flag, its names elsewhere, its default and its
//! meaning, written from the definitions that parse them.
//!
//! The test here fails when the page is not what the definitions say; it says how to write it
//! anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use super::layers::EZ_NAMES;
use crate::cli::Cli;

/// Set, the test writes the page instead of comparing it.
const WRITE: &str = "ZEX_WRITE_REFERENCE";

const HEAD: &str = "# Settings

Every setting of `zex`, made from the definitions in `zex/src`. A setting is taken from the first of
these that has it: its flag; its variable `ZEX_*`; its old variable, as EZ Arch named it; the file
that `--config` names (YAML or TOML; keys are the flags without their dashes in front, `_` and `-`
alike, lists where several values are taken); its default. Which commands take it, `zex help` says.

| flag | environment | old name | default | meaning |
| --- | --- | --- | --- | --- |
";

/// One setting, and the commands that take it.
struct Row {
    text: String,
    commands: Vec<String>,
}

fn page() -> String {
    let mut rows = BTreeMap::new();
    collect(&Cli::command(), "", &mut rows);
    let mut page = HEAD.to_owned();
    for row in rows.values() {
        page += &row.text;
    }
    page += "\n## Which command takes what\n\n| setting | commands |\n| --- | --- |\n";
    for (setting, row) in &rows {
        let commands: Vec<_> = row.commands.iter().map(|command| format!("`{command}`")).collect();
        let commands = if commands.is_empty() { "all".into() } else { commands.join(", ") };
        let _ = writeln!(page, "| `--{setting}` | {commands} |");
    }
    page
}

fn collect(command: &Command, path: &str, rows: &mut BTreeMap<String, Row>) {
    for arg in command.get_arguments() {
        let (Some(flag), Some(environment)) = (arg.get_long(), arg.get_env()) else { continue };
        let text = row(arg, flag, &environment.to_string_lossy());
        let row = rows
            .entry(flag.to_owned())
            .or_insert_with(|| Row { text: text.clone(), commands: Vec::new() });
        assert_eq!(row.text, text, "--{flag} is defined twice");
        if !path.is_empty() {
            row.commands.push(path.to_owned());
        }
    }
    for sub in command.get_subcommands() {
        collect(sub, format!("{path} {}", sub.get_name()).trim(), rows);
    }
}

fn row(arg: &Arg, flag: &str, environment: &str) -> String {
    let code = |texts: Vec<String>| {
        let texts: Vec<_> = texts.iter().map(|text| format!("`{text}`")).collect();
        texts.join(", ")
    };
    let defaults = arg.get_default_values().iter().map(|text| text.to_string_lossy().into_owned());
    let defaults =
        if arg.get_action().takes_values() { code(defaults.collect()) } else { String::new() };
    let old = EZ_NAMES.iter().filter(|(_, setting)| *setting == flag);
    let old = code(old.map(|(name, _)| (*name).to_owned()).collect());
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let value = match arg.get_value_names() {
        Some([name]) if arg.get_action().takes_values() => format!(" {name}"),
        _ => String::new(),
    };
    format!("| `--{flag}{value}` | `{environment}` | {old} | {defaults} | {help} |\n")
}

#[test]
fn the_page_says_what_the_definitions_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/configuration.md");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page(),
        "spec/configuration.md is old: write it with {WRITE}=1 cargo test -p zex the_page"
    );
}
