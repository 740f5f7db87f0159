//! Steps that wait: for a signal, for a time; and steps that ask again.
//!
//! ```text
//!  Command::Signal ─▶ Record::Signal ─▶ kept, in order ─▶ the step that waits takes the first
//!  a time ─▶ poll_timeout ─▶ Event::Timeout ─▶ the step ends
//!  an answer that is not what is waited for ─▶ Record::Polled ─▶ a timer ─▶ the next call
//! ```
//!
//! Signals that come before anybody waits are kept, a bounded number. Nothing here
//! holds a call or a thread.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use minijinja::value::ValueKind;

use super::advance::{CODE_INTERNAL, CODE_INVALID};
use super::steps::{CallWork, Work};
use super::{Flight, Run, Time, Wake};
use crate::message::words;
use crate::moment;
use crate::plan::PlannedOwn;
use crate::problem::suggest;
use crate::record::Record;
use crate::state::StepState;
use crate::wait::Until;

/// How many signals of a run are kept that no step has taken.
pub const SIGNALS_KEPT_MAX: usize = 100;

/// The largest payload of a signal, in bytes.
pub const SIGNAL_MAX_BYTES: usize = 256 << 10;

/// What a step that waits gives when there is nothing to give.
const NOTHING: &[u8] = b"null";

/// Signals that no step has taken.
#[derive(Debug, Default)]
pub(super) struct Signals {
    kept: BTreeMap<String, VecDeque<Bytes>>,
    /// Those of them that are given to steps whose end is on its way to disk.
    given: BTreeMap<String, usize>,
    /// Signals that are on their way to disk.
    coming: usize,
}

impl Run {
    /// Takes a signal from outside.
    pub(super) fn signal(&mut self, name: String, payload: Bytes) -> Result<(), String> {
        let names = self.plan.steps.iter().filter_map(|step| match &step.own {
            Some(PlannedOwn::Signal(name)) => Some(&**name),
            _ => None,
        });
        let names: Vec<&str> = names.collect();
        if !names.contains(&name.as_str()) {
            let near = suggest(&name, names.iter().copied());
            return Err(format!("no step of the run waits for a signal `{name}`{near}"));
        }
        if payload.len() > SIGNAL_MAX_BYTES {
            let bytes = payload.len();
            return Err(format!("the payload has {bytes} bytes; the most is {SIGNAL_MAX_BYTES}"));
        }
        crate::json::parse(&payload).map_err(|why| format!("the payload: {why}"))?;
        let kept: usize = self.signals.kept.values().map(VecDeque::len).sum();
        if kept + self.signals.coming >= SIGNALS_KEPT_MAX {
            return Err(format!("{SIGNALS_KEPT_MAX} signals are kept that no step has taken"));
        }
        self.signals.coming += 1;
        let payload = if payload.is_empty() { Bytes::from_static(NOTHING) } else { payload };
        self.outbox.push(Record::Signal { at_ms: self.now.0, name, payload });
        Ok(())
    }

    pub(super) fn apply_signal(&mut self, name: &str, payload: &Bytes) {
        self.signals.coming = self.signals.coming.saturating_sub(1);
        self.signals.kept.entry(name.to_owned()).or_default().push_back(payload.clone());
        for step in 0..self.steps.len() {
            if self.steps[step].state == StepState::Running {
                self.dirty.insert(step);
            }
        }
    }

    /// A step that waits for a signal has ended well: the signal is taken.
    pub(super) fn taken(&mut self, step: usize) {
        let Some(PlannedOwn::Signal(name)) = &self.plan.steps[step].own else { return };
        if let Some(kept) = self.signals.kept.get_mut(&**name) {
            kept.pop_front();
        }
        if let Some(given) = self.signals.given.get_mut(&**name) {
            *given = given.saturating_sub(1);
        }
    }

    /// Ends a step that waits when what it waits for has come.
    pub(super) fn advance_wait(&mut self, step: usize) {
        let plan = std::sync::Arc::clone(&self.plan);
        let due = match &plan.steps[step].own {
            Some(PlannedOwn::Signal(name)) => {
                let given = self.signals.given.entry(name.to_string()).or_default();
                let kept = self.signals.kept.get(&**name);
                let Some(payload) = kept.and_then(|kept| kept.get(*given)).cloned() else { return };
                *given += 1;
                return self.end_step(step, StepState::Succeeded, String::new(), Some(payload));
            }
            Some(PlannedOwn::For(ms)) => self.steps[step].began.plus_ms(*ms),
            Some(PlannedOwn::Until(Until::At(at))) => *at,
            Some(PlannedOwn::Until(Until::Expression(expression, place))) => {
                let value = expression.evaluate(&self.scope.value(None));
                let value = value.map_err(|error| error.to_string());
                match value.and_then(|value| moment::of_value(&value)) {
                    Ok(at) => at,
                    Err(why) => {
                        let why = format!("{}: `{}`: {why}", place.path, expression.source());
                        return self.give_up(step, None, why);
                    }
                }
            }
            Some(PlannedOwn::Run | PlannedOwn::Pipeline { .. } | PlannedOwn::Send(_)) | None => {
                return;
            }
        };
        match due > self.now {
            true => {
                self.timers.insert((due, Wake::Step(step)));
            }
            false => {
                let nothing = Some(Bytes::from_static(NOTHING));
                self.end_step(step, StepState::Succeeded, String::new(), nothing);
            }
        }
    }

    /// What to say when the time of a step is over.
    pub(super) fn overdue_words(&self, step: usize, ms: u64) -> String {
        match &self.plan.steps[step].own {
            Some(PlannedOwn::Signal(name)) => format!("no signal `{name}` came within {ms} ms"),
            _ => format!("the step's deadline of {ms} ms has passed"),
        }
    }

    /// Whether the answer of a step that polls is not what it waits for: then it is
    /// recorded, and the step asks again.
    pub(super) fn asks_again(&mut self, flight: Flight, body: &Bytes) -> bool {
        let planned = &self.plan.steps[flight.step];
        let Some(poll) = &planned.poll else { return false };
        let answer = match planned.value(body) {
            Ok(answer) => answer,
            Err(why) => {
                self.attempt_failed(flight, CODE_INTERNAL, format!("the answer is {why}"));
                return true;
            }
        };
        let place = &poll.place.path;
        let why = match poll.until.evaluate(&self.scope.with(&planned.id, answer)) {
            Ok(value) if value.kind() == ValueKind::Bool && value.is_true() => return false,
            Ok(value) if value.kind() == ValueKind::Bool && self.undo.is_some() => {
                format!("{place}: the run ends, and `{}` is false", poll.until.source())
            }
            Ok(value) if value.kind() == ValueKind::Bool => {
                let (at_ms, step) = (self.now.0, flight.step as u32);
                self.outbox.push(Record::Polled { at_ms, step, attempt: flight.attempt });
                return true;
            }
            Ok(value) => {
                let (source, words) = (poll.until.source(), words(&value));
                format!("{place}: `{source}` is {words} and not true or false")
            }
            Err(error) => format!("{place}: {error}"),
        };
        self.refuse(flight, CODE_INVALID, why);
        true
    }

    pub(super) fn apply_polled(&mut self, index: usize, attempt: u32) -> Result<(), String> {
        let (live, at) = (self.live(), self.at);
        let Some(poll) = &self.plan.steps[index].poll else {
            return Err(format!("step {index} does not poll"));
        };
        let Work::Call(call) = &mut self.steps[index].work else {
            return Err(format!("step {index} is no call"));
        };
        call.polls += 1;
        if call.attempts() != attempt {
            return Err(format!("answer {attempt} came as number {}", call.attempts()));
        }
        (call.polls_since, call.since, call.lost) = (call.polls_since + 1, 0, 0);
        call.not_before = at.plus_ms(poll.wait_ms(call.polls_since));
        call.busy = live;
        let not_before = call.not_before;
        if live {
            self.timers.insert((not_before, Wake::Step(index)));
        }
        self.dirty.insert(index);
        Ok(())
    }
}

impl CallWork {
    /// Attempts that have come to an end, on record.
    pub(super) fn attempts(&self) -> u32 {
        self.failures + self.polls
    }

    /// It begins anew, with all its attempts.
    pub(super) fn anew(&mut self, not_before: Time) {
        (self.since, self.lost, self.polls_since) = (0, 0, 0);
        (self.not_before, self.busy) = (not_before, false);
    }
}
