//! What a home remembers of keyed calls that ended, so that a resend gets the same answer and no
//! second effect. Bounded in time and in bytes; the oldest goes first.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;
use zex_spec::{Key, Metadata};

use crate::Time;
use crate::kept::Pages;
use crate::seeded::Seeded;

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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Outcome {
    /// A gRPC status code.
    pub(super) code: u8,
    /// The status message.
    pub(super) message: String,
    /// The reply, or the status's details.
    pub(super) body: Bytes,
    /// Chunks before it, if it was a stream.
    pub(super) chunks: u32,
    /// What the answer began with.
    pub(super) headers: Metadata,
    /// What it ended with.
    pub(super) trailers: Metadata,
}

/// Bytes that one remembered call costs besides its body: map entry, queue entry, strings.
const OVERHEAD_BYTES: usize = 160;

#[derive(Debug)]
struct Entry {
    at: Time,
    key: Key,
    outcome: Outcome,
}

/// The outcomes of the last minute.
#[derive(Debug)]
pub(super) struct Memory {
    /// The oldest first.
    entries: VecDeque<Entry>,
    /// How many have been dropped in front of them.
    dropped: u64,
    /// The number of each key's entry, counted from the very first.
    numbers: HashMap<Key, u64, Seeded>,
    pages: Pages,
    bytes: usize,
    keep_ms: u64,
    limit_bytes: usize,
}

impl Memory {
    pub(super) fn new(keep_ms: u64, limit_bytes: usize, seed: u64) -> Self {
        Self {
            entries: VecDeque::new(),
            dropped: 0,
            numbers: HashMap::with_hasher(Seeded(seed)),
            pages: Pages::default(),
            bytes: 0,
            keep_ms,
            limit_bytes,
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Outcome> {
        let at = self.numbers.get(key)?.checked_sub(self.dropped)?;
        self.entries.get(usize::try_from(at).ok()?).map(|entry| &entry.outcome)
    }

    /// Keeps an outcome; the first for a key stays.
    pub(super) fn put(&mut self, now: Time, key: Key, outcome: Outcome) {
        let size = size(&outcome);
        if size > self.limit_bytes {
            return;
        }
        let number = self.dropped + self.entries.len() as u64;
        if *self.numbers.entry(key).or_insert(number) != number {
            return;
        }
        self.bytes += size;
        let outcome = Outcome { body: self.pages.keep(outcome.body), ..outcome };
        self.entries.push_back(Entry { at: now, key, outcome });
        while self.bytes > self.limit_bytes {
            self.drop_oldest();
        }
    }

    /// Forgets what is older than the time to keep.
    pub(super) fn expire(&mut self, now: Time) {
        let keep_ms = self.keep_ms;
        let old = |entry: &Entry| entry.at.plus_ms(keep_ms) <= now;
        while self.entries.front().is_some_and(old) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.dropped += 1;
        self.numbers.remove(&entry.key);
        self.bytes -= size(&entry.outcome);
    }
}

fn size(outcome: &Outcome) -> usize {
    let beside = outcome.headers.len() + outcome.trailers.len();
    outcome.body.len() + beside + outcome.message.len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(bytes: usize) -> Outcome {
        Outcome { body: Bytes::from(vec![0; bytes]), ..Outcome::default() }
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
        assert_eq!((memory.numbers.len(), memory.entries.len(), memory.bytes), (0, 0, 0));
    }
}
