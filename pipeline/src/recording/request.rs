//! A request's bytes as the input of a step: the same message, said in the definition's words.
//!
//! ```text
//!  bytes ─ decode ─▶ message ─ JSON ─▶ fields ─ references put in ─▶ `input`
//!                       └──────── compared ────┘
//! ```
//!
//! What a definition cannot say is refused: a step that sends something else than what was recorded
//! would be worse than none.

use bytes::Bytes;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::{Map, Value as Json};

use crate::document::{self, DEFINITION_MAX_BYTES};
use crate::message::{decode, find_field, no_field, to_json, to_message};

/// A request as a step's input, without expressions in it; else what is wrong with it.
pub fn literal(descriptor: &MessageDescriptor, body: &Bytes) -> Result<Json, String> {
    let message = decode(descriptor, body)?;
    let name = descriptor.full_name();
    if let Some(unknown) = message.unknown_fields().next() {
        let number = unknown.number();
        return Err(format!(
            "the request has a field {number}, which {name} had not when it was registered"
        ));
    }
    let no_words = |why: String| format!("this {name} cannot be said in a definition: {why}");
    let json = short_json(&message).map_err(no_words)?;
    let text = json.to_string();
    if text.len() > DEFINITION_MAX_BYTES {
        return Err(too_large(text.len()));
    }
    let again = document::parse(&text).map_err(|problem| no_words(problem.to_string())).and_then(
        |node| {
            to_message(&node.to_value(), descriptor)
                .map_err(|misfit| no_words(format!("{}: {}", misfit.below, misfit.message)))
        },
    )?;
    if again != message && again.encode_to_vec() != body[..] {
        return Err(no_words("something of it would be lost".to_owned()));
    }
    Ok(escaped(json))
}

/// What to say where a definition would have so many bytes.
pub(super) fn too_large(bytes: usize) -> String {
    format!(
        "with it the definition would have {bytes} bytes, at most it has {DEFINITION_MAX_BYTES}; what \
         is large belongs into parameters"
    )
}

/// Only what is set: that is what a person would write.
fn short_json(message: &DynamicMessage) -> Result<Json, String> {
    let options = prost_reflect::SerializeOptions::new()
        .stringify_64_bit_integers(false)
        .use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| error.to_string())
        // What has no short form has none at all.
        .or_else(|why| to_json(message).map(Json::String).map_err(|_| why))
}

/// Text stays text: braces in it are none of an expression.
fn escaped(json: Json) -> Json {
    match json {
        Json::String(text) => Json::String(escape(&text)),
        Json::Array(elements) => elements.into_iter().map(escaped).collect(),
        Json::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, escaped(value))).collect()
        }
        other => other,
    }
}

/// A text as a definition says it, where braces begin an expression.
pub fn escape(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = [rest.find("{{"), rest.find("{%")].into_iter().flatten().min() {
        out.push_str(&rest[..at]);
        out.push_str("{{ '");
        out.push_str(&rest[at..at + 2]);
        out.push_str("' }}");
        rest = &rest[at + 2..];
    }
    out.push_str(rest);
    out
}

/// What stands in a definition for an expression: text with braces stays as it is.
pub(super) fn braced(expression: &str) -> String {
    if expression.contains("{{") {
        return expression.to_owned();
    }
    format!("{{{{ {} }}}}", expression.trim())
}

/// Puts an expression into a field of an input, as `address.city`.
pub(super) fn set(
    input: &mut Json,
    descriptor: &MessageDescriptor,
    path: &str,
    expression: &str,
) -> Result<(), String> {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    };
    let field = find_field(descriptor, first).ok_or_else(|| no_field(descriptor, first).message)?;
    let Json::Object(fields) = input else {
        return Err(format!("{} has a form of its own in JSON", descriptor.full_name()));
    };
    let Some(rest) = rest else {
        fields.insert(field.name().to_owned(), Json::String(braced(expression)));
        return Ok(());
    };
    let kind = field.kind();
    let Some(inner) = kind.as_message().filter(|_| !field.is_list() && !field.is_map()) else {
        return Err(format!("`{first}` is no message: nothing in it can be set apart"));
    };
    let below = fields.entry(field.name().to_owned()).or_insert_with(|| Map::new().into());
    set(below, inner, rest, expression)
}
