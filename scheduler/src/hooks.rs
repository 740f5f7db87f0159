//! Hooks: a run tells of its states by runs that call methods.
//!
//! A run with hooks has a note from before it is kept until its end is told: the place
//! in its journal up to which it was looked through. Each change of its state behind it
//! makes a run under a key of its own, so looking twice changes nothing.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use zex_pipeline::begin::Begin;
use zex_pipeline::definition;
use zex_pipeline::hook::{EVENT, Hook};
use zex_pipeline::record::Record;
use zex_worker::{Code, Status};

use crate::accept::{Wanted, accept, key_of, made_ms};
use crate::scheduler::{Shared, now};
use crate::store::{Note, NoteChange, ReadQuery, StoreError, StoredRun};

/// The kind of the notes.
const KIND: &str = "hook";

/// Bytes of journal that are read at once.
const PAGE_BYTES: usize = 64 << 10;

/// How long a run may be on its way into the store, in ms.
const UNBORN_MS: u64 = 60_000;

/// Notes down that a run has hooks.
pub(crate) async fn remember(shared: &Arc<Shared>, run: &str) -> Result<(), StoreError> {
    set(shared, run, 0, Some(0)).await.map(|_changed| ())
}

/// The run is not kept after all.
pub(crate) async fn forget(shared: &Arc<Shared>, run: &str) {
    if let Ok(Some(note)) = shared.store.note(KIND, run.to_owned()).await {
        // One that stays is removed when it is looked at.
        let _done = set(shared, run, note.version, None).await.is_ok();
    }
}

/// Looks through what a run has come to since, in a task of its own.
pub(crate) fn look(shared: &Arc<Shared>, run: &str) {
    let (shared, run) = (Arc::clone(shared), run.to_owned());
    tokio::spawn(async move {
        if let Ok(Some(note)) = shared.store.note(KIND, run).await {
            tell(&shared, note).await;
        }
    });
}

/// Looks at all runs with hooks: one whose scheduler died may have things to tell.
pub(crate) async fn sweep(shared: &Arc<Shared>) -> Result<(), StoreError> {
    for note in shared.store.notes(KIND).await? {
        tell(shared, note).await;
    }
    Ok(())
}

async fn tell(shared: &Arc<Shared>, note: Note) {
    let run = note.name.clone();
    if let Err(status) = told(shared, note).await {
        tracing::warn!(run, %status, "its hooks wait");
    }
}

async fn told(shared: &Arc<Shared>, note: Note) -> Result<(), Status> {
    let broken = |error: StoreError| crate::service::store_status(&error);
    let (run, mut version) = (note.name, note.version);
    let Some(row) = shared.store.run(run.clone()).await.map_err(broken)? else {
        if made_ms(&run).is_none_or(|made| made + UNBORN_MS < now().0) {
            set(shared, &run, version, None).await.map_err(broken)?;
        }
        return Ok(());
    };
    let hooks = definition::parse(&row.definition).map(|found| found.hooks).unwrap_or_default();
    let mut after: u64 =
        std::str::from_utf8(&note.body).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    loop {
        let query = ReadQuery { run: run.clone(), after, events: true, max_bytes: PAGE_BYTES };
        let page = shared.store.read(query).await.map_err(broken)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        let mut ended = false;
        for (offset, body) in &page.records {
            let Ok(Record::Run { at_ms, state, reason }) = Record::decode(body) else { continue };
            ended |= state.is_end();
            let event = json!({
                "run_id": &run, "name": &row.name, "state": state.name(), "reason": reason,
                "at_ms": at_ms,
            });
            let wanted = hooks.iter().enumerate().filter(|(_, hook)| hook.on.contains(&state));
            for (index, hook) in wanted {
                start(shared, &row, hook, (*offset, index), event.clone()).await?;
            }
        }
        after = *last;
        let next = (!ended).then_some(after);
        if !set(shared, &run, version, next).await.map_err(broken)? || ended {
            // Somebody else looks through it as well: what he makes is the same.
            return Ok(());
        }
        version += 1;
    }
}

/// Makes the run of a hook.
async fn start(
    shared: &Arc<Shared>,
    row: &StoredRun,
    hook: &Hook,
    (offset, index): (u64, usize),
    event: Value,
) -> Result<(), Status> {
    let given = serde_json::from_str::<Map<String, Value>>(&row.parameters_json);
    let mut parameters = given.unwrap_or_default();
    parameters.insert(EVENT.to_owned(), event);
    let wanted = Wanted {
        definition: hook.text.clone(),
        parameters_json: Value::Object(parameters).to_string(),
        request_key: key_of(&["hook", &row.id, &offset.to_string(), &index.to_string()]),
        begin: Begin { by: format!("hook of run {}", row.id), ..Begin::default() },
    };
    // Boxed: a hook's run is accepted like any other, and that looks at hooks.
    match Box::pin(accept(shared, wanted)).await {
        Ok(_made) => Ok(()),
        Err(status) if matches!(status.code, Code::ResourceExhausted | Code::Unavailable) => {
            Err(status)
        }
        Err(status) => {
            tracing::warn!(run = row.id, %status, "a hook of it is not accepted");
            Ok(())
        }
    }
}

async fn set(
    shared: &Arc<Shared>,
    run: &str,
    version: u64,
    after: Option<u64>,
) -> Result<bool, StoreError> {
    let body = after.map(|after| Bytes::from(after.to_string()));
    let name = run.to_owned();
    shared.store.change_note(NoteChange { kind: KIND, name, version, body }).await
}
