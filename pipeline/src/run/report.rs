//! Steps that report how far they are: their method gives a stream, every message of it
//! is progress, and the last one is the output.
//!
//! ```text
//!  Open ─ messages ─▶ the newest ─ now and then ─▶ Record::Reported ─▶ who watches
//!    ▲                    └─ nothing for `heartbeat` ─▶ the attempt failed ┐
//!    └──────── the next attempt, with the newest one in its input ◀────────┘
//! ```
//!
//! The newest message is on record at most a second after it came, and before the failure
//! of its attempt: the next one begins with it, also on another scheduler.

use bytes::Bytes;

use super::advance::{CODE_DEADLINE, CODE_INTERNAL, CODE_TOO_LARGE};
use super::steps::{Phase, Work};
use super::{RESULT_MAX_BYTES, Run, Time, Wake};
use crate::message::{decode, message_value};
use crate::record::{Record, cut};
use crate::state::StepState;

/// How often what a step reports is recorded, in ms: often enough to lose little work,
/// too seldom to weigh in the journal.
pub const REPORT_INTERVAL_MS: u64 = 1_000;

/// The largest message of progress, in bytes: the journal gets one each second.
pub const REPORT_MAX_BYTES: usize = 256 << 10;

/// What a step has reported.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The newest message on record, and as people see it.
    newest: Option<Bytes>,
    pub(super) shown: String,
    // What only this process knows.
    /// The newest message, until it is recorded.
    unrecorded: Option<Bytes>,
    recorded_at: Time,
    /// When the open stream was last heard of.
    heard: Time,
    /// Its last message.
    pub(super) last: Option<Bytes>,
    /// How large that is, when it is too large for progress.
    too_large: Option<usize>,
}

impl Run {
    /// A stream is opened of which reports are wanted.
    pub(super) fn listen(&mut self, step: usize) {
        let now = self.now;
        let Some(planned) = &self.plan.steps[step].progress else { return };
        if let Some(ms) = planned.heartbeat_ms {
            self.timers.insert((now.plus_ms(ms), Wake::Heartbeat(step)));
        }
        let report = &mut self.steps[step].report;
        (report.heard, report.last, report.too_large) = (now, None, None);
    }

    /// What the input of an attempt sees as `progress`: before anything is on record, an
    /// empty message.
    pub(super) fn progress_value(&self, step: usize) -> Result<minijinja::Value, String> {
        let newest = self.steps[step].report.newest.clone().unwrap_or_default();
        Ok(message_value(decode(&self.plan.steps[step].output, &newest)?))
    }

    /// The stream gave messages.
    pub(super) fn reported(&mut self, step: usize, messages: Vec<Bytes>) {
        let now = self.now;
        for message in messages {
            let report = &mut self.steps[step].report;
            let bytes = message.len();
            let wrong = match (report.too_large, bytes) {
                (Some(bytes), _) => Some((bytes, REPORT_MAX_BYTES, "a message of progress")),
                (_, RESULT_MAX_BYTES..) if bytes > RESULT_MAX_BYTES => {
                    Some((bytes, RESULT_MAX_BYTES, "the result"))
                }
                _ => None,
            };
            if let Some((bytes, most, what)) = wrong {
                let why = format!("{what} has {bytes} bytes; the most is {most}");
                return self.break_off(step, CODE_TOO_LARGE, why);
            }
            report.heard = now;
            // Only the last message may be as large as a result.
            report.too_large = (bytes > REPORT_MAX_BYTES).then_some(bytes);
            report.unrecorded = (bytes <= REPORT_MAX_BYTES).then(|| message.clone());
            report.last = Some(message);
        }
        let due = self.steps[step].report.recorded_at.plus_ms(REPORT_INTERVAL_MS);
        match due > now {
            true => {
                self.timers.insert((due, Wake::Report(step)));
            }
            false => self.record_report(step),
        }
        self.dirty.insert(step);
    }

    /// Puts the newest message on record, unless it is there.
    pub(super) fn record_report(&mut self, step: usize) {
        let found = &mut self.steps[step];
        let Some(body) = found.report.unrecorded.take() else { return };
        if found.ending || found.state != StepState::Running {
            return;
        }
        found.report.recorded_at = self.now;
        match self.plan.steps[step].json(&body) {
            Ok(shown) => {
                let (at_ms, step) = (self.now.0, step as u32);
                self.outbox.push(Record::Reported { at_ms, step, body, shown: cut(shown) });
            }
            Err(why) => self.break_off(step, CODE_INTERNAL, format!("its progress is {why}")),
        }
    }

    pub(super) fn apply_report(
        &mut self,
        step: usize,
        body: &Bytes,
        shown: &str,
    ) -> Result<(), String> {
        if self.plan.steps[step].progress.is_none() {
            return Err(format!("step {step} reports nothing"));
        }
        let report = &mut self.steps[step].report;
        report.newest = Some(body.clone());
        shown.clone_into(&mut report.shown);
        Ok(())
    }

    /// Nothing may have been heard of a step for too long.
    pub(super) fn check_heartbeat(&mut self, step: usize) {
        let Some(planned) = &self.plan.steps[step].progress else { return };
        let (Some(ms), Work::Source(source)) = (planned.heartbeat_ms, &self.steps[step].work)
        else {
            return;
        };
        if !matches!(source.phase, Phase::Open(_)) || self.steps[step].ending {
            return;
        }
        let due = self.steps[step].report.heard.plus_ms(ms);
        if due > self.now {
            self.timers.insert((due, Wake::Heartbeat(step)));
            return;
        }
        self.drop_flights(step);
        self.interrupted(step, CODE_DEADLINE, format!("nothing was heard of it for {ms} ms"));
    }

    /// The stream of a step that reports ended well: its last message is the output.
    pub(super) fn report_ended(&mut self, step: usize) {
        let output = self.steps[step].report.last.take().unwrap_or_default();
        let planned = &self.plan.steps[step];
        if planned.output_is_decoded
            && let Err(why) = planned.value(&output)
        {
            return self.interrupted(step, CODE_INTERNAL, format!("the answer is {why}"));
        }
        self.end_step(step, StepState::Succeeded, String::new(), Some(output));
    }
}
