//! What the disk does alone: group commits of a given size, one after the other.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

/// Commits before it is measured: the file has its first blocks then.
const WARM_UP: u32 = 20;

/// Group commits a second: so many bytes are appended to a file and synced.
pub(super) fn appends(data: &Path, bytes: usize, time: Duration) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(data)?;
    let mut file = File::create(folder.path().join("log"))?;
    let body = vec![b'x'; bytes.max(1)];
    commits(time, || {
        file.write_all(&body)?;
        Ok(file.sync_data()?)
    })
}

/// Group commits a second of SQLite, in WAL mode and each on disk: so many rows, with so many bytes
/// together.
pub(super) fn rows(data: &Path, rows: usize, bytes: usize, time: Duration) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(data)?;
    let mut connection = Connection::open(folder.path().join("rows.db"))?;
    connection.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE kept (number INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;",
    )?;
    let rows = rows.max(1);
    let body = vec![b'x'; (bytes / rows).max(1)];
    commits(time, || {
        let transaction = connection.transaction()?;
        let mut insert = transaction.prepare_cached("INSERT INTO kept (body) VALUES (?1)")?;
        for _ in 0..rows {
            insert.execute(params![body])?;
        }
        drop(insert);
        Ok(transaction.commit()?)
    })
}

fn commits(time: Duration, mut one: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    for _ in 0..WARM_UP {
        one()?;
    }
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < time {
        one()?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_made_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let time = Duration::from_millis(20);
        assert!(appends(folder.path(), 1000, time).unwrap() > 0.0);
        assert!(rows(folder.path(), 3, 1000, time).unwrap() > 0.0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "all is removed");
    }
}
