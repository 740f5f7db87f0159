//! Over a real mesh: how runs begin, what they wait for, pipelines in pipelines, keys,
//! schedules, artifacts, hooks; each also over a restart of the scheduler where that is
//! what it promises.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message as _;
use world::narrow::Narrow;
use world::{PATIENCE, World, until};
use zex_client::{Call, Code, Status};
use zex_scheduler::SERVICE;
use zex_scheduler::store::{MemoryStore, SharedStore};
use zex_spec::proto::{self, RunState};

fn store() -> SharedStore {
    Arc::new(MemoryStore::default())
}

async fn state(world: &World, run: &str) -> RunState {
    world.show(run).await.state()
}

async fn comes_to(world: &World, run: &str, wanted: RunState) {
    until(wanted.as_str_name(), || async { state(world, run).await == wanted }).await;
}

async fn signal(
    world: &World,
    run: &str,
    key: &str,
    name: &str,
    payload: &str,
) -> Result<proto::RunView, Status> {
    let request = proto::SignalRequest {
        run_id: run.to_owned(),
        key: key.to_owned(),
        name: name.to_owned(),
        payload_json: payload.to_owned(),
    };
    world.ask("Signal", &request).await
}

async fn start(world: &World, run: &str) -> proto::RunView {
    let request = proto::StartRunRequest { run_id: run.to_owned() };
    world.ask("Start", &request).await.unwrap()
}

const ONE: &str = "name: one\nsteps: [{id: ann, call: shop.Users/Get, input: {count: 7}}]\noutputs: {id: '{{ ann.id }}'}\n";

#[tokio::test(flavor = "multi_thread")]
async fn runs_begin_by_hand_at_a_time_when_services_appear_or_expire() {
    let world = World::empty().await;
    let store = store();
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    // Nobody serves them yet: the descriptors have to be known, so they are shown once.
    let world = world.with_services();
    until("the services are known", || async { world.try_run(ONE, "").await.is_ok() }).await;
    let by_hand = world.run(&format!("{ONE}start: by_hand\n"), "").await;
    let later = world.run(&format!("{ONE}start: {{after: 300ms}}\n"), "").await;
    let late = world.run(&format!("{ONE}start: by_hand\nstart_before: 200ms\n"), "").await;
    let at = world.run(&format!("{ONE}start: {{at: '2020-01-01T00:00:00Z'}}\n"), "").await;
    let served = world.run(&format!("{ONE}start: when_available\n"), "").await;
    assert_eq!(state(&world, &by_hand).await, RunState::Recorded);
    for run in [&later, &at, &served] {
        let ended = world.ended(run).await;
        assert_eq!(ended.state(), RunState::Succeeded, "{ended:?}");
        assert_eq!(ended.output_json, r#"{"id":7}"#);
    }
    let ended = world.ended(&later).await;
    assert!(ended.ended_ms - ended.created_ms >= 300, "{ended:?}");
    let expired = world.ended(&late).await;
    assert_eq!(expired.state(), RunState::Expired);
    assert!(expired.reason.starts_with("it had not begun by "), "{}", expired.reason);
    // What waits for somebody waits on when the scheduler was started again.
    scheduler.stop(Duration::from_secs(5)).await;
    let _scheduler = world.scheduler(store).await;
    assert_eq!(state(&world, &by_hand).await, RunState::Recorded);
    start(&world, &by_hand).await;
    assert_eq!(world.ended(&by_hand).await.state(), RunState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_timers_and_polls_hold_nothing_and_survive_a_restart() {
    let world = World::start().await;
    let store = store();
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    let text = "name: waits\nkey: waits\nsteps:\n\
        - {id: ok, wait: {signal: approved, timeout: 1h}}\n\
        - {id: rest, wait: {for: 50ms}, after: ok}\n\
        - {id: add, call: shop.Groups/Add, after: rest, input: {user_id: '{{ ok.user }}', group: g}}\n\
        - {id: more, call: shop.Groups/Add, after: rest, wait_for: x}\n";
    let why = world.try_run(text, "").await.unwrap_err();
    assert_eq!(why.code, Code::InvalidArgument);
    assert!(why.message.contains("steps[3].wait_for: unknown field"), "{}", why.message);
    let text = text.replace(
        "- {id: more, call: shop.Groups/Add, after: rest, wait_for: x}",
        "- {id: full, call: shop.Groups/Count, poll: {until: '{{ full.total >= 2 }}', every: 20ms}}",
    );
    let run = world.run(&text, "").await;
    comes_to(&world, &run, RunState::Running).await;
    assert_eq!(world.groups.calls.load(Ordering::SeqCst), 0);
    let wrong = signal(&world, &run, "", "aproved", "").await.unwrap_err();
    assert!(wrong.message.contains("did you mean `approved`?"), "{}", wrong.message);
    scheduler.stop(Duration::from_secs(5)).await;
    let _scheduler = world.scheduler(store).await;
    comes_to(&world, &run, RunState::Running).await;
    signal(&world, "", "waits", "approved", r#"{"user": 5}"#).await.unwrap();
    until("the user is added", || async { world.groups.size() == 1 }).await;
    assert_eq!(state(&world, &run).await, RunState::Running, "it asks until there are two");
    let other = ONE.replace(
        "shop.Users/Get, input: {count: 7}",
        "shop.Groups/Add, input: {user_id: 1, group: h}",
    );
    world.run(&other.replace("ann.id", "ann.total"), "").await;
    let ended = world.ended(&run).await;
    assert_eq!(ended.state(), RunState::Succeeded, "{ended:?}");
    assert_eq!(ended.steps[0].output_json, r#"{"user": 5}"#);
    assert_eq!(ended.key, "waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_with_a_key_at_a_time() {
    let world = World::start().await;
    let _scheduler = world.scheduler(store()).await;
    let text = "name: k\nparameters: {id: {type: integer}}\nkey: {name: 'k{{ params.id }}', busy: BUSY}\nsteps: [{id: ok, wait: {signal: go}}]\n";
    let queue = text.replace("BUSY", "queue");
    let first = world.run(&queue, r#"{"id": 1}"#).await;
    comes_to(&world, &first, RunState::Running).await;
    let second = world.run(&queue, r#"{"id": 1}"#).await;
    let third = world.run(&queue, r#"{"id": 1}"#).await;
    let other = world.run(&queue, r#"{"id": 2}"#).await;
    comes_to(&world, &other, RunState::Running).await;
    let refused = world.try_run(&text.replace("BUSY", "refuse"), r#"{"id": 1}"#).await.unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains(&format!("the run {first} has the key `k1`")), "{refused}");
    for (run, next) in [(&first, Some(&second)), (&second, Some(&third)), (&third, None)] {
        if let Some(next) = next {
            assert_eq!(state(&world, next).await, RunState::Scheduled);
        }
        signal(&world, "", "k1", "go", "").await.unwrap();
        assert_eq!(world.ended(run).await.state(), RunState::Succeeded);
        if let Some(next) = next {
            comes_to(&world, next, RunState::Running).await;
        }
    }
    let none = signal(&world, "", "k1", "go", "").await.unwrap_err();
    assert_eq!(none.message, "no run has the key `k1`");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_run_pipelines_with_parameters_and_outputs_and_cancel_them() {
    let world = World::start().await;
    let store = store();
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    let save = |text: &str| proto::SavePipelineRequest { definition: text.to_owned() };
    let waits = "name: waits\nsteps: [{id: go, wait: {signal: go}}]\noutputs: {said: '{{ go }}'}\n";
    world.ask::<proto::SavedPipeline>("SavePipeline", &save(waits)).await.unwrap();
    let itself = "name: waits\nsteps: [{id: s, pipeline: waits}]\n";
    let why = world.ask::<proto::SavedPipeline>("SavePipeline", &save(itself)).await.unwrap_err();
    assert!(why.message.contains("these pipelines run each other: waits → waits"), "{why}");
    let text = "name: outer\nsteps:\n\
        - id: users\n  each: '{{ [1, 2, 3] }}'\n  concurrency: 2\n  parameters: {n: '{{ item }}'}\n  \
        pipeline: {name: inner, parameters: {n: {type: integer}}, steps: [{id: add, call: shop.Groups/Add, input: {user_id: '{{ params.n }}', group: g}}]}\n\
        - {id: stored, pipeline: waits, after: users}\n\
        outputs: {said: '{{ stored.said }}'}\n";
    let run = world.run(text, "").await;
    let child = async || {
        let list =
            proto::ListRunsRequest { unfinished: true, name: "waits".into(), ..Default::default() };
        let list: proto::ListRunsReply = world.ask("List", &list).await.unwrap();
        list.runs.first().map(|run| run.run_id.clone())
    };
    until("the stored pipeline runs", || async { child().await.is_some() }).await;
    assert_eq!(world.groups.size(), 3);
    let inner = child().await.unwrap();
    // Both go on where they were, and find each other again.
    scheduler.stop(Duration::from_secs(5)).await;
    let _scheduler = world.scheduler(store).await;
    let shown = world.show(&inner).await;
    assert_eq!((shown.parent_run_id, shown.made_by), (run.clone(), format!("run {run}")));
    signal(&world, &inner, "", "go", "[1]").await.unwrap();
    let ended = world.ended(&run).await;
    assert_eq!(
        (ended.state(), ended.output_json.as_str()),
        (RunState::Succeeded, r#"{"said":[1]}"#),
        "{ended:?}"
    );
    // Cancelled, it takes along what it runs.
    let run = world.run("name: outer\nsteps: [{id: stored, pipeline: waits}]\n", "").await;
    until("the stored pipeline runs", || async { child().await.is_some() }).await;
    let inner = child().await.unwrap();
    let cancel = proto::CancelRunRequest { run_id: run.clone(), ..Default::default() };
    world.ask::<proto::RunView>("Cancel", &cancel).await.unwrap();
    assert_eq!(world.ended(&inner).await.state(), RunState::Cancelled);
    // A run that waits for another, and what fails in it.
    let other = world.run(waits, "").await;
    let waiter = format!(
        "name: w\nsteps: [{{id: o, wait: {{run: '{other}'}}}}]\noutputs: {{o: '{{{{ o.said }}}}'}}\n"
    );
    let waiter = world.run(&waiter, "").await;
    signal(&world, &other, "", "go", "7").await.unwrap();
    assert_eq!(world.ended(&waiter).await.output_json, r#"{"o":7}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_start_runs_and_survive_a_restart() {
    let world = World::start().await;
    let store = store();
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    let mut request = proto::SaveScheduleRequest {
        name: "often".into(),
        cron: "* * * * * *".into(),
        definition: ONE.into(),
        ..Default::default()
    };
    request.cron = "every day".into();
    let why = world.ask::<proto::ScheduleView>("SaveSchedule", &request).await.unwrap_err();
    assert!(why.message.contains("cron: `every day` is no cron pattern"), "{why}");
    request.cron = "* * * * * *".into();
    let kept: proto::ScheduleView = world.ask("SaveSchedule", &request).await.unwrap();
    assert_eq!((kept.pipeline.as_str(), kept.missed.as_str()), ("one", "once"));
    let made = async || {
        let list: proto::ListSchedulesReply =
            world.ask("ListSchedules", &proto::ListSchedulesRequest {}).await.unwrap();
        list.schedules[0].last_run_id.clone()
    };
    until("it started a run", || async { !made().await.is_empty() }).await;
    let first = made().await;
    let ended = world.ended(&first).await;
    assert_eq!((ended.state(), ended.made_by.as_str()), (RunState::Succeeded, "schedule often"));
    scheduler.stop(Duration::from_secs(5)).await;
    let _scheduler = world.scheduler(store).await;
    until("it starts another", || async { made().await > first }).await;
    let remove = proto::RemoveScheduleRequest { name: "oftn".into() };
    let why = world.ask::<proto::ScheduleView>("RemoveSchedule", &remove).await.unwrap_err();
    assert_eq!(why.message, "there is no schedule `oftn`; did you mean `often`?");
    let remove = proto::RemoveScheduleRequest { name: "often".into() };
    world.ask::<proto::ScheduleView>("RemoveSchedule", &remove).await.unwrap();
    let list: proto::ListSchedulesReply =
        world.ask("ListSchedules", &proto::ListSchedulesRequest {}).await.unwrap();
    assert_eq!(list.schedules, []);
}

async fn artifact(world: &World, run: &str, offset: u64, follow: bool) -> (String, bool) {
    let request = proto::ReadArtifactRequest {
        run_id: run.to_owned(),
        name: "names".to_owned(),
        offset,
        follow,
    };
    let call = Call::new(SERVICE, "ReadArtifact", request.encode_to_vec()).deadline(PATIENCE);
    let mut chunks = world.client.server_stream(call).await.unwrap();
    let (mut text, mut complete) = (String::new(), false);
    while let Some(chunk) = chunks.next().await {
        let chunk = proto::ArtifactChunk::decode(chunk.unwrap()).unwrap();
        assert_eq!(chunk.offset, offset + text.len() as u64);
        text += std::str::from_utf8(&chunk.data).unwrap();
        complete = chunk.complete;
    }
    (text, complete)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_read_while_it_grows_and_is_forgotten_with_its_run() {
    let world = World::start().await;
    let _scheduler = world.scheduler(store()).await;
    // The takers hang, so the source is read ahead and no further.
    world.groups.hang.store(true, Ordering::SeqCst);
    let text = "name: a\nkeep: 500ms\nsteps:\n\
        - {id: users, call: shop.Users/List, input: {count: 5000}, artifact: {name: names, field: name}}\n\
        - {id: add, each: users, call: shop.Groups/Add, input: {user_id: '{{ item.id }}', group: g}, concurrency: 4, timeout: 1s}\n";
    let run = world.run(text, "").await;
    let begins = async || artifact(&world, &run, 0, false).await;
    until("it grows", || async { begins().await.0.len() > 1000 }).await;
    let (grown, complete) = begins().await;
    assert!(!complete && grown.starts_with("user 0user 1user 2"), "{:.40}", grown);
    let (rest, _) = artifact(&world, &run, 6, false).await;
    assert!(rest.starts_with("user 1"), "{:.20}", rest);
    world.groups.hang.store(false, Ordering::SeqCst);
    let (whole, complete) = artifact(&world, &run, 0, true).await;
    let wanted: String = (0..5000).map(|id| format!("user {id}")).collect();
    assert!(complete && whole == wanted, "{} of {} bytes", whole.len(), wanted.len());
    let list = proto::ArtifactsRequest { run_id: run.clone() };
    let list: proto::ArtifactsReply = world.ask("Artifacts", &list).await.unwrap();
    assert_eq!((list.artifacts[0].bytes, list.artifacts[0].complete), (wanted.len() as u64, true));
    world.ended(&run).await;
    let gone = || async {
        let request = proto::ShowRunRequest { run_id: run.clone(), ..Default::default() };
        world.ask::<proto::RunView>("Show", &request).await.is_err()
    };
    until("it is forgotten", gone).await;
}

/// The note that says when it is forgotten is written before its end: while there is no room for
/// it, the end waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_while_the_store_is_full_is_forgotten_all_the_same() {
    let world = World::start().await;
    let store = Arc::new(Narrow::default());
    let _scheduler = world.scheduler(Arc::clone(&store) as SharedStore).await;
    store.no_notes.store(true, Ordering::SeqCst);
    let text =
        "name: full\nkeep: 300ms\nsteps: [{id: ann, call: shop.Users/Get, input: {count: 7}}]\n";
    let run = world.run(text, "").await;
    // Tried again after a second: by then it would have ended without a note.
    until("its end finds no room twice", || async { store.refused.load(Ordering::SeqCst) > 1 })
        .await;
    assert_eq!(state(&world, &run).await, RunState::Running);
    store.no_notes.store(false, Ordering::SeqCst);
    let gone = || async {
        let request = proto::ShowRunRequest { run_id: run.clone(), ..Default::default() };
        world.ask::<proto::RunView>("Show", &request).await.is_err()
    };
    until("it is forgotten", gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_calls_a_method_when_a_run_ends() {
    let world = World::start().await;
    let _scheduler = world.scheduler(store()).await;
    let text = "name: h\nparameters: {id: {type: integer}}\nsteps: [{id: a, call: shop.Groups/Add, input: {user_id: -1, group: g}}]\n\
        hooks:\n  - {on: failed, call: shop.Groups/Add, input: {user_id: '{{ params.id }}', group: '{{ params.event.state }} {{ params.event.name }}'}}\n\
        \x20 - {on: succeeded, call: shop.Groups/Count}\n";
    let run = world.run(text, r#"{"id": 3}"#).await;
    assert_eq!(world.ended(&run).await.state(), RunState::Failed);
    until("it was told", || async { world.groups.size() == 1 }).await;
    assert!(world.groups.ledger.lock().unwrap().contains_key(&(3, "failed h".to_owned())));
    let history = proto::WatchRunRequest { run_id: run.clone(), after_offset: 0, history: true };
    let call = Call::new(SERVICE, "Watch", history.encode_to_vec()).deadline(PATIENCE);
    let mut events = world.client.server_stream(call).await.unwrap();
    let mut owners = Vec::new();
    while let Some(event) = events.next().await {
        let event = proto::RunEvent::decode(event.unwrap()).unwrap();
        if let Some(proto::run_event::Event::Owner(owner)) = event.event {
            owners.push((owner.scheduler, owner.epoch));
        }
    }
    assert_eq!(owners, [("scheduler".to_owned(), 1)]);
}
