//! Every process is asked to stop and started again, one after the other, under load: no call
//! fails, and each is done once.

use std::thread::sleep;
use std::time::{Duration, Instant};

use zex_faults::load::{Calls, Load};
use zex_faults::old::OldLoad;
use zex_faults::{Plan, Stage, alone, checks, effects, scaled};

/// Between the starts and the next stop: who restarts a mesh waits until it is whole again, and
/// then the least that an orchestrator takes.
const BETWEEN: Duration = Duration::from_millis(500);
/// The mesh is whole so soon after a restart.
const WHOLE: Duration = Duration::from_secs(10);
/// Before the first.
const BEFORE: Duration = Duration::from_millis(2_500);
/// Old requests may get lost if they were sent so long before an old peer's way was taken away,
const UNDERWAY: Duration = Duration::from_millis(500);
/// or before it is back.
const BACK: Duration = Duration::from_millis(2_500);

#[test]
fn no_call_fails_when_every_process_is_restarted() {
    let _alone = alone();
    let mut stage = Stage::start(Plan::default());
    let calls = Calls { rate: scaled(400, 2_000), ..Calls::default() };
    let load = Load::start(stage.runtime().handle(), &stage.in_pipes(), calls);
    let old = OldLoad::start(&stage.in_pipes()[0], 100);
    let begun = Instant::now();
    sleep(BEFORE);
    let mut spared = Vec::new();
    for name in stage.names("") {
        let at = Instant::now();
        stage.stop(&name);
        let stopped = at.elapsed();
        stage.start_again(&name);
        println!("{:>8.3?} {name}: stopped in {stopped:?}", at - begun);
        stage.until_whole(WHOLE);
        sleep(BETWEEN);
        // Nothing of an old peer is lost with a broker, or with a worker of another dialect.
        if !name.starts_with("broker-") && !native(&name) {
            spared.push((at - UNDERWAY, at + BACK.max(at.elapsed())));
        }
        stage.check_alive();
    }
    let (entries, _) = load.finish();
    let old = old.stop();
    checks::no_phantoms(&stage);
    checks::all_answered(&entries, begun);
    let effects = effects::read(&stage.effects());
    checks::one_effect_each(&entries, &effects);
    checks::old_rights(&old, &effects, &spared);
    println!("{} calls over {} restarts", entries.len(), stage.names("").len());
}

fn native(name: &str) -> bool {
    name.starts_with("worker-") && !name.starts_with("worker-pipe")
}
