//! A pipeline that was checked against the services' descriptors: what a run follows.
//!
//! ```text
//!  Definition ──┐
//!               ├─ Plan::new ─▶ Plan: every step with its method's types, its bound
//!  Catalog ─────┘               input, the steps it waits for, where its items come from
//! ```
//!
//! A plan is made when a pipeline is accepted and again when a run is loaded from
//! the store, from the same definition and the same descriptors.
//!
//! Parts: this file (what a plan is) · `bind` (steps, one by one) · `order` (who waits
//! for whom) · `feed` (streams of messages) · `undo` (compensations) · `own` (steps that call no service) · `around`
//! (key, outputs, hooks).
//!
//! Called by the scheduler; followed by `run`.

mod around;
mod bind;
mod feed;
mod order;
mod own;
#[cfg(test)]
mod tests;
mod undo;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use minijinja::Value;
use prost_reflect::{MessageDescriptor, MethodDescriptor};

use crate::artifact::Artifact;
use crate::catalog::Catalog;
use crate::change::OnChange;
use crate::definition::{Batch, Definition};
use crate::expression::Expression;
pub use around::{Around, PlannedHook};
pub use feed::{Fed, Feed};
pub use own::{PlannedOwn, RUNS, RUNS_END, RUNS_START};

use crate::failure::{OnFailure, Retry};
use crate::input::BoundInput;
use crate::limits::{Limits, Priority};
use crate::message::{decode, message_value, to_json};
use crate::names::Names;
use crate::problem::{Place, Problems};
use crate::wait::Poll;
use bind::{Bindings, Checked, bind, check_call, outputs, sources};

/// A checked pipeline.
#[derive(Debug)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Its steps, in the order of the definition.
    pub steps: Vec<PlannedStep>,
    /// The steps in an order in which each comes after those it needs.
    pub order: Vec<usize>,
    /// How often the run is tried as a whole.
    pub retry: Retry,
    /// How long one try of the run may take, in ms.
    pub timeout_ms: Option<u64>,
    /// How long the run may take in all, in ms.
    pub deadline_ms: Option<u64>,
    /// What it may take of the scheduler.
    pub limits: Limits,
    /// Its share where there is not enough for all.
    pub priority: Priority,
    /// What is said of the run beside its steps.
    pub around: Around,
}

/// A checked step.
#[derive(Debug)]
pub struct PlannedStep {
    /// Its name.
    pub id: Arc<str>,
    /// The service it calls, with the label of the workers to which it is pinned.
    pub service: Arc<str>,
    /// The name that it calls rather than the service, when a worker with its label is free.
    pub preferred: Option<Arc<str>>,
    /// The method it calls.
    pub method: Arc<str>,
    /// What it sends.
    pub input: BoundInput,
    /// Whether its input or its list reads the item by an expression.
    pub decodes_item: bool,
    /// Conditions: it runs if all of them are true.
    pub when: Vec<(Expression, Place)>,
    /// The message its method answers with.
    pub output: MessageDescriptor,
    /// How it runs.
    pub kind: StepKind,
    /// The steps that take its items, or its results.
    pub takers: Vec<usize>,
    /// Where the messages come from, when its method takes a stream of them.
    pub feed: Option<Feed>,
    /// The type of the items that it takes as messages.
    pub item: Option<MessageDescriptor>,
    /// The steps that must have begun before it does.
    pub waits_for_begin: BTreeSet<usize>,
    /// The steps that wait for its beginning.
    pub unblocks_at_begin: BTreeSet<usize>,
    /// How many results of another step may wait before it.
    pub buffer: usize,
    /// How its items are put together into calls.
    pub batch: Option<Batch>,
    /// The steps that must have succeeded before it begins.
    pub waits_for: BTreeSet<usize>,
    /// The steps that wait for this one.
    pub unblocks: BTreeSet<usize>,
    /// The steps whose outputs its expressions or its input take: part of `waits_for`.
    pub reads: BTreeSet<usize>,
    /// Whether an expression of another step reads fields of its output.
    pub output_is_decoded: bool,
    /// What happens when an attempt fails.
    pub retry: Retry,
    /// How long an attempt may take, in ms.
    pub timeout_ms: u64,
    /// How long all attempts together may take, in ms.
    pub deadline_ms: Option<u64>,
    /// What happens when no attempt is left.
    pub on_failure: OnFailure,
    /// It is of the last phase, which runs again whole after an error.
    pub finalize: bool,
    /// How its effect is taken back.
    pub undo: Option<PlannedUndo>,
    /// Whether the mesh may give a call to a second worker when the first dies with it.
    pub idempotent: bool,
    /// It reports how far it is.
    pub progress: Option<Progress>,
    /// What it does instead of calling a service.
    pub own: Option<PlannedOwn>,
    /// It calls until its answer is what is waited for.
    pub poll: Option<Poll>,
    /// The name under which its result is kept.
    pub artifact: Option<Artifact>,
    /// The method that it calls, as it was when the pipeline was recorded.
    pub recorded: Option<MethodDescriptor>,
    /// What becomes of it when that has changed.
    pub on_change: OnChange,
}

/// How a step reports how far it is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// How long nothing may be heard of it, in ms.
    pub heartbeat_ms: Option<u64>,
}

/// A checked compensation.
#[derive(Debug)]
pub struct PlannedUndo {
    /// The service it calls.
    pub service: Arc<str>,
    /// The method it calls.
    pub method: Arc<str>,
    /// What it sends.
    pub input: BoundInput,
    /// The steps whose outputs it takes: these are kept until the run ends.
    pub reads: BTreeSet<usize>,
    /// What happens when an attempt fails.
    pub retry: Retry,
    /// How long an attempt may take, in ms.
    pub timeout_ms: u64,
    /// Whether the mesh may give the call to a second worker when the first dies with it.
    pub idempotent: bool,
    /// Where it stands, for errors.
    place: Place,
}

/// How a step runs.
#[derive(Debug)]
pub enum StepKind {
    /// One call.
    Call,
    /// No call: it waits, as its `own` says.
    Wait,
    /// One call that gives a stream, whose messages are the items of other steps.
    Source,
    /// One call that takes a stream, or reports by one, and gives one message.
    Stream,
    /// One call for each item of a source, or for each result of a step like this.
    EachItem {
        /// Where they come from.
        source: usize,
        /// How many run at once.
        concurrency: u32,
    },
    /// One call for each element of a list.
    EachElement {
        /// Gives the list.
        list: Expression,
        /// Where it stands, for errors.
        place: String,
        /// How many run at once.
        concurrency: u32,
    },
}

impl StepKind {
    /// Whether it is a stream that gives items.
    pub fn is_source(&self) -> bool {
        matches!(self, Self::Source)
    }

    /// How many calls run at once.
    pub fn concurrency(&self) -> u32 {
        match self {
            Self::Call | Self::Wait | Self::Source | Self::Stream => 1,
            Self::EachItem { concurrency, .. } | Self::EachElement { concurrency, .. } => {
                *concurrency
            }
        }
    }
}

impl Plan {
    /// Checks a definition against the services that are known.
    pub fn new(definition: Definition, catalog: &Catalog) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let services = definition.needed();
        let Definition { name, parameters, steps, .. } = definition;
        let Definition { retry, timeout_ms, deadline_ms, limits, priority, .. } = definition;
        let written = around::Written::new(
            definition.start,
            definition.key,
            definition.outputs,
            definition.hooks,
            definition.keep_ms,
        );
        let mut steps: Vec<Checked> =
            steps.into_iter().map(|step| check_call(step, catalog, &mut problems)).collect();
        let ids: BTreeMap<String, usize> = steps
            .iter()
            .enumerate()
            .map(|(index, checked)| (checked.step.id.clone(), index))
            .collect();
        let sends_to = feed::senders(&mut steps, &ids, &mut problems);
        let mut names = Names {
            parameters: parameters.into_iter().map(|found| (found.name, found.kind)).collect(),
            steps: outputs(&steps),
            item: None,
            items: None,
            progress: None,
            item_is_bytes: false,
        };
        let sources = sources(&mut steps, &ids, &mut problems);
        let open = steps.iter().enumerate().filter(|(_, checked)| checked.step.open);
        let open = open.map(|(index, _)| index).collect();
        let around_it = Bindings { sources, sends_to, open, ids: &ids };
        let mut planned = Vec::new();
        for (index, checked) in steps.into_iter().enumerate() {
            planned.push(bind(index, checked, catalog, &around_it, &mut names, &mut problems));
        }
        let around = around::bind(written, services, catalog, &ids, &names, &mut problems);
        let places: Vec<Place> = planned.iter().map(|(place, _)| place.clone()).collect();
        let planned: Option<Vec<PlannedStep>> = planned.into_iter().map(|(_, step)| step).collect();
        let Some(mut steps) = planned.filter(|_| problems.is_empty()) else {
            return Err(problems);
        };
        order::link(&mut steps);
        around.outputs_are_decoded(&mut steps);
        let order = match order::order(&steps) {
            Ok(order) => order,
            Err((at, message)) => return Err(places[at].problem(message).into()),
        };
        undo::check(&steps, &mut problems);
        around::check_artifacts(&steps, &mut problems);
        problems.into_result(Self {
            name,
            steps,
            order,
            retry,
            timeout_ms,
            deadline_ms,
            limits,
            priority,
            around,
        })
    }

    /// How many of its steps are streams that give items.
    pub fn sources(&self) -> usize {
        self.steps.iter().filter(|step| step.kind.is_source()).count()
    }

    /// The index of a step by its id.
    pub fn step(&self, id: &str) -> Option<usize> {
        self.steps.iter().position(|step| &*step.id == id)
    }
}

impl PlannedStep {
    /// The step of which it takes the items.
    pub fn source(&self) -> Option<usize> {
        match (&self.kind, &self.feed) {
            (StepKind::EachItem { source, .. }, _) => Some(*source),
            (_, Some(Feed { from: Fed::Items(source), .. })) => Some(*source),
            _ => None,
        }
    }

    /// The list of which it takes the elements, and where that stands.
    pub fn list(&self) -> Option<(&Expression, &str)> {
        match (&self.kind, &self.feed) {
            (StepKind::EachElement { list, place, .. }, _)
            | (_, Some(Feed { from: Fed::List { list, place }, .. })) => Some((list, place)),
            _ => None,
        }
    }

    /// The step into whose stream it sends.
    pub fn sends_to(&self) -> Option<usize> {
        match self.own {
            Some(PlannedOwn::Send(stream)) => Some(stream),
            _ => None,
        }
    }

    /// Whether its stream stays open until all else has succeeded.
    pub fn stays_open(&self) -> bool {
        self.feed.as_ref().is_some_and(|feed| feed.open)
    }

    /// What its call answered, as expressions see it.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub fn value(&self, body: &Bytes) -> Result<Value, String> {
        match self.own {
            Some(PlannedOwn::Send(_)) | None => Ok(message_value(decode(&self.output, body)?)),
            Some(_) => crate::json::parse(body),
        }
    }

    /// What its call answered, as JSON.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub fn json(&self, body: &Bytes) -> Result<String, String> {
        match self.own {
            Some(PlannedOwn::Send(_)) | None => {
                to_json(&decode(&self.output, body)?).map_err(|error| error.to_string())
            }
            Some(_) => Ok(String::from_utf8_lossy(body).into_owned()),
        }
    }
}
