//! The text of a definition, in YAML or JSON, as a tree that remembers its lines.
//!
//! Text that begins with `{` is tried as JSON first: YAML 1.2 holds JSON save for
//! small print such as `\ud83d\ude00`. Everything else is YAML's core schema, one
//! document, without anchors (they make small texts large) and without tags.
//! Depth and size are bounded, keys are text and must not repeat.
//!
//! Called by `definition`; the tree also turns into expression values for literals.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use minijinja::Value;
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::problem::{Place, Problem};

/// The largest definition that is read, in bytes. A definition is written by a
/// person or a recorder; data belongs into parameters and messages.
pub const DEFINITION_MAX_BYTES: usize = 1 << 20;

/// How deep a definition may nest: deep enough for any message, far from the end
/// of the stack of whoever walks the tree.
pub const DEFINITION_MAX_DEPTH: usize = 64;

/// A value in a definition's text.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The line it begins on, from 1, where that is known (not in JSON).
    pub line: Option<u32>,
    /// What stands there.
    pub content: Content,
}

/// What stands at a place of a definition's text.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Nothing: `null`, `~` or an empty value.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number between the least `i64` and the greatest `u64`.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the text.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What kind of value this is, in words.
    pub fn kind(&self) -> &'static str {
        match self.content {
            Content::Null => "nothing",
            Content::Bool(_) => "true or false",
            Content::Integer(_) | Content::Float(_) => "a number",
            Content::Text(_) => "text",
            Content::List(_) => "a list",
            Content::Map(_) => "a map",
        }
    }

    /// The same value as expressions see it.
    pub fn to_value(&self) -> Value {
        match &self.content {
            Content::Null => Value::from(()),
            Content::Bool(truth) => Value::from(*truth),
            Content::Integer(number) => integer_value(*number),
            Content::Float(number) => Value::from(*number),
            Content::Text(text) => Value::from(text.as_str()),
            Content::List(nodes) => nodes.iter().map(Node::to_value).collect(),
            Content::Map(entries) => {
                Value::from_pairs(entries.iter().map(|(key, node)| (key.as_str(), node.to_value())))
            }
        }
    }
}

/// A whole number as the narrowest type expressions have for it.
fn integer_value(number: i128) -> Value {
    match (i64::try_from(number), u64::try_from(number)) {
        (Ok(signed), _) => Value::from(signed),
        (_, Ok(unsigned)) => Value::from(unsigned),
        _ => Value::from(number as f64),
    }
}

/// Reads a definition's text.
pub fn parse(text: &str) -> Result<Node, Problem> {
    let root = Place::root();
    if text.len() > DEFINITION_MAX_BYTES {
        return Err(root.problem(format!(
            "the definition has {} bytes; the most is {DEFINITION_MAX_BYTES}",
            text.len()
        )));
    }
    if text.trim_start().starts_with('{') {
        // Flow-style YAML also begins with a brace; when neither reads it, the
        // text was most likely meant to be JSON.
        return parse_json(text).or_else(|problem| parse_yaml(text).map_err(|_| problem));
    }
    parse_yaml(text)
}

/// Reads JSON alone, as parameters are given.
pub fn parse_json(text: &str) -> Result<Node, Problem> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let node = JsonSeed { depth: 0 }.deserialize(&mut reader);
    node.and_then(|node| reader.end().map(|()| node)).map_err(|error| Problem {
        place: String::new(),
        line: u32::try_from(error.line()).ok().filter(|line| *line > 0),
        message: format!("not JSON: {}", without_position(&error.to_string())),
    })
}

/// serde_json ends its messages with the position, which the problem has already.
fn without_position(message: &str) -> &str {
    message.split(" at line ").next().unwrap_or(message)
}

/// Builds a [`Node`] from JSON; serde_json's own value would drop repeated keys.
#[derive(Clone, Copy)]
struct JsonSeed {
    depth: usize,
}

impl JsonSeed {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth {
            DEFINITION_MAX_DEPTH => Err(E::custom(too_deep())),
            depth => Ok(Self { depth: depth + 1 }),
        }
    }
}

fn too_deep() -> String {
    format!("nested deeper than {DEFINITION_MAX_DEPTH}")
}

fn json(content: Content) -> Node {
    Node { line: None, content }
}

impl<'de> DeserializeSeed<'de> for JsonSeed {
    type Value = Node;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonSeed {
    type Value = Node;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(json(Content::Null))
    }
    fn visit_bool<E>(self, truth: bool) -> Result<Node, E> {
        Ok(json(Content::Bool(truth)))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(json(Content::Integer(number.into())))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(json(Content::Integer(number.into())))
    }
    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        Ok(json(Content::Float(number)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(json(Content::Text(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Node, A::Error> {
        let seed = self.deeper()?;
        let mut nodes = Vec::new();
        while let Some(node) = elements.next_element_seed(seed)? {
            nodes.push(node);
        }
        Ok(json(Content::List(nodes)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Node, A::Error> {
        let seed = self.deeper()?;
        let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
        while let Some(key) = pairs.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("`{key}` is given twice")));
            }
            entries.push((key, pairs.next_value_seed(seed)?));
        }
        Ok(json(Content::Map(entries)))
    }
}

/// A list or map that is not closed yet.
enum Open {
    List(Option<u32>, Vec<Node>),
    Map(Option<u32>, OpenMap),
}

/// The entries of a map that is not closed yet.
#[derive(Default)]
struct OpenMap {
    entries: Vec<(String, Node)>,
    seen: BTreeSet<String>,
    /// The key whose value comes next.
    key: Option<String>,
}

/// Builds the tree from the parser's events, with a stack of what is open.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
}

fn parse_yaml(text: &str) -> Result<Node, Problem> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| {
            let line = u32::try_from(error.marker().line()).ok();
            Place::root().on_line(line).problem(format!("not YAML: {}", error.info()))
        })?;
        builder.take(event, span)?;
    }
    builder.root.ok_or_else(|| Place::root().problem("the definition is empty"))
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let line = u32::try_from(span.start.line()).ok();
        let wrong = |message: &str| Err(Place::root().on_line(line).problem(message));
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                match self.documents {
                    1 => Ok(()),
                    _ => wrong("a second document: give one pipeline at a time"),
                }
            }
            Event::Alias(_) => wrong("anchors and aliases are not taken: write the value out"),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if anchor != 0 =>
            {
                wrong("anchors and aliases are not taken: write the value out")
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => wrong("tags are not taken: write the plain value"),
            Event::Scalar(text, style, ..) => {
                let content =
                    scalar(text, style).map_err(|why| Place::root().on_line(line).problem(why))?;
                self.place(Node { line, content })
            }
            Event::SequenceStart(..) => self.push(Open::List(line, Vec::new()), line),
            Event::MappingStart(..) => self.push(Open::Map(line, OpenMap::default()), line),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(line, nodes)) => {
                    self.place(Node { line, content: Content::List(nodes) })
                }
                Some(Open::Map(line, map)) => {
                    self.place(Node { line, content: Content::Map(map.entries) })
                }
                None => wrong("an end without a beginning"),
            },
        }
    }

    fn push(&mut self, open: Open, line: Option<u32>) -> Result<(), Problem> {
        if self.open.len() >= DEFINITION_MAX_DEPTH {
            return Err(Place::root().on_line(line).problem(too_deep()));
        }
        self.open.push(open);
        Ok(())
    }

    /// Puts a finished value where the innermost open list or map wants it.
    fn place(&mut self, node: Node) -> Result<(), Problem> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(_, nodes)) => nodes.push(node),
            Some(Open::Map(_, map)) => match map.key.take() {
                Some(name) => map.entries.push((name, node)),
                None => {
                    let place = Place::root().on_line(node.line);
                    let Content::Text(name) = node.content else {
                        let kind = node.kind();
                        return Err(place.problem(format!("a key must be text, this is {kind}")));
                    };
                    if !map.seen.insert(name.clone()) {
                        return Err(place.problem(format!("`{name}` is given twice")));
                    }
                    map.key = Some(name);
                }
            },
        }
        Ok(())
    }
}

/// A scalar by YAML's core schema: quoted ones are text, plain ones what they look like.
fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Result<Content, String> {
    if style != ScalarStyle::Plain {
        return Ok(Content::Text(text.into_owned()));
    }
    Ok(match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => Content::Null,
        "true" | "True" | "TRUE" => Content::Bool(true),
        "false" | "False" | "FALSE" => Content::Bool(false),
        ".nan" | ".NaN" | ".NAN" => Content::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Content::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Content::Float(f64::NEG_INFINITY),
        plain => match number(plain) {
            Some(number) => number?,
            None => Content::Text(text.into_owned()),
        },
    })
}

/// A plain scalar that looks like a number, or why it cannot be one.
fn number(plain: &str) -> Option<Result<Content, String>> {
    let digits = plain.strip_prefix(['+', '-']).unwrap_or(plain);
    let whole = |parsed: Result<i128, _>| match parsed {
        Ok(number) if (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&number) => {
            Ok(Content::Integer(number))
        }
        _ => Err(format!("{plain} does not fit into 64 bits")),
    };
    if let Some(hex) = plain.strip_prefix("0x") {
        return is_all(hex, |c| c.is_ascii_hexdigit())
            .then(|| whole(i128::from_str_radix(hex, 16)));
    }
    if let Some(octal) = plain.strip_prefix("0o") {
        return is_all(octal, |c| c.is_digit(8)).then(|| whole(i128::from_str_radix(octal, 8)));
    }
    if is_all(digits, |c| c.is_ascii_digit()) {
        return Some(whole(plain.parse::<i128>()));
    }
    // [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?
    let first = digits.chars().next()?;
    let floats = (first.is_ascii_digit() || first == '.')
        && digits.chars().any(|c| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    floats.then(|| plain.parse::<f64>().ok()).flatten().map(|number| Ok(Content::Float(number)))
}

fn is_all(text: &str, fits: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> Content {
        parse(text).unwrap_or_else(|problem| panic!("{text}: {problem}")).content
    }

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, want) in [
            ("null", Content::Null),
            ("~", Content::Null),
            ("true", Content::Bool(true)),
            ("yes", Content::Text("yes".into())),
            ("12", Content::Integer(12)),
            ("-12", Content::Integer(-12)),
            ("0x1f", Content::Integer(31)),
            ("0o17", Content::Integer(15)),
            ("18446744073709551615", Content::Integer(u64::MAX.into())),
            ("1.5", Content::Float(1.5)),
            ("1e3", Content::Float(1000.0)),
            ("1.2.3", Content::Text("1.2.3".into())),
            ("-", Content::List(vec![Node { line: Some(1), content: Content::Null }])),
            ("e5", Content::Text("e5".into())),
            ("\"12\"", Content::Text("12".into())),
            ("'true'", Content::Text("true".into())),
        ] {
            let got = content(text);
            match want {
                Content::List(_) => assert!(matches!(got, Content::List(_)), "{text}: {got:?}"),
                want => assert_eq!(got, want, "{text}"),
            }
        }
    }

    #[test]
    fn yaml_and_json_give_the_same_tree() {
        let yaml = content("a:\n  - 1\n  - x: \"{{ y }}\"\nb: null\n");
        let json = content(r#"{"a": [1, {"x": "{{ y }}"}], "b": null}"#);
        let flow = content("{a: [1, {x: '{{ y }}'}], b: null}");
        assert_eq!(strip(yaml.clone()), strip(json));
        assert_eq!(strip(yaml), strip(flow));
    }

    fn strip(content: Content) -> Content {
        let bare = |node: Node| Node { line: None, content: strip(node.content) };
        match content {
            Content::List(nodes) => Content::List(nodes.into_iter().map(bare).collect()),
            Content::Map(entries) => {
                Content::Map(entries.into_iter().map(|(key, node)| (key, bare(node))).collect())
            }
            other => other,
        }
    }

    #[test]
    fn json_escapes_beyond_the_plane_are_read() {
        assert_eq!(
            content(r#"{"a": "\ud83d\ude00"}"#),
            Content::Map(vec![("a".into(), json(Content::Text("😀".into())))])
        );
    }

    #[test]
    fn lines_are_remembered() {
        let Content::Map(entries) = content("a: 1\nb:\n  c: 2\n") else { panic!("a map") };
        let Content::Map(inner) = &entries[1].1.content else { panic!("a map") };
        assert_eq!((entries[0].1.line, inner[0].1.line), (Some(1), Some(3)));
    }

    #[test]
    fn what_is_not_taken_is_named() {
        let deep_yaml = "[".repeat(70) + &"]".repeat(70);
        let deep_json = r#"{"a":"#.to_owned() + &"[".repeat(70) + &"]".repeat(70) + "}";
        let long = "x".repeat(DEFINITION_MAX_BYTES + 1);
        for (text, want) in [
            ("", "the definition is empty"),
            ("a: 1\na: 2", "`a` is given twice (line 2)"),
            (r#"{"a": 1, "a": 2}"#, "`a` is given twice"),
            ("a: &x 1\nb: *x", "anchors and aliases are not taken"),
            ("a: !!str 1", "tags are not taken"),
            ("a: 1\n---\nb: 2", "a second document"),
            ("1: 2", "a key must be text, this is a number"),
            ("a: [1", "not YAML"),
            (r#"{"a": 1"#, "not JSON"),
            ("a: 99999999999999999999", "does not fit into 64 bits"),
            (&deep_yaml, "nested deeper than 64"),
            (&deep_json, "nested deeper than 64"),
            (&long, "the most is 1048576"),
        ] {
            let problem = parse(text).expect_err(text).to_string();
            assert!(problem.contains(want), "{:.40}: {problem}", text);
        }
    }

    #[test]
    fn a_map_of_many_keys_is_read_in_one_go() {
        // As many as there is room for: compared with each other they would take minutes.
        const KEYS: usize = 100_000;
        let yaml: String = (0..KEYS).map(|key| format!("{key:x}k: 1\n")).collect();
        let Content::Map(entries) = content(&yaml) else { panic!("a map") };
        assert_eq!(entries.len(), KEYS);
        let problem = parse(&(yaml + "0k: 2")).expect_err("twice").to_string();
        assert!(problem.contains("`0k` is given twice"), "{problem}");
    }

    #[test]
    fn large_integers_stay_exact_as_values() {
        let value = parse("18446744073709551615").expect("a number").to_value();
        assert_eq!(u64::try_from(value).ok(), Some(u64::MAX));
    }
}
