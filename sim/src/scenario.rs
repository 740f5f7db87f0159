//! What a seed stands for: how many of everything, how it behaves, and what goes wrong when.
//!
//! ```text
//!  0 s ── start ──── 2 s ── faults ─────────── ≤ 14 s ── quiet, counts compared ── calls stop ── end
//! ```

use zex_core::Time;

use crate::chance::Chance;
use crate::net::Weather;
use crate::queue::NodeId;

/// The world's clock begins here: not at zero, so that "before the start" exists.
pub(crate) const START: Time = Time(1_000_000_000);
/// The mesh has come up by then, milliseconds; faults begin.
const FAULTS_FROM_MS: u64 = 2_500;
/// Keys that a worker of bad memory remembers.
const FEW_KEYS: usize = 5;
/// Between two faults of a gentle scenario: time to be whole again, milliseconds.
const RECOVERY_MS: u64 = 7_000;

/// How rough it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mood {
    /// Nothing goes wrong.
    Calm,
    /// One broker or one pipe at a time dies or pauses, and there is another; or a broker or worker
    /// leaves in order: no call may be lost.
    Gentle,
    /// Anything, also together.
    Rough,
}

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Fault {
    /// A process dies, and comes back without memory if it does. `silent`: its host died with it,
    /// so the others' connections do not end until they notice by themselves.
    Kill { node: NodeId, down_ms: Option<u64>, silent: bool },
    /// A process is asked to leave; it is started again so long after it has.
    Drain { node: NodeId, down_ms: u64 },
    /// A process makes no step.
    Freeze { node: NodeId, for_ms: u64 },
    /// One connection (any: a number modulo how many there are) ends.
    Cut { pick: u64, for_ms: u64, silent: bool },
    /// All connections of a process end.
    Isolate { node: NodeId, for_ms: u64, silent: bool },
    /// Native messages are lost and doubled from now on.
    Storm { loss: f64, double: f64 },
}

/// A native worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPlan {
    pub(crate) services: Vec<usize>,
    pub(crate) capacity: u32,
    /// Mean time of a call, microseconds.
    pub(crate) service_us: u64,
    /// Chance that a call never ends by itself.
    pub(crate) hang: f64,
    /// Chance that a call fails with a status of the worker's own.
    pub(crate) fail: f64,
    /// Keys that it remembers; few in some worlds.
    pub(crate) memory_keys: usize,
}

/// A native client.
#[derive(Clone, Debug)]
pub(crate) struct ClientPlan {
    /// Mean time between calls, microseconds.
    pub(crate) gap_us: u64,
    /// Shortest and longest deadline, milliseconds.
    pub(crate) deadline_ms: (u64, u64),
    pub(crate) idempotent: f64,
    pub(crate) wait: f64,
    pub(crate) stream: f64,
    pub(crate) acknowledge: f64,
    pub(crate) cancel: f64,
    /// Chance that a call names a service that nobody serves.
    pub(crate) astray: f64,
}

/// A worker of the old dialect.
#[derive(Clone, Debug)]
pub(crate) struct EzWorkerPlan {
    pub(crate) service: usize,
    pub(crate) service_us: u64,
    /// One request after the other, and no beats meanwhile.
    pub(crate) serial: bool,
    /// Silent for ever on an id that it had before.
    pub(crate) once: bool,
}

/// A client of the old dialect.
#[derive(Clone, Debug)]
pub(crate) struct EzClientPlan {
    pub(crate) gap_us: u64,
    /// Bytes of its request ids: 4 and 10 repeat, 36 do not.
    pub(crate) id_bytes: usize,
    /// Sends again on a connection of its own, under a new routing id.
    pub(crate) new_socket: bool,
    /// Chance that it names a native method.
    pub(crate) native: f64,
    /// It has a routing id of its own choice.
    pub(crate) named: bool,
    /// It never sends again, and waits to the end.
    pub(crate) patient: bool,
}

/// A seed, drawn out.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) mood: Mood,
    pub(crate) in_pipes: usize,
    pub(crate) worker_pipes: usize,
    pub(crate) brokers: usize,
    pub(crate) workers: Vec<WorkerPlan>,
    pub(crate) ez_workers: Vec<EzWorkerPlan>,
    pub(crate) clients: Vec<ClientPlan>,
    pub(crate) ez_clients: Vec<EzClientPlan>,
    pub(crate) services: usize,
    pub(crate) ez_services: usize,
    pub(crate) weather: Weather,
    /// Pipes see the end of a peer's connection and tell the brokers.
    pub(crate) peer_gone: bool,
    /// Every packet goes through its bytes.
    pub(crate) encode: bool,
    pub(crate) queue_calls: usize,
    pub(crate) memory_bytes: usize,
    pub(crate) faults: Vec<(Time, Fault)>,
    /// The clients make no new calls from then on.
    pub(crate) calls_until: Time,
}

impl Scenario {
    /// The scenario of a seed, and the generator to go on with.
    pub(crate) fn draw(seed: u64) -> (Self, Chance) {
        // Neighbouring seeds give neighbouring first numbers; a few draws part them.
        let mut chance = Chance::new(seed ^ 0x5eed_0f2e_9a11_dead);
        (0..4).for_each(|_| _ = chance.sixteen());
        let c = &mut chance;
        let mood = match c.between(0, 9) {
            0..=1 => Mood::Calm,
            2..=4 => Mood::Gentle,
            _ => Mood::Rough,
        };
        let rough = mood == Mood::Rough;
        let least = if mood == Mood::Gentle { 2 } else { 1 };
        let (in_pipes, worker_pipes) = (c.between(least, 2) as usize, c.between(least, 2) as usize);
        let brokers = c.between(least, 3) as usize;
        let services = c.between(1, 3) as usize;
        let ez = c.happens(0.5);
        let mut scenario = Self {
            mood,
            in_pipes,
            worker_pipes,
            brokers,
            workers: Vec::new(),
            ez_workers: Vec::new(),
            clients: Vec::new(),
            ez_clients: Vec::new(),
            services,
            ez_services: usize::from(ez),
            weather: weather(c, rough),
            peer_gone: c.happens(0.5),
            encode: c.happens(0.1),
            queue_calls: if rough && c.happens(0.2) { 10 } else { 10_000 },
            memory_bytes: if rough && c.happens(0.1) { 2_000 } else { 1 << 20 },
            faults: Vec::new(),
            calls_until: START,
        };
        scenario.people(c, ez);
        let last = match mood {
            Mood::Calm => START.plus_ms(3_000),
            Mood::Gentle => scenario.gentle_faults(c),
            Mood::Rough => scenario.rough_faults(c),
        };
        let quiet_ms = if ez && c.happens(0.5) { 10_500 } else { 4_500 };
        scenario.calls_until = last.plus_ms(quiet_ms);
        (scenario, chance)
    }

    /// Workers and clients.
    fn people(&mut self, c: &mut Chance, ez: bool) {
        let rough = self.mood == Mood::Rough;
        let workers = c.between(self.services as u64, 5) as usize;
        for n in 0..workers {
            // Each service has one worker at least; some serve several.
            let mut serves = vec![n % self.services];
            if c.happens(0.3) {
                serves.push(c.index(self.services));
            }
            serves.sort_unstable();
            serves.dedup();
            self.workers.push(WorkerPlan {
                services: serves,
                capacity: c.between(if rough { 1 } else { 6 }, 12) as u32,
                // So that what is certain is not late because of a queue.
                service_us: if rough && c.happens(0.3) { 400_000 } else { 20_000 },
                hang: if rough && c.happens(0.3) { 0.02 } else { 0.0 },
                fail: if c.happens(0.3) { 0.05 } else { 0.0 },
                memory_keys: if rough && c.happens(0.1) { FEW_KEYS } else { 10_000 },
            });
        }
        for _ in 0..c.between(1, 3) {
            let some = |c: &mut Chance, most: f64| if c.happens(0.5) { most } else { 0.0 };
            self.clients.push(ClientPlan {
                gap_us: c.between(30_000, 200_000),
                deadline_ms: if rough { (200, c.between(2_000, 12_000)) } else { (15_000, 20_000) },
                idempotent: some(c, 0.5),
                wait: some(c, 0.5),
                stream: some(c, 0.1),
                acknowledge: some(c, 0.3),
                cancel: some(c, 0.1),
                astray: some(c, 0.05),
            });
        }
        if !ez {
            return;
        }
        for n in 0..c.between(1, 3) {
            self.ez_workers.push(EzWorkerPlan {
                service: n as usize % self.ez_services,
                service_us: if c.happens(0.3) { 900_000 } else { 50_000 },
                serial: c.happens(0.3),
                once: c.happens(0.4),
            });
        }
        for _ in 0..c.between(1, 3) {
            self.ez_clients.push(EzClientPlan {
                gap_us: c.between(100_000, 600_000),
                id_bytes: [4, 10, 36][c.index(3)],
                new_socket: c.happens(0.5),
                native: if c.happens(0.5) { 0.3 } else { 0.0 },
                named: c.happens(0.3),
                patient: c.happens(0.4),
            });
        }
    }

    /// One process at a time, and time to recover in between.
    fn gentle_faults(&mut self, c: &mut Chance) -> Time {
        let mut at = START.plus_ms(FAULTS_FROM_MS + c.between(0, 2_000));
        for _ in 0..c.between(1, 2) {
            let down_ms = c.between(50, 4_000);
            let broker = self.broker(c.index(self.brokers));
            let kill = |node| Fault::Kill { node, down_ms: Some(down_ms), silent: false };
            let fault = match c.between(0, 7) {
                0 => kill(self.in_pipe(c.index(self.in_pipes))),
                1 => kill(self.worker_pipe(c.index(self.worker_pipes))),
                2 => kill(self.state_pipe()),
                3 => Fault::Freeze { node: broker, for_ms: down_ms },
                4 => Fault::Drain { node: broker, down_ms },
                5 => match self.spare_worker() {
                    Some(node) => Fault::Drain { node, down_ms },
                    None => kill(broker),
                },
                _ => kill(broker),
            };
            self.faults.push((at, fault));
            at = at.plus_ms(down_ms + RECOVERY_MS);
        }
        at
    }

    /// A worker whose services others serve, too.
    fn spare_worker(&self) -> Option<NodeId> {
        let serves = |worker: usize, service| self.workers[worker].services.contains(service);
        let spare = |n: &usize| {
            let others = || (0..self.workers.len()).filter(|other| other != n);
            self.workers[*n].services.iter().all(|service| others().any(|o| serves(o, service)))
        };
        (0..self.workers.len()).find(spare).map(|n| self.worker(n))
    }

    fn rough_faults(&mut self, c: &mut Chance) -> Time {
        let window_ms = c.between(1_000, 9_000);
        for _ in 0..c.between(1, 6) {
            let at = START.plus_ms(FAULTS_FROM_MS + c.between(0, window_ms));
            let fault = self.rough_fault(c);
            self.faults.push((at, fault));
        }
        if c.happens(0.4) {
            let loss = [0.001, 0.02, 0.2][c.index(3)];
            let double = if c.happens(0.5) { 0.05 } else { 0.0 };
            let from = c.between(0, window_ms);
            let to = c.between(from, window_ms);
            let at = |ms| START.plus_ms(FAULTS_FROM_MS + ms);
            self.faults.push((at(from), Fault::Storm { loss, double }));
            self.faults.push((at(to), Fault::Storm { loss: 0.0, double: 0.0 }));
        }
        // A restart comes up to 3 s, a silent end up to 2 s after the fault itself.
        START.plus_ms(FAULTS_FROM_MS + window_ms + 3_000)
    }

    fn rough_fault(&self, c: &mut Chance) -> Fault {
        let silent = c.happens(0.3);
        let down_ms = c.between(10, 3_000);
        let broker = self.broker(c.index(self.brokers));
        let pipe = NodeId(c.index(self.in_pipes + self.worker_pipes + 1) as u16);
        let native = self.worker(c.index(self.workers.len()));
        let worker = match self.ez_workers.len() {
            0 => native,
            ez if c.happens(0.7) => NodeId(self.ez_worker(0).0 + c.index(ez) as u16),
            _ => native,
        };
        match c.between(0, 19) {
            0..=4 => Fault::Kill { node: broker, down_ms: Some(down_ms), silent },
            5..=6 => Fault::Kill { node: pipe, down_ms: Some(down_ms), silent },
            7..=9 => Fault::Kill { node: native, down_ms: Some(down_ms), silent },
            10 => Fault::Kill { node: worker, down_ms: Some(down_ms), silent },
            11 => Fault::Kill { node: worker, down_ms: None, silent },
            12 => Fault::Drain { node: broker, down_ms },
            13 => Fault::Drain { node: native, down_ms },
            14..=15 => Fault::Freeze { node: broker, for_ms: c.between(100, 6_000) },
            16 => Fault::Freeze { node: native, for_ms: c.between(100, 6_000) },
            17 => Fault::Freeze { node: pipe, for_ms: c.between(100, 4_000) },
            18 => Fault::Cut { pick: c.between(0, 1_000_000), for_ms: down_ms, silent },
            _ => Fault::Isolate { node: broker, for_ms: down_ms, silent },
        }
    }

    // Nodes are numbered in this order; the world is built in it, too.

    pub(crate) fn in_pipe(&self, n: usize) -> NodeId {
        NodeId(n as u16)
    }

    pub(crate) fn worker_pipe(&self, n: usize) -> NodeId {
        NodeId((self.in_pipes + n) as u16)
    }

    pub(crate) fn state_pipe(&self) -> NodeId {
        NodeId((self.in_pipes + self.worker_pipes) as u16)
    }

    pub(crate) fn broker(&self, n: usize) -> NodeId {
        NodeId(self.state_pipe().0 + 1 + n as u16)
    }

    pub(crate) fn worker(&self, n: usize) -> NodeId {
        NodeId(self.broker(self.brokers).0 + n as u16)
    }

    pub(crate) fn ez_worker(&self, n: usize) -> NodeId {
        NodeId(self.worker(self.workers.len()).0 + n as u16)
    }

    /// Whether a key must have at most one effect. Not where workers remember too few keys, and
    /// not where a pipe pauses: what waited in it goes on as if it were new, when it may have run
    /// elsewhere long since.
    pub(crate) fn one_effect(&self) -> bool {
        let pauses = |fault: &Fault| match fault {
            Fault::Freeze { node, .. } => *node < self.broker(0),
            _ => false,
        };
        self.workers.iter().all(|worker| worker.memory_keys > FEW_KEYS)
            && !self.faults.iter().any(|(_, fault)| pauses(fault))
    }

    /// Whether nothing was done to brokers, pipes and connections: then the mesh was alive all the
    /// time, and an EZ client is answered.
    pub(crate) fn mesh_was_whole(&self) -> bool {
        let first_worker = self.worker(0);
        self.faults.iter().all(|(_, fault)| match fault {
            Fault::Kill { node, .. } | Fault::Drain { node, .. } | Fault::Freeze { node, .. } => {
                *node >= first_worker
            }
            Fault::Cut { .. } | Fault::Isolate { .. } | Fault::Storm { .. } => false,
        })
    }
}

fn weather(c: &mut Chance, rough: bool) -> Weather {
    let (base_us, jitter_us) = match c.between(0, 5) {
        0 => ((5, 50), 0),
        1..=3 => ((50, 500), 2_000),
        4 => ((200, 5_000), 20_000),
        _ => ((1_000, 20_000), 100_000),
    };
    let high_water = if rough && c.happens(0.2) { c.between(8, 40) as usize } else { 10_000 };
    Weather { base_us, jitter_us, high_water, loss: 0.0, double: 0.0 }
}
