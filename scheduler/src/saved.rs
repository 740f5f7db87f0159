//! Pipelines that are stored under their names, for steps of others to run. Those that extend
//! others are of a kind of their own, see `extensions`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use zex_pipeline::definition;
use zex_pipeline::plan::Plan;
use zex_pipeline::problem::nearest;
use zex_spec::proto;
use zex_worker::{Code, Status};

use crate::extensions;
use crate::prepare::Prepared;
use crate::scheduler::Shared;
use crate::service::store_status;
use crate::store::{NOTES_MAX, NoteChange, StoreError};

/// The kind of the notes.
const KIND: &str = "pipeline";

/// The most pipelines that are stored: every check of a pipeline knows them all.
const SAVED_MAX: usize = 1000;

/// All stored pipelines, by name.
pub(crate) async fn all(shared: &Shared) -> Result<BTreeMap<String, Arc<str>>, StoreError> {
    let notes = shared.store.notes(KIND).await?;
    let text = |body: &Bytes| Arc::from(String::from_utf8_lossy(body).as_ref());
    Ok(notes.into_iter().map(|note| (note.name, text(&note.body))).collect())
}

/// A stored pipeline.
pub(crate) async fn definition(shared: &Shared, name: &str) -> Result<String, Status> {
    let note = shared.store.note(KIND, name.to_owned()).await;
    let note = note.map_err(|error| store_status(&error))?;
    let note = note.ok_or_else(|| {
        Status::new(Code::NotFound, format!("there is no stored pipeline `{name}` any more"))
    })?;
    Ok(String::from_utf8_lossy(&note.body).into_owned())
}

/// Stores a pipeline under its name.
pub(crate) async fn save(
    shared: &Shared,
    asked: proto::SavePipelineRequest,
) -> Result<proto::SavedPipeline, Status> {
    let invalid = |why: String| Status::new(Code::InvalidArgument, why);
    let broken = |error: StoreError| store_status(&error);
    let text = asked.definition;
    let parsed = definition::parse(&text).map_err(|why| invalid(why.to_string()))?;
    let name = parsed.name.clone();
    Prepared::ask(shared, &parsed).await;
    let taken = |kind: &str| {
        let text = format!(
            "`{name}` is stored already, as {kind}; `zex pipeline forget {name}` removes it"
        );
        Err(Status::new(Code::AlreadyExists, text))
    };
    if let Some(extends) = &parsed.extends {
        return match all(shared).await.map_err(broken)?.contains_key(&name) {
            true => taken("a pipeline"),
            false => extensions::save(shared, text, &parsed, &extends.pipeline).await,
        };
    }
    if extensions::all(shared).await.map_err(broken)?.contains_key(&name) {
        return taken("one that extends another");
    }
    let mut known = all(shared).await.map_err(broken)?;
    if known.len() >= SAVED_MAX.min(NOTES_MAX) && !known.contains_key(&name) {
        let text = format!("{SAVED_MAX} pipelines are stored; remove some");
        return Err(Status::new(Code::ResourceExhausted, text));
    }
    // Checked as if it were stored: one that runs itself is refused.
    known.insert(name.clone(), Arc::from(text.as_str()));
    let mut catalog = (*shared.known.now().0).clone();
    catalog.set_pipelines(known);
    Plan::new(parsed, &catalog).map_err(|why| invalid(why.to_string()))?;
    extensions::check(shared, &text, &catalog).await?;
    loop {
        let note = shared.store.note(KIND, name.clone()).await.map_err(broken)?;
        let version = note.map_or(0, |note| note.version);
        let body = Some(Bytes::from(text.clone()));
        let change = NoteChange { kind: KIND, name: name.clone(), version, body };
        if shared.store.change_note(change).await.map_err(broken)? {
            return Ok(proto::SavedPipeline { name, definition: text });
        }
    }
}

/// Lists the stored pipelines.
pub(crate) async fn list(shared: &Shared) -> Result<proto::ListPipelinesReply, Status> {
    let mut all = all(shared).await.map_err(|error| store_status(&error))?;
    all.extend(extensions::all(shared).await.map_err(|error| store_status(&error))?);
    let view = |(name, text): (String, Arc<str>)| proto::SavedPipeline {
        name,
        definition: text.to_string(),
    };
    Ok(proto::ListPipelinesReply { pipelines: all.into_iter().map(view).collect() })
}

/// Removes a stored pipeline. Runs that are under way have what they need.
pub(crate) async fn remove(
    shared: &Shared,
    asked: proto::RemovePipelineRequest,
) -> Result<proto::SavedPipeline, Status> {
    let broken = |error: StoreError| store_status(&error);
    let name = asked.name;
    loop {
        let mut all = all(shared).await.map_err(broken)?;
        let extends = extensions::all(shared).await.map_err(broken)?;
        let kind = if extends.contains_key(&name) { extensions::KIND } else { KIND };
        all.extend(extends);
        let note = shared.store.note(kind, name.clone()).await.map_err(broken)?;
        let Some(note) = note else {
            let near = nearest(&name, all.keys().map(String::as_str));
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let text = format!("there is no stored pipeline `{name}`{near}");
            return Err(Status::new(Code::NotFound, text));
        };
        let definition = String::from_utf8_lossy(&note.body).into_owned();
        let version = note.version;
        let change = NoteChange { kind, name: name.clone(), version, body: None };
        if shared.store.change_note(change).await.map_err(broken)? {
            return Ok(proto::SavedPipeline { name, definition });
        }
    }
}
