//! A call's way through its home: accepted, asked about, queued, assigned, answered.
//!
//! ```text
//!   Call ─┬─ key remembered ──────────────────────────────▶ the same answer again
//!         ├─ key runs ─────────────────────────────────────▶ Accepted, newest path
//!         ├─ resend of a key nobody here knows ─▶ Asking ─┐
//!         └───────────────────────────────────────────────┴▶ place ─┬▶ Assigned ─▶ Reply
//!                          ▲                                        └▶ Queued ──┘
//!                          └── Busy, bounced, refused, idempotent and its worker died
//! ```
//!
//! A call that is answered while its worker is still at it (deadline, cancel) stays in the table
//! until the worker lets go: the count is what the worker really holds.

use std::collections::{BTreeSet, HashMap};
use std::ops::{Index, IndexMut};

use bytes::Bytes;
use zex_spec::{
    Address, Body, Code, Dialect, EzWork, Key, MAX_PRIORITY, MESH_SERVICE, Metadata, Options,
    Packet, PeerId, ReturnPath, Steer, Work,
};

use super::asking::Asking;
use super::clients::ClientSlot;
use super::memory::{Numbers, Outcome};
use super::queue::Place;
use super::streams::Ways;
use super::{CallId, Edge, Mesh, Timer};
use crate::Time;

/// Who asked, and so how the answer looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A native client.
    Native,
    /// An EZ client, and its request id.
    Ez(Bytes),
}

/// Where a call is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// It waits for a worker.
    Queued,
    /// It waits for workers to say whether they know its key.
    Asking(Asking),
    /// A worker has it: the assignment's number, the worker's slot.
    Assigned(u64, usize),
}

/// A call at its home.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) origin: Origin,
    /// The newest return path.
    pub(super) path: ReturnPath,
    pub(super) key: Key,
    /// The dialect of the workers that can serve it.
    pub(super) dialect: Dialect,
    /// As it came: an EZ name need not be UTF-8.
    pub(super) service: Bytes,
    pub(super) method: String,
    pub(super) metadata: Metadata,
    pub(super) body: Body,
    pub(super) deadline: Time,
    /// When attempt 0 was sent, at the earliest.
    pub(super) began: Time,
    pub(super) attempt: u8,
    pub(super) options: Options,
    /// 0 to 9; the higher goes first.
    pub(super) priority: u8,
    /// Whose it is: who sent it first. Set when it is admitted.
    pub(super) client: ClientSlot,
    pub(super) state: State,
    /// Workers that just refused it; forgotten after a moment.
    pub(super) avoid: Vec<PeerId>,
    /// Workers that must not see it (EZ: they had this id).
    pub(super) never: BTreeSet<PeerId>,
    /// The service in whose queue it stands.
    pub(super) queued_in: Option<usize>,
    /// A worker had it before: a full queue is no reason to turn it away now.
    pub(super) assigned_once: bool,
    /// The client has its answer, or took the call back.
    pub(super) answered: bool,
    /// How often it may still be given to another worker after one died with it.
    pub(super) lives: u8,
    /// Until then the lack of a worker is no answer.
    pub(super) patience: Time,
    /// It lay here while this broker was away: another may have run it meanwhile.
    pub(super) stale: bool,
    /// A worker has said that it began this.
    pub(super) begun: bool,
    /// Every attempt up to this one came here, so nobody else can have begun it.
    pub(super) all_ours: bool,
    /// Of a stream that is assigned.
    pub(super) ways: Option<Box<Ways>>,
}

/// The calls of a home by their number, which grows with their arrival.
///
/// Indexing takes only ids that come from the tables beside it (keys, assignments, queues); those
/// are cleared in [`Mesh::remove`], so they are always there.
#[derive(Debug)]
pub(super) struct Calls {
    by_id: HashMap<CallId, Call, Numbers>,
    next: CallId,
}

impl Calls {
    pub(super) fn new() -> Self {
        Self { by_id: HashMap::with_hasher(Numbers), next: 1 }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    fn insert(&mut self, call: Call) -> CallId {
        let id = self.next;
        self.next += 1;
        self.by_id.insert(id, call);
        id
    }

    pub(super) fn get(&self, id: CallId) -> Option<&Call> {
        self.by_id.get(&id)
    }

    /// Takes the call out; see [`Mesh::remove`], which also takes it out of the tables beside.
    pub(super) fn take(&mut self, id: CallId) -> Call {
        self.by_id.remove(&id).expect("ids in the tables are those of calls that are there")
    }

    fn get_mut(&mut self, id: CallId) -> Option<&mut Call> {
        self.by_id.get_mut(&id)
    }

    /// Every call, in no order that means anything.
    pub(super) fn all(&mut self) -> impl Iterator<Item = (CallId, &mut Call)> {
        self.by_id.iter_mut().map(|(id, call)| (*id, call))
    }
}

impl Index<CallId> for Calls {
    type Output = Call;

    fn index(&self, id: CallId) -> &Call {
        &self.by_id[&id]
    }
}

impl IndexMut<CallId> for Calls {
    fn index_mut(&mut self, id: CallId) -> &mut Call {
        self.by_id.get_mut(&id).expect("ids in the tables are those of calls that are there")
    }
}

impl Call {
    /// Where it stands in a queue.
    pub(super) fn place(&self) -> Place {
        Place { priority: self.priority, client: self.client }
    }

    /// What it counts for where bytes are bounded.
    pub(super) fn bytes(&self) -> usize {
        self.body.len() + self.metadata.len()
    }

    /// The service's name for people, and for native workers.
    pub(super) fn service_text(&self) -> String {
        String::from_utf8_lossy(&self.service).into_owned()
    }

    /// What its worker is told: also whether one that died with it may have begun it.
    fn work_options(&self) -> Options {
        let options = Options(self.options.0 & !Options::AGAIN.0);
        if self.lives < LIVES { options.with(Options::AGAIN) } else { options }
    }
}

/// How a call ended, in the dialect of who ended it.
pub(super) enum End {
    Native(Outcome),
    Ez(Vec<Bytes>),
}

impl Outcome {
    pub(super) fn error(code: Code, message: impl Into<String>) -> Self {
        Self { code: code.number(), message: message.into(), ..Self::default() }
    }
}

/// How often an idempotent call outlives its worker before it counts as the killer.
pub(super) const LIVES: u8 = 3;
/// What was just refused, by a worker or by a full pipe, is offered again after this long.
pub(super) const RETRY_MS: u64 = 50;
/// How far behind the head of a queue we look for a call that a free worker may take.
const LOOK_BEHIND: usize = 16;

impl Mesh {
    /// A client's call, first or again.
    pub(super) fn on_call(&mut self, now: Time, edge: Edge, call: zex_spec::Call, body: Bytes) {
        // One allocation that every copy of the path shares.
        let peer = Bytes::from_owner(edge.peer.0);
        let path = ReturnPath { pipe: edge.pipe, dialect: Dialect::Native, peer };
        if let Some(outcome) = self.memory.get(&call.key) {
            return self.answer_native(&path, call.key, &outcome);
        }
        if let Some(id) = self.native_call(&call.key) {
            let known = &mut self.calls[id];
            if known.takes_new_path() {
                known.path = path.clone();
            }
            if known.attempt.checked_add(1) == Some(call.attempt) {
                known.attempt = call.attempt;
            }
            // What is being asked about may have to be forgotten, or its fate remain unknown.
            let ours = !known.stale && !matches!(known.state, State::Asking(_));
            return if ours {
                self.accept(&path, call.key)
            };
        }
        if call.service == MESH_SERVICE {
            let outcome = self.answer_for_itself(now, &call.method, &body);
            return self.answer_native(&path, call.key, &outcome);
        }
        if call.priority > MAX_PRIORITY {
            let text = format!("a priority is 0 to {MAX_PRIORITY}, not {}", call.priority);
            let outcome = Outcome::error(Code::InvalidArgument, text);
            return self.answer_native(&path, call.key, &outcome);
        }
        if call.deadline_ms == 0 {
            let outcome = Outcome::error(
                Code::DeadlineExceeded,
                "the deadline had passed when the call arrived",
            );
            return self.answer_native(&path, call.key, &outcome);
        }
        let patience = if call.options.has(Options::WAIT) {
            now.plus_ms(u64::from(call.deadline_ms))
        } else {
            now
        };
        let idempotent = call.options.has(Options::IDEMPOTENT);
        let id = self.admit(Call {
            origin: Origin::Native,
            path: path.clone(),
            key: call.key,
            dialect: Dialect::Native,
            service: Bytes::from(call.service),
            method: call.method,
            metadata: call.metadata,
            body: Body::Bytes(body),
            deadline: now.plus_ms(u64::from(call.deadline_ms)),
            began: Time(self.came_from(now).0.saturating_sub(u64::from(call.age_ms) * 1_000)),
            attempt: call.attempt,
            options: call.options,
            priority: call.priority,
            client: 0,
            state: State::Queued,
            avoid: Vec::new(),
            never: BTreeSet::new(),
            queued_in: None,
            assigned_once: false,
            answered: false,
            lives: LIVES,
            patience,
            stale: !idempotent && now < self.backlog_until,
            begun: false,
            all_ours: self.let_go.all_before(&call.key, call.attempt),
            ways: None,
        });
        let Some(id) = id else { return };
        let resend = call.attempt > 0 && !idempotent;
        if resend || self.calls[id].stale {
            return self.ask(now, id);
        }
        self.place(now, id);
        self.acknowledge(id);
    }

    /// The call that a native client may mean by this key: those of EZ clients have keys, too, which
    /// are nobody's business.
    pub(super) fn native_call(&self, key: &Key) -> Option<CallId> {
        let id = self.keys.get(key).copied()?;
        (self.calls[id].origin == Origin::Native).then_some(id)
    }

    /// Puts a call into the table, or answers that the table is full, or its client's part of it.
    pub(super) fn admit(&mut self, mut call: Call) -> Option<CallId> {
        let bytes = call.bytes();
        if let Some(text) = self.full_for(&call.path, bytes) {
            self.answer(&call, End::Native(Outcome::error(Code::ResourceExhausted, text)));
            return None;
        }
        call.client = self.clients.add(&call.path, bytes);
        self.held_bytes += bytes;
        let (key, deadline) = (call.key, call.deadline);
        let id = self.calls.insert(call);
        self.keys.insert(key, id);
        if self.settings.expire_requests {
            self.timers.insert((deadline, Timer::Deadline(id)));
        }
        Some(id)
    }

    /// Which limit one more call of this client, with so many bytes, would be above.
    fn full_for(&self, path: &ReturnPath, bytes: usize) -> Option<String> {
        let (limits, name) = (&self.settings, &self.name);
        let (calls, all_bytes) = (self.calls.len(), self.held_bytes);
        let client = self.clients.held(path);
        if calls >= limits.max_calls {
            return Some(format!("broker {name} holds {calls} calls, the limit for all"));
        }
        if all_bytes + bytes > limits.max_call_bytes {
            let limit = limits.max_call_bytes;
            return Some(format!(
                "broker {name} holds {all_bytes} bytes of requests; with these {bytes} they would \
                 be above the limit for all, {limit}"
            ));
        }
        if client.calls >= limits.client_calls {
            let calls = client.calls;
            return Some(format!(
                "broker {name} holds this client's {calls} calls, the limit for one client"
            ));
        }
        if client.bytes + bytes > limits.client_bytes {
            let (has, limit) = (client.bytes, limits.client_bytes);
            return Some(format!(
                "broker {name} holds {has} bytes of requests of this client; with these {bytes} \
                 they would be above the limit for one client, {limit}"
            ));
        }
        None
    }

    /// Gives the call to the least assigned worker, or lets it wait, or says that nobody is there.
    pub(super) fn place(&mut self, now: Time, id: CallId) {
        let call = &mut self.calls[id];
        call.state = State::Queued;
        if call.begun && !call.options.has(Options::IDEMPOTENT) {
            // Who began it cannot be reached, and nobody else may begin it again.
            return self.fate_unknown(now, id);
        }
        let known = self.registry.service(call.dialect, &call.service);
        if call.patience <= now && !known.is_some_and(|service| self.registry.has_workers(service))
        {
            let text = format!("no worker serves {}", call.service_text());
            return self.finish(now, id, Outcome::error(Code::Unavailable, text));
        }
        let service = match known {
            Some(service) => service,
            None => self.registry.service_or_new(call.dialect, &call.service),
        };
        let in_turn = self.registry.services[service].queue.none_in_turn();
        if in_turn && let Some(slot) = self.pick(service, id) {
            return self.assign(now, id, slot);
        }
        self.enqueue(now, id, service);
    }

    fn enqueue(&mut self, now: Time, id: CallId, service: usize) {
        // What was accepted once is not thrown out by its way back.
        if !self.calls[id].assigned_once
            && let Some(text) = self.no_room_in(service, &self.calls[id])
        {
            return self.finish(now, id, Outcome::error(Code::ResourceExhausted, text));
        }
        let call = &mut self.calls[id];
        let queue = &mut self.registry.services[service].queue;
        queue.insert(id, call.place(), call.bytes(), !call.never.is_empty());
        call.queued_in = Some(service);
        self.to_pump.insert(service);
        if !call.avoid.is_empty() {
            self.timers.insert((now.plus_ms(RETRY_MS), Timer::Retry(id)));
        } else if call.origin == Origin::Native && !call.options.has(Options::ACKNOWLEDGE) {
            // It may take its time; its client need not ask others for it.
            let (path, key) = (call.path.clone(), call.key);
            self.accept(&path, key);
        }
    }

    /// Which limit of the service's queue this call would be above.
    fn no_room_in(&self, service: usize, call: &Call) -> Option<String> {
        let queue = &self.registry.services[service].queue;
        let (waiting, bytes, more) = (queue.len(), queue.bytes(), call.bytes());
        if waiting >= self.settings.queue_calls {
            let name = call.service_text();
            return Some(format!("{waiting} calls wait for {name}, the limit for one service"));
        }
        let limit = self.settings.queue_bytes;
        (bytes + more > limit).then(|| {
            let name = call.service_text();
            format!(
                "{bytes} bytes of requests wait for {name}; with these {more} they would be above \
                 the limit for one service, {limit}"
            )
        })
    }

    pub(super) fn dequeue(&mut self, id: CallId) {
        let call = &mut self.calls[id];
        let Some(service) = call.queued_in.take() else { return };
        let queue = &mut self.registry.services[service].queue;
        queue.remove(id, call.place(), call.bytes());
    }

    fn pick(&self, service: usize, id: CallId) -> Option<usize> {
        let call = &self.calls[id];
        let fits = |slot: u32| {
            let worker = self.registry.workers[slot as usize].id;
            !call.avoid.contains(&worker) && !call.never.contains(&worker)
        };
        self.registry.services[service].list.pick(fits).map(|slot| slot as usize)
    }

    /// Hands queued calls to workers that have room again: one of each service, and again, because
    /// a worker may serve several.
    pub(super) fn pump(&mut self, now: Time) {
        while let Some(service) = self.next_to_pump() {
            if self.pump_one(now, service) {
                self.to_pump.insert(service);
            }
        }
    }

    fn next_to_pump(&mut self) -> Option<usize> {
        let behind = self.to_pump.range(self.pumped + 1..).next();
        let service = behind.or_else(|| self.to_pump.first()).copied()?;
        self.to_pump.remove(&service);
        self.pumped = service;
        Some(service)
    }

    /// Whether the service's queue has moved.
    fn pump_one(&mut self, now: Time, service: usize) -> bool {
        let Some(entry) = self.registry.services.get(service) else { return false };
        if entry.queue.is_empty() || entry.list.none_has_room() {
            return false;
        }
        let fits = |id| self.pick(service, id).map(|slot| (id, slot));
        let Some((id, slot)) = entry.queue.find(LOOK_BEHIND, fits) else { return false };
        let place = self.calls[id].place();
        self.dequeue(id);
        self.registry.services[service].queue.served(place);
        if self.calls[id].stale {
            self.ask(now, id);
        } else {
            self.assign(now, id, slot);
        }
        true
    }

    /// The calls of a service that has no worker any more, and that nobody wants to wait for one.
    pub(super) fn nobody_left(&mut self, now: Time, service: usize) {
        let Some(entry) = self.registry.services.get(service) else { return };
        if self.registry.has_workers(service) {
            return;
        }
        let had = entry.last_loss.is_some() || entry.list.len() > 0;
        for id in entry.queue.all() {
            // One may have gone with another of its id.
            let Some(call) = self.calls.get(id) else { continue };
            if call.patience <= now {
                let name = call.service_text();
                let text = match had {
                    true => format!("the last worker that served {name} is gone"),
                    false => format!("no worker serves {name}"),
                };
                self.finish(now, id, Outcome::error(Code::Unavailable, text));
            } else if self.draining && call.origin == Origin::Native {
                // Who leaves waits for nobody. The client hears of it and sends the call to others.
                self.remove(id);
            }
        }
    }

    /// Gives the call to this worker.
    pub(super) fn assign(&mut self, now: Time, id: CallId, slot: usize) {
        let Some(way) = self.registry.way_to(slot) else { return self.place(now, id) };
        let worker = &mut self.registry.workers[slot];
        let number = self.next_number;
        self.next_number += 1;
        worker.assigned.insert(number);
        let worker_id = worker.id;
        self.assignments.insert(number, id);
        self.view.picked(now, self.peers.len());
        self.count_changed(now, slot);
        self.not_for_its_repeats(id, worker_id);
        let call = &mut self.calls[id];
        call.set_way(way);
        (call.state, call.assigned_once) = (State::Assigned(number, slot), true);
        let address = Address { owner: self.me, number, path: call.path.clone() }.encode();
        let left_ms = u32::try_from(call.deadline.since(now).as_millis()).unwrap_or(u32::MAX);
        let (message, peer) = match (&call.origin, call.dialect) {
            (Origin::Ez(id), Dialect::Ez) => {
                let routing = self.registry.workers[slot].routing.clone();
                (EzWork { peer: routing, address, id: id.clone() }.into(), PeerId::default())
            }
            _ => {
                let work = Work {
                    address,
                    key: call.key,
                    service: call.service_text(),
                    method: call.method.clone(),
                    deadline_ms: left_ms.max(1),
                    attempt: call.attempt,
                    options: call.work_options(),
                    metadata: call.metadata.clone(),
                };
                (work.into(), worker_id)
            }
        };
        let body = call.body.clone();
        self.send(
            way.link,
            Packet {
                steer: Steer::Owner(self.me),
                pipe: way.pipe,
                peer,
                bounced: false,
                full: false,
                message,
                body,
            },
        );
    }

    /// The workers that refused it a moment ago may be asked again.
    pub(super) fn retry(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(id) else { return };
        call.avoid.clear();
        self.to_pump.extend(call.queued_in);
    }
}
