//! Over a real mesh: a run whose services have changed since it was recorded.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use world::World;
use zex_scheduler::store::MemoryStore;
use zex_spec::proto::RunState;

/// A stream of users, each put into a group.
fn pipeline(first: &str, second: &str, retry: &str) -> String {
    format!(
        "name: changed\nsteps:\n\
         - {{id: users, call: shop.Users/List, input: {{count: 50}}{first}}}\n\
         - {{id: add, call: shop.Groups/Add, each: users, concurrency: 8{second}{retry},\n\
         \x20  input: {{user_id: \"{{{{ item.id }}}}\", group: \"g{{{{ item.id % 3 }}}}\"}}}}\n"
    )
}

const TRY: &str = ", on_change: try";
const SHARE: &str = ", on_change: {share: 20}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_has_changed_is_refused_unless_the_pipeline_says_otherwise() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    // As it was recorded: nobody is refused.
    let run = world.run(&pipeline("", "", ""), "").await;
    assert_eq!(world.ended(&run).await.state(), RunState::Succeeded);
    world.groups.ledger.lock().unwrap().clear();
    world.groups.changed.store(true, Ordering::SeqCst);
    for (first, step) in [("", "shop.Users/List"), (TRY, "shop.Groups/Add")] {
        let run = world.run(&pipeline(first, "", ""), "").await;
        let view = world.ended(&run).await;
        assert_eq!(view.state(), RunState::Failed);
        let wanted = format!("FAILED_PRECONDITION: {step} has changed: its schema is other now");
        assert!(view.reason.contains(&wanted), "{}", view.reason);
        assert_eq!(world.groups.size(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_is_tried_first_and_the_rest_when_it_went_well() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    world.groups.changed.store(true, Ordering::SeqCst);
    let run = world.run(&pipeline(TRY, SHARE, ""), "").await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), RunState::Succeeded, "{}", view.reason);
    assert!(world.groups.is_right(50, 3));
    assert!(world.groups.ledger.lock().unwrap().values().all(|times| *times == 1));

    // One of the share goes wrong for good: no more than the share has been called.
    world.groups.ledger.lock().unwrap().clear();
    world.groups.calls.store(0, Ordering::SeqCst);
    let wrong = pipeline(TRY, SHARE, ", on_failure: skip")
        .replace("item.id }}\", group", "item.id - 12 }}\", group");
    let run = world.run(&wrong, "").await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), RunState::Warning, "{}", view.reason);
    let calls = world.groups.calls.load(Ordering::SeqCst);
    assert!((1..=20).contains(&calls), "{calls} calls");
    assert_eq!(view.steps[1].failed + world.groups.size() as u64, 50, "{view:?}");
    assert!(world.groups.size() < 20, "{}", world.groups.size());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_the_moment_says_nothing_of_the_change() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    world.groups.changed.store(true, Ordering::SeqCst);
    world.groups.fail_every.store(3, Ordering::SeqCst);
    let retry = ", retry: {attempts: 20, backoff: 1ms}";
    let run = world.run(&pipeline(TRY, SHARE, retry), "").await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), RunState::Succeeded, "{}", view.reason);
    assert!(world.groups.is_right(50, 3));
}
