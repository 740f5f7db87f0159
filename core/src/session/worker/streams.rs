//! A worker's streams: what handlers do, and what comes by the owner.

use bytes::Bytes;
use zex_spec::{BrokerId, Chunk, Code, Credit, Key, Metadata, Packet, Status, Steer};

use super::super::receiver::Arrival;
use super::super::stream::Word;
use super::{Action, Run, RunId, Session, Stream};
use crate::Time;

impl Session {
    /// A handler sends a message of its stream.
    pub(super) fn message(&mut self, run: RunId, message: Bytes) {
        if let Some(sender) = self.stream(run).and_then(|stream| stream.sender.as_mut()) {
            sender.push(message);
            self.list(run);
        }
    }

    /// A handler has taken requests of this cost.
    pub(super) fn consumed(&mut self, run: RunId, cost: u32) {
        if let Some(grant) = self.stream(run).and_then(|stream| stream.consumed(cost)) {
            self.say(run, grant);
        }
    }

    /// A stream's handler is done; what it has queued still goes out.
    pub(super) fn finish_stream(&mut self, run: RunId, outcome: Result<Bytes, Status>) {
        let Some(record) = self.runs.get_mut(&run) else { return };
        let Some(sender) = record.stream.as_mut().and_then(|stream| stream.sender.as_mut()) else {
            return;
        };
        let outcome = outcome.map(|last| {
            if !last.is_empty() {
                sender.push(last);
            }
        });
        sender.finish();
        record.outcome.get_or_insert(outcome);
        self.list(run);
    }

    /// A stream begins: who sends requests is told by which route, and that it may.
    pub(super) fn open(&mut self, run: RunId) {
        if let Some(credit) = self.stream(run).and_then(|stream| stream.first_credit()) {
            self.say(run, credit);
        }
    }

    /// What the answer begins with goes in a beat of number 0, so that it cannot be mistaken for one
    /// that overtook its parts.
    pub(super) fn headers_ahead(&mut self, run: RunId) {
        let Some(record) = self.runs.get(&run) else { return };
        let (owner, _, address) = record.addresses.last().cloned().unwrap_or_default();
        let (key, headers) = (record.key, record.headers.clone());
        let chunk = Chunk { address, key, number: 0, end: false, headers };
        let packet = Packet::from_peer(Steer::Owner(owner), chunk, Bytes::new());
        self.actions.push_back(Action::ToPipe(record.path, packet));
    }

    /// Part of the requests, their end, or a beat.
    pub(super) fn chunk(&mut self, now: Time, broker: BrokerId, chunk: &Chunk, body: Bytes) {
        let Some(run) = self.comes_by(now, broker, &chunk.key) else { return };
        let Some(stream) = self.stream(run) else { return };
        let had_ended = has_ended(stream);
        let arrival = stream.chunk(now, chunk.number, body.len(), chunk.end);
        let ends = has_ended(stream) && !had_ended;
        let text = match arrival {
            Arrival::Gap => "a part of the requests was lost",
            Arrival::Overrun => {
                let text = "the caller sent more requests than it was allowed to";
                return self.stop(now, run, Status::new(Code::ResourceExhausted, text));
            }
            Arrival::Next | Arrival::Nothing => {
                if arrival == Arrival::Next {
                    self.actions.push_back(Action::Chunk(run, body));
                }
                if ends {
                    self.actions.push_back(Action::HalfClosed(run));
                }
                return;
            }
        };
        self.stop(now, run, Status::new(Code::Unavailable, text));
    }

    /// The caller has room for more, or says so again.
    pub(super) fn credit(&mut self, now: Time, broker: BrokerId, credit: &Credit) {
        let Some(run) = self.comes_by(now, broker, &credit.key) else { return };
        if let Some(stream) = self.stream(run) {
            stream.credit(now, credit.upto);
            self.list(run);
        }
    }

    /// The stream of this key, if it goes by this broker.
    fn comes_by(&mut self, now: Time, broker: BrokerId, key: &Key) -> Option<RunId> {
        let found = self.memory.running(key);
        let of = |run: &RunId| self.runs.get(run).and_then(|record| record.stream.as_ref());
        let Some((run, stream)) = found.and_then(|run| of(&run).map(|stream| (run, stream))) else {
            self.dropped += 1;
            return None;
        };
        if stream.is_of(broker) {
            return Some(run);
        }
        self.stop(now, run, Status::new(Code::Unavailable, "the stream changed its broker"));
        None
    }

    /// A stream's due time has come. When it is to be looked at again; `None` if it has ended.
    pub(super) fn look_at_stream(&mut self, now: Time, run: RunId) -> Option<Time> {
        let record = self.runs.get_mut(&run)?;
        let late = now.since(record.due);
        let stream = record.stream.as_mut()?;
        match stream.look_at(now, late) {
            Ok(words) => {
                let due = stream.due();
                words.into_iter().for_each(|word| self.say(run, word));
                self.list(run);
                due
            }
            Err(_) => {
                let text = "nothing was heard of the caller of the stream for 2 s";
                self.stop(now, run, Status::new(Code::Unavailable, text));
                None
            }
        }
    }

    /// The stream of this key, whoever it goes by.
    pub(super) fn stream_of(&mut self, key: &Key) -> Option<(RunId, &mut Stream)> {
        let run = self.memory.running(key)?;
        self.stream(run).map(|stream| (run, stream))
    }

    fn stream(&mut self, run: RunId) -> Option<&mut Stream> {
        self.runs.get_mut(&run)?.stream.as_deref_mut()
    }

    /// Gives a stream its turn if it has something to send.
    pub(super) fn list(&mut self, run: RunId) {
        if let Some(stream) = self.stream(run)
            && !stream.listed
            && stream.has_next()
        {
            stream.listed = true;
            self.sending.push_back(run);
        }
    }

    /// Sends the next part of the stream whose turn it is, or its end.
    pub(super) fn send_part(&mut self, run: RunId) {
        let Some(record) = self.runs.get_mut(&run) else { return };
        let Some(stream) = record.stream.as_mut() else { return };
        stream.listed = false;
        if !stream.has_next() {
            return;
        }
        if stream.take_end() {
            // Its handler was done before, and has said how.
            let outcome = record.outcome.take().unwrap_or(Ok(()));
            return self.answer(self.now, run, outcome.map(|()| Bytes::new()));
        }
        if let Some(word) = stream.next_chunk() {
            self.say(run, word);
            self.list(run);
        }
    }

    /// Tells the caller something, by the owner that sent the work last.
    fn say(&mut self, run: RunId, word: Word) {
        let Some(Run { key, path, addresses, .. }) = self.runs.get(&run) else { return };
        // A run has one address at least from its beginning on.
        let (owner, _, address) = addresses.last().cloned().unwrap_or_default();
        let (key, path, steer) = (*key, *path, Steer::Owner(owner));
        let (packet, room) = match word {
            Word::Credit { upto } => {
                (Packet::from_peer(steer, Credit { key, upto }, Bytes::new()), 0)
            }
            Word::Chunk { number, end, body, room } => {
                let chunk = Chunk { address, key, number, end, headers: Metadata::EMPTY };
                (Packet::from_peer(steer, chunk, body), room)
            }
        };
        self.actions.push_back(Action::ToPipe(path, packet));
        if room > 0 {
            self.actions.push_back(Action::Room(run, room));
        }
    }
}

fn has_ended(stream: &Stream) -> bool {
    stream.receiver.as_ref().is_some_and(|receiver| receiver.has_ended())
}
