//! Three schedulers on one PostgreSQL: one is killed every few seconds and started again, or frozen for
//! a while. Every run succeeds, no result is recorded twice, what one leaves the others take within
//! five seconds, and who wakes up too late is refused.

use std::thread::sleep;
use std::time::{Duration, Instant};

use zex_database::Cluster;
use zex_faults::runs::{Runs, serve};
use zex_faults::{PATIENCE, Plan, Stage, alone, scaled, until};
use zex_scheduler::store::{PostgresOptions, PostgresStore, SharedStore};

/// Schedulers.
const SCHEDULERS: usize = 3;
/// What one leaves is taken by others so soon.
const TAKEN_OVER: Duration = Duration::from_secs(5);
/// What a step takes: a run takes some seconds, so that many are under way at a fault.
const STEP: Duration = Duration::from_millis(200);
/// A run is asked for so often.
const EVERY: Duration = Duration::from_millis(60);
/// No run takes longer, with all that is done to it.
const ENDED: Duration = Duration::from_secs(120);

struct World {
    stage: Stage,
    url: String,
    runs: Runs,
    _worker: zex_worker::WorkerHandle,
}

fn start(count: usize) -> World {
    let url = Cluster::shared().database();
    let none = Plan { pipes: 1, brokers: 1, workers: 0, old_workers: 0, ..Plan::default() };
    let stage = Stage::start(Plan { shared: Some((SCHEDULERS, url.clone())), ..none });
    let runtime = stage.runtime().handle().clone();
    let _in = runtime.enter();
    let worker = serve(&stage.worker_pipes(), STEP);
    let runs = Runs::start(&stage.in_pipes(), count, EVERY, 8);
    until("the first runs are taken", PATIENCE, || (runs.acknowledged() > 5).then_some(()));
    World { stage, url, runs, _worker: worker }
}

impl World {
    fn sql(&self, sql: &str) -> String {
        let name = self.url.split(['/', '?']).nth(3).unwrap();
        Cluster::shared().psql(name, sql)
    }

    /// Runs that a scheduler has, of the life of it that is the newest.
    fn owned(&self, id: &str) -> usize {
        let sql =
            format!("SELECT count(*) FROM zex.runs WHERE owner = '{id}' AND ended_ms IS NULL");
        self.sql(&sql).parse().unwrap()
    }

    fn id(&self, name: &str) -> String {
        let sql = format!(
            "SELECT id FROM zex.schedulers WHERE name = '{name}' ORDER BY fresh_until DESC LIMIT 1"
        );
        self.sql(&sql)
    }

    /// Waits until others have all that a scheduler had; how long that took since `fault`.
    fn taken_over(&self, id: &str, fault: Instant) -> Duration {
        until("others have its runs", PATIENCE, || (self.owned(id) == 0).then_some(()));
        let took = fault.elapsed();
        assert!(took < TAKEN_OVER, "taken over after {took:?}");
        took
    }

    fn finish(self) {
        until("all runs are asked for", ENDED, || self.runs.all_asked().then_some(()));
        until("all runs have ended", ENDED, || {
            let open = "SELECT count(*) FROM zex.runs WHERE ended_ms IS NULL";
            (self.sql(open) == "0").then_some(())
        });
        self.stage.runtime().block_on(async {
            let store = PostgresStore::connect(&self.url, &PostgresOptions::default()).await;
            let store: SharedStore = std::sync::Arc::new(store.unwrap());
            self.runs.check(&store).await;
        });
    }
}

#[test]
fn schedulers_are_killed() {
    let _alone = alone();
    let mut world = start(scaled(60, 1_000));
    let kills = scaled(2, 12);
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        sleep(scaled(Duration::from_millis(500), Duration::from_millis(1_500)));
        let name = format!("scheduler-{}", kill % SCHEDULERS + 1);
        let id = world.id(&name);
        until("it has runs", PATIENCE, || (world.owned(&id) > 0).then_some(()));
        let had = world.owned(&id);
        world.stage.kill(&name);
        let took = world.taken_over(&id, Instant::now());
        println!("{name} had {had} runs, taken over after {took:?}");
        slowest = slowest.max(took);
        world.stage.start_again(&name);
    }
    println!("the slowest take-over took {slowest:?}");
    world.finish();
}

#[test]
fn schedulers_are_frozen() {
    let _alone = alone();
    let world = start(scaled(60, 1_000));
    let freezes = scaled(1, 5);
    let frozen_for = scaled(Duration::from_secs(5), Duration::from_secs(10));
    for freeze in 0..freezes {
        let name = format!("scheduler-{}", freeze % SCHEDULERS + 1);
        let id = world.id(&name);
        until("it has runs", PATIENCE, || (world.owned(&id) > 0).then_some(()));
        let had = world.owned(&id);
        let refused = || world.stage.runtime().block_on(world.runs.fenced());
        let before = until("it is known what was refused", PATIENCE, refused);
        world.stage.freeze(&name);
        let frozen = Instant::now();
        let took = world.taken_over(&id, frozen);
        sleep(frozen_for.saturating_sub(frozen.elapsed()));
        world.stage.thaw(&name);
        let fenced = until("its late appends are refused", PATIENCE, || {
            let fenced = refused()?;
            (fenced > before).then_some(fenced - before)
        });
        println!("{name} had {had} runs, taken over after {took:?}; {fenced} late appends refused");
    }
    world.finish();
}
