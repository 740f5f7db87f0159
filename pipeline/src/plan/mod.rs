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
//! Parts: this file (steps and their inputs) · `order` (who waits for whom) · `undo`
//! (compensations).
//!
//! Called by the scheduler; followed by `run`.

mod order;
mod undo;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost_reflect::{Kind, MessageDescriptor};

use crate::catalog::Catalog;
use crate::definition::{
    CALL_TIMEOUT_DEFAULT_MS, Definition, Each, Input, STREAM_TIMEOUT_DEFAULT_MS, Step,
};
use crate::expression::Expression;
use crate::failure::{OnFailure, Retry};
use crate::input::{Binder, BoundInput};
use crate::names::{Names, Output, Type};
use crate::problem::{Place, Problems, suggest};

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
}

/// A checked step.
#[derive(Debug)]
pub struct PlannedStep {
    /// Its name.
    pub id: Arc<str>,
    /// The service it calls.
    pub service: Arc<str>,
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
    /// How its effect is taken back.
    pub undo: Option<PlannedUndo>,
    /// Whether the mesh may give a call to a second worker when the first dies with it.
    pub idempotent: bool,
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
    /// One call that gives a stream, whose messages are the items of other steps.
    Source {
        /// The steps that take its items.
        takers: Vec<usize>,
    },
    /// One call for each item of a source.
    EachItem {
        /// The source.
        source: usize,
        /// The type of the items.
        item: MessageDescriptor,
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
    /// How many calls run at once.
    pub fn concurrency(&self) -> u32 {
        match self {
            Self::Call | Self::Source { .. } => 1,
            Self::EachItem { concurrency, .. } | Self::EachElement { concurrency, .. } => {
                *concurrency
            }
        }
    }
}

/// What is known of a step before its input is bound.
struct Checked {
    step: Step,
    input: Option<MessageDescriptor>,
    output: Option<MessageDescriptor>,
    streams: bool,
}

impl Plan {
    /// Checks a definition against the services that are known.
    pub fn new(definition: Definition, catalog: &Catalog) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let Definition { name, parameters, steps, retry, timeout_ms, deadline_ms } = definition;
        let mut steps: Vec<Checked> =
            steps.into_iter().map(|step| check_call(step, catalog, &mut problems)).collect();
        let ids: BTreeMap<String, usize> = steps
            .iter()
            .enumerate()
            .map(|(index, checked)| (checked.step.id.clone(), index))
            .collect();
        let mut names = Names {
            parameters: parameters.into_iter().map(|found| (found.name, found.kind)).collect(),
            steps: outputs(&steps),
            item: None,
            item_is_bytes: false,
        };
        let sources = sources(&mut steps, &ids, &mut problems);
        let mut planned = Vec::new();
        for (index, checked) in steps.into_iter().enumerate() {
            planned.push(bind(index, checked, catalog, &sources, &ids, &mut names, &mut problems));
        }
        let places: Vec<Place> = planned.iter().map(|(place, _)| place.clone()).collect();
        let planned: Option<Vec<PlannedStep>> = planned.into_iter().map(|(_, step)| step).collect();
        let Some(mut steps) = planned.filter(|_| problems.is_empty()) else {
            return Err(problems);
        };
        order::link(&mut steps);
        let order = match order::order(&steps) {
            Ok(order) => order,
            Err((at, message)) => return Err(places[at].problem(message).into()),
        };
        undo::check(&steps, &mut problems);
        problems.into_result(Self { name, steps, order, retry, timeout_ms, deadline_ms })
    }

    /// The index of a step by its id.
    pub fn step(&self, id: &str) -> Option<usize> {
        self.steps.iter().position(|step| &*step.id == id)
    }
}

/// Finds the method of a step and what it takes and gives.
fn check_call(step: Step, catalog: &Catalog, problems: &mut Problems) -> Checked {
    let place = step.place.field("call");
    let method = match catalog.method(&step.service, &step.method) {
        Ok(method) => method,
        Err(why) => {
            problems.add(&place, why);
            return Checked { step, input: None, output: None, streams: false };
        }
    };
    if method.is_client_streaming() {
        let call = format!("{}/{}", step.service, step.method);
        let message = format!(
            "{call} takes a stream of messages; a step calls methods that take one message"
        );
        problems.add(&place, message);
    }
    let streams = method.is_server_streaming();
    if streams && step.each.is_some() {
        let call = format!("{}/{}", step.service, step.method);
        let message = format!(
            "{call} gives a stream; with `each` a step calls a method that gives one message"
        );
        problems.add(&place, message);
    }
    Checked { input: Some(method.input()), output: Some(method.output()), streams, step }
}

/// What every step gives to the expressions of the others.
fn outputs(steps: &[Checked]) -> BTreeMap<String, Output> {
    let output = |(index, checked): (usize, &Checked)| {
        let id = checked.step.id.clone();
        let output = match (&checked.output, checked.streams, checked.step.each.is_some()) {
            (None, ..) => Output::Message(index, Type::Unknown),
            (Some(_), true, _) => Output::None(format!(
                "`{id}` gives a stream: another step takes its messages by `each: {id}`"
            )),
            (Some(_), _, true) => Output::None(format!(
                "`{id}` runs once for each item: its results are recorded, but not kept together"
            )),
            (Some(message), ..) => Output::Message(index, Type::Message(message.clone())),
        };
        (id, output)
    };
    steps.iter().enumerate().map(output).collect()
}

/// The source of every step with `each: STEP`. `each: "{{ STEP }}"` means the same.
fn sources(
    steps: &mut [Checked],
    ids: &BTreeMap<String, usize>,
    problems: &mut Problems,
) -> BTreeMap<usize, (usize, MessageDescriptor)> {
    let streams: BTreeMap<usize, MessageDescriptor> = steps
        .iter()
        .enumerate()
        .filter(|(_, checked)| checked.streams)
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
fn bind(
    index: usize,
    checked: Checked,
    catalog: &Catalog,
    sources: &BTreeMap<usize, (usize, MessageDescriptor)>,
    ids: &BTreeMap<String, usize>,
    names: &mut Names,
    problems: &mut Problems,
) -> (Place, Option<PlannedStep>) {
    let Checked { step, input, output, streams } = checked;
    let place = step.place.clone();
    let mut reads = Reads { ids, steps: BTreeSet::new(), item: false };
    names.item = None;
    names.item_is_bytes = sources.contains_key(&index);
    for (condition, place) in &step.when {
        check_condition(condition, place, names, problems);
        reads.take(condition);
    }
    let each = step.each.map(|each| (each, step.concurrency));
    let kind = step_kind(each, streams, sources.get(&index), names, &mut reads, problems);
    let mut waits_for = named_steps(&step.follows, ids, problems);
    if let Some((source, _)) = sources.get(&index) {
        waits_for.remove(source);
    }
    waits_for.extend(named_steps(&step.after, ids, problems));
    let call = format!("{}/{}", step.service, step.method);
    let bound = match (step.input, &input) {
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
    names.item = None;
    let undo = step.compensation.map(|undo| undo::bind(undo, catalog, ids, names, problems));
    let timeout = if streams { STREAM_TIMEOUT_DEFAULT_MS } else { CALL_TIMEOUT_DEFAULT_MS };
    let planned = match (kind, bound, output) {
        (Some(kind), Some(input), Some(output)) => Some(PlannedStep {
            decodes_item: reads.item && !matches!(input, BoundInput::Item),
            id: step.id.into(),
            service: step.service.into(),
            method: step.method.into(),
            input,
            when: step.when,
            output,
            kind,
            waits_for,
            unblocks: BTreeSet::new(),
            reads: reads.steps,
            output_is_decoded: false,
            retry: step.retry,
            timeout_ms: step.timeout_ms.unwrap_or(timeout),
            deadline_ms: step.deadline_ms,
            on_failure: step.on_failure,
            undo: undo.flatten(),
            idempotent: step.idempotent,
        }),
        _ => None,
    };
    (place, planned)
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
        None if streams => Some(StepKind::Source { takers: Vec::new() }),
        None => Some(StepKind::Call),
        Some(((each, place), concurrency)) => match (source, each) {
            (Some((source, item)), _) => {
                names.item = Some(Type::Message(item.clone()));
                let (source, item) = (*source, item.clone());
                Some(StepKind::EachItem { source, item, concurrency })
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
struct Reads<'a> {
    ids: &'a BTreeMap<String, usize>,
    steps: BTreeSet<usize>,
    item: bool,
}

impl Reads<'_> {
    fn take(&mut self, expression: &Expression) {
        for path in expression.paths() {
            match self.ids.get(&path[0]) {
                Some(step) => {
                    self.steps.insert(*step);
                }
                None => self.item |= path[0] == "item",
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::parse;
    use crate::testing::catalog;

    fn plan(text: &str) -> Result<Plan, Problems> {
        Plan::new(parse(text)?, &catalog())
    }

    /// A definition around the steps, each a line of flow YAML.
    fn steps(lines: &[&str]) -> String {
        let steps: String = lines.iter().map(|line| format!("  - {line}\n")).collect();
        format!(
            "name: p\nparameters: {{n: {{type: integer, default: 1}}, t: {{type: text, default: x}}}}\nsteps:\n{steps}"
        )
    }

    #[test]
    fn a_plan_knows_types_order_and_dependencies() {
        let plan = plan(&steps(&[
            "{id: last, call: test.Groups/Count, after: assign}",
            "{id: assign, call: test.Groups/Add, each: users, input: {user_id: '{{ item.id }}', group: 'g{{ page.total }}'}}",
            "{id: users, call: test.Users/List, input: {count: '{{ params.n }}'}}",
            "{id: page, call: test.Users/Page}",
            "{id: copy, call: test.Groups/AddUser, each: '{{ users }}', input: '{{ item }}'}",
            "{id: list, call: test.Groups/AddUser, each: '{{ page.users }}', input: '{{ item }}'}",
        ]))
        .unwrap();
        let at = |id: &str| plan.step(id).unwrap();
        let position = |id: &str| plan.order.iter().position(|step| *step == at(id)).unwrap();
        assert!(position("users") < position("assign") && position("page") < position("assign"));
        assert!(position("assign") < position("last"));
        let assign = &plan.steps[at("assign")];
        assert_eq!(assign.waits_for, BTreeSet::from([at("page")]));
        assert!(assign.decodes_item && plan.steps[at("page")].output_is_decoded);
        let copy = &plan.steps[at("copy")];
        assert!(matches!(copy.input, BoundInput::Item) && !copy.decodes_item);
        let StepKind::Source { takers } = &plan.steps[at("users")].kind else { panic!("a source") };
        assert_eq!(takers, &[at("assign"), at("copy")]);
        assert_eq!(plan.steps[at("users")].timeout_ms, STREAM_TIMEOUT_DEFAULT_MS);
        assert!(matches!(plan.steps[at("list")].kind, StepKind::EachElement { .. }));
    }

    #[test]
    fn inputs_are_checked_against_the_message() {
        let get = "{id: u, call: test.Users/Get}";
        let page = "{id: page, call: test.Users/Page}";
        for (line, want) in [
            (
                "{id: a, call: test.Groups/Add, input: {user_idd: 1}}",
                "steps[2].input.user_idd: test.Membership has no field `user_idd`; did you mean `user_id`? (line 6)",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: x}}",
                "steps[2].input.user_id: int64 is wanted, this is the text \"x\"",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: 'x{{ u.id }}'}}",
                "steps[2].input.user_id: int64 is wanted, this is text",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {group: 1}}",
                "steps[2].input.group: text is wanted, this is the number 1",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ u.name }}'}}",
                "steps[2].input.user_id: `u.name`: int64 is wanted, this is text",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ u.nam }}'}}",
                "steps[2].input.user_id: `u`: test.User has no field `nam`; did you mean `name`?",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ u.address.cty ~ 1 }}'}}",
                "`u.address`: test.Address has no field `cty`",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ u.name.x }}'}}",
                "`u.name` is text and has no field `x`",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ page.users.id }}'}}",
                "`page.users` is a list and has no field `id`",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ params.m }}'}}",
                "there is no parameter `m`; did you mean `n`?",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ params.t }}'}}",
                "`params.t`: int64 is wanted, this is text",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ item.id }}'}}",
                "`item` is known only in a step with `each`",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ x.id }}'}}",
                "steps[2].input.user_id: there is no step `x`",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user: '{{ page }}'}}",
                "`page`: test.User is wanted, this is a test.Page",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user: {address: {city: 1}}}}",
                "steps[2].input.user.address.city: text is wanted",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {ids: [1, x]}}",
                "steps[2].input.ids[1]: int64 is wanted",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {ids: 1}}",
                "steps[2].input.ids: a list of int64 is wanted",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: [1]}}",
                "steps[2].input.user_id: int64 is wanted, this is a list",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {scores: {a: x}}}",
                "steps[2].input.scores.a: int64 is wanted",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {colour: GREE}}",
                "steps[2].input.colour: test.Colour has no value `GREE`; did you mean `GREEN`?",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: 1, userId: 2}}",
                "steps[2].input.userId: it cannot be given beside `user_id`",
            ),
            (
                "{id: a, call: test.Groups/Add, input: u}",
                "steps[2].input: a test.Membership is wanted, this is the text \"u\"; a whole output is written `{{ u }}`",
            ),
            (
                "{id: a, call: test.Groups/Add, input: '{{ u }}'}",
                "steps[2].input: `u` is a test.User, and test.Groups/Add takes a test.Membership",
            ),
            (
                "{id: a, call: test.Groups/Add, input: '{{ u.id }}'}",
                "steps[2].input: a test.Membership is wanted, this is int64",
            ),
            (
                "{id: a, call: test.Groups/Add, input: [1]}",
                "steps[2].input: a map with the fields of test.Membership is wanted",
            ),
        ] {
            let problems = plan(&steps(&[get, page, line])).expect_err(line).to_string();
            assert!(problems.contains(want), "{line}: {problems}");
        }
    }

    #[test]
    fn calls_and_items_are_checked() {
        let users = "{id: users, call: test.Users/List}";
        let page = "{id: page, call: test.Users/Page}";
        for (line, want) in [
            (
                "{id: a, call: test.Groups/Ad}",
                "steps[2].call: test.Groups has no method `Ad`; did you mean `Add`?",
            ),
            (
                "{id: a, call: test.Group/Add}",
                "no service `test.Group` was ever registered; did you mean `test.Groups`?",
            ),
            (
                "{id: a, call: test.Users/Upload}",
                "steps[2].call: test.Users/Upload takes a stream of messages",
            ),
            (
                "{id: a, call: test.Users/List, each: users}",
                "test.Users/List gives a stream; with `each`",
            ),
            (
                "{id: a, call: test.Groups/Add, each: user}",
                "steps[2].each: there is no step `user`; did you mean `users`?",
            ),
            (
                "{id: a, call: test.Groups/Add, each: page}",
                "steps[2].each: `page` gives no stream; a list in its output is written `{{ page.FIELD }}`",
            ),
            (
                "{id: a, call: test.Groups/Add, each: '{{ page }}'}",
                "`page` is no list; `each` takes a list",
            ),
            (
                "{id: a, call: test.Groups/Add, each: '{{ page.total }}'}",
                "`page.total` is uint64; `each` takes a list",
            ),
            (
                "{id: a, call: test.Groups/Add, each: '{{ page.user }}'}",
                "test.Page has no field `user`",
            ),
            (
                "{id: a, call: test.Groups/Add, after: user}",
                "steps[2].after: there is no step `user`",
            ),
            (
                "{id: a, call: test.Groups/Add, input: {user_id: '{{ users.id }}'}}",
                "`users` gives a stream: another step takes its messages by `each: users`",
            ),
            (
                "{id: a, call: test.Groups/Add, each: users, input: {user_id: '{{ item.nam }}'}}",
                "`item`: test.User has no field `nam`",
            ),
            ("{id: a, call: test.Groups/Add, after: a}", "steps[2]: step `a` waits for itself"),
            (
                "{id: a, call: test.Groups/Add, each: users, after: users}",
                "these steps wait for each other: ",
            ),
        ] {
            let problems = plan(&steps(&[users, page, line])).expect_err(line).to_string();
            assert!(problems.contains(want), "{line}: {problems}");
        }
    }

    #[test]
    fn cycles_are_named() {
        let problems = plan(&steps(&[
            "{id: a, call: test.Groups/Count, after: c}",
            "{id: b, call: test.Groups/Count, after: [a]}",
            "{id: c, call: test.Groups/Add, input: {user_id: '{{ b.total }}'}}",
        ]))
        .expect_err("a cycle")
        .to_string();
        assert!(problems.contains("these steps wait for each other: "), "{problems}");
        for name in ["a", "b", "c"] {
            assert!(problems.contains(&format!("{name} → ")), "{problems}");
        }
    }

    /// Two streams, each with two takers, where the second taker of each waits for
    /// the first of the other: no stream could end, so it must be refused.
    #[test]
    fn streams_that_could_never_end_are_refused() {
        let lines = [
            "{id: s, call: test.Users/List}",
            "{id: t, call: test.Users/List}",
            "{id: s1, call: test.Groups/Add, each: s}",
            "{id: t1, call: test.Groups/Add, each: t}",
            "{id: s2, call: test.Groups/Add, each: s, after: t1}",
            "{id: t2, call: test.Groups/Add, each: t, after: s1}",
        ];
        let problems = plan(&steps(&lines)).expect_err("no stream ends").to_string();
        assert!(problems.contains("a stream ends when every step"), "{problems}");
        assert!(plan(&steps(&lines[..5])).is_ok());
    }

    #[test]
    fn a_long_chain_is_no_problem() {
        let lines: Vec<String> = (0..1000)
            .map(|n| match n {
                0 => "{id: s0, call: test.Groups/Count}".to_owned(),
                n => format!("{{id: s{n}, call: test.Groups/Count, after: s{}}}", n - 1),
            })
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).rev().collect();
        assert_eq!(plan(&steps(&lines)).unwrap().order.len(), 1000);
    }

    #[test]
    fn references_to_steps_with_broken_calls_cause_no_more_problems() {
        let problems = plan(&steps(&[
            "{id: a, call: no.Such/Thing}",
            "{id: b, call: test.Groups/Add, input: {user_id: '{{ a.x }}'}}",
            "{id: c, call: test.Groups/Add, each: a}",
        ]))
        .expect_err("no such service");
        assert_eq!(problems.iter().count(), 1, "{problems}");
    }
}
