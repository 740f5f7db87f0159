//! Guarantee 4 after a worker's death: what it held is answered in time, unless it may run again.
//! That no dead worker is picked is checked in `picks`.

use zex_spec::{Key, PeerId};

use crate::ledger::{Rule, Subject};
use crate::net::Identity;
use crate::queue::{Next, NodeId};
use crate::scenario::START;
use crate::world::{Role, World};

/// Nothing goes wrong so long before a worker's death, milliseconds, and after it: then what it held
/// must be answered in time.
const QUIET_BEFORE_MS: u64 = 10_000;
const QUIET_AFTER_MS: u64 = 4_000;

impl World {
    /// Who dies is out in time: for the checkers.
    pub(crate) fn bury(&mut self, id: NodeId) {
        let Self { nodes, env, .. } = self;
        let worker = match &nodes[usize::from(id.0)].role {
            Role::Worker(worker) => worker.peer,
            Role::EzWorker(worker) => {
                let wire = env.net.conn(worker.conn);
                let (Role::Pipe(pipe), Identity::Ez(routing)) =
                    (&nodes[usize::from(wire.pipe.0)].role, &wire.identity)
                else {
                    return;
                };
                PeerId::of_ez(pipe.incarnation(), routing)
            }
            Role::Client(_) => return env.ledger.abandoned(id),
            _ => return,
        };
        env.picks.died(env.now, worker);
    }

    /// A native worker is about to die, and nothing else goes wrong: what it holds has to be
    /// answered soon, unless it may run again.
    pub(crate) fn mourn(&mut self, number: usize, id: NodeId) {
        let Self { nodes, env, scenario, .. } = self;
        let weather = &scenario.weather;
        let Role::Worker(worker) = &nodes[usize::from(id.0)].role else { return };
        if !scenario.alone(number, QUIET_BEFORE_MS, QUIET_AFTER_MS)
            || weather.high_water < scenario.queue_calls
        {
            return;
        }
        let young = |key: &Key| {
            env.ledger.waiting(key).is_some_and(|made| {
                !made.idempotent && made.at.plus_ms(QUIET_BEFORE_MS / 2) > env.now
            })
        };
        let held: Vec<Key> = worker.runs().filter(young).collect();
        let settled_ms = env.picks.dead_ms(false) + 4 * env.picks.way_ms();
        if !held.is_empty() && env.now > START.plus_ms(QUIET_BEFORE_MS) {
            self.mourned.insert(id, held);
            self.env.queue.plan(self.env.now.plus_ms(settled_ms), Next::Settled(id));
        }
    }

    /// The time in which that has to be answered is over.
    pub(crate) fn settled(&mut self, id: NodeId) {
        for key in self.mourned.remove(&id).unwrap_or_default() {
            if self.env.ledger.waits(&key) {
                let text = format!("call {key} waits for a worker that has died");
                let now = self.env.now;
                self.env.ledger.violation(now, Rule::DeadOut, Subject::Call(key), text);
            }
        }
    }
}
