//! State into calls: what a live run does next. Nothing here changes what records
//! say; outcomes go to the outbox.

use std::sync::Arc;

use bytes::Bytes;
use minijinja::Value;

use super::scope::Subject;
use super::steps::{ItemBody, Phase, Work};
use super::{Action, Call, CallId, Flight, Hold, Mode, RESULT_MAX_BYTES, Run, Wake};
use crate::input::BoundInput;
use crate::key::call_key;
use crate::message::{decode, message_value};
use crate::record::Record;
use crate::state::StepState;

/// `INTERNAL`, for answers that are not what the method promised.
pub(super) const CODE_INTERNAL: i32 = 13;

/// `DEADLINE_EXCEEDED`, for what was taken back when its time was over.
pub(super) const CODE_DEADLINE: i32 = 4;

/// `UNAVAILABLE`, for calls whose worker was lost, among others.
pub(super) const CODE_UNAVAILABLE: i32 = 14;

/// `INVALID_ARGUMENT`, for inputs that cannot be made.
pub(super) const CODE_INVALID: i32 = 3;

/// `OUT_OF_RANGE`, for answers beyond a limit: another attempt would not change them.
pub(super) const CODE_TOO_LARGE: i32 = 11;

impl Run {
    /// All records were replayed: makes anew what records do not say.
    pub(super) fn load(&mut self) {
        self.mode = if self.state.is_end() { Mode::Gone } else { Mode::Live };
        self.to_end = self.unended;
        self.winding = self.undo.is_some();
        self.shown = self.steps.iter().map(|step| step.counts).collect();
        self.shown_at = self.now;
        self.measure_all();
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
        if let Some((by, epoch)) = self.owner.take().filter(|_| self.mode == Mode::Live) {
            self.outbox.push(Record::Owner { at_ms: self.now.0, by, epoch });
        }
        if self.mode == Mode::Live {
            self.recover_feeds();
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
                Wake::Heartbeat(step) => self.check_heartbeat(step),
                Wake::Report(step) => self.record_report(step),
                Wake::Batch(step) => {
                    self.dirty.insert(step);
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
                        Work::Wait | Work::Source(_) | Work::Each(_) => {}
                    }
                    self.dirty.insert(step);
                }
            }
        }
    }

    /// Lets every step that something happened to go as far as it can.
    pub(super) fn advance(&mut self) {
        self.advance_start();
        if self.undo.is_some() && self.may_act() {
            return self.advance_undo();
        }
        while self.may_act()
            && let Some(step) = self.dirty.pop_first()
        {
            self.advance_step(step);
        }
        self.give_places();
        self.settle();
    }

    /// Lets a step go as far as it can.
    pub(super) fn advance_step(&mut self, step: usize) {
        if self.steps[step].state != StepState::Running || self.steps[step].ending {
            return;
        }
        match self.steps[step].left_out.clone() {
            None => {}
            Some((StepState::Failed, why)) => return self.give_up(step, None, why),
            Some((state, why)) => return self.end_step(step, state, why, None),
        }
        match &self.steps[step].work {
            Work::Call(_) => self.advance_call(step),
            Work::Wait => self.advance_wait(step),
            Work::Source(_) => self.advance_source(step),
            Work::Each(_) => self.advance_each(step),
        }
    }

    pub(super) fn advance_call(&mut self, step: usize) {
        let Work::Call(call) = &mut self.steps[step].work else { return };
        if call.busy {
            return;
        }
        if call.not_before > self.now {
            call.busy = true;
            self.timers.insert((call.not_before, Wake::Step(step)));
            return;
        }
        let attempt = call.attempts() + 1;
        if !self.may_call(step) {
            return;
        }
        if let Work::Call(call) = &mut self.steps[step].work {
            call.busy = true;
        }
        match self.body(step, None) {
            Ok(body) => {
                let flight = Flight { step, item: None, attempt, undo: false, stream: false };
                if self.plan.steps[step].sends_to().is_some() {
                    return self.take_answer(flight, body);
                }
                self.send(flight, body, Action::Call);
            }
            Err(why) => self.give_up(step, None, why),
        }
    }

    fn advance_each(&mut self, step: usize) {
        let concurrency = self.plan.steps[step].kind.concurrency();
        if let Some(batch) = self.plan.steps[step].batch {
            self.cut_batches(step, batch);
        }
        loop {
            let Work::Each(each) = &mut self.steps[step].work else { return };
            if let Some(why) = each.problem.clone() {
                return self.give_up(step, None, why);
            }
            if each.complete && each.open == 0 {
                return self.end_step(step, StepState::Succeeded, String::new(), None);
            }
            if each.busy >= concurrency || !self.is_wanted(step) {
                return;
            }
            let Work::Each(each) = &mut self.steps[step].work else { return };
            if each.ready.is_empty() || !self.may_call(step) {
                return;
            }
            let Work::Each(each) = &mut self.steps[step].work else { return };
            let Some(number) = each.ready.pop_front() else { return };
            let Some(item) = each.items.get_mut(&number) else { continue };
            let (attempt, body) = (item.failures + 1, item.body.clone());
            let again = std::mem::take(&mut item.again);
            each.again -= if again { body.count() } else { 0 };
            each.busy += 1;
            each.flying += body.count();
            // It does not wait any more: there is room for another one.
            self.touch_source(step);
            match self.body(step, Some((number, body))) {
                Ok(body) => {
                    let flight =
                        Flight { step, item: Some(number), attempt, undo: false, stream: false };
                    if self.plan.steps[step].sends_to().is_some() {
                        self.take_answer(flight, body);
                        continue;
                    }
                    self.send(flight, body, Action::Call);
                }
                // Not the fault of a service, but an attempt that failed all the same.
                Err(why) => {
                    let flight =
                        Flight { step, item: Some(number), attempt, undo: false, stream: false };
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
            (BoundInput::Message(_) | BoundInput::Value(..) | BoundInput::Json(_), _) => {}
        }
        let subject = match item {
            Some((index, ItemBody::Batch(bodies))) => {
                let values: Result<Vec<_>, _> =
                    bodies.iter().map(|body| self.item_value(step, body)).collect();
                Some(Subject { name: "items", value: values?.into(), index })
            }
            Some((index, body)) => {
                Some(Subject { name: "item", value: self.item_value(step, &body)?, index })
            }
            None => None,
        };
        let scope = match (&planned.progress, &planned.feed) {
            (Some(_), None) => self.scope.with("progress", self.progress_value(step)?),
            _ => self.scope.value(subject),
        };
        planned.input.encode(&scope).map_err(|error| error.to_string())
    }

    /// An item as expressions see it; undefined when none looks at it.
    fn item_value(&self, step: usize, body: &ItemBody) -> Result<Value, String> {
        let planned = &self.plan.steps[step];
        Ok(match (body, &planned.item) {
            (ItemBody::Element(element), _) => element.clone(),
            (ItemBody::Message(body), Some(item)) if planned.decodes_item => {
                message_value(decode(item, body)?)
            }
            (ItemBody::Message(_) | ItemBody::Batch(_), _) => Value::UNDEFINED,
        })
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
            preferred: planned.preferred.clone().filter(|_| !flight.undo),
            method: Arc::clone(method),
            schema: None,
            body,
            takes: planned.feed.is_some() && !flight.undo,
            timeout_ms,
            idempotent,
        }));
    }

    /// A call was answered. Its place stays taken until the answer is on record.
    pub(super) fn answered(&mut self, call: CallId, body: Bytes) {
        let Some(flight) = self.flights.remove(call) else { return };
        match flight.undo {
            true => self.undo_answered(flight.step),
            false => self.take_answer(flight, body),
        }
    }

    /// What an attempt came to goes on its way to disk.
    fn take_answer(&mut self, flight: Flight, body: Bytes) {
        let planned = &self.plan.steps[flight.step];
        let kept = !planned.takers.is_empty() || planned.sends_to().is_some();
        if let Some(item) = flight.item.filter(|_| !kept) {
            return self.outbox.done(flight.step, item);
        }
        if body.len() > RESULT_MAX_BYTES {
            let why = format!(
                "the result has {} bytes; the most is {RESULT_MAX_BYTES} (RESULT_MAX_BYTES): let the method give a stream",
                body.len()
            );
            return self.refuse(flight, CODE_TOO_LARGE, why);
        }
        if let Some(item) = flight.item {
            return self.outbox.result(flight.step, item, body);
        }
        if planned.poll.is_some() {
            if self.asks_again(flight, &body) {
                return;
            }
        } else if planned.output_is_decoded
            && let Err(why) = planned.value(&body)
        {
            return self.attempt_failed(flight, CODE_INTERNAL, format!("the answer is {why}"));
        }
        self.end_step(flight.step, StepState::Succeeded, String::new(), Some(body));
    }

    /// A call or a stream failed.
    pub(super) fn failed(&mut self, call: CallId, code: i32, message: String) {
        let Some(flight) = self.flights.remove(call) else { return };
        match self.steps[flight.step].work {
            _ if flight.undo => self.undo_failed(flight, code, message),
            Work::Source(_) => self.interrupted(flight.step, code, message),
            Work::Call(_) | Work::Wait | Work::Each(_) => {
                self.attempt_failed(flight, code, message)
            }
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
