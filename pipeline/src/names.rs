//! What the expressions of a step may refer to, and the types of it as far as they
//! can be told before anything runs.
//!
//! | name | is |
//! | --- | --- |
//! | `params.NAME` | a parameter |
//! | `STEP` | the output of that step |
//! | `item`, `index` | the item of an `each`, and its number from 0 |
//! | `items`, `index` | in a step with `batch`: its items, and the number of the first |
//! | `progress` | in a step with `progress`: the newest message that it gave |
//! | `run.id` | the id of the run |
//!
//! Made by `plan` for each step, asked by `input`.

use std::collections::BTreeMap;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::expression::{Expression, Path};
use crate::input::BoundInput;
use crate::message::{find_field, is_well_known, name_of, no_field};
use crate::parameters::ParameterKind;
use crate::problem::suggest;

/// What a name is, as far as that can be told.
#[derive(Debug, Clone)]
pub(crate) enum Type {
    /// A message.
    Message(MessageDescriptor),
    /// A list of these.
    List(Kind),
    /// A map.
    Map,
    /// A single value that is not a message.
    Scalar(Kind),
    /// Shown when something runs.
    Unknown,
}

/// What a step gives to the others.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// One message: its index and type.
    Message(usize, Type),
    /// Nothing an expression could read, and why.
    None(String),
}

/// What the expressions of one step may refer to.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) parameters: BTreeMap<String, ParameterKind>,
    pub(crate) steps: BTreeMap<String, Output>,
    pub(crate) item: Option<Type>,
    /// The items of a batch, a list.
    pub(crate) items: Option<Type>,
    /// What the step has reported.
    pub(crate) progress: Option<Type>,
    /// Whether the item comes as the bytes of a message, not out of a list.
    pub(crate) item_is_bytes: bool,
}

impl Names {
    /// Whether this is the name of something whole.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.steps.contains_key(name) || (name == "item" && self.item.is_some())
    }

    /// The type at a path, or why there is nothing.
    pub(crate) fn resolve(&self, path: &Path) -> Result<Type, String> {
        let (name, fields) = path.split_first().ok_or("an empty name")?;
        match (name.as_str(), &self.item) {
            ("params", _) => self.parameter(fields),
            ("run", _) => match fields {
                [] => Ok(Type::Map),
                [id] if id == "id" => Ok(Type::Scalar(Kind::String)),
                [other, ..] => Err(format!("`run` has only `id`, not `{other}`")),
            },
            ("item", Some(item)) => walk("item", item.clone(), fields),
            ("progress", _) if self.progress.is_some() => {
                walk("progress", self.progress.clone().unwrap_or(Type::Unknown), fields)
            }
            ("index", item) if item.is_some() || self.items.is_some() => {
                walk("index", Type::Scalar(Kind::Uint64), fields)
            }
            ("item", None) if self.items.is_some() => {
                Err("a step with `batch` has its items together: `items` is their list".to_owned())
            }
            ("item" | "index", None) => {
                Err(format!("`{name}` is known only in a step with `each`"))
            }
            ("items", _) if self.items.is_some() => {
                walk("items", self.items.clone().unwrap_or(Type::Unknown), fields)
            }
            _ => match self.steps.get(name) {
                Some(Output::Message(_, output)) => walk(name, output.clone(), fields),
                Some(Output::None(why)) => Err(why.clone()),
                None => {
                    let known = ["params", "run"].into_iter();
                    let known = known.chain(self.item.iter().flat_map(|_| ["item", "index"]));
                    let known = known.chain(self.steps.keys().map(String::as_str));
                    Err(format!("there is no step `{name}`{}", suggest(name, known)))
                }
            },
        }
    }

    fn parameter(&self, fields: &[String]) -> Result<Type, String> {
        let Some((name, rest)) = fields.split_first() else { return Ok(Type::Map) };
        let Some(kind) = self.parameters.get(name) else {
            let near = suggest(name, self.parameters.keys().map(String::as_str));
            return Err(format!("there is no parameter `{name}`{near}"));
        };
        let found = match kind {
            ParameterKind::Text => Type::Scalar(Kind::String),
            ParameterKind::Integer => Type::Scalar(Kind::Int64),
            ParameterKind::Number => Type::Scalar(Kind::Double),
            ParameterKind::Boolean => Type::Scalar(Kind::Bool),
            ParameterKind::List | ParameterKind::Map => Type::Unknown,
        };
        walk(&format!("params.{name}"), found, rest)
    }

    /// The input that passes the bytes of what the expression names, when it names
    /// something whole that comes as bytes.
    pub(crate) fn whole(&self, expression: &Expression) -> Option<BoundInput> {
        let [name] = expression.plain_path()?.as_slice() else { return None };
        match self.steps.get(name) {
            Some(Output::Message(index, _)) => Some(BoundInput::Step(*index)),
            Some(Output::None(_)) => None,
            None => (name == "item" && self.item_is_bytes).then_some(BoundInput::Item),
        }
    }
}

fn walk(name: &str, mut current: Type, fields: &[String]) -> Result<Type, String> {
    let mut so_far = name.to_owned();
    for field in fields {
        current = match current {
            Type::Unknown => return Ok(Type::Unknown),
            Type::Map => return Ok(Type::Unknown),
            Type::Message(message) if is_well_known(&message) => return Ok(Type::Unknown),
            Type::Message(message) => match find_field(&message, field) {
                Some(field) => Type::of(&field),
                None => return Err(format!("`{so_far}`: {}", no_field(&message, field).message)),
            },
            Type::List(_) => {
                return Err(format!(
                    "`{so_far}` is a list and has no field `{field}`: take an element, as in `{so_far}[0]`"
                ));
            }
            Type::Scalar(kind) => {
                let kind = name_of(&kind);
                return Err(format!("`{so_far}` is {kind} and has no field `{field}`"));
            }
        };
        so_far = format!("{so_far}.{field}");
    }
    Ok(current)
}

impl Type {
    /// The type of a message's field.
    pub(crate) fn of(field: &FieldDescriptor) -> Self {
        if field.is_map() {
            return Self::Map;
        }
        if field.is_list() {
            return Self::List(field.kind());
        }
        Self::of_kind(field.kind())
    }

    /// The type of a list of these, as far as it can be told.
    pub(crate) fn list_of(self) -> Self {
        match self {
            Self::Message(message) => Self::List(Kind::Message(message)),
            Self::Scalar(kind) => Self::List(kind),
            Self::List(_) | Self::Map | Self::Unknown => Self::Unknown,
        }
    }

    /// The type of an element of this kind.
    pub(crate) fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Message(message) => Self::Message(message),
            kind => Self::Scalar(kind),
        }
    }

    /// What this is, when it surely is no message.
    pub(crate) fn scalar_words(&self) -> Option<String> {
        match self {
            Self::Scalar(kind) => Some(name_of(kind)),
            Self::List(_) => Some("a list".to_owned()),
            Self::Message(_) | Self::Map | Self::Unknown => None,
        }
    }

    /// Why this cannot fit a field, when that is sure.
    pub(crate) fn misfit(&self, field: &FieldDescriptor) -> Option<String> {
        let wanted = match (field.is_map(), field.is_list()) {
            (true, _) => "a map".to_owned(),
            (_, true) => format!("a list of {}", name_of(&field.kind())),
            _ => return self.misfit_kind(&field.kind()),
        };
        let fits = match self {
            Self::Unknown => true,
            Self::Map => field.is_map(),
            Self::Message(message) => is_well_known(message),
            Self::List(kind) => !field.is_map() && kinds_fit(kind, &field.kind()),
            Self::Scalar(_) => false,
        };
        (!fits).then(|| format!("{wanted} is wanted, this is {}", self.words()))
    }

    /// Why this cannot fit a single value of a kind, when that is sure.
    pub(crate) fn misfit_kind(&self, kind: &Kind) -> Option<String> {
        let fits = match (self, kind) {
            (Self::Unknown, _) => true,
            (Self::Message(given), Kind::Message(wanted)) => {
                given.full_name() == wanted.full_name()
                    || is_well_known(given)
                    || is_well_known(wanted)
            }
            (Self::Message(given), _) => is_well_known(given),
            (Self::Map, Kind::Message(_)) => true,
            (Self::List(_), Kind::Message(wanted)) => is_well_known(wanted),
            (Self::Map | Self::List(_), _) => false,
            (Self::Scalar(given), wanted) => kinds_fit(given, wanted),
        };
        (!fits).then(|| format!("{} is wanted, this is {}", name_of(kind), self.words()))
    }

    fn words(&self) -> String {
        match self {
            Self::Message(message) => format!("a {}", message.full_name()),
            Self::List(kind) => format!("a list of {}", name_of(kind)),
            Self::Map => "a map".to_owned(),
            Self::Scalar(kind) => name_of(kind),
            Self::Unknown => "unknown".to_owned(),
        }
    }
}

/// Whether a value of one kind may fit another; its size shows when it runs.
fn kinds_fit(given: &Kind, wanted: &Kind) -> bool {
    let number = |kind: &Kind| {
        !matches!(kind, Kind::String | Kind::Bytes | Kind::Bool | Kind::Message(_) | Kind::Enum(_))
    };
    match (given, wanted) {
        (Kind::Message(given), Kind::Message(wanted)) => {
            given.full_name() == wanted.full_name() || is_well_known(given) || is_well_known(wanted)
        }
        (Kind::Message(given), _) => is_well_known(given),
        (_, Kind::Message(wanted)) => is_well_known(wanted),
        // Enums read as their names.
        (Kind::Enum(_) | Kind::String, Kind::Enum(_) | Kind::String | Kind::Bytes) => true,
        (given, Kind::Enum(_)) => number(given),
        (Kind::Bytes, wanted) => matches!(wanted, Kind::Bytes),
        (Kind::Bool, wanted) => matches!(wanted, Kind::Bool),
        (given, wanted) => number(given) && number(wanted),
    }
}
