//! Notes and descriptors in SQL.

use bytes::Bytes;
use deadpool_postgres::Object;
use tokio_postgres::Row;

use super::super::{DescriptorId, NOTES_MAX, Note, NoteChange, StoreError};
use super::connect::Failure;
use super::statements::query;
use super::{signed, text, unsigned};

pub(super) async fn note(
    client: &Object,
    kind: &str,
    name: String,
) -> Result<Option<Note>, Failure> {
    let sql = "SELECT name, version, body FROM zex.notes WHERE kind = $1 AND name = $2";
    Ok(query(client, sql, &[&kind, &text(&name)]).await?.first().map(stored))
}

pub(super) async fn notes(client: &Object, kind: &str) -> Result<Vec<Note>, Failure> {
    let sql = "SELECT name, version, body FROM zex.notes WHERE kind = $1 ORDER BY name LIMIT $2";
    Ok(query(client, sql, &[&kind, &(NOTES_MAX as i64)]).await?.iter().map(stored).collect())
}

fn stored(row: &Row) -> Note {
    let body: Vec<u8> = row.get(2);
    Note { name: row.get(0), version: unsigned(row.get(1)), body: Bytes::from(body) }
}

pub(super) async fn change(client: &Object, change: NoteChange) -> Result<bool, Failure> {
    let NoteChange { kind, name, version, body } = change;
    let (name, version, nothing) = (text(&name), signed(version), body.is_none());
    let changed = match (body, version) {
        (Some(body), 0) => {
            let sql = "INSERT INTO zex.notes (kind, name, version, body) VALUES ($1, $2, 1, $3)
                       ON CONFLICT (kind, name) DO NOTHING RETURNING version";
            query(client, sql, &[&kind, &name, &&body[..]]).await?
        }
        (Some(body), _) => {
            let sql = "UPDATE zex.notes SET version = version + 1, body = $4
                       WHERE kind = $1 AND name = $2 AND version = $3 RETURNING version";
            query(client, sql, &[&kind, &name, &version, &&body[..]]).await?
        }
        (None, _) => {
            let sql = "DELETE FROM zex.notes WHERE kind = $1 AND name = $2 AND version = $3
                       RETURNING version";
            query(client, sql, &[&kind, &name, &version]).await?
        }
    };
    // To remove what is not there changes nothing and is done.
    Ok(!changed.is_empty() || (nothing && version == 0))
}

pub(super) async fn put_descriptors(
    client: &Object,
    service: String,
    descriptors: Bytes,
) -> Result<DescriptorId, Failure> {
    let id = DescriptorId::of(&descriptors);
    let sql = "WITH kept AS (INSERT INTO zex.descriptors (id, body) VALUES ($2, $3)
                             ON CONFLICT (id) DO NOTHING)
               INSERT INTO zex.services (name, descriptors) VALUES ($1, $2)
               ON CONFLICT (name) DO UPDATE SET descriptors = excluded.descriptors";
    query(client, sql, &[&text(&service), &&id.0[..], &&descriptors[..]]).await?;
    Ok(id)
}

pub(super) async fn services(client: &Object) -> Result<Vec<(String, DescriptorId)>, Failure> {
    let sql = "SELECT name, descriptors FROM zex.services ORDER BY name";
    let service = |row: &Row| {
        let id: &[u8] = row.get(1);
        let broken = |_| StoreError::Broken("not an id of descriptors".to_owned());
        Ok((row.get(0), DescriptorId(id.try_into().map_err(broken)?)))
    };
    query(client, sql, &[]).await?.iter().map(service).collect()
}

pub(super) async fn descriptors(
    client: &Object,
    id: DescriptorId,
) -> Result<Option<Bytes>, Failure> {
    let sql = "SELECT body FROM zex.descriptors WHERE id = $1";
    let found = query(client, sql, &[&&id.0[..]]).await?;
    Ok(found.first().map(|row| Bytes::from(row.get::<_, Vec<u8>>(0))))
}
