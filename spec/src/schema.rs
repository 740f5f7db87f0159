//! The schema of a method as one short word, so that who recorded a call can see later whether the
//! method is still the one that it was. Who has the service (the adapter) and who recorded the call (the
//! scheduler) make it, and compare.
//!
//! The hash is over what decides the bytes and their meaning: which way messages stream, and of both
//! messages, and of all that they are made of, the names, numbers, types and labels of the fields and
//! the values of enums. Comments, options, the order in a file and what else is in it do not count.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost_reflect::{EnumDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use sha2::{Digest as _, Sha256};

use crate::{Code, Status};

/// The metadata by which a caller says what schema it knows (a call to a method with another is
/// refused), and by which `zex.Descriptors` says what the schemas are: `Method=hash`, an entry each.
pub const SCHEMA: &str = "zex-schema";
/// How a refusal goes on behind the name of the method.
const HAS_CHANGED: &str = " has changed: its schema is ";
/// Bytes of the hash that are shown, in hexadecimal: enough that no two schemas meet by chance.
const SHOWN_BYTES: usize = 8;

/// What a call is told whose method has another schema than the one that it brought.
pub fn refusal(service: &str, method: &str, now: &str) -> Status {
    let text = format!("{service}/{method}{HAS_CHANGED}{now} now");
    Status::new(Code::FailedPrecondition, text)
}

/// Whether a status is such a refusal, of a call to this method: no code says it. The service may have
/// been called by another of its names.
pub fn is_refusal(status: &Status, method: &str) -> bool {
    let says = format!("/{method}{HAS_CHANGED}");
    status.code == Code::FailedPrecondition && status.message.contains(&says)
}

/// The hash of a method's schema.
pub fn hash(method: &MethodDescriptor) -> String {
    let mut types = BTreeMap::new();
    // The messages whose fields are to be looked at.
    let mut open = vec![method.input(), method.output()];
    while let Some(message) = open.pop() {
        let name = message.full_name().to_owned();
        if types.contains_key(&name) {
            continue;
        }
        let text = fields(&message, &mut types, &mut open);
        types.insert(name, text);
    }
    let mut hasher = Sha256::new();
    hasher.update(format!(
        "{} {} {} {}\n",
        method.is_client_streaming(),
        method.input().full_name(),
        method.is_server_streaming(),
        method.output().full_name()
    ));
    for (name, text) in types {
        hasher.update(format!("{name} {{{text}}}\n"));
    }
    let bytes = hasher.finalize();
    bytes.iter().take(SHOWN_BYTES).fold(String::new(), |mut text, byte| {
        // A String takes every write.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The fields of a message by number; the enums in them go into `types`, the messages into `open`.
fn fields(
    message: &MessageDescriptor,
    types: &mut BTreeMap<String, String>,
    open: &mut Vec<MessageDescriptor>,
) -> String {
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(|field| field.number());
    let mut text = String::new();
    for field in fields {
        let kind = match field.kind() {
            Kind::Message(message) => {
                let name = message.full_name().to_owned();
                open.push(message);
                name
            }
            Kind::Enum(kind) => {
                types.entry(kind.full_name().to_owned()).or_insert_with(|| values(&kind));
                kind.full_name().to_owned()
            }
            scalar => format!("{scalar:?}"),
        };
        let (number, name, label) = (field.number(), field.name(), field.cardinality());
        let _ = write!(text, "{number} {name} {label:?} {kind};");
    }
    text
}

fn values(kind: &EnumDescriptor) -> String {
    let mut values: Vec<_> =
        kind.values().map(|value| (value.number(), value.name().to_owned())).collect();
    values.sort();
    values.into_iter().map(|(number, name)| format!("{number} {name};")).collect()
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;
    use prost_types::field_descriptor_proto::{Label, Type};
    use prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MethodDescriptorProto,
        ServiceDescriptorProto,
    };

    use super::*;

    fn field(name: &str, number: i32, kind: Type) -> FieldDescriptorProto {
        FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            label: Some(Label::Optional.into()),
            r#type: Some(kind.into()),
            type_name: (kind == Type::Message).then(|| ".p.Inner".into()),
            ..Default::default()
        }
    }

    /// The hash of a method whose request has an `Inner` with these fields.
    fn of(inner: Vec<FieldDescriptorProto>, streams: bool) -> String {
        let message = |name: &str, field| DescriptorProto {
            name: Some(name.into()),
            field,
            ..Default::default()
        };
        // It names itself: that is no endless way.
        let inner = [inner, vec![field("again", 9, Type::Message)]].concat();
        let method = MethodDescriptorProto {
            name: Some("M".into()),
            input_type: Some(".p.Outer".into()),
            output_type: Some(".p.Outer".into()),
            server_streaming: Some(streams),
            ..Default::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("S".into()),
            method: vec![method],
            ..Default::default()
        };
        let file = FileDescriptorProto {
            name: Some("p.proto".into()),
            package: Some("p".into()),
            syntax: Some("proto3".into()),
            message_type: vec![
                message("Outer", vec![field("inner", 1, Type::Message)]),
                message("Inner", inner),
            ],
            service: vec![service],
            ..Default::default()
        };
        let mut pool = DescriptorPool::new();
        pool.add_file_descriptor_proto(file).unwrap();
        hash(&pool.get_service_by_name("p.S").unwrap().methods().next().unwrap())
    }

    #[test]
    fn a_refusal_is_known_by_its_words() {
        let refused = refusal("a.B", "C", "0123");
        assert!(is_refusal(&refused, "C"), "{refused}");
        assert!(!is_refusal(&refused, "D") && !is_refusal(&refused, "B"));
        let own = Status::new(Code::FailedPrecondition, "the cupboard is locked");
        assert!(!is_refusal(&own, "C"));
        assert!(!is_refusal(&Status { code: Code::Internal, ..refused }, "C"));
    }

    #[test]
    fn what_decides_the_bytes_and_their_meaning_counts_and_order_does_not() {
        let (a, b) = (field("a", 1, Type::String), field("b", 2, Type::Uint64));
        let as_it_is = of(vec![a.clone(), b.clone()], false);
        assert_eq!(as_it_is.len(), 2 * SHOWN_BYTES);
        assert_eq!(of(vec![b.clone(), a.clone()], false), as_it_is);
        for (changed, streams) in [
            (vec![a.clone()], false),
            (vec![a.clone(), field("c", 2, Type::Uint64)], false),
            (vec![a.clone(), field("b", 3, Type::Uint64)], false),
            (vec![a.clone(), field("b", 2, Type::Int64)], false),
            (vec![a, b], true),
        ] {
            assert_ne!(of(changed, streams), as_it_is);
        }
    }
}
