//! What runs may take: places for calls, shared fairly, and bytes of journal.
#![allow(clippy::unwrap_used)] // All of this file is tests.

mod world;

use std::sync::Arc;

use world::{ASSIGN, World, until};
use zex_scheduler::SchedulerLimits;
use zex_scheduler::store::MemoryStore;
use zex_spec::proto::{ResumeRunRequest, RunState, RunView};

/// A run of very many items has every place; one that comes later has the next that is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_run_does_not_wait_for_a_large_one() {
    let world = World::start().await;
    let limits = SchedulerLimits { calls: 2, ..SchedulerLimits::default() };
    let scheduler = world.scheduler_with(Arc::new(MemoryStore::default()), limits).await;
    let large = world.run(ASSIGN, r#"{"count": 20000}"#).await;
    until("the large run is on its way", || async { world.groups.size() > 100 }).await;
    let small = "name: small\nsteps: [{id: a, call: shop.Users/Get}, {id: b, call: shop.Users/Get, after: a}]";
    let small = world.run(small, "").await;
    let ended = world.ended(&small).await;
    assert_eq!(ended.state(), RunState::Succeeded, "{ended:?}");
    let before = world.show(&large).await;
    assert_eq!(before.state(), RunState::Running, "the large one had to be over first: {before:?}");
    let ended = world.ended(&large).await;
    assert_eq!((ended.state(), ended.steps[1].done), (RunState::Succeeded, 20_000), "{ended:?}");
    assert!(world.groups.is_right(20_000, 3));
    scheduler.stop(world::PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_journal_is_too_large_pauses_and_goes_on_when_it_is_resumed() {
    let world = World::start().await;
    let scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    let definition = ASSIGN.replace("steps:", "limits: {disk: 64KiB}\nsteps:");
    let run = world.run(&definition, r#"{"count": 8000}"#).await;
    let mut pauses = 0;
    loop {
        until("it pauses or ends", || async {
            let view = world.show(&run).await;
            view.ended_ms > 0 || view.state() == RunState::Paused
        })
        .await;
        let view = world.show(&run).await;
        if view.ended_ms > 0 {
            assert_eq!((view.state(), view.steps[1].done), (RunState::Succeeded, 8_000));
            break;
        }
        assert!(view.reason.contains("`limits.disk` is 65536"), "{}", view.reason);
        pauses += 1;
        let _resumed: RunView =
            world.ask("Resume", &ResumeRunRequest { run_id: run.clone() }).await.unwrap();
    }
    // 8,000 users of some 15 bytes each are twice the limit at least.
    assert!(pauses >= 2, "{pauses} pauses");
    assert!(world.groups.is_right(8_000, 3));
    scheduler.stop(world::PATIENCE).await;
}
