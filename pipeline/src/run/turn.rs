//! A step's turn comes: whether it runs, and with which items. A part of `apply`: what is
//! decided here follows from records alone, so a replay decides the same.

use std::sync::Arc;

use minijinja::value::ValueKind;

use super::steps::{ItemBody, Work};
use super::{Run, Wake};
use crate::message::words;
use crate::plan::StepKind;
use crate::state::{RunState, StepState};

impl Run {
    /// A step whose turn has come. What it needs is on record, so a list is made from
    /// the same values again after a replay.
    pub(super) fn begin(&mut self, index: usize) {
        // A step may have been skipped before its turn, and none begins before its run does
        // (what it waits for was skipped), or while what the run did is taken back.
        let early = matches!(self.state, RunState::Recorded | RunState::Scheduled);
        if self.steps[index].state != StepState::Waiting || early || self.undo.is_some() {
            return;
        }
        self.steps[index].state = StepState::Running;
        self.steps[index].began = self.at;
        self.steps[index].left_out = self.left_out(index);
        self.dirty.insert(index);
        if self.live() {
            self.measure_from(index, self.now);
        }
        let plan = Arc::clone(&self.plan);
        if let Some(ms) = plan.steps[index].deadline_ms.filter(|_| self.live()) {
            self.timers.insert((self.at.plus_ms(ms), Wake::Deadline(index)));
        }
        // They begin with it, whether it has anything for them or not.
        plan.steps[index].takers.iter().for_each(|taker| self.one_less(*taker));
        plan.steps[index].unblocks_at_begin.iter().for_each(|next| self.one_less(*next));
        if self.steps[index].left_out.is_some() {
            return;
        }
        self.begin_feed(index);
        let Some((list, place)) = plan.steps[index].list() else { return };
        let scope = self.scope.value(None);
        let elements = list.evaluate(&scope).map_err(|error| error.to_string());
        let elements = elements.and_then(|value| {
            let elements = value
                .try_iter()
                .map_err(|_| format!("`{}` is {} and no list", list.source(), words(&value)))?;
            Ok(elements.collect::<Vec<_>>())
        });
        let (live, step) = (self.live(), &mut self.steps[index]);
        if let Some(feed) = &mut step.feed {
            if let (Ok(elements), StepKind::Stream) = (&elements, &plan.steps[index].kind) {
                step.counts.items = elements.len() as u64;
                step.counts.items_complete = true;
            }
            return feed.fill(elements.map_err(|why| format!("{place}: {why}")));
        }
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
                    self.measure_fill(index);
                }
            }
            Err(why) => each.problem = Some(format!("{place}: {why}")),
        }
    }

    /// Why a step whose turn has come does not run: what it reads is not there, or a
    /// condition is not true. What conditions read is on record, so a replay finds the same.
    pub(super) fn left_out(&self, index: usize) -> Option<(StepState, String)> {
        let gone = |step: &&usize| {
            matches!(self.steps[**step].state, StepState::Skipped | StepState::Omitted)
        };
        if let Some(read) = self.plan.steps[index].reads.iter().find(gone) {
            let (id, state) = (&self.plan.steps[*read].id, self.steps[*read].state);
            let why = format!("it reads the output of `{id}`, which was {}", state.name());
            return Some((state, why));
        }
        let stream = self.plan.steps[index].sends_to();
        if let Some(stream) = stream.filter(|stream| gone(&stream)) {
            let (id, state) = (&self.plan.steps[stream].id, self.steps[stream].state);
            return Some((state, format!("it sends to `{id}`, which was {}", state.name())));
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

    /// The source of a step may have room again.
    pub(super) fn touch_source(&mut self, index: usize) {
        if let Some(source) = self.plan.steps[index].source() {
            self.dirty.insert(source);
        }
    }

    /// A step waits for one thing less.
    pub(super) fn one_less(&mut self, step: usize) {
        self.steps[step].waiting -= 1;
        if self.steps[step].waiting == 0 {
            self.begin(step);
        }
    }
}
