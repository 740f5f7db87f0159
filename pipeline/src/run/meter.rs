//! What stages do with their time: for people who look for the slow one.
//!
//! ```text
//!   a step with `each` has `concurrency` places; each of them at any time
//!     calls (work) · has an answer that is not on disk yet (record) · waits for an item (input)
//!     · waits for room behind it (room) · waits for anything else (other)
//! ```
//!
//! Nothing of this is on record: it is counted from when the step began, or from when this
//! process took the run up, and says so. Between two events nothing changes, so the time
//! between them is added as they come. What is counted beside: items, and how many wait
//! before the stage that nobody has begun. Shown by `views`.

use super::steps::{EachWork, StepRun, Work};
use super::{Mode, READ_AHEAD_ITEMS, Run, Time};
use crate::plan::StepKind;
use crate::state::{RunState, StepState};

/// What a stage did since `since_ms`. Times are of all its places together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StageView {
    /// Since when it is counted, in ms since 1970: when the step began, or when this process
    /// took the run up.
    pub since_ms: u64,
    /// How long, in ms.
    pub for_ms: u64,
    /// How many places it has.
    pub places: u64,
    /// Items that it has done; that it has read, if it is a source.
    pub items: u64,
    /// Calls in flight, from when they were sent until they were answered.
    pub work_ms: u64,
    /// Answers on their way to disk.
    pub record_ms: u64,
    /// There is nothing to do.
    pub input_ms: u64,
    /// There is no room behind for a result.
    pub room_ms: u64,
    /// Anything else: a place of the run's `limits.calls`, a pause, the wait before a retry.
    pub other_ms: u64,
    /// Items that wait and were not begun: now, the most there were, and the most there may be;
    /// 0 where there is no bound, as for a list, which is in memory as a whole.
    pub fill: u64,
    /// The most of them.
    pub fill_most: u64,
    /// The most there may be.
    pub fill_bound: u64,
}

/// The counters of one step.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Meter {
    /// None until it is counted.
    since: Option<Time>,
    /// Until when times are counted.
    until: Time,
    /// What was done before.
    before: u64,
    work_ms: u64,
    record_ms: u64,
    input_ms: u64,
    room_ms: u64,
    other_ms: u64,
    most: usize,
}

impl Meter {
    fn begin(since: Time, before: u64) -> Self {
        Self { since: Some(since), until: since, before, ..Self::default() }
    }
}

/// What the places of a step do.
#[derive(Debug, Default, Clone, Copy)]
struct Places {
    work: u64,
    record: u64,
    input: u64,
    room: u64,
    other: u64,
}

impl Run {
    /// It is later: adds the time since the last event to what the places did in it.
    pub(super) fn measure(&mut self, now: Time) {
        if now <= self.measured_at {
            return;
        }
        for index in 0..self.steps.len() {
            self.meters[index] = self.metered(index, now);
        }
        self.measured_at = now;
    }

    /// The run was taken up: what runs already is counted from now on.
    pub(super) fn measure_all(&mut self) {
        self.measured_at = self.now;
        for index in 0..self.steps.len() {
            let bound = self.fill_bound(index);
            if let Work::Each(each) = &mut self.steps[index].work {
                each.begun_before(bound.unwrap_or(usize::MAX));
            }
            if matches!(self.steps[index].state, StepState::Running | StepState::Failed) {
                self.measure_from(index, self.now);
            }
        }
    }

    /// A step is counted from here on.
    pub(super) fn measure_from(&mut self, index: usize, since: Time) {
        let done = done(&self.steps[index]);
        self.meters[index] = Meter::begin(since, done);
        self.measure_fill(index);
    }

    /// Items came to wait before a step.
    pub(super) fn measure_fill(&mut self, index: usize) {
        if let Work::Each(each) = &self.steps[index].work {
            let most = &mut self.meters[index].most;
            *most = (*most).max(each.fill());
        }
    }

    /// The counters of a step as they are at a time; none for steps that are no stages.
    pub(super) fn stage(&self, index: usize, now: Time) -> Option<StageView> {
        let meter = self.metered(index, now);
        let (since, step) = (meter.since?, &self.steps[index]);
        let fill = match &step.work {
            Work::Each(each) => each.fill(),
            Work::Source(_) => 0,
            Work::Call(_) | Work::Wait => return None,
        };
        Some(StageView {
            since_ms: since.0,
            for_ms: meter.until.0.saturating_sub(since.0),
            places: self.plan.steps[index].kind.concurrency().into(),
            items: done(step).saturating_sub(meter.before),
            work_ms: meter.work_ms,
            record_ms: meter.record_ms,
            input_ms: meter.input_ms,
            room_ms: meter.room_ms,
            other_ms: meter.other_ms,
            fill: fill as u64,
            fill_most: meter.most as u64,
            fill_bound: self.fill_bound(index).unwrap_or(0) as u64,
        })
    }

    /// How many items may wait before a step; none for a list, which is in memory as a whole.
    fn fill_bound(&self, index: usize) -> Option<usize> {
        match self.plan.steps[index].kind {
            StepKind::EachItem { source, .. } if self.plan.steps[source].kind.is_source() => {
                Some(READ_AHEAD_ITEMS + self.in_flight(source))
            }
            StepKind::EachItem { .. } => Some(self.plan.steps[index].buffer),
            StepKind::EachElement { .. }
            | StepKind::Call
            | StepKind::Wait
            | StepKind::Source
            | StepKind::Stream => None,
        }
    }

    /// The counters of a step with the time since the last event.
    fn metered(&self, index: usize, now: Time) -> Meter {
        let mut meter = self.meters[index];
        let step = &self.steps[index];
        let counts = matches!(step.state, StepState::Running | StepState::Failed)
            && matches!(self.mode, Mode::Live | Mode::Closing);
        if meter.since.is_none() || !counts {
            return meter;
        }
        let ms = now.0.saturating_sub(meter.until.0);
        meter.until = meter.until.max(now);
        let places = self.doing(index);
        meter.work_ms += ms * places.work;
        meter.record_ms += ms * places.record;
        meter.input_ms += ms * places.input;
        meter.room_ms += ms * places.room;
        meter.other_ms += ms * places.other;
        meter
    }

    /// What the places of a step do now.
    fn doing(&self, index: usize) -> Places {
        let held = self.state != RunState::Running || self.steps[index].ending;
        let mut places = Places::default();
        match &self.steps[index].work {
            Work::Call(_) | Work::Wait => {}
            // It works elsewhere: here it is waited for, or has to wait.
            Work::Source(source) => match held {
                true => places.other = 1,
                false if source.pull.0 > 0 && source.pull.1 > 0 => places.input = 1,
                false => places.room = 1,
            },
            Work::Each(each) => {
                let all = u64::from(self.plan.steps[index].kind.concurrency());
                let busy = u64::from(each.busy);
                places.work = u64::from(self.flights.of(index)).min(busy);
                places.record = busy - places.work;
                let idle = all.saturating_sub(busy);
                match each.ready.is_empty() {
                    _ if held => places.other = idle,
                    true if each.again > 0 => places.other = idle,
                    true => places.input = idle,
                    false if !self.is_wanted(index) => places.room = idle,
                    false => places.other = idle,
                }
            }
        }
        places
    }
}

/// What a stage has done: for a source what it has read.
fn done(step: &StepRun) -> u64 {
    match step.work {
        Work::Source(_) => step.counts.items,
        Work::Call(_) | Work::Wait | Work::Each(_) => step.counts.done,
    }
}

impl EachWork {
    /// How many items wait that were not begun: those that wait to be tried again had their
    /// place in the buffer before.
    pub(super) fn fill(&self) -> usize {
        self.open.saturating_sub(self.flying + self.again)
    }

    /// The run was taken up: what is beyond the bound of the buffer was in calls before,
    /// and so was what has failures.
    fn begun_before(&mut self, bound: usize) {
        let mut beyond = self.fill().saturating_sub(bound);
        for item in self.items.values_mut().filter(|item| !item.again) {
            let count = item.body.count();
            if item.failures > 0 || beyond > 0 {
                item.again = true;
                self.again += count;
                beyond = beyond.saturating_sub(count);
            }
        }
    }
}
