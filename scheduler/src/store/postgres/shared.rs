//! What schedulers share, in SQL: leases, claims, letters. All times are the database's.

use std::sync::Arc;

use bytes::Bytes;
use deadpool_postgres::Object;
use tokio_postgres::Row;

use super::super::{Claimed, FreeRun, Letter, Member, RUNS_LISTED_MAX, Renewed, StoreError};
use super::connect::Failure;
use super::link::CHANNEL;
use super::statements::query;
use super::{signed, text, unsigned};

/// How long a scheduler is taken to live after it has last said so. Long against the half
/// second in which it says so again, short against what people wait for.
const LEASE: &str = "interval '3 seconds'";

/// How long a scheduler that has gone is still listed.
const LISTED: &str = "interval '1 hour'";

/// How long a letter lies about that nobody answers or fetches.
const LETTERS_KEPT: &str = "interval '10 minutes'";

/// The most letters that are read at once.
const LETTERS_MAX: i64 = 64;

pub(super) async fn claim(client: &Object, me: Arc<str>, run: String) -> Result<Claimed, Failure> {
    let sql = "UPDATE zex.runs r SET epoch = r.epoch + 1, owner = $2
               WHERE r.id = $1 AND (r.owner = $2 OR NOT EXISTS (
                   SELECT FROM zex.schedulers s
                   WHERE s.id = r.owner AND s.fresh_until > clock_timestamp()))
               RETURNING r.epoch";
    if let Some(row) = query(client, sql, &[&run, &&*me]).await?.first() {
        return Ok(Claimed::Ours { epoch: unsigned(row.get(0)) });
    }
    match query(client, "SELECT FROM zex.runs WHERE id = $1", &[&run]).await?.is_empty() {
        true => Err(StoreError::NoRun(run).into()),
        false => Ok(Claimed::Others),
    }
}

pub(super) async fn renew(
    client: &Object,
    me: Arc<str>,
    member: Member,
) -> Result<Renewed, Failure> {
    let sql = format!(
        "WITH old AS (
             SELECT fresh_until <= clock_timestamp() AS lapsed FROM zex.schedulers WHERE id = $1
         ), kept AS (
             INSERT INTO zex.schedulers (id, name, fresh_until, runs, fenced)
             VALUES ($1, $2, clock_timestamp() + {LEASE}, $3, $4)
             ON CONFLICT (id) DO UPDATE SET fresh_until = excluded.fresh_until,
                 runs = excluded.runs, fenced = excluded.fenced, swept = false
         )
         SELECT coalesce((SELECT lapsed FROM old), true),
                EXISTS (SELECT FROM zex.schedulers
                        WHERE id <> $1 AND NOT swept AND fresh_until <= clock_timestamp())"
    );
    let (runs, fenced) = (signed(member.runs), signed(member.fenced));
    let row = query(client, &sql, &[&&*me, &text(&member.name), &runs, &fenced]).await?;
    let first = row.first();
    Ok(first.map(|row| Renewed { lapsed: row.get(0), gone: row.get(1) }).unwrap_or_default())
}

pub(super) async fn release(client: &Object, me: Arc<str>) -> Result<(), Failure> {
    let sql = format!(
        "WITH gone AS (UPDATE zex.schedulers SET fresh_until = clock_timestamp(), runs = 0
                       WHERE id = $1 RETURNING id)
         SELECT pg_notify('{CHANNEL}', 'g') FROM gone"
    );
    query(client, &sql, &[&&*me]).await.map(|_told| ())
}

pub(super) async fn members(client: &Object) -> Result<Vec<Member>, Failure> {
    let sql = "SELECT name, fresh_until > clock_timestamp(), runs, fenced
               FROM zex.schedulers ORDER BY name, id";
    let member = |row: &Row| Member {
        name: row.get(0),
        alive: row.get(1),
        runs: unsigned(row.get(2)),
        fenced: unsigned(row.get(3)),
    };
    Ok(query(client, sql, &[]).await?.iter().map(member).collect())
}

/// Runs whose owner is gone. Those that live share them by number, so that each takes its
/// part at once; what one does not take the others see here again.
pub(super) async fn free_runs(client: &Object, me: Arc<str>) -> Result<Vec<FreeRun>, Failure> {
    let sql = "WITH alive AS (
                   SELECT id, row_number() OVER (ORDER BY id) - 1 AS place, count(*) OVER () AS total
                   FROM zex.schedulers WHERE fresh_until > clock_timestamp()
               )
               SELECT r.id, coalesce(r.number % me.total = me.place, true)
               FROM zex.runs r LEFT JOIN alive me ON me.id = $1
               WHERE r.ended_ms IS NULL AND NOT EXISTS (SELECT FROM alive a WHERE a.id = r.owner)
               ORDER BY r.number LIMIT $2";
    let found = query(client, sql, &[&&*me, &(RUNS_LISTED_MAX as i64)]).await?;
    if found.is_empty() {
        sweep(client).await?;
    }
    Ok(found.iter().map(|row| FreeRun { id: row.get(0), ours: row.get(1) }).collect())
}

/// Nothing is left of those that have gone: they are not looked at again, and forgotten later.
async fn sweep(client: &Object) -> Result<(), Failure> {
    let swept = "UPDATE zex.schedulers s SET swept = true
                 WHERE NOT swept AND fresh_until <= clock_timestamp() AND NOT EXISTS (
                     SELECT FROM zex.runs r WHERE r.owner = s.id AND r.ended_ms IS NULL)";
    query(client, swept, &[]).await?;
    let gone = format!(
        "DELETE FROM zex.schedulers WHERE swept AND fresh_until < clock_timestamp() - {LISTED}"
    );
    query(client, &gone, &[]).await?;
    // One that is not answered is done by who takes the run up, however long that takes.
    let letters = format!(
        "DELETE FROM zex.letters l WHERE at < clock_timestamp() - {LETTERS_KEPT} AND (
             answer IS NOT NULL OR NOT EXISTS (
                 SELECT FROM zex.runs r WHERE r.number = l.run AND r.ended_ms IS NULL))"
    );
    query(client, &letters, &[]).await.map(|_none| ())
}

pub(super) async fn own_runs(client: &Object, me: Arc<str>) -> Result<Vec<String>, Failure> {
    let sql = "SELECT id FROM zex.runs WHERE owner = $1 AND ended_ms IS NULL";
    Ok(query(client, sql, &[&&*me]).await?.iter().map(|row| row.get(0)).collect())
}

pub(super) async fn put_letter(
    client: &Object,
    run: String,
    body: Bytes,
) -> Result<Option<u64>, Failure> {
    let sql = format!(
        "WITH letter AS (INSERT INTO zex.letters (run, body)
                         SELECT number, $2 FROM zex.runs WHERE id = $1 AND ended_ms IS NULL
                         RETURNING number)
         SELECT number, pg_notify('{CHANNEL}', 'l ' || $1) FROM letter"
    );
    let put = query(client, &sql, &[&run, &&body[..]]).await?;
    Ok(put.first().map(|row| unsigned(row.get(0))))
}

pub(super) async fn letters(client: &Object, run: String) -> Result<Vec<Letter>, Failure> {
    let sql = "SELECT number, body FROM zex.letters
               WHERE run = (SELECT number FROM zex.runs WHERE id = $1) AND answer IS NULL
               ORDER BY number LIMIT $2";
    let letter = |row: &Row| Letter {
        number: unsigned(row.get(0)),
        body: Bytes::from(row.get::<_, Vec<u8>>(1)),
    };
    Ok(query(client, sql, &[&run, &LETTERS_MAX]).await?.iter().map(letter).collect())
}

pub(super) async fn inboxes(client: &Object, me: Arc<str>) -> Result<Vec<String>, Failure> {
    let sql = "SELECT DISTINCT r.id FROM zex.letters l JOIN zex.runs r ON r.number = l.run
               WHERE l.answer IS NULL AND r.owner = $1 AND r.ended_ms IS NULL";
    Ok(query(client, sql, &[&&*me]).await?.iter().map(|row| row.get(0)).collect())
}

pub(super) async fn answer_letter(
    client: &Object,
    number: u64,
    answer: Bytes,
) -> Result<(), Failure> {
    let sql = format!(
        "WITH told AS (UPDATE zex.letters SET answer = coalesce(answer, $2) WHERE number = $1
                       RETURNING number)
         SELECT pg_notify('{CHANNEL}', 'a ' || number) FROM told"
    );
    query(client, &sql, &[&signed(number), &&answer[..]]).await.map(|_told| ())
}

pub(super) async fn take_answer(client: &Object, number: u64) -> Result<Option<Bytes>, Failure> {
    let sql = "DELETE FROM zex.letters WHERE number = $1 AND answer IS NOT NULL RETURNING answer";
    let taken = query(client, sql, &[&signed(number)]).await?;
    Ok(taken.first().map(|row| Bytes::from(row.get::<_, Vec<u8>>(0))))
}

pub(super) async fn drop_letter(client: &Object, number: u64) -> Result<(), Failure> {
    let sql = "DELETE FROM zex.letters WHERE number = $1";
    query(client, sql, &[&signed(number)]).await.map(|_none| ())
}
