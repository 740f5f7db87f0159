//! Stores that die and stores that are full. PostgreSQL is killed under load and started again; the
//! scheduler on SQLite is killed under load; then either is on a small disk that fills up. Nothing that
//! was acknowledged is lost, runs wait while there is no room, and go on when there is.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use zex_database::Cluster;
use zex_faults::runs::{Runs, serve};
use zex_faults::small::SmallDisk;
use zex_faults::{PATIENCE, Plan, Stage, alone, scaled, until};
use zex_scheduler::store::{
    PostgresOptions, PostgresStore, SharedStore, SqliteOptions, SqliteStore,
};
use zex_worker::WorkerHandle;

/// What a step takes.
const STEP: Duration = Duration::from_millis(50);
/// A run is asked for so often.
const EVERY: Duration = Duration::from_millis(50);
/// What a step gives where a disk is to fill up, in bytes.
const LARGE: u32 = 64 << 10;
/// No load takes longer to end.
const ENDED: Duration = Duration::from_secs(120);

fn none() -> Plan {
    Plan { pipes: 1, brokers: 1, workers: 0, old_workers: 0, ..Plan::default() }
}

fn load(stage: &Stage, count: usize, bytes: u32) -> (Runs, WorkerHandle) {
    let runtime = stage.runtime().handle().clone();
    let _in = runtime.enter();
    let worker = serve(&stage.worker_pipes(), STEP);
    (Runs::start(&stage.in_pipes(), count, EVERY, bytes), worker)
}

fn all_ended(stage: &Stage, runs: &Runs) {
    until("all runs are asked for", ENDED, || runs.all_asked().then_some(()));
    until("all runs have ended", ENDED, || {
        let (open, _) = stage.runtime().block_on(runs.unfinished())?;
        (open == 0).then_some(())
    });
}

fn until_stalled(stage: &Stage, runs: &Runs) {
    let why = until("a run is stalled, for want of room", ENDED, || {
        let (_, why) = stage.runtime().block_on(runs.unfinished())?;
        (!why.is_empty()).then_some(why)
    });
    println!("stalled with {} runs acknowledged: {why}", runs.acknowledged());
}

fn check_database(stage: &Stage, runs: &Runs, url: &str) {
    stage.runtime().block_on(async {
        let store = PostgresStore::connect(url, &PostgresOptions::default()).await.unwrap();
        runs.check(&(Arc::new(store) as SharedStore)).await;
    });
}

#[test]
fn postgresql_is_killed_under_load() {
    let _alone = alone();
    let cluster = Cluster::start();
    let url = cluster.database();
    let stage = Stage::start(Plan { shared: Some((2, url.clone())), ..none() });
    let (runs, _worker) = load(&stage, scaled(60, 400), 8);
    for kill in 1..=scaled(1, 4) {
        let some = runs.acknowledged() + 10;
        until("some runs are taken", PATIENCE, || (runs.acknowledged() >= some).then_some(()));
        cluster.kill();
        sleep(Duration::from_millis(500) * kill);
        cluster.start_again();
        cluster.until_ready();
        println!("killed and started again; {} runs were acknowledged", runs.acknowledged());
    }
    all_ended(&stage, &runs);
    check_database(&stage, &runs, &url);
}

#[test]
fn sqlite_is_killed_and_its_disk_is_full() {
    let _alone = alone();
    let disk = match SmallDisk::mount(scaled(96, 256), scaled(72, 160)) {
        Ok(disk) => disk,
        Err(why) => return println!("SKIPPED: no small disk can be mounted here: {why}"),
    };
    let mut stage = Stage::start(Plan { scheduler: true, data: Some(disk.data()), ..none() });
    let (runs, _worker) = load(&stage, scaled(20, 120), LARGE);
    until("some runs are taken", PATIENCE, || (runs.acknowledged() >= 4).then_some(()));
    stage.kill("scheduler");
    stage.start_again("scheduler");
    until_stalled(&stage, &runs);
    disk.make_room();
    all_ended(&stage, &runs);
    let store = stage.store();
    stage.stop("scheduler");
    let store = SqliteStore::open(store, &SqliteOptions::default()).unwrap();
    stage.runtime().block_on(runs.check(&(Arc::new(store) as SharedStore)));
}

#[test]
fn the_disk_of_postgresql_is_full() {
    let _alone = alone();
    let disk = match SmallDisk::mount(scaled(200, 256), scaled(130, 150)) {
        Ok(disk) => disk,
        Err(why) => return println!("SKIPPED: no small disk can be mounted here: {why}"),
    };
    let cluster = Cluster::lent(&disk.data());
    let url = cluster.database();
    let stage = Stage::start(Plan { shared: Some((2, url.clone())), ..none() });
    let (runs, _worker) = load(&stage, scaled(30, 60), LARGE);
    until("the disk is full", ENDED, || {
        let full = cluster.log().contains("No space left");
        full.then_some(())
    });
    println!("full with {} runs acknowledged", runs.acknowledged());
    // Runs try again and find no room, or the server has given up and there is nobody to ask.
    until("a run is stalled", ENDED, || {
        let told = stage.runtime().block_on(runs.unfinished());
        let stalled = told.is_some_and(|(_, why)| !why.is_empty());
        (stalled || !cluster.runs()).then_some(())
    });
    disk.make_room();
    if !cluster.runs() {
        println!("the server had given up; it is started again");
        cluster.start_again();
    }
    cluster.until_ready();
    all_ended(&stage, &runs);
    check_database(&stage, &runs, &url);
    drop(stage);
    drop(cluster);
}
