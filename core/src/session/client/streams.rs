//! A client's streams: what readers and sources do, and what comes by the owner.

use bytes::Bytes;
use zex_spec::{BrokerId, Chunk, Code, Credit, Key, Metadata, Packet, Status, Steer};

use super::super::receiver::Arrival;
use super::super::stream::Word;
use super::{Action, Path, Pending, Phase, Session};
use crate::Time;

impl Session {
    /// A source sends a request of its stream.
    pub(super) fn message(&mut self, key: &Key, message: Bytes) {
        if let Some(sender) = self.stream_of(key).and_then(|stream| stream.sender.as_mut()) {
            sender.push(message);
            self.list(key);
        }
    }

    /// It is done; what is queued still goes out.
    pub(super) fn half_close(&mut self, key: &Key) {
        if let Some(sender) = self.stream_of(key).and_then(|stream| stream.sender.as_mut()) {
            sender.finish();
            self.list(key);
        }
    }

    /// The reader has taken parts of this cost.
    pub(super) fn consumed(&mut self, key: &Key, cost: u32) {
        if let Some(grant) = self.stream_of(key).and_then(|stream| stream.consumed(cost)) {
            self.say(key, grant);
        }
    }

    /// Part of the answers, or a beat.
    pub(super) fn chunk(&mut self, now: Time, broker: BrokerId, chunk: &Chunk, body: Bytes) {
        let key = chunk.key;
        if !self.comes_by(now, broker, &key) {
            return;
        }
        let Some(stream) = self.stream_of(&key) else { return };
        match stream.chunk(now, chunk.number, body.len(), false) {
            Arrival::Next => self.actions.push_back(Action::Chunk(key, body)),
            Arrival::Nothing => self.tell(key, chunk.headers.clone(), Metadata::EMPTY),
            Arrival::Gap => self.break_stream(&key, "a part of the stream was lost"),
            Arrival::Overrun => {
                let text = "the worker sent more of the stream than it was allowed to";
                self.take_back(&key, Status::new(Code::ResourceExhausted, text));
            }
        }
    }

    /// The worker lets more requests come, or says so again.
    pub(super) fn credit(&mut self, now: Time, broker: BrokerId, credit: &Credit) {
        if self.comes_by(now, broker, &credit.key)
            && let Some(stream) = self.stream_of(&credit.key)
        {
            stream.credit(now, credit.upto);
            self.list(&credit.key);
        }
    }

    /// Whether a stream of this key goes by this broker; the first that brings something is its
    /// owner.
    fn comes_by(&mut self, now: Time, broker: BrokerId, key: &Key) -> bool {
        let Some(pending) = self.calls.get_mut(key) else {
            self.dropped += 1;
            return false;
        };
        let Some(stream) = &mut pending.stream else {
            self.dropped += 1;
            return false;
        };
        if stream.owner.is_none() {
            stream.opened(now, broker);
            (pending.owner, pending.phase) = (Some(broker), Phase::Streaming);
            self.schedule(now, key);
            self.list(key);
        } else if !stream.is_of(broker) {
            self.break_stream(key, "the stream changed its broker");
            return false;
        }
        true
    }

    /// A stream's due time has come.
    pub(super) fn look_at_stream(&mut self, now: Time, key: &Key) {
        let Some(pending) = self.calls.get_mut(key) else { return };
        let late = now.since(pending.due);
        let Some(stream) = &mut pending.stream else { return };
        match stream.look_at(now, late) {
            Ok(words) => {
                words.into_iter().for_each(|word| self.say(key, word));
                self.schedule(now, key);
                self.list(key);
            }
            Err(_) => self.break_stream(key, "nothing was heard of the stream for 2 s"),
        }
    }

    /// A path would not take a chunk, or a pipe gave it back.
    pub(super) fn chunk_came_back(&mut self, now: Time, chunk: &Chunk, body: Bytes, bounced: bool) {
        let Some(pending) = self.calls.get_mut(&chunk.key) else { return };
        let Some(stream) = &mut pending.stream else { return };
        if bounced && (chunk.end || !body.is_empty()) {
            // Those behind it may have passed it: the stream has a gap.
            return self.break_stream(&chunk.key, "a part of the requests could not be delivered");
        }
        stream.give_back(now, chunk.number, chunk.end, body);
        self.schedule(now, &chunk.key);
    }

    /// The same of a credit.
    pub(super) fn credit_came_back(&mut self, now: Time, key: &Key) {
        if let Some(stream) = self.stream_of(key) {
            stream.credit_returned(now);
            self.schedule(now, key);
        }
    }

    /// Sets when a stream is looked at again.
    fn schedule(&mut self, now: Time, key: &Key) {
        let Some(pending) = self.calls.get_mut(key) else { return };
        let due = pending.stream.as_ref().and_then(|stream| stream.due());
        let due = due.map_or(pending.deadline, |due| due.min(pending.deadline)).max(now);
        self.timers.reset(*key, &mut pending.due, due);
    }

    fn stream_of(&mut self, key: &Key) -> Option<&mut super::Stream> {
        self.calls.get_mut(key)?.stream.as_deref_mut()
    }

    /// Gives a stream its turn if it has something to send.
    fn list(&mut self, key: &Key) {
        if let Some(stream) = self.stream_of(key)
            && !stream.listed
            && stream.has_next()
        {
            stream.listed = true;
            self.sending.push_back(*key);
        }
    }

    /// Sends the next part of the stream whose turn it is.
    pub(super) fn send_part(&mut self, key: &Key) {
        let Some(stream) = self.stream_of(key) else { return };
        stream.listed = false;
        if stream.has_next()
            && let Some(word) = stream.next_chunk()
        {
            self.say(key, word);
            self.list(key);
        }
    }

    /// Tells the other end something, by the owner.
    fn say(&mut self, key: &Key, word: Word) {
        let Some(pending) = self.calls.get(key) else { return };
        let Some((path, owner)) = way_of(pending) else { return };
        let (packet, room) = match word {
            Word::Credit { upto } => {
                let credit = Credit { key: *key, upto };
                (Packet::from_peer(Steer::Owner(owner), credit, Bytes::new()), 0)
            }
            Word::Chunk { number, end, body, room } => {
                let (address, headers) = (Bytes::new(), Metadata::EMPTY);
                let chunk = Chunk { address, key: *key, number, end, headers };
                (Packet::from_peer(Steer::Owner(owner), chunk, body), room)
            }
        };
        self.actions.push_back(Action::ToPipe(path, packet));
        if room > 0 {
            self.actions.push_back(Action::Room(*key, room));
        }
    }
}

fn way_of(pending: &Pending) -> Option<(Path, BrokerId)> {
    let owner = pending.stream.as_ref()?.owner?;
    Some((pending.path, owner))
}
