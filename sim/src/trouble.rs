//! What goes wrong in a scenario: the faults of each mood, and what they excuse.
//!
//! ```text
//!   Gentle   one thing at a time, then time to recover ── no call may be lost
//!            (not at all if somebody still drains)
//!   Rolling  every process restarted in order ─────────── no call may be lost
//!   Rough    anything, also together ──────────────────── each call still has its one answer
//! ```

use zex_core::Time;

use crate::chance::Chance;
use crate::queue::NodeId;
use crate::scenario::{FEW_BYTES, FEW_KEYS, Scenario};

/// Between two faults of a gentle scenario: time to be whole again, milliseconds.
const RECOVERY_MS: u64 = 7_000;
/// Between two restarts of a rolling one: the longest drain, and the first round of beats.
const NEXT_RESTART_MS: u64 = 7_500;
/// A pipe that is gone for good, as far as any call is concerned: longer than every deadline.
const LOST_PIPE_MS: u64 = 25_000;
/// What waited somewhere while its process was stopped may be in the mesh for so much longer,
/// milliseconds.
const AFTERMATH_MS: u64 = 3_000;

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
    /// A process takes so long for each message that it reads.
    Slow { node: NodeId, each_ms: u64, for_ms: u64 },
    /// One connection (any: a number modulo how many there are) ends.
    Cut { pick: u64, for_ms: u64, silent: bool },
    /// All connections of a process end.
    Isolate { node: NodeId, for_ms: u64, silent: bool },
    /// Nothing reaches a process, or nothing of it reaches others; the other direction is open.
    OneWay { node: NodeId, deaf: bool, for_ms: u64 },
    /// Native messages are lost and doubled from now on.
    Storm { loss: f64, double: f64 },
}

impl Fault {
    /// The process that it happens to, if it is one.
    pub(crate) fn node(self) -> Option<NodeId> {
        match self {
            Self::Kill { node, .. }
            | Self::Drain { node, .. }
            | Self::Freeze { node, .. }
            | Self::Slow { node, .. }
            | Self::Isolate { node, .. }
            | Self::OneWay { node, .. } => Some(node),
            Self::Cut { .. } | Self::Storm { .. } => None,
        }
    }

    /// How long it lasts, milliseconds.
    pub(crate) fn lasts_ms(self) -> u64 {
        match self {
            Self::Kill { down_ms, .. } => down_ms.unwrap_or(0),
            Self::Drain { down_ms, .. } => down_ms,
            Self::Freeze { for_ms, .. }
            | Self::Slow { for_ms, .. }
            | Self::Cut { for_ms, .. }
            | Self::Isolate { for_ms, .. }
            | Self::OneWay { for_ms, .. } => for_ms,
            Self::Storm { .. } => 0,
        }
    }
}

impl Scenario {
    /// One process at a time, and time to recover in between. Returns when it is over.
    pub(crate) fn gentle_faults(&mut self, c: &mut Chance, from: Time) -> Time {
        let mut at = from.plus_ms(c.between(0, 2_000));
        for _ in 0..c.between(1, 2) {
            let down_ms = c.between(50, 4_000);
            let fault = self.gentle_fault(c, down_ms);
            self.faults.push((at, fault));
            at = at.plus_ms(fault.lasts_ms().max(down_ms) + RECOVERY_MS);
        }
        at
    }

    fn gentle_fault(&self, c: &mut Chance, down_ms: u64) -> Fault {
        let broker = self.broker(c.index(self.brokers));
        let kill = |node| Fault::Kill { node, down_ms: Some(down_ms), silent: false };
        match c.between(0, 13) {
            0 => kill(self.in_pipe(c.index(self.in_pipes))),
            1 => kill(self.worker_pipe(c.index(self.worker_pipes))),
            2 => kill(self.state_pipe(c.index(self.state_pipes))),
            3..=4 => Fault::Freeze { node: broker, for_ms: down_ms },
            5 => Fault::Drain { node: broker, down_ms },
            6 => match self.spare_worker(c) {
                Some(node) => Fault::Drain { node, down_ms },
                None => kill(broker),
            },
            7 => {
                let pipe = NodeId(c.index(self.in_pipes + self.worker_pipes) as u16);
                Fault::Kill { node: pipe, down_ms: Some(LOST_PIPE_MS), silent: false }
            }
            8 => Fault::Isolate { node: broker, for_ms: down_ms, silent: c.happens(0.5) },
            9 => Fault::OneWay { node: broker, deaf: c.happens(0.5), for_ms: down_ms },
            10 => {
                let worker = self.worker(c.index(self.workers.len()));
                Fault::Slow { node: worker, each_ms: c.between(2, 50), for_ms: down_ms }
            }
            _ => kill(broker),
        }
    }

    /// Every process of the mesh, and each worker that others can stand in for, in any order.
    pub(crate) fn rolling_restarts(&mut self, c: &mut Chance, from: Time) -> Time {
        let mut left: Vec<NodeId> = (0..self.worker(0).0).map(NodeId).collect();
        left.extend((0..self.workers.len()).filter(|n| self.is_spare(*n)).map(|n| self.worker(n)));
        let mut at = from.plus_ms(c.between(0, 500));
        while !left.is_empty() {
            let node = left.swap_remove(c.index(left.len()));
            let down_ms = c.between(50, 1_000);
            // A pipe holds no work: it just goes.
            let fault = if node < self.broker(0) {
                Fault::Kill { node, down_ms: Some(down_ms), silent: false }
            } else {
                Fault::Drain { node, down_ms }
            };
            self.faults.push((at, fault));
            at = at.plus_ms(down_ms + NEXT_RESTART_MS);
        }
        at
    }

    /// A worker whose services others serve, too.
    fn spare_worker(&self, c: &mut Chance) -> Option<NodeId> {
        let spare: Vec<usize> = (0..self.workers.len()).filter(|n| self.is_spare(*n)).collect();
        (!spare.is_empty()).then(|| self.worker(spare[c.index(spare.len())]))
    }

    fn is_spare(&self, n: usize) -> bool {
        let serves = |worker: usize, service| self.workers[worker].services.contains(service);
        let others = || (0..self.workers.len()).filter(|other| *other != n);
        self.workers[n].services.iter().all(|service| others().any(|o| serves(o, service)))
    }

    /// Anything, within a few seconds.
    pub(crate) fn rough_faults(&mut self, c: &mut Chance, from: Time) -> Time {
        let window_ms = c.between(1_000, 9_000);
        for _ in 0..c.between(1, 6) {
            let at = from.plus_ms(c.between(0, window_ms));
            let fault = self.rough_fault(c);
            self.faults.push((at, fault));
        }
        if c.happens(0.4) {
            let loss = [0.001, 0.02, 0.2][c.index(3)];
            let double = if c.happens(0.5) { 0.05 } else { 0.0 };
            let begin = c.between(0, window_ms);
            let end = c.between(begin, window_ms);
            self.faults.push((from.plus_ms(begin), Fault::Storm { loss, double }));
            self.faults.push((from.plus_ms(end), Fault::Storm { loss: 0.0, double: 0.0 }));
        }
        // A restart comes up to 3 s, a silent end up to 2 s after the fault itself.
        from.plus_ms(window_ms + 3_000)
    }

    fn rough_fault(&self, c: &mut Chance) -> Fault {
        let silent = c.happens(0.3);
        let down_ms = c.between(10, 3_000);
        let broker = self.broker(c.index(self.brokers));
        let pipe = NodeId(c.index(usize::from(self.broker(0).0)) as u16);
        let native = self.worker(c.index(self.workers.len()));
        let client = self.client(c.index(self.clients.len()));
        let any = NodeId(c.index(usize::from(self.client(self.clients.len()).0)) as u16);
        let worker = match self.ez_workers.len() {
            0 => native,
            ez if c.happens(0.7) => NodeId(self.ez_worker(0).0 + c.index(ez) as u16),
            _ => native,
        };
        let kill = |node| Fault::Kill { node, down_ms: Some(down_ms), silent };
        match c.between(0, 26) {
            0..=4 => kill(broker),
            5..=6 => kill(pipe),
            7..=9 => kill(native),
            10 => kill(worker),
            11 => Fault::Kill { node: worker, down_ms: None, silent },
            12 => Fault::Drain { node: broker, down_ms },
            13 => Fault::Drain { node: native, down_ms },
            14..=15 => Fault::Freeze { node: broker, for_ms: c.between(100, 6_000) },
            16 => Fault::Freeze { node: native, for_ms: c.between(100, 6_000) },
            17 => Fault::Freeze { node: pipe, for_ms: c.between(100, 4_000) },
            18 => Fault::Freeze { node: client, for_ms: c.between(100, 6_000) },
            19 => Fault::Cut { pick: c.between(0, 1_000_000), for_ms: down_ms, silent },
            20 => Fault::Isolate { node: broker, for_ms: down_ms, silent },
            21..=22 => Fault::OneWay { node: any, deaf: c.happens(0.5), for_ms: down_ms },
            23..=24 => Fault::Slow { node: any, each_ms: c.between(1, 100), for_ms: down_ms },
            25 => kill(client),
            _ => Fault::Isolate { node: any, for_ms: down_ms, silent },
        }
    }

    // ── what faults excuse ───────────────────────────────────────────────────────────────────

    /// Whether a key must have at most one effect. Not where workers remember too few keys.
    pub(crate) fn one_effect(&self) -> bool {
        self.workers.iter().all(|worker| worker.memory_keys > FEW_KEYS)
    }

    /// When a pipe is stopped or slow: what waited in it goes on as if it were new, when it may
    /// have run elsewhere long since. Where homes remember next to nothing, the same goes for what
    /// waited for a connection.
    pub(crate) fn murky(&self) -> Vec<(Time, Time)> {
        let pauses = |fault: &Fault| match fault {
            Fault::Freeze { node, .. } | Fault::Slow { node, .. } => *node < self.broker(0),
            _ => false,
        };
        let forgetful = self.memory_bytes <= FEW_BYTES;
        self.times(|fault| pauses(fault) || (forgetful && matches!(fault, Fault::OneWay { .. })))
    }

    /// When somebody is cut off: who has not heard that its call was accepted may have to do
    /// without knowing its fate.
    pub(crate) fn cuts(&self) -> Vec<(Time, Time)> {
        self.times(|fault| matches!(fault, Fault::Isolate { .. } | Fault::OneWay { .. }))
    }

    fn times(&self, of: impl Fn(&Fault) -> bool) -> Vec<(Time, Time)> {
        let faults = self.faults.iter().filter(|(_, fault)| of(fault));
        faults.map(|(at, fault)| (*at, at.plus_ms(fault.lasts_ms() + AFTERMATH_MS))).collect()
    }

    /// Whether nothing was done to brokers, pipes and connections: then the mesh was alive all the
    /// time, and an EZ client is answered.
    pub(crate) fn mesh_was_whole(&self) -> bool {
        let first_worker = self.worker(0);
        self.faults.iter().all(|(_, fault)| match fault {
            Fault::Kill { node, .. }
            | Fault::Drain { node, .. }
            | Fault::Freeze { node, .. }
            | Fault::Slow { node, .. } => *node >= first_worker,
            _ => false,
        })
    }

    /// Whether nothing else goes wrong from so long before this fault to so long after it, ms.
    pub(crate) fn alone(&self, number: usize, before_ms: u64, after_ms: u64) -> bool {
        let (at, _) = self.faults[number];
        let others = self.faults.iter().enumerate().filter(|(other, _)| *other != number);
        others.map(|(_, other)| other).all(|(begin, fault)| {
            let end = begin.plus_ms(fault.lasts_ms() + before_ms);
            end <= at || *begin >= at.plus_ms(after_ms)
        })
    }
}
