//! The tables: are they ours, are they older than this program? Then what is missing is
//! added, by one scheduler at a time.

use std::time::Duration;

use tokio_postgres::Transaction;

use super::super::StoreError;
use super::connect::{ANSWER, Database, Failure};

/// What marks a schema as ours.
const PROGRAM: &str = "zex-scheduler";

/// The advisory lock under which tables are made and changed: "ZEXS".
const LOCK: i64 = 0x5a45_5853;

/// How long another scheduler may take to change the tables, in ms.
const LOCK_MS: u32 = 60_000;

/// What each version adds to the one before; the first makes everything.
///
/// `runs.owner` is the id of a row of `schedulers`: the run belongs to it while that row is
/// fresh. Rows of `runs` are written at every append: some room in their pages lets them be
/// written in place. Journals are not compressed: that costs more than it saves.
const MIGRATIONS: &[&str] = &["
CREATE TABLE zex.runs (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE \"C\" NOT NULL UNIQUE,
    name text COLLATE \"C\" NOT NULL,
    state text NOT NULL,
    reason text NOT NULL,
    created_ms bigint NOT NULL,
    ended_ms bigint,
    epoch bigint NOT NULL,
    owner text COLLATE \"C\" NOT NULL,
    records bigint NOT NULL,
    definition text NOT NULL,
    parameters text NOT NULL,
    descriptors bytea NOT NULL,
    request_key bytea NOT NULL UNIQUE,
    steps bytea
) WITH (fillfactor = 70);
CREATE INDEX runs_by_name ON zex.runs (name, id);
CREATE INDEX runs_unfinished ON zex.runs (owner) WHERE ended_ms IS NULL;
CREATE INDEX runs_unfinished_by_id ON zex.runs (id) WHERE ended_ms IS NULL;
CREATE TABLE zex.journal (
    run bigint NOT NULL,
    seq bigint NOT NULL,
    event boolean NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (run, seq)
);
ALTER TABLE zex.journal ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX journal_events ON zex.journal (run, seq) WHERE event;
CREATE TABLE zex.descriptors (
    id bytea PRIMARY KEY,
    body bytea NOT NULL
);
CREATE TABLE zex.services (
    name text COLLATE \"C\" PRIMARY KEY,
    descriptors bytea NOT NULL
);
CREATE TABLE zex.notes (
    kind text COLLATE \"C\" NOT NULL,
    name text COLLATE \"C\" NOT NULL,
    version bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (kind, name)
);
CREATE TABLE zex.schedulers (
    id text COLLATE \"C\" PRIMARY KEY,
    name text NOT NULL,
    fresh_until timestamptz NOT NULL,
    runs bigint NOT NULL,
    fenced bigint NOT NULL,
    swept boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
CREATE TABLE zex.letters (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    body bytea NOT NULL,
    answer bytea
);
CREATE INDEX letters_open ON zex.letters (run, number) WHERE answer IS NULL;
"];

/// Makes the tables, or brings them to this program's version.
pub(super) async fn open(database: &Database) -> Result<(), StoreError> {
    let (mut client, connection) = database.connect().await?;
    let driver = tokio::spawn(connection);
    let opened = async {
        let transaction = client.transaction().await?;
        migrate(&transaction, database).await?;
        transaction.commit().await?;
        let fsync: String = client.query_one("SHOW fsync", &[]).await?.get(0);
        if fsync == "off" {
            tracing::warn!("the database does not fsync: what it acknowledges may be lost");
        }
        Ok(())
    };
    let patience = Duration::from_millis(LOCK_MS.into()) + ANSWER;
    let opened = tokio::time::timeout(patience, opened).await;
    let opened = opened.unwrap_or_else(|_elapsed| {
        let why = format!("no answer in {} s", patience.as_secs());
        Err(Failure::Refused(database.unreachable(&why)))
    });
    drop(client);
    driver.abort();
    match opened {
        Ok(()) => Ok(()),
        Err(Failure::Refused(error)) => Err(error),
        Err(Failure::Postgres(error)) => Err(match error.as_db_error() {
            // It may not make tables here, or has none of this kind: that will stay so.
            Some(said) if said.code().code().starts_with("42") => {
                database.unusable(said.message().to_owned())
            }
            _ => database.means(&error),
        }),
    }
}

async fn migrate(transaction: &Transaction<'_>, database: &Database) -> Result<(), Failure> {
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {LOCK_MS}")).await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let encoding: String = transaction.query_one("SHOW server_encoding", &[]).await?.get(0);
    if encoding != "UTF8" {
        return Err(database.unusable(format!("its encoding is {encoding}, not UTF8")).into());
    }
    let version = match version(transaction, database).await? {
        Some(version) => version,
        None => {
            transaction
                .batch_execute(
                    "CREATE SCHEMA IF NOT EXISTS zex;
                     CREATE TABLE zex.store (program text NOT NULL, version int NOT NULL)",
                )
                .await?;
            let mark = "INSERT INTO zex.store (program, version) VALUES ($1, 0)";
            transaction.execute(mark, &[&PROGRAM]).await?;
            0
        }
    };
    let newest = MIGRATIONS.len();
    if version > newest {
        let why = format!(
            "it was written by a newer program (version {version}, this one knows {newest})"
        );
        return Err(database.unusable(why).into());
    }
    if version < newest {
        for step in &MIGRATIONS[version..] {
            transaction.batch_execute(step).await?;
        }
        transaction.execute("UPDATE zex.store SET version = $1", &[&(newest as i32)]).await?;
        tracing::info!(version = newest, "the tables of the store are made");
    }
    Ok(())
}

/// The version of the tables that are there; none when there is nothing at all.
async fn version(
    transaction: &Transaction<'_>,
    database: &Database,
) -> Result<Option<usize>, Failure> {
    let foreign = || {
        let why = "its schema `zex` is another program's; give the scheduler a database of its own";
        Failure::from(database.unusable(why.to_owned()))
    };
    let found = transaction
        .query_one(
            "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE n.nspname = 'zex'),
                    (SELECT count(*) FROM information_schema.columns
                     WHERE table_schema = 'zex' AND table_name = 'store'
                       AND (column_name, data_type) IN (('program', 'text'), ('version', 'integer')))",
            &[],
        )
        .await?;
    let (tables, marks): (i64, i64) = (found.get(0), found.get(1));
    if tables == 0 {
        return Ok(None);
    }
    if marks != 2 {
        return Err(foreign());
    }
    let marks = transaction.query("SELECT program, version FROM zex.store", &[]).await?;
    match &marks[..] {
        [mark] if mark.get::<_, &str>(0) == PROGRAM => {
            Ok(Some(usize::try_from(mark.get::<_, i32>(1)).map_err(|_| foreign())?))
        }
        _ => Err(foreign()),
    }
}
