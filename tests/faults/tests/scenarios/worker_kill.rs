//! `kill -9` of a worker under load. Idempotent calls run again elsewhere; of the others only those
//! that it held fail, and say so; the counts are exact three seconds later.

use std::time::{Duration, Instant};

use zex_client::Code;
use zex_faults::load::{Calls, Entry, Load};
use zex_faults::old::OldLoad;
use zex_faults::{Plan, Stage, alone, checks, effects, scaled};

/// The load has gone on so long before the kill.
const BEFORE: Duration = Duration::from_millis(2_500);
/// And goes on so long after it.
const AFTER: Duration = Duration::from_millis(1_500);
/// Calls that are with workers over the kill and the count.
const HELD: usize = 24;
/// For so long: until the counts were looked at.
const HELD_FOR: Duration = Duration::from_secs(9);
/// What a worker takes at once, so what a dead one can have held.
const CAPACITY: usize = 100;
/// A death is acted on so soon, ms: every pipe sees the connection end. In a short run the machine
/// has others to serve; it is far less than three missed beats all the same.
const ACTED_ON_MS: [u64; 2] = [500, 50];
/// Calls that were made before the load was paused end by then.
const ENDED: Duration = Duration::from_millis(1_000);
/// Old requests that were sent so shortly before a fault may have been at who died.
const UNDERWAY: Duration = Duration::from_millis(500);

#[test]
fn a_killed_worker_takes_with_it_only_what_it_held() {
    let _alone = alone();
    let mut stage = Stage::start(Plan::default());
    let calls = Calls { rate: scaled(800, 5_000), idempotent: 2, ..Calls::default() };
    let mut load = Load::start(stage.runtime().handle(), &stage.in_pipes(), calls);
    let old = OldLoad::start(&stage.in_pipes()[0], 50);
    std::thread::sleep(BEFORE);
    load.hold(HELD, HELD_FOR, false);
    load.hold(HELD, HELD_FOR, true);
    std::thread::sleep(Duration::from_millis(300));

    let pids = stage.pids();
    stage.kill("worker-1");
    let killed = Instant::now();
    stage.kill("old-1");
    std::thread::sleep(AFTER);
    load.pause(ENDED);
    checks::counts_are_exact(&stage, killed, || load.waiting());

    let (entries, held) = load.finish();
    let old = old.stop();
    checks::no_phantoms(&stage);
    stage.check_alive();
    assert!(stage.pids().iter().all(|(name, pid)| pids[name] == *pid));
    let effects = effects::read(&stage.effects());
    let all: Vec<Entry> = entries.iter().chain(&held).cloned().collect();
    judge(&all, &effects, killed);
    let spared = [(killed - UNDERWAY, killed + UNDERWAY)];
    checks::old_rights(&old, &effects, &spared);
}

fn judge(all: &[Entry], effects: &checks::Effects, killed: Instant) {
    let (mut failed, mut again, mut last) = (0, 0, Duration::ZERO);
    for entry in all {
        let of_key = effects.get(&entry.key).map_or(&[][..], Vec::as_slice);
        let by_dead = of_key.iter().any(|effect| effect.life.starts_with("worker-1."));
        match &entry.outcome {
            Ok(_) => assert!(!of_key.is_empty(), "{entry:?} was answered and never run"),
            Err(status) => {
                assert_eq!(status.code, Code::Unavailable, "{entry:?}");
                assert!(!entry.idempotent, "{entry:?}");
                failed += 1;
                last = last.max(entry.ended - killed);
            }
        }
        assert!(of_key.len() <= 2, "{entry:?}: {of_key:?}");
        if of_key.len() == 2 {
            again += 1;
            assert!(entry.idempotent && by_dead, "{entry:?}: {of_key:?}");
            assert_eq!(of_key[0].life, "worker-1.1", "{of_key:?}");
            assert_eq!(of_key[1].flags, effects::AGAIN, "{of_key:?}");
            assert_eq!(of_key[0].flags, 0, "{of_key:?}");
            last = last.max(entry.ended.saturating_duration_since(killed + HELD_FOR));
        }
    }
    println!(
        "{} calls, {failed} UNAVAILABLE, {again} run again, the death acted on after {last:?}",
        all.len()
    );
    assert!(failed > 0 && again > 0, "the worker held nothing when it was killed");
    assert!(failed + again <= CAPACITY, "more than it can have held");
    let [short, full] = ACTED_ON_MS.map(Duration::from_millis);
    assert!(last <= scaled(short, full), "{last:?}");
}
