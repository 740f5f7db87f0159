//! What a worker pipe has handed to EZ workers and has not seen answered.
//!
//! An old worker's beat says nothing of what it holds, so a broker could not tell a slow one from
//! one that never got its request: the pipe, through which both the work and its answer pass, says
//! it in the worker's place. It holds numbers only, no work.
//!
//! Used by [`super::Pipe`]; bounded in workers, in numbers for each, and in time.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use zex_spec::{Address, BrokerId, Held};

use crate::Time;

/// Longest that a request of the old dialect runs, and a second for its way, milliseconds. Its
/// owner has given it up by then.
const KEEP_MS: u64 = 61_000;
/// Workers that were silent for so long are forgotten, milliseconds: their brokers did long ago.
const SILENT_MS: u64 = 120_000;
/// How often they are looked for, milliseconds.
const SWEEP_MS: u64 = 10_000;
/// EZ workers of one pipe; the bound is against who makes them up. One beyond it is said to hold
/// nothing, so its requests end with an error after two beats.
const MAX_WORKERS: usize = 65_536;
/// Requests that one of them has underway: a broker gives it a thousand, and there are some brokers.
const MAX_HANDED: usize = 16_384;

/// One owner's requests at a worker.
#[derive(Debug, Default)]
struct Owned {
    /// The highest number that was handed over.
    seen: u64,
    /// When that was.
    last: Time,
    waiting: BTreeMap<u64, Time>,
}

#[derive(Debug)]
struct Worker {
    owners: BTreeMap<BrokerId, Owned>,
    waiting: usize,
    last: Time,
}

/// The requests that EZ workers have, by worker and owner.
#[derive(Debug, Default)]
pub(super) struct Handed {
    workers: BTreeMap<Bytes, Worker>,
    swept: Time,
}

impl Handed {
    /// A worker has got a request.
    pub(super) fn handed(&mut self, now: Time, worker: &Bytes, address: &[u8]) {
        let Some((owner, number)) = Address::assignment_of(address) else { return };
        if self.workers.len() >= MAX_WORKERS && !self.workers.contains_key(worker) {
            return;
        }
        let new = || Worker { owners: BTreeMap::new(), waiting: 0, last: now };
        let worker = self.workers.entry(worker.clone()).or_insert_with(new);
        worker.last = now;
        let owned = worker.owners.entry(owner).or_default();
        (owned.seen, owned.last) = (owned.seen.max(number), now);
        if worker.waiting < MAX_HANDED && owned.waiting.insert(number, now).is_none() {
            worker.waiting += 1;
        }
    }

    /// A worker has answered.
    pub(super) fn answered(&mut self, worker: &[u8], address: &[u8]) {
        let Some((owner, number)) = Address::assignment_of(address) else { return };
        let Some(worker) = self.workers.get_mut(worker) else { return };
        let owned = worker.owners.get_mut(&owner);
        if owned.is_some_and(|owned| owned.waiting.remove(&number).is_some()) {
            worker.waiting -= 1;
        }
    }

    /// A worker beats: what it holds, as a native one would say it.
    pub(super) fn held(&mut self, now: Time, worker: &[u8]) -> Vec<Held> {
        self.sweep(now);
        let Some(worker) = self.workers.get_mut(worker) else { return Vec::new() };
        worker.last = now;
        let mut waiting = 0;
        worker.owners.retain(|_, owned| {
            owned.waiting.retain(|_, since| since.plus_ms(KEEP_MS) > now);
            waiting += owned.waiting.len();
            !owned.waiting.is_empty() || owned.last.plus_ms(KEEP_MS) > now
        });
        worker.waiting = waiting;
        let held = |(owner, owned): (&BrokerId, &Owned)| {
            let numbers: BTreeSet<u64> = owned.waiting.keys().copied().collect();
            Held { owner: *owner, seen: owned.seen, numbers: numbers.into_iter().collect() }
        };
        worker.owners.iter().map(held).collect()
    }

    /// A worker's connection has ended; whoever comes back begins with nothing.
    pub(super) fn gone(&mut self, worker: &[u8]) {
        self.workers.remove(worker);
    }

    fn sweep(&mut self, now: Time) {
        if self.swept.plus_ms(SWEEP_MS) <= now {
            self.swept = now;
            self.workers.retain(|_, worker| worker.last.plus_ms(SILENT_MS) > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use zex_spec::{Dialect, Incarnation, ReturnPath};

    use super::*;

    fn address(owner: u64, number: u64) -> Bytes {
        let peer = Bytes::from_static(b"c");
        let path = ReturnPath { pipe: Incarnation(7), dialect: Dialect::Ez, peer };
        Address { owner: Incarnation(owner), number, path }.encode()
    }

    fn said(handed: &mut Handed, now: Time) -> Vec<(u64, u64, Vec<u64>)> {
        let held = handed.held(now, b"w").into_iter();
        held.map(|held| (held.owner.0, held.seen, held.numbers)).collect()
    }

    #[test]
    fn what_is_handed_over_is_held_until_it_is_answered() {
        let (mut handed, worker) = (Handed::default(), Bytes::from_static(b"w"));
        let now = Time(5_000_000);
        assert_eq!(said(&mut handed, now), []);
        for (owner, number) in [(1, 4), (1, 3), (2, 9)] {
            handed.handed(now, &worker, &address(owner, number));
        }
        handed.answered(b"w", &address(1, 4));
        handed.answered(b"w", &address(1, 4));
        handed.answered(b"another", &address(1, 3));
        handed.answered(b"w", b"no address");
        assert_eq!(said(&mut handed, now), [(1, 4, vec![3]), (2, 9, vec![9])]);
        // Nobody waits longer than a minute for an answer of the old dialect.
        handed.handed(now.plus_ms(30_000), &worker, &address(1, 5));
        assert_eq!(said(&mut handed, now.plus_ms(61_000)), [(1, 5, vec![5])]);
        handed.gone(b"w");
        assert_eq!(said(&mut handed, now.plus_ms(61_000)), []);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut handed, worker) = (Handed::default(), Bytes::from_static(b"w"));
        (0..20_000).for_each(|number| handed.handed(Time(0), &worker, &address(1, number)));
        assert_eq!(said(&mut handed, Time(0))[0].2.len(), MAX_HANDED);
        for n in 0..70_000_u32 {
            let worker = Bytes::copy_from_slice(&n.to_be_bytes());
            handed.handed(Time(0), &worker, &address(1, 1));
        }
        assert_eq!(handed.workers.len(), MAX_WORKERS);
        handed.held(Time(0).plus_ms(SILENT_MS), b"w");
        assert_eq!(handed.workers.len(), 0, "silent ones are forgotten");
    }
}
