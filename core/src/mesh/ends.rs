//! How calls end: a worker's answer, a deadline, a cancel, a refusal, a death; and the words that
//! go out to the client.
//!
//! ```text
//!   Reply ───────────────▶ finished_by_worker ─┐
//!   deadline, cancel ────▶ finish / settle ────┼─▶ answer ─▶ native Reply, or EZ frames
//!   worker died, lost it ▶ may_have_begun ─────┘
//!   Busy, bounced ───────▶ not_begun ─▶ place (calls.rs)
//! ```

use bytes::Bytes;
use zex_spec::{
    Accepted, Address, Body, Cancel, Code, Dialect, EzAnswer, Key, Metadata, Options, Packet,
    PeerId, Reply, ReturnPath, Steer, ez,
};

use super::calls::{Call, End, Origin, RETRY_MS, State};
use super::memory::Outcome;
use super::{CallId, Link, Mesh, Timer};
use crate::Time;

impl Mesh {
    /// The assignment behind an answer, if the one that answers has it. Others are counted.
    pub(super) fn assignment(&mut self, from: PeerId, number: u64) -> Option<(CallId, usize)> {
        let id = self.assignments.get(&number).copied()?;
        let State::Assigned(_, slot) = self.calls[id].state else { return None };
        (self.registry.workers[slot].id == from).then_some((id, slot))
    }

    /// A worker's final answer.
    pub(super) fn on_reply(&mut self, now: Time, from: PeerId, reply: Reply, body: Bytes) {
        let Reply { address, key, code, message, chunks, headers, trailers } = reply;
        let assigned = Address::assignment_of(&address);
        let outcome = Outcome { code, message, body, chunks, headers, trailers };
        let number = match assigned {
            Some((owner, number)) if owner == self.me => number,
            _ => match Address::decode(&address) {
                Ok(address) => return self.pass_on(now, &address.path, key, outcome),
                Err(_) => return self.drop_one(),
            },
        };
        match self.assignment(from, number) {
            Some((id, _)) => self.finished_by_worker(now, id, End::Native(outcome)),
            None => self.drop_one(),
        }
    }

    /// The owner of this answer is dead; we only know the way back.
    fn pass_on(&mut self, now: Time, path: &ReturnPath, key: Key, mut outcome: Outcome) {
        if outcome.code == Code::Cancelled.number() {
            // Not its client's wish, or nobody waits: we stopped it when we saw its chunks.
            outcome = Outcome::error(Code::Unavailable, "the broker that owned the stream is gone");
        }
        match path.dialect {
            Dialect::Native => {
                self.answer_native(path, key, &outcome);
                if outcome.chunks == 0 && outcome.code != Code::Unavailable.number() {
                    self.memory.put(now, key, &outcome);
                }
            }
            // The request's id was known to the owner alone.
            Dialect::Ez => self.drop_one(),
        }
    }

    /// Frees the worker, answers the client, forgets the call.
    pub(super) fn finished_by_worker(&mut self, now: Time, id: CallId, end: End) {
        self.release(now, id);
        let call = self.remove(id);
        if call.answered {
            return;
        }
        self.answered_siblings(id, &call.origin, &call.path);
        self.ez_answered.put(now, &call);
        let remember = match &end {
            End::Native(outcome) if call.origin == Origin::Native => {
                if call.options.has(Options::STREAM) {
                    // It is not repeated, but a late duplicate must not run it again.
                    let text = "the stream has ended, and streams are not repeated";
                    Some(Outcome::error(Code::Unavailable, text))
                } else {
                    Some(outcome.clone())
                }
            }
            _ => None,
        };
        self.answer(&call, end);
        if let Some(outcome) = remember {
            self.memory.put(now, call.key, &outcome);
        }
    }

    /// Takes the call's assignment off its worker.
    pub(super) fn release(&mut self, now: Time, id: CallId) {
        let State::Assigned(number, slot) = self.calls[id].state else { return };
        self.assignments.remove(&number);
        self.calls[id].state = State::Queued;
        if let Some(worker) = self.registry.workers.get_mut(slot) {
            worker.assigned.remove(&number);
            worker.suspects.remove(&number);
            worker.joined.remove(&number);
            self.count_changed(now, slot);
            self.freed(slot);
        }
    }

    /// Takes a call out of every table.
    pub(super) fn remove(&mut self, id: CallId) -> Call {
        self.dequeue(id);
        let call = self.calls.take(id);
        self.held_bytes -= call.bytes();
        self.clients.remove(call.client, call.bytes());
        self.timers.remove(&(call.deadline, Timer::Deadline(id)));
        self.keys.remove(&call.key);
        self.forget_ez_id(id, &call);
        call
    }

    /// Ends a call with our own word. Its assignment, if any, stays until the worker lets go.
    pub(super) fn finish(&mut self, now: Time, id: CallId, outcome: Outcome) {
        if !self.calls[id].answered {
            let call = &self.calls[id];
            let end = End::Native(outcome.clone());
            let (origin, path, key) = (call.origin.clone(), call.path.clone(), call.key);
            self.answer_to(&origin, &path, key, end);
            self.answered_siblings(id, &origin, &path);
            self.ez_answered.put(now, &self.calls[id]);
            if outcome.code == Code::DeadlineExceeded.number() {
                self.memory.put(now, key, &outcome);
            }
        }
        self.settle(now, id);
    }

    /// The client needs nothing more of this call.
    pub(super) fn settle(&mut self, now: Time, id: CallId) {
        let call = &mut self.calls[id];
        match (&call.state, call.dialect) {
            (State::Assigned(..), Dialect::Native) => {
                call.answered = true;
                let bytes = call.bytes();
                (call.body, call.metadata) = (Body::EMPTY, Metadata::EMPTY);
                self.held_bytes -= bytes;
                self.clients.drop_body(call.client, bytes);
            }
            _ => {
                self.release(now, id);
                self.remove(id);
            }
        }
    }

    /// Its deadline has come.
    pub(super) fn deadline(&mut self, now: Time, id: CallId) {
        let Some(call) = self.calls.get(id) else { return };
        let text = match call.state {
            State::Queued => format!("no worker of {} had room in time", call.service_text()),
            State::Asking(_) => "its fate was not found out in time".to_owned(),
            State::Assigned(..) => {
                format!("{}/{} did not answer in time", call.service_text(), call.method)
            }
        };
        self.stop_worker(id);
        self.finish(now, id, Outcome::error(Code::DeadlineExceeded, text));
    }

    /// The client takes it back.
    pub(super) fn on_cancel(&mut self, now: Time, key: Key) {
        // Remembered even if the call itself is still on its way, by another path.
        let outcome = Outcome::error(Code::Cancelled, "the client took the call back");
        self.memory.put(now, key, &outcome);
        let Some(id) = self.native_call(&key) else { return };
        self.stop_worker(id);
        self.settle(now, id);
    }

    /// Tells the worker, if there is one, that nobody waits any more.
    pub(super) fn stop_worker(&mut self, id: CallId) {
        let call = &self.calls[id];
        let (State::Assigned(_, slot), key, Dialect::Native) =
            (&call.state, call.key, call.dialect)
        else {
            return;
        };
        let worker = &self.registry.workers[*slot];
        let (peer, way) = (worker.id, worker.path());
        if let Some(way) = way {
            self.send_to_worker(way, peer, Cancel { key });
        }
    }

    /// The way to its worker is full: it has not begun, and that way gets nothing for a moment.
    pub(super) fn refused(&mut self, now: Time, link: Link, from: PeerId, number: u64) {
        if self.registry.close(link) {
            self.timers.insert((now.plus_ms(RETRY_MS), Timer::Reopen(link)));
        }
        self.give_back(now, from, number);
    }

    /// An assignment that has not begun, for want of room on its way: back to the pick.
    pub(super) fn give_back(&mut self, now: Time, from: PeerId, number: u64) {
        let Some((id, _)) = self.assignment(from, number) else { return };
        self.release(now, id);
        if self.calls[id].answered {
            self.remove(id);
        } else {
            self.place(now, id);
        }
    }

    /// The worker has not begun it: back to the pick, without that worker for a moment.
    pub(super) fn not_begun(&mut self, now: Time, from: PeerId, number: u64) {
        let Some((id, _)) = self.assignment(from, number) else { return };
        self.release(now, id);
        let call = &mut self.calls[id];
        if call.answered {
            self.remove(id);
            return;
        }
        call.avoid.push(from);
        self.place(now, id);
    }

    /// The worker that had it is gone, or lost it: it may have begun.
    pub(super) fn may_have_begun(&mut self, now: Time, number: u64, from: PeerId, why: &str) {
        let Some(id) = self.assignments.get(&number).copied() else { return };
        self.release(now, id);
        let call = &mut self.calls[id];
        if call.answered {
            self.remove(id);
            return;
        }
        let again = call.options.has(Options::IDEMPOTENT) && !call.options.has(Options::STREAM);
        if again && call.lives > 0 {
            call.lives -= 1;
            call.avoid.push(from);
            return self.place(now, id);
        }
        let outcome = Outcome::error(Code::Unavailable, why);
        // Remembered, because a duplicate of attempt 0 must not run it a second time.
        self.memory.put(now, call.key, &outcome);
        self.finish(now, id, outcome);
    }

    pub(super) fn accept(&mut self, path: &ReturnPath, key: Key) {
        self.send_to_client(path, Accepted { key }.into(), Bytes::new());
    }

    /// Tells a client that wants to know it that its call is in our hands, if it is.
    pub(super) fn acknowledge(&mut self, id: CallId) {
        let Some(call) = self.calls.get(id) else { return };
        if call.origin == Origin::Native && call.options.has(Options::ACKNOWLEDGE) {
            let (path, key) = (call.path.clone(), call.key);
            self.accept(&path, key);
        }
    }

    pub(super) fn answer(&mut self, call: &Call, end: End) {
        self.answer_to(&call.origin, &call.path, call.key, end);
    }

    pub(super) fn answer_to(&mut self, origin: &Origin, path: &ReturnPath, key: Key, end: End) {
        match (origin, end) {
            (Origin::Native, End::Native(outcome)) => self.answer_native(path, key, &outcome),
            (Origin::Native, End::Ez(_)) => self.drop_one(),
            (Origin::Ez(id), End::Ez(frames)) => self.answer_ez(path, id.clone(), frames),
            (Origin::Ez(id), End::Native(outcome)) => {
                let frames = if outcome.code == 0 {
                    vec![Bytes::from_static(ez::OK), outcome.body]
                } else {
                    let text = format!("{}: {}", Code::from_number(outcome.code), outcome.message);
                    vec![Bytes::from_static(ez::ERR), Bytes::from(text)]
                };
                self.answer_ez(path, id.clone(), frames);
            }
        }
    }

    pub(super) fn answer_native(&mut self, path: &ReturnPath, key: Key, outcome: &Outcome) {
        let reply = Reply {
            address: Bytes::new(),
            key,
            code: outcome.code,
            message: outcome.message.clone(),
            chunks: outcome.chunks,
            headers: outcome.headers.clone(),
            trailers: outcome.trailers.clone(),
        };
        self.send_to_client(path, reply.into(), outcome.body.clone());
    }

    pub(super) fn answer_ez(&mut self, path: &ReturnPath, id: Bytes, frames: Vec<Bytes>) {
        let Some(link) = self.link_of(path) else { return self.drop_one() };
        let message = EzAnswer { peer: path.peer.clone(), id }.into();
        let body = Body::Frames(frames);
        let (pipe, peer) = (path.pipe, PeerId::default());
        self.send(
            link,
            Packet {
                steer: Steer::Owner(self.me),
                pipe,
                peer,
                bounced: false,
                full: false,
                message,
                body,
            },
        );
    }

    pub(super) fn send_to_client(
        &mut self,
        path: &ReturnPath,
        message: zex_spec::Message,
        body: Bytes,
    ) {
        let peer = path.peer.as_ref().try_into().map(PeerId);
        let (Some(link), Ok(peer)) = (self.link_of(path), peer) else { return self.drop_one() };
        let (steer, pipe, body) = (Steer::Owner(self.me), path.pipe, Body::Bytes(body));
        self.send(link, Packet { steer, pipe, peer, bounced: false, full: false, message, body });
    }

    /// The socket towards a return path's pipe. A native client is at every pipe, so if its pipe
    /// is not known any more another will do.
    fn link_of(&self, path: &ReturnPath) -> Option<Link> {
        let exact = self.pipes.get(&path.pipe).copied();
        let other = || self.pipes.values().copied().find(|link| matches!(link, Link::In(_)));
        exact.or_else(|| if path.dialect == Dialect::Native { other() } else { None })
    }
}
