//! Records that wait for the store, put together into few: while one append is on
//! its way to disk, what happens gathers here.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::key::Fingerprint;
use crate::record::{Counts, FailedAttempt, Record};
use crate::state::StepState;

/// The most bytes of items in one record: a reader of the journal takes records
/// whole, and not too large a bite at a time.
const ITEMS_RECORD_MAX_BYTES: usize = 256 << 10;

/// The most outcomes in one record, for the same reason.
const OUTCOMES_RECORD_MAX: usize = 4096;

/// Which record further entries of a kind and step go into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Items,
    Done,
    Results,
    Failed,
}

/// Records that wait.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    records: Vec<Record>,
    growing: BTreeMap<(Kind, usize), usize>,
    /// The bytes in the growing record of items, or of results, of each step.
    item_bytes: BTreeMap<usize, usize>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Record> {
        self.growing.clear();
        self.item_bytes.clear();
        std::mem::take(&mut self.records)
    }

    /// Adds a record. What follows of its step goes behind it.
    pub(super) fn push(&mut self, record: Record) {
        self.growing.clear();
        self.records.push(record);
    }

    fn grow(&mut self, kind: Kind, step: usize) -> Option<&mut Record> {
        self.growing.get(&(kind, step)).and_then(|at| self.records.get_mut(*at))
    }

    fn start(&mut self, kind: Kind, step: usize, record: Record) {
        self.growing.insert((kind, step), self.records.len());
        self.records.push(record);
    }

    /// Adds item `number` of a source.
    pub(super) fn item(&mut self, step: usize, number: u64, item: Bytes, print: Fingerprint) {
        let bytes = self.item_bytes.get(&step).copied().unwrap_or(0) + item.len();
        if bytes <= ITEMS_RECORD_MAX_BYTES
            && let Some(Record::Items { items, fingerprint, .. }) = self.grow(Kind::Items, step)
        {
            items.push(item);
            *fingerprint = print;
            self.item_bytes.insert(step, bytes);
            return;
        }
        self.item_bytes.insert(step, item.len());
        let record = Record::Items {
            step: step as u32,
            first: number,
            items: vec![item],
            fingerprint: print,
        };
        self.start(Kind::Items, step, record);
    }

    /// Adds an item that is done.
    pub(super) fn done(&mut self, step: usize, item: u64) {
        match self.grow(Kind::Done, step) {
            Some(Record::Done { items, .. }) if items.len() < OUTCOMES_RECORD_MAX => {
                items.push(item);
            }
            _ => {
                self.start(Kind::Done, step, Record::Done { step: step as u32, items: vec![item] })
            }
        }
    }

    /// Adds an item that is done, with its result.
    pub(super) fn result(&mut self, step: usize, item: u64, result: Bytes) {
        let bytes = self.item_bytes.get(&step).copied().unwrap_or(0) + result.len();
        if bytes <= ITEMS_RECORD_MAX_BYTES
            && let Some(Record::Results { items, .. }) = self.grow(Kind::Results, step)
            && items.len() < OUTCOMES_RECORD_MAX
        {
            items.push((item, result));
            self.item_bytes.insert(step, bytes);
            return;
        }
        self.item_bytes.insert(step, result.len());
        let record = Record::Results { step: step as u32, items: vec![(item, result)] };
        self.start(Kind::Results, step, record);
    }

    /// Adds an attempt that failed.
    pub(super) fn failed(&mut self, at_ms: u64, step: usize, attempt: FailedAttempt) {
        match self.grow(Kind::Failed, step) {
            Some(Record::Failed { attempts, .. }) if attempts.len() < OUTCOMES_RECORD_MAX => {
                attempts.push(attempt);
            }
            _ => {
                let record = Record::Failed { at_ms, step: step as u32, attempts: vec![attempt] };
                self.start(Kind::Failed, step, record);
            }
        }
    }

    /// Adds the counts: behind everything, but before the end of the run.
    pub(super) fn add_progress(&mut self, progress: Record) {
        let at = match self.records.last() {
            Some(Record::Run { .. }) => self.records.len() - 1,
            _ => self.records.len(),
        };
        self.records.insert(at, progress);
    }

    /// Adds to the counts what the waiting records will change; `size` tells how many items
    /// a number stands for.
    pub(super) fn count_into(
        &self,
        counts: &mut [Counts],
        size: impl Fn(usize, Option<u64>) -> u64,
    ) {
        for record in &self.records {
            match record {
                Record::Items { step, items, .. } => {
                    counts[*step as usize].items += items.len() as u64;
                }
                Record::Done { step, items } => {
                    let step = *step as usize;
                    counts[step].done +=
                        items.iter().map(|item| size(step, Some(*item))).sum::<u64>();
                }
                Record::Results { step, items } => {
                    let step = *step as usize;
                    counts[step].done +=
                        items.iter().map(|(item, _)| size(step, Some(*item))).sum::<u64>();
                }
                Record::Failed { step, attempts, .. } => {
                    let step = *step as usize;
                    for failed in attempts {
                        match failed.last {
                            true => counts[step].failed += size(step, failed.item),
                            false => counts[step].retries += 1,
                        }
                    }
                }
                Record::Interrupted { step, last, .. } => {
                    counts[*step as usize].retries += u64::from(!last);
                }
                Record::Step { step, state, output, .. } => {
                    let counts = &mut counts[*step as usize];
                    count_end(counts, *state, output.is_some());
                }
                Record::Run { .. }
                | Record::Begin { .. }
                | Record::Owner { .. }
                | Record::Signal { .. }
                | Record::Polled { .. }
                | Record::Reported { .. }
                | Record::Outputs { .. }
                | Record::Opened { .. }
                | Record::Batches { .. }
                | Record::Retry { .. }
                | Record::Finalize { .. }
                | Record::SkipItems { .. }
                | Record::Again { .. }
                | Record::Undo { .. }
                | Record::UndoFailed { .. }
                | Record::Undone { .. }
                | Record::Progress { .. } => {}
            }
        }
    }
}

/// What the end of a step does to its counts.
pub(super) fn count_end(counts: &mut Counts, state: StepState, has_output: bool) {
    match state {
        StepState::Succeeded => counts.done += u64::from(has_output),
        // An attempt that failed for good was counted; not every failure is one.
        StepState::Failed => counts.failed = counts.failed.max(1),
        StepState::Waiting
        | StepState::Running
        | StepState::Skipped
        | StepState::Omitted
        | StepState::Undone
        | StepState::Cancelled => {}
    }
    counts.items_complete |= state == StepState::Succeeded;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_one_step_share_a_record_until_another_record_comes_between() {
        let mut outbox = Outbox::default();
        let print = Fingerprint::default();
        outbox.item(0, 0, Bytes::from_static(b"a"), print);
        outbox.item(0, 1, Bytes::from_static(b"b"), print.then(b"b"));
        outbox.done(1, 5);
        outbox.done(2, 6);
        outbox.done(1, 7);
        outbox.push(Record::Opened { step: 0, attempt: 2 });
        outbox.done(1, 8);
        let kinds: Vec<String> =
            outbox.take().iter().map(|record| format!("{record:?}")[..5].to_owned()).collect();
        assert_eq!(kinds, ["Items", "Done ", "Done ", "Opene", "Done "]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn records_of_items_are_bounded() {
        let mut outbox = Outbox::default();
        let item = Bytes::from(vec![0; ITEMS_RECORD_MAX_BYTES / 3]);
        for number in 0..7 {
            outbox.item(0, number, item.clone(), Fingerprint::default());
        }
        let firsts: Vec<u64> = outbox
            .take()
            .iter()
            .map(|record| match record {
                Record::Items { first, .. } => *first,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(firsts, [0, 3, 6]);
    }
}
