//! A store on a bad way: some requests do not arrive, and some answers are lost.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A store of which every third write is not done, and every fifth is done and not answered.
pub(super) struct Shaky {
    store: SharedStore,
    writes: AtomicU64,
}

impl Shaky {
    pub(super) fn new(store: SharedStore) -> Self {
        Self { store, writes: AtomicU64::new(0) }
    }

    fn write<T: Send + 'static>(&self, act: impl FnOnce(&SharedStore) -> Pending<T>) -> Pending<T> {
        let write = self.writes.fetch_add(1, Ordering::Relaxed);
        let lost = |what: &str| Err(StoreError::Unreachable(format!("the {what} was lost")));
        if write.is_multiple_of(3) {
            return ready(lost("request")).boxed();
        }
        let done = act(&self.store);
        async move {
            let done = done.await;
            if write.is_multiple_of(5) { lost("answer") } else { done }
        }
        .boxed()
    }
}

impl Store for Shaky {
    fn create(&self, run: NewRun) -> Pending<Created> {
        self.write(|store| store.create(run))
    }
    fn by_key(&self, request_key: [u8; 16]) -> Pending<Option<String>> {
        self.store.by_key(request_key)
    }
    fn claim(&self, run: String) -> Pending<Claimed> {
        self.write(|store| store.claim(run))
    }
    fn append(&self, append: Append) -> Pending<()> {
        self.write(|store| store.append(append))
    }
    fn read(&self, query: ReadQuery) -> Pending<Page> {
        self.store.read(query)
    }
    fn run(&self, id: String) -> Pending<Option<StoredRun>> {
        self.store.run(id)
    }
    fn runs(&self, query: RunsQuery) -> Pending<Vec<StoredRun>> {
        self.store.runs(query)
    }
    fn put_descriptors(&self, service: String, descriptors: Bytes) -> Pending<DescriptorId> {
        self.store.put_descriptors(service, descriptors)
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
        self.write(|store| store.change_note(change))
    }
    fn remove_run(&self, id: String) -> Pending<()> {
        self.store.remove_run(id)
    }
}
