//! Several schedulers on one database: any takes any command, and each takes over from the others.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use world::{ASSIGN, World, until};
use zex_client::Code;
use zex_database::Cluster;
use zex_pipeline::state::RunState;
use zex_scheduler::store::{NewRecord, NewRun, PostgresOptions, PostgresStore, SharedStore};
use zex_scheduler::{Scheduler, SchedulerLimits};
use zex_spec::proto;

const USERS: i64 = 2000;

/// A run that waits for somebody, in a step.
const WAITS: &str = r#"
name: waits
steps:
  - {id: word, wait: {signal: go}}
  - {id: user, call: shop.Users/Get, after: word, input: {count: 7}}
"#;

async fn connect(url: &str) -> SharedStore {
    Arc::new(PostgresStore::connect(url, &PostgresOptions::default()).await.unwrap())
}

/// Starts a scheduler, and waits until the mesh knows that there are so many.
async fn scheduler(world: &World, url: &str, name: &str, all: u32) -> Scheduler {
    let limits = SchedulerLimits::default();
    let scheduler = world.scheduler_named(name, connect(url).await, limits).await;
    until("the mesh knows it", || async {
        let known = world.client.mesh().services().await.unwrap().services;
        known.iter().any(|service| service.name == "zex.Pipelines" && service.workers == all)
    })
    .await;
    scheduler
}

async fn schedulers(world: &World) -> Vec<proto::SchedulerView> {
    let request = proto::SchedulersRequest {};
    // The one that was asked may just be going.
    let asked = world.ask::<proto::SchedulersReply>("Schedulers", &request).await;
    asked.map(|reply| reply.schedulers).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_scheduler_takes_any_command() {
    let url = Cluster::shared().database();
    let world = World::start().await;
    let _a = scheduler(&world, &url, "a", 1).await;
    let _b = scheduler(&world, &url, "b", 2).await;
    let names: Vec<String> = schedulers(&world).await.into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["a", "b"]);
    // Requests go to the one that is idle the longest, so each is asked half of the time.
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(world.run(WAITS, "").await);
    }
    for run in &runs {
        for _ in 0..2 {
            let began = Instant::now();
            let view = world.show(run).await;
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            assert_eq!(view.state(), proto::RunState::Running);
            assert_eq!((view.steps.len(), view.stalled.as_str()), (2, ""), "{view:?}");
        }
        let resume = proto::ResumeRunRequest { run_id: run.clone() };
        let pause = proto::PauseRunRequest { run_id: run.clone(), reason: "wait".into() };
        let view: proto::RunView = world.ask("Pause", &pause).await.unwrap();
        assert_eq!(view.state(), proto::RunState::Paused);
        let skip = proto::SkipStepRequest {
            run_id: run.clone(),
            step_id: "usr".into(),
            ..Default::default()
        };
        let status = world.ask::<proto::RunView>("Skip", &skip).await.unwrap_err();
        assert_eq!(status.code, Code::FailedPrecondition, "{status}");
        assert!(status.message.contains("did you mean `user`?"), "{status}");
        let view: proto::RunView = world.ask("Resume", &resume).await.unwrap();
        assert_eq!(view.state(), proto::RunState::Running);
    }
    let (last, rest) = runs.split_last().unwrap();
    let watching = rest.iter().map(|run| world.ended(run));
    let signals = async {
        for run in rest {
            let name = "go".to_owned();
            let signal = proto::SignalRequest { run_id: run.clone(), name, ..Default::default() };
            world.ask::<proto::RunView>("Signal", &signal).await.unwrap();
        }
    };
    let began = Instant::now();
    let (views, ()) = futures_util::join!(futures_util::future::join_all(watching), signals);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(views.iter().all(|view| view.state() == proto::RunState::Succeeded), "{views:?}");
    let cancel =
        proto::CancelRunRequest { run_id: last.clone(), reason: "enough".into(), force: false };
    for _ in 0..2 {
        let view: proto::RunView = world.ask("Cancel", &cancel).await.unwrap();
        assert_eq!((view.state(), view.reason.as_str()), (proto::RunState::Cancelled, "enough"));
    }
}

/// Whoever of them is asked, and whoever of them has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_nobody_can_load_is_cancelled_by_any_scheduler() {
    let url = Cluster::shared().database();
    let world = World::start().await;
    let store = connect(&url).await;
    let ids = ["1", "2", "3", "4"];
    for id in ids {
        let broken = NewRecord { body: "no record".into(), event: true };
        let run = NewRun {
            id: id.into(),
            name: "x".into(),
            definition: "{name: x, steps: [{id: word, wait: {signal: go}}]}".into(),
            parameters_json: String::new(),
            descriptors: Vec::new(),
            request_key: [id.as_bytes()[0]; 16],
            created_ms: 5,
            state: RunState::Running,
            records: vec![broken],
        };
        store.create(run).await.unwrap();
    }
    drop(store);
    let _a = scheduler(&world, &url, "a", 1).await;
    let _b = scheduler(&world, &url, "b", 2).await;
    until("they are taken up", || async {
        schedulers(&world).await.iter().map(|it| it.runs).sum::<u64>() == 4
    })
    .await;
    for id in ids {
        let cancel =
            proto::CancelRunRequest { run_id: id.into(), reason: "enough".into(), force: false };
        let view: proto::RunView = world.ask("Cancel", &cancel).await.unwrap();
        assert_eq!((view.state(), view.reason.as_str()), (proto::RunState::Cancelled, "enough"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_scheduler_had_is_taken_over_and_nothing_is_recorded_twice() {
    let url = Cluster::shared().database();
    let world = World::start().await;
    let a = scheduler(&world, &url, "a", 1).await;
    let run = world.run(ASSIGN, &format!(r#"{{"count": {USERS}}}"#)).await;
    let waits = world.run(WAITS, "").await;
    let _b = scheduler(&world, &url, "b", 2).await;
    until("a part is done", || async { world.groups.size() >= 100 }).await;
    // Dropped: it says no goodbye to the store.
    drop(a);
    let dead = Instant::now();
    until("it is taken over", || async {
        schedulers(&world).await.iter().any(|it| it.name == "b" && it.runs > 0)
    })
    .await;
    assert!(dead.elapsed() < Duration::from_secs(5), "{:?}", dead.elapsed());
    let view = world.ended(&run).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert!(world.groups.is_right(USERS, 3));
    let signal =
        proto::SignalRequest { run_id: waits.clone(), name: "go".into(), ..Default::default() };
    world.ask::<proto::RunView>("Signal", &signal).await.unwrap();
    assert_eq!(world.ended(&waits).await.state(), proto::RunState::Succeeded);
    let owners = world.watch(&run, 0).await;
    let owners = owners.into_iter().filter_map(|event| match event.event {
        Some(proto::run_event::Event::Owner(owner)) => Some((owner.scheduler, owner.epoch)),
        _ => None,
    });
    assert_eq!(owners.collect::<Vec<_>>(), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_scheduler_had_that_stops_is_taken_over_at_once() {
    let url = Cluster::shared().database();
    let world = World::start().await;
    let a = scheduler(&world, &url, "a", 1).await;
    let run = world.run(ASSIGN, &format!(r#"{{"count": {USERS}}}"#)).await;
    let b = scheduler(&world, &url, "b", 2).await;
    until("a part is done", || async { world.groups.size() >= 100 }).await;
    a.stop(Duration::from_secs(10)).await;
    let stopped = Instant::now();
    until("it is taken over", || async { b.live_runs() > 0 }).await;
    assert!(stopped.elapsed() < Duration::from_secs(2), "{:?}", stopped.elapsed());
    let view = world.ended(&run).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert!(world.groups.is_right(USERS, 3));
}
