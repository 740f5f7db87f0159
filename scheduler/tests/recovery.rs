//! Schedulers that die, stop or find no room, and go on.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use world::narrow::Narrow;
use world::{ASSIGN, World, open, until};
use zex_client::Code;
use zex_pipeline::record::Record;
use zex_pipeline::run::{Run, Time};
use zex_pipeline::state::RunState;
use zex_scheduler::store::{MemoryStore, NewRecord, NewRun, ReadQuery, SharedStore, SqliteOptions};
use zex_spec::proto;

const USERS: i64 = 5000;

/// The items that the journal says are done, and how many were read.
async fn recorded(store: &SharedStore, run: &str) -> (BTreeSet<u64>, u64) {
    let (mut done, mut read, mut after) = (BTreeSet::new(), 0, 0);
    loop {
        let query = ReadQuery { run: run.to_owned(), after, events: false, max_bytes: 1 << 20 };
        let page = store.read(query).await.unwrap();
        let Some((last, _)) = page.last() else { return (done, read) };
        after = *last;
        for (_, body) in page {
            match Record::decode(&body).unwrap() {
                Record::Done { items, .. } => {
                    assert!(items.iter().all(|item| done.insert(*item)), "recorded once");
                }
                Record::Items { items, .. } => read += items.len() as u64,
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_dies_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    let options = SqliteOptions::default();
    let world = World::start().await;
    let scheduler = world.scheduler(open(&path, &options).await).await;
    let run = world.run(ASSIGN, &format!(r#"{{"count": {USERS}}}"#)).await;
    for part in 1..4 {
        let enough = (part * USERS / 5) as usize;
        until("a part is done", || async { world.groups.size() >= enough }).await;
        if part < 3 {
            continue;
        }
        // Dropped: nothing is written down any more.
        break;
    }
    drop(scheduler);
    let store = open(&path, &options).await;
    let (done, read) = recorded(&store, &run).await;
    assert!(done.len() >= 1000 && (done.len() as i64) < USERS, "{} are recorded", done.len());
    assert!(read >= done.len() as u64);
    let before = world.groups.calls.load(Ordering::SeqCst);
    let _scheduler = world.scheduler(store.clone()).await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    assert!(world.groups.is_right(USERS, 3));
    let after = world.groups.calls.load(Ordering::SeqCst) - before;
    let open = USERS as u64 - done.len() as u64;
    assert!(after <= open, "{after} calls for {open} items that were not recorded");
    let (done, read) = recorded(&store, &run).await;
    assert_eq!((done.len() as i64, read as i64), (USERS, USERS));
    assert!(world.groups.streams.load(Ordering::SeqCst) >= 2, "the stream was read again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_stops_says_so_to_who_watches_and_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    let world = World::start().await;
    let scheduler = world.scheduler(open(&path, &SqliteOptions::default()).await).await;
    let run = world.run(ASSIGN, &format!(r#"{{"count": {USERS}}}"#)).await;
    until("a part is done", || async { world.groups.size() >= 500 }).await;
    let watching = {
        let request =
            proto::WatchRunRequest { run_id: run.clone(), after_offset: 0, ..Default::default() };
        let body = prost::Message::encode_to_vec(&request);
        let call = zex_client::Call::new("zex.Pipelines", "Watch", body).deadline(world::PATIENCE);
        world.client.server_stream(call).await.unwrap()
    };
    let last = async {
        let (mut replies, mut last) = (watching, Ok(()));
        while let Some(event) = replies.next().await {
            last = event.map(|_| ());
        }
        last
    };
    let ((), last) = futures_util::join!(scheduler.stop(world::PATIENCE), last);
    let status = last.unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
    assert!(world.groups.size() < USERS as usize);
    let _scheduler = world.scheduler(open(&path, &SqliteOptions::default()).await).await;
    assert_eq!(world.ended(&run).await.state(), proto::RunState::Succeeded);
    assert!(world.groups.is_right(USERS, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_stalls_runs_and_refuses_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    let world = World::start().await;
    // Room for the tables and a part of the items.
    let small = SqliteOptions { max_bytes: Some(120 << 10) };
    const USERS: i64 = 20_000;
    let scheduler = world.scheduler(open(&path, &small).await).await;
    let run = world.run(ASSIGN, &format!(r#"{{"count": {USERS}}}"#)).await;
    until("the run is stalled", || async { !world.show(&run).await.stalled.is_empty() }).await;
    let view = world.show(&run).await;
    assert_eq!(view.state(), proto::RunState::Running);
    assert!(view.stalled.contains("the store is full"), "{}", view.stalled);
    let large = format!("{ASSIGN}\n# {}", "x".repeat(100_000));
    let status = world.try_run(&large, "").await.unwrap_err();
    assert_eq!(status.code, Code::ResourceExhausted, "{status}");
    assert!(status.message.contains("the pipeline is not accepted: the store is full"), "{status}");
    drop(scheduler);
    // There is room now.
    let _scheduler = world.scheduler(open(&path, &SqliteOptions::default()).await).await;
    assert_eq!(world.ended(&run).await.state(), proto::RunState::Succeeded);
    assert!(world.groups.is_right(USERS, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_by_itself_when_there_is_room_and_repeats_nothing() {
    let world = World::start().await;
    let store = Arc::new(Narrow::default());
    let _scheduler = world.scheduler(Arc::clone(&store) as SharedStore).await;
    let run = world.run(ASSIGN, &format!(r#"{{"count": {USERS}}}"#)).await;
    until("a part is done", || async { world.groups.size() >= 500 }).await;
    store.full.store(true, Ordering::SeqCst);
    until("the run is stalled", || async { !world.show(&run).await.stalled.is_empty() }).await;
    until("it is tried again", || async { store.refused.load(Ordering::SeqCst) >= 2 }).await;
    let calls = world.groups.calls.load(Ordering::SeqCst);
    assert!(calls < USERS as u64, "{calls} calls");
    let request =
        proto::CancelRunRequest { run_id: "nobody".into(), reason: String::new(), force: false };
    let status = world.ask::<proto::RunView>("Cancel", &request).await.unwrap_err();
    assert_eq!(status.code, Code::NotFound);
    store.full.store(false, Ordering::SeqCst);
    let view = world.ended(&run).await;
    assert_eq!((view.state(), view.stalled.as_str()), (proto::RunState::Succeeded, ""));
    assert!(world.groups.is_right(USERS, 3));
    assert_eq!(world.groups.calls.load(Ordering::SeqCst), USERS as u64, "each was called once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_be_loaded_can_be_cancelled() {
    let world = World::start().await;
    let store: SharedStore = Arc::new(MemoryStore::default());
    // One whose descriptors were not kept, and one whose definition means nothing any more.
    for (id, definition) in [("1", ASSIGN), ("2", "name: x\nsteps: what is this")] {
        let began = NewRecord { body: Run::first_records(Time(5))[0].encode().into(), event: true };
        let run = NewRun {
            id: id.into(),
            name: "assign".into(),
            definition: definition.into(),
            parameters_json: String::new(),
            descriptors: Vec::new(),
            request_key: [id.as_bytes()[0]; 16],
            created_ms: 5,
            state: RunState::Running,
            records: vec![began],
        };
        store.create(run).await.unwrap();
    }
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    for id in ["1", "2"] {
        let list = proto::ListRunsRequest { unfinished: true, ..Default::default() };
        until("the run is stalled", || async {
            let runs = world.ask::<proto::ListRunsReply>("List", &list).await.unwrap().runs;
            runs.iter().any(|run| run.run_id == id && !run.stalled.is_empty())
        })
        .await;
        let request =
            proto::CancelRunRequest { run_id: id.into(), reason: "enough".into(), force: false };
        let view: proto::RunView = world.ask("Cancel", &request).await.unwrap();
        assert_eq!((view.state(), view.reason.as_str()), (proto::RunState::Cancelled, "enough"));
        let row = store.run(id.to_owned()).await.unwrap().unwrap();
        assert!(row.state == RunState::Cancelled && row.ended_ms.is_some());
        let query = ReadQuery { run: id.into(), after: 1, events: true, max_bytes: 1_000 };
        let page = store.read(query).await.unwrap();
        assert!(matches!(Record::decode(&page[0].1), Ok(Record::Run { .. })) && page.len() == 1);
    }
    until("both are forgotten", || async { scheduler.live_runs() == 0 }).await;
}

/// It is listed, the scheduler goes on, and who insists ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_brings_out_a_bug_is_stalled_alone() {
    let world = World::start().await;
    let store = Arc::new(Narrow::default());
    let _scheduler = world.scheduler(Arc::clone(&store) as SharedStore).await;
    store.panics.store(true, Ordering::SeqCst);
    let run = world.run(ASSIGN, r#"{"count": 3}"#).await;
    until("the run is stalled", || async {
        world.show(&run).await.stalled.contains("a bug of the scheduler")
    })
    .await;
    store.panics.store(false, Ordering::SeqCst);
    let cancel =
        |force| proto::CancelRunRequest { run_id: run.clone(), reason: "enough".into(), force };
    let refused = world.ask::<proto::RunView>("Cancel", &cancel(false)).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable, "{refused}");
    let view: proto::RunView = world.ask("Cancel", &cancel(true)).await.unwrap();
    assert_eq!((view.state(), view.reason.as_str()), (proto::RunState::Cancelled, "enough"));
    let other = world.run(ASSIGN, r#"{"count": 3}"#).await;
    assert_eq!(world.ended(&other).await.state(), proto::RunState::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_run_is_cancelled_when_it_can_be_written() {
    let world = World::start().await;
    let store = Arc::new(Narrow::default());
    let _scheduler = world.scheduler(Arc::clone(&store) as SharedStore).await;
    let run = world.run(ASSIGN, &format!(r#"{{"count": {USERS}}}"#)).await;
    until("a part is done", || async { world.groups.size() >= 500 }).await;
    store.full.store(true, Ordering::SeqCst);
    until("the run is stalled", || async { !world.show(&run).await.stalled.is_empty() }).await;
    let request =
        proto::CancelRunRequest { run_id: run.clone(), reason: "enough".into(), force: false };
    let status = world.ask::<proto::RunView>("Cancel", &request).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
    assert!(status.message.contains("will be done when it can be written"), "{status}");
    store.full.store(false, Ordering::SeqCst);
    let view = world.ended(&run).await;
    assert_eq!((view.state(), view.reason.as_str()), (proto::RunState::Cancelled, "enough"));
}
