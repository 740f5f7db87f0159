//! Opening a file: is it ours, is it whole, is it free? Then its tables.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::super::StoreError;
use super::SqliteOptions;

/// What marks a file as ours: "ZEXS" in SQLite's application id.
const APPLICATION_ID: i32 = 0x5a45_5853;

/// The version of the tables.
const SCHEMA_VERSION: i32 = 2;

/// Files up to this many bytes are read through when they are opened, to find damage
/// before work is done on it. Larger ones would keep the scheduler from starting for
/// long; there damage is found when it is met.
const CHECKED_MAX_BYTES: u64 = 256 << 20;

/// Pages of the write-ahead log that wait before they are moved into the file: 32 MiB,
/// so that a long `each` does not move them at every turn.
const CHECKPOINT_PAGES: u32 = 8192;

/// The tables. `journal.event` marks what who watches a run is told of, so that
/// watching does not read the items of a run; the index holds only those.
const TABLES: &str = "
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    epoch INTEGER NOT NULL,
    records INTEGER NOT NULL,
    definition TEXT NOT NULL,
    parameters TEXT NOT NULL,
    descriptors BLOB NOT NULL,
    request_key BLOB NOT NULL UNIQUE,
    steps BLOB
) STRICT;
CREATE INDEX runs_by_name ON runs (name, id);
CREATE INDEX runs_unfinished ON runs (id) WHERE ended_ms IS NULL;
CREATE TABLE journal (
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    event INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX journal_events ON journal (run, seq) WHERE event = 1;
CREATE TABLE descriptors (
    id BLOB PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE services (
    name TEXT PRIMARY KEY,
    descriptors BLOB NOT NULL
) STRICT, WITHOUT ROWID;
";

/// The tables' names; the last is of version 2.
const TABLE_NAMES: [&str; 5] = ["runs", "journal", "descriptors", "services", "notes"];

/// What version 2 has besides.
const TABLES_2: &str = "
CREATE TABLE notes (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
";

/// Opens and locks a file, and makes the tables in a new one.
pub(super) fn open(path: &Path, options: &SqliteOptions) -> Result<Connection, StoreError> {
    let shown = path.display().to_string();
    let unusable = |why: String| StoreError::Unusable { path: shown.clone(), why };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|error| unusable(format!("its folder cannot be made: {error}")))?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).map_err(Refusal::from);
    let opened = opened.and_then(|connection| {
        lock(&connection)?;
        let bytes = std::fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0);
        check(&connection, bytes)?;
        set_up(&connection, options)?;
        Ok(connection)
    });
    opened.map_err(|refusal| match refusal {
        Refusal::Words(why) => unusable(why),
        Refusal::Sqlite(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Locked(shown.clone())
            }
            Some(ErrorCode::DiskFull) => StoreError::Full(format!("{shown}: {error}")),
            Some(ErrorCode::NotADatabase) => unusable("it is no SQLite database".to_owned()),
            _ => unusable(error.to_string()),
        },
    })
}

/// Why a file is not taken.
enum Refusal {
    Words(String),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Takes the file for this process alone. The kernel lets go of it when the process
/// dies, however it dies.
fn lock(connection: &Connection) -> Result<(), Refusal> {
    connection.busy_timeout(std::time::Duration::ZERO)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // The first write transaction takes the lock, which the mode then keeps.
    connection.execute_batch("BEGIN EXCLUSIVE; COMMIT;")?;
    Ok(())
}

fn check(connection: &Connection, bytes: u64) -> Result<(), Refusal> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (tables > 0 || application != 0) {
        let words =
            "it is a SQLite database of another program; give the scheduler a file of its own";
        return Err(Refusal::Words(words.to_owned()));
    }
    if version > SCHEMA_VERSION {
        let words = format!(
            "it was written by a newer program (version {version}, this one knows {SCHEMA_VERSION})"
        );
        return Err(Refusal::Words(words));
    }
    if application == APPLICATION_ID && version > 0 {
        for table in TABLE_NAMES.iter().take(if version == 1 { 4 } else { 5 }) {
            let query = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
            let found: i64 = connection.query_row(query, [table], |row| row.get(0))?;
            if found == 0 {
                return Err(Refusal::Words(format!(
                    "its table {table} is missing; restore it from a copy, or move it away to begin anew"
                )));
            }
        }
    }
    if tables > 0 && bytes <= CHECKED_MAX_BYTES {
        let verdict: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(Refusal::Words(format!(
                "it is damaged ({verdict}); restore it from a copy, or move it away to begin anew"
            )));
        }
    }
    Ok(())
}

fn set_up(connection: &Connection, options: &SqliteOptions) -> Result<(), Refusal> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(Refusal::Words(format!("it cannot be switched to WAL (it stays {mode})")));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    if let Some(bytes) = options.max_bytes {
        let page: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = u32::try_from(bytes / u64::from(page.max(1))).unwrap_or(u32::MAX);
        connection.pragma_update(None, "max_page_count", pages.max(1))?;
    }
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let missing = match version {
        0 => format!("{TABLES} {TABLES_2} PRAGMA application_id = {APPLICATION_ID};"),
        1 => TABLES_2.to_owned(),
        _ => return Ok(()),
    };
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {missing} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    ))?;
    Ok(())
}
