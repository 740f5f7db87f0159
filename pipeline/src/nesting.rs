//! Steps in groups: one after the other, or beside each other, as deep as one likes.
//!
//! ```yaml
//! steps:
//!   - sequence:
//!       - {id: a, call: …}
//!       - concurrence: [{id: b, call: …}, {id: c, call: …}]   # after a
//!       - {id: d, call: …}                                    # after b and c
//!     when: "{{ params.wanted }}"
//! ```
//!
//! Groups exist in the text alone: here they become what their steps wait for, and the
//! conditions of a group become conditions of its steps.
//!
//! The steps of `finalize` stand behind all others, in a sequence.
//!
//! Called by `definition`.

use std::collections::BTreeSet;

use crate::definition::{STEPS_MAX, Step, after, condition, step};
use crate::document::{Content, Node};
use crate::expression::Expression;
use crate::failure::OnFailure;
use crate::fields::Fields;
use crate::own::Own;
use crate::problem::{Place, Problems};

/// How the steps of a list follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Sequence,
    Concurrence,
}

/// What groups say of the steps in them.
#[derive(Debug, Clone, Default)]
struct Around {
    /// Steps that must have ended before.
    after: Vec<(String, Place)>,
    /// The sources of conditions: every step compiles its own.
    when: Vec<(String, Place)>,
}

/// Reads `steps`: they stand beside each other. Behind them those of `finalize`.
pub(crate) fn steps(
    node: &Node,
    place: &Place,
    finalize: Option<(&Node, Place)>,
    default: OnFailure,
    problems: &mut Problems,
) -> Vec<Step> {
    let Content::List(nodes) = &node.content else {
        problems.add(place, format!("a list of steps is wanted, this is {}", node.kind()));
        return Vec::new();
    };
    let mut reader = Reader { default, problems, steps: Vec::new(), seen: BTreeSet::new() };
    if nodes.len() <= STEPS_MAX {
        reader.list(nodes, place, Flow::Concurrence, &Around::default());
    }
    if let Some((node, place)) = finalize {
        reader.finalize(node, &place);
    }
    let Reader { steps, problems, .. } = reader;
    let count = nodes.len().max(steps.len());
    if !(1..=STEPS_MAX).contains(&count) {
        problems.add(place, format!("a pipeline has 1 to {STEPS_MAX} steps, this has {count}"));
        return Vec::new();
    }
    steps
}

/// Reads lists of steps and groups.
struct Reader<'a> {
    default: OnFailure,
    problems: &'a mut Problems,
    /// The steps, in the order of the text.
    steps: Vec<Step>,
    seen: BTreeSet<String>,
}

impl Reader<'_> {
    /// Reads a list. The steps with which it ends, or what it came after if it has none.
    fn list(
        &mut self,
        nodes: &[Node],
        place: &Place,
        flow: Flow,
        around: &Around,
    ) -> Vec<(String, Place)> {
        let (mut around, mut ends) = (around.clone(), Vec::new());
        for (index, node) in nodes.iter().enumerate() {
            if self.steps.len() > STEPS_MAX {
                break;
            }
            let place = place.index(index).on_line(node.line);
            let last = match is_group(node) {
                true => self.group(node, &place, &around),
                false => self.step(node, place, &around),
            };
            match flow {
                Flow::Concurrence => ends.extend(last),
                Flow::Sequence if last.is_empty() => {}
                Flow::Sequence => around.after = last,
            }
        }
        match flow {
            Flow::Concurrence if !ends.is_empty() => ends,
            Flow::Concurrence | Flow::Sequence => around.after,
        }
    }

    fn group(&mut self, node: &Node, place: &Place, around: &Around) -> Vec<(String, Place)> {
        let Some(mut fields) = Fields::open(node, place, self.problems) else { return Vec::new() };
        let mut around = around.clone();
        let (sequence, concurrence) = (fields.take("sequence"), fields.take("concurrence"));
        if let Some((node, place)) = fields.take("after") {
            around.after.extend(after(node, &place, self.problems));
        }
        // Compiled here to say what is wrong with it once, and not for every step.
        let when = condition(&mut fields, self.problems);
        around.when.extend(when.map(|(condition, place)| (condition.source().to_owned(), place)));
        fields.close_as("a group", self.problems);
        let (node, place, flow) = match (sequence, concurrence) {
            (Some((node, place)), None) => (node, place, Flow::Sequence),
            (None, Some((node, place))) => (node, place, Flow::Concurrence),
            _ => {
                let text = "a group is either a `sequence` or a `concurrence`, with a list";
                self.problems.add(place, text);
                return Vec::new();
            }
        };
        match &node.content {
            Content::List(nodes) => self.list(nodes, &place, flow, &around),
            _ => {
                let kind = node.kind();
                self.problems.add(&place, format!("a list of steps is wanted, this is {kind}"));
                Vec::new()
            }
        }
    }

    /// Reads `finalize`: the first waits for all that stand in `steps`.
    fn finalize(&mut self, node: &Node, place: &Place) {
        let Content::List(nodes) = &node.content else {
            let kind = node.kind();
            return self.problems.add(place, format!("a list of steps is wanted, this is {kind}"));
        };
        let end = |step: &Step| (step.id.clone(), step.place.clone());
        let mut around = Around { after: self.steps.iter().map(end).collect(), when: Vec::new() };
        self.default = OnFailure::Pause;
        for (index, node) in nodes.iter().enumerate().take(STEPS_MAX) {
            let place = place.index(index).on_line(node.line);
            if is_group(node) {
                let text = "the steps of `finalize` come one after the other, without groups";
                self.problems.add(&place, text);
                continue;
            }
            let last = self.step(node, place, &around);
            if last.is_empty() {
                continue;
            }
            around.after = last;
            if let Some(step) = self.steps.last_mut() {
                step.finalize = true;
                check_finalize(step, self.problems);
            }
        }
    }

    fn step(&mut self, node: &Node, place: Place, around: &Around) -> Vec<(String, Place)> {
        let compile = |(source, place): &(String, Place)| {
            Expression::compile(source).ok().map(|condition| (condition, place.clone()))
        };
        let when = around.when.iter().filter_map(compile).collect();
        let Some(mut step) = step(node, place, self.default, when, self.problems) else {
            return Vec::new();
        };
        step.follows.clone_from(&around.after);
        if !self.seen.insert(step.id.clone()) {
            let text = format!("there are two steps with the id `{}`", step.id);
            self.problems.add(&step.place.field("id"), text);
        }
        let end = (step.id.clone(), step.place.clone());
        self.steps.push(step);
        vec![end]
    }
}

/// What a step of the last phase cannot be.
fn check_finalize(step: &Step, problems: &mut Problems) {
    let refused = [
        ("each", step.each.is_some(), "is one call"),
        ("after", !step.after.is_empty(), "comes after the one before it"),
        ("on_failure", step.on_failure != OnFailure::Pause, "pauses the run when it fails"),
        ("compensate", step.compensation.is_some(), "is not taken back"),
        ("wait", matches!(step.own, Some(Own::Wait(_))), "is one call"),
        ("send", matches!(step.own, Some(Own::Send(_))), "is one call"),
        ("stream", step.open, "is one call"),
        ("progress", step.progress, "is one call"),
    ];
    for (field, _, why) in refused.into_iter().filter(|(_, given, _)| *given) {
        problems.add(&step.place.field(field), format!("a step of `finalize` {why}"));
    }
}

fn is_group(node: &Node) -> bool {
    match &node.content {
        Content::Map(entries) => {
            entries.iter().any(|(key, _)| matches!(key.as_str(), "sequence" | "concurrence"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::definition::{Step, parse};

    /// Which steps each waits for, by the text alone.
    fn waits(steps: &str) -> String {
        let definition = parse(&format!("name: t\n{steps}")).unwrap_or_else(|why| panic!("{why}"));
        let line = |step: &Step| {
            let after: Vec<&str> = step.follows.iter().map(|(id, _)| id.as_str()).collect();
            format!("{}<{}", step.id, after.join(","))
        };
        definition.steps.iter().map(line).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn groups_become_what_their_steps_wait_for() {
        let step = |id: &str| format!("{{id: {id}, call: a.B/C}}");
        let (a, b, c, d) = (step("a"), step("b"), step("c"), step("d"));
        for (steps, want) in [
            (format!("steps: [{a}, {b}]"), "a< b<"),
            (format!("steps: [{{sequence: [{a}, {b}, {c}]}}]"), "a< b<a c<b"),
            (
                format!("steps: [{{sequence: [{a}, {{concurrence: [{b}, {c}]}}, {d}]}}]"),
                "a< b<a c<a d<b,c",
            ),
            (
                format!(
                    "steps: [{{sequence: [{{concurrence: [{a}, {{sequence: [{b}, {c}]}}]}}, {d}]}}]"
                ),
                "a< b< c<b d<a,c",
            ),
            (format!("steps: [{a}, {{sequence: [{b}, {c}], after: a}}]"), "a< b<a c<b"),
            (
                format!("steps: [{{sequence: [{a}, {{sequence: []}}, {{concurrence: []}}, {b}]}}]"),
                "a< b<a",
            ),
        ] {
            assert_eq!(waits(&steps), want, "{steps}");
        }
    }

    #[test]
    fn conditions_of_groups_are_those_of_their_steps() {
        let text = "name: t\nsteps: [{sequence: [{id: a, call: a.B/C, when: '{{ params.y }}'}, {id: b, call: a.B/C}], when: '{{ params.x }}'}]";
        let definition = parse(text).unwrap();
        let sources = |step: usize| -> Vec<&str> {
            definition.steps[step].when.iter().map(|(condition, _)| condition.source()).collect()
        };
        assert_eq!((sources(0), sources(1)), (vec!["params.x", "params.y"], vec!["params.x"]));
    }
}
