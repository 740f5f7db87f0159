//! What a worker remembers of keys, so that sending a call twice runs it once.
//!
//! ```text
//!            Work                        finished                60 s
//!   nothing ──────▶ Running ───────────────────────▶ Answered ─────────▶ nothing
//!      │ Ask            ▲                               │ too many bytes
//!      ▼                │ Work that came after it       ▼
//!    Denied ────────────┘                             Spent: it ran, its answer is not kept
//!      └── 60 s ──▶ nothing
//! ```
//!
//! When even the bare keys are too many, the oldest are forgotten early, and until the time when
//! they would have been anyway the worker cannot say "never begun here" of a key that it does not
//! know. It then says nothing, and the caller gets `UNAVAILABLE` instead of a second effect.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use zex_spec::{BrokerId, Key, Metadata};

use super::worker::RunId;
use crate::Time;
use crate::kept::Pages;
use crate::seeded::Seeded;

/// How long answers and denials are remembered, ms.
pub(super) const MEMORY_MS: u64 = 60_000;
/// What an answer costs besides its bytes: key, record and queue entry.
const ANSWER_OVERHEAD_BYTES: usize = 160;

/// How much a worker remembers.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLimits {
    /// Bytes of answers; beyond, the oldest are given up and only their keys are kept.
    pub answer_bytes: usize,
    /// Keys of answered work; beyond, the oldest are forgotten.
    pub keys: usize,
    /// Keys that were denied; beyond, nothing is denied any more.
    pub denials: usize,
}

impl Default for MemoryLimits {
    /// 64 MiB of answers; a million keys, about 100 MB when full (17,000 calls a second through
    /// one worker, for a minute); 100,000 denials.
    fn default() -> Self {
        Self { answer_bytes: 64 << 20, keys: 1_000_000, denials: 100_000 }
    }
}

/// How a piece of work ended: the reply without its address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answered {
    pub(super) code: u8,
    pub(super) message: String,
    pub(super) chunks: u32,
    pub(super) body: Bytes,
    pub(super) headers: Metadata,
    pub(super) trailers: Metadata,
}

impl Answered {
    fn cost(&self) -> usize {
        let beside = self.headers.len() + self.trailers.len();
        self.body.len() + beside + self.message.len() + ANSWER_OVERHEAD_BYTES
    }
}

#[derive(Debug)]
struct Denial {
    attempt: u8,
    asker: BrokerId,
    /// The highest number that the asker had given away when it asked: what has no higher one was on
    /// its way, and the asker has given it up.
    number: u64,
    until: Time,
}

/// Small, because there are many: what is large or rare is boxed.
#[derive(Debug)]
enum State {
    Running(RunId),
    /// Its number among all that were ever answered here, which says where its answer is.
    Ended(u64),
    Denied(Box<Denial>),
}

/// What is known of a key, for who has work with it.
#[derive(Debug, PartialEq)]
pub(super) enum Known<'a> {
    Nothing,
    Running(RunId),
    Answered(&'a Answered),
    Spent,
    /// Whether the work in question must not begin because of it.
    Denied {
        refused: bool,
    },
}

/// The memory.
#[derive(Debug)]
pub(super) struct Memory {
    limits: MemoryLimits,
    states: HashMap<Key, State, Seeded>,
    /// Ended keys with the end of their time, the oldest first.
    ended: VecDeque<(Time, Key)>,
    /// How many have been forgotten in front of them.
    forgotten: u64,
    /// The answers of the latest of them; the keys before are spent.
    answers: VecDeque<Answered>,
    answer_bytes: usize,
    pages: Pages,
    denied: VecDeque<(Time, Key)>,
    /// Until then an unknown key may be one that was forgotten early.
    blind_until: Time,
}

impl Memory {
    /// `seed` keeps strangers from choosing keys that collide.
    pub(super) fn new(limits: MemoryLimits, seed: u64) -> Self {
        Self {
            limits,
            states: HashMap::with_hasher(Seeded(seed)),
            ended: VecDeque::new(),
            forgotten: 0,
            answers: VecDeque::new(),
            answer_bytes: 0,
            pages: Pages::default(),
            denied: VecDeque::new(),
            blind_until: Time(0),
        }
    }

    /// What is known of `key`, for work of this owner, with this number of it, and attempt.
    pub(super) fn look_up(
        &self,
        key: &Key,
        (owner, number): (BrokerId, u64),
        attempt: u8,
    ) -> Known<'_> {
        match self.states.get(key) {
            None => Known::Nothing,
            Some(State::Running(run)) => Known::Running(*run),
            Some(State::Ended(number)) => {
                self.answer_of(*number).map_or(Known::Spent, Known::Answered)
            }
            Some(State::Denied(denial)) => {
                let refused = match denial.asker == owner {
                    true => number <= denial.number,
                    false => attempt <= denial.attempt,
                };
                Known::Denied { refused }
            }
        }
    }

    /// The run of a key that runs.
    pub(super) fn running(&self, key: &Key) -> Option<RunId> {
        match self.states.get(key) {
            Some(State::Running(run)) => Some(*run),
            _ => None,
        }
    }

    /// Whether the answer to this key is still kept.
    pub(super) fn has_answer(&self, key: &Key) -> bool {
        let state = self.states.get(key);
        matches!(state, Some(State::Ended(number)) if self.answer_of(*number).is_some())
    }

    /// Work with this key begins.
    pub(super) fn begin(&mut self, key: Key, run: RunId) {
        self.states.insert(key, State::Running(run));
    }

    /// It has ended.
    pub(super) fn answer(&mut self, now: Time, key: Key, answer: Answered) {
        self.answer_bytes += answer.cost();
        let number = self.forgotten + self.ended.len() as u64;
        self.states.insert(key, State::Ended(number));
        self.ended.push_back((now.plus_ms(MEMORY_MS), key));
        let body = self.pages.keep(answer.body);
        self.answers.push_back(Answered { body, ..answer });
        while self.answer_bytes > self.limits.answer_bytes && !self.answers.is_empty() {
            self.spend_oldest();
        }
        while self.ended.len() > self.limits.keys {
            if let Some(until) = self.forget_oldest() {
                self.blind_until = self.blind_until.max(until);
            }
        }
    }

    /// A broker asks whether it may give work with this key and attempt to anybody. `Some(true)`:
    /// it runs or ran here. `Some(false)`: it never did, and will not for another broker's attempt up
    /// to this one, nor for work of the asker up to this number. `None`: nobody can say any more, or
    /// another broker asked about a later attempt.
    pub(super) fn ask(
        &mut self,
        now: Time,
        key: Key,
        attempt: u8,
        (asker, number): (BrokerId, u64),
    ) -> Option<bool> {
        let until = now.plus_ms(MEMORY_MS);
        match self.states.get_mut(&key) {
            Some(State::Running(_) | State::Ended(_)) => return Some(true),
            _ if self.denied.len() >= self.limits.denials => return None,
            // Another broker has a later attempt of it. To deny it to this one, too, would have it
            // try the next worker.
            Some(State::Denied(denial)) if attempt < denial.attempt && asker != denial.asker => {
                return None;
            }
            // Questions of one broker may overtake each other; what was promised stays so.
            Some(State::Denied(denial)) if asker == denial.asker => {
                let (attempt, number) = (attempt.max(denial.attempt), number.max(denial.number));
                **denial = Denial { attempt, asker, number, until };
            }
            // Between two askers the later attempt counts: it is what the caller sent last.
            Some(State::Denied(denial)) => **denial = Denial { attempt, asker, number, until },
            None if now < self.blind_until => return None,
            None => {
                let denial = Denial { attempt, asker, number, until };
                self.states.insert(key, State::Denied(Box::new(denial)));
            }
        }
        self.denied.push_back((until, key));
        Some(false)
    }

    /// Forgets what has had its time.
    pub(super) fn expire(&mut self, now: Time) {
        while self.ended.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
        while self.denied.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, key)) = self.denied.pop_front() else { break };
            // A key that was denied again, or runs, is not done with.
            if matches!(self.states.get(&key), Some(State::Denied(denial)) if denial.until <= now) {
                self.states.remove(&key);
            }
        }
    }

    /// The answer with this number, if it is still kept.
    fn answer_of(&self, number: u64) -> Option<&Answered> {
        let spent = self.ended.len() - self.answers.len();
        let at = number.checked_sub(self.forgotten + spent as u64)?;
        self.answers.get(usize::try_from(at).ok()?)
    }

    /// Gives up the oldest answer and keeps its key.
    fn spend_oldest(&mut self) {
        if let Some(answer) = self.answers.pop_front() {
            self.answer_bytes -= answer.cost();
        }
    }

    fn forget_oldest(&mut self) -> Option<Time> {
        if self.answers.len() == self.ended.len() {
            self.spend_oldest();
        }
        let (until, key) = self.ended.pop_front()?;
        // A key that ended twice is known until the later one's time.
        if matches!(self.states.get(&key), Some(State::Ended(number)) if *number == self.forgotten)
        {
            self.states.remove(&key);
        }
        self.forgotten += 1;
        Some(until)
    }
}

#[cfg(test)]
mod tests {
    use zex_spec::Incarnation;

    use super::*;

    const A: BrokerId = Incarnation(1);
    const B: BrokerId = Incarnation(2);

    fn key(n: u8) -> Key {
        Key([n; 16])
    }

    fn answer(len: usize) -> Answered {
        Answered { body: Bytes::from(vec![1; len]), ..Answered::default() }
    }

    #[test]
    fn a_denied_key_is_refused_to_others_up_to_its_attempt() {
        // (work's attempt, work's owner, refused?) after A asked at attempt 2.
        let table = [(0, A, false), (2, A, false), (0, B, true), (2, B, true), (3, B, false)];
        let mut memory = Memory::new(MemoryLimits::default(), 1);
        assert_eq!(memory.ask(Time(0), key(1), 2, (A, 7)), Some(false));
        for (attempt, owner, refused) in table {
            assert_eq!(memory.look_up(&key(1), (owner, 9), attempt), Known::Denied { refused });
        }
        // A lower attempt that asks late changes nothing; a later one does.
        assert_eq!(memory.ask(Time(0), key(1), 1, (B, 7)), None);
        assert_eq!(memory.look_up(&key(1), (A, 9), 2), Known::Denied { refused: false });
        assert_eq!(memory.ask(Time(0), key(1), 3, (B, 7)), Some(false));
        assert_eq!(memory.look_up(&key(1), (A, 9), 2), Known::Denied { refused: true });
        memory.expire(Time(0).plus_ms(MEMORY_MS));
        assert_eq!(memory.look_up(&key(1), (A, 9), 2), Known::Nothing);
    }

    #[test]
    fn work_that_was_underway_when_its_owner_asked_does_not_begin() {
        let mut memory = Memory::new(MemoryLimits::default(), 1);
        assert_eq!(memory.ask(Time(0), key(1), 0, (A, 7)), Some(false));
        // Overtaken by the question, by another pipe: its owner has given it to somebody else. Which
        // attempt it is does not matter.
        for attempt in 0..3 {
            assert_eq!(memory.look_up(&key(1), (A, 7), attempt), Known::Denied { refused: true });
        }
        // What its owner sends after the answer.
        assert_eq!(memory.look_up(&key(1), (A, 8), 0), Known::Denied { refused: false });
        // A question of before that comes late takes nothing back.
        assert_eq!(memory.ask(Time(0), key(1), 0, (A, 3)), Some(false));
        assert_eq!(memory.look_up(&key(1), (A, 7), 0), Known::Denied { refused: true });
    }

    #[test]
    fn answers_are_kept_for_their_time_and_within_their_bytes() {
        let limits = MemoryLimits { answer_bytes: 3_000, ..MemoryLimits::default() };
        let mut memory = Memory::new(limits, 1);
        for n in 1..=3 {
            memory.begin(key(n), RunId(n.into()));
            assert_eq!(memory.ask(Time(0), key(n), 1, (A, 7)), Some(true));
            memory.answer(Time(0).plus_ms(n.into()), key(n), answer(1_000));
        }
        assert_eq!(memory.look_up(&key(1), (A, 9), 1), Known::Spent);
        assert_eq!(memory.ask(Time(0), key(1), 1, (A, 7)), Some(true));
        assert_eq!(memory.look_up(&key(3), (A, 9), 1), Known::Answered(&answer(1_000)));
        memory.expire(Time(0).plus_ms(MEMORY_MS + 1));
        assert_eq!(memory.look_up(&key(1), (A, 9), 1), Known::Nothing);
        assert_eq!(memory.look_up(&key(2), (A, 9), 1), Known::Answered(&answer(1_000)));
        memory.expire(Time(0).plus_ms(MEMORY_MS + 3));
        assert_eq!((memory.states.len(), memory.answer_bytes, memory.answers.len()), (0, 0, 0));
    }

    #[test]
    fn who_forgot_a_key_early_does_not_deny_it() {
        let limits = MemoryLimits { keys: 2, ..MemoryLimits::default() };
        let mut memory = Memory::new(limits, 1);
        for n in 1..=3 {
            memory.answer(Time(0).plus_ms(n.into()), key(n), answer(0));
        }
        assert_eq!(memory.ask(Time(10), key(1), 1, (A, 7)), None);
        assert_eq!(memory.ask(Time(10), key(3), 1, (A, 7)), Some(true));
        let later = Time(0).plus_ms(MEMORY_MS + 1);
        memory.expire(later);
        assert_eq!(memory.ask(later, key(1), 1, (A, 7)), Some(false));
    }

    #[test]
    fn denials_are_bounded() {
        let limits = MemoryLimits { denials: 2, ..MemoryLimits::default() };
        let mut memory = Memory::new(limits, 1);
        let said: Vec<_> = (1..=3).map(|n| memory.ask(Time(0), key(n), 1, (A, 7))).collect();
        assert_eq!(said, [Some(false), Some(false), None]);
    }
}
