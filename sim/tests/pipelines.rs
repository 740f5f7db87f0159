//! Many worlds of schedulers, store and mesh, each from its seed: no promise is broken in any of
//! them, and for each promise a checker notices when its mechanism is off.

use std::sync::atomic::{AtomicU64, Ordering};

use zex_sim::pipelines::{Counts, Mechanism, Phase, Report, Rule, Setup, run, sweep, tell};

/// Worlds of the great test.
const SEEDS: u64 = 3_000;
/// Worlds in which whoever makes an append dies, once for each append and phase.
const CRASHED_SEEDS: u64 = 24;
/// Worlds with a mechanism off, at most: the first that breaks the rule ends the search.
const SEEDS_OFF: u64 = 2_000;

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
fn the_promises_hold_in_every_world() {
    let counts = hold(SEEDS, Setup::default());
    // That all was well says something only if there was much, and much went wrong.
    assert!(counts.runs > SEEDS && counts.calls > 10 * SEEDS, "{counts:?}");
    assert!(counts.appends > 15 * SEEDS && counts.deaths > SEEDS, "{counts:?}");
    assert!(counts.taken_over > SEEDS / 4 && counts.freezes > SEEDS / 4, "{counts:?}");
    assert!(counts.fenced > SEEDS / 300 && counts.full > SEEDS / 50, "{counts:?}");
    assert!(counts.broken > SEEDS / 20 && counts.lost > SEEDS / 10, "{counts:?}");
    assert!(counts.repeated > SEEDS / 10 && counts.known > SEEDS / 50, "{counts:?}");
    assert!(counts.succeeded > SEEDS / 3 && counts.warned > SEEDS / 20, "{counts:?}");
    assert!(counts.failed > SEEDS / 50 && counts.cancelled > SEEDS / 50, "{counts:?}");
}

#[test]
fn a_crash_at_any_append_changes_nothing_of_the_outcome() {
    let mut crashes = 0;
    for seed in 0..CRASHED_SEEDS {
        let calm = run(seed, Setup { calm: true, ..Setup::default() });
        assert_eq!(calm.violations, [], "seed {seed}");
        for at in 1..=calm.counts.appends {
            for phase in Phase::ALL {
                let setup = Setup { crash_at: Some((at, phase)), ..Setup::default() };
                let report = run(seed, setup);
                if let Some(first) = report.violations.first() {
                    panic!("{}", tell(seed, setup, first));
                }
                crashes += report.counts.deaths;
            }
        }
    }
    assert!(crashes > 20 * CRASHED_SEEDS, "{crashes} crashes");
}

#[test]
fn a_seed_gives_the_same_world_every_time() {
    for seed in [3, 8, 1_000_003] {
        assert_eq!(run(seed, Setup::default()), run(seed, Setup::default()));
    }
}

#[test]
fn it_is_noticed_when_a_mechanism_is_off() {
    let table = [
        (Mechanism::Fencing, Rule::Fenced),
        (Mechanism::Fencing, Rule::OneResult),
        (Mechanism::Durability, Rule::Lost),
        (Mechanism::Acknowledgement, Rule::Order),
        (Mechanism::Acknowledgement, Rule::Attempts),
        (Mechanism::After, Rule::Order),
        (Mechanism::Concurrency, Rule::Bounds),
        (Mechanism::Memory, Rule::OneEffect),
        (Mechanism::TakeOver, Rule::Ends),
        (Mechanism::When, Rule::Outcome),
        (Mechanism::Journal, Rule::Replay),
    ];
    for (mechanism, rule) in table {
        let setup = Setup { without: Some(mechanism), ..Setup::default() };
        let breaks = |report: &Report| report.violations.iter().any(|found| found.rule == rule);
        let found = AtomicU64::new(u64::MAX);
        let all = sweep(0, SEEDS_OFF, setup, |seed, report| {
            if breaks(report) {
                found.fetch_min(seed, Ordering::Relaxed);
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
