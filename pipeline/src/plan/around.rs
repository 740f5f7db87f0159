//! What is said of a run beside its steps, checked: when it begins, its key, what it
//! gives, whom it tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost_reflect::Kind;

use super::bind::Reads;
use super::{Plan, PlannedStep};
use crate::begin::{Key, Start};
use crate::catalog::Catalog;
use crate::definition::{Shape, ShapeContent};
use crate::expression::{Expression, Template};
use crate::hook::Hook;
use crate::json::Json;
use crate::names::Names;
use crate::problem::{Place, Problems};
use crate::state::RunState;
use crate::wait::Poll;

/// What is said of a run beside its steps.
#[derive(Debug)]
pub struct Around {
    /// When it begins.
    pub start: Start,
    /// The key under which one run goes on at a time.
    pub key: Option<Key>,
    /// What it gives when it has succeeded.
    pub(crate) outputs: Option<Json>,
    /// The steps whose outputs that takes.
    pub(crate) outputs_read: BTreeSet<usize>,
    /// Whom it tells of its states.
    pub hooks: Vec<PlannedHook>,
    /// How long it is kept after its end, in ms.
    pub keep_ms: Option<u64>,
    /// The services that its steps may call.
    pub services: BTreeSet<String>,
}

/// A method that is called when a run comes into a state.
#[derive(Debug)]
pub struct PlannedHook {
    /// The states.
    pub on: Vec<RunState>,
    /// The run that makes the call, a definition.
    pub text: Arc<str>,
}

/// What a definition says of it.
pub(super) struct Written {
    start: Start,
    key: Option<Key>,
    outputs: Option<Shape>,
    hooks: Vec<Hook>,
    keep_ms: Option<u64>,
}

impl Written {
    pub(super) fn new(
        start: Start,
        key: Option<Key>,
        outputs: Option<Shape>,
        hooks: Vec<Hook>,
        keep_ms: Option<u64>,
    ) -> Self {
        Self { start, key, outputs, hooks, keep_ms }
    }
}

/// Checks it. The names have no item.
pub(super) fn bind(
    written: Written,
    services: BTreeSet<String>,
    catalog: &Catalog,
    ids: &BTreeMap<String, usize>,
    names: &Names,
    problems: &mut Problems,
) -> Around {
    let Written { start, key, outputs, hooks, keep_ms } = written;
    if let Some(key) = &key {
        check_key(key, names, problems);
    }
    let mut reads = Reads { ids, steps: BTreeSet::new(), item: false };
    let outputs = outputs.map(|shape| {
        if !matches!(shape.content, ShapeContent::Map(_)) {
            problems.add(&shape.place, "a map of names and what they are is wanted");
        }
        shape.expressions().into_iter().for_each(|(expression, _)| reads.take(expression));
        Json::bind(shape, names, problems)
    });
    let hooks = hooks.into_iter().map(|hook| {
        if let Err(inner) = Plan::new(hook.definition, catalog) {
            inner.iter().for_each(|problem| problems.push(problem.clone()));
        }
        PlannedHook { on: hook.on, text: hook.text.into() }
    });
    let hooks = hooks.collect();
    Around { start, key, outputs, outputs_read: reads.steps, hooks, keep_ms, services }
}

impl Around {
    /// Outputs read fields of what steps give.
    pub(super) fn outputs_are_decoded(&self, steps: &mut [PlannedStep]) {
        for step in &self.outputs_read {
            steps[*step].output_is_decoded = true;
        }
    }
}

/// A key is made before anything runs.
fn check_key(key: &Key, names: &Names, problems: &mut Problems) {
    let expressions: Vec<&Expression> = match &key.name {
        Template::Literal(_) => Vec::new(),
        Template::Expression(expression) => vec![expression],
        Template::Text(text) => text.expressions().collect(),
    };
    for path in expressions.into_iter().flat_map(Expression::paths) {
        let problem = match path.first().map(String::as_str) {
            Some("params") => names.resolve(path).err(),
            _ => Some("a key reads parameters only: it is made before anything runs".to_owned()),
        };
        if let Some(why) = problem {
            return problems.add(&key.place, why);
        }
    }
}

/// Whether what a step waits for can be true or false, as far as that can be told.
pub(super) fn check_poll(
    poll: &Poll,
    step: &Place,
    streams: bool,
    names: &Names,
    problems: &mut Problems,
) {
    if streams {
        return problems.add(&step.field("poll"), "a stream does not poll");
    }
    for path in poll.until.paths() {
        if let Err(why) = names.resolve(path) {
            return problems.add(&poll.place, why);
        }
    }
    let known = poll.until.plain_path().and_then(|path| names.resolve(path).ok());
    if let Some(why) = known.and_then(|known| known.misfit_kind(&Kind::Bool)) {
        problems.add(&poll.place, format!("`{}`: {why}", poll.until.source()));
    }
}

/// Whether names of artifacts are given once.
pub(super) fn check_artifacts(steps: &[PlannedStep], problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for artifact in steps.iter().filter_map(|step| step.artifact.as_ref()) {
        if !seen.insert(&artifact.name) {
            let text = format!("there are two artifacts with the name `{}`", artifact.name);
            problems.add(&artifact.place, text);
        }
    }
}
