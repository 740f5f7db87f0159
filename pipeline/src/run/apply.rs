//! Records into state: the one function that a replay and a live run share.
//!
//! Every `match` arm first checks that the record can follow what came before, so a
//! journal that does not belong to the plan, or is broken, is an error with words
//! and never a wrong run.

use super::outbox::count_end;
use super::results::{each_of, source_of};
use super::{Action, Mode, Run};
use crate::record::Record;
use crate::state::{RunState, StepState};

/// A record that does not fit the run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Records are replayed before the run is loaded, not later.
    #[error("the run is loaded already")]
    NotLoading,
    /// The record does not fit what came before it, or the plan.
    #[error("record {record} of the journal does not fit: {why}")]
    Misfit {
        /// Its place in the journal, from 1.
        record: u64,
        /// What is wrong.
        why: String,
    },
}

impl Run {
    /// Takes a record that is on disk.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), ReplayError> {
        self.records += 1;
        self.apply_checked(record).map_err(|why| ReplayError::Misfit { record: self.records, why })
    }

    fn apply_checked(&mut self, record: &Record) -> Result<(), String> {
        if self.state.is_end() {
            return Err(format!("the run had ended, it was {}", self.state.name()));
        }
        self.at = record.at().unwrap_or(self.at);
        match record {
            Record::Run { state, reason, .. } => self.apply_run(*state, reason),
            Record::Progress { .. } | Record::Owner { .. } | Record::Outputs { .. } => Ok(()),
            Record::Begin { begin, .. } => self.apply_begin(begin),
            Record::Signal { name, payload, .. } => {
                self.apply_signal(name, payload);
                Ok(())
            }
            Record::Polled { step, attempt, .. } => {
                let index = self.open_step(*step)?;
                self.apply_polled(index, *attempt)
            }
            Record::Reported { step, body, shown, .. } => {
                let index = self.open_step(*step)?;
                self.apply_report(index, body, shown)
            }
            Record::Opened { step, attempt } => {
                let index = self.open_step(*step)?;
                let source = source_of(&mut self.steps[index])?;
                (source.attempts, source.opened) = (*attempt, true);
                if self.live() {
                    self.open(index);
                }
                Ok(())
            }
            Record::Interrupted { step, code, message, last, .. } => {
                let index = self.open_step(*step)?;
                self.apply_interruption(index, *code, message, *last)
            }
            Record::Items { step, first, items, fingerprint } => {
                let index = self.open_step(*step)?;
                self.apply_items(index, *first, items, *fingerprint)
            }
            Record::Batches { step, sizes } => {
                let index = self.open_step(*step)?;
                self.apply_batches(index, sizes)
            }
            Record::Results { step, items } => {
                let index = self.open_step(*step)?;
                self.apply_results(index, items)
            }
            Record::Done { step, items } => {
                let index = self.open_step(*step)?;
                self.apply_done(index, items)
            }
            Record::Failed { step, attempts, .. } => {
                let index = self.open_step(*step)?;
                attempts.iter().try_for_each(|attempt| self.apply_failure(index, attempt))
            }
            Record::Step { step, state, reason, output, .. } => {
                self.apply_step(*step, *state, reason, output.as_ref())
            }
            Record::Retry { step, .. } => {
                let index = self.failed_step(*step)?;
                self.rescue(index, self.at);
                Ok(())
            }
            Record::Finalize { .. } => self.apply_finalize(),
            Record::SkipItems { step, .. } => {
                let index = self.failed_step(*step)?;
                self.warned = true;
                each_of(&mut self.steps[index])?.drop_failed();
                Ok(())
            }
            Record::Again { wait_ms, reason, .. } => {
                self.apply_again(*wait_ms, reason);
                Ok(())
            }
            Record::Undo { end, reason, .. } => self.apply_undo(*end, reason),
            Record::UndoFailed { step, failed, .. } => {
                let index = self.known(*step)?;
                self.apply_undo_failed(index, failed)
            }
            Record::Undone { step, left, .. } => {
                let index = self.known(*step)?;
                self.apply_undone(index, left)
            }
        }
    }

    /// A step ended, or failed.
    fn apply_step(
        &mut self,
        step: u32,
        state: StepState,
        reason: &str,
        output: Option<&bytes::Bytes>,
    ) -> Result<(), String> {
        match state {
            StepState::Succeeded | StepState::Omitted => {
                let index = self.open_step(step)?;
                self.apply_end(index, state, reason, output)
            }
            StepState::Skipped => {
                let index = self.known(step)?;
                let before = self.steps[index].state;
                if before.is_end() && before != StepState::Failed {
                    return Err(format!("step {step} is {}", before.name()));
                }
                self.apply_end(index, state, reason, output)
            }
            StepState::Failed => {
                let index = self.open_step(step)?;
                let step = &mut self.steps[index];
                (step.state, step.error) = (state, reason.to_owned());
                count_end(&mut step.counts, state, false);
                self.failed += 1;
                self.close_undo(index);
                Ok(())
            }
            StepState::Waiting | StepState::Running | StepState::Undone | StepState::Cancelled => {
                Err(format!("a step does not end as {}", state.name()))
            }
        }
    }

    /// The run is tried again.
    fn apply_again(&mut self, wait_ms: u64, reason: &str) {
        let from = self.at.plus_ms(wait_ms);
        (self.tries, self.try_began) = (self.tries + 1, from);
        self.reason = format!("try {} of {}: {reason}", self.tries + 1, self.plan.retry.attempts);
        for step in 0..self.steps.len() {
            if self.steps[step].state == StepState::Failed {
                self.rescue(step, from);
            }
        }
    }

    pub(super) fn live(&self) -> bool {
        matches!(self.mode, Mode::Live | Mode::Closing)
    }

    fn known(&self, step: u32) -> Result<usize, String> {
        match (step as usize) < self.steps.len() {
            true => Ok(step as usize),
            false => Err(format!("it names step {step}, the pipeline has {}", self.steps.len())),
        }
    }

    /// The index of a step of which something may still come: it runs, or it has failed
    /// and what it had in flight besides comes to its end.
    fn open_step(&self, step: u32) -> Result<usize, String> {
        let index = self.known(step)?;
        match self.steps[index].state {
            StepState::Running | StepState::Failed => Ok(index),
            other => Err(format!("step {step} is {}", other.name())),
        }
    }

    fn failed_step(&self, step: u32) -> Result<usize, String> {
        let index = self.known(step)?;
        match self.steps[index].state {
            StepState::Failed => Ok(index),
            other => Err(format!("step {step} is {} and has not failed", other.name())),
        }
    }

    fn apply_run(&mut self, state: RunState, reason: &str) -> Result<(), String> {
        let first = self.records == 1 && state == RunState::Recorded;
        if !first && !self.state.may_become(state) {
            return Err(format!("a {} run does not become {}", self.state.name(), state.name()));
        }
        let before = self.state;
        self.state = state;
        self.reason = reason.to_owned();
        match (before, state) {
            (RunState::Paused, RunState::Running) => self.apply_resumed(),
            (_, RunState::Running) => {
                (self.began, self.try_began) = (self.at, self.at);
                // Those that wait for nothing; they take along those that wait for them only.
                let free = |step: &usize| self.steps[*step].waiting == 0;
                let first: Vec<usize> = (0..self.steps.len()).filter(free).collect();
                first.into_iter().for_each(|step| self.begin(step));
            }
            (_, RunState::Paused) => {
                self.paused_at = self.at;
                if self.live() {
                    // What takes messages or reports is in flight; the others are read on later.
                    let source = |step: &usize| {
                        self.plan.steps[*step].kind.is_source() && self.steps[*step].feed.is_none()
                    };
                    let sources: Vec<usize> = (0..self.steps.len()).filter(source).collect();
                    sources.into_iter().for_each(|step| self.close(step));
                }
            }
            _ => {}
        }
        if state.is_end() && self.live() {
            self.actions.extend(self.flights.take().map(Action::Drop));
            self.answer_all(state);
            self.actions.push_back(Action::Ended(state));
            self.mode = Mode::Gone;
        }
        Ok(())
    }

    /// The run goes on after a pause: what has a deadline has it later by the pause.
    fn apply_resumed(&mut self) {
        let pause_ms = self.at.0.saturating_sub(self.paused_at.0);
        let live = self.live();
        self.began = self.began.plus_ms(pause_ms);
        self.try_began = self.try_began.plus_ms(pause_ms);
        for step in &mut self.steps {
            step.began = step.began.plus_ms(pause_ms);
        }
        self.rescue_undo();
        if let Some(undo) = &self.undo {
            self.reason = format!("undoing: {}", undo.reason);
        }
        if live {
            self.look_again();
        }
    }
}

/// The name of a gRPC status.
pub fn code_name(code: i32) -> &'static str {
    match code {
        0 => "OK",
        1 => "CANCELLED",
        3 => "INVALID_ARGUMENT",
        4 => "DEADLINE_EXCEEDED",
        5 => "NOT_FOUND",
        6 => "ALREADY_EXISTS",
        7 => "PERMISSION_DENIED",
        8 => "RESOURCE_EXHAUSTED",
        9 => "FAILED_PRECONDITION",
        10 => "ABORTED",
        11 => "OUT_OF_RANGE",
        12 => "UNIMPLEMENTED",
        13 => "INTERNAL",
        14 => "UNAVAILABLE",
        15 => "DATA_LOSS",
        16 => "UNAUTHENTICATED",
        _ => "UNKNOWN",
    }
}
