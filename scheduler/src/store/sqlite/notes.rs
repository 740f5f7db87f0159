//! Notes in SQL, and runs that are forgotten. As in `statements`, a write refuses before
//! it changes anything.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::{NOTES_MAX, Note, NoteChange};
use super::thread::Failure;

pub(super) fn note(
    connection: &Connection,
    kind: &str,
    name: &str,
) -> Result<Option<Note>, Failure> {
    let found = connection
        .prepare_cached("SELECT name, version, body FROM notes WHERE kind = ?1 AND name = ?2")?
        .query_row([kind, name], stored)
        .optional()?;
    Ok(found)
}

pub(super) fn notes(connection: &Connection, kind: &str) -> Result<Vec<Note>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT name, version, body FROM notes WHERE kind = ?1 ORDER BY name LIMIT ?2",
    )?;
    let rows = statement.query_map(params![kind, NOTES_MAX as i64], stored)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn stored(row: &Row<'_>) -> Result<Note, rusqlite::Error> {
    let (version, body): (i64, Vec<u8>) = (row.get(1)?, row.get(2)?);
    let version = u64::try_from(version).unwrap_or(0);
    Ok(Note { name: row.get(0)?, version, body: Bytes::from(body) })
}

pub(super) fn change(connection: &Connection, change: &NoteChange) -> Result<bool, Failure> {
    let NoteChange { kind, name, version, body } = change;
    let version = i64::try_from(*version).unwrap_or(i64::MAX);
    let changed = match (body, version) {
        (Some(body), 0) => connection
            .prepare_cached(
                "INSERT OR IGNORE INTO notes (kind, name, version, body) VALUES (?1, ?2, 1, ?3)",
            )?
            .execute(params![kind, name, &body[..]])?,
        (Some(body), _) => connection
            .prepare_cached(
                "UPDATE notes SET version = version + 1, body = ?4
                 WHERE kind = ?1 AND name = ?2 AND version = ?3",
            )?
            .execute(params![kind, name, version, &body[..]])?,
        (None, _) => connection
            .prepare_cached("DELETE FROM notes WHERE kind = ?1 AND name = ?2 AND version = ?3")?
            .execute(params![kind, name, version])?,
    };
    // To remove what is not there changes nothing and is done.
    Ok(changed > 0 || (body.is_none() && version == 0))
}

pub(super) fn remove_run(connection: &Connection, id: &str) -> Result<(), Failure> {
    let number: Option<i64> = connection
        .prepare_cached("SELECT number FROM runs WHERE id = ?1 AND ended_ms IS NOT NULL")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    if let Some(number) = number {
        connection.prepare_cached("DELETE FROM journal WHERE run = ?1")?.execute([number])?;
        connection.prepare_cached("DELETE FROM runs WHERE number = ?1")?.execute([number])?;
    }
    Ok(())
}
