//! Compensations: what a run did is taken back, the last first, one at a time.
//!
//! It begins with [`Record::Undo`]. Calls in flight of steps that can be taken back are
//! waited for, because their effect is to be taken back too; the others are dropped. A
//! compensation that fails for good pauses the run: a person mends what is wrong and
//! resumes, or skips that compensation.

use std::collections::BTreeSet;

use super::apply::code_name;
use super::failure::{is_final, quarantined, takes_worker};
use super::steps::{CallWork, Work};
use super::{Action, Flight, Run, Time, Wake};
use crate::input::BoundInput;
use crate::record::{FailedAttempt, Record};
use crate::state::{RunState, StepState};

/// What a run that takes back what it did knows.
#[derive(Debug)]
pub(super) struct Undo {
    /// The state in which it ends, and why.
    pub(super) end: RunState,
    pub(super) reason: String,
    /// Steps with a call of which the outcome is not known yet.
    pub(super) open: BTreeSet<usize>,
    /// Steps that are dealt with.
    pub(super) gone: BTreeSet<usize>,
    /// The compensation whose turn it is.
    pub(super) work: CallWork,
}

impl Run {
    pub(super) fn apply_undo(&mut self, end: RunState, reason: &str) -> Result<(), String> {
        if self.undo.is_some() || !matches!(end, RunState::Failed | RunState::Cancelled) {
            return Err(format!("the run cannot be taken back to end as {}", end.name()));
        }
        // A call that waits for its next attempt has failed, for all that is known.
        let is_open = |step: &usize| {
            let waits = match &self.steps[*step].work {
                Work::Call(call) => call.not_before > self.at,
                Work::Wait | Work::Source(_) | Work::Each(_) => true,
            };
            // A pipeline is cancelled with the run it is part of, and takes back itself.
            let waits = waits || self.plan.steps[*step].own.is_some();
            let running = self.steps[*step].state == StepState::Running;
            self.plan.steps[*step].undo.is_some() && running && !waits
        };
        let open: BTreeSet<usize> = (0..self.steps.len()).filter(is_open).collect();
        if self.live() {
            for step in (0..self.steps.len()).filter(|step| !open.contains(step)) {
                self.drop_flights(step);
            }
            self.timers.clear();
        }
        let (gone, work) = (BTreeSet::new(), CallWork::default());
        self.reason = format!("undoing: {reason}");
        self.undo = Some(Undo { end, reason: reason.to_owned(), open, gone, work });
        Ok(())
    }

    /// The step whose compensation comes next.
    pub(super) fn next_undo(&self) -> Option<usize> {
        let undo = self.undo.as_ref()?;
        let wanted =
            |step: &usize| self.plan.steps[*step].undo.is_some() && !undo.gone.contains(step);
        // An `each` that did not get to its end has effects all the same.
        let partial = |step: &usize| {
            let found = &self.steps[*step];
            let each = matches!(found.work, Work::Each(_));
            each && found.state != StepState::Succeeded && found.counts.done > 0 && wanted(step)
        };
        let partial = (0..self.steps.len()).rev().find(partial);
        partial.or_else(|| self.finished.iter().rev().copied().find(wanted))
    }

    /// Lets a run that takes back what it did go as far as it can.
    pub(super) fn advance_undo(&mut self) {
        self.dirty.clear();
        let Some(undo) = &self.undo else { return };
        if !undo.open.is_empty() {
            // After a crash, a call whose outcome is unknown is sent again.
            for step in undo.open.clone() {
                if !self.steps[step].ending {
                    self.advance_call(step);
                }
            }
            return;
        }
        let Some(step) = self.next_undo() else {
            let (end, reason) = (undo.end, undo.reason.clone());
            return self.end(end, reason);
        };
        let now = self.now;
        let Some(undo) = &mut self.undo else { return };
        if undo.work.busy {
            return;
        }
        undo.work.busy = true;
        if undo.work.not_before > now {
            self.timers.insert((undo.work.not_before, Wake::Undo));
            return;
        }
        let flight =
            Flight { step, item: None, attempt: undo.work.failures + 1, undo: true, stream: false };
        match self.undo_body(step) {
            Ok(body) => self.send(flight, body, Action::Call),
            Err(why) => self.pause(format!("compensation of {}", self.words(step, &why))),
        }
    }

    fn undo_body(&self, step: usize) -> Result<bytes::Bytes, String> {
        let Some(undo) = &self.plan.steps[step].undo else { return Ok(bytes::Bytes::new()) };
        match undo.input {
            BoundInput::Step(other) => {
                let body = self.outputs.get(&other).cloned();
                body.ok_or_else(|| "the output it passes on is not kept".to_owned())
            }
            _ => undo.input.encode(&self.scope.value(None)).map_err(|error| error.to_string()),
        }
    }

    /// A compensation was answered.
    pub(super) fn undo_answered(&mut self, step: usize) {
        self.leave(step, String::new());
    }

    /// A step is dealt with.
    pub(super) fn leave(&mut self, step: usize, left: String) {
        self.outbox.push(Record::Undone { at_ms: self.now.0, step: step as u32, left });
    }

    /// An attempt to take back what a step did failed.
    pub(super) fn undo_failed(&mut self, flight: Flight, code: i32, message: String) {
        let Flight { step, attempt, .. } = flight;
        let (Some(planned), Some(undo)) = (&self.plan.steps[step].undo, &self.undo) else { return };
        let attempts = planned.retry.attempts;
        let (failures, lost) = (undo.work.since + 1, takes_worker(code, &message));
        // As with other calls: what kills workers, or is refused, is not tried on and on.
        let poison = lost && undo.work.lost + 1 >= planned.retry.quarantine;
        let workers = undo.work.lost + 1;
        let last = poison || failures >= attempts || is_final(code);
        let words = message.clone();
        let failed = FailedAttempt { item: None, attempt, code, message: words, last, lost };
        self.outbox.push(Record::UndoFailed { at_ms: self.now.0, step: step as u32, failed });
        if last {
            let code = code_name(code);
            let why = format!("{code}: {message} (attempt {failures} of {attempts})");
            let why = if poison { quarantined(workers, &why) } else { why };
            self.pause(format!("compensation of {}", self.words(step, &why)));
        }
    }

    pub(super) fn apply_undo_failed(
        &mut self,
        step: usize,
        failed: &FailedAttempt,
    ) -> Result<(), String> {
        let (live, at, wanted) = (self.live(), self.at, self.next_undo());
        let chance = self.chance(step, None, failed.attempt);
        let (Some(planned), Some(undo)) = (&self.plan.steps[step].undo, &mut self.undo) else {
            return Err(format!("step {step} is not being taken back"));
        };
        if wanted != Some(step) {
            return Err(format!("it is not the turn of step {step} to be taken back"));
        }
        let work = &mut undo.work;
        (work.failures, work.since) = (work.failures + 1, work.since + 1);
        work.lost += u32::from(failed.lost);
        if work.failures != failed.attempt {
            return Err(format!("attempt {} failed as {}", failed.attempt, work.failures));
        }
        work.not_before = at.plus_ms(planned.retry.wait_ms(work.since, chance));
        work.busy = live && failed.last;
        let code = code_name(failed.code);
        self.steps[step].error = format!("compensation: {code}: {}", failed.message);
        Ok(())
    }

    pub(super) fn apply_undone(&mut self, step: usize, left: &str) -> Result<(), String> {
        if self.next_undo() != Some(step) {
            return Err(format!("it is not the turn of step {step} to be taken back"));
        }
        if let Some(undo) = &mut self.undo {
            undo.gone.insert(step);
            undo.work = CallWork::default();
        }
        match left.is_empty() {
            true => self.steps[step].state = StepState::Undone,
            false => self.steps[step].error = format!("not taken back: {left}"),
        }
        Ok(())
    }

    /// The compensation whose turn it is begins anew.
    pub(super) fn rescue_undo(&mut self) {
        if let Some(undo) = &mut self.undo {
            let work = &mut undo.work;
            (work.since, work.lost) = (0, 0);
            (work.not_before, work.busy) = (Time::default(), false);
        }
    }
}
