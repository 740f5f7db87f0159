//! Each broker is cut off from the pipes for a while, in both directions or in one: no call is
//! lost or done twice, and the mesh is whole soon after the wire is mended.

use std::thread::sleep;
use std::time::{Duration, Instant};

use zex_faults::checks::{self, Normal};
use zex_faults::load::{Calls, Load};
use zex_faults::network::{Cut, Islands};
use zex_faults::{Plan, Stage, alone, effects, scaled};

/// Before the first cut.
const BEFORE: Duration = Duration::from_millis(3_000);
/// The mesh is whole so soon after the wire is mended.
const WHOLE: Duration = Duration::from_secs(5);
/// And is watched for so long then: latency is normal two seconds later.
const AFTER: Duration = Duration::from_millis(3_000);

#[test]
fn a_broker_that_is_cut_off_loses_nothing() {
    let _alone = alone();
    let islands = match Islands::make(3) {
        Ok(islands) => islands,
        Err(why) => {
            println!("SKIPPED: no network namespaces here: {why}");
            return;
        }
    };
    let plan = Plan {
        broker_places: islands.places(),
        host: Some(islands.host()),
        old_workers: 0,
        ..Plan::default()
    };
    let mut stage = Stage::start(plan);
    let calls = Calls { rate: scaled(300, 2_000), ..Calls::default() };
    let load = Load::start(stage.runtime().handle(), &stage.in_pipes(), calls);
    let begun = Instant::now();
    sleep(BEFORE);
    let quiet = (begun + BEFORE / 2, Instant::now());
    let every = [0, 1, 2].map(|broker| [Cut::Both, Cut::Mute, Cut::Deaf].map(|cut| (broker, cut)));
    let short = vec![(0, Cut::Both), (1, Cut::Mute), (2, Cut::Deaf)];
    let (pids, mut whole) = (stage.pids(), Vec::new());
    for (broker, cut) in scaled(short, every.concat()) {
        islands.cut(broker, cut).unwrap();
        sleep(scaled(Duration::from_secs(5), Duration::from_secs(30)));
        islands.heal(broker).unwrap();
        let healed = Instant::now();
        stage.until_whole(WHOLE);
        let at = Instant::now();
        println!("broker-{} {cut:?}: whole after {:?}", broker + 1, at - healed);
        sleep(AFTER);
        stage.check_alive();
        whole.push((format!("broker-{} {cut:?}", broker + 1), at, Instant::now()));
    }
    assert_eq!(stage.pids(), pids);
    let (entries, _) = load.finish();
    checks::no_phantoms(&stage);
    checks::all_answered(&entries, begun);
    checks::one_effect_each(&entries, &effects::read(&stage.effects()));
    let normal = Normal::of(&entries, quiet.0, quiet.1);
    for (what, at, next) in whole {
        normal.again(&what, &entries, at, next);
    }
}
