//! A worker's runs: from `Begin` to the one answer that every owner gets, and the streams between.

use bytes::Bytes;
use zex_spec::{
    BrokerId, Chunk, Code, Key, MAX_BODY_BYTES, Metadata, Packet, Reply, Status, Steer,
};

use super::{Action, Answered, Run, RunId, STREAM_BEAT_MS, Sender, Session};
use crate::Time;

/// Longest status message, bytes: it is one line for a person, and has to fit a header.
const MAX_STATUS_BYTES: usize = 8 << 10;

impl Session {
    pub(super) fn look_at(&mut self, now: Time, run: RunId) {
        let Some(record) = self.runs.get_mut(&run) else { return };
        if now >= record.deadline {
            let status = Status::new(Code::DeadlineExceeded, "no answer by the deadline");
            return self.stop(now, run, status);
        }
        let mut due = record.deadline;
        if let Some(stream) = &mut record.stream {
            // Perhaps woken for a part that the path would not take.
            stream.resume();
            let chunks = stream.chunks();
            if now >= record.beat_due {
                record.beat_due = now.plus_ms(STREAM_BEAT_MS);
                let packet = chunk(record, chunks, Metadata::EMPTY, Bytes::new());
                self.actions.push_back(Action::ToPipe(record.path, packet));
            }
            due = due.min(record.beat_due);
        }
        self.timers.reset(run, &mut record.due, due);
        self.list(run);
    }

    /// Ends a run whose handler is not done.
    pub(super) fn stop(&mut self, now: Time, run: RunId, status: Status) {
        self.actions.push_back(Action::Abort(run));
        self.answer(now, run, Err(status));
    }

    /// What the answer begins with. A stream's goes ahead, in a beat of number 0, so that it cannot be
    /// mistaken for one that overtook its parts; the reply repeats it, for that beat may be lost.
    pub(super) fn headers(&mut self, run: RunId, headers: Metadata) {
        let Some(record) = self.runs.get_mut(&run) else { return };
        record.headers = headers;
        if record.stream.is_some() && !record.headers.is_empty() {
            let packet = chunk(record, 0, record.headers.clone(), Bytes::new());
            self.actions.push_back(Action::ToPipe(record.path, packet));
        }
    }

    pub(super) fn message(&mut self, run: RunId, message: Bytes) {
        if let Some(stream) = self.runs.get_mut(&run).and_then(|record| record.stream.as_mut()) {
            stream.push(message);
            self.list(run);
        }
    }

    pub(super) fn finish(&mut self, now: Time, run: RunId, outcome: Result<Bytes, Status>) {
        let Some(record) = self.runs.get_mut(&run) else { return };
        let Some(stream) = &mut record.stream else {
            return self.answer(now, run, outcome);
        };
        let outcome = outcome.map(|last| {
            if !last.is_empty() {
                stream.push(last);
            }
        });
        stream.finish(outcome);
        self.list(run);
    }

    /// The one place where a run ends: every owner gets the answer, and it is remembered.
    pub(super) fn answer(&mut self, now: Time, run: RunId, outcome: Result<Bytes, Status>) {
        let Some(record) = self.runs.remove(&run) else { return };
        self.timers.clear(run, record.due);
        let chunks = record.stream.map_or(0, |stream| stream.chunks());
        let mut answer = answered(outcome, chunks);
        (answer.headers, answer.trailers) = (record.headers, record.trailers);
        for (owner, number, address) in record.addresses {
            self.held.release(owner, number);
            let packet = reply(owner, address, record.key, answer.clone());
            self.send_answer(now, record.path, packet);
        }
        self.memory.answer(now, record.key, answer);
    }

    pub(super) fn stream_of(&mut self, key: &Key) -> Option<(RunId, &mut Sender)> {
        let run = self.memory.running(key)?;
        let stream = self.runs.get_mut(&run)?.stream.as_mut()?;
        Some((run, stream))
    }

    /// Gives a stream its turn if it has something to send.
    pub(super) fn list(&mut self, run: RunId) {
        if let Some(stream) = self.runs.get_mut(&run).and_then(|record| record.stream.as_mut())
            && !stream.listed
            && stream.has_next()
        {
            stream.listed = true;
            self.sending.push_back(run);
        }
    }

    pub(super) fn send_part(&mut self, run: RunId) {
        let Some(record) = self.runs.get_mut(&run) else { return };
        let Some(stream) = record.stream.as_mut() else { return };
        stream.listed = false;
        if !stream.has_next() {
            return;
        }
        if let Some(outcome) = stream.take_outcome() {
            return self.answer(self.now, run, outcome.map(|()| Bytes::new()));
        }
        let Some((number, part, room)) = stream.next_part() else { return };
        let packet = chunk(record, number, Metadata::EMPTY, part);
        self.actions.push_back(Action::ToPipe(record.path, packet));
        if room > 0 {
            self.actions.push_back(Action::Room(run, room));
        }
        self.list(run);
    }
}

/// A chunk of a run's stream, to the owner that sent the work last.
pub(super) fn chunk(record: &Run, number: u32, headers: Metadata, part: Bytes) -> Packet {
    // A run has one address at least from its beginning on.
    let (owner, _, address) = record.addresses.last().cloned().unwrap_or_default();
    let key = record.key;
    Packet::from_peer(Steer::Owner(owner), Chunk { address, key, number, headers }, part)
}

pub(super) fn reply(owner: BrokerId, address: Bytes, key: Key, answer: Answered) -> Packet {
    let Answered { code, message, chunks, body, headers, trailers } = answer;
    let reply = Reply { address, key, code, message, chunks, headers, trailers };
    Packet::from_peer(Steer::Owner(owner), reply, body)
}

/// An outcome as it travels, within what travels.
pub(super) fn answered(outcome: Result<Bytes, Status>, chunks: u32) -> Answered {
    let mut status = match outcome {
        Ok(body) if body.len() <= MAX_BODY_BYTES => {
            return Answered { chunks, body, ..Answered::default() };
        }
        Ok(body) => {
            let text =
                format!("the reply has {} bytes, at most {MAX_BODY_BYTES} travel", body.len());
            Status::new(Code::ResourceExhausted, text)
        }
        Err(status) if status.code == Code::Ok => {
            Status::new(Code::Internal, "the handler failed with the code OK")
        }
        Err(status) => status,
    };
    let cut = (0..=MAX_STATUS_BYTES).rev().find(|at| status.message.is_char_boundary(*at));
    status.message.truncate(cut.unwrap_or(0));
    if status.details.len() > MAX_BODY_BYTES {
        status.details = Bytes::new();
    }
    let (code, message, body) = (status.code.number(), status.message, status.details);
    Answered { code, message, chunks, body, ..Answered::default() }
}
