//! The state of one step of a run: what records say of it, and what only this
//! process knows.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use minijinja::Value;

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
}

/// What the step has to do.
#[derive(Debug)]
pub(super) enum Work {
    Call(CallWork),
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
    /// The items that are not done, by their numbers.
    pub(super) items: BTreeMap<u64, Item>,
    /// Their bytes.
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
}

/// An item that is not done.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) body: ItemBody,
    /// Attempts that failed, on record.
    pub(super) failures: u32,
    /// Those of them since it was last told to begin anew.
    pub(super) since: u32,
    /// When the next attempt may begin.
    pub(super) not_before: Time,
    /// No attempt is left: it waits until the step is told to begin anew.
    pub(super) failed: bool,
}

/// What an item is.
#[derive(Debug, Clone)]
pub(super) enum ItemBody {
    /// A message of a source.
    Message(Bytes),
    /// An element of a list.
    Element(Value),
}

impl StepRun {
    pub(super) fn new(planned: &PlannedStep) -> Self {
        let work = match planned.kind {
            StepKind::Call => Work::Call(CallWork::default()),
            StepKind::Source { .. } => Work::Source(SourceWork::default()),
            StepKind::EachItem { .. } | StepKind::EachElement { .. } => {
                Work::Each(EachWork::default())
            }
        };
        Self {
            state: StepState::Waiting,
            waiting: planned.waits_for.len()
                + usize::from(matches!(planned.kind, StepKind::EachItem { .. })),
            counts: Counts::default(),
            error: String::new(),
            began: Time::default(),
            left_out: None,
            ending: false,
            work,
        }
    }

    /// Calls in flight.
    pub(super) fn running(&self) -> u64 {
        match &self.work {
            Work::Call(call) => u64::from(call.busy && self.state == StepState::Running),
            Work::Source(source) => u64::from(matches!(source.phase, Phase::Open(_))),
            Work::Each(each) => u64::from(each.busy),
        }
    }
}

impl EachWork {
    pub(super) fn add(&mut self, number: u64, body: ItemBody) {
        self.bytes += body.bytes();
        self.items.insert(number, Item::new(body));
    }

    /// Forgets an item that failed.
    pub(super) fn skip(&mut self, number: u64) {
        self.skipped += u64::from(self.remove(number));
    }

    /// Forgets the items that have failed.
    pub(super) fn drop_failed(&mut self) {
        let failed = self.items.iter().filter(|(_, item)| item.failed);
        let failed: Vec<u64> = failed.map(|(number, _)| *number).collect();
        for number in failed {
            self.skip(number);
        }
    }

    /// Forgets an item that is done. False when it is not known: done before, or never read.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        match self.items.remove(&number) {
            Some(item) => {
                self.bytes -= item.body.bytes();
                true
            }
            None => false,
        }
    }
}

impl Item {
    fn new(body: ItemBody) -> Self {
        Self { body, failures: 0, since: 0, not_before: Time::default(), failed: false }
    }
}

impl ItemBody {
    fn bytes(&self) -> usize {
        match self {
            Self::Message(body) => body.len(),
            // Elements are part of an output that is in memory as a whole.
            Self::Element(_) => 0,
        }
    }
}
