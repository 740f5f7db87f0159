//! What became of calls and items, from records into the state of their step. A part of
//! `apply`.

use std::sync::Arc;

use super::apply::code_name;
use super::outbox::count_end;
use super::steps::{EachWork, Phase, SourceWork, StepRun, Work};
use super::{Run, Time, Wake};
use crate::failure::OnFailure;
use crate::key::{Fingerprint, call_key};
use crate::record::FailedAttempt;
use crate::state::StepState;

impl Run {
    pub(super) fn apply_interruption(
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
        (source.phase, source.opened) = (Phase::Closed, false);
        self.dirty.insert(index);
        Ok(())
    }

    pub(super) fn apply_items(
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

    pub(super) fn apply_done(&mut self, index: usize, items: &[u64]) -> Result<(), String> {
        let live = self.live();
        let each = each_of(&mut self.steps[index])?;
        let mut done = 0;
        for item in items {
            let Some(size) = each.remove(*item) else {
                return Err(format!("item {item} of step {index} was not open"));
            };
            done += size;
        }
        if live {
            each.busy = each.busy.saturating_sub(items.len() as u32);
            each.flying = each.flying.saturating_sub(done as usize);
        }
        self.steps[index].counts.done += done;
        self.dirty.insert(index);
        self.touch_source(index);
        Ok(())
    }

    pub(super) fn apply_failure(
        &mut self,
        index: usize,
        failed: &FailedAttempt,
    ) -> Result<(), String> {
        let (live, at, planned) = (self.live(), self.at, &self.plan.steps[index]);
        let chance = self.chance(index, failed.item, failed.attempt);
        let step = &mut self.steps[index];
        match failed.last {
            true => step.counts.failed += step.size(failed.item),
            false => step.counts.retries += 1,
        }
        step.error = format!("{}: {}", code_name(failed.code), failed.message);
        let (failures, since, lost, not_before, polls) = match (&mut step.work, failed.item) {
            (Work::Call(call), None) => {
                call.busy = live;
                let polls = call.polls;
                (&mut call.failures, &mut call.since, &mut call.lost, &mut call.not_before, polls)
            }
            (Work::Each(each), Some(number)) => {
                let Some(item) = each.items.get_mut(&number) else {
                    return Err(format!("item {number} of step {index} was not open"));
                };
                if live {
                    each.busy = each.busy.saturating_sub(1);
                    each.flying = each.flying.saturating_sub(item.body.count());
                    each.again += if item.again { 0 } else { item.body.count() };
                    item.again = true;
                }
                item.failed = failed.last;
                (&mut item.failures, &mut item.since, &mut item.lost, &mut item.not_before, 0)
            }
            _ => return Err(format!("no attempt of step {index} can fail so")),
        };
        (*failures, *since) = (*failures + 1, *since + 1);
        *lost += u32::from(failed.lost);
        if *failures + polls != failed.attempt {
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

    pub(super) fn apply_end(
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
            if state == StepState::Succeeded && !(each.complete && each.open == 0) {
                return Err(format!("step {index} succeeded with items open"));
            }
            *each = EachWork { batched: each.batched, ..EachWork::default() };
        }
        if let Some(feed) = &mut step.feed {
            feed.clear();
        }
        self.unended -= 1;
        self.close_undo(index);
        self.touch_open_streams();
        // Who gives it items need not wait for room in it any more.
        self.touch_source(index);
        // A step of the last phase may have to read it again.
        for read in planned.reads.iter().filter(|_| !planned.finalize) {
            self.readers[*read] -= 1;
            if self.readers[*read] == 0 {
                self.scope.remove(&plan.steps[*read].id);
                self.outputs.remove(read);
            }
        }
        if state == StepState::Succeeded {
            self.finished.push(index);
            self.taken(index);
        }
        if let Some(body) = output.filter(|_| self.readers[index] > 0) {
            if planned.output_is_decoded {
                self.scope.add(&planned.id, planned.value(body)?);
            }
            self.outputs.insert(index, body.clone());
        }
        for taker in &planned.takers {
            if before == StepState::Waiting {
                self.one_less(*taker);
            }
            self.steps[*taker].counts.items_complete = true;
            if let Work::Each(each) = &mut self.steps[*taker].work {
                each.complete = true;
            }
            if let Some(feed) = &mut self.steps[*taker].feed {
                feed.end();
            }
            self.dirty.insert(*taker);
        }
        if before == StepState::Waiting {
            planned.unblocks_at_begin.iter().for_each(|next| self.one_less(*next));
        }
        if let (Some(stream), Some(message)) = (planned.sends_to(), output) {
            self.sent_to(stream, message);
        }
        planned.unblocks.iter().for_each(|next| self.one_less(*next));
        Ok(())
    }

    /// A step that has failed begins anew, with all its attempts.
    pub(super) fn rescue(&mut self, index: usize, not_before: Time) {
        let (live, now) = (self.live(), self.now);
        self.failed -= 1;
        let step = &mut self.steps[index];
        (step.state, step.ending) = (StepState::Running, false);
        step.began = not_before;
        match &mut step.work {
            Work::Call(call) => {
                call.anew(not_before);
                step.counts.failed = 0;
            }
            Work::Wait => step.counts.failed = 0,
            Work::Source(source) => {
                (source.failures, source.not_before) = (0, not_before);
                source.phase = Phase::Closed;
                step.counts.failed = 0;
            }
            Work::Each(each) => {
                for (number, item) in each.items.iter_mut().filter(|(_, item)| item.failed) {
                    (item.since, item.lost) = (0, 0);
                    (item.failed, item.not_before) = (false, not_before);
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

    /// Something that differs from call to call and is the same after a replay.
    pub(super) fn chance(&self, index: usize, item: Option<u64>, attempt: u32) -> u8 {
        call_key(&self.id, &self.plan.steps[index].id, item, attempt)[0]
    }

    /// The same for the tries of the run.
    pub(super) fn chance_of_try(&self) -> u8 {
        call_key(&self.id, "", None, self.tries)[0]
    }

    /// The outcome of a step's call is known.
    pub(super) fn close_undo(&mut self, index: usize) {
        if let Some(undo) = &mut self.undo {
            undo.open.remove(&index);
        }
    }
}

pub(super) fn source_of(step: &mut StepRun) -> Result<&mut SourceWork, String> {
    match &mut step.work {
        Work::Source(source) => Ok(source),
        Work::Call(_) | Work::Wait | Work::Each(_) => Err("the step is no source".to_owned()),
    }
}

pub(super) fn each_of(step: &mut StepRun) -> Result<&mut EachWork, String> {
    match &mut step.work {
        Work::Each(each) => Ok(each),
        Work::Call(_) | Work::Wait | Work::Source(_) => Err("the step has no items".to_owned()),
    }
}
