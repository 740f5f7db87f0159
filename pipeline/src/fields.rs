//! The fields of a map in a definition, taken one by one: a field of the wrong type
//! is named with its place, and so is one that nobody asked for.
//!
//! Called by `definition`, `failure` and `parameters`.

use crate::definition::{TIMEOUT_MAX_MS, duration_ms};
use crate::document::{Content, Node};
use crate::problem::{Place, Problems, suggest};

/// The fields of a map: each is taken once, and what nobody took is unknown.
pub(crate) struct Fields<'a> {
    entries: &'a [(String, Node)],
    place: Place,
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(crate) fn open(node: &'a Node, place: &Place, problems: &mut Problems) -> Option<Self> {
        match &node.content {
            Content::Map(entries) => {
                Some(Self { entries, place: place.clone(), asked: Vec::new() })
            }
            _ => {
                problems.add(place, format!("a map is wanted, this is {}", node.kind()));
                None
            }
        }
    }

    /// The field, unless it is absent or null.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<(&'a Node, Place)> {
        self.asked.push(name);
        let (_, node) = self.entries.iter().find(|(key, _)| key == name)?;
        let place = self.place.field(name).on_line(node.line);
        (node.content != Content::Null).then_some((node, place))
    }

    /// Whether the field is there, without asking for it.
    pub(crate) fn has(&self, name: &str) -> bool {
        let found = self.entries.iter().find(|(key, _)| key == name);
        found.is_some_and(|(_, node)| node.content != Content::Null)
    }

    pub(crate) fn text(
        &mut self,
        name: &'static str,
        problems: &mut Problems,
    ) -> Option<(String, Place)> {
        let (node, place) = self.take(name)?;
        match &node.content {
            Content::Text(text) => Some((text.clone(), place)),
            _ => {
                problems.add(&place, format!("text is wanted, this is {}", node.kind()));
                // The field is there, so it is not missing as well.
                Some((String::from("?"), place))
            }
        }
    }

    pub(crate) fn whole(
        &mut self,
        name: &'static str,
        (least, most): (u32, u32),
        default: u32,
        problems: &mut Problems,
    ) -> u32 {
        let Some((node, place)) = self.take(name) else { return default };
        let number = match node.content {
            Content::Integer(number) => u32::try_from(number).ok(),
            _ => None,
        };
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => number,
            None => {
                problems.add(&place, format!("a whole number from {least} to {most} is wanted"));
                default
            }
        }
    }

    pub(crate) fn duration(&mut self, name: &'static str, problems: &mut Problems) -> Option<u64> {
        let (node, place) = self.take(name)?;
        let parsed = match &node.content {
            Content::Text(text) => duration_ms(text),
            _ => None,
        };
        match parsed.filter(|ms| (1..=TIMEOUT_MAX_MS).contains(ms)) {
            Some(ms) => Some(ms),
            None => {
                problems.add(&place, "a time such as 500ms, 30s, 5m or 2h is wanted, at most 720h");
                None
            }
        }
    }

    pub(crate) fn number(
        &mut self,
        name: &'static str,
        (least, most): (f64, f64),
        default: f64,
        problems: &mut Problems,
    ) -> f64 {
        let Some((node, place)) = self.take(name) else { return default };
        let number = match node.content {
            Content::Integer(number) => number as f64,
            Content::Float(number) => number,
            _ => f64::NAN,
        };
        match (least..=most).contains(&number) {
            true => number,
            false => {
                problems.add(&place, format!("a number from {least} to {most} is wanted"));
                default
            }
        }
    }

    pub(crate) fn boolean(&mut self, name: &'static str, problems: &mut Problems) -> bool {
        let Some((node, place)) = self.take(name) else { return false };
        match node.content {
            Content::Bool(truth) => truth,
            _ => {
                problems.add(&place, format!("true or false is wanted, this is {}", node.kind()));
                false
            }
        }
    }

    pub(crate) fn missing(&self, name: &str, what: &str, problems: &mut Problems) -> String {
        problems.add(&self.place, format!("`{name}` is missing: {what}"));
        String::new()
    }

    pub(crate) fn close(self, problems: &mut Problems) {
        for (key, place) in self.unknown() {
            let near = suggest(key, self.asked.iter().copied());
            problems.add(&place, format!("unknown field `{key}`{near}"));
        }
    }

    /// As [`Fields::close`], for a map that is told from others by some of its fields.
    pub(crate) fn close_as(self, what: &str, problems: &mut Problems) {
        let fields = self.asked.join(", ");
        for (key, place) in self.unknown() {
            problems.add(&place, format!("unknown field `{key}`; {what} has {fields}"));
        }
    }

    fn unknown(&self) -> Vec<(&'a str, Place)> {
        let entries = self.entries.iter().filter(|(key, _)| !self.asked.contains(&key.as_str()));
        entries
            .map(|(key, node)| (key.as_str(), self.place.field(key).on_line(node.line)))
            .collect()
    }
}
