//! The store in a PostgreSQL database, which several schedulers share.
//!
//! ```text
//!  appends ─▶ queue ─▶ writer: one connection; all that waits is one statement, one commit
//!  reads, claims, notes, letters ─▶ pool of connections, a statement each
//!  link: LISTEN ─▶ News, to whoever asked for it; NOTIFY of events, many at once
//! ```
//!
//! Whatever changes a run is **one statement**, so a scheduler that is frozen at any point
//! holds no lock that others wait for. An append takes effect only where the row of its run
//! has its epoch and its place; a claim counts the epoch up in the same row. So an owner
//! whose run was taken writes nothing more, however late it wakes up.
//!
//! A scheduler's lease is one row that it renews: a run belongs to the scheduler that is
//! written in it while that one's row is fresh, by the clock of the database.
//!
//! Parts: this file (the store) · `connect` (reaching the database, what its errors mean) ·
//! `schema` (tables, migrations) · `writer` (group commit) · `link` (news) · `statements`, `tls`,
//! `notes`, `shared` (what each operation does).

mod connect;
mod link;
mod notes;
mod schema;
mod shared;
mod statements;
mod tls;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use deadpool_postgres::Object;
use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::broadcast;

use super::counts::{Counts, size};
use super::{
    Append, Claimed, Created, DescriptorId, FreeRun, Letter, Member, NewRun, News, Note,
    NoteChange, Page, Pending, ReadQuery, Renewed, RunsQuery, Store, StoreError, StoredRun,
    Written,
};
use connect::{Database, Failure};
use link::Link;
use writer::Writer;

/// How a database is used.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// How people call the scheduler: shown in the database's list of connections.
    pub name: String,
    /// Authorities that may vouch for a database whose URL says `sslmode=require`, in PEM; those of
    /// the system if there are none here.
    pub authorities: Option<Vec<u8>>,
}

/// A store in a database. Clones are the same store, and the same scheduler to others.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    writer: Writer,
    link: Link,
    counts: Arc<Counts>,
    /// Which scheduler this is, of all that share the database.
    me: Arc<str>,
}

impl PostgresStore {
    /// Reaches a database by its URL, and makes the tables in it when there are none. Its
    /// tasks run on the tokio runtime that this is called in.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] when it does not answer, [`StoreError::Unusable`] when it
    /// is not a store of ours, or cannot be one. It is then left as it is.
    pub async fn connect(url: &str, options: &PostgresOptions) -> Result<Self, StoreError> {
        let database = Database::new(url, options)?;
        schema::open(&database).await?;
        let mut chance = [0; 8];
        getrandom::fill(&mut chance)
            .map_err(|error| database.unusable(format!("no random numbers: {error}")))?;
        let me = format!("{:016x}", u64::from_be_bytes(chance)).into();
        let link = Link::start(&database);
        let counts = Arc::default();
        let writer = Writer::start(&database, link.sender(), &counts);
        Ok(Self { inner: Arc::new(Inner { database, writer, link, counts, me }) })
    }

    /// Where the database is, without the password.
    pub fn place(&self) -> &str {
        self.inner.database.place()
    }

    /// Runs a statement on a connection of the pool.
    fn ask<T: Send + 'static>(
        &self,
        act: impl for<'a> FnOnce(&'a Object) -> BoxFuture<'a, Result<T, Failure>> + Send + 'static,
    ) -> Pending<T> {
        let inner = Arc::clone(&self.inner);
        async move { inner.database.with(act).await }.boxed()
    }

    fn me(&self) -> Arc<str> {
        Arc::clone(&self.inner.me)
    }
}

impl Store for PostgresStore {
    fn create(&self, run: NewRun) -> Pending<Created> {
        let (me, size) = (self.me(), size(&run.records));
        let counts = Arc::clone(&self.inner.counts);
        let made = self.ask(move |client| statements::create(client, me, run).boxed());
        async move {
            let made = made.await?;
            if made == Created::New {
                counts.commit();
                counts.wrote(size);
            }
            Ok(made)
        }
        .boxed()
    }

    fn by_key(&self, request_key: [u8; 16]) -> Pending<Option<String>> {
        self.ask(move |client| statements::by_key(client, request_key).boxed())
    }

    fn claim(&self, run: String) -> Pending<Claimed> {
        let me = self.me();
        self.ask(move |client| shared::claim(client, me, run).boxed())
    }

    fn append(&self, append: Append) -> Pending<()> {
        let inner = Arc::clone(&self.inner);
        async move { inner.writer.append(append).await }.boxed()
    }

    fn written(&self) -> Written {
        self.inner.counts.read()
    }

    fn read(&self, query: ReadQuery) -> Pending<Page> {
        self.ask(move |client| statements::read(client, query).boxed())
    }

    fn run(&self, id: String) -> Pending<Option<StoredRun>> {
        self.ask(move |client| statements::run(client, text(&id)).boxed())
    }

    fn runs(&self, mut query: RunsQuery) -> Pending<Vec<StoredRun>> {
        query.name = query.name.as_deref().map(text);
        query.before = query.before.as_deref().map(text);
        self.ask(move |client| statements::runs(client, query).boxed())
    }

    fn put_descriptors(&self, service: String, descriptors: Bytes) -> Pending<DescriptorId> {
        self.ask(move |client| notes::put_descriptors(client, service, descriptors).boxed())
    }

    fn services(&self) -> Pending<Vec<(String, DescriptorId)>> {
        self.ask(move |client| notes::services(client).boxed())
    }

    fn descriptors(&self, id: DescriptorId) -> Pending<Option<Bytes>> {
        self.ask(move |client| notes::descriptors(client, id).boxed())
    }

    fn note(&self, kind: &'static str, name: String) -> Pending<Option<Note>> {
        self.ask(move |client| notes::note(client, kind, text(&name)).boxed())
    }

    fn notes(&self, kind: &'static str) -> Pending<Vec<Note>> {
        self.ask(move |client| notes::notes(client, kind).boxed())
    }

    fn change_note(&self, change: NoteChange) -> Pending<bool> {
        self.ask(move |client| notes::change(client, change).boxed())
    }

    fn remove_run(&self, id: String) -> Pending<()> {
        self.ask(move |client| statements::remove_run(client, id).boxed())
    }

    fn news(&self) -> Option<broadcast::Receiver<News>> {
        Some(self.inner.link.news())
    }

    fn renew(&self, member: Member) -> Pending<Renewed> {
        let inner = Arc::clone(&self.inner);
        async move {
            let me = Arc::clone(&inner.me);
            inner.database.with_lease(|client| shared::renew(client, me, member).boxed()).await
        }
        .boxed()
    }

    fn release(&self) -> Pending<()> {
        let me = self.me();
        self.ask(move |client| shared::release(client, me).boxed())
    }

    fn members(&self) -> Pending<Vec<Member>> {
        self.ask(move |client| shared::members(client).boxed())
    }

    fn free_runs(&self) -> Pending<Vec<FreeRun>> {
        let me = self.me();
        self.ask(move |client| shared::free_runs(client, me).boxed())
    }

    fn own_runs(&self) -> Pending<Vec<String>> {
        let me = self.me();
        self.ask(move |client| shared::own_runs(client, me).boxed())
    }

    fn put_letter(&self, run: String, body: Bytes) -> Pending<Option<u64>> {
        self.ask(move |client| shared::put_letter(client, run, body).boxed())
    }

    fn letters(&self, run: String) -> Pending<Vec<Letter>> {
        self.ask(move |client| shared::letters(client, run).boxed())
    }

    fn answer_letter(&self, number: u64, answer: Bytes) -> Pending<()> {
        self.ask(move |client| shared::answer_letter(client, number, answer).boxed())
    }

    fn take_answer(&self, number: u64) -> Pending<Option<Bytes>> {
        self.ask(move |client| shared::take_answer(client, number).boxed())
    }

    fn inboxes(&self) -> Pending<Vec<String>> {
        let me = self.me();
        self.ask(move |client| shared::inboxes(client, me).boxed())
    }

    fn tell(&self, news: News) {
        self.inner.link.tell(news);
    }

    fn drop_letter(&self, number: u64) -> Pending<()> {
        self.ask(move |client| shared::drop_letter(client, number).boxed())
    }
}

/// PostgreSQL has no u64. Times and counts are far below the limit of i64.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Its text has no zero bytes; an error message from somewhere may, and what people look for.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
