//! The decoders of pipelines: definitions in YAML and JSON, expressions, descriptors, JSON into
//! protobuf messages and back, records of the journal.

use bytes::Bytes;
use minijinja::Value;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use zex_pipeline::catalog::{self, Catalog};
use zex_pipeline::expression::{Expression, Template};
use zex_pipeline::record::Record;
use zex_pipeline::{definition as definitions, document, message};

pub(crate) fn definition(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(problems) = definitions::parse(text) {
        // Each names its place in words.
        assert!(!problems.to_string().is_empty());
    }
}

pub(crate) fn expression(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let scope = Value::from_pairs([("users", vec![1, 2, 3])]);
    if let Ok(expression) = Expression::compile(text) {
        // Fuel and depth bound what it may cost; whether it has a value is its own affair.
        let _ = expression.evaluate(&scope);
    }
    let _ = Template::compile(text);
}

/// What a service says of itself by reflection, and what is asked of it then.
pub(crate) fn descriptors(data: &[u8]) {
    let mut catalog = Catalog::default();
    let _ = catalog.insert("pkg.Service", data);
    let Ok(pool) = catalog::pool(data) else { return };
    for service in pool.services() {
        if catalog.insert(service.full_name(), data).is_ok() {
            for method in service.methods() {
                let _ = catalog.method(service.full_name(), method.name());
                bytes_into(&method.input(), b"\x0a\x01a\x10\x01");
            }
        }
    }
}

/// The first byte chooses the message; the rest is JSON for it, or its bytes.
pub(crate) fn json(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    let messages: Vec<MessageDescriptor> = DescriptorPool::global().all_messages().collect();
    let descriptor = &messages[usize::from(*which) % messages.len()];
    bytes_into(descriptor, data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(node) = document::parse_json(text) else { return };
    if let Ok(message) = message::to_message(&node.to_value(), descriptor) {
        let _ = message::to_json(&message);
    }
}

fn bytes_into(descriptor: &MessageDescriptor, data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    let Ok(decoded) = message::decode(descriptor, &body) else { return };
    let _ = message::to_json(&decoded);
    let back: DynamicMessage = decoded.clone();
    let _ = message::message_value(back);
}

pub(crate) fn record(data: &[u8]) {
    if let Ok(record) = Record::decode(data) {
        let again = Record::decode(&record.encode());
        assert!(again.is_ok_and(|again| again.encode() == record.encode()));
    }
}
