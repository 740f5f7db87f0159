//! Steps that run on workers with a label: only there, or rather there.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use world::{World, until};
use zex_scheduler::store::MemoryStore;
use zex_spec::proto;

/// How long a call takes: long enough that those before it still run.
const TAKES: Duration = Duration::from_millis(20);

fn pipeline(step: &str) -> String {
    format!(
        "name: t\nsteps:\n- {{id: users, call: shop.Users/List, input: {{count: 40}}}}\n\
         - {{id: add, call: shop.Groups/Add, each: users, concurrency: 8, {step}, \
         input: {{user_id: '{{{{ item.id }}}}', group: g}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_step_runs_there_alone_and_waits_for_it() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    let (_other, others) = world.counting(&["node=b", "gpu"], 100, TAKES);
    let run = world.run(&pipeline("on: {node: a}"), "").await;
    until("the items are read", || async { world.show(&run).await.steps[1].items_read == 40 })
        .await;
    assert_eq!(world.show(&run).await.steps[1].done, 0, "nobody is there");
    let (worker, count) = world.counting(&["node=a"], 100, TAKES);
    let view = world.ended(&run).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert_eq!((count.load(Ordering::SeqCst), others.load(Ordering::SeqCst)), (40, 0));
    // A worker with a label is one of its service like any other, and listed once.
    let listed = world.client.mesh().services().await.unwrap().services;
    let listed: Vec<_> = listed.into_iter().filter(|known| known.name.contains("Groups")).collect();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((listed[0].name.as_str(), listed[0].workers), ("shop.Groups", 3));
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_waits_until_the_label_is_available() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    let text = pipeline("on: {node: a}").replace("steps:", "start: when_available\nsteps:");
    let run = world.run(&text, "").await;
    until("it is scheduled", || async {
        world.show(&run).await.state() == proto::RunState::Scheduled
    })
    .await;
    let (_worker, count) = world.counting(&["node=a"], 100, TAKES);
    let view = world.ended(&run).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert_eq!(count.load(Ordering::SeqCst), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preferring_step_runs_there_while_there_is_a_place_and_else_elsewhere() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    // Room for all: nobody else gets any.
    let (worker, count) = world.counting(&["gpu"], 8, TAKES);
    until("it is known", || async {
        let served = world.client.mesh().served().await.unwrap().services;
        served.iter().any(|known| known.name == "shop.Groups@gpu")
    })
    .await;
    let elsewhere = || world.groups.calls.load(Ordering::SeqCst);
    let text = pipeline("prefer: {gpu: true}");
    let view = world.ended(&world.run(&text, "").await).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert_eq!((count.load(Ordering::SeqCst), elsewhere()), (40, 0));
    worker.drain(Duration::from_secs(1)).await;
    // Nobody is there: known at once, or found out by the call.
    let view = world.ended(&world.run(&text, "").await).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert_eq!(view.steps[1].retries, 0, "{:?}", view.steps[1]);
    assert_eq!((count.load(Ordering::SeqCst), elsewhere()), (40, 40));
    // Room for two, as is known in a second: the others go elsewhere.
    let (_worker, count) = world.counting(&["gpu"], 2, TAKES);
    until("some go there and some elsewhere", || async {
        let before = (count.load(Ordering::SeqCst), elsewhere());
        world.ended(&world.run(&text, "").await).await;
        count.load(Ordering::SeqCst) > before.0 && elsewhere() > before.1
    })
    .await;
}
