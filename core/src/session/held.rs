//! What a worker says in its heartbeats of each owner's work: the highest assignment number that
//! came, and which are not answered. Owners heal their counts by it.

use std::collections::{BTreeMap, BTreeSet};

use zex_spec::{BrokerId, Held};

use crate::Time;

/// An owner that sends nothing and has nothing here is left out after so long, ms. Its next work
/// brings it back.
const QUIET_MS: u64 = 60_000;

/// One entry for each owner that sent work lately.
#[derive(Debug, Default)]
pub(super) struct HeldWork {
    owners: BTreeMap<BrokerId, Owner>,
}

#[derive(Debug)]
struct Owner {
    seen: u64,
    numbers: BTreeSet<u64>,
    heard: Time,
}

impl HeldWork {
    /// Work with this number arrived, whatever becomes of it.
    pub(super) fn arrived(&mut self, now: Time, owner: BrokerId, number: u64) {
        let new = || Owner { seen: 0, numbers: BTreeSet::new(), heard: now };
        let entry = self.owners.entry(owner).or_insert_with(new);
        entry.seen = entry.seen.max(number);
        entry.heard = now;
    }

    /// It is not answered yet.
    pub(super) fn hold(&mut self, now: Time, owner: BrokerId, number: u64) {
        self.arrived(now, owner, number);
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.numbers.insert(number);
        }
    }

    /// Its answer is on its way.
    pub(super) fn release(&mut self, owner: BrokerId, number: u64) {
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.numbers.remove(&number);
        }
    }

    /// What is not answered, by owner.
    pub(super) fn numbers(&self) -> impl Iterator<Item = (BrokerId, &BTreeSet<u64>)> {
        self.owners.iter().map(|(owner, entry)| (*owner, &entry.numbers))
    }

    /// The list for a heartbeat.
    pub(super) fn list(&mut self, now: Time) -> Vec<Held> {
        self.owners
            .retain(|_, owner| !owner.numbers.is_empty() || now < owner.heard.plus_ms(QUIET_MS));
        let held = |(owner, entry): (&BrokerId, &Owner)| Held {
            owner: *owner,
            seen: entry.seen,
            numbers: entry.numbers.iter().copied().collect(),
        };
        self.owners.iter().map(held).collect()
    }
}
