//! Stages: steps with `each` whose results are the items of other steps.
//!
//! ```text
//!  source ─▶ [items] stage ─ Record::Results ─▶ [buffer] stage ─▶ … ─▶ [buffer] sink
//!                      ▲                            │
//!                      └── makes a call only when there is room for its result
//! ```
//!
//! A result is on record together with the end of the item it is made from, and belongs
//! from then on to the stages behind. So nothing is lost or made twice between stages, and
//! a fast stage stands still when the buffer behind it is full.

use bytes::Bytes;

use super::steps::{ItemBody, Work};
use super::{READ_AHEAD_BYTES, Run};
use crate::state::StepState;

impl Run {
    /// Whether every step behind a stage has room for one result more, those that are
    /// being made counted in.
    pub(super) fn is_wanted(&self, step: usize) -> bool {
        let Work::Each(each) = &self.steps[step].work else { return true };
        if let Some(stream) = self.plan.steps[step].sends_to()
            && let Some(feed) = &self.steps[stream].feed
        {
            return feed.has_room(each.busy as usize);
        }
        self.plan.steps[step].takers.iter().all(|taker| {
            let (buffer, behind) = (self.plan.steps[*taker].buffer, &self.steps[*taker]);
            if let Some(feed) = &behind.feed {
                let ended = behind.state.is_end() && behind.state != StepState::Failed;
                return ended || feed.has_room(each.busy as usize);
            }
            let Work::Each(taken) = &behind.work else { return true };
            let ended = matches!(behind.state, StepState::Skipped | StepState::Omitted);
            let waiting = taken.waiting() + each.busy as usize;
            ended || (waiting < buffer && taken.bytes < READ_AHEAD_BYTES)
        })
    }

    /// Items are done, and these are their results.
    pub(super) fn apply_results(
        &mut self,
        index: usize,
        results: &[(u64, Bytes)],
    ) -> Result<(), String> {
        let numbers: Vec<u64> = results.iter().map(|(number, _)| *number).collect();
        self.apply_done(index, &numbers)?;
        if let Some(stream) = self.plan.steps[index].sends_to() {
            results.iter().for_each(|(_, message)| self.sent_to(stream, message));
            return Ok(());
        }
        for (number, result) in results {
            self.give(index, *number, std::slice::from_ref(result));
        }
        Ok(())
    }

    /// Hands items to the steps that take them.
    pub(super) fn give(&mut self, source: usize, first: u64, items: &[Bytes]) {
        let (live, plan) = (self.live(), std::sync::Arc::clone(&self.plan));
        for taker in &plan.steps[source].takers {
            if plan.steps[*taker].feed.is_some() {
                self.feed_items(*taker, first, items);
                continue;
            }
            let step = &mut self.steps[*taker];
            if matches!(step.state, StepState::Skipped | StepState::Omitted) {
                continue;
            }
            step.counts.items += items.len() as u64;
            let Work::Each(each) = &mut step.work else { continue };
            for (number, item) in (first..).zip(items) {
                each.add(number, ItemBody::Message(item.clone()));
                if live && !each.batched {
                    each.ready.push_back(number);
                }
            }
            self.dirty.insert(*taker);
            if live {
                self.measure_fill(*taker);
            }
        }
    }
}
