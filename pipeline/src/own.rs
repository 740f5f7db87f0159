//! Steps that call no service: they wait, run a pipeline, or send into a stream. What a definition says of
//! them.
//!
//! ```yaml
//! - {id: approval, wait: {signal: approved}}
//! - id: bill
//!   pipeline: billing                     # one that is stored, by its name
//!   parameters: {order: "{{ order.id }}"}
//! - id: orders
//!   each: "{{ params.orders }}"           # one run for each, four at once
//!   concurrency: 4
//!   pipeline:                             # or written down here
//!     name: one-order
//!     parameters: {id: {type: integer}}
//!     steps: [{id: ship, call: shop.Orders/Ship, input: {id: "{{ params.id }}"}}]
//!     outputs: {done: "{{ ship.done }}"}
//!   parameters: {id: "{{ item }}"}
//! ```
//!
//! Called by `definition`. `plan::own` checks them, `run` and the scheduler do them.

use crate::definition::{
    CONCURRENCY_DEFAULT, CONCURRENCY_MAX, Definition, Shape, ShapeContent, Step, after, condition,
    each, parse_node, shape,
};
use crate::document::{Content, Node};
use crate::expression::Expression;
use crate::failure::{OnFailure, Retry, compensation, on_failure, retry};
use crate::feed::Sending;
use crate::fields::Fields;
use crate::problem::{Place, Problems};
use crate::wait::{Wait, wait};

/// How many pipelines may be inside each other.
pub const PIPELINES_DEEP_MAX: u32 = 8;

/// What a step does that calls no service.
#[derive(Debug)]
pub enum Own {
    /// It waits.
    Wait(Wait),
    /// It runs a pipeline.
    Pipeline(Sub),
    /// It sends a message into a stream that is open.
    Send(Sending),
}

/// A pipeline that a step runs.
#[derive(Debug)]
pub struct Sub {
    /// Its name.
    pub name: String,
    /// Where that stands.
    pub place: Place,
    /// The pipeline, when it is written down in the step; else one that is stored.
    pub inline: Option<Inline>,
    /// What it is started with.
    pub parameters: Option<Shape>,
}

/// A pipeline in a pipeline.
#[derive(Debug)]
pub struct Inline {
    /// What is written.
    pub definition: Box<Definition>,
    /// The same as JSON.
    pub text: String,
}

impl Own {
    /// What it does, for people.
    pub fn words(&self) -> String {
        match self {
            Self::Wait(Wait::Signal(name)) => format!("wait for signal {name}"),
            Self::Wait(Wait::For(ms)) => format!("wait for {ms} ms"),
            Self::Wait(Wait::Until(_)) => "wait for a time".to_owned(),
            Self::Wait(Wait::Run(_)) => "wait for a run".to_owned(),
            Self::Pipeline(sub) => format!("pipeline {}", sub.name),
            Self::Send(sending) => format!("send to {}", sending.to),
        }
    }
}

/// Whether a step calls no service.
pub(crate) fn is_own(fields: &Fields<'_>) -> bool {
    fields.has("wait") || fields.has("pipeline") || fields.has("send")
}

/// Reads the rest of a step that calls no service. Its id is read.
pub(crate) fn step(
    mut fields: Fields<'_>,
    id: String,
    place: Place,
    default: OnFailure,
    mut when: Vec<(Expression, Place)>,
    problems: &mut Problems,
) -> Option<Step> {
    let kinds = ["call", "wait", "pipeline", "send"];
    if kinds.iter().filter(|name| fields.has(name)).count() > 1 {
        problems.add(&place, "a step has one of `call`, `wait`, `pipeline` and `send`");
        return None;
    }
    let places = fields.take("after").map(|(node, place)| after(node, &place, problems));
    when.extend(condition(&mut fields, problems));
    let deadline_ms = fields.duration("deadline", problems);
    let step = Step {
        after: places.unwrap_or_default(),
        when,
        deadline_ms,
        on_failure: on_failure(&mut fields, default, problems),
        artifact: crate::artifact::artifact(&mut fields, problems),
        ..Step::bare(id, place)
    };
    match (fields.has("wait"), fields.has("send")) {
        (true, _) => waiting(fields, step, problems),
        (_, true) => crate::feed::sending(fields, step, problems),
        _ => running(fields, step, problems),
    }
}

fn waiting(mut fields: Fields<'_>, step: Step, problems: &mut Problems) -> Option<Step> {
    let found = wait(&mut fields, problems);
    fields.close_as("a step that waits", problems);
    let (wait, timeout_ms) = found?;
    Some(Step {
        deadline_ms: step.deadline_ms.into_iter().chain(timeout_ms).min(),
        own: Some(Own::Wait(wait)),
        ..step
    })
}

fn running(mut fields: Fields<'_>, step: Step, problems: &mut Problems) -> Option<Step> {
    let sub = sub(&mut fields, &step.place, problems);
    let items = fields.take("each").and_then(|(node, place)| each(node, place, problems));
    let several = (1, CONCURRENCY_MAX);
    let concurrency = fields.whole("concurrency", several, CONCURRENCY_DEFAULT, problems);
    if items.is_none() && fields.has("concurrency") {
        let text = "only a step with `each` runs several at once";
        problems.add(&step.place.field("concurrency"), text);
    }
    let step = Step {
        each: items,
        concurrency,
        retry: retry(&mut fields, Retry::NONE, problems),
        timeout_ms: fields.duration("timeout", problems),
        compensation: compensation(&mut fields, problems),
        own: None,
        ..step
    };
    fields.close_as("a step that runs a pipeline", problems);
    Some(Step { own: Some(Own::Pipeline(sub?)), ..step })
}

fn sub(fields: &mut Fields<'_>, around: &Place, problems: &mut Problems) -> Option<Sub> {
    let found = fields.take("pipeline");
    let parameters = fields.take("parameters").and_then(|(node, place)| {
        let shape = shape(node, place, problems)?;
        if !matches!(shape.content, ShapeContent::Map(_) | ShapeContent::Expression(_)) {
            let text = "a map of the pipeline's parameters is wanted, or one expression";
            problems.add(&shape.place, text);
        }
        Some(shape)
    });
    let Some((node, place)) = found else {
        fields.missing("pipeline", "the name of a stored pipeline, or a pipeline", problems);
        return None;
    };
    if let Content::Text(name) = &node.content {
        return Some(Sub { name: name.clone(), place, inline: None, parameters });
    }
    // A step's place names every pipeline around it.
    let depth = around.path.matches(".pipeline.").count() as u32 + 1;
    if depth > PIPELINES_DEEP_MAX {
        let text = format!("more than {PIPELINES_DEEP_MAX} pipelines are inside each other");
        problems.add(&place, text);
        return None;
    }
    let definition = Box::new(parse_node(node, &place, problems)?);
    let name = definition.name.clone();
    let inline = Some(Inline { definition, text: json(node) });
    Some(Sub { name, place, inline, parameters })
}

/// What is written, as JSON.
pub(crate) fn json(node: &Node) -> String {
    // A node has only text, numbers and the like: what JSON has.
    serde_json::to_string(&node.to_value()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::parse;

    #[test]
    fn pipelines_are_read_with_their_places() {
        let text = "name: t\nsteps:\n  - id: a\n    pipeline:\n      name: inner\n      steps:\n        - {id: b, call: c.D/E}\n    parameters: {x: 1}\n  - {id: n, pipeline: stored, each: '{{ params }}', concurrency: 2}\n";
        let definition = parse(text).unwrap_or_else(|why| panic!("{why}"));
        let Some(Own::Pipeline(sub)) = &definition.steps[0].own else { panic!("a pipeline") };
        let inline = sub.inline.as_ref().unwrap();
        assert_eq!((sub.name.as_str(), inline.definition.steps.len()), ("inner", 1));
        assert_eq!(inline.definition.steps[0].place.path, "steps[0].pipeline.steps[0]");
        assert_eq!(inline.definition.steps[0].place.line, Some(7));
        assert_eq!(parse(&inline.text).unwrap().steps[0].id, "b");
        let Some(Own::Pipeline(sub)) = &definition.steps[1].own else { panic!("a pipeline") };
        assert!(sub.inline.is_none() && definition.steps[1].concurrency == 2);
        assert_eq!(definition.services().into_iter().collect::<Vec<_>>(), ["c.D"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (step, want) in [
            (
                "pipeline: {name: x, stps: []}",
                "steps[0].pipeline.stps: unknown field `stps`; did you mean `steps`?",
            ),
            (
                "pipeline: {name: x, steps: [{id: b, cal: c.D/E}]}",
                "steps[0].pipeline.steps[0].cal: unknown field `cal`; did you mean `call`?",
            ),
            (
                "pipeline: x, input: {}",
                "steps[0].input: unknown field `input`; a step that runs a pipeline has",
            ),
            (
                "pipeline: x, parameters: 7",
                "steps[0].parameters: a map of the pipeline's parameters",
            ),
            ("pipeline: 7", "steps[0].pipeline: a map is wanted, this is a number"),
            ("pipeline: x, concurrency: 4", "steps[0].concurrency: only a step with `each`"),
        ] {
            let text = format!("name: t\nsteps: [{{id: a, {step}}}]");
            let why = parse(&text).expect_err(step).to_string();
            assert!(why.contains(want), "{step}: {why}");
        }
    }

    #[test]
    fn pipelines_too_deep_are_refused() {
        let nest = |depth: usize| {
            let mut text = "{id: s, call: c.D/E}".to_owned();
            for level in 0..depth {
                text = format!("{{id: s{level}, pipeline: {{name: p, steps: [{text}]}}}}");
            }
            parse(&format!("name: t\nsteps: [{text}]"))
        };
        assert!(nest(PIPELINES_DEEP_MAX as usize).is_ok());
        let why = nest(PIPELINES_DEEP_MAX as usize + 1).expect_err("too deep").to_string();
        assert!(why.contains("more than 8 pipelines are inside each other"), "{why}");
    }
}
