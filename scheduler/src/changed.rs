//! Steps whose methods are no longer what they were when the pipeline was recorded.
//!
//! ```text
//!  call, with the recorded schema ─┬─ answered
//!                                  └─ refused ─┬─ on_change: refuse ─▶ the call has failed
//!                                              └─ try ─┬─ one of the share ─▶ again, without schema
//!                                                      └─ another ─▶ waits until the share went well
//! ```
//!
//! Kept for as long as the run is driven: another scheduler tries the share again. A call that is made
//! again has another key, for the refusal is remembered under its first one.
//!
//! Asked by [`crate::calls`].

use std::collections::BTreeMap;
use std::sync::Arc;

use zex_client::{Code, Status};
use zex_pipeline::change::OnChange;
use zex_pipeline::plan::Plan;
use zex_pipeline::run::{Call, CallId};
use zex_spec::schema;

/// The steps of a run.
pub(crate) struct Changed {
    plan: Arc<Plan>,
    steps: BTreeMap<usize, Step>,
}

struct Step {
    /// The recorded schema.
    schema: Option<Arc<str>>,
    state: State,
}

enum State {
    /// Nothing is known of a change.
    Same,
    /// The share is being tried.
    Trying {
        /// Calls of the share that may still be made, that are on their way, and those that wait for them.
        left: u32,
        trials: Vec<CallId>,
        waiting: Vec<Call>,
        refusal: Status,
    },
    /// It went well.
    Trusted,
    /// It did not.
    Refused(Status),
}

/// What is done with a call.
pub(crate) enum Next {
    /// It is made, as it is now.
    Send(Call),
    /// It waits.
    Wait,
    /// It fails so.
    Fail(CallId, Status),
}

impl Changed {
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        Self { plan, steps: BTreeMap::new() }
    }

    /// A call as it is kept while it may have to be made again.
    pub(crate) fn keep(&self, call: &Call) -> Option<Call> {
        let tries = self.on_change(call.step) != OnChange::Refuse;
        (call.schema.is_some() && tries).then(|| call.clone())
    }

    /// A call that has not been made yet.
    pub(crate) fn first(&mut self, mut call: Call) -> Next {
        if !self.is_recorded(&call) {
            return Next::Send(call);
        }
        let step = self.step(call.step);
        match &mut step.state {
            State::Same => {
                call.schema.clone_from(&step.schema);
                Next::Send(call)
            }
            State::Trying { .. } => self.trial(call),
            State::Trusted => bare(call),
            State::Refused(status) => Next::Fail(call.call, status.clone()),
        }
    }

    /// A call was refused, perhaps because its method has changed. `None`: it has failed.
    pub(crate) fn refused(&mut self, call: Call, status: &Status) -> Option<Next> {
        if !schema::is_refusal(status, &call.method) {
            return None;
        }
        let OnChange::Try { share } = self.on_change(call.step) else { return None };
        let step = self.step(call.step);
        if matches!(step.state, State::Same) {
            tracing::info!(step = call.step, share, %status, "a changed method is tried");
            let (trials, waiting, refusal) = (Vec::new(), Vec::new(), status.clone());
            step.state = State::Trying { left: share, trials, waiting, refusal };
        }
        Some(match &step.state {
            State::Trusted => bare(call),
            State::Refused(status) => Next::Fail(call.call, status.clone()),
            State::Same | State::Trying { .. } => self.trial(call),
        })
    }

    /// One of the share, or one that waits for it.
    fn trial(&mut self, call: Call) -> Next {
        let State::Trying { left, trials, waiting, .. } = &mut self.step(call.step).state else {
            return bare(call);
        };
        if *left == 0 {
            waiting.push(call);
            return Next::Wait;
        }
        *left -= 1;
        trials.push(call.call);
        bare(call)
    }

    /// A call has ended, perhaps with a failure; what is done with those that waited for it.
    pub(crate) fn ended(&mut self, call: CallId, failed: Option<Code>) -> Vec<Next> {
        if failed.is_some_and(passes) {
            // It is tried again, or the step fails: neither says anything of the change.
            return self.dropped(call).into_iter().collect();
        }
        let Some(step) = self.tried(call) else { return Vec::new() };
        let State::Trying { left, trials, waiting, refusal } = &mut step.state else {
            return Vec::new();
        };
        trials.retain(|trial| *trial != call);
        if failed.is_none() && !(*left == 0 && trials.is_empty()) {
            return Vec::new();
        }
        let (waiting, refusal) = (std::mem::take(waiting), failed.map(|_| refusal.clone()));
        let next = |call: Call| match &refusal {
            None => bare(call),
            Some(refusal) => Next::Fail(call.call, refusal.clone()),
        };
        let next = waiting.into_iter().map(next).collect();
        step.state = refusal.map_or(State::Trusted, State::Refused);
        next
    }

    /// A call was taken back: if it was of the share, another takes its place.
    pub(crate) fn dropped(&mut self, call: CallId) -> Option<Next> {
        for step in self.steps.values_mut() {
            if let State::Trying { waiting, .. } = &mut step.state {
                waiting.retain(|waits| waits.call != call);
            }
        }
        let State::Trying { left, trials, waiting, .. } = &mut self.tried(call)?.state else {
            return None;
        };
        trials.retain(|trial| *trial != call);
        *left += 1;
        let next = waiting.pop()?;
        Some(self.trial(next))
    }

    /// The step of which a call is being tried.
    fn tried(&mut self, call: CallId) -> Option<&mut Step> {
        let of = |step: &&mut Step| match &step.state {
            State::Trying { trials, .. } => trials.contains(&call),
            _ => false,
        };
        self.steps.values_mut().find(of)
    }

    fn on_change(&self, step: usize) -> OnChange {
        self.plan.steps[step].on_change
    }

    /// Whether it calls the method that was recorded; a compensation calls another.
    fn is_recorded(&self, call: &Call) -> bool {
        let planned = &self.plan.steps[call.step];
        let same = planned.service == call.service && planned.method == call.method;
        same && planned.recorded.is_some()
    }

    fn step(&mut self, step: usize) -> &mut Step {
        let recorded = self.plan.steps[step].recorded.as_ref();
        self.steps.entry(step).or_insert_with(|| Step {
            schema: recorded.map(|method| schema::hash(method).into()),
            state: State::Same,
        })
    }
}

/// Whether a failure is of the moment, and not of the method.
fn passes(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted
    )
}

/// Without a schema. Perhaps the same call was refused with one.
fn bare(mut call: Call) -> Next {
    call.key[0] ^= 0x80;
    call.schema = None;
    Next::Send(call)
}
