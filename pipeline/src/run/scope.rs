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
    item: Option<(Value, u64)>,
}

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_str()?, &self.item) {
            ("item", Some((item, _))) => Some(item.clone()),
            ("index", Some((_, index))) => Some(Value::from(*index)),
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
    pub(super) fn value(&self, item: Option<(Value, u64)>) -> Value {
        Value::from_object(Names { shared: self.names.clone(), item })
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
