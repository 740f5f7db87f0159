//! What comes back to a worker: packets that a path's queue would not take, and packets that a pipe
//! could not route. An answer is kept and sent again; the rest heals by itself or is too late.

use bytes::Bytes;
use zex_spec::{Address, Body, Code, Message, Packet, Status};

use super::{Path, RETRY_MS, Retry, RunId, Session};
use crate::Time;

/// Packets that may wait to be sent again; beyond, they are dropped and their owners heal.
pub(super) const MAX_RETRIES: usize = 10_000;
/// Bytes of their bodies: as many as there are of answers in the memory by default. A body that
/// came back through a pipe is a copy of its own, and ten thousand of the largest are 160 GiB.
pub(super) const MAX_RETRY_BYTES: usize = 64 << 20;

impl Session {
    /// The path would not take a packet.
    pub(super) fn refused(&mut self, now: Time, path: Path, packet: Packet) {
        match &packet.message {
            Message::Chunk(chunk) => {
                let (key, number) = (chunk.key, chunk.number);
                let Body::Bytes(part) = packet.body else { return };
                // A beat that is late is worth nothing: the next one comes. Not so headers.
                if !chunk.headers.is_empty() {
                    let body = Body::Bytes(part);
                    return self.keep(now, path, Packet { body, ..packet });
                }
                if let Some((run, stream)) = self.stream_of(&key) {
                    stream.give_back(now, number, false, part);
                    self.wake(now, run);
                }
            }
            Message::Credit(credit) => {
                if let Some((run, stream)) = self.stream_of(&credit.key) {
                    stream.credit_returned(now);
                    self.wake(now, run);
                }
            }
            Message::Reply(reply) => self.keep_reply(now, path, reply.address.clone(), packet),
            Message::Busy(_) | Message::Answer(_) => self.keep(now, path, packet),
            Message::Register(_) => {
                if !self.unregistered.contains(&path) {
                    self.unregistered.push(path);
                }
                self.register_due = now.plus_ms(RETRY_MS);
            }
            // Beats come again.
            _ => self.dropped += 1,
        }
    }

    /// A pipe could not route a packet: no broker is ready, or its queue is full.
    pub(super) fn bounced(&mut self, now: Time, path: Path, packet: Packet) {
        match &packet.message {
            Message::Chunk(chunk) if !packet.body.is_empty() => {
                // Those behind it may have passed it: the stream has a gap.
                if let Some((run, _)) = self.stream_of(&chunk.key) {
                    let text = "a part of the stream could not be delivered";
                    self.stop(now, run, Status::new(Code::Unavailable, text));
                }
            }
            Message::Reply(reply) => self.keep_reply(now, path, reply.address.clone(), packet),
            // Only a living owner has a use for the others.
            _ => self.dropped += 1,
        }
    }

    /// Keeps a reply to send it again, as long as the memory of its key lasts; till then its owner
    /// hears that it is held.
    pub(super) fn keep_reply(&mut self, now: Time, path: Path, address: Bytes, packet: Packet) {
        let Message::Reply(reply) = &packet.message else { return };
        if !self.memory.has_answer(&reply.key) {
            self.dropped += 1;
            return;
        }
        if let Ok(address) = Address::decode(&address) {
            self.held.hold(now, address.owner, address.number);
        }
        self.keep(now, path, packet);
    }

    pub(super) fn keep(&mut self, now: Time, path: Path, mut packet: Packet) {
        let bytes = self.retry_bytes + packet.body.len();
        if self.retries.len() >= MAX_RETRIES || bytes > MAX_RETRY_BYTES {
            self.dropped += 1;
            if let Message::Reply(reply) = &packet.message {
                self.release(&reply.address);
            }
            return;
        }
        // As it was before a pipe had it in its hands.
        packet.bounced = false;
        (packet.pipe, packet.peer) = Default::default();
        let (due, path) = (now.plus_ms(RETRY_MS), path.next(self.settings.paths));
        self.retry_bytes = bytes;
        self.retries.push_back(Retry { due, path, packet });
    }

    pub(super) fn release(&mut self, address: &Bytes) {
        if let Ok(address) = Address::decode(address) {
            self.held.release(address.owner, address.number);
        }
    }

    /// Looks at a run soon.
    pub(super) fn wake(&mut self, now: Time, run: RunId) {
        if let Some(record) = self.runs.get_mut(&run) {
            let due = record.due.min(now.plus_ms(RETRY_MS));
            self.timers.reset(run, &mut record.due, due);
        }
    }
}
