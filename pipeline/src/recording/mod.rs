//! Calls written down as a pipeline: what a recorder keeps instead of making them, or beside it.
//!
//! ```text
//!  a call: method, bytes, what is said of it ─ check against the descriptors ─▶ a step
//!  Recording: head, step, step, … ─ definition ─▶ the text that `zex.Pipelines/Run` takes
//!  a file, and a step ─ append ─▶ the file with one step more, all else untouched
//! ```
//!
//! Each call is checked when it comes, as the whole pipeline will be: so whoever records hears of a
//! mistake where he made it. The result is the definition's language and nothing else.
//!
//! Used by the gateway (calls through its port) and by `zex call --record`.

mod request;
mod text;

use bytes::Bytes;
use prost_reflect::MethodDescriptor;
use serde_json::{Map, Value as Json};

pub use self::request::{escape, literal};
pub use self::text::{append, map, value};
use self::text::{head_of, render};
use crate::catalog::Catalog;
use crate::definition::{self, NAME_MAX_BYTES, PIPELINE_NAME_MAX_BYTES, STEPS_MAX};
use crate::document::DEFINITION_MAX_BYTES;
use crate::expression::RESERVED_NAMES;
use crate::plan::Plan;
use crate::problem::Problems;

/// What is said of a step beside its request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// Fields of the step as the definition has them: `id`, `after`, `each`, `retry`, …
    pub fields: Map<String, Json>,
    /// Fields of the request that expressions give: `address.city`, `user.city`.
    pub set: Vec<(String, String)>,
    /// An expression that gives the whole request.
    pub input: Option<String>,
}

/// A pipeline that is being recorded.
#[derive(Debug, Clone)]
pub struct Recording {
    /// All that stands beside the steps, the name first.
    head: Map<String, Json>,
    steps: Vec<Map<String, Json>>,
    /// Whether each step comes after the one before, where nothing else is said.
    in_order: bool,
    /// What of a step another one depends on; the checks go by it.
    outlines: Vec<Map<String, Json>>,
    catalog: Catalog,
    /// How long the definition is, about.
    bytes: usize,
}

/// What each step costs beside its own text.
const STEP_BYTES: usize = 8;

impl Recording {
    /// Begins one. `head` is what else is said of the pipeline, in YAML or JSON: parameters, deadline,
    /// retry, … all but the steps.
    ///
    /// # Errors
    /// What is wrong with the name or with the head, in words.
    pub fn new(name: &str, head: &str, in_order: bool) -> Result<Self, String> {
        let good = !name.is_empty() && !name.chars().any(char::is_control);
        if !good || name.len() > PIPELINE_NAME_MAX_BYTES {
            let most = PIPELINE_NAME_MAX_BYTES;
            return Err(format!("a name has 1 to {most} bytes and no control characters"));
        }
        let mut fields = Map::new();
        fields.insert("name".to_owned(), name.into());
        fields.extend(head_of(head)?);
        let (steps, outlines, catalog) = (Vec::new(), Vec::new(), Catalog::default());
        let bytes = render(&fields, &steps).len();
        let recording = Self { head: fields, steps, in_order, outlines, catalog, bytes };
        // A step that fits every head: what is wrong then is the head's.
        let mut probe = Map::new();
        probe.insert("id".to_owned(), "probe".into());
        probe.insert("call".to_owned(), "a.B/C".into());
        match definition::parse(&render(&recording.head, &[probe])) {
            Ok(_) => Ok(recording),
            Err(problems) => Err(said(&problems, "")),
        }
    }

    /// The name of the pipeline.
    pub fn name(&self) -> &str {
        self.head.get("name").and_then(Json::as_str).unwrap_or_default()
    }

    /// How many steps it has.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// How many bytes it holds, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A service that a step of it calls, as it was when it was first called.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The pipeline as it is recorded so far, in YAML.
    pub fn definition(&self) -> String {
        render(&self.head, &self.steps)
    }

    /// Takes a call as the next step; the id that it has.
    ///
    /// # Errors
    /// What is wrong, in words: then nothing was recorded.
    pub fn add(
        &mut self,
        method: &MethodDescriptor,
        body: &Bytes,
        said: &Said,
    ) -> Result<String, String> {
        let checked = self.check(method, body, said)?;
        let id = checked.id;
        self.bytes = checked.bytes;
        self.catalog = checked.catalog;
        self.steps.push(checked.step);
        self.outlines.push(checked.outline);
        Ok(id)
    }

    /// Whether [`Recording::add`] would take a call.
    ///
    /// # Errors
    /// As [`Recording::add`].
    pub fn would_take(
        &self,
        method: &MethodDescriptor,
        body: &Bytes,
        said: &Said,
    ) -> Result<(), String> {
        self.check(method, body, said).map(drop)
    }

    fn check(
        &self,
        method: &MethodDescriptor,
        body: &Bytes,
        told: &Said,
    ) -> Result<Checked, String> {
        if method.is_client_streaming() {
            let call = method.full_name();
            return Err(format!(
                "{call} takes a stream of messages, and a call is recorded with the one it takes"
            ));
        }
        if self.steps.len() >= STEPS_MAX {
            return Err(format!("a pipeline has at most {STEPS_MAX} steps, and this has so many"));
        }
        let ids = || self.steps.iter().filter_map(|step| step.get("id")?.as_str());
        let mut step = step(method, body, told, |id| ids().any(|other| other == id))?;
        if self.in_order && !step.contains_key("after") {
            let last = ids().next_back().filter(|last| !takes_items_of(&step, last));
            step.extend(last.map(|last| ("after".to_owned(), last.into())));
        }
        let id = step.get("id").and_then(Json::as_str).unwrap_or_default().to_owned();
        let mut catalog = self.catalog.clone();
        catalog.insert_known(method.parent_service().clone());
        let bytes =
            self.bytes + STEP_BYTES + render(&Map::new(), std::slice::from_ref(&step)).len();
        if bytes > DEFINITION_MAX_BYTES {
            return Err(request::too_large(bytes));
        }
        let outline = outline(&step);
        let steps: Vec<_> = self.outlines.iter().chain([&step]).cloned().collect();
        let parsed = definition::parse(&render(&self.head, &steps));
        let place = format!("steps[{}]", steps.len() - 1);
        parsed
            .and_then(|definition| Plan::new(definition, &catalog))
            .map_err(|problems| self::said(&problems, &place))?;
        Ok(Checked { id, step, outline, catalog, bytes })
    }
}

/// A step that fits.
struct Checked {
    id: String,
    step: Map<String, Json>,
    outline: Map<String, Json>,
    catalog: Catalog,
    bytes: usize,
}

/// What of a step decides what others may say of it.
fn outline(step: &Map<String, Json>) -> Map<String, Json> {
    let decides = |name: &str| matches!(name, "id" | "call" | "each" | "after");
    let kept = step.iter().filter(|(name, _)| decides(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Whether its items are the messages of that step.
fn takes_items_of(step: &Map<String, Json>, source: &str) -> bool {
    let each = step.get("each").and_then(Json::as_str).unwrap_or_default();
    each.trim_start_matches("{{").trim_end_matches("}}").trim() == source
}

/// A call as a step. `taken` tells whether an id is another step's.
///
/// # Errors
/// What is wrong with the request, or with what is said of it, in words.
pub fn step(
    method: &MethodDescriptor,
    body: &Bytes,
    said: &Said,
    taken: impl Fn(&str) -> bool,
) -> Result<Map<String, Json>, String> {
    let (service, input) = (method.parent_service().full_name(), method.input());
    let mut step = Map::new();
    let id = match said.fields.get("id") {
        Some(id) => id.clone(),
        None => own_id(method.name(), taken).into(),
    };
    step.insert("id".to_owned(), id);
    step.insert("call".to_owned(), format!("{service}/{}", method.name()).into());
    let mut request = literal(&input, body)?;
    for (path, expression) in &said.set {
        request::set(&mut request, &input, path, expression)
            .map_err(|why| format!("{path}={expression}: {why}"))?;
    }
    if let Some(whole) = &said.input {
        if request.as_object().is_none_or(|fields| !fields.is_empty()) {
            let text = "an expression gives the whole request, so the request itself must be empty";
            return Err(text.to_owned());
        }
        request = request::braced(whole).into();
    }
    if request.as_object().is_none_or(|fields| !fields.is_empty()) {
        step.insert("input".to_owned(), request);
    }
    let more = said.fields.iter().filter(|(name, _)| name.as_str() != "id");
    step.extend(more.map(|(name, value)| (name.clone(), value.clone())));
    Ok(step)
}

/// A step's id when nobody names it: its method, in the letters that ids have.
fn own_id(method: &str, taken: impl Fn(&str) -> bool) -> String {
    /// Room for a number behind it.
    const NUMBER_BYTES: usize = 8;
    let mut id = String::new();
    for letter in method.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '_') {
        if letter.is_ascii_uppercase() && id.ends_with(|last: char| last.is_ascii_lowercase()) {
            id.push('_');
        }
        id.push(letter.to_ascii_lowercase());
    }
    id.truncate(NAME_MAX_BYTES - NUMBER_BYTES);
    let fits = id.starts_with(|first: char| first.is_ascii_lowercase());
    if !fits || RESERVED_NAMES.contains(&id.as_str()) {
        id = format!("step_{id}");
        id.truncate(NAME_MAX_BYTES - NUMBER_BYTES);
    }
    if !taken(&id) {
        return id;
    }
    let numbered = (2..).map(|number: u32| format!("{id}_{number}"));
    // A pipeline has a thousand steps, so one of these is free.
    numbered.take(STEPS_MAX + 1).find(|id| !taken(id)).unwrap_or(id)
}

/// Problems for somebody who has not seen the text: without its lines, and without the place `at`.
fn said(problems: &Problems, at: &str) -> String {
    let one = |place: &str, message: &str| {
        let place = place.strip_prefix(at).unwrap_or(place).trim_start_matches('.');
        if place.is_empty() { message.to_owned() } else { format!("{place}: {message}") }
    };
    let lines: Vec<_> =
        problems.iter().map(|problem| one(&problem.place, &problem.message)).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests;
