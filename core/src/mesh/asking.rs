//! Asking workers whether they know a key, where the broker itself cannot say if a call has begun.
//!
//! ```text
//!   a resend that nobody here knows ─────────┐          ┌─ one holds it ───▶ assign: it joins there
//!   what lay here while this broker was away ┼─▶ Asking ┼─ all deny it ────▶ place, if that decides
//!   an assignment that its worker let go of ─┘          └─ else, or 1 s ───▶ UNAVAILABLE, or nothing
//! ```
//!
//! A worker that denies a key promises not to begin it for another broker's attempt, up to the one
//! that is asked about, nor for the asker's own assignments of before the question: they may be on
//! their way yet, in a pipe that stands still. The other brokers hear the question, too: who has an
//! earlier attempt waiting lets go of it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use zex_spec::{
    Answer, Ask, BEAT_INTERVAL_MS, BEATS_MISSED, Code, Dialect, Key, Knowledge, Options, PeerId,
};

use super::calls::{Call, Origin, State};
use super::memory::Outcome;
use super::workers::beat_ms;
use super::{CallId, Mesh, Timer};
use crate::Time;
use crate::seeded::Seeded;

/// Workers have this long to say whether they know a key.
const ASK_MS: u64 = 1_000;
/// A call may have begun this much before it says so: clocks tick differently, and a resend may lie
/// 2 s in a connection of which only one end is gone.
const AGE_MARGIN_MS: u64 = 2_500;
/// Between two events there is never so much time, unless the process was stopped or starved.
const AWAY_MS: u64 = 2 * BEAT_INTERVAL_MS;

/// What arrives so long after a pause may have waited in a socket while another broker had our
/// place. Less than we then need to become ready: what is steered here afterwards is fresh.
const BACKLOG_MS: u64 = 500;

/// Pipes answer our beats at once. No answer for so long: we are cut off, or on our way back.
const CUT_MS: u64 = BEAT_INTERVAL_MS + 300;
/// A round of beats takes this much longer than the time between two.
pub(super) const ROUND_MARGIN_MS: u64 = 200;

/// How long it is remembered that a call was let go of, ms: its client sends it again within 3 s.
const LET_GO_MS: u64 = 10_000;
/// Calls that are remembered so; beyond, the oldest are forgotten, and their resends are asked about
/// like those of strangers. What lies in a broker's sockets after a pause is of this order.
const MAX_LET_GO: usize = 32_768;

/// Calls of which every attempt came here and was let go of unbegun, with the last of them. When the
/// next one comes nobody else can have begun anything before it: all there was was ours.
#[derive(Debug)]
pub(super) struct LetGo {
    attempts: HashMap<Key, u8, Seeded>,
    /// The oldest first.
    since: VecDeque<(Time, Key)>,
}

impl LetGo {
    pub(super) fn new(seed: u64) -> Self {
        Self { attempts: HashMap::with_hasher(Seeded(seed)), since: VecDeque::new() }
    }

    /// Whether every attempt before this one was.
    pub(super) fn all_before(&self, key: &Key, attempt: u8) -> bool {
        let last = self.attempts.get(key).copied();
        attempt == 0 || last.is_some_and(|last| last.checked_add(1) == Some(attempt))
    }

    fn put(&mut self, now: Time, key: Key, attempt: u8) {
        if self.attempts.insert(key, attempt).is_none() {
            self.since.push_back((now, key));
        }
        if self.since.len() > MAX_LET_GO {
            self.forget_oldest();
        }
    }

    pub(super) fn expire(&mut self, now: Time) {
        while self.since.front().is_some_and(|(at, _)| at.plus_ms(LET_GO_MS) <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.since.pop_front() {
            self.attempts.remove(&key);
        }
    }
}

/// What becomes of a call that nobody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Otherwise {
    /// It has not begun: pick a worker.
    Place,
    /// Nobody can say whether it ran.
    Unavailable,
    /// Its client has sent it again meanwhile, to who can say more.
    Forget,
}

/// Workers that are asked about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asking {
    waiting: BTreeSet<PeerId>,
    until: Time,
    otherwise: Otherwise,
    /// Whether another owner gave it to who holds it, and counts it.
    of_others: bool,
}

impl Mesh {
    /// Asks every worker of the call's service.
    pub(super) fn ask(&mut self, now: Time, id: CallId) {
        let call = &mut self.calls[id];
        let (began, stale) = (call.began, std::mem::take(&mut call.stale));
        let known = self.registry.service(call.dialect, &call.service);
        let entry = known.map(|service| &self.registry.services[service]);
        let lost = entry
            .and_then(|entry| entry.last_loss)
            .is_some_and(|at| at.plus_ms(AGE_MARGIN_MS) > began);
        // Of workers that went before we knew the workers, we know nothing. We were ready a moment
        // after that (a round of beats is shorter than the wait for it), so there is no margin: with
        // one, brokers that are restarted one after the other would refuse each other's calls. That holds for a broker that is alone and was restarted, too: what it cannot know is
        // whether a worker with the call died while it was away, or is stopped and will go on. It
        // would take pipes that count their workers' ends and brokers that match every connection
        // with a registration; until then `UNAVAILABLE` is the true answer.
        let vouched = self.vouches_from.is_some_and(|at| at <= began);
        let slots = entry.map_or_else(Vec::new, |entry| entry.list.workers().collect());
        let workers = slots.iter().map(|slot| &self.registry.workers[*slot as usize]);
        let asked: BTreeSet<PeerId> =
            workers.filter(|worker| !worker.paths.is_empty()).map(|worker| worker.id).collect();
        let all = asked.len() == slots.len();
        let call = &self.calls[id];
        let otherwise = match (stale, call.all_ours || vouched && !lost && all) {
            (true, _) => Otherwise::Forget,
            (false, true) => Otherwise::Place,
            (false, false) => Otherwise::Unavailable,
        };
        if !self.peers.is_empty() {
            self.tell(self.question(call));
        }
        self.ask_these(now, id, asked, (otherwise, true));
    }

    /// Another broker has a later attempt of this and will see to it. What only waits here must not
    /// begin when the other's may have ended.
    pub(super) fn on_broker_asks(&mut self, ask: &Ask) {
        let Some(id) = self.native_call(&ask.key) else { return };
        let call = &self.calls[id];
        let waits = !matches!(call.state, State::Assigned(..));
        if waits && call.attempt < ask.attempt {
            self.remove(id);
        }
    }

    /// A worker does not hold this any more, and its answer never came: it was lost on its way, as
    /// the work may have been. The worker still knows the key and gives the same answer again.
    pub(super) fn ask_its_worker(&mut self, now: Time, number: u64, from: PeerId) {
        let Some(id) = self.assignments.get(&number).copied() else { return };
        if self.calls[id].answered || self.calls[id].options.has(Options::STREAM) {
            let why = "the worker does not hold it, and its answer never came";
            return self.may_have_begun(now, number, from, why);
        }
        self.release(now, id);
        self.ask_these(now, id, BTreeSet::from([from]), (Otherwise::Place, false));
    }

    fn ask_these(
        &mut self,
        now: Time,
        id: CallId,
        workers: BTreeSet<PeerId>,
        (otherwise, of_others): (Otherwise, bool),
    ) {
        if workers.is_empty() {
            return self.nobody_holds(now, id, otherwise);
        }
        let ask = self.question(&self.calls[id]);
        let call = &mut self.calls[id];
        let until = now.plus_ms(ASK_MS);
        let waiting = workers.clone();
        call.state = State::Asking(Asking { waiting, until, otherwise, of_others });
        self.timers.insert((until, Timer::Ask(id)));
        for worker in workers {
            let way =
                self.registry.worker(&worker).and_then(|slot| self.registry.workers[slot].path());
            if let Some(way) = way {
                self.send_to_worker(way, worker, ask.clone());
            }
        }
    }

    /// Whatever we sent with this key before, under whatever number, is given up with the question.
    fn question(&self, call: &Call) -> Ask {
        Ask { key: call.key, attempt: call.attempt, number: self.next_number - 1 }
    }

    /// What a worker says of a key.
    pub(super) fn on_answer(&mut self, now: Time, from: PeerId, answer: Answer) {
        let Some(id) = self.keys.get(&answer.key).copied() else { return };
        let call = &mut self.calls[id];
        let State::Asking(asking) = &mut call.state else { return };
        if !asking.waiting.remove(&from) {
            return;
        }
        if answer.knowledge != Knowledge::HELD {
            let (left, otherwise) = (asking.waiting.len(), asking.otherwise);
            return if left == 0 {
                self.nobody_holds(now, id, otherwise)
            };
        }
        // A stream does not move, and there is nothing of it to repeat.
        let streams = call.options.has(Options::STREAM);
        let elsewhere = asking.of_others;
        match self.registry.worker(&from).filter(|_| !streams) {
            Some(slot) => {
                self.calls[id].begun = true;
                self.assign(now, id, slot);
                self.acknowledge(id);
                let state = self.calls.get(id).map(|call| &call.state);
                if elsewhere
                    && let Some(State::Assigned(number, at)) = state
                    && *at == slot
                {
                    self.registry.workers[slot].joined.insert(*number);
                    self.count_changed(now, slot);
                }
            }
            None => self.fate_unknown(now, id),
        }
    }

    /// The workers had their time to answer.
    pub(super) fn ask_timed_out(&mut self, now: Time, id: CallId) {
        let Some(call) = self.calls.get(id) else { return };
        let State::Asking(asking) = &call.state else { return };
        if asking.until <= now {
            // Who let go of it and is silent may have been asked by another broker, to whom the
            // client has sent it again. If not, the client sends it again and everybody is asked.
            let again = !asking.of_others && call.origin == Origin::Native;
            let silent = match asking.otherwise {
                _ if again => Otherwise::Forget,
                Otherwise::Forget => Otherwise::Forget,
                Otherwise::Place | Otherwise::Unavailable => Otherwise::Unavailable,
            };
            self.nobody_holds(now, id, silent);
        }
    }

    fn nobody_holds(&mut self, now: Time, id: CallId, otherwise: Otherwise) {
        match otherwise {
            Otherwise::Place => {
                self.place(now, id);
                self.acknowledge(id);
            }
            Otherwise::Unavailable => self.fate_unknown(now, id),
            Otherwise::Forget => {
                let call = self.remove(id);
                if call.all_ours && !call.assigned_once {
                    self.let_go.put(now, call.key, call.attempt);
                }
            }
        }
    }

    /// Nobody can say whether it ran. Remembered, because a late duplicate must not run it either.
    pub(super) fn fate_unknown(&mut self, now: Time, id: CallId) {
        let text = "it may have run under a broker or a worker that is gone; \
                    only an idempotent call is run again";
        let outcome = Outcome::error(Code::Unavailable, text);
        self.memory.put(now, self.calls[id].key, &outcome);
        self.finish(now, id, outcome);
    }

    // ── pauses ───────────────────────────────────────────────────────────────────────────────

    /// Notices that this process made no step for a while. The beats of that time may still wait
    /// in the sockets, and so may calls that their clients have sent elsewhere long since.
    pub(super) fn look_for_a_pause(&mut self, now: Time) {
        let away = now.since(self.handled);
        self.handled = now;
        if away.as_millis() > u128::from(AWAY_MS) {
            self.was_away(now, away);
        }
    }

    fn was_away(&mut self, now: Time, away: Duration) {
        for (_, worker) in &mut self.registry.workers {
            worker.heard = worker.heard + away;
            worker.suspects.clear();
        }
        self.peers.values_mut().for_each(|peer| peer.heard = peer.heard + away);
        self.linked_last = self.linked_last + away;
        self.calls_lay(now, away);
        // Pipes and brokers have given us up: as at a start, nothing new is steered here before we
        // have heard the workers.
        if away.as_millis() >= u128::from(BEAT_INTERVAL_MS * BEATS_MISSED) {
            (self.ready, self.linked) = (false, None);
        }
        self.beat(false);
    }

    /// What was held here while others may have had our place.
    fn calls_lay(&mut self, now: Time, away: Duration) {
        let elsewhere = !self.peers.is_empty();
        for (id, call) in self.calls.all() {
            match &mut call.state {
                State::Asking(asking) => {
                    asking.until = asking.until + away;
                    self.timers.insert((asking.until, Timer::Ask(id)));
                }
                State::Queued => {
                    let idempotent = call.options.has(Options::IDEMPOTENT);
                    call.stale |= elsewhere && !idempotent && call.dialect == Dialect::Native;
                }
                State::Assigned(..) => {}
            }
        }
        let from = Time(now.0.saturating_sub(away.as_micros() as u64));
        self.lay_from = if now < self.lay_until { from.min(self.lay_from) } else { from };
        self.lay_until = now.plus_ms(BACKLOG_MS);
        if elsewhere {
            self.backlog_until = self.lay_until;
        }
    }

    /// Since when what arrives now may have waited in our sockets.
    pub(super) fn came_from(&self, now: Time) -> Time {
        if now < self.lay_until {
            self.lay_from
        } else if self.hears_no_pipe(now) {
            self.linked_last
        } else {
            now
        }
    }

    /// Whether a worker pipe's answer to our beats is overdue.
    pub(super) fn hears_no_pipe(&self, now: Time) -> bool {
        self.settings.worker_links > 0 && self.linked_last.plus_ms(CUT_MS) <= now
    }

    /// A worker pipe answers. If none did for a while we were cut off, and the workers that we have
    /// not heard meanwhile get a round of beats to be heard again.
    pub(super) fn look_for_a_cut(&mut self, now: Time) {
        if !self.hears_no_pipe(now) {
            return;
        }
        for (_, worker) in &mut self.registry.workers {
            let beat_ms = beat_ms(worker.dialect);
            let spare_ms = beat_ms * (BEATS_MISSED - 1) - ROUND_MARGIN_MS;
            worker.heard = worker.heard.max(Time(now.0.saturating_sub(spare_ms * 1_000)));
            worker.suspects.clear();
        }
        self.calls_lay(now, now.since(self.linked_last));
    }
}
