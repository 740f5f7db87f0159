//! A store that has bad days.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::Semaphore;
use zex_scheduler::store::{
    Append, Claimed, Created, DescriptorId, MemoryStore, NewRun, Note, NoteChange, Page, Pending,
    ReadQuery, RunsQuery, Store, StoreError, StoredRun,
};

/// A store in memory that can be full for a while.
#[derive(Default)]
pub(crate) struct Narrow {
    store: MemoryStore,
    pub(crate) full: AtomicBool,
    /// There is no room for notes, and for everything else there is.
    pub(crate) no_notes: AtomicBool,
    /// Whoever claims a run finds a bug.
    pub(crate) panics: AtomicBool,
    /// Where it is set, readers of events wait with what they have read for a permit of it.
    pub(crate) late: OnceLock<Arc<Semaphore>>,
    /// Readers of events that have waited or wait.
    pub(crate) readers: AtomicU32,
    /// Appends and notes that found it full.
    pub(crate) refused: AtomicU32,
}

impl Narrow {
    fn room<T: Send + 'static>(&self, act: impl FnOnce(&MemoryStore) -> Pending<T>) -> Pending<T> {
        self.room_if(self.full.load(Ordering::SeqCst), act)
    }

    fn room_if<T: Send + 'static>(
        &self,
        full: bool,
        act: impl FnOnce(&MemoryStore) -> Pending<T>,
    ) -> Pending<T> {
        if full {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Box::pin(async { Err(StoreError::Full("no room".to_owned())) });
        }
        act(&self.store)
    }
}

impl Store for Narrow {
    fn create(&self, run: NewRun) -> Pending<Created> {
        self.room(|store| store.create(run))
    }
    fn by_key(&self, request_key: [u8; 16]) -> Pending<Option<String>> {
        self.store.by_key(request_key)
    }
    fn claim(&self, run: String) -> Pending<Claimed> {
        assert!(!self.panics.load(Ordering::SeqCst), "as told");
        self.room(|store| store.claim(run))
    }
    fn append(&self, append: Append) -> Pending<()> {
        self.room(|store| store.append(append))
    }
    fn read(&self, query: ReadQuery) -> Pending<Page> {
        let (events, page) = (query.events, self.store.read(query));
        let Some(late) = self.late.get().filter(|_| events).cloned() else { return page };
        self.readers.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let page = page.await;
            let _waited = late.acquire().await.is_ok();
            page
        })
    }
    fn run(&self, id: String) -> Pending<Option<StoredRun>> {
        self.store.run(id)
    }
    fn runs(&self, query: RunsQuery) -> Pending<Vec<StoredRun>> {
        self.store.runs(query)
    }
    fn put_descriptors(&self, service: String, descriptors: Bytes) -> Pending<DescriptorId> {
        self.room(|store| store.put_descriptors(service, descriptors))
    }
    fn services(&self) -> Pending<Vec<(String, DescriptorId)>> {
        self.store.services()
    }
    fn descriptors(&self, id: DescriptorId) -> Pending<Option<Bytes>> {
        self.store.descriptors(id)
    }
    fn note(&self, kind: &'static str, name: String) -> Pending<Option<Note>> {
        self.store.note(kind, name)
    }
    fn notes(&self, kind: &'static str) -> Pending<Vec<Note>> {
        self.store.notes(kind)
    }
    fn change_note(&self, change: NoteChange) -> Pending<bool> {
        let full = self.full.load(Ordering::SeqCst) || self.no_notes.load(Ordering::SeqCst);
        self.room_if(full, |store| store.change_note(change))
    }
    fn remove_run(&self, id: String) -> Pending<()> {
        self.store.remove_run(id)
    }
}
