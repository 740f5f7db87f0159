//! The old dialect at a broker: requests whose ids repeat, workers that only beat.

use std::collections::BTreeSet;
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
use crate::seeded::Secret;

/// A request of the old dialect has no deadline of its own; it gets this one.
const DEADLINE_MS: u64 = 60_000;
/// Ids at least this long are unique enough to say that two requests are one.
const UNIQUE_ID_BYTES: usize = 16;
/// Old workers beat every 3 s: until a broker has heard one whole round it cannot say that nobody
/// serves a service.
const FIRST_ROUND_MS: u64 = EZ_BEAT_INTERVAL_MS + 500;
/// Requests of one id that run at once. Old clients send one twice; a flood of one id is garbage.
const MAX_REPEATS: usize = 16;

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
