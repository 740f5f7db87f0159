//! Guarantee 3: three seconds after the last fault (nine for EZ workers) every broker's
//! assignments are what the workers have in flight.
//!
//! Compared are sets of assignment numbers, not sums. A number that is neither held by its worker
//! nor in a message under way is a phantom. What a worker holds beyond that must count too, as
//! somebody's: the level that the pick sees is the number of all that it holds.

use std::collections::{BTreeMap, BTreeSet};

use zex_core::Time;
use zex_spec::{Address, BrokerId, Message, PeerId};

use crate::ledger::{Rule, Subject};
use crate::net::{Identity, Letter};
use crate::queue::Next;
use crate::scenario::START;
use crate::trace::address_of;
use crate::world::{Role, World};

/// Native counts are right so long after a fault, milliseconds.
const NATIVE_MS: u64 = 3_000;
/// EZ counts, milliseconds.
const EZ_MS: u64 = 9_000;
/// The mesh takes this long to come up, milliseconds; there is nothing to compare before.
const UP_MS: u64 = 3_500;
/// Between two comparisons, milliseconds.
const AGAIN_MS: u64 = 300;
/// And while nothing moves but beats. No call is made for so long before and after, either.
const IDLE_MS: u64 = 10_000;
/// An EZ request ends after so long, milliseconds; near its end its count goes and its worker does
/// not know.
const EZ_DEADLINE_MS: u64 = 60_000;
/// How long a request may have waited before a worker got it, milliseconds.
const EZ_QUEUED_MS: u64 = 10_000;
/// Levels are compared if nothing about the worker was under way for so long, milliseconds: a
/// heartbeat, and the way of a share.
const STILL_MS: u64 = 1_200;

/// Assignment numbers by owner and worker.
type Numbers = BTreeMap<(BrokerId, PeerId), BTreeSet<u64>>;

impl World {
    pub(crate) fn plan_check(&mut self) {
        if !self.check_planned {
            self.check_planned = true;
            let up = START.plus_ms(UP_MS);
            let at = self.last_fault.plus_ms(NATIVE_MS).max(up);
            self.env.queue.plan(at.max(self.env.now.plus_ms(1)), Next::Check);
        }
    }

    pub(crate) fn check(&mut self) {
        self.check_planned = false;
        let now = self.env.now;
        // Who is cut off is at fault until it is whole again.
        self.last_fault = self.last_fault.max(self.cut_until.min(now));
        if self.last_fault.plus_ms(NATIVE_MS) > now {
            return self.plan_check();
        }
        self.check_planned = true;
        let again_ms = if self.is_idle(now) { IDLE_MS } else { AGAIN_MS };
        self.env.queue.plan(now.plus_ms(again_ms), Next::Check);
        self.env.ledger.forget(now);
        let alive = self.nodes.iter().filter(|node| node.alive);
        if alive.clone().any(|node| node.frozen) {
            return;
        }
        let under_way = self.under_way();
        self.compare_native(now, &under_way);
        if self.last_fault.plus_ms(EZ_MS) <= now {
            self.compare_ez(now, &under_way);
        }
    }

    /// Whether nothing moves but beats: no call is made, was lately or will be soon.
    fn is_idle(&self, now: Time) -> bool {
        let loads = &self.scenario.loads;
        let before = Time(now.0 - 1_000 * IDLE_MS);
        let busy = [before, now, now.plus_ms(IDLE_MS)].into_iter().any(|at| loads.on(at));
        !busy && now < loads.end()
    }

    fn compare_native(&mut self, now: Time, under_way: &Numbers) {
        let idempotent = self.scenario.clients.iter().any(|client| client.idempotent > 0.0);
        let mut held = Numbers::new();
        let mut workers = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.alive) {
            if let Role::Worker(worker) = &node.role {
                let mut sum = 0;
                for (owner, numbers) in worker.session.held() {
                    sum += numbers.len() as u32;
                    held.insert((owner, worker.peer), numbers.clone());
                }
                let runs = worker.session.in_flight() as u32;
                // An idempotent resend is given to anybody. If that is by chance who still runs it
                // for an owner that died, two are counted where one is at work.
                workers.insert(worker.peer, runs..=if idempotent { sum.max(runs) } else { runs });
            }
        }
        let mut found = Vec::new();
        let mut compared = 0;
        for node in self.nodes.iter().filter(|node| node.alive) {
            let Role::Broker(broker) = &node.role else { continue };
            if broker.drained {
                continue;
            }
            let owner = broker.mesh.id();
            for load in broker.mesh.loads().filter(|load| !load.ez) {
                let Some(runs) = workers.get(&load.worker) else {
                    let text = format!("{owner} counts worker {}, which is gone", load.worker);
                    found.push((Subject::Worker(load.worker), text));
                    continue;
                };
                compared += 1;
                let place = (owner, load.worker);
                let empty = BTreeSet::new();
                let holds = held.get(&place).unwrap_or(&empty);
                let moving = under_way.get(&place).unwrap_or(&empty);
                found.extend(phantoms(place, load.assigned, holds, moving));
                let still = self.touched.get(&load.worker).is_none_or(|at| {
                    at.plus_ms(STILL_MS) <= now
                        && self.last_fault.plus_ms(NATIVE_MS + STILL_MS) <= now
                });
                let moves = under_way.keys().any(|(_, worker)| *worker == load.worker);
                if still && !moves && !runs.contains(&load.level) {
                    let text = format!(
                        "{owner} takes worker {} for {} assigned, it runs {runs:?}",
                        load.worker, load.level
                    );
                    found.push((Subject::Worker(load.worker), text));
                }
            }
        }
        self.env.ledger.counts.compared += compared;
        self.report(now, found);
    }

    fn compare_ez(&mut self, now: Time, under_way: &Numbers) {
        let mut held = Numbers::new();
        let mut workers = BTreeSet::new();
        for node in self.nodes.iter().filter(|node| node.alive) {
            let Role::EzWorker(worker) = &node.role else { continue };
            let wire = self.env.net.conn(worker.conn);
            let Role::Pipe(pipe) = &self.nodes[usize::from(wire.pipe.0)].role else { continue };
            let Identity::Ez(routing) = &wire.identity else { continue };
            let id = PeerId::of_ez(pipe.incarnation(), routing);
            let ending = |since: &Time| since.plus_ms(EZ_DEADLINE_MS - EZ_QUEUED_MS) <= now;
            if worker.held.values().any(|held| ending(&held.since)) {
                continue;
            }
            workers.insert(id);
            for work in worker.held.values().filter(|held| held.called == wire.identity) {
                held.entry((work.owner, id)).or_default().insert(work.number);
            }
        }
        let mut found = Vec::new();
        let mut compared = 0;
        for node in self.nodes.iter().filter(|node| node.alive) {
            let Role::Broker(broker) = &node.role else { continue };
            let owner = broker.mesh.id();
            for load in broker.mesh.loads().filter(|load| load.ez) {
                if !workers.contains(&load.worker) {
                    continue;
                }
                compared += 1;
                let place = (owner, load.worker);
                let mut moving = under_way.get(&place).cloned().unwrap_or_default();
                let lost = self.ez_lost.iter().filter(|(of, _)| *of == owner);
                moving.extend(lost.map(|(_, number)| *number));
                let empty = BTreeSet::new();
                let holds = held.get(&place).unwrap_or(&empty);
                found.extend(phantoms(place, load.assigned, holds, &moving));
            }
        }
        self.env.ledger.counts.compared += compared;
        self.report(now, found);
    }

    fn report(&mut self, now: Time, found: Vec<(Subject, String)>) {
        let after_ms = now.since(self.last_fault).as_millis();
        for (subject, text) in found {
            let text = format!("{text}, {after_ms} ms after the last fault");
            self.env.ledger.violation(now, Rule::Counts, subject, text);
        }
    }

    /// Work, and what takes it off its worker, that is under way.
    fn under_way(&self) -> Numbers {
        let mut numbers = Numbers::new();
        for (id, conn) in self.env.net.conns.iter().enumerate() {
            let pipe = match &self.nodes[usize::from(conn.pipe.0)].role {
                Role::Pipe(pipe) => pipe.incarnation(),
                _ => continue,
            };
            let peer = |packet: PeerId| match &conn.identity {
                Identity::Native(peer) => *peer,
                Identity::Ez(routing) => PeerId::of_ez(pipe, routing),
                Identity::Broker(_) => packet,
            };
            let lanes = [crate::net::End::Pipe, crate::net::End::Dialer].map(|to| conn.lane(to));
            let inboxes = [conn.pipe, conn.dialer].map(|id| &self.nodes[usize::from(id.0)].inbox);
            let waiting = inboxes.into_iter().flatten();
            let waiting = waiting
                .filter(|unread| usize::from(unread.conn.0) == id)
                .map(|unread| &unread.letter);
            for letter in lanes.iter().flat_map(|lane| &lane.under_way).chain(waiting) {
                let peer = match letter {
                    Letter::Native(packet) => match &packet.message {
                        Message::EzWork(work) => PeerId::of_ez(packet.pipe, &work.peer),
                        Message::EzReply(reply) => PeerId::of_ez(packet.pipe, &reply.peer),
                        _ => peer(packet.peer),
                    },
                    Letter::Ez(_) => peer(PeerId::default()),
                };
                let address = address_of(letter).and_then(|from| Address::decode(from).ok());
                if let Some(address) = address {
                    numbers.entry((address.owner, peer)).or_default().insert(address.number);
                }
            }
        }
        numbers
    }
}

/// Assignments that nobody holds.
fn phantoms(
    (owner, worker): (BrokerId, PeerId),
    assigned: &BTreeSet<u64>,
    held: &BTreeSet<u64>,
    moving: &BTreeSet<u64>,
) -> Option<(Subject, String)> {
    let phantom = assigned.difference(held).filter(|number| !moving.contains(number));
    let phantom: Vec<u64> = phantom.copied().collect();
    let first = phantom.first()?;
    let text = format!("{owner} counts {phantom:?} at worker {worker}, which does not hold them");
    Some((Subject::Assignment(owner, *first), text))
}
