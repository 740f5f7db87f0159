//! What each operation of the store does in SQL. Writes run inside the group's
//! transaction: what a write refuses, it refuses before it changes anything.

use bytes::Bytes;
use rusqlite::types::{Type, Value};
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};
use zex_pipeline::state::RunState;

use super::super::{
    Append, Claimed, Created, DescriptorId, NewRecord, NewRun, Page, RUNS_LISTED_MAX, ReadQuery,
    RunsQuery, StoreError, StoredRun,
};
use super::thread::Failure;

pub(super) fn create(connection: &Connection, run: &NewRun) -> Result<Created, Failure> {
    if let Some(id) = by_key(connection, run.request_key)? {
        return Ok(Created::Known { id });
    }
    let descriptors: Vec<u8> = run.descriptors.iter().flat_map(|id| id.0).collect();
    connection
        .prepare_cached(
            "INSERT INTO runs (id, name, state, reason, created_ms, epoch, records, definition,
                               parameters, descriptors, request_key)
             VALUES (?1, ?2, ?3, '', ?4, 0, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            run.id,
            run.name,
            run.state.name(),
            signed(run.created_ms),
            run.records.len() as i64,
            run.definition,
            run.parameters_json,
            descriptors,
            run.request_key,
        ])?;
    insert_records(connection, connection.last_insert_rowid(), 0, &run.records)?;
    Ok(Created::New)
}

pub(super) fn by_key(
    connection: &Connection,
    request_key: [u8; 16],
) -> Result<Option<String>, Failure> {
    let known = connection
        .prepare_cached("SELECT id FROM runs WHERE request_key = ?1")?
        .query_row([request_key], |row| row.get(0))
        .optional()?;
    Ok(known)
}

pub(super) fn claim(connection: &Connection, run: &str) -> Result<Claimed, Failure> {
    let epoch: Option<i64> = connection
        .prepare_cached("UPDATE runs SET epoch = epoch + 1 WHERE id = ?1 RETURNING epoch")?
        .query_row([run], |row| row.get(0))
        .optional()?;
    let ours = epoch.map(|epoch| Claimed::Ours { epoch: unsigned(epoch) });
    ours.ok_or_else(|| StoreError::NoRun(run.to_owned()).into())
}

pub(super) fn append(connection: &Connection, append: &Append) -> Result<(), Failure> {
    let found: Option<(i64, i64, i64)> = connection
        .prepare_cached("SELECT number, epoch, records FROM runs WHERE id = ?1")?
        .query_row([&append.run], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let run = || append.run.clone();
    let Some((number, epoch, records)) = found else {
        return Err(StoreError::NoRun(run()).into());
    };
    if unsigned(epoch) != append.epoch {
        return Err(StoreError::Fenced(run()).into());
    }
    let has = unsigned(records);
    if has != append.after {
        return Err(StoreError::Gap { run: run(), has, after: append.after }.into());
    }
    insert_records(connection, number, append.after, &append.records)?;
    let records = signed(append.after + append.records.len() as u64);
    match &append.state {
        None => connection
            .prepare_cached("UPDATE runs SET records = ?2 WHERE number = ?1")?
            .execute(params![number, records])?,
        Some(new) => connection
            .prepare_cached(
                "UPDATE runs SET records = ?2, state = ?3, reason = ?4,
                        ended_ms = coalesce(?5, ended_ms), steps = coalesce(?6, steps)
                 WHERE number = ?1",
            )?
            .execute(params![
                number,
                records,
                new.state.name(),
                new.reason,
                new.ended_ms.map(signed),
                new.steps,
            ])?,
    };
    Ok(())
}

fn insert_records(
    connection: &Connection,
    run: i64,
    after: u64,
    records: &[NewRecord],
) -> Result<(), rusqlite::Error> {
    let mut insert = connection
        .prepare_cached("INSERT INTO journal (run, seq, event, body) VALUES (?1, ?2, ?3, ?4)")?;
    for (seq, record) in (after + 1..).zip(records) {
        insert.execute(params![run, signed(seq), record.event, &record.body[..]])?;
    }
    Ok(())
}

pub(super) fn read(connection: &Connection, query: &ReadQuery) -> Result<Page, Failure> {
    let number: Option<i64> = connection
        .prepare_cached("SELECT number FROM runs WHERE id = ?1")?
        .query_row([&query.run], |row| row.get(0))
        .optional()?;
    let Some(number) = number else { return Err(StoreError::NoRun(query.run.clone()).into()) };
    let sql = match query.events {
        true => {
            "SELECT seq, body FROM journal WHERE run = ?1 AND seq > ?2 AND event = 1 ORDER BY seq"
        }
        false => "SELECT seq, body FROM journal WHERE run = ?1 AND seq > ?2 ORDER BY seq",
    };
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![number, signed(query.after)])?;
    let (mut records, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let body: Vec<u8> = row.get(1)?;
        bytes += body.len();
        if bytes > query.max_bytes && !records.is_empty() {
            return Ok(Page { records, is_last: false });
        }
        records.push((unsigned(row.get(0)?), Bytes::from(body)));
    }
    Ok(Page { records, is_last: true })
}

/// What [`stored_run`] reads, without what a list leaves out.
const RUN_COLUMNS: &str = "id, name, state, reason, created_ms, ended_ms, descriptors, steps";

pub(super) fn run(connection: &Connection, id: &str) -> Result<Option<StoredRun>, Failure> {
    let sql = format!("SELECT {RUN_COLUMNS}, definition, parameters FROM runs WHERE id = ?1");
    let found = connection.prepare_cached(&sql)?.query_row([id], |row| {
        let mut run = stored_run(row)?;
        (run.definition, run.parameters_json) = (row.get(8)?, row.get(9)?);
        Ok(run)
    });
    Ok(found.optional()?)
}

pub(super) fn runs(connection: &Connection, query: &RunsQuery) -> Result<Vec<StoredRun>, Failure> {
    // Each condition is in the text only when it is asked for, so that its index is used.
    let mut sql = format!("SELECT {RUN_COLUMNS} FROM runs WHERE true");
    let mut values: Vec<Value> = Vec::new();
    if query.unfinished {
        sql.push_str(" AND ended_ms IS NULL");
    }
    if let Some(name) = &query.name {
        sql.push_str(" AND name = ?");
        values.push(name.clone().into());
    }
    if let Some(before) = &query.before {
        sql.push_str(" AND id < ?");
        values.push(before.clone().into());
    }
    sql.push_str(" ORDER BY id DESC LIMIT ?");
    values.push(Value::Integer(query.limit.min(RUNS_LISTED_MAX) as i64));
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), stored_run)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn stored_run(row: &Row<'_>) -> Result<StoredRun, rusqlite::Error> {
    let state: String = row.get(2)?;
    let state = RunState::from_name(&state).ok_or_else(|| broken(2, "a run's state"))?;
    let descriptors: Vec<u8> = row.get(6)?;
    let descriptors = descriptors.chunks(16).map(|id| Ok(DescriptorId(sixteen(6, id)?)));
    Ok(StoredRun {
        id: row.get(0)?,
        name: row.get(1)?,
        state,
        reason: row.get(3)?,
        created_ms: unsigned(row.get(4)?),
        ended_ms: row.get::<_, Option<i64>>(5)?.map(unsigned),
        definition: String::new(),
        parameters_json: String::new(),
        descriptors: descriptors.collect::<Result<_, rusqlite::Error>>()?,
        steps: row.get(7)?,
    })
}

pub(super) fn put_descriptors(
    connection: &Connection,
    service: &str,
    descriptors: &Bytes,
) -> Result<DescriptorId, Failure> {
    let id = DescriptorId::of(descriptors);
    connection
        .prepare_cached("INSERT OR IGNORE INTO descriptors (id, body) VALUES (?1, ?2)")?
        .execute(params![id.0, &descriptors[..]])?;
    connection
        .prepare_cached(
            "INSERT INTO services (name, descriptors) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET descriptors = excluded.descriptors",
        )?
        .execute(params![service, id.0])?;
    Ok(id)
}

pub(super) fn services(connection: &Connection) -> Result<Vec<(String, DescriptorId)>, Failure> {
    let mut statement =
        connection.prepare_cached("SELECT name, descriptors FROM services ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        let id: Vec<u8> = row.get(1)?;
        Ok((row.get(0)?, DescriptorId(sixteen(1, &id)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn descriptors(
    connection: &Connection,
    id: DescriptorId,
) -> Result<Option<Bytes>, Failure> {
    let body: Option<Vec<u8>> = connection
        .prepare_cached("SELECT body FROM descriptors WHERE id = ?1")?
        .query_row([id.0], |row| row.get(0))
        .optional()?;
    Ok(body.map(Bytes::from))
}

fn sixteen(column: usize, bytes: &[u8]) -> Result<[u8; 16], rusqlite::Error> {
    bytes.try_into().map_err(|_| broken(column, "an id of descriptors"))
}

/// A column that holds what this program never writes.
fn broken(column: usize, what: &str) -> rusqlite::Error {
    let why = format!("not {what}").into();
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, why)
}

/// SQLite has no u64. Times and counts are far below the limit of i64.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
