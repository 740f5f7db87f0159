//! The sending end of one direction of a stream: messages become chunks, as many as the receiver
//! has room for.
//!
//! ```text
//!   source ─▶ [ queue ≤ STREAM_BUFFER_BYTES ] ─▶ chunks ≤ 64 KiB, within the credit ─▶ owner
//!      ◀── room, when messages have left ──┘
//! ```
//!
//! Part of [`super::stream`]; a handler's replies and a caller's requests leave by the same code.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use zex_spec::{INITIAL_CREDIT_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_COST_BYTES, chunk_cost};

use super::messages::LENGTH_BYTES;

/// What a source may have queued at its session, in charges ([`stream_charge`]): four chunks, so
/// that the next one is ready when credit comes, and no more, because the credit is the buffer.
pub const STREAM_BUFFER_BYTES: u32 = 4 * MAX_CHUNK_BYTES as u32;
/// Credit that a receiver can pile up, bytes: a bound for what one broken receiver can claim.
const MAX_CREDIT_BYTES: u64 = 64 * INITIAL_CREDIT_BYTES as u64;
/// With less credit than this a chunk is not begun, bytes: it costs so much, however small it is.
/// What is left below that is not lost.
const LEAST_CREDIT_BYTES: u64 = MIN_CHUNK_COST_BYTES as u64;

/// What a message of so many bytes takes of [`STREAM_BUFFER_BYTES`]; the session gives it back as
/// [`super::worker::Action::Room`] or [`super::client::Action::Room`]. A message that is larger than
/// the buffer takes all of it.
pub fn stream_charge(len: usize) -> u32 {
    u32::try_from(len + LENGTH_BYTES).unwrap_or(u32::MAX).min(STREAM_BUFFER_BYTES)
}

/// A chunk to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) number: u32,
    pub(super) body: Bytes,
    /// The charge of the messages whose last byte it has.
    pub(super) room: u32,
}

/// How far the end of the messages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// More may come.
    Open,
    /// Nothing comes behind what is queued.
    Closing,
    /// Everything has left, and the end was told.
    Told,
}

/// One direction's sending end.
#[derive(Debug)]
pub(super) struct Sender {
    queue: VecDeque<Bytes>,
    /// Bytes of the first message, its length included, that have left.
    offset: usize,
    /// What may be spent in all, and what is.
    allowed: u64,
    spent: u64,
    /// The number of the last chunk.
    number: u32,
    ending: Ending,
    /// Chunks that the path would not take, by number; nothing overtakes them.
    returned: BTreeMap<u32, Bytes>,
    /// Set from then until it may be tried again.
    stalled: bool,
}

impl Sender {
    /// With so much credit from the beginning.
    pub(super) fn new(allowed: u32) -> Self {
        Self {
            queue: VecDeque::new(),
            offset: 0,
            allowed: u64::from(allowed),
            spent: 0,
            number: 0,
            ending: Ending::Open,
            returned: BTreeMap::new(),
            stalled: false,
        }
    }

    /// The number of the last chunk that left, for beats and for the reply.
    pub(super) fn chunks(&self) -> u32 {
        // The first that came back has not left, nor has any behind it.
        self.returned.keys().next().map_or(self.number, |first| first.wrapping_sub(1))
    }

    /// The source sends a message.
    pub(super) fn push(&mut self, message: Bytes) {
        if self.ending == Ending::Open {
            self.queue.push_back(message);
        }
    }

    /// The source is done; what is queued still goes out.
    pub(super) fn finish(&mut self) {
        if self.ending == Ending::Open {
            self.ending = Ending::Closing;
        }
    }

    /// The receiver lets so much be spent in all.
    pub(super) fn credit(&mut self, upto: u64) {
        self.allowed = self.allowed.max(upto.min(self.spent + MAX_CREDIT_BYTES));
    }

    /// The path would not take this chunk; without a body it was the end alone.
    pub(super) fn give_back(&mut self, number: u32, body: Bytes) {
        if self.ending == Ending::Told {
            self.ending = Ending::Closing;
        }
        if !body.is_empty() {
            self.returned.insert(number, body);
        }
        self.stalled = true;
    }

    /// The path may be tried again.
    pub(super) fn resume(&mut self) {
        self.stalled = false;
    }

    /// Whether there is something to send now: a part, or the end.
    pub(super) fn has_next(&self) -> bool {
        let part = !self.queue.is_empty() && self.left() >= LEAST_CREDIT_BYTES;
        !self.stalled && (!self.returned.is_empty() || part || self.is_ending())
    }

    /// Whether the end is the next thing to be told: true once, then it is.
    pub(super) fn take_end(&mut self) -> bool {
        let end = self.is_ending();
        if end {
            self.ending = Ending::Told;
        }
        end
    }

    /// Whether the end was told.
    pub(super) fn has_ended(&self) -> bool {
        self.ending == Ending::Told
    }

    /// The next chunk.
    pub(super) fn next_part(&mut self) -> Option<Part> {
        if let Some((number, body)) = self.returned.pop_first() {
            return Some(Part { number, body, room: 0 });
        }
        let first = self.queue.front()?;
        if self.left() < LEAST_CREDIT_BYTES {
            return None;
        }
        let limit = usize::try_from(self.left()).unwrap_or(usize::MAX).min(MAX_CHUNK_BYTES);
        // Inside a message that fills the chunk there is nothing to copy together.
        let (body, room) = match self.offset.checked_sub(LENGTH_BYTES) {
            Some(at) if first.len() - at > limit => {
                self.offset += limit;
                (first.slice(at..at + limit), 0)
            }
            _ => self.gather(limit),
        };
        self.spent += u64::from(chunk_cost(body.len()));
        self.number = self.number.wrapping_add(1);
        Some(Part { number: self.number, body, room })
    }

    fn left(&self) -> u64 {
        self.allowed - self.spent
    }

    fn is_ending(&self) -> bool {
        self.ending == Ending::Closing && self.queue.is_empty() && self.returned.is_empty()
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
        let mut sender = Sender::new(INITIAL_CREDIT_BYTES);
        let mut charged = 0;
        for (number, len) in lengths.into_iter().enumerate() {
            charged += stream_charge(len);
            sender.push(Bytes::from(vec![number as u8; len]));
        }
        sender.finish();
        let (mut reader, mut out, mut number, mut room) = (Messages::default(), Vec::new(), 0, 0);
        let (mut credit, mut spent) = (u64::from(INITIAL_CREDIT_BYTES), 0);
        while !sender.take_end() {
            if !sender.has_next() {
                assert!(credit - spent < LEAST_CREDIT_BYTES, "it waits with {}", credit - spent);
                // An odd number, so that a length is cut in its middle now and then.
                credit += 65_537;
                sender.credit(credit);
                // What is said again, or came late, changes nothing.
                sender.credit(credit - 9);
            }
            let part = sender.next_part().unwrap();
            spent += u64::from(chunk_cost(part.body.len()));
            assert!(part.body.len() <= MAX_CHUNK_BYTES && spent <= credit);
            number += 1;
            assert_eq!(part.number, number);
            room += part.room;
            reader.push(part.body);
            while let Some(message) = reader.next_message().unwrap() {
                out.push(message.len());
            }
        }
        assert_eq!(out, lengths);
        assert_eq!((sender.chunks(), room), (number, charged));
        assert!(!sender.has_next() && sender.has_ended());
    }

    #[test]
    fn tiny_chunks_take_more_of_the_credit_than_their_bytes() {
        let mut sender = Sender::new(INITIAL_CREDIT_BYTES);
        let mut chunks = 0;
        loop {
            sender.push(Bytes::from_static(b"x"));
            if sender.next_part().is_none() {
                break;
            }
            chunks += 1;
        }
        assert_eq!(chunks, INITIAL_CREDIT_BYTES / MIN_CHUNK_COST_BYTES);
        let next = u64::from(INITIAL_CREDIT_BYTES) + LEAST_CREDIT_BYTES;
        sender.credit(next - 1);
        assert!(!sender.has_next());
        sender.credit(next);
        assert!(sender.next_part().is_some() && !sender.has_next());
    }

    #[test]
    fn nothing_overtakes_parts_that_came_back() {
        let mut sender = Sender::new(INITIAL_CREDIT_BYTES);
        let mut parts = Vec::new();
        for message in [&b"a"[..], b"b", b"c"] {
            sender.push(Bytes::from_static(message));
            parts.extend(sender.next_part().map(|part| (part.number, part.body)));
        }
        sender.push(Bytes::from_static(b"d"));
        sender.finish();
        for (number, part) in parts.iter().skip(1).cloned() {
            sender.give_back(number, part);
        }
        assert!(!sender.has_next());
        // A beat names what has left.
        assert_eq!(sender.chunks(), 1);
        sender.resume();
        // The first of them comes back once more.
        let part = sender.next_part().unwrap();
        assert_eq!((part.number, &part.body), (2, &parts[1].1));
        sender.give_back(part.number, part.body);
        sender.resume();
        let numbers: Vec<u32> =
            std::iter::from_fn(|| sender.next_part().map(|part| part.number)).collect();
        assert_eq!(numbers, [2, 3, 4]);
        assert!(sender.take_end());
        // The end comes back, and is told again.
        sender.give_back(4, Bytes::new());
        assert!(!sender.has_next() && !sender.has_ended());
        sender.resume();
        assert!(sender.has_next() && sender.take_end() && !sender.has_next());
    }
}
