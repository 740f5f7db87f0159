//! How long runs are kept after their end: as their definition says with `keep`; those
//! that say nothing stay.

use std::sync::Arc;

use bytes::Bytes;

use crate::scheduler::{Shared, now};
use crate::store::{NoteChange, StoreError};

/// The kind of the notes: the name is the run's, the body when it is forgotten.
const KIND: &str = "keep";

/// Notes down that a run that ends now is forgotten later. Before its end is recorded,
/// so that it is not kept for ever when the process dies in between.
pub(crate) async fn note(shared: &Arc<Shared>, run: &str, keep_ms: u64) -> Result<(), StoreError> {
    let (name, due) = (run.to_owned(), now().plus_ms(keep_ms).0.to_string());
    let note = shared.store.note(KIND, name.clone()).await?;
    let version = note.map_or(0, |note| note.version);
    let change = NoteChange { kind: KIND, name, version, body: Some(Bytes::from(due)) };
    shared.store.change_note(change).await.map(|_changed| ())
}

/// Forgets the runs whose time has come.
pub(crate) async fn sweep(shared: &Arc<Shared>) -> Result<(), StoreError> {
    for note in shared.store.notes(KIND).await? {
        let due = std::str::from_utf8(&note.body).ok().and_then(|text| text.parse::<u64>().ok());
        if due.is_some_and(|due| due > now().0) {
            continue;
        }
        let row = shared.store.run(note.name.clone()).await?;
        if row.is_some_and(|row| !row.state.is_end()) {
            // It was on its way to its end and has not come there yet.
            continue;
        }
        shared.store.remove_run(note.name.clone()).await?;
        tracing::info!(run = note.name, "a run is not kept any longer");
        let (name, version) = (note.name, note.version);
        shared.store.change_note(NoteChange { kind: KIND, name, version, body: None }).await?;
    }
    Ok(())
}
