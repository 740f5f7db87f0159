//! Pipelines that add steps to others: stored like other pipelines, put into every run of
//! theirs that is recorded from then on.
//!
//! ```text
//!  zex pipeline save ─▶ a note ─▶ accept: the run's own definition has the steps
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use zex_pipeline::catalog::Catalog;
use zex_pipeline::definition::{self, Definition};
use zex_pipeline::extend::{self, Extension};
use zex_pipeline::plan::Plan;
use zex_pipeline::problem::{Place, Problems};
use zex_spec::proto;
use zex_worker::{Code, Status};

use crate::saved;
use crate::scheduler::Shared;
use crate::service::store_status;
use crate::store::{NOTES_MAX, NoteChange, StoreError};

/// The kind of the notes.
pub(crate) const KIND: &str = "extension";

/// The most that are stored: each run that is recorded looks through them.
const EXTENSIONS_MAX: usize = 100;

/// A definition, and the steps of those that extend it.
pub(crate) struct Extended {
    /// What is kept with the run.
    pub(crate) text: String,
    /// The same, read.
    pub(crate) definition: Definition,
    own: usize,
    by: Vec<(String, Arc<str>)>,
}

impl Extended {
    /// Reads a definition and puts in what extends it.
    pub(crate) async fn read(shared: &Shared, text: &str) -> Result<Self, Problems> {
        let definition = definition::parse(text)?;
        if let Some(extends) = &definition.extends {
            let why = format!(
                "this adds steps to runs of `{}`: `zex pipeline save FILE` stores it, and it does not run by itself",
                extends.pipeline
            );
            return Err(extends.place.problem(why).into());
        }
        // A run without steps that somebody added to it would be worse than none.
        let all = all(shared).await.map_err(|error| {
            let why = format!("what extends it cannot be read now ({error}); try again");
            Problems::from(Place::root().problem(why))
        })?;
        Self::of(text, definition, of(&all, None))
    }

    /// A definition with these that extend it; those of other pipelines are left out.
    fn of(
        text: &str,
        definition: Definition,
        all: Vec<(String, Arc<str>, String)>,
    ) -> Result<Self, Problems> {
        let wanted = all.into_iter().filter(|(_, _, pipeline)| *pipeline == definition.name);
        let by: Vec<(String, Arc<str>)> = wanted.map(|(name, text, _)| (name, text)).collect();
        let unchanged = by.is_empty();
        let mut extended = Self { text: text.to_owned(), definition, own: 0, by };
        if unchanged {
            return Ok(extended);
        }
        extended.own = extend::top_steps(text);
        extended.text = extend::extended(text, &extended.extensions())?;
        extended.definition =
            definition::parse(&extended.text).map_err(|problems| extended.named(&problems))?;
        Ok(extended)
    }

    fn extensions(&self) -> Vec<Extension<'_>> {
        self.by.iter().map(|(name, text)| Extension { name, text }).collect()
    }

    /// What is wrong, named by the text in which it stands.
    pub(crate) fn named(&self, problems: &Problems) -> Problems {
        named(problems, self.own, &self.by)
    }

    /// The plan of it.
    pub(crate) fn plan(self, catalog: &Catalog) -> Result<(Plan, String), Problems> {
        let Self { text, definition, own, by } = self;
        let plan = Plan::new(definition, catalog);
        plan.map(|plan| (plan, text)).map_err(|problems| named(&problems, own, &by))
    }
}

fn named(problems: &Problems, own: usize, by: &[(String, Arc<str>)]) -> Problems {
    let by: Vec<Extension<'_>> = by.iter().map(|(name, text)| Extension { name, text }).collect();
    extend::named(problems, own, &by)
}

/// All that are stored, by name.
pub(crate) async fn all(shared: &Shared) -> Result<BTreeMap<String, Arc<str>>, StoreError> {
    let notes = shared.store.notes(KIND).await?;
    let text = |body: &Bytes| Arc::from(String::from_utf8_lossy(body).as_ref());
    Ok(notes.into_iter().map(|note| (note.name, text(&note.body))).collect())
}

/// Each with the pipeline that it extends; `without` is left out.
fn of(all: &BTreeMap<String, Arc<str>>, without: Option<&str>) -> Vec<(String, Arc<str>, String)> {
    let others = all.iter().filter(|(name, _)| Some(name.as_str()) != without);
    let each = others.filter_map(|(name, text)| {
        let extends = definition::parse(text).ok()?.extends?;
        Some((name.clone(), Arc::clone(text), extends.pipeline))
    });
    each.collect()
}

/// Whether a pipeline that is to be stored goes together with all that extends it.
pub(crate) async fn check(shared: &Shared, text: &str, catalog: &Catalog) -> Result<(), Status> {
    let all = all(shared).await.map_err(|error| store_status(&error))?;
    let parsed = definition::parse(text).map_err(|why| invalid(&why))?;
    let extended = Extended::of(text, parsed, of(&all, None)).map_err(|why| invalid(&why))?;
    extended.plan(catalog).map(drop).map_err(|why| invalid(&why))
}

/// Stores one. It is checked against the pipeline that it extends, if that is stored, and
/// with each run of it in any case.
pub(crate) async fn save(
    shared: &Shared,
    text: String,
    parsed: &Definition,
    pipeline: &str,
) -> Result<proto::SavedPipeline, Status> {
    let broken = |error: StoreError| store_status(&error);
    let name = parsed.name.clone();
    let known = all(shared).await.map_err(broken)?;
    if known.len() >= EXTENSIONS_MAX.min(NOTES_MAX) && !known.contains_key(&name) {
        let text = format!("{EXTENSIONS_MAX} pipelines are stored that extend others; remove some");
        return Err(Status::new(Code::ResourceExhausted, text));
    }
    let pipelines = saved::all(shared).await.map_err(broken)?;
    if let Some(base) = pipelines.get(pipeline).cloned() {
        let mut all = of(&known, Some(&name));
        all.push((name.clone(), Arc::from(text.as_str()), pipeline.to_owned()));
        let mut catalog = (*shared.known.now().0).clone();
        catalog.set_pipelines(pipelines);
        let read = definition::parse(&base).map_err(|why| invalid(&why))?;
        let extended = Extended::of(&base, read, all).map_err(|why| invalid(&why))?;
        extended.plan(&catalog).map_err(|why| invalid(&why))?;
    }
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

fn invalid(problems: &Problems) -> Status {
    Status::new(Code::InvalidArgument, problems.to_string())
}
