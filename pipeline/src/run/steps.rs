//! The state of one step of a run: what records say of it, and what only this
//! process knows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use minijinja::Value;

use super::feed::Feed;
use super::report::Report;
use super::{CallId, Time};
use crate::key::Fingerprint;
use crate::plan::{PlannedStep, StepKind};
use crate::record::Counts;
use crate::state::StepState;

/// A step of a run.
#[derive(Debug)]
pub(super) struct StepRun {
    pub(super) state: StepState,
    /// Steps it waits for that have not succeeded, and its source until that begins.
    pub(super) waiting: usize,
    /// How far it is; `running` is not kept here.
    pub(super) counts: Counts,
    /// The last error.
    pub(super) error: String,
    /// When it began, or was told to begin anew; moved on by pauses.
    pub(super) began: Time,
    /// Why it is not to run, found when its turn came: its end, and the reason.
    pub(super) left_out: Option<(StepState, String)>,
    /// Its end waits in the outbox, or it has failed: nothing new begins.
    pub(super) ending: bool,
    pub(super) work: Work,
    /// The messages of a stream that its call takes.
    pub(super) feed: Option<Feed>,
    /// What it has reported.
    pub(super) report: Report,
}

/// What the step has to do.
#[derive(Debug)]
pub(super) enum Work {
    Call(CallWork),
    Wait,
    Source(SourceWork),
    Each(EachWork),
}

/// One call.
#[derive(Debug, Default)]
pub(super) struct CallWork {
    /// Attempts that failed, on record.
    pub(super) failures: u32,
    /// Those of them since it was last told to begin anew.
    pub(super) since: u32,
    /// Those of them with which a worker was lost.
    pub(super) lost: u32,
    /// Answers that were not what is waited for, on record.
    pub(super) polls: u32,
    /// Those of them since it was last told to begin anew.
    pub(super) polls_since: u32,
    /// When the next attempt may begin.
    pub(super) not_before: Time,
    /// A call is in flight, or its outcome is on the way to disk, or a timer runs.
    pub(super) busy: bool,
}

/// A stream that gives items.
#[derive(Debug, Default)]
pub(super) struct SourceWork {
    /// How often it was opened.
    pub(super) attempts: u32,
    /// Interruptions since the last new item, or since it was told to begin anew.
    pub(super) failures: u32,
    /// When it may be opened again.
    pub(super) not_before: Time,
    /// The fingerprint of all items on record.
    pub(super) fingerprint: Fingerprint,
    pub(super) phase: Phase,
    /// Whether the last record of it says that it is open.
    pub(super) opened: bool,
    /// Items on record that the reopened stream has to give again first.
    pub(super) to_skip: u64,
    /// The fingerprint of what this stream gave so far.
    pub(super) read: Fingerprint,
    /// What may still be read of the last pull: items and bytes.
    pub(super) pull: (usize, usize),
    /// Items that are on their way to disk, and their bytes.
    pub(super) unrecorded: (usize, usize),
}

/// What a source is doing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not open.
    #[default]
    Closed,
    /// A record on the way to disk, or a timer, opens it or lets it be opened.
    Between,
    /// Open.
    Open(CallId),
}

/// One call for each item.
#[derive(Debug, Default)]
pub(super) struct EachWork {
    /// The items that are not done, by their numbers; or the batches, by the numbers of
    /// their first items.
    pub(super) items: BTreeMap<u64, Item>,
    /// Items come together in batches.
    pub(super) batched: bool,
    /// Items that are in no batch yet, with their numbers.
    pub(super) loose: VecDeque<(u64, ItemBody)>,
    /// How many of those are in batches on their way to disk, and how many batches.
    pub(super) cutting: usize,
    pub(super) cuts: usize,
    /// Since when the first of the others waits.
    pub(super) loose_since: Option<Time>,
    /// How many items are not done in all, and their bytes.
    pub(super) open: usize,
    pub(super) bytes: usize,
    /// Items that failed and are done with.
    pub(super) skipped: u64,
    /// No more items come.
    pub(super) complete: bool,
    /// The list could not be made.
    pub(super) problem: Option<String>,
    /// Items that wait for a place.
    pub(super) ready: VecDeque<u64>,
    /// Calls in flight, or with an outcome on its way to disk: a place is free again
    /// only when its outcome is on record, so no more than `concurrency` effects are
    /// ever repeated after a crash.
    pub(super) busy: u32,
    /// How many items that is.
    pub(super) flying: usize,
    /// How many were in a call and wait to be in one again.
    pub(super) again: usize,
}

/// An item that is not done.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) body: ItemBody,
    /// Attempts that failed, on record.
    pub(super) failures: u32,
    /// Those of them since it was last told to begin anew.
    pub(super) since: u32,
    /// Those of them with which a worker was lost.
    pub(super) lost: u32,
    /// When the next attempt may begin.
    pub(super) not_before: Time,
    /// No attempt is left: it waits until the step is told to begin anew.
    pub(super) failed: bool,
    /// It was in a call, and is not in one now.
    pub(super) again: bool,
}

/// What an item is.
#[derive(Debug, Clone)]
pub(super) enum ItemBody {
    /// A message of a source.
    Message(Bytes),
    /// An element of a list.
    Element(Value),
    /// Several of them.
    Batch(Arc<Vec<ItemBody>>),
}

impl StepRun {
    pub(super) fn new(planned: &PlannedStep) -> Self {
        let work = match planned.kind {
            StepKind::Call => Work::Call(CallWork::default()),
            StepKind::Wait => Work::Wait,
            StepKind::Source | StepKind::Stream => Work::Source(SourceWork::default()),
            StepKind::EachItem { .. } | StepKind::EachElement { .. } => {
                let batched = planned.batch.is_some();
                Work::Each(EachWork { batched, ..EachWork::default() })
            }
        };
        Self {
            state: StepState::Waiting,
            waiting: planned.waits_for.len()
                + planned.waits_for_begin.len()
                + usize::from(planned.source().is_some()),
            counts: Counts::default(),
            error: String::new(),
            began: Time::default(),
            left_out: None,
            ending: false,
            work,
            feed: Feed::of(planned),
            report: Report::default(),
        }
    }

    /// How many items a call stands for.
    pub(super) fn size(&self, item: Option<u64>) -> u64 {
        match (&self.work, item) {
            (Work::Each(each), Some(number)) => each.size(number),
            _ => 1,
        }
    }
}

impl EachWork {
    pub(super) fn add(&mut self, number: u64, body: ItemBody) {
        self.open += 1;
        self.bytes += body.bytes();
        match self.batched {
            true => self.loose.push_back((number, body)),
            false => {
                self.items.insert(number, Item::new(body));
            }
        }
    }

    /// How many of the loose items would make the next batch, and whether no other has
    /// room in it.
    pub(super) fn next_batch(&self, items: usize, bytes: usize) -> (usize, bool) {
        let (mut size, mut left) = (0, bytes);
        for (_, body) in self.loose.iter().skip(self.cutting) {
            if size == items || (size > 0 && body.bytes() > left) {
                return (size, true);
            }
            (size, left) = (size + 1, left.saturating_sub(body.bytes()));
        }
        (size, size == items)
    }

    /// Makes a batch of the first loose items; the number of the first. None when there
    /// are not so many.
    pub(super) fn batch(&mut self, size: usize) -> Option<u64> {
        if self.loose.len() < size {
            return None;
        }
        let first = self.loose.front()?.0;
        let bodies = self.loose.drain(..size).map(|(_, body)| body).collect();
        self.items.insert(first, Item::new(ItemBody::Batch(Arc::new(bodies))));
        Some(first)
    }

    /// How many items wait: neither done nor in a call.
    pub(super) fn waiting(&self) -> usize {
        self.open.saturating_sub(self.flying)
    }

    /// How many items this number stands for.
    pub(super) fn size(&self, number: u64) -> u64 {
        self.items.get(&number).map_or(1, |item| item.body.count() as u64)
    }

    /// Forgets an item that failed.
    pub(super) fn skip(&mut self, number: u64) {
        self.skipped += self.remove(number).unwrap_or(0);
    }

    /// Forgets the items that have failed.
    pub(super) fn drop_failed(&mut self) {
        let failed = self.items.iter().filter(|(_, item)| item.failed);
        let failed: Vec<u64> = failed.map(|(number, _)| *number).collect();
        for number in failed {
            self.skip(number);
        }
    }

    /// Forgets an item that is done, or a batch: how many items it was. None when it is
    /// not known: done before, or never read.
    pub(super) fn remove(&mut self, number: u64) -> Option<u64> {
        let item = self.items.remove(&number)?;
        self.bytes -= item.body.bytes();
        self.open -= item.body.count();
        self.again -= if item.again { item.body.count() } else { 0 };
        Some(item.body.count() as u64)
    }
}

impl Item {
    fn new(body: ItemBody) -> Self {
        Self {
            body,
            failures: 0,
            since: 0,
            lost: 0,
            not_before: Time::default(),
            failed: false,
            again: false,
        }
    }
}

impl ItemBody {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Message(body) => body.len(),
            // Elements are part of an output that is in memory as a whole.
            Self::Element(_) => 0,
            Self::Batch(bodies) => bodies.iter().map(Self::bytes).sum(),
        }
    }

    pub(super) fn count(&self) -> usize {
        match self {
            Self::Message(_) | Self::Element(_) => 1,
            Self::Batch(bodies) => bodies.len(),
        }
    }
}
