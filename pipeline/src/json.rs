//! Values of a pipeline itself, as JSON: parameters of pipelines that steps run, outputs,
//! payloads of signals. Messages of services are `message` and `input`.
//!
//! Called by `plan` (bind) and `run` (encode).

use bytes::Bytes;
use minijinja::Value;

use crate::definition::{Shape, ShapeContent};
use crate::document;
use crate::input::InputError;
use crate::names::Names;
use crate::problem::Problems;

/// The largest value, in bytes of its JSON.
pub const JSON_MAX_BYTES: usize = document::DEFINITION_MAX_BYTES;

/// A value with expressions in it.
#[derive(Debug)]
pub struct Json(Shape);

impl Json {
    /// Checks what its expressions refer to.
    pub(crate) fn bind(shape: Shape, names: &Names, problems: &mut Problems) -> Self {
        for (expression, place) in shape.expressions() {
            for path in expression.paths() {
                if let Err(why) = names.resolve(path) {
                    problems.add(place, why);
                    break;
                }
            }
        }
        Self(shape)
    }

    /// The value in a scope, as JSON.
    pub(crate) fn encode(&self, scope: &Value) -> Result<Bytes, InputError> {
        let value = value(&self.0, scope)?;
        let failed = |message: String| InputError { place: self.0.place.path.clone(), message };
        let text = text(&value).map_err(failed)?;
        match text.len() {
            0..=JSON_MAX_BYTES => Ok(text.into()),
            bytes => Err(failed(format!("it has {bytes} bytes; the most is {JSON_MAX_BYTES}"))),
        }
    }
}

fn value(shape: &Shape, scope: &Value) -> Result<Value, InputError> {
    let failed = |error: crate::expression::ExpressionError| InputError {
        place: shape.place.path.clone(),
        message: error.to_string(),
    };
    Ok(match &shape.content {
        ShapeContent::Literal(value) => value.clone(),
        ShapeContent::Expression(expression) => expression.evaluate(scope).map_err(failed)?,
        ShapeContent::Text(text) => Value::from(text.evaluate(scope).map_err(failed)?),
        ShapeContent::List(shapes) => {
            let values = shapes.iter().map(|shape| value(shape, scope));
            values.collect::<Result<Vec<_>, _>>()?.into()
        }
        ShapeContent::Map(shapes) => {
            let values = shapes.iter().map(|(key, shape)| Ok((key.clone(), value(shape, scope)?)));
            Value::from_pairs(values.collect::<Result<Vec<_>, InputError>>()?)
        }
    })
}

/// A value as JSON.
pub(crate) fn text(value: &Value) -> Result<String, String> {
    serde_json::to_string(value).map_err(|error| error.to_string())
}

/// JSON as a value; whole numbers stay exact.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not JSON: not UTF-8".to_owned())?;
    match text.trim() {
        "" => Ok(Value::from(())),
        text => document::parse_json(text).map(|node| node.to_value()).map_err(|p| p.message),
    }
}
