//! Pipelines that add steps to another, which does not know of it.
//!
//! ```yaml
//! name: audit
//! extends: {pipeline: order, after: ship}
//! steps:
//!   - {id: note, call: shop.Mail/Send, input: {to: audit, text: "order {{ order.id }}"}}
//! ```
//!
//! ```text
//!  a run of `order` is recorded ─▶ its definition with the steps of all that extend it
//!                                  ─▶ checked, kept with the run, and run like any other
//! ```
//!
//! So a run has what it had when it was recorded, whatever is stored or removed later.
//!
//! Called by `definition`, to read one, and by the scheduler, to put them together.

use crate::definition::{Definition, after};
use crate::document::{self, Content, Node};
use crate::failure::OnFailure;
use crate::fields::Fields;
use crate::problem::{Place, Problem, Problems};
use crate::{nesting, own};

/// Which pipeline is extended, and where.
#[derive(Debug)]
pub struct Extends {
    /// Its name.
    pub pipeline: String,
    /// The steps of it that must have ended before.
    pub after: Vec<(String, Place)>,
    /// Where this stands.
    pub place: Place,
}

/// One that is stored: its name and its text.
#[derive(Debug, Clone, Copy)]
pub struct Extension<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is written.
    pub text: &'a str,
}

/// Reads the rest of a pipeline that extends another. Its name is read.
pub(crate) fn definition(
    mut fields: Fields<'_>,
    name: String,
    place: &Place,
    problems: &mut Problems,
) -> Option<Definition> {
    let extends = extends(&mut fields, problems);
    if !place.path.is_empty() {
        problems.add(&place.field("extends"), "only a pipeline that is stored extends another");
    }
    let steps = match fields.take("steps") {
        Some((node, place)) => nesting::steps(node, &place, None, OnFailure::Fail, problems),
        None => {
            let _missing: String = fields.missing("steps", "the steps that it adds", problems);
            Vec::new()
        }
    };
    fields.close_as("a pipeline that extends another", problems);
    Some(Definition { steps, extends: Some(extends?), ..Definition::empty(name) })
}

fn extends(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Extends> {
    let (node, place) = fields.take("extends")?;
    let mut fields = Fields::open(node, &place, problems)?;
    let pipeline = match fields.text("pipeline", problems) {
        Some((name, _)) => name,
        None => fields.missing("pipeline", "the name of the pipeline", problems),
    };
    let after = fields.take("after").map(|(node, place)| after(node, &place, problems));
    fields.close(problems);
    Some(Extends { pipeline, after: after.unwrap_or_default(), place })
}

/// The text of a pipeline with the steps that others add to it, behind its own.
///
/// # Errors
/// What is wrong with the texts.
pub fn extended(text: &str, extensions: &[Extension<'_>]) -> Result<String, Problems> {
    let mut node = document::parse(text)?;
    for extension in extensions {
        let added = document::parse(extension.text).map_err(|problem| of(extension, problem))?;
        let group = Content::Map(vec![
            ("concurrence".to_owned(), field(&added, "steps")),
            ("after".to_owned(), field(&field(&added, "extends"), "after")),
        ]);
        let Content::Map(entries) = &mut node.content else { continue };
        let steps = entries.iter_mut().find(|(name, _)| name == "steps");
        if let Some((_, Node { content: Content::List(steps), .. })) = steps {
            steps.push(Node { line: None, content: group });
        }
    }
    Ok(own::json(&node))
}

/// What is wrong with a pipeline and those that extend it, named by the text in which it
/// stands. `own` is how many steps and groups the pipeline itself has.
pub fn named(problems: &Problems, own: usize, extensions: &[Extension<'_>]) -> Problems {
    let mut named = Problems::default();
    for problem in problems.iter() {
        let found = extensions.iter().enumerate().find_map(|(index, extension)| {
            let group = format!("steps[{}]", own + index);
            let rest = problem.place.strip_prefix(&group)?;
            let below = match (rest.strip_prefix(".concurrence"), rest.strip_prefix(".after")) {
                (Some(below), _) => format!("steps{below}"),
                (_, Some(below)) => format!("extends.after{below}"),
                _ => rest.to_owned(),
            };
            Some(of(extension, Problem { place: below, ..problem.clone() }))
        });
        named.push(found.unwrap_or_else(|| problem.clone()));
    }
    named
}

/// How many steps and groups stand in the list of a pipeline's text.
pub fn top_steps(text: &str) -> usize {
    let steps = document::parse(text).map(|node| field(&node, "steps").content);
    match steps {
        Ok(Content::List(steps)) => steps.len(),
        _ => 0,
    }
}

/// The same problem, with the name of the extension in which it stands.
fn of(extension: &Extension<'_>, problem: Problem) -> Problem {
    let place = match problem.place.as_str() {
        "" => format!("extension `{}`", extension.name),
        place => format!("extension `{}`: {place}", extension.name),
    };
    Problem { place, ..problem }
}

fn field(node: &Node, name: &str) -> Node {
    let found = match &node.content {
        Content::Map(entries) => entries.iter().find(|(key, _)| key == name),
        _ => None,
    };
    found.map_or(Node { line: None, content: Content::Null }, |(_, node)| node.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::parse;
    use crate::plan::Plan;
    use crate::testing::catalog;

    const BASE: &str = "name: base\nparameters: {n: {type: integer, default: 3}}\nsteps:\n\
        - {id: page, call: test.Users/Page}\n\
        - sequence: [{id: a, call: test.Groups/Count}, {id: b, call: test.Groups/Count}]\n";

    fn planned(texts: &[(&str, &str)]) -> Result<Plan, Problems> {
        let extensions: Vec<Extension<'_>> =
            texts.iter().map(|(name, text)| Extension { name, text }).collect();
        let text = extended(BASE, &extensions)?;
        let planned = parse(&text).and_then(|definition| Plan::new(definition, &catalog()));
        planned.map_err(|problems| named(&problems, top_steps(BASE), &extensions))
    }

    #[test]
    fn steps_are_added_behind_those_of_the_pipeline() {
        let one = "name: one\nextends: {pipeline: base, after: [a]}\nsteps:\n\
            - {id: c, call: test.Groups/Add, input: {user_id: '{{ page.total + params.n }}'}}\n\
            - {id: d, call: test.Groups/Count, after: c}\n";
        let two = "name: two\nextends: {pipeline: base}\nsteps: [{id: e, call: test.Groups/Count}]";
        let definition = parse(one).unwrap_or_else(|why| panic!("{why}"));
        let extends = definition.extends.unwrap();
        assert_eq!((extends.pipeline.as_str(), extends.after[0].0.as_str()), ("base", "a"));
        let plan = planned(&[("one", one), ("two", two)]).unwrap_or_else(|why| panic!("{why}"));
        let ids: Vec<&str> = plan.steps.iter().map(|step| &*step.id).collect();
        assert_eq!(ids, ["page", "a", "b", "c", "d", "e"]);
        let waits = |id: &str| -> Vec<&str> {
            let step = &plan.steps[plan.step(id).unwrap()];
            step.waits_for.iter().map(|other| ids[*other]).collect()
        };
        assert_eq!(
            (waits("c"), waits("d"), waits("e")),
            (vec!["page", "a"], vec!["a", "c"], vec![])
        );
        assert_eq!(plan.name, "base");
    }

    #[test]
    fn what_is_wrong_is_named_with_the_extension() {
        let step = "steps: [{id: c, call: test.Groups/Count}]";
        for (text, want) in [
            (
                "name: x\nextends: {pipeline: base, after: aa}\nsteps: [{id: c, call: test.Groups/Count}]",
                "extension `x`: extends.after: there is no step `aa`; did you mean `a`?",
            ),
            (
                "name: x\nextends: {pipeline: base}\nsteps: [{id: a, call: test.Groups/Count}]",
                "extension `x`: steps[0].id: there are two steps with the id `a`",
            ),
            (
                "name: x\nextends: {pipeline: base}\nsteps: [{id: c, call: test.Groups/Cont}]",
                "extension `x`: steps[0].call: test.Groups has no method `Cont`; did you mean `Count`?",
            ),
            (
                "name: x\nextends: {pipeline: base}\nsteps: [{sequence: [{id: c, call: test.Groups/Add, input: {user_id: '{{ pge.total }}'}}]}]",
                "extension `x`: steps[0].sequence[0].input.user_id: there is no step `pge`; did you mean `page`?",
            ),
        ] {
            let why = planned(&[("x", text)]).expect_err(text).to_string();
            assert!(why.contains(want), "{text}: {why}");
        }
        for (head, want) in [
            (
                "extends: {pipline: base}",
                "extends.pipline: unknown field `pipline`; did you mean `pipeline`?",
            ),
            ("extends: base", "extends: a map is wanted, this is text"),
            ("extends: {}", "extends: `pipeline` is missing"),
            (
                "extends: {pipeline: base}\nparameters: {}",
                "parameters: unknown field `parameters`; a pipeline that extends another has name, extends, steps",
            ),
        ] {
            let why = parse(&format!("name: x\n{head}\n{step}")).expect_err(head).to_string();
            assert!(why.contains(want), "{head}: {why}");
        }
        let inner = format!(
            "name: x\nsteps: [{{id: s, pipeline: {{name: y, extends: {{pipeline: b}}, {step}}}}}]"
        );
        let why = parse(&inner).expect_err("an inline one").to_string();
        assert!(why.contains("steps[0].pipeline.extends: only a pipeline that is stored"), "{why}");
    }
}
