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
//! Parts: [`Definition`] and what it is made of · [`Input`], what a step sends ·
//! `failure`, what it says of that · `fields`, which hands out the fields of a map and
//! names those nobody asked for.

use std::collections::BTreeSet;

use minijinja::Value;

use crate::document::{self, Content, Node};
use crate::expression::{Expression, RESERVED_NAMES, Template, Text, is_name};
use crate::failure::{Compensation, OnFailure, Retry, call, compensation, on_failure, retry};
use crate::fields::Fields;
use crate::nesting;
use crate::parameters::{Parameter, parameters};
use crate::problem::{Place, Problem, Problems};

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
    /// How many items run at once.
    pub concurrency: u32,
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
    /// Where it stands in the definition.
    pub place: Place,
}

/// Where the items of an `each` come from.
#[derive(Debug)]
pub enum Each {
    /// The messages of the stream that the step with this id gives.
    Step(String),
    /// The elements of a list.
    List(Expression),
}

/// What a step sends.
#[derive(Debug)]
pub enum Input {
    /// Nothing is said: an empty message.
    Empty,
    /// A map of fields, or one expression.
    Shape(Shape),
}

/// A value with expressions in it, and where it stands.
#[derive(Debug)]
pub struct Shape {
    /// Where it stands in the definition.
    pub place: Place,
    /// What it is.
    pub content: ShapeContent,
}

/// What a [`Shape`] is.
#[derive(Debug)]
pub enum ShapeContent {
    /// A value without expressions.
    Literal(Value),
    /// One expression, its value keeps its type.
    Expression(Expression),
    /// Text with expressions.
    Text(Text),
    /// A list.
    List(Vec<Shape>),
    /// A map.
    Map(Vec<(String, Shape)>),
}

/// Reads a definition's text.
pub fn parse(text: &str) -> Result<Definition, Problems> {
    let node = document::parse(text)?;
    let mut problems = Problems::default();
    let mut fields = match Fields::open(&node, &Place::root().on_line(node.line), &mut problems) {
        Some(fields) => fields,
        None => return Err(problems),
    };
    let name = match fields.text("name", &mut problems) {
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
        None => fields.missing("name", "the name of the pipeline", &mut problems),
    };
    let parameters =
        fields.take("parameters").map(|(node, place)| parameters(node, &place, &mut problems));
    let default = on_failure(&mut fields, OnFailure::Fail, &mut problems);
    let retry = retry(&mut fields, Retry::NONE, &mut problems);
    let timeout_ms = fields.duration("timeout", &mut problems);
    let deadline_ms = fields.duration("deadline", &mut problems);
    let steps = match fields.take("steps") {
        Some((node, place)) => nesting::steps(node, &place, default, &mut problems),
        None => {
            let _missing: String = fields.missing("steps", "the list of steps", &mut problems);
            Vec::new()
        }
    };
    fields.close(&mut problems);
    let parameters = parameters.unwrap_or_default();
    problems.into_result(Definition { name, parameters, steps, retry, timeout_ms, deadline_ms })
}

impl Definition {
    /// Every service that a run of it may call.
    pub fn services(&self) -> BTreeSet<&str> {
        let called = self.steps.iter().map(|step| &step.service);
        let undo = self.steps.iter().filter_map(|step| step.compensation.as_ref());
        let all = called.chain(undo.map(|undo| &undo.service));
        all.map(String::as_str).filter(|service| !service.is_empty()).collect()
    }
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
    let (service, method) = call(&mut fields, problems);
    let input = input(&mut fields, problems);
    let after = fields.take("after").map(|(node, place)| after(node, &place, problems));
    let each = fields.take("each").and_then(|(node, place)| each(node, place, problems));
    when.extend(condition(&mut fields, problems));
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
        each,
        place,
    };
    if step.each.is_none() && fields.take("concurrency").is_some() {
        problems
            .add(&step.place.field("concurrency"), "only a step with `each` runs several at once");
    }
    fields.close(problems);
    Some(step)
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

/// Reads `input`.
pub(crate) fn input(fields: &mut Fields<'_>, problems: &mut Problems) -> Input {
    match fields.take("input") {
        Some((node, place)) => shape(node, place, problems).map_or(Input::Empty, Input::Shape),
        None => Input::Empty,
    }
}

pub(crate) fn after(node: &Node, place: &Place, problems: &mut Problems) -> Vec<(String, Place)> {
    let one = |node: &Node, place: Place, problems: &mut Problems| match &node.content {
        Content::Text(id) => Some((id.clone(), place)),
        _ => {
            problems.add(&place, format!("the id of a step is wanted, this is {}", node.kind()));
            None
        }
    };
    match &node.content {
        Content::List(nodes) => {
            let each = nodes.iter().enumerate();
            each.filter_map(|(index, node)| {
                one(node, place.index(index).on_line(node.line), problems)
            })
            .collect()
        }
        _ => one(node, place.clone(), problems).into_iter().collect(),
    }
}

fn each(node: &Node, place: Place, problems: &mut Problems) -> Option<(Each, Place)> {
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

/// A value with its expressions compiled. What has none inside becomes a literal.
fn shape(node: &Node, place: Place, problems: &mut Problems) -> Option<Shape> {
    let content = match &node.content {
        Content::Text(text) => match Template::compile(text) {
            Ok(Template::Literal(text)) => ShapeContent::Literal(Value::from(text)),
            Ok(Template::Expression(expression)) => ShapeContent::Expression(expression),
            Ok(Template::Text(text)) => ShapeContent::Text(text),
            Err(error) => {
                problems.push(Problem { message: error.to_string(), ..place.problem("") });
                return None;
            }
        },
        Content::List(nodes) => {
            let shapes = nodes.iter().enumerate().filter_map(|(index, node)| {
                shape(node, place.index(index).on_line(node.line), problems)
            });
            ShapeContent::List(shapes.collect())
        }
        Content::Map(entries) => {
            let shapes = entries.iter().filter_map(|(key, node)| {
                let place = place.field(key).on_line(node.line);
                shape(node, place, problems).map(|shape| (key.clone(), shape))
            });
            ShapeContent::Map(shapes.collect())
        }
        _ => ShapeContent::Literal(node.to_value()),
    };
    Some(Shape { place, content })
}

impl Shape {
    /// Every expression in it, with its place.
    pub fn expressions(&self) -> Vec<(&Expression, &Place)> {
        match &self.content {
            ShapeContent::Literal(_) => Vec::new(),
            ShapeContent::Expression(expression) => vec![(expression, &self.place)],
            ShapeContent::Text(text) => {
                text.expressions().map(|expression| (expression, &self.place)).collect()
            }
            ShapeContent::List(shapes) => shapes.iter().flat_map(Self::expressions).collect(),
            ShapeContent::Map(shapes) => {
                shapes.iter().flat_map(|(_, shape)| shape.expressions()).collect()
            }
        }
    }
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
            Retry { attempts: 3, backoff_ms: 200, max_backoff_ms: 1500, factor: 1.0, jitter: 0.5 }
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
        assert_eq!(values.get_attr("groups").unwrap(), Value::from(3));
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
