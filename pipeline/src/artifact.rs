//! Named artifacts: what a step gives, kept under a name for whoever fetches it.
//!
//! ```yaml
//! - {id: export, call: shop.Reports/Export, artifact: {name: report.csv, field: data}}
//! - {id: order, call: shop.Orders/Create, artifact: order.json}
//! ```
//!
//! The artifact of a stream is what its messages hold, one behind the other, and can be
//! read while it grows. With `field` that is the bytes or text of this field; without it
//! each message is a line of JSON. Nothing is kept twice: the journal has it.
//!
//! Called by `definition` and `plan`; read by the scheduler.

use bytes::Bytes;
use prost_reflect::{Kind, MessageDescriptor, Value as Field};

use crate::document::Content;
use crate::fields::Fields;
use crate::message::{decode, find_field, name_of, no_field, to_json};
use crate::problem::{Place, Problems};

/// The longest name of an artifact, in bytes.
pub const NAME_MAX_BYTES: usize = 128;

/// A step's result that is kept under a name.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The name.
    pub name: String,
    /// The field whose content it is.
    pub field: Option<String>,
    /// Where it stands.
    pub place: Place,
}

/// Reads `artifact`.
pub(crate) fn artifact(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Artifact> {
    let (node, place) = fields.take("artifact")?;
    let artifact = match &node.content {
        Content::Text(name) => Artifact { name: name.clone(), field: None, place },
        _ => {
            let mut fields = Fields::open(node, &place, problems)?;
            let name = fields.text("name", problems).map(|(name, _)| name);
            let field = fields.text("field", problems).map(|(field, _)| field);
            let name =
                name.unwrap_or_else(|| fields.missing("name", "what it is fetched by", problems));
            fields.close(problems);
            Artifact { name, field, place }
        }
    };
    let name = &artifact.name;
    let bad = name.len() > NAME_MAX_BYTES || name.chars().any(char::is_control);
    if bad || name.is_empty() {
        let text = format!(
            "the name of an artifact has 1 to {NAME_MAX_BYTES} bytes and no control characters"
        );
        problems.add(&artifact.place, text);
    }
    Some(artifact)
}

impl Artifact {
    /// What is wrong with it for a step that gives these messages.
    pub(crate) fn check(&self, output: Option<&MessageDescriptor>) -> Option<String> {
        let field = self.field.as_ref()?;
        let Some(output) = output else {
            return Some("this step gives no message: leave `field` out".to_owned());
        };
        let Some(found) = find_field(output, field) else {
            return Some(no_field(output, field).message);
        };
        let fits = matches!(found.kind(), Kind::Bytes | Kind::String) && !found.is_list();
        (!fits).then(|| format!("`{field}` is {}; bytes or text is wanted", name_of(&found.kind())))
    }

    /// What one message adds to it.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub fn content(&self, output: &MessageDescriptor, body: &Bytes) -> Result<Bytes, String> {
        let message = decode(output, body)?;
        let Some(field) = &self.field else {
            let line = to_json(&message).map_err(|error| error.to_string())?;
            return Ok((line + "\n").into());
        };
        let field = find_field(output, field).ok_or_else(|| no_field(output, field).message)?;
        match message.get_field(&field).as_ref() {
            Field::Bytes(bytes) => Ok(bytes.clone()),
            Field::String(text) => Ok(Bytes::from(text.clone())),
            _ => Err(format!("`{}` is neither bytes nor text", field.name())),
        }
    }
}
