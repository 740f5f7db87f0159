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
use crate::scenario::{START, Scenario};

/// A call may end this late: the time of one event, no more, for sessions have exact timers.
const SLACK_MS: u64 = 5;
/// And by this share of its span, on the slowest clock: 1,000 ppm.
const DRIFT_DIVISOR: u64 = 1_000;
/// How long ended calls are remembered, milliseconds: longer than any key is in the mesh.
const KEEP_MS: u64 = 200_000;
/// Violations that are kept, and the first of each rule; the first is what matters.
const MAX_VIOLATIONS: usize = 8;

/// Which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    /// Guarantee 1: each call ends exactly once, by its deadline.
    OneAnswer,
    /// Guarantee 1 at the home: nothing is held after its deadline and its worker's release.
    NothingLeft,
    /// Guarantee 2: the pick at a home is the worker with the fewest assigned.
    LeastAssigned,
    /// Guarantee 3: counts are what the workers have in flight, three seconds after a fault.
    Counts,
    /// Guarantee 4: a dead worker is out in time, and what it held is answered.
    DeadOut,
    /// Guarantee 5: a key has at most one effect, unless it is marked idempotent.
    OneEffect,
    /// Guarantee 5: duplicates get the same answer.
    EqualAnswers,
    /// Guarantees 5 and 9: no call is lost with one broker or one pipe.
    NothingLost,
    /// Guarantee 6: queues have bounds.
    Bounds,
    /// Guarantee 8: who drains holds nothing when it leaves, and no call is lost with it.
    Drain,
    /// A reply is the one to this request.
    Payload,
    /// Guarantee 7: what is read of a stream is what was sent, in order, each once; and where it
    /// ended well, all of it.
    Streams,
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
    /// Times that a client heard that a broker has its call.
    pub accepted: u64,
    /// Of these, answered with the right reply.
    pub ok: u64,
    /// Ended `UNAVAILABLE`.
    pub unavailable: u64,
    /// Ended `DEADLINE_EXCEEDED`.
    pub late: u64,
    /// Ended `RESOURCE_EXHAUSTED`.
    pub exhausted: u64,
    /// Replies that came to a client for a call that had one.
    pub duplicates: u64,
    /// Picks that were compared with a recount.
    pub picks: u64,
    /// Requests of EZ clients.
    pub ez_requests: u64,
    /// Of these, answered with the right reply.
    pub ez_ok: u64,
    /// Work that workers began.
    pub effects: u64,
    /// Streams of requests that a worker read to their end.
    pub streams_read: u64,
    /// Streams of answers that a client read to their end.
    pub streams_ok: u64,
    /// Messages lost by the network.
    pub lost: u64,
    /// Assignments that a heartbeat had to correct.
    pub drift: u64,
    /// Comparisons of one worker's count at one broker.
    pub compared: u64,
    /// Steps of the world.
    pub steps: u64,
    /// Virtual seconds.
    pub virtual_s: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.accepted += other.accepted;
        self.ok += other.ok;
        self.unavailable += other.unavailable;
        self.late += other.late;
        self.exhausted += other.exhausted;
        self.duplicates += other.duplicates;
        self.picks += other.picks;
        self.ez_requests += other.ez_requests;
        self.ez_ok += other.ez_ok;
        self.effects += other.effects;
        self.streams_read += other.streams_read;
        self.streams_ok += other.streams_ok;
        self.lost += other.lost;
        self.drift += other.drift;
        self.compared += other.compared;
        self.steps += other.steps;
        self.virtual_s += other.virtual_s;
    }
}

/// A call that a client makes.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) by: NodeId,
    pub(crate) at: Time,
    pub(crate) deadline: Time,
    pub(crate) idempotent: bool,
    /// Must end well, or this is broken: it was made when the mesh was up, to a service that is
    /// served, and nothing goes wrong but what no call may be lost by.
    pub(crate) certain: Option<Rule>,
    /// In a time in which somebody is cut off only what was accepted is certain.
    pub(crate) accepted: bool,
    /// Must end `UNAVAILABLE` by then: nobody serves what it names.
    pub(crate) refused_by: Option<Time>,
    pub(crate) request: Bytes,
}

/// What became of it.
#[derive(Debug)]
struct Promise {
    made: Made,
    ended: bool,
    begun: Vec<NodeId>,
    /// The first good reply that reached its client.
    answer: Option<Bytes>,
}

/// The record.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    promises: BTreeMap<Key, Promise>,
    /// Whether a key must have at most one effect in this world.
    one_effect: bool,
    /// Times in which a message may lie so long that its key is forgotten where it would count.
    murky: Vec<(Time, Time)>,
    /// Times in which somebody is cut off: what was not accepted may be lost.
    cuts: Vec<(Time, Time)>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) counts: Counts,
}

impl Ledger {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let (one_effect, murky) = (scenario.one_effect(), scenario.murky());
        Self { one_effect, murky, cuts: scenario.cuts(), ..Self::default() }
    }

    pub(crate) fn violation(&mut self, now: Time, rule: Rule, subject: Subject, text: String) {
        let news = self.violations.iter().all(|known| known.rule != rule);
        if news || self.violations.len() < MAX_VIOLATIONS {
            let at_ms = now.since(START).as_millis() as u64;
            self.violations.push(Violation { rule, subject, text, at_ms });
        }
    }

    pub(crate) fn made(&mut self, key: Key, made: Made) {
        self.counts.calls += 1;
        let promise = Promise { made, ended: false, begun: Vec::new(), answer: None };
        self.promises.insert(key, promise);
    }

    /// The client takes the call back: it need not end well.
    pub(crate) fn cancelled(&mut self, key: &Key) {
        if let Some(promise) = self.promises.get_mut(key) {
            (promise.made.certain, promise.made.refused_by) = (None, None);
        }
    }

    /// A client's process is gone, and nobody waits for its calls any more.
    pub(crate) fn abandoned(&mut self, by: NodeId) {
        let waiting = self.promises.values_mut().filter(|p| p.made.by == by);
        waiting.for_each(|promise| promise.ended = true);
    }

    /// A client's process was stopped: its calls cannot have ended before now.
    pub(crate) fn was_away(&mut self, now: Time, by: NodeId) {
        let waiting = self.promises.values_mut().filter(|p| p.made.by == by && !p.ended);
        waiting.for_each(|promise| promise.made.deadline = promise.made.deadline.max(now));
    }

    /// Whether a call waits for its end.
    pub(crate) fn waits(&self, key: &Key) -> bool {
        self.promises.get(key).is_some_and(|promise| !promise.ended)
    }

    /// The call, while it waits for its end.
    pub(crate) fn waiting(&self, key: &Key) -> Option<&Made> {
        self.promises.get(key).filter(|promise| !promise.ended).map(|promise| &promise.made)
    }

    /// A broker has said that it has the call.
    pub(crate) fn accepted(&mut self, key: &Key) {
        self.counts.accepted += 1;
        if let Some(promise) = self.promises.get_mut(key) {
            promise.made.accepted = true;
        }
    }

    /// A good reply has reached the client, the first or a duplicate.
    pub(crate) fn answered(&mut self, now: Time, key: Key, body: &Bytes) {
        let Some(promise) = self.promises.get_mut(&key) else { return };
        let Some(first) = &promise.answer else {
            promise.answer = Some(body.clone());
            return;
        };
        self.counts.duplicates += 1;
        let same = first == body || promise.made.idempotent;
        if !same && self.one_effect && !touches(&self.murky, promise.made.at, now) {
            let text = format!("call {key} was answered twice, and not the same");
            self.violation(now, Rule::EqualAnswers, Subject::Call(key), text);
        }
    }

    /// The one end of a call. `right` says whether a good reply is the right one, from the request.
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
        let Made { at, deadline, certain, accepted, refused_by, .. } = promise.made;
        let certain = certain.filter(|_| accepted || !touches(&self.cuts, at, now));
        // A slow clock has its deadlines late.
        let slack_ms = SLACK_MS + deadline.since(at).as_millis() as u64 / DRIFT_DIVISOR;
        let late = now > deadline.plus_ms(slack_ms);
        let wrong = matches!(outcome, Ok(reply) if !right(&promise.made.request, reply));
        let code = outcome.as_ref().map_or_else(|status| status.code, |_| Code::Ok);
        match code {
            Code::Ok => self.counts.ok += 1,
            Code::Unavailable => self.counts.unavailable += 1,
            Code::DeadlineExceeded => self.counts.late += 1,
            Code::ResourceExhausted => self.counts.exhausted += 1,
            _ => {}
        }
        if twice {
            let text = format!("call {key} has ended twice, now with {outcome:?}");
            self.violation(now, Rule::OneAnswer, subject.clone(), text);
        }
        if late {
            let text = format!("call {key} has ended after its deadline");
            self.violation(now, Rule::OneAnswer, subject.clone(), text);
        }
        if refused_by.is_some_and(|by| now > by || code != Code::Unavailable) {
            let text = format!("call {key} is for nobody, and has ended too late: {outcome:?}");
            self.violation(now, Rule::OneAnswer, subject.clone(), text);
        }
        if wrong {
            let text = format!("call {key} has the reply of something else");
            self.violation(now, Rule::Payload, subject.clone(), text);
        }
        if let (Err(status), Some(rule)) = (outcome, certain)
            && status.code != Code::FailedPrecondition
        {
            let text = format!("call {key} is lost: {:?}: {}", status.code, status.message);
            self.violation(now, rule, subject, text);
        }
    }

    /// A worker begins a call: that is its effect.
    pub(crate) fn began(&mut self, now: Time, key: Key, at: NodeId) {
        self.counts.effects += 1;
        let Some(promise) = self.promises.get_mut(&key) else { return };
        promise.begun.push(at);
        let again = promise.begun.len() > 1 && !promise.made.idempotent && self.one_effect;
        if again && !touches(&self.murky, promise.made.at, now) {
            let text = format!("call {key} was begun more than once, by {:?}", promise.begun);
            self.violation(now, Rule::OneEffect, Subject::Call(key), text);
        }
    }

    /// Forgets calls of long ago, so that an hour's world stays small.
    pub(crate) fn forget(&mut self, now: Time) {
        self.promises.retain(|_, p| !p.ended || p.made.at.plus_ms(KEEP_MS) > now);
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

/// Whether one of these times touches this span.
fn touches(times: &[(Time, Time)], from: Time, to: Time) -> bool {
    times.iter().any(|(begin, end)| *begin <= to && from <= *end)
}
