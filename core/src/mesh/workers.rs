//! Workers come, beat, change, leave and die.
//!
//! ```text
//!            Register / EZ beat            no path left (bounce, pipe restarted)
//!   unknown ───────────────────▶ live ─────────────────────────────────────▶ lapsed
//!      ▲                          │ ▲                 heard again              │ │
//!      │ Goodbye, last PeerGone,  │ └──────────────────────────────────────────┘ │
//!      │ 3 beats missed           │                                              │
//!      └──────────────────────────┴────────── PeerGone, 3 beats missed ◀─────────┘
//! ```
//!
//! A lapsed worker is not picked, but what it holds is not given up yet: its pipe may only have
//! been restarted.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use zex_spec::{
    BEAT_INTERVAL_MS, BEATS_MISSED, Dialect, EZ_BEAT_INTERVAL_MS, Enquire, EzBeat, Heartbeat, Held,
    Message, Options, Packet, PeerGone, PeerId, PipeId, Register, Steer,
};

use super::calls::RETRY_MS;
use super::registry::{Path, Worker};
use super::{Edge, Mesh, Timer};
use crate::Time;

/// What a heartbeat does not explain for this long is lost. Less than a beat's interval, so that
/// two beats in a row decide; more than what lies between the copies of one beat on two pipes.
const SUSPECT_MS: u64 = 400;
/// Work may be on its way for this long before a heartbeat must have seen it.
const TRANSIT_MS: u64 = 1_000;
/// Tasks that an EZ worker takes at once: it cannot say, and the old brokers knew no limit.
pub(super) const EZ_CAPACITY: u32 = 1_000;

/// How often workers of a dialect beat.
pub(super) fn beat_ms(dialect: Dialect) -> u64 {
    match dialect {
        Dialect::Native => BEAT_INTERVAL_MS,
        Dialect::Ez => EZ_BEAT_INTERVAL_MS,
    }
}

impl Edge {
    /// The way back to a worker that was heard here now.
    pub(super) fn path(self, now: Time) -> Path {
        Path { link: self.link, pipe: self.pipe, heard: now }
    }
}

impl Mesh {
    /// A worker says what it serves.
    pub(super) fn on_register(&mut self, now: Time, edge: Edge, register: Register) {
        let path = edge.path(now);
        let slot = match self.registry.worker(&edge.peer) {
            Some(slot) => slot,
            None if !self.registry.has_room() => return self.stats.refused += 1,
            None => self.new_worker(
                now,
                edge.peer,
                Dialect::Native,
                Bytes::copy_from_slice(&edge.peer.0),
            ),
        };
        let worker = &mut self.registry.workers[slot];
        worker.heard_at(path);
        if worker.version <= register.version {
            worker.name = register.name;
            worker.version = register.version;
            worker.capacity = register.capacity;
            let names: Vec<&[u8]> = register.services.iter().map(String::as_bytes).collect();
            let left: Vec<usize> = worker.services.iter().map(|(service, _)| *service).collect();
            let refused = self.registry.serve(slot, Dialect::Native, &names, now);
            self.stats.refused += refused as u64;
            left.into_iter().for_each(|service| self.nobody_left(now, service));
        }
        self.registry.relevel(slot);
        self.freed(slot);
    }

    /// An EZ worker's beat, which is its registration.
    pub(super) fn on_ez_beat(&mut self, now: Time, edge: Edge, beat: EzBeat) {
        let EzBeat { peer, service, held } = beat;
        let id = PeerId::of_ez(edge.pipe, &peer);
        let slot = match self.registry.worker(&id) {
            Some(slot) => slot,
            None if !self.registry.has_room() => return self.stats.refused += 1,
            None => {
                let slot = self.new_worker(now, id, Dialect::Ez, peer.clone());
                self.registry.workers[slot].capacity = EZ_CAPACITY;
                slot
            }
        };
        self.registry.workers[slot].heard_at(edge.path(now));
        let serves = self.registry.service(Dialect::Ez, &service);
        let same =
            self.registry.workers[slot].services.iter().any(|(known, _)| Some(*known) == serves);
        if !same {
            let refused = self.registry.serve(slot, Dialect::Ez, &[&service], now);
            self.stats.refused += refused as u64;
        }
        let lost = self.compare(now, slot, held);
        for number in lost {
            // Nobody can be asked whether it ran.
            let why = "the worker's pipe says that the worker does not have it, and no answer came";
            self.may_have_begun(now, number, id, why);
        }
    }

    fn new_worker(&mut self, now: Time, id: PeerId, dialect: Dialect, routing: Bytes) -> usize {
        let shares = self.peers.values().filter_map(|peer| peer.counts.get(&id));
        let foreign = shares.fold(0, |sum: u32, count| sum.saturating_add(*count));
        self.registry.add(Worker {
            id,
            dialect,
            name: String::from_utf8_lossy(&routing).into_owned(),
            routing,
            version: 0,
            capacity: 0,
            services: Vec::new(),
            paths: Vec::new(),
            assigned: BTreeSet::new(),
            foreign,
            orphans: 0,
            heard: now,
            in_flight: 0,
            suspects: BTreeMap::new(),
            strangers: BTreeMap::new(),
            strange: 0,
            full: false,
            joined: BTreeSet::new(),
        })
    }

    /// A worker lives, and says what it really holds.
    pub(super) fn on_heartbeat(&mut self, now: Time, edge: Edge, beat: Heartbeat) {
        let path = edge.path(now);
        let known = self.registry.worker(&edge.peer);
        let current = known.filter(|slot| self.registry.workers[*slot].version == beat.version);
        let Some(slot) = current else {
            return self.send_to_worker(path, edge.peer, Enquire {});
        };
        self.registry.workers[slot].heard_at(path);
        for number in self.compare(now, slot, beat.held) {
            self.ask_its_worker(now, number, edge.peer);
        }
    }

    /// Compares what a worker is said to hold with our table. Assignments of ours that are lost, by
    /// number: they are missing since long enough.
    fn compare(&mut self, now: Time, slot: usize, list: Vec<Held>) -> Vec<u64> {
        let (mut in_flight, mut orphans, mut lost) = (0, 0, Vec::new());
        let (mut seen, mut held) = (0, BTreeSet::new());
        for entry in list {
            in_flight += entry.numbers.len() as u32;
            if entry.owner == self.me {
                (seen, held) = (entry.seen, entry.numbers.into_iter().collect());
            } else if !self.peers.contains_key(&entry.owner) {
                orphans += entry.numbers.len() as u32;
            }
        }
        let worker = &mut self.registry.workers[slot];
        // What two owners wait for is one task.
        worker.in_flight = in_flight.saturating_sub(worker.joined.len() as u32);
        worker.orphans = orphans;
        let mut suspects = BTreeMap::new();
        // A stream's end cannot be asked for again: it gets time to arrive.
        let (calls, assignments) = (&self.calls, &self.assignments);
        let stream = |number: &u64| {
            let call = assignments.get(number).and_then(|id| calls.get(*id));
            call.is_some_and(|call| call.options.has(Options::STREAM))
        };
        for number in worker.assigned.difference(&held).copied() {
            let since = worker.suspects.get(&number).copied().unwrap_or(now);
            let soon = number <= seen && !stream(&number);
            let patience_ms = if soon { SUSPECT_MS } else { TRANSIT_MS };
            if since.plus_ms(patience_ms) <= now {
                lost.push(number);
            } else {
                suspects.insert(number, since);
            }
        }
        worker.suspects = suspects;
        // An old worker may ignore a request for ever, so what we gave up does not count there.
        let native = worker.dialect == Dialect::Native;
        let strangers = held
            .difference(&worker.assigned)
            .filter(|_| native)
            .map(|number| (*number, worker.strangers.get(number).copied().unwrap_or(now)));
        worker.strangers = strangers.collect();
        // Not at once: a copy of a beat may come by another pipe after the answer that ended it.
        let confirmed = |since: &&Time| since.plus_ms(SUSPECT_MS) <= now;
        let strange = worker.strangers.values().filter(confirmed).count() as u32;
        if std::mem::replace(&mut worker.strange, strange) == strange {
            self.registry.relevel(slot);
        } else {
            self.count_changed(now, slot);
        }
        self.freed(slot);
        self.stats.drift += lost.len() as u64;
        lost
    }

    /// A worker leaves and holds nothing.
    pub(super) fn on_goodbye(&mut self, now: Time, id: &PeerId) {
        let Some(slot) = self.registry.worker(id) else { return };
        let worker = &mut self.registry.workers[slot];
        if worker.assigned.is_empty() {
            return self.worker_dead(now, slot, "the worker left with it");
        }
        // Its last answers may come by another pipe, behind its goodbye; silence ends the wait.
        worker.paths.clear();
        self.registry.relevel(slot);
    }

    /// A connection at a worker pipe has ended.
    pub(super) fn on_peer_gone(&mut self, now: Time, edge: Edge, gone: &PeerGone) {
        let native = gone.peer.as_ref().try_into().map(PeerId).ok();
        let ez = PeerId::of_ez(edge.pipe, &gone.peer);
        for id in native.into_iter().chain([ez]) {
            let Some(slot) = self.registry.worker(&id) else { continue };
            self.path_lost(now, slot, edge.pipe);
            let Some(worker) = self.registry.workers.get(slot) else { continue };
            // A pipe has seen its end, and no other one has heard it lately. If it lives all the same
            // it registers again. Who leaves serves nothing any more: its last answers may still
            // come by another pipe.
            if worker.paths.is_empty() && !worker.services.is_empty() {
                let why = "the worker's connection ended while it had the call";
                self.worker_dead(now, slot, why);
            }
        }
    }

    /// What waits for this worker at its pipe is all that the pipe takes for it: it is slow, not
    /// gone. It gets nothing for a moment.
    pub(super) fn worker_full(&mut self, now: Time, slot: usize) {
        if !std::mem::replace(&mut self.registry.workers[slot].full, true) {
            self.timers.insert((now.plus_ms(RETRY_MS), Timer::Relieve(slot)));
            self.registry.relevel(slot);
        }
    }

    /// It may have room again. (If it died meanwhile, and another has its slot, that one is only
    /// looked at a moment early.)
    pub(super) fn relieve(&mut self, slot: usize) {
        if let Some(worker) = self.registry.workers.get_mut(slot) {
            worker.full = false;
            self.registry.relevel(slot);
            self.freed(slot);
        }
    }

    /// A worker cannot be reached through this pipe any more.
    pub(super) fn path_lost(&mut self, now: Time, slot: usize, pipe: PipeId) {
        let worker = &mut self.registry.workers[slot];
        worker.paths.retain(|path| path.pipe != pipe);
        if worker.paths.is_empty() && worker.dialect == Dialect::Ez {
            // Its routing id was this pipe's alone; whoever comes back has another.
            return self.worker_dead(
                now,
                slot,
                "the worker's connection ended while it had the request",
            );
        }
        self.registry.relevel(slot);
    }

    /// A worker pipe was restarted. Its EZ workers had their routing ids of it: whoever comes back has
    /// another, and what they held cannot be answered any more.
    pub(super) fn pipe_restarted(&mut self, now: Time, pipe: PipeId) {
        self.registry.forget_pipe(pipe);
        let ez = self.registry.workers.iter().filter(|(_, worker)| worker.dialect == Dialect::Ez);
        let its = ez.filter(|(_, worker)| worker.id.0[..8] == pipe.0.to_be_bytes());
        let its: Vec<usize> = its.map(|(slot, _)| slot).collect();
        for slot in its {
            let why = "the worker's pipe was restarted while the worker had the request";
            self.worker_dead(now, slot, why);
        }
    }

    /// Workers that have missed their beats. Not while we hear no worker pipe: then it is us who are
    /// cut off, and the workers are well.
    pub(super) fn expire_workers(&mut self, now: Time) {
        if self.hears_no_pipe(now) {
            return;
        }
        let silence_ms = |dialect| beat_ms(dialect) * BEATS_MISSED;
        let silent: Vec<(usize, Dialect)> = self
            .registry
            .workers
            .iter()
            .filter(|(_, worker)| worker.heard.plus_ms(silence_ms(worker.dialect)) <= now)
            .map(|(slot, worker)| (slot, worker.dialect))
            .collect();
        for (slot, dialect) in silent {
            let busy = !self.registry.workers[slot].assigned.is_empty();
            if dialect == Dialect::Ez && busy {
                // It may only be busy, and answer late: no new work, and its calls have their own
                // deadline.
                self.registry.workers[slot].paths.clear();
                self.registry.relevel(slot);
                let services = self.registry.workers[slot].services.clone();
                services.into_iter().for_each(|(service, _)| self.nobody_left(now, service));
            } else {
                self.worker_dead(now, slot, "the worker died while it had the call");
            }
        }
    }

    fn worker_dead(&mut self, now: Time, slot: usize, why: &str) {
        let worker = &self.registry.workers[slot];
        let (numbers, id) = (worker.assigned.clone(), worker.id);
        let services: Vec<usize> = worker.services.iter().map(|(service, _)| *service).collect();
        self.registry.workers[slot].paths.clear();
        self.registry.relevel(slot);
        for number in numbers {
            self.may_have_begun(now, number, id, why);
        }
        self.shares.dirty.insert(id);
        self.registry.remove(slot, now);
        services.into_iter().for_each(|service| self.nobody_left(now, service));
    }

    /// The worker may have room: its services' queues are to be looked at.
    pub(super) fn freed(&mut self, slot: usize) {
        let Self { registry, to_pump, .. } = self;
        for (service, _) in &registry.workers[slot].services {
            if !registry.services[*service].queue.is_empty() {
                to_pump.insert(*service);
            }
        }
    }

    /// Our assignments at this worker have changed: the lists and the other brokers must know.
    pub(super) fn count_changed(&mut self, now: Time, slot: usize) {
        self.registry.relevel(slot);
        self.shares.dirty.insert(self.registry.workers[slot].id);
        self.share_soon(now);
    }

    pub(super) fn send_to_worker(&mut self, way: Path, peer: PeerId, message: impl Into<Message>) {
        let mut packet = Packet::from_peer(Steer::Owner(self.me), message, Bytes::new());
        (packet.pipe, packet.peer) = (way.pipe, peer);
        self.send(way.link, packet);
    }
}
