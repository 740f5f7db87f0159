//! What pipes give a client: its own packets that they could not route, and what brokers say.

use bytes::Bytes;
use zex_spec::{Body, BrokerId, Call, Code, Key, Message, Metadata, Packet, Reply, Status, Steer};

use super::super::jitter;
use super::{
    Action, PAUSE_MAX_MS, PAUSE_MS, Path, Pending, Phase, RESEND_SIGNED_MS, Session, gives_up,
    hopeless_from, nobody,
};
use crate::Time;

/// A path that gave something back is not anybody's first choice for so long, ms.
const SHUN_MS: u64 = 500;

impl Session {
    /// A pipe could not route a packet, or a path's queue would not take it.
    pub(super) fn came_back(&mut self, now: Time, path: Path, packet: Packet) {
        if let Some(shunned_until) = self.paths.get_mut(usize::from(path.0)) {
            *shunned_until = now.plus_ms(SHUN_MS);
        }
        match packet.message {
            Message::Call(call) => self.call_came_back(now, &call, packet.bounced),
            Message::Chunk(chunk) => {
                if let Body::Bytes(body) = packet.body {
                    self.chunk_came_back(now, &chunk, body, packet.bounced);
                }
            }
            Message::Credit(credit) => self.credit_came_back(now, &credit.key),
            // A cancel is a courtesy: what it would have stopped ends by its deadline.
            _ => self.dropped += 1,
        }
    }

    pub(super) fn call_came_back(&mut self, now: Time, call: &Call, bounced: bool) {
        let paths = self.path_count();
        let Some(pending) = self.calls.get_mut(&call.key) else {
            self.dropped += 1;
            return;
        };
        let latest = call.attempt == pending.call.attempt;
        if !latest || !matches!(pending.phase, Phase::Sent) {
            // An attempt after it is underway, or part of the answer is here.
            return;
        }
        if pending.returns == 0 {
            pending.returned_since = now;
        }
        pending.returns += 1;
        pending.bounced |= bounced;
        if pending.returns < u32::from(paths) {
            let path = pending.path.next(paths);
            return self.send(now, &call.key, path);
        }
        if gives_up(pending, now) {
            let status = nobody(pending);
            return self.end(&call.key, Err(status));
        }
        pending.phase = Phase::Paused;
        let rounds = (pending.returns - u32::from(paths)).min(16);
        // From half of the pause to all of it; the first half is the shortest pause.
        let half = (PAUSE_MS << rounds).min(PAUSE_MAX_MS / 2);
        let pause = half + jitter(&call.key, rounds as u8, half);
        let due = pending.deadline.min(now.plus_ms(pause));
        let due = hopeless_from(pending).map_or(due, |time| due.min(time));
        self.timers.reset(call.key, &mut pending.due, due);
    }

    pub(super) fn arrived(&mut self, now: Time, path: Path, packet: Packet) {
        let Steer::Owner(broker) = packet.steer else {
            self.dropped += 1;
            return;
        };
        let body = match packet.body {
            Body::Bytes(body) => body,
            Body::Frames(_) => Bytes::new(),
        };
        match packet.message {
            Message::Reply(reply) => self.reply(reply, body),
            Message::Chunk(chunk) => self.chunk(now, broker, &chunk, body),
            Message::Credit(credit) => self.credit(now, broker, &credit),
            Message::Accepted(accepted) => self.accepted(now, broker, &accepted.key),
            Message::BrokerDown(_) => self.broker_down(now, path, broker),
            _ => self.dropped += 1,
        }
    }

    pub(super) fn accepted(&mut self, now: Time, broker: BrokerId, key: &Key) {
        let Some(pending) = self.calls.get_mut(key) else {
            self.dropped += 1;
            return;
        };
        if matches!(pending.phase, Phase::Streaming) {
            return;
        }
        pending.owner = Some(broker);
        pending.phase = Phase::Sent;
        pending.returns = 0;
        pending.bounced = false;
        let spread = jitter(key, pending.call.attempt, RESEND_SIGNED_MS / 8);
        let due = pending.deadline.min(now.plus_ms(RESEND_SIGNED_MS + spread));
        self.timers.reset(*key, &mut pending.due, due);
    }

    pub(super) fn reply(&mut self, reply: Reply, body: Bytes) {
        let Some(pending) = self.calls.get(&reply.key) else {
            self.dropped += 1;
            return;
        };
        let code = Code::from_number(reply.code);
        if code != Code::Ok {
            let status = Status { code, message: reply.message, details: body };
            self.tell(reply.key, reply.headers, reply.trailers);
            return self.end(&reply.key, Err(status));
        }
        let receiver = pending.stream.as_ref().and_then(|stream| stream.receiver.as_ref());
        let chunks = receiver.map_or(reply.chunks, |receiver| receiver.chunks());
        if chunks != reply.chunks {
            let text = format!("the stream has {} parts, {chunks} arrived", reply.chunks);
            return self.end(&reply.key, Err(Status::new(Code::Unavailable, text)));
        }
        self.tell(reply.key, reply.headers, reply.trailers);
        self.end(&reply.key, Ok(body));
    }

    /// Hands on what came beside an answer, if anything did: headers only once.
    pub(super) fn tell(&mut self, key: Key, headers: Metadata, trailers: Metadata) {
        let Some(pending) = self.calls.get_mut(&key) else { return };
        if !headers.is_empty() && !pending.headers_told {
            pending.headers_told = true;
            self.actions.push_back(Action::Headers(key, headers));
        }
        if !trailers.is_empty() {
            self.actions.push_back(Action::Trailers(key, trailers));
        }
    }

    /// What that broker had, or may have had, is sent again; its streams are over. Only calls that
    /// went by the pipe which says so can have been steered to it unnoticed: the other pipes speak
    /// for themselves.
    pub(super) fn broker_down(&mut self, now: Time, path: Path, broker: BrokerId) {
        let touched = |pending: &Pending| match (&pending.phase, pending.owner) {
            (_, Some(owner)) => owner == broker,
            (Phase::Sent, None) => pending.path == path,
            (Phase::Paused | Phase::Streaming, None) => false,
        };
        let calls = self.calls.iter().filter(|(_, pending)| touched(pending));
        for key in calls.map(|(key, _)| *key).collect::<Vec<_>>() {
            let Some(pending) = self.calls.get_mut(&key) else { continue };
            match pending.phase {
                Phase::Streaming => self.break_stream(&key, "the stream's broker has died"),
                Phase::Sent | Phase::Paused => {
                    pending.owner = None;
                    self.resend(now, &key);
                }
            }
        }
    }
}
