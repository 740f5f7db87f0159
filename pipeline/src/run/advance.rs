//! State into calls: what a live run does next. Nothing here changes what records
//! say; outcomes go to the outbox.

use std::sync::Arc;

use bytes::Bytes;

use super::steps::{ItemBody, Phase, Work};
use super::{Action, Call, CallId, Flight, Hold, Mode, RESULT_MAX_BYTES, Run, Wake};
use crate::input::BoundInput;
use crate::key::call_key;
use crate::message::{decode, message_value};
use crate::plan::StepKind;
use crate::record::Record;
use crate::state::StepState;

/// `INTERNAL`, for answers that are not what the method promised.
pub(super) const CODE_INTERNAL: i32 = 13;

/// `DEADLINE_EXCEEDED`, for what was taken back when its time was over.
pub(super) const CODE_DEADLINE: i32 = 4;

/// `INVALID_ARGUMENT`, for inputs that cannot be made.
const CODE_INVALID: i32 = 3;

/// `OUT_OF_RANGE`, for answers beyond a limit: another attempt would not change them.
const CODE_TOO_LARGE: i32 = 11;

impl Run {
    /// All records were replayed: makes anew what records do not say.
    pub(super) fn load(&mut self) {
        self.mode = if self.state.is_end() { Mode::Gone } else { Mode::Live };
        self.to_end = self.unended;
        self.winding = self.undo.is_some();
        self.shown = self.steps.iter().map(|step| step.counts).collect();
        self.shown_at = self.now;
        let now = self.now;
        for (index, step) in self.steps.iter_mut().enumerate() {
            step.ending = step.state == StepState::Failed;
            if let Work::Each(each) = &mut step.work {
                for (number, item) in each.items.iter().filter(|(_, item)| !item.failed) {
                    if item.not_before > now {
                        self.timers.insert((item.not_before, Wake::Item(index, *number)));
                    } else {
                        each.ready.push_back(*number);
                    }
                }
            }
        }
        self.look_again();
    }

    /// Looks at every step again, and at its deadline.
    pub(super) fn look_again(&mut self) {
        self.dirty.extend(0..self.steps.len());
        for (index, step) in self.steps.iter().enumerate() {
            if let (StepState::Running, Some(ms)) = (step.state, self.plan.steps[index].deadline_ms)
            {
                self.timers.insert((step.began.plus_ms(ms), Wake::Deadline(index)));
            }
        }
    }

    /// The records of the last append are on disk.
    pub(super) fn appended(&mut self) {
        let Some(records) = self.appending.take() else { return };
        let held = self.hold == Hold::Writing;
        if held {
            self.hold = Hold::No;
        }
        let done = std::mem::take(&mut self.asks_writing).into_iter();
        self.actions.extend(done.map(|ask| Action::Answer { ask, outcome: Ok(()) }));
        for record in records.iter() {
            if let Err(error) = self.apply(record) {
                // A bug of this crate, not of the run: the store has what it wrote.
                return self.evict(error.to_string());
            }
            self.moved |= !matches!(record, Record::Progress { .. });
        }
        if held && self.may_act() {
            // Deadlines that came meanwhile found the run held.
            self.look_again();
        }
    }

    /// Timers that are due.
    pub(super) fn fire_timers(&mut self) {
        while let Some((at, wake)) = self.timers.first().copied() {
            if at > self.now {
                return;
            }
            self.timers.pop_first();
            match wake {
                Wake::Deadline(step) => self.overdue(step),
                Wake::Undo => {
                    if let Some(undo) = &mut self.undo {
                        undo.work.busy = false;
                    }
                }
                Wake::Item(step, number) => {
                    if let Work::Each(each) = &mut self.steps[step].work
                        && each.items.contains_key(&number)
                    {
                        each.ready.push_back(number);
                    }
                    self.dirty.insert(step);
                }
                Wake::Step(step) => {
                    match &mut self.steps[step].work {
                        Work::Call(call) => call.busy = false,
                        Work::Source(source) if source.phase == Phase::Between => {
                            source.phase = Phase::Closed;
                        }
                        Work::Source(_) | Work::Each(_) => {}
                    }
                    self.dirty.insert(step);
                }
            }
        }
    }

    /// Lets every step that something happened to go as far as it can.
    pub(super) fn advance(&mut self) {
        if self.undo.is_some() && self.may_act() {
            return self.advance_undo();
        }
        while self.may_act()
            && let Some(step) = self.dirty.pop_first()
        {
            if self.steps[step].state != StepState::Running || self.steps[step].ending {
                continue;
            }
            match self.steps[step].left_out.clone() {
                None => {}
                Some((StepState::Failed, why)) => {
                    self.give_up(step, None, why);
                    continue;
                }
                Some((state, why)) => {
                    self.end_step(step, state, why, None);
                    continue;
                }
            }
            match &self.steps[step].work {
                Work::Call(_) => self.advance_call(step),
                Work::Source(_) => self.advance_source(step),
                Work::Each(_) => self.advance_each(step),
            }
        }
        self.settle();
    }

    pub(super) fn advance_call(&mut self, step: usize) {
        let Work::Call(call) = &mut self.steps[step].work else { return };
        if call.busy {
            return;
        }
        call.busy = true;
        if call.not_before > self.now {
            self.timers.insert((call.not_before, Wake::Step(step)));
            return;
        }
        let attempt = call.failures + 1;
        match self.body(step, None) {
            Ok(body) => {
                let flight = Flight { step, item: None, attempt, undo: false };
                self.send(flight, body, Action::Call);
            }
            Err(why) => self.give_up(step, None, why),
        }
    }

    fn advance_each(&mut self, step: usize) {
        let concurrency = self.plan.steps[step].kind.concurrency();
        loop {
            let Work::Each(each) = &mut self.steps[step].work else { return };
            if let Some(why) = each.problem.clone() {
                return self.give_up(step, None, why);
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
                    let flight = Flight { step, item: Some(number), attempt, undo: false };
                    self.send(flight, body, Action::Call);
                }
                // Not the fault of a service, but an attempt that failed all the same.
                Err(why) => {
                    let flight = Flight { step, item: Some(number), attempt, undo: false };
                    self.refuse(flight, CODE_INVALID, why);
                    if self.steps[step].ending {
                        return;
                    }
                }
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
        let (service, method, timeout_ms, idempotent) = match planned.undo.as_ref() {
            Some(undo) if flight.undo => {
                (&undo.service, &undo.method, undo.timeout_ms, undo.idempotent)
            }
            _ => (&planned.service, &planned.method, planned.timeout_ms, planned.idempotent),
        };
        // No id of a step has a slash.
        let undo = flight.undo.then(|| format!("{}/undo", planned.id));
        let name = undo.as_deref().unwrap_or(&planned.id);
        self.actions.push_back(action(Call {
            call,
            key: call_key(&self.id, name, flight.item, flight.attempt),
            step: flight.step,
            item: flight.item,
            attempt: flight.attempt,
            service: Arc::clone(service),
            method: Arc::clone(method),
            body,
            timeout_ms,
            idempotent,
        }));
    }

    /// A call was answered. Its place stays taken until the answer is on record.
    pub(super) fn answered(&mut self, call: CallId, body: Bytes) {
        let Some(flight) = self.flights.remove(&call) else { return };
        if flight.undo {
            return self.undo_answered(flight.step);
        }
        if let Some(item) = flight.item {
            return self.outbox.done(flight.step, item);
        }
        let planned = &self.plan.steps[flight.step];
        if body.len() > RESULT_MAX_BYTES {
            let why = format!(
                "the result has {} bytes; the most is {RESULT_MAX_BYTES}: let the method give a stream",
                body.len()
            );
            return self.refuse(flight, CODE_TOO_LARGE, why);
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
            _ if flight.undo => self.undo_failed(flight, code, message),
            Work::Source(_) => self.interrupted(flight.step, code, message),
            Work::Call(_) | Work::Each(_) => self.attempt_failed(flight, code, message),
        }
    }

    /// Records the end of a step, or that it has failed.
    pub(super) fn end_step(
        &mut self,
        step: usize,
        state: StepState,
        reason: String,
        output: Option<Bytes>,
    ) {
        self.steps[step].ending = true;
        self.to_end -= usize::from(state != StepState::Failed);
        self.warned |= state == StepState::Skipped;
        let at_ms = self.now.0;
        self.outbox.push(Record::Step { at_ms, step: step as u32, state, reason, output });
    }
}
