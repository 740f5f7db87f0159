//! The last phase of a run: its `finalize` steps, one after the other, when all others
//! have ended.
//!
//! An error pauses the run. When it goes on, the phase begins anew with its first step: a
//! step that succeeded is called once more, as an attempt of its own, for otherwise the
//! mesh would give the answer that it remembers.

use std::sync::Arc;

use super::steps::Work;
use super::{Run, Time};
use crate::record::{Counts, Record};
use crate::state::StepState;

impl Run {
    /// Whether a step is of the last phase.
    pub(super) fn finalizes(&self, step: usize) -> bool {
        self.plan.steps[step].finalize
    }

    /// Records that the last phase begins anew.
    pub(super) fn push_finalize(&mut self) {
        self.outbox.push(Record::Finalize { at_ms: self.now.0 });
    }

    pub(super) fn apply_finalize(&mut self) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        let phase = || (0..plan.steps.len()).filter(|step| plan.steps[*step].finalize);
        if !phase().any(|step| self.steps[step].state == StepState::Failed) {
            return Err("no step of the last phase has failed".to_owned());
        }
        let live = self.live();
        for index in phase() {
            let step = &mut self.steps[index];
            let Work::Call(call) = &mut step.work else {
                return Err(format!("step {index} is not one call"));
            };
            call.failures += u32::from(step.state == StepState::Succeeded);
            call.anew(Time::default());
            match step.state {
                StepState::Failed => self.failed -= 1,
                StepState::Waiting | StepState::Running => {}
                _ => {
                    self.unended += 1;
                    self.to_end += usize::from(live);
                }
            }
            (step.state, step.ending, step.left_out) = (StepState::Waiting, false, None);
            step.counts = Counts { retries: step.counts.retries, ..Counts::default() };
            let before = plan.steps[index].waits_for.iter();
            step.waiting = before.filter(|before| plan.steps[**before].finalize).count();
        }
        self.finished.retain(|step| !plan.steps[*step].finalize);
        let free: Vec<usize> = phase().filter(|step| self.steps[*step].waiting == 0).collect();
        free.into_iter().for_each(|step| self.begin(step));
        Ok(())
    }
}
