//! The store that forgets: everything in memory, for tests and for pipelines that
//! need not outlive the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::{FutureExt as _, ready};

use super::{
    Append, Claimed, Created, DescriptorId, NOTES_MAX, NewRecord, NewRun, Note, NoteChange, Page,
    Pending, RUNS_LISTED_MAX, ReadQuery, RunsQuery, Store, StoreError, StoredRun,
};

/// A store in memory. Clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    runs: BTreeMap<String, Run>,
    keys: BTreeMap<[u8; 16], String>,
    services: BTreeMap<String, DescriptorId>,
    descriptors: BTreeMap<DescriptorId, Bytes>,
    notes: BTreeMap<(&'static str, String), Note>,
}

#[derive(Debug)]
struct Run {
    row: StoredRun,
    epoch: u64,
    journal: Vec<(Bytes, bool)>,
}

impl MemoryStore {
    /// Every answer is ready at once: nothing here waits.
    fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Kept) -> Result<T, StoreError>,
    ) -> Pending<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        ready(act(&mut kept)).boxed()
    }
}

impl Kept {
    fn run(&mut self, id: &str) -> Result<&mut Run, StoreError> {
        self.runs.get_mut(id).ok_or_else(|| StoreError::NoRun(id.to_owned()))
    }
}

fn keep(records: Vec<NewRecord>) -> impl Iterator<Item = (Bytes, bool)> {
    records.into_iter().map(|record| (record.body, record.event))
}

impl Store for MemoryStore {
    fn create(&self, run: NewRun) -> Pending<Created> {
        self.with(|kept| {
            if let Some(id) = kept.keys.get(&run.request_key) {
                return Ok(Created::Known { id: id.clone() });
            }
            kept.keys.insert(run.request_key, run.id.clone());
            let row = StoredRun {
                id: run.id.clone(),
                name: run.name,
                state: run.state,
                reason: String::new(),
                created_ms: run.created_ms,
                ended_ms: None,
                definition: run.definition,
                parameters_json: run.parameters_json,
                descriptors: run.descriptors,
                steps: None,
            };
            let journal = keep(run.records).collect();
            kept.runs.insert(run.id, Run { row, epoch: 0, journal });
            Ok(Created::New)
        })
    }

    fn by_key(&self, request_key: [u8; 16]) -> Pending<Option<String>> {
        self.with(|kept| Ok(kept.keys.get(&request_key).cloned()))
    }

    fn claim(&self, run: String) -> Pending<Claimed> {
        self.with(|kept| {
            let run = kept.run(&run)?;
            run.epoch += 1;
            Ok(Claimed::Ours { epoch: run.epoch })
        })
    }

    fn append(&self, append: Append) -> Pending<()> {
        self.with(|kept| {
            let run = kept.run(&append.run)?;
            if run.epoch != append.epoch {
                return Err(StoreError::Fenced(append.run));
            }
            let has = run.journal.len() as u64;
            if has != append.after {
                return Err(StoreError::Gap { run: append.run, has, after: append.after });
            }
            run.journal.extend(keep(append.records));
            if let Some(new) = append.state {
                (run.row.state, run.row.reason) = (new.state, new.reason);
                run.row.ended_ms = new.ended_ms.or(run.row.ended_ms);
                run.row.steps = new.steps.or(run.row.steps.take());
            }
            Ok(())
        })
    }

    fn read(&self, query: ReadQuery) -> Pending<Page> {
        self.with(|kept| {
            let run = kept.run(&query.run)?;
            let mut bytes = 0;
            let skip = usize::try_from(query.after).unwrap_or(usize::MAX);
            let records = run.journal.iter().enumerate().skip(skip);
            let records = records.filter(|(_, (_, event))| *event || !query.events);
            let mut is_last = true;
            let page = records.take_while(|(_, (body, _))| {
                let first = bytes == 0;
                bytes += body.len().max(1);
                is_last = first || bytes <= query.max_bytes;
                is_last
            });
            let records = page.map(|(at, (body, _))| (at as u64 + 1, body.clone())).collect();
            Ok(Page { records, is_last })
        })
    }

    fn run(&self, id: String) -> Pending<Option<StoredRun>> {
        self.with(|kept| Ok(kept.runs.get(&id).map(|run| run.row.clone())))
    }

    fn runs(&self, query: RunsQuery) -> Pending<Vec<StoredRun>> {
        self.with(|kept| {
            let older = |id: &str| query.before.as_deref().is_none_or(|before| id < before);
            let fits = |row: &StoredRun| {
                older(&row.id)
                    && query.name.as_ref().is_none_or(|name| *name == row.name)
                    && !(query.unfinished && row.ended_ms.is_some())
            };
            let rows = kept.runs.values().rev().map(|run| &run.row).filter(|row| fits(row));
            let listed = |row: &StoredRun| StoredRun {
                definition: String::new(),
                parameters_json: String::new(),
                ..row.clone()
            };
            Ok(rows.take(query.limit.min(RUNS_LISTED_MAX)).map(listed).collect())
        })
    }

    fn put_descriptors(&self, service: String, descriptors: Bytes) -> Pending<DescriptorId> {
        self.with(|kept| {
            let id = DescriptorId::of(&descriptors);
            kept.descriptors.insert(id, descriptors);
            kept.services.insert(service, id);
            Ok(id)
        })
    }

    fn services(&self) -> Pending<Vec<(String, DescriptorId)>> {
        self.with(|kept| Ok(kept.services.iter().map(|(name, id)| (name.clone(), *id)).collect()))
    }

    fn descriptors(&self, id: DescriptorId) -> Pending<Option<Bytes>> {
        self.with(|kept| Ok(kept.descriptors.get(&id).cloned()))
    }

    fn note(&self, kind: &'static str, name: String) -> Pending<Option<Note>> {
        self.with(|kept| Ok(kept.notes.get(&(kind, name)).cloned()))
    }

    fn notes(&self, kind: &'static str) -> Pending<Vec<Note>> {
        self.with(|kept| {
            let notes = kept.notes.range((kind, String::new())..);
            let notes = notes.take_while(|((of, _), _)| *of == kind);
            Ok(notes.map(|(_, note)| note.clone()).take(NOTES_MAX).collect())
        })
    }

    fn change_note(&self, change: NoteChange) -> Pending<bool> {
        self.with(|kept| {
            let NoteChange { kind, name, version, body } = change;
            let key = (kind, name.clone());
            if kept.notes.get(&key).map_or(0, |note| note.version) != version {
                return Ok(false);
            }
            match body {
                Some(body) => {
                    kept.notes.insert(key, Note { name, version: version + 1, body });
                }
                None => {
                    kept.notes.remove(&key);
                }
            }
            Ok(true)
        })
    }

    fn remove_run(&self, id: String) -> Pending<()> {
        self.with(|kept| {
            if kept.runs.get(&id).is_some_and(|run| run.row.ended_ms.is_some()) {
                kept.runs.remove(&id);
                kept.keys.retain(|_, run| *run != id);
            }
            Ok(())
        })
    }
}
