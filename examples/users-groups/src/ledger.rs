//! The ledger: where Groups keeps every call of `Add`, outside any journal of Zex, so that
//! it can testify for or against one.
//!
//! A line is `user TAB group TAB process LF`. Each `Add` is one `write` on a file opened for
//! appending. On a local file system such writes neither overlap nor interleave, so several
//! processes share a ledger without a lock; a network file system does not promise that.
//! Nothing is fsynced: a ledger survives the death of its processes, not of the machine.
//!
//! ```text
//!   Groups 1 ── add ──▶ ┌────────────────────┐
//!   Groups 2 ── add ──▶ │ 17  adults  groups-2│ ── read ──▶ Account
//!                       └────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// The longest name of a group or a process, in bytes. Two of them and a number stay far
/// under `PIPE_BUF` (4,096), so a line is always one short write.
pub const MAX_NAME_BYTES: usize = 64;

/// What can go wrong with a ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be opened, read or written.
    #[error("ledger {}: cannot {doing}: {source}", path.display())]
    Io {
        /// The ledger's file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not one that a ledger writes.
    #[error("ledger {}, line {line}: {what}; repair the file or begin a new one", path.display())]
    Malformed {
        /// The ledger's file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A name cannot stand in a ledger.
    #[error(
        "{what} {name:?}: use 1 to {MAX_NAME_BYTES} of the characters a-z, A-Z, 0-9, \"-\", \"_\", \".\""
    )]
    Name {
        /// What the name is for: `group` or `process`.
        what: &'static str,
        /// The name as it came.
        name: String,
    },
}

/// A ledger open for appending, on behalf of one process.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    process: String,
    file: File,
}

impl Ledger {
    /// Opens the ledger, and creates it where there is none. `process` is the name that
    /// stands in each line this one writes.
    pub fn open(path: impl Into<PathBuf>, process: &str) -> Result<Self, LedgerError> {
        let path = path.into();
        check_name("process", process)?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|source| io_error(&path, "open it", source))?;
        Ok(Self { path, process: process.to_owned(), file })
    }

    /// The name in the lines this one writes.
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Where the ledger is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one call of `Add` down. When this returns `Ok`, every reader sees the line.
    pub fn add(&self, user_id: u64, group: &str) -> Result<(), LedgerError> {
        check_name("group", group)?;
        let line = format!("{user_id}\t{group}\t{}\n", self.process);
        // One write, not write_all: the rest of a line written later could land inside
        // someone else's. A short write means a full disk.
        let written = (&self.file)
            .write(line.as_bytes())
            .map_err(|source| io_error(&self.path, "append to it", source))?;
        if written < line.len() {
            return Err(io_error(
                &self.path,
                "append a whole line",
                io::ErrorKind::StorageFull.into(),
            ));
        }
        Ok(())
    }

    /// Sums up what all processes have written into the ledger so far.
    pub fn read(path: impl AsRef<Path>) -> Result<Account, LedgerError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| io_error(path, "open it", source))?;
        let mut lines = BufReader::new(file);
        let mut account = Account::default();
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            lines.read_line(&mut line).map_err(|source| io_error(path, "read it", source))?;
            // Nothing is the end of the file; a line without its end is still being written.
            let Some(whole) = line.strip_suffix('\n') else { break };
            let (user_id, group, process) = parse(whole).map_err(|what| {
                LedgerError::Malformed { path: path.to_owned(), line: number, what }
            })?;
            account.note(user_id, group, process);
        }
        Ok(account)
    }
}

/// A ledger, summed up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Every user with the groups the user is in.
    pub groups_of: BTreeMap<u64, BTreeSet<String>>,
    /// Calls of `Add` by the name of the process that took them, repeats among them.
    pub calls_by: BTreeMap<String, u64>,
    /// All calls of `Add`, repeats among them.
    pub calls: u64,
    /// Calls that repeated an earlier one for the same user and group.
    pub repeats: u64,
}

impl Account {
    fn note(&mut self, user_id: u64, group: &str, process: &str) {
        self.calls += 1;
        match self.calls_by.get_mut(process) {
            Some(calls) => *calls += 1,
            None => drop(self.calls_by.insert(process.to_owned(), 1)),
        }
        if !self.groups_of.entry(user_id).or_default().insert(group.to_owned()) {
            self.repeats += 1;
        }
    }

    /// How many users each group has.
    pub fn sizes(&self) -> BTreeMap<&str, u64> {
        let mut sizes = BTreeMap::new();
        for group in self.groups_of.values().flatten() {
            *sizes.entry(group.as_str()).or_default() += 1;
        }
        sizes
    }
}

fn parse(line: &str) -> Result<(u64, &str, &str), String> {
    let mut parts = line.split('\t');
    let (Some(user_id), Some(group), Some(process), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(format!("{line:?} is not a user, a group and a process"));
    };
    let user_id = user_id.parse().map_err(|_| format!("{user_id:?} is not a user's id"))?;
    check_name("group", group).map_err(|error| error.to_string())?;
    check_name("process", process).map_err(|error| error.to_string())?;
    Ok((user_id, group, process))
}

fn check_name(what: &'static str, name: &str) -> Result<(), LedgerError> {
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits { Ok(()) } else { Err(LedgerError::Name { what, name: name.to_owned() }) }
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> LedgerError {
    LedgerError::Io { path: path.to_owned(), doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        (dir, path)
    }

    #[test]
    fn counts_calls_repeats_and_processes() {
        let (_dir, path) = fresh();
        let one = Ledger::open(&path, "groups-1").unwrap();
        let two = Ledger::open(&path, "groups-2").unwrap();
        one.add(1, "adults").unwrap();
        two.add(1, "adults").unwrap();
        two.add(1, "minors").unwrap();
        two.add(u64::MAX, "adults").unwrap();

        let account = Ledger::read(&path).unwrap();
        assert_eq!((account.calls, account.repeats), (4, 1));
        assert_eq!(
            account.calls_by,
            BTreeMap::from([("groups-1".into(), 1), ("groups-2".into(), 3)])
        );
        assert_eq!(account.groups_of[&1], BTreeSet::from(["adults".into(), "minors".into()]));
        assert_eq!(account.sizes(), BTreeMap::from([("adults", 2), ("minors", 1)]));
    }

    #[test]
    fn writers_side_by_side_lose_and_mix_nothing() {
        const WRITERS: u64 = 4;
        const ADDS: u64 = 2_000;
        let (_dir, path) = fresh();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let path = &path;
                scope.spawn(move || {
                    let ledger = Ledger::open(path, &format!("groups-{writer}")).unwrap();
                    for i in 0..ADDS {
                        ledger.add(writer * ADDS + i, "adults").unwrap();
                    }
                });
            }
        });
        let account = Ledger::read(&path).unwrap();
        assert_eq!((account.calls, account.repeats), (WRITERS * ADDS, 0));
        assert_eq!(account.groups_of.len() as u64, WRITERS * ADDS);
        assert!(account.calls_by.values().all(|&calls| calls == ADDS), "{:?}", account.calls_by);
    }

    #[test]
    fn a_line_without_its_end_is_not_counted_and_garbage_is_named() {
        let (_dir, path) = fresh();
        fs::write(&path, "1\tadults\tgroups-1\n2\tadu").unwrap();
        assert_eq!(Ledger::read(&path).unwrap().calls, 1);

        for (garbage, says) in [
            ("x\tadults\tgroups-1\n", "\"x\" is not a user's id"),
            ("1\tadults\n", "is not a user, a group and a process"),
            ("1\tadults\tgroups-1\t9\n", "is not a user, a group and a process"),
            ("1\tad ults\tgroups-1\n", "group \"ad ults\""),
        ] {
            fs::write(&path, format!("1\tadults\tgroups-1\n{garbage}")).unwrap();
            let said = Ledger::read(&path).unwrap_err().to_string();
            assert!(said.contains("line 2") && said.contains(says), "{said}");
        }
    }

    #[test]
    fn names_that_would_break_a_line_are_refused() {
        let (_dir, path) = fresh();
        let ledger = Ledger::open(&path, "groups-1").unwrap();
        for group in ["", "a\tb", "a\nb", "ä", &"g".repeat(MAX_NAME_BYTES + 1)] {
            assert!(matches!(ledger.add(1, group), Err(LedgerError::Name { what: "group", .. })));
        }
        assert!(Ledger::open(&path, "two words").is_err());
        assert_eq!(Ledger::read(&path).unwrap(), Account::default());
        ledger.add(1, &"g".repeat(MAX_NAME_BYTES)).unwrap();
        assert_eq!(Ledger::read(&path).unwrap().calls, 1);
    }

    #[test]
    fn a_ledger_that_cannot_be_opened_names_the_file() {
        let said = Ledger::open("/nowhere/ledger", "groups-1").unwrap_err().to_string();
        assert!(said.starts_with("ledger /nowhere/ledger: cannot open it: "), "{said}");
    }
}
