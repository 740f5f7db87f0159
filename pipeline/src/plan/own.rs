//! Steps that call no service, checked: waits, pipelines that steps run, messages sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost_reflect::{DescriptorPool, MessageDescriptor};

use super::Plan;
use super::bind::{Checked, Reads};
use crate::catalog::Catalog;
use crate::definition::{self, Definition, Own, Shape, ShapeContent, Step};
use crate::input::BoundInput;
use crate::json::Json;
use crate::names::Names;
use crate::own::{PIPELINES_DEEP_MAX, Sub};
use crate::problem::{Problems, suggest};
use crate::wait::{Until, Wait};

/// The service of the calls that the scheduler answers itself: runs of pipelines.
pub const RUNS: &str = "zex.Runs";

/// Starts a pipeline; answered when its run has ended.
pub const RUNS_START: &str = "Start";

/// Answered when a run has ended.
pub const RUNS_END: &str = "End";

/// What a checked step does that calls no service.
#[derive(Debug)]
pub enum PlannedOwn {
    /// It waits for a signal.
    Signal(Arc<str>),
    /// It waits so many ms.
    For(u64),
    /// It waits for a point in time.
    Until(Until),
    /// It waits for the end of another run.
    Run,
    /// It sends messages into the stream of this step.
    Send(usize),
    /// It runs a pipeline.
    Pipeline {
        /// Its name.
        name: Arc<str>,
        /// The pipeline, when it is written down in the step; else one that is stored.
        text: Option<Arc<str>>,
    },
}

impl PlannedOwn {
    /// Whether the run itself does it, without a call.
    pub(super) fn is_wait(&self) -> bool {
        matches!(self, Self::Signal(_) | Self::For(_) | Self::Until(_))
    }

    /// The service and method of the call that the scheduler answers.
    pub(super) fn call(&self) -> (&'static str, &'static str) {
        match self {
            Self::Signal(_) | Self::For(_) | Self::Until(_) | Self::Send(_) => ("", ""),
            Self::Run => (RUNS, RUNS_END),
            Self::Pipeline { .. } => (RUNS, RUNS_START),
        }
    }
}

/// What is known of a step that calls no service. Its output is JSON and no message.
pub(super) fn checked(step: Step) -> Checked {
    Checked { step, input: None, output: Some(any()), takes: false, streams: false }
}

/// Stands where a message is wanted and there is only JSON.
fn any() -> MessageDescriptor {
    DescriptorPool::global()
        .get_message_by_name("google.protobuf.Value")
        // The global pool is made with the well-known types.
        .expect("google.protobuf.Value is a well-known type")
}

/// Binds what a step does that calls no service.
pub(super) fn bind(
    own: Own,
    sends_to: Option<usize>,
    catalog: &Catalog,
    names: &Names,
    reads: &mut Reads<'_>,
    problems: &mut Problems,
) -> Option<(PlannedOwn, BoundInput)> {
    let mut json = |shape: Shape, problems: &mut Problems| {
        for (expression, _) in shape.expressions() {
            reads.take(expression);
        }
        BoundInput::Json(Json::bind(shape, names, problems))
    };
    Some(match own {
        Own::Wait(Wait::Signal(name)) => (PlannedOwn::Signal(name.into()), BoundInput::Empty),
        Own::Wait(Wait::For(ms)) => (PlannedOwn::For(ms), BoundInput::Empty),
        Own::Wait(Wait::Run(shape)) => (PlannedOwn::Run, json(shape, problems)),
        Own::Wait(Wait::Until(until)) => {
            if let Until::Expression(expression, place) = &until {
                for path in expression.paths() {
                    if let Err(why) = names.resolve(path) {
                        problems.add(place, why);
                        break;
                    }
                }
                reads.take(expression);
            }
            (PlannedOwn::Until(until), BoundInput::Empty)
        }
        Own::Send(_) => (PlannedOwn::Send(sends_to?), BoundInput::Empty),
        Own::Pipeline(sub) => {
            let Sub { name, place, inline, parameters } = sub;
            let text = match inline {
                None => {
                    check_stored(&name, catalog, parameters.as_ref(), problems, &place)?;
                    None
                }
                Some(inline) => {
                    check_given(parameters.as_ref(), &inline.definition, &place, problems);
                    let planned = Plan::new(*inline.definition, catalog);
                    if let Err(inner) = planned {
                        inner.iter().for_each(|problem| problems.push(problem.clone()));
                    }
                    Some(inline.text.into())
                }
            };
            let input = parameters.map_or(BoundInput::Empty, |shape| json(shape, problems));
            (PlannedOwn::Pipeline { name: name.into(), text }, input)
        }
    })
}

/// Whether the parameters that are given are those that a pipeline has.
fn check_given(
    given: Option<&Shape>,
    definition: &Definition,
    place: &crate::problem::Place,
    problems: &mut Problems,
) {
    let entries = match given.map(|shape| &shape.content) {
        Some(ShapeContent::Map(entries)) => entries.as_slice(),
        None => &[],
        // What an expression gives is seen when it runs.
        Some(_) => return,
    };
    let known = || definition.parameters.iter().map(|parameter| parameter.name.as_str());
    for (name, shape) in entries {
        let parameter = definition.parameters.iter().find(|parameter| parameter.name == *name);
        let Some(parameter) = parameter else {
            let near = suggest(name, known());
            let text = format!("`{}` has no parameter `{name}`{near}", definition.name);
            problems.add(&shape.place, text);
            continue;
        };
        if let ShapeContent::Literal(value) = &shape.content
            && !parameter.kind.takes(value)
        {
            let (wanted, words) = (parameter.kind.words(), crate::message::words(value));
            problems.add(&shape.place, format!("{wanted} is wanted, this is {words}"));
        }
    }
    for parameter in &definition.parameters {
        let given = entries.iter().any(|(name, _)| *name == parameter.name);
        if !given && parameter.default.is_none() {
            let text =
                format!("`{}` must be given its parameter `{}`", definition.name, parameter.name);
            problems.add(given_place(entries, place), text);
        }
    }
}

fn given_place<'a>(
    entries: &'a [(String, Shape)],
    place: &'a crate::problem::Place,
) -> &'a crate::problem::Place {
    entries.first().map_or(place, |(_, shape)| &shape.place)
}

/// Whether a stored pipeline is there, and ends up in itself.
fn check_stored(
    name: &str,
    catalog: &Catalog,
    given: Option<&Shape>,
    problems: &mut Problems,
    place: &crate::problem::Place,
) -> Option<()> {
    // A run that is loaded again was checked when it was recorded.
    let Some(stored) = catalog.pipelines() else { return Some(()) };
    let Some(text) = stored.get(name) else {
        let near = suggest(name, stored.keys().map(String::as_str));
        let text = format!(
            "there is no stored pipeline `{name}`{near} (`zex pipeline save FILE` stores one)"
        );
        problems.add(place, text);
        return None;
    };
    let mut walk = Walk { stored, trail: Vec::new(), heights: BTreeMap::new() };
    if let Err(why) = walk.follow(name) {
        problems.add(place, why);
        return None;
    }
    if let Ok(definition) = definition::parse(text) {
        check_given(given, &definition, place, problems);
    }
    Some(())
}

/// Follows the names of stored pipelines down, each once.
struct Walk<'a> {
    stored: &'a BTreeMap<String, Arc<str>>,
    /// The names above.
    trail: Vec<String>,
    /// How many pipelines are inside each other in those that were followed.
    heights: BTreeMap<String, usize>,
}

impl Walk<'_> {
    /// How many pipelines are inside each other, from this one on.
    fn follow(&mut self, name: &str) -> Result<usize, String> {
        let again = self.trail.iter().any(|above| above == name);
        self.trail.push(name.to_owned());
        if again {
            return Err(format!("these pipelines run each other: {}", self.trail.join(" → ")));
        }
        let known = self.heights.get(name).copied();
        if self.trail.len() + known.unwrap_or(1) - 1 > PIPELINES_DEEP_MAX as usize {
            let trail = self.trail.join(" → ");
            return Err(format!(
                "more than {PIPELINES_DEEP_MAX} pipelines are inside each other: {trail}"
            ));
        }
        let height = match known {
            Some(height) => height,
            None => {
                let text = self.stored.get(name).cloned();
                match text.and_then(|text| definition::parse(&text).ok()) {
                    Some(definition) => 1 + self.inside(&definition)?,
                    None => 1,
                }
            }
        };
        self.trail.pop();
        self.heights.insert(name.to_owned(), height);
        Ok(height)
    }

    fn inside(&mut self, definition: &Definition) -> Result<usize, String> {
        let mut most = 0;
        for step in &definition.steps {
            let height = match &step.own {
                Some(Own::Pipeline(Sub { inline: Some(inline), .. })) => {
                    self.inside(&inline.definition)?
                }
                Some(Own::Pipeline(sub)) => self.follow(&sub.name)?,
                Some(Own::Wait(_) | Own::Send(_)) | None => 0,
            };
            most = most.max(height);
        }
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::parse;
    use crate::testing::catalog;

    fn plan(steps: &str, stored: &[(&str, &str)]) -> Result<Plan, Problems> {
        let mut catalog = catalog();
        let stored = stored.iter().map(|(name, text)| ((*name).to_owned(), Arc::from(*text)));
        catalog.set_pipelines(stored.collect());
        let head = "name: p\nparameters: {n: {type: integer, default: 1}}";
        Plan::new(parse(&format!("{head}\nsteps: [{steps}]"))?, &catalog)
    }

    const INNER: &str = "name: inner\nparameters: {id: {type: integer}, x: {type: text, default: y}}\nsteps: [{id: a, call: test.Groups/Count}]";

    #[test]
    fn pipelines_and_their_parameters_are_checked() {
        let inline = "{id: s, pipeline: {name: i, parameters: {id: {type: integer}}, steps: [{id: a, call: test.Groups/";
        for (steps, want) in [
            (
                "{id: s, pipeline: iner, parameters: {id: 1}}",
                "steps[0].pipeline: there is no stored pipeline `iner`; did you mean `inner`? (`zex pipeline save FILE` stores one)",
            ),
            (
                "{id: s, pipeline: inner, parameters: {id: 1, idd: 2}}",
                "steps[0].parameters.idd: `inner` has no parameter `idd`; did you mean `id`?",
            ),
            (
                "{id: s, pipeline: inner, parameters: {x: z}}",
                "`inner` must be given its parameter `id`",
            ),
            (
                "{id: s, pipeline: inner, parameters: {id: z}}",
                "steps[0].parameters.id: a whole number is wanted, this is the text \"z\"",
            ),
            (
                "{id: s, pipeline: inner, parameters: {id: '{{ params.m }}'}}",
                "steps[0].parameters.id: there is no parameter `m`; did you mean `n`?",
            ),
            (
                &format!("{inline}Cout}}]}}, parameters: {{id: 1}}}}"),
                "steps[0].pipeline.steps[0].call: test.Groups has no method `Cout`; did you mean `Count`?",
            ),
            (
                &format!("{inline}Count}}]}}}}"),
                "steps[0].pipeline: `i` must be given its parameter `id`",
            ),
            (
                "{id: s, wait: {until: '{{ params.m }}'}}",
                "steps[0].wait.until: there is no parameter `m`",
            ),
            ("{id: s, wait: {run: '{{ t.id }}'}}", "steps[0].wait.run: there is no step `t`"),
            ("{id: s, wait: {run: '{{ s }}'}}", "step `s` waits for itself"),
        ] {
            let why = plan(steps, &[("inner", INNER)]).expect_err(steps).to_string();
            assert!(why.contains(want), "{steps}: {why}");
        }
        assert!(
            plan(
                "{id: s, pipeline: inner, parameters: {id: '{{ params.n }}'}}",
                &[("inner", INNER)]
            )
            .is_ok()
        );
    }

    #[test]
    fn pipelines_that_run_each_other_are_refused() {
        let stored = |of: &str| format!("name: x\nsteps: [{{id: s, pipeline: {of}}}]");
        let (a, b) = (stored("b"), stored("a"));
        let why = plan("{id: s, pipeline: a}", &[("a", &a), ("b", &b)]).expect_err("a cycle");
        assert!(why.to_string().contains("these pipelines run each other: a → b → a"), "{why}");
        let names: Vec<String> = (0..10).map(|n| format!("p{n}")).collect();
        let texts: Vec<String> = (0..10)
            .map(|n| match n {
                9 => "name: x\nsteps: [{id: s, call: test.Groups/Count}]".to_owned(),
                n => stored(&format!("p{}", n + 1)),
            })
            .collect();
        let all: Vec<(&str, &str)> =
            names.iter().zip(&texts).map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let why = plan("{id: s, pipeline: p0}", &all).expect_err("too deep").to_string();
        assert!(why.contains("more than 8 pipelines are inside each other: p0 → p1"), "{why}");
        assert!(plan("{id: s, pipeline: p2}", &all).is_ok());
    }

    #[test]
    fn polls_artifacts_and_outputs_are_checked() {
        for (steps, want) in [
            (
                "{id: s, call: test.Groups/Count, poll: {until: '{{ s.totl > 3 }}'}}",
                "steps[0].poll.until: `s`: test.Reply has no field `totl`; did you mean `total`?",
            ),
            (
                "{id: s, call: test.Groups/Count, poll: {until: '{{ s.total }}'}}",
                "steps[0].poll.until: `s.total`: true or false is wanted, this is uint64",
            ),
            (
                "{id: s, call: test.Users/List, poll: {until: '{{ s.id }}'}}",
                "steps[0].poll: a stream does not poll",
            ),
            (
                "{id: s, call: test.Groups/Count, artifact: {name: a, field: nam}}",
                "steps[0].artifact: test.Reply has no field `nam`",
            ),
            (
                "{id: s, call: test.Groups/Count, artifact: {name: a, field: total}}",
                "steps[0].artifact: `total` is uint64; bytes or text is wanted",
            ),
            (
                "{id: s, call: test.Groups/Count, artifact: a}, {id: t, call: test.Groups/Count, artifact: a}",
                "steps[1].artifact: there are two artifacts with the name `a`",
            ),
            (
                "{id: s, wait: {for: 1s}, artifact: {name: a, field: b}}",
                "steps[0].artifact: this step gives no message",
            ),
        ] {
            let why = plan(steps, &[]).expect_err(steps).to_string();
            assert!(why.contains(want), "{steps}: {why}");
        }
        let text =
            "name: p\noutputs: {x: '{{ t.total }}'}\nsteps: [{id: s, call: test.Groups/Count}]";
        let why =
            Plan::new(parse(text).unwrap(), &catalog()).expect_err("no such step").to_string();
        assert!(why.contains("outputs.x: there is no step `t`"), "{why}");
    }
}
