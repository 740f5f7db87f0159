//! What a home remembers of keyed calls that ended, so that a resend gets the same answer and no
//! second effect. Bounded in time and in bytes; the oldest goes first.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, DefaultHasher, Hasher};

use bytes::Bytes;
use zex_spec::Key;

use crate::Time;

/// A hasher that is the same in every run with the same seed: the simulator needs that, and a
/// real broker's random seed keeps strangers from choosing keys that collide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seeded(pub(super) u64);

impl BuildHasher for Seeded {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

/// A hasher for numbers that this broker gives out itself, one after the other. Nobody else can
/// choose them, so one multiplication (Knuth's, by 2^64 over the golden ratio) spreads them well.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers;

impl BuildHasher for Numbers {
    type Hasher = Multiply;

    fn build_hasher(&self) -> Multiply {
        Multiply(0)
    }
}

/// See [`Numbers`].
#[derive(Debug)]
pub(super) struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// A gRPC status code.
    pub(super) code: u8,
    /// The status message.
    pub(super) message: String,
    /// The reply, or the status's details.
    pub(super) body: Bytes,
    /// Chunks before it, if it was a stream.
    pub(super) chunks: u32,
}

/// Bytes that one remembered call costs besides its body: map entry, queue entry, strings.
const OVERHEAD_BYTES: usize = 160;

/// The outcomes of the last minute.
#[derive(Debug)]
pub(super) struct Memory {
    outcomes: HashMap<Key, Outcome, Seeded>,
    oldest: VecDeque<(Time, Key)>,
    bytes: usize,
    keep_ms: u64,
    limit_bytes: usize,
}

impl Memory {
    pub(super) fn new(keep_ms: u64, limit_bytes: usize, seed: u64) -> Self {
        let outcomes = HashMap::with_hasher(Seeded(seed));
        Self { outcomes, oldest: VecDeque::new(), bytes: 0, keep_ms, limit_bytes }
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Outcome> {
        self.outcomes.get(key)
    }

    /// Keeps an outcome; the first for a key stays.
    pub(super) fn put(&mut self, now: Time, key: Key, outcome: Outcome) {
        let size = size(&outcome);
        if size > self.limit_bytes || self.outcomes.contains_key(&key) {
            return;
        }
        self.bytes += size;
        self.outcomes.insert(key, outcome);
        self.oldest.push_back((now, key));
        while self.bytes > self.limit_bytes {
            self.drop_oldest();
        }
    }

    /// Forgets what is older than the time to keep.
    pub(super) fn expire(&mut self, now: Time) {
        while self.oldest.front().is_some_and(|(at, _)| at.plus_ms(self.keep_ms) <= now) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((_, key)) = self.oldest.pop_front() else { return };
        if let Some(outcome) = self.outcomes.remove(&key) {
            self.bytes -= size(&outcome);
        }
    }
}

fn size(outcome: &Outcome) -> usize {
    outcome.body.len() + outcome.message.len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(bytes: usize) -> Outcome {
        Outcome { code: 0, message: String::new(), body: Bytes::from(vec![0; bytes]), chunks: 0 }
    }

    #[test]
    fn it_forgets_by_age_and_by_bytes() {
        let mut memory = Memory::new(60_000, 10_000, 1);
        let key = |n: u8| Key([n; 16]);
        memory.put(Time(0), key(1), outcome(4_000));
        memory.put(Time(0).plus_ms(1), key(2), outcome(4_000));
        assert!(memory.get(&key(1)).is_some());
        memory.put(Time(0).plus_ms(2), key(3), outcome(4_000));
        assert!(memory.get(&key(1)).is_none(), "the oldest makes room");
        memory.put(Time(0).plus_ms(3), key(4), outcome(20_000));
        assert!(
            memory.get(&key(4)).is_none() && memory.get(&key(3)).is_some(),
            "too large is not kept"
        );
        memory.expire(Time(0).plus_ms(60_001));
        assert!(memory.get(&key(2)).is_none() && memory.get(&key(3)).is_some());
        memory.expire(Time(0).plus_ms(60_002));
        assert_eq!((memory.outcomes.len(), memory.bytes), (0, 0));
    }
}
