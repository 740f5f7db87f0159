//! Steps checked one by one: their methods, where their items come from, their inputs.
//!
//! Called by `Plan::new`, in the order of this file.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{Kind, MessageDescriptor};

use super::{PlannedStep, Progress, StepKind, around, feed, own, undo};
use crate::catalog::Catalog;
use crate::definition::{
    CALL_TIMEOUT_DEFAULT_MS, Each, Input, Own, STREAM_TIMEOUT_DEFAULT_MS, Step, TIMEOUT_MAX_MS,
};
use crate::expression::Expression;
use crate::input::{Binder, BoundInput};
use crate::names::{Names, Output, Type};
use crate::problem::{Place, Problems, suggest};

/// What is known of a step before its input is bound.
pub(super) struct Checked {
    pub(super) step: Step,
    pub(super) input: Option<MessageDescriptor>,
    pub(super) output: Option<MessageDescriptor>,
    /// Its method takes a stream of messages.
    pub(super) takes: bool,
    /// Its method gives a stream of messages.
    pub(super) streams: bool,
}

/// What a step is bound with, beside the names.
pub(super) struct Bindings<'a> {
    /// The source of every step that takes items of another.
    pub(super) sources: BTreeMap<usize, (usize, MessageDescriptor)>,
    /// The stream of every step that sends into one.
    pub(super) sends_to: BTreeMap<usize, usize>,
    /// The steps whose streams stay open.
    pub(super) open: BTreeSet<usize>,
    /// All steps.
    pub(super) ids: &'a BTreeMap<String, usize>,
}

/// Finds the method of a step and what it takes and gives.
pub(super) fn check_call(step: Step, catalog: &Catalog, problems: &mut Problems) -> Checked {
    if step.own.is_some() {
        return own::checked(step);
    }
    let place = step.place.field("call");
    let method = match catalog.method(&step.service, &step.method) {
        Ok(method) => method,
        Err(why) => {
            problems.add(&place, why);
            return Checked { step, input: None, output: None, takes: false, streams: false };
        }
    };
    feed::check(&step, &method, problems);
    let takes = method.is_client_streaming();
    let gives = method.is_server_streaming();
    check_progress(&step, takes, gives, problems);
    // Of what reports, the last message is the answer.
    let streams = gives && !step.progress;
    if streams && !takes && step.finalize {
        let call = format!("{}/{}", step.service, step.method);
        let message = format!("{call} gives a stream; a step of `finalize` is one call");
        problems.add(&place, message);
    }
    if streams && !takes && step.each.is_some() {
        let call = format!("{}/{}", step.service, step.method);
        let message = format!(
            "{call} gives a stream; with `each` a step calls a method that gives one message"
        );
        problems.add(&place, message);
    }
    Checked { input: Some(method.input()), output: Some(method.output()), takes, streams, step }
}

fn check_progress(step: &Step, takes: bool, gives: bool, problems: &mut Problems) {
    let place = step.place.field("progress");
    if !step.progress {
    } else if !gives {
        let call = format!("{}/{}", step.service, step.method);
        let text = format!("{call} gives one message; only a method that gives a stream reports");
        problems.add(&place, text);
    } else if step.each.is_some() && !takes {
        problems.add(&place, "a step with `each` makes many calls, and none of them reports");
    }
}

/// What every step gives to the expressions of the others.
pub(super) fn outputs(steps: &[Checked]) -> BTreeMap<String, Output> {
    let output = |(index, checked): (usize, &Checked)| {
        let id = checked.step.id.clone();
        let each = checked.step.each.is_some() && !checked.takes;
        let output = match (&checked.output, checked.streams, each) {
            _ if matches!(checked.step.own, Some(Own::Send(_))) => {
                Output::None(format!("`{id}` sends messages, it gives none"))
            }
            (None, ..) => Output::Message(index, Type::Unknown),
            (Some(_), true, _) => Output::None(format!(
                "`{id}` gives a stream: another step takes its messages by `each: {id}`"
            )),
            (Some(_), _, true) if checked.step.own.is_some() => Output::None(format!(
                "`{id}` runs once for each item: its results are recorded, but not kept together"
            )),
            (Some(_), _, true) => Output::None(format!(
                "`{id}` runs once for each item: another step takes its results by `each: {id}`"
            )),
            (Some(_), ..) if checked.step.own.is_some() => Output::Message(index, Type::Unknown),
            (Some(message), ..) => Output::Message(index, Type::Message(message.clone())),
        };
        (id, output)
    };
    steps.iter().enumerate().map(output).collect()
}

/// The source of every step with `each: STEP`: a stream, or a step with `each` and its
/// results. `each: "{{ STEP }}"` means the same.
pub(super) fn sources(
    steps: &mut [Checked],
    ids: &BTreeMap<String, usize>,
    problems: &mut Problems,
) -> BTreeMap<usize, (usize, MessageDescriptor)> {
    let streams: BTreeMap<usize, MessageDescriptor> = steps
        .iter()
        .enumerate()
        .filter(|(_, checked)| checked.streams || (checked.step.each.is_some() && !checked.takes))
        // What a pipeline gives has no type that items could have.
        .filter(|(_, checked)| checked.step.own.is_none())
        .filter_map(|(index, checked)| Some((index, checked.output.clone()?)))
        .collect();
    let mut sources = BTreeMap::new();
    for (index, checked) in steps.iter().enumerate() {
        let Some((each, place)) = &checked.step.each else { continue };
        let id = match each {
            Each::Step(id) => id,
            Each::List(list) => match list.plain_path().map(Vec::as_slice) {
                Some([id]) if ids.get(id).is_some_and(|source| streams.contains_key(source)) => id,
                _ => continue,
            },
        };
        match ids.get(id) {
            Some(source) => match streams.get(source) {
                Some(item) => {
                    sources.insert(index, (*source, item.clone()));
                }
                None if steps[*source].output.is_none() => {}
                None => problems.add(
                    place,
                    format!("`{id}` gives no stream; a list in its output is written `{{{{ {id}.FIELD }}}}`"),
                ),
            },
            None => {
                let near = suggest(id, ids.keys().map(String::as_str));
                problems.add(place, format!("there is no step `{id}`{near}"));
            }
        }
    }
    sources
}

/// Binds one step. Its place is given back for problems that show later.
pub(super) fn bind(
    index: usize,
    checked: Checked,
    catalog: &Catalog,
    bindings: &Bindings<'_>,
    names: &mut Names,
    problems: &mut Problems,
) -> (Place, Option<PlannedStep>) {
    let Checked { step, input, output, takes, streams } = checked;
    let Bindings { sources, ids, .. } = bindings;
    let sends_to = bindings.sends_to.get(&index).copied();
    let place = step.place.clone();
    let mut reads = Reads { ids, steps: BTreeSet::new(), item: false };
    names.item = None;
    names.item_is_bytes = sources.contains_key(&index);
    for (condition, place) in &step.when {
        check_condition(condition, place, names, problems);
        reads.take(condition);
    }
    let buffer = buffer(&step, problems);
    let each = step.each.map(|each| (each, step.concurrency));
    let kind = step_kind(each, streams, sources.get(&index), names, &mut reads, problems);
    let (kind, feed) = match takes {
        true => feed::kind(kind, (streams, step.open), &step.input),
        false if step.progress => (kind.map(|_| StepKind::Stream), None),
        false => (kind, None),
    };
    if step.progress && !takes {
        names.progress = output.clone().map(Type::Message);
        if ids.contains_key("progress") {
            let text = "in a step with `progress` that name is what it reported; give the step `progress` another";
            problems.add(&step.place.field("progress"), text);
        }
    }
    if step.batch.is_some() {
        names.item_is_bytes = false;
        names.items = names.item.take().map(Type::list_of);
        if ids.contains_key("items") {
            let text = "in a step with `batch` the name `items` is the batch; give the step `items` another";
            problems.add(&step.place.field("batch"), text);
        }
    }
    let mut waits_for = named_steps(&step.follows, ids, problems);
    if let Some((source, _)) = sources.get(&index) {
        waits_for.remove(source);
    }
    let waits_for_begin =
        feed::begun_before(&mut waits_for, sends_to, &bindings.open, step.finalize);
    waits_for.extend(named_steps(&step.after, ids, problems));
    let call = format!("{}/{}", step.service, step.method);
    let is_own = step.own.is_some();
    let own = step.own.map(|own| own::bind(own, sends_to, catalog, names, &mut reads, problems));
    let (own, of_own) = match own.flatten() {
        Some((own, input)) => (Some(own), Some(input)),
        None => (None, None),
    };
    let kind = match &own {
        Some(own) if own.is_wait() => Some(StepKind::Wait),
        _ => kind,
    };
    let bound = match (step.input, &input) {
        (Input::Empty, _) if is_own => of_own,
        (Input::Empty, _) => Some(BoundInput::Empty),
        (Input::Shape(shape), input) => {
            for (expression, _) in shape.expressions() {
                reads.take(expression);
            }
            let mut binder = Binder { names, problems };
            input.as_ref().and_then(|input| binder.input(shape, input, &call))
        }
    };
    waits_for.extend(&reads.steps);
    (names.item, names.items, names.progress) = (None, None, None);
    if let Some(poll) = &step.poll {
        around::check_poll(poll, &step.place, streams && !takes, names, problems);
        let own = ids.get(&step.id).copied();
        let mut read = Reads { ids, steps: BTreeSet::new(), item: false };
        read.take(&poll.until);
        let others = read.steps.into_iter().filter(|other| Some(*other) != own);
        reads.steps.extend(others);
        waits_for.extend(&reads.steps);
    }
    if let Some(artifact) = &step.artifact {
        let message = output.as_ref().filter(|_| !is_own);
        if let Some(why) = artifact.check(message).filter(|_| is_own || output.is_some()) {
            problems.add(&artifact.place, why);
        }
    }
    let undo = step.compensation.map(|undo| undo::bind(undo, catalog, ids, names, problems));
    let timeout = match (is_own, streams || takes || step.progress) {
        (true, _) => TIMEOUT_MAX_MS,
        (_, true) => STREAM_TIMEOUT_DEFAULT_MS,
        _ => CALL_TIMEOUT_DEFAULT_MS,
    };
    let wanted = step.wanted.as_ref();
    let pinned = wanted.and_then(|wanted| wanted.pinned(&step.service));
    let preferred = wanted.and_then(|wanted| wanted.preferred(&step.service));
    let recorded = catalog.method(&step.service, &step.method).ok();
    let (service, method) = match &own {
        Some(own) => (own.call().0.into(), own.call().1.into()),
        None => (pinned.unwrap_or(step.service).into(), step.method.into()),
    };
    let planned = match (kind, bound, output) {
        (Some(kind), Some(input), Some(output)) => Some(PlannedStep {
            decodes_item: reads.item && !matches!(input, BoundInput::Item),
            id: step.id.into(),
            service,
            preferred,
            method,
            own,
            progress: step.progress.then_some(Progress { heartbeat_ms: step.heartbeat_ms }),
            poll: step.poll,
            artifact: step.artifact,
            recorded,
            on_change: step.on_change,
            input,
            when: step.when,
            output,
            kind,
            batch: step.batch,
            waits_for,
            takers: Vec::new(),
            feed,
            item: sources.get(&index).map(|(_, item)| item.clone()),
            waits_for_begin,
            unblocks_at_begin: BTreeSet::new(),
            buffer,
            unblocks: BTreeSet::new(),
            reads: reads.steps,
            output_is_decoded: false,
            retry: step.retry,
            timeout_ms: step.timeout_ms.unwrap_or(timeout),
            deadline_ms: step.deadline_ms,
            on_failure: step.on_failure,
            finalize: step.finalize,
            undo: undo.flatten(),
            idempotent: step.idempotent,
        }),
        _ => None,
    };
    (place, planned)
}

/// How many items may wait before a step: by itself enough that it never waits for its
/// next call, or its next batch.
fn buffer(step: &Step, problems: &mut Problems) -> usize {
    let batch = step.batch.map_or(1, |batch| batch.items);
    let at_once = (step.concurrency * 2).max(batch * 2);
    let Some(buffer) = step.buffer else { return at_once as usize };
    let place = step.place.field("buffer");
    if step.each.is_none() {
        problems.add(&place, "only before a step with `each` items wait");
    } else if buffer < batch {
        problems.add(&place, format!("no batch of {batch} items fits into {buffer}"));
    }
    buffer as usize
}

/// How a step runs. What its items are is added to the names.
fn step_kind(
    each: Option<((Each, Place), u32)>,
    streams: bool,
    source: Option<&(usize, MessageDescriptor)>,
    names: &mut Names,
    reads: &mut Reads<'_>,
    problems: &mut Problems,
) -> Option<StepKind> {
    match each {
        None if streams => Some(StepKind::Source),
        None => Some(StepKind::Call),
        Some(((each, place), concurrency)) => match (source, each) {
            (Some((source, item)), _) => {
                names.item = Some(Type::Message(item.clone()));
                Some(StepKind::EachItem { source: *source, concurrency })
            }
            (None, Each::List(list)) => {
                let item = list_item(&list, &place, names, problems);
                reads.take(&list);
                names.item = Some(item);
                let place = place.path;
                Some(StepKind::EachElement { list, place, concurrency })
            }
            (None, Each::Step(_)) => {
                names.item = Some(Type::Unknown);
                None
            }
        },
    }
}

/// Whether a condition can be true or false, as far as that can be told.
fn check_condition(condition: &Expression, place: &Place, names: &Names, problems: &mut Problems) {
    for path in condition.paths() {
        if let Err(why) = names.resolve(path) {
            return problems.add(place, why);
        }
    }
    let known = condition.plain_path().and_then(|path| names.resolve(path).ok());
    if let Some(why) = known.and_then(|known| known.misfit_kind(&Kind::Bool)) {
        problems.add(place, format!("`{}`: {why}", condition.source()));
    }
}

/// The steps that are named by `after`.
fn named_steps(
    after: &[(String, Place)],
    ids: &BTreeMap<String, usize>,
    problems: &mut Problems,
) -> BTreeSet<usize> {
    let mut waits_for = BTreeSet::new();
    for (id, place) in after {
        match ids.get(id) {
            Some(other) => {
                waits_for.insert(*other);
            }
            None => {
                let near = suggest(id, ids.keys().map(String::as_str));
                problems.add(place, format!("there is no step `{id}`{near}"));
            }
        }
    }
    waits_for
}

/// The type of the elements of a list.
fn list_item(list: &Expression, place: &Place, names: &Names, problems: &mut Problems) -> Type {
    for path in list.paths() {
        if let Err(why) = names.resolve(path) {
            problems.add(place, why);
            return Type::Unknown;
        }
    }
    match list.plain_path().and_then(|path| names.resolve(path).ok()) {
        Some(Type::List(kind)) => Type::of_kind(kind),
        Some(other @ (Type::Message(_) | Type::Scalar(_) | Type::Map)) => {
            let words = other.scalar_words().unwrap_or_else(|| "no list".to_owned());
            problems.add(place, format!("`{}` is {words}; `each` takes a list", list.source()));
            Type::Unknown
        }
        Some(Type::Unknown) | None => Type::Unknown,
    }
}

/// Collects which steps a step reads, and whether it reads its item.
pub(super) struct Reads<'a> {
    pub(super) ids: &'a BTreeMap<String, usize>,
    pub(super) steps: BTreeSet<usize>,
    pub(super) item: bool,
}

impl Reads<'_> {
    pub(super) fn take(&mut self, expression: &Expression) {
        for path in expression.paths() {
            match self.ids.get(&path[0]) {
                Some(step) => {
                    self.steps.insert(*step);
                }
                None => self.item |= path[0] == "item" || path[0] == "items",
            }
        }
    }
}
