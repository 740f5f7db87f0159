//! One stream at one of its ends, pure and the same at both: what is sent and received in either
//! direction, the route, the beats, the silence.
//!
//! ```text
//!   source ─ push, finish ─▶ Sender ───▶ next ──▶ ┐        ┌ Chunk, Credit to the other end, by
//!   reader ◀── Arrival ──── Receiver ◀── chunk ◀─ ┤ owner  ┤ the owner
//!        └──── consumed ──▶    └─ grant ────────▶ ┘        └ each second: what was said, again
//! ```
//!
//! The caller's end receives answers, and sends requests if its call is of that kind; the worker's
//! end the other way round. A direction that a stream does not have is `None`. How the whole call
//! ends (a reply, a deadline, a cancel) is the session's: [`super::client`], [`super::worker`].

use std::time::Duration;

use bytes::Bytes;
use zex_spec::{BrokerId, INITIAL_CREDIT_BYTES};

use super::receiver::{Arrival, Receiver};
use super::sender::Sender;
use crate::Time;

/// So long without a chunk or a credit (which come each second), and the stream is dead, ms.
const SILENCE_MS: u64 = 2_000;
/// How often each end says again what it said last, ms.
const BEAT_MS: u64 = 1_000;
/// A stream whose worker has had nothing to say for so long since it began says so, ms: it is the
/// sign for which the caller does not send the call again. Less than the caller waits for one.
const FIRST_BEAT_MS: u64 = 200;
/// What a path would not take is tried again after so long, ms, and the beat with it.
const RETRY_MS: u64 = 50;
/// Looked at so much later than was due, ms, this end was itself away, and not the other.
const AWAY_MS: u64 = 500;

/// What is to be told to the other end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// A part, a beat (no body), or the end of the requests.
    Chunk { number: u32, end: bool, body: Bytes, room: u32 },
    /// How much may come.
    Credit { upto: u64 },
}

/// Nothing was heard of the other end for too long.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Silence;

/// One end.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) sender: Option<Sender>,
    pub(super) receiver: Option<Receiver>,
    /// The broker that it goes by; the caller's end learns it from the first chunk or credit.
    pub(super) owner: Option<BrokerId>,
    heard: Time,
    beat_due: Time,
    /// The end of a direction is told in a chunk (requests), not by a reply (answers).
    ends_by_chunk: bool,
    /// Whether the session has it in its list of streams with something to send.
    pub(super) listed: bool,
}

impl Stream {
    /// The caller's end. It may send once the worker's first credit has come.
    pub(super) fn of_caller(now: Time, sends_requests: bool) -> Self {
        Self {
            sender: sends_requests.then(|| Sender::new(0)),
            receiver: Some(Receiver::new()),
            owner: None,
            heard: now,
            beat_due: now.plus_ms(BEAT_MS),
            ends_by_chunk: true,
            listed: false,
        }
    }

    /// The worker's end, from the work's arrival on.
    pub(super) fn of_worker(now: Time, owner: BrokerId, gets_requests: bool) -> Self {
        let first_beat_ms = if gets_requests { BEAT_MS } else { FIRST_BEAT_MS };
        Self {
            sender: Some(Sender::new(INITIAL_CREDIT_BYTES)),
            receiver: gets_requests.then(Receiver::new),
            owner: Some(owner),
            heard: now,
            beat_due: now.plus_ms(first_beat_ms),
            ends_by_chunk: false,
            listed: false,
        }
    }

    /// The first credit of a worker that gets requests: to be sent at once, it tells the route.
    pub(super) fn first_credit(&self) -> Option<Word> {
        self.receiver.as_ref().map(|receiver| Word::Credit { upto: receiver.granted() })
    }

    /// The owner is known: from now on the other end is listened to, and beaten to.
    pub(super) fn opened(&mut self, now: Time, owner: BrokerId) {
        self.owner = Some(owner);
        (self.heard, self.beat_due) = (now, now.plus_ms(BEAT_MS));
    }

    /// Whether what this broker brings belongs to the stream; a stream does not move.
    pub(super) fn is_of(&self, owner: BrokerId) -> bool {
        self.owner == Some(owner)
    }

    /// A chunk came by its owner.
    pub(super) fn chunk(&mut self, now: Time, number: u32, len: usize, end: bool) -> Arrival {
        self.heard = now;
        match &mut self.receiver {
            Some(receiver) => receiver.chunk(number, len, end),
            // Nothing goes this way.
            None => Arrival::Nothing,
        }
    }

    /// A credit came by its owner.
    pub(super) fn credit(&mut self, now: Time, upto: u64) {
        self.heard = now;
        if let Some(sender) = &mut self.sender {
            sender.credit(upto);
        }
    }

    /// The reader has taken parts of this cost. What is to be granted now, if anything.
    pub(super) fn consumed(&mut self, cost: u32) -> Option<Word> {
        let receiver = self.receiver.as_mut()?;
        receiver.consumed(cost);
        receiver.take_grant().map(|upto| Word::Credit { upto })
    }

    /// Whether there is something to send now: a part, or the end.
    pub(super) fn has_next(&self) -> bool {
        self.owner.is_some() && self.sender.as_ref().is_some_and(Sender::has_next)
    }

    /// Whether everything was sent and the end is to be told now, by the reply. True once.
    pub(super) fn take_end(&mut self) -> bool {
        !self.ends_by_chunk && self.sender.as_mut().is_some_and(Sender::take_end)
    }

    /// The next chunk; for requests also their end, with the last part where that is possible.
    pub(super) fn next_chunk(&mut self) -> Option<Word> {
        let sender = self.sender.as_mut()?;
        let part = sender.next_part();
        let end = self.ends_by_chunk && sender.take_end();
        match part {
            Some(part) => {
                Some(Word::Chunk { number: part.number, end, body: part.body, room: part.room })
            }
            None if end => {
                let number = sender.chunks();
                Some(Word::Chunk { number, end, body: Bytes::new(), room: 0 })
            }
            None => None,
        }
    }

    /// A credit that the path would not take.
    pub(super) fn credit_returned(&mut self, now: Time) {
        self.beat_due = self.beat_due.min(now.plus_ms(RETRY_MS));
    }

    /// A chunk that the path would not take.
    pub(super) fn give_back(&mut self, now: Time, number: u32, end: bool, body: Bytes) {
        self.beat_due = self.beat_due.min(now.plus_ms(RETRY_MS));
        if let Some(sender) = self.sender.as_mut().filter(|_| end || !body.is_empty()) {
            sender.give_back(number, body);
        }
    }

    /// When [`Stream::look_at`] is to be called; never while the owner is unknown.
    pub(super) fn due(&self) -> Option<Time> {
        self.owner.map(|_| self.beat_due.min(self.heard.plus_ms(SILENCE_MS)))
    }

    /// Its time has come, or a while since (`late`): what was said is said again. Whoever missed a
    /// part, a credit or the end finds out by that.
    pub(super) fn look_at(&mut self, now: Time, late: Duration) -> Result<Vec<Word>, Silence> {
        if late.as_millis() >= u128::from(AWAY_MS) {
            // What the other end said meanwhile may still wait to be read: it gets a beat's time.
            let lately = now.0.saturating_sub((SILENCE_MS - BEAT_MS) * 1_000);
            self.heard = self.heard.max(Time(lately));
        }
        if now >= self.heard.plus_ms(SILENCE_MS) {
            return Err(Silence);
        }
        // Perhaps woken for a part that the path would not take.
        if let Some(sender) = &mut self.sender {
            sender.resume();
        }
        if now < self.beat_due {
            return Ok(Vec::new());
        }
        self.beat_due = now.plus_ms(BEAT_MS);
        let highest = |sender: &Sender| {
            let (number, end) = (sender.chunks(), self.ends_by_chunk && sender.has_ended());
            Word::Chunk { number, end, body: Bytes::new(), room: 0 }
        };
        let granted = |receiver: &Receiver| Word::Credit { upto: receiver.granted() };
        let words = [self.sender.as_ref().map(highest), self.receiver.as_ref().map(granted)];
        Ok(words.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use zex_spec::{Incarnation, MAX_CHUNK_BYTES, chunk_cost};

    use super::super::Messages;
    use super::*;

    const OWNER: BrokerId = Incarnation(7);

    fn at(ms: u64) -> Time {
        Time(0).plus_ms(ms)
    }

    /// The two ends of one stream, with nothing between them.
    struct Pair {
        caller: Stream,
        worker: Stream,
        /// What each end has read.
        answers: Messages,
        requests: Messages,
    }

    impl Pair {
        fn new() -> Self {
            let mut pair = Self {
                caller: Stream::of_caller(at(0), true),
                worker: Stream::of_worker(at(0), OWNER, true),
                answers: Messages::default(),
                requests: Messages::default(),
            };
            assert!(!pair.caller.has_next() && pair.caller.due().is_none());
            let Some(Word::Credit { upto }) = pair.worker.first_credit() else { panic!() };
            pair.caller.opened(at(0), OWNER);
            pair.caller.credit(at(0), upto);
            pair
        }

        /// Hands over all that can be sent, and reads it at once or not at all.
        fn exchange(&mut self, now: Time, read: bool) {
            while self.caller.has_next() || self.worker.has_next() {
                hand_over(now, &mut self.caller, &mut self.worker, &mut self.requests, read);
                hand_over(now, &mut self.worker, &mut self.caller, &mut self.answers, read);
                if self.worker.take_end() {
                    break;
                }
            }
        }
    }

    fn hand_over(now: Time, from: &mut Stream, to: &mut Stream, read: &mut Messages, reads: bool) {
        let Some(Word::Chunk { number, end, body, .. }) = from.next_chunk() else { return };
        let (len, cost) = (body.len(), chunk_cost(body.len()));
        match to.chunk(now, number, len, end) {
            Arrival::Next => read.push(body),
            other => assert_eq!((other, len), (Arrival::Nothing, 0)),
        }
        if reads && let Some(Word::Credit { upto }) = to.consumed(cost) {
            from.credit(now, upto);
        }
    }

    fn count(messages: &mut Messages) -> usize {
        std::iter::from_fn(|| messages.next_message().unwrap()).count()
    }

    #[test]
    fn both_directions_flow_and_each_has_its_end() {
        let mut pair = Pair::new();
        for stream in [&mut pair.caller, &mut pair.worker] {
            let sender = stream.sender.as_mut().unwrap();
            (0..100).for_each(|_| sender.push(Bytes::from(vec![1; 50_000])));
        }
        pair.caller.sender.as_mut().unwrap().finish();
        pair.exchange(at(1), true);
        assert!(pair.worker.receiver.as_ref().unwrap().has_ended());
        assert_eq!((count(&mut pair.requests), count(&mut pair.answers)), (100, 100));
        // The answers go on behind the end of the requests.
        pair.worker.sender.as_mut().unwrap().push(Bytes::from_static(b"last"));
        pair.worker.sender.as_mut().unwrap().finish();
        pair.exchange(at(2), true);
        assert_eq!(count(&mut pair.answers), 1);
        assert!(pair.worker.sender.as_ref().unwrap().has_ended());
    }

    #[test]
    fn who_does_not_read_stops_his_own_direction_and_not_the_other() {
        let mut pair = Pair::new();
        let requests = pair.caller.sender.as_mut().unwrap();
        (0..1_000).for_each(|_| requests.push(Bytes::from(vec![1; 10_000])));
        pair.exchange(at(1), false);
        assert_eq!(count(&mut pair.requests), INITIAL_CREDIT_BYTES as usize / 10_004);
        let answers = pair.worker.sender.as_mut().unwrap();
        (0..3).for_each(|_| answers.push(Bytes::from_static(b"answer")));
        pair.exchange(at(2), true);
        assert_eq!(count(&mut pair.answers), 3);
    }

    #[test]
    fn a_credit_that_was_lost_comes_with_the_next_beat() {
        let mut pair = Pair::new();
        let requests = pair.caller.sender.as_mut().unwrap();
        (0..200).for_each(|_| requests.push(Bytes::from(vec![1; 10_000])));
        pair.exchange(at(1), false);
        // The reader takes it all, and the credits are lost.
        (0..16).for_each(|_| drop(pair.worker.consumed(chunk_cost(MAX_CHUNK_BYTES))));
        assert!(!pair.caller.has_next());
        let words = pair.worker.look_at(at(1_000), Duration::ZERO).unwrap();
        assert_eq!(words.len(), 2);
        for word in words {
            if let Word::Credit { upto } = word {
                pair.caller.credit(at(1_000), upto);
            }
        }
        assert!(pair.caller.has_next());
    }

    #[test]
    fn an_end_that_was_lost_comes_with_the_next_beat() {
        let mut pair = Pair::new();
        pair.caller.sender.as_mut().unwrap().finish();
        assert!(matches!(pair.caller.next_chunk(), Some(Word::Chunk { number: 0, end: true, .. })));
        assert_eq!(pair.caller.next_chunk(), None);
        let words = pair.caller.look_at(at(1_000), Duration::ZERO).unwrap();
        let Word::Chunk { number, end, .. } = &words[0] else { panic!("{words:?}") };
        assert_eq!(pair.worker.chunk(at(1_000), *number, 0, *end), Arrival::Nothing);
        assert!(pair.worker.receiver.as_ref().unwrap().has_ended());
    }

    #[test]
    fn silence_ends_it_but_not_ones_own_sleep() {
        let mut stream = Stream::of_worker(at(0), OWNER, false);
        assert_eq!(stream.due(), Some(at(FIRST_BEAT_MS)));
        let beat = Word::Chunk { number: 0, end: false, body: Bytes::new(), room: 0 };
        assert_eq!(stream.look_at(at(200), Duration::ZERO), Ok(vec![beat]));
        assert!(stream.look_at(at(1_200), Duration::ZERO).is_ok());
        assert_eq!(stream.due(), Some(at(SILENCE_MS)));
        assert_eq!(stream.look_at(at(2_000), Duration::ZERO), Err(Silence));
        // Due at 2,000 and looked at 3 s later: what was said meanwhile may wait in the socket.
        assert!(stream.look_at(at(5_000), Duration::from_millis(3_000)).is_ok());
        assert_eq!(stream.due(), Some(at(6_000)));
        stream.credit(at(5_500), 9);
        assert!(stream.look_at(at(7_499), Duration::ZERO).is_ok());
        assert_eq!(stream.look_at(at(7_500), Duration::ZERO), Err(Silence));
    }
}
