//! Records into state: the one function that a replay and a live run share.
//!
//! Every `match` arm first checks that the record can follow what came before, so a
//! journal that does not belong to the plan, or is broken, is an error with words
//! and never a wrong run.

use std::sync::Arc;

use super::outbox::count_end;
use super::steps::{EachWork, ItemBody, Phase, StepRun, Work};
use super::{Action, Mode, Run, Time};
use crate::key::{Fingerprint, call_key};
use crate::message::{decode, message_value, words};
use crate::plan::StepKind;
use crate::record::{FailedAttempt, Record};
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
        match record {
            Record::Run { state, reason, .. } => self.apply_run(*state, reason),
            Record::Progress { .. } => Ok(()),
            Record::Opened { step, attempt } => {
                let index = self.running(*step)?;
                let source = source_of(&mut self.steps[index])?;
                source.attempts = *attempt;
                if self.live() {
                    self.open(index);
                }
                Ok(())
            }
            Record::Interrupted { at_ms, step, code, message } => {
                let index = self.running(*step)?;
                self.apply_interruption(index, Time(*at_ms), *code, message)
            }
            Record::Items { step, first, items, fingerprint } => {
                let index = self.running(*step)?;
                self.apply_items(index, *first, items, *fingerprint)
            }
            Record::Done { step, items } => {
                let index = self.running(*step)?;
                self.apply_done(index, items)
            }
            Record::Failed { at_ms, step, attempts } => {
                let index = self.running(*step)?;
                attempts
                    .iter()
                    .try_for_each(|attempt| self.apply_failure(index, Time(*at_ms), attempt))
            }
            Record::Step { step, state, reason, output, .. } => {
                let index = self.running(*step)?;
                if !state.is_end() {
                    return Err(format!("a step does not end as {}", state.name()));
                }
                self.apply_end(index, *state, reason, output.as_ref())
            }
        }
    }

    fn apply_interruption(
        &mut self,
        index: usize,
        at: Time,
        code: i32,
        message: &str,
    ) -> Result<(), String> {
        let retry = self.plan.steps[index].retry;
        let chance = self.chance(index, None, 0);
        let step = &mut self.steps[index];
        step.counts.retries += 1;
        step.error = format!("{}: {message}", code_name(code));
        let source = source_of(step)?;
        source.failures += 1;
        source.not_before = at.plus_ms(retry.wait_ms(source.failures, chance));
        source.phase = Phase::Closed;
        self.dirty.insert(index);
        Ok(())
    }

    fn apply_items(
        &mut self,
        index: usize,
        first: u64,
        items: &[bytes::Bytes],
        fingerprint: Fingerprint,
    ) -> Result<(), String> {
        let step = &mut self.steps[index];
        let known = step.counts.items;
        if first != known {
            return Err(format!("items from {first} on, and {known} were read"));
        }
        let source = source_of(step)?;
        source.fingerprint = fingerprint;
        source.failures = 0;
        let bytes: usize = items.iter().map(bytes::Bytes::len).sum();
        source.unrecorded.0 = source.unrecorded.0.saturating_sub(items.len());
        source.unrecorded.1 = source.unrecorded.1.saturating_sub(bytes);
        step.counts.items += items.len() as u64;
        self.give(index, first, items);
        self.dirty.insert(index);
        Ok(())
    }

    fn apply_done(&mut self, index: usize, items: &[u64]) -> Result<(), String> {
        let live = self.live();
        let each = each_of(&mut self.steps[index])?;
        for item in items {
            if !each.remove(*item) {
                return Err(format!("item {item} of step {index} was not open"));
            }
        }
        if live {
            each.busy = each.busy.saturating_sub(items.len() as u32);
        }
        self.steps[index].counts.done += items.len() as u64;
        self.dirty.insert(index);
        self.touch_source(index);
        Ok(())
    }

    pub(super) fn live(&self) -> bool {
        matches!(self.mode, Mode::Live | Mode::Closing)
    }

    /// The index of a step that runs.
    fn running(&self, step: u32) -> Result<usize, String> {
        let index = step as usize;
        match self.steps.get(index) {
            Some(found) if found.state == StepState::Running => Ok(index),
            Some(found) => Err(format!("step {step} is {}", found.state.name())),
            None => Err(format!("it names step {step}, the pipeline has {}", self.steps.len())),
        }
    }

    fn apply_run(&mut self, state: RunState, reason: &str) -> Result<(), String> {
        let first = self.records == 1 && state == RunState::Recorded;
        if !first && !self.state.may_become(state) {
            return Err(format!("a {} run does not become {}", self.state.name(), state.name()));
        }
        self.state = state;
        self.reason = reason.to_owned();
        if state == RunState::Running {
            // Those that wait for nothing; they take along those that wait for them only.
            let free = |step: &usize| self.steps[*step].waiting == 0;
            let first: Vec<usize> = (0..self.steps.len()).filter(free).collect();
            first.into_iter().for_each(|step| self.begin(step));
        }
        if state.is_end() && self.live() {
            let flights = std::mem::take(&mut self.flights);
            self.actions.extend(flights.into_keys().map(Action::Drop));
            self.actions.push_back(Action::Ended(state));
            self.mode = Mode::Gone;
        }
        Ok(())
    }

    /// A step whose turn has come. What it needs is on record, so a list is made from
    /// the same values again after a replay.
    fn begin(&mut self, index: usize) {
        self.steps[index].state = StepState::Running;
        self.dirty.insert(index);
        let plan = Arc::clone(&self.plan);
        let (list, place) = match &plan.steps[index].kind {
            StepKind::EachElement { list, place, .. } => (list, place),
            StepKind::Source { takers } => {
                return takers.iter().for_each(|taker| self.one_less(*taker));
            }
            StepKind::Call | StepKind::EachItem { .. } => return,
        };
        let scope = self.scope.value(None);
        let elements = list.evaluate(&scope).map_err(|error| error.to_string());
        let elements = elements.and_then(|value| {
            let elements = value
                .try_iter()
                .map_err(|_| format!("`{}` is {} and no list", list.source(), words(&value)))?;
            Ok(elements.collect::<Vec<_>>())
        });
        let (live, step) = (self.live(), &mut self.steps[index]);
        let Work::Each(each) = &mut step.work else { return };
        match elements {
            Ok(elements) => {
                step.counts.items = elements.len() as u64;
                step.counts.items_complete = true;
                each.complete = true;
                for (number, element) in elements.into_iter().enumerate() {
                    each.add(number as u64, ItemBody::Element(element));
                }
                if live {
                    each.ready.extend(each.items.keys());
                }
            }
            Err(why) => each.problem = Some(format!("{place}: {why}")),
        }
    }

    /// Hands items to the steps that take them.
    fn give(&mut self, source: usize, first: u64, items: &[bytes::Bytes]) {
        let live = self.live();
        let plan = Arc::clone(&self.plan);
        let StepKind::Source { takers } = &plan.steps[source].kind else { return };
        for taker in takers {
            let step = &mut self.steps[*taker];
            step.counts.items += items.len() as u64;
            let Work::Each(each) = &mut step.work else { continue };
            for (number, item) in (first..).zip(items) {
                each.add(number, ItemBody::Message(item.clone()));
                if live {
                    each.ready.push_back(number);
                }
            }
            self.dirty.insert(*taker);
        }
    }

    /// The source of a step may have room again.
    fn touch_source(&mut self, index: usize) {
        if let StepKind::EachItem { source, .. } = self.plan.steps[index].kind {
            self.dirty.insert(source);
        }
    }

    fn apply_failure(
        &mut self,
        index: usize,
        at: Time,
        failed: &FailedAttempt,
    ) -> Result<(), String> {
        let (live, retry) = (self.live(), self.plan.steps[index].retry);
        let chance = self.chance(index, failed.item, failed.attempt);
        let step = &mut self.steps[index];
        step.counts.retries += 1;
        step.error = format!("{}: {}", code_name(failed.code), failed.message);
        let (failures, not_before) = match (&mut step.work, failed.item) {
            (Work::Call(call), None) => {
                call.busy = live;
                (&mut call.failures, &mut call.not_before)
            }
            (Work::Each(each), Some(number)) => {
                let Some(item) = each.items.get_mut(&number) else {
                    return Err(format!("item {number} of step {index} was not open"));
                };
                if live {
                    each.busy = each.busy.saturating_sub(1);
                }
                (&mut item.failures, &mut item.not_before)
            }
            _ => return Err(format!("no attempt of step {index} can fail so")),
        };
        *failures += 1;
        if *failures != failed.attempt {
            return Err(format!("attempt {} failed as failure {failures}", failed.attempt));
        }
        *not_before = at.plus_ms(retry.wait_ms(*failures, chance));
        if live {
            self.timers.insert((*not_before, index, failed.item));
        }
        self.dirty.insert(index);
        Ok(())
    }

    /// Something that differs from call to call and is the same after a replay.
    fn chance(&self, index: usize, item: Option<u64>, attempt: u32) -> u8 {
        call_key(&self.id, &self.plan.steps[index].id, item, attempt)[0]
    }

    fn apply_end(
        &mut self,
        index: usize,
        state: StepState,
        reason: &str,
        output: Option<&bytes::Bytes>,
    ) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        let planned = &plan.steps[index];
        let step = &mut self.steps[index];
        step.state = state;
        count_end(&mut step.counts, state, output.is_some());
        if !reason.is_empty() {
            step.error = reason.to_owned();
        }
        if let Work::Each(each) = &mut step.work {
            if state == StepState::Succeeded && !(each.complete && each.items.is_empty()) {
                return Err(format!("step {index} succeeded with items open"));
            }
            *each = EachWork::default();
        }
        self.unended -= 1;
        for read in &planned.reads {
            self.readers[*read] -= 1;
            if self.readers[*read] == 0 {
                self.scope.remove(&plan.steps[*read].id);
                self.outputs.remove(read);
            }
        }
        if state != StepState::Succeeded {
            return Ok(());
        }
        if let Some(body) = output.filter(|_| self.readers[index] > 0) {
            if planned.output_is_decoded {
                let message = decode(&planned.output, body)?;
                self.scope.add(&planned.id, message_value(message));
            }
            self.outputs.insert(index, body.clone());
        }
        if let StepKind::Source { takers } = &planned.kind {
            for taker in takers {
                self.steps[*taker].counts.items_complete = true;
                if let Work::Each(each) = &mut self.steps[*taker].work {
                    each.complete = true;
                }
                self.dirty.insert(*taker);
            }
        }
        planned.unblocks.iter().for_each(|next| self.one_less(*next));
        Ok(())
    }

    /// A step waits for one thing less.
    fn one_less(&mut self, step: usize) {
        self.steps[step].waiting -= 1;
        if self.steps[step].waiting == 0 {
            self.begin(step);
        }
    }
}

fn source_of(step: &mut StepRun) -> Result<&mut super::steps::SourceWork, String> {
    match &mut step.work {
        Work::Source(source) => Ok(source),
        Work::Call(_) | Work::Each(_) => Err("the step is no source".to_owned()),
    }
}

fn each_of(step: &mut StepRun) -> Result<&mut EachWork, String> {
    match &mut step.work {
        Work::Each(each) => Ok(each),
        Work::Call(_) | Work::Source(_) => Err("the step has no items".to_owned()),
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
