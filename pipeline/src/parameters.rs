//! What a pipeline can be started with: declared in its definition, given with a run.
//!
//! Called by `definition` for what is declared, by the scheduler for what is given.

use minijinja::Value;
use minijinja::value::ValueKind;

use crate::definition::{Definition, NAME_MAX_BYTES, name_rule};
use crate::document::{self, Content, Node};
use crate::expression::is_name;
use crate::fields::Fields;
use crate::problem::{Place, Problems, suggest};

/// Something a pipeline is started with: `params.NAME` in expressions.
#[derive(Debug)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What it may be.
    pub kind: ParameterKind,
    /// Its value when none is given; without one it must be given.
    pub default: Option<Value>,
}

/// What a parameter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// Text.
    Text,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
    /// A list.
    List,
    /// A map.
    Map,
}

/// Reads the parameters of a definition.
pub(crate) fn parameters(node: &Node, place: &Place, problems: &mut Problems) -> Vec<Parameter> {
    let Content::Map(entries) = &node.content else {
        problems.add(place, format!("a map of parameters is wanted, this is {}", node.kind()));
        return Vec::new();
    };
    let mut parameters = Vec::new();
    for (name, node) in entries {
        let place = place.field(name).on_line(node.line);
        if !is_name(name) || name.len() > NAME_MAX_BYTES {
            problems.add(&place, name_rule("the name of a parameter"));
        }
        let Some(mut fields) = Fields::open(node, &place, problems) else { continue };
        let kind = match fields.text("type", problems) {
            Some((name, place)) => parameter_kind(&name, &place, problems),
            None => {
                fields.missing("type", "text, integer, number, boolean, list or map", problems);
                None
            }
        };
        let default = fields.take("default");
        fields.close(problems);
        let Some(kind) = kind else { continue };
        let default = default.and_then(|(node, place)| {
            let value = node.to_value();
            match kind.takes(&value) {
                true => Some(value),
                false => {
                    let (wanted, kind) = (kind.words(), node.kind());
                    problems.add(&place, format!("{wanted} is wanted, this is {kind}"));
                    None
                }
            }
        });
        parameters.push(Parameter { name: name.clone(), kind, default });
    }
    parameters
}

fn parameter_kind(name: &str, place: &Place, problems: &mut Problems) -> Option<ParameterKind> {
    Some(match name {
        "text" | "string" => ParameterKind::Text,
        "integer" => ParameterKind::Integer,
        "number" => ParameterKind::Number,
        "boolean" => ParameterKind::Boolean,
        "list" => ParameterKind::List,
        "map" => ParameterKind::Map,
        _ => {
            let near = suggest(name, ["text", "integer", "number", "boolean", "list", "map"]);
            problems.add(place, format!("there is no type `{name}`{near}"));
            return None;
        }
    })
}

impl ParameterKind {
    /// Whether a value is of this kind.
    pub fn takes(self, value: &Value) -> bool {
        match self {
            Self::Text => value.kind() == ValueKind::String,
            Self::Integer => value.kind() == ValueKind::Number && value.is_integer(),
            Self::Number => value.kind() == ValueKind::Number,
            Self::Boolean => value.kind() == ValueKind::Bool,
            Self::List => matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable),
            Self::Map => value.kind() == ValueKind::Map,
        }
    }

    /// Its name, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::List => "a list",
            Self::Map => "a map",
        }
    }
}

impl Definition {
    /// The parameters of a run: those given (a JSON object, or empty text), the
    /// defaults of the rest. All problems are named under `parameters`.
    pub fn parameters(&self, given_json: &str) -> Result<Value, Problems> {
        let place = Place::root().field("parameters");
        let given = match given_json.trim() {
            "" => Node { line: None, content: Content::Map(Vec::new()) },
            text => document::parse_json(text).map_err(|problem| place.problem(problem.message))?,
        };
        let Content::Map(entries) = given.content else {
            return Err(place.problem("the parameters must be a JSON object").into());
        };
        let mut problems = Problems::default();
        for (name, _) in &entries {
            if !self.parameters.iter().any(|parameter| parameter.name == *name) {
                let near = suggest(name, self.parameters.iter().map(|known| known.name.as_str()));
                problems.add(&place.field(name), format!("there is no parameter `{name}`{near}"));
            }
        }
        let mut values = Vec::new();
        for parameter in &self.parameters {
            let (name, wanted) = (&parameter.name, parameter.kind.words());
            let given = entries.iter().find(|(given, _)| given == name);
            match (given.map(|(_, node)| node), &parameter.default) {
                (Some(node), _) if parameter.kind.takes(&node.to_value()) => {
                    values.push((name.clone(), node.to_value()));
                }
                (Some(node), _) => {
                    let kind = node.kind();
                    problems.add(&place.field(name), format!("{wanted} is wanted, this is {kind}"));
                }
                (None, Some(default)) => values.push((name.clone(), default.clone())),
                (None, None) => {
                    problems.add(&place.field(name), format!("{wanted} must be given"));
                }
            }
        }
        problems.into_result(Value::from_pairs(values))
    }
}
