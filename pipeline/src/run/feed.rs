//! Streams of messages that steps send: one call that takes the items of an `each`, or
//! one that stays open while the run goes on and takes what other steps send.
//!
//! ```text
//!  input · items · steps that send ─▶ messages ─ Action::Send ─▶ the open stream
//!                                        │  ▲                        │
//!                          kept, bounded ┘  └─ again, all of them ◀──┘ it broke off
//!  all else has succeeded ─▶ half-closed ─▶ its reply ─▶ Record::Step
//! ```
//!
//! Which messages there are follows from records, so they are the same after a replay.
//! A stream lives in one process: when it breaks, or the scheduler dies with it, its
//! attempt has failed, and the next one sends all messages again. Messages that were
//! sent are kept for that, up to a bound; beyond, an attempt that fails is the last.

use std::collections::VecDeque;

use bytes::Bytes;

use super::advance::{CODE_INTERNAL, CODE_INVALID, CODE_UNAVAILABLE};
use super::apply::code_name;
use super::steps::{ItemBody, Phase, Work};
use super::{Action, CallId, READ_AHEAD_BYTES, RESULT_MAX_BYTES, Run};
use crate::plan::{Fed, PlannedStep, StepKind};
use crate::record::Record;
use crate::state::StepState;

/// How many bytes of messages that were sent are kept to be sent again.
pub const KEPT_MAX_BYTES: usize = 4 << 20;

/// How many messages may wait before a stream, for steps that send into it.
const WAITING_MAX: usize = 1024;

/// The most messages that are handed on at once: the rest waits here, where it is counted.
const SEND_MAX: usize = 256;

/// The most bytes of them: the message that goes beyond is the last.
const SEND_MAX_BYTES: usize = 256 << 10;

/// `ABORTED`, for a stream that was answered before it was half-closed.
const CODE_ABORTED: i32 = 10;

/// The messages of one step's stream.
#[derive(Debug, Default)]
pub(super) struct Feed {
    /// All of them that are kept, in order.
    messages: VecDeque<Queued>,
    /// How many of these the open stream was given.
    given: usize,
    /// The bytes of those that were given, and of the others.
    given_bytes: usize,
    waiting_bytes: usize,
    /// Some that were sent are not kept any more.
    let_go: bool,
    /// No more items come.
    complete: bool,
    /// Messages could not be made.
    problem: Option<String>,
    /// The open stream takes messages at this moment.
    busy: bool,
    /// It was half-closed.
    finished: bool,
    /// What it answered.
    reply: Option<Bytes>,
}

/// A message, or what it is made of.
#[derive(Debug, Clone)]
enum Queued {
    Item(u64, ItemBody),
    Message(Bytes),
}

impl Queued {
    /// With its place: many small messages are bounded, too.
    fn bytes(&self) -> usize {
        let body = match self {
            Self::Item(_, body) => body.bytes(),
            Self::Message(body) => body.len(),
        };
        size_of::<Self>() + body
    }
}

impl Feed {
    /// The messages of a step, before its first.
    pub(super) fn of(planned: &PlannedStep) -> Option<Self> {
        let feed = planned.feed.as_ref()?;
        let complete = matches!(feed.from, Fed::Nothing | Fed::Input);
        Some(Self { complete, ..Self::default() })
    }

    /// No more items come.
    pub(super) fn end(&mut self) {
        self.complete = true;
    }

    /// The elements of its list, or why there is none.
    pub(super) fn fill(&mut self, elements: Result<Vec<minijinja::Value>, String>) {
        self.complete = true;
        match elements {
            Ok(elements) => {
                for (number, element) in elements.into_iter().enumerate() {
                    self.push(Queued::Item(number as u64, ItemBody::Element(element)));
                }
            }
            Err(why) => self.problem = Some(why),
        }
    }

    pub(super) fn item(&mut self, number: u64, item: Bytes) {
        self.push(Queued::Item(number, ItemBody::Message(item)));
    }

    /// How many messages wait, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.messages.len() - self.given, self.waiting_bytes)
    }

    /// How many bytes of messages that were given are kept.
    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.given_bytes
    }

    /// Whether a step that has so many messages on the way may add one.
    pub(super) fn has_room(&self, coming: usize) -> bool {
        self.waiting().0 + coming < WAITING_MAX && self.waiting_bytes < READ_AHEAD_BYTES
    }

    fn push(&mut self, queued: Queued) {
        self.waiting_bytes += queued.bytes();
        self.messages.push_back(queued);
    }

    /// While records are replayed nobody takes messages. More of them than ever wait or
    /// are kept: some were sent and let go.
    fn bound_replayed(&mut self) {
        while self.waiting_bytes > KEPT_MAX_BYTES + READ_AHEAD_BYTES + RESULT_MAX_BYTES
            && let Some(first) = self.messages.pop_front()
        {
            self.waiting_bytes -= first.bytes();
            self.let_go = true;
        }
    }

    /// A stream is opened: it is given all messages.
    pub(super) fn restart(&mut self) {
        self.waiting_bytes += std::mem::take(&mut self.given_bytes);
        self.given = 0;
        (self.busy, self.finished, self.reply) = (false, false, None);
    }

    /// The next message was given to the stream.
    fn give(&mut self) {
        let bytes = self.messages.get(self.given).map_or(0, Queued::bytes);
        self.given += 1;
        self.given_bytes += bytes;
        self.waiting_bytes -= bytes;
        while self.given_bytes > KEPT_MAX_BYTES
            && let Some(first) = self.messages.pop_front()
        {
            self.given_bytes -= first.bytes();
            self.given -= 1;
            self.let_go = true;
        }
    }

    /// The step has ended: nobody needs them any more.
    pub(super) fn clear(&mut self) {
        *self = Self { complete: true, ..Self::default() };
    }
}

impl Run {
    /// A step whose method takes a stream has begun: the message that it begins with.
    pub(super) fn begin_feed(&mut self, step: usize) {
        let plan = std::sync::Arc::clone(&self.plan);
        let Some(of) = &plan.steps[step].feed else { return };
        if !matches!(of.from, Fed::Input) {
            return;
        }
        let first = self.body(step, None);
        let counted = matches!(plan.steps[step].kind, StepKind::Stream);
        self.steps[step].counts.items += u64::from(counted);
        let Some(feed) = &mut self.steps[step].feed else { return };
        match first {
            Ok(first) => feed.push(Queued::Message(first)),
            Err(why) => feed.problem = Some(why),
        }
    }

    /// A message for a stream is on record.
    pub(super) fn sent_to(&mut self, stream: usize, message: &Bytes) {
        let live = self.live();
        let counted = matches!(self.plan.steps[stream].kind, StepKind::Stream);
        let step = &mut self.steps[stream];
        let Some(feed) = step.feed.as_mut() else { return };
        if step.state.is_end() && step.state != StepState::Failed {
            return;
        }
        step.counts.items += u64::from(counted);
        feed.push(Queued::Message(message.clone()));
        if !live {
            feed.bound_replayed();
        }
        self.dirty.insert(stream);
    }

    /// Items for a stream are on record.
    pub(super) fn feed_items(&mut self, stream: usize, first: u64, items: &[Bytes]) {
        let live = self.live();
        let counted = matches!(self.plan.steps[stream].kind, StepKind::Stream);
        let step = &mut self.steps[stream];
        let Some(feed) = step.feed.as_mut() else { return };
        if step.state.is_end() && step.state != StepState::Failed {
            return;
        }
        step.counts.items += if counted { items.len() as u64 } else { 0 };
        for (number, item) in (first..).zip(items) {
            feed.item(number, item.clone());
            if !live {
                feed.bound_replayed();
            }
        }
        self.dirty.insert(stream);
    }

    /// Hands messages to an open stream, and half-closes it when its time has come.
    pub(super) fn feed(&mut self, step: usize, call: CallId) {
        let Some(feed) = &self.steps[step].feed else { return };
        if feed.busy || feed.finished {
            return;
        }
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while messages.len() < SEND_MAX && bytes < SEND_MAX_BYTES {
            let Some(feed) = &self.steps[step].feed else { return };
            let message = match feed.messages.get(feed.given) {
                None => break,
                Some(Queued::Message(message)) => Ok(message.clone()),
                Some(Queued::Item(number, body)) => {
                    let (number, body) = (*number, body.clone());
                    let made = self.body(step, Some((number, body)));
                    made.map_err(|why| format!("item {number}: {why}"))
                }
            };
            match message {
                Ok(message) => {
                    bytes += message.len();
                    messages.push(message);
                }
                Err(why) => return self.break_off(step, CODE_INVALID, why),
            }
            if let Some(feed) = &mut self.steps[step].feed {
                feed.give();
            }
        }
        let finish = self.may_half_close(step);
        if messages.is_empty() && !finish {
            return;
        }
        if let Some(feed) = &mut self.steps[step].feed {
            (feed.busy, feed.finished) = (true, finish);
        }
        self.actions.push_back(Action::Send { call, messages, finish });
        self.moved = true;
        self.touch_feeders(step);
    }

    /// Who feeds a stream may have room again.
    fn touch_feeders(&mut self, step: usize) {
        self.touch_source(step);
        let senders = self.plan.steps[step].feed.iter().flat_map(|feed| &feed.senders);
        self.dirty.extend(senders.copied().collect::<Vec<_>>());
    }

    /// The stream has taken what it was given.
    pub(super) fn sent(&mut self, call: CallId) {
        let Some(step) = self.flights.get(call).map(|flight| flight.step) else { return };
        if let Some(feed) = &mut self.steps[step].feed {
            feed.busy = false;
        }
        self.dirty.insert(step);
    }

    /// Whether no message can come any more. A stream that stays open is half-closed when
    /// all has ended that does not wait for the end of such a stream.
    fn may_half_close(&self, step: usize) -> bool {
        let (Some(of), Some(feed)) = (&self.plan.steps[step].feed, &self.steps[step].feed) else {
            return false;
        };
        let ended = |step: usize| {
            let state = self.steps[step].state;
            state.is_end() && state != StepState::Failed
        };
        if !feed.complete || feed.waiting().0 > 0 || !of.senders.iter().all(|step| ended(*step)) {
            return false;
        }
        if !of.open {
            return true;
        }
        let mut open = (0..self.steps.len()).filter(|other| !ended(*other)).peekable();
        let streams: Vec<usize> = open
            .clone()
            .filter(|other| {
                self.plan.steps[*other].stays_open()
                    && self.steps[*other].state != StepState::Failed
            })
            .collect();
        let behind: Vec<_> = streams.iter().map(|stream| self.behind(*stream)).collect();
        open.peek().is_some()
            && open.all(|other| {
                streams.contains(&other)
                    || self.finalizes(other)
                    || behind.iter().any(|behind| behind.contains(&other))
            })
    }

    /// Whether a stream that is open only waits for what others do.
    pub(super) fn rests(&self, step: usize) -> bool {
        let (Work::Source(source), Some(feed)) = (&self.steps[step].work, &self.steps[step].feed)
        else {
            return false;
        };
        let open = matches!(source.phase, Phase::Open(_));
        let drained = !feed.busy && !feed.finished && feed.waiting().0 == 0;
        open && drained && !self.may_half_close(step)
    }

    /// Something has ended: streams that stay open may be half-closed.
    pub(super) fn touch_open_streams(&mut self) {
        let plan = std::sync::Arc::clone(&self.plan);
        for (step, planned) in plan.steps.iter().enumerate() {
            if planned.stays_open() {
                self.dirty.insert(step);
            }
        }
    }

    /// Why a stream cannot be opened, now or at all.
    pub(super) fn cannot_open(&self, step: usize) -> Option<String> {
        let feed = self.steps[step].feed.as_ref()?;
        if let Some(why) = &feed.problem {
            return Some(why.clone());
        }
        feed.let_go.then(not_kept)
    }

    /// Whether an attempt of this step that fails is the last: it could not be repeated.
    pub(super) fn is_beyond_repeat(&self, step: usize) -> bool {
        self.steps[step].feed.as_ref().is_some_and(|feed| feed.let_go)
    }

    /// The stream was open when its process ended, which nobody has recorded.
    pub(super) fn recover_feeds(&mut self) {
        if self.undo.is_some() {
            return;
        }
        for step in 0..self.steps.len() {
            let found = &self.steps[step];
            let open = matches!(&found.work, Work::Source(source) if source.opened);
            if found.feed.is_some() && open && found.state == StepState::Running {
                let why = "the scheduler ended while the stream was open".to_owned();
                self.interrupted(step, CODE_UNAVAILABLE, why);
            }
        }
    }

    /// The stream gave something: the reply of a call that has one.
    pub(super) fn replied(&mut self, step: usize, replies: Vec<Bytes>) {
        let planned = &self.plan.steps[step];
        let Some(feed) = &mut self.steps[step].feed else { return };
        let known = feed.reply.is_some();
        let mut replies = replies.into_iter();
        let Some(reply) = replies.next() else { return };
        let wrong = if known || replies.next().is_some() {
            Some("the call was to have one reply, and there are more".to_owned())
        } else if reply.len() > RESULT_MAX_BYTES {
            let bytes = reply.len();
            Some(format!("the result has {bytes} bytes; the most is {RESULT_MAX_BYTES}"))
        } else if planned.output_is_decoded {
            planned.value(&reply).err().map(|why| format!("the answer is {why}"))
        } else {
            None
        };
        feed.reply = Some(reply);
        match wrong {
            Some(why) => self.break_off(step, CODE_INTERNAL, why),
            None => {
                self.dirty.insert(step);
            }
        }
    }

    /// A stream with messages ended well: with its reply, if it has one.
    pub(super) fn feed_ended(&mut self, step: usize) {
        let planned = &self.plan.steps[step];
        let (open, one) = (planned.stays_open(), matches!(planned.kind, StepKind::Stream));
        let Some(feed) = &mut self.steps[step].feed else { return };
        if open && !feed.finished {
            let why = "it was answered before the run had succeeded".to_owned();
            return self.interrupted(step, CODE_ABORTED, why);
        }
        if one && planned.progress.is_some() {
            return self.report_ended(step);
        }
        let reply = one.then(|| feed.reply.take().unwrap_or_default());
        self.end_step(step, StepState::Succeeded, String::new(), reply);
    }

    /// A stream cannot go on, for a reason that another attempt does not change.
    pub(super) fn break_off(&mut self, step: usize, code: i32, why: String) {
        self.drop_flights(step);
        if let Work::Source(source) = &mut self.steps[step].work {
            source.phase = Phase::Between;
        }
        let (at_ms, message) = (self.now.0, why.clone());
        let record = Record::Interrupted { at_ms, step: step as u32, code, message, last: true };
        self.outbox.push(record);
        self.give_up(step, None, format!("{}: {why}", code_name(code)));
    }
}

/// What to say of messages that cannot be sent again.
pub(super) fn not_kept() -> String {
    format!(
        "more than {KEPT_MAX_BYTES} bytes were sent, of which no more are kept, so they cannot be sent again"
    )
}
