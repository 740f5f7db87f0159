//! Brokers are killed and frozen, pipes are killed and started again: no call is lost, none runs
//! twice, and latency is normal two seconds later. Nobody else is restarted.

use std::thread::sleep;
use std::time::{Duration, Instant};

use zex_faults::checks::{self, NORMAL, Normal};
use zex_faults::load::{Calls, Load};
use zex_faults::old::OldLoad;
use zex_faults::{Plan, Stage, alone, effects, scaled};

/// The load has gone on so long before the first fault.
const BEFORE: Duration = Duration::from_millis(3_000);
/// Between a fault and the next thing that is done: latency is normal again, and is measured.
const AFTER: Duration = Duration::from_millis(3_500);
/// A pipe is away for so long.
const PIPE_AWAY: Duration = Duration::from_millis(300);
/// Old requests may get lost if they are sent so long before a fault,
const UNDERWAY: Duration = Duration::from_millis(500);
/// or before it is noticed: by three missed beats.
const UNNOTICED: Duration = Duration::from_millis(2_500);

struct Day {
    stage: Stage,
    /// What was done and when it was over; what came next.
    faults: Vec<(String, Instant, Instant)>,
    spared: Vec<(Instant, Instant)>,
}

impl Day {
    /// Does something to one process, lets the mesh recover, and sees that nobody else was touched.
    fn fault(&mut self, what: &str, name: &str, hurt: impl FnOnce(&mut Stage)) {
        let (before, begun) = (self.stage.pids(), Instant::now());
        hurt(&mut self.stage);
        let over = Instant::now();
        sleep(AFTER);
        self.stage.check_alive();
        let after = self.stage.pids();
        let touched = before.iter().filter(|(other, pid)| after.get(*other) != Some(*pid));
        assert!(touched.into_iter().all(|(other, _)| other == name), "{before:?} {after:?}");
        self.faults.push((format!("{what} {name}"), over, Instant::now()));
        self.spared.push((begun - UNDERWAY, over + UNNOTICED));
    }
}

/// A load over all of these faults, and the judgement.
fn day(faults: impl FnOnce(&mut Day)) {
    let _alone = alone();
    let stage = Stage::start(Plan::default());
    let calls = Calls { rate: scaled(500, 2_000), ..Calls::default() };
    let load = Load::start(stage.runtime().handle(), &stage.in_pipes(), calls);
    let old: Vec<_> = stage.in_pipes().iter().map(|pipe| OldLoad::start(pipe, 25)).collect();
    let begun = Instant::now();
    sleep(BEFORE);
    let quiet = (begun + BEFORE / 2, Instant::now());
    let mut day = Day { stage, faults: Vec::new(), spared: Vec::new() };
    faults(&mut day);
    let (entries, _) = load.finish();
    let old: Vec<_> = old.into_iter().map(OldLoad::stop).collect();
    checks::no_phantoms(&day.stage);
    checks::all_answered(&entries, begun);
    let effects = effects::read(&day.stage.effects());
    checks::one_effect_each(&entries, &effects);
    let normal = Normal::of(&entries, quiet.0, quiet.1);
    for (what, over, next) in &day.faults {
        normal.again(what, &entries, *over, *next);
        assert!(*next - *over > NORMAL);
    }
    for old in old {
        checks::old_rights(&old, &effects, &day.spared);
    }
    println!("{} calls, {} faults", entries.len(), day.faults.len());
}

/// One of them in a short run, all in a full one.
fn some(names: Vec<String>) -> impl Iterator<Item = String> {
    names.into_iter().take(scaled(1, usize::MAX))
}

#[test]
fn no_call_is_lost_with_a_broker_that_is_killed() {
    day(|day| {
        for name in some(day.stage.names("broker-")) {
            day.fault("killed", &name, |stage| stage.kill(&name));
            day.fault("started", &name, |stage| stage.start_again(&name));
        }
    });
}

#[test]
fn no_call_is_lost_with_a_broker_that_is_frozen() {
    day(|day| {
        for name in some(day.stage.names("broker-")) {
            day.fault("froze", &name, |stage| {
                stage.freeze(&name);
                sleep(scaled(Duration::from_secs(4), Duration::from_secs(10)));
                stage.thaw(&name);
            });
        }
    });
}

#[test]
fn no_call_is_lost_with_a_pipe_that_is_restarted() {
    day(|day| {
        for kind in ["in-", "worker-pipe-", "state-"] {
            for name in some(day.stage.names(kind)) {
                day.fault("killed and started", &name, |stage| {
                    stage.kill(&name);
                    sleep(PIPE_AWAY);
                    stage.start_again(&name);
                });
            }
        }
    });
}
