//! Where the scheduler keeps what must outlive it: runs, their journals, and the
//! descriptors of every service that was ever seen.
//!
//! ```text
//!  run tasks ─ append ─┐                      ┌─ MemoryStore: for tests and short lives
//!  service ─ create ───┼─▶ trait Store ───────┼─ SqliteStore: one file, fsync before the answer
//!  catalog ─ put ──────┘                      └─ PostgresStore: a database, for several schedulers
//! ```
//!
//! What every store promises, and `conformance` checks:
//!
//! - What was acknowledged survives the process, all of an append or nothing of it.
//! - A journal is a sequence without gaps: an append names the record it follows.
//! - Only the newest claim of a run may append; an older one is [`StoreError::Fenced`].
//! - A request that comes twice under one key makes one run.
//! - Where several schedulers share it, a run that another one owns cannot be claimed while
//!   that one lives (`sharing`).

mod counts;
mod memory;
mod postgres;
mod sharing;
mod sqlite;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod shaky;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use sha2::{Digest as _, Sha256};
use tokio::sync::broadcast;
use zex_pipeline::state::RunState;

pub use memory::MemoryStore;
pub use postgres::{PostgresOptions, PostgresStore};
pub use sharing::{Claimed, FreeRun, Letter, Member, News, Renewed};
pub use sqlite::{SqliteOptions, SqliteStore};

/// The answer of a store, when it comes.
pub type Pending<T> = BoxFuture<'static, Result<T, StoreError>>;

/// A store, shared by everything in a scheduler.
pub type SharedStore = Arc<dyn Store>;

/// The most runs that one [`Store::runs`] lists.
pub const RUNS_LISTED_MAX: usize = 1000;

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{0} is used by another scheduler; stop that one, or give this one a store of its own")]
    Locked(String),
    /// It is something else than a store of ours, or broken. It is left as it is.
    #[error("{path} cannot be used as a store: {why}")]
    Unusable {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// There is no room; what was acknowledged is safe, and it works again when there is.
    #[error("the store is full: {0}; make room, runs then go on by themselves")]
    Full(String),
    /// It does not answer. Whether it did what it was asked is not known: an append that is
    /// asked for again is a [`StoreError::Gap`] when it was taken the first time.
    #[error("the store cannot be reached: {0}; runs go on by themselves when it can")]
    Unreachable(String),
    /// Writing failed in a way that leaves unclear what is on disk.
    #[error("the store cannot be written: {0}; start the scheduler again when the disk is well")]
    Broken(String),
    /// The run is owned by a newer claim.
    #[error("the run {0} belongs to another scheduler now")]
    Fenced(String),
    /// There is no such run.
    #[error("there is no run {0}")]
    NoRun(String),
    /// An append does not follow the last record.
    #[error("the journal of run {run} has {has} records, the append follows {after}")]
    Gap {
        /// The run.
        run: String,
        /// What the journal has.
        has: u64,
        /// What the append follows.
        after: u64,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Names a set of descriptors by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DescriptorId(pub [u8; 16]);

impl DescriptorId {
    /// The name of these descriptors: the first half of their SHA-256.
    pub fn of(descriptors: &[u8]) -> Self {
        let hash = Sha256::digest(descriptors);
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Self(id)
    }
}

/// A run to be kept.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its id: unique, and ids sort by when they were made.
    pub id: String,
    /// The name of its pipeline.
    pub name: String,
    /// The definition as it was given.
    pub definition: String,
    /// The parameters as they were given.
    pub parameters_json: String,
    /// The descriptors it was checked against.
    pub descriptors: Vec<DescriptorId>,
    /// The key of the request that made it.
    pub request_key: [u8; 16],
    /// When, in ms since 1970.
    pub created_ms: u64,
    /// The state after its first records.
    pub state: RunState,
    /// Its first records.
    pub records: Vec<NewRecord>,
}

/// A record to be kept.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// Its bytes.
    pub body: Bytes,
    /// Whether who watches the run is told of it.
    pub event: bool,
}

/// What became of [`Store::create`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is kept.
    New,
    /// A run with this id was made before under the same key.
    Known {
        /// Its id.
        id: String,
    },
}

/// Records to add to a journal, in one piece.
#[derive(Debug, Clone)]
pub struct Append {
    /// The run.
    pub run: String,
    /// The claim it is made under.
    pub epoch: u64,
    /// How many records the journal has before.
    pub after: u64,
    /// The records. With none it only asks whether the claim still holds.
    pub records: Vec<NewRecord>,
    /// The state of the run, when these records change it.
    pub state: Option<NewState>,
    /// Letters to the run that are done with these records: answered in the same piece.
    pub letters: Vec<u64>,
}

/// What a list of runs shows, as it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewState {
    /// The state.
    pub state: RunState,
    /// Why.
    pub reason: String,
    /// When it ended, in ms since 1970.
    pub ended_ms: Option<u64>,
    /// How its steps ended, encoded by the scheduler.
    pub steps: Option<Vec<u8>>,
}

/// A run that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRun {
    /// Its id.
    pub id: String,
    /// The name of its pipeline.
    pub name: String,
    /// Its state.
    pub state: RunState,
    /// Why it is in that state.
    pub reason: String,
    /// When it was made, in ms since 1970.
    pub created_ms: u64,
    /// When it ended, in ms since 1970.
    pub ended_ms: Option<u64>,
    /// The definition as it was given.
    pub definition: String,
    /// The parameters as they were given.
    pub parameters_json: String,
    /// The descriptors it was checked against.
    pub descriptors: Vec<DescriptorId>,
    /// How its steps ended.
    pub steps: Option<Vec<u8>>,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunsQuery {
    /// Only those of the pipeline with this name.
    pub name: Option<String>,
    /// Only those that have not ended.
    pub unfinished: bool,
    /// Only those older than this one.
    pub before: Option<String>,
    /// How many at most.
    pub limit: usize,
}

/// Which records to read.
#[derive(Debug, Clone)]
pub struct ReadQuery {
    /// The run.
    pub run: String,
    /// Only those behind this one; the first is 1.
    pub after: u64,
    /// Only those that who watches is told of.
    pub events: bool,
    /// About how many bytes at most; a larger record comes alone.
    pub max_bytes: usize,
}

/// The most notes of one kind.
pub const NOTES_MAX: usize = 10_000;

/// Something small that is kept by its kind and name: schedules, stored pipelines, the
/// queues of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its name.
    pub name: String,
    /// Which change of it this is, from 1.
    pub version: u64,
    /// What it says.
    pub body: Bytes,
}

/// A change of a note.
#[derive(Debug, Clone)]
pub struct NoteChange {
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The version it has now; 0 when there is none.
    pub version: u64,
    /// What it is to say; none removes it.
    pub body: Option<Bytes>,
}

/// What a store has written since it was opened: how well appends share commits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Commits of journals that were waited for: of a file those that something else shared, too.
    pub commits: u64,
    /// Records of journals.
    pub records: u64,
    /// The bytes of those records.
    pub bytes: u64,
}

/// A record with its place in the journal, from 1.
pub type StoredRecord = (u64, Bytes);

/// Records of a journal in order, as [`Store::read`] gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// None behind the end of the journal.
    pub records: Vec<StoredRecord>,
    /// There was nothing behind them when they were read. Where it is not said there may be something.
    pub is_last: bool,
}

impl std::ops::Deref for Page {
    type Target = [StoredRecord];

    fn deref(&self) -> &[StoredRecord] {
        &self.records
    }
}

impl IntoIterator for Page {
    type Item = StoredRecord;
    type IntoIter = std::vec::IntoIter<StoredRecord>;

    fn into_iter(self) -> Self::IntoIter {
        self.records.into_iter()
    }
}

/// Keeps runs, journals and descriptors. Reads see what was acknowledged before.
pub trait Store: Send + Sync + 'static {
    /// Keeps a run with its first records.
    fn create(&self, run: NewRun) -> Pending<Created>;
    /// The id of the run that was made under this request key.
    fn by_key(&self, request_key: [u8; 16]) -> Pending<Option<String>>;
    /// Makes the caller the owner of a run, unless another one is that lives.
    fn claim(&self, run: String) -> Pending<Claimed>;
    /// Adds records to a journal.
    fn append(&self, append: Append) -> Pending<()>;
    /// Reads records in order; none are the end of what there is.
    fn read(&self, query: ReadQuery) -> Pending<Page>;
    /// A run by its id.
    fn run(&self, id: String) -> Pending<Option<StoredRun>>;
    /// Runs, the newest first; definitions and parameters are left out.
    fn runs(&self, query: RunsQuery) -> Pending<Vec<StoredRun>>;
    /// Keeps the descriptors of a service, beside older ones.
    fn put_descriptors(&self, service: String, descriptors: Bytes) -> Pending<DescriptorId>;
    /// The newest descriptors of every service that was ever seen.
    fn services(&self) -> Pending<Vec<(String, DescriptorId)>>;
    /// Descriptors by their name.
    fn descriptors(&self, id: DescriptorId) -> Pending<Option<Bytes>>;
    /// A note.
    fn note(&self, kind: &'static str, name: String) -> Pending<Option<Note>>;
    /// All notes of a kind, by name; [`NOTES_MAX`] at most.
    fn notes(&self, kind: &'static str) -> Pending<Vec<Note>>;
    /// Changes a note if it has the version that is named. False when it has another.
    fn change_note(&self, change: NoteChange) -> Pending<bool>;
    /// Forgets a run that has ended, with its journal.
    fn remove_run(&self, id: String) -> Pending<()>;
    /// What it has written; zeros where that is not counted.
    fn written(&self) -> Written {
        Written::default()
    }

    /// What other schedulers do, from now on. None when there can be no others: then nothing
    /// below is ever asked for.
    fn news(&self) -> Option<broadcast::Receiver<News>> {
        None
    }
    /// Says that this scheduler lives, for the time of a lease from now on.
    fn renew(&self, member: Member) -> Pending<Renewed> {
        let _alone = member;
        ready(Ok(Renewed::default())).boxed()
    }
    /// Gives back all that this scheduler has: others take it up at once.
    fn release(&self) -> Pending<()> {
        ready(Ok(())).boxed()
    }
    /// Schedulers that share the store, also some that have gone.
    fn members(&self) -> Pending<Vec<Member>> {
        ready(Ok(Vec::new())).boxed()
    }
    /// Runs that have not ended and that nobody owns who lives.
    fn free_runs(&self) -> Pending<Vec<FreeRun>> {
        ready(Ok(Vec::new())).boxed()
    }
    /// The runs of this scheduler that have not ended.
    fn own_runs(&self) -> Pending<Vec<String>> {
        ready(Ok(Vec::new())).boxed()
    }
    /// Puts a letter into the inbox of a run. None when the run has ended, or is not there.
    fn put_letter(&self, run: String, body: Bytes) -> Pending<Option<u64>> {
        let _nobody = (run, body);
        ready(Ok(None)).boxed()
    }
    /// The letters to a run that are not answered, in the order in which they came.
    fn letters(&self, run: String) -> Pending<Vec<Letter>> {
        let _none = run;
        ready(Ok(Vec::new())).boxed()
    }
    /// Answers a letter.
    fn answer_letter(&self, number: u64, answer: Bytes) -> Pending<()> {
        let _nobody = (number, answer);
        ready(Ok(())).boxed()
    }
    /// The answer to a letter, once there is one. It is then forgotten.
    fn take_answer(&self, number: u64) -> Pending<Option<Bytes>> {
        let _none = number;
        ready(Ok(None)).boxed()
    }
    /// The runs of this scheduler that have letters which are not answered.
    fn inboxes(&self) -> Pending<Vec<String>> {
        ready(Ok(Vec::new())).boxed()
    }
    /// Tells the other schedulers something, which may be lost.
    fn tell(&self, news: News) {
        let _nobody = news;
    }
    /// Takes a letter back, and its answer.
    fn drop_letter(&self, number: u64) -> Pending<()> {
        let _none = number;
        ready(Ok(())).boxed()
    }
}
