//! Who serves what: workers with their paths and counts, services with their lists and queues.
//!
//! A worker's *level* is what the pick compares: its assignments in our table, plus the shares of
//! the other brokers, plus what it still holds for brokers that are dead.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use slab::Slab;
use zex_spec::{Dialect, MESH_SERVICE, PeerId, PipeId};

use super::Link;
use super::pick::{LeastAssigned, Seat};
use super::queue::Queue;
use crate::Time;
use crate::seeded::Seeded;

/// Workers at most: several times what a mesh has; at some hundred bytes each a bound against who
/// makes them up.
pub(super) const MAX_WORKERS: usize = 65_536;
/// Services at most that workers register. What calls wait for is bounded by the calls.
pub(super) const MAX_SERVED: usize = 65_536;

/// A way to a worker: through which pipe, and when it was last heard there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) link: Link,
    pub(super) pipe: PipeId,
    pub(super) heard: Time,
}

/// A worker of either dialect.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: PeerId,
    pub(super) dialect: Dialect,
    /// The routing id at its pipes.
    pub(super) routing: Bytes,
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) capacity: u32,
    /// The services that it serves, and its seat in each one's list.
    pub(super) services: Vec<(usize, Seat)>,
    /// Newest last. None: lapsed, it gets no work until it is heard again.
    pub(super) paths: Vec<Path>,
    /// Our assignments, by number.
    pub(super) assigned: BTreeSet<u64>,
    /// The other brokers' assignments.
    pub(super) foreign: u32,
    /// What it holds for brokers that are dead.
    pub(super) orphans: u32,
    pub(super) heard: Time,
    /// What its last heartbeat listed.
    pub(super) in_flight: u32,
    /// Assignments that its heartbeats do not explain, since when.
    pub(super) suspects: BTreeMap<u64, Time>,
    /// Assignments of ours that it holds and we have given up: it was dead to us for a while, or
    /// we to it. Since when they have been heard of.
    pub(super) strangers: BTreeMap<u64, Time>,
    /// How many of those were heard of again.
    pub(super) strange: u32,
    /// Its pipe has just given work back for want of room: it gets nothing for a moment.
    pub(super) full: bool,
    /// Assignments of ours that joined what it did for another owner, who counts it.
    pub(super) joined: BTreeSet<u64>,
}

impl Worker {
    pub(super) fn level(&self) -> u32 {
        self.ours().saturating_add(self.foreign).saturating_add(self.orphans)
    }

    /// What it has in flight for us.
    pub(super) fn ours(&self) -> u32 {
        (self.assigned.len() - self.joined.len()) as u32 + self.strange
    }

    /// The way that it was last heard on.
    pub(super) fn path(&self) -> Option<Path> {
        self.paths.last().copied()
    }

    /// It was heard through this pipe.
    pub(super) fn heard_at(&mut self, path: Path) {
        self.paths.retain(|known| known.pipe != path.pipe);
        self.paths.push(path);
        self.heard = path.heard;
    }
}

/// Services are found by name; the two dialects do not mix.
pub(super) type ServiceName = (Dialect, Bytes);

/// A service that has workers, had some lately, or is waited for.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: ServiceName,
    pub(super) list: LeastAssigned,
    /// Calls that wait.
    pub(super) queue: Queue,
    /// When a worker of it was last lost: what it knew of keys cannot be asked any more.
    pub(super) last_loss: Option<Time>,
}

/// Where the names of a dialect are.
fn names_of(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Native => 0,
        Dialect::Ez => 1,
    }
}

/// All workers and services.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) workers: Slab<Worker>,
    pub(super) services: Slab<Service>,
    by_id: HashMap<PeerId, usize, Seeded>,
    /// One for each dialect: a name is looked up as it came, without a copy.
    by_name: [HashMap<Bytes, usize, Seeded>; 2],
    /// Ways that were full a moment ago.
    closed: BTreeSet<Link>,
}

impl Registry {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            workers: Slab::new(),
            services: Slab::new(),
            by_id: HashMap::with_hasher(Seeded(seed)),
            by_name: [(); 2].map(|()| HashMap::with_hasher(Seeded(seed))),
            closed: BTreeSet::new(),
        }
    }

    pub(super) fn worker(&self, id: &PeerId) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    pub(super) fn service(&self, dialect: Dialect, name: &[u8]) -> Option<usize> {
        self.by_name[names_of(dialect)].get(name).copied()
    }

    /// The service of this name, new if need be.
    pub(super) fn service_or_new(&mut self, dialect: Dialect, name: &[u8]) -> usize {
        if let Some(service) = self.service(dialect, name) {
            return service;
        }
        let name = Bytes::copy_from_slice(name);
        let service = self.services.insert(Service {
            name: (dialect, name.clone()),
            list: LeastAssigned::default(),
            queue: Queue::default(),
            last_loss: None,
        });
        self.by_name[names_of(dialect)].insert(name, service);
        service
    }

    /// Whether there is room for one more worker.
    pub(super) fn has_room(&self) -> bool {
        self.workers.len() < MAX_WORKERS
    }

    /// A service as a worker registers it: none for the mesh's own, and beyond what there is room
    /// for.
    fn registered(&mut self, dialect: Dialect, name: &[u8]) -> Option<usize> {
        let known = self.service(dialect, name);
        let own = dialect == Dialect::Native && name == MESH_SERVICE.as_bytes();
        let room = known.is_some() || self.services.len() < MAX_SERVED;
        (room && !own).then(|| self.service_or_new(dialect, name))
    }

    pub(super) fn add(&mut self, worker: Worker) -> usize {
        let id = worker.id;
        let slot = self.workers.insert(worker);
        self.by_id.insert(id, slot);
        slot
    }

    /// Makes the worker serve exactly these; how many of them it may not.
    pub(super) fn serve(
        &mut self,
        slot: usize,
        dialect: Dialect,
        names: &[&[u8]],
        now: Time,
    ) -> usize {
        let found: Vec<Option<usize>> =
            names.iter().map(|name| self.registered(dialect, name)).collect();
        let refused = found.iter().filter(|service| service.is_none()).count();
        let wanted: BTreeSet<usize> = found.into_iter().flatten().collect();
        let had = std::mem::take(&mut self.workers[slot].services);
        let mut has = BTreeMap::new();
        for (service, seat) in had {
            if wanted.contains(&service) {
                has.insert(service, seat);
            } else {
                self.services[service].list.leave(seat);
                self.services[service].last_loss = Some(now);
            }
        }
        for service in wanted {
            let list = &mut self.services[service].list;
            has.entry(service).or_insert_with(|| list.join(slot as u32));
        }
        self.workers[slot].services = has.into_iter().collect();
        self.relevel(slot);
        refused
    }

    /// Tells the lists the worker's level after any change to it.
    pub(super) fn relevel(&mut self, slot: usize) {
        let level = self.eligible(slot);
        let Self { workers, services, .. } = self;
        for (service, seat) in &workers[slot].services {
            services[*service].list.place(*seat, level);
        }
    }

    /// The level that the pick sees: none while it has no open way or no room.
    fn eligible(&self, slot: usize) -> Option<u32> {
        let worker = &self.workers[slot];
        let level = worker.level();
        let open = !worker.full && self.way_to(slot).is_some();
        (open && level < worker.capacity).then_some(level)
    }

    /// The way for work: the last on which the worker was heard that is not closed.
    pub(super) fn way_to(&self, slot: usize) -> Option<Path> {
        let ways = self.workers[slot].paths.iter().rev();
        ways.copied().find(|path| !self.closed.contains(&path.link))
    }

    /// This way is full. False if that was known.
    pub(super) fn close(&mut self, link: Link) -> bool {
        let news = self.closed.insert(link);
        if news {
            self.relevel_all();
        }
        news
    }

    /// It may be tried again.
    pub(super) fn reopen(&mut self, link: Link) {
        self.closed.remove(&link);
        self.relevel_all();
    }

    /// A pipe was restarted: its old life is no way to anybody.
    pub(super) fn forget_pipe(&mut self, pipe: PipeId) {
        self.workers.iter_mut().for_each(|(_, w)| w.paths.retain(|path| path.pipe != pipe));
        self.relevel_all();
    }

    fn relevel_all(&mut self) {
        let slots: Vec<usize> = self.workers.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.relevel(slot));
    }

    /// Whether anybody serves it. A native worker out of sight may be back; an EZ worker that has
    /// fallen silent with work in hand is there for its late answers only.
    pub(super) fn has_workers(&self, service: usize) -> bool {
        let Service { name, list, .. } = &self.services[service];
        let seen = |slot: u32| !self.workers[slot as usize].paths.is_empty();
        list.len() > 0 && (name.0 == Dialect::Native || list.workers().any(seen))
    }

    /// Takes a worker out; what it held is the caller's to settle.
    pub(super) fn remove(&mut self, slot: usize, now: Time) -> Worker {
        let worker = self.workers.remove(slot);
        self.by_id.remove(&worker.id);
        for (service, seat) in &worker.services {
            self.services[*service].list.leave(*seat);
            self.services[*service].last_loss = Some(now);
        }
        worker
    }

    /// Forgets services that nobody serves, waits for, or could ask about.
    pub(super) fn sweep(&mut self, now: Time, keep_ms: u64) {
        let Self { services, by_name, .. } = self;
        services.retain(|_, service| {
            let lost_lately = service.last_loss.is_some_and(|at| at.plus_ms(keep_ms) > now);
            let keep = service.list.len() > 0 || !service.queue.is_empty() || lost_lately;
            if !keep {
                by_name[names_of(service.name.0)].remove(&service.name.1);
            }
            keep
        });
    }
}
