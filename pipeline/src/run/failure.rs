//! What follows when something fails: another attempt, or, when none is left, what the
//! definition says; and deadlines, which leave none.
//!
//! ```text
//!  attempt failed ─┬─ attempts left ─▶ Record::Failed ─▶ a timer ─▶ the next attempt
//!                  └─ none ─▶ give_up ─┬─ skip ─▶ the step or item is skipped
//!                                      ├─ pause ─▶ the run pauses
//!                                      └─ fail ─┬─ tries of the run left ─▶ Record::Again
//!                                               └─ wind_up ─▶ compensations ─▶ the end
//! ```

use super::advance::{CODE_DEADLINE, CODE_UNAVAILABLE};
use super::apply::code_name;
use super::steps::{Phase, Work};
use super::{Action, CallId, Flight, Hold, Mode, Run, Time, Wake};
use crate::failure::OnFailure;
use crate::record::{FailedAttempt, Record, cut};
use crate::state::{RunState, StepState};

/// gRPC statuses that another attempt would not change: the request itself is
/// refused, or the method is not there.
pub(super) fn is_final(code: i32) -> bool {
    matches!(code, 3 | 5 | 6 | 7 | 9 | 11 | 12 | 15 | 16)
}

/// Whether a failure says that a worker, or the service behind an adapter, was lost while
/// it had the call: in the words of the mesh and of the adapter, for no status says it.
pub(super) fn takes_worker(code: i32, message: &str) -> bool {
    let worker = message.starts_with("the worker");
    let service = message.starts_with("the service at ") && message.contains(" is gone: ");
    code == CODE_UNAVAILABLE && (worker || service)
}

/// What to say of a call with which so many workers were lost.
pub(super) fn quarantined(lost: u32, why: &str) -> String {
    let workers =
        if lost == 1 { "1 worker was".to_owned() } else { format!("{lost} workers were") };
    format!("quarantined, {workers} lost with it: {why}")
}

impl Run {
    /// An attempt of a call failed.
    pub(super) fn attempt_failed(&mut self, flight: Flight, code: i32, message: String) {
        let Flight { step, item, attempt, .. } = flight;
        let (failures, before) = self.since(step, item);
        let (failures, lost) = (failures + 1, takes_worker(code, &message));
        let retry = self.plan.steps[step].retry;
        let poison = lost && before + 1 >= retry.quarantine;
        let last = poison || self.is_last(step, item, failures, code);
        let words = message.clone();
        let failed = FailedAttempt { item, attempt, code, message: words, last, lost };
        self.outbox.failed(self.now.0, step, failed);
        if last {
            let (attempts, code) = (retry.attempts, code_name(code));
            let why = format!("{code}: {message} (attempt {failures} of {attempts})");
            let why = if poison { quarantined(before + 1, &why) } else { why };
            self.give_up(step, item, why);
        }
    }

    /// A call was answered with what cannot be taken: the attempt failed for good.
    pub(super) fn refuse(&mut self, flight: Flight, code: i32, why: String) {
        let Flight { step, item, attempt, .. } = flight;
        let message = why.clone();
        let failed = FailedAttempt { item, attempt, code, message, last: true, lost: false };
        self.outbox.failed(self.now.0, step, failed);
        self.give_up(step, item, why);
    }

    /// Failures since the step was last told to begin anew, and those with which a worker
    /// was lost.
    fn since(&self, step: usize, item: Option<u64>) -> (u32, u32) {
        match (&self.steps[step].work, item) {
            (Work::Call(call), _) => (call.since, call.lost),
            (Work::Wait, _) => (0, 0),
            (Work::Each(each), Some(item)) => {
                each.items.get(&item).map_or((0, 0), |item| (item.since, item.lost))
            }
            (Work::Each(_), None) => (0, 0),
            (Work::Source(source), _) => (source.failures, 0),
        }
    }

    /// Whether no attempt follows this failure. An item has those that are left to it also when
    /// its step has failed with another: they follow when that is dealt with.
    pub(super) fn is_last(&self, step: usize, item: Option<u64>, failures: u32, code: i32) -> bool {
        let none_left = failures >= self.plan.steps[step].retry.attempts;
        let ending = item.is_none() && self.steps[step].ending;
        none_left || is_final(code) || self.undo.is_some() || ending
    }

    /// No attempt is left of a step, or of one of its items.
    pub(super) fn give_up(&mut self, step: usize, item: Option<u64>, why: String) {
        let why = match (item, self.steps[step].size(item)) {
            (Some(item), 1) => format!("item {item}: {why}"),
            (Some(item), size) => format!("items {item} to {}: {why}", item + size - 1),
            (None, _) => why,
        };
        match (self.plan.steps[step].on_failure, item) {
            // Its record says all: the step goes on without it.
            (OnFailure::Skip, Some(_)) => self.warned = true,
            // Several items fail at once; the first decides.
            _ if self.steps[step].ending => {}
            (OnFailure::Skip, None) => {
                self.drop_flights(step);
                self.end_step(step, StepState::Skipped, cut(why), None);
            }
            (policy, _) => {
                let why = cut(why);
                let reason = self.words(step, &why);
                self.end_step(step, StepState::Failed, why, None);
                match policy {
                    _ if self.undo.is_some() => {}
                    OnFailure::Pause => self.pause(reason),
                    OnFailure::Fail | OnFailure::Skip => self.fail(Some(step), reason),
                }
            }
        }
    }

    pub(super) fn words(&self, step: usize, why: &str) -> String {
        format!("step `{}`: {why}", self.plan.steps[step].id)
    }

    /// Pauses the run, unless it is on its way there already.
    pub(super) fn pause(&mut self, reason: String) {
        if self.may_act() {
            self.change(RunState::Paused, reason);
        }
    }

    /// Records a state that is not the end; nothing new begins until it is on disk.
    pub(super) fn change(&mut self, state: RunState, reason: String) {
        self.outbox.push(Record::Run { at_ms: self.now.0, state, reason: cut(reason) });
        self.hold = Hold::Queued;
    }

    /// The run failed, because of a step or as a whole: it is tried again, or it ends.
    pub(super) fn fail(&mut self, step: Option<usize>, reason: String) {
        if self.winding {
            return;
        }
        let retry = self.plan.retry;
        if self.tries + 1 >= retry.attempts {
            return self.wind_up(RunState::Failed, reason);
        }
        let at_ms = self.now.0;
        match step.filter(|_| self.hold != Hold::No) {
            // The try that follows another failure takes this step along.
            Some(step) => self.outbox.push(Record::Retry { at_ms, step: step as u32 }),
            None => {
                let chance = self.chance_of_try();
                let wait_ms = retry.wait_ms(self.tries + 1, chance);
                self.outbox.push(Record::Again { at_ms, wait_ms, reason: cut(reason) });
                self.hold = Hold::Queued;
            }
        }
    }

    /// Ends the run; what it did is taken back first where the definition says how.
    pub(super) fn wind_up(&mut self, end: RunState, reason: String) {
        if std::mem::replace(&mut self.winding, true) {
            return;
        }
        let undoes = self.plan.steps.iter().any(|step| step.undo.is_some());
        if !undoes || matches!(self.state, RunState::Recorded | RunState::Scheduled) {
            return self.end(end, reason);
        }
        let paused = self.state == RunState::Paused;
        self.outbox.push(Record::Undo { at_ms: self.now.0, end, reason: cut(reason) });
        self.hold = Hold::Queued;
        if paused && end == RunState::Cancelled {
            self.change(RunState::Running, String::new());
        }
    }

    /// Records the end of the run. Nothing new begins from here on.
    pub(super) fn end(&mut self, state: RunState, reason: String) {
        if self.mode == Mode::Live {
            self.mode = Mode::Closing;
            let reason = cut(reason);
            self.outbox.push(Record::Run { at_ms: self.now.0, state, reason });
        }
    }

    /// Whether there is anything left to do: ends the run, or pauses it when all that is
    /// left waits for steps that have failed.
    pub(super) fn settle(&mut self) {
        if !self.may_act() || self.undo.is_some() {
            return;
        }
        if self.to_end == 0 {
            return self.finish();
        }
        if self.failed == 0
            || !self.outbox.is_empty()
            || self.appending.is_some()
            || (0..self.steps.len()).any(|step| self.moves(step))
        {
            return;
        }
        let failed = self.steps.iter().position(|step| step.state == StepState::Failed);
        if let Some(step) = failed {
            let reason = self.words(step, &self.steps[step].error.clone());
            self.pause(reason);
        }
    }

    /// Whether something comes of a step without anybody's help: it runs, and does not
    /// wait for items of a source that has failed.
    fn moves(&self, step: usize) -> bool {
        if self.steps[step].state != StepState::Running {
            return false;
        }
        match (self.plan.steps[step].source(), &self.steps[step].work) {
            (Some(source), Work::Each(each)) => {
                let comes = self.steps[source].state != StepState::Failed;
                (comes || !each.items.is_empty()) && (each.busy > 0 || self.is_wanted(step))
            }
            _ => !self.rests(step),
        }
    }

    /// The next time at which the run as a whole is over, and whether it may be tried
    /// again then.
    pub(super) fn limit(&self) -> Option<(Time, bool)> {
        if !self.may_act() || self.undo.is_some() {
            return None;
        }
        let deadline = self.plan.deadline_ms.map(|ms| (self.began.plus_ms(ms), false));
        let timeout = self.plan.timeout_ms.map(|ms| (self.try_began.plus_ms(ms), true));
        deadline.into_iter().chain(timeout).min()
    }

    /// Ends what runs when the run's time is over.
    pub(super) fn check_limits(&mut self) {
        let Some((_, again)) = self.limit().filter(|(at, _)| *at <= self.now) else { return };
        let (what, ms) = match again {
            true => ("timeout", self.plan.timeout_ms),
            false => ("deadline", self.plan.deadline_ms),
        };
        let why = format!("the run's {what} of {} ms has passed", ms.unwrap_or_default());
        for step in 0..self.steps.len() {
            if self.steps[step].state == StepState::Running && !self.steps[step].ending {
                self.stop(step, &why);
                self.end_step(step, StepState::Failed, why.clone(), None);
            }
        }
        match again {
            true => self.fail(None, why),
            false => self.wind_up(RunState::Failed, why),
        }
    }

    /// The deadline of a step has come.
    pub(super) fn overdue(&mut self, step: usize) {
        let found = &self.steps[step];
        if !self.may_act() || found.state != StepState::Running || found.ending {
            return;
        }
        let Some(ms) = self.plan.steps[step].deadline_ms else { return };
        // It may have been moved on by a pause, or by beginning anew.
        let at = found.began.plus_ms(ms);
        if at > self.now {
            self.timers.insert((at, Wake::Deadline(step)));
            return;
        }
        let why = self.overdue_words(step, ms);
        self.stop(step, &why);
        self.give_up(step, None, why);
    }

    /// Takes back what a step has in flight, and records it as failed attempts: an
    /// attempt that comes later has another key.
    fn stop(&mut self, step: usize, why: &str) {
        self.record_report(step);
        for (call, flight) in self.flights_of(step) {
            self.flights.remove(call);
            self.actions.push_back(Action::Drop(call));
            let (at_ms, code, message) = (self.now.0, CODE_DEADLINE, why.to_owned());
            if let Work::Source(source) = &mut self.steps[step].work {
                source.phase = Phase::Between;
                let step = step as u32;
                let record = Record::Interrupted { at_ms, step, code, message, last: true };
                self.outbox.push(record);
                continue;
            }
            let (item, attempt) = (flight.item, flight.attempt);
            let failed = FailedAttempt { item, attempt, code, message, last: true, lost: false };
            self.outbox.failed(at_ms, step, failed);
        }
    }

    /// Takes back what a step has in flight.
    pub(super) fn drop_flights(&mut self, step: usize) {
        for (call, _) in self.flights_of(step) {
            self.flights.remove(call);
            self.actions.push_back(Action::Drop(call));
        }
    }

    fn flights_of(&self, step: usize) -> Vec<(CallId, Flight)> {
        let of = |(_, flight): &(CallId, Flight)| flight.step == step && !flight.undo;
        self.flights.iter().filter(of).collect()
    }
}
