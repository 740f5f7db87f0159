//! The file that says which workers an agent may run: nobody runs anything else through it.
//!
//! ```yaml
//! workers:
//!   greet:                                     # what `zex agents start NODE greet` means
//!     command: [zex, adapter, "http://127.0.0.1:50051"]
//!     most: 4                                  # at once; 1 if nothing is said
//!     labels: [gpu]                            # besides node=NAME
//!     environment: {GREETING: hello}
//!     directory: /srv/greet
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use zex_worker::{LABELS_MAX, is_label};

/// Most names in a file.
const NAMES_MAX: usize = 256;
/// The most workers of one name, whatever the file says: each is a process.
const MOST_MAX: u32 = 1_024;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    workers: BTreeMap<String, Configured>,
}

/// What is run under a name.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Configured {
    /// The program and its arguments; no shell reads them.
    pub(super) command: Vec<String>,
    /// How many at once.
    #[serde(default = "one")]
    pub(super) most: u32,
    /// Labels besides `node=NAME`.
    #[serde(default)]
    pub(super) labels: Vec<String>,
    /// Variables besides those of the agent.
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    /// Where it runs, if not where the agent does.
    pub(super) directory: Option<PathBuf>,
}

fn one() -> u32 {
    1
}

/// Reads the file.
pub(super) fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Configured>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("--workers {shown}"))?;
    parse(&text).with_context(|| format!("--workers {shown}"))
}

fn parse(text: &str) -> anyhow::Result<BTreeMap<String, Configured>> {
    let tree = zex_pipeline::document::parse(text).map_err(|why| anyhow::anyhow!("{why}"))?;
    let file: File = serde_path_to_error::deserialize(serde_json::to_value(tree.to_value())?)?;
    ensure!(file.workers.len() <= NAMES_MAX, "at most {NAMES_MAX} names of workers");
    for (name, configured) in &file.workers {
        let at = format!("workers.{name}");
        if !is_label(name) || name.contains('=') {
            bail!("{at}: a name is made of letters, digits, _, - and .");
        }
        ensure!(!configured.command.is_empty(), "{at}.command: a program is wanted");
        let most = configured.most;
        ensure!((1..=MOST_MAX).contains(&most), "{at}.most: 1 to {MOST_MAX}, not {most}");
        if let Some(label) = configured.labels.iter().find(|label| !is_label(label)) {
            bail!("{at}.labels: `{label}` is no label");
        }
        // One is node=NAME.
        let labels = configured.labels.len();
        ensure!(labels < LABELS_MAX, "{at}.labels: at most {}, not {labels}", LABELS_MAX - 1);
    }
    Ok(file.workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_what_may_run_and_mistakes_are_named() {
        let good = "workers:\n  greet: {command: [a, b], most: 4, labels: [gpu], environment: {X: y}}\n  other: {command: [c]}\n";
        let workers = parse(good).unwrap();
        assert_eq!(workers["greet"].command, ["a", "b"]);
        assert_eq!((workers["greet"].most, workers["other"].most), (4, 1));
        assert_eq!(workers["greet"].environment["X"], "y");
        for (bad, want) in [
            ("workers: {a: {command: []}}", "workers.a.command: a program"),
            ("workers: {a: {command: [b], most: 0}}", "workers.a.most: 1 to 1024, not 0"),
            ("workers: {a: {command: b}}", "workers.a.command"),
            ("workers: {a: {command: [b], cmd: c}}", "unknown field `cmd`"),
            ("workers: {'a b': {command: [b]}}", "workers.a b: a name is made of"),
            ("workers: {a: {command: [b], labels: ['x y']}}", "`x y` is no label"),
            ("worker: {}", "unknown field `worker`"),
        ] {
            let error = format!("{:#}", parse(bad).unwrap_err());
            assert!(error.contains(want), "{bad}: {error}");
        }
    }
}
