//! Compensations: bound like the inputs of steps, and checked to read only what is
//! there when they run.
//!
//! Called by `plan`.

use std::collections::{BTreeMap, BTreeSet};

use super::bind::Reads;
use super::{PlannedStep, PlannedUndo};
use crate::catalog::Catalog;
use crate::definition::{CALL_TIMEOUT_DEFAULT_MS, Input};
use crate::failure::Compensation;
use crate::input::{Binder, BoundInput};
use crate::names::Names;
use crate::problem::Problems;

/// Binds a compensation. The names have no item.
pub(super) fn bind(
    undo: Compensation,
    catalog: &Catalog,
    ids: &BTreeMap<String, usize>,
    names: &Names,
    problems: &mut Problems,
) -> Option<PlannedUndo> {
    let Compensation { service, method, input, retry, timeout_ms, idempotent, place } = undo;
    let call = format!("{service}/{method}");
    let found = match catalog.method(&service, &method) {
        Ok(found) => found,
        Err(why) => {
            problems.add(&place, why);
            return None;
        }
    };
    if found.is_client_streaming() || found.is_server_streaming() {
        problems.add(&place, format!("{call} is a stream; a compensation is one call"));
        return None;
    }
    let mut reads = Reads { ids, steps: BTreeSet::new(), item: false };
    let input = match input {
        Input::Empty => BoundInput::Empty,
        Input::Shape(shape) => {
            for (expression, _) in shape.expressions() {
                reads.take(expression);
            }
            Binder { names, problems }.input(shape, &found.input(), &call)?
        }
    };
    Some(PlannedUndo {
        service: service.into(),
        method: method.into(),
        input,
        reads: reads.steps,
        retry,
        timeout_ms: timeout_ms.unwrap_or(CALL_TIMEOUT_DEFAULT_MS),
        idempotent,
        place,
    })
}

/// A compensation may read its own step and those before it: others may never have run.
pub(super) fn check(steps: &[PlannedStep], problems: &mut Problems) {
    for (index, step) in steps.iter().enumerate() {
        let Some(undo) = &step.undo else { continue };
        let known = before(steps, index);
        for read in undo.reads.iter().filter(|read| !known.contains(read)) {
            let (id, other) = (&step.id, &steps[*read].id);
            let message = format!(
                "`{other}` may not have run when `{id}` is compensated: a compensation reads its own step and the steps before it"
            );
            problems.add(&undo.place, message);
        }
    }
}

/// A step and all that have ended when it begins.
fn before(steps: &[PlannedStep], index: usize) -> BTreeSet<usize> {
    let (mut known, mut open) = (BTreeSet::from([index]), vec![index]);
    while let Some(step) = open.pop() {
        for other in &steps[step].waits_for {
            if known.insert(*other) {
                open.push(*other);
            }
        }
    }
    known
}
