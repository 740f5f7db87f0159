//! `zex call --describe`: a service or one method as a .proto file would say it, with every message
//! and enum that it needs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};

/// The text for these methods of a service.
pub(super) fn text(service: &str, methods: &[MethodDescriptor]) -> String {
    let mut page = Page::default();
    // A String takes every write; so it is on this whole page.
    let _ = writeln!(page.text, "service {service} {{");
    for method in methods {
        let stream = |yes: bool| if yes { "stream " } else { "" };
        let (input, output) = (method.input(), method.output());
        let _ = writeln!(
            page.text,
            "  rpc {}({}{}) returns ({}{});",
            method.name(),
            stream(method.is_client_streaming()),
            input.full_name(),
            stream(method.is_server_streaming()),
            output.full_name(),
        );
        page.open.extend([input, output]);
    }
    page.text.push_str("}\n");
    page.types();
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
    said: BTreeSet<String>,
    /// Messages that are still to be said.
    open: Vec<MessageDescriptor>,
    enums: Vec<EnumDescriptor>,
}

impl Page {
    /// Says every type that was named so far, and those that they name.
    fn types(&mut self) {
        let mut next = 0;
        while let Some(message) = self.open.get(next).cloned() {
            next += 1;
            if self.said.insert(message.full_name().to_owned()) {
                self.message(&message);
            }
        }
        for kind in std::mem::take(&mut self.enums) {
            if self.said.insert(kind.full_name().to_owned()) {
                let _ = writeln!(self.text, "\nenum {} {{", kind.full_name());
                for value in kind.values() {
                    let _ = writeln!(self.text, "  {} = {};", value.name(), value.number());
                }
                self.text.push_str("}\n");
            }
        }
    }

    fn message(&mut self, message: &MessageDescriptor) {
        let _ = writeln!(self.text, "\nmessage {} {{", message.full_name());
        let choices: Vec<_> = message.oneofs().filter(|choice| !choice.is_synthetic()).collect();
        let in_choice = |field: &FieldDescriptor| {
            field.containing_oneof().is_some_and(|choice| !choice.is_synthetic())
        };
        for field in message.fields().filter(|field| !in_choice(field)) {
            self.field("  ", &field);
        }
        for choice in choices {
            let _ = writeln!(self.text, "  oneof {} {{", choice.name());
            for field in choice.fields() {
                self.field("    ", &field);
            }
            self.text.push_str("  }\n");
        }
        self.text.push_str("}\n");
    }

    fn field(&mut self, indent: &str, field: &FieldDescriptor) {
        let optional = field.containing_oneof().is_some_and(|choice| choice.is_synthetic());
        let label = match () {
            () if field.is_list() => "repeated ",
            () if optional => "optional ",
            () => "",
        };
        let kind = match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
                format!("map<{}, {}>", self.kind(key.kind()), self.kind(value.kind()))
            }
            kind => self.kind(kind),
        };
        let (name, number) = (field.name(), field.number());
        let _ = writeln!(self.text, "{indent}{label}{kind} {name} = {number};");
    }

    /// How a type is written; it is to be said, too.
    fn kind(&mut self, kind: Kind) -> String {
        let text = format!("{kind:?}");
        match kind {
            Kind::Message(message) => {
                let name = message.full_name().to_owned();
                self.open.push(message);
                name
            }
            Kind::Enum(kind) => {
                let name = kind.full_name().to_owned();
                self.enums.push(kind);
                name
            }
            _ => text,
        }
    }
}
