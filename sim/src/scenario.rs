//! What a seed stands for: how many of everything, how it behaves, and what goes wrong when.
//!
//! ```text
//!  short:  start ── 2.5 s ── faults ──── ≤ 14 s ── quiet, counts compared ── calls stop ── end
//!  long:   start ── [ load: faults, quiet ] ── beats only ── [ load: faults, quiet ] ── … ── end
//! ```
//!
//! A long world (an hour) has an episode of faults every minute or so. Calls are made around the
//! faults only; in between nothing moves but beats, so what it costs is mostly those.

use zex_core::Time;

use crate::chance::Chance;
use crate::net::Weather;
use crate::queue::NodeId;
use crate::trouble::Fault;

/// The world's clock begins here: not at zero, so that "before the start" exists.
pub(crate) const START: Time = Time(1_000_000_000);
/// The mesh has come up by then, milliseconds; faults begin.
const FAULTS_FROM_MS: u64 = 2_500;
/// Keys that a worker of bad memory remembers.
pub(crate) const FEW_KEYS: usize = 5;
/// Bytes of answers that a home of bad memory remembers.
pub(crate) const FEW_BYTES: usize = 2_000;
/// Calls of an episode begin so long before its first fault, milliseconds.
const BEFORE_MS: u64 = 2_000;
/// Without calls between two episodes, milliseconds. The longest is longer than keys are
/// remembered, the shortest is not.
const IDLE_MS: (u64, u64) = (5_000, 120_000);

/// How rough it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mood {
    /// Nothing goes wrong.
    Calm,
    /// One broker or one pipe at a time dies, pauses or is cut off, and there is another; or a
    /// broker or worker leaves in order: no call may be lost.
    Gentle,
    /// Every process of the mesh is restarted in order, one after the other: no call may be lost.
    Rolling,
    /// Anything, also together.
    Rough,
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

/// The times in which calls are made, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads(Vec<(Time, Time)>);

impl Loads {
    /// When a call is made that would be made at this time, or as soon as calls are made again.
    pub(crate) fn next(&self, at: Time) -> Option<Time> {
        let next = self.0.partition_point(|(_, end)| *end <= at);
        self.0.get(next).map(|(begin, _)| at.max(*begin))
    }

    /// Whether calls are made at this time.
    pub(crate) fn on(&self, at: Time) -> bool {
        self.next(at) == Some(at)
    }

    /// When the last is made.
    pub(crate) fn end(&self) -> Time {
        self.0.last().map_or(START, |(_, end)| *end)
    }
}

/// A seed, drawn out.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) mood: Mood,
    pub(crate) in_pipes: usize,
    pub(crate) worker_pipes: usize,
    pub(crate) state_pipes: usize,
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
    /// The processes' clocks run fast or slow.
    pub(crate) drifts: bool,
    pub(crate) queue_calls: usize,
    pub(crate) max_calls: usize,
    pub(crate) max_call_bytes: usize,
    pub(crate) memory_bytes: usize,
    pub(crate) faults: Vec<(Time, Fault)>,
    /// When calls are made.
    pub(crate) loads: Loads,
}

impl Scenario {
    /// The scenario of a seed, and the generator to go on with.
    pub(crate) fn draw(seed: u64, length_ms: Option<u64>) -> (Self, Chance) {
        // Neighbouring seeds give neighbouring first numbers; a few draws part them.
        let mut chance = Chance::new(seed ^ 0x5eed_0f2e_9a11_dead);
        (0..4).for_each(|_| _ = chance.sixteen());
        let c = &mut chance;
        let mood = match c.between(0, 9) {
            0..=1 => Mood::Calm,
            2..=3 => Mood::Gentle,
            4 => Mood::Rolling,
            _ => Mood::Rough,
        };
        let rough = mood == Mood::Rough;
        let least = if matches!(mood, Mood::Gentle | Mood::Rolling) { 2 } else { 1 };
        let (in_pipes, worker_pipes) = (c.between(least, 2) as usize, c.between(least, 2) as usize);
        let state_pipes = c.between(1, 2) as usize;
        let brokers = c.between(least, 3) as usize;
        let services = c.between(1, 3) as usize;
        let ez = c.happens(0.5);
        let mut scenario = Self {
            mood,
            in_pipes,
            worker_pipes,
            state_pipes,
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
            drifts: c.happens(0.5),
            queue_calls: if rough && c.happens(0.2) { 3 } else { 10_000 },
            max_calls: if rough && c.happens(0.1) { 8 } else { 10_000 },
            max_call_bytes: if rough && c.happens(0.1) { 100_000 } else { 512 << 20 },
            memory_bytes: if rough && c.happens(0.1) { FEW_BYTES } else { 1 << 20 },
            faults: Vec::new(),
            loads: Loads::default(),
        };
        scenario.people(c, ez);
        let end = START.plus_ms(length_ms.unwrap_or(0));
        let mut from = START;
        loop {
            let last =
                scenario.episode(c, from.plus_ms(BEFORE_MS).max(START.plus_ms(FAULTS_FROM_MS)));
            let quiet_ms = if ez && c.happens(0.5) { 10_500 } else { 4_500 };
            let until = last.plus_ms(quiet_ms);
            scenario.loads.0.push((from, until));
            from = until.plus_ms(c.between(IDLE_MS.0, IDLE_MS.1));
            if from >= end {
                return (scenario, chance);
            }
        }
    }

    /// Something goes wrong from this time on, after the scenario's mood. Returns when it is over.
    fn episode(&mut self, c: &mut Chance, from: Time) -> Time {
        match self.mood {
            Mood::Calm => from.plus_ms(500),
            Mood::Gentle => self.gentle_faults(c, from),
            Mood::Rolling => self.rolling_restarts(c, from),
            Mood::Rough => self.rough_faults(c, from),
        }
    }

    /// Workers and clients.
    fn people(&mut self, c: &mut Chance, ez: bool) {
        let rough = self.mood == Mood::Rough;
        // To be restarted one by one, each needs another that stands in for it.
        let least = self.services * if self.mood == Mood::Rolling { 2 } else { 1 };
        let workers = c.between(least as u64, 5.max(least as u64)) as usize;
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

    // Nodes are numbered in this order; the world is built in it, too.

    pub(crate) fn in_pipe(&self, n: usize) -> NodeId {
        NodeId(n as u16)
    }

    pub(crate) fn worker_pipe(&self, n: usize) -> NodeId {
        NodeId((self.in_pipes + n) as u16)
    }

    pub(crate) fn state_pipe(&self, n: usize) -> NodeId {
        NodeId((self.in_pipes + self.worker_pipes + n) as u16)
    }

    pub(crate) fn broker(&self, n: usize) -> NodeId {
        NodeId(self.state_pipe(self.state_pipes).0 + n as u16)
    }

    pub(crate) fn worker(&self, n: usize) -> NodeId {
        NodeId(self.broker(self.brokers).0 + n as u16)
    }

    pub(crate) fn ez_worker(&self, n: usize) -> NodeId {
        NodeId(self.worker(self.workers.len()).0 + n as u16)
    }

    pub(crate) fn client(&self, n: usize) -> NodeId {
        NodeId(self.ez_worker(self.ez_workers.len()).0 + n as u16)
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
