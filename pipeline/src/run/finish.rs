//! How a run comes to a good end: with what it gives, if its definition says so.

use super::Run;
use crate::record::{Record, cut};
use crate::state::{RunState, StepState};

impl Run {
    /// Nothing is left to do: makes the outputs and ends the run.
    pub(super) fn finish(&mut self) {
        let end = [RunState::Succeeded, RunState::Warning][usize::from(self.warned)];
        let plan = std::sync::Arc::clone(&self.plan);
        let Some(outputs) = &plan.around.outputs else { return self.end(end, String::new()) };
        // They read what the last steps gave, so that has to be on disk.
        if self.unended > 0 {
            return;
        }
        match outputs.encode(&self.scope.value(None)) {
            Ok(body) => {
                self.outbox.push(Record::Outputs { at_ms: self.now.0, body });
                self.end(end, String::new());
            }
            Err(error) => {
                let gone = |step: &usize| {
                    matches!(self.steps[*step].state, StepState::Skipped | StepState::Omitted)
                };
                let left_out = plan.around.outputs_read.iter().any(gone);
                let why = cut(format!("it gives no outputs: {error}"));
                match left_out {
                    true => self.end(RunState::Warning, why),
                    false => self.wind_up(RunState::Failed, why),
                }
            }
        }
    }
}
