//! The old dialect at a broker: requests whose ids repeat, workers that only beat.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::BuildHasher;

use bytes::Bytes;
use zex_spec::{
    Address, Body, Code, DEFAULT_PRIORITY, Dialect, EZ_BEAT_INTERVAL_MS, EzCall, EzReply, Key,
    Metadata, Options, PeerId, ReturnPath,
};

use super::calls::{Call, End, Origin, State};
use super::memory::Outcome;
use super::{CallId, Edge, Mesh};
use crate::Time;
use crate::seeded::{Secret, Seeded};

/// A request of the old dialect has no deadline of its own; it gets this one.
const DEADLINE_MS: u64 = 60_000;
/// Ids at least this long are unique enough to say that two requests are one.
const UNIQUE_ID_BYTES: usize = 16;
/// Old workers beat every 3 s: until a broker has heard one whole round it cannot say that nobody
/// serves a service.
const FIRST_ROUND_MS: u64 = EZ_BEAT_INTERVAL_MS + 500;
/// Requests of one id that run at once. Old clients send one twice; a flood of one id is garbage.
const MAX_REPEATS: usize = 16;
/// How long it is known that a request was answered, ms. Its client may have sent it again before it
/// had the answer; the two have crossed within this time.
const CROSSING_MS: u64 = 1_000;
/// Requests that are known so; beyond, the oldest are forgotten, and their repeats run.
const MAX_ANSWERED: usize = 32_768;

/// Requests of unique ids that were answered a moment ago, by what makes two of them one: the client's
/// path, the id, and what was asked. Of that a hash is kept, so that a mark is small.
#[derive(Debug)]
pub(super) struct Answered {
    seeded: Seeded,
    marks: HashSet<u64, Seeded>,
    /// The oldest first.
    since: VecDeque<(Time, u64)>,
}

impl Answered {
    pub(super) fn new(seed: u64) -> Self {
        let seeded = Seeded(seed);
        Self { seeded, marks: HashSet::with_hasher(seeded), since: VecDeque::new() }
    }

    fn mark(&self, path: &ReturnPath, id: &[u8], asked: (&Bytes, &str, &Body)) -> u64 {
        let (service, method, body) = asked;
        let frames = match body {
            Body::Bytes(body) => std::slice::from_ref(body),
            Body::Frames(frames) => frames.as_slice(),
        };
        self.seeded.hash_one((path.pipe, &path.peer, id, service, method, frames))
    }

    /// It was answered, at this path.
    pub(super) fn put(&mut self, now: Time, call: &Call) {
        let Origin::Ez(id) = &call.origin else { return };
        if id.len() < UNIQUE_ID_BYTES {
            return;
        }
        let mark = self.mark(&call.path, id, (&call.service, &call.method, &call.body));
        if self.marks.insert(mark) {
            self.since.push_back((now, mark));
        }
        if self.since.len() > MAX_ANSWERED {
            self.forget_oldest();
        }
    }

    pub(super) fn expire(&mut self, now: Time) {
        while self.since.front().is_some_and(|(at, _)| at.plus_ms(CROSSING_MS) <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, mark)) = self.since.pop_front() {
            self.marks.remove(&mark);
        }
    }
}

impl Mesh {
    /// A request of an old client.
    pub(super) fn on_ez_call(
        &mut self,
        now: Time,
        edge: Edge,
        request: EzCall,
        frames: Vec<Bytes>,
    ) {
        let path = ReturnPath { pipe: edge.pipe, dialect: Dialect::Ez, peer: request.peer };
        let native = self.native_target(&request.service);
        let (dialect, service, method, body) = match native {
            None => (Dialect::Ez, request.service, String::new(), Body::Frames(frames)),
            Some((service, method)) => match <[Bytes; 1]>::try_from(frames) {
                Ok([body]) => (Dialect::Native, service, method, Body::Bytes(body)),
                Err(frames) if frames.is_empty() => (Dialect::Native, service, method, Body::EMPTY),
                Err(frames) => {
                    let text = format!("a gRPC method takes one body frame, not {}", frames.len());
                    let end = End::Native(Outcome::error(Code::InvalidArgument, text));
                    return self.answer_to(&Origin::Ez(request.id), &path, Key::default(), end);
                }
            },
        };
        let mark = self.ez_answered.mark(&path, &request.id, (&service, &method, &body));
        if self.ez_answered.marks.contains(&mark) {
            // Sent before it had the answer. Run again, it would be answered a second time, and an
            // old worker that had the id would be silent until the deadline.
            return;
        }
        let repeats = self.repeats(&request.id);
        if repeats.len() >= MAX_REPEATS {
            let text = format!("{MAX_REPEATS} requests with this id run already");
            let end = End::Native(Outcome::error(Code::ResourceExhausted, text));
            return self.answer_to(&Origin::Ez(request.id), &path, Key::default(), end);
        }
        let mut never = BTreeSet::new();
        for id in &repeats {
            let call = &mut self.calls[*id];
            let equal = call.service == service && call.method == method && call.body == body;
            if equal && !call.answered && request.id.len() >= UNIQUE_ID_BYTES {
                call.path = path;
                return;
            }
            // A native worker knows a request by its key, and every request has its own.
            if dialect == Dialect::Ez && call.dialect == Dialect::Ez {
                if let State::Assigned(_, slot) = call.state {
                    never.insert(self.registry.workers[slot].id);
                }
                never.extend(call.never.iter().copied());
            }
        }
        let key = self.next_ez_key();
        let admitted = self.admit(Call {
            origin: Origin::Ez(request.id.clone()),
            path,
            key,
            dialect,
            service,
            method,
            metadata: Metadata::EMPTY,
            body,
            deadline: now.plus_ms(DEADLINE_MS),
            began: now,
            attempt: 0,
            options: Options::default(),
            priority: DEFAULT_PRIORITY,
            client: 0,
            state: State::Queued,
            avoid: Vec::new(),
            never,
            queued_in: None,
            assigned_once: false,
            answered: false,
            lives: super::calls::LIVES,
            patience: self.linked.unwrap_or(now).plus_ms(FIRST_ROUND_MS),
            stale: false,
            begun: false,
            all_ours: true,
            ways: None,
        });
        if let Some(id) = admitted {
            self.ez_ids.entry(request.id).or_default().insert(id);
            self.place(now, id);
        }
    }

    /// `pkg.Service/Method` of a native worker, if nobody serves the whole name in the old dialect.
    fn native_target(&self, name: &Bytes) -> Option<(Bytes, String)> {
        let served = |dialect, name: &[u8]| {
            let service = self.registry.service(dialect, name);
            service.is_some_and(|service| self.registry.services[service].list.len() > 0)
        };
        let slash = name.iter().rposition(|byte| *byte == b'/')?;
        let (service, method) = (name.slice(..slash), std::str::from_utf8(&name[slash + 1..]));
        let method = method.ok().filter(|method| !method.is_empty())?;
        let native = !served(Dialect::Ez, name) && served(Dialect::Native, &service);
        native.then(|| (service, method.to_owned()))
    }

    /// Requests with this id that run.
    fn repeats(&self, id: &Bytes) -> BTreeSet<CallId> {
        self.ez_ids.get(id).cloned().unwrap_or_default()
    }

    /// A key for a call that brought none. Made with our secret seed: who could guess it could ask
    /// for the answer.
    fn next_ez_key(&mut self) -> Key {
        let half =
            |half: u8| Secret(self.settings.seed).hash_one((self.me, self.next_ez_key, half));
        let mut key = [0; 16];
        key[..8].copy_from_slice(&half(0).to_be_bytes());
        key[8..].copy_from_slice(&half(1).to_be_bytes());
        self.next_ez_key += 1;
        Key(key)
    }

    /// A worker gets this request: it must not see the id again.
    pub(super) fn not_for_its_repeats(&mut self, id: CallId, worker: PeerId) {
        let call = &self.calls[id];
        let (Origin::Ez(request), Dialect::Ez) = (&call.origin, call.dialect) else { return };
        for repeat in self.repeats(request) {
            let call = &mut self.calls[repeat];
            if repeat == id || call.dialect != Dialect::Ez {
                continue;
            }
            call.never.insert(worker);
            if let Some(service) = call.queued_in {
                self.registry.services[service].queue.put_aside(repeat, call.place());
            }
        }
    }

    /// The client has had an answer for this id: the repeats that it sent meanwhile get none. Some
    /// old clients die on an answer that they no longer expect.
    pub(super) fn answered_siblings(&mut self, id: CallId, origin: &Origin, path: &ReturnPath) {
        let Origin::Ez(request) = origin else { return };
        for sibling in self.repeats(request) {
            let call = &mut self.calls[sibling];
            if sibling == id || call.path != *path {
                continue;
            }
            if matches!(call.state, State::Assigned(..)) {
                call.answered = true;
            } else {
                self.remove(sibling);
            }
        }
    }

    /// A call is gone from the table.
    pub(super) fn forget_ez_id(&mut self, id: CallId, call: &Call) {
        let Origin::Ez(request) = &call.origin else { return };
        if let Some(ids) = self.ez_ids.get_mut(request) {
            ids.remove(&id);
            if ids.is_empty() {
                self.ez_ids.remove(request);
            }
        }
    }

    /// The answer of an old worker; it counts as a beat.
    pub(super) fn on_ez_reply(
        &mut self,
        now: Time,
        edge: Edge,
        reply: &EzReply,
        frames: Vec<Bytes>,
    ) {
        let from = PeerId::of_ez(edge.pipe, &reply.peer);
        let Ok(address) = Address::decode(&reply.address) else { return self.drop_one() };
        if let Some(slot) = self.registry.worker(&from) {
            let path = edge.path(now);
            self.registry.workers[slot].heard_at(path);
            self.registry.relevel(slot);
            self.freed(slot);
        }
        if address.owner != self.me {
            // Its owner is dead. The return path is all that an old client needs.
            return match address.path.dialect {
                Dialect::Ez => self.answer_ez(&address.path, reply.id.clone(), frames),
                Dialect::Native => self.drop_one(),
            };
        }
        match self.assignment(from, address.number) {
            Some((id, _)) => self.finished_by_worker(now, id, End::Ez(frames)),
            None => self.drop_one(),
        }
    }
}
