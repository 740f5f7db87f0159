//! Ledger against effects: what was promised, and what was done.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use zex_client::Code;

use crate::body;
use crate::effects::Effect;
use crate::load::{Entry, service};
use crate::old::OldEntry;
use crate::{LOOK_AGAIN, Stage, scaled};

/// Effects by key, as [`crate::effects::read`] gives them.
pub type Effects = HashMap<[u8; 16], Vec<Effect>>;

/// Counts are right so long after any fault (guarantee 3).
pub const HEALED: Duration = Duration::from_secs(3);
/// And stay so: looked at for so long.
const STAYS: Duration = Duration::from_secs(2);
/// What a worker takes at once, so what a dead one can have held.
pub const HELD_AT_MOST: usize = 100;
/// Latency is normal again so long after a fault.
pub const NORMAL: Duration = Duration::from_secs(2);
/// A p99 is normal if it is not more than so many times that of a quiet time,
const NORMAL_TIMES: u32 = 3;
/// or under this: less than the second after which a client sends again, so that no call that
/// waits for a lost answer passes for normal; more than what a busy machine does to a quiet mesh.
const NORMAL_FLOOR: Duration = Duration::from_millis(400);
/// or, in a short run, under this: a machine that does other things as well is not to fail it, a
/// mesh that stands still is.
const NORMAL_FLOOR_SHORT: Duration = Duration::from_secs(2);

/// Every call was answered with the answer to it.
///
/// # Panics
/// With the first failures, if there are any.
pub fn all_answered(entries: &[Entry], since: Instant) {
    let failed: Vec<String> = entries
        .iter()
        .filter_map(|entry| {
            let due = entry.due.saturating_duration_since(since);
            let what = match &entry.outcome {
                Ok(answer) if number_of(answer) == Some(entry.number) => return None,
                Ok(answer) => format!("got {answer:?}"),
                Err(status) => status.to_string(),
            };
            Some(format!("due {due:?}, after {:?}: {what}", entry.latency()))
        })
        .collect();
    let some = &failed[..failed.len().min(10)];
    assert!(failed.is_empty(), "{} of {} failed: {some:#?}", failed.len(), entries.len());
}

fn number_of(answer: &[u8]) -> Option<u64> {
    body::read_answer(answer).map(|(number, _)| number)
}

/// Every answered call has exactly one effect, and every other call at most one.
///
/// # Panics
/// With the first that have not.
pub fn one_effect_each(entries: &[Entry], effects: &Effects) {
    let wrong: Vec<String> = entries
        .iter()
        .filter_map(|entry| {
            let of_key = effects.get(&entry.key).map_or(&[][..], Vec::as_slice);
            let good = match of_key.len() {
                0 => entry.outcome.is_err(),
                1 => true,
                _ => false,
            };
            (!good).then(|| format!("{entry:?}: {of_key:?}"))
        })
        .collect();
    let some = &wrong[..wrong.len().min(5)];
    assert!(wrong.is_empty(), "{} calls: {some:#?}", wrong.len());
}

/// The 99th percentile of the latencies of the calls that were due in this time; `None` if there
/// were none.
pub fn p99(entries: &[Entry], from: Instant, to: Instant) -> Option<Duration> {
    let due = entries.iter().filter(|entry| (from..to).contains(&entry.due));
    let mut latencies: Vec<Duration> = due.map(Entry::latency).collect();
    latencies.sort_unstable();
    latencies.get(latencies.len() * 99 / 100).copied()
}

/// What a mesh's latency looks like when nothing happens to it.
#[derive(Debug, Clone, Copy)]
pub struct Normal {
    p99: Duration,
}

impl Normal {
    /// From a quiet time.
    ///
    /// # Panics
    /// If no call was due in it.
    pub fn of(entries: &[Entry], from: Instant, to: Instant) -> Self {
        Self { p99: p99(entries, from, to).unwrap() }
    }

    /// Latency was normal again from [`NORMAL`] after the fault on, until this time.
    ///
    /// # Panics
    /// If it was not.
    pub fn again(&self, what: &str, entries: &[Entry], fault: Instant, to: Instant) {
        println!("{what}: p99 {:?} at first", p99(entries, fault, fault + NORMAL));
        self.during(what, entries, fault + NORMAL, to);
    }

    /// Latency was normal all this time.
    ///
    /// # Panics
    /// If it was not.
    pub fn during(&self, what: &str, entries: &[Entry], from: Instant, to: Instant) {
        let there = p99(entries, from, to);
        println!("{what}: p99 {there:?}, {:?} in quiet times", self.p99);
        let there = there.unwrap_or_else(|| panic!("{what}: no call was due"));
        let most = (self.p99 * NORMAL_TIMES).max(scaled(NORMAL_FLOOR_SHORT, NORMAL_FLOOR));
        let slow = entries.iter().filter(|entry| entry.latency() > most);
        let slow = slow.filter(|entry| (from..to).contains(&entry.due));
        let slow = slow.map(|entry| {
            let (number, due, took) = (entry.number, entry.due - from, entry.latency());
            format!("{} due {due:.3?} took {took:.3?}", service(number as usize))
        });
        let slow: Vec<String> = slow.take(20).collect();
        assert!(there <= most, "{what}: p99 {there:?}, most {most:?}: {slow:#?}");
    }
}

/// The mesh's counts are those of the ledger from [`HEALED`] after a fault on: what every worker
/// has in flight, in all as many as the ledger has waiting.
///
/// # Panics
/// If they are not.
pub fn counts_are_exact(stage: &Stage, fault: Instant, waiting: impl Fn() -> u64) {
    std::thread::sleep(HEALED.saturating_sub(fault.elapsed()));
    while fault.elapsed() < HEALED + STAYS {
        let before = waiting();
        let (mut counts, after) = (stage.counts(), fault.elapsed());
        // Their load goes on, and is judged at its end.
        counts.retain(|name, _| !name.starts_with("old "));
        let assigned: u64 = counts.values().map(|(assigned, _)| assigned).sum();
        let equal = counts.values().all(|(assigned, in_flight)| assigned == in_flight);
        // A held call may have ended while the mesh was asked.
        let now = waiting();
        let right = equal && (now..=before).contains(&assigned);
        assert!(right || now != before, "{after:?} after the fault: {counts:?}, waiting {now}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Nothing is assigned any more, soon after the last call has ended.
///
/// # Panics
/// If something is.
pub fn no_phantoms(stage: &Stage) {
    let deadline = Instant::now() + HEALED;
    loop {
        let left = stage.counts();
        if left.values().all(|count| *count == (0, 0)) {
            return;
        }
        if Instant::now() >= deadline {
            let [brokers, workers] =
                ["brokers", "workers"].map(|list| stage.zex(&[list, "--json"]));
            panic!("still assigned, and in flight: {left:?}\n{}\n{}", brokers.out, workers.out);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What the old dialect promises: at most one answer to each request and at most one effect, and
/// `OK` to each, save that requests which were underway when something happened may be lost with it.
///
/// # Panics
/// If more is missing. `spared` are the times around faults in which requests may get lost.
pub fn old_rights(entries: &[OldEntry], effects: &Effects, spared: &[(Instant, Instant)]) {
    let (mut lost, mut refused) = (0, 0);
    for entry in entries {
        let of_id = effects.get(&entry.id).map_or(0, Vec::len);
        assert!(entry.answers.len() <= 1 && of_id <= 1, "{entry:?}, {of_id} effects");
        let spared = spared.iter().any(|(from, to)| (*from..*to).contains(&entry.sent));
        match entry.answers.first() {
            Some((true, _)) => assert_eq!(of_id, 1, "{entry:?}"),
            Some((false, at)) => {
                assert!(spared, "ERR after {:?}: {entry:?}, spared {spared:?}", *at - entry.sent);
                refused += 1;
            }
            None => {
                assert!(spared, "no answer to {entry:?}, {of_id} effects");
                lost += 1;
            }
        }
    }
    println!("old dialect: {} requests, {lost} lost with a peer, {refused} ERR", entries.len());
    assert!(!entries.is_empty());
}

/// Every call was answered, save those that are not idempotent and were at a worker that was killed,
/// which end `UNAVAILABLE`. Only idempotent ones have a second effect, and then the first was a dead
/// worker's, or the call was sent again to a broker that could not know of it.
///
/// # Panics
/// If it was not so. So many workers were killed.
pub fn lost_with_workers_only(entries: &[Entry], effects: &Effects, killed: usize) {
    let (mut failed, mut again) = (0, 0);
    for entry in entries {
        let of_key = effects.get(&entry.key).map_or(&[][..], Vec::as_slice);
        match &entry.outcome {
            Ok(_) => assert!(!of_key.is_empty(), "{entry:?} was answered and never run"),
            Err(status) => {
                assert_eq!(status.code, Code::Unavailable, "{entry:?}, {of_key:?}");
                assert!(!entry.idempotent, "{entry:?}, {of_key:?}");
                failed += 1;
            }
        }
        assert!(of_key.len() <= 1 || entry.idempotent, "{entry:?}: {of_key:?}");
        again += usize::from(of_key.len() > 1);
    }
    println!("{failed} calls UNAVAILABLE, {again} run again, {killed} workers killed");
    assert!(failed <= killed * HELD_AT_MOST, "{failed} with {killed} workers");
}
