//! The sending end of a stream: messages become chunks, as many as the receiver has room for.
//!
//! ```text
//!   handler ─▶ [ queue ≤ STREAM_BUFFER_BYTES ] ─▶ chunks ≤ 64 KiB, within the credit ─▶ owner
//!      ◀── room, when messages have left ──┘
//! ```

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use zex_spec::{INITIAL_CREDIT_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_COST_BYTES, Status, chunk_cost};

use super::messages::LENGTH_BYTES;

/// What a handler may have queued at its session, in charges ([`stream_charge`]): four chunks, so
/// that the next one is ready when credit comes, and no more, because the credit is the buffer.
pub const STREAM_BUFFER_BYTES: u32 = 4 * MAX_CHUNK_BYTES as u32;
/// Credit that a receiver can pile up, bytes: a bound for what one broken receiver can claim.
const MAX_CREDIT_BYTES: u64 = 64 * INITIAL_CREDIT_BYTES as u64;

/// What a message of so many bytes takes of [`STREAM_BUFFER_BYTES`]; the session gives it back as
/// [`super::worker::Action::Room`]. A message that is larger than the buffer takes all of it.
pub fn stream_charge(len: usize) -> u32 {
    u32::try_from(len + LENGTH_BYTES).unwrap_or(u32::MAX).min(STREAM_BUFFER_BYTES)
}

/// One stream's sending end.
#[derive(Debug)]
pub(super) struct Sender {
    queue: VecDeque<Bytes>,
    /// Bytes of the first message, its length included, that have left.
    offset: usize,
    credit: u64,
    /// The number of the last chunk.
    number: u32,
    /// How it ends once the queue is empty.
    outcome: Option<Result<(), Status>>,
    /// Chunks that the path would not take, by number; nothing overtakes them.
    returned: BTreeMap<u32, Bytes>,
    /// Set from then until it may be tried again.
    stalled: bool,
    /// Whether the session has it in its list of streams with something to send.
    pub(super) listed: bool,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            offset: 0,
            credit: u64::from(INITIAL_CREDIT_BYTES),
            number: 0,
            outcome: None,
            returned: BTreeMap::new(),
            stalled: false,
            listed: false,
        }
    }

    /// The number of the last chunk that left, for beats and for the reply.
    pub(super) fn chunks(&self) -> u32 {
        // The first that came back has not left, nor has any behind it.
        self.returned.keys().next().map_or(self.number, |first| first - 1)
    }

    /// The handler sends a message.
    pub(super) fn push(&mut self, message: Bytes) {
        if self.outcome.is_none() {
            self.queue.push_back(message);
        }
    }

    /// The handler is done; what is queued still goes out.
    pub(super) fn finish(&mut self, outcome: Result<(), Status>) {
        self.outcome.get_or_insert(outcome);
    }

    /// The receiver has room for so much more.
    pub(super) fn credit(&mut self, bytes: u32) {
        self.credit = (self.credit + u64::from(bytes)).min(MAX_CREDIT_BYTES);
    }

    /// The path would not take this chunk.
    pub(super) fn give_back(&mut self, number: u32, part: Bytes) {
        self.returned.insert(number, part);
        self.stalled = true;
    }

    /// The path may be tried again.
    pub(super) fn resume(&mut self) {
        self.stalled = false;
    }

    /// Whether there is something to send now: a part, or the end.
    pub(super) fn has_next(&self) -> bool {
        let part = !self.queue.is_empty() && self.has_credit();
        let end = self.queue.is_empty() && self.outcome.is_some();
        !self.stalled && (!self.returned.is_empty() || part || end)
    }

    /// Whether there is enough for one chunk. What is left below that is not lost.
    fn has_credit(&self) -> bool {
        self.credit >= u64::from(MIN_CHUNK_COST_BYTES)
    }

    /// How it ends, once everything in front of the end has left.
    pub(super) fn take_outcome(&mut self) -> Option<Result<(), Status>> {
        let done = self.queue.is_empty() && self.returned.is_empty();
        if done { self.outcome.take() } else { None }
    }

    /// The next chunk, and the charge of the messages whose last byte it has.
    pub(super) fn next_part(&mut self) -> Option<(u32, Bytes, u32)> {
        if let Some((number, part)) = self.returned.pop_first() {
            return Some((number, part, 0));
        }
        let limit = usize::try_from(self.credit).unwrap_or(usize::MAX).min(MAX_CHUNK_BYTES);
        let first = self.queue.front()?;
        if !self.has_credit() {
            return None;
        }
        // Inside a message that fills the chunk there is nothing to copy together.
        let (part, room) = match self.offset.checked_sub(LENGTH_BYTES) {
            Some(at) if first.len() - at > limit => {
                self.offset += limit;
                (first.slice(at..at + limit), 0)
            }
            _ => self.gather(limit),
        };
        self.credit -= u64::from(chunk_cost(part.len()));
        self.number = self.number.wrapping_add(1);
        Some((self.number, part, room))
    }

    /// Copies up to `limit` bytes of queued messages together.
    fn gather(&mut self, limit: usize) -> (Bytes, u32) {
        // More messages than this do not fit, whatever their length.
        let fitting = limit / LENGTH_BYTES + 1;
        let queued: usize = self.queue.iter().take(fitting).map(|m| m.len() + LENGTH_BYTES).sum();
        let mut part = BytesMut::with_capacity(limit.min(queued - self.offset));
        let mut room = 0;
        while let Some(message) = self.queue.front().filter(|_| part.len() < limit) {
            let length = (message.len() as u32).to_be_bytes();
            if self.offset < LENGTH_BYTES {
                let take = (LENGTH_BYTES - self.offset).min(limit - part.len());
                part.put_slice(&length[self.offset..self.offset + take]);
                self.offset += take;
            }
            if let Some(at) = self.offset.checked_sub(LENGTH_BYTES) {
                let take = (message.len() - at).min(limit - part.len());
                part.put_slice(&message[at..at + take]);
                self.offset += take;
                if self.offset == message.len() + LENGTH_BYTES {
                    room += stream_charge(message.len());
                    self.offset = 0;
                    self.queue.pop_front();
                }
            }
        }
        (part.freeze(), room)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Messages;
    use super::*;

    #[test]
    fn all_messages_come_out_within_the_credit_and_all_room_comes_back() {
        // Lengths around every border: the empty message, the length that is cut, the whole chunk.
        let lengths =
            [0, 1, 3, MAX_CHUNK_BYTES - 5, MAX_CHUNK_BYTES, 1, 3 * MAX_CHUNK_BYTES, 700_000, 9];
        let mut sender = Sender::new();
        let mut charged = 0;
        for (number, len) in lengths.into_iter().enumerate() {
            charged += stream_charge(len);
            sender.push(Bytes::from(vec![number as u8; len]));
        }
        sender.finish(Ok(()));
        let (mut reader, mut out, mut number, mut room) = (Messages::default(), Vec::new(), 0, 0);
        let mut credit = u64::from(INITIAL_CREDIT_BYTES);
        while sender.has_next() && sender.take_outcome().is_none() {
            let (at, part, freed) = sender.next_part().unwrap();
            assert!(part.len() <= MAX_CHUNK_BYTES && part.len() as u64 <= credit);
            credit -= u64::from(chunk_cost(part.len()));
            number += 1;
            assert_eq!(at, number);
            room += freed;
            reader.push(part);
            while let Some(message) = reader.next_message().unwrap() {
                out.push(message.len());
            }
            if credit < u64::from(MIN_CHUNK_COST_BYTES) {
                assert!(sender.queue.is_empty() || !sender.has_next());
                // An odd number, so that a length is cut in its middle now and then.
                sender.credit(65_537);
                credit += 65_537;
            }
        }
        assert_eq!(out, lengths);
        assert_eq!((sender.chunks(), room), (number, charged));
    }

    #[test]
    fn tiny_chunks_take_more_of_the_credit_than_their_bytes() {
        let mut sender = Sender::new();
        let mut chunks = 0;
        loop {
            sender.push(Bytes::from_static(b"x"));
            if sender.next_part().is_none() {
                break;
            }
            chunks += 1;
        }
        assert_eq!(chunks, INITIAL_CREDIT_BYTES / MIN_CHUNK_COST_BYTES);
        sender.credit(MIN_CHUNK_COST_BYTES - 1);
        assert!(!sender.has_next());
        sender.credit(1);
        assert!(sender.next_part().is_some() && !sender.has_next());
    }

    #[test]
    fn nothing_overtakes_parts_that_came_back() {
        let mut sender = Sender::new();
        let mut parts = Vec::new();
        for message in [&b"a"[..], b"b", b"c"] {
            sender.push(Bytes::from_static(message));
            parts.extend(sender.next_part().map(|(number, part, _)| (number, part)));
        }
        sender.push(Bytes::from_static(b"d"));
        sender.finish(Ok(()));
        for (number, part) in parts.iter().skip(1).cloned() {
            sender.give_back(number, part);
        }
        assert!(!sender.has_next());
        // A beat names what has left.
        assert_eq!(sender.chunks(), 1);
        sender.resume();
        // The first of them comes back once more.
        let (number, part, _) = sender.next_part().unwrap();
        assert_eq!((number, &part), (2, &parts[1].1));
        sender.give_back(number, part);
        sender.resume();
        let numbers: Vec<u32> =
            std::iter::from_fn(|| sender.next_part().map(|(number, ..)| number)).collect();
        assert_eq!(numbers, [2, 3, 4]);
        assert_eq!(sender.take_outcome(), Some(Ok(())));
    }
}
