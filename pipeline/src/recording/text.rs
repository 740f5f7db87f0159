//! The text of a recorded pipeline: YAML, a step a paragraph, what is in a field as JSON.
//!
//! A file that somebody has written keeps his comments and his layout: a step is put behind its last
//! line, and what comes out is read again before it is taken.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value as Json};

use crate::definition::{self, Definition};
use crate::document::{self, Content, Node};

/// A definition of these parts.
pub(super) fn render(head: &Map<String, Json>, steps: &[Map<String, Json>]) -> String {
    let mut text = String::new();
    for (name, value) in head {
        // A String takes every write.
        let _ = writeln!(text, "{}: {value}", key(name));
    }
    text.push_str("steps:\n");
    for step in steps {
        text.push_str(&item(step, "  "));
    }
    text
}

/// A step as an item of a list.
fn item(step: &Map<String, Json>, indent: &str) -> String {
    let mut text = String::new();
    for (at, (name, value)) in step.iter().enumerate() {
        let dash = if at == 0 { "- " } else { "  " };
        let _ = writeln!(text, "{indent}{dash}{}: {}", key(name), plain(name, value));
    }
    text
}

/// A name as a key: those of the language need no quotes.
fn key(name: &str) -> String {
    match name.bytes().all(|letter| letter.is_ascii_lowercase() || letter == b'_') {
        true => name.to_owned(),
        false => Json::from(name).to_string(),
    }
}

/// Names of steps and methods are read easier without quotes.
fn plain(name: &str, value: &Json) -> String {
    let letters = |letter: u8| letter.is_ascii_alphanumeric() || b"_./".contains(&letter);
    match value.as_str() {
        Some(text)
            if matches!(name, "id" | "call" | "each" | "after")
                && text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
                && text.bytes().all(letters)
                && !matches!(
                    text.to_ascii_lowercase().as_str(),
                    "true" | "false" | "null" | "yes" | "no" | "on" | "off"
                ) =>
        {
            text.to_owned()
        }
        _ => value.to_string(),
    }
}

/// What stands in a head, or is said of a step, in YAML or JSON.
pub(super) fn head_of(text: &str) -> Result<Map<String, Json>, String> {
    let fields = map(text)?;
    if let Some(name) = ["name", "steps"].into_iter().find(|name| fields.contains_key(*name)) {
        return Err(format!("`{name}` does not stand here: it comes from the recording itself"));
    }
    Ok(fields)
}

/// A map in YAML or JSON; of nothing an empty one.
///
/// # Errors
/// What is wrong with it, in words.
pub fn map(text: &str) -> Result<Map<String, Json>, String> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    let node = document::parse(text).map_err(|problem| problem.to_string())?;
    match json(&node)? {
        Json::Object(fields) => Ok(fields),
        _ => Err(format!("a map is wanted, this is {}", node.kind())),
    }
}

/// Any value in YAML or JSON.
///
/// # Errors
/// What is wrong with it, in words.
pub fn value(text: &str) -> Result<Json, String> {
    document::parse(text).map_err(|problem| problem.to_string()).and_then(|node| json(&node))
}

fn json(node: &Node) -> Result<Json, String> {
    Ok(match &node.content {
        Content::Null => Json::Null,
        Content::Bool(truth) => Json::Bool(*truth),
        Content::Integer(number) => {
            Number::from_i128(*number).ok_or("a number is too large")?.into()
        }
        Content::Float(number) => {
            Number::from_f64(*number).ok_or("a number is wanted that is one")?.into()
        }
        Content::Text(text) => Json::String(text.clone()),
        Content::List(nodes) => Json::Array(nodes.iter().map(json).collect::<Result<_, _>>()?),
        Content::Map(entries) => {
            let entry = |(name, node): &(String, Node)| Ok((name.clone(), json(node)?));
            Json::Object(entries.iter().map(entry).collect::<Result<_, String>>()?)
        }
    })
}

/// The text of a definition with one step more, behind the others. `make` is told which ids are taken;
/// an empty text becomes a pipeline of that name.
///
/// # Errors
/// What is wrong with the text, or why no step can be put there, in words.
pub fn append(
    text: &str,
    name: &str,
    make: impl FnOnce(&[&str]) -> Result<Map<String, Json>, String>,
) -> Result<String, String> {
    if text.trim().is_empty() {
        let mut head = Map::new();
        head.insert("name".to_owned(), name.into());
        let made = render(&head, &[make(&[])?]);
        definition::parse(&made).map_err(|problems| problems.to_string())?;
        return Ok(made);
    }
    let before = definition::parse(text).map_err(|problems| problems.to_string())?;
    let ids: Vec<&str> = before.steps.iter().map(|step| step.id.as_str()).collect();
    let step = make(&ids)?;
    let after = match text.trim_start().starts_with('{') {
        true => in_json(text, &step)?,
        false => behind(text, &step),
    };
    let put = definition::parse(&after);
    match put {
        Ok(put) if is_one_more(&before, &put, &step) => Ok(after),
        Ok(_) => Err(NOT_LAST.to_owned()),
        // Read by itself the step is fine or not; in its place it is only out of place.
        Err(problems) => {
            let mut head = Map::new();
            head.insert("name".to_owned(), "x".into());
            match definition::parse(&render(&head, &[step])) {
                Ok(_) => Err(NOT_LAST.to_owned()),
                Err(_) => Err(problems.to_string()),
            }
        }
    }
}

/// Why a step has no place behind a text.
const NOT_LAST: &str = "no step can be put behind it: its list of `steps`, an item a line, has to be \
                        the last thing in it";

fn is_one_more(before: &Definition, after: &Definition, step: &Map<String, Json>) -> bool {
    let id = step.get("id").and_then(Json::as_str);
    after.steps.len() == before.steps.len() + 1
        && after.steps.last().map(|last| last.id.as_str()) == id
        && before.steps.iter().zip(&after.steps).all(|(one, other)| one.id == other.id)
}

fn in_json(text: &str, step: &Map<String, Json>) -> Result<String, String> {
    let mut whole: Json = serde_json::from_str(text).map_err(|error| {
        format!("it begins as JSON and is none, so no step can be put into it: {error}")
    })?;
    let steps = whole.get_mut("steps").and_then(Json::as_array_mut).ok_or(NOT_LAST)?;
    steps.push(Json::Object(step.clone()));
    Ok(format!("{whole:#}\n"))
}

/// Behind the last line, as far in as the first item of `steps`.
fn behind(text: &str, step: &Map<String, Json>) -> String {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("steps:"));
    let first = lines.find(|line| line.trim_start().starts_with("- "));
    let indent = first.map_or("  ", |line| &line[..line.len() - line.trim_start().len()]);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}{}", item(step, indent))
}
