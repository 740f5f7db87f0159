//! The store on SQLite: one file, one thread that owns it.
//!
//! ```text
//!  callers ─ Work ─▶ queue ─▶ thread: ┌ BEGIN ─ every write that waits ─ COMMIT (fsync) ┐ ─▶ answers
//!                                     └ then every read that waits                      ┘
//! ```
//!
//! WAL with `synchronous=FULL`: a commit is on disk before anybody hears of it, and
//! all writes that wait share one commit. The file is locked for this process alone.
//! A write that fails takes its whole group back and nobody is told that it worked.
//!
//! Parts: this file (the store) · `schema` (opening, checking, tables) · `thread`
//! (the queue and the group commit) · `statements`, `notes` (what each operation does).

mod notes;
mod schema;
mod statements;
mod thread;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::future::FutureExt as _;
use rusqlite::Connection;

use super::counts::size;
use super::{
    Append, Claimed, Created, DescriptorId, NewRun, Note, NoteChange, Page, Pending, ReadQuery,
    RunsQuery, Store, StoreError, StoredRun, Written,
};
use thread::{Queue, Want};

/// How a file is opened.
#[derive(Debug, Clone, Default)]
pub struct SqliteOptions {
    /// The most bytes the file may have; without it, what the disk has.
    pub max_bytes: Option<u64>,
}

/// A store in one SQLite file. Clones are the same store; the file is released when
/// the last is gone and the thread has done what was asked of it.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    path: PathBuf,
    queue: Queue,
}

impl SqliteStore {
    /// Opens the file, or makes it when there is none, and locks it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it, [`StoreError::Unusable`] when
    /// it is not a store of ours, is broken, or cannot be opened. It is then left as it is.
    pub fn open(path: impl AsRef<Path>, options: &SqliteOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let connection = schema::open(&path, options)?;
        let queue = Queue::start(connection).map_err(|error| StoreError::Unusable {
            path: path.display().to_string(),
            why: format!("its thread cannot be started: {error}"),
        })?;
        Ok(Self { path, queue })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ask<T: Send + 'static>(
        &self,
        want: Want,
        act: impl FnOnce(&Connection) -> Result<T, thread::Failure> + Send + 'static,
    ) -> Pending<T> {
        let queue = self.queue.clone();
        async move { queue.ask(want, act).await }.boxed()
    }
}

impl Store for SqliteStore {
    fn create(&self, run: NewRun) -> Pending<Created> {
        let (queue, size) = (self.queue.clone(), size(&run.records));
        async move {
            let created = queue
                .ask(Want::Write, move |connection| statements::create(connection, &run))
                .await?;
            queue.counts().wrote(if created == Created::New { size } else { (0, 0) });
            Ok(created)
        }
        .boxed()
    }

    fn by_key(&self, request_key: [u8; 16]) -> Pending<Option<String>> {
        self.ask(Want::Read, move |connection| statements::by_key(connection, request_key))
    }

    fn claim(&self, run: String) -> Pending<Claimed> {
        self.ask(Want::Write, move |connection| statements::claim(connection, &run))
    }

    fn append(&self, append: Append) -> Pending<()> {
        let (queue, size) = (self.queue.clone(), size(&append.records));
        async move {
            queue
                .ask(Want::Write, move |connection| statements::append(connection, &append))
                .await?;
            queue.counts().wrote(size);
            Ok(())
        }
        .boxed()
    }

    fn read(&self, query: ReadQuery) -> Pending<Page> {
        self.ask(Want::Read, move |connection| statements::read(connection, &query))
    }

    fn run(&self, id: String) -> Pending<Option<StoredRun>> {
        self.ask(Want::Read, move |connection| statements::run(connection, &id))
    }

    fn runs(&self, query: RunsQuery) -> Pending<Vec<StoredRun>> {
        self.ask(Want::Read, move |connection| statements::runs(connection, &query))
    }

    fn put_descriptors(&self, service: String, descriptors: Bytes) -> Pending<DescriptorId> {
        self.ask(Want::Write, move |connection| {
            statements::put_descriptors(connection, &service, &descriptors)
        })
    }

    fn services(&self) -> Pending<Vec<(String, DescriptorId)>> {
        self.ask(Want::Read, statements::services)
    }

    fn descriptors(&self, id: DescriptorId) -> Pending<Option<Bytes>> {
        self.ask(Want::Read, move |connection| statements::descriptors(connection, id))
    }

    fn note(&self, kind: &'static str, name: String) -> Pending<Option<Note>> {
        self.ask(Want::Read, move |connection| notes::note(connection, kind, &name))
    }

    fn notes(&self, kind: &'static str) -> Pending<Vec<Note>> {
        self.ask(Want::Read, move |connection| notes::notes(connection, kind))
    }

    fn change_note(&self, change: NoteChange) -> Pending<bool> {
        self.ask(Want::Write, move |connection| notes::change(connection, &change))
    }

    fn remove_run(&self, id: String) -> Pending<()> {
        self.ask(Want::Write, move |connection| notes::remove_run(connection, &id))
    }

    fn written(&self) -> Written {
        self.queue.counts().read()
    }
}
