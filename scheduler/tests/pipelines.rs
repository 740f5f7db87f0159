//! Pipelines over a real mesh: accepted, refused, run, watched, cancelled.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use prost::Message as _;
use tokio::sync::Semaphore;
use world::narrow::Narrow;
use world::{ASSIGN, World, open, until};
use zex_client::{Call, Code, Key};
use zex_scheduler::SERVICE;
use zex_scheduler::store::{MemoryStore, SharedStore, SqliteOptions};
use zex_spec::proto;
use zex_spec::proto::run_event::Event;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_items_go_through_the_mesh_and_the_disk_in_seconds() {
    /// In seconds, and without optimisation; it is a fraction of that.
    const LIMIT_S: u64 = 60;
    let folder = tempfile::tempdir().unwrap();
    let world = World::start().await;
    let store = open(&folder.path().join("zex.db"), &SqliteOptions::default()).await;
    let _scheduler = world.scheduler(store).await;
    let since = Instant::now();
    let run = world.run(ASSIGN, r#"{"count": 20000}"#).await;
    let view = world.ended(&run).await;
    println!("20,000 items in {:?}", since.elapsed());
    assert!(since.elapsed().as_secs() < LIMIT_S);
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert!(world.groups.is_right(20_000, 3));
    assert_eq!(world.groups.calls.load(Ordering::SeqCst), 20_000);
    let assign = &view.steps[1];
    assert_eq!((assign.id.as_str(), assign.call.as_str()), ("assign", "shop.Groups/Add"));
    assert_eq!((assign.items_read, assign.done, assign.running), (20_000, 20_000, 0));
    assert_eq!(view.steps[2].output_json, r#"{"created":false,"total":20000}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_are_tried_again_and_counted() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    world.groups.fail_every.store(7, Ordering::SeqCst);
    let run = world.run(ASSIGN, r#"{"count": 1000}"#).await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert!(world.groups.is_right(1000, 3));
    let calls = world.groups.calls.load(Ordering::SeqCst);
    assert_eq!(view.steps[1].retries, calls - 1000);
    assert!(calls > 1100, "{calls} calls");
    assert_eq!(view.steps[1].error, "UNAVAILABLE: try again");
    let attempts = world.watch(&run, 0).await.into_iter().filter_map(|event| match event.event {
        Some(Event::Attempt(attempt)) => Some(attempt),
        _ => None,
    });
    let attempts: Vec<_> = attempts.collect();
    assert_eq!(attempts.len() as u64, calls - 1000);
    assert!(attempts.iter().all(|failed| failed.step_id == "assign" && failed.item.is_some()));
}

/// A run that ends while its watcher reads what there was before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_a_run_as_it_ends_is_told_its_end() {
    let world = World::start().await;
    let (store, gate) = (Arc::new(Narrow::default()), Arc::new(Semaphore::new(0)));
    let scheduler = world.scheduler(Arc::clone(&store) as SharedStore).await;
    let run = world.run("{name: waits, steps: [{id: word, wait: {signal: go}}]}", "").await;
    until("the step waits", || async {
        world.show(&run).await.steps[0].state() == proto::StepState::Running
    })
    .await;
    let history =
        proto::WatchRunRequest { run_id: run.clone(), history: true, ..Default::default() };
    let so_far = world.watch_as(history).await;
    store.late.set(Arc::clone(&gate)).unwrap();
    let ended = async {
        until("it is read", || async { store.readers.load(Ordering::SeqCst) == 1 }).await;
        let signal = proto::SignalRequest {
            run_id: run.clone(),
            name: "go".to_owned(),
            ..Default::default()
        };
        let ended = async {
            until("it has ended", || async { scheduler.live_runs() == 0 }).await;
            gate.add_permits(Semaphore::MAX_PERMITS);
        };
        // Who signals is shown the run, and reads its events for that.
        let (signalled, ()) =
            futures_util::join!(world.ask::<proto::RunView>("Signal", &signal), ended);
        signalled.unwrap();
    };
    let watched = world.watch(&run, so_far.last().unwrap().offset);
    let (events, ()) = futures_util::join!(watched, ended);
    let Some(Event::Run(last)) = &events.last().unwrap().event else { panic!("{events:?}") };
    assert_eq!(last.state(), proto::RunState::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_told_from_any_offset_and_live() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    let run = world.run(ASSIGN, r#"{"count": 3000}"#).await;
    let live = world.watch(&run, 0).await;
    let offsets: Vec<u64> = live.iter().map(|event| event.offset).collect();
    assert!(offsets.is_sorted() && offsets[0] == 1, "{offsets:?}");
    let states: Vec<i32> = live
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Run(changed)) => Some(changed.state),
            _ => None,
        })
        .collect();
    assert_eq!(states, [1, 2, 3, 4], "recorded, scheduled, running, succeeded");
    let Some(Event::Run(last)) = &live.last().unwrap().event else { panic!("the end is last") };
    assert_eq!(last.state(), proto::RunState::Succeeded);
    let steps: Vec<&str> = live
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Step(step)) => Some(step.step_id.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(steps, ["users", "assign", "total"]);
    let progress = live.iter().rev().find_map(|event| match &event.event {
        Some(Event::Progress(progress)) => {
            progress.steps.iter().find(|step| step.id == "assign").cloned()
        }
        _ => None,
    });
    assert_eq!(progress.map(|step| (step.done, step.items_complete)), Some((3000, true)));
    assert_eq!(world.watch(&run, 0).await, live, "the same again when it is over");
    let middle = offsets[offsets.len() / 2];
    let rest: Vec<_> = live.into_iter().filter(|event| event.offset > middle).collect();
    assert_eq!(world.watch(&run, middle).await, rest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_with_its_place() {
    let world = World::start().await;
    let scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    for (from, to, parameters, want) in [
        (
            "item.id }}\", group",
            "item.idd }}\", group",
            "",
            "steps[1].input.user_id: `item`: shop.User has no field `idd`; did you mean `id`? (line 14)",
        ),
        ("{user_id:", "{user:", "", "steps[1].input.user: shop.Membership has no field `user`"),
        (
            "shop.Groups/Add",
            "shop.Groups/Ad",
            "",
            "steps[1].call: shop.Groups has no method `Ad`; did you mean `Add`?",
        ),
        (
            "shop.Groups/Count",
            "shop.Group/Count",
            "",
            "steps[2].call: no service `shop.Group` was ever registered; did you mean `shop.Groups`?",
        ),
        ("after: assign", "after: total", "", "steps[2]: step `total` waits for itself"),
        (
            "concurrency: 64",
            "concurrencie: 64",
            "",
            "steps[1].concurrencie: unknown field `concurrencie`; did you mean `concurrency`?",
        ),
        ("", "", r#"{"count": "x"}"#, "parameters.count: a whole number is wanted, this is text"),
        (
            "",
            "",
            r#"{"cont": 1}"#,
            "parameters.cont: there is no parameter `cont`; did you mean `count`?",
        ),
    ] {
        let status = world.try_run(&ASSIGN.replace(from, to), parameters).await.unwrap_err();
        assert_eq!(status.code, Code::InvalidArgument, "{to}: {status}");
        assert!(status.message.contains(want), "{to}: {status}");
    }
    let garbage = world.client.unary(Call::new(SERVICE, "Run", &b"\xff\xff"[..])).await;
    assert_eq!(garbage.unwrap_err().code, Code::InvalidArgument);
    let unknown = world.client.unary(Call::new(SERVICE, "Rum", &b""[..])).await.unwrap_err();
    assert_eq!(unknown.code, Code::Unimplemented);
    for method in ["Show", "Cancel"] {
        let request = proto::ShowRunRequest { run_id: "nobody".into(), ..Default::default() };
        let status = world.ask::<proto::RunView>(method, &request).await.unwrap_err();
        assert_eq!(status.code, Code::NotFound, "{method}: {status}");
    }
    let request = proto::RunRequest { definition: ASSIGN.into(), ..Default::default() };
    let valid: proto::ValidateReply = world.ask("Validate", &request).await.unwrap();
    assert_eq!(valid.steps, ["users", "assign", "total"]);
    assert_eq!(scheduler.live_runs(), 0);
    let list: proto::ListRunsReply =
        world.ask("List", &proto::ListRunsRequest::default()).await.unwrap();
    assert!(list.runs.is_empty(), "nothing was kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_came_and_went_is_still_known() {
    let world = World::start().await;
    let store: zex_scheduler::store::SharedStore = Arc::new(MemoryStore::default());
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    until("both services are in the store", || async {
        store.services().await.unwrap().len() == 2
    })
    .await;
    scheduler.stop(world::PATIENCE).await;
    drop(world);
    // Another mesh, in which nobody serves them.
    let world = World::empty().await;
    let _scheduler = world.scheduler(store).await;
    let run = world.run(ASSIGN, r#"{"count": 10}"#).await;
    assert_eq!(world.show(&run).await.state(), proto::RunState::Running);
    // It waits for its services, and goes on when they are there.
    let world = world.with_services();
    assert_eq!(world.ended(&run).await.state(), proto::RunState::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_sent_twice_is_one_run() {
    let world = World::start().await;
    let store: zex_scheduler::store::SharedStore = Arc::new(MemoryStore::default());
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    let request = |definition: &str| {
        let definition = definition.to_owned();
        let request = proto::RunRequest { definition, ..Default::default() };
        Call::new(SERVICE, "Run", request.encode_to_vec()).key(Key([7; 16]))
    };
    let mut ids = Vec::new();
    for _ in 0..2 {
        let reply = world.client.unary(request(ASSIGN)).await.unwrap();
        ids.push(proto::RunReply::decode(reply).unwrap().run_id);
    }
    assert_eq!(ids[0], ids[1]);
    world.ended(&ids[0]).await;
    assert_eq!(world.groups.calls.load(Ordering::SeqCst), 100);
    scheduler.stop(world::PATIENCE).await;
    drop(world);
    // Where no worker and no broker remembers the key the store does, before anything is checked.
    let world = World::empty().await;
    let _scheduler = world.scheduler(store).await;
    let reply = world.client.unary(request("not understood any more")).await.unwrap();
    let reply = proto::RunReply::decode(reply).unwrap();
    assert_eq!((reply.run_id, reply.name.as_str()), (ids.remove(0), "assign"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_reaches_the_calls_that_run() {
    let world = World::start().await;
    let scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    world.groups.hang.store(true, Ordering::SeqCst);
    let run = world.run(ASSIGN, r#"{"count": 1000}"#).await;
    until("calls hang", || async { world.groups.hanging.load(Ordering::SeqCst) == 64 }).await;
    let running = world.show(&run).await;
    assert_eq!(running.state(), proto::RunState::Running);
    assert_eq!(
        (running.steps[1].running, running.steps[1].state()),
        (64, proto::StepState::Running)
    );
    assert_eq!(running.steps[2].state(), proto::StepState::Waiting);
    let request =
        proto::CancelRunRequest { run_id: run.clone(), reason: "not wanted".into(), force: false };
    let view: proto::RunView = world.ask("Cancel", &request).await.unwrap();
    assert_eq!((view.state(), view.reason.as_str()), (proto::RunState::Cancelled, "not wanted"));
    until("the calls are taken back", || async {
        world.groups.hanging.load(Ordering::SeqCst) == 0
    })
    .await;
    let view = world.show(&run).await;
    assert!(view.ended_ms >= view.created_ms && view.created_ms > 0);
    assert_eq!(view.steps[1].state(), proto::StepState::Cancelled);
    let again: proto::RunView = world.ask("Cancel", &request).await.unwrap();
    assert_eq!(again.state(), proto::RunState::Cancelled);
    until("the run is forgotten", || async { scheduler.live_runs() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_listed_and_shown() {
    let world = World::start().await;
    let _scheduler = world.scheduler(Arc::new(MemoryStore::default())).await;
    let one = "name: one\nsteps: [{id: ann, call: shop.Users/Get, input: {count: 7}}, {id: total, call: shop.Groups/Add, input: {user_id: '{{ ann.id }}', group: '{{ ann.name }}-{{ run.id }}'}}]";
    let first = world.run(one, "").await;
    world.ended(&first).await;
    let second = world.run(ASSIGN, "").await;
    world.ended(&second).await;
    let list = |name: &str, limit| proto::ListRunsRequest {
        name: name.into(),
        limit,
        ..Default::default()
    };
    let ids = |reply: proto::ListRunsReply| -> Vec<String> {
        reply.runs.into_iter().map(|run| run.run_id).collect()
    };
    let all = ids(world.ask("List", &list("", 0)).await.unwrap());
    assert_eq!(all, [second.clone(), first.clone()]);
    assert_eq!(
        ids(world.ask("List", &list("one", 0)).await.unwrap()),
        std::slice::from_ref(&first)
    );
    let page = proto::ListRunsRequest { before_run_id: second, ..list("", 1) };
    assert_eq!(ids(world.ask("List", &page).await.unwrap()), std::slice::from_ref(&first));
    let view = world.show(&first).await;
    assert_eq!(view.steps[0].output_json, r#"{"id":7,"name":"Ann"}"#);
    assert!(world.groups.ledger.lock().unwrap().contains_key(&(7, format!("Ann-{first}"))));
    let wanted = proto::ShowRunRequest { run_id: first, definition: true, outputs: false };
    let view: proto::RunView = world.ask("Show", &wanted).await.unwrap();
    assert_eq!(view.definition, one);
}
