//! What was promised and what happened: every call made and how it ended, every effect at a
//! worker, every violation of a guarantee.
//!
//! ```text
//!  clients ── made, ended ──▶ ┌────────┐
//!                             │ Ledger │ ──▶ violations
//!  workers ── began ────────▶ └────────┘
//! ```

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use zex_core::Time;
use zex_spec::{BrokerId, Code, Key, PeerId, Status};

use crate::queue::NodeId;
use crate::scenario::START;

/// A call may end this late: the time of one event, no more, for sessions have exact timers.
const SLACK_MS: u64 = 5;
/// Violations that are kept; the first is what matters.
const MAX_VIOLATIONS: usize = 8;

/// Which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    /// Guarantee 1: each call ends exactly once, by its deadline.
    OneAnswer,
    /// Guarantee 1 at the home: nothing is held after its deadline and its worker's release.
    NothingLeft,
    /// Guarantee 3: counts are what the workers have in flight, three seconds after a fault.
    Counts,
    /// Guarantee 5: a key has at most one effect, unless it is marked idempotent.
    OneEffect,
    /// Guarantee 5: no call is lost with one broker or one pipe.
    NothingLost,
    /// A reply is the one to this request.
    Payload,
    /// The EZ dialect: at most one answer for each client and request; one, while the mesh lives.
    EzAnswer,
    /// The EZ dialect: a worker is not given an id that it has.
    EzRepeat,
}

/// What a violation is about; the story of it is told again on request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A native call.
    Call(Key),
    /// An EZ request, by its id.
    Request(Bytes),
    /// An assignment: its owner and its number there.
    Assignment(BrokerId, u64),
    /// A worker, by what brokers call it.
    Worker(PeerId),
    /// Nothing smaller than the mesh.
    Mesh,
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// About what.
    pub subject: Subject,
    /// In words.
    pub text: String,
    /// Virtual milliseconds since the start.
    pub at_ms: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} broken at {} ms: {}", self.rule, self.at_ms, self.text)
    }
}

/// What a run was like, so that nobody takes an empty one for a good one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Calls made, native.
    pub calls: u64,
    /// Of these, answered with the right reply.
    pub ok: u64,
    /// Ended `UNAVAILABLE`.
    pub unavailable: u64,
    /// Ended `DEADLINE_EXCEEDED`.
    pub late: u64,
    /// Requests of EZ clients.
    pub ez_requests: u64,
    /// Of these, answered with the right reply.
    pub ez_ok: u64,
    /// Work that workers began.
    pub effects: u64,
    /// Messages lost by the network.
    pub lost: u64,
    /// Assignments that a heartbeat had to correct.
    pub drift: u64,
    /// Comparisons of one worker's count at one broker.
    pub compared: u64,
    /// Steps of the world.
    pub steps: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.ok += other.ok;
        self.unavailable += other.unavailable;
        self.late += other.late;
        self.ez_requests += other.ez_requests;
        self.ez_ok += other.ez_ok;
        self.effects += other.effects;
        self.lost += other.lost;
        self.drift += other.drift;
        self.compared += other.compared;
        self.steps += other.steps;
    }
}

/// A call that a client made.
#[derive(Debug)]
struct Promise {
    deadline: Time,
    idempotent: bool,
    /// Must end well: it was made when the mesh was up, to a service that is served, and nothing
    /// goes wrong but what no call may be lost by.
    certain: bool,
    request: Bytes,
    ended: bool,
    begun: Vec<NodeId>,
}

/// The record.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    promises: BTreeMap<Key, Promise>,
    /// Whether a key must have at most one effect in this world.
    one_effect: bool,
    pub(crate) violations: Vec<Violation>,
    pub(crate) counts: Counts,
}

impl Ledger {
    pub(crate) fn new(one_effect: bool) -> Self {
        Self { one_effect, ..Self::default() }
    }

    pub(crate) fn violation(&mut self, now: Time, rule: Rule, subject: Subject, text: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            let at_ms = now.since(START).as_millis() as u64;
            self.violations.push(Violation { rule, subject, text, at_ms });
        }
    }

    pub(crate) fn made(
        &mut self,
        key: Key,
        deadline: Time,
        request: Bytes,
        (idempotent, certain): (bool, bool),
    ) {
        self.counts.calls += 1;
        let promise =
            Promise { deadline, idempotent, certain, request, ended: false, begun: Vec::new() };
        self.promises.insert(key, promise);
    }

    /// The client takes the call back: it need not end well.
    pub(crate) fn cancelled(&mut self, key: &Key) {
        if let Some(promise) = self.promises.get_mut(key) {
            promise.certain = false;
        }
    }

    /// Whether a call waits for its end.
    pub(crate) fn waits(&self, key: &Key) -> bool {
        self.promises.get(key).is_some_and(|promise| !promise.ended)
    }

    /// The one end of a call. `echo` says whether a good reply is the right one, from the request.
    pub(crate) fn ended(
        &mut self,
        now: Time,
        key: Key,
        outcome: &Result<Bytes, Status>,
        right: impl Fn(&Bytes, &Bytes) -> bool,
    ) {
        let subject = Subject::Call(key);
        let Some(promise) = self.promises.get_mut(&key) else {
            let text = format!("call {key} was never made and has ended");
            return self.violation(now, Rule::OneAnswer, subject, text);
        };
        let twice = std::mem::replace(&mut promise.ended, true);
        let late = now > promise.deadline.plus_ms(SLACK_MS);
        let certain = promise.certain;
        let wrong = matches!(outcome, Ok(reply) if !right(&promise.request, reply));
        match outcome {
            Ok(_) => self.counts.ok += 1,
            Err(status) if status.code == Code::Unavailable => self.counts.unavailable += 1,
            Err(status) if status.code == Code::DeadlineExceeded => self.counts.late += 1,
            Err(_) => {}
        }
        if twice {
            let text = format!("call {key} has ended twice, now with {outcome:?}");
            self.violation(now, Rule::OneAnswer, subject.clone(), text);
        }
        if late {
            let text = format!("call {key} has ended after its deadline");
            self.violation(now, Rule::OneAnswer, subject.clone(), text);
        }
        if wrong {
            let text = format!("call {key} has the reply of something else");
            self.violation(now, Rule::Payload, subject.clone(), text);
        }
        if let Err(status) = outcome
            && certain
            && status.code != Code::FailedPrecondition
        {
            let text = format!("call {key} is lost: {:?}: {}", status.code, status.message);
            self.violation(now, Rule::NothingLost, subject, text);
        }
    }

    /// A worker begins a call: that is its effect.
    pub(crate) fn began(&mut self, now: Time, key: Key, at: NodeId) {
        self.counts.effects += 1;
        let Some(promise) = self.promises.get_mut(&key) else { return };
        promise.begun.push(at);
        if promise.begun.len() > 1 && !promise.idempotent && self.one_effect {
            let text = format!("call {key} was begun more than once, by {:?}", promise.begun);
            self.violation(now, Rule::OneEffect, Subject::Call(key), text);
        }
    }

    /// Calls that never ended.
    pub(crate) fn close(&mut self, now: Time) {
        let open: Vec<Key> =
            self.promises.iter().filter(|(_, p)| !p.ended).map(|(key, _)| *key).collect();
        for key in open {
            let text = format!("call {key} was never answered");
            self.violation(now, Rule::OneAnswer, Subject::Call(key), text);
        }
    }
}
