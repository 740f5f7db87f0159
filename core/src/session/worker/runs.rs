//! A worker's runs: from `Begin` to the one answer that every owner gets.

use bytes::Bytes;
use zex_spec::{BrokerId, Code, Key, MAX_BODY_BYTES, Metadata, Packet, Reply, Status, Steer};

use super::{Action, Answered, RunId, Session};
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
        let stream_due = if record.stream.is_some() { self.look_at_stream(now, run) } else { None };
        // A stream of which nothing was heard has ended by that.
        let Some(record) = self.runs.get_mut(&run) else { return };
        let due = stream_due.map_or(record.deadline, |due| due.min(record.deadline)).max(now);
        self.timers.reset(run, &mut record.due, due);
    }

    /// Ends a run whose handler is not done.
    pub(super) fn stop(&mut self, now: Time, run: RunId, status: Status) {
        self.actions.push_back(Action::Abort(run));
        self.answer(now, run, Err(status));
    }

    /// What the answer begins with. A stream's goes ahead; the reply repeats it, for it may be lost.
    pub(super) fn headers(&mut self, run: RunId, headers: Metadata) {
        let Some(record) = self.runs.get_mut(&run) else { return };
        record.headers = headers;
        if record.stream.is_some() && !record.headers.is_empty() {
            self.headers_ahead(run);
        }
    }

    pub(super) fn finish(&mut self, now: Time, run: RunId, outcome: Result<Bytes, Status>) {
        let Some(record) = self.runs.get(&run) else { return };
        if record.stream.is_some() {
            self.finish_stream(run, outcome);
        } else {
            self.answer(now, run, outcome);
        }
    }

    /// The one place where a run ends: every owner gets the answer, and it is remembered.
    pub(super) fn answer(&mut self, now: Time, run: RunId, outcome: Result<Bytes, Status>) {
        let Some(record) = self.runs.remove(&run) else { return };
        self.timers.clear(run, record.due);
        let sender = record.stream.as_ref().and_then(|stream| stream.sender.as_ref());
        let chunks = sender.map_or(0, |sender| sender.chunks());
        let mut answer = answered(outcome, chunks);
        (answer.headers, answer.trailers) = (record.headers, record.trailers);
        for (owner, number, address) in record.addresses {
            self.held.release(owner, number);
            let packet = reply(owner, address, record.key, answer.clone());
            self.send_answer(now, record.path, packet);
        }
        self.memory.answer(now, record.key, answer);
    }
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
