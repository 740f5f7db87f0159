//! A pipeline as it is written: parameters and steps, read from YAML or JSON.
//!
//! ```yaml
//! name: assign-users
//! parameters:
//!   groups: {type: integer, default: 3}
//! steps:
//!   - id: users
//!     call: shop.Users/List
//!   - id: assign
//!     call: shop.Groups/Add
//!     each: users                       # once for every message of that stream
//!     concurrency: 64
//!     input:
//!       user_id: "{{ item.id }}"
//!       group: "g{{ item.id % params.groups }}"
//!     retry: {attempts: 8, backoff: 200ms}
//!     timeout: 10s
//! ```
//!
//! This file checks what can be told from the text alone: fields, types, names.
//! `plan` checks the rest against the services' descriptors.
//!
//! Parts: [`Definition`] and what it is made of · `shape`, what a step sends ·
//! `failure`, what it says of that · `fields`, which hands out the fields of a map and
//! names those nobody asked for.

use std::collections::BTreeSet;

use crate::artifact::{Artifact, artifact};
use crate::begin::{Key, Start, key, start};
use crate::change::{OnChange, on_change};
use crate::document::{self, Content, Node};
use crate::expression::{Expression, RESERVED_NAMES, Template, is_name};
use crate::extend::{self, Extends};
use crate::failure::{Compensation, OnFailure, Retry, call, compensation, on_failure, retry};
use crate::feed::stays_open;
use crate::fields::Fields;
use crate::hook::{Hook, hooks};
use crate::label::{self, Wanted};
use crate::limits::{Limits, Priority, limits, priority};
use crate::nesting;
pub use crate::own::Own;
use crate::parameters::{Parameter, parameters};
use crate::problem::{Place, Problems};
pub use crate::shape::{Input, Shape, ShapeContent};
pub(crate) use crate::shape::{input, shape, shape_names};
use crate::wait::{Poll, poll};

/// The most steps a definition may have. Each step has state in the scheduler's
/// memory for as long as the run lives; what grows with data belongs into `each`.
pub const STEPS_MAX: usize = 1000;
/// The longest id of a step or name of a parameter, in bytes.
pub const NAME_MAX_BYTES: usize = 64;
/// The longest name of a pipeline, in bytes.
pub const PIPELINE_NAME_MAX_BYTES: usize = 128;
/// How many items of an `each` run at once when nothing is said.
pub const CONCURRENCY_DEFAULT: u32 = 16;
/// The most items of one `each` that run at once: each holds its input in memory.
pub const CONCURRENCY_MAX: u32 = 4096;
/// The most items of a batch.
pub const BATCH_MAX: u32 = 10_000;
/// The most items of one `each` in calls at once, where they are put together in batches.
pub const BATCHED_MAX: u32 = 1 << 16;
/// How long an attempt of a call may take when nothing is said, in ms.
pub const CALL_TIMEOUT_DEFAULT_MS: u64 = 60_000;
/// How long a stream may take when nothing is said, in ms. A source is read only
/// as fast as its items are worked off, so this is long: a day.
pub const STREAM_TIMEOUT_DEFAULT_MS: u64 = 24 * 3_600_000;
/// The longest timeout, in ms: what the wire can carry is longer than any use of it.
pub const TIMEOUT_MAX_MS: u64 = 30 * 24 * 3_600_000;

/// A pipeline as it is written.
#[derive(Debug)]
pub struct Definition {
    /// Its name; runs are listed by it.
    pub name: String,
    /// What it can be started with.
    pub parameters: Vec<Parameter>,
    /// Its steps, in the order of the text.
    pub steps: Vec<Step>,
    /// How often the run is tried as a whole: each time what has failed is done again.
    pub retry: Retry,
    /// How long one try of the run may take, in ms, when the definition says so.
    pub timeout_ms: Option<u64>,
    /// How long the run may take in all, in ms, when the definition says so.
    pub deadline_ms: Option<u64>,
    /// What it may take of the scheduler.
    pub limits: Limits,
    /// Its share where there is not enough for all.
    pub priority: Priority,
    /// When a run begins.
    pub start: Start,
    /// The key under which one run goes on at a time.
    pub key: Option<Key>,
    /// What a run gives when it has succeeded.
    pub outputs: Option<Shape>,
    /// Whom a run tells of its states.
    pub hooks: Vec<Hook>,
    /// How long a run is kept after its end, in ms, when the definition says so.
    pub keep_ms: Option<u64>,
    /// Its steps are added to runs of another pipeline; it has none of its own.
    pub extends: Option<Extends>,
}

/// One step: a call, or one call for each of many items.
#[derive(Debug)]
pub struct Step {
    /// Its name in this pipeline; later steps read its output by it.
    pub id: String,
    /// The service it calls.
    pub service: String,
    /// The method it calls.
    pub method: String,
    /// What it sends.
    pub input: Input,
    /// Steps that must have succeeded before, besides those it reads from.
    pub after: Vec<(String, Place)>,
    /// Steps that the groups around it put before it. It need not wait for the end of
    /// one of which it takes the items.
    pub follows: Vec<(String, Place)>,
    /// Conditions: it runs if all of them are true.
    pub when: Vec<(Expression, Place)>,
    /// Where its items come from, when it runs once for each of many.
    pub each: Option<(Each, Place)>,
    /// How many items, or batches, run at once.
    pub concurrency: u32,
    /// How many results of the step before may wait for this one.
    pub buffer: Option<u32>,
    /// How items are put together into one call.
    pub batch: Option<Batch>,
    /// What happens when an attempt fails.
    pub retry: Retry,
    /// How long an attempt may take, in ms, when the definition says so.
    pub timeout_ms: Option<u64>,
    /// How long all attempts together may take, in ms, when the definition says so.
    pub deadline_ms: Option<u64>,
    /// What happens when no attempt is left.
    pub on_failure: OnFailure,
    /// How its effect is taken back.
    pub compensation: Option<Compensation>,
    /// Whether the mesh may give a call to a second worker when the first dies with it.
    pub idempotent: bool,
    /// Which workers it wants, when the definition says so.
    pub wanted: Option<Wanted>,
    /// It is of the last phase.
    pub finalize: bool,
    /// The stream of messages that its method takes stays open until all else has
    /// succeeded.
    pub open: bool,
    /// Each message that its method gives is progress, the last its output.
    pub progress: bool,
    /// How long nothing may be heard of it, in ms.
    pub heartbeat_ms: Option<u64>,
    /// What it does instead of calling a service.
    pub own: Option<Own>,
    /// It calls until its answer is what is waited for.
    pub poll: Option<Poll>,
    /// The name under which its result is kept.
    pub artifact: Option<Artifact>,
    /// What becomes of it when its method has changed.
    pub on_change: OnChange,
    /// Where it stands in the definition.
    pub place: Place,
}

/// How the items of an `each` are put together into calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// How many items a call takes.
    pub items: u32,
    /// How long the first waits for others, in ms; without it until there are enough.
    pub within_ms: Option<u64>,
}

/// Where the items of an `each` come from.
#[derive(Debug)]
pub enum Each {
    /// The messages of the stream that the step with this id gives.
    Step(String),
    /// The elements of a list.
    List(Expression),
}

/// Reads a definition's text.
pub fn parse(text: &str) -> Result<Definition, Problems> {
    let node = document::parse(text)?;
    let mut problems = Problems::default();
    match parse_node(&node, &Place::root().on_line(node.line), &mut problems) {
        Some(definition) => problems.into_result(definition),
        None => Err(problems),
    }
}

/// Reads a definition that stands anywhere.
pub(crate) fn parse_node(
    node: &Node,
    place: &Place,
    problems: &mut Problems,
) -> Option<Definition> {
    let mut fields = Fields::open(node, place, problems)?;
    let name = match fields.text("name", problems) {
        Some((name, place)) => {
            if name.is_empty()
                || name.len() > PIPELINE_NAME_MAX_BYTES
                || name.chars().any(char::is_control)
            {
                let most = PIPELINE_NAME_MAX_BYTES;
                problems
                    .add(&place, format!("a name has 1 to {most} bytes and no control characters"));
            }
            name
        }
        None => fields.missing("name", "the name of the pipeline", problems),
    };
    if fields.has("extends") {
        return extend::definition(fields, name, place, problems);
    }
    let of_run = fields.take("parameters");
    let parameters = of_run.as_ref().map(|(node, place)| parameters(node, place, problems));
    let default = on_failure(&mut fields, OnFailure::Fail, problems);
    let retry = retry(&mut fields, Retry::NONE, problems);
    let timeout_ms = fields.duration("timeout", problems);
    let deadline_ms = fields.duration("deadline", problems);
    let limits = limits(&mut fields, problems);
    let priority = priority(&mut fields, problems);
    let (start, key) = (start(&mut fields, problems), key(&mut fields, problems));
    let outputs = fields.take("outputs").and_then(|(node, place)| shape(node, place, problems));
    let hooks = hooks(&mut fields, &name, of_run.map(|(node, _)| node), problems);
    let keep_ms = fields.duration("keep", problems);
    let steps = match fields.take("steps") {
        Some((node, place)) => {
            let finalize = fields.take("finalize");
            nesting::steps(node, &place, finalize, default, problems)
        }
        None => {
            let _missing: String = fields.missing("steps", "the list of steps", problems);
            Vec::new()
        }
    };
    // It is not there; a name near it may have been meant for it.
    fields.take("extends");
    fields.close(problems);
    Some(Definition {
        name,
        parameters: parameters.unwrap_or_default(),
        steps,
        retry,
        timeout_ms,
        deadline_ms,
        limits,
        priority,
        start,
        key,
        outputs,
        hooks,
        keep_ms,
        extends: None,
    })
}

impl Definition {
    /// Every service that a run of it may call.
    pub fn services(&self) -> BTreeSet<&str> {
        let mut all = self.services_of_steps();
        all.extend(self.hooks.iter().flat_map(|hook| hook.definition.services_of_steps()));
        all
    }

    /// Every service that its steps may call: those of hooks are not needed to begin.
    pub fn services_of_steps(&self) -> BTreeSet<&str> {
        let called = self.steps.iter().map(|step| &step.service);
        let undo = self.steps.iter().filter_map(|step| step.compensation.as_ref());
        let all = called.chain(undo.map(|undo| &undo.service)).map(String::as_str);
        let inner = self.steps.iter().filter_map(|step| match &step.own {
            Some(Own::Pipeline(sub)) => sub.inline.as_ref(),
            Some(Own::Wait(_) | Own::Send(_)) | None => None,
        });
        let inner = inner.flat_map(|inline| inline.definition.services());
        all.chain(inner).filter(|service| !service.is_empty()).collect()
    }

    /// The names that have to have a worker before its steps can run: the services, and those
    /// under the labels that steps are pinned to.
    pub fn needed(&self) -> BTreeSet<String> {
        let pinned =
            self.steps.iter().filter_map(|step| step.wanted.as_ref()?.pinned(&step.service));
        self.services_of_steps().into_iter().map(str::to_owned).chain(pinned).collect()
    }

    /// A definition with one step and nothing else.
    pub(crate) fn bare(name: String, step: Step) -> Self {
        Self { steps: vec![step], ..Self::empty(name) }
    }

    /// A definition without a step.
    pub(crate) fn empty(name: String) -> Self {
        Self {
            name,
            parameters: Vec::new(),
            steps: Vec::new(),
            retry: Retry::NONE,
            timeout_ms: None,
            deadline_ms: None,
            limits: Limits::default(),
            priority: Priority::default(),
            start: Start::default(),
            key: None,
            outputs: None,
            hooks: Vec::new(),
            keep_ms: None,
            extends: None,
        }
    }
}

impl Step {
    /// A step that does nothing yet.
    pub(crate) fn bare(id: String, place: Place) -> Self {
        Self {
            id,
            service: String::new(),
            method: String::new(),
            input: Input::Empty,
            after: Vec::new(),
            follows: Vec::new(),
            when: Vec::new(),
            each: None,
            concurrency: CONCURRENCY_DEFAULT,
            retry: Retry::default(),
            timeout_ms: None,
            deadline_ms: None,
            on_failure: OnFailure::Fail,
            compensation: None,
            idempotent: false,
            wanted: None,
            finalize: false,
            open: false,
            progress: false,
            heartbeat_ms: None,
            batch: None,
            buffer: None,
            own: None,
            poll: None,
            artifact: None,
            on_change: OnChange::default(),
            place,
        }
    }

    /// What it does, for people: `pkg.Service/Method`, or words.
    pub fn words(&self) -> String {
        match &self.own {
            Some(own) => own.words(),
            None => format!("{}/{}", self.service, self.method),
        }
    }
}

/// A name cut so that something can be put behind it.
pub(crate) fn cut_name(name: &str) -> &str {
    /// Room for what is put behind.
    const ROOM_BYTES: usize = 16;
    let most = PIPELINE_NAME_MAX_BYTES - ROOM_BYTES;
    let end = (0..=most.min(name.len())).rev().find(|at| name.is_char_boundary(*at));
    &name[..end.unwrap_or(0)]
}

/// `500ms`, `1.5s`, `5m`, `2h` in ms; the command line writes durations the same way.
pub fn duration_ms(text: &str) -> Option<u64> {
    let unit_at = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let unit_ms = match unit {
        "ms" => 1.0,
        "s" => 1_000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        _ => return None,
    };
    let number = number.trim().parse::<f64>().ok().filter(|number| number.is_finite())?;
    (number >= 0.0).then_some((number * unit_ms) as u64)
}

pub(crate) fn name_rule(what: &str) -> String {
    format!(
        "{what} is made of a-z, A-Z, 0-9 and _, begins with a letter, and has at most {NAME_MAX_BYTES} bytes"
    )
}

/// Reads one step. `when` holds the conditions of the groups around it.
pub(crate) fn step(
    node: &Node,
    place: Place,
    default: OnFailure,
    mut when: Vec<(Expression, Place)>,
    problems: &mut Problems,
) -> Option<Step> {
    let mut fields = Fields::open(node, &place, problems)?;
    let id = match fields.text("id", problems) {
        Some((id, place)) => {
            if !is_name(&id) || id.starts_with('_') || id.len() > NAME_MAX_BYTES {
                problems.add(&place, name_rule("the id of a step"));
            } else if RESERVED_NAMES.contains(&id.as_str()) {
                problems.add(&place, format!("`{id}` means something else in expressions"));
            }
            id
        }
        None => fields.missing("id", "what other steps call it", problems),
    };
    if crate::own::is_own(&fields) {
        return crate::own::step(fields, id, place, default, when, problems);
    }
    // They are not there; without a call a name near theirs may have been meant for one of them.
    if !fields.has("call") {
        for other in ["wait", "pipeline", "send", "sequence", "concurrence"] {
            fields.take(other);
        }
    }
    let (service, method) = call(&mut fields, problems);
    let input = input(&mut fields, problems);
    let after = fields.take("after").map(|(node, place)| after(node, &place, problems));
    let each = fields.take("each").and_then(|(node, place)| each(node, place, problems));
    when.extend(condition(&mut fields, problems));
    let batch = batch(&mut fields, problems);
    let buffer = fields.take("buffer").is_some();
    let buffer = buffer.then(|| fields.whole("buffer", (1, BATCHED_MAX), 1, problems));
    let step = Step {
        id,
        follows: Vec::new(),
        when,
        service,
        method,
        input,
        after: after.unwrap_or_default(),
        concurrency: fields.whole(
            "concurrency",
            (1, CONCURRENCY_MAX),
            CONCURRENCY_DEFAULT,
            problems,
        ),
        retry: retry(&mut fields, Retry::default(), problems),
        timeout_ms: fields.duration("timeout", problems),
        deadline_ms: fields.duration("deadline", problems),
        on_failure: on_failure(&mut fields, default, problems),
        compensation: compensation(&mut fields, problems),
        idempotent: fields.boolean("idempotent", problems),
        wanted: label::wanted(&mut fields, problems),
        finalize: false,
        open: stays_open(&mut fields, problems),
        progress: fields.boolean("progress", problems),
        heartbeat_ms: fields.duration("heartbeat", problems),
        batch,
        buffer,
        own: None,
        poll: poll(&mut fields, problems),
        artifact: artifact(&mut fields, problems),
        on_change: on_change(&mut fields, problems),
        each,
        place,
    };
    if step.each.is_some() {
        if step.poll.is_some() {
            problems.add(&step.place.field("poll"), "a step with `each` does not poll");
        }
        if step.artifact.is_some() {
            let text = "the results of a step with `each` are not kept";
            problems.add(&step.place.field("artifact"), text);
        }
    }
    if step.each.is_none() && fields.take("concurrency").is_some() {
        problems
            .add(&step.place.field("concurrency"), "only a step with `each` runs several at once");
    }
    check_batch(&step, problems);
    check_progress(&step, problems);
    fields.close(problems);
    Some(step)
}

/// Reads `batch`.
fn batch(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Batch> {
    let (node, place) = fields.take("batch")?;
    let mut fields = Fields::open(node, &place, problems)?;
    let given = fields.take("items").is_some();
    let items = fields.whole("items", (1, BATCH_MAX), 1, problems);
    let within_ms = fields.duration("within", problems);
    if !given {
        let _missing: String = fields.missing("items", "how many a call takes", problems);
    }
    fields.close(problems);
    Some(Batch { items, within_ms })
}

/// Whether what is said of its progress goes together with the rest.
fn check_progress(step: &Step, problems: &mut Problems) {
    let place = |field: &str| step.place.field(field);
    if step.heartbeat_ms.is_some() && !step.progress {
        problems
            .add(&place("heartbeat"), "only of a step with `progress: true` something is heard");
    }
    if step.progress && step.poll.is_some() {
        problems.add(&place("poll"), "a step that reports its progress does not poll");
    }
}

fn check_batch(step: &Step, problems: &mut Problems) {
    let Some(batch) = step.batch else { return };
    let place = step.place.field("batch");
    if step.each.is_none() {
        problems.add(&place, "only the items of a step with `each` are put together");
    }
    let at_once = u64::from(batch.items) * u64::from(step.concurrency);
    if at_once > u64::from(BATCHED_MAX) {
        let message = format!(
            "{} items in {} calls at once are {at_once}; the most is {BATCHED_MAX}",
            batch.items, step.concurrency
        );
        problems.add(&place, message);
    }
}

/// Reads `when`.
pub(crate) fn condition(
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) -> Option<(Expression, Place)> {
    let (text, place) = fields.text("when", problems)?;
    match Template::compile(&text) {
        Ok(Template::Expression(condition)) => return Some((condition, place)),
        Ok(Template::Literal(_) | Template::Text(_)) => {
            problems.add(&place, "a condition is one expression in braces, nothing around it");
        }
        Err(error) => problems.add(&place, error.to_string()),
    }
    None
}

pub(crate) fn after(node: &Node, place: &Place, problems: &mut Problems) -> Vec<(String, Place)> {
    shape_names(node, place, "the id of a step", problems)
}

pub(crate) fn each(node: &Node, place: Place, problems: &mut Problems) -> Option<(Each, Place)> {
    let Content::Text(text) = &node.content else {
        let kind = node.kind();
        problems
            .add(&place, format!("the id of a step or a list in braces is wanted, this is {kind}"));
        return None;
    };
    let each = match Template::compile(text) {
        Ok(Template::Literal(id)) => Each::Step(id),
        Ok(Template::Expression(expression)) => Each::List(expression),
        Ok(Template::Text(_)) => {
            problems.add(&place, "text is no list: give one expression, nothing around it");
            return None;
        }
        Err(error) => {
            problems.add(&place, error.to_string());
            return None;
        }
    };
    Some((each, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name: assign-users
parameters:
  groups: {type: integer, default: 3}
  prefix: {type: text}
steps:
  - id: users
    call: test.Users/List
  - id: assign
    call: test.Groups/Add
    each: users
    concurrency: 64
    after: [users]
    input:
      user_id: "{{ item.id }}"
      group: "g{{ item.id % params.groups }}"
      ids: [1, "{{ item.id }}"]
    retry: {attempts: 3, backoff: 200ms, max_backoff: 1.5s, factor: 1, jitter: 0.5}
    timeout: 10s
    idempotent: true
"#;

    #[test]
    fn a_definition_is_read() {
        let definition = parse(GOOD).unwrap();
        assert_eq!(definition.name, "assign-users");
        let step = &definition.steps[1];
        assert_eq!((step.service.as_str(), step.method.as_str()), ("test.Groups", "Add"));
        assert_eq!((step.concurrency, step.timeout_ms, step.idempotent), (64, Some(10_000), true));
        assert_eq!(
            step.retry,
            Retry {
                attempts: 3,
                backoff_ms: 200,
                max_backoff_ms: 1500,
                factor: 1.0,
                jitter: 0.5,
                ..Retry::default()
            }
        );
        let Input::Shape(shape) = &step.input else { panic!("an input") };
        assert_eq!(shape.expressions().len(), 3);
        assert_eq!(shape.expressions()[0].1.path, "steps[1].input.user_id");
        assert_eq!(shape.expressions()[0].1.line, Some(15));
    }

    #[test]
    fn what_is_wrong_is_named_with_place_and_line() {
        for (from, to, want) in [
            (
                "call: test.Groups/Add",
                "cal: test.Groups/Add",
                "steps[1].cal: unknown field `cal`; did you mean `call`? (line 10)",
            ),
            ("call: test.Groups/Add", "cal: test.Groups/Add", "steps[1]: `call` is missing"),
            ("name: assign-users", "title: x", "`name` is missing"),
            ("name: assign-users", "name: [1]", "name: text is wanted, this is a list (line 2)"),
            (
                "id: users\n",
                "id: item\n",
                "steps[0].id: `item` means something else in expressions (line 7)",
            ),
            ("id: users\n", "id: 1a\n", "steps[0].id: the id of a step is made of"),
            (
                "id: users\n",
                "id: assign\n",
                "steps[1].id: there are two steps with the id `assign`",
            ),
            (
                "test.Users/List",
                "test.Users",
                "steps[0].call: a call is written `pkg.Service/Method` (line 8)",
            ),
            (
                "concurrency: 64",
                "concurrency: 0",
                "steps[1].concurrency: a whole number from 1 to 4096 is wanted (line 12)",
            ),
            (
                "each: users",
                "",
                "steps[1].concurrency: only a step with `each` runs several at once",
            ),
            (
                "each: users",
                "each: [1]",
                "steps[1].each: the id of a step or a list in braces is wanted",
            ),
            ("each: users", "each: x{{ users }}", "steps[1].each: text is no list"),
            (
                "after: [users]",
                "after: [{}]",
                "steps[1].after[0]: the id of a step is wanted, this is a map",
            ),
            (
                "{{ item.id }}\"\n      group",
                "{{ item.id \"\n      group",
                "steps[1].input.user_id: `{{` is not closed by `}}` (line 15)",
            ),
            (
                "attempts: 3",
                "max: 3",
                "steps[1].retry.max: unknown field `max`; there is attempts, backoff",
            ),
            ("backoff: 200ms", "backoff: 200", "steps[1].retry.backoff: a time such as 500ms"),
            (
                "max_backoff: 1.5s",
                "max_backoff: 1ms",
                "steps[1].retry: max_backoff is shorter than backoff",
            ),
            ("factor: 1,", "factor: 0,", "steps[1].retry.factor: a number from 1 to 100"),
            ("jitter: 0.5", "jitter: 2", "steps[1].retry.jitter: a number from 0 to 1"),
            (
                "timeout: 10s",
                "on_failure: stop",
                "steps[1].on_failure: fail, pause or skip is wanted, not `stop`",
            ),
            (
                "timeout: 10s",
                "on_failure: skp",
                "steps[1].on_failure: fail, pause or skip is wanted, not `skp`; did you mean `skip`?",
            ),
            ("timeout: 10s", "deadline: 10", "steps[1].deadline: a time such as"),
            ("timeout: 10s", "when: x", "steps[1].when: a condition is one expression in braces"),
            ("timeout: 10s", "when: '{{ }'", "steps[1].when: `{{` is not closed"),
            (
                "  - id: users\n    call: test.Users/List",
                "  - {sequence: [], id: x}",
                "steps[0].id: unknown field `id`; a group has sequence, concurrence, after, when",
            ),
            (
                "  - id: users\n    call: test.Users/List",
                "  - {sequence: [], concurrence: []}",
                "steps[0]: a group is either a `sequence` or a `concurrence`",
            ),
            (
                "  - id: users\n    call: test.Users/List",
                "  - sequence: [{concurrence: [{id: users, cal: x.Y/Z}]}]",
                "steps[0].sequence[0].concurrence[0].cal: unknown field `cal`; did you mean `call`?",
            ),
            (
                "timeout: 10s",
                "compensate: test.Groups",
                "steps[1].compensate: a call is written `pkg.Service/Method`",
            ),
            (
                "timeout: 10s",
                "compensate: {cal: test.Groups/Remove}",
                "steps[1].compensate.cal: unknown field `cal`; did you mean `call`?",
            ),
            (
                "name: assign-users",
                "name: x\nretry: {atempts: 3}",
                "retry.atempts: unknown field `atempts`; did you mean `attempts`? (line 3)",
            ),
            ("timeout: 10s", "timeout: 0s", "steps[1].timeout: a time such as"),
            ("timeout: 10s", "timeout: 721h", "steps[1].timeout: a time such as"),
            (
                "idempotent: true",
                "idempotent: yes",
                "steps[1].idempotent: true or false is wanted, this is text",
            ),
            ("type: integer", "type: int", "parameters.groups.type: there is no type `int`"),
            (
                "default: 3",
                "default: x",
                "parameters.groups.default: a whole number is wanted, this is text (line 4)",
            ),
            (
                "prefix: {type: text}",
                "prefix: text",
                "parameters.prefix: a map is wanted, this is text",
            ),
            ("prefix: {type: text}", "prefix: {}", "parameters.prefix: `type` is missing"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let text = GOOD.replacen(from, to, 1);
            let problems = parse(&text).expect_err(to).to_string();
            assert!(problems.contains(want), "{to}: {problems}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let many = format!("name: x\nsteps: [{}]", "{},".repeat(STEPS_MAX + 1));
        for (text, want) in [
            ("12", "a map is wanted, this is a number"),
            ("name: x", "`steps` is missing"),
            ("name: x\nsteps: {}", "steps: a list of steps is wanted, this is a map"),
            ("name: x\nsteps: []", "steps: a pipeline has 1 to 1000 steps, this has 0"),
            (&many, "this has 1001"),
            ("name: x\nsteps: [1]", "steps[0]: a map is wanted, this is a number"),
            ("name: ''\nsteps: []", "name: a name has 1 to 128 bytes"),
        ] {
            let problems = parse(text).expect_err(text).to_string();
            assert!(problems.contains(want), "{text:.40}: {problems}");
        }
    }

    #[test]
    fn parameters_are_checked_and_filled_in() {
        let definition = parse(GOOD).unwrap();
        let values = definition.parameters(r#"{"prefix": "p"}"#).unwrap();
        assert_eq!(values.get_attr("groups").unwrap(), minijinja::Value::from(3));
        for (given, want) in [
            ("", "parameters.prefix: text must be given"),
            (r#"{"prefix": 1}"#, "parameters.prefix: text is wanted, this is a number"),
            (
                r#"{"prefix": "p", "group": 1}"#,
                "there is no parameter `group`; did you mean `groups`?",
            ),
            (r#"{"prefix": "p", "groups": 1.5}"#, "parameters.groups: a whole number is wanted"),
            ("[1]", "parameters: the parameters must be a JSON object"),
            ("{", "parameters: not JSON"),
        ] {
            let problems = definition.parameters(given).expect_err(given).to_string();
            assert!(problems.contains(want), "{given}: {problems}");
        }
    }
}
