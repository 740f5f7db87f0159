//! What the expressions of a run see: parameters, the run's id, outputs, the item.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object};

/// The names that are the same for every item.
#[derive(Debug)]
pub(super) struct Scope {
    names: Arc<BTreeMap<String, Value>>,
}

/// The names for one evaluation.
#[derive(Debug)]
struct Names {
    shared: Arc<BTreeMap<String, Value>>,
    subject: Option<Subject>,
}

/// What one evaluation is about: an item, or the items of a batch.
#[derive(Debug)]
pub(super) struct Subject {
    /// `item` or `items`.
    pub(super) name: &'static str,
    pub(super) value: Value,
    /// The number of the item, or of the first.
    pub(super) index: u64,
}

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_str()?, &self.subject) {
            (name, Some(subject)) if name == subject.name => Some(subject.value.clone()),
            ("index", Some(subject)) => Some(Value::from(subject.index)),
            (name, _) => self.shared.get(name).cloned(),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }
}

impl Scope {
    pub(super) fn new(run: &str, parameters: Value) -> Self {
        let names = BTreeMap::from([
            ("params".to_owned(), parameters),
            ("run".to_owned(), Value::from_pairs([("id", run)])),
        ]);
        Self { names: Arc::new(names) }
    }

    /// The scope of one evaluation.
    pub(super) fn value(&self, subject: Option<Subject>) -> Value {
        Value::from_object(Names { shared: self.names.clone(), subject })
    }

    /// The scope of one evaluation that sees one thing more.
    pub(super) fn with(&self, name: &str, value: Value) -> Value {
        let mut names = (*self.names).clone();
        names.insert(name.to_owned(), value);
        Value::from_object(Names { shared: Arc::new(names), subject: None })
    }

    /// Adds the output of a step.
    pub(super) fn add(&mut self, step: &str, output: Value) {
        // No evaluation is under way, so this changes the map in place.
        Arc::make_mut(&mut self.names).insert(step.to_owned(), output);
    }

    /// Forgets the output of a step that nobody will read again.
    pub(super) fn remove(&mut self, step: &str) {
        Arc::make_mut(&mut self.names).remove(step);
    }
}
