//! Sources: streams whose messages are the items of other steps.
//!
//! ```text
//!  Closed ─ Record::Opened ─▶ Open ─ items ─▶ Record::Items ─▶ takers
//!    ▲                         │  ▲               │
//!    └── Record::Interrupted ──┘  └─ Pull ◀─ room ┘
//! ```
//!
//! A stream is read only as far ahead as its takers have room. One that broke off,
//! or was open when the scheduler died, is opened again: the items on record are
//! skipped, and their fingerprint must be the one on record, for otherwise items
//! would be lost or done twice without anybody noticing.

use bytes::Bytes;

use super::feed::not_kept;
use super::steps::{Phase, Work};
use super::{Action, CallId, Flight, Mode, READ_AHEAD_BYTES, READ_AHEAD_ITEMS, Run, Wake};
use crate::key::Fingerprint;
use crate::plan::StepKind;
use crate::record::Record;
use crate::state::{RunState, StepState};

/// A source is pulled when this part of the room is free: in bites, not in crumbs.
const PULL_PART: usize = 4;

impl Run {
    pub(super) fn advance_source(&mut self, step: usize) {
        let now = self.now;
        let Work::Source(source) = &mut self.steps[step].work else { return };
        match source.phase {
            Phase::Between => {}
            Phase::Closed => {
                if let Some(why) = self.cannot_open(step) {
                    return self.give_up(step, None, why);
                }
                let Work::Source(source) = &mut self.steps[step].work else { return };
                source.phase = Phase::Between;
                let (attempt, not_before) = (source.attempts + 1, source.not_before);
                if not_before > now {
                    self.timers.insert((not_before, Wake::Step(step)));
                } else {
                    self.outbox.push(Record::Opened { step: step as u32, attempt });
                }
            }
            Phase::Open(call) => {
                self.pull(step, call);
                self.feed(step, call);
            }
        }
    }

    /// The record of an opening is on disk: open.
    pub(super) fn open(&mut self, step: usize) {
        // It was skipped, or has failed, while its opening was on its way to disk.
        let ending = self.steps[step].ending;
        let acts = self.mode == Mode::Live && self.state == RunState::Running;
        if !acts || ending || self.undo.is_some() {
            // It will be opened when the run goes on, as the attempt after this one.
            return self.close(step);
        }
        let body = match &mut self.steps[step].feed {
            None => self.body(step, None),
            Some(feed) => {
                feed.restart();
                Ok(Bytes::new())
            }
        };
        let body = match body {
            Ok(body) => body,
            Err(why) => return self.give_up(step, None, why),
        };
        let gives = matches!(self.plan.steps[step].kind, StepKind::Source);
        let known = if gives { self.steps[step].counts.items } else { 0 };
        let call = CallId(self.next_call);
        let Work::Source(source) = &mut self.steps[step].work else { return };
        source.phase = Phase::Open(call);
        source.to_skip = known;
        source.read = Fingerprint::default();
        source.pull = (0, 0);
        let flight =
            Flight { step, item: None, attempt: source.attempts, undo: false, stream: true };
        self.send(flight, body, Action::Open);
        self.listen(step);
        self.dirty.insert(step);
    }

    /// Lets go of a stream, if it is open: it is opened again when the run goes on.
    pub(super) fn close(&mut self, step: usize) {
        let Work::Source(source) = &mut self.steps[step].work else { return };
        // A stream that has ended by itself is not in flight any more.
        if let Phase::Open(call) = source.phase
            && self.flights.remove(call).is_some()
        {
            self.actions.push_back(Action::Drop(call));
        }
        source.phase = Phase::Closed;
    }

    /// Reads on when there is room.
    fn pull(&mut self, step: usize, call: CallId) {
        let (pending, in_flight) = (self.pending(step), self.in_flight(step));
        let most = self.room();
        let Work::Source(source) = &mut self.steps[step].work else { return };
        if source.pull.0 > 0 && source.pull.1 > 0 {
            return;
        }
        let room = READ_AHEAD_ITEMS + in_flight;
        let items = room.saturating_sub(pending.0 + source.unrecorded.0);
        let bytes = most.saturating_sub(pending.1 + source.unrecorded.1);
        let empty = pending.0 + source.unrecorded.0 == 0;
        let roomy = items >= room / PULL_PART && bytes >= most / PULL_PART;
        if empty || roomy {
            source.pull = (items, bytes);
            self.actions.push_back(Action::Pull { call, items, bytes });
        }
    }

    /// How many bytes of items one source may have read that are not done: its part of
    /// what the definition allows, and of what the scheduler has.
    fn room(&self) -> usize {
        let limit =
            self.plan.limits.bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let all = limit.unwrap_or(usize::MAX).min(self.room);
        (all / self.plan.sources().max(1)).clamp(1, READ_AHEAD_BYTES)
    }

    /// Items and bytes that the slowest taker has not done.
    fn pending(&self, step: usize) -> (usize, usize) {
        self.plan.steps[step].takers.iter().fold((0, 0), |most, taker| {
            if let Some(feed) = &self.steps[*taker].feed {
                let (items, bytes) = feed.waiting();
                return (most.0.max(items), most.1.max(bytes));
            }
            match &self.steps[*taker].work {
                Work::Each(each) => (most.0.max(each.open), most.1.max(each.bytes)),
                Work::Call(_) | Work::Wait | Work::Source(_) => most,
            }
        })
    }

    /// How many items its takers may have in flight: these are not ahead.
    pub(super) fn in_flight(&self, step: usize) -> usize {
        let at_once = |taker: &usize| {
            let planned = &self.plan.steps[*taker];
            planned.kind.concurrency() * planned.batch.map_or(1, |batch| batch.items)
        };
        self.plan.steps[step].takers.iter().map(at_once).max().unwrap_or(0) as usize
    }

    /// The stream gave items.
    pub(super) fn items(&mut self, call: CallId, items: Vec<Bytes>) {
        let Some(step) = self.flights.get(call).map(|flight| flight.step) else { return };
        let known = self.steps[step].counts.items;
        let Work::Source(source) = &mut self.steps[step].work else { return };
        let bytes: usize = items.iter().map(Bytes::len).sum();
        source.pull.0 = source.pull.0.saturating_sub(items.len());
        source.pull.1 = source.pull.1.saturating_sub(bytes);
        if self.plan.steps[step].progress.is_some() {
            return self.reported(step, items);
        }
        if matches!(self.plan.steps[step].kind, StepKind::Stream) {
            return self.replied(step, items);
        }
        for item in items {
            source.read = source.read.then(&item);
            if source.to_skip > 0 {
                source.to_skip -= 1;
                if source.to_skip == 0 && source.read != source.fingerprint {
                    self.close(step);
                    return self.other_items(step);
                }
                continue;
            }
            let number = known + source.unrecorded.0 as u64;
            source.unrecorded.0 += 1;
            source.unrecorded.1 += item.len();
            self.outbox.item(step, number, item, source.read);
        }
        self.dirty.insert(step);
    }

    fn other_items(&mut self, step: usize) {
        let known = self.steps[step].counts.items;
        let why = format!(
            "the stream was read again after an interruption and its first {known} items are not those it gave before; it must give the same items in the same order"
        );
        self.give_up(step, None, why);
    }

    /// The stream ended well.
    pub(super) fn stream_ended(&mut self, call: CallId) {
        let Some(flight) = self.flights.remove(call) else { return };
        let Work::Source(source) = &self.steps[flight.step].work else { return };
        if source.to_skip > 0 {
            return self.other_items(flight.step);
        }
        if self.steps[flight.step].feed.is_some() {
            return self.feed_ended(flight.step);
        }
        if self.plan.steps[flight.step].progress.is_some() {
            return self.report_ended(flight.step);
        }
        self.end_step(flight.step, StepState::Succeeded, String::new(), None);
    }

    /// The stream broke off.
    pub(super) fn interrupted(&mut self, step: usize, code: i32, message: String) {
        self.record_report(step);
        if self.steps[step].ending && self.plan.steps[step].progress.is_some() {
            return;
        }
        let Work::Source(source) = &mut self.steps[step].work else { return };
        // Until the record is on disk, and then until its turn has come.
        source.phase = Phase::Between;
        let fresh = source.unrecorded.0 > 0;
        let failures = if fresh { 1 } else { source.failures + 1 };
        let beyond = self.is_beyond_repeat(step);
        let last = self.is_last(step, None, failures, code) || beyond;
        let at_ms = self.now.0;
        let (index, words) = (step as u32, message.clone());
        self.outbox.push(Record::Interrupted { at_ms, step: index, code, message: words, last });
        if last {
            let code = super::apply::code_name(code);
            let why = format!("the stream broke off {failures} times in a row: {code}: {message}");
            let why = if beyond { format!("{why}; {}", not_kept()) } else { why };
            self.give_up(step, None, why);
        }
    }
}
