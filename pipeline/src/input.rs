//! What a step sends, bound to the message its method takes: checked once when the
//! pipeline is accepted, then made for every attempt.
//!
//! ```text
//!  Shape (definition) ─ bind, with the method's descriptor ─▶ BoundInput
//!  BoundInput ─ encode, with a scope ─▶ bytes of the request
//! ```
//!
//! Literals are converted when they are bound, so a running item only evaluates
//! its expressions. An input that is one reference and nothing else passes the
//! bytes it refers to through untouched.
//!
//! Called by `plan` (bind) and `run` (encode).

use bytes::Bytes;
use minijinja::Value;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value as Field,
};

use crate::definition::{Shape, ShapeContent};
use crate::expression::{Expression, ExpressionError, Text};
use crate::json::Json;
use crate::message::{
    Misfit, find_field, is_well_known, map_key, name_of, no_field, to_field, to_kind, to_message,
    words,
};
use crate::names::{Names, Type};
use crate::problem::{Place, Problems};

/// What a step sends, bound to its method's message.
#[derive(Debug)]
pub enum BoundInput {
    /// An empty message.
    Empty,
    /// The whole output of a step (by its index), untouched.
    Step(usize),
    /// The whole item of an `each`, untouched.
    Item,
    /// A message made of constants and expressions.
    Message(BoundMessage),
    /// A message that one expression gives.
    Value(Place, Expression, MessageDescriptor),
    /// A value that is no message, as JSON.
    Json(Json),
}

/// A message made of constants and expressions.
#[derive(Debug)]
pub struct BoundMessage {
    descriptor: MessageDescriptor,
    fields: Vec<(FieldDescriptor, BoundValue)>,
}

/// The content of a field, or of an element of one.
#[derive(Debug)]
enum BoundValue {
    Constant(Field),
    Expression(Place, Expression, Target),
    Text(Place, Text, Target),
    List(Vec<BoundValue>),
    Map(Vec<(MapKey, BoundValue)>),
    Message(BoundMessage),
}

/// What a value has to fit into.
#[derive(Debug, Clone)]
enum Target {
    Field(FieldDescriptor),
    Element(Kind),
}

impl Target {
    fn convert(&self, value: &Value) -> Result<Option<Field>, Misfit> {
        match self {
            Self::Field(field) => to_field(value, field),
            Self::Element(kind) => to_kind(value, kind).map(Some),
        }
    }

    /// Whether text may fit, once it is known.
    fn takes_text(&self) -> bool {
        let kind = match self {
            Self::Field(field) if field.is_list() || field.is_map() => return false,
            Self::Field(field) => field.kind(),
            Self::Element(kind) => kind.clone(),
        };
        match kind {
            Kind::String | Kind::Bytes | Kind::Enum(_) => true,
            Kind::Message(message) => is_well_known(&message),
            _ => false,
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Field(field) if field.is_map() => "a map".to_owned(),
            Self::Field(field) if field.is_list() => {
                format!("a list of {}", name_of(&field.kind()))
            }
            Self::Field(field) => name_of(&field.kind()),
            Self::Element(kind) => name_of(kind),
        }
    }

    /// The message type, when one single message goes here that has fields of its own.
    fn message(&self) -> Option<MessageDescriptor> {
        let kind = match self {
            Self::Field(field) if field.is_list() || field.is_map() => return None,
            Self::Field(field) => field.kind(),
            Self::Element(kind) => kind.clone(),
        };
        kind.as_message().filter(|message| !is_well_known(message)).cloned()
    }
}

/// Why an input could not be made: an error of the step, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct InputError {
    /// The place in the definition.
    pub place: String,
    /// What is wrong.
    pub message: String,
}

impl InputError {
    fn misfit(place: &Place, misfit: Misfit) -> Self {
        Self { place: format!("{}{}", place.path, misfit.below), message: misfit.message }
    }

    fn expression(place: &Place, error: &ExpressionError) -> Self {
        Self { place: place.path.clone(), message: error.to_string() }
    }
}

impl BoundInput {
    /// The bytes of the request, unless they are another message's bytes: those the
    /// caller has at hand.
    pub fn encode(&self, scope: &Value) -> Result<Bytes, InputError> {
        match self {
            Self::Empty | Self::Step(_) | Self::Item => Ok(Bytes::new()),
            Self::Json(json) => json.encode(scope),
            Self::Message(message) => Ok(message.build(scope)?.encode_to_vec().into()),
            Self::Value(place, expression, descriptor) => {
                let value = expression
                    .evaluate(scope)
                    .map_err(|error| InputError::expression(place, &error))?;
                let message = to_message(&value, descriptor)
                    .map_err(|misfit| InputError::misfit(place, misfit))?;
                Ok(message.encode_to_vec().into())
            }
        }
    }
}

impl BoundMessage {
    fn build(&self, scope: &Value) -> Result<DynamicMessage, InputError> {
        let mut message = DynamicMessage::new(self.descriptor.clone());
        for (field, value) in &self.fields {
            if let Some(content) = value.build(scope)? {
                message.set_field(field, content);
            }
        }
        Ok(message)
    }
}

impl BoundValue {
    /// The content in a scope; none leaves a field unset.
    fn build(&self, scope: &Value) -> Result<Option<Field>, InputError> {
        Ok(Some(match self {
            Self::Constant(field) => field.clone(),
            Self::Expression(place, expression, target) => {
                let value = expression
                    .evaluate(scope)
                    .map_err(|error| InputError::expression(place, &error))?;
                return target.convert(&value).map_err(|misfit| InputError::misfit(place, misfit));
            }
            Self::Text(place, text, target) => {
                let text =
                    text.evaluate(scope).map_err(|error| InputError::expression(place, &error))?;
                return target
                    .convert(&Value::from(text))
                    .map_err(|misfit| InputError::misfit(place, misfit));
            }
            Self::List(elements) => {
                let mut list = Vec::with_capacity(elements.len());
                for element in elements {
                    list.extend(element.build(scope)?);
                }
                Field::List(list)
            }
            Self::Map(entries) => {
                let mut map = std::collections::HashMap::default();
                for (key, value) in entries {
                    if let Some(value) = value.build(scope)? {
                        map.insert(key.clone(), value);
                    }
                }
                Field::Map(map)
            }
            Self::Message(message) => Field::Message(message.build(scope)?),
        }))
    }
}

/// Binds the input of one step, collecting what is wrong.
pub(crate) struct Binder<'a> {
    /// What the expressions may refer to.
    pub(crate) names: &'a Names,
    /// What is wrong so far.
    pub(crate) problems: &'a mut Problems,
}

impl Binder<'_> {
    /// Binds a whole input to the message that `call` takes.
    pub(crate) fn input(
        &mut self,
        shape: Shape,
        descriptor: &MessageDescriptor,
        call: &str,
    ) -> Option<BoundInput> {
        let place = shape.place;
        match shape.content {
            ShapeContent::Map(fields) if !is_well_known(descriptor) => {
                Some(BoundInput::Message(self.message(fields, descriptor)))
            }
            ShapeContent::Expression(expression) => self.whole(place, expression, descriptor, call),
            ShapeContent::Literal(value) if value.as_str().is_some() => {
                let name = value.as_str().unwrap_or_default();
                let hint = match self.names.knows(name) {
                    true => format!("; a whole output is written `{{{{ {name} }}}}`"),
                    false => String::new(),
                };
                let wanted = descriptor.full_name();
                let words = words(&value);
                self.problems.add(&place, format!("a {wanted} is wanted, this is {words}{hint}"));
                None
            }
            ShapeContent::Literal(value) => match to_message(&value, descriptor) {
                Ok(message) => {
                    let fields = message.fields();
                    let fields = fields
                        .map(|(field, value)| (field, BoundValue::Constant(value.clone())))
                        .collect();
                    let descriptor = descriptor.clone();
                    Some(BoundInput::Message(BoundMessage { descriptor, fields }))
                }
                Err(misfit) => self.misfit(&place, misfit),
            },
            ShapeContent::Text(_) | ShapeContent::List(_) | ShapeContent::Map(_) => {
                let wanted = descriptor.full_name();
                self.problems.add(&place, format!("a map with the fields of {wanted} is wanted"));
                None
            }
        }
    }

    /// An input that is one expression: a whole message where it can be told.
    fn whole(
        &mut self,
        place: Place,
        expression: Expression,
        descriptor: &MessageDescriptor,
        call: &str,
    ) -> Option<BoundInput> {
        let known = self.check(&expression, &place)?;
        let Some(Type::Message(given)) = known else {
            if let Some(kind) = known.and_then(|known| known.scalar_words()) {
                let wanted = descriptor.full_name();
                self.problems.add(&place, format!("a {wanted} is wanted, this is {kind}"));
                return None;
            }
            return Some(BoundInput::Value(place, expression, descriptor.clone()));
        };
        if given.full_name() != descriptor.full_name() {
            let (source, given, wanted) =
                (expression.source(), given.full_name(), descriptor.full_name());
            let message = format!("`{source}` is a {given}, and {call} takes a {wanted}");
            self.problems.add(&place, message);
            return None;
        }
        Some(match self.names.whole(&expression) {
            Some(whole) => whole,
            None => BoundInput::Value(place, expression, descriptor.clone()),
        })
    }

    fn message(
        &mut self,
        shapes: Vec<(String, Shape)>,
        descriptor: &MessageDescriptor,
    ) -> BoundMessage {
        let mut fields: Vec<(FieldDescriptor, BoundValue)> = Vec::new();
        for (name, shape) in shapes {
            let Some(field) = find_field(descriptor, &name) else {
                self.problems.add(&shape.place, no_field(descriptor, &name).message);
                continue;
            };
            let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
            let rival = fields.iter().find(|(other, _)| {
                *other == field || (oneof.is_some() && other.containing_oneof() == oneof)
            });
            if let Some((other, _)) = rival {
                let other = other.name();
                self.problems.add(&shape.place, format!("it cannot be given beside `{other}`"));
                continue;
            }
            let place = shape.place.clone();
            if let Some(value) = self.value(shape, &Target::Field(field.clone()), &place) {
                fields.push((field, value));
            }
        }
        BoundMessage { descriptor: descriptor.clone(), fields }
    }

    fn value(&mut self, shape: Shape, target: &Target, place: &Place) -> Option<BoundValue> {
        match shape.content {
            ShapeContent::Literal(value) => self.constant(&value, target, place),
            ShapeContent::Expression(expression) => {
                let known = self.check(&expression, place)?;
                if let Some(why) = known.and_then(|known| match target {
                    Target::Field(field) => known.misfit(field),
                    Target::Element(kind) => known.misfit_kind(kind),
                }) {
                    let source = expression.source();
                    self.problems.add(place, format!("`{source}`: {why}"));
                    return None;
                }
                Some(BoundValue::Expression(place.clone(), expression, target.clone()))
            }
            ShapeContent::Text(text) => {
                let mut fine = true;
                for expression in text.expressions() {
                    fine &= self.check(expression, place).is_some();
                }
                if !target.takes_text() {
                    self.problems.add(place, format!("{} is wanted, this is text", target.words()));
                    return None;
                }
                fine.then(|| BoundValue::Text(place.clone(), text, target.clone()))
            }
            ShapeContent::List(shapes) => match target {
                Target::Field(field) if field.is_list() => {
                    let element = Target::Element(field.kind());
                    let bound = shapes.into_iter().map(|shape| {
                        let place = shape.place.clone();
                        self.value(shape, &element, &place)
                    });
                    Some(BoundValue::List(bound.collect::<Option<Vec<_>>>()?))
                }
                _ => self.plain(ShapeContent::List(shapes), target, place),
            },
            ShapeContent::Map(shapes) => match (target.message(), target) {
                (Some(message), _) => Some(BoundValue::Message(self.message(shapes, &message))),
                (None, Target::Field(field)) if field.is_map() => self.map(shapes, field),
                _ => self.plain(ShapeContent::Map(shapes), target, place),
            },
        }
    }

    fn map(&mut self, shapes: Vec<(String, Shape)>, field: &FieldDescriptor) -> Option<BoundValue> {
        let entry = field.kind().as_message()?.clone();
        let (key_kind, element) = (
            entry.map_entry_key_field().kind(),
            Target::Element(entry.map_entry_value_field().kind()),
        );
        let mut bound = Vec::new();
        for (name, shape) in shapes {
            let place = shape.place.clone();
            match map_key(&Value::from(name), &key_kind) {
                Ok(key) => bound.push((key, self.value(shape, &element, &place)?)),
                Err(misfit) => return self.misfit(&place, misfit),
            }
        }
        Some(BoundValue::Map(bound))
    }

    /// A list or map where no field of that form wants one: right for a type like
    /// `google.protobuf.Struct` when there are no expressions in it, else a misfit.
    fn plain(
        &mut self,
        content: ShapeContent,
        target: &Target,
        place: &Place,
    ) -> Option<BoundValue> {
        match literal(&content) {
            Some(value) => self.constant(&value, target, place),
            None => {
                let wanted = target.words();
                let message = format!("{wanted} is wanted: write it as one expression in braces");
                self.problems.add(place, message);
                None
            }
        }
    }

    /// A constant; null gives nothing, which leaves the field unset.
    fn constant(&mut self, value: &Value, target: &Target, place: &Place) -> Option<BoundValue> {
        match target.convert(value) {
            Ok(field) => field.map(BoundValue::Constant),
            Err(misfit) => self.misfit(place, misfit),
        }
    }

    fn misfit<T>(&mut self, place: &Place, misfit: Misfit) -> Option<T> {
        let place = Place { path: format!("{}{}", place.path, misfit.below), line: place.line };
        self.problems.add(&place, misfit.message);
        None
    }

    /// Checks what an expression refers to. The inner value is its type, as far as
    /// that can be told; the outer is none when something is wrong.
    fn check(&mut self, expression: &Expression, place: &Place) -> Option<Option<Type>> {
        let mut fine = true;
        for path in expression.paths() {
            if let Err(why) = self.names.resolve(path) {
                self.problems.add(place, why);
                fine = false;
            }
        }
        let known = expression.plain_path().and_then(|path| self.names.resolve(path).ok());
        fine.then_some(known)
    }
}

/// The value of a shape without expressions.
fn literal(content: &ShapeContent) -> Option<Value> {
    match content {
        ShapeContent::Literal(value) => Some(value.clone()),
        ShapeContent::Expression(_) | ShapeContent::Text(_) => None,
        ShapeContent::List(shapes) => shapes.iter().map(|shape| literal(&shape.content)).collect(),
        ShapeContent::Map(shapes) => {
            let pairs =
                shapes.iter().map(|(key, shape)| Some((key.clone(), literal(&shape.content)?)));
            pairs.collect::<Option<Vec<_>>>().map(Value::from_pairs)
        }
    }
}
