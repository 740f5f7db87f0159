//! Many worlds, each from its seed: no guarantee is broken in any of them, and for each guarantee
//! a checker notices when its mechanism is off.

use zex_sim::{Counts, Mechanism, Report, Rule, Setup, run, sweep, tell};

/// Short worlds of the great test. About 15 ms of CPU each in the dev profile.
const SEEDS: u64 = 1_800;
/// Worlds of a virtual quarter of an hour: keys are forgotten in them, and services, and many
/// faults follow one another. About 0.3 s of CPU each.
const LONG_SEEDS: u64 = 24;
const LONG_MS: u64 = 900_000;
/// Worlds with a mechanism off, at most: the first that breaks the rule ends the search.
const SEEDS_OFF: u64 = 1_000;

fn hold(seeds: u64, setup: Setup) -> Counts {
    let all = sweep(0, seeds, setup, |_, _| true);
    if let Some((seed, first)) = all.failed.first() {
        let failed: Vec<u64> = all.failed.iter().map(|(seed, _)| *seed).collect();
        panic!("{}\nSeeds with violations: {failed:?}", tell(*seed, setup, first));
    }
    println!("{:?}", all.counts);
    all.counts
}

#[test]
fn the_guarantees_hold_in_every_world() {
    let counts = hold(SEEDS, Setup::default());
    // That all was well says something only if there was much, and much went wrong.
    assert!(counts.calls > 300 * SEEDS && counts.ez_requests > 20 * SEEDS, "{counts:?}");
    assert!(counts.ok * 100 > counts.calls * 80, "most calls succeed: {counts:?}");
    assert!(counts.unavailable > SEEDS && counts.late > SEEDS, "and some cannot: {counts:?}");
    assert!(counts.exhausted > SEEDS && counts.duplicates > SEEDS / 2, "{counts:?}");
    assert!(counts.lost > SEEDS && counts.drift > SEEDS / 10, "{counts:?}");
    assert!(counts.compared > 300 * SEEDS && counts.picks > 10 * SEEDS, "{counts:?}");
}

#[test]
fn the_guarantees_hold_in_long_worlds() {
    let counts = hold(LONG_SEEDS, Setup { length_ms: Some(LONG_MS), without: None });
    assert!(counts.virtual_s * 1_000 > LONG_SEEDS * LONG_MS / 10 * 9, "{counts:?}");
}

#[test]
fn a_seed_gives_the_same_world_every_time() {
    let long = Setup { length_ms: Some(300_000), without: None };
    for (seed, setup) in [(3, Setup::default()), (1_000_003, Setup::default()), (8, long)] {
        assert_eq!(run(seed, setup), run(seed, setup));
    }
}

#[test]
fn it_is_noticed_when_a_mechanism_is_off() {
    let table = [
        // 1: one answer by the deadline, at the home and at the client.
        (Mechanism::Expiry, Rule::NothingLeft),
        (Mechanism::Expiry, Rule::EzAnswer),
        (Mechanism::Timers, Rule::OneAnswer),
        // 2: the least assigned.
        (Mechanism::Pick, Rule::LeastAssigned),
        // 3: counts heal.
        (Mechanism::Held, Rule::Counts),
        // 4: the dead are out; only idempotent calls run again.
        (Mechanism::Deaths, Rule::DeadOut),
        (Mechanism::Licence, Rule::OneEffect),
        // 5: a resend is no re-run, and has the same answer.
        (Mechanism::Memory, Rule::OneEffect),
        (Mechanism::Memory, Rule::EqualAnswers),
        // 6: bounds.
        (Mechanism::Bounds, Rule::Bounds),
        // 8: who drains loses nothing.
        (Mechanism::Drain, Rule::Drain),
        // 5 and 9: one pipe less loses nothing.
        (Mechanism::Paths, Rule::NothingLost),
    ];
    for (mechanism, rule) in table {
        let setup = Setup { length_ms: None, without: Some(mechanism) };
        let breaks = |report: &Report| report.violations.iter().any(|found| found.rule == rule);
        let found = std::sync::atomic::AtomicU64::new(u64::MAX);
        let all = sweep(0, SEEDS_OFF, setup, |seed, report| {
            if breaks(report) {
                found.fetch_min(seed, std::sync::atomic::Ordering::Relaxed);
            }
            !breaks(report)
        });
        let seed = found.into_inner();
        assert!(
            seed < u64::MAX,
            "{mechanism:?} off breaks {rule:?} in none of {} worlds",
            all.seeds
        );
        println!("{mechanism:?} off breaks {rule:?}, first in seed {seed}");
        // And with it on that very world is well.
        assert!(!breaks(&run(seed, Setup::default())));
    }
}
