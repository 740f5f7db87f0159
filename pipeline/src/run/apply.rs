//! Records into state: the one function that a replay and a live run share.
//!
//! Every `match` arm first checks that the record can follow what came before, so a
//! journal that does not belong to the plan, or is broken, is an error with words
//! and never a wrong run.

use std::sync::Arc;

use minijinja::value::ValueKind;

use super::outbox::count_end;
use super::steps::{EachWork, ItemBody, Phase, StepRun, Work};
use super::{Action, Mode, Run, Time, Wake};
use crate::failure::OnFailure;
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
        self.at = record.at().unwrap_or(self.at);
        match record {
            Record::Run { state, reason, .. } => self.apply_run(*state, reason),
            Record::Progress { .. } => Ok(()),
            Record::Opened { step, attempt } => {
                let index = self.open_step(*step)?;
                let source = source_of(&mut self.steps[index])?;
                source.attempts = *attempt;
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

    /// A step that has failed begins anew, with all its attempts.
    fn rescue(&mut self, index: usize, not_before: Time) {
        let (live, now) = (self.live(), self.now);
        self.failed -= 1;
        let step = &mut self.steps[index];
        (step.state, step.ending) = (StepState::Running, false);
        step.began = not_before;
        match &mut step.work {
            Work::Call(call) => {
                (call.since, call.not_before, call.busy) = (0, not_before, false);
                step.counts.failed = 0;
            }
            Work::Source(source) => {
                (source.failures, source.not_before) = (0, not_before);
                source.phase = Phase::Closed;
                step.counts.failed = 0;
            }
            Work::Each(each) => {
                for (number, item) in each.items.iter_mut().filter(|(_, item)| item.failed) {
                    (item.since, item.failed, item.not_before) = (0, false, not_before);
                    match live && not_before > now {
                        true => {
                            self.timers.insert((not_before, Wake::Item(index, *number)));
                        }
                        false if live => each.ready.push_back(*number),
                        false => {}
                    }
                }
                step.counts.failed = each.skipped;
            }
        }
        if let Some(ms) = self.plan.steps[index].deadline_ms.filter(|_| live) {
            self.timers.insert((not_before.plus_ms(ms), Wake::Deadline(index)));
        }
        self.dirty.insert(index);
    }

    fn apply_interruption(
        &mut self,
        index: usize,
        code: i32,
        message: &str,
        last: bool,
    ) -> Result<(), String> {
        let retry = self.plan.steps[index].retry;
        let (chance, at) = (self.chance(index, None, 0), self.at);
        let step = &mut self.steps[index];
        step.counts.retries += u64::from(!last);
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
                    (0..self.steps.len()).for_each(|step| self.close(step));
                }
            }
            _ => {}
        }
        if state.is_end() && self.live() {
            let flights = std::mem::take(&mut self.flights);
            self.actions.extend(flights.into_keys().map(Action::Drop));
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

    /// A step whose turn has come. What it needs is on record, so a list is made from
    /// the same values again after a replay.
    fn begin(&mut self, index: usize) {
        // A step may have been skipped before its turn, and none begins while what the
        // run did is taken back.
        if self.steps[index].state != StepState::Waiting || self.undo.is_some() {
            return;
        }
        self.steps[index].state = StepState::Running;
        self.steps[index].began = self.at;
        self.steps[index].left_out = self.left_out(index);
        self.dirty.insert(index);
        let plan = Arc::clone(&self.plan);
        if let Some(ms) = plan.steps[index].deadline_ms.filter(|_| self.live()) {
            self.timers.insert((self.at.plus_ms(ms), Wake::Deadline(index)));
        }
        if self.steps[index].left_out.is_some()
            && !matches!(plan.steps[index].kind, StepKind::Source { .. })
        {
            return;
        }
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

    /// Why a step whose turn has come does not run: what it reads is not there, or a
    /// condition is not true. What conditions read is on record, so a replay finds the same.
    fn left_out(&self, index: usize) -> Option<(StepState, String)> {
        let gone = |step: &&usize| {
            matches!(self.steps[**step].state, StepState::Skipped | StepState::Omitted)
        };
        if let Some(read) = self.plan.steps[index].reads.iter().find(gone) {
            let (id, state) = (&self.plan.steps[*read].id, self.steps[*read].state);
            let why = format!("it reads the output of `{id}`, which was {}", state.name());
            return Some((state, why));
        }
        let when = &self.plan.steps[index].when;
        let scope = if when.is_empty() { return None } else { self.scope.value(None) };
        when.iter().find_map(|(condition, place)| {
            let (source, place) = (condition.source(), &place.path);
            match condition.evaluate(&scope) {
                Ok(value) if value.kind() == ValueKind::Bool => (!value.is_true())
                    .then(|| (StepState::Omitted, format!("its condition `{source}` is false"))),
                Ok(value) => {
                    let why = format!("`{source}` is {} and not true or false", words(&value));
                    Some((StepState::Failed, format!("{place}: {why}")))
                }
                Err(error) => Some((StepState::Failed, format!("{place}: {error}"))),
            }
        })
    }

    /// Hands items to the steps that take them.
    fn give(&mut self, source: usize, first: u64, items: &[bytes::Bytes]) {
        let live = self.live();
        let plan = Arc::clone(&self.plan);
        let StepKind::Source { takers } = &plan.steps[source].kind else { return };
        for taker in takers {
            let step = &mut self.steps[*taker];
            if matches!(step.state, StepState::Skipped | StepState::Omitted) {
                continue;
            }
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

    fn apply_failure(&mut self, index: usize, failed: &FailedAttempt) -> Result<(), String> {
        let (live, at, planned) = (self.live(), self.at, &self.plan.steps[index]);
        let chance = self.chance(index, failed.item, failed.attempt);
        let step = &mut self.steps[index];
        match failed.last {
            true => step.counts.failed += 1,
            false => step.counts.retries += 1,
        }
        step.error = format!("{}: {}", code_name(failed.code), failed.message);
        let (failures, since, not_before) = match (&mut step.work, failed.item) {
            (Work::Call(call), None) => {
                call.busy = live;
                (&mut call.failures, &mut call.since, &mut call.not_before)
            }
            (Work::Each(each), Some(number)) => {
                let Some(item) = each.items.get_mut(&number) else {
                    return Err(format!("item {number} of step {index} was not open"));
                };
                if live {
                    each.busy = each.busy.saturating_sub(1);
                }
                item.failed = failed.last;
                (&mut item.failures, &mut item.since, &mut item.not_before)
            }
            _ => return Err(format!("no attempt of step {index} can fail so")),
        };
        (*failures, *since) = (*failures + 1, *since + 1);
        if *failures != failed.attempt {
            return Err(format!("attempt {} failed as failure {failures}", failed.attempt));
        }
        *not_before = at.plus_ms(planned.retry.wait_ms(*since, chance));
        let not_before = *not_before;
        if failed.last {
            if let (Work::Each(each), OnFailure::Skip, Some(item)) =
                (&mut step.work, planned.on_failure, failed.item)
            {
                each.skip(item);
                self.warned = true;
                self.touch_source(index);
            }
        } else if live {
            let wake = match failed.item {
                Some(item) => Wake::Item(index, item),
                None => Wake::Step(index),
            };
            self.timers.insert((not_before, wake));
        }
        self.dirty.insert(index);
        Ok(())
    }

    /// Something that differs from call to call and is the same after a replay.
    pub(super) fn chance(&self, index: usize, item: Option<u64>, attempt: u32) -> u8 {
        call_key(&self.id, &self.plan.steps[index].id, item, attempt)[0]
    }

    /// The same for the tries of the run.
    pub(super) fn chance_of_try(&self) -> u8 {
        call_key(&self.id, "", None, self.tries)[0]
    }

    /// The outcome of a step's call is known.
    fn close_undo(&mut self, index: usize) {
        if let Some(undo) = &mut self.undo {
            undo.open.remove(&index);
        }
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
        let before = std::mem::replace(&mut step.state, state);
        self.failed -= usize::from(before == StepState::Failed);
        self.warned |= state == StepState::Skipped;
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
        self.close_undo(index);
        for read in &planned.reads {
            self.readers[*read] -= 1;
            if self.readers[*read] == 0 {
                self.scope.remove(&plan.steps[*read].id);
                self.outputs.remove(read);
            }
        }
        if state == StepState::Succeeded {
            self.finished.push(index);
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
                if before == StepState::Waiting {
                    self.one_less(*taker);
                }
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
