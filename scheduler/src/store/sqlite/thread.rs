//! The thread that owns the file, and the queue before it.
//!
//! Writes that wait are put into one transaction: as many as there are when the last
//! one is done, so a slow disk makes larger groups and not longer queues.

use std::io;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::super::StoreError;
use super::super::counts::Counts;

/// What may wait before the thread: beyond it callers wait to put it there.
const QUEUE_WORKS: usize = 1024;

/// The most works in one group: a commit that takes long makes everybody wait.
const GROUP_WORKS_MAX: usize = 512;

/// Whether a work changes the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Read,
    Write,
}

/// Why a work did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was refused before it changed anything: its own affair.
    Refused(StoreError),
    /// SQLite failed: a write takes its group down.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// Something to do with the file, and whom to tell.
trait Work: Send {
    fn want(&self) -> Want;
    /// Does it. An error is SQLite's, and fails the group.
    fn act(&mut self, connection: &Connection) -> Result<(), rusqlite::Error>;
    /// Tells the caller, once what it did is on disk or is known not to be.
    fn answer(self: Box<Self>, group: Result<(), StoreError>);
}

struct Task<T, F> {
    want: Want,
    act: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Work for Task<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<T, Failure> + Send,
{
    fn want(&self) -> Want {
        self.want
    }

    fn act(&mut self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let Some(act) = self.act.take() else { return Ok(()) };
        self.outcome = Some(match act(connection) {
            Ok(value) => Ok(value),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Sqlite(error)) => return Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, group: Result<(), StoreError>) {
        let outcome = match (group, self.outcome) {
            (Ok(()), Some(outcome)) => outcome,
            // What was refused was refused whether the others were written or not.
            (Err(_), Some(Err(refused))) => Err(refused),
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(StoreError::Closed),
        };
        // Who does not wait any more does not need to know.
        let _gone = self.caller.send(outcome).is_err();
    }
}

/// The queue before the thread. When the last clone is gone the thread ends.
#[derive(Clone)]
pub(super) struct Queue {
    works: mpsc::Sender<Box<dyn Work>>,
    counts: Arc<Counts>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn start(connection: Connection) -> io::Result<Self> {
        let (works, queue) = mpsc::channel(QUEUE_WORKS);
        let counts = Arc::<Counts>::default();
        let thread = Thread { connection, queue, counts: Arc::clone(&counts), broken: None };
        std::thread::Builder::new().name("zex-store".into()).spawn(move || thread.run())?;
        Ok(Self { works, counts })
    }

    /// What was written so far.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) async fn ask<T: Send + 'static>(
        &self,
        want: Want,
        act: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (caller, answer) = oneshot::channel();
        let task = Task { want, act: Some(act), outcome: None, caller };
        self.works.send(Box::new(task)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

struct Thread {
    connection: Connection,
    queue: mpsc::Receiver<Box<dyn Work>>,
    counts: Arc<Counts>,
    /// Why nothing is written any more.
    broken: Option<StoreError>,
}

impl Thread {
    fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut works = vec![first];
            while works.len() < GROUP_WORKS_MAX {
                match self.queue.try_recv() {
                    Ok(work) => works.push(work),
                    Err(_) => break,
                }
            }
            let (writes, reads): (Vec<_>, Vec<_>) =
                works.into_iter().partition(|work| work.want() == Want::Write);
            self.write(writes);
            for mut work in reads {
                let done = work.act(&self.connection).map_err(|error| store_error(&error));
                work.answer(done);
            }
        }
    }

    fn write(&mut self, mut works: Vec<Box<dyn Work>>) {
        if works.is_empty() {
            return;
        }
        let done = match &self.broken {
            Some(broken) => Err(broken.clone()),
            None => self.commit(&mut works).map_err(|error| store_error(&error)),
        };
        if done.is_ok() {
            self.counts.commit();
        }
        if let Err(error @ StoreError::Broken(_)) = &done {
            // After a failed fsync nobody knows what is on disk. A later commit could be
            // lost behind the damage though it was acknowledged: so there is none.
            self.broken = Some(error.clone());
        }
        for work in works {
            work.answer(done.clone());
        }
    }

    fn commit(&mut self, works: &mut [Box<dyn Work>]) -> Result<(), rusqlite::Error> {
        // Dropped without a commit, the transaction is rolled back.
        let transaction =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        works.iter_mut().try_for_each(|work| work.act(&transaction))?;
        transaction.commit()
    }
}

/// What a failure of SQLite means for the store.
pub(super) fn store_error(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(error.to_string()),
        _ => StoreError::Broken(error.to_string()),
    }
}
