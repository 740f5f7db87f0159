//! Appends: all that waits is written with one statement, in one commit.
//!
//! ```text
//!  run tasks ─ Wanted ─▶ queue ─▶ held ─▶ batch ─▶ statement ─ commit (fsync) ─▶ answers
//!                                          └ a run has at most one append in a batch
//! ```
//!
//! While a batch is on its way the next gathers; it is sent behind the first when it is large
//! already, so the database is not idle while answers travel. An append that is refused
//! does not harm those beside it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, Statement};

use super::super::counts::{Counts, size};
use super::super::{Append, News, StoreError};
use super::connect::{ANSWER, CONNECT, Database, again};
use super::{signed, text, unsigned};

/// What may wait before the writer: beyond it callers wait to put it there.
const QUEUE_APPENDS: usize = 1024;

/// The most appends in one batch: a commit that takes long makes everybody wait.
const BATCH_APPENDS_MAX: usize = 512;

/// The most bytes of records in one batch.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// So many appends that wait are sent while another batch is on its way.
const BATCH_LARGE: usize = 64;

/// Batches that are on their way at once.
const PIPELINED: usize = 2;

/// How often a batch that met another in a lock is tried.
const TRIES: usize = 4;

/// Appends where the row of the run has the epoch and the place. The journal follows those
/// rows, and so does the answer to letters.
const APPEND: &str = "
WITH asked AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[],
                         $5::text[], $6::text[], $7::bigint[], $8::bytea[])
    WITH ORDINALITY AS a (id, epoch, after, count, state, reason, ended_ms, steps, at)
), taken AS (
    UPDATE zex.runs r
    SET records = a.after + a.count, state = coalesce(a.state, r.state),
        reason = coalesce(a.reason, r.reason), ended_ms = coalesce(a.ended_ms, r.ended_ms),
        steps = coalesce(a.steps, r.steps)
    FROM asked a
    WHERE r.id = a.id AND r.epoch = a.epoch AND r.records = a.after
    RETURNING a.at, r.number
), written AS (
    INSERT INTO zex.journal (run, seq, event, body)
    SELECT t.number, j.seq, j.event, j.body
    FROM unnest($9::bigint[], $10::bigint[], $11::boolean[], $12::bytea[])
         AS j (at, seq, event, body)
    JOIN taken t USING (at)
), told AS (
    UPDATE zex.letters l SET answer = ''
    FROM unnest($13::bigint[], $14::bigint[]) AS d (at, letter) JOIN taken t USING (at)
    WHERE l.number = d.letter AND l.run = t.number
)
SELECT at FROM taken";

/// How a run stands whose append was not taken.
const STANDING: &str = "SELECT epoch, records FROM zex.runs WHERE id = $1";

/// An append, and whom to tell.
struct Wanted {
    append: Append,
    told: oneshot::Sender<Result<(), StoreError>>,
}

/// The queue before the writer. When the last one is gone the writer ends.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Wanted>,
    database: Database,
}

impl Writer {
    pub(super) fn start(
        database: &Database,
        events: mpsc::Sender<News>,
        counts: &Arc<Counts>,
    ) -> Self {
        let (queue, wanted) = mpsc::channel(QUEUE_APPENDS);
        let (database, counts) = (database.clone(), Arc::clone(counts));
        let work =
            Work { database: database.clone(), wanted, held: VecDeque::new(), events, counts };
        tokio::spawn(work.run());
        Self { queue, database }
    }

    pub(super) async fn append(&self, append: Append) -> Result<(), StoreError> {
        let (told, answer) = oneshot::channel();
        let sent = self.queue.send(Wanted { append, told }).await;
        sent.map_err(|_closed| StoreError::Closed)?;
        // Dropped with the connection that it was sent on.
        answer
            .await
            .unwrap_or_else(|_dropped| Err(self.database.unreachable("the connection broke")))
    }
}

/// A connection for appends.
struct Line {
    database: Database,
    client: Client,
    driver: JoinHandle<Result<(), Error>>,
    append: Statement,
    standing: Statement,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

struct Work {
    database: Database,
    wanted: mpsc::Receiver<Wanted>,
    /// Taken off the queue and not sent.
    held: VecDeque<Wanted>,
    /// Where it is told that a run has events.
    events: mpsc::Sender<News>,
    counts: Arc<Counts>,
}

impl Work {
    async fn run(mut self) {
        while self.wait().await {
            match Line::connect(&self.database).await {
                Ok(line) => self.serve(&line).await,
                // Each asks again when it likes.
                Err(error) => {
                    // It was of use before, and may be again: what is known is kept until then.
                    let error = match error {
                        StoreError::Unusable { why, .. } => self.database.unreachable(&why),
                        error => error,
                    };
                    self.gather();
                    for wanted in self.held.drain(..) {
                        let _gone = wanted.told.send(Err(error.clone())).is_err();
                    }
                }
            }
        }
    }

    /// Waits until there is something to write. False when nothing ever comes.
    async fn wait(&mut self) -> bool {
        if self.held.is_empty() {
            match self.wanted.recv().await {
                Some(wanted) => self.held.push_back(wanted),
                None => return false,
            }
        }
        true
    }

    /// Takes what waits off the queue.
    fn gather(&mut self) {
        while self.held.len() < BATCH_APPENDS_MAX * 2
            && let Ok(wanted) = self.wanted.try_recv()
        {
            self.held.push_back(wanted);
        }
    }

    /// Writes until the connection breaks, or nothing ever comes.
    async fn serve(&mut self, line: &Line) {
        let (mut flying, mut busy) = (FuturesUnordered::new(), BTreeSet::<String>::new());
        let mut open = true;
        loop {
            self.gather();
            let most = if flying.is_empty() { 1 } else { BATCH_LARGE };
            if flying.len() < PIPELINED && self.held.len() >= most {
                let batch = self.batch(&busy);
                if !batch.is_empty() {
                    busy.extend(batch.iter().map(|wanted| wanted.append.run.clone()));
                    let counts = Arc::clone(&self.counts);
                    flying.push(line.settle(batch, self.events.clone(), counts));
                }
            }
            if !open && flying.is_empty() && self.held.is_empty() {
                return;
            }
            tokio::select! {
                Some((runs, alive)) = flying.next(), if !flying.is_empty() => {
                    if !alive {
                        // What else is on its way is dropped, and so told that nobody knows.
                        return;
                    }
                    for run in &runs {
                        busy.remove(run);
                    }
                }
                wanted = self.wanted.recv(), if open && self.held.len() < BATCH_APPENDS_MAX => {
                    match wanted {
                        Some(wanted) => self.held.push_back(wanted),
                        None => open = false,
                    }
                }
            }
        }
    }

    /// What goes together: of each run the first, and none that is on its way.
    fn batch(&mut self, busy: &BTreeSet<String>) -> Vec<Wanted> {
        let (mut batch, mut later) = (Vec::new(), VecDeque::new());
        let (mut runs, mut bytes) = (BTreeSet::new(), 0);
        while let Some(wanted) = self.held.pop_front() {
            let run = &wanted.append.run;
            let size: usize = wanted.append.records.iter().map(|record| record.body.len()).sum();
            let full = batch.len() >= BATCH_APPENDS_MAX
                || (bytes + size > BATCH_BYTES_MAX && !batch.is_empty());
            if full || busy.contains(run) || runs.contains(run) {
                // Those behind it of the same run wait as well.
                runs.insert(run.clone());
                later.push_back(wanted);
                continue;
            }
            bytes += size;
            runs.insert(run.clone());
            batch.push(wanted);
        }
        self.held = later;
        batch
    }
}

impl Line {
    async fn connect(database: &Database) -> Result<Self, StoreError> {
        let (client, connection) = database.connect().await?;
        let prepared = async {
            let driver = tokio::spawn(connection);
            // The plan is made once, and is right for the tables as they grow.
            client
                .batch_execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")
                .await?;
            let append = client.prepare(APPEND).await?;
            let standing = client.prepare(STANDING).await?;
            Ok(Self { database: database.clone(), client, driver, append, standing })
        };
        let prepared = tokio::time::timeout(CONNECT, prepared).await;
        let prepared = prepared.map_err(|_elapsed| database.unreachable("no answer"))?;
        prepared.map_err(|error: Error| database.means(&error))
    }

    /// Writes a batch and tells everybody. The runs, and whether the connection is of use.
    async fn settle(
        &self,
        batch: Vec<Wanted>,
        events: mpsc::Sender<News>,
        counts: Arc<Counts>,
    ) -> (Vec<String>, bool) {
        let runs = batch.iter().map(|wanted| wanted.append.run.clone()).collect();
        let (appends, callers): (Vec<Append>, Vec<_>) =
            batch.into_iter().map(|wanted| (wanted.append, wanted.told)).unzip();
        let outcomes = match tokio::time::timeout(ANSWER, self.outcomes(&appends)).await {
            Ok(outcomes) => outcomes,
            Err(_elapsed) => {
                let why = format!("no answer in {} s", ANSWER.as_secs());
                vec![Err(self.database.unreachable(&why)); appends.len()]
            }
        };
        if outcomes.iter().any(Result::is_ok) {
            counts.commit();
        }
        let unreachable = |outcome| matches!(outcome, &Err(StoreError::Unreachable(_)));
        let alive = !self.client.is_closed() && !outcomes.iter().any(unreachable);
        for ((append, told), outcome) in appends.into_iter().zip(callers).zip(outcomes) {
            let news = append.state.is_some() || append.records.iter().any(|record| record.event);
            if outcome.is_ok() {
                counts.wrote(size(&append.records));
            }
            if outcome.is_ok() && news {
                // Too many wait: this one is not told of.
                let _missed = events.try_send(News::Events { run: append.run }).is_err();
            }
            // Who does not wait any more does not need to know.
            let _gone = told.send(outcome).is_err();
        }
        (runs, alive)
    }

    /// What becomes of each.
    async fn outcomes(&self, appends: &[Append]) -> Vec<Result<(), StoreError>> {
        match self.try_some(appends).await {
            Ok(outcomes) => outcomes,
            Err(error) => match self.database.means(&error) {
                // One of them cannot be written at all: the others can.
                StoreError::Broken(_) if appends.len() > 1 => {
                    let mut outcomes = Vec::new();
                    for append in appends {
                        let one = self.try_some(std::slice::from_ref(append)).await;
                        let one = one.map_err(|error| self.database.means(&error));
                        outcomes.push(one.and_then(|mut one| one.pop().unwrap_or(Ok(()))));
                    }
                    outcomes
                }
                error => vec![Err(error); appends.len()],
            },
        }
    }

    async fn try_some(&self, appends: &[Append]) -> Result<Vec<Result<(), StoreError>>, Error> {
        let mut tries = 1;
        let taken = loop {
            match self.write(appends).await {
                Err(error) if tries < TRIES && error.code().is_some_and(again) => tries += 1,
                done => break done?,
            }
        };
        let mut outcomes = Vec::with_capacity(appends.len());
        for (at, append) in (1..).zip(appends) {
            outcomes.push(match taken.contains(&at) {
                true => Ok(()),
                false => Err(self.refusal(append).await?),
            });
        }
        Ok(outcomes)
    }

    /// The places in the batch of those that were taken.
    async fn write(&self, appends: &[Append]) -> Result<BTreeSet<i64>, Error> {
        let each = || (1_i64..).zip(appends);
        let state = |append: &Append| append.state.as_ref().map(|new| new.state.name());
        let reason = |append: &Append| append.state.as_ref().map(|new| text(&new.reason));
        let ended =
            |append: &Append| append.state.as_ref().and_then(|new| new.ended_ms).map(signed);
        let ids: Vec<&str> = appends.iter().map(|append| &*append.run).collect();
        let epochs: Vec<i64> = appends.iter().map(|append| signed(append.epoch)).collect();
        let afters: Vec<i64> = appends.iter().map(|append| signed(append.after)).collect();
        let counts: Vec<i64> = appends.iter().map(|append| append.records.len() as i64).collect();
        let states: Vec<Option<&str>> = appends.iter().map(state).collect();
        let reasons: Vec<Option<String>> = appends.iter().map(reason).collect();
        let ended: Vec<Option<i64>> = appends.iter().map(ended).collect();
        let steps: Vec<Option<&[u8]>> = appends.iter().map(steps_of).collect();
        let records = || {
            each().flat_map(|(at, append)| {
                let places = (append.after + 1..).map(signed);
                places.zip(&append.records).map(move |(seq, record)| (at, seq, record))
            })
        };
        let ats: Vec<i64> = records().map(|(at, _, _)| at).collect();
        let seqs: Vec<i64> = records().map(|(_, seq, _)| seq).collect();
        let events: Vec<bool> = records().map(|(_, _, record)| record.event).collect();
        let bodies: Vec<&[u8]> = records().map(|(_, _, record)| &record.body[..]).collect();
        let letters = || {
            each().flat_map(|(at, append)| append.letters.iter().map(move |letter| (at, *letter)))
        };
        let of: Vec<i64> = letters().map(|(at, _)| at).collect();
        let letters: Vec<i64> = letters().map(|(_, letter)| signed(letter)).collect();
        let rows = self
            .client
            .query(
                &self.append,
                &[
                    &ids, &epochs, &afters, &counts, &states, &reasons, &ended, &steps, &ats,
                    &seqs, &events, &bodies, &of, &letters,
                ],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Why an append was not taken.
    async fn refusal(&self, append: &Append) -> Result<StoreError, Error> {
        let run = append.run.clone();
        let Some(row) = self.client.query_opt(&self.standing, &[&run]).await? else {
            return Ok(StoreError::NoRun(run));
        };
        let (epoch, has) = (unsigned(row.get(0)), unsigned(row.get(1)));
        Ok(if epoch != append.epoch {
            StoreError::Fenced(run)
        } else if has != append.after {
            StoreError::Gap { run, has, after: append.after }
        } else {
            self.database.unreachable("the run changed meanwhile")
        })
    }
}

fn steps_of(append: &Append) -> Option<&[u8]> {
    append.state.as_ref().and_then(|new| new.steps.as_deref())
}
