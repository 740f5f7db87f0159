//! Where a step runs: on workers with a label only, or on those rather than on others.
//!
//! A worker with the label `node=a` serves `pkg.Service` also as `pkg.Service@node=a`. A step
//! with `on` calls that name, and waits while nobody has it, as steps wait for their services; one
//! with `prefer` calls it when such a worker is free, and else the service.
//!
//! Called by `definition`; the scheduler decides what is free.

use std::sync::Arc;

use crate::document::{Content, Node};
use crate::fields::Fields;
use crate::problem::{Place, Problems};

/// The longest label, bytes: as workers have it.
pub const LABEL_MAX_BYTES: usize = 64;

/// Which workers a step wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Those with this label.
    On(String),
    /// Those with this label, if one of them is free.
    Prefer(String),
}

impl Wanted {
    /// The name that the step calls, if no other will do.
    pub fn pinned(&self, service: &str) -> Option<String> {
        match self {
            Self::On(label) => Some(labelled(service, label)),
            Self::Prefer(_) => None,
        }
    }

    /// The name that it calls rather than the service.
    pub fn preferred(&self, service: &str) -> Option<Arc<str>> {
        match self {
            Self::On(_) => None,
            Self::Prefer(label) => Some(labelled(service, label).into()),
        }
    }
}

/// The name of a service under a label.
fn labelled(service: &str, label: &str) -> String {
    format!("{service}@{label}")
}

/// Reads `on` and `prefer`.
pub(crate) fn wanted(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Wanted> {
    let on = fields.take("on").and_then(|(node, place)| label(node, &place, problems));
    let prefer = fields.take("prefer").map(|(node, place)| (label(node, &place, problems), place));
    match (on, prefer) {
        (Some(_), Some((_, place))) => {
            problems.add(&place, "a step has `on` or `prefer`: who is pinned prefers nobody");
            None
        }
        (Some(label), None) => Some(Wanted::On(label)),
        (None, Some((label, _))) => label.map(Wanted::Prefer),
        (None, None) => None,
    }
}

/// `{gpu: true}` is the label `gpu`, `{node: a}` is `node=a`.
fn label(node: &Node, place: &Place, problems: &mut Problems) -> Option<String> {
    const RULE: &str = "one label is wanted, such as {node: a} or {gpu: true}";
    let Content::Map(entries) = &node.content else {
        problems.add(place, format!("{RULE}; this is {}", node.kind()));
        return None;
    };
    let [(key, value)] = entries.as_slice() else {
        problems.add(place, format!("{RULE}; this has {}", entries.len()));
        return None;
    };
    let label = match &value.content {
        Content::Bool(true) => key.clone(),
        Content::Text(value) => format!("{key}={value}"),
        Content::Integer(value) => format!("{key}={value}"),
        _ => {
            problems.add(&place.field(key), format!("{RULE}; this is {}", value.kind()));
            return None;
        }
    };
    let letter = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
    let word = |word: &str| !word.is_empty() && word.chars().all(letter);
    let (key, value) = label.split_once('=').unwrap_or((&label, "true"));
    if label.len() > LABEL_MAX_BYTES || !word(key) || !word(value) {
        let text = format!(
            "`{label}` is no label: words of letters, digits, _, - and ., at most {LABEL_MAX_BYTES} bytes"
        );
        problems.add(place, text);
        return None;
    }
    Some(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::parse;

    fn read(step: &str) -> Result<Option<Wanted>, String> {
        let text = format!("name: t\nsteps:\n- {{id: a, call: test.Users/List, {step}}}\n");
        let definition = parse(&text).map_err(|problems| problems.to_string())?;
        Ok(definition.steps[0].wanted.clone())
    }

    #[test]
    fn a_step_names_one_label_and_mistakes_are_named() {
        assert_eq!(read("on: {node: a}"), Ok(Some(Wanted::On("node=a".into()))));
        assert_eq!(read("on: {rack: 7}"), Ok(Some(Wanted::On("rack=7".into()))));
        assert_eq!(read("prefer: {gpu: true}"), Ok(Some(Wanted::Prefer("gpu".into()))));
        assert_eq!(read("timeout: 1s"), Ok(None));
        let pinned = Wanted::On("node=a".into());
        assert_eq!(pinned.pinned("p.S").as_deref(), Some("p.S@node=a"));
        assert_eq!(pinned.preferred("p.S"), None);
        for (step, want) in [
            (
                "on: gpu",
                "steps[0].on: one label is wanted, such as {node: a} or {gpu: true}; this is",
            ),
            ("on: {}", "this has 0"),
            ("on: {a: b, c: d}", "this has 2"),
            ("on: {gpu: false}", "steps[0].on.gpu: one label is wanted"),
            ("on: {node: a b}", "`node=a b` is no label"),
            ("on: {node: 'a@b'}", "`node=a@b` is no label"),
            ("on: {node: a}, prefer: {gpu: true}", "steps[0].prefer: a step has `on` or `prefer`"),
        ] {
            let problems = read(step).expect_err(step);
            assert!(problems.contains(want), "{step}: {problems}");
        }
    }
}
