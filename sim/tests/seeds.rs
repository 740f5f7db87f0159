//! Many worlds, each from its seed: no guarantee is broken in any of them, and the same checkers
//! notice when a mechanism is off.

use std::sync::atomic::{AtomicU64, Ordering};

use zex_sim::{Counts, Rule, Switches, Violation, run, story};

/// Worlds of the great test. About 20 ms of CPU each in the dev profile.
const SEEDS: u64 = 1_500;
/// Worlds with a mechanism off: enough for its checker to have something to find.
const SEEDS_OFF: u64 = 200;

/// Runs seeds on all cores; returns the sums and the violations with their seeds, in order.
fn run_all(seeds: u64, switches: Switches) -> (Counts, Vec<(u64, Violation)>) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let some = || {
        let (mut counts, mut violations) = (Counts::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return (counts, violations);
            }
            let report = run(seed, switches);
            counts += report.counts;
            violations.extend(report.violations.into_iter().map(|found| (seed, found)));
        }
    };
    let (mut counts, mut violations) = (Counts::default(), Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        for thread in threads {
            let (more, found) = thread.join().expect("a world panicked; its message is above");
            counts += more;
            violations.extend(found);
        }
    });
    violations.sort_by_key(|(seed, violation)| (*seed, violation.at_ms));
    (counts, violations)
}

fn broken(switches: Switches) -> Vec<Rule> {
    let mut rules: Vec<Rule> =
        run_all(SEEDS_OFF, switches).1.into_iter().map(|(_, violation)| violation.rule).collect();
    rules.sort();
    rules.dedup();
    rules
}

#[test]
fn the_guarantees_hold_in_every_world() {
    let (counts, violations) = run_all(SEEDS, Switches::default());
    if let Some((seed, first)) = violations.first() {
        let story = story(*seed, Switches::default(), first).join("\n  ");
        let failed: std::collections::BTreeSet<u64> =
            violations.iter().map(|(seed, _)| *seed).collect();
        panic!(
            "seed {seed}: {first}\n  {story}\n\nAgain: cargo run -p zex-sim -- {seed}\n\
             Seeds with violations: {failed:?}"
        );
    }
    // That all was well says something only if there was much, and much went wrong.
    println!("{counts:?}");
    assert!(counts.calls > 100 * SEEDS && counts.ez_requests > 10 * SEEDS, "{counts:?}");
    assert!(counts.ok * 100 > counts.calls * 80, "most calls succeed: {counts:?}");
    assert!(counts.unavailable > SEEDS && counts.late > SEEDS, "and some cannot: {counts:?}");
    assert!(counts.lost > SEEDS && counts.drift > SEEDS / 10, "{counts:?}");
    assert!(counts.compared > 100 * SEEDS, "{counts:?}");
}

#[test]
fn a_seed_gives_the_same_world_every_time() {
    for seed in [3, 99, 1_000_003] {
        assert_eq!(run(seed, Switches::default()), run(seed, Switches::default()));
    }
}

#[test]
fn it_is_noticed_when_brokers_do_not_end_calls_at_their_deadline() {
    let rules = broken(Switches { expire_requests: false, ..Switches::default() });
    assert!(rules.contains(&Rule::NothingLeft) && rules.contains(&Rule::EzAnswer), "{rules:?}");
}

#[test]
fn it_is_noticed_when_heartbeats_do_not_say_what_is_held() {
    let rules = broken(Switches { heartbeats_list_held: false, ..Switches::default() });
    assert!(rules.contains(&Rule::Counts), "{rules:?}");
}

#[test]
fn it_is_noticed_when_workers_do_not_remember_keys() {
    let rules = broken(Switches { workers_remember_keys: false, ..Switches::default() });
    assert!(rules.contains(&Rule::OneEffect), "{rules:?}");
}
