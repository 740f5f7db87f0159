//! What the metadata of a recorded call says of its step.
//!
//! | metadata | is, in the step |
//! | --- | --- |
//! | `zex-step` | `id` |
//! | `zex-after` | `after`: ids, a comma between them |
//! | `zex-set` | `FIELD=EXPRESSION`: a field of the request; as often as wanted |
//! | `zex-input` | an expression that gives the whole request |
//! | `zex-each` | `each`: a step that gives a stream, or an expression that gives a list |
//! | `zex-when` | `when`: an expression |
//! | `zex-retry` | `retry`: how many attempts, or a map as the definition has it |
//! | `zex-concurrency`, `zex-timeout`, `zex-deadline`, `zex-on-failure`, `zex-idempotent`, `zex-artifact` | the field of that name |
//! | `zex-with` | further fields of the step, a map in YAML or JSON |
//!
//! Another name that begins with `zex-` is refused, for it would say nothing.

use http::HeaderMap;
use serde_json::{Map, Value as Json, json};
use tonic::Status;
use zex_pipeline::expression::is_name;
use zex_pipeline::problem::nearest;
use zex_pipeline::recording::{self, Said};

use super::{PIPELINE, RECORD};

/// Metadata that is a field of the step by itself.
const FIELDS: [(&str, &str); 6] = [
    ("zex-concurrency", "concurrency"),
    ("zex-timeout", "timeout"),
    ("zex-deadline", "deadline"),
    ("zex-on-failure", "on_failure"),
    ("zex-idempotent", "idempotent"),
    ("zex-artifact", "artifact"),
];
/// Metadata that is read here apart.
const OTHERS: [&str; 8] = [
    "zex-step",
    "zex-after",
    "zex-set",
    "zex-input",
    "zex-each",
    "zex-when",
    "zex-retry",
    "zex-with",
];
/// What is said of a live call, and says nothing of a step.
const OF_THE_CALL: [&str; 3] = ["zex-wait", "zex-priority", "zex-key"];

/// What headers say of a step. `live`: the call is made, too, so there is more to say.
pub(super) fn read(headers: &HeaderMap, live: bool) -> Result<Said, Status> {
    check_names(headers, live)?;
    let mut said = Said::default();
    if let Some(id) = one(headers, "zex-step")? {
        said.fields.insert("id".to_owned(), id.into());
    }
    if let Some(after) = one(headers, "zex-after")? {
        let ids = after.split(',').map(str::trim).filter(|id| !id.is_empty());
        said.fields.insert("after".to_owned(), ids.map(Json::from).collect());
    }
    if let Some(each) = one(headers, "zex-each")? {
        let each = if is_name(each) { each.to_owned() } else { braced(each) };
        said.fields.insert("each".to_owned(), each.into());
    }
    if let Some(when) = one(headers, "zex-when")? {
        said.fields.insert("when".to_owned(), braced(when).into());
    }
    if let Some(retry) = one(headers, "zex-retry")? {
        let retry = match value("zex-retry", retry)? {
            Json::Number(attempts) => json!({ "attempts": attempts }),
            other => other,
        };
        said.fields.insert("retry".to_owned(), retry);
    }
    for (name, field) in FIELDS {
        if let Some(text) = one(headers, name)? {
            said.fields.insert(field.to_owned(), value(name, text)?);
        }
    }
    if let Some(more) = one(headers, "zex-with")? {
        add(&mut said.fields, more)?;
    }
    said.input = one(headers, "zex-input")?.map(str::to_owned);
    for set in headers.get_all("zex-set") {
        let set = text("zex-set", set)?;
        let (field, expression) = set.split_once('=').ok_or_else(|| {
            let text = format!("zex-set is FIELD=EXPRESSION, as user.id=users.first, not {set:?}");
            Status::invalid_argument(text)
        })?;
        said.set.push((field.trim().to_owned(), expression.trim().to_owned()));
    }
    Ok(said)
}

/// The recording that is named by one of the two.
pub(super) fn recording<'a>(
    headers: &'a HeaderMap,
    name: &'static str,
) -> Result<Option<&'a str>, Status> {
    if headers.contains_key(PIPELINE) && headers.contains_key(RECORD) {
        let text =
            format!("{PIPELINE} has a call recorded instead of made, {RECORD} both: say one");
        return Err(Status::invalid_argument(text));
    }
    one(headers, name)
}

fn check_names(headers: &HeaderMap, live: bool) -> Result<(), Status> {
    let fields = FIELDS.iter().map(|(name, _)| *name);
    let of_call = OF_THE_CALL.iter().copied().filter(|_| live);
    let known: Vec<&str> = fields.chain(OTHERS).chain(of_call).chain([PIPELINE, RECORD]).collect();
    let unknown = headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| name.starts_with("zex-") && !known.contains(name));
    let Some(unknown) = unknown else { return Ok(()) };
    if OF_THE_CALL.contains(&unknown) {
        let text = format!("{unknown} is for a call that is made, and this one is recorded");
        return Err(Status::invalid_argument(text));
    }
    let near = nearest(unknown, known.iter().copied());
    let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    Err(Status::invalid_argument(format!("{unknown} says nothing of a step{near}")))
}

fn add(fields: &mut Map<String, Json>, more: &str) -> Result<(), Status> {
    let more =
        recording::map(more).map_err(|why| Status::invalid_argument(format!("zex-with: {why}")))?;
    for (name, value) in more {
        if matches!(name.as_str(), "id" | "call" | "input") || fields.contains_key(&name) {
            let text = format!("zex-with: `{name}` is said already, or not to be said here");
            return Err(Status::invalid_argument(text));
        }
        fields.insert(name, value);
    }
    Ok(())
}

fn one<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Status> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Status::invalid_argument(format!("{name} is said twice")));
    }
    text(name, value).map(Some)
}

fn text<'a>(name: &str, value: &'a http::HeaderValue) -> Result<&'a str, Status> {
    let no_text = |_| Status::invalid_argument(format!("{name} is no text of printable ASCII"));
    value.to_str().map(str::trim).map_err(no_text)
}

fn value(name: &str, text: &str) -> Result<Json, Status> {
    recording::value(text).map_err(|why| Status::invalid_argument(format!("{name}: {why}")))
}

/// An expression, in its braces.
fn braced(expression: &str) -> String {
    match expression.contains("{{") {
        true => expression.to_owned(),
        false => format!("{{{{ {expression} }}}}"),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(entries: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in entries {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn metadata_becomes_what_the_definition_says() {
        let said = read(
            &headers(&[
                ("zex-pipeline", "x"),
                ("my-own", "y"),
                ("zex-step", "put"),
                ("zex-after", "a, b"),
                ("zex-set", "user.id=item.id"),
                ("zex-set", "text=Hello, {{ item.name }}!"),
                ("zex-each", "users"),
                ("zex-when", "params.x == 1"),
                ("zex-retry", "3"),
                ("zex-timeout", "10s"),
                ("zex-idempotent", "true"),
                ("zex-with", "{compensate: a.B/C, concurrency: 4}"),
            ]),
            false,
        )
        .unwrap();
        let want = json!({
            "id": "put", "after": ["a", "b"], "each": "users", "when": "{{ params.x == 1 }}",
            "retry": {"attempts": 3}, "timeout": "10s", "idempotent": true,
            "compensate": "a.B/C", "concurrency": 4,
        });
        assert_eq!(Json::Object(said.fields), want);
        let set = |field: &str, expression: &str| (field.to_owned(), expression.to_owned());
        assert_eq!(said.set, [set("user.id", "item.id"), set("text", "Hello, {{ item.name }}!")]);
        let list = read(&headers(&[("zex-each", "users.all")]), false).unwrap();
        assert_eq!(list.fields["each"], "{{ users.all }}");
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for (name, value, want) in [
            ("zex-aftr", "a", "zex-aftr says nothing of a step; did you mean `zex-after`?"),
            ("zex-key", "00", "zex-key is for a call that is made"),
            ("zex-set", "user.id", "zex-set is FIELD=EXPRESSION"),
            ("zex-retry", "{", "zex-retry: "),
            ("zex-with", "[1]", "zex-with: a map is wanted"),
            ("zex-with", "{input: {}}", "zex-with: `input` is said already"),
        ] {
            let refused = read(&headers(&[(name, value)]), false).unwrap_err();
            assert!(refused.message().starts_with(want), "{name}: {}", refused.message());
        }
        let twice = headers(&[("zex-step", "a"), ("zex-step", "b")]);
        assert!(read(&twice, false).unwrap_err().message().contains("said twice"));
        assert!(read(&headers(&[("zex-key", "00")]), true).is_ok());
        let both = headers(&[("zex-pipeline", "a"), ("zex-record", "b")]);
        assert!(recording(&both, PIPELINE).is_err());
    }
}
