//! What a home remembers of keyed calls that ended, so that a resend gets the same answer and no
//! second effect. Bounded in time and in bytes; the oldest goes first.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;
use zex_spec::{Key, Metadata};

use crate::Time;
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

/// Bytes that one remembered call costs besides its texts: its record and its place in the index.
const OVERHEAD_BYTES: usize = 128;
/// Calls in one page. A page goes as a whole into the past and leaves piece by piece.
const PAGE_RECORDS: usize = 512;
/// An outcome without metadata and with up to this many bytes is copied into its page. A body is a
/// slice of the message that it came in, and keeping a small one would keep all of that; in a larger
/// one it is a small part.
const COPIED_BYTES: usize = 1 << 10;

/// One call that ended.
#[derive(Debug)]
struct Record {
    at: Time,
    key: Key,
    kept: Kept,
}

/// Where its outcome is.
#[derive(Debug, Clone, Copy)]
enum Kept {
    /// In the page's text, from `at`: the status message, behind it the body.
    Copied { code: u8, chunks: u32, at: u32, message_len: u32, body_len: u32 },
    /// In the page's list, at this place.
    Whole(u32),
}

/// Calls that ended one after the other. Nothing in it is moved or let go one by one: what is
/// remembered by the hundred thousand has long left the cache when it is forgotten.
#[derive(Debug)]
struct Page {
    records: Vec<Record>,
    text: Vec<u8>,
    /// The outcomes that are large or have metadata: they are rare.
    whole: Vec<Outcome>,
}

impl Page {
    fn new() -> Self {
        Self { records: Vec::with_capacity(PAGE_RECORDS), text: Vec::new(), whole: Vec::new() }
    }

    fn push(&mut self, at: Time, key: Key, outcome: &Outcome) {
        let kept = self.keep(outcome);
        self.records.push(Record { at, key, kept });
    }

    fn keep(&mut self, outcome: &Outcome) -> Kept {
        let Outcome { code, message, body, chunks, headers, trailers } = outcome;
        let small = message.len() + body.len() <= COPIED_BYTES;
        if !small || !headers.is_empty() || !trailers.is_empty() {
            self.whole.push(outcome.clone());
            return Kept::Whole(self.whole.len() as u32 - 1);
        }
        // A page's text is 512 KiB at most.
        let at = self.text.len() as u32;
        self.text.extend_from_slice(message.as_bytes());
        self.text.extend_from_slice(body);
        let (message_len, body_len) = (message.len() as u32, body.len() as u32);
        Kept::Copied { code: *code, chunks: *chunks, at, message_len, body_len }
    }

    fn outcome(&self, at: usize) -> Option<Outcome> {
        match self.records.get(at)?.kept {
            Kept::Whole(at) => self.whole.get(at as usize).cloned(),
            Kept::Copied { code, chunks, at, message_len, body_len } => {
                let text = self.text.get(at as usize..)?;
                let (message, rest) = text.split_at_checked(message_len as usize)?;
                let body = Bytes::copy_from_slice(rest.get(..body_len as usize)?);
                let message = String::from_utf8_lossy(message).into_owned();
                Some(Outcome { code, message, body, chunks, ..Outcome::default() })
            }
        }
    }

    /// Lets go of an outcome's bytes, and says how many it counted.
    fn release(&mut self, at: usize) -> usize {
        match self.records.get(at).map(|record| record.kept) {
            // Now, not when the page goes: these are the bytes that the limit is about.
            Some(Kept::Whole(at)) => {
                let whole = self.whole.get_mut(at as usize).map(std::mem::take);
                whole.as_ref().map_or(0, size)
            }
            Some(Kept::Copied { message_len, body_len, .. }) => {
                (message_len + body_len) as usize + OVERHEAD_BYTES
            }
            None => 0,
        }
    }
}

/// The outcomes of the last minute.
#[derive(Debug)]
pub(super) struct Memory {
    /// The oldest first; all but the last are full.
    pages: VecDeque<Page>,
    /// How many records were dropped in front of them, of pages that are gone and of the first.
    dropped: u64,
    /// The number of each key's record, counted from the very first.
    numbers: HashMap<Key, u64, Seeded>,
    /// How many there are, from the first.
    next: u64,
    bytes: usize,
    keep_ms: u64,
    limit_bytes: usize,
}

impl Memory {
    pub(super) fn new(keep_ms: u64, limit_bytes: usize, seed: u64) -> Self {
        Self {
            pages: VecDeque::new(),
            dropped: 0,
            numbers: HashMap::with_hasher(Seeded(seed)),
            next: 0,
            bytes: 0,
            keep_ms,
            limit_bytes,
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Outcome> {
        let (page, at) = self.place(*self.numbers.get(key)?)?;
        self.pages.get(page)?.outcome(at)
    }

    /// Keeps an outcome; the first for a key stays.
    pub(super) fn put(&mut self, now: Time, key: Key, outcome: &Outcome) {
        let size = size(outcome);
        if size > self.limit_bytes {
            return;
        }
        if *self.numbers.entry(key).or_insert(self.next) != self.next {
            return;
        }
        if self.pages.back().is_none_or(|page| page.records.len() == PAGE_RECORDS) {
            self.pages.push_back(Page::new());
        }
        if let Some(page) = self.pages.back_mut() {
            page.push(now, key, outcome);
        }
        self.next += 1;
        self.bytes += size;
        while self.bytes > self.limit_bytes {
            self.drop_oldest();
        }
    }

    /// Forgets what is older than the time to keep.
    pub(super) fn expire(&mut self, now: Time) {
        while self.oldest().is_some_and(|record| record.at.plus_ms(self.keep_ms) <= now) {
            self.drop_oldest();
        }
    }

    fn oldest(&self) -> Option<&Record> {
        let (page, at) = self.place(self.dropped)?;
        self.pages.get(page)?.records.get(at)
    }

    fn drop_oldest(&mut self) {
        let Some((key, (_, at))) =
            self.oldest().map(|record| record.key).zip(self.place(self.dropped))
        else {
            return;
        };
        self.bytes -= self.pages.front_mut().map_or(0, |page| page.release(at));
        self.numbers.remove(&key);
        self.dropped += 1;
        if self.dropped.is_multiple_of(PAGE_RECORDS as u64) {
            self.pages.pop_front();
        }
    }

    /// The page of the record with this number, and its place there.
    fn place(&self, number: u64) -> Option<(usize, usize)> {
        let records = PAGE_RECORDS as u64;
        let page = (number / records).checked_sub(self.dropped / records)?;
        Some((usize::try_from(page).ok()?, (number % records) as usize))
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
        memory.put(Time(0), key(1), &outcome(4_000));
        memory.put(Time(0).plus_ms(1), key(2), &outcome(4_000));
        assert!(memory.get(&key(1)).is_some());
        memory.put(Time(0).plus_ms(2), key(3), &outcome(4_000));
        assert!(memory.get(&key(1)).is_none(), "the oldest makes room");
        memory.put(Time(0).plus_ms(3), key(4), &outcome(20_000));
        assert!(
            memory.get(&key(4)).is_none() && memory.get(&key(3)).is_some(),
            "too large is not kept"
        );
        memory.expire(Time(0).plus_ms(60_001));
        assert!(memory.get(&key(2)).is_none() && memory.get(&key(3)).is_some());
        memory.expire(Time(0).plus_ms(60_002));
        assert_eq!((memory.numbers.len(), memory.oldest().is_none(), memory.bytes), (0, true, 0));
    }

    #[test]
    fn what_it_keeps_is_the_same_over_many_pages() {
        let mut memory = Memory::new(60_000, 2 << 20, 1);
        let key = |n: u64| Key(u128::from(n).to_be_bytes());
        let made = |n: u64| Outcome {
            code: (n % 17) as u8,
            message: "x".repeat((n % 5) as usize),
            body: Bytes::from(vec![
                n as u8;
                [0, 1, 64, COPIED_BYTES, COPIED_BYTES + 1][(n % 5) as usize]
            ]),
            chunks: n as u32,
            ..Outcome::default()
        };
        let all = 20 * PAGE_RECORDS as u64;
        for n in 0..all {
            memory.put(Time(n), key(n), &made(n));
            memory.put(Time(n), key(n), &made(n + 1));
            let oldest = memory.dropped;
            for n in [oldest, (oldest + n) / 2, n] {
                assert_eq!(memory.get(&key(n)), Some(made(n)));
            }
            assert!(oldest == 0 || memory.get(&key(oldest - 1)).is_none());
        }
        assert!(memory.dropped > 2 * PAGE_RECORDS as u64 && memory.bytes <= 2 << 20);
        let kept = (memory.dropped..all).map(|n| size(&made(n))).sum::<usize>();
        assert_eq!((memory.bytes, memory.numbers.len() as u64), (kept, all - memory.dropped));
        memory.expire(Time(all).plus_ms(60_000));
        assert_eq!((memory.bytes, memory.numbers.len()), (0, 0));
        memory.put(Time(0), key(3), &made(3));
        assert_eq!(memory.get(&key(3)), Some(made(3)));
    }
}
