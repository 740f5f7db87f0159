//! Over a real mesh: what fails pauses, is mended, skipped, taken back.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use world::{World, until};
use zex_client::Code;
use zex_scheduler::store::{MemoryStore, SqliteOptions};
use zex_spec::proto::{self, RunState, StepState};

const PAUSES: &str = r#"
name: pauses
steps:
  - {id: ann, call: shop.Users/Get, input: {count: 7}}
  - id: add
    call: shop.Groups/Add
    input: {user_id: "{{ ann.id }}", group: g}
    retry: {attempts: 2, backoff: 1ms}
    on_failure: pause
  - {id: total, call: shop.Groups/Count, after: add}
"#;

async fn paused(world: &World, run: &str) -> proto::RunView {
    until("the run pauses", || async { world.show(run).await.state() == RunState::Paused }).await;
    world.show(run).await
}

fn step(run_id: &str) -> proto::RetryStepRequest {
    proto::RetryStepRequest { run_id: run_id.to_owned(), step_id: "add".to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_fails_pauses_the_run_over_a_restart_until_it_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    let world = World::start().await;
    let scheduler = world.scheduler(world::open(&path, &SqliteOptions::default()).await).await;
    world.groups.fail_every.store(1, Ordering::SeqCst);
    let run = world.run(PAUSES, "").await;
    let view = paused(&world, &run).await;
    assert_eq!(view.reason, "step `add`: UNAVAILABLE: try again (attempt 2 of 2)");
    assert_eq!((view.steps[1].state(), view.steps[1].failed), (StepState::Failed, 1));
    scheduler.stop(world::PATIENCE).await;
    let _scheduler = world.scheduler(world::open(&path, &SqliteOptions::default()).await).await;
    let view = paused(&world, &run).await;
    assert_eq!(view.steps[1].state(), StepState::Failed);
    // Not mended yet: it pauses again.
    let calls = world.groups.calls.load(Ordering::SeqCst);
    world.ask::<proto::RunView>("Retry", &step(&run)).await.unwrap();
    until("it is tried again", || async { world.groups.calls.load(Ordering::SeqCst) == calls + 2 })
        .await;
    paused(&world, &run).await;
    world.groups.fail_every.store(0, Ordering::SeqCst);
    let resume = proto::ResumeRunRequest { run_id: run.clone() };
    world.ask::<proto::RunView>("Resume", &resume).await.unwrap();
    let view = world.ended(&run).await;
    assert_eq!(view.state(), RunState::Succeeded, "{}", view.reason);
    let status = world.ask::<proto::RunView>("Retry", &step(&run)).await.unwrap_err();
    assert_eq!(status.code, Code::FailedPrecondition, "{status}");
    assert_eq!(status.message, format!("run {run} has ended, it is succeeded"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_is_skipped_and_the_run_ends_with_a_warning() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    world.groups.fail_every.store(1, Ordering::SeqCst);
    for (dependents, total) in [(false, StepState::Succeeded), (true, StepState::Skipped)] {
        let run = world.run(PAUSES, "").await;
        paused(&world, &run).await;
        let skip = |step: &str| proto::SkipStepRequest {
            run_id: run.clone(),
            step_id: step.to_owned(),
            dependents,
            failed_items: false,
        };
        let status = world.ask::<proto::RunView>("Skip", &skip("ad")).await.unwrap_err();
        assert_eq!(status.message, "the run has no step `ad`; did you mean `add`?");
        world.ask::<proto::RunView>("Skip", &skip("add")).await.unwrap();
        let view = world.ended(&run).await;
        assert_eq!(view.state(), RunState::Warning, "{}", view.reason);
        assert_eq!(view.steps[1].state(), StepState::Skipped);
        assert_eq!(view.steps[2].state(), total);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failed_run_did_is_taken_back() {
    const UNDO: &str = r#"
name: undo
steps:
  - id: first
    call: shop.Users/Get
    input: {count: 1}
    compensate: {call: shop.Groups/Add, input: {user_id: "{{ first.id }}", group: undone}}
  - id: second
    call: shop.Users/Get
    input: {count: 2}
    after: first
    compensate: {call: shop.Groups/Add, input: {user_id: "{{ second.id }}", group: undone}}
  - {id: bad, call: shop.Groups/Add, after: second, input: {user_id: -1, group: refused}}
"#;
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    let run = world.run(UNDO, "").await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), RunState::Failed);
    assert_eq!(view.reason, "step `bad`: INVALID_ARGUMENT: no such user (attempt 1 of 8)");
    let states: Vec<StepState> = view.steps.iter().map(proto::StepView::state).collect();
    assert_eq!(states, [StepState::Undone, StepState::Undone, StepState::Failed]);
    let ledger = world.groups.ledger.lock().unwrap();
    assert!([1, 2].iter().all(|id| ledger.get(&(*id, "undone".to_owned())) == Some(&1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_paused_by_hand_and_goes_on() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    let run = world.run(world::ASSIGN, r#"{"count": 20000}"#).await;
    until("a part is done", || async { world.groups.size() >= 500 }).await;
    let pause = proto::PauseRunRequest { run_id: run.clone(), reason: "a look".into() };
    let view: proto::RunView = world.ask("Pause", &pause).await.unwrap();
    assert_eq!((view.state(), view.reason.as_str()), (RunState::Paused, "a look"));
    until("nothing is in flight", || async {
        world.show(&run).await.steps.iter().all(|step| step.running == 0)
    })
    .await;
    assert!(world.groups.size() < 20_000);
    let resume = proto::ResumeRunRequest { run_id: run.clone() };
    world.ask::<proto::RunView>("Resume", &resume).await.unwrap();
    assert_eq!(world.ended(&run).await.state(), RunState::Succeeded);
    assert!(world.groups.is_right(20_000, 3));
    assert_eq!(world.groups.calls.load(Ordering::SeqCst), 20_000, "each was called once");
}
