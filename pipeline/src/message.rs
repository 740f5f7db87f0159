//! Protobuf messages as expression values, and expression values as fields.
//!
//! ```text
//!  bytes ─ decode ─▶ DynamicMessage ─ message_value ─▶ Value   (fields made when read)
//!  Value ─ to_field ─▶ prost_reflect::Value, checked against the field's type
//! ```
//!
//! 64-bit integers stay exact, enums are their names, `bytes` are bytes, a message
//! that is not set is none. Google's well-known types (`Timestamp`, `Struct`, …)
//! read and write as in protobuf's JSON.
//!
//! Called by `input` for literals when a pipeline is checked, and for every item
//! while it runs.

use std::sync::Arc;

use bytes::Bytes;
use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr, Serde, ValueKind};
use prost_reflect::prost::Message as _;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage as _, SerializeOptions, Value as Field,
};

use crate::problem::suggest;

/// A value that does not fit a field: where below the field, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The path below the value that was given, such as `.address.city` or `[3]`.
    pub below: String,
    /// What is wrong.
    pub message: String,
}

impl Misfit {
    fn new(message: impl Into<String>) -> Self {
        Self { below: String::new(), message: message.into() }
    }

    fn under(mut self, part: &str) -> Self {
        self.below.insert_str(0, part);
        self
    }
}

/// Decodes a message by its descriptor.
pub fn decode(descriptor: &MessageDescriptor, body: &Bytes) -> Result<DynamicMessage, String> {
    DynamicMessage::decode(descriptor.clone(), body.clone())
        .map_err(|error| format!("not a {}: {error}", descriptor.full_name()))
}

/// A message as expressions see it.
pub fn message_value(message: DynamicMessage) -> Value {
    if is_well_known(&message.descriptor()) {
        return well_known_value(&message);
    }
    Value::from_object(MessageObject(message))
}

/// A message as JSON, for people; whole numbers of 64 bits stay numbers.
pub fn to_json(message: &DynamicMessage) -> Result<String, serde_json::Error> {
    let mut out = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut out, &json_options())?;
    // The serializer only writes UTF-8, so nothing is replaced here.
    Ok(String::from_utf8_lossy(&out.into_inner()).into_owned())
}

fn json_options() -> SerializeOptions {
    SerializeOptions::new()
        .stringify_64_bit_integers(false)
        .use_proto_field_name(true)
        .skip_default_fields(false)
}

/// A message whose fields turn into values when an expression reads them.
#[derive(Debug)]
struct MessageObject(DynamicMessage);

impl Object for MessageObject {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let field = find_field(&self.0.descriptor(), key.as_str()?)?;
        Some(field_value(&self.0, &field))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let fields = self.0.descriptor();
        Enumerator::Values(fields.fields().map(|field| Value::from(field.name())).collect())
    }
}

/// A field by its name in the `.proto` file, or by its JSON name.
pub fn find_field(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name))
}

fn field_value(message: &DynamicMessage, field: &FieldDescriptor) -> Value {
    if field.supports_presence() && !message.has_field(field) {
        return Value::from(());
    }
    to_value(&message.get_field(field), &field.kind())
}

fn to_value(field: &Field, kind: &Kind) -> Value {
    match field {
        Field::Bool(truth) => Value::from(*truth),
        Field::I32(number) => Value::from(*number),
        Field::I64(number) => Value::from(*number),
        Field::U32(number) => Value::from(*number),
        Field::U64(number) => Value::from(*number),
        Field::F32(number) => Value::from(*number),
        Field::F64(number) => Value::from(*number),
        Field::String(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => Value::from_bytes(bytes.to_vec()),
        Field::EnumNumber(number) => {
            let name = kind.as_enum().and_then(|names| names.get_value(*number));
            name.map_or_else(|| Value::from(*number), |name| Value::from(name.name()))
        }
        Field::Message(message) => message_value(message.clone()),
        Field::List(fields) => fields.iter().map(|field| to_value(field, kind)).collect(),
        Field::Map(entries) => {
            let kind = kind.as_message().map(MessageDescriptor::map_entry_value_field);
            let pair = |(key, field): (&MapKey, &Field)| {
                let value = kind.as_ref().map(|kind| to_value(field, &kind.kind()));
                (key_value(key), value.unwrap_or_default())
            };
            Value::from_pairs(entries.iter().map(pair))
        }
    }
}

fn key_value(key: &MapKey) -> Value {
    match key {
        MapKey::Bool(truth) => Value::from(*truth),
        MapKey::I32(number) => Value::from(*number),
        MapKey::I64(number) => Value::from(*number),
        MapKey::U32(number) => Value::from(*number),
        MapKey::U64(number) => Value::from(*number),
        MapKey::String(text) => Value::from(text.as_str()),
    }
}

/// Whether protobuf's JSON has a form of its own for the type.
pub fn is_well_known(descriptor: &MessageDescriptor) -> bool {
    descriptor.full_name().strip_prefix("google.protobuf.").is_some_and(|name| {
        matches!(
            name,
            "Any" | "Timestamp" | "Duration" | "Struct" | "Value" | "ListValue" | "FieldMask"
        ) || name.ends_with("Value")
    })
}

fn well_known_value(message: &DynamicMessage) -> Value {
    struct Json<'a>(&'a DynamicMessage);
    impl serde::Serialize for Json<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize_with_options(serializer, &json_options())
        }
    }
    Value::from(Serde(Json(message)))
}

/// A value as the content of a field; none leaves the field unset.
pub fn to_field(value: &Value, field: &FieldDescriptor) -> Result<Option<Field>, Misfit> {
    if value.is_none() && !is_value_type(field) {
        return Ok(None);
    }
    if field.is_map() {
        return to_map(value, field).map(Some);
    }
    if field.is_list() {
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            let kind = words(value);
            return Err(Misfit::new(format!(
                "a list of {} is wanted, this is {kind}",
                name_of(&field.kind())
            )));
        }
        let elements = value.try_iter().map_err(|error| Misfit::new(error.to_string()))?;
        let elements = elements.enumerate().map(|(index, element)| {
            to_kind(&element, &field.kind()).map_err(|misfit| misfit.under(&format!("[{index}]")))
        });
        return elements.collect::<Result<_, _>>().map(|list| Some(Field::List(list)));
    }
    to_kind(value, &field.kind()).map(Some)
}

/// `google.protobuf.Value` holds null as a value.
fn is_value_type(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Message(message) if message.full_name() == "google.protobuf.Value")
}

fn to_map(value: &Value, field: &FieldDescriptor) -> Result<Field, Misfit> {
    let Kind::Message(entry) = field.kind() else {
        return Err(Misfit::new("the descriptor of this map is broken"));
    };
    let (key_kind, value_kind) =
        (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
    if value.kind() != ValueKind::Map {
        return Err(Misfit::new(format!("a map is wanted, this is {}", words(value))));
    }
    let mut entries = std::collections::HashMap::default();
    for key in value.try_iter().map_err(|error| Misfit::new(error.to_string()))? {
        let part = format!("[{key}]");
        let element = value.get_item(&key).map_err(|error| Misfit::new(error.to_string()))?;
        let key = map_key(&key, &key_kind).map_err(|misfit| misfit.under(&part))?;
        let element = to_kind(&element, &value_kind).map_err(|misfit| misfit.under(&part))?;
        entries.insert(key, element);
    }
    Ok(Field::Map(entries))
}

/// A key of a map field. Keys of YAML and JSON are text, so text that spells the
/// key is taken too.
pub fn map_key(key: &Value, kind: &Kind) -> Result<MapKey, Misfit> {
    let parsed = match (key.as_str(), kind) {
        (Some(_), Kind::String) | (None, _) => None,
        (Some("true"), Kind::Bool) => Some(Value::from(true)),
        (Some("false"), Kind::Bool) => Some(Value::from(false)),
        (Some(text), _) => text
            .parse::<i64>()
            .map(Value::from)
            .or_else(|_| text.parse::<u64>().map(Value::from))
            .ok(),
    };
    let field = to_kind(parsed.as_ref().unwrap_or(key), kind)?;
    field.into_map_key().ok_or_else(|| Misfit::new("this cannot be a key of a map"))
}

/// A single value as a kind of field.
pub fn to_kind(value: &Value, kind: &Kind) -> Result<Field, Misfit> {
    let wrong = || Misfit::new(format!("{} is wanted, this is {}", name_of(kind), words(value)));
    let range = || Misfit::new(format!("{value} does not fit into {}", name_of(kind)));
    let field = match kind {
        Kind::Bool => (value.kind() == ValueKind::Bool).then(|| Field::Bool(value.is_true())),
        Kind::String => value.as_str().map(|text| Field::String(text.to_owned())),
        Kind::Bytes => to_bytes(value)?.map(Field::Bytes),
        Kind::Float => to_float(value).map(|number| Field::F32(number as f32)),
        Kind::Double => to_float(value).map(Field::F64),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => match to_whole(value) {
            Some(number) => Some(Field::I32(number.try_into().map_err(|_| range())?)),
            None => None,
        },
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => match to_whole(value) {
            Some(number) => Some(Field::I64(number.try_into().map_err(|_| range())?)),
            None => None,
        },
        Kind::Uint32 | Kind::Fixed32 => match to_whole(value) {
            Some(number) => Some(Field::U32(number.try_into().map_err(|_| range())?)),
            None => None,
        },
        Kind::Uint64 | Kind::Fixed64 => match to_whole(value) {
            Some(number) => Some(Field::U64(number.try_into().map_err(|_| range())?)),
            None => None,
        },
        Kind::Enum(names) => match (value.as_str(), to_whole(value)) {
            (Some(name), _) => match names.get_value_by_name(name) {
                Some(found) => Some(Field::EnumNumber(found.number())),
                None => {
                    let all: Vec<_> = names.values().collect();
                    let near = suggest(name, all.iter().map(|value| value.name()));
                    let names = names.full_name();
                    return Err(Misfit::new(format!("{names} has no value `{name}`{near}")));
                }
            },
            (None, Some(number)) => {
                Some(Field::EnumNumber(number.try_into().map_err(|_| range())?))
            }
            (None, None) => None,
        },
        Kind::Message(descriptor) => return to_message(value, descriptor).map(Field::Message),
    };
    field.ok_or_else(wrong)
}

/// A whole number of any width; a float too when it is whole, as division gives it.
fn to_whole(value: &Value) -> Option<i128> {
    if value.kind() != ValueKind::Number {
        return None;
    }
    if value.is_integer() {
        return i128::try_from(value.clone()).ok();
    }
    /// Above this a float skips whole numbers, so it may not be the one meant.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = f64::try_from(value.clone()).ok()?;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i128)
}

fn to_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Bytes as they are, or text in base64 as in protobuf's JSON.
fn to_bytes(value: &Value) -> Result<Option<Bytes>, Misfit> {
    if value.kind() == ValueKind::Bytes {
        return Ok(value.as_bytes().map(Bytes::copy_from_slice));
    }
    let Some(text) = value.as_str() else { return Ok(None) };
    match base64(text) {
        Some(bytes) => Ok(Some(bytes.into())),
        None => Err(Misfit::new("bytes are written in base64, and this is not base64")),
    }
}

/// Base64 in either alphabet, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len() * 3 / 4), 0_u32, 0);
    for letter in text.bytes() {
        let six = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (count < 6).then_some(bytes)
}

/// A value as a whole message: a message of the same type, or a map of its fields.
pub fn to_message(value: &Value, descriptor: &MessageDescriptor) -> Result<DynamicMessage, Misfit> {
    if let Some(MessageObject(message)) = value.downcast_object_ref::<MessageObject>() {
        return same_message(message, descriptor);
    }
    if is_well_known(descriptor) {
        return well_known_message(value, descriptor);
    }
    if value.kind() != ValueKind::Map {
        let wanted = descriptor.full_name();
        return Err(Misfit::new(format!("a {wanted} is wanted, this is {}", words(value))));
    }
    let mut message = DynamicMessage::new(descriptor.clone());
    for key in value.try_iter().map_err(|error| Misfit::new(error.to_string()))? {
        let name = key.as_str().ok_or_else(|| Misfit::new("a field's name must be text"))?;
        let field = find_field(descriptor, name).ok_or_else(|| no_field(descriptor, name))?;
        let part = format!(".{name}");
        let element = value.get_item(&key).map_err(|error| Misfit::new(error.to_string()))?;
        if let Some(content) = to_field(&element, &field).map_err(|misfit| misfit.under(&part))? {
            message.set_field(&field, content);
        }
    }
    Ok(message)
}

/// What to say of a field that a message does not have.
pub(crate) fn no_field(descriptor: &MessageDescriptor, name: &str) -> Misfit {
    let fields: Vec<_> = descriptor.fields().collect();
    let near = suggest(name, fields.iter().map(|field| field.name()));
    Misfit::new(format!("{} has no field `{name}`{near}", descriptor.full_name()))
}

/// The same message for another descriptor of the same name: two services may
/// each have brought their own copy of a `.proto` file.
fn same_message(
    message: &DynamicMessage,
    descriptor: &MessageDescriptor,
) -> Result<DynamicMessage, Misfit> {
    let given = message.descriptor();
    if given == *descriptor {
        return Ok(message.clone());
    }
    if given.full_name() != descriptor.full_name() {
        return Err(Misfit::new(format!(
            "a {} is wanted, this is a {}",
            descriptor.full_name(),
            given.full_name()
        )));
    }
    decode(descriptor, &message.encode_to_vec().into()).map_err(Misfit::new)
}

fn well_known_message(
    value: &Value,
    descriptor: &MessageDescriptor,
) -> Result<DynamicMessage, Misfit> {
    let misfit = |error: serde_json::Error| {
        let name = descriptor.full_name();
        Misfit::new(format!("{} is no {name}: {error}", words(value)))
    };
    let json = serde_json::to_value(value).map_err(misfit)?;
    DynamicMessage::deserialize_with_options(descriptor.clone(), json, &DeserializeOptions::new())
        .map_err(misfit)
}

/// A kind of field, for people.
pub fn name_of(kind: &Kind) -> String {
    match kind {
        Kind::String => "text".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Bytes => "bytes".to_owned(),
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(names) => format!("a name of {}", names.full_name()),
        number => format!("{number:?}").to_lowercase(),
    }
}

/// A value's kind, for people.
pub(crate) fn words(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => "undefined".to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => format!("{value}").to_lowercase(),
        ValueKind::Number => format!("the number {value}"),
        ValueKind::String => {
            /// Enough to see which text it was.
            const SHOWN_CHARS: usize = 40;
            let text: String = value.to_string().chars().take(SHOWN_CHARS).collect();
            format!("the text {text:?}")
        }
        ValueKind::Bytes => "bytes".to_owned(),
        ValueKind::Seq | ValueKind::Iterable => "a list".to_owned(),
        ValueKind::Map => match value.downcast_object_ref::<MessageObject>() {
            Some(MessageObject(message)) => format!("a {}", message.descriptor().full_name()),
            None => "a map".to_owned(),
        },
        _ => "of another kind".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::Expression;
    use crate::testing::catalog;
    use minijinja::context;

    fn everything() -> MessageDescriptor {
        catalog().message("test.Everything").expect("in the test file")
    }

    fn read(message: DynamicMessage, source: &str) -> Value {
        let scope = context! { item => message_value(message) };
        Expression::compile(source).unwrap().evaluate(&scope).unwrap()
    }

    /// The fields, written by expressions and read back by expressions.
    #[test]
    fn fields_survive_the_round_trip() {
        for (field, source) in [
            ("i64", "9223372036854775807"),
            ("i64", "-9223372036854775807"),
            ("u64", "18446744073709551615"),
            ("i32", "-5"),
            ("u32", "5"),
            ("d", "1.5"),
            ("f", "0.5"),
            ("s", "'text'"),
            ("yes", "true"),
            ("colour", "'GREEN'"),
            ("list", "[1, 2, 3]"),
            ("names", "{'a': 1}"),
            ("counts", "{7: 'x'}"),
            ("when", "'2026-01-02T03:04:05Z'"),
            ("wrapped", "12"),
            ("any_json", "{'a': [1.0, none]}"),
        ] {
            let descriptor = everything();
            let value = Expression::compile(source).unwrap().evaluate(&Value::from(())).unwrap();
            let message =
                to_message(&Value::from_pairs([(field, value.clone())]), &descriptor).unwrap();
            let bytes = Bytes::from(message.encode_to_vec());
            let back = read(decode(&descriptor, &bytes).unwrap(), &format!("item.{field}"));
            assert_eq!(back, value, "{field} = {source}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_place() {
        for (source, below, want) in [
            ("{'i32': 3000000000}", ".i32", "does not fit into int32"),
            ("{'u32': -1}", ".u32", "does not fit into uint32"),
            ("{'i64': 'x'}", ".i64", "int64 is wanted, this is the text \"x\""),
            ("{'i64': 1.5}", ".i64", "int64 is wanted, this is the number 1.5"),
            ("{'s': 1}", ".s", "text is wanted, this is the number 1"),
            ("{'yes': 1}", ".yes", "true or false is wanted"),
            ("{'colour': 'GREN'}", ".colour", "did you mean `GREEN`"),
            ("{'list': 1}", ".list", "a list of int64 is wanted"),
            ("{'list': [1, 'x']}", ".list[1]", "int64 is wanted"),
            ("{'names': {'a': 'x'}}", ".names[a]", "int64 is wanted"),
            ("{'nested': {'nested': {'strin': 1}}}", ".nested.nested", "has no field `strin`"),
            ("{'nested': 1}", ".nested", "a test.Everything is wanted"),
            ("{'raw': '***'}", ".raw", "not base64"),
            ("{'when': 'noon'}", ".when", "is no google.protobuf.Timestamp"),
            ("{'nestd': 1}", "", "did you mean `nested`"),
            ("[1]", "", "a test.Everything is wanted, this is a list"),
        ] {
            let value = Expression::compile(source).unwrap().evaluate(&Value::from(())).unwrap();
            let misfit = to_message(&value, &everything()).expect_err(source);
            assert_eq!(misfit.below, below, "{source}: {}", misfit.message);
            assert!(misfit.message.contains(want), "{source}: {}", misfit.message);
        }
    }

    #[test]
    fn unset_and_default_fields_read_as_protobuf_says() {
        let empty = || DynamicMessage::new(everything());
        assert!(read(empty(), "item.nested").is_none());
        assert!(read(empty(), "item.maybe").is_none());
        assert_eq!(read(empty(), "item.i64"), Value::from(0));
        assert_eq!(read(empty(), "item.colour"), Value::from("RED"));
        let set = to_message(&Value::from_pairs([("maybe", 0)]), &everything()).unwrap();
        assert_eq!(read(set, "item.maybe"), Value::from(0));
    }

    #[test]
    fn null_leaves_a_field_unset_and_whole_floats_are_whole_numbers() {
        let value = Expression::compile("{'s': none, 'i64': 10 / 2}").unwrap();
        let message =
            to_message(&value.evaluate(&Value::from(())).unwrap(), &everything()).unwrap();
        assert_eq!(to_json(&message).unwrap().matches("\"i64\":5").count(), 1);
        assert!(!message.has_field_by_name("s"));
    }

    #[test]
    fn base64_in_both_alphabets() {
        for (text, want) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zg", Some(b"f")),
            ("Zm9v", Some(b"foo")),
            ("+/-_", Some(&[0xfb, 0xff, 0xbf])),
            ("Z", None),
            ("Zm 9v", None),
        ] {
            assert_eq!(base64(text).as_deref(), want, "{text}");
        }
    }
}
