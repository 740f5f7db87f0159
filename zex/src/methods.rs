//! The methods of a service, by its descriptors: found by name, listed, and their messages as
//! JSON.
//!
//! ```text
//!   FileDescriptorSet ─▶ Service ─▶ MethodDescriptor ─┬─ JSON ─ encode ─▶ bytes
//!                                                     └─ bytes ─ decode ─▶ JSON
//! ```
//!
//! JSON is protobuf's own mapping (protobuf.dev, "ProtoJSON Format"), with the names of fields as
//! the .proto file has them and 64-bit integers as numbers. Used by `zex call` and, for the
//! answers of `zex.Mesh`, by the listings.

use anyhow::Context as _;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions, ServiceDescriptor,
};
use serde_json::Value;

use crate::nearest;

/// Names of fields that an error lists.
const MAX_NAMED: usize = 20;

/// A service and what it offers.
pub(crate) struct Service(ServiceDescriptor);

impl Service {
    /// Finds the service in its serialized `FileDescriptorSet`.
    pub(crate) fn read(name: &str, descriptors: &[u8]) -> anyhow::Result<Self> {
        let pool = zex_pipeline::catalog::pool(descriptors)
            .with_context(|| format!("the descriptors that {name} hands out cannot be read"))?;
        let found = pool.get_service_by_name(name);
        let found =
            found.with_context(|| format!("{name} is not in the descriptors that it hands out"))?;
        Ok(Self(found))
    }

    /// The methods in the order of the .proto file.
    pub(crate) fn methods(&self) -> impl Iterator<Item = MethodDescriptor> + '_ {
        self.0.methods()
    }

    /// A method by its name; else what to say.
    pub(crate) fn method(&self, name: &str) -> Result<MethodDescriptor, String> {
        let methods: Vec<_> = self.methods().collect();
        methods.iter().find(|method| method.name() == name).cloned().ok_or_else(|| {
            let near = nearest::hint(name, methods.iter().map(MethodDescriptor::name));
            let service = self.0.full_name();
            format!("{service} has no method {name}{near} (`zex call {service}` lists what it has)")
        })
    }
}

/// What a call of the method is, as gRPC calls it.
pub(crate) fn kind(method: &MethodDescriptor) -> &'static str {
    match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => "unary",
        (false, true) => "server stream",
        (true, false) => "client stream",
        (true, true) => "bidirectional stream",
    }
}

/// A message from its JSON; else the place that does not fit, and why.
pub(crate) fn encode(message: &MessageDescriptor, json: &str) -> Result<Vec<u8>, String> {
    let mut text = serde_json::Deserializer::from_str(json);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut text, &mut track);
    let read = serde::de::DeserializeSeed::deserialize(message.clone(), tracked);
    let name = message.full_name();
    let read = read.map_err(|error| {
        // The error names the field, but not where it is, nor what would be right.
        let value = serde_json::from_str(json).unwrap_or_default();
        unknown_field(message, &value).unwrap_or_else(|| match track.path().to_string() {
            path if path == "." => format!("{name}: {error}"),
            path => format!("{name}: {path}: {error}"),
        })
    })?;
    text.end().map_err(|error| format!("{name}: {error}"))?;
    Ok(read.encode_to_vec())
}

/// The first field that a message does not have, and those which it has.
fn unknown_field(message: &MessageDescriptor, json: &Value) -> Option<String> {
    let name = message.full_name();
    // These have a JSON of their own.
    if name.starts_with("google.protobuf.") {
        return None;
    }
    json.as_object()?.iter().find_map(|(key, value)| {
        let field = message.get_field_by_name(key).or_else(|| message.get_field_by_json_name(key));
        let Some(field) = field else {
            let fields: Vec<_> =
                message.fields().map(|field| field.name().to_owned()).take(MAX_NAMED).collect();
            let near = nearest::hint(key, fields.iter().map(String::as_str));
            let there = match (near.is_empty(), fields.is_empty()) {
                (false, _) => near,
                (true, true) => "; it has none".to_owned(),
                (true, false) => format!("; it has {}", fields.join(", ")),
            };
            return Some(format!("{name} has no field `{key}`{there}"));
        };
        let kind = field.kind();
        let inner = kind.as_message()?;
        if field.is_map() {
            let values = inner.map_entry_value_field().kind();
            let values = values.as_message()?;
            return value.as_object()?.values().find_map(|value| unknown_field(values, value));
        }
        match value {
            Value::Array(items) if field.is_list() => {
                items.iter().find_map(|item| unknown_field(inner, item))
            }
            value => unknown_field(inner, value),
        }
    })
}

/// A message as JSON.
pub(crate) fn decode(message: &MessageDescriptor, bytes: &[u8]) -> anyhow::Result<Value> {
    let options = SerializeOptions::new()
        .stringify_64_bit_integers(false)
        .use_proto_field_name(true)
        .skip_default_fields(false);
    let read = DynamicMessage::decode(message.clone(), bytes)
        .with_context(|| format!("the answer is not a {}", message.full_name()))?;
    let json = read.serialize_with_options(serde_json::value::Serializer, &options);
    json.with_context(|| format!("{} has no form in JSON", message.full_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Service {
        Service::read("example.v1.Groups", users_groups::pb::DESCRIPTORS).unwrap()
    }

    #[test]
    fn methods_are_found_by_name_or_the_nearest_is_named() {
        let groups = groups();
        let kinds: Vec<_> = groups.methods().map(|m| (m.name().to_owned(), kind(&m))).collect();
        let wanted = [("Add", "unary"), ("Count", "unary"), ("Members", "server stream")];
        assert_eq!(kinds, wanted.map(|(name, kind)| (name.to_owned(), kind)));
        let said = groups.method("Ad").unwrap_err();
        assert!(
            said.starts_with("example.v1.Groups has no method Ad; did you mean `Add`?"),
            "{said}"
        );
        assert!(Service::read("example.v1.Gruppen", users_groups::pb::DESCRIPTORS).is_err());
        assert!(Service::read("example.v1.Groups", b"\xff\xff").is_err());
    }

    #[test]
    fn json_and_bytes_are_the_same_message() {
        let add = groups().method("Add").unwrap();
        let bytes = encode(&add.input(), r#"{"userId": "7", "group": "adults"}"#).unwrap();
        let json = decode(&add.input(), &bytes).unwrap();
        assert_eq!(json.to_string(), r#"{"user_id":7,"group":"adults"}"#);
        assert_eq!(encode(&add.input(), "{}").unwrap(), b"");
        assert!(decode(&add.input(), b"\xff").is_err());
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_place() {
        let add = groups().method("Add").unwrap().input();
        for (json, wanted) in [
            (r#"{"user_id": "x"}"#, "example.v1.AddToGroup: user_id: "),
            (r#"{"user_id": -1}"#, "example.v1.AddToGroup: user_id: "),
            (r#"{"user": 1}"#, "example.v1.AddToGroup has no field `user`; it has user_id, group"),
            (
                r#"{"grop": "x"}"#,
                "example.v1.AddToGroup has no field `grop`; did you mean `group`?",
            ),
            (r#"[]"#, "example.v1.AddToGroup: "),
            (r#"{"user_id": 1"#, "example.v1.AddToGroup: "),
            (r#"{} {}"#, "example.v1.AddToGroup: trailing characters"),
        ] {
            let said = encode(&add, json).unwrap_err();
            assert!(said.starts_with(wanted), "{json}: {said}");
        }
        let members = groups().method("Members").unwrap().output();
        let said = encode(&members, r#"{"groups": ["a", 3]}"#).unwrap_err();
        assert!(said.starts_with("example.v1.Membership: groups[1]: "), "{said}");
    }
}
