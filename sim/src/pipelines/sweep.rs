//! Many seeds on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Counts, Report, Setup, Violation, run};

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Seeds that were run.
    pub seeds: u64,
    /// What went on, in all.
    pub counts: Counts,
    /// The first violation of each seed that has one, by seed.
    pub failed: Vec<(u64, Violation)>,
}

/// Runs up to so many seeds on all cores. `go_on` sees each report and says whether to run more.
///
/// # Panics
/// If a world panics: that is a bug in what it simulates.
pub fn sweep(
    from: u64,
    seeds: u64,
    setup: Setup,
    go_on: impl Fn(u64, &Report) -> bool + Sync,
) -> Sweep {
    let (next, end) = (AtomicU64::new(from), AtomicU64::new(from.saturating_add(seeds)));
    let all = Mutex::new(Sweep::default());
    let some = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return;
            }
            let report = run(seed, setup);
            if !go_on(seed, &report) {
                end.store(0, Ordering::Relaxed);
            }
            // The lock is only poisoned by a panic here, and none of this panics.
            let Ok(mut all) = all.lock() else { return };
            all.seeds += 1;
            all.counts += report.counts;
            all.failed.extend(report.violations.into_iter().next().map(|first| (seed, first)));
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        for thread in threads {
            thread.join().expect("a world panicked; its message is above");
        }
    });
    let mut all = all.into_inner().unwrap_or_default();
    all.failed.sort_by_key(|(seed, _)| *seed);
    all
}
