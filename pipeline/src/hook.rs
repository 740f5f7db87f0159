//! Hooks: methods that are called when a run comes into a state.
//!
//! ```yaml
//! hooks:
//!   - on: [failed, cancelled]
//!     call: shop.Mail/Send
//!     input: {to: boss, text: "{{ params.event.name }} {{ params.event.run_id }}: {{ params.event.reason }}"}
//! ```
//!
//! A hook is a run of its own with one step, so it is recorded, tried again, seen and
//! cancelled like any other. It has the parameters of the run it tells of, and `event`.
//!
//! Called by `definition`; `plan` checks the call, the scheduler starts the runs.

use minijinja::Value;

use crate::definition::{Definition, Step, input, shape_names};
use crate::document::{Content, Node};
use crate::failure::{Retry, call, retry};
use crate::fields::Fields;
use crate::own::json;
use crate::parameters::{Parameter, ParameterKind, parameters};
use crate::problem::{Place, Problems, suggest};
use crate::state::RunState;

/// The most hooks of a pipeline.
pub const HOOKS_MAX: usize = 16;

/// The parameter of a hook that says what happened.
pub const EVENT: &str = "event";

/// A method that is called when a run comes into a state.
#[derive(Debug)]
pub struct Hook {
    /// The states.
    pub on: Vec<RunState>,
    /// The run that makes the call.
    pub definition: Definition,
    /// The same as JSON.
    pub text: String,
}

/// Reads `hooks`.
pub(crate) fn hooks(
    fields: &mut Fields<'_>,
    name: &str,
    of_run: Option<&Node>,
    problems: &mut Problems,
) -> Vec<Hook> {
    let Some((node, place)) = fields.take("hooks") else { return Vec::new() };
    let Content::List(nodes) = &node.content else {
        problems.add(&place, format!("a list of hooks is wanted, this is {}", node.kind()));
        return Vec::new();
    };
    if nodes.len() > HOOKS_MAX {
        problems.add(&place, format!("{} hooks; the most is {HOOKS_MAX}", nodes.len()));
        return Vec::new();
    }
    let hooks = nodes.iter().enumerate().filter_map(|(index, node)| {
        let place = place.index(index).on_line(node.line);
        hook(node, place, name, of_run, problems)
    });
    hooks.collect()
}

fn hook(
    node: &Node,
    place: Place,
    name: &str,
    of_run: Option<&Node>,
    problems: &mut Problems,
) -> Option<Hook> {
    let mut fields = Fields::open(node, &place, problems)?;
    let on = states(&mut fields, problems);
    let (service, method) = call(&mut fields, problems);
    let step = Step {
        service,
        method,
        input: input(&mut fields, problems),
        retry: retry(&mut fields, Retry::default(), problems),
        timeout_ms: fields.duration("timeout", problems),
        idempotent: fields.boolean("idempotent", problems),
        ..Step::bare("hook".to_owned(), place.clone())
    };
    fields.close(problems);
    // What is wrong with them was said where they stand.
    let mut known = of_run.map(|node| parameters(node, &Place::root(), &mut Problems::default()));
    if known.iter().flatten().any(|parameter| parameter.name == EVENT) {
        let text = format!("a pipeline with hooks has no parameter `{EVENT}`: hooks have one");
        problems.add(&place, text);
        return None;
    }
    let mut all = known.take().unwrap_or_default();
    let empty = Value::from_pairs(Vec::<(String, Value)>::new());
    let kind = ParameterKind::Map;
    all.push(Parameter { name: EVENT.to_owned(), kind, default: Some(empty) });
    let name = format!("{}/hook", crate::definition::cut_name(name));
    let text = text(&name, node, of_run);
    Some(Hook {
        on,
        definition: Definition { parameters: all, ..Definition::bare(name, step) },
        text,
    })
}

/// The definition of the run that makes the call.
fn text(name: &str, hook: &Node, of_run: Option<&Node>) -> String {
    let plain = |content: Content| Node { line: None, content };
    let word = |text: &str| plain(Content::Text(text.to_owned()));
    let mut step = vec![("id".to_owned(), word("hook"))];
    if let Content::Map(entries) = &hook.content {
        step.extend(entries.iter().filter(|(key, _)| key != "on").cloned());
    }
    let mut parameters = match of_run.map(|node| &node.content) {
        Some(Content::Map(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    let event = [("type", word("map")), ("default", plain(Content::Map(Vec::new())))];
    let event = event.map(|(key, node)| (key.to_owned(), node));
    parameters.push((EVENT.to_owned(), plain(Content::Map(event.into()))));
    let whole = [
        ("name", word(name)),
        ("parameters", plain(Content::Map(parameters))),
        ("steps", plain(Content::List(vec![plain(Content::Map(step))]))),
    ];
    json(&plain(Content::Map(whole.map(|(key, node)| (key.to_owned(), node)).into())))
}

fn states(fields: &mut Fields<'_>, problems: &mut Problems) -> Vec<RunState> {
    let Some((node, place)) = fields.take("on") else {
        fields.missing("on", "the states of the run that it tells of", problems);
        return Vec::new();
    };
    let names = shape_names(node, &place, "the name of a state", problems);
    let states = names.into_iter().filter_map(|(name, place)| {
        let state = RunState::from_name(&name);
        if state.is_none() {
            let near = suggest(&name, RunState::ALL.map(RunState::name));
            problems.add(&place, format!("there is no state `{name}`{near}"));
        }
        state
    });
    states.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::parse;

    fn read(hook: &str) -> Result<Definition, Problems> {
        parse(&format!(
            "name: t\nparameters: {{who: {{type: text}}}}\nsteps: [{{id: a, call: b.C/D}}]\nhooks:\n  - {hook}"
        ))
    }

    #[test]
    fn a_hook_is_a_pipeline_with_the_parameters_of_its_run() {
        let definition = read(
            "{on: [failed, paused], call: b.C/Tell, input: {x: '{{ params.who }} {{ params.event.state }}'}}",
        )
        .unwrap_or_else(|why| panic!("{why}"));
        let hook = &definition.hooks[0];
        assert_eq!(hook.on, [RunState::Failed, RunState::Paused]);
        let run = parse(&hook.text).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((run.name.as_str(), run.steps[0].method.as_str()), ("t/hook", "Tell"));
        assert!(run.parameters(r#"{"who": "Ann", "event": {"state": "failed"}}"#).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (hook, want) in [
            (
                "{on: faild, call: b.C/D}",
                "hooks[0].on: there is no state `faild`; did you mean `failed`?",
            ),
            ("{call: b.C/D}", "hooks[0]: `on` is missing"),
            ("{on: failed}", "hooks[0]: `call` is missing"),
            (
                "{on: failed, call: b.C/D, inpt: 1}",
                "hooks[0].inpt: unknown field `inpt`; did you mean `input`?",
            ),
            (
                "{on: [7], call: b.C/D}",
                "hooks[0].on[0]: the name of a state is wanted, this is a number",
            ),
        ] {
            let why = read(hook).expect_err(hook).to_string();
            assert!(why.contains(want), "{hook}: {why}");
        }
        let text = "name: t\nparameters: {event: {type: map}}\nsteps: [{id: a, call: b.C/D}]\nhooks: [{on: failed, call: b.C/D}]";
        assert!(
            parse(text)
                .expect_err("a name that is taken")
                .to_string()
                .contains("no parameter `event`")
        );
    }
}
