//! A process is killed every three seconds, whichever, and started again, at half load, for as long
//! as one wants: no request is lost, none is done twice, and memory stays flat.
//!
//! `ZEX_FAULTS_MINUTES=30 cargo test -p zex-faults soak` runs it for half an hour.

use std::thread::sleep;
use std::time::{Duration, Instant};

use zex_faults::checks;
use zex_faults::load::{Calls, Load};
use zex_faults::{Plan, Stage, alone, effects, scaled};

/// From one kill to the next.
const BETWEEN: Duration = Duration::from_secs(3);
/// Who was killed is away for so long.
const AWAY: Duration = Duration::from_millis(500);
/// What a role may have more at the end than when it had warmed up: what it remembers of a minute's
/// calls, and what an allocator keeps.
const GROWTH_BYTES: u64 = 64 << 20;
/// A short run, in seconds.
const SHORT_S: u64 = 15;

fn duration() -> Duration {
    let minutes = std::env::var("ZEX_FAULTS_MINUTES").ok();
    let long = |minutes: String| Duration::from_secs_f64(minutes.parse::<f64>().unwrap() * 60.0);
    minutes.map_or(Duration::from_secs(SHORT_S), long)
}

#[test]
fn soak() {
    let _alone = alone();
    let mut stage = Stage::start(Plan { old_workers: 0, ..Plan::default() });
    let calls = Calls { rate: scaled(300, 1_000), idempotent: 2, ..Calls::default() };
    let mut load = Load::start(stage.runtime().handle(), &stage.in_pipes(), calls);
    let (begun, lasts) = (Instant::now(), duration());
    let mut done = Vec::new();
    let mut warm = Vec::new();
    // A short run kills the same each time, so that a change is judged by what it changes.
    let seed = if lasts > Duration::from_secs(SHORT_S) { fastrand::u64(..) } else { 1 };
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    while begun.elapsed() < lasts {
        sleep(BETWEEN - AWAY);
        let names = stage.names("");
        let name = random.choice(&names).unwrap();
        let killed = Instant::now();
        stage.kill(name);
        sleep(AWAY);
        stage.start_again(name);
        println!("{:>8.1?} killed {name}, {} calls", killed - begun, load.ended());
        done.push((name.clone(), killed, Instant::now()));
        stage.check_alive();
        // Whoever is started anew is measured anew.
        warm.retain(|(known, _)| known != name);
        if done.len() * 3 > 60 || lasts < Duration::from_secs(60) {
            for name in stage.names("") {
                let bytes = stage.program(&name).memory_bytes();
                if !warm.iter().any(|(known, _)| *known == name) {
                    warm.push((name, bytes));
                }
            }
        }
    }
    load.pause(Duration::from_secs(10));
    for (name, before) in warm {
        let after = stage.program(&name).memory_bytes();
        println!("{name}: {} MiB, then {} MiB", before >> 20, after >> 20);
        assert!(after < before + GROWTH_BYTES, "{name}: {before} bytes, then {after}");
    }
    let (entries, _) = load.finish();
    checks::no_phantoms(&stage);
    let effects = effects::read(&stage.effects());
    let killed: Vec<_> = done.iter().filter(|(name, ..)| is_worker(name)).collect();
    checks::lost_with_workers_only(&entries, &effects, killed.len());
    println!("{} calls, {} kills", entries.len(), done.len());
}

fn is_worker(name: &str) -> bool {
    name.starts_with("worker-") && !name.starts_with("worker-pipe")
}
