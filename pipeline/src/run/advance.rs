//! State into calls: what a live run does next. Nothing here changes what records
//! say; outcomes go to the outbox.

use std::sync::Arc;

use bytes::Bytes;

use super::apply::code_name;
use super::steps::{ItemBody, Phase, Work};
use super::{Action, Call, CallId, Flight, Mode, RESULT_MAX_BYTES, Run, Time};
use crate::input::BoundInput;
use crate::key::call_key;
use crate::message::{decode, message_value};
use crate::plan::StepKind;
use crate::record::{FailedAttempt, Record, cut};
use crate::state::{RunState, StepState};

/// gRPC statuses that another attempt would not change: the request itself is
/// refused, or the method is not there.
fn is_final(code: i32) -> bool {
    matches!(code, 3 | 5 | 6 | 7 | 9 | 11 | 12 | 15 | 16)
}

/// `INTERNAL`, for answers that are not what the method promised.
pub(super) const CODE_INTERNAL: i32 = 13;

impl Run {
    /// All records were replayed: makes anew what records do not say.
    pub(super) fn load(&mut self) {
        self.mode = if self.state.is_end() { Mode::Gone } else { Mode::Live };
        self.to_end = self.unended;
        self.shown = self.steps.iter().map(|step| step.counts).collect();
        self.shown_at = self.now;
        self.dirty.extend(0..self.steps.len());
        let now = self.now;
        for (index, step) in self.steps.iter_mut().enumerate() {
            if let Work::Each(each) = &mut step.work {
                for (number, item) in &each.items {
                    if item.not_before > now {
                        self.timers.insert((item.not_before, index, Some(*number)));
                    } else {
                        each.ready.push_back(*number);
                    }
                }
            }
        }
        let failed = self.steps.iter().position(|step| step.state == StepState::Failed);
        if self.mode == Mode::Live && self.state == RunState::Running {
            // A crash may have come between the record of a step's end and the run's.
            if let Some(step) = failed {
                let reason = self.failure(step, &self.steps[step].error.clone());
                self.end(RunState::Failed, reason);
            } else if self.unended == 0 {
                self.end(RunState::Succeeded, String::new());
            }
        }
    }

    /// The records of the last append are on disk.
    pub(super) fn appended(&mut self) {
        let Some(records) = self.appending.take() else { return };
        for record in records.iter() {
            if let Err(error) = self.apply(record) {
                // A bug of this crate, not of the run: the store has what it wrote.
                return self.evict(error.to_string());
            }
            self.moved |= !matches!(record, Record::Progress { .. });
        }
    }

    /// Timers that are due.
    pub(super) fn fire_timers(&mut self) {
        while let Some((at, step, item)) = self.timers.first().copied() {
            if at > self.now {
                return;
            }
            self.timers.pop_first();
            self.dirty.insert(step);
            match (&mut self.steps[step].work, item) {
                (Work::Each(each), Some(number)) => {
                    if each.items.contains_key(&number) {
                        each.ready.push_back(number);
                    }
                }
                (Work::Call(call), _) => call.busy = false,
                (Work::Source(source), _) if source.phase == Phase::Between => {
                    source.phase = Phase::Closed;
                }
                (Work::Source(_) | Work::Each(_), _) => {}
            }
        }
    }

    /// Lets every step that something happened to go as far as it can.
    pub(super) fn advance(&mut self) {
        while let Some(step) = self.dirty.pop_first() {
            let ready = self.mode == Mode::Live
                && self.state == RunState::Running
                && self.steps[step].state == StepState::Running
                && !self.steps[step].ending;
            if !ready {
                continue;
            }
            match &self.steps[step].work {
                Work::Call(_) => self.advance_call(step),
                Work::Source(_) => self.advance_source(step),
                Work::Each(_) => self.advance_each(step),
            }
        }
    }

    fn advance_call(&mut self, step: usize) {
        let Work::Call(call) = &mut self.steps[step].work else { return };
        if call.busy {
            return;
        }
        call.busy = true;
        if call.not_before > self.now {
            self.timers.insert((call.not_before, step, None));
            return;
        }
        let attempt = call.failures + 1;
        match self.body(step, None) {
            Ok(body) => self.send(Flight { step, item: None, attempt }, body, Action::Call),
            Err(why) => self.fail_step(step, why),
        }
    }

    fn advance_each(&mut self, step: usize) {
        let concurrency = self.plan.steps[step].kind.concurrency();
        loop {
            let Work::Each(each) = &mut self.steps[step].work else { return };
            if let Some(why) = each.problem.take() {
                return self.fail_step(step, why);
            }
            if each.complete && each.items.is_empty() {
                return self.end_step(step, StepState::Succeeded, String::new(), None);
            }
            if each.busy >= concurrency {
                return;
            }
            let Some(number) = each.ready.pop_front() else { return };
            let Some(item) = each.items.get(&number) else { continue };
            let (attempt, body) = (item.failures + 1, item.body.clone());
            each.busy += 1;
            match self.body(step, Some((number, body))) {
                Ok(body) => {
                    let flight = Flight { step, item: Some(number), attempt };
                    self.send(flight, body, Action::Call);
                }
                Err(why) => return self.fail_step(step, format!("item {number}: {why}")),
            }
        }
    }

    /// The message of a call.
    pub(super) fn body(&self, step: usize, item: Option<(u64, ItemBody)>) -> Result<Bytes, String> {
        let planned = &self.plan.steps[step];
        match (&planned.input, &item) {
            (BoundInput::Empty, _) => return Ok(Bytes::new()),
            (BoundInput::Step(other), _) => {
                let body = self.outputs.get(other).cloned();
                return body.ok_or_else(|| "the output it passes on is not kept".to_owned());
            }
            (BoundInput::Item, Some((_, ItemBody::Message(body)))) => return Ok(body.clone()),
            (BoundInput::Item, _) => return Err("there is no item to pass on".to_owned()),
            (BoundInput::Message(_) | BoundInput::Value(..), _) => {}
        }
        let item = match item {
            Some((number, ItemBody::Element(element))) => Some((element, number)),
            Some((number, ItemBody::Message(body))) => {
                let value = match &planned.kind {
                    StepKind::EachItem { item, .. } if planned.decodes_item => {
                        message_value(decode(item, &body)?)
                    }
                    _ => minijinja::Value::UNDEFINED,
                };
                Some((value, number))
            }
            None => None,
        };
        planned.input.encode(&self.scope.value(item)).map_err(|error| error.to_string())
    }

    /// Sends a call or opens a stream.
    pub(super) fn send(&mut self, flight: Flight, body: Bytes, action: fn(Call) -> Action) {
        let planned = &self.plan.steps[flight.step];
        let call = CallId(self.next_call);
        self.next_call += 1;
        self.moved = true;
        self.flights.insert(call, flight);
        self.actions.push_back(action(Call {
            call,
            key: call_key(&self.id, &planned.id, flight.item, flight.attempt),
            step: flight.step,
            item: flight.item,
            attempt: flight.attempt,
            service: Arc::clone(&planned.service),
            method: Arc::clone(&planned.method),
            body,
            timeout_ms: planned.timeout_ms,
            idempotent: planned.idempotent,
        }));
    }

    /// A call was answered. Its place stays taken until the answer is on record.
    pub(super) fn answered(&mut self, call: CallId, body: Bytes) {
        let Some(flight) = self.flights.remove(&call) else { return };
        if let Some(item) = flight.item {
            return self.outbox.done(flight.step, item);
        }
        let planned = &self.plan.steps[flight.step];
        if body.len() > RESULT_MAX_BYTES {
            let why = format!(
                "the result has {} bytes; the most is {RESULT_MAX_BYTES}: let the method give a stream",
                body.len()
            );
            return self.fail_step(flight.step, why);
        }
        if planned.output_is_decoded
            && let Err(why) = decode(&planned.output, &body)
        {
            return self.attempt_failed(flight, CODE_INTERNAL, format!("the answer is {why}"));
        }
        self.end_step(flight.step, StepState::Succeeded, String::new(), Some(body));
    }

    /// A call or a stream failed.
    pub(super) fn failed(&mut self, call: CallId, code: i32, message: String) {
        let Some(flight) = self.flights.remove(&call) else { return };
        match self.steps[flight.step].work {
            Work::Source(_) => self.interrupted(flight.step, code, message),
            Work::Call(_) | Work::Each(_) => self.attempt_failed(flight, code, message),
        }
    }

    fn attempt_failed(&mut self, flight: Flight, code: i32, message: String) {
        let Flight { step, item, attempt } = flight;
        let attempts = self.plan.steps[step].retry.attempts;
        if attempt < attempts && !is_final(code) {
            let failed = FailedAttempt { item, attempt, code, message };
            return self.outbox.failed(self.now.0, step, failed);
        }
        let item = item.map(|item| format!("item {item}: ")).unwrap_or_default();
        let code_name = code_name(code);
        let why = format!("{item}{code_name}: {message} (attempt {attempt} of {attempts})");
        self.fail_step(step, why);
    }

    /// Whether a source that broke off may be opened again.
    pub(super) fn may_reopen(&self, step: usize, failures: u32, code: i32) -> bool {
        failures < self.plan.steps[step].retry.attempts && !is_final(code)
    }

    /// A step failed for good, and with it the run.
    pub(super) fn fail_step(&mut self, step: usize, why: String) {
        let why = cut(why);
        let reason = self.failure(step, &why);
        self.end_step(step, StepState::Failed, why, None);
        self.end(RunState::Failed, reason);
    }

    fn failure(&self, step: usize, why: &str) -> String {
        format!("step `{}`: {why}", self.plan.steps[step].id)
    }

    /// Records the end of a step; the end of the run too when it was the last.
    pub(super) fn end_step(
        &mut self,
        step: usize,
        state: StepState,
        reason: String,
        output: Option<Bytes>,
    ) {
        self.steps[step].ending = true;
        self.to_end -= 1;
        let at_ms = self.now.0;
        self.outbox.push(Record::Step { at_ms, step: step as u32, state, reason, output });
        if self.to_end == 0 && state == StepState::Succeeded {
            self.end(RunState::Succeeded, String::new());
        }
    }

    /// Records the end of the run. Nothing new begins from here on.
    pub(super) fn end(&mut self, state: RunState, reason: String) {
        if self.mode == Mode::Live {
            self.mode = Mode::Closing;
            self.outbox.push(Record::Run { at_ms: self.now.0, state, reason });
        }
    }

    /// Waits until a time before a step is looked at again.
    pub(super) fn wake_at(&mut self, at: Time, step: usize) {
        self.timers.insert((at, step, None));
    }
}
