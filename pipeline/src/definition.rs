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
//! `fields`, which hands out the fields of a map and names those nobody asked for.

use std::collections::BTreeSet;

use minijinja::Value;

use crate::document::{self, Content, Node};
use crate::expression::{Expression, RESERVED_NAMES, Template, Text, is_name};
use crate::fields::Fields;
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
    /// Where its items come from, when it runs once for each of many.
    pub each: Option<(Each, Place)>,
    /// How many items run at once.
    pub concurrency: u32,
    /// What happens when an attempt fails.
    pub retry: Retry,
    /// How long an attempt may take, in ms, when the definition says so.
    pub timeout_ms: Option<u64>,
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

/// What happens when an attempt fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// How many attempts in all, at least 1.
    pub attempts: u32,
    /// The wait before the second attempt, in ms.
    pub backoff_ms: u64,
    /// The longest wait, in ms.
    pub max_backoff_ms: u64,
    /// Every wait is this many times the one before.
    pub factor: f64,
}

impl Default for Retry {
    /// Eight attempts over half a minute: longer than a restart of a service or a
    /// broker takes, short enough that a person still watches.
    fn default() -> Self {
        Self { attempts: 8, backoff_ms: 200, max_backoff_ms: 10_000, factor: 2.0 }
    }
}

impl Retry {
    /// The most attempts: more is a loop that nobody looks at.
    pub const ATTEMPTS_MAX: u32 = 1000;

    /// The wait after `failures` failures, in ms. A quarter of it comes from
    /// `chance` (any bytes that differ from call to call), so that calls which
    /// failed together do not all come back together.
    pub fn wait_ms(&self, failures: u32, chance: u8) -> u64 {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let wait = self.backoff_ms as f64 * self.factor.powi(exponent);
        let wait = wait.min(self.max_backoff_ms as f64);
        let share = 0.75 + 0.25 * f64::from(chance) / 255.0;
        (wait * share) as u64
    }
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
    let steps = match fields.take("steps") {
        Some((node, place)) => steps(node, &place, &mut problems),
        None => {
            let _missing: String = fields.missing("steps", "the list of steps", &mut problems);
            Vec::new()
        }
    };
    fields.close(&mut problems);
    problems.into_result(Definition { name, parameters: parameters.unwrap_or_default(), steps })
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

fn steps(node: &Node, place: &Place, problems: &mut Problems) -> Vec<Step> {
    let Content::List(nodes) = &node.content else {
        problems.add(place, format!("a list of steps is wanted, this is {}", node.kind()));
        return Vec::new();
    };
    if nodes.is_empty() || nodes.len() > STEPS_MAX {
        let count = nodes.len();
        problems.add(place, format!("a pipeline has 1 to {STEPS_MAX} steps, this has {count}"));
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let place = place.index(index).on_line(node.line);
        let Some(step) = step(node, place, problems) else { continue };
        if !seen.insert(step.id.clone()) {
            let message = format!("there are two steps with the id `{}`", step.id);
            problems.add(&step.place.field("id"), message);
        }
        steps.push(step);
    }
    steps
}

fn step(node: &Node, place: Place, problems: &mut Problems) -> Option<Step> {
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
    let (service, method) = match fields.text("call", problems) {
        Some((call, place)) => match call.split_once('/') {
            Some((service, method)) if !service.is_empty() && !method.is_empty() => {
                (service.to_owned(), method.to_owned())
            }
            _ => {
                problems.add(&place, "a call is written `pkg.Service/Method`");
                (String::new(), String::new())
            }
        },
        None => (fields.missing("call", "`pkg.Service/Method`", problems), String::new()),
    };
    let input = match fields.take("input") {
        Some((node, place)) => shape(node, place, problems).map_or(Input::Empty, Input::Shape),
        None => Input::Empty,
    };
    let after = fields.take("after").map(|(node, place)| after(node, &place, problems));
    let each = fields.take("each").and_then(|(node, place)| each(node, place, problems));
    let step = Step {
        id,
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
        retry: fields
            .take("retry")
            .map(|(node, place)| retry(node, &place, problems))
            .unwrap_or_default(),
        timeout_ms: fields.duration("timeout", problems),
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

fn after(node: &Node, place: &Place, problems: &mut Problems) -> Vec<(String, Place)> {
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

fn retry(node: &Node, place: &Place, problems: &mut Problems) -> Retry {
    let default = Retry::default();
    let Some(mut fields) = Fields::open(node, place, problems) else { return default };
    let attempts = fields.whole("attempts", (1, Retry::ATTEMPTS_MAX), default.attempts, problems);
    let backoff_ms = fields.duration("backoff", problems).unwrap_or(default.backoff_ms);
    let max_backoff_ms = fields.duration("max_backoff", problems);
    let factor = match fields.take("factor") {
        Some((node, place)) => {
            let number = match node.content {
                Content::Integer(number) => number as f64,
                Content::Float(number) => number,
                _ => f64::NAN,
            };
            if !(1.0..=100.0).contains(&number) {
                problems.add(&place, "a number from 1 to 100 is wanted");
            }
            number
        }
        None => default.factor,
    };
    fields.close(problems);
    let max_backoff_ms = max_backoff_ms.unwrap_or(default.max_backoff_ms.max(backoff_ms));
    if max_backoff_ms < backoff_ms {
        problems.add(place, "max_backoff is shorter than backoff");
    }
    Retry { attempts, backoff_ms, max_backoff_ms, factor }
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
    retry: {attempts: 3, backoff: 200ms, max_backoff: 1.5s, factor: 1}
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
            Retry { attempts: 3, backoff_ms: 200, max_backoff_ms: 1500, factor: 1.0 }
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
            ("factor: 1}", "factor: 0}", "steps[1].retry.factor: a number from 1 to 100"),
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

    #[test]
    fn waits_grow_to_their_limit() {
        let retry = Retry { attempts: 9, backoff_ms: 100, max_backoff_ms: 1000, factor: 2.0 };
        let waits: Vec<u64> = (1..=6).map(|failures| retry.wait_ms(failures, 255)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(retry.wait_ms(1, 0), 75);
        assert_eq!(retry.wait_ms(u32::MAX, 255), 1000);
    }
}
