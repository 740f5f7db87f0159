//! What a broker says of itself in numbers: for metrics, and for the simulator's checkers.

use std::collections::BTreeSet;

use zex_spec::{BrokerId, Dialect, PeerId};

use super::{Mesh, ViewAge};

/// What a broker counts about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages dropped: no one to give them to, or nonsense for who said them.
    pub dropped: u64,
    /// Assignments that a heartbeat had to correct.
    pub drift: u64,
    /// Workers and services that were not registered: there are too many, or it is the mesh's own.
    pub refused: u64,
    /// Hellos of another broker that has our name.
    pub namesakes: u64,
}

/// What a worker is taken to have.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// Who.
    pub worker: PeerId,
    /// Whether it speaks the old dialect.
    pub ez: bool,
    /// Our assignments, by number.
    pub assigned: &'a BTreeSet<u64>,
    /// What the pick compares: ours, the other brokers', and what it holds for dead ones.
    pub level: u32,
}

/// How many entries a broker's tables have, and the bytes that they account for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tables {
    /// Calls queued, asked about or assigned.
    pub calls: usize,
    /// Their keys.
    pub keys: usize,
    /// Those at a worker.
    pub assignments: usize,
    /// Ids of EZ requests.
    pub ez_ids: usize,
    /// Bytes of bodies.
    pub held_bytes: usize,
    /// Calls in the services' queues.
    pub queued: usize,
    /// Bytes of their bodies.
    pub queued_bytes: usize,
    /// Clients that have calls here.
    pub clients: usize,
}

impl Mesh {
    /// What it counts about itself.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Assignments that we have and the last heartbeat of their worker does not list, and the other
    /// way round. What is just underway counts, so it is seldom zero under load; if it stays it is
    /// drift. Looks at every worker.
    pub fn drifting(&self) -> usize {
        let workers = self.registry.workers.iter();
        workers.map(|(_, worker)| worker.suspects.len() + worker.strangers.len()).sum()
    }

    /// How old the view of the other brokers' shares was when picks used it, lately. Looks at some
    /// dozens of sums.
    pub fn view_age(&self) -> ViewAge {
        self.view.age()
    }

    /// Our assignments at each live worker, for the simulator's checkers and for metrics.
    pub fn assigned(&self) -> impl Iterator<Item = (PeerId, usize)> + '_ {
        self.registry.workers.iter().map(|(_, worker)| (worker.id, worker.assigned.len()))
    }

    /// Which broker, and which life of it.
    pub fn id(&self) -> BrokerId {
        self.me
    }

    /// What every worker is taken to have, for the simulator's checkers.
    pub fn loads(&self) -> impl Iterator<Item = Load<'_>> {
        self.registry.workers.iter().map(|(_, worker)| Load {
            worker: worker.id,
            ez: worker.dialect == Dialect::Ez,
            assigned: &worker.assigned,
            level: worker.level(),
        })
    }

    /// How full every table is. A broker that has nothing to do has all of them empty.
    pub fn tables(&self) -> Tables {
        let queues = || self.registry.services.iter().map(|(_, service)| service);
        Tables {
            calls: self.calls.len(),
            keys: self.keys.len(),
            assignments: self.assignments.len(),
            ez_ids: self.ez_ids.len(),
            held_bytes: self.held_bytes,
            queued: queues().map(|service| service.queue.len()).sum(),
            queued_bytes: queues().map(|service| service.queue.bytes()).sum(),
            clients: self.clients.len(),
        }
    }

    /// Calls that are queued or assigned here.
    pub fn held_calls(&self) -> usize {
        self.calls.len()
    }
}
