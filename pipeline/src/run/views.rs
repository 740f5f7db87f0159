//! How far a run is: for people who ask, and, now and then, for the journal, so that who
//! watches is told.

use super::steps::{Phase, StepRun, Work};
use super::{Mode, PROGRESS_INTERVAL_MS, Run, StageView, Time};
use crate::record::{Counts, Record};
use crate::state::StepState;

/// A step, for people, and for the store when the run has ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StepView {
    /// Its state.
    pub state: StepState,
    /// How far it is.
    pub counts: Counts,
    /// The last error, also of an attempt that was tried again.
    pub error: String,
    /// What it does with its time, if it is a stage and was counted.
    #[serde(default)]
    pub stage: Option<StageView>,
    /// The newest of what it has reported, as JSON.
    #[serde(default)]
    pub progress: String,
}

impl Run {
    /// Its steps, for people, with what stages do with their time.
    pub fn views_at(&self, now: Time) -> Vec<StepView> {
        let mut views = self.views();
        for (index, view) in views.iter_mut().enumerate() {
            view.stage = self.stage(index, now);
        }
        views
    }

    /// Its steps, as records and calls in flight have them.
    pub fn views(&self) -> Vec<StepView> {
        let view = |(index, step): (usize, &StepRun)| StepView {
            state: match self.state.is_end() && !step.state.is_end() {
                true => StepState::Cancelled,
                false => step.state,
            },
            counts: self.counts(index),
            error: step.error.clone(),
            stage: None,
            progress: step.report.shown.clone(),
        };
        self.steps.iter().enumerate().map(view).collect()
    }

    pub(super) fn counts(&self, step: usize) -> Counts {
        let running = match self.mode {
            Mode::Live | Mode::Closing => self.calls_now(step),
            Mode::Loading | Mode::Gone => 0,
        };
        Counts { running, ..self.steps[step].counts }
    }

    /// Calls in flight. Those whose results are on their way to disk are not.
    fn calls_now(&self, index: usize) -> u64 {
        let step = &self.steps[index];
        match &step.work {
            Work::Call(call) => u64::from(call.busy && step.state == StepState::Running),
            Work::Wait => u64::from(step.state == StepState::Running && !step.ending),
            Work::Source(source) => {
                let open = matches!(source.phase, Phase::Open(_));
                u64::from(open && step.state == StepState::Running)
            }
            Work::Each(_) => u64::from(self.flights.of(index)),
        }
    }

    /// When the counts are to be recorded again.
    pub(super) fn progress_at(&self) -> Option<Time> {
        let live = self.mode == Mode::Live && self.moved;
        live.then(|| self.shown_at.plus_ms(PROGRESS_INTERVAL_MS))
    }

    /// Adds the counts of the steps that moved.
    pub(super) fn add_progress(&mut self, ends: bool) {
        (self.shown_at, self.moved) = (self.now, false);
        let mut counts: Vec<Counts> = (0..self.steps.len()).map(|step| self.counts(step)).collect();
        let size = |step: usize, item: Option<u64>| self.steps[step].size(item);
        self.outbox.count_into(&mut counts, size);
        if ends {
            counts.iter_mut().for_each(|counts| counts.running = 0);
        }
        let moved = counts.iter().zip(&self.shown).enumerate();
        let moved: Vec<(u32, Counts)> = moved
            .filter(|(_, (now, shown))| now != shown)
            .map(|(step, (now, _))| (step as u32, *now))
            .collect();
        self.shown = counts;
        if !moved.is_empty() {
            self.outbox.add_progress(Record::Progress { at_ms: self.now.0, steps: moved });
        }
    }
}
