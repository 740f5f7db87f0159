//! What the journal of a run says, read record by record as the store takes them, beside the run's
//! own reading of it; and whether the calls that are made fit it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use zex_pipeline::record::Record;
use zex_pipeline::run::Call;
use zex_pipeline::state::{RunState, StepState};

use super::Rule;
use super::drawn::{Kind, Step};

/// A broken promise, before it is known when and where.
pub(super) type Broken = (Rule, String);

/// The books of a run.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// Steps that have ended, and how.
    pub(super) ended: BTreeMap<usize, StepState>,
    failed: BTreeSet<usize>,
    /// Items that were read of each source.
    items: BTreeMap<usize, u64>,
    /// Items that are done, and those that gave a result.
    done: BTreeSet<(usize, u64)>,
    results: BTreeSet<(usize, u64)>,
    /// Items that failed for good.
    lost: BTreeSet<(usize, u64)>,
    /// Those of them that were skipped by hand.
    skipped: BTreeSet<(usize, u64)>,
    /// Failures and answers that did not suffice, by call.
    attempts: BTreeMap<(usize, Option<u64>), u32>,
    opened: BTreeMap<usize, u32>,
    undo_failures: BTreeMap<usize, u32>,
    /// Steps that are taken back.
    pub(super) undone: BTreeSet<usize>,
    /// It takes back what it did.
    undoing: bool,
    /// Sizes of batches by their first items.
    batches: BTreeMap<(usize, u64), u64>,
    /// Items that came and are in no batch, in the order in which they came.
    loose: BTreeMap<usize, VecDeque<u64>>,
    /// How it ended.
    pub(super) end: Option<RunState>,
}

impl Books {
    /// A record is in the journal.
    pub(super) fn add(&mut self, steps: &[Step], record: &Record) -> Result<(), Broken> {
        let twice = |what: String| Err((Rule::OneResult, what));
        if let Some(end) = self.end {
            return twice(format!("a record behind its end as {}: {record:?}", end.name()));
        }
        match record {
            Record::Run { state, .. } if state.is_end() => self.end = Some(*state),
            Record::Items { step, first, items, .. } => {
                let known = self.items.entry(*step as usize).or_default();
                if *first != *known {
                    return twice(format!("items from {first} on, and {known} were read"));
                }
                *known += items.len() as u64;
                let known = *known;
                self.came(steps, *step as usize, *first..known);
            }
            Record::Batches { step, sizes } => {
                for size in sizes {
                    let loose = self.loose.entry(*step as usize).or_default();
                    let batch: Vec<u64> = loose.drain(..loose.len().min(*size as usize)).collect();
                    if let Some(first) = batch.first() {
                        self.batches.insert((*step as usize, *first), u64::from(*size));
                    }
                }
            }
            Record::Done { step, items } => {
                for item in items {
                    self.one_done(*step as usize, *item)?;
                }
            }
            Record::Results { step, items } => {
                for (item, _) in items {
                    self.one_done(*step as usize, *item)?;
                    self.results.insert((*step as usize, *item));
                }
                let items = items.iter().map(|(item, _)| *item);
                self.came(steps, *step as usize, items);
            }
            Record::Failed { step, attempts, .. } => {
                for failed in attempts {
                    let call = (*step as usize, failed.item);
                    if failed.item.is_some_and(|item| self.done.contains(&(call.0, item))) {
                        return twice(format!("{call:?} failed behind its success"));
                    }
                    *self.attempts.entry(call).or_default() += 1;
                    if let Some(item) = failed.item.filter(|_| failed.last) {
                        self.lost.insert((call.0, item));
                    }
                }
            }
            Record::Polled { step, .. } => {
                *self.attempts.entry((*step as usize, None)).or_default() += 1;
            }
            Record::Opened { step, attempt } => {
                let before = self.opened.insert(*step as usize, *attempt).unwrap_or(0);
                if *attempt != before + 1 {
                    return Err((Rule::Attempts, format!("opening {attempt} behind {before}")));
                }
            }
            Record::Step { step, state: StepState::Failed, .. } => {
                let first = self.failed.insert(*step as usize);
                if !first {
                    return twice(format!("step {step} failed twice"));
                }
            }
            Record::Step { step, state, .. } => {
                let step = *step as usize;
                self.failed.remove(&step);
                if let Some(before) = self.ended.insert(step, *state) {
                    return twice(format!("step {step} was {}", before.name()));
                }
            }
            Record::Retry { step, .. } => {
                self.failed.remove(&(*step as usize));
                self.found_again(*step as usize);
            }
            Record::SkipItems { step, .. } => {
                let of = |item: &&(usize, u64)| item.0 == *step as usize;
                self.skipped.extend(self.lost.iter().filter(of).copied());
            }
            Record::Again { .. } => {
                for step in std::mem::take(&mut self.failed) {
                    self.found_again(step);
                }
            }
            Record::Finalize { .. } => self.phase_anew(steps),
            Record::Undo { .. } => self.undoing = true,
            Record::UndoFailed { step, .. } => {
                *self.undo_failures.entry(*step as usize).or_default() += 1;
            }
            Record::Undone { step, left, .. } if left.is_empty() => {
                let first = self.undone.insert(*step as usize);
                if !first {
                    return twice(format!("step {step} was taken back twice"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Items came of a step: those that take them in batches have them loose.
    fn came(&mut self, steps: &[Step], of: usize, items: impl Iterator<Item = u64> + Clone) {
        for (index, step) in steps.iter().enumerate() {
            if matches!(step.kind, Kind::EachOf(source, size) if source == of && size > 0) {
                self.loose.entry(index).or_default().extend(items.clone());
            }
        }
    }

    fn one_done(&mut self, step: usize, item: u64) -> Result<(), Broken> {
        match self.done.insert((step, item)) {
            true => Ok(()),
            false => Err((Rule::OneResult, format!("item {item} of step {step} is done twice"))),
        }
    }

    /// Items that failed for good are tried again.
    fn found_again(&mut self, step: usize) {
        self.lost.retain(|(of, _)| *of != step);
    }

    /// The last phase begins anew: what of it had succeeded is called once more.
    fn phase_anew(&mut self, steps: &[Step]) {
        for (index, _) in steps.iter().enumerate().filter(|(_, step)| step.finalize) {
            self.failed.remove(&index);
            if self.ended.remove(&index) == Some(StepState::Succeeded) {
                *self.attempts.entry((index, None)).or_default() += 1;
            }
        }
    }

    /// How many items of a step are done.
    pub(super) fn done_of(&self, step: usize) -> u64 {
        let of = self.done.iter().filter(|(of, _)| *of == step);
        of.map(|done| self.batches.get(done).copied().unwrap_or(1)).sum()
    }

    /// A call is made: everything that it hangs on has to be on record.
    pub(super) fn judge(&self, steps: &[Step], call: &Call) -> Result<(), Broken> {
        let step = &steps[call.step];
        let name = format!("{} {:?} attempt {}", step.id, call.item, call.attempt);
        if &*call.method == "Undo" {
            let failures = self.undo_failures.get(&call.step).copied().unwrap_or(0);
            if !self.undoing || self.undone.contains(&call.step) {
                return Err((Rule::Order, format!("{name} is taken back before its time")));
            }
            return match call.attempt == failures + 1 {
                true => Ok(()),
                false => Err((Rule::Attempts, format!("taking back {name} after {failures}"))),
            };
        }
        if let Some(needed) = step.needs.iter().find(|needed| !self.ended.contains_key(needed)) {
            return Err((Rule::Order, format!("{name} before {}", steps[*needed].id)));
        }
        if self.ended.contains_key(&call.step) && !self.undoing {
            return Err((Rule::Order, format!("{name} behind its end")));
        }
        if step.kind.is_source() {
            let opened = self.opened.get(&call.step).copied().unwrap_or(0);
            return match opened == call.attempt {
                true => Ok(()),
                false => Err((Rule::Attempts, format!("{name} is not on record"))),
            };
        }
        let failures = self.attempts.get(&(call.step, call.item)).copied().unwrap_or(0);
        if call.attempt != failures + 1 {
            return Err((Rule::Attempts, format!("{name} after {failures} failures on record")));
        }
        let Some(item) = call.item else { return Ok(()) };
        let on_record = match step.kind {
            Kind::EachOf(_, size) if size > 0 => self.batches.contains_key(&(call.step, item)),
            Kind::EachOf(source, _) => match steps[source].kind {
                Kind::Source(_) => item < self.items.get(&source).copied().unwrap_or(0),
                _ => self.results.contains(&(source, item)),
            },
            _ => true,
        };
        match on_record && !self.done.contains(&(call.step, item)) {
            true => Ok(()),
            false => Err((Rule::Order, format!("{name}: its item is not on record, or done"))),
        }
    }

    /// Items of a step that failed for good.
    pub(super) fn lost_of(&self, step: usize) -> u64 {
        let lost = self.lost.union(&self.skipped);
        lost.filter(|(of, _)| *of == step).count() as u64
    }
}

impl Kind {
    pub(super) fn is_source(&self) -> bool {
        matches!(self, Self::Source(_))
    }
}
