//! What is done with runs, in SQL. Each is one statement wherever it changes something.

use std::sync::Arc;

use bytes::Bytes;
use deadpool_postgres::Object;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use zex_pipeline::state::RunState;

use super::super::{
    Created, DescriptorId, NewRun, Page, RUNS_LISTED_MAX, ReadQuery, RunsQuery, StoreError,
    StoredRun,
};
use super::connect::Failure;
use super::{signed, text, unsigned};

/// The most records that are read at once: their sizes are looked at before they are sent.
const READ_RECORDS_MAX: usize = 4096;

/// Bytes that a record is taken to have, to guess how many are looked at.
const RECORD_BYTES: usize = 32;

/// The fewest records that are looked at.
const READ_RECORDS_LEAST: usize = 64;

/// Runs a statement, which its connection remembers.
pub(super) async fn query(
    client: &Object,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, Failure> {
    let statement = client.prepare_cached(sql).await?;
    Ok(client.query(&statement, values).await?)
}

pub(super) async fn create(client: &Object, me: Arc<str>, run: NewRun) -> Result<Created, Failure> {
    let descriptors: Vec<u8> = run.descriptors.iter().flat_map(|id| id.0).collect();
    let places: Vec<i64> = (1..).take(run.records.len()).collect();
    let events: Vec<bool> = run.records.iter().map(|record| record.event).collect();
    let bodies: Vec<&[u8]> = run.records.iter().map(|record| &record.body[..]).collect();
    let made = query(
        client,
        "WITH made AS (
             INSERT INTO zex.runs (id, name, state, reason, created_ms, epoch, owner, records,
                                   definition, parameters, descriptors, request_key)
             VALUES ($1, $2, $3, '', $4, 0, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (request_key) DO NOTHING
             RETURNING number
         ), written AS (
             INSERT INTO zex.journal (run, seq, event, body)
             SELECT m.number, j.seq, j.event, j.body
             FROM made m, unnest($11::bigint[], $12::boolean[], $13::bytea[]) AS j (seq, event, body)
         )
         SELECT number FROM made",
        &[
            &run.id,
            &text(&run.name),
            &run.state.name(),
            &signed(run.created_ms),
            &&*me,
            &(run.records.len() as i64),
            &text(&run.definition),
            &text(&run.parameters_json),
            &descriptors,
            &&run.request_key[..],
            &places,
            &events,
            &bodies,
        ],
    )
    .await?;
    if !made.is_empty() {
        return Ok(Created::New);
    }
    match by_key(client, run.request_key).await? {
        Some(id) => Ok(Created::Known { id }),
        // It was there, and has been forgotten since.
        None => Err(StoreError::Unreachable("the run changed meanwhile".to_owned()).into()),
    }
}

pub(super) async fn by_key(
    client: &Object,
    request_key: [u8; 16],
) -> Result<Option<String>, Failure> {
    let sql = "SELECT id FROM zex.runs WHERE request_key = $1";
    let found = query(client, sql, &[&&request_key[..]]).await?;
    Ok(found.first().map(|row| row.get(0)))
}

pub(super) async fn read(client: &Object, asked: ReadQuery) -> Result<Page, Failure> {
    let only = if asked.events { "AND event" } else { "" };
    let sql = format!(
        "SELECT seq, body, looked_at FROM (
             SELECT seq, body, sum(octet_length(body)) OVER so_far AS bytes,
                    row_number() OVER so_far AS place, count(*) OVER () AS looked_at
             FROM (SELECT seq, body FROM zex.journal
                   WHERE run = (SELECT number FROM zex.runs WHERE id = $1) AND seq > $2 {only}
                   ORDER BY seq LIMIT $3) AS next
             WINDOW so_far AS (ORDER BY seq)
         ) AS page
         WHERE bytes <= $4 OR place = 1 ORDER BY seq"
    );
    let most = (asked.max_bytes / RECORD_BYTES).clamp(READ_RECORDS_LEAST, READ_RECORDS_MAX);
    let (most, bytes) = (most as i64, signed(asked.max_bytes as u64));
    let page = query(client, &sql, &[&asked.run, &signed(asked.after), &most, &bytes]).await?;
    if page.is_empty() {
        let sql = "SELECT FROM zex.runs WHERE id = $1";
        if query(client, sql, &[&asked.run]).await?.is_empty() {
            return Err(StoreError::NoRun(asked.run).into());
        }
    }
    let record = |row: &Row| (unsigned(row.get(0)), Bytes::from(row.get::<_, Vec<u8>>(1)));
    // All that were looked at fit, and there were no more.
    let is_last = page.first().is_none_or(|row| {
        let looked_at: i64 = row.get(2);
        looked_at == page.len() as i64 && looked_at < most
    });
    Ok(Page { records: page.iter().map(record).collect(), is_last })
}

/// What [`stored_run`] reads, without what a list leaves out.
const RUN_COLUMNS: &str = "id, name, state, reason, created_ms, ended_ms, descriptors, steps";

pub(super) async fn run(client: &Object, id: String) -> Result<Option<StoredRun>, Failure> {
    let sql = format!("SELECT {RUN_COLUMNS}, definition, parameters FROM zex.runs WHERE id = $1");
    let found = query(client, &sql, &[&id]).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let mut run = stored_run(row)?;
    (run.definition, run.parameters_json) = (row.get(8), row.get(9));
    Ok(Some(run))
}

pub(super) async fn runs(client: &Object, asked: RunsQuery) -> Result<Vec<StoredRun>, Failure> {
    // Each condition is in the text only when it is asked for, so that its index is used.
    let mut sql = format!("SELECT {RUN_COLUMNS} FROM zex.runs WHERE true");
    let limit = asked.limit.min(RUNS_LISTED_MAX) as i64;
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&limit];
    if asked.unfinished {
        sql.push_str(" AND ended_ms IS NULL");
    }
    if let Some(name) = &asked.name {
        values.push(name);
        sql.push_str(&format!(" AND name = ${}", values.len()));
    }
    if let Some(before) = &asked.before {
        values.push(before);
        sql.push_str(&format!(" AND id < ${}", values.len()));
    }
    sql.push_str(" ORDER BY id DESC LIMIT $1");
    query(client, &sql, &values).await?.iter().map(stored_run).collect()
}

fn stored_run(row: &Row) -> Result<StoredRun, Failure> {
    // A column that holds what this program never writes.
    let broken = |what: &str| Failure::from(StoreError::Broken(format!("not {what} of a run")));
    let state: &str = row.get(2);
    let state = RunState::from_name(state).ok_or_else(|| broken("the state"))?;
    let descriptors: &[u8] = row.get(6);
    let id = |id: &[u8]| id.try_into().map(DescriptorId).map_err(|_| broken("the descriptors"));
    Ok(StoredRun {
        id: row.get(0),
        name: row.get(1),
        state,
        reason: row.get(3),
        created_ms: unsigned(row.get(4)),
        ended_ms: row.get::<_, Option<i64>>(5).map(unsigned),
        definition: String::new(),
        parameters_json: String::new(),
        descriptors: descriptors.chunks(16).map(id).collect::<Result<_, _>>()?,
        steps: row.get(7),
    })
}

pub(super) async fn remove_run(client: &Object, id: String) -> Result<(), Failure> {
    let sql = "WITH gone AS (DELETE FROM zex.runs WHERE id = $1 AND ended_ms IS NOT NULL
                             RETURNING number),
               letters AS (DELETE FROM zex.letters WHERE run IN (SELECT number FROM gone))
               DELETE FROM zex.journal WHERE run IN (SELECT number FROM gone)";
    query(client, sql, &[&id]).await.map(|_none| ())
}
